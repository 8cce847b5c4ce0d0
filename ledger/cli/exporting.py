"""The command that gives the log to other programs: hledger, beancount, CSV, Parquet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from ledger.audit.export import Exported, Format
from ledger.cli.options import Target, command, opened
from ledger.cli.output import answer, escape, progress
from ledger.cli.proving import files
from ledger.core.errors import InvalidCommand
from ledger.wire import Json

STANDARD_OUTPUT: Final = "-"


@command
def export(
    target: Target,
    kind: Annotated[Format, typer.Argument(help="What is to read it.", metavar="FORMAT", show_default=False)],
    out: Annotated[
        str, typer.Option(help="The new file; - is standard output, for all but parquet.", metavar="FILE")
    ] = STANDARD_OUTPUT,
    position: Annotated[
        int | None, typer.Option(help="Up to this position of the feed.", min=0, show_default="the last one")
    ] = None,
) -> int:
    """
    Write everything up to a position of the feed for another program: hledger, beancount, csv or parquet.

    hledger and beancount add up all entries themselves and compare with what the ledger recorded:
    `hledger -f FILE check -s`, `bean-check --no-cache FILE`.
    """
    printed = out == STANDARD_OUTPUT
    if printed and (kind is Format.PARQUET or target.as_json):
        which = "parquet" if kind is Format.PARQUET else "what --json answers beside it"
        raise InvalidCommand("usage", f"standard output is not for {which}: --out FILE")
    with opened(target.settings) as ledger:
        last = ledger.feed_head() if position is None else position
        with progress("events", last, wanted=not (printed and sys.stdout.isatty())) as watch:
            if printed:
                # Not within `files`: that nobody reads any more is no file that cannot be written.
                ledger.export(kind, sys.stdout.buffer, position=last, progress=watch)
                return 0
            with files():
                written = ledger.export(kind, Path(out), position=last, progress=watch)
    answer(target.as_json, _plain(written, out), _said(written, out))
    return 0


def _plain(written: Exported, out: str) -> Json:
    return {
        "format": written.format,
        "ledger_id": written.ledger_id,
        "position": written.position,
        "accounts": written.accounts,
        "transactions": written.transactions,
        "entries": written.entries,
        "sha256": written.sha256,
        "file": out,
    }


def _said(written: Exported, out: str) -> str:
    return (
        f"written: {written.transactions:,} transactions of {written.accounts:,} accounts, up to position"
        f" {written.position:,}, in {escape(out)}"
    )
