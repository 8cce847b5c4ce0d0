"""One text for each value: whatever way it came in, and nothing else has that text."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from samples import keys, moments, scalars

from ledger.core.canonical import canonical_json, sorted_keys, utc_text

values = st.recursive(
    st.none() | scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        (-(2**53 - 1), "-9007199254740991"),
        ("", '""'),
        ('a"\\\n\x1fü\u2028🦉', '"a\\"\\\\\\n\\u001fü\u2028🦉"'),
        ([], "[]"),
        ({}, "{}"),
        ((1, "a", None), '[1,"a",null]'),
        ({"b": 1, "a": {"d": [], "c": [{"z": 1, "y": 2}]}}, '{"a":{"c":[{"y":2,"z":1}],"d":[]},"b":1}'),
        ({"a": 1, "B": 2, " ": 3, "~": 4}, '{" ":3,"B":2,"a":1,"~":4}'),
        (MappingProxyType({"b": (1,), "a": True}), '{"a":true,"b":[1]}'),
    ],
)
def test_canonical_json(value: object, text: str) -> None:
    """No white space, keys sorted at every depth, and only what must be escaped is."""
    assert canonical_json(value) == text


@given(values)
def test_canonical_json_reads_back(value: object) -> None:
    """Any JSON library reads the value back from its text, which is that of the standard."""
    text = canonical_json(value)

    assert json.loads(text) == value
    assert text.encode() == rfc8785.dumps(value)  # type: ignore[arg-type]


@given(st.dictionaries(keys, values, min_size=2, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_count(value: dict[str, Any], random: Any) -> None:
    """However an object was put together, its text is the same, and it is not touched itself."""
    shuffled = list(value.items())
    random.shuffle(shuffled)

    assert canonical_json(dict(shuffled)) == canonical_json(value)
    assert list(dict(shuffled)) == [key for key, _ in shuffled]
    assert list(sorted_keys(dict(shuffled))) == sorted(value)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC), "2026-01-02T03:04:05.123456Z"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00.000000Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
        (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "9999-12-31T23:59:59.999999Z"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5, minutes=30))), "2026-01-01T21:34:05.000000Z"),
        (datetime(2026, 7, 2, 3, 4, 5, tzinfo=ZoneInfo("Europe/Berlin")), "2026-07-02T01:04:05.000000Z"),
    ],
)
def test_moments_are_written_in_utc(moment: datetime, text: str) -> None:
    """A moment has six decimals and the letter Z, wherever its clock stands."""
    assert utc_text(moment) == text


def test_an_hour_that_comes_twice_is_two_moments() -> None:
    """When a clock is set back, the same hour before and after is told apart, in whatever order it is asked."""
    first = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=0)
    second = first.replace(fold=1)
    assert first == second

    for _ in range(2):
        assert utc_text(first) == "2026-10-25T00:30:00.000000Z"
        assert utc_text(second) == "2026-10-25T01:30:00.000000Z"


@given(moments, moments, st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))))
def test_texts_sort_as_moments_do(one: datetime, other: datetime, zone: timezone) -> None:
    """Texts are as long as each other, equal for equal moments, and sort as moments do."""
    assert (utc_text(one) < utc_text(other)) == (one < other)
    assert len(utc_text(one)) == 27
    assert datetime.fromisoformat(utc_text(one)) == one
    if 1 < one.year < 9999:
        assert utc_text(one.astimezone(zone)) == utc_text(one)
