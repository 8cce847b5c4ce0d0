"""What an account costs as it grows: to append, and to read its balance now, at a version, and as of a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from sqlalchemy import URL

from benchmarks import ours
from benchmarks.processes import Tally, apart
from benchmarks.rounds import Benchmark, Curves, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import text

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
LARGEST: Final = 10_000_000
SIZES_QUICK: Final = (1_000, 10_000)
APPEND: Final = "append"
BALANCE: Final = "balance"
EARLIER: Final = "balance at a version"
AS_OF: Final = "balance as of a moment"
TARGET: Final = 0.9
"""Of an append to the largest account, against one to the smallest."""

_FRESH_MAX: Final = 10_000
"""Up to this size each round has an account of its own, since what is appended would make it another size."""


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Grow the accounts, through the ledger itself."""
    sizes = SIZES_QUICK if effort.quick else (*SIZES, LARGEST) if effort.largest else SIZES
    ours.opened(text(url), 1)
    for size in sizes:
        for number in range(1, effort.rounds + 1) if size <= _FRESH_MAX else (1,):
            ours.grown(text(url), _account(size, number), size)
    turns: dict[str, Turn] = {}
    for size in sizes:
        turns[named(APPEND, size)] = partial(_asked, ours.appends, text(url), size, (effort.seconds,))
        turns[named(BALANCE, size)] = partial(_asked, ours.balances, text(url), size, (effort.seconds,))
        turns[named(EARLIER, size)] = partial(_asked, ours.earlier_balances, text(url), size, (size, effort.seconds))
        turns[named(AS_OF, size)] = partial(_asked, ours.dated_balances, text(url), size, (size, effort.seconds))
    yield Benchmark("calls", turns, list(_ratios(sizes)), [_curves(sizes), Ratios("Large accounts beside small ones")])
    ours.checked(text(url))


def named(what: str, size: int) -> str:
    """A turn's name."""
    return f"{what}, {size:,} events"


def _account(size: int, number: int) -> str:
    return f"grown-{size}-{number if size <= _FRESH_MAX else 1}"


def _asked(work: Callable[..., Tally], url: str, size: int, arguments: tuple[float, ...], number: int) -> Measured:
    return apart(work, (url, _account(size, number), *arguments))


def _ratios(sizes: tuple[int, ...]) -> Iterator[Ratio]:
    least, *larger = sizes
    for what in (APPEND, BALANCE, EARLIER, AS_OF):
        for size in larger:
            target = TARGET if what == APPEND and size == sizes[-1] else None
            yield Ratio(f"{what}, at {size:,} events / at {least:,}", named(what, size), (named(what, least),), target)


def _curves(sizes: tuple[int, ...]) -> Curves:
    lines = {what: {size: named(what, size) for size in sizes} for what in (APPEND, BALANCE, EARLIER, AS_OF)}
    return Curves("sizes", "One account as it grows", "events of the account", lines, {APPEND: TARGET})
