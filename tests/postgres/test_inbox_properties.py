"""
The laws of the inbox, for any messages in any order: what takes effect is what would have, had all come in order.

In order is not the inbox's own word: a second set of accounts gets the same commands one by one, through `handle`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, count, groupby
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import Done, Ledger, Rejected, Strict, Unordered, parse_command
from ledger.batch import Outcome
from ledger.inbox import Inbox
from ledger.order.cursor import OnGap, Range
from ledger.order.message import Message

Psql: TypeAlias = psycopg.Connection[Any]
History: TypeAlias = list[tuple[Any, ...]]

PATIENT: Final = Strict(max_wait=timedelta(hours=1))
NAMES: Final = ("a", "b", "c")
DELIVERIES_MAX: Final = 20
"""How often everything is delivered again, at most, until nothing waits any more."""

RUNS = count(1)

EXAMPLES: Final = int(os.environ.get("LEDGER_PROPERTY_EXAMPLES", "40"))

database = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


class Step(NamedTuple):
    """What one message asks for; `hold` is the sequence of the hold that a capture is of."""

    kind: str
    cents: int
    hold: int = 0


@dataclass
class Truth:
    """What became of each stream that got its steps one by one, in order: events, and an answer for each step."""

    events: dict[str, History] = field(default_factory=dict)
    answers: dict[str, list[object]] = field(default_factory=dict)


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """Steps of one stream whose outcome depends on their order: what is spent must have come in, holds be placed."""
    made: list[Step] = []
    for number in range(1, draw(st.integers(1, 7)) + 1):
        holds = [place for place, step in enumerate(made, 1) if step.kind == "hold"]
        kinds = ["deposit", "withdraw", "hold", *(["capture"] if holds else [])]
        kind = "deposit" if number == 1 else draw(st.sampled_from(kinds))
        made.append(Step(kind, draw(st.integers(1, 50)), draw(st.sampled_from(holds)) if kind == "capture" else 0))
    return made


traffic = st.lists(steps(), min_size=1, max_size=len(NAMES)).map(lambda each: dict(zip(NAMES, each, strict=False)))


def request_of(step: Step, account: str, hold: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a step's command."""
    amount = f"0.{step.cents:02} USD"
    if step.kind == "capture":
        return dict(hold)
    if step.kind == "hold":
        return {"amount": amount, "debit": account, "credit": "world"}
    return {"amount": amount, "account": account, "against": "world"}


def messages_of(source: str, streams: Mapping[str, Sequence[Step]]) -> list[Message]:
    """The messages of all streams, as they were sent."""
    return [
        Message(
            source,
            f"{stream}-{number}",
            f"ledger.{step.kind}",
            stream,
            number,
            data=request_of(step, stream, {"hold_key": f"{stream}#{step.hold}"}),
        )
        for stream, made in streams.items()
        for number, step in enumerate(made, 1)
    ]


def in_order(ledger: Ledger, account: str, made: Sequence[Step]) -> list[object]:
    """Carry out a stream's steps one by one, without any inbox, on an account of their own; what came of each."""
    outcomes: list[Outcome] = []
    for step in made:
        placed = outcomes[step.hold - 1] if step.hold else None
        hold = placed.transaction.transaction_id if isinstance(placed, Done) else str(uuid4())
        command = {"type": step.kind, **request_of(step, account, {"hold": hold})}
        outcomes += ledger.handle([parse_command(json.dumps(command))])
    return [said(outcome, account) for outcome in outcomes]


def said(outcome: object, account: str) -> object:
    """What an outcome says about an account: its version, or why not."""
    if isinstance(outcome, Done):
        return outcome.versions[account]
    assert isinstance(outcome, Rejected)
    return outcome.code


def events_of(ledger: Ledger, account: str) -> History:
    """All that happened to an account, but for what tells two accounts or two moments apart."""
    return [
        (event.version, event.type, event.direction, event.amount, event.numbers) for event in ledger.history(account)
    ]


def open_accounts(ledger: Ledger, accounts: Iterable[str]) -> None:
    """Accounts that may not be overdrawn."""
    commands = [
        {"type": "open_account", "account": account, "asset": "USD", "account_type": "liability", "min_balance": "0"}
        for account in accounts
    ]
    assert all(isinstance(done, Done) for done in ledger.handle([parse_command(json.dumps(one)) for one in commands]))


class Case:
    """One example: streams of a source that nobody used before, and what should come of them."""

    def __init__(self, ledger: Ledger, traffic: Mapping[str, Sequence[Step]], policy: Strict = PATIENT) -> None:
        self.ledger = ledger
        self.number = next(RUNS)
        self.streams = {f"{name}{self.number}": made for name, made in traffic.items()}
        self.sent = messages_of(f"source-{self.number}", self.streams)
        self.inbox: Inbox = ledger.inbox(f"source-{self.number}", policy)
        self.answers: dict[str, list[object]] = {stream: [] for stream in self.streams}
        open_accounts(ledger, [*self.streams, *map(twin_of, self.streams)])

    def receive(self, messages: Sequence[Message]) -> None:
        """Give messages to the inbox, and keep its answers in the order in which they were given."""
        for message, outcome in self.inbox.receive(messages).outcomes:
            self.answers[message.stream].append(said(outcome, message.stream))

    def tick(self) -> None:
        """Let time pass as far as the inbox is concerned, and keep its answers."""
        for message, outcome in self.inbox.tick().outcomes:
            self.answers[message.stream].append(said(outcome, message.stream))

    def truth(self, through: Mapping[str, int] | None = None) -> Truth:
        """What becomes of the streams in order, each up to a step of it."""
        truth = Truth()
        for stream, made in self.streams.items():
            due = made if through is None else made[: through[stream]]
            truth.answers[stream] = in_order(self.ledger, twin_of(stream), due)
            truth.events[stream] = events_of(self.ledger, twin_of(stream))
        return truth

    def found(self) -> Truth:
        """What became of them."""
        return Truth({stream: events_of(self.ledger, stream) for stream in self.streams}, self.answers)

    @property
    def waiting(self) -> list[str]:
        """The streams that wait."""
        return [gap.stream for gap in self.inbox.gaps()]


def twin_of(stream: str) -> str:
    """The account that gets the same in order."""
    return f"{stream}-in-order"


def in_batches(data: st.DataObject, messages: Sequence[Message]) -> Iterable[Sequence[Message]]:
    """Cut messages into batches of any sizes."""
    left = list(messages)
    while left:
        size = data.draw(st.integers(1, len(left)), label="batch")
        yield left[:size]
        left = left[size:]


def first_missing(numbers: set[int]) -> int:
    """The first sequence from 1 on that is not among these."""
    return next(number for number in count(1) if number not in numbers)


def ranges(numbers: Iterable[int]) -> list[Range]:
    """Sequences as ranges."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    whole = [[number for _, number in run] for _, run in runs]
    return [Range(run[0], run[-1]) for run in whole]


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """A ledger with a world, against which money comes in and goes out."""
    ledger.open_account("world", asset="USD", type="equity")
    return ledger


@database
@given(data=st.data(), traffic=traffic)
def test_any_delivery_is_as_good_as_in_order(
    bank: Ledger, data: st.DataObject, traffic: Mapping[str, Sequence[Step]]
) -> None:
    """Permuted, duplicated, cut into batches anyhow: the same events, versions and answers per stream as in order."""
    case = Case(bank, traffic)
    copies = data.draw(st.lists(st.sampled_from(case.sent), max_size=8), label="copies")
    arriving = data.draw(st.permutations([*case.sent, *copies]), label="arriving")
    for batch in in_batches(data, arriving):
        case.receive(batch)
    assert case.found() == case.truth()
    assert case.waiting == []
    counters = case.inbox.stats().counters
    assert counters["received"] == len(arriving)
    assert counters["processed"] == len(case.sent)
    assert counters.get("duplicates", 0) == len(copies)
    assert counters.get("gaps_opened", 0) == counters.get("gaps_filled", 0)
    rejected = [answer for answers in case.answers.values() for answer in answers if isinstance(answer, str)]
    assert counters.get("rejected", 0) == len(rejected)


@database
@given(data=st.data(), traffic=traffic)
def test_exactly_the_streams_with_losses_wait(
    bank: Ledger, data: st.DataObject, traffic: Mapping[str, Sequence[Step]]
) -> None:
    """What comes before a loss takes effect, what comes after waits; what is reported missing is exactly what is."""
    case = Case(bank, traffic)
    arriving = data.draw(st.permutations(case.sent), label="arriving")
    kept = arriving[: data.draw(st.integers(0, len(arriving)), label="kept")]
    for batch in in_batches(data, kept):
        case.receive(batch)
    came = {stream: {message.sequence or 0 for message in kept if message.stream == stream} for stream in case.streams}
    lost = {stream: set(range(1, max(numbers, default=0))) - numbers for stream, numbers in came.items()}
    assert case.waiting == sorted(stream for stream, numbers in lost.items() if numbers)
    for stream, numbers in lost.items():
        assert case.inbox.missing(stream) == ranges(numbers)
        told = [each.missing for each in case.inbox.completeness(stream=stream)]
        assert told == ([ranges(numbers)] if came[stream] else [])
    due = {stream: first_missing(numbers) - 1 for stream, numbers in came.items()}
    assert case.found() == case.truth(due)
    assert case.inbox.stats().held == len(kept) - sum(due.values())


@database
@given(data=st.data(), traffic=traffic, on_gap=st.sampled_from([OnGap.PARK, OnGap.DEAD_LETTER]))
def test_no_impatience_loses_a_message(
    bank: Ledger, data: st.DataObject, traffic: Mapping[str, Sequence[Step]], on_gap: OnGap
) -> None:
    """Waits of no time, buffers for a single message: what was set aside is taken when it comes again, in its place."""
    case = Case(bank, traffic, Strict(timedelta(0), max_buffered=data.draw(st.integers(1, 3)), on_gap=on_gap))
    for _ in range(DELIVERIES_MAX):
        for batch in in_batches(data, data.draw(st.permutations(case.sent), label="arriving")):
            case.receive(batch)
            if data.draw(st.booleans(), label="tick"):
                case.tick()
        if not case.waiting:
            break
    # What comes in order needs no buffer: of the streams that others had stopped, too, nothing is left.
    case.receive(case.sent)
    assert case.waiting == []
    assert case.found() == case.truth()
    assert case.inbox.dead_letters() == []
    assert case.inbox.stats().counters["processed"] == len(case.sent)


@database
@given(data=st.data(), traffic=traffic)
def test_what_is_gone_on_without_is_for_a_person(
    bank: Ledger, psql: Psql, data: st.DataObject, traffic: Mapping[str, Sequence[Step]]
) -> None:
    """A stream that waits no time takes each message once or leaves it for review: never both, never neither."""
    case = Case(bank, traffic, Strict(timedelta(0), on_gap=OnGap.RELEASE))
    for batch in in_batches(data, data.draw(st.permutations([*case.sent, *case.sent]), label="arriving")):
        case.receive(batch)
        case.tick()
    processed = psql.execute(
        "SELECT stream, sequence FROM inbox_messages WHERE source = %s AND state = 'done'", [case.inbox.source]
    ).fetchall()
    late = [(letter.message.stream, letter.message.sequence) for letter in case.inbox.dead_letters()]
    assert sorted([*processed, *late]) == sorted((message.stream, message.sequence) for message in case.sent)
    assert case.waiting == []
    assert {letter.why for letter in case.inbox.dead_letters()} <= {"released"}
    counters = case.inbox.stats().counters
    assert counters.get("late", 0) == len(late)
    # The second copy of each is one, whatever became of the first.
    assert (counters["received"], counters["duplicates"]) == (2 * len(case.sent), len(case.sent))


@database
@given(data=st.data(), cents=st.lists(st.integers(1, 50), min_size=1, max_size=12))
def test_unordered_messages_count_once_by_id(bank: Ledger, data: st.DataObject, cents: Sequence[int]) -> None:
    """Whatever comes in whatever order and how often: at once, and each id once; nothing ever waits."""
    number = next(RUNS)
    names = [f"{name}{number}" for name in NAMES]
    open_accounts(bank, names)
    owners = data.draw(st.lists(st.sampled_from(names), min_size=len(cents), max_size=len(cents)), label="owners")
    sent = [
        Message(f"source-{number}", f"id-{place}", "ledger.deposit", owner, data=request_of(Step("", one), owner, {}))
        for place, (owner, one) in enumerate(zip(owners, cents, strict=True))
    ]
    copies = data.draw(st.lists(st.sampled_from(sent), max_size=12), label="copies")
    inbox = bank.inbox(f"source-{number}", Unordered())
    for batch in in_batches(data, data.draw(st.permutations([*sent, *copies]), label="arriving")):
        inbox.receive(batch)
    for name in names:
        amounts = sorted(event.amount or 0 for event in bank.history(name, after_version=1))
        assert amounts == sorted(one for owner, one in zip(owners, cents, strict=True) if owner == name)
    counters = inbox.stats().counters
    assert (counters["processed"], counters.get("duplicates", 0)) == (len(sent), len(copies))
    assert inbox.gaps() == []


@database
@given(data=st.data(), lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3))
def test_every_source_counts_for_itself(bank: Ledger, data: st.DataObject, lengths: Sequence[int]) -> None:
    """Sources that use one stream's name, the same ids and the same sequences: each takes effect, in its own order."""
    number = next(RUNS)
    stream = f"shared{number}"
    open_accounts(bank, [stream])
    sent = {
        f"source-{number}-{place}": [
            Message(
                f"source-{number}-{place}",
                f"id-{sequence}",
                "ledger.deposit",
                stream,
                sequence,
                data=request_of(Step("deposit", 10 * place + sequence), stream, {}),
            )
            for sequence in range(1, length + 1)
        ]
        for place, length in enumerate(lengths)
    }
    for message in data.draw(st.permutations([*chain.from_iterable(sent.values())]), label="arriving"):
        bank.inbox(message.source, PATIENT).receive([message])
    amounts = [event.amount or 0 for event in bank.history(stream, after_version=1)]
    for place, length in enumerate(lengths):
        own = [amount - 10 * place for amount in amounts if amount // 10 == place]
        assert own == list(range(1, length + 1))
