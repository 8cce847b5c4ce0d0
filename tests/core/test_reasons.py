"""The tables of rules together: there is a row for every reason, and each table is in checking order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import test_decide
import test_decide_holds
import test_decide_reversals
import test_decide_states
import test_decide_stripes
from rules import Rejection

from ledger import Reason

TABLES = {
    "entries": test_decide.REJECTIONS,
    "holds": test_decide_holds.REJECTIONS,
    "reversals": test_decide_reversals.REJECTIONS,
    "states": test_decide_states.REJECTIONS,
    "stripes": test_decide_stripes.REJECTIONS,
}

NOT_DECIDED = {
    Reason.ATOMIC_BATCH: "the writer says it of a whole batch: no rule looks at another command",
}
"""The reasons that no row of a table can have, and why."""


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_rows_are_in_checking_order(table: Sequence[Rejection]) -> None:
    """A table reads as the rules are checked: all rows of a reason together, and the reasons in order."""
    reasons = list(Reason)
    places = [reasons.index(row.then.reason) for row in table]

    assert places == sorted(places)


def test_every_reason_has_a_row() -> None:
    """No rule is without an example of what it refuses, and none is excused that has one."""
    covered = {row.then.reason for table in TABLES.values() for row in table}

    assert covered == {reason for reason in Reason if reason not in NOT_DECIDED}
