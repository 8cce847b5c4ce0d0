"""
Proof: the tree over the feed, as far as its tiles are full, and the checkpoints that were signed.

Why: a proof of one event must not read the whole log, and what was signed must be seen to be extended by what is signed
next.  Keys are elsewhere: whoever can write these tables can sign nothing.
Locks taken: none that anybody waits for; both tables are new.
How to undo: not by a downgrade: what was signed is out in the world.
Processes of an older release go on beside this one.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.tree_tiles (
    level smallint NOT NULL,
    number bigint NOT NULL,
    hashes bytea NOT NULL,
    CONSTRAINT tree_tiles_pkey PRIMARY KEY (level, number),
    CONSTRAINT tree_tiles_place CHECK (level >= 0 AND number >= 0),
    CONSTRAINT tree_tiles_full CHECK (octet_length(hashes) = 8192)
);
COMMENT ON TABLE {schema}.tree_tiles IS
    'Append-only: the full tiles of the tree over the feed, 256 hashes each (C2SP tlog-tiles).';

CREATE TABLE {schema}.checkpoints (
    size bigint NOT NULL,
    root bytea NOT NULL,
    note bytea NOT NULL,
    sealed_at timestamptz(6) NOT NULL,
    CONSTRAINT checkpoints_pkey PRIMARY KEY (size),
    CONSTRAINT checkpoints_size_positive CHECK (size >= 1),
    CONSTRAINT checkpoints_root_size CHECK (octet_length(root) = 32)
);
COMMENT ON TABLE {schema}.checkpoints IS
    'Append-only: size and root of the tree, as they were signed, with a key that the database never sees.';
"""

APPEND_ONLY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.{table}
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.{table} ENABLE ALWAYS TRIGGER append_only;
"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    guards = [APPEND_ONLY.replace("{table}", table) for table in ("tree_tiles", "checkpoints")]
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    for script in (TABLES, *guards):
        connection.exec_driver_sql(script.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(
        f"what was signed could not be extended any more: DROP SCHEMA {schema} CASCADE is for a person to say"
    )
