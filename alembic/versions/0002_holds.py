"""
Holds, reversals and closed periods; the guard of events sums what is posted and what is pending apart.

Why: holds, reversals, account states and state machines; and assets, whose table could say what the log does not.
Locks taken: an exclusive lock on transactions and events while their indexes are built and a constraint is checked,
which takes as long as reading both tables once or twice.
How to undo: not by a downgrade, once a hold was placed.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.holds (
    account text COLLATE "C" NOT NULL,
    hold_id uuid NOT NULL,
    direction text COLLATE "C" NOT NULL,
    asset text COLLATE "C" NOT NULL,
    amount numeric(38, 0) NOT NULL,
    captured numeric(38, 0) NOT NULL,
    released numeric(38, 0) NOT NULL,
    expired numeric(38, 0) NOT NULL,
    expires_at timestamptz(6),
    checksum bytea NOT NULL,
    CONSTRAINT holds_pkey PRIMARY KEY (account, hold_id),
    CONSTRAINT holds_within_amount CHECK (
        least(captured, released, expired) >= 0 AND captured + released + expired <= amount
    )
);
COMMENT ON TABLE {schema}.holds IS 'Projection: each side of each hold, and what became of it.';
CREATE INDEX holds_due ON {schema}.holds (account, expires_at)
    WHERE captured + released + expired < amount AND expires_at IS NOT NULL;
CREATE INDEX holds_expiring ON {schema}.holds (expires_at, hold_id)
    WHERE captured + released + expired < amount AND expires_at IS NOT NULL;

CREATE TABLE {schema}.periods (
    singleton smallint NOT NULL,
    closed_until timestamptz(6),
    CONSTRAINT periods_pkey PRIMARY KEY (singleton),
    CONSTRAINT periods_one_row CHECK (singleton = 1)
);
COMMENT ON TABLE {schema}.periods IS
    'Projection: until when the books are closed.  Locked by who closes them, shared by who writes to the past.';
INSERT INTO {schema}.periods VALUES (1, NULL);

-- The scale of an asset is read from the log; that it is defined once is a promise of the database.
CREATE UNIQUE INDEX events_assets ON {schema}.events (stream, (payload ->> 'asset')) WHERE type = 'asset_defined';
DROP TABLE {schema}.assets;

ALTER TABLE {schema}.transactions ADD CONSTRAINT transactions_announced_flat
    CHECK (array_ndims(announced) = 1 AND array_position(announced, NULL) IS NULL);
CREATE INDEX transactions_reverses ON {schema}.transactions ((request ->> 'transaction_id'))
    WHERE kind = 'reverse';
"""

GUARD = """
CREATE OR REPLACE FUNCTION {schema}.check_appended() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $body$
DECLARE
    every record;
    broken record;
BEGIN
    -- One look at all that came, which is nearly always sound; only otherwise is it asked what is wrong.
    -- All events of a transaction come in one statement, and only those that it announced: none can be missing
    -- and, since each has its place in a stream, none can come a second time or later.
    -- The scalar subqueries are deliberate: as joins, a plan made for a large batch could scan a whole table
    -- for a small one.
    SELECT bool_and(part.follows) AS follow, bool_and(part.balances) AS balance, bool_and((
               SELECT cardinality(t.announced) = part.events AND t.entry_count = part.entries
                      AND t.announced @> part.found
               FROM {schema}.transactions AS t WHERE t.transaction_id = part.transaction_id
           ) IS TRUE) AS complete INTO every
    FROM (
        SELECT transaction_id, count(*) AS events, count(amount) AS entries,
               array_agg(stream || ' ' || version) AS found,
               bool_and(version = 1 OR (
                   SELECT true FROM {schema}.events AS e WHERE e.stream = a.stream AND e.version = a.version - 1
               ) IS TRUE) AS follows,
               min(asset) = max(asset) AND sum({posted}) = 0 AND sum({pending}) = 0 AS balances
        FROM appended AS a GROUP BY transaction_id
    ) AS part;

    IF NOT every.follow THEN
        SELECT stream, version INTO broken FROM appended AS a
        WHERE version > 1 AND NOT EXISTS (
            SELECT FROM {schema}.events AS e WHERE e.stream = a.stream AND e.version = a.version - 1)
        ORDER BY stream, version LIMIT 1;
        RAISE EXCEPTION USING ERRCODE = 'LD002',
            MESSAGE = format('stream %s would have a gap before version %s', broken.stream, broken.version);
    END IF;
    -- False as well where several assets were moved, which are summed one by one.
    IF NOT every.balance THEN
        SELECT transaction_id, asset INTO broken
        FROM appended WHERE amount IS NOT NULL GROUP BY transaction_id, asset
        HAVING sum({posted}) <> 0 OR sum({pending}) <> 0
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'LD004',
                MESSAGE = format('debits and credits of transaction %s differ in %s',
                                 broken.transaction_id, broken.asset);
        END IF;
    END IF;
    IF NOT every.complete THEN
        SELECT transaction_id INTO broken
        FROM (
            SELECT transaction_id, count(*) AS events, count(amount) AS entries,
                   array_agg(stream || ' ' || version) AS found
            FROM appended GROUP BY transaction_id
        ) AS part
        WHERE NOT EXISTS (
            SELECT FROM {schema}.transactions AS t
            WHERE t.transaction_id = part.transaction_id AND cardinality(t.announced) = part.events
              AND t.entry_count = part.entries AND t.announced @> part.found)
        LIMIT 1;
        RAISE EXCEPTION USING ERRCODE = 'LD003',
            MESSAGE = format('transaction %s does not come with exactly the events that it announces',
                             broken.transaction_id);
    END IF;
    RETURN NULL;
END
$body$;
"""

POSTED = """CASE WHEN type NOT IN ('entry_posted', 'hold_captured') THEN 0
                         WHEN direction = 'debit' THEN amount ELSE -amount END"""

# A hold is placed once; whatever happens to it later takes from what is pending.
PENDING = """CASE WHEN type = 'entry_posted' THEN 0
                         WHEN (direction = 'debit') = (type = 'hold_placed') THEN amount ELSE -amount END"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    for statements in (TABLES, GUARD.replace("{posted}", POSTED).replace("{pending}", PENDING)):
        connection.exec_driver_sql(statements.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(f"this would lose holds: DROP SCHEMA {schema} CASCADE is for a person to say")
