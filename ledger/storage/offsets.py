"""
Where consumer groups stand in the partitions that they read: the fence that a broker cannot give.

Who is given a partition takes its next epoch.  From then on the offset moves only for that epoch, in the transaction
that holds the effects of the messages: whoever had the partition before, and does not know yet, writes nothing.

Whoever had it may be frozen in the midst of such a transaction, with the offset locked.  That transaction carries the
partition's name, by which the next owner ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Final, NamedTuple

from ledger.core.canonical import canonical_json
from ledger.storage.database import Connection
from ledger.storage.store import in_utc, plain_array, text_array

_NAMED: Final = "SELECT set_config('application_name', %s, true)"

_END: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = ANY(%s::text[]) AND datname = current_database() AND usename = current_user
  AND pid <> pg_backend_pid()
"""

CLAIM: Final = """
INSERT INTO {schema}.consumer_offsets (group_name, topic, partition, epoch, owner, partitions, changed_at)
SELECT %s, topic, partition, 1, %s, partitions, now()
FROM unnest(%s::text[], %s::integer[], %s::integer[]) AS p (topic, partition, partitions)
ORDER BY topic, partition
ON CONFLICT (group_name, topic, partition) DO UPDATE
SET epoch = consumer_offsets.epoch + 1, owner = excluded.owner, changed_at = now()
RETURNING topic, partition, epoch, next_offset
"""

BEGIN: Final = """
UPDATE {schema}.consumer_offsets SET next_offset = %s, changed_at = now()
WHERE group_name = %s AND topic = %s AND partition = %s AND epoch = %s AND next_offset IS NULL
"""

# By <=, not =: records that no consumer sees, such as those of transactions, leave holes.
MOVE: Final = """
UPDATE {schema}.consumer_offsets SET next_offset = %s, changed_at = now()
WHERE group_name = %s AND topic = %s AND partition = %s AND epoch = %s AND next_offset <= %s
RETURNING next_offset
"""

STANDING: Final = """
SELECT epoch, next_offset, owner FROM {schema}.consumer_offsets
WHERE group_name = %s AND topic = %s AND partition = %s
"""

# Who is at it is fenced, and claims the partition again where it now stands.
SEEK: Final = """
UPDATE {schema}.consumer_offsets SET next_offset = %s, epoch = epoch + 1, owner = %s, changed_at = now()
WHERE group_name = %s AND topic = %s AND partition = %s
RETURNING epoch
"""

OFFSETS: Final = """
SELECT topic, partition, next_offset, epoch, owner, partitions, changed_at AT TIME ZONE 'UTC'
FROM {schema}.consumer_offsets
WHERE group_name = %s ORDER BY topic, partition
"""


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Claim(NamedTuple):
    """The right to move an offset, and where it stands; None where nobody has begun."""

    epoch: int
    next_offset: int | None


class Offset(NamedTuple):
    """Where a group stands in a partition; `partitions` are as many as the topic had when it was first given out."""

    topic: str
    partition: int
    next_offset: int | None
    epoch: int
    owner: str
    partitions: int
    changed_at: datetime


class Fenced(Exception):
    """Somebody else has taken the partition since."""

    def __init__(self, place: Place, owner: str) -> None:
        super().__init__(f"{place} was taken by {owner}")
        self.place = place


class AlreadyTaken(Exception):
    """These offsets were moved past by this very owner: a commit whose acknowledgement was lost."""

    def __init__(self, next_offset: int) -> None:
        super().__init__(next_offset)
        self.next_offset = next_offset


def claim(connection: Connection, group: str, owner: str, partitions: Mapping[Place, int]) -> dict[Place, Claim]:
    """Take the next epoch of these partitions, of which each one's topic has so many, and end who is still at them."""
    places = sorted(partitions)
    connection.query(_END, (text_array(_name(group, place) for place in places),))
    columns = (
        text_array(place.topic for place in places),
        plain_array(str(place.partition) for place in places),
        plain_array(str(partitions[place]) for place in places),
    )
    rows = connection.query(CLAIM, (group, owner, *columns))
    return {Place(topic, partition): Claim(epoch, offset) for topic, partition, epoch, offset in rows}


def begin(connection: Connection, group: str, place: Place, epoch: int, offset: int) -> None:
    """Say where a partition that nobody has read begins."""
    connection.query(BEGIN, (offset, group, *place, epoch))


def move(connection: Connection, group: str, place: Place, epoch: int, first: int, next_offset: int) -> None:
    """
    Move an offset past records that begin at `first`, and hold it until the transaction ends.

    Raises:
        Fenced: The partition is somebody else's now.
        AlreadyTaken: It is past `first`.
    """
    naming = (_NAMED, (_name(group, place),))
    _, moved = connection.send([naming, (MOVE, (next_offset, group, *place, epoch, first))])
    if moved:
        return
    rows = connection.query(STANDING, (group, *place))
    if not rows or rows[0][0] != epoch:
        raise Fenced(place, rows[0][2] if rows else "nobody: its row is gone")
    raise AlreadyTaken(rows[0][1])


def seek(connection: Connection, group: str, place: Place, offset: int, owner: str) -> bool:
    """Let a group go on from an offset that a person has chosen; whether it has ever read that partition."""
    return bool(connection.query(SEEK, (offset, owner, group, *place)))


def offsets(connection: Connection, group: str) -> list[Offset]:
    """Where a group stands, in order of topic and partition."""
    return [Offset._make((*row[:6], in_utc(row[6]))) for row in connection.query(OFFSETS, (group,))]


def _name(group: str, place: Place) -> str:
    # The server keeps 63 bytes of it.
    return f"ledger {sha256(canonical_json([group, *place]).encode()).hexdigest()[:32]}"
