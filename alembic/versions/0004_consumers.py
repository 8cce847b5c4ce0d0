"""
Where consumer groups stand in the partitions that they read, and who may move them.

Why: an offset that is kept by the broker can be moved by who no longer owns the partition; here it moves in the
transaction of the effects, or not at all.
Locks taken: none that anyone could wait for; everything is new.
How to undo: not by a downgrade; without its offsets a consumer would not know where to go on.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.consumer_offsets (
    group_name text COLLATE "C" NOT NULL,
    topic text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    next_offset bigint,
    epoch bigint NOT NULL,
    owner text COLLATE "C" NOT NULL,
    partitions integer NOT NULL,
    changed_at timestamptz(6) NOT NULL,
    CONSTRAINT consumer_offsets_pkey PRIMARY KEY (group_name, topic, partition),
    CONSTRAINT consumer_offsets_counts CHECK (next_offset >= 0 AND epoch > 0 AND partition >= 0)
);
COMMENT ON TABLE {schema}.consumer_offsets IS
    'Where each consumer group stands in each partition; compare-and-set on epoch and offset.';
"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    connection.exec_driver_sql(TABLES.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(
        f"consumers would not know where they are: DROP SCHEMA {schema} CASCADE is for a person to say"
    )
