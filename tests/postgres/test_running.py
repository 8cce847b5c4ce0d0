"""What `docs/running.md` tells an operator to type does what it says, on a PostgreSQL of its own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from ledger import DatabaseUnavailable, Ledger, Timeouts
from ledger.audit.checkpoint import SigningKey

ROOT: Final = Path(__file__).parent.parent.parent
PAGE: Final = ROOT / "docs" / "running.md"
TIMEOUT_SECONDS: Final = 120

# Servers, backups and a standby of their own take a minute and more.
pytestmark = pytest.mark.campaign

SETTINGS: Final = (
    "listen_addresses = '127.0.0.1'",
    "unix_socket_directories = ''",
    "max_prepared_transactions = 2",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with a PostgreSQL of its own: where its folders are, and what its shell knows."""

    folder: Path
    port: int
    programs: Path

    @property
    def url(self) -> str:
        """How its superuser connects."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/ledger"

    def login(self, name: str, port: int | None = None) -> str:
        """How somebody logs in with a password."""
        return f"postgresql://{name}:secret-{name}@127.0.0.1:{port or self.port}/ledger"

    def shell(self, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script as its administrator."""
        return self._run(["bash", "-euo", "pipefail", "-c", script], **variables)

    def as_postgres(self, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script as the user that the server runs as; the server itself refuses to run as root."""
        who = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        return self._run([*who, "bash", "-euo", "pipefail", "-c", script], **variables)

    def _run(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LEDGER_", "PG"))}
        kept["PATH"] = f"{self.folder}/bin:{self.programs}:{kept['PATH']}"
        kept["PYTHONPATH"] = str(ROOT)
        # To a file: a server that is started keeps its output open.
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                command, cwd=ROOT, env=kept | variables, stdout=said, stderr=said, timeout=TIMEOUT_SECONDS, check=False
            )
            said.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, said.read())

    def block(self, name: str) -> str:
        """A block of the page, with this machine's folders in the place of those that it names."""
        found = re.search(
            rf"^<!-- tested: {name} -->\n```\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        assert found, name
        return re.sub(r"(?<![\w.])/(backup|srv)/", rf"{self.folder}/\1/", found[1])

    def serve(self, action: str) -> None:
        """Start, restart or stop its server."""
        done = self.as_postgres(f"pg_ctl --wait -D {self.folder}/data -l {self.folder}/log {action}")
        assert done.returncode == 0, done.stdout


def sound(done: subprocess.CompletedProcess[str]) -> str:
    """What a script said that has ended well."""
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A PostgreSQL 15 from Debian's package, or the one of the wheel, on a free port, with a `ledger` in its path."""
    programs = Path("/usr/lib/postgresql/15/bin")
    if not (programs / "postgres").exists():
        pytest.skip("PostgreSQL 15 is not installed")
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        pytest.skip("as root, runuser is needed to start a PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="ledger-running-"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name in ("bin", "backup/wal", "srv"):
        (folder / name).mkdir(parents=True)
    (folder / "bin" / "ledger").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ledger "$@"\n')
    (folder / "bin" / "ledger").chmod(0o755)
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, "postgres")
    made = Machine(folder, port, programs)
    sound(made.as_postgres(f"initdb -D {folder}/data -U postgres --auth=trust --encoding=UTF8 --data-checksums"))
    with (folder / "data" / "postgresql.conf").open("a") as settings:
        settings.write("\n".join((f"port = {port}", *SETTINGS)) + "\n")
    made.serve("start")
    try:
        with psycopg.connect(made.url.replace("/ledger", "/postgres"), autocommit=True) as server:
            server.execute("CREATE DATABASE ledger")
        yield made
    finally:
        for data in ("srv/restored", "srv/standby", "data"):
            if (folder / data / "postmaster.pid").exists():
                made.as_postgres(f"pg_ctl --wait --mode=immediate -D {folder}/{data} stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def running(machine: Machine) -> Machine:
    """That machine, with a ledger that was set up as the page says, and money in it."""
    passwords = {"SERVICE_PASSWORD": "secret-ledger_service", "AUDITOR_PASSWORD": "secret-ledger_auditor"}
    for _ in range(2):
        # To be run again after each migration, and to change a password.
        sound(machine.shell(machine.block("roles"), LEDGER_DATABASE_URL=machine.url, **passwords))
    with Ledger.connect(machine.login("ledger_service")) as ledger:
        ledger.open_account("world", asset="USD", type="equity")
        ledger.open_account("alice", asset="USD", type="liability", min_balance=0)
        ledger.transfer("5 USD", debit="world", credit="alice", idempotency_key="one")
        ledger.stamp()
    return machine


@pytest.fixture
def psql(running: Machine) -> Iterator[psycopg.Connection[Any]]:
    """Its superuser."""
    with psycopg.connect(running.url, autocommit=True) as connection:
        yield connection


def test_doctor_at_the_start(running: Machine) -> None:
    """Set up as the page says there is nothing to find, and not even a warning, for an auditor who logs in."""
    done = running.shell(running.block("doctor"), AUDITOR_URL=running.login("ledger_auditor"))
    assert "as it must be: nothing found" in sound(done)
    with Ledger.connect(running.login("ledger_auditor")) as auditor:
        assert auditor.doctor(role_prefix="ledger").warnings == []
        assert auditor.verify().ok


def test_superuser_is_told(running: Machine) -> None:
    """Whoever comes as a superuser is warned, and nothing else is the matter."""
    with Ledger.connect(running.url) as ledger:
        diagnosis = ledger.doctor()
    assert diagnosis.ok
    assert [symptom.place for symptom in diagnosis.warnings] == ["postgres"]


def test_prepared_transaction_is_named(running: Machine, psql: psycopg.Connection[Any]) -> None:
    """One that hangs about holds its locks: the warning names it and what ends it."""
    psql.execute("BEGIN")
    psql.execute("UPDATE ledger.balances SET version = version")
    psql.execute("PREPARE TRANSACTION 'left behind'")
    try:
        with Ledger.connect(running.login("ledger_auditor")) as auditor:
            diagnosis = auditor.doctor()
        assert diagnosis.ok
        (warning,) = diagnosis.warnings
        assert (warning.kind, warning.place) == ("transaction", "left behind")
        assert "ROLLBACK PREPARED 'left behind'" in warning.advice
    finally:
        psql.execute("ROLLBACK PREPARED 'left behind'")


def test_wait_for_a_standby_that_is_cancelled(running: Machine, psql: psycopg.Connection[Any]) -> None:
    """A commit whose wait for a standby was cut short is answered as done, by PostgreSQL and so by the ledger."""
    psql.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    psql.execute("SELECT pg_reload_conf()")
    try:
        timeouts = Timeouts(statement_seconds=0.2)
        with (
            Ledger.connect(running.login("ledger_service"), timeouts=timeouts) as ledger,
            ThreadPoolExecutor(max_workers=1) as caller,
        ):
            asked = caller.submit(ledger.transfer, "1 USD", debit="world", credit="alice", idempotency_key="unknown")
            _cancel_the_wait(psql)
            assert not asked.result(TIMEOUT_SECONDS).replayed
            # Asked again with its key, as after a failover: it is here, so this is the same answer.
            assert ledger.transfer("1 USD", debit="world", credit="alice", idempotency_key="unknown").replayed
        said = (running.folder / "log").read_text()
        assert "canceling wait for synchronous replication due to user request" in said
        assert "has already committed locally, but might not have been replicated to the standby" in said
        address = f"{running.login('ledger_auditor')}?options=-csynchronous_commit%3Dlocal"
        with Ledger.connect(address) as auditor:
            assert [each.place for each in auditor.doctor().warnings] == ["synchronous_commit = local"]
    finally:
        psql.execute("ALTER SYSTEM RESET synchronous_standby_names")
        psql.execute("SELECT pg_reload_conf()")


def _cancel_the_wait(psql: psycopg.Connection[Any]) -> None:
    """Cancel the one session that waits for a standby, once it does; its own timeout has long passed by then."""
    waits = (
        "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        " AND query_start < clock_timestamp() - interval '1 second'"
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while psql.execute(waits).fetchone() != (1,):
        assert time.monotonic() < deadline, "it never came to wait"


def test_standby_that_takes_over(running: Machine, psql: psycopg.Connection[Any]) -> None:
    """
    A synchronous standby answers questions and the doctor, and refuses to write; it goes on when the primary is struck.

    What was answered is there, with its key, as is what was signed.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sound(running.as_postgres(running.block("standby"), STANDBY_PORT=str(port), LEDGER_DATABASE_URL=running.url))
    # What is answered can be seen there at once; otherwise it would only be on its disk.
    psql.execute("ALTER SYSTEM SET synchronous_commit = remote_apply")
    psql.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    psql.execute("SELECT pg_reload_conf()")
    try:
        with (
            Ledger.connect(running.login("ledger_service")) as primary,
            Ledger.connect(running.login("ledger_service", port)) as standby,
        ):
            primary.transfer("3 USD", debit="world", credit="alice", idempotency_key="answered")
            primary.stamp()
            assert standby.balance("alice") == primary.balance("alice")
            assert standby.doctor(role_prefix="ledger").findings == []
            assert standby.verify().ok
            assert standby.feed_head() == primary.feed_head()
            with pytest.raises(DatabaseUnavailable, match="Connect to the primary"):
                standby.transfer("1 USD", debit="world", credit="alice")
        psql.close()
        running.serve("--mode=immediate stop")
        sound(running.as_postgres(running.block("failover")))
        with Ledger.connect(running.login("ledger_service", port)) as promoted:
            assert promoted.transfer("3 USD", debit="world", credit="alice", idempotency_key="answered").replayed
            # Its settings came along: with nobody to wait for it would stand still.
            _without_standbys(running.url.replace(str(running.port), str(port)))
            assert not promoted.transfer("1 USD", debit="world", credit="alice", idempotency_key="later").replayed
            assert promoted.doctor(role_prefix="ledger").findings == []
            assert promoted.verify().ok
    finally:
        running.as_postgres(f"pg_ctl --wait --mode=immediate -D {running.folder}/srv/standby stop")
        running.as_postgres(f"pg_ctl --wait --mode=fast -D {running.folder}/data -l {running.folder}/log start")
        _without_standbys(running.url)


def _without_standbys(url: str) -> None:
    """Let a server wait for nobody."""
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("ALTER SYSTEM RESET synchronous_standby_names")
        session.execute("ALTER SYSTEM RESET synchronous_commit")
        session.execute("SELECT pg_reload_conf()")


def test_restore_to_a_moment(running: Machine, psql: psycopg.Connection[Any], tmp_path: Path) -> None:
    """
    Archive, base backup, a moment, and the ledger as it was then: as it must be, sound, and writable.

    What was signed later is missed, and the sealer does not go on as if it had never been.
    """
    shell: Callable[..., subprocess.CompletedProcess[str]] = running.shell
    sound(shell(running.block("archive"), LEDGER_DATABASE_URL=running.url))
    psql.close()
    running.serve("restart")
    sound(running.as_postgres(running.block("backup"), LEDGER_DATABASE_URL=running.url))
    key, state = tmp_path / "seal.key", tmp_path / "state"
    SigningKey.generate("example.org/ledger").write(key)
    (tmp_path / "seal.pub").write_text(str(SigningKey.read(key).verifier))
    with Ledger.connect(running.login("ledger_service")) as ledger:
        ledger.transfer("7 USD", debit="world", credit="alice", idempotency_key="kept")
        before = ledger.balance("alice").posted
        identity = ledger.ledger_id
        sound(shell(running.block("mark"), LEDGER_DATABASE_URL=running.url))
        ledger.transfer("9 USD", debit="world", credit="alice", idempotency_key="lost")
        ledger.stamp()
    seal = f"ledger seal --key {key} --state {state} --database-url"
    sound(shell(f"{seal} {running.login('ledger_service')}"))
    sound(shell(f"ledger checkpoint --out {tmp_path}/last.checkpoint", LEDGER_DATABASE_URL=running.url))
    _archive_all(running)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sound(running.as_postgres(running.block("restore"), RESTORED_PORT=str(port)))
    restored = {"RESTORED_URL": running.login("ledger_auditor", port)}
    said = sound(shell(running.block("check"), **restored))
    assert "as it must be: nothing found" in said
    assert "[green]" not in said
    with Ledger.connect(running.login("ledger_service", port)) as ledger:
        assert ledger.ledger_id == identity
        assert ledger.balance("alice").posted == before
        missing = shell(f"cd {tmp_path}\n" + running.block("missing"), **restored)
        assert missing.returncode == 1, missing.stdout
        refused = shell(f"{seal} {running.login('ledger_service', port)}")
        assert refused.returncode == 1, refused.stdout
        assert ledger.transfer("7 USD", debit="world", credit="alice", idempotency_key="kept").replayed
        assert not ledger.transfer("9 USD", debit="world", credit="alice", idempotency_key="lost").replayed
        assert ledger.verify().ok


def _archive_all(machine: Machine) -> None:
    """Let the server archive all that was written so far, and wait until it has."""
    with psycopg.connect(machine.url, autocommit=True) as psql:
        row = psql.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        assert row is not None
    sound(machine.shell(f"timeout 60 bash -c 'until [ -e {machine.folder}/backup/wal/{row[0]} ]; do sleep 0.1; done'"))


def test_every_tested_block_is_run() -> None:
    """A block that is marked as tested is one of those above, and what is run is marked."""
    marked = set(re.findall(r"^<!-- tested: (\w+) -->$", PAGE.read_text("utf-8"), re.MULTILINE))
    run = set(re.findall(r'\.block\("(\w+)"\)', Path(__file__).read_text("utf-8")))
    assert marked == run
