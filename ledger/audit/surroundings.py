"""What the server, its settings and other sessions do to a ledger, whatever its own tables are like."""

from __future__ import annotations

from typing import Final

from ledger.audit.diagnosis import Diagnosis
from ledger.storage.database import Connection, quoted_name

OLDEST: Final = 15
NEWEST: Final = 18
"""The oldest and the newest major version of PostgreSQL that the tests run on."""

_SERVER: Final = """
SELECT current_setting('server_version_num')::int4 / 10000, current_setting('server_encoding'),
       pg_is_in_recovery(), current_setting('synchronous_standby_names'),
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user), session_user::text
"""

_SETTINGS: Final = "SELECT name, setting, '', '' FROM pg_settings WHERE name = ANY(%(names)s::text[]) ORDER BY name"

# What other sessions begin with.  Only of roles that get at this schema, by themselves or by whatever they may become.
_PRESETS: Final = """
SELECT lower(split_part(c, '=', 1)), substr(c, strpos(c, '=') + 1),
       CASE WHEN r.rolname IS NOT NULL
            THEN ' for role ' || r.rolname || CASE WHEN d.datname IS NOT NULL THEN ' in this database' ELSE '' END
            WHEN d.datname IS NOT NULL THEN ' for this database' ELSE ' for all roles' END,
       CASE WHEN r.rolname IS NULL AND d.datname IS NOT NULL THEN format('ALTER DATABASE %%I', d.datname)
            ELSE concat_ws(' ', 'ALTER ROLE', coalesce(quote_ident(r.rolname), 'ALL'),
                           'IN DATABASE ' || quote_ident(d.datname)) END
FROM pg_db_role_setting AS s CROSS JOIN LATERAL unnest(s.setconfig) AS c
LEFT JOIN pg_roles AS r ON r.oid = s.setrole LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND lower(split_part(c, '=', 1)) = ANY(%(names)s::text[])
  AND (s.setrole = 0 OR EXISTS (
    SELECT FROM pg_roles AS u
    WHERE pg_has_role(s.setrole, u.oid, 'MEMBER')
      AND has_schema_privilege(u.oid, to_regnamespace(%(schema)s)::oid, 'USAGE')
)) ORDER BY 3, 1
"""

_OFF: Final = ("off", "false", "no", "0")
_ON: Final = ("on", "true", "yes", "1")

RISKS: Final = {
    ("fsync", "off"): "a crash of the machine may destroy the whole database",
    ("full_page_writes", "off"): "a crash of the machine may leave pages that are half written",
    ("synchronous_commit", "off"): "what was answered may be lost with a crash of the server",
    ("data_checksums", "off"): "a page that the disk changed is noticed by `ledger verify` only, and only in the log",
    ("zero_damaged_pages", "on"): "a damaged page is emptied without a word",
    ("ignore_checksum_failure", "on"): "a damaged page is read as if it were sound",
}
"""Settings that are an operator's choice, and what each costs."""

_RISKS_OF_STANDBYS: Final = {
    ("synchronous_commit", "local"): "a commit does not wait for the synchronous standbys: a failover may lose it",
}

# Only of roles that get at this schema, by themselves or by whatever role they may become.
_MAY_UNGUARD: Final = """
SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END,
       string_agg(DISTINCT a.privilege_type, ', ')
FROM pg_parameter_acl AS p CROSS JOIN LATERAL aclexplode(p.paracl) AS a
WHERE p.parname = 'session_replication_role' AND (a.grantee = 0 OR EXISTS (
    SELECT FROM pg_roles AS m
    WHERE NOT m.rolsuper AND pg_has_role(m.oid, a.grantee, 'MEMBER') AND EXISTS (
        SELECT FROM pg_roles AS u
        WHERE NOT u.rolsuper AND pg_has_role(m.oid, u.oid, 'MEMBER')
          AND has_schema_privilege(u.oid, to_regnamespace(%(schema)s)::oid, 'USAGE')
    )
)) AND a.grantee NOT IN (SELECT oid FROM pg_roles WHERE rolsuper)
GROUP BY 1 ORDER BY 1
"""

_EVENT_TRIGGERS: Final = """
SELECT t.evtname::text, t.evtevent::text, t.evtfoid::regprocedure::text FROM pg_event_trigger AS t
WHERE t.evtenabled <> 'D' AND NOT EXISTS (
    SELECT FROM pg_depend AS d
    WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = t.oid AND d.deptype = 'e'
) ORDER BY 1
"""

_SUBSCRIBED: Final = """
SELECT c.relname::text FROM pg_subscription_rel AS s JOIN pg_class AS c ON c.oid = s.srrelid
WHERE c.relnamespace = to_regnamespace(%(schema)s) ORDER BY 1
"""

_PREPARED: Final = (
    "SELECT gid::text, prepared::text FROM pg_prepared_xacts WHERE database = current_database() ORDER BY 1"
)


def look_around(connection: Connection, diagnosis: Diagnosis) -> None:
    """Look at the server and its settings, in the caller's transaction."""
    ((version, encoding, replica, standbys, superuser, user),) = connection.query(_SERVER)
    _judge_version(version, diagnosis)
    if encoding != "UTF8":
        diagnosis.find(
            "server",
            "encoding",
            f"it is {encoding}, in which not every text can be kept",
            "Move to a database in UTF8.",
        )
    if superuser:
        diagnosis.warn(
            "role",
            user,
            "you are connected as a superuser, whom no grant holds back",
            "Let the application log in as a member of the ledger's app role, and auditors of the audit role.",
        )
    _judge_settings(connection, bool(standbys) and not replica, diagnosis)
    _judge_subscriptions(connection, diagnosis)
    if version >= OLDEST:
        _judge_who_may_unguard(connection, diagnosis)
    _judge_event_triggers(connection, diagnosis)
    for gid, since in connection.query(_PREPARED):
        diagnosis.warn(
            "transaction",
            gid,
            f"it has been prepared since {since}, and holds its locks until somebody ends it",
            f"COMMIT PREPARED '{gid}' or ROLLBACK PREPARED '{gid}', whichever whoever prepared it wants.",
        )


def _judge_version(version: int, diagnosis: Diagnosis) -> None:
    if version < OLDEST:
        problem = f"PostgreSQL {version} is older than any that the ledger works on"
        diagnosis.find("server", "version", problem, f"Upgrade to {OLDEST} or later.")
    elif version > NEWEST:
        problem = f"PostgreSQL {version} is newer than any that this release was tested on, up to {NEWEST}"
        diagnosis.warn("server", "version", problem, "Look for a newer release of ledger.")


def _judge_settings(connection: Connection, standbys: bool, diagnosis: Diagnosis) -> None:
    """Those of this session, and those that others begin with: of a role, of the database, or of a role in it."""
    risks = RISKS | (_RISKS_OF_STANDBYS if standbys else {})
    names = sorted({"session_replication_role", *(name for name, _ in risks)})
    asked = {"names": names, "schema": connection.schema}
    found = connection.query(_SETTINGS, asked) + connection.query(_PRESETS, asked)
    for name, value, whose, statement in found:
        place, meant = f"{name} = {value}{whose}", _spelt_out(value)
        reset = f"{statement} RESET {name}" if statement else ""
        if name == "session_replication_role" and meant != "origin":
            problem = "guards that are ordinary triggers do not fire in a replica's role"
            advice = f"{reset or 'Reset it'}, and run `ledger verify`: what came meanwhile was not checked."
            diagnosis.find("setting", place, problem, advice)
        elif (name, meant) in risks:
            diagnosis.warn("setting", place, risks[name, meant], _choice(name, reset))
    diagnosis.count("settings", len(found))


def _spelt_out(value: str) -> str:
    """What a role begins with is kept as somebody wrote it, in any of the ways to write on and off."""
    for words in (_OFF, _ON):
        if any(word.startswith(value.lower()) for word in words):
            return words[0]
    return value.lower()


def _choice(name: str, reset: str) -> str:
    if name == "data_checksums":
        return "Stop the server, and run pg_checksums --enable."
    sound = "off" if (name, "on") in RISKS else "on"
    return f"{reset or f'Set it to {sound}'}, unless this data may be lost."


def _judge_subscriptions(connection: Connection, diagnosis: Diagnosis) -> None:
    """Ordinary triggers do not fire for what a subscription brings."""
    for table in [row[0] for row in connection.query(_SUBSCRIBED, {"schema": connection.schema})]:
        diagnosis.find(
            "subscription",
            f"table {table}",
            "rows come from another server by logical replication, past the guards and the ledger",
            "Drop the subscription, and run `ledger verify`; a standby by physical replication is a sound copy.",
        )


def _judge_who_may_unguard(connection: Connection, diagnosis: Diagnosis) -> None:
    for role, privileges in connection.query(_MAY_UNGUARD, {"schema": connection.schema}):
        diagnosis.find(
            "grant",
            f"parameter session_replication_role to {role}",
            f"{privileges} is granted: it may put to rest guards that are ordinary triggers, and foreign keys",
            "REVOKE ALL ON PARAMETER session_replication_role FROM"
            f" {role if role == 'PUBLIC' else quoted_name(role)}, and run `ledger verify`.",
        )


def _judge_event_triggers(connection: Connection, diagnosis: Diagnosis) -> None:
    """A superuser made it, as one of an extension that is left out here: a choice, which a migration may fail by."""
    for name, event, function in connection.query(_EVENT_TRIGGERS):
        diagnosis.warn(
            "event trigger",
            f"event trigger {name}",
            f"it calls {function} at {event}, and may refuse or undo what a migration does",
            f"DROP EVENT TRIGGER {quoted_name(name)}, unless you know what it does.",
        )
