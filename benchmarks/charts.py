"""Pictures of what was measured, each with the limit or the peer in it, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.rounds import Bars, Chart, Curves, Ratios

_THEIRS: Final = ("#9aa0a6", "#5f6368")
_OURS: Final = ("#7baaf7", "#1a56c4", "#1b6e3c", "#b06000")
_PEERS: Final = ("pgbench", "COPY", "eventsourcing")
_MET: Final = {True: "#1b6e3c", False: "#b3261e", None: "#5b7db1"}


def draw(chart: Chart, found: Mapping[str, Any], path: Path) -> None:
    """Draw a chart of results into a file."""
    if isinstance(chart, Bars):
        figure = _bars(chart, found)
    elif isinstance(chart, Curves):
        figure = _curves(chart, found)
    else:
        figure = _ratios(chart, found)
    noise = found["noise"]["others_cores"]["median"]
    note = f"{found['rounds']} alternating rounds, medians; whiskers: least and most; others kept {noise:.1f}"
    note += f" of {found['conditions']['cores']} cores busy" + (", quick: says nothing of speed" * found["quick"])
    figure.supxlabel(note, fontsize=8, color="#5f6368")
    figure.savefig(path, dpi=110)


def _bars(chart: Bars, found: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(chart.title, fontsize=13)
    rates, waits = figure.subplots(1, 2)
    contestants = list(next(iter(chart.groups.values())))
    width = 0.8 / len(contestants)
    for place, (contestant, colour) in enumerate(zip(contestants, _colours(contestants), strict=True)):
        across = [group + (place - (len(contestants) - 1) / 2) * width for group in range(len(chart.groups))]
        figures = [found["figures"][turns[contestant]] for turns in chart.groups.values()]
        middle, errors = _spread([each["per_second"] for each in figures])
        rates.bar(
            across, middle, width * 0.92, color=colour, label=contestant, yerr=errors, ecolor="#202124", capsize=2
        )
        for x, rate, above in zip(across, middle, errors[1], strict=True):
            tip = (x, rate + above)
            rates.annotate(f"{rate:,.0f}", tip, (0, 4), textcoords="offset points", ha="center", fontsize=7)
        half = [each["p50_ms"]["median"] for each in figures]
        most = [each["p99_ms"]["median"] for each in figures]
        waits.vlines(across, half, most, color=colour, linewidth=3, label=contestant)
        waits.scatter(across, half, color=colour, marker="o", s=28, zorder=3)
        waits.scatter(across, most, color=colour, marker="_", s=90, linewidth=2, zorder=3)
    rates.set(ylabel=f"{found['counted']} a second", title="rate")
    waits.set(ylabel="milliseconds", title="latency of one call: p50 (dot) to p99 (bar)", yscale="log")
    _logarithmic(waits.yaxis)
    for axes in (rates, waits):
        axes.set_xticks(range(len(chart.groups)), list(chart.groups))
        _tidy(axes)
    rates.yaxis.set_major_formatter(FuncFormatter(_plain))
    rates.legend(frameon=False, loc="upper left")
    rates.margins(y=0.25)
    return figure


def _curves(chart: Curves, found: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    at = {turn: figure["per_second"]["median"] for turn, figure in found["figures"].items()}
    for (line, turns), colour in zip(chart.lines.items(), _colours(list(chart.lines)), strict=True):
        sizes = list(turns)
        middle, errors = _spread([found["figures"][turn]["per_second"] for turn in turns.values()])
        style = "--" if line.startswith(_PEERS) else "-"
        axes.errorbar(sizes, middle, errors, color=colour, label=line, linestyle=style, marker="o", capsize=3)
        for size, rate in zip(sizes, middle, strict=True):
            # Left and right in turns, so that the figures of lines that are close keep apart.
            rank = sorted(at[others[size]] for others in chart.lines.values()).index(rate)
            beside, side = ((7, 0), "left") if rank % 2 else ((-7, 0), "right")
            note = axes.annotate(f"{rate:,.0f}", (size, rate), beside, textcoords="offset points", ha=side, va="center")
            note.set(fontsize=8, bbox={"color": "white", "alpha": 0.75, "pad": 0.5})
        if line in chart.floors:
            floor = chart.floors[line]
            label = f"target: {floor:g} of {line} at {sizes[0]:,}"
            axes.hlines(floor * middle[0], sizes[0], sizes[-1], color="#b3261e", linestyle=":", label=label)
    axes.set(title=chart.title, xlabel=chart.across, ylabel=f"{found['counted']} a second", xscale="log", yscale="log")
    axes.margins(x=0.08, y=0.12)
    every = sorted({size for turns in chart.lines.values() for size in turns})
    axes.set_xticks(every, [f"{size:,}" for size in every])
    axes.xaxis.set_minor_formatter(NullFormatter())
    _logarithmic(axes.yaxis)
    _tidy(axes)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _ratios(chart: Ratios, found: Mapping[str, Any]) -> Figure:
    ratios = found["ratios"]
    figure = Figure(figsize=(11, 1.6 + 0.42 * len(ratios)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(ratios))
    middle, errors = _spread(ratios)
    axes.axvline(1, color="#202124", linewidth=1)
    # From 1 on: to its right is faster, to its left slower.
    colours = [_MET[ratio["met"]] for ratio in ratios]
    axes.barh(rows, [value - 1 for value in middle], 0.6, left=1, color=colours)
    axes.errorbar(middle, rows, xerr=errors, fmt="none", ecolor="#202124", capsize=2)
    for row, ratio in enumerate(ratios):
        if ratio["target"] is not None:
            axes.plot([ratio["target"]] * 2, [row - 0.42, row + 0.42], color="#e37400", linewidth=3)
    furthest = [max(1, ratio["max"], ratio["target"] or 0) for ratio in ratios]
    for row, ratio in enumerate(ratios):
        aimed = "" if ratio["target"] is None else f"  (target ≥ {ratio['target']:g})"
        said = f"{ratio['median']:.2f}{aimed}"
        axes.annotate(said, (furthest[row], row), (7, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(title=chart.title, xscale="log", xlabel="ratio of rates, 1 is as fast; orange: the target")
    axes.set_xlim(right=max(furthest) * max(2.0, (max(furthest) / min(each["min"] for each in ratios)) ** 0.35))
    axes.set_yticks(rows, [ratio["name"] for ratio in ratios])
    axes.invert_yaxis()
    _logarithmic(axes.xaxis)
    _tidy(axes, "x")
    return figure


def _colours(contestants: Sequence[str]) -> list[str]:
    """Grey for whom we are compared with, colours for ourselves."""
    theirs, ours = iter(_THEIRS), iter(_OURS)
    return [next(theirs if name.startswith(_PEERS) else ours) for name in contestants]


def _spread(figures: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far the least and the most are from them."""
    middle = [each["median"] for each in figures]
    below = [each["median"] - each["min"] for each in figures]
    return middle, [below, [each["max"] - each["median"] for each in figures]]


def _tidy(axes: Axes, along: Any = "y") -> None:
    axes.grid(visible=True, axis=along, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _logarithmic(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"
