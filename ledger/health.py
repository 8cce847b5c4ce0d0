"""How a ledger fares, for whoever is on call: what its writer counted, its gauges, and whether it can do its work."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Final, NamedTuple

from ledger.core.errors import DatabaseUnavailable, LedgerError
from ledger.counters import Counters, Counts
from ledger.storage import gauges, migrations
from ledger.storage.database import Connection, Database
from ledger.storage.gauges import Gauges, Ordering

STAMPER_SECONDS: Final = 30.0
"""For how long something may wait in the outbox, while nobody has the lease, before no stamper is thought alive."""


class Check(StrEnum):
    """What must be so for a ledger to do its work."""

    SCHEMA = "schema"
    """The database is at the schema that this release needs."""

    WRITABLE = "writable"
    """The database can be reached, and lets us write."""

    STAMPER = "stamper"
    """What happens gets into the feed: somebody has the lease, or nothing has waited for long."""


class Failing(NamedTuple):
    """What is not so: in a sentence for anybody, and as the ledger itself told it, for a log."""

    check: Check
    problem: str
    said: str


class Health:
    """How a ledger fares; made by `Ledger.health`.  Asks for little, and changes nothing."""

    def __init__(self, database: Database, counters: Counters) -> None:
        self._database = database
        self._counters = counters

    def counts(self) -> Counts:
        """What the writer of this process has counted: not what guests and inboxes wrote in it."""
        return self._counters.counts()

    def gauges(self) -> Gauges:
        """
        How the ledger stands in the database, whoever wrote.

        Raises:
            DatabaseUnavailable: It cannot be reached, or takes too long to say.
        """
        return self._database.ask(gauges.gauges)

    def ordering(self) -> Ordering:
        """In which order the messages of all inboxes came; raises as `gauges`."""
        return self._database.ask(gauges.ordering)

    def failing(self, checks: Collection[Check | str] = tuple(Check)) -> list[Failing]:
        """What of `checks` is not so; nothing, where the ledger can do its work."""
        asked = {
            Check.SCHEMA: lambda: migrations.check(self._database),
            Check.WRITABLE: lambda: self._database.ask(gauges.check_writable),
            Check.STAMPER: lambda: self._database.ask(_check_stamper),
        }
        found = []
        wanted = [check for check in Check if check in checks]
        for place, check in enumerate(wanted):
            try:
                asked[check]()
            except (LedgerError, _NoStamper) as error:
                said = " ".join(str(error).split())
                # What cannot be reached is not asked again: each time would take as long.
                unreached = isinstance(error, DatabaseUnavailable) and error.sqlstate is None
                same = wanted[place:] if unreached else [check]
                found += [Failing(each, _PROBLEMS[each], said) for each in same]
                if unreached:
                    break
        return found


_PROBLEMS: Final = {
    Check.SCHEMA: "the database is not at the schema that this release needs, or cannot be asked",
    Check.WRITABLE: "the database cannot be written to",
    Check.STAMPER: "what happens does not get into the feed, or the database cannot be asked",
}


class _NoStamper(Exception):
    """Nobody stamps."""


def _check_stamper(connection: Connection) -> None:
    seconds, held = gauges.stamping(connection)
    if not held and seconds > STAMPER_SECONDS:
        raise _NoStamper(f"nobody has the stamper's lease, and the outbox has waited for {seconds:.0f} seconds")
