"""What holds whatever is asked, in whatever order: random lives of a small ledger, judged by its laws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final
from uuid import UUID

from hypothesis import event as note
from hypothesis import given
from hypothesis import strategies as st
from samples import LEDGER_ID, record, transaction

from ledger import AccountType, Command, Direction, Money, Recorded, Rejected
from ledger.core.book import Book, Stream, evolve, in_normal_direction, remember, replay
from ledger.core.codec import event_from
from ledger.core.commands import (
    Advance,
    Begin,
    Capture,
    ChangeAccount,
    CloseAccount,
    ClosePeriod,
    Deposit,
    ExpireHold,
    Freeze,
    Hold,
    Release,
    Reverse,
    Transfer,
    Unfreeze,
    Withdraw,
    build,
)
from ledger.core.decide import Occasion, decide
from ledger.core.events import (
    AccountOpened,
    AssetDefined,
    EntryPosted,
    Event,
    HoldCaptured,
    HoldExpired,
    HoldPlaced,
    HoldReleased,
)
from ledger.lifecycle import shipped

START: Final = datetime.fromisoformat("2026-03-04T05:06:07+00:00")
MINUTE: Final = timedelta(minutes=1)

OPENED: tuple[Event, ...] = (
    AssetDefined("USD", 2),
    AssetDefined("JPY", 0),
    AccountOpened("world", AccountType.EQUITY, "USD", 2, None, None, {}),
    AccountOpened("cash", AccountType.ASSET, "USD", 2, 0, 300_00, {}),
    AccountOpened("alice", AccountType.LIABILITY, "USD", 2, 0, 500_00, {}),
    AccountOpened("shop", AccountType.LIABILITY, "USD", 2, -20_00, None, {}),
    AccountOpened("mint", AccountType.EQUITY, "JPY", 0, None, None, {}),
    AccountOpened("purse", AccountType.ASSET, "JPY", 0, 0, 500, {}),
    EntryPosted("world", Direction.DEBIT, "USD", 200_00, 0),
    EntryPosted("alice", Direction.CREDIT, "USD", 200_00, 1),
    EntryPosted("purse", Direction.DEBIT, "JPY", 200, 2),
    EntryPosted("mint", Direction.CREDIT, "JPY", 200, 3),
)
SIDES: Final = (Direction.DEBIT, Direction.CREDIT)
ASSETS: Final = {"USD": ("world", "cash", "alice", "shop"), "JPY": ("mint", "purse")}


@dataclass
class Life:
    """A ledger that lives: its book, all that was recorded, and who may be referred to."""

    book: Book = field(default_factory=lambda: Book(LEDGER_ID, machines={"trip": shipped("trip")}))
    now: datetime = START
    recorded: list[Recorded] = field(default_factory=list)
    happened: list[Event] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    @property
    def open_holds(self) -> list[str]:
        """The holds of which something is left, those first whose time is over."""
        left = [next(iter(legs.values())) for legs in self.book.holds.values()]
        due = [leg.hold for leg in left if leg.left and leg.expires_at is not None and leg.expires_at <= self.now]
        return due or [leg.hold for leg in left if leg.left]

    def __post_init__(self) -> None:
        self.recorded += record(*OPENED, book=self.book)
        self.happened += OPENED

    def ask(self, command: Command) -> Sequence[Event]:
        """Decide a command, and record what it makes happen, as the writer does."""
        transaction_id = str(UUID(int=len(self.ids) + 1))
        events = decide(command, self.book, Occasion(self.now, transaction_id))
        self.recorded += record(*events, of=transaction(transaction_id=transaction_id), book=self.book)
        self.happened += events
        remember(self.book, transaction_id, command.type, events, command.refers_to)
        self.ids.append(transaction_id)
        return events


Step = Callable[[Life], Command]
"""What is asked next: it may refer to what happened before."""

amounts = st.tuples(st.sampled_from(["USD"] * 4 + ["JPY"]), st.integers(1, 90)).map(
    lambda of: f"{of[1]} {of[0]}" if of[0] == "JPY" else f"{of[1]}.{of[1] % 4 * 25:02} {of[0]}"
)
places = st.integers(0, 60)


@st.composite
def moves(draw: st.DrawFn, kind: type[Command]) -> Step:
    """An amount between two accounts of its asset."""
    amount = draw(amounts)
    one, other = draw(st.permutations(ASSETS[amount[-3:]]))[:2]
    if kind is Hold:
        ends = draw(st.none() | st.integers(1, 20))
        return lambda life: build(
            Hold, amount=amount, debit=one, credit=other, expires_at=None if ends is None else life.now + ends * MINUTE
        )
    sides = ("debit", "credit") if kind is Transfer else ("account", "against")
    return lambda _: build(kind, amount=amount, **dict(zip(sides, (one, other), strict=True)))


parts = st.none() | st.integers(1, 5)
"""Of what is left: all of it, or so many quarters; five stand for one minor unit more than there is."""


def one_of(known: Sequence[str], place: int) -> str:
    """One of those that there are, or one that there is not."""
    return known[place % len(known)] if known else str(UUID(int=10**6))


def part_of(account: str, left: int, quarters: int | None, life: Life) -> Money | None:
    """So many quarters of what is left, at least one minor unit; or one more than all."""
    terms = life.book.streams[account].terms
    assert terms is not None
    if quarters is None:
        return None
    return terms.money(left + 1 if quarters == 5 else max(1, left * quarters // 4))


def taken_up(kind: type[Command]) -> st.SearchStrategy[Step]:
    """Something that refers to a hold: one of which something is left, where there is one."""

    def ask(life: Life, place: int, quarters: int | None, final: bool) -> Command:
        hold = one_of(life.open_holds or list(life.book.holds), place)
        more: dict[str, object] = {}
        for leg in life.book.holds.get(hold, {}).values():
            more = {"amount": part_of(leg.account, leg.left, quarters, life)}
        if kind is Capture:
            more["final"] = final
        return build(kind, hold=hold, **({} if kind is ExpireHold else more))

    return st.builds(
        lambda place, quarters, final: lambda life: ask(life, place, quarters, final), places, parts, st.booleans()
    )


def reversal(life: Life, place: int, quarters: int | None, force: bool) -> Command:
    """A reversal of something that was posted, where there is something, or of anything else."""
    posted = [name for name, original in life.book.originals.items() if original.entries]
    name = one_of(posted if place % 8 else life.ids, place)
    amount = None
    if name in posted:
        entry = life.book.originals[name].entries[0]
        amount = part_of(entry.account, entry.amount, quarters, life)
    return build(Reverse, transaction_id=name, amount=amount, force=force)


reversals: st.SearchStrategy[Step] = st.builds(
    lambda place, quarters, force: lambda life: reversal(life, place, quarters, force), places, parts, st.booleans()
)
states: st.SearchStrategy[Step] = st.builds(
    lambda kind, account: lambda _: build(kind, account=account),
    st.sampled_from([Freeze, Unfreeze, Unfreeze, Unfreeze, CloseAccount]),
    st.sampled_from(["alice", "shop", "cash"]),
)
changes: st.SearchStrategy[Step] = st.builds(
    lambda account, limit: lambda _: build(ChangeAccount, account=account, min_balance=limit),
    st.sampled_from(ASSETS["USD"]),
    st.sampled_from(["0 USD", "-50 USD", "10 USD", "unlimited"]),
)
others: st.SearchStrategy[Step] = st.one_of(
    st.just(lambda life: build(ClosePeriod, until=life.now - 11 * MINUTE)),
    st.just(lambda _: build(Begin, machine="trip", subject="t1")),
    st.sampled_from(["accept", "start", "end", "cancel"]).map(
        lambda event: lambda _: build(Advance, machine="trip", subject="t1", event=event)
    ),
)
steps: st.SearchStrategy[Step] = st.one_of(
    *[moves(kind) for kind in (Deposit, Transfer, Withdraw, Hold, Hold, Hold, Hold)],
    *[taken_up(kind) for kind in (Capture, Capture, Capture, Release, Release, ExpireHold, ExpireHold)],
    *[reversals] * 3,
    states,
    changes,
    others,
)
lives = st.lists(st.tuples(steps, st.integers(0, 8)), min_size=10, max_size=40)
"""What is asked, and how many minutes pass before it."""


def lived(asked: list[tuple[Step, int]], check: Callable[[Life, Command, Book], None] | None = None) -> Life:
    """Live through all of it; `check` looks at each command that was accepted, and at the book before it."""
    life = Life()
    for step, minutes in asked:
        life.now += minutes * MINUTE
        before = life.book.copy()
        command = step(life)
        try:
            life.ask(command)
        except Rejected:
            for name in set(life.book.streams) - set(before.streams):
                assert life.book.streams.pop(name).version == 0
            assert life.book == before
            continue
        note(command.type)
        if check is not None:
            check(life, command, before)
    return life


@given(lives)
def test_money_is_conserved(asked: list[tuple[Step, int]]) -> None:
    """Posted and pending, each for itself: what was debited in an asset was credited, after every command."""

    def check(life: Life, _: Command, before: Book) -> None:
        for accounts in ASSETS.values():
            numbers = [life.book.streams[account].numbers for account in accounts]
            debits, credits, pending_debits, pending_credits = map(sum, zip(*numbers, strict=True))
            assert (debits, pending_debits) == (credits, pending_credits)
        for name, stream in before.streams.items():
            now = life.book.streams[name].numbers
            assert now.posted_debits >= stream.numbers.posted_debits
            assert now.posted_credits >= stream.numbers.posted_credits
            assert min(now) >= 0

    lived(asked, check)


@given(lives)
def test_what_is_pending_is_what_is_left_of_open_holds(asked: list[tuple[Step, int]]) -> None:
    """Holds and balances say the same: on each side of each account, and both sides of a hold agree."""

    def check(life: Life, _command: Command, _before: Book) -> None:
        legs = [leg for sides in life.book.holds.values() for leg in sides.values()]
        for name, stream in life.book.streams.items():
            left = [sum(leg.left for leg in legs if (leg.account, leg.direction) == (name, side)) for side in SIDES]
            assert list(stream.numbers[2:]) == left
        for sides in life.book.holds.values():
            one, other = sides.values()
            assert one[4:] == other[4:]
            assert {one.direction, other.direction} == set(SIDES)

    lived(asked, check)


@given(lives)
def test_nothing_is_taken_twice(asked: list[tuple[Step, int]]) -> None:
    """No more is captured, released and expired than was held; no more reversed, by entry, than was posted."""
    of_original: dict[tuple[str, int], int] = {}

    def check(life: Life, command: Command, _: Book) -> None:
        """Counted from what happened: the book's own count is what a decision rests on."""
        if not isinstance(command, Reverse):
            return
        original = life.book.originals[command.transaction_id]
        assert original.kind != "reverse"
        for entry, back in life.book.originals[life.ids[-1]].entries.items():
            key = command.transaction_id, entry
            of_original[key] = of_original.get(key, original.entries[entry].amount) - back.amount
            assert of_original[key] >= 0
            assert (back.account, back.direction) == (original.entries[entry].account, other(original.entries[entry]))

    life = lived(asked, check)
    of_hold: dict[tuple[str, str], int] = {}
    for event in life.happened:
        if isinstance(event, HoldPlaced):
            of_hold[event.hold, event.account] = event.amount
        elif isinstance(event, HoldCaptured | HoldReleased | HoldExpired):
            of_hold[event.hold, event.account] -= event.amount
            assert of_hold[event.hold, event.account] >= 0
    assert of_hold == {
        (leg.hold, leg.account): leg.left for sides in life.book.holds.values() for leg in sides.values()
    }


def other(entry: EntryPosted) -> Direction:
    """The side on which an entry is undone."""
    return Direction.CREDIT if entry.direction is Direction.DEBIT else Direction.DEBIT


def most(stream: Stream) -> int:
    """What an account comes to if everything arrives that is held for it."""
    assert stream.terms is not None
    posted_in, posted_out, pending_in, _ = in_normal_direction(stream.terms.normal, stream.numbers)
    return posted_in - posted_out + pending_in


@given(lives)
def test_nothing_goes_beyond_a_limit_but_by_force(asked: list[tuple[Step, int]]) -> None:
    """Who is below a minimum got there by force or by a new limit: nothing else takes them down, nor up too far."""

    def check(life: Life, command: Command, before: Book) -> None:
        if isinstance(command, Reverse) and command.force:
            return
        for name, stream in life.book.streams.items():
            terms, was = stream.terms, before.stream(name)
            if terms is None or was.terms is None:
                continue
            available, before_it = stream.balance.available.minor, was.balance.available.minor
            if terms.min_balance is not None and available < terms.min_balance:
                assert available >= before_it
            if terms.max_balance is not None and most(stream) > terms.max_balance:
                assert most(stream) <= most(was)

    lived(asked, check)


def state_of(book: Book) -> tuple[object, ...]:
    """All that a log tells of a book; hashes and times come from the recording."""
    streams = {
        name: (stream.version, stream.numbers, stream.terms, stream.state) for name, stream in book.streams.items()
    }
    return streams, book.assets, book.holds, book.closed_until


@given(lives, st.data())
def test_the_log_gives_the_same_book_in_any_chunking(asked: list[tuple[Step, int]], data: st.DataObject) -> None:
    """What was recorded reads back as what happened, and replayed at once, one by one or in pieces makes the book."""
    life = lived(asked)
    log = [event_from(recorded) for recorded in life.recorded]
    assert log == life.happened
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=5))), len(log)]
    at_once, one_by_one, in_pieces = Book(LEDGER_ID), Book(LEDGER_ID), Book(LEDGER_ID)

    replay(at_once, log)
    for event in log:
        evolve(one_by_one, event)
    for low, high in pairwise(cuts):
        in_pieces = replay(in_pieces.copy(), log[low:high])

    assert at_once == one_by_one == in_pieces
    assert state_of(at_once) == state_of(life.book)
