"""
The inbox: messages that arrive late, twice, shuffled or not at all take effect once and in order.

    lock the cursors of the streams → decide for each → carry out what is due → keep the rest, move the cursors

All of it in one database transaction with the effects.  Two processes that receive messages of one stream are
serialised by its cursor; streams go in parallel.  The inbox is the only way in for its streams: what arrives queues
behind what waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Final, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

import psycopg

from ledger.core.errors import ConcurrencyError, InvalidCommand, LedgerError
from ledger.core.fields import TEXT, checked
from ledger.order.cursor import Range, Status, Tally
from ledger.order.message import Message
from ledger.receiving import Received, Receiver, Refused, TransactionEnded, Unordered, said, settle
from ledger.storage import dead_letters, inbox_queries, mailbox, projector
from ledger.storage.database import Connection, Database, Statement
from ledger.storage.dead_letters import DeadLetter, LetterDecision
from ledger.storage.explained import RETRYABLE
from ledger.storage.inbox_queries import Completeness, Gap, Kept, Stats
from ledger.storage.mailbox import Settled
from ledger.writer import ATTEMPTS_MAX

TOGETHER_MAX: Final = 1_000
"""Messages received, or streams ticked, in one transaction."""

_LIMIT_MAX: Final = 1_000

Came = TypeVar("Came")

Verdict: TypeAlias = tuple[str, str | None, str | None]
"""Which dead letter, who decided, and why."""


class Change(NamedTuple):
    """A message that came out otherwise when it was replayed; `error` says why it could not be carried out."""

    message: Message
    before: str
    after: str | None
    error: str | None = None


class Replayed(NamedTuple):
    """What came of a replay: how many messages, those that came out otherwise, those whose content is gone."""

    replayed: int
    changes: list[Change]
    left: int
    """Rejections that stand as they are."""

    forgotten: int
    """Messages whose content was not kept."""

    elsewhere: int = 0
    """Messages that were left alone, since somebody else has their handlers."""


class _DryRun(Exception):
    """Everything was tried, and nothing of it lasts."""

    def __init__(self, page: list[Kept], came: Replayed) -> None:
        super().__init__()
        self.page = page
        self.came = came


class Inbox:
    """The inbox of one source; made by `Ledger.inbox`."""

    def __init__(
        self, receiver: Receiver, keep: timedelta | None, database: Database, ledger_id: Callable[[], str]
    ) -> None:
        self.source = receiver.source
        self.policy = receiver.policy
        self._receiver = receiver
        self._keep = keep
        self.database = database
        self.ledger_id = ledger_id

    def receive(self, messages: Iterable[Message]) -> Received:
        """
        Take messages in: what is due takes effect, in order; what is early is kept; what was seen is dropped.

        Up to a thousand are one transaction with their effects.  Says what came of all of them: give it as many at
        once as you want to hear of at once.

        Raises:
            InvalidCommand: A message is of another source.
            ConcurrencyError: The race for these streams was lost too often; nothing of the last messages was kept.
            LedgerError: As `Ledger.handle`.
        """
        total = _nothing()
        arriving = iter(messages)
        while together := list(islice(arriving, TOGETHER_MAX)):
            (came,) = take_together([Part(self, together)])
            total = total.add(self.finish(came))
        return total

    def tick(self) -> Received:
        """Act on deadlines that have come: gaps that outlasted their wait, messages to be tried again."""
        total = _nothing()
        for came in self.ticking():
            total = total.add(came)
        return total

    def ticking(self) -> Iterator[Received]:
        """Tick, and say what came of it a transaction at a time, however much was due."""
        after: str | None = None
        if isinstance(self.policy, Unordered):
            return
        while due := self.database.ask(partial(mailbox.due, source=self.source, after=after, limit=TOGETHER_MAX)):
            yield from self.going_on(due)
            after = due[-1]

    def refuse(self, message: Message, error: str) -> None:
        """Keep what could not even be read, for a person to see."""
        take_together([Part(self, [], [Refused(message, error)])])

    def release(
        self, stream: str, to: int | None = None, *, actor: str | None = None, note: str | None = None
    ) -> Received:
        """
        Decide that a stream goes on without what it misses: up to its next message, or up to sequence `to`.

        On record, with who decided and why; what was missing goes to review if it comes after all.

        Raises:
            InvalidCommand: Nothing of this stream is missing, or it has never heard of `to`.
        """
        if isinstance(self.policy, Unordered):
            raise InvalidCommand("policy", "an unordered stream waits for nothing")
        return self.finish(
            _in_transaction(self, lambda connection, singly: self._release(connection, stream, to, actor, note, singly))
        )

    def stats(self) -> Stats:
        """What the inbox has counted of this source, and how it stands now."""
        return self.database.ask(partial(inbox_queries.stats, source=self.source))

    def gaps(self, *, status: Status | None = None, after: str | None = None, limit: int = 100) -> list[Gap]:
        """
        The streams that wait for a message, in order of their names, and which one they miss first.

        Also those whose next message could not be handled, and is tried again.  With a `status` only those that still
        wait in time, or those that are parked: no time will help these.
        """
        asked = partial(inbox_queries.gaps, source=self.source, status=status, after=after, limit=_limit(limit))
        return self.database.ask(asked)

    def missing(self, stream: str, *, limit: int = 1_000) -> list[Range]:
        """The sequences of a stream that are missing: neither processed, nor kept, nor gone on without."""
        asked = partial(inbox_queries.missing, source=self.source, stream=stream, limit=_limit(limit))
        return self.database.ask(asked)

    def completeness(
        self, *, stream: str | None = None, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[Completeness]:
        """
        Of each stream with messages received from `since` to before `until`: what of their range never arrived.

        Also what a stream went on without is told.  Pages through all streams of the source, or looks at one.
        """
        after: str | None = None
        while True:
            page, after = self.database.ask(
                partial(
                    inbox_queries.completeness,
                    source=self.source,
                    stream=stream,
                    since=since,
                    until=until,
                    after=after,
                    limit=TOGETHER_MAX,
                )
            )
            yield from page
            if after is None:
                break

    def dead_letters(
        self,
        *,
        state: str = "open",
        why: str | None = None,
        stream: str | None = None,
        after: UUID | str | None = None,
        limit: int = 100,
    ) -> list[DeadLetter]:
        """The messages that a person decides about, in order of their id; or those that were decided about."""
        last = _letter_id(after or UUID(int=0))
        size = _limit(limit)
        return self.database.ask(
            lambda connection: dead_letters.letters(connection, self.source, state, why, stream, last, size)
        )

    def dead_letter(self, dead_letter: UUID | str) -> DeadLetter:
        """
        One dead letter, whatever its state.

        Raises:
            InvalidCommand: It is none of this source.
        """
        name = _letter_id(dead_letter)
        found = self.database.ask(partial(dead_letters.letter, source=self.source, dead_letter_id=name))
        if found is None:
            raise InvalidCommand("dead letter", f"{name} is not one of this source")
        return found

    def decisions(self, dead_letter: UUID | str) -> list[LetterDecision]:
        """What was decided about a dead letter, in order."""
        name = _letter_id(dead_letter)
        return self.database.ask(partial(dead_letters.decisions, source=self.source, dead_letter_id=name))

    def requeue(self, dead_letter: UUID | str, *, actor: str | None = None, note: str | None = None) -> Received:
        """
        Let a dead letter take effect after all: in its place, where its stream has not gone on, or else now.

        Raises:
            InvalidCommand: It is no open dead letter of this source.
        """
        verdict = (_letter_id(dead_letter), _text("actor", actor), _text("note", note))
        return self.finish(_in_transaction(self, lambda connection, singly: self._requeue(connection, verdict, singly)))

    def discard(self, dead_letter: UUID | str, *, actor: str | None = None, note: str | None = None) -> Received:
        """
        Decide that a dead letter has no effect, for good; a stream that waited for this decision goes on.

        Raises:
            InvalidCommand: It is no open dead letter of this source.
        """
        verdict = (_letter_id(dead_letter), _text("actor", actor), _text("note", note))
        return self.finish(_in_transaction(self, lambda connection, singly: self._discard(connection, verdict, singly)))

    def replay(
        self, *, stream: str | None = None, first: int = 0, rejected: bool = False, dry_run: bool = True
    ) -> Replayed:
        """
        Send kept messages through the same path again, after a fault was mended, and say what came out otherwise.

        What has taken effect does not take it twice: commands have keys, and handlers see to theirs.  Rejections stand,
        unless they are `rejected` messages that are to be decided again, on the balances of today.  A dry run undoes
        TOGETHER_MAX messages at a time, so that each page is judged without what the ones before it would change.
        """
        total = Replayed(0, [], 0, 0)
        for ordered in (True, False):
            if not ordered and first:
                break
            after: Kept | None = None
            while True:
                read = partial(self._kept, ordered, stream, first, after)
                page, came = self._replay(ordered, read, rejected, dry_run)
                if not page:
                    break
                after = page[-1]
                changes = [*total.changes, *came.changes]
                counted = (one + more for one, more in zip(total[2:], came[2:], strict=True))
                total = Replayed(total.replayed + came.replayed, changes, *counted)
        return total

    def forget(self, *, progress: Callable[[int], None] | None = None) -> int:
        """
        Give up the contents of messages that took effect longer ago than they are kept; how many.

        That they came, what they said (as a hash) and what came of them stays for ever.  Can be interrupted.
        """
        if self._keep is None:
            return 0
        forgotten = 0
        for ordered, start in ((True, ("", -1)), (False, ("", ""))):
            place: tuple[str, int | str] = start
            while page := self._forget_page(ordered, self._keep, place):
                place = page[0]
                forgotten += len(page)
                if progress is not None:
                    progress(forgotten)
        return forgotten

    def _forget_page(self, ordered: bool, keep: timedelta, place: tuple[str, int | str]) -> list[tuple[str, int | str]]:
        with self.database.connection() as connection, connection.transaction():
            return inbox_queries.forget(connection, self.source, ordered, keep, place, TOGETHER_MAX)

    def take(
        self,
        connection: Connection,
        messages: Sequence[Message],
        refused: Sequence[Refused] = (),
        *,
        singly: bool = False,
    ) -> Received:
        """Take messages in, in a transaction of the caller's; then `finish`."""
        return self._receiver.receive(connection, self.ledger_id(), messages, refused, singly=singly)

    def _advance(self, streams: Sequence[str]) -> Received:
        ledger_id = self.ledger_id()
        arriving: dict[str, list[Message]] = {stream: [] for stream in streams}
        return _in_transaction(
            self,
            lambda connection, singly: self._receiver.advance(connection, ledger_id, arriving, singly=singly),
        )

    def finish(self, total: Received) -> Received:
        """Go on with streams in which more is due than one transaction took."""
        for came in self.going_on(total.more):
            total = total.add(came)
        return total

    def going_on(self, streams: Sequence[str]) -> Iterator[Received]:
        """Carry out what is due in these streams, and say what came of it a transaction at a time."""
        while streams:
            came = self._advance(streams)
            yield came
            streams = came.more

    def _release(
        self, connection: Connection, stream: str, to: int | None, actor: str | None, note: str | None, singly: bool
    ) -> Received:
        _, standings = mailbox.lock_streams(connection, self.source, [stream])
        cursor = standings[stream].cursor
        missing = inbox_queries.missing(connection, self.source, stream, 1)
        # A stream may wait for what is here, and in review.
        in_review = cursor.status is not Status.FLOWING and (not missing or missing[0].first > cursor.next)
        if not missing and not in_review:
            raise InvalidCommand("stream", f"nothing of {stream!r} is missing")
        first, last = (cursor.next, cursor.next) if in_review else (missing[0].first, missing[0].last)
        upto = last if to is None else to
        if not first <= upto <= cursor.highest:
            raise InvalidCommand("to", f"{upto} is not missing, nor before a message that came")
        decider = _text("actor", actor), _text("note", note)
        if in_review:
            inbox_queries.release_kept(connection, self.source, stream, cursor.next, *decider)
        inbox_queries.release(connection, self.source, stream, upto, *decider)
        connection.query(mailbox.LET_GO, (upto, stream, self.source))
        return self._receiver.advance(connection, self.ledger_id(), {stream: []}, singly=singly)

    def _requeue(self, connection: Connection, asked: Verdict, singly: bool) -> Received:
        letter = self._open_letter(connection, asked)
        if letter.why == "undecodable":
            problem = "it could not be read: let it be mended where it comes from, and sent again"
            raise InvalidCommand(f"dead letter {letter.dead_letter_id}", problem)
        message = letter.message
        connection.send([dead_letters.decided(letter, "requeued", *asked[1:])])
        if self._receiver.is_ordered(message) and message.sequence is not None:
            _, before = mailbox.lock_streams(connection, self.source, [message.stream])
            if message.sequence > before[message.stream].cursor.last and letter.why != "sequence_conflict":
                place = (message.stream, self.source)
                connection.send([(mailbox.TAKE_AGAIN, (*place, letter.dead_letter_id)), (mailbox.CALM, place)])
                return self._receiver.advance(connection, self.ledger_id(), {message.stream: [message]}, singly=singly)
        carried = message
        if letter.why in ("sequence_conflict", "id_conflict") and isinstance(message.data, dict):
            # Its place, or its id, is the key of the message that it contradicts.
            carried = replace(message, data={"idempotency_key": f"dead letter {letter.dead_letter_id}", **message.data})
        (run,) = self._receiver.carry_out(connection, self.ledger_id(), [[carried]], singly=True)
        if run.failure is not None:
            raise InvalidCommand(f"dead letter {letter.dead_letter_id}", run.failure.error)
        ((_, outcome),) = run.done
        connection.send(self._kept_after(letter, settle(message, outcome)))
        return Received(Tally(processed=1), [(message, outcome)], [], [])

    def _kept_after(self, letter: DeadLetter, settled: Settled) -> list[Statement]:
        """What is written down of a message that took effect after its turn: a copy of it is a duplicate."""
        # It was received as what it is counted as already; this is one more.
        statements = [
            mailbox.count(self.source, {"received": 1, "processed": 1, "rejected": int(settled.rejected)}),
        ]
        if letter.why in ("sequence_conflict", "id_conflict", "unnumbered"):
            return statements
        if self._receiver.is_ordered(settled.message):
            statements += mailbox.put_done(self.source, settled, keep=self._receiver.keep)
        else:
            statements.append(mailbox.put_ids(self.source, [settled], keep=self._receiver.keep))
        return statements

    def _discard(self, connection: Connection, asked: Verdict, singly: bool) -> Received:
        letter = self._open_letter(connection, asked)
        message = letter.message
        connection.send([dead_letters.decided(letter, "discarded", *asked[1:])])
        if self._receiver.is_ordered(message) and message.sequence is not None and letter.why != "sequence_conflict":
            _, before = mailbox.lock_streams(connection, self.source, [message.stream])
            place = (message.stream, self.source, message.sequence, message.digest)
            connection.send([(mailbox.NEVER_TAKE, place)])
            if before[message.stream].cursor.next == message.sequence:
                connection.send([(mailbox.LET_GO, (message.sequence, message.stream, self.source))])
                return self._receiver.advance(connection, self.ledger_id(), {message.stream: []}, singly=singly)
        return _nothing()

    def _open_letter(self, connection: Connection, asked: Verdict) -> DeadLetter:
        letter = dead_letters.letter(connection, self.source, asked[0])
        if letter is not None and letter.sequence is not None and self._receiver.is_ordered(letter.message):
            # Before the letter, as who receives for its stream does.
            mailbox.lock_streams(connection, self.source, [letter.stream])
        letter = dead_letters.letter(connection, self.source, asked[0], lock=True)
        if letter is None or letter.state != "open":
            state = "not one of this source" if letter is None else letter.state
            raise InvalidCommand("dead letter", f"{asked[0]} is {state}")
        return letter

    def _kept(
        self, ordered: bool, stream: str | None, first: int, after: Kept | None, connection: Connection
    ) -> list[Kept]:
        return inbox_queries.done(connection, self.source, ordered, stream, first, after, TOGETHER_MAX)

    def _replay(
        self, ordered: bool, read: Callable[[Connection], list[Kept]], rejected: bool, dry_run: bool
    ) -> tuple[list[Kept], Replayed]:
        def work(connection: Connection, singly: bool) -> tuple[list[Kept], Replayed]:
            # What is new of these streams waits meanwhile.
            page = read(connection)
            if not page:
                return [], Replayed(0, [], 0, 0)
            mailbox.lock_streams(connection, self.source, sorted({kept.stream for kept in page}))
            page = read(connection)
            came = self._replay_page(connection, ordered, page, rejected, singly)
            if dry_run:
                raise _DryRun(page, came)
            return page, came

        try:
            return _in_transaction(self, work)
        except _DryRun as tried:
            return tried.page, tried.came

    def _replay_page(
        self, connection: Connection, ordered: bool, page: Sequence[Kept], rejected: bool, singly: bool
    ) -> Replayed:
        again = [kept for kept in page if kept.message is not None and (rejected or not kept.rejected)]
        alone = [[kept.message] for kept in again if kept.message is not None]
        runs = self._receiver.carry_out(connection, self.ledger_id(), alone, singly=singly)
        changes: list[Change] = []
        changed: list[Kept] = []
        for kept, run in zip(again, runs, strict=True):
            if run.failure is not None:
                if not run.failure.elsewhere:
                    changes.append(Change(run.failure.message, kept.outcome, None, run.failure.error))
                continue
            ((message, outcome),) = run.done
            if said(outcome) != kept.outcome:
                changes.append(Change(message, kept.outcome, said(outcome)))
                changed.append(kept._replace(outcome=said(outcome)))
        elsewhere = sum(run.failure is not None and run.failure.elsewhere for run in runs)
        replayed = len(again) - elsewhere
        statements = [mailbox.count(self.source, {"replayed": replayed})]
        if changed:
            statements.append(inbox_queries.new_outcomes(self.source, ordered, changed))
        connection.send(statements)
        forgotten = sum(kept.message is None for kept in page)
        return Replayed(replayed, changes, len(page) - len(again) - forgotten, forgotten, elsewhere)


class Part(NamedTuple):
    """Messages of one source that are taken in together with those of others, and what could not be read of them."""

    inbox: Inbox
    messages: Sequence[Message]
    refused: Sequence[Refused] = ()


def take_together(parts: Sequence[Part], within: Callable[[Connection], None] | None = None) -> list[Received]:
    """
    Take messages of one or more sources in, in one transaction, which begins with what is to be done `within` it.

    Where more is due than it takes, go on.
    The parts come in order of their sources, so that two processes lock their streams in one order, and are of one
    ledger.

    Raises:
        InvalidCommand: A message is of another source than its inbox.
        ConcurrencyError, LedgerError: As `Inbox.receive`; nothing of it was kept.
    """
    for inbox, messages, _ in parts:
        for message in messages:
            if message.source != inbox.source:
                raise InvalidCommand("message", f"{message.id!r} is of source {message.source!r}, not {inbox.source!r}")

    def work(connection: Connection, singly: bool) -> list[Received]:
        if within is not None:
            within(connection)
        return [inbox.take(connection, messages, refused, singly=singly) for inbox, messages, refused in parts]

    return _in_transaction(parts[0].inbox, work)


def _in_transaction(inbox: Inbox, work: Callable[[Connection, bool], Came]) -> Came:
    """
    Do something in a transaction, again where a race was lost.

    Where one command of many cannot be carried out, as on an account whose log is corrupt, they are carried out
    singly, so that only its own stream stops.
    """
    # Before a connection is taken: the first time it needs one itself.
    inbox.ledger_id()
    singly = False
    for _ in range(ATTEMPTS_MAX):
        try:
            with inbox.database.connection() as connection, connection.transaction():
                return work(connection, singly)
        except (ConcurrencyError, TransactionEnded):
            continue
        except (LedgerError, psycopg.Error) as error:
            if getattr(error, "sqlstate", None) in RETRYABLE | {projector.LOST, "23505"}:
                continue
            if singly or getattr(error, "retryable", False):
                raise
            singly = True
    raise ConcurrencyError(f"The race for these streams was lost {ATTEMPTS_MAX} times. Try again.")


def _nothing() -> Received:
    return Received(Tally(), [], [], [])


def _limit(limit: int) -> int:
    if not 1 <= limit <= _LIMIT_MAX:
        raise InvalidCommand("limit", f"{limit} is not from 1 to {_LIMIT_MAX}")
    return limit


def _letter_id(name: UUID | str) -> str:
    try:
        return str(UUID(str(name)))
    except ValueError:
        raise InvalidCommand(
            "dead letter", f"{str(name)!r:.80} is no id: `ledger dead-letters list` shows them"
        ) from None


def _text(name: str, value: str | None) -> str | None:
    return None if value is None else checked(TEXT, name, value)
