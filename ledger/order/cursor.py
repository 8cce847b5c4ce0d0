"""
Where a stream of messages stands, by which policy it is read, and what one decision about it says.

Plain facts, in and out of `sequencer`; a database can keep each as a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from ledger.order.message import SEQUENCE_MAX, Message

_WAIT_MAX: Final = timedelta(days=365_000)
"""A deadline has to be a date."""


class OnGap(StrEnum):
    """What happens when waiting is over."""

    PARK = "park"
    DEAD_LETTER = "dead_letter"
    RELEASE = "release"


class Status(StrEnum):
    """Whether a stream moves."""

    FLOWING = "flowing"
    WAITING = "waiting"
    """A message is missing, and others wait for it."""

    PARKED = "parked"
    """A message is missing; no time will change that: the message must come, or a person go on without it."""


class State(StrEnum):
    """What became of a kept message."""

    HELD = "held"
    DONE = "done"
    SET_ASIDE = "set_aside"
    """In review because its stream waited too long, nothing being wrong with it: taken again when it comes again."""

    REVIEW = "review"
    """In review for its own sake: a person decides, and a copy of it changes nothing."""


class Why(StrEnum):
    """Why a message is not taken."""

    DUPLICATE = "duplicate"
    UNNUMBERED = "unnumbered"
    BEFORE_START = "before_start"
    RELEASED = "released"
    """It was missing, and its stream has gone on without it."""

    SEQUENCE_CONFLICT = "sequence_conflict"
    """Its sequence came with another content."""

    ID_CONFLICT = "id_conflict"
    """Its id came with another sequence, or in an unordered stream with another content."""

    NO_ROOM = "no_room"
    """Its stream waits, and has as many messages held as it may: set aside."""

    WAITED = "waited"
    """Its stream waited too long: set aside."""


@dataclass(frozen=True, slots=True)
class Strict:
    """
    A policy: one after the other, by sequence.

    `start` is the first sequence of each stream; None takes the first one that is seen, which means that whatever
    overtook nothing but was sent before it is late for ever.
    """

    max_wait: timedelta
    max_buffered: int = 10_000
    on_gap: OnGap = OnGap.PARK
    start: int | None = 1

    def __post_init__(self) -> None:
        if not timedelta(0) <= self.max_wait <= _WAIT_MAX or self.max_buffered < 1:
            raise ValueError(f"max_wait is from 0 to {_WAIT_MAX.days} days, and max_buffered at least 1")
        if self.start is not None and not 0 <= self.start <= SEQUENCE_MAX:
            raise ValueError(f"start is from 0 to {SEQUENCE_MAX}")


class Range(NamedTuple):
    """Sequences from `first` to `last`."""

    first: int
    last: int


class Cursor(NamedTuple):
    """
    Where a strict stream stands.  `Cursor()` is a stream of which nothing came yet.

    `last` is the sequence that was processed or gone without last: below the start at first, hence -1 at least, and
    never more than a bigint.  `highest` is the highest sequence heard of, `held` how many messages are held.
    `revision` grows with every change: compare-and-set on it.
    """

    start: int | None = None
    last: int = -1
    highest: int = -1
    held: int = 0
    status: Status = Status.FLOWING
    waiting_since: datetime | None = None
    """Since when the stream waits for what it now waits for; if it is flowing, since when held messages are due."""

    revision: int = 0

    @property
    def next(self) -> int:
        """The sequence that is expected."""
        return self.last + 1

    def deadline(self, policy: Strict) -> datetime | None:
        """Give the moment at which to decide again, with or without messages; None if there is nothing to decide."""
        if self.waiting_since is None or (self.status is Status.PARKED and policy.on_gap is OnGap.PARK):
            return None
        return self.waiting_since if self.status is Status.FLOWING else self.waiting_since + policy.max_wait


class Kept(NamedTuple):
    """A message that the inbox has already.  `message` is asked for where the state is held, and not otherwise."""

    sequence: int
    id: str
    digest: bytes
    state: State
    message: Message | None = None


class Lookup(NamedTuple):
    """
    Which kept messages of a stream a decision needs.

    Those with one of `sequences`, and one with each of `ids`, whatever their state; and of the held ones, if `run_from`
    is given, the first `run_max` in order of sequence from there on.  And the released ranges that `sequences` touch.
    """

    sequences: tuple[int, ...]
    ids: tuple[str, ...]
    run_from: int | None
    run_max: int


class Glimpse(NamedTuple):
    """
    What a `Lookup` found.

    Every message that is held from `cursor.next` to `run_to` must be in it: SEQUENCE_MAX if fewer were found than
    asked for, else the sequence of the last.  The default says that none was asked for.
    """

    kept: Sequence[Kept] = ()
    released: Sequence[Range] = ()
    run_to: int = -1


class NotTaken(NamedTuple):
    """A message that goes no further, and why; `known` is the id of the one that it repeats or contradicts, if kept."""

    message: Message
    why: Why
    known: str = ""


class Tally(NamedTuple):
    """
    What one decision adds to the counters of its source.

    `out_of_order` are messages that came after a higher one of their stream, and were taken all the same (reordered as
    RFC 4737, section 3 defines it).  A gap is opened when a decision leaves
    the stream without the message it needs next, and filled when that message comes; each one opened is filled,
    released, or open still.
    """

    received: int = 0
    processed: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    late: int = 0
    conflicts: int = 0
    unnumbered: int = 0
    set_aside: int = 0
    gaps_opened: int = 0
    gaps_filled: int = 0
    gaps_timed_out: int = 0


def summed(tallies: Iterable[Tally]) -> Tally:
    """Tallies added up."""
    return Tally(*map(sum, zip(*tallies, strict=True)))


class Decision(NamedTuple):
    """
    What is to be done for one stream, in one transaction.

    `process` these in this order, whether they arrived or were held; `hold` these, which arrived; keep `review` for a
    person; set aside `overflow`, and with `set_aside_held` all that was held before as well.  `released` is what the
    stream goes on without; `timed_out` what waiting was over for.
    """

    cursor: Cursor
    process: tuple[Message, ...] = ()
    hold: tuple[Message, ...] = ()
    duplicates: tuple[NotTaken, ...] = ()
    review: tuple[NotTaken, ...] = ()
    overflow: tuple[NotTaken, ...] = ()
    set_aside_held: bool = False
    released: tuple[Range, ...] = ()
    timed_out: int | None = None
    """The missing sequence for which waiting ended in this decision: the alert."""

    taken_again: tuple[int, ...] = ()
    """Sequences that were set aside, and came again: their dead letters are settled."""

    more: bool = False
    """More may be due: decide again with an empty batch."""

    tally: Tally = Tally()
