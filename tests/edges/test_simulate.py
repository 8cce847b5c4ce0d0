"""`ledger simulate`: what the naive consumer gets wrong, the ledger does not; and nothing is left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg
import pytest
from test_cli import Answer, Program, answer, forking, program

from ledger import InvalidCommand, Ledger
from ledger.cli import picture
from ledger.order.disturb import Cause

__all__ = ["answer", "forking", "program"]

SMALL = ("simulate", "--accounts", "120")


def schemas(url: str) -> list[str]:
    """The schemas that a simulation left."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE '%simulation%'").fetchall()
    return [name for (name,) in rows]


@pytest.mark.parametrize(
    "cause", [Cause.PARTITION_REBALANCE, Cause.RETRY_QUEUE, Cause.PARALLEL_WORKERS, Cause.SEVERAL_PRODUCERS]
)
def test_each_cause_corrupts_the_naive_consumer_alone(answer: Answer, ledger_url: str, cause: Cause) -> None:
    """Whatever gets messages out of order: money is wrong on one side, and nothing on the other."""
    code, facts = answer(*SMALL, "--cause", cause.value)
    assert code == 0
    assert facts["causes"] == [cause.value]
    assert facts["naive"]["accounts_wrong"] > 0
    assert facts["naive"]["cents_wrong"] > 0
    assert facts["naive"]["first_wrong"] is not None
    assert facts["naive"]["noticed"] is None
    assert 0 < facts["ledger"]["noticed"] <= facts["delivered"]
    assert facts["ledger"] | {"seconds": 0, "noticed": 0} == {
        "accounts_wrong": 0,
        "cents_wrong": 0,
        "refused": 0,
        "waiting": 0,
        "first_wrong": None,
        "noticed": 0,
        "seconds": 0,
    }
    assert facts["counters"].get("out_of_order", 0) + facts["counters"].get("duplicates", 0) > 0
    assert (facts["repaired"], facts["naive_after_repair"]) == (facts["naive"]["accounts_wrong"], 0)
    assert facts["sound"]
    assert schemas(ledger_url) == []


def test_lost_messages_are_waited_for_and_named(answer: Answer) -> None:
    """With losses the streams with gaps wait, none is wrong, and as many sequences are named as anybody can know of."""
    code, facts = answer("simulate", "--accounts", "400", "--pairs", "4", "--loss", "--duplicates", "--seed", "7")
    assert code == 0
    assert facts["lost"] > 0
    assert facts["delivered"] > facts["sent"] - facts["lost"]
    assert 0 < facts["missing"] <= facts["lost"]
    assert facts["ledger"]["accounts_wrong"] == 0
    assert 0 < facts["ledger"]["waiting"] <= facts["lost"]
    assert facts["naive_after_repair"] == 0


def test_same_seed_is_the_same_incident(answer: Answer) -> None:
    """What is drawn depends on the seed, and on nothing else."""
    first, again, other = (answer(*SMALL, "--seed", seed)[1] for seed in ("5", "5", "6"))
    for facts in (first, again, other):
        for side in ("naive", "ledger"):
            del facts[side]["seconds"]
        del facts["repair_seconds"]
    assert first == again
    assert first["naive"] != other["naive"]


def test_picture_is_drawn(program: Program, tmp_path: Path) -> None:
    """As SVG or PNG; in words there is a table with both sides."""
    file = tmp_path / "wrong.svg"
    done = program(*SMALL, "--picture", str(file))
    assert done.returncode == 0
    assert "accounts wrong" in done.stdout
    assert "noticed by itself after" in done.stdout
    assert file.read_text(encoding="utf-8").count("<path") > 2


def test_picture_that_cannot_be_drawn_is_refused_before_the_work(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another ending, a folder that is not there, or no matplotlib: said at once, in one line."""
    for name in ("wrong.gif", "nowhere/wrong.svg"):
        done = program(*SMALL, "--picture", str(tmp_path / name))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InvalidCommand, match="ledger\\[charts\\]"):
        picture.check(tmp_path / "wrong.svg")


def test_schema_can_be_kept(program: Program, ledger_url: str) -> None:
    """With --keep the ledger that it made can be looked at."""
    done = program(*SMALL, "--keep")
    (schema,) = schemas(ledger_url)
    assert schema in done.stdout
    with Ledger.connect(ledger_url, schema=schema) as kept:
        assert len(kept.accounts(limit=1000)) == 121
        assert kept.verify().ok


def test_ledger_beside_it_is_left_alone(program: Program, ledger: Ledger) -> None:
    """A simulation writes nothing into the ledger whose database it uses."""
    ledger.open_account("alice", asset="USD", type="liability")
    assert program(*SMALL).returncode == 0
    assert [line.account for line in ledger.accounts()] == ["alice"]
