"""
What was known when: each position of the feed has a time that never comes back, and dated events an index.

Why: an auditor asks what a balance was on one day, as it was believed on another, and gets the same answer for ever.
Locks taken: feed is locked while all of its rows get their time, in which nothing is stamped: about 10 s for a million
rows; events is locked against writers while its index is made: about 1 s for a million rows.
How to undo: not by a downgrade: questions that were answered would get another answer.
Processes of an older release go on beside this one, but for stampers, which are to be started anew: theirs stamp
nothing.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Known by then: the latest time at which anything up to there was recorded.
KNOWN_AT = """
ALTER TABLE {schema}.feed ADD COLUMN known_at timestamptz(6);
ALTER TABLE {schema}.feed DISABLE TRIGGER append_only;
UPDATE {schema}.feed AS f SET known_at = k.known_at
FROM (
    SELECT f.position, coalesce(max(e.recorded_at) OVER (ORDER BY f.position), 'epoch') AS known_at
    FROM {schema}.feed AS f LEFT JOIN {schema}.events AS e ON e.stream = f.stream AND e.version = f.version
) AS k
WHERE k.position = f.position;
ALTER TABLE {schema}.feed ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE {schema}.feed ALTER COLUMN known_at SET NOT NULL;

CREATE TABLE {schema}.feed_clock (
    singleton smallint NOT NULL,
    known_until timestamptz(6) NOT NULL,
    CONSTRAINT feed_clock_pkey PRIMARY KEY (singleton),
    CONSTRAINT feed_clock_one_row CHECK (singleton = 1)
) WITH (fillfactor = 50);
COMMENT ON TABLE {schema}.feed_clock IS
    'Until when everything is known, though nothing happens: what is stamped from here on is known later.';
INSERT INTO {schema}.feed_clock (singleton, known_until) VALUES (1, 'epoch');
"""

# Not those that count when they are recorded, which is nearly all in most ledgers: for them there is nothing to write.
DATED = """
CREATE INDEX events_dated ON {schema}.events (
    stream,
    (((sign(extract(epoch FROM recorded_at - effective_at))
       * (65 - position(B'1' IN (trunc(abs(extract(epoch FROM recorded_at - effective_at)))::bigint + 1)::bit(64)))
      )::integer)),
    recorded_at
) INCLUDE (effective_at, version)
WHERE effective_at <> recorded_at AND isfinite(effective_at) AND isfinite(recorded_at);
"""

GUARDS = """
CREATE FUNCTION {schema}.check_known() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
DECLARE
    broken bigint;
BEGIN
    -- Whoever has asked what was known by a time has had the answer: nothing comes to be known by then any more.
    SELECT n.position INTO broken
    FROM (
        SELECT s.position, s.known_at, lag(s.known_at) OVER (ORDER BY s.position) AS before FROM stamped AS s
    ) AS n
    WHERE CASE
        WHEN n.before IS NOT NULL THEN n.known_at < n.before
        ELSE n.known_at <= (SELECT f.known_at FROM {schema}.feed AS f WHERE f.position = n.position - 1)
    END
       OR n.known_at <= (SELECT c.known_until FROM {schema}.feed_clock AS c)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LD030',
            MESSAGE = format('position %s of the feed would be known by a time of which everything is known', broken);
    END IF;
    RETURN NULL;
END
$body$;

CREATE FUNCTION {schema}.check_clock() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
BEGIN
    IF NEW.known_until < OLD.known_until THEN
        RAISE EXCEPTION USING ERRCODE = 'LD031', MESSAGE = 'the clock of the feed never goes back';
    END IF;
    RETURN NEW;
END
$body$;

CREATE TRIGGER check_known AFTER INSERT ON {schema}.feed
    REFERENCING NEW TABLE AS stamped FOR EACH STATEMENT EXECUTE FUNCTION {schema}.check_known();
CREATE TRIGGER check_clock BEFORE UPDATE ON {schema}.feed_clock
    FOR EACH ROW EXECUTE FUNCTION {schema}.check_clock();
ALTER TABLE {schema}.feed_clock ENABLE ALWAYS TRIGGER check_clock;
CREATE TRIGGER not_removed BEFORE DELETE OR TRUNCATE ON {schema}.feed_clock
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.feed_clock ENABLE ALWAYS TRIGGER not_removed;
"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    for script in (KNOWN_AT, DATED, GUARDS):
        connection.exec_driver_sql(script.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(
        f"questions that were answered would get another answer: DROP SCHEMA {schema} CASCADE is for a person to say"
    )
