"""The feed: positions without a gap, in the order of every stream, written by one stamper and by nobody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from feed_readers import at_another_time, disordered, let_clocks_step

from ledger import CorruptLog, InvalidCommand, Ledger, OpenAccount, Transfer, Unfreeze
from ledger.core.commands import build

Psql = psycopg.Connection[Any]
Tamper = Callable[..., None]


def transfers(count: int, credit: str = "alice") -> list[Transfer]:
    """Some transfers, one like the other."""
    return [build(Transfer, amount="1 USD", debit="world", credit=credit) for _ in range(count)]


def drained(ledger: Ledger, limit: int = 10_000) -> int:
    """How many were stamped until nothing waited any more."""
    total = 0
    while stamped := ledger.stamp(limit):
        total += stamped
    return total


def test_everything_has_its_position(funded: Ledger, psql: Psql) -> None:
    """One position per event, dense from 1, each stream in order; the outbox, from before the feed, is empty then."""
    assert list(funded.feed()) == []
    assert funded.stamp() == 8
    assert funded.stamp() == 0
    entries = list(funded.feed())
    assert [entry.position for entry in entries] == list(range(1, 9))
    assert funded.feed_head() == 8
    assert disordered((entry.event.stream, entry.event.version) for entry in entries) == 0
    for stream in ("alice", "bob", "world", "$ledger"):
        assert [entry.event for entry in entries if entry.event.stream == stream] == funded.history(stream)
    assert all(entry.transaction.transaction_id == entry.event.transaction_id for entry in entries)
    assert [entry.transaction.reference for entry in entries if entry.transaction.reference] == ["payday", "payday"]
    assert psql.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


def test_feed_is_read_from_a_position(funded: Ledger) -> None:
    """It goes on after any position, for as many entries as are wanted, and ends where nothing was stamped."""
    funded.stamp()
    everything = list(funded.feed())
    assert list(funded.feed(after=3, limit=2)) == everything[3:5]
    assert list(funded.feed(after=8)) == list(funded.feed(after=800)) == []


def test_pages_of_the_feed_join(funded: Ledger) -> None:
    """More entries than a page holds come as one sequence."""
    funded.handle(transfers(1_200))
    assert drained(funded) == 2_408
    assert [entry.position for entry in funded.feed(limit=2_100)] == list(range(1, 2_101))


@pytest.mark.parametrize("asked", [{"after": -1}, {"after": "1"}, {"limit": 0}, {"limit": True}])
def test_feed_refuses_what_is_no_position(ledger: Ledger, asked: dict[str, Any]) -> None:
    """What cannot be asked is refused at once, and not when the first entry is wanted."""
    with pytest.raises(InvalidCommand):
        ledger.feed(**asked)


@pytest.mark.parametrize("limit", [1, 7, 20])
def test_batches_are_bounded(funded: Ledger, psql: Psql, limit: int) -> None:
    """What one commit left is stamped in as many steps as it takes, whole transactions at a time."""
    funded.handle(transfers(50))
    steps = []
    while stamped := funded.stamp(limit):
        steps.append(stamped)
    assert sum(steps) == 108
    assert max(steps) <= max(limit, 2)
    assert psql.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
    entries = list(funded.feed())
    assert len(entries) == 108
    assert disordered((entry.event.stream, entry.event.version) for entry in entries) == 0
    ends = [first.event.transaction_id != second.event.transaction_id for first, second in pairwise(entries)]
    assert sum(ends) == len({entry.event.transaction_id for entry in entries}) - 1


@pytest.mark.parametrize("limit", [1, 3, 10_000])
def test_batch_whose_transactions_are_of_different_times(
    funded: Ledger, ledger_url: str, psql: Psql, limit: int
) -> None:
    """A row of the outbox with early and late transactions is neither before nor behind another one as a whole."""
    let_clocks_step(psql)
    for name in ("early", "late", "other"):
        funded.open_account(name, asset="USD", type="liability")
    with (
        Ledger.connect(at_another_time(ledger_url, 3_600)) as ahead,
        Ledger.connect(at_another_time(ledger_url, -3_600)) as behind,
    ):
        # carl stands an hour ahead; a commit of today then holds a transaction of now and one of in an hour.
        ahead.transfer("1 USD", debit="late", credit="other")
        together = [*transfers(1, "early"), build(Transfer, amount="1 USD", debit="late", credit="other")]
        funded.handle(together)
        funded.handle([build(Transfer, amount="1 USD", debit="early", credit="bob")])
        # And one of an hour ago, in one commit with one that follows the last.
        behind.open_account("old", asset="USD", type="liability")
        behind.handle([build(Transfer, amount="1 USD", debit="old", credit="alice"), *transfers(1, "early")])
        behind.handle([build(Transfer, amount="1 USD", debit="old", credit="late")])
    total = drained(funded, limit)
    seen = [(entry.event.stream, entry.event.version) for entry in funded.feed()]
    assert len(seen) == total == len(set(seen))
    assert disordered(seen) == 0


def test_row_that_was_not_looked_into_is_not_overtaken(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """
    A commit of two times, the later of which follows a row that the batch has no room for: that one waits for it.

    Stamped as far as the batch goes, it would come before the version that it follows, again and again.
    """
    let_clocks_step(psql)
    funded.stamp()
    with Ledger.connect(at_another_time(ledger_url, 3_600)) as ahead:
        ahead.freeze("bob")
    # One row: of now, since dora has no past, and of in an hour, since bob was frozen then.
    funded.handle(
        [build(OpenAccount, account="dora", asset="USD", account_type="liability"), build(Unfreeze, account="bob")]
    )
    assert [funded.stamp(2), funded.stamp(2), funded.stamp(2)] == [1, 2, 0]
    assert disordered((entry.event.stream, entry.event.version) for entry in funded.feed()) == 0


def test_wrong_times_in_the_outbox_are_set_right(funded: Ledger, psql: Psql) -> None:
    """The time of a row only says what is tried first: where it is wrong, nothing is stamped before it is right."""
    funded.handle(transfers(3))
    psql.execute("UPDATE outbox SET recorded_at = '-infinity' WHERE cardinality(transaction_ids) = 3")
    psql.execute("UPDATE outbox SET recorded_at = 'infinity' WHERE cardinality(transaction_ids) = 1")
    assert drained(funded, 2) == 14
    assert disordered((entry.event.stream, entry.event.version) for entry in funded.feed()) == 0


def test_outbox_row_that_was_lost_stops_the_stamper(funded: Ledger, psql: Psql) -> None:
    """What does not follow what is in the feed is not stamped, and the place is named; nothing is skipped."""
    psql.execute("ALTER TABLE outbox DISABLE TRIGGER ALL")
    psql.execute(
        "DELETE FROM outbox WHERE batch_id = (SELECT batch_id FROM outbox ORDER BY recorded_at OFFSET 3 LIMIT 1)"
    )
    with pytest.raises(CorruptLog) as corrupt:
        funded.stamp()
    assert (corrupt.value.stream, corrupt.value.version) == ("alice", 3)
    assert list(funded.feed()) == []


def test_outbox_that_names_what_is_not_there_stops_the_stamper(funded: Ledger, psql: Psql, tamper: Tamper) -> None:
    """An event or a whole transaction that is gone from the log is named, and not passed over."""
    tamper("DELETE FROM events WHERE stream = 'bob' AND version = 2")
    with pytest.raises(CorruptLog, match="announced") as corrupt:
        funded.stamp()
    assert (corrupt.value.stream, corrupt.value.version) == ("bob", 2)
    psql.execute("INSERT INTO outbox VALUES (gen_random_uuid(), ARRAY[gen_random_uuid()], now())")
    tamper("DELETE FROM transactions WHERE reference = 'payday'")
    with pytest.raises(CorruptLog, match="not in the log"):
        funded.stamp()
    assert funded.feed_head() == 0


@pytest.mark.parametrize("place", ["bob", "bob x", "bob 99999999999999999999"])
def test_announcement_that_nobody_made_stops_the_stamper(funded: Ledger, tamper: Tamper, place: str) -> None:
    """What is announced and is no event's place is named as it is written, and nothing is passed over."""
    tamper(f"UPDATE transactions SET announced[2] = '{place}' WHERE idempotency_key = 'rent'")
    with pytest.raises(CorruptLog, match="announced") as corrupt:
        funded.stamp()
    assert place in (corrupt.value.stream, f"{corrupt.value.stream} {corrupt.value.version}")
    assert funded.feed_head() == 0


def test_reader_notices_a_feed_that_was_changed(funded: Ledger, tamper: Tamper) -> None:
    """A gap, or an entry that is not what the log has, is an error and not an answer."""
    funded.stamp()
    tamper("UPDATE feed SET event_hash = sha256('') WHERE position = 4")
    with pytest.raises(CorruptLog, match="position 4"):
        list(funded.feed())
    tamper("DELETE FROM feed WHERE position = 2")
    with pytest.raises(CorruptLog, match="no position 2"):
        list(funded.feed())


# Who may stamp


def test_stale_stamper_stamps_nothing(funded: Ledger, psql: Psql) -> None:
    """Whoever lost the lease while it stood still does nothing when it goes on, and stands by."""
    first, second = funded.stamper(limit=2), funded.stamper()
    assert first.step() == 2
    assert second.step() == 0
    assert (first.epoch, second.epoch) == (1, None)
    psql.execute("UPDATE leases SET until = now()")
    assert second.step() == 6
    funded.transfer("1 USD", debit="world", credit="alice")
    assert first.step() == 0
    assert (first.epoch, second.epoch) == (None, 2)
    assert funded.feed_head() == 8
    assert second.step() == 2
    lease = funded.stamping()
    assert lease is not None
    assert (lease.epoch, lease.owner) == (2, second.owner)


def test_clock_that_is_wrong_lets_nobody_stamp_beside_another(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """A clock an hour ahead takes the lease too early: then the other one stamps no more."""
    let_clocks_step(psql)
    stamper = funded.stamper(limit=1)
    assert stamper.step() == 2
    with Ledger.connect(at_another_time(ledger_url, 3_600)) as ahead:
        other = ahead.stamper(limit=1)
        assert other.step() > 0
        assert stamper.step() == 0
        assert stamper.epoch is None


def test_stamper_in_the_midst_of_it_is_waited_for(funded: Ledger, ledger_url: str) -> None:
    """While one is stamping, its lease cannot be taken, however long it takes."""
    stamper = funded.stamper(limit=1)
    assert stamper.step() > 0
    with psycopg.connect(ledger_url) as session, psycopg.connect(ledger_url, autocommit=True) as other:
        session.execute("UPDATE ledger.leases SET until = now() - interval '1 hour' WHERE epoch = 1")
        other.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("UPDATE ledger.leases SET epoch = epoch + 1")


def test_stamper_in_the_background(funded: Ledger) -> None:
    """While it is entered everything that happens comes into the feed; closed, it lets its lease go at once."""
    funded.stamp()
    with funded.stamper() as stamper:
        funded.transfer("1 USD", debit="world", credit="alice")
        with funded.stamper() as standby:
            for _ in range(100_000):
                if funded.feed_head() == 10:
                    break
            assert funded.feed_head() == 10
    assert (stamper.epoch, standby.epoch) == (None, None)
    funded.transfer("1 USD", debit="world", credit="alice")
    assert funded.stamp() == 2


def test_problems_of_a_stamper_are_told(funded: Ledger, psql: Psql) -> None:
    """What goes wrong in the background is told, and tried again until it goes right."""
    psql.execute("ALTER TABLE feed RENAME TO elsewhere")
    told: list[str] = []

    def mend(problem: str) -> None:
        if not told:
            psql.execute("ALTER TABLE elsewhere RENAME TO feed")
            stamper.stop()
        told.append(problem)

    stamper = funded.stamper(on_problem=mend)
    stamper.run()
    assert len(told) == 1
    assert "ledger migrate" in told[0]
    assert stamper.step() == 8
    stamper.close()


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 10**9}, {"limit": True}, {"lease_seconds": 0}])
def test_stamper_refuses_what_has_no_sense(ledger: Ledger, wrong: dict[str, Any]) -> None:
    """Limits are said in numbers that can be kept."""
    with pytest.raises(InvalidCommand):
        ledger.stamper(**wrong)


# Guards

ENTRY = (
    "INSERT INTO feed SELECT {position}, stream, version, transaction_id, {hash}, clock_timestamp()"
    " FROM events WHERE {which}"
)


@pytest.mark.parametrize(
    ("attack", "sqlstate"),
    [
        (ENTRY.format(position=10, hash="event_hash", which="stream = 'bob' AND version = 3"), "LD005"),
        (ENTRY.format(position=8, hash="event_hash", which="stream = 'bob' AND version = 3"), "23505"),
        (ENTRY.format(position=0, hash="event_hash", which="stream = 'bob' AND version = 3"), "23514"),
        (ENTRY.format(position=9, hash="event_hash", which="stream = 'bob' AND version = 1"), "23505"),
        (ENTRY.format(position=9, hash="event_hash", which="stream = 'bob' AND version = 4"), "LD006"),
        (
            ENTRY.format(
                position="9 + row_number() OVER (ORDER BY version DESC) - 1",
                hash="event_hash",
                which="stream = 'bob' AND version > 2",
            ),
            "LD006",
        ),
        (ENTRY.format(position=9, hash="sha256('')", which="stream = 'bob' AND version = 3"), "LD007"),
        ("INSERT INTO feed VALUES (9, 'nobody', 1, gen_random_uuid(), sha256(''), now())", "LD007"),
        ("DELETE FROM outbox", "LD008"),
        ("UPDATE outbox SET transaction_ids = ARRAY[gen_random_uuid()]", "LD008"),
        ("UPDATE outbox SET transaction_ids = '{}'", "LD008"),
        ("TRUNCATE outbox", "LD001"),
        ("UPDATE feed SET position = position + 1", "LD001"),
        ("DELETE FROM feed WHERE position = 8", "LD001"),
        ("TRUNCATE feed", "LD001"),
    ],
)
def test_guards_of_the_feed(funded: Ledger, psql: Psql, attack: str, sqlstate: str) -> None:
    """No gap, no double, no stream out of order, nothing that the log has not, and nothing taken from the outbox."""
    funded.stamp()
    funded.transfer("1 USD", debit="world", credit="bob")
    funded.transfer("1 USD", debit="world", credit="bob")
    with pytest.raises(psycopg.Error) as refused:
        psql.execute(attack.encode())
    assert refused.value.sqlstate == sqlstate
    assert funded.stamp() == 4
    assert len(list(funded.feed())) == 12


def test_entries_keep_what_was_said(funded: Ledger) -> None:
    """An entry has the whole event and the whole transaction: what was asked for, by whom, and what for."""
    funded.transfer("2 USD", debit="world", credit="bob", idempotency_key="k", actor="ann", metadata={"n": 1})
    funded.stamp()
    *_, entry = funded.feed()
    transaction = entry.transaction
    assert (transaction.kind, transaction.idempotency_key, transaction.actor) == ("transfer", "k", "ann")
    assert json.loads(transaction.metadata or "") == {"n": 1}
    assert entry.event == funded.history("world", before_version=100, limit=1)[0]
