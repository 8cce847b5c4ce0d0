"""
Everything up to a checkpoint in one file, with what it takes to check it, for people who have no database.

    checkpoint, ledger.json                                    what all of it belongs to
    records.jsonl, payloads.jsonl, transactions.jsonl          what was recorded
    reports/, exports/                                         what that comes to, journals for hledger and beancount
    anchors/, timestamps/                                      what others say of it
    README.md, verify.sh                                       how to check it by hand
    manifest                                                   the hash of each file

The same position of the same ledger, with the same anchors, gives the same bytes.  Who writes and who verifies make
reports and exports in one way from the same lines, so that a bundle that would not verify is not written.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from ledger.audit.anchors import LINE_BYTES_MAX, Kept, read_kept, verify_kept, verify_timestamp
from ledger.audit.archive import Archive, write_archive
from ledger.audit.beancount import beancount_lines
from ledger.audit.checkpoint import NOTE_BYTES_MAX, Checkpoint, Note, VerifierKey, open_checkpoint
from ledger.audit.hledger import hledger_lines
from ledger.audit.journal import Journal
from ledger.audit.replay import PAYLOADS, RECORDS, TRANSACTIONS, Lines, Replay, entries_of
from ledger.core.canonical import canonical_json
from ledger.core.codec import event_record, transaction_header
from ledger.core.errors import InvalidCommand, ProofFailed
from ledger.core.events import FeedEntry

FORMAT: Final = "ledger/bundle/1"
CHECKPOINT: Final = "checkpoint"
LEDGER: Final = "ledger.json"
MANIFEST: Final = "manifest"
SCRIPT: Final = "verify.sh"
JOURNAL: Final = "exports/journal.csv"
HLEDGER: Final = "exports/journal.hledger"
BEANCOUNT: Final = "exports/journal.beancount"
JOURNALS: Final = "exports/README.md"
BALANCES: Final = "exports/balances.csv"
ACCOUNTS: Final = "reports/accounts.json"
TRIAL_BALANCE: Final = "reports/trial-balance.json"
COUNTS: Final = "reports/verification.json"

ATTACHED_MAX: Final = 99
TIMESTAMP_BYTES_MAX: Final = 1 << 20
_SMALL_BYTES_MAX: Final = 1 << 20
_ATTACHED: Final = re.compile(r"anchors/[0-9]{2}\.jsonl|timestamps/[0-9]{2}\.tsr")
_LEDGER_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PROGRESS_EVENTS: Final = 1_000
_SHOWN_MAX: Final = 200

Progress = Callable[[int], None]


def instructions() -> dict[str, bytes]:
    """What stands in every bundle of this format: how to check it by hand, in prose and as a script."""
    folder = Path(__file__).parent
    files = {"README.md": "bundle.md", SCRIPT: "bundle.sh", JOURNALS: "journals.md"}
    return {name: (folder / file).read_bytes() for name, file in files.items()}


@dataclass(frozen=True, slots=True)
class Verified:
    """What a bundle was found to hold; all of it was checked."""

    checkpoint: Checkpoint
    ledger_id: str
    counts: Mapping[str, int]
    anchored: tuple[Checkpoint, ...]
    """The last checkpoint of each anchor."""

    timestamps: tuple[datetime, ...]
    unchecked: tuple[str, ...]
    """Timestamps that nothing is said about, for want of certificates."""


def write_bundle(
    path: Path,
    ledger_id: str,
    entries: Iterable[FeedEntry],
    note: bytes,
    *,
    anchors: Sequence[Path] = (),
    timestamps: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Checkpoint:
    """
    Write the feed from its beginning to a signed checkpoint into a new file, in flat memory.

    The file appears when it is complete; until then its parts are beside it.  Of a file of anchored checkpoints the
    whole lines are taken.  Neither signatures nor timestamps are verified here: whoever gets the bundle does that.

    Raises:
        InvalidCommand: There is such a file, nothing to put into it or in an anchor, or too much attached to it.
        ProofFailed: The feed is not what the checkpoint says, or contradicts itself; or an anchor is none.
        OSError: A file cannot be read or written.
    """
    checkpoint = Checkpoint.parse(Note.parse(note).text)
    if path.exists():
        raise InvalidCommand(str(path), "it exists; a bundle is written into a new file")
    if checkpoint.size == 0:
        raise InvalidCommand(CHECKPOINT, "it is of no record: there is nothing to put into a bundle")
    if max(len(anchors), len(timestamps)) > ATTACHED_MAX:
        raise InvalidCommand("bundle", f"at most {ATTACHED_MAX} anchors and as many timestamps go into one")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        files = _Files(Path(folder))
        _write_log(files, entries, checkpoint.size)
        files.write(CHECKPOINT, [note])
        files.write(LEDGER, [canonical_json({"format": FORMAT, "ledger_id": ledger_id}).encode() + b"\n"])
        for name, content in instructions().items():
            files.write(name, [content])
        for number, anchor in enumerate(anchors, 1):
            name = f"anchors/{number:02}.jsonl"
            files.write(name, (kept.to_line() for kept in read_kept(anchor)))
            if files.paths[name].stat().st_size == 0:
                raise InvalidCommand(str(anchor), "there is no checkpoint in this anchor")
        for number, response in enumerate(timestamps, 1):
            files.write(f"timestamps/{number:02}.tsr", [response.read_bytes()])
        with ExitStack() as stack:
            replay = Replay(ledger_id, *_log(files, stack))
            for name, content_of in _derived(replay, lambda: _log(files, stack), progress).items():
                files.write(name, content_of())
        _check_root(replay, checkpoint)
        files.write(MANIFEST, _manifest(files.hashes))
        whole = Path(folder, "whole")
        with whole.open("xb") as out:
            write_archive(out, files.paths)
        whole.rename(path)
    return checkpoint


def verify_bundle(
    path: Path,
    keys: Iterable[VerifierKey],
    *,
    origin: str | None = None,
    roots: bytes | None = None,
    progress: Progress | None = None,
) -> Verified:
    """
    Verify everything in a bundle, with nothing but these keys.

    Memory grows with accounts and not with events.  `roots` are the certificates, in PEM, that timestamps must lead to.

    Raises:
        ProofFailed: Something is not as it should be; names the file in the bundle, and the line.
        InvalidCommand: The roots cannot be read, or the extra `proof` is not installed.
        OSError: The file cannot be read.
    """
    archive, known = Archive(path), tuple(keys)
    _check_names(archive)
    note = archive.read(CHECKPOINT, NOTE_BYTES_MAX)
    checkpoint = open_checkpoint(note, known, origin=origin)
    ledger_id = _ledger_id(archive)
    anchored = {name: _anchored(archive, name, known, origin) for name in archive.names if name.startswith("anchors/")}
    sizes = {each.size for found in anchored.values() for each in found}
    with ExitStack() as stack:
        replay = Replay(ledger_id, *_log(archive, stack), roots_at=sizes)
        for name, content_of in _derived(replay, lambda: _log(archive, stack), progress).items():
            _compare(archive, name, content_of())
    _check_root(replay, checkpoint)
    for name, found in anchored.items():
        for each in found:
            if each.size <= checkpoint.size and replay.roots.get(each.size, each.root) != each.root:
                problem = f"its checkpoint of {each.size:,} records is not of the first {each.size:,} in {RECORDS}"
                raise ProofFailed(name, problem)
    at, unchecked = _timestamps(archive, note, roots)
    for name, content in instructions().items():
        _compare(archive, name, [content])
    _compare(archive, MANIFEST, _manifest({name: _hash(archive, name) for name in archive.names if name != MANIFEST}))
    last = tuple(found[-1] for found in anchored.values())
    return Verified(checkpoint, ledger_id, replay.counts(), last, at, unchecked)


class _Hashed:
    """A file that is hashed as it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = sha256()
        self._file = file

    def write(self, part: bytes) -> None:
        self.digest.update(part)
        self._file.write(part)


class _Files:
    """The files of a bundle on their way into it, with their hashes."""

    def __init__(self, folder: Path) -> None:
        self.paths: dict[str, Path] = {}
        self.hashes: dict[str, str] = {}
        self._folder = folder

    @contextmanager
    def create(self, name: str) -> Iterator[_Hashed]:
        self.paths[name] = self._folder / f"{len(self.paths):03}"
        with self.paths[name].open("xb") as file:
            hashed = _Hashed(file)
            yield hashed
        self.hashes[name] = hashed.digest.hexdigest()

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        with self.create(name) as file:
            for part in parts:
                file.write(part)

    def open(self, name: str) -> BinaryIO:
        return self.paths[name].open("rb")


def _write_log(files: _Files, entries: Iterable[FeedEntry], size: int) -> None:
    """The first entries as lines of three files: records, payloads, and each transaction once."""
    with files.create(PAYLOADS) as payloads, files.create(TRANSACTIONS) as transactions:

        def records() -> Iterator[bytes]:
            last, left, position = "", 0, 0
            for entry in entries:
                event, transaction = entry.event, entry.transaction
                if transaction.transaction_id != last:
                    last, left = transaction.transaction_id, len(transaction.streams)
                    transactions.write(_line(transaction_header(*transaction[:-1]), f"transaction {last}"))
                place = f"{event.stream} version {event.version}"
                payloads.write(_line(event.payload.encode(), place))
                yield _line(event_record(transaction.header_hash.hex(), *event[:-1]), place)
                left, position = left - 1, entry.position
                if position == size:
                    break
            if position == size and left:
                raise InvalidCommand(CHECKPOINT, f"it ends within transaction {last}: take a later one")

        files.write(RECORDS, records())


def _line(content: bytes, what: str) -> bytes:
    """A line; canonical JSON has no newline in it, and what is not canonical would not be what its hash covers."""
    if b"\n" in content:
        raise ProofFailed(what[:1].upper() + what[1:], "there is a newline in it, which canonical JSON does not have")
    return content + b"\n"


def _log(files: _Files | Archive, stack: ExitStack) -> tuple[BinaryIO, BinaryIO, BinaryIO]:
    """The three files of the log, from their beginning."""
    records, payloads, transactions = (
        stack.enter_context(files.open(name)) for name in (RECORDS, PAYLOADS, TRANSACTIONS)
    )
    return records, payloads, transactions


def _derived(
    replay: Replay, log: Callable[[], tuple[BinaryIO, BinaryIO, BinaryIO]], progress: Progress | None
) -> dict[str, Callable[[], Iterable[bytes]]]:
    """What follows from the log: the journal first, while whose lines are made everything is checked."""

    def told() -> Journal:
        return Journal(replay.ledger_id, replay.frontier.size, entries_of(*log()), progress=progress)

    def journal() -> Iterator[bytes]:
        for number, line in enumerate(replay.journal()):
            yield line
            if progress is not None and number % _PROGRESS_EVENTS == 0:
                progress(replay.frontier.size)

    return {
        JOURNAL: journal,
        HLEDGER: lambda: hledger_lines(told()),
        BEANCOUNT: lambda: beancount_lines(told()),
        BALANCES: replay.balances,
        ACCOUNTS: replay.accounts,
        TRIAL_BALANCE: replay.trial_balance,
        COUNTS: lambda: [canonical_json(replay.counts()).encode() + b"\n"],
    }


def _manifest(hashes: Mapping[str, str]) -> list[bytes]:
    return [f"{hashes[name]}  {name}\n".encode() for name in sorted(hashes)]


def _check_root(replay: Replay, checkpoint: Checkpoint) -> None:
    tree = replay.frontier
    if tree.size != checkpoint.size:
        raise ProofFailed(RECORDS, f"it has {tree.size:,} lines, and the checkpoint is of {checkpoint.size:,} records")
    if tree.root() != checkpoint.root:
        raise ProofFailed(RECORDS, f"its {tree.size:,} records do not have the root that the checkpoint names")


def _check_names(archive: Archive) -> None:
    """All files are there, and no other."""
    log = {RECORDS, PAYLOADS, TRANSACTIONS, CHECKPOINT, LEDGER, MANIFEST, *instructions()}
    expected = log | {JOURNAL, HLEDGER, BEANCOUNT, BALANCES, ACCOUNTS, TRIAL_BALANCE, COUNTS}
    for name in archive.names:
        if name not in expected and not _ATTACHED.fullmatch(name):
            raise ProofFailed("The bundle", f"{name!r} does not belong in it")
    if missing := sorted(expected.difference(archive.names)):
        raise ProofFailed("The bundle", f"{missing[0]} is missing in it")


def _ledger_id(archive: Archive) -> str:
    content = archive.read(LEDGER, _SMALL_BYTES_MAX)
    try:
        said = json.loads(content)
        ledger_id, form = said["ledger_id"], said["format"]
        sound = _LEDGER_ID.fullmatch(ledger_id) is not None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProofFailed(LEDGER, "it does not say which ledger this is") from None
    if form != FORMAT:
        raise ProofFailed(LEDGER, f"the format is {form!r}, and this release knows {FORMAT!r}")
    if not sound or content != canonical_json({"format": FORMAT, "ledger_id": ledger_id}).encode() + b"\n":
        raise ProofFailed(LEDGER, "it is not written as in a bundle")
    return str(ledger_id)


def _anchored(archive: Archive, name: str, keys: Sequence[VerifierKey], origin: str | None) -> list[Checkpoint]:
    with archive.open(name) as file:
        lines = Lines(name, file, LINE_BYTES_MAX)
        try:
            found = [*verify_kept(_whole(lines), keys, origin=origin)]
        except ProofFailed as failed:
            raise lines.broken(f"{failed.what.lower()} does not hold: {failed.problem}") from None
    if not found:
        raise ProofFailed(name, "there is no checkpoint in it")
    return found


def _whole(lines: Lines) -> Iterator[Kept]:
    """What an anchor in a bundle keeps, all of whose lines are whole: those that a crash cut short were left out."""
    for line in lines:
        kept = Kept.from_line(line)
        if kept is None:
            raise ProofFailed("The line", "it is no checkpoint as an anchor keeps one")
        yield kept


def _compare(archive: Archive, name: str, parts: Iterable[bytes]) -> None:
    """Compare a file, line by line, with what it should be."""
    with archive.open(name) as file:
        said = Lines(name, file)
        for line in _lines(parts):
            found = said.next("there should be more")
            if found != line:
                raise said.broken(f"it is {_shown(found)}, and should be {_shown(line)}")
        for _ in said:
            raise said.broken("there should be no such line")


def _lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that parts come to, each of which may be some, or a part of one."""
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        yield from whole
    assert not rest, "each file ends with a newline"


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace")
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…"


def _hash(archive: Archive, name: str) -> str:
    digest = sha256()
    with archive.open(name) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _timestamps(archive: Archive, note: bytes, roots: bytes | None) -> tuple[tuple[datetime, ...], tuple[str, ...]]:
    names = [name for name in archive.names if name.startswith("timestamps/")]
    if roots is None:
        return (), tuple(names)
    found = []
    for name in names:
        response = archive.read(name, TIMESTAMP_BYTES_MAX)
        try:
            found.append(verify_timestamp(note, response, roots))
        except ProofFailed as failed:
            raise ProofFailed(name, failed.problem) from None
    return tuple(found), ()
