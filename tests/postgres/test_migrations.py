"""Migrations: one way from nothing to the tables that the code defines, and no way past what it does not know."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import sqlalchemy
from alembic import autogenerate, command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import ops
from sqlalchemy import text

import ledger as package
from ledger import Ledger, SchemaMismatch, include_object, include_object_for
from ledger.storage import tables

Psql = psycopg.Connection[Any]
MakeDatabase = Callable[[], str]

WAIT_SECONDS: Final = 60
CHECKOUT: Final = Path(package.__file__).parent.parent

CATALOG = {
    "columns": """
        SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), co.collname, a.attnotnull,
               pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, a.attstorage
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_collation co ON co.oid = a.attcollation
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relkind = 'r' AND a.attnum > 0 AND c.relnamespace = 'ledger'::regnamespace""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, convalidated, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'ledger'::regnamespace AND contype <> 'n'""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'ledger'",
    "tables": """
        SELECT relname, relpersistence, reloptions, obj_description(oid, 'pg_class')
        FROM pg_class WHERE relkind = 'r' AND relnamespace = 'ledger'::regnamespace""",
    "sequences": "SELECT sequencename FROM pg_sequences WHERE schemaname = 'ledger'",
}


def catalog(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """What the database says of the ledger's tables, its version table left out."""
    with psycopg.connect(url) as connection:
        return {
            name: sorted(
                (
                    row
                    for row in connection.execute(query.encode()).fetchall()
                    if tables.VERSION_TABLE not in str(row[0])
                ),
                key=repr,
            )
            for name, query in CATALOG.items()
        }


def sqlalchemy_url(url: str) -> str:
    """The URL with the driver that SQLAlchemy is to use."""
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def test_migrations_make_the_tables_that_the_code_defines(ledger_url: str, make_database: MakeDatabase) -> None:
    """A migrated schema and one made from `tables.metadata` are the same to the last comment and fill factor."""
    defined = make_database()
    engine = sqlalchemy.create_engine(sqlalchemy_url(defined))
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA ledger"))
        tables.metadata.create_all(connection)
    engine.dispose()
    migrated, created = catalog(ledger_url), catalog(defined)
    assert len(migrated["columns"]) > 60
    for name, found in migrated.items():
        assert found == created[name], name


def test_alembic_sees_no_difference(ledger: Ledger) -> None:
    """Alembic's own comparison of the migrated schema with `tables.metadata` finds nothing to do."""
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == "ledger",
                "version_table": tables.VERSION_TABLE,
                "version_table_schema": "ledger",
            },
        )
        assert autogenerate.compare_metadata(context, tables.metadata) == []


def test_migrate_says_what_it_did(make_database: MakeDatabase) -> None:
    """From nothing it applies every revision; the second time there is nothing to do."""
    with Ledger.connect(make_database()) as ledger:
        first = ledger.migrate()
        assert first.found is None
        assert first.applied
        assert first.applied[-1] == first.head
        identity = ledger.ledger_id
        second = ledger.migrate()
        assert (second.found, second.applied, second.head) == (first.head, (), first.head)
        assert ledger.ledger_id == identity
        ledger.open_account("world", asset="USD", type="equity")
        assert ledger.verify().ok


def test_migrate_asks_for_nothing_where_there_is_nothing_to_do(ledger_url: str, psql: Psql) -> None:
    """An application that migrates as it starts may do so as a user who creates nothing, or on a replica."""
    role = f"ledger_reader_{os.getpid()}"
    psql.execute(f"CREATE ROLE {role}".encode())
    try:
        psql.execute(f"GRANT USAGE ON SCHEMA ledger TO {role}".encode())
        psql.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA ledger TO {role}".encode())
        for option in (f"-crole={role}", "-cdefault_transaction_read_only=on"):
            address = sqlalchemy.make_url(ledger_url).update_query_dict({"options": option})
            with Ledger.connect(address.render_as_string(hide_password=False)) as humble:
                assert humble.migrate().applied == ()
        psql.execute("UPDATE schema_version SET version_num = '0003'")
        with (
            Ledger.connect(address.render_as_string(hide_password=False)) as replica,
            pytest.raises(package.DatabaseUnavailable, match="Connect to the primary"),
        ):
            replica.migrate()
    finally:
        psql.execute(f"DROP OWNED BY {role}".encode())
        psql.execute(f"DROP ROLE {role}".encode())


def test_newer_database_is_refused_and_untouched(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """A database that a newer release has migrated is left alone, and the message says what to install."""
    psql.execute("UPDATE schema_version SET version_num = '9999'")
    before = catalog(ledger_url), psql.execute("SELECT * FROM events").fetchall()
    with pytest.raises(SchemaMismatch, match="9999, which is newer than this release"):
        funded.migrate()
    assert (catalog(ledger_url), psql.execute("SELECT * FROM events").fetchall()) == before
    assert psql.execute("SELECT version_num FROM schema_version").fetchall() == [("9999",)]


def test_everything_lives_in_the_ledgers_schema(psql: Psql) -> None:
    """Migrating leaves nothing outside of the schema: the version table is in it too."""
    found = psql.execute(
        "SELECT DISTINCT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
    ).fetchall()
    assert found == [("ledger",)]
    functions = psql.execute("SELECT pronamespace::regnamespace::text FROM pg_proc WHERE oid >= 16384").fetchall()
    assert set(functions) == {("ledger",)}
    assert psql.execute("SELECT count(*) FROM ledger.schema_version").fetchone() == (1,)


def test_migration_that_fails_leaves_nothing(make_database: MakeDatabase) -> None:
    """All of it is one transaction: where the last step fails there is no schema afterwards."""
    target = make_database()
    with psycopg.connect(target, autocommit=True) as psql:
        psql.execute(
            "CREATE FUNCTION public.stop() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity LIKE '%projection_repairs%'"
            " AND command_tag = 'CREATE TRIGGER') THEN RAISE EXCEPTION 'no further'; END IF; END $$"
        )
        psql.execute("CREATE EVENT TRIGGER stop ON ddl_command_end EXECUTE FUNCTION public.stop()")
        with Ledger.connect(target) as ledger:
            with pytest.raises(package.LedgerError, match="no further"):
                ledger.migrate()
            assert psql.execute("SELECT to_regnamespace('ledger')").fetchone() == (None,)
            psql.execute("DROP EVENT TRIGGER stop")
            assert ledger.migrate().applied


def test_downgrade_is_left_to_a_person(ledger: Ledger) -> None:
    """There is no downgrade that destroys a ledger."""
    config = Config(str(CHECKOUT / "alembic.ini"))
    with ledger.engine.begin() as connection:
        config.attributes["connection"] = connection
        with pytest.raises(NotImplementedError, match="for a person to say"):
            command.downgrade(config, "base")


def test_alembic_command_of_a_maintainer(make_database: MakeDatabase) -> None:
    """From the checkout, `alembic upgrade head` does what `migrate` does, where LEDGER_DATABASE_URL points."""
    target = make_database()
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=CHECKOUT,
        env={**os.environ, "LEDGER_DATABASE_URL": sqlalchemy_url(target)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Ledger.connect(target) as ledger:
        assert ledger.migrate().applied == ()
        assert ledger.verify().ok


def test_alembic_command_takes_the_url_that_the_library_takes(make_database: MakeDatabase) -> None:
    """The plain "postgresql://…" of everybody's environment works for `alembic` as it does for the ledger."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=CHECKOUT,
        env={**os.environ, "LEDGER_DATABASE_URL": make_database()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_several_processes_may_migrate_at_once(make_database: MakeDatabase) -> None:
    """Several that start together migrate one after the other; exactly one applies, the others find it done."""
    target = make_database()
    script = "import sys; from ledger import Ledger; print(len(Ledger.connect(sys.argv[1]).migrate().applied))"
    with psycopg.connect(target) as in_the_way, psycopg.connect(target, autocommit=True) as watch:
        # A schema that is being made, and then is not: all of them stand before it at the same moment.
        in_the_way.execute("CREATE SCHEMA ledger")
        running = [
            subprocess.Popen([sys.executable, "-c", script, target], stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        deadline = time.monotonic() + WAIT_SECONDS
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        while watch.execute(waiting).fetchone() != (3,):
            assert time.monotonic() < deadline, "they never came to wait"
        in_the_way.rollback()
        applied = [int(process.communicate(timeout=WAIT_SECONDS)[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sorted(applied)[:2] == [0, 0]
    assert sorted(applied)[2] >= 1


# An application that keeps the ledger in its own database, with Alembic of its own.

own = sqlalchemy.MetaData()
sqlalchemy.Table("orders", own, sqlalchemy.Column("order_id", sqlalchemy.Integer, primary_key=True))


def proposed(engine: sqlalchemy.Engine, include: Any) -> list[str]:
    """What the application's autogenerate would write into a migration of its own."""
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_schemas": True, "include_object": include, "target_metadata": own}
        )
        script = autogenerate.produce_migrations(context, own)
    assert script.upgrade_ops is not None
    return [_named(operation) for operation in script.upgrade_ops.ops]


def _named(operation: ops.MigrateOperation) -> str:
    return f"{type(operation).__name__} {getattr(operation, 'schema', None)}.{getattr(operation, 'table_name', '')}"


def test_applications_autogenerate_leaves_ours_alone(funded: Ledger) -> None:
    """With `include_object` an application's migration makes its own table and drops none of the ledger's."""
    assert any("DropTableOp ledger.events" in each for each in proposed(funded.engine, None))
    assert proposed(funded.engine, include_object) == ["CreateTableOp None.orders"]


def test_applications_autogenerate_with_another_schema(make_database: MakeDatabase) -> None:
    """A ledger in a schema of another name is left alone by the filter for that name, and by it only."""
    with Ledger.connect(make_database(), schema="book-keeping") as ledger:
        ledger.migrate()
        assert proposed(ledger.engine, include_object_for("book-keeping")) == ["CreateTableOp None.orders"]
        assert any("DropTableOp book-keeping.events" in each for each in proposed(ledger.engine, include_object))


def test_applications_own_tables_still_count(funded: Ledger, psql: Psql) -> None:
    """The filter hides the ledger's tables and nothing of the application's, columns and indexes included."""
    psql.execute("CREATE TABLE public.orders (order_id integer PRIMARY KEY, note text)")
    psql.execute("CREATE TABLE public.events (stream text)")
    assert proposed(funded.engine, include_object) == ["DropTableOp None.events", "ModifyTableOps None.orders"]
