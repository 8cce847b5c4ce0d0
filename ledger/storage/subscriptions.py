"""How far each consumer of the feed is: a position by name, which moves by compare-and-set on itself."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from ledger.core.errors import InvalidCommand
from ledger.storage import feed
from ledger.storage.database import Connection
from ledger.storage.store import in_utc

BEGIN: Final = """
INSERT INTO {schema}.subscriptions (name, position, owner, changed_at) VALUES (%s, %s, %s, now())
ON CONFLICT (name) DO NOTHING
"""

# Locked for fairness: a second consumer waits, and then goes on behind the first one, instead of losing to it.
LOCKED: Final = "SELECT position FROM {schema}.subscriptions WHERE name = %s FOR NO KEY UPDATE"

STANDING: Final = "SELECT position FROM {schema}.subscriptions WHERE name = %s"

MOVE: Final = """
UPDATE {schema}.subscriptions SET position = %s, owner = %s, changed_at = now() WHERE name = %s AND position = %s
RETURNING position
"""

SEEK: Final = """
INSERT INTO {schema}.subscriptions (name, position, owner, changed_at) VALUES (%s, %s, %s, now())
ON CONFLICT (name) DO UPDATE SET position = excluded.position, owner = excluded.owner, changed_at = excluded.changed_at
"""

ALL: Final = """
SELECT s.name, s.position, s.owner, s.changed_at AT TIME ZONE 'UTC' FROM {schema}.subscriptions AS s
WHERE s.name > %s ORDER BY s.name LIMIT %s
"""


class Standing(NamedTuple):
    """How far the consumer of this name is: the last position that it has taken, who moved it there, and when."""

    name: str
    position: int
    owner: str
    changed_at: datetime


def taken_up(connection: Connection, name: str, start: int, owner: str) -> int:
    """
    Where a consumer stands, locked until its transaction ends; one that is new stands at `start`.

    Raises:
        InvalidCommand: Nothing was stamped at `start` yet.
    """
    rows = connection.query(LOCKED, (name,))
    if not rows:
        if start > (head := feed.head(connection)):
            raise InvalidCommand("start", f"{start!r} is not from 0 to {head}, the last one of the feed")
        connection.query(BEGIN, (name, start, owner))
        rows = connection.query(LOCKED, (name,))
    # At the higher levels of isolation another one, that began at the same time, is not seen: nor is what it took.
    return rows[0][0] if rows else start


def standing(connection: Connection, name: str) -> int | None:
    """Where a consumer stands; None if there is none of this name."""
    rows = connection.query(STANDING, (name,))
    return rows[0][0] if rows else None


def move(connection: Connection, name: str, before: int, after: int, owner: str) -> bool:
    """Move a consumer on from where it stood; whether it still stood there."""
    return bool(connection.query(MOVE, (after, owner, name, before)))


def seek(connection: Connection, name: str, position: int, owner: str) -> None:
    """Let a consumer go on after a position that a person has chosen."""
    connection.query(SEEK, (name, position, owner))


def subscriptions(connection: Connection, after: str, limit: int) -> list[Standing]:
    """All consumers in order of their names, after one of them."""
    rows = connection.query(ALL, (after, limit))
    return [Standing._make((*row[:3], in_utc(row[3]))) for row in rows]
