"""The commands of those who keep the log: seal it, prove from it, give it away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ledger.application import Ledger
from ledger.audit.checkpoint import SigningKey
from ledger.cli.consuming import until_signalled
from ledger.cli.options import Target, command, opened
from ledger.cli.output import answer, complain, escape, progress
from ledger.cli.proving import files, read_keys
from ledger.core.canonical import utc_text
from ledger.core.errors import InvalidCommand
from ledger.sealer import PAUSE_SECONDS
from ledger.storage.tree import Sealed
from ledger.wire import Json

NoteOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="A signed checkpoint; the last one, unless it is said.", metavar="FILE"),
]


@command
def seal(
    target: Target,
    key: Annotated[Path, typer.Option(help="The key to sign with, as `ledger keygen` wrote it.", metavar="FILE")],
    state: Annotated[
        Path | None,
        typer.Option(help="What was signed last, out of the database's reach; KEY.checkpoint, unless it is said."),
    ] = None,
    former: Annotated[
        list[str] | None,
        typer.Option(help="The verifier key of a key that signed before, or a file with it.", metavar="KEY"),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what is stamped later, until told to stop (SIGTERM, Ctrl-C).")
    ] = False,
    every: Annotated[
        float, typer.Option(help="With --follow: seconds from one checkpoint to the next.")
    ] = PAUSE_SECONDS,
) -> int:
    """
    Sign a checkpoint of all that was stamped, if it extends what was signed before.

    Exit code 1: it does not, and nothing was signed. Any number may run: one seals. Without --follow, exit code 2:
    another one seals, and has not sealed everything yet.
    """
    with files(), opened(target.settings) as ledger:
        signing = SigningKey.read(key)
        before, head = _size(ledger), ledger.feed_head()
        with progress("events", head) as watch:
            sealer = ledger.sealer(
                signing,
                state=state or key.with_name(key.name + ".checkpoint"),
                former=read_keys(former or ()),
                every=every,
                on_problem=complain,
                progress=watch,
            )
            try:
                if follow:
                    with until_signalled(sealer.stop):
                        sealer.run()
                else:
                    sealer.seal()
            finally:
                sealer.close()
        size, lease = _size(ledger), ledger.sealing()
    said = f"sealed {size - before:,}; the last checkpoint is of {size:,} events"
    if lease is not None and lease.owner != sealer.owner:
        said += f"; {escape(lease.owner)} seals"
    answer(target.as_json, {"sealed": size - before, "size": size, "owner": lease and lease.owner}, said)
    return 0


@command
def checkpoint(
    target: Target,
    size: Annotated[int | None, typer.Option(help="The one of so many events; the last one.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Write it to a file.", metavar="FILE")] = None,
) -> int:
    """Print a signed checkpoint: the last one, or the one of a size."""
    with opened(target.settings) as ledger:
        found = ledger.checkpoint(size)
    if out is not None:
        with files():
            out.write_bytes(found.note)
        answer(target.as_json, _plain(found), f"the checkpoint of {found.size:,} events is in {escape(str(out))}")
    elif target.as_json:
        answer(True, _plain(found))
    else:
        sys.stdout.buffer.write(found.note)
    return 0


@command
def prove(
    target: Target,
    out: Annotated[Path, typer.Option(help="Where to write the proof: a .tlog-proof file.", metavar="FILE")],
    stream: Annotated[str | None, typer.Argument(help="The event's account or stream.", show_default=False)] = None,
    version: Annotated[int | None, typer.Argument(help="… and its version there.", min=1, show_default=False)] = None,
    position: Annotated[int | None, typer.Option(help="Its position in the feed, in place of both.", min=1)] = None,
    of: NoteOption = None,
) -> int:
    """Prove that an event is in the log of a signed checkpoint: one file, to be checked without any database."""
    with files(), opened(target.settings) as ledger:
        note = None if of is None else of.read_bytes()
        if position is not None and stream is None:
            proof = ledger.prove_position(position, note=note)
        elif position is None and stream is not None and version is not None:
            proof = ledger.prove(stream, version, note=note)
        else:
            raise InvalidCommand("usage", "name the event: STREAM VERSION, or --position N")
        out.write_bytes(proof.to_bytes())
    plain: dict[str, Any] = {"position": proof.index + 1, "file": str(out)}
    answer(target.as_json, plain, f"proved: position {proof.index + 1:,}, in {escape(str(out))}")
    return 0


@command
def export_log(
    target: Target,
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="DIR", show_default=False)],
    of: NoteOption = None,
) -> int:
    """Write the log as it was at a checkpoint as a folder of tiles, to be checked without any database."""
    with files(), opened(target.settings) as ledger:
        note = ledger.checkpoint().note if of is None else of.read_bytes()
        with progress("records", None) as watch:
            written = ledger.export_log(folder, note=note, progress=watch)
    plain = {"origin": written.origin, "size": written.size, "root": written.root.hex(), "folder": str(folder)}
    answer(target.as_json, plain, f"written: {written.size:,} records, in {escape(str(folder))}")
    return 0


def _size(ledger: Ledger) -> int:
    last = ledger.last_checkpoint()
    return 0 if last is None else last.size


def _plain(sealed: Sealed) -> Json:
    at = utc_text(sealed.sealed_at)
    return {"size": sealed.size, "root": sealed.root.hex(), "sealed_at": at, "note": sealed.note.decode()}
