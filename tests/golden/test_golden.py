"""Golden bytes: what was once written is written, hashed and read in the same way for ever."""

from __future__ import annotations

import json
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pytest
from write import EXAMPLES, FOLDER, LEDGER_ID, examples, golden_files, write

from ledger import Recorded
from ledger.core.codec import event_from
from ledger.core.events import Event

KEPT = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.name.startswith(("event.", "transaction."))}
RECORDS = sorted(name.removesuffix(".record") for name in KEPT if name.endswith(".record"))
HEADERS = sorted(name.removesuffix(".header") for name in KEPT if name.endswith(".header"))


@pytest.mark.parametrize("name", sorted(golden_files()))
def test_bytes_are_those_kept(name: str) -> None:
    """The code of today writes the bytes of then; a file that is missing is written by `write.py`."""
    assert golden_files()[name] == KEPT[name]


def test_every_event_type_has_golden_bytes() -> None:
    """No type of event is without an example, and no example without its files."""
    exemplified = {
        type(event_from(event)): f"event.{event.type}.{event.schema}" for _, all_ in examples() for event in all_
    }

    assert set(exemplified) == set(get_args(Event))
    assert set(exemplified.values()) <= set(RECORDS)


def test_each_example_is_kept_whole() -> None:
    """A record has its payload and hash, a header its hash, and there is nothing else."""
    expected = {f"{name}.{part}" for name in RECORDS for part in ("record", "payload", "hash")}
    expected |= {f"{name}.{part}" for name in HEADERS for part in ("header", "hash")}

    assert set(KEPT) == expected
    assert len(HEADERS) == len(EXAMPLES)


@pytest.mark.parametrize("name", RECORDS)
def test_hashes_can_be_recomputed_without_us(name: str) -> None:
    """Records are canonical JSON and hashes are SHA-256: a JSON library and hashlib are enough to check."""
    record = KEPT[f"{name}.record"]
    content = json.loads(record)

    assert canonical(content) == record
    assert sha256(b"\0" + record).hexdigest().encode() == KEPT[f"{name}.hash"]
    assert content["format"] == "ledger/event/1"
    assert f"event.{content['type']}.{content['schema']}" == name
    assert content["payload_sha256"] == sha256(KEPT[f"{name}.payload"]).hexdigest()
    assert content["header_sha256"] in {KEPT[f"{header}.hash"].decode() for header in HEADERS}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_can_be_recomputed_without_us(name: str) -> None:
    """So is a transaction's header."""
    header = KEPT[f"{name}.header"]
    content = json.loads(header)

    assert canonical(content) == header
    assert sha256(header).hexdigest().encode() == KEPT[f"{name}.hash"]
    assert content["format"] == "ledger/transaction/1"


def test_chain_of_the_examples() -> None:
    """A stream's first record links to its genesis, its next one to the hash before it."""
    linked = {content["stream"] + str(content["version"]): content for content in map(content_of, RECORDS)}
    account = "users:42/wallet@eu-1"

    for stream in ("$ledger", account, "#payment/order-7"):
        assert linked[f"{stream}1"]["prev"] == sha256(f"ledger/genesis/1\n{LEDGER_ID}\n{stream}".encode()).hexdigest()
    assert linked[f"{account}2"]["prev"] == KEPT["event.account_opened.1.hash"].decode()
    for version, kind in enumerate(("entry_posted", "hold_placed", "hold_captured", "hold_released"), 3):
        assert linked[f"{account}{version}"]["prev"] == KEPT[f"event.{kind}.1.hash"].decode()


@pytest.mark.parametrize("name", RECORDS)
def test_what_was_written_can_be_read(name: str) -> None:
    """An event of any version ever written comes back from its golden bytes as it was."""
    content = content_of(name)
    amount = content.get("amount")
    stored = Recorded(
        stream=content["stream"],
        version=content["version"],
        transaction_id=content["transaction_id"],
        type=content["type"],
        payload=KEPT[f"{name}.payload"].decode(),
        schema=content["schema"],
        asset=content.get("asset"),
        direction=content.get("direction"),
        amount=None if amount is None else int(amount),
        numbers=None,
        effective_at=datetime.fromisoformat(content["effective_at"]),
        recorded_at=datetime.fromisoformat(content["recorded_at"]),
        prev_hash=bytes.fromhex(content["prev"]),
        event_hash=bytes.fromhex(KEPT[f"{name}.hash"].decode()),
    )

    assert event_from(stored) in [event for events in EXAMPLES.values() for event in events]


def test_golden_files_are_never_written_over(tmp_path: Path) -> None:
    """Writing again leaves every file as it is, and adds what is missing."""
    names = sorted(write(tmp_path))
    (tmp_path / names[0]).write_bytes(b"kept")
    (tmp_path / names[1]).unlink()

    assert names == sorted(golden_files())
    assert write(tmp_path) == [names[1]]
    assert (tmp_path / names[0]).read_bytes() == b"kept"


def canonical(content: object) -> bytes:
    """Canonical JSON as the standard library can write it, for strings without lone surrogates."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_of(name: str) -> dict[str, Any]:
    """The object that a golden record holds."""
    content: dict[str, Any] = json.loads(KEPT[f"{name}.record"])
    return content
