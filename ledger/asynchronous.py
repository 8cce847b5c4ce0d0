"""The ledger for asyncio: commands are awaited in a batcher, questions in a thread.  That, and nothing more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from ledger.application import Ledger
from ledger.batch import Done
from ledger.batcher import check_deadline
from ledger.core.commands import Command
from ledger.core.errors import BatcherClosed, DeadlineExceeded

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


class AsyncLedger:
    """
    A ledger whose callers are coroutines: any number of them share transactions.

    It serves one event loop, and another one when that is closed.  The ledger itself stays the caller's, to close.
    """

    def __init__(self, ledger: Ledger, *, max_queue: int = 10_000, **batcher: Any) -> None:
        """At most `max_queue` commands are on their way, others wait for room; further options as of `batcher`."""
        self.ledger = ledger
        self._batcher = ledger.batcher(max_queue=max_queue, **batcher)
        self._max_queue = max_queue
        self._loop: asyncio.AbstractEventLoop | None = None

    async def submit(self, command: Command, *, scope: str = "", deadline_seconds: float | None = None) -> Done:
        """
        Carry out a command: its answer, or its rejection or error, raised.

        A coroutine that is cancelled takes its command back if its turn has not come; else it takes place.

        Raises:
            BatcherClosed: It takes no more, or serves another event loop.
            DeadlineExceeded: Its turn did not come in time; nothing was written.
            InvalidCommand: It is not a command.
        """
        check_deadline(deadline_seconds)
        room = self._room_in(asyncio.get_running_loop())
        began = time.monotonic()
        try:
            async with asyncio.timeout(deadline_seconds):
                await room.acquire()
        except TimeoutError:
            assert deadline_seconds is not None
            raise DeadlineExceeded("for room in the queue", deadline_seconds) from None
        try:
            left = None if deadline_seconds is None else max(deadline_seconds - (time.monotonic() - began), 0.001)
            return await asyncio.wrap_future(self._batcher.submit(command, scope=scope, deadline_seconds=left))
        finally:
            room.release()

    async def ask(
        self, question: Callable[Concatenate[Ledger, Asked], Answer], *how: Asked.args, **named: Asked.kwargs
    ) -> Answer:
        """Ask the ledger something, in a thread: `await ledger.ask(Ledger.balance, "alice")`."""
        return await asyncio.to_thread(question, self.ledger, *how, **named)

    def _room_in(self, loop: asyncio.AbstractEventLoop) -> asyncio.Semaphore:
        """Nobody is handed over for whom the queue has no room: that would stop the loop."""
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise BatcherClosed("it serves another event loop")
            self._loop, self._room = loop, asyncio.Semaphore(self._max_queue)
        return self._room

    async def close(self) -> None:
        """Take no more, and answer everyone."""
        await asyncio.to_thread(self._batcher.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
