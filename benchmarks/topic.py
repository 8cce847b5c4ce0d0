"""
What a broker in between costs: `python -m benchmarks kafka [--bootstrap HOST:PORT]`.

The same messages from a topic to committed balances, from a file as `ledger ingest` reads it, and the topic alone, read
by the same client and thrown away.  Counted from the first message that is in to the last: joining a group and reading
the first page are not what is compared.

Without `--bootstrap` the topic is on librdkafka's mock of a cluster, in this process: then it takes part of its time.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count, islice
from secrets import token_hex
from typing import Any, Final

import confluent_kafka
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import URL

from benchmarks.messages import PAIRS, opened
from benchmarks.rounds import Benchmark, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import text
from ledger import Ledger, Strict
from ledger.inbox import TOGETHER_MAX
from ledger.intake import Intake
from ledger.kafka import Consumer, Publisher, Start
from ledger.order.decoders import cloudevents
from ledger.order.disturb import banking, random_for
from ledger.order.message import Message, encode

PARTITIONS: Final = 12
TOPIC: Final = "topic to balances"
FILE: Final = "file to balances"
ALONE: Final = "topic alone"
RATIOS: Final = (
    Ratio("topic to balances / file to balances", TOPIC, (FILE,), 0.7),
    Ratio("topic to balances / topic alone", TOPIC, (ALONE,), None),
)
_POLICY: Final = Strict(timedelta(hours=1))
_WAIT_SECONDS: Final = 60.0

_numbers = count(1)


class Clock:
    """How fast something goes, from the first time that it is told of anything to the last."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def tell(self, done: int) -> None:
        """So many are done by now."""
        if done and (not self._seen or done > self._seen[-1][1]):
            self._seen.append((time.perf_counter(), done))

    @property
    def rate(self) -> float:
        """How many a second."""
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began)


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Open the accounts that messages are about, and find the brokers."""
    # What librdkafka says while it connects is no result.
    logging.getLogger("ledger.kafka").addHandler(logging.NullHandler())
    accounts = (effort.messages or (4_000 if effort.quick else 20_000)) // (2 * PAIRS)
    with _brokers(effort.bootstrap) as bootstrap, Ledger.connect(text(url)) as ledger:
        opened(ledger, accounts)
        turns: dict[str, Turn] = {
            FILE: lambda _: Measured(_from_file(ledger, *_messages(accounts))),
            TOPIC: lambda _: Measured(_from_topic(ledger, bootstrap, *_messages(accounts))),
            ALONE: lambda _: Measured(_alone(bootstrap, *_messages(accounts))),
        }
        # Nobody's first run counts: connections are opened in it, and statements prepared.
        for turn in turns.values():
            turn(0)
        yield Benchmark("messages", turns, RATIOS, [Ratios("A topic beside a file")])
        assert ledger.trial_balance().balanced


def _messages(accounts: int) -> tuple[str, list[Message]]:
    """Messages of a new source: their accounts are the same each time, their streams begin anew."""
    source = f"source-{next(_numbers)}"
    return source, list(banking(accounts, random_for(1, "banking"), pairs=PAIRS, source=source))


def _from_file(ledger: Ledger, source: str, messages: Sequence[Message]) -> float:
    """What `ledger ingest` does."""
    clock = Clock()
    with tempfile.TemporaryFile() as file:
        file.writelines(encode(message) + b"\n" for message in messages)
        file.seek(0)
        intake = Intake([ledger.inbox(source, _POLICY)], cloudevents)
        done = 0
        with _without_garbage():
            while lines := list(islice(file, TOGETHER_MAX)):
                came = intake.take([intake.read(line, (), "") for line in lines])
                done += sum(each.tally.processed for each in came)
                clock.tell(done)
    assert done == len(messages)
    return clock.rate


def _from_topic(ledger: Ledger, bootstrap: str, source: str, messages: Sequence[Message]) -> float:
    topic, clock = _published(bootstrap, messages), Clock()
    consumer = Consumer(
        [ledger.inbox(source, _POLICY)],
        [topic],
        topic,
        {"bootstrap.servers": bootstrap},
        start=Start.EARLIEST,
        to_end=True,
        progress=clock.tell,
    )
    with _without_garbage():
        consumer.run()
    assert consumer.counts["processed"] == len(messages)
    return clock.rate


def _alone(bootstrap: str, source: str, messages: Sequence[Message]) -> float:
    topic, clock = _published(bootstrap, messages), Clock()
    client = confluent_kafka.Consumer({"bootstrap.servers": bootstrap, "group.id": source})
    client.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in range(_count(client, topic))])
    with _without_garbage():
        for done in range(1, len(messages) + 1):
            record = client.poll(_WAIT_SECONDS)
            assert record is not None
            assert record.error() is None
            clock.tell(done)
    client.close()
    return clock.rate


def _published(bootstrap: str, messages: Sequence[Message]) -> str:
    """A topic of their own with these messages; on a mock it has as many partitions as that gives it."""
    topic = f"bench-{token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    # The mock makes topics, but not when it is asked to.
    with suppress(confluent_kafka.KafkaException):
        admin.create_topics([NewTopic(topic, PARTITIONS, -1)], operation_timeout=1, request_timeout=2)[topic].result()
    with Publisher(topic, {"bootstrap.servers": bootstrap}) as publisher:
        publisher.publish(messages)
    return topic


def _count(client: Any, topic: str) -> int:
    return len(client.list_topics(topic, timeout=_WAIT_SECONDS).topics[topic].partitions)


@contextmanager
def _without_garbage() -> Iterator[None]:
    """What was made before is no garbage that this run's collections should have to look through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def _brokers(bootstrap: str | None) -> Iterator[str]:
    if bootstrap is not None:
        yield bootstrap
        return
    # Kept as long as it is needed: the brokers live in it.
    cluster = confluent_kafka.Producer({"test.mock.num.brokers": 3, "log_level": 0})
    brokers = cluster.list_topics(timeout=_WAIT_SECONDS).brokers.values()
    yield ",".join(f"{each.host}:{each.port}" for each in brokers)
