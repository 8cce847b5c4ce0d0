"""
Projections made anew from the log, in set-based SQL: what they must be, where they differ, and the repair.

Self-healing is never silent: each repair is on record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from ledger.core.errors import CorruptLog
from ledger.core.events import LEDGER_STREAM
from ledger.storage.database import Connection
from ledger.storage.parts import Part
from ledger.storage.projector import LOCK
from ledger.storage.store import plain_array, readable, said, text_array

REBUILD_STREAMS_MAX: Final = 1_000
"""Streams rebuilt in one transaction: how long writers may wait for a rebuild."""


# The same text as `codec.head_checksum`, in SQL; a test holds the two against each other.
_CHECKSUM: Final = """
sha256(convert_to(
    concat_ws('|', x.stream, x.version, x.posted_debits, x.posted_credits, x.pending_debits, x.pending_credits,
              encode(x.head_hash, 'hex'), to_char(x.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    || CASE WHEN x.account_type IS NULL THEN '' ELSE
           '|' || concat_ws('|', x.account_type, x.asset, x.scale, coalesce(x.min_balance::text, ''),
                            coalesce(x.max_balance::text, ''), x.state, x.account_metadata)
           || CASE WHEN x.stripes = 1 AND x.streams = 1 THEN '' ELSE concat('|', x.stripes, '|', x.streams) END END,
    'UTF8'))
"""

# The same text as `codec.leg_checksum`, in SQL, of legs that say when they expire as payloads do.
_CHECKSUM_OF_LEG: Final = """
sha256(convert_to(
    concat_ws('|', x.hold_id, x.account, x.direction, x.asset, x.amount, x.captured, x.released, x.expired,
              coalesce(x.expires_at, '')), 'UTF8'))
"""


def _posted(side: str) -> str:
    of_type = "type IN ('entry_posted', 'hold_captured')"
    return f"coalesce(sum(amount) FILTER (WHERE direction = '{side}' AND {of_type}), 0)"


def _pending(side: str) -> str:
    """A hold is placed once; whatever happens to it later takes from what is pending."""
    change = "CASE type WHEN 'hold_placed' THEN amount ELSE -amount END"
    return f"coalesce(sum({change}) FILTER (WHERE direction = '{side}' AND type <> 'entry_posted'), 0)"


_EXPIRES_AT: Final = (
    f"""coalesce(to_char({readable("h.expires_at")}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), h.expires_at::text)"""
)
"""When a projected leg expires, as payloads say it; what they could not say as it is."""

SUM_COLUMNS: Final = (
    "events",
    "version",
    "posted_debits",
    "posted_credits",
    "pending_debits",
    "pending_credits",
    "state_version",
    "terms_version",
    "stripes_version",
    "holds",
)
"""What the events of a stream add up to, whatever happens later."""

_SUMS: Final = f"""
coalesce(sum(events), 0) AS events, coalesce(max(version), 0) AS version,
{_posted("debit")} AS posted_debits, {_posted("credit")} AS posted_credits,
{_pending("debit")} AS pending_debits, {_pending("credit")} AS pending_credits,
coalesce(max(version) FILTER (WHERE type = 'account_state_changed'), 0) AS state_version,
coalesce(max(version) FILTER (WHERE type = 'account_terms_changed'), 0) AS terms_version,
coalesce(max(version) FILTER (WHERE type = 'stripes_changed'), 0) AS stripes_version,
coalesce(sum(events) FILTER (WHERE type LIKE 'hold%%'), 0) AS holds
"""

# The log added up, in one pass; what has happened since is added by whoever holds the locks.  By type first: it is
# asked once for each group, and not for each event, what its amount counts as.
SUMMED: Final = f"""
SELECT stream, {_SUMS}
FROM (
    SELECT stream, type, direction, count(*) AS events, max(version) AS version, sum(amount) AS amount
    FROM {{schema}}.events WHERE {{in_part}} GROUP BY stream, type, direction
) AS of_one_type
GROUP BY stream ORDER BY stream
"""


def _in_all(name: str) -> str:
    return f"greatest(s.{name}, l.{name})" if name.endswith("version") else f"s.{name} + l.{name}"


# What the projections of these streams must be, from the log alone.  The sums are made anew, of all events or of those
# that came after an earlier sum; a difference between them and what the last event says of itself means that the log
# cannot be trusted.
EXPECTED: Final = f"""
log AS MATERIALIZED (
    SELECT s.stream, {", ".join(f"{_in_all(name)} AS {name}" for name in SUM_COLUMNS)}
    FROM unnest(%(streams)s::text[], {", ".join(f"%({name})s::numeric[]" for name in SUM_COLUMNS)})
        AS s (stream, {", ".join(SUM_COLUMNS)})
    CROSS JOIN LATERAL (
        SELECT {_SUMS} FROM (
            SELECT e.*, 1 AS events FROM {{schema}}.events AS e
            WHERE e.stream = s.stream AND e.version > s.version::bigint
        ) AS later
    ) AS l
    WHERE s.events + l.events > 0
), replayed AS MATERIALIZED (
    SELECT log.stream, log.version::bigint AS version,
           log.posted_debits, log.posted_credits, log.pending_debits, log.pending_credits,
           head.event_hash AS head_hash, head.recorded_at,
           log.events <> log.version
               OR (log.posted_debits, log.posted_credits, log.pending_debits, log.pending_credits)
                  <> (coalesce(head.posted_debits, 0), coalesce(head.posted_credits, 0),
                      coalesce(head.pending_debits, 0), coalesce(head.pending_credits, 0)) AS contradicts_itself,
           opened.payload ->> 'account_type' AS account_type,
           opened.payload ->> 'asset' AS asset,
           (opened.payload ->> 'scale')::smallint AS scale,
           (coalesce(terms.payload, opened.payload) ->> 'min_balance')::numeric AS min_balance,
           (coalesce(terms.payload, opened.payload) ->> 'max_balance')::numeric AS max_balance,
           CASE WHEN opened.stream IS NOT NULL THEN coalesce(state.payload ->> 'state', 'open') END AS state,
           CASE WHEN opened.stream IS NOT NULL THEN
               (coalesce(terms.payload, opened.payload) -> 'metadata')::text END AS account_metadata,
           CASE WHEN opened.stream IS NOT NULL THEN
               coalesce((spread.payload ->> 'stripes')::smallint, 1) END AS stripes,
           CASE WHEN opened.stream IS NOT NULL THEN
               coalesce((spread.payload ->> 'streams')::smallint, 1) END AS streams
    FROM log
    JOIN LATERAL (
        SELECT * FROM {{schema}}.events AS e WHERE e.stream = log.stream AND e.version = log.version::bigint LIMIT 1
    ) AS head ON true
    LEFT JOIN LATERAL (
        SELECT * FROM {{schema}}.events AS e
        WHERE e.stream = log.stream AND e.version = 1 AND e.type = 'account_opened' LIMIT 1
    ) AS opened ON true
    LEFT JOIN LATERAL (
        SELECT * FROM {{schema}}.events AS e
        WHERE e.stream = log.stream AND e.version = log.state_version::bigint LIMIT 1
    ) AS state ON log.state_version > 0
    LEFT JOIN LATERAL (
        SELECT * FROM {{schema}}.events AS e
        WHERE e.stream = log.stream AND e.version = log.terms_version::bigint LIMIT 1
    ) AS terms ON log.terms_version > 0
    LEFT JOIN LATERAL (
        SELECT * FROM {{schema}}.events AS e
        WHERE e.stream = log.stream AND e.version = log.stripes_version::bigint LIMIT 1
    ) AS spread ON log.stripes_version > 0
), expected AS MATERIALIZED (
    SELECT x.*, {_CHECKSUM} AS checksum FROM replayed AS x
)
"""

# The legs of holds, from the log alone.  What payloads say stays text: whatever that is, it is no error of a statement.
EXPECTED_LEGS: Final = f"""
moved AS MATERIALIZED (
    SELECT stream, {said("payload", "hold")} AS hold_id,
           coalesce(sum(amount) FILTER (WHERE type = 'hold_captured'), 0) AS captured,
           coalesce(sum(amount) FILTER (WHERE type = 'hold_released'), 0) AS released,
           coalesce(sum(amount) FILTER (WHERE type = 'hold_expired'), 0) AS expired
    FROM {{schema}}.events
    WHERE type IN ('hold_captured', 'hold_released', 'hold_expired') {{of_streams}}
    GROUP BY 1, 2
), placed AS (
    SELECT e.stream AS account, e.transaction_id AS hold_id, e.direction, e.asset, e.amount,
           coalesce(m.captured, 0) AS captured, coalesce(m.released, 0) AS released,
           coalesce(m.expired, 0) AS expired, {said("e.payload", "expires_at")} AS expires_at
    FROM {{schema}}.events AS e LEFT JOIN moved AS m ON m.stream = e.stream AND m.hold_id = e.transaction_id::text
    WHERE e.type = 'hold_placed' {{of_placed}}
), legs AS MATERIALIZED (
    SELECT x.*, {_CHECKSUM_OF_LEG} AS checksum FROM placed AS x
), differing_legs AS MATERIALIZED (
    SELECT coalesce(l.account, h.account) AS stream, coalesce(l.hold_id, h.hold_id) AS hold, l.*
    FROM legs AS l
    FULL JOIN (SELECT * FROM {{schema}}.holds AS h WHERE true {{of_holds}}) AS h
      ON h.account = l.account AND h.hold_id = l.hold_id
    WHERE (h.direction, h.asset, h.amount, h.captured, h.released, h.expired, {_EXPIRES_AT}, h.checksum)
          IS DISTINCT FROM
          (l.direction, l.asset, l.amount, l.captured, l.released, l.expired, l.expires_at, l.checksum)
)
"""

OF_STREAMS: Final = {
    "{of_streams}": "AND stream = ANY(%(streams)s::text[])",
    "{of_placed}": "AND e.stream = ANY(%(streams)s::text[])",
    "{of_holds}": "AND h.account = ANY(%(streams)s::text[])",
}

DIFFERING: Final = """
differing AS MATERIALIZED (
    SELECT s.stream AS name, x.*, b.version AS found_version,
           CASE WHEN b.stream IS NOT NULL THEN json_build_object(
               'posted_debits', b.posted_debits::text, 'posted_credits', b.posted_credits::text,
               'pending_debits', b.pending_debits::text, 'pending_credits', b.pending_credits::text,
               'head_hash', encode(b.head_hash, 'hex'), 'checksum', encode(b.checksum, 'hex'),
               'account', row_to_json(a)) END AS found,
           CASE WHEN x.stream IS NOT NULL THEN json_build_object(
               'posted_debits', x.posted_debits::text, 'posted_credits', x.posted_credits::text,
               'pending_debits', x.pending_debits::text, 'pending_credits', x.pending_credits::text,
               'head_hash', encode(x.head_hash, 'hex'), 'checksum', encode(x.checksum, 'hex')) END AS rebuilt
    FROM unnest(%(streams)s::text[]) AS s (stream)
    LEFT JOIN expected AS x ON x.stream = s.stream
    LEFT JOIN {schema}.balances AS b ON b.stream = s.stream AND b.stream = ANY(%(streams)s::text[])
    LEFT JOIN {schema}.accounts AS a ON a.account = s.stream AND a.account = ANY(%(streams)s::text[])
    WHERE (x.stream IS NOT NULL OR b.stream IS NOT NULL OR a.account IS NOT NULL)
      AND ((b.version, b.posted_debits, b.posted_credits, b.pending_debits, b.pending_credits,
            b.head_hash, b.recorded_at, b.checksum)
           IS DISTINCT FROM
           (x.version, x.posted_debits, x.posted_credits, x.pending_debits, x.pending_credits,
            x.head_hash, x.recorded_at, x.checksum)
        OR (a.account_type, a.asset, a.scale, a.min_balance, a.max_balance, a.state, a.metadata::text,
            a.stripes, a.streams)
           IS DISTINCT FROM
           (x.account_type, x.asset, x.scale, x.min_balance, x.max_balance, x.state, x.account_metadata,
            x.stripes, x.streams))
)
"""

# A row to lock for every stream of the log; one that was missing is filled in by the rebuild that follows.
INSERT_MISSING: Final = """
INSERT INTO {schema}.balances (
    stream, version, posted_debits, posted_credits, pending_debits, pending_credits, recorded_at, head_hash, checksum)
SELECT stream, 1, 0, 0, 0, 0, recorded_at, '', '' FROM {schema}.events
WHERE version = 1 AND stream = ANY(%s::text[]) ORDER BY stream
ON CONFLICT (stream) DO NOTHING
RETURNING stream
"""

REBUILD: Final = f"""
WITH {EXPECTED}, {DIFFERING}, mended AS (
    UPDATE {{schema}}.balances AS b
    SET version = d.version, posted_debits = d.posted_debits, posted_credits = d.posted_credits,
        pending_debits = d.pending_debits, pending_credits = d.pending_credits,
        head_hash = d.head_hash, recorded_at = d.recorded_at, checksum = d.checksum
    FROM differing AS d
    WHERE b.stream = d.stream AND NOT d.contradicts_itself AND b.stream = ANY(%(streams)s::text[])
), opened AS (
    INSERT INTO {{schema}}.accounts (
        account, account_type, asset, scale, min_balance, max_balance, state, metadata, stripes, streams)
    SELECT stream, account_type, asset, scale, min_balance, max_balance, state, account_metadata::json,
           stripes, streams
    FROM differing WHERE account_type IS NOT NULL AND NOT contradicts_itself
    ON CONFLICT (account) DO UPDATE
    SET account_type = excluded.account_type, asset = excluded.asset, scale = excluded.scale,
        min_balance = excluded.min_balance, max_balance = excluded.max_balance, state = excluded.state,
        metadata = excluded.metadata, stripes = excluded.stripes, streams = excluded.streams
), orphaned AS (
    DELETE FROM {{schema}}.balances
    WHERE stream IN (SELECT name FROM differing WHERE stream IS NULL) AND stream = ANY(%(streams)s::text[])
), orphaned_accounts AS (
    DELETE FROM {{schema}}.accounts
    WHERE account IN (SELECT name FROM differing WHERE account_type IS NULL) AND account = ANY(%(streams)s::text[])
), reported AS (
    INSERT INTO {{schema}}.projection_repairs (
        stream, repair_id, repaired_at, noticed_by, found_version, expected_version, found, expected)
    SELECT name, gen_random_uuid(), clock_timestamp(), %(noticed_by)s,
           CASE WHEN name = ANY(%(missing)s::text[]) THEN NULL ELSE found_version END, version,
           CASE WHEN name = ANY(%(missing)s::text[]) THEN NULL ELSE found END, rebuilt
    FROM differing WHERE contradicts_itself IS NOT TRUE
    RETURNING stream
)
SELECT 'contradicts itself', stream, version FROM expected WHERE contradicts_itself
UNION ALL
SELECT 'differed', name, version FROM differing
UNION ALL
SELECT 'has holds', stream, NULL FROM log WHERE holds > 0
UNION
SELECT 'has holds', account, NULL FROM {{schema}}.holds WHERE account = ANY(%(streams)s::text[])
"""

# One statement sees the log and what is projected from it as of one moment: where they agree, nothing need be locked.
SUSPECTS: Final = f"""
WITH {EXPECTED}, {DIFFERING}
SELECT name FROM differing
UNION
SELECT stream FROM expected WHERE contradicts_itself
UNION
SELECT stream FROM log WHERE holds > 0
UNION
SELECT account FROM {{schema}}.holds WHERE account = ANY(%(streams)s::text[])
"""

_REBUILD_LEGS: Final = f"""
WITH {EXPECTED_LEGS}, mended AS (
    INSERT INTO {{schema}}.holds (
        hold_id, account, direction, asset, amount, captured, released, expired, expires_at, checksum)
    SELECT hold_id, account, direction, asset, amount, captured, released, expired, expires_at::timestamptz, checksum
    FROM differing_legs WHERE account IS NOT NULL
    ON CONFLICT (account, hold_id) DO UPDATE
    SET direction = excluded.direction, asset = excluded.asset, amount = excluded.amount,
        captured = excluded.captured, released = excluded.released, expired = excluded.expired,
        expires_at = excluded.expires_at, checksum = excluded.checksum
), orphaned AS (
    DELETE FROM {{schema}}.holds AS h USING differing_legs AS d
    WHERE d.account IS NULL AND h.account = d.stream AND h.hold_id = d.hold
), reported AS (
    INSERT INTO {{schema}}.projection_repairs (
        stream, repair_id, repaired_at, noticed_by, found_version, expected_version, found, expected)
    SELECT d.stream, gen_random_uuid(), clock_timestamp(), %(noticed_by)s, b.version, b.version,
           json_build_object('hold', d.hold, 'captured', h.captured::text, 'released', h.released::text,
                             'expired', h.expired::text, 'amount', h.amount::text),
           json_build_object('hold', d.hold, 'captured', d.captured::text, 'released', d.released::text,
                             'expired', d.expired::text, 'amount', d.amount::text)
    FROM differing_legs AS d
    LEFT JOIN {{schema}}.holds AS h ON h.account = d.stream AND h.hold_id = d.hold
    LEFT JOIN {{schema}}.balances AS b ON b.stream = d.stream
)
SELECT DISTINCT stream FROM differing_legs ORDER BY stream
"""

REBUILD_PERIOD: Final = """
UPDATE {schema}.periods
SET closed_until = (
    SELECT (payload ->> 'until')::timestamptz FROM {schema}.events
    WHERE stream = '$ledger' AND type = 'period_closed' ORDER BY version DESC LIMIT 1)
"""

COMPARE: Final = """
SELECT s.stream
FROM unnest(%s::text[]) AS s (stream)
LEFT JOIN {schema}.balances AS b ON b.stream = s.stream
LEFT JOIN LATERAL (
    SELECT version, event_hash FROM {schema}.events AS e WHERE e.stream = s.stream ORDER BY version DESC LIMIT 1
) AS head ON true
WHERE (b.version, b.head_hash) IS DISTINCT FROM (head.version, head.event_hash)
   OR head.version IS NULL AND EXISTS (SELECT FROM {schema}.accounts AS a WHERE a.account = s.stream)
"""

_STREAMS: Final = """
(SELECT stream FROM {schema}.events WHERE version = 1 AND {events} ORDER BY stream LIMIT %(limit)s)
UNION
(SELECT stream FROM {schema}.balances WHERE {balances} ORDER BY stream LIMIT %(limit)s)
UNION
(SELECT account FROM {schema}.accounts WHERE {accounts} ORDER BY account LIMIT %(limit)s)
ORDER BY stream LIMIT %(limit)s
"""


# The streams of accounts beside the first, wherever there is a trace of them.  `$` comes right after `#`.
STRIPES: Final = """
SELECT found.stream FROM unnest(%s::text[]) AS a (account) CROSS JOIN LATERAL (
    SELECT stream FROM {schema}.events WHERE version = 1 AND stream > a.account || '#' AND stream < a.account || '$'
    UNION
    SELECT stream FROM {schema}.balances WHERE stream > a.account || '#' AND stream < a.account || '$'
    UNION
    SELECT account FROM {schema}.accounts WHERE account > a.account || '#' AND account < a.account || '$'
) AS found
"""


def only(text: str, conditions: Mapping[str, str]) -> str:
    """SQL with its conditions filled in."""
    for place, condition in conditions.items():
        text = text.replace(place, condition)
    return text


REBUILD_LEGS: Final = only(_REBUILD_LEGS, OF_STREAMS)


def with_stripes(connection: Connection, accounts: Iterable[str]) -> list[str]:
    """All streams of these accounts that the log or a projection knows of, and these themselves, in order."""
    named = set(accounts)
    return sorted(named.union(stream for (stream,) in connection.query(STRIPES, (text_array(named),))))


def out_of_step(connection: Connection, streams: Iterable[str]) -> list[str]:
    """The streams whose projected head is not the head of the log; one snapshot, no lock."""
    return [stream for (stream,) in connection.query(COMPARE, (text_array(streams),))]


class Sums(NamedTuple):
    """What the events of a stream added up to at some moment: the values of SUM_COLUMNS, as texts."""

    stream: str
    values: tuple[str, ...]


_NOTHING: Final = ("0",) * len(SUM_COLUMNS)


def rebuild(
    connection: Connection, streams: Iterable[str], noticed_by: str, summed: Mapping[str, Sums] | None = None
) -> list[str]:
    """
    Make the projections of `streams` anew from the log, within the caller's transaction.

    Returns the streams whose rows differed and were mended; each is reported in `projection_repairs`.  The
    rows are locked first and the log is read in a later statement, so that an append that commits in
    between is neither missed nor undone.  Of streams that were `summed` before, only what came after is read.

    Raises:
        CorruptLog: The events of a stream do not add up; nothing may be rebuilt from them.
    """
    ordered = sorted(streams)
    names = text_array(ordered)
    _, missing = connection.send([(LOCK, (names,)), (INSERT_MISSING, (names,))])
    parameters = {
        "streams": names,
        "missing": text_array(stream for (stream,) in missing),
        "noticed_by": noticed_by,
        **_sum_parameters(ordered, summed or {}),
    }
    found: dict[str, list[str]] = {"differed": [], "has holds": []}
    for what, stream, version in connection.query(REBUILD, parameters):
        if what == "contradicts itself":
            raise CorruptLog(stream, version, "its events do not add up to the numbers that the last one states")
        found[what].append(stream)
    mended = set(found["differed"])
    if found["has holds"]:
        of_holds = {"streams": text_array(found["has holds"]), "noticed_by": noticed_by}
        mended.update(name for (name,) in connection.query(REBUILD_LEGS, of_holds))
    if LEDGER_STREAM in ordered:
        connection.query(REBUILD_PERIOD)
    return sorted(mended)


def suspects(connection: Connection, streams: Sequence[str], summed: Mapping[str, Sums]) -> list[str]:
    """
    Those of some streams that a rebuild has to look at under their locks, in order; takes no lock itself.

    All whose projections differ, those with holds, and the ledger's own.
    """
    parameters = {"streams": text_array(streams), **_sum_parameters(streams, summed)}
    found = {name for (name,) in connection.query(SUSPECTS, parameters)}
    return sorted(found | ({LEDGER_STREAM} & set(streams)))


def _sum_parameters(streams: Sequence[str], summed: Mapping[str, Sums]) -> dict[str, str]:
    rows = [summed[stream].values if stream in summed else _NOTHING for stream in streams]
    columns = zip(*rows, strict=True) if rows else [()] * len(SUM_COLUMNS)
    return {name: plain_array(column) for name, column in zip(SUM_COLUMNS, columns, strict=True)}


def sums(connection: Connection, part: Part) -> Iterator[Sums]:
    """What the events of each stream in a part add up to, in order; in the caller's transaction."""
    sql = SUMMED.replace("{in_part}", part.condition("stream"))
    with connection.text_stream(sql, part.parameters()) as rows:
        for stream, *values in rows:
            yield Sums(stream, tuple(values))


def streams_of(connection: Connection, part: Part) -> Iterator[list[str]]:
    """Every stream of a part that the log or a projection knows of, in pages."""
    after = part.after
    while True:
        rest = part._replace(after=after)
        conditions = {"{events}": "stream", "{balances}": "stream", "{accounts}": "account"}
        sql = only(_STREAMS, {place: rest.condition(column) for place, column in conditions.items()})
        rows = connection.query(sql, {**rest.parameters(), "limit": REBUILD_STREAMS_MAX})
        if rows:
            yield [stream for (stream,) in rows]
        if len(rows) < REBUILD_STREAMS_MAX:
            return
        after = rows[-1][0]
