"""
The event store: append at expected versions, read back.  The only writer of transactions, events and outbox.

Rows travel as one array literal per column and are unnested by the server: the same statement serves one
command and ten thousand, and a prepared statement stays the same whatever the size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from ledger.core.canonical import utc_text
from ledger.core.errors import CorruptLog
from ledger.core.events import LEDGER_STREAM, Numbers, Recorded, Transaction
from ledger.storage.database import Connection, Row

# Transactions are sorted by id: two batches that carry the same new keys wait for each other in one order.
APPENDED: Final = """
transacted AS (
    INSERT INTO {schema}.transactions (
        transaction_id, kind, scope, idempotency_key, request, entry_count, announced, reference,
        effective_at, recorded_at, actor, correlation_id, causation_id, metadata, header_hash)
    SELECT transaction_id, kind, scope, idempotency_key, request::json, entry_count, announced::text[],
           reference, effective_at, recorded_at, actor, correlation_id, causation_id, metadata::json, header_hash
    FROM held, unnest(
        %s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::smallint[], %s::text[], %s::text[],
        %s::timestamptz[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bytea[])
    AS t (transaction_id, kind, scope, idempotency_key, request, entry_count, announced, reference,
          effective_at, recorded_at, actor, correlation_id, causation_id, metadata, header_hash)
    WHERE held.sound = 1
    ORDER BY transaction_id
), appended AS (
    INSERT INTO {schema}.events (
        stream, version, transaction_id, type, payload, schema, asset, direction, amount,
        posted_debits, posted_credits, pending_debits, pending_credits,
        effective_at, recorded_at, prev_hash, event_hash)
    SELECT stream, version, transaction_id, type, payload::json, schema, asset, direction, amount,
           posted_debits, posted_credits, pending_debits, pending_credits,
           effective_at, recorded_at, prev_hash, event_hash
    FROM held, unnest(
        %s::text[], %s::bigint[], %s::uuid[], %s::text[], %s::text[], %s::smallint[], %s::text[], %s::text[],
        %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[], %s::numeric[],
        %s::timestamptz[], %s::timestamptz[], %s::bytea[], %s::bytea[])
    AS e (stream, version, transaction_id, type, payload, schema, asset, direction, amount,
          posted_debits, posted_credits, pending_debits, pending_credits,
          effective_at, recorded_at, prev_hash, event_hash)
    WHERE held.sound = 1
), announced AS (
    INSERT INTO {schema}.outbox (batch_id, transaction_ids, recorded_at)
    SELECT ids[1], ids, recorded_at
    FROM held, (SELECT %s::uuid[] AS ids, %s::timestamptz AS recorded_at) AS batch
    WHERE held.sound = 1 AND cardinality(ids) > 0
)
"""

KNOWN: Final = "SELECT transaction_id::text FROM {schema}.transactions WHERE transaction_id = ANY(%s::uuid[])"


def readable(moment: str) -> str:
    """
    SQL for a moment that Python can read, without its zone, which is UTC; or NULL.

    The database knows infinity, and years that Python does not; and what is still the year 9999 in UTC may be
    the year 10000 in the session's zone.
    """
    first, last = "'0001-01-01 00:00:00Z'", "'9999-12-31 23:59:59.999999Z'"
    return f"CASE WHEN {moment} BETWEEN {first} AND {last} THEN {moment} AT TIME ZONE 'UTC' END"


def said(payload: str, name: str) -> str:
    """
    SQL for what the payload of an entry or of a hold says under a name, as text; or NULL.

    JSON can say half a character, and is then an error of any statement that looks into it.  Those payloads escape
    nothing.
    """
    return f"CASE WHEN strpos({payload}::text, '\\') = 0 THEN {payload} ->> '{name}' END"


def placed(place: str) -> tuple[str, str]:
    """
    SQL for the stream and the version of an announced event: what `place_from` reads.

    It is an error of the statement where we never announced it so.
    """
    version = f"split_part({place}, ' ', -1)"
    return f'left({place}, -1 - length({version})) COLLATE "C"', f"{version}::bigint"


_STREAM, _VERSION = placed("a.place")

TRANSACTION_COLUMNS: Final = f"""
    t.transaction_id::text, t.kind, t.scope, t.idempotency_key, t.request::text, t.entry_count, t.announced,
    t.reference, {readable("t.effective_at")}, {readable("t.recorded_at")}, t.actor, t.correlation_id, t.causation_id,
    t.metadata::text, t.header_hash
"""

EVENT_COLUMNS: Final = f"""
    e.stream, e.version, e.transaction_id::text, e.type, e.payload::text, e.schema, e.asset, e.direction,
    e.amount::text, e.posted_debits::text, e.posted_credits::text, e.pending_debits::text, e.pending_credits::text,
    {readable("e.effective_at")}, {readable("e.recorded_at")}, e.prev_hash, e.event_hash
"""

SELECT_TRANSACTIONS: Final = f"""
SELECT {TRANSACTION_COLUMNS} FROM {{schema}}.transactions AS t WHERE t.transaction_id = ANY(%s::uuid[])
"""

SELECT_ANNOUNCED_EVENTS: Final = f"""
SELECT {EVENT_COLUMNS}
FROM unnest(%s::text[], %s::bigint[]) AS a (stream, version)
JOIN {{schema}}.events AS e ON e.stream = a.stream AND e.version = a.version
"""

# The log itself says in which precision an asset is counted; an index finds it.
SELECT_SCALES: Final = """
SELECT e.payload ->> 'asset', (e.payload ->> 'scale')::integer FROM {schema}.events AS e
WHERE e.stream = '$ledger' AND e.type = 'asset_defined' AND e.payload ->> 'asset' = ANY(%s::text[])
"""

# How much of each entry of these transactions was reversed since.
SELECT_REVERSED: Final = f"""
SELECT t.request ->> 'transaction_id', (e.payload ->> 'entry')::integer, sum(e.amount)::text
FROM {{schema}}.transactions AS t CROSS JOIN unnest(t.announced) AS a (place)
JOIN {{schema}}.events AS e ON e.stream = {_STREAM} AND e.version = {_VERSION}
WHERE t.kind = 'reverse' AND t.request ->> 'transaction_id' = ANY(%s::text[])
GROUP BY 1, 2
"""

SELECT_TRIAL_BALANCE: Final = """
SELECT e.asset, a.payload ->> 'account_type',
       coalesce(sum(e.amount) FILTER (WHERE e.direction = 'debit'), 0)::text,
       coalesce(sum(e.amount) FILTER (WHERE e.direction = 'credit'), 0)::text
FROM {schema}.events AS e JOIN {schema}.events AS a ON a.stream = e.stream AND a.version = 1
WHERE e.type IN ('entry_posted', 'hold_captured') AND e.effective_at < %s::timestamptz
GROUP BY 1, 2 ORDER BY 1, 2
"""

SELECT_STREAM: Final = f"""
SELECT {EVENT_COLUMNS} FROM {{schema}}.events AS e
WHERE e.stream = %s AND e.version > %s ORDER BY e.version LIMIT %s
"""


def appended(
    transactions: Sequence[Transaction], events: Sequence[Recorded], announced: Sequence[str], earliest: datetime
) -> list[str]:
    """
    The parameters of APPENDED, which appends transactions and all of their events, in the order of deciding.

    A stream that has moved on in the meantime makes it fail with a unique violation: an event is appended at
    its version or not at all.  `announced` are the ids of all transactions of one commit, in order, for the
    feed to number, of which the first was recorded at `earliest`; empty, until the last part of a batch.
    """
    return [
        *_transaction_columns(transactions),
        # In the order of the index, so that a batch touches each of its pages once.
        *_event_columns(sorted(events)),
        plain_array(announced),
        utc_text(earliest),
    ]


def recorded_transactions(connection: Connection, ids: Sequence[str]) -> list[Transaction]:
    """The transactions with these ids, as far as they exist, in no order."""
    return [transaction_from(row) for row in connection.query(SELECT_TRANSACTIONS, (plain_array(ids),))]


def events_of(connection: Connection, transactions: Sequence[Transaction]) -> list[list[Recorded]]:
    """The events that each of these transactions announces, in its order."""
    found = events_of_places(connection, [place for each in transactions for place in _places(each)])
    return [[found[place] for place in _places(each) if place in found] for each in transactions]


def events_of_places(connection: Connection, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Recorded]:
    """The events at these versions of these streams, as far as they exist."""
    names = text_array(stream for stream, _ in places)
    versions = plain_array(str(version) for _, version in places)
    rows = connection.query(SELECT_ANNOUNCED_EVENTS, (names, versions))
    return {(row[0], row[1]): recorded_from(row) for row in rows}


def _places(transaction: Transaction) -> list[tuple[str, int]]:
    return list(zip(transaction.streams, transaction.versions, strict=True))


def read_stream(connection: Connection, stream: str, after: int = 0, page_size: int = 1000) -> Iterator[Recorded]:
    """The events of one stream, in pages, from the version after `after` on."""
    while True:
        rows = connection.query(SELECT_STREAM, (stream, after, page_size))
        for row in rows:
            yield recorded_from(row)
        if len(rows) < page_size:
            return
        after = rows[-1][1]


def transaction_from(row: Row) -> Transaction:
    """
    A row of TRANSACTION_COLUMNS.

    Raises:
        CorruptLog: It holds what no transaction of ours holds.
    """
    try:
        if None in (*row[:3], *row[4:7], row[14]):
            raise TypeError(_NULL)
        places = [place_from(place) for place in row[6]]
        streams, versions = zip(*places, strict=True)
        return Transaction._make((*row[:6], streams, versions, row[7], in_utc(row[8]), in_utc(row[9]), *row[10:]))
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptLog(*first_place(row[6]), f"transaction {row[0]} cannot be read ({error})") from error


def place_from(announced: object) -> tuple[str, int]:
    """
    The stream and version of an announced event.

    Raises:
        ValueError: We never announced it so.
    """
    stream, _, version = announced.rpartition(" ") if isinstance(announced, str) else ("", "", "")
    if not (stream and version.isascii() and version.isdigit()):
        raise ValueError(f"it announces {announced!r}")
    return stream, int(version)


def first_place(announced: object) -> tuple[str, int]:
    """Where a transaction says that its first event is, however it says so; the ledger's own stream if it does not."""
    first = announced[0] if isinstance(announced, list) and announced else None
    try:
        return place_from(first)
    except ValueError:
        return first if isinstance(first, str) else LEDGER_STREAM, 0


def recorded_from(row: Row) -> Recorded:
    """
    A row of EVENT_COLUMNS.

    Raises:
        CorruptLog: It holds what no event of ours holds.
    """
    try:
        if None in row[:6] or None in row[15:]:
            raise TypeError(_NULL)
        numbers = None if row[9:13] == _NONE else Numbers(int(row[9]), int(row[10]), int(row[11]), int(row[12]))
        amount = None if row[8] is None else int(row[8])
        return Recorded._make((*row[:8], amount, numbers, in_utc(row[13]), in_utc(row[14]), *row[15:]))
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptLog(row[0], row[1], f"row: it cannot be read ({error})") from error


def in_utc(moment: datetime) -> datetime:
    """A moment as `readable` returns it, with its zone."""
    return moment.replace(tzinfo=UTC)


def plain_array(values: Iterable[str]) -> str:
    """An array literal of values that need no quotes: numbers, uuids, times, NULL."""
    return f"{{{','.join(values)}}}"


def text_array(values: Iterable[str | None]) -> str:
    """An array literal of texts."""
    texts = list(values)
    if None in texts:
        return plain_array(["NULL" if text is None else quoted(text) for text in texts])
    # NUL, which no text contains, stands between them while all are escaped at once.
    joined = _escaped("\0".join(texts))  # type: ignore[arg-type]  # mypy does not see that None is ruled out
    return '{"' + joined.replace("\0", '","') + '"}' if texts else "{}"


def bytes_array(values: Iterable[bytes]) -> str:
    """An array literal of byte strings."""
    texts = '","\\\\x'.join(map(bytes.hex, values))
    return f'{{"\\\\x{texts}"}}' if texts else "{}"


def quoted(text: str) -> str:
    """One text inside an array literal."""
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _transaction_columns(transactions: Sequence[Transaction]) -> list[str]:
    columns = list(zip(*transactions, strict=True)) or [()] * len(Transaction._fields)
    times = [_moment_array(column) for column in columns[9:11]]
    return [
        plain_array(columns[0]),
        *map(text_array, columns[1:5]),
        plain_array(map(str, columns[5])),
        text_array([_announced(*places) for places in zip(columns[6], columns[7], strict=True)]),
        text_array(columns[8]),
        *times,
        *map(text_array, columns[11:15]),
        bytes_array(columns[15]),
    ]


def _moment_array(moments: Sequence[datetime]) -> str:
    # All in UTC; those of a batch are few.
    texts = {moment: utc_text(moment) for moment in set(moments)}
    return plain_array([texts[moment] for moment in moments])


def _announced(streams: Sequence[str], versions: Sequence[int]) -> str:
    return "{" + ",".join([f'"{stream} {version}"' for stream, version in zip(streams, versions, strict=True)]) + "}"


def _event_columns(events: Sequence[Recorded]) -> list[str]:
    columns = list(zip(*events, strict=True)) or [()] * len(Recorded._fields)
    numbers = list(zip(*(event.numbers or _NO_NUMBERS for event in events), strict=True)) or [()] * 4
    return [
        text_array(columns[0]),
        plain_array(map(str, columns[1])),
        plain_array(columns[2]),
        *map(text_array, columns[3:5]),
        plain_array(map(str, columns[5])),
        *map(text_array, columns[6:8]),
        plain_array(["NULL" if amount is None else str(amount) for amount in columns[8]]),
        *[plain_array(map(str, column)) for column in numbers],
        *[_moment_array(column) for column in columns[10:12]],
        *map(bytes_array, columns[12:14]),
    ]


_NULL: Final = "a column that always says something is NULL"
_NONE: Final = (None, None, None, None)
_NO_NUMBERS: Final = ("NULL", "NULL", "NULL", "NULL")
