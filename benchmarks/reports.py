"""
Reports: `python -m benchmarks reports [--events 5000000]`.

How fast an auditor's reports are made of a long log that is stamped, beside what reading it takes at the least: a
sequential scan, and the bare aggregate that the balances are, into a table.  Counted are events of the log; the
megabytes are those of the process that makes the report, and writes its body nowhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress
from sqlalchemy import URL

from benchmarks import logs
from benchmarks.processes import Ready, Tally, apart
from benchmarks.rounds import Benchmark, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import text
from ledger import Ledger

SUMS: Final = "sum-of-transactions"
COMPLETENESS: Final = "completeness"
BACKDATED: Final = "backdated"
PRIVILEGED: Final = "privileged-actions"
TRIAL: Final = "trial-balance"
JOURNAL: Final = "general-journal"
WHO: Final = "who-when-why"
SCAN: Final = logs.SCAN
AGGREGATE: Final = logs.AGGREGATE
REPORTS: Final = (SUMS, COMPLETENESS, BACKDATED, PRIVILEGED, TRIAL, JOURNAL, WHO)

RATIOS: Final = (
    Ratio("sum of transactions / bare aggregate", SUMS, (AGGREGATE,), 0.5),
    *(Ratio(f"{name} / sequential scan", name, (SCAN,), None) for name in REPORTS),
)


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Write the log, and stamp it."""
    quick = effort.quick and not effort.events
    events = 20_000 if quick else effort.events or logs.EVENTS
    accounts = min(logs.ACCOUNTS, events // 40)
    with Ledger.connect(text(url)) as ledger, Progress(console=Console(stderr=True), transient=True) as bar:
        ledger.migrate()
        task = bar.add_task("events written", total=events)
        logs.Log(ledger, accounts).write(text(url), events, lambda made: bar.update(task, completed=made))
        task = bar.add_task("events stamped", total=events)
        while stamped := ledger.stamp(100_000):
            bar.update(task, advance=stamped)
    turns: dict[str, Turn] = {name: partial(_measured, name, text(url), events) for name in (*REPORTS, *_LIMITS)}
    yield Benchmark("events", turns, RATIOS, [Ratios(f"Reports of {events:,} events over {accounts:,} accounts")])


def _measured(name: str, url: str, events: int, _: int) -> Measured:
    return apart(_timed, (name, url, events))


def _timed(ready: Ready, name: str, url: str, events: int) -> Tally:
    ready()
    seconds = _LIMITS[name](url) if name in _LIMITS else _report(url, name)
    return Tally(events, seconds, ())


def _report(url: str, name: str) -> float:
    with Ledger.connect(url) as ledger, Path(os.devnull).open("wb") as nowhere:
        start = time.perf_counter()
        assert ledger.report(name).write(nowhere).ok
        return time.perf_counter() - start


_LIMITS: Final[dict[str, Callable[[str], float]]] = {SCAN: logs.scan, AGGREGATE: logs.aggregate}
