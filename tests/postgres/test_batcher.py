"""Group commit: callers share transactions, and nobody gets another one's answer, failure or wait."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, Final

import psycopg
import pytest
from invariants import assert_sound
from proxy import Fault, FaultyProxy, Point, Session
from sqlalchemy import make_url

from ledger import (
    AsyncLedger,
    Batcher,
    BatcherClosed,
    Capture,
    ConcurrencyError,
    ConnectionLost,
    DatabaseUnavailable,
    DeadlineExceeded,
    Done,
    Freeze,
    InsufficientFunds,
    InvalidCommand,
    Ledger,
    OpenAccount,
    Rejected,
    Timeouts,
    Transfer,
)
from ledger.batcher import _Asked, _Queue

SECONDS: Final = 60
NAMES: Final = tuple(f"account-{number}" for number in range(20))


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """A ledger with a few accounts; the first of them may not go below zero."""
    ledger.handle(
        [OpenAccount(account="poor", asset="USD", account_type="liability", min_balance="0 USD")]
        + [OpenAccount(account=name, asset="USD", account_type="liability") for name in NAMES]
    )
    return ledger


def transfer(debit: str, credit: str, **more: Any) -> Transfer:
    """One dollar."""
    return Transfer(amount="1 USD", debit=debit, credit=credit, **more)


@contextmanager
def locked(psql: psycopg.Connection[Any], *accounts: str) -> Iterator[None]:
    """Somebody else holds these accounts."""
    with psql.transaction():
        lock(psql, *accounts)
        yield


def lock(psql: psycopg.Connection[Any], *accounts: str) -> None:
    """Take these accounts, until the transaction ends."""
    psql.execute("SELECT FROM ledger.balances WHERE stream = ANY(%s) ORDER BY stream FOR UPDATE", ([*accounts],))


@contextmanager
def impatient(url: str, lock_seconds: float = 0.3) -> Iterator[Ledger]:
    """The ledger of somebody who does not wait for a lock for long."""
    with Ledger.connect(url, timeouts=Timeouts(lock_seconds=lock_seconds)) as ledger:
        ledger.balance("account-0")
        yield ledger


def await_waiting(url: str, count: int = 1) -> None:
    """Return once so many sessions wait for a lock."""
    with psycopg.connect(url, autocommit=True) as watcher:
        for _ in range(100_000):
            asked = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            if watcher.execute(asked).fetchall()[0][0] >= count:
                return
    pytest.fail("nobody waits for a lock")


def batches(psql: psycopg.Connection[Any]) -> list[int]:
    """How many transactions each commit had, oldest first."""
    rows = psql.execute("SELECT cardinality(transaction_ids) FROM outbox ORDER BY recorded_at").fetchall()
    return [count for (count,) in rows]


def test_each_caller_has_an_answer_of_its_own(bank: Ledger, ledger_url: str) -> None:
    """Results and rejections go to whom they belong to, whoever shared the transaction."""

    def call(number: int) -> Done | Rejected:
        command = transfer(NAMES[number % 7] if number % 5 else "poor", "account-9", reference=f"call-{number}")
        try:
            return batcher.handle(command)
        except Rejected as rejection:
            return rejection

    with bank.batcher() as batcher, ThreadPoolExecutor(32) as callers:
        answers = list(callers.map(call, range(200)))
    for number, answer in enumerate(answers):
        if number % 5:
            assert isinstance(answer, Done)
            assert answer.transaction.reference == f"call-{number}"
        else:
            assert isinstance(answer, InsufficientFunds)
    assert bank.balance("account-9").posted.minor == 160_00
    assert_sound(bank, ledger_url)


def test_what_arrives_meanwhile_is_the_next_batch(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """An idle batcher sends a command at once, alone; what comes while it is on its way shares a transaction."""
    with bank.batcher(lanes=1) as batcher:
        with locked(psql, "account-0"):
            first = batcher.submit(transfer("account-0", "account-1"))
            await_waiting(ledger_url)
            others = [batcher.submit(transfer("account-0", name)) for name in NAMES[1:]]
        assert all(isinstance(future.result(SECONDS), Done) for future in [first, *others])
    assert batches(psql)[1:] == [1, 19]


def test_callers_who_were_answered_together_ask_together(bank: Ledger, psql: psycopg.Connection[Any]) -> None:
    """Eight callers who wait for their answers share one batch after the other, instead of two that take turns."""
    begin = threading.Barrier(8)

    def call(_: int) -> None:
        begin.wait(SECONDS)
        for _ in range(40):
            batcher.handle(transfer("account-0", "account-1"))

    with bank.batcher() as batcher, ThreadPoolExecutor(8) as callers:
        list(callers.map(call, range(8)))
    sizes = batches(psql)[1:]
    assert sum(sizes) == 8 * 40
    assert sum(sizes) > 5 * len(sizes)


def test_max_batch(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """No batch is larger than it may be."""
    with bank.batcher(lanes=1, max_batch=8) as batcher:
        with locked(psql, "account-0"):
            futures = [batcher.submit(transfer("account-0", "account-1"))]
            await_waiting(ledger_url)
            futures += [batcher.submit(transfer("account-0", name)) for name in NAMES[1:]]
        wait(futures, SECONDS)
    assert batches(psql)[1:] == [1, 8, 8, 3]


def test_max_wait(bank: Ledger, psql: psycopg.Connection[Any]) -> None:
    """A batch that may wait goes as soon as it is full."""
    with bank.batcher(lanes=1, max_batch=4, max_wait=3_600) as batcher:
        futures = [batcher.submit(transfer("account-0", name)) for name in NAMES[1:5]]
        assert wait(futures, SECONDS).not_done == set()
        late = batcher.submit(transfer("account-0", "account-1"))
    # Closing waits for nothing.
    assert isinstance(late.result(0), Done)
    assert batches(psql)[1:] == [4, 1]


def test_lanes_are_apart(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """A batch that is stuck holds up nobody on other accounts, and nobody overtakes on its own."""
    with bank.batcher(lanes=2) as batcher, locked(psql, "account-0"):
        stuck = batcher.submit(transfer("account-0", "account-1"))
        await_waiting(ledger_url)
        behind = [
            batcher.submit(transfer(*pair))
            for pair in (("account-1", "account-2"), ("account-2", "account-3"), ("account-3", "account-4"))
        ]
        free = [batcher.submit(transfer("account-5", "account-6")) for _ in range(3)]
        assert all(isinstance(future.result(SECONDS), Done) for future in free)
        assert not any(future.done() for future in [stuck, *behind])
    assert all(isinstance(future.result(SECONDS), Done) for future in [stuck, *behind])


def test_scopes(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """The keys of different senders are apart, in one transaction too."""
    with bank.batcher(lanes=1) as batcher:
        with locked(psql, "account-0"):
            futures = [batcher.submit(transfer("account-0", "account-1"))]
            await_waiting(ledger_url)
            futures += [
                batcher.submit(transfer("account-0", "account-2", idempotency_key="k"), scope=scope)
                for scope in ("shop", "bank", "shop")
            ]
        answers = [future.result(SECONDS) for future in futures]
    assert [answer.replayed for answer in answers] == [False, False, False, True]
    assert answers[1].transaction_id == answers[3].transaction_id != answers[2].transaction_id
    assert batches(psql)[1:] == [1, 2]


def test_poisoned_command(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """A command at which the server fails is answered with that; all others in its batch are carried out."""
    psql.execute("ALTER TABLE transactions ADD CONSTRAINT poison CHECK (reference <> 'poison') NOT VALID")
    with bank.batcher(lanes=1) as batcher:
        with locked(psql, "account-0"):
            futures = [batcher.submit(transfer("account-0", "account-1"))]
            await_waiting(ledger_url)
            futures += [
                batcher.submit(transfer("account-0", name, reference="poison" if name == "account-7" else None))
                for name in NAMES[1:]
            ]
        wait(futures, SECONDS)
    failures = [future.exception() for future in futures]
    assert [place for place, failure in enumerate(failures) if failure is not None] == [7]
    assert isinstance(failures[7], DatabaseUnavailable)
    assert "poison" in str(failures[7])
    assert bank.balance("account-0").version == 20
    assert_sound(bank, ledger_url)


def test_locked_account(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """Whoever shares accounts with a command that waits too long for a lock is told so once, and nobody else is."""
    pairs = [("account-0", "account-1")] * 31 + [("account-1", "account-2")]
    pairs += [("account-5", "account-6"), ("account-7", "account-8"), ("account-9", "account-10")]
    with impatient(ledger_url) as ledger, locked(psql, "account-0"):
        with ledger.batcher(lanes=1, max_batch=len(pairs), max_wait=3_600) as batcher:
            futures = [batcher.submit(transfer(*pair)) for pair in pairs]
        failures = [future.exception() for future in futures]
        # All of it, those of the locked account with the next ones, and those of the locked account.
        assert ledger.health().counts().failed == 3
    assert [type(failure) for failure in failures] == [ConcurrencyError] * 32 + [type(None)] * 3
    assert failures[0] is not None
    assert "held a lock for too long" in str(failures[0])
    assert bank.balance("account-1").version == 1
    assert_sound(bank, ledger_url)


@pytest.mark.usefixtures("bank")
def test_all_accounts_are_locked(ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """However many accounts are locked, nobody waits much longer than twice for a lock: here, instead of 19 times."""
    with impatient(ledger_url, lock_seconds=1.0) as ledger, locked(psql, *NAMES):
        with ledger.batcher(lanes=1, max_batch=10, max_wait=3_600) as batcher:
            begun = time.monotonic()
            futures = [batcher.submit(transfer(*pair)) for pair in zip(NAMES[::2], NAMES[1::2], strict=True)]
        assert time.monotonic() - begun < 10
        assert ledger.health().counts().failed == 19
    assert all(isinstance(future.exception(), ConcurrencyError) for future in futures)


@pytest.mark.usefixtures("bank")
def test_each_part_is_answered_at_once(ledger_url: str) -> None:
    """Of a batch that is divided, whoever is done is answered before the others are tried again."""
    with impatient(ledger_url) as ledger, psycopg.connect(ledger_url) as holder:
        lock(holder, "account-0")
        with ledger.batcher(lanes=1, max_batch=2, max_wait=3_600) as batcher:
            free = batcher.submit(transfer("account-5", "account-6"))
            free.add_done_callback(lambda _: holder.rollback())
            stuck = batcher.submit(transfer("account-0", "account-1"))
        assert isinstance(free.result(SECONDS), Done)
        assert isinstance(stuck.result(SECONDS), Done)


def test_deadline_of_a_part(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """A command whose deadline passes while its batch waits for somebody else's lock is not tried again."""
    with impatient(ledger_url) as ledger, locked(psql, "account-0"):
        with ledger.batcher(lanes=1, max_batch=2, max_wait=3_600) as batcher:
            stuck = batcher.submit(transfer("account-0", "account-1"))
            late = batcher.submit(transfer("account-5", "account-6"), deadline_seconds=0.2)
        with pytest.raises(ConcurrencyError):
            stuck.result(SECONDS)
        with pytest.raises(DeadlineExceeded, match="for its turn"):
            late.result(SECONDS)
    assert bank.balance("account-5").version == 1


@pytest.mark.usefixtures("bank")
def test_each_caller_has_an_error_of_its_own(ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """Whoever raises an error adds to its traceback, and to nobody else's; what it says and its cause are the same."""
    with (
        impatient(ledger_url) as ledger,
        locked(psql, "account-0"),
        ledger.batcher(lanes=1, max_batch=5, max_wait=3_600) as batcher,
    ):
        futures = [batcher.submit(transfer("account-0", "account-1")) for _ in range(5)]
        failures = [future.exception(SECONDS) for future in futures]
    assert len({id(failure) for failure in failures}) == 5
    assert len({str(failure) for failure in failures}) == 1
    assert all(isinstance(failure, ConcurrencyError) for failure in failures)
    assert {type(failure.__cause__) for failure in failures if failure} == {psycopg.errors.LockNotAvailable}


@pytest.mark.parametrize("point", Point)
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("key", [None, "key"])
def test_connection_dies(bank: Ledger, ledger_url: str, point: Point, number: int, key: str | None) -> None:
    """Whatever became of a batch whose connection died, each of its commands takes place once."""
    with FaultyProxy(make_url(ledger_url)) as proxy, Ledger.connect(proxy.url) as ledger:
        ledger.balance("account-0")
        with ledger.batcher(lanes=1, max_batch=5, max_wait=3_600) as batcher:
            proxy.arm(Fault(point, number))
            futures = [
                batcher.submit(transfer("account-0", name, idempotency_key=key and f"{key}-{name}"))
                for name in NAMES[1:6]
            ]
            answers = [future.result(SECONDS) for future in futures]
        assert proxy.disarm()
    assert len({answer.transaction_id for answer in answers}) == 5
    assert bank.balance("account-0").version == 6
    assert_sound(bank, ledger_url)


def test_server_is_gone(bank: Ledger, ledger_url: str) -> None:
    """Where nobody answers any more, everybody is told so, and what can be done."""
    with FaultyProxy(make_url(ledger_url)) as proxy:
        ledger = Ledger.connect(proxy.url)
        ledger.balance("account-0")
        batcher = ledger.batcher(lanes=1)
    futures = [batcher.submit(transfer("account-0", name)) for name in NAMES[1:]]
    wait(futures, SECONDS)
    batcher.close()
    ledger.close()
    for future in futures:
        with pytest.raises((ConnectionLost, DatabaseUnavailable), match="again"):
            future.result(0)
    assert len({id(future.exception()) for future in futures}) == len(futures)
    assert bank.balance("account-0").version == 1


def test_full_queue(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """Who finds the queue full waits for room, or until its deadline."""
    with bank.batcher(lanes=1, max_queue=2) as batcher, ThreadPoolExecutor(1) as patient:
        with locked(psql, "account-0"):
            futures = [batcher.submit(transfer("account-0", "account-1"))]
            await_waiting(ledger_url)
            futures += [batcher.submit(transfer("account-0", "account-1")) for _ in range(2)]
            with pytest.raises(DeadlineExceeded, match="for room in the queue"):
                batcher.submit(transfer("account-0", "account-1"), deadline_seconds=0.01)
            waiting = patient.submit(batcher.handle, transfer("account-0", "account-1"))
            # What is taken back makes room.
            assert futures[2].cancel()
            futures.append(batcher.submit(transfer("account-0", "account-1"), deadline_seconds=SECONDS))
        assert isinstance(waiting.result(SECONDS), Done)
        assert isinstance(futures[-1].result(SECONDS), Done)
    assert bank.balance("account-0").version == 5


def test_deadline(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """A command whose turn does not come in time is answered when its time is over, and never takes place."""
    with bank.batcher(lanes=1) as batcher:
        with locked(psql, "account-0"):
            first = batcher.submit(transfer("account-0", "account-1"), deadline_seconds=SECONDS)
            await_waiting(ledger_url)
            late = batcher.submit(transfer("account-0", "account-2"), deadline_seconds=0.01)
            with pytest.raises(DeadlineExceeded, match="for its turn") as caught:
                late.result(SECONDS)
            assert caught.value.retryable
        assert isinstance(first.result(SECONDS), Done)
    assert bank.balance("account-2").version == 1


def test_deadline_while_others_are_told(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """A command whose deadline has passed does not take place, even while whoever is told of his keeps the clock."""
    told, go_on = threading.Event(), threading.Event()

    def keep(_: Future[Done]) -> None:
        told.set()
        assert go_on.wait(SECONDS)

    with bank.batcher(lanes=1) as batcher:
        with locked(psql, "account-0"):
            first = batcher.submit(transfer("account-0", "account-1"))
            await_waiting(ledger_url)
            batcher.submit(transfer("account-0", "account-2"), deadline_seconds=0.01).add_done_callback(keep)
            assert told.wait(SECONDS)
            late = batcher.submit(transfer("account-0", "account-3"), deadline_seconds=0.01)
            over = time.monotonic() + 0.01
            while time.monotonic() <= over:
                pass
        assert isinstance(first.result(SECONDS), Done)
        assert isinstance(batcher.handle(transfer("account-0", "account-4")), Done)
        go_on.set()
        with pytest.raises(DeadlineExceeded, match="for its turn"):
            late.result(SECONDS)
    assert bank.balance("account-3").version == 1


def test_patience_has_an_end() -> None:
    """However long a batch took, the next command is not kept for callers who may not come back."""
    queue = _Queue(max_batch=10, max_wait=0.0, max_queue=10)
    for number in range(3):
        queue.put(_Asked(transfer("account-0", "account-1"), "", frozenset({NAMES[number]}), time.monotonic()))
    batch = queue.take()
    queue.done([(asked, RuntimeError()) for asked in batch], [], seconds=86_400)
    queue.put(_Asked(transfer("account-0", "account-1"), "", frozenset(), time.monotonic()))
    with ThreadPoolExecutor(1) as lane:
        taken = lane.submit(queue.take)
        wait([taken], SECONDS)
        in_time = taken.done()
        queue.finish()
    assert in_time
    assert len(batch) == 3


def test_taken_back(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """A future can be cancelled until its turn comes, and not any more then."""
    with bank.batcher(lanes=1) as batcher:
        with locked(psql, "account-0"):
            first = batcher.submit(transfer("account-0", "account-1"))
            await_waiting(ledger_url)
            second = batcher.submit(transfer("account-0", "account-2"))
            assert second.cancel()
            assert not first.cancel()
        assert isinstance(first.result(SECONDS), Done)
    with pytest.raises(CancelledError):
        second.result(0)
    assert bank.balance("account-2").version == 1


def test_taken_back_and_late(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """Whoever waits for futures hears of one that was cancelled, also if its deadline passed before its turn came."""
    with bank.batcher(lanes=1) as batcher:
        with locked(psql, "account-0"):
            first = batcher.submit(transfer("account-0", "account-1"))
            await_waiting(ledger_url)
            second = batcher.submit(transfer("account-0", "account-2"), deadline_seconds=0.05)
            assert second.cancel()
            third = batcher.submit(transfer("account-0", "account-3"), deadline_seconds=0.05)
            # Its deadline is the later one.
            assert isinstance(third.exception(SECONDS), DeadlineExceeded)
        assert wait([first, second, third], SECONDS).not_done == set()
    assert bank.balance("account-0").version == 2


def failures_of(ledger: Ledger, commands: Sequence[Transfer], *, shared: bool) -> list[BaseException | None]:
    """What becomes of commands that are carried out together."""
    if shared:
        with ledger.batcher(lanes=1, max_batch=len(commands), max_wait=3_600) as batcher:
            return [future.exception(SECONDS) for future in [*map(batcher.submit, commands)]]
    try:
        ledger.handle(commands)
    except (ConcurrencyError, ConnectionLost) as error:
        return [error]
    return [None]


@pytest.mark.parametrize("shared", [True, False])
def test_what_cannot_be_looked_up_is_not_said_to_have_failed(
    bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any], shared: bool
) -> None:
    """The answer to a commit is lost, and then somebody else holds the account: it may have taken place, and has."""

    def take_and_cut(session: Session) -> None:
        psql.execute("BEGIN")
        # Before the commit it is not to be had.
        with suppress(psycopg.errors.LockNotAvailable):
            psql.execute("SELECT FROM ledger.balances WHERE stream = 'account-0' FOR UPDATE NOWAIT")
        session.cut()

    unknown = 0
    with FaultyProxy(make_url(ledger_url)) as proxy, impatient(proxy.url) as ledger:
        for flight in range(1, 10):
            before = bank.balance("account-0").version
            assert ledger.balance("account-0").version == before  # It has a connection.
            proxy.arm(Fault(Point.UNACKNOWLEDGED, flight, take_and_cut))
            failures = failures_of(ledger, [transfer("account-0", name) for name in NAMES[1:3]], shared=shared)
            struck = proxy.disarm()
            if not struck:
                break
            psql.execute("ROLLBACK")
            happened = bank.balance("account-0").version - before
            assert happened in {0, 2}
            assert not happened or not any(isinstance(failure, ConcurrencyError) for failure in failures)
            unknown += happened == 2 and all(isinstance(failure, ConnectionLost) for failure in failures)
    assert not struck
    assert unknown == 1
    assert_sound(bank, ledger_url)


def test_closed_under_load(bank: Ledger, ledger_url: str) -> None:
    """Whatever was submitted before it is closed is answered; whatever comes later is refused, and not done."""
    batcher = bank.batcher(max_queue=50)
    enough = threading.Semaphore(0)

    def call(number: int) -> list[Future[Done]]:
        futures: list[Future[Done]] = []
        while True:
            try:
                futures.append(batcher.submit(transfer(NAMES[number], NAMES[number + 8])))
            except BatcherClosed:
                return futures
            enough.release()

    with ThreadPoolExecutor(8) as callers:
        running = [callers.submit(call, number) for number in range(8)]
        for _ in range(500):
            assert enough.acquire(timeout=SECONDS)
        batcher.close()
        futures = [future for caller in running for future in caller.result(SECONDS)]
    assert all(future.done() for future in futures)
    assert sum(bank.balance(name).version - 1 for name in NAMES[:8]) == len(futures)
    batcher.close()
    assert_sound(bank, ledger_url)


def test_end_of_the_process(bank: Ledger, ledger_url: str) -> None:
    """What was submitted is carried out at the end of a process, before whatever the ledger was connected to ends."""
    script = f"""
import atexit, weakref
from ledger import Ledger, Transfer
weakref.finalize(Ledger, int)
atexit.register(lambda: print(sum(future.done() for future in futures)))
batcher = Ledger.connect({ledger_url!r}).batcher(max_batch=1)
futures = [batcher.submit(Transfer(amount="1 USD", debit="account-0", credit="account-1")) for _ in range(100)]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout == "100\n"
    assert bank.balance("account-0").version == 101


def test_fairness(bank: Ledger) -> None:
    """Callers who wait for their answers get as many as the others, on one account as on many."""
    done = [0] * 16
    finished = threading.Event()
    together = threading.Barrier(16)

    def call(number: int) -> None:
        together.wait(SECONDS)
        while not finished.is_set():
            batcher.handle(transfer("account-0", NAMES[1 + number]))
            done[number] += 1
            if done[number] == 50:
                finished.set()

    with bank.batcher() as batcher, ThreadPoolExecutor(16) as callers:
        for caller in [callers.submit(call, number) for number in range(16)]:
            caller.result(SECONDS)
    assert min(done) >= 25


def test_ten_thousand_tasks(bank: Ledger, psql: psycopg.Connection[Any]) -> None:
    """As many coroutines as there are await their commands, with far less room and far fewer transactions."""

    async def run() -> int:
        async with AsyncLedger(bank, max_queue=2_000) as awaited:
            pairs = [(NAMES[n % 19], NAMES[n % 19 + 1]) for n in range(10_000)]
            answers = await asyncio.gather(
                *(awaited.submit(transfer(*pair)) for pair in pairs),
                awaited.submit(transfer("poor", "account-1")),
                return_exceptions=True,
            )
            assert isinstance(answers[-1], InsufficientFunds)
            assert (await awaited.ask(Ledger.balance, "account-0")).version > 500
            return sum(isinstance(answer, Done) for answer in answers)

    assert asyncio.run(run()) == 10_000
    assert len(batches(psql)) < 500
    assert bank.verify().ok


@pytest.mark.parametrize(("max_queue", "where"), [(1, "for room in the queue"), (2, "for its turn")])
def test_coroutine_with_a_deadline(
    bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any], max_queue: int, where: str
) -> None:
    """A deadline counts while there is no room, and while the turn does not come."""

    async def run() -> Done:
        async with AsyncLedger(bank, max_queue=max_queue, lanes=1) as awaited:
            with locked(psql, "account-0"):
                first = asyncio.ensure_future(awaited.submit(transfer("account-0", "account-1")))
                await asyncio.to_thread(await_waiting, ledger_url)
                with pytest.raises(DeadlineExceeded, match=where):
                    await awaited.submit(transfer("account-0", "account-2"), deadline_seconds=0.05)
            return await first

    assert isinstance(asyncio.run(run()), Done)
    assert bank.balance("account-2").version == 1


def test_forked(bank: Ledger) -> None:
    """A child process is told that the batcher's threads stayed behind, instead of waiting for ever."""
    with bank.batcher() as batcher:
        child = os.fork()
        if child == 0:
            try:
                batcher.submit(transfer("account-0", "account-1"))
            except BatcherClosed as refused:
                os._exit(0 if "forked" in str(refused) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_forked_while_somebody_submits(bank: Ledger) -> None:
    """A child process closes what it inherited, even if a thread that stayed behind held the lock of the queue."""
    with bank.batcher() as batcher:
        with batcher._queue._lock:  # noqa: SLF001  (as a thread does that takes a command in)
            child = os.fork()
            if child == 0:
                signal.alarm(SECONDS)
                batcher.close()
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_forgotten(bank: Ledger) -> None:
    """A batcher that nobody holds any more answers what it has, and ends."""
    before = set(threading.enumerate())
    batcher = bank.batcher()
    lanes = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("ledger-lane")]
    future = batcher.submit(transfer("account-0", "account-1"))
    assert len(lanes) == 2
    del batcher
    gc.collect()
    assert isinstance(future.result(0), Done)
    assert not any(lane.is_alive() for lane in lanes)


def test_commands_of_all_kinds(bank: Ledger) -> None:
    """A batcher carries out whatever `handle` does, holds and states included."""
    with bank.batcher() as batcher:
        assert batcher.handle(Freeze(account="account-0")).versions == {"account-0": 2}
        with pytest.raises(Rejected, match="frozen"):
            batcher.handle(transfer("account-0", "account-1"))
        with pytest.raises(InvalidCommand, match="not a command"):
            batcher.submit("transfer")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_batch", 0), ("max_batch", 10_001), ("max_wait", -1.0), ("max_queue", 0), ("lanes", 0), ("lanes", 1.5)],
)
def test_settings(bank: Ledger, name: str, value: object) -> None:
    """A setting that cannot be is refused by its name."""
    make: Callable[..., Batcher] = bank.batcher
    with pytest.raises(InvalidCommand, match=name):
        make(**{name: value})


@pytest.mark.parametrize("seconds", [0, -1, "5", True, float("nan"), 1e9])
def test_deadline_that_is_none(bank: Ledger, seconds: Any) -> None:
    """A deadline lies ahead, and is a number; for coroutines, too."""
    with bank.batcher() as batcher, pytest.raises(InvalidCommand, match="deadline_seconds"):
        batcher.submit(transfer("account-0", "account-1"), deadline_seconds=seconds)

    async def run() -> None:
        async with AsyncLedger(bank) as awaited:
            await awaited.submit(transfer("account-0", "account-1"), deadline_seconds=seconds)

    with pytest.raises(InvalidCommand, match="deadline_seconds"):
        asyncio.run(run())


def test_event_loops(bank: Ledger) -> None:
    """An `AsyncLedger` serves one event loop after the other, and tells whoever comes from another one meanwhile."""

    async def crowd() -> int:
        return len(await asyncio.gather(*(awaited.submit(transfer("account-0", "account-1")) for _ in range(5))))

    async def from_two_loops() -> int:
        answered = await crowd()
        with pytest.raises(BatcherClosed, match="another event loop"):
            await asyncio.to_thread(asyncio.run, crowd())
        await awaited.close()
        return answered

    awaited = AsyncLedger(bank, max_queue=1)
    assert asyncio.run(crowd()) == 5
    assert asyncio.run(from_two_loops()) == 5


def test_hold_in_another_lane(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """A capture names no account: it may share its accounts with another lane, and waits for them in the database."""
    hold = str(bank.hold("5 USD", debit="account-0", credit="account-1").transaction_id)
    with bank.batcher(lanes=2, max_batch=1) as batcher:
        with locked(psql, "account-0"):
            futures = [batcher.submit(Capture(hold=hold, amount="1 USD"))]
            await_waiting(ledger_url)
            futures.append(batcher.submit(transfer("account-0", "account-2")))
            await_waiting(ledger_url, 2)
            futures += [batcher.submit(transfer("account-0", "account-2")), batcher.submit(Capture(hold=hold))]
        versions = [future.result(SECONDS).versions["account-0"] for future in futures]
    assert sorted(versions) == [3, 4, 5, 6]
    assert bank.balance("account-1").posted.minor == 5_00
    assert bank.balance("account-2").posted.minor == 2_00
    assert_sound(bank, ledger_url)


def test_closed_on_getting_an_answer(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """Whoever closes it as soon as an answer is there has all others answered, too."""
    closed = threading.Event()

    def close(_: Future[Done]) -> None:
        batcher.close()
        closed.set()

    batcher = bank.batcher(lanes=1, max_batch=1)
    with locked(psql, "account-0"):
        first = batcher.submit(transfer("account-0", "account-1"))
        await_waiting(ledger_url)
        first.add_done_callback(close)
        second = batcher.submit(transfer("account-0", "account-2"))
    assert closed.wait(SECONDS)
    assert isinstance(second.result(SECONDS), Done)
    with pytest.raises(BatcherClosed):
        batcher.submit(transfer("account-0", "account-1"))


def test_closed_again(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """Whoever closes it waits until everyone is answered, whoever has closed it before."""
    batcher = bank.batcher(lanes=1, max_batch=1)

    def close() -> bool:
        closing.set()
        batcher.close()
        return second.done()

    closing = threading.Event()

    with ThreadPoolExecutor(1) as other, psycopg.connect(ledger_url) as holder:
        lock(holder, "account-2")
        with locked(psql, "account-0"):
            first = batcher.submit(transfer("account-0", "account-1"))
            await_waiting(ledger_url)
            first.add_done_callback(lambda _: batcher.close())
            second = batcher.submit(transfer("account-2", "account-3"))
        assert isinstance(first.result(SECONDS), Done)
        await_waiting(ledger_url)
        closed = other.submit(close)
        assert closing.wait(SECONDS)
        holder.rollback()
        assert closed.result(SECONDS)


def test_full_queue_on_getting_an_answer(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """A done-callback may submit: room is made by the thread that it runs in, which does not wait for itself."""
    more: SimpleQueue[Future[Done]] = SimpleQueue()
    batcher = bank.batcher(lanes=1, max_batch=1, max_queue=1)
    with locked(psql, "account-0"):
        first = batcher.submit(transfer("account-0", "account-1"))
        await_waiting(ledger_url)
        first.add_done_callback(lambda _: more.put(batcher.submit(transfer("account-0", "account-3"))))
        second = batcher.submit(transfer("account-0", "account-2"))
    assert isinstance(more.get(timeout=SECONDS).result(SECONDS), Done)
    assert isinstance(second.result(SECONDS), Done)
    batcher.close()


def test_answer_awaited_on_getting_an_answer(bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any]) -> None:
    """A done-callback that would wait for the thread that it runs in is refused."""
    refused: SimpleQueue[str] = SimpleQueue()

    def call(_: Future[Done]) -> None:
        try:
            batcher.handle(transfer("account-0", "account-2"))
        except InvalidCommand as error:
            refused.put(error.where)

    with bank.batcher(lanes=1) as batcher:
        with locked(psql, "account-0"):
            first = batcher.submit(transfer("account-0", "account-1"))
            await_waiting(ledger_url)
            first.add_done_callback(call)
        assert refused.get(timeout=SECONDS) == "handle"


def test_callback_that_ends_its_thread(
    bank: Ledger, ledger_url: str, psql: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A done-callback that raises SystemExit is logged, and takes nobody else's answer with it."""
    batcher = bank.batcher(lanes=1)
    with locked(psql, "account-0"):
        first = batcher.submit(transfer("account-0", "account-1"))
        await_waiting(ledger_url)
        first.add_done_callback(lambda _: sys.exit(3))
        second = batcher.submit(transfer("account-0", "account-2"))
    assert isinstance(second.result(SECONDS), Done)
    batcher.close()
    assert [(record.name, record.levelname) for record in caplog.records] == [("ledger.batcher", "ERROR")]
