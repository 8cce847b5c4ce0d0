"""How answers look: JSON for programs, tables and short sentences for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from pydantic_core import to_json
from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape as escaped_markup
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ledger.core.errors import LedgerError
from ledger.wire import Json, error_json

if TYPE_CHECKING:
    from collections.abc import Callable


_ENDLESS: Final = 10_000
"""Wider than any table."""


_UNSEEN: Final = (
    {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
    | {code: f"\\u{code:04x}" for code in (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))}
)  # fmt: skip
"""What a terminal obeys and nobody sees, and how it is shown: C0 and C1 controls, line separators, and what turns the
direction of writing (Unicode Standard Annex #9)."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Its own answer is to exit with 1, as if the ledger had refused something.
        raise BrokenPipeError


def console(*, wrap: bool = False) -> Console:
    """Standard output.  Unless lines are to be wrapped, an id or an amount is never cut by a line's end."""
    return _Console(highlight=False, soft_wrap=not wrap)


def answer(as_json: bool, plain: Json, *lines: RenderableType) -> None:
    """Print an answer: the JSON, or the lines."""
    if as_json:
        print_json(plain)
        return
    out = console()
    for line in lines:
        out.print(line)


def print_json(plain: Json) -> None:
    """One JSON object; on one line, unless a person reads it."""
    # As bytes: JSON is UTF-8, whatever the terminal's encoding is.
    sys.stdout.buffer.write(to_json(plain, indent=2 if sys.stdout.isatty() else None) + b"\n")


def print_error(error: LedgerError, *, as_json: bool) -> None:
    """One line on standard error; for programs, one object on standard output in place of the answer."""
    if as_json:
        print_json({"error": error_json(error)})
    else:
        complain(str(error))


def print_interrupted(after: str = "", found: Sequence[object] = (), *, as_json: bool) -> None:
    """As an error: where to go on, and what was found by then, which is not found again."""
    said = f"interrupted; go on with --after {after}" if after else "interrupted"
    places = [" ".join(str(each).split()) for each in found]
    if as_json:
        fields = {"after": after, "found": places}
        print_json({"error": {"code": "interrupted", "message": said, "retryable": True, "fields": fields}})
        return
    for place in places:
        complain(f"found by then: {place}")
    complain(said)


def complain(problem: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"ledger: {seen(' '.join(problem.split()))}\n")


def quiet(*loggers: str) -> None:
    """Keep a broker's client out of our lines: what matters of its log is a problem or an error."""
    for name in loggers:
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False


def table(*headings: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """A table whose columns in `right` hold amounts and numbers, those in `whole` what is to be copied as it is."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for heading in headings:
        # Folded where it must be: half an id is worse than a second line.
        justify: Literal["right", "left"] = "right" if heading in right else "left"
        made.add_column(heading, justify=justify, overflow="fold", no_wrap=heading in whole)
    return made


def seen(text: str) -> str:
    """A text with its control characters shown by their numbers: it tells the reader's terminal nothing."""
    return text.translate(_UNSEEN)


def escape(text: str) -> str:
    """A user's text as it may be printed: neither markup nor anything that a terminal obeys."""
    return escaped_markup(seen(text))


def row(made: Table, *cells: object) -> None:
    """Add a row; texts of users are neither markup nor control."""
    made.add_row(*(escape(str(cell)) for cell in cells))


def fitting(
    rows: Sequence[Mapping[str, object]],
    *layouts: Sequence[str],
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Table:
    """The table with the first of these sets of columns that the terminal is wide enough for, or with the last."""
    out = console()
    unbounded = out.options.update(max_width=_ENDLESS)
    for columns in layouts:
        made = table(*columns, right=right, whole=whole)
        for cells in rows:
            row(made, *(cells[column] for column in columns))
        if out.measure(made, options=unbounded).maximum <= out.width:
            break
    return made


def moment(at: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{at:%Y-%m-%d %H:%M:%S}"


@contextmanager
def progress(what: str, total: int | None, *, wanted: bool = True) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on standard error if that is a terminal; it is told how many are done so far."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
