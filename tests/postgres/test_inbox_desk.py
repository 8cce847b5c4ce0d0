"""What people do with an inbox: go on without, look for what is missing, replay what was wrong, forget contents."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from test_inbox import PATIENT, Psql, bank, deposit, rows_passed_over, withdrawal

from ledger import (
    Done,
    InsufficientFunds,
    InvalidCommand,
    Ledger,
    Retry,
    Strict,
    UndecodableMessage,
    Unordered,
    VersionConflict,
)
from ledger.order.cursor import OnGap, Range, Status
from ledger.order.message import Json, Message
from ledger.receiving import Handler
from ledger.storage import gauges, overview

__all__ = ["bank"]


def shop(number: int, stream: str = "a") -> Message:
    """An order of a shop, which nobody but a handler understands."""
    return Message("shop", f"{stream}-{number}", "shop.ordered", stream, number)


def test_person_goes_on_without_what_is_missing(bank: Ledger, psql: Psql) -> None:
    """A parked stream goes on up to its next message, on record with who and why; what was missing is late then."""
    inbox = bank.inbox("bank", Strict(timedelta(0)))
    inbox.receive([deposit("alice", n) for n in (3, 4, 6)])
    inbox.tick()
    assert [gap.stream for gap in inbox.gaps(status=Status.PARKED)] == ["alice"]
    assert inbox.gaps(status=Status.WAITING) == []
    received = inbox.release("alice", actor="ann", note="the producer lost them")
    assert [message.sequence for message, _ in received.outcomes] == [3, 4]
    assert inbox.missing("alice") == [Range(5, 5)]
    assert len(inbox.release("alice", 5, actor="bea").outcomes) == 1
    assert inbox.gaps() == []
    rows = psql.execute(
        "SELECT first_sequence, last_sequence, reason, actor, note FROM inbox_releases ORDER BY first_sequence"
    ).fetchall()
    assert rows == [(1, 2, "decided", "ann", "the producer lost them"), (5, 5, "decided", "bea", None)]
    assert inbox.receive([deposit("alice", 2)]).tally.late == 1
    assert bank.balance("alice").posted.minor == 3_000


@pytest.mark.parametrize("to", [0, 7, 99])
def test_nothing_is_released_that_is_not_missing(bank: Ledger, to: int) -> None:
    """A stream is not taken beyond what it has heard of, where nobody can know that something is missing."""
    inbox = bank.inbox("bank", PATIENT)
    inbox.receive([deposit("alice", n) for n in (2, 6)])
    with pytest.raises(InvalidCommand, match="to"):
        inbox.release("alice", to)
    with pytest.raises(InvalidCommand, match="nothing of 'bob' is missing"):
        inbox.release("bob")
    assert inbox.missing("alice") == [Range(1, 1), Range(3, 5)]


def test_completeness_tells_exactly_what_is_missing(bank: Ledger, psql: Psql) -> None:
    """Per stream: the range of what was received, and what of it never arrived, gone on without or not."""
    inbox = bank.inbox("bank", Strict(timedelta(0), on_gap=OnGap.RELEASE))
    inbox.receive([deposit("alice", n) for n in (1, 2, 5, 6, 9)])
    inbox.receive([deposit("bob", n) for n in (1, 2)])
    inbox.tick()
    found = {each.stream: each for each in inbox.completeness()}
    assert (found["alice"].first, found["alice"].last, found["alice"].arrived) == (1, 9, 5)
    assert found["alice"].missing == [Range(3, 4), Range(7, 8)]
    assert (found["bob"].arrived, found["bob"].missing) == (2, [])
    psql.execute("UPDATE inbox_messages SET received_at = '2026-01-01Z' WHERE stream = 'alice' AND sequence < 6")
    recent = {each.stream: each for each in inbox.completeness(since=datetime(2026, 2, 1, tzinfo=UTC))}
    assert (recent["alice"].first, recent["alice"].last, recent["alice"].missing) == (6, 9, [Range(7, 8)])
    early = {each.stream: each for each in inbox.completeness(until=datetime(2026, 2, 1, tzinfo=UTC))}
    assert (early["alice"].first, early["alice"].last, early["alice"].missing) == (1, 5, [Range(3, 4)])
    assert "bob" not in early
    assert [each.stream for each in inbox.completeness(stream="bob")] == ["bob"]


def test_replay_changes_nothing_that_was_right(bank: Ledger) -> None:
    """Everything through the same path again: the same outcomes, the same balances, as often as one likes."""
    inbox = bank.inbox("bank", PATIENT)
    inbox.receive([withdrawal("alice", 1), *[deposit("alice", n) for n in range(2, 5)], deposit("bob", 1)])
    before = [bank.balance(name) for name in ("alice", "bob", "world")]
    for dry_run in (True, False, False):
        done = inbox.replay(dry_run=dry_run)
        assert (done.replayed, done.changes, done.left, done.forgotten) == (4, [], 1, 0)
    assert [bank.balance(name) for name in ("alice", "bob", "world")] == before


def test_rejection_is_decided_again_when_asked_for(bank: Ledger) -> None:
    """A rejection that was wrong is taken back by a replay that is told to, and reported; a dry run only reports."""
    inbox = bank.inbox("bank", PATIENT)
    inbox.receive([withdrawal("alice", 1), deposit("alice", 2)])
    assert inbox.replay(rejected=False, dry_run=False).changes == []
    for dry_run in (True, False):
        (change,) = inbox.replay(rejected=True, dry_run=dry_run).changes
        assert (change.message.sequence, '"rejected"' in change.before) == (1, True)
        assert "transaction_id" in (change.after or "")
        assert bank.balance("alice").posted.minor == (1_000 if dry_run else 0)
    assert inbox.replay(rejected=True, dry_run=False).changes == []


def test_handler_is_replayed_after_its_fault_was_mended(bank: Ledger) -> None:
    """What a handler returned is its outcome: a replay through the mended one tells the difference."""
    answers = {"a-1": 1, "a-2": 0}

    def handle(message: Message, _: psycopg.Connection[Any]) -> int:
        return answers[message.id]

    inbox = bank.inbox("shop", PATIENT, handlers={"shop.ordered": handle})
    inbox.receive([shop(1), shop(2)])
    answers["a-2"] = 2
    del answers["a-1"]
    changes = inbox.replay(dry_run=False, first=1).changes
    assert [(change.message.id, change.before, change.after, change.error) for change in changes] == [
        ("a-1", '{"returned": 1}', None, "KeyError: 'a-1'"),
        ("a-2", '{"returned": 0}', '{"returned": 2}', None),
    ]
    assert inbox.replay(first=2).changes == []


def test_contents_are_forgotten_and_places_are_not(bank: Ledger, psql: Psql) -> None:
    """After their time contents go; a copy is still a duplicate, another content still a conflict."""
    inbox = bank.inbox("bank", PATIENT, keep=timedelta(hours=1), unordered=["ledger.deposit"])
    inbox.receive([deposit("alice", 7), withdrawal("alice", 1), withdrawal("alice", 3)])
    assert inbox.forget() == 0
    for table in ("inbox_messages", "inbox_ids"):
        psql.execute(f"UPDATE {table} SET received_at = received_at - interval '2 hours'".encode())
    assert inbox.forget() == 2
    assert inbox.forget() == 0
    assert inbox.replay(dry_run=False).forgotten == 2
    assert inbox.receive([deposit("alice", 7), withdrawal("alice", 1)]).tally.duplicates == 2
    assert inbox.receive([withdrawal("alice", 1, "9 USD")]).tally.conflicts == 1
    assert len(inbox.receive([withdrawal("alice", 2)]).outcomes) == 2


def test_contents_need_not_be_kept_at_all(bank: Ledger, psql: Psql) -> None:
    """With nothing to keep, what took effect leaves a hash; what waits is kept as long as it waits."""
    inbox = bank.inbox("bank", PATIENT, keep=timedelta(0))
    inbox.receive([deposit("alice", 1), deposit("alice", 3)])
    select = "SELECT sequence FROM inbox_messages WHERE content IS NOT NULL"
    assert psql.execute(select).fetchall() == [(3,)]
    inbox.receive([deposit("alice", 2)])
    assert psql.execute(select).fetchall() == []
    assert bank.balance("alice").posted.minor == 3_000


def test_type_without_turn_does_not_wait(bank: Ledger) -> None:
    """Types that their producer does not count take effect at once, beside a stream that waits."""
    inbox = bank.inbox("bank", PATIENT, unordered=["ledger.deposit"])
    received = inbox.receive([deposit("alice", 9), withdrawal("alice", 2), withdrawal("alice", 1)])
    assert [(message.sequence, type(outcome)) for message, outcome in received.outcomes] == [
        (9, Done),
        (1, Done),
        (2, InsufficientFunds),
    ]
    assert inbox.receive([deposit("alice", 9)]).tally.duplicates == 1


def test_message_takes_up_what_another_began(bank: Ledger) -> None:
    """A capture and a reversal name the message that they are about by its key, since no producer knows our ids."""
    data: Json = {"amount": "10 USD", "debit": "alice", "credit": "bob"}
    sent = [
        Message("bank", "m2", "ledger.hold", "alice", 2, data=data),
        Message("bank", "m3", "ledger.capture", "alice", 3, data={"hold_key": "alice#2", "amount": "4 USD"}),
        Message("bank", "m4", "ledger.release", "alice", 4, data={"hold_key": "alice#2"}),
        Message("bank", "m5", "ledger.reverse", "alice", 5, data={"transaction_key": "alice#1", "amount": "6 USD"}),
    ]
    received = bank.inbox("bank", PATIENT).receive([*sent, deposit("alice", 1)])
    assert [type(outcome) for _, outcome in received.outcomes] == [Done] * 5
    assert (bank.balance("alice").posted.minor, bank.balance("bob").posted.minor) == (0, 400)


def test_rejection_is_counted(bank: Ledger) -> None:
    """How often the rules refused is among the counters, in order and without."""
    bank.inbox("bank", PATIENT).receive([withdrawal("alice", 1)])
    inbox = bank.inbox("bank", Unordered())
    inbox.receive([withdrawal("bob", 1)])
    assert inbox.stats().counters["rejected"] == 2


def test_handler_may_reject(bank: Ledger) -> None:
    """What a handler's own commands are refused is the outcome of its message, and undoes what it did before."""

    def handle(_: Message, connection: psycopg.Connection[Any]) -> object:
        with bank.join(connection) as guest:
            guest.deposit("alice", "1 USD", against="world")
            return guest.withdraw("alice", "5 USD", against="world")

    inbox = bank.inbox("shop", PATIENT, handlers={"shop.ordered": handle})
    received = inbox.receive([shop(1), shop(2)])
    assert [type(outcome) for _, outcome in received.outcomes] == [InsufficientFunds] * 2
    assert received.failed == []
    assert bank.balance("alice").version == 1


def test_account_that_cannot_be_read_stops_its_own_stream_only(bank: Ledger, psql: Psql) -> None:
    """One account's log is corrupt: its messages fail and are tried again, all others of the batch go on."""
    bank.deposit("bob", "1 USD", against="world")
    psql.execute("ALTER TABLE events DISABLE TRIGGER ALL")
    psql.execute("DELETE FROM events WHERE stream = 'bob' AND version = 1")
    psql.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER append_only")
    psql.execute("UPDATE balances SET version = 7 WHERE stream = 'bob'")
    inbox = bank.inbox("bank", PATIENT, retry=Retry(attempts_max=1, park=True))
    received = inbox.receive([deposit(stream, n) for n in (1, 2) for stream in ("alice", "bob", "carol")])
    assert {message.stream for message, _ in received.outcomes} == {"alice", "carol"}
    assert {message.stream for message, _ in received.failed} == {"bob"}
    assert bank.balance("carol").posted.minor == 2_000


@pytest.mark.parametrize("length", [249, 256])
def test_source_may_have_a_long_name(bank: Ledger, length: int) -> None:
    """Two sources with long names that begin alike do not take each other's messages for their own."""
    for last in "ab":
        source = "s" * (length - 1) + last
        message = Message(source, "1", "ledger.deposit", "alice", 1, data=deposit("alice", 1).data)
        (done,) = bank.inbox(source, PATIENT).receive([message]).outcomes
        assert isinstance(done[1], Done)
        assert not done[1].replayed
    assert bank.balance("alice").posted.minor == 2_000


def test_inbox_of_no_source_is_refused(bank: Ledger) -> None:
    """A source has a name, and messages go to the inbox of their own."""
    with pytest.raises(UndecodableMessage):
        bank.inbox("", PATIENT)
    with pytest.raises(InvalidCommand, match="'bank', not 'shop'"):
        bank.inbox("shop", PATIENT).receive([deposit("alice", 1)])
    with pytest.raises(InvalidCommand):
        bank.inbox("bank", PATIENT, unordered="ledger.deposit")


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [(gauges.LETTERS, {"most": gauges.COUNT_MAX}), (overview.OPEN_LETTERS, (1_000, ["bank"]))],
    ids=["metrics", "overview"],
)
def test_counting_open_dead_letters_does_not_cost_more_where_many_were_decided(
    bank: Ledger, psql: Psql, sql: str, parameters: Any
) -> None:
    """Those that are open are counted by an index that has no others."""
    letters = (
        "INSERT INTO dead_letters SELECT 'alice', 'bank', gen_random_uuid(), n, 'm-' || n, 'undecodable', NULL, 1,"
        " sha256(n::text::bytea), '{}', now(), now(), CASE WHEN n % 1000 = 0 THEN 'open' ELSE 'discarded' END"
        " FROM generate_series(1, 3000) AS n"
    )
    psql.execute(letters.encode())
    psql.execute("VACUUM (ANALYZE) dead_letters")

    explain = "EXPLAIN (ANALYZE, FORMAT JSON) " + sql.replace("{schema}.", "")
    ((((plan,),)),) = psql.execute(explain.encode(), parameters).fetchall()

    assert '"Index Name": "dead_letters_open"' in json.dumps(plan)
    assert rows_passed_over(plan["Plan"]) == 0
    assert [each.open for each in bank.health().gauges().letters] == [3]


def test_dead_letters_are_found_by_stream_and_reason(bank: Ledger) -> None:
    """Filters narrow them down; an id that is none, or unknown, is an error in words."""

    def fail(message: Message, _: psycopg.Connection[Any]) -> None:
        raise RuntimeError(message.id)

    handlers: dict[str, Handler] = {"shop.ordered": fail}
    inbox = bank.inbox("shop", PATIENT, retry=Retry(attempts_max=1), handlers=handlers)
    inbox.receive([shop(1, stream) for stream in "abc"])
    (letter,) = inbox.dead_letters(stream="b", why="failed")
    assert inbox.dead_letter(letter.dead_letter_id).error == "RuntimeError: b-1"
    assert inbox.dead_letters(why="undecodable") == []
    for name in ("nonsense", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(InvalidCommand):
            inbox.dead_letter(name)
    with pytest.raises(InvalidCommand, match="limit"):
        inbox.dead_letters(limit=0)


def test_error_of_a_handler_is_kept_whatever_it_says(bank: Ledger) -> None:
    """An error text that PostgreSQL cannot hold is kept all the same, and the message is no poison for its batch."""

    def fail(message: Message, _: psycopg.Connection[Any]) -> None:
        raise ValueError(f"\0 and \ud800 in {message.id}")

    inbox = bank.inbox("shop", PATIENT, retry=Retry(attempts_max=1), handlers={"shop.ordered": fail})
    assert len(inbox.receive([shop(1), shop(1, "b")]).failed) == 2
    assert {letter.error for letter in inbox.dead_letters()} == {
        f"ValueError: \\0 and \\ud800 in {name}-1" for name in "ab"
    }


def test_handler_that_swallows_an_error_of_the_database_has_failed(bank: Ledger) -> None:
    """PostgreSQL has given up on what it did: its message is tried again, and its neighbour is done."""

    def careless(message: Message, connection: psycopg.Connection[Any]) -> None:
        if message.stream == "a":
            with suppress(psycopg.Error):
                connection.execute("SELECT 1 / 0")

    inbox = bank.inbox("shop", PATIENT, handlers={"shop.ordered": careless})
    received = inbox.receive([shop(1), shop(1, "b")])
    assert [message.stream for message, _ in received.failed] == ["a"]
    assert [message.stream for message, _ in received.outcomes] == ["b"]


def test_message_that_is_tried_again_keeps_its_place(bank: Ledger) -> None:
    """However full the buffer behind it, what the others wait for is not set aside."""
    broken = {"a-1"}

    def flaky(message: Message, _: psycopg.Connection[Any]) -> None:
        if message.id in broken:
            raise RuntimeError(message.id)

    policy = Strict(timedelta(hours=1), max_buffered=2)
    retry = Retry(attempts_max=9, delay=timedelta(0))
    inbox = bank.inbox("shop", policy, retry=retry, handlers={"shop.ordered": flaky})
    inbox.receive([shop(n) for n in range(1, 6)])
    assert [gap.missing for gap in inbox.gaps()] == [] or inbox.gaps()[0].missing == 1
    broken.clear()
    inbox.tick()
    inbox.receive([shop(n) for n in range(1, 6)])
    assert inbox.gaps() == []
    assert inbox.dead_letters() == []


def test_conflicting_message_takes_effect_when_somebody_decides_so(bank: Ledger) -> None:
    """Requeued, a message that contradicted another has its own effect, once, and counts as processed."""
    inbox = bank.inbox("bank", PATIENT)
    inbox.receive([deposit("alice", 1), deposit("alice", 1, "7 USD")])
    (letter,) = inbox.dead_letters()
    inbox.requeue(letter.dead_letter_id, actor="ann")
    assert bank.balance("alice").posted.minor == 1_700
    assert inbox.receive([deposit("alice", 1, "7 USD")]).tally.conflicts == 1
    assert inbox.dead_letters() == []
    assert inbox.stats().counters["processed"] == 2
    assert bank.balance("alice").posted.minor == 1_700


def test_discarded_message_stays_without_effect(bank: Ledger) -> None:
    """What somebody decided shall have no effect has none when it comes again, ordered or not."""

    def fail(message: Message, _: psycopg.Connection[Any]) -> None:
        raise RuntimeError(message.id)

    for policy in (Unordered(), PATIENT):
        inbox = bank.inbox("shop", policy, retry=Retry(attempts_max=1, park=True), handlers={"shop.ordered": fail})
        stream = type(policy).__name__
        inbox.receive([shop(1, stream)])
        (letter,) = inbox.dead_letters(stream=stream)
        inbox.discard(letter.dead_letter_id)
        assert inbox.receive([shop(1, stream)]).tally.duplicates == 1
        assert inbox.dead_letters() == []


def test_process_without_handlers_leaves_their_messages_alone(bank: Ledger) -> None:
    """Whoever ticks and releases without an application's handlers makes no attempt, and gives nothing up."""
    done: list[str] = []
    theirs: dict[str, Handler] = {"shop.ordered": lambda message, _: done.append(message.id)}
    policy, retry = Strict(timedelta(0)), Retry(attempts_max=1, delay=timedelta(0))
    application = bank.inbox("shop", policy, retry=retry, handlers=theirs)
    somebody = bank.inbox("shop", policy, retry=retry)
    application.receive([shop(n) for n in (1, 3, 4)])
    assert [message.id for message, _ in somebody.release("a").failed] == ["a-3"]
    for _ in range(3):
        assert [message.id for message, _ in somebody.tick().failed] == ["a-3"]
    assert somebody.dead_letters() == []
    application.tick()
    assert done == ["a-1", "a-3", "a-4"]
    assert somebody.gaps() == []


def test_replay_without_handlers_leaves_their_messages_alone(bank: Ledger) -> None:
    """Whoever has no handlers cannot say what would come out otherwise, and says how many it left."""
    handlers: dict[str, Handler] = {"shop.ordered": lambda message, _: {"paid": message.sequence}}
    application = bank.inbox("shop", PATIENT, handlers=handlers)
    application.receive([shop(1), shop(2)])
    replayed = bank.inbox("shop", PATIENT).replay(dry_run=False)
    assert (replayed.replayed, replayed.changes, replayed.elsewhere) == (0, [], 2)
    replayed = application.replay()
    assert (replayed.replayed, replayed.changes, replayed.elsewhere) == (2, [], 0)


@pytest.mark.parametrize("park", [False, True])
def test_stream_that_is_stuck_at_a_failure_says_so(bank: Ledger, park: bool) -> None:
    """Tried again or parked, it is among those that wait, and its error stays whatever arrives behind it."""
    broken = {"a-1"}

    def handle(message: Message, _: psycopg.Connection[Any]) -> None:
        if message.id in broken:
            raise RuntimeError("no such shop")

    retry = Retry(attempts_max=1 if park else 9, delay=timedelta(days=1), park=park)
    inbox = bank.inbox("shop", PATIENT, retry=retry, handlers={"shop.ordered": handle})
    inbox.receive([shop(1), shop(1, "b")])
    inbox.receive([shop(2)])
    (gap,) = inbox.gaps()
    assert (gap.stream, gap.missing, gap.status) == ("a", 1, "parked" if park else "retrying")
    assert gap.error == "RuntimeError: no such shop"
    stats = inbox.stats()
    assert (stats.parked, stats.retrying, stats.held) == ((1, 0, 1) if park else (0, 1, 2))
    assert stats.oldest_wait is not None
    assert inbox.gaps(status=Status.WAITING) == []
    assert inbox.gaps(after="a") == []


def test_decision_is_no_sight_of_its_message(bank: Ledger) -> None:
    """When a dead letter was last seen is when its message came, whatever was decided about it since."""
    inbox = bank.inbox("shop", PATIENT, retry=Retry(attempts_max=1), handlers={})
    inbox.receive([shop(1)])
    (letter,) = inbox.dead_letters()
    inbox.discard(letter.dead_letter_id, actor="ann")
    assert inbox.dead_letter(letter.dead_letter_id).last_seen == letter.last_seen


@pytest.mark.parametrize("first", ["a", "b"])
def test_version_decides_between_producers_without_a_common_count(bank: Ledger, first: str) -> None:
    """Who read the account before the other one wrote is refused, on record, whatever time its message says."""
    seen = bank.deposit("alice", "10 USD", against="world").versions["alice"]
    said = {
        source: Message(
            source=source,
            id="m1",
            type="ledger.withdraw",
            stream="alice",
            sequence=1,
            time=datetime(2022, 1, 1 if source == "a" else 2, tzinfo=UTC),
            data={"account": "alice", "amount": "1 USD", "against": "world", "expected_versions": {"alice": seen}},
        )
        for source in ("a", "b")
    }
    for source in sorted(said, key=lambda source: source != first):
        ((_, outcome),) = bank.inbox(source, PATIENT).receive([said[source]]).outcomes
        assert isinstance(outcome, Done if source == first else VersionConflict)
        assert bank.inbox(source, PATIENT).stats().counters["rejected"] == int(source != first)
    assert bank.balance("alice").posted.minor == 900


def test_failed_message_was_first_seen_when_it_came(bank: Ledger, psql: Psql) -> None:
    """A dead letter tells since when it has been waited for, not since when it was given up."""
    retry = Retry(attempts_max=2, delay=timedelta(0))
    inbox = bank.inbox("shop", PATIENT, retry=retry, handlers={})
    inbox.receive([shop(1)])
    ((received_at,),) = psql.execute("SELECT received_at FROM inbox_messages").fetchall()
    inbox.tick()
    (letter,) = inbox.dead_letters()
    assert (letter.attempts, letter.first_seen) == (2, received_at)
    assert letter.last_seen > letter.first_seen


@pytest.mark.parametrize("how", ["commit", "rollback", "close", "statement"])
def test_handler_that_ends_the_transaction_stops_its_own_stream_only(bank: Ledger, how: str) -> None:
    """It has failed, and is tried again in its place; what came with it is done, once."""
    broken = {"a"}

    def careless(message: Message, connection: psycopg.Connection[Any]) -> None:
        if message.stream in broken:
            connection.execute("COMMIT") if how == "statement" else getattr(connection, how)()

    retry = Retry(attempts_max=9, delay=timedelta(0))
    inbox = bank.inbox("bank", PATIENT, retry=retry, handlers={"shop.ordered": careless})
    orders = [Message("bank", f"a-{n}", "shop.ordered", "a", n) for n in (1, 2)]
    received = inbox.receive([deposit("alice", 1), *orders, deposit("bob", 1)])
    assert {message.stream for message, _ in received.outcomes} == {"alice", "bob"}
    assert [message.id for message, _ in received.failed] == ["a-1"]
    assert [bank.balance(name).posted.minor for name in ("alice", "bob")] == [1_000, 1_000]
    broken.clear()
    assert [message.id for message, _ in inbox.tick().outcomes] == ["a-1", "a-2"]
    assert bank.verify().ok
