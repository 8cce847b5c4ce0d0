"""What an account may do as it is frozen, unfrozen, closed and changed; each change is an event with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from invariants import assert_sound

from ledger import (
    AccountNotEmpty,
    AccountNotOpen,
    Done,
    InsufficientFunds,
    InvalidCommand,
    Ledger,
    LimitExceeded,
    Rejected,
    TransitionRefused,
)
from ledger.core.commands import CloseAccount, Deposit, Freeze, Unfreeze, Withdraw, build


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """A ledger in which alice owns 100.00 USD and may not overdraw."""
    ledger.open_account("world", asset="USD", type="equity")
    for account in ("alice", "shop"):
        ledger.open_account(account, asset="USD", type="liability", min_balance=0)
    ledger.deposit("alice", "100 USD", against="world")
    return ledger


def test_frozen_account_refuses_entries_and_lets_go_of_them(bank: Ledger, ledger_url: str) -> None:
    """No entry, hold or capture while an account is frozen; releases and reversals go on; unfrozen, all does."""
    paid = bank.transfer("10 USD", debit="alice", credit="shop")
    placed = bank.hold("5 USD", debit="alice", credit="shop")
    bank.freeze("alice", reason="court order", actor="legal")
    refused: list[Callable[[], object]] = [
        lambda: bank.deposit("alice", "1 USD", against="world"),
        lambda: bank.hold("1 USD", debit="alice", credit="shop"),
        lambda: bank.capture(placed, "1 USD"),
    ]
    for act in refused:
        with pytest.raises(AccountNotOpen) as error:
            act()
        assert (error.value.account, error.value.state) == ("alice", "frozen")
    bank.release(placed, "2 USD")
    bank.reverse(paid, "4 USD")
    assert str(bank.balance("alice").posted) == "94.00 USD"
    bank.unfreeze("alice")
    bank.capture(placed)
    assert str(bank.balance("alice").posted) == "91.00 USD"
    assert_sound(bank, ledger_url)


def test_freezing_is_an_event_with_actor_and_reason(bank: Ledger) -> None:
    """Who froze an account and why is in its history."""
    done = bank.freeze("alice", reason="court order", actor="legal")
    (event,) = bank.history("alice", after_version=done.versions["alice"] - 1)
    assert event.type == "account_state_changed"
    assert json.loads(event.payload) == {"state": "frozen", "reason": "court order"}
    assert bank.transaction(event.transaction_id).transaction.actor == "legal"
    assert bank.account("alice").terms.state == "frozen"


def test_step_that_an_account_cannot_take_names_those_it_can(bank: Ledger) -> None:
    """What is frozen cannot be frozen again or closed, and what is open cannot be unfrozen."""
    with pytest.raises(TransitionRefused) as refused:
        bank.unfreeze("alice")
    assert (refused.value.state, refused.value.event) == ("open", "unfreeze")
    assert "freeze" in refused.value.allowed
    bank.freeze("alice")
    for act in (bank.freeze, bank.close_account):
        with pytest.raises(TransitionRefused) as refused:
            act("alice")
        assert refused.value.state == "frozen"
        assert "unfreeze" in refused.value.allowed


def test_account_is_closed_only_when_nothing_is_in_it(bank: Ledger, ledger_url: str) -> None:
    """Neither with money nor with an open hold can an account be closed; at zero it can."""
    with pytest.raises(AccountNotEmpty):
        bank.close_account("alice")
    placed = bank.hold("5 USD", debit="alice", credit="shop")
    with pytest.raises(AccountNotEmpty) as refused:
        bank.close_account("shop")
    assert "5.00 USD" in refused.value.held
    bank.release(placed)
    bank.close_account("shop")
    bank.withdraw("alice", "100 USD", against="world")
    bank.close_account("alice")
    assert bank.account("alice").terms.state == "closed"
    assert_sound(bank, ledger_url)


def test_closed_account_refuses_everything_and_answers(bank: Ledger, ledger_url: str) -> None:
    """Nothing is ever done to a closed account again, a reversal included; what it was can still be asked."""
    paid = bank.transfer("10 USD", debit="alice", credit="shop")
    bank.withdraw("shop", "10 USD", against="world")
    bank.close_account("shop", reason="out of business")
    version = bank.balance("shop").version
    refused: list[Callable[[], object]] = [
        lambda: bank.deposit("shop", "1 USD", against="world"),
        lambda: bank.hold("1 USD", debit="alice", credit="shop"),
        lambda: bank.reverse(paid, force=True),
        lambda: bank.freeze("shop"),
        lambda: bank.unfreeze("shop"),
        lambda: bank.close_account("shop"),
        lambda: bank.change_account("shop", max_balance="1 USD"),
        lambda: bank.open_account("shop", asset="USD", type="liability"),
    ]
    for act in refused:
        with pytest.raises(Rejected):
            act()
    assert bank.balance("shop").version == version
    assert str(bank.balance("shop", version=2).posted) == "10.00 USD"
    assert len(bank.history("shop")) == version
    assert bank.holds("shop") == []
    assert_sound(bank, ledger_url)


def test_changed_limits_hold_from_then_on(bank: Ledger, ledger_url: str) -> None:
    """A limit that is changed is judged as it is at that version; what is not named stays as it was."""
    bank.change_account("alice", max_balance="150 USD")
    with pytest.raises(LimitExceeded):
        bank.deposit("alice", "51 USD", against="world")
    bank.change_account("alice", min_balance="-20 USD")
    bank.withdraw("alice", "120 USD", against="world")
    assert (bank.account("alice").terms.min_balance, bank.account("alice").terms.max_balance) == (-2000, 15000)
    bank.change_account("alice", min_balance="unlimited", max_balance="unlimited")
    bank.withdraw("alice", "1000 USD", against="world")
    bank.change_account("alice", min_balance="0 USD")
    with pytest.raises(InsufficientFunds):
        bank.withdraw("alice", "0.01 USD", against="world")
    bank.deposit("alice", "1120 USD", against="world")
    assert_sound(bank, ledger_url)


def test_change_is_an_event_with_actor_and_reason(bank: Ledger) -> None:
    """Limits and metadata after a change, all of them, are in the history with who changed them and why."""
    done = bank.change_account("alice", max_balance="7 USD", metadata={"tier": 2}, reason="review", actor="risk")
    (event,) = bank.history("alice", after_version=done.versions["alice"] - 1)
    assert event.type == "account_terms_changed"
    assert json.loads(event.payload) == {
        "min_balance": "0",
        "max_balance": "700",
        "metadata": {"tier": 2},
        "reason": "review",
    }
    assert done.transaction.actor == "risk"
    assert [line.account for line in bank.accounts(metadata={"tier": 2})] == ["alice"]
    with pytest.raises(InvalidCommand):
        bank.change_account("alice", reason="nothing")


def test_what_an_account_was_allowed_is_judged_at_its_version(bank: Ledger, ledger_url: str) -> None:
    """A batch sees each state that its own commands lead to, and the log verifies however the account ends."""
    outcomes = bank.handle(
        [
            build(Deposit, account="alice", amount="1 USD", against="world"),
            build(Freeze, account="alice"),
            build(Deposit, account="alice", amount="1 USD", against="world"),
            build(Unfreeze, account="alice"),
            build(Withdraw, account="alice", amount="101 USD", against="world"),
            build(CloseAccount, account="alice"),
            build(Deposit, account="alice", amount="1 USD", against="world"),
        ]
    )
    assert [isinstance(outcome, Done) for outcome in outcomes] == [True, True, False, True, True, True, False]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, AccountNotOpen)]
    assert [refusal.state for refusal in refusals] == ["frozen", "closed"]
    assert_sound(bank, ledger_url)


def test_state_change_is_replayed(bank: Ledger) -> None:
    """The same key freezes once; a second time it is the first answer and no refusal."""
    first = bank.freeze("alice", idempotency_key="freeze-1")
    bank.unfreeze("alice")
    assert bank.freeze("alice", idempotency_key="freeze-1").transaction == first.transaction
    assert bank.account("alice").terms.state == "open"
