"""
The first comparison: `python -m benchmarks [--quick]`.

Every figure is taken in turn with the others, round after round; what counts is the ratio within a round, and of
those the median.  Absolute figures say more about the machine than about anyone measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks.contestants import HandWritten, Ours, Peer
from benchmarks.server import conditions, server, settle, stolen

SINGLE: Final = "ledger, single, 1 thread"
SINGLE_8: Final = "ledger, single, 8 threads"
BATCHES: Final = "ledger, batches of 1,000, 1 thread"
PLAIN: Final = "pgbench, statements, 1 client"
PLAIN_8: Final = "pgbench, statements, 8 clients"
FUNCTION: Final = "pgbench, PL/pgSQL function, 1 client"
FUNCTION_8: Final = "pgbench, PL/pgSQL function, 8 clients"
PEER: Final = "eventsourcing, 1 thread"
PEER_8: Final = "eventsourcing, 8 threads"

RATIOS: Final = (
    ("single / pgbench statements, one client", SINGLE, (PLAIN,), 0.6),
    ("single / eventsourcing, one thread", SINGLE, (PEER,), 2.0),
    ("single / eventsourcing, 8 threads", SINGLE_8, (PEER_8,), 2.0),
    ("batches / pgbench statements, its best", BATCHES, (PLAIN, PLAIN_8), 3.0),
    ("batches / pgbench, its best of all", BATCHES, (PLAIN, PLAIN_8, FUNCTION, FUNCTION_8), None),
    ("single, 8 threads / pgbench statements, 8 clients", SINGLE_8, (PLAIN_8,), None),
)


def main() -> None:
    """Run the comparison, print it, and keep it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds per figure and round (default: 4)")
    parser.add_argument("--output", type=Path, help="where the JSON goes (default: benchmarks/results/)")
    arguments = parser.parse_args()
    rounds, seconds = (1, 1.0) if arguments.quick else (arguments.rounds, arguments.seconds)
    console = Console()
    with server() as url:
        stolen_before, all_before = stolen()
        figures = _measure(Ours(url), HandWritten(url), Peer(url), lambda: settle(url), rounds, seconds, console)
        stolen_after, all_after = stolen()
        facts = conditions(url)
    facts["stolen"] = round((stolen_after - stolen_before) / max(1.0, all_after - all_before), 3)
    results = _results(figures, facts, rounds, seconds)
    _print(results, console)
    output = arguments.output or Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"  # noqa: TID251
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(f"kept in {output}")


def _measure(
    ours: Ours,
    hand: HandWritten,
    peer: Peer,
    settle_down: Callable[[], None],
    rounds: int,
    seconds: float,
    console: Console,
) -> dict[str, list[float]]:
    turns: dict[str, Callable[[], float]] = {
        PLAIN: lambda: hand.run("plain", 1, seconds),
        SINGLE: lambda: ours.single(1, seconds),
        PEER: lambda: peer.single(1, seconds),
        FUNCTION: lambda: hand.run("function", 1, seconds),
        PLAIN_8: lambda: hand.run("plain", 8, seconds),
        SINGLE_8: lambda: ours.single(8, seconds),
        BATCHES: lambda: ours.batches(seconds),
        FUNCTION_8: lambda: hand.run("function", 8, seconds),
        PEER_8: lambda: peer.single(8, seconds),
    }
    figures: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            if console.is_terminal:
                console.print(f"round {number + 1} of {rounds}: {name}", style="dim")
            settle_down()
            figures[name].append(turn())
    ours.check()
    peer.close()
    return figures


def _results(
    figures: dict[str, list[float]], facts: dict[str, object], rounds: int, seconds: float
) -> dict[str, object]:
    ratios = []
    for name, left, right, target in RATIOS:
        best = [max(figures[contestant][number] for contestant in right) for number in range(rounds)]
        by_round = [ours / theirs for ours, theirs in zip(figures[left], best, strict=True)]
        ratios.append(
            {"name": name, "median": median(by_round), "min": min(by_round), "max": max(by_round), "target": target}
        )
    rates = {
        name: {"median": median(values), "min": min(values), "max": max(values)} for name, values in figures.items()
    }
    return {
        "conditions": facts,
        "rounds": rounds,
        "seconds": seconds,
        "transfers_per_second": rates,
        "ratios": ratios,
    }


def _print(results: dict[str, object], console: Console) -> None:
    rates = Table("transfers a second", title=None)
    for heading in ("median", "min", "max"):
        rates.add_column(heading, justify="right")
    for name, rate in results["transfers_per_second"].items():  # type: ignore[attr-defined]
        rates.add_row(name, *(f"{rate[column]:,.0f}" for column in ("median", "min", "max")))
    console.print(rates)
    ratios = Table("ratio, round by round")
    for heading in ("median", "min", "max", "target"):
        ratios.add_column(heading, justify="right")
    for ratio in results["ratios"]:  # type: ignore[attr-defined]
        target = "" if ratio["target"] is None else f"≥ {ratio['target']:g}"
        ratios.add_row(ratio["name"], *(f"{ratio[column]:.2f}" for column in ("median", "min", "max")), target)
    console.print(ratios)
    console.print("on " + ", ".join(f"{name} {value}" for name, value in results["conditions"].items()))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
