"""Sealing on the command line: signed, proved, exported, anchored and compared, and through a killed process."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg
import pytest
from proxy import Fault, FaultyProxy, Point, Session
from sqlalchemy import make_url
from test_cli import TIMEOUT_SECONDS, Answer, Program, answer, environment, forking, program, start

from ledger import Ledger, Transfer
from ledger.audit.checkpoint import Checkpoint, SigningKey, open_checkpoint, sign
from ledger.core.commands import build

__all__ = ["answer", "environment", "forking", "program"]

Complained: TypeAlias = Callable[..., str]

KILLED_MAX: Final = 200


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    """A key in `sealer.key`, its verifier key in `ledger.vkey`."""
    made = SigningKey.generate("example.org/ledger")
    made.write(tmp_path / "sealer.key")
    (tmp_path / "ledger.vkey").write_text(f"{made.verifier}\n")
    return made


@pytest.fixture
def stamped(ledger: Ledger) -> Ledger:
    """A ledger with 605 events, all of them stamped."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability")
    ledger.handle([build(Transfer, amount="1 USD", debit="world", credit="alice") for _ in range(301)])
    ledger.stamp()
    assert ledger.feed_head() == 605
    return ledger


def seal(folder: Path) -> tuple[str, ...]:
    """The command that seals with the key in a folder."""
    return ("seal", "--key", str(folder / "sealer.key"))


@pytest.mark.usefixtures("key")
def test_nothing_to_seal(ledger: Ledger, answer: Answer, tmp_path: Path) -> None:
    """An empty ledger is no error to seal, and one to ask for a checkpoint of."""
    assert ledger.feed_head() == 0
    code, said = answer(*seal(tmp_path))
    assert (code, said["sealed"], said["size"]) == (0, 0, 0)
    code, said = answer("checkpoint")
    assert (code, said["error"]["code"]) == (2, "invalid_command")


@pytest.mark.usefixtures("stamped")
def test_seal_prove_verify(program: Program, answer: Answer, key: SigningKey, tmp_path: Path) -> None:
    """What is sealed is proved to somebody who has the file and the verifier key, and nothing else."""
    assert program(*seal(tmp_path)).stdout == "sealed 605; the last checkpoint is of 605 events\n"
    assert program(*seal(tmp_path)).stdout == "sealed 0; the last checkpoint is of 605 events\n"
    note = program("checkpoint").stdout.encode()
    assert open_checkpoint(note, [key.verifier]).size == 605
    assert (tmp_path / "sealer.key.checkpoint").read_bytes() == note
    assert program("checkpoint", "--size", "605", "--out", str(tmp_path / "c")).returncode == 0
    assert (tmp_path / "c").read_bytes() == note

    proof, trust = str(tmp_path / "event.tlog-proof"), ("--key", str(tmp_path / "ledger.vkey"))
    for event in (("alice", "3"), ("--position", "605")):
        code, said = answer("prove", *event, "--checkpoint", str(tmp_path / "c"), "--out", proof)
        assert code == 0
        code, found = answer("verify-proof", proof, *trust)
        assert (code, found["index"] + 1, found["size"]) == (0, said["position"], 605)
    assert json.loads(found["record"])["stream"] in ("alice", "world")
    for bad, expected in (
        (("alice",), 2),
        (("alice", "999"), 2),
        (("nobody", "1"), 2),
        (("--position", "606"), 1),
        (("alice", "3", "--position", "9"), 2),
        (("alice", "3", "--checkpoint", str(tmp_path / "none")), 2),
    ):
        assert answer("prove", *bad, "--out", proof)[0] == expected


@pytest.mark.usefixtures("key")
def test_log_is_exported_and_anchored(stamped: Ledger, program: Program, answer: Answer, tmp_path: Path) -> None:
    """A folder that verifies by itself, and a file of checkpoints that grows, right from the database."""
    trust = ("--key", str(tmp_path / "ledger.vkey"))
    program(*seal(tmp_path))
    assert answer("export-log", str(tmp_path / "log"))[1]["size"] == 605
    assert answer("verify-log", str(tmp_path / "log"), *trust)[1]["size"] == 605
    assert answer("export-log", str(tmp_path / "log"))[0] == 2

    anchor = ("anchor", "file", str(tmp_path / "anchor"), *trust)
    assert answer(*anchor) == (0, {"size": 605, "before": 0})
    stamped.transfer("1 USD", debit="world", credit="alice")
    stamped.stamp()
    program(*seal(tmp_path))
    assert answer(*anchor) == (0, {"size": 607, "before": 605})
    assert answer("anchor", "check", str(tmp_path / "anchor"), *trust)[1]["checkpoints"] == 2


@pytest.mark.usefixtures("stamped", "key")
def test_verify_against(program: Program, answer: Answer, tmp_path: Path, ledger_url: str) -> None:
    """Exit code 0 while all is as it was signed; 1 and the place when it is not; 2 where it is asked for wrongly."""
    program(*seal(tmp_path))
    note = tmp_path / "sealer.key.checkpoint"
    against = ("verify", "--against", str(note), "--key", str(tmp_path / "ledger.vkey"))
    code, said = answer(*against)
    assert (code, said["ok"]) == (0, True)
    assert said["checked"] == {"records": 605, "tiles": 2, "checkpoints": 1}
    assert program(*against).stdout == "checked 605 records, 2 tiles, 1 checkpoints\nsound\n"
    for bad in (("--account", "alice"), ("--repair",), ("--jobs", "2"), ("--after", "a")):
        assert answer(*against, *bad)[0] == 2
    assert answer("verify", "--against", str(note))[0] == 2
    assert answer("verify", "--key", str(tmp_path / "ledger.vkey"))[0] == 2

    with psycopg.connect(ledger_url, autocommit=True, options="-c search_path=ledger") as psql:
        psql.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        psql.execute("UPDATE events SET amount = 7 WHERE stream = 'alice' AND version = 9")
    code, said = answer(*against)
    assert (code, said["ok"]) == (1, False)
    assert (said["findings"][0]["stream"], said["findings"][0]["version"]) == ("alice", 9)
    note.write_bytes(note.read_bytes().replace(b"605", b"604"))
    code, said = answer(*against)
    assert (code, said["error"]["code"]) == (1, "proof_failed")
    program("keygen", "example.org/ledger", "--out", str(tmp_path / "other.key"))
    other = SigningKey.read(tmp_path / "other.key")
    for given in (b"", b"no checkpoint\n", sign(Checkpoint("example.org/ledger", 605, bytes(32)), other)):
        note.write_bytes(given)
        code, said = answer(*against)
        assert (code, said["error"]["code"]) == (2, "invalid_command"), said


@pytest.mark.usefixtures("key")
def test_seal_refuses_another_history(stamped: Ledger, program: Program, tmp_path: Path, ledger_url: str) -> None:
    """Exit code 1 and one line that says what does not hold, and where."""
    program(*seal(tmp_path))
    with psycopg.connect(ledger_url, autocommit=True, options="-c search_path=ledger") as psql:
        for table in ("feed", "checkpoints"):
            psql.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
        psql.execute("DELETE FROM checkpoints")
    refused = program(*seal(tmp_path))
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "sealer.key.checkpoint does not hold: the database has been sealed up to 0 events only" in refused.stderr
    assert program("seal", "--key", str(tmp_path / "none")).returncode == 2
    assert stamped.feed_head() == 605


def test_somebody_else_seals(stamped: Ledger, program: Program, key: SigningKey, tmp_path: Path) -> None:
    """What another one has yet to seal is exit code 2 and says so; where it has sealed everything that is no error."""
    other = stamped.sealer(key)
    other.owner = "elsewhere/7"
    assert other.step() is not None
    done = program(*seal(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "sealed 0; the last checkpoint is of 605 events; elsewhere/7 seals\n"

    stamped.transfer("1 USD", debit="world", credit="alice")
    stamped.stamp()
    done = program(*seal(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "2 events are not sealed yet, and elsewhere/7 has the sealer's lease" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_follow_seals_what_is_stamped_later(
    stamped: Ledger, ledger_url: str, key: SigningKey, tmp_path: Path, number: signal.Signals
) -> None:
    """It goes on until it is told to stop, and ends well."""
    with (
        psycopg.connect(ledger_url, autocommit=True) as listener,
        start(*seal(tmp_path), "--follow", "--every", "0.01", "--json", url=ledger_url) as sealing,
    ):
        wait_for(listener, 605)
        stamped.transfer("1 USD", debit="world", credit="alice")
        stamped.stamp()
        wait_for(listener, 607)
        sealing.send_signal(number)
        said, complained = sealing.communicate(timeout=TIMEOUT_SECONDS)
    assert (sealing.returncode, complained) == (0, b"")
    assert json.loads(said) == {"sealed": 607, "size": 607, "owner": json.loads(said)["owner"]}
    assert stamped.seal(key) is None


def wait_for(psql: psycopg.Connection[Any], size: int) -> None:
    """Wait until so many events were sealed."""
    for _ in range(2_000):
        row = psql.execute("SELECT max(size), pg_sleep(0.01) FROM ledger.checkpoints").fetchone()
        if row is not None and row[0] == size:
            return
    pytest.fail(f"{size} events were not sealed")


@pytest.mark.parametrize(
    ("point", "stride"),
    [
        (Point.UNSENT, 14),
        (Point.UNACKNOWLEDGED, 22),
        pytest.param(Point.UNSENT, 1, marks=pytest.mark.campaign),
        pytest.param(Point.UNACKNOWLEDGED, 1, marks=pytest.mark.campaign),
    ],
)
def test_sealer_that_is_killed(
    stamped: Ledger, ledger_url: str, key: SigningKey, tmp_path: Path, point: Point, stride: int
) -> None:
    """With kill -9 at one statement after another, from connecting on: the next one goes on, and all of it holds."""
    state = tmp_path / "sealer.key.checkpoint"
    with (
        FaultyProxy(make_url(ledger_url)) as proxy,
        psycopg.connect(ledger_url, autocommit=True) as psql,
    ):
        for number in range(1, KILLED_MAX, stride):
            stamped.handle([build(Transfer, amount="1 USD", debit="world", credit="alice") for _ in range(150)])
            stamped.stamp()
            processes: list[subprocess.Popen[bytes]] = []

            def kill(session: Session, running: list[subprocess.Popen[bytes]] = processes) -> None:
                running[0].kill()
                session.cut()

            proxy.arm(Fault(point, number, kill))
            with start(*seal(tmp_path), url=proxy.url) as process:
                processes.append(process)
                process.communicate(timeout=TIMEOUT_SECONDS)
            struck = proxy.disarm()
            assert process.returncode == (-signal.SIGKILL if struck else 0)
            psql.execute("UPDATE ledger.leases SET until = now() WHERE name = 'sealer'")
            stamped.seal(key, state=state)
            assert open_checkpoint(state.read_bytes(), [key.verifier]).size == stamped.feed_head()
            if not struck:
                break
        else:
            pytest.fail(f"it has more than {KILLED_MAX} statements")
    assert number > 10
    assert stamped.verify_against(state.read_bytes(), [key.verifier]).ok
