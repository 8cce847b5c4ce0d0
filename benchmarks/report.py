"""What alternating rounds come to: medians, ratios within a round, the machine's noise; as JSON and as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from benchmarks.noise import Noise
from benchmarks.rounds import Benchmark, Measured, Ratio, Run


def results(runs: Sequence[Run], benchmark: Benchmark) -> dict[str, Any]:
    """
    Sum up all rounds.

    Raises:
        KeyError: A contestant that a ratio names was not measured.
    """
    by_name: dict[str, list[Measured]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run.measured)
    noise = zip(*(run.noise for run in runs), strict=True)
    return {
        "counted": benchmark.counted,
        "rounds": max(run.round for run in runs),
        "figures": {name: _figures(measured) for name, measured in by_name.items()},
        "ratios": [_related(ratio, by_name) for ratio in benchmark.ratios],
        "noise": {field: spread(values) for field, values in zip(Noise._fields, noise, strict=True)},
        "runs": [
            {"round": run.round, "name": run.name, **run.measured._asdict(), "noise": run.noise._asdict()}
            for run in runs
        ],
    }


def _figures(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    columns = zip(Measured._fields, zip(*measured, strict=True), strict=True)
    return {field: spread(values) for field, values in columns if None not in values}


def _related(ratio: Ratio, by_name: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    theirs = zip(*([_speed(each, ratio) for each in by_name[name]] for name in ratio.against), strict=True)
    ours = [_speed(each, ratio) for each in by_name[ratio.of]]
    found = spread([mine / max(of_round) for mine, of_round in zip(ours, theirs, strict=True)])
    met = None if ratio.target is None else found["median"] >= ratio.target
    return {**ratio._asdict(), **found, "met": met}


def _speed(measured: Measured, ratio: Ratio) -> float:
    """What is compared, so that more is better."""
    return measured.per_second if ratio.by == "per_second" else 1 / (measured.p99_ms or float("inf"))


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of some figures, the least and the most of them."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print what was summed up."""
    figures = Table(f"{found['counted']} a second", *_right("median", "min", "max", "p50 ms", "p99 ms", "peak MB"))
    for name, figure in found["figures"].items():
        others = [
            _median(figure, "p50_ms", ".2f"),
            _median(figure, "p99_ms", ".2f"),
            _median(figure, "megabytes", ".0f"),
        ]
        figures.add_row(name, *map(_rate, _columns(figure["per_second"])), *others)
    ratios = Table("ratio, round by round", *_right("median", "min", "max", "target"), "")
    for ratio in found["ratios"]:
        target = "" if ratio["target"] is None else f"≥ {ratio['target']:g}"
        said = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[ratio["met"]]
        ratios.add_row(ratio["name"], *_cells(ratio, ".2f"), target, said)
    noise = Table("the machine before each run", *_right("median", "min", "max"))
    for field, shape in zip(Noise._fields, (",.0f", ".2f", ".1%"), strict=True):
        noise.add_row(field.replace("_", " "), *_cells(found["noise"][field], shape))
    for table in (figures, ratios, noise):
        console.print(table)
    console.print("on " + ", ".join(f"{name} {value}" for name, value in found["conditions"].items()))


def keep(found: Mapping[str, Any], output: Path, console: Console) -> None:
    """Write results as JSON."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    console.print(f"kept in {output}")


def _right(*headings: str) -> list[Column]:
    return [Column(heading, justify="right") for heading in headings]


def _columns(figures: Mapping[str, float]) -> list[float]:
    return [figures[column] for column in ("median", "min", "max")]


def _rate(per_second: float) -> str:
    """What takes longer than a second has its digits behind the point."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.3g}"


def _cells(figures: Mapping[str, float], shape: str) -> list[str]:
    return [format(figure, shape) for figure in _columns(figures)]


def _median(figure: Mapping[str, Mapping[str, float]], field: str, shape: str) -> str:
    return format(figure[field]["median"], shape) if field in figure else ""
