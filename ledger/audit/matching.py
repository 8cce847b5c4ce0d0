"""
Which entries of ours are which of theirs.  Pure: the same entries and rules give the same matches.

Passes, each over what the one before has left: the same reference; the same amount within a number of days, where each
is the other's only nearest; one entry and several of the other side that come to it exactly, where there is one way
only.  Whatever there is more than one way for stays unmatched, and is listed with its candidates.  They are repeated
until nothing more is found, so that what was left is left again when the same is asked later.

Entries of one amount that are called the same are told apart by nothing.  Where there are as many on both sides, none
is left over whichever belong together: they are paired in order of their days.  Where there are not, the day tells.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import accumulate
from typing import Final, NamedTuple, TypeVar

from ledger.core.errors import InvalidCommand
from ledger.storage.reconciliations import OURS, Item

DAYS_MAX: Final = 31
SEVERAL_MAX: Final = 10
GROUP_MAX: Final = 200
"""Entries that one reference may bring together."""

CANDIDATES_MAX: Final = 40
"""Entries near one entry among which several are sought that come to it."""

STEPS_MAX: Final = 20_000
"""Steps of the search for one entry."""

ALL_STEPS_MAX: Final = 1_000_000
"""Steps of all searches of one pass together."""

ROUNDS_MAX: Final = 20
LISTED_MAX: Final = 10
"""Candidates that are listed with an entry."""

BY_REFERENCE: Final = "reference"
BY_AMOUNT: Final = "amount_and_date"
BY_SEVERAL: Final = "several"


class Rules(NamedTuple):
    """
    How many days may lie between an entry of ours and theirs, and how many may come to one; 0 or 1: none may.

    `names` are what of our transactions was taken for the names of our entries.
    """

    days: int = 3
    several: int = 5
    names: Sequence[str] = ("reference",)

    def checked(self) -> Rules:
        """
        These rules, if they are within the limits.

        Raises:
            InvalidCommand: They are not.
        """
        for name, value, most in (("days", self.days, DAYS_MAX), ("several", self.several, SEVERAL_MAX)):
            if type(value) is not int or not 0 <= value <= most:
                raise InvalidCommand(name, f"{value!r} is not a number from 0 to {most}")
        return self


class Match(NamedTuple):
    """Entries of ours and theirs that are the same money, and the rule that found it."""

    rule: str
    ours: tuple[Item, ...]
    theirs: tuple[Item, ...]


class Differing(NamedTuple):
    """Entries with the same reference and another amount."""

    reference: str
    ours: tuple[Item, ...]
    theirs: tuple[Item, ...]

    @property
    def difference(self) -> int:
        """What theirs come to beyond ours, in minor units and the account's normal direction."""
        return sum(item.amount for item in self.theirs) - sum(item.amount for item in self.ours)


class Ambiguous(NamedTuple):
    """An entry that there is more than one way to match, and some of those that it may belong to."""

    rule: str
    item: Item
    candidates: tuple[Item, ...]


@dataclass(slots=True)
class Matched:
    """What was found; `given_up` are entries for which the search for several would have taken too long."""

    matches: list[Match] = field(default_factory=list)
    differing: list[Differing] = field(default_factory=list)
    ambiguous: list[Ambiguous] = field(default_factory=list)
    given_up: list[Item] = field(default_factory=list)


Key = tuple[str, str, int]
Group = TypeVar("Group", bound=Hashable)
Way = tuple[Item, tuple[Item, ...]]
"""One entry, and several of the other side that come to it."""

ByDay = Mapping[int, list[Item]]
"""By the ordinals of days, which go on where the calendar ends."""


def key(item: Item) -> Key:
    """What an entry is known by."""
    return item.side, item.origin, item.number


def match(ours: Iterable[Item], theirs: Iterable[Item], rules: Rules) -> Matched:
    """Match what can be matched without a doubt."""
    left_ours, left_theirs = list(ours), list(theirs)
    matches: list[Match] = []
    for _ in range(ROUNDS_MAX):
        found = _Passes(left_ours, left_theirs, rules).run()
        matches += found.matches
        if not found.matches:
            break
        gone = {key(item) for each in found.matches for item in (*each.ours, *each.theirs)}
        left_ours = [item for item in left_ours if key(item) not in gone]
        left_theirs = [item for item in left_theirs if key(item) not in gone]
    found.matches = matches
    return found


class _Passes:
    """The passes, once, over entries that nothing has matched yet."""

    def __init__(self, ours: Sequence[Item], theirs: Sequence[Item], rules: Rules) -> None:
        self._ours = {key(item): item for item in sorted(ours, key=_order)}
        self._theirs = {key(item): item for item in sorted(theirs, key=_order)}
        self._rules = rules
        self._found = Matched()

    def run(self) -> Matched:
        self._by_reference()
        self._by_amount()
        if self._rules.several > 1:
            self._by_several()
        return self._found

    def _settle(self, rule: str, ours: Sequence[Item], theirs: Sequence[Item]) -> None:
        self._found.matches.append(Match(rule, tuple(sorted(ours, key=_order)), tuple(sorted(theirs, key=_order))))
        self._set_aside((*ours, *theirs))

    def _set_aside(self, items: Iterable[Item]) -> None:
        for item in items:
            self._ours.pop(key(item), None)
            self._theirs.pop(key(item), None)

    # The same reference

    def _by_reference(self) -> None:
        self._pair_alike(_names_and_amount)
        self._pair_alike(_names_amount_and_day)
        named_ours, named_theirs = self._grouped(_names)
        # What few entries are called says more than what many are.
        names = sorted(
            named_ours.keys() & named_theirs.keys(),
            key=lambda name: (len(named_ours[name]) + len(named_theirs[name]), name),
        )
        ways = [way for name in names if (way := _whole(named_ours[name], named_theirs[name]))]
        # Two names of the same entries are one way.
        self._settle_ways(BY_REFERENCE, dict.fromkeys(ways))
        self._list_alike()
        for name in names:
            ours, theirs = self._still(self._ours, named_ours[name]), self._still(self._theirs, named_theirs[name])
            if ours and theirs:
                self._found.differing.append(Differing(name, tuple(ours), tuple(theirs)))
                self._set_aside((*ours, *theirs))

    @staticmethod
    def _still(left: Mapping[Key, Item], items: Iterable[Item]) -> list[Item]:
        return [item for item in items if key(item) in left]

    def _grouped(self, groups: Callable[[Item], Iterable[Group]]) -> tuple[dict[Group, list[Item]], ...]:
        """What is left of ours and of theirs, in groups of which an entry is in any number."""
        return _grouped(self._ours.values(), groups), _grouped(self._theirs.values(), groups)

    def _pair_alike(self, groups: Callable[[Item], Iterable[Hashable]]) -> None:
        """Match entries that are in the same groups with the other side, in order, where they are as many as there."""
        in_ours, in_theirs = self._grouped(groups)
        shared = in_ours.keys() & in_theirs.keys()
        ours, theirs = self._grouped(lambda item: [frozenset(shared.intersection(groups(item)))])
        for which, mine in ours.items():
            other = theirs.get(which, [])
            if which and len(mine) == len(other):
                for one, two in zip(mine, other, strict=True):
                    self._settle(BY_REFERENCE, [one], [two])

    def _list_alike(self) -> None:
        """Set aside what is called the same and comes to the same as too many others, or too few."""
        named_ours, named_theirs = self._grouped(_names_and_amount)
        shared = named_ours.keys() & named_theirs.keys()
        for item in self._theirs.values():
            names = [name for name in _names_and_amount(item) if name in shared]
            candidates = {key(one): one for name in names for one in named_ours[name][:LISTED_MAX]}
            if candidates:
                self._found.ambiguous.append(Ambiguous(BY_REFERENCE, item, tuple(candidates.values())[:LISTED_MAX]))
        self._set_aside(item for name in shared for item in (*named_ours[name], *named_theirs[name]))

    # The same amount, and nearly the same day

    def _by_amount(self) -> None:
        ours, theirs = _by_amount_and_day(self._ours.values()), _by_amount_and_day(self._theirs.values())
        amounts = sorted(ours.keys() & theirs.keys())
        for _ in range(ROUNDS_MAX):
            amounts = [amount for amount in amounts if self._nearest_pairs(ours[amount], theirs[amount])]
            if not amounts:
                break
        for amount in sorted(ours.keys() & theirs.keys()):
            for item in [item for of_day in theirs[amount].values() for item in of_day]:
                near = [each for _, each in self._near(ours[amount], item.day, LISTED_MAX)]
                if near:
                    self._found.ambiguous.append(Ambiguous(BY_AMOUNT, item, tuple(near)))
                    self._set_aside((item, *near))

    def _nearest_pairs(self, ours: dict[int, list[Item]], theirs: dict[int, list[Item]]) -> bool:
        """Match entries of one amount of which each is the other's only nearest; whether there were any."""
        pairs = []
        for item in [items[0] for items in theirs.values() if len(items) == 1]:
            nearest = self._nearest(ours, item.day)
            if len(nearest) == 1 and self._nearest(theirs, nearest[0].day) == [item]:
                pairs.append((nearest[0], item))
        for mine, item in pairs:
            ours[mine.day.toordinal()].remove(mine)
            theirs[item.day.toordinal()].remove(item)
            self._settle(BY_AMOUNT, [mine], [item])
        return bool(pairs)

    def _nearest(self, by_day: ByDay, day: date) -> list[Item]:
        """The entries of the nearest day within the window, of both if two are as near; two are enough to know."""
        nearest: list[Item] = []
        distance = -1
        for away, item in self._near(by_day, day, 2):
            if distance in (-1, away):
                nearest.append(item)
                distance = away
        return nearest

    def _near(self, by_day: ByDay, day: date, most: int) -> list[tuple[int, Item]]:
        """Entries within the window with their distance in days, the nearest first, and at most so many."""
        near: list[tuple[int, Item]] = []
        middle = day.toordinal()
        for away in range(self._rules.days + 1):
            for when in (middle - away, middle + away)[: 2 if away else 1]:
                near += [(away, item) for item in by_day.get(when, ())[: most - len(near)]]
            if len(near) >= most:
                break
        return near

    # Several that come to one

    def _by_several(self) -> None:
        self._steps = ALL_STEPS_MAX
        ways: list[Way] = []
        ours, theirs = list(self._ours.values()), list(self._theirs.values())
        for ones, others in ((theirs, ours), (ours, theirs)):
            by_day = _grouped(others, lambda item: [item.day.toordinal()])
            for one in ones:
                ways += [(one, way) for way in self._ways(one, by_day)]
        self._settle_ways(BY_SEVERAL, ways)

    def _settle_ways(self, rule: str, ways: Collection[Way]) -> None:
        """Match an entry and those that come to it, where none of them is part of another way."""
        uses = Counter(key(item) for one, way in ways for item in (one, *way))
        for one, way in ways:
            if all(uses[key(item)] == 1 for item in (one, *way)):
                self._settle(rule, *(((one,), way) if one.side == OURS else (way, (one,))))
            else:
                self._found.ambiguous.append(Ambiguous(rule, one, way))
                self._set_aside((one, *way))

    def _ways(self, one: Item, by_day: ByDay) -> list[tuple[Item, ...]]:
        """The ways in which several entries near one come to it: none, one, or the first two of more."""
        near = [item for _, item in self._near(by_day, one.day, CANDIDATES_MAX + 1)]
        if len(near) < 2:  # noqa: PLR2004  (several are at least two)
            return []
        search = _Search(near, self._rules.several, min(STEPS_MAX, self._steps))
        ways = [] if len(near) > CANDIDATES_MAX else list(search.ways(one.amount))
        self._steps -= search.steps
        if len(near) > CANDIDATES_MAX or search.given_up:
            self._found.given_up.append(one)
            # What was found before it was given up need not be the only way.
            return []
        return ways


class _Search:
    """Sets of entries that come to an amount exactly, found in a bounded number of steps."""

    def __init__(self, items: Sequence[Item], most: int, steps_max: int) -> None:
        self._items = sorted(items, key=lambda item: (-item.amount, *_order(item)))
        self._most = most
        self._steps_max = steps_max
        self.steps = 0
        self.given_up = False
        # What the next entries can add at most, and the last ones take away: the largest come first.
        amounts = [item.amount for item in self._items]
        self._up = list(accumulate((max(amount, 0) for amount in amounts), initial=0))
        self._down = list(accumulate((min(amount, 0) for amount in amounts), initial=0))

    def ways(self, amount: int) -> list[tuple[Item, ...]]:
        """At most two."""
        found: list[tuple[Item, ...]] = []
        for way in self._from(0, self._most, amount, ()):
            found.append(way)
            if len(found) == 2:  # noqa: PLR2004  (the second shows that the first is not the only one)
                break
        return found

    def _from(self, start: int, most: int, rest: int, taken: tuple[Item, ...]) -> Iterator[tuple[Item, ...]]:
        if rest == 0 and len(taken) > 1:
            yield taken
        count = len(self._items)
        for place in range(start, count if most else start):
            self.steps += 1
            if self.steps > self._steps_max:
                self.given_up = True
                return
            highest = self._up[min(place + most, count)] - self._up[place]
            lowest = self._down[count] - self._down[max(count - most, place)]
            if not lowest <= rest <= highest:
                # From here on only less can be added, and less taken away.
                return
            item = self._items[place]
            yield from self._from(place + 1, most - 1, rest - item.amount, (*taken, item))
            if self.given_up:
                return


def _order(item: Item) -> tuple[date, str, int]:
    return item.day, item.origin, item.number


def _grouped(items: Iterable[Item], groups: Callable[[Item], Iterable[Group]]) -> dict[Group, list[Item]]:
    found: dict[Group, list[Item]] = defaultdict(list)
    for item in items:
        for each in groups(item):
            found[each].append(item)
    return found


def _names(item: Item) -> Iterable[str]:
    return dict.fromkeys(item.names)


def _names_and_amount(item: Item) -> Iterable[Hashable]:
    return [(name, item.amount) for name in _names(item)]


def _names_amount_and_day(item: Item) -> Iterable[Hashable]:
    return [(name, item.amount, item.day) for name in _names(item)]


def _whole(ours: Sequence[Item], theirs: Sequence[Item]) -> Way | None:
    """
    The one entry of a name and all of the other side, if they come to it.

    What several of both sides come to says nothing of which is which: they are reported as differing.
    """
    (one, *more), others = sorted((ours, theirs), key=len)
    whole = not more and 1 < len(others) < GROUP_MAX and sum(item.amount for item in others) == one.amount
    return (one, tuple(others)) if whole else None


def _by_amount_and_day(items: Iterable[Item]) -> dict[int, dict[int, list[Item]]]:
    found: dict[int, dict[int, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        found[item.amount][item.day.toordinal()].append(item)
    return found
