"""Consumers of the feed: what they do and how far they are last together, so that each entry is taken exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import psycopg
import pytest
import sqlalchemy
import sqlalchemy.orm
from sqlalchemy import text

from ledger import ConcurrencyError, InvalidCommand, Ledger, Subscription, Transfer, UnsupportedConnection
from ledger.core.commands import build

Psql = psycopg.Connection[Any]

WAIT_SECONDS: Final = 60


@pytest.fixture
def stamped(funded: Ledger, psql: Psql) -> Ledger:
    """A ledger with 8 entries in its feed, and a table of a consumer's."""
    funded.stamp()
    psql.execute("CREATE TABLE public.mails (position bigint PRIMARY KEY)")
    return funded


def deliver(ledger: Ledger, subscription: Subscription, limit: int = 3) -> list[int]:
    """One transaction of a consumer that writes down what it has seen."""
    with ledger.engine.begin() as connection:
        entries = subscription.next(connection, limit)
        for entry in entries:
            connection.execute(text("INSERT INTO public.mails VALUES (:position)"), {"position": entry.position})
        subscription.acknowledge(connection, entries)
    return [entry.position for entry in entries]


def mails(psql: Psql) -> list[int]:
    """What all consumers have written down."""
    return [position for (position,) in psql.execute("SELECT position FROM public.mails ORDER BY position")]


def test_checkpoint_moves_with_the_effects(stamped: Ledger, psql: Psql) -> None:
    """What was committed is not delivered again; what was rolled back is, from the same place."""
    subscription = stamped.subscription("mail")
    assert deliver(stamped, subscription) == [1, 2, 3]
    with stamped.engine.connect() as connection:
        subscription.acknowledge(connection, subscription.next(connection, 3))
        connection.rollback()
    assert deliver(stamped, subscription) == [4, 5, 6]
    assert deliver(stamped, subscription) == [7, 8]
    assert deliver(stamped, subscription) == []
    assert mails(psql) == list(range(1, 9))
    (standing,) = stamped.subscriptions()
    assert standing[:3] == ("mail", 8, "application")


def test_a_part_may_be_acknowledged(stamped: Ledger) -> None:
    """What comes next begins behind what was acknowledged, however much was read."""
    subscription = stamped.subscription("mail", start=2)
    with stamped.engine.begin() as connection:
        entries = subscription.next(connection, 5)
        assert [entry.position for entry in entries] == [3, 4, 5, 6, 7]
        subscription.acknowledge(connection, entries[:2])
        assert subscription.next(connection, 1) == entries[2:3]
        subscription.acknowledge(connection, [])
    assert deliver(stamped, subscription) == [5, 6, 7]


def test_what_does_not_follow_is_not_acknowledged(stamped: Ledger) -> None:
    """Entries from elsewhere, or with one missing, move nothing."""
    subscription = stamped.subscription("mail")
    with stamped.engine.begin() as connection:
        entries = subscription.next(connection, 5)
        with pytest.raises(ConcurrencyError, match="stands at position 0, not at 1"):
            subscription.acknowledge(connection, entries[1:])
        with pytest.raises(InvalidCommand, match="missing"):
            subscription.acknowledge(connection, [entries[0], entries[2]])
    assert [standing.position for standing in stamped.subscriptions()] == [0]


@pytest.mark.parametrize("lend", [psycopg.connect, None], ids=["psycopg", "session"])
def test_any_connection_of_the_consumer(stamped: Ledger, ledger_url: str, lend: Callable[..., Any] | None) -> None:
    """It works on a psycopg connection and on an SQLAlchemy session as well as on an SQLAlchemy connection."""
    subscription = stamped.subscription("mail")
    with lend(ledger_url) if lend else sqlalchemy.orm.Session(stamped.engine) as lent:
        subscription.acknowledge(lent, subscription.next(lent, 4))
        lent.commit()
    assert deliver(stamped, subscription) == [5, 6, 7]


def test_connection_without_a_transaction_is_refused(stamped: Ledger, ledger_url: str) -> None:
    """What would last at once, whatever happened to the effects, is no transaction of the consumer's."""
    with psycopg.connect(ledger_url, autocommit=True) as lent, pytest.raises(UnsupportedConnection):
        stamped.subscription("mail").next(lent)


@pytest.mark.parametrize("start", [9, 10**15, 10**20])
def test_a_consumer_begins_where_something_was_stamped(stamped: Ledger, start: int) -> None:
    """One that is new cannot begin behind the end of the feed, and the consumer's transaction goes on."""
    with stamped.engine.begin() as connection:
        with pytest.raises(InvalidCommand, match=f"start: {start} is not from 0 to 8, the last one of the feed"):
            stamped.subscription("mail", start=start).next(connection)
        assert connection.execute(text("SELECT 1")).scalar() == 1
    assert stamped.subscriptions() == []
    with stamped.engine.begin() as connection:
        assert stamped.subscription("mail", start=8).next(connection) == []


def test_a_name_is_not_empty(stamped: Ledger) -> None:
    """Neither who consumes nor who moves it is nobody, whichever way it is named."""
    for asked in (
        lambda: stamped.subscription(""),
        lambda: stamped.subscription("mail", owner=""),
        lambda: stamped.seek_subscription("", 5, actor="ann"),
        lambda: stamped.seek_subscription("mail", 5, actor=""),
    ):
        with pytest.raises(InvalidCommand, match="it is empty"):
            asked()
    assert stamped.subscriptions() == []


@pytest.mark.parametrize("limit", [0, 1_001, True])
def test_limit_of_a_delivery(stamped: Ledger, limit: int) -> None:
    """A consumer takes 1 to 1,000 entries at once."""
    with stamped.engine.begin() as connection, pytest.raises(InvalidCommand, match="limit"):
        stamped.subscription("mail").next(connection, limit)


def test_who_did_not_wait_is_too_late(stamped: Ledger) -> None:
    """Compare-and-set on the position: of two that have the same entries the second takes nothing."""
    subscription = stamped.subscription("mail")
    entries = list(stamped.feed(limit=3))
    assert deliver(stamped, subscription) == [1, 2, 3]
    with stamped.engine.begin() as connection, pytest.raises(ConcurrencyError, match="Run the whole transaction again"):
        subscription.acknowledge(connection, entries)
    assert deliver(stamped, subscription) == [4, 5, 6]


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_consumers_of_one_name_take_turns(stamped: Ledger, psql: Psql, isolation: str) -> None:
    """However many there are, at any level of isolation, every entry is taken once and none is left out."""
    stamped.handle([build(Transfer, amount="1 USD", debit="world", credit="alice") for _ in range(60)])
    stamped.stamp()
    engine = stamped.engine.execution_options(isolation_level=isolation)
    subscription = stamped.subscription("mail")
    problems: list[BaseException] = []

    def consume() -> None:
        taken = True
        while taken:
            try:
                with engine.begin() as connection:
                    entries = subscription.next(connection, 7)
                    for entry in entries:
                        connection.execute(text("INSERT INTO public.mails VALUES (:p)"), {"p": entry.position})
                    subscription.acknowledge(connection, entries)
                taken = bool(entries)
            except ConcurrencyError:
                continue
            except BaseException as error:  # noqa: BLE001  (looked at by the test)
                problems.append(error)
                return

    consumers = [threading.Thread(target=consume) for _ in range(4)]
    for consumer in consumers:
        consumer.start()
    for consumer in consumers:
        consumer.join(WAIT_SECONDS)
        assert not consumer.is_alive()
    assert problems == []
    assert mails(psql) == list(range(1, 129))


def test_consumer_whose_server_process_dies(stamped: Ledger, psql: Psql) -> None:
    """Before its commit nothing has happened, neither the effects nor the checkpoint."""
    subscription = stamped.subscription("mail")
    with stamped.engine.connect() as connection:
        entries = subscription.next(connection, 3)
        connection.execute(text("INSERT INTO public.mails VALUES (1)"))
        subscription.acknowledge(connection, entries)
        psql.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE state = 'idle in transaction' AND datname = current_database()"
        )
        with pytest.raises(sqlalchemy.exc.OperationalError):
            connection.commit()
        connection.invalidate()
    assert mails(psql) == []
    assert deliver(stamped, subscription) == [1, 2, 3]


def test_person_lets_a_consumer_go_on_elsewhere(stamped: Ledger) -> None:
    """Back or forward, on record who did; not to where nothing was stamped."""
    subscription = stamped.subscription("mail")
    deliver(stamped, subscription)
    stamped.seek_subscription("mail", 1, actor="ann")
    assert [standing[:3] for standing in stamped.subscriptions()] == [("mail", 1, "ann")]
    with stamped.engine.begin() as connection:
        assert [entry.position for entry in subscription.next(connection, 2)] == [2, 3]
    stamped.seek_subscription("new", 7, actor="ann")
    assert [standing.name for standing in stamped.subscriptions(after="mail")] == ["new"]
    for wrong in (-1, 9, True):
        with pytest.raises(InvalidCommand, match="position"):
            stamped.seek_subscription("mail", wrong, actor="ann")


def test_subscription_needs_a_name_and_a_start(ledger: Ledger) -> None:
    """What could not be kept is refused where it is said."""
    wrongs: list[dict[str, Any]] = [{"name": ""}, {"name": "m", "start": -1}, {"name": "m", "owner": ""}]
    for wrong in wrongs:
        with pytest.raises(InvalidCommand):
            ledger.subscription(**wrong)
    with pytest.raises(InvalidCommand):
        ledger.subscriptions(limit=0)
