"""
A Merkle tree over hashes that are given: its root at any size, and proofs that others can check.

The leaves of ours are the event hashes, which are leaf hashes of RFC 6962 already.  A tree is never held as a whole:
a `Frontier` is all that appending needs, and proofs ask for the subtrees that they are made of.

Source: RFC 6962, section 2.1; the checks are the algorithms of RFC 9162, sections 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Final, TypeAlias

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()

TILE_HEIGHT: Final = 8
"""Hashes are kept and published at each eighth level (C2SP tlog-tiles): what is between them is quickly made again."""

TILE_WIDTH: Final = 1 << TILE_HEIGHT

_MAGIC: Final = b"ledger/frontier/1\n"
_SIZE_BYTES: Final = 8

Span: TypeAlias = tuple[int, int]
"""Leaves from one index to before another."""

SubtreeAt: TypeAlias = Callable[[int, int], bytes]
"""Called with level and index: the root of that complete subtree, over `1 << level` leaves from `index << level` on."""

TileAt: TypeAlias = Callable[[int, int], bytes]
"""Called with a tile's level and index: its hashes, one after the other, as many as there are yet."""


@dataclass(frozen=True, slots=True)
class Subtree:
    """The root of a complete subtree: over `1 << level` leaves, from leaf `index << level` on."""

    level: int
    index: int
    root: bytes


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 of a byte of one and the two hashes below."""
    return sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Tile:
    """A full tile: 256 hashes side by side, each over `1 << TILE_HEIGHT * level` leaves."""

    level: int
    number: int
    hashes: bytes


class Frontier:
    """
    The right edge of a tree: its size, and the roots of the complete subtrees that it is made of, largest first.

    It holds one hash for each bit of the size that is set, whatever the size.
    """

    __slots__ = ("_roots", "size")

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []

    def extend(self, leaves: Iterable[bytes]) -> list[Subtree]:
        """
        Append leaf hashes, and say which subtrees this completed, of those that are hashes in a tile above the leaves.

        That is one for each 256 leaves: what must be kept, beside the leaves, to make any proof without the whole tree.

        Raises:
            ValueError: A hash is not of 32 bytes.  Those before it may have been appended.
        """
        completed: list[Subtree] = []
        rest = iter(leaves)
        while chunk := list(islice(rest, TILE_WIDTH - self.size % TILE_WIDTH)):
            if set(map(len, chunk)) != {HASH_BYTES}:
                raise ValueError(f"a leaf after the first {self.size} is not a hash of {HASH_BYTES} bytes")
            if len(chunk) == TILE_WIDTH:
                self._append(TILE_HEIGHT, folded(b"".join(chunk)), completed)
            else:
                for leaf in chunk:
                    self._append(0, leaf, completed)
        return completed

    def _append(self, level: int, root: bytes, completed: list[Subtree]) -> None:
        """Append a complete subtree, with which others may become complete: as in adding to a binary number."""
        index = self.size >> level
        self.size += 1 << level
        while True:
            if level and level % TILE_HEIGHT == 0:
                completed.append(Subtree(level, index, root))
            if not index & 1:
                break
            root = node_hash(self._roots.pop(), root)
            level, index = level + 1, index >> 1
        self._roots.append(root)

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        return _joined(self._roots) if self._roots else EMPTY_ROOT

    def to_bytes(self) -> bytes:
        """All that it takes to go on elsewhere, or later."""
        return _MAGIC + self.size.to_bytes(_SIZE_BYTES, "big") + b"".join(self._roots)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Frontier:
        """
        Go on from what `to_bytes` gave.

        Nothing shows that the hashes are those of the log: compare the root with a checkpoint.

        Raises:
            ValueError: It is no frontier.
        """
        size_at, roots_at = len(_MAGIC), len(_MAGIC) + _SIZE_BYTES
        frontier = cls()
        frontier.size = int.from_bytes(stored[size_at:roots_at], "big")
        frontier._roots = _split(stored[roots_at:])
        if not stored.startswith(_MAGIC) or len(stored) != roots_at + HASH_BYTES * frontier.size.bit_count():
            raise ValueError("these bytes are no frontier of a tree")
        return frontier

    @classmethod
    def at(cls, size: int, subtree: SubtreeAt) -> Frontier:
        """The right edge of the tree over the first `size` leaves."""
        frontier = cls()
        frontier.size, frontier._roots = size, [subtree(level, index) for level, index in _cover(0, size)]
        return frontier


class Tiling:
    """
    The tiles of a tree that grows, each as soon as it is full.

    It holds its frontier, and of each level the hashes that fill no tile yet.
    """

    __slots__ = ("_filling", "_frontier")

    def __init__(self) -> None:
        self._frontier = Frontier()
        self._filling: dict[int, bytearray] = {}

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return self._frontier.size

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        return self._frontier.root()

    def copy(self) -> Tiling:
        """Another one that grows for itself."""
        copied = Tiling()
        copied._frontier = Frontier.from_bytes(self._frontier.to_bytes())
        copied._filling = {level: bytearray(hashes) for level, hashes in self._filling.items()}
        return copied

    def extend(self, leaves: Iterable[bytes]) -> list[Tile]:
        """
        Append leaf hashes, and say which tiles this filled, those of the leaves among them; in order within each level.

        Raises:
            ValueError: A hash is not of 32 bytes.
        """
        filled: list[Tile] = []
        rest = iter(leaves)
        while chunk := list(islice(rest, TILE_WIDTH - self.size % TILE_WIDTH)):
            first = self.size
            completed = self._frontier.extend(chunk)
            self._fill(0, first, b"".join(chunk), filled)
            for subtree in completed:
                self._fill(subtree.level // TILE_HEIGHT, subtree.index, subtree.root, filled)
        return filled

    def _fill(self, level: int, index: int, hashes: bytes, filled: list[Tile]) -> None:
        filling = self._filling.setdefault(level, bytearray())
        filling += hashes
        if len(filling) == HASH_BYTES * TILE_WIDTH:
            filled.append(Tile(level, index // TILE_WIDTH, bytes(filling)))
            del self._filling[level]


def root_at(size: int, subtree: SubtreeAt) -> bytes:
    """The root of the tree over the first `size` leaves."""
    return Frontier.at(size, subtree).root()


def inclusion_proof(index: int, size: int, subtree: SubtreeAt) -> list[bytes]:
    """
    The hashes that lead from leaf `index`, counted from 0, to the root of the tree over the first `size` leaves.

    Raises:
        ValueError: That tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    path: list[Span] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _left_width(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return [_root_of(span, subtree) for span in reversed(path)]


def consistency_proof(old_size: int, size: int, subtree: SubtreeAt) -> list[bytes]:
    """
    The hashes that show that the tree over the first `old_size` leaves is the beginning of that over the first `size`.

    Raises:
        ValueError: The old tree is the larger one.
    """
    if not 0 <= old_size <= size:
        raise ValueError(f"a tree of {size} leaves does not begin with one of {old_size}")
    if old_size == 0:
        return []
    path: list[Span] = []
    start, end = 0, size
    while end != old_size:
        middle = start + _left_width(end - start)
        if old_size <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    if start:
        # Otherwise what is left is the whole old tree, whose root the verifier has.
        path.append((start, end))
    return [_root_of(span, subtree) for span in reversed(path)]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that `leaf` is leaf `index`, from 0, of the tree of this size and root."""
    if not 0 <= index < size or not _are_hashes(leaf, root, *proof):
        return False
    place, last, reached = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            reached = node_hash(sibling, reached)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            reached = node_hash(reached, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and reached == root


def verify_consistency(old_size: int, size: int, proof: Sequence[bytes], old_root: bytes, root: bytes) -> bool:
    """Whether `proof` shows that the tree of `size` and `root` begins with that of `old_size` and `old_root`."""
    if not 0 <= old_size <= size or not _are_hashes(old_root, root, *proof):
        return False
    if old_size == size:
        return not proof and old_root == root
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    # Where the old tree is complete, its root begins the proof and is left out of it.
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    place, last = old_size - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    if not path:
        return False
    old_reached = reached = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            old_reached, reached = node_hash(sibling, old_reached), node_hash(sibling, reached)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            reached = node_hash(reached, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and old_reached == old_root and reached == root


def subtrees_in(tile: TileAt) -> SubtreeAt:
    """The subtrees of a log that is kept as tiles."""

    def subtree(level: int, index: int) -> bytes:
        tile_level, height = divmod(level, TILE_HEIGHT)
        first = index << height
        offset = first % TILE_WIDTH * HASH_BYTES
        hashes = tile(tile_level, first // TILE_WIDTH)[offset : offset + (HASH_BYTES << height)]
        if len(hashes) != HASH_BYTES << height:
            raise ValueError(
                f"tile {first // TILE_WIDTH} of level {tile_level} has no subtree {index} of level {level}"
            )
        return folded(hashes)

    return subtree


def _left_width(width: int) -> int:
    """How many of `width` leaves, at least 2, are in the left half: the largest power of two that is less."""
    return 1 << ((width - 1).bit_length() - 1)


def _cover(start: int, end: int) -> list[tuple[int, int]]:
    """Level and index of the complete subtrees that are side by side over these leaves, left to right."""
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        found.append((level, start >> level))
        start += 1 << level
    return found


def _root_of(span: Span, subtree: SubtreeAt) -> bytes:
    return _joined([subtree(level, index) for level, index in _cover(*span)])


def _joined(roots: Sequence[bytes]) -> bytes:
    """The root over complete subtrees side by side, each smaller than the one before."""
    root = roots[-1]
    for left in roots[-2::-1]:
        root = node_hash(left, root)
    return root


def folded(hashes: bytes) -> bytes:
    """The root over as many hashes as a power of two, one after the other."""
    while len(hashes) > HASH_BYTES:
        hashes = b"".join(
            [sha256(b"\1" + hashes[at : at + 2 * HASH_BYTES]).digest() for at in range(0, len(hashes), 2 * HASH_BYTES)]
        )
    return hashes


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]


def _are_hashes(*hashes: bytes) -> bool:
    return all(len(each) == HASH_BYTES for each in hashes)
