"""
Group commit: what many callers ask for at once is one transaction.

    submit → queue → lane → handle → each caller's own answer

Commands that arrive while a batch is on its way form the next one, so that an idle ledger adds no wait and a busy one
shares its commits.  Whoever was answered together is likely to ask again together: the next batch is given a moment to
become as large as the one before, or one half of the callers would always wait for the other.  A few lanes work at
once, never on accounts that their commands name in common: what they would wait for in the database waits in the queue
instead.  A command that names a hold or a transaction says nothing of its accounts, and may wait in its lane.
"""

from __future__ import annotations

import atexit
import heapq
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from typing import Final, Self, TypeAlias

from psycopg.errors import LockNotAvailable

from ledger.batch import Batch, Done, Outcome
from ledger.core.commands import BATCH_MAX, Command
from ledger.core.errors import (
    BatcherClosed,
    ConcurrencyError,
    ConnectionLost,
    DatabaseUnavailable,
    DeadlineExceeded,
    InvalidCommand,
    LedgerError,
)
from ledger.writer import Writer, check

logger: Final = logging.getLogger("ledger.batcher")

LANES_MAX: Final = 64
QUEUE_MAX: Final = 1_000_000
SECONDS_MAX: Final = 86_400

_LOOK_AHEAD: Final = 4
"""How many batches' worth of commands are looked through for those whose accounts are free."""

_PATIENCE: Final = 0.25
"""Of the time that a batch took: for how long the next one may wait for those who were answered."""

_PATIENCE_SECONDS_MAX: Final = 0.05
"""And no longer than this: a batch that waited for a lock says nothing of how fast its callers are."""

_OF_THE_SERVER: Final = ("08", "53", "57P")
"""SQLSTATEs that no command is the cause of: no part of the batch would fare better."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A command on its way to its answer."""

    command: Command
    scope: str
    touches: frozenset[str]
    """The accounts that it names, and the transaction that it takes up."""

    arrived: float
    deadline_seconds: float = math.inf
    transaction_id: str | None = None
    is_begun: bool = False
    answer: Future[Done] = field(default_factory=Future)

    def begin(self) -> bool:
        """Whether it is to be answered from here on, once; who waits for one that was cancelled hears of that."""
        if self.is_begun:
            return False
        self.is_begun = True
        return self.answer.set_running_or_notify_cancel()

    @property
    def deadline(self) -> float:
        """When its turn has to have come."""
        return self.arrived + self.deadline_seconds


_Answer: TypeAlias = tuple[_Asked, Outcome | BaseException]


@dataclass(slots=True, frozen=True)
class _Part:
    """Commands that are carried out in one transaction: a batch, or some of one that failed."""

    asked: list[_Asked]
    in_doubt: bool = False
    """Some of it may have been done before its connection broke."""

    lock_seconds: float | None = None
    """For how long it waits for a lock, if not for as long as others do."""


class Batcher:
    """
    Carries out commands of many callers together; made by `Ledger.batcher`.

    Safe to use from any number of threads.  Close it, or use it as a context manager: everything that was submitted
    is answered first.

    The done-callbacks of its futures run in its own threads, which carry nothing out meanwhile.
    """

    def __init__(self, writer: Writer, *, max_batch: int, max_wait: float, max_queue: int, lanes: int) -> None:
        for name, given, least, most in (
            ("max_batch", max_batch, 1, BATCH_MAX),
            ("max_wait", max_wait, 0, SECONDS_MAX),
            ("max_queue", max_queue, 1, QUEUE_MAX),
            ("lanes", lanes, 1, LANES_MAX),
        ):
            kinds = (int, float) if name == "max_wait" else (int,)
            if isinstance(given, bool) or not isinstance(given, kinds) or not least <= given <= most:
                raise InvalidCommand(name, f"{given!r} is not from {least} to {most}")
        self._queue = _Queue(max_batch, max_wait, max_queue)
        self._process = os.getpid()
        # Neither the lanes nor the end of the process keep the batcher alive, so that one that was forgotten ends.
        for number in range(lanes):
            self._queue.begin(partial(_work, writer, self._queue), f"ledger-lane-{number}")
        weakref.finalize(self, self._queue.finish).atexit = False
        # What was registered last ends first: an embedded server, which was there before, goes on until this is done.
        atexit.register(self._queue.finish)

    def submit(self, command: Command, *, scope: str = "", deadline_seconds: float | None = None) -> Future[Done]:
        """
        Hand a command over; the future has its answer, or raises its rejection or error.

        Waits while the queue is full, but for a done-callback's own command, which would wait for itself and is taken.
        With `deadline_seconds` it is carried out only if its turn comes by then, and else answered with
        `DeadlineExceeded`; one whose turn has come is answered with what became of it.  A future can be cancelled
        until its turn comes.

        Raises:
            BatcherClosed: It takes no more, or belongs to another process.
            DeadlineExceeded: The queue was full until then.
            InvalidCommand: It is not a command.
        """
        check([command], scope)
        check_deadline(deadline_seconds)
        if os.getpid() != self._process:
            raise BatcherClosed("it was made before this process was forked off, and its threads stayed behind")
        touches = {*command.accounts} if command.refers_to is None else {*command.accounts, command.refers_to}
        within = math.inf if deadline_seconds is None else deadline_seconds
        asked = _Asked(command, scope, frozenset(touches), time.monotonic(), within)
        self._queue.put(asked)
        return asked.answer

    def handle(self, command: Command, *, scope: str = "", deadline_seconds: float | None = None) -> Done:
        """
        Submit a command and wait for its answer.

        Raises:
            InvalidCommand: A done-callback would wait here for the thread that it runs in.
        """
        if self._queue.is_own_thread:
            raise InvalidCommand("handle", "a done-callback must not wait for an answer; submit its command")
        return self.submit(command, scope=scope, deadline_seconds=deadline_seconds).result()

    @property
    def waiting(self) -> int:
        """How many commands wait for their turn."""
        return self._queue.waiting

    def close(self) -> None:
        """
        Take no more, carry out what was taken, and answer everyone.

        A done-callback that closes it does not wait: what is left is carried out after it.
        """
        self._queue.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Queue:
    """Commands that wait for their turn, the accounts that are being written to, and the threads that see to it."""

    def __init__(self, max_batch: int, max_wait: float, max_queue: int) -> None:
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._process = os.getpid()
        # A batcher that was forgotten may be collected, and closed, while one of its own threads is within the lock.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._due = threading.Condition(self._lock)
        self._waiting: deque[_Asked] = deque()
        self._busy: set[str] = set()
        self._expected, self._until = 0, 0.0
        self._deadlines: list[tuple[float, int, _Asked]] = []
        self._numbers = count()
        self._threads: list[threading.Thread] = []
        self._has_clock = False
        self._is_closed = False

    def begin(self, work: Callable[[], None], name: str) -> None:
        """Have a thread of its own do something."""
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    @property
    def is_own_thread(self) -> bool:
        """Whether this runs in one of its threads, as done-callbacks do."""
        return threading.current_thread() in self._threads

    def put(self, asked: _Asked) -> None:
        """
        Take a command in, as soon as there is room.

        Raises:
            BatcherClosed, DeadlineExceeded: It was not taken.
        """
        with self._lock:
            if len(self._waiting) >= self._max_queue and not self.is_own_thread:
                # Room is made by its own threads: if they waited for it, nobody would be answered any more.
                self._await_room(asked)
            if self._is_closed:
                raise BatcherClosed("it is closed")
            if asked.deadline_seconds != math.inf:
                self._watch(asked)
            self._waiting.append(asked)
            if len(self._waiting) == 1 or self._pause() is None:
                # In between, nobody has anything to do but to wait for the last one.
                self._work.notify()

    def take(self) -> list[_Asked]:
        """The next batch, once there is one; none when all is taken and no more can come."""
        with self._lock:
            while True:
                wait = self._pause()
                if wait is None and (batch := self._pick()):
                    self._until = 0.0
                    return batch
                if self._is_closed and not self._waiting:
                    # Whoever else looks for work finds none either.
                    self._work.notify_all()
                    self._due.notify_all()
                    return []
                self._work.wait(wait)

    def done(self, answers: Sequence[_Answer], rest: Iterable[_Part], seconds: float) -> None:
        """The accounts of those who are answered are free again, after so many seconds; not those of the rest."""
        with self._lock:
            self._busy.difference_update(*(asked.touches for asked, _ in answers))
            self._busy.update(*(asked.touches for part in rest for asked in part.asked))
            self._expected = len(answers) + len(self._waiting)
            patience = min(_PATIENCE * seconds, _PATIENCE_SECONDS_MAX)
            self._until = time.monotonic() + patience if self._expected > 1 else 0.0
            if self._waiting:
                self._work.notify_all()

    @property
    def waiting(self) -> int:
        """How many wait, those included who were too late or took it back."""
        return len(self._waiting)

    def finish(self) -> None:
        """Take no more; and wait until everyone is answered, unless a thread of its own asks for it."""
        if os.getpid() != self._process:
            # The threads stayed behind, and one of them may have held the lock.
            return
        with self._lock:
            self._is_closed = True
            for condition in (self._work, self._room, self._due):
                condition.notify_all()
        if self.is_own_thread:
            return
        for thread in self._threads:
            thread.join()
        atexit.unregister(self.finish)

    def _await_room(self, asked: _Asked) -> None:
        now = time.monotonic()
        # Who is late or took it back waits for nothing.
        self._waiting = deque(one for one in self._waiting if not _is_dropped(one, now))
        left = None if asked.deadline_seconds == math.inf else asked.deadline - now
        if not self._room.wait_for(lambda: self._is_closed or len(self._waiting) < self._max_queue, left):
            raise DeadlineExceeded("for room in the queue", asked.deadline_seconds)

    def _pause(self) -> float | None:
        """For how long a batch may still grow; None if not at all."""
        if not self._waiting or self._is_closed or len(self._waiting) >= self._max_batch:
            return None
        until = self._waiting[0].arrived + self._max_wait
        if len(self._waiting) < self._expected:
            until = max(until, self._until)
        left = until - time.monotonic()
        return left if left > 0 else None

    def _pick(self) -> list[_Asked]:
        """Those in front whose accounts are free; whoever has to stay behind is overtaken by nobody on its accounts."""
        batch: list[_Asked] = []
        behind: list[_Asked] = []
        closed: set[str] = set()
        before, now = len(self._waiting), time.monotonic()
        while self._waiting and len(batch) < self._max_batch and len(behind) < _LOOK_AHEAD * self._max_batch:
            asked = self._waiting.popleft()
            if _is_dropped(asked, now):
                continue
            if self._busy.isdisjoint(asked.touches) and closed.isdisjoint(asked.touches):
                if asked.begin():
                    batch.append(asked)
            else:
                closed |= asked.touches
                behind.append(asked)
        self._waiting.extendleft(reversed(behind))
        self._busy.update(*(asked.touches for asked in batch))
        self._room.notify(before - len(self._waiting))
        return batch

    def _watch(self, asked: _Asked) -> None:
        if len(self._deadlines) > 2 * self._max_queue:
            # Most of them were answered long before.
            self._deadlines = [entry for entry in self._deadlines if not entry[-1].answer.done()]
            heapq.heapify(self._deadlines)
        if not self._has_clock:
            self.begin(self._tell_late, "ledger-deadlines")
            self._has_clock = True
        heapq.heappush(self._deadlines, (asked.deadline, next(self._numbers), asked))
        self._due.notify()

    def _tell_late(self) -> None:
        """Answer those whose deadline passes before their turn comes, when it does."""
        while True:
            late: list[_Asked] = []
            with self._lock:
                now = time.monotonic()
                while self._deadlines and self._deadlines[0][0] <= now:
                    _, _, asked = heapq.heappop(self._deadlines)
                    if asked.begin():
                        late.append(asked)
                if not late:
                    if self._is_closed and not self._waiting:
                        return
                    self._due.wait(self._deadlines[0][0] - now if self._deadlines else None)
            for asked in late:
                _tell(asked, _too_late(asked))


def _is_dropped(asked: _Asked, now: float) -> bool:
    """Whether nobody carries it out any more: it was cancelled, or is late, which the clock tells."""
    if asked.answer.cancelled():
        asked.begin()
        return True
    return asked.deadline <= now


def check_deadline(seconds: object) -> None:
    """
    A deadline is a number of seconds that lies ahead, or None.

    Raises:
        InvalidCommand: It is something else.
    """
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= SECONDS_MAX:
        raise InvalidCommand("deadline_seconds", f"{seconds!r} is not above 0 and at most {SECONDS_MAX}")


def _work(writer: Writer, queue: _Queue) -> None:
    """What a lane does, until there is no more to do: each part of a batch is answered before the next one is tried."""
    while batch := queue.take():
        parts = [_Part(batch)]
        while parts:
            begun = time.monotonic()
            answers, smaller = _carried_out(writer, parts.pop(), begun)
            parts += reversed(smaller)
            if answers:
                queue.done(answers, parts, time.monotonic() - begun)
            for asked, answer in answers:
                _tell(asked, answer)


def _carried_out(writer: Writer, part: _Part, begun: float) -> tuple[list[_Answer], list[_Part]]:
    """
    Carry a part out: its answers, and what is to be tried in smaller parts.

    The ids of the transactions stay the same, and what may have been done before is looked up by them.
    """
    # What may have been done is looked up, however late it is.
    late = [] if part.in_doubt else [one for one in part.asked if one.deadline <= begun]
    asked = [one for one in part.asked if one.deadline > begun] if late else part.asked
    answers: list[_Answer] = [(one, _too_late(one)) for one in late]
    if not asked:
        return answers, []
    prepared: Batch | None = None
    try:
        prepared = writer.prepared((one.command, one.scope, one.transaction_id) for one in asked)
        for one, transaction_id in zip(asked, prepared.ids, strict=True):
            one.transaction_id = transaction_id
        prepared.in_doubt, prepared.lock_seconds = part.in_doubt, part.lock_seconds
        answers += zip(asked, writer.carry_out(prepared), strict=True)
    except Exception as error:  # noqa: BLE001  (it is raised in the callers, to whom it belongs)
        failed = _Part(asked, prepared is not None and prepared.in_doubt, part.lock_seconds)
        smaller = [] if prepared is None else _halves(failed, error, time.monotonic() - begun)
        if not smaller:
            answers += [(one, _own(_unknown(error) if failed.in_doubt else error)) for one in asked]
        return answers, smaller
    return answers, []


def _halves(failed: _Part, error: Exception, seconds: float) -> list[_Part]:
    """
    What is to be tried again of a part that failed after so many seconds; nothing, if all of it fails for good.

    Whatever a command is to blame for, it is alone with in the end.  Where accounts could not be had, those who have
    an account in common stay together, and all parts together wait for locks no longer than the whole did.
    """
    if _is_of_the_server(error):
        return []
    groups, lock_seconds = [[asked] for asked in failed.asked], failed.lock_seconds
    if isinstance(error.__cause__, LockNotAvailable):
        groups = _connected(failed.asked)
        # Of so many groups there are less than twice as many parts.
        lock_seconds = lock_seconds or seconds / (2 * len(groups))
    if len(groups) == 1:
        return []
    middle = len(groups) // 2
    return [_Part([*chain(*half)], failed.in_doubt, lock_seconds) for half in (groups[:middle], groups[middle:])]


def _connected(batch: Sequence[_Asked]) -> list[list[_Asked]]:
    """The commands in groups that have no account in common, each in order; those without any are together, too."""
    leaders: dict[str, str] = {}

    def leader(account: str) -> str:
        while (above := leaders.setdefault(account, account)) != account:
            leaders[account] = account = leaders[above]
        return account

    for asked in batch:
        for account in asked.touches:
            leaders[leader(account)] = leader(next(iter(asked.touches)))
    groups: dict[str, list[_Asked]] = {}
    for asked in batch:
        groups.setdefault(leader(next(iter(asked.touches), "")), []).append(asked)
    return list(groups.values())


def _tell(asked: _Asked, answer: Outcome | BaseException) -> None:
    try:
        if isinstance(answer, Done):
            asked.answer.set_result(answer)
        else:
            asked.answer.set_exception(answer)
    except BaseException:
        # Of a callback: an Exception is logged by the future itself, and anything else would end this thread.
        logger.exception("A done-callback of a command raised; others are answered all the same.")


def _too_late(asked: _Asked) -> DeadlineExceeded:
    return DeadlineExceeded("for its turn", asked.deadline_seconds)


def _unknown(error: Exception) -> Exception:
    """What is said of a part that may have been done before, where that could not be looked up."""
    if isinstance(error, ConnectionLost) or not isinstance(error, ConcurrencyError | DatabaseUnavailable):
        return error
    lost = ConnectionLost(
        f"The connection to PostgreSQL was lost, and what had become of the change could not be looked up ({error})",
        "Send it again with the same idempotency key: it happens once.",
    )
    lost.__cause__ = error
    return lost


def _own(error: Exception) -> Exception:
    """An error for one caller alone: whoever raises it adds to its traceback."""
    if not isinstance(error, LedgerError):
        return error
    own = copy(error).with_traceback(error.__traceback__)
    own.__cause__ = error.__cause__
    return own


def _is_of_the_server(error: Exception) -> bool:
    """Whether no command is to blame: what is alone would fail alike, or its outcome is as unknown."""
    if isinstance(error, ConnectionLost):
        return True
    return isinstance(error, DatabaseUnavailable) and (
        error.sqlstate is None or error.sqlstate.startswith(_OF_THE_SERVER)
    )
