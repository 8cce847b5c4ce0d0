"""When the database does not do what is asked: one clear line with what to do, and nothing half-written."""

from __future__ import annotations

import os
import pickle
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from sqlalchemy import URL, create_engine, make_url

from ledger import (
    ConcurrencyError,
    ConnectionLost,
    DatabaseUnavailable,
    GuardRefused,
    InvalidCommand,
    Ledger,
    LedgerError,
    Rejected,
    SchemaMismatch,
    Timeouts,
    Transfer,
    UnsupportedConnection,
)
from ledger.core.commands import build
from ledger.storage.database import Connection, Database, engine_for

Psql = psycopg.Connection[Any]

JOIN_SECONDS: Final = 10


def is_one_clear_line(error: LedgerError) -> bool:
    """One line of sensible length that ends like a sentence and shows neither SQL nor a traceback."""
    text = str(error)
    return (
        "\n" not in text
        and 20 < len(text) < 400
        and text.endswith(".")
        and not any(word in text for word in ("Traceback", "INSERT INTO", " FROM ", "psycopg", "sqlalche", "{"))
    )


def failing(url: str, **settings: Any) -> LedgerError:
    """The error of a first question at `url`."""
    with Ledger.connect(url, **settings) as ledger, pytest.raises(LedgerError) as failed:
        ledger.transfer("1 USD", debit="alice", credit="bob", idempotency_key="k")
    error = failed.value
    assert is_one_clear_line(error), str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  (of our own making)
    return error


def with_options(url: str, options: str) -> str:
    """The URL of a session with these settings."""
    return make_url(url).update_query_dict({"options": options}).render_as_string(hide_password=False)


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """A server that says one thing to whoever calls, and hangs up; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(1_000)
                client.sendall(reply)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"postgresql://me@127.0.0.1:{listener.getsockname()[1]}/db?sslmode=disable&gssencmode=disable"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(JOIN_SECONDS)


def refusal(sqlstate: str, text: str) -> bytes:
    """An ErrorResponse, as a server sends it before it lets nobody in (PostgreSQL documentation, 53.7)."""
    fields = b"".join(
        kind + value.encode() + b"\0"
        for kind, value in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", sqlstate), (b"M", text))
    )
    return b"E" + struct.pack("!I", len(fields) + 5) + fields + b"\0"


# Not reached


def test_nobody_listens() -> None:
    """Connection refused: check that the server runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = failing(f"postgresql://me:secret@127.0.0.1:{port}/db")
    assert isinstance(error, DatabaseUnavailable)
    assert error.retryable
    assert "Cannot reach PostgreSQL" in str(error)
    assert "Check that the server runs" in str(error)
    assert "secret" not in str(error)


def test_no_such_host() -> None:
    """A host that nobody knows: check the host."""
    error = failing("postgresql://me:secret@no-such-host.invalid/db")
    assert "host" in str(error)
    assert "secret" not in str(error)


def test_server_that_never_answers() -> None:
    """Somebody listens and says nothing: given up after the time to connect."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"postgresql://me@127.0.0.1:{listener.getsockname()[1]}/db"
        begun = time.monotonic()
        error = failing(url, timeouts=Timeouts(connect_seconds=1))
        assert time.monotonic() - begun < 8
    assert isinstance(error, DatabaseUnavailable)
    assert "timeout" in str(error)


@pytest.mark.parametrize(
    ("sqlstate", "said", "advice"),
    [
        ("28P01", 'password authentication failed for user "me"', "user and password"),
        ("28000", 'no pg_hba.conf entry for host "127.0.0.1"', "host"),
        ("3D000", 'database "db" does not exist', "database"),
        ("57P03", "the database system is starting up", "server runs"),
        ("53300", "sorry, too many clients already", "sent again"),
    ],
)
def test_server_that_lets_nobody_in(sqlstate: str, said: str, advice: str) -> None:
    """What the server says when it refuses a connection comes out with what to do about it."""
    # The client library of PostgreSQL passes on the text of such a refusal and not its SQLSTATE.
    with answering(refusal(sqlstate, said)) as url:
        error = failing(url)
    assert isinstance(error, DatabaseUnavailable)
    assert error.retryable
    assert said in error.problem
    assert advice in error.advice


def test_something_else_listens() -> None:
    """A server that speaks another language is not reached either."""
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        assert isinstance(failing(url), DatabaseUnavailable)


@pytest.mark.parametrize(
    "url",
    ["", "not a url", "mysql://me@localhost/db", "sqlite://", "postgresql+asyncpg://localhost/db", "nonsense://x/y"],
)
def test_url_that_is_none(url: str) -> None:
    """A URL that is none of PostgreSQL is refused before anything is tried, and shows how one is written."""
    with pytest.raises(InvalidCommand, match="postgresql") as refused:
        Ledger.connect(url)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("port", ["port", "99999999"])
def test_port_that_is_none(port: str) -> None:
    """A port that is none is refused with a sentence, early or late."""
    with pytest.raises(LedgerError) as refused:
        Ledger.connect(f"postgresql://me@localhost:{port}/db").balance("a")
    assert "\n" not in str(refused.value)


# Reached, and not as it should be


def test_database_that_is_not_there(ledger_url: str) -> None:
    """A database that does not exist: create it."""
    error = failing(make_url(ledger_url).set(database="nowhere_to_be_found").render_as_string(hide_password=False))
    assert isinstance(error, DatabaseUnavailable)
    assert '"nowhere_to_be_found" does not exist' in error.problem
    assert "database" in error.advice


def test_user_that_is_not_there(ledger_url: str) -> None:
    """A user whom the server does not know: check the user."""
    error = failing(make_url(ledger_url).set(username="nobody_at_all").render_as_string(hide_password=False))
    assert isinstance(error, DatabaseUnavailable)
    assert "nobody_at_all" in error.problem
    assert "user and password" in error.advice


def test_missing_schema(make_database: Callable[[], str]) -> None:
    """An empty database: migrate it."""
    url = make_database()
    error = failing(url)
    assert isinstance(error, SchemaMismatch)
    assert "ledger migrate" in str(error)
    with Ledger.connect(url) as ledger:
        for question in (lambda: ledger.balance("a"), ledger.verify, ledger.rebuild, lambda: ledger.ledger_id):
            with pytest.raises(SchemaMismatch):
                question()
        ledger.migrate()
        assert ledger.verify().ok


def unchanged(ledger: Ledger, psql: Psql) -> bool:
    """Whether nothing was written since `funded` was made, and nothing is in the way of going on."""
    counts = [
        psql.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        for table in ("transactions", "events", "outbox")
    ]
    return counts == [(5,), (8,), (5,)] and ledger.verify().ok


def test_read_only_server(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """A replica, or a server in read-only mode, answers questions and refuses to write: connect to the primary."""
    url = with_options(ledger_url, "-cdefault_transaction_read_only=on")
    error = failing(url)
    assert isinstance(error, DatabaseUnavailable)
    assert "Connect to the primary" in str(error)
    with Ledger.connect(url) as replica:
        assert replica.balance("alice").version == 3
        assert replica.verify().ok
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            replica.handle([build(Transfer, amount="1 USD", debit="alice", credit="bob")] * 3)
    assert unchanged(funded, psql)


def test_statement_timeout(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """A statement that runs for too long is given up, and says which setting is its limit."""
    with psql.transaction():
        psql.execute("SELECT 1 FROM balances WHERE stream = 'alice' FOR UPDATE")
        error = failing(ledger_url, timeouts=Timeouts(statement_seconds=0.2, lock_seconds=30))
    assert isinstance(error, DatabaseUnavailable)
    assert "statement_seconds" in str(error)
    assert unchanged(funded, psql)


def test_lock_timeout(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """A lock that somebody holds for too long is given up after the time for it, not a dozen times that."""
    with psql.transaction():
        psql.execute("SELECT 1 FROM balances WHERE stream = 'alice' FOR UPDATE")
        begun = time.monotonic()
        error = failing(ledger_url, timeouts=Timeouts(statement_seconds=30, lock_seconds=1))
        assert time.monotonic() - begun < 6
    assert isinstance(error, ConcurrencyError)
    assert error.retryable
    assert "lock" in str(error)
    assert unchanged(funded, psql)


@pytest.mark.parametrize("statements", [1, 2])
def test_process_that_stands_still(funded: Ledger, ledger_url: str, psql: Psql, statements: int) -> None:
    """Who does nothing in a transaction for too long loses it with its locks, whatever it did last."""
    timeouts = Timeouts(idle_seconds=0.1)
    database = Database(engine_for(ledger_url, timeouts, 1), "ledger", timeouts)

    def stand_still(connection: Connection) -> None:
        with connection.transaction():
            connection.send([("SELECT 1 FROM {schema}.balances WHERE stream = 'alice' FOR UPDATE", ())] * statements)
            psql.execute("SELECT 1 FROM balances WHERE stream = 'alice' FOR UPDATE")
            connection.query("SELECT 1")

    psql.execute("SET lock_timeout = '20s'")
    with pytest.raises(ConnectionLost), database.connection() as connection:
        stand_still(connection)
    database.close()
    assert unchanged(funded, psql)


def test_pool_is_used_up(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """More threads than connections: whoever waits for too long is told about pool_size."""
    with Ledger.connect(ledger_url, pool_size=1, timeouts=Timeouts(pool_seconds=0.2)) as ledger:
        with ledger.engine.connect(), pytest.raises(DatabaseUnavailable, match="pool_size") as refused:
            ledger.balance("alice")
        assert is_one_clear_line(refused.value)
        assert ledger.balance("alice").version == 3
    assert unchanged(funded, psql)


def test_connection_that_was_closed_in_the_pool(funded: Ledger, psql: Psql) -> None:
    """Connections that the server closed while they were idle are replaced, and the command is carried out once."""
    psql.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    outcome = funded.transfer("1 USD", debit="alice", credit="bob")
    assert outcome.versions == {"alice": 4, "bob": 3}
    assert funded.verify().ok


def test_guard_that_refuses(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """A table that somebody has changed is a sentence with its SQLSTATE, and not a stack of SQL."""
    psql.execute("ALTER TABLE events ADD CONSTRAINT odd CHECK (stream <> 'bob' OR version < 3)")
    error = failing(ledger_url)
    assert isinstance(error, DatabaseUnavailable)
    assert "23514" in str(error)
    assert unchanged(funded, psql)


def refuse_bob(psql: Psql) -> None:
    """A guard of the ledger that refuses one account, whatever is asked."""
    psql.execute(
        "CREATE FUNCTION ledger.refuse_bob() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION USING ERRCODE = 'LD004', MESSAGE = 'bob is refused'; END $$"
    )
    psql.execute(
        "CREATE TRIGGER odd BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.stream = 'bob')"
        " EXECUTE FUNCTION ledger.refuse_bob()"
    )


def test_guard_that_always_refuses(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """A guard that refuses what is in step with the log is no lost race: it is named, and trying again is no use."""
    refuse_bob(psql)
    error = failing(ledger_url)
    assert isinstance(error, GuardRefused)
    assert not error.retryable
    assert error.sqlstate == "LD004"
    assert "bob is refused" in str(error)
    command = build(Transfer, amount="1 USD", debit="alice", credit="bob")
    with pytest.raises(GuardRefused, match="bob is refused"):
        funded.handle([command] * 2)
    with funded.engine.connect() as lent, funded.join(lent) as guest, pytest.raises(GuardRefused):
        guest.handle([command])
    assert unchanged(funded, psql)


def test_refusal_in_a_pipeline_is_said_once(funded: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """What fails while more is being sent is the one error that comes out; the driver warns of nothing."""
    database = funded._database  # noqa: SLF001  (nothing public sends statements)
    for after in (0, 1, 3):

        def statements(driver: Psql, after: int = after) -> Iterator[tuple[str, tuple[()]]]:
            yield "BEGIN", ()
            yield "SELECT 1 / 0", ()
            select.select([driver.fileno()], [], [], JOIN_SECONDS)
            for _ in range(after):
                yield "SELECT 2", ()

        with pytest.raises(LedgerError, match="division by zero"), database.connection() as connection:
            connection.send(statements(connection.driver))
    with database.connection() as connection:
        assert connection.send([("SELECT 1", ()), ("SELECT 2", ())]) == [[(1,)], [(2,)]]
    assert [record.getMessage() for record in caplog.records] == []


# What no database is asked


@pytest.mark.parametrize("text", ["a\0b", "\ud800", 5, None, b"alice", ["alice"]], ids=ascii)
def test_questions_are_asked_with_texts(funded: Ledger, text: Any) -> None:
    """What is no text that can be stored is refused by its name, wherever a question takes one."""
    questions: list[tuple[str, Callable[[], object]]] = [
        ("account", lambda: funded.balance(text)),
        ("account", lambda: funded.history(text)),
        ("account", lambda: funded.holds(text)),
        ("account", lambda: funded.verify(text)),
        ("account", lambda: funded.rebuild(text)),
        ("accounts", lambda: funded.join(funded.engine, accounts=[text]).__enter__()),  # type: ignore[arg-type]
        ("subject", lambda: funded.state("payment", text)),
        ("machine", lambda: funded.state(text, "p-1")),
        ("after", lambda: funded.accounts(after=text)),
    ]
    if text is not None:
        questions += [
            ("reference", lambda: funded.transactions(reference=text)),
            ("asset", lambda: funded.accounts(asset=text)),
            ("status", lambda: funded.holds("alice", status=text)),
        ]
    for where, question in questions:
        with pytest.raises(InvalidCommand) as refused:
            question()
        assert refused.value.where == where
        str(refused.value).encode()


@pytest.mark.parametrize("metadata", [{"a": "\0"}, {"a": "\ud800"}, {"a": 1.5}, {"\0": 1}, {"a": None}, 5], ids=ascii)
def test_questions_are_asked_with_metadata_that_can_be(funded: Ledger, metadata: Any) -> None:
    """What no command could have carried is refused in a question too."""
    for question in (funded.transactions, funded.accounts):
        with pytest.raises(InvalidCommand, match="metadata"):
            question(metadata=metadata)


@pytest.mark.parametrize("number", [1.5, True, "2", "x", None], ids=repr)
def test_questions_are_asked_with_whole_numbers(funded: Ledger, number: Any) -> None:
    """A limit or a version is an integer, and neither a fraction nor a truth."""
    for where, question in (
        ("limit", lambda: funded.history("alice", limit=number)),
        ("limit", lambda: funded.accounts(limit=number)),
        ("limit", lambda: funded.holds("alice", limit=number)),
        ("limit", lambda: funded.transactions(reference="x", limit=number)),
        ("after_version", lambda: funded.history("alice", after_version=number)),
        ("before_version", lambda: funded.history("alice", before_version=number)),
        ("version", lambda: funded.balance("alice", version=number)),
    ):
        if number is None and where in ("before_version", "version"):
            continue
        if number == "2" and where in ("after_version", "before_version"):
            continue  # That is the `next` of a page.
        with pytest.raises(InvalidCommand, match=f"^{where}: "):
            question()


@pytest.mark.parametrize("pool_size", [0, -1, 10_001, 2.5, True, "5", None], ids=repr)
def test_pool_that_is_none(pool_size: Any) -> None:
    """A pool has a connection at least, and an end."""
    with pytest.raises(InvalidCommand, match=r"^pool_size: .*from 1 to 10000"):
        Ledger.connect("postgresql://me@127.0.0.1:1/db", pool_size=pool_size)


@pytest.mark.parametrize("engine", ["postgresql://me@127.0.0.1:1/db", None], ids=repr)
def test_engine_that_is_none(engine: Any) -> None:
    """Who has a URL and no engine is told where to go with it."""
    with pytest.raises(InvalidCommand, match=r"^engine: .*Ledger\.connect"):
        Ledger(engine)


@pytest.mark.parametrize("schema", ["", "x" * 64, "é" * 32, "a\0b", "\ud800", None, 5], ids=ascii)
def test_schema_that_is_none(schema: Any) -> None:
    """A name that the server would cut, or could not store, is refused before anything is tried."""
    with pytest.raises(InvalidCommand, match=r"^schema: "):
        Ledger.connect("postgresql://me@127.0.0.1:1/db", schema=schema)
    Ledger.connect("postgresql://me@127.0.0.1:1/db", schema="x" * 63)


@pytest.mark.parametrize(
    "name", ["statement_seconds", "lock_seconds", "idle_seconds", "pool_seconds", "connect_seconds"]
)
@pytest.mark.parametrize("seconds", [-1, -0.001, float("inf"), float("nan"), 1e12, "5", None, True], ids=repr)
def test_timeout_that_is_none(name: str, seconds: Any) -> None:
    """A time to wait is a number of seconds, and has an end."""
    with pytest.raises(InvalidCommand, match=rf"^{name}: .*number of seconds"):
        Timeouts(**{name: seconds})


@pytest.mark.parametrize("name", ["statement_seconds", "lock_seconds", "idle_seconds"])
@pytest.mark.parametrize("seconds", [0, 0.0004])
def test_timeout_that_would_be_without_end(name: str, seconds: float) -> None:
    """The server takes nothing for "without end": what would be rounded to nothing is refused."""
    with pytest.raises(InvalidCommand, match=f"^{name}: "):
        Timeouts(**{name: seconds})
    Timeouts(**{name: 0.001})


def test_encoding_that_cannot_carry_every_text(funded: Ledger, ledger_url: str) -> None:
    """A ledger's own connections carry every text, whatever the URL says; an application's have to."""
    latin = make_url(ledger_url).set(drivername="postgresql+psycopg").update_query_dict({"client_encoding": "LATIN1"})
    with Ledger.connect(latin.render_as_string(hide_password=False)) as ledger:
        ledger.transfer("1 USD", debit="alice", credit="bob", reference="☃")
        assert len(ledger.transactions(reference="☃")) == 1
    with Ledger(create_engine(latin)) as ledger, pytest.raises(UnsupportedConnection, match=r"LATIN1.*UTF8"):
        ledger.transactions(reference="☃")
    assert funded.verify().ok


# Disk full


@pytest.fixture
def small_disk(ledger_server: URL) -> Iterator[str]:
    """The name of a tablespace on a file system of a few megabytes."""
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or unmount is None:
        pytest.skip("only root can mount a small file system")
    folder = Path("/tmp") / f"ledger-small-{os.getpid()}"  # noqa: S108  (the server's user must reach it)
    folder.mkdir()
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=24m,mode=0777", "tmpfs", str(folder)],
        capture_output=True,
        timeout=10,
        check=False,
    )
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip(f"no small file system here: {mounted.stderr.decode().strip()}")
    try:
        yield from _tablespace(ledger_server, folder)
    finally:
        subprocess.run([unmount, str(folder)], capture_output=True, timeout=10, check=True)
        folder.rmdir()


def _tablespace(server: URL, folder: Path) -> Iterator[str]:
    with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as psql:
        row = psql.execute("SELECT current_setting('data_directory')").fetchone()
        assert row is not None
        if not Path(row[0]).is_dir():
            pytest.skip("the server is on another machine")
        owner = Path(row[0]).stat()
        inside = folder / "data"
        inside.mkdir()
        os.chown(inside, owner.st_uid, owner.st_gid)
        psql.execute(f"CREATE TABLESPACE {folder.name.replace('-', '_')} LOCATION '{inside}'".encode())
        yield folder.name.replace("-", "_")
        psql.execute(f"DROP TABLESPACE {folder.name.replace('-', '_')}".encode())


def test_full_disk(funded: Ledger, psql: Psql, small_disk: str) -> None:
    """When the disk is full the batch is refused as a whole; with room again the ledger goes on, and is sound."""
    for table in ("transactions", "events"):
        psql.execute(f"ALTER TABLE {table} SET TABLESPACE {small_disk}".encode())
    batch = [build(Transfer, amount="0.01 USD", debit="world", credit="bob", reference="x" * 250)] * 5_000
    accepted: list[int] = []

    def fill() -> None:
        while len(accepted) < 20:
            accepted.append(sum(not isinstance(outcome, Rejected) for outcome in funded.handle(batch)))

    with pytest.raises(DatabaseUnavailable) as full:
        fill()
    assert full.value.sqlstate == "53100"
    assert "disk is full" in str(full.value)
    assert is_one_clear_line(full.value)
    assert psql.execute("SELECT count(*) FROM transactions").fetchone() == (5 + sum(accepted),)
    for table in ("transactions", "events"):
        psql.execute(f"ALTER TABLE {table} SET TABLESPACE pg_default".encode())
    funded.transfer("1 USD", debit="alice", credit="bob")
    assert funded.verify().ok
