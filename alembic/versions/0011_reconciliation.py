"""
Reconciliation: what banks say of an account, as it was read, and who decided which entries are the same.

Why: whoever reconciles goes on from what was decided before, and an auditor sees who decided it, when and why.
Locks taken: none that anybody waits for; the tables are new.
How to undo: not by a downgrade: what people decided would be lost.
Processes of an older release go on beside this one.
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.bank_statements (
    account text COLLATE "C" NOT NULL,
    statement_id text COLLATE "C" NOT NULL,
    place text COLLATE "C" NOT NULL,
    format text COLLATE "C" NOT NULL,
    file_sha256 bytea NOT NULL,
    digest bytea NOT NULL,
    sides text COLLATE "C" NOT NULL,
    begins_on date NOT NULL,
    opens_on date NOT NULL,
    closes_on date NOT NULL,
    opening numeric(38, 0) NOT NULL,
    closing numeric(38, 0) NOT NULL,
    entry_count integer NOT NULL,
    actor text COLLATE "C" NOT NULL,
    staged_at timestamptz(6) NOT NULL,
    CONSTRAINT bank_statements_pkey PRIMARY KEY (account, statement_id),
    CONSTRAINT bank_statements_digest UNIQUE (account, digest),
    CONSTRAINT bank_statements_hash_size CHECK (octet_length(file_sha256) = 32 AND octet_length(digest) = 32),
    CONSTRAINT bank_statements_sides CHECK (sides IN ('mirrored', 'same')),
    CONSTRAINT bank_statements_days CHECK (begins_on <= opens_on AND opens_on <= closes_on),
    CONSTRAINT bank_statements_entry_count CHECK (entry_count >= 0)
);
COMMENT ON TABLE {schema}.bank_statements IS
    'Append-only: what a bank said of an account; opening and closing in minor units, credit positive.';

CREATE TABLE {schema}.bank_entries (
    account text COLLATE "C" NOT NULL,
    statement_id text COLLATE "C" NOT NULL,
    number integer NOT NULL,
    booked_on date NOT NULL,
    amount numeric(38, 0) NOT NULL,
    names text[] COLLATE "C" NOT NULL,
    description text COLLATE "C" NOT NULL,
    place text COLLATE "C" NOT NULL,
    CONSTRAINT bank_entries_pkey PRIMARY KEY (account, statement_id, number),
    CONSTRAINT bank_entries_number CHECK (number >= 1),
    CONSTRAINT bank_entries_amount CHECK (amount <> 0)
);
COMMENT ON TABLE {schema}.bank_entries IS
    'Append-only: the booked entries of those statements, in minor units, credit positive; names are its references.';

CREATE TABLE {schema}.reconciliation_decisions (
    account text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    decision text COLLATE "C" NOT NULL,
    rule text COLLATE "C" NOT NULL,
    amount numeric(38, 0) NOT NULL,
    items json NOT NULL,
    settled text COLLATE "C" NOT NULL,
    actor text COLLATE "C" NOT NULL,
    reason text COLLATE "C",
    recorded_at timestamptz(6) NOT NULL,
    CONSTRAINT reconciliation_decisions_pkey PRIMARY KEY (account, number),
    CONSTRAINT reconciliation_decisions_number CHECK (number >= 1),
    CONSTRAINT reconciliation_decisions_kind CHECK (
        decision IN ('match', 'unmatch', 'note') AND (rule <> 'manual' OR reason IS NOT NULL)
    )
);
COMMENT ON TABLE {schema}.reconciliation_decisions IS
    'Append-only: which entries of an account and of its statements are the same, who says so, and why.';

CREATE TABLE {schema}.reconciliation_claims (
    account text COLLATE "C" NOT NULL,
    side text COLLATE "C" NOT NULL,
    origin text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    generation integer NOT NULL,
    decision bigint NOT NULL,
    CONSTRAINT reconciliation_claims_pkey PRIMARY KEY (account, side, origin, number, generation),
    CONSTRAINT reconciliation_claims_side CHECK (side IN ('ours', 'theirs')),
    CONSTRAINT reconciliation_claims_counts CHECK (number >= 1 AND generation >= 1 AND decision >= 1)
);
CREATE INDEX reconciliation_claims_decision ON {schema}.reconciliation_claims (account, decision);
COMMENT ON TABLE {schema}.reconciliation_claims IS
    'Append-only: the decisions about each entry, counted 1, 2, 3 …: odd ones match it, even ones take that back.';

CREATE TABLE {schema}.reconciliations (
    account text COLLATE "C" NOT NULL,
    reconciliation_id uuid NOT NULL,
    statement_id text COLLATE "C" NOT NULL,
    pin text COLLATE "C" NOT NULL,
    rules json NOT NULL,
    reconciled boolean NOT NULL,
    report_sha256 bytea NOT NULL,
    actor text COLLATE "C" NOT NULL,
    recorded_at timestamptz(6) NOT NULL,
    CONSTRAINT reconciliations_pkey PRIMARY KEY (account, reconciliation_id),
    CONSTRAINT reconciliations_hash_size CHECK (octet_length(report_sha256) = 32)
);
COMMENT ON TABLE {schema}.reconciliations IS
    'Append-only: who reconciled an account with a statement, from where in log and decisions, and what came of it.';
"""

APPEND_ONLY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.{table}
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.{table} ENABLE ALWAYS TRIGGER append_only;
"""

GUARDED = (
    "bank_statements",
    "bank_entries",
    "reconciliation_decisions",
    "reconciliation_claims",
    "reconciliations",
)


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    guards = [APPEND_ONLY.replace("{table}", table) for table in GUARDED]
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    for script in (TABLES, *guards):
        connection.exec_driver_sql(script.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(f"what people decided would be lost: DROP SCHEMA {schema} CASCADE is for a person to say")
