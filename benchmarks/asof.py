"""
Questions in two times: `python -m benchmarks asof [--events 5000000]`.

How many balances, statements and trial balances as of two times are answered in a second on a long log, and how many
times that log could be scanned or summed up instead.  A year is in it; half of its transfers are effective up to a
minute before they are recorded, one of a hundred up to forty days, and every tenth is one of a busy account.  Counted
are answers; the megabytes are those of the process that asks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from rich.console import Console
from rich.progress import Progress
from sqlalchemy import URL

from benchmarks import logs
from benchmarks.processes import Ready, Tally, apart, driven
from benchmarks.rounds import Benchmark, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import text
from ledger import Ledger

BALANCE: Final = "balance"
EFFECTIVE: Final = "balance, effective as of"
KNOWN: Final = "balance, known as of"
BOTH: Final = "balance, as of both"
BUSY: Final = "balance of the busy account, as of both"
MONTH: Final = "statement of a month, as of"
YEAR: Final = "statement of the busy account's year"
TRIAL: Final = "trial balance"
TRIAL_BOTH: Final = "trial balance, as of both"
SCAN: Final = logs.SCAN
AGGREGATE: Final = logs.AGGREGATE

RATIOS: Final = (
    Ratio("balance as of both / balance", BOTH, (BALANCE,), None),
    Ratio("… of the busy account / balance", BUSY, (BALANCE,), None),
    Ratio("balance as of both / sequential scan", BOTH, (SCAN,), None),
    Ratio("statement of a month / sequential scan", MONTH, (SCAN,), None),
    Ratio("statement of the busy account's year / sequential scan", YEAR, (SCAN,), None),
    Ratio("trial balance as of both / bare aggregate", TRIAL_BOTH, (AGGREGATE,), None),
)

_YEAR: Final = timedelta(days=365)
_MONTH: Final = timedelta(days=30)


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Write the log, and stamp it."""
    quick = effort.quick and not effort.events
    events = 20_000 if quick else effort.events or logs.EVENTS
    accounts = min(logs.ACCOUNTS, events // 40)
    moments = max(1, events // 2_000)
    with Ledger.connect(text(url)) as ledger, Progress(console=Console(stderr=True), transient=True) as bar:
        ledger.migrate()
        task = bar.add_task("events written", total=events)
        log = logs.Log(ledger, accounts, step=_YEAR / moments, busy=0.1, lateness=_lateness)
        log.write(text(url), events, lambda made: bar.update(task, completed=made))
        task = bar.add_task("events stamped", total=events)
        while stamped := ledger.stamp(100_000):
            bar.update(task, advance=stamped)
        first = ledger.history("account-000001", limit=1)[0].recorded_at
        head = ledger.feed_head()
    turns: dict[str, Turn] = {
        name: partial(_driven, name, text(url), accounts, first, head, effort.seconds) for name in _QUESTIONS
    }
    turns |= {name: partial(_once, name, text(url), first, head) for name in _ONCE}
    title = f"As of two times: a log of {events:,} events over {accounts:,} accounts"
    yield Benchmark("answers", turns, RATIOS, [Ratios(title)])


def _lateness(chance: random.Random) -> timedelta:
    drawn = chance.random()
    if drawn < 0.01:
        return timedelta(days=40 * chance.random())
    return timedelta(seconds=60 * chance.random()) if drawn < 0.5 else timedelta(0)


class _Asked:
    """A random account, moment and position; the same ones for whoever asks."""

    def __init__(self, accounts: int, first: datetime, head: int) -> None:
        self._accounts, self._first, self._head = accounts, first, head
        self._chance = random.Random(7)

    @property
    def account(self) -> str:
        return f"account-{self._chance.randrange(1, self._accounts):06}"

    @property
    def moment(self) -> datetime:
        return self._first + self._chance.random() * (_YEAR - _MONTH)

    @property
    def position(self) -> int:
        return self._chance.randint(self._head // 2, self._head)


def _month(ledger: Ledger, asked: _Asked) -> None:
    since = asked.moment
    for _ in ledger.statement(asked.account, since, since + _MONTH, known_as_of=asked.position):
        pass


_QUESTIONS: Final[dict[str, Callable[[Ledger, _Asked], object]]] = {
    BALANCE: lambda ledger, asked: ledger.balance(asked.account),
    EFFECTIVE: lambda ledger, asked: ledger.balance(asked.account, effective_as_of=asked.moment),
    KNOWN: lambda ledger, asked: ledger.balance(asked.account, known_as_of=asked.position),
    BOTH: lambda ledger, asked: ledger.balance(asked.account, effective_as_of=asked.moment, known_as_of=asked.position),
    BUSY: lambda ledger, asked: ledger.balance(
        "account-000000", effective_as_of=asked.moment, known_as_of=asked.position
    ),
    MONTH: _month,
}


def _driven(name: str, url: str, accounts: int, first: datetime, head: int, seconds: float, _: int) -> Measured:
    return apart(_answered, (name, url, accounts, first, head, seconds))


def _answered(ready: Ready, name: str, url: str, accounts: int, first: datetime, head: int, seconds: float) -> Tally:
    asked = _Asked(accounts, first, head)
    with Ledger.connect(url) as ledger:

        def ask() -> int:
            _QUESTIONS[name](ledger, asked)
            return 1

        return driven(ready, 1, seconds, ask)


def _once(name: str, url: str, first: datetime, head: int, _: int) -> Measured:
    return apart(_timed, (name, url, first, head))


def _timed(ready: Ready, name: str, url: str, first: datetime, head: int) -> Tally:
    ready()
    return Tally(1, _ONCE[name](url, first, head), ())


def _year(url: str, first: datetime, head: int) -> float:
    with Ledger.connect(url) as ledger:
        start = time.perf_counter()
        for _ in ledger.statement("account-000000", first, first + _YEAR, known_as_of=head):
            pass
        return time.perf_counter() - start


def _trial(url: str) -> float:
    with Ledger.connect(url) as ledger:
        start = time.perf_counter()
        assert ledger.trial_balance().balanced
        return time.perf_counter() - start


def _trial_as_of(url: str, first: datetime, head: int) -> float:
    with Ledger.connect(url) as ledger:
        start = time.perf_counter()
        assert ledger.trial_balance(effective_as_of=first + _YEAR / 2, known_as_of=head * 3 // 4).balanced
        return time.perf_counter() - start


_ONCE: Final[dict[str, Callable[[str, datetime, int], float]]] = {
    YEAR: _year,
    TRIAL: lambda url, _first, _head: _trial(url),
    TRIAL_BOTH: _trial_as_of,
    SCAN: lambda url, _first, _head: logs.scan(url),
    AGGREGATE: lambda url, _first, _head: logs.aggregate(url),
}
