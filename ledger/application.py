"""`Ledger`: the one public object, a façade over all above; and `Guest`, the same inside a caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeAlias
from uuid import UUID

import psycopg
import sqlalchemy
import sqlalchemy.orm
from psycopg.pq import PipelineStatus, TransactionStatus
from sqlalchemy.exc import InvalidRequestError

from ledger.access import Access
from ledger.audit.diagnosis import Diagnosis
from ledger.audit.doctor import examine
from ledger.audit.report import Report
from ledger.audit.verify import verify
from ledger.auditing import Auditing
from ledger.batch import Done, Outcome
from ledger.batcher import Batcher
from ledger.core.commands import Command, ExpireHold
from ledger.core.errors import ConcurrencyError, InvalidCommand, UnsupportedConnection
from ledger.core.events import FeedEntry, account_of
from ledger.core.fields import INTEGER_MAX, TEXT, checked
from ledger.core.lifecycle import StateMachine
from ledger.health import Health
from ledger.inbox import Inbox
from ledger.lifecycle import shipped_machines
from ledger.operations import Answer, Operations
from ledger.order.cursor import Strict
from ledger.order.message import check_source
from ledger.overview import Overviews
from ledger.personal import PersonalData, SubjectKeys, TableKeys
from ledger.proof import Proofs
from ledger.receiving import Handler, Receiver, Retry, Unordered
from ledger.reconciliation import Reconciliations
from ledger.stamper import EVENTS_MAX, LEASE_SECONDS, Stamper
from ledger.storage import (
    embedded,
    feed,
    leases,
    migrations,
    offsets,
    projector,
    queries,
    repair,
    subject_keys,
    subscriptions,
    trail,
)
from ledger.storage.database import Connection, Database, Timeouts, check_encoding, engine_for
from ledger.storage.explained import in_our_words
from ledger.storage.leases import Lease
from ledger.storage.offsets import Offset, Place
from ledger.storage.parts import check_jobs
from ledger.storage.rebuild import rebuild_all, rebuild_some
from ledger.storage.subscriptions import Standing
from ledger.storage.tables import DEFAULT_SCHEMA
from ledger.stripes import Draw, Stripes
from ledger.subscription import Subscription, named
from ledger.writer import Writer, handle_as_guest

Lender: TypeAlias = psycopg.Connection[Any] | sqlalchemy.Connection | sqlalchemy.orm.Session
"""What a guest can work on."""

NAMED_CHARACTERS_MAX: Final = 1_000
"""Of the names of accounts that were rebuilt, as far as they are put on record with that."""

EXPIRED_TOGETHER: Final = 500
"""Holds expired in one transaction: how long writers to their accounts may wait."""


class Ledger(Operations, Proofs, Auditing, Reconciliations, Access, Overviews):
    """
    An event-sourced, double-entry ledger on a PostgreSQL database.

    Safe to share between threads.  Close it, or use it as a context manager, to give its connections back.
    """

    def __init__(
        self,
        engine: sqlalchemy.Engine,
        *,
        schema: str = DEFAULT_SCHEMA,
        timeouts: Timeouts | None = None,
        machines: Iterable[StateMachine] = (),
    ) -> None:
        """
        Use the application's own engine, with its pool and its settings.

        `timeouts` are set in each transaction of the ledger; without them the engine's own hold.  `machines`
        are the application's own, for `begin` and `advance`, beside those that come with the ledger.
        """
        self._database = Database(engine, schema, timeouts)
        self._id: str | None = None
        self._machines = {**shipped_machines(), **{machine.name: machine for machine in machines}}
        self._stripes = Stripes()
        self._writer = Writer(self._database, self._ledger_id, self._machines, self._stripes)

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        timeouts: Timeouts | None = None,
        pool_size: int = 10,
        machines: Iterable[StateMachine] = (),
    ) -> Self:
        """
        Use the PostgreSQL server at `url`: "postgresql://user:password@host:5432/database".

        Connects on first use.  Behind a pooler in transaction mode nothing is kept in a session.
        """
        timeouts = timeouts or Timeouts()
        return cls(engine_for(url, timeouts, pool_size), schema=schema, timeouts=timeouts, machines=machines)

    @classmethod
    def embedded(
        cls,
        folder: str | Path,
        *,
        schema: str = DEFAULT_SCHEMA,
        timeouts: Timeouts | None = None,
        pool_size: int = 10,
        machines: Iterable[StateMachine] = (),
    ) -> Self:
        """Use a PostgreSQL of our own with its data in `folder`; it stops when its last user ends."""
        url = embedded.start(Path(folder))
        return cls.connect(url, schema=schema, timeouts=timeouts, pool_size=pool_size, machines=machines)

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

    def migrate(self, *, partitions: int | None = None) -> migrations.Migrated:
        """
        Bring the database to the schema that this release needs.

        `partitions`, from 1 to 1,024, divides the log of a new ledger by its streams.

        Raises:
            SchemaMismatch: It is newer than this release.
            InvalidCommand: There is a log already, and it is not in so many partitions.
        """
        return migrations.migrate(self._database, partitions)

    def create_roles(self, prefix: str = "ledger") -> tuple[str, str, str]:
        """Create the roles PREFIX_owner, PREFIX_app and PREFIX_audit with their grants; needs CREATEROLE."""
        return migrations.create_roles(self._database, prefix)

    def handle(
        self, commands: Sequence[Command], *, scope: str = "", atomic: bool = False, dry_run: bool = False
    ) -> list[Outcome]:
        return self._writer.handle(commands, scope=scope, atomic=atomic, dry_run=dry_run)

    def batcher(
        self, *, max_batch: int = 1_000, max_wait: float = 0.0, max_queue: int = 10_000, lanes: int = 2
    ) -> Batcher:
        """
        Give many callers one transaction: group commit.

        `submit(command)` returns a future, from any thread.  Commands that arrive while a batch is on its way form the
        next one, of at most `max_batch`; a batch waits up to `max_wait` seconds for more.  At most `max_queue`
        commands wait; who submits another waits for room.  As many batches are on their way at once as there are
        `lanes`, never on accounts that their commands name in common.
        """
        return Batcher(self._writer, max_batch=max_batch, max_wait=max_wait, max_queue=max_queue, lanes=lanes)

    def expire_holds(self, *, progress: Callable[[int], None] | None = None) -> int:
        """
        Expire all holds whose time is over; returns how many.

        Nothing depends on when this runs, or whether two do at once: a hold whose time is over is expired first
        when one of its accounts is touched.  Can be interrupted and run again.  `progress` is called with the
        number of holds expired so far.
        """
        expired = 0
        last: queries.Due | None = None
        while due := self._database.ask(partial(queries.holds_due, after=last, limit=EXPIRED_TOGETHER)):
            outcomes = self.handle([ExpireHold(hold=hold) for _, hold in due])
            expired += sum(isinstance(outcome, Done) for outcome in outcomes)
            last = due[-1]
            if progress is not None:
                progress(expired)
        return expired

    def rebuild(
        self,
        *accounts: str,
        jobs: int = 1,
        after: str = "",
        progress: Callable[[int], None] | None = None,
        noticed_by: str = "rebuild",
        actor: str | None = None,
    ) -> list[str]:
        """
        Make the projections of these accounts or other streams, or of all, anew from the log, while writers go on.

        Returns the streams that differed; each repair is on record.  `progress` is called with the number of streams
        done so far.  All are done by as many `jobs` at once, each with a connection of the pool and one beside it; can
        be interrupted, and goes on behind the stream `after`.

        Raises:
            UnknownAccount: The log has no such account.
            CorruptLog: The log of an account contradicts itself; all others were rebuilt.
            Interrupted: By the user; its `after` is where to go on.
        """
        _check_selection(accounts, jobs, after)
        if noticed_by != "read":  # Who only reads mends what they meet, and has asked for nothing.
            named = trail.note("rebuild", actor, " ".join(accounts)[:NAMED_CHARACTERS_MAX], {"noticed_by": noticed_by})
            with self._database.connection() as connection:
                connection.query(*named)
        if not accounts:
            return rebuild_all(self._database, noticed_by, jobs, after, progress)
        with self._database.connection() as connection:
            streams = repair.with_stripes(connection, accounts)
        mended = rebuild_some(self._database, streams, noticed_by, progress)
        for account in set(map(account_of, accounts)) - set(map(account_of, mended)):
            self.history(account, limit=1)
        return mended

    def verify(
        self, *accounts: str, jobs: int = 1, after: str = "", progress: Callable[[int], None] | None = None
    ) -> Report:
        """
        Re-derive everything, or these accounts, from the log and compare; changes nothing.

        Returns a report: `.ok`, `.checked`, `.findings`.  Memory stays flat.  `progress` is called with the number of
        events checked so far.

        Everything is verified by as many `jobs` at once, which are processes of Python: a program that asks for more
        than one begins with `if __name__ == "__main__":`.  They connect as the ledger's own connections do, whatever
        engine made these, and see one snapshot.  The report is the same for any number of them.

        Behind the stream `after` an interrupted verification goes on: streams up to there, and the sums over all
        accounts, are left out.

        Raises:
            UnknownAccount: Neither the log nor a projection knows one of `accounts`.
            Interrupted: By the user; its `after` is where to go on.
        """
        _check_selection(accounts, jobs, after)
        ledger_id = self._ledger_id()
        with self._database.connection() as connection:
            report = verify(connection, ledger_id, accounts, progress, jobs, after)
            if not accounts:
                report.shredded = subject_keys.shredded(connection)
            return report

    def doctor(self, *, role_prefix: str | None = None, known_roles: Collection[str] = ()) -> Diagnosis:
        """
        Compare the schema with what this release migrates to, and look at roles, grants, server and settings.

        Returns `.ok`, `.checked`, `.findings`, and `.warnings`, which do not count.  Only the catalogue is asked: an
        auditor may, and a standby answers.  Roles of `create_roles` are looked for; with `role_prefix` they must be
        there.  `known_roles` are others that you have granted something yourself.
        """
        return self._database.ask(partial(examine, role_prefix=role_prefix, known_roles=known_roles))

    def personal_data(self, keys: SubjectKeys | None = None) -> PersonalData:
        """Encrypt, reveal and forget what is about a person, with keys in the ledger's own table, or in `keys`."""
        return PersonalData(TableKeys(self._database) if keys is None else keys)

    def health(self) -> Health:
        """How the ledger fares: what its writer counted, its gauges, and whether it can do its work."""
        return Health(self._database, self._writer.counters)

    def inbox(
        self,
        source: str,
        policy: Strict | Unordered,
        *,
        unordered: Collection[str] = (),
        retry: Retry | None = None,
        handlers: Mapping[str, Handler] | None = None,
        keep: timedelta | None = None,
    ) -> Inbox:
        """
        Give the inbox of one source of messages: they take effect once and in order.

        Without `handlers` a message of a type of your own is left, in its place, to a process that has them.

        `unordered` are types of messages that have no turn, whatever the policy: their producer does not count them.
        `keep` says for how long the contents of messages that took effect are kept, for `replay`: for ever unless it
        is said; with nothing they are not even written; else until `Inbox.forget` is called.
        """
        if isinstance(unordered, str):
            raise InvalidCommand("unordered", f"name the types in a list: [{unordered!r}]")
        check_source(source)
        kept = keep is None or keep > timedelta(0)
        retries, machines, stripes = retry or Retry(), self._machines, self._stripes
        receiver = Receiver(source, policy, frozenset(unordered), retries, handlers, machines, stripes, kept)
        return Inbox(receiver, keep, self._database, self._ledger_id)

    def consumer_offsets(self, group: str) -> list[Offset]:
        """Where a consumer group stands in each partition that it has read, in order."""
        return self._database.ask(partial(offsets.offsets, group=group))

    def seek_consumer(self, group: str, topic: str, partition: int, offset: int, *, actor: str) -> None:
        """
        Let a consumer group go on in a partition from an offset that a person has chosen.

        Going back is safe: the inbox drops what it has seen.  Whoever reads the partition now goes on from there.

        Raises:
            InvalidCommand: The group has never read that partition, or there is no such offset.
        """
        place = Place(topic, partition)
        if not 0 <= offset <= INTEGER_MAX:
            raise InvalidCommand("offset", f"{offset} is not from 0 to {INTEGER_MAX}")
        owner = checked(TEXT, "actor", actor)
        with self._database.connection() as connection, connection.transaction():
            if not offsets.seek(connection, group, place, offset, owner):
                raise InvalidCommand("partition", f"group {group!r} has never read {place}")
            connection.query(*trail.note("seek_consumer", owner, f"{group} {place}", {"offset": offset}))

    def feed(self, *, after: int = 0, limit: int | None = None) -> Iterator[FeedEntry]:
        """
        Everything that was stamped after a position, in order, until there is no more, or `limit` entries.

        Read in pages, so that memory stays flat.  The positions begin at 1 and have no gap; the one of the last entry
        is where to go on.

        Raises:
            CorruptLog: The feed has a gap, or names what the log does not have.
        """
        if type(after) is not int or not 0 <= after <= INTEGER_MAX:
            raise InvalidCommand("after", f"{after!r} is not a position from 0 to {INTEGER_MAX}")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise InvalidCommand("limit", f"{limit!r} is not a number of entries from 1")
        return self._entries(after, limit)

    def _entries(self, after: int, limit: int | None) -> Iterator[FeedEntry]:
        left = limit
        while left is None or left > 0:
            size = feed.PAGE_MAX if left is None else min(left, feed.PAGE_MAX)
            # No connection is kept between two pages: whoever reads them may take their time.
            entries = self._database.ask(partial(feed.page, after=after, limit=size))
            if not entries:
                return
            yield from entries
            after = entries[-1].position
            left = None if left is None else left - len(entries)

    def feed_head(self) -> int:
        """The last position of the feed; 0 where nothing was stamped yet."""
        return self._database.ask(feed.head)

    def stamp(self, limit: int = EVENTS_MAX) -> int:
        """
        Move what waits into the feed, at most `limit` events unless one transaction has more; returns how many.

        None, while a stamper of somebody else's is at it.

        Raises:
            CorruptLog: What waits contradicts the log or the feed; nothing was stamped.
        """
        stamper = Stamper(self._database, limit=limit, clock_seconds=0)
        try:
            return stamper.step()
        finally:
            stamper.close()

    def stamper(
        self,
        *,
        limit: int = EVENTS_MAX,
        lease_seconds: float = LEASE_SECONDS,
        on_problem: Callable[[str], None] | None = None,
    ) -> Stamper:
        """
        Stamp in a thread of its own while it is entered: `with ledger.stamper(): …`.

        Any number of processes may do so; one stamps, and another takes over when that one is closed, or was not heard
        of for `lease_seconds`.  Problems are logged, or told to `on_problem`, and what failed is tried again.
        """
        return Stamper(self._database, limit=limit, lease_seconds=lease_seconds, on_problem=on_problem)

    def stamping(self) -> Lease | None:
        """Who stamps the feed, or did so last."""
        return self._database.ask(partial(leases.lease, name=feed.STAMPER))

    def subscription(self, name: str, *, start: int = 0, owner: str = "application") -> Subscription:
        """
        Give a consumer of the feed its name: what it has taken is known by it, and kept in its own transactions.

        One that is new begins after the position `start`: at the beginning, unless it is said.
        """
        return Subscription(name, start, owner, partial(_lent, schema=self._database.schema))

    def subscriptions(self, *, after: str = "", limit: int = 100) -> list[Standing]:
        """How far the consumers of the feed are, in order of their names: a page of at most `limit`."""
        checked(TEXT, "after", after)
        if type(limit) is not int or not 1 <= limit <= queries.PAGE_MAX:
            raise InvalidCommand("limit", f"a page has 1 to {queries.PAGE_MAX} rows, not {limit!r}")
        return self._database.ask(partial(subscriptions.subscriptions, after=after, limit=limit))

    def seek_subscription(self, name: str, position: int, *, actor: str) -> None:
        """
        Let a consumer of the feed go on after a position that a person has chosen; on record who did.

        Raises:
            InvalidCommand: Nothing was stamped there yet, or a name is empty.
        """
        name, owner = named("name", name), named("actor", actor)
        head = self.feed_head()
        if type(position) is not int or not 0 <= position <= head:
            raise InvalidCommand("position", f"{position!r} is not from 0 to {head}, the last one of the feed")
        with self._database.connection() as connection, connection.transaction():
            subscriptions.seek(connection, name, position, owner)
            connection.query(*trail.note("seek_subscription", owner, name, {"position": position}))

    @contextmanager
    def join(self, connection: Lender, *, accounts: Iterable[str] = ()) -> Iterator[Guest]:
        """
        Work inside the caller's transaction, which alone decides whether anything lasts.

        Name all accounts that the transaction will touch: they are locked at once, in one order.  Two
        transactions that post several times to the same accounts in opposite orders deadlock otherwise.

        Raises:
            UnsupportedConnection: Not a psycopg 3 or SQLAlchemy connection in a transaction.
            ConcurrencyError: The caller's whole transaction has to be run again.
        """
        if isinstance(accounts, str):
            raise InvalidCommand("accounts", f"name them in a list: [{accounts!r}]")
        names = sorted({checked(TEXT, "accounts", account) for account in accounts})
        yield Guest(connection, self._database.schema, names, self._machines, Draw(self._stripes))

    def _ledger_id(self) -> str:
        if self._id is None:
            self._id = self._database.ask(queries.ledger_id)
        return self._id

    def _answer(self, question: Callable[[Connection], Answer]) -> Answer:
        return self._database.ask(question)

    def _lend(self) -> AbstractContextManager[Connection]:
        return self._database.reading()

    def _mend(self, streams: Sequence[str]) -> None:
        self.rebuild(*streams, noticed_by="read")


class Guest(Operations):
    """The ledger inside a caller's transaction; made by `Ledger.join`."""

    def __init__(
        self, lender: Lender, schema: str, accounts: Sequence[str], machines: Mapping[str, StateMachine], draw: Draw
    ) -> None:
        self._lender = lender
        self._schema = schema
        self._machines = machines
        self._draw = draw
        draw.choose({*accounts})
        locks = projector.lock(sorted(draw.streams(accounts)))
        with self._connection() as connection:
            results = connection.send([(queries.LEDGER_ID, ()), ("SHOW transaction_isolation", ()), locks])
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
                self._machines,
                self._draw,
                scope=scope,
                atomic=atomic,
                dry_run=dry_run,
            )

    def _answer(self, question: Callable[[Connection], Answer]) -> Answer:
        with self._connection() as connection:
            return question(connection)

    def _lend(self) -> AbstractContextManager[Connection]:
        return self._connection()

    def _mend(self, streams: Sequence[str]) -> None:
        with self._connection() as connection:
            repair.rebuild(connection, streams, noticed_by="read")

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


def _check_selection(accounts: Sequence[str], jobs: int, after: str) -> None:
    check_jobs(jobs)
    for account in accounts:
        checked(TEXT, "account", account)
    if after:
        checked(TEXT, "after", after)
        if accounts:
            raise InvalidCommand("after", "it goes with all streams, not with accounts that are named")


def _lent(connection: object, schema: str) -> Connection:
    """
    The psycopg connection behind what the caller lent, in a transaction of the caller's.

    Asked for anew each time: a session begins its transaction, and each of its savepoints, only when it is used.
    """
    advice = "Begin one first: with connection.transaction(): …"
    if isinstance(connection, sqlalchemy.orm.Session | sqlalchemy.Connection):
        connection = _driver_of(connection)
        advice = "Begin one, at another isolation level than AUTOCOMMIT: with engine.begin() as connection: …"
    if not isinstance(connection, psycopg.Connection):
        raise UnsupportedConnection(_described(connection), _UNSUPPORTED_ADVICE)
    if connection.closed and not connection.broken:
        raise UnsupportedConnection("a closed connection", "Lend one that is open.")
    if connection.info.pipeline_status is not PipelineStatus.OFF:
        raise UnsupportedConnection("a connection in pipeline mode", "Leave the pipeline before you join.")
    if connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE:
        raise UnsupportedConnection("an autocommit connection outside of a transaction", advice)
    check_encoding(connection)
    return Connection(connection, schema)


def _driver_of(lender: sqlalchemy.orm.Session | sqlalchemy.Connection) -> object:
    """What SQLAlchemy speaks through, in a transaction that SQLAlchemy knows of."""
    try:
        connection = lender.connection() if isinstance(lender, sqlalchemy.orm.Session) else lender
        driver = connection.connection.driver_connection
        if isinstance(driver, psycopg.Connection) and not connection.in_transaction():
            # Through SQLAlchemy, which would otherwise not know that a transaction has begun, nor commit it.
            connection.exec_driver_sql("SELECT 1")
    except InvalidRequestError as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise UnsupportedConnection(f"what SQLAlchemy itself refuses ({said})", "Lend one that is open.") from error
    if not isinstance(driver, psycopg.Connection):
        raise UnsupportedConnection(
            f"an SQLAlchemy connection through {connection.dialect.driver}",
            "Create the engine with postgresql+psycopg://.",
        )
    return driver


def _described(connection: object) -> str:
    kind = type(connection)
    return f"{kind.__module__.partition('.')[0]}'s {kind.__qualname__}"


_UNSUPPORTED_ADVICE = (
    "Lend it a psycopg 3 connection or an SQLAlchemy connection or session; from asyncio, run the ledger in a"
    " thread; from Django, open a psycopg connection to the same database and post in its transaction."
)
