"""The commands about bundles: everything in one file, for people who have no database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ledger.audit.bundle import Verified, verify_bundle
from ledger.cli.options import Answering, Target, command, opened
from ledger.cli.output import answer, escape, progress
from ledger.cli.proving import Trusted, files
from ledger.cli.sealing import NoteOption
from ledger.core.canonical import utc_text
from ledger.wire import Json


@command
def bundle(
    target: Target,
    out: Annotated[Path, typer.Option(help="The new file: a tar.", metavar="FILE")],
    of: NoteOption = None,
    anchor: Annotated[
        list[Path] | None, typer.Option(help="A file of anchored checkpoints; repeatable.", metavar="FILE")
    ] = None,
    timestamp: Annotated[
        list[Path] | None, typer.Option(help="A timestamp of the checkpoint, a .tsr file; repeatable.", metavar="FILE")
    ] = None,
) -> int:
    """Write everything up to a checkpoint into one file, with all that it takes to verify it without a database."""
    with files(), opened(target.settings) as ledger:
        note = ledger.checkpoint().note if of is None else of.read_bytes()
        with progress("events", None) as watch:
            written = ledger.bundle(out, note=note, anchors=anchor or (), timestamps=timestamp or (), progress=watch)
    plain = {"origin": written.origin, "size": written.size, "root": written.root.hex(), "file": str(out)}
    answer(target.as_json, plain, f"written: {written.size:,} events, in {escape(str(out))}")
    return 0


@command
def verify(
    how: Answering,
    trusted: Trusted,
    file: Annotated[Path, typer.Argument(help="A bundle.", metavar="FILE")],
    roots: Annotated[
        Path | None, typer.Option(help="The certificates that timestamps must lead to, in PEM.", metavar="FILE")
    ] = None,
) -> int:
    """
    Verify everything in a bundle; it needs no database.

    Exit code 1: something does not hold, and is named. Its own README.md says how to do the same without this program.
    """
    with files(), progress("events", None) as watch:
        certificates = None if roots is None else roots.read_bytes()
        found = verify_bundle(file, trusted.keys, origin=trusted.origin, roots=certificates, progress=watch)
    answer(how.as_json, _plain(found), *_said(found))
    return 0


def _plain(found: Verified) -> Json:
    return {
        "origin": found.checkpoint.origin,
        "size": found.checkpoint.size,
        "root": found.checkpoint.root.hex(),
        "ledger_id": found.ledger_id,
        "checked": dict(found.counts),
        "anchored": [each.size for each in found.anchored],
        "timestamps": [utc_text(at) for at in found.timestamps],
        "unchecked": list(found.unchecked),
    }


def _said(found: Verified) -> list[str]:
    counted = ", ".join(f"{number:,} {what}" for what, number in found.counts.items())
    lines = [f"[green]sound[/]: {counted}, as signed by {escape(found.checkpoint.origin)}"]
    lines += [f"anchored up to {each.size:,} events" for each in found.anchored]
    lines += [f"[green]there at {utc_text(at)}[/]" for at in found.timestamps]
    lines += [f"[yellow]not checked[/], for want of --roots: {escape(name)}" for name in found.unchecked]
    return lines
