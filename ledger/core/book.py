"""The streams a batch touches, as they stand: `evolve` applies one event, `replay` a run of recorded ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, NamedTuple, assert_never

from ledger.core.canonical import canonical_json
from ledger.core.commands import (
    AccountType,
    Direction,
)
from ledger.core.errors import UnknownAccount
from ledger.core.events import (
    LEDGER_STREAM,
    ZERO,
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
    Movement,
    Numbers,
    OfHold,
    PeriodClosed,
    StateAdvanced,
    StripesChanged,
    account_of,
    stripes_of,
)
from ledger.core.lifecycle import StateMachine
from ledger.core.money import Money

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Terms(NamedTuple):
    """
    What an account is; limits are minor units in its normal direction, and `state` is open, frozen or closed.

    It has so many `streams`, and new transactions choose among the first of them, its `stripes`.
    """

    account_type: AccountType
    normal: Direction
    asset: str
    scale: int
    min_balance: int | None
    max_balance: int | None
    state: str
    metadata: str
    stripes: int = 1
    streams: int = 1

    def money(self, minor: int) -> Money:
        """Minor units of the account's asset."""
        return Money(minor, self.asset, self.scale)


class Balance(NamedTuple):
    """
    An account's balance at a version, in its normal direction and all exact.

    `posted` counts settled entries; `pending` is the net of open holds; `available` is what may be taken
    out now: posted less everything held for going out.

    `position` is that of the feed which an answer is pinned to: what was known there, for ever.
    """

    account: str
    posted: Money
    pending: Money
    available: Money
    version: int
    position: int | None = None

    @classmethod
    def from_numbers(cls, account: str, terms: Terms, numbers: Numbers, version: int) -> Balance:
        """The balance that the four gross numbers amount to."""
        posted_in, posted_out, pending_in, pending_out = in_normal_direction(terms.normal, numbers)
        return cls(
            account=account,
            posted=terms.money(posted_in - posted_out),
            pending=terms.money(pending_in - pending_out),
            available=terms.money(posted_in - posted_out - pending_out),
            version=version,
        )


def in_normal_direction(normal: Direction, numbers: Numbers) -> tuple[int, int, int, int]:
    """Posted in, posted out, pending in, pending out, seen from the account's normal side."""
    debits, credits, pending_debits, pending_credits = numbers
    if normal is Direction.DEBIT:
        return debits, credits, pending_debits, pending_credits
    return credits, debits, pending_credits, pending_debits


@dataclass(slots=True)
class Stream:
    """
    The head of one stream: what the next event follows.

    `terms` is None where there is no account; `state` is None but for a caller's own stream that was begun.
    """

    stream: str
    version: int = 0
    numbers: Numbers = ZERO
    head_hash: bytes = b""
    recorded_at: datetime = EPOCH
    terms: Terms | None = None
    state: str | None = None

    @property
    def account(self) -> str:
        """The account that it is a stream of."""
        return account_of(self.stream)

    @property
    def balance(self) -> Balance:
        """The account's balance; raises UnknownAccount where there is none."""
        if self.terms is None:
            raise UnknownAccount(self.stream)
        return Balance.from_numbers(self.stream, self.terms, self.numbers, self.version)


class Leg(NamedTuple):
    """One side of a hold, as it stands: `amount` minor units were set aside, and this is what became of them."""

    hold: str
    account: str
    direction: Direction
    asset: str
    amount: int
    captured: int
    released: int
    expired: int
    expires_at: datetime | None

    @property
    def left(self) -> int:
        """What is still pending."""
        return self.amount - self.captured - self.released - self.expired

    @property
    def state(self) -> str:
        """Open, captured (some of it at least), expired, or released."""
        if self.left:
            return "open"
        return "captured" if self.captured else "expired" if self.expired else "released"


@dataclass(slots=True)
class Original:
    """A transaction that can be taken up again: what it posted, by entry, and how much of that is reversed."""

    transaction_id: str
    kind: str
    entries: dict[int, EntryPosted]
    reversed: dict[int, int]


@dataclass(slots=True)
class Book:
    """
    Everything `decide` may look at: what the commands of a batch name, and what they refer to.

    `holds` has the legs of each hold by stream.  `chosen` names the stream that stands for an account with stripes,
    if it is not the first.  `trial_balance` is there where a period is to be closed.
    """

    ledger_id: str
    streams: dict[str, Stream] = field(default_factory=dict)
    assets: dict[str, int] = field(default_factory=dict)
    holds: dict[str, dict[str, Leg]] = field(default_factory=dict)
    originals: dict[str, Original] = field(default_factory=dict)
    closed_until: datetime | None = None
    trial_balance: tuple[tuple[str, str, str, str], ...] = ()
    machines: Mapping[str, StateMachine] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)

    def of_account(self, account: str) -> Stream:
        """The head of the stream in which new entries of an account go."""
        return self.stream(self.chosen.get(account, account) if self.chosen else account)

    def all_of_account(self, account: str, count: int) -> list[Stream]:
        """The heads of the first `count` streams of an account."""
        return [self.stream(name) for name in stripes_of(account, count)]

    def stream(self, stream: str) -> Stream:
        """The stream's head; a stream that does not exist yet stands at version 0."""
        found = self.streams.get(stream)
        if found is None:
            found = self.streams[stream] = Stream(stream)
        return found

    def copy(self) -> Book:
        """An independent book, to decide on without consequences."""
        streams = {
            name: Stream(name, s.version, s.numbers, s.head_hash, s.recorded_at, s.terms, s.state)
            for name, s in self.streams.items()
        }
        holds = {hold: dict(legs) for hold, legs in self.holds.items()}
        originals = {
            name: Original(name, original.kind, original.entries, dict(original.reversed))
            for name, original in self.originals.items()
        }
        return replace(self, streams=streams, assets=dict(self.assets), holds=holds, originals=originals)


def stream_of(event: Event) -> str:
    """The stream that an event belongs to."""
    if isinstance(event, AssetDefined | PeriodClosed):
        return LEDGER_STREAM
    return event.stream if isinstance(event, StateAdvanced) else event.account


def evolve(book: Book, event: Event) -> Stream:
    """Apply one event: the stream moves on by one version, and what the event says becomes so."""
    stream = book.stream(stream_of(event))
    stream.version += 1
    match event:
        case EntryPosted():
            stream.numbers = with_movement(stream.numbers, event)
        case HoldPlaced() | HoldCaptured() | HoldReleased() | HoldExpired():
            stream.numbers = with_movement(stream.numbers, event)
            _evolve_hold(book, event)
        case AccountOpened():
            stream.terms = terms_of(event)
        case AccountStateChanged() | AccountTermsChanged() | StripesChanged():
            # Of an account that was never opened it changes nothing: `verify` finds the opening missing.
            stream.terms = None if stream.terms is None else _changed(stream.terms, event)
        case AssetDefined():
            book.assets[event.asset] = event.scale
        case PeriodClosed():
            book.closed_until = event.until
        case StateAdvanced():
            stream.state = event.target
        case _:
            assert_never(event)
    return stream


def _changed(terms: Terms, event: AccountStateChanged | AccountTermsChanged | StripesChanged) -> Terms:
    match event:
        case AccountStateChanged():
            return terms._replace(state=event.state)
        case AccountTermsChanged():
            metadata = canonical_json(event.metadata)
            return terms._replace(min_balance=event.min_balance, max_balance=event.max_balance, metadata=metadata)
        case StripesChanged():
            return terms._replace(stripes=event.stripes, streams=event.streams)
        case _:
            assert_never(event)


def _evolve_hold(book: Book, event: OfHold) -> None:
    legs = book.holds.setdefault(event.hold, {})
    leg = legs.get(event.account)
    match event:
        case HoldPlaced():
            leg = Leg(event.hold, event.account, event.direction, event.asset, event.amount, 0, 0, 0, event.expires_at)
        case _ if leg is None:
            return  # Of a hold that was never placed, or is not looked at here.
        case HoldCaptured():
            leg = leg._replace(captured=leg.captured + event.amount)
        case HoldReleased():
            leg = leg._replace(released=leg.released + event.amount)
        case HoldExpired():
            leg = leg._replace(expired=leg.expired + event.amount)
        case _:
            assert_never(event)
    legs[event.account] = leg


def remember(book: Book, transaction_id: str, kind: str, events: Iterable[Event], reverses: str | None) -> None:
    """Let later commands of a batch take up a transaction of an earlier one: to reverse it, or to reverse more."""
    posted = {event.entry: EntryPosted(*event[:5]) for event in events if isinstance(event, EntryPosted | HoldCaptured)}
    book.originals[transaction_id] = Original(transaction_id, kind, posted, {})
    original = None if reverses is None else book.originals.get(reverses)
    if original is not None:
        for entry, event in posted.items():
            original.reversed[entry] = original.reversed.get(entry, 0) + event.amount


def replay(book: Book, events: Iterable[Event]) -> Book:
    """Apply events in order."""
    for event in events:
        evolve(book, event)
    return book


def together(account: str, streams: Sequence[Stream]) -> Stream:
    """All streams of an account as if they were one, whose version counts the events of all."""
    if len(streams) == 1:
        return streams[0]
    return Stream(
        account,
        sum(stream.version for stream in streams),
        Numbers(*map(sum, zip(*(stream.numbers for stream in streams), strict=True))),
        recorded_at=max(stream.recorded_at for stream in streams),
        terms=streams[0].terms,
    )


def with_movement(numbers: Numbers, event: Movement) -> Numbers:
    """The numbers after an event that moves an amount: one pair of them, posted or pending or both."""
    debits, credits, pending_debits, pending_credits = numbers
    posted, pending = _EFFECTS[type(event)]
    if event.direction is Direction.DEBIT:
        return Numbers(
            debits + posted * event.amount, credits, pending_debits + pending * event.amount, pending_credits
        )
    return Numbers(debits, credits + posted * event.amount, pending_debits, pending_credits + pending * event.amount)


_EFFECTS: Final[dict[type, tuple[int, int]]] = {
    EntryPosted: (1, 0),
    HoldPlaced: (0, 1),
    HoldCaptured: (1, -1),
    HoldReleased: (0, -1),
    HoldExpired: (0, -1),
}
"""How often its amount each movement adds to what is posted and to what is pending."""


def terms_of(opened: AccountOpened) -> Terms:
    """The terms that an opening sets."""
    return Terms(
        account_type=opened.account_type,
        normal=opened.account_type.normal,
        asset=opened.asset,
        scale=opened.scale,
        min_balance=opened.min_balance,
        max_balance=opened.max_balance,
        state="open",
        metadata=canonical_json(opened.metadata),
    )
