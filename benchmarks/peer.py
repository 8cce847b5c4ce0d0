"""
PyPI's eventsourcing on the same server: append, contention, batches, replay.

A full command on both sides: load, decide, save; and of the ledger all that it keeps beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from sqlalchemy import URL

from benchmarks import eventsourced, ours
from benchmarks.ours import ACCOUNTS, ACCOUNTS_QUICK, BATCH, Place
from benchmarks.processes import Tally, apart
from benchmarks.rounds import Benchmark, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import text

REPLAYED: Final = (10_000, 100_000)
REPLAYED_QUICK: Final = (1_000, 2_000)
ONE: Final = "one caller"
EIGHT: Final = "eight callers"
HOT: Final = "eight callers on one account"
BATCHES: Final = f"batches of {BATCH:,}"
LEDGER: Final = "ledger"
BATCHER: Final = "ledger, batcher"
PEER: Final = "eventsourcing"


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Open the accounts of both sides, and grow those that are replayed."""
    accounts = ACCOUNTS_QUICK if effort.quick else ACCOUNTS
    sizes = REPLAYED_QUICK if effort.quick else REPLAYED
    where, seconds = text(url), effort.seconds
    ours.opened(where, accounts)
    eventsourced.opened(where, accounts)
    turns: dict[str, Turn] = {}
    for load, place, callers in ((ONE, Place.SPREAD, 1), (EIGHT, Place.SPREAD, 8), (HOT, Place.ONE, 8)):
        arguments = (where, place, accounts, callers, seconds)
        turns[named(PEER, load)] = partial(_turn, eventsourced.calls, arguments, 2)
        turns[named(LEDGER, load)] = partial(_turn, ours.calls, arguments, 2)
        if callers > 1:
            turns[named(BATCHER, load)] = partial(_turn, ours.batched_calls, arguments, 2)
    turns[named(PEER, BATCHES)] = partial(_turn, eventsourced.batches, (where, accounts, seconds), 1)
    turns[named(LEDGER, BATCHES)] = partial(_turn, ours.batches, (where, 0, accounts, BATCH, seconds), 2)
    for size in sizes:
        name = f"replayed-{size}"
        ours.grown(where, name, size)
        eventsourced.grown(where, size)
        turns[named(PEER, _replay(size))] = partial(_turn, eventsourced.replays, (where, size, seconds), 1)
        turns[named(LEDGER, _replay(size))] = partial(_turn, ours.rebuilds, (where, name, size, seconds), 1)
    yield Benchmark("events", turns, list(_ratios(sizes)), [Ratios("The ledger beside eventsourcing, one server")])
    ours.checked(where)


def named(contestant: str, load: str) -> str:
    """A turn's name."""
    return f"{contestant}, {load}"


def _replay(size: int) -> str:
    return f"replay of {size:,} events"


def _turn(work: Callable[..., Tally], arguments: tuple[Any, ...], events: int, _: int) -> Measured:
    """Measure it; `events` is how many each of what it counts is."""
    measured = apart(work, arguments)
    return measured._replace(per_second=measured.per_second * events)


def _ratios(sizes: tuple[int, ...]) -> Iterator[Ratio]:
    goals = [
        (LEDGER, ONE, 3.0),
        (LEDGER, EIGHT, None),
        (BATCHER, EIGHT, 10.0),
        (LEDGER, HOT, None),
        (BATCHER, HOT, 50.0),
        (LEDGER, BATCHES, 2.0),
        *((LEDGER, _replay(size), 50.0 if size == sizes[-1] else None) for size in sizes),
    ]
    for contestant, load, target in goals:
        yield Ratio(f"{contestant} / {PEER}, {load}", named(contestant, load), (named(PEER, load),), target)
