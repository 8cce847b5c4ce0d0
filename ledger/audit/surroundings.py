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

_SETTINGS: Final = "SELECT s, current_setting(s, true) FROM unnest(%(names)s::text[]) AS s"

RISKS: Final = {
    ("fsync", "off"): "a crash of the machine may destroy the whole database",
    ("full_page_writes", "off"): "a crash of the machine may leave pages that are half written",
    ("synchronous_commit", "off"): "what was answered may be lost with a crash of the server",
    ("data_checksums", "off"): "a page that the disk changed is noticed by `ledger verify` only, and only in the log",
    ("zero_damaged_pages", "on"): "a damaged page is emptied without a word",
    ("ignore_checksum_failure", "on"): "a damaged page is read as if it were sound",
}
"""Settings that are an operator's choice, and what each costs."""

_UNGUARDED: Final = """
SELECT CASE s.setrole WHEN 0 THEN 'this database' ELSE 'role ' || pg_get_userbyid(s.setrole) END
FROM pg_db_role_setting AS s CROSS JOIN LATERAL unnest(s.setconfig) AS c
WHERE (s.setdatabase = 0 OR s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND lower(c) LIKE 'session\\_replication\\_role=%%' AND lower(c) NOT LIKE '%%=origin' ORDER BY 1
"""

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
    settings = _settings(connection)
    _judge_settings(settings, bool(standbys) and not replica, diagnosis)
    _judge_guards_at_rest(connection, settings["session_replication_role"], diagnosis)
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


def _settings(connection: Connection) -> dict[str, str | None]:
    names = ["session_replication_role", "synchronous_commit", *(name for name, _ in RISKS)]
    return dict(connection.query(_SETTINGS, {"names": sorted(set(names))}))


def _judge_settings(settings: dict[str, str | None], standbys: bool, diagnosis: Diagnosis) -> None:
    for (name, value), price in RISKS.items():
        if settings[name] == value:
            other = "off" if value == "on" else "on"
            advice = f"Set it to {other}, unless this data may be lost."
            if name == "data_checksums":
                advice = "Stop the server, and run pg_checksums --enable."
            diagnosis.warn("setting", f"{name} = {value}", price, advice)
    if standbys and settings["synchronous_commit"] == "local":
        diagnosis.warn(
            "setting",
            "synchronous_commit = local",
            "there are synchronous standbys, and a commit does not wait for them",
            "Set it to on, or what was answered may be missing after a failover.",
        )
    diagnosis.count("settings", len(settings))


def _judge_guards_at_rest(connection: Connection, role: str | None, diagnosis: Diagnosis) -> None:
    """Ordinary triggers do not fire in a replica's role, nor for what a subscription brings."""
    advice = "Reset it, and run `ledger verify`: what came meanwhile was not checked."
    problem = "guards that are ordinary triggers do not fire in a replica's role"
    if role != "origin":
        diagnosis.find("setting", f"session_replication_role = {role}", problem, advice)
    for where in [row[0] for row in connection.query(_UNGUARDED)]:
        diagnosis.find("setting", f"session_replication_role for {where}", problem, advice)
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
