"""
The first comparison: `python -m benchmarks [--quick]`.

Every figure is taken in turn with the others, round after round; what counts is the ratio within a round, and of
those the median.  Absolute figures say more about the machine than about anyone measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Column, Table
from sqlalchemy import URL

from benchmarks.contestants import HandWritten, Ours, Peer
from benchmarks.noise import Noise, listen
from benchmarks.server import conditions, server, settle

SINGLE: Final = "ledger, single, 1 thread"
UNKEYED: Final = "ledger, single, 1 thread, no key"
SINGLE_8: Final = "ledger, single, 8 threads"
BATCHES: Final = "ledger, batches of 1,000, 1 thread"
APART: Final = "ledger, batches of 1,000, 2 processes"
PLAIN: Final = "pgbench, statements, 1 client"
PLAIN_8: Final = "pgbench, statements, 8 clients"
FUNCTION: Final = "pgbench, PL/pgSQL function, 1 client"
FUNCTION_8: Final = "pgbench, PL/pgSQL function, 8 clients"
PEER: Final = "eventsourcing, 1 thread"
PEER_8: Final = "eventsourcing, 8 threads"

_PGBENCH: Final = (PLAIN, PLAIN_8, FUNCTION, FUNCTION_8)

# What is said, of whom, against the best of whom, and what is aimed at.
RATIOS: Final = (
    ("single / pgbench statements, 1 client", SINGLE, (PLAIN,), 0.6),
    ("single, no key / pgbench statements, 1 client", UNKEYED, (PLAIN,), None),
    ("single / pgbench function, 1 client", SINGLE, (FUNCTION,), None),
    ("single / pgbench statements, 8 of each", SINGLE_8, (PLAIN_8,), None),
    ("single / eventsourcing, 1 thread", SINGLE, (PEER,), 2.0),
    ("single / eventsourcing, 8 threads", SINGLE_8, (PEER_8,), 2.0),
    ("batches, 2 processes / pgbench statements, its best", APART, (PLAIN, PLAIN_8), 3.0),
    ("batches, 1 process / pgbench statements, its best", BATCHES, (PLAIN, PLAIN_8), None),
    ("batches, 2 processes / pgbench function, its best", APART, (FUNCTION, FUNCTION_8), None),
)

Turns = Mapping[str, Callable[[float], float]]


class Run(NamedTuple):
    """One figure of one round, and the machine right before it."""

    round: int
    name: str
    transfers_per_second: float
    noise: Noise


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
        runs = _measure(url, rounds, seconds, console)
        results = _results(runs, rounds) | {"seconds": seconds, "conditions": conditions(url)}
    _print(results, console)
    output = arguments.output or Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"  # noqa: TID251
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(f"kept in {output}")


def _measure(url: URL, rounds: int, seconds: float, console: Console) -> list[Run]:
    with ExitStack() as stack:
        scripts = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ledger-bench-")))
        ours, hand, peer = Ours(url), HandWritten(url, scripts), Peer(url)
        stack.callback(peer.close)
        turns: Turns = {
            PLAIN: lambda seconds: hand.run("plain", 1, seconds),
            SINGLE: lambda seconds: ours.single(1, seconds),
            PEER: lambda seconds: peer.single(1, seconds),
            FUNCTION: lambda seconds: hand.run("function", 1, seconds),
            UNKEYED: lambda seconds: ours.unkeyed(1, seconds),
            PLAIN_8: lambda seconds: hand.run("plain", 8, seconds),
            SINGLE_8: lambda seconds: ours.single(8, seconds),
            BATCHES: ours.batches,
            APART: ours.batches_apart,
            FUNCTION_8: lambda seconds: hand.run("function", 8, seconds),
            PEER_8: lambda seconds: peer.single(8, seconds),
        }
        # Nobody's first run counts: connections are opened in it, and statements prepared.
        for turn in turns.values():
            turn(min(1.0, seconds / 2))
        # What one of them keeps in memory is no garbage that the others' collections should have to look through.
        gc.freeze()
        runs = []
        for number in range(1, rounds + 1):
            for name, turn in turns.items():
                if console.is_terminal:
                    console.print(f"round {number} of {rounds}: {name}", style="dim")
                settle(url)
                noise = listen()
                runs.append(Run(number, name, turn(seconds), noise))
        ours.close()
    return runs


def _results(runs: Sequence[Run], rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {}
    for run in runs:
        rates.setdefault(run.name, []).append(run.transfers_per_second)
    ratios = []
    for name, left, right, target in RATIOS:
        best = [max(of_round) for of_round in zip(*(rates[contestant] for contestant in right), strict=True)]
        by_round = [ours / theirs for ours, theirs in zip(rates[left], best, strict=True)]
        ratios.append({"name": name, **_spread(by_round), "target": target})
    noise = zip(*(run.noise for run in runs), strict=True)
    return {
        "rounds": rounds,
        "transfers_per_second": {name: _spread(values) for name, values in rates.items()},
        "ratios": ratios,
        "noise": {field: _spread(values) for field, values in zip(Noise._fields, noise, strict=True)},
        "runs": [run._asdict() | {"noise": run.noise._asdict()} for run in runs],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _print(results: Mapping[str, Any], console: Console) -> None:
    rates = Table("transfers a second", *_right("median", "min", "max"))
    for name, rate in results["transfers_per_second"].items():
        rates.add_row(name, *_cells(rate, ",.0f"))
    ratios = Table("ratio, round by round", *_right("median", "min", "max", "target"))
    for ratio in results["ratios"]:
        target = "" if ratio["target"] is None else f"≥ {ratio['target']:g}"
        ratios.add_row(ratio["name"], *_cells(ratio, ".2f"), target)
    noise = Table("the machine before each run", *_right("median", "min", "max"))
    for field, shape in zip(Noise._fields, (",.0f", ".2f", ".1%"), strict=True):
        noise.add_row(field.replace("_", " "), *_cells(results["noise"][field], shape))
    for table in (rates, ratios, noise):
        console.print(table)
    console.print("on " + ", ".join(f"{name} {value}" for name, value in results["conditions"].items()))


def _right(*headings: str) -> list[Column]:
    return [Column(heading, justify="right") for heading in headings]


def _cells(spread: Mapping[str, float], shape: str) -> list[str]:
    return [format(spread[column], shape) for column in ("median", "min", "max")]


if __name__ == "__main__":
    main()
