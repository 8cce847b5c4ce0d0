"""
Several files in one, in the one way in which they can be written: a tar whose bytes follow from names and contents.

Any `tar` unpacks it.  Reading it is strict: a member that is out of order, doubled, a link, hidden behind an extension
header or named by a path that leads out of the folder cannot be written this way, and is refused.  It is not
compressed, so that no file says more bytes than it has, and no release of a compressor changes what was signed for.

Source: POSIX.1-1988, ustar.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO, Final

from ledger.core.errors import InvalidCommand, ProofFailed

FOLDER: Final = "ledger-bundle/"
MEMBER_BYTES_MAX: Final = 8**11 - 1
_BLOCK: Final = 512
_RECORD: Final = 20 * _BLOCK
_NAME_BYTES: Final = 100
_SIZE_AT: Final = slice(124, 135)


def write_archive(out: BinaryIO, files: Mapping[str, Path]) -> None:
    """
    Write files, in order of their names, into one.

    Raises:
        InvalidCommand: One of them is larger than a member can be.
    """
    for name in sorted(files):
        size = files[name].stat().st_size
        if size > MEMBER_BYTES_MAX:
            raise InvalidCommand(name, f"it has {size:,} bytes, of {MEMBER_BYTES_MAX:,} that a bundle can hold")
        out.write(_header(name, size))
        with files[name].open("rb") as file:
            copyfileobj(file, out, 1 << 20)
        out.write(bytes(-size % _BLOCK))
    out.write(bytes(2 * _BLOCK))
    out.write(bytes(-out.tell() % _RECORD))


class Archive:
    """Files in one: opened for reading, its members known by their names."""

    def __init__(self, path: Path) -> None:
        """
        Read where its members are.

        Raises:
            ProofFailed: It was not written by `write_archive`, or not to its end, or changed since.
            OSError: It cannot be read.
        """
        self._path = path
        self._members: dict[str, tuple[int, int]] = {}
        with path.open("rb") as file:
            self._read(file, os.fstat(file.fileno()).st_size)

    @property
    def names(self) -> Iterable[str]:
        """The names of its members, in order."""
        return self._members.keys()

    def open(self, name: str) -> BinaryIO:
        """
        One member, to be read and closed.

        Raises:
            ProofFailed: There is no such member.
        """
        if name not in self._members:
            raise ProofFailed("The bundle", f"{name} is missing in it")
        return io.BufferedReader(_Window(self._path, *self._members[name]), 1 << 16)

    def size(self, name: str) -> int:
        """How many bytes a member has."""
        return self._members[name][1]

    def read(self, name: str, limit: int) -> bytes:
        """
        A small member, whole.

        Raises:
            ProofFailed: There is no such member, or it is larger than `limit` bytes.
        """
        with self.open(name) as member:
            content = member.read(limit + 1)
        if len(content) > limit:
            raise ProofFailed(name, f"it has {self.size(name):,} bytes, of {limit:,} allowed")
        return content

    def _read(self, file: BinaryIO, end: int) -> None:
        last = ""
        while any(block := file.read(_BLOCK)):
            at = file.tell()
            name = block[:_NAME_BYTES].rstrip(b"\0").decode("ascii", "replace").removeprefix(FOLDER)
            digits = block[_SIZE_AT]
            size = int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else -1
            if size < 0 or block != _header(name, size):
                raise ProofFailed("The bundle", f"at byte {at - _BLOCK:,} is no member as bundles have them")
            if name <= last:
                raise ProofFailed(
                    "The bundle", f"{name} is in it twice" if name in self._members else f"{name} is not in its place"
                )
            padding = -size % _BLOCK
            if at + size + padding > end:
                raise ProofFailed("The bundle", f"it ends within {name}, at byte {end:,}")
            file.seek(at + size)
            if any(file.read(padding)):
                raise ProofFailed("The bundle", f"there is something behind the end of {name}")
            self._members[name], last = (at, size), name
        rest = file.read(_RECORD + 1)
        at = file.tell()
        if len(block) != _BLOCK or at != end or len(rest) < _BLOCK or any(rest) or end % _RECORD:
            raise ProofFailed("The bundle", f"it does not end as bundles do, behind {last or 'its beginning'}")


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, path: Path, at: int, size: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._file.seek(at)
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(min(len(buffer), self._left))
        buffer[: len(content)] = content
        self._left -= len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _header(name: str, size: int) -> bytes:
    """A member's header: of nobody's, of no time."""
    member = tarfile.TarInfo(FOLDER + name)
    member.size = size
    member.mode = 0o644
    try:
        header = member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError:
        return b""
    return header if len(header) == _BLOCK else b""
