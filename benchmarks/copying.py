"""
The limit of a batch: COPY of the very rows that the ledger writes, as ready-made text, into the very same tables.

The rows are made before the clock starts, by handling commands for real in another database that began as a copy of
this one.  What is copied in therefore verifies, and indexes and guards have as much to do as they ever have.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg

from benchmarks import ours
from benchmarks.processes import Ready, Tally
from ledger import Done, Ledger

TABLES: Final = ("transactions", "events", "outbox")

_SELECT: Final = {
    "transactions": "SELECT t.* FROM ledger.transactions AS t WHERE t.transaction_id = ANY(%(ids)s::uuid[]) ORDER BY 1",
    "events": """
        SELECT e.* FROM unnest(%(streams)s::text[], %(versions)s::bigint[]) AS a (stream, version)
        JOIN ledger.events AS e ON e.stream = a.stream AND e.version = a.version ORDER BY 1, 2""",
    "outbox": "SELECT o.* FROM ledger.outbox AS o WHERE o.batch_id = %(first)s::uuid",
}

_COLUMNS: Final = {
    "stream": "text",
    "version": "bigint",
    "posted_debits": "numeric",
    "posted_credits": "numeric",
    "pending_debits": "numeric",
    "pending_credits": "numeric",
    "recorded_at": "timestamptz",
    "head_hash": "bytea",
    "checksum": "bytea",
}
_SELECT_BALANCES: Final = f"""
SELECT {", ".join(f"array_agg({column})::text" for column in _COLUMNS)}
FROM (SELECT * FROM ledger.balances WHERE stream = ANY(%(streams)s::text[]) ORDER BY stream) AS b
"""
_UPDATE_BALANCES: Final = f"""
UPDATE ledger.balances AS b SET {", ".join(f"{column} = n.{column}" for column in list(_COLUMNS)[1:])}
FROM unnest({", ".join(f"%s::{kind}[]" for kind in _COLUMNS.values())}) AS n ({", ".join(_COLUMNS)})
WHERE b.stream = n.stream
"""


class Rows(NamedTuple):
    """A batch as it is copied: the text for each of TABLES, and an array literal for each column of balances."""

    copied: Sequence[bytes]
    balances: Sequence[str]


def made(ready: Ready, url: str, first: int, accounts: int, size: int, count: int, file: Path) -> Tally:
    """Make so many batches of rows into a file."""
    start = time.perf_counter()
    ready()
    with Ledger.connect(url) as ledger, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET enable_seqscan = off")
        batches = [_rows(connection, ours.handled(ledger, first, accounts, size)) for _ in range(count)]
    file.write_bytes(pickle.dumps(batches))
    return Tally(size * count, time.perf_counter() - start, [])


def copied(ready: Ready, url: str, size: int, file: Path) -> Tally:
    """Copy the batches of a file into tables, each in a transaction of its own."""
    batches: list[Rows] = pickle.loads(file.read_bytes())  # noqa: S301  (written by ourselves, a moment ago)
    latencies = []
    with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute("SET enable_seqscan = off")
        # The first ones open the connection's caches, and prepare the statement.
        warm = max(1, len(batches) // 10)
        for rows in batches[:warm]:
            _copy(connection, rows)
        ready()
        begin = time.perf_counter()
        for rows in batches[warm:]:
            start = time.perf_counter()
            _copy(connection, rows)
            latencies.append(time.perf_counter() - start)
        return Tally(size * len(latencies), time.perf_counter() - begin, latencies)


def _copy(connection: psycopg.Connection[Any], rows: Rows) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        for table, lines in zip(TABLES, rows.copied, strict=True):
            with cursor.copy(f"COPY ledger.{table} FROM STDIN".encode()) as copy:
                copy.write(lines)
        cursor.execute(_UPDATE_BALANCES.encode(), rows.balances, prepare=True)


def _rows(connection: psycopg.Connection[Any], done: Sequence[Done]) -> Rows:
    """What a batch that has been handled has written."""
    places = [place for each in done for place in zip(each.transaction.streams, each.transaction.versions, strict=True)]
    ids = [each.transaction.transaction_id for each in done]
    named = {
        "ids": ids,
        "first": ids[0],
        "streams": [stream for stream, _ in places],
        "versions": [version for _, version in places],
    }
    balances = connection.execute(_SELECT_BALANCES.encode(), named).fetchone()
    assert balances is not None
    return Rows([b"".join(_lines(connection, table, named)) for table in TABLES], balances)


def _lines(connection: psycopg.Connection[Any], table: str, named: dict[str, Any]) -> Iterator[bytes]:
    with connection.cursor().copy(f"COPY ({_SELECT[table]}) TO STDOUT".encode(), named) as copy:
        yield from map(bytes, copy)
