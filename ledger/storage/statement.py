"""
Account statements: what an account had, what was posted, what it had then.

A statement is of a period of effective time, from a moment up to and without another: what is effective at `since` is
its first line, what is effective at `until` is on the next statement.  Its closing balance is looked up, and not what
its lines add up to: reading all of them compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from ledger.core.book import Balance
from ledger.core.canonical import utc_text
from ledger.core.commands import Direction
from ledger.core.errors import CorruptLog, InvalidCommand
from ledger.core.events import Recorded
from ledger.core.money import Money
from ledger.storage import asof
from ledger.storage.asof import Counted, KnownAsOf
from ledger.storage.database import Connection, Parameters
from ledger.storage.store import EVENT_COLUMNS, plain_array, recorded_from, text_array
from ledger.storage.tables import DATED, DISTANCE

PAGE_ROWS: Final = 1_000
"""Lines that are fetched at once: the server keeps the rest."""

LINES: Final = f"""
WITH RECURSIVE period AS (
    SELECT * FROM unnest(%(streams)s::text[], %(known)s::bigint[], %(first)s::bigint[], %(last)s::bigint[])
    AS p (stream, known, first, last)
), {asof.distances("period")}, places AS (
    SELECT p.stream, e.version, e.effective_at, e.recorded_at
    FROM period AS p CROSS JOIN LATERAL (
        SELECT e.version, e.effective_at, e.recorded_at FROM {{schema}}.events AS e
        WHERE e.stream = p.stream AND e.version > p.first AND e.version <= p.last
          AND e.effective_at > %(opening)s::timestamptz AND e.effective_at <= %(closing)s::timestamptz
          AND e.type IN ('entry_posted', 'hold_captured')
        OFFSET 0
    ) AS e
    UNION ALL
    SELECT s.stream, e.version, e.effective_at, e.recorded_at
    FROM spans AS s CROSS JOIN LATERAL (
        SELECT e.version, e.effective_at, e.recorded_at FROM {{schema}}.events AS e
        WHERE e.stream = s.stream AND {DATED} AND {DISTANCE} = s.distance
          AND e.recorded_at > CASE WHEN s.distance > 0 THEN %(closing)s::timestamptz
                                   ELSE coalesce(%(opening)s::timestamptz - s.length, '-infinity') END
          AND e.recorded_at <= CASE WHEN s.distance > 0 THEN coalesce(%(closing)s::timestamptz + s.length, 'infinity')
                                    ELSE %(opening)s::timestamptz END
          AND e.effective_at > %(opening)s::timestamptz AND e.effective_at <= %(closing)s::timestamptz
        OFFSET 0
    ) AS e
    WHERE e.version <= s.known
)
SELECT {EVENT_COLUMNS}, t.reference
FROM (SELECT * FROM places ORDER BY effective_at, recorded_at, stream, version OFFSET 0) AS p
CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.events AS e WHERE e.stream = p.stream AND e.version = p.version OFFSET 0
) AS e
LEFT JOIN LATERAL (
    SELECT t.reference FROM {{schema}}.transactions AS t WHERE t.transaction_id = e.transaction_id OFFSET 0
) AS t ON true
WHERE e.type IN ('entry_posted', 'hold_captured')
"""
"""Recorded within the period, or at another time than it counts; only what finds its place is put in order."""

Lender = Callable[[], AbstractContextManager[Connection]]
"""Lends a connection in a transaction."""


class StatementLine(NamedTuple):
    """
    An entry: `amount` in the account's normal direction, below zero where it takes out, and the `balance` after it.

    `reference` is that of its transaction.
    """

    event: Recorded
    amount: Money
    balance: Money
    reference: str | None


@dataclass(frozen=True)
class Statement:
    """
    What was posted to an account in a period; its lines are what iterating gives, as often as is wanted.

    `opening` is the balance of what is effective before `since`, `closing` that before `until`; what is pending in them
    is what was recorded by then as held, and not as ended.  Lines come in the
    order of effective_at, recorded_at, stream and version.  They are read as they are iterated, and neither side holds
    them all in memory; what is appended in the meantime is on none of them.

    `position` is that of the feed which it is pinned to: without one it is of everything that was committed when it was
    made, and of what is committed later another one is made.
    """

    account: str
    since: datetime
    until: datetime
    opening: Balance
    closing: Balance
    position: int | None
    _normal: Direction = field(repr=False)
    _parameters: Parameters = field(repr=False)
    _lend: Lender = field(repr=False, compare=False)

    def __iter__(self) -> Iterator[StatementLine]:
        """
        The lines, in order.

        Raises:
            CorruptLog: Opening balance and lines do not add up to the closing balance.
        """
        running = self.opening.posted
        normal = self._normal
        with self._lend() as connection, connection.stream(LINES, self._parameters, PAGE_ROWS) as rows:
            for *row, reference in rows:
                event = recorded_from(tuple(row))
                amount = Money(event.amount or 0, running.asset, running.scale)
                amount = amount if event.direction == normal else -amount
                running += amount
                yield StatementLine(event, amount, running, reference)
        if running != self.closing.posted:
            problem = f"its statement comes to {running}, and its balance then was {self.closing.posted}"
            raise CorruptLog(self.account, self.closing.version, problem)


def statement(
    connection: Connection, lend: Lender, name: str, since: datetime, until: datetime, known_as_of: KnownAsOf
) -> Statement:
    """
    The statement of an account, as it was known; `lend` is asked for a connection whenever its lines are read.

    Raises:
        UnknownAccount, NotYetKnown, Drift: As `asof.balance`.
        InvalidCommand: It would end before it begins.
    """
    if until < since:
        raise InvalidCommand("until", f"a statement ends after it begins, at {utc_text(since)}")
    opening, closing = _before(since, "since"), _before(until, "until")
    terms, known, pinned = asof.account(connection, name, known_as_of)
    first, last = (asof.standings(connection, known, moment) for moment in (opening, closing))
    return Statement(
        name,
        since,
        until,
        asof.summed(name, terms, first, pinned),
        asof.summed(name, terms, last, pinned),
        pinned,
        terms.normal,
        _parameters(known, first, last) | {"opening": utc_text(opening), "closing": utc_text(closing)},
        lend,
    )


def _before(moment: datetime, field: str) -> datetime:
    """The last moment before another: they are told apart to the microsecond."""
    try:
        return moment - timedelta(microseconds=1)
    except OverflowError:
        raise InvalidCommand(field, f"nothing is before {utc_text(moment)}") from None


def _parameters(known: Mapping[str, int], first: Mapping[str, Counted], last: Mapping[str, Counted]) -> dict[str, str]:
    """The streams of an account: the last version known of each, and those recorded before and within the period."""
    return {
        "streams": text_array(known),
        "known": plain_array(map(str, known.values())),
        "first": plain_array(str(first[stream].recorded) for stream in known),
        "last": plain_array(str(last[stream].recorded) for stream in known),
    }
