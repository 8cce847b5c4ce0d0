"""
The inbox: where each stream of messages stands, what is kept of them, and what waits for a person.

Why: messages that arrive late, twice, shuffled or not at all.
Locks taken: none that anyone could wait for; everything is new.
How to undo: not by a downgrade; without its cursors the inbox would let old messages happen again.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE {schema}.inbox_streams (
    stream text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    start_sequence bigint,
    last_sequence bigint NOT NULL,
    highest_sequence bigint NOT NULL,
    held bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    waiting_since timestamptz(6),
    deadline timestamptz(6),
    attempts integer NOT NULL,
    last_error text COLLATE "C",
    release_to bigint,
    revision bigint NOT NULL,
    CONSTRAINT inbox_streams_pkey PRIMARY KEY (stream, source),
    CONSTRAINT inbox_streams_counts CHECK (held >= 0 AND attempts >= 0 AND revision >= 0)
);
COMMENT ON TABLE {schema}.inbox_streams IS
    'Where each stream of messages stands; compare-and-set on revision.  Never expires.';
CREATE INDEX inbox_streams_due ON {schema}.inbox_streams (source, deadline, stream) WHERE deadline IS NOT NULL;
CREATE INDEX inbox_streams_stuck ON {schema}.inbox_streams (source, stream) WHERE status <> 'flowing';

CREATE TABLE {schema}.inbox_messages (
    stream text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    state text COLLATE "C" NOT NULL,
    content json,
    outcome json,
    received_at timestamptz(6) NOT NULL,
    CONSTRAINT inbox_messages_pkey PRIMARY KEY (stream, source, sequence)
);
COMMENT ON TABLE {schema}.inbox_messages IS
    'Messages of strict streams: held until their turn, and what became of them.  Contents may be given up.';
CREATE INDEX inbox_messages_id ON {schema}.inbox_messages (stream, source, message_id);
CREATE INDEX inbox_messages_held ON {schema}.inbox_messages (stream, source, sequence) WHERE state = 'held';

CREATE TABLE {schema}.inbox_ids (
    stream text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    content json,
    outcome json,
    received_at timestamptz(6) NOT NULL,
    CONSTRAINT inbox_ids_pkey PRIMARY KEY (stream, source, message_id)
);
COMMENT ON TABLE {schema}.inbox_ids IS 'Messages whose order does not matter: each id once.';

CREATE TABLE {schema}.inbox_releases (
    stream text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    first_sequence bigint NOT NULL,
    last_sequence bigint NOT NULL,
    reason text COLLATE "C" NOT NULL,
    actor text COLLATE "C",
    note text COLLATE "C",
    recorded_at timestamptz(6) NOT NULL,
    CONSTRAINT inbox_releases_pkey PRIMARY KEY (stream, source, first_sequence)
);
COMMENT ON TABLE {schema}.inbox_releases IS 'Append-only: what streams went on without, and who decided so.';

CREATE TABLE {schema}.dead_letters (
    stream text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    dead_letter_id uuid NOT NULL,
    sequence bigint,
    message_id text COLLATE "C" NOT NULL,
    why text COLLATE "C" NOT NULL,
    error text COLLATE "C",
    attempts integer NOT NULL,
    digest bytea NOT NULL,
    content json NOT NULL,
    first_seen timestamptz(6) NOT NULL,
    last_seen timestamptz(6) NOT NULL,
    state text COLLATE "C" NOT NULL,
    CONSTRAINT dead_letters_pkey PRIMARY KEY (stream, source, dead_letter_id),
    CONSTRAINT dead_letters_same UNIQUE (stream, source, message_id, digest, why)
);
COMMENT ON TABLE {schema}.dead_letters IS 'Messages that a person decides about.';
CREATE INDEX dead_letters_source ON {schema}.dead_letters (source, dead_letter_id);

CREATE TABLE {schema}.dead_letter_decisions (
    stream text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    dead_letter_id uuid NOT NULL,
    recorded_at timestamptz(6) NOT NULL,
    decision text COLLATE "C" NOT NULL,
    actor text COLLATE "C",
    note text COLLATE "C",
    CONSTRAINT dead_letter_decisions_pkey PRIMARY KEY (stream, source, dead_letter_id, recorded_at)
);
COMMENT ON TABLE {schema}.dead_letter_decisions IS 'Append-only: what was decided about dead letters, by whom and why.';

CREATE TABLE {schema}.inbox_counters (
    source text COLLATE "C" NOT NULL,
    shard smallint NOT NULL,
    counter text COLLATE "C" NOT NULL,
    count bigint NOT NULL,
    CONSTRAINT inbox_counters_pkey PRIMARY KEY (source, shard, counter)
);
COMMENT ON TABLE {schema}.inbox_counters IS 'What the inbox counted; several rows a counter, so that no row is hot.';
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
    for table in ("inbox_releases", "dead_letter_decisions"):
        connection.exec_driver_sql(APPEND_ONLY.replace("{schema}", schema).replace("{table}", table))
    connection.execution_options(no_parameters=False)


def downgrade(schema: str) -> None:
    raise NotImplementedError(f"messages would happen twice: DROP SCHEMA {schema} CASCADE is for a person to say")
