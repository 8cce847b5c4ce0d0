"""
Keys of subjects: what somebody's personal data is encrypted with, until it is destroyed.

Why: the log never changes, and a person may ask to be forgotten.  What is encrypted can stay when its key is gone.
Locks taken: none that anybody waits for; the table is new.
How to undo: not by a downgrade: everything that was encrypted would be lost.
Processes of an older release go on beside this one.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.subject_keys (
    subject text COLLATE "C" NOT NULL,
    generation integer NOT NULL,
    key_id uuid NOT NULL,
    key bytea,
    created_at timestamptz(6) NOT NULL,
    forgotten_at timestamptz(6),
    forgotten_by text COLLATE "C",
    reason text COLLATE "C",
    CONSTRAINT subject_keys_pkey PRIMARY KEY (subject, generation),
    CONSTRAINT subject_keys_generation CHECK (generation >= 1),
    CONSTRAINT subject_keys_key_size CHECK (octet_length(key) = 32),
    CONSTRAINT subject_keys_forgotten CHECK (
        num_nulls(forgotten_at, forgotten_by, reason) IN (0, 3) AND (key IS NULL) = (forgotten_at IS NOT NULL)
    )
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 0);
CREATE INDEX subject_keys_id ON {schema}.subject_keys (key_id);
COMMENT ON TABLE {schema}.subject_keys IS
    'What personal data is encrypted with.  A key is made once and destroyed once; its row stays, with who and why.';
"""

# Row triggers.  An INSERT … ON CONFLICT DO UPDATE meets that of updates as any UPDATE does; that of inserts does not
# stand in the way of a restore, whose rows come in any order.
GUARDS = """
CREATE FUNCTION {schema}.check_subject_key() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.key IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'LD020', MESSAGE = 'a key that never was cannot be destroyed';
        END IF;
        IF NEW.generation > 1 AND (
            SELECT k.forgotten_at IS NOT NULL FROM {schema}.subject_keys AS k
            WHERE k.subject = NEW.subject AND k.generation = NEW.generation - 1
        ) IS NOT TRUE THEN
            RAISE EXCEPTION USING ERRCODE = 'LD020',
                MESSAGE = format('key %s of a subject comes when its key before was destroyed', NEW.generation);
        END IF;
    ELSIF OLD.key IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'LD020', MESSAGE = 'what was forgotten stays forgotten';
    ELSIF NEW.key IS NOT NULL
        OR (NEW.subject, NEW.generation, NEW.key_id, NEW.created_at)
           IS DISTINCT FROM (OLD.subject, OLD.generation, OLD.key_id, OLD.created_at) THEN
        RAISE EXCEPTION USING ERRCODE = 'LD020', MESSAGE = 'a key is destroyed, and never changed';
    END IF;
    RETURN NEW;
END
$body$;

CREATE TRIGGER check_made BEFORE INSERT ON {schema}.subject_keys
    FOR EACH ROW EXECUTE FUNCTION {schema}.check_subject_key();
CREATE TRIGGER check_destroyed BEFORE UPDATE ON {schema}.subject_keys
    FOR EACH ROW EXECUTE FUNCTION {schema}.check_subject_key();
ALTER TABLE {schema}.subject_keys ENABLE ALWAYS TRIGGER check_destroyed;
CREATE TRIGGER not_removed BEFORE DELETE OR TRUNCATE ON {schema}.subject_keys
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.subject_keys ENABLE ALWAYS TRIGGER not_removed;
"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    for script in (TABLES, GUARDS):
        connection.exec_driver_sql(script.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(
        f"what was encrypted would be lost with its keys: DROP SCHEMA {schema} CASCADE is for a person to say"
    )
