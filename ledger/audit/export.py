"""
A log in a file that other programs read: hledger and beancount, which check it, and CSV and Parquet, to be asked.

The same position gives the same bytes.  The file appears when it is complete; memory grows with the accounts and not
with the events.
"""

from __future__ import annotations

import io
import os
import tempfile
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, assert_never, cast

from ledger.audit.beancount import beancount_lines
from ledger.audit.hledger import hledger_lines
from ledger.audit.journal import Journal, Progress
from ledger.audit.parquet import write_parquet
from ledger.audit.rows import csv_lines
from ledger.core.errors import InvalidCommand
from ledger.core.events import FeedEntry


class Format(StrEnum):
    """What a log can be exported to."""

    HLEDGER = "hledger"
    BEANCOUNT = "beancount"
    CSV = "csv"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds, and the hash of its bytes."""

    format: Format
    ledger_id: str
    position: int
    accounts: int
    transactions: int
    entries: int
    """Events that move an amount, those of holds too; hledger and beancount get those that post one."""

    sha256: str
    account_ids: tuple[str, ...] = field(default=(), repr=False)
    """Those in it, in order of their opening; none where that was not asked here."""


def format_named(name: str) -> Format:
    """
    The format that has this name.

    Raises:
        InvalidCommand: There is none.
    """
    try:
        return Format(name)
    except ValueError:
        raise InvalidCommand("format", f"{name!r} is none of {', '.join(Format)}") from None


def digest_header(sha256: str) -> str:
    """What `Content-Digest` says of bytes with this SHA-256 in hex digits (RFC 9530, section 2)."""
    return f"sha-256=:{b64encode(bytes.fromhex(sha256)).decode()}:"


def write_export(
    kind: Format,
    target: Path | BinaryIO,
    ledger_id: str,
    position: int,
    entries: Iterable[FeedEntry],
    *,
    progress: Progress | None = None,
) -> Exported:
    """
    Write the feed, from its beginning to a position at which a transaction ends, into a new file or an open one.

    Raises:
        InvalidCommand: There is such a file, or the extra `export` is not installed.
        CorruptLog: An entry is posted to an account that is not open.
        OSError: The file cannot be written; nothing of it is left.
    """
    journal = Journal(ledger_id, position, entries, progress=progress)
    if isinstance(target, Path):
        with appearing(target) as file:
            digest = _write(kind, journal, file)
    else:
        digest = _write(kind, journal, target)
    accounts = tuple(journal.accounts)
    return Exported(
        kind, ledger_id, position, len(accounts), journal.transactions, journal.entries, digest, account_ids=accounts
    )


def _write(kind: Format, journal: Journal, file: BinaryIO) -> str:
    hashed = _Hashed(file)
    match kind:
        case Format.HLEDGER:
            hashed.writelines(hledger_lines(journal))
        case Format.BEANCOUNT:
            hashed.writelines(beancount_lines(journal))
        case Format.CSV:
            hashed.writelines(csv_lines(journal))
        case Format.PARQUET:
            write_parquet(journal, cast("BinaryIO", hashed))
        case _:
            assert_never(kind)
    return hashed.digest.hexdigest()


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is written, from its beginning to its end."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = sha256()
        self._file = file
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self.digest.update(part)
        self._file.write(part)
        self._written += len(part)
        return len(part)

    def tell(self) -> int:
        return self._written


@contextmanager
def appearing(path: Path) -> Iterator[BinaryIO]:
    """
    A file that is there once it was written to its end, and on the disk; until then it is in a folder beside it.

    Raises:
        InvalidCommand: There is such a file.
    """
    if path.exists():
        raise InvalidCommand(str(path), "it exists; an export is written into a new file")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        whole = Path(folder, "whole")
        with whole.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        whole.rename(path)
