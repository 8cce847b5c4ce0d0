"""The rules about holds as a table: place, capture, release, expire."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

import pytest
from rules import (
    ASSET,
    CLOSED_UNTIL,
    CREDIT,
    DEBIT,
    LATER,
    NOW,
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
    hold,
    hold_id,
    moved,
    opened,
    posted,
    transfer,
    withdraw,
)

from ledger import (
    AccountNotOpen,
    AssetMismatch,
    Capture,
    Command,
    Direction,
    ExceedsRest,
    ExpireHold,
    HoldNotDue,
    HoldNotOpen,
    InsufficientFunds,
    InvalidAmount,
    LimitExceeded,
    PeriodIsClosed,
    Reason,
    Rejected,
    Release,
    UnknownAccount,
    UnknownTransaction,
    VersionConflict,
)
from ledger.core.book import replay
from ledger.core.canonical import utc_text
from ledger.core.commands import build
from ledger.core.events import (
    AccountTermsChanged,
    AssetDefined,
    EntryPosted,
    Event,
    HoldCaptured,
    HoldExpired,
    HoldPlaced,
    HoldReleased,
    PeriodClosed,
)
from ledger.core.money import MINOR_MAX

MICROSECOND = timedelta(microseconds=1)
HOLD = hold_id(1)
OTHER = hold_id(2)
BEFORE = CLOSED_UNTIL - MICROSECOND
PERIOD = PeriodClosed(CLOSED_UNTIL, (), None)


def capture(amount: str | None = None, of: str = HOLD, **more: object) -> Capture:
    """All that is left of the hold, or a part, to be posted."""
    return build(Capture, hold=of, amount=amount, **more)


def release(amount: str | None = None, of: str = HOLD, **more: object) -> Release:
    """All that is left of the hold, or a part, to be set free."""
    return build(Release, hold=of, amount=amount, **more)


def expire(of: str = HOLD, **more: object) -> ExpireHold:
    """The hold to be ended because its time is over."""
    return build(ExpireHold, hold=of, **more)


Later = type[HoldCaptured] | type[HoldReleased] | type[HoldExpired]


def both(what: Later, amount: int, first: int = 0, asset: str = "USD", sides: str = "alice bob") -> list[Event]:
    """What happens to a hold happens on both of its sides."""
    debited, credited = sides.split()
    return [
        what(debited, DEBIT, asset, amount, first, HOLD),
        what(credited, CREDIT, asset, amount, first + 1, HOLD),
    ]


def placed(amount: int, debited: str, credited: str, expires_at: datetime | None = None) -> list[Event]:
    """Both sides of the hold that is being placed."""
    return [
        HoldPlaced(debited, DEBIT, "USD", amount, 0, TRANSACTION, expires_at),
        HoldPlaced(credited, CREDIT, "USD", amount, 1, TRANSACTION, expires_at),
    ]


TWENTY = held(20_00, "alice", "bob")
"""20.00 USD of alice's are held for bob, without end."""

WEEK = held(20_00, "alice", "bob", expires_at=LATER)
ENDING = held(20_00, "alice", "bob", expires_at=NOW)
"""A hold that expires at the very moment of the command."""

SPENT = (*TWENTY, *both(HoldCaptured, 15_00), *both(HoldReleased, 5_00))
FREED = (*TWENTY, *both(HoldReleased, 20_00))
EXPIRED = (*ENDING, *both(HoldExpired, 20_00))
PART_EXPIRED = (*ENDING, *both(HoldCaptured, 1), *both(HoldExpired, 19_99))

POINTS = held(20, "points", "prize", asset="PTS")

REJECTIONS: tuple[Rejection, ...] = (
    Rejection(UnknownAccount("nobody"), hold("1 USD", "alice", "nobody")),
    Rejection(UnknownTransaction(HOLD, "hold"), capture()),
    Rejection(UnknownTransaction(OTHER, "hold"), release(of=OTHER), TWENTY),
    Rejection(UnknownTransaction(HOLD, "hold"), expire()),
    Rejection(UnknownTransaction(HOLD, "hold"), capture(), past=(Past(HOLD, "post", [posted("alice", CREDIT, 1)]),)),
    *[
        Rejection(PeriodIsClosed(utc_text(BEFORE), utc_text(CLOSED_UNTIL)), command, (*TWENTY, PERIOD))
        for command in (
            hold("1 USD", "alice", "bob", effective_at=BEFORE),
            capture(effective_at=BEFORE),
            release(effective_at=BEFORE),
        )
    ],
    Rejection(AccountNotOpen("frozen", "frozen"), hold("1 USD", "alice", "frozen")),
    Rejection(AccountNotOpen("frozen", "frozen"), hold("1 USD", "frozen", "bob")),
    Rejection(AccountNotOpen("bob", "closed"), hold("1 USD", "alice", "bob"), (closed("bob"),)),
    Rejection(AccountNotOpen("bob", "frozen"), capture(), (*TWENTY, frozen("bob"))),
    Rejection(AccountNotOpen("alice", "frozen"), capture("1 USD", final=True), (*TWENTY, frozen("alice"))),
    Rejection(AccountNotOpen("bob", "closed"), capture(), (*FREED, closed("bob"))),
    Rejection(AccountNotOpen("bob", "closed"), release(), (*FREED, closed("bob"))),
    Rejection(AccountNotOpen("bob", "closed"), expire(), (*EXPIRED, closed("bob"))),
    Rejection(VersionConflict("alice", 2, 3), capture(expected_versions={"alice": 2}), TWENTY),
    Rejection(VersionConflict("bob", 1, 2), release(expected_versions={"alice": 3, "bob": 1}), TWENTY),
    Rejection(VersionConflict("bob", 3, 2), expire(expected_versions={"bob": 3}), ENDING),
    Rejection(VersionConflict("bob", 2, 1), hold("1 USD", "alice", "bob", expected_versions={"bob": 2})),
    Rejection(HoldNotOpen(TRANSACTION, "expired"), hold("1 USD", "alice", "bob", expires_at=NOW)),
    Rejection(HoldNotOpen(TRANSACTION, "expired"), hold("1 USD", "alice", "bob", expires_at=NOW - MICROSECOND)),
    Rejection(HoldNotOpen(HOLD, "expired"), capture(), ENDING),
    Rejection(HoldNotOpen(HOLD, "expired"), capture("0.01 USD"), ENDING),
    Rejection(HoldNotOpen(HOLD, "expired"), release(), ENDING),
    *[
        Rejection(HoldNotOpen(HOLD, state), command, past)
        for state, past in (
            ("captured", SPENT),
            ("released", FREED),
            ("expired", EXPIRED),
            ("captured", PART_EXPIRED),
        )
        for command in (capture(), capture("0.01 USD", final=True), release(), release("0.01 USD"), expire())
    ],
    Rejection(HoldNotDue(HOLD, utc_text(LATER)), expire(), WEEK),
    Rejection(
        HoldNotDue(HOLD, utc_text(NOW + MICROSECOND)),
        expire(),
        held(20_00, "alice", "bob", expires_at=NOW + MICROSECOND),
    ),
    Rejection(HoldNotDue(HOLD, "never"), expire(), TWENTY),
    Rejection(InvalidAmount("0.5 PTS", "PTS has 0 decimal places"), hold("0.5 PTS", "points", "prize")),
    Rejection(InvalidAmount("0.5 PTS", "PTS has 0 decimal places"), capture("0.5 PTS"), POINTS),
    Rejection(InvalidAmount("0.5 PTS", "PTS has 0 decimal places"), release("0.5 PTS"), POINTS),
    Rejection(
        InvalidAmount("0.01 USD", "the turnover of world would have more than 38 digits"),
        hold("0.01 USD", "world", "bob"),
        held(MINOR_MAX, "world", "bob"),
    ),
    Rejection(
        InvalidAmount("20.00 USD", "the turnover of full would have more than 38 digits"),
        capture(),
        held(20_00, "alice", "full"),
    ),
    Rejection(
        InvalidAmount("20.00 USD", "the turnover of emptied would have more than 38 digits"),
        capture(),
        (opened("emptied"), posted("emptied", DEBIT, MINOR_MAX - 19_99), *held(20_00, "emptied", "alice")),
    ),
    Rejection(AssetMismatch("alice", "USD", "EUR"), hold("1 EUR", "alice", "bob")),
    Rejection(AssetMismatch("alice", "USD", "EUR"), capture("1 EUR"), TWENTY),
    Rejection(AssetMismatch("alice", "USD", "PTS"), release("1 PTS"), TWENTY),
    Rejection(ExceedsRest(HOLD, "20.00 USD", "20.01 USD"), capture("20.01 USD"), TWENTY),
    Rejection(ExceedsRest(HOLD, "20.00 USD", "20.01 USD"), release("20.01 USD"), TWENTY),
    Rejection(ExceedsRest(HOLD, "20.00 USD", "20.01 USD"), capture("20.01 USD", final=True), TWENTY),
    *[
        Rejection(
            ExceedsRest(HOLD, "5.00 USD", "5.01 USD"),
            command,
            (*TWENTY, *both(HoldCaptured, 10_00), *both(HoldReleased, 5_00)),
        )
        for command in (capture("5.01 USD"), release("5.01 USD"))
    ],
    Rejection(
        InsufficientFunds("alice", available="100.00 USD", required="100.01 USD", minimum="0.00 USD"),
        hold("100.01 USD", "alice", "bob"),
    ),
    Rejection(
        InsufficientFunds("alice", available="80.00 USD", required="80.01 USD", minimum="0.00 USD"),
        hold("80.01 USD", "alice", "bob"),
        TWENTY,
    ),
    Rejection(
        InsufficientFunds("alice", available="80.00 USD", required="80.01 USD", minimum="0.00 USD"),
        withdraw("80.01 USD", "alice", "world"),
        TWENTY,
    ),
    # Nobody has ended this one yet; the writer does so before it asks, and until then it counts.
    Rejection(
        InsufficientFunds("alice", available="80.00 USD", required="80.01 USD", minimum="0.00 USD"),
        withdraw("80.01 USD", "alice", "world"),
        ENDING,
    ),
    Rejection(
        InsufficientFunds("bob", available="0.00 USD", required="0.01 USD", minimum="0.00 USD"),
        transfer("0.01 USD", "bob", "world"),
        TWENTY,
    ),
    Rejection(
        InsufficientFunds("cash", available="10.00 USD", required="10.01 USD", minimum="0.00 USD"),
        hold("10.01 USD", "world", "cash"),
        (posted("cash", DEBIT, 30_00), *held(20_00, "world", "cash")),
    ),
    Rejection(
        LimitExceeded("capped", balance="100.01 USD", maximum="100.00 USD"), hold("100.01 USD", "world", "capped")
    ),
    Rejection(
        LimitExceeded("capped", balance="100.01 USD", maximum="100.00 USD"),
        hold("80.01 USD", "world", "capped"),
        held(20_00, "alice", "capped"),
    ),
    Rejection(
        LimitExceeded("capped", balance="100.01 USD", maximum="100.00 USD"),
        transfer("80.01 USD", "world", "capped"),
        held(20_00, "alice", "capped"),
    ),
    # What is held for going out has not gone: the room that it will make is not there yet.
    Rejection(
        LimitExceeded("capped", balance="100.01 USD", maximum="100.00 USD"),
        hold("0.01 USD", "world", "capped"),
        (posted("capped", CREDIT, 100_00), *held(20_00, "capped", "bob")),
    ),
)


@pytest.mark.parametrize("row", REJECTIONS, ids=lambda row: f"{row.when.type} {row.then}"[:90])
def test_rejections(row: Rejection) -> None:
    """Each rule refuses what it must, with the facts that a caller needs to act."""
    check_rejection(row)


ACCEPTANCES: dict[str, Acceptance] = {
    "a hold without end": Acceptance(hold("20 USD", "alice", "bob"), placed(20_00, "alice", "bob")),
    "a hold that has a microsecond": Acceptance(
        hold("20 USD", "alice", "bob", expires_at=NOW + MICROSECOND),
        placed(20_00, "alice", "bob", NOW + MICROSECOND),
    ),
    "everything is held": Acceptance(hold("100 USD", "alice", "capped"), placed(100_00, "alice", "capped")),
    "what another hold leaves": Acceptance(hold("80 USD", "alice", "bob"), placed(80_00, "alice", "bob"), TWENTY),
    "what another hold leaves, on the debit side": Acceptance(
        hold("10 USD", "world", "cash"),
        placed(10_00, "world", "cash"),
        (posted("cash", DEBIT, 30_00), *held(20_00, "world", "cash")),
    ),
    "what was freed can be held again": Acceptance(
        hold("100 USD", "alice", "capped"), placed(100_00, "alice", "capped"), FREED
    ),
    "what expired can be held again": Acceptance(
        hold("100 USD", "alice", "capped"), placed(100_00, "alice", "capped"), EXPIRED
    ),
    "the last of 38 pending digits": Acceptance(
        hold("0.01 USD", "world", "full"),
        placed(1, "world", "full"),
        (opened("source"), *held(MINOR_MAX - 1, "world", "source")),
    ),
    "pending numbers are apart from posted ones": Acceptance(
        hold("5 USD", "world", "full"), placed(5_00, "world", "full")
    ),
    "a capture of all": Acceptance(capture(), both(HoldCaptured, 20_00), TWENTY),
    "a capture of exactly what is left": Acceptance(capture("20.00 USD"), both(HoldCaptured, 20_00), TWENTY),
    "a capture of a part": Acceptance(capture("0.01 USD"), both(HoldCaptured, 1), TWENTY),
    "another capture": Acceptance(capture("5 USD"), both(HoldCaptured, 5_00), (*TWENTY, *both(HoldCaptured, 15_00))),
    "a capture of the rest": Acceptance(
        capture(), both(HoldCaptured, 4_00), (*TWENTY, *both(HoldCaptured, 15_00), *both(HoldReleased, 1_00))
    ),
    "a final capture is a capture and a release": Acceptance(
        capture("5 USD", final=True), [*both(HoldCaptured, 5_00), *both(HoldReleased, 15_00, first=2)], TWENTY
    ),
    "a final capture of all releases nothing": Acceptance(
        capture("20 USD", final=True), both(HoldCaptured, 20_00), TWENTY
    ),
    "a final capture without an amount takes all": Acceptance(capture(final=True), both(HoldCaptured, 20_00), TWENTY),
    "a capture in the last microsecond": Acceptance(
        capture(),
        both(HoldCaptured, 20_00),
        held(20_00, "alice", "bob", expires_at=NOW + MICROSECOND),
    ),
    "a capture beyond a minimum that was raised since": Acceptance(
        capture(), both(HoldCaptured, 20_00), (*TWENTY, AccountTermsChanged("alice", 500_00, None, {}, None))
    ),
    "a capture beyond a maximum that was lowered since": Acceptance(
        capture(), both(HoldCaptured, 20_00), (*TWENTY, AccountTermsChanged("bob", None, 0, {}, None))
    ),
    "a capture between accounts that grow on the debit side": Acceptance(
        capture("7 USD"),
        both(HoldCaptured, 7_00, sides="till cash"),
        (opened("till", ASSET), posted("cash", DEBIT, 30_00), *held(20_00, "till", "cash")),
    ),
    "a capture of whole units, written with decimals": Acceptance(
        capture("20.00 PTS"), both(HoldCaptured, 20, asset="PTS", sides="points prize"), POINTS
    ),
    "a capture from an account that is full on its other side": Acceptance(
        capture(), both(HoldCaptured, 20_00, sides="full bob"), held(20_00, "full", "bob")
    ),
    "a capture effective when the books open": Acceptance(
        capture(effective_at=CLOSED_UNTIL), both(HoldCaptured, 20_00), (*TWENTY, PERIOD)
    ),
    "a capture with expected versions that hold": Acceptance(
        capture(expected_versions={"alice": 3, "bob": 2}), both(HoldCaptured, 20_00), TWENTY
    ),
    "a release of all": Acceptance(release(), both(HoldReleased, 20_00), TWENTY),
    "a release of exactly what is left": Acceptance(release("20 USD"), both(HoldReleased, 20_00), TWENTY),
    "a release of a part": Acceptance(release("0.01 USD"), both(HoldReleased, 1), TWENTY),
    "a release after a capture": Acceptance(release(), both(HoldReleased, 5_00), (*TWENTY, *both(HoldCaptured, 15_00))),
    "a release with frozen accounts": Acceptance(
        release(), both(HoldReleased, 20_00), (*TWENTY, frozen("alice"), frozen("bob"))
    ),
    "an expiry at the very moment": Acceptance(expire(), both(HoldExpired, 20_00), ENDING),
    "an expiry long after": Acceptance(
        expire(), both(HoldExpired, 20_00), held(20_00, "alice", "bob", expires_at=NOW - timedelta(days=400))
    ),
    "an expiry of what is left": Acceptance(
        expire(), both(HoldExpired, 1), (*ENDING, *both(HoldCaptured, 15_00), *both(HoldReleased, 4_99))
    ),
    "an expiry with frozen accounts": Acceptance(
        expire(), both(HoldExpired, 20_00), (*ENDING, frozen("alice"), frozen("bob"))
    ),
    "money that is held elsewhere is not in the way": Acceptance(
        transfer("80 USD", "alice", "bob"), moved(("alice", DEBIT, 80_00), ("bob", CREDIT, 80_00)), TWENTY
    ),
}


@pytest.mark.parametrize("row", ACCEPTANCES.values(), ids=ACCEPTANCES.keys())
def test_acceptances(row: Acceptance) -> None:
    """What no rule objects to happens, as exactly these events, and only when they are appended."""
    check_acceptance(row)


class Stage(NamedTuple):
    """A step in the life of a hold, and what alice then has: posted, pending, available, and the hold's state."""

    command: Command | None
    posted: str
    pending: str
    available: str
    state: str


@pytest.mark.parametrize(
    "life",
    [
        [
            Stage(None, "100.00 USD", "-20.00 USD", "80.00 USD", "open"),
            Stage(capture("5 USD"), "95.00 USD", "-15.00 USD", "80.00 USD", "open"),
            Stage(release("4 USD"), "95.00 USD", "-11.00 USD", "84.00 USD", "open"),
            Stage(capture("1 USD", final=True), "94.00 USD", "0.00 USD", "94.00 USD", "captured"),
        ],
        [
            Stage(release("19.99 USD"), "100.00 USD", "-0.01 USD", "99.99 USD", "open"),
            Stage(release(), "100.00 USD", "0.00 USD", "100.00 USD", "released"),
        ],
        [
            Stage(release("19.99 USD"), "100.00 USD", "-0.01 USD", "99.99 USD", "open"),
            Stage(expire(), "100.00 USD", "0.00 USD", "100.00 USD", "expired"),
        ],
        [
            Stage(capture("19.99 USD"), "80.01 USD", "-0.01 USD", "80.00 USD", "open"),
            Stage(expire(), "80.01 USD", "0.00 USD", "80.01 USD", "captured"),
        ],
    ],
)
def test_lives(life: list[Stage]) -> None:
    """A hold lowers what is available at once; a capture moves it to posted, the rest comes back."""
    book = book_of(*held(20_00, "alice", "bob", expires_at=LATER))
    for stage in life:
        if stage.command is not None:
            now = LATER if isinstance(stage.command, ExpireHold) else NOW
            replay(book, decided(stage.command, book, now))
        balance = book.stream("alice").balance
        shown = (str(balance.posted), str(balance.pending), str(balance.available))
        assert shown == (stage.posted, stage.pending, stage.available)
        assert {leg.state for leg in book.holds[HOLD].values()} == {stage.state}
        assert str(book.stream("bob").balance.pending) == stage.pending.removeprefix("-")


@pytest.mark.parametrize(
    ("reason", "command", "given"),
    [
        (Reason.UNKNOWN_ACCOUNT, hold("1 EUR", "frozen", "nobody", effective_at=BEFORE, expires_at=NOW), ()),
        (Reason.UNKNOWN_TRANSACTION, capture("1 EUR", of=OTHER, effective_at=BEFORE), ()),
        (Reason.PERIOD_CLOSED, hold("1 EUR", "frozen", "bob", effective_at=BEFORE, expires_at=NOW), ()),
        (Reason.PERIOD_CLOSED, capture(effective_at=BEFORE, expected_versions={"bob": 9}), (frozen("bob"),)),
        (Reason.ACCOUNT_NOT_OPEN, hold("1 EUR", "frozen", "bob", expected_versions={"bob": 9}, expires_at=NOW), ()),
        (Reason.ACCOUNT_NOT_OPEN, capture(expected_versions={"bob": 9}), (frozen("bob"),)),
        (Reason.VERSION_CONFLICT, hold("1 EUR", "alice", "bob", expected_versions={"bob": 9}, expires_at=NOW), ()),
        (Reason.VERSION_CONFLICT, release("1 EUR", expected_versions={"bob": 9}), ()),
        (Reason.VERSION_CONFLICT, capture(expected_versions={"bob": 9}), both(HoldReleased, 20_00)),
        (Reason.VERSION_CONFLICT, expire(expected_versions={"bob": 9}), ()),
        (Reason.HOLD_NOT_OPEN, hold("1000 USD", "alice", "full", expires_at=NOW), ()),
        (Reason.HOLD_NOT_OPEN, hold("1 EUR", "alice", "bob", expires_at=NOW), ()),
        (Reason.HOLD_NOT_OPEN, capture("1 EUR"), both(HoldReleased, 20_00)),
        (Reason.HOLD_NOT_OPEN, expire(), both(HoldReleased, 20_00)),
        (Reason.INVALID_AMOUNT, capture("20.01 USD"), (posted("bob", CREDIT, MINOR_MAX),)),
        (Reason.INSUFFICIENT_FUNDS, hold("101 USD", "alice", "capped"), ()),
    ],
)
def test_first_reason_wins(reason: Reason, command: Command, given: tuple[Event, ...]) -> None:
    """Whatever breaks several rules gets the reason that comes first in their order."""
    book = book_of(*WEEK, PERIOD, *given)

    with pytest.raises(Rejected) as rejection:
        decided(command, book)

    assert rejection.value.reason is reason


@pytest.mark.parametrize("direction", Direction)
def test_pending_digits_have_their_own_room(direction: Direction) -> None:
    """38 digits may be held on each side of an account: one minor unit more is refused on that side alone."""
    sides = ("full", "world") if direction is DEBIT else ("world", "full")
    book = book_of(*held(MINOR_MAX, *sides))

    with pytest.raises(InvalidAmount, match="more than 38 digits"):
        decided(hold("0.01 USD", *sides), book)
    assert decided(hold("0.01 USD", *reversed(sides)), book)
    assert decided(release(), book)


def test_a_hold_keeps_the_scale_of_its_accounts() -> None:
    """An amount with fewer decimals than the asset has is the same amount."""
    coins = (AssetDefined("BTC", 8), opened("coins", asset="BTC", scale=8), opened("purse", asset="BTC", scale=8))
    book = book_of(*coins)

    events = decided(hold("0.5 BTC", "coins", "purse"), book)
    replay(book, events)

    assert [event.amount for event in events if isinstance(event, HoldPlaced)] == [50_000_000] * 2
    captured = decided(capture("0.25 BTC", of=TRANSACTION), book)
    assert [event.amount for event in captured if isinstance(event, HoldCaptured)] == [25_000_000] * 2
    assert not any(isinstance(event, EntryPosted) for event in captured)
