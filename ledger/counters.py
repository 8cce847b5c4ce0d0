"""
What the writer of this process has done since it began: plain numbers, for whoever watches.

Nothing is called from here, and nothing of any library for metrics is known: a writer adds to its counters once for
each batch, under a lock that nobody holds for longer than that, and whoever watches takes a copy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from ledger.batch import Done, Outcome

SIZE_BOUNDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0)
"""Of batches, in commands: the upper bound of each bucket, itself included."""

SECONDS_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class Distribution:
    """How often a value was up to each of its bounds and above the one before; the last count is of all above."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    """All values together."""

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Counts:
    """
    What was counted; all of it only grows.

    `appended` are transactions, and `events` theirs; `replayed` commands found their transaction, `rejected` are those
    that a rule refused, by the code of the error; `failed` batches were given up with an error.  A `conflict` is an
    attempt at a batch that lost a race, a retry is an attempt after the first one, whatever was in the way, and
    `connections_lost` are those that broke under an attempt.  `rebuilt` projections did not match the log, and
    were mended before anything was decided on them.
    """

    appended: int = 0
    events: int = 0
    replayed: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    conflicts: int = 0
    retries: int = 0
    connections_lost: int = 0
    rebuilt: int = 0
    sizes: Distribution = field(default_factory=lambda: Distribution(SIZE_BOUNDS))
    """Commands of each batch."""

    seconds: Distribution = field(default_factory=lambda: Distribution(SECONDS_BOUNDS))
    """From taking a batch up to its answer, retries included."""


class Counters:
    """The counts of one writer.  Safe to use from any number of threads."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._lock = Lock()

    def counts(self) -> Counts:
        """What was counted so far; a copy, which does not change any more."""
        with self._lock:
            return deepcopy(self._counts)

    def carried_out(self, outcomes: Sequence[Outcome], seconds: float) -> None:
        """A batch was answered."""
        done = [outcome for outcome in outcomes if isinstance(outcome, Done)]
        new = [outcome for outcome in done if not outcome.replayed]
        events = sum([len(outcome.events) for outcome in new])
        with self._lock:
            counts = self._counts
            counts.appended += len(new)
            counts.events += events
            counts.replayed += len(done) - len(new)
            for outcome in outcomes:
                if not isinstance(outcome, Done):
                    counts.rejected[outcome.code] = counts.rejected.get(outcome.code, 0) + 1
            counts.sizes.add(len(outcomes))
            counts.seconds.add(seconds)

    def failed(self) -> None:
        """A batch was given up with an error."""
        with self._lock:
            self._counts.failed += 1

    def conflict(self) -> None:
        """An attempt lost a race."""
        with self._lock:
            self._counts.conflicts += 1

    def attempt(self, number: int) -> None:
        """An attempt at a batch begins; the first one, of number 0, is no retry."""
        if number:
            with self._lock:
                self._counts.retries += 1

    def connection_lost(self) -> None:
        """The connection broke under an attempt."""
        with self._lock:
            self._counts.connections_lost += 1

    def rebuilt(self, streams: int) -> None:
        """Projections were mended."""
        with self._lock:
            self._counts.rebuilt += streams
