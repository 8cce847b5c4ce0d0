"""The book: money is conserved, replay is a fold in any pieces, and a copy goes its own way."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import LEDGER_ID, MOMENT, TRANSACTION_ID, events

from ledger import AccountType, Balance, Command, Direction, Entry, Money, Numbers, Rejected, UnknownAccount
from ledger.core.book import Book, Stream, evolve, in_normal_direction, replay, stream_of
from ledger.core.commands import Deposit, Post, Transfer, Withdraw
from ledger.core.decide import Occasion, decide
from ledger.core.events import (
    LEDGER_STREAM,
    AccountOpened,
    AccountStateChanged,
    AccountTermsChanged,
    AssetDefined,
    EntryPosted,
    Event,
    HoldCaptured,
    HoldExpired,
    HoldPlaced,
    HoldReleased,
    PeriodClosed,
    StateAdvanced,
    StripesChanged,
)
from ledger.core.lifecycle import HOLD

OPENED: tuple[Event, ...] = (
    AssetDefined("USD", 2),
    AssetDefined("BTC", 8),
    AccountOpened("world", AccountType.EQUITY, "USD", 2, None, None, {}),
    AccountOpened("cash", AccountType.ASSET, "USD", 2, 0, None, {}),
    AccountOpened("alice", AccountType.LIABILITY, "USD", 2, 0, 500_00, {}),
    AccountOpened("fees", AccountType.INCOME, "USD", 2, None, None, {}),
    AccountOpened("costs", AccountType.EXPENSE, "USD", 2, None, 100_00, {}),
    AccountOpened("mine", AccountType.EQUITY, "BTC", 8, None, None, {}),
    AccountOpened("purse", AccountType.ASSET, "BTC", 8, 0, None, {}),
)

accounts = st.sampled_from([event.account for event in OPENED if isinstance(event, AccountOpened)])
amounts = st.builds(Money.of, st.integers(1, 600), st.sampled_from(["USD", "BTC"]))
sides = st.lists(accounts, min_size=2, max_size=2, unique=True)
balanced = st.lists(st.tuples(amounts, accounts, accounts), min_size=1, max_size=4).map(
    lambda moves: Post(
        entries=tuple(
            Entry(account=account, amount=amount, direction=direction)
            for amount, debited, credited in moves
            for account, direction in ((debited, Direction.DEBIT), (credited, Direction.CREDIT))
        )
    )
)
lopsided = st.lists(
    st.builds(Entry, account=accounts, amount=amounts, direction=st.sampled_from(Direction)), min_size=2, max_size=5
).map(lambda entries: Post(entries=tuple(entries)))
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(lambda amount, two: Transfer(amount=amount, debit=two[0], credit=two[1]), amounts, sides),
    st.builds(lambda amount, two: Deposit(amount=amount, account=two[0], against=two[1]), amounts, sides),
    st.builds(lambda amount, two: Withdraw(amount=amount, account=two[0], against=two[1]), amounts, sides),
    balanced,
    lopsided,
)


def opened() -> Book:
    """A book of some accounts without money."""
    return replay(Book(LEDGER_ID), OPENED)


@given(st.lists(commands, max_size=25))
def test_money_is_conserved(asked: list[Command]) -> None:
    """Whatever is asked, what is accepted sums to zero per asset, keeps the limits, and only adds turnover."""
    book = opened()
    for command in asked:
        before = {name: stream.numbers for name, stream in book.streams.items()}
        try:
            happened = decide(command, book, Occasion(MOMENT, TRANSACTION_ID))
        except Rejected:
            continue
        replay(book, happened)

        assert sum(stream.numbers.posted_debits for stream in book.streams.values()) > 0
        assert all(
            after >= was
            for name, numbers in before.items()
            for was, after in zip(numbers, book.streams[name].numbers, strict=True)
        )
    totals = {"USD": 0, "BTC": 0}
    for stream in book.streams.values():
        if stream.terms is not None:
            totals[stream.terms.asset] += stream.numbers.posted_debits - stream.numbers.posted_credits
            posted = stream.balance.posted.minor
            # Nothing here opens beyond its limits, so nothing ends beyond them.
            assert stream.terms.min_balance is None or posted >= stream.terms.min_balance
            assert stream.terms.max_balance is None or posted <= stream.terms.max_balance
    assert totals == {"USD": 0, "BTC": 0}


@given(st.lists(events, max_size=30), st.data())
def test_replay_is_a_fold_in_any_chunks(happened: list[Event], data: st.DataObject) -> None:
    """Replaying at once, one by one or in any pieces leads to the same book."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(happened)), max_size=5)))
    pieces = [happened[low:high] for low, high in zip([0, *cuts], [*cuts, len(happened)], strict=True)]
    at_once, one_by_one, in_pieces = Book(LEDGER_ID), Book(LEDGER_ID), Book(LEDGER_ID)

    replay(at_once, happened)
    for event in happened:
        evolve(one_by_one, event)
    for piece in pieces:
        in_pieces = replay(in_pieces.copy(), piece)

    assert at_once == one_by_one == in_pieces
    for name, stream in at_once.streams.items():
        assert stream.version == sum(stream_of(event) == name for event in happened)


@given(st.lists(events, max_size=10), st.lists(events, min_size=1, max_size=10))
def test_copies_are_independent(past: list[Event], future: list[Event]) -> None:
    """What happens in a copy does not happen in the book, nor the other way round."""
    book, again = replay(Book(LEDGER_ID), past), replay(Book(LEDGER_ID), past)
    copy = book.copy()
    assert copy == book

    replay(copy, future)
    assert book == again
    assert copy != book

    untouched = copy.copy()
    replay(book, future)
    copy.stream(stream_of(future[0])).head_hash = b"changed"
    assert untouched == book


def test_book_has_a_place_for_every_field() -> None:
    """A copied stream has all that the original has, the head of its chain included."""
    stream = Stream("alice", 7, Numbers(1, 2, 3, 4), b"head", terms=opened().stream("alice").terms, state="created")
    book = Book(LEDGER_ID, {"alice": stream}, {"USD": 2})

    copied = book.copy().stream("alice")

    assert copied is not stream
    assert {name: getattr(copied, name) for name in Stream.__slots__} == {
        name: getattr(stream, name) for name in Stream.__slots__
    }


def test_streams_of_events() -> None:
    """An account's events are in its own stream; ledger-wide facts are in ours."""
    assert stream_of(AssetDefined("USD", 2)) == LEDGER_STREAM == "$ledger"
    assert stream_of(PeriodClosed(MOMENT, (), None)) == LEDGER_STREAM
    assert stream_of(EntryPosted("alice", Direction.DEBIT, "USD", 1, 0)) == "alice"
    assert stream_of(HoldPlaced("alice", Direction.DEBIT, "USD", 1, 0, TRANSACTION_ID, None)) == "alice"
    assert stream_of(StateAdvanced("#trip/7", "trip", "begin", "", "requested", "")) == "#trip/7"


@pytest.mark.parametrize(
    ("account_type", "posted", "pending", "available"),
    [
        (AccountType.ASSET, "60.00 USD", "2.00 USD", "57.00 USD"),
        (AccountType.EXPENSE, "60.00 USD", "2.00 USD", "57.00 USD"),
        (AccountType.LIABILITY, "-60.00 USD", "-2.00 USD", "-65.00 USD"),
        (AccountType.EQUITY, "-60.00 USD", "-2.00 USD", "-65.00 USD"),
        (AccountType.INCOME, "-60.00 USD", "-2.00 USD", "-65.00 USD"),
    ],
)
def test_balances_are_seen_from_the_normal_side(
    account_type: AccountType, posted: str, pending: str, available: str
) -> None:
    """Posted is settled; pending is the net of holds; available is posted less what is held for going out."""
    book = replay(Book(LEDGER_ID), [AccountOpened("a", account_type, "USD", 2, None, None, {})])
    stream = book.stream("a")
    stream.numbers = Numbers(100_00, 40_00, 5_00, 3_00)

    assert stream.balance == Balance("a", Money.parse(posted), Money.parse(pending), Money.parse(available), 1)


@given(st.sampled_from(Direction), st.lists(st.integers(0, 10**38 - 1), min_size=4, max_size=4))
def test_normal_direction_only_swaps_sides(normal: Direction, four: list[int]) -> None:
    """Both directions see the same four numbers, and opposite balances."""
    numbers = Numbers(*four)
    posted_in, posted_out, pending_in, pending_out = in_normal_direction(normal, numbers)

    assert sorted((posted_in, posted_out, pending_in, pending_out)) == sorted(four)
    sign = 1 if normal is Direction.DEBIT else -1
    assert Fraction(posted_in - posted_out, 1) == sign * (numbers.posted_debits - numbers.posted_credits)
    assert pending_in - pending_out == sign * (numbers.pending_debits - numbers.pending_credits)


@pytest.mark.parametrize("direction", Direction)
def test_movements_move_one_pair_of_numbers(direction: Direction) -> None:
    """A hold is pending, a capture turns pending into posted, a release and an expiry only take pending away."""
    book = opened()
    for event, posted, pending in (
        (HoldPlaced("alice", direction, "USD", 100, 0, TRANSACTION_ID, None), 0, 100),
        (HoldCaptured("alice", direction, "USD", 50, 0, TRANSACTION_ID), 50, 50),
        (HoldReleased("alice", direction, "USD", 20, 0, TRANSACTION_ID), 50, 30),
        (EntryPosted("alice", direction, "USD", 7, 0), 57, 30),
        (HoldExpired("alice", direction, "USD", 30, 0, TRANSACTION_ID), 57, 0),
    ):
        stream = evolve(book, event)
        sides = (posted, 0, pending, 0) if direction is Direction.DEBIT else (0, posted, 0, pending)
        assert stream.numbers == Numbers(*sides)
    leg = book.holds[TRANSACTION_ID]["alice"]
    assert (leg.amount, leg.captured, leg.released, leg.expired, leg.left) == (100, 50, 20, 30, 0)


def _of_hold(kind: type[HoldCaptured | HoldReleased | HoldExpired], amount: int) -> Event:
    return kind("alice", Direction.DEBIT, "USD", amount, 0, TRANSACTION_ID)


@pytest.mark.parametrize(
    ("events", "steps", "state"),
    [
        ((), "", "open"),
        ((_of_hold(HoldCaptured, 99),), "capture", "open"),
        ((_of_hold(HoldCaptured, 100),), "capture_rest", "captured"),
        ((_of_hold(HoldReleased, 100),), "release_rest", "released"),
        ((_of_hold(HoldExpired, 100),), "expire", "expired"),
        ((_of_hold(HoldCaptured, 1), _of_hold(HoldReleased, 99)), "capture release_rest_after_capture", "captured"),
        ((_of_hold(HoldCaptured, 1), _of_hold(HoldExpired, 99)), "capture expire_after_capture", "captured"),
        ((_of_hold(HoldReleased, 99), _of_hold(HoldExpired, 1)), "release expire", "expired"),
        ((_of_hold(HoldReleased, 1), _of_hold(HoldCaptured, 99)), "release capture_rest", "captured"),
    ],
)
def test_states_of_a_hold(events: tuple[Event, ...], steps: str, state: str) -> None:
    """A hold is open while anything is left; after that it is what became of it, as its machine says."""
    placed = HoldPlaced("alice", Direction.DEBIT, "USD", 100, 0, TRANSACTION_ID, None)
    book = replay(opened(), (placed, *events))
    reached = HOLD.initial
    for step in steps.split():
        reached = HOLD.advance(reached, step)

    assert book.holds[TRANSACTION_ID]["alice"].state == state
    assert reached == state


def test_terms_and_states_are_the_last_ones_told() -> None:
    """A change of terms leaves the state alone, a change of state the terms; what is not there is not changed."""
    book = replay(
        opened(),
        (
            AccountStateChanged("alice", "frozen", None),
            AccountTermsChanged("alice", -5, None, {"b": 1, "a": 2}, None),
            AccountStateChanged("nobody", "frozen", None),
            AccountTermsChanged("nobody", 1, 2, {}, None),
            StripesChanged("alice", 2, 4, None),
            HoldReleased("alice", Direction.DEBIT, "USD", 0, 0, "unknown"),
            StateAdvanced("#trip/7", "trip", "begin", "", "requested", ""),
            PeriodClosed(MOMENT, (), None),
        ),
    )
    terms = book.stream("alice").terms

    assert terms is not None
    assert (terms.state, terms.min_balance, terms.max_balance, terms.metadata) == ("frozen", -5, None, '{"a":2,"b":1}')
    assert (terms.stripes, terms.streams) == (2, 4)
    assert (terms.asset, terms.scale, terms.account_type) == ("USD", 2, AccountType.LIABILITY)
    assert (book.stream("nobody").terms, book.stream("nobody").version) == (None, 2)
    assert book.holds == {"unknown": {}}
    assert book.stream("#trip/7").state == "requested"
    assert book.closed_until == MOMENT


def test_no_account_no_balance() -> None:
    """A stream where no account is open has no balance, and says so."""
    with pytest.raises(UnknownAccount):
        _ = Book(LEDGER_ID).stream("nobody").balance
