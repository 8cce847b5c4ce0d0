"""
What is proved: the records of the feed, the tiles of the tree over their hashes, and the signed checkpoints.

A record is made anew from the rows of the log each time, and never believed for its hash alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from ledger.core.chain import check_seal, leaf_hash
from ledger.core.codec import event_record
from ledger.core.errors import CorruptLog, ProofFailed
from ledger.core.events import LEDGER_STREAM, FeedEntry
from ledger.core.merkle import Tile
from ledger.storage import feed
from ledger.storage.database import Connection, Row
from ledger.storage.store import bytes_array, in_utc, plain_array, readable, text_array

SEALER: Final = "sealer"
"""The lease under which tiles and checkpoints are written."""

_HASHES_PAGE: Final = 10_000
_CHECKPOINTS_PAGE: Final = 1_000

# The version before each of these: where it stands in the feed, and its hash.
_BEFORE: Final = """
SELECT f.stream, f.version, f.position, f.event_hash
FROM unnest(%s::text[], %s::bigint[]) AS w (stream, version)
CROSS JOIN LATERAL (
    SELECT f.stream, f.version, f.position, f.event_hash FROM {schema}.feed AS f
    WHERE f.stream = w.stream AND f.version = w.version OFFSET 0
) AS f
"""

_PLACE: Final = "SELECT f.stream, f.version FROM {schema}.feed AS f WHERE f.position = %s"

_POSITION: Final = "SELECT f.position FROM {schema}.feed AS f WHERE f.stream = %s AND f.version = %s"

_HASHES: Final = """
SELECT f.position, f.event_hash FROM {schema}.feed AS f WHERE f.position > %s AND f.position <= %s
ORDER BY f.position LIMIT %s
"""

_TILES: Final = """
SELECT t.number, t.hashes FROM {schema}.tree_tiles AS t
WHERE t.level = %s AND t.number >= %s AND t.number < %s ORDER BY t.number
"""

CHECKPOINTS: Final = f"SELECT c.size, c.root, c.note, {readable('c.sealed_at')} FROM {{schema}}.checkpoints AS c"
_LAST: Final = f"{CHECKPOINTS} ORDER BY c.size DESC LIMIT 1"
_AT: Final = f"{CHECKPOINTS} WHERE c.size = %s"
_AFTER: Final = f"{CHECKPOINTS} WHERE c.size > %s AND c.size <= %s ORDER BY c.size LIMIT {_CHECKPOINTS_PAGE}"

_ADD_TILES: Final = """
INSERT INTO {schema}.tree_tiles (level, number, hashes)
SELECT level, number, hashes FROM unnest(%s::smallint[], %s::bigint[], %s::bytea[]) AS t (level, number, hashes)
ORDER BY level, number
ON CONFLICT (level, number) DO NOTHING RETURNING level
"""

_ADD_CHECKPOINT: Final = """
INSERT INTO {schema}.checkpoints (size, root, note, sealed_at) VALUES (%s, %s, %s, clock_timestamp())
RETURNING sealed_at AT TIME ZONE 'UTC'
"""


class Sealed(NamedTuple):
    """A checkpoint that was signed: how many events it is of, the root over them, the signed note, and since when."""

    size: int
    root: bytes
    note: bytes
    sealed_at: datetime


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


def hashes(connection: Connection, after: int, size: int) -> Iterator[list[bytes]]:
    """
    The hashes that the feed has behind `after` up to `size`, in pages.

    Raises:
        ProofFailed: The feed has a gap there, or ends before.
    """
    while after < size:
        rows = connection.query(_HASHES, (after, size, _HASHES_PAGE))
        for expected, (position, event_hash) in enumerate(rows, after + 1):
            if position != expected or event_hash is None:
                raise ProofFailed("The feed", f"it has no position {expected:,}, or no hash there")
        if not rows:
            raise ProofFailed("The feed", f"it ends at position {after:,}, of {size:,}")
        yield [event_hash for _, event_hash in rows]
        after = rows[-1][0]


def tiles(connection: Connection, level: int, first: int, end: int) -> dict[int, bytes]:
    """The full tiles of a level from number `first` to before `end`, as far as they are kept."""
    return dict(connection.query(_TILES, (level, first, end)))


def place_at(connection: Connection, position: int) -> tuple[str, int] | None:
    """Stream and version of the event at a position of the feed."""
    rows = connection.query(_PLACE, (position,))
    return (rows[0][0], rows[0][1]) if rows else None


def position_of(connection: Connection, stream: str, version: int) -> int | None:
    """Where an event stands in the feed; None while it was not stamped, or does not exist."""
    rows = connection.query(_POSITION, (stream, version))
    return rows[0][0] if rows else None


def last_checkpoint(connection: Connection) -> Sealed | None:
    """The last checkpoint that was signed; raises as `sealed_from`."""
    return _one(connection.query(_LAST))


def checkpoint_at(connection: Connection, size: int) -> Sealed | None:
    """The checkpoint of this size; raises as `sealed_from`."""
    return _one(connection.query(_AT, (size,)))


def checkpoints(connection: Connection, after: int, size: int) -> list[Row]:
    """A page of the checkpoints larger than `after` and not larger than `size`, in order: rows for `sealed_from`."""
    return connection.query(_AFTER, (after, size))


def add(connection: Connection, filled: Iterable[Tile], size: int, root: bytes, note: bytes) -> Sealed:
    """
    Keep what was sealed, in the caller's transaction.

    Raises:
        ProofFailed: A tile is there already, although no checkpoint says so.
    """
    new = list(filled)
    columns = (
        plain_array(str(tile.level) for tile in new),
        plain_array(str(tile.number) for tile in new),
        bytes_array(tile.hashes for tile in new),
    )
    if len(connection.query(_ADD_TILES, columns)) != len(new):
        raise ProofFailed("The tree", f"it has tiles beyond its last checkpoint: one before {size:,} was removed")
    ((sealed_at,),) = connection.query(_ADD_CHECKPOINT, (size, root, note))
    return Sealed(size, root, note, in_utc(sealed_at))


def sealed_from(row: Row) -> Sealed:
    """
    A row of CHECKPOINTS.

    Raises:
        CorruptLog: It holds what no checkpoint of ours holds.
    """
    size, root, note, sealed_at = row
    if None in row:
        problem = f"the row of the checkpoint of {size} events cannot be read: a column is NULL, or no time of ours"
        raise CorruptLog(LEDGER_STREAM, 0, problem)
    return Sealed(size, root, note, in_utc(sealed_at))


def _one(rows: Sequence[Row]) -> Sealed | None:
    return sealed_from(rows[0]) if rows else None
