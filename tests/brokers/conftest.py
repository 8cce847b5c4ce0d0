"""Brokers for tests: librdkafka's mock of Kafka everywhere, and the real ones where they can be had."""

from __future__ import annotations

from collections.abc import Iterator

import apache_kafka as real
import mock_cluster
import pytest
import rabbitmq_server
from apache_kafka import ApacheKafka
from mock_cluster import MockCluster
from rabbitmq_server import RabbitMQ


@pytest.fixture
def mock_kafka() -> Iterator[MockCluster]:
    """Three brokers that are not real, and forget everything."""
    if reason := mock_cluster.why_not():
        pytest.skip(reason)
    with MockCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def apache_kafka() -> Iterator[ApacheKafka]:
    """A real Kafka, the same for all tests: each has topics and groups of its own."""
    if reason := real.why_not():
        pytest.skip(reason)
    try:
        with real.running() as kafka:
            yield kafka
    except real.NotToBeHad as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A real RabbitMQ, the same for all tests: each has queues of its own."""
    if reason := rabbitmq_server.why_not():
        pytest.skip(reason)
    with rabbitmq_server.running() as node:
        yield node
