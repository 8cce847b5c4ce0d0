"""
Several consumers of the same streams at once, as after a rebalance that nobody noticed: each effect once, in order.

Everybody gets all messages, in an order and in batches of their own, in threads and in processes; deadlines that come
and dead letters that are requeued meanwhile race with them.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from typing import Any, Final, TypeAlias
from uuid import UUID

import psycopg
import pytest
from invariants import assert_sound, repairs

from ledger import ConcurrencyError, InvalidCommand, Ledger, Retry, Strict
from ledger.inbox import Inbox
from ledger.order.cursor import OnGap
from ledger.order.message import Json, Message

Psql: TypeAlias = psycopg.Connection[Any]
Play: TypeAlias = Callable[[Sequence[Callable[[], Any]]], list[Any]]

SECONDS: Final = 60
STREAMS: Final = ("alice", "bob", "carol", "dave")
EACH: Final = 30
"""Messages of a stream."""

TIPS: Final = "ledger.transfer"
"""A type of messages that have no order."""

TRIES_MAX: Final = 20
"""How often a consumer gives a batch again that lost its race: as a broker delivers again what was not acknowledged."""

ROUNDS: Final = 10
PATIENT: Final = Strict(max_wait=timedelta(hours=1))


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """Customers who may not overdraw, a box for tips, and the world, which all of them share."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("tips", asset="USD", type="liability")
    for name in STREAMS:
        ledger.open_account(name, asset="USD", type="liability", min_balance=0)
    return ledger


def sent() -> list[Message]:
    """Of each stream a deposit and a withdrawal of all of it in turn, so that any other order is refused; and tips."""
    messages = []
    for stream in STREAMS:
        for number in range(1, EACH + 1):
            kind, cents = ("deposit", number) if number % 2 else ("withdraw", number - 1)
            data: Json = {"account": stream, "amount": f"0.{cents:02} USD", "against": "world"}
            messages.append(Message("bank", f"{stream}-{number}", f"ledger.{kind}", stream, number, data=data))
        tip: Json = {"debit": "world", "credit": "tips", "amount": "0.01 USD"}
        messages += [Message("bank", f"{stream}-tip-{number}", TIPS, stream, data=tip) for number in range(EACH // 3)]
    return messages


def inbox_of(ledger: Ledger, policy: Strict = PATIENT) -> Inbox:
    """The inbox that everybody uses."""
    return ledger.inbox("bank", policy, unordered=[TIPS])


def consume(url: str, seed: int, policy: Strict = PATIENT) -> int:
    """Receive all messages and some of them twice, in an order and in batches that the seed tells; how many."""
    chance = random.Random(seed)  # noqa: S311  (a shuffle that can be repeated)
    everything = sent()
    arriving = chance.sample(everything, len(everything)) + chance.sample(everything, len(everything) // 4)
    with Ledger.connect(url, pool_size=1) as ledger:
        inbox, place = inbox_of(ledger, policy), 0
        while place < len(arriving):
            size = chance.randint(1, 25)
            _deliver(inbox, arriving[place : place + size])
            place += size
    return len(arriving)


def _deliver(inbox: Inbox, messages: Sequence[Message]) -> None:
    """Give messages until they were taken in."""
    for left in reversed(range(TRIES_MAX)):
        try:
            inbox.receive(messages)
        except ConcurrencyError:
            if not left:
                raise
        else:
            return


def assert_once_and_in_order(bank: Ledger, url: str) -> None:
    """Check that every message took effect once, those of a stream in order, and nothing is left."""
    for stream in STREAMS:
        found = [(event.direction, event.amount) for event in bank.history(stream, after_version=1)]
        assert found == [("credit", number) if number % 2 else ("debit", number - 1) for number in range(1, EACH + 1)]
    assert bank.balance("tips").posted.minor == len(STREAMS) * (EACH // 3)
    inbox = inbox_of(bank)
    assert inbox.gaps() == []
    assert inbox.dead_letters() == []
    assert inbox.stats().held == 0
    assert inbox.stats().counters["processed"] == len(sent())
    assert repairs(url) == 0
    assert_sound(bank, url)


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Three processes that are there already when a race begins."""
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        yield pool


@pytest.fixture(params=["threads", "processes"])
def play(request: pytest.FixtureRequest) -> Iterator[Play]:
    """Let some works be done at once, by threads or by processes; what came of each."""
    with ThreadPoolExecutor(6) as threads:
        pool = threads if request.param == "threads" else request.getfixturevalue("processes")

        def run(works: Sequence[Callable[[], Any]]) -> list[Any]:
            return [future.result(SECONDS) for future in [pool.submit(work) for work in works]]

        yield run


def test_consumers_of_the_same_streams(bank: Ledger, ledger_url: str, play: Play) -> None:
    """Whoever is first: every effect once and in order, nobody fails for good, and the counters add up."""
    received = play([partial(consume, ledger_url, seed) for seed in range(3)])
    assert_once_and_in_order(bank, ledger_url)
    counters = inbox_of(bank).stats().counters
    assert counters["received"] == sum(received)
    assert counters["duplicates"] == sum(received) - len(sent())
    assert counters["gaps_opened"] == counters["gaps_filled"]
    never = ("rejected", "conflicts", "late", "dead_lettered", "gaps_timed_out", "unnumbered")
    assert [counters[name] for name in never] == [0] * len(never)


def tick_until(url: str, policy: Strict, over: threading.Event) -> int:
    """Act on deadlines, again and again; how often."""
    ticks = 0
    with Ledger.connect(url, pool_size=1) as ledger:
        inbox = inbox_of(ledger, policy)
        while not over.is_set():
            try:
                inbox.tick()
            except ConcurrencyError:
                # The next one acts on what this one did not.
                continue
            ticks += 1
    return ticks


@pytest.mark.parametrize("on_gap", [OnGap.PARK, OnGap.DEAD_LETTER])
def test_deadlines_that_come_meanwhile(bank: Ledger, ledger_url: str, on_gap: OnGap) -> None:
    """Streams without any patience, ticked all the time: what was set aside comes again, and nothing is lost."""
    policy, over = Strict(timedelta(0), max_buffered=5, on_gap=on_gap), threading.Event()
    with ThreadPoolExecutor(4) as threads:
        ticker = threads.submit(tick_until, ledger_url, policy, over)
        try:
            consumers = [threads.submit(consume, ledger_url, seed, policy) for seed in range(3)]
            received = sum(consumer.result(SECONDS) for consumer in consumers)
        finally:
            over.set()
        assert ticker.result(SECONDS) > 0
    inbox_of(bank, policy).receive(sent())
    received += len(sent())
    assert_once_and_in_order(bank, ledger_url)
    counters = inbox_of(bank).stats().counters
    assert counters["received"] == received
    assert counters["gaps_timed_out"] > 0
    assert counters["rejected"] == 0


class Shop:
    """A source whose messages a handler carries out: it fails while it is broken, and writes down what it does."""

    def __init__(self, ledger: Ledger, psql: Psql) -> None:
        psql.execute("CREATE TABLE public.orders (stream text NOT NULL, sequence bigint, n serial)")
        self.broken = True
        self._ledger = ledger
        self._psql = psql

    def inbox(self, policy: Strict = PATIENT) -> Inbox:
        """The inbox of the source."""
        retry = Retry(attempts_max=1, park=True)
        return self._ledger.inbox("shop", policy, handlers={"shop.ordered": self._handle}, retry=retry)

    def orders(self, stream: str) -> list[int]:
        """The sequences that took effect, in order."""
        sql = "SELECT sequence FROM public.orders WHERE stream = %s ORDER BY n"
        return [sequence for (sequence,) in self._psql.execute(sql, [stream]).fetchall()]

    def _handle(self, message: Message, connection: Psql) -> None:
        assert not self.broken, "the shop is closed"
        connection.execute("INSERT INTO public.orders VALUES (%s, %s)", [message.stream, message.sequence])


def order(stream: str, number: int) -> Message:
    """A message that only the handler understands."""
    return Message("shop", f"{stream}-{number}", "shop.ordered", stream, number)


def at_once(works: Sequence[Callable[[], object]]) -> list[str]:
    """Do all of these at the same moment; what came of each: done, or refused."""
    barrier = threading.Barrier(len(works))

    def work(one: Callable[[], object]) -> str:
        barrier.wait(SECONDS)
        for _ in range(TRIES_MAX):
            try:
                one()
            except ConcurrencyError:
                continue
            except InvalidCommand:
                return "refused"
            return "done"
        return "lost"

    with ThreadPoolExecutor(len(works)) as threads:
        return [future.result(SECONDS) for future in [threads.submit(work, one) for one in works]]


def _requeue(inbox: Inbox, letter: UUID | str) -> Callable[[], object]:
    return lambda: inbox.requeue(letter)


def test_requeues_of_a_failed_message_race_with_new_ones(bank: Ledger, psql: Psql) -> None:
    """Two people requeue one dead letter while copies of it and what follows arrive: one wins, all goes in order."""
    shop = Shop(bank, psql)
    for number in range(ROUNDS):
        stream, inbox = f"stream-{number}", shop.inbox()
        shop.broken = True
        inbox.receive([order(stream, 1), order(stream, 2)])
        (letter,) = inbox.dead_letters()
        shop.broken = False
        requeue = _requeue(inbox, letter.dead_letter_id)
        arrivals = [partial(inbox.receive, [order(stream, each) for each in batch]) for batch in ([3, 2, 1], [4, 1])]
        came = at_once([requeue, requeue, *arrivals])
        assert sorted(came[:2]) == ["done", "refused"]
        assert came[2:] == ["done", "done"]
        assert shop.orders(stream) == [1, 2, 3, 4]
        assert inbox.gaps() == []
        assert inbox.dead_letters() == []
    assert inbox.stats().counters["processed"] == ROUNDS * 4


def test_requeue_of_a_message_set_aside_races_with_its_second_coming(bank: Ledger, psql: Psql) -> None:
    """What was set aside is requeued, delivered again and ticked for at once: it takes effect once, in its place."""
    shop = Shop(bank, psql)
    shop.broken = False
    for number in range(ROUNDS):
        stream, inbox = f"stream-{number}", shop.inbox(Strict(timedelta(0), on_gap=OnGap.DEAD_LETTER))
        inbox.receive([order(stream, 2)])
        inbox.tick()
        (letter,) = inbox.dead_letters()
        works = [_requeue(inbox, letter.dead_letter_id), inbox.tick]
        works += [partial(inbox.receive, [order(stream, each) for each in batch]) for batch in ([2], [1], [3])]
        came = at_once(works)
        assert came[0] in ("done", "refused")
        assert came[1:] == ["done"] * 4
        inbox.receive([order(stream, each) for each in (1, 2, 3)])
        assert shop.orders(stream) == [1, 2, 3]
        assert inbox.gaps() == []
        assert inbox.dead_letters() == []


def test_two_people_who_go_on_without_the_same_message(bank: Ledger, psql: Psql, ledger_url: str) -> None:
    """Released twice at once while it arrives after all: in its place or for review, and never lost or done twice."""
    shop = Shop(bank, psql)
    shop.broken = False
    inbox = shop.inbox()
    for number in range(ROUNDS):
        stream = f"stream-{number}"
        inbox.receive([order(stream, each) for each in (1, 3)])
        release = partial(inbox.release, stream)
        came = at_once([release, release, partial(inbox.receive, [order(stream, 2)])])
        assert came[2] == "done"
        late = [letter.message.sequence for letter in inbox.dead_letters(stream=stream)]
        assert (came[:2].count("done"), shop.orders(stream), late) in [(0, [1, 2, 3], []), (1, [1, 3], [2])]
    assert_sound(bank, ledger_url)


def wait_until_blocked(psql: Psql) -> None:
    """Wait until somebody waits for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    tick = threading.Event()
    for _ in range(100 * SECONDS):
        if psql.execute(waiting).fetchall() != [(0,)]:
            return
        tick.wait(0.01)
    pytest.fail("nobody waits")


@pytest.mark.parametrize("what", ["mixed batch", "requeue", "discard"])
def test_cursors_are_locked_before_anything_else(bank: Ledger, psql: Psql, ledger_url: str, what: str) -> None:
    """Who waits for a cursor holds no balance, letter or counter that the cursor's holder may want: no deadlock."""
    shop = Shop(bank, psql)
    shop.inbox().receive([order("alice", 1)])
    (letter,) = shop.inbox().dead_letters()
    first, second = sent()[:2]
    tip = next(message for message in sent() if message.type == TIPS)
    inbox_of(bank).receive([first])
    shop.broken = False
    works: dict[str, Callable[[], object]] = {
        "mixed batch": partial(inbox_of(bank).receive, [tip, second]),
        "requeue": _requeue(shop.inbox(), letter.dead_letter_id),
        "discard": partial(shop.inbox().discard, letter.dead_letter_id),
    }
    with ThreadPoolExecutor(1) as threads, psycopg.connect(ledger_url, options="-c search_path=ledger") as holder:
        holder.execute("SELECT FROM inbox_streams FOR NO KEY UPDATE")
        worker = threads.submit(works[what])
        try:
            wait_until_blocked(psql)
            holder.execute("SELECT FROM balances FOR NO KEY UPDATE NOWAIT")
            holder.execute("SELECT FROM dead_letters FOR UPDATE NOWAIT")
            holder.execute("SELECT FROM inbox_counters FOR NO KEY UPDATE NOWAIT")
        finally:
            holder.rollback()
            worker.result(SECONDS)
