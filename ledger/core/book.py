"""The streams a batch touches, as they stand: `evolve` applies one event, `replay` a run of recorded ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple, assert_never

from ledger.core.commands import AccountType, Direction, canonical_json
from ledger.core.errors import UnknownAccount
from ledger.core.events import LEDGER_STREAM, ZERO, AccountOpened, AssetDefined, EntryPosted, Event, Numbers
from ledger.core.money import Money

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Terms(NamedTuple):
    """What an account was opened as; limits are minor units in its normal direction."""

    account_type: AccountType
    normal: Direction
    asset: str
    scale: int
    min_balance: int | None
    max_balance: int | None
    state: str
    metadata: str

    def money(self, minor: int) -> Money:
        """Minor units of the account's asset."""
        return Money(minor, self.asset, self.scale)


class Balance(NamedTuple):
    """
    An account's balance at a version, in its normal direction and all exact.

    `posted` counts settled entries; `pending` is the net of open holds; `available` is what may be taken
    out now: posted less everything held for going out.
    """

    account: str
    posted: Money
    pending: Money
    available: Money
    version: int

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
    """The head of one stream: what the next event follows.  `terms` is None where no account is open."""

    stream: str
    version: int = 0
    numbers: Numbers = ZERO
    head_hash: bytes = b""
    recorded_at: datetime = EPOCH
    terms: Terms | None = None

    @property
    def balance(self) -> Balance:
        """The account's balance; raises UnknownAccount where there is none."""
        if self.terms is None:
            raise UnknownAccount(self.stream)
        return Balance.from_numbers(self.stream, self.terms, self.numbers, self.version)


@dataclass(slots=True)
class Book:
    """Everything `decide` may look at: the streams and assets that a batch of commands names."""

    ledger_id: str
    streams: dict[str, Stream] = field(default_factory=dict)
    assets: dict[str, int] = field(default_factory=dict)

    def stream(self, stream: str) -> Stream:
        """The stream's head; a stream that does not exist yet stands at version 0."""
        found = self.streams.get(stream)
        if found is None:
            found = self.streams[stream] = Stream(stream)
        return found

    def copy(self) -> Book:
        """An independent book, to decide on without consequences."""
        streams = {
            name: Stream(name, s.version, s.numbers, s.head_hash, s.recorded_at, s.terms)
            for name, s in self.streams.items()
        }
        return Book(self.ledger_id, streams, dict(self.assets))


def stream_of(event: Event) -> str:
    """The stream that an event belongs to."""
    return LEDGER_STREAM if isinstance(event, AssetDefined) else event.account


def evolve(book: Book, event: Event) -> Stream:
    """Apply one event: the stream moves on by one version, its numbers and terms follow."""
    stream = book.stream(stream_of(event))
    stream.version += 1
    match event:
        case EntryPosted():
            stream.numbers = with_entry(stream.numbers, event.direction, event.amount)
        case AccountOpened():
            stream.terms = terms_of(event)
        case AssetDefined():
            book.assets[event.asset] = event.scale
        case _:
            assert_never(event)
    return stream


def replay(book: Book, events: Iterable[Event]) -> Book:
    """Apply events in order."""
    for event in events:
        evolve(book, event)
    return book


def with_entry(numbers: Numbers, direction: Direction, amount: int) -> Numbers:
    """The numbers after a posted entry."""
    debits, credits, pending_debits, pending_credits = numbers
    if direction is Direction.DEBIT:
        return Numbers(debits + amount, credits, pending_debits, pending_credits)
    return Numbers(debits, credits + amount, pending_debits, pending_credits)


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
