"""Exports on the command line: into a new file or to standard output, and what is wrong in one line."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from oracles import BEANCOUNT, HLEDGER
from test_cli import Program, answer, environment, forking, program

from ledger import Ledger

__all__ = ["answer", "environment", "forking", "program"]


@pytest.fixture
def stamped(ledger: Ledger) -> int:
    """A ledger whose feed has a few transactions; its last position."""
    ledger.open_account("world", asset="USD", type="equity", stripes=2)
    ledger.open_account("alice", asset="USD", type="liability")
    ledger.transfer("10.00 USD", debit="world", credit="alice", reference="=1+1", actor="bob")
    ledger.reverse(ledger.transfer("3.00 USD", debit="alice", credit="world").transaction_id)
    ledger.stamp()
    return ledger.feed_head()


def test_files_are_written_and_told_of(stamped: int, ledger: Ledger, program: Program, tmp_path: Path) -> None:
    """Each format goes into a new file, and the answer says up to where, how much, and its hash."""
    for kind in ("hledger", "beancount", "csv", "parquet"):
        file = tmp_path / kind
        done = program("export", kind, "--out", str(file), "--json")
        assert (done.returncode, done.stderr) == (0, "")
        said = json.loads(done.stdout)
        assert said == {
            "format": kind,
            "ledger_id": str(ledger.ledger_id),
            "position": stamped,
            "accounts": 2,
            "transactions": 3,
            "entries": 6,
            "sha256": sha256(file.read_bytes()).hexdigest(),
            "file": str(file),
        }
    done = program("export", "csv", "--out", str(tmp_path / "again"))
    assert done.stdout.startswith(f"written: 3 transactions of 2 accounts, up to position {stamped}, in ")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "csv").read_bytes()
    assert BEANCOUNT.problem(tmp_path / "beancount") == ""


def test_hledger_takes_the_file(stamped: int, program: Program, tmp_path: Path) -> None:
    """What is written for hledger adds up there."""
    assert stamped
    assert program("export", "hledger", "--out", str(tmp_path / "journal")).returncode == 0
    assert HLEDGER.problem(tmp_path / "journal") == ""


def test_standard_output_has_the_export_and_nothing_else(stamped: int, program: Program) -> None:
    """Without a file the export itself is printed, of an earlier position too."""
    done = program("export", "csv")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [*csv.DictReader(io.StringIO(done.stdout))]
    assert len(rows) == 6
    assert {row["up_to_position"] for row in rows} == {str(stamped)}
    assert [row["reference"] for row in rows[:2]] == ["'=1+1"] * 2

    earlier = program("export", "csv", "--out", "-", "--position", str(stamped - 2)).stdout
    assert len([*csv.DictReader(io.StringIO(earlier))]) == 4
    assert program("export", "hledger", "--position", "0").stdout.count("position 0 ") == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("xls",), "'xls' is not one of 'hledger', 'beancount', 'csv', 'parquet'"),
        ((), "Missing argument 'FORMAT'"),
        (("parquet",), "standard output is not for parquet"),
        (("csv", "--position", "9999"), "9999 is not from 0 to"),
        (("csv", "--position", "11", "--out", "new"), "11 lies within transaction"),
        (("csv", "--out", "there"), "it exists; an export is written into a new file"),
        (("csv", "--out", "none/file"), "No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: tuple[str, ...], problem: str, stamped: int, program: Program, tmp_path: Path
) -> None:
    """What is wrong is said in one line, or one object, with exit code 2; nothing is written."""
    assert stamped == 12
    (tmp_path / "there").write_text("mine")
    given = [str(tmp_path / each) if each in ("new", "there", "none/file") else each for each in arguments]
    before = sorted(path.name for path in tmp_path.iterdir())

    done = program("export", *given)
    plain = program("export", *given, "--json")

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert problem in done.stderr
    assert (plain.returncode, plain.stderr) == (2, "")
    assert set(json.loads(plain.stdout)) == {"error"}
    assert {path.name for path in tmp_path.iterdir()} - {"stdin", "stdout", "stderr"} == {*before}


def test_json_needs_a_file(stamped: int, program: Program) -> None:
    """With --json standard output is for the answer, so that the export needs a file."""
    assert stamped
    done = program("export", "csv", "--json")

    assert (done.returncode, done.stderr) == (2, "")
    assert "--out FILE" in json.loads(done.stdout)["error"]["message"]


def test_who_stops_reading_is_no_error(stamped: int, ledger: Ledger, ledger_url: str) -> None:
    """Where nobody reads what is printed any more, the program ends as others do then, without a word."""
    for _ in range(30):
        ledger.transfer("1.00 USD", debit="world", credit="alice")
    assert ledger.stamp() > stamped
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ledger", "export", "csv"]
    environ = environment(LEDGER_DATABASE_URL=ledger_url)
    done = subprocess.run(command, env=environ, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)

    assert (done.returncode, done.stderr) == (141, b"")


def test_progress_is_shown_on_a_terminal(stamped: int, ledger_url: str, tmp_path: Path) -> None:
    """On a terminal there is a bar; what is no terminal stays empty."""
    primary, terminal = pty.openpty()
    command = [sys.executable, "-m", "ledger", "export", "csv", "--out", str(tmp_path / "export.csv")]
    with open(terminal, "wb", buffering=0) as screen:  # noqa: PTH123  (of a descriptor)
        done = subprocess.run(
            command, env=environment(LEDGER_DATABASE_URL=ledger_url), stdout=subprocess.PIPE, stderr=screen, check=False
        )
    shown = os.read(primary, 1 << 16)
    os.close(primary)

    assert done.returncode == 0
    assert b"events" in shown
    assert f"/{stamped}".encode() in shown
