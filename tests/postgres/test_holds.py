"""Holds from end to end: money set aside is pending at once, is captured, released or expires, and is never lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
import pytest
from invariants import assert_sound, projections, repairs

from ledger import (
    Done,
    ExceedsRest,
    HoldNotOpen,
    IdempotencyConflict,
    InsufficientFunds,
    Ledger,
    UnknownTransaction,
)

Psql = psycopg.Connection[Any]


def numbers(ledger: Ledger, account: str) -> tuple[str, str, str]:
    """Posted, pending and available, as text."""
    balance = ledger.balance(account)
    return str(balance.posted.decimal), str(balance.pending.decimal), str(balance.available.decimal)


def soon(psql: Psql) -> datetime:
    """A moment a little ahead, by the clock of the database."""
    ((moment,),) = psql.execute("SELECT clock_timestamp() + interval '300 ms'").fetchall()
    assert isinstance(moment, datetime)
    return moment


def await_expiry(psql: Psql) -> None:
    """Wait until all holds that expire are due, by the clock of the database."""
    for _ in range(100_000):
        if psql.execute("SELECT max(expires_at) < clock_timestamp() FROM holds").fetchall() == [(True,)]:
            return
    pytest.fail("the clock of the database stands still")
