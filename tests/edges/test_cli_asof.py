"""Questions in two times on the command line: what is shown, in JSON and in sentences, and what is refused."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest
from test_cli import Program, answer, environment, forking, program

from ledger import Ledger

__all__ = ["answer", "environment", "forking", "program"]


@pytest.fixture
def dated(ledger: Ledger) -> datetime:
    """A ledger whose first six events are stamped; a backdated transfer of 5.00 USD is not.  When the first was."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability")
    ledger.transfer("12.50 USD", debit="world", credit="alice", reference="order-1")
    while ledger.stamp():
        continue
    first = ledger.history("alice", limit=2)[1].recorded_at
    ledger.transfer("5 USD", debit="world", credit="alice", effective_at=first - timedelta(days=2), reference="late")
    return first


def test_balance_as_of(program: Program, dated: datetime) -> None:
    """Each of the two times counts, in whichever way it is written; the answer says what it is pinned to."""
    before = (dated - timedelta(days=1)).isoformat()

    def posted(*options: str) -> tuple[str, int | None]:
        plain = json.loads(program("balance", "alice", "--json", *options).stdout)
        return plain["posted"], plain["position"]

    assert posted() == ("17.50 USD", None)
    assert posted("--effective-as-of", before) == ("5.00 USD", None)
    assert posted("--known-as-of", "5") == ("12.50 USD", 5)
    assert posted("--known-as-of", dated.isoformat()) == ("12.50 USD", 5)
    assert posted("--known-as-of", "5", "--effective-as-of", before) == ("0.00 USD", 5)
    assert "known at position 5 of the feed" in program("balance", "alice", "--known-as-of", "5").stdout


def test_history_and_trial_balance_as_of(program: Program, dated: datetime) -> None:
    """They leave out what was not known, and what did not count."""
    plain = json.loads(program("history", "alice", "--known-as-of", "5", "--json").stdout)
    assert ([event["version"] for event in plain["events"]], plain["position"]) == ([1, 2], 5)
    trial = json.loads(program("trial-balance", "--known-as-of", "5", "--json").stdout)
    assert (trial["lines"][0]["debits"], trial["balanced"], trial["position"]) == ("12.50 USD", True, 5)
    before = (dated - timedelta(days=1)).isoformat()
    early = json.loads(program("history", "alice", "--effective-as-of", before, "--json").stdout)
    assert [event["version"] for event in early["events"]] == [3]
    early = json.loads(program("trial-balance", "--effective-as-of", before, "--json").stdout)
    assert [line["debits"] for line in early["lines"]] == ["5.00 USD", "0.00 USD"]
    assert "known at position 5 of the feed" in program("trial-balance", "--known-as-of", "5").stdout


def test_statement(program: Program, dated: datetime) -> None:
    """An opening, a line for each entry in the order in which they count, a closing; with --json an object a line."""
    period = ("--since", (dated - timedelta(days=9)).isoformat(), "--until", (dated + timedelta(days=1)).isoformat())
    shown = program("statement", "alice", *period).stdout.splitlines()
    assert [line.split()[0] for line in shown[1:]][0::3] == ["opening", "closing"]
    assert shown[2].endswith("5.00 USD             5.00 USD  late")
    assert shown[3].endswith("12.50 USD            17.50 USD  order-1")
    about, *lines, end = map(json.loads, program("statement", "alice", *period, "--json").stdout.splitlines())
    assert (about["opening"], about["closing"], about["position"]) == ("0.00 USD", "17.50 USD", None)
    assert [(line["amount"], line["balance"], line["reference"]) for line in lines] == [
        ("5.00 USD", "5.00 USD", "late"),
        ("12.50 USD", "17.50 USD", "order-1"),
    ]
    assert end == {"lines": 2, "balanced": True}
    pinned = program("statement", "alice", *period, "--known-as-of", "5").stdout.splitlines()
    assert (len(pinned), pinned[-1]) == (5, "known at position 5 of the feed")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("balance", "alice", "--known-as-of", "6"), "not_yet_known"),
        (("balance", "alice", "--known-as-of", "2999-01-01T00:00:00Z"), "not_yet_known"),
        (("balance", "alice", "--known-as-of", "yesterday"), "invalid_command"),
        (("balance", "alice", "--effective-as-of", "2026-01-01"), "invalid_command"),
        (("balance", "alice", "--version", "1", "--known-as-of", "5"), "invalid_command"),
        (
            ("statement", "alice", "--since", "2026-01-02T00:00:00Z", "--until", "2026-01-01T00:00:00Z"),
            "invalid_command",
        ),
        (("statement", "alice", "--since", "2026-01-01T00:00:00Z"), None),
    ],
)
@pytest.mark.usefixtures("dated")
def test_what_cannot_be_asked_is_refused(program: Program, arguments: tuple[str, ...], code: str | None) -> None:
    """One line, exit code 2, and a code for programs."""
    refused = program(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Traceback" not in refused.stderr
    if code is not None:
        assert len(refused.stderr.splitlines()) == 1
        assert json.loads(program(*arguments, "--json").stdout)["error"]["code"] == code
