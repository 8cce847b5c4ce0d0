"""Runs the migrations: on the connection that `Ledger.migrate` hands over, or from the `alembic` command line."""

import os

from alembic import context
from sqlalchemy import Connection, create_engine

from ledger.storage.database import quoted_name
from ledger.storage.tables import DEFAULT_SCHEMA, VERSION_TABLE, metadata

schema: str = context.config.attributes.get("schema") or os.environ.get("LEDGER_SCHEMA") or DEFAULT_SCHEMA


def run(connection: Connection) -> None:
    quoted = quoted_name(schema)
    # Without parameters a percent sign in a name is only a percent sign.
    connection.execution_options(no_parameters=True)
    connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {quoted}")
    connection.execution_options(no_parameters=False)
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        version_table_schema=schema,
        include_schemas=True,
    )
    with context.begin_transaction():
        context.run_migrations(schema=quoted)


handed_over: Connection | None = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    with create_engine(os.environ["LEDGER_DATABASE_URL"]).begin() as connection:
        run(connection)
