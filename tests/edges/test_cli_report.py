"""Reports on the command line: tables for people, bytes for auditors, and a hash that anybody can make again."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from test_cli import TIMEOUT_SECONDS, Program, answer, environment, forking, program

from ledger import Ledger

__all__ = ["answer", "environment", "forking", "program"]

SINCE_UNTIL = ["since=2020-01-01T00:00:00Z", "until=2100-01-01T00:00:00Z"]


@pytest.fixture
def told(ledger: Ledger) -> Ledger:
    """A ledger with a transfer of somebody whose name is a formula; all of it is stamped."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability")
    ledger.transfer("12.50 USD", debit="world", credit="alice", reference="order-1", actor="=1+1", idempotency_key="k")
    ledger.transfer("12.50 USD", debit="world", credit="alice", reference="order-1", actor="=1+1", idempotency_key="k")
    ledger.stamp()
    return ledger


def asked(ledger: Ledger, name: str) -> list[str]:
    """The parameters that a report cannot do without."""
    if name == "account-statement":
        return ["account=alice", *SINCE_UNTIL]
    (transfer,) = ledger.transactions(reference="order-1")
    return [f"transaction_id={transfer.transaction_id}"] if name == "transaction" else []


def ran(name: str, *arguments: str, text: str | None = None) -> str:
    """What a program of the machine says."""
    found = shutil.which(name)
    assert found is not None
    return subprocess.run(
        [found, *arguments], input=text, capture_output=True, text=True, check=True, timeout=TIMEOUT_SECONDS
    ).stdout


def test_reports_are_listed(told: Ledger, program: Program) -> None:
    """Without a name: all that there are, with what they ask; for programs with types."""
    shown = program("report").stdout
    assert all(report.name in shown for report in told.reports)
    plain = json.loads(program("report", "--json").stdout)["reports"]
    (statement,) = [each for each in plain if each["name"] == "account-statement"]
    assert statement["parameters"]["required"] == ["account", "since", "until"]
    assert statement["parameters"]["properties"]["account"]["maxLength"] == 128
    assert {"name": "amount", "kind": "amount"} in statement["columns"]


def test_two_processes_write_the_same_bytes(told: Ledger, program: Program, tmp_path: Path) -> None:
    """Every report, twice in processes of their own: body and header are the same, and `sha256sum` says so."""
    for report in told.reports:
        arguments = ["report", report.name, *asked(told, report.name), "--format", "jsonl"]
        for number in (1, 2):
            done = program(*arguments, "--output", str(tmp_path / f"{report.name}.{number}"), "--json")
            assert done.returncode == 0, done.stderr
            header = json.loads(done.stdout)
            assert ran("sha256sum", str(tmp_path / f"{report.name}.{number}")).split()[0] == header["sha256"]
            assert json.loads((tmp_path / f"{report.name}.{number}.header.json").read_text()) == header
        first, second = ((tmp_path / f"{report.name}.{number}").read_bytes() for number in (1, 2))
        assert first == second


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not on this machine")
def test_rows_of_the_json_have_the_hash_of_the_body(told: Ledger, program: Program) -> None:
    """`jq -c .rows[]` gives the body back, byte for byte."""
    for report in told.reports:
        whole = program("report", report.name, *asked(told, report.name), "--json")
        again = ran("sha256sum", text=ran("jq", "-c", ".rows[]", text=whole.stdout))
        assert again.split()[0] == json.loads(whole.stdout)["header"]["sha256"]


@pytest.mark.usefixtures("told")
def test_table_for_people(program: Program) -> None:
    """Rows in a table, and below it what they come to, with pin and hash."""
    done = program("report", "general-journal")
    assert (done.returncode, done.stderr) == (0, "")
    assert "12.50" in done.stdout
    assert "general-journal version 1, at position 5: 2 rows" in done.stdout
    assert "USD: debits 12.50, credits 12.50, 2 entries" in done.stdout
    assert "sha256 " in done.stdout


@pytest.mark.usefixtures("told")
def test_csv_is_harmless_and_its_header_beside_it(program: Program) -> None:
    """CSV to standard output, its header to standard error, so that a pipe gets rows alone."""
    done = program("report", "general-journal", "--format", "csv")
    assert done.stdout.splitlines()[1].endswith(",order-1,'=1+1")
    header = json.loads(done.stderr)
    assert (header["rows"], len(header["csv_sha256"])) == (2, 64)


def test_pinned_to_a_position(told: Ledger, program: Program) -> None:
    """What comes later is not in a report that names a position."""
    before = program("report", "general-journal", "--position", "5", "--json").stdout
    told.transfer("1 USD", debit="world", credit="alice")
    told.stamp()
    assert json.loads(program("report", "general-journal", "--json").stdout)["header"]["rows"] == 4
    after = program("report", "general-journal", "--position", "5", "--json").stdout
    assert json.loads(after)["rows"] == json.loads(before)["rows"]
    known_at = json.loads(before)["header"]["known_at"]
    then = program("report", "general-journal", "--known-as-of", known_at, "--json").stdout
    assert json.loads(then)["header"]["position"] == 5


def test_bad_news_is_an_exit_code(told: Ledger, program: Program, ledger_url: str) -> None:
    """A balance that is not what its transactions come to: exit code 1, and where."""
    assert program("report", "sum-of-transactions").returncode == 0
    with told.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE ledger.balances SET posted_credits = 1 WHERE stream = 'alice'")
    done = program("report", "sum-of-transactions", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["header"]["live"]["projection"]["first"] == ["alice"]
    shown = program("report", "sum-of-transactions")
    assert (shown.returncode, "findings: 0, and as things are now 1" in shown.stdout) == (1, True)
    assert ledger_url


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "there is no 'nonsense'"),
        (["general-journal", "alice"], "not PARAMETER=VALUE; general-journal takes [since=…]"),
        (["general-journal", "since=2020-01-01T00:00:00Z", "since=x"], "given twice"),
        (["general-journal", "--format", "xml"], "none of table, jsonl, json, csv"),
        (["general-journal", "--known-as-of", "today"], "not a time with its zone"),
        (["general-journal", "--position", "99"], "cannot be said yet"),
        (["general-journal", "--output", "/nowhere/at/all"], "No such file"),
    ],
)
@pytest.mark.usefixtures("told")
def test_what_cannot_be_asked_is_one_line(program: Program, arguments: list[str], said: str) -> None:
    """Exit code 2, one line that says what was wrong, and nothing else."""
    done = program("report", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("told")
def test_no_file_is_overwritten_and_none_is_left_half(program: Program, tmp_path: Path) -> None:
    """What is there stays as it is; what fails on the way leaves nothing."""
    there = tmp_path / "journal"
    there.write_text("mine")
    done = program("report", "general-journal", "--output", str(there))
    assert (done.returncode, there.read_text()) == (2, "mine")
    gone = tmp_path / "gone"
    missing = "transaction_id=00000000-0000-0000-0000-000000000000"
    assert program("report", "transaction", missing, "--output", str(gone)).returncode == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("gone")]
    header = tmp_path / "gone.header.json"
    header.write_text("mine")
    done = program("report", "general-journal", "--output", str(gone))
    assert (done.returncode, header.read_text(), gone.exists()) == (2, "mine", False)
    assert f"{header}: it exists" in done.stderr
