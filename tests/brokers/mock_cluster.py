"""
librdkafka's own mock of a Kafka cluster, inside this process: real clients speak to it, over TCP, from any process.

What it cannot do: transactions are not isolated, nothing survives its end, and no retention removes anything.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import confluent_kafka

_PRODUCER: Final = 0
_ERROR_BYTES: Final = 512
_SESSION_MILLISECONDS: Final = 3_000
"""After so long without a heartbeat a member of a KIP-848 group is gone; others say for themselves how long."""

_SYMBOLS: Final = (
    "rd_kafka_mock_cluster_new",
    "rd_kafka_mock_topic_create",
    "rd_kafka_mock_topic_set_error",
    "rd_kafka_mock_push_request_errors_array",
    "rd_kafka_mock_broker_set_down",
    "rd_kafka_mock_broker_set_up",
    "rd_kafka_mock_set_group_consumer_session_timeout_ms",
    "rd_kafka_mock_set_group_consumer_heartbeat_interval_ms",
)

FETCH: Final = 1
OFFSET_COMMIT: Final = 8
HEARTBEAT: Final = 12
"""Numbers of requests in Kafka's protocol."""


def why_not() -> str | None:
    """Why there is no mock cluster here, if there is none."""
    try:
        library = _library()
    except OSError as error:
        return f"librdkafka cannot be loaded by itself: {error}"
    missing = [name for name in _SYMBOLS if not hasattr(library, name)]
    return f"this librdkafka has no {', '.join(missing)}" if missing else None


def _library() -> ctypes.CDLL:
    package = Path(confluent_kafka.__file__).parent
    bundled = sorted((package.parent / "confluent_kafka.libs").glob("librdkafka*.so*"))
    return ctypes.CDLL(str(bundled[0]) if bundled else "librdkafka.so.1")


class MockCluster:
    """Some brokers that forget everything when they end."""

    def __init__(self, brokers: int = 3) -> None:
        self._library = library = _library()
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(library, name).restype = ctypes.c_void_p
        library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        configuration = ctypes.c_void_p(library.rd_kafka_conf_new())
        library.rd_kafka_conf_set(configuration, b"log_level", b"0", error, ctypes.c_size_t(_ERROR_BYTES))
        client = library.rd_kafka_new(_PRODUCER, configuration, error, ctypes.c_size_t(_ERROR_BYTES))
        assert client, error.value.decode()
        self._client = ctypes.c_void_p(client)
        self._cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(self._client, ctypes.c_int(brokers)))
        library.rd_kafka_mock_set_group_consumer_session_timeout_ms(self._cluster, ctypes.c_int(_SESSION_MILLISECONDS))
        library.rd_kafka_mock_set_group_consumer_heartbeat_interval_ms(
            self._cluster, ctypes.c_int(_SESSION_MILLISECONDS // 6)
        )

    @property
    def bootstrap(self) -> str:
        """Where clients find it."""
        return str(self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode())

    def create_topic(self, topic: str, partitions: int) -> None:
        """Create a topic, of which one broker has each partition."""
        code = self._library.rd_kafka_mock_topic_create(self._cluster, topic.encode(), partitions, 1)
        assert code == 0, f"{topic} could not be created: {code}"

    def deny_topic(self, topic: str, error: int) -> None:
        """Answer questions about a topic with this error; with 0, as before."""
        self._library.rd_kafka_mock_topic_set_error(self._cluster, topic.encode(), ctypes.c_int(error))

    def fail(self, request: int, errors: Sequence[int]) -> None:
        """Answer the next requests of a kind with these errors."""
        array = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(request), ctypes.c_size_t(len(errors)), array
        )

    def stop_broker(self, number: int) -> None:
        """Let a broker go away; nobody takes its partitions over."""
        assert self._library.rd_kafka_mock_broker_set_down(self._cluster, ctypes.c_int32(number)) == 0

    def start_broker(self, number: int) -> None:
        """Let it come back."""
        assert self._library.rd_kafka_mock_broker_set_up(self._cluster, ctypes.c_int32(number)) == 0

    def close(self) -> None:
        """End all of it."""
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
