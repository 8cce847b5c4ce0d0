"""
The feed: the order of everything, who may write it, and how far its readers are.

Why: what is numbered when it is written is not read in that order, since transactions do not end in the order in which
they begin.  One stamper at a time numbers what has ended; the outbox has waited for it since the first release.
Locks taken: a share lock on outbox while its index is made, in which writers wait: seconds for a million rows.
How to undo: not by a downgrade: consumers would be told other positions for the same events.
Processes of an older release go on beside this one.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.feed (
    position bigint NOT NULL,
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    transaction_id uuid NOT NULL,
    event_hash bytea NOT NULL,
    CONSTRAINT feed_pkey PRIMARY KEY (position),
    CONSTRAINT feed_event UNIQUE (stream, version),
    CONSTRAINT feed_position_positive CHECK (position >= 1),
    CONSTRAINT feed_hash_size CHECK (octet_length(event_hash) = 32)
);
COMMENT ON TABLE {schema}.feed IS
    'Append-only: the order of everything.  One row per event, positions 1, 2, 3 … without a gap.';

CREATE TABLE {schema}.leases (
    name text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    owner text COLLATE "C" NOT NULL,
    until timestamptz(6) NOT NULL,
    CONSTRAINT leases_pkey PRIMARY KEY (name),
    CONSTRAINT leases_epoch_positive CHECK (epoch >= 1)
) WITH (fillfactor = 50);
COMMENT ON TABLE {schema}.leases IS
    'Who does what only one may do at a time; compare-and-set on epoch, and until says only when to try.';

CREATE TABLE {schema}.subscriptions (
    name text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    owner text COLLATE "C" NOT NULL,
    changed_at timestamptz(6) NOT NULL,
    CONSTRAINT subscriptions_pkey PRIMARY KEY (name),
    CONSTRAINT subscriptions_position CHECK (position >= 0)
) WITH (fillfactor = 50);
COMMENT ON TABLE {schema}.subscriptions IS
    'How far each consumer of the feed is; compare-and-set on position, in the consumer''s own transaction.';

CREATE INDEX outbox_order ON {schema}.outbox (recorded_at, batch_id);
COMMENT ON TABLE {schema}.outbox IS
    'What the feed has yet to number: one row per database transaction, with the time of the earliest of them.';
"""

GUARDS = """
CREATE FUNCTION {schema}.check_stamped() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
DECLARE
    low bigint;
    high bigint;
    rows bigint;
    broken record;
BEGIN
    SELECT min(position), max(position), count(*) INTO low, high, rows FROM stamped;
    IF high - low + 1 <> rows
       OR low > 1 AND (SELECT true FROM {schema}.feed AS f WHERE f.position = low - 1) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'LD005',
            MESSAGE = format('the feed would have a gap before or after position %s', low);
    END IF;

    -- In the order of positions each stream goes on where it stood: with the version after its last one.
    SELECT n.stream, n.version INTO broken
    FROM (
        SELECT stream, version, lag(version) OVER (PARTITION BY stream ORDER BY position) AS before FROM stamped
    ) AS n
    WHERE CASE
        WHEN n.before IS NOT NULL THEN n.version <> n.before + 1
        WHEN n.version > 1 THEN (
            SELECT f.position < low FROM {schema}.feed AS f WHERE f.stream = n.stream AND f.version = n.version - 1
        ) IS NOT TRUE
    END
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LD006',
            MESSAGE = format('version %s of stream %s would not follow the one before it', broken.version,
                             broken.stream);
    END IF;

    SELECT s.stream, s.version INTO broken
    FROM stamped AS s
    WHERE (
        SELECT e.event_hash = s.event_hash AND e.transaction_id = s.transaction_id
        FROM {schema}.events AS e WHERE e.stream = s.stream AND e.version = s.version
    ) IS NOT TRUE
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LD007',
            MESSAGE = format('the log has no such event: version %s of stream %s', broken.version, broken.stream);
    END IF;
    RETURN NULL;
END
$body$;

CREATE FUNCTION {schema}.check_handed_over() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
DECLARE
    broken record;
BEGIN
    -- What leaves the outbox is in the feed.  All events of a transaction go there together: one stands for all.
    IF TG_OP = 'DELETE' THEN
        SELECT gone.id INTO broken
        FROM (SELECT unnest(transaction_ids) AS id FROM before) AS gone
        WHERE (
            SELECT true FROM {schema}.transactions AS t JOIN {schema}.feed AS f
              ON f.stream = substring(t.announced[1] FROM '^(.*) [0-9]+$')
             AND f.version = substring(t.announced[1] FROM '[0-9]+$')::bigint
            WHERE t.transaction_id = gone.id
        ) IS NOT TRUE
        LIMIT 1;
    ELSE
        SELECT gone.id INTO broken
        FROM (SELECT unnest(transaction_ids) AS id FROM before EXCEPT SELECT unnest(transaction_ids) FROM after) AS gone
        WHERE (
            SELECT true FROM {schema}.transactions AS t JOIN {schema}.feed AS f
              ON f.stream = substring(t.announced[1] FROM '^(.*) [0-9]+$')
             AND f.version = substring(t.announced[1] FROM '[0-9]+$')::bigint
            WHERE t.transaction_id = gone.id
        ) IS NOT TRUE
        LIMIT 1;
    END IF;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LD008',
            MESSAGE = format('transaction %s would leave the outbox and is not in the feed', broken.id);
    END IF;
    RETURN NULL;
END
$body$;

CREATE TRIGGER check_stamped AFTER INSERT ON {schema}.feed
    REFERENCING NEW TABLE AS stamped FOR EACH STATEMENT EXECUTE FUNCTION {schema}.check_stamped();
CREATE TRIGGER check_removed AFTER DELETE ON {schema}.outbox
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION {schema}.check_handed_over();
CREATE TRIGGER check_changed AFTER UPDATE ON {schema}.outbox
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.check_handed_over();
CREATE TRIGGER not_truncated BEFORE TRUNCATE ON {schema}.outbox
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
"""

APPEND_ONLY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.feed
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.feed ENABLE ALWAYS TRIGGER append_only;
"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    for script in (TABLES, GUARDS, APPEND_ONLY):
        connection.exec_driver_sql(script.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(
        f"consumers would be told other positions: DROP SCHEMA {schema} CASCADE is for a person to say"
    )
