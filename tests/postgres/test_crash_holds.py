"""
What survives of captures, releases, reversals, closings and expiries when their connection dies at the worst moment.

Each is struck at every statement and every flight of its way, until there is none left to strike; it must be
answered all the same, and have happened once.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import psycopg
import pytest
from invariants import assert_sound, repairs
from proxy import Fault, FaultyProxy, Point, Session, Strike
from sqlalchemy import make_url

from ledger import Ledger

POINTS_MAX: Final = 40
"""More statements than one of these may ever send: the search for the last one is bounded."""

SECONDS: Final = 60
NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)

Psql = psycopg.Connection[Any]
Prepare: TypeAlias = Callable[[Ledger, int], str]
Act: TypeAlias = Callable[[Ledger, str], object]


@pytest.fixture
def proxy(ledger: Ledger, ledger_url: str) -> Iterator[FaultyProxy]:
    """A proxy in front of a ledger in which alice owns 1,000.00 USD."""
    ledger.open_account("world", asset="USD", type="equity")
    for account in ("alice", "shop"):
        ledger.open_account(account, asset="USD", type="liability", min_balance=0)
    ledger.deposit("alice", "1000 USD", against="world")
    with FaultyProxy(make_url(ledger_url)) as proxy:
        yield proxy


@pytest.fixture
def terminate(psql: Psql) -> Strike:
    """Somebody who terminates a session's server process, and waits until it is gone."""

    def strike(session: Session) -> None:
        psql.execute("SELECT pg_terminate_backend(%s, 10000)", (session.backend_pid,))

    return strike


def _held(ledger: Ledger, _: int) -> str:
    return ledger.hold("3 USD", debit="alice", credit="shop").transaction.transaction_id


def _paid(ledger: Ledger, _: int) -> str:
    return ledger.transfer("3 USD", debit="alice", credit="shop").transaction.transaction_id


def _until(_: Ledger, number: int) -> str:
    return (NOON + timedelta(days=number)).isoformat()


def _capture(ledger: Ledger, hold: str) -> object:
    """Capture a part of a hold and release the rest."""
    return ledger.capture(hold, "2 USD", final=True, reference=hold)


def _release(ledger: Ledger, hold: str) -> object:
    """Release all of a hold."""
    return ledger.release(hold, reference=hold)


def _reverse(ledger: Ledger, paid: str) -> object:
    """Reverse a part of a transaction, of which more could be reversed: a second one would not be refused."""
    return ledger.reverse(paid, "1 USD", reference=paid)


def _close_period(ledger: Ledger, until: str) -> object:
    """Close the books until one day later than before."""
    return ledger.close_period(datetime.fromisoformat(until), reference=until)


ACTS: Final[list[tuple[Prepare, Act]]] = [
    (_held, _capture),
    (_held, _release),
    (_paid, _reverse),
    (_until, _close_period),
]


@pytest.mark.parametrize("strike", ["cut", pytest.param("terminate", marks=pytest.mark.campaign)])
@pytest.mark.parametrize("point", Point)
@pytest.mark.parametrize(("prepare", "act"), ACTS, ids=[act.__name__.strip("_") for _, act in ACTS])
def test_what_was_struck_happened_once(
    request: pytest.FixtureRequest,
    ledger: Ledger,
    ledger_url: str,
    proxy: FaultyProxy,
    strike: str,
    point: Point,
    prepare: Prepare,
    act: Act,
) -> None:
    """Wherever its connection breaks, the call is answered, and what was asked happened exactly once."""
    blow: Strike = Session.cut if strike == "cut" else request.getfixturevalue("terminate")
    struck = 0
    with Ledger.connect(proxy.url, pool_size=1) as client:
        for number in range(1, POINTS_MAX):
            about = prepare(ledger, number)
            # Connected, and the ledger's id is known: the first thing counted is the write path's.
            assert client.trial_balance().balanced  # It has a connection.
            proxy.arm(Fault(point, number, blow))
            act(client, about)
            if not proxy.disarm():
                break
            struck += 1
            assert len(ledger.transactions(reference=about)) == 1, (point, number)
        else:
            pytest.fail(f"it takes more than {POINTS_MAX} statements")
    assert struck >= 2
    assert repairs(ledger_url) == 0
    assert_sound(ledger, ledger_url)


def _await_expiry(psql: Psql) -> None:
    """Wait until all holds that expire are due, by the database's own clock; none is far away."""
    for _ in range(100_000):
        if psql.execute("SELECT coalesce(max(expires_at) < clock_timestamp(), true) FROM holds").fetchall() == [
            (True,)
        ]:
            return
    pytest.fail("the clock of the database stands still")


def _hold_briefly(ledger: Ledger, psql: Psql, count: int) -> None:
    ((soon,),) = psql.execute("SELECT clock_timestamp() + interval '300 ms'").fetchall()
    for _ in range(count):
        ledger.hold("1 USD", debit="alice", credit="shop", expires_at=soon)
    _await_expiry(psql)


@pytest.mark.parametrize("point", Point)
def test_struck_sweeper_expires_each_hold_once(
    ledger: Ledger, ledger_url: str, proxy: FaultyProxy, psql: Psql, point: Point
) -> None:
    """Wherever its connection breaks, a sweep expires what is due, each hold once."""
    swept = 0
    with Ledger.connect(proxy.url, pool_size=1) as client:
        for number in range(1, POINTS_MAX):
            _hold_briefly(ledger, psql, 2)
            swept += 2
            # Its connection stands: what breaks is the sweep, and not the way to the server.
            assert client.trial_balance().balanced
            proxy.arm(Fault(point, number))
            client.expire_holds()
            struck = proxy.disarm()
            expired = psql.execute("SELECT count(*) FROM events WHERE type = 'hold_expired'").fetchall()
            assert expired == [(2 * swept,)], (point, number)
            if not struck:
                break
        else:
            pytest.fail(f"it takes more than {POINTS_MAX} statements")
    assert number > 2
    assert ledger.balance("alice").available == ledger.balance("alice").posted
    assert_sound(ledger, ledger_url)


_SWEEPER = """
import sys
from ledger import Ledger
with Ledger.connect(sys.argv[1], pool_size=1) as ledger:
    ledger.expire_holds()
"""


def test_killed_sweeper_is_finished_by_the_next(
    ledger: Ledger, ledger_url: str, proxy: FaultyProxy, psql: Psql
) -> None:
    """A sweeper whose process is killed at any flight leaves each hold expired or due; the next one ends its work."""
    for number in range(1, 5):
        _hold_briefly(ledger, psql, 2)
        process = subprocess.Popen([sys.executable, "-c", _SWEEPER, proxy.url], stderr=subprocess.DEVNULL)

        def kill(_: Session, process: subprocess.Popen[bytes] = process) -> None:
            process.kill()
            process.wait(SECONDS)

        proxy.arm(Fault(Point.UNANSWERED, number, kill))
        process.wait(SECONDS)
        struck = proxy.disarm()
        ledger.expire_holds()
        assert ledger.holds("alice", status="open") == []
        if not struck:
            break
    assert psql.execute("SELECT count(*) FROM events WHERE type = 'hold_expired'").fetchall() == [(4 * number,)]
    assert number > 2
    assert_sound(ledger, ledger_url)
