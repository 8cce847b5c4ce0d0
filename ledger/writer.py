"""
handle(commands): the only write path.

    resolve keys and load the book → decide in memory → lock, append, project → commit

One command is a batch of one.  The first attempt at a single command decides on an unlocked read and checks
it under the locks that the write takes; a batch, a guest, and every further attempt lock before they read.
What was read is never trusted to hold: an event is appended at its version, or the transaction fails and the
commands are decided again.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha1
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

import psycopg
import psycopg.errors

from ledger.core import chain
from ledger.core.book import Balance, Book, Terms
from ledger.core.commands import BATCH_MAX, Command, DefineAsset, OpenAccount, canonical_json
from ledger.core.decide import decide, recall
from ledger.core.errors import (
    AtomicBatchRejected,
    ConcurrencyError,
    ConnectionLost,
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidCommand,
    Rejected,
)
from ledger.core.events import (
    LEDGER_STREAM,
    AssetDefined,
    EntryPosted,
    Event,
    Recorded,
    Transaction,
)
from ledger.storage import projector, store
from ledger.storage.database import GUARD_CLASS, RETRYABLE, Connection, Database, Statement

ATTEMPTS_MAX: Final = 12
"""How often one call decides again, or reaches for a lost server, before it gives up."""

_BACKOFF_SECONDS: Final = 0.004
_BACKOFF_SECONDS_MAX: Final = 0.5
_PART_COMMANDS: Final = 200
"""Commands decided before their rows are sent: while the server inserts them, the next ones are decided."""

_CONFLICTS: Final = frozenset({projector.LOST, "23505"})
"""A compare-and-set that found another version; a row that somebody else inserted first."""

_MICROSECOND: Final = timedelta(microseconds=1)


class Done(NamedTuple):
    """
    What a command did.  A replayed one was done earlier: this is the original answer.

    `versions` and `balances` say where each stream and account stood right after the transaction.
    """

    transaction: Transaction
    events: Sequence[Recorded]
    terms: Sequence[Terms | None]
    replayed: bool = False
    dry_run: bool = False

    @property
    def transaction_id(self) -> UUID:
        """The id that `transaction()` and `reverse()` take."""
        return UUID(self.transaction.transaction_id)

    @property
    def versions(self) -> dict[str, int]:
        """Stream → its version right after."""
        return dict(zip(self.transaction.streams, self.transaction.versions, strict=True))

    @property
    def balances(self) -> dict[str, Balance]:
        """Account → its balance right after."""
        return {
            event.stream: Balance.from_numbers(event.stream, terms, event.numbers, event.version)
            for event, terms in zip(self.events, self.terms, strict=True)
            if terms is not None and event.numbers is not None
        }


Outcome: TypeAlias = Done | Rejected


class _Moved(Exception):
    """Somebody else wrote first, or a projection was mended: decide again."""


class _Drifted(Exception):
    """Projected rows that were not written by us."""

    def __init__(self, streams: Sequence[str]) -> None:
        super().__init__(streams)
        self.streams = streams


@dataclass(slots=True)
class _Batch:
    """Commands on their way, with the ids that their transactions have in every attempt."""

    commands: Sequence[Command]
    scope: str
    ids: Sequence[str]
    known_ids: Sequence[str]
    streams: Sequence[str]
    locks: Sequence[str]
    assets: Sequence[str]
    atomic: bool
    dry_run: bool
    in_doubt: bool = False
    """An earlier attempt may have committed before its connection broke: ids without a key are looked up too."""


@dataclass(slots=True)
class _Work:
    """A batch that has been read, and what becomes of it: the book moves on as its commands are decided."""

    book: Book
    now: datetime
    earlier: dict[str, Done]
    """By transaction id: what was done before this call, or by an earlier command of it."""

    loaded: dict[str, int]
    """The version of every stream that was read."""

    outcomes: list[Outcome] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """The transactions that are being written, in order."""

    begun: set[str] = field(default_factory=set)
    """The streams that are being written from their first version on."""

    closed: bool = False
    """Whether the end of the transaction went out with the writes."""

    @property
    def rejected(self) -> int | None:
        """The first command that was rejected."""
        found = (index for index, outcome in enumerate(self.outcomes) if isinstance(outcome, Rejected))
        return next(found, None)

    def suspects(self, batch: _Batch) -> set[str]:
        """
        Accounts whose projection has to be compared with the log before an answer is given.

        A row that is missing, or an old one that was put back, may be why a command was rejected; and one that
        was not found and is not written is not checked by any write.
        """
        suspects = {stream for stream in batch.locks if stream not in self.loaded}
        if not batch.dry_run:
            suspects -= self.begun
        for command, outcome in zip(batch.commands, self.outcomes, strict=True):
            if isinstance(outcome, Rejected) and not isinstance(outcome, IdempotencyConflict):
                suspects.update(command.accounts)
        return suspects


class _Part(NamedTuple):
    """Some of what a batch has become so far."""

    transactions: list[Transaction]
    events: list[Recorded]
    opened: list[str]
    defined: list[str]
    last: bool = False


class _Frame(NamedTuple):
    """What surrounds a write: a transaction of our own, or a savepoint in somebody else's."""

    opening: list[Statement]
    closing: list[Statement]
    undo: str


_UNFRAMED: Final = _Frame([], [], "")
"""Statements that go out together are a transaction by themselves, where the session is set up for it."""

_LOAD: Final = f"""
SELECT clock_timestamp() AT TIME ZONE 'UTC', ARRAY({store.KNOWN}), {", ".join(["NULL"] * projector.HEAD_COLUMNS_COUNT)}
UNION ALL
SELECT NULL, NULL, {projector.HEAD_COLUMNS} {projector.HEADS}
"""

_HELD_ALREADY: Final = projector.held([], {})

_WRITE: Final = f"WITH {projector.HELD}, {store.APPENDED}, {projector.MOVED} {projector.ALL_MOVED}"


class Writer:
    """Handles commands on one ledger's database, in transactions of its own."""

    def __init__(self, database: Database, ledger_id: Callable[[], str]) -> None:
        self._database = database
        self._ledger_id = ledger_id

    def handle(
        self, commands: Sequence[Command], *, scope: str = "", atomic: bool = False, dry_run: bool = False
    ) -> list[Outcome]:
        """
        Carry out commands, each once however often it arrives.

        Returns one outcome per command, in order.

        Raises:
            ConcurrencyError: The race was lost ATTEMPTS_MAX times.
            ConnectionLost: The server went away and did not come back: the outcome is unknown.
            CorruptLog, DatabaseUnavailable, InvalidCommand, SchemaMismatch: Nothing was written.
        """
        if not commands:
            return []
        batch = _prepare(commands, self._ledger_id(), scope, atomic, dry_run)
        locked = len(commands) > 1
        lost: ConnectionLost | None = None
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                _back_off(attempt)
            try:
                with self._database.connection() as connection:
                    return self._attempt(connection, batch, locked)
            except ConnectionLost as error:
                lost, batch.in_doubt = error, True
            except DatabaseUnavailable:
                if lost is None:
                    raise
            except _Moved:
                locked = True
        raise lost or ConcurrencyError(f"The race for these accounts was lost {ATTEMPTS_MAX} times. Try again.")

    def _attempt(self, connection: Connection, batch: _Batch, locked: bool) -> list[Outcome]:
        frame = _UNFRAMED
        if locked or not connection.own_session:
            frame = _Frame(connection.begin(), closing=[("COMMIT", ())], undo="ROLLBACK")
        opening = [*frame.opening, projector.lock(batch.locks)] if locked else []
        try:
            work = _load(connection, batch, opening, self._ledger_id())
            _write(connection, batch, work, frame, locked)
            return work.outcomes
        except _Drifted as drift:
            connection.rollback()
            self._rebuild(connection, drift.streams)
        except psycopg.Error as error:
            # Having waited too long for a lock is not among these: waiting again would not be bounded.
            if not _is_conflict(error) and error.sqlstate not in RETRYABLE:
                raise
            connection.rollback()
            # Without a lock this was a race.  Under the locks nobody else can have moved these streams, so
            # either a key was in flight, or the projection and the log disagree.
            if locked:
                self._rebuild(connection, projector.out_of_step(connection, batch.streams))
        raise _Moved

    def _rebuild(self, connection: Connection, streams: Sequence[str]) -> None:
        if streams:
            with connection.transaction():
                projector.rebuild(connection, streams, noticed_by="write")


def handle_as_guest(
    connection: Connection,
    commands: Sequence[Command],
    ledger_id: str,
    read_committed: bool,
    *,
    scope: str = "",
    atomic: bool = False,
    dry_run: bool = False,
) -> list[Outcome]:
    """
    Carry out commands inside the caller's transaction, which alone decides whether they last.

    A conflict is undone to a savepoint and decided again where the isolation level lets a statement see
    the winner; elsewhere, and after a deadlock, only the caller can run the whole transaction again.

    Raises:
        ConcurrencyError: The caller's whole transaction has to be run again.
    """
    if not commands:
        return []
    batch = _prepare(commands, ledger_id, scope, atomic, dry_run)
    release: list[Statement] = [("RELEASE SAVEPOINT ledger", ())]
    undo = "ROLLBACK TO SAVEPOINT ledger; RELEASE SAVEPOINT ledger"
    frame = _Frame([("SAVEPOINT ledger", ())], release, undo)
    for _ in range(ATTEMPTS_MAX):
        try:
            work = _load(connection, batch, [*frame.opening, projector.lock(batch.locks)], ledger_id)
            _write(connection, batch, work, frame, locked=True)
            return work.outcomes
        except _Drifted as drift:
            connection.undo(undo)
            projector.rebuild(connection, drift.streams, noticed_by="write")
        except psycopg.Error as error:
            if not _is_conflict(error):
                raise
            connection.undo(undo)
            if not read_committed:
                raise ConcurrencyError(
                    "Another transaction wrote to these accounts, and this one's isolation level cannot see it."
                    " Run the whole transaction again."
                ) from None
            if streams := projector.out_of_step(connection, batch.streams):
                projector.rebuild(connection, streams, noticed_by="write")
    raise ConcurrencyError(f"The race for these accounts was lost {ATTEMPTS_MAX} times. Try again.")


def keyed_id(ledger_id: str, scope: str, key: str) -> str:
    """
    The id of the transaction that an idempotency key stands for.

    UUIDv5 with the ledger's id as its namespace (RFC 9562, section 5.5), so that the primary key of
    transactions is the idempotency check.
    """
    namespace = bytes.fromhex(ledger_id.replace("-", ""))
    digest = bytearray(sha1(namespace + f"{scope}\0{key}".encode(), usedforsecurity=False).digest()[:16])
    return _uuid_text(digest, version=5)


def _fresh_id(milliseconds: int) -> str:
    """A UUIDv7 (RFC 9562, section 5.7): ids made later sort later, which keeps their index compact."""
    return _uuid_text(bytearray(milliseconds.to_bytes(6, "big") + os.urandom(10)), version=7)


def _uuid_text(octets: bytearray, version: int) -> str:
    octets[6] = octets[6] & 0x0F | version << 4
    octets[8] = octets[8] & 0x3F | 0x80
    digits = octets.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _prepare(commands: Sequence[Command], ledger_id: str, scope: str, atomic: bool, dry_run: bool) -> _Batch:
    if len(commands) > BATCH_MAX:
        raise InvalidCommand("commands", f"{len(commands)} at once; at most {BATCH_MAX} are taken")
    milliseconds = time.time_ns() // 1_000_000
    ids, known_ids, assets = [], [], set()
    streams: set[str] = set()
    for command in commands:
        streams.update(command.accounts)
        if command.idempotency_key is None:
            ids.append(_fresh_id(milliseconds))
        else:
            ids.append(keyed_id(ledger_id, scope, command.idempotency_key))
            known_ids.append(ids[-1])
        if isinstance(command, DefineAsset | OpenAccount):
            assets.add(command.asset)
    locks = sorted(streams)
    if assets:
        # Not locked: an account may need a currency defined, and hardly ever does.
        streams.add(LEDGER_STREAM)
    return _Batch(commands, scope, ids, known_ids, sorted(streams), locks, sorted(assets), atomic, dry_run)


def _load(connection: Connection, batch: _Batch, opening: list[Statement], ledger_id: str) -> _Work:
    """Read everything that the batch may be decided on, in one round trip, after `opening`."""
    known_ids = batch.ids if batch.in_doubt else batch.known_ids
    statements = [*opening, (_LOAD, (store.plain_array(known_ids), store.text_array(batch.streams)))]
    if batch.assets:
        statements.append(projector.scales(batch.assets))
    heads, *assets = connection.send(statements)[len(opening) :]
    now, known = heads[0][:2]
    book = Book(ledger_id)
    if drifted := projector.load(book, [row[2:] for row in heads[1:]]):
        raise _Drifted(drifted)
    book.assets.update(*assets)
    earlier = _recalled(connection, known) if known else {}
    loaded = {name: stream.version for name, stream in book.streams.items()}
    return _Work(book, store.in_utc(now), earlier, loaded)


def _recalled(connection: Connection, ids: Sequence[str]) -> dict[str, Done]:
    """The answers that were given when these transactions were made, by id."""
    book = Book("")
    transactions = store.recorded_transactions(connection, ids)
    streams = sorted({stream for transaction in transactions for stream in transaction.streams})
    projector.load(book, connection.query(*projector.touch(streams)))
    answers = {}
    for transaction, events in zip(transactions, store.events_of(connection, transactions), strict=True):
        terms = [book.stream(event.stream).terms for event in events]
        answers[transaction.transaction_id] = Done(transaction, events, terms)
    return answers


def _write(connection: Connection, batch: _Batch, work: _Work, frame: _Frame, locked: bool) -> None:
    """
    Decide, append, project and close the frame, in one round trip where nothing has to be looked at in between.

    Raises:
        psycopg.Error: The server refused; a stream that is no longer where it was read is LOST.
    """
    statements: Iterable[Statement] = _statements(batch, work, frame, locked)
    if frame is _UNFRAMED:
        statements = list(statements)
        if statements and not work.closed:
            # Once sent it lasts, and there is something to look at before.
            raise _Moved
    connection.send(statements)
    if work.closed:
        return
    suspects = work.suspects(batch)
    if suspects and (drifted := projector.out_of_step(connection, suspects)):
        raise _Drifted(drifted)
    failed = batch.atomic and work.rejected is not None
    if failed:
        _reject_together(work)
    if work.ids and not failed:
        connection.send(frame.closing)
    elif work.ids or locked:
        connection.undo(frame.undo)


def _statements(batch: _Batch, work: _Work, frame: _Frame, locked: bool) -> Iterator[Statement]:
    """What is to be sent, made while the server works on what was sent before.  Nothing, if nothing happens."""
    projected = dict(work.loaded)
    latest = work.now
    for part in _decide_all(batch, work):
        if batch.dry_run or not (part.transactions or work.ids):
            continue
        held: list[str] = _HELD_ALREADY
        if not locked and not work.ids:
            yield from frame.opening
            read = {stream: work.loaded[stream] for stream in batch.locks if stream in work.loaded}
            held = projector.held(batch.locks, read)
        before = {event.stream: projected.get(event.stream, 0) for event in part.events}
        if part.transactions:
            work.ids.extend([transaction.transaction_id for transaction in part.transactions])
            latest = part.transactions[-1].recorded_at
            work.begun.update([event.stream for event in part.events if event.version == 1])
        announced = work.ids if part.last else []
        appended = store.appended(part.transactions, part.events, announced, latest)
        yield _WRITE, [*held, *appended, *projector.moved(before, work.book)]
        yield from projector.project(before, work.book, part.opened, part.defined)
        projected.update({stream: work.book.streams[stream].version for stream in before})
    if work.ids and not work.suspects(batch) and not (batch.atomic and work.rejected is not None):
        work.closed = True
        yield from frame.closing


def _decide_all(batch: _Batch, work: _Work) -> Iterator[_Part]:
    """
    Decide each command on the book as the ones before it leave it.

    What happened comes in parts; the last one comes in any case, with nothing in it if need be.
    """
    part = _Part([], [], [], [])
    for command, transaction_id in zip(batch.commands, batch.ids, strict=True):
        if len(part.transactions) == _PART_COMMANDS:
            yield part
            part = _Part([], [], [], [])
        done = work.earlier.get(transaction_id)
        try:
            if done is not None:
                _check_same(command, done.transaction, batch.scope)
                replayed = done.transaction.idempotency_key is not None
                work.outcomes.append(done._replace(replayed=replayed))
                continue
            decided = decide(command, work.book)
        except Rejected as rejection:
            work.outcomes.append(rejection)
            continue
        done = _record(command, transaction_id, decided, work.book, batch, work.now)
        work.earlier[transaction_id] = done
        work.outcomes.append(done)
        part.transactions.append(done.transaction)
        part.events.extend(done.events)
        if type(command) is OpenAccount:
            part.opened.append(command.account)
            part.defined.extend([event.asset for event in decided if isinstance(event, AssetDefined)])
        elif type(command) is DefineAsset:
            part.defined.append(command.asset)
    yield part._replace(last=True)


def _check_same(command: Command, transaction: Transaction, scope: str) -> None:
    if transaction.idempotency_key != command.idempotency_key or transaction.scope != scope:
        raise IdempotencyConflict(str(command.idempotency_key), ["idempotency_key"])
    recall(command, transaction.request)


def _record(
    command: Command, transaction_id: str, events: Sequence[Event], book: Book, batch: _Batch, now: datetime
) -> Done:
    """Give the events their transaction, versions, time and hashes; the book moves on."""
    latest = now
    places = chain.place(events, book)
    for stream, _, _ in places:
        if stream.recorded_at >= latest:
            # A clock that stands still or steps back does not: time strictly grows within a stream.
            latest = stream.recorded_at + _MICROSECOND
    transaction = chain.sealed(
        transaction_id,
        command.type,
        batch.scope,
        command.idempotency_key,
        command.request(),
        sum([type(event) is EntryPosted for event in events]),
        tuple([stream.stream for stream, _, _ in places]),
        tuple([version for _, version, _ in places]),
        command.reference,
        command.effective_at or latest,
        latest,
        command.actor,
        command.correlation_id,
        command.causation_id,
        canonical_json(command.metadata) if command.metadata and command.describes_transaction else None,
    )
    recorded = chain.link(transaction, events, places, book.ledger_id)
    return Done(transaction, recorded, [stream.terms for stream, _, _ in places], dry_run=batch.dry_run)


def _reject_together(work: _Work) -> None:
    """All or nothing: one rejection takes the rest of the batch with it."""
    assert work.rejected is not None
    cause = AtomicBatchRejected(work.rejected, str(work.outcomes[work.rejected]))
    work.outcomes = [outcome if isinstance(outcome, Rejected) else cause for outcome in work.outcomes]


def _is_conflict(error: psycopg.Error) -> bool:
    """Whether an attempt failed because of what others wrote, and not of what the server is."""
    return error.sqlstate in _CONFLICTS or (error.sqlstate or "").startswith(GUARD_CLASS)


def _back_off(attempt: int) -> None:
    """Wait a little, and not as long as the others."""
    longest = min(_BACKOFF_SECONDS * 2**attempt, _BACKOFF_SECONDS_MAX)
    threading.Event().wait(random.uniform(0, longest))  # noqa: S311  (jitter is no secret)
