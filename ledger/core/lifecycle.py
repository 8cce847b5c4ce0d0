"""
State machines: which event may follow which.  Pure.

A declaration that cannot work is refused when it is built, with everything that is wrong with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, Self, TypeGuard

from ledger.core.errors import InvalidCommand, InvalidStateMachine, TransitionRefused

STATES_MAX: Final = 100
TRANSITIONS_MAX: Final = 1_000


_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class Transition:
    """An event that leads from any of its sources to its target; without a target the state stays as it is."""

    event: str
    sources: tuple[str, ...]
    target: str | None = None


def on(event: str, *sources: str, to: str | None = None) -> Transition:
    """
    Declare what an event does: `on("void", "created", "authorised", to="voided")`.

    Without `to` the state stays as it is.
    """
    return Transition(event, sources, to)


@dataclass(frozen=True, eq=False)
class StateMachine:
    """
    The states that something can be in, and the events that lead from one to the next.

    Names are 1 to 63 lower-case letters, digits and underscores, beginning with a letter.  Two machines are
    equal when they allow the same: neither the order of a declaration nor the grouping of its transitions counts.

    Raises:
        InvalidStateMachine: It cannot work; `problems` names everything that is wrong with it.
    """

    name: str
    initial: str
    states: tuple[str, ...]
    transitions: tuple[Transition, ...]
    final: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = (
            list(_mistyped(self)) or list(_oversized(self)) or [*_misnamed(self), *_unknown(self), *_misled(self)]
        )
        if problems:
            raise InvalidStateMachine(_legible(self.name), list(dict.fromkeys(problems)))

    @classmethod
    def from_mapping(cls, declaration: Mapping[str, Any]) -> Self:
        """Build a machine from what `as_mapping` gives: text and lists of text, as TOML and JSON have them."""
        name = _legible(declaration.get("name"))
        unread = list(_unread(declaration))
        misread = list(_misread(declaration))
        if misread:
            raise InvalidStateMachine(name, unread + misread)
        transitions = tuple(
            on(each["event"], *_listed(each["from"]), to=each.get("to")) for each in declaration["transitions"]
        )
        states, final = tuple(declaration["states"]), tuple(declaration.get("final", ()))
        try:
            machine = cls(name, declaration["initial"], states, transitions, final)
        except InvalidStateMachine as error:
            raise InvalidStateMachine(name, unread + error.problems) from None
        if unread:
            raise InvalidStateMachine(name, unread)
        return machine

    @cached_property
    def events(self) -> tuple[str, ...]:
        """The events that it knows, in the order in which they are first mentioned."""
        return tuple(dict.fromkeys(transition.event for transition in self.transitions))

    def advance(self, state: str, event: str, *, stream: str = "") -> str:
        """
        Tell the state that follows on `event`.

        `stream` says in a refusal what was refused; it decides nothing.

        Raises:
            TransitionRefused: The event may not follow; `allowed` names those that may.
            InvalidCommand: There is no such state.
        """
        targets = self._targets(state)
        if event not in targets:
            raise TransitionRefused(self.name, state, event, list(targets), stream)
        return targets[event]

    def allowed(self, state: str) -> tuple[str, ...]:
        """
        The events that may follow in a state, in the order in which they are declared.

        Raises:
            InvalidCommand: There is no such state.
        """
        return tuple(self._targets(state))

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of what it allows; for a stream to say by which declaration it was judged."""
        return hashlib.sha256(self._canonical).hexdigest()

    def as_mapping(self) -> dict[str, Any]:
        """The declaration as text and lists of text, for `from_mapping`, TOML or JSON."""
        return {
            "name": self.name,
            "initial": self.initial,
            "states": list(self.states),
            "final": list(self.final),
            "transitions": [
                {"event": each.event, "from": list(each.sources)} | ({} if each.target is None else {"to": each.target})
                for each in self.transitions
            ],
        }

    def diagram(self) -> str:
        """Draw it: a Mermaid `stateDiagram-v2`."""
        arrows: dict[tuple[str, str], list[str]] = {}
        for state, event, target in _moves(self):
            arrows.setdefault((state, target), []).append(event)
        lines = [f'state "{state}" as {_drawn(state)}' for state in self.states if _drawn(state) != state]
        lines.append(f"[*] --> {_drawn(self.initial)}")
        lines += [f"{_drawn(state)} --> {_drawn(to)}: {', '.join(events)}" for (state, to), events in arrows.items()]
        lines += [f"{_drawn(state)} --> [*]" for state in self.final]
        return "\n    ".join(["stateDiagram-v2", *lines]) + "\n"

    def __eq__(self, other: object) -> bool:
        return self._canonical == other._canonical if isinstance(other, StateMachine) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._canonical)

    @cached_property
    def _next(self) -> dict[str, dict[str, str]]:
        following: dict[str, dict[str, str]] = {state: {} for state in self.states}
        for state, event, target in _moves(self):
            following[state][event] = target
        return following

    @cached_property
    def _canonical(self) -> bytes:
        meaning = {
            "name": self.name,
            "initial": self.initial,
            "states": sorted(self.states),
            "final": sorted(self.final),
            "transitions": sorted(_moves(self)),
        }
        return json.dumps(meaning, sort_keys=True, separators=(",", ":")).encode()

    def _targets(self, state: str) -> dict[str, str]:
        if state not in self._next:
            raise InvalidCommand("state", f"{self.name} has no state {state!r}; it has {', '.join(self.states)}")
        return self._next[state]


def _moves(machine: StateMachine) -> Iterator[tuple[str, str, str]]:
    """Every single step: state, event, next state."""
    for event, sources, target in map(_parts, machine.transitions):
        for source in sources:
            yield source, event, source if target is None else target


def _mistyped(machine: StateMachine) -> Iterator[str]:
    """Types hold for those who check them; for all others these problems come first, and alone."""
    for field in ("name", "initial"):
        if not isinstance(getattr(machine, field), str):
            yield f"{field} is not text"
    for field in ("states", "final"):
        if not _is_tuple_of(str, getattr(machine, field)):
            yield f"{field} is not a tuple of text"
    if not _is_tuple_of(Transition, machine.transitions):
        yield "transitions is not a tuple of transitions"
        return
    for number, (event, sources, target) in enumerate(map(_parts, machine.transitions)):
        if not (isinstance(event, str) and _is_tuple_of(str, sources) and isinstance(target, str | None)):
            yield f"transitions[{number}] is not made of text"


def _oversized(machine: StateMachine) -> Iterator[str]:
    moves = sum(len(transition.sources) for transition in machine.transitions)
    if max(len(machine.states), len(machine.final)) > STATES_MAX:
        yield f"it has more than {STATES_MAX} states"
    if max(moves, len(machine.transitions)) > TRANSITIONS_MAX:
        yield f"it has more than {TRANSITIONS_MAX} transitions"


def _misnamed(machine: StateMachine) -> Iterator[str]:
    """Names that are none, or are given twice."""
    groups = {"machine": [machine.name], "state": machine.states, "event": machine.events}
    for what, names in groups.items():
        for name in dict.fromkeys(names):
            if not _NAME.fullmatch(name):
                yield f"{what} name {_shown(name)} is not 1 to 63 of a-z, 0-9 and _, beginning with a letter"
    for what, names in {"state": machine.states, "final state": machine.final}.items():
        for name in _repeated(names):
            yield f"{what} {_shown(name)} is named twice"


def _unknown(machine: StateMachine) -> Iterator[str]:
    """States that are mentioned and not declared."""
    known = set(machine.states)
    if not known:
        yield "it has no states"
    for what, names in {"initial": [machine.initial], "final": machine.final}.items():
        for name in dict.fromkeys(names):
            if name not in known:
                yield f"{what} state {_shown(name)} is unknown"
    for event, sources, target in map(_parts, machine.transitions):
        if not sources:
            yield f"event {_shown(event)} comes from no state"
        for name in dict.fromkeys([*sources, *([] if target is None else [target])]):
            if name not in known:
                side = "from" if name in sources else "to"
                yield f"event {_shown(event)} leads {side} unknown state {_shown(name)}"


def _misled(machine: StateMachine) -> Iterator[str]:
    """Ways that fork, that nobody takes, or that end where they should not or do not where they should."""
    targets: dict[tuple[str, str], list[str]] = {}
    for state, event, target in _moves(machine):
        targets.setdefault((state, event), []).append(target)
    for (state, event), ends in targets.items():
        if len(ends) > 1:
            ways = " and to ".join(_shown(end) for end in dict.fromkeys(ends))
            yield f"state {_shown(state)} has event {_shown(event)} more than once, to {ways}"
    leaving: dict[str, set[str]] = {state: set() for state in machine.states}
    for (state, _), ends in targets.items():
        leaving.setdefault(state, set()).update(ends)
    reached = _reached(machine.initial, leaving)
    for state in dict.fromkeys(machine.states):
        if state not in reached and machine.initial in machine.states:
            yield f"state {_shown(state)} cannot be reached from {_shown(machine.initial)}"
        if state in machine.final and leaving[state]:
            events = ", ".join(_shown(event) for source, event in targets if source == state)
            yield f"state {_shown(state)} is final and yet has events: {events}"
        if state not in machine.final and not leaving[state] - {state}:
            yield f"state {_shown(state)} is a dead end; mark it final or let an event lead out of it"


def _reached(initial: str, leaving: Mapping[str, set[str]]) -> set[str]:
    reached, ahead = set(), [initial]
    while ahead:
        state = ahead.pop()
        if state not in reached:
            reached.add(state)
            ahead += leaving.get(state, ())
    return reached


def _parts(transition: Transition) -> tuple[str, tuple[str, ...], str | None]:
    return transition.event, transition.sources, transition.target


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _is_tuple_of(type: type, value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, type) for each in value)


def _legible(name: object) -> str:
    """The name of a machine that may not deserve one, for an error."""
    return name[:63] if isinstance(name, str) else ""


def _shown(name: str) -> str:
    return repr(name[:64])


class _Kind(NamedTuple):
    """What a value of a declaration has to be."""

    named: str
    fits: Callable[[object], bool]
    optional: bool = False


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, list | tuple)


def _is_texts(value: object) -> bool:
    return _is_list(value) and all(map(_is_text, value))


def _is_text_or_texts(value: object) -> bool:
    return _is_text(value) or _is_texts(value)


def _is_tables(value: object) -> bool:
    return _is_list(value) and all(isinstance(each, Mapping) for each in value)


_MACHINE: Final = {
    "name": _Kind("text", _is_text),
    "initial": _Kind("text", _is_text),
    "states": _Kind("a list of text", _is_texts),
    "final": _Kind("a list of text", _is_texts, optional=True),
    "transitions": _Kind("a list of tables", _is_tables),
}
_TRANSITION: Final = {
    "event": _Kind("text", _is_text),
    "from": _Kind("text or a list of text", _is_text_or_texts),
    "to": _Kind("text", _is_text, optional=True),
}


def _tables(declaration: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, _Kind]]]:
    """The tables of a declaration that are where they should be: their place, themselves, and what they may hold."""
    yield "", declaration, _MACHINE
    transitions = declaration.get("transitions")
    if _is_list(transitions):
        for number, each in enumerate(transitions):
            if isinstance(each, Mapping):
                yield f"transitions[{number}].", each, _TRANSITION


def _unread(declaration: Mapping[str, Any]) -> Iterator[str]:
    """Keys that mean nothing here, and may be misspelt."""
    for place, table, kinds in _tables(declaration):
        for key in table:
            if key not in kinds:
                yield f"{place}{_shown(str(key))} is not a key; the keys are {', '.join(kinds)}"


def _misread(declaration: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are missing or hold something else."""
    for place, table, kinds in _tables(declaration):
        for key, kind in kinds.items():
            if key in table and not kind.fits(table[key]):
                yield f"{place}{key} is not {kind.named}"
            elif key not in table and not kind.optional:
                yield f"{place}{key} is missing"


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


_WORDS_OF_MERMAID: Final = frozenset(
    ("class", "classdef", "click", "default", "direction", "href", "note", "scale", "state", "style")
)


def _drawn(state: str) -> str:
    """The name of a state in a diagram, where some words mean something else."""
    return f"{state}_" if state in _WORDS_OF_MERMAID else state


ACCOUNT: Final = StateMachine(
    "account",
    "open",
    ("open", "frozen", "closed"),
    (
        on("post", "open"),
        on("hold", "open"),
        on("capture", "open"),
        on("release", "open", "frozen"),
        on("expire", "open", "frozen"),
        on("reverse", "open", "frozen"),
        on("change", "open", "frozen"),
        on("freeze", "open", to="frozen"),
        on("unfreeze", "frozen", to="open"),
        on("close", "open", to="closed"),
    ),
    ("closed",),
)
"""An account of the ledger.  While it is frozen nothing new begins, and what was begun can still be undone."""

HOLD: Final = StateMachine(
    "hold",
    "open",
    ("open", "captured", "released", "expired"),
    (
        on("capture", "open"),
        on("capture_rest", "open", to="captured"),
        on("release", "open"),
        on("release_rest", "open", to="released"),
        on("expire", "open", to="expired"),
        on("release_rest_after_capture", "open", to="captured"),
        on("expire_after_capture", "open", to="captured"),
    ),
    ("captured", "released", "expired"),
)
"""
A hold.  `capture` and `release` are of a part; those of the rest end it.

Where a part was captured, that is what became of the hold, whatever becomes of the rest.
"""
