"""
Batches of transfers, from one process and from two, beside their limit: COPY of the same rows into the same tables.

Counted is the whole way: commands are made and decided, rows hashed, written, guarded and committed.  COPY finds its
rows ready-made; it has the indexes and the guards to serve, and the balances to update in one prepared statement.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from benchmarks import copying, ours
from benchmarks.ours import ACCOUNTS, ACCOUNTS_QUICK, account
from benchmarks.processes import apart
from benchmarks.rounds import Benchmark, Curves, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import cloned, text
from ledger import Ledger

SIZES: Final = {10: 2_000, 100: 5_000, 1_000: 10_000, 10_000: 10_000}
"""Size of a batch → how many transfers are ready-made for each second: making them takes longer than copying them."""

SIZES_QUICK: Final = (10, 1_000)
PROCESSES: Final = (1, 2)
LEDGER: Final = "ledger"
COPY: Final = "COPY"
TARGETS: Final = {1_000: 0.5}


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Three databases with the same accounts: ours, the one that rows are made in, and the one they are copied to."""
    accounts = ACCOUNTS_QUICK if effort.quick else ACCOUNTS
    sizes = SIZES_QUICK if effort.quick else tuple(SIZES)
    ours.opened(text(url), accounts)
    with ExitStack() as stack:
        made, copied = stack.enter_context(cloned(url, "made")), stack.enter_context(cloned(url, "copied"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ledger-bench-")))
        turns: dict[str, Turn] = {}
        for size in sizes:
            for processes in PROCESSES:
                share = accounts // processes
                firsts = [number * share for number in range(processes)]
                count = max(3, round(SIZES[size] * effort.seconds / size / processes))
                turns[named(LEDGER, size, processes)] = partial(
                    _handled, text(url), firsts, share, size, effort.seconds
                )
                turns[named(COPY, size, processes)] = partial(
                    _copied, text(made), text(copied), firsts, share, size, count, folder
                )
        yield Benchmark("transfers", turns, list(_ratios(sizes)), [_curves(sizes), Ratios("Batches beside COPY")])
        for each in (url, copied):
            ours.checked(text(each))
        with Ledger.connect(text(copied)) as ledger:
            assert ledger.verify(account(0), account(1)).ok


def named(contestant: str, size: int, processes: int) -> str:
    """A turn's name."""
    return f"{contestant}, batches of {size:,}, {processes} {'process' if processes == 1 else 'processes'}"


def _handled(url: str, firsts: list[int], accounts: int, size: int, seconds: float, _: int) -> Measured:
    return apart(ours.batches, *((url, first, accounts, size, seconds) for first in firsts))


def _copied(
    made: str, copied: str, firsts: list[int], accounts: int, size: int, count: int, folder: Path, _: int
) -> Measured:
    files = [folder / f"rows-{first}" for first in firsts]
    apart(
        copying.made,
        *((made, first, accounts, size, count, file) for first, file in zip(firsts, files, strict=True)),
    )
    return apart(copying.copied, *((copied, size, file) for file in files))


def _ratios(sizes: tuple[int, ...]) -> Iterator[Ratio]:
    for processes in PROCESSES:
        for size in sizes:
            target = TARGETS.get(size) if processes == 1 else None
            ledger, copy = named(LEDGER, size, processes), named(COPY, size, processes)
            yield Ratio(f"{ledger} / {COPY}", ledger, (copy,), target)
    for size in sizes:
        name = f"{LEDGER}, batches of {size:,}, 2 processes / 1 process"
        yield Ratio(name, named(LEDGER, size, 2), (named(LEDGER, size, 1),))


def _curves(sizes: tuple[int, ...]) -> Curves:
    lines = {
        f"{contestant}, {processes} {'process' if processes == 1 else 'processes'}": {
            size: named(contestant, size, processes) for size in sizes
        }
        for contestant in (COPY, LEDGER)
        for processes in PROCESSES
    }
    return Curves("sizes", "Transfers in batches, and COPY of the same rows", "transfers in a batch", lines)
