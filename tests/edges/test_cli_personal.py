"""Personal data on the command line: what is shown of it, and how somebody is forgotten."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress

import pytest
from test_cli import TIMEOUT_SECONDS, Answer, Program, answer, complaint, ended, environment, forking, program

from ledger import Ledger
from ledger.personal import shortened

__all__ = ["answer", "complaint", "environment", "forking", "program"]

FORGET = ("forget", "customer-17", "--actor", "dpo", "--reason", "asked on Monday")


@pytest.fixture
def field(ledger: Ledger) -> str:
    """The name of a customer, encrypted, in a ledger where an account and a transfer have it."""
    field = ledger.personal_data().encrypt("customer-17", "Erika [Mustermann]")
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("erika", asset="USD", type="liability", metadata={"name": field})
    ledger.transfer("1 USD", debit="world", credit="erika", metadata={"for": field, "n": 1}, reference=field)
    return field


def lines(program: Program, *arguments: str) -> list[str]:
    """What a command prints for people."""
    done = program(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_what_is_shown_of_a_field(program: Program, answer: Answer, field: str) -> None:
    """Encrypted it is shortened, revealed on request only, and shredded once its subject is forgotten."""
    assert f"metadata for {shortened(field)}" in lines(program, "transaction", "erika#2")
    assert "metadata for Erika [Mustermann]" in lines(program, "transaction", "erika#2", "--reveal")
    assert f"version 1 metadata name: {shortened(field)}" in lines(program, "history", "erika")
    assert "version 1 metadata name: Erika [Mustermann]" in lines(program, "history", "erika", "--reveal")
    assert any("Erika" in line for line in lines(program, "transaction", "--reference", field, "--reveal"))
    for asked in (["transaction", "erika#2"], ["history", "erika"], ["transaction", "--metadata", f"for={field}"]):
        assert answer(*asked)[1]["personal"] == {field: {"state": "encrypted", "text": None}}
        assert answer(*asked, "--reveal")[1]["personal"] == {field: {"state": "revealed", "text": "Erika [Mustermann]"}}

    before = answer("history", "erika")[1]
    assert program(*FORGET, "--yes").returncode == 0

    for reveal in ([], ["--reveal"]):
        assert "metadata for shredded" in lines(program, "transaction", "erika#2", *reveal)
        assert "reference shredded" in lines(program, "transaction", "erika#2", *reveal)
        assert "version 1 metadata name: shredded" in lines(program, "history", "erika", *reveal)
        after = answer("history", "erika", *reveal)[1]
        assert after == {**before, "personal": {field: {"state": "shredded", "text": None}}}
    assert "subjects forgotten, and shredded: 1" in lines(program, "verify")
    code, report = answer("verify")
    assert (code, report["ok"], report["shredded"]) == (0, True, 1)


def test_forgetting_says_how_it_ended(program: Program, answer: Answer, field: str, ledger: Ledger) -> None:
    """Done once; the second time it says when and why it was done; and who is not known is exit code 1."""
    code, said = answer(*FORGET, "--yes")
    assert code == 0
    assert said["forgotten"].items() >= {"subject": "customer-17", "actor": "dpo", "before": False}.items()
    assert str(ledger.personal_data().reveal(field)) == "shredded"

    again = program("forget", "customer-17", "--actor", "x", "--reason", "y", "--yes")
    assert again.returncode == 0
    assert again.stdout.startswith("customer-17 was forgotten before: shredded ")
    assert again.stdout.endswith(" UTC by dpo (asked on Monday)\n")
    code, said = answer("forget", "customer-71", "--actor", "x", "--reason", "y", "--yes")
    assert (code, said["error"]["code"]) == (1, "unknown_subject")


@pytest.mark.parametrize(
    "arguments", [FORGET, FORGET[:4], (*FORGET[:2], "--reason", "r", "--yes"), (*FORGET[:3], "", *FORGET[4:], "--yes")]
)
def test_nothing_is_destroyed_unasked(program: Program, field: str, ledger: Ledger, arguments: tuple[str, ...]) -> None:
    """Without a terminal to ask on, without actor or reason, nothing happens and the exit code is 2."""
    done = program(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ledger: ")
    assert ledger.personal_data().reveal(field) == "Erika [Mustermann]"


@pytest.mark.parametrize(("said", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_a_person_is_asked(ledger_url: str, ledger: Ledger, field: str, said: str, code: int) -> None:
    """On a terminal it asks, and only yes is yes; the answer on standard output stays clean."""
    primary, terminal = pty.openpty()
    command = [sys.executable, "-m", "ledger", *FORGET, "--json"]
    variables = environment(LEDGER_DATABASE_URL=ledger_url, TERM="xterm")
    process = subprocess.Popen(command, env=variables, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal)
    with ended(process):
        os.close(terminal)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(primary, 65_536)
        os.write(primary, said.encode() + b"\n")
        answered, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        with suppress(OSError):
            while more := os.read(primary, 65_536):
                shown += more
        os.close(primary)

    assert b"Destroy the key of 'customer-17', for ever?" in shown
    assert process.returncode == code
    assert (json.loads(answered)["forgotten"] is None) == (code == 1)
    assert str(ledger.personal_data().reveal(field)) == ("shredded" if code == 0 else "Erika [Mustermann]")
