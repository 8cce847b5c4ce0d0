"""
What a report is, and the bytes that it comes to.

The body is one line for each row: a JSON object in the form of RFC 8785 and a newline.  Its SHA-256 stands in the
header, with the pin that it was read at, its parameters, the number of rows and the control totals.  The header is
known when the last row was read, so that neither side holds a report in memory.

What is as it is at the moment, and would be something else tomorrow, is `live`: in the header, and in no hash.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias

from pydantic_core import to_json

from ledger.core.canonical import canonical_json, utc_text
from ledger.core.errors import InvalidCommand
from ledger.core.fields import Frozen
from ledger.core.money import Money
from ledger.storage import store, trail
from ledger.storage.database import Connection

Cell: TypeAlias = str | int | bool | None
Row: TypeAlias = dict[str, Cell]

FORMATS: Final = ("jsonl", "json", "csv")

Progress: TypeAlias = Callable[[int], None]
_PROGRESS_ROWS: Final = 1_000

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")  # noqa: RUF001  (that is the point)
"""What a spreadsheet takes for the beginning of a formula, in either width; and what is put in front of one."""


class Column(NamedTuple):
    """A column by name, and what is in it: `text`, `integer`, `boolean`, `time`, or `amount` in whole units."""

    name: str
    kind: str = "text"


def columns(named: str) -> tuple[Column, ...]:
    """Columns from a text: `position:integer account amount:amount`."""
    return tuple(Column(*each.split(":")) for each in named.split())


@dataclass(frozen=True, slots=True)
class Pin:
    """
    What a report is read at: the last position of the feed, and the last number of the trail, that it looks at.

    `known_at` is when the transaction at that position was recorded; None before the first one.
    """

    position: int
    known_at: datetime | None
    trail: int


@dataclass(slots=True)
class Tally:
    """What a report adds up while its rows are made."""

    totals: dict[str, Any] = field(default_factory=dict)
    findings: int = 0
    """How many rows are bad news."""

    live: dict[str, Any] = field(default_factory=dict)
    live_findings: int = 0
    _assets: dict[str, list[int]] = field(default_factory=dict)
    _scales: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, number: int = 1) -> None:
        """Count something in the control totals."""
        self.totals[what] = self.totals.get(what, 0) + number

    def add(self, asset: str, debits: int, credits: int, entries: int = 0) -> None:
        """Add minor units of an asset to the control totals, and how many entries they are of, where that is known."""
        sums = self._assets.setdefault(asset, [0, 0, 0])
        for place, number in enumerate((debits, credits, entries)):
            sums[place] += number

    def decimal(self, connection: Connection, minor: int, asset: str) -> str:
        """An amount of minor units in whole units, as a text."""
        if asset not in self._scales:
            rows = connection.query(store.SELECT_SCALES, (store.text_array([asset]),))
            self._scales[asset] = int(rows[0][1]) if rows else 0
        return decimal(minor, asset, self._scales[asset])

    def scaled(self, asset: str, scale: int) -> None:
        """Learn the decimal places of an asset."""
        self._scales[asset] = scale

    def closed(self) -> dict[str, Any]:
        """The control totals: debits and credits by asset, and whatever was counted."""
        assets = {
            asset: {
                "credits": decimal(sums[1], asset, self._scales.get(asset, 0)),
                "debits": decimal(sums[0], asset, self._scales.get(asset, 0)),
                **({"entries": sums[2]} if sums[2] else {}),
            }
            for asset, sums in sorted(self._assets.items())
        }
        return {**self.totals, "assets": assets}


Rows: TypeAlias = Generator[Sequence[Cell], None, None]
"""A value for every column, in order."""

Make: TypeAlias = Callable[[Connection, Pin, Any, Tally], Rows]
"""Makes the rows of a report: told where to read, what was asked, and what adds them up."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A report by name: its version changes when its rows do, for the same question."""

    name: str
    version: int
    title: str
    parameters: type[Frozen]
    columns: tuple[Column, ...]
    make: Make
    pinned_by: tuple[str, ...] = ("position",)
    """What its rows depend on: the position of the feed, the number of the trail, or both."""


@dataclass(frozen=True, slots=True)
class Header:
    """
    What a report is about, and what its body came to.

    `sha256` is that of the body, one line of JSON for each row; `csv_sha256` that of the CSV, where that was written.
    """

    report: str
    version: int
    ledger_id: str
    parameters: Mapping[str, Cell]
    position: int | None
    known_at: datetime | None
    trail: int | None
    columns: tuple[str, ...]
    rows: int
    totals: Mapping[str, Any]
    findings: int
    sha256: str
    live: Mapping[str, Any]
    live_findings: int
    csv_sha256: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no bad news in it."""
        return self.findings == 0 and self.live_findings == 0

    def plain(self) -> dict[str, Any]:
        """As JSON says it; all of it but `live` is the same for the same pin and parameters."""
        made = {
            "report": self.report,
            "version": self.version,
            "ledger_id": self.ledger_id,
            "parameters": dict(self.parameters),
            "position": self.position,
            "known_at": None if self.known_at is None else utc_text(self.known_at),
            "trail": self.trail,
            "columns": list(self.columns),
            "rows": self.rows,
            "totals": dict(self.totals),
            "findings": self.findings,
            "sha256": self.sha256,
        }
        csv_hash = {} if self.csv_sha256 is None else {"csv_sha256": self.csv_sha256}
        return {**made, **csv_hash, "live": {**self.live, "findings": self.live_findings}}


class PinnedReport:
    """
    A report that was asked for: its rows by iterating, and its header after the last one.

    Every iteration reads it anew, in one snapshot, and comes to the same rows.
    """

    def __init__(
        self,
        definition: Definition,
        parameters: Frozen,
        pin: Pin,
        ledger_id: str,
        connect: Callable[[], AbstractContextManager[Connection]],
    ) -> None:
        self.definition = definition
        self.pin = pin
        self._asked = parameters
        self._ledger_id = ledger_id
        self._connect = connect
        self._header: Header | None = None

    @property
    def parameters(self) -> dict[str, Cell]:
        """What was asked, with what was not said: times in UTC, and None for what is not limited."""
        given = {name: getattr(self._asked, name) for name in type(self._asked).model_fields}
        return {name: utc_text(value) if isinstance(value, datetime) else value for name, value in given.items()}

    @property
    def header(self) -> Header:
        """
        What the rows came to.

        Raises:
            InvalidCommand: They were not read to their end yet.
        """
        if self._header is None:
            raise InvalidCommand("header", "it is known when all rows of the report were read")
        return self._header

    def __iter__(self) -> Iterator[Row]:
        for row, _ in self.lines():
            yield row

    def lines(self, progress: Progress | None = None) -> Iterator[tuple[Row, bytes]]:
        """Each row, and its line of the body; `progress` is told now and then how many there were."""
        self._header = None
        names = [column.name for column in self.definition.columns]
        ordered = sorted(range(len(names)), key=names.__getitem__)
        tally, digest, count = Tally(), sha256(), 0
        with self._connect() as connection, connection.transaction(read_only=True, unbounded=True):
            ((read_at,),) = connection.query("SELECT now() AT TIME ZONE 'UTC'")
            tally.live["read_at"] = utc_text(store.in_utc(read_at))
            if "trail" in self.definition.pinned_by:
                tally.live["trail_unnumbered"] = trail.waiting(connection)
            with closing(self.definition.make(connection, self.pin, self._asked, tally)) as rows:
                for cells in rows:
                    # In the order of the names, which all are plain ASCII: that is what makes it canonical.
                    line = to_json({names[place]: cells[place] for place in ordered}) + b"\n"
                    digest.update(line)
                    count += 1
                    if progress is not None and count % _PROGRESS_ROWS == 0:
                        progress(count)
                    yield dict(zip(names, cells, strict=True)), line
        self._header = self._closed(tally, count, digest.hexdigest())

    def write(self, out: BinaryIO, form: str = "jsonl", *, progress: Progress | None = None) -> Header:
        """
        Write it: `jsonl` is the body itself, `csv` has a head of names, `json` is one object of rows and header.

        `progress` is told now and then how many rows were written.

        Raises:
            InvalidCommand: There is no such form.
        """
        if form not in FORMATS:
            raise InvalidCommand("format", f"{form!r} is none of {', '.join(FORMATS)}")
        if form == "csv":
            return self._write_csv(out, progress)
        if form == "json":
            return self._write_json(out, progress)
        out.writelines(line for _, line in self.lines(progress))
        return self.header

    def _write_json(self, out: BinaryIO, progress: Progress | None) -> Header:
        before = b'{"rows":['
        for _, line in self.lines(progress):
            out.write(before + b"\n" + line[:-1])
            before = b","
        out.write(b"" if before == b"," else before)
        out.write(b'],\n"header":' + canonical_json(self.header.plain()).encode() + b"}\n")
        return self.header

    def _write_csv(self, out: BinaryIO, progress: Progress | None) -> Header:
        digest = sha256()
        texts = {column.name for column in self.definition.columns if column.kind == "text"}

        def write(cells: Sequence[str]) -> None:
            line = _csv_line(cells)
            digest.update(line)
            out.write(line)

        write([column.name for column in self.definition.columns])
        for row, _ in self.lines(progress):
            write([harmless(_shown(cell)) if name in texts else _shown(cell) for name, cell in row.items()])
        self._header = replace(self.header, csv_sha256=digest.hexdigest())
        return self._header

    def _closed(self, tally: Tally, rows: int, digest: str) -> Header:
        of_feed, of_trail = ("position" in self.definition.pinned_by), ("trail" in self.definition.pinned_by)
        return Header(
            self.definition.name,
            self.definition.version,
            self._ledger_id,
            self.parameters,
            self.pin.position if of_feed else None,
            self.pin.known_at if of_feed else None,
            self.pin.trail if of_trail else None,
            tuple(column.name for column in self.definition.columns),
            rows,
            tally.closed(),
            tally.findings,
            digest,
            tally.live,
            tally.live_findings,
        )


def decimal(minor: int, asset: str, scale: int) -> str:
    """Minor units in whole units, as a text: 1250 at scale 2 is `12.50`."""
    return str(Money(minor, asset, scale)).partition(" ")[0]


def utc(column: str) -> str:
    """SQL for a moment as a text in UTC, as all of ours are written."""
    return f"""to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


def harmless(text: str) -> str:
    """
    A text that no spreadsheet takes for a formula: where it begins like one, after an apostrophe.

    One that begins with an apostrophe gets a second, so that no two texts become the same.
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def _shown(cell: Cell) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return "" if cell is None else str(cell)


def _csv_line(cells: Sequence[str]) -> bytes:
    line = io.StringIO()
    # As RFC 4180 has it; and so a line's end of either kind within a text is quoted.
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().encode()
