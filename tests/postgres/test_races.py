"""
Two at once for what only one can have: a hold, a reversal, the last word on an account, a step of a state machine.

Lined up at a barrier, in threads and in processes, several rounds each; exactly one wins, the other is told why not.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from multiprocessing import get_context
from operator import methodcaller
from typing import Any, Protocol, TypeAlias

import psycopg
import pytest
from invariants import assert_sound

from ledger import Done, HoldNotOpen, Ledger, Rejected, parse_command

SECONDS = 60
ROUNDS = 6
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

Move: TypeAlias = Callable[[Ledger], Any]
Psql = psycopg.Connection[Any]


class Barrier(Protocol):
    """Lets everybody go when the last one has come."""

    def wait(self, timeout: float | None = None) -> int: ...


_barrier: Barrier | None = None
_numbers = count(1)


def _line_up(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603  (a process of a pool has no other place for it)
    _barrier = barrier


def _play(barrier: Barrier | None, url: str, move: Move) -> str:
    """Make a move at the same moment as the other; says what came of it."""
    with Ledger.connect(url) as ledger:
        ledger.accounts(limit=1)
        lined_up = barrier or _barrier
        assert lined_up is not None
        lined_up.wait(SECONDS)
        try:
            answer = move(ledger)
        except Rejected as rejection:
            return rejection.code
    return f"{answer} done" if isinstance(answer, int) else "done"


Race: TypeAlias = Callable[[Move, Move], list[str]]


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Two processes that are there already when a race begins."""
    context = get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=_line_up, initargs=(context.Barrier(2),)) as pool:
        yield pool


@pytest.fixture(params=["threads", "processes"])
def race(request: pytest.FixtureRequest, ledger_url: str) -> Iterator[Race]:
    """Let two moves be made at once, by two threads or two processes; what came of each."""
    with ThreadPoolExecutor(2) as threads:
        barrier = threading.Barrier(2)

        def run(*moves: Move) -> list[str]:
            pool, mine = (threads, barrier) if request.param == "threads" else (_processes(request), None)
            players = [pool.submit(_play, mine, ledger_url, move) for move in moves]
            return [player.result(SECONDS) for player in players]

        yield run


def _processes(request: pytest.FixtureRequest) -> Executor:
    pool = request.getfixturevalue("processes")
    assert isinstance(pool, Executor)
    return pool


@pytest.fixture
def bank(ledger: Ledger, ledger_url: str) -> Iterator[Ledger]:
    """Alice owns 1,000.00 USD and may not overdraw; every law of the ledger is checked afterwards."""
    ledger.open_account("world", asset="USD", type="equity")
    for account in ("alice", "shop"):
        ledger.open_account(account, asset="USD", type="liability", min_balance=0)
    ledger.deposit("alice", "1000 USD", against="world")
    yield ledger
    assert_sound(ledger, ledger_url)


def held(bank: Ledger, **more: Any) -> str:
    """Hold 10.00 USD for the shop."""
    return bank.hold("10 USD", debit="alice", credit="shop", **more).transaction.transaction_id


def call(name: str, *arguments: Any, **more: Any) -> Move:
    """A method of the ledger's, to be called by whoever plays."""
    return methodcaller(name, *arguments, **more)


def test_capture_against_capture(bank: Ledger, race: Race) -> None:
    """Two captures of more than half of a hold: one is posted, the other would exceed what is left."""
    for _ in range(ROUNDS):
        hold = held(bank)
        answers = race(call("capture", hold, "6 USD"), call("capture", hold, "6 USD"))
        assert sorted(answers) == ["done", "exceeds_rest"]
        bank.release(hold)
    assert str(bank.balance("shop").posted) == f"{6 * ROUNDS}.00 USD"
    assert bank.balance("shop").pending.minor == 0


def test_both_captures_fit(bank: Ledger, race: Race) -> None:
    """Two captures that fit together are both posted."""
    for _ in range(ROUNDS):
        hold = held(bank)
        assert race(call("capture", hold, "5 USD"), call("capture", hold, "5 USD")) == ["done", "done"]
    assert str(bank.balance("shop").posted) == f"{10 * ROUNDS}.00 USD"


@pytest.mark.parametrize("final", [False, True])
def test_capture_against_release(bank: Ledger, race: Race, final: bool) -> None:
    """A hold is captured or released, and never both."""
    captured = 0
    for _ in range(ROUNDS):
        hold = held(bank)
        answers = race(call("capture", hold, final=final), call("release", hold))
        assert sorted(answers) == ["done", "hold_not_open"]
        captured += answers[0] == "done"
    assert bank.balance("shop").posted.minor == 10_00 * captured
    assert bank.balance("shop").pending.minor == 0
    assert bank.holds("shop", status="open") == []


@pytest.mark.parametrize("ahead_ms", [0, 5, 15, 40])
def test_capture_against_expiry(bank: Ledger, race: Race, psql: Psql, ahead_ms: int) -> None:
    """Around the moment at which a hold expires it is captured, or it expires, by whoever comes first."""
    for _ in range(3):
        before = bank.balance("shop").posted.minor
        hold = _held_for(bank, psql, timedelta(milliseconds=30 + ahead_ms))
        answers = race(call("capture", hold), call("expire_holds"))
        _await_expiry(psql, hold)
        bank.expire_holds()
        (line,) = [line for line in bank.holds("shop") if str(line.hold) == hold]
        assert (answers[0] == "done") == (line.state == "captured")
        assert line.state == "captured" or answers[0] == "hold_not_open"
        assert bank.balance("shop").posted.minor == before + (10_00 if answers[0] == "done" else 0)
        assert bank.balance("shop").pending.minor == 0


def _held_for(bank: Ledger, psql: Psql, ahead: timedelta) -> str:
    """A hold that is due in so long, or later where the machine is too busy to place it in time."""
    for patience in (1, 10, 100):
        ((due,),) = psql.execute("SELECT clock_timestamp() + %s", (ahead * patience,)).fetchall()
        with suppress(HoldNotOpen):
            return held(bank, expires_at=due)
    pytest.fail("no hold is placed in time")


def _await_expiry(psql: Psql, hold: str) -> None:
    over = "SELECT bool_and(expires_at < clock_timestamp()) FROM holds WHERE hold_id = %s::uuid"
    for _ in range(100_000):
        if psql.execute(over, (hold,)).fetchall()[0][0]:
            return
    pytest.fail("the hold does not fall due")


def test_two_sweepers(bank: Ledger, race: Race, psql: Psql) -> None:
    """However many sweepers run at once, each hold expires once."""
    ((soon,),) = psql.execute("SELECT clock_timestamp() + interval '2 seconds'").fetchall()
    request = {"type": "hold", "amount": "10 USD", "debit": "alice", "credit": "shop", "expires_at": soon.isoformat()}
    placed = [each for each in bank.handle([parse_command(json.dumps(request))] * 40) if isinstance(each, Done)]
    assert len(placed) == 40
    _await_expiry(psql, str(placed[-1].transaction_id))
    answers = race(call("expire_holds"), call("expire_holds"))
    assert sum(int(answer.split()[0]) for answer in answers) == 40
    assert psql.execute("SELECT count(*) FROM events WHERE type = 'hold_expired'").fetchall() == [(80,)]
    assert bank.balance("alice").available == bank.balance("alice").posted


@pytest.mark.parametrize("amount", [None, "6 USD"])
def test_reversal_against_reversal(bank: Ledger, race: Race, amount: str | None) -> None:
    """No more is given back than was taken, however many ask for it."""
    for _ in range(ROUNDS):
        paid = bank.transfer("10 USD", debit="alice", credit="shop").transaction.transaction_id
        answers = race(call("reverse", paid, amount), call("reverse", paid, amount))
        assert sorted(answers) == ["done", "exceeds_rest"]
        assert len(bank.transaction(paid).reversed_by) == 1


def test_closing_against_a_transfer(bank: Ledger, race: Race) -> None:
    """An account is closed at zero and takes nothing more, or the money is in it and it stays open."""
    for _ in range(ROUNDS):
        name = f"customer-{next(_numbers)}"
        bank.open_account(name, asset="USD", type="liability", min_balance=0)
        answers = race(call("close_account", name), call("transfer", "1 USD", debit="alice", credit=name))
        assert answers in (["done", "account_not_open"], ["account_not_empty", "done"])
        assert bank.balance(name).posted.minor == (100 if answers[1] == "done" else 0)


def test_closing_a_period_against_an_entry_of_its_time(bank: Ledger, race: Race) -> None:
    """What is effective before the end of a period is in its trial balance, or it is refused."""
    for number in range(ROUNDS):
        until = NOON + timedelta(days=number)
        early = until - timedelta(hours=1)
        before = bank.balance("shop").posted.minor
        answers = race(
            call("close_period", until, idempotency_key=f"close-{number}"),
            call("transfer", "1 USD", debit="world", credit="shop", effective_at=early),
        )
        assert answers[0] == "done"
        assert answers[1] in ("done", "period_closed")
        closing = bank.close_period(until, idempotency_key=f"close-{number}")
        assert closing.replayed
        after = bank.balance("shop").posted.minor
        assert after - before == (100 if answers[1] == "done" else 0)
        trial_balance = json.loads(closing.events[0].payload)["trial_balance"]
        assert sum(int(credits) for _, _, _, credits in trial_balance) == after


@pytest.mark.parametrize("events", [("capture", "void"), ("authorise", "authorise")])
def test_two_steps_of_one_state_machine(bank: Ledger, race: Race, events: tuple[str, str]) -> None:
    """Two steps that exclude each other: one is taken, the other is refused from the state that it led to."""
    for number in range(ROUNDS):
        subject = f"p-{number}"
        bank.begin("payment", subject)
        if events[0] == "capture":
            bank.advance("payment", subject, "authorise")
        answers = race(*(partial(_advance, subject=subject, event=event) for event in events))
        assert sorted(answers) == ["done", "transition_refused"]
        assert bank.state("payment", subject).version == (3 if events[0] == "capture" else 2)


def _advance(ledger: Ledger, subject: str, event: str) -> object:
    return ledger.advance("payment", subject, event)
