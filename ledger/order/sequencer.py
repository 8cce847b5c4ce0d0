"""
The decision of the inbox for one stream.  Pure: where the stream stands and what arrives → what is to be done.

The caller, who has a database, does four things in one transaction:

1. lock the stream's `Cursor`, and ask `lookup` which kept messages the decision will need;
2. read those as a `Glimpse`;
3. `decide`;
4. carry the decision out: process, hold, count, and write the cursor back if its revision is still the one it read.

What a glimpse holds is bounded by the batch and by `run_max`, however many messages wait: the cost of a message does
not grow with the buffer.  Where more is due than one glimpse shows, the decision says `more`, and the caller comes
again with an empty batch.  A tick is an empty batch, too.

Rules, in the order in which they are tried for a message of a strict stream:

1. no sequence: it cannot be put in order → review;
2. its sequence is kept, with the same content → duplicate; with another → review.  What was set aside while its
   stream waited is taken up again when it comes again;
3. it lies before the start of the stream, or was gone without after a timeout → it is late → review;
4. it lies behind the cursor, and the payload that was there is no longer kept → duplicate;
5. its id came under another sequence → review: doing it again might do it twice, leaving it out would be silent;
6. else it is taken: processed when all before it were, held until then.

A stream that misses a message waits.  After `max_wait`, or with more than `max_buffered` messages held, the policy
says how it goes on:

- `park`: it stays where it is, and an alert is due.  What finds no room any more is set aside;
- `dead_letter`: all that waits is set aside.  The stream stays where it is;
- `release`: it goes on without what is missing, which is recorded, and goes to review if it comes after all.

The missing message itself, when it comes, sets a waiting or parked stream going under each of them.  No rule asks
for the time that a message says; `now` is the caller's, and decides nothing but when waiting is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, Protocol

from ledger.order.cursor import (
    Cursor,
    Decision,
    Glimpse,
    Lookup,
    NotTaken,
    OnGap,
    Range,
    State,
    Status,
    Strict,
    Tally,
    Why,
)
from ledger.order.message import SEQUENCE_MAX, Message

RUN_MAX: Final = 1_000
"""Messages processed by one decision at most, unless the caller says otherwise."""


def lookup(
    cursor: Cursor,
    arriving: Iterable[Message],
    policy: Strict,
    now: datetime,
    *,
    run_max: int = RUN_MAX,
    release_to: int = -1,
) -> Lookup:
    """Say which kept messages `decide` needs for the same arguments."""
    messages = list(arriving)
    sequences = {message.sequence for message in messages if message.sequence is not None}
    deadline = cursor.deadline(policy)
    is_over = (deadline is not None and now >= deadline) or cursor.held + len(messages) > policy.max_buffered
    # The held messages matter only where the stream may move: what it waits for is held, or arrives, or it goes on
    # without.  Else their number is enough.
    moves = (
        cursor.status is Status.FLOWING
        or cursor.next in sequences
        or cursor.next <= release_to
        or (policy.on_gap is OnGap.RELEASE and is_over)
    )
    run_from = cursor.next if cursor.held and moves else None
    ids = dict.fromkeys(message.id for message in messages)
    return Lookup(tuple(sorted(sequences)), tuple(ids), run_from, max(run_max, 1))


def decide(
    cursor: Cursor,
    arriving: Sequence[Message],
    glimpse: Glimpse,
    policy: Strict,
    now: datetime,
    *,
    run_max: int = RUN_MAX,
    release_to: int = -1,
) -> Decision:
    """
    Decide about a batch of messages of one strict stream, in the order in which they arrived.

    With `run_max` messages processed the rest is held: 0 holds all, which is how a stream whose next message
    fails is kept until that one is tried again.  With `release_to` a person goes on without whatever is missing up to
    there, and without what is in review.
    """
    arrivals = _Arrivals(cursor, glimpse, policy)
    for message in arriving:
        arrivals.place(message)
    course = _Course(cursor, glimpse, arrivals, policy, now)
    course.advance(run_max, -1 if arrivals.start is None else release_to)
    if course.waiting and not course.more:
        course.wait()
    course.limit(run_max)
    return course.decision(len(arriving))


def decide_unordered(arriving: Iterable[Message], known: Mapping[str, bytes]) -> Decision:
    """
    Decide about messages whose order does not matter: each id once.

    `known` are the digests of the kept messages, by id.  There is no cursor to write back.
    """
    seen = dict(known)
    process: list[Message] = []
    duplicates: list[NotTaken] = []
    review: list[NotTaken] = []
    for message in arriving:
        digest = seen.get(message.id)
        if digest is None:
            seen[message.id] = message.digest
            process.append(message)
        elif digest == message.digest:
            duplicates.append(NotTaken(message, Why.DUPLICATE, message.id))
        else:
            review.append(NotTaken(message, Why.ID_CONFLICT, message.id))
    received = len(process) + len(duplicates) + len(review)
    return Decision(
        cursor=Cursor(),
        process=tuple(process),
        duplicates=tuple(duplicates),
        review=tuple(review),
        tally=Tally(received, len(process), len(duplicates), conflicts=len(review)),
    )


class _Fingerprint(Protocol):
    """What a message and a kept one have in common."""

    @property
    def id(self) -> str: ...
    @property
    def digest(self) -> bytes: ...


class _Arrivals:
    """What becomes of each message of a batch: taken, or not."""

    def __init__(self, cursor: Cursor, glimpse: Glimpse, policy: Strict) -> None:
        self.start = policy.start if cursor.start is None else cursor.start
        self.last = cursor.last if cursor.start is not None or self.start is None else self.start - 1
        self.highest = max(cursor.highest, self.last)
        self.taken: dict[int, Message] = {}
        self.taken_again: list[int] = []
        self.duplicates: list[NotTaken] = []
        self.review: list[NotTaken] = []
        self.out_of_order = 0
        self.held = {kept.sequence: kept for kept in glimpse.kept if kept.state is State.HELD}
        self._released = glimpse.released
        self._set_aside = {kept.sequence for kept in glimpse.kept if kept.state is State.SET_ASIDE}
        self._by_sequence: dict[int, _Fingerprint] = {kept.sequence: kept for kept in glimpse.kept}
        self._by_id = {kept.id: kept.sequence for kept in glimpse.kept}

    def place(self, message: Message) -> None:
        """Take a message, or say why not; the rules of the module, in their order."""
        sequence = message.sequence
        if sequence is None:
            self.review.append(NotTaken(message, Why.UNNUMBERED))
            return
        if self.start is None:
            self.start, self.last = sequence, sequence - 1
        known = self._by_sequence.get(sequence)
        if known is not None and known.digest != message.digest:
            self.review.append(NotTaken(message, Why.SEQUENCE_CONFLICT, known.id))
        elif known is not None and sequence not in self._set_aside:
            self.duplicates.append(NotTaken(message, Why.DUPLICATE, known.id))
        elif sequence <= self.last:
            self._behind(message, sequence)
        elif sequence not in self._set_aside and self._by_id.get(message.id, sequence) != sequence:
            self.highest = max(self.highest, sequence)
            self.review.append(NotTaken(message, Why.ID_CONFLICT, message.id))
        else:
            self._take(message, sequence)

    def _behind(self, message: Message, sequence: int) -> None:
        """A message that is not kept, from before the cursor: it was never processed, or so long ago."""
        assert self.start is not None
        if sequence < self.start:
            why = Why.BEFORE_START
        elif any(range_.first <= sequence <= range_.last for range_ in self._released):
            why = Why.RELEASED
        else:
            self.duplicates.append(NotTaken(message, Why.DUPLICATE))
            return
        self.review.append(NotTaken(message, why))
        self._know(message, sequence)

    def _take(self, message: Message, sequence: int) -> None:
        self.taken[sequence] = message
        self.out_of_order += sequence < self.highest
        self.highest = max(self.highest, sequence)
        self._know(message, sequence)

    def _know(self, message: Message, sequence: int) -> None:
        """From here on a copy of it is a duplicate."""
        if sequence in self._set_aside:
            self._set_aside.discard(sequence)
            self.taken_again.append(sequence)
        self._by_sequence[sequence] = message
        self._by_id[message.id] = sequence


class _Course:
    """How far the stream gets, and how it waits."""

    def __init__(self, cursor: Cursor, glimpse: Glimpse, arrivals: _Arrivals, policy: Strict, now: datetime) -> None:
        self.before = cursor
        self.arrivals = arrivals
        self.policy = policy
        self.now = now
        self.next = arrivals.last + 1
        self.queue = sorted(arrivals.taken.keys() | arrivals.held.keys())
        self.gone = 0
        """How many of the queue were processed."""

        self.unseen = cursor.held - len(arrivals.held)
        self.run_to = glimpse.run_to if self.unseen else SEQUENCE_MAX
        self.process: list[Message] = []
        self.released: list[Range] = []
        self.overflow: list[NotTaken] = []
        self.status = Status.FLOWING
        self.waiting_since: datetime | None = None
        self.timed_out: int | None = None
        self.set_aside_held = 0
        self.gaps_opened = 0
        self.gaps_timed_out = 0
        self.more = False

    @property
    def waiting(self) -> int:
        """How many messages wait, held or arrived."""
        return len(self.queue) - self.gone + self.unseen

    @property
    def stayed(self) -> bool:
        """Whether the stream was stuck before this decision where it is now."""
        return self.before.status is not Status.FLOWING and self.next == self.before.next

    @property
    def since(self) -> datetime:
        """Since when it has been stuck; a stream that moved has the whole wait before it, or catching up would hurt."""
        return self.before.waiting_since if self.stayed and self.before.waiting_since else self.now

    @property
    def is_over(self) -> bool:
        """Whether the stream has waited enough."""
        return self.now >= self.since + self.policy.max_wait or self.waiting > self.policy.max_buffered

    def advance(self, run_max: int, release_to: int) -> None:
        """Process what is due, and go on without what is missing where that was decided."""
        while self.waiting or self.next <= release_to:
            upcoming = self.queue[self.gone] if self.gone < len(self.queue) else None
            if upcoming == self.next:
                if len(self.process) == run_max:
                    self.more = True
                    return
                self._process(upcoming)
                continue
            by_hand = self.next <= release_to
            stuck = self.stayed or self.next <= self.run_to
            if stuck and not by_hand and not (self.policy.on_gap is OnGap.RELEASE and self.is_over):
                return
            last = min(release_to if by_hand else SEQUENCE_MAX, SEQUENCE_MAX if upcoming is None else upcoming - 1)
            if last > self.run_to:
                # A held message that the glimpse does not show may be among them.
                self.more = True
                return
            self._release(last, by_hand=by_hand)

    def wait(self) -> None:
        """Stay where the stream is, with messages that wait."""
        self.status, self.waiting_since = Status.WAITING, self.since
        if not self.is_over:
            if self.stayed and self.before.status is Status.PARKED and self.policy.on_gap is OnGap.PARK:
                self.status = Status.PARKED
            return
        if not (self.stayed and self.before.status is Status.PARKED and self.policy.on_gap is OnGap.PARK):
            self.timed_out = self.next
            self.gaps_timed_out += 1
        self.status = Status.PARKED
        if self.policy.on_gap is OnGap.DEAD_LETTER:
            self.overflow += (NotTaken(message, Why.WAITED) for message in self._left())
            self.set_aside_held = self.waiting - len(self.overflow)
            self.waiting_since = None

    def limit(self, run_max: int) -> None:
        """Hold no more than the policy says; the lowest sequences stay, since they are due first."""
        if self.set_aside_held or self.overflow or (run_max and self.policy.on_gap is OnGap.RELEASE):
            # Set aside already; or it will go on without what is missing as soon as it gets there.
            return
        # What is due is no backlog: it goes as fast as the caller comes again, unless it is held back.
        due = self._due() if run_max else 0
        excess = self.waiting - due - self.policy.max_buffered
        if excess > 0:
            # Held back, too, the next one keeps its place: it is what the others wait for.
            first = due or min(self._due(), 1)
            self.overflow += (NotTaken(message, Why.NO_ROOM) for message in self._left(first)[-excess:])

    def decision(self, received: int) -> Decision:
        """Sum it up."""
        arrivals, cursor = self.arrivals, self._cursor()
        overflow = {refused.message.sequence for refused in self.overflow}
        reasons = [refused.why for refused in arrivals.review]
        set_aside = len(self.overflow) + self.set_aside_held
        return Decision(
            cursor=cursor,
            process=tuple(self.process),
            hold=tuple(message for message in self._left() if message.sequence not in overflow),
            duplicates=tuple(arrivals.duplicates),
            review=tuple(arrivals.review),
            overflow=tuple(self.overflow),
            set_aside_held=self.set_aside_held > 0,
            released=tuple(self.released),
            timed_out=self.timed_out,
            taken_again=tuple(arrivals.taken_again),
            more=self.more,
            tally=Tally(
                received=received,
                processed=len(self.process),
                duplicates=len(arrivals.duplicates),
                out_of_order=arrivals.out_of_order,
                late=reasons.count(Why.BEFORE_START) + reasons.count(Why.RELEASED),
                conflicts=reasons.count(Why.SEQUENCE_CONFLICT) + reasons.count(Why.ID_CONFLICT),
                unnumbered=reasons.count(Why.UNNUMBERED),
                set_aside=set_aside,
                gaps_opened=self.gaps_opened + int(self._opens(cursor)),
                gaps_filled=int(self._fills(cursor)),
                gaps_timed_out=self.gaps_timed_out,
            ),
        )

    def _process(self, sequence: int) -> None:
        message = self.arrivals.taken.get(sequence) or self.arrivals.held[sequence].message
        assert message is not None, f"the glimpse shows held message {sequence} without its content"
        self.process.append(message)
        self.gone += 1
        self.next += 1

    def _release(self, last: int, *, by_hand: bool) -> None:
        if not by_hand:
            self.timed_out = self.next if self.timed_out is None else self.timed_out
            self.gaps_timed_out += 1
        self.gaps_opened += not self.stayed
        self.released.append(Range(self.next, last))
        self.next = last + 1

    def _due(self) -> int:
        """How many of the queue could be processed now, but for `run_max`."""
        due = 0
        while self.gone + due < len(self.queue) and self.queue[self.gone + due] == self.next + due:
            due += 1
        return due

    def _left(self, due: int = 0) -> list[Message]:
        """The arrivals that wait, in order, behind so many that are due."""
        taken = self.arrivals.taken
        return [taken[sequence] for sequence in self.queue[self.gone + due :] if sequence in taken]

    def _cursor(self) -> Cursor:
        """The cursor to be written; the same one if nothing moved."""
        held = self.waiting - len(self.overflow) - self.set_aside_held
        status, since = self.status, self.waiting_since
        if self.more:
            # An uncertain glimpse must not make the stream forget how long it has waited.
            uncertain = self.stayed and not self._due()
            status = self.before.status if uncertain else Status.FLOWING
            since = self.since if held else None
        elif not self.waiting and self.arrivals.highest >= self.next:
            # Nothing waits, but something is in review that should come first: only it, or a person, helps.
            status = Status.PARKED
        after = Cursor(
            self.arrivals.start,
            self.next - 1,
            max(self.arrivals.highest, self.next - 1),
            held,
            status,
            since,
            self.before.revision,
        )
        return after if after == self.before else after._replace(revision=self.before.revision + 1)

    def _opens(self, after: Cursor) -> bool:
        return after.status is not Status.FLOWING and not self.stayed

    def _fills(self, after: Cursor) -> bool:
        if self.before.status is Status.FLOWING or (self.stayed and after.status is not Status.FLOWING):
            return False
        return not (self.released and self.released[0].first == self.before.next)
