"""
The store, its projections and its guards.

Why: the first release.
Locks taken: none that anyone could wait for; everything is new.
How to undo: not by a downgrade.  Dropping the schema destroys the ledger and is left to a person.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.identity (
    singleton smallint NOT NULL,
    ledger_id uuid NOT NULL,
    created_at timestamptz(6) NOT NULL,
    CONSTRAINT identity_pkey PRIMARY KEY (singleton),
    CONSTRAINT identity_one_row CHECK (singleton = 1)
);
COMMENT ON TABLE {schema}.identity IS
    'Who this ledger is: one row, made at the first migration.  Genesis hashes and keyed ids contain it.';

CREATE TABLE {schema}.transactions (
    transaction_id uuid NOT NULL,
    kind text COLLATE "C" NOT NULL,
    scope text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C",
    request json NOT NULL,
    entry_count smallint NOT NULL,
    announced text[] COLLATE "C" NOT NULL,
    reference text COLLATE "C",
    effective_at timestamptz(6) NOT NULL,
    recorded_at timestamptz(6) NOT NULL,
    actor text COLLATE "C",
    correlation_id text COLLATE "C",
    causation_id text COLLATE "C",
    metadata json,
    header_hash bytea NOT NULL,
    CONSTRAINT transactions_pkey PRIMARY KEY (transaction_id),
    CONSTRAINT transactions_events_announced CHECK (cardinality(announced) >= 1),
    CONSTRAINT transactions_entry_count CHECK (entry_count BETWEEN 0 AND cardinality(announced)),
    CONSTRAINT transactions_header_hash_size CHECK (octet_length(header_hash) = 32)
);
COMMENT ON TABLE {schema}.transactions IS
    'Append-only: one row per accepted command; announced lists its events in order, as stream and version.';
CREATE INDEX transactions_reference ON {schema}.transactions (reference, transaction_id)
    WHERE reference IS NOT NULL;
CREATE INDEX transactions_metadata ON {schema}.transactions USING gin ((metadata::jsonb) jsonb_path_ops)
    WHERE metadata IS NOT NULL;

CREATE TABLE {schema}.events (
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    transaction_id uuid NOT NULL,
    type text COLLATE "C" NOT NULL,
    payload json NOT NULL,
    schema smallint NOT NULL,
    asset text COLLATE "C",
    direction text COLLATE "C",
    amount numeric(38, 0),
    posted_debits numeric(38, 0),
    posted_credits numeric(38, 0),
    pending_debits numeric(38, 0),
    pending_credits numeric(38, 0),
    effective_at timestamptz(6) NOT NULL,
    recorded_at timestamptz(6) NOT NULL,
    prev_hash bytea NOT NULL,
    event_hash bytea NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (stream, version),
    CONSTRAINT events_version_positive CHECK (version >= 1),
    CONSTRAINT events_entry_complete CHECK (
        num_nulls(asset, direction, amount) IN (0, 3) AND amount > 0 AND direction IN ('debit', 'credit')
    ),
    CONSTRAINT events_numbers_complete CHECK (
        num_nulls(posted_debits, posted_credits, pending_debits, pending_credits) IN (0, 4)
        AND least(posted_debits, posted_credits, pending_debits, pending_credits) >= 0
    ),
    CONSTRAINT events_hash_size CHECK (octet_length(prev_hash) = 32 AND octet_length(event_hash) = 32)
);
COMMENT ON TABLE {schema}.events IS
    'Append-only: the truth.  One stream per account, versions 1, 2, 3 … without a gap.';
CREATE INDEX events_streams ON {schema}.events (stream) WHERE version = 1;

CREATE TABLE {schema}.accounts (
    account text COLLATE "C" NOT NULL,
    account_type text COLLATE "C" NOT NULL,
    asset text COLLATE "C" NOT NULL,
    scale smallint NOT NULL,
    min_balance numeric(38, 0),
    max_balance numeric(38, 0),
    state text COLLATE "C" NOT NULL,
    metadata json NOT NULL,
    CONSTRAINT accounts_pkey PRIMARY KEY (account)
);
COMMENT ON TABLE {schema}.accounts IS 'Projection: what each account was opened as.';
CREATE INDEX accounts_asset ON {schema}.accounts (asset, account);

CREATE TABLE {schema}.balances (
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    posted_debits numeric(38, 0) NOT NULL,
    posted_credits numeric(38, 0) NOT NULL,
    pending_debits numeric(38, 0) NOT NULL,
    pending_credits numeric(38, 0) NOT NULL,
    recorded_at timestamptz(6) NOT NULL,
    head_hash bytea NOT NULL,
    checksum bytea NOT NULL,
    CONSTRAINT balances_pkey PRIMARY KEY (stream),
    CONSTRAINT balances_version_positive CHECK (version >= 1)
) WITH (fillfactor = 50);
COMMENT ON TABLE {schema}.balances IS 'Projection: the head of every stream; compare-and-set on version.';

CREATE TABLE {schema}.assets (
    asset text COLLATE "C" NOT NULL,
    scale smallint NOT NULL,
    CONSTRAINT assets_pkey PRIMARY KEY (asset),
    CONSTRAINT assets_scale_range CHECK (scale BETWEEN 0 AND 18)
);
COMMENT ON TABLE {schema}.assets IS
    'Projection of the ledger''s own stream: what can be counted, and in which precision.';

CREATE TABLE {schema}.projection_repairs (
    stream text COLLATE "C" NOT NULL,
    repair_id uuid NOT NULL,
    repaired_at timestamptz(6) NOT NULL,
    noticed_by text COLLATE "C" NOT NULL,
    found_version bigint,
    expected_version bigint,
    found json,
    expected json,
    CONSTRAINT projection_repairs_pkey PRIMARY KEY (stream, repair_id)
);
COMMENT ON TABLE {schema}.projection_repairs IS
    'Append-only: every mismatch between a projection and the log that was seen and mended.';

CREATE TABLE {schema}.outbox (
    batch_id uuid NOT NULL,
    transaction_ids uuid[] NOT NULL,
    recorded_at timestamptz(6) NOT NULL,
    CONSTRAINT outbox_pkey PRIMARY KEY (batch_id)
);
COMMENT ON TABLE {schema}.outbox IS
    'What the feed has yet to number: one row per database transaction, its transactions in order.';

INSERT INTO {schema}.identity VALUES (1, gen_random_uuid(), now());
"""

# Guards: what a buggy program or a person with psql cannot do either.  Nothing in the write path relies on them.
# Class LD is free for implementers (a class that begins with I to Z).  Functions pin their search_path, or a
# restore that sets none would fail in them.
GUARDS = """
CREATE FUNCTION {schema}.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'LD001',
        MESSAGE = format('%I.%I is append-only: %s is refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP),
        HINT = 'Correct a transaction by posting another one.';
END
$body$;

CREATE FUNCTION {schema}.check_appended() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
DECLARE
    broken record;
BEGIN
    -- The scalar subqueries are deliberate: as joins, a plan made for a large batch could scan a whole table
    -- for a small one.
    SELECT run.stream, run.low AS version INTO broken
    FROM (
        SELECT stream, min(version) AS low, max(version) AS high, count(*) AS events FROM appended GROUP BY stream
    ) AS run
    WHERE run.high - run.low + 1 <> run.events
       OR run.low > 1 AND (
              SELECT true FROM {schema}.events AS e WHERE e.stream = run.stream AND e.version = run.low - 1
          ) IS NOT TRUE
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LD002',
            MESSAGE = format('stream %s would have a gap before or after version %s', broken.stream, broken.version);
    END IF;

    -- All events of a transaction come in one statement, and only those that it announced: none can be missing
    -- and, since each has its place in a stream, none can come a second time or later.
    SELECT part.transaction_id, part.net INTO broken
    FROM (
        SELECT transaction_id, count(*) AS events, count(amount) AS entries,
               array_agg(stream || ' ' || version) AS found,
               CASE WHEN min(asset) = max(asset)
                    THEN sum(CASE direction WHEN 'debit' THEN amount ELSE -amount END) END AS net
        FROM appended GROUP BY transaction_id
    ) AS part
    WHERE part.net <> 0 OR (
              SELECT cardinality(t.announced) = part.events AND t.entry_count = part.entries
                     AND t.announced @> part.found
              FROM {schema}.transactions AS t WHERE t.transaction_id = part.transaction_id
          ) IS NOT TRUE
    LIMIT 1;
    IF FOUND AND broken.net <> 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'LD004',
            MESSAGE = format('debits and credits of transaction %s differ', broken.transaction_id);
    ELSIF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LD003',
            MESSAGE = format('transaction %s does not come with exactly the events that it announces',
                             broken.transaction_id);
    END IF;

    -- Transactions of several assets; most batches have none.
    IF (SELECT min(asset) <> max(asset) FROM appended) THEN
        SELECT transaction_id, asset INTO broken
        FROM appended WHERE amount IS NOT NULL GROUP BY transaction_id, asset
        HAVING sum(CASE direction WHEN 'debit' THEN amount ELSE -amount END) <> 0
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'LD004',
                MESSAGE = format('debits and credits of transaction %s differ in %s',
                                 broken.transaction_id, broken.asset);
        END IF;
    END IF;
    RETURN NULL;
END
$body$;

CREATE TRIGGER check_appended AFTER INSERT ON {schema}.events
    REFERENCING NEW TABLE AS appended FOR EACH STATEMENT EXECUTE FUNCTION {schema}.check_appended();
"""

APPEND_ONLY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.{table}
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.{table} ENABLE ALWAYS TRIGGER append_only;
"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    connection.exec_driver_sql(TABLES.replace("{schema}", schema))
    connection.exec_driver_sql(GUARDS.replace("{schema}", schema))
    for table in ("identity", "transactions", "events", "assets", "projection_repairs"):
        connection.exec_driver_sql(APPEND_ONLY.replace("{schema}", schema).replace("{table}", table))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(f"this would destroy the ledger: DROP SCHEMA {schema} CASCADE is for a person to say")
