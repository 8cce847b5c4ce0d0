"""Holds from end to end: money set aside is pending at once, is captured, released or expires, and is never lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
import pytest
from invariants import assert_sound, projections, repairs

from ledger import (
    Done,
    ExceedsRest,
    ExpireHold,
    Hold,
    HoldNotOpen,
    IdempotencyConflict,
    InsufficientFunds,
    Ledger,
    UnknownTransaction,
    VersionConflict,
    Withdraw,
)
from ledger.operations import Operations
from ledger.storage.projector import DUE_MAX

Psql = psycopg.Connection[Any]


def numbers(ledger: Ledger, account: str) -> tuple[str, str, str]:
    """Posted, pending and available, as text."""
    balance = ledger.balance(account)
    return str(balance.posted.decimal), str(balance.pending.decimal), str(balance.available.decimal)


def soon(psql: Psql) -> datetime:
    """A moment a little ahead, by the clock of the database."""
    ((moment,),) = psql.execute("SELECT clock_timestamp() + interval '300 ms'").fetchall()
    assert isinstance(moment, datetime)
    return moment


def await_expiry(psql: Psql) -> None:
    """Wait until all holds that expire are due, by the clock of the database."""
    for _ in range(100_000):
        if psql.execute("SELECT max(expires_at) < clock_timestamp() FROM holds").fetchall() == [(True,)]:
            return
    pytest.fail("the clock of the database stands still")


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """A ledger in which alice owns 100.00 USD and may not overdraw."""
    ledger.open_account("world", asset="USD", type="equity")
    for account in ("alice", "shop"):
        ledger.open_account(account, asset="USD", type="liability", min_balance=0)
    ledger.deposit("alice", "100 USD", against="world")
    return ledger


def hold(ledger: Operations, amount: str = "20 USD", **more: Any) -> Done:
    """Set alice's money aside for the shop."""
    return ledger.hold(amount, debit="alice", credit="shop", **more)


# Placed, captured, released


def test_hold_is_pending_at_once_on_both_accounts(bank: Ledger, ledger_url: str) -> None:
    """What is held cannot be spent again by who gives it, nor yet by who will receive it."""
    done = hold(bank)
    assert numbers(bank, "alice") == ("100.00", "-20.00", "80.00")
    assert numbers(bank, "shop") == ("0.00", "20.00", "0.00")
    assert done.balances == {account: bank.balance(account) for account in ("alice", "shop")}
    with pytest.raises(InsufficientFunds):
        hold(bank, "80.01 USD")
    with pytest.raises(InsufficientFunds):
        bank.withdraw("shop", "1 USD", against="world")
    assert_sound(bank, ledger_url)


def test_partial_and_repeated_captures_end_with_a_final_one(bank: Ledger, ledger_url: str) -> None:
    """Each capture posts its part; the final one posts its own and releases the rest, as two events a side."""
    placed = hold(bank)
    bank.capture(placed, "5 USD")
    assert numbers(bank, "alice") == ("95.00", "-15.00", "80.00")
    assert numbers(bank, "shop") == ("5.00", "15.00", "5.00")
    with pytest.raises(ExceedsRest) as refused:
        bank.capture(placed, "15.01 USD")
    assert refused.value.left == "15.00 USD"
    final = bank.capture(placed, "5 USD", final=True)
    assert [(event.stream, event.type, event.amount) for event in final.events] == [
        ("alice", "hold_captured", 500),
        ("shop", "hold_captured", 500),
        ("alice", "hold_released", 1000),
        ("shop", "hold_released", 1000),
    ]
    assert numbers(bank, "alice") == ("90.00", "0.00", "90.00")
    assert numbers(bank, "shop") == ("10.00", "0.00", "10.00")
    with pytest.raises(HoldNotOpen):
        bank.capture(placed)
    assert_sound(bank, ledger_url)


def test_capture_without_an_amount_takes_all_that_is_left(bank: Ledger, ledger_url: str) -> None:
    """A capture that names no amount posts the rest of its hold."""
    placed = hold(bank)
    bank.capture(placed, "7 USD")
    bank.capture(str(placed.transaction_id))
    assert numbers(bank, "shop") == ("20.00", "0.00", "20.00")
    assert_sound(bank, ledger_url)


def test_releases_give_the_money_back(bank: Ledger, ledger_url: str) -> None:
    """A part, then all that is left, is available again; then nothing is left to release."""
    placed = hold(bank)
    bank.release(placed, "5 USD")
    assert numbers(bank, "alice") == ("100.00", "-15.00", "85.00")
    bank.release(placed)
    assert numbers(bank, "alice") == ("100.00", "0.00", "100.00")
    assert numbers(bank, "shop") == ("0.00", "0.00", "0.00")
    with pytest.raises(HoldNotOpen):
        bank.release(placed)
    assert_sound(bank, ledger_url)


@pytest.mark.parametrize("act", [Ledger.capture, Ledger.release])
def test_only_a_hold_can_be_taken_up(bank: Ledger, act: Callable[..., Done]) -> None:
    """Another transaction is not a hold, and its id leads to none."""
    transfer = bank.transfer("1 USD", debit="alice", credit="shop")
    with pytest.raises(UnknownTransaction):
        act(bank, transfer)


def test_each_step_replays_its_answer(bank: Ledger, ledger_url: str) -> None:
    """A hold, a capture and a release that are sent twice happen once, and answer alike, whatever came between."""
    placed = hold(bank, idempotency_key="hold")
    captured = bank.capture(placed, "5 USD", idempotency_key="capture")
    released = bank.release(placed, idempotency_key="release")
    again = [
        hold(bank, idempotency_key="hold"),
        bank.capture(placed, "5 USD", idempotency_key="capture"),
        bank.release(placed, idempotency_key="release"),
    ]
    for first, second in zip([placed, captured, released], again, strict=True):
        assert second.replayed
        assert not first.replayed
        assert (second.transaction, second.events, second.balances) == (first.transaction, first.events, first.balances)
    with pytest.raises(IdempotencyConflict) as conflict:
        bank.capture(placed, "6 USD", idempotency_key="capture")
    assert conflict.value.differing == ["amount"]
    assert numbers(bank, "shop") == ("5.00", "0.00", "5.00")
    assert_sound(bank, ledger_url)


def test_holds_are_listed_by_status(bank: Ledger, psql: Psql) -> None:
    """Each side's holds can be asked for by what became of them, page by page."""
    placed = {
        "captured": hold(bank, "1 USD"),
        "released": hold(bank, "2 USD"),
        "expired": hold(bank, "3 USD", expires_at=soon(psql)),
        "open": hold(bank, "4 USD"),
    }
    bank.capture(placed["captured"])
    bank.release(placed["released"])
    await_expiry(psql)
    assert bank.expire_holds() == 1
    for account in ("alice", "shop"):
        for status, done in placed.items():
            (line,) = bank.holds(account, status=status)
            assert (line.hold, line.account, line.state) == (done.transaction_id, account, status)
            assert line.captured.minor + line.released.minor + line.expired.minor + line.left.minor == line.amount.minor
        first = bank.holds(account, limit=3)
        assert len(first) == 3
        rest = bank.holds(account, after=first[-1].hold)
        assert [line.state for line in first + rest] == ["captured", "released", "expired", "open"]


# Expiry


def test_expiry_is_honoured_when_no_sweeper_ever_ran(bank: Ledger, ledger_url: str, psql: Psql) -> None:
    """The next decision on an account expires its due holds first, in a transaction of their own."""
    placed = hold(bank, "30 USD", expires_at=soon(psql))
    with pytest.raises(InsufficientFunds):
        bank.withdraw("alice", "80 USD", against="world")
    await_expiry(psql)
    done = bank.withdraw("alice", "80 USD", against="world")
    assert numbers(bank, "alice") == ("20.00", "0.00", "20.00")
    assert numbers(bank, "shop") == ("0.00", "0.00", "0.00")
    last, before = bank.history("alice", before_version=done.versions["alice"] + 1, limit=2)
    assert (last.type, before.type) == ("entry_posted", "hold_expired")
    assert before.transaction_id != last.transaction_id
    assert bank.expire_holds() == 0
    with pytest.raises(HoldNotOpen) as refused:
        bank.capture(placed)
    assert refused.value.state == "expired"
    assert_sound(bank, ledger_url)


def test_late_capture_is_refused_by_the_clock(bank: Ledger, ledger_url: str, psql: Psql) -> None:
    """A hold whose time is over cannot be captured, although nothing has expired it yet."""
    placed = hold(bank, expires_at=soon(psql))
    await_expiry(psql)
    with pytest.raises(HoldNotOpen) as refused:
        bank.capture(placed)
    assert refused.value.state == "expired"
    bank.expire_holds()
    assert numbers(bank, "alice") == ("100.00", "0.00", "100.00")
    assert_sound(bank, ledger_url)


def test_sweeper_expires_what_is_left_once(bank: Ledger, ledger_url: str, psql: Psql) -> None:
    """The sweeper expires the rest of each due hold, leaves the others alone, and has nothing to do a second time."""
    moment = soon(psql)
    partly = hold(bank, "10 USD", expires_at=moment)
    bank.capture(partly, "4 USD")
    for _ in range(5):
        hold(bank, "1 USD", expires_at=moment)
    hold(bank, "2 USD")
    await_expiry(psql)
    steps: list[int] = []
    assert bank.expire_holds(progress=steps.append) == 6
    assert steps[-1] == 6
    assert bank.expire_holds() == 0
    assert numbers(bank, "alice") == ("96.00", "-2.00", "94.00")
    assert [str(line.expired) for line in bank.holds("alice", status="captured")] == ["6.00 USD"]
    assert_sound(bank, ledger_url)


def test_expiry_replays_its_answer(bank: Ledger, ledger_url: str, psql: Psql) -> None:
    """A hold that is expired twice under one key expires once, and is answered alike."""
    placed = hold(bank, expires_at=soon(psql))
    command = ExpireHold(hold=placed.transaction.transaction_id, idempotency_key="expiry")
    await_expiry(psql)
    (first,), (second,) = bank.handle([command]), bank.handle([command])
    assert isinstance(first, Done)
    assert second == first._replace(replayed=True)
    assert numbers(bank, "alice") == ("100.00", "0.00", "100.00")
    assert_sound(bank, ledger_url)


def test_expiry_at_the_end_of_a_batch_frees_its_beginning(bank: Ledger, ledger_url: str, psql: Psql) -> None:
    """Whoever sends an expiry along after something else is not refused by the hold whose time is over."""
    placed = hold(bank, "90 USD", expires_at=soon(psql))
    await_expiry(psql)
    withdrawal = Withdraw(account="alice", amount="80 USD", against="world")
    outcomes = bank.handle([withdrawal, ExpireHold(hold=placed.transaction.transaction_id)])
    assert isinstance(outcomes[0], Done)
    assert isinstance(outcomes[1], HoldNotOpen)
    assert_sound(bank, ledger_url)


def test_expiry_at_the_beginning_of_a_batch_is_its_own(bank: Ledger, psql: Psql) -> None:
    """Whoever sends an expiry first is answered that it happened, and what follows sees it."""
    placed = hold(bank, "90 USD", expires_at=soon(psql))
    await_expiry(psql)
    withdrawal = Withdraw(account="alice", amount="80 USD", against="world")
    outcomes = bank.handle([ExpireHold(hold=placed.transaction.transaction_id), withdrawal])
    assert [type(outcome) for outcome in outcomes] == [Done, Done]


@pytest.mark.parametrize("is_guest", [False, True])
def test_expiry_lasts_when_the_batch_does_not(bank: Ledger, ledger_url: str, psql: Psql, is_guest: bool) -> None:
    """The version that a refusal names is the account's: who reads and tries again, as it says, gets on."""
    hold(bank, "30 USD", expires_at=soon(psql))
    await_expiry(psql)
    read = bank.balance("alice").version
    with psycopg.connect(ledger_url) as connection, bank.join(connection) as guest:
        ledger = guest if is_guest else bank
        (refused,) = ledger.handle([_withdrawal_at(read)], atomic=True)
        assert isinstance(refused, VersionConflict)
        assert ledger.balance("alice").version == refused.actual
        (done,) = ledger.handle([_withdrawal_at(refused.actual)], atomic=True)
        assert isinstance(done, Done)
    assert_sound(bank, ledger_url)


def _withdrawal_at(version: int) -> Withdraw:
    return Withdraw(account="alice", amount="80 USD", against="world", expected_versions={"alice": version})


MANY = DUE_MAX + 100
"""More holds than are expired at once."""


@pytest.fixture
def crowded(bank: Ledger, psql: Psql) -> Ledger:
    """The ledger when very many holds have fallen due, and nothing has expired them: 11.00 USD are said to be held."""
    ((due,),) = psql.execute("SELECT clock_timestamp() + interval '2 seconds'").fetchall()
    small = Hold(amount="0.01 USD", debit="alice", credit="shop", expires_at=due)
    placed = bank.handle([small] * MANY)
    assert all(isinstance(outcome, Done) for outcome in placed)
    await_expiry(psql)
    return bank


@pytest.mark.parametrize("dry_run", [False, True])
def test_no_number_of_due_holds_is_overstated(crowded: Ledger, ledger_url: str, dry_run: bool) -> None:
    """However many holds of an account are due, all of them expire before anything is decided about it."""
    (done,) = crowded.handle([Withdraw(account="alice", amount="100 USD", against="world")], dry_run=dry_run)
    assert isinstance(done, Done)
    assert numbers(crowded, "shop") == (("0.00", "11.00", "0.00") if dry_run else ("0.00", "0.00", "0.00"))
    assert_sound(crowded, ledger_url)


def test_guest_expires_any_number_of_holds(crowded: Ledger, ledger_url: str) -> None:
    """In the application's transaction as well, and they last as it does."""
    with psycopg.connect(ledger_url) as connection, crowded.join(connection) as guest:
        guest.withdraw("alice", "100 USD", against="world")
    assert numbers(crowded, "shop") == ("0.00", "0.00", "0.00")
    assert_sound(crowded, ledger_url)


def test_sweeper_counts_all_that_it_expires(crowded: Ledger, ledger_url: str) -> None:
    """Page by page each hold is expired by its own command, and none by the page before."""
    steps: list[int] = []
    assert crowded.expire_holds(progress=steps.append) == MANY
    assert steps == sorted(set(steps))
    assert_sound(crowded, ledger_url)


# By hand, damaged, and in somebody else's transaction


def _append_by_hand(psql: Psql, sides: list[tuple[str, str, str, int]]) -> None:
    """Append events of a hold (account, type, direction, amount) in a transaction that announces them."""
    heads = dict(psql.execute("SELECT stream, max(version) FROM events GROUP BY 1").fetchall())
    lines = []
    for account, *rest in sides:
        heads[account] += 1
        lines.append((account, heads[account], *rest))
    with psql.transaction():
        ((transaction,),) = psql.execute(
            "INSERT INTO transactions (transaction_id, kind, scope, request, entry_count, announced,"
            " effective_at, recorded_at, header_hash) VALUES (gen_random_uuid(), 'capture', '', '{}', %s, %s,"
            " now(), now(), sha256('')) RETURNING transaction_id",
            (len(lines), [f"{line[0]} {line[1]}" for line in lines]),
        ).fetchall()
        psql.execute(
            "INSERT INTO events (stream, version, transaction_id, type, payload, schema, asset, direction, amount,"
            " posted_debits, posted_credits, pending_debits, pending_credits, effective_at, recorded_at, prev_hash,"
            " event_hash) SELECT stream, version, %s, type, '{}', 1, 'USD', direction, amount, 0, 0, 0, 0, now(),"
            " now(), sha256(''), sha256('')"
            " FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::numeric[])"
            " AS e (stream, version, type, direction, amount)",
            (transaction, *(list(column) for column in zip(*lines, strict=True))),
        )


CAPTURED = [("alice", "hold_captured", "debit", 5), ("shop", "hold_captured", "credit", 5)]
RELEASED = [("alice", "hold_released", "debit", 5), ("shop", "hold_released", "credit", 5)]


def test_hold_events_by_hand_are_possible(bank: Ledger, psql: Psql) -> None:
    """The attacks below fail for their own reason: the same append without a fault is accepted."""
    hold(bank)
    _append_by_hand(psql, CAPTURED + RELEASED)
    assert psql.execute("SELECT count(*) FROM events WHERE type = 'hold_captured'").fetchall() == [(2,)]


@pytest.mark.parametrize(
    "sides",
    [
        pytest.param(CAPTURED[:1], id="captured on one side"),
        pytest.param([CAPTURED[0], ("shop", "hold_captured", "credit", 6)], id="captured unequally"),
        pytest.param([CAPTURED[0], RELEASED[1]], id="posted on one side and released on the other"),
        pytest.param([CAPTURED[0], ("shop", "entry_posted", "credit", 5)], id="captured against an entry"),
        pytest.param([*CAPTURED, RELEASED[0]], id="released on one side"),
    ],
)
def test_guard_refuses_unbalanced_events_of_a_hold(
    bank: Ledger, psql: Psql, sides: list[tuple[str, str, str, int]]
) -> None:
    """The database sums posted and pending numbers apart: neither may hide a fault of the other."""
    hold(bank)
    with pytest.raises(psycopg.Error) as refused:
        _append_by_hand(psql, sides)
    assert refused.value.sqlstate == "LD004"
    assert bank.verify().ok


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM holds",
        "UPDATE holds SET captured = amount",
        "UPDATE holds SET released = 100 WHERE account = 'alice'",
        "UPDATE holds SET expires_at = now() - interval '1 day'",
    ],
)
def test_damaged_hold_is_found_and_rebuilt(bank: Ledger, ledger_url: str, psql: Psql, damage: str) -> None:
    """What anyone but the ledger wrote about a hold is seen by `verify`, and made anew from the log."""
    hold(bank)
    before = projections(ledger_url)
    psql.execute(damage.encode())
    assert not bank.verify().ok
    bank.rebuild()
    assert projections(ledger_url) == before
    assert repairs(ledger_url) > 0
    assert_sound(bank, ledger_url)


def test_damaged_hold_is_healed_by_the_next_capture(bank: Ledger, ledger_url: str, psql: Psql) -> None:
    """A hold that a person with `psql` called captured is still captured, as the log knows it, and once."""
    placed = hold(bank)
    psql.execute("UPDATE holds SET captured = amount")
    bank.capture(placed)
    assert numbers(bank, "shop") == ("20.00", "0.00", "20.00")
    assert repairs(ledger_url) > 0
    assert_sound(bank, ledger_url)


@pytest.mark.parametrize("lasts", [True, False])
def test_holds_share_the_fate_of_the_application(bank: Ledger, ledger_url: str, lasts: bool) -> None:
    """A hold and its capture in the application's transaction last as it does, and vanish as it does."""
    with psycopg.connect(ledger_url) as connection:
        with bank.join(connection, accounts=["alice", "shop"]) as guest:
            placed = hold(guest)
            guest.capture(placed, "5 USD")
            assert str(guest.balance("alice").available) == "80.00 USD"
            assert guest.holds("alice", status="open")[0].hold == placed.transaction_id
        if not lasts:
            connection.rollback()
    assert numbers(bank, "alice") == (("95.00", "-15.00", "80.00") if lasts else ("100.00", "0.00", "100.00"))
    assert len(bank.holds("alice")) == int(lasts)
    assert_sound(bank, ledger_url)


def test_guest_expires_what_is_due(bank: Ledger, ledger_url: str, psql: Psql) -> None:
    """Due holds are expired first in the application's transaction as well."""
    hold(bank, "30 USD", expires_at=soon(psql))
    await_expiry(psql)
    with psycopg.connect(ledger_url) as connection, bank.join(connection, accounts=["alice"]) as guest:
        guest.withdraw("alice", "80 USD", against="world")
    assert numbers(bank, "alice") == ("20.00", "0.00", "20.00")
    assert_sound(bank, ledger_url)
