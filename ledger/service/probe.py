"""`Probe`: a question to the database that is asked once at a time, and that nobody waits for longer than a bound."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, Generic, TypeVar

from ledger.core.errors import LedgerError

logger: Final = logging.getLogger("ledger.service")

FRESH_SECONDS: Final = 1.0
"""For how long an answer is good: however many ask, the database is asked once in that time."""

WAIT_SECONDS: Final = 2.0
"""How long anybody waits.  Less than any scraper's patience, of which Prometheus has ten seconds."""

Answer = TypeVar("Answer")


class Probe(Generic[Answer]):
    """
    A question to the database, for whoever watches.

    One that hangs is waited for by nobody, and is not asked again before it ends: a database in trouble is not made
    more of by who looks at it.
    """

    def __init__(self, name: str, question: Callable[[], Answer], threads: Executor) -> None:
        self._name = name
        self._question = question
        self._threads = threads
        self._asked: asyncio.Future[Answer] | None = None
        self._asked_at = 0.0
        self._told = ""

    async def answer(self, seconds: float = WAIT_SECONDS) -> Answer | None:
        """What the database says, at most a second ago; None where it does not, or not in so many seconds."""
        if self._asked is None or (self._asked.done() and time.monotonic() - self._asked_at > FRESH_SECONDS):
            self._asked_at = time.monotonic()
            self._asked = asyncio.get_running_loop().run_in_executor(self._threads, self._question)
            # Taken note of also where nobody waits any more.
            self._asked.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        await asyncio.wait((self._asked,), timeout=seconds)
        if not self._asked.done():
            self._tell("no answer in time")
            return None
        try:
            answer = self._asked.result()
        except LedgerError as error:
            self._tell(" ".join(str(error).split()))
            return None
        self._told = ""
        return answer

    def _tell(self, problem: str) -> None:
        """Once, however often it is asked again."""
        if problem != self._told:
            logger.warning("%s: %s", self._name, problem)
        self._told = problem
