"""
What is left of messages when whoever takes them in dies at the worst moment, and everything is delivered again.

A consumer in a process of its own is killed at every statement and every flight in turn, until there is none left
to be killed at; and the same with a connection that breaks.  What it acknowledged is in a journal outside of
the database.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg
import pytest
from invariants import assert_sound, repairs
from journal import Journal
from proxy import Fault, FaultyProxy, Point, Session, Strike
from sqlalchemy import make_url

from ledger import Ledger, LedgerError, Retry, Strict
from ledger.inbox import Inbox
from ledger.order.message import Json, Message

Psql: TypeAlias = psycopg.Connection[Any]

WAIT_SECONDS: Final = 60
POINTS_MAX: Final = 200
"""More statements than a consumer may ever send for its few batches: the search for the last one is bounded."""

ATTEMPTS_MAX: Final = 3
PATIENT: Final = Strict(max_wait=timedelta(hours=1))
EVENT: Final = "shop.viewed"
"""A type of messages that have no order."""

ORDERED: Final = "shop.ordered"
"""A type of messages that a handler carries out."""


def count_order(message: Message, connection: Psql) -> None:
    """Keep that a message took effect, as often as it does."""
    connection.execute("INSERT INTO public.orders VALUES (%s, %s)", [message.stream, message.sequence])


def inbox_of(ledger: Ledger) -> Inbox:
    """The inbox that everybody in these tests uses."""
    handlers = {ORDERED: count_order, EVENT: count_order}
    return ledger.inbox("shop", PATIENT, unordered=[EVENT], handlers=handlers, retry=Retry(delay=timedelta(0)))


def batches_of(name: str) -> list[list[Message]]:
    """Three batches of one run's streams: what is early, what fills the gap, and copies of both with a new one."""

    def paid(number: int, kind: str, amount: str) -> Message:
        data: Json = {"account": "alice", "amount": amount, "against": "world"}
        return Message("shop", f"{name}-paid-{number}", f"ledger.{kind}", f"{name}-paid", number, data=data)

    def ordered(number: int) -> Message:
        return Message("shop", f"{name}-order-{number}", ORDERED, f"{name}-order", number)

    def viewed(number: int) -> Message:
        return Message("shop", f"{name}-view-{number}", EVENT, f"{name}-view")

    early = [paid(2, "withdraw", "8 USD"), ordered(3), ordered(1), viewed(1)]
    filling = [paid(1, "deposit", "10 USD"), ordered(2), paid(3, "deposit", "1 USD")]
    return [early, filling, [paid(1, "deposit", "10 USD"), ordered(3), viewed(1), viewed(2), ordered(4)]]


def distinct(batches: Sequence[Sequence[Message]]) -> dict[str, Message]:
    """The messages of some batches, by id."""
    return {message.id: message for batch in batches for message in batch}


@pytest.fixture
def bank(ledger: Ledger, psql: Psql) -> Ledger:
    """A customer who may not overdraw; and a table of a handler's own, that takes what it is given, twice as well."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability", min_balance=0)
    psql.execute("CREATE TABLE public.orders (stream text NOT NULL, sequence bigint)")
    return ledger


@pytest.fixture
def proxy(bank: Ledger, ledger_url: str) -> Iterator[FaultyProxy]:  # noqa: ARG001  (there must be accounts)
    """A proxy in front of the ledger."""
    with FaultyProxy(make_url(ledger_url)) as proxy:
        yield proxy


@pytest.fixture
def terminate(psql: Psql) -> Strike:
    """Somebody who terminates a session's server process, and waits until it is gone."""

    def strike(session: Session) -> None:
        psql.execute("SELECT pg_terminate_backend(%s, 10000)", (session.backend_pid,))

    return strike


class Desk:
    """Delivers everything again after a crash, and checks that it took effect once and in order."""

    def __init__(self, bank: Ledger, psql: Psql) -> None:
        self.bank = bank
        self.psql = psql
        self.inbox = inbox_of(bank)
        self.sent = 0
        self.version = bank.balance("alice").version

    def known(self) -> set[str]:
        """The ids of all messages that are kept, whatever became of them."""
        rows = self.psql.execute("SELECT message_id FROM inbox_messages UNION ALL SELECT message_id FROM inbox_ids")
        return {name for (name,) in rows}

    def redeliver(self, batches: Sequence[Sequence[Message]], seed: int) -> None:
        """Give everything again, shuffled; then all of it must have happened, once, in order."""
        chance = random.Random(seed)  # noqa: S311  (a shuffle that can be repeated)
        again = [message for batch in batches for message in batch]
        self.inbox.receive(chance.sample(again, len(again)))
        self.sent += len(distinct(batches))
        name = batches[0][0].stream.removesuffix("-paid")
        paid = [(event.direction, event.amount) for event in self.bank.history("alice", after_version=self.version)]
        self.version += len(paid)
        assert paid == [("credit", 1000), ("debit", 800), ("credit", 100)]
        orders = self.psql.execute("SELECT sequence FROM public.orders WHERE stream = %s", [f"{name}-order"]).fetchall()
        assert orders == [(1,), (2,), (3,), (4,)]
        views = self.psql.execute("SELECT count(*) FROM public.orders WHERE stream = %s", [f"{name}-view"]).fetchall()
        assert views == [(2,)]
        stats = self.inbox.stats()
        assert stats.counters["processed"] == self.sent
        assert stats.held == 0
        assert self.inbox.gaps() == []
        assert self.inbox.dead_letters() == []


@pytest.fixture
def desk(bank: Ledger, psql: Psql) -> Desk:
    """Somebody who delivers again."""
    return Desk(bank, psql)


# The connection breaks


CUT: Final = [
    pytest.param("cut", point, marks=() if point is Point.UNSENT else pytest.mark.campaign) for point in Point
]
TERMINATED: Final = [pytest.param("terminated", point, marks=pytest.mark.campaign) for point in Point]


@pytest.mark.parametrize(("how", "point"), [*CUT, *TERMINATED])
def test_lost_connection_loses_no_message(
    desk: Desk, ledger_url: str, proxy: FaultyProxy, terminate: Strike, point: Point, how: str
) -> None:
    """Wherever the connection breaks: what was answered is kept; delivered again, everything has happened once."""
    strike = Session.cut if how == "cut" else terminate
    with Ledger.connect(proxy.url, pool_size=1) as client:
        for number in range(1, POINTS_MAX):
            assert client.trial_balance().balanced  # It has a connection.
            batches = batches_of(f"{point}-{number}")
            proxy.arm(Fault(point, number, strike))
            answered = _receive(inbox_of(client), batches)
            struck = proxy.disarm()
            assert distinct(answered).keys() <= desk.known()
            desk.redeliver(batches, number)
            if not struck:
                break
        else:
            pytest.fail(f"there are more than {POINTS_MAX} places to break at")
    assert number > 10
    assert repairs(ledger_url) == 0
    assert_sound(desk.bank, ledger_url)


def _receive(inbox: Inbox, batches: Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
    """Give each batch, once again if that failed; those that were answered."""
    answered = []
    for batch in batches:
        for _ in range(ATTEMPTS_MAX):
            try:
                inbox.receive(batch)
            except LedgerError:
                continue
            answered.append(batch)
            break
    return answered


# The consumer dies


def consume(url: str, journal: Path, name: str, pipe: Pipe) -> None:
    """In a process of its own: take the batches in when told to, and write down each one that was answered."""
    notes = Journal(journal)
    with Ledger.connect(url, pool_size=1) as ledger:
        assert ledger.ledger_id
        inbox = inbox_of(ledger)
        pipe.send("ready")
        pipe.recv()
        for batch in batches_of(name):
            inbox.receive(batch)
            notes.write(acknowledged={message.id: "taken" for message in batch})


class Consumers:
    """Starts processes that have imported everything, each to be killed at a point of its work."""

    def __init__(self, proxy: FaultyProxy, folder: Path) -> None:
        self._proxy = proxy
        self._folder = folder
        # Not a copy of this process, whose threads it would not have; nor a new one, which would import all again.
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["pytest", "sqlalchemy.dialects.postgresql", "ledger"])

    def run(self, name: str, point: Point, number: int) -> tuple[bool, set[str]]:
        """Whether a consumer was killed at its place, and the ids of the messages that it had acknowledged."""
        ours, theirs = self._context.Pipe()
        journal = self._folder / name
        process = self._context.Process(target=consume, args=(self._proxy.url, journal, name, theirs), daemon=True)
        process.start()
        theirs.close()
        assert ours.poll(WAIT_SECONDS)
        ours.recv()

        seen_dead = threading.Event()

        def kill(_: Session) -> None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            assert wait([process.sentinel], WAIT_SECONDS)
            seen_dead.set()

        self._proxy.arm(Fault(point, number, kill))
        ours.send("go")
        process.join(WAIT_SECONDS)
        assert process.exitcode is not None
        killed = self._proxy.disarm()
        assert process.exitcode == (-signal.SIGKILL if killed else 0)
        # Whoever killed it still looks at it.
        assert not killed or seen_dead.wait(WAIT_SECONDS)
        process.close()
        ours.close()
        return killed, set(Journal(journal).acknowledged)


@pytest.mark.parametrize("point", Point)
def test_killed_consumer_loses_no_message(
    desk: Desk, ledger_url: str, proxy: FaultyProxy, tmp_path: Path, point: Point
) -> None:
    """Killed at every statement, at every flight, and between COMMIT and its answer: nothing lost, nothing twice."""
    consumers, unacknowledged = Consumers(proxy, tmp_path), 0
    for number in range(1, POINTS_MAX):
        name = f"{point}-{number}"
        before = desk.known()
        killed, acknowledged = consumers.run(name, point, number)
        kept = desk.known() - before
        assert acknowledged <= kept
        unacknowledged += kept > acknowledged
        desk.redeliver(batches_of(name), number)
        if not killed:
            break
    else:
        pytest.fail(f"there are more than {POINTS_MAX} places to be killed at")
    assert number > 10
    # Killed between COMMIT and its answer, once for each of the three batches.
    assert unacknowledged >= (3 if point is Point.UNACKNOWLEDGED else 0)
    assert repairs(ledger_url) == 0
    assert_sound(desk.bank, ledger_url)


# The desk's own work


@pytest.mark.parametrize("point", Point)
def test_broken_decision_is_made_once(
    bank: Ledger, psql: Psql, ledger_url: str, proxy: FaultyProxy, point: Point
) -> None:
    """A requeue, a release, a tick that breaks anywhere: asked for again, it happened once and is on record once."""
    with Ledger.connect(proxy.url, pool_size=1) as client:
        for number in range(1, POINTS_MAX):
            assert client.trial_balance().balanced  # It has a connection.
            works = _decisions(bank, client, f"{point}-{number}")
            proxy.arm(Fault(point, number))
            for work in works:
                _until_answered(work)
            struck = proxy.disarm()
            streams = psql.execute(
                "SELECT array_agg(sequence) FROM public.orders GROUP BY stream ORDER BY stream"
            ).fetchall()
            assert streams == [([1, 2],), ([2, 3],), ([1, 2],)]
            ((decided, released),) = psql.execute(
                "SELECT (SELECT count(*) FROM dead_letter_decisions), (SELECT count(*) FROM inbox_releases)"
            ).fetchall()
            assert (decided, released) == (number, number)
            psql.execute("TRUNCATE public.orders")
            if not struck:
                break
        else:
            pytest.fail(f"there are more than {POINTS_MAX} places to break at")
    assert number > 10
    assert_sound(bank, ledger_url)


def _decisions(bank: Ledger, client: Ledger, name: str) -> list[Callable[[], object]]:
    """Three things that wait for a decision, and how each is made: requeue, release, tick."""

    def fail(message: Message, connection: Psql) -> None:
        assert message.sequence != 1, "not yet"
        count_order(message, connection)

    def shop(number: int, stream: str) -> Message:
        return Message(name, f"{stream}-{number}", ORDERED, f"{name}-{stream}", number)

    patient, handlers = PATIENT, {ORDERED: count_order}
    failing = bank.inbox(name, patient, handlers={ORDERED: fail}, retry=Retry(attempts_max=1, park=True))
    failing.receive([shop(number, "a") for number in (1, 2)])
    (letter,) = failing.dead_letters()
    bank.inbox(name, patient, handlers=handlers).receive([shop(number, "b") for number in (2, 3)])
    retrying = bank.inbox(name, patient, handlers={ORDERED: fail}, retry=Retry(delay=timedelta(0)))
    retrying.receive([shop(number, "c") for number in (1, 2)])
    inbox = client.inbox(name, patient, handlers=handlers)
    return [
        lambda: inbox.requeue(letter.dead_letter_id),
        lambda: inbox.release(f"{name}-b"),
        inbox.tick,
    ]


def _until_answered(work: Callable[[], object]) -> None:
    """Ask until there is an answer; a refusal is one: it has happened already."""
    for _ in range(ATTEMPTS_MAX):
        try:
            work()
        except LedgerError as error:
            if error.retryable:
                continue
        return
    pytest.fail("a single fault was in the way more than once")
