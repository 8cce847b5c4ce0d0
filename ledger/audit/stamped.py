"""
The feed against the log: every event has one position or waits for one, each stream is in order, and so are times.

What is compared is what the guards of the feed promise, for the case that somebody switched them off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ledger.audit.report import Report
from ledger.storage.database import Row
from ledger.storage.store import first_place

_COUNTED: Final = "SELECT count(*) FROM {schema}.feed AS f WHERE true {of_feed}"

_GAPS: Final = """
SELECT g.position, g.stream, g.version, g.before, g.position IS DISTINCT FROM g.before::numeric + 1,
       g.known_at < g.known_before
FROM (
    SELECT f.position, f.stream, f.version, lag(f.position, 1, 0::bigint) OVER positions AS before,
           f.known_at, lag(f.known_at) OVER positions AS known_before
    FROM {schema}.feed AS f WINDOW positions AS (ORDER BY f.position)
) AS g
WHERE (g.position IS DISTINCT FROM g.before::numeric + 1 OR g.known_at < g.known_before) {of_gaps}
ORDER BY g.position
"""

SKEW: Final = "interval '1 hour'"
"""A server's clock may have been ahead, and set right; or that of another server, before a failover."""

# What clocks that were ahead have recorded is known as late, and what is stamped after it a microsecond later.
_AHEAD: Final = f"""
CASE WHEN f.known_at <= (SELECT clock_timestamp() + {SKEW}) THEN false
     ELSE (f.known_at = e.recorded_at AND isfinite(f.known_at)
           OR f.known_at - interval '1 microsecond' <= (
               SELECT b.known_at FROM {{schema}}.feed AS b WHERE b.position < f.position
               ORDER BY b.position DESC LIMIT 1
           )) IS NOT TRUE END
"""

_STRANGE: Final = f"""
SELECT c.position, c.stream, c.version, c.nowhere, c.strange, c.foretold, c.ahead
FROM (
    SELECT f.position, f.stream, f.version, e.stream IS NULL AS nowhere,
           (e.event_hash = f.event_hash AND e.transaction_id = f.transaction_id) IS NOT TRUE AS strange,
           f.known_at < e.recorded_at AS foretold, {_AHEAD} AS ahead
    FROM {{schema}}.feed AS f LEFT JOIN {{schema}}.events AS e ON e.stream = f.stream AND e.version = f.version
    WHERE true {{of_feed}}
) AS c
WHERE c.strange OR c.foretold OR c.ahead ORDER BY c.position
"""

_DISORDERED: Final = """
SELECT d.position, d.stream, d.version, d.before
FROM (
    SELECT f.position, f.stream, f.version,
           lag(f.version) OVER (PARTITION BY f.stream ORDER BY f.position) AS before
    FROM {schema}.feed AS f WHERE true {of_feed}
) AS d
WHERE d.version <= d.before ORDER BY d.position
"""

_MISSING: Final = """
SELECT e.stream, e.version, e.transaction_id::text
FROM {schema}.events AS e
WHERE NOT EXISTS (SELECT FROM {schema}.feed AS f WHERE f.stream = e.stream AND f.version = e.version)
  AND NOT EXISTS (
    SELECT FROM (SELECT unnest(o.transaction_ids) AS transaction_id FROM {schema}.outbox AS o) AS i
    WHERE i.transaction_id = e.transaction_id
  ) {of_events}
ORDER BY e.stream, e.version
"""

# All events of a transaction are stamped together: any of them in the feed says that it waits in vain.
_WAITING: Final = """
WITH waiting AS (
    SELECT t.transaction_id, count(*) AS times
    FROM {schema}.outbox AS o CROSS JOIN unnest(o.transaction_ids) AS t (transaction_id)
    WHERE true {of_transactions} GROUP BY t.transaction_id
), stamped AS (
    SELECT DISTINCT e.transaction_id
    FROM waiting AS w JOIN {schema}.events AS e ON e.transaction_id = w.transaction_id
    JOIN {schema}.feed AS f ON f.stream = e.stream AND f.version = e.version
)
SELECT w.transaction_id::text, w.times, t.announced[1], s.transaction_id IS NOT NULL
FROM waiting AS w
LEFT JOIN {schema}.transactions AS t ON t.transaction_id = w.transaction_id
LEFT JOIN stamped AS s ON s.transaction_id = w.transaction_id
WHERE w.times > 1 OR t.transaction_id IS NULL OR s.transaction_id IS NOT NULL ORDER BY 1
"""

SCOPE: Final = {
    "{of_feed}": "AND f.stream = ANY(%(streams)s::text[])",
    "{of_gaps}": "AND g.stream = ANY(%(streams)s::text[])",
}
"""What a verification of some accounts adds to these statements, beside what it adds to all."""

Rows = Callable[[str], Iterable[Row]]


def _count(rows: Rows, report: Report) -> None:
    for (count,) in rows(_COUNTED):
        report.checked["feed"] += count


def _gaps(rows: Rows, report: Report) -> None:
    for position, stream, version, before, apart, fell in rows(_GAPS):
        if apart:
            problem = f"position {position} of the feed comes after {before}: what was between them is missing"
            report.add("feed", stream, version, "position", problem)
        if fell:
            problem = f"position {position} of the feed is known earlier than the one before it"
            report.add("feed", stream, version, "known_at", problem)


def _strange(rows: Rows, report: Report) -> None:
    for position, stream, version, nowhere, strange, foretold, ahead in rows(_STRANGE):
        if strange:
            told = "is no event of the log" if nowhere else "has another hash or transaction than the log"
            report.add("feed", stream, version, "event_hash", f"position {position} of the feed {told}")
        if foretold:
            problem = f"position {position} of the feed is known before it was recorded"
            report.add("feed", stream, version, "known_at", problem)
        if ahead:
            problem = f"position {position} of the feed is known at a time that has not come"
            report.add("feed", stream, version, "known_at", problem)


def _disordered(rows: Rows, report: Report) -> None:
    for position, stream, version, before in rows(_DISORDERED):
        told = "has a position already" if version == before else f"comes after version {before}"
        report.add("feed", stream, version, "position", f"at position {position} of the feed it {told}")


def _missing(rows: Rows, report: Report) -> None:
    for stream, version, transaction_id in rows(_MISSING):
        problem = f"it is not in the feed, and the outbox does not have its transaction {transaction_id}"
        report.add("feed", stream, version, "position", problem)


def _waiting(rows: Rows, report: Report) -> None:
    for transaction_id, times, announced, stamped in rows(_WAITING):
        place = first_place([announced])
        if announced is None:
            told = "is not in the log"
        elif stamped:
            told = "is in the feed already"
        else:
            told = f"is there {times} times"
        report.add("feed", *place, "outbox", f"transaction {transaction_id} waits in the outbox and {told}")


CHECKS: Final[dict[str, Callable[[Rows, Report], None]]] = {
    "feed's size": _count,
    "feed's positions": _gaps,
    "feed's events": _strange,
    "feed's order": _disordered,
    "feed's completeness": _missing,
    "outbox": _waiting,
}
"""Each is a step of a verification; rows of a statement → what is found."""
