"""Who owns a ledger's tables and who may do what with them, compared with what `create_roles` grants."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from ledger.audit.diagnosis import Diagnosis
from ledger.storage.catalogue import LOG, Facts, Place, Relation
from ledger.storage.database import Connection, quoted_name

PUBLIC: Final = "PUBLIC"
SCHEMA: Final = "SCHEMA"
_KINDS: Final = ("owner", "app", "audit")

# The owner's own privileges are left out: what an owner takes from itself it can give back.
_GRANTED: Final = """
SELECT g.oid, g.at, CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(g.grantee)::text END,
       string_agg(g.privilege_type || CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END, ', '
                  ORDER BY g.privilege_type COLLATE "C")
FROM (
    SELECT c.oid::int8 AS oid, '' AS at, c.relowner AS owner, a.grantee, a.privilege_type, a.is_grantable
    FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a WHERE c.oid = ANY(%(tables)s::oid[])
    UNION ALL
    SELECT c.oid::int8, t.attname::text, c.relowner, a.grantee, a.privilege_type, a.is_grantable
    FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid CROSS JOIN LATERAL aclexplode(t.attacl) AS a
    WHERE c.oid = ANY(%(tables)s::oid[]) AND NOT t.attisdropped
    UNION ALL
    SELECT 0, '', n.nspowner, a.grantee, a.privilege_type, a.is_grantable
    FROM pg_namespace AS n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
    WHERE n.oid = CAST(%(schema)s AS regnamespace)
) AS g
WHERE g.grantee <> g.owner GROUP BY 1, 2, 3
"""

_ROLES: Final = """
SELECT rolname::text, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolcanlogin
FROM pg_roles WHERE rolname = ANY(%(roles)s::text[])
"""

# What lets a role write, or read, around the ledger's grants and guards.  Other predefined roles only watch or disturb.
_POWERS: Final = (
    "pg_write_all_data",
    "pg_maintain",  # It locks and rewrites every table: MAINTAIN on one would be found among the grants.
    "pg_create_subscription",  # What is replicated into a table passes by ordinary triggers.
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_execute_server_program",
)

# The application may read everything; an auditor may not read keys.  Whoever may become a superuser may do everything.
_HARMFUL: Final = """(
    r.rolsuper OR r.rolname = ANY(%(powers)s::text[])
    OR r.rolname = 'pg_read_all_data' AND NOT pg_has_role(m.oid, CAST(%(app)s AS name), 'MEMBER')
)"""

# A superuser is a member of everything, which is said of it already.
_MEMBERSHIPS: Final = f"""
SELECT m.rolname::text, r.rolname::text
FROM pg_roles AS m CROSS JOIN pg_roles AS r
WHERE m.rolname IN (%(app)s, %(audit)s) AND NOT m.rolsuper AND m.oid <> r.oid
  AND (r.rolname = ANY(%(roles)s::text[]) OR {_HARMFUL})
  AND pg_has_role(m.oid, r.oid, 'MEMBER') ORDER BY 1, 2
"""

# Who logs in, and is more than one of these roles at once; what a role has itself is said of the role.
_LOGINS: Final = f"""
SELECT m.rolname::text, r.rolname::text,
       pg_has_role(m.oid, CAST(%(app)s AS name), 'MEMBER') OR pg_has_role(m.oid, CAST(%(audit)s AS name), 'MEMBER')
FROM pg_roles AS m CROSS JOIN pg_roles AS r
WHERE m.rolcanlogin AND NOT m.rolsuper AND m.rolname <> ALL(%(roles)s::text[])
  AND (r.rolname = %(owner)s OR {_HARMFUL})
  AND pg_has_role(m.oid, r.oid, 'MEMBER') ORDER BY 1, 2
"""

_DATABASE_OWNER: Final = """
SELECT d.datname::text, o.rolname::text FROM pg_database AS d JOIN pg_roles AS o ON o.oid = d.datdba
WHERE d.datname = current_database() AND NOT o.rolsuper
  AND (pg_has_role(o.oid, CAST(%(app)s AS name), 'MEMBER') OR pg_has_role(o.oid, CAST(%(audit)s AS name), 'MEMBER'))
"""

# Its owner has it as the owner.
_MAY_CREATE: Final = """
SELECT d.datname::text, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END
FROM pg_database AS d CROSS JOIN LATERAL aclexplode(d.datacl) AS a
WHERE d.datname = current_database() AND a.privilege_type = 'CREATE' AND a.grantee <> d.datdba
  AND (a.grantee = 0 OR EXISTS (
    SELECT FROM pg_roles AS m
    WHERE NOT m.rolsuper AND pg_has_role(m.oid, a.grantee, 'MEMBER')
      AND (pg_has_role(m.oid, CAST(%(app)s AS name), 'MEMBER') OR pg_has_role(m.oid, CAST(%(audit)s AS name), 'MEMBER'))
)) GROUP BY 1, 2 ORDER BY 2
"""

_SCHEMA_OWNER: Final = (
    "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE oid = CAST(%(schema)s AS regnamespace)"
)

_DEFAULTS: Final = """
SELECT pg_get_userbyid(d.defaclrole)::text,
       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END,
       string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type COLLATE "C")
FROM pg_default_acl AS d CROSS JOIN LATERAL aclexplode(d.defaclacl) AS a
WHERE d.defaclobjtype = 'r' AND a.grantee <> d.defaclrole
  AND (d.defaclnamespace = CAST(%(schema)s AS regnamespace)
       OR d.defaclnamespace = 0 AND pg_get_userbyid(d.defaclrole)::text = ANY(%(owners)s::text[]))
GROUP BY 1, 2 ORDER BY 1, 2
"""


class Roles(NamedTuple):
    """The three roles of a ledger, by their names."""

    owner: str
    app: str
    audit: str

    def said(self, role: str) -> str:
        """A role as the written grants name it: by what it is for, whatever its prefix."""
        return f"{{{_KINDS[self.index(role)]}}}" if role in self else role


def roles_of(prefix: str) -> Roles:
    """The roles with this prefix."""
    return Roles(*(f"{prefix}_{kind}" for kind in _KINDS))


def granted(connection: Connection, relations: Iterable[Relation], roles: Roles | None) -> Facts:
    """What others than the owner may do with the schema, with tables and with columns, as facts."""
    names = {relation.oid: relation.name for relation in relations}
    rows = connection.query(_GRANTED, {"tables": list(names), "schema": connection.schema})
    facts: Facts = {}
    for oid, column, grantee, privileges in rows:
        on = names[oid] + (f" ({column})" if column else "") if oid else SCHEMA
        facts[Place("grant", on, grantee if roles is None else roles.said(grantee))] = privileges
    return facts


class Rights:
    """The rights on one ledger, and what is wrong with them."""

    def __init__(
        self, connection: Connection, relations: list[Relation], prefix: str | None, known: Collection[str]
    ) -> None:
        """`prefix` is that of roles that must be there; without it they are looked for.  `known` may have grants."""
        self.connection = connection
        self.relations = relations
        self.known = known
        self.schema = {"schema": connection.schema}
        ((self.schema_owner,),) = connection.query(_SCHEMA_OWNER, self.schema)
        self.owner = next((relation.owner for relation in relations if relation.name == LOG), "")
        self.prefix = prefix
        self.named = self._roles(prefix)

    def judge(self, written: Facts, functions: list[tuple[str, str]], diagnosis: Diagnosis) -> None:
        """Find what is not as it must be; what is granted with roles is among `written`."""
        self._judge_presence(diagnosis)
        roles = self._present() or None
        self._judge_owners(functions, roles, diagnosis)
        self._judge_grants(written if roles else {}, roles, diagnosis)
        self._judge_defaults(diagnosis)
        if roles:
            self._judge_attributes(roles, diagnosis)
            self._judge_memberships(roles, diagnosis)
            self._judge_logins(roles, diagnosis)
            self._judge_database(roles, diagnosis)

    def _roles(self, prefix: str | None) -> Roles | None:
        if prefix is None and self.owner.endswith("_owner"):
            prefix = self.owner.removesuffix("_owner")
        return None if prefix is None else roles_of(prefix)

    def _present(self) -> Roles | None:
        if self.named is None:
            return None
        found = self.connection.query(_ROLES, {"roles": list(self.named)})
        return self.named if len(found) == len(self.named) else None

    def _judge_presence(self, diagnosis: Diagnosis) -> None:
        if self._present() is not None:
            return
        if self.prefix is not None:
            diagnosis.find(
                "role", self.prefix, "not all three roles with this prefix are there", self._again(self.prefix)
            )
        else:
            diagnosis.warn(
                "role",
                f"owner {self.owner}",
                "the application's tables belong to no role of the ledger's: whoever connects as their owner may take"
                " guards away",
                "`ledger migrate --roles` makes an owner that nobody logs in as, and roles for the rest.",
            )

    def _judge_owners(self, functions: list[tuple[str, str]], roles: Roles | None, diagnosis: Diagnosis) -> None:
        must = roles.owner if roles else self.owner
        owned = [("TABLE", relation.name, relation.owner) for relation in self.relations]
        owned += [("FUNCTION", name, owner) for name, owner in functions]
        for kind, name, owner in owned:
            if owner != must:
                where = f"{self.connection.schema}.{name if kind == 'FUNCTION' else quoted_name(name)}"
                advice = f"ALTER {kind} {where} OWNER TO {quoted_name(must)}."
                diagnosis.find("owner", f"{kind.lower()} {name}", f"it belongs to {owner}, and not to {must}", advice)
        diagnosis.count("owners", len(owned) + 1)
        if roles and self.schema_owner in (roles.app, roles.audit):
            diagnosis.find(
                "owner",
                "the schema",
                f"it belongs to {self.schema_owner}, who may drop what is in it",
                f"ALTER SCHEMA {self.connection.schema} OWNER TO whoever migrates.",
            )

    def _judge_grants(self, written: Facts, roles: Roles | None, diagnosis: Diagnosis) -> None:
        must = {place: says for place, says in written.items() if place.kind == "grant"}
        if roles and self.schema_owner == roles.owner:
            del must[Place("grant", SCHEMA, roles.said(roles.owner))]
        there = granted(self.connection, self.relations, roles)
        said = self._belonging_to_others(roles)
        for place in sorted({*must, *there}):
            role = self._name(place.name, roles)
            wanted, found = must.get(place, ""), there.get(place, "")
            allowed = role in self.known and not self._is_partition(place.table)
            if wanted == found or allowed or place.table.partition(" ")[0] in said:
                continue
            where = f"{place.table} to {role}"
            if not wanted:
                diagnosis.find("grant", where, f"{found} is granted, and must not be", self._revoke(place, role))
            elif not found:
                diagnosis.find("grant", where, f"{wanted} must be granted, and nothing is", self._again())
            else:
                problem = f"{found} is granted; it must be {wanted}"
                diagnosis.find("grant", where, problem, f"{self._revoke(place, role)} {self._again()}")
        diagnosis.count("grants", len({*must, *there}))

    def _judge_defaults(self, diagnosis: Diagnosis) -> None:
        owners = {"owners": sorted({self.owner, *(self.named[:1] if self.named else ())})}
        for role, grantee, privileges in self.connection.query(_DEFAULTS, self.schema | owners):
            if grantee in self.known:
                continue
            diagnosis.find(
                "default privileges",
                f"of {role} to {grantee}",
                f"{privileges} on every table that {role} makes from now on",
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {quoted_name(role)} IN SCHEMA {self.connection.schema}"
                f" REVOKE ALL ON TABLES FROM {_written(grantee)}; without IN SCHEMA if it was given without.",
            )

    def _judge_attributes(self, roles: Roles, diagnosis: Diagnosis) -> None:
        names = ("SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS", "LOGIN")
        for role, *attributes in self.connection.query(_ROLES, {"roles": list(roles)}):
            has = [name for name, set_ in zip(names, attributes, strict=True) if set_]
            # That somebody logs in as the application or the auditor is what these are for.
            for name in has:
                if name != "LOGIN" or role == roles.owner:
                    advice = f"ALTER ROLE {quoted_name(role)} NO{name}."
                    diagnosis.find("role", role, f"it has {name}", advice)
        diagnosis.count("roles", len(roles))

    def _judge_memberships(self, roles: Roles, diagnosis: Diagnosis) -> None:
        asked = roles._asdict() | {"roles": list(roles), "powers": list(_POWERS)}
        for member, role in self.connection.query(_MEMBERSHIPS, asked):
            advice = f"REVOKE {quoted_name(role)} FROM {quoted_name(member)}, or from whatever role it has that by."
            diagnosis.find("role", member, f"it may do what {role} may", advice)

    def _judge_logins(self, roles: Roles, diagnosis: Diagnosis) -> None:
        """Whoever serves must not be who may take guards away; whoever only migrates is known, or is pointed out."""
        asked = roles._asdict() | {"roles": list(roles), "powers": list(_POWERS)}
        for login, role, serves in self.connection.query(_LOGINS, asked):
            advice = f"REVOKE {quoted_name(role)} FROM {quoted_name(login)}, or from whatever role it has that by."
            if serves:
                problem = f"it logs in to use the ledger, and may do what {role} may"
                diagnosis.find("role", login, problem, advice)
            elif role == roles.owner and login not in self.known:
                problem = f"it logs in, and may take guards away as a member of {role}"
                diagnosis.warn("role", login, problem, f"{advice} Or name it as known, if it migrates.")

    def _judge_database(self, roles: Roles, diagnosis: Diagnosis) -> None:
        for database, owner in self.connection.query(_DATABASE_OWNER, roles._asdict()):
            if owner not in self.known:
                diagnosis.warn(
                    "owner",
                    "the database",
                    f"it belongs to {owner}, who uses the ledger and may drop it",
                    f"ALTER DATABASE {quoted_name(database)} OWNER TO whoever migrates.",
                )
        for database, grantee in self.connection.query(_MAY_CREATE, roles._asdict()):
            if grantee not in self.known:
                problem = "CREATE is granted: whoever uses the ledger may make schemas and extensions beside it"
                advice = f"REVOKE CREATE ON DATABASE {quoted_name(database)} FROM {_written(grantee)}."
                diagnosis.warn("grant", f"the database to {grantee}", problem, advice + _unless_known(grantee))

    def _belonging_to_others(self, roles: Roles | None) -> set[str]:
        """What has another owner, of which that was said; what is granted on it is the other's."""
        must = roles.owner if roles else self.owner
        odd = {relation.name for relation in self.relations if relation.owner != must}
        return odd | ({SCHEMA} if roles and self.schema_owner in (roles.app, roles.audit) else set())

    def _is_partition(self, name: str) -> bool:
        return any(relation.name == name and relation.partition_of for relation in self.relations)

    def _name(self, said: str, roles: Roles | None) -> str:
        kinds = {f"{{{kind}}}": name for kind, name in zip(_KINDS, roles or _KINDS, strict=True)}
        return kinds.get(said, said)

    def _revoke(self, place: Place, role: str) -> str:
        on = f"SCHEMA {self.connection.schema}"
        if place.table != SCHEMA:
            table, _, column = place.table.partition(" ")
            on = f"{self.connection.schema}.{quoted_name(table)}"
            if column:
                return f"REVOKE ALL {column} ON {on} FROM {_written(role)}."
        return f"REVOKE ALL ON {on} FROM {_written(role)}.{_unless_known(role)}"

    def _again(self, prefix: str | None = None) -> str:
        prefix = prefix or (self.named.owner.removesuffix("_owner") if self.named else "ledger")
        return f"Run `ledger migrate --roles --role-prefix {prefix}` again."


def _written(role: str) -> str:
    return role if role == PUBLIC else quoted_name(role)


def _unless_known(role: str) -> str:
    return "" if role == PUBLIC else " Or name it as known, if you granted it that."
