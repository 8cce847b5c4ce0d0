"""
The stamper: what the outbox holds → the feed, by one at a time.

Any number of processes may run one.  Whoever has the lease stamps, the others stand by and take over when it is let go
or its time is over.  One that lost the lease while it stood still stamps nothing, and stands by.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import Final, Self

from ledger.core.errors import InvalidCommand, LedgerError
from ledger.storage import feed, leases
from ledger.storage.database import Database
from ledger.storage.leases import LeaseLost

logger: Final = logging.getLogger("ledger.feed")

EVENTS_MAX: Final = 10_000
"""Stamped in one transaction, unless it is said otherwise."""

LEASE_SECONDS: Final = 10.0
_LEASE_SECONDS_MAX: Final = 3_600.0

CLOCK_SECONDS: Final = 1.0
"""How long the clock of the feed stands at most while there is nothing to stamp."""

PAUSE_SECONDS: Final = (0.01, 0.5)
"""Between two looks at an outbox that is empty: at first, and at most.  It doubles from one to the next."""


class Pause:
    """Waits longer each time that there is nothing to do, and briefly again after there was."""

    def __init__(self, shortest: float = PAUSE_SECONDS[0], longest: float = PAUSE_SECONDS[1]) -> None:
        self._shortest, self._longest = shortest, longest
        self._next = shortest
        self._ended = threading.Event()

    def over(self) -> None:
        """Begin anew: there was something to do."""
        self._next = self._shortest

    def wait(self) -> bool:
        """Wait; whether to go on."""
        ended = self._ended.wait(self._next)
        self._next = min(self._next * 2, self._longest)
        return not ended

    def end(self, *_: object) -> None:
        """Let nobody wait any more; from any thread or signal handler."""
        self._ended.set()

    @property
    def ended(self) -> bool:
        """Whether it was ended."""
        return self._ended.is_set()


class Stamper:
    """
    Stamps under a lease; made by `Ledger.stamper`.

    As a context manager it does so in a thread of its own until it is closed.
    """

    def __init__(
        self,
        database: Database,
        *,
        limit: int = EVENTS_MAX,
        lease_seconds: float = LEASE_SECONDS,
        clock_seconds: float = CLOCK_SECONDS,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        if type(limit) is not int or not 1 <= limit <= feed.BATCH_MAX:
            raise InvalidCommand("limit", f"{limit!r} is not a number of events from 1 to {feed.BATCH_MAX}")
        if not 0 < lease_seconds <= _LEASE_SECONDS_MAX:
            raise InvalidCommand("lease_seconds", f"{lease_seconds!r} is not above 0 and at most {_LEASE_SECONDS_MAX}")
        self.owner = f"{socket.gethostname()}/{os.getpid()}"
        self._database = database
        self._limit = limit
        self._lease_seconds = lease_seconds
        self._clock_seconds = clock_seconds
        self._on_problem = on_problem or logger.warning
        self._epoch: int | None = None
        self._pause = Pause()
        self._thread: threading.Thread | None = None

    @property
    def epoch(self) -> int | None:
        """In which epoch it has the lease; None while it stands by."""
        return self._epoch

    def step(self) -> int:
        """
        Stamp one batch; how many events: none also while somebody else has the lease.

        Where nothing waits, everything is known until now: the clock of the feed is moved, at most once a second.

        Raises:
            CorruptLog: What waits contradicts the log or the feed; nothing was stamped.
        """
        with self._database.connection() as connection:
            if not feed.is_waiting(connection):
                # The lease is left as it is: nobody is kept from anything while there is nothing to do.
                feed.move_clock(connection, self._clock_seconds)
                return 0
            if self._epoch is None:
                self._epoch = leases.claim(connection, feed.STAMPER, self.owner, self._lease_seconds)
            if self._epoch is None:
                return 0
            try:
                return feed.stamp(connection, self._epoch, self._lease_seconds, self._limit)
            except LeaseLost:
                self._epoch = None
                return 0

    def run(self) -> None:
        """Stamp until it is stopped, through whatever goes wrong: that is told once, and tried again."""
        told = ""
        while not self._pause.ended:
            stamped, problem = 0, ""
            try:
                stamped = self.step()
            except LedgerError as error:
                problem = str(error)
            # Once, however often it is tried again.
            if problem and problem != told:
                self._on_problem(problem)
            told = problem
            if stamped:
                self._pause.over()
            else:
                self._pause.wait()

    def stop(self) -> None:
        """Let `run` end after its present batch; from any thread or signal handler."""
        self._pause.end()

    def close(self) -> None:
        """End the thread, if there is one, and let the lease go."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        epoch, self._epoch = self._epoch, None
        if epoch is not None:
            with self._database.connection() as connection:
                leases.let_go(connection, feed.STAMPER, epoch)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.run, name="ledger-stamper", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
