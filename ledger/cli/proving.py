"""The commands of those who verify, without any database: keys, checkpoints, proofs, logs in folders, anchors."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ledger.audit.anchors import FileAnchor, timestamp_request, verify_timestamp
from ledger.audit.checkpoint import Checkpoint, Note, SigningKey, VerifierKey, open_checkpoint, signers
from ledger.audit.inclusion import InclusionProof
from ledger.audit.tiles import LogFolder
from ledger.cli.options import Answering, Target, command, opened
from ledger.cli.output import answer, escape, progress
from ledger.core.canonical import utc_text
from ledger.core.errors import InvalidCommand
from ledger.core.merkle import consistency_proof
from ledger.wire import Json

anchor_app = typer.Typer(name="anchor", help="Put checkpoints where whoever rewrites the log cannot reach.")

NoteFile: TypeAlias = Annotated[Path, typer.Argument(help="A signed checkpoint.", metavar="CHECKPOINT")]


def read_keys(keys: Iterable[str]) -> list[VerifierKey]:
    """The verifier keys that are given, each itself or as the name of a file with it."""
    return [_read_key(key) for key in keys]


def _read_key(given: str) -> VerifierKey:
    # The key first: no file that somebody has put there under its name stands in for it.
    try:
        return VerifierKey.parse(given)
    except InvalidCommand:
        # A path may have a plus in it as well.
        if "+" in given and not os.path.exists(given):  # noqa: PTH110  (of a Path it raises where a name is too long)
            raise
    return VerifierKey.parse(Path(given).read_text("utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """Whose signature counts."""

    key: Annotated[
        list[str],
        typer.Option(
            help="A verifier key, or a file with one; repeatable.",
            metavar="KEY",
            show_default=False,
            rich_help_panel="Trust",
        ),
    ]
    origin: Annotated[
        str | None,
        typer.Option(help="The log's name, if it is not that of its key.", metavar="NAME", rich_help_panel="Trust"),
    ] = None

    @property
    def keys(self) -> list[VerifierKey]:
        """The keys."""
        return read_keys(self.key)


@command
def keygen(
    how: Answering,
    name: Annotated[str, typer.Argument(help="What the log is called, such as example.org/ledger.", metavar="NAME")],
    out: Annotated[Path, typer.Option(help="The new file, for the machine that signs.", metavar="FILE")],
) -> int:
    """
    Make a key to sign checkpoints with, and print the key to verify them.

    Keep FILE out of the database's reach, and give what is printed to everybody.
    """
    key = SigningKey.generate(name)
    verifier = str(key.verifier)
    with files():
        key.write(out)
    answer(how.as_json, {"verifier": verifier, "file": str(out)}, escape(verifier))
    return 0


@command
def verify_checkpoint(how: Answering, trusted: Trusted, checkpoint: NoteFile) -> int:
    """Verify the signatures of a checkpoint, and say what it is of."""
    with files():
        note = checkpoint.read_bytes()
        found = open_checkpoint(note, trusted.keys, origin=trusted.origin)
        signed_by = [key.name for key in signers(Note.parse(note), trusted.keys)]
    answer(
        how.as_json,
        {**_plain(found), "signed_by": signed_by},
        _said(found),
        f"signed by {escape(', '.join(signed_by))}",
    )
    return 0


@command
def verify_proof(
    how: Answering,
    trusted: Trusted,
    proof: Annotated[Path, typer.Argument(help="A .tlog-proof file.", metavar="PROOF")],
    record: Annotated[
        Path | None, typer.Option(help="It must be this record, whatever the proof carries.", metavar="FILE")
    ] = None,
) -> int:
    """Verify that an event is in the log of a signed checkpoint, and print its record."""
    with files():
        read = InclusionProof.parse(proof.read_bytes())
        wanted = None if record is None else record.read_bytes()
        found = read.verify(trusted.keys, record=wanted, origin=trusted.origin)
    proved = (wanted or read.record or b"").decode(errors="replace")
    answer(
        how.as_json,
        {**_plain(found), "index": read.index, "record": proved},
        f"[green]in the log[/] at {read.index}: {escape(proved)}",
        _said(found),
    )
    return 0


@command
def verify_log(
    how: Answering,
    trusted: Trusted,
    folder: Annotated[Path, typer.Argument(help="A log as a folder of tiles.", metavar="DIR")],
) -> int:
    """Verify every record, hash and root of a log that was exported, and its checkpoint."""
    with files():
        log = LogFolder(folder)
        size = Checkpoint.parse(Note.parse(log.note()).text).size
        with progress("records", size) as watch:
            found = log.verify(trusted.keys, origin=trusted.origin, progress=watch)
    answer(how.as_json, _plain(found), f"[green]sound[/]: {found.size:,} records", _said(found))
    return 0


@command
def anchor_file(
    target: Target,
    trusted: Trusted,
    file: Annotated[Path, typer.Argument(help="The file that grows, one line each time.", metavar="FILE")],
    log: Annotated[
        Path | None, typer.Option(help="A log as a folder of tiles, in place of the database.", metavar="DIR")
    ] = None,
) -> int:
    """Append the last checkpoint to a file, if it extends the last one there."""
    with files(), ExitStack() as stack:
        if log is None:
            ledger = stack.enter_context(opened(target.settings))
            note, extension = ledger.checkpoint().note, ledger.extension
        else:
            note, extension = LogFolder(log).note(), partial(_extension, LogFolder(log))
        size = open_checkpoint(note, trusted.keys, origin=trusted.origin).size
        anchor = FileAnchor(file, trusted.keys, origin=trusted.origin)
        last = anchor.last()
        old = 0 if last is None else last.checkpoint.size
        # A log that is behind the anchor has no proof; the anchor says so.
        anchor.record(note, extension(old, size) if old <= size else [])
    answer(target.as_json, {"size": size, "before": old}, f"anchored: {size:,} records, {old:,} before")
    return 0


def _extension(log: LogFolder, old: int, size: int) -> list[bytes]:
    return consistency_proof(old, size, log.subtrees(size))


@command
def anchor_check(
    how: Answering,
    trusted: Trusted,
    file: Annotated[Path, typer.Argument(help="A file of checkpoints.", metavar="FILE")],
) -> int:
    """Verify every checkpoint in such a file, and that each extends the one before."""
    count, found = 0, None
    with files():
        for checkpoint in FileAnchor(file, trusted.keys, origin=trusted.origin).verify():
            count, found = count + 1, checkpoint
    said = ["no checkpoint"] if found is None else [f"[green]sound[/]: {count:,} checkpoints, the last:", _said(found)]
    answer(how.as_json, {"checkpoints": count, "last": None if found is None else _plain(found)}, *said)
    return 0 if found is not None else 2


@command
def anchor_request(
    how: Answering,
    checkpoint: NoteFile,
    out: Annotated[Path, typer.Option(help="Where to write the request, a .tsq file.", metavar="FILE")],
) -> int:
    """Make a request for a timestamp (RFC 3161) of a checkpoint; send it to any authority."""
    with files():
        out.write_bytes(timestamp_request(checkpoint.read_bytes()))
    sent = f"curl -H 'Content-Type: application/timestamp-query' --data-binary @{out} -o {out.with_suffix('.tsr')} URL"
    answer(how.as_json, {"file": str(out)}, escape(sent))
    return 0


@command
def anchor_timestamp(
    how: Answering,
    trusted: Trusted,
    checkpoint: NoteFile,
    response: Annotated[Path, typer.Argument(help="What the authority sent, a .tsr file.", metavar="RESPONSE")],
    roots: Annotated[Path, typer.Option(help="The certificates that are trusted, in PEM.", metavar="FILE")],
) -> int:
    """Verify a timestamp of a checkpoint, asking nobody, and say of when it is."""
    with files():
        note = checkpoint.read_bytes()
        found = open_checkpoint(note, trusted.keys, origin=trusted.origin)
        at = utc_text(verify_timestamp(note, response.read_bytes(), roots.read_bytes()))
    answer(how.as_json, {**_plain(found), "at": at}, f"[green]there at {at}[/]", _said(found))
    return 0


anchor_app.command("file")(anchor_file)
anchor_app.command("check")(anchor_check)
anchor_app.command("request")(anchor_request)
anchor_app.command("timestamp")(anchor_timestamp)


def _plain(checkpoint: Checkpoint) -> Json:
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}


def _said(checkpoint: Checkpoint) -> str:
    root = b64encode(checkpoint.root).decode()
    return f"checkpoint of {escape(checkpoint.origin)}: {checkpoint.size:,} records, root {root}"


@contextmanager
def files() -> Iterator[None]:
    """Say which file it is that cannot be read or written."""
    try:
        yield
    except UnicodeDecodeError:
        raise InvalidCommand("key", "the file is no text") from None
    except OSError as error:
        raise InvalidCommand(str(error.filename or "file"), f"{error.strerror or error}") from None
