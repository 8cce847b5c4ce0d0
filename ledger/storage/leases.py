"""
Who does what only one may do at a time: leases with an epoch.

Whoever takes a lease takes its next epoch, and every transaction in which something is done under the lease begins by
holding it: an update of the row for that very epoch.  Who has lost the lease and does not know updates nothing, and so
does nothing; who holds it is waited for.  The time until which it holds only says when somebody else may try: clocks
that disagree make a lease change hands too early or too late, and never let two work under it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from ledger.storage.database import Connection, Statement
from ledger.storage.store import in_utc

_UNTIL: Final = "clock_timestamp() + make_interval(secs => %s)"

CLAIM: Final = f"""
INSERT INTO {{schema}}.leases (name, epoch, owner, until) VALUES (%s, 1, %s, {_UNTIL})
ON CONFLICT (name) DO UPDATE SET epoch = leases.epoch + 1, owner = excluded.owner, until = excluded.until
WHERE leases.until <= clock_timestamp()
RETURNING epoch
"""

HOLD: Final = f"UPDATE {{schema}}.leases SET until = {_UNTIL} WHERE name = %s AND epoch = %s RETURNING epoch"

LET_GO: Final = "UPDATE {schema}.leases SET until = clock_timestamp() WHERE name = %s AND epoch = %s"

LEASE: Final = "SELECT name, epoch, owner, until AT TIME ZONE 'UTC' FROM {schema}.leases WHERE name = %s"


class Lease(NamedTuple):
    """Who has a lease, in which epoch, and until when nobody else tries."""

    name: str
    epoch: int
    owner: str
    until: datetime


class LeaseLost(Exception):
    """Somebody else has taken the lease since."""


def claim(connection: Connection, name: str, owner: str, seconds: float) -> int | None:
    """Take a lease that nobody has, or whose time is over: its epoch from now on, or None where somebody has it."""
    rows = connection.query(CLAIM, (name, owner, seconds))
    return rows[0][0] if rows else None


def hold(name: str, epoch: int, seconds: float) -> Statement:
    """
    Begin a transaction under the lease, which nobody else can take until it ends.

    Where it returns no row the lease is somebody else's, and the transaction must do nothing.
    """
    return HOLD, (seconds, name, epoch)


def let_go(connection: Connection, name: str, epoch: int) -> None:
    """Let somebody else take it at once; if it is theirs already, it stays theirs."""
    connection.query(LET_GO, (name, epoch))


def lease(connection: Connection, name: str) -> Lease | None:
    """Who has it."""
    rows = connection.query(LEASE, (name,))
    return Lease._make((*rows[0][:3], in_utc(rows[0][3]))) if rows else None
