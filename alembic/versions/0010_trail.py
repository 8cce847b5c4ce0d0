"""
The trail: privileged actions and replays on record, and one order of all that happened beside the log.

Why: what a report says must be the same for ever, and neither a time nor a number that is given at the beginning says
what had ended by then.  Two indexes find what belongs to a conversation, and what a message has caused.
Locks taken: a share lock on transactions while its indexes are made, in which writers wait: a second for a million rows
of which few have such an id.
How to undo: not by a downgrade: what was done, and by whom, would be forgotten.
Processes of an older release go on beside this one; what they do is not on record.
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.privileged_actions (
    action_id uuid NOT NULL,
    recorded_at timestamptz(6) NOT NULL,
    action text COLLATE "C" NOT NULL,
    actor text COLLATE "C",
    database_user text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    details json NOT NULL,
    CONSTRAINT privileged_actions_pkey PRIMARY KEY (action_id)
);
COMMENT ON TABLE {schema}.privileged_actions IS
    'Append-only: what was done to the ledger and not in it: migrations, roles, rebuilds, consumers set back.';

CREATE TABLE {schema}.replays (
    replay_id uuid NOT NULL,
    transaction_id uuid NOT NULL,
    replayed_at timestamptz(6) NOT NULL,
    actor text COLLATE "C",
    CONSTRAINT replays_pkey PRIMARY KEY (replay_id)
);
COMMENT ON TABLE {schema}.replays IS
    'Append-only: answers that were given again, since their idempotency key had been used before.';

CREATE TABLE {schema}.trail (
    number bigint NOT NULL,
    kind text COLLATE "C" NOT NULL,
    place text COLLATE "C" NOT NULL,
    CONSTRAINT trail_pkey PRIMARY KEY (number),
    CONSTRAINT trail_place UNIQUE (kind, place),
    CONSTRAINT trail_number_positive CHECK (number >= 1)
);
COMMENT ON TABLE {schema}.trail IS
    'Append-only: the order of what happened beside the log.  Numbers 1, 2, 3 … without a gap, for what has ended.';

CREATE INDEX transactions_correlation ON {schema}.transactions (correlation_id, transaction_id)
    WHERE correlation_id IS NOT NULL;
CREATE INDEX transactions_causation ON {schema}.transactions (causation_id, transaction_id)
    WHERE causation_id IS NOT NULL;
"""

APPEND_ONLY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.{table}
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.{table} ENABLE ALWAYS TRIGGER append_only;
"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    guards = [APPEND_ONLY.replace("{table}", table) for table in ("privileged_actions", "replays", "trail")]
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    for script in (TABLES, *guards):
        connection.exec_driver_sql(script.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(
        f"what was done, and by whom, would be forgotten: DROP SCHEMA {schema} CASCADE is for a person to say"
    )
