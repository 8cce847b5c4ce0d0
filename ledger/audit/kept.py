"""
What is kept beside the log: one row of each key, a clock that is not ahead, checkpoints as their notes say.

What is compared is what keys and guards promise, for the case that somebody took them away.  No key that signs is known
here: whether a note is signed, and what it is signed for, the check against a checkpoint from outside says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ledger.audit.checkpoint import Checkpoint, Note
from ledger.audit.report import Report
from ledger.audit.stamped import SKEW
from ledger.core.errors import CorruptLog, ProofFailed
from ledger.core.events import LEDGER_STREAM
from ledger.storage import tree
from ledger.storage.database import Row

# Of each table, whose a row is and which of theirs; of those that have one row, no more than that.
_KEYS: Final = {
    "accounts": "account, ''",
    "balances": "stream, ''",
    "checkpoints": f"'{LEDGER_STREAM}', size::text",
    "feed_clock": f"'{LEDGER_STREAM}', ''",
    "holds": "account, hold_id::text",
    "identity": f"'{LEDGER_STREAM}', ''",
    "leases": f"'{LEDGER_STREAM}', name",
    "periods": f"'{LEDGER_STREAM}', ''",
    "tree_tiles": f"'{LEDGER_STREAM}', concat_ws('/', level, number)",
}

_DOUBLED: Final = " UNION ALL ".join(
    f"""
SELECT '{table}', k.stream, k.key, count(*)
FROM (SELECT {columns} FROM {{schema}}.{table}) AS k (stream, key)
WHERE true {{of_keys}} GROUP BY k.stream, k.key HAVING count(*) > 1
"""
    for table, columns in _KEYS.items()
)

_CLOCK: Final = f"""
SELECT c.known_until::text, (c.known_until <= clock_timestamp() + {SKEW}) IS TRUE FROM {{schema}}.feed_clock AS c
"""

_CHECKPOINTS: Final = f"""
SELECT c.*, (SELECT coalesce(max(f.position), 0) FROM {{schema}}.feed AS f)
FROM ({tree.CHECKPOINTS}) AS c ORDER BY c.size
"""

SCOPE: Final = {"{of_keys}": "AND k.stream = ANY(%(streams)s::text[])"}
"""What a verification of some accounts adds to these statements."""

Rows = Callable[[str], Iterable[Row]]


def _doubled(rows: Rows, report: Report) -> None:
    for table, stream, key, count in sorted(rows(_DOUBLED), key=str):
        problem = f"its row {key} is there {count} times" if key else f"its row is there {count} times"
        report.add("doubled", str(stream), 0, table, problem)


def _clock(rows: Rows, report: Report) -> None:
    told = list(rows(_CLOCK))
    for known_until, reached in told:
        if not reached:
            problem = f"the clock of the feed says {known_until}, which has not come: what is stamped is known after it"
            report.add("feed", LEDGER_STREAM, 0, "known_until", problem)
    if not told:
        report.add("feed", LEDGER_STREAM, 0, "known_until", "the feed has no clock: its row is missing")


def _checkpoints(rows: Rows, report: Report) -> None:
    for *row, head in rows(_CHECKPOINTS):
        for problem in _problems(tuple(row), head):
            report.add("tree", LEDGER_STREAM, 0, "checkpoints", f"the one of {row[0]} events: {problem}")


def _problems(row: Row, head: int) -> Iterable[str]:
    try:
        sealed = tree.sealed_from(row)
        noted = Checkpoint.parse(Note.parse(sealed.note).text)
    except CorruptLog as error:
        yield error.problem
        return
    except ProofFailed as error:
        yield f"its note is none: {error.problem}"
        return
    if sealed.size > head:
        yield f"the feed has {head} only"
    if (noted.size, noted.root) != (sealed.size, sealed.root):
        yield "its row is not what its note says"


CHECKS: Final[dict[str, Callable[[Rows, Report], None]]] = {
    "doubled rows": _doubled,
    "feed's clock": _clock,
    "checkpoints": _checkpoints,
}
"""Each is a step of a verification; rows of a statement → what is found."""

OF_ALL: Final = frozenset({"feed's clock", "checkpoints"})
"""Those that have nothing to do with any one account."""
