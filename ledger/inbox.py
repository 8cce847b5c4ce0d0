"""
The inbox: messages that arrive late, twice, shuffled or not at all take effect once and in order.

    lock the cursors of the streams → decide for each → carry out what is due → keep the rest, move the cursors

All of it in one database transaction with the effects.  Two processes that receive messages of one stream are
serialised by its cursor; streams go in parallel.  The inbox is the only way in for its streams: what arrives queues
behind what waits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

import psycopg

from ledger.batch import Done, Outcome
from ledger.core.canonical import canonical_json
from ledger.core.commands import Command, parse_command
from ledger.core.errors import ConcurrencyError, InvalidCommand, LedgerError, Rejected
from ledger.core.lifecycle import StateMachine
from ledger.order.cursor import Decision, Range, Status, Strict, Tally
from ledger.order.message import Message
from ledger.order.sequencer import RUN_MAX, decide, decide_unordered, lookup
from ledger.storage import mailbox, projector
from ledger.storage.database import RETRYABLE, Connection, Database
from ledger.storage.mailbox import DeadLetter, Gap, LetterDecision, Settled, Standing, Stats
from ledger.writer import ATTEMPTS_MAX, handle_as_guest

TOGETHER_MAX: Final = 1_000
"""Messages received, or streams ticked, in one transaction."""

COMMAND_PREFIX: Final = "ledger."
_KEY_MAX: Final = 200


class Unordered(NamedTuple):
    """A policy: messages whose order does not matter, each id once."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a message that cannot be handled is tried in place, before it is given up."""

    attempts_max: int = 5
    delay: timedelta = timedelta(seconds=1)
    delay_max: timedelta = timedelta(minutes=5)
    park: bool = False
    """Whether the stream waits for a person instead of going on."""


class Received(NamedTuple):
    """What came of some messages: the counts, and an outcome for each one that was processed now."""

    tally: Tally
    outcomes: list[tuple[Message, Outcome | None]]
    failed: list[tuple[Message, str]]
    more: list[str]
    """Streams in which more is due."""


Handler: TypeAlias = Callable[[Message, Connection], Any]
"""Carries out a message of the caller's own, in the inbox's transaction."""


Arriving = TypeVar("Arriving")

Verdict: TypeAlias = tuple[str, str | None, str | None]
"""Which dead letter, who decided, and why."""


class _Failed(NamedTuple):
    """A message that could not be carried out."""

    message: Message
    error: str


class Inbox:
    """The inbox of one source; made by `Ledger.inbox`."""

    def __init__(
        self,
        source: str,
        policy: Strict | Unordered,
        retry: Retry,
        handlers: Mapping[str, Handler],
        database: Database,
        ledger_id: Callable[[], str],
        machines: Mapping[str, StateMachine],
    ) -> None:
        self.source = source
        self.policy = policy
        self._retry = retry
        self._handlers = handlers
        self._database = database
        self._ledger_id = ledger_id
        self._machines = machines

    def receive(self, messages: Iterable[Message]) -> Received:
        """
        Take messages in: what is due takes effect, in order; what is early is kept; what was seen is dropped.

        Raises:
            ConcurrencyError: The race for these streams was lost too often; nothing of the last messages was kept.
            LedgerError: As `Ledger.handle`.
        """
        total = Received(Tally(), [], [], [])
        for together in _chunks(messages):
            total = self._finish(_added(total, self._in_transaction(self._receive, together)))
        return total

    def tick(self) -> Received:
        """Act on deadlines that have come: gaps that outlasted their wait, messages to be tried again."""
        total = Received(Tally(), [], [], [])
        after = ""
        while due := self._database.ask(partial(self._due, after=after)):
            came = self._in_transaction(self._receive_strict, {stream: [] for stream in due})
            total = self._finish(_added(total, came))
            after = due[-1]
        return total

    def _finish(self, total: Received) -> Received:
        """Go on with streams in which more is due than one transaction took."""
        while total.more:
            total = _added(total, self._in_transaction(self._receive_strict, {stream: [] for stream in total.more}))
        return total

    def refuse(self, message: Message, error: str) -> None:
        """Keep what could not even be read, for a person to see."""
        with self._database.connection() as connection, connection.transaction():
            letters = [(message, "undecodable", error, 0)]
            counted = mailbox.count(self.source, {"undecodable": 1, "dead_lettered": 1})
            connection.send([mailbox.put_letters(self.source, letters), counted])

    def stats(self) -> Stats:
        """What the inbox has counted of this source, and how it stands now."""
        return self._database.ask(partial(mailbox.stats, source=self.source))

    def gaps(self, *, after: str = "", limit: int = 100) -> list[Gap]:
        """The streams that wait for a message, in order of their names, and which one they miss first."""
        return self._database.ask(partial(mailbox.gaps, source=self.source, after=after, limit=limit))

    def missing(self, stream: str, *, limit: int = 1_000) -> list[Range]:
        """The sequences of a stream that are missing: neither processed, nor kept, nor gone on without."""
        return self._database.ask(partial(mailbox.missing, source=self.source, stream=stream, limit=limit))

    def dead_letters(
        self, *, state: str = "open", why: str | None = None, after: UUID | str | None = None, limit: int = 100
    ) -> list[DeadLetter]:
        """The messages that a person decides about, in order of their id; or those that were decided about."""
        last = str(after or UUID(int=0))
        return self._database.ask(lambda connection: mailbox.letters(connection, self.source, state, why, last, limit))

    def decisions(self, dead_letter: UUID | str) -> list[LetterDecision]:
        """What was decided about a dead letter, in order."""
        return self._database.ask(
            partial(mailbox.letter_decisions, source=self.source, dead_letter_id=str(dead_letter))
        )

    def requeue(self, dead_letter: UUID | str, *, actor: str | None = None, note: str | None = None) -> Received:
        """
        Let a dead letter take effect after all: in its place, where its stream has not gone on, or else now.

        Raises:
            InvalidCommand: It is no open dead letter of this source.
        """
        return self._finish(self._in_transaction(self._requeue, (str(dead_letter), actor, note)))

    def discard(self, dead_letter: UUID | str, *, actor: str | None = None, note: str | None = None) -> Received:
        """
        Decide that a dead letter has no effect, for good; a stream that waited for this decision goes on.

        Raises:
            InvalidCommand: It is no open dead letter of this source.
        """
        return self._finish(self._in_transaction(self._discard, (str(dead_letter), actor, note)))

    def _requeue(self, connection: Connection, asked: Verdict) -> Received:
        letter = self._open_letter(connection, asked)
        message = letter.message
        connection.send([mailbox.decided(letter, "requeued", *asked[1:])])
        if isinstance(self.policy, Strict) and message.sequence is not None:
            _, before = mailbox.lock_streams(connection, self.source, [message.stream])
            if message.sequence > before[message.stream].cursor.last and letter.why != "sequence_conflict":
                place = (message.stream, self.source)
                connection.send([(mailbox.TAKE_AGAIN, (*place, message.sequence)), (mailbox.CALM, place)])
                return self._receive_strict(connection, {message.stream: [message]})
        ((done, failure),) = self._carry_out(connection, [[message]])
        if failure is not None:
            raise InvalidCommand(f"dead letter {letter.dead_letter_id}", failure.error)
        return Received(Tally(processed=1), done, [], [])

    def _discard(self, connection: Connection, asked: Verdict) -> Received:
        letter = self._open_letter(connection, asked)
        sequence = letter.sequence
        connection.send([mailbox.decided(letter, "discarded", *asked[1:])])
        if isinstance(self.policy, Strict) and sequence is not None and letter.why == "failed":
            connection.send([(mailbox.LET_GO, (sequence, letter.stream, self.source, sequence))])
            return Received(Tally(), [], [], [letter.stream])
        return Received(Tally(), [], [], [])

    def _open_letter(self, connection: Connection, asked: Verdict) -> DeadLetter:
        letter = mailbox.lock_letter(connection, self.source, asked[0])
        if letter is None or letter.state != "open":
            state = "not one of this source" if letter is None else letter.state
            raise InvalidCommand("dead letter", f"{asked[0]} is {state}")
        return letter

    def _due(self, connection: Connection, after: str) -> list[str]:
        rows = connection.query(
            "SELECT stream FROM {schema}.inbox_streams WHERE source = %s AND deadline <= clock_timestamp()"
            " AND stream > %s ORDER BY stream LIMIT %s",
            (self.source, after, TOGETHER_MAX),
        )
        return [stream for (stream,) in rows]

    def _in_transaction(self, work: Callable[[Connection, Arriving], Received], arriving: Arriving) -> Received:
        for _ in range(ATTEMPTS_MAX):
            try:
                with self._database.connection() as connection, connection.transaction():
                    return work(connection, arriving)
            except ConcurrencyError:
                continue
            except psycopg.Error as error:
                if error.sqlstate not in RETRYABLE | {projector.LOST, "23505"}:
                    raise
        raise ConcurrencyError(f"The race for these streams was lost {ATTEMPTS_MAX} times. Try again.")

    def _receive(self, connection: Connection, messages: Sequence[Message]) -> Received:
        if isinstance(self.policy, Unordered):
            return self._receive_unordered(connection, messages)
        arriving: dict[str, list[Message]] = {}
        for message in messages:
            arriving.setdefault(message.stream, []).append(message)
        return self._receive_strict(connection, arriving)

    def _receive_unordered(self, connection: Connection, messages: Sequence[Message]) -> Received:
        # One decision a stream: the ids of two streams have nothing to do with each other.
        known = mailbox.known_ids(connection, self.source, messages)
        streams: dict[str, list[Message]] = {}
        for message in messages:
            streams.setdefault(message.stream, []).append(message)
        decisions = [
            decide_unordered(
                arriving, {each.id: known[stream, each.id] for each in arriving if (stream, each.id) in known}
            )
            for stream, arriving in streams.items()
        ]
        carried = self._carry_out(connection, [list(decision.process) for decision in decisions])
        settled = [each for run, _ in carried for each in run]
        failed = [failure for _, failure in carried if failure is not None]
        letters: list[tuple[Message, str, str | None, int]] = [
            (refused.message, refused.why.value, None, 0) for decision in decisions for refused in decision.review
        ]
        letters += [(failure.message, "failed", failure.error, 1) for failure in failed]
        tally = _sum(decision.tally for decision in decisions)
        statements = [mailbox.count(self.source, {**_counts(tally), "dead_lettered": len(letters)})]
        if settled:
            statements.append(mailbox.put_ids(self.source, [Settled(m, _said(o)) for m, o in settled]))
        if letters:
            statements.append(mailbox.put_letters(self.source, letters))
        connection.send(statements)
        return Received(tally, settled, [(failure.message, failure.error) for failure in failed], [])

    def _receive_strict(self, connection: Connection, arriving: Mapping[str, list[Message]]) -> Received:
        policy = self._strict
        now, before = mailbox.lock_streams(connection, self.source, sorted(arriving))
        runs = {stream: self._run_max(before[stream], now) for stream in arriving}
        wanted = {}
        for stream, messages in arriving.items():
            cursor, release_to = before[stream].cursor, before[stream].release_to
            wanted[stream] = lookup(cursor, messages, policy, now, run_max=runs[stream], release_to=release_to)
        seen = mailbox.glimpses(connection, self.source, wanted)

        def decision(stream: str, run_max: int) -> Decision:
            cursor, release_to = before[stream].cursor, before[stream].release_to
            messages = arriving[stream]
            return decide(cursor, messages, seen[stream], policy, now, run_max=run_max, release_to=release_to)

        decisions = {stream: decision(stream, runs[stream]) for stream in arriving}
        carried = self._carry_out(connection, [list(each.process) for each in decisions.values()])
        results = dict(zip(decisions, carried, strict=True))
        after = {}
        given_up = {}
        for stream, (done, failure) in results.items():
            if failure is not None:
                # What comes after it waits.
                decisions[stream] = decision(stream, len(done))
            after[stream] = self._standing(before[stream], decisions[stream], failure, now)
            if failure is not None and (after[stream].release_to >= 0 or after[stream].deadline is None):
                given_up[stream] = (failure.message, failure.error, after[stream].attempts)
        settled = {
            stream: [Settled(message, _said(outcome)) for message, outcome in done]
            for stream, (done, _) in results.items()
        }
        pairs = {stream: (before[stream], each) for stream, each in decisions.items()}
        connection.send(mailbox.write(self.source, pairs, settled, given_up, after))
        failures = [failure for _, failure in carried if failure is not None]
        return Received(
            _sum(each.tally for each in decisions.values()),
            [each for done, _ in carried for each in done],
            [(failure.message, failure.error) for failure in failures],
            [stream for stream, each in decisions.items() if each.more and results[stream][1] is None and runs[stream]]
            + list(given_up),
        )

    @property
    def _strict(self) -> Strict:
        assert isinstance(self.policy, Strict)
        return self.policy

    def _run_max(self, standing: Standing, now: datetime) -> int:
        """Nothing, as long as the next message waits to be tried again."""
        if standing.attempts and standing.release_to < 0 and (standing.deadline is None or standing.deadline > now):
            return 0
        return RUN_MAX

    def _standing(self, before: Standing, decision: Decision, failure: _Failed | None, now: datetime) -> Standing:
        cursor = decision.cursor
        stuck = before.attempts > 0 and before.release_to < 0 and cursor.last == before.cursor.last
        if failure is None:
            if stuck and before.deadline is None:
                cursor = replace(cursor, status=Status.PARKED)
            deadline = before.deadline if stuck else now if decision.more else cursor.deadline(self._strict)
            return Standing(cursor, deadline, before.attempts if stuck else 0)
        attempts = before.attempts + 1 if stuck else 1
        if attempts < self._retry.attempts_max:
            delay = min(self._retry.delay * 2 ** (attempts - 1), self._retry.delay_max)
            return Standing(cursor, now + delay, attempts, error=failure.error)
        # It is in review, and held no more.
        cursor = replace(cursor, held=max(0, cursor.held - 1))
        if self._retry.park:
            return Standing(replace(cursor, status=Status.PARKED), None, attempts, error=failure.error)
        sequence = failure.message.sequence
        assert sequence is not None
        return Standing(cursor, now, attempts, release_to=sequence, error=failure.error)

    def _carry_out(
        self, connection: Connection, runs: Sequence[Sequence[Message]]
    ) -> list[tuple[list[tuple[Message, Outcome | None]], _Failed | None]]:
        """
        Carry out the messages of each run in order, as far as it goes.

        Commands of the ledger go together, a handler by itself, in a savepoint.  A rejection is an outcome.
        """
        results: list[tuple[list[tuple[Message, Outcome | None]], _Failed | None]] = []
        waiting: list[tuple[int, int, Message, Command]] = []
        for number, run in enumerate(runs):
            done: list[tuple[Message, Outcome | None]] = []
            failure: _Failed | None = None
            for message in run:
                handler = self._handlers.get(message.type)
                try:
                    if handler is None:
                        waiting.append((number, len(done), message, command_of(message)))
                    else:
                        self._flush(connection, waiting, results, (number, done))
                        self._handled(connection, handler, message)
                except Exception as error:
                    if isinstance(error, LedgerError) and error.retryable:
                        raise
                    failure = _Failed(message, f"{type(error).__name__}: {error}"[:1000])
                    break
                done.append((message, None))
            results.append((done, failure))
        self._flush(connection, waiting, results, None)
        return results

    def _flush(
        self,
        connection: Connection,
        waiting: list[tuple[int, int, Message, Command]],
        results: Sequence[tuple[list[tuple[Message, Outcome | None]], _Failed | None]],
        current: tuple[int, list[tuple[Message, Outcome | None]]] | None,
    ) -> None:
        """Handle the commands that wait, all together."""
        if not waiting:
            return
        commands = [command for _, _, _, command in waiting]
        outcomes = handle_as_guest(
            connection, commands, self._ledger_id(), True, self._machines, scope=f"inbox {self.source}"[:255]
        )
        for (number, place, message, _), outcome in zip(waiting, outcomes, strict=True):
            done = current[1] if current is not None and number == current[0] else results[number][0]
            done[place] = (message, outcome)
        waiting.clear()

    def _handled(self, connection: Connection, handler: Handler, message: Message) -> None:
        connection.query("SAVEPOINT message")
        try:
            handler(message, connection)
        except BaseException:
            connection.undo("ROLLBACK TO SAVEPOINT message; RELEASE SAVEPOINT message")
            raise
        connection.query("RELEASE SAVEPOINT message")


def command_of(message: Message) -> Command:
    """
    The command that a message asks for: type `ledger.deposit`, and its fields as data.

    Unless it brings a key of its own, its place in its stream is its idempotency key.

    Raises:
        InvalidAmount, InvalidCommand: It asks for nothing that there is.
    """
    if not message.type.startswith(COMMAND_PREFIX):
        raise LookupError(f"type {message.type!r} is no command of the ledger, and no handler was given for it")
    if not isinstance(message.data, dict):
        raise TypeError(f"data of a {message.type} is an object with the command's fields")
    place = f"{message.stream}#{message.id if message.sequence is None else message.sequence}"
    key = place if len(place) <= _KEY_MAX else sha256(place.encode()).hexdigest()
    request: dict[str, Any] = {"idempotency_key": key, **message.data, "type": message.type[len(COMMAND_PREFIX) :]}
    return parse_command(json.dumps(request))


def _said(outcome: Outcome | None) -> str:
    if isinstance(outcome, Done):
        return canonical_json({"transaction_id": outcome.transaction.transaction_id})
    if isinstance(outcome, Rejected):
        return canonical_json({"rejected": outcome.code, "message": str(outcome)[:1000]})
    return "{}"


def _chunks(messages: Iterable[Message]) -> Iterator[list[Message]]:
    together: list[Message] = []
    for message in messages:
        together.append(message)
        if len(together) == TOGETHER_MAX:
            yield together
            together = []
    if together:
        yield together


def _counts(tally: Tally) -> dict[str, int]:
    return {field.name: getattr(tally, field.name) for field in fields(Tally)}


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = dict.fromkeys((field.name for field in fields(Tally)), 0)
    for tally in tallies:
        for name, number in _counts(tally).items():
            total[name] += number
    return Tally(**total)


def _added(total: Received, more: Received) -> Received:
    return Received(
        _sum([total.tally, more.tally]), total.outcomes + more.outcomes, total.failed + more.failed, more.more
    )
