"""
Watch the order in which any consumer gets its messages: in memory, without a database, with Python alone.

>>> from ledger.order.monitor import OrderMonitor
>>> monitor = OrderMonitor()
>>> [str(monitor.check("user-123", sequence)) for sequence in (1, 2, 5, 5, 4)]
['in_order', 'in_order', 'gap', 'duplicate', 'late']
>>> monitor.check("user-123", 9)
Verdict(order=<Order.GAP: 'gap'>, expected=6, missing=3)
>>> monitor.missing("user-123")
((3, 3), (6, 8))
>>> total = monitor.stats().total
>>> total.received, total.in_order, total.duplicates, total.late, total.gaps_opened, total.missing
(6, 2, 1, 1, 2, 4)

It tells and counts; it holds nothing back.  What puts messages in order is the inbox.

Memory is bounded.  Of a stream the latest `holes_max` missing ranges are remembered: what falls below them is
forgotten, and a message from there is *stale*, which may be a duplicate or late.  Beyond `streams_max` streams the
one that was silent longest is forgotten; should it speak again, it begins anew at the number it says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from threading import Lock
from typing import Final

SEQUENCE_MAX: Final = 2**63 - 1
STREAMS_MAX: Final = 100_000
HOLES_MAX: Final = 64
SOURCES_MAX: Final = 1_000
OTHER_SOURCES: Final = "(others)"
"""Where messages are counted that come from more sources than SOURCES_MAX."""


class Order(StrEnum):
    """How a message came."""

    IN_ORDER = "in_order"
    GAP = "gap"
    """Earlier ones are missing."""

    LATE = "late"
    """It was missing: a later one of its stream came before it."""

    DUPLICATE = "duplicate"
    STALE = "stale"
    """So old that it is no longer known whether it came before; or older than the first of its stream."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said about one message: the number that was expected, and how many a gap skips."""

    order: Order
    expected: int
    missing: int = 0

    def __str__(self) -> str:
        return self.order.value


@dataclass(slots=True)
class Counters:
    """
    What came, and how; `missing` is how many numbers are missing now, the others only grow.

    A gap is opened by each jump, and filled by the last of its missing messages.  Of the gaps that were neither
    filled nor forgotten some number is missing still.
    """

    received: int = 0
    in_order: int = 0
    duplicates: int = 0
    late: int = 0
    gaps_opened: int = 0
    gaps_filled: int = 0
    gaps_forgotten: int = 0
    missing: int = 0
    stale: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of all sources and of each; how many streams are watched, and how many were forgotten."""

    total: Counters
    sources: dict[str, Counters]
    streams: int
    streams_forgotten: int


@dataclass(slots=True)
class _Gap:
    """A jump, while any of its numbers is missing and remembered."""

    missing: int
    forgotten: bool = False


@dataclass(slots=True)
class _Hole:
    """Numbers that are missing, from `first` to `last`; a gap that is filled in its middle leaves two holes."""

    first: int
    last: int
    gap: _Gap

    @property
    def size(self) -> int:
        return self.last - self.first + 1


@dataclass(slots=True)
class _Stream:
    next: int
    known_from: int
    """Below it nothing is known."""

    counters: Counters
    holes: list[_Hole] = field(default_factory=list)
    """In order, apart from each other."""


class OrderMonitor:
    """
    Tells duplicates, late messages and gaps by the producer's sequence, per source and stream.  Thread safe.

    With `start` a stream begins at that number, so that losing its very first messages shows as a gap; without it,
    at the first number seen.
    """

    def __init__(self, start: int | None = None, *, streams_max: int = STREAMS_MAX, holes_max: int = HOLES_MAX) -> None:
        if start is not None:
            _check(start)
        if streams_max < 1 or holes_max < 1:
            raise ValueError("streams_max and holes_max are at least 1")
        self._start = start
        self._streams_max = streams_max
        self._holes_max = holes_max
        self._streams: OrderedDict[tuple[str, str], _Stream] = OrderedDict()
        self._streams_forgotten = 0
        self._sources: dict[str, Counters] = {}
        self._lock = Lock()

    def check(self, stream: str, sequence: int, *, source: str = "") -> Verdict:
        """
        Say how the message came, and remember it.

        Raises:
            TypeError, ValueError: `sequence` is not an integer from 0 to SEQUENCE_MAX.
        """
        _check(sequence)
        with self._lock:
            watched = self._watched(source, stream, sequence)
            watched.counters.received += 1
            if sequence < watched.next:
                return self._behind(watched, sequence)
            return self._ahead(watched, sequence)

    def missing(self, stream: str, *, source: str = "") -> tuple[tuple[int, int], ...]:
        """Give the ranges of numbers, first and last, that are missing from a stream and remembered."""
        with self._lock:
            watched = self._streams.get((source, stream))
            return tuple((hole.first, hole.last) for hole in watched.holes) if watched else ()

    def stats(self) -> Stats:
        """Count what came so far; a copy, which does not change any more."""
        with self._lock:
            sources = {source: replace(counters) for source, counters in self._sources.items()}
            total = Counters(*(sum(getattr(each, f.name) for each in sources.values()) for f in fields(Counters)))
            return Stats(total, sources, len(self._streams), self._streams_forgotten)

    def _watched(self, source: str, stream: str, sequence: int) -> _Stream:
        watched = self._streams.get((source, stream))
        if watched is not None:
            self._streams.move_to_end((source, stream))
            return watched
        if len(self._streams) >= self._streams_max:
            _, forgotten = self._streams.popitem(last=False)
            self._streams_forgotten += 1
            for hole in forgotten.holes:
                _forget(forgotten, hole)
        # Once a stream was forgotten, an unknown one may be old: its number is no evidence of a gap.
        start = sequence if self._start is None or self._streams_forgotten else self._start
        watched = self._streams[source, stream] = _Stream(start, start, self._counters(source))
        return watched

    def _counters(self, source: str) -> Counters:
        if source not in self._sources and len(self._sources) >= SOURCES_MAX:
            source = OTHER_SOURCES
        return self._sources.setdefault(source, Counters())

    def _ahead(self, watched: _Stream, sequence: int) -> Verdict:
        expected, watched.next = watched.next, sequence + 1
        missing = sequence - expected
        if not missing:
            watched.counters.in_order += 1
            return Verdict(Order.IN_ORDER, expected)
        watched.counters.gaps_opened += 1
        watched.counters.missing += missing
        watched.holes.append(_Hole(expected, sequence - 1, _Gap(missing)))
        self._forget_excess(watched)
        return Verdict(Order.GAP, expected, missing)

    def _behind(self, watched: _Stream, sequence: int) -> Verdict:
        expected, counters = watched.next, watched.counters
        index = bisect_right(watched.holes, sequence, key=lambda hole: hole.first) - 1
        if index >= 0 and sequence <= watched.holes[index].last:
            counters.late += 1
            counters.missing -= 1
            self._fill(watched, index, sequence)
            return Verdict(Order.LATE, expected)
        if sequence < watched.known_from:
            counters.stale += 1
            return Verdict(Order.STALE, expected)
        counters.duplicates += 1
        return Verdict(Order.DUPLICATE, expected)

    def _fill(self, watched: _Stream, index: int, sequence: int) -> None:
        hole = watched.holes[index]
        hole.gap.missing -= 1
        if not hole.gap.missing and not hole.gap.forgotten:
            watched.counters.gaps_filled += 1
        ends = ((hole.first, sequence - 1), (sequence + 1, hole.last))
        watched.holes[index : index + 1] = [_Hole(first, last, hole.gap) for first, last in ends if first <= last]
        self._forget_excess(watched)

    def _forget_excess(self, watched: _Stream) -> None:
        while len(watched.holes) > self._holes_max:
            hole = watched.holes.pop(0)
            watched.known_from = hole.last + 1
            _forget(watched, hole)


def _forget(watched: _Stream, hole: _Hole) -> None:
    """Count a hole no longer; its gap can no longer be told to be filled."""
    watched.counters.missing -= hole.size
    hole.gap.missing -= hole.size
    if not hole.gap.forgotten:
        hole.gap.forgotten = True
        watched.counters.gaps_forgotten += 1


def _check(sequence: object) -> None:
    if type(sequence) is not int:
        raise TypeError(f"a sequence is an integer, not {type(sequence).__name__}")
    if not 0 <= sequence <= SEQUENCE_MAX:
        raise ValueError(f"a sequence is from 0 to {SEQUENCE_MAX}, not {sequence}")
