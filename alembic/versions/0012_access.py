"""
Access: API keys, of which only hashes are kept, and what auditors have read; and an index of open dead letters.

Why: the actor of an event comes from a credential, and a key that leaks from here would be somebody.  Whoever watches
the service counts the dead letters that are open every few seconds, however many there ever were.
Locks taken: a share lock on dead_letters while its index is made, in which no message is set aside: as long as it takes
to read them once.  The tables are new.
How to undo: not by a downgrade: it would be forgotten who may do what, and who has seen what.
Processes of an older release go on beside this one.
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.api_keys (
    key_id text COLLATE "C" NOT NULL,
    actor text COLLATE "C" NOT NULL,
    slot smallint NOT NULL,
    scopes text[] COLLATE "C" NOT NULL,
    secret_hash bytea NOT NULL,
    created_at timestamptz(6) NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    expires_at timestamptz(6),
    revoked_at timestamptz(6),
    revoked_by text COLLATE "C",
    idempotency_key text COLLATE "C",
    CONSTRAINT api_keys_pkey PRIMARY KEY (key_id),
    CONSTRAINT api_keys_slot CHECK (slot IN (1, 2)),
    CONSTRAINT api_keys_hash_size CHECK (octet_length(secret_hash) = 32),
    CONSTRAINT api_keys_some_scope CHECK (cardinality(scopes) > 0),
    CONSTRAINT api_keys_revoked CHECK (num_nulls(revoked_at, revoked_by) IN (0, 2))
);
CREATE UNIQUE INDEX api_keys_two_at_once ON {schema}.api_keys (actor, slot) WHERE revoked_at IS NULL;
CREATE UNIQUE INDEX api_keys_made_once ON {schema}.api_keys (created_by, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
COMMENT ON TABLE {schema}.api_keys IS
    'Who may do what: the hash of each key, two at most for an actor at once.  A key is made once and revoked once.';

CREATE TABLE {schema}.account_reads (
    account text COLLATE "C" NOT NULL,
    recorded_at timestamptz(6) NOT NULL,
    read_id uuid NOT NULL,
    actor text COLLATE "C" NOT NULL,
    question text COLLATE "C" NOT NULL,
    CONSTRAINT account_reads_pkey PRIMARY KEY (account, recorded_at, read_id)
);
COMMENT ON TABLE {schema}.account_reads IS
    'Append-only: which accounts auditors have read through the service, when, and by which question.';
"""

GUARDS = """
CREATE FUNCTION {schema}.check_api_key() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
BEGIN
    IF OLD.revoked_at IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'LD030', MESSAGE = 'a key that was revoked stays revoked';
    ELSIF NEW.revoked_at IS NULL
        OR (NEW.key_id, NEW.actor, NEW.slot, NEW.scopes, NEW.secret_hash)
           IS DISTINCT FROM (OLD.key_id, OLD.actor, OLD.slot, OLD.scopes, OLD.secret_hash)
        OR (NEW.created_at, NEW.created_by, NEW.expires_at, NEW.idempotency_key)
           IS DISTINCT FROM (OLD.created_at, OLD.created_by, OLD.expires_at, OLD.idempotency_key)
    THEN
        RAISE EXCEPTION USING ERRCODE = 'LD030', MESSAGE = 'a key is revoked, and never changed';
    END IF;
    RETURN NEW;
END
$body$;

CREATE TRIGGER check_revoked BEFORE UPDATE ON {schema}.api_keys
    FOR EACH ROW EXECUTE FUNCTION {schema}.check_api_key();
ALTER TABLE {schema}.api_keys ENABLE ALWAYS TRIGGER check_revoked;
CREATE TRIGGER not_removed BEFORE DELETE OR TRUNCATE ON {schema}.api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.api_keys ENABLE ALWAYS TRIGGER not_removed;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.account_reads
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.account_reads ENABLE ALWAYS TRIGGER append_only;
"""

INDEX = """
CREATE INDEX dead_letters_open ON {schema}.dead_letters (source, why) WHERE state = 'open';
"""


def upgrade(schema: str) -> None:
    connection = op.get_bind()
    # Without parameters a percent sign in the text is only a percent sign.
    connection.execution_options(no_parameters=True)
    for script in (TABLES, GUARDS, INDEX):
        connection.exec_driver_sql(script.replace("{schema}", schema))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(
        f"who may do what would be forgotten: DROP SCHEMA {schema} CASCADE is for a person to say"
    )
