"""
The log as it was sealed, from the database: its subtrees for proofs, and the check against a checkpoint from outside.

Full tiles are kept; what is beside them is made of the tiles below, and at the edge of the feed itself.  None of it is
believed: a proof is verified against the signed root before it is handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Final

from ledger.audit.checkpoint import Checkpoint, Note, VerifierKey, open_checkpoint
from ledger.audit.inclusion import InclusionProof
from ledger.audit.report import Report
from ledger.audit.tiles import tile_path, tile_width
from ledger.core.chain import leaf_hash
from ledger.core.errors import CorruptLog, ProofFailed
from ledger.core.events import LEDGER_STREAM
from ledger.core.merkle import HASH_BYTES, TILE_HEIGHT, TILE_WIDTH, SubtreeAt, Tile, Tiling, folded, subtrees_in
from ledger.storage import tree
from ledger.storage.database import Connection, Row
from ledger.storage.explained import UNREADABLE

_TILES_CACHED: Final = 64


def subtrees(connection: Connection, size: int) -> SubtreeAt:
    """
    The subtrees of the log as it was at a checkpoint of this size, to make proofs of.

    Raises, when it is asked for one:
        ProofFailed: A tile is not there, or a part of the feed.
    """

    @lru_cache(_TILES_CACHED)
    def tile(level: int, number: int) -> bytes:
        first, width = TILE_WIDTH * number, tile_width(size, level, number)
        if width == TILE_WIDTH:
            return _tiles(connection, level, number, number + 1)[0]
        if level == 0:
            return b"".join(each for page in tree.hashes(connection, first, first + width) for each in page)
        return b"".join(map(folded, _tiles(connection, level - 1, first, first + width)))

    return subtrees_in(tile)


def _tiles(connection: Connection, level: int, first: int, end: int) -> list[bytes]:
    found = tree.tiles(connection, level, first, end)
    for number in range(first, end):
        if number not in found:
            raise ProofFailed(f"The tile {tile_path(level, number)}", "it is not in the database")
    return [found[number] for number in range(first, end)]


def prove(connection: Connection, position: int, note: bytes) -> InclusionProof:
    """
    Prove that the event at a position of the feed is in the log of a signed checkpoint.

    Raises:
        ProofFailed: The database has another event there than the checkpoint covers, or the checkpoint ends before.
        CorruptLog: The event is not what the feed has.
    """
    size = Checkpoint.parse(Note.parse(note).text).size
    if not 1 <= position <= size:
        raise ProofFailed("The proof", f"position {position:,} is not among the {size:,} events of the checkpoint")
    (record,) = tree.records(connection, position - 1, position)
    return InclusionProof.make(position - 1, note, subtrees(connection, size), record)


def verify_against(
    connection: Connection,
    note: bytes,
    keys: Iterable[VerifierKey],
    *,
    origin: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """
    Make all records of a signed checkpoint anew from the log, and compare their tree with it; changes nothing.

    On the way every tile and every checkpoint that the database keeps is compared too, so that a place can be named.

    Raises:
        ProofFailed: The checkpoint itself is not signed with one of these keys.
    """
    known = tuple(keys)
    checkpoint = open_checkpoint(note, known, origin=origin)
    comparison = _Comparison(connection, checkpoint, known)
    try:
        comparison.run(progress)
    except CorruptLog as error:
        comparison.report.add("log", error.stream, error.version, "record", error.problem)
    except UNREADABLE as error:
        problem = f"{error.diag.message_primary}; what the server cannot read is behind position {comparison.sound:,}"
        comparison.report.add("feed", LEDGER_STREAM, 0, "feed", problem)
    except ProofFailed as error:
        problem = f"{error.what}: {error.problem}; what differs is behind position {comparison.sound:,}"
        comparison.report.add("feed", LEDGER_STREAM, 0, "feed", problem)
    return comparison.report


class _Comparison:
    """The tree as the log makes it, beside what the database keeps of it and what was signed."""

    def __init__(self, connection: Connection, checkpoint: Checkpoint, keys: tuple[VerifierKey, ...]) -> None:
        self.report = Report(checked={"records": 0, "tiles": 0, "checkpoints": 0})
        self._connection = connection
        self._checkpoint = checkpoint
        self._keys = keys
        self._tree = Tiling()
        self.sound = 0
        """The size of the last signed checkpoint that the log fits.  Tiles are not signed: they only help to look."""

    def run(self, progress: Callable[[int], None] | None) -> None:
        size = self._checkpoint.size
        leaves = map(leaf_hash, tree.records(self._connection, 0, size))
        for row in self._checkpoints():
            self._grow(leaves, row[0], progress)
            self._compare_checkpoint(row)
        self._grow(leaves, size, progress)
        if self._tree.root() != self._checkpoint.root:
            problem = f"the first {size:,} events are not those that were signed: what differs is behind position"
            self._add(LEDGER_STREAM, 0, "root", f"{problem} {self.sound:,}")

    def _checkpoints(self) -> Iterator[Row]:
        """Those that the database keeps, and a finding if the one from outside is not among them."""
        after = 0
        while page := tree.checkpoints(self._connection, after, self._checkpoint.size):
            yield from page
            after = page[-1][0]
        if after != self._checkpoint.size:
            self._add(LEDGER_STREAM, 0, "checkpoints", f"the one of {self._checkpoint.size:,} events is not there")

    def _grow(self, leaves: Iterator[bytes], size: int, progress: Callable[[int], None] | None) -> None:
        while self._tree.size < size:
            filled = self._tree.extend(islice(leaves, min(TILE_WIDTH, size - self._tree.size)))
            self.report.checked["records"] = self._tree.size
            for tile in filled:
                self._compare_tile(tile)
            if progress is not None:
                progress(self._tree.size)

    def _compare_tile(self, tile: Tile) -> None:
        self.report.checked["tiles"] += 1
        kept = tree.tiles(self._connection, tile.level, tile.number, tile.number + 1).get(tile.number)
        path = tile_path(tile.level, tile.number)
        if kept is None:
            self._add(LEDGER_STREAM, 0, path, "this tile is not in the database")
        elif len(kept) != len(tile.hashes):
            self._add(LEDGER_STREAM, 0, path, f"this tile has {len(kept):,} bytes, of {len(tile.hashes):,}")
        elif kept != tile.hashes:
            ours, theirs = tile.hashes, kept
            offset = next(at for at in range(TILE_WIDTH) if _hash(ours, at) != _hash(theirs, at))
            first = ((tile.number * TILE_WIDTH + offset) << (TILE_HEIGHT * tile.level)) + 1
            stream, version = tree.place_at(self._connection, first) or (LEDGER_STREAM, 0)
            problem = f"from position {first:,} of the feed on it is of other events than the log has"
            self._add(stream, version, path, problem)

    def _compare_checkpoint(self, row: Row) -> None:
        self.report.checked["checkpoints"] += 1
        what = f"the one of {row[0]:,} events"
        try:
            sealed = tree.sealed_from(row)
            signed = open_checkpoint(sealed.note, self._keys, origin=self._checkpoint.origin)
        except (CorruptLog, ProofFailed) as error:
            self._add(LEDGER_STREAM, 0, "checkpoints", f"{what}: {error.problem}")
            return
        if (signed.size, signed.root) != (sealed.size, sealed.root):
            self._add(LEDGER_STREAM, 0, "checkpoints", f"{what}: its row is not what was signed")
        elif signed.root == self._tree.root():
            self.sound = signed.size
        else:
            changed = f"what was changed is behind position {self.sound:,}, up to {sealed.size:,}"
            self._add(LEDGER_STREAM, 0, "checkpoints", f"{what} is of other events than the log has: {changed}")

    def _add(self, stream: str, version: int, column: str, problem: str) -> None:
        self.report.add("tree", stream, version, column, problem)


def _hash(hashes: bytes, offset: int) -> bytes:
    return hashes[HASH_BYTES * offset : HASH_BYTES * (offset + 1)]
