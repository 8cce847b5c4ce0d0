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


def processed(url: str) -> int:
    """How many messages have taken effect so far."""
    with psycopg.connect(url) as connection:
        return int(connection.execute(_PROCESSED.encode()).fetchall()[0][0])


@pytest.mark.parametrize("protocol", Protocol)
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
    assert_exactly_once(ledger, ledger_url, streams)
    assert_sound(ledger, ledger_url)


def survive(
    ledger: Ledger,
    url: str,
    crowd: Crowd,
    streams: dict[str, list[Message]],
    deeds: int,
    more: Sequence[Callable[[], None]],
) -> None:
    """Consume all of it while one thing after the other happens, and lose nothing."""
    total = sum(map(len, streams.values()))
    chance = random.Random(SEED)  # noqa: S311  (a test that can be run again)
    crowd.join()
    crowd.join()
    crowd.wait_until(lambda: processed(url) > 0, "begun")
    crowd.run_into(torment(crowd, chance, more), deeds, lambda: processed(url) / total)
    crowd.wait_until(crowd.at_end, "read to the end")
    crowd.leave()
    assert_exactly_once(ledger, url, streams)
    assert_sound(ledger, url)


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
    streams = turns(open_accounts(ledger, 100), 31)
    sent = delivered(streams, random.Random(SEED))  # noqa: S311  (a test that can be run again)
    with consumed(ledger_url, tmp_path, mock_kafka, Protocol.COOPERATIVE, sent) as crowd:
        survive(ledger, ledger_url, crowd, streams, 8, [broker_goes_and_comes(mock_kafka)])


@pytest.mark.campaign
@pytest.mark.parametrize("protocol", Protocol)
def test_members_come_and_go_for_long(
    ledger: Ledger, ledger_url: str, tmp_path: Path, mock_kafka: MockCluster, protocol: Protocol
) -> None:
    """The same with 20,500 messages of 500 accounts, on librdkafka's mock cluster."""
    streams = turns(open_accounts(ledger, CAMPAIGN_ACCOUNTS), CAMPAIGN_EACH)
    sent = delivered(streams, random.Random(SEED))  # noqa: S311  (a test that can be run again)
    with consumed(ledger_url, tmp_path, mock_kafka, protocol, sent) as crowd:
        survive(ledger, ledger_url, crowd, streams, CAMPAIGN_DEEDS, [broker_goes_and_comes(mock_kafka)])


@pytest.mark.campaign
@pytest.mark.parametrize("protocol", Protocol)
def test_real_broker_and_its_members(
    ledger: Ledger, ledger_url: str, tmp_path: Path, apache_kafka: ApacheKafka, protocol: Protocol
) -> None:
    """The same on a real Kafka, which is killed and started again meanwhile."""
    streams = turns(open_accounts(ledger, CAMPAIGN_ACCOUNTS), CAMPAIGN_EACH)
    sent = delivered(streams, random.Random(SEED))  # noqa: S311  (a test that can be run again)

    def restart() -> None:
        apache_kafka.kill()
        apache_kafka.start()

    with consumed(ledger_url, tmp_path, apache_kafka, protocol, sent) as crowd:
        survive(ledger, ledger_url, crowd, streams, CAMPAIGN_DEEDS, [restart])


@pytest.mark.parametrize("troubled", [False, True])
def test_naive_consumer(
    ledger: Ledger, ledger_url: str, tmp_path: Path, mock_kafka: MockCluster, troubled: bool
) -> None:
    """What an ordinary consumer makes of messages in order: right as long as nothing happens, wrong when one dies."""
    streams = turns(open_accounts(ledger, 50), 21)
    in_order = [message for messages in streams.values() for message in messages]
    with consumed(ledger_url, tmp_path, mock_kafka, Protocol.EAGER, in_order) as topic:
        crowd = NaiveCrowd(ledger_url, tmp_path, mock_kafka, topic.topic, Protocol.EAGER, command=[str(NAIVE)])
        try:
            crowd.join()
            if troubled:
                crowd.wait_until(lambda: len(effects(ledger_url)) > 10, "begun")
                crowd.join()
                crowd.members.pop(0).kill()
            crowd.wait_until(crowd.at_end, "read to the end")
            crowd.leave()
        finally:
            crowd.kill()
    assert (effects(ledger_url) == asked(streams)) is not troubled
