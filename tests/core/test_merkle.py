"""The Merkle tree, against the published vectors and against RFC 6962's own definition written down once more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.chain import leaf_hash
from ledger.core.merkle import (
    EMPTY_ROOT,
    TILE_WIDTH,
    Frontier,
    Subtree,
    SubtreeAt,
    Tiling,
    consistency_proof,
    inclusion_proof,
    node_hash,
    root_at,
    subtrees_in,
    verify_consistency,
    verify_inclusion,
)

LARGEST = 1025
LEAVES = [sha256(f"leaf {number}".encode()).digest() for number in range(LARGEST)]

ENTRIES = [
    bytes.fromhex(entry)
    for entry in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
"""The entries of the vectors that come with certificate-transparency and with transparency-dev/merkle."""

ROOTS = [
    bytes.fromhex(root)
    for root in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]

PATHS = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
"""Index and size, and the inclusion proof."""

EXTENSIONS = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
    (6, 7): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
"""Two sizes, and the consistency proof."""


# What RFC 6962, section 2.1, defines, word for word; leaves are given by their hashes.


def half(width: int) -> int:
    """The largest power of two smaller than `width`."""
    k = 1
    while k * 2 < width:
        k *= 2
    return k


@cache
def mth(start: int, end: int) -> bytes:
    """The Merkle Tree Hash over leaves from `start` to before `end`."""
    if end == start:
        return sha256().digest()
    if end - start == 1:
        return LEAVES[start]
    k = half(end - start)
    return sha256(bytes([1]) + mth(start, start + k) + mth(start + k, end)).digest()


def path(m: int, start: int, end: int) -> list[bytes]:
    """The audit path PATH(m, D[start:end])."""
    if end - start == 1:
        return []
    k = half(end - start)
    if m < k:
        return [*path(m, start, start + k), mth(start + k, end)]
    return [*path(m - k, start + k, end), mth(start, start + k)]


def subproof(m: int, start: int, end: int, whole: bool) -> list[bytes]:
    """The consistency proof SUBPROOF(m, D[start:end], whole)."""
    n = end - start
    if m == n:
        return [] if whole else [mth(start, end)]
    k = half(n)
    if m <= k:
        return [*subproof(m, start, start + k, whole), mth(start + k, end)]
    return [*subproof(m - k, start + k, end, False), mth(start, start + k)]


def sides(m: int, n: int) -> tuple[str, ...]:
    """On which side each hash of an audit path is: its shape."""
    if n == 1:
        return ()
    k = half(n)
    return (*sides(m, k), "right") if m < k else (*sides(m - k, n - k), "left")


def subtree(level: int, index: int) -> bytes:
    """A complete subtree over `LEAVES`."""
    return mth(index << level, (index + 1) << level)


def test_published_roots() -> None:
    """The roots over the published entries are the published ones, at any size and however they are added."""
    leaves = [leaf_hash(entry) for entry in ENTRIES]
    grown = Frontier()
    for size, root in enumerate(ROOTS):
        at_once = Frontier()
        at_once.extend(leaves[:size])
        assert at_once.root() == grown.root() == root
        grown.extend(leaves[size : size + 1])
    assert ROOTS[0] == EMPTY_ROOT


@pytest.mark.parametrize(("index", "size"), PATHS)
def test_published_inclusion_proofs(index: int, size: int) -> None:
    """The published inclusion proofs are the ones we make, and they hold."""
    leaves = [leaf_hash(entry) for entry in ENTRIES]
    expected = [bytes.fromhex(each) for each in PATHS[index, size]]

    assert inclusion_proof(index, size, over(leaves)) == expected
    assert verify_inclusion(leaves[index], index, size, expected, ROOTS[size])


@pytest.mark.parametrize(("old", "new"), EXTENSIONS)
def test_published_consistency_proofs(old: int, new: int) -> None:
    """The published consistency proofs are the ones we make, and they hold."""
    expected = [bytes.fromhex(each) for each in EXTENSIONS[old, new]]

    assert consistency_proof(old, new, over([leaf_hash(entry) for entry in ENTRIES])) == expected
    assert verify_consistency(old, new, expected, ROOTS[old], ROOTS[new])


def test_every_size_has_the_root_of_the_definition() -> None:
    """For all sizes from 0 to 1,025 the root is the definition's: grown, resumed, and made of subtrees."""
    grown = Frontier()
    for size in range(LARGEST + 1):
        assert grown.size == size
        assert grown.root() == root_at(size, subtree) == mth(0, size)
        grown = Frontier.from_bytes(grown.to_bytes())
        grown.extend(LEAVES[size : size + 1])


def test_every_size_has_the_proofs_of_the_definition() -> None:
    """For all sizes from 0 to 1,025 proofs of the first, last, middle and some other leaves and sizes hold."""
    draw = random.Random(6962)  # noqa: S311
    for size in range(LARGEST + 1):
        chosen = {0, 1, size // 2, half(size) if size > 1 else 0, size - 1, *(draw.randrange(size or 1) for _ in "abc")}
        for index in chosen & set(range(size)):
            check_inclusion(index, size)
            check_consistency(index, size)
        check_consistency(size, size)


@pytest.mark.campaign
def test_every_pair_has_the_proofs_of_the_definition() -> None:
    """For all pairs up to 1,025 inclusion and consistency proofs are the definition's, and hold."""
    for size in range(LARGEST + 1):
        for index in range(size):
            check_inclusion(index, size)
            check_consistency(index, size)


def test_every_small_pair_has_the_proofs_of_the_definition() -> None:
    """For all pairs up to 70 inclusion and consistency proofs are the definition's, and hold."""
    for size in range(70 + 1):
        for index in range(size):
            check_inclusion(index, size)
            check_consistency(index, size)


def check_inclusion(index: int, size: int) -> None:
    proof = inclusion_proof(index, size, subtree)
    assert proof == path(index, 0, size)
    assert verify_inclusion(LEAVES[index], index, size, proof, mth(0, size))


def check_consistency(old: int, new: int) -> None:
    proof = consistency_proof(old, new, subtree)
    assert proof == ([] if old == 0 else subproof(old, 0, new, True))
    assert verify_consistency(old, new, proof, mth(0, old), mth(0, new))


@given(st.lists(st.integers(0, 700), max_size=6))
def test_batches_do_not_matter(widths: list[int]) -> None:
    """However leaves are cut into batches, the tree is the same, and each subtree is named once, when complete."""
    leaves = [LEAVES[number % LARGEST] for number in range(sum(widths))]
    grown, completed, begin = Frontier(), [], 0
    for width in widths:
        completed += grown.extend(leaves[begin : begin + width])
        begin += width
    at_once = Frontier()

    assert at_once.extend(leaves) == completed
    assert at_once.to_bytes() == grown.to_bytes()
    assert [(each.level, each.index) for each in completed] == [
        (8, index) for index in range(len(leaves) // TILE_WIDTH)
    ]


def test_subtrees_are_named_where_tiles_need_them() -> None:
    """Of more than 65,536 leaves, each 256 complete a hash of a tile, and each 256 of those one above."""
    frontier = Frontier()
    completed = frontier.extend(LEAVES[number % LARGEST] for number in range(65_536 + 300))

    assert [each.index for each in completed if each.level == 8] == list(range(257))
    assert [each for each in completed if each.level == 16] == [
        Subtree(16, 0, root_at(256, lambda level, index: completed_at(completed, level, index)))
    ]
    assert completed[0] == Subtree(8, 0, mth(0, 256))


def completed_at(completed: list[Subtree], level: int, index: int) -> bytes:
    """A subtree over the hashes of level 8 among `completed`, `level` above them."""
    below = [each.root for each in completed if each.level == 8][index << level : (index + 1) << level]
    while len(below) > 1:
        below = [node_hash(*pair) for pair in zip(below[::2], below[1::2], strict=True)]
    return below[0]


def over(leaves: list[bytes]) -> SubtreeAt:
    """The subtrees over a few leaves."""

    def found(level: int, index: int) -> bytes:
        if level == 0:
            return leaves[index]
        return node_hash(found(level - 1, 2 * index), found(level - 1, 2 * index + 1))

    return found


def test_tiles_hold_every_subtree() -> None:
    """Proofs made of tiles are those made of the tree."""

    def tile(level: int, index: int) -> bytes:
        span = 256**level
        first = index * 256
        return b"".join(mth(n * span, (n + 1) * span) for n in range(first, min(first + 256, LARGEST // span)))

    for index in (0, 1, 255, 256, 511, 512, 1023, 1024):
        assert inclusion_proof(index, LARGEST, subtrees_in(tile)) == path(index, 0, LARGEST)
        assert consistency_proof(index, LARGEST, subtrees_in(tile)) == (
            [] if index == 0 else subproof(index, 0, LARGEST, True)
        )
    with pytest.raises(ValueError, match="no subtree"):
        subtrees_in(tile)(1, 600)


PAIRS = st.integers(1, LARGEST).flatmap(lambda size: st.tuples(st.integers(0, size - 1), st.just(size)))


@given(PAIRS, st.data())
def test_altered_inclusion_proofs_fail(pair: tuple[int, int], data: st.DataObject) -> None:
    """A proof with any bit, hash, leaf, index or root changed shows nothing."""
    index, size = pair
    proof, leaf, root = path(index, 0, size), LEAVES[index], mth(0, size)

    for altered in altered_proofs(proof, data):
        assert not verify_inclusion(leaf, index, size, altered, root)
    other = data.draw(st.integers(-3, 2 * size).filter(lambda other: other != index))
    assert not verify_inclusion(leaf, other, size, proof, root)
    assert not verify_inclusion(flipped(leaf, data), index, size, proof, root)
    assert not verify_inclusion(leaf, index, size, proof, flipped(root, data))
    assert not verify_inclusion(leaf[:-1], index, size, proof, root)
    assert not verify_inclusion(leaf, index, size, proof, root[:-1])


@given(PAIRS, st.data())
def test_altered_sizes_fail(pair: tuple[int, int], data: st.DataObject) -> None:
    """A proof holds at another size only where its path has the very same shape: a root does not name a size."""
    index, size = pair
    other = data.draw(st.integers(-1, 2 * size + 2).filter(lambda other: other != size))

    held = verify_inclusion(LEAVES[index], index, other, path(index, 0, size), mth(0, size))

    assert held == (other > index and sides(index, other) == sides(index, size))


@given(PAIRS, st.data())
def test_altered_consistency_proofs_fail(pair: tuple[int, int], data: st.DataObject) -> None:
    """A proof with any bit, hash, root or the old size changed shows nothing."""
    old, new = pair
    proof = [] if old == 0 else subproof(old, 0, new, True)
    old_root, root = mth(0, old), mth(0, new)

    for altered in altered_proofs(proof, data):
        assert not verify_consistency(old, new, altered, old_root, root)
    other = data.draw(st.integers(-3, new + 2).filter(lambda other: other != old))
    assert not verify_consistency(other, new, proof, old_root, root)
    assert not verify_consistency(old, new, proof, flipped(old_root, data), root)
    if old:
        # Any tree begins with the empty one.
        assert not verify_consistency(old, new, proof, old_root, flipped(root, data))
        assert not verify_consistency(old, old - 1, proof, old_root, root)
    assert not verify_consistency(new, old, proof, root, old_root)


@given(PAIRS.filter(lambda pair: pair[0] > 0), st.data())
def test_another_history_has_no_proof(pair: tuple[int, int], data: st.DataObject) -> None:
    """A tree in which an old leaf was changed does not extend the old one, whatever proof it offers of itself."""
    old, new = pair
    leaves = LEAVES[:new]
    place = data.draw(st.integers(0, old - 1))
    leaves[place] = flipped(leaves[place], data)
    frontier = Frontier()
    frontier.extend(leaves)

    def forged(level: int, index: int) -> bytes:
        part = Frontier()
        part.extend(leaves[index << level : (index + 1) << level])
        return part.root()

    assert not verify_consistency(old, new, consistency_proof(old, new, forged), mth(0, old), frontier.root())


def altered_proofs(proof: list[bytes], data: st.DataObject) -> Iterator[list[bytes]]:
    """Proofs that differ a little from a good one."""
    some = sha256(b"some").digest()
    yield [*proof, some]
    yield [some, *proof]
    yield [*proof, b""]
    yield [*proof, mth(0, 1)]
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        yield proof[:place] + proof[place + 1 :]
        yield [*proof[:place], proof[place], *proof[place:]]
        yield [*proof[:place], flipped(proof[place], data), *proof[place + 1 :]]
        yield [*proof[:place], proof[place][:-1], *proof[place + 1 :]]
    if len(proof) > 1:
        yield proof[::-1]
        yield [b"".join(proof[:2]), *proof[2:]]


def flipped(hash: bytes, data: st.DataObject) -> bytes:
    """A hash with one bit changed."""
    bit = data.draw(st.integers(0, 8 * len(hash) - 1))
    return (int.from_bytes(hash, "big") ^ 1 << bit).to_bytes(len(hash), "big")


def test_impossible_questions_are_refused() -> None:
    """There is no proof for a leaf that is not there, nor for an old tree that is larger."""
    with pytest.raises(ValueError, match="no leaf 3"):
        inclusion_proof(3, 3, subtree)
    with pytest.raises(ValueError, match="no leaf -1"):
        inclusion_proof(-1, 3, subtree)
    with pytest.raises(ValueError, match="does not begin"):
        consistency_proof(4, 3, subtree)


@pytest.mark.parametrize("leaves", [[b""], [LEAVES[0], LEAVES[1][:-1]], [LEAVES[0] + b"x", LEAVES[1][1:]]])
def test_leaves_are_hashes(leaves: list[bytes]) -> None:
    """What is not of 32 bytes cannot be a leaf."""
    with pytest.raises(ValueError, match="32 bytes"):
        Frontier().extend(leaves)


def test_mangled_frontiers_are_refused() -> None:
    """Bytes that are no frontier are not taken for one."""
    frontier = Frontier()
    frontier.extend(LEAVES[:7])
    stored = frontier.to_bytes()

    for mangled in (b"", stored[:-1], stored + b"x", stored[32:], stored.replace(b"/1", b"/2"), stored + LEAVES[0]):
        with pytest.raises(ValueError, match="no frontier"):
            Frontier.from_bytes(mangled)


def test_a_frontier_begins_at_any_size() -> None:
    """What goes on from the subtrees of a smaller tree becomes the larger tree."""
    frontier = Frontier.at(700, subtree)
    frontier.extend(LEAVES[700:])

    assert frontier.root() == mth(0, LARGEST)


def test_tiles_are_given_when_they_are_full() -> None:
    """In whatever pieces the leaves come: each full tile once, in order, with the hashes that its level has there."""
    leaves = [sha256(f"leaf {number}".encode()).digest() for number in range(TILE_WIDTH * TILE_WIDTH + 300)]
    whole, pieces = Tiling(), Tiling()
    filled = whole.extend(leaves)
    draws = random.Random(3)  # noqa: S311  (not for secrets)
    grown, at = [], 0
    while at < len(leaves):
        width = draws.randint(1, 700)
        grown += pieces.extend(leaves[at : at + width])
        at += width
    assert grown == filled
    assert [(tile.level, tile.number) for tile in filled if tile.level] == [(1, 0)]
    below = [tile for tile in filled if tile.level == 0]
    assert [tile.number for tile in below] == list(range(TILE_WIDTH + 1))
    assert b"".join(tile.hashes for tile in below) == b"".join(leaves[: TILE_WIDTH * (TILE_WIDTH + 1)])
    frontier = Frontier()
    assert b"".join(each.root for each in frontier.extend(leaves) if each.level == 8)[:8192] == filled[-2].hashes
    assert whole.root() == pieces.root() == frontier.root()


def test_a_copy_grows_for_itself() -> None:
    """What is tried on a copy leaves the original as it was."""
    original = Tiling()
    original.extend(LEAVES[:200])
    copy, root = original.copy(), original.root()
    assert copy.extend(LEAVES[200:300]) != []
    assert (original.size, original.root()) == (200, root)
    assert original.extend(LEAVES[200:300])[0].hashes == b"".join(LEAVES[:256])
    assert original.root() == copy.root()
