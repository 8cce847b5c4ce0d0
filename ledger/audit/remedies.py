"""What to do about a difference between the catalogue and the migrations, as SQL where SQL can do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from ledger.storage.catalogue import FIRING, NOT_VALID, Place
from ledger.storage.database import quoted_name

FROM_FRESH: Final = "Take it from a schema that this release migrates anew (pg_dump --schema-only)"


class Difference(NamedTuple):
    """What must be at a place in a schema, and what is; None: nothing."""

    schema: str
    place: Place
    must: str | None
    found: str | None
    partitioned: bool
    """Whether the log is in partitions."""

    @property
    def table(self) -> str:
        """The table, as SQL names it; one of another schema has its name with it."""
        table = self.place.table
        return table if "." in table else f"{self.schema}.{quoted_name(table)}"

    @property
    def name(self) -> str:
        """What is on the table, as SQL names it."""
        return quoted_name(self.place.name)


def remedy(difference: Difference) -> str:
    """What puts it right."""
    if difference.must is None:
        return _REMOVALS.get(difference.place.kind, _removed)(difference)
    return _REPAIRS.get(difference.place.kind, _anew)(difference, difference.must)


def _trigger(it: Difference, must: str) -> str:
    firing, _, definition = must.partition(": ")
    always = firing == FIRING["A"]
    enable = f"ALTER TABLE {it.table} ENABLE{' ALWAYS' if always else ''} TRIGGER {it.name}"
    first = "Run `ledger verify` first, for what came while it did not fire; then"
    if it.found is not None and it.found.partition(": ")[2] == definition:
        load = (
            " A load through the root of the partitions needs guards off by name, and verified, and on again like this."
        )
        return f"{first} {enable}.{load if it.partitioned else ''}"
    drop = "" if it.found is None else f"DROP TRIGGER {it.name} ON {it.table}; "
    create = definition.replace("{table}", it.table).replace("{schema}", it.schema)
    return f"{first} {drop}{create}{f'; {enable}' if always else ''}."


def _constraint(it: Difference, must: str) -> str:
    if it.found == f"{must} NOT VALID":
        return f"ALTER TABLE {it.table} VALIDATE CONSTRAINT {it.name}."
    drop = "" if it.found is None else f"ALTER TABLE {it.table} DROP CONSTRAINT {it.name}; "
    return f"{drop}ALTER TABLE {it.table} ADD CONSTRAINT {it.name} {must}."


def _index(it: Difference, must: str) -> str:
    if it.found == f"{must} {NOT_VALID}":
        return f"REINDEX INDEX {it.schema}.{it.name}."
    drop = "" if it.found is None else f"DROP INDEX {it.schema}.{it.name}; "
    return f"{drop}{must.replace('{schema}', it.schema)}."


def _table(it: Difference, must: str) -> str:
    if it.found is not None and "unlogged" in it.found:
        return f"ALTER TABLE {it.table} SET LOGGED; then take a new base backup."
    if it.found is not None and "row security" in it.found:
        return f"ALTER TABLE {it.table} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY."
    return _anew(it, must)


def _options(it: Difference, must: str) -> str:
    return f"ALTER TABLE {it.table} SET ({must}), unless you chose otherwise."


def _anew(_: Difference, __: str) -> str:
    return f"{FROM_FRESH}, with the data of a backup, and run `ledger verify` behind it."


def _dropped_from_table(it: Difference) -> str:
    return f"DROP {it.place.kind.upper()} {it.name} ON {it.table}, and run `ledger verify`."


def _constraint_dropped(it: Difference) -> str:
    return f"ALTER TABLE {it.table} DROP CONSTRAINT {it.name}."


def _index_dropped(it: Difference) -> str:
    if it.found is not None and it.found.endswith(NOT_VALID):
        return f"REINDEX INDEX {it.schema}.{it.name}, or drop it if it is yours."
    return f"DROP INDEX {it.schema}.{it.name}, or live with slower appends."


def _column_dropped(it: Difference) -> str:
    return f"ALTER TABLE {it.table} DROP COLUMN {it.name}: nothing verifies what is in it."


def _options_reset(it: Difference) -> str:
    return f"ALTER TABLE {it.table} RESET each of them, unless you chose them."


def _function_dropped(it: Difference) -> str:
    return f"DROP FUNCTION {it.schema}.{it.place.table}, or move it out of the ledger's schema."


def _removed(_: Difference) -> str:
    return (
        "If it was a partition of the log, attach it again; else move it out of the ledger's schema, and let it inherit"
        " from nothing there."
    )


_REPAIRS: Final[dict[str, Callable[[Difference, str], str]]] = {
    "trigger": _trigger,
    "constraint": _constraint,
    "index": _index,
    "table": _table,
    "options": _options,
}

_REMOVALS: Final[dict[str, Callable[[Difference], str]]] = {
    "trigger": _dropped_from_table,
    "rule": _dropped_from_table,
    "policy": _dropped_from_table,
    "constraint": _constraint_dropped,
    "index": _index_dropped,
    "column": _column_dropped,
    "options": _options_reset,
    "function": _function_dropped,
}
