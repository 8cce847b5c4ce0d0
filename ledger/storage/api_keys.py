"""
Who may do what: API keys by their hashes, made once and revoked once; and which accounts auditors have read.

That a key was made, revoked or retired is a privileged action, on record in the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from ledger.core.canonical import utc_text
from ledger.storage import trail
from ledger.storage.database import Connection
from ledger.storage.store import in_utc

# An actor has two places: a key of which the time is over keeps none.
RETIRE: Final = """
UPDATE {schema}.api_keys SET revoked_at = clock_timestamp(), revoked_by = %s
WHERE actor = %s AND revoked_at IS NULL AND expires_at <= clock_timestamp() RETURNING key_id
"""

CREATE: Final = """
INSERT INTO {schema}.api_keys
    (key_id, actor, slot, scopes, secret_hash, created_at, created_by, idempotency_key, expires_at)
SELECT %(key_id)s, %(actor)s, free.slot, %(scopes)s::text[], %(secret_hash)s, clock_timestamp(), %(created_by)s,
       %(idempotency_key)s, clock_timestamp() + make_interval(secs => %(seconds)s)
FROM (VALUES (1::smallint), (2::smallint)) AS free (slot)
WHERE NOT EXISTS (
    SELECT 1 FROM {schema}.api_keys AS k
    WHERE k.actor = %(actor)s AND k.slot = free.slot AND k.revoked_at IS NULL
)
ORDER BY free.slot LIMIT 1
ON CONFLICT DO NOTHING
"""

MADE: Final = "SELECT k.key_id FROM {schema}.api_keys AS k WHERE k.created_by = %s AND k.idempotency_key = %s"

_COLUMNS: Final = """
k.key_id, k.actor, k.scopes, k.created_at AT TIME ZONE 'UTC', k.created_by, k.expires_at AT TIME ZONE 'UTC',
k.revoked_at AT TIME ZONE 'UTC', k.revoked_by, k.revoked_at IS NULL AND coalesce(k.expires_at > clock_timestamp(), true)
"""

# Whoever looks for one gets its hash, and compares it himself: in constant time.
HASHED: Final = f"SELECT {_COLUMNS}, k.secret_hash FROM {{schema}}.api_keys AS k WHERE k.key_id = %s"

ALL: Final = f"SELECT {_COLUMNS} FROM {{schema}}.api_keys AS k WHERE k.key_id > %s ORDER BY k.key_id LIMIT %s"

ONE: Final = f"SELECT {_COLUMNS} FROM {{schema}}.api_keys AS k WHERE k.key_id = %s"

REVOKE: Final = """
UPDATE {schema}.api_keys SET revoked_at = clock_timestamp(), revoked_by = %s
WHERE key_id = %s AND revoked_at IS NULL RETURNING actor
"""

READ: Final = """
INSERT INTO {schema}.account_reads (account, recorded_at, read_id, actor, question)
SELECT r.account, clock_timestamp(), %s, %s, %s FROM unnest(%s::text[]) AS r (account)
ORDER BY r.account COLLATE "C"
"""

READS: Final = """
SELECT r.account, r.recorded_at AT TIME ZONE 'UTC', r.actor, r.question FROM {schema}.account_reads AS r
WHERE r.account = %s AND r.recorded_at > %s::timestamptz ORDER BY r.recorded_at, r.read_id LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Whose key it is, what it is good for and until when; `active` is whether it is good now.  Not the secret."""

    key_id: str
    actor: str
    scopes: tuple[str, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None
    active: bool
    secret_hash: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class AccountRead:
    """Which account was read, when, by which auditor, and by which question."""

    account: str
    recorded_at: datetime
    actor: str
    question: str


def create(
    connection: Connection,
    key_id: str,
    actor: str,
    scopes: Sequence[str],
    secret_hash: bytes,
    created_by: str,
    seconds: float | None,
    idempotency_key: str | None = None,
) -> ApiKey | None:
    """
    Keep a new key, within a transaction; None where its actor has two already, or the same request has made one.

    Without seconds it is for ever.
    """
    for (retired,) in connection.query(RETIRE, (created_by, actor)):
        connection.query(*trail.note("retire_key", created_by, retired, {"actor": actor}))
    named = {"key_id": key_id, "actor": actor, "scopes": list(scopes), "secret_hash": secret_hash}
    by = {"created_by": created_by, "idempotency_key": idempotency_key}
    connection.query(CREATE, {**named, **by, "seconds": seconds})
    made = one(connection, key_id)
    if made is not None:
        expires_at = None if made.expires_at is None else utc_text(made.expires_at)
        details = {"actor": actor, "scopes": list(scopes), "expires_at": expires_at}
        connection.query(*trail.note("create_key", created_by, key_id, details))
    return made


def made_before(connection: Connection, created_by: str, idempotency_key: str) -> str | None:
    """The id of the key that somebody's request has made, if it has."""
    rows = connection.query(MADE, (created_by, idempotency_key))
    return str(rows[0][0]) if rows else None


def one(connection: Connection, key_id: str) -> ApiKey | None:
    """A key, without its hash."""
    rows = connection.query(ONE, (key_id,))
    return _key(rows[0]) if rows else None


def hashed(connection: Connection, key_id: str) -> ApiKey | None:
    """A key with the hash of its secret."""
    rows = connection.query(HASHED, (key_id,))
    return _key(rows[0]) if rows else None


def keys(connection: Connection, after: str, limit: int) -> list[ApiKey]:
    """All keys in order of their ids, after one of them."""
    return [_key(row) for row in connection.query(ALL, (after, limit))]


def revoke(connection: Connection, key_id: str, actor: str) -> ApiKey | None:
    """Revoke a key, within a transaction; None where there is none.  One that was revoked stays as it was."""
    for (owner,) in connection.query(REVOKE, (actor, key_id)):
        connection.query(*trail.note("revoke_key", actor, key_id, {"actor": owner}))
    return one(connection, key_id)


def record_reads(connection: Connection, actor: str, question: str, accounts: Collection[str]) -> None:
    """Keep on record that these accounts were read."""
    connection.query(READ, (uuid4(), actor, question, sorted(set(accounts))))


def reads(connection: Connection, account: str, since: datetime | None, limit: int) -> list[AccountRead]:
    """Who has read an account, in order, after a time."""
    rows = connection.query(READS, (account, since or "-infinity", limit))
    return [AccountRead(row[0], in_utc(row[1]), row[2], row[3]) for row in rows]


def _key(row: Sequence[Any]) -> ApiKey:
    key_id, actor, scopes, created_at, created_by, expires_at, revoked_at, revoked_by, active, *secret = row
    return ApiKey(
        key_id,
        actor,
        tuple(scopes),
        in_utc(created_at),
        created_by,
        None if expires_at is None else in_utc(expires_at),
        None if revoked_at is None else in_utc(revoked_at),
        revoked_by,
        active,
        *secret,
    )
