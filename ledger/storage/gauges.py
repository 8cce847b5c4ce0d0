"""
How the ledger stands, as an operator's gauges show it: feed, seal, inboxes, dead letters, repairs.

All of it in one snapshot and one round trip.  What is counted row by row is counted up to COUNT_MAX, and no statement
takes longer than SECONDS_MAX: whoever watches a ledger in trouble must not be one more of its troubles.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ledger.storage import feed, inbox_queries
from ledger.storage.database import Connection, Row, Statement

COUNT_MAX: Final = 100_000
"""Where counting ends: there are so many, or more."""

STREAMS_MAX: Final = 1_000_000
"""Where the counting of all streams of all inboxes ends."""

SECONDS_MAX: Final = 1.0
"""For each statement."""

SOURCES_MAX: Final = 50
"""Sources of messages that are told apart, the first ones by name; what is of any other is summed up."""

OTHER_SOURCES: Final = "(others)"

SUBSCRIPTIONS_MAX: Final = 100
"""Consumers of the feed whose lag is told, the first ones by name."""

FEED: Final = """
SELECT coalesce((SELECT max(position) FROM {schema}.feed), 0),
       (SELECT count(*) FROM (SELECT FROM {schema}.outbox LIMIT %(most)s) AS o),
       (SELECT extract(epoch FROM clock_timestamp() - recorded_at)::float8 FROM {schema}.outbox
        ORDER BY recorded_at LIMIT 1)
"""

SEAL: Final = """
SELECT size, extract(epoch FROM clock_timestamp() - sealed_at)::float8 FROM {schema}.checkpoints
ORDER BY size DESC LIMIT 1
"""

REPAIRS: Final = "SELECT count(*) FROM (SELECT FROM {schema}.projection_repairs LIMIT %(most)s) AS r"

SUBSCRIPTIONS: Final = "SELECT name, position FROM {schema}.subscriptions ORDER BY name LIMIT %(subscriptions)s"

# Each half has its index: almost all streams flow.
STUCK: Final = """
SELECT source, status, count(*), sum(held)::bigint,
       coalesce(extract(epoch FROM clock_timestamp() - min(waiting_since))::float8, 0)
FROM (
    (SELECT source, status, held, waiting_since FROM {schema}.inbox_streams WHERE status <> 'flowing' LIMIT %(most)s)
    UNION ALL
    (SELECT source, 'retrying', held, waiting_since FROM {schema}.inbox_streams
     WHERE status = 'flowing' AND deadline IS NOT NULL AND last_error IS NOT NULL LIMIT %(most)s)
) AS s GROUP BY source, status ORDER BY source, status
"""

LETTERS: Final = """
SELECT source, why, count(*) FROM (
    SELECT source, why FROM {schema}.dead_letters WHERE state = 'open' LIMIT %(most)s
) AS d GROUP BY source, why ORDER BY source, why
"""

COUNTERS: Final = """
SELECT source, counter, sum(count)::bigint FROM {schema}.inbox_counters GROUP BY source, counter ORDER BY source
"""

ALL_STREAMS: Final = "SELECT count(*) FROM (SELECT FROM {schema}.inbox_streams LIMIT %(streams)s) AS s"

# Changes no row, and is refused where none could be changed: on a standby, by a setting, or for want of a grant.
WRITABLE: Final = "UPDATE {schema}.leases SET until = until WHERE name = ''"

STAMPER: Final = """
SELECT coalesce((SELECT extract(epoch FROM clock_timestamp() - recorded_at)::float8 FROM {schema}.outbox
                 ORDER BY recorded_at LIMIT 1), 0),
       EXISTS (SELECT FROM {schema}.leases WHERE name = %(stamper)s AND until > clock_timestamp())
"""

_BOUNDS: Final[Mapping[str, object]] = {
    "most": COUNT_MAX,
    "streams": STREAMS_MAX,
    "subscriptions": SUBSCRIPTIONS_MAX,
    "stamper": feed.STAMPER,
}


class Stuck(NamedTuple):
    """Streams of one source that are waiting, parked or retrying; messages held for them; the longest wait."""

    source: str
    status: str
    streams: int
    held: int
    oldest_seconds: float


class Letters(NamedTuple):
    """Open dead letters of one source for one reason."""

    source: str
    why: str
    open: int


class Ordering(NamedTuple):
    """What the inboxes counted, by source; how many streams there are, up to STREAMS_MAX; those that do not flow."""

    counters: dict[str, dict[str, int]]
    streams: int
    stuck: list[Stuck]


class Gauges(NamedTuple):
    """
    How the ledger stands at one moment.

    `outbox` rows wait to be stamped, the oldest for `feed_lag_seconds`.  `sealed` events are those of the last
    checkpoint, made `seal_age_seconds` ago; None where nothing was ever sealed.  `repairs` are all that were ever made.
    `subscriptions` are behind the last position by so many.
    """

    position: int
    outbox: int
    feed_lag_seconds: float
    sealed: int
    seal_age_seconds: float | None
    repairs: int
    subscriptions: dict[str, int]
    stuck: list[Stuck]
    letters: list[Letters]
    counters: dict[str, dict[str, int]]


def gauges(connection: Connection) -> Gauges:
    """How the ledger stands."""
    asked = (FEED, SEAL, REPAIRS, SUBSCRIPTIONS, STUCK, LETTERS, COUNTERS)
    ((position, outbox, lag),), seal, ((repairs,),), standing, stuck, letters, counted = _ask(connection, asked)
    sealed, seal_age = seal[0] if seal else (0, None)
    counters = _by_source(counted)
    return Gauges(
        position,
        outbox,
        max(0.0, lag or 0.0),
        sealed,
        None if seal_age is None else max(0.0, seal_age),
        repairs,
        {name: max(0, position - taken) for name, taken in standing},
        _stuck(stuck, counters),
        _letters(letters, counters),
        counters,
    )


def ordering(connection: Connection) -> Ordering:
    """In which order the messages came."""
    counted, ((streams,),), stuck = _ask(connection, (COUNTERS, ALL_STREAMS, STUCK))
    counters = _by_source(counted)
    return Ordering(counters, streams, _stuck(stuck, counters))


def check_writable(connection: Connection) -> None:
    """
    Raise what the database says to whoever would change something.

    Whether there is room on its disk is not known before.
    """
    connection.query(WRITABLE)


def stamping(connection: Connection) -> tuple[float, bool]:
    """For how many seconds the oldest row of the outbox has waited; and whether somebody has the stamper's lease."""
    ((((seconds, held),)),) = _ask(connection, (STAMPER,))
    return max(0.0, seconds), held


def _ask(connection: Connection, asked: Sequence[str]) -> list[list[Row]]:
    bound: Statement = (f"SET LOCAL statement_timeout = {round(SECONDS_MAX * 1000)}", ())
    with connection.transaction(read_only=True):
        return connection.send([bound, *[(sql, _BOUNDS) for sql in asked]])[1:]


def _by_source(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Counters of the first sources by name, each with all that is counted; of all others together."""
    found: dict[str, dict[str, int]] = {}
    for source, counter, count in rows:
        name = source if source in found or len(found) < SOURCES_MAX else OTHER_SOURCES
        counts = found.setdefault(name, dict.fromkeys(inbox_queries.COUNTERS, 0))
        counts[counter] = counts.get(counter, 0) + count
    return found


def _named(source: str, known: Mapping[str, Any]) -> str:
    return source if source in known or len(known) < SOURCES_MAX else OTHER_SOURCES


def _stuck(rows: Sequence[Row], known: Mapping[str, Any]) -> list[Stuck]:
    found: dict[tuple[str, str], Stuck] = {}
    for source, status, streams, held, oldest in rows:
        place = _named(source, known), status
        before = found.get(place, Stuck(*place, 0, 0, 0.0))
        longest = max(before.oldest_seconds, oldest)
        found[place] = Stuck(*place, before.streams + streams, before.held + held, longest)
    return list(found.values())


def _letters(rows: Sequence[Row], known: Mapping[str, Any]) -> list[Letters]:
    found: defaultdict[tuple[str, str], int] = defaultdict(int)
    for source, why, count in rows:
        found[_named(source, known), why] += count
    return [Letters(*place, count) for place, count in found.items()]
