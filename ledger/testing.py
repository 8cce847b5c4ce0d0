"""
For the tests of applications: pytest fixtures with a migrated, empty ledger on a real PostgreSQL.

In `conftest.py`:

    pytest_plugins = ["ledger.testing"]

and in a test:

    def test_payday(ledger):
        ledger.open_account("world", asset="USD", type="equity")

Each test gets a database of its own, cloned from a template that is migrated once.  The server is the one
that LEDGER_TEST_DATABASE_URL names (its user must be allowed to create databases), or else the embedded one,
started for the session in a temporary folder, in memory where the machine has room.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final

import psycopg
import pytest
from sqlalchemy import URL, make_url

from ledger.application import Ledger
from ledger.storage import embedded

_numbers: Final = count(1)

_IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108  (only to look whether it is there; the folder in it is a new one)
_ROOM_BYTES: Final = 4 * 2**30


class Databases:
    """Somebody who may make and drop databases, over one connection as long as it lasts."""

    def __init__(self, server: URL) -> None:
        self._server = server
        self._connection = self._connected()

    def run(self, statement: str) -> None:
        """Run a statement; anew, if a test has ended the connection meanwhile."""
        try:
            self._connection.execute("SELECT 1")
        except psycopg.OperationalError:
            self._connection = self._connected()
        self._connection.execute(statement.encode())

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(_text(self._server), autocommit=True)


@pytest.fixture(scope="session")
def ledger_server() -> Iterator[URL]:
    """The URL of a PostgreSQL server that tests may create databases on."""
    named = os.environ.get("LEDGER_TEST_DATABASE_URL")
    if named:
        yield make_url(named).set(drivername="postgresql")
        return
    folder = Path(tempfile.mkdtemp(prefix="ledger-test-", dir=_folder_in_memory()))
    url = make_url(embedded.start(folder / "data")).set(drivername="postgresql")
    # Nothing here outlives the machine, and nobody pulls its plug: a test begins in a fraction of the time.
    databases = Databases(url)
    databases.run("ALTER SYSTEM SET fsync = off")
    databases.run("SELECT pg_reload_conf()")
    databases.close()
    yield url
    embedded.stop(folder / "data")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ledger_databases(ledger_server: URL) -> Iterator[Databases]:
    """Makes and drops databases on that server."""
    databases = Databases(ledger_server)
    yield databases
    databases.close()


@pytest.fixture(scope="session")
def ledger_template(ledger_server: URL, ledger_databases: Databases) -> Iterator[str]:
    """The name of a migrated database, to be cloned."""
    name = f"ledger_template_{os.getpid()}"
    ledger_databases.run(f"CREATE DATABASE {name}")
    with Ledger.connect(_text(ledger_server.set(database=name))) as ledger:
        ledger.migrate()
    yield name
    ledger_databases.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def ledger_url(ledger_server: URL, ledger_databases: Databases, ledger_template: str) -> Iterator[str]:
    """The URL of a database with a migrated, empty ledger; dropped after the test."""
    name = f"ledger_test_{os.getpid()}_{next(_numbers)}"
    # By way of the WAL: copying files would wait for two checkpoints.
    ledger_databases.run(f"CREATE DATABASE {name} TEMPLATE {ledger_template} STRATEGY wal_log")
    yield _text(ledger_server.set(database=name))
    ledger_databases.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """A migrated, empty ledger."""
    with Ledger.connect(ledger_url) as ledger:
        yield ledger


def _folder_in_memory() -> Path | None:
    """Where files are in memory, if there is room: a database is cloned there in a fraction of the time."""
    if _IN_MEMORY.is_dir() and os.access(_IN_MEMORY, os.W_OK) and shutil.disk_usage(_IN_MEMORY).free > _ROOM_BYTES:
        return _IN_MEMORY
    return None


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
