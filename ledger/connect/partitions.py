"""
Which partition a key goes to: murmur2, as Kafka's Java client and librdkafka's `murmur2` partitioners have it.

Source: Austin Appleby's MurmurHash2, 32 bits, with the seed and the sign bit of Kafka's DefaultPartitioner.
"""

from __future__ import annotations

from typing import Final

from ledger.core.errors import InvalidCommand

_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_SHIFT: Final = 24
_WORD: Final = 0xFFFFFFFF
_POSITIVE: Final = 0x7FFFFFFF


def partition_of(stream: str | bytes, partitions: int) -> int:
    """
    The partition, from 0, that the messages of a stream go to when their key is its name, in UTF-8.

    Raises:
        InvalidCommand: There is no partition to go to.
    """
    if partitions < 1:
        raise InvalidCommand("partitions", f"{partitions} is less than one")
    return (_murmur2(stream.encode() if isinstance(stream, str) else stream) & _POSITIVE) % partitions


def _murmur2(key: bytes) -> int:
    value = _SEED ^ len(key)
    whole = len(key) - len(key) % 4
    for start in range(0, whole, 4):
        word = int.from_bytes(key[start : start + 4], "little") * _MULTIPLIER & _WORD
        word = (word ^ word >> _SHIFT) * _MULTIPLIER & _WORD
        value = value * _MULTIPLIER & _WORD ^ word
    if rest := key[whole:]:
        value = (value ^ int.from_bytes(rest, "little")) * _MULTIPLIER & _WORD
    value = (value ^ value >> 13) * _MULTIPLIER & _WORD
    return value ^ value >> 15
