"""CSV as it is declared, and nothing guessed; what is otherwise is refused with line, column and reference."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ledger import BrokenStatement, CsvProfile, InvalidCommand
from ledger.audit.bank_statement import Currency
from ledger.audit.csv_statement import parse_columns, read_csv, read_profile

EUR = Currency("EUR", 2)
GERMAN = """Umsatzliste
Buchung;Betrag;Waehrung;Zweck;Ref;S/H
03.03.2026;1.250,00;EUR;"Rechnung; 1001";INV-1;H
05.03.2026;50,5;EUR;Miete;RENT;S
"""
COLUMNS = "date=Buchung,amount=Betrag,currency=Waehrung,description=Zweck,reference=Ref,credit_debit=S/H"
PROFILE = CsvProfile(
    columns=parse_columns(COLUMNS),
    date_format="%d.%m.%Y",
    decimal="comma",
    grouping=".",
    delimiter=";",
    skip_lines=1,
    credit=["H"],
    debit=["S"],
)


def read(tmp_path: Path, text: str, profile: CsvProfile = PROFILE, **options: Any) -> Any:
    """Read a CSV with these contents."""
    path = tmp_path / "bank.csv"
    path.write_bytes(text.encode(profile.encoding))
    balances = {"opening": "100.00", "closing": "1299.50", "statement_id": None}
    return read_csv(path, EUR, profile, **(balances | options))


def test_declared_csv_is_read(tmp_path: Path) -> None:
    """Decimal comma, grouping, dates and sides as declared; id and days are made of the file."""
    statement = read(tmp_path, GERMAN)

    assert statement.statement_id == f"sha256:{statement.file_sha256.hex()}"
    assert (statement.opens_on, statement.closes_on) == (date(2026, 3, 3), date(2026, 3, 5))
    assert [(each.amount, each.names, each.description, each.place) for each in statement.entries] == [
        (125_000, ("INV-1",), "Rechnung; 1001", "line 3"),
        (-5_050, ("RENT",), "Miete", "line 4"),
    ]


BROKEN = {
    "wrong total": (("50,5", "50,6"), "the balances that were declared", "it is off by -0.10 EUR"),
    "decimal point": (("50,5", "50.5"), "line 4, column 'Betrag', entry 2 (RENT)", "not an amount as declared"),
    "grouping": (("1.250,00", "12.50,00"), "line 3, column 'Betrag', entry 1 (INV-1)", "decimal comma, '.' between"),
    "decimals": (("50,5", "50,505"), "line 4, column 'Betrag', entry 2 (RENT)", "EUR has 2 decimal places"),
    "currency": (("50,5;EUR", "50,5;USD"), "line 4, column 'Waehrung', entry 2 (RENT)", "it is in USD"),
    "date": (("05.03.2026", "2026-03-05"), "line 4, column 'Buchung'", "not a date as declared (%d.%m.%Y)"),
    "side": ((";S\n", ";C\n"), "line 4, column 'S/H'", "'C' is no side as declared (H, S)"),
    "heading": (("Betrag", "Umsatz"), "line 2", "column 'Betrag' is not there; there are: Buchung, Umsatz"),
    "heading twice": (("Zweck", "Ref"), "line 2", "column 'Zweck' is not there"),
    "a column too few": ((";RENT;S", ";S"), "line 4", "it has 5 columns, and the headings are 6"),
    "quote": (('"Rechnung; 1001"', '"Rechnung; 1001'), "line 4", "it is not CSV as declared"),
    "text after a quote": (('1001"', '1001"x'), "line 3", "it is not CSV as declared"),
    "NUL": (("Miete", "Mi\0ete"), "line 4", ""),
    "float": (("50,5", "1e3"), "line 4, column 'Betrag', entry 2 (RENT)", "not an amount"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_csv_is_refused(tmp_path: Path, how: str) -> None:
    """Whatever is not as declared is refused where it stands."""
    (old, new), where, problem = BROKEN[how]
    assert old in GERMAN

    with pytest.raises(BrokenStatement) as error:
        read(tmp_path, GERMAN.replace(old, new, 1))

    assert (error.value.file, error.value.where) == ("bank.csv", where)
    assert problem in error.value.problem


WRONG = {
    "utf-8": (GERMAN.replace("Miete", "Mieté").encode("latin-1"), 4),
    "far into the file": ((GERMAN + "05.03.2026;1;EUR;Miete;;S\n" * 700 + "é\n" + "\n" * 9_000).encode("latin-1"), 705),
    "a skipped line": (("é" + GERMAN).encode("latin-1"), 1),
    "an end too early": (GERMAN.replace("RENT;S\n", "RENT;ü").encode()[:-1], 4),
}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_encoding_is_refused(tmp_path: Path, how: str) -> None:
    """Bytes that are no text in the declared encoding are refused in their line."""
    written, line = WRONG[how]
    path = tmp_path / "bank.csv"
    path.write_bytes(written)

    with pytest.raises(BrokenStatement) as error:
        read_csv(path, EUR, PROFILE, statement_id=None, opening="0", closing="0")

    assert error.value.where == f"line {line}"
    assert error.value.problem.startswith("it is not text in utf-8: ")


@pytest.mark.parametrize(("encoding", "line"), [("utf-16", 1), ("utf-16-le", 3), ("idna", 1)])
def test_wrong_encodings_of_other_kinds_are_refused(tmp_path: Path, encoding: str, line: int) -> None:
    """However an encoding says that something is none of it, the line is named."""
    path = tmp_path / "bank.csv"
    path.write_bytes(GERMAN.encode("utf-16-le").replace(b"I\0N\0V", b"I\xd8N\0V"))

    with pytest.raises(BrokenStatement, match=f"line {line}: it is not text in {encoding}"):
        read_csv(path, EUR, replace(PROFILE, encoding=encoding), statement_id=None, opening="0", closing="0")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_the_mark_of_the_byte_order_is_no_text(tmp_path: Path, encoding: str) -> None:
    """It is removed before anything is read, also where a quote follows."""
    marked = encoding in ("utf-8-sig", "utf-16")
    text = GERMAN.removeprefix("Umsatzliste\n").replace("Buchung", '"Buchung"')
    profile = replace(PROFILE, encoding=encoding, skip_lines=0)

    assert len(read(tmp_path, text if marked else f"\ufeff{text}", profile).entries) == 2


def test_lines_before_the_headings_need_not_be_csv(tmp_path: Path) -> None:
    """They are passed over as they are, and counted."""
    preamble = '"Umsaetze" vom 01.03.2026\r\nKonto;"Max Muster\n\n'
    profile = replace(PROFILE, skip_lines=4)

    assert [each.place for each in read(tmp_path, preamble + GERMAN, profile).entries] == ["line 6", "line 7"]
    for text, line in ((GERMAN.replace('1001"', '1001"x'), 6), (GERMAN.replace("50,5;", ""), 7), ("Umsatzliste", 5)):
        with pytest.raises(BrokenStatement) as error:
            read(tmp_path, preamble + text, profile)
        assert error.value.where == f"line {line}"


@pytest.mark.parametrize(
    ("days", "where", "problem"),
    [
        (
            {"closes_on": date(2026, 3, 4)},
            "line 4",
            "it is of 2026-03-05, and the statement is of 2026-03-03 to 2026-03-04",
        ),
        (
            {"opens_on": date(2026, 3, 4)},
            "line 3",
            "it is of 2026-03-03, and the statement is of 2026-03-04 to 2026-03-05",
        ),
    ],
)
def test_an_entry_of_another_day_is_refused(tmp_path: Path, days: dict[str, Any], where: str, problem: str) -> None:
    """What is not of the days that were declared is no part of the statement; the first and the last day are."""
    with pytest.raises(BrokenStatement) as error:
        read(tmp_path, GERMAN, **days)
    assert (error.value.where, error.value.problem) == (where, problem)
    bounds: dict[str, Any] = {"opens_on": date(2026, 3, 3), "closes_on": date(2026, 3, 5)}
    assert len(read(tmp_path, GERMAN, **bounds).entries) == 2


def test_a_statement_without_entries_needs_its_days(tmp_path: Path) -> None:
    """An empty statement is one, if it is said of which days, and if it closes as it opens."""
    empty = "\n".join(GERMAN.splitlines()[:2])
    with pytest.raises(InvalidCommand, match="say of which days"):
        read(tmp_path, empty, closing="100.00")

    days: dict[str, Any] = {"opens_on": date(2026, 3, 1), "closes_on": date(2026, 3, 31)}
    assert read(tmp_path, empty, closing="100.00 EUR", **days).entries == []
    with pytest.raises(BrokenStatement, match="off by"):
        read(tmp_path, empty, closing="100.01", **days)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"columns": [("date", "D")]}, "which are the columns date and amount"),
        ({"columns": [("date", "D"), ("amount", "A"), ("amount", "B")]}, "amount is given twice"),
        ({"columns": [("day", "D")]}, "'day' is no meaning"),
        ({"decimal": "dot"}, "neither point nor comma"),
        ({"decimal": "comma", "grouping": ","}, "cannot stand between thousands"),
        ({"delimiter": ";;"}, "not one character"),
        ({"encoding": "utf-99"}, "'utf-99' is not known"),
        ({"encoding": "undefined"}, "'undefined' is not known"),
        ({"encoding": "utf\0"}, "is not known"),
        ({"skip_lines": -1}, "not a number of lines"),
        ({"date_format": "%Y-%m-%d %d"}, "'%Y-%m-%d %d' does not say day, month and year, each once"),
        ({"date_format": "%d.%m."}, "does not say day, month and year"),
        ({"date_format": "%Y-%m-%Q"}, "does not say"),
        ({"date_format": "%Y-%m-%d %"}, "does not say"),
        ({"credit": [1]}, r"credit: \[1\] is not a list of words"),
        ({"debit": "DBIT"}, "debit: 'DBIT' is not a list of words"),
    ],
)
def test_profiles_are_checked(change: dict[str, Any], problem: str) -> None:
    """A declaration that cannot work is refused before anything is read."""
    with pytest.raises(InvalidCommand, match=problem):
        CsvProfile(**({"columns": [("date", "D"), ("amount", "A")]} | change))


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%S%z", "%d %b %y", "%Y%m%d", "%j/%Y", "%G-W%V-%u", "%I %p %c"])
def test_days_can_be_written_in_many_ways(form: str) -> None:
    """Whatever says a day is a form of dates."""
    assert CsvProfile(columns=[("date", "D"), ("amount", "A")], date_format=form).date_format == form


def test_profiles_are_read_from_toml(tmp_path: Path) -> None:
    """A profile in a file is the same as one that is given; what is not part of one is refused."""
    path = tmp_path / "bank.toml"
    path.write_text(
        'date_format = "%d.%m.%Y"\ndecimal = "comma"\ngrouping = "."\ndelimiter = ";"\nskip_lines = 1\n'
        'credit = ["H"]\ndebit = ["S"]\n'
        '[columns]\ndate = "Buchung"\namount = "Betrag"\ncurrency = "Waehrung"\ndescription = "Zweck"\n'
        'reference = ["Ref"]\ncredit_debit = "S/H"\n'
    )
    assert read_profile(path) == PROFILE
    columns = '[columns]\ndate = "D"\namount = "A"\n'
    for text, problem in (
        ("decimals = 2\n[columns]\ndate = 1", "decimals = 2 is not part of a profile"),
        ("columns = 3", "its columns are a table"),
        ("x =", "it is not TOML"),
        (f"credit = [1]\n{columns}", r"credit: \[1\] is not a list of words"),
        (f"debit = [[1]]\n{columns}", r"debit: \[\[1\]\] is not a list of words"),
        (f'date_format = "%d %d"\n{columns}', "date_format: '%d %d' does not say day"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidCommand, match=rf"bank\.toml: {problem}"):
            read_profile(path)
