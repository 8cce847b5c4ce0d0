"""What alternating rounds come to: medians, ratios within a round, the machine's noise; as JSON and as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Column, Table

from benchmarks.noise import Noise


class Run(NamedTuple):
    """One figure of one round, and the machine right before it."""

    round: int
    name: str
    per_second: float
    noise: Noise


class Ratio(NamedTuple):
    """What is said, of whom, against the best of whom, and what is aimed at."""

    name: str
    of: str
    against: Sequence[str]
    target: float | None


def results(runs: Sequence[Run], ratios: Sequence[Ratio], unit: str) -> dict[str, Any]:
    """Sum up all rounds; `unit` is what was counted."""
    rates: dict[str, list[float]] = {}
    for run in runs:
        rates.setdefault(run.name, []).append(run.per_second)
    related = []
    for name, left, right, target in ratios:
        best = [max(of_round) for of_round in zip(*(rates[contestant] for contestant in right), strict=True)]
        by_round = [ours / theirs for ours, theirs in zip(rates[left], best, strict=True)]
        related.append({"name": name, **spread(by_round), "target": target})
    noise = zip(*(run.noise for run in runs), strict=True)
    return {
        "rounds": max(run.round for run in runs),
        f"{unit}_per_second": {name: spread(values) for name, values in rates.items()},
        "ratios": related,
        "noise": {field: spread(values) for field, values in zip(Noise._fields, noise, strict=True)},
        "runs": [
            {
                "round": run.round,
                "name": run.name,
                f"{unit}_per_second": run.per_second,
                "noise": run.noise._asdict(),
            }
            for run in runs
        ],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of some figures, the least and the most of them."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def show(found: Mapping[str, Any], unit: str, console: Console) -> None:
    """Print what was summed up."""
    rates = Table(f"{unit} a second", *_right("median", "min", "max"))
    for name, rate in found[f"{unit}_per_second"].items():
        rates.add_row(name, *_cells(rate, ",.0f"))
    ratios = Table("ratio, round by round", *_right("median", "min", "max", "target"))
    for ratio in found["ratios"]:
        target = "" if ratio["target"] is None else f"≥ {ratio['target']:g}"
        ratios.add_row(ratio["name"], *_cells(ratio, ".2f"), target)
    noise = Table("the machine before each run", *_right("median", "min", "max"))
    for field, shape in zip(Noise._fields, (",.0f", ".2f", ".1%"), strict=True):
        noise.add_row(field.replace("_", " "), *_cells(found["noise"][field], shape))
    for table in (rates, ratios, noise):
        console.print(table)
    console.print("on " + ", ".join(f"{name} {value}" for name, value in found["conditions"].items()))


def keep(found: Mapping[str, Any], output: Path | None, console: Console) -> None:
    """Write results as JSON, where they are asked for or among the others."""
    output = output or Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"  # noqa: TID251
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    console.print(f"kept in {output}")


def _right(*headings: str) -> list[Column]:
    return [Column(heading, justify="right") for heading in headings]


def _cells(figures: Mapping[str, float], shape: str) -> list[str]:
    return [format(figures[column], shape) for column in ("median", "min", "max")]
