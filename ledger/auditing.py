"""What a ledger tells an auditor: the part of `Ledger` about reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ledger.audit.reports import catalogue
from ledger.audit.reports.accounts import StatementQuestion
from ledger.audit.reports.form import Definition, PinnedReport
from ledger.core.errors import DatabaseUnavailable, InvalidCommand
from ledger.core.fields import checked
from ledger.operations import POSITION, known_then
from ledger.storage import trail
from ledger.storage.asof import KnownAsOf
from ledger.storage.database import Database
from ledger.storage.queries import AccountLine

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
        self,
        name: str,
        *,
        position: int | None = None,
        known_as_of: KnownAsOf = None,
        trail: int | None = None,
        **parameters: Any,
    ) -> PinnedReport:
        """
        Ask for a report, pinned to a position of the feed and a number of the trail: the last ones, unless said.

        `known_as_of` is a moment, for the position that was the last one known then, or a position itself.  One within
        a transaction stands for the last one before it, which the header has.

        Nothing of it is read yet: its rows come by iterating, and its header after the last one, so that memory stays
        flat.  The same pin and parameters give the same bytes for ever.  What is committed beside the log, and has no
        number in the trail yet, is numbered first, where this user may write.

        Raises:
            InvalidCommand: There is no such report or parameter, or the trail is not that long.
            NotYetKnown: Something may still be stamped that was known by then.
            UnknownTransaction, UnknownAccount: What the report is about was not there; when its rows are read.
        """
        definition = catalogue.definition(name)
        asked = catalogue.asked(definition, parameters)
        if position is not None and known_as_of is not None:
            raise InvalidCommand("known_as_of", "it stands for a position: give one of the two")
        known = known_then(known_as_of) if position is None else checked(POSITION, "position", position)
        if isinstance(asked, StatementQuestion):
            self.account(asked.account)  # A projection that has drifted is mended before anything is read.
        if trail is None and "trail" in definition.pinned_by:
            self.number_trail()
        pin = self._database.ask(lambda connection: catalogue.pin(connection, known, trail))
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

    def account(self, account: str) -> AccountLine:
        raise NotImplementedError

    def _ledger_id(self) -> str:
        raise NotImplementedError
