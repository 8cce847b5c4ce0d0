"""Statements in CSV, whose columns and forms somebody declares: nothing about them is guessed."""

from __future__ import annotations

import csv
import io
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Final

from ledger.audit.bank_statement import (
    DESCRIPTION_MAX,
    ENTRIES_MAX,
    ID_MAX,
    Currency,
    Refuse,
    amount_of,
    check_days,
    check_total,
    fingerprint,
    names_of,
    refusing,
)
from ledger.core.errors import InvalidCommand
from ledger.storage.reconciliations import BankEntry, BankStatement

DECIMALS: Final = {"point": ".", "comma": ","}
MEANINGS: Final = ("date", "amount", "reference", "credit_debit", "currency", "description")
SKIP_MAX: Final = 1_000
_PROFILE_BYTES_MAX: Final = 64 * 1024
_SHOWN_MAX: Final = 60
_SOME_DAY: Final = datetime(2001, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvProfile:
    """
    How a bank writes its CSV.

    `columns` are pairs of a meaning and the heading of its column: `date` and `amount` must be among them, `reference`
    may be several times.  Amounts are positive where the bank credits, unless a column `credit_debit` says the side, in
    one of the words `credit` or `debit`.  `grouping` is what stands between thousands, if anything does.
    """

    columns: Sequence[tuple[str, str]]
    date_format: str = "%Y-%m-%d"
    decimal: str = "point"
    grouping: str = ""
    delimiter: str = ","
    encoding: str = "utf-8"
    skip_lines: int = 0
    credit: Sequence[str] = field(default=("CRDT", "CR", "C"))
    debit: Sequence[str] = field(default=("DBIT", "DR", "D"))

    def __post_init__(self) -> None:
        _check_columns([meaning for meaning, _ in self.columns])
        if self.decimal not in DECIMALS:
            raise InvalidCommand("decimal", f"{self.decimal!r} is neither point nor comma")
        if self.grouping not in ("", ".", ",", " ", "'", "\u00a0", "\u202f") or self.grouping == DECIMALS[self.decimal]:
            raise InvalidCommand("grouping", f"{self.grouping!r} cannot stand between thousands")
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise InvalidCommand("delimiter", f"{self.delimiter!r} is not one character")
        if not 0 <= self.skip_lines <= SKIP_MAX:
            raise InvalidCommand("skip_lines", f"{self.skip_lines} is not a number of lines from 0 to {SKIP_MAX:,}")
        _check_date_format(self.date_format)
        for name, words in (("credit", self.credit), ("debit", self.debit)):
            if isinstance(words, str) or not all(isinstance(word, str) for word in words):
                raise InvalidCommand(name, f"{words!r} is not a list of words")
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            # One is called undefined: it is known, and encodes nothing.
            raise InvalidCommand("encoding", f"{self.encoding!r} is not known") from None

    def headings(self, meaning: str) -> list[str]:
        """The headings of the columns that mean this."""
        return [heading for name, heading in self.columns if name == meaning]


def _check_columns(meanings: Sequence[str]) -> None:
    for meaning in meanings:
        if meaning not in MEANINGS:
            raise InvalidCommand("columns", f"{meaning!r} is no meaning of a column; {', '.join(MEANINGS)} are")
        if meaning != "reference" and meanings.count(meaning) > 1:
            raise InvalidCommand("columns", f"{meaning} is given twice")
    if not {"date", "amount"} <= set(meanings):
        raise InvalidCommand("columns", "say which are the columns date and amount: date=Booked,amount=Amount")


def _check_date_format(form: str) -> None:
    """Hold that a day that is written so can be read again."""
    try:
        read = datetime.strptime(_SOME_DAY.strftime(form), form).date()  # noqa: DTZ007  (a day has no zone)
    except (ValueError, re.error):
        # strptime makes a regular expression of it, in which no part is named twice.
        read = None
    if read != _SOME_DAY.date():
        raise InvalidCommand("date_format", f"{form!r} does not say day, month and year, each once: %d.%m.%Y")


def parse_columns(text: str) -> list[tuple[str, str]]:
    """
    Read `date=Booked,amount=Amount,reference=Ref`.

    Raises:
        InvalidCommand: It is not of that form.
    """
    pairs = []
    for each in text.split(","):
        meaning, equals, heading = each.partition("=")
        if not equals or not heading.strip():
            raise InvalidCommand("columns", f"{each!r} is not MEANING=HEADING; for a comma in a heading use a profile")
        pairs.append((meaning.strip(), heading.strip()))
    return pairs


def read_profile(path: Path) -> CsvProfile:
    """
    Read a profile from TOML: the fields of `CsvProfile`, and its columns as a table `[columns]`.

    Raises:
        InvalidCommand: It is no such profile.
        OSError: It cannot be read.
    """
    try:
        if path.stat().st_size > _PROFILE_BYTES_MAX:
            raise InvalidCommand(path.name, f"it is larger than {_PROFILE_BYTES_MAX:,} bytes")
        said = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidCommand(path.name, f"it is not TOML: {error}") from None
    columns = said.pop("columns", {})
    if not isinstance(columns, Mapping):
        raise InvalidCommand(path.name, 'its columns are a table: [columns] with date = "Booked"')
    pairs = [
        (meaning, heading)
        for meaning, told in columns.items()
        for heading in (told if isinstance(told, list) else [told])
    ]
    kinds: dict[str, Any] = {each.name: str for each in fields(CsvProfile)}
    kinds |= {"skip_lines": int, "credit": list, "debit": list}
    for name, value in said.items():
        if name not in kinds or type(value) is not kinds[name]:
            raise InvalidCommand(path.name, f"{name} = {value!r} is not part of a profile")
    if not all(isinstance(text, str) for _, text in pairs):
        raise InvalidCommand(path.name, "the heading of a column is a text")
    try:
        return CsvProfile(columns=pairs, **said)
    except InvalidCommand as error:
        raise InvalidCommand(path.name, f"{error.where}: {error.problem}") from None


def read_csv(
    path: Path,
    currency: Currency,
    profile: CsvProfile,
    *,
    statement_id: str | None,
    opening: str,
    closing: str,
    opens_on: date | None = None,
    closes_on: date | None = None,
) -> BankStatement:
    """
    Read a statement from CSV.

    The balances are whole units of the currency, positive where they are to the customer's credit; the days are those
    of the first and last entry unless they are said, and then all entries are of these days; the id is made of the
    file's SHA-256.

    Raises:
        BrokenStatement: It is not what was declared, contradicts itself or is of another currency; it names the place.
        InvalidCommand: A balance that was declared is none; or an empty statement has no days.
        OSError: The file cannot be read.
    """
    refuse = refusing(path)
    bounds = [_declared(name, text, currency) for name, text in (("opening", opening), ("closing", closing))]
    with path.open("rb") as file:
        file_sha256 = fingerprint(file, refuse)
        entries = _Table(profile, currency, refuse).entries(file)
    name = f"sha256:{file_sha256.hex()}" if statement_id is None else statement_id
    if not 1 <= len(name) <= ID_MAX:
        raise InvalidCommand("statement_id", f"it has 1 to {ID_MAX} characters")
    days = sorted(entry.booked_on for entry in entries)
    if not days and (opens_on is None or closes_on is None):
        raise InvalidCommand("statement", "it has no entries: say of which days it is, --opens-on and --closes-on")
    first, last = opens_on or days[0], closes_on or days[-1]
    check_days(first, last, "its days", refuse)
    for entry in entries:
        if not first <= entry.booked_on <= last:
            raise refuse(entry.place, f"it is of {entry.booked_on}, and the statement is of {first} to {last}")
    check_total(bounds[0], entries, bounds[1], currency, "the balances that were declared", refuse)
    return BankStatement(
        statement_id=name,
        format="csv",
        file_sha256=file_sha256,
        opens_on=first,
        closes_on=last,
        opening=bounds[0],
        closing=bounds[1],
        entries=entries,
    )


def _declared(name: str, text: str, currency: Currency) -> int:
    digits = text.removesuffix(f" {currency.asset}")
    try:
        return currency.minor(digits)
    except ValueError as error:
        raise InvalidCommand(name, f"{text!r} is no balance in {currency.asset}: {error}") from None


class _Table:
    """The rows of a file under their headings, each read as it was declared."""

    def __init__(self, profile: CsvProfile, currency: Currency, refuse: Refuse) -> None:
        self._profile = profile
        self._currency = currency
        self._refuse = refuse
        point, group = re.escape(DECIMALS[profile.decimal]), re.escape(profile.grouping)
        whole = rf"(?:[0-9]{{1,3}}(?:{group}[0-9]{{3}})+|[0-9]+)" if group else "[0-9]+"
        self._amount = re.compile(rf"([+-]?)({whole})(?:{point}([0-9]+))?")
        self._places: dict[str, int] = {}
        self._line = 0

    def entries(self, file: io.BufferedReader) -> list[BankEntry]:
        found: list[BankEntry] = []
        text = io.TextIOWrapper(file, encoding=self._profile.encoding, newline="")
        try:
            for row in self._rows(self._lines(text)):
                if len(found) == ENTRIES_MAX:
                    raise self._refuse(f"line {self._line}", f"it has more than {ENTRIES_MAX:,} entries")
                if (entry := self._entry(len(found) + 1, self._line, row)) is not None:
                    found.append(entry)
        except csv.Error as error:
            raise self._refuse(f"line {self._line}", f"it is not CSV as declared: {error}") from None
        except UnicodeError as error:
            line = _undecoded(Path(file.name), self._profile.encoding)
            problem = getattr(error, "reason", error)
            raise self._refuse(f"line {line}", f"it is not text in {self._profile.encoding}: {problem}") from None
        finally:
            text.detach()
        return found

    def _lines(self, text: Iterable[str]) -> Iterator[str]:
        """Lines without the mark of the byte order, and `_line` as the number of the last."""
        for self._line, line in enumerate(text, 1):
            yield line.removeprefix("\ufeff") if self._line == 1 else line

    def _rows(self, lines: Iterator[str]) -> Iterator[list[str]]:
        # What stands before the headings is text, and need not be CSV.
        rows = csv.reader(islice(lines, self._profile.skip_lines, None), delimiter=self._profile.delimiter, strict=True)
        heading = next(rows, None)
        if heading is None:
            raise self._refuse(f"line {self._line + 1}", "it has no line of headings")
        heading = [each.strip() for each in heading]
        for _, name in self._profile.columns:
            if heading.count(name) != 1:
                many = "twice" if name in heading else "not"
                shown = ", ".join(heading)[:200]
                raise self._refuse(f"line {self._line}", f"column {name!r} is {many} there; there are: {shown}")
            self._places[name] = heading.index(name)
        for row in rows:
            if not row:
                continue
            if len(row) != len(heading):
                raise self._refuse(
                    f"line {self._line}", f"it has {len(row)} columns, and the headings are {len(heading)}"
                )
            yield row

    def _entry(self, number: int, line: int, row: list[str]) -> BankEntry | None:
        cells = {
            meaning: [row[self._places[heading]].strip() for heading in self._profile.headings(meaning)]
            for meaning in MEANINGS
        }
        if any("\0" in cell for kind in cells.values() for cell in kind):
            raise self._refuse(f"line {line}", "it has a NUL in it")
        amount = self._minor(cells, line, number)
        if amount == 0:
            return None
        names = names_of(cells["reference"])
        description = " ".join(" ".join(cells["description"]).split())[:DESCRIPTION_MAX]
        return BankEntry(number, self._day(cells["date"][0], line), amount, names, description, f"line {line}")

    def _at(self, line: int, meaning: str) -> str:
        return f"line {line}, column {self._profile.headings(meaning)[0]!r}"

    def _day(self, text: str, line: int) -> date:
        try:
            return datetime.strptime(text, self._profile.date_format).date()  # noqa: DTZ007  (a day has no zone)
        except ValueError:
            form = self._profile.date_format
            raise self._refuse(
                self._at(line, "date"), f"{text[:_SHOWN_MAX]!r} is not a date as declared ({form})"
            ) from None

    def _minor(self, cells: Mapping[str, Sequence[str]], line: int, number: int) -> int:
        where = f"{self._at(line, 'amount')}, entry {number}{_called(cells['reference'])}"
        for currency in cells["currency"]:
            if currency != self._currency.asset:
                raise self._refuse(
                    f"{self._at(line, 'currency')}, entry {number}{_called(cells['reference'])}",
                    f"it is in {currency[:10] or 'no currency'}, and the account is in {self._currency.asset}",
                )
        text = cells["amount"][0]
        match = self._amount.fullmatch(text)
        if match is None:
            profile = self._profile
            grouped = f", {profile.grouping!r} between thousands" if profile.grouping else ""
            declared = f"decimal {profile.decimal}{grouped}"
            raise self._refuse(where, f"{text[:_SHOWN_MAX]!r} is not an amount as declared ({declared})")
        sign, whole, decimals = match.groups(default="")
        if self._profile.grouping:
            whole = whole.replace(self._profile.grouping, "")
        digits = f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"
        return self._side(cells, line) * amount_of(digits, self._currency, where, self._refuse)

    def _side(self, cells: Mapping[str, Sequence[str]], line: int) -> int:
        for word in cells["credit_debit"]:
            if word in self._profile.credit:
                return 1
            if word in self._profile.debit:
                return -1
            known = ", ".join((*self._profile.credit, *self._profile.debit))
            raise self._refuse(
                self._at(line, "credit_debit"), f"{word[:_SHOWN_MAX]!r} is no side as declared ({known})"
            )
        return 1


def _undecoded(path: Path, encoding: str) -> int:
    """The line in which a file is no text: the first that is another one without what cannot be decoded."""
    with (
        path.open(encoding=encoding, errors="replace", newline="") as replaced,
        path.open(encoding=encoding, errors="ignore", newline="") as without,
        # Some can say at the beginning already that it is none of theirs.
        suppress(UnicodeError),
    ):
        for number, (one, other) in enumerate(zip_longest(replaced, without), 1):
            if one != other:
                return number
    return 1


def _called(references: Sequence[str]) -> str:
    names = names_of(references)
    return f" ({names[0][:_SHOWN_MAX]})" if names else ""
