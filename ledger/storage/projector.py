"""
Balances, accounts and holds: carried along with each append, and compared with what we wrote.

A projected row carries a checksum over its fields.  One that does not match was not written by us; one that
matches but lags behind or runs ahead of the log shows when the next event does not fit.  Either way the row
is made anew from the log, and the repair is recorded: self-healing is never silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from ledger.core.book import Book, Leg, Stream, Terms
from ledger.core.canonical import utc_text
from ledger.core.codec import head_checksum, leg_checksum, terms_text
from ledger.core.commands import (
    AccountType,
    Direction,
)
from ledger.core.events import (
    AccountOpened,
    AccountStateChanged,
    AccountTermsChanged,
    Event,
    Numbers,
    OfHold,
    PeriodClosed,
    StripesChanged,
)
from ledger.storage.database import Row, Statement
from ledger.storage.store import bytes_array, in_utc, plain_array, readable, text_array

LOST: Final = "22012"
"""SQLSTATE of a compare-and-set that found another version."""

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

HEAD_COLUMNS: Final = f"""
b.stream, b.version, b.posted_debits::text, b.posted_credits::text, b.pending_debits::text, b.pending_credits::text,
b.head_hash, {readable("b.recorded_at")}, b.checksum,
a.account_type, a.asset, a.scale, a.min_balance::text, a.max_balance::text, a.state, a.metadata::text,
a.stripes, a.streams
"""

HEAD_COLUMNS_COUNT: Final = 18

# The join is on the column that both tables are placed by; a second `= ANY` beside it would be evaluated against the
# whole array for each row.
HEADS: Final = """
FROM {schema}.balances AS b LEFT JOIN {schema}.accounts AS a ON a.account = b.stream WHERE b.stream = ANY(%s::text[])
"""

SELECT_HEADS: Final = f"SELECT {HEAD_COLUMNS} {HEADS}"

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
INSERT INTO {schema}.accounts (
    account, account_type, asset, scale, min_balance, max_balance, state, metadata, stripes, streams)
SELECT account, account_type, asset, scale, min_balance, max_balance, state, metadata::json, stripes, streams
FROM unnest(
    %s::text[], %s::text[], %s::text[], %s::smallint[], %s::numeric[], %s::numeric[], %s::text[], %s::text[],
    %s::smallint[], %s::smallint[])
AS a (account, account_type, asset, scale, min_balance, max_balance, state, metadata, stripes, streams)
"""

UPDATE_ACCOUNTS: Final = """
UPDATE {schema}.accounts AS a
SET min_balance = n.min_balance, max_balance = n.max_balance, state = n.state, metadata = n.metadata::json,
    stripes = n.stripes, streams = n.streams
FROM unnest(
    %s::text[], %s::text[], %s::text[], %s::smallint[], %s::numeric[], %s::numeric[], %s::text[], %s::text[],
    %s::smallint[], %s::smallint[])
AS n (account, account_type, asset, scale, min_balance, max_balance, state, metadata, stripes, streams)
WHERE a.account = n.account
"""

# A hold is placed once; later events move what became of it.
PUT_LEGS: Final = """
INSERT INTO {schema}.holds (
    hold_id, account, direction, asset, amount, captured, released, expired, expires_at, checksum)
SELECT * FROM unnest(
    %s::uuid[], %s::text[], %s::text[], %s::text[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[],
    %s::timestamptz[], %s::bytea[])
ON CONFLICT (account, hold_id) DO UPDATE
SET captured = excluded.captured, released = excluded.released, expired = excluded.expired,
    checksum = excluded.checksum
"""

CLOSE_PERIOD: Final = "UPDATE {schema}.periods SET closed_until = %s::timestamptz"

LEG_COLUMNS: Final = f"""
h.hold_id::text, h.account, h.direction, h.asset, h.amount::text, h.captured::text, h.released::text,
h.expired::text, {readable("h.expires_at")}, h.checksum
"""

SELECT_LEGS: Final = f"""
SELECT {LEG_COLUMNS} FROM {{schema}}.holds AS h
WHERE h.account = ANY(%s::text[]) AND h.hold_id = ANY(%s::uuid[])
"""

DUE_MAX: Final = 1_000
"""Holds that are expired at once before something else is decided about their accounts."""

DUE: Final = f"""
SELECT DISTINCT h.hold_id::text FROM {{schema}}.holds AS h
WHERE h.account = ANY(%s::text[]) AND h.hold_id <> ALL(%s::uuid[]) AND h.expires_at <= clock_timestamp()
  AND h.captured + h.released + h.expired < h.amount
LIMIT {DUE_MAX}
"""

# What the last event of a stream of the caller's own says is its state.
SELECT_STATES: Final = """
SELECT b.stream, e.payload ->> 'target'
FROM {schema}.balances AS b JOIN {schema}.events AS e ON e.stream = b.stream AND e.version = b.version
WHERE b.stream = ANY(%s::text[]) AND e.type = 'state_advanced'
"""

SHARE_PERIOD: Final = f"SELECT {readable('p.closed_until')} FROM {{schema}}.periods AS p FOR SHARE"
LOCK_PERIOD: Final = f"SELECT {readable('p.closed_until')} FROM {{schema}}.periods AS p FOR UPDATE"


def touch(streams: Iterable[str]) -> Statement:
    """The statement whose rows `load` takes: heads and terms of `streams`."""
    return SELECT_HEADS, (text_array(streams),)


def legs(accounts: Iterable[str], holds: Iterable[str]) -> Statement:
    """The statement whose rows `load_legs` takes: these holds, on these accounts."""
    return SELECT_LEGS, (text_array(accounts), plain_array(holds))


def states(streams: Iterable[str]) -> Statement:
    """The statement that returns the states of a caller's own streams."""
    return SELECT_STATES, (text_array(streams),)


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


def load_legs(book: Book, rows: Iterable[Row]) -> list[str]:
    """Fill the book from the rows of `legs`; returns the accounts of those whose checksum does not match."""
    drifted = []
    for row in rows:
        try:
            leg = leg_from(row)
        except ValueError:
            drifted.append(row[1])
        else:
            book.holds.setdefault(leg.hold, {})[leg.account] = leg
    return drifted


def leg_from(row: Row) -> Leg:
    """
    A row of LEG_COLUMNS.

    Raises:
        ValueError: It was not written by us.
    """
    hold, account, direction, asset, amount, captured, released, expired, expires_at, checksum = row
    moment = None if expires_at is None else in_utc(expires_at)
    if leg_checksum((hold, account, direction, asset, amount, captured, released, expired, moment)) != checksum:
        raise ValueError(f"hold {hold} on {account} does not match its checksum")
    return Leg(
        hold, account, Direction(direction), asset, int(amount), int(captured), int(released), int(expired), moment
    )


def checksum(stream: Stream) -> bytes:
    """The checksum of a stream's projected rows."""
    return head_checksum(
        stream.stream, stream.version, stream.numbers, stream.head_hash, stream.recorded_at, stream.terms
    )


def project(before: Mapping[str, int], book: Book, facts: Sequence[Event]) -> list[Statement]:
    """
    The statements that bring the projections to where `book` stands, beside the heads of streams that are moved.

    `before` holds the projected version of each changed stream, 0 for a new one; `facts` are the events that
    are no postings.
    """
    statements: list[Statement] = []
    new = [book.streams[name] for name in sorted(before) if before[name] == 0]
    opened = {fact.account for fact in facts if isinstance(fact, AccountOpened)}
    changed = {fact.account for fact in facts if isinstance(fact, _CHANGES)} - opened
    held = {(fact.account, fact.hold) for fact in facts if isinstance(fact, OfHold)}
    for sql, accounts in ((INSERT_ACCOUNTS, opened), (UPDATE_ACCOUNTS, changed)):
        if accounts:
            statements.append((sql, _account_columns([book.streams[name] for name in sorted(accounts)])))
    if new:
        statements.append((INSERT_BALANCES, _balance_columns(new)))
    if held:
        statements.append((PUT_LEGS, _leg_columns([book.holds[hold][account] for account, hold in sorted(held)])))
    statements += [(CLOSE_PERIOD, (utc_text(fact.until),)) for fact in facts if isinstance(fact, PeriodClosed)]
    return statements


_CHANGES: Final = (AccountStateChanged, AccountTermsChanged, StripesChanged)
"""What changes the terms of an account."""


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
    kind, asset, scale, lowest, highest, *rest = columns
    account_type = AccountType(kind)
    terms = Terms(account_type, account_type.normal, asset, scale, _int(lowest), _int(highest), *rest)
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


def _leg_columns(legs: Sequence[Leg]) -> list[str]:
    columns = list(zip(*legs, strict=True))
    return [
        plain_array(columns[0]),
        *map(text_array, columns[1:4]),
        *[plain_array(map(str, column)) for column in columns[4:8]],
        plain_array("NULL" if moment is None else utc_text(moment) for moment in columns[8]),
        bytes_array(map(leg_checksum, legs)),
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
        plain_array(str(its.stripes) for its in terms),
        plain_array(str(its.streams) for its in terms),
    ]
