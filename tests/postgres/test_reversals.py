"""Reversals from end to end: what was posted is given back, in part or in full, exactly, and never twice."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from invariants import assert_sound

from ledger import (
    Command,
    Done,
    ExceedsRest,
    InsufficientFunds,
    InvalidAmount,
    Ledger,
    NotReversible,
    Transfer,
    credit,
    debit,
)
from ledger.batch import keyed_id
from ledger.core.commands import Reverse, build

Psql = psycopg.Connection[Any]
SECONDS = 60


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """A ledger in which alice owns 100.00 USD and nobody but the world may overdraw."""
    ledger.open_account("world", asset="USD", type="equity")
    for account in ("alice", "shop", "tax"):
        ledger.open_account(account, asset="USD", type="liability", min_balance=0)
    ledger.deposit("alice", "100 USD", against="world")
    return ledger


def posted(ledger: Ledger, account: str) -> str:
    """What an account has, as text."""
    return str(ledger.balance(account).posted.decimal)


def test_partial_reversals_add_up_to_the_original(bank: Ledger, ledger_url: str) -> None:
    """Parts can be reversed until nothing is left; what goes beyond is refused with what is left."""
    paid = bank.transfer("10 USD", debit="alice", credit="shop")
    bank.reverse(paid, "4 USD")
    with pytest.raises(ExceedsRest) as refused:
        bank.reverse(paid, "6.01 USD")
    assert refused.value.left == "6.00 USD"
    bank.reverse(str(paid.transaction_id))
    with pytest.raises(ExceedsRest):
        bank.reverse(paid, "0.01 USD")
    with pytest.raises(ExceedsRest):
        bank.reverse(paid)
    assert (posted(bank, "alice"), posted(bank, "shop")) == ("100.00", "0.00")
    assert_sound(bank, ledger_url)


def test_every_entry_is_reversed_in_proportion(bank: Ledger, ledger_url: str) -> None:
    """A part of a transaction of many entries takes its share of each, to the last minor unit."""
    sale = bank.post([debit("alice", "12 USD"), credit("shop", "10 USD"), credit("tax", "2 USD")])
    part = bank.reverse(sale, "6 USD")
    assert [(event.stream, event.direction, event.amount) for event in part.events] == [
        ("alice", "credit", 600),
        ("shop", "debit", 500),
        ("tax", "debit", 100),
    ]
    bank.reverse(sale)
    assert [posted(bank, account) for account in ("alice", "shop", "tax")] == ["100.00", "0.00", "0.00"]
    assert_sound(bank, ledger_url)


def test_part_that_cannot_be_exact_is_refused(bank: Ledger, ledger_url: str) -> None:
    """Nothing is rounded: a part that would split a minor unit of an entry is refused, and nothing moves."""
    sale = bank.post([debit("alice", "12 USD"), credit("shop", "10 USD"), credit("tax", "2 USD")])
    with pytest.raises(InvalidAmount):
        bank.reverse(sale, "0.01 USD")
    assert posted(bank, "alice") == "88.00"
    assert bank.transaction(sale.transaction_id).reversed_by == []
    assert_sound(bank, ledger_url)


def test_what_posted_nothing_or_is_a_reversal_is_not_reversed(bank: Ledger) -> None:
    """A reversal, a hold and an opening cannot be reversed."""
    paid = bank.transfer("10 USD", debit="alice", credit="shop")
    reversal = bank.reverse(paid, "1 USD")
    placed = bank.hold("1 USD", debit="alice", credit="shop")
    opened = bank.open_account("bob", asset="USD", type="liability")
    for transaction in (reversal, placed, opened):
        with pytest.raises(NotReversible):
            bank.reverse(transaction)


def test_captured_money_is_given_back(bank: Ledger, ledger_url: str) -> None:
    """A capture is reversed like any other transaction; what its final part released is not."""
    placed = bank.hold("10 USD", debit="alice", credit="shop")
    captured = bank.capture(placed, "4 USD", final=True)
    bank.reverse(captured)
    assert (posted(bank, "alice"), posted(bank, "shop")) == ("100.00", "0.00")
    with pytest.raises(ExceedsRest):
        bank.reverse(captured, "0.01 USD")
    assert_sound(bank, ledger_url)


def test_limits_hold_for_reversals_unless_they_are_forced(bank: Ledger, ledger_url: str) -> None:
    """Who spent the money cannot give it back; a correction that must go through is on record as forced."""
    paid = bank.transfer("10 USD", debit="alice", credit="shop")
    bank.withdraw("shop", "8 USD", against="world")
    with pytest.raises(InsufficientFunds):
        bank.reverse(paid)
    forced = bank.reverse(paid, reason="chargeback", force=True, actor="support")
    assert posted(bank, "shop") == "-8.00"
    asked = json.loads(forced.transaction.request)
    assert (asked["force"], asked["reason"], forced.transaction.actor) == (True, "chargeback", "support")
    assert_sound(bank, ledger_url)


def test_original_and_reversals_name_each_other(bank: Ledger) -> None:
    """From the original one gets to all its reversals, and from each of them back."""
    paid = bank.transfer("10 USD", debit="alice", credit="shop")
    reversals = [bank.reverse(paid, "1 USD").transaction.transaction_id for _ in range(3)]
    original = bank.transaction(paid.transaction_id)
    assert original.reverses is None
    assert sorted(original.reversed_by) == sorted(reversals)
    for reversal in reversals:
        assert bank.transaction(reversal).reverses == paid.transaction.transaction_id
        assert bank.transaction(reversal).reversed_by == []


def test_repeated_reversal_is_replayed(bank: Ledger, ledger_url: str) -> None:
    """The same key reverses once, also where a second time would be allowed."""
    paid = bank.transfer("10 USD", debit="alice", credit="shop")
    first = bank.reverse(paid, "2 USD", idempotency_key="refund-1")
    second = bank.reverse(paid, "2 USD", idempotency_key="refund-1")
    assert second.replayed
    assert (second.transaction, second.events, second.balances) == (first.transaction, first.events, first.balances)
    assert posted(bank, "shop") == "8.00"
    assert_sound(bank, ledger_url)


def test_reversals_in_one_batch_count_each_other(bank: Ledger, ledger_url: str) -> None:
    """What an earlier command of a batch reversed is not there for a later one."""
    paid = bank.transfer("10 USD", debit="alice", credit="shop")
    outcomes = bank.handle([build(Reverse, transaction_id=paid.transaction_id, amount="4 USD") for _ in range(3)])
    assert [isinstance(outcome, ExceedsRest) for outcome in outcomes] == [False, False, True]
    assert posted(bank, "shop") == "2.00"
    assert_sound(bank, ledger_url)


@pytest.mark.parametrize("is_guest", [False, True])
@pytest.mark.parametrize("key", [None, "refund"])
def test_payment_and_reversal_that_are_sent_twice_at_once(
    bank: Ledger, ledger_url: str, psql: Psql, key: str | None, is_guest: bool
) -> None:
    """Who comes second with a payment and its reversal finds both made meanwhile, and is answered with that."""
    paid = keyed_id(str(bank.ledger_id), "", "payment")
    batch: list[Command] = [
        Transfer(amount="10 USD", debit="alice", credit="shop", idempotency_key="payment"),
        Reverse(transaction_id=paid, amount="4 USD", idempotency_key=key),
    ]
    with ThreadPoolExecutor(1) as threads, psycopg.connect(ledger_url) as lent:
        with bank.join(lent, accounts=["alice", "shop"]) as first:
            first.handle(batch)
            second = threads.submit(_as_guest if is_guest else _by_itself, bank, ledger_url, batch)
            _await_waiting(psql)
        lent.commit()
        outcomes = second.result(SECONDS)
    assert [isinstance(each, Done) and each.replayed for each in outcomes] == [True, key is not None]
    assert posted(bank, "shop") == ("6.00" if key else "2.00")
    assert_sound(bank, ledger_url)


def _by_itself(bank: Ledger, _: str, batch: list[Command]) -> list[Any]:
    return bank.handle(batch)


def _as_guest(bank: Ledger, url: str, batch: list[Command]) -> list[Any]:
    with psycopg.connect(url) as lent, bank.join(lent) as guest:
        return guest.handle(batch)


def _await_waiting(psql: Psql) -> None:
    """Wait until somebody waits for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    tick = threading.Event()
    for _ in range(100 * SECONDS):
        if psql.execute(waiting).fetchall() != [(0,)]:
            return
        tick.wait(0.01)
    pytest.fail("nobody waits")
