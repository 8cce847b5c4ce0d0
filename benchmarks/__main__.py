"""
The first comparison: `python -m benchmarks [--quick]`; `messages` compares the inbox, `kafka` the consumer,
`logs` rebuilds and verifies a long log.

Every figure is taken in turn with the others, round after round; what counts is the ratio within a round, and of
those the median.  Absolute figures say more about the machine than about anyone measured.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console
from sqlalchemy import URL

from benchmarks import logs, messages, topic
from benchmarks.contestants import HandWritten, Ours, Peer
from benchmarks.noise import listen
from benchmarks.report import Ratio, Run, keep, results, show
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

RATIOS: Final = (
    Ratio("single / pgbench statements, 1 client", SINGLE, (PLAIN,), 0.6),
    Ratio("single, no key / pgbench statements, 1 client", UNKEYED, (PLAIN,), None),
    Ratio("single / pgbench function, 1 client", SINGLE, (FUNCTION,), None),
    Ratio("single / pgbench statements, 8 of each", SINGLE_8, (PLAIN_8,), None),
    Ratio("single / eventsourcing, 1 thread", SINGLE, (PEER,), 2.0),
    Ratio("single / eventsourcing, 8 threads", SINGLE_8, (PEER_8,), 2.0),
    Ratio("batches, 2 processes / pgbench statements, its best", APART, (PLAIN, PLAIN_8), 3.0),
    Ratio("batches, 1 process / pgbench statements, its best", BATCHES, (PLAIN, PLAIN_8), None),
    Ratio("batches, 2 processes / pgbench function, its best", APART, (FUNCTION, FUNCTION_8), None),
)

Turns = Mapping[str, Callable[[float], float]]


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
        found = results(runs, RATIOS, "transfers") | {"seconds": seconds, "conditions": conditions(url)}
    show(found, "transfers", console)
    keep(found, arguments.output, console)


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


if __name__ == "__main__":
    if sys.argv[1:2] == ["messages"]:
        messages.main(sys.argv[2:])
    elif sys.argv[1:2] == ["logs"]:
        logs.main(sys.argv[2:])
    elif sys.argv[1:2] == ["kafka"]:
        topic.main(sys.argv[2:])
    else:
        main()
