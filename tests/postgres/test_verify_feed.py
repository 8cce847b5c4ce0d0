"""Verification of the feed: whatever a superuser does to it or to the outbox is found, and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from ledger import Ledger

Psql = psycopg.Connection[Any]
Tamper = Callable[..., None]

LAST = "(SELECT max(position) FROM feed)"

# Of the feed of `stamped`, in which alice's versions 2 and 3 and bob's 2 have positions: what is done to it
# → stream and version of a finding, its column, and something that it says.
TAMPERING: dict[str, tuple[list[str], str, int, str, str]] = {
    "row removed": (
        ["DELETE FROM feed WHERE stream = 'bob' AND version = 2"],
        "bob", 2, "position", "it is not in the feed",
    ),
    "tail cut off": (
        ["DELETE FROM feed WHERE stream = 'zoe'"],
        "zoe", 1, "position", "it is not in the feed",
    ),
    "gap made": (
        [f"UPDATE feed SET position = position + 1 WHERE position = {LAST}"],
        "zoe", 1, "position", "what was between them is missing",
    ),
    "first position moved away": (
        ["UPDATE feed SET position = 1000 WHERE position = 1"],
        "$ledger", 1, "position", "position 1000 of the feed",
    ),
    "hash replaced": (
        ["UPDATE feed SET event_hash = sha256('') WHERE stream = 'alice' AND version = 3"],
        "alice", 3, "event_hash", "another hash or transaction",
    ),
    "transaction replaced": (
        ["UPDATE feed SET transaction_id = gen_random_uuid() WHERE stream = 'alice' AND version = 3"],
        "alice", 3, "event_hash", "another hash or transaction",
    ),
    "event invented": (
        [
            (f"INSERT INTO feed SELECT {LAST} + 1, 'ghost', 1, transaction_id, event_hash, known_at FROM feed"
            f" WHERE position = {LAST}"),
        ],
        "ghost", 1, "event_hash", "no event of the log",
    ),
    "versions swapped": (
        [
            "UPDATE feed SET position = -1 * position WHERE stream = 'alice' AND version IN (2, 3)",
            ("UPDATE feed AS f SET position = -1 * o.position FROM (SELECT position, version FROM feed"
            " WHERE stream = 'alice') AS o WHERE f.stream = 'alice' AND f.version + o.version = 5 AND f.position < 0"),
        ],
        "alice", 2, "position", "comes after version 3",
    ),
    "event stamped twice": (
        [
            (f"INSERT INTO feed SELECT {LAST} + 1, stream, version, transaction_id, event_hash, known_at FROM feed"
            " WHERE stream = 'alice' AND version = 3"),
        ],
        "alice", 3, "position", "has a position already",
    ),
    "outbox names a stamped one": (
        [
            ("INSERT INTO outbox SELECT gen_random_uuid(), ARRAY[transaction_id], now() FROM feed"
            " WHERE stream = 'alice' AND version = 3"),
        ],
        "alice", 3, "outbox", "is in the feed already",
    ),
    "outbox names nothing": (
        ["INSERT INTO outbox VALUES (gen_random_uuid(), ARRAY[gen_random_uuid()], now())"],
        "$ledger", 0, "outbox", "is not in the log",
    ),
    "waiting one removed": (
        ["DELETE FROM outbox"],
        "late", 1, "position", "it is not in the feed",
    ),
    "known before it was recorded": (
        ["UPDATE feed SET known_at = known_at - interval '1 day' WHERE position = 1"],
        "$ledger", 1, "known_at", "known before it was recorded",
    ),
    "known earlier than the one before": (
        ["UPDATE feed SET known_at = known_at + interval '1 day' WHERE position = 3"],
        "bob", 1, "known_at", "known earlier than the one before it",
    ),
    "waiting one doubled": (
        ["INSERT INTO outbox SELECT gen_random_uuid(), transaction_ids, recorded_at FROM outbox"],
        "late", 1, "outbox", "is there 2 times",
    ),
}  # fmt: skip

KEYS = {
    "event stamped twice": "ALTER TABLE feed DROP CONSTRAINT feed_event",
    "versions swapped": "ALTER TABLE feed DROP CONSTRAINT feed_position_positive, DROP CONSTRAINT feed_pkey",
}
"""What stands in the way, and is taken out of it first."""


@pytest.fixture
def stamped(funded: Ledger) -> Ledger:
    """A ledger whose events have positions, but for the last one, which waits."""
    funded.open_account("zoe", asset="USD", type="liability")
    funded.stamp()
    funded.open_account("late", asset="USD", type="liability")
    return funded


def test_feed_is_counted(stamped: Ledger) -> None:
    """A sound feed is found sound, and the report says how much of it was looked at: all, or an account's."""
    report = stamped.verify()
    assert report.findings == []
    assert report.checked["feed"] == stamped.feed_head() == report.checked["events"] - 1
    assert stamped.verify("alice").checked["feed"] == stamped.balance("alice").version
    assert stamped.verify("late").checked["feed"] == 0
    assert stamped.verify(jobs=2).checked == report.checked


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_with_the_feed_is_found(stamped: Ledger, psql: Psql, tamper: Tamper, kind: str) -> None:
    """With guards and keys out of the way; the finding says where it is, and what is wrong."""
    statements, stream, version, column, told = TAMPERING[kind]
    psql.execute("ALTER TABLE outbox DISABLE TRIGGER ALL")
    if kind in KEYS:
        psql.execute(KEYS[kind].encode())
    tamper(*statements)
    found = [f for f in stamped.verify().findings if (f.stream, f.version, f.column) == (stream, version, column)]
    assert any(told in finding.problem for finding in found), [str(f) for f in stamped.verify().findings]
    assert {finding.kind for finding in stamped.verify().findings} == {"feed"}


def test_feed_of_one_account_is_its_own_matter(stamped: Ledger, tamper: Tamper) -> None:
    """An account is verified with its own positions; what was done to another's is found there."""
    tamper("UPDATE feed SET event_hash = sha256('') WHERE stream = 'alice' AND version = 3")
    assert [finding.kind for finding in stamped.verify("alice").findings] == ["feed"]
    assert stamped.verify("zoe").ok
