"""
Kafka: messages from topics into the inbox, exactly once and in order, and messages and the feed into topics.

    from ledger.kafka import Consumer, Publisher

Needs the extra `kafka`.
"""

from __future__ import annotations

from ledger.core.errors import InvalidCommand

try:
    from ledger.connect.kafka_consumer import Consumer
    from ledger.connect.kafka_doctor import examine
    from ledger.connect.kafka_feed import FeedPublisher
    from ledger.connect.kafka_publisher import Publisher
    from ledger.connect.kafka_simulation import simulate
except ModuleNotFoundError as error:
    if error.name != "confluent_kafka":
        raise
    raise InvalidCommand("kafka", "its client is not installed: pip install 'ledger[kafka]'") from None

from ledger.connect.kafka_settings import Config, Protocol, Start, read_config
from ledger.connect.partitions import partition_of

__all__ = [
    "Config",
    "Consumer",
    "FeedPublisher",
    "Protocol",
    "Publisher",
    "Start",
    "examine",
    "partition_of",
    "read_config",
    "simulate",
]
