"""Reconciliation on the command line: what is shown, how it exits, and who decided."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_cli import Answer, Complaint, Program, answer, complaint, environment, forking, program

from ledger import Ledger

__all__ = ["answer", "complaint", "environment", "forking", "program"]

MARCH = Path(__file__).parent.parent / "statements" / "march.camt.053.001.02.xml"
RUN = ("reconcile", "--account", "bank", "--statement", str(MARCH), "--actor", "ann")


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """A bank account with 1000.00 EUR and one customer's payment in March 2024."""
    ledger.open_account("world", asset="EUR", type="equity")
    ledger.open_account("bank", asset="EUR", type="asset", metadata={"iban": "DE75512108001245126199"})
    for amount, month, reference in (("1000 EUR", 1, "capital"), ("250 EUR", 3, "INV-1001"), ("7 EUR", 3, "[x]")):
        at = datetime(2024, month, 3, tzinfo=UTC)
        ledger.deposit("bank", amount, against="world", effective_at=at, reference=reference)
    return ledger


def shown(program: Program, *arguments: str) -> str:
    """What a command prints for people, with its spaces made one."""
    done = program(*arguments)
    assert done.stderr == ""
    return "\n".join(" ".join(line.split()) for line in done.stdout.splitlines())


@pytest.mark.usefixtures("bank")
def test_differences_are_shown_and_exit_with_1(program: Program, answer: Answer) -> None:
    """A table for people with the equation, JSON with everything for programs, and exit code 1."""
    text = shown(program, *RUN)
    assert "1 reference 250.00 EUR bank#3 2024-03#1" in text
    assert "bank#4 2024-03-03 28 7.00 EUR [x]" in text
    assert "only ours by age: 8-30 days: 1 of 7.00 EUR" in text
    assert "ledger balance 1257.00 EUR" in text
    assert "closing balance of the statement 1288.50 EUR" in text
    assert text.endswith("differences remain")

    code, said = answer(*RUN)
    assert code == 1
    assert said.items() >= {"reconciled": False, "proved": True, "recognised": True, "found": 0}.items()
    assert [term["amount"] for term in said["equation"]] == [
        *("1257.00 EUR", "-7.00 EUR", "38.50 EUR", "0.00 EUR", "0.00 EUR"),
    ]
    assert said["only_theirs"][0]["entry"] == "2024-03#2"
    code, was = answer(*RUN, "--pin", said["pin"])
    assert (code, was["sha256"]) == (1, said["sha256"])


@pytest.mark.usefixtures("bank")
def test_a_broken_file_is_one_line_and_exits_with_2(program: Program, complaint: Complaint, tmp_path: Path) -> None:
    """File, line, path and reference of what is wrong, and what is wrong there; JSON says the same in fields."""
    broken = tmp_path / "broken.xml"
    broken.write_text(MARCH.read_text("utf-8").replace('<Amt Ccy="EUR">97.00', '<Amt Ccy="GBP">97.00'), "utf-8")
    code, line = complaint("reconcile", "--account", "bank", "--statement", str(broken))
    assert code == 2
    assert line.startswith("ledger: broken.xml: line ")
    assert line.rstrip().endswith("Stmt[1]/Ntry[4] (0004), Amt: it is in GBP, and the account is in EUR")
    for arguments in (
        ("reconcile",),
        ("reconcile", "--account", "bank", "--statement", str(tmp_path / "none.xml")),
        ("reconcile", "--account", "bank", "--statement", str(MARCH), "--since", "yesterday"),
        ("reconcile", "--account", "bank", "--statement", str(MARCH), "--sides", "left"),
    ):
        assert complaint(*arguments)[0] == 2
    for command in (("--statement", "/nope.xml"), ("--statement", str(MARCH), "--profile", "/nope.xml")):
        said = complaint("reconcile", "--account", "bank", *command)
        assert said == (2, "ledger: /nope.xml: No such file or directory\n")
    for option, value, name in (("--encoding", "undefined", "encoding"), ("--date-format", "%d %d", "date_format")):
        csv = ("--columns", "date=D,amount=A", option, value)
        code, line = complaint("reconcile", "--account", "bank", "--statement", str(MARCH), *csv)
        assert (code, name in line) == (2, True)
    assert complaint("reconcile", "--account", "none", "--statement", str(MARCH))[0] == 1
    assert program("reconcile", "--help").returncode == 0


def test_csv_with_declared_columns(program: Program, bank: Ledger, tmp_path: Path) -> None:
    """Everything about a CSV is declared, by options or by a profile; reconciled is exit code 0."""
    path = tmp_path / "bank.csv"
    path.write_text("Booked;Amount;Ref\n03.03.2024;250,00;INV-1001\n04.03.2024;7,00;\n")
    run = ("reconcile", "--account", "bank", "--statement", str(path), "--opening", "1000.00", "--closing", "1257.00")
    declared = ("--columns", "date=Booked,amount=Amount,reference=Ref", "--delimiter", ";", "--decimal", "comma")
    form = ("--date-format", "%d.%m.%Y")
    dry = program(*run, *declared, *form, "--dry-run")
    assert (dry.returncode, bank.reconciliation("bank").statements()) == (0, [])
    assert "matched 2, of which 2 would be found now" in dry.stdout
    assert dry.stdout.endswith("reconciled\n")

    profile = tmp_path / "bank.toml"
    profile.write_text(
        'delimiter = ";"\ndecimal = "comma"\ndate_format = "%d.%m.%Y"\n'
        '[columns]\ndate = "Booked"\namount = "Amount"\nreference = "Ref"\n'
    )
    assert program(*run, "--profile", str(profile)).returncode == 0
    assert program(*run, *declared).returncode == 2


@pytest.mark.usefixtures("bank")
def test_people_decide(program: Program, answer: Answer, complaint: Complaint) -> None:
    """Match, unmatch, note and what was decided, with actor and reason; what is decided already is exit code 1."""
    assert program(*RUN).returncode == 1
    who = ("--account", "bank", "--actor", "bob", "--reason", "looked")
    code, said = answer("reconcile", "unmatch", *who, "--decision", "1")
    assert (code, said["decision"]["decision"], said["decision"]["ours"]) == (0, "unmatch", ["bank#3"])
    code, line = complaint("reconcile", "unmatch", *who, "--decision", "1")
    assert (code, "see decision 2" in line) == (1, True)
    done = program("reconcile", "match", *who, "--ours", "bank#3", "--theirs", "2024-03#1")
    assert done.stdout == "decision 3: match of 250.00 EUR by bob\n"
    assert complaint("reconcile", "match", *who, "--ours", "bank#3", "--theirs", "2024-03#1")[0] == 1
    assert complaint("reconcile", "match", *who, "--ours", "bank#4", "--theirs", "2024-03#2")[0] == 2
    assert program("reconcile", "note", *who, "--ours", "bank#4").returncode == 0

    assert "4 note 0.00 EUR bank#4 bob" in shown(program, "reconcile", "decisions", "--account", "bank")
    code, said = answer("reconcile", "decisions", "--account", "bank", "--after", "1")
    assert [(each["number"], each["decision"], each["actor"], each["reason"]) for each in said["decisions"]] == [
        (2, "unmatch", "bob", "looked"),
        (3, "match", "bob", "looked"),
        (4, "note", "bob", "looked"),
    ]
