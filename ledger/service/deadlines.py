"""The deadlines of messages, while the service runs: gaps that outlast their wait, messages to be tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final

from ledger.core.errors import LedgerError
from ledger.inbox import Inbox
from ledger.service.desk import Desk

logger: Final = logging.getLogger("ledger.service")

TICK_SECONDS: Final = 1.0


@asynccontextmanager
async def acting_on_deadlines(desk: Desk) -> AsyncIterator[None]:
    """Tick the inboxes every second in a thread of their own, until the desk ends; several processes may at once."""
    if not desk.inboxes:
        yield
        return
    with ThreadPoolExecutor(1, "ledger-deadlines") as thread:
        ticking = asyncio.create_task(_tick(desk, thread))
        try:
            yield
        finally:
            desk.end()
            await ticking


async def _tick(desk: Desk, thread: ThreadPoolExecutor) -> None:
    told = dict.fromkeys(desk.inboxes, "")
    while not desk.ending.is_set():
        for source, inbox in desk.inboxes.items():
            problem = await asyncio.get_running_loop().run_in_executor(thread, _ticked, desk, inbox)
            # Once, however often it is tried again.
            if problem and problem != told[source]:
                logger.warning("deadlines of %s: %s", source, problem)
            told[source] = problem
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await desk.ending.wait()
        except TimeoutError:
            continue


def _ticked(desk: Desk, inbox: Inbox) -> str:
    """Act on what is due, a transaction at a time; what went wrong, if anything did."""
    try:
        for _ in inbox.ticking():
            if desk.ending.is_set():
                break
    except LedgerError as error:
        return " ".join(str(error).split())
    except Exception as error:
        # Whatever it is, the next second is another try.
        logger.exception("deadlines of %s", inbox.source)
        return type(error).__name__
    return ""
