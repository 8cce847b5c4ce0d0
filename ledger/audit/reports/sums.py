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
from ledger.storage.asof import opened_scale
from ledger.storage.database import Connection

SHOWN_MAX: Final = 100
"""What is named of what is live; the rest is counted."""


class SumsQuestion(Frozen):
    """Which accounts."""

    differing: bool = Field(False, description="only those of which the two differ")


# One pass over the log, which workers of the server share, adds everything up; by type first: it is asked once for each
# group, and not for each event, what its amount counts as.  A stream ends with the last of it that the feed has at the
# pin, which one look finds: before what was stamped since.  What is behind that, stamped, waiting or neither, is taken
# off again: mostly it is little, and its streams are looked up.
_POSTED: Final = "type IN ('entry_posted', 'hold_captured')"
_GROUPED: Final = """
e.stream, e.type, e.direction, count(*) AS events, sum(e.amount) AS amount, max(e.version) AS version
"""
_ADDED: Final = f"""
stream, max(version) AS version, coalesce(sum(events) FILTER (WHERE {_POSTED}), 0) AS entries,
coalesce(sum(amount) FILTER (WHERE {_POSTED} AND direction = 'debit'), 0) AS debits,
coalesce(sum(amount) FILTER (WHERE {_POSTED} AND direction = 'credit'), 0) AS credits
"""
_SUMS: Final = f"""
WITH later AS MATERIALIZED (
    SELECT f.stream, min(f.version) - 1 AS version FROM {{schema}}.feed AS f
    WHERE f.position > %(position)s GROUP BY f.stream
), summed AS MATERIALIZED (
    SELECT {_ADDED} FROM (
        SELECT {_GROUPED} FROM {{schema}}.events AS e GROUP BY e.stream, e.type, e.direction
        OFFSET 0 -- Not for every event is it asked whose it is.
    ) AS g
    WHERE left(stream, 1) NOT IN ('#', '$') GROUP BY stream
), ended AS MATERIALIZED (
    SELECT s.stream, s.version AS last, coalesce(f.version, 0) AS version
    FROM summed AS s LEFT JOIN later AS l ON l.stream = s.stream LEFT JOIN LATERAL (
        SELECT f.version FROM {{schema}}.feed AS f
        WHERE f.stream = s.stream AND f.version <= coalesce(l.version, s.version) AND f.position <= %(position)s
        ORDER BY f.version DESC LIMIT 1
    ) AS f ON true
), taken_off AS (
    SELECT {_ADDED} FROM (
        SELECT {_GROUPED} FROM ended AS l JOIN {{schema}}.events AS e ON e.stream = l.stream AND e.version > l.version
        WHERE l.version < l.last GROUP BY e.stream, e.type, e.direction
    ) AS g
    GROUP BY stream
), pinned AS (
    SELECT s.stream, l.version, s.entries - coalesce(o.entries, 0) AS entries,
           s.debits - coalesce(o.debits, 0) AS debits, s.credits - coalesce(o.credits, 0) AS credits
    FROM summed AS s JOIN ended AS l ON l.stream = s.stream LEFT JOIN taken_off AS o ON o.stream = s.stream
    WHERE l.version > 0
), of_accounts AS (
    SELECT split_part(p.stream, '#', 1) COLLATE "C" AS account, count(*) AS streams, sum(p.version)::bigint AS events,
           sum(p.entries)::bigint AS entries, sum(p.debits) AS debits, sum(p.credits) AS credits,
           coalesce(sum(e.posted_debits), 0) AS posted_debits, coalesce(sum(e.posted_credits), 0) AS posted_credits,
           bool_or((p.debits, p.credits) IS DISTINCT FROM (e.posted_debits, e.posted_credits)) AS differs
    FROM pinned AS p LEFT JOIN {{schema}}.events AS e ON e.stream = p.stream AND e.version = p.version
    GROUP BY split_part(p.stream, '#', 1) COLLATE "C"
)
SELECT a.account, o.account_type, o.asset, o.scale, a.streams, a.events, a.entries, a.debits::text, a.credits::text,
       a.posted_debits::text, a.posted_credits::text, a.differs
FROM of_accounts AS a LEFT JOIN LATERAL (
    SELECT o.payload ->> 'account_type' AS account_type, o.payload ->> 'asset' AS asset,
           o.payload ->> 'scale' AS scale
    FROM {{schema}}.events AS o WHERE o.stream = a.account AND o.version = 1 OFFSET 0
) AS o ON true
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
    # Some streams fit into this, and are not sorted: what does not fit is on the server's disk.
    connection.query("SET LOCAL work_mem = '64MB'")
    tally.totals.update(accounts=0, differing=0)
    # Without a cursor, so that workers of the server share the pass.
    with connection.text_stream(_SUMS, {"position": pin.position}) as rows:
        for account, kind, asset, stated, *counted, debits, credits, posted_debits, posted_credits, differs in rows:
            tally.count("accounts")
            tally.count("differing", differs)
            tally.findings += differs
            streams, events, entries = map(int, counted)
            scale = opened_scale(asset, kind, stated)
            if scale is None:
                tally.findings += not differs
                yield (account, None, None, streams, events, entries, *[None] * 5, False)
                continue
            tally.scaled(asset, scale)
            tally.add(asset, int(debits), int(credits), entries)
            if asked.differing and not differs:
                continue
            sign = 1 if AccountType(kind).normal == "debit" else -1
            summed, final = sign * (int(debits) - int(credits)), sign * (int(posted_debits) - int(posted_credits))
            amounts = (int(debits), int(credits), summed, final, summed - final)
            shown = [decimal(amount, asset, scale) for amount in amounts]
            yield (account, kind, asset, streams, events, entries, *shown, not differs)
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

# Of each stream, what is behind the last of it that is stamped, and does not wait to be.
_NOWHERE: Final = """
WITH waiting AS MATERIALIZED (
    SELECT DISTINCT i.transaction_id
    FROM {schema}.outbox AS o CROSS JOIN unnest(o.transaction_ids) AS i (transaction_id)
), heads AS (
    SELECT e.stream, max(e.version) AS last FROM {schema}.events AS e GROUP BY e.stream
), behind AS MATERIALIZED (
    SELECT h.stream, coalesce(f.version, 0) AS version
    FROM heads AS h LEFT JOIN LATERAL (
        SELECT f.version FROM {schema}.feed AS f WHERE f.stream = h.stream ORDER BY f.version DESC LIMIT 1
    ) AS f ON true
    WHERE h.last > coalesce(f.version, 0)
)
SELECT count(*) OVER (), e.stream, e.version, e.transaction_id::text
FROM behind AS b JOIN {schema}.events AS e ON e.stream = b.stream AND e.version > b.version
WHERE NOT EXISTS (SELECT FROM waiting AS w WHERE w.transaction_id = e.transaction_id)
ORDER BY e.stream, e.version LIMIT %s
"""

_GAPS: Final = """
SELECT count(*) OVER (), s.source, s.stream, s.last_sequence + 1, s.highest_sequence, s.held, s.status
FROM {schema}.inbox_streams AS s WHERE s.status <> 'flowing' ORDER BY s.source, s.stream LIMIT %s
"""


def completeness(connection: Connection, pin: Pin, _: CompletenessQuestion, tally: Tally) -> Rows:
    """
    For each check what was looked at, and then a row for everything that is missing.

    What is neither stamped nor waiting to be has no position, and so is in no row: it is a finding beside the body.
    """
    whole_tables(connection)
    at = {"position": pin.position, "trail": pin.trail}
    checks = (_positions, _versions, _entries, _numbers, _released)
    for check in checks:
        for row in check(connection, at):
            tally.findings += row[-2] is True
            tally.count("missing", row[-2] is True)
            yield row
    tally.totals.update(positions=pin.position, trail=pin.trail)
    waiting, nowhere = (connection.query(sql, (SHOWN_MAX,)) for sql in (_GAPS, _NOWHERE))
    tally.live_findings += nowhere[0][0] if nowhere else 0
    tally.live.update(
        transactions_unstamped=connection.query(_UNSTAMPED)[0][0],
        events_nowhere=nowhere[0][0] if nowhere else 0,
        events_first_nowhere=[
            dict(zip(("stream", "version", "transaction_id"), row[1:], strict=True)) for row in nowhere
        ],
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
    with connection.stream(trail.GONE, at, CURSOR_ROWS) as rows:
        for number, kind, place in rows:
            yield _row("trail", f"{kind} {place}", 0, number, number, "what was on record here is gone")


def _released(connection: Connection, at: dict[str, int]) -> Iterator[Sequence[Cell]]:
    """What streams of the inbox went on without: on record, and so not missing without a word."""
    with connection.stream(_RELEASES, at, CURSOR_ROWS) as rows:
        for _, _, found, source, stream, first, last, reason, actor, note in rows:
            if found is None:
                continue  # Told of above.
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
