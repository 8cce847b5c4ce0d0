"""
Dead letters: messages that a person decides about, and what was decided.

They are found by source and id, and decided about one at a time; what was decided is append-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

from ledger.order.decoders import cloudevents
from ledger.order.message import Message, encode
from ledger.storage.database import Connection, Row, Statement
from ledger.storage.store import bytes_array, in_utc, plain_array, readable, text_array

PUT_DEAD_LETTERS: Final = """
INSERT INTO {schema}.dead_letters (
    stream, source, dead_letter_id, sequence, message_id, why, error, attempts, digest, content, first_seen, last_seen,
    state)
SELECT d.stream, %s, gen_random_uuid(), d.sequence, d.message_id, why, error, attempts, d.digest, d.content::json,
       coalesce(k.received_at, now()), now(), 'open'
FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::bytea[], %s::text[])
AS d (stream, sequence, message_id, why, error, attempts, digest, content)
LEFT JOIN LATERAL (
    SELECT m.sequence, m.digest, m.received_at FROM {schema}.inbox_messages AS m
    WHERE m.stream = d.stream AND m.source = %s AND m.sequence >= d.sequence ORDER BY m.sequence LIMIT 1
) AS k ON k.sequence = d.sequence AND k.digest = d.digest
ORDER BY d.stream, d.message_id
ON CONFLICT (stream, source, message_id, digest, why) DO UPDATE
SET attempts = dead_letters.attempts + excluded.attempts, last_seen = now(), error = excluded.error,
    state = CASE
        WHEN dead_letters.state = 'discarded' THEN 'discarded'
        WHEN dead_letters.state = 'requeued' AND dead_letters.why IN ('sequence_conflict', 'id_conflict', 'unnumbered')
            THEN 'requeued' -- It took effect; this is a copy.
        ELSE 'open'
    END
"""
"""A message that is kept, because it was held or tried before, was first seen when it came."""

_LETTER: Final = f"""
d.dead_letter_id::text, d.source, d.stream, d.sequence, d.message_id, d.why, d.error, d.attempts, d.content::text,
{readable("d.first_seen")}, {readable("d.last_seen")}, d.state
"""

LETTERS: Final = f"""
SELECT {_LETTER} FROM {{schema}}.dead_letters AS d
WHERE d.source = %s AND d.dead_letter_id > %s::uuid AND d.state = %s
  AND coalesce(d.why = %s, true) AND coalesce(d.stream = %s, true)
ORDER BY d.dead_letter_id LIMIT %s
"""

LETTER: Final = f"""
SELECT {_LETTER} FROM {{schema}}.dead_letters AS d WHERE d.source = %s AND d.dead_letter_id = %s::uuid
"""

LOCK_LETTER: Final = f"{LETTER} FOR UPDATE"

DECIDE_LETTER: Final = """
WITH decided AS (
    UPDATE {schema}.dead_letters SET state = %s
    WHERE stream = %s AND source = %s AND dead_letter_id = %s::uuid
)
INSERT INTO {schema}.dead_letter_decisions (stream, source, dead_letter_id, recorded_at, decision, actor, note)
VALUES (%s, %s, %s::uuid, clock_timestamp(), %s, %s, %s)
"""

DECISIONS: Final = f"""
SELECT {readable("d.recorded_at")}, d.decision, d.actor, d.note FROM {{schema}}.dead_letter_decisions AS d
WHERE d.source = %s AND d.dead_letter_id = %s::uuid ORDER BY d.recorded_at
"""


Letter: TypeAlias = tuple[Message, str, str | None, int]
"""A message for a person to see: why, the error if there was one, and how often it was tried."""


class DeadLetter(NamedTuple):
    """A message that a person decides about: why it is here, the last error, how often it was tried."""

    dead_letter_id: str
    source: str
    stream: str
    sequence: int | None
    message_id: str
    why: str
    error: str | None
    attempts: int
    message: Message
    first_seen: datetime
    last_seen: datetime
    state: str


class LetterDecision(NamedTuple):
    """What was decided about a dead letter, by whom and why."""

    recorded_at: datetime
    decision: str
    actor: str | None
    note: str | None


def letters(
    connection: Connection, source: str, state: str, why: str | None, stream: str | None, after: str, limit: int
) -> list[DeadLetter]:
    """The dead letters of a source in order of their id."""
    return [_letter(row) for row in connection.query(LETTERS, (source, after, state, why, stream, limit))]


def letter(connection: Connection, source: str, dead_letter_id: str, *, lock: bool = False) -> DeadLetter | None:
    """One dead letter."""
    rows = connection.query(LOCK_LETTER if lock else LETTER, (source, dead_letter_id))
    return _letter(rows[0]) if rows else None


def decided(letter: DeadLetter, decision: str, actor: str | None, note: str | None) -> Statement:
    """The statement that records what was decided about a dead letter."""
    place = (letter.stream, letter.source, letter.dead_letter_id)
    return DECIDE_LETTER, (decision, *place, *place, decision, actor, note)


def decisions(connection: Connection, source: str, dead_letter_id: str) -> list[LetterDecision]:
    """What was decided about a dead letter, in order."""
    rows = connection.query(DECISIONS, (source, dead_letter_id))
    return [LetterDecision(in_utc(row[0]), *row[1:]) for row in rows]


def put(source: str, letters: Sequence[Letter]) -> Statement:
    """The statement that keeps messages for a person."""
    return PUT_DEAD_LETTERS, (source, *_columns(letters), source)


def kept(content: str) -> Message:
    """A message as it was kept."""
    (read,) = cloudevents(content.encode())
    assert isinstance(read, Message), f"a kept message cannot be read: {read}"
    return read


def _letter(row: Row) -> DeadLetter:
    return DeadLetter._make((*row[:8], kept(row[8]), in_utc(row[9]), in_utc(row[10]), row[11]))


def _columns(letters: Sequence[Letter]) -> list[str]:
    # One statement cannot put the same letter twice.
    letters = list({(each[0].stream, each[0].id, each[0].digest, each[1]): each for each in letters}.values())
    return [
        text_array(message.stream for message, _, _, _ in letters),
        plain_array("NULL" if message.sequence is None else str(message.sequence) for message, _, _, _ in letters),
        text_array(message.id for message, _, _, _ in letters),
        text_array(why for _, why, _, _ in letters),
        text_array(error for _, _, error, _ in letters),
        plain_array(str(attempts) for _, _, _, attempts in letters),
        bytes_array(message.digest for message, _, _, _ in letters),
        text_array(encode(message).decode() for message, _, _, _ in letters),
    ]
