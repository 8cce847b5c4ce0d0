"""What the tests against the real database share: a ledger with money in it, and a person with `psql`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from os import getpid
from typing import Any, TypeAlias

import psycopg
import pytest
from sqlalchemy import URL

from ledger import Ledger
from ledger.storage.tables import APPEND_ONLY

Tamper: TypeAlias = Callable[..., None]
MakeDatabase: TypeAlias = Callable[[], str]

_numbers = count(1)


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    """A ledger in which alice (version 3) has 70.00 USD and bob (version 2) has 30.00 USD."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability", min_balance=0)
    ledger.open_account("bob", asset="USD", type="liability", min_balance=0)
    ledger.transfer("100.00 USD", debit="world", credit="alice", idempotency_key="salary", reference="payday")
    ledger.transfer("30.00 USD", debit="alice", credit="bob", idempotency_key="rent", metadata={"month": "May"})
    return ledger


@pytest.fixture
def psql(ledger_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The owner of the database with `psql`: every statement lasts at once."""
    with psycopg.connect(ledger_url, autocommit=True, options="-c search_path=ledger") as connection:
        yield connection


@pytest.fixture
def tamper(psql: psycopg.Connection[Any]) -> Tamper:
    """A superuser who switches the guards off, changes something, and switches them on again."""

    def change(*statements: str) -> None:
        with psql.transaction():
            for table in APPEND_ONLY:
                psql.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
            for statement in statements:
                assert psql.execute(statement.encode()).rowcount != 0, f"nothing was changed by {statement}"
            for table in APPEND_ONLY:
                psql.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER append_only".encode())
            psql.execute("ALTER TABLE events ENABLE TRIGGER check_appended")
            psql.execute("ALTER TABLE feed ENABLE TRIGGER check_stamped")
            psql.execute("ALTER TABLE feed ENABLE TRIGGER check_known")
            psql.execute("ALTER TABLE checkpoints ENABLE TRIGGER check_sealed")

    return change


@pytest.fixture
def make_database(ledger_server: URL) -> Iterator[MakeDatabase]:
    """Make empty databases; dropped after the test."""
    made: list[str] = []
    with psycopg.connect(ledger_server.render_as_string(hide_password=False), autocommit=True) as server:

        def make() -> str:
            made.append(f"ledger_empty_{getpid()}_{next(_numbers)}")
            server.execute(f"CREATE DATABASE {made[-1]}".encode())
            return ledger_server.set(database=made[-1]).render_as_string(hide_password=False)

        yield make
        for name in made:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
