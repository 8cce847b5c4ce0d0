"""`Ledger`: the one public object, a façade over all above; and `Guest`, the same inside a caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, TypedDict, TypeVar, Unpack
from uuid import UUID

import psycopg
import sqlalchemy
import sqlalchemy.orm
from psycopg.pq import PipelineStatus, TransactionStatus

from ledger.audit.verify import Report, verify
from ledger.core.book import Balance
from ledger.core.commands import (
    AccountType,
    Command,
    DefineAsset,
    Deposit,
    Entry,
    OpenAccount,
    Post,
    Transfer,
    Withdraw,
    build,
)
from ledger.core.errors import ConcurrencyError, Rejected, UnsupportedConnection
from ledger.core.events import Recorded, Transaction
from ledger.core.money import Money
from ledger.storage import embedded, migrations, projector, queries
from ledger.storage.database import Connection, Database, Timeouts, engine_for, in_our_words
from ledger.storage.tables import DEFAULT_SCHEMA
from ledger.writer import Done, Outcome, Writer, handle_as_guest

Answer = TypeVar("Answer")


Lender: TypeAlias = psycopg.Connection[Any] | sqlalchemy.Connection | sqlalchemy.orm.Session
"""What a guest can work on."""

MENDED_MAX: Final = 100
"""Drifted accounts that one question mends on its way."""


class Context(TypedDict, total=False):
    """
    What every command may carry beside its request.

    The same `idempotency_key` with the same request returns the original result; with another request it
    is an IdempotencyConflict.  `expected_versions` maps accounts to the version they must be at.
    """

    idempotency_key: str | None
    reference: str | None
    effective_at: datetime | None
    metadata: Mapping[str, str | int | bool]
    actor: str | None
    correlation_id: str | None
    causation_id: str | None
    expected_versions: Mapping[str, int]


class _Operations:
    """The commands and queries that a ledger and its guests have in common."""

    def handle(
        self, commands: Sequence[Command], *, scope: str = "", atomic: bool = False, dry_run: bool = False
    ) -> list[Outcome]:
        """
        Carry out commands, at most 10,000, in one transaction; one outcome per command, in order.

        A rejection rejects its command alone, or all of them with `atomic`.  `dry_run` answers what would
        happen and writes nothing.  `scope` keeps the idempotency keys of different senders apart.
        """
        raise NotImplementedError

    def _mend(self, account: str) -> None:
        raise NotImplementedError

    # Commands

    def define_asset(self, asset: str, scale: int, **context: Unpack[Context]) -> Done:
        """Define something that can be counted, with its decimal places (0 to 18), once and for ever."""
        return self._one(build(DefineAsset, asset=asset, scale=scale, **context))

    def open_account(
        self,
        account: str,
        *,
        asset: str,
        type: AccountType | str,
        min_balance: Money | Decimal | int | str | None = None,
        max_balance: Money | Decimal | int | str | None = None,
        **context: Unpack[Context],
    ) -> Done:
        """
        Open an account of one asset.

        Limits are of the available balance in the normal direction, in whole units of the asset; None
        means unlimited.
        """
        limits = {"min_balance": min_balance, "max_balance": max_balance}
        return self._one(build(OpenAccount, account=account, asset=asset, account_type=type, **limits, **context))

    def post(self, entries: Sequence[Entry], **context: Unpack[Context]) -> Done:
        """Post a transaction of 2 to 200 entries that balances per asset."""
        return self._one(build(Post, entries=tuple(entries), **context))

    def transfer(self, amount: str | Money, *, debit: str, credit: str, **context: Unpack[Context]) -> Done:
        """Debit one account and credit another."""
        return self._one(build(Transfer, amount=amount, debit=debit, credit=credit, **context))

    def deposit(self, account: str, amount: str | Money, *, against: str, **context: Unpack[Context]) -> Done:
        """Raise an account in its normal direction."""
        return self._one(build(Deposit, account=account, amount=amount, against=against, **context))

    def withdraw(self, account: str, amount: str | Money, *, against: str, **context: Unpack[Context]) -> Done:
        """Lower an account in its normal direction."""
        return self._one(build(Withdraw, account=account, amount=amount, against=against, **context))

    def _one(self, command: Command) -> Done:
        (outcome,) = self.handle([command])
        if isinstance(outcome, Rejected):
            raise outcome
        return outcome

    # Queries

    def balance(self, account: str, *, version: int | None = None) -> Balance:
        """
        The balance of an account, now or right after one of its versions.

        A projection that was changed behind the ledger's back is rebuilt first.

        Raises:
            UnknownAccount: There is no such account.
        """
        return self._ask(lambda connection: queries.balance(connection, account, version))

    def history(
        self, account: str, *, after_version: int = 0, before_version: int | None = None, limit: int = 100
    ) -> list[Recorded]:
        """
        The events of an account: a page of at most `limit`.

        Forward from `after_version`, oldest first; or, with `before_version`, backward from there, newest
        first.  The last event's version leads to the next page.
        """
        return self._ask(lambda connection: queries.history(connection, account, after_version, before_version, limit))

    def transaction(self, transaction_id: UUID | str) -> queries.TransactionDetail:
        """A transaction with all its events."""
        return self._ask(lambda connection: queries.transaction(connection, str(transaction_id)))

    def transactions(
        self,
        *,
        reference: str | None = None,
        metadata: Mapping[str, str | int | bool] | None = None,
        after: UUID | str | None = None,
        limit: int = 100,
    ) -> list[Transaction]:
        """Transactions with this reference, or whose metadata contains these pairs, or both; in order of id."""
        last = None if after is None else str(after)
        return self._ask(lambda connection: queries.transactions(connection, reference, metadata, last, limit))

    def accounts(
        self,
        *,
        asset: str | None = None,
        metadata: Mapping[str, str | int | bool] | None = None,
        after: str = "",
        limit: int = 100,
    ) -> list[queries.AccountLine]:
        """Accounts in order of their id, with terms and balance: a page of at most `limit`."""
        return self._ask(lambda connection: queries.accounts(connection, asset, metadata, after, limit))

    def trial_balance(self) -> queries.TrialBalance:
        """Debits and credits of all accounts, by asset and type."""
        return self._ask(queries.trial_balance)

    def _ask(self, question: Callable[[Connection], Answer]) -> Answer:
        for _ in range(MENDED_MAX):
            try:
                return self._answer(question)
            except queries.Drift as drift:
                self._mend(drift.account)
        return self._answer(question)

    def _answer(self, question: Callable[[Connection], Answer]) -> Answer:
        raise NotImplementedError


class Ledger(_Operations):
    """
    An event-sourced, double-entry ledger on a PostgreSQL database.

    Safe to share between threads.  Close it, or use it as a context manager, to give its connections back.
    """

    def __init__(
        self, engine: sqlalchemy.Engine, *, schema: str = DEFAULT_SCHEMA, timeouts: Timeouts | None = None
    ) -> None:
        """
        Use the application's own engine, with its pool and its settings.

        `timeouts` are set in each transaction of the ledger; without them the engine's own hold.
        """
        self._database = Database(engine, schema, timeouts)
        self._id: str | None = None
        self._writer = Writer(self._database, self._ledger_id)

    @classmethod
    def connect(
        cls, url: str, *, schema: str = DEFAULT_SCHEMA, timeouts: Timeouts | None = None, pool_size: int = 10
    ) -> Self:
        """
        Use the PostgreSQL server at `url`: "postgresql://user:password@host:5432/database".

        Connects on first use.  Behind a pooler in transaction mode nothing is kept in a session.
        """
        timeouts = timeouts or Timeouts()
        return cls(engine_for(url, timeouts, pool_size), schema=schema, timeouts=timeouts)

    @classmethod
    def embedded(cls, folder: str | Path, *, schema: str = DEFAULT_SCHEMA, timeouts: Timeouts | None = None) -> Self:
        """Use a PostgreSQL of our own with its data in `folder`; it stops when its last user ends."""
        return cls.connect(embedded.start(Path(folder)), schema=schema, timeouts=timeouts)

    @property
    def engine(self) -> sqlalchemy.Engine:
        """The SQLAlchemy engine it works on."""
        return self._database.engine

    @property
    def schema(self) -> str:
        """The database schema that its tables live in."""
        return self._database.schema_name

    @property
    def ledger_id(self) -> UUID:
        """Who this ledger is; made at the first migration."""
        return UUID(self._ledger_id())

    def close(self) -> None:
        """Give all connections back."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def migrate(self) -> migrations.Migrated:
        """
        Bring the database to the schema that this release needs.

        Raises:
            SchemaMismatch: It is newer than this release.
        """
        return migrations.migrate(self._database)

    def create_roles(self, prefix: str = "ledger") -> tuple[str, str, str]:
        """Create the roles PREFIX_owner, PREFIX_app and PREFIX_audit with their grants; needs CREATEROLE."""
        return migrations.create_roles(self._database, prefix)

    def handle(
        self, commands: Sequence[Command], *, scope: str = "", atomic: bool = False, dry_run: bool = False
    ) -> list[Outcome]:
        return self._writer.handle(commands, scope=scope, atomic=atomic, dry_run=dry_run)

    def rebuild(
        self, *accounts: str, progress: Callable[[int], None] | None = None, noticed_by: str = "rebuild"
    ) -> list[str]:
        """
        Make the projections of these accounts, or of all, anew from the log, while writers go on.

        Returns the streams that differed; each repair is on record.  Can be interrupted and run again.
        `progress` is called with the number of streams done so far.

        Raises:
            UnknownAccount: The log has no such account.
            CorruptLog: The log of an account contradicts itself.
        """
        mended: list[str] = []
        done = 0
        with self._database.connection() as connection:
            pages: Iterable[list[str]] = [sorted(accounts)] if accounts else projector.all_streams(connection)
            for page in pages:
                with connection.transaction():
                    mended += projector.rebuild(connection, page, noticed_by)
                done += len(page)
                if progress is not None:
                    progress(done)
        for account in set(accounts) - set(mended):
            self.balance(account)
        return mended

    def verify(self, *accounts: str, progress: Callable[[int], None] | None = None) -> Report:
        """
        Re-derive everything, or these accounts, from the log and compare; changes nothing.

        Returns a report: `.ok`, `.checked`, `.findings`.  Memory stays flat.

        Raises:
            UnknownAccount: Neither the log nor a projection knows one of `accounts`.
        """
        ledger_id = self._ledger_id()
        with self._database.connection() as connection:
            return verify(connection, ledger_id, accounts, progress)

    @contextmanager
    def join(
        self,
        connection: Lender,
        *,
        accounts: Iterable[str] = (),
    ) -> Iterator[Guest]:
        """
        Work inside the caller's transaction, which alone decides whether anything lasts.

        Name all accounts that the transaction will touch: they are locked at once, in one order.  Two
        transactions that post several times to the same accounts in opposite orders deadlock otherwise.

        Raises:
            UnsupportedConnection: Not a psycopg 3 or SQLAlchemy connection in a transaction.
            ConcurrencyError: The caller's whole transaction has to be run again.
        """
        yield Guest(connection, self._database.schema, sorted(set(accounts)))

    def _ledger_id(self) -> str:
        if self._id is None:
            self._id = self._database.ask(queries.ledger_id)
        return self._id

    def _answer(self, question: Callable[[Connection], Answer]) -> Answer:
        return self._database.ask(question)

    def _mend(self, account: str) -> None:
        self.rebuild(account, noticed_by="read")


class Guest(_Operations):
    """The ledger inside a caller's transaction; made by `Ledger.join`."""

    def __init__(self, lender: Lender, schema: str, accounts: Sequence[str]) -> None:
        self._lender = lender
        self._schema = schema
        with self._connection() as connection:
            results = connection.send(
                [(queries.LEDGER_ID, ()), ("SHOW transaction_isolation", ()), projector.lock(accounts)]
            )
        self._id = str(results[0][0][0])
        self._read_committed = results[1][0][0] in ("read committed", "read uncommitted")

    def handle(
        self, commands: Sequence[Command], *, scope: str = "", atomic: bool = False, dry_run: bool = False
    ) -> list[Outcome]:
        with self._connection() as connection:
            return handle_as_guest(
                connection,
                commands,
                self._id,
                self._read_committed,
                scope=scope,
                atomic=atomic,
                dry_run=dry_run,
            )

    def _answer(self, question: Callable[[Connection], Answer]) -> Answer:
        with self._connection() as connection:
            return question(connection)

    def _mend(self, account: str) -> None:
        with self._connection() as connection:
            projector.rebuild(connection, [account], noticed_by="read")

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with in_our_words():
                yield _lent(self._lender, self._schema)
        except ConcurrencyError as error:
            if isinstance(error.__cause__, psycopg.errors.DeadlockDetected):
                raise ConcurrencyError(
                    "Deadlock: two transactions posted to the same accounts in opposite orders. Name all accounts"
                    " up front, ledger.join(connection, accounts=[…]), and run the whole transaction again."
                ) from error
            raise


def _lent(connection: object, schema: str) -> Connection:
    """
    The psycopg connection behind what the caller lent, in a transaction of the caller's.

    Asked for anew each time: a session begins its transaction, and each of its savepoints, only when it is used.
    """
    if isinstance(connection, sqlalchemy.orm.Session):
        connection = connection.connection()
    if isinstance(connection, sqlalchemy.Connection):
        driver = connection.connection.driver_connection
        if not isinstance(driver, psycopg.Connection):
            raise UnsupportedConnection(
                f"an SQLAlchemy connection through {connection.dialect.driver}",
                "Create the engine with postgresql+psycopg://.",
            )
        if not connection.in_transaction():
            # Through SQLAlchemy, which would otherwise not know that a transaction has begun, nor commit it.
            connection.exec_driver_sql("SELECT 1")
        connection = driver
    if not isinstance(connection, psycopg.Connection):
        raise UnsupportedConnection(_described(connection), _UNSUPPORTED_ADVICE)
    if connection.info.pipeline_status is not PipelineStatus.OFF:
        raise UnsupportedConnection("a connection in pipeline mode", "Leave the pipeline before you join.")
    if connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE:
        raise UnsupportedConnection(
            "an autocommit connection outside of a transaction",
            "Begin one first: with connection.transaction(): …",
        )
    return Connection(connection, schema)


def _described(connection: object) -> str:
    kind = type(connection)
    return f"{kind.__module__.partition('.')[0]}'s {kind.__qualname__}"


_UNSUPPORTED_ADVICE = (
    "Lend it a psycopg 3 connection or an SQLAlchemy connection or session; from asyncio, run the ledger in a"
    " thread; from Django, open a psycopg connection to the same database and post in its transaction."
)
