"""
Numbers → where they are in a drawing; the templates draw it.

A drawing has no texts of its own: it is stretched to the room there is, and what stands at its axes beside it is not.
Amounts stay integers up to the place of a line on the screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from fractions import Fraction
from typing import Final, NamedTuple

from ledger.core.book import Terms
from ledger.core.money import Money

WIDTH: Final = 1000
HEIGHT: Final = 300
_STEPS: Final = 5
"""Into about how many the vertical axis is divided."""

_NICE: Final = (10, 20, 25, 50, 100)
_MOMENTS: Final = 3


class Chart(NamedTuple):
    """A balance over time: a line in steps and the area under it, with the amounts and moments at its axes."""

    line: str
    area: str
    rules: list[float]
    """Where a line goes across, from top to bottom, beside the `amounts`."""

    zero: float
    amounts: list[Money]
    moments: list[datetime]
    least: Money
    most: Money


class Spark(NamedTuple):
    """A small line, without axes: where it goes, and what it begins at, ends at, and lies between."""

    line: str
    first: int
    last: int
    least: int
    most: int


class Bar(NamedTuple):
    """One of several bars beside each other, from 0 to 1."""

    left: float
    top: float
    width: float
    height: float


def balance_chart(terms: Terms, points: Sequence[tuple[datetime, Money]]) -> Chart:
    """A balance over time, of a point or more: it stays what it is until the next one."""
    minors = [money.minor for _, money in points]
    low, high = min(0, *minors), max(0, *minors)
    step = _step(high - low)
    bottom, top = low // step * step, -(-high // step) * step
    top = top if top > bottom else bottom + step
    began, ended = points[0][0], points[-1][0]
    span = (ended - began).total_seconds() or 1.0

    def across(moment: datetime) -> float:
        return round((moment - began).total_seconds() / span * WIDTH, 2)

    def down(minor: int) -> float:
        return round(float(Fraction(top - minor, top - bottom)) * HEIGHT, 2)

    line = f"M0 {down(minors[0])}"
    for (moment, _), minor in zip(points[1:], minors[1:], strict=True):
        line += f"H{across(moment)}V{down(minor)}"
    line += f"H{WIDTH}"
    ticks = range(top, bottom - 1, -step)
    moments = [began + (ended - began) * each / (_MOMENTS - 1) for each in range(_MOMENTS)]
    return Chart(
        line,
        f"{line}V{down(0)}H0Z",
        [down(tick) for tick in ticks],
        down(0),
        [terms.money(tick) for tick in ticks],
        moments if ended > began else [began],
        terms.money(min(minors)),
        terms.money(max(minors)),
    )


def spark(numbers: Sequence[int]) -> Spark:
    """A line through numbers, at least one of them, that came one after the other."""
    least, most = min(numbers), max(numbers)
    span = (most - least) or 1
    places = len(numbers) - 1 or 1
    # What never changed lies in the middle, and at the bottom if there never was any.
    flat = HEIGHT / 2 if most else float(HEIGHT)
    spots = [
        (
            round(WIDTH * at / places, 1),
            flat if most == least else round(HEIGHT * float(Fraction(most - each, span)), 1),
        )
        for at, each in enumerate(numbers)
    ]
    if len(spots) == 1:
        spots.append((WIDTH, spots[0][1]))
    line = "M" + "L".join(f"{x} {y}" for x, y in spots)
    return Spark(line, numbers[0], numbers[-1], least, most)


def bars(numbers: Sequence[int]) -> list[Bar]:
    """A bar for each number, as high as it is beside the highest; one of zero has no height."""
    most = max(numbers, default=0) or 1
    width = WIDTH / (len(numbers) or 1)
    return [
        Bar(round(at * width + width * 0.1, 2), round(HEIGHT * (1 - each / most), 2), round(width * 0.8, 2), height)
        for at, each in enumerate(numbers)
        for height in [round(HEIGHT * each / most, 2)]
    ]


def _step(span: int) -> int:
    """A round number of which about _STEPS make the span."""
    least = max(1, -(-span // _STEPS))
    power = 10 ** (len(str(least)) - 1)
    return int(next(nice * power // 10 for nice in _NICE if nice * power >= least * 10))
