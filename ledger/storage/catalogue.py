"""
What PostgreSQL's catalogue says of a ledger's schema, as facts that can be compared with those of a fresh migration.

The migrations are the one definition.  What they make is written down beside this module, in `catalogue.json`, by
`python tests/postgres/write_catalogue.py`, and a test holds that a schema that was migrated just now says the same: so
whoever may only read, or asks a replica, can compare, where a schema to compare with could not be made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from ledger.storage.database import Connection
from ledger.storage.tables import VERSION_TABLE

WRITTEN: Final = Path(__file__).with_suffix(".json")
LOG: Final = "events"
"""The table that may be in partitions."""

FIRING: Final = {"A": "always", "O": "ordinarily", "R": "in a replica's role only", "D": "never"}
"""When a trigger fires, as the catalogue has it and as we say it."""


NOT_VALID: Final = "(not valid)"
"""What is said behind an index that no query uses."""


class Place(NamedTuple):
    """What a fact is about: something of a kind, by its name, on a table; the table itself has no name beside it."""

    kind: str
    table: str
    name: str = ""

    def __str__(self) -> str:
        if not self.name:
            return f"{self.kind} {self.table}"
        return f"{self.kind} {self.name} of {self.table}"


Facts: TypeAlias = dict[Place, str]


class Relation(NamedTuple):
    """A table, view or sequence in the schema, or one that inherits from one there: how it is kept, and whose it is."""

    oid: int
    name: str
    qualified: str
    kind: str
    persistence: str
    options: str
    row_security: bool
    owner: str
    partition_of: str | None
    bound: str | None

    @property
    def divided(self) -> bool:
        """Whether it is in partitions."""
        return self.kind == "partitioned table"


@dataclass(frozen=True, slots=True)
class Written:
    """What the migrations of this release make: up to which revision, and the facts."""

    revision: str
    facts: Facts


_REVISION_TABLE: Final = "SELECT to_regclass(%(table)s) IS NOT NULL"
_REVISION: Final = f"SELECT version_num FROM {{schema}}.{VERSION_TABLE}"

# Whatever inherits from a table of ours is part of it to whoever reads, wherever it is.
_RELATIONS: Final = """
WITH RECURSIVE ours AS (
    SELECT c.oid FROM pg_class AS c WHERE c.relnamespace = CAST(%(schema)s AS regnamespace)
        AND c.relkind NOT IN ('i', 'I', 't', 'c')
    UNION
    SELECT i.inhrelid FROM ours AS o JOIN pg_inherits AS i ON i.inhparent = o.oid
)
SELECT c.oid::int8,
       CASE WHEN c.relnamespace = CAST(%(schema)s AS regnamespace) THEN c.relname::text
            ELSE CAST(c.oid AS regclass)::text END,
       CAST(c.oid AS regclass)::text,
       CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view'
            WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
            WHEN 'f' THEN 'foreign table' ELSE c.relkind::text END,
       CASE c.relpersistence WHEN 'p' THEN 'logged' WHEN 'u' THEN 'unlogged' ELSE 'temporary' END,
       coalesce(array_to_string(c.reloptions, ', '), ''), c.relrowsecurity OR c.relforcerowsecurity,
       pg_get_userbyid(c.relowner)::text,
       CASE WHEN c.relispartition THEN (
           SELECT p.relname::text FROM pg_inherits AS i JOIN pg_class AS p ON p.oid = i.inhparent
           WHERE i.inhrelid = c.oid) END,
       pg_get_expr(c.relpartbound, c.oid)
FROM ours JOIN pg_class AS c ON c.oid = ours.oid ORDER BY 2
"""

_COLUMNS: Final = """
SELECT a.attrelid::int8, a.attname::text,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod),
           CASE WHEN a.attcollation <> t.typcollation THEN 'COLLATE ' || quote_ident(l.collname) END,
           CASE WHEN a.attnotnull THEN 'NOT NULL' END, 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
           'IDENTITY ' || nullif(a.attidentity::text, ''), 'GENERATED ' || nullif(a.attgenerated::text, ''))
FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY(%(tables)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
"""

# That a column is not null is said of the column, unless it was only promised.  What a partition has from the log
# is said of the log.
_CONSTRAINTS: Final = """
SELECT k.conrelid::int8, k.conname::text, pg_get_constraintdef(k.oid)
FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid
WHERE k.conrelid = ANY(%(tables)s::oid[]) AND (k.contype NOT IN ('n', 't') OR NOT k.convalidated)
  AND NOT (c.relispartition AND k.coninhcount > 0)
"""

# The index of a constraint comes and goes with it.
_INDEXES: Final = """
SELECT x.indrelid::int8, c.relname::text, pg_get_indexdef(x.indexrelid),
       CASE WHEN x.indisvalid AND x.indisready AND x.indislive THEN '' ELSE ' ' || %(not_valid)s END
FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid
WHERE x.indrelid = ANY(%(tables)s::oid[]) AND NOT (x.indisvalid AND (
    c.relispartition OR EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = x.indexrelid)))
"""

_TRIGGERS: Final = """
SELECT t.tgrelid::int8, t.tgname::text, t.tgenabled::text, pg_get_triggerdef(t.oid)
FROM pg_trigger AS t WHERE t.tgrelid = ANY(%(tables)s::oid[]) AND NOT t.tgisinternal
"""

_RULES: Final = """
SELECT r.ev_class::int8, r.rulename::text, pg_get_ruledef(r.oid)
FROM pg_rewrite AS r WHERE r.ev_class = ANY(%(tables)s::oid[]) AND r.rulename <> '_RETURN'
"""

_POLICIES: Final = """
SELECT p.polrelid::int8, p.polname::text, 'for ' || p.polcmd::text
FROM pg_policy AS p WHERE p.polrelid = ANY(%(tables)s::oid[])
"""

_FUNCTIONS: Final = """
SELECT p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
       concat_ws(', ', l.lanname::text, 'returns ' || format_type(p.prorettype, NULL),
           CASE p.provolatile WHEN 'i' THEN 'IMMUTABLE' WHEN 's' THEN 'STABLE' END,
           CASE WHEN p.proisstrict THEN 'STRICT' END, CASE WHEN p.prosecdef THEN 'SECURITY DEFINER' END,
           CASE WHEN p.proleakproof THEN 'LEAKPROOF' END,
           CASE p.proparallel WHEN 's' THEN 'PARALLEL SAFE' WHEN 'r' THEN 'PARALLEL RESTRICTED' END,
           coalesce(array_to_string(p.proconfig, ', '), 'no settings')),
       p.prosrc, pg_get_userbyid(p.proowner)::text
FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
WHERE p.pronamespace = CAST(%(schema)s AS regnamespace) ORDER BY 1
"""


class Catalogue:
    """What the catalogue says of one ledger's schema, in the caller's transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.schema = connection.schema
        # Nothing is in sight but the server's own, so that whatever is written out says its schema.
        connection.query("SET LOCAL search_path = pg_catalog")
        rows = connection.query(
            "SELECT quote_ident(nspname) FROM pg_namespace WHERE oid = to_regnamespace(%s)", (self.schema,)
        )
        self._prefix = f"{rows[0][0]}." if rows else ""

    def revision(self) -> str | None:
        """The revision that the schema is at; None where there is no ledger."""
        found = self.connection.query(_REVISION_TABLE, {"table": f"{self.schema}.{VERSION_TABLE}"})
        rows = self.connection.query(_REVISION) if found[0][0] else []
        return str(rows[0][0]) if rows else None

    def relations(self) -> list[Relation]:
        """Tables and whatever else is in the schema, by name; and whatever inherits from one of them."""
        return [Relation(*row) for row in self.connection.query(_RELATIONS, {"schema": self.schema})]

    def facts(self, relations: Iterable[Relation]) -> Facts:
        """Everything about these and about the functions, but who may do what."""
        by_oid = {relation.oid: relation for relation in relations}
        return dict((*_kept(by_oid.values()), *self._shape(by_oid), *self._reactions(by_oid), *self._functions()))

    def functions(self) -> list[tuple[str, str]]:
        """Functions of the schema, and whose they are."""
        rows = self.connection.query(_FUNCTIONS, {"schema": self.schema})
        return [(str(name), str(owner)) for name, _, _, owner in rows]

    def _shape(self, relations: dict[int, Relation]) -> Iterator[tuple[Place, str]]:
        whole = [oid for oid, relation in relations.items() if relation.partition_of is None]
        for oid, name, says in self._of(_COLUMNS, whole):
            yield Place("column", relations[oid].name, name), says
        for oid, name, says in self._of(_CONSTRAINTS, relations):
            yield Place("constraint", relations[oid].name, name), says
        for oid, name, definition, state in self._of(_INDEXES, relations):
            yield Place("index", relations[oid].name, name), self._anywhere(definition) + state

    def _reactions(self, relations: dict[int, Relation]) -> Iterator[tuple[Place, str]]:
        for oid, name, enabled, definition in self._of(_TRIGGERS, relations):
            says = self._anywhere(definition.replace(f" ON {relations[oid].qualified} ", " ON {table} "))
            yield Place("trigger", relations[oid].name, name), f"{FIRING[enabled]}: {says}"
        for kind, query in (("rule", _RULES), ("policy", _POLICIES)):
            for oid, name, says in self._of(query, relations):
                yield Place(kind, relations[oid].name, name), self._anywhere(says)

    def _functions(self) -> Iterator[tuple[Place, str]]:
        for name, says, body, _ in self.connection.query(_FUNCTIONS, {"schema": self.schema}):
            digest = sha256(body.replace(f"{self.schema}.", "{schema}.").encode()).hexdigest()
            yield Place("function", name), f"{says}, body {digest}"

    def _of(self, query: str, tables: Iterable[int]) -> list[tuple[Any, ...]]:
        return self.connection.query(query, {"tables": list(tables), "not_valid": NOT_VALID})

    def _anywhere(self, definition: str) -> str:
        """The definition with a place for the schema's name."""
        for before in (" ON ", " ON ONLY ", " EXECUTE FUNCTION "):
            definition = definition.replace(before + self._prefix, before.replace(" ONLY", "") + "{schema}.")
        return definition


def _kept(relations: Iterable[Relation]) -> Iterator[tuple[Place, str]]:
    for relation in relations:
        security = ", with row security" if relation.row_security else ""
        # The log alone may be in partitions.
        kind = "table" if relation.name == LOG and relation.divided else relation.kind
        yield Place("table", relation.name), f"{kind}, {relation.persistence}{security}"
        if relation.options:
            yield Place("options", relation.name), relation.options


def written(path: Path = WRITTEN) -> Written:
    """What this release's migrations make."""
    said = json.loads(path.read_text("utf-8"))
    return Written(said["revision"], {Place(*place): says for *place, says in said["facts"]})


def write(revision: str, facts: Facts, path: Path = WRITTEN) -> None:
    """Write down what the migrations make, a fact a line."""
    lines = ",\n".join(json.dumps([*place, says], ensure_ascii=False) for place, says in sorted(facts.items()))
    path.write_text(f'{{"revision": "{revision}", "facts": [\n{lines}\n]}}\n', "utf-8")


def divided(facts: Facts, partitions: Iterable[str]) -> Facts:
    """The facts of a log in these partitions: each is kept and guarded as the log is."""
    each = [(place, says) for place, says in facts.items() if place.table == LOG and place.kind in ("table", "trigger")]
    return facts | {place._replace(table=partition): says for partition in partitions for place, says in each}
