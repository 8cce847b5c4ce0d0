"""Hash links: each event of a stream commits to the one before it, and to its whole transaction."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, TypeAlias

from ledger.core.book import Book, Stream, evolve
from ledger.core.codec import SCHEMA, event_record, payload_of, transaction_header
from ledger.core.errors import CorruptLog
from ledger.core.events import Event, Movement, Numbers, Recorded, Transaction

Place: TypeAlias = tuple[Stream, int, Numbers | None]
"""Where an event comes to stand: its stream, and the stream's version and numbers right after it."""


def genesis(ledger_id: str, stream: str) -> bytes:
    """What the first event of a stream links to: unlike in any other ledger or stream."""
    return sha256(f"ledger/genesis/1\n{ledger_id}\n{stream}".encode()).digest()


def place(events: Sequence[Event], book: Book) -> list[Place]:
    """Append `events` to the streams in `book`, which move on, and say where each came to stand."""
    places = []
    for event in events:
        stream = evolve(book, event)
        places.append((stream, stream.version, None if stream.terms is None else stream.numbers))
    return places


def sealed(*fields: Any) -> Transaction:
    """A transaction from its fields in order, with the header hash that covers them."""
    return Transaction._make((*fields, sha256(transaction_header(*fields)).digest()))


def link(transaction: Transaction, events: Sequence[Event], places: Sequence[Place], ledger_id: str) -> list[Recorded]:
    """Record `events` at their places, each linked to the one before; the heads of their streams follow."""
    header_hash = transaction.header_hash.hex()
    recorded = []
    for event, (stream, version, numbers) in zip(events, places, strict=True):
        kind, payload = payload_of(event)
        asset, direction, amount = _entry_of(event)
        fields: tuple[Any, ...] = (
            stream.stream,
            version,
            transaction.transaction_id,
            kind,
            payload,
            SCHEMA,
            asset,
            direction,
            amount,
            numbers,
            transaction.effective_at,
            transaction.recorded_at,
            stream.head_hash or genesis(ledger_id, stream.stream),
        )
        event_hash = leaf_hash(event_record(header_hash, *fields))
        stream.head_hash, stream.recorded_at = event_hash, transaction.recorded_at
        recorded.append(Recorded._make((*fields, event_hash)))
    return recorded


def _entry_of(event: Event) -> tuple[str | None, str | None, int | None]:
    if isinstance(event, Movement):
        return event.asset, event.direction.value, event.amount
    return None, None, None


def leaf_hash(record: bytes) -> bytes:
    """
    SHA-256 of a zero byte and the record.

    Source: RFC 6962, section 2.1, so that a Merkle tree can be built over the very same hashes.
    """
    return sha256(b"\0" + record).digest()


def check_seal(transaction: Transaction) -> bool:
    """Whether a transaction is what its header hash covers; no metadata has one form only."""
    if transaction.metadata == "{}":
        return False
    fields: tuple[Any, ...] = transaction[:-1]
    return sha256(transaction_header(*fields)).digest() == transaction.header_hash


def check_link(recorded: Recorded, header_hash: bytes, prev_hash: bytes) -> None:
    """
    Check that an event is what was recorded, and that it follows `prev_hash`.

    Raises:
        CorruptLog: It is not.
    """
    if recorded.prev_hash != prev_hash:
        raise CorruptLog(recorded.stream, recorded.version, "prev_hash is not the hash of the event before")
    fields: tuple[Any, ...] = recorded[:-1]
    if recorded.event_hash != leaf_hash(event_record(header_hash.hex(), *fields)):
        raise CorruptLog(recorded.stream, recorded.version, "event_hash does not match what is stored")
