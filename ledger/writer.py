"""
handle(commands): the only write path.

    resolve keys and load the book → decide in memory → lock, append, project → commit

One command is a batch of one.  The first attempt at a single command decides on an unlocked read and checks
it under the locks that the write takes; a batch, a guest, and every further attempt lock before they read.
What was read is never trusted to hold: an event is appended at its version, or the transaction fails and the
commands are decided again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import psycopg
import psycopg.errors
from pydantic import TypeAdapter

from ledger.batch import (
    Batch,
    Done,
    Drifted,
    Due,
    Outcome,
    Overtaken,
    Spread,
    Work,
    id_of,
    load,
    prepare,
    take_up,
)
from ledger.core import chain
from ledger.core.book import Book, remember
from ledger.core.canonical import canonical_json
from ledger.core.commands import (
    COMMAND_TYPES,
    Command,
    Reverse,
)
from ledger.core.decide import Occasion, decide, recall
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
    EntryPosted,
    Event,
    Movement,
    Recorded,
    Transaction,
)
from ledger.core.fields import Scope, checked
from ledger.core.lifecycle import StateMachine
from ledger.counters import Counters
from ledger.storage import projector, repair, store, trail
from ledger.storage.database import Connection, Database, Statement
from ledger.storage.explained import GUARD_CLASS, RETRYABLE
from ledger.storage.trail import Replayed
from ledger.stripes import Draw, Stripes

ATTEMPTS_MAX: Final = 12
"""How often one call decides again, or reaches for a lost server, before it gives up."""

_LOST: Final = f"The race for these accounts was lost {ATTEMPTS_MAX} times. Try again."
_STILL_DUE: Final = (
    f"More than {(ATTEMPTS_MAX - 1) * projector.DUE_MAX:,} holds on these accounts are over and not yet expired."
    " Run `ledger expire-holds`, and try again."
)

_BACKOFF_SECONDS: Final = 0.004
_BACKOFF_SECONDS_MAX: Final = 0.5
_PARTS: Final = 8
_PART_COMMANDS: Final = (50, 200)
"""
Commands, at least and at most, that are decided before their rows are sent: the server inserts some of a batch while
the next ones are decided.  Smaller parts overlap better; each costs the server a quarter of a millisecond of its own.
"""

SCOPE: Final = TypeAdapter(Scope)

_MAY_NOT_WRITE: Final = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)

_CONFLICTS: Final = frozenset({projector.LOST, "23505"})
"""A compare-and-set that found another version; a row that somebody else inserted first."""

_MICROSECOND: Final = timedelta(microseconds=1)


class _Moved(Exception):
    """Somebody else wrote first: decide again."""


class _OutOfStep(Exception):
    """Projections are not what we wrote: decide again, and mend them under the locks first."""


class _Part(NamedTuple):
    """Some of what a batch has become so far."""

    transactions: list[Transaction]
    events: list[Recorded]
    facts: list[Event]
    """What is no posting, and changes more than the numbers of an account."""

    last: bool = False


class _Frame(NamedTuple):
    """What surrounds a write: a transaction of our own, or a savepoint in somebody else's."""

    opening: list[Statement]
    closing: list[Statement]
    undo: str


_UNFRAMED: Final = _Frame([], [], "")
"""Statements that go out together are a transaction by themselves, where the session is set up for it."""

_HELD_ALREADY: Final = projector.held([], {})

_WRITE: Final = f"WITH {projector.HELD}, {store.APPENDED}, {projector.MOVED} {projector.ALL_MOVED}"


class Writer:
    """Handles commands on one ledger's database, in transactions of its own."""

    def __init__(
        self,
        database: Database,
        ledger_id: Callable[[], str],
        machines: Mapping[str, StateMachine],
        stripes: Stripes,
    ) -> None:
        self._database = database
        self._ledger_id = ledger_id
        self._machines = machines
        self._stripes = stripes
        self.counters = Counters()

    def handle(
        self, commands: Sequence[Command], *, scope: str = "", atomic: bool = False, dry_run: bool = False
    ) -> list[Outcome]:
        """
        Carry out commands, each once however often it arrives.

        Returns one outcome per command, in order.

        Raises:
            ConcurrencyError: The race was lost ATTEMPTS_MAX times, or too many holds are due.
            ConnectionLost: The server went away and did not come back: the outcome is unknown.
            CorruptLog, DatabaseUnavailable, InvalidCommand, SchemaMismatch: Nothing was written.
        """
        check(commands, scope)
        if not commands:
            return []
        batch = Batch(self._machines, Draw(self._stripes), atomic, dry_run)
        return self.carry_out(prepare(commands, scope, self._ledger_id(), batch))

    def prepared(self, asked: Iterable[tuple[Command, str, str | None]]) -> Batch:
        """A batch of commands of different scopes, with ids for those that have none yet."""
        batch, ledger_id = Batch(self._machines, Draw(self._stripes)), self._ledger_id()
        for command, scope, transaction_id in asked:
            batch.add(command, transaction_id or id_of(command, scope, ledger_id), scope)
        return batch

    def carry_out(self, batch: Batch) -> list[Outcome]:
        """Carry out a batch that has been prepared; answers and raises as `handle` does."""
        begun = time.monotonic()
        try:
            outcomes = self._carry_out(batch)
        except Exception:
            self.counters.failed()
            raise
        if not batch.dry_run:
            self.counters.carried_out(outcomes, time.monotonic() - begun)
        return outcomes

    def _carry_out(self, batch: Batch) -> list[Outcome]:
        batch.draw.choose(batch.accounts)
        locked = not batch.plain
        lost: ConnectionLost | None = None
        problem, waits = _LOST, False
        for attempt in range(ATTEMPTS_MAX):
            self.counters.attempt(attempt)
            if waits:
                _back_off(attempt)
            waits = True
            try:
                with self._database.connection() as connection:
                    outcomes = self._attempt(connection, batch, locked)
                    _note(connection, _replayed(batch, outcomes))
                    return outcomes
            except ConnectionLost as error:
                self.counters.connection_lost()
                lost, batch.in_doubt = error, True
            except (ConcurrencyError, DatabaseUnavailable) as error:
                # What holds a lock for so long may be what became of the attempt before.
                if lost is None or isinstance(error, ConcurrencyError):
                    raise lost or error from error.__cause__
            except Due as due:
                if batch.dry_run:
                    batch.expire_first(due.holds)
                else:
                    # For good, whatever becomes of the commands: one that is refused must not bring them back.
                    self.carry_out(batch.expiry(due.holds, self._ledger_id(), Draw(self._stripes)))
                locked, problem = True, _STILL_DUE
            except _OutOfStep:
                locked, problem, waits = True, _LOST, False
            except (Overtaken, Spread, _Moved):
                self.counters.conflict()
                locked, problem = True, _LOST
        raise lost or ConcurrencyError(problem)

    def _attempt(self, connection: Connection, batch: Batch, locked: bool) -> list[Outcome]:
        take_up(connection, batch)
        frame = _UNFRAMED
        if locked or not connection.own_session:
            frame = _Frame(connection.begin(), closing=[("COMMIT", ())], undo="ROLLBACK")
        opening = [*frame.opening, *_patience(batch), projector.lock(batch.locks)] if locked else []
        if batch.closing:
            # Its trial balance takes as long as the log is long.
            opening.append(("SET LOCAL statement_timeout = 0", ()))
        try:
            if batch.drifted:
                frame, opening = self._mend(connection, batch, opening, frame), []
            work = load(connection, batch, opening, self._ledger_id())
            _write(connection, batch, work, frame, locked)
            return work.outcomes[batch.expiries :]
        except (Due, Overtaken, Spread):
            connection.rollback()
            raise
        except Drifted as drift:
            connection.rollback()
            batch.drifted.update(drift.streams)
            raise _OutOfStep from None
        except psycopg.Error as error:
            # Having waited too long for a lock is not among these: waiting again would not be bounded.
            if not _is_conflict(error) and error.sqlstate not in RETRYABLE:
                raise
            connection.rollback()
            # Without a lock this was a race.  Under the locks nobody else can have moved these streams, so
            # either a key was in flight, or the projection and the log disagree.
            if locked and (streams := _out_of_step(connection, batch, error)):
                batch.drifted.update(streams)
                raise _OutOfStep from None
        raise _Moved

    def _mend(self, connection: Connection, batch: Batch, opening: list[Statement], frame: _Frame) -> _Frame:
        """
        Mend projections under the locks that the batch is decided under: nobody can spoil them once more in between.

        What is mended lasts whatever becomes of the commands, but for a dry run, of which nothing does.
        """
        connection.send(opening)
        noticed_by = "dry run" if batch.dry_run else "write"
        mended = repair.rebuild(connection, sorted(batch.drifted), noticed_by=noticed_by)
        if batch.dry_run:
            return frame
        connection.query("SAVEPOINT mended")
        self.counters.rebuilt(len(mended))
        return frame._replace(undo="ROLLBACK TO SAVEPOINT mended; COMMIT")


def _patience(batch: Batch) -> list[Statement]:
    """For how long it waits for a lock; the server would take nothing for "without end"."""
    if batch.lock_seconds is None:
        return []
    milliseconds = max(1, round(batch.lock_seconds * 1000))
    return [("SELECT set_config('lock_timeout', %s, true)", (str(milliseconds),))]


def handle_as_guest(
    connection: Connection,
    commands: Sequence[Command],
    ledger_id: str,
    read_committed: bool,
    machines: Mapping[str, StateMachine],
    draw: Draw,
    *,
    scope: str = "",
    atomic: bool = False,
    dry_run: bool = False,
    brief: bool = False,
) -> list[Outcome]:
    """
    Carry out commands inside the caller's transaction, which alone decides whether they last.

    All that it writes to an account with stripes goes to the one that `draw` holds for it.
    A `brief` transaction ends right after; any other may go on for long.

    A conflict is undone to a savepoint and decided again where the isolation level lets a statement see
    the winner; elsewhere, and after a deadlock, only the caller can run the whole transaction again.

    Raises:
        ConcurrencyError: The caller's whole transaction has to be run again.
    """
    check(commands, scope)
    if not commands:
        return []
    batch = prepare(commands, scope, ledger_id, Batch(machines, draw, atomic, dry_run))
    _settle_in(batch, read_committed, brief)
    return _carry_out_as_guest(connection, batch, ledger_id, read_committed)


def _carry_out_as_guest(connection: Connection, batch: Batch, ledger_id: str, read_committed: bool) -> list[Outcome]:
    release: list[Statement] = [("RELEASE SAVEPOINT ledger", ())]
    undo = "ROLLBACK TO SAVEPOINT ledger; RELEASE SAVEPOINT ledger"
    frame = _Frame([("SAVEPOINT ledger", ())], release, undo)
    problem = _LOST
    for _ in range(ATTEMPTS_MAX):
        try:
            take_up(connection, batch)
            work = load(connection, batch, [*frame.opening, projector.lock(batch.locks)], ledger_id)
            _write(connection, batch, work, frame, locked=True)
            _note_as_guest(connection, _replayed(batch, work.outcomes[batch.expiries :]))
            return work.outcomes[batch.expiries :]
        except Due as due:
            connection.undo(undo)
            problem = _STILL_DUE
            if batch.dry_run:
                batch.expire_first(due.holds)
            else:
                _carry_out_as_guest(connection, batch.sweep(due.holds, ledger_id), ledger_id, read_committed)
        except (Overtaken, Spread):
            connection.undo(undo)
        except Drifted as drift:
            connection.undo(undo)
            repair.rebuild(connection, drift.streams, noticed_by="write")
        except psycopg.Error as error:
            if not _is_conflict(error):
                raise
            connection.undo(undo)
            _mend_as_guest(connection, batch, error, read_committed)
    raise ConcurrencyError(problem)


def _replayed(batch: Batch, outcomes: Sequence[Outcome]) -> list[Replayed]:
    """The answers that were given before; of a dry run none, since nothing of it stays."""
    if batch.dry_run:
        return []
    return [
        Replayed(outcome.transaction.transaction_id, command.actor)
        for command, outcome in zip(batch.commands, outcomes, strict=True)
        if type(outcome) is Done and outcome.replayed
    ]


def _note(connection: Connection, again: Sequence[Replayed]) -> None:
    """
    Put answers that were given again on record; they are right, whether or not this user may do so.

    No standby is waited for: an answer that changes nothing must not stand still because there is none.
    """
    if again:
        locally = ("SET LOCAL synchronous_commit = local", ())
        try:
            connection.send([*connection.begin(), locally, trail.note_replays(again), ("COMMIT", ())])
        except _MAY_NOT_WRITE:
            connection.rollback()


def _note_as_guest(connection: Connection, again: Sequence[Replayed]) -> None:
    """Put answers that were given again on record; without that, if the caller's user may not."""
    if not again:
        return
    connection.query("SAVEPOINT ledger_replays")
    try:
        connection.query(*trail.note_replays(again))
    except _MAY_NOT_WRITE:
        connection.undo("ROLLBACK TO SAVEPOINT ledger_replays")
    connection.query("RELEASE SAVEPOINT ledger_replays")


def _mend_as_guest(connection: Connection, batch: Batch, error: psycopg.Error, read_committed: bool) -> None:
    if not read_committed:
        raise ConcurrencyError(
            "Another transaction wrote to these accounts, and this one's isolation level cannot see it."
            " Run the whole transaction again."
        ) from None
    if streams := _out_of_step(connection, batch, error):
        repair.rebuild(connection, streams, noticed_by="write")


def _settle_in(batch: Batch, read_committed: bool, brief: bool) -> None:
    batch.draw.choose(batch.accounts)
    if batch.closing and not read_committed:
        raise InvalidCommand("close_period", "it has to see what others wrote: use READ COMMITTED")
    # Nobody may close the time in which a long transaction posted before it lasts.
    batch.backdated |= not brief


def check(commands: Sequence[Command], scope: str) -> None:
    """
    Check what a caller hands over.

    Raises:
        InvalidCommand: One is no command of ours, or the scope is none.
    """
    if isinstance(commands, str) or not isinstance(commands, Sequence):
        raise InvalidCommand("commands", f"{commands!r:.80} is no list of commands: [Transfer(…), …]")
    if scope != "":
        checked(SCOPE, "scope", scope)
    for place, command in enumerate(commands):
        if type(command) not in COMMAND_TYPES:
            raise InvalidCommand(f"commands.{place}", f"{command!r:.80} is not a command")


def _write(connection: Connection, batch: Batch, work: Work, frame: _Frame, locked: bool) -> None:
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
    if suspects and (drifted := repair.out_of_step(connection, suspects)):
        raise Drifted(drifted)
    failed = batch.atomic and work.rejected is not None
    if failed:
        _reject_together(work)
    if work.ids and not failed:
        connection.send(frame.closing)
    elif work.ids or locked:
        connection.undo(frame.undo)


def _statements(batch: Batch, work: Work, frame: _Frame, locked: bool) -> Iterator[Statement]:
    """What is to be sent, made while the server works on what was sent before.  Nothing, if nothing happens."""
    projected = dict(work.loaded)
    earliest: datetime | None = None
    for part in _decide_all(batch, work):
        if batch.dry_run or not (part.transactions or work.ids):
            continue
        held: list[str] = _HELD_ALREADY
        if not locked and not work.ids:
            yield from frame.opening
            locks = batch.locks
            held = projector.held(locks, {stream: work.loaded[stream] for stream in locks if stream in work.loaded})
        before = {event.stream: projected.get(event.stream, 0) for event in part.events}
        if part.transactions:
            work.ids.extend([transaction.transaction_id for transaction in part.transactions])
            times = [transaction.recorded_at for transaction in part.transactions]
            earliest = min(times) if earliest is None else min(earliest, *times)
            work.begun.update([event.stream for event in part.events if event.version == 1])
        announced = work.ids if part.last else []
        appended = store.appended(part.transactions, part.events, announced, earliest or work.now)
        yield _WRITE, [*held, *appended, *projector.moved(before, work.book)]
        yield from projector.project(before, work.book, part.facts)
        projected.update({stream: work.book.streams[stream].version for stream in before})
    if work.ids and not work.suspects(batch) and not (batch.atomic and work.rejected is not None):
        work.closed = True
        yield from frame.closing


def _decide_all(batch: Batch, work: Work) -> Iterator[_Part]:
    """
    Decide each command on the book as the ones before it leave it.

    What happened comes in parts; the last one comes in any case, with nothing in it if need be.
    """
    part = _Part([], [], [])
    least, most = _PART_COMMANDS
    size = min(max(len(batch.commands) // _PARTS, least), most)
    for command, transaction_id, scope in zip(batch.commands, batch.ids, batch.scopes, strict=True):
        if len(part.transactions) == size:
            yield part
            part = _Part([], [], [])
        done = work.earlier.get(transaction_id)
        try:
            if done is not None:
                _check_same(command, done.transaction, scope)
                replayed = done.transaction.idempotency_key is not None
                work.outcomes.append(done._replace(replayed=replayed))
                continue
            decided = decide(command, work.book, Occasion(work.now, transaction_id))
        except Rejected as rejection:
            work.outcomes.append(rejection)
            continue
        done = _record(command, transaction_id, scope, decided, work.book, batch.dry_run, work.now)
        work.earlier[transaction_id] = done
        work.outcomes.append(done)
        part.transactions.append(done.transaction)
        part.events.extend(done.events)
        if type(decided[0]) is not EntryPosted:
            part.facts.extend(decided)
        if batch.references:
            reverses = command.refers_to if isinstance(command, Reverse) else None
            remember(work.book, transaction_id, command.type, decided, reverses)
    yield part._replace(last=True)


def _check_same(command: Command, transaction: Transaction, scope: str) -> None:
    if transaction.idempotency_key != command.idempotency_key or transaction.scope != scope:
        raise IdempotencyConflict(str(command.idempotency_key), ["idempotency_key"])
    recall(command, transaction.request)


def _record(
    command: Command,
    transaction_id: str,
    scope: str,
    events: Sequence[Event],
    book: Book,
    dry_run: bool,
    now: datetime,
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
        scope,
        command.idempotency_key,
        command.request(),
        sum([isinstance(event, Movement) for event in events]),
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
    return Done(transaction, recorded, [stream.terms for stream, _, _ in places], dry_run=dry_run)


def _reject_together(work: Work) -> None:
    """All or nothing: one rejection takes the rest of the batch with it."""
    assert work.rejected is not None
    cause = AtomicBatchRejected(work.rejected, str(work.outcomes[work.first + work.rejected]))
    undone = set(work.ids)

    def stands(outcome: Outcome) -> bool:
        """Rejected for its own sake, or done before this call."""
        return isinstance(outcome, Rejected) or not (outcome.dry_run or outcome.transaction.transaction_id in undone)

    work.outcomes = [outcome if stands(outcome) else cause for outcome in work.outcomes]


def _is_conflict(error: psycopg.Error) -> bool:
    """Whether an attempt failed because of what others wrote, and not of what the server is."""
    return error.sqlstate in _CONFLICTS or _is_guard(error)


def _is_guard(error: psycopg.Error) -> bool:
    return (error.sqlstate or "").startswith(GUARD_CLASS)


def _out_of_step(connection: Connection, batch: Batch, error: psycopg.Error) -> Sequence[str]:
    """
    What is to be rebuilt after a conflict under the locks.

    Raises:
        psycopg.Error: A guard refused although everything is in step with the log: it would refuse again.
    """
    streams = repair.out_of_step(connection, batch.streams)
    if _is_guard(error) and not streams:
        raise error
    return streams


def _back_off(attempt: int) -> None:
    """Wait a little, and not as long as the others."""
    longest = min(_BACKOFF_SECONDS * 2**attempt, _BACKOFF_SECONDS_MAX)
    threading.Event().wait(random.uniform(0, longest))  # noqa: S311  (jitter is no secret)
