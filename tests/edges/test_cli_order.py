"""The inbox from the command line: the incident as JSON lines, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import Answer, Program, answer, forking, program

from ledger import Ledger

__all__ = ["answer", "forking", "program"]


def message(number: int, kind: str, amount: str, stream: str = "alice") -> dict[str, Any]:
    """A message in the shape of the seed."""
    return {
        "id": f"{stream}-{number}",
        "sequenceNumber": number,
        "entityId": stream,
        "timestamp": "2022-01-01T00:00:00Z",
        "type": f"ledger.{kind}",
        "data": {"account": stream, "amount": amount, "against": "world"},
    }


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """A customer who may not overdraw."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability", min_balance=0)
    return ledger


def lines(path: Path, *messages: dict[str, Any] | str) -> str:
    """A file of JSON lines."""
    texts = [each if isinstance(each, str) else json.dumps(each) for each in messages]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


def test_the_incident_from_the_command_line(
    bank: Ledger,
    program: Program,
    answer: Answer,
    tmp_path: Path,
) -> None:
    """The withdrawal comes first in the file; the balance is 200, and exit codes and reports say what is missing."""
    file = lines(
        tmp_path / "m.jsonl",
        message(2, "withdraw", "800 USD"),
        "{broken",
        message(1, "deposit", "1000 USD"),
        message(1, "deposit", "1000 USD"),
        message(5, "deposit", "1 USD"),
    )
    done = program("ingest", file, "--source", "bank", "--format", "seed", "--json")
    assert (done.returncode, done.stderr.partition(": body")[0]) == (1, "ledger: line 2")
    summary = json.loads(done.stdout)
    assert {name: summary[name] for name in ("received", "processed", "duplicates", "held", "undecodable")} == {
        "received": 4,
        "processed": 2,
        "duplicates": 1,
        "held": 1,
        "undecodable": 1,
    }
    assert str(bank.balance("alice").posted) == "200.00 USD"
    code, gaps = answer("inbox", "gaps", "--source", "bank")
    assert (code, gaps["gaps"][0]["missing"]) == (1, [[3, 4]])
    code, letters = answer("dead-letters", "list", "--source", "bank")
    assert [letter["data"]["line"] for letter in letters["dead_letters"]] == ["{broken\n"]
    (letter,) = letters["dead_letters"]
    assert program("dead-letters", "discard", letter["dead_letter_id"], "--source", "bank").returncode == 0
    assert answer("dead-letters", "list", "--source", "bank")[1]["dead_letters"] == []
    file = lines(tmp_path / "rest.jsonl", message(3, "deposit", "1 USD"), message(4, "deposit", "1 USD"))
    assert answer("ingest", file, "--source", "bank", "--format", "seed")[0] == 0
    assert answer("inbox", "gaps", "--source", "bank") == (0, {"source": "bank", "gaps": []})
    assert answer("inbox", "stats", "--source", "bank")[1]["counters"]["processed"] == 5
