"""The feed in a topic: in order, at least once, from a checkpoint that moves when the topic has what was published."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict
from typing import Any, Final

import confluent_kafka
import pytest
from mock_cluster import MockCluster

from ledger import BrokerUnavailable, InvalidCommand, Ledger, Message, RemoteBalances, Transfer
from ledger.core.commands import build
from ledger.kafka import FeedPublisher, Publisher
from ledger.order.decoders import cloudevents

TOPIC: Final = "events"
PRODUCE: Final = 0
NOT_ENOUGH_REPLICAS: Final = 19
INVALID_REQUIRED_ACKS: Final = 21
WAIT_SECONDS: Final = 60


@pytest.fixture
def stamped(ledger: Ledger, mock_kafka: MockCluster) -> Ledger:
    """A ledger with 26 events in its feed, and a topic."""
    mock_kafka.create_topic(TOPIC, 4)
    for name in ("world", "alice", "bob"):
        ledger.open_account(name, asset="USD", type="liability")
    post(ledger, 11)
    return ledger


def post(ledger: Ledger, count: int) -> None:
    """Some transfers, stamped."""
    names = ("alice", "bob")
    ledger.handle([build(Transfer, amount="1 USD", debit="world", credit=names[n % 2]) for n in range(count)])
    assert ledger.stamp() > 0


def publisher_of(cluster: MockCluster, timeout: float = 20.0, **config: Any) -> Publisher:
    """A publisher to the topic."""
    return Publisher(TOPIC, {"bootstrap.servers": cluster.bootstrap, **config}, timeout=timeout)


def messages_in(cluster: MockCluster) -> list[tuple[int, bytes | None, Message]]:
    """Everything that the topic has: partition, key and message, in the order of each partition."""
    settings = {"bootstrap.servers": cluster.bootstrap, "group.id": "look", "enable.partition.eof": True}
    reader = confluent_kafka.Consumer(settings)
    reader.assign([confluent_kafka.TopicPartition(TOPIC, partition, 0) for partition in range(4)])
    found: list[tuple[int, bytes | None, Message]] = []
    ended: set[int] = set()
    while len(ended) < 4:
        record = reader.poll(WAIT_SECONDS)
        assert record is not None
        partition, value = record.partition(), record.value()
        assert partition is not None
        if error := record.error():
            assert error.code() == confluent_kafka.KafkaError._PARTITION_EOF  # noqa: SLF001
            ended.add(partition)
            continue
        assert value is not None
        (message,) = cloudevents(value)
        assert isinstance(message, Message)
        found.append((partition, record.key(), message))
    reader.close()
    return found


def sequences(cluster: MockCluster) -> dict[str, list[int]]:
    """Stream → the sequences of its messages as they come."""
    found = defaultdict(list)
    for _, _, message in messages_in(cluster):
        found[message.stream].append(message.sequence or 0)
    return found


def test_feed_is_published_in_order(stamped: Ledger, mock_kafka: MockCluster) -> None:
    """Each event once, those of a stream in one partition and in order, and later ones after a restart."""
    with publisher_of(mock_kafka) as publisher:
        publishing = FeedPublisher(stamped, publisher, entries_max=5)
        publishing.run(to_end=True)
    assert publishing.published == 26
    post(stamped, 3)
    with publisher_of(mock_kafka) as publisher:
        assert FeedPublisher(stamped, publisher).step() == 6
    found = messages_in(mock_kafka)
    by_stream = defaultdict(set)
    for partition, key, message in found:
        assert key == message.stream.encode()
        assert message.source == f"urn:uuid:{stamped.ledger_id}"
        by_stream[message.stream].add(partition)
    assert all(len(partitions) == 1 for partitions in by_stream.values())
    assert sequences(mock_kafka) == {
        stream: [event.version for event in stamped.history(stream)] for stream in ("world", "alice", "bob", "$ledger")
    }
    (standing,) = stamped.subscriptions()
    assert standing[:3] == (f"kafka/{TOPIC}", 32, f"publisher of {TOPIC}")


def test_checkpoint_stays_where_nothing_was_acknowledged(stamped: Ledger, mock_kafka: MockCluster) -> None:
    """What the topic refused is published again from the same place."""
    mock_kafka.fail(PRODUCE, [INVALID_REQUIRED_ACKS] * 40)
    with publisher_of(mock_kafka, timeout=3) as publisher:
        publishing = FeedPublisher(stamped, publisher)
        with pytest.raises(BrokerUnavailable):
            publishing.step()
    assert [standing.position for standing in stamped.subscriptions()] == [0]
    mock_kafka.fail(PRODUCE, [])
    told: list[str] = []
    with publisher_of(mock_kafka) as publisher:
        publishing = FeedPublisher(stamped, publisher, on_problem=told.append)
        for _ in range(20):
            try:
                publishing.step()
            except BrokerUnavailable:
                continue
            break
    latest = sequences(mock_kafka)
    assert {stream: sorted(set(found)) for stream, found in latest.items()} == {
        stream: [event.version for event in stamped.history(stream)] for stream in ("world", "alice", "bob", "$ledger")
    }


def test_crash_between_topic_and_checkpoint(stamped: Ledger, mock_kafka: MockCluster) -> None:
    """What was published and not noted is published again: twice, in order, and who counts versions is right."""
    with publisher_of(mock_kafka) as publisher:
        FeedPublisher(stamped, publisher).run(to_end=True)
        stamped.seek_subscription(f"kafka/{TOPIC}", 7, actor="a crash")
        FeedPublisher(stamped, publisher).run(to_end=True)
    found = messages_in(mock_kafka)
    assert len(found) == 26 + 19
    remote = RemoteBalances(lambda stream, after: stamped.history(stream, after_version=after))
    for _, _, message in found:
        remote.apply(message)
    for account in ("world", "alice", "bob"):
        assert remote.balance(account) == stamped.balance(account)


def test_publisher_of_another_name_begins_anew(stamped: Ledger, mock_kafka: MockCluster) -> None:
    """How far a publisher is belongs to its name; and the source is what it is told."""
    with publisher_of(mock_kafka) as publisher:
        FeedPublisher(stamped, publisher, source="first").run(to_end=True)
        FeedPublisher(stamped, publisher, name="other", source="second").run(to_end=True)
    sources = [message.source for _, _, message in messages_in(mock_kafka)]
    assert (sources.count("first"), sources.count("second")) == (26, 26)


@pytest.mark.parametrize("entries_max", [0, 1_001])
def test_entries_of_a_step_are_bounded(stamped: Ledger, mock_kafka: MockCluster, entries_max: int) -> None:
    """What is published between two checkpoints is one page at most."""
    with publisher_of(mock_kafka) as publisher, pytest.raises(InvalidCommand, match="entries_max"):
        FeedPublisher(stamped, publisher, entries_max=entries_max)


def test_command_publishes_until_it_is_told_to_stop(stamped: Ledger, ledger_url: str, mock_kafka: MockCluster) -> None:
    """`ledger feed publish kafka` goes on with what is stamped later; SIGTERM ends it in good order."""
    command = [sys.executable, "-m", "ledger", "feed", "publish", "kafka", "--json"]
    options = ["--bootstrap", mock_kafka.bootstrap, "--topic", TOPIC, "--database-url", ledger_url]
    environment = {**os.environ}
    done = subprocess.run(
        [*command, *options, "--to-end"], env=environment, capture_output=True, timeout=WAIT_SECONDS, check=False
    )
    assert (done.returncode, done.stdout) == (0, b'{"published":26,"subscription":"kafka/events"}\n'), done.stderr
    with subprocess.Popen([*command, *options], env=environment, stdout=subprocess.PIPE) as process:
        post(stamped, 2)
        while stamped.subscriptions()[0].position < 30:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        answer, _ = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, answer) == (0, b'{"published":4,"subscription":"kafka/events"}\n')
