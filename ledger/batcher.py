"""
Group commit: what many callers ask for at once is one transaction.

    submit → queue → lane → handle → each caller's own answer

Commands that arrive while a batch is on its way form the next one, so that an idle ledger adds no wait and a busy one
shares its commits.  Whoever was answered together is likely to ask again together: the next batch is given a moment to
become as large as the one before, or one half of the callers would always wait for the other.  A few lanes work at
once, never on the same accounts: what they would wait for in the database waits in the queue instead.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Self

from ledger.batch import Batch, Done, Outcome
from ledger.core.commands import BATCH_MAX, Command
from ledger.core.errors import (
    BatcherClosed,
    ConnectionLost,
    DatabaseUnavailable,
    DeadlineExceeded,
    InvalidCommand,
)
from ledger.writer import Writer, check

LANES_MAX: Final = 64
QUEUE_MAX: Final = 1_000_000
SECONDS_MAX: Final = 86_400

_LOOK_AHEAD: Final = 4
"""How many batches' worth of commands are looked through for those whose accounts are free."""

_PATIENCE: Final = 0.25
"""Of the time that a batch took: for how long the next one may wait for those who were answered."""

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
    transaction_id: str | None = None
    is_late: bool = False
    answer: Future[Done] = field(default_factory=Future)


class Batcher:
    """
    Carries out commands of many callers together; made by `Ledger.batcher`.

    Safe to use from any number of threads.  Close it, or use it as a context manager: everything that was submitted
    is answered first.
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
        self._lanes = [
            threading.Thread(target=_work, args=(writer, self._queue), name=f"ledger-lane-{number}", daemon=True)
            for number in range(lanes)
        ]
        for lane in self._lanes:
            lane.start()
        self._finish = weakref.finalize(self, _finish, self._queue, self._lanes, self._process)

    def submit(self, command: Command, *, scope: str = "", deadline_seconds: float | None = None) -> Future[Done]:
        """
        Hand a command over; the future has its answer, or raises its rejection or error.

        Waits while the queue is full.  With `deadline_seconds` it is carried out only if its turn comes by then, and
        else answered with `DeadlineExceeded`; one whose turn has come is answered with what became of it.  A future
        can be cancelled until its turn comes.

        Raises:
            BatcherClosed: It takes no more, or belongs to another process.
            DeadlineExceeded: The queue was full until then.
            InvalidCommand: It is not a command.
        """
        check([command], scope)
        if deadline_seconds is not None:
            _check_deadline(deadline_seconds)
        if os.getpid() != self._process:
            raise BatcherClosed("it was made before this process was forked off, and its threads stayed behind")
        touches = {*command.accounts} if command.refers_to is None else {*command.accounts, command.refers_to}
        asked = _Asked(command, scope, frozenset(touches), time.monotonic())
        self._queue.put(asked, deadline_seconds)
        return asked.answer

    def handle(self, command: Command, *, scope: str = "", deadline_seconds: float | None = None) -> Done:
        """Submit a command and wait for its answer."""
        return self.submit(command, scope=scope, deadline_seconds=deadline_seconds).result()

    @property
    def waiting(self) -> int:
        """How many commands wait for their turn."""
        return self._queue.waiting

    def close(self) -> None:
        """Take no more, carry out what was taken, and answer everyone."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Queue:
    """Commands that wait for their turn, and the accounts that are being written to."""

    def __init__(self, max_batch: int, max_wait: float, max_queue: int) -> None:
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._due = threading.Condition(self._lock)
        self._waiting: deque[_Asked] = deque()
        self._busy: set[str] = set()
        self._expected, self._until = 0, 0.0
        self._deadlines: list[tuple[float, int, float, _Asked]] = []
        self._numbers = count()
        self._clock: threading.Thread | None = None
        self._is_closed = False

    def put(self, asked: _Asked, seconds: float | None) -> None:
        """
        Take a command in, as soon as there is room.

        Raises:
            BatcherClosed, DeadlineExceeded: It was not taken.
        """
        with self._lock:
            if len(self._waiting) >= self._max_queue:
                # Who is late or took it back has been answered, and waits for nothing.
                self._waiting = deque(one for one in self._waiting if not (one.is_late or one.answer.cancelled()))
            if len(self._waiting) >= self._max_queue and not self._is_closed:
                left = None if seconds is None else asked.arrived + seconds - time.monotonic()
                if not self._room.wait_for(lambda: self._is_closed or len(self._waiting) < self._max_queue, left):
                    assert seconds is not None
                    raise DeadlineExceeded("for room in the queue", seconds)
            if self._is_closed:
                raise BatcherClosed("it is closed")
            self._waiting.append(asked)
            if seconds is not None:
                self._watch(asked, seconds)
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

    def done(self, batch: Sequence[_Asked], seconds: float) -> None:
        """These accounts are free again, after so many seconds."""
        with self._lock:
            self._busy.difference_update(*(asked.touches for asked in batch))
            self._expected = len(batch) + len(self._waiting)
            self._until = time.monotonic() + _PATIENCE * seconds if self._expected > 1 else 0.0
            if self._waiting:
                self._work.notify_all()

    @property
    def waiting(self) -> int:
        """How many wait, those included who were too late or took it back."""
        return len(self._waiting)

    def close(self) -> None:
        """Take no more."""
        with self._lock:
            self._is_closed = True
            for condition in (self._work, self._room, self._due):
                condition.notify_all()

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
        before = len(self._waiting)
        while self._waiting and len(batch) < self._max_batch and len(behind) < _LOOK_AHEAD * self._max_batch:
            asked = self._waiting.popleft()
            if asked.is_late:
                continue
            if self._busy.isdisjoint(asked.touches) and closed.isdisjoint(asked.touches):
                # Cancelled, it is nobody's any more.
                if asked.answer.set_running_or_notify_cancel():
                    batch.append(asked)
            else:
                closed |= asked.touches
                behind.append(asked)
        self._waiting.extendleft(reversed(behind))
        self._busy.update(*(asked.touches for asked in batch))
        self._room.notify(before - len(self._waiting))
        return batch

    def _watch(self, asked: _Asked, seconds: float) -> None:
        if len(self._deadlines) > 2 * self._max_queue:
            # Most of them were answered long before.
            self._deadlines = [entry for entry in self._deadlines if not entry[-1].answer.done()]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (asked.arrived + seconds, next(self._numbers), seconds, asked))
        if self._clock is None:
            self._clock = threading.Thread(target=self._tell_late, name="ledger-deadlines", daemon=True)
            self._clock.start()
        self._due.notify()

    def _tell_late(self) -> None:
        """Answer those whose deadline passes before their turn comes, when it does."""
        while True:
            late: list[tuple[_Asked, float]] = []
            with self._lock:
                now = time.monotonic()
                while self._deadlines and self._deadlines[0][0] <= now:
                    _, _, seconds, asked = heapq.heappop(self._deadlines)
                    # Whose turn has come is running, or has its answer.
                    if not (asked.answer.running() or asked.answer.done()):
                        asked.is_late = True
                        if asked.answer.set_running_or_notify_cancel():
                            late.append((asked, seconds))
                if not late:
                    if self._is_closed and not self._waiting:
                        return
                    self._due.wait(self._deadlines[0][0] - now if self._deadlines else None)
            for asked, seconds in late:
                asked.answer.set_exception(DeadlineExceeded("for its turn", seconds))


def _check_deadline(seconds: object) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= SECONDS_MAX:
        raise InvalidCommand("deadline_seconds", f"{seconds!r} is not above 0 and at most {SECONDS_MAX}")


def _work(writer: Writer, queue: _Queue) -> None:
    """What a lane does, until there is no more to do."""
    while batch := queue.take():
        answers = []
        begun = time.monotonic()
        try:
            answers = list(_answers(writer, batch, in_doubt=False))
        finally:
            queue.done(batch, time.monotonic() - begun)
        for asked, answer in answers:
            if isinstance(answer, Done):
                asked.answer.set_result(answer)
            else:
                asked.answer.set_exception(answer)


def _answers(
    writer: Writer, batch: Sequence[_Asked], in_doubt: bool
) -> Iterator[tuple[_Asked, Outcome | BaseException]]:
    """
    Carry a batch out.  One that fails is resolved part by part: only what fails by itself is answered with the failure.

    The ids of the transactions stay the same, and what may have been done before is looked up by them.
    """
    prepared: Batch | None = None
    try:
        prepared = writer.prepared((asked.command, asked.scope, asked.transaction_id) for asked in batch)
        for asked, transaction_id in zip(batch, prepared.ids, strict=True):
            asked.transaction_id = transaction_id
        prepared.in_doubt = in_doubt
        outcomes = writer.carry_out(prepared)
    except Exception as error:  # noqa: BLE001  (it is raised in the callers, to whom it belongs)
        if prepared is None or len(batch) == 1 or _is_of_the_server(error):
            yield from ((asked, error) for asked in batch)
            return
        middle = len(batch) // 2
        for part in (batch[:middle], batch[middle:]):
            yield from _answers(writer, part, in_doubt=prepared.in_doubt)
    else:
        yield from zip(batch, outcomes, strict=True)


def _is_of_the_server(error: Exception) -> bool:
    """Whether no command is to blame: what is alone would fail alike, or its outcome is as unknown."""
    if isinstance(error, ConnectionLost):
        return True
    return isinstance(error, DatabaseUnavailable) and (
        error.sqlstate is None or error.sqlstate.startswith(_OF_THE_SERVER)
    )


def _finish(queue: _Queue, lanes: Sequence[threading.Thread], process: int) -> None:
    queue.close()
    if os.getpid() != process:
        return
    for lane in lanes:
        # Whoever closes it on getting an answer is a lane itself, and goes on with the rest when it returns.
        if lane is not threading.current_thread():
            lane.join()
