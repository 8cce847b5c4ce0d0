"""
The trail: one order of what happened beside the log, with numbers 1, 2, 3 … that have no gap and never change.

Repairs of projections, decisions about dead letters, releases of streams, keys that were destroyed, privileged actions
and replays are each in an append-only table of their own.  None of them is numbered when it is written: transactions do
not end in the order in which they begin, and to number them under a lock would make writers wait for each other.  As
in the feed, what has ended is numbered later, by whoever is about to read it and may write.  A reader who names a
number sees the same rows for ever: what was not seen when it was given out has a higher one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID, uuid4

from ledger.core.canonical import canonical_json
from ledger.storage.database import Connection, Statement

REPAIR: Final = "repair"
DECISION: Final = "dead_letter_decision"
RELEASE: Final = "inbox_release"
FORGOTTEN: Final = "subject_forgotten"
ACTION: Final = "privileged_action"
REPLAY: Final = "replay"

_LOCK: Final = 0x747261696C  # "trail": two who number at once do so one after the other.


class Source(NamedTuple):
    """Where the rows of a kind are: from what, how each is named, when it was, and which of them there are."""

    table: str
    place: str
    moment: str
    condition: str = "true"


SOURCES: Final[Mapping[str, Source]] = {
    REPAIR: Source("projection_repairs", "r.stream || ' ' || r.repair_id", "r.repaired_at"),
    DECISION: Source(
        "dead_letter_decisions",
        "concat_ws(' ', r.dead_letter_id, extract(epoch FROM r.recorded_at), r.source, r.stream)",
        "r.recorded_at",
    ),
    RELEASE: Source("inbox_releases", "concat_ws(' ', r.first_sequence, r.source, r.stream)", "r.recorded_at"),
    FORGOTTEN: Source("subject_keys", "r.key_id::text", "r.forgotten_at", "r.forgotten_at IS NOT NULL"),
    ACTION: Source("privileged_actions", "r.action_id::text", "r.recorded_at"),
    REPLAY: Source("replays", "r.replay_id::text", "r.replayed_at"),
}
"""The order of these, and of times, only says what is numbered first of what is numbered together."""


def _unnumbered(kind: str) -> str:
    source = SOURCES[kind]
    return f"""
    SELECT '{kind}' AS kind, ({source.place}) COLLATE "C" AS place, {source.moment} AS moment
    FROM {{schema}}.{source.table} AS r
    WHERE {source.condition} AND NOT EXISTS (
        SELECT FROM {{schema}}.trail AS t WHERE t.kind = '{kind}' AND t.place = ({source.place})
    )"""


_WAITING: Final = " UNION ALL ".join(map(_unnumbered, SOURCES))

WAITING: Final = f"SELECT count(*) FROM ({_WAITING}) AS w"

NUMBER: Final = f"""
INSERT INTO {{schema}}.trail (number, kind, place)
SELECT (SELECT coalesce(max(number), 0) FROM {{schema}}.trail) + row_number() OVER (ORDER BY moment, kind, place),
       kind, place
FROM ({_WAITING}) AS w RETURNING number
"""


def _gone(kind: str) -> str:
    source = SOURCES[kind]
    return f"""
    SELECT t.number, t.kind, t.place FROM {{schema}}.trail AS t
    WHERE t.kind = '{kind}' AND t.number <= %(trail)s AND NOT EXISTS (
        SELECT FROM {{schema}}.{source.table} AS r WHERE {source.condition} AND ({source.place}) = t.place
    )"""


GONE: Final = f"{' UNION ALL '.join(map(_gone, SOURCES))} ORDER BY number"
"""What has a number up to one that is given, and is not there any more."""

HEAD: Final = "SELECT coalesce(max(number), 0) FROM {schema}.trail"

NOTE: Final = """
INSERT INTO {schema}.privileged_actions (action_id, recorded_at, action, actor, database_user, subject, details)
VALUES (%s::uuid, clock_timestamp(), %s, %s, session_user, %s, %s::json)
"""

NOTE_REPLAYS: Final = """
INSERT INTO {schema}.replays (replay_id, transaction_id, replayed_at, actor)
SELECT replay_id, transaction_id, clock_timestamp(), actor
FROM unnest(%s::uuid[], %s::uuid[], %s::text[]) AS r (replay_id, transaction_id, actor)
"""


class Replayed(NamedTuple):
    """An answer that was given again: the transaction that it is about, and who asked this time."""

    transaction_id: str
    actor: str | None


def number(connection: Connection) -> int:
    """Number what is committed and has no number yet; how many that were."""
    with connection.transaction(unbounded=True):
        if not waiting(connection):
            return 0
        connection.query("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        # In a later statement, which sees what the one who had the lock has numbered.
        return len(connection.query(NUMBER))


def waiting(connection: Connection) -> int:
    """How many rows have no number yet."""
    return int(connection.query(WAITING)[0][0])


def head(connection: Connection) -> int:
    """The last number; 0 where there is none."""
    return int(connection.query(HEAD)[0][0])


def rows_of(kind: str, columns: str, joined: str = "") -> str:
    """The statement for the rows of a kind up to a number, in order: its number, whether it is there, and `columns`."""
    source = SOURCES[kind]
    return f"""
SELECT t.number, t.place, r.* FROM {{schema}}.trail AS t
LEFT JOIN (
    SELECT ({source.place}) COLLATE "C" AS place, {columns}
    FROM {{schema}}.{source.table} AS r {joined} WHERE {source.condition}
) AS r ON r.place = t.place
WHERE t.kind = '{kind}' AND t.number <= %(trail)s ORDER BY t.number
"""


def note(action: str, actor: str | None, subject: str, details: Mapping[str, object]) -> Statement:
    """The statement that puts a privileged action on record; in the transaction of the action itself."""
    return NOTE, (str(uuid4()), action, actor, subject, canonical_json(dict(details)))


def note_replays(replayed: Sequence[Replayed]) -> Statement:
    """The statement that puts on record which answers were given again."""
    return NOTE_REPLAYS, (
        [uuid4() for _ in replayed],
        [UUID(each.transaction_id) for each in replayed],
        [each.actor for each in replayed],
    )
