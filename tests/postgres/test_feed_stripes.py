"""The feed of accounts with stripes, in one table and in partitions: many streams, and one account in every answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from feed_readers import disordered
from invariants import assert_sound

from ledger import Applied, Ledger, RemoteBalances, Transfer
from ledger.core.commands import build
from ledger.core.events import account_of
from ledger.order.published import message_of, source_of

Psql = psycopg.Connection[Any]
MakeDatabase = Callable[[], str]

SECONDS = 60
WRITERS = 4
WRITES = 30
ACCOUNTS = ("world", "till", "alice", "bob")


@pytest.fixture(params=[None, 4], ids=["one table", "partitions"])
def ledger_url(make_database: MakeDatabase, request: pytest.FixtureRequest) -> str:
    """The URL of a new ledger, whose log is one table, or divided."""
    url = make_database()
    with Ledger.connect(url) as ledger:
        ledger.migrate(partitions=request.param)
    return url


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """Two accounts of several stripes, and two of one."""
    ledger.open_account("world", asset="USD", type="equity", stripes=4)
    ledger.open_account("till", asset="USD", type="asset", stripes=3)
    for name in ("alice", "bob"):
        ledger.open_account(name, asset="USD", type="liability")
    return ledger


def write(url: str, problems: list[BaseException]) -> None:
    """Move money between stripes, single and in batches."""
    try:
        with Ledger.connect(url, pool_size=1) as ledger:
            for number in range(WRITES):
                pairs = [("world", "till"), ("till", "alice"), ("bob", "world")][: 1 + number % 3]
                ledger.handle([build(Transfer, amount="1 USD", debit=d, credit=c) for d, c in pairs])
    except BaseException as error:  # noqa: BLE001  (looked at by the test)
        problems.append(error)


def test_stripes_under_concurrent_writers(bank: Ledger, ledger_url: str) -> None:
    """Each stripe is a stream in order, written, divided anew and stamped at once; far away they are one account."""
    problems: list[BaseException] = []
    with bank.stamper(limit=7, lease_seconds=0.05), bank.stamper(limit=3, lease_seconds=0.05):
        threads = [threading.Thread(target=write, args=(ledger_url, problems)) for _ in range(WRITERS)]
        for thread in threads:
            thread.start()
        bank.change_account("world", stripes=6)
        bank.change_account("till", stripes=2)
        for thread in threads:
            thread.join(SECONDS)
        assert not any(thread.is_alive() for thread in threads)
    assert problems == []
    while bank.stamp():
        pass
    entries = list(bank.feed())
    report = bank.verify()
    assert report.findings == []
    assert len(entries) == report.checked["feed"] == report.checked["events"]
    assert disordered((entry.event.stream, entry.event.version) for entry in entries) == 0
    assert len({entry.event.stream for entry in entries if account_of(entry.event.stream) == "world"}) == 6

    source = source_of(str(bank.ledger_id))
    disturbed = [*entries[::3], *entries[::-5], *entries[-1:]]
    for heard in (entries, disturbed, [message_of(entry, source) for entry in disturbed]):
        remote = RemoteBalances(bank.stream)
        for each in heard:
            assert remote.apply(each) is not Applied.BEHIND
        remote.catch_up(*ACCOUNTS)
        assert {name: remote.balance(name) for name in ACCOUNTS} == {name: bank.balance(name) for name in ACCOUNTS}
    assert_sound(bank, ledger_url)


def test_stripe_that_was_never_heard_of_is_caught_up(bank: Ledger) -> None:
    """An account's first stream says how many there are: `catch_up` asks for all of them."""
    for _ in range(12):
        bank.transfer("1 USD", debit="world", credit="alice")
    remote = RemoteBalances(lambda stream, after: bank.stream(stream, after, limit=2))
    remote.catch_up("world")
    assert remote.balance("world") == bank.balance("world")
    assert len(remote) == 4


def test_stream_is_read_as_it_is_in_the_log(bank: Ledger) -> None:
    """A stripe, an account and the ledger's own stream are read alike; of one that does not exist there is nothing."""
    for name in ("world#01", "alice", "$ledger"):
        events = bank.stream(name)
        assert [(event.stream, event.version) for event in events] == [(name, n + 1) for n in range(len(events))]
        assert bank.stream(name, 1) == events[1:]
    assert bank.stream("world#09") == bank.stream("nobody") == []


@pytest.mark.parametrize(
    ("values", "sqlstate"),
    [
        ("(SELECT max(position) + 2 FROM feed), stream, version, transaction_id, event_hash, now()", "LD005"),
        ("(SELECT max(position) + 1 FROM feed), stream, version, transaction_id, sha256(''), now()", "LD007"),
        ("(SELECT max(position) FROM feed), stream, version, transaction_id, event_hash, now()", "23505"),
        ("(SELECT max(position) + 1 FROM feed), stream, version + 1, transaction_id, event_hash, now()", "LD006"),
    ],
)
def test_guards_hold_for_stripes(bank: Ledger, psql: Psql, values: str, sqlstate: str) -> None:
    """The database refuses a wrong position of a stripe's event as of any other, also where the log is divided."""
    bank.stamp()
    versions = bank.transfer("1 USD", debit="world", credit="alice").versions
    stripe = next(stream for stream in versions if account_of(stream) == "world")
    which = f"stream = '{stripe}' AND version = {versions[stripe]}"
    with pytest.raises(psycopg.Error) as refused:
        psql.execute(f"INSERT INTO feed SELECT {values} FROM events WHERE {which}".encode())
    assert refused.value.sqlstate == sqlstate
    assert bank.stamp() == 2
    assert bank.verify().ok
