"""`ledger demo` tells the truth: its facts are in the database, and its claims can fail."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import pytest

from ledger import Ledger
from ledger.cli.demo import Story, stage
from ledger.cli.incident import ARRIVED, RIGHT, SENT, Incident

Demo: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]

TIMEOUT_SECONDS = 60


@pytest.fixture
def demo(ledger_url: str) -> Demo:
    """Run `ledger demo` on the test's database."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
        return subprocess.run(
            [sys.executable, "-m", "ledger", "demo", *arguments],
            env=kept | {"COLUMNS": "80", "LEDGER_DATABASE_URL": ledger_url},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    return run


@pytest.fixture
def stage_ledger(ledger_url: str) -> Iterator[Ledger]:
    """A ledger as the demo uses one: in a schema of its own."""
    with Ledger.connect(ledger_url, schema="ledger_demo") as ledger:
        ledger.migrate()
        yield ledger


def test_facts_of_the_incident(demo: Demo) -> None:
    """The naive consumer ends at 1000, the ledger at 200, and every claim holds."""
    done = demo("--json")

    facts = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [step["balance"] for step in facts["naive"]["in_order"]] == ["1000.00 USD", "200.00 USD"]
    assert [step["balance"] for step in facts["naive"]["swapped"]] == ["0.00 USD", "1000.00 USD"]
    assert [(step["message"], step["version"], step["balance"]) for step in facts["ledger"]] == [
        ("B", 1, "0.00 USD"),
        ("A", 2, "1000.00 USD"),
        ("B", 3, "200.00 USD"),
        ("B", 3, "200.00 USD"),
        ("A", 3, "200.00 USD"),
    ]
    assert (facts["repair"]["claimed"], facts["repair"]["after"]["posted"]) == ("5200.00 USD", "201.00 USD")
    assert [refusal["sqlstate"] for refusal in facts["refused"]] == ["LD001", "LD001"]
    assert facts["verify"]["ok"]
    assert set(facts["claims"].values()) == {True}
    assert facts["seconds"] < 20


def test_facts_are_in_the_database(demo: Demo, stage_ledger: Ledger, ledger_url: str) -> None:
    """What the demo says about its accounts, the database says too; the application's ledger is untouched."""
    facts = json.loads(demo("--json").stdout)

    alice = facts["accounts"]["alice"]
    assert str(stage_ledger.balance(alice).posted) == facts["repair"]["after"]["posted"]
    assert [event.effective_at.microsecond for event in stage_ledger.history(alice)[1:3]] == [0, 50_000]
    with stage_ledger.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT stream FROM ledger_demo.projection_repairs").fetchall()
        left = connection.exec_driver_sql("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'naive%%'").scalar_one()
    assert (rows, left) == ([(alice,)], 0)
    with Ledger.connect(ledger_url) as ledger:
        assert ledger.accounts() == []


def test_the_story_fits_a_terminal(demo: Demo) -> None:
    """It can be run again and again, is at most 80 columns wide and a few screens long, and ends with what to try."""
    assert demo().returncode == 0
    done = demo()

    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, lines)) <= 80
    assert len(lines) < 80
    assert "7 of 7 claims came true" in done.stdout
    (alice,) = set(re.findall(r"alice-[0-9a-f]{6}", done.stdout))
    assert any(f"ledger history {alice} --schema ledger_demo" in line for line in lines)
    assert "append-only: UPDATE is refused" in done.stdout


def test_a_naive_consumer_depends_on_order(stage_ledger: Ledger) -> None:
    """The same consumer is right on ordered input and wrong on swapped input: it is ordinary, not rigged."""
    incident = Incident(stage_ledger)

    assert incident.naive(SENT)[-1].balance == RIGHT
    assert str(incident.naive(ARRIVED)[-1].balance) == "1000.00 USD"


def test_without_guards_the_claim_fails_and_nothing_is_harmed(stage_ledger: Ledger) -> None:
    """Where the database lets an event be edited, the demo says so, and takes the edit back."""
    with stage_ledger.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE ledger_demo.events DISABLE TRIGGER USER")

    story = stage(Incident(stage_ledger))

    assert failed(story) == ["the database refuses to change an event"]
    assert story.report.ok


@pytest.mark.parametrize(
    ("field", "claim"),
    [
        ("ordered", "the naive consumer is right when messages come in order"),
        ("swapped", "the naive consumer is wrong when they come swapped"),
        ("kept", "the ledger is right when they come swapped"),
    ],
)
def test_claims_follow_from_what_was_seen(stage_ledger: Ledger, field: str, claim: str) -> None:
    """Given what another consumer did, the claim about this one does not hold."""
    story = stage(Incident(stage_ledger))
    assert failed(story) == []
    other: dict[str, Any] = {field: story.ordered if field == "swapped" else story.swapped}

    assert claim in failed(replace(story, **other))


def test_a_repair_that_is_not_reported_fails_its_claim(stage_ledger: Ledger) -> None:
    """Silent self-healing would not pass."""
    story = stage(Incident(stage_ledger))

    silent = replace(story, repair=replace(story.repair, reported=[]))

    assert failed(silent) == ["a changed balance is noticed, mended and reported by the next write"]


def failed(story: Story) -> list[str]:
    """The claims that did not come true."""
    return [claim for claim, came_true in story.claims.items() if not came_true]
