"""The feed on the command line: what is shown, what is stamped, and how what follows it ends."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from test_cli import TIMEOUT_SECONDS, Program, answer, environment, forking, program, start

from ledger import Ledger

__all__ = ["answer", "environment", "forking", "program"]


@pytest.fixture
def told(ledger: Ledger) -> Ledger:
    """A ledger with 5 events, none of them stamped."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability")
    ledger.transfer("12.50 USD", debit="world", credit="alice", reference="order-1", metadata={"n": 1})
    return ledger


@pytest.mark.usefixtures("told")
def test_stamp_and_show(program: Program) -> None:
    """What is stamped is counted, and shown in order, one line each, with whole amounts."""
    assert program("feed").stdout == ""
    stamped = program("feed", "stamp")
    assert (stamped.returncode, stamped.stdout) == (0, "stamped 5; the feed ends at position 5\n")
    lines = program("feed").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5"]
    assert lines[3].endswith("alice 2  entry_posted  credit 12.50 USD  transfer")
    limited = program("feed", "--after", "1", "--limit", "2").stdout.splitlines()
    assert limited == lines[1:3]


@pytest.mark.usefixtures("told")
def test_feed_as_json_is_an_object_a_line(program: Program) -> None:
    """Each line says where an event stands, what it is, and who asked for it; errors are an object too."""
    assert json.loads(program("feed", "stamp", "--json").stdout)["stamped"] == 5
    *_, last = map(json.loads, program("feed", "--json").stdout.splitlines())
    assert (last["position"], last["stream"], last["version"], last["amount"]) == (5, "world", 2, "12.50 USD")
    assert (last["kind"], last["reference"], last["metadata"]) == ("transfer", "order-1", {"n": 1})
    refused = program("feed", "seek", "mail", "9", "--json")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["error"]["code"] == "invalid_command"
    assert program("feed", "seek", "", "5").returncode == 2


def test_subscriptions_are_listed_and_sought(told: Ledger, program: Program) -> None:
    """How far each is, how far it is behind, and who put it there."""
    assert program("feed", "subscriptions").stdout == "there is none\n"
    told.stamp()
    assert program("feed", "seek", "mail", "3", "--actor", "ann").stdout == "mail goes on after position 3\n"
    shown = program("feed", "subscriptions").stdout
    assert shown.splitlines()[2].split()[:4] == ["mail", "3", "2", "ann"]
    plain = json.loads(program("feed", "--json", "subscriptions").stdout)
    assert (plain["head"], plain["subscriptions"][0]["position"]) == (5, 3)


@pytest.mark.usefixtures("told")
def test_somebody_else_stamps(told: Ledger, program: Program) -> None:
    """While another process has the lease, nothing is stamped, and who has it is said."""
    stamper = told.stamper(limit=1)
    assert stamper.step() == 2
    done = program("feed", "stamp")
    assert (done.returncode, done.stdout) == (0, f"stamped 0; the feed ends at position 2; {stamper.owner} stamps it\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_follow_shows_what_is_stamped_later(told: Ledger, ledger_url: str, number: signal.Signals) -> None:
    """It goes on, through times in which nothing happens, and ends well when it is told to."""
    with start("feed", "--follow", "--json", "--after", "4", url=ledger_url) as following:
        assert following.stdout is not None
        with start("feed", "stamp", "--follow", "--json", url=ledger_url) as stamping:
            assert json.loads(following.stdout.readline())["position"] == 5
            told.transfer("1 USD", debit="world", credit="alice")
            assert [json.loads(following.stdout.readline())["position"] for _ in range(2)] == [6, 7]
            stamping.send_signal(number)
            said, _ = stamping.communicate(timeout=TIMEOUT_SECONDS)
        following.send_signal(number)
        rest, complained = following.communicate(timeout=TIMEOUT_SECONDS)
    assert (stamping.returncode, following.returncode, rest, complained) == (0, 0, b"", b"")
    assert json.loads(said)["stamped"] == 7
    lease = told.stamping()
    assert lease is not None
    assert told.stamp() == 0


def test_limit_ends_what_follows(told: Ledger, ledger_url: str) -> None:
    """With a limit it ends by itself, however the entries come."""
    with start("feed", "--follow", "--json", "--limit", "5", url=ledger_url) as following:
        told.stamp()
        shown, _ = following.communicate(timeout=TIMEOUT_SECONDS)
    assert (following.returncode, shown.count(b"\n")) == (0, 5)


@pytest.mark.usefixtures("told")
def test_kafka_that_is_not_there(program: Program, tmp_path: Path) -> None:
    """Until the end it is an error; and settings that break the order of a stream are refused."""
    file = tmp_path / "client.properties"
    file.write_text("acks=0\n")
    where = ["--bootstrap", "127.0.0.1:1", "--topic", "t"]
    refused = program("feed", "publish", "kafka", *where, "--config", str(file))
    assert refused.returncode == 2
    assert "acks" in refused.stderr
