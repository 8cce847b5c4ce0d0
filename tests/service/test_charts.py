"""Charts: numbers are where they belong, however large, and what cannot be seen is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.book import Terms
from ledger.core.commands import AccountType, Direction
from ledger.service.pages.charts import HEIGHT, WIDTH, balance_chart, bars, spark

TERMS = Terms(AccountType.LIABILITY, Direction.CREDIT, "USD", 2, None, None, "open", "{}")
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.lists(st.integers(-(10**37), 10**37), min_size=1, max_size=50))
def test_a_balance_lies_between_its_rules(minors: list[int]) -> None:
    """The rules go from top to bottom, evenly, and are few; all amounts lie between the first and the last."""
    points = [(BEGAN + timedelta(days=day), TERMS.money(minor)) for day, minor in enumerate(minors)]
    chart = balance_chart(TERMS, points)
    amounts = [money.minor for money in chart.amounts]

    assert amounts[-1] <= min(0, *minors) <= max(0, *minors) <= amounts[0]
    assert 2 <= len(amounts) <= 8
    assert len({one - other for one, other in pairwise(amounts)}) == 1
    assert chart.rules[0] == 0
    assert chart.rules[-1] == HEIGHT
    assert 0 in amounts
    assert chart.zero == chart.rules[amounts.index(0)]
    assert (chart.least.minor, chart.most.minor) == (min(minors), max(minors))


def test_a_balance_goes_in_steps() -> None:
    """A balance is what it was until it changes: the line goes across first, and then up or down."""
    points = [(BEGAN + timedelta(days=day), TERMS.money(minor)) for day, minor in ((0, 0), (1, 1000), (4, 500))]
    chart = balance_chart(TERMS, points)

    assert chart.line == f"M0 {HEIGHT}.0H250.0V0.0H1000.0V150.0H1000"
    assert [str(money) for money in chart.amounts] == [
        "10.00 USD",
        "8.00 USD",
        "6.00 USD",
        "4.00 USD",
        "2.00 USD",
        "0.00 USD",
    ]


@pytest.mark.parametrize("minor", [0, 5, -5])
def test_one_point_is_a_line(minor: int) -> None:
    """An account with one event has a chart as well."""
    chart = balance_chart(TERMS, [(BEGAN, TERMS.money(minor))])
    assert chart.line.endswith(f"H{WIDTH}")
    assert chart.moments == [BEGAN]


def test_a_spark_says_what_it_lies_between() -> None:
    """A small line has no axes, so that its numbers are told; one that never changed is straight."""
    assert spark([3, 1, 2])[1:] == (3, 2, 1, 3)
    assert spark([0]).line == f"M0.0 {float(HEIGHT)}L1000 {float(HEIGHT)}"
    assert spark([7, 7]).line == "M0.0 150.0L1000.0 150.0"


def test_bars_are_as_high_as_their_numbers() -> None:
    """The highest fills the height, none has none, and they stand beside each other."""
    drawn = bars([0, 2, 4])
    assert [bar.height for bar in drawn] == [0, HEIGHT / 2, HEIGHT]
    assert [bar.top + bar.height for bar in drawn] == [HEIGHT] * 3
    assert all(one.left + one.width < other.left for one, other in pairwise(drawn))
    assert bars([0, 0])[0].height == 0
