"""
What is asked about an inbox: how it stands, what it misses, which messages it has kept.

For people and their reports; nothing here is on the way of a message.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from ledger.order.cursor import Range, Status, Tally
from ledger.order.message import Message
from ledger.storage import dead_letters
from ledger.storage.database import Connection, Statement
from ledger.storage.mailbox import beyond
from ledger.storage.store import in_utc, plain_array, readable, text_array

RANGES_MAX: Final = 1_000
"""Missing ranges that are told of one stream."""

COUNTERS: Final = (
    *Tally._fields,
    *("rejected", "failed", "undecodable", "dead_lettered", "replayed"),
)
"""All that is counted of a source, so that what never happened can be seen to be 0."""

STATS: Final = """
SELECT counter, sum(count)::bigint FROM {schema}.inbox_counters WHERE source = %s GROUP BY counter
"""

GAUGES: Final = """
SELECT count(*), coalesce(sum(held), 0)::bigint, count(*) FILTER (WHERE status = 'parked'),
       extract(epoch FROM clock_timestamp() - min(waiting_since) FILTER (
           WHERE status <> 'flowing' OR last_error IS NOT NULL))::float8,
       count(*) FILTER (WHERE status = 'flowing' AND last_error IS NOT NULL)
FROM {schema}.inbox_streams WHERE source = %s
"""

_WAITING: Final = f"""
SELECT s.stream, s.last_sequence + 1, s.highest_sequence, s.held, {{status}}, {readable("s.waiting_since")},
       s.last_error
FROM {{{{schema}}}}.inbox_streams AS s
WHERE s.source = %(source)s AND s.stream >= %(beyond)s AND s.status {{compared}} 'flowing'
"""

# Each half has its index, and a stream whose next message fails waits as well.
GAPS: Final = f"""
SELECT * FROM (
    {_WAITING.format(status="s.status", compared="<>")}
    UNION ALL
    {_WAITING.format(status="'retrying'", compared="=")} AND s.deadline IS NOT NULL AND s.last_error IS NOT NULL
) AS w (stream, missing, highest, held, status, since, error)
WHERE w.status = ANY(%(statuses)s::text[]) ORDER BY w.stream LIMIT %(limit)s
"""

# What no row explains, from where the stream stands to the highest sequence heard of.
_MISSING: Final = """
WITH known AS (
    SELECT m.sequence AS first, m.sequence AS last FROM {schema}.inbox_messages AS m, {schema}.inbox_streams AS s
    WHERE m.stream = %(stream)s AND m.source = %(source)s AND s.stream = m.stream AND s.source = m.source
      AND m.sequence > s.last_sequence
    UNION ALL
    SELECT s.last_sequence, s.last_sequence FROM {schema}.inbox_streams AS s
    WHERE s.stream = %(stream)s AND s.source = %(source)s
    UNION ALL
    SELECT s.highest_sequence + 1, s.highest_sequence + 1 FROM {schema}.inbox_streams AS s
    WHERE s.stream = %(stream)s AND s.source = %(source)s AND s.highest_sequence > s.last_sequence
), ordered AS (
    SELECT last + 1 AS first, lead(first) OVER (ORDER BY first) - 1 AS last FROM known
)
"""

MISSING: Final = f"""{_MISSING}
SELECT first, last FROM ordered WHERE first <= last ORDER BY first LIMIT %(limit)s
"""

RELEASE: Final = f"""{_MISSING}
INSERT INTO {{schema}}.inbox_releases (
    stream, source, first_sequence, last_sequence, reason, actor, note, recorded_at)
SELECT %(stream)s, %(source)s, first, least(last, %(to)s), 'decided', %(actor)s, %(note)s, clock_timestamp()
FROM ordered WHERE first <= last AND first <= %(to)s
"""
"""What is missing up to a sequence: on record as gone on without."""

RELEASE_KEPT: Final = """
INSERT INTO {schema}.inbox_releases (
    stream, source, first_sequence, last_sequence, reason, actor, note, recorded_at)
VALUES (%(stream)s, %(source)s, %(to)s, %(to)s, 'decided', %(actor)s, %(note)s, clock_timestamp())
"""
"""What is in review, and waited for no longer."""

STREAMS: Final = """
SELECT s.stream, s.start_sequence, s.highest_sequence, s.status FROM {schema}.inbox_streams AS s
WHERE s.source = %s AND s.stream >= %s AND coalesce(s.stream = %s, true) AND s.start_sequence IS NOT NULL
ORDER BY s.stream LIMIT %s
"""

# The sequences that came in the time asked about span a range, and with it what is missing just before them; who is in
# it may have come at any time.
SPANS: Final = """
SELECT r.stream, coalesce(b.sequence + 1, least(s.start_sequence, r.first)), r.last FROM (
    SELECT m.stream, m.source, min(m.sequence) AS first, max(m.sequence) AS last FROM {schema}.inbox_messages AS m
    WHERE m.stream = ANY(%s::text[]) AND m.source = %s
      AND coalesce(m.received_at >= %s::timestamptz, true) AND coalesce(m.received_at < %s::timestamptz, true)
    GROUP BY m.stream, m.source
) AS r
JOIN {schema}.inbox_streams AS s ON s.stream = r.stream AND s.source = r.source
LEFT JOIN LATERAL (
    SELECT m.sequence FROM {schema}.inbox_messages AS m
    WHERE m.stream = r.stream AND m.source = r.source AND m.sequence < r.first ORDER BY m.sequence DESC LIMIT 1
) AS b ON true
"""

ARRIVED: Final = """
SELECT w.stream, count(*) FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS w (stream, first, last)
JOIN {schema}.inbox_messages AS m
  ON m.stream = w.stream AND m.source = %s AND m.sequence BETWEEN w.first AND w.last
GROUP BY w.stream
"""

HOLES: Final = """
SELECT h.stream, h.first, h.last FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS w (stream, first, last)
CROSS JOIN LATERAL (
    SELECT w.stream, before + 1 AS first, sequence - 1 AS last FROM (
        SELECT sequence, lag(sequence, 1, w.first - 1) OVER (ORDER BY sequence) AS before FROM (
            SELECT m.sequence FROM {schema}.inbox_messages AS m
            WHERE m.stream = w.stream AND m.source = %s AND m.sequence BETWEEN w.first AND w.last
            UNION ALL SELECT w.last + 1
        ) AS arrived
    ) AS pairs WHERE sequence > before + 1 ORDER BY sequence LIMIT %s
) AS h
ORDER BY h.stream, h.first
"""

DONE: Final = """
SELECT m.stream, m.sequence, m.content::text, m.outcome::text FROM {schema}.inbox_messages AS m
WHERE m.source = %s AND (m.stream, m.sequence) > (%s, %s) AND m.state = 'done'
  AND coalesce(m.stream = %s, true) AND m.sequence >= %s
ORDER BY m.stream, m.sequence LIMIT %s
"""

DONE_UNORDERED: Final = """
SELECT k.stream, k.message_id, k.content::text, k.outcome::text FROM {schema}.inbox_ids AS k
WHERE k.source = %s AND (k.stream, k.message_id) > (%s, %s) AND coalesce(k.stream = %s, true)
ORDER BY k.stream, k.message_id LIMIT %s
"""

NEW_OUTCOMES: Final = """
UPDATE {schema}.inbox_messages AS m SET outcome = n.outcome::json
FROM unnest(%s::text[], %s::bigint[], %s::text[]) AS n (stream, sequence, outcome)
WHERE m.stream = n.stream AND m.source = %s AND m.sequence = n.sequence
"""

NEW_OUTCOMES_UNORDERED: Final = """
UPDATE {schema}.inbox_ids AS k SET outcome = n.outcome::json
FROM unnest(%s::text[], %s::text[], %s::text[]) AS n (stream, message_id, outcome)
WHERE k.stream = n.stream AND k.source = %s AND k.message_id = n.message_id
"""

FORGET: Final = """
WITH page AS (
    SELECT stream, sequence FROM {schema}.inbox_messages
    WHERE source = %s AND (stream, sequence) > (%s, %s) AND state = 'done' AND content IS NOT NULL
      AND received_at < clock_timestamp() - %s::interval
    ORDER BY stream, sequence LIMIT %s
), forgotten AS (
    UPDATE {schema}.inbox_messages AS m SET content = NULL FROM page AS p
    WHERE m.stream = p.stream AND m.source = %s AND m.sequence = p.sequence
)
SELECT stream, sequence FROM page ORDER BY stream DESC, sequence DESC
"""

FORGET_UNORDERED: Final = """
WITH page AS (
    SELECT stream, message_id FROM {schema}.inbox_ids
    WHERE source = %s AND (stream, message_id) > (%s, %s) AND content IS NOT NULL
      AND received_at < clock_timestamp() - %s::interval
    ORDER BY stream, message_id LIMIT %s
), forgotten AS (
    UPDATE {schema}.inbox_ids AS k SET content = NULL FROM page AS p
    WHERE k.stream = p.stream AND k.source = %s AND k.message_id = p.message_id
)
SELECT stream, message_id FROM page ORDER BY stream DESC, message_id DESC
"""


NAMES: Final = """
SELECT stream FROM {schema}.inbox_streams WHERE source = %s AND stream >= %s ORDER BY stream LIMIT %s
"""


class Stats(NamedTuple):
    """
    What was counted of a source, and how it stands: streams, messages held, parked streams, the longest wait.

    `retrying` streams wait for their next message to be tried again.
    """

    counters: dict[str, int]
    streams: int
    held: int
    parked: int
    oldest_wait: timedelta | None
    retrying: int


class Gap(NamedTuple):
    """
    A stream that waits: for `missing`, with `held` messages up to `highest` kept meanwhile.

    Where it is `retrying`, that message is here, and could not be handled: `error` says why.
    """

    stream: str
    missing: int
    highest: int
    held: int
    status: str
    since: datetime | None
    error: str | None


class Completeness(NamedTuple):
    """Of one stream: how many of the sequences from `first` to `last` arrived, and which did not."""

    stream: str
    first: int
    last: int
    arrived: int
    status: str
    missing: list[Range]
    """The first RANGES_MAX of them."""


class Kept(NamedTuple):
    """A message that took effect, if its content was kept, and what came of it."""

    stream: str
    place: int | str
    message: Message | None
    outcome: str

    @property
    def rejected(self) -> bool:
        """Whether the rules refused it."""
        return "rejected" in json.loads(self.outcome)


def stats(connection: Connection, source: str) -> Stats:
    """The counters and gauges of a source."""
    counted, ((streams, held, parked, waited, retrying),) = connection.send([(STATS, (source,)), (GAUGES, (source,))])
    oldest = None if waited is None else timedelta(seconds=waited)
    return Stats(dict.fromkeys(COUNTERS, 0) | dict(counted), streams, held, parked, oldest, retrying)


def gaps(connection: Connection, source: str, status: Status | None, after: str | None, limit: int) -> list[Gap]:
    """The streams of a source that wait."""
    wanted = [Status.WAITING, Status.PARKED, "retrying"] if status is None else [status]
    asked = {"source": source, "beyond": beyond(after), "statuses": text_array(wanted), "limit": limit}
    return [
        Gap._make((*row[:5], None if row[5] is None else in_utc(row[5]), row[6]))
        for row in connection.query(GAPS, asked)
    ]


def missing(connection: Connection, source: str, stream: str, limit: int) -> list[Range]:
    """The sequences of a stream that nothing explains."""
    asked = {"source": source, "stream": stream, "limit": limit}
    return [Range(first, last) for first, last in connection.query(MISSING, asked)]


def release(connection: Connection, source: str, stream: str, to: int, actor: str | None, note: str | None) -> None:
    """Put on record what a stream goes on without."""
    connection.query(RELEASE, {"source": source, "stream": stream, "to": to, "actor": actor, "note": note})


def release_kept(
    connection: Connection, source: str, stream: str, sequence: int, actor: str | None, note: str | None
) -> None:
    """Put on record that a stream goes on without a message that is in review."""
    place = {"source": source, "stream": stream, "to": sequence}
    connection.query(RELEASE_KEPT, {**place, "actor": actor, "note": note})


def completeness(
    connection: Connection,
    source: str,
    stream: str | None,
    since: datetime | None,
    until: datetime | None,
    after: str | None,
    limit: int,
) -> tuple[list[Completeness], str | None]:
    """For each of a page of streams, and the last of the page; None where it was the last page."""
    rows = connection.query(STREAMS, (source, beyond(after), stream, limit))
    names = text_array(row[0] for row in rows)
    spans = {row[0]: (row[1], row[2]) for row in connection.query(SPANS, (names, source, since, until))}
    found: dict[str, Completeness] = {}
    for name, start, highest, status in rows:
        first, last = spans.get(name, (None, -1))
        if since is None:
            first = start if first is None else min(start, first)
        if until is None and (first is not None):
            last = max(last, highest)
        if first is not None and first <= last:
            found[name] = Completeness(name, first, last, 0, status, [])
    for name, count in connection.query(ARRIVED, (*_spans(found.values()), source)):
        found[name] = found[name]._replace(arrived=count)
    holed = [each for each in found.values() if each.arrived <= each.last - each.first]
    for name, first, last in connection.query(HOLES, (*_spans(holed), source, RANGES_MAX)):
        found[name].missing.append(Range(first, last))
    return list(found.values()), rows[-1][0] if len(rows) == limit else None


def done(
    connection: Connection, source: str, ordered: bool, stream: str | None, first: int, after: Kept | None, limit: int
) -> list[Kept]:
    """A page of the messages that took effect, in order."""
    if ordered:
        place: tuple[str, int | str] = ("", -1) if after is None else (after.stream, after.place)
        rows = connection.query(DONE, (source, *place, stream, first, limit))
    else:
        place = ("", "") if after is None else (after.stream, after.place)
        rows = connection.query(DONE_UNORDERED, (source, *place, stream, limit))
    return [Kept(row[0], row[1], None if row[2] is None else dead_letters.kept(row[2]), row[3] or "{}") for row in rows]


def new_outcomes(source: str, ordered: bool, changed: list[Kept]) -> Statement:
    """The statement that keeps what came of messages the next time."""
    streams, outcomes = text_array(each.stream for each in changed), text_array(each.outcome for each in changed)
    if ordered:
        places = plain_array(str(each.place) for each in changed)
        return NEW_OUTCOMES, (streams, places, outcomes, source)
    return NEW_OUTCOMES_UNORDERED, (streams, text_array(str(each.place) for each in changed), outcomes, source)


def forget(
    connection: Connection, source: str, ordered: bool, keep: timedelta, after: tuple[str, int | str], limit: int
) -> list[tuple[str, int | str]]:
    """Give up the contents of a page of messages that took effect; the places of them, the last first."""
    sql = FORGET if ordered else FORGET_UNORDERED
    return [(row[0], row[1]) for row in connection.query(sql, (source, *after, keep, limit, source))]


def _spans(streams: Collection[Completeness]) -> tuple[str, str, str]:
    return (
        text_array(each.stream for each in streams),
        plain_array(str(each.first) for each in streams),
        plain_array(str(each.last) for each in streams),
    )


def streams(connection: Connection, source: str, after: str | None, limit: int) -> list[str]:
    """The streams of a source, in order of their names."""
    return [stream for (stream,) in connection.query(NAMES, (source, beyond(after), limit))]
