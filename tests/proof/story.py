"""The feed of a small ledger that nobody needs a database for: decided, hashed and put in order as the real one is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final
from uuid import UUID

from log import KEY

from ledger import Command, Direction, Entry, Post
from ledger.audit.checkpoint import Checkpoint, SigningKey, sign
from ledger.core.book import Book
from ledger.core.canonical import canonical_json
from ledger.core.chain import link, place, sealed
from ledger.core.commands import Capture, ChangeAccount, Freeze, Hold, OpenAccount, Release, Transfer
from ledger.core.decide import Occasion, decide
from ledger.core.events import AssetDefined, Event, FeedEntry
from ledger.core.merkle import Frontier

LEDGER_ID: Final = "5f0c7d0e-0000-4000-8000-000000000001"
BEGUN: Final = datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)

HUGE: Final = 2**53 + 1
"""An amount that a program which reads numbers as floating point takes for another."""


def told(commands: Iterable[Command | Sequence[Event]], pace: timedelta = timedelta(seconds=1)) -> Iterator[FeedEntry]:
    """The feed that these commands, or these events of one transaction, become; so long after one another."""
    book, position = Book(LEDGER_ID), 0
    for number, command in enumerate(commands, 1):
        transaction_id, now = str(UUID(int=number)), BEGUN + number * pace
        events = command if isinstance(command, Sequence) else decide(command, book, Occasion(now, transaction_id))
        kind = "define_asset" if isinstance(command, Sequence) else command.type
        request = "{}" if isinstance(command, Sequence) else command.request()
        places = place(events, book)
        streams = tuple(stream.stream for stream, *_ in places)
        versions = tuple(version for _, version, _ in places)
        entries = sum(hasattr(event, "entry") for event in events)
        said = None if isinstance(command, Sequence) else command
        reference = said and said.reference
        if reference is None and number % 3 == 0:
            reference = 'a "reference", with\ttab and\nnewline'
        effective = (said and said.effective_at) or now
        fields = (transaction_id, kind, "", None, request, entries, streams, versions, reference, effective, now)
        metadata = canonical_json(said.metadata) if said and said.metadata else None
        transaction = sealed(*fields, (said and said.actor) or "somebody", None, None, metadata)
        recorded = link(transaction, events, places, LEDGER_ID)
        for event in sorted(recorded, key=lambda each: (each.stream, each.version)):
            position += 1
            yield FeedEntry(position, event, transaction)


def commands() -> Iterator[Command | Sequence[Event]]:
    """Accounts of all kinds, holds, huge amounts, stripes, states; and then transfers without end."""
    yield [AssetDefined("USD", 2), AssetDefined("PTS", 0)]
    for account, kind in (("world", "equity"), ("cash", "asset"), ("alice", "liability"), ("a+b", "income")):
        yield OpenAccount(account=account, asset="USD", account_type=kind)
    yield OpenAccount(account="rent", asset="USD", account_type="expense")
    yield OpenAccount(account="a", asset="PTS", account_type="liability")
    yield OpenAccount(account="points", asset="PTS", account_type="equity", stripes=3)
    yield Transfer(amount=f"{HUGE}.01 USD", debit="world", credit="alice")
    yield Transfer(amount=f"{HUGE * 10**15} PTS", debit="points", credit="a")
    yield Transfer(amount="1 PTS", debit="points", credit="a")
    yield Transfer(amount="0.07 USD", debit="rent", credit="cash")
    yield Hold(amount="20 USD", debit="alice", credit="a+b")
    yield Capture(hold=str(UUID(int=13)), amount="5 USD", final=False)
    yield Release(hold=str(UUID(int=13)), amount="3 USD")
    yield Capture(hold=str(UUID(int=13)), amount="12 USD", final=True)
    yield Hold(amount="7 USD", debit="alice", credit="rent")
    legs = [
        ("world", Direction.DEBIT, "3 USD"),
        ("alice", Direction.CREDIT, "1 USD"),
        ("cash", Direction.CREDIT, "2 USD"),
    ]
    yield Post(entries=[Entry(account=each, direction=side, amount=amount) for each, side, amount in legs])
    yield Freeze(account="rent", reason="audit")
    yield ChangeAccount(account="points", stripes=4)
    while True:
        yield Transfer(amount="1.25 USD", debit="world", credit="alice")
        yield Transfer(amount="0.50 USD", debit="alice", credit="a+b")


def feed(transactions: int) -> list[FeedEntry]:
    """The feed of the first so many transactions."""
    return [*told(islice(commands(), transactions))]


def note_of(entries: Sequence[FeedEntry], *keys: SigningKey) -> bytes:
    """The signed checkpoint of a feed."""
    frontier = Frontier()
    frontier.extend(entry.event.event_hash for entry in entries)
    return sign(Checkpoint(KEY.name, frontier.size, frontier.root()), *(keys or (KEY,)))
