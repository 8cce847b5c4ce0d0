"""What questions in two times cost: rows that matter, and not how long an account has lived."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
import pytest
from sqlalchemy import URL

from benchmarks.logs import Log
from ledger import Ledger, Transfer
from ledger.core.commands import build
from ledger.storage import asof
from ledger.storage.statement import LINES, Statement

Psql = psycopg.Connection[Any]

BUSY: Final = "account-000000"
QUIET: Final = "account-000007"
TRANSFERS: Final = 20_000
BUFFERS_MAX: Final = 400
"""Some 30 looks by keys, each of a few pages."""


@pytest.fixture(scope="module")
def lived(ledger_server: URL) -> Iterator[Ledger]:
    """A ledger in which one account has 20,000 events and each other some 200, all of them up to a minute late."""
    with psycopg.connect(ledger_server.render_as_string(hide_password=False), autocommit=True) as server:
        server.execute(b"CREATE DATABASE ledger_lived")
        url = ledger_server.set(database="ledger_lived").render_as_string(hide_password=False)
        with Ledger.connect(url) as ledger:
            ledger.migrate()
            log = Log(ledger, 101, step=timedelta(hours=1), busy=1.0, lateness=_late)
            log.write(url, 2 * TRANSFERS, lambda _: None)
            while ledger.stamp(100_000):
                pass
            yield ledger
        server.execute(b"DROP DATABASE ledger_lived WITH (FORCE)")


def _late(chance: random.Random) -> timedelta:
    return timedelta(seconds=60 * chance.random()) + timedelta(microseconds=1)


def buffers(ledger: Ledger, sql: str, parameters: dict[str, Any]) -> int:
    """How many pages a statement looks at, planned as the ledger's own connections plan it."""
    with ledger._database.connection() as connection:  # noqa: SLF001
        ((plan,),) = connection.query("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql, parameters)
    return int(plan[0]["Plan"]["Shared Hit Blocks"]) + int(plan[0]["Plan"]["Shared Read Blocks"])


def asked(ledger: Ledger, account: str, moment: datetime) -> int:
    """The pages of both statements behind a balance as of a moment, known at half of the feed."""
    position = ledger.feed_head() // 2
    known = ledger.balance(account, known_as_of=position).version
    named = {"streams": f"{{{account}}}"}
    return buffers(ledger, asof.KNOWN_VERSIONS, {**named, "position": position}) + buffers(
        ledger, asof.AS_OF, {**named, "known": f"{{{known}}}", "effective": str(moment)}
    )


def middle(ledger: Ledger) -> datetime:
    """A moment at a quarter of the busy account's life, half an hour from whatever happened."""
    return ledger.history(BUSY, after_version=TRANSFERS // 4, limit=1)[0].recorded_at + timedelta(minutes=30)


@pytest.mark.parametrize("vacuumed", [False, True], ids=["as it was written", "vacuumed"])
def test_balance_as_of_costs_the_same_however_long_the_account_is(lived: Ledger, vacuumed: bool) -> None:
    """A hundred times as many events, all of them dated, cost a few steps more of a search; with any statistics."""
    if vacuumed:
        with lived.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    assert lived.balance(BUSY).version > 90 * lived.balance(QUIET).version
    moment = middle(lived)
    long, short = asked(lived, BUSY, moment), asked(lived, QUIET, moment)
    assert long <= 3 * short
    assert long <= BUFFERS_MAX


def test_rows_that_are_read_are_those_that_matter(lived: Ledger) -> None:
    """Right among a thousand late events the cost is that of the few hundred that have to be set right."""
    among = lived.history(BUSY, after_version=TRANSFERS // 4 - 500, limit=1)[0].recorded_at
    nothing, crossing = asked(lived, BUSY, middle(lived)), asked(lived, BUSY, among)
    # Each is looked up with the one before it, in an index and a table.
    assert nothing + 400 < crossing < nothing + 500 * 12


def test_statement_reads_its_period(lived: Ledger) -> None:
    """A statement of a day costs what was posted on the day, on an account that has a hundred times as much."""
    since = middle(lived)
    made: Statement = lived.statement(BUSY, since, since + timedelta(hours=2))
    lines = len(list(made))
    assert 1_000 <= lines <= 3_000
    assert buffers(lived, LINES, dict(made._parameters)) <= 12 * lines + BUFFERS_MAX  # noqa: SLF001


def test_statement_is_read_in_flat_memory(lived: Ledger) -> None:
    """All lines of a long life are never held at once: not even a tenth of what they would take."""
    first, last = lived.history(BUSY, limit=1)[0], lived.history(BUSY, before_version=10**6, limit=1)[0]
    made = lived.statement(BUSY, first.recorded_at - timedelta(days=1), last.recorded_at + timedelta(days=1))
    tracemalloc.start()
    try:
        lines = sum(1 for _ in made)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines > 0.95 * TRANSFERS
    assert peak < 4_000_000


def test_what_counts_when_it_is_recorded_is_not_in_the_index(funded: Ledger, psql: Psql) -> None:
    """An append without a time of its own writes nothing that only these questions need."""
    size = "SELECT pg_relation_size('events_dated')"
    funded.handle([build(Transfer, amount="1 USD", debit="world", credit="alice")] * 500)
    assert psql.execute(size).fetchone() == (8192,)
    past = funded.history("alice")[0].recorded_at - timedelta(days=1)
    funded.transfer("1 USD", debit="world", credit="alice", effective_at=past)
    assert psql.execute(size).fetchone() == (2 * 8192,)
