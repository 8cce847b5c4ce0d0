"""
Among how many streams an account is spread.

Why: the writers of one very hot account wait for each other at its one row; an account without limits may have several
streams, among which each transaction chooses one.
Locks taken: an exclusive one on accounts, for as long as it takes to change the catalogue: a column with a constant
default is written into no row.
How to undo: not by a downgrade, once an account has stripes.  Processes of an older release go on beside this one as
long as no account has any: they would freeze or close one of its streams, and not the others.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = """
ALTER TABLE {schema}.accounts
    ADD COLUMN stripes smallint NOT NULL DEFAULT 1,
    ADD COLUMN streams smallint NOT NULL DEFAULT 1;
COMMENT ON TABLE {schema}.accounts IS 'Projection: what each account is, in every one of its streams.';
"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    connection.exec_driver_sql(TABLES.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(
        f"accounts would lose what is in their stripes: DROP SCHEMA {schema} CASCADE is for a person to say"
    )
