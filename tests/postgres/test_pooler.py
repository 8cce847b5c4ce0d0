"""Behind a real PgBouncer in transaction mode, where no session is anybody's own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from sqlalchemy import create_engine, make_url
from wire import Proxy

from ledger import DatabaseUnavailable, Done, InsufficientFunds, Ledger, LedgerError, Timeouts, Transfer
from ledger.core.commands import build

Psql = psycopg.Connection[Any]

JOIN_SECONDS: Final = 60
THREADS: Final = 8
SERVER_CONNECTIONS: Final = 2

CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={upstream} user={user}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 100
ignore_startup_parameters = extra_float_digits
server_reset_query =
admin_users = pgbouncer
"""


@pytest.fixture
def pooled_url(ledger_url: str) -> Iterator[str]:
    """The URL of the test's database behind a PgBouncer with two server connections."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with Proxy(make_url(ledger_url)) as upstream, tempfile.TemporaryDirectory(prefix="ledger-pooler-") as name:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        folder = Path(name)
        folder.chmod(0o755)
        url = make_url(ledger_url)
        settings = CONFIGURATION.format(
            upstream=upstream.port,
            user=url.username or "postgres",
            password=f" password={url.password}" if url.password else "",
            port=port,
            size=SERVER_CONNECTIONS,
        )
        (folder / "pgbouncer.ini").write_text(settings)
        with running([program, str(folder / "pgbouncer.ini")]):
            yield f"postgresql://anybody@127.0.0.1:{port}/{url.database}?sslmode=disable"


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    """A PgBouncer that listens, stopped at the end."""
    # It refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    with subprocess.Popen(command, user=user, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said: list[str] = []
            # What it logs once it listens.
            while not said or "process up" not in said[-1]:
                said.append(process.stderr.readline())
                assert said[-1], "".join(said)
            # Read on, or it would block when the pipe is full.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def pooled(pooled_url: str) -> Iterator[Ledger]:
    """A ledger that knows nothing of the pooler but its URL."""
    with Ledger.connect(pooled_url) as ledger:
        yield ledger


@pytest.mark.usefixtures("funded")
def test_everything_works_through_the_pooler(pooled: Ledger, psql: Psql, pooled_url: str) -> None:
    """Every kind of command and question works, keys are replayed, drift is mended, a guest is welcome."""
    assert pooled.migrate().applied == ()
    for round_ in range(3):
        pooled.define_asset(f"POINT{round_}", scale=0)
        pooled.open_account(f"a{round_}", asset=f"POINT{round_}", type="asset")
        pooled.transfer("1 USD", debit="alice", credit="bob", idempotency_key=f"k{round_}", reference="r")
        assert pooled.transfer(
            "1 USD", debit="alice", credit="bob", idempotency_key=f"k{round_}", reference="r"
        ).replayed
        with pytest.raises(InsufficientFunds):
            pooled.transfer("1000 USD", debit="alice", credit="bob")
        pooled.handle([build(Transfer, amount="0.01 USD", debit="alice", credit="bob")] * 500)
        assert pooled.balance("alice", version=3).posted.minor == 7_000
        psql.execute("UPDATE balances SET posted_credits = 1 WHERE stream = 'alice'")
        assert pooled.balance("alice").posted.minor == 7_000 - 600 * (round_ + 1)
        psql.execute("DELETE FROM balances WHERE stream = 'bob'")
        pooled.transfer("0.01 USD", debit="bob", credit="alice")
        pooled.transfer("0.01 USD", debit="alice", credit="bob")
        assert len(pooled.history("alice", limit=10)) == 10
        assert len(pooled.transactions(reference="r")) == round_ + 1
        assert pooled.trial_balance().balanced
        assert pooled.rebuild() == []
        assert pooled.verify().ok
        assert pooled.doctor().ok
    with psycopg.connect(pooled_url, prepare_threshold=None) as lent, pooled.join(lent, accounts=["alice"]) as guest:
        guest.transfer("1 USD", debit="alice", credit="bob")
    with pooled.engine.begin() as connection, pooled.join(connection) as guest:
        guest.transfer("1 USD", debit="alice", credit="bob")
    assert pooled.verify().ok


def test_eight_threads_over_two_server_connections(pooled: Ledger, funded: Ledger, psql: Psql) -> None:
    """Eight threads share two server sessions: every command is done once, and no session is taken for one's own."""
    failed: list[BaseException] = []
    done: list[Done] = []

    def work(number: int) -> None:
        try:
            for turn in range(15):
                debited, credited = ("alice", "bob") if (number + turn) % 2 else ("bob", "alice")
                key = f"{number}-{turn}"
                done.append(pooled.transfer("0.01 USD", debit=debited, credit=credited, idempotency_key=key))
                pooled.balance("alice")
                pooled.history("bob", limit=3)
                outcomes = pooled.handle([build(Transfer, amount="0.01 USD", debit="world", credit="bob")] * 3)
                done.extend(outcome for outcome in outcomes if isinstance(outcome, Done))
        except BaseException as error:  # noqa: BLE001  (shown by the assertion below)
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_SECONDS)
        assert not thread.is_alive()
    assert failed == []
    assert len({outcome.transaction_id for outcome in done}) == THREADS * 15 * 4
    sessions = psql.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    ).fetchone()
    assert sessions is not None
    # The pooler's two, this one, and those of the ledger that made the accounts.
    assert sessions[0] <= SERVER_CONNECTIONS + 1 + funded.engine.pool.checkedin()  # type: ignore[attr-defined]
    assert funded.verify().ok


def test_connections_of_the_applications_own(pooled_url: str, funded: Ledger) -> None:
    """An engine that prepares nothing works through the pooler; one that prepares is told what to change."""
    url = make_url(pooled_url).set(drivername="postgresql+psycopg")
    turns = 8
    """More often than psycopg sends a statement before it prepares it."""

    def post(connect_args: dict[str, Any]) -> None:
        engine = create_engine(url, connect_args=connect_args)
        with Ledger(engine) as ledger, engine.connect() as one, engine.connect() as other:
            for connection in [one, other] * turns:
                with ledger.join(connection) as guest:
                    guest.transfer("0.01 USD", debit="alice", credit="bob")
                connection.commit()
                ledger.transfer("0.01 USD", debit="alice", credit="bob")

    post({"prepare_threshold": None})
    assert funded.balance("alice").version == 3 + turns * 4
    with pytest.raises(DatabaseUnavailable, match="prepare_threshold=None") as refused:
        post({})
    assert "\n" not in str(refused.value)
    assert funded.verify().ok


def test_timeouts_apply_through_the_pooler(pooled_url: str, psql: Psql, funded: Ledger) -> None:
    """The limits of one client hold for it, and do not stay behind in the session for the next."""
    with Ledger.connect(pooled_url, timeouts=Timeouts(statement_seconds=30, lock_seconds=0.2)) as hasty:
        with psql.transaction():
            psql.execute("SELECT 1 FROM balances WHERE stream = 'alice' FOR UPDATE")
            with pytest.raises(LedgerError, match="lock"):
                hasty.transfer("1 USD", debit="alice", credit="bob")
        hasty.transfer("1 USD", debit="alice", credit="bob")
    with (
        Ledger.connect(pooled_url, timeouts=Timeouts(statement_seconds=0.2, lock_seconds=30)) as hasty,
        psql.transaction(),
    ):
        psql.execute("SELECT 1 FROM balances WHERE stream = 'alice' FOR UPDATE")
        with pytest.raises(DatabaseUnavailable, match="statement_seconds"):
            hasty.transfer("1 USD", debit="alice", credit="bob")
    with psycopg.connect(pooled_url, prepare_threshold=None, autocommit=True) as anybody:
        for setting in ("statement_timeout", "lock_timeout"):
            assert anybody.execute(f"SHOW {setting}".encode()).fetchone() == ("0",)
    assert funded.balance("alice").version == 4
    assert funded.verify().ok


@pytest.mark.usefixtures("funded")
def test_no_session_keeps_anything(pooled: Ledger, pooled_url: str) -> None:
    """What a server session could keep for somebody else is empty after work: statements, cursors, locks, settings."""
    pooled.handle([build(Transfer, amount="0.01 USD", debit="alice", credit="bob")] * 50)
    pooled.verify()
    pooled.rebuild()
    checks: dict[str, Callable[[Any], bool]] = {
        "SELECT count(*) FROM pg_prepared_statements": lambda found: found == 0,
        "SELECT count(*) FROM pg_cursors WHERE name <> ''": lambda found: found == 0,
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'": lambda found: found == 0,
        "SELECT current_setting('plan_cache_mode')": lambda found: found == "auto",
        "SELECT current_setting('search_path')": lambda found: "public" in found,
    }
    with psycopg.connect(pooled_url, prepare_threshold=None, autocommit=True) as anybody:
        for query, holds in checks.items():
            row = anybody.execute(query.encode()).fetchone()
            assert row is not None
            assert holds(row[0]), query
