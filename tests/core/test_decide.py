"""The rules about openings and entries as a table: given this past, asked for that, these events or this rejection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import pytest
from rules import (
    ASSET,
    CREDIT,
    DEBIT,
    LIABILITY,
    Acceptance,
    Rejection,
    book_of,
    check_acceptance,
    check_rejection,
    decided,
    deposit,
    moved,
    opened,
    opening,
    post,
    posted,
    transfer,
    withdraw,
)

from ledger import (
    AccountExists,
    AccountNotOpen,
    AssetExists,
    AssetMismatch,
    Command,
    DefineAsset,
    Deposit,
    Entry,
    IdempotencyConflict,
    InsufficientFunds,
    InvalidAmount,
    LimitExceeded,
    Reason,
    Rejected,
    UnbalancedTransaction,
    UnknownAccount,
    UnknownAsset,
    VersionConflict,
    credit,
    debit,
)
from ledger.core.commands import build
from ledger.core.decide import recall
from ledger.core.events import AccountOpened, AssetDefined
from ledger.core.money import MINOR_MAX


def define(asset: str, scale: int, **more: object) -> DefineAsset:
    """An asset to be defined."""
    return build(DefineAsset, asset=asset, scale=scale, **more)


REJECTIONS: tuple[Rejection, ...] = (
    Rejection(
        IdempotencyConflict("k", ["amount"]),
        when=transfer("6 USD", "world", "bob", idempotency_key="k"),
        asked_before=transfer("5 USD", "world", "bob", idempotency_key="k"),
    ),
    Rejection(
        IdempotencyConflict("k", ["account", "against", "credit", "debit", "type"]),
        when=build(Deposit, account="bob", amount="5 USD", against="world", idempotency_key="k"),
        asked_before=transfer("5 USD", "world", "bob", idempotency_key="k"),
    ),
    Rejection(
        IdempotencyConflict("k", ["metadata", "reference"]),
        when=transfer("5 USD", "world", "bob", idempotency_key="k", metadata={"a": 1}),
        asked_before=transfer("5 USD", "world", "bob", idempotency_key="k", reference="r"),
    ),
    Rejection(UnknownAsset("BTC"), when=opening("carol", "BTC")),
    Rejection(AssetExists("EUR", 2), when=define("EUR", 2)),
    Rejection(AssetExists("JPY", 0), when=define("JPY", 2)),
    Rejection(AssetExists("BTC", 8), when=define("BTC", 9), given=(AssetDefined("BTC", 8),)),
    Rejection(AccountExists("alice"), when=opening("alice")),
    Rejection(AccountExists("frozen"), when=opening("frozen", "EUR", "asset")),
    Rejection(UnknownAccount("nobody"), when=transfer("1 USD", "world", "nobody")),
    Rejection(UnknownAccount("nobody"), when=deposit("1 USD", "nobody", "world")),
    Rejection(UnknownAccount("nobody"), when=withdraw("1 USD", "alice", "nobody")),
    Rejection(UnknownAccount("nobody"), when=post(debit("nobody", "1 USD"), credit("bob", "1 USD"))),
    Rejection(AccountNotOpen("frozen", "frozen"), when=transfer("1 USD", "frozen", "bob")),
    Rejection(AccountNotOpen("frozen", "frozen"), when=transfer("1 USD", "world", "frozen")),
    Rejection(AccountNotOpen("frozen", "frozen"), when=deposit("1 USD", "frozen", "world")),
    Rejection(AccountNotOpen("frozen", "frozen"), when=withdraw("1 USD", "alice", "frozen")),
    Rejection(VersionConflict("alice", 1, 2), when=transfer("1 USD", "world", "alice", expected_versions={"alice": 1})),
    Rejection(
        VersionConflict("bob", 2, 1),
        when=transfer("1 USD", "world", "alice", expected_versions={"alice": 2, "bob": 2}),
    ),
    Rejection(VersionConflict("nobody", 1, 0), when=opening("carol", expected_versions={"nobody": 1})),
    Rejection(VersionConflict("alice", 3, 2), when=define("BTC", 8, expected_versions={"alice": 3})),
    Rejection(InvalidAmount("0.5 PTS", "PTS has 0 decimal places"), when=transfer("0.5 PTS", "points", "prize")),
    Rejection(
        InvalidAmount("0.1 PTS", "PTS has 0 decimal places"), when=opening("carol", "PTS", min_balance="0.1 PTS")
    ),
    Rejection(
        InvalidAmount("0.01 USD", "the turnover of full would have more than 38 digits"),
        when=transfer("0.01 USD", "world", "full"),
    ),
    Rejection(AssetMismatch("alice", "USD", "EUR"), when=transfer("1 EUR", "alice", "bob")),
    Rejection(AssetMismatch("world", "USD", "EUR"), when=transfer("1 EUR", "world:eur", "world")),
    Rejection(AssetMismatch("world", "USD", "GBP"), when=deposit("1 GBP", "alice", "world")),
    Rejection(AssetMismatch("points", "PTS", "USD"), when=transfer("0.50 USD", "points", "alice")),
    Rejection(
        UnbalancedTransaction("USD", "5.00 USD", "4.99 USD"),
        when=post(debit("world", "5 USD"), credit("bob", "4.99 USD")),
    ),
    Rejection(
        UnbalancedTransaction("USD", "10.00 USD", "0.00 USD"),
        when=post(debit("world", "5 USD"), debit("world", "5 USD")),
    ),
    Rejection(
        UnbalancedTransaction("EUR", "0.00 EUR", "5.00 EUR"),
        when=post(debit("world", "5 USD"), credit("bob", "5 USD"), credit("world:eur", "5 EUR")),
    ),
    Rejection(
        InsufficientFunds("alice", available="100.00 USD", required="100.01 USD", minimum="0.00 USD"),
        when=transfer("100.01 USD", "alice", "bob"),
    ),
    Rejection(
        InsufficientFunds("alice", available="100.00 USD", required="200.00 USD", minimum="0.00 USD"),
        when=withdraw("200 USD", "alice", "world"),
    ),
    Rejection(
        InsufficientFunds("cash", available="0.00 USD", required="0.01 USD", minimum="0.00 USD"),
        when=withdraw("0.01 USD", "cash", "world"),
    ),
    Rejection(
        InsufficientFunds("overdraft", available="20.00 USD", required="20.01 USD", minimum="-50.00 USD"),
        when=transfer("20.01 USD", "overdraft", "world"),
        given=(opened("overdraft", lowest=-50_00), posted("overdraft", DEBIT, 30_00)),
    ),
    Rejection(
        InsufficientFunds("reserve", available="-10.00 USD", required="1.00 USD", minimum="10.00 USD"),
        when=transfer("1 USD", "reserve", "world"),
        given=(opened("reserve", lowest=10_00),),
    ),
    Rejection(
        InsufficientFunds("alice", available="100.00 USD", required="120.00 USD", minimum="0.00 USD"),
        when=post(debit("alice", "60 USD"), credit("bob", "120 USD"), debit("alice", "60 USD")),
    ),
    Rejection(
        LimitExceeded("capped", balance="100.01 USD", maximum="100.00 USD"),
        when=transfer("100.01 USD", "world", "capped"),
    ),
    Rejection(
        LimitExceeded("safe", balance="0.01 USD", maximum="0.00 USD"),
        when=deposit("0.01 USD", "safe", "world"),
        given=(opened("safe", ASSET, highest=0),),
    ),
)


@pytest.mark.parametrize("row", REJECTIONS, ids=lambda row: str(row.then)[:60])
def test_rejections(row: Rejection) -> None:
    """Each rule refuses what it must, with the facts that a caller needs to act."""
    check_rejection(row)


class Flaw(NamedTuple):
    """What makes a transaction break one rule: entries, and what is expected of versions."""

    reason: Reason
    entries: tuple[Entry, ...]
    expected_versions: tuple[tuple[str, int], ...] = ()


FLAWS: tuple[Flaw, ...] = (
    Flaw(Reason.UNKNOWN_ACCOUNT, (debit("nobody", "1 USD"), credit("world", "1 USD"))),
    Flaw(Reason.ACCOUNT_NOT_OPEN, (debit("world", "1 USD"), credit("frozen", "1 USD"))),
    Flaw(Reason.VERSION_CONFLICT, (debit("world", "1 USD"), credit("bob", "1 USD")), (("bob", 9),)),
    Flaw(Reason.INVALID_AMOUNT, (debit("points", "0.5 PTS"), credit("prize", "0.5 PTS"))),
    Flaw(Reason.INVALID_AMOUNT, (debit("world", "1 USD"), credit("full", "1 USD"))),
    Flaw(Reason.ASSET_MISMATCH, (debit("world", "1 EUR"), credit("bob", "1 EUR"))),
    Flaw(Reason.UNBALANCED_TRANSACTION, (debit("world", "1 USD"),)),
    Flaw(Reason.INSUFFICIENT_FUNDS, (debit("cash", "1 USD"), credit("cash", "2 USD"), debit("world", "1 USD"))),
    Flaw(Reason.LIMIT_EXCEEDED, (debit("world", "101 USD"), credit("capped", "101 USD"))),
)


@pytest.mark.parametrize(
    "flaws",
    [pair for pair in permutations(FLAWS, 2) if pair[0].reason is not pair[1].reason],
    ids=lambda pair: f"{pair[0].reason}, {pair[1].reason}",
)
def test_first_reason_wins(flaws: Sequence[Flaw]) -> None:
    """A transaction that breaks two rules gets the earlier reason, wherever in it they are broken."""
    entries = [entry for flaw in flaws for entry in flaw.entries]
    expected = dict(version for flaw in flaws for version in flaw.expected_versions)

    with pytest.raises(Rejected) as rejection:
        decided(post(*entries, expected_versions=expected), book_of())

    order = list(Reason)
    assert rejection.value.reason is min((flaw.reason for flaw in flaws), key=order.index)


@pytest.mark.parametrize(
    ("reason", "command"),
    [
        (Reason.ASSET_EXISTS, define("EUR", 2, expected_versions={"alice": 9})),
        (Reason.UNKNOWN_ASSET, opening("alice", "BTC", expected_versions={"alice": 9})),
        (Reason.ACCOUNT_EXISTS, opening("alice", "PTS", expected_versions={"alice": 9}, min_balance="0.1 PTS")),
        (Reason.VERSION_CONFLICT, opening("carol", "PTS", expected_versions={"alice": 9}, min_balance="0.1 PTS")),
        (Reason.UNKNOWN_ACCOUNT, deposit("1 USD", "frozen", "nobody")),
        (Reason.UNKNOWN_ACCOUNT, withdraw("1 USD", "nobody", "frozen")),
        (Reason.UNKNOWN_ACCOUNT, withdraw("1 USD", "frozen", "nobody")),
        (Reason.ACCOUNT_NOT_OPEN, deposit("1 EUR", "alice", "frozen")),
        (Reason.INSUFFICIENT_FUNDS, transfer("101 USD", "alice", "capped")),
        (Reason.INSUFFICIENT_FUNDS, withdraw("101 USD", "cash", "capped:asset")),
        (Reason.INSUFFICIENT_FUNDS, deposit("101 USD", "capped:asset", "cash")),
    ],
)
def test_first_reason_wins_in_every_command(reason: Reason, command: Command) -> None:
    """What holds for a transaction of many entries holds for its shorthands, openings and definitions."""
    with pytest.raises(Rejected) as rejection:
        decided(command, book_of(opened("capped:asset", ASSET, highest=0)))

    assert rejection.value.reason is reason


ACCEPTANCES: dict[str, Acceptance] = {
    "an asset is defined": Acceptance(define("BTC", 8), [AssetDefined("BTC", 8)]),
    "an account of a defined asset opens": Acceptance(
        opening("carol", "PTS", metadata={"vip": True}),
        [AccountOpened("carol", LIABILITY, "PTS", 0, None, None, {"vip": True})],
    ),
    "a currency is defined at its first use": Acceptance(
        opening("carol", "KWD", "asset", min_balance="-1.5", max_balance=2),
        [AssetDefined("KWD", 3), AccountOpened("carol", ASSET, "KWD", 3, -1500, 2000, {})],
    ),
    "a currency keeps the scale that the log gave it": Acceptance(
        opening("carol", "CHF", min_balance=1),
        [AccountOpened("carol", LIABILITY, "CHF", 4, 10000, None, {})],
        given=(AssetDefined("CHF", 4),),
    ),
    "an account may open below its minimum": Acceptance(
        opening("carol", min_balance=5), [AccountOpened("carol", LIABILITY, "USD", 2, 500, None, {})]
    ),
    "a transfer": Acceptance(
        transfer("12.50 USD", "alice", "bob"), moved(("alice", DEBIT, 1250), ("bob", CREDIT, 1250))
    ),
    "everything there is": Acceptance(
        transfer("100 USD", "alice", "capped"), moved(("alice", DEBIT, 100_00), ("capped", CREDIT, 100_00))
    ),
    "a deposit to a credit-normal account": Acceptance(
        deposit("5 USD", "bob", "world"), moved(("world", DEBIT, 500), ("bob", CREDIT, 500))
    ),
    "a deposit to a debit-normal account": Acceptance(
        deposit("5 USD", "cash", "world"), moved(("cash", DEBIT, 500), ("world", CREDIT, 500))
    ),
    "a withdrawal from a credit-normal account": Acceptance(
        withdraw("5 USD", "alice", "world"), moved(("alice", DEBIT, 500), ("world", CREDIT, 500))
    ),
    "a withdrawal from a debit-normal account": Acceptance(
        withdraw("5 USD", "cash", "world"),
        moved(("world", DEBIT, 500), ("cash", CREDIT, 500)),
        given=(posted("cash", DEBIT, 500),),
    ),
    "a deposit raises both sides where both grow": Acceptance(
        deposit("5 USD", "alice", "cash"), moved(("cash", DEBIT, 500), ("alice", CREDIT, 500))
    ),
    "an exchange through trading accounts": Acceptance(
        post(debit("alice", "10 USD"), credit("world", "10 USD"), debit("world:eur", "9 EUR"), credit("eva", "9 EUR")),
        moved(
            ("alice", DEBIT, 1000),
            ("world", CREDIT, 1000),
            ("world:eur", DEBIT, 900, "EUR"),
            ("eva", CREDIT, 900, "EUR"),
        ),
        given=(opened("eva", asset="EUR", lowest=0),),
    ),
    "an account on both sides of a transaction": Acceptance(
        post(debit("alice", "500 USD"), credit("alice", "500 USD")),
        moved(("alice", DEBIT, 500_00), ("alice", CREDIT, 500_00)),
    ),
    "limits see the whole transaction": Acceptance(
        post(debit("bob", "50 USD"), credit("capped", "150 USD"), debit("capped", "150 USD"), credit("bob", "50 USD")),
        moved(("bob", DEBIT, 50_00), ("capped", CREDIT, 150_00), ("capped", DEBIT, 150_00), ("bob", CREDIT, 50_00)),
    ),
    "one account several times on one side": Acceptance(
        post(debit("alice", "60 USD"), credit("bob", "100 USD"), debit("alice", "40 USD")),
        moved(("alice", DEBIT, 60_00), ("bob", CREDIT, 100_00), ("alice", DEBIT, 40_00)),
    ),
    "an overdraft to its end": Acceptance(
        transfer("20 USD", "overdraft", "world"),
        moved(("overdraft", DEBIT, 20_00), ("world", CREDIT, 20_00)),
        given=(opened("overdraft", lowest=-50_00), posted("overdraft", DEBIT, 30_00)),
    ),
    "coming back from below the minimum": Acceptance(
        transfer("1 USD", "world", "low"),
        moved(("world", DEBIT, 100), ("low", CREDIT, 100)),
        given=(opened("low", lowest=0), posted("low", DEBIT, 30_00)),
    ),
    "coming back from above the maximum": Acceptance(
        transfer("1 USD", "high", "world"),
        moved(("high", DEBIT, 100), ("world", CREDIT, 100)),
        given=(opened("high", highest=0), posted("high", CREDIT, 30_00)),
    ),
    "standing still beyond both limits": Acceptance(
        post(debit("low", "5 USD"), credit("low", "5 USD")),
        moved(("low", DEBIT, 500), ("low", CREDIT, 500)),
        given=(opened("low", lowest=0), posted("low", DEBIT, 30_00)),
    ),
    "an account without limits goes below zero": Acceptance(
        transfer("1000000 USD", "world", "bob"), moved(("world", DEBIT, 1000000_00), ("bob", CREDIT, 1000000_00))
    ),
    "the last of 38 digits": Acceptance(
        transfer("0.01 USD", "world", "nearly"),
        moved(("world", DEBIT, 1), ("nearly", CREDIT, 1)),
        given=(opened("nearly"), posted("nearly", CREDIT, MINOR_MAX - 1)),
    ),
    "the other side of a full account": Acceptance(
        transfer("1 USD", "full", "world"), moved(("full", DEBIT, 100), ("world", CREDIT, 100))
    ),
    "expected versions that hold": Acceptance(
        transfer("1 USD", "world", "alice", expected_versions={"alice": 2, "world": 2, "nobody": 0}),
        moved(("world", DEBIT, 100), ("alice", CREDIT, 100)),
    ),
    "more decimals than the asset has, all zero": Acceptance(
        transfer("5.000 PTS", "points", "prize"), moved(("points", DEBIT, 5, "PTS"), ("prize", CREDIT, 5, "PTS"))
    ),
    "fewer decimals than the asset has": Acceptance(
        transfer("0.5 BTC", "coins", "purse"),
        moved(("coins", DEBIT, 50_000_000, "BTC"), ("purse", CREDIT, 50_000_000, "BTC")),
        given=(AssetDefined("BTC", 8), opened("coins", asset="BTC", scale=8), opened("purse", asset="BTC", scale=8)),
    ),
}


@pytest.mark.parametrize("row", ACCEPTANCES.values(), ids=ACCEPTANCES.keys())
def test_acceptances(row: Acceptance) -> None:
    """What no rule objects to happens, as exactly these events, and only when they are appended."""
    check_acceptance(row)


def test_money_held_for_going_out_is_not_available() -> None:
    """What is held counts against the minimum, and what is held for coming in counts against the maximum."""
    book = book_of()
    alice, capped = book.stream("alice"), book.stream("capped")
    alice.numbers = alice.numbers._replace(pending_debits=30_00)
    capped.numbers = capped.numbers._replace(pending_credits=30_00)

    with pytest.raises(InsufficientFunds, match=r"70\.00 USD available"):
        decided(transfer("70.01 USD", "alice", "bob"), book)
    with pytest.raises(LimitExceeded, match=r"would reach 100\.01 USD"):
        decided(transfer("70.01 USD", "world", "capped"), book)
    assert decided(transfer("70 USD", "alice", "capped"), book)


def test_repeated_request_is_recalled() -> None:
    """The same request under its key is no conflict, whatever the spelling, context or expected versions."""
    first = transfer("5 USD", "world", "bob", idempotency_key="k")

    recall(
        transfer("5.00 USD", "world", "bob", idempotency_key="k", actor="x", expected_versions={"bob": 7}),
        first.request(),
    )
