"""
The feed and what is proved of it: `python -m benchmarks feed [--events 5000000]`.

A long log is stamped and sealed, a slice of it in each round; then all of it is verified as far as it is, by itself
and against its last checkpoint.  Beside them, what reading the log takes at the least: a sequential scan, and its rows
copied out by one process that hashes each.  Counted are events.

On a database of their own transfers are appended, with and without a stamper and a sealer at work beside them.  What
the stamper had no time for is stamped before the next turn, so that each round begins alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Final

from rich.console import Console
from rich.progress import Progress
from sqlalchemy import URL

from benchmarks import logs, ours
from benchmarks.ours import ACCOUNTS, ACCOUNTS_QUICK, Place
from benchmarks.processes import Ready, Tally, apart
from benchmarks.rounds import Benchmark, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import cloned, text
from ledger import Ledger
from ledger.audit.checkpoint import SigningKey
from ledger.stamper import EVENTS_MAX

STAMP: Final = "stamp"
SEAL: Final = "seal"
VERIFY_2: Final = "verify everything, 2 jobs"
AGAINST: Final = "verify against the last checkpoint"
ALONE: Final = "{}, alone"
BESIDE: Final = "{}, beside a stamper and a sealer"
CALLS: Final = "transfers, one caller"
BATCHES: Final = "transfers, batches of 1,000"

RATIOS: Final = (
    *[Ratio(f"{name} / COPY and SHA-256", name, (logs.COPY,)) for name in (STAMP, SEAL, VERIFY_2, AGAINST)],
    *[Ratio(f"{logs.SCAN} / {name}", logs.SCAN, (name,)) for name in (STAMP, SEAL, VERIFY_2, AGAINST)],
    *[Ratio(f"{BESIDE.format(what)} / alone", BESIDE.format(what), (ALONE.format(what),)) for what in (CALLS, BATCHES)],
)

# One for all processes; what it signs is thrown away.
_KEY: Final = SigningKey("benchmark.example/ledger", bytes(32))
_SEALED_EACH_SECONDS: Final = 1.0


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Write the log, which nobody has stamped, and open accounts on a database beside it."""
    events, accounts = (20_000, 500) if effort.quick else (effort.events or logs.EVENTS, logs.ACCOUNTS)
    callers_accounts = ACCOUNTS_QUICK if effort.quick else ACCOUNTS
    with Ledger.connect(text(url)) as ledger:
        ledger.migrate()
    with cloned(url, "appended") as appended:
        ours.opened(text(appended), callers_accounts)
        with Ledger.connect(text(url)) as ledger, Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("events written", total=events)
            logs.Log(ledger, accounts).write(text(url), events, lambda made: bar.update(task, completed=made))
        turns: dict[str, Turn] = {
            name: partial(_timed, name, text(url), events, -(-events // effort.rounds)) for name in _TURNS
        }
        for what, work in _appending(text(appended), callers_accounts, effort.seconds).items():
            turns[ALONE.format(what)] = partial(_appended, text(appended), work, False)
            turns[BESIDE.format(what)] = partial(_appended, text(appended), work, True)
        title = f"A feed of {events:,} events over {accounts:,} accounts"
        yield Benchmark("events", turns, RATIOS, [Ratios(title)])
        ours.checked(text(appended))


def _timed(name: str, url: str, events: int, share: int, number: int) -> Measured:
    return apart(_tally, (name, url, min(events, share * number), events))


def _tally(ready: Ready, name: str, url: str, until: int, events: int) -> Tally:
    ready()
    counted, seconds = _TURNS[name](url, until, events)
    return Tally(counted, seconds, ())


def _scanned(url: str, _: int, events: int) -> tuple[int, float]:
    return events, logs.scan(url)


def _copied_out(url: str, _: int, events: int) -> tuple[int, float]:
    return events, logs.copy_out(url)


def _stamp(url: str, until: int, _: int) -> tuple[int, float]:
    """Stamp up to a position, as a stamper does that finds a backlog."""
    with Ledger.connect(url) as ledger:
        first = head = ledger.feed_head()
        start = time.perf_counter()
        while head < until:
            stamped = ledger.stamp(min(EVENTS_MAX, until - head))
            assert stamped > 0
            head += stamped
        return head - first, time.perf_counter() - start


def _seal(url: str, _: int, __: int) -> tuple[int, float]:
    """Seal what was stamped: reading the tree that was sealed before is part of it."""
    with Ledger.connect(url) as ledger:
        before = ledger.last_checkpoint()
        start = time.perf_counter()
        sealed = ledger.seal(_KEY)
        assert sealed is not None
        return sealed.size - (before.size if before else 0), time.perf_counter() - start


def _verified(url: str, _: int, events: int) -> tuple[int, float]:
    with Ledger.connect(url) as ledger:
        start = time.perf_counter()
        assert ledger.verify(jobs=2).ok
        return events, time.perf_counter() - start


def _verified_against(url: str, _: int, __: int) -> tuple[int, float]:
    with Ledger.connect(url) as ledger:
        checkpoint = ledger.checkpoint()
        start = time.perf_counter()
        assert ledger.verify_against(checkpoint.note, [_KEY.verifier]).ok
        return checkpoint.size, time.perf_counter() - start


_TURNS: Final[dict[str, Callable[[str, int, int], tuple[int, float]]]] = {
    logs.SCAN: _scanned,
    logs.COPY: _copied_out,
    STAMP: _stamp,
    SEAL: _seal,
    VERIFY_2: _verified,
    AGAINST: _verified_against,
}


def _appending(url: str, accounts: int, seconds: float) -> dict[str, Callable[[], Measured]]:
    """What is appended, and how."""
    return {
        CALLS: lambda: apart(ours.calls, (url, Place.SPREAD, accounts, 1, seconds)),
        BATCHES: lambda: apart(ours.batches, (url, 0, accounts, ours.BATCH, seconds)),
    }


def _appended(url: str, work: Callable[[], Measured], beside: bool, _: int) -> Measured:
    with Ledger.connect(url) as ledger:
        while ledger.stamp():
            pass
        ledger.seal(_KEY)
    if not beside:
        return _of_events(work())
    context = get_context("forkserver")
    ended = context.Event()
    worker = context.Process(target=_stamp_and_seal, args=(url, ended))
    worker.start()
    try:
        return _of_events(work())
    finally:
        ended.set()
        worker.join()
        assert worker.exitcode == 0


def _of_events(measured: Measured) -> Measured:
    """A transfer is two events."""
    return measured._replace(per_second=2 * measured.per_second)


def _stamp_and_seal(url: str, ended: Event) -> None:
    """What stands beside the writers in production: a stamper, and a sealer that signs each second."""
    with Ledger.connect(url) as ledger, ledger.stamper():
        while not ended.wait(_SEALED_EACH_SECONDS):
            ledger.seal(_KEY)
