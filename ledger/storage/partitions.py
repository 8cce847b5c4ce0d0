"""
The log in partitions: HASH by stream, made of the empty table that the migrations leave behind.

There is one definition of the table, which is theirs: its columns, constraints, indexes and guards are read from the
catalogue and made anew around the partitions.  Each partition has the guards too, for whoever writes right into it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import sqlalchemy
from sqlalchemy import text

from ledger.core.errors import InvalidCommand

PARTITIONS_MAX: Final = 1_024

_CONSTRAINTS: Final = """
SELECT quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = CAST(:events AS regclass) AND contype IN ('p', 'u', 'x', 'f') ORDER BY conname
"""

_INDEXES: Final = """
SELECT pg_get_indexdef(i.indexrelid) FROM pg_index AS i
WHERE i.indrelid = CAST(:events AS regclass)
  AND NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conindid = i.indexrelid)
ORDER BY 1
"""

# Each with a place for the name of its table, which is written as the catalogue writes it.
_TRIGGERS: Final = """
SELECT quote_ident(t.tgname),
       replace(pg_get_triggerdef(t.oid), format(' ON %I.%I ', n.nspname, c.relname), ' ON {table} '),
       CAST(t.tgenabled AS text)
FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE t.tgrelid = CAST(:events AS regclass) AND NOT t.tgisinternal ORDER BY t.tgname
"""

_COMMENT: Final = "SELECT obj_description(CAST(:events AS regclass), 'pg_class')"

_PARTITIONS: Final = """
SELECT quote_ident(c.relname) FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass(:events) ORDER BY c.relname
"""


class _Guard(NamedTuple):
    """A trigger: its name, its definition, and when it fires."""

    name: str
    definition: str
    enabled: str


def check_partitions(partitions: int) -> None:
    """
    Refuse what is not a number of partitions.

    Raises:
        InvalidCommand: It is not from 1 to 1,024.
    """
    if isinstance(partitions, bool) or not isinstance(partitions, int) or not 1 <= partitions <= PARTITIONS_MAX:
        raise InvalidCommand("partitions", f"{partitions!r} is not from 1 to {PARTITIONS_MAX:,}")


def partitions_of(connection: sqlalchemy.Connection, schema: str) -> list[str]:
    """The names of the log's partitions, quoted; none where it is one table."""
    rows = connection.execute(text(_PARTITIONS), {"events": f"{schema}.events"})
    return [str(name) for (name,) in rows]


def check_existing(connection: sqlalchemy.Connection, schema: str, partitions: int) -> None:
    """
    Refuse to divide a log that is there already in another way than it is.

    Raises:
        InvalidCommand: It has another number of partitions.
    """
    found = len(partitions_of(connection, schema))
    if found != partitions:
        said = f"{found} partitions" if found else "one table"
        raise InvalidCommand(
            "partitions",
            f"the log of this ledger is {said} already, and is divided at the first migration only."
            " Leave the option out.",
        )


def divide(connection: sqlalchemy.Connection, schema: str, partitions: int) -> None:
    """Make the log, which is empty, a table of partitions; in the caller's transaction."""
    events, before = f"{schema}.events", f"{schema}.events_before"
    here = {"events": events}
    constraints = connection.execute(text(_CONSTRAINTS), here).all()
    indexes = [str(definition) for (definition,) in connection.execute(text(_INDEXES), here)]
    guards = [_Guard(*row) for row in connection.execute(text(_TRIGGERS), here)]
    comment = connection.execute(text(_COMMENT), here).scalar_one()
    names = [f"{schema}.events_{number:04}" for number in range(partitions)]
    statements = [
        f"ALTER TABLE {events} RENAME TO events_before",
        f"CREATE TABLE {events} (LIKE {before} INCLUDING CONSTRAINTS INCLUDING COMMENTS) PARTITION BY HASH (stream)",
        f"DROP TABLE {before}",
        *(f"ALTER TABLE {events} ADD CONSTRAINT {name} {definition}" for name, definition in constraints),
        *indexes,
        f"COMMENT ON TABLE {events} IS {_quoted(comment)}",
        *(
            f"CREATE TABLE {name} PARTITION OF {events} FOR VALUES WITH (MODULUS {partitions}, REMAINDER {number})"
            for number, name in enumerate(names)
        ),
        *(statement for table in (events, *names) for guard in guards for statement in _guarded(guard, table)),
    ]
    unparsed = connection.execution_options(no_parameters=True)
    for statement in statements:
        unparsed.exec_driver_sql(statement)
    connection.execution_options(no_parameters=False)


def _guarded(guard: _Guard, table: str) -> list[str]:
    """The statements that set a guard up on a table, as it stood on the log."""
    definition = guard.definition.replace("{table}", table)
    if guard.enabled != "A":
        return [definition]
    return [definition, f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {guard.name}"]


def _quoted(literal: str) -> str:
    doubled = literal.replace("'", "''")
    return f"'{doubled}'"
