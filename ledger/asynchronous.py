"""The ledger for asyncio: commands are awaited in a batcher, questions in a thread.  That, and nothing more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from ledger.application import Ledger
from ledger.batch import Done
from ledger.core.commands import Command
from ledger.core.errors import DeadlineExceeded

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


class AsyncLedger:
    """
    A ledger whose callers are coroutines: any number of them share transactions.

    The ledger itself stays the caller's, to close.
    """

    def __init__(self, ledger: Ledger, *, max_queue: int = 10_000, **batcher: Any) -> None:
        """At most `max_queue` commands are on their way, others wait for room; further options as of `batcher`."""
        self.ledger = ledger
        self._batcher = ledger.batcher(max_queue=max_queue, **batcher)
        # Nobody is handed over for whom the queue has no room: that would stop the loop.
        self._room = asyncio.Semaphore(max_queue)

    async def submit(self, command: Command, *, scope: str = "", deadline_seconds: float | None = None) -> Done:
        """
        Carry out a command: its answer, or its rejection or error, raised.

        A coroutine that is cancelled takes its command back if its turn has not come; else it takes place.

        Raises:
            DeadlineExceeded: Its turn did not come in time; nothing was written.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._room.acquire()
        except TimeoutError:
            assert deadline_seconds is not None
            raise DeadlineExceeded("for room in the queue", deadline_seconds) from None
        try:
            left = None if deadline_seconds is None else max(deadline_seconds - (time.monotonic() - began), 0.001)
            return await asyncio.wrap_future(self._batcher.submit(command, scope=scope, deadline_seconds=left))
        finally:
            self._room.release()

    async def ask(
        self, question: Callable[Concatenate[Ledger, Asked], Answer], *how: Asked.args, **named: Asked.kwargs
    ) -> Answer:
        """Ask the ledger something, in a thread: `await ledger.ask(Ledger.balance, "alice")`."""
        return await asyncio.to_thread(question, self.ledger, *how, **named)

    async def close(self) -> None:
        """Take no more, and answer everyone."""
        await asyncio.to_thread(self._batcher.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
