"""
Single transfers, each in a call that waits for its answer: what many callers get, and how long one of them waits.

Beside the same by pgbench, whose client costs next to nothing: as plain statements, and as one call of a function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from sqlalchemy import URL

from benchmarks import ours
from benchmarks.ours import ACCOUNTS, ACCOUNTS_QUICK, Place
from benchmarks.pgbench import FUNCTION, PLAIN, HandWritten
from benchmarks.processes import apart
from benchmarks.rounds import Bars, Benchmark, Chart, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import text

CALLERS: Final = (1, 8, 32)
PLACES: Final = (Place.SPREAD, Place.HOT)
STATEMENTS: Final = "pgbench, statements"
CALLED: Final = "pgbench, function"
SINGLE: Final = "ledger"
BATCHER: Final = "ledger, batcher"
CONTESTANTS: Final = (STATEMENTS, CALLED, SINGLE, BATCHER)

TARGETS: Final = {(BATCHER, 32, Place.HOT): 8.0, (BATCHER, 8, Place.SPREAD): 2.0}
"""Against the better one of pgbench's two."""

PLAIN_TARGET: Final = 0.7
"""Of one call without the batcher, against plain statements of one client."""


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Open the accounts of both sides."""
    accounts = ACCOUNTS_QUICK if effort.quick else ACCOUNTS
    ours.opened(text(url), accounts)
    hand = HandWritten(url, accounts)
    seconds = effort.seconds
    turns: dict[str, Turn] = {}
    for place in PLACES:
        some = 2 if place is Place.HOT else accounts
        for callers in CALLERS:
            for contestant, script in ((STATEMENTS, PLAIN), (CALLED, FUNCTION)):
                turns[named(contestant, callers, place)] = partial(_by_hand, hand, script, some, callers, seconds)
            for contestant, work in ((SINGLE, ours.calls), (BATCHER, ours.batched_calls)):
                arguments = (text(url), place, accounts, callers, seconds)
                turns[named(contestant, callers, place)] = partial(_by_ledger, work, arguments)
    charts: list[Chart] = [*_charts(accounts), Ratios("Single transfers: the ledger beside pgbench")]
    yield Benchmark("transfers", turns, list(_ratios()), charts)
    ours.checked(text(url))


def named(contestant: str, callers: int, place: Place) -> str:
    """A turn's name."""
    return f"{contestant}, {callers} {'caller' if callers == 1 else 'callers'}, {place}"


def _by_hand(hand: HandWritten, script: str, accounts: int, clients: int, seconds: float, _: int) -> Measured:
    return hand.run(script, accounts, clients, seconds)


def _by_ledger(work: object, arguments: tuple[object, ...], _: int) -> Measured:
    return apart(work, arguments)  # type: ignore[arg-type]  # a turn takes any work


def _ratios() -> Iterator[Ratio]:
    alone = named("{}", 1, Place.SPREAD)
    yield Ratio(
        f"{SINGLE} / {STATEMENTS}, 1 caller, {Place.SPREAD}",
        alone.format(SINGLE),
        (alone.format(STATEMENTS),),
        PLAIN_TARGET,
    )
    for contestant in (SINGLE, BATCHER):
        for place in PLACES:
            for callers in CALLERS:
                load = named("", callers, place).removeprefix(", ")
                yield Ratio(
                    f"{contestant} / pgbench's best, {load}",
                    named(contestant, callers, place),
                    (named(STATEMENTS, callers, place), named(CALLED, callers, place)),
                    TARGETS.get((contestant, callers, place)),
                )


def _charts(accounts: int) -> Iterator[Bars]:
    for name, place, where in (
        ("spread", Place.SPREAD, f"spread over {accounts:,} accounts"),
        ("hot", Place.HOT, "all on two hot accounts"),
    ):
        groups = {
            f"{callers} {'caller' if callers == 1 else 'callers'}": {
                contestant: named(contestant, callers, place) for contestant in CONTESTANTS
            }
            for callers in CALLERS
        }
        yield Bars(name, f"Single transfers, {where}", groups)
