"""A small log to prove things of, its key, and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ledger.audit.checkpoint import Checkpoint, SigningKey, sign
from ledger.core.chain import leaf_hash
from ledger.core.merkle import Frontier, SubtreeAt, consistency_proof

KEY: Final = SigningKey("example.org/ledger", bytes(range(32)))
OTHER: Final = SigningKey("example.org/witness", bytes(range(1, 33)))


def records(size: int, *, changed: int | None = None) -> Iterator[bytes]:
    """The first records of the log, or of a log in which one of them is another."""
    for number in range(size):
        yield f'{{"event":{number},"said":"{"otherwise" if number == changed else "so"}"}}'.encode()


def root(size: int, *, changed: int | None = None) -> bytes:
    """The root over the first records."""
    frontier = Frontier()
    frontier.extend(map(leaf_hash, records(size, changed=changed)))
    return frontier.root()


def note(size: int, *keys: SigningKey, changed: int | None = None) -> bytes:
    """The signed checkpoint of the log when it had so many records."""
    return sign(Checkpoint(KEY.name, size, root(size, changed=changed)), *(keys or (KEY,)))


def subtrees(size: int, *, changed: int | None = None) -> SubtreeAt:
    """The subtrees over the first records."""
    leaves = list(map(leaf_hash, records(size, changed=changed)))

    def subtree(level: int, index: int) -> bytes:
        part = Frontier()
        part.extend(leaves[index << level : (index + 1) << level])
        return part.root()

    return subtree


def extension(old: int, new: int, *, changed: int | None = None) -> list[bytes]:
    """The proof that the log of `new` records extends that of `old`."""
    return consistency_proof(old, new, subtrees(new, changed=changed))
