"""`ledger report`: what an auditor asks for, as a table, or as bytes with their hash."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer
from pydantic_core import to_json

from ledger.audit.reports.catalogue import REPORTS, definition
from ledger.audit.reports.form import FORMATS, Definition, Header, PinnedReport
from ledger.cli.options import Known, Target, command, opened
from ledger.cli.output import answer, console, escape, progress, row, table
from ledger.core.errors import InvalidCommand
from ledger.wire import definition_json

PAGE_ROWS: Final = 100
"""Rows of which the columns of a table are made wide enough; the table of the next ones has a head of its own."""

_NUMBERS: Final = ("integer", "amount")


@command
def report(
    target: Target,
    as_of: Known,
    name: Annotated[str | None, typer.Argument(help="Which; without: all that there are.", show_default=False)] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Argument(help="What it asks, such as account=alice.", metavar="PARAMETER=VALUE", show_default=False),
    ] = None,
    position: Annotated[
        int | None, typer.Option(help="Up to this position of the feed; the last one, unless it is said.", min=0)
    ] = None,
    trail: Annotated[
        int | None, typer.Option(help="Up to this number of the trail; the last one, unless it is said.", min=0)
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="table, json, csv, or jsonl: the very bytes that are hashed.")
    ] = "table",
    output: Annotated[
        Path | None,
        typer.Option(help="Into this new file, and the header beside it: FILE.header.json.", metavar="FILE"),
    ] = None,
) -> int:
    """
    Make a report, pinned to a position: the same bytes for the same position, whatever comes later.

    Its header has pin, parameters, number of rows, control totals and the SHA-256 of the body.  That of csv and jsonl
    goes to standard error, or beside the file.  Exit code 1 if something in it is bad news.
    """
    if name is None:
        return _list(target)
    wanted = "json" if target.as_json and form == "table" else form
    if wanted not in ("table", *FORMATS):
        raise InvalidCommand("format", f"{form!r} is none of table, {', '.join(FORMATS)}")
    asked = _parameters(definition(name), parameters or ())
    with opened(target.settings) as ledger:
        made = ledger.report(name, position=position, known_as_of=as_of.known, trail=trail, **asked)
        if output is not None:
            header = _write(made, output, "jsonl" if wanted == "table" else wanted)
            _tell(target, header)
        elif wanted == "table":
            header = _show(made)
            _tell(target, header)
        else:
            header = made.write(sys.stdout.buffer, wanted)
            if wanted != "json":
                sys.stdout.buffer.flush()
                sys.stderr.write(to_json(header.plain()).decode() + "\n")
    return 0 if header.ok else 1


def _list(target: Target) -> int:
    made = table("report", "version", "what it is", "parameters")
    for each in REPORTS.values():
        row(made, each.name, each.version, each.title, " ".join(_shown_parameters(each)) or "-")
    answer(target.as_json, {"reports": [definition_json(each) for each in REPORTS.values()]}, made)
    return 0


def _shown_parameters(of: Definition) -> Iterator[str]:
    for name, field in of.parameters.model_fields.items():
        yield f"{name}=…" if field.is_required() else f"[{name}=…]"


def _parameters(of: Definition, texts: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            takes = " ".join(_shown_parameters(of)) or "none"
            raise InvalidCommand("parameters", f"{text!r} is not PARAMETER=VALUE; {of.name} takes {takes}")
        if name in found:
            raise InvalidCommand("parameters", f"{name!r} is given twice")
        found[name] = value
    return found


def _show(made: PinnedReport) -> Header:
    """The rows as tables, of which each is held while it is filled."""
    names = [column.name for column in made.definition.columns]
    right = [column.name for column in made.definition.columns if column.kind in _NUMBERS]
    out, shown, pending = console(), table(*names, right=right), 0
    for cells in made:
        row(shown, *("-" if cell is None else cell for cell in cells.values()))
        pending += 1
        if pending == PAGE_ROWS:
            out.print(shown)
            shown, pending = table(*names, right=right), 0
    if pending:
        out.print(shown)
    return made.header


def _write(made: PinnedReport, output: Path, form: str) -> Header:
    beside = output.with_name(f"{output.name}.header.json")
    with _new(output) as file, _new(beside) as header_file:
        with progress("rows", None) as watch:
            header = made.write(file, form, progress=watch)
        header_file.write(to_json(header.plain(), indent=2) + b"\n")
    return header


@contextmanager
def _new(path: Path) -> Iterator[BinaryIO]:
    """A file that was not there; of what fails half-way nothing stays."""
    try:
        file = path.open("xb")
    except FileExistsError:
        raise InvalidCommand(str(path), "it exists; a report is written into a new file") from None
    except OSError as error:
        raise InvalidCommand(str(path), f"{error.strerror or error}") from None
    try:
        with file:
            yield file
    except BaseException:
        path.unlink()
        raise


def _tell(target: Target, header: Header) -> None:
    pins = [f"position {header.position:,}"] if header.position is not None else []
    pins += [f"trail {header.trail:,}"] if header.trail is not None else []
    said = [
        f"{header.report} version {header.version}, at {', '.join(pins)}: {header.rows:,} rows",
        *(f"  {escape(line)}" for line in _totals(header)),
        f"sha256 {header.sha256}",
    ]
    if not header.ok:
        said.append(f"[red]findings:[/] {header.findings:,}, and as things are now {header.live_findings:,}")
    answer(target.as_json, header.plain(), *said)


def _totals(header: Header) -> Iterator[str]:
    for name, total in header.totals.items():
        if name != "assets":
            yield f"{name.replace('_', ' ')} {total:,}" if isinstance(total, int) else f"{name} {total}"
    for asset, sums in header.totals["assets"].items():
        entries = f", {sums['entries']:,} entries" if "entries" in sums else ""
        yield f"{asset}: debits {sums['debits']}, credits {sums['credits']}{entries}"
