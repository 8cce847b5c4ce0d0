"""Hash links: each event of a stream commits to the one before it, and to its whole transaction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

from ledger.core.book import Book, evolve
from ledger.core.codec import event_record, payload_of, transaction_header
from ledger.core.errors import CorruptLog
from ledger.core.events import EntryPosted, Event, Recorded, Transaction


def genesis(ledger_id: str, stream: str) -> bytes:
    """What the first event of a stream links to: unlike in any other ledger or stream."""
    return sha256(f"ledger/genesis/1\n{ledger_id}\n{stream}".encode()).digest()


def seal(transaction: Transaction) -> Transaction:
    """The transaction with its header hash."""
    return transaction._replace(header_hash=sha256(transaction_header(transaction)).digest())


def link(transaction: Transaction, events: Sequence[Event], book: Book) -> list[Recorded]:
    """
    Record `events`, in order, at the heads of their streams in `book`, which moves on with them.

    `transaction` is sealed and announces exactly these events.
    """
    recorded: list[Recorded] = []
    header_hash = transaction.header_hash.hex()
    for event, name in zip(events, transaction.streams, strict=True):
        stream = evolve(book, event)
        kind, payload = payload_of(event)
        entry = event if isinstance(event, EntryPosted) else None
        unlinked = Recorded(
            stream=name,
            version=stream.version,
            transaction_id=transaction.transaction_id,
            type=kind,
            payload=payload,
            schema=1,
            asset=entry.asset if entry else None,
            direction=entry.direction.value if entry else None,
            amount=entry.amount if entry else None,
            numbers=stream.numbers if stream.terms is not None else None,
            effective_at=transaction.effective_at,
            recorded_at=transaction.recorded_at,
            prev_hash=stream.head_hash or genesis(book.ledger_id, name),
            event_hash=b"",
        )
        event_hash = leaf_hash(event_record(unlinked, header_hash, payload_hash(payload)))
        stream.head_hash = event_hash
        stream.recorded_at = transaction.recorded_at
        recorded.append(Recorded(*unlinked[:-1], event_hash))
    return recorded


def leaf_hash(record: bytes) -> bytes:
    """
    SHA-256 of a zero byte and the record.

    Source: RFC 6962, section 2.1, so that a Merkle tree can be built over the very same hashes.
    """
    return sha256(b"\0" + record).digest()


@lru_cache(maxsize=1024)
def payload_hash(payload: str) -> str:
    """SHA-256 of the exact stored payload text, in hex.  Cached: most payloads are one of a few."""
    return sha256(payload.encode()).hexdigest()


def check_link(recorded: Recorded, header_hash: bytes, prev_hash: bytes) -> None:
    """
    Check that an event is what was recorded, and that it follows `prev_hash`.

    Raises:
        CorruptLog: It is not.
    """
    if recorded.prev_hash != prev_hash:
        raise CorruptLog(recorded.stream, recorded.version, "prev_hash is not the hash of the event before")
    record = event_record(recorded, header_hash.hex(), payload_hash(recorded.payload))
    if recorded.event_hash != leaf_hash(record):
        raise CorruptLog(recorded.stream, recorded.version, "event_hash does not match what is stored")
