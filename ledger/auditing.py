"""What a ledger tells an auditor: the part of `Ledger` about reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ledger.audit.reports import catalogue
from ledger.audit.reports.form import Definition, PinnedReport
from ledger.core.errors import DatabaseUnavailable
from ledger.storage import trail
from ledger.storage.database import Database

_MAY_NOT_WRITE: Final = frozenset({"42501", "25006"})
"""No privilege; a server, or a session, that is read-only."""


class Auditing:
    """The methods of `Ledger` that make reports."""

    _database: Database

    @property
    def reports(self) -> Sequence[Definition]:
        """All reports: name, version, what it is about, its parameters with their types, its columns."""
        return tuple(catalogue.REPORTS.values())

    def report(
        self, name: str, *, position: int | None = None, trail: int | None = None, **parameters: Any
    ) -> PinnedReport:
        """
        Ask for a report, pinned to a position of the feed and a number of the trail: the last ones, unless said.

        Nothing of it is read yet: its rows come by iterating, and its header after the last one, so that memory stays
        flat.  The same pin and parameters give the same bytes for ever.  What is committed beside the log, and has no
        number in the trail yet, is numbered first, where this user may write.

        Raises:
            InvalidCommand: There is no such report, parameter or position.
            UnknownTransaction, UnknownAccount: When the rows are read, of what the report is about.
        """
        definition = catalogue.definition(name)
        asked = catalogue.asked(definition, parameters)
        if trail is None and "trail" in definition.pinned_by:
            self.number_trail()
        pin = self._database.ask(lambda connection: catalogue.pin(connection, position, trail))
        return PinnedReport(definition, asked, pin, self._ledger_id(), self._database.connection)

    def number_trail(self) -> int:
        """
        Give numbers to repairs, decisions and actions that are committed and have none; how many.

        None, where this user may not write: whoever next may will do it.
        """
        try:
            with self._database.connection() as connection:
                return trail.number(connection)
        except DatabaseUnavailable as error:
            if error.sqlstate not in _MAY_NOT_WRITE:
                raise
            return 0

    def _ledger_id(self) -> str:
        raise NotImplementedError
