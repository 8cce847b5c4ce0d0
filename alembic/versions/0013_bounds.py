"""
Bounds: the feed's clock and its times do not run ahead, no lease is for long, no checkpoint is of more than there is.

Why: the application's role may move the clock, take leases and add checkpoints.  A clock of another year would make
what is stamped known then, for good; and a lease or a checkpoint without a bound would stop the stamping or the sealing
until an owner comes.
Locks taken: leases and checkpoints are locked for a moment, while they get their guards.
How to undo: CREATE OR REPLACE the two functions as 0009 has them, and drop the two that are new, with their triggers.
Processes of an older release go on beside this one.
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

GUARDS = """
CREATE OR REPLACE FUNCTION {schema}.check_known() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
DECLARE
    broken bigint;
    known timestamptz;
BEGIN
    SELECT c.known_until INTO known FROM {schema}.feed_clock AS c;
    -- Whoever has asked what was known by a time has had the answer: nothing comes to be known by then any more.
    SELECT n.position INTO broken
    FROM (
        SELECT s.position, s.known_at, lag(s.known_at) OVER (ORDER BY s.position) AS before FROM stamped AS s
    ) AS n
    WHERE CASE
        WHEN n.before IS NOT NULL THEN n.known_at < n.before
        ELSE n.known_at <= (SELECT f.known_at FROM {schema}.feed AS f WHERE f.position = n.position - 1)
    END
       OR n.known_at <= known
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LD030',
            MESSAGE = format('position %s of the feed would be known by a time of which everything is known', broken);
    END IF;

    -- Nor is it known later than now, but for what a clock that was ahead has recorded, and what comes after that.
    SELECT s.position INTO broken
    FROM stamped AS s
    WHERE s.known_at > clock_timestamp()
      AND s.known_at IS DISTINCT FROM (
          SELECT e.recorded_at FROM {schema}.events AS e WHERE e.stream = s.stream AND e.version = s.version
      )
      AND s.known_at > interval '1 microsecond' + greatest(known, (
          SELECT f.known_at FROM {schema}.feed AS f
          WHERE f.position < (SELECT min(position) FROM stamped) ORDER BY f.position DESC LIMIT 1
      ))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LD032',
            MESSAGE = format('position %s of the feed would be known at a time that has not come', broken);
    END IF;
    RETURN NULL;
END
$body$;

CREATE OR REPLACE FUNCTION {schema}.check_clock() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
BEGIN
    IF NEW.known_until < OLD.known_until THEN
        RAISE EXCEPTION USING ERRCODE = 'LD031', MESSAGE = 'the clock of the feed never goes back';
    ELSIF NEW.known_until > clock_timestamp() THEN
        RAISE EXCEPTION USING ERRCODE = 'LD032', MESSAGE = 'the clock of the feed is not ahead of the server''s';
    END IF;
    RETURN NEW;
END
$body$;

CREATE FUNCTION {schema}.check_until() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
BEGIN
    IF NEW.until > clock_timestamp() + interval '1 day' THEN
        RAISE EXCEPTION USING ERRCODE = 'LD033', MESSAGE = 'a lease is for a day at most';
    END IF;
    RETURN NEW;
END
$body$;

CREATE FUNCTION {schema}.check_sealed() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
BEGIN
    IF NEW.size > (SELECT coalesce(max(f.position), 0) FROM {schema}.feed AS f) THEN
        RAISE EXCEPTION USING ERRCODE = 'LD034',
            MESSAGE = format('a checkpoint of %s events is of more than the feed has', NEW.size);
    ELSIF NEW.size <= (SELECT max(c.size) FROM {schema}.checkpoints AS c) THEN
        RAISE EXCEPTION USING ERRCODE = 'LD034',
            MESSAGE = format('a checkpoint of %s events does not come after the last one', NEW.size);
    END IF;
    RETURN NEW;
END
$body$;

CREATE TRIGGER check_until BEFORE INSERT OR UPDATE ON {schema}.leases
    FOR EACH ROW EXECUTE FUNCTION {schema}.check_until();
ALTER TABLE {schema}.leases ENABLE ALWAYS TRIGGER check_until;
CREATE TRIGGER check_sealed BEFORE INSERT ON {schema}.checkpoints
    FOR EACH ROW EXECUTE FUNCTION {schema}.check_sealed();
"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    connection.exec_driver_sql(GUARDS.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(
        f"the application's role could make the feed of {schema} known at any time: that is for a person to say"
    )
