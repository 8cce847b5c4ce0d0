"""
A log as a folder of files, for people who have no database: every record, the tree over them, and a checkpoint.

    checkpoint                  the signed checkpoint that all of it belongs to
    tile/entries/x001/234       256 records, each after its length in two bytes
    tile/0/x001/234             the hashes of these records
    tile/1/004                  the roots over 256 hashes each of level 0, and so on
    tile/1/004.p/7              the last tile of a level, with as many as there are

Whoever serves the folder over HTTP has a transparency log.

Source: C2SP tlog-tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ledger.audit.checkpoint import Checkpoint, Note, VerifierKey, open_checkpoint
from ledger.core.chain import leaf_hash
from ledger.core.errors import InvalidCommand, ProofFailed
from ledger.core.merkle import HASH_BYTES, TILE_HEIGHT, TILE_WIDTH, Frontier, SubtreeAt, subtrees_in

Level: TypeAlias = int | Literal["entries"]

RECORD_BYTES_MAX: Final = 0xFFFF
CHECKPOINT: Final = "checkpoint"
_LENGTH_BYTES: Final = 2
_TILES_CACHED: Final = 64


def tile_path(level: Level, number: int, width: int = TILE_WIDTH) -> str:
    """Where a tile is, below the folder: `tile/0/x001/x234/067`, or `….p/7` with fewer hashes than 256."""
    digits = f"{number:03}"
    digits = digits.rjust(-(-len(digits) // 3) * 3, "0")
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    path = "/".join(["tile", str(level), *(f"x{group}" for group in groups[:-1]), groups[-1]])
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


def tile_width(size: int, level: Level, number: int) -> int:
    """How many hashes, or records, that tile has in a log of this size; none if it is not there."""
    hashes = size >> (0 if level == "entries" else TILE_HEIGHT * level)
    return max(0, min(TILE_WIDTH, hashes - TILE_WIDTH * number))


def write_log(
    folder: Path, records: Iterable[bytes], note: bytes, *, progress: Callable[[int], None] | None = None
) -> Checkpoint:
    """
    Write the log as it was at a checkpoint into a new or empty folder, in flat memory.

    As many records are taken as the checkpoint counts.  The checkpoint is written last: a folder without one is
    unfinished, or was not what its checkpoint says.

    Raises:
        InvalidCommand: There is something in the folder, or a record is too long for the format.
        ProofFailed: The records are fewer, or others, than those of the checkpoint.
    """
    checkpoint = Checkpoint.parse(Note.parse(note).text)
    if folder.exists() and any(folder.iterdir()):
        raise InvalidCommand(str(folder), "it is not empty; a log is written into a new folder")
    frontier, tiles = Frontier(), _Tiles(folder)
    rest = islice(records, checkpoint.size)
    while bundle := list(islice(rest, TILE_WIDTH)):
        leaves = [leaf_hash(record) for record in bundle]
        tiles.write("entries", frontier.size // TILE_WIDTH, len(bundle), _bundled(bundle, frontier.size))
        tiles.write(0, frontier.size // TILE_WIDTH, len(bundle), b"".join(leaves))
        for subtree in frontier.extend(leaves):
            tiles.add(subtree.level // TILE_HEIGHT, subtree.root)
        if progress is not None:
            progress(frontier.size)
    tiles.finish()
    if (frontier.size, frontier.root()) != (checkpoint.size, checkpoint.root):
        problem = f"the {frontier.size:,} records that there are do not have the size and root of its checkpoint"
        raise ProofFailed("The log", problem)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKPOINT).write_bytes(note)
    return checkpoint


class LogFolder:
    """A log that was written as a folder; nothing in it is believed until it is verified."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def note(self) -> bytes:
        """The checkpoint that the log came with."""
        return (self.folder / CHECKPOINT).read_bytes()

    def records(self, size: int) -> Iterator[bytes]:
        """
        The first `size` records.

        Raises:
            ProofFailed: A bundle of them cannot be taken apart.
        """
        for number in range(-(-size // TILE_WIDTH)):
            yield from self._bundle(size, number)

    def record(self, size: int, index: int) -> bytes:
        """The record at `index`, from 0, of a log of this size; raises as `records`."""
        return self._bundle(size, index // TILE_WIDTH)[index % TILE_WIDTH]

    def subtrees(self, size: int) -> SubtreeAt:
        """The subtrees of a log of this size, to make proofs of; whether they hold is seen when a proof is verified."""

        @lru_cache(_TILES_CACHED)
        def tile(level: int, number: int) -> bytes:
            return self._tile(size, level, number)

        return subtrees_in(tile)

    def verify(
        self,
        keys: Iterable[VerifierKey],
        *,
        origin: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Checkpoint:
        """
        Verify everything: the signature, each record against its hash, each hash against the tree, the tree's root.

        Raises:
            ProofFailed: Something does not fit; the first that does not is named.
            OSError: Something is missing.
        """
        checkpoint = open_checkpoint(self.note(), keys, origin=origin)
        size, frontier = checkpoint.size, Frontier()
        subtree_at = self.subtrees(size)
        for number in range(-(-size // TILE_WIDTH)):
            leaves = [leaf_hash(record) for record in self._bundle(size, number)]
            _check_leaves(leaves, self._tile(size, 0, number), number)
            for subtree in frontier.extend(leaves):
                if subtree_at(subtree.level, subtree.index) != subtree.root:
                    place = tile_path(subtree.level // TILE_HEIGHT, subtree.index // TILE_WIDTH)
                    problem = f"hash {subtree.index % TILE_WIDTH} of it is not the root over the tile below"
                    raise ProofFailed(f"The tile {place}", problem)
            if progress is not None:
                progress(frontier.size)
        if frontier.root() != checkpoint.root:
            raise ProofFailed("The log", f"its {size:,} records do not have the root that its checkpoint names")
        return checkpoint

    def _tile(self, size: int, level: int, number: int) -> bytes:
        hashes = self._read(size, level, number)
        if len(hashes) != HASH_BYTES * tile_width(size, level, number):
            raise ProofFailed(f"The tile {tile_path(level, number)}", f"it is of {len(hashes):,} bytes")
        return hashes

    def _bundle(self, size: int, number: int) -> list[bytes]:
        bundle = self._read(size, "entries", number)
        records, at = [], 0
        while at < len(bundle):
            begin = at + _LENGTH_BYTES
            at = begin + int.from_bytes(bundle[at:begin], "big")
            records.append(bundle[begin:at])
        if at != len(bundle) or len(records) != tile_width(size, "entries", number):
            raise ProofFailed(
                f"The bundle {tile_path('entries', number)}", "it does not hold the records that it should"
            )
        return records

    def _read(self, size: int, level: Level, number: int) -> bytes:
        return (self.folder / tile_path(level, number, tile_width(size, level, number))).read_bytes()


class _Tiles:
    """The tiles above the leaves on their way into files: those that are full, and then the last of each level."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[int, int] = {}
        self._filling: dict[int, bytearray] = {}

    def add(self, level: int, root: bytes) -> None:
        hashes = self._filling.setdefault(level, bytearray())
        hashes += root
        if len(hashes) == HASH_BYTES * TILE_WIDTH:
            self._finish(level)

    def finish(self) -> None:
        for level in [level for level, hashes in self._filling.items() if hashes]:
            self._finish(level)

    def write(self, level: Level, number: int, width: int, content: bytes) -> None:
        path = self._folder / tile_path(level, number, width)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _finish(self, level: int) -> None:
        number, hashes = self._written.get(level, 0), self._filling.pop(level)
        self.write(level, number, len(hashes) // HASH_BYTES, bytes(hashes))
        self._written[level] = number + 1


def _bundled(records: Iterable[bytes], first: int) -> bytes:
    parts = []
    for index, record in enumerate(records, first):
        if len(record) > RECORD_BYTES_MAX:
            raise InvalidCommand(
                "export-log", f"record {index} has {len(record):,} bytes, of {RECORD_BYTES_MAX:,} allowed"
            )
        parts += [len(record).to_bytes(_LENGTH_BYTES, "big"), record]
    return b"".join(parts)


def _check_leaves(leaves: list[bytes], hashes: bytes, number: int) -> None:
    for offset, leaf in enumerate(leaves):
        if leaf != hashes[HASH_BYTES * offset : HASH_BYTES * (offset + 1)]:
            problem = f"its hash is not the one in {tile_path(0, number)}"
            raise ProofFailed(f"Record {TILE_WIDTH * number + offset} of the log", problem)
