"""What the requests to one service share: the ledger, its batcher and its threads, and the limits of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final, ParamSpec, TypeVar

from fastapi import Request

from ledger.access import ApiKeys, Credential
from ledger.application import Ledger
from ledger.core.errors import DeadlineExceeded, ServiceUnavailable, TooManyRequests
from ledger.inbox import Inbox
from ledger.service.gate import Gate
from ledger.service.metrics import Metrics
from ledger.service.tokens import TokenReader
from ledger.service.tracing import TracedCommit
from ledger.settings import ServiceSettings

WATCHERS: Final = 3
"""Threads for what watches: as many questions as are asked at once."""

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


class Desk:
    """
    Where requests are answered; `desk_of(request)` gives it to a route.

    Commands of all requests go through one batcher; questions are asked in a bounded number of threads, and what takes
    long in others, so that an audit keeps nobody waiting.
    """

    def __init__(self, ledger: Ledger, settings: ServiceSettings, inboxes: Sequence[Inbox] = ()) -> None:
        limits = settings.limits
        self.ledger = ledger
        self.settings = settings
        self.inboxes = {inbox.source: inbox for inbox in inboxes}
        self.keys: ApiKeys = ledger.api_keys()
        self.commands = TracedCommit(ledger, limits.append_seconds)
        self.health = ledger.health()
        self.metrics = Metrics(self.health.counts, lambda: self.commands.waiting)
        self._readers = ThreadPoolExecutor(limits.readers, "ledger-reader")
        self._auditors = ThreadPoolExecutor(limits.auditors, "ledger-auditor")
        # Whoever watches is not kept waiting by what is watched.
        self.watchers = ThreadPoolExecutor(WATCHERS, "ledger-watcher")
        self._writers = ThreadPoolExecutor(limits.bulks, "ledger-writer")
        # An export is long, and there are few places for them.
        self.exporters = ThreadPoolExecutor(limits.exports, "ledger-exporter")
        self._bulks = limits.bulks
        tokens = None if settings.tokens is None else TokenReader(settings.tokens)
        self.gate = Gate(self.keys, settings, self.ask, tokens)
        self.ending = asyncio.Event()

    async def ask(self, question: Callable[Asked, Answer], *how: Asked.args, **named: Asked.kwargs) -> Answer:
        """
        Ask something in a reader's thread: `await desk.ask(desk.ledger.balance, "alice")`.

        Raises:
            DeadlineExceeded: It took too long.
        """
        return await _within(self._readers, self.settings.limits.read_seconds, partial(question, *how, **named))

    async def audit(self, question: Callable[Asked, Answer], *how: Asked.args, **named: Asked.kwargs) -> Answer:
        """As `ask`, of what takes longer: verification, proofs, reports."""
        return await _within(self._auditors, self.settings.limits.audit_seconds, partial(question, *how, **named))

    async def append(self, work: Callable[[], Answer]) -> Answer:
        """
        Write something that is no single command, in a thread of its own kind.

        Raises:
            ServiceUnavailable: It took too long; what came of it is known by its key.
        """
        seconds = self.settings.limits.several_seconds
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._writers, work)
        except TimeoutError:
            raise ServiceUnavailable(f"no answer in {seconds:g} s") from None

    async def read(
        self,
        credential: Credential,
        name: str,
        question: Callable[[], Answer],
        accounts: Callable[[Answer], Collection[str]],
    ) -> Answer:
        """
        Ask something about accounts.

        Where an auditor asks, the `accounts` in the answer are put on record before it is given: in the same thread,
        for the price of a commit.  What cannot be recorded is not answered.
        """

        def recorded() -> Answer:
            answer = question()
            if credential.is_auditor:
                self.keys.record_reads(credential, name, accounts(answer))
            return answer

        return await self.ask(recorded)

    @contextmanager
    def bulk(self) -> Iterator[None]:
        """
        Hold one of the few places for requests of many commands.

        Raises:
            TooManyRequests: All are taken.
        """
        self.check_bulk()
        self._bulks -= 1
        try:
            yield
        finally:
            self._bulks += 1

    def check_bulk(self) -> None:
        """As `bulk`, before an answer begins that cannot be refused any more."""
        if self._bulks < 1:
            raise TooManyRequests(f"{self.settings.limits.bulks} requests of many commands at once", 1)

    def end(self) -> None:
        """Let what is followed end, so that the service can."""
        self.ending.set()

    async def close(self) -> None:
        """Answer everyone, and take no more."""
        self.end()
        await self.commands.close()
        for threads in (self._readers, self._auditors, self._writers, self.exporters):
            await asyncio.to_thread(threads.shutdown, wait=True, cancel_futures=True)
        self.watchers.shutdown(wait=False, cancel_futures=True)


def desk_of(request: Request) -> Desk:
    """The desk of the service that was asked."""
    desk: Desk = request.app.state.desk
    return desk


async def _within(threads: ThreadPoolExecutor, seconds: float, question: Callable[[], Answer]) -> Answer:
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.get_running_loop().run_in_executor(threads, question)
    except TimeoutError:
        raise DeadlineExceeded("for its answer", seconds) from None
