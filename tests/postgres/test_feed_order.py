"""
Nothing lost, nothing doubled, no stream out of order: through slow transactions, stepping clocks and stampers that die.

The same trouble is given to two other readers of the same events, which are known to be wrong: after the last number of
a `bigserial`, and after the last (xid, serial) among what is older than every open transaction.  They are wrong here.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
import pytest
from feed_readers import (
    NONE,
    WAIT_SECONDS,
    FeedReader,
    Reader,
    SerialReader,
    TransactionReader,
    at_another_time,
    disordered,
    faults,
    let_clocks_step,
    let_end,
    number_events,
)
from invariants import assert_sound

from ledger import Ledger, Transfer
from ledger.core.commands import build

Psql = psycopg.Connection[Any]

ACCOUNTS: Final = 6
WRITES: Final = int(os.environ.get("LEDGER_FEED_WRITES", "60"))
"""Of each writer under load, at least."""

WRITES_MAX: Final = 100 * WRITES


@pytest.fixture
def numbered(ledger: Ledger, psql: Psql) -> Ledger:
    """A ledger with some accounts, whose events the database numbers as they are written."""
    number_events(psql)
    let_clocks_step(psql)
    for number in range(ACCOUNTS):
        ledger.open_account(f"a{number}", asset="USD", type="liability")
    return ledger


@pytest.fixture
def readers(numbered: Ledger, psql: Psql) -> dict[str, Reader]:
    """The feed, and the two that are wrong."""
    return {"feed": FeedReader(numbered, 7), "serial": SerialReader(psql), "transaction": TransactionReader(psql)}


def transfer(ledger: Any, debit: int, credit: int) -> None:
    """One dollar from one of the accounts to another."""
    ledger.transfer("1 USD", debit=f"a{debit}", credit=f"a{credit}")


def read(readers: dict[str, Reader]) -> None:
    """Let everybody see what is new."""
    for reader in readers.values():
        reader.read()


@pytest.fixture
def slow(ledger_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The connection of somebody who takes long to commit."""
    with psycopg.connect(ledger_url) as connection:
        yield connection


def test_transaction_that_ends_late_is_not_missed(
    numbered: Ledger, psql: Psql, slow: Psql, readers: dict[str, Reader]
) -> None:
    """What was written first and committed last is in the feed; a `bigserial` reader has gone past it for ever."""
    with numbered.join(slow) as guest:
        transfer(guest, 0, 1)
    transfer(numbered, 2, 3)
    read(readers)
    slow.commit()
    let_end(psql)
    read(readers)
    read(readers)
    found = {name: faults(reader, psql) for name, reader in readers.items()}
    assert found["feed"] == found["transaction"] == NONE
    assert found["serial"].lost == 2


def test_transaction_that_began_early_is_not_put_first(
    numbered: Ledger, psql: Psql, slow: Psql, readers: dict[str, Reader]
) -> None:
    """Who got its number early writes to a stream late: its place there is behind, which no order by xid knows."""
    with numbered.join(slow) as guest:
        transfer(guest, 0, 1)
        transfer(numbered, 2, 3)
        transfer(guest, 0, 2)
    read(readers)
    slow.commit()
    let_end(psql)
    read(readers)
    found = {name: faults(reader, psql) for name, reader in readers.items()}
    assert found["feed"] == NONE
    assert found["transaction"].lost == 0
    assert found["transaction"].disordered == 1


def test_transaction_of_another_database_holds_nobody_up(
    numbered: Ledger, psql: Psql, ledger_server: Any, readers: dict[str, Reader]
) -> None:
    """The feed goes on while a transaction is open elsewhere in the cluster; a reader by xid stands still."""
    with psycopg.connect(ledger_server.render_as_string(hide_password=False)) as elsewhere:
        elsewhere.execute("SELECT pg_current_xact_id()")
        transfer(numbered, 0, 1)
        read(readers)
        found = {name: faults(reader, psql) for name, reader in readers.items()}
    assert found["feed"] == NONE
    assert found["transaction"].lost > 0


def write(url: str, seed: int, killed: threading.Event, problems: list[BaseException]) -> None:
    """Write for a while, until a stamper was killed: single transfers, batches, slow transactions, by a wrong clock."""
    chance = random.Random(seed)  # noqa: S311  (not for secrets)
    skewed = at_another_time(url, chance.choice([-3_600, -1, 0, 1, 3_600]), jitter=chance.choice([0, 0.02, 20]))
    try:
        with Ledger.connect(skewed, pool_size=1) as ledger, psycopg.connect(skewed) as own:
            for number in range(WRITES_MAX):
                if number >= WRITES and killed.is_set():
                    break
                if chance.random() < 0.3:
                    write_slowly(ledger, own, chance)
                else:
                    pairs = [chance.sample(range(ACCOUNTS), 2) for _ in range(chance.choice([1, 1, 1, 12]))]
                    ledger.handle([build(Transfer, amount="1 USD", debit=f"a{d}", credit=f"a{c}") for d, c in pairs])
    except BaseException as error:  # noqa: BLE001  (looked at by the test)
        problems.append(error)


def write_slowly(ledger: Ledger, own: psycopg.Connection[Any], chance: random.Random) -> None:
    """Begin on some accounts, go on with others, that are written by somebody else in between, and then commit."""
    lower, upper = chance.sample(range(3), 2), chance.sample(range(3, ACCOUNTS), 2)
    with ledger.join(own) as guest:
        transfer(guest, *lower)
        # Nothing but time passes; on other accounts nobody waits.
        ledger.trial_balance()
        transfer(guest, *upper)
    own.commit()


def read_until(ended: threading.Event, reader: Reader, problems: list[BaseException]) -> None:
    """Read again and again, and once more at the end."""
    try:
        while not ended.is_set():
            reader.read()
        reader.read()
    except BaseException as error:  # noqa: BLE001  (looked at by the test)
        problems.append(error)


def kill_stampers(ended: threading.Event, killed: threading.Event, url: str, psql: Psql) -> None:
    """Start stampers as programs of their own, and kill each while it has the lease."""
    command = [sys.executable, "-m", "ledger", "feed", "stamp", "--follow", "--limit", "5", "--database-url", url]
    while not ended.is_set():
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not ended.wait(0.005):
                # As if the time of whoever has it were over: now and then it is the program's turn.
                sql = "UPDATE ledger.leases SET until = now() RETURNING owner"
                ((owner,),) = psql.execute(sql).fetchall()
                if owner.endswith(f"/{process.pid}"):
                    killed.set()
                    break
            process.kill()
        psql.execute("UPDATE ledger.leases SET until = now()")


def test_feed_under_load(numbered: Ledger, ledger_url: str, psql: Psql, slow: Psql) -> None:
    """Four writers whose clocks disagree and step, slow transactions, two stampers and one that is killed: no fault."""
    problems: list[BaseException] = []
    ended, killed = threading.Event(), threading.Event()
    with (
        psycopg.connect(ledger_url, autocommit=True) as first,
        psycopg.connect(ledger_url, autocommit=True) as second,
        numbered.stamper(limit=11, lease_seconds=0.05),
        numbered.stamper(limit=3, lease_seconds=0.05),
    ):
        readers: dict[str, Reader] = {"serial": SerialReader(first), "transaction": TransactionReader(second)}
        # What makes each of the others wrong happens at least once.
        with numbered.join(slow) as guest:
            transfer(guest, 0, 1)
            transfer(numbered, 2, 3)
            readers["serial"].read()
            transfer(guest, 0, 2)
        slow.commit()
        reading = [started(read_until, ended, reader, problems) for reader in readers.values()]
        writing = [started(write, ledger_url, seed, killed, problems) for seed in range(4)]
        killing = started(kill_stampers, ended, killed, ledger_url, psql)
        for thread in writing:
            thread.join(WAIT_SECONDS)
        ended.set()
        for thread in (*reading, killing):
            thread.join(WAIT_SECONDS)
        assert not any(thread.is_alive() for thread in (*reading, *writing, killing))
    assert problems == []
    assert killed.is_set()
    psql.execute("UPDATE ledger.leases SET until = now()")
    feed = FeedReader(numbered, 50)
    feed.read()
    assert faults(feed, psql) == NONE
    found = {name: faults(reader, psql) for name, reader in readers.items()}
    assert found["serial"].lost > 0
    assert found["transaction"].disordered > 0
    ((count,),) = psql.execute("SELECT count(*) FROM ledger.events").fetchall()
    assert numbered.feed_head() == count > 4 * WRITES
    assert_sound(numbered, ledger_url)


def started(target: Callable[..., object], *arguments: object) -> threading.Thread:
    """A thread that is at it already."""
    thread = threading.Thread(target=target, args=arguments)
    thread.start()
    return thread


def test_the_harness_sees_disorder() -> None:
    """A version that comes after a later one of its stream is counted, in whichever stream."""
    assert disordered([("a", 1), ("b", 1), ("a", 2)]) == 0
    assert disordered([("a", 2), ("b", 1), ("a", 1), ("b", 3), ("b", 2)]) == 2
