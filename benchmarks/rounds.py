"""The one shape of a benchmark: named turns, taken one after the other, round after round, and their ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from rich.console import Console
from sqlalchemy import URL

from benchmarks.noise import Noise, listen
from benchmarks.server import settle


class Effort(NamedTuple):
    """How long to measure, and how much of it."""

    rounds: int
    seconds: float
    quick: bool = False
    """Small sizes and one short round: whether it runs, and not how fast."""

    largest: bool = False
    messages: int | None = None
    events: int | None = None
    bootstrap: str | None = None


class Measured(NamedTuple):
    """One figure: the rate, what one call took, and the most memory that whoever was measured took in a process."""

    per_second: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    megabytes: float | None = None


Turn: TypeAlias = Callable[[int], Measured]
"""Takes the number of the round."""


class Run(NamedTuple):
    """One figure of one round, and the machine right before it."""

    round: int
    name: str
    measured: Measured
    noise: Noise


class Ratio(NamedTuple):
    """What is said, of whom, against the best of whom, and what is aimed at."""

    name: str
    of: str
    against: Sequence[str]
    target: float | None = None
    by: Literal["per_second", "p99_ms"] = "per_second"
    """What is compared: the rate, or how long the slowest wait, where the peer's is divided by ours."""


class Bars(NamedTuple):
    """A chart of rates, and of latencies beside them: for each load a group with a bar for each contestant."""

    name: str
    title: str
    groups: Mapping[str, Mapping[str, str]]
    """Load → contestant → turn."""


class Curves(NamedTuple):
    """A chart of rates over a size: a line for each contestant."""

    name: str
    title: str
    across: str
    lines: Mapping[str, Mapping[int, str]]
    """Contestant → size → turn."""

    floors: Mapping[str, float] = {}
    """Contestant → the share of its rate at the smallest size that it must not fall below."""


class Ratios(NamedTuple):
    """A chart of all ratios, with their targets."""

    title: str
    name: str = "ratios"


Chart: TypeAlias = Bars | Curves | Ratios


@dataclass(frozen=True)
class Benchmark:
    """Who takes turns, how they relate, and how that is drawn."""

    counted: str
    """What is counted, in the plural."""

    turns: Mapping[str, Turn]
    ratios: Sequence[Ratio]
    charts: Sequence[Chart]

    def __post_init__(self) -> None:
        """
        Check that nobody is compared with somebody who is not measured in the same rounds.

        Raises:
            ValueError: A ratio names such a one, or is of nothing.
        """
        for ratio in self.ratios:
            missing = [name for name in (ratio.of, *ratio.against) if name not in self.turns]
            if missing or not ratio.against:
                raise ValueError(f"{ratio.name}: {missing[0] if missing else 'the peer'} takes no turn")


def measured(benchmark: Benchmark, url: URL, rounds: int, console: Console) -> list[Run]:
    """Let everybody take turns, each on a server that has come to rest."""
    runs = []
    for number in range(1, rounds + 1):
        for name, turn in benchmark.turns.items():
            if console.is_terminal:
                console.print(f"round {number} of {rounds}: {name}", style="dim")
            settle(url)
            noise = listen()
            runs.append(Run(number, name, turn(number), noise))
    return runs
