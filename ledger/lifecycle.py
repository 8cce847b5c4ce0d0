"""
State machines: which event may follow which.

A machine is declared in code, as a mapping, or in a TOML or JSON file:

    name = "parcel"
    initial = "packed"
    states = ["packed", "sent", "received"]
    final = ["received"]
    transitions = [
        { event = "label", from = "packed" },
        { event = "send", from = "packed", to = "sent" },
        { event = "receive", from = "sent", to = "received" },
    ]

A transition without `to` leaves the state as it is; `from` is one state or a list of them.  Nothing follows a
final state.  A declaration that cannot work is refused when it is built, with everything that is wrong with it.

`StateMachine` itself is pure; this module reads declarations from files.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from ledger.core.errors import InvalidCommand, InvalidStateMachine
from ledger.core.lifecycle import StateMachine, Transition, on

__all__ = ["SHIPPED", "StateMachine", "Transition", "load", "on", "shipped", "shipped_machines"]

FILE_BYTES_MAX: Final = 256 * 1024

SHIPPED: Final = ("cart", "inventory", "order", "payment", "trip", "user")
"""The names of the machines that come with the ledger."""

_FOLDER: Final = Path(__file__).with_name("lifecycles")


def load(path: Path | str) -> StateMachine:
    """
    Read a machine from a file: `.toml` or `.json`.

    Raises:
        OSError: The file cannot be read.
        InvalidStateMachine: It says something else; `where` is the path.
    """
    try:
        return StateMachine.from_mapping(_parsed(Path(path)))
    except InvalidStateMachine as error:
        raise InvalidStateMachine(error.machine, error.problems, str(path)) from error.__cause__


@cache
def shipped(name: str) -> StateMachine:
    """
    Give one of the machines that come with the ledger, by its name in SHIPPED.

    Raises:
        InvalidCommand: None of that name is shipped.
    """
    if name not in SHIPPED:
        raise InvalidCommand("name", f"no state machine {name!r} is shipped; there are {', '.join(SHIPPED)}")
    return load(_FOLDER / f"{name}.toml")


@cache
def shipped_machines() -> Mapping[str, StateMachine]:
    """All of them, by name."""
    return {name: shipped(name) for name in SHIPPED}


def _parsed(path: Path) -> dict[str, Any]:
    """What a file says, whatever it is."""
    with path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise InvalidStateMachine("", [f"the file has more than {FILE_BYTES_MAX} bytes"])
    parse = _PARSERS.get(path.suffix)
    if parse is None:
        raise InvalidStateMachine("", [f"the file's name does not end in {' or '.join(_PARSERS)}"])
    try:
        declaration = parse(content.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidStateMachine("", [f"the file is not {path.suffix[1:].upper()}: {error}"]) from error
    if not isinstance(declaration, dict):
        raise InvalidStateMachine("", ["the file does not hold a table"])
    return declaration


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        # JSON would let the last one win, and drop half a declaration without a word; TOML refuses.
        keys = [key for key, _ in pairs]
        twice = sorted({repr(key) for key in keys if keys.count(key) > 1})
        raise ValueError(f"{', '.join(twice)} is given twice")
    return table


_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    ".toml": tomllib.loads,
    ".json": lambda text: json.loads(text, object_pairs_hook=_without_repetition),
}
