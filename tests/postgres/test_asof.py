"""Questions in two times, against a reckoning in Python that reads everything; and that an answer never changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import Balance, Ledger, Recorded, Rejected

Psql = psycopg.Connection[Any]
Gross = tuple[int, int, int, int]

MICROSECOND: Final = timedelta(microseconds=1)
LATENESS: Final = [
    timedelta(0),
    MICROSECOND,
    timedelta(milliseconds=3),
    timedelta(seconds=1),
    timedelta(seconds=7),
    timedelta(hours=5),
    timedelta(days=40),
    timedelta(days=3_650),
    timedelta(days=700_000),
]
"""From nothing to nearly as long as there were years."""

EFFECTS: Final = {
    "entry_posted": (1, 0),
    "hold_placed": (0, 1),
    "hold_captured": (1, -1),
    "hold_released": (0, -1),
    "hold_expired": (0, -1),
}
"""How often its amount an event adds to what is posted and to what is pending."""

_numbers = count(1)


@dataclass(frozen=True)
class Fact:
    """An event, and where the feed has it; nowhere yet, if it waits."""

    event: Recorded
    position: int | None


def facts(ledger: Ledger, streams: Iterable[str]) -> list[Fact]:
    """All events of some streams."""
    positions = {(each.event.stream, each.event.version): each.position for each in ledger.feed()}
    found = []
    for stream in streams:
        events = ledger.stream(stream, limit=1_000)
        found += [Fact(event, positions.get((stream, event.version))) for event in events]
    return found


def counted(known: Iterable[Fact], effective: datetime | None) -> Gross:
    """The four gross numbers, one event after the other."""
    gross = {("debit", 0): 0, ("credit", 0): 0, ("debit", 1): 0, ("credit", 1): 0}
    for fact in known:
        event = fact.event
        if event.amount is not None and (effective is None or event.effective_at <= effective):
            for place, times in enumerate(EFFECTS[event.type]):
                gross[event.direction or "", place] += times * event.amount
    return gross["debit", 0], gross["credit", 0], gross["debit", 1], gross["credit", 1]


def known_at(everything: Iterable[Fact], position: int | None) -> list[Fact]:
    """What was known at a position; without one, everything."""
    return [
        fact for fact in everything if position is None or (fact.position is not None and fact.position <= position)
    ]


def minor(balance: Balance) -> tuple[int, int, int]:
    """Posted, pending and available."""
    return balance.posted.minor, balance.pending.minor, balance.available.minor


def of_liability(gross: Gross) -> tuple[int, int, int]:
    """Posted, pending and available of an account that grows by credits."""
    debits, credits, pending_debits, pending_credits = gross
    return credits - debits, pending_credits - pending_debits, credits - debits - pending_debits


STEPS: Final = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["transfer", "back", "hold"]),
            st.integers(1, 500),
            st.sampled_from([-1, 1]),
            st.sampled_from(LATENESS),
        ),
        st.tuples(st.sampled_from(["capture", "part", "release", "reverse"]), st.integers(0, 9)),
        st.tuples(st.just("stamp"), st.integers(1, 6)),
    ),
    min_size=3,
    max_size=10,
)


@dataclass
class Desk:
    """A ledger to which random things happen."""

    ledger: Ledger
    account: str
    other: str

    def take(self, steps: Iterable[tuple[Any, ...]]) -> None:
        """One step after the other; what a rule refuses does not happen."""
        self.done: list[Any] = []
        self.held: list[Any] = []
        for step in steps:
            try:
                self._take(*step)
            except Rejected:
                continue

    def _take(self, what: str, number: int, sign: int = 1, lateness: timedelta = timedelta(0)) -> None:
        effective = None if not lateness else datetime.now(UTC) - sign * lateness
        amount = f"{number}.00 USD"
        match what:
            case "transfer":
                made = self.ledger.transfer(amount, debit=self.other, credit=self.account, effective_at=effective)
                self.done.append(made)
            case "back":
                made = self.ledger.transfer(amount, debit=self.account, credit=self.other, effective_at=effective)
                self.done.append(made)
            case "hold":
                made = self.ledger.hold(amount, debit=self.account, credit=self.other, effective_at=effective)
                self.held.append(made)
            case "stamp":
                self.ledger.stamp(number)
            case "reverse" if self.done:
                self.ledger.reverse(self.done[number % len(self.done)])
            case "capture" if self.held:
                self.ledger.capture(self.held[number % len(self.held)], final=True)
            case "part" if self.held:
                self.ledger.capture(self.held[number % len(self.held)], "1.00 USD")
            case "release" if self.held:
                self.ledger.release(self.held[number % len(self.held)])


@pytest.fixture(scope="module", params=[None, 3], ids=["one table", "partitions"])
def place(request: pytest.FixtureRequest, ledger_server: Any) -> Iterator[Ledger]:
    """One ledger for all examples."""
    name = f"ledger_asof_{next(_numbers)}"
    with psycopg.connect(ledger_server.render_as_string(hide_password=False), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
        with Ledger.connect(ledger_server.set(database=name).render_as_string(hide_password=False)) as ledger:
            ledger.migrate(partitions=request.param)
            yield ledger
        server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def moments(everything: Iterable[Fact]) -> list[datetime]:
    """Every time at which an answer can change, and the last before it."""
    times = {time for fact in everything for time in (fact.event.effective_at, fact.event.recorded_at)}
    return sorted(times | {time - MICROSECOND for time in times})


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, stripes=st.sampled_from([1, 3]))
def test_every_question_has_the_answer_of_a_reckoning(place: Ledger, steps: list[Any], stripes: int) -> None:
    """A balance as of any two times is what adding up all events gives that were known and effective then."""
    number = next(_numbers)
    desk = Desk(place, f"acct-{number}", f"world-{number}")
    place.open_account(desk.other, asset="USD", type="equity")
    place.open_account(desk.account, asset="USD", type="liability", **({"stripes": stripes} if stripes > 1 else {}))
    desk.take(steps)
    streams = [desk.account, *(f"{desk.account}#{stripe:02}" for stripe in range(1, stripes))]
    everything = facts(place, streams)
    opened = next(fact.position for fact in everything if fact.event.stream == desk.account)
    positions = [None, *sorted({fact.position for fact in everything if fact.position})]
    for position in positions:
        known = known_at(everything, position)
        if position is not None and (opened is None or opened > position):
            continue
        for effective in [None, *moments(everything)]:
            answer = place.balance(desk.account, effective_as_of=effective, known_as_of=position)
            assert minor(answer) == of_liability(counted(known, effective)), (position, effective)
            assert answer.position == position
            assert answer.version == len(known)
