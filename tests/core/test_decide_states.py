"""The rules about states as a table: of accounts, of the books, and of a caller's own machines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from rules import (
    ASSET,
    CLOSED_UNTIL,
    CREDIT,
    DEBIT,
    NOW,
    Acceptance,
    Past,
    Rejection,
    book_of,
    check_acceptance,
    check_rejection,
    closed,
    decided,
    deposit,
    frozen,
    held,
    hold,
    hold_id,
    moved,
    opened,
    opening,
    post,
    posted,
    reverse,
    transfer,
    withdraw,
)

from ledger import (
    AccountExists,
    AccountNotEmpty,
    AccountNotOpen,
    Advance,
    AssetMismatch,
    Begin,
    Capture,
    ChangeAccount,
    CloseAccount,
    ClosePeriod,
    Command,
    ExpireHold,
    Freeze,
    InvalidAmount,
    PeriodIsClosed,
    PeriodNotOver,
    Reason,
    Rejected,
    Release,
    StreamExists,
    TransitionRefused,
    Unfreeze,
    UnknownAccount,
    UnknownMachine,
    UnknownStream,
    VersionConflict,
    credit,
    debit,
)
from ledger.core.book import replay
from ledger.core.canonical import utc_text
from ledger.core.commands import build
from ledger.core.decide import SETTLING
from ledger.core.events import (
    AccountOpened,
    AccountStateChanged,
    AccountTermsChanged,
    Event,
    HoldCaptured,
    PeriodClosed,
    StateAdvanced,
)
from ledger.core.lifecycle import ACCOUNT
from ledger.lifecycle import shipped

PERIOD = PeriodClosed(CLOSED_UNTIL, (), None)
MICROSECOND = timedelta(microseconds=1)
BEFORE = CLOSED_UNTIL - MICROSECOND
OVER = NOW - SETTLING
"""The latest moment until which a period can be closed."""

LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
PAYMENT = shipped("payment")
JUDGED = PAYMENT.fingerprint()


def freeze(account: str, **more: object) -> Freeze:
    """An account to be frozen."""
    return build(Freeze, account=account, **more)


def unfreeze(account: str, **more: object) -> Unfreeze:
    """An account to be opened again."""
    return build(Unfreeze, account=account, **more)


def close(account: str, **more: object) -> CloseAccount:
    """An account to be closed."""
    return build(CloseAccount, account=account, **more)


def change(account: str, **more: object) -> ChangeAccount:
    """An account to get other limits, or other metadata."""
    return build(ChangeAccount, account=account, **more)


def close_period(until: datetime, **more: object) -> ClosePeriod:
    """The books to be closed until a moment."""
    return build(ClosePeriod, until=until, **more)


def begin(subject: str, machine: str = "payment", **more: object) -> Begin:
    """Something of the caller's own to be begun."""
    return build(Begin, machine=machine, subject=subject, **more)


def advance(subject: str, event: str, machine: str = "payment", **more: object) -> Advance:
    """Something of the caller's own to be taken on."""
    return build(Advance, machine=machine, subject=subject, event=event, **more)


def advanced(event: str, source: str, target: str, fingerprint: str = JUDGED) -> StateAdvanced:
    """What became of payment p1."""
    return StateAdvanced("#payment/p1", "payment", event, source, target, fingerprint)


BEGUN = advanced("begin", "", PAYMENT.initial)
AUTHORISED = (BEGUN, advanced("authorise", "created", "authorised"))

REJECTIONS: tuple[Rejection, ...] = (
    Rejection(AccountExists("shut"), opening("shut"), (opened("shut"), closed("shut"))),
    *[
        Rejection(UnknownAccount("nobody"), command)
        for command in (freeze("nobody"), unfreeze("nobody"), close("nobody"), change("nobody", metadata={}))
    ],
    Rejection(UnknownMachine("rocket", ["payment"]), begin("p1", "rocket")),
    Rejection(UnknownMachine("rocket", ["payment"]), advance("p1", "start", "rocket")),
    Rejection(UnknownStream("payment", "p1"), advance("p1", "authorise")),
    Rejection(UnknownStream("payment", "p2"), advance("p2", "authorise"), AUTHORISED),
    Rejection(StreamExists("payment", "p1", "authorised"), begin("p1"), AUTHORISED),
    *[
        Rejection(PeriodIsClosed(utc_text(BEFORE), utc_text(CLOSED_UNTIL)), command, (PERIOD,))
        for command in (
            transfer("1 USD", "alice", "bob", effective_at=BEFORE),
            deposit("1 USD", "alice", "world", effective_at=BEFORE),
            withdraw("1 USD", "alice", "world", effective_at=BEFORE),
            post(debit("alice", "1 USD"), credit("bob", "1 USD"), effective_at=BEFORE),
            close_period(BEFORE),
        )
    ],
    Rejection(PeriodIsClosed(utc_text(CLOSED_UNTIL), utc_text(CLOSED_UNTIL)), close_period(CLOSED_UNTIL), (PERIOD,)),
    Rejection(
        PeriodNotOver(utc_text(OVER + MICROSECOND), utc_text(NOW + MICROSECOND)), close_period(OVER + MICROSECOND)
    ),
    Rejection(PeriodNotOver(utc_text(NOW), utc_text(NOW + SETTLING)), close_period(NOW)),
    Rejection(PeriodNotOver(utc_text(LAST), utc_text(LAST)), close_period(LAST)),
    Rejection(AccountNotOpen("bob", "closed"), change("bob", max_balance="1 USD"), (closed("bob"),)),
    *[
        Rejection(
            TransitionRefused("account", state, command.type.removesuffix("_account"), allowed, "bob"), command, given
        )
        for state, given, commands, allowed in (
            ("open", (), (unfreeze("bob"),), list(ACCOUNT.allowed("open"))),
            ("frozen", (frozen("bob"),), (freeze("bob"), close("bob")), list(ACCOUNT.allowed("frozen"))),
            ("closed", (closed("bob"),), (freeze("bob"), unfreeze("bob"), close("bob")), []),
        )
        for command in commands
    ],
    Rejection(
        TransitionRefused("payment", "created", "refund", list(PAYMENT.allowed("created")), "p1"),
        advance("p1", "refund"),
        (BEGUN,),
    ),
    Rejection(
        TransitionRefused("payment", "created", "fly", list(PAYMENT.allowed("created")), "p1"),
        advance("p1", "fly"),
        (BEGUN,),
    ),
    Rejection(
        TransitionRefused("payment", "voided", "capture", [], "p1"),
        advance("p1", "capture"),
        (*AUTHORISED, advanced("void", "authorised", "voided")),
    ),
    # It was begun by another declaration of that name, whose states this one does not know.
    Rejection(
        TransitionRefused("payment", "pending", "capture", [], "p1"),
        advance("p1", "capture"),
        (advanced("begin", "", "pending", "another"),),
    ),
    *[
        Rejection(VersionConflict("alice", 1, 2), command, given)
        for command, given in (
            (freeze("bob", expected_versions={"alice": 1}), ()),
            (unfreeze("frozen", expected_versions={"alice": 1}), ()),
            (close("bob", expected_versions={"alice": 1}), ()),
            (change("bob", metadata={}, expected_versions={"alice": 1}), ()),
            (close_period(OVER, expected_versions={"alice": 1}), ()),
            (begin("p1", expected_versions={"alice": 1}), ()),
            (advance("p1", "authorise", expected_versions={"alice": 1}), (BEGUN,)),
        )
    ],
    Rejection(InvalidAmount("0.5 PTS", "PTS has 0 decimal places"), change("points", min_balance="0.5 PTS")),
    Rejection(
        InvalidAmount("-0.01 USD", "max_balance would be below min_balance, 0.00 USD"),
        change("alice", max_balance="-0.01 USD"),
    ),
    Rejection(
        InvalidAmount("100.00 USD", "max_balance would be below min_balance, 100.01 USD"),
        change("capped", min_balance="100.01 USD"),
    ),
    Rejection(AssetMismatch("alice", "USD", "EUR"), change("alice", min_balance="1 EUR")),
    Rejection(AssetMismatch("alice", "USD", "EUR"), change("alice", max_balance="1 EUR")),
    Rejection(AccountNotEmpty("alice", "100.00 USD", "0.00 USD"), close("alice")),
    Rejection(AccountNotEmpty("world", "-100.00 USD", "0.00 USD"), close("world")),
    Rejection(AccountNotEmpty("bob", "0.01 USD", "0.00 USD"), close("bob"), (posted("bob", CREDIT, 1),)),
    Rejection(AccountNotEmpty("bob", "0.00 USD", "5.00 USD"), close("bob"), held(5_00, "alice", "bob")),
    Rejection(AccountNotEmpty("capped", "0.00 USD", "0.01 USD"), close("capped"), held(1, "capped", "bob")),
    Rejection(
        AccountNotEmpty("till", "-1.00 USD", "7.00 USD"),
        close("till"),
        (
            opened("till", ASSET),
            posted("till", CREDIT, 1_00),
            *held(5_00, "till", "bob"),
            *held(2_00, "bob", "till", 2),
        ),
    ),
)


@pytest.mark.parametrize("row", REJECTIONS, ids=lambda row: f"{row.when.type} {row.then}"[:90])
def test_rejections(row: Rejection) -> None:
    """Each rule refuses what it must, with the facts that a caller needs to act."""
    check_rejection(row)


ACCEPTANCES: dict[str, Acceptance] = {
    "an account is frozen": Acceptance(
        freeze("alice", reason="court order"), [AccountStateChanged("alice", "frozen", "court order")]
    ),
    "an account is opened again": Acceptance(unfreeze("frozen"), [AccountStateChanged("frozen", "open", None)]),
    "an account with a hold is frozen": Acceptance(
        freeze("bob"), [AccountStateChanged("bob", "frozen", None)], held(5_00, "alice", "bob")
    ),
    "an account that was never used is closed": Acceptance(
        close("bob", reason="moved"), [AccountStateChanged("bob", "closed", "moved")]
    ),
    "an account that came back to zero is closed": Acceptance(
        close("bob"),
        [AccountStateChanged("bob", "closed", None)],
        (posted("bob", CREDIT, 7), posted("bob", DEBIT, 7)),
    ),
    "an account whose hold was taken is closed": Acceptance(
        close("bob"),
        [AccountStateChanged("bob", "closed", None)],
        (
            *held(5_00, "alice", "bob"),
            HoldCaptured("alice", DEBIT, "USD", 5_00, 0, hold_id(1)),
            HoldCaptured("bob", CREDIT, "USD", 5_00, 1, hold_id(1)),
            posted("bob", DEBIT, 5_00),
        ),
    ),
    "an account is closed whose minimum is above zero": Acceptance(
        close("reserve"), [AccountStateChanged("reserve", "closed", None)], (opened("reserve", lowest=10_00),)
    ),
    "limits are changed": Acceptance(
        change("alice", min_balance="-50 USD", max_balance="1000 USD", reason="gold"),
        [AccountTermsChanged("alice", -50_00, 1000_00, {}, "gold")],
    ),
    "one limit is changed, the other stays": Acceptance(
        change("alice", max_balance="0 USD"), [AccountTermsChanged("alice", 0, 0, {}, None)]
    ),
    "a limit is taken away": Acceptance(
        change("capped", max_balance="unlimited"), [AccountTermsChanged("capped", None, None, {}, None)]
    ),
    "a minimum is set above what is there": Acceptance(
        change("bob", min_balance="5 USD"), [AccountTermsChanged("bob", 5_00, None, {}, None)]
    ),
    "metadata is replaced, limits stay": Acceptance(
        change("vip", metadata={"tier": 2}),
        [AccountTermsChanged("vip", 0, 5_00, {"tier": 2}, None)],
        (AccountOpened("vip", ASSET, "USD", 2, 0, 5_00, {"tier": 1, "old": True}),),
    ),
    "metadata is taken away": Acceptance(
        change("vip", metadata={}),
        [AccountTermsChanged("vip", None, None, {}, None)],
        (AccountOpened("vip", ASSET, "USD", 2, None, None, {"tier": 1}),),
    ),
    "metadata stays": Acceptance(
        change("vip", min_balance="0 USD"),
        [AccountTermsChanged("vip", 0, None, {"b": "ü", "a": 1}, None)],
        (AccountOpened("vip", ASSET, "USD", 2, None, None, {"b": "ü", "a": 1}),),
    ),
    "a frozen account is changed": Acceptance(
        change("frozen", min_balance="0 USD"), [AccountTermsChanged("frozen", 0, None, {}, None)]
    ),
    "the books are closed": Acceptance(
        close_period(CLOSED_UNTIL, reason="2025"), [PeriodClosed(CLOSED_UNTIL, (), "2025")]
    ),
    "the books are closed as late as possible": Acceptance(close_period(OVER), [PeriodClosed(OVER, (), None)]),
    "the books are closed further": Acceptance(
        close_period(CLOSED_UNTIL + MICROSECOND), [PeriodClosed(CLOSED_UNTIL + MICROSECOND, (), None)], (PERIOD,)
    ),
    "an entry is effective when the books open": Acceptance(
        transfer("1 USD", "alice", "bob", effective_at=CLOSED_UNTIL),
        moved(("alice", DEBIT, 1_00), ("bob", CREDIT, 1_00)),
        (PERIOD,),
    ),
    "an entry is effective in the future": Acceptance(
        transfer("1 USD", "alice", "bob", effective_at=LAST),
        moved(("alice", DEBIT, 1_00), ("bob", CREDIT, 1_00)),
        (PERIOD,),
    ),
    "something is begun": Acceptance(begin("p1"), [BEGUN]),
    "something else of its kind is begun": Acceptance(
        begin("p2"), [StateAdvanced("#payment/p2", "payment", "begin", "", "created", JUDGED)], AUTHORISED
    ),
    "something goes on": Acceptance(
        advance("p1", "capture"), [advanced("capture", "authorised", "captured")], AUTHORISED
    ),
    "something stays as it is": Acceptance(
        advance("p1", "refund_part"),
        [advanced("refund_part", "partially_refunded", "partially_refunded")],
        (*AUTHORISED, advanced("refund_part", "captured", "partially_refunded")),
    ),
    "what another declaration began goes on by this one": Acceptance(
        advance("p1", "authorise"),
        [advanced("authorise", "created", "authorised")],
        (advanced("begin", "", "created", "another"),),
    ),
}


@pytest.mark.parametrize("row", ACCEPTANCES.values(), ids=ACCEPTANCES.keys())
def test_acceptances(row: Acceptance) -> None:
    """What no rule objects to happens, as exactly these events, and only when they are appended."""
    check_acceptance(row)


SALE = Past(hold_id(11), "transfer", moved(("alice", DEBIT, 5_00), ("bob", CREDIT, 5_00)))

COMMANDS: dict[str, tuple[Command, bool]] = {
    "post": (post(debit("alice", "1 USD"), credit("bob", "1 USD")), False),
    "transfer in": (transfer("1 USD", "alice", "bob"), False),
    "transfer out": (transfer("1 USD", "bob", "alice"), False),
    "deposit": (deposit("1 USD", "bob", "world"), False),
    "deposit against": (deposit("1 USD", "alice", "bob"), False),
    "withdraw": (withdraw("1 USD", "bob", "world"), False),
    "hold": (hold("1 USD", "alice", "bob"), False),
    "capture": (build(Capture, hold=hold_id(1)), False),
    "final capture": (build(Capture, hold=hold_id(1), amount="1 USD", final=True), False),
    "release": (build(Release, hold=hold_id(1)), True),
    "expire": (build(ExpireHold, hold=hold_id(2)), True),
    "reverse": (reverse(SALE.transaction_id), True),
    "forced reverse": (reverse(SALE.transaction_id, "1 USD", force=True), True),
    "change": (change("bob", max_balance="9 USD"), True),
    "freeze": (freeze("bob"), False),
    "unfreeze": (unfreeze("bob"), True),
    "close": (close("bob"), False),
}
"""Everything that can be asked of bob, and whether it goes while he is frozen."""

BOBS_PAST = (posted("bob", CREDIT, 20_00), *held(5_00, "alice", "bob"), *held(5_00, "alice", "bob", 2, NOW))


@pytest.mark.parametrize(("command", "goes"), COMMANDS.values(), ids=COMMANDS.keys())
def test_while_frozen_nothing_begins_and_all_can_be_undone(command: Command, goes: bool) -> None:
    """A frozen account refuses what is new, and takes what ends or corrects what was begun."""
    book = book_of(*BOBS_PAST, frozen("bob"), past=[SALE])

    if goes:
        assert decided(command, book)
    else:
        with pytest.raises((AccountNotOpen, TransitionRefused), match="bob is frozen"):
            decided(command, book)


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS.values()], ids=COMMANDS.keys())
def test_a_closed_account_refuses_everything(command: Command) -> None:
    """Whatever is asked of a closed account, by force or not, the answer is that it is closed."""
    book = book_of(*BOBS_PAST, closed("bob"), past=[SALE])

    with pytest.raises((AccountNotOpen, TransitionRefused), match="bob is closed"):
        decided(command, book)


def test_every_command_about_accounts_was_asked() -> None:
    """What an account's machine knows is what these commands are, and nothing is left out."""
    asked = {"transfer": "post", "deposit": "post", "withdraw": "post", "expire_hold": "expire"}
    kinds = {command.type for command, _ in COMMANDS.values()}

    assert {asked.get(kind, kind.removesuffix("_account")) for kind in kinds} == set(ACCOUNT.events)


@pytest.mark.parametrize(
    ("reason", "command", "given"),
    [
        (Reason.UNKNOWN_ACCOUNT, deposit("1 EUR", "frozen", "nobody", effective_at=BEFORE), ()),
        (Reason.UNKNOWN_MACHINE, begin("p1", "rocket", expected_versions={"bob": 9}), ()),
        (Reason.UNKNOWN_STREAM, advance("p1", "fly", expected_versions={"bob": 9}), ()),
        (Reason.STREAM_EXISTS, begin("p1", expected_versions={"bob": 9}), (BEGUN,)),
        (Reason.PERIOD_CLOSED, deposit("1 EUR", "frozen", "bob", effective_at=BEFORE), ()),
        (Reason.PERIOD_CLOSED, withdraw("1 EUR", "bob", "frozen", effective_at=BEFORE), ()),
        (Reason.PERIOD_CLOSED, close_period(BEFORE, expected_versions={"bob": 9}), ()),
        (Reason.PERIOD_NOT_OVER, close_period(NOW, expected_versions={"bob": 9}), ()),
        (Reason.ACCOUNT_NOT_OPEN, change("bob", max_balance="1 EUR", expected_versions={"bob": 9}), (closed("bob"),)),
        (Reason.TRANSITION_REFUSED, unfreeze("alice", expected_versions={"bob": 9}), ()),
        (Reason.TRANSITION_REFUSED, advance("p1", "fly", expected_versions={"bob": 9}), (BEGUN,)),
        (Reason.VERSION_CONFLICT, close("alice", expected_versions={"bob": 9}), ()),
        (Reason.VERSION_CONFLICT, change("alice", max_balance="1 EUR", expected_versions={"bob": 9}), ()),
        (Reason.INVALID_AMOUNT, change("points", min_balance="0.5 PTS", max_balance="1 PTS"), ()),
    ],
)
def test_first_reason_wins(reason: Reason, command: Command, given: tuple[Event, ...]) -> None:
    """Whatever breaks several rules gets the reason that comes first in their order."""
    book = book_of(PERIOD, *given)

    with pytest.raises(Rejected) as rejection:
        decided(command, book)

    assert rejection.value.reason is reason


def test_closing_records_the_trial_balance() -> None:
    """What all accounts came to is on record with the closing, as it was read under the lock."""
    book = book_of()
    book.trial_balance = (("USD", "equity", "10000", "0"), ("USD", "liability", "0", "10000"))

    (event,) = decided(close_period(CLOSED_UNTIL), book)

    assert event == PeriodClosed(CLOSED_UNTIL, book.trial_balance, None)


def test_a_life_of_an_account() -> None:
    """Open, frozen, open again, other limits, closed: every step is judged by the state that the one before left."""
    book = book_of(opened("carol"))
    for command, state in (
        (freeze("carol"), "frozen"),
        (change("carol", min_balance="0 USD"), "frozen"),
        (unfreeze("carol"), "open"),
        (deposit("5 USD", "carol", "world"), "open"),
        (withdraw("5 USD", "carol", "world"), "open"),
        (close("carol"), "closed"),
    ):
        replay(book, decided(command, book))
        terms = book.stream("carol").terms
        assert terms is not None
        assert terms.state == state
    assert book.stream("carol").version == 7
    assert str(book.stream("carol").balance.posted) == "0.00 USD"
