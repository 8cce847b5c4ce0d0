"""Bundles on the command line: written from a database, verified without any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import Program, answer, environment, forking, program

from ledger import Ledger
from ledger.audit.checkpoint import SigningKey

__all__ = ["answer", "environment", "forking", "program"]


@pytest.fixture
def sealed(ledger: Ledger, tmp_path: Path) -> Path:
    """A folder with the keys of a ledger, whose events are sealed, and its checkpoint."""
    ledger.define_asset("PTS", scale=0)
    ledger.open_account("world", asset="USD", type="equity", stripes=2)
    ledger.open_account("alice", asset="USD", type="liability")
    ledger.transfer("90071992547409.93 USD", debit="world", credit="alice", reference="order-1", metadata={"n": 1})
    held = ledger.hold("20 USD", debit="alice", credit="world")
    ledger.capture(held.transaction_id, "5 USD", final=True)
    ledger.freeze("alice", reason="audit")
    ledger.begin("payment", "p-1")
    ledger.stamp()
    key = SigningKey.generate("example.org/ledger")
    key.write(tmp_path / "sealer.key")
    (tmp_path / "ledger.vkey").write_text(f"{key.verifier}\n")
    sealed_now = ledger.seal(key)
    assert sealed_now is not None
    (tmp_path / "checkpoint").write_bytes(sealed_now.note)
    return tmp_path


def test_a_bundle_is_written_and_verified(sealed: Path, ledger: Ledger, program: Program) -> None:
    """What the database gives is sound without it; the last checkpoint, or that one, gives the same bytes."""
    first, second, key = sealed / "first.tar", sealed / "second.tar", str(sealed / "ledger.vkey")
    head = ledger.feed_head()
    written = program("bundle", "--out", str(first))
    assert (written.returncode, written.stderr) == (0, "")
    assert written.stdout.startswith(f"written: {head} events, in ")
    said = json.loads(
        program("bundle", "--out", str(second), "--checkpoint", str(sealed / "checkpoint"), "--json").stdout
    )
    assert (said["size"], said["file"]) == (head, str(second))
    assert first.read_bytes() == second.read_bytes()

    nowhere = ("--database-url", "postgresql://nobody@127.0.0.1:1/none")
    assert program(*nowhere, "bundle", "--out", str(sealed / "third.tar")).returncode == 2
    done = program(*nowhere, "verify-bundle", str(first), "--key", key)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{head} events" in done.stdout
    plain = json.loads(program(*nowhere, "verify-bundle", str(first), "--key", key, "--json").stdout)
    assert (plain["size"], plain["ledger_id"]) == (head, str(ledger.ledger_id))


def test_what_is_wrong_with_a_bundle_is_one_line(sealed: Path, program: Program) -> None:
    """A changed bundle is bad news, with the place; a file that exists or is not there could not be done."""
    bundle, key = sealed / "bundle.tar", str(sealed / "ledger.vkey")
    assert program("bundle", "--out", str(bundle)).returncode == 0
    again = program("bundle", "--out", str(bundle), "--json")
    assert (again.returncode, "it exists" in json.loads(again.stdout)["error"]["message"]) == (2, True)
    assert program("bundle", "--out", str(sealed / "none" / "bundle.tar")).returncode == 2

    bundle.write_bytes(bundle.read_bytes().replace(b'"reference":"order-1"', b'"reference":"order-2"'))
    changed = program("verify-bundle", str(bundle), "--key", key)
    assert (changed.returncode, changed.stdout) == (1, "")
    assert changed.stderr.count("\n") == 1
    assert "of transactions.jsonl it is" in changed.stderr
    assert program("verify-bundle", str(sealed / "none.tar"), "--key", key).returncode == 2
    assert program("verify-bundle", str(sealed / "ledger.vkey"), "--key", key).returncode == 1
