"""
Anchors: checkpoints put where whoever rewrites the log cannot reach, or cannot reach back to.

Two kinds are here.  A file that only grows, on another machine or on write-once storage, takes a checkpoint only with
the proof that it extends the one before.  A timestamp of an authority (RFC 3161) says that a checkpoint was there at
that time, and is verified without asking anybody.  Anything else with a `record` is an anchor too: a git repository, a
bucket with object lock, a witness.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeAlias

from ledger.audit.checkpoint import NOTE_BYTES_MAX, Checkpoint, Note, VerifierKey, open_checkpoint
from ledger.core.errors import InvalidCommand, ProofFailed
from ledger.core.merkle import verify_consistency

LINE_BYTES_MAX: Final = 2 * NOTE_BYTES_MAX
_BEGINNING: Final = b'{"checkpoint": "'

Authority: TypeAlias = Callable[[bytes], bytes]
"""Sends a timestamp request (`application/timestamp-query`) to an authority, and returns its response."""


class Anchor(Protocol):
    """Where checkpoints are kept beyond the reach of whoever keeps the log."""

    def record(self, note: bytes, proof: Sequence[bytes]) -> None:
        """
        Keep a signed checkpoint for good before returning.

        `proof` is the consistency proof from the checkpoint that this anchor keeps last, and empty for the first one.
        """


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint in an anchor."""

    note: bytes
    proof: tuple[bytes, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        """What the note says; nothing shows here that it is signed."""
        return Checkpoint.parse(Note.parse(self.note).text)

    def to_line(self) -> bytes:
        """As a line of JSON."""
        proof = [b64encode(each).decode() for each in self.proof]
        return json.dumps({"checkpoint": self.note.decode(), "proof": proof}, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Kept | None:
        """What a line keeps; None if it is not whole, or no such line at all."""
        try:
            read = json.loads(line)
            kept = cls(read["checkpoint"].encode(), tuple(b64decode(each, validate=True) for each in read["proof"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        # A line of which a crash took no more than its end is whole: the next one begins with that end.
        return kept if kept.to_line() == line.removesuffix(b"\n") + b"\n" else None


class FileAnchor:
    """
    A file to which checkpoints are appended, one line each, and which refuses one that does not extend the last.

    Each line carries its consistency proof, so that the file can be verified by itself.  Processes take turns.
    """

    def __init__(self, path: Path, keys: Iterable[VerifierKey], *, origin: str | None = None) -> None:
        self.path = path
        self._keys = tuple(keys)
        self._origin = origin

    def record(self, note: bytes, proof: Sequence[bytes]) -> None:
        """
        Append a checkpoint and have it on the disk before returning; the one that is last already is left as it is.

        Raises:
            ProofFailed: It is not signed, or does not extend the last one; or the file does not end as an anchor does.
                Nothing was written.
        """
        kept = Kept(note, tuple(proof))
        checkpoint = self._opened(kept)
        is_new = not self.path.exists()
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            last = self._last(file)
            if last is not None and self._opened(last) == checkpoint:
                return
            _check_extends(last, checkpoint, kept.proof)
            whole = b"" if _ends_with_newline(file) else b"\n"
            file.write(whole + kept.to_line())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            _sync_folder(self.path.parent)

    def last(self) -> Kept | None:
        """
        What was recorded last: the next proof begins there.

        Raises:
            ProofFailed: The file does not end as an anchor does.
        """
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            return self._last(file)

    def verify(self) -> Iterator[Checkpoint]:
        """
        The checkpoints in order, each after its signature and its proof were verified.

        A line that a crash cut short proves nothing and is passed over: the next one must extend the last whole one.

        Raises:
            ProofFailed: A checkpoint is not signed, or does not extend the one before; or a line is no anchor's.
        """
        yield from verify_kept(read_kept(self.path), self._keys, origin=self._origin)

    def _opened(self, kept: Kept) -> Checkpoint:
        return open_checkpoint(kept.note, self._keys, origin=self._origin)

    def _last(self, file: BinaryIO) -> Kept | None:
        """The last whole line, found from the end; None in a file in which nothing was recorded."""
        end = file.seek(0, io.SEEK_END)
        # Room for the last whole line, and for one behind it that a crash has cut short.
        begin = max(0, end - 2 * LINE_BYTES_MAX)
        file.seek(begin)
        for line in reversed(file.read(end - begin).splitlines(keepends=True)):
            if (kept := Kept.from_line(line)) is not None:
                return kept
            if not _is_cut_short(line):
                break
        else:
            if begin == 0:
                return None
        raise ProofFailed(f"The anchor {self.path}", "its last line is no checkpoint as an anchor keeps one")


def read_kept(path: Path) -> Iterator[Kept]:
    """
    The whole lines of an anchor; those that a crash has cut short are passed over.

    Raises:
        ProofFailed: A line is no anchor's.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX + 1), b""), 1):
            if (kept := Kept.from_line(line)) is not None:
                yield kept
            elif not _is_cut_short(line):
                raise ProofFailed(f"Line {number:,} of {path}", "it is no checkpoint as an anchor keeps one")


def verify_kept(
    kept_in_order: Iterable[Kept], keys: Iterable[VerifierKey], *, origin: str | None = None
) -> Iterator[Checkpoint]:
    """The checkpoints of an anchor, wherever it is kept; verified as `FileAnchor.verify` does."""
    known = tuple(keys)
    last: Kept | None = None
    for kept in kept_in_order:
        checkpoint = open_checkpoint(kept.note, known, origin=origin)
        _check_extends(last, checkpoint, kept.proof)
        last = kept
        yield checkpoint


class TimestampAnchor:
    """
    A folder of checkpoints, each with the timestamp of an authority: `SIZE-HASH.checkpoint`, `….tsq`, `….tsr`.

    `roots` are the certificates, in PEM, that the authority's certificate must lead to.
    """

    def __init__(self, folder: Path, authority: Authority, roots: bytes) -> None:
        self.folder = folder
        self._authority = authority
        self._roots = roots

    def record(self, note: bytes, proof: Sequence[bytes]) -> None:  # noqa: ARG002  (a time says nothing of what was before)
        """
        Have a checkpoint timestamped, and keep the response once it is verified.

        Raises:
            ProofFailed: The response is no timestamp of this checkpoint by this authority.
        """
        request = timestamp_request(note)
        response = self._authority(request)
        verify_timestamp(note, response, self._roots)
        size = Checkpoint.parse(Note.parse(note).text).size
        self.folder.mkdir(parents=True, exist_ok=True)
        # By its hash too: the same checkpoint can be signed again with another key.
        name = f"{size}-{sha256(note).hexdigest()[:16]}"
        for suffix, content in ((".checkpoint", note), (".tsq", request), (".tsr", response)):
            _write(self.folder / (name + suffix), content)
        _sync_folder(self.folder)

    def verify(self, keys: Iterable[VerifierKey], *, origin: str | None = None) -> list[tuple[Checkpoint, datetime]]:
        """
        The checkpoints by size, each with the time at which it was there, signatures and timestamps verified.

        Raises:
            ProofFailed: One of them does not hold.
            OSError: The response for one is missing.
        """
        known, found = tuple(keys), []
        for path in self.folder.glob("*.checkpoint"):
            note = path.read_bytes()
            at = verify_timestamp(note, path.with_suffix(".tsr").read_bytes(), self._roots)
            found.append((open_checkpoint(note, known, origin=origin), at))
        return sorted(found, key=lambda each: (each[0].size, each[1]))


def timestamp_request(note: bytes) -> bytes:
    """
    A request for a timestamp of a signed checkpoint, with a nonce, to be sent to an authority.

    Whose signature it is is not asked.

    Raises:
        InvalidCommand: It is no signed checkpoint, or the extra `proof` is not installed.
    """
    try:
        Checkpoint.parse(Note.parse(note).text)
    except ProofFailed as error:
        raise InvalidCommand("checkpoint", str(error)) from None
    rfc3161 = _rfc3161()
    builder = rfc3161.TimestampRequestBuilder().data(note).hash_algorithm(rfc3161.HashAlgorithm.SHA256)
    return bytes(builder.nonce(nonce=True).cert_request(cert_request=True).build().as_bytes())


def verify_timestamp(note: bytes, response: bytes, roots: bytes) -> datetime:
    """
    When an authority saw a signed checkpoint, by its response alone; nothing is fetched.

    Certificates must have been valid then, not now; whether one was revoked since is not asked.  Neither is the nonce:
    a response to an earlier request for the same note is as true, and says an earlier time.

    Args:
        note: The signed checkpoint.
        response: What the authority sent (`.tsr`).
        roots: The certificates that are trusted, in PEM.

    Raises:
        ProofFailed: It is no timestamp of this note that leads to one of the roots.
        InvalidCommand: The roots cannot be read, or the extra `proof` is not installed.
    """
    rfc3161 = _rfc3161()
    builder = rfc3161.VerifierBuilder()
    for certificate in _certificates(roots):
        builder = builder.add_root_certificate(certificate)
    try:
        stamp = rfc3161.decode_timestamp_response(response)
        builder.build().verify_message(stamp, note)
    except (rfc3161.VerificationError, ValueError) as error:
        raise ProofFailed("The timestamp", str(error).rstrip(".") or "it cannot be read") from None
    at: datetime = stamp.tst_info.gen_time
    return at


def _check_extends(last: Kept | None, checkpoint: Checkpoint, proof: Sequence[bytes]) -> None:
    if last is None:
        if proof:
            raise ProofFailed("The checkpoint", "it comes with a proof, and there is none before it in the anchor")
        return
    before = last.checkpoint
    extends = verify_consistency(before.size, checkpoint.size, proof, before.root, checkpoint.root)
    if before.origin != checkpoint.origin or not extends:
        kept = f"size {before.size} of {before.origin}, which the anchor has"
        raise ProofFailed(
            "The checkpoint", f"size {checkpoint.size} of {checkpoint.origin} is not shown to extend {kept}"
        )


def _is_cut_short(line: bytes) -> bool:
    """Whether a line that is not whole may be the beginning of one."""
    begun = line.removesuffix(b"\n")
    return 0 < len(begun) <= LINE_BYTES_MAX and begun.startswith(_BEGINNING[: len(begun)])


def _ends_with_newline(file: BinaryIO) -> bool:
    if file.seek(0, io.SEEK_END) == 0:
        return True
    file.seek(-1, io.SEEK_END)
    return file.read(1) == b"\n"


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as what they name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _certificates(roots: bytes) -> Sequence[Any]:
    x509 = import_module("cryptography.x509")
    try:
        return tuple(dict.fromkeys(x509.load_pem_x509_certificates(roots)))
    except ValueError as error:
        raise InvalidCommand("roots", f"they are no certificates in PEM: {error}") from None


def _rfc3161() -> Any:
    try:
        return import_module("rfc3161_client")
    except ModuleNotFoundError:
        raise InvalidCommand("proof", "timestamps need rfc3161-client: pip install 'ledger[proof]'") from None
