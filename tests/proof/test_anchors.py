"""Anchors: a file that only grows, and the timestamps of an authority that `openssl ts` plays."""

from __future__ import annotations

import multiprocessing
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log import KEY, OTHER, extension, note
from openssl import TimestampAuthority

from ledger.audit.anchors import (
    LINE_BYTES_MAX,
    Anchor,
    FileAnchor,
    Kept,
    TimestampAnchor,
    timestamp_request,
    verify_timestamp,
)
from ledger.core.errors import InvalidCommand, ProofFailed

SIZES = (3, 8, 8, 20)
LINE_END: Final = b"\n"


@pytest.fixture
def anchor(tmp_path: Path) -> FileAnchor:
    """A file with the checkpoints of a log that has grown."""
    made = FileAnchor(tmp_path / "anchor", [KEY.verifier])
    grow(made, SIZES)
    return made


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TimestampAuthority:
    """An authority for timestamps."""
    return TimestampAuthority(tmp_path_factory.mktemp("authority") / "good")


def grow(anchor: Anchor, sizes: tuple[int, ...]) -> None:
    """Record the log at these sizes."""
    old = 0
    for size in sizes:
        anchor.record(note(size), extension(old, size))
        old = size


def test_file_keeps_what_extends(anchor: FileAnchor) -> None:
    """Each checkpoint is a line with its proof; one that is there already is not written again."""
    lines = anchor.path.read_bytes().splitlines(keepends=True)

    assert [checkpoint.size for checkpoint in anchor.verify()] == [3, 8, 20]
    assert [Kept.from_line(line) for line in lines] == [
        Kept(note(3), ()),
        Kept(note(8), tuple(extension(3, 8))),
        Kept(note(20), tuple(extension(8, 20))),
    ]
    last = anchor.last()
    assert last is not None
    assert last.checkpoint.size == 20
    assert FileAnchor(anchor.path.with_name("none"), [KEY.verifier]).last() is None


def test_file_refuses_what_does_not_extend(anchor: FileAnchor) -> None:
    """A changed, a shorter, an unproved, an unsigned and another log are refused, and the file stays as it was."""
    before = anchor.path.read_bytes()

    with pytest.raises(ProofFailed, match=r"size 30 .* not shown to extend size 20"):
        anchor.record(note(30, changed=5), extension(20, 30, changed=5))
    with pytest.raises(ProofFailed, match=r"size 20 .* not shown to extend size 20"):
        anchor.record(note(20, changed=5), [])
    with pytest.raises(ProofFailed, match=r"size 8 .* not shown to extend size 20"):
        anchor.record(note(8), extension(8, 8))
    with pytest.raises(ProofFailed, match="not shown to extend"):
        anchor.record(note(30), [])
    with pytest.raises(ProofFailed, match="none of the keys"):
        anchor.record(note(30, OTHER), extension(20, 30))
    with pytest.raises(ProofFailed, match="none before it"):
        FileAnchor(anchor.path.with_name("new"), [KEY.verifier]).record(note(30), extension(20, 30))

    assert anchor.path.read_bytes() == before
    anchor.record(note(30), extension(20, 30))
    assert [checkpoint.size for checkpoint in anchor.verify()] == [3, 8, 20, 30]


def test_a_line_cut_short_is_passed_over(anchor: FileAnchor) -> None:
    """After a crash in the midst of a line, the next checkpoint extends the last whole one."""
    whole, cut = anchor.path.read_bytes(), Kept(note(30), tuple(extension(20, 30))).to_line()
    for length, last in ((1, 20), (100, 20), (len(cut) - 2, 20), (len(cut) - 1, 30)):
        anchor.path.write_bytes(whole + cut[:length])
        kept = anchor.last()
        assert kept is not None
        assert kept.checkpoint.size == last  # All of it but the newline is all that counts.
        anchor.record(note(40), extension(last, 40))
        assert [checkpoint.size for checkpoint in anchor.verify()] == sorted({3, 8, 20, last, 40})
        assert anchor.path.read_bytes().startswith(whole)


NO_ANCHORS: Final = {
    "a checkpoint": note(3),
    "a key": KEY.secret.encode() + b"\n",
    "an empty line": b"\n",
    "zeros": bytes(100),
    "nested without end": b"[" * 200_000,
    "nested in a proof": b'{"checkpoint": "x", "proof": ' + b"[" * (LINE_BYTES_MAX + 1),
    "more than a line": b"x" * 2_200_000,
    "more than is looked back": b"x" * 5_000_000,
    "a beginning that is too long": b'{"checkpoint": "' + b"x" * 5_000_000,
}


@pytest.mark.parametrize("what", NO_ANCHORS)
@pytest.mark.parametrize("behind", [False, True])
def test_a_file_that_does_not_end_as_an_anchor_is_left_alone(anchor: FileAnchor, what: str, behind: bool) -> None:
    """Anything else, alone or behind a sound anchor, is no empty anchor: it is refused before anything is written."""
    whole = anchor.path.read_bytes() if behind else b""
    anchor.path.write_bytes(whole + NO_ANCHORS[what])

    for size, proof in ((30, []), (30, extension(20, 30)), (20, [])):
        with pytest.raises(ProofFailed, match=r"The anchor .*its last line is no checkpoint"):
            anchor.record(note(size), proof)
    with pytest.raises(ProofFailed, match="its last line is no checkpoint"):
        anchor.last()
    with pytest.raises(ProofFailed, match=rf"Line {whole.count(LINE_END) + 1} of .*it is no checkpoint"):
        list(anchor.verify())
    assert anchor.path.read_bytes() == whole + NO_ANCHORS[what]


def test_an_anchor_whose_first_line_was_cut_short_is_empty(anchor: FileAnchor) -> None:
    """A crash in the midst of the first line leaves nothing to extend."""
    anchor.path.write_bytes(anchor.path.read_bytes()[:50])
    assert anchor.last() is None
    anchor.record(note(8), [])
    assert [checkpoint.size for checkpoint in anchor.verify()] == [8]


def test_nesting_without_end_is_no_line() -> None:
    """What a parser cannot follow keeps nothing."""
    for line in (b"[" * 200_000, b'{"checkpoint": "x", "proof": ' + b"[" * 200_000):
        assert Kept.from_line(line) is None


@settings(max_examples=300)
@given(st.data())
def test_any_changed_bit_in_the_file_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """With any bit changed the file does not verify, or it ends sooner: the last line alone has nothing after it."""
    anchor = FileAnchor(tmp_path_factory.mktemp("anchor") / "file", [KEY.verifier])
    grow(anchor, SIZES)
    content = anchor.path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    anchor.path.write_bytes((int.from_bytes(content, "big") ^ 1 << bit).to_bytes(len(content), "big"))

    try:
        sizes = [checkpoint.size for checkpoint in anchor.verify()]
    except ProofFailed:
        return
    place, last_line = len(content) - 1 - bit // 8, content.rindex(b"\n", 0, -1)
    assert place >= last_line
    assert sizes == ([3] if place == last_line else [3, 8])


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_missing_line_is_found(anchor: FileAnchor, dropped: int) -> None:
    """A line that has others after it cannot be taken out, and lines cannot be swapped."""
    lines = anchor.path.read_bytes().splitlines(keepends=True)
    anchor.path.write_bytes(b"".join(line for place, line in enumerate(lines) if place != dropped))
    with pytest.raises(ProofFailed):
        list(anchor.verify())
    anchor.path.write_bytes(b"".join([lines[1], lines[0], lines[2]]))
    with pytest.raises(ProofFailed):
        list(anchor.verify())


def test_processes_take_turns(tmp_path: Path) -> None:
    """Of many processes that record the same checkpoints, one writes each, and the file is whole."""
    path = tmp_path / "anchor"
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=record_all, args=(path,)) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join(timeout=60)

    assert [other.exitcode for other in others] == [0] * 4
    assert [checkpoint.size for checkpoint in FileAnchor(path, [KEY.verifier]).verify()] == list(range(1, 21))


def record_all(path: Path) -> None:
    """Bring the file to a log of 20 records, one at a time, whoever else does so too."""
    anchor = FileAnchor(path, [KEY.verifier])
    while True:
        last = anchor.last()
        size = 0 if last is None else last.checkpoint.size
        if size == 20:
            return
        try:
            anchor.record(note(size + 1), extension(size, size + 1))
        except ProofFailed:
            # Somebody was faster, and what is last now is further on.
            continue


def test_timestamps_are_verified_without_asking(authority: TimestampAuthority, tmp_path: Path) -> None:
    """What the authority says of a checkpoint holds for us and for OpenSSL, later and offline."""
    anchor = TimestampAnchor(tmp_path / "stamps", authority, authority.roots)
    grow(anchor, (3, 20))

    found = anchor.verify([KEY.verifier])

    assert [checkpoint.size for checkpoint, _ in found] == [3, 20]
    assert all(isinstance(at, datetime) and at.tzinfo is not None for _, at in found)
    files = sorted((tmp_path / "stamps").iterdir())
    assert [path.suffix for path in files] == [".checkpoint", ".tsq", ".tsr"] * 2
    for path in files:
        if path.suffix == ".checkpoint":
            assert authority.verifies(path, path.with_suffix(".tsr"))
    with pytest.raises(ProofFailed, match="none of the keys"):
        anchor.verify([OTHER.verifier])


@pytest.mark.parametrize(
    "content", [b"", KEY.secret.encode(), b"Log\nno size\nno root\n\n" + note(3).rpartition(b"\n\n")[2]]
)
def test_a_timestamp_is_asked_for_a_checkpoint_only(content: bytes) -> None:
    """Of an empty file, a signing key and a note of something else no request is made."""
    with pytest.raises(InvalidCommand, match="checkpoint: The"):
        timestamp_request(content)


def test_a_timestamp_is_of_one_checkpoint(authority: TimestampAuthority, tmp_path: Path) -> None:
    """A response does not hold for another checkpoint, nor for the same one signed otherwise."""
    response = authority(timestamp_request(note(20)))
    (tmp_path / "response").write_bytes(response)

    assert verify_timestamp(note(20), response, authority.roots)
    for other in (note(21), note(20, changed=3), note(20, KEY, OTHER), b"x"):
        (tmp_path / "note").write_bytes(other)
        assert not authority.verifies(tmp_path / "note", tmp_path / "response")
        with pytest.raises(ProofFailed, match="timestamp"):
            verify_timestamp(other, response, authority.roots)


def test_only_a_trusted_authority_can_say_so(authority: TimestampAuthority, tmp_path: Path) -> None:
    """The word of an authority that nobody named counts for nothing, and is not kept."""
    stranger = TimestampAuthority(tmp_path / "stranger")
    response = stranger(timestamp_request(note(20)))

    assert verify_timestamp(note(20), response, stranger.roots)
    assert verify_timestamp(note(20), response, authority.roots + stranger.roots)
    with pytest.raises(ProofFailed, match="timestamp"):
        verify_timestamp(note(20), response, authority.roots)
    anchor = TimestampAnchor(tmp_path / "stamps", stranger, authority.roots)
    with pytest.raises(ProofFailed):
        anchor.record(note(20), [])
    assert not (tmp_path / "stamps").exists()


def test_what_is_no_response_is_refused(authority: TimestampAuthority) -> None:
    """A refusal of the authority, a page of a proxy, and a response cut short are no timestamps."""
    response = authority(timestamp_request(note(20)))
    refusal = authority(b"no request")

    for other in (
        b"",
        b"<html>",
        refusal,
        response[:-1],
        response[: len(response) // 2],
        response + b"x",
        response[9:],
    ):
        with pytest.raises(ProofFailed, match="timestamp"):
            verify_timestamp(note(20), other, authority.roots)
    for roots in (b"", b"no certificates"):
        with pytest.raises(InvalidCommand, match="roots"):
            verify_timestamp(note(20), response, roots)


@settings(max_examples=150)
@given(data=st.data())
def test_a_changed_timestamp_says_no_other_time(authority: TimestampAuthority, data: st.DataObject) -> None:
    """A response with any bit changed is refused, or says the same: some of its bits are outside of what is signed."""
    response = RESPONSE.setdefault("response", authority(timestamp_request(note(20))))
    bit = data.draw(st.integers(0, 8 * len(response) - 1))
    changed = (int.from_bytes(response, "big") ^ 1 << bit).to_bytes(len(response), "big")

    try:
        said = verify_timestamp(note(20), changed, authority.roots)
    except ProofFailed:
        return
    assert said == verify_timestamp(note(20), response, authority.roots)


RESPONSE: dict[str, bytes] = {}
"""One response for all examples: an authority takes its time."""


def test_a_missing_response_is_not_passed_over(authority: TimestampAuthority, tmp_path: Path) -> None:
    """A checkpoint in the folder without its response is not verified, nor is one that was put in another's place."""
    anchor = TimestampAnchor(tmp_path / "stamps", authority, authority.roots)
    grow(anchor, (3, 20))
    first, second = sorted((tmp_path / "stamps").glob("*.checkpoint"))
    kept = first.with_suffix(".tsr").read_bytes()

    first.with_suffix(".tsr").unlink()
    with pytest.raises(FileNotFoundError):
        anchor.verify([KEY.verifier])
    first.with_suffix(".tsr").write_bytes(kept)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ProofFailed):
        anchor.verify([KEY.verifier])
