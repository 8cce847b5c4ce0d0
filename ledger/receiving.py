"""
What one transaction of an inbox does: decide about messages, carry out what is due, keep the rest, move the cursors.

Commands of the ledger that are due go through its one write path together, whatever stream they belong to; a message
of the caller's own goes to its handler, in a savepoint.  A rejection is an outcome; a message that cannot be carried
out blocks its stream and no other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus
from pydantic_core import to_json

from ledger.batch import Done, Outcome, keyed_id
from ledger.core.canonical import canonical_json
from ledger.core.commands import COMMAND_TYPES, Command, parse_command
from ledger.core.errors import LedgerError, Rejected
from ledger.core.lifecycle import StateMachine
from ledger.order.cursor import Cursor, Decision, Status, Strict, Tally, summed
from ledger.order.message import Json, Message
from ledger.order.sequencer import RUN_MAX, decide, decide_unordered, lookup
from ledger.storage import dead_letters, mailbox
from ledger.storage.database import Connection, Statement
from ledger.storage.explained import RETRYABLE
from ledger.storage.mailbox import Settled, Standing
from ledger.stripes import Draw, Stripes
from ledger.writer import handle_as_guest

COMMAND_PREFIX: Final = "ledger."

CORRELATION: Final = "correlationid"
"""The attribute of a message that names its conversation (CloudEvents, the extension Correlation)."""

_BY_KEY: Final = {"hold": "hold_key", "transaction_id": "transaction_key"}
"""Who sends a message knows the key of an earlier one, not the id that its transaction got."""

_LABEL_MAX: Final = 255
_NAME_MAX: Final = 200
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
_ERROR_MAX: Final = 1_000


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


Handler: TypeAlias = Callable[[Message, "psycopg.Connection[Any]"], Any]
"""
Carries out a message of the caller's own, in the inbox's transaction, which it must leave open.

What it raises undoes what it did: a `Rejected` is the message's outcome, anything else a failure, to be tried again.
What it returns is kept as the outcome, if that is a `Done` or JSON.
"""

Result: TypeAlias = "Outcome | Json"
"""What came of a message: the ledger's answer, or what its handler returned."""


class Received(NamedTuple):
    """What came of some messages: the counts, and an outcome for each one that was processed now."""

    tally: Tally
    outcomes: list[tuple[Message, Result]]
    failed: list[tuple[Message, str]]
    more: list[str]
    """Streams in which more is due."""

    def add(self, came: Received) -> Received:
        """What came of these and of some more."""
        self.outcomes.extend(came.outcomes)
        self.failed.extend(came.failed)
        return Received(summed([self.tally, came.tally]), self.outcomes, self.failed, came.more)


class Failed(NamedTuple):
    """A message that could not be carried out; `elsewhere` by another process perhaps, which has its handler."""

    message: Message
    error: str
    elsewhere: bool = False


class TransactionEnded(Exception):
    """A handler committed, rolled back or closed what was not its own."""


class Refused(NamedTuple):
    """Something that could not be read, as a message that can be kept, and what was wrong with it."""

    message: Message
    error: str


@dataclass(slots=True)
class Run:
    """Messages of one stream that are carried out in order, as far as it goes."""

    done: list[tuple[Message, Result]] = field(default_factory=list)
    failure: Failed | None = None


@dataclass(slots=True)
class Turns:
    """The decisions about streams whose cursors are locked."""

    now: datetime = _LONG_AGO
    before: Mapping[str, Standing] = field(default_factory=dict)
    runs_max: Mapping[str, int] = field(default_factory=dict)
    decision: Callable[[str, int], Decision] = lambda _stream, _run_max: Decision(Cursor())
    decisions: dict[str, Decision] = field(default_factory=dict)

    def decide(self, stream: str, run_max: int) -> None:
        """Decide about a stream, with so many messages processed at most."""
        self.decisions[stream] = self.decision(stream, run_max)

    def go_on(self, stream: str, run: Run) -> bool:
        """Whether more of a stream is due than one transaction takes."""
        return self.decisions[stream].more and run.failure is None and self.runs_max[stream] > 0


@dataclass(frozen=True, slots=True)
class Receiver:
    """Carries messages out in a transaction that somebody else begins and commits."""

    source: str
    policy: Strict | Unordered
    unordered: Collection[str]
    retry: Retry
    handlers: Mapping[str, Handler] | None
    """None where somebody else has them: then a type that is not the ledger's own is left to them."""

    machines: Mapping[str, StateMachine]
    stripes: Stripes
    keep: bool
    ended: set[bytes] = field(default_factory=set)
    """Messages whose handler ended the transaction: the next time they fail without being tried."""

    def is_ordered(self, message: Message) -> bool:
        """Whether a message has its turn."""
        return isinstance(self.policy, Strict) and message.type not in self.unordered

    def receive(
        self,
        connection: Connection,
        ledger_id: str,
        messages: Iterable[Message],
        refused: Sequence[Refused] = (),
        *,
        singly: bool = False,
    ) -> Received:
        """Take a batch of messages in, and keep those that could not even be read for a person to see."""
        arriving: dict[str, list[Message]] = {}
        loose: dict[str, list[Message]] = {}
        for message in messages:
            (arriving if self.is_ordered(message) else loose).setdefault(message.stream, []).append(message)
        return self.advance(connection, ledger_id, arriving, loose, refused, singly=singly)

    def advance(
        self,
        connection: Connection,
        ledger_id: str,
        arriving: Mapping[str, Sequence[Message]],
        loose: Mapping[str, Sequence[Message]] = MappingProxyType({}),
        refused: Sequence[Refused] = (),
        *,
        singly: bool = False,
    ) -> Received:
        """
        Decide about streams of ordered messages, with what arrives for each, and carry that out.

        Messages whose order does not matter come as `loose`, by stream as well.  The commands of both go through the
        ledger together, which locks their accounts in one order; and all is counted at the end, or else a counter
        would be locked by one who waits for accounts that belong to one who waits for the counter.
        """
        turns = self._turns(connection, arriving)
        apart = self._apart(connection, loose)
        # None of what is loose has to wait for another: each is a run of its own.
        alone = [[message] for decision in apart for message in decision.process]
        due = [*alone, *(decision.process for decision in turns.decisions.values())]
        carried = self.carry_out(connection, ledger_id, due, singly=singly)
        runs = dict(zip(turns.decisions, carried[len(alone) :], strict=True))
        for stream, run in runs.items():
            if run.failure is not None:
                # What comes after it waits.
                turns.decide(stream, len(run.done))
        given_up, statements, counted = self._settle(turns, runs)
        for more, counted_more in (self._settle_apart(apart, carried[: len(alone)]), self._refuse(refused)):
            statements = chain(statements, more)
            counted.update(counted_more)
        if any(counted.values()):
            statements = chain(statements, [mailbox.count(self.source, counted)])
        connection.send(statements)
        return Received(
            Tally(*(counted[name] for name in Tally._fields)),
            [each for run in carried for each in run.done],
            [(run.failure.message, run.failure.error) for run in carried if run.failure is not None],
            [stream for stream, run in runs.items() if turns.go_on(stream, run)] + given_up,
        )

    def _turns(self, connection: Connection, arriving: Mapping[str, Sequence[Message]]) -> Turns:
        """The decision for each stream, on what is kept of it; its cursor is locked."""
        if not arriving:
            return Turns()
        policy = self.policy
        assert isinstance(policy, Strict)
        now, before = mailbox.lock_streams(connection, self.source, sorted(arriving))
        runs_max = {stream: _run_max(before[stream], now) for stream in arriving}
        wanted = {}
        for stream, messages in arriving.items():
            cursor, release_to = before[stream].cursor, before[stream].release_to
            wanted[stream] = lookup(cursor, messages, policy, now, run_max=runs_max[stream], release_to=release_to)
        seen = mailbox.glimpses(connection, self.source, wanted)

        def decision(stream: str, run_max: int) -> Decision:
            cursor, release_to = before[stream].cursor, before[stream].release_to
            messages = arriving[stream]
            return decide(cursor, messages, seen[stream], policy, now, run_max=run_max, release_to=release_to)

        turns = Turns(now, before, runs_max, decision)
        for stream in arriving:
            turns.decide(stream, runs_max[stream])
        return turns

    def _settle(self, turns: Turns, runs: Mapping[str, Run]) -> tuple[list[str], Iterator[Statement], Counter[str]]:
        """Streams that go on without a message that is given up now; what is to be written, and to be counted."""
        after: dict[str, Standing] = {}
        given_up: dict[str, tuple[Message, str, int]] = {}
        for stream, run in runs.items():
            standing = self._standing(turns.before[stream], turns.decisions[stream], run.failure, turns.now)
            after[stream] = standing
            if (
                run.failure is not None
                and not run.failure.elsewhere
                and (standing.release_to >= 0 or standing.deadline is None)
            ):
                given_up[stream] = (run.failure.message, run.failure.error, standing.attempts)
        settled = {stream: [settle(*done) for done in run.done] for stream, run in runs.items()}
        pairs = {stream: (turns.before[stream], each) for stream, each in turns.decisions.items()}
        statements, counted = mailbox.write(self.source, pairs, settled, given_up, after, keep=self.keep)
        return list(given_up), statements, counted

    def _standing(self, before: Standing, decision: Decision, failure: Failed | None, now: datetime) -> Standing:
        assert isinstance(self.policy, Strict)
        cursor = decision.cursor
        stuck = before.attempts > 0 and before.release_to < 0 and cursor.last == before.cursor.last
        if failure is None:
            if stuck and before.deadline is None:
                cursor = cursor._replace(status=Status.PARKED)
            deadline = before.deadline if stuck else now if decision.more else cursor.deadline(self.policy)
            return Standing(cursor, deadline, before.attempts if stuck else 0)
        if failure.elsewhere:
            # This is no attempt: it is left to whoever can make one.
            return Standing(cursor, now + self.retry.delay, before.attempts if stuck else 0, error=failure.error)
        attempts = before.attempts + 1 if stuck else 1
        if attempts < self.retry.attempts_max:
            delay = min(self.retry.delay * 2 ** (attempts - 1), self.retry.delay_max)
            return Standing(cursor, now + delay, attempts, error=failure.error)
        # It is in review, and held no more.
        cursor = cursor._replace(held=max(0, cursor.held - 1))
        if self.retry.park:
            return Standing(cursor._replace(status=Status.PARKED), None, attempts, error=failure.error)
        sequence = failure.message.sequence
        assert sequence is not None
        return Standing(cursor, now, attempts, release_to=sequence, error=failure.error)

    def _apart(self, connection: Connection, loose: Mapping[str, Sequence[Message]]) -> list[Decision]:
        """A decision for each stream of messages without order: the ids of two have nothing to do with each other."""
        if not loose:
            return []
        known = mailbox.known_ids(connection, self.source, [message for each in loose.values() for message in each])
        return [
            decide_unordered(each, {one.id: known[stream, one.id] for one in each if (stream, one.id) in known})
            for stream, each in loose.items()
        ]

    def _settle_apart(
        self, decisions: Sequence[Decision], runs: Sequence[Run]
    ) -> tuple[list[Statement], Mapping[str, int]]:
        """What is to be written of messages without order, and what is to be counted."""
        done = [each for run in runs for each in run.done]
        failed = [run.failure for run in runs if run.failure is not None]
        letters: list[dead_letters.Letter] = [
            (refused.message, refused.why.value, None, 0) for decision in decisions for refused in decision.review
        ]
        letters += [(failure.message, "failed", failure.error, 1) for failure in failed]
        rejected = sum(isinstance(outcome, Rejected) for _, outcome in done)
        counted = Counter(summed(decision.tally for decision in decisions)._asdict())
        counted.update(rejected=rejected, dead_lettered=len(letters), failed=len(failed), processed=-len(failed))
        statements = []
        if done:
            statements.append(mailbox.put_ids(self.source, [settle(*each) for each in done], keep=self.keep))
            statements.append(mailbox.settle_ids(self.source, [message for message, _ in done]))
        if letters:
            statements.append(dead_letters.put(self.source, letters))
        return statements, counted

    def _refuse(self, refused: Sequence[Refused]) -> tuple[list[Statement], Mapping[str, int]]:
        """What is to be written, and to be counted, of messages that could not be read."""
        if not refused:
            return [], {}
        letters = [(message, "undecodable", error, 0) for message, error in refused]
        return [dead_letters.put(self.source, letters)], {"undecodable": len(refused), "dead_lettered": len(refused)}

    def carry_out(
        self, connection: Connection, ledger_id: str, runs: Iterable[Sequence[Message]], *, singly: bool = False
    ) -> list[Run]:
        """
        Carry out the messages of each run in order, as far as it goes.

        Commands go together, unless `singly`: then each has a savepoint of its own, and one that cannot be carried
        out is a failure of its message alone.
        """
        carried: list[Run] = []
        waiting: list[tuple[Run, int, Command]] = []
        draw = Draw(self.stripes)

        def flush() -> None:
            outcomes = self._handle(connection, ledger_id, [command for _, _, command in waiting], draw)
            for (run, place, _), outcome in zip(waiting, outcomes, strict=True):
                run.done[place] = (run.done[place][0], outcome)
            waiting.clear()

        for messages in runs:
            run = Run()
            carried.append(run)
            for message in messages:
                handler = None if self.handlers is None else self.handlers.get(message.type)
                if handler is not None:
                    flush()
                outcome: Result = None
                try:
                    if handler is not None or singly:
                        outcome = self._alone(connection, ledger_id, message, handler, draw)
                    else:
                        waiting.append((run, len(run.done), self._command_of(message, ledger_id)))
                except TransactionEnded:
                    raise
                except Exception as error:
                    if _will_pass(error):
                        raise
                    elsewhere = self.handlers is None and not message.type.startswith(COMMAND_PREFIX)
                    run.failure = Failed(message, _told(error), elsewhere)
                    break
                run.done.append((message, outcome))
        flush()
        return carried

    def _alone(
        self, connection: Connection, ledger_id: str, message: Message, handler: Handler | None, draw: Draw
    ) -> Result:
        if handler is None:
            commands = [self._command_of(message, ledger_id)]
            work = partial(self._handle, connection, ledger_id, commands, draw)
            outcomes: list[Outcome] = _in_savepoint(connection, work)
            return outcomes[0]
        if message.digest in self.ended:
            self.ended.discard(message.digest)
            raise RuntimeError("its handler ended the inbox's transaction")
        try:
            result: Result = _in_savepoint(connection, partial(handler, message, connection.driver))
        except Rejected as rejection:
            return rejection
        except Exception as error:
            if _has_ended(connection):
                self.ended.add(message.digest)
                raise TransactionEnded from error
            raise
        return result

    def _handle(self, connection: Connection, ledger_id: str, commands: Sequence[Command], draw: Draw) -> list[Outcome]:
        scope = self._scope
        return handle_as_guest(connection, commands, ledger_id, True, self.machines, draw, scope=scope, brief=True)

    def _command_of(self, message: Message, ledger_id: str) -> Command:
        return command_of(message, partial(keyed_id, ledger_id, self._scope), ordered=self.is_ordered(message))

    @property
    def _scope(self) -> str:
        return f"inbox {_short(self.source)}"


def command_of(message: Message, id_of: Callable[[str], str], *, ordered: bool = True) -> Command:
    """
    The command that a message asks for: type `ledger.deposit`, and its fields as data.

    Unless it brings a key of its own, its place in its stream, `alice#7`, is its idempotency key, or for a message
    without a place its stream and id, `["alice","b7"]`.  Unless its data says another one, its attribute
    `correlationid` is the correlation of the transaction.  By that key another message can take it up again: `id_of`
    gives the id of its transaction.

    Raises:
        InvalidAmount, InvalidCommand: It asks for nothing that there is.
    """
    if not message.type.startswith(COMMAND_PREFIX):
        raise LookupError(f"type {message.type!r} is no command of the ledger, and no handler was given for it")
    if not isinstance(message.data, dict):
        raise TypeError(f"data of a {message.type} is an object with the command's fields")
    if ordered and message.sequence is not None:
        place = f"{message.stream}#{message.sequence}"
    else:
        place = canonical_json([message.stream, message.id])
    request: dict[str, Any] = {
        "idempotency_key": _short(place),
        **message.data,
        "type": message.type[len(COMMAND_PREFIX) :],
    }
    conversation = message.extensions.get(CORRELATION)
    if isinstance(conversation, str) and 1 <= len(conversation) <= _LABEL_MAX:
        request.setdefault("correlation_id", conversation)
    for name, by_key in _BY_KEY.items():
        if isinstance(key := request.get(by_key), str) and name not in request:
            request[name] = id_of(key)
            del request[by_key]
    return parse_command(to_json(request))


def message_schemas() -> dict[str, dict[str, Any]]:
    """The types of messages that are commands of the ledger, each with the JSON Schema of its data."""
    schemas: dict[str, dict[str, Any]] = {}
    for command in sorted(COMMAND_TYPES, key=lambda each: each.__name__):
        schema = command.model_json_schema()
        name = schema["properties"].pop("type")["const"]
        schema["required"] = [each for each in schema.get("required", ()) if each != "type"]
        for field_name, by_key in _BY_KEY.items():
            if field_name in schema["properties"]:
                schema["properties"][by_key] = {"type": "string"}
                schema["required"].remove(field_name)
                schema["oneOf"] = [{"required": [field_name]}, {"required": [by_key]}]
        schemas[f"{COMMAND_PREFIX}{name}"] = schema
    return schemas


def settle(message: Message, outcome: Result) -> Settled:
    """What is kept of a message that was processed."""
    return Settled(message, said(outcome), isinstance(outcome, Rejected))


def said(outcome: Result) -> str:
    """An outcome as it is kept."""
    if isinstance(outcome, Done):
        return to_json({"transaction_id": outcome.transaction.transaction_id}).decode()
    if isinstance(outcome, Rejected):
        return canonical_json({"rejected": outcome.code, "message": str(outcome)[:_ERROR_MAX]})
    try:
        return "{}" if outcome is None else json.dumps({"returned": outcome}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        return "{}"


def _run_max(standing: Standing, now: datetime) -> int:
    """Nothing, as long as the next message waits to be tried again."""
    if standing.attempts and standing.release_to < 0 and (standing.deadline is None or standing.deadline > now):
        return 0
    return RUN_MAX


def _will_pass(error: Exception) -> bool:
    """Whether the whole transaction is to be run again, because of what others did to it."""
    return error.retryable if isinstance(error, LedgerError) else getattr(error, "sqlstate", None) in RETRYABLE


def _has_ended(connection: Connection) -> bool:
    """Whether somebody ended the transaction on purpose; a connection that broke is no message's fault."""
    driver = connection.driver
    return not driver.broken and (driver.closed or driver.info.transaction_status is TransactionStatus.IDLE)


def _told(error: Exception) -> str:
    """An error as a text that PostgreSQL can hold, whatever a handler put into it."""
    text = f"{type(error).__name__}: {error}"[:_ERROR_MAX]
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()


def _in_savepoint(connection: Connection, work: Callable[[], Any]) -> Any:
    connection.query("SAVEPOINT message")
    try:
        result = work()
        # Refused where a handler swallowed an error of the database: then it failed, whatever it says.
        connection.query("RELEASE SAVEPOINT message")
    except BaseException:
        connection.undo("ROLLBACK TO SAVEPOINT message; RELEASE SAVEPOINT message")
        raise
    return result


def _short(name: str) -> str:
    """A name as it is, or for one that is too long its hash."""
    return name if len(name) <= _NAME_MAX else sha256(name.encode()).hexdigest()
