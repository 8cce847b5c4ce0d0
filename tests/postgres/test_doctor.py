"""The doctor: what somebody did to the schema, to roles or to grants is named, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dumps import programs_of, run
from sqlalchemy import URL, make_url
from write_catalogue import made_by_migrations

from ledger import Diagnosis, Ledger
from ledger.storage.catalogue import written
from ledger.storage.migrations import known_revisions
from ledger.storage.tables import APPEND_ONLY, VERSION_TABLE, metadata

Psql = psycopg.Connection[Any]
MakeDatabase = Callable[[], str]

PARTITIONS = 4
ENABLES = re.compile(r"ALTER TABLE \S+ ENABLE (?:ALWAYS )?TRIGGER [^\s.;]+")

_prefixes = (f"ledger_doctor_{os.getpid()}_{number}" for number in count(1))


def found(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """Of each finding its kind and place."""
    assert diagnosis.ok == (not diagnosis.findings)
    assert all(symptom.problem and symptom.advice.endswith(".") for symptom in diagnosis.findings)
    return [(symptom.kind, symptom.place) for symptom in diagnosis.findings]


@pytest.fixture
def prefix(psql: Psql) -> Iterator[str]:
    """A prefix for this test's own roles; they are dropped later than the databases that are asked for behind it."""
    prefix = next(_prefixes)
    yield prefix
    for role in ("owner", "app", "audit", "other", "login"):
        if psql.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (f"{prefix}_{role}",)).fetchone():
            psql.execute(f"REASSIGN OWNED BY {prefix}_{role} TO CURRENT_USER".encode())
            psql.execute(f"DROP OWNED BY {prefix}_{role}".encode())
            psql.execute(f"DROP ROLE {prefix}_{role}".encode())


@pytest.fixture
def divided(make_database: MakeDatabase) -> Iterator[Ledger]:
    """A ledger with money in it, whose log is in partitions."""
    with Ledger.connect(make_database()) as ledger:
        ledger.migrate(partitions=PARTITIONS)
        ledger.open_account("world", asset="USD", type="equity")
        ledger.open_account("alice", asset="USD", type="liability")
        ledger.transfer("1 USD", debit="world", credit="alice")
        yield ledger


@pytest.fixture
def divided_psql(divided: Ledger) -> Iterator[Psql]:
    """A superuser at the database whose log is in partitions."""
    address = divided.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True, options="-c search_path=ledger") as connection:
        yield connection


# What must be


def test_what_is_written_down_is_what_the_migrations_make(prefix: str, make_database: MakeDatabase) -> None:
    """What is compared with is what the migrations make; if not, run `python tests/postgres/write_catalogue.py`."""
    made = made_by_migrations(make_database(), prefix)
    expected = written()
    assert expected.revision == made.revision == known_revisions()[0]
    assert expected.facts == made.facts


def test_everything_that_the_code_defines_is_written_down() -> None:
    """Each table, column and index of `tables.py` and each guard of an append-only table is among the facts."""
    places = set(written().facts)
    tables = {table.name for table in metadata.tables.values()}
    assert {place.table for place in places if place.kind == "table"} == tables | {VERSION_TABLE}
    for table in metadata.tables.values():
        columns = {place.name for place in places if place.kind == "column" and place.table == table.name}
        assert columns == {column.name for column in table.columns}
        indexes = {place.name for place in places if place.kind == "index" and place.table == table.name}
        assert {index.name for index in table.indexes} <= indexes
    for table_name in APPEND_ONLY:
        assert [
            says.partition(": ")[0]
            for place, says in written().facts.items()
            if (place.kind, place.table, place.name) == ("trigger", table_name, "append_only")
        ] == ["always"]


def test_nothing_is_found_where_nothing_was_done(funded: Ledger, divided: Ledger) -> None:
    """As it was migrated a ledger has no finding, in one table or in partitions; it is said what was looked at."""
    whole, parts = funded.doctor(), divided.doctor()
    assert found(whole) == found(parts) == []
    assert whole.checked["tables"] == len(metadata.tables) + 1
    assert parts.checked["tables"] == whole.checked["tables"] + PARTITIONS
    assert parts.checked["triggers"] == whole.checked["triggers"] + 2 * PARTITIONS
    assert parts.checked["partitions"] == PARTITIONS
    assert {"columns", "constraints", "indexes", "functions", "owners", "settings", "rows"} <= set(whole.checked)


def test_schema_with_an_odd_name(prefix: str, make_database: MakeDatabase) -> None:
    """A schema whose name must be quoted is compared as any other, and its damage is named."""
    url = make_database()
    with Ledger.connect(url, schema='Bücher "1"') as ledger, psycopg.connect(url, autocommit=True) as psql:
        ledger.migrate(partitions=2)
        assert found(ledger.doctor()) == []
        ledger.create_roles(prefix)
        assert found(ledger.doctor()) == []
        psql.execute('ALTER TABLE "Bücher ""1""".feed DISABLE TRIGGER append_only')
        (symptom,) = ledger.doctor().findings
        assert symptom.place == "trigger append_only of feed"
        psql.execute(symptom.advice.partition("; then ")[2].partition(". ")[0].encode())
        assert found(ledger.doctor()) == []


# What somebody did

DAMAGE: dict[str, tuple[str, str, str]] = {
    "guard dropped": ("DROP TRIGGER append_only ON transactions", "trigger", "append_only of transactions"),
    "guard disabled": ("ALTER TABLE events DISABLE TRIGGER check_appended", "trigger", "check_appended of events"),
    "guard that does not fire for a replica": (
        "ALTER TABLE events ENABLE TRIGGER append_only",
        "trigger",
        "append_only of events",
    ),
    "guard that fires for a replica only": (
        "ALTER TABLE feed ENABLE REPLICA TRIGGER append_only",
        "trigger",
        "append_only of feed",
    ),
    "guard of fewer things": (
        (
            "DROP TRIGGER append_only ON feed; CREATE TRIGGER append_only BEFORE TRUNCATE ON feed"
            " EXECUTE FUNCTION refuse_change(); ALTER TABLE feed ENABLE ALWAYS TRIGGER append_only"
        ),
        "trigger",
        "append_only of feed",
    ),
    "guard of a key disabled": (
        "ALTER TABLE subject_keys DISABLE TRIGGER check_destroyed",
        "trigger",
        "check_destroyed of subject_keys",
    ),
    "trigger added": (
        (
            "CREATE TRIGGER odd BEFORE UPDATE ON balances FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        ),
        "trigger",
        "odd of balances",
    ),
    "body of a guard replaced": (
        (
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog"
            " AS 'BEGIN RETURN NULL; END'"
        ),
        "function",
        "refuse_change()",
    ),
    "search path of a guard": ("ALTER FUNCTION check_appended() RESET search_path", "function", "check_appended()"),
    "guard with its owner's rights": (
        "ALTER FUNCTION check_appended() SECURITY DEFINER",
        "function",
        "check_appended()",
    ),
    "guard whose answer is kept": ("ALTER FUNCTION check_appended() IMMUTABLE", "function", "check_appended()"),
    "guard that sees no more than a query": ("ALTER FUNCTION check_appended() STABLE", "function", "check_appended()"),
    "guard that is not called for null": ("ALTER FUNCTION check_clock() STRICT", "function", "check_clock()"),
    "guard that is said to leak nothing": ("ALTER FUNCTION check_known() LEAKPROOF", "function", "check_known()"),
    "guard for workers": ("ALTER FUNCTION check_stamped() PARALLEL SAFE", "function", "check_stamped()"),
    "guard for the leader of workers": (
        "ALTER FUNCTION check_stamped() PARALLEL RESTRICTED",
        "function",
        "check_stamped()",
    ),
    "settings of a guard": ("ALTER FUNCTION check_appended() SET work_mem = '64kB'", "function", "check_appended()"),
    "function added": (
        "CREATE FUNCTION extra(integer) RETURNS integer LANGUAGE sql AS 'SELECT $1'",
        "function",
        "extra(integer)",
    ),
    "constraint dropped": (
        "ALTER TABLE events DROP CONSTRAINT events_hash_size",
        "constraint",
        "events_hash_size of events",
    ),
    "constraint not validated": (
        (
            "ALTER TABLE events DROP CONSTRAINT events_version_positive, ADD CONSTRAINT events_version_positive"
            " CHECK (version >= 1) NOT VALID"
        ),
        "constraint",
        "events_version_positive of events",
    ),
    "constraint that says less": (
        (
            "ALTER TABLE balances DROP CONSTRAINT balances_version_positive,"
            " ADD CONSTRAINT balances_version_positive CHECK (version >= 0)"
        ),
        "constraint",
        "balances_version_positive of balances",
    ),
    "constraint added": ("ALTER TABLE events ADD CONSTRAINT few CHECK (version < 9)", "constraint", "few of events"),
    "index dropped": ("DROP INDEX events_streams", "index", "events_streams of events"),
    "index not valid": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'events_streams'::regclass",
        "index",
        "events_streams of events",
    ),
    "index of something else": (
        "DROP INDEX outbox_order; CREATE INDEX outbox_order ON outbox (batch_id, recorded_at)",
        "index",
        "outbox_order of outbox",
    ),
    "unique index added": ("CREATE UNIQUE INDEX once ON outbox (recorded_at)", "index", "once of outbox"),
    "rule": (
        "CREATE RULE quiet AS ON INSERT TO projection_repairs DO INSTEAD NOTHING",
        "rule",
        "quiet of projection_repairs",
    ),
    "policy": ("CREATE POLICY hidden ON events USING (stream <> 'alice')", "policy", "hidden of events"),
    "row security": ("ALTER TABLE events ENABLE ROW LEVEL SECURITY", "table", "events"),
    "type of a column": ("ALTER TABLE accounts ALTER COLUMN scale TYPE integer", "column", "scale of accounts"),
    "precision of a column": ("ALTER TABLE holds ALTER COLUMN captured TYPE numeric", "column", "captured of holds"),
    "collation of a column": (
        'ALTER TABLE leases ALTER COLUMN owner TYPE text COLLATE "POSIX"',
        "column",
        "owner of leases",
    ),
    "column that may be null": ("ALTER TABLE events ALTER COLUMN payload DROP NOT NULL", "column", "payload of events"),
    "default": ("ALTER TABLE accounts ALTER COLUMN stripes DROP DEFAULT", "column", "stripes of accounts"),
    "column added": ("ALTER TABLE events ADD COLUMN note text", "column", "note of events"),
    "column dropped": ("ALTER TABLE accounts DROP COLUMN metadata", "column", "metadata of accounts"),
    "table not logged": ("ALTER TABLE balances SET UNLOGGED", "table", "balances"),
    "table dropped": ("DROP TABLE inbox_ids", "table", "inbox_ids"),
    "table added": ("CREATE TABLE copy AS SELECT * FROM events", "table", "copy"),
    "view": ("CREATE VIEW seen AS SELECT * FROM events", "table", "seen"),
    "heir elsewhere": ("CREATE TABLE public.heir () INHERITS (ledger.transactions)", "table", "public.heir"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(funded: Ledger, psql: Psql, damage: str) -> None:
    """Whatever a superuser did to the schema is the one finding, with its place."""
    statements, kind, place = DAMAGE[damage]
    assert found(funded.doctor()) == []
    psql.execute(statements.encode())
    assert found(funded.doctor()) == [(kind, f"{kind} {place}")]


REPAIRED_BY_ADVICE = {
    "guard dropped": r"CREATE TRIGGER[^;]*; ALTER TABLE[^.]*\.[^.]*(?=\.$)",
    "guard disabled": r"ALTER TABLE .*(?=\.$)",
    "guard that does not fire for a replica": r"ALTER TABLE .*(?=\.$)",
    "guard of fewer things": r"DROP TRIGGER .*(?=\.$)",
    "constraint dropped": r"ALTER TABLE .*(?=\.$)",
    "constraint not validated": r"ALTER TABLE .*(?=\.$)",
    "constraint that says less": r"ALTER TABLE .*(?=\.$)",
    "constraint added": r"ALTER TABLE .*(?=\.$)",
    "index dropped": r"CREATE INDEX .*(?=\.$)",
    "index not valid": r"REINDEX INDEX .*(?=\.$)",
    "index of something else": r"DROP INDEX .*(?=\.$)",
    "rule": r"DROP RULE [^,]*",
    "policy": r"DROP POLICY [^,]*",
    "trigger added": r"DROP TRIGGER [^,]*",
    "row security": r"ALTER TABLE .*(?=\.$)",
    "table not logged": r"ALTER TABLE [^;]*",
    "column added": r"ALTER TABLE [^:]*",
    "function added": r"DROP FUNCTION [^,]*\)",
}


@pytest.mark.parametrize("damage", REPAIRED_BY_ADVICE)
def test_advice_repairs(funded: Ledger, psql: Psql, damage: str) -> None:
    """Where SQL can put it right, what the advice says does, and the doctor finds nothing any more."""
    psql.execute(DAMAGE[damage][0].encode())
    (symptom,) = funded.doctor().findings
    statements = re.search(REPAIRED_BY_ADVICE[damage], symptom.advice)
    assert statements, symptom.advice
    psql.execute(statements[0].encode())
    assert found(funded.doctor()) == []
    assert funded.verify().ok


@pytest.mark.parametrize("table", ["identity", "periods"])
def test_row_that_a_restore_left_behind(ledger: Ledger, psql: Psql, table: str) -> None:
    """The two tables with one row each are looked into: without it the ledger is no ledger."""
    psql.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
    psql.execute(f"DELETE FROM {table}".encode())
    if table == "identity":
        psql.execute("ALTER TABLE identity ENABLE ALWAYS TRIGGER append_only")
    assert found(ledger.doctor()) == [("row", f"table {table}")]


CHOICES: dict[str, tuple[str, str]] = {
    "index added": ("CREATE INDEX events_by_time ON events (recorded_at)", "index events_by_time of events"),
    "fill factor": ("ALTER TABLE balances SET (fillfactor = 90)", "options balances"),
    "autovacuum": ("ALTER TABLE events SET (autovacuum_enabled = off)", "options events"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_what_an_operator_may_choose_is_a_warning(ledger: Ledger, psql: Psql, choice: str) -> None:
    """An index of one's own and how tables are kept have their price, and are no finding."""
    before = [symptom.place for symptom in ledger.doctor().warnings]
    statement, place = CHOICES[choice]
    psql.execute(statement.encode())
    diagnosis = ledger.doctor()
    assert diagnosis.ok
    assert sorted(symptom.place for symptom in diagnosis.warnings) == sorted([*before, place])


def test_dangerous_settings_are_warnings(ledger: Ledger, psql: Psql) -> None:
    """Settings that may lose data are said, with their price; so is whoever no grant holds back."""
    expected = {
        f"{name} = {value}"
        for name, value in psql.execute(
            "SELECT name, setting FROM pg_settings WHERE (name, setting) IN"
            " (('fsync', 'off'), ('full_page_writes', 'off'), ('data_checksums', 'off'))"
        ).fetchall()
    }
    psql.execute(f"ALTER DATABASE {_quoted(psql.info.dbname)} SET synchronous_commit = off".encode())
    diagnosis = ledger.doctor()
    assert diagnosis.ok
    settings = {symptom.place for symptom in diagnosis.warnings if symptom.kind == "setting"}
    assert settings == expected | {"synchronous_commit = off", "synchronous_commit = off for this database"}
    assert [s.place for s in diagnosis.warnings if "superuser" in s.problem] == [psql.info.user]


def _quoted(name: str) -> str:
    return f'"{name}"'


def test_guards_that_are_put_to_rest_by_a_setting(ledger_url: str, psql: Psql) -> None:
    """Whoever begins in a replica's role passes by the ordinary guards: of a database and of a session it is found."""
    psql.execute(f"ALTER DATABASE {_quoted(psql.info.dbname)} SET session_replication_role = replica".encode())
    with Ledger.connect(ledger_url) as ledger:
        assert found(ledger.doctor()) == [
            ("setting", "session_replication_role = replica"),
            ("setting", "session_replication_role = replica for this database"),
        ]


PRESETS: dict[str, tuple[str, str]] = {
    "of the application": ("ALTER ROLE {app} SET synchronous_commit = off", "synchronous_commit = off for role {app}"),
    "of a login": (
        "ALTER ROLE {login} SET synchronous_commit = 'FALSE'",
        "synchronous_commit = FALSE for role {login}",
    ),
    "of a login in this database": (
        "ALTER ROLE {login} IN DATABASE {database} SET synchronous_commit = 0",
        "synchronous_commit = 0 for role {login} in this database",
    ),
    "of the database": (
        "ALTER DATABASE {database} SET synchronous_commit = off",
        "synchronous_commit = off for this database",
    ),
    "of a login that reads damaged pages": (
        "ALTER ROLE {login} SET zero_damaged_pages = t",
        "zero_damaged_pages = t for role {login}",
    ),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_what_others_begin_with_is_looked_at(funded: Ledger, psql: Psql, prefix: str, preset: str) -> None:
    """A setting that loses data is a warning for whichever session begins with it, and the advice takes it back."""
    _, app, _ = funded.create_roles(prefix)
    login = f"{prefix}_login"
    psql.execute(f"CREATE ROLE {login} LOGIN IN ROLE {app}".encode())
    before = funded.doctor()
    statement, place = PRESETS[preset]
    names = {"app": app, "login": login}
    psql.execute(statement.format(**names, database=_quoted(psql.info.dbname)).encode())
    diagnosis = funded.doctor()
    assert found(diagnosis) == []
    (more,) = [symptom for symptom in diagnosis.warnings if symptom not in before.warnings]
    assert (more.kind, more.place) == ("setting", place.format(**names))
    psql.execute(more.advice.partition(", unless")[0].encode())
    assert funded.doctor() == before


def test_role_that_begins_in_a_replicas_role(funded: Ledger, psql: Psql, prefix: str) -> None:
    """It is a finding of whoever gets at the ledger, by way of another role too; of somebody else it is nothing."""
    _, app, _ = funded.create_roles(prefix)
    psql.execute(f"CREATE ROLE {prefix}_other; CREATE ROLE {prefix}_login LOGIN".encode())
    for setting in ("session_replication_role = replica", "synchronous_commit = off"):
        psql.execute(f"ALTER ROLE {prefix}_login SET {setting}".encode())
    before = funded.doctor()
    assert found(before) == []
    psql.execute(f"GRANT {app} TO {prefix}_other; GRANT {prefix}_other TO {prefix}_login".encode())
    diagnosis = funded.doctor()
    assert found(diagnosis) == [("setting", f"session_replication_role = replica for role {prefix}_login")]
    assert diagnosis.findings[0].advice.startswith(f"ALTER ROLE {prefix}_login RESET session_replication_role, and")
    assert [symptom.place for symptom in diagnosis.warnings if symptom not in before.warnings] == [
        f"synchronous_commit = off for role {prefix}_login"
    ]


def test_rows_from_another_server(ledger: Ledger, psql: Psql) -> None:
    """A subscription that would bring rows past the guards is found, with its tables."""
    psql.execute("CREATE SUBSCRIPTION beside CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false)")
    try:
        row = psql.execute("SELECT oid FROM pg_subscription WHERE subname = 'beside'").fetchone()
        assert row is not None
        psql.execute(
            "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)"
            " VALUES (%s, 'ledger.events'::regclass, 'r')",
            row,
        )
        assert found(ledger.doctor()) == [("subscription", "table events")]
    finally:
        psql.execute("ALTER SUBSCRIPTION beside SET (slot_name = NONE)")
        psql.execute("DROP SUBSCRIPTION beside")


# Revisions


def test_other_revisions_are_named_and_not_compared(ledger: Ledger, psql: Psql, make_database: MakeDatabase) -> None:
    """Older, newer and not at all: the one finding says which, and what to do; tables are not compared."""
    for revision, advice in (("0003", "Run `ledger migrate`."), ("9999", "Install a newer release of ledger.")):
        psql.execute(f"UPDATE schema_version SET version_num = '{revision}'".encode())
        diagnosis = ledger.doctor()
        assert found(diagnosis) == [("schema", "revision")]
        assert diagnosis.findings[0].advice.startswith(advice)
        assert "tables" not in diagnosis.checked
    with Ledger.connect(make_database()) as nothing:
        assert found(nothing.doctor()) == [("schema", "revision")]


# The log in partitions

PARTITION_DAMAGE: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "guard dropped": (
        "DROP TRIGGER check_appended ON events_0002",
        [("trigger", "trigger check_appended of events_0002")],
    ),
    "guard disabled": (
        "ALTER TABLE events_0001 DISABLE TRIGGER append_only",
        [("trigger", "trigger append_only of events_0001")],
    ),
    "guard of the whole disabled": (
        "ALTER TABLE ONLY events DISABLE TRIGGER check_appended",
        [("trigger", "trigger check_appended of events")],
    ),
    "detached": (
        "ALTER TABLE events DETACH PARTITION events_0003",
        [("table", "table events_0003"), ("partition", "table events")],
    ),
    "made anew without guards": (
        "DROP TABLE events_0003; CREATE TABLE events_0003 PARTITION OF events FOR VALUES WITH (MODULUS 4, REMAINDER 3)",
        [("trigger", "trigger append_only of events_0003"), ("trigger", "trigger check_appended of events_0003")],
    ),
    "moved to another schema": (
        "ALTER TABLE events_0001 SET SCHEMA public; ALTER TABLE public.events_0001 DISABLE TRIGGER append_only",
        [("trigger", "trigger append_only of public.events_0001")],
    ),
    "not logged": ("ALTER TABLE events_0000 SET UNLOGGED", [("table", "table events_0000")]),
    "constraint of its own": (
        "ALTER TABLE events_0000 ADD CONSTRAINT few CHECK (version < 9)",
        [("constraint", "constraint few of events_0000")],
    ),
    "granted": ("GRANT SELECT ON events_0000 TO PUBLIC", [("grant", "events_0000 to PUBLIC")]),
    "all dropped": (
        "DROP TABLE events_0000, events_0001, events_0002, events_0003",
        [("partition", "table events")],
    ),
}


@pytest.mark.parametrize("damage", PARTITION_DAMAGE)
def test_damage_to_a_partition_is_named(divided: Ledger, divided_psql: Psql, damage: str) -> None:
    """A partition is guarded, kept and granted as the whole is, or it is found; and all of them make up the whole."""
    statements, places = PARTITION_DAMAGE[damage]
    divided_psql.execute(statements.encode())
    assert found(divided.doctor()) == places


# Roles and grants

RIGHTS_DAMAGE: dict[str, tuple[str, str, str]] = {
    "more for the application": ("GRANT UPDATE ON events TO {app}", "grant", "events to {app}"),
    "less for the application": ("REVOKE INSERT ON events FROM {app}", "grant", "events to {app}"),
    "nothing for the auditor": ("REVOKE ALL ON feed FROM {audit}", "grant", "feed to {audit}"),
    "a grant to be passed on": ("GRANT SELECT ON feed TO {audit} WITH GRANT OPTION", "grant", "feed to {audit}"),
    "keys for the auditor": ("GRANT SELECT (key) ON subject_keys TO {audit}", "grant", "subject_keys (key) to {audit}"),
    "a column for the application": (
        "GRANT UPDATE (amount) ON events TO {app}",
        "grant",
        "events (amount) to {app}",
    ),
    "something for everybody": ("GRANT SELECT ON balances TO PUBLIC", "grant", "balances to PUBLIC"),
    "something for somebody else": ("GRANT DELETE ON outbox TO {other}", "grant", "outbox to {other}"),
    "schema for everybody": ("GRANT CREATE ON SCHEMA ledger TO PUBLIC", "grant", "SCHEMA to PUBLIC"),
    "table given away": ("ALTER TABLE balances OWNER TO {app}", "owner", "table balances"),
    "guard given away": ("ALTER FUNCTION refuse_change() OWNER TO {app}", "owner", "function refuse_change()"),
    "schema given away": ("ALTER SCHEMA ledger OWNER TO {app}", "owner", "the schema"),
    "owner who logs in": ("ALTER ROLE {owner} LOGIN", "role", "{owner}"),
    "application as superuser": ("ALTER ROLE {app} SUPERUSER", "role", "{app}"),
    "application that makes roles": ("ALTER ROLE {app} CREATEROLE", "role", "{app}"),
    "auditor past row security": ("ALTER ROLE {audit} BYPASSRLS", "role", "{audit}"),
    "application as owner": ("GRANT {owner} TO {app}", "role", "{app}"),
    "auditor as application": ("GRANT {app} TO {audit}", "role", "{audit}"),
    "application that writes everything": ("GRANT pg_write_all_data TO {app}", "role", "{app}"),
    "login of the application that owns": ("GRANT {app}, {owner} TO {login}", "role", "{login}"),
    "login of the auditor that owns by way of another": (
        "GRANT {owner} TO {other}; GRANT {audit}, {other} TO {login}",
        "role",
        "{login}",
    ),
    "login of the application that writes everything": (
        "GRANT {app} TO {other}; GRANT {other}, pg_write_all_data TO {login}",
        "role",
        "{login}",
    ),
    "application that maintains every table": ("GRANT pg_maintain TO {app}", "role", "{app}"),
    "application that subscribes": ("GRANT pg_create_subscription TO {app}", "role", "{app}"),
    "application that reads the server's files": ("GRANT pg_read_server_files TO {app}", "role", "{app}"),
    "auditor who reads keys": ("GRANT pg_read_all_data TO {audit}", "role", "{audit}"),
    "login of the auditor that reads keys by way of another": (
        "GRANT pg_read_all_data TO {other}; GRANT {audit}, {other} TO {login}",
        "role",
        "{login}",
    ),
    "application that may become a superuser": (
        "ALTER ROLE {other} SUPERUSER; GRANT {other} TO {app}",
        "role",
        "{app}",
    ),
    "login of the auditor that may become a superuser": (
        "ALTER ROLE {other} SUPERUSER; GRANT {audit}, {other} TO {login}",
        "role",
        "{login}",
    ),
    "application that puts guards to rest": (
        "GRANT SET ON PARAMETER session_replication_role TO {app}",
        "grant",
        "parameter session_replication_role to {app}",
    ),
    "login that puts guards to rest by way of another": (
        "GRANT SET ON PARAMETER session_replication_role TO {other}; GRANT {app}, {other} TO {login}",
        "grant",
        "parameter session_replication_role to {other}",
    ),
    "tables to come": (
        "ALTER DEFAULT PRIVILEGES IN SCHEMA ledger GRANT UPDATE ON TABLES TO {app}",
        "default privileges",
        "of {user} to {app}",
    ),
}


@pytest.mark.parametrize("damage", RIGHTS_DAMAGE)
def test_rights_that_must_not_be_are_named(funded: Ledger, psql: Psql, prefix: str, damage: str) -> None:
    """What was granted, given away or made of a role is the one finding, in its place."""
    owner, app, audit = funded.create_roles(prefix)
    names = {"owner": owner, "app": app, "audit": audit, "user": psql.info.user}
    names |= {"other": f"{prefix}_other", "login": f"{prefix}_login"}
    psql.execute(f"CREATE ROLE {names['other']}; CREATE ROLE {names['login']} LOGIN".encode())
    assert found(funded.doctor()) == []
    statement, kind, place = RIGHTS_DAMAGE[damage]
    _skip_without_its_roles(psql, statement)
    psql.execute(statement.format(**names).encode())
    assert found(funded.doctor()) == [(kind, place.format(**names))]


def _skip_without_its_roles(psql: Psql, statement: str) -> None:
    """Roles that a statement is about and that came with a later PostgreSQL."""
    for role in re.findall(r"\bpg_\w+", statement):
        if not psql.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
            pytest.skip(f"this PostgreSQL has no {role}")


RIGHTS_CHOSEN: dict[str, tuple[str, str, str]] = {
    "login that migrates": ("GRANT {owner} TO {login}", "role", "{login}"),
    "login that migrates by way of another": ("GRANT {owner} TO {other}; GRANT {other} TO {login}", "role", "{login}"),
    "database of the application": (
        "GRANT {app} TO {login}; ALTER DATABASE {database} OWNER TO {login}",
        "owner",
        "the database",
    ),
    "application that makes schemas": (
        "GRANT CREATE ON DATABASE {database} TO {app}",
        "grant",
        "the database to {app}",
    ),
    "login of the application that makes schemas by way of another": (
        "GRANT CREATE ON DATABASE {database} TO {other}; GRANT {app}, {other} TO {login}",
        "grant",
        "the database to {other}",
    ),
    "everybody who makes schemas": ("GRANT CREATE ON DATABASE {database} TO PUBLIC", "grant", "the database to PUBLIC"),
    "event trigger": (
        (
            "CREATE FUNCTION public.odd() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
            " CREATE EVENT TRIGGER odd ON ddl_command_end EXECUTE FUNCTION public.odd()"
        ),
        "event trigger",
        "event trigger odd",
    ),
}


@pytest.mark.parametrize("choice", RIGHTS_CHOSEN)
def test_rights_that_are_a_choice_are_pointed_out(funded: Ledger, psql: Psql, prefix: str, choice: str) -> None:
    """Each is the one warning more, and no finding; a role that is known is none."""
    owner, app, _ = funded.create_roles(prefix)
    login = f"{prefix}_login"
    names = {"owner": owner, "app": app, "other": f"{prefix}_other", "login": login, "database": psql.info.dbname}
    psql.execute(f"CREATE ROLE {names['other']}; CREATE ROLE {login} LOGIN".encode())
    before = funded.doctor().warnings
    statement, kind, place = RIGHTS_CHOSEN[choice]
    psql.execute(statement.format(**names | {"database": _quoted(psql.info.dbname)}).encode())
    diagnosis = funded.doctor()
    assert found(diagnosis) == []
    more = [(symptom.kind, symptom.place) for symptom in diagnosis.warnings if symptom not in before]
    assert more == [(kind, place.format(**names))]
    unknowable = choice in ("event trigger", "everybody who makes schemas")
    assert unknowable or funded.doctor(known_roles=[login, names["other"], app]).warnings == before


def test_what_is_no_business_of_the_ledgers_roles(funded: Ledger, psql: Psql, prefix: str) -> None:
    """A login that only uses the ledger, and a role that does not get at it, are nothing to speak of."""
    _, app, _ = funded.create_roles(prefix)
    psql.execute(f"CREATE ROLE {prefix}_other; CREATE ROLE {prefix}_login LOGIN".encode())
    before = funded.doctor()
    psql.execute(f"GRANT {app} TO {prefix}_login".encode())
    psql.execute(f"GRANT SET ON PARAMETER session_replication_role TO {prefix}_other".encode())
    psql.execute(f"GRANT CREATE ON DATABASE {_quoted(psql.info.dbname)} TO {prefix}_other".encode())
    psql.execute(f"GRANT pg_read_all_data, pg_monitor, pg_signal_backend, pg_checkpoint TO {app}".encode())
    after = funded.doctor()
    assert (after.findings, after.warnings) == (before.findings, before.warnings)


def test_grants_without_roles(ledger: Ledger, psql: Psql, prefix: str) -> None:
    """Where no roles were made, what anybody but the owner may do is found, unless that role is said to be known."""
    psql.execute(f"CREATE ROLE {prefix}_other".encode())
    psql.execute(f"GRANT SELECT ON events TO {prefix}_other".encode())
    assert found(ledger.doctor()) == [("grant", f"events to {prefix}_other")]
    assert found(ledger.doctor(known_roles=[f"{prefix}_other"])) == []
    assert [symptom.kind for symptom in ledger.doctor().warnings].count("role") == 2


def test_roles_that_must_be_there(ledger: Ledger, prefix: str) -> None:
    """With a prefix the roles are not looked for, but must be there."""
    assert found(ledger.doctor(role_prefix=prefix)) == [("role", prefix)]
    ledger.create_roles(prefix)
    assert found(ledger.doctor(role_prefix=prefix)) == []


def test_roles_made_before_a_migration(ledger: Ledger, psql: Psql, prefix: str) -> None:
    """A table that came later belongs to whoever migrated, until the roles are made again."""
    ledger.create_roles(prefix)
    psql.execute("ALTER TABLE subscriptions OWNER TO CURRENT_USER")
    psql.execute(f"REVOKE ALL ON subscriptions FROM {prefix}_app, {prefix}_audit".encode())
    assert found(ledger.doctor()) == [("owner", "table subscriptions")]
    ledger.create_roles(prefix)
    assert found(ledger.doctor()) == []


@pytest.mark.parametrize("role", ["app", "audit"])
def test_whoever_may_read_may_ask(funded: Ledger, ledger_url: str, psql: Psql, prefix: str, role: str) -> None:
    """The auditor and the application get the same answer as the owner, without the superuser's warning."""
    funded.create_roles(prefix)
    psql.execute("ALTER TABLE feed DISABLE TRIGGER append_only")
    psql.execute("GRANT SELECT ON balances TO PUBLIC")
    # As a session that is authorised as the role, and may not go back to being a superuser.
    address = make_url(ledger_url).update_query_dict({"options": f"-crole={prefix}_{role}"})
    with Ledger.connect(address.render_as_string(hide_password=False)) as humble:
        assert humble.doctor().findings == funded.doctor().findings
        assert len(humble.doctor().findings) == 2


def test_doctor_changes_nothing(ledger_url: str) -> None:
    """It asks in read-only transactions only, so that a standby can answer."""
    address = make_url(ledger_url).update_query_dict({"options": "-cdefault_transaction_read_only=on"})
    with Ledger.connect(address.render_as_string(hide_password=False)) as reader:
        assert reader.doctor().ok


# After a restore


@pytest.fixture(scope="session")
def programs(ledger_server: URL) -> Path:
    """The folder of a `pg_dump` and a `pg_restore` of the server's own major version."""
    return programs_of(ledger_server)


@pytest.mark.parametrize("kind", ["in one table", "in partitions"])
def test_restore_of_everything(
    request: pytest.FixtureRequest, programs: Path, tmp_path: Path, make_database: MakeDatabase, kind: str
) -> None:
    """A whole dump, restored into an empty database, has every guard as it was; the log verifies."""
    source: Ledger = request.getfixturevalue("funded" if kind == "in one table" else "divided")
    target, archive = make_database(), str(tmp_path / "ledger.dump")
    run([str(programs / "pg_dump"), "-Fc", "--schema=ledger", "-f", archive, "-d", _address(source)])
    run([str(programs / "pg_restore"), "--exit-on-error", "-d", target, archive])
    with Ledger.connect(target) as restored:
        assert found(restored.doctor()) == []
        assert restored.verify().ok
        assert restored.ledger_id == source.ledger_id


@pytest.mark.parametrize("kind", ["in one table", "in partitions"])
def test_restore_of_data_alone(
    request: pytest.FixtureRequest, programs: Path, tmp_path: Path, make_database: MakeDatabase, kind: str
) -> None:
    """`pg_restore --disable-triggers` leaves all guards ordinary ones: they are named, and the advice is right."""
    source: Ledger = request.getfixturevalue("funded" if kind == "in one table" else "divided")
    target = make_database()
    dump = [str(programs / "pg_dump"), "-Fc", "--schema=ledger", "-d", _address(source)]
    run([*dump, "--schema-only", "-f", str(tmp_path / "schema")])
    run([*dump, "--data-only", "-f", str(tmp_path / "data")])
    restore = [str(programs / "pg_restore"), "--exit-on-error", "-d", target]
    run([*restore, str(tmp_path / "schema")])
    with Ledger.connect(target) as restored, psycopg.connect(target, autocommit=True) as psql:
        # The revision is data too: before it comes there is no ledger.
        assert found(restored.doctor()) == [("schema", "revision")]
        run([*restore, "--disable-triggers", "--data-only", str(tmp_path / "data")])
        diagnosis = restored.doctor()
        named = {symptom.place for symptom in diagnosis.findings}
        assert {f"trigger append_only of {table}" for table in APPEND_ONLY if table != "events"} <= named
        if kind == "in partitions":
            # Those of the whole rested for no load of a partition.
            assert "trigger append_only of events" not in named
            assert {f"trigger append_only of events_{number:04}" for number in range(PARTITIONS)} <= named
        assert {symptom.kind for symptom in diagnosis.findings} == {"trigger"}
        assert restored.verify().ok
        _follow(psql, diagnosis)
        assert found(restored.doctor()) == []


def test_restore_through_the_root_of_the_partitions(
    divided: Ledger, programs: Path, tmp_path: Path, make_database: MakeDatabase
) -> None:
    """A load through the root needs its guard off by name, and the doctor says how that comes back."""
    target = make_database()
    dump = [str(programs / "pg_dump"), "-Fc", "--schema=ledger", "-d", _address(divided)]
    run([*dump, "--schema-only", "-f", str(tmp_path / "schema")])
    run([*dump, "--data-only", "--load-via-partition-root", "-f", str(tmp_path / "data")])
    restore = [str(programs / "pg_restore"), "--exit-on-error", "-d", target]
    run([*restore, str(tmp_path / "schema")])
    with Ledger.connect(target) as restored, psycopg.connect(target, autocommit=True) as psql:
        data = [*restore, "--data-only", "--disable-triggers", "--single-transaction", str(tmp_path / "data")]
        with pytest.raises(
            AssertionError, match=r"does not come with exactly the events|would have a gap|differ in USD"
        ):
            run(data)
        psql.execute("ALTER TABLE ONLY ledger.events DISABLE TRIGGER check_appended")
        run(data)
        assert restored.verify().ok
        diagnosis = restored.doctor()
        (root,) = [symptom for symptom in diagnosis.findings if symptom.place == "trigger check_appended of events"]
        assert "Run `ledger verify` first" in root.advice
        assert "through the root of the partitions" in root.advice
        _follow(psql, diagnosis)
        assert found(restored.doctor()) == []


def _follow(psql: Psql, diagnosis: Diagnosis) -> None:
    """Do what the advice about guards says."""
    for symptom in diagnosis.findings:
        statement = ENABLES.search(symptom.advice)
        assert statement, symptom.advice
        psql.execute(statement[0].encode())


def _address(ledger: Ledger) -> str:
    return ledger.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
