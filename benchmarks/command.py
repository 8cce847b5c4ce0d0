"""
How fast, beside whom: `python -m benchmarks [NAME …]`, or `ledger bench [NAME …]`.

Every figure is taken in turn with the others, round after round; what counts is the ratio within a round, and of
those the median.  Absolute figures say more about the machine than about anyone measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from sqlalchemy import URL

from benchmarks import asof, batches, calls, charts, feed, growth, logs, messages, peer, reports, service, topic
from benchmarks.report import keep, results, show
from benchmarks.rounds import Benchmark, Effort, measured
from benchmarks.server import conditions, database, server
from ledger import InvalidCommand, LedgerError
from ledger.wire import error_json


class Entry(NamedTuple):
    """A benchmark by name: what it compares, and how it is made ready on a database of its own."""

    about: str
    prepared: Callable[[URL, Effort], AbstractContextManager[Benchmark]]


BENCHMARKS: Final[Mapping[str, Entry]] = {
    "calls": Entry("single transfers, 1, 8 and 32 callers, with and without the batcher, and pgbench", calls.prepared),
    "batches": Entry("batches of 10 to 10,000, 1 and 2 processes, and COPY of the same rows", batches.prepared),
    "growth": Entry("append and balance on accounts with 1,000 to 1,000,000 events", growth.prepared),
    "logs": Entry("rebuild and verify of 5,000,000 events, the bare aggregate, a scan, and COPY", logs.prepared),
    "feed": Entry("stamp, seal and verify 5,000,000 events, a scan, and COPY; append beside both", feed.prepared),
    "asof": Entry("balance, statement and trial balance as of two times, the bare aggregate, a scan", asof.prepared),
    "peer": Entry("eventsourcing: append, contention, batches, replay", peer.prepared),
    "reports": Entry("reports of 5,000,000 events, the bare aggregate, and a scan", reports.prepared),
    "messages": Entry("the inbox, and plain commands", messages.prepared),
    "service": Entry("transfers over HTTP, 32 and 256 connections, and a bare route of FastAPI", service.prepared),
    "kafka": Entry("a topic, and a file (only when it is named)", topic.prepared),
}
ALL: Final = tuple(name for name in BENCHMARKS if name != "kafka")
QUICK_SECONDS: Final = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and keep results as JSON and as pictures; returns the exit code."""
    asked = _parser().parse_args(arguments)
    # By way of an exception, so that an embedded server is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        everything = _measured(asked)
    except LedgerError as error:
        if asked.as_json:
            sys.stdout.write(json.dumps({"error": error_json(error)}) + "\n")
        else:
            sys.stderr.write(f"ledger: {error}\n")
        return 2
    if asked.as_json:
        sys.stdout.write(json.dumps(everything) + "\n")
    return 0


def _measured(asked: argparse.Namespace) -> dict[str, Any]:
    for name in asked.names:
        if name not in BENCHMARKS:
            raise InvalidCommand("benchmarks", f"there is no benchmark {name!r}, but {', '.join(BENCHMARKS)}")
    if asked.memory and asked.names != ["messages"]:
        raise InvalidCommand("--memory", "it goes with messages alone; all others show memory in their tables")
    for option in ("rounds", "seconds", "messages", "events"):
        if (given := getattr(asked, option)) is not None and not given > 0:
            raise InvalidCommand(f"--{option}", f"{given} is not above 0")
    folder = asked.output or Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"  # noqa: TID251  (a folder name)
    console = Console(stderr=asked.as_json)
    effort = Effort(
        rounds=asked.rounds or (1 if asked.quick else 5),
        seconds=asked.seconds or (QUICK_SECONDS if asked.quick else 4.0),
        quick=asked.quick,
        largest=asked.largest,
        messages=asked.messages,
        events=asked.events,
        bootstrap=asked.bootstrap,
    )
    everything = {}
    with server(asked.database_url) as url:
        # Before anything is measured: what cannot be kept is not worth an hour.
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidCommand("--output", str(error)) from None
        for name in asked.names or ALL:
            with database(url, name) as own:
                everything[name] = (
                    _memory(own, effort, folder, console) if asked.memory else _run(name, own, effort, folder, console)
                )
    return everything


def _run(name: str, url: URL, effort: Effort, folder: Path, console: Console) -> dict[str, Any]:
    with BENCHMARKS[name].prepared(url, effort) as benchmark:
        runs = measured(benchmark, url, effort.rounds, console)
        found = results(runs, benchmark) | {
            "seconds": effort.seconds,
            "quick": effort.quick,
            "conditions": conditions(url),
        }
    show(found, console)
    keep(found, folder / f"{name}.json", console)
    for chart in benchmark.charts:
        charts.draw(chart, found, folder / f"{name}-{chart.name}.png")
    return found


def _memory(url: URL, effort: Effort, folder: Path, console: Console) -> dict[str, Any]:
    found = messages.memory(url, effort) | {"conditions": conditions(url)}
    messages.show_memory(found, console)
    keep(found, folder / "memory.json", console)
    return found


def _parser() -> argparse.ArgumentParser:
    named = "\n".join(f"  {name:<10}{entry.about}" for name, entry in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n{named}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(ALL)}")
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it runs, not how fast")
    parser.add_argument("--rounds", type=int, help="alternating rounds (default: 5)")
    parser.add_argument("--seconds", type=float, help="seconds per figure and round (default: 4)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: a new one in benchmarks/results/")
    parser.add_argument("--database-url", metavar="URL", help="a server to make databases on (default: embedded)")
    parser.add_argument("--json", dest="as_json", action="store_true", help="results to standard output")
    parser.add_argument("--largest", action="store_true", help="growth: up to 10,000,000 events; takes a while")
    parser.add_argument("--messages", type=int, help="messages, kafka: in each run (default: 20,000)")
    parser.add_argument(
        "--events", type=int, help="logs, feed, asof, reports: how long the log is (default: 5,000,000)"
    )
    parser.add_argument("--memory", action="store_true", help="messages: a consumer's memory instead of its speed")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="kafka: brokers (default: a mock in this process)")
    return parser
