"""Brokers for tests: librdkafka's mock of Kafka everywhere, and the real ones where they can be had."""

from __future__ import annotations

from collections.abc import Iterator

import apache_kafka as real
import mock_cluster
import pytest
from apache_kafka import ApacheKafka
from mock_cluster import MockCluster


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
