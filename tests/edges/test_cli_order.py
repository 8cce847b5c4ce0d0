"""The inbox from the command line: the incident as JSON lines, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import Answer, Program, answer, forking, program

from ledger import Ledger
from ledger.cli.letters import Reason
from ledger.order.cursor import Why
from ledger.receiving import message_schemas

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
    assert [letter["data"]["body"] for letter in letters["dead_letters"]] == ["{broken\n"]
    (letter,) = letters["dead_letters"]
    assert program("dead-letters", "discard", letter["dead_letter_id"], "--source", "bank").returncode == 0
    assert answer("dead-letters", "list", "--source", "bank")[1]["dead_letters"] == []
    file = lines(tmp_path / "rest.jsonl", message(3, "deposit", "1 USD"), message(4, "deposit", "1 USD"))
    assert answer("ingest", file, "--source", "bank", "--format", "seed")[0] == 0
    assert answer("inbox", "gaps", "--source", "bank") == (0, {"source": "bank", "gaps": []})
    assert answer("inbox", "stats", "--source", "bank")[1]["counters"]["processed"] == 5


def test_desk_of_the_inbox(bank: Ledger, program: Program, answer: Answer, tmp_path: Path) -> None:
    """Parked streams, what is missing of them, and a person who goes on without: each with its exit code."""
    file = lines(tmp_path / "m.jsonl", message(1, "deposit", "9 USD"), message(3, "withdraw", "5 USD"))
    source = ("--source", "bank", "--max-wait", "0")
    assert answer("ingest", file, *source, "--format", "seed")[0] == 0
    assert answer("inbox", "tick", *source)[0] == 0
    code, found = answer("inbox", "parked", *source)
    assert (code, [gap["missing"] for gap in found["gaps"]]) == (1, [[[2, 2]]])
    code, found = answer("inbox", "completeness", "--source", "bank", "--since", "2026-01-01T00:00:00Z")
    assert (code, found["streams"], found["arrived"]) == (1, 1, 2)
    assert found["incomplete"][0]["missing"] == [[2, 2]]
    code, found = answer("inbox", "release", "alice", *source, "--actor", "ann", "--note", "lost")
    assert (code, found["processed"]) == (0, 1)
    assert answer("inbox", "parked", *source) == (0, {"source": "bank", "gaps": []})
    assert str(bank.balance("alice").posted) == "4.00 USD"
    refused = program("inbox", "release", "alice", *source)
    assert (refused.returncode, "nothing of 'alice' is missing" in refused.stderr) == (2, True)
    assert program("inbox", "completeness", *source, "--since", "yesterday").returncode == 2


def test_replay_is_a_dry_run_unless_applied(bank: Ledger, program: Program, answer: Answer, tmp_path: Path) -> None:
    """What would come out otherwise is reported with exit code 1; it lasts with --apply, and then is the same again."""
    file = lines(tmp_path / "m.jsonl", message(1, "withdraw", "5 USD"), message(2, "deposit", "9 USD"))
    assert answer("ingest", file, "--source", "bank", "--format", "seed")[0] == 1
    replay = ("inbox", "replay", "--source", "bank", "--rejected")
    code, tried = answer(*replay)
    assert (code, tried["applied"], [change["sequence"] for change in tried["changes"]]) == (1, False, [1])
    assert str(bank.balance("alice").posted) == "9.00 USD"
    assert answer(*replay, "--apply")[0] == 1
    assert str(bank.balance("alice").posted) == "4.00 USD"
    assert answer(*replay)[0] == 0
    assert "0 came out otherwise" in program("inbox", "replay", "--source", "bank").stdout
    assert answer("inbox", "forget", "--source", "bank", "--keep-days", "0") == (0, {"forgotten": 2})


@pytest.mark.usefixtures("bank")
def test_dead_letters_in_bulk(program: Program, answer: Answer, tmp_path: Path) -> None:
    """They are shown, exported so that `ingest` reads them, and decided about together, a dry run first."""
    bad = [{**message(n, "deposit", "1 USD"), "data": "nothing"} for n in (1, 2)]
    source = ("--source", "bank", "--attempts", "1")
    file = lines(tmp_path / "m.jsonl", *bad, "{")
    assert program("ingest", file, *source, "--format", "seed").returncode == 1
    listed = answer("dead-letters", "list", *source, "--why", "failed", "--stream", "alice")[1]["dead_letters"]
    assert [letter["sequence"] for letter in sorted(listed, key=lambda letter: letter["sequence"])] == [1, 2]
    name = listed[0]["dead_letter_id"]
    assert answer("dead-letters", "show", name, *source)[1]["message"]["data"] == "nothing"
    exported = program("dead-letters", "export", *source, "--why", "failed", "--messages").stdout.splitlines()
    assert {json.loads(line)["data"] for line in exported} == {"nothing"}
    both = ("--all", "--why", "failed", "--actor", "ann", "--note", "a test")
    code, dry = answer("dead-letters", "discard", *source, *both, "--dry-run")
    assert (code, len(dry["decided"]), dry["dry_run"]) == (0, 2, True)
    assert len(answer("dead-letters", "list", *source)[1]["dead_letters"]) == 3
    code, tried = answer("dead-letters", "requeue", *source, *both)
    assert (code, len(tried["failed"])) == (1, 2)
    assert answer("dead-letters", "discard", *source, *both)[0] == 0
    left = answer("dead-letters", "list", *source)[1]["dead_letters"]
    assert [letter["why"] for letter in left] == ["undecodable"]
    shown = answer("dead-letters", "show", name, *source)[1]
    assert (shown["state"], shown["decisions"][-1]["note"]) == ("discarded", "a test")
    assert program("dead-letters", "discard", *source).returncode == 2
    assert program("dead-letters", "discard", name, *source, "--all").returncode == 2
    assert program("dead-letters", "show", "nonsense", *source).returncode == 2


def test_dead_letters_of_a_stream_go_in_order(bank: Ledger, program: Program, answer: Answer, tmp_path: Path) -> None:
    """However their ids fall, what is requeued together takes effect by its sequence: no withdrawal overtakes."""
    kinds = ("deposit", "withdraw")
    late = [message(n, kinds[n % 2], "5 USD") for n in range(20, 30)]
    source = ("--source", "bank", "--start", "100")
    assert program("ingest", lines(tmp_path / "m.jsonl", *late), *source, "--format", "seed").returncode == 1
    code, done = answer("dead-letters", "requeue", *source, "--all", "--why", "before_start")
    assert (code, done["processed"]) == (0, len(late))
    assert answer("inbox", "stats", *source)[1]["counters"]["rejected"] == 0
    amounts = [str(event.amount) for event in bank.history("alice") if event.amount is not None]
    assert len(amounts) == len(late)


@pytest.mark.usefixtures("bank")
def test_dead_letters_are_listed_to_be_decided_about(program: Program, tmp_path: Path) -> None:
    """An id can be copied from a table that is narrow, and a reason that there is not is refused by its name."""
    narrow = ("--source", "bank", "--attempts", "1")
    bad = {**message(1, "deposit", "1 USD"), "data": "nothing"}
    assert program("ingest", lines(tmp_path / "m.jsonl", bad, "{"), *narrow, "--format", "seed").returncode == 1
    listed = json.loads(program("dead-letters", "list", *narrow, "--json").stdout)["dead_letters"]
    shown = program("dead-letters", "list", *narrow).stdout
    assert [letter["dead_letter_id"] in shown for letter in listed] == [True, True]
    refused = program("dead-letters", "list", *narrow, "--why", "late")
    assert (refused.returncode, "before_start" in refused.stderr) == (2, True)
    (unreadable,) = [letter["dead_letter_id"] for letter in listed if letter["why"] == "undecodable"]
    refused = program("dead-letters", "requeue", unreadable, *narrow)
    assert (refused.returncode, "sent again" in refused.stdout) == (1, True)


def test_reasons_are_those_of_the_inbox() -> None:
    """Whatever a message can be a dead letter for can be asked for."""
    assert {reason.value for reason in Reason} == {why.value for why in Why} - {"duplicate"} | {"failed", "undecodable"}


@pytest.mark.usefixtures("bank")
def test_what_finds_no_room_is_told(program: Program, answer: Answer, tmp_path: Path) -> None:
    """Messages that are set aside are dead letters, and so the exit code is 1."""
    file = lines(tmp_path / "m.jsonl", *(message(n, "deposit", "1 USD") for n in (2, 3, 4)))
    code, summary = answer("ingest", file, "--source", "bank", "--format", "seed", "--max-buffered", "2")
    assert (code, summary["set_aside"], summary["held"]) == (1, 1, 2)
    assert program("dead-letters", "list", "--source", "bank", "--why", "no_room").stdout.count("alice") == 1


@pytest.mark.usefixtures("bank")
def test_stream_whose_message_fails_is_shown(program: Program, answer: Answer, tmp_path: Path) -> None:
    """It waits as one with a gap does: gaps say so with the error, and exit code 1; tick tells what failed."""
    bad = {**message(1, "deposit", "1 USD"), "data": "nothing"}
    file = lines(tmp_path / "m.jsonl", bad, message(2, "deposit", "1 USD"))
    assert answer("ingest", file, "--source", "bank", "--format", "seed")[0] == 1
    code, found = answer("inbox", "gaps", "--source", "bank")
    (gap,) = found["gaps"]
    assert (code, gap["stream"], gap["status"], gap["missing"]) == (1, "alice", "retrying", [])
    assert "data of a ledger.deposit" in gap["error"]
    stats = answer("inbox", "stats", "--source", "bank")[1]
    assert (stats["retrying"], stats["parked"], stats["counters"]["duplicates"]) == (1, 0, 0)
    ticked = program("inbox", "tick", "--source", "bank", "--attempts", "1")
    assert ticked.returncode == 0 or "alice alice-1: TypeError" in ticked.stdout


def test_batch_over_several_lines_is_read(bank: Ledger, answer: Answer, tmp_path: Path) -> None:
    """A CloudEvents batch may be written as people write JSON; a batch a line may be followed by more."""
    events = [
        {
            "specversion": "1.0",
            "source": "bank",
            "id": f"m{n}",
            "type": "ledger.deposit",
            "subject": "alice",
            "sequence": f"{n:05}",
            "data": {"account": "alice", "amount": "1 USD", "against": "world"},
        }
        for n in range(1, 5)
    ]
    file = lines(tmp_path / "batch.json", json.dumps(events[:2], indent=2))
    assert answer("ingest", file, "--source", "bank")[1]["processed"] == 2
    file = lines(tmp_path / "batches.jsonl", json.dumps(events[2:3]), json.dumps(events[3]))
    assert answer("ingest", file, "--source", "bank")[1]["processed"] == 2
    assert str(bank.balance("alice").posted) == "4.00 USD"


def test_json_schema_of_every_type_is_printed(program: Program) -> None:
    """The types of messages and their data, without a database."""
    schemas = json.loads(program("ingest", "--json-schema").stdout)
    assert json.loads(program("ingest", "--schema").stdout) == schemas
    assert schemas["ledger.deposit"]["required"] == ["account", "amount", "against"]
    assert "hold_key" in schemas["ledger.capture"]["properties"]
    assert len(schemas) == 18


def test_manual_names_every_type_and_field() -> None:
    """The table of message types is complete."""
    table = (Path(__file__).parents[2] / "docs" / "messages.md").read_text(encoding="utf-8")
    table = table[table.index("| type |") : table.index("<!-- end of types -->")]
    for name, schema in message_schemas().items():
        (line,) = [line for line in table.splitlines() if f"`{name}`" in line]
        own = set(schema["properties"]) - COMMON
        assert {field for field in own if f"`{field}`" not in line and f"`{field}?`" not in line} == set(), name


COMMON = {
    *("actor", "causation_id", "correlation_id", "effective_at", "expected_versions", "idempotency_key", "metadata"),
    "reference",
}
