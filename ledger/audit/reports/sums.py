"""Reports over the whole log at once: the sum of all transactions beside each balance, and whether all is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import Field

from ledger.audit.reports.form import Cell, Definition, Pin, Rows, Tally, columns, decimal
from ledger.audit.reports.journal import CURSOR_ROWS, whole_tables
from ledger.core.commands import AccountType
from ledger.core.fields import Frozen
from ledger.storage import trail
from ledger.storage.database import Connection

SHOWN_MAX: Final = 100
"""What is named of what is live; the rest is counted."""


class SumsQuestion(Frozen):
    """Which accounts."""

    differing: bool = Field(False, description="only those of which the two differ")


# What each stream has up to the pin is known by its last version there, since its versions are stamped in order.  By
# type first: it is asked once for each group, and not for each event, what its amount counts as.
_HEADS: Final = """
heads AS MATERIALIZED (
    SELECT f.stream, max(f.version) AS version FROM {schema}.feed AS f
    WHERE f.position <= %(position)s AND left(f.stream, 1) NOT IN ('#', '$') GROUP BY f.stream
)
"""

_SUMS: Final = f"""
WITH {_HEADS}, grouped AS (
    SELECT e.stream, e.type, e.direction, count(*) AS entries, sum(e.amount) AS amount
    FROM {{schema}}.events AS e JOIN heads AS h ON h.stream = e.stream AND e.version <= h.version
    WHERE e.type IN ('entry_posted', 'hold_captured') GROUP BY e.stream, e.type, e.direction
), summed AS (
    SELECT stream, sum(entries) AS entries,
           coalesce(sum(amount) FILTER (WHERE direction = 'debit'), 0) AS debits,
           coalesce(sum(amount) FILTER (WHERE direction = 'credit'), 0) AS credits
    FROM grouped GROUP BY stream
), compared AS (
    SELECT split_part(h.stream, '#', 1) COLLATE "C" AS account, h.stream, h.version, coalesce(s.entries, 0) AS entries,
           coalesce(s.debits, 0) AS debits, coalesce(s.credits, 0) AS credits,
           e.posted_debits, e.posted_credits
    FROM heads AS h LEFT JOIN summed AS s ON s.stream = h.stream
    LEFT JOIN {{schema}}.events AS e ON e.stream = h.stream AND e.version = h.version
), of_accounts AS (
    SELECT account, count(*) AS streams, sum(version)::bigint AS events, sum(entries)::bigint AS entries,
           sum(debits) AS debits, sum(credits) AS credits,
           sum(posted_debits) AS posted_debits, sum(posted_credits) AS posted_credits,
           bool_or((debits, credits) IS DISTINCT FROM (posted_debits, posted_credits)) AS differs
    FROM compared GROUP BY account
)
SELECT a.account, o.payload ->> 'account_type', o.payload ->> 'asset', (o.payload ->> 'scale')::integer,
       a.streams, a.events, a.entries, a.debits::text, a.credits::text,
       coalesce(a.posted_debits, 0)::text, coalesce(a.posted_credits, 0)::text, a.differs
FROM of_accounts AS a LEFT JOIN {{schema}}.events AS o ON o.stream = a.account AND o.version = 1
ORDER BY a.account
"""

# What is projected now, beside what the log says of the same version.
_PROJECTED: Final = """
SELECT count(*), count(*) FILTER (WHERE differs), (array_agg(stream ORDER BY stream) FILTER (WHERE differs))[:%s]
FROM (
    SELECT b.stream, (b.posted_debits, b.posted_credits, b.pending_debits, b.pending_credits) IS DISTINCT FROM
                     (e.posted_debits, e.posted_credits, e.pending_debits, e.pending_credits) AS differs
    FROM {schema}.balances AS b
    LEFT JOIN {schema}.events AS e ON e.stream = b.stream AND e.version = b.version
    WHERE left(b.stream, 1) NOT IN ('#', '$')
) AS p
"""


def sums(connection: Connection, pin: Pin, asked: SumsQuestion, tally: Tally) -> Rows:
    """Each account: its entries added up, and beside them the balance that its last event states."""
    whole_tables(connection)
    tally.totals.update(accounts=0, differing=0)
    with connection.stream(_SUMS, {"position": pin.position}, CURSOR_ROWS) as rows:
        for account, kind, asset, scale, streams, events, entries, *numbers, differs in rows:
            tally.count("accounts")
            if kind is None:
                tally.findings += 1
                yield (account, None, None, streams, events, entries, *[None] * 5, False)
                continue
            debits, credits, posted_debits, posted_credits = map(int, numbers)
            tally.scaled(asset, scale)
            tally.add(asset, debits, credits, entries)
            tally.count("differing", differs)
            tally.findings += differs
            if asked.differing and not differs:
                continue
            sign = 1 if AccountType(kind).normal == "debit" else -1
            summed, final = sign * (debits - credits), sign * (posted_debits - posted_credits)
            amounts = [decimal(each, asset, scale) for each in (debits, credits, summed, final, summed - final)]
            yield (account, kind, asset, streams, events, entries, *amounts, not differs)
    count, differing, named = connection.query(_PROJECTED, (SHOWN_MAX,))[0]
    tally.live["projection"] = {"streams": count, "differing": differing, "first": named or []}
    tally.live_findings += differing


SUMS: Final = Definition(
    "sum-of-transactions",
    1,
    "Each account's entries added up, beside the final balance that its last event states.",
    SumsQuestion,
    columns(
        "account account_type asset streams:integer events:integer entries:integer debits:amount credits:amount"
        " sum_of_entries:amount final_balance:amount difference:amount agrees:boolean"
    ),
    sums,
)


class CompletenessQuestion(Frozen):
    """All of it."""


_POSITIONS: Final = """
SELECT count(*), coalesce(min(f.position), 0), coalesce(max(f.position), 0) FROM {schema}.feed AS f
WHERE f.position <= %(position)s
"""

_VERSIONS: Final = """
WITH stamped AS MATERIALIZED (
    SELECT f.stream, max(f.version) AS version, count(*) AS stamped FROM {schema}.feed AS f
    WHERE f.position <= %(position)s GROUP BY f.stream
), kept AS (
    SELECT e.stream, count(*) AS events FROM {schema}.events AS e
    JOIN stamped AS s ON s.stream = e.stream AND e.version <= s.version GROUP BY e.stream
)
SELECT count(*) OVER (), s.stream, s.version, s.stamped, coalesce(k.events, 0)
FROM stamped AS s LEFT JOIN kept AS k ON k.stream = s.stream
ORDER BY (s.version = s.stamped AND s.version = k.events) IS TRUE, s.stream
"""

_TRANSACTIONS: Final = """
WITH stamped AS (
    SELECT f.transaction_id, count(*) AS events,
           count(e.amount) AS entries
    FROM {schema}.feed AS f
    LEFT JOIN {schema}.events AS e ON e.stream = f.stream AND e.version = f.version
                                  AND e.transaction_id = f.transaction_id
    WHERE f.position <= %(position)s GROUP BY f.transaction_id
)
SELECT count(*) OVER (), s.transaction_id::text, s.events, s.entries, cardinality(t.announced), t.entry_count
FROM stamped AS s LEFT JOIN {schema}.transactions AS t ON t.transaction_id = s.transaction_id
ORDER BY (s.events = cardinality(t.announced) AND s.entries = t.entry_count) IS TRUE, s.transaction_id
"""

_NUMBERED: Final = "SELECT count(*), coalesce(max(t.number), 0) FROM {schema}.trail AS t WHERE t.number <= %(trail)s"

_RELEASES: Final = trail.rows_of(
    trail.RELEASE, "r.source, r.stream, r.first_sequence, r.last_sequence, r.reason, r.actor, r.note"
)

_UNSTAMPED: Final = "SELECT coalesce(sum(cardinality(o.transaction_ids)), 0)::bigint FROM {schema}.outbox AS o"

_GAPS: Final = """
SELECT count(*) OVER (), s.source, s.stream, s.last_sequence + 1, s.highest_sequence, s.held, s.status
FROM {schema}.inbox_streams AS s WHERE s.status <> 'flowing' ORDER BY s.source, s.stream LIMIT %s
"""


def completeness(connection: Connection, pin: Pin, _: CompletenessQuestion, tally: Tally) -> Rows:
    """For each check what was looked at, and then a row for everything that is missing."""
    whole_tables(connection)
    at = {"position": pin.position, "trail": pin.trail}
    checks = (_positions, _versions, _entries, _numbers, _released)
    for check in checks:
        for row in check(connection, at):
            tally.findings += row[-2] is True
            tally.count("missing", row[-2] is True)
            yield row
    tally.totals.update(positions=pin.position, trail=pin.trail)
    waiting = connection.query(_GAPS, (SHOWN_MAX,))
    tally.live.update(
        transactions_unstamped=connection.query(_UNSTAMPED)[0][0],
        trail_unnumbered=trail.waiting(connection),
        inbox_streams_waiting=waiting[0][0] if waiting else 0,
        inbox_first_waiting=[
            dict(zip(("source", "stream", "missing", "highest", "held", "status"), row[1:], strict=True))
            for row in waiting
        ],
    )


def _positions(connection: Connection, at: dict[str, int]) -> Iterator[Sequence[Cell]]:
    count, first, last = connection.query(_POSITIONS, at)[0]
    whole = (count, first, last) == (at["position"], min(1, at["position"]), at["position"])
    yield _row("positions", "the feed", count, first, last, None if whole else "positions of the feed are missing")


def _versions(connection: Connection, at: dict[str, int]) -> Iterator[Sequence[Cell]]:
    yield from _bad(connection, _VERSIONS, at, "versions", "streams", _of_stream)


def _of_stream(found: Sequence[Any]) -> Sequence[Cell] | None:
    stream, last, stamped, events = found
    if last == stamped == events:
        return None
    return _row("versions", stream, events, 1, last, f"it has {events} events, and {stamped} of its versions stamped")


def _entries(connection: Connection, at: dict[str, int]) -> Iterator[Sequence[Cell]]:
    yield from _bad(connection, _TRANSACTIONS, at, "entries", "transactions", _of_transaction)


def _of_transaction(found: Sequence[Any]) -> Sequence[Cell] | None:
    transaction_id, events, entries, announced, expected = found
    if (events, entries) == (announced, expected):
        return None
    if announced is None:
        return _row("entries", transaction_id, events, None, None, "the transaction itself is missing")
    told = f"it has {events} events of {announced}, and {entries} entries of {expected}"
    return _row("entries", transaction_id, events, 1, announced, told)


def _bad(
    connection: Connection, sql: str, at: dict[str, int], check: str, what: str, judged: Any
) -> Iterator[Sequence[Cell]]:
    """How many were looked at, and those that something is wrong with, which come first."""
    total = 0
    with connection.stream(sql, at, CURSOR_ROWS) as rows:
        for count, *found in rows:
            total = count
            row = judged(found)
            if row is None:
                break
            yield row
    yield _row(check, f"all {what}", total, None, None, None)


def _numbers(connection: Connection, at: dict[str, int]) -> Iterator[Sequence[Cell]]:
    count, last = connection.query(_NUMBERED, at)[0]
    whole = count == last == at["trail"]
    yield _row("trail", "the trail", count, min(1, last), last, None if whole else "numbers of the trail are missing")


def _released(connection: Connection, at: dict[str, int]) -> Iterator[Sequence[Cell]]:
    """What streams of the inbox went on without: on record, and so not missing without a word."""
    with connection.stream(_RELEASES, at, CURSOR_ROWS) as rows:
        for _, place, found, source, stream, first, last, reason, actor, note in rows:
            if found is None:
                yield _row("inbox", place, 0, None, None, "what was on record of this release is gone")
                continue
            told = ", ".join(each for each in (reason, actor and f"by {actor}", note) if each)
            yield ("inbox", f"{source} {stream}", last - first + 1, first, last, False, f"went on without: {told}")


def _row(
    check: str, place: str, count: int, first: int | None, last: int | None, problem: str | None
) -> Sequence[Cell]:
    return (check, place, count, first, last, problem is not None, problem)


COMPLETENESS: Final = Definition(
    "completeness",
    1,
    "Whether all is there: positions, versions 1 to n, entries of each transaction, what the inbox went on without.",
    CompletenessQuestion,
    columns("check place count:integer first:integer last:integer missing:boolean note"),
    completeness,
    ("position", "trail"),
)

REPORTS: Final[Sequence[Definition]] = (SUMS, COMPLETENESS)
