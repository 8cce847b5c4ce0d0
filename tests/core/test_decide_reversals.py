"""The rules about reversals as a table: whole, in parts, in exact shares, and by force."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rules import (
    CLOSED_UNTIL,
    CREDIT,
    DEBIT,
    LIABILITY,
    TRANSACTION,
    Acceptance,
    Past,
    Rejection,
    book_of,
    check_acceptance,
    check_rejection,
    closed,
    decided,
    frozen,
    held,
    hold_id,
    moved,
    opened,
    posted,
    reverse,
)

from ledger import (
    AccountNotOpen,
    AssetMismatch,
    Direction,
    ExceedsRest,
    InsufficientFunds,
    InvalidAmount,
    LimitExceeded,
    NotReversible,
    PeriodIsClosed,
    Reason,
    Rejected,
    Reverse,
    UnknownTransaction,
    VersionConflict,
)
from ledger.core.book import Original, remember, replay
from ledger.core.canonical import utc_text
from ledger.core.events import EntryPosted, Event, HoldCaptured, HoldReleased, PeriodClosed
from ledger.core.money import MINOR_MAX, Money

SALE, REFUND, OTHER = hold_id(11), hold_id(12), hold_id(13)
BEFORE = CLOSED_UNTIL - timedelta(microseconds=1)
PERIOD = PeriodClosed(CLOSED_UNTIL, (), None)


def sold(*legs: tuple[str, Direction, int] | tuple[str, Direction, int, str]) -> Past:
    """A transaction of these entries."""
    return Past(SALE, "post", moved(*legs))


def refunded(*legs: tuple[str, Direction, int], of: str = SALE) -> Past:
    """A reversal that came before, of these entries."""
    return Past(REFUND, "reverse", moved(*legs), of)


PAID = sold(("alice", DEBIT, 20_00), ("bob", CREDIT, 20_00))
"""Alice paid bob 20.00 USD."""

PART_BACK = refunded(("alice", CREDIT, 15_00), ("bob", DEBIT, 15_00))
ALL_BACK = refunded(("alice", CREDIT, 20_00), ("bob", DEBIT, 20_00))

SPLIT = sold(("alice", DEBIT, 10_00), ("bob", CREDIT, 7_00), ("capped", CREDIT, 2_50), ("world", CREDIT, 50))
"""One pays ten, three get their shares."""

EXCHANGE = sold(
    ("alice", DEBIT, 10_00), ("world", CREDIT, 10_00), ("world:eur", DEBIT, 9_00, "EUR"), ("eva", CREDIT, 9_00, "EUR")
)
EVA = opened("eva", asset="EUR", lowest=0)

HOLD = held(20_00, "alice", "bob")
CAPTURED = Past(
    SALE,
    "capture",
    [
        HoldCaptured("alice", DEBIT, "USD", 15_00, 0, hold_id(1)),
        HoldCaptured("bob", CREDIT, "USD", 15_00, 1, hold_id(1)),
        HoldReleased("alice", DEBIT, "USD", 5_00, 2, hold_id(1)),
        HoldReleased("bob", CREDIT, "USD", 5_00, 3, hold_id(1)),
    ],
    hold_id(1),
)
RELEASED = Past(SALE, "release", CAPTURED.events[2:], hold_id(1))

WHOLE = "a transaction of several assets is reversed as a whole"


def share(entry: int) -> str:
    """What is wrong with an amount that cannot be shared out."""
    return f"the share of entry {entry} would not be a whole number of minor units; reverse in other parts"


REJECTIONS: tuple[Rejection, ...] = (
    Rejection(UnknownTransaction(SALE), reverse(SALE)),
    Rejection(UnknownTransaction(OTHER), reverse(OTHER, force=True), past=(PAID,)),
    Rejection(
        PeriodIsClosed(utc_text(BEFORE), utc_text(CLOSED_UNTIL)),
        reverse(SALE, effective_at=BEFORE, force=True),
        (PERIOD,),
        (PAID,),
    ),
    Rejection(AccountNotOpen("bob", "closed"), reverse(SALE), (closed("bob"),), (PAID,)),
    Rejection(AccountNotOpen("alice", "closed"), reverse(SALE, force=True), (closed("alice"),), (PAID,)),
    Rejection(VersionConflict("bob", 1, 2), reverse(SALE, expected_versions={"bob": 1}), past=(PAID,)),
    Rejection(
        NotReversible(REFUND, "it is a reversal; post what should be instead"),
        reverse(REFUND),
        past=(PAID, PART_BACK),
    ),
    Rejection(
        NotReversible(REFUND, "it is a reversal; post what should be instead"),
        reverse(REFUND, "1 USD", force=True),
        past=(PAID, PART_BACK),
    ),
    Rejection(
        NotReversible(OTHER, "it posted nothing (open_account)"),
        reverse(OTHER),
        past=(Past(OTHER, "open_account", [opened("carol", LIABILITY)]),),
    ),
    Rejection(
        NotReversible(OTHER, "it posted nothing (hold)"), reverse(OTHER, "5 USD"), past=(Past(OTHER, "hold", HOLD),)
    ),
    Rejection(NotReversible(SALE, "it posted nothing (release)"), reverse(SALE), HOLD, (RELEASED,)),
    Rejection(InvalidAmount("1.00 USD", WHOLE), reverse(SALE, "1 USD"), (EVA,), (EXCHANGE,)),
    Rejection(InvalidAmount("10.00 USD", WHOLE), reverse(SALE, "10 USD", force=True), (EVA,), (EXCHANGE,)),
    Rejection(InvalidAmount("0.01 USD", share(1)), reverse(SALE, "0.01 USD"), past=(SPLIT,)),
    Rejection(InvalidAmount("0.30 USD", share(2)), reverse(SALE, "0.30 USD", force=True), past=(SPLIT,)),
    Rejection(
        InvalidAmount("7 PTS", share(1)),
        reverse(SALE, "7 PTS"),
        (opened("jar", asset="PTS", scale=0),),
        (sold(("points", DEBIT, 10, "PTS"), ("prize", CREDIT, 6, "PTS"), ("jar", CREDIT, 4, "PTS")),),
    ),
    Rejection(
        InvalidAmount("0.5 PTS", "PTS has 0 decimal places"),
        reverse(SALE, "0.5 PTS"),
        past=(sold(("points", DEBIT, 10, "PTS"), ("prize", CREDIT, 10, "PTS")),),
    ),
    Rejection(
        InvalidAmount("20.00 USD", "the turnover of busy would have more than 38 digits"),
        reverse(SALE, force=True),
        (opened("busy"), posted("busy", CREDIT, MINOR_MAX - 19_99)),
        (sold(("busy", DEBIT, 20_00), ("bob", CREDIT, 20_00)),),
    ),
    Rejection(AssetMismatch("alice", "USD", "EUR"), reverse(SALE, "1 EUR"), past=(PAID,)),
    Rejection(ExceedsRest(SALE, "20.00 USD", "20.01 USD"), reverse(SALE, "20.01 USD"), past=(PAID,)),
    Rejection(ExceedsRest(SALE, "20.00 USD", "20.01 USD"), reverse(SALE, "20.01 USD", force=True), past=(PAID,)),
    Rejection(ExceedsRest(SALE, "5.00 USD", "5.01 USD"), reverse(SALE, "5.01 USD"), past=(PAID, PART_BACK)),
    Rejection(ExceedsRest(SALE, "0.00 USD", "0.01 USD"), reverse(SALE, "0.01 USD"), past=(PAID, ALL_BACK)),
    Rejection(ExceedsRest(SALE, "0.00 USD", "any amount"), reverse(SALE, force=True), past=(PAID, ALL_BACK)),
    Rejection(ExceedsRest(SALE, "15.00 USD", "15.01 USD"), reverse(SALE, "15.01 USD"), HOLD, (CAPTURED,)),
    Rejection(
        InsufficientFunds("bob", available="19.99 USD", required="20.00 USD", minimum="0.00 USD"),
        reverse(SALE),
        past=(PAID, Past(OTHER, "transfer", moved(("bob", DEBIT, 1), ("world", CREDIT, 1)))),
    ),
    Rejection(
        InsufficientFunds("bob", available="0.00 USD", required="0.01 USD", minimum="0.00 USD"),
        reverse(SALE, "0.01 USD"),
        past=(PAID, Past(OTHER, "hold", held(20_00, "bob", "world", 2))),
    ),
    Rejection(
        LimitExceeded("capped", balance="100.01 USD", maximum="100.00 USD"),
        reverse(SALE, "20 USD"),
        (posted("capped", CREDIT, 100_00),),
        (
            sold(("capped", DEBIT, 20_00), ("bob", CREDIT, 20_00)),
            Past(OTHER, "hold", held(1, "world", "capped", 2)),
        ),
    ),
)


@pytest.mark.parametrize("row", REJECTIONS, ids=lambda row: str(row.then)[:90])
def test_rejections(row: Rejection) -> None:
    """Each rule refuses what it must, with the facts that a caller needs to act."""
    check_rejection(row)


BACK = moved(("alice", CREDIT, 20_00), ("bob", DEBIT, 20_00))

ACCEPTANCES: dict[str, Acceptance] = {
    "a whole transaction": Acceptance(reverse(SALE), BACK, past=(PAID,)),
    "exactly what it was": Acceptance(reverse(SALE, "20 USD"), BACK, past=(PAID,)),
    "a part": Acceptance(reverse(SALE, "0.01 USD"), moved(("alice", CREDIT, 1), ("bob", DEBIT, 1)), past=(PAID,)),
    "another part, all that is left": Acceptance(
        reverse(SALE, "5 USD"), moved(("alice", CREDIT, 5_00), ("bob", DEBIT, 5_00)), past=(PAID, PART_BACK)
    ),
    "the rest": Acceptance(reverse(SALE), moved(("alice", CREDIT, 5_00), ("bob", DEBIT, 5_00)), past=(PAID, PART_BACK)),
    "the rest after two parts": Acceptance(
        reverse(SALE),
        moved(("alice", CREDIT, 3_00), ("bob", DEBIT, 3_00)),
        past=(PAID, PART_BACK, Past(OTHER, "reverse", moved(("alice", CREDIT, 2_00), ("bob", DEBIT, 2_00)), SALE)),
    ),
    "shares": Acceptance(
        reverse(SALE, "4 USD"),
        moved(("alice", CREDIT, 4_00), ("bob", DEBIT, 2_80), ("capped", DEBIT, 1_00), ("world", DEBIT, 20)),
        past=(SPLIT,),
    ),
    "what shares have left": Acceptance(
        reverse(SALE),
        moved(("alice", CREDIT, 6_00), ("bob", DEBIT, 4_20), ("capped", DEBIT, 1_50), ("world", DEBIT, 30)),
        past=(
            SPLIT,
            Past(
                REFUND,
                "reverse",
                moved(("alice", CREDIT, 4_00), ("bob", DEBIT, 2_80), ("capped", DEBIT, 1_00), ("world", DEBIT, 20)),
                SALE,
            ),
        ),
    ),
    "several assets, as a whole": Acceptance(
        reverse(SALE),
        moved(
            ("alice", CREDIT, 10_00),
            ("world", DEBIT, 10_00),
            ("world:eur", CREDIT, 9_00, "EUR"),
            ("eva", DEBIT, 9_00, "EUR"),
        ),
        (EVA,),
        (EXCHANGE,),
    ),
    "an account several times": Acceptance(
        reverse(SALE, "5 USD"),
        moved(("alice", CREDIT, 3_00), ("bob", DEBIT, 5_00), ("alice", CREDIT, 2_00)),
        past=(sold(("alice", DEBIT, 6_00), ("bob", CREDIT, 10_00), ("alice", DEBIT, 4_00)),),
    ),
    "a capture, without what was released": Acceptance(
        reverse(SALE), moved(("alice", CREDIT, 15_00), ("bob", DEBIT, 15_00)), HOLD, (CAPTURED,)
    ),
    "accounts that are frozen": Acceptance(reverse(SALE), BACK, (frozen("alice"), frozen("bob")), (PAID,)),
    "by force, beyond a minimum": Acceptance(
        reverse(SALE, force=True),
        BACK,
        past=(PAID, Past(OTHER, "transfer", moved(("bob", DEBIT, 20_00), ("world", CREDIT, 20_00)))),
    ),
    "by force, beyond a maximum": Acceptance(
        reverse(SALE, force=True),
        moved(("capped", CREDIT, 20_00), ("bob", DEBIT, 20_00)),
        (posted("capped", CREDIT, 120_00),),
        (sold(("capped", DEBIT, 20_00), ("bob", CREDIT, 20_00)),),
    ),
    "exactly what is available": Acceptance(
        reverse(SALE, "15 USD"),
        moved(("alice", CREDIT, 15_00), ("bob", DEBIT, 15_00)),
        past=(PAID, Past(OTHER, "hold", held(5_00, "bob", "world", 2))),
    ),
    "a transaction of a closed period, today": Acceptance(reverse(SALE), BACK, (PERIOD,), (PAID,)),
    "effective when the books open": Acceptance(
        reverse(SALE, effective_at=CLOSED_UNTIL, expected_versions={"alice": 3}), BACK, (PERIOD,), (PAID,)
    ),
    "the last of 38 digits": Acceptance(
        reverse(SALE),
        moved(("busy", CREDIT, 20_00), ("bob", DEBIT, 20_00)),
        (opened("busy"), posted("busy", CREDIT, MINOR_MAX - 20_00)),
        (sold(("busy", DEBIT, 20_00), ("bob", CREDIT, 20_00)),),
    ),
}


@pytest.mark.parametrize("row", ACCEPTANCES.values(), ids=ACCEPTANCES.keys())
def test_acceptances(row: Acceptance) -> None:
    """What no rule objects to is posted the other way round, under the numbers of the original's entries."""
    check_acceptance(row)


@pytest.mark.parametrize(
    ("reason", "command", "given", "past"),
    [
        (Reason.UNKNOWN_TRANSACTION, reverse(OTHER, "1 EUR", effective_at=BEFORE), (), [PAID]),
        (Reason.PERIOD_CLOSED, reverse(SALE, effective_at=BEFORE), (closed("bob"),), [PAID]),
        (Reason.ACCOUNT_NOT_OPEN, reverse(SALE, expected_versions={"bob": 9}), (closed("bob"),), [PAID]),
        (Reason.ACCOUNT_NOT_OPEN, reverse(REFUND), (closed("bob"),), [PAID, PART_BACK]),
        (Reason.VERSION_CONFLICT, reverse(REFUND, expected_versions={"bob": 9}), (), [PAID, PART_BACK]),
        (Reason.VERSION_CONFLICT, reverse(SALE, "1 EUR", expected_versions={"bob": 9}), (), [PAID]),
        (Reason.NOT_REVERSIBLE, reverse(REFUND, "1 EUR"), (), [PAID, PART_BACK]),
        (Reason.INVALID_AMOUNT, reverse(SALE, "10.01 USD"), (), [SPLIT]),
        (Reason.EXCEEDS_REST, reverse(SALE, "21 USD"), (posted("bob", DEBIT, 50_00),), [PAID]),
        (
            Reason.INSUFFICIENT_FUNDS,
            reverse(SALE),
            (posted("capped", CREDIT, 150_00),),
            [
                sold(("capped", DEBIT, 101_00), ("bob", CREDIT, 101_00)),
                Past(OTHER, "transfer", moved(("bob", DEBIT, 1), ("world", CREDIT, 1))),
            ],
        ),
    ],
)
def test_first_reason_wins(reason: Reason, command: Reverse, given: tuple[Event, ...], past: Sequence[Past]) -> None:
    """Whatever breaks several rules gets the reason that comes first in their order."""
    book = book_of(PERIOD, *given, past=past)

    with pytest.raises(Rejected) as rejection:
        decided(command, book)

    assert rejection.value.reason is reason


def test_a_reversal_in_a_batch_is_seen_by_the_next() -> None:
    """What a command of a batch reverses is no longer there for the ones after it."""
    book = book_of(past=[PAID, PART_BACK])
    original = book.originals[SALE]

    assert original == Original(SALE, "post", {0: PAID.events[0], 1: PAID.events[1]}, {0: 15_00, 1: 15_00})  # type: ignore[dict-item]
    with pytest.raises(ExceedsRest, match=r"5\.01 USD is more than the 5\.00 USD"):
        decided(reverse(SALE, "5.01 USD"), book)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=6),
    st.lists(st.none() | st.integers(1, 60), min_size=1, max_size=6),
)
def test_shares_add_up(entries: list[tuple[bool, int]], amounts: list[int | None]) -> None:
    """However a transaction is reversed, every part balances, is in proportion, and all of it is never passed."""
    total = sum(amount if debited else -amount for debited, amount in entries)
    legs = [(f"a{place}", DEBIT if debited else CREDIT, amount) for place, (debited, amount) in enumerate(entries)]
    legs.append(("balance", CREDIT if total > 0 else DEBIT, abs(total) or 1))
    if not total:
        legs.append(("other", CREDIT, 1))
    past = sold(*legs)
    book = book_of(*[opened(account) for account, _, _ in legs], past=[past])
    debits = sum(amount for _, direction, amount in legs if direction is DEBIT)
    for amount in amounts:
        reversed_before = dict(book.originals[SALE].reversed)
        try:
            events = decided(reverse(SALE, None if amount is None else str(Money(amount, "USD", 2))), book)
        except (InvalidAmount, ExceedsRest):
            continue
        backs = [event for event in events if isinstance(event, EntryPosted)]
        took = sum(event.amount for event in backs if event.direction is CREDIT)
        assert took == sum(event.amount for event in backs if event.direction is DEBIT)
        assert amount is None or took == amount
        for event in backs:
            account, direction, whole = legs[event.entry]
            assert (event.account, event.direction is direction) == (account, False)
            assert event.amount * debits == whole * took
            assert reversed_before.get(event.entry, 0) + event.amount <= whole
        replay(book, events)
        remember(book, TRANSACTION, "reverse", events, SALE)
