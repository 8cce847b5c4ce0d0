"""
Questions in two times: what an account came to on one day, as it was known on another.

*Known* is a position of the feed, which keeps the order of every stream: what was known of a stream there is its events
up to one version.  Versions are dense, so that a binary search finds it, from the head backwards in growing steps.

*Effective* is a moment.  `recorded_at` grows within a stream, so that the events recorded by then are those up to one
version again, whose numbers every event carries.  What counts at another time than it was recorded is set right one by
one: what counts by then and was recorded later is added, what counts later and was recorded by then is taken off.  An
index has these alone, by how far the two times are apart: of one distance only a span of that length is looked at, so
that not many more rows are read than matter, however long the account lives and however many of its events are dated.
That is for what is posted: what is pending is so from when a hold was recorded to when it was ended, in any case.

All of this asks the log, which never changes, for what lies up to given versions: the same question has the same answer
for ever, and needs no snapshot that is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

from ledger.core.book import Balance, Terms
from ledger.core.canonical import utc_text
from ledger.core.commands import AccountType
from ledger.core.errors import CorruptLog, NotYetKnown, UnknownAccount, UnknownStream
from ledger.core.events import Numbers, stripes_of
from ledger.core.money import SCALE_MAX, Money
from ledger.storage import queries
from ledger.storage.database import Connection
from ledger.storage.queries import Page, TrialBalance, TrialLine
from ledger.storage.store import EVENT_COLUMNS, in_utc, plain_array, readable, text_array
from ledger.storage.tables import DATED, DISTANCE

KnownAsOf: TypeAlias = datetime | int | None
"""A moment, a position of the feed, or None: all that was committed."""

_KNOWN_UNTIL: Final = """greatest(
    (SELECT known_until FROM {schema}.feed_clock),
    (SELECT f.known_at FROM {schema}.feed AS f ORDER BY f.position DESC LIMIT 1)
)"""

# A transaction is known as a whole: one that a position stands in the midst of is not known there.
WHOLE: Final = f"""
SELECT (SELECT coalesce(max(position), 0) FROM {{schema}}.feed), {readable("k.known_until")}, coalesce((
    SELECT f.position FROM {{schema}}.feed AS f
    WHERE f.position <= %(position)s::bigint AND f.transaction_id IS DISTINCT FROM (
        SELECT n.transaction_id FROM {{schema}}.feed AS n WHERE n.position = %(position)s::bigint + 1
    )
    ORDER BY f.position DESC LIMIT 1
), 0)
FROM (SELECT {_KNOWN_UNTIL} AS known_until) AS k
"""

# The last position that was known by then.
POSITION: Final = f"""
WITH RECURSIVE search (low, high) AS (
    SELECT 0::bigint, (SELECT coalesce(max(position), 0) + 1 FROM {{schema}}.feed)
    UNION ALL
    SELECT CASE WHEN hit THEN middle ELSE low END, CASE WHEN hit THEN high ELSE middle END
    FROM (
        SELECT s.low, s.high, (s.low + s.high) / 2 AS middle, (
            SELECT f.known_at <= %(moment)s::timestamptz FROM {{schema}}.feed AS f
            WHERE f.position = (s.low + s.high) / 2
        ) AS hit
        FROM search AS s WHERE s.high - s.low > 1 OFFSET 0
    ) AS s
)
SELECT s.low, (SELECT coalesce(max(position), 0) FROM {{schema}}.feed), {readable("k.known_until")},
       %(moment)s::timestamptz <= k.known_until
FROM search AS s, (SELECT {_KNOWN_UNTIL} AS known_until) AS k WHERE s.high - s.low = 1
"""


def _searched(name: str, found: str, streams: str, reached: str) -> str:
    """
    The common table expressions that find, in each of `streams`, the last version that is `reached`.

    `streams` has stream, version, at which the search begins, and known.  From there it goes back in steps that double
    until one is reached, and halves what is left: most streams end before a question, which then takes one look.  A
    condition in a sub-select is looked up by its key, whatever is thought of the size of a table; behind an OFFSET 0
    once, and not for each column that depends on it.
    """
    return f"""
{name} (stream, known, low, high, step) AS (
    SELECT stream, known, 0::bigint, version + 1, 1::bigint FROM {streams}
    UNION ALL
    SELECT stream, known, CASE WHEN hit THEN probe ELSE low END, CASE WHEN hit THEN high ELSE probe END,
           CASE WHEN low = 0 THEN step * 2 ELSE step END
    FROM (
        SELECT p.*, ({reached}) AS hit
        FROM (
            SELECT s.*, CASE WHEN low = 0 THEN greatest(high - step, 1) ELSE (low + high) / 2 END AS probe
            FROM {name} AS s WHERE s.high - s.low > 1
        ) AS p OFFSET 0
    ) AS s
), {found} AS (
    SELECT stream, coalesce(known, low) AS known, low AS version FROM {name} WHERE high - low = 1
)"""


_HEADS: Final = """
heads AS (
    SELECT s.stream, NULL::bigint AS known, (
        SELECT e.version FROM {schema}.events AS e WHERE e.stream = s.stream ORDER BY e.version DESC LIMIT 1
    ) AS version
    FROM {streams} AS s (stream)
), """

_KNOWN: Final = _searched(
    "known_search",
    "known",
    "heads",
    """%(position)s::bigint IS NULL OR (
            SELECT f.position <= %(position)s::bigint FROM {schema}.feed AS f
            WHERE f.stream = p.stream AND f.version = p.probe
        )""",
)

_RECORDED: Final = _searched(
    "recorded_search",
    "recorded",
    "known",
    """%(effective)s::timestamptz IS NULL OR (
            SELECT e.recorded_at <= %(effective)s::timestamptz FROM {schema}.events AS e
            WHERE e.stream = p.stream AND e.version = p.probe
        )""",
)


def distances(streams: str, asked: str = "true") -> str:
    """
    The common table expressions of which distances of two times there are in `streams`, which has stream and known.

    From each a look leads to the next.  A span of 2^38 seconds and more is all of time, and has no length: no two
    moments that can be written down are so far apart.
    """
    return f"""
distances (stream, known, distance) AS (
    SELECT s.stream, s.known, (
        SELECT {DISTANCE} FROM {{schema}}.events AS e WHERE e.stream = s.stream AND {DATED}
        ORDER BY {DISTANCE} LIMIT 1
    )
    FROM {streams} AS s WHERE s.known > 0 AND {asked}
    UNION ALL
    SELECT d.stream, d.known, (
        SELECT {DISTANCE} FROM {{schema}}.events AS e
        WHERE e.stream = d.stream AND {DATED} AND {DISTANCE} > d.distance
        ORDER BY {DISTANCE} LIMIT 1
    )
    FROM distances AS d WHERE d.distance IS NOT NULL
), spans AS (
    SELECT d.*, CASE WHEN abs(d.distance) < 38 THEN make_interval(secs => 2 ^ abs(d.distance)) END AS length
    FROM distances AS d WHERE d.distance IS NOT NULL
)"""


_DISTANCES: Final = distances("known", "%(effective)s::timestamptz IS NOT NULL")
_CROSSING: Final = f"""
crossing AS (
    SELECT s.stream, s.known, sign(s.distance)::bigint AS sign, e.version
    FROM spans AS s CROSS JOIN LATERAL (
        SELECT e.version FROM {{schema}}.events AS e
        WHERE e.stream = s.stream AND {DATED} AND {DISTANCE} = s.distance
          AND e.recorded_at > CASE WHEN s.distance > 0 THEN %(effective)s::timestamptz
                                   ELSE coalesce(%(effective)s::timestamptz - s.length, '-infinity') END
          AND e.recorded_at <= CASE WHEN s.distance > 0 THEN coalesce(%(effective)s::timestamptz + s.length, 'infinity')
                                    ELSE %(effective)s::timestamptz END
          AND (e.effective_at <= %(effective)s::timestamptz) = (s.distance > 0)
        OFFSET 0
    ) AS e
    WHERE e.version <= s.known
)"""

_POSTED: Final = ("posted_debits", "posted_credits")
_NUMBERS: Final = (*_POSTED, "pending_debits", "pending_credits")
# Numbers after the last version that was recorded by then, and what each that crosses makes of what is posted.  What is
# pending does not cross: a hold counts at once, and until it is ended, whatever time either of the two is said to have.
_PARTS: Final = f"""
parts AS (
    SELECT r.stream, r.known, r.version AS recorded, r.version AS events, {", ".join(f"n.{name}" for name in _NUMBERS)}
    FROM recorded AS r LEFT JOIN LATERAL (
        SELECT {", ".join(_NUMBERS)} FROM {{schema}}.events AS e
        WHERE e.stream = r.stream AND e.version = r.version OFFSET 0
    ) AS n ON true
    UNION ALL
    SELECT c.stream, c.known, 0, c.sign,
           {", ".join(f"c.sign * (a.{name} - coalesce(b.{name}, 0))" for name in _POSTED)}, 0, 0
    FROM crossing AS c CROSS JOIN LATERAL (
        SELECT {", ".join(_POSTED)} FROM {{schema}}.events AS e
        WHERE e.stream = c.stream AND e.version = c.version OFFSET 0
    ) AS a LEFT JOIN LATERAL (
        SELECT {", ".join(_POSTED)} FROM {{schema}}.events AS e
        WHERE e.stream = c.stream AND e.version = c.version - 1 OFFSET 0
    ) AS b ON true
), standing AS (
    SELECT stream, max(known) AS known, max(recorded) AS recorded, sum(events) AS events,
           {", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in _NUMBERS)}
    FROM parts GROUP BY stream
)"""

_GIVEN: Final = "unnest(%(streams)s::text[])"
_ACCOUNTS: Final = """(
    SELECT e.stream FROM {schema}.events AS e WHERE e.version = 1 AND e.type = 'account_opened'
)"""

KNOWN_VERSIONS: Final = f"""
WITH RECURSIVE {_HEADS.replace("{streams}", _GIVEN)}{_KNOWN}
SELECT stream, known FROM known
"""

AS_OF: Final = f"""
WITH RECURSIVE known AS (
    SELECT * FROM unnest(%(streams)s::text[], %(known)s::bigint[], %(known)s::bigint[]) AS s (stream, known, version)
), {_RECORDED}, {_DISTANCES}, {_CROSSING}, {_PARTS}
SELECT stream, recorded, {", ".join(f"{name}::text" for name in _NUMBERS)} FROM standing
"""

TRIAL_BALANCE: Final = f"""
WITH RECURSIVE {_HEADS.replace("{streams}", _ACCOUNTS)}{_KNOWN}, {_RECORDED}, {_DISTANCES}, {_CROSSING}, {_PARTS}
SELECT o.asset, o.scale, o.account_type, count(DISTINCT split_part(s.stream, '#', 1)),
       sum(s.posted_debits)::text, sum(s.posted_credits)::text, min(s.stream)
FROM standing AS s CROSS JOIN LATERAL (
    SELECT e.payload ->> 'asset' COLLATE "C" AS asset, e.payload ->> 'scale' COLLATE "C" AS scale,
           e.payload ->> 'account_type' COLLATE "C" AS account_type
    FROM {{schema}}.events AS e WHERE e.stream = s.stream AND e.version = 1 OFFSET 0
) AS o
WHERE s.known > 0 AND s.events > 0
GROUP BY 1, 2, 3 ORDER BY 1, 3
"""


# What was recorded by then, as a page of all has it, but for what counts later; and what crosses to be counted.
_HISTORY: Final = f"""
WITH RECURSIVE known AS (
    SELECT * FROM unnest(%(streams)s::text[], %(known)s::bigint[], %(known)s::bigint[]) AS s (stream, known, version)
), {_RECORDED}, {_DISTANCES}, {_CROSSING}, begun AS (
    SELECT * FROM unnest(%(streams)s::text[], %(begun)s::bigint[]) AS s (stream, version)
), found AS (
    SELECT e.stream, e.version
    FROM begun AS b JOIN recorded AS r ON r.stream = b.stream CROSS JOIN LATERAL (
        SELECT e.stream, e.version FROM {{schema}}.events AS e
        WHERE e.stream = b.stream AND e.version {{beyond}} b.version AND e.version <= r.version
          AND e.effective_at <= %(effective)s::timestamptz
        ORDER BY e.version {{order}} LIMIT %(limit)s
    ) AS e
    UNION ALL
    SELECT c.stream, c.version FROM begun AS b JOIN crossing AS c ON c.stream = b.stream
    WHERE c.sign > 0 AND c.version {{beyond}} b.version
)
SELECT {EVENT_COLUMNS}
FROM found AS p CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.events AS e WHERE e.stream = p.stream AND e.version = p.version OFFSET 0
) AS e
ORDER BY e.recorded_at {{order}}, e.stream {{order}}, e.version {{order}} LIMIT %(limit)s
"""
HISTORY_FORWARD: Final = _HISTORY.replace("{beyond}", ">").replace("{order}", "ASC")
HISTORY_BACKWARD: Final = _HISTORY.replace("{beyond}", "<").replace("{order}", "DESC")

_SCALES: Final = {str(scale): scale for scale in range(SCALE_MAX + 1)}
_KINDS: Final = frozenset(map(str, AccountType))


class Counted(NamedTuple):
    """Where a stream stood: the last version known, the last of them recorded by a moment, and what counted then."""

    known: int
    recorded: int
    numbers: Numbers


def position(connection: Connection, known_as_of: KnownAsOf) -> int | None:
    """
    The position of the feed that a question is pinned to; None where it is about all that was committed.

    It is the end of a transaction: of one in the midst of which the question stands nothing is known.

    Raises:
        NotYetKnown: Something may still be stamped that was known by then.
    """
    if known_as_of is None:
        return None
    said = _said(known_as_of)
    if isinstance(known_as_of, int):
        ((head, until, whole),) = connection.query(WHOLE, {"position": known_as_of})
        if known_as_of > head:
            raise NotYetKnown(said, utc_text(in_utc(until)), head)
        return int(whole)
    ((found, head, until, known),) = connection.query(POSITION, {"moment": said})
    if not known:
        raise NotYetKnown(said, utc_text(in_utc(until)), head)
    return int(found)


def _said(known_as_of: datetime | int) -> str:
    return f"position {known_as_of}" if isinstance(known_as_of, int) else utc_text(known_as_of)


def _not_then(name: str, known_as_of: KnownAsOf) -> UnknownAccount | UnknownStream:
    return queries.unknown(name, None if known_as_of is None else _said(known_as_of))


def known_versions(connection: Connection, streams: list[str], pinned: int | None) -> dict[str, int]:
    """Stream → its last version that was known at a position, or its last one; of what is nowhere, nothing."""
    found = connection.query(KNOWN_VERSIONS, {"streams": text_array(streams), "position": pinned})
    known = {stream: version for stream, version in found if version}
    return {stream: known[stream] for stream in streams if stream in known}


def standings(connection: Connection, known: Mapping[str, int], effective: datetime | None) -> dict[str, Counted]:
    """
    Stream → what counted in it at a moment, up to and with it, of its events up to the version that is known.

    Posted is what is effective by then, and pending what was recorded as held by then, and not as ended.
    """
    versions = plain_array(map(str, known.values()))
    parameters = {"streams": text_array(known), "known": versions, "effective": effective and utc_text(effective)}
    return {
        stream: Counted(known[stream], recorded, Numbers(*map(int, numbers)))
        for stream, recorded, *numbers in connection.query(AS_OF, parameters)
    }


def balance(connection: Connection, name: str, effective: datetime | None, known_as_of: KnownAsOf) -> Balance:
    """
    The balance at a moment, as it was known: posted is what is effective by then, pending what is recorded by then.

    Raises:
        UnknownAccount: There is none, or nothing was known of it.
        NotYetKnown, Drift: As `position`; the projection of the account is not what we wrote.
    """
    terms, known, pinned = account(connection, name, known_as_of)
    return summed(name, terms, standings(connection, known, effective), pinned)


def account(connection: Connection, name: str, known_as_of: KnownAsOf) -> tuple[Terms, dict[str, int], int | None]:
    """
    What an account is, the last version of each of its streams that was known, and the position that is pinned to.

    Raises:
        UnknownAccount, NotYetKnown, Drift: As `balance`.
    """
    pinned = position(connection, known_as_of)
    while True:  # An account never has fewer streams: the second time is mostly the last.
        terms = _terms(connection, name)
        known = known_versions(connection, stripes_of(name, terms.streams), pinned)
        # What was known at a position is in streams that were there when the position was found.
        if pinned is not None or _terms(connection, name).streams == terms.streams:
            break
    if name not in known:
        raise _not_then(name, known_as_of)
    return terms, known, pinned


def _terms(connection: Connection, name: str) -> Terms:
    terms = queries.account(connection, name).terms
    assert terms is not None  # Or there would be no such account.
    return terms


def summed(name: str, terms: Terms, found: Mapping[str, Counted], pinned: int | None) -> Balance:
    """An account's balance, of all of its streams."""
    numbers = Numbers(*map(sum, zip(*(each.numbers for each in found.values()), strict=True)))
    version = sum(each.known for each in found.values())
    return Balance.from_numbers(name, terms, numbers, version)._replace(position=pinned)


def history(
    connection: Connection,
    name: str,
    after_version: int | str,
    before_version: int | str | None,
    limit: int,
    effective: datetime | None,
    known_as_of: KnownAsOf,
) -> Page:
    """
    A page of `queries.history`, without what was not known, and what is effective later than a moment.

    A page of what is effective by a moment looks at all that was recorded after it and is, or before it and is not.

    Raises:
        UnknownAccount, UnknownStream: There is none, or nothing was known of it.
        NotYetKnown, StripedAccount, InvalidCommand, Drift: As `position` and `queries.history`.
    """
    pinned = position(connection, known_as_of)
    known = known_versions(connection, queries.streams_of(connection, name), pinned)
    if not known:
        raise _not_then(name, known_as_of)
    if effective is None:
        page = queries.history(connection, name, after_version, before_version, limit, known)
    else:
        places = queries.begun(connection, name, after_version, before_version, limit, known)
        parameters = {
            "streams": text_array(places),
            "begun": plain_array(map(str, places.values())),
            "known": plain_array(str(known.get(stream, 0)) for stream in places),
            "effective": utc_text(effective),
            "limit": limit,
        }
        sql = HISTORY_FORWARD if before_version is None else HISTORY_BACKWARD
        page = queries.page(connection.query(sql, parameters), places)
    page.position = pinned
    return page


def trial_balance(connection: Connection, effective: datetime | None, known_as_of: KnownAsOf) -> TrialBalance:
    """
    Posted debits and credits of all accounts at a moment, as they were known; from one statement's snapshot.

    Raises:
        NotYetKnown: As `position`.
        CorruptLog: An event that opens an account does not say what is counted in it, or how.
    """
    pinned = position(connection, known_as_of)
    rows = connection.query(TRIAL_BALANCE, {"position": pinned, "effective": effective and utc_text(effective)})
    return TrialBalance(tuple(_lines(rows)), pinned)


def _lines(rows: Iterable[tuple[Any, ...]]) -> Iterator[TrialLine]:
    scales: dict[str, tuple[int, str]] = {}
    for asset, stated, kind, count, debits, credits, stream in rows:
        scale = opened_scale(asset, kind, stated)
        if scale is None:
            problem = f"it opens no account, with {asset}, {stated} and {kind} as asset, scale and type"
            raise CorruptLog(stream, 1, problem)
        first, other = scales.setdefault(asset, (scale, stream))
        if scale != first:
            raise CorruptLog(stream, 1, f"it counts {asset} with {scale} decimal places, and {other} with {first}")
        yield TrialLine(asset, kind, count, Money(int(debits), asset, scale), Money(int(credits), asset, scale))


def opened_scale(asset: str | None, kind: str | None, scale: str | None) -> int | None:
    """The decimal places of an account, as its opening event states them; None where it is none that we write."""
    return _SCALES.get(scale or "") if asset and kind in _KINDS else None
