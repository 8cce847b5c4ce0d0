"""The keys that personal data is encrypted with: one per subject, made once, and destroyed once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from ledger.storage.database import Connection
from ledger.storage.store import in_utc

NEWEST: Final = """
SELECT DISTINCT ON (k.subject) k.subject, k.key_id, k.key FROM {schema}.subject_keys AS k
WHERE k.subject = ANY(%s) ORDER BY k.subject, k.generation DESC
"""

# In one order, or two that make keys for the same subjects would wait for each other.
CREATE: Final = """
INSERT INTO {schema}.subject_keys (subject, generation, key_id, key, created_at)
SELECT n.subject, 1, n.key_id, n.key, now() FROM unnest(%s::text[], %s::uuid[], %s::bytea[]) AS n (subject, key_id, key)
ORDER BY n.subject COLLATE "C"
ON CONFLICT (subject, generation) DO NOTHING
"""

RENEW: Final = """
INSERT INTO {schema}.subject_keys (subject, generation, key_id, key, created_at)
SELECT k.subject, k.generation + 1, %s, %s, now() FROM {schema}.subject_keys AS k
WHERE k.subject = %s AND k.forgotten_at IS NOT NULL ORDER BY k.generation DESC LIMIT 1
ON CONFLICT (subject, generation) DO NOTHING
"""

BY_ID: Final = "SELECT k.subject, k.key_id, k.key FROM {schema}.subject_keys AS k WHERE k.key_id = ANY(%s)"

DESTROYED: Final = """
SELECT k.key_id FROM {schema}.subject_keys AS k WHERE k.key_id = ANY(%s) AND k.forgotten_at IS NOT NULL
"""

DESTROY: Final = """
UPDATE {schema}.subject_keys SET key = NULL, forgotten_at = clock_timestamp(), forgotten_by = %s, reason = %s
WHERE subject = %s AND key IS NOT NULL RETURNING generation
"""

FORGOTTEN: Final = """
SELECT k.subject, k.forgotten_at AT TIME ZONE 'UTC', k.forgotten_by, k.reason FROM {schema}.subject_keys AS k
WHERE k.subject = %s AND k.forgotten_at IS NOT NULL ORDER BY k.generation DESC LIMIT 1
"""

SHREDDED: Final = "SELECT count(DISTINCT k.subject) FROM {schema}.subject_keys AS k WHERE k.forgotten_at IS NOT NULL"


@dataclass(frozen=True, slots=True)
class SubjectKey:
    """A key of a subject: 32 random bytes, or None once they were destroyed; `key_id` is random, and says nothing."""

    subject: str
    key_id: UUID
    key: bytes | None = field(repr=False)


class Forgotten(NamedTuple):
    """Whose key was destroyed, when, by whom and why; `before` this was asked, or by it."""

    subject: str
    forgotten_at: datetime
    actor: str
    reason: str
    before: bool


def newest(connection: Connection, subjects: Sequence[str]) -> dict[str, SubjectKey]:
    """The newest key of each of these subjects that ever had one, destroyed or not."""
    return {row[0]: SubjectKey(*row) for row in connection.query(NEWEST, (list(subjects),))}


def create(connection: Connection, keys: Sequence[SubjectKey]) -> None:
    """Keep the first keys of subjects that never had one; who has one by now keeps it."""
    connection.query(CREATE, ([key.subject for key in keys], [key.key_id for key in keys], [key.key for key in keys]))


def renew(connection: Connection, key: SubjectKey) -> None:
    """Keep a new key of a subject whose last one was destroyed; where it was not, that one stays."""
    connection.query(RENEW, (key.key_id, key.key, key.subject))


def by_id(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, SubjectKey]:
    """The keys of these ids, as far as there are such."""
    return {row[1]: SubjectKey(*row) for row in connection.query(BY_ID, (list(key_ids),))}


def destroyed(connection: Connection, key_ids: Collection[UUID]) -> set[UUID]:
    """Which of these keys were destroyed; an auditor may ask, who may read no key."""
    return {key_id for (key_id,) in connection.query(DESTROYED, (list(key_ids),))}


def destroy(connection: Connection, subject: str, actor: str, reason: str) -> Forgotten | None:
    """Destroy the key of a subject, on record, within a transaction; None where it never had one."""
    done = connection.query(DESTROY, (actor, reason, subject))
    for name, moment, who, why in connection.query(FORGOTTEN, (subject,)):
        return Forgotten(name, in_utc(moment), who, why, before=not done)
    return None


def shredded(connection: Connection) -> int:
    """How many subjects were forgotten."""
    return int(connection.query(SHREDDED)[0][0])
