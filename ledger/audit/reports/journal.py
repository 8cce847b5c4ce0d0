"""Reports in the order of the feed: the journal, who did what and why, one transaction, and what came late."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import Field

from ledger.audit.reports.form import Definition, Pin, Rows, Tally, columns, utc
from ledger.core.errors import InvalidCommand, UnknownTransaction
from ledger.core.events import account_of
from ledger.core.fields import Frozen, Moment, Text, TransactionId
from ledger.storage.database import Connection
from ledger.storage.database import Row as Found

PAGE_POSITIONS: Final = 5_000
"""Positions that are read at once: the feed has no gap, so that a page is a range."""

CURSOR_ROWS: Final = 2_000
"""Rows that a cursor of the server hands over at once."""

DEPTH_MAX: Final = 1_000
"""How deep a tree of causes is followed; deeper is refused."""

LATENESS_MAX: Final = 1_000_000_000_000
"""Seconds: longer than there are years, and still a length of time that the database knows."""

POSTED: Final = ("entry_posted", "hold_captured")


class JournalQuestion(Frozen):
    """Which entries."""

    since: Moment | None = Field(None, description="effective at or after")
    until: Moment | None = Field(None, description="effective before")
    pending: bool = Field(False, description="also what holds have set aside, and gave free")


_WHEN: Final = f"{utc('e.recorded_at')}, {utc('e.effective_at')}"

_ENTRIES: Final = f"""
SELECT f.position, {_WHEN}, f.transaction_id::text, t.kind, e.type, f.stream, f.version, e.payload ->> 'entry',
       e.direction, e.amount::text, e.asset, t.reference, t.actor
FROM {{schema}}.feed AS f
JOIN {{schema}}.events AS e ON e.stream = f.stream AND e.version = f.version
JOIN {{schema}}.transactions AS t ON t.transaction_id = f.transaction_id
WHERE f.position > %(after)s AND f.position <= %(upto)s AND e.amount IS NOT NULL
  AND (%(pending)s OR e.type = ANY(%(posted)s::text[]))
  AND (%(since)s::timestamptz IS NULL OR e.effective_at >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR e.effective_at < %(until)s::timestamptz)
ORDER BY f.position
"""


def pages(connection: Connection, pin: Pin, sql: str, asked: dict[str, Any]) -> Iterator[Found]:
    """Rows of the feed up to the pin, a range of positions at a time."""
    for after in range(0, pin.position, PAGE_POSITIONS):
        upto = min(after + PAGE_POSITIONS, pin.position)
        yield from connection.query(sql, {**asked, "after": after, "upto": upto})


def general_journal(connection: Connection, pin: Pin, asked: JournalQuestion, tally: Tally) -> Rows:
    """Every entry, in the order of the feed."""
    question = {**asked.model_dump(), "posted": list(POSTED)}
    last = ""
    tally.totals.update(transactions=0, pending=0)
    for found in pages(connection, pin, _ENTRIES, question):
        position, recorded, effective, transaction, kind, event, stream, version, entry = found[:9]
        direction, amount, asset, reference, actor = found[9:]
        shown = tally.decimal(connection, int(amount), asset)
        if event in POSTED:
            _add(tally, asset, direction, int(amount))
        else:
            tally.count("pending")
        tally.count("transactions", transaction != last)
        last = transaction
        told = (
            position,
            recorded,
            effective,
            transaction,
            kind,
            event,
            account_of(stream),
            stream,
            version,
            int(entry),
        )
        yield (*told, direction, shown, asset, reference, actor)


def _add(tally: Tally, asset: str, direction: str, amount: int) -> None:
    debits = amount if direction == "debit" else 0
    tally.add(asset, debits, amount - debits, 1)


JOURNAL: Final = Definition(
    "general-journal",
    1,
    "Every entry in the order of the feed: debits and credits of each transaction beside each other.",
    JournalQuestion,
    columns(
        "position:integer recorded_at:time effective_at:time transaction_id kind event account stream version:integer"
        " entry:integer direction amount:amount asset reference actor"
    ),
    general_journal,
)


class WhoQuestion(Frozen):
    """Whose transactions: all conditions hold at once; or the whole tree that one transaction is in."""

    actor: Text | None = Field(None, description="who asked for it")
    correlation_id: Text | None = Field(None, description="the conversation that it is part of")
    transaction_id: TransactionId | None = Field(None, description="all that led to it, and came of it")
    since: Moment | None = Field(None, description="recorded at or after")
    until: Moment | None = Field(None, description="recorded before")


_WHO: Final = f"""
t.transaction_id::text, t.kind, {utc("t.recorded_at")}, {utc("t.effective_at")}, t.actor, t.correlation_id,
t.causation_id, t.scope, t.idempotency_key, t.reference, t.metadata::text, t.request::text, t.entry_count
"""

_FIRST: Final = """
f.stream = substring(t.announced[1] FROM '^(.*) [0-9]+$') COLLATE "C"
AND f.version = substring(t.announced[1] FROM '[0-9]+$')::bigint
"""

_OF_WHOM: Final = f"""
SELECT f.position, NULL, {_WHO}
FROM {{schema}}.transactions AS t JOIN {{schema}}.feed AS f ON {_FIRST}
WHERE f.position <= %(position)s {{wanted}} ORDER BY f.position
"""

_CONDITIONS: Final = {
    "actor": "AND t.actor = %(actor)s",
    "correlation_id": "AND t.correlation_id = %(correlation_id)s",
    "since": "AND t.recorded_at >= %(since)s::timestamptz",
    "until": "AND t.recorded_at < %(until)s::timestamptz",
}

# Up to what nothing of ours has caused, and from there down to all that came of it: both ways one step further than is
# shown, so that what is too deep is seen to be.  A transaction that says that it caused itself, or two that say so of
# each other, do not make it go round.
_TREE: Final = f"""
WITH RECURSIVE up AS (
    SELECT t.transaction_id, t.causation_id, 0 AS height, ARRAY[t.transaction_id] AS path
    FROM {{schema}}.transactions AS t WHERE t.transaction_id = %(transaction_id)s::uuid
    UNION ALL
    SELECT t.transaction_id, t.causation_id, up.height + 1, up.path || t.transaction_id
    FROM up JOIN {{schema}}.transactions AS t ON t.transaction_id = CASE
        WHEN up.causation_id ~ '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$' THEN up.causation_id::uuid
    END
    WHERE t.transaction_id <> ALL (up.path) AND up.height <= %(depth)s
), down AS (
    SELECT t.*, f.position, 0 AS depth, ARRAY[f.position] AS path
    FROM (SELECT transaction_id FROM up ORDER BY height DESC LIMIT 1) AS root
    JOIN {{schema}}.transactions AS t ON t.transaction_id = root.transaction_id
    JOIN {{schema}}.feed AS f ON {_FIRST}
    WHERE f.position <= %(position)s
    UNION ALL
    SELECT t.*, f.position, down.depth + 1, down.path || f.position
    FROM down JOIN {{schema}}.transactions AS t ON t.causation_id = down.transaction_id::text
    JOIN {{schema}}.feed AS f ON {_FIRST}
    WHERE f.position <= %(position)s AND f.position <> ALL (down.path) AND down.depth <= %(depth)s
)
SELECT t.position, t.depth, {_WHO} FROM down AS t ORDER BY t.path
"""


def who_when_why(connection: Connection, pin: Pin, asked: WhoQuestion, tally: Tally) -> Rows:
    """Transactions with who asked for them and why; of a tree each after what it was caused by, and how deep."""
    given = {name: value for name, value in asked.model_dump().items() if value is not None}
    tally.totals.update(transactions=0, without_actor=0)
    if asked.transaction_id is None:
        sql = _OF_WHOM.replace("{wanted}", " ".join(_CONDITIONS[name] for name in given))
    elif len(given) > 1:
        raise InvalidCommand("transaction_id", "the tree that it is in is shown whole: ask for nothing else with it")
    else:
        check_stamped(connection, pin, asked.transaction_id)
        sql = _TREE
    with connection.stream(sql, {**given, "position": pin.position, "depth": DEPTH_MAX}, CURSOR_ROWS) as rows:
        for row in rows:
            if (row[1] or 0) > DEPTH_MAX:
                raise InvalidCommand("transaction_id", f"its tree is deeper than {DEPTH_MAX:,} causes")
            tally.count("transactions")
            tally.count("without_actor", row[6] is None)
            yield row


WHO: Final = Definition(
    "who-when-why",
    1,
    "Transactions with actor, correlation and cause; or the whole tree of causes that one is in.",
    WhoQuestion,
    columns(
        "position:integer depth:integer transaction_id kind recorded_at:time effective_at:time actor correlation_id"
        " causation_id scope idempotency_key reference metadata request entries:integer"
    ),
    who_when_why,
)


class TransactionQuestion(Frozen):
    """Which transaction."""

    transaction_id: TransactionId = Field(description="the transaction; one of its reversals shows the same")


_STAMPED: Final = f"""
SELECT t.kind, t.request ->> 'transaction_id', f.position
FROM {{schema}}.transactions AS t LEFT JOIN {{schema}}.feed AS f ON {_FIRST} WHERE t.transaction_id = %s::uuid
"""

_WHOLE: Final = f"""
SELECT CASE WHEN t.transaction_id = %(transaction_id)s::uuid THEN 'original' ELSE 'reversal' END, f.position,
       t.transaction_id::text, t.kind, {_WHEN}, t.actor, t.reference, t.request ->> 'reason', e.type, f.stream,
       f.version, e.payload ->> 'entry', e.direction, e.amount::text, e.asset, encode(e.event_hash, 'hex')
FROM (
    SELECT * FROM {{schema}}.transactions AS t WHERE t.transaction_id = %(transaction_id)s::uuid
    UNION ALL
    SELECT * FROM {{schema}}.transactions AS t
    WHERE t.kind = 'reverse' AND t.request ->> 'transaction_id' = %(transaction_id)s::uuid::text
) AS t
CROSS JOIN unnest(t.announced) AS a (place)
JOIN {{schema}}.events AS e ON e.stream = substring(a.place FROM '^(.*) [0-9]+$') COLLATE "C"
                           AND e.version = substring(a.place FROM '[0-9]+$')::bigint
JOIN {{schema}}.feed AS f ON f.stream = e.stream AND f.version = e.version
WHERE f.position <= %(position)s ORDER BY f.position
"""


def check_stamped(connection: Connection, pin: Pin, transaction_id: str) -> tuple[str, str | None]:
    """
    The kind of a transaction, and what it reverses.

    Raises:
        UnknownTransaction: There was none at the pin.
    """
    for kind, reverses, position in connection.query(_STAMPED, (transaction_id,)):
        if position is not None and position <= pin.position:
            return kind, reverses if kind == "reverse" else None
    raise UnknownTransaction(transaction_id)


def transaction(connection: Connection, pin: Pin, asked: TransactionQuestion, tally: Tally) -> Rows:
    """All events of a transaction, and of all its reversals so far."""
    _, reverses = check_stamped(connection, pin, asked.transaction_id)
    original = reverses or asked.transaction_id
    reversals = set[str]()
    with connection.stream(_WHOLE, {"transaction_id": original, "position": pin.position}, CURSOR_ROWS) as rows:
        for row in rows:
            if row[0] == "reversal":
                reversals.add(row[2])
            event, (direction, amount, asset) = row[9], row[13:16]
            shown = None if amount is None else tally.decimal(connection, int(amount), asset)
            if event in POSTED:
                _add(tally, asset, direction, int(amount))
            yield (*row[:12], None if row[12] is None else int(row[12]), direction, shown, asset, row[16])
    tally.totals["reversals"] = len(reversals)


TRANSACTION: Final = Definition(
    "transaction",
    1,
    "One transaction with all of its entries, and all of its reversals with theirs.",
    TransactionQuestion,
    columns(
        "part position:integer transaction_id kind recorded_at:time effective_at:time actor reference reason event"
        " stream version:integer entry:integer direction amount:amount asset event_hash"
    ),
    transaction,
)


class BackdatedQuestion(Frozen):
    """How late."""

    seconds: int = Field(
        0, ge=0, le=LATENESS_MAX, description="recorded more than so many seconds after it was effective"
    )
    since: Moment | None = Field(None, description="recorded at or after")
    until: Moment | None = Field(None, description="recorded before")


_BACKDATED: Final = f"""
SELECT f.position, {_WHEN}, floor(extract(epoch FROM e.recorded_at - e.effective_at))::bigint,
       f.transaction_id::text, t.kind, e.type, f.stream, f.version, e.direction, e.amount::text, e.asset, t.reference,
       t.actor
FROM {{schema}}.events AS e
JOIN {{schema}}.feed AS f ON f.stream = e.stream AND f.version = e.version
JOIN {{schema}}.transactions AS t ON t.transaction_id = e.transaction_id
WHERE e.recorded_at - e.effective_at > make_interval(secs => %(seconds)s) AND e.amount IS NOT NULL
  AND f.position <= %(position)s
  AND (%(since)s::timestamptz IS NULL OR e.recorded_at >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR e.recorded_at < %(until)s::timestamptz)
ORDER BY f.position
"""

_CLOSED: Final = f"""
SELECT f.position, {utc("(e.payload ->> 'until')::timestamptz")}
FROM {{schema}}.events AS e JOIN {{schema}}.feed AS f ON f.stream = e.stream AND f.version = e.version
WHERE e.stream = '$ledger' AND e.type = 'period_closed' AND f.position <= %(position)s ORDER BY f.position
"""


def backdated(connection: Connection, pin: Pin, asked: BackdatedQuestion, tally: Tally) -> Rows:
    """Entries that took effect before they were recorded, and by when books were closed when they came."""
    closings = connection.query(_CLOSED, {"position": pin.position})[::-1]
    tally.totals.update(after_close=0)
    closed_until: str | None = None
    whole_tables(connection)
    question = {**asked.model_dump(), "position": pin.position}
    with connection.stream(_BACKDATED, question, CURSOR_ROWS) as rows:
        for row in rows:
            while closings and closings[-1][0] < row[0]:
                closed_until = max(closed_until or "", closings.pop()[1])
            late = closed_until is not None and row[2] < closed_until
            tally.count("after_close", late)
            tally.findings += late
            stream, version, direction, amount, asset, reference, actor = row[7:]
            _add(tally, asset, direction, int(amount))
            shown = tally.decimal(connection, int(amount), asset)
            told = (*row[:4], closed_until, late, *row[4:7], account_of(stream), stream, version)
            yield (*told, direction, shown, asset, reference, actor)


def whole_tables(connection: Connection) -> None:
    """Here whole tables are what is asked for, and all rows of the answer."""
    connection.query("SET LOCAL enable_seqscan = on")
    connection.query("SET LOCAL cursor_tuple_fraction = 1")


BACKDATED: Final = Definition(
    "backdated",
    1,
    "Entries that were recorded after they took effect, and those that reach into a period that was closed by then.",
    BackdatedQuestion,
    columns(
        "position:integer recorded_at:time effective_at:time late_seconds:integer closed_until:time after_close:boolean"
        " transaction_id kind event account stream version:integer direction amount:amount asset reference actor"
    ),
    backdated,
)

REPORTS: Final[Sequence[Definition]] = (JOURNAL, WHO, TRANSACTION, BACKDATED)
