"""What a consumer group has read, compared with what its topics are now: what will make trouble, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import confluent_kafka
from confluent_kafka import KafkaException, TopicPartition

from ledger.application import Ledger
from ledger.connect.kafka_clients import made_consumer
from ledger.connect.kafka_settings import Config, Protocol, consuming
from ledger.connect.partitions import partition_of
from ledger.core.errors import BrokerUnavailable
from ledger.inbox import Inbox
from ledger.storage import inbox_queries
from ledger.storage.offsets import Offset

_ASK_SECONDS: Final = 10.0
_PAGE: Final = 1_000


def examine(ledger: Ledger, group: str, topics: Sequence[str], inboxes: Sequence[Inbox], config: Config) -> list[str]:
    """
    Look at what a group has read of some topics.

    Raises:
        BrokerUnavailable: Kafka does not answer, or does not know a topic.
    """
    client = made_consumer(consuming(config, group, Protocol.EAGER))
    known = ledger.consumer_offsets(group)
    findings: list[str] = []
    try:
        for topic in topics:
            read = [offset for offset in known if offset.topic == topic]
            findings += _examine(client, topic, read, inboxes)
    except KafkaException as error:
        raise BrokerUnavailable(f"Kafka: {error.args[0].str()}.", "Look after the broker, and ask again.") from error
    finally:
        client.close()
    return findings


def _examine(
    client: confluent_kafka.Consumer, topic: str, read: Sequence[Offset], inboxes: Sequence[Inbox]
) -> Iterator[str]:
    described = client.list_topics(topic, timeout=_ASK_SECONDS).topics[topic]
    if described.error is not None:
        raise BrokerUnavailable(f"Topic {topic!r}: {described.error.str()}.", "Create it, or name another.")
    count = len(described.partitions)
    for before in sorted({each.partitions for each in read} - {count}):
        moved, streams = _moved(inboxes, before, count)
        yield (
            f"{topic} has {count} partitions, and had {before} when the group began to read some of them: of {streams}"
            f" streams that the inbox knows, {moved} go to another partition now. Messages with a sequence are put in"
            " order all the same; those without one may overtake each other."
        )
    unread = sorted(set(range(count)) - {each.partition for each in read})
    if read and unread:
        yield f"{topic}: nobody of the group has ever read {_partitions(unread)}. Is a consumer running?"
    for each in read:
        if each.partition >= count:
            yield f"{topic}/{each.partition} is gone; the group stood at {each.next_offset}. Was the topic made anew?"
        elif each.next_offset is not None:
            yield from _out_of_range(client, each)


def _out_of_range(client: confluent_kafka.Consumer, at: Offset) -> Iterator[str]:
    place = f"{at.topic}/{at.partition}"
    low, high = client.get_watermark_offsets(TopicPartition(at.topic, at.partition), timeout=_ASK_SECONDS) or (0, 0)
    assert at.next_offset is not None
    if at.next_offset < low:
        yield (
            f"{place}: the group stands at {at.next_offset}, and the topic begins at {low}: {low - at.next_offset}"
            " offsets were removed unread. Look for their messages elsewhere: `ledger inbox gaps` names what"
            " is missing; then `ledger consume seek`."
        )
    elif at.next_offset > high:
        yield f"{place}: the group stands at {at.next_offset}, and the topic ends at {high}. Was it made anew?"


def _moved(inboxes: Sequence[Inbox], before: int, after: int) -> tuple[int, int]:
    """How many of the streams go to another partition since there are so many, and of how many."""
    moved = streams = 0
    for inbox in inboxes:
        last: str | None = None
        while page := inbox.database.ask(partial(inbox_queries.streams, source=inbox.source, after=last, limit=_PAGE)):
            streams += len(page)
            moved += sum(partition_of(stream, before) != partition_of(stream, after) for stream in page)
            last = page[-1]
    return moved, streams


def _partitions(numbers: Sequence[int]) -> str:
    return f"partition{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
