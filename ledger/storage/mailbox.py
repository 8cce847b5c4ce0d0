"""
What the inbox keeps: rows ⇄ the facts of `order.cursor`.  Set-based, whatever the number of streams and messages.

All statements are about one source, and name the streams, by which the tables are placed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from ledger.core.canonical import utc_text
from ledger.order.cursor import (
    Cursor,
    Decision,
    Glimpse,
    Kept,
    Lookup,
    NotTaken,
    Range,
    State,
    Status,
    summed,
)
from ledger.order.message import SEQUENCE_MAX, Message, encode
from ledger.storage import dead_letters
from ledger.storage.database import Connection, Row, Statement
from ledger.storage.store import bytes_array, in_utc, plain_array, readable, text_array

SHARDS: Final = 16
_PART_MESSAGES: Final = 125
"""Written by one statement: the next ones are made meanwhile."""

OPEN_STREAMS: Final = """
INSERT INTO {schema}.inbox_streams (
    stream, source, last_sequence, highest_sequence, held, status, attempts, revision)
SELECT stream, %s, -1, -1, 0, 'flowing', 0, 0 FROM unnest(%s::text[]) AS s (stream) ORDER BY stream
ON CONFLICT (stream, source) DO NOTHING
"""

LOCK_STREAMS: Final = f"""
SELECT clock_timestamp() AT TIME ZONE 'UTC', s.stream, s.start_sequence, s.last_sequence, s.highest_sequence, s.held,
       s.status, {readable("s.waiting_since")}, s.revision, {readable("s.deadline")}, s.attempts, s.release_to
FROM {{schema}}.inbox_streams AS s
WHERE s.stream = ANY(%s::text[]) AND s.source = %s ORDER BY s.stream FOR NO KEY UPDATE
"""

_KEPT: Final = "m.stream, m.sequence, m.message_id, m.digest, m.state"

BY_SEQUENCE: Final = f"""
SELECT {_KEPT}, NULL FROM unnest(%s::text[], %s::bigint[]) AS w (stream, sequence)
CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.inbox_messages AS k
    WHERE k.stream = w.stream AND k.source = %s AND k.sequence >= w.sequence ORDER BY k.sequence LIMIT 1
) AS m
WHERE m.sequence = w.sequence
"""
"""
The next one from there, since only the primary key has the sequences in order.  Asked for an equal one, a plan that is
made before the first ANALYZE takes the index of ids for as good, and reads all of the stream for each message.
"""

BY_ID: Final = f"""
SELECT DISTINCT ON (m.stream, m.message_id) {_KEPT}, NULL
FROM unnest(%s::text[], %s::text[]) AS w (stream, message_id)
CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.inbox_messages AS k
    WHERE k.stream = w.stream AND k.source = %s AND k.message_id = w.message_id OFFSET 0
) AS m
ORDER BY m.stream, m.message_id, m.sequence
"""
"""
OFFSET 0 keeps PostgreSQL from joining the whole source: a plan that was made while the table was empty, and is kept
by the connection, would do that until the first ANALYZE.
"""

RUNS: Final = f"""
SELECT {_KEPT}, m.content::text FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS w (stream, start, most)
CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.inbox_messages AS h
    WHERE h.stream = w.stream AND h.source = %s AND h.state = 'held' AND h.sequence >= w.start
    ORDER BY h.sequence LIMIT w.most
) AS m
"""

RELEASES: Final = """
SELECT r.stream, r.first_sequence, r.last_sequence FROM unnest(%s::text[], %s::bigint[]) AS w (stream, sequence)
JOIN {schema}.inbox_releases AS r
  ON r.stream = w.stream AND r.source = %s AND w.sequence BETWEEN r.first_sequence AND r.last_sequence
"""

KNOWN_IDS: Final = """
SELECT m.stream, m.message_id, m.digest FROM unnest(%s::text[], %s::text[]) AS w (stream, message_id)
CROSS JOIN LATERAL (
    SELECT * FROM {schema}.inbox_ids AS k
    WHERE k.stream = w.stream AND k.source = %s AND k.message_id = w.message_id OFFSET 0
) AS m
UNION ALL
SELECT m.stream, m.message_id, m.digest FROM unnest(%s::text[], %s::text[]) AS w (stream, message_id)
CROSS JOIN LATERAL (
    SELECT * FROM {schema}.dead_letters AS d
    WHERE d.stream = w.stream AND d.source = %s AND d.message_id = w.message_id
      AND d.why = 'failed' AND d.state = 'discarded' OFFSET 0
) AS m
UNION ALL
SELECT m.stream, m.message_id, m.digest FROM unnest(%s::text[], %s::text[]) AS w (stream, message_id)
CROSS JOIN LATERAL (
    SELECT * FROM {schema}.inbox_messages AS k
    WHERE k.stream = w.stream AND k.source = %s AND k.message_id = w.message_id AND k.state = 'done' OFFSET 0
) AS m
"""
"""What took effect, in whatever order it was read then, and what somebody decided shall have none."""

SETTLE_IDS: Final = """
UPDATE {schema}.dead_letters AS d SET state = 'settled', last_seen = now()
FROM unnest(%s::text[], %s::text[], %s::bytea[]) AS t (stream, message_id, digest)
WHERE d.stream = t.stream AND d.source = %s AND d.message_id = t.message_id AND d.digest = t.digest
  AND d.why = 'failed' AND d.state = 'open'
"""

SET_ASIDE: Final = """
WITH aside AS (
    UPDATE {schema}.inbox_messages SET state = 'set_aside'
    WHERE stream = ANY(%s::text[]) AND source = %s AND state = 'held'
    RETURNING *
)
INSERT INTO {schema}.dead_letters (
    stream, source, dead_letter_id, sequence, message_id, why, attempts, digest, content, first_seen, last_seen, state)
SELECT stream, source, gen_random_uuid(), sequence, message_id, 'waited', 0, digest, content, received_at, now(), 'open'
FROM aside
ON CONFLICT (stream, source, message_id, digest, why) DO UPDATE SET last_seen = now(), state = 'open'
"""

PUT_MESSAGES: Final = """
INSERT INTO {schema}.inbox_messages (stream, source, sequence, message_id, digest, state, content, outcome, received_at)
SELECT stream, %s, sequence, message_id, digest, state, content::json, outcome::json, now()
FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::bytea[], %s::text[], %s::text[], %s::text[])
AS m (stream, sequence, message_id, digest, state, content, outcome)
ORDER BY stream, sequence
ON CONFLICT (stream, source, sequence) DO UPDATE
SET state = excluded.state, outcome = excluded.outcome, content = excluded.content
WHERE inbox_messages.state IN ('held', 'set_aside', 'review')
"""

PUT_IDS: Final = """
INSERT INTO {schema}.inbox_ids (stream, source, message_id, digest, content, outcome, received_at)
SELECT stream, %s, message_id, digest, content::json, outcome::json, now()
FROM unnest(%s::text[], %s::text[], %s::bytea[], %s::text[], %s::text[])
AS m (stream, message_id, digest, content, outcome)
ORDER BY stream, message_id
"""

SETTLE: Final = """
UPDATE {schema}.dead_letters AS d SET state = 'settled', last_seen = now()
FROM unnest(%s::text[], %s::bigint[]) AS t (stream, sequence)
WHERE d.stream = t.stream AND d.source = %s AND d.sequence = t.sequence AND d.state = 'open'
  AND d.why NOT IN ('sequence_conflict', 'id_conflict')
"""
"""What contradicts the message of its place is another one: a person decides about it all the same."""

PUT_RELEASES: Final = """
INSERT INTO {schema}.inbox_releases (stream, source, first_sequence, last_sequence, reason, recorded_at)
SELECT stream, %s, first, last, 'waited', now()
FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS r (stream, first, last)
"""

# Fails with division_by_zero unless every cursor is still where it was read.  There is none to insert, since all were
# opened; but the arbiter finds each by its key whatever plan PostgreSQL made, while a join reads all of a table that
# was empty when it was planned.
MOVE_CURSORS: Final = """
WITH moved AS (
    INSERT INTO {schema}.inbox_streams AS s (
        source, stream, start_sequence, last_sequence, highest_sequence, held, status, waiting_since, deadline,
        attempts, last_error, release_to, revision)
    SELECT %s, n.* FROM unnest(
        %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::timestamptz[],
        %s::timestamptz[], %s::integer[], %s::text[], %s::bigint[], %s::bigint[]) AS n
    ON CONFLICT (stream, source) DO UPDATE
    SET start_sequence = excluded.start_sequence, last_sequence = excluded.last_sequence,
        highest_sequence = excluded.highest_sequence, held = excluded.held, status = excluded.status,
        waiting_since = excluded.waiting_since, deadline = excluded.deadline, attempts = excluded.attempts,
        -- As long as it is stuck at the same message, its error stays, whatever arrives behind it.
        last_error = CASE WHEN excluded.attempts > 0 THEN coalesce(excluded.last_error, s.last_error)
                          ELSE excluded.last_error END,
        release_to = excluded.release_to, revision = excluded.revision
    WHERE s.revision = excluded.revision - 1
    RETURNING s.stream
)
SELECT 1 / (count(*) = %s)::integer FROM moved
"""

COUNT: Final = """
INSERT INTO {schema}.inbox_counters (source, shard, counter, count)
SELECT %s, %s, counter, count FROM unnest(%s::text[], %s::bigint[]) AS c (counter, count) ORDER BY counter
ON CONFLICT (source, shard, counter) DO UPDATE SET count = inbox_counters.count + excluded.count
"""


TAKE_AGAIN: Final = """
INSERT INTO {schema}.inbox_messages (stream, source, sequence, message_id, digest, state, content, received_at)
SELECT stream, source, sequence, message_id, digest, 'set_aside', content, first_seen FROM {schema}.dead_letters
WHERE stream = %s AND source = %s AND dead_letter_id = %s::uuid
ON CONFLICT (stream, source, sequence) DO UPDATE SET state = 'set_aside' WHERE inbox_messages.state = 'review'
"""

NEVER_TAKE: Final = """
UPDATE {schema}.inbox_messages SET state = 'review'
WHERE stream = %s AND source = %s AND sequence = %s AND digest = %s AND state = 'set_aside'
"""

LET_GO: Final = """
UPDATE {schema}.inbox_streams SET release_to = %s, deadline = now(), revision = revision + 1
WHERE stream = %s AND source = %s
"""

CALM: Final = """
UPDATE {schema}.inbox_streams SET attempts = 0, last_error = NULL, revision = revision + 1
WHERE stream = %s AND source = %s
"""

DUE: Final = """
SELECT stream FROM {schema}.inbox_streams
WHERE source = %s AND deadline <= now() AND stream >= %s ORDER BY stream LIMIT %s
"""
"""Not clock_timestamp(), which no index can be asked for."""


class Standing(NamedTuple):
    """Where a stream stands, and how it fares with its next message."""

    cursor: Cursor
    deadline: datetime | None = None
    attempts: int = 0
    release_to: int = -1
    error: str | None = None


class Settled(NamedTuple):
    """A message that was processed, and what came of it, as JSON."""

    message: Message
    outcome: str
    rejected: bool = False


def lock_streams(connection: Connection, source: str, streams: Sequence[str]) -> tuple[datetime, dict[str, Standing]]:
    """Lock the cursors of `streams`, in one order; what time it is, and where each stands."""
    names = text_array(streams)
    _, rows = connection.send([(OPEN_STREAMS, (source, names)), (LOCK_STREAMS, (names, source))])
    return in_utc(rows[0][0]), {row[1]: _standing(row) for row in rows}


def glimpses(connection: Connection, source: str, lookups: Mapping[str, Lookup]) -> dict[str, Glimpse]:
    """What each stream's decision needs of the messages that are kept; after the cursors were locked."""
    found = connection.send(_glimpsing(source, lookups))
    kept: dict[str, dict[int, Kept]] = {stream: {} for stream in lookups}
    for row in (*found[0], *found[1], *found[2]):
        one = _kept(row)
        if one.message is not None or one.sequence not in kept[row[0]]:
            kept[row[0]][one.sequence] = one
    released: dict[str, list[Range]] = {}
    for stream, first, last in found[3]:
        released.setdefault(stream, []).append(Range(first, last))
    run_to = {stream: SEQUENCE_MAX if wanted.run_from is not None else -1 for stream, wanted in lookups.items()}
    count: dict[str, int] = {}
    for stream, sequence, *_ in found[2]:
        count[stream] = count.get(stream, 0) + 1
        if count[stream] == lookups[stream].run_max:
            run_to[stream] = sequence
    return {
        stream: Glimpse(tuple(kept[stream].values()), tuple(released.get(stream, ())), run_to[stream])
        for stream in lookups
    }


def _glimpsing(source: str, lookups: Mapping[str, Lookup]) -> Iterator[Statement]:
    sequences = [(stream, sequence) for stream, wanted in lookups.items() for sequence in wanted.sequences]
    places = _places(sequences)
    yield BY_SEQUENCE, (*places, source)
    ids = [(stream, message_id) for stream, wanted in lookups.items() for message_id in wanted.ids]
    yield BY_ID, (text_array(stream for stream, _ in ids), text_array(message_id for _, message_id in ids), source)
    runs = [
        (stream, wanted.run_from, wanted.run_max) for stream, wanted in lookups.items() if wanted.run_from is not None
    ]
    starts = _places((stream, start) for stream, start, _ in runs)
    yield RUNS, (*starts, plain_array(str(most) for _, _, most in runs), source)
    yield RELEASES, (*places, source)


def due(connection: Connection, source: str, after: str | None, limit: int) -> list[str]:
    """Streams whose deadline has come."""
    return [stream for (stream,) in connection.query(DUE, (source, beyond(after), limit))]


def beyond(stream: str | None) -> str:
    """The least name after that of a stream, or of all: the stream that has none is named ""."""
    return "" if stream is None else f"{stream}\x01"


def known_ids(connection: Connection, source: str, messages: Sequence[Message]) -> dict[tuple[str, str], bytes]:
    """The digests of unordered messages that came before, by stream and id."""
    streams, ids = text_array(each.stream for each in messages), text_array(each.id for each in messages)
    return {(stream, name): digest for stream, name, digest in connection.query(KNOWN_IDS, (streams, ids, source) * 3)}


class _Changes(NamedTuple):
    """What decisions come to, all streams together."""

    rows: list[tuple[Message, State, str | None]]
    letters: list[dead_letters.Letter]
    releases: list[tuple[str, Range]]
    again: list[tuple[str, int]]
    tally: Counter[str]


def write(
    source: str,
    decisions: Mapping[str, tuple[Standing, Decision]],
    settled: Mapping[str, Sequence[Settled]],
    failed: Mapping[str, tuple[Message, str, int]],
    standing: Mapping[str, Standing],
    *,
    keep: bool = True,
) -> tuple[Iterator[Statement], Counter[str]]:
    """
    The statements that carry decisions out: messages, dead letters, releases, cursors; and what is to be counted.

    Each statement is made when it is asked for: the server works on one while the next is being made.

    `standing` is where each stream stands afterwards; `failed` are messages that are given up, with error and attempts.
    Unless told to `keep` them, what was processed leaves no content behind.
    """
    changes = _changes(decisions, settled, failed)
    return _written(source, decisions, changes, standing, keep), changes.tally


def _written(
    source: str,
    decisions: Mapping[str, tuple[Standing, Decision]],
    changes: _Changes,
    standing: Mapping[str, Standing],
    keep: bool,
) -> Iterator[Statement]:
    aside = [stream for stream, (_, decision) in decisions.items() if decision.set_aside_held]
    if aside:
        yield SET_ASIDE, (text_array(aside), source)
    for start in range(0, len(changes.rows), _PART_MESSAGES):
        yield PUT_MESSAGES, (source, *_message_columns(changes.rows[start : start + _PART_MESSAGES], keep))
    if changes.again:
        # Before new letters: what was taken again may have failed again.
        yield SETTLE, (*_places(changes.again), source)
    if changes.letters:
        yield dead_letters.put(source, changes.letters)
    if changes.releases:
        first = _places((stream, range_.first) for stream, range_ in changes.releases)
        yield PUT_RELEASES, (source, *first, plain_array(str(range_.last) for _, range_ in changes.releases))
    changed = {stream: after for stream, after in standing.items() if after != decisions[stream][0]}
    if changed:
        yield move(source, changed, decisions)


def _changes(
    decisions: Mapping[str, tuple[Standing, Decision]],
    settled: Mapping[str, Sequence[Settled]],
    failed: Mapping[str, tuple[Message, str, int]],
) -> _Changes:
    tallied = summed(decision.tally for _, decision in decisions.values())
    changes = _Changes([], [], [], [], Counter(tallied._asdict()))
    rows, letters, releases, again, tally = changes
    for stream, (before, decision) in decisions.items():
        rows += [(each.message, State.DONE, each.outcome) for each in settled.get(stream, ())]
        given_up = failed[stream][0].sequence if stream in failed else None
        rows += [(message, State.HELD, None) for message in decision.hold if message.sequence != given_up]
        rows += [(each.message, State.SET_ASIDE, None) for each in decision.overflow]
        rows += [(each.message, State.REVIEW, None) for each in decision.review if _takes_a_place(each)]
        letters += [(each.message, each.why.value, None, 0) for each in (*decision.review, *decision.overflow)]
        # What somebody decided to go on without is on record already.
        releases += [(stream, range_) for range_ in decision.released if range_.last > before.release_to]
        again += [(stream, sequence) for sequence in decision.taken_again]
    for message, error, attempts in failed.values():
        rows.append((message, State.REVIEW, None))
        letters.append((message, "failed", error, attempts))
    tally["failed"] = len(failed)
    tally["rejected"] = sum(each.rejected for run in settled.values() for each in run)
    # Also what SET_ASIDE makes of messages that were held.
    tally["dead_lettered"] = len(letters) + tally["set_aside"] - sum(len(d.overflow) for _, d in decisions.values())
    return changes


def move(source: str, changed: Mapping[str, Standing], before: Mapping[str, tuple[Standing, Any]]) -> Statement:
    """The statement that moves cursors from where they were before, unless somebody else has moved one."""
    cursors = [after.cursor for after in changed.values()]
    columns = (
        text_array(changed),
        plain_array("NULL" if cursor.start is None else str(cursor.start) for cursor in cursors),
        plain_array(str(cursor.last) for cursor in cursors),
        plain_array(str(cursor.highest) for cursor in cursors),
        plain_array(str(cursor.held) for cursor in cursors),
        text_array(cursor.status.value for cursor in cursors),
        _moments(cursor.waiting_since for cursor in cursors),
        _moments(after.deadline for after in changed.values()),
        plain_array(str(after.attempts) for after in changed.values()),
        text_array(after.error for after in changed.values()),
        plain_array("NULL" if after.release_to < 0 else str(after.release_to) for after in changed.values()),
        plain_array(str(before[stream][0].cursor.revision + 1) for stream in changed),
    )
    return MOVE_CURSORS, (source, *columns, len(changed))


def count(source: str, tally: Mapping[str, int]) -> Statement:
    """The statement that adds to the counters of a source."""
    counted = {name: number for name, number in tally.items() if number}
    shard = os.getpid() % SHARDS
    return COUNT, (source, shard, text_array(counted), plain_array(map(str, counted.values())))


def put_ids(source: str, settled: Sequence[Settled], *, keep: bool = True) -> Statement:
    """The statement that keeps unordered messages."""
    return PUT_IDS, (
        source,
        text_array(each.message.stream for each in settled),
        text_array(each.message.id for each in settled),
        bytes_array(each.message.digest for each in settled),
        text_array(encode(each.message).decode() if keep else None for each in settled),
        text_array(each.outcome for each in settled),
    )


def settle_ids(source: str, messages: Sequence[Message]) -> Statement:
    """The statement that closes the dead letters of unordered messages that have taken effect after all."""
    return SETTLE_IDS, (
        text_array(each.stream for each in messages),
        text_array(each.id for each in messages),
        bytes_array(each.digest for each in messages),
        source,
    )


def put_done(source: str, settled: Settled, *, keep: bool = True) -> list[Statement]:
    """The statements that keep what came of an ordered message that was taken after its turn."""
    message = settled.message
    assert message.sequence is not None
    return [
        (PUT_MESSAGES, (source, *_message_columns([(message, State.DONE, settled.outcome)], keep))),
        (SETTLE, (*_places([(message.stream, message.sequence)]), source)),
    ]


def _takes_a_place(refused: NotTaken) -> bool:
    """Whether a message in review is known by its sequence, so that a copy of it is a duplicate."""
    return refused.why.value in ("before_start", "released")


def _standing(row: Row) -> Standing:
    since = None if row[7] is None else in_utc(row[7])
    cursor = Cursor(row[2], row[3], row[4], row[5], Status(row[6]), since, row[8])
    return Standing(cursor, None if row[9] is None else in_utc(row[9]), row[10], -1 if row[11] is None else row[11])


def _kept(row: Row) -> Kept:
    _, sequence, message_id, digest, state, content = row
    return Kept(sequence, message_id, digest, State(state), None if content is None else dead_letters.kept(content))


def _places(places: Iterable[tuple[str, int]]) -> tuple[str, str]:
    each = list(places)
    return text_array(stream for stream, _ in each), plain_array(str(sequence) for _, sequence in each)


def _message_columns(rows: Sequence[tuple[Message, State, str | None]], keep: bool) -> list[str]:
    return [
        text_array(message.stream for message, _, _ in rows),
        plain_array(str(message.sequence) for message, _, _ in rows),
        text_array(message.id for message, _, _ in rows),
        bytes_array(message.digest for message, _, _ in rows),
        text_array(state.value for _, state, _ in rows),
        text_array(encode(message).decode() if keep or state is not State.DONE else None for message, state, _ in rows),
        text_array(outcome for _, _, outcome in rows),
    ]


def _moments(moments: Iterable[datetime | None]) -> str:
    return plain_array("NULL" if moment is None else utc_text(moment) for moment in moments)
