"""The rules about accounts with stripes as a table, and which of their streams an entry goes to."""

from __future__ import annotations

import pytest
from rules import (
    CREDIT,
    DEBIT,
    EQUITY,
    NOW,
    TRANSACTION,
    Acceptance,
    Past,
    Rejection,
    book_of,
    check_acceptance,
    check_rejection,
    decided,
    deposit,
    hold,
    hold_id,
    moved,
    opened,
    opening,
    posted,
    reverse,
    transfer,
    withdraw,
)

from ledger import (
    AccountNotEmpty,
    AccountNotOpen,
    AssetMismatch,
    Capture,
    ChangeAccount,
    CloseAccount,
    ExpireHold,
    Freeze,
    InvalidCommand,
    OpenAccount,
    Release,
    StripedAccount,
    Unfreeze,
    UnknownAccount,
    VersionConflict,
)
from ledger.core.commands import STRIPES_MAX, Command, build
from ledger.core.events import (
    AccountOpened,
    AccountStateChanged,
    AccountTermsChanged,
    EntryPosted,
    Event,
    HoldCaptured,
    HoldExpired,
    HoldPlaced,
    HoldReleased,
    StripesChanged,
    account_of,
    stripes_of,
)

THREE = ("hot", "hot#01", "hot#02")


def striped(account: str = "hot", stripes: int = 3, streams: int = 3) -> list[Event]:
    """An account whose transactions choose among its first streams, as it begins."""
    return [
        event
        for name in stripes_of(account, streams)
        for event in (opened(name, EQUITY), StripesChanged(name, stripes, streams, None))
    ]


def in_all(kind: type[AccountStateChanged], *fields: object) -> list[Event]:
    """The same fact in each stream of `hot`."""
    return [kind(name, *fields) for name in THREE]  # type: ignore[arg-type]


def change(account: str, **changes: object) -> ChangeAccount:
    """A change of an account."""
    return build(ChangeAccount, account=account, **changes)


HOT = tuple(striped())
FROZEN = (*HOT, *in_all(AccountStateChanged, "frozen", None))
NO_VERSION = StripedAccount("hot", "its stripes have a version each, and it has none to expect")
NO_LIMITS = StripedAccount("hot", "its 3 streams stay, and none knows what is in the others; it can have no limits")
LIMITED = "limits and stripes do not go together; take its limits away first"

HELD = (
    HoldPlaced("hot#01", DEBIT, "USD", 5_00, 0, hold_id(1), None),
    HoldPlaced("bob", CREDIT, "USD", 5_00, 1, hold_id(1), None),
)

_REJECTIONS: dict[str, Rejection] = {
    "a frozen account refuses in each of its streams, by its own name": Rejection(
        AccountNotOpen("hot", "frozen"), transfer("1 USD", "hot", "bob"), FROZEN
    ),
    "no version of it can be expected": Rejection(
        NO_VERSION, transfer("1 USD", "hot", "bob", expected_versions={"hot": 2}), HOT
    ),
    "nor of one beside": Rejection(
        NO_VERSION, transfer("1 USD", "alice", "bob", expected_versions={"alice": 9, "hot": 2}), HOT
    ),
    "nor by what is said of it": Rejection(NO_VERSION, Freeze(account="hot", expected_versions={"hot": 2}), HOT),
    "nor when transactions choose no more": Rejection(
        NO_VERSION,
        transfer("1 USD", "hot", "bob", expected_versions={"hot": 2}),
        tuple(striped(stripes=1)),
    ),
    "a minimum on an account with streams": Rejection(NO_LIMITS, change("hot", min_balance="0 USD"), HOT),
    "a maximum with one stripe again": Rejection(NO_LIMITS, change("hot", max_balance="5 USD", stripes=1), HOT),
    "stripes for an account with a minimum": Rejection(StripedAccount("alice", LIMITED), change("alice", stripes=2)),
    "stripes for an account with a maximum": Rejection(StripedAccount("capped", LIMITED), change("capped", stripes=2)),
    "stripes together with a limit": Rejection(
        StripedAccount("world", LIMITED), change("world", stripes=2, min_balance="-5 USD")
    ),
    "a version that is not the account's, when it has no stripes": Rejection(
        VersionConflict("world", 9, 2), change("world", stripes=2, expected_versions={"world": 9})
    ),
    "another asset in a capture names the account": Rejection(
        AssetMismatch("hot", "USD", "EUR"), build(Capture, hold=hold_id(1), amount="1 EUR"), (*HOT, *HELD)
    ),
    "what all streams have together is not nothing": Rejection(
        AccountNotEmpty("hot", "1.00 USD", "0.00 USD"),
        CloseAccount(account="hot"),
        (*HOT, posted("hot#01", CREDIT, 3_00), posted("hot#02", DEBIT, 2_00)),
    ),
    "something is held in one of them": Rejection(
        AccountNotEmpty("hot", "0.00 USD", "5.00 USD"), CloseAccount(account="hot"), (*HOT, *HELD)
    ),
}
REJECTIONS = list(_REJECTIONS.values())


@pytest.mark.parametrize("row", REJECTIONS, ids=_REJECTIONS.keys())
def test_rejections(row: Rejection) -> None:
    """Each rule refuses what it must, by the name of the account, with the facts that a caller needs to act."""
    check_rejection(row)


ACCEPTANCES: dict[str, Acceptance] = {
    "it is opened in all of its streams": Acceptance(
        opening("new", stripes=2, metadata={"tier": 1}),
        [
            opened("new")._replace(metadata={"tier": 1}),
            StripesChanged("new", 2, 2, None),
            opened("new#01")._replace(metadata={"tier": 1}),
            StripesChanged("new#01", 2, 2, None),
        ],
    ),
    "one stripe is what every account has": Acceptance(opening("new", stripes=1), [opened("new")]),
    "it is frozen in all of its streams": Acceptance(
        Freeze(account="hot", reason="audit"), in_all(AccountStateChanged, "frozen", "audit"), HOT
    ),
    "and goes on in all of them": Acceptance(
        Unfreeze(account="hot"), in_all(AccountStateChanged, "open", None), FROZEN
    ),
    "it is closed when they come to nothing together": Acceptance(
        CloseAccount(account="hot"),
        in_all(AccountStateChanged, "closed", None),
        (*HOT, posted("hot#01", CREDIT, 3_00), posted("hot#02", DEBIT, 3_00)),
    ),
    "what describes it is changed in all of them": Acceptance(
        change("hot", metadata={"tier": 1}),
        [AccountTermsChanged(name, None, None, {"tier": 1}, None) for name in THREE],
        HOT,
    ),
    "stripes for an account that has none": Acceptance(
        change("world", stripes=2, reason="black friday"),
        [
            opened("world#01", EQUITY),
            StripesChanged("world", 2, 2, "black friday"),
            StripesChanged("world#01", 2, 2, "black friday"),
        ],
    ),
    "more stripes for one that is frozen and described": Acceptance(
        change("hot", stripes=4, metadata={"tier": 1}),
        [
            *(AccountTermsChanged(name, None, None, {"tier": 1}, None) for name in THREE),
            opened("hot#03", EQUITY)._replace(metadata={"tier": 1}),
            AccountStateChanged("hot#03", "frozen", None),
            *(StripesChanged(name, 4, 4, None) for name in (*THREE, "hot#03")),
        ],
        FROZEN,
    ),
    "fewer stripes leave the streams that there are": Acceptance(
        change("hot", stripes=2), [StripesChanged(name, 2, 3, None) for name in THREE], HOT
    ),
    "and stripes that are there already begin nothing": Acceptance(
        change("hot", stripes=3),
        [StripesChanged(name, 3, 3, None) for name in THREE],
        tuple(striped(stripes=1)),
    ),
    "limits go, and stripes come": Acceptance(
        change("capped", max_balance="unlimited", stripes=2),
        [
            AccountTermsChanged("capped", None, None, {}, None),
            opened("capped#01"),
            StripesChanged("capped", 2, 2, None),
            StripesChanged("capped#01", 2, 2, None),
        ],
    ),
}


@pytest.mark.parametrize("row", ACCEPTANCES.values(), ids=ACCEPTANCES.keys())
def test_acceptances(row: Acceptance) -> None:
    """What is said of an account is said in each of its streams, and only when that is appended."""
    check_acceptance(row)


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        (transfer("1 USD", "hot", "bob"), [EntryPosted] * 2),
        (deposit("1 USD", "bob", "hot"), [EntryPosted] * 2),
        (withdraw("1 USD", "hot", "bob"), [EntryPosted] * 2),
        (hold("1 USD", "hot", "bob"), [HoldPlaced] * 2),
    ],
)
def test_new_entries_go_to_the_chosen_stream(command: Command, kinds: list[type]) -> None:
    """A command names the account, and its events the stream that was chosen; without a choice, the first."""
    for stream, chosen in (("hot#02", {"hot": "hot#02"}), ("hot", {})):
        book = book_of(*HOT)
        book.chosen = chosen
        events = decided(command, book)
        assert [type(event) for event in events] == kinds
        assert [event.account for event in events] == [stream, "bob"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (Capture(hold=hold_id(1)), HoldCaptured),
        (Release(hold=hold_id(1)), HoldReleased),
    ],
)
def test_what_becomes_of_a_hold_stays_where_it_was_placed(command: Command, kind: type) -> None:
    """A hold is captured and released in the streams of its sides, whatever is chosen for new entries."""
    book = book_of(*HOT, *HELD)
    book.chosen = {"hot": "hot#02"}

    events = decided(command, book)

    assert [type(event) for event in events] == [kind] * 2
    assert [event.account for event in events] == ["hot#01", "bob"]  # type: ignore[union-attr]


def test_a_hold_expires_where_it_was_placed() -> None:
    """So does its expiry."""
    due = [event._replace(expires_at=NOW) for event in HELD]
    book = book_of(*HOT, *due)
    book.chosen = {"hot": "hot"}

    events = decided(ExpireHold(hold=hold_id(1)), book)

    assert events == [HoldExpired(*event[:6]) for event in due]


@pytest.mark.parametrize("chosen", [{}, {"hot": "hot#02"}, {"hot": "hot"}])
def test_a_reversal_stays_where_the_entries_are(chosen: dict[str, str]) -> None:
    """What was posted to a stripe is taken from that stripe, the first one too."""
    for stream in ("hot", "hot#01"):
        sale = Past(TRANSACTION, "transfer", moved((stream, DEBIT, 5_00), ("bob", CREDIT, 5_00)))
        book = book_of(*HOT, past=[sale])
        book.chosen = chosen

        events = decided(reverse(TRANSACTION), book)

        assert [event.account for event in events] == [stream, "bob"]  # type: ignore[union-attr]


def test_an_unknown_account_is_named_without_its_stripe() -> None:
    """Nobody who asked knows what the stream is called."""
    book = book_of()
    book.chosen = {"hot": "hot#02"}

    with pytest.raises(UnknownAccount, match="Account hot does not exist"):
        decided(transfer("1 USD", "hot", "bob"), book)


@pytest.mark.parametrize("limits", [{"min_balance": 0}, {"max_balance": "5 USD"}])
def test_limits_and_stripes_are_refused_where_they_are_written(limits: dict[str, object]) -> None:
    """No account is opened with both."""
    asked = {"account": "new", "asset": "USD", "account_type": "liability", **limits}
    with pytest.raises(InvalidCommand, match="has no limits"):
        build(OpenAccount, stripes=2, **asked)
    assert build(OpenAccount, stripes=1, **asked).stripes == 1


@pytest.mark.parametrize("stripes", [0, -1, STRIPES_MAX + 1, True, 2.0, "2"])
def test_a_number_of_stripes_is_from_1_to_256(stripes: object) -> None:
    """Anything else is refused, whatever it is."""
    for model, more in ((OpenAccount, {"asset": "USD", "account_type": "equity"}), (ChangeAccount, {})):
        with pytest.raises(InvalidCommand, match="stripes"):
            build(model, account="hot", stripes=stripes, **more)


def test_requests_without_stripes_are_what_they_were() -> None:
    """The fingerprint of a command that says nothing of stripes is the one of the releases before there were any."""
    one = '{"account":"new","account_type":"liability","asset":"USD","type":"open_account"}'

    assert opening("new").request() == opening("new", stripes=1).request() == one
    assert opening("new", stripes=2).request() == one.replace('"type"', '"stripes":2,"type"')
    assert change("new", max_balance="unlimited").request() == (
        '{"account":"new","max_balance":"unlimited","type":"change_account"}'
    )
    assert change("new", stripes=1).request() == '{"account":"new","stripes":1,"type":"change_account"}'


def test_streams_of_an_account() -> None:
    """The first bears the account's name, and of each one can be told whose it is; other streams are their own."""
    names = stripes_of("users:4/wallet", STRIPES_MAX)

    assert [names[number] for number in (0, 1, 99, 100, 255)] == [
        "users:4/wallet", "users:4/wallet#01", "users:4/wallet#99", "users:4/wallet#100", "users:4/wallet#255",
    ]  # fmt: skip
    assert len(set(names)) == STRIPES_MAX
    assert {account_of(name) for name in names} == {"users:4/wallet"}
    assert [account_of(name) for name in ("$ledger", "#trip/t-1", "a")] == ["$ledger", "#trip/t-1", "a"]


def test_opening_256_stripes_fits_one_transaction() -> None:
    """The largest account is opened like the smallest, and closed again."""
    book = book_of(*decided(opening("huge", stripes=STRIPES_MAX), book_of()))

    assert len(decided(CloseAccount(account="huge"), book)) == STRIPES_MAX
    assert isinstance(decided(opening("huge2", stripes=STRIPES_MAX), book)[0], AccountOpened)
