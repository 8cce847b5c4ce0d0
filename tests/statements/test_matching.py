"""The matching rules: what is the same without a doubt, nothing twice, and in bounded time whatever the entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.audit import matching
from ledger.audit.matching import Matched, Rules, key, match
from ledger.storage.reconciliations import OURS, THEIRS, Item

FIRST = date(2024, 3, 1)


def item(side: str, number: int, amount: int, day: int = 0, *names: str) -> Item:
    """An entry so many days after the first."""
    return Item(side, "a" if side == OURS else "S", number, FIRST + timedelta(days=day), amount, names)


def ours(*rows: tuple[object, ...]) -> list[Item]:
    """Entries of ours: amount, day and names of each."""
    return [item(OURS, number, *row) for number, row in enumerate(rows, 1)]  # type: ignore[arg-type]


def theirs(*rows: tuple[object, ...]) -> list[Item]:
    """Entries of theirs."""
    return [item(THEIRS, number, *row) for number, row in enumerate(rows, 1)]  # type: ignore[arg-type]


def found(matched: Matched) -> list[tuple[str, list[int], list[int]]]:
    """Rule, our numbers and theirs of each match."""
    return sorted(
        (each.rule, [one.number for one in each.ours], [one.number for one in each.theirs]) for each in matched.matches
    )


CASES = {
    "reference, however far": (ours((5, 0, "r")), theirs((5, 90, "x", "r")), [("reference", [1], [1])]),
    "one reference, several amounts": (
        ours((5, 0, "r"), (7, 0, "r")),
        theirs((7, 0, "r"), (5, 0, "r")),
        [("reference", [1], [2]), ("reference", [2], [1])],
    ),
    "booked twice": (ours((5, 0, "r")), theirs((5, 1, "r"), (5, 2, "r")), []),
    "booked twice, once on the same day": (
        ours((5, 2, "r")), theirs((5, 1, "r"), (5, 2, "r")), [("reference", [1], [2])],
    ),
    "a rent that is missing": (ours((5, 0, "r"), (5, 19, "r")), theirs((5, 19, "r")), [("reference", [2], [1])]),
    "a rent that is late": (ours((5, 0, "r"), (5, 19, "r")), theirs((5, 20, "r")), []),
    "as many rents": (
        ours((5, 20, "r"), (5, 0, "r")),
        theirs((5, 20, "r"), (5, 40, "r")),
        [("reference", [2], [1]), ("reference", [1], [2])],
    ),
    "several rents of one day": (
        ours((5, 0, "r"), (5, 9, "r"), (5, 9, "r")),
        theirs((5, 9, "r"), (5, 9, "r")),
        [("reference", [2], [1]), ("reference", [3], [2])],
    ),
    "two references of two": (ours((5, 0, "a"), (5, 0, "b")), theirs((5, 0, "a", "b")), []),
    "two references of two days": (
        ours((5, 0, "a"), (5, 1, "b")), theirs((5, 1, "a", "b")), [("reference", [2], [1])],
    ),
    "two references of two of theirs": (ours((5, 0, "a", "b")), theirs((5, 1, "a"), (5, 1, "b")), []),
    "one reference of one, another of two": (ours((5, 0, "a"), (5, 0, "b"), (5, 0, "b")), theirs((5, 1, "a", "b")), []),
    "both references rather than one": (
        ours((5, 0, "a", "all"), (5, 0, "b", "all")),
        theirs((5, 9, "all", "b"), (5, 9, "all", "a")),
        [("reference", [2], [1]), ("reference", [1], [2])],
    ),
    "both references, and the other is missing": (
        ours((5, 0, "a", "all"), (5, 0, "b", "all")), theirs((5, 9, "all", "b")), [("reference", [2], [1])],
    ),
    "two references of other amounts": (
        ours((5, 0, "a"), (7, 0, "b")), theirs((5, 9, "a", "b")), [("reference", [1], [1])],
    ),
    "booked, returned and booked again": (
        ours((5, 0, "r")), theirs((5, 1, "r"), (-5, 2, "r"), (5, 3, "r")), [("reference", [1], [1, 2, 3])],
    ),
    "two references that are each a whole": (
        ours((12, 0, "a", "b")), theirs((5, 0, "a"), (7, 0, "a"), (4, 0, "b"), (8, 0, "b")), [],
    ),
    "two references of one whole": (
        ours((12, 0, "a", "b")), theirs((5, 0, "a", "b"), (7, 0, "b", "a")), [("reference", [1], [1, 2])],
    ),
    "one reference for a whole": (
        ours((5, 0, "r")),
        theirs((2, 0, "r"), (3, 0, "r")),
        [("reference", [1], [1, 2])],
    ),
    "amount and date": (ours((5, 0)), theirs((5, 3)), [("amount_and_date", [1], [1])]),
    "too late": (ours((5, 0)), theirs((5, 4)), []),
    "the other side": (ours((5, 0)), theirs((-5, 0)), []),
    "the nearest": (
        ours((5, 0), (5, 5)),
        theirs((5, 1), (5, 5)),
        [("amount_and_date", [1], [1]), ("amount_and_date", [2], [2])],
    ),
    "what is left when the nearest is taken": (
        ours((5, 1), (5, 3)),
        theirs((5, 1), (5, 2)),
        [("amount_and_date", [1], [1]), ("amount_and_date", [2], [2])],
    ),
    "the nearer of two": (ours((5, 0)), theirs((5, 1), (5, 3)), [("amount_and_date", [1], [1])]),
    "two of theirs as near": (ours((5, 1)), theirs((5, 0), (5, 2)), []),
    "two as near": (ours((5, 0), (5, 2)), theirs((5, 1)), []),
    "two alike on both sides": (ours((5, 0), (5, 0)), theirs((5, 0), (5, 0)), []),
    "several of ours": (ours((5, 0), (7, 1), (100, 0)), theirs((12, 2)), [("several", [1, 2], [1])]),
    "several of theirs": (ours((12, 0)), theirs((5, 0), (7, 1), (90, 1)), [("several", [1], [1, 2])]),
    "less a fee": (ours((100, 0), (-3, 0)), theirs((97, 1)), [("several", [1, 2], [1])]),
    "more than one way": (ours((5, 0), (7, 0), (4, 0), (8, 0)), theirs((12, 0)), []),
    "more than may come to one": (ours(*((n, 0) for n in (1, 2, 4, 8, 16, 32))), theirs((63, 0)), []),
    "one for two": (ours((10, 0)), theirs((4, 0), (6, 0), (10, 9)), [("several", [1], [1, 2])]),
    "an entry that two would need": (ours((5, 0), (7, 0), (9, 0)), theirs((12, 0), (14, 0)), []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_cases(case: str) -> None:
    """What each rule matches, and what it leaves alone."""
    mine, other, expected = CASES[case]

    assert found(match(mine, other, Rules())) == sorted(expected)


def test_amounts_that_differ_are_set_aside() -> None:
    """Entries with one name and two amounts are reported together, and match nothing else."""
    matched = match(ours((5, 0, "r"), (6, 0)), theirs((6, 0, "r")), Rules())

    assert found(matched) == []
    assert [(each.reference, each.difference) for each in matched.differing] == [("r", 1)]


def test_several_of_both_sides_are_not_the_same() -> None:
    """One name, other amounts and one sum: each differs from what it would be matched with."""
    matched = match(ours((100, 0, "r"), (200, 0, "r")), theirs((150, 0, "r"), (150, 1, "r")), Rules())

    assert found(matched) == []
    assert [(each.reference, len(each.ours), len(each.theirs)) for each in matched.differing] == [("r", 2, 2)]


def test_ambiguous_entries_are_listed() -> None:
    """With the entries that they may belong to."""
    matched = match(ours((5, 0), (5, 2)), theirs((5, 1)), Rules())
    assert [(each.rule, key(each.item), len(each.candidates)) for each in matched.ambiguous] == [
        ("amount_and_date", (THEIRS, "S", 1), 2)
    ]
    matched = match(ours((5, 0), (7, 0), (9, 0)), theirs((12, 0), (14, 0)), Rules())
    assert [each.rule for each in matched.ambiguous] == ["several", "several"]


@pytest.mark.parametrize(
    ("case", "listed"),
    [
        ("booked twice", [(1, [1]), (2, [1])]),
        ("a rent that is late", [(1, [1, 2])]),
        ("two references of two", [(1, [1, 2])]),
        ("two references of two of theirs", [(1, [1]), (2, [1])]),
        ("one reference of one, another of two", [(1, [1, 2, 3])]),
    ],
)
def test_references_that_too_many_have_are_listed(case: str, listed: list[tuple[int, list[int]]]) -> None:
    """Each of theirs with those of ours that it may be; neither amount nor day decides about them afterwards."""
    mine, other, _ = CASES[case]

    matched = match(mine, other, Rules(31))

    assert {(each.rule, each.item.side) for each in matched.ambiguous} == {("reference", THEIRS)}
    assert [(each.item.number, [one.number for one in each.candidates]) for each in matched.ambiguous] == listed
    assert (matched.matches, matched.differing) == ([], [])


def test_a_reference_of_two_wholes_is_listed() -> None:
    """One entry that the entries of either of its names come to is listed with both."""
    mine, other, _ = CASES["two references that are each a whole"]

    matched = match(mine, other, Rules())

    assert [(each.rule, each.item.side, [one.number for one in each.candidates]) for each in matched.ambiguous] == [
        ("reference", OURS, [1, 2]),
        ("reference", OURS, [3, 4]),
    ]


@pytest.mark.parametrize("end", [date.min, date.max])
def test_the_calendar_may_end_within_the_window(end: date) -> None:
    """Entries near the first or the last day that there is are matched as others are."""
    mine = [Item(OURS, "a", number, end, amount) for number, amount in enumerate((5, 7, 9), 1)]
    other = [Item(THEIRS, "S", number, end, amount) for number, amount in enumerate((5, 16), 1)]

    assert found(match(mine, other, Rules(31))) == [("amount_and_date", [1], [1]), ("several", [2, 3], [2])]


AMOUNTS = st.integers(-8, 8).filter(bool)
CALLED = st.lists(st.sampled_from("abc"), max_size=2)
ROWS = st.lists(st.tuples(AMOUNTS, st.integers(0, 9), CALLED), max_size=14)


def named(rows: Sequence[tuple[int, int, list[str]]]) -> list[tuple[object, ...]]:
    """Rows with their names, where they have any."""
    return [(amount, day, *names) for amount, day, names in rows]


@given(ROWS, ROWS, st.integers(0, 5), st.integers(0, 4), st.randoms())
def test_whatever_the_entries_are(
    mine: list[tuple[int, int, list[str]]],
    other: list[tuple[int, int, list[str]]],
    days: int,
    several: int,
    random: Random,
) -> None:
    """Nothing is matched twice, both sides come to the same, the limits hold, and the input's order says nothing."""
    rules = Rules(days, several)
    left, right = ours(*named(mine)), theirs(*named(other))

    matched = match(left, right, rules)

    uses = Counter(key(one) for each in matched.matches for one in (*each.ours, *each.theirs))
    uses.update(key(one) for each in matched.differing for one in (*each.ours, *each.theirs))
    assert set(uses.values()) <= {1}
    for each in matched.matches:
        assert sum(one.amount for one in each.ours) == sum(one.amount for one in each.theirs)
        assert each.ours
        assert each.theirs
        near = {(one.day - two.day) for one in each.ours for two in each.theirs}
        if each.rule != "reference":
            assert max(map(abs, near)) <= timedelta(days=days)
            assert min(len(each.ours), len(each.theirs)) == 1
        if each.rule == "several":
            assert 2 <= max(len(each.ours), len(each.theirs)) <= several
    shuffled = random.sample(left, len(left)), random.sample(right, len(right))
    assert found(match(*shuffled, rules)) == found(matched)
    again = match(
        [one for one in left if key(one) not in uses or one in _differing(matched)],
        [one for one in right if key(one) not in uses or one in _differing(matched)],
        rules,
    )
    assert again.matches == []
    assert (again.differing, again.ambiguous) == (matched.differing, matched.ambiguous)


def _differing(matched: Matched) -> list[Item]:
    return [one for each in matched.differing for one in (*each.ours, *each.theirs)]


def test_the_search_is_bounded() -> None:
    """Entries made to be searched for ever are given up after a number of steps, and named."""
    # Every amount is even and the target odd: there is no way, and no sum rules one out early.
    hostile = ours(*((2 * (1_000 + n * n), 0) for n in range(40)))
    odd = 2 * 10 * 1_500 + 1

    search = matching._Search(hostile, 10, matching.STEPS_MAX)  # noqa: SLF001  (its steps are counted)
    assert (search.ways(odd), search.given_up) == ([], True)
    assert search.steps == matching.STEPS_MAX + 1

    matched = match(hostile, theirs((odd, 0)), Rules(several=10))
    assert matched.matches == []
    assert [key(one) for one in matched.given_up] == [(THEIRS, "S", 1)]


def test_many_hostile_entries_end() -> None:
    """Thousands of entries, each with too many near it or too long a search, are all given up or left."""
    random = Random(8)  # noqa: S311  (it draws amounts)
    mine = ours(*((2 * random.randrange(1_000, 9_000), n % 300) for n in range(3_000)))
    other = theirs(*((2 * random.randrange(9_000, 40_000) + 1, n % 300) for n in range(3_000)))

    matched = match(mine, other, Rules(3, 10))

    assert matched.matches == []
    assert len(matched.given_up) > 3_000
    same = match(ours(*((5, 0) for _ in range(20_000))), theirs(*((5, 0) for _ in range(20_000))), Rules())
    assert same.matches == []
