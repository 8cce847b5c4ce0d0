"""Whatever arrives in whatever order, a stream is processed once and in order; and what is not is said, by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.order.cursor import (
    Cursor,
    Decision,
    Glimpse,
    Kept,
    Lookup,
    OnGap,
    Range,
    State,
    Status,
    Strict,
    Why,
)
from ledger.order.message import SEQUENCE_MAX, Message
from ledger.order.sequencer import decide, decide_unordered, lookup

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WAIT = timedelta(seconds=5)
PARK = Strict(WAIT)
DEAD_LETTER = Strict(WAIT, on_gap=OnGap.DEAD_LETTER)
RELEASE = Strict(WAIT, on_gap=OnGap.RELEASE)
ROUNDS_MAX = 200


def message(sequence: int | None, says: object = None, name: str | None = None) -> Message:
    """A message of the stream, by default the one and only with this sequence."""
    return Message("s", name or f"id-{sequence}", "t", "alice", sequence, data=f"{says or sequence}")


def messages(*sequences: int) -> list[Message]:
    """Messages of the stream."""
    return [message(sequence) for sequence in sequences]


def numbers(these: Iterable[Message]) -> list[int | None]:
    """Their sequences."""
    return [each.sequence for each in these]


@dataclass
class Inbox:
    """What the database will be: keeps what a decision says, shows no more than was asked for, and checks both."""

    policy: Strict = PARK
    run_max: int = 3
    forgets: bool = False
    """Whether payloads of processed messages are thrown away."""

    cursor: Cursor = field(default_factory=Cursor)
    kept: dict[int, Kept] = field(default_factory=dict)
    processed: list[int] = field(default_factory=list)
    released: list[Range] = field(default_factory=list)
    review: list[tuple[int | None, Why]] = field(default_factory=list)
    timed_out: list[int] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)

    def receive(self, *arriving: Message, now: datetime = NOW, release_to: int = -1) -> Decision:
        """Decide and carry out until nothing more is due; returns the first decision."""
        decisions = [self._step(arriving, now, release_to)]
        while decisions[-1].more:
            decisions.append(self._step((), now, release_to))
            assert len(decisions) < ROUNDS_MAX
        return decisions[0]

    def tick(self, seconds: float) -> Decision | None:
        """What happens so long after NOW: nothing, if the cursor's deadline says so."""
        now = NOW + timedelta(seconds=seconds)
        deadline = self.cursor.deadline(self.policy)
        return self.receive(now=now) if deadline is not None and deadline <= now else None

    def held(self) -> list[int]:
        """The sequences that are held."""
        return sorted(kept.sequence for kept in self.kept.values() if kept.state is State.HELD)

    def set_aside(self) -> list[int]:
        """The sequences that are set aside."""
        return sorted(kept.sequence for kept in self.kept.values() if kept.state is State.SET_ASIDE)

    def missing(self) -> list[int]:
        """The report: sequences between the cursor and the highest heard of, of which there is nothing."""
        return [number for number in range(self.cursor.next, self.cursor.highest) if number not in self.kept]

    def _step(self, arriving: Sequence[Message], now: datetime, release_to: int) -> Decision:
        wanted = lookup(self.cursor, arriving, self.policy, now, run_max=self.run_max, release_to=release_to)
        glimpse = self._glimpse(wanted)
        assert len(glimpse.kept) <= 2 * len(arriving) + self.run_max
        made = decide(self.cursor, arriving, glimpse, self.policy, now, run_max=self.run_max, release_to=release_to)
        self._check_complete(arriving, made)
        self._carry_out(made)
        self._check_cursor()
        return made

    def _glimpse(self, wanted: Lookup) -> Glimpse:
        by_id = {kept.id: kept for kept in self.kept.values() if kept.id in wanted.ids}
        found = {kept.sequence: kept for kept in by_id.values()}
        found |= {number: self.kept[number] for number in wanted.sequences if number in self.kept}
        run: list[int] = []
        if wanted.run_from is not None:
            run = [number for number in self.held() if number >= wanted.run_from][: wanted.run_max]
            found |= {number: self.kept[number] for number in run}
        run_to = -1 if wanted.run_from is None else run[-1] if len(run) == wanted.run_max else SEQUENCE_MAX
        touched = [
            each for each in self.released if any(each.first <= number <= each.last for number in wanted.sequences)
        ]
        return Glimpse(list(found.values()), touched, run_to)

    def _check_complete(self, arriving: Sequence[Message], made: Decision) -> None:
        """Every arrival is somewhere, once; what is processed and was held besides."""
        fates = Counter(map(id, made.hold))
        fates += Counter(id(each.message) for each in (*made.duplicates, *made.review, *made.overflow))
        fates += Counter(id(each) for each in made.process)
        assert all(fates[each] == count for each, count in Counter(map(id, arriving)).items())
        others = set(fates) - set(map(id, arriving))
        assert others <= {id(kept.message) for kept in self.kept.values() if kept.state is State.HELD}

    def _carry_out(self, made: Decision) -> None:
        def keep(each: Message, state: State) -> None:
            assert each.sequence is not None
            shown = each if state is State.HELD else None
            self.kept[each.sequence] = Kept(each.sequence, each.id, each.digest, state, shown)

        for each in made.process:
            assert each.sequence is not None
            self.processed.append(each.sequence)
            keep(each, State.DONE)
            if self.forgets:
                del self.kept[each.sequence]
        for each in made.hold:
            keep(each, State.HELD)
        if made.set_aside_held:
            self.kept |= {number: self.kept[number]._replace(state=State.SET_ASIDE) for number in self.held()}
        for refused in made.overflow:
            keep(refused.message, State.SET_ASIDE)
        for refused in made.review:
            self.review.append((refused.message.sequence, refused.why))
            if refused.why in (Why.BEFORE_START, Why.RELEASED):
                keep(refused.message, State.REVIEW)
        self.released += made.released
        self.timed_out += [] if made.timed_out is None else [made.timed_out]
        self.totals.update(made.tally._asdict())
        assert (made.cursor == self.cursor) == (made.cursor.revision == self.cursor.revision)
        self.cursor = made.cursor

    def _check_cursor(self) -> None:
        """What the cursor says is what is kept."""
        cursor = self.cursor
        assert cursor.held == len(self.held())
        assert all(number > cursor.last for number in self.held())
        assert self.processed == sorted(set(self.processed))
        gone = {number for each in self.released for number in range(each.first, each.last + 1)}
        assert gone.isdisjoint(self.processed)
        if cursor.start is not None and cursor.start < SEQUENCE_MAX:
            assert sorted(gone | set(self.processed)) == list(range(cursor.start, cursor.next))
        stuck = cursor.status is not Status.FLOWING
        assert self.totals["gaps_opened"] == self.totals["gaps_filled"] + len(self.released) + stuck
        assert stuck or cursor.deadline(self.policy) is None or cursor.held


SEQUENCES = st.lists(st.integers(1, 12), max_size=24)
CUTS = st.lists(st.integers(1, 6), min_size=24, max_size=24)


def batches(arrivals: Sequence[Message], cuts: Iterable[int]) -> list[Sequence[Message]]:
    """The arrivals in batches of these sizes."""
    made, begin = [], 0
    for size in cuts:
        made.append(arrivals[begin : begin + size])
        begin += size
    return [batch for batch in made if batch]


# Properties


@given(st.data(), st.integers(1, 12), CUTS, st.integers(1, 4), st.booleans())
def test_any_order_gives_the_same(
    data: st.DataObject, count: int, cuts: list[int], run_max: int, forgets: bool
) -> None:
    """Any permutation with any repetitions, in any batches, is processed once and in order."""
    repeated = data.draw(st.lists(st.integers(1, count), max_size=24 - count))
    arrivals = data.draw(st.permutations([*range(1, count + 1), *repeated]))
    inbox = Inbox(run_max=run_max, forgets=forgets)
    for batch in batches(messages(*arrivals), cuts):
        inbox.receive(*batch)

    assert inbox.processed == list(range(1, count + 1))
    assert inbox.cursor.status is Status.FLOWING
    assert inbox.cursor.deadline(PARK) is None
    assert inbox.totals["received"] == count + inbox.totals["duplicates"] == len(arrivals)
    assert inbox.review == []
    assert inbox.held() == inbox.missing() == []


@given(SEQUENCES, CUTS, st.integers(1, 4))
def test_losses_are_named(arrivals: list[int], cuts: list[int], run_max: int) -> None:
    """A stream waits exactly if something before its last message is missing, and the report names what."""
    inbox = Inbox(run_max=run_max)
    for batch in batches(messages(*arrivals), cuts):
        inbox.receive(*batch)
    lost = sorted(set(range(1, max(arrivals, default=0))) - set(arrivals))
    in_order = list(range(1, lost[0])) if lost else sorted(set(arrivals))

    assert inbox.processed == in_order
    assert inbox.held() == sorted(set(arrivals) - set(in_order))
    assert inbox.missing() == lost
    assert inbox.cursor.status is (Status.WAITING if lost else Status.FLOWING)
    assert inbox.cursor.deadline(PARK) == (NOW + WAIT if lost else None)


@given(SEQUENCES, CUTS, CUTS, st.sampled_from([PARK, DEAD_LETTER, RELEASE]))
def test_batches_do_not_matter(arrivals: list[int], cuts: list[int], others: list[int], policy: Strict) -> None:
    """However the arrivals are cut into batches, and however little a glimpse shows, they end alike."""
    ends = []
    for sizes, run_max in ((cuts, 1), (others, 1_000)):
        inbox = Inbox(policy, run_max)
        for batch in batches(messages(*arrivals), sizes):
            inbox.receive(*batch)
        totals = [inbox.totals[name] for name in ("received", "processed", "duplicates", "out_of_order", "late")]
        ends.append((inbox.cursor._replace(revision=0), inbox.processed, inbox.kept, totals))

    assert ends[0] == ends[1]


@given(SEQUENCES, CUTS, st.integers(1, 4))
def test_parked_stream_waits(arrivals: list[int], cuts: list[int], run_max: int) -> None:
    """Under park nothing is given up when waiting is over, and one alert is raised; what was lost heals it."""
    inbox = Inbox(PARK, run_max)
    for batch in batches(messages(*arrivals), cuts):
        inbox.receive(*batch)
    held, lost = inbox.held(), inbox.missing()
    assert inbox.tick(4) is None
    inbox.tick(5)

    assert inbox.cursor.status is (Status.PARKED if lost else Status.FLOWING)
    assert inbox.timed_out == lost[:1]
    assert inbox.held() == held
    assert inbox.tick(99) is None
    inbox.receive(*messages(*lost), now=NOW + timedelta(days=99))
    assert inbox.processed == sorted(set(arrivals) | set(lost))
    assert inbox.cursor.status is Status.FLOWING


@given(SEQUENCES, CUTS, st.integers(1, 4), st.booleans())
def test_dead_lettered_stream_waits(arrivals: list[int], cuts: list[int], run_max: int, early: bool) -> None:
    """Under dead letter all that waits is set aside, nothing is skipped, and all of it comes back in its place."""
    inbox = Inbox(DEAD_LETTER, run_max)
    for batch in batches(messages(*arrivals), cuts):
        inbox.receive(*batch)
    held, lost, processed = inbox.held(), inbox.missing(), list(inbox.processed)
    inbox.tick(5)

    assert inbox.set_aside() == held
    assert inbox.timed_out == lost[:1]
    assert inbox.totals["set_aside"] == len(held)
    assert (inbox.held(), inbox.processed, inbox.missing()) == ([], processed, lost)
    assert inbox.cursor.status is (Status.PARKED if lost else Status.FLOWING)
    assert inbox.tick(99) is None
    back = [messages(*lost), messages(*held)]
    for batch in reversed(back) if early else back:
        inbox.receive(*batch)
    assert inbox.processed == sorted({*arrivals, *lost})
    assert inbox.set_aside() == []


@given(SEQUENCES, CUTS, st.integers(1, 4), st.booleans())
def test_released_stream_goes_on(arrivals: list[int], cuts: list[int], run_max: int, forgets: bool) -> None:
    """Under release each gap gets its wait, then the stream goes on without; what comes late goes to review, once."""
    inbox = Inbox(RELEASE, run_max, forgets)
    for batch in batches(messages(*arrivals), cuts):
        inbox.receive(*batch)
    lost = inbox.missing()
    gaps = [number for number in lost if number - 1 not in lost]
    for index in range(len(gaps)):
        assert inbox.cursor.next == gaps[index]
        assert inbox.tick(5 * index + 4) is None
        inbox.tick(5 * index + 5)

    assert inbox.processed == sorted(set(arrivals))
    assert [number for each in inbox.released for number in range(each.first, each.last + 1)] == lost
    assert inbox.timed_out == gaps
    assert inbox.cursor.status is Status.FLOWING
    inbox.receive(*messages(*lost, *arrivals))
    inbox.receive(*messages(*lost))
    assert inbox.review == [(number, Why.RELEASED) for number in lost]
    assert inbox.processed == sorted(set(arrivals))


@given(SEQUENCES, CUTS, st.integers(1, 3), st.sampled_from(OnGap), st.integers(1, 4))
def test_buffer_is_bounded(arrivals: list[int], cuts: list[int], bound: int, on_gap: OnGap, run_max: int) -> None:
    """No more is held than the policy says, and nothing is lost over it: what is not there any more is set aside."""
    inbox = Inbox(Strict(WAIT, bound, on_gap), run_max)
    for batch in batches(messages(*arrivals), cuts):
        inbox.receive(*batch)
        assert inbox.cursor.held <= bound

    late = {number for number, why in inbox.review if number is not None and why is Why.RELEASED}
    assert sorted({*inbox.processed, *inbox.held(), *inbox.set_aside(), *late}) == sorted(set(arrivals))
    assert bool(inbox.released) <= (on_gap is OnGap.RELEASE)
    assert bool(inbox.set_aside()) <= (on_gap is not OnGap.RELEASE)


@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.none() | st.integers(0, 9), st.sampled_from("xy"), st.integers(0, 9)).map(
                    lambda made: message(made[0], made[1], f"id-{made[2]}")
                ),
                max_size=5,
            ),
            st.integers(0, 20),
            st.integers(-1, 9),
        ),
        max_size=10,
    ),
    st.sampled_from([PARK, DEAD_LETTER, RELEASE, replace(RELEASE, max_buffered=2), replace(PARK, start=None)]),
    st.integers(1, 4),
)
def test_nothing_breaks_it(rounds: list[tuple[list[Message], int, int]], policy: Strict, run_max: int) -> None:
    """Conflicts, reused ids, missing sequences, ticks and releases in any mixture leave a stream consistent."""
    inbox = Inbox(policy, run_max)
    seconds = 0
    for arriving, passed, release_to in rounds:
        seconds += passed
        inbox.receive(*arriving, now=NOW + timedelta(seconds=seconds), release_to=release_to)

    tally = inbox.totals
    ended = tally["processed"] + tally["duplicates"] + tally["late"] + tally["conflicts"] + tally["unnumbered"]
    assert tally["received"] == sum(len(arriving) for arriving, _, _ in rounds)
    assert ended <= tally["received"] <= ended + inbox.cursor.held + tally["set_aside"]


# One at a time


def test_conflicts_go_to_review() -> None:
    """A known sequence with another content is not processed, whether the first one is done, held, or just came."""
    inbox = Inbox()
    inbox.receive(message(1), message(3), message(1, "other", "new-1"), message(3, "other", "new-3"))
    decision = inbox.receive(message(1, "other", "id-1"), message(3, "other"), message(3, name="sent-again"))

    assert inbox.review == [(1, Why.SEQUENCE_CONFLICT), (3, Why.SEQUENCE_CONFLICT)] * 2
    assert [refused.known for refused in decision.review] == ["id-1", "id-3"]
    assert [refused.known for refused in decision.duplicates] == ["id-3"]
    assert (inbox.processed, inbox.held()) == ([1], [3])
    assert inbox.totals["conflicts"] == 4


def test_id_under_another_sequence() -> None:
    """An id that comes under a second number is not done twice, and not left out silently: the stream waits for it."""
    inbox = Inbox()
    inbox.receive(message(1), message(2, name="id-1"))
    assert inbox.review == [(2, Why.ID_CONFLICT)]
    assert inbox.cursor.status is Status.PARKED
    inbox.receive(message(3))
    assert inbox.held() == [3]
    inbox.receive(message(2))

    assert inbox.processed == [1, 2, 3]


def test_unnumbered() -> None:
    """What has no number cannot be put in order."""
    inbox = Inbox()
    inbox.receive(message(None), message(1))

    assert inbox.review == [(None, Why.UNNUMBERED)]
    assert (inbox.processed, inbox.totals["unnumbered"]) == ([1], 1)


@pytest.mark.parametrize("start", [0, 1, 5])
def test_start_at_a_number(start: int) -> None:
    """A stream that starts at a number waits for it; what comes from before is late."""
    inbox = Inbox(replace(PARK, start=start))
    inbox.receive(*messages(start + 1))
    assert inbox.missing() == [start]
    inbox.receive(*messages(start, *range(start)))

    assert inbox.processed == [start, start + 1]
    assert inbox.review == [(number, Why.BEFORE_START) for number in range(start)]


def test_start_at_the_first_seen() -> None:
    """A stream may start where it is first heard, and stays with that."""
    inbox = Inbox(replace(PARK, start=None))
    inbox.receive()
    assert inbox.cursor == Cursor()
    inbox.receive(*messages(7, 6, 8))

    assert (inbox.processed, inbox.review) == ([7, 8], [(6, Why.BEFORE_START)])
    assert inbox.cursor.start == 7


def test_last_sequence_of_all() -> None:
    """The highest sequence can be processed, and the cursor still fits a bigint."""
    inbox = Inbox(replace(PARK, start=None))
    inbox.receive(message(SEQUENCE_MAX))

    assert inbox.cursor.last == inbox.cursor.highest == SEQUENCE_MAX
    assert inbox.cursor.status is Status.FLOWING


def test_a_gap_of_any_width() -> None:
    """A gap costs the same however wide it is."""
    waiting = decide(Cursor(), [message(SEQUENCE_MAX)], Glimpse(), RELEASE, NOW).cursor
    held = Kept(SEQUENCE_MAX, "id", b"", State.HELD, message(SEQUENCE_MAX))
    made = decide(waiting, (), Glimpse([held], (), SEQUENCE_MAX), RELEASE, NOW + WAIT)

    assert made.released == (Range(1, SEQUENCE_MAX - 1),)
    assert numbers(made.process) == [SEQUENCE_MAX]
    assert made.cursor.last == SEQUENCE_MAX


def test_waiting_begins_anew_at_the_next_gap() -> None:
    """A stream that moved gets its whole wait again: one that catches up must not give up what is on its way."""
    inbox = Inbox(RELEASE)
    inbox.receive(*messages(2, 4))
    inbox.receive(*messages(1), now=NOW + timedelta(seconds=4))
    assert inbox.cursor.waiting_since == NOW + timedelta(seconds=4)
    inbox.receive(*messages(9), now=NOW + timedelta(seconds=8))

    assert inbox.cursor.deadline(RELEASE) == NOW + timedelta(seconds=9)


def test_each_gap_has_its_alert() -> None:
    """A parked stream that moves waits for the next missing message as any other, and is parked for that again."""
    inbox = Inbox(PARK)
    inbox.receive(*messages(2, 4))
    inbox.tick(5)
    inbox.receive(*messages(1), now=NOW + timedelta(seconds=6))
    assert inbox.cursor.status is Status.WAITING
    inbox.tick(11)
    assert (inbox.cursor.status, inbox.timed_out) == (Status.PARKED, [1, 3])

    at_once = Inbox(replace(PARK, max_wait=timedelta(0)))
    at_once.receive(*messages(2, 4))
    at_once.receive(*messages(1))
    assert at_once.timed_out == [1, 3]


def test_arrivals_find_that_waiting_is_over() -> None:
    """Without a tick the next batch notices; and what was waited for comes in time if it is in that batch."""
    too_late, in_time = Inbox(RELEASE), Inbox(RELEASE)
    for inbox, arriving in ((too_late, 3), (in_time, 1)):
        inbox.receive(*messages(2))
        inbox.receive(*messages(arriving), now=NOW + WAIT)

    assert (too_late.released, too_late.processed) == ([Range(1, 1)], [2, 3])
    assert (in_time.released, in_time.processed) == ([], [1, 2])


def test_no_wait_at_all() -> None:
    """A wait of zero is no wait."""
    inbox = Inbox(replace(RELEASE, max_wait=timedelta(0)))
    inbox.receive(*messages(2, 5, 4))

    assert inbox.processed == [2, 4, 5]
    assert inbox.released == [Range(1, 1), Range(3, 3)]
    assert inbox.totals["gaps_timed_out"] == 2


def test_full_buffer_parks() -> None:
    """Under park the lowest are held, the others set aside, and the alert is raised at once, and once."""
    inbox = Inbox(replace(PARK, max_buffered=2))
    made = inbox.receive(*messages(9, 3, 7, 5))
    assert (inbox.held(), numbers(each.message for each in made.overflow)) == ([3, 5], [7, 9])
    assert {each.why for each in made.overflow} == {Why.NO_ROOM}
    assert (inbox.cursor.status, inbox.timed_out) == (Status.PARKED, [1])
    again = inbox.receive(*messages(8, 3, 7))
    assert (again.timed_out, numbers(each.message for each in again.overflow)) == (None, [7, 8])
    assert again.taken_again == (7,)
    inbox.receive(*messages(1, 2))

    assert (inbox.processed, inbox.held()) == ([1, 2, 3], [5])


def test_other_content_does_not_come_back() -> None:
    """What was set aside comes back as it was, not as something else."""
    inbox = Inbox(DEAD_LETTER)
    inbox.receive(*messages(2))
    inbox.tick(5)
    inbox.receive(message(2, "other"))

    assert inbox.review == [(2, Why.SEQUENCE_CONFLICT)]
    assert (inbox.set_aside(), inbox.held()) == ([2], [])


def test_waiting_anew_after_dead_letters() -> None:
    """After its messages were set aside a stream that gets others waits again before these are, too."""
    inbox = Inbox(DEAD_LETTER)
    inbox.receive(*messages(2))
    inbox.tick(5)
    inbox.receive(*messages(3), now=NOW + timedelta(seconds=60))

    assert (inbox.cursor.status, inbox.held()) == (Status.WAITING, [3])
    assert inbox.cursor.deadline(DEAD_LETTER) == NOW + timedelta(seconds=65)


def test_a_changed_policy_acts() -> None:
    """A parked stream goes on when its policy becomes another."""
    inbox = Inbox(PARK)
    inbox.receive(*messages(2))
    inbox.tick(5)
    inbox.policy = RELEASE
    inbox.tick(6)

    assert inbox.processed == [2]


def test_a_person_goes_on_without() -> None:
    """By hand a stream goes on without what is missing up to a number, and no further; that is no timeout."""
    inbox = Inbox(PARK)
    inbox.receive(*messages(3, 4, 7, 9))
    made = inbox.receive(release_to=6)

    assert (inbox.processed, inbox.released) == ([3, 4, 7], [Range(1, 2), Range(5, 6)])
    assert (made.timed_out, made.tally.gaps_timed_out) == (None, 0)
    assert (inbox.cursor.next, inbox.cursor.status) == (8, Status.WAITING)
    inbox.receive(release_to=20)
    assert (inbox.processed, inbox.cursor.next) == ([3, 4, 7, 9], 21)
    inbox.receive(*messages(15))
    assert inbox.review == [(15, Why.RELEASED)]


def test_run_is_bounded() -> None:
    """No decision processes more than `run_max`; what is left is held, and the decision says that more is due."""
    made = decide(Cursor(), messages(1, 2, 3, 5), Glimpse(), PARK, NOW, run_max=2)

    assert (numbers(made.process), numbers(made.hold), made.more) == ([1, 2], [3, 5], True)
    assert (made.cursor.status, made.cursor.deadline(PARK)) == (Status.FLOWING, NOW)


def test_what_is_due_is_no_backlog() -> None:
    """Messages that are due and only wait for their run do not count as held, those behind a gap do."""
    made = decide(Cursor(), messages(1, 2, 3, 4, 6, 8), Glimpse(), replace(PARK, max_buffered=1), NOW, run_max=1)

    assert (numbers(made.hold), numbers(each.message for each in made.overflow)) == ([2, 3, 4, 6], [8])


def test_out_of_order_is_counted() -> None:
    """A message is out of order if it came after a higher one, in the same batch or in another."""
    inbox = Inbox()
    inbox.receive(*messages(3, 5, 1, 6))
    inbox.receive(*messages(2, 7, 3))

    assert inbox.totals["out_of_order"] == 2


def test_held_back() -> None:
    """With `run_max` 0 a stream holds what is due, within bounds; nothing counts as a gap."""
    policy = replace(PARK, max_buffered=2)
    made = decide(Cursor(), messages(1, 2, 3), Glimpse(), policy, NOW, run_max=0)

    assert (numbers(made.process), numbers(made.hold), made.more) == ([], [1, 2], True)
    assert numbers(each.message for each in made.overflow) == [3]
    assert (made.tally.gaps_opened, made.cursor.status) == (0, Status.FLOWING)


def test_waiting_stream_is_not_looked_through() -> None:
    """While a stream waits, what arrives early needs none of what is held; what sets it going needs a bounded run."""
    waiting = Cursor(start=1, last=4, highest=10**6, held=900_000, status=Status.WAITING, waiting_since=NOW)
    policy = replace(RELEASE, max_buffered=10**6)

    assert lookup(waiting, messages(7, 9), policy, NOW) == Lookup((7, 9), ("id-7", "id-9"), None, 1_000)
    assert lookup(waiting, messages(5), policy, NOW).run_from == 5
    assert lookup(waiting, (), policy, NOW + WAIT).run_from == 5
    assert lookup(waiting, (), replace(policy, on_gap=OnGap.PARK), NOW + WAIT).run_from is None
    assert lookup(waiting, (), policy, NOW, release_to=5).run_from == 5
    assert decide(waiting, messages(7), Glimpse(), policy, NOW).cursor == waiting._replace(held=900_001, revision=1)


def test_unseen_messages_are_not_skipped() -> None:
    """A glimpse that shows too little leads to another look, never to a release of what is held; no time is lost."""
    waiting = Cursor(start=1, last=0, highest=9, held=3, status=Status.WAITING, waiting_since=NOW)
    made = decide(waiting, (), Glimpse(), RELEASE, NOW + WAIT)

    assert (made.more, made.released) == (True, ())
    assert made.cursor == waiting


def test_nothing_new_changes_nothing() -> None:
    """A batch of duplicates leaves the cursor as it is, so that it need not be written."""
    inbox = Inbox()
    inbox.receive(*messages(1, 2, 4))
    before = inbox.cursor
    made = inbox.receive(*messages(2, 1, 4, 4))

    assert made.cursor == before
    assert len(made.duplicates) == 4


def test_unordered() -> None:
    """Where order does not matter each id is processed once, as it comes; an id with another content goes to review."""
    arriving = [message(9), message(2), message(9), message(None, "x", "id-2"), message(None, name="n")]
    made = decide_unordered([*arriving, arriving[1]], {"n": message(None, name="n").digest})

    assert numbers(made.process) == [9, 2]
    assert [each.message.id for each in made.duplicates] == ["id-9", "n", "id-2"]
    assert [(each.message.id, each.why) for each in made.review] == [("id-2", Why.ID_CONFLICT)]
    assert made.tally[:3] == (6, 2, 3)


@pytest.mark.parametrize(
    "broken", [{"max_wait": timedelta(-1)}, {"max_buffered": 0}, {"start": -1}, {"start": SEQUENCE_MAX + 1}]
)
def test_policies_make_sense(broken: dict[str, object]) -> None:
    """A policy that cannot be meant is refused."""
    with pytest.raises(ValueError, match="is"):
        replace(PARK, **broken)  # type: ignore[arg-type]
