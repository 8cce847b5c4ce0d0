"""A partition that a consumer was given: its claim, what waits of it, and where the next record is awaited."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

import confluent_kafka

from ledger.order.decoders import BODY_BYTES_MAX
from ledger.storage.offsets import Claim, Place

BACKOFF_SECONDS: Final = 0.2
BACKOFF_SECONDS_MAX: Final = 10.0

_DOUBT_SECONDS: Final = 60.0
"""For how long after a claim a hole is looked at twice: as long as the client may wait for a broker's answer."""


@dataclass(eq=False, slots=True)
class Partition:
    """A partition that was given to us."""

    place: Place
    claim: Claim | None = None
    epoch: int = 0
    """0 until it is claimed, and read from where the claim says."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: deque[confluent_kafka.Message] = field(default_factory=deque)
    waiting_bytes: int = 0
    at_work: Future[None] | None = None
    next_offset: int | None = None
    """Where the group stands."""

    awaited: int = 0
    """Behind the last record that came, from where it was claimed."""

    doubted: int | None = None
    """Where the next one was instead."""

    doubts_until: float = 0.0
    astray: bool = False
    """What comes is not what is awaited: the client has to be sent back."""

    gone: bool = False
    """Given up, or taken away."""

    paused: bool = False
    stopped: bool = False
    """A person has to look at it."""

    at_end: bool = False
    losses: int = 0
    """How often in a row it was taken by others, or could not be claimed."""

    claim_at: float = 0.0

    def take(self, count: int) -> list[confluent_kafka.Message]:
        """The next records, in order; without any, the work is over."""
        with self.lock:
            if self.gone or not self.epoch or not self.waiting:
                self.at_work = None
                return []
            records: list[confluent_kafka.Message] = []
            size = 0
            while self.waiting and len(records) < count and size <= BODY_BYTES_MAX:
                records.append(self.waiting.popleft())
                size += len(records[-1])
            self.waiting_bytes -= size
            return records

    def go_on(self, claim: Claim) -> None:
        """It is read from where its claim says; what was fetched before that is not wanted any more."""
        assert self.next_offset is not None
        with self.lock:
            self.drop()
            self.awaited, self.doubted = self.next_offset, None
            self.doubts_until = time.monotonic() + _DOUBT_SECONDS
            self.astray = self.at_end = False
            self.epoch = claim.epoch

    def skips(self, offset: int) -> bool:
        """
        Whether what comes at this offset seems to skip records, which are to be looked for again; under the lock.

        A client that was told where to go on may go to where it was before all the same, as soon as the answer to an
        earlier question comes in (librdkafka's issue 2256).  Records that no consumer sees leave holes, too: one that
        is found twice is believed.
        """
        if offset <= self.awaited:
            return False
        if not self.astray and offset != self.doubted and time.monotonic() <= self.doubts_until:
            self.astray, self.doubted = True, offset
        return self.astray

    def put(self, record: confluent_kafka.Message, offset: int) -> None:
        """A record that came; under the lock."""
        self.awaited = offset + 1
        self.at_end = False
        self.waiting.append(record)
        self.waiting_bytes += len(record)

    def drop(self) -> None:
        """What waits is not wanted any more; under the lock."""
        self.waiting.clear()
        self.waiting_bytes = 0

    def let_go(self) -> None:
        """It is somebody else's, as far as we know: nothing of it is worked on until it is claimed again."""
        with self.lock:
            self.epoch = 0
            self.drop()
            self.back_off()
            # Last, and under the lock: from here on another worker may begin.
            self.at_work = None

    def is_due(self, now: float) -> bool:
        """Whether it is to be claimed."""
        return self.claim is None and not self.stopped and self.at_work is None and now >= self.claim_at

    def back_off(self) -> None:
        """Claim it again, but not at once, and not when all others do."""
        self.claim = None
        self.losses += 1
        longest = min(BACKOFF_SECONDS * 2**self.losses, BACKOFF_SECONDS_MAX)
        self.claim_at = time.monotonic() + random.uniform(longest / 2, longest)  # noqa: S311  (jitter is no secret)
