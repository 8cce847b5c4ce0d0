"""Bring a database to the schema that this release needs, from a checkout or an installed wheel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from ledger.core.errors import DatabaseUnavailable, InvalidCommand, SchemaMismatch
from ledger.storage.database import Connection, Database
from ledger.storage.explained import in_our_words
from ledger.storage.partitions import check_existing, check_partitions, divide, partitions_of
from ledger.storage.tables import APPEND_ONLY, VERSION_TABLE
from ledger.storage.trail import note

_PACKAGE: Final = Path(__file__).parent.parent
_PREFIX_MAX: Final = 50
AUDITED: Final = ("subject", "generation", "key_id", "created_at", "forgotten_at", "forgotten_by", "reason")
"""All of `subject_keys` but the keys."""

KEYS_AUDITED: Final = (
    *("key_id", "actor", "slot", "scopes", "created_at", "created_by", "expires_at", "revoked_at", "revoked_by"),
    "idempotency_key",
)
"""All of `api_keys` but the hashes."""

_LOCK: Final = 0x6C6564676572  # "ledger": two processes that migrate at once do so one after the other.


@dataclass(frozen=True, slots=True)
class Migrated:
    """What `migrate` did: the revision found (None: an empty schema) and the revisions applied, in order."""

    schema: str
    found: str | None
    applied: tuple[str, ...]
    head: str


def script_location() -> Path:
    """The migrations: packed into a wheel as `ledger/migrations`, or beside the package in a checkout."""
    packed = _PACKAGE / "migrations"
    return packed if packed.is_dir() else _PACKAGE.parent / "alembic"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    return config


def known_revisions() -> list[str]:
    """Every revision that this release knows, the newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def check(database: Database) -> None:
    """
    Compare the ledger's schema with head.

    Raises:
        SchemaMismatch: It is not at head.
    """
    head = known_revisions()[0]
    with in_our_words(), database.engine.connect() as connection:
        found = _current_revision(connection, database.schema_name)
    if found != head:
        state = "holds no ledger" if found is None else f"is at revision {found}"
        raise SchemaMismatch(f"The database {state}, and this release needs {head}. Run `ledger migrate` first.")


def migrate(database: Database, partitions: int | None = None) -> Migrated:
    """
    Upgrade the ledger's schema to head, in one transaction; a new one with its log in `partitions`, if that is said.

    Raises:
        SchemaMismatch: The database is at a revision that this release does not know.
        InvalidCommand: There is a log already, and it is not in so many partitions.
        DatabaseUnavailable: It cannot be reached or does not let us.
    """
    if partitions is not None:
        check_partitions(partitions)
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    assert head is not None
    advice = "Migrate as a user who may create schemas in this database; nothing was changed."
    with _unprivileged(advice), in_our_words(), database.engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        found = _current_revision(connection, database.schema_name)
        known = [revision.revision for revision in scripts.walk_revisions()]
        if found is not None and found not in known:
            raise SchemaMismatch(
                f"The database is at revision {found}, which is newer than this release (it knows up to {head})."
                " Install a newer release of ledger; nothing was changed."
            )
        if partitions is not None and found is not None:
            check_existing(connection, database.schema, partitions)
        # Where there is nothing to do nothing is asked for, of a replica or for a user who may create no schema.
        if found != head:
            config.attributes["connection"] = connection
            config.attributes["schema"] = database.schema_name
            with _unprepared(connection):
                command.upgrade(config, "head")
                if partitions is not None and found is None:
                    divide(connection, database.schema, partitions)
            _note(connection, database, "migrate", head, {"found": found})
    applied = known[: known.index(found)] if found is not None else known
    return Migrated(database.schema_name, found, tuple(reversed(applied)), head)


@contextmanager
def _unprivileged(advice: str) -> Iterator[None]:
    """Whoever sets a ledger up cannot be told to get a role that is yet to be made."""
    try:
        yield
    except DatabaseUnavailable as error:
        if error.sqlstate != "42501":
            raise
        raise DatabaseUnavailable(error.problem, advice, error.sqlstate) from error


@contextmanager
def _unprepared(connection: sqlalchemy.Connection) -> Iterator[None]:
    """A migration is a script of many statements, and only one at a time can be prepared."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    threshold, driver.prepare_threshold = driver.prepare_threshold, None
    try:
        yield
    finally:
        driver.prepare_threshold = threshold


def _current_revision(connection: sqlalchemy.Connection, schema: str) -> str | None:
    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE, "version_table_schema": schema}
    )
    return context.get_current_revision()


def create_roles(database: Database, prefix: str = "ledger") -> tuple[str, str, str]:
    """
    Create the roles `PREFIX_owner`, `PREFIX_app` and `PREFIX_audit`, and grant each what it needs.

    The owner owns tables and guards and cannot log in; the application appends and projects; the
    auditor reads.  Safe to run again, and to be run after each migration.  Roles belong to the whole
    cluster, so this happens only on request and needs CREATEROLE.

    Raises:
        InvalidCommand: The prefix is not a plain identifier.
    """
    if not prefix.isidentifier() or len(prefix) > _PREFIX_MAX:
        raise InvalidCommand("prefix", f"{prefix!r} is not a plain identifier")
    owner, app, audit = (f"{prefix}_{role}" for role in ("owner", "app", "audit"))
    advice = "Make roles as a user with CREATEROLE who owns the ledger's tables; nothing was changed."
    with _unprivileged(advice), in_our_words(), database.engine.begin() as connection:
        for role in (owner, app, audit):
            known = connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
            if known.first() is None:
                connection.exec_driver_sql(f'CREATE ROLE "{role}" NOLOGIN')
        unparsed = connection.execution_options(no_parameters=True)
        for statement in _grants(database.schema, owner, app, audit):
            unparsed.exec_driver_sql(statement)
        for name in partitions_of(connection, database.schema):
            # A partition is reached through the log alone, whose guards see whole statements.
            unparsed.exec_driver_sql(f'REVOKE ALL ON {database.schema}.{name} FROM PUBLIC, "{app}", "{audit}"')
        for kind, name in _owned(connection, database.schema_name):
            unparsed.exec_driver_sql(f'ALTER {kind} {database.schema}.{name} OWNER TO "{owner}"')
        _note(connection, database, "create_roles", prefix, {"roles": [owner, app, audit]})
    return owner, app, audit


def _note(
    connection: sqlalchemy.Connection, database: Database, action: str, subject: str, details: Mapping[str, object]
) -> None:
    """Put on record what was done, and by which user of the database."""
    sql, parameters = note(action, None, subject, details)
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    Connection(driver, database.schema).query(sql, parameters)


def _grants(schema: str, owner: str, app: str, audit: str) -> Iterator[str]:
    projections = "accounts", "balances", "holds"
    inbox = "inbox_streams", "inbox_messages", "inbox_ids", "dead_letters", "inbox_counters"
    # Where a group stands, or who holds what, is never forgotten.
    standing = "consumer_offsets", "leases", "subscriptions", "subject_keys", "api_keys"
    yield f'GRANT "{owner}" TO CURRENT_USER'
    yield f"REVOKE ALL ON SCHEMA {schema} FROM PUBLIC"
    yield f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC"
    yield f"REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC"
    # To own a table one must be able to create it.  The schema stays with whoever migrates: to give it away
    # would take CREATE on the whole database.
    yield f'GRANT USAGE, CREATE ON SCHEMA {schema} TO "{owner}"'
    yield f'GRANT USAGE ON SCHEMA {schema} TO "{app}", "{audit}"'
    yield f'GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO "{app}", "{audit}"'
    for table in (*(name for name in APPEND_ONLY if name != "identity"), "outbox", *projections, *inbox, *standing):
        yield f'GRANT INSERT ON {schema}.{table} TO "{app}"'
    for table in (*projections, *inbox, "outbox"):
        # DELETE: a rebuild removes a projected row that no event stands behind, and the stamper what it has stamped.
        yield f'GRANT UPDATE, DELETE ON {schema}.{table} TO "{app}"'
    # An auditor sees whose key was destroyed, when and why, and no key.
    yield f'REVOKE ALL ON {schema}.subject_keys FROM "{audit}"'
    yield f'GRANT SELECT ({", ".join(AUDITED)}) ON {schema}.subject_keys TO "{audit}"'
    # … and who may do what, without the hashes.
    yield f'REVOKE ALL ON {schema}.api_keys FROM "{audit}"'
    yield f'GRANT SELECT ({", ".join(KEYS_AUDITED)}) ON {schema}.api_keys TO "{audit}"'
    # The rows of the period and of the clock are there from the beginning.
    for table in ("periods", "feed_clock", *standing):
        yield f'GRANT UPDATE ON {schema}.{table} TO "{app}"'


def _owned(connection: sqlalchemy.Connection, schema: str) -> list[tuple[str, str]]:
    relations = connection.execute(
        text("SELECT 'TABLE', quote_ident(tablename) FROM pg_tables WHERE schemaname = :schema"), {"schema": schema}
    )
    functions = connection.execute(
        text(
            "SELECT 'FUNCTION', p.proname || '()' FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
            " WHERE n.nspname = :schema"
        ),
        {"schema": schema},
    )
    return [(kind, name) for kind, name in (*relations, *functions)]
