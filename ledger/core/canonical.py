"""One text for each value: JSON in the form of RFC 8785, and moments in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

from pydantic_core import to_json


def canonical_json(value: object) -> str:
    """
    RFC 8785 text of a value made of strings, integers up to 2^53-1, booleans, None, lists and dicts.

    Keys must be printable ASCII, for which sorting by code point is the standard's order.
    """
    return to_json(sorted_keys(value)).decode()


def sorted_keys(value: object) -> object:
    """A value of JSON, with the keys of all its objects in order."""
    if isinstance(value, Mapping):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [sorted_keys(item) for item in value]
    return value


def utc_text(moment: datetime) -> str:
    """A moment in UTC, as `2026-01-02T03:04:05.123456Z`."""
    # Within one zone, two moments that differ by the fold of a clock set back compare equal: not so in UTC.
    return _utc_text(moment if moment.tzinfo is UTC else moment.astimezone(UTC))


@lru_cache(maxsize=8192)
def _utc_text(moment: datetime) -> str:
    """Cached: a batch writes each of its few moments many times."""
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
