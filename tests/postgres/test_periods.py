"""Closed periods from end to end: the trial balance of their end is on record, and nothing joins them later."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from invariants import assert_sound

from ledger import Done, Ledger, PeriodIsClosed, PeriodNotOver

JUNE = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """A ledger in which alice was given 100.00 USD in May and 7.00 USD in June."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability", min_balance=0)
    ledger.deposit("alice", "100 USD", against="world", effective_at=JUNE - DAY)
    ledger.deposit("alice", "7 USD", against="world", effective_at=JUNE + DAY)
    return ledger


def trial_balance(closing: Done) -> list[list[str]]:
    """What a closing recorded: asset, type, posted debits and credits."""
    (event,) = closing.events
    assert (event.stream, event.type) == ("$ledger", "period_closed")
    recorded = json.loads(event.payload)["trial_balance"]
    assert isinstance(recorded, list)
    return recorded


def test_closing_records_the_trial_balance_of_that_moment(bank: Ledger, ledger_url: str) -> None:
    """Only what was effective before the end is in it, whenever it was recorded."""
    closing = bank.close_period(JUNE, reason="May", actor="accountant")
    assert trial_balance(closing) == [["USD", "equity", "10000", "0"], ["USD", "liability", "0", "10000"]]
    assert closing.transaction.actor == "accountant"
    assert json.loads(closing.events[0].payload)["reason"] == "May"
    second = bank.close_period(JUNE + 2 * DAY)
    assert trial_balance(second) == [["USD", "equity", "10700", "0"], ["USD", "liability", "0", "10700"]]
    assert_sound(bank, ledger_url)


def test_held_money_is_not_in_the_trial_balance(bank: Ledger, ledger_url: str) -> None:
    """A hold posts nothing; its capture does, at the moment for which it is effective."""
    placed = bank.hold("10 USD", debit="alice", credit="world", effective_at=JUNE - DAY)
    bank.capture(placed, "4 USD", effective_at=JUNE - DAY)
    closing = bank.close_period(JUNE)
    assert trial_balance(closing) == [["USD", "equity", "10000", "400"], ["USD", "liability", "400", "10000"]]
    assert_sound(bank, ledger_url)


def test_entry_before_the_end_is_refused_and_at_the_end_is_not(bank: Ledger, ledger_url: str) -> None:
    """The end itself belongs to the next period; one microsecond earlier is closed."""
    bank.close_period(JUNE)
    with pytest.raises(PeriodIsClosed):
        bank.deposit("alice", "1 USD", against="world", effective_at=JUNE - timedelta(microseconds=1))
    bank.deposit("alice", "1 USD", against="world", effective_at=JUNE)
    bank.deposit("alice", "1 USD", against="world")
    assert str(bank.balance("alice").posted) == "109.00 USD"
    assert_sound(bank, ledger_url)


def test_reversals_and_captures_stay_out_of_a_closed_period(bank: Ledger, ledger_url: str) -> None:
    """What was posted in a closed period is reversed in an open one, and a hold is captured in an open one."""
    paid = bank.withdraw("alice", "5 USD", against="world", effective_at=JUNE - DAY)
    placed = bank.hold("5 USD", debit="alice", credit="world")
    bank.close_period(JUNE)
    with pytest.raises(PeriodIsClosed):
        bank.reverse(paid, effective_at=JUNE - DAY)
    with pytest.raises(PeriodIsClosed):
        bank.capture(placed, effective_at=JUNE - DAY)
    bank.reverse(paid)
    bank.capture(placed)
    assert_sound(bank, ledger_url)


def test_period_that_is_not_over_is_not_closed(bank: Ledger, psql: psycopg.Connection[object]) -> None:
    """Neither the future nor the last minutes can be closed; nothing can be closed again, or earlier."""
    row = psql.execute("SELECT clock_timestamp()").fetchone()
    assert isinstance(row, tuple)
    now: datetime = row[0]
    for until in (now + DAY, now, now - timedelta(minutes=9)):
        with pytest.raises(PeriodNotOver):
            bank.close_period(until)
    bank.close_period(now - timedelta(minutes=12))
    for until in (now - timedelta(minutes=12), now - DAY):
        with pytest.raises(PeriodIsClosed):
            bank.close_period(until)


def test_guests_are_bound_by_a_closed_period(bank: Ledger, ledger_url: str) -> None:
    """Who posts in a transaction of the application's is refused as well, and can go on with what is open."""
    bank.close_period(JUNE)
    with psycopg.connect(ledger_url) as connection, bank.join(connection, accounts=["alice", "world"]) as guest:
        with pytest.raises(PeriodIsClosed):
            guest.deposit("alice", "1 USD", against="world", effective_at=JUNE - DAY)
        guest.deposit("alice", "2 USD", against="world", effective_at=JUNE)
    assert str(bank.balance("alice").posted) == "109.00 USD"
    assert_sound(bank, ledger_url)


def test_closing_waits_for_a_guest(bank: Ledger, ledger_url: str) -> None:
    """A guest that has posted and not yet ended keeps the books open: its entry may belong to the period."""
    with psycopg.connect(ledger_url) as host, psycopg.connect(ledger_url) as closer:
        with bank.join(host, accounts=["alice", "world"]) as guest:
            guest.deposit("alice", "1 USD", against="world")
        closer.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            closer.execute("SELECT * FROM ledger.periods FOR UPDATE")
        closer.rollback()
        host.commit()
        closer.execute("SELECT * FROM ledger.periods FOR UPDATE")
    bank.close_period(JUNE)
    assert_sound(bank, ledger_url)


def test_closing_is_replayed_and_rebuilt(bank: Ledger, ledger_url: str, psql: psycopg.Connection[object]) -> None:
    """The same key closes once; what is closed is in the log, and made anew from it."""
    first = bank.close_period(JUNE, idempotency_key="may")
    assert bank.close_period(JUNE, idempotency_key="may").transaction == first.transaction
    psql.execute("UPDATE periods SET closed_until = NULL")
    assert not bank.verify().ok
    bank.rebuild()
    with pytest.raises(PeriodIsClosed):
        bank.deposit("alice", "1 USD", against="world", effective_at=JUNE - DAY)
    assert_sound(bank, ledger_url)
