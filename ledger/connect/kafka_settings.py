"""What the Kafka clients are told: the caller's settings, under those that this library's promises rest on."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from ledger.core.errors import InvalidCommand

Config = Mapping[str, Any]
"""Settings of librdkafka by their names, as "bootstrap.servers"."""


class Protocol(StrEnum):
    """How the members of a group share the partitions out."""

    EAGER = "eager"
    """Everybody gives everything up, and is given a new share."""

    COOPERATIVE = "cooperative"
    """Only what moves is given up."""

    CONSUMER = "consumer"
    """The brokers share out (KIP-848; Kafka 4.0)."""


class Start(StrEnum):
    """Where to begin in a partition that the group has never read."""

    EARLIEST = "earliest"
    LATEST = "latest"


_SHARING: Final[Mapping[Protocol, Config]] = {
    Protocol.EAGER: {"partition.assignment.strategy": "range,roundrobin"},
    Protocol.COOPERATIVE: {"partition.assignment.strategy": "cooperative-sticky"},
    Protocol.CONSUMER: {"group.protocol": "consumer"},
}
_OURS: Final[Mapping[str, str]] = {
    "group.id": "name it with `group`",
    "group.protocol": "choose it with `protocol`",
    "partition.assignment.strategy": "choose it with `protocol`",
    "enable.auto.commit": "offsets are kept in the database, with the effects",
    "enable.auto.offset.store": "offsets are kept in the database, with the effects",
    "auto.offset.reset": "choose where to begin with `start`",
    "enable.partition.eof": "ask for it with `to_end`",
}
_FETCH: Final = {"queued.min.messages": 2_000, "queued.max.messages.kbytes": 16_384}
"""What librdkafka fetches ahead, of each partition and of all: it is thrown away when a partition has to wait."""

_PRODUCES: Final = {"enable.idempotence": True, "acks": "all", "partitioner": "murmur2_random"}
"""Each message once and in order, by librdkafka; in the partition that Java's producer would choose."""

_SAME: Final = {"acks": {"all", "-1"}}
"""What means the same in other words."""


def consuming(config: Config, group: str, protocol: Protocol) -> dict[str, Any]:
    """
    What a consumer is told.

    Raises:
        InvalidCommand: `config` sets what is not the caller's to set, or names no broker.
    """
    for name, advice in _OURS.items():
        if name in config:
            raise InvalidCommand(f"config {name!r}", f"it is not yours to set: {advice}")
    ours = {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
    }
    return {**_FETCH, **_with_broker(config), **_SHARING[protocol], **ours}


def producing(config: Config) -> dict[str, Any]:
    """
    What a producer is told.

    Raises:
        InvalidCommand: `config` sets what is not the caller's to set, or names no broker.
    """
    for name, value in _PRODUCES.items():
        if _text(config.get(name, value)) not in _SAME.get(name, {_text(value)}):
            raise InvalidCommand(f"config {name!r}", f"it is {value!r} here, so that each stream stays in order")
    return {**_with_broker(config), **_PRODUCES}


def read_config(file: str | Path) -> dict[str, str]:
    """
    Read settings from a file of `name=value` lines, as Kafka's own tools have them; # begins a comment.

    Raises:
        InvalidCommand: There is no such file, or a line of it is no setting.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidCommand(str(file), f"{error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InvalidCommand(str(file), "it is not UTF-8") from None
    config: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith(("#", "!")):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise InvalidCommand(str(file), f"line {number} is not name=value")
        config[name.strip()] = value.strip()
    return config


def _text(value: object) -> str:
    """A setting as a file has it, whoever gave it."""
    return str(value).lower()


def _with_broker(config: Config) -> Config:
    if not config.get("bootstrap.servers"):
        raise InvalidCommand("config 'bootstrap.servers'", "name a broker: host:9092")
    return config
