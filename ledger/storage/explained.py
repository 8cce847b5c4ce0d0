"""What the driver raises, in the ledger's own words: SQLSTATE → errors, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import errors
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ledger.core.errors import (
    ConcurrencyError,
    ConnectionLost,
    DatabaseUnavailable,
    GuardRefused,
    InvalidCommand,
    LedgerError,
    SchemaMismatch,
)

RETRYABLE: Final = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the whole transaction is run again."""

UNREADABLE: Final = (
    *(errors.DataError, errors.StatementTooComplex),
    *(errors.DataCorrupted, errors.IndexCorrupted, errors.InternalError_),
)
"""What a server says of a row that it cannot read: no value of its type, too deep a one, or a damaged page."""

GUARD_CLASS: Final = "LD"
"""The SQLSTATE class of the ledger's own triggers."""


@contextmanager
def in_our_words() -> Iterator[None]:
    """Turn what the driver raises into the ledger's errors; those that the write path handles pass through it first."""
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnavailable(
            "All pooled connections are in use.", "Use fewer threads, or a larger pool_size."
        ) from error
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.Error):
            raise
        raise explained(error.orig) from error
    except psycopg.Error as error:
        raise explained(error) from error
    except UnicodeEncodeError as error:
        raise InvalidCommand("text", f"{error.object[:80]!r} cannot be stored: {error.reason}") from error


def lost(error: psycopg.Error) -> ConnectionLost:
    """What a lost connection means for whoever had sent something."""
    said = (error.diag.message_primary or str(error).strip().split("\n")[0]).rstrip(".")
    return ConnectionLost(
        f"The connection to PostgreSQL was lost ({said}); a change that was under way may or may not have taken place.",
        "Send it again with the same idempotency key: it happens once.",
        error.sqlstate,
    )


def explained(error: psycopg.Error) -> LedgerError:
    """What went wrong and what to do about it, by SQLSTATE; texts are never matched."""
    state = error.sqlstate
    said = (error.diag.message_primary or str(error).strip().split("\n")[0]).rstrip(".")
    if state in RETRYABLE:
        return ConcurrencyError(f"The database gave up on a race ({said}). Run the whole transaction again.")
    if state == "55P03":
        return ConcurrencyError(f"Another transaction held a lock for too long ({said}). Try again.")
    if state in ("42P01", "3F000", "42703", "42883"):
        return SchemaMismatch(f"The ledger's tables are not there ({said}). Run `ledger migrate`.")
    for prefix, problem, advice in _ADVICE:
        if state is not None and state.startswith(prefix):
            kind = GuardRefused if prefix == GUARD_CLASS else DatabaseUnavailable
            return kind(f"{problem} ({said}).", advice, state)
    if state is None:
        problem = f"Cannot reach PostgreSQL ({said})." if isinstance(error, psycopg.OperationalError) else f"{said}."
        return DatabaseUnavailable(problem, _UNREACHED)
    return DatabaseUnavailable(f"PostgreSQL refused: {said} (SQLSTATE {state}).", "Nothing was written.", state)


_UNPREPARED: Final = "Nothing was written; make the connection that you lend with prepare_threshold=None."
"""An application's own connection prepares what it sends often, and a pooler gives the next one another session."""

_ADVICE: Final = (
    ("28", "PostgreSQL does not let this user in", "Check user and password in the database URL."),
    ("3D000", "The database does not exist", "Create it, or correct the database URL."),
    ("25006", "The server is read-only", "Connect to the primary; nothing was written."),
    ("25P03", "This process stood still in a transaction", "Nothing was written; try again, or raise idle_seconds."),
    ("42501", "The database user lacks a privilege", "Grant it the role made by `ledger migrate --roles`."),
    ("42P05", "A pooler stands in between", _UNPREPARED),
    ("26000", "A pooler stands in between", _UNPREPARED),
    ("57014", "The statement ran into its timeout", "Nothing was written; try again, or raise statement_seconds."),
    ("53100", "The server's disk is full", "Nothing was written; make room and try again."),
    ("53300", "The server has no connection to spare", "Try again, or raise max_connections."),
    ("53", "The server is out of resources", "Nothing was written; try again later."),
    ("57P", "The server is shutting down or restarting", "Try again in a moment."),
    ("08", "The connection was lost", "Try again; with the same idempotency key nothing happens twice."),
    ("58", "The server met a system error", "Nothing was written; look at the server's log."),
    (GUARD_CLASS, "A guard of the ledger refused the change", "Run `ledger verify`; nothing was written."),
)


_UNREACHED: Final = (
    "Check that the server runs, and that host, database, user and password are right; a command sent again"
    " with the same idempotency key happens once."
)
