"""The commands about proof, started as a user starts them, without any database."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from log import note, records, subtrees
from openssl import TimestampAuthority
from test_cli import Process, forked, forking

from ledger.audit.checkpoint import Note, SigningKey
from ledger.audit.inclusion import InclusionProof
from ledger.audit.tiles import tile_path, write_log

__all__ = ["forking"]

Run: TypeAlias = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(forking: Process, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `ledger … --json` in a folder: its exit code, and what it answered."""
    kept = tmp_path_factory.mktemp("kept")

    def started(*arguments: str) -> tuple[int, Any]:
        # A database that is not there: none of these commands may want one.
        nowhere = "postgresql://nobody@127.0.0.1:1/none"
        done = forked(forking, kept, [*arguments, "--json"], tmp_path, nowhere)
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)

    return started


@pytest.fixture
def key(run: Run, tmp_path: Path) -> SigningKey:
    """A key that `ledger keygen` made, its verifier key in `ledger.vkey`."""
    code, said = run("keygen", "example.org/ledger", "--out", "sealer.key")
    assert code == 0
    (tmp_path / "ledger.vkey").write_text(said["verifier"] + "\n")
    return SigningKey.read(tmp_path / "sealer.key")


def test_keygen_never_overwrites(run: Run, key: SigningKey, tmp_path: Path) -> None:
    """A key is made once, for its owner's eyes only, and what is printed verifies its signatures."""
    assert (tmp_path / "ledger.vkey").read_text().strip() == str(key.verifier)
    assert stat.S_IMODE((tmp_path / "sealer.key").stat().st_mode) == 0o600

    code, said = run("keygen", "example.org/ledger", "--out", "sealer.key")

    assert (code, said["error"]["message"]) == (2, "sealer.key: File exists")
    assert SigningKey.read(tmp_path / "sealer.key") == key
    assert run("keygen", "two words", "--out", "other.key")[0] == 2
    assert not (tmp_path / "other.key").exists()


def test_checkpoints_are_verified(run: Run, key: SigningKey, tmp_path: Path) -> None:
    """A checkpoint that holds is exit code 0, one that does not is 1, and one that cannot be read is 2."""
    (tmp_path / "checkpoint").write_bytes(note(300, key))
    (tmp_path / "forged").write_bytes(note(300, key).replace(b"\n300\n", b"\n301\n"))

    code, said = run("verify-checkpoint", "checkpoint", "--key", "ledger.vkey")
    assert (code, said["size"], said["signed_by"]) == (0, 300, ["example.org/ledger"])
    assert said == run("verify-checkpoint", "checkpoint", "--key", str(key.verifier))[1]
    code, said = run("verify-checkpoint", "forged", "--key", "ledger.vkey")
    assert (code, said["error"]["code"]) == (1, "proof_failed")
    assert run("verify-checkpoint", "checkpoint", "--key", str(SigningKey.generate("other").verifier))[0] == 1
    assert run("verify-checkpoint", "checkpoint", "--key", "ledger.vkey", "--origin", "other")[0] == 1
    for arguments in (
        ("none", "--key", "ledger.vkey"),
        ("checkpoint", "--key", "none"),
        ("checkpoint", "--key", "a+b"),
    ):
        assert run("verify-checkpoint", *arguments)[0] == 2


def test_a_path_with_a_plus_is_a_file(run: Run, key: SigningKey, tmp_path: Path) -> None:
    """A key is read from a file whatever its name is; but none that is named as a key stands in for it."""
    (tmp_path / "checkpoint").write_bytes(note(300, key))
    (tmp_path / "c++").mkdir()
    (tmp_path / "c++" / "k").write_text(f"{key.verifier}\n")
    assert run("verify-checkpoint", "checkpoint", "--key", "c++/k")[0] == 0
    assert run("verify-checkpoint", "checkpoint", "--key", "c++/none")[0] == 2

    other = SigningKey.generate("example.org/ledger").verifier
    path = tmp_path / str(other)
    path.parent.mkdir(parents=True)
    path.write_text(f"{key.verifier}\n")
    assert run("verify-checkpoint", "checkpoint", "--key", str(other))[0] == 1


def test_proofs_are_verified(run: Run, key: SigningKey, tmp_path: Path) -> None:
    """A proof shows its record; another record is not in the log."""
    listed = list(records(300))
    proof = InclusionProof.make(123, note(300, key), subtrees(300), listed[123])
    (tmp_path / "event.tlog-proof").write_bytes(proof.to_bytes())
    (tmp_path / "other").write_bytes(listed[124])

    code, said = run("verify-proof", "event.tlog-proof", "--key", "ledger.vkey")
    assert (code, said["index"], said["record"]) == (0, 123, listed[123].decode())
    code, said = run("verify-proof", "event.tlog-proof", "--key", "ledger.vkey", "--record", "other")
    assert (code, said["error"]["code"]) == (1, "proof_failed")


def test_logs_are_verified(run: Run, key: SigningKey, tmp_path: Path) -> None:
    """A whole log is exit code 0, a changed one 1, and one with a file missing 2, which is named."""
    write_log(tmp_path / "log", records(300), note(300, key))
    bundle = tmp_path / "log" / tile_path("entries", 0)
    content = bundle.read_bytes()

    code, said = run("verify-log", "log", "--key", "ledger.vkey")
    assert (code, said["size"]) == (0, 300)
    bundle.write_bytes(content.replace(b'"event":7,"said":"so"', b'"event":7,"said":"no"'))
    code, said = run("verify-log", "log", "--key", "ledger.vkey")
    assert (code, said["error"]["fields"]["what"]) == (1, "Record 7 of the log")
    bundle.unlink()
    code, said = run("verify-log", "log", "--key", "ledger.vkey")
    assert (code, "tile/entries/000" in said["error"]["message"]) == (2, True)


def test_a_growing_log_is_anchored(run: Run, key: SigningKey, tmp_path: Path) -> None:
    """The checkpoints of a log that grows are appended; one of another history, and one that is behind, are refused."""
    for size in (200, 300):
        write_log(tmp_path / f"log-{size}", records(size), note(size, key))
    write_log(tmp_path / "forged", records(400, changed=5), note(400, key, changed=5))
    trust = ("--key", "ledger.vkey")

    assert run("anchor", "file", "anchor", "--log", "log-200", *trust) == (0, {"size": 200, "before": 0})
    assert run("anchor", "file", "anchor", "--log", "log-300", *trust) == (0, {"size": 300, "before": 200})
    assert run("anchor", "file", "anchor", "--log", "log-300", *trust) == (0, {"size": 300, "before": 300})
    for bad in ("forged", "log-200"):
        code, said = run("anchor", "file", "anchor", "--log", bad, *trust)
        assert (code, said["error"]["code"]) == (1, "proof_failed")
    code, said = run("anchor", "check", "anchor", *trust)
    assert (code, said["checkpoints"], said["last"]["size"]) == (0, 2, 300)
    before = (tmp_path / "log-300" / "checkpoint").read_bytes()
    code, said = run("anchor", "file", "log-300/checkpoint", "--log", "log-300", *trust)
    assert (code, said["error"]["code"]) == (1, "proof_failed")
    assert (tmp_path / "log-300" / "checkpoint").read_bytes() == before
    (tmp_path / "empty").touch()
    assert run("anchor", "check", "empty", *trust) == (2, {"checkpoints": 0, "last": None})


def test_a_checkpoint_is_timestamped(run: Run, key: SigningKey, tmp_path: Path) -> None:
    """A request that an authority answers becomes a time, for this checkpoint and no other."""
    authority = TimestampAuthority(tmp_path / "authority")
    (tmp_path / "roots.pem").write_bytes(authority.roots)
    (tmp_path / "checkpoint").write_bytes(note(300, key))
    (tmp_path / "other").write_bytes(note(301, key))
    trust = ("--roots", "roots.pem", "--key", "ledger.vkey")

    assert run("anchor", "request", "checkpoint", "--out", "c.tsq") == (0, {"file": "c.tsq"})
    (tmp_path / "c.tsr").write_bytes(authority((tmp_path / "c.tsq").read_bytes()))

    code, said = run("anchor", "timestamp", "checkpoint", "c.tsr", *trust)
    assert (code, said["size"], said["at"][-1]) == (0, 300, "Z")
    code, said = run("anchor", "timestamp", "other", "c.tsr", *trust)
    assert (code, said["error"]["code"]) == (1, "proof_failed")
    (tmp_path / "empty").touch()
    for wrong in ("empty", "sealer.key", "roots.pem"):
        code, said = run("anchor", "request", wrong, "--out", "wrong.tsq")
        assert (code, said["error"]["code"]) == (2, "invalid_command")
    assert not (tmp_path / "wrong.tsq").exists()


def test_people_read_sentences(key: SigningKey, tmp_path: Path) -> None:
    """Without --json the answers are lines, and the root is as the checkpoint has it."""
    (tmp_path / "checkpoint").write_bytes(note(300, key))
    command = [sys.executable, "-m", "ledger", "verify-checkpoint", "checkpoint", "--key", "ledger.vkey"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)

    root = Note.parse(note(300, key)).text.split("\n")[2]
    assert len(b64decode(root)) == 32
    assert done.stdout.splitlines() == [
        f"checkpoint of example.org/ledger: 300 records, root {root}",
        "signed by example.org/ledger",
    ]
