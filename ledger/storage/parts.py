"""The log in parts, for those who read all of it: runs of streams, in the order of their names."""

from __future__ import annotations

from typing import Final, NamedTuple

from ledger.core.errors import InvalidCommand
from ledger.core.events import account_of
from ledger.storage.database import Connection

JOBS_MAX: Final = 64

_PARTS_MAX: Final = 16
"""A part of many may have to look at every page of the log."""

_PART_STREAMS: Final = 50_000

_COUNT: Final = "SELECT count(*) FROM {schema}.events WHERE version = 1 AND stream > %(after)s"

_BOUNDS: Final = """
SELECT stream FROM (
    SELECT stream, row_number() OVER (ORDER BY stream) AS place
    FROM {schema}.events WHERE version = 1 AND stream > %(after)s
) AS opened
WHERE place %% %(size)s = 0 AND place < %(streams)s ORDER BY stream
"""


class Part(NamedTuple):
    """Accounts and other streams behind `after`, up to `until`; or all that follow.  Each with all of its stripes."""

    after: str
    until: str | None

    def parameters(self) -> dict[str, str | None]:
        """For a statement with `condition` in it."""
        return {"after": self.after and _end(self.after), "until": self.until and _end(self.until)}

    def condition(self, column: str) -> str:
        """SQL for a stream to be in this part."""
        first = "true" if not self.after else f"{column} > %(after)s"
        return first if self.until is None else f"{first} AND {column} <= %(until)s"


def _end(stream: str) -> str:
    """What sorts behind all stripes of an account, and before everything else."""
    # Their names go on with `#` and digits, and no account's name goes on with anything that sorts before these.
    return f"{account_of(stream)}#:"


def parts(connection: Connection, jobs: int, after: str = "") -> list[Part]:
    """
    The streams behind `after` in at least as many parts as there are jobs, but for very few streams.

    A part is a run that one statement reads in one go, by the index or from end to end, as the planner sees fit.
    """
    behind = after and _end(after)
    ((streams,),) = connection.query(_COUNT, {"after": behind})
    wanted = max(jobs, min(_PARTS_MAX, streams // _PART_STREAMS))
    size = max(1, -(-streams // wanted))
    rows = connection.query(_BOUNDS, {"after": behind, "size": size, "streams": streams})
    bounds = list(dict.fromkeys([after, *(account_of(stream) for (stream,) in rows)]))
    return [Part(*each) for each in zip(bounds, [*bounds[1:], None], strict=True)]


def check_jobs(jobs: int) -> None:
    """
    Refuse what is not a number of jobs.

    Raises:
        InvalidCommand: It is not from 1 to 64.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= JOBS_MAX:
        raise InvalidCommand("jobs", f"{jobs!r} is not from 1 to {JOBS_MAX}")
