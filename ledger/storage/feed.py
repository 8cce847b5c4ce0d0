"""
The feed: one order of everything, with positions 1, 2, 3 … that have no gap and never change.

Nothing is numbered when it is written.  Transactions do not end in the order in which they begin, so that a reader of
numbers that were given at the beginning goes past those of whoever is not done yet.  Instead every transaction leaves
a row in the outbox, and one stamper at a time moves what has ended from there into the feed, whole transactions in
order of (recorded_at, transaction, stream, version).

Why nothing is skipped: there is no cursor.  The stamper takes whatever it sees, and what it does not see yet stays in
the outbox until it does.

Why nothing is doubled: what is stamped leaves the outbox in the same statement, under the lease, and stream and version
are a key of the feed.

Why every stream is in order, however long a transaction takes and whatever the clocks say:

1. Version 2 of a stream is written by who has seen version 1 committed, or in the same transaction as it.  Whoever sees
   version 2 therefore sees version 1: in the feed already, or in the outbox beside it.
2. `recorded_at` grows from each version of a stream to the next, also where a clock steps back (`writer`), so that
   among what is seen the order of times never puts a version before an earlier one.
3. A batch is bounded, and so takes the beginning of that order.  It looks into the first rows of the outbox only.  Such
   a row may hold transactions of different times, and `outbox.recorded_at` is the earliest; what was recorded later
   than the first row that was not looked into waits, and its row keeps what was not taken.
4. If a row's time is wrong (releases before this one wrote the time of its last transaction), 3 may fail.  So the
   statement itself compares: each event must follow the version before it, in the feed or in the batch, or nothing is
   stamped; the times in the outbox are then set right from the transactions, and it is stamped again.

4 alone is what order rests on.  Times decide only what is tried first; without 3 it would try the same for ever.

What was known by when: `known_at` of a position is when its event was recorded, or as soon after that as nobody can
have asked yet.  It never falls from one position to the next, and what is stamped later is known later than all that
was stamped before, and than the feed's clock.  The clock goes on while there is nothing to stamp, so that all is known
until then; whoever moves it and whoever stamps wait for each other at its row.  What was known by a time that the feed
or its clock has reached is therefore the same positions for ever, however late a transaction of that time ends.
"""

from __future__ import annotations

from typing import Final

from psycopg import errors

from ledger.core.errors import CorruptLog
from ledger.core.events import LEDGER_STREAM, FeedEntry
from ledger.storage import leases
from ledger.storage.database import Connection
from ledger.storage.leases import LeaseLost
from ledger.storage.store import events_of_places, first_place, placed, recorded_transactions

STAMPER: Final = "stamper"
"""The lease under which the feed is written."""

BATCH_MAX: Final = 100_000
PAGE_MAX: Final = 1_000

WAITING: Final = "SELECT EXISTS (SELECT FROM {schema}.outbox)"

CLOCK: Final = """
SELECT known_until <= now() - make_interval(secs => %s) FROM {schema}.feed_clock
"""

# By the time at which the transaction began, everything had ended that the statement does not see.
MOVE_CLOCK: Final = """
UPDATE {schema}.feed_clock SET known_until = now()
WHERE known_until <= now() - make_interval(secs => %s) AND NOT EXISTS (SELECT FROM {schema}.outbox)
"""

HOLD_CLOCK: Final = "SELECT known_until FROM {schema}.feed_clock FOR NO KEY UPDATE"

_STREAM, _VERSION = placed("a.place")

# Sub-selects with OFFSET 0 are looked up row by row, by their keys.  As joins, a plan made for any number of rows
# could read a whole table for a few.
STAMP: Final = f"""
WITH leader AS (
    SELECT FROM {{schema}}.leases WHERE name = %(name)s AND epoch = %(epoch)s
), first AS (
    SELECT o.batch_id, o.transaction_ids, o.recorded_at,
           sum(cardinality(o.transaction_ids)) OVER (ORDER BY o.recorded_at, o.batch_id)
           - cardinality(o.transaction_ids) AS before
    FROM (SELECT * FROM {{schema}}.outbox ORDER BY recorded_at, batch_id LIMIT %(limit)s::bigint + 1) AS o, leader
), looked_into AS (
    SELECT batch_id, transaction_ids FROM first WHERE before < %(limit)s::bigint
), beyond AS (
    SELECT coalesce(min(recorded_at), 'infinity') AS recorded_at FROM first WHERE before >= %(limit)s::bigint
), listed AS (
    SELECT r.batch_id, i.place, i.transaction_id, t.recorded_at,
           coalesce(t.announced, ARRAY[i.transaction_id || ' 0']) AS announced
    FROM looked_into AS r CROSS JOIN unnest(r.transaction_ids) WITH ORDINALITY AS i (transaction_id, place)
    LEFT JOIN LATERAL (
        SELECT t.recorded_at, t.announced FROM {{schema}}.transactions AS t
        WHERE t.transaction_id = i.transaction_id OFFSET 0
    ) AS t ON true
), ranked AS (
    SELECT l.*, sum(cardinality(l.announced)) OVER (ORDER BY l.recorded_at, l.transaction_id) AS events
    FROM listed AS l
), decided AS MATERIALIZED (
    SELECT r.*, (r.recorded_at <= beyond.recorded_at) IS NOT FALSE
                AND (r.events <= %(limit)s::bigint OR r.events = cardinality(r.announced)) AS taken
    FROM ranked AS r, beyond
), placed AS (
    SELECT d.recorded_at, d.transaction_id, {_STREAM} AS stream, {_VERSION} AS version
    FROM decided AS d CROSS JOIN unnest(d.announced) AS a (place) WHERE d.taken
), numbered AS MATERIALIZED (
    SELECT (SELECT coalesce(max(position), 0) FROM {{schema}}.feed)
           + row_number() OVER (ORDER BY recorded_at, transaction_id, stream, version) AS position,
           lag(version) OVER (PARTITION BY stream ORDER BY recorded_at, transaction_id, version) AS previous,
           stream, version, transaction_id, recorded_at
    FROM placed
), known AS (
    SELECT greatest(
        (SELECT known_until FROM {{schema}}.feed_clock),
        (SELECT known_at FROM {{schema}}.feed ORDER BY position DESC LIMIT 1)
    ) + interval '1 microsecond' AS next
), ordered AS (
    SELECT bool_and(n.version = 1 + coalesce(n.previous, (
        SELECT f.version FROM {{schema}}.feed AS f WHERE f.stream = n.stream AND f.version = n.version - 1
    ), 0)) AS sound
    FROM numbered AS n
), stamped AS (
    INSERT INTO {{schema}}.feed (position, stream, version, transaction_id, event_hash, known_at)
    SELECT n.position, n.stream, n.version, n.transaction_id, e.event_hash, greatest(n.recorded_at, known.next)
    FROM known CROSS JOIN numbered AS n LEFT JOIN LATERAL (
        SELECT e.event_hash FROM {{schema}}.events AS e
        WHERE e.stream = n.stream AND e.version = n.version AND e.transaction_id = n.transaction_id OFFSET 0
    ) AS e ON true
    ORDER BY n.position
), removed AS (
    DELETE FROM {{schema}}.outbox
    WHERE batch_id = ANY(ARRAY(SELECT batch_id FROM decided GROUP BY batch_id HAVING bool_and(taken)))
), kept AS (
    UPDATE {{schema}}.outbox AS o SET transaction_ids = r.ids, recorded_at = r.recorded_at
    FROM (
        SELECT batch_id, array_agg(transaction_id ORDER BY place) FILTER (WHERE NOT taken) AS ids,
               min(recorded_at) FILTER (WHERE NOT taken) AS recorded_at
        FROM decided GROUP BY batch_id HAVING bool_or(taken) AND NOT bool_and(taken)
    ) AS r
    WHERE o.batch_id = r.batch_id
)
SELECT count(*), 1 / CASE WHEN (SELECT sound FROM ordered) THEN 1 ELSE 0 END
FROM numbered HAVING count(*) > 0
"""

SET_TIMES_RIGHT: Final = """
UPDATE {schema}.outbox AS o SET recorded_at = t.earliest
FROM (
    SELECT r.batch_id, min(t.recorded_at) AS earliest
    FROM {schema}.outbox AS r CROSS JOIN unnest(r.transaction_ids) AS i (transaction_id)
    CROSS JOIN LATERAL (
        SELECT t.recorded_at FROM {schema}.transactions AS t WHERE t.transaction_id = i.transaction_id OFFSET 0
    ) AS t
    GROUP BY r.batch_id
) AS t
WHERE o.batch_id = t.batch_id AND o.recorded_at <> t.earliest
RETURNING o.batch_id
"""

# What the statement that stamps refuses: which event it is.
_UNKNOWN: Final = """
SELECT coalesce(a.place, i.transaction_id || ' 0'), t.transaction_id IS NULL
FROM {schema}.outbox AS o CROSS JOIN unnest(o.transaction_ids) AS i (transaction_id)
LEFT JOIN {schema}.transactions AS t ON t.transaction_id = i.transaction_id
LEFT JOIN LATERAL unnest(t.announced) AS a (place) ON true
LEFT JOIN {schema}.events AS e ON e.stream || ' ' || e.version = a.place AND e.transaction_id = t.transaction_id
WHERE e.stream IS NULL ORDER BY 2 DESC, 1 LIMIT 1
"""
_UNPRECEDED: Final = f"""
WITH waiting AS MATERIALIZED (
    SELECT {_STREAM} AS stream, {_VERSION} AS version
    FROM {{schema}}.outbox AS o CROSS JOIN unnest(o.transaction_ids) AS i (transaction_id)
    JOIN {{schema}}.transactions AS t ON t.transaction_id = i.transaction_id
    CROSS JOIN unnest(t.announced) AS a (place)
)
SELECT w.stream, w.version FROM waiting AS w
WHERE w.version > 1
  AND NOT EXISTS (SELECT FROM {{schema}}.feed AS f WHERE f.stream = w.stream AND f.version = w.version - 1)
  AND NOT EXISTS (SELECT FROM waiting AS p WHERE p.stream = w.stream AND p.version = w.version - 1)
ORDER BY w.stream, w.version LIMIT 1
"""

HEAD: Final = "SELECT coalesce(max(position), 0) FROM {schema}.feed"

PAGE: Final = """
SELECT f.position, f.stream, f.version, f.transaction_id::text, f.event_hash FROM {schema}.feed AS f
WHERE f.position > %s ORDER BY f.position LIMIT %s
"""


class _OutOfOrder(Exception):
    """An event would come before the one that it follows."""


def is_waiting(connection: Connection) -> bool:
    """Whether anything waits to be stamped."""
    return bool(connection.query(WAITING)[0][0])


def move_clock(connection: Connection, seconds: float) -> None:
    """
    Let everything be known until now, if nothing waits to be stamped and the clock has stood for so many seconds.

    Outside of any transaction.
    """
    if connection.query(CLOCK, (seconds,)) == [(True,)]:
        connection.query(MOVE_CLOCK, (seconds,))


def stamp(connection: Connection, epoch: int, seconds: float, limit: int) -> int:
    """
    Move what waits into the feed, at most `limit` events unless one transaction has more; how many.

    In a transaction of its own, which begins by holding the lease of this epoch for so many seconds more.

    Raises:
        LeaseLost: It is another epoch; nothing was stamped.
        CorruptLog: What waits is not in the log, or does not follow what is in the feed; nothing was stamped.
    """
    try:
        stamped = _stamp(connection, epoch, seconds, limit)
        if stamped or not is_waiting(connection):
            return stamped
        # Or something waits that only seems to be earlier than all it follows.
    except _OutOfOrder:
        pass
    with connection.transaction(unbounded=True):
        connection.query(SET_TIMES_RIGHT)
    try:
        return _stamp(connection, epoch, seconds, limit)
    except _OutOfOrder:
        raise _refused(connection) from None


def _stamp(connection: Connection, epoch: int, seconds: float, limit: int) -> int:
    parameters = {"name": STAMPER, "epoch": epoch, "limit": limit}
    holding = [*connection.begin(), leases.hold(STAMPER, epoch, seconds)]
    try:
        *_, held, _, stamped, _ = connection.send([*holding, (HOLD_CLOCK, ()), (STAMP, parameters), ("COMMIT", ())])
    except errors.DivisionByZero as error:
        connection.rollback()
        raise _OutOfOrder from error
    except (errors.NotNullViolation, errors.DataError) as error:
        connection.rollback()
        raise _refused(connection) from error
    if not held:
        raise LeaseLost
    return stamped[0][0] if stamped else 0


def _refused(connection: Connection) -> CorruptLog:
    """Why what waits cannot be stamped."""
    if rows := connection.query(_UNKNOWN):
        place, nameless = rows[0]
        told = "the outbox names a transaction that is not in the log" if nameless else "it is announced and not there"
        return CorruptLog(*first_place([place]), told)
    if rows := connection.query(_UNPRECEDED):
        stream, version = rows[0]
        return CorruptLog(stream, version, "neither the feed nor the outbox has the event before it")
    return CorruptLog("", 0, "its times do not grow with its versions: the feed cannot be put in order")


def head(connection: Connection) -> int:
    """The last position; 0 where nothing was stamped."""
    return int(connection.query(HEAD)[0][0])


def page(connection: Connection, after: int, limit: int) -> list[FeedEntry]:
    """
    The entries after a position, in order.

    Raises:
        CorruptLog: The feed has a gap there, or names what the log does not have, or no event at all.
    """
    rows = connection.query(PAGE, (after, limit))
    if not rows:
        return []
    for position, stream, version, *rest in rows:
        if None in (stream, version, *rest):
            problem = f"position {position} of the feed cannot be read: a column is NULL"
            raise CorruptLog(stream or LEDGER_STREAM, version or 0, problem)
    events = events_of_places(connection, [(row[1], row[2]) for row in rows])
    transactions = {
        transaction.transaction_id: transaction
        for transaction in recorded_transactions(connection, sorted({row[3] for row in rows}))
    }
    entries = []
    for expected, (position, stream, version, transaction_id, event_hash) in enumerate(rows, after + 1):
        event, transaction = events.get((stream, version)), transactions.get(transaction_id)
        if position != expected:
            raise CorruptLog(stream, version, f"the feed has no position {expected}")
        if event is None or transaction is None or event.event_hash != event_hash:
            raise CorruptLog(stream, version, f"position {position} of the feed is not what the log has")
        entries.append(FeedEntry(position, event, transaction))
    return entries
