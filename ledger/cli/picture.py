"""Pictures of figures, drawn by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from ledger.core.errors import InvalidCommand

FORMATS: Final = (".svg", ".png")
_COLOURS: Final = ("#b3261e", "#1b6e3c", "#3b5b92", "#8a6d1d")


def check(path: Path) -> None:
    """
    Check, before anything is worked for, that a picture can be drawn there.

    Raises:
        InvalidCommand: The name has another ending, the folder is not there, or matplotlib is not.
    """
    if path.suffix not in FORMATS:
        raise InvalidCommand("--picture", f"{path} ends in neither {' nor '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise InvalidCommand("--picture", f"there is no folder {path.parent}")
    _figure()


def draw(path: Path, title: str, across: str, up: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw lines through points, by name, into a file."""
    figure = _figure()(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for colour, (name, points) in zip(_COLOURS, lines.items(), strict=False):
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, color=colour, linewidth=2)
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _figure() -> Any:
    try:
        return import_module("matplotlib.figure").Figure
    except ImportError:
        raise InvalidCommand("--picture", "it is drawn by matplotlib: pip install 'ledger[charts]'") from None
