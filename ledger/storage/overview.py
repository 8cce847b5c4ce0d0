"""What a person sees of the whole ledger at a glance, at a cost that does not grow with it without a bound."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from enum import StrEnum
from typing import Final, NamedTuple

from ledger.core.book import Balance, Terms
from ledger.core.errors import InvalidCommand
from ledger.core.events import Numbers, stripes_of
from ledger.core.money import Money
from ledger.storage import queries
from ledger.storage.database import Connection
from ledger.storage.queries import AccountLine
from ledger.storage.store import in_utc, plain_array, readable, text_array

COUNTED_MAX: Final = 10_000
"""How far rows are counted that nothing else counts; beyond it there are "at least so many"."""

SORTED_MAX: Final = 100_000
"""Accounts of an asset that are put in order of their balances, for which there is no index."""

POINTS_MAX: Final = 200
DAYS_MAX: Final = 366
SOURCES_MAX: Final = 100

STANDING: Final = f"""
SELECT (SELECT coalesce(max(f.position), 0) FROM {{schema}}.feed AS f),
       (SELECT {readable("min(o.recorded_at)")} FROM {{schema}}.outbox AS o),
       clock_timestamp() AT TIME ZONE 'UTC', count(*), coalesce(sum(cardinality(t.announced)), 0)::bigint
FROM (
    SELECT i.transaction_id FROM {{schema}}.outbox AS o CROSS JOIN unnest(o.transaction_ids) AS i (transaction_id)
    LIMIT %(limit)s
) AS w
CROSS JOIN LATERAL (
    SELECT t.announced FROM {{schema}}.transactions AS t WHERE t.transaction_id = w.transaction_id OFFSET 0
) AS t
"""

REPAIRS: Final = f"""
SELECT count(*), {readable("max(r.repaired_at)")}
FROM (SELECT repaired_at FROM {{schema}}.projection_repairs LIMIT %s) AS r
"""

SOURCES: Final = """
WITH RECURSIVE named (source) AS (
    (SELECT c.source FROM {schema}.inbox_counters AS c ORDER BY c.source LIMIT 1)
    UNION ALL
    SELECT (SELECT c.source FROM {schema}.inbox_counters AS c WHERE c.source > n.source ORDER BY c.source LIMIT 1)
    FROM named AS n WHERE n.source IS NOT NULL
)
SELECT n.source FROM named AS n WHERE n.source IS NOT NULL LIMIT %s
"""
"""From one source to the next, by the key: not as many rows are read as were counted."""

OPEN_LETTERS: Final = """
SELECT s.source, (
    SELECT count(*) FROM (
        SELECT FROM {schema}.dead_letters AS d WHERE d.source = s.source AND d.state = 'open' LIMIT %s
    ) AS open
) FROM unnest(%s::text[]) AS s (source)
"""

ANOMALIES: Final = """
SELECT a.day, a.kind, count(*), bool_or(a.is_last)
FROM (
    SELECT (happened AT TIME ZONE 'UTC')::date AS day, kind, number >= %(limit)s AS is_last
    FROM (
        SELECT d.first_seen AS happened, 'dead letters' AS kind, row_number() OVER () AS number
        FROM (SELECT first_seen FROM {schema}.dead_letters LIMIT %(limit)s) AS d
        UNION ALL
        SELECT r.recorded_at, 'released gaps', row_number() OVER ()
        FROM (SELECT recorded_at FROM {schema}.inbox_releases LIMIT %(limit)s) AS r
        UNION ALL
        SELECT p.repaired_at, 'projection repairs', row_number() OVER ()
        FROM (SELECT repaired_at FROM {schema}.projection_repairs LIMIT %(limit)s) AS p
    ) AS found
) AS a
WHERE a.day > (clock_timestamp() AT TIME ZONE 'UTC')::date - %(days)s::integer
GROUP BY a.day, a.kind ORDER BY a.day, a.kind
"""

TODAY: Final = "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date"

# What a name begins with is a range of the key.
_BEGINNING: Final = "a.account >= %(beginning)s AND a.account < %(beginning)s || chr(1114111)"

BY_NAME: Final = f"""
SELECT a.account, NULL FROM {{schema}}.accounts AS a
WHERE {_BEGINNING} AND strpos(a.account, '#') = 0 AND coalesce(a.account {{compared}} %(after)s, true) {{of_asset}}
ORDER BY a.account {{direction}} LIMIT %(limit)s
"""

COUNTED: Final = """
SELECT count(*) FROM (SELECT FROM {schema}.accounts AS a WHERE a.asset = %s LIMIT %s) AS counted
"""

BY_BALANCE: Final = f"""
SELECT o.account, o.posted::text
FROM (
    SELECT split_part(a.account, '#', 1) COLLATE "C" AS account,
           sum(CASE WHEN a.account_type IN ('asset', 'expense') THEN b.posted_debits - b.posted_credits
                    ELSE b.posted_credits - b.posted_debits END) AS posted
    FROM {{schema}}.accounts AS a JOIN {{schema}}.balances AS b ON b.stream = a.account
    WHERE a.asset = %(asset)s AND {_BEGINNING} GROUP BY 1
) AS o
WHERE coalesce((-o.posted, o.account) > (-%(posted)s::numeric, %(after)s), true)
ORDER BY -o.posted, o.account LIMIT %(limit)s
"""

OF_ASSET: Final = "AND a.asset = %(asset)s"

HEADS: Final = "SELECT b.stream, b.version FROM {schema}.balances AS b WHERE b.stream = ANY(%s::text[])"

POINTS: Final = f"""
SELECT {readable("e.recorded_at")}, e.stream, e.posted_debits::text, e.posted_credits::text, e.pending_debits::text,
       e.pending_credits::text
FROM unnest(%s::text[], %s::bigint[]) AS w (stream, version)
CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.events AS e WHERE e.stream = w.stream AND e.version = w.version OFFSET 0
) AS e
ORDER BY e.recorded_at, e.stream, e.version
"""


class Overview(NamedTuple):
    """
    How the whole stands at `now`.

    `stamped` events are in the feed, `waiting_events` of `waiting` transactions are not yet, the oldest of which was
    recorded at `waiting_since`.  `repairs` is how often a projection was mended, at `repaired_at` last.  What is
    counted to COUNTED_MAX is at least that.
    """

    now: datetime
    stamped: int
    waiting: int
    waiting_events: int
    waiting_since: datetime | None
    repairs: int
    repaired_at: datetime | None

    @property
    def lag_seconds(self) -> float:
        """How far the feed is behind: the age of the oldest transaction that waits."""
        return 0.0 if self.waiting_since is None else max(0.0, (self.now - self.waiting_since).total_seconds())


class Anomalies(NamedTuple):
    """Day → what kind → how many, of the `days`; not `complete` where there were too many to look at."""

    days: list[date]
    counts: dict[str, dict[date, int]]
    complete: bool


class Sort(StrEnum):
    """In which order accounts are listed."""

    NAME = "name"
    NAME_DOWN = "name_down"
    BALANCE = "balance"
    """The largest first, of one asset."""


class Found(NamedTuple):
    """A page of accounts, and `next`, from which the next page goes on; None where this is the last."""

    lines: list[AccountLine]
    next: str | None


class Series(NamedTuple):
    """
    A balance over time: points in order, the first and the last version among them.

    Between two points there may be versions, if there are more than POINTS_MAX; then it is not `complete`.
    """

    terms: Terms
    points: list[tuple[datetime, Money]]
    versions: int
    complete: bool


def overview(connection: Connection) -> Overview:
    """How the whole stands."""
    (standing,), (repairs,) = connection.send(
        [(STANDING, {"limit": COUNTED_MAX}), (REPAIRS, (COUNTED_MAX,))],
    )
    stamped, since, now, waiting, events = standing
    moments = [None if moment is None else in_utc(moment) for moment in (since, repairs[1])]
    return Overview(in_utc(now), stamped, waiting, events, moments[0], repairs[0], moments[1])


def sources(connection: Connection) -> list[str]:
    """The sources from which messages came, in order of their names; at most SOURCES_MAX."""
    return [source for (source,) in connection.query(SOURCES, (SOURCES_MAX,))]


def open_letters(connection: Connection, of: Sequence[str]) -> dict[str, int]:
    """Source → how many dead letters wait for a decision, counted to COUNTED_MAX."""
    return dict(connection.query(OPEN_LETTERS, (COUNTED_MAX, text_array(of))))


def anomalies(connection: Connection, days: int) -> Anomalies:
    """What did not go as it should on each of the last days, in UTC."""
    if not 1 <= days <= DAYS_MAX:
        raise InvalidCommand("days", f"{days} is not from 1 to {DAYS_MAX}")
    asked = {"limit": SORTED_MAX, "days": days}
    ((today,),), rows = connection.send([(TODAY, ()), (ANOMALIES, asked)])
    counts: dict[str, dict[date, int]] = {"dead letters": {}, "released gaps": {}, "projection repairs": {}}
    for day, kind, count, _ in rows:
        counts[kind][day] = count
    last = today.toordinal()
    shown = [date.fromordinal(last - back) for back in range(days - 1, -1, -1)]
    return Anomalies(shown, counts, not any(is_last for *_, is_last in rows))


def find_accounts(
    connection: Connection, beginning: str, asset: str | None, sort: Sort, after: str | None, limit: int
) -> Found:
    """
    Accounts whose names begin so, of one asset or of all; a page in an order.

    Raises:
        InvalidCommand: By balance, and no asset is named, or it has more than SORTED_MAX accounts; or `after` is the
            `next` of no such page.
    """
    queries.check_limit(limit)
    if sort is Sort.BALANCE:
        rows = _by_balance(connection, beginning, asset, after, limit)
    else:
        down = sort is Sort.NAME_DOWN
        sql = BY_NAME.replace("{compared}", "<" if down else ">").replace("{direction}", "DESC" if down else "ASC")
        sql = sql.replace("{of_asset}", "" if asset is None else OF_ASSET)
        rows = connection.query(sql, {"beginning": beginning, "after": after, "asset": asset, "limit": limit + 1})
    page = rows[:limit]
    lines = queries.lines(connection, [name for name, _ in page])
    last = None
    if len(rows) > limit:
        name, posted = page[-1]
        last = name if posted is None else f"{posted} {name}"
    return Found(lines, last)


def _by_balance(
    connection: Connection, beginning: str, asset: str | None, after: str | None, limit: int
) -> list[tuple[str, str]]:
    if asset is None:
        raise InvalidCommand("sort", "balances of different assets have no order: choose an asset")
    ((count,),) = connection.query(COUNTED, (asset, SORTED_MAX + 1))
    if count > SORTED_MAX:
        raise InvalidCommand("sort", f"{asset} has more than {SORTED_MAX:,} accounts: sort them by name")
    posted, _, name = (after or "").partition(" ")
    if after is not None and not (name and posted.removeprefix("-").isdecimal() and len(posted) <= _DIGITS_MAX):
        raise InvalidCommand("after", f"{after!r:.80} is not the `next` of a page in this order")
    asked = {"beginning": beginning, "asset": asset, "limit": limit + 1}
    started = {"posted": posted or None, "after": name or None}
    return [(found, minor) for found, minor in connection.query(BY_BALANCE, asked | started)]


def series(connection: Connection, name: str) -> Series:
    """
    A balance over time, at no more than POINTS_MAX points, however long the account's life.

    Of an account with stripes each point counts what had happened in each of them at the points that were looked at.

    Raises:
        UnknownAccount, Drift: As `queries.account`.
    """
    terms = queries.account(connection, name).terms
    assert terms is not None
    streams = stripes_of(name, terms.streams)
    heads: dict[str, int] = dict(connection.query(HEADS, (text_array(streams),)))
    each = max(2, POINTS_MAX // len(streams))
    wanted = [(stream, version) for stream, head in heads.items() for version in _spread(head, each)]
    places = text_array(stream for stream, _ in wanted), plain_array(str(version) for _, version in wanted)
    standing = dict.fromkeys(heads, Numbers())
    points: list[tuple[datetime, Money]] = []
    for moment, stream, *numbers in connection.query(POINTS, places):
        standing[stream] = Numbers(*(int(number or 0) for number in numbers))
        total = Numbers(*map(sum, zip(*standing.values(), strict=True)))
        points.append((in_utc(moment), Balance.from_numbers(name, terms, total, 0).posted))
    versions = sum(heads.values())
    kept = [points[index - 1] for index in _spread(len(points), POINTS_MAX)]
    return Series(terms, kept, versions, len(kept) == versions)


def _spread(last: int, most: int) -> list[int]:
    """At most so many of the numbers from 1 to `last`, with the first and the last, evenly."""
    if last <= most:
        return list(range(1, last + 1))
    return sorted({1 + round(step * (last - 1) / (most - 1)) for step in range(most)})


_DIGITS_MAX: Final = 60
