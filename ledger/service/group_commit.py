"""
Commands of all requests, in one batcher: whoever waits at the same time shares a commit.

As `AsyncLedger`, for thousands at once: the answers of a batch come to the event loop together and not one by one, and
one clock looks after all deadlines.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import Final, TypeAlias

from ledger.application import Ledger
from ledger.batch import Done
from ledger.core.commands import Command
from ledger.core.errors import DeadlineExceeded, TooManyRequests

WAITING_MAX: Final = 10_000
"""Commands on their way at once, those of bulk requests included."""

_LOOK_SECONDS: Final = 0.1

_Waiting: TypeAlias = tuple[float, "Future[Done]"]


class GroupCommit:
    """Carries commands out; made and closed in the event loop that it serves."""

    def __init__(self, ledger: Ledger, seconds: float) -> None:
        """`seconds` is how long a command may wait for its turn."""
        self._batcher = ledger.batcher(max_queue=WAITING_MAX)
        self._seconds = seconds
        self._on_their_way = 0
        self._arrived: deque[tuple[asyncio.Future[Done], Future[Done]]] = deque()
        self._is_told = False
        self._due: deque[_Waiting] = deque()
        self._clock: asyncio.TimerHandle | None = None

    async def submit(self, command: Command, scope: str) -> Done:
        """
        Carry out a command: its answer, or its rejection or error, raised.

        Whoever goes away before its turn takes it back; after that it takes place.

        Raises:
            DeadlineExceeded: Its turn did not come in time; nothing was written.
            TooManyRequests: There are too many on their way.
        """
        if self._on_their_way >= WAITING_MAX:
            raise TooManyRequests(f"{WAITING_MAX} commands at once", 1)
        loop = asyncio.get_running_loop()
        self._on_their_way += 1
        try:
            # There is room: it waits for nothing.
            answer = self._batcher.submit(command, scope=scope)
            arrival: asyncio.Future[Done] = loop.create_future()
            self._due.append((time.monotonic() + self._seconds, answer))
            if self._clock is None:
                self._clock = loop.call_later(_LOOK_SECONDS, self._look, loop)
            answer.add_done_callback(lambda done: self._tell(loop, arrival, done))
            try:
                return await arrival
            except asyncio.CancelledError:
                answer.cancel()
                raise
        finally:
            self._on_their_way -= 1

    @property
    def waiting(self) -> int:
        """How many commands wait for their turn."""
        return self._batcher.waiting

    async def close(self) -> None:
        """Take no more, and answer everyone."""
        await asyncio.to_thread(self._batcher.close)
        if self._clock is not None:
            self._clock.cancel()

    def _tell(self, loop: asyncio.AbstractEventLoop, arrival: asyncio.Future[Done], done: Future[Done]) -> None:
        """In the thread of whoever carried it out: wake the loop, once for all that arrives until it looks."""
        self._arrived.append((arrival, done))
        if not self._is_told:
            self._is_told = True
            loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        # First, so that what arrives meanwhile is told anew.
        self._is_told = False
        while self._arrived:
            arrival, done = self._arrived.popleft()
            if arrival.done():
                continue
            try:
                error = done.exception()
            except CancelledError:
                error = DeadlineExceeded("for its turn", self._seconds)
            if error is None:
                arrival.set_result(done.result())
            else:
                arrival.set_exception(error)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take back whose turn did not come in time; one whose turn has come is answered with what became of it."""
        now = time.monotonic()
        while self._due and (self._due[0][0] <= now or self._due[0][1].done()):
            _, answer = self._due.popleft()
            answer.cancel()
        self._clock = loop.call_later(_LOOK_SECONDS, self._look, loop) if self._due else None
