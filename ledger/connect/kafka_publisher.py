"""Messages → a topic: the messages of a stream in one partition, each once, in the order in which they are given."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

import confluent_kafka

from ledger.connect.kafka_clients import made_producer
from ledger.connect.kafka_settings import Config, producing
from ledger.core.errors import BrokerUnavailable
from ledger.order.message import Message, encode

_HEADERS: Final[list[tuple[str, str | bytes | None]]] = [
    ("content-type", b"application/cloudevents+json; charset=utf-8")
]
_ANY: Final = -1
"""The partition that the key leads to."""

_CLOSE_SECONDS: Final = 5.0


class Publisher:
    """
    Publishes messages as CloudEvents (Kafka protocol binding 1.0.2, structured mode), with their stream as the key.

    What was given to `publish` has been acknowledged by all in-sync replicas when it returns.  Not for several threads.
    """

    def __init__(self, topic: str, config: Config, *, timeout: float = 60.0) -> None:
        """
        `config` are librdkafka's settings; "bootstrap.servers" at least.

        Raises:
            InvalidCommand: They name no broker, or set what keeps a stream in order.
        """
        self.topic = topic
        self._timeout = timeout
        self._failed: list[str] = []
        told = {"delivery.timeout.ms": int(timeout * 1_000), **producing(config)}
        self._producer = made_producer(told)

    def publish(self, messages: Iterable[Message], *, partition: int | None = None) -> int:
        """
        Publish messages, and wait until the topic has them; how many.

        Those of one stream go to one partition, unless a `partition` is named for all.

        Raises:
            BrokerUnavailable: Some may not be there.  Publish them again: who takes them drops what came twice.
        """
        count = 0
        for message in messages:
            key = message.stream.encode() or None
            self._send(encode(message), key, _ANY if partition is None else partition)
            count += 1
        self._wait()
        return count

    def close(self) -> None:
        """Let the connection go."""
        self._producer.flush(_CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send(self, body: bytes, key: bytes | None, partition: int) -> None:
        while True:
            try:
                self._producer.produce(self.topic, body, key, partition, on_delivery=self._delivered, headers=_HEADERS)
            except BufferError:
                # Full: let it be emptied, which calls back.
                self._producer.poll(0.1)
            except confluent_kafka.KafkaException as error:
                raise _refused(self.topic, error.args[0].str()) from error
            else:
                self._producer.poll(0)
                return

    def _delivered(self, error: confluent_kafka.KafkaError | None, _message: confluent_kafka.Message) -> None:
        if error is not None:
            self._failed.append(error.str())

    def _wait(self) -> None:
        left = self._producer.flush(self._timeout)
        failed, self._failed = self._failed, []
        if failed:
            raise _refused(self.topic, f"{len(failed)} messages were not taken: {failed[0]}")
        if left:
            raise _refused(self.topic, f"{left} messages were not acknowledged within {self._timeout:g} s")


def _refused(topic: str, problem: str) -> BrokerUnavailable:
    return BrokerUnavailable(f"Topic {topic!r}: {problem}.", "Look after the broker, and publish again.")
