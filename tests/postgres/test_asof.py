"""Questions in two times, against a reckoning in Python that reads everything; and that an answer never changes."""

from __future__ import annotations

import runpy
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate, count
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
import pytest
from feed_readers import at_another_time, let_clocks_step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from ledger import Balance, CorruptLog, InvalidCommand, Ledger, NotYetKnown, Rejected, UnknownAccount
from ledger.core.canonical import utc_text
from ledger.core.events import account_of
from ledger.stamper import Stamper
from ledger.storage import feed
from ledger.storage.migrations import script_location

Psql = psycopg.Connection[Any]
Gross = tuple[int, int, int, int]

WAIT_SECONDS: Final = 60
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
    timedelta(days=2_900_000),
]
"""From nothing to as long as there are years."""

EFFECTS: Final = {
    "entry_posted": (1, 0),
    "hold_placed": (0, 1),
    "hold_captured": (1, -1),
    "hold_released": (0, -1),
    "hold_expired": (0, -1),
}
"""How often its amount an event adds to what is posted, when it is effective, and to what is pending, at once."""

_numbers = count(1)


class Fact(NamedTuple):
    """An event, as plain SQL has it; and where the feed has it: nowhere yet, if it waits."""

    stream: str
    version: int
    type: str
    direction: str
    amount: int
    effective_at: datetime
    recorded_at: datetime
    transaction_id: UUID
    position: int | None


FACTS: Final = """
SELECT e.stream, e.version, e.type, e.direction, coalesce(e.amount, 0)::bigint, e.effective_at, e.recorded_at,
       e.transaction_id, f.position
FROM ledger.events AS e LEFT JOIN ledger.feed AS f ON f.stream = e.stream AND f.version = e.version
ORDER BY e.effective_at, e.recorded_at, e.stream, e.version
"""


def facts(ledger: Ledger) -> list[Fact]:
    """All events, in effective order."""
    with ledger.engine.connect() as connection:
        return [Fact(*row) for row in connection.execute(text(FACTS))]


def whole(everything: Iterable[Fact], position: int | None) -> int | None:
    """The last position up to there at which a transaction ends."""
    transactions = {fact.position: fact.transaction_id for fact in everything}
    while position and transactions[position] == transactions.get(position + 1):
        position -= 1
    return position


def counted(known: Iterable[Fact], effective: datetime | None = None) -> Gross:
    """The four gross numbers, one event after the other."""
    gross = {("debit", 0): 0, ("credit", 0): 0, ("debit", 1): 0, ("credit", 1): 0}
    for fact in known:
        if fact.amount:
            for place, since in enumerate((fact.effective_at, fact.recorded_at)):
                if effective is None or since <= effective:
                    gross[fact.direction, place] += EFFECTS[fact.type][place] * fact.amount
    return gross["debit", 0], gross["credit", 0], gross["debit", 1], gross["credit", 1]


def known_at(everything: Iterable[Fact], position: int | None) -> list[Fact]:
    """What was known at a position; without one, everything."""
    return [fact for fact in everything if position is None or (fact.position or position + 1) <= position]


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
        st.tuples(
            st.sampled_from(["capture", "part", "release"]),
            st.integers(0, 9),
            st.sampled_from([-1, 1]),
            st.sampled_from(LATENESS),
        ),
        st.tuples(st.just("reverse"), st.integers(0, 9)),
        st.tuples(st.just("stamp"), st.sampled_from([1, 3, 100])),
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
    done: list[Any] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)

    def take(self, steps: Iterable[tuple[Any, ...]]) -> None:
        """One step after the other; what a rule refuses does not happen."""
        for step in steps:
            try:
                self._take(*step)
            except Rejected:
                continue

    def _take(self, what: str, number: int, sign: int = 1, lateness: timedelta = timedelta(0)) -> None:
        opened = self.ledger.history(self.account, limit=1)[0].recorded_at
        try:
            effective = None if not lateness else opened - sign * lateness
        except OverflowError:
            effective = None
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
                self.ledger.capture(self.held[number % len(self.held)], final=True, effective_at=effective)
            case "part" if self.held:
                self.ledger.capture(self.held[number % len(self.held)], "1.00 USD", effective_at=effective)
            case "release" if self.held:
                self.ledger.release(self.held[number % len(self.held)], effective_at=effective)


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
    times = {time for fact in everything for time in (fact.effective_at, fact.recorded_at)}
    return sorted(times | {time - MICROSECOND for time in times})


def check_balances(ledger: Ledger, account: str, known: list[Fact], asked: int | None, position: int | None) -> None:
    """As of every moment the account has what adding up gives, and its holds, which take from it, never add to it."""
    for effective in [None, *moments(known)]:
        answer = ledger.balance(account, effective_as_of=effective, known_as_of=asked)
        assert minor(answer) == of_liability(counted(known, effective)), (position, effective)
        assert answer.pending.minor <= 0
        assert answer.available.minor <= answer.posted.minor
        assert (answer.position, answer.version) == (position, len(known))


def check_statements(ledger: Ledger, account: str, known: list[Fact], position: int | None) -> None:
    """The statement of every period has the entries of that period, in order, and adds up."""
    times = moments(known)
    for since, until in [*zip(times, times[3:], strict=False), (times[0], times[-1]), (times[-1], times[-1])]:
        made = ledger.statement(account, since, until, known_as_of=position)
        expected = [
            fact
            for fact in known
            if since <= fact.effective_at < until and fact.type in ("entry_posted", "hold_captured")
        ]
        lines = list(made)
        assert [(line.event.stream, line.event.version) for line in lines] == [fact[:2] for fact in expected]
        assert minor(made.opening) == of_liability(counted(known, since - MICROSECOND))
        assert minor(made.closing) == of_liability(counted(known, until - MICROSECOND))
        assert made.opening.posted.minor + sum(line.amount.minor for line in lines) == made.closing.posted.minor
        assert [line.balance for line in lines][-1:] == ([made.closing.posted] if lines else [])
        assert made.position == position


def check_history(ledger: Ledger, account: str, known: list[Fact], position: int | None) -> None:
    """The history has what was known, forward and backward."""
    expected = {fact[:2] for fact in known}
    forward = ledger.history(account, known_as_of=position)
    before: int | str = 10_000
    backward = ledger.history(account, before_version=before, known_as_of=position)
    assert forward.position == backward.position == position
    assert {(event.stream, event.version) for event in forward} == expected
    assert len(forward) == len(expected)
    assert list(backward) == list(reversed(forward))
    for effective in moments(known)[::3]:
        asked: dict[str, Any] = {"effective_as_of": effective, "known_as_of": position}
        by_then = [event for event in forward if event.effective_at <= effective]
        assert list(ledger.history(account, **asked)) == by_then
        assert list(ledger.history(account, before_version=before, **asked)) == by_then[::-1]
        pages, place = list[Any](), "0"
        while page := ledger.history(account, after_version=place, limit=2, **asked):
            pages, place = [*pages, *page], page.next
        assert pages == by_then


def check_trial_balance(ledger: Ledger, asked: int | None, effective: datetime | None) -> None:
    """All accounts together have what adding up gives, and those of which nothing was known are not counted."""
    everything = facts(ledger)
    position = whole(everything, asked)
    known = known_at(everything, position)
    found = ledger.trial_balance(effective_as_of=effective, known_as_of=asked)
    assert found.position == position
    assert found.balanced
    sums: dict[str, list[int]] = {}
    for kind, begins in (("equity", "world"), ("liability", "acct")):
        of_kind = [
            fact
            for fact in known
            if fact.stream.startswith(begins) and (effective is None or fact.effective_at <= effective)
        ]
        if of_kind:
            debits, credits, *_ = counted(of_kind)
            sums[kind] = [len({account_of(fact.stream) for fact in of_kind}), debits, credits]
    assert {line.account_type: [line.accounts, line.debits.minor, line.credits.minor] for line in found.lines} == sums


@settings(max_examples=12, suppress_health_check=list(HealthCheck), database=None)
@given(steps=STEPS, stripes=st.sampled_from([1, 3]))
def test_every_question_has_the_answer_of_a_reckoning(place: Ledger, steps: list[Any], stripes: int) -> None:
    """
    A balance, a history, a statement and a trial balance as of any two times are what adding up all events gives.

    Asked at every moment and every position at which the answer can change, and one before it.
    """
    number = next(_numbers)
    desk = Desk(place, f"acct-{number}", f"world-{number}")
    place.open_account(desk.other, asset="USD", type="equity")
    place.open_account(desk.account, asset="USD", type="liability")
    place.change_account(desk.account, stripes=stripes)
    while place.stamp():
        continue
    desk.take(steps)
    everything = facts(place)
    ours = [fact for fact in everything if account_of(fact.stream) == desk.account]
    positions = sorted(fact.position for fact in ours if fact.position)
    for asked in (None, *positions):
        position = whole(everything, asked)
        if known := known_at(ours, position):
            check_balances(place, desk.account, known, asked, position)
            check_statements(place, desk.account, known, position)
            check_history(place, desk.account, known, position)
    for asked, fact in zip((None, *positions[-4:]), ours[-5:], strict=False):
        for effective in (None, fact.effective_at, fact.effective_at - MICROSECOND):
            check_trial_balance(place, asked, effective)


@pytest.mark.parametrize("ending", ["capture", "release"])
@pytest.mark.parametrize("held", [None, 3, -9])
@pytest.mark.parametrize("ended", [None, 30, -20])
def test_hold_is_pending_until_it_is_ended(funded: Ledger, ending: str, held: int | None, ended: int | None) -> None:
    """Whatever times a hold and its end are said to have, it is pending from when it is recorded until it is ended."""
    now = funded.history("bob")[0].recorded_at
    before = funded.history("bob")[-1].recorded_at
    hold = funded.hold(
        "10 USD", debit="alice", credit="bob", effective_at=None if held is None else now + timedelta(days=held)
    )
    placed = funded.history("bob")[-1].recorded_at
    end = getattr(funded, ending)(hold, effective_at=None if ended is None else now + timedelta(days=ended))
    last = funded.history("bob")[-1].recorded_at
    for days in (-40, -21, -19, -10, -8, 0, 2, 4, 29, 31):
        moment = before if not days else now + timedelta(days=days)
        for name in ("alice", "bob"):
            found = funded.balance(name, effective_as_of=moment)
            assert found.pending.minor == 0, (name, days)
            assert found.available == found.posted, (name, days)
    for moment in (placed, last - MICROSECOND):
        found = funded.balance("alice", effective_as_of=moment)
        assert (found.pending.minor, found.available.minor) == (-1_000, found.posted.minor - 1_000)
        assert funded.balance("bob", effective_as_of=moment).pending.minor == 1_000
    assert funded.balance("bob", effective_as_of=last).pending.minor == 0
    assert funded.balance("bob", effective_as_of=now + timedelta(days=31)) == end.balances["bob"]
    made = funded.statement("alice", now - timedelta(days=41), now + timedelta(days=31))
    assert made.opening.posted.minor + sum(line.amount.minor for line in made) == made.closing.posted.minor
    assert made.closing.pending.minor == 0
    for days in (-19, 2, 31):
        assert funded.trial_balance(effective_as_of=now + timedelta(days=days)).balanced


# For ever


def test_answers_stay_as_they_are(funded: Ledger, ledger_url: str) -> None:
    """What was known by a time or at a position is the same after backdated entries, and after a slow transaction."""
    funded.stamp()
    with psycopg.connect(ledger_url) as slow, funded.join(slow) as guest:
        guest.transfer("7 USD", debit="world", credit="bob")
        # It is written, and nobody sees it; the clock goes on meanwhile.
        assert funded.stamp() == 0
        moment = until(funded)
        asked: list[dict[str, Any]] = [
            {"known_as_of": known, "effective_as_of": effective}
            for known in (8, moment, moment - MICROSECOND)
            for effective in (None, moment, moment - timedelta(days=2))
        ]
        before = [(funded.balance("bob", **each), funded.trial_balance(**each)) for each in asked]
        listed = funded.history("bob", known_as_of=moment)
        stated = list(funded.statement("bob", moment - timedelta(days=9), moment, known_as_of=moment))
        slow.commit()
    funded.transfer("3 USD", debit="world", credit="bob", effective_at=moment - timedelta(days=5))
    assert funded.stamp() == 4
    assert funded.stamp() == 0
    assert [(funded.balance("bob", **each), funded.trial_balance(**each)) for each in asked] == before
    assert funded.history("bob", known_as_of=moment) == listed
    assert list(funded.statement("bob", moment - timedelta(days=9), moment, known_as_of=moment)) == stated
    later = until(funded)
    assert funded.balance("bob", known_as_of=later).posted.minor == 4_000
    assert funded.balance("bob", known_as_of=later, effective_as_of=moment - timedelta(days=4)).posted.minor == 300


def until(ledger: Ledger) -> datetime:
    """Until when everything is known."""
    with pytest.raises(NotYetKnown) as refused:
        ledger.balance("world", known_as_of=10**9)
    return datetime.fromisoformat(refused.value.known_until)


def test_answers_stay_as_they_are_under_load(funded: Ledger, ledger_url: str) -> None:
    """Writers that commit late, a stamper, and a clock that is moved all the time: each answer is given again."""
    ended = threading.Event()
    faults: list[BaseException] = []

    def write(name: str) -> None:
        with psycopg.connect(ledger_url) as own:
            for number in range(60):
                with funded.join(own, accounts=["world", name]) as guest:
                    guest.transfer("1 USD", debit="world", credit=name)
                if number % 3 == 0:
                    until(funded)
                own.commit()

    def stamp() -> None:
        stamper = Stamper(funded._database, limit=7, clock_seconds=0)  # noqa: SLF001
        while not ended.is_set():
            stamper.step()
        stamper.close()

    def kept(work: Callable[..., None], *arguments: str) -> threading.Thread:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as fault:  # noqa: BLE001  (raised below)
                faults.append(fault)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    writers = [kept(write, name) for name in ("alice", "bob")]
    stamping = kept(stamp)
    given: dict[datetime, Balance] = {}
    while any(writer.is_alive() for writer in writers) and len(given) < 2_000:
        moment = until(funded)
        if moment > datetime(1970, 1, 1, tzinfo=UTC):
            given[moment] = funded.balance("world", known_as_of=moment)
    for writer in writers:
        writer.join(WAIT_SECONDS)
    ended.set()
    stamping.join(WAIT_SECONDS)
    assert not faults
    while funded.stamp():
        continue
    assert len({answer.position for answer in given.values()}) > 3
    assert {moment: funded.balance("world", known_as_of=moment) for moment in given} == given
    assert funded.verify().ok


def test_transaction_is_known_as_a_whole(funded: Ledger) -> None:
    """In the midst of a transaction nothing of it is known, and debits equal credits at every position."""
    funded.stamp()
    assert [funded.trial_balance(known_as_of=position).position for position in range(4, 9)] == [4, 4, 6, 6, 8]
    assert all(funded.trial_balance(known_as_of=position).balanced for position in range(9))


def test_time_is_known_later_than_all_that_was_asked(funded: Ledger, psql: Psql) -> None:
    """Whatever its own time says, what is stamped is known after the last position, and after the clock."""
    funded.transfer("1 USD", debit="world", credit="bob")
    funded.stamp(3)
    first = until(funded)
    funded.stamp()
    assert psql.execute("SELECT min(known_at) > %s FROM feed WHERE position > 3", (first,)).fetchone() == (True,)
    assert psql.execute(
        "SELECT bool_and(known_at >= recorded_at) FROM feed JOIN events USING (stream, version)"
    ).fetchone() == (True,)
    # As a server leaves it whose clock was ahead, and was set right.
    psql.execute("ALTER TABLE feed_clock DISABLE TRIGGER check_clock")
    psql.execute("UPDATE feed_clock SET known_until = now() + interval '1 hour'")
    clock = until(funded)
    funded.transfer("1 USD", debit="world", credit="bob")
    funded.stamp()
    assert psql.execute("SELECT min(known_at) FROM feed WHERE position > 10").fetchone() == (clock + MICROSECOND,)
    assert funded.balance("bob", known_as_of=clock).version == 3


def test_clock_waits_for_whoever_stamps(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """While somebody stamps the clock cannot be moved: they might stamp what is earlier than it would say."""
    with psycopg.connect(ledger_url, options="-c search_path=ledger") as stamping:
        stamping.execute(feed.HOLD_CLOCK.replace("{schema}.", "").encode())
        psql.execute("DELETE FROM outbox WHERE false")
        psql.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            psql.execute("UPDATE feed_clock SET known_until = now()")
    assert funded.stamp() == 8


def test_clock_stands_while_anything_waits(funded: Ledger) -> None:
    """Not everything is known until now while something that has happened is not in the feed."""
    with funded._database.connection() as connection:  # noqa: SLF001
        feed.move_clock(connection, 0)
    assert until(funded) == datetime(1970, 1, 1, tzinfo=UTC)
    assert funded.stamp() == 8
    assert funded.stamp() == 0
    assert until(funded) > funded.history("bob")[-1].recorded_at


def test_clock_is_moved_once_in_a_while(funded: Ledger) -> None:
    """A stamper that has nothing to do moves the clock, and not each time that it looks."""
    stamper = funded.stamper()
    assert stamper.step() == 8
    assert stamper.step() == 0
    moved = until(funded)
    assert stamper.step() == 0
    assert until(funded) == moved
    stamper.close()


def test_beyond_what_is_stamped_is_refused(funded: Ledger) -> None:
    """A time or a position of which more may come to be known has no answer yet; the error says until when it has."""
    funded.stamp()
    last = until(funded)
    questions: list[Callable[..., Any]] = [
        partial(funded.balance, "bob"),
        partial(funded.history, "bob"),
        partial(funded.history, "bob", effective_as_of=last),
        funded.trial_balance,
        partial(funded.statement, "bob", last, last),
    ]
    for asked in (9, last + MICROSECOND):
        for question in questions:
            with pytest.raises(NotYetKnown) as refused:
                question(known_as_of=asked)
            assert refused.value.position == 8
            assert refused.value.code == "not_yet_known"
            assert "ledger feed stamp" in str(refused.value)
    assert funded.balance("bob", known_as_of=last).position == 8
    assert funded.balance("bob", known_as_of=8) == funded.balance("bob", known_as_of=last)


def test_what_was_not_there_is_unknown(funded: Ledger) -> None:
    """Of an account that was opened since nothing was known; of another nothing counted before its time."""
    funded.stamp()
    funded.open_account("late", asset="EUR", type="liability")
    funded.open_account("more", asset="EUR", type="equity")
    funded.stamp()
    questions = (funded.balance, funded.history, partial(funded.statement, since=until(funded), until=until(funded)))
    before = funded.history("world")[0].recorded_at - MICROSECOND
    for question in questions:
        for asked, said in ((8, "position 8"), (0, "position 0"), (before, utc_text(before))):
            with pytest.raises(UnknownAccount, match=f"^Account late was not yet known by {said}: "):
                question("late", known_as_of=asked)
        with pytest.raises(UnknownAccount, match=r"^Account nobody does not exist"):
            question("nobody", known_as_of=8)
    assert {line.asset for line in funded.trial_balance(known_as_of=8).lines} == {"USD"}
    assert {line.asset for line in funded.trial_balance(known_as_of=10).lines} == {"USD", "EUR"}
    opened = funded.history("late")[0].recorded_at
    assert {line.asset for line in funded.trial_balance(effective_as_of=opened - MICROSECOND).lines} == {"USD"}
    assert minor(funded.balance("late", effective_as_of=opened - MICROSECOND)) == (0, 0, 0)
    assert funded.trial_balance(known_as_of=0).lines == ()


@pytest.mark.parametrize(
    "asked",
    [
        {"version": 1, "known_as_of": 1},
        {"version": 1, "effective_as_of": datetime(2026, 1, 1, tzinfo=UTC)},
        {"effective_as_of": datetime(2026, 1, 1)},  # noqa: DTZ001  (that is the point)
        {"known_as_of": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"known_as_of": -1},
        {"known_as_of": True},
        {"known_as_of": "yesterday"},
        {"effective_as_of": 7},
    ],
)
def test_what_is_no_time_is_refused(funded: Ledger, asked: dict[str, Any]) -> None:
    """A version beside a time, a time without its zone, and what is neither."""
    with pytest.raises(InvalidCommand):
        funded.balance("bob", **asked)


def test_statement_that_ends_before_it_begins_is_refused(funded: Ledger) -> None:
    """A period has a beginning and an end, and there is something before it."""
    now = funded.history("bob")[0].recorded_at
    with pytest.raises(InvalidCommand):
        funded.statement("bob", now, now - MICROSECOND)
    with pytest.raises(InvalidCommand):
        funded.statement("bob", datetime.min.replace(tzinfo=UTC), now)


def test_statement_finds_that_it_does_not_add_up(funded: Ledger, tamper: Any) -> None:
    """Its closing balance is not the sum of its lines, but looked up: an entry that was changed is noticed."""
    now = funded.history("bob")[-1].recorded_at
    made = funded.statement("bob", now - timedelta(days=1), now + timedelta(days=1))
    assert len(list(made)) == 1
    tamper("UPDATE events SET amount = amount + 1 WHERE stream = 'bob' AND version = 2")
    with pytest.raises(CorruptLog, match=r"30\.01 USD"):
        list(made)


def test_guest_asks_of_its_own_transaction(funded: Ledger, ledger_url: str) -> None:
    """Inside a caller's transaction its own entries count, but are not known yet to anybody."""
    funded.stamp()
    with psycopg.connect(ledger_url) as lent, funded.join(lent) as guest:
        made = guest.transfer("7 USD", debit="world", credit="bob")
        now = guest.history("bob")[-1].recorded_at
        assert guest.balance("bob", effective_as_of=now) == made.balances["bob"]
        assert guest.balance("bob", known_as_of=8).version == 2
        assert [line.amount.minor for line in guest.statement("bob", now, now + MICROSECOND)] == [700]
        assert guest.trial_balance(effective_as_of=now).balanced


@pytest.mark.parametrize(
    ("attack", "sqlstate"),
    [
        (
            (
                "INSERT INTO feed SELECT 9, stream, version, transaction_id, event_hash,"
                " (SELECT known_at FROM feed WHERE position = 8) FROM events WHERE stream = 'bob' AND version = 3"
            ),
            "LD030",
        ),
        (
            (
                "INSERT INTO feed SELECT 9, stream, version, transaction_id, event_hash, now() + interval '1 hour'"
                " FROM events WHERE stream = 'bob' AND version = 3"
            ),
            "LD032",
        ),
        ("UPDATE feed_clock SET known_until = 'epoch'", "LD031"),
        ("UPDATE feed_clock SET known_until = '2100-01-01'", "LD032"),
        ("UPDATE feed_clock SET known_until = 'infinity'", "LD032"),
        ("UPDATE leases SET until = now() + interval '25 hours'", "LD033"),
        ("INSERT INTO leases VALUES ('sealer', 1, 'mallory', 'infinity')", "LD033"),
        ("INSERT INTO checkpoints VALUES (9, sha256(''), '', now())", "LD034"),
        (
            "INSERT INTO checkpoints VALUES (7, sha256(''), '', now()), (6, sha256(''), '', now())",
            "LD034",
        ),
        ("DELETE FROM feed_clock", "LD001"),
        ("TRUNCATE feed_clock", "LD001"),
        ("INSERT INTO feed_clock VALUES (2, now())", "23514"),
    ],
)
def test_guards_of_what_was_known(funded: Ledger, psql: Psql, attack: str, sqlstate: str) -> None:
    """Nothing comes to be known by a time of which everything is known, or that has not come; nor is more sealed."""
    funded.stamp()
    funded.stamp()
    funded.transfer("1 USD", debit="world", credit="bob")
    with pytest.raises(psycopg.Error) as refused:
        psql.execute(attack.encode())
    assert refused.value.sqlstate == sqlstate
    assert funded.stamp() == 2


UNDONE: Final = """
ALTER TABLE feed DROP COLUMN known_at;
DROP TABLE feed_clock;
DROP INDEX events_dated;
DROP TRIGGER check_known ON feed;
DROP FUNCTION check_known();
DROP FUNCTION check_clock();
"""


def test_feed_from_before_is_given_its_times(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """The migration lets each position be known when all up to there was recorded, and puts the guard back."""
    let_clocks_step(psql)
    with Ledger.connect(at_another_time(ledger_url, 3_600)) as ahead:
        ahead.freeze("bob")
    funded.stamp()
    funded.transfer("1 USD", debit="world", credit="alice")
    funded.stamp()
    psql.execute(UNDONE.encode())
    migration = runpy.run_path(str(script_location() / "versions" / "0009_known.py"))
    for script in (migration["KNOWN_AT"], migration["DATED"], migration["GUARDS"]):
        psql.execute(script.replace("{schema}", "ledger").encode())
    times = psql.execute(
        "SELECT known_at, recorded_at FROM feed JOIN events USING (stream, version) ORDER BY position"
    ).fetchall()
    assert [known for known, _ in times] == list(accumulate((recorded for _, recorded in times), max))
    assert times[-1][0] > times[-1][1]
    with pytest.raises(psycopg.Error, match="append-only"):
        psql.execute("UPDATE feed SET known_at = now()")
    assert funded.verify().ok
    funded.transfer("1 USD", debit="world", credit="alice")
    assert funded.stamp() == 2
    assert funded.verify().ok
