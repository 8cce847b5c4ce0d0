"""A log in a folder of files: the layout that others read, and that nothing in it can be changed unseen."""

from __future__ import annotations

import tracemalloc
from itertools import repeat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log import KEY, OTHER, note, records, root

from ledger.audit.checkpoint import Checkpoint, sign
from ledger.audit.tiles import CHECKPOINT, LogFolder, tile_path, tile_width, write_log
from ledger.core.chain import leaf_hash
from ledger.core.errors import InvalidCommand, ProofFailed
from ledger.core.merkle import Frontier, inclusion_proof, root_at, verify_inclusion

LARGE = 70_000
SMALL = 700


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of 70,000 records, whose layout the specification describes."""
    folder = tmp_path_factory.mktemp("large") / "log"
    write_log(folder, records(LARGE), note(LARGE))
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log that is larger than two tiles."""
    folder = tmp_path_factory.mktemp("small") / "log"
    write_log(folder, records(SMALL), note(SMALL))
    return folder


@pytest.mark.parametrize(
    ("number", "path"),
    [
        (0, "tile/0/000"),
        (7, "tile/0/007"),
        (999, "tile/0/999"),
        (1000, "tile/0/x001/000"),
        (1234067, "tile/0/x001/x234/067"),
    ],
)
def test_paths_are_those_of_the_specification(number: int, path: str) -> None:
    """A tile's number is in groups of three digits, and the width of one that is not full follows."""
    assert tile_path(0, number) == path
    assert tile_path("entries", number, 112) == path.replace("/0/", "/entries/", 1) + ".p/112"


def test_layout_is_that_of_the_specification(large: Path) -> None:
    """The tiles of a log of 70,000 are those that the specification counts."""
    found = {path.relative_to(large).as_posix() for path in large.rglob("*") if path.is_file()}
    expected = {CHECKPOINT, "tile/2/000.p/1", "tile/1/000", "tile/1/001.p/17"}
    for level in ("0", "entries"):
        expected |= {f"tile/{level}/{number:03}" for number in range(273)} | {f"tile/{level}/273.p/112"}

    assert found == expected
    places = ((0, 272), (0, 273), (0, 274), (1, 1), (2, 0))
    assert [tile_width(LARGE, level, number) for level, number in places] == [256, 112, 0, 17, 1]
    assert {path.stat().st_size for path in (large / "tile/0").iterdir() if path.is_file()} == {8192}
    assert (large / "tile/entries/000").read_bytes().startswith(b'\x00\x17{"event":0,"said":"so"}\x00\x17{"event":1,')


def test_a_large_log_is_verified(large: Path) -> None:
    """All 70,000 records are read again, and the tree over them is the one that was signed."""
    seen: list[int] = []
    log = LogFolder(large)

    checkpoint = log.verify([KEY.verifier], progress=seen.append)

    assert checkpoint == Checkpoint(KEY.name, LARGE, root(LARGE))
    assert seen[-1] == LARGE
    assert all(ours == theirs for ours, theirs in zip(log.records(LARGE), records(LARGE), strict=True))
    with pytest.raises(ProofFailed, match="none of the keys"):
        log.verify([OTHER.verifier])


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 513, 65_536, 65_537])
def test_logs_of_any_size_are_verified(size: int, tmp_path: Path) -> None:
    """Where tiles are just full, or not begun, the log is whole, and proofs can be made of it."""
    write_log(tmp_path, records(size), note(size))
    log = LogFolder(tmp_path)

    assert log.verify([KEY.verifier]).size == size
    if size:
        assert root_at(size, log.subtrees(size)) == root(size)
        proof = inclusion_proof(size - 1, size, log.subtrees(size))
        assert verify_inclusion(leaf_hash(log.record(size, size - 1)), size - 1, size, proof, root(size))


def test_a_longer_log_is_cut_at_its_checkpoint(tmp_path: Path) -> None:
    """What was appended after the checkpoint is not part of what it signs."""
    write_log(tmp_path, records(500), note(300))

    assert LogFolder(tmp_path).verify([KEY.verifier]).size == 300


def test_a_log_that_is_not_its_checkpoints_is_not_finished(tmp_path: Path) -> None:
    """Fewer or other records than those of the checkpoint leave a folder that nobody takes for a log."""
    with pytest.raises(ProofFailed, match="299 records"):
        write_log(tmp_path / "fewer", records(299), note(300))
    with pytest.raises(ProofFailed, match="300 records"):
        write_log(tmp_path / "other", records(300, changed=7), note(300))

    assert not (tmp_path / "fewer" / CHECKPOINT).exists()
    with pytest.raises(FileNotFoundError):
        LogFolder(tmp_path / "other").verify([KEY.verifier])
    with pytest.raises(InvalidCommand, match="not empty"):
        write_log(tmp_path / "other", records(300), note(300))


def test_records_are_as_long_as_the_format_allows(tmp_path: Path) -> None:
    """A record of 65,535 bytes is kept, one of 65,536 is refused."""
    for length in (0, 0xFFFF):
        frontier = Frontier()
        frontier.extend([leaf_hash(b"x" * length)])
        signed = sign(Checkpoint(KEY.name, 1, frontier.root()), KEY)
        write_log(tmp_path / str(length), [b"x" * length], signed)
        assert LogFolder(tmp_path / str(length)).verify([KEY.verifier]).size == 1
        assert LogFolder(tmp_path / str(length)).record(1, 0) == b"x" * length
    with pytest.raises(InvalidCommand, match="65,536 bytes"):
        write_log(tmp_path / "more", [b"x" * 0x10000], signed)


@settings(max_examples=200)
@given(st.data())
def test_any_changed_bit_is_found(small: Path, data: st.DataObject) -> None:
    """A folder with any bit of any file changed is not verified, and none of its files is spare."""
    path = data.draw(st.sampled_from(sorted(path for path in small.rglob("*") if path.is_file())))
    content = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    try:
        path.write_bytes((int.from_bytes(content, "big") ^ 1 << bit).to_bytes(len(content), "big"))
        with pytest.raises(ProofFailed):
            LogFolder(small).verify([KEY.verifier])
    finally:
        path.write_bytes(content)
    assert LogFolder(small).verify([KEY.verifier]).size == SMALL


def test_a_changed_record_is_named(tmp_path: Path) -> None:
    """A record that does not fit its hash is named; where all hashes were made anew, the root does not fit."""
    write_log(tmp_path / "log", records(SMALL), note(SMALL))
    bundle = tmp_path / "log" / tile_path("entries", 1)
    bundle.write_bytes(bundle.read_bytes().replace(b'{"event":300,"said":"so"}', b'{"event":300,"said":"no"}'))
    write_log(tmp_path / "forged", records(SMALL, changed=300), note(SMALL, changed=300))
    (tmp_path / "forged" / CHECKPOINT).write_bytes(note(SMALL))

    with pytest.raises(ProofFailed, match=r"Record 300 of the log .* tile/0/001"):
        LogFolder(tmp_path / "log").verify([KEY.verifier])
    with pytest.raises(ProofFailed, match="700 records do not have the root"):
        LogFolder(tmp_path / "forged").verify([KEY.verifier])


def test_a_missing_file_is_not_passed_over(tmp_path: Path) -> None:
    """Every file of a log is needed to verify it."""
    write_log(tmp_path, records(SMALL), note(SMALL))
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(FileNotFoundError):
            LogFolder(tmp_path).verify([KEY.verifier])
        path.write_bytes(content)


def test_memory_is_flat(tmp_path: Path) -> None:
    """Writing and verifying 50,000 records takes no more memory than 5,000 do."""

    def peak(size: int) -> int:
        frontier = Frontier()
        frontier.extend(repeat(leaf_hash(b"x" * 100), size))
        signed = sign(Checkpoint(KEY.name, size, frontier.root()), KEY)
        tracemalloc.start()
        write_log(tmp_path / str(size), repeat(b"x" * 100), signed)
        LogFolder(tmp_path / str(size)).verify([KEY.verifier])
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(300)  # What is imported on the way counts for nobody.
    assert peak(50_000) < 2 * peak(5_000)
