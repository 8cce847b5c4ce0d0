"""
What one process of the service has seen: how its inboxes stood a while ago, and the verification it has run.

Both are kept in memory, within bounds, and gone when the process ends; the ledger itself keeps what lasts.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ledger.application import Ledger
from ledger.audit.report import Report
from ledger.core.errors import LedgerError
from ledger.receiving import Unordered
from ledger.service.desk import Desk

SAMPLE_SECONDS: Final = 15.0
SAMPLES_MAX: Final = 240
"""An hour of them."""

_APART_SECONDS: Final = 1.0
"""Samples are no closer to each other, however often somebody looks."""


class Sample(NamedTuple):
    """How an inbox stood: what was counted, what is held, how many streams are parked, dead letters to decide about."""

    received: int
    held: int
    parked: int
    open_letters: int


class Pulse:
    """How the inboxes stood over the last hour; from the first time that somebody looked."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._samples: dict[str, deque[Sample]] = {}
        self._last = 0.0
        self._since: datetime | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def since(self) -> datetime | None:
        """When the first sample was taken."""
        return self._since

    async def look(self) -> dict[str, list[Sample]]:
        """The samples of each source, the last one of now; others are taken from now on."""
        await self._sample()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._go_on())
        return {source: list(samples) for source, samples in self._samples.items()}

    async def _go_on(self) -> None:
        while not self._desk.ending.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._desk.ending.wait(), SAMPLE_SECONDS)
                return
            # What could not be asked now is asked the next time; whoever looks is told why.
            with suppress(LedgerError, RuntimeError):
                await self._sample()

    async def _sample(self) -> None:
        now = time.monotonic()
        if self._samples and now - self._last < _APART_SECONDS:
            return
        self._last = now
        for source, sample in (await self._desk.ask(sampled, self._desk.ledger)).items():
            self._samples.setdefault(source, deque(maxlen=SAMPLES_MAX)).append(sample)
        self._since = self._since or _now()


def sampled(ledger: Ledger) -> dict[str, Sample]:
    """How each inbox stands."""
    letters = ledger.open_letters()
    found = {}
    for source, count in letters.items():
        stats = ledger.inbox(source, Unordered()).stats()
        found[source] = Sample(stats.counters["received"], stats.held, stats.parked, count)
    return found


@dataclass(slots=True)
class Run:
    """A verification: who wanted it and when, how far it is, and what it came to."""

    actor: str
    began_at: datetime
    total: int
    checked: int = 0
    ended_at: datetime | None = None
    report: Report | None = None
    problem: str | None = None
    seconds: float = 0.0

    @property
    def running(self) -> bool:
        """Whether it is not done."""
        return self.ended_at is None

    @property
    def share(self) -> float:
        """How much is done, from 0 to 1; more events than were there when it began do not count."""
        return min(1.0, self.checked / self.total) if self.total else 0.0


class _Ending(Exception):
    """The service ends: nobody is there to read what would be found."""


@dataclass(slots=True)
class Verification:
    """The one verification that a process runs at a time, in a thread of its own, and the last one that ended."""

    ledger: Ledger
    ending: Callable[[], bool]
    current: Run | None = None
    last: Run | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, actor: str) -> bool:
        """Begin one, unless one runs already."""
        overview = self.ledger.overview()
        with self._lock:
            if self.current is not None:
                return False
            self.current = Run(actor, _now(), overview.stamped + overview.waiting_events)
        threading.Thread(target=self._run, args=(self.current,), name="ledger-verify").start()
        return True

    def _run(self, run: Run) -> None:
        began = time.monotonic()

        def progress(checked: int) -> None:
            run.checked = checked
            if self.ending():
                raise _Ending

        try:
            run.report = self.ledger.verify(progress=progress)
        except _Ending:
            run.problem = "The service ended before it was done."
        except LedgerError as error:
            run.problem = str(error)
        except Exception as error:
            run.problem = f"It could not be done: {type(error).__name__}; the server's log tells more."
            raise
        finally:
            run.seconds = time.monotonic() - began
            run.ended_at = _now()
            with self._lock:
                self.current, self.last = None, run


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)
