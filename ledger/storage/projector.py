"""
Balances, accounts and assets: carried along with each append, compared with the log, rebuilt from it.

A projected row carries a checksum over its fields.  One that does not match was not written by us; one that
matches but lags behind or runs ahead of the log shows when the next event does not fit.  Either way the row
is made anew from the log, and the repair is recorded: self-healing is never silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from ledger.core.book import Book, Stream, Terms
from ledger.core.codec import head_checksum, terms_text
from ledger.core.commands import AccountType, utc_text
from ledger.core.errors import CorruptLog
from ledger.core.events import Numbers
from ledger.storage.database import Connection, Row, Statement
from ledger.storage.store import bytes_array, in_utc, plain_array, readable, text_array

LOST: Final = "22012"
"""SQLSTATE of a compare-and-set that found another version."""

REBUILD_STREAMS_MAX: Final = 1_000
"""Streams rebuilt in one transaction: how long writers may wait for a rebuild."""

LOCK: Final = """
SELECT count(*) FROM (
    SELECT FROM {schema}.balances WHERE stream = ANY(%s::text[]) ORDER BY stream FOR NO KEY UPDATE
) AS held
"""

# Locks as LOCK does, and fails with division_by_zero unless exactly these streams exist, at exactly these versions.
# Every part of the write is joined to it, and so begins after it.
HELD: Final = """
held AS MATERIALIZED (
    SELECT 1 / (
        count(*) = cardinality(%s::bigint[])
        AND coalesce(bool_and(found.version IS NOT DISTINCT FROM read.version), true))::integer AS sound
    FROM (
        SELECT stream, version FROM {schema}.balances WHERE stream = ANY(%s::text[])
        ORDER BY stream FOR NO KEY UPDATE
    ) AS found
    LEFT JOIN unnest(%s::text[], %s::bigint[]) AS read (stream, version) ON read.stream = found.stream
)
"""

# The same text as `codec.head_checksum`, in SQL; a test holds the two against each other.
_CHECKSUM: Final = """
sha256(convert_to(
    concat_ws('|', x.stream, x.version, x.posted_debits, x.posted_credits, x.pending_debits, x.pending_credits,
              encode(x.head_hash, 'hex'), to_char(x.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    || CASE WHEN x.account_type IS NULL THEN '' ELSE
           '|' || concat_ws('|', x.account_type, x.asset, x.scale, coalesce(x.min_balance::text, ''),
                            coalesce(x.max_balance::text, ''), x.state, x.account_metadata) END,
    'UTF8'))
"""

HEAD_COLUMNS: Final = f"""
b.stream, b.version, b.posted_debits::text, b.posted_credits::text, b.pending_debits::text, b.pending_credits::text,
b.head_hash, {readable("b.recorded_at")}, b.checksum,
a.account_type, a.asset, a.scale, a.min_balance::text, a.max_balance::text, a.state, a.metadata::text
"""

HEAD_COLUMNS_COUNT: Final = 16

# The join is on the column that both tables are placed by; a second `= ANY` beside it would be evaluated against the
# whole array for each row.
HEADS: Final = """
FROM {schema}.balances AS b LEFT JOIN {schema}.accounts AS a ON a.account = b.stream WHERE b.stream = ANY(%s::text[])
"""

SELECT_HEADS: Final = f"SELECT {HEAD_COLUMNS} {HEADS}"

LOAD_ASSETS: Final = "SELECT asset, scale FROM {schema}.assets WHERE asset = ANY(%s::text[])"

INSERT_BALANCES: Final = """
INSERT INTO {schema}.balances (
    stream, version, posted_debits, posted_credits, pending_debits, pending_credits, head_hash, recorded_at, checksum)
SELECT * FROM unnest(
    %s::text[], %s::bigint[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[], %s::bytea[],
    %s::timestamptz[], %s::bytea[])
"""

MOVED: Final = """
moved AS (
    UPDATE {schema}.balances AS b
    SET version = n.version, posted_debits = n.posted_debits, posted_credits = n.posted_credits,
        pending_debits = n.pending_debits, pending_credits = n.pending_credits,
        head_hash = n.head_hash, recorded_at = n.recorded_at, checksum = n.checksum
    FROM held, unnest(
        %s::text[], %s::bigint[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[], %s::bytea[],
        %s::timestamptz[], %s::bytea[], %s::bigint[])
    AS n (stream, version, posted_debits, posted_credits, pending_debits, pending_credits, head_hash,
          recorded_at, checksum, expected)
    WHERE b.stream = n.stream AND b.version = n.expected AND held.sound = 1
    RETURNING b.stream
)
"""

# Fails with division_by_zero unless every row was still where it was read, so that a COMMIT that is already on its
# way finds the transaction aborted: the check costs no round trip, and needs no procedural language.
ALL_MOVED: Final = "SELECT 1 / (count(*) = %s)::integer FROM moved"

INSERT_ACCOUNTS: Final = """
INSERT INTO {schema}.accounts (account, account_type, asset, scale, min_balance, max_balance, state, metadata)
SELECT account, account_type, asset, scale, min_balance, max_balance, state, metadata::json
FROM unnest(
    %s::text[], %s::text[], %s::text[], %s::smallint[], %s::numeric[], %s::numeric[], %s::text[], %s::text[])
AS a (account, account_type, asset, scale, min_balance, max_balance, state, metadata)
"""

INSERT_ASSETS: Final = "INSERT INTO {schema}.assets SELECT * FROM unnest(%s::text[], %s::smallint[])"


def touch(streams: Iterable[str]) -> Statement:
    """The statement whose rows `load` takes: heads and terms of `streams`."""
    return SELECT_HEADS, (text_array(streams),)


def scales(assets: Iterable[str]) -> Statement:
    """The statement that returns the scales of `assets`."""
    return LOAD_ASSETS, (text_array(assets),)


def lock(streams: Iterable[str]) -> Statement:
    """The statement that locks the heads of `streams`, in one order for everybody."""
    return LOCK, (text_array(streams),)


def held(streams: Sequence[str], versions: Mapping[str, int]) -> list[str]:
    """
    The parameters of HELD: lock `streams`, which are where they were read, `versions`, and no others exist.

    Without streams it holds in any case.
    """
    numbers = plain_array(map(str, versions.values()))
    return [numbers, text_array(streams), text_array(versions), numbers]


def load(book: Book, rows: Iterable[Row]) -> list[str]:
    """
    Fill the book from the rows of `touch`; returns the streams whose checksum does not match.

    Those may hold anything: what somebody else wrote need not be a number or a moment that we can read.
    """
    drifted = []
    for row in rows:
        name, version, debits, credits, pending_debits, pending_credits, head_hash, recorded_at, checksum = row[:9]
        try:
            terms, terms_text = _NO_TERMS if row[9] is None else _terms(row[9:])
            text = (
                f"{name}|{version}|{debits}|{credits}|{pending_debits}|{pending_credits}|{head_hash.hex()}"
                f"|{recorded_at.isoformat(timespec='microseconds')}Z{terms_text}"
            )
            if sha256(text.encode()).digest() != checksum:
                raise ValueError
            numbers = Numbers(int(debits), int(credits), int(pending_debits), int(pending_credits))
        except (ValueError, TypeError, AttributeError):
            drifted.append(name)
        else:
            book.streams[name] = Stream(name, version, numbers, head_hash, in_utc(recorded_at), terms)
    return drifted


def checksum(stream: Stream) -> bytes:
    """The checksum of a stream's projected rows."""
    return head_checksum(
        stream.stream, stream.version, stream.numbers, stream.head_hash, stream.recorded_at, stream.terms
    )


def project(before: Mapping[str, int], book: Book, opened: Sequence[str], defined: Sequence[str]) -> list[Statement]:
    """
    The statements that bring the projections of new streams to where `book` stands.

    `before` holds the projected version of each changed stream, 0 for a new one.
    """
    statements: list[Statement] = []
    new = [book.streams[name] for name in sorted(before) if before[name] == 0]
    if defined:
        decimals = plain_array(str(book.assets[asset]) for asset in defined)
        statements.append((INSERT_ASSETS, (text_array(defined), decimals)))
    if opened:
        statements.append((INSERT_ACCOUNTS, _account_columns([book.streams[name] for name in opened])))
    if new:
        statements.append((INSERT_BALANCES, _balance_columns(new)))
    return statements


def moved(before: Mapping[str, int], book: Book) -> list[Any]:
    """
    The parameters of MOVED and ALL_MOVED, which move projected streams to where `book` stands.

    They fail with LOST where a stream is no longer at the version that `before` holds.
    """
    streams = [book.streams[name] for name in sorted(before) if before[name] > 0]
    expected = plain_array([str(before[stream.stream]) for stream in streams])
    return [*_balance_columns(streams), expected, len(streams)]


@lru_cache(maxsize=65_536)
def _terms(columns: Row) -> tuple[Terms, str]:
    """Terms from their columns, and how a checksum has them."""
    kind, asset, scale, lowest, highest, state, metadata = columns
    account_type = AccountType(kind)
    terms = Terms(account_type, account_type.normal, asset, scale, _int(lowest), _int(highest), state, metadata)
    return terms, terms_text(terms)


_NO_TERMS: Final = (None, "")


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)


def _balance_columns(streams: Sequence[Stream]) -> list[str]:
    numbers = list(zip(*(stream.numbers for stream in streams), strict=True)) or [(), (), (), ()]
    return [
        text_array(stream.stream for stream in streams),
        plain_array(str(stream.version) for stream in streams),
        *[plain_array(map(str, column)) for column in numbers],
        bytes_array(stream.head_hash for stream in streams),
        plain_array(utc_text(stream.recorded_at) for stream in streams),
        bytes_array(checksum(stream) for stream in streams),
    ]


def _account_columns(streams: Sequence[Stream]) -> list[str]:
    terms = [stream.terms for stream in streams if stream.terms is not None]
    return [
        text_array(stream.stream for stream in streams),
        text_array(its.account_type for its in terms),
        text_array(its.asset for its in terms),
        plain_array(str(its.scale) for its in terms),
        plain_array("NULL" if its.min_balance is None else str(its.min_balance) for its in terms),
        plain_array("NULL" if its.max_balance is None else str(its.max_balance) for its in terms),
        text_array(its.state for its in terms),
        text_array(its.metadata for its in terms),
    ]


# What the projections of these streams must be, from the log alone.  The sums are made anew; `stated_` is what
# the last event says of itself, and a difference between the two means that the log cannot be trusted.
EXPECTED: Final = f"""
log AS MATERIALIZED (
    SELECT stream, count(*) AS events, max(version) AS version,
           coalesce(sum(amount) FILTER (WHERE direction = 'debit'), 0) AS posted_debits,
           coalesce(sum(amount) FILTER (WHERE direction = 'credit'), 0) AS posted_credits,
           0::numeric AS pending_debits, 0::numeric AS pending_credits
    FROM {{schema}}.events WHERE stream = ANY(%(streams)s::text[]) GROUP BY stream
), replayed AS MATERIALIZED (
    SELECT log.*, head.event_hash AS head_hash, head.recorded_at,
           log.events <> log.version
               OR (log.posted_debits, log.posted_credits, log.pending_debits, log.pending_credits)
                  <> (coalesce(head.posted_debits, 0), coalesce(head.posted_credits, 0),
                      coalesce(head.pending_debits, 0), coalesce(head.pending_credits, 0)) AS contradicts_itself,
           opened.payload ->> 'account_type' AS account_type,
           opened.payload ->> 'asset' AS asset,
           (opened.payload ->> 'scale')::smallint AS scale,
           (opened.payload ->> 'min_balance')::numeric AS min_balance,
           (opened.payload ->> 'max_balance')::numeric AS max_balance,
           CASE WHEN opened.stream IS NOT NULL THEN 'open' END AS state,
           (opened.payload -> 'metadata')::text AS account_metadata
    FROM log
    JOIN {{schema}}.events AS head
      ON head.stream = log.stream AND head.version = log.version AND head.stream = ANY(%(streams)s::text[])
    LEFT JOIN {{schema}}.events AS opened
      ON opened.stream = log.stream AND opened.version = 1 AND opened.type = 'account_opened'
     AND opened.stream = ANY(%(streams)s::text[])
), expected AS MATERIALIZED (
    SELECT x.*, {_CHECKSUM} AS checksum FROM replayed AS x
)
"""

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
        OR (a.account_type, a.asset, a.scale, a.min_balance, a.max_balance, a.state, a.metadata::text)
           IS DISTINCT FROM
           (x.account_type, x.asset, x.scale, x.min_balance, x.max_balance, x.state, x.account_metadata))
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
        account, account_type, asset, scale, min_balance, max_balance, state, metadata)
    SELECT stream, account_type, asset, scale, min_balance, max_balance, state, account_metadata::json
    FROM differing WHERE account_type IS NOT NULL AND NOT contradicts_itself
    ON CONFLICT (account) DO UPDATE
    SET account_type = excluded.account_type, asset = excluded.asset, scale = excluded.scale,
        min_balance = excluded.min_balance, max_balance = excluded.max_balance, state = excluded.state,
        metadata = excluded.metadata
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
SELECT name, version, contradicts_itself IS TRUE FROM differing
UNION ALL
SELECT stream, version, true FROM expected WHERE contradicts_itself
"""

REBUILD_ASSETS: Final = """
INSERT INTO {schema}.assets
SELECT payload ->> 'asset', (payload ->> 'scale')::smallint FROM {schema}.events
WHERE stream = '$ledger' AND type = 'asset_defined'
ON CONFLICT (asset) DO NOTHING
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

STREAMS: Final = """
(SELECT stream FROM {schema}.events WHERE version = 1 AND stream > %(after)s ORDER BY stream LIMIT %(limit)s)
UNION
(SELECT stream FROM {schema}.balances WHERE stream > %(after)s ORDER BY stream LIMIT %(limit)s)
UNION
(SELECT account FROM {schema}.accounts WHERE account > %(after)s ORDER BY account LIMIT %(limit)s)
ORDER BY stream LIMIT %(limit)s
"""


def out_of_step(connection: Connection, streams: Iterable[str]) -> list[str]:
    """The streams whose projected head is not the head of the log; one snapshot, no lock."""
    return [stream for (stream,) in connection.query(COMPARE, (text_array(streams),))]


def rebuild(connection: Connection, streams: Iterable[str], noticed_by: str) -> list[str]:
    """
    Make the projections of `streams` anew from the log, within the caller's transaction.

    Returns the streams whose rows differed and were mended; each is reported in `projection_repairs`.  The
    rows are locked first and the log is read in a later statement, so that an append that commits in
    between is neither missed nor undone.

    Raises:
        CorruptLog: The events of a stream do not add up; nothing may be rebuilt from them.
    """
    names = text_array(sorted(streams))
    _, missing = connection.send([(LOCK, (names,)), (INSERT_MISSING, (names,))])
    parameters = {
        "streams": names,
        "missing": text_array(stream for (stream,) in missing),
        "noticed_by": noticed_by,
    }
    rows = connection.query(REBUILD, parameters)
    for stream, version, contradicts in rows:
        if contradicts:
            raise CorruptLog(stream, version, "its events do not add up to the numbers that the last one states")
    connection.query(REBUILD_ASSETS)
    return [row[0] for row in rows]


def all_streams(connection: Connection, page_size: int = REBUILD_STREAMS_MAX) -> Iterator[list[str]]:
    """Every stream that the log or a projection knows of, in pages."""
    after = ""
    while True:
        rows = connection.query(STREAMS, {"after": after, "limit": page_size})
        if rows:
            yield [stream for (stream,) in rows]
        if len(rows) < page_size:
            return
        after = rows[-1][0]
