"""Kafka's clients, made: with our log, and with an error in our words where a setting is none."""

from __future__ import annotations

import logging
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ledger.connect.kafka_settings import Config
from ledger.core.errors import InvalidCommand

logger: Final = logging.getLogger("ledger.kafka")


def made_consumer(told: Config) -> Any:
    """
    Make a consumer.

    Raises:
        InvalidCommand: librdkafka does not know a setting, or its value.
    """
    return _made(confluent_kafka.Consumer, told)


def made_producer(told: Config) -> Any:
    """
    Make a producer.

    Raises:
        InvalidCommand: librdkafka does not know a setting, or its value.
    """
    return _made(confluent_kafka.Producer, told)


def made_admin(told: Config) -> Any:
    """
    Make a client for administrators.

    Raises:
        InvalidCommand: librdkafka does not know a setting, or its value.
    """
    return _made(AdminClient, told)


def _made(kind: Any, told: Config) -> Any:
    try:
        return kind(dict(told), logger=logger)
    except KafkaException as error:
        raise InvalidCommand("config", error.args[0].str()) from None
    except (TypeError, ValueError) as error:
        raise InvalidCommand("config", str(error)) from None
