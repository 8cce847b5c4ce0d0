"""
Connections and transactions: the pool, and a thin connection.

All SQL of the ledger goes through `Connection`, whose driver is always psycopg 3: on the ledger's own
pool, or on the one connection that an application lends to a guest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
import psycopg.conninfo
import psycopg.errors
import psycopg.postgres
import sqlalchemy
from psycopg.abc import PQGen
from psycopg.generators import send
from psycopg.pq import ExecStatus, Format, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types.string import TextLoader
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from ledger.core.errors import (
    ConnectionLost,
    InvalidCommand,
    UnsupportedConnection,
)
from ledger.storage.explained import in_our_words, lost
from ledger.storage.tables import DEFAULT_SCHEMA

Row: TypeAlias = tuple[Any, ...]
TextRow: TypeAlias = tuple[Any, ...]
"""A row of texts, and of None for NULL."""
Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any]
Statement: TypeAlias = tuple[str, Parameters]

ASK_MAX: Final = 3
"""How often a question is asked when its connection is lost."""


_SECONDS_MAX: Final = 2_000_000
"""The server counts milliseconds in 32 bits."""

_POOL_SIZE_MAX: Final = 10_000
"""More than any server has connections for."""

_SCHEMA_BYTES_MAX: Final = 63
"""Of a longer name the server forgets the end."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """
    Seconds to wait at most: for a statement, for a lock, for a pooled connection, to connect.

    And how long the database waits in a transaction for us: a process that stands still gives its locks up.
    """

    statement_seconds: float = 60.0
    lock_seconds: float = 10.0
    idle_seconds: float = 10.0
    pool_seconds: float = 30.0
    connect_seconds: float = 10.0

    def __post_init__(self) -> None:
        # What the server would round to nothing it would take for "without end".
        least = {"statement_seconds": 0.001, "lock_seconds": 0.001, "idle_seconds": 0.001}
        least |= {"pool_seconds": 0.0, "connect_seconds": 0.0}
        for name, seconds in least.items():
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int | float) or not seconds <= given <= _SECONDS_MAX:
                raise InvalidCommand(name, f"{given!r} is not a number of seconds from {seconds:g} to {_SECONDS_MAX}")


Answer = TypeVar("Answer")
AnyCursor = TypeVar("AnyCursor", "psycopg.Cursor[Row]", "psycopg.ServerCursor[Row]")


class Connection:
    """A psycopg connection that speaks to one schema."""

    def __init__(
        self,
        driver: psycopg.Connection[Any],
        schema: str,
        timeouts: Timeouts | None = None,
        *,
        own_session: bool = False,
    ) -> None:
        """
        `timeouts` are set in each transaction; without them the session's own hold.

        In an `own_session` everything is set up, and what is sent together needs no BEGIN and no COMMIT.
        """
        self.driver = driver
        self.own_session = own_session
        self.schema = schema
        self._schema = schema.replace("%", "%%")
        self._set = [] if timeouts is None else _set_local(timeouts)

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run one statement and fetch all of its rows."""
        return _rows(self._cursor().execute(self.sql(sql), parameters))

    def send(self, statements: Iterable[Statement]) -> list[list[Row]]:
        """
        Run statements in one round trip and return the rows of each.

        Each is sent as soon as it is made: the server works on one while the next is still being computed.
        Without a BEGIN among them they are one transaction.
        """
        if isinstance(statements, list) and len(statements) == 1:
            # The driver's pipeline costs as much again as the statement.
            return [self.query(*statements[0])]
        pending = iter(statements)
        first = next(pending, None)
        if first is None:
            return []
        cursors: list[psycopg.Cursor[Row]] = []
        failure: BaseException | None = None
        try:
            with _pipeline(self.driver):
                # Kept from the driver: it would log, as a warning, that what was sent after a failure failed too.
                try:
                    for sql, parameters in chain([first], pending):
                        cursors.append(self._cursor().execute(self.sql(sql), parameters))
                except BaseException as error:  # noqa: BLE001  (it is raised below)
                    failure = error
        except psycopg.Error as error:
            failure = failure or _cause_of(error)
        if failure is not None:
            raise failure
        return [_rows(cursor) for cursor in cursors]

    @contextmanager
    def stream(self, sql: str, parameters: Parameters, page_rows: int) -> Iterator[Iterator[Row]]:
        """Rows through a cursor of the server, within a transaction, so that neither side holds them all."""
        with psycopg.ServerCursor(self.driver, "ledger", row_factory=tuple_row) as cursor:
            cursor.itersize = page_rows
            cursor.execute(self.sql(sql), parameters, binary=True)
            yield cursor

    @contextmanager
    def text_stream(self, sql: str, parameters: Parameters) -> Iterator[Iterator[TextRow]]:
        """
        Rows as `texts`, of a statement that several workers of the server may share.

        There is no cursor of the server, which would keep them out; the connection does nothing else meanwhile.
        """
        cursor = self._text_cursor(psycopg.Cursor(self.driver, row_factory=tuple_row))
        rows = cursor.stream(self.sql(sql), parameters)
        assert isinstance(rows, Generator)
        # Closed by whoever leaves early: the driver then cancels the statement.
        with closing(rows):
            yield rows

    @contextmanager
    def texts(self, sql: str, parameters: Parameters, page_rows: int) -> Iterator[Iterator[TextRow]]:
        """
        Rows as `stream`, with each value as the text that the server makes of it, in UTC; for whole tables.

        Nothing is made of them on the way, which takes longer than anything else with a row that is only hashed.
        """
        self.query("SET LOCAL cursor_tuple_fraction = 1")
        server_cursor = psycopg.ServerCursor(self.driver, "ledger", row_factory=tuple_row)
        with self._text_cursor(server_cursor) as cursor:
            cursor.execute(self.sql(sql), parameters)
            # Page by page, and not row by row through the driver's own iterator.
            yield chain.from_iterable(iter(partial(cursor.fetchmany, page_rows), []))

    def _text_cursor(self, cursor: AnyCursor) -> AnyCursor:
        """Let a cursor leave all values as they come."""
        for setting in ("datestyle = 'ISO'", "timezone = 'UTC'", "bytea_output = 'hex'"):
            self.query(f"SET LOCAL {setting}")
        for kind in _TEXTS:
            cursor.adapters.register_loader(kind, TextLoader)
        return cursor

    def begin(self, mode: str = "READ COMMITTED") -> list[Statement]:
        """
        The statements that open a transaction, to be sent along with the first of it.

        Whatever the session's own isolation level: compare-and-set is right at every level, and only at this
        one does a statement that has waited for a lock see what the other left, instead of failing.
        """
        return [(f"BEGIN ISOLATION LEVEL {mode}", ()), *((setting, ()) for setting in self._set)]

    def rollback(self) -> None:
        """Roll back, if there is anything to roll back and anyone to tell."""
        if not self.driver.closed and self.driver.info.transaction_status is not TransactionStatus.IDLE:
            self.undo("ROLLBACK")

    def restored(self) -> bool:
        """
        Whether the connection is idle again, after a rollback if need be.

        One that broke inside a pipeline need not say that it is closed: it never becomes idle.
        """
        try:
            self.rollback()
        except psycopg.Error:
            return False
        info = self.driver.info
        return (
            not self.driver.closed
            and info.pipeline_status is PipelineStatus.OFF
            and info.transaction_status is TransactionStatus.IDLE
        )

    def undo(self, sql: str) -> None:
        """
        Run one or more statements that roll back.

        Past the driver, which would forget all of its prepared statements, and within a pipeline also the
        wrong ones: a rollback undoes no statement of ours.
        """
        result = self.driver.pgconn.exec_(sql.encode())
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise psycopg.errors.error_from_result(result)

    @contextmanager
    def transaction(
        self, *, read_only: bool = False, unbounded: bool = False, snapshot: str | None = None
    ) -> Iterator[None]:
        """
        A transaction of our own; in a read-only one all statements see the same snapshot.

        In an `unbounded` one a statement may take as long as the log is long.  `snapshot` is what another, which is
        still open, has exported: a read-only one sees exactly what that sees.
        """
        opening = self.begin("REPEATABLE READ, READ ONLY") if read_only else self.begin()
        if snapshot is not None:
            # Before any query, and first of all.
            quoted = snapshot.replace("'", "''")
            opening.insert(1, (f"SET TRANSACTION SNAPSHOT '{quoted}'", ()))
        if unbounded:
            opening.append(("SET LOCAL statement_timeout = 0", ()))
            if read_only:
                # Nobody waits for it, and whoever reads the answer may take their time.
                opening.append(("SET LOCAL idle_in_transaction_session_timeout = 0", ()))
        try:
            self.send(opening)
            yield
            self.query("COMMIT")
        except BaseException:
            self.rollback()
            raise

    def sql(self, text: str) -> str:
        """The statement with its schema filled in."""
        return text.replace("{schema}", self._schema)

    def _cursor(self) -> psycopg.Cursor[Row]:
        # A cursor of our own kind, whatever rows and cursors the caller's connection makes.  Binary results do not
        # depend on the session's DateStyle or bytea_output.
        cursor = psycopg.Cursor(self.driver, row_factory=tuple_row)
        cursor.format = Format.BINARY
        return cursor


_TEXTS: Final = (
    *("bytea", "int2", "int8", "json", "numeric", "text", "timestamptz", "uuid"),
    psycopg.postgres.types["text"].array_oid,
)


class _Pipeline(psycopg.Pipeline):
    """
    The driver's own, which ends with a Sync, and not with a Flush after it.

    The Sync starts the clock of idle_in_transaction_session_timeout, and whatever message comes next stops it: after a
    Flush the server would wait in the transaction for ever.
    """

    def _exit_gen(self) -> PQGen[None]:
        try:
            self._enqueue_sync()
            yield from self._communicate_gen()
            # What the socket had no room for: of what was not sent no answer comes.
            yield from send(self.pgconn)
        finally:
            yield from self._fetch_gen(flush=False)


@contextmanager
def _pipeline(driver: psycopg.Connection[Any]) -> Iterator[None]:
    # Where the driver finds one it uses that.
    driver._pipeline = _Pipeline(driver)  # noqa: SLF001
    with driver.pipeline():
        yield


def _rows(cursor: psycopg.Cursor[Any]) -> list[Row]:
    # Not `cursor.description`, which describes every column anew.
    return cursor.fetchall() if cursor.pgresult is not None and cursor.pgresult.nfields else []


def _cause_of(error: psycopg.Error) -> BaseException:
    """Why a pipeline was aborted, where the driver met that on its way to saying so."""
    while isinstance(error, psycopg.errors.PipelineAborted) and isinstance(error.__context__, psycopg.Error):
        error = error.__context__
    return error


class Database:
    """An SQLAlchemy engine, used for its pool, and the schema that the ledger lives in."""

    def __init__(
        self, engine: sqlalchemy.Engine, schema: str = DEFAULT_SCHEMA, timeouts: Timeouts | None = None
    ) -> None:
        if not isinstance(engine, sqlalchemy.Engine):
            raise InvalidCommand("engine", f"{type(engine).__name__} is not an SQLAlchemy engine; see Ledger.connect")
        if engine.dialect.name != "postgresql" or engine.dialect.driver != "psycopg":
            raise InvalidCommand(
                "database URL",
                f"the ledger needs PostgreSQL through psycopg 3 (postgresql+psycopg://…), not {engine.dialect.name}"
                f"+{engine.dialect.driver}",
            )
        _check_schema(schema)
        self.engine = engine
        self.schema = quoted_name(schema)
        self.schema_name = schema
        self._timeouts = timeouts
        self._process = os.getpid()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """
        Lend a pooled connection, outside of any transaction.

        Raises:
            LedgerError: Whatever the database says, in the ledger's own words.
        """
        if os.getpid() != self._process:
            # A forked child must not speak on its parent's sockets; its own pool starts empty.
            self.engine.dispose(close=False)
            self._process = os.getpid()
        with in_our_words(), closing(self.engine.raw_connection()) as pooled:
            driver = pooled.driver_connection
            assert isinstance(driver, psycopg.Connection)
            own_session = pooled.info.get(_PREPARED, False)
            if not own_session:
                check_encoding(driver)
            connection = Connection(
                driver, self.schema, None if own_session else self._timeouts, own_session=own_session
            )
            with _autocommit(driver):
                try:
                    yield connection
                except BaseException as error:
                    if connection.restored():
                        raise
                    pooled.invalidate()
                    # The rest of the pool went to the same server: what is idle there is as dead.
                    self.engine.dispose()
                    if isinstance(error, psycopg.Error):
                        raise lost(error) from error
                    raise

    def ask(self, question: Callable[[Connection], Answer]) -> Answer:
        """Ask something that changes nothing: over a connection that was lost it is asked again."""
        for _ in range(ASK_MAX - 1):
            try:
                with self.connection() as connection:
                    return question(connection)
            except ConnectionLost:
                continue
        with self.connection() as connection:
            return question(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Lend a pooled connection in a transaction that only reads, one snapshot, for as long as it takes."""
        with self.connection() as connection, connection.transaction(read_only=True, unbounded=True):
            yield connection

    def close(self) -> None:
        """Close the pool."""
        self.engine.dispose()


def address_of(connection: Connection) -> str:
    """
    How another process connects to the same server as the same user, whatever engine made this connection.

    It holds the password.
    """
    info = connection.driver.info
    own = info.get_parameters() | {"host": info.host, "port": str(info.port)}
    own.pop("hostaddr", None)
    return psycopg.conninfo.make_conninfo(**own, **({"password": info.password} if info.password else {}))


@contextmanager
def connected(address: str, schema: str) -> Iterator[Connection]:
    """
    A connection of its own, outside of any pool, to an address and a quoted schema.

    Raises:
        LedgerError: Whatever the database says, in the ledger's own words.
    """
    with in_our_words(), closing(psycopg.connect(address, autocommit=True, prepare_threshold=None)) as driver:
        check_encoding(driver)
        yield Connection(driver, schema)


def _check_schema(schema: str) -> None:
    """The name of a schema: storable, and kept whole."""
    try:
        size = len(schema.encode())
    except (AttributeError, UnicodeEncodeError):
        size = 0
    if not 1 <= size <= _SCHEMA_BYTES_MAX or "\0" in schema:
        raise InvalidCommand("schema", f"{schema!r:.80} is not a name of 1 to {_SCHEMA_BYTES_MAX} bytes")


@contextmanager
def _autocommit(driver: psycopg.Connection[Any]) -> Iterator[None]:
    """Begin no transaction behind our back; and leave the connection, which may be an application's, as it was."""
    if driver.autocommit:
        yield
        return
    driver.autocommit = True
    try:
        yield
    finally:
        if not driver.closed:
            driver.autocommit = False


def check_encoding(driver: psycopg.Connection[Any]) -> None:
    """
    Refuse a connection that cannot carry every text.

    Raises:
        UnsupportedConnection: Its client_encoding is not UTF8.
    """
    if not driver.closed and driver.info.encoding != "utf-8":
        encoding = driver.info.parameter_status("client_encoding")
        raise UnsupportedConnection(
            f"a connection whose client_encoding is {encoding}", "Connect with client_encoding=UTF8."
        )


def quoted_name(name: str) -> str:
    """A name as SQL writes it, whatever is in it."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def engine_for(url: str, timeouts: Timeouts, pool_size: int) -> sqlalchemy.Engine:
    """
    An engine for the server at `url`, whose connections suit the ledger.

    Raises:
        InvalidCommand: The URL is not one of PostgreSQL, or the pool would be empty or without end.
    """
    if type(pool_size) is not int or not 1 <= pool_size <= _POOL_SIZE_MAX:
        # SQLAlchemy takes nothing for "without end".
        raise InvalidCommand("pool_size", f"{pool_size!r} is not a number of connections from 1 to {_POOL_SIZE_MAX}")
    try:
        address = sqlalchemy.make_url(url)
        if address.drivername in ("postgres", "postgresql"):
            address = address.set(drivername="postgresql+psycopg")
        if address.drivername != "postgresql+psycopg":
            raise ValueError(f"{address.drivername} is not PostgreSQL through psycopg 3")
        engine = sqlalchemy.create_engine(
            address,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=timeouts.pool_seconds,
            connect_args={"connect_timeout": max(1, round(timeouts.connect_seconds)), "client_encoding": "utf8"},
        )
    except (ArgumentError, NoSuchModuleError, ValueError, ImportError) as error:
        raise InvalidCommand("database URL", f"{error}; write postgresql://user@host:5432/database") from None

    @sqlalchemy.event.listens_for(engine, "connect")
    def prepare(driver: psycopg.Connection[Any], record: ConnectionPoolEntry) -> None:
        record.info[_PREPARED] = _prepare_session(driver, timeouts)

    return engine


_PREPARED: Final = "ledger: timeouts are set in the session"


def _prepare_session(driver: psycopg.Connection[Any], timeouts: Timeouts) -> bool:
    """
    Set a new connection up, according to who is at its other end.

    A transaction pooler gives each transaction another server session: prepared statements and settings of
    a session would be somebody else's.  It shows by the process id that it announces, which is not the
    server's; then nothing is kept in the session, and the timeouts go with each transaction instead.

    Returns whether the timeouts were set.
    """
    direct = driver.execute("SELECT pg_backend_pid()").fetchone() == (driver.info.backend_pid,)
    if direct:
        driver.prepare_threshold = 0
        for setting in _set_local(timeouts):
            driver.execute(setting.replace("SET LOCAL", "SET"))
        # At higher levels a statement that has waited for a lock fails, instead of seeing what the other left.
        driver.execute("SET default_transaction_isolation = 'read committed'")
        # No plan of ours depends on the parameters, and planning a write costs more than carrying it out.
        driver.execute("SET plan_cache_mode = force_generic_plan")
        # A plan that is made while a table is small would be kept when it is not.
        driver.execute("SET enable_seqscan = off")
        # Where there is no other way than a whole table, its price would look like work worth compiling for.
        driver.execute("SET jit = off")
    else:
        driver.prepare_threshold = None
    if not driver.autocommit:
        driver.commit()
    return direct


def _set_local(timeouts: Timeouts) -> list[str]:
    return [
        f"SET LOCAL statement_timeout = {round(timeouts.statement_seconds * 1000)}",
        f"SET LOCAL lock_timeout = {round(timeouts.lock_seconds * 1000)}",
        f"SET LOCAL idle_in_transaction_session_timeout = {round(timeouts.idle_seconds * 1000)}",
    ]
