"""
Compare a ledger's schema with what the migrations of this release make: tables, guards, functions, roles, grants.

Only the catalogue is asked, in one read-only snapshot, so that an auditor can ask, a standby can answer, and a
service can begin with it.  What is in the tables is for `verify` to say.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fractions import Fraction
from typing import Final

from ledger.audit.diagnosis import Diagnosis
from ledger.audit.remedies import Difference, remedy
from ledger.audit.rights import Rights
from ledger.audit.surroundings import look_around
from ledger.storage.catalogue import LOG, NOT_VALID, Catalogue, Facts, Relation, divided, written
from ledger.storage.database import Connection
from ledger.storage.migrations import known_revisions

_ROWS: Final = (
    "SELECT 'identity', count(*) FROM {schema}.identity UNION ALL SELECT 'periods', count(*) FROM {schema}.periods"
)
_BOUND: Final = re.compile(r"modulus (\d+), remainder (\d+)")


def examine(connection: Connection, *, role_prefix: str | None = None, known_roles: Collection[str] = ()) -> Diagnosis:
    """
    Examine one ledger.

    The roles with `role_prefix` must be there; without it, they are looked for.  `known_roles` may have grants.
    """
    diagnosis = Diagnosis()
    with connection.transaction(read_only=True):
        catalogue = Catalogue(connection)
        look_around(connection, diagnosis)
        expected = written()
        # What another release has made is not compared with what this one makes.
        if _at(expected.revision, catalogue.revision(), diagnosis):
            relations = catalogue.relations()
            rights = Rights(connection, relations, role_prefix, known_roles)
            facts = divided(expected.facts, _partitions(relations))
            partitioned = any(relation.name == LOG and relation.divided for relation in relations)
            _compare(connection.schema, facts, catalogue.facts(relations), partitioned, diagnosis)
            _judge_partitions(relations, diagnosis)
            rights.judge(expected.facts, catalogue.functions(), diagnosis)
            if not diagnosis.findings_total:
                _judge_rows(connection, diagnosis)
    return diagnosis


def _at(head: str, found: str | None, diagnosis: Diagnosis) -> bool:
    diagnosis.count("revisions")
    if found is None:
        diagnosis.find(
            "schema", "revision", "there is no ledger in this schema", "Run `ledger migrate`, or name another."
        )
    elif found not in known_revisions():
        problem = f"it is at {found}, which is newer than this release ({head})"
        diagnosis.find("schema", "revision", problem, "Install a newer release of ledger. Nothing more was compared.")
    elif found != head:
        problem = f"it is at {found}, and this release needs {head}"
        diagnosis.find("schema", "revision", problem, "Run `ledger migrate`. Nothing more was compared.")
    return found == head


def _partitions(relations: Iterable[Relation]) -> list[str]:
    return [relation.name for relation in relations if relation.partition_of == LOG]


def _compare(schema: str, must: Facts, found: Facts, partitioned: bool, diagnosis: Diagnosis) -> None:
    """Note every difference; of a table that is missing or foreign nothing more is said."""
    must = {place: says for place, says in must.items() if place.kind != "grant"}
    tables = {place.table: place for place in {*must, *found} if place.kind == "table"}
    odd = {table for table, place in tables.items() if (place in must) != (place in found)}
    for place in sorted({*must, *found}):
        if place.kind != "table" and place.table in odd:
            continue
        difference = Difference(schema, place, must.get(place), found.get(place), partitioned)
        if difference.must != difference.found:
            note = diagnosis.warn if _chosen(difference) else diagnosis.find
            note(place.kind, str(place), _problem(difference), remedy(difference))
    for place in must:
        if place.kind != "options":
            diagnosis.count(_PLURALS.get(place.kind, f"{place.kind}s"))


def _chosen(difference: Difference) -> bool:
    """How full pages are, and what is indexed beside what must be, an operator may choose."""
    kind, found = difference.place.kind, difference.found or ""
    harmless = difference.must is None and "UNIQUE" not in found and not found.endswith(NOT_VALID)
    return kind == "options" or (kind == "index" and harmless)


_PLURALS: Final = {"index": "indexes", "policy": "policies"}


def _problem(difference: Difference) -> str:
    if difference.found is None:
        return "it is missing"
    if difference.must is None:
        return f"it is no part of the ledger ({difference.found})"
    return f"it is ({difference.found}) and must be ({difference.must})"


def _judge_partitions(relations: Iterable[Relation], diagnosis: Diagnosis) -> None:
    """Every stream must have a partition: the parts of a hash make up one whole."""
    relations = list(relations)
    if not any(relation.name == LOG and relation.divided for relation in relations):
        return
    bounds = [
        (int(match[1]), int(match[2]))
        for relation in relations
        if relation.partition_of == LOG and (match := _BOUND.search(relation.bound or ""))
    ]
    diagnosis.count("partitions", len(bounds))
    covered = sum((Fraction(1, modulus) for modulus, _ in bounds), Fraction(0))
    if covered != 1:
        least = max((modulus for modulus, _ in bounds), default=1)
        there = {number for modulus, rest in bounds for number in range(rest, least, modulus)}
        missing = ", ".join(str(number) for number in sorted(set(range(least)) - there))
        diagnosis.find(
            "partition",
            f"table {LOG}",
            f"streams of remainder {missing} of {least} have no partition, and their history is out of sight",
            f"ATTACH PARTITION … FOR VALUES WITH (MODULUS {least}, REMAINDER …), and run `ledger verify`.",
        )


def _judge_rows(connection: Connection, diagnosis: Diagnosis) -> None:
    """Two tables have one row each from the first migration on; a restore may have left it behind."""
    for table, count in connection.query(_ROWS):
        diagnosis.count("rows")
        if count != 1:
            diagnosis.find(
                "row",
                f"table {table}",
                f"it has {count} rows and must have one",
                "Restore its row from the backup that the log is from: hashes and keys depend on it.",
            )
