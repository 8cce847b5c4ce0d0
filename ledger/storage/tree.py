"""
What is proved: the records of the feed, the tiles of the tree over their hashes, and the signed checkpoints.

A record is made anew from the rows of the log each time, and never believed for its hash alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from ledger.core.chain import check_seal, leaf_hash
from ledger.core.codec import event_record
from ledger.core.errors import CorruptLog, ProofFailed
from ledger.core.events import FeedEntry
from ledger.storage import feed
from ledger.storage.database import Connection
from ledger.storage.store import plain_array, text_array

# The version before each of these: where it stands in the feed, and its hash.
_BEFORE: Final = """
SELECT f.stream, f.version, f.position, f.event_hash
FROM unnest(%s::text[], %s::bigint[]) AS w (stream, version)
CROSS JOIN LATERAL (
    SELECT f.stream, f.version, f.position, f.event_hash FROM {schema}.feed AS f
    WHERE f.stream = w.stream AND f.version = w.version OFFSET 0
) AS f
"""


def records(connection: Connection, after: int, size: int) -> Iterator[bytes]:
    """
    The records of the positions behind `after` up to `size`: the bytes whose hashes are the leaves of the tree.

    Each is made from the rows of the log, and must have the hash that the feed has; its transaction must be what it
    was sealed as; and its stream must go on at it, so that nothing was left out.  Read in pages: memory stays flat.

    Raises:
        CorruptLog: A record is not there or not what the feed has; its stream, version and position are named.
        ProofFailed: The feed ends before.
    """
    while after < size:
        entries = feed.page(connection, after, min(feed.PAGE_MAX, size - after))
        if not entries:
            raise ProofFailed("The feed", f"it ends at position {after:,}, of {size:,}")
        _check_streams(connection, entries)
        sealed: set[str] = set()
        for entry in entries:
            if entry.transaction.transaction_id not in sealed:
                _check_transaction(entry)
                sealed.add(entry.transaction.transaction_id)
            yield _record(entry)
        after = entries[-1].position


def _record(entry: FeedEntry) -> bytes:
    fields: tuple[Any, ...] = entry.event[:-1]
    record = event_record(entry.transaction.header_hash.hex(), *fields)
    if leaf_hash(record) != entry.event.event_hash:
        raise _corrupt(entry, "event_hash does not match what is stored")
    return record


def _check_transaction(entry: FeedEntry) -> None:
    if not check_seal(entry.transaction):
        raise _corrupt(entry, f"transaction {entry.transaction.transaction_id} is not what its hash covers")


def _check_streams(connection: Connection, entries: Sequence[FeedEntry]) -> None:
    """Each stream goes on with the version after its last one, whose hash it links to."""
    first: dict[str, FeedEntry] = {}
    last: dict[str, FeedEntry] = {}
    for entry in entries:
        stream = entry.event.stream
        if (before := last.get(stream)) is None:
            first[stream] = entry
        elif entry.event.version != before.event.version + 1 or entry.event.prev_hash != before.event.event_hash:
            raise _corrupt(entry, f"it does not follow version {before.event.version}, the last one before it")
        last[stream] = entry
    beginning = [entry for entry in first.values() if entry.event.version > 1]
    names, versions = [each.event.stream for each in beginning], [each.event.version - 1 for each in beginning]
    rows = connection.query(_BEFORE, (text_array(names), plain_array(map(str, versions))))
    known = {stream: (position, event_hash) for stream, _, position, event_hash in rows}
    for entry in beginning:
        position, event_hash = known.get(entry.event.stream, (None, None))
        if position is None or position >= entry.position or event_hash != entry.event.prev_hash:
            raise _corrupt(entry, f"version {entry.event.version - 1} is not before it in the feed, or another one is")


def _corrupt(entry: FeedEntry, problem: str) -> CorruptLog:
    return CorruptLog(entry.event.stream, entry.event.version, f"{problem} (position {entry.position} of the feed)")
