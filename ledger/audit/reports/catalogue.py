"""All reports by name, and how one is asked for: what it is pinned to is decided first, and then never again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ledger.audit.reports import accounts, journal, oversight, sums
from ledger.audit.reports.form import Definition, Pin
from ledger.core.errors import InvalidCommand
from ledger.core.fields import Frozen
from ledger.storage import asof, feed, trail
from ledger.storage.asof import KnownAsOf
from ledger.storage.database import Connection
from ledger.storage.store import in_utc, readable

REPORTS: Final[Mapping[str, Definition]] = {
    report.name: report for report in (*accounts.REPORTS, *journal.REPORTS, *sums.REPORTS, *oversight.REPORTS)
}

_AT: Final = f"SELECT {readable('f.known_at')} FROM {{schema}}.feed AS f WHERE f.position = %s"


def definition(name: str) -> Definition:
    """
    The report of this name.

    Raises:
        InvalidCommand: There is none.
    """
    if name not in REPORTS:
        raise InvalidCommand("report", f"there is no {name!r:.80}, but {', '.join(REPORTS)}")
    return REPORTS[name]


def asked(of: Definition, parameters: Mapping[str, Any]) -> Frozen:
    """
    The parameters of a report, validated.

    Raises:
        InvalidCommand: One is missing, is none of its own, or is not what it should be.
    """
    known = of.parameters.model_fields
    for name in parameters:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InvalidCommand(name, f"{of.name} has no such parameter: {has}")
    for name, field in known.items():
        if field.is_required() and name not in parameters:
            raise InvalidCommand(name, f"{of.name} needs it: {field.description}")
    return of.parameters(**parameters)


def pin(connection: Connection, known_as_of: KnownAsOf, number: int | None) -> Pin:
    """
    What a report is read at: a position, or what was known by a moment, and a number of the trail; or the last ones.

    A position within a transaction stands for the last one before it: half of a transaction is no answer.

    Raises:
        NotYetKnown: Something may still be stamped that was known by then.
        InvalidCommand: The trail is not that long.
    """
    last = trail.head(connection)
    if number is not None and (type(number) is not int or not 0 <= number <= last):
        raise InvalidCommand("trail", f"{number!r} is not from 0 to {last}, its last number so far")
    found = asof.position(connection, known_as_of)
    at = feed.head(connection) if found is None else found
    known_at = None
    for (moment,) in connection.query(_AT, (at,)):
        known_at = in_utc(moment)
    return Pin(at, known_at, last if number is None else number)
