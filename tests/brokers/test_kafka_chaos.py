"""Consumer groups in trouble, on both clusters: every effect exactly once, every stream in order, all counts add up."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg
import pytest
from apache_kafka import ApacheKafka
from chaos import (
    DEEDS,
    Cluster,
    Crowd,
    NaiveCrowd,
    asked,
    assert_exactly_once,
    delivered,
    effects,
    open_accounts,
    torment,
    turns,
)
from invariants import assert_sound
from mock_cluster import FETCH, HEARTBEAT, OFFSET_COMMIT, MockCluster

from ledger import Ledger
from ledger.kafka import Protocol, Publisher
from ledger.order.message import Message

PARTITIONS: Final = 12
CAMPAIGN_ACCOUNTS: Final = 500
CAMPAIGN_EACH: Final = 41
CAMPAIGN_DEEDS: Final = 30
SEED: Final = 20260102
NAIVE: Final = Path(__file__).with_name("naive_consumer.py")
REBALANCE_IN_PROGRESS: Final = 27
UNKNOWN_MEMBER_ID: Final = 25
NOT_LEADER: Final = 6
_PROCESSED: Final = "SELECT coalesce(sum(count), 0) FROM ledger.inbox_counters WHERE counter = 'processed'"
_CARRIED_OUT: Final = "SELECT count(*) FROM ledger.transactions WHERE kind IN ('deposit', 'withdraw')"


@contextmanager
def consumed(url: str, folder: Path, cluster: Cluster, protocol: Protocol, sent: Sequence[Message]) -> Iterator[Crowd]:
    """A topic with these messages, and a group that will be gone at the end."""
    topic = f"t{uuid4().hex[:8]}"
    cluster.create_topic(topic, PARTITIONS)
    with Publisher(topic, {"bootstrap.servers": cluster.bootstrap}) as publisher:
        publisher.publish(sent)
    crowd = Crowd(url, folder, cluster, topic, protocol, group=f"g-{topic}")
    try:
        yield crowd
    finally:
        crowd.kill()


@contextmanager
def naive(url: str, folder: Path, cluster: Cluster, sent: Sequence[Message]) -> Iterator[NaiveCrowd]:
    """The same with an ordinary group."""
    with consumed(url, folder, cluster, Protocol.EAGER, sent) as topic:
        crowd = NaiveCrowd(url, folder, cluster, topic.topic, Protocol.EAGER, command=[str(NAIVE)])
        crowd.group = f"n-{topic.topic}"
        try:
            yield crowd
        finally:
            crowd.kill()


def processed(url: str) -> int:
    """How many messages have taken effect so far."""
    with psycopg.connect(url) as connection:
        return int(connection.execute(_PROCESSED.encode()).fetchall()[0][0])


def carried_out(url: str) -> int:
    """How many messages an ordinary consumer has carried out so far, however often."""
    with psycopg.connect(url) as connection:
        return int(connection.execute(_CARRIED_OUT.encode()).fetchall()[0][0])


@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(each, marks=() if each is Protocol.COOPERATIVE else pytest.mark.campaign, id=each.value)
        for each in Protocol
    ],
)
def test_zombie_writes_nothing(
    ledger: Ledger, ledger_url: str, tmp_path: Path, mock_kafka: MockCluster, protocol: Protocol
) -> None:
    """A member frozen past its time, whose partitions others have taken, is fenced when it thaws."""
    streams = turns(open_accounts(ledger, 60), 41)
    sent = delivered(streams, random.Random(SEED))  # noqa: S311  (a test that can be run again)
    with consumed(ledger_url, tmp_path, mock_kafka, protocol, sent) as crowd:
        zombie = crowd.join()
        crowd.wait_until(lambda: processed(ledger_url) > 100, "begun")
        zombie.freeze()
        crowd.join()
        crowd.wait_until(lambda: str(zombie.process.pid) not in crowd.owners(), "taken over")
        zombie.thaw()
        crowd.wait_until(crowd.at_end, "read to the end")
        crowd.leave()
    assert_exactly_once(ledger, ledger_url, streams, len(sent))
    assert_sound(ledger, ledger_url)


def run_into_trouble(crowd: Crowd, deeds: int, done: Callable[[], int], total: int, cluster: Cluster) -> None:
    """Let a group consume all of it while one thing after the other happens, each of them at least once."""
    chance = random.Random(SEED)  # noqa: S311  (a test that can be run again)
    crowd.join()
    crowd.join()
    crowd.wait_until(lambda: done() > 0, "begun")
    happened = crowd.run_into(torment(crowd, chance, [trouble_of(cluster)]), deeds, lambda: done() / total)
    crowd.wait_until(crowd.at_end, "read to the end")
    crowd.leave()
    assert set(happened) == DEEDS, happened


def survive(
    ledger: Ledger, url: str, folder: Path, cluster: Cluster, protocol: Protocol, accounts: int, each: int, deeds: int
) -> None:
    """Consume messages that come early and twice while one thing after the other happens, and lose nothing."""
    streams = turns(open_accounts(ledger, accounts), each)
    sent = delivered(streams, random.Random(SEED))  # noqa: S311  (a test that can be run again)
    with consumed(url, folder, cluster, protocol, sent) as crowd:
        run_into_trouble(crowd, deeds, lambda: processed(url), accounts * each, cluster)
    assert_exactly_once(ledger, url, streams, len(sent))
    assert_sound(ledger, url)


def trouble_of(cluster: Cluster) -> Callable[[], None]:
    """What brokers do to their clients: a real one is killed and started again."""
    if isinstance(cluster, MockCluster):
        return broker_goes_and_comes(cluster)
    assert isinstance(cluster, ApacheKafka)

    def restart() -> None:
        cluster.kill()
        cluster.start()

    return restart


def broker_goes_and_comes(cluster: MockCluster) -> Callable[[], None]:
    """A broker is gone for a moment, each time another one."""
    numbers = cycle([1, 2, 3])

    def restart() -> None:
        number = next(numbers)
        cluster.stop_broker(number)
        cluster.fail(OFFSET_COMMIT, [REBALANCE_IN_PROGRESS, UNKNOWN_MEMBER_ID])
        cluster.fail(FETCH, [NOT_LEADER, NOT_LEADER])
        cluster.fail(HEARTBEAT, [REBALANCE_IN_PROGRESS])
        cluster.start_broker(number)

    return restart


def test_members_come_and_go(ledger: Ledger, ledger_url: str, tmp_path: Path, mock_kafka: MockCluster) -> None:
    """Members join, leave, freeze and die, brokers and connections break: each message takes effect once, in order."""
    survive(ledger, ledger_url, tmp_path, mock_kafka, Protocol.COOPERATIVE, 100, 31, 10)


@pytest.mark.campaign
@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("cluster", ["mock_kafka", "apache_kafka"])
def test_members_come_and_go_for_long(
    ledger: Ledger, ledger_url: str, tmp_path: Path, request: pytest.FixtureRequest, cluster: str, protocol: Protocol
) -> None:
    """The same with 20,500 messages of 500 accounts, on the mock and on a real Kafka that is killed meanwhile."""
    brokers = request.getfixturevalue(cluster)
    survive(ledger, ledger_url, tmp_path, brokers, protocol, CAMPAIGN_ACCOUNTS, CAMPAIGN_EACH, CAMPAIGN_DEEDS)


@pytest.mark.campaign
@pytest.mark.parametrize("cluster", ["mock_kafka", "apache_kafka"])
def test_naive_consumer_in_the_same_trouble(
    ledger: Ledger, ledger_url: str, tmp_path: Path, request: pytest.FixtureRequest, cluster: str
) -> None:
    """What the ledger's members survive leaves an ordinary group wrong, though its messages are sent in order."""
    brokers = request.getfixturevalue(cluster)
    streams = turns(open_accounts(ledger, CAMPAIGN_ACCOUNTS), CAMPAIGN_EACH)
    in_order = [message for together in zip(*streams.values(), strict=True) for message in together]
    with naive(ledger_url, tmp_path, brokers, in_order) as crowd:
        run_into_trouble(crowd, CAMPAIGN_DEEDS, lambda: carried_out(ledger_url), len(in_order), brokers)
    came, wanted = effects(ledger_url), asked(streams)
    wrong = [account for account in streams if came.get(account) != wanted[account]]
    assert wrong
    # Connections of ours were ended with all others.
    ledger.engine.dispose()
    # The accounts are wrong, and nobody notices: each of these messages was a command like any other.
    assert_sound(ledger, ledger_url)


@pytest.mark.parametrize("troubled", [False, True])
def test_naive_consumer(
    ledger: Ledger, ledger_url: str, tmp_path: Path, mock_kafka: MockCluster, troubled: bool
) -> None:
    """What an ordinary consumer makes of messages in order: right as long as nothing happens, wrong when one dies."""
    streams = turns(open_accounts(ledger, 50), 21)
    in_order = [message for messages in streams.values() for message in messages]
    with naive(ledger_url, tmp_path, mock_kafka, in_order) as crowd:
        crowd.join()
        if troubled:
            crowd.wait_until(lambda: len(effects(ledger_url)) > 10, "begun")
            crowd.join()
            crowd.members.pop(0).kill()
        crowd.wait_until(crowd.at_end, "read to the end")
        crowd.leave()
    assert (effects(ledger_url) == asked(streams)) is not troubled
