"""A real RabbitMQ in trouble: redelivered, requeued and restarted, each message takes effect once, in order."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

import pika
import psycopg
import pytest
from chaos import (
    SOURCE,
    WAIT_SECONDS,
    Member,
    assert_exactly_once,
    delivered,
    open_accounts,
    terminate_connections,
    turns,
)
from invariants import assert_sound
from pika.adapters.blocking_connection import BlockingChannel
from rabbitmq_server import RabbitMQ

from ledger import BrokerUnavailable, InvalidCommand, Ledger, Timeouts
from ledger.order.cursor import Strict
from ledger.order.message import Message, encode
from ledger.rabbitmq import QUEUE, Consumer

PATIENT: Final = Strict(timedelta(minutes=5))
SEED: Final = 20260102
_PROCESSED: Final = b"SELECT coalesce(sum(count), 0) FROM ledger.inbox_counters WHERE counter = 'processed'"


@contextmanager
def channel_to(broker: RabbitMQ) -> Iterator[BlockingChannel]:
    """A channel on which what is published is confirmed."""
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        connection.close()


@pytest.fixture
def queue(rabbitmq: RabbitMQ) -> str:
    """The name of an empty queue."""
    name = f"q{uuid4().hex[:8]}"
    with channel_to(rabbitmq) as channel:
        channel.queue_declare(name, durable=True, arguments=QUEUE)
    return name


def publish(broker: RabbitMQ, queue: str, messages: Sequence[Message]) -> None:
    """Send CloudEvents, structured."""
    properties = pika.BasicProperties(content_type="application/cloudevents+json", delivery_mode=2)
    with channel_to(broker) as channel:
        for message in messages:
            channel.basic_publish("", queue, encode(message), properties)


def waiting(broker: RabbitMQ, queue: str) -> int:
    """How many messages are ready in a queue."""
    with channel_to(broker) as channel:
        return channel.queue_declare(queue, passive=True).method.message_count or 0


def processed(url: str) -> int:
    """How many messages have taken effect so far."""
    with psycopg.connect(url) as connection:
        return int(connection.execute(_PROCESSED).fetchall()[0][0])


def consume(consumer: Consumer, wanted: int) -> None:
    """Run a consumer until it has had so many records."""

    def stop_when_done(records: int) -> None:
        if records >= wanted:
            consumer.stop()

    consumer._progress = stop_when_done  # noqa: SLF001  (as if the caller had given it)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    thread.join(WAIT_SECONDS)
    consumer.stop()
    assert not thread.is_alive()


def member(url: str, broker: RabbitMQ, queue: str) -> Member:
    """A consumer in a process of its own."""
    options = [
        "--json",
        "--source",
        SOURCE,
        "--url",
        broker.url,
        "--queue",
        queue,
        "--prefetch",
        "100",
        "--idle-seconds",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "ledger", "consume", "rabbitmq", *options],
        env={**os.environ, "LEDGER_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Member(process)


def wait_until_processed(url: str, wanted: int, pace: Member) -> None:
    """Wait until so many messages have taken effect."""
    for _ in range(int(WAIT_SECONDS * 10)):
        if processed(url) >= wanted:
            return
        pace.pause()
    raise AssertionError(f"{processed(url)} of {wanted} after {WAIT_SECONDS:g} s")


def test_consumers_die_and_the_broker_too(ledger: Ledger, ledger_url: str, rabbitmq: RabbitMQ, queue: str) -> None:
    """One is killed, one frozen and thawed, connections and the broker break: every effect once, in order."""
    streams = turns(open_accounts(ledger, 60), 41)
    sent = delivered(streams, random.Random(SEED))  # noqa: S311  (a test that can be run again)
    total = sum(map(len, streams.values()))
    publish(rabbitmq, queue, sent)
    members = [member(ledger_url, rabbitmq, queue) for _ in range(2)]
    try:
        wait_until_processed(ledger_url, total // 10, members[0])
        members[0].kill()
        members[0] = member(ledger_url, rabbitmq, queue)
        wait_until_processed(ledger_url, total * 3 // 10, members[0])
        terminate_connections(ledger_url)
        wait_until_processed(ledger_url, total * 4 // 10, members[0])
        members[1].freeze()
        wait_until_processed(ledger_url, total * 4 // 10, members[0])
        rabbitmq.kill()
        members[1].thaw()
        rabbitmq.start()
        wait_until_processed(ledger_url, total, members[0])
        assert all(each.process.poll() is None for each in members)
        for each in members:
            each.leave()
        members.clear()
    finally:
        for each in members:
            each.kill()
    # What was not acknowledged comes again, and is counted again.
    deliveries = ledger.inbox(SOURCE, PATIENT).stats().counters["received"]
    assert deliveries >= len(sent)
    assert_exactly_once(ledger, ledger_url, streams, deliveries)
    assert_sound(ledger, ledger_url)


def test_requeued_messages_come_out_in_order(ledger: Ledger, rabbitmq: RabbitMQ) -> None:
    """Somebody takes messages and gives some back, so that the queue has them in another order: the ledger has not."""
    streams = turns(open_accounts(ledger, 3), 11)
    sent = [message for messages in streams.values() for message in messages]
    queue = f"q{uuid4().hex[:8]}"
    with channel_to(rabbitmq) as channel:
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        publish(rabbitmq, queue, [*sent, *sent[:5]])
        taken = [channel.basic_get(queue)[0] for _ in range(20)]
        for each in random.Random(SEED).sample(taken, 20):  # noqa: S311  (a test that can be run again)
            assert each is not None
            channel.basic_nack(each.delivery_tag or 0, requeue=True)
    consumer = Consumer([ledger.inbox(SOURCE, PATIENT)], queue, rabbitmq.url, declare=False)
    consume(consumer, len(sent) + 5)
    assert consumer.counts["duplicates"] == 5
    assert waiting(rabbitmq, queue) == 0
    assert ledger.inbox(SOURCE, PATIENT).stats().held == 0
    for account, messages in streams.items():
        keys = [
            ledger.transaction(event.transaction_id).transaction.idempotency_key for event in ledger.history(account)
        ]
        assert keys[1:] == [f"{account}#{message.sequence}" for message in messages]


def test_sequence_comes_in_a_header(ledger: Ledger, rabbitmq: RabbitMQ, queue: str) -> None:
    """Binary CloudEvents with their attributes as headers, and plain messages that only a header numbers."""
    open_accounts(ledger, 1)
    body = json.dumps({"account": "a0", "against": "world", "amount": "1 USD"}).encode()
    attributes = {"specversion": "1.0", "type": "ledger.deposit", "source": SOURCE, "subject": "a0"}
    spellings = ("cloudEvents:", "cloudEvents_")
    with channel_to(rabbitmq) as channel:
        for number, spelling in enumerate(spellings, 2):
            headers: dict[str, Any] = {f"{spelling}{name}": value for name, value in attributes.items()}
            headers |= {f"{spelling}id": f"id-{number}", "sequence": 4 - number}
            properties = pika.BasicProperties(content_type="application/json", headers=headers)
            channel.basic_publish("", queue, body, properties)
        channel.basic_publish("", queue, b"{broken")
        bad = pika.BasicProperties(content_type="application/json", headers={**headers, "sequence": "seven"})
        channel.basic_publish("", queue, body, bad)
    consumer = Consumer([ledger.inbox(SOURCE, PATIENT)], queue, rabbitmq.url)
    consume(consumer, 4)
    assert (consumer.counts["processed"], consumer.counts["undecodable"]) == (2, 2)
    assert str(ledger.balance("a0").posted) == "2.00 USD"
    letters = ledger.inbox(SOURCE, PATIENT).dead_letters()
    assert sorted(letter.why for letter in letters) == ["undecodable", "undecodable"]
    assert any("seven" in str(letter.error) for letter in letters)


def test_database_cannot_for_a_while(ledger: Ledger, ledger_url: str, rabbitmq: RabbitMQ, queue: str) -> None:
    """Messages that the ledger cannot take for now stay where they are, and are taken when it can."""
    open_accounts(ledger, 1)
    publish(rabbitmq, queue, turns(["a0"], 3)["a0"])
    problems: list[str] = []
    with psycopg.connect(ledger_url) as owner, Ledger.connect(ledger_url, timeouts=Timeouts(lock_seconds=0.1)) as hasty:
        owner.execute("LOCK ledger.inbox_streams")

        def mend(problem: str) -> None:
            problems.append(problem)
            owner.rollback()

        consumer = Consumer([hasty.inbox(SOURCE, PATIENT)], queue, rabbitmq.url, on_problem=mend)
        consume(consumer, 3)
    assert consumer.counts["processed"] == 3
    assert "Try again" in problems[0]


@pytest.mark.parametrize(
    ("url", "error"),
    [("http://localhost", InvalidCommand), ("amqp://guest:wrong@{where}", BrokerUnavailable)],
)
def test_broker_that_refuses(ledger: Ledger, rabbitmq: RabbitMQ, queue: str, url: str, error: type[Exception]) -> None:
    """A URL that is none, and a wrong password, are said plainly and not tried again."""
    where = rabbitmq.url.partition("@")[2]
    with pytest.raises(error):
        Consumer([ledger.inbox(SOURCE, PATIENT)], queue, url.format(where=where)).run()


def test_queue_of_another_kind(ledger: Ledger, rabbitmq: RabbitMQ) -> None:
    """A queue that is there and has not what keeps order is refused, unless the caller takes it as it is."""
    name = f"q{uuid4().hex[:8]}"
    with channel_to(rabbitmq) as channel:
        channel.queue_declare(name, durable=True)
    with pytest.raises(BrokerUnavailable, match="inequivalent arg"):
        Consumer([ledger.inbox(SOURCE, PATIENT)], name, rabbitmq.url).run()
    open_accounts(ledger, 1)
    publish(rabbitmq, name, turns(["a0"], 3)["a0"])
    consumer = Consumer([ledger.inbox(SOURCE, PATIENT)], name, rabbitmq.url, declare=False)
    consume(consumer, 3)
    assert consumer.counts["processed"] == 3
