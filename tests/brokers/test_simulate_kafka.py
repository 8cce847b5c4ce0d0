"""`ledger simulate --via kafka`: the same trouble for two groups on one topic, of which one is wrong in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, LiteralString

import psycopg
import pytest
from apache_kafka import ApacheKafka

from ledger import Ledger

WAIT_SECONDS = 400
LEFT: LiteralString = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'ledger_simulation%'"


def simulate(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run(
        [sys.executable, "-m", "ledger", "simulate", "--json", *options],
        env={**os.environ, "LEDGER_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


def assert_only_the_naive_one_is_wrong(url: str, done: subprocess.CompletedProcess[str]) -> None:
    """The ledger is right, the other one is not, and nothing stays behind."""
    assert done.returncode == 0, (done.stdout, done.stderr)
    facts: dict[str, Any] = json.loads(done.stdout)
    assert (facts["sent"], facts["delivered"], facts["sound"]) == (1200, 1200, True)
    assert (facts["ledger"]["accounts_wrong"], facts["ledger"]["refused"], facts["ledger"]["waiting"]) == (0, 0, 0)
    assert facts["naive"]["accounts_wrong"] > 0
    assert facts["repaired"] > 0
    assert facts["naive_after_repair"] == 0
    with psycopg.connect(url) as connection:
        assert connection.execute(LEFT).fetchall() == []


@pytest.mark.campaign
def test_through_the_mock(ledger: Ledger, ledger_url: str) -> None:
    """Without a broker it brings one along."""
    assert ledger.ledger_id
    done = simulate(ledger_url, "--via", "kafka", "--accounts", "300")
    assert_only_the_naive_one_is_wrong(ledger_url, done)


@pytest.mark.campaign
def test_through_a_real_broker(ledger: Ledger, ledger_url: str, apache_kafka: ApacheKafka) -> None:
    """With one it makes a topic there, and removes it."""
    assert ledger.ledger_id
    done = simulate(ledger_url, "--via", "kafka", "--accounts", "300", "--bootstrap", apache_kafka.bootstrap)
    assert_only_the_naive_one_is_wrong(ledger_url, done)


@pytest.mark.campaign
def test_broker_that_is_not_there(ledger: Ledger, ledger_url: str) -> None:
    """It is said in one line, without what a client logs meanwhile, and nothing stays behind."""
    assert ledger.ledger_id
    done = simulate(ledger_url, "--via", "kafka", "--bootstrap", "127.0.0.1:1", "--accounts", "1")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "broker_unavailable"
    assert done.stderr.count("\n") <= 1
    with psycopg.connect(ledger_url) as connection:
        assert connection.execute(LEFT).fetchall() == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--bootstrap", "x:1"], "--via kafka"),
        (["--via", "kafka", "--picture", "x.svg"], "--picture"),
        (["--via", "kafka", "--bootstrap", "127.0.0.1:1", "--config", "none"], "No such file"),
    ],
)
def test_options_that_do_not_go_together(ledger: Ledger, ledger_url: str, options: list[str], problem: str) -> None:
    """What has no effect is refused, and leaves nothing behind."""
    assert ledger.ledger_id
    done = simulate(ledger_url, *options)
    assert done.returncode == 2
    assert problem in json.loads(done.stdout)["error"]["message"]
