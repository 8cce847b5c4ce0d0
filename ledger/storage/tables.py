"""
The one definition of tables, constraints and indexes.

Every key begins with the column that a distributed PostgreSQL would place the row by: the stream for
events and projections, the transaction id for transactions and the outbox.  There is no foreign key
across those groups; verification checks what one would have.  Texts that are compared or sorted use
the "C" collation, so that no upgrade of a locale library can change an order.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    cast,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

DEFAULT_SCHEMA: Final = "ledger"
VERSION_TABLE: Final = "schema_version"

metadata: Final = MetaData(
    schema=DEFAULT_SCHEMA,
    naming_convention={"pk": "%(table_name)s_pkey", "ck": "%(table_name)s_%(constraint_name)s"},
)


def _text(name: str, *, key: bool = False, nullable: bool = False) -> Column[str]:
    return Column(name, Text(collation="C"), primary_key=key, nullable=nullable)


def _minor(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, Numeric(38, 0), nullable=nullable)


def _moment(name: str, *, key: bool = False) -> Column[Any]:
    return Column(name, TIMESTAMP(timezone=True, precision=6), primary_key=key, nullable=False)


def _hash(name: str) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=False)


def _numbers(*, nullable: bool = False) -> list[Column[Any]]:
    return [
        _minor(name, nullable=nullable)
        for name in ("posted_debits", "posted_credits", "pending_debits", "pending_credits")
    ]


identity: Final = Table(
    "identity",
    metadata,
    Column("singleton", SmallInteger, primary_key=True, autoincrement=False),
    Column("ledger_id", Uuid, nullable=False),
    _moment("created_at"),
    CheckConstraint("singleton = 1", name="one_row"),
    comment="Who this ledger is: one row, made at the first migration.  Genesis hashes and keyed ids contain it.",
)

transactions: Final = Table(
    "transactions",
    metadata,
    Column("transaction_id", Uuid, primary_key=True),
    _text("kind"),
    _text("scope"),
    Column("idempotency_key", Text(collation="C")),
    Column("request", JSON, nullable=False),
    Column("entry_count", SmallInteger, nullable=False),
    Column("announced", ARRAY(Text(collation="C")), nullable=False),
    Column("reference", Text(collation="C")),
    _moment("effective_at"),
    _moment("recorded_at"),
    Column("actor", Text(collation="C")),
    Column("correlation_id", Text(collation="C")),
    Column("causation_id", Text(collation="C")),
    Column("metadata", JSON),
    _hash("header_hash"),
    CheckConstraint("cardinality(announced) >= 1", name="events_announced"),
    CheckConstraint("array_ndims(announced) = 1 AND array_position(announced, NULL) IS NULL", name="announced_flat"),
    CheckConstraint("entry_count BETWEEN 0 AND cardinality(announced)", name="entry_count"),
    CheckConstraint("octet_length(header_hash) = 32", name="header_hash_size"),
    comment="Append-only: one row per accepted command; announced lists its events in order, as stream and version.",
)
Index(
    "transactions_reference",
    transactions.c.reference,
    transactions.c.transaction_id,
    postgresql_where=transactions.c.reference.is_not(None),
)
Index(
    "transactions_reverses",
    transactions.c.request.op("->>")(literal_column("'transaction_id'")),
    postgresql_where=transactions.c.kind == literal_column("'reverse'"),
)
Index(
    "transactions_correlation",
    transactions.c.correlation_id,
    transactions.c.transaction_id,
    postgresql_where=transactions.c.correlation_id.is_not(None),
)
Index(
    "transactions_causation",
    transactions.c.causation_id,
    transactions.c.transaction_id,
    postgresql_where=transactions.c.causation_id.is_not(None),
)
Index(
    "transactions_metadata",
    cast(transactions.c.metadata, JSONB).label("contained"),
    postgresql_using="gin",
    postgresql_ops={"contained": "jsonb_path_ops"},
    postgresql_where=transactions.c.metadata.is_not(None),
)

events: Final = Table(
    "events",
    metadata,
    _text("stream", key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("transaction_id", Uuid, nullable=False),
    _text("type"),
    Column("payload", JSON, nullable=False),
    Column("schema", SmallInteger, nullable=False),
    Column("asset", Text(collation="C")),
    Column("direction", Text(collation="C")),
    _minor("amount", nullable=True),
    *_numbers(nullable=True),
    _moment("effective_at"),
    _moment("recorded_at"),
    _hash("prev_hash"),
    _hash("event_hash"),
    CheckConstraint("version >= 1", name="version_positive"),
    CheckConstraint(
        "num_nulls(asset, direction, amount) IN (0, 3) AND amount > 0 AND direction IN ('debit', 'credit')",
        name="entry_complete",
    ),
    CheckConstraint(
        "num_nulls(posted_debits, posted_credits, pending_debits, pending_credits) IN (0, 4)"
        " AND least(posted_debits, posted_credits, pending_debits, pending_credits) >= 0",
        name="numbers_complete",
    ),
    CheckConstraint("octet_length(prev_hash) = 32 AND octet_length(event_hash) = 32", name="hash_size"),
    comment="Append-only: the truth.  One stream per account, versions 1, 2, 3 … without a gap.",
)
Index(
    "events_assets",
    events.c.stream,
    events.c.payload.op("->>")(literal_column("'asset'")),
    unique=True,
    postgresql_where=events.c.type == literal_column("'asset_defined'"),
)
Index("events_streams", events.c.stream, postgresql_where=events.c.version == 1)

DATED: Final = "effective_at <> recorded_at AND isfinite(effective_at) AND isfinite(recorded_at)"
"""An event that counts at another time than it is recorded."""

_SECONDS: Final = "EXTRACT(epoch FROM recorded_at - effective_at)"
DISTANCE: Final = (
    f"((sign({_SECONDS}) * (65 - POSITION(('1'::\"bit\") IN"
    f" ((trunc(abs({_SECONDS}))::bigint + 1)::bit(64))))::numeric)::integer)"
)
"""
How far apart: n for less than 2^n seconds and at least half of that, less one; negative where it counts later.

It is the number of binary digits of the whole seconds and one, so that it is exact wherever it is computed.

Of one distance, those that count on the other side of a moment than they were recorded on were recorded within 2^n
seconds of it.
"""
Index(
    "events_dated",
    events.c.stream,
    text(DISTANCE),
    events.c.recorded_at,
    postgresql_include=["effective_at", "version"],
    postgresql_where=text(DATED),
)

accounts: Final = Table(
    "accounts",
    metadata,
    _text("account", key=True),
    _text("account_type"),
    _text("asset"),
    Column("scale", SmallInteger, nullable=False),
    _minor("min_balance", nullable=True),
    _minor("max_balance", nullable=True),
    _text("state"),
    Column("metadata", JSON, nullable=False),
    Column("stripes", SmallInteger, nullable=False, server_default=text("1")),
    Column("streams", SmallInteger, nullable=False, server_default=text("1")),
    comment="Projection: what each account is, in every one of its streams.",
)
Index("accounts_asset", accounts.c.asset, accounts.c.account)

balances: Final = Table(
    "balances",
    metadata,
    _text("stream", key=True),
    Column("version", BigInteger, nullable=False),
    *_numbers(),
    _moment("recorded_at"),
    _hash("head_hash"),
    _hash("checksum"),
    CheckConstraint("version >= 1", name="version_positive"),
    # Room on each page for the next version of its rows, so that an update touches no index.
    postgresql_with={"fillfactor": "50"},
    comment="Projection: the head of every stream; compare-and-set on version.",
)

holds: Final = Table(
    "holds",
    metadata,
    _text("account", key=True),
    Column("hold_id", Uuid, primary_key=True),
    _text("direction"),
    _text("asset"),
    *[_minor(name) for name in ("amount", "captured", "released", "expired")],
    Column("expires_at", TIMESTAMP(timezone=True, precision=6)),
    _hash("checksum"),
    CheckConstraint(
        "least(captured, released, expired) >= 0 AND captured + released + expired <= amount", name="within_amount"
    ),
    comment="Projection: each side of each hold, and what became of it.",
)
_PENDING: Final = text("captured + released + expired < amount AND expires_at IS NOT NULL")
Index("holds_due", holds.c.account, holds.c.expires_at, postgresql_where=_PENDING)
Index("holds_expiring", holds.c.expires_at, holds.c.hold_id, postgresql_where=_PENDING)

periods: Final = Table(
    "periods",
    metadata,
    Column("singleton", SmallInteger, primary_key=True, autoincrement=False),
    Column("closed_until", TIMESTAMP(timezone=True, precision=6)),
    CheckConstraint("singleton = 1", name="one_row"),
    comment="Projection: until when the books are closed."
    "  Locked by who closes them, shared by who writes to the past.",
)

projection_repairs: Final = Table(
    "projection_repairs",
    metadata,
    _text("stream", key=True),
    Column("repair_id", Uuid, primary_key=True),
    _moment("repaired_at"),
    _text("noticed_by"),
    Column("found_version", BigInteger),
    Column("expected_version", BigInteger),
    Column("found", JSON),
    Column("expected", JSON),
    comment="Append-only: every mismatch between a projection and the log that was seen and mended.",
)

outbox: Final = Table(
    "outbox",
    metadata,
    Column("batch_id", Uuid, primary_key=True),
    Column("transaction_ids", ARRAY(Uuid), nullable=False),
    _moment("recorded_at"),
    comment="What the feed has yet to number: one row per database transaction, with the time of the earliest of them.",
)
Index("outbox_order", outbox.c.recorded_at, outbox.c.batch_id)

# One writer makes this order, so that it is in one place: on a distributed PostgreSQL feed, leases and subscriptions
# are tables of one node.  Its second key is what says that no event has two positions, and finds the one that it has.
feed: Final = Table(
    "feed",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    _text("stream"),
    Column("version", BigInteger, nullable=False),
    Column("transaction_id", Uuid, nullable=False),
    _hash("event_hash"),
    _moment("known_at"),
    UniqueConstraint("stream", "version", name="feed_event"),
    CheckConstraint("position >= 1", name="position_positive"),
    CheckConstraint("octet_length(event_hash) = 32", name="hash_size"),
    comment="Append-only: the order of everything.  One row per event, positions 1, 2, 3 … without a gap.",
)

feed_clock: Final = Table(
    "feed_clock",
    metadata,
    Column("singleton", SmallInteger, primary_key=True, autoincrement=False),
    _moment("known_until"),
    CheckConstraint("singleton = 1", name="one_row"),
    postgresql_with={"fillfactor": "50"},
    comment="Until when everything is known, though nothing happens: what is stamped from here on is known later.",
)

leases: Final = Table(
    "leases",
    metadata,
    _text("name", key=True),
    Column("epoch", BigInteger, nullable=False),
    _text("owner"),
    _moment("until"),
    CheckConstraint("epoch >= 1", name="epoch_positive"),
    postgresql_with={"fillfactor": "50"},
    comment="Who does what only one may do at a time; compare-and-set on epoch, and until says only when to try.",
)

subscriptions: Final = Table(
    "subscriptions",
    metadata,
    _text("name", key=True),
    Column("position", BigInteger, nullable=False),
    _text("owner"),
    _moment("changed_at"),
    CheckConstraint("position >= 0", name="position"),
    postgresql_with={"fillfactor": "50"},
    comment="How far each consumer of the feed is; compare-and-set on position, in the consumer's own transaction.",
)

tree_tiles: Final = Table(
    "tree_tiles",
    metadata,
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
    CheckConstraint("level >= 0 AND number >= 0", name="place"),
    CheckConstraint("octet_length(hashes) = 8192", name="full"),
    comment="Append-only: the full tiles of the tree over the feed, 256 hashes each (C2SP tlog-tiles).",
)

checkpoints: Final = Table(
    "checkpoints",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    _hash("root"),
    Column("note", LargeBinary, nullable=False),
    _moment("sealed_at"),
    CheckConstraint("size >= 1", name="size_positive"),
    CheckConstraint("octet_length(root) = 32", name="root_size"),
    comment="Append-only: size and root of the tree, as they were signed, with a key that the database never sees.",
)

inbox_streams: Final = Table(
    "inbox_streams",
    metadata,
    _text("stream", key=True),
    _text("source", key=True),
    Column("start_sequence", BigInteger),
    Column("last_sequence", BigInteger, nullable=False),
    Column("highest_sequence", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    _text("status"),
    Column("waiting_since", TIMESTAMP(timezone=True, precision=6)),
    Column("deadline", TIMESTAMP(timezone=True, precision=6)),
    Column("attempts", Integer, nullable=False),
    _text("last_error", nullable=True),
    Column("release_to", BigInteger),
    Column("revision", BigInteger, nullable=False),
    CheckConstraint("held >= 0 AND attempts >= 0 AND revision >= 0", name="counts"),
    comment="Where each stream of messages stands; compare-and-set on revision.  Never expires.",
)
Index(
    "inbox_streams_due",
    inbox_streams.c.source,
    inbox_streams.c.deadline,
    inbox_streams.c.stream,
    postgresql_where=inbox_streams.c.deadline.is_not(None),
)
Index(
    "inbox_streams_stuck",
    inbox_streams.c.source,
    inbox_streams.c.stream,
    postgresql_where=inbox_streams.c.status != literal_column("'flowing'"),
)

inbox_messages: Final = Table(
    "inbox_messages",
    metadata,
    _text("stream", key=True),
    _text("source", key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    _text("message_id"),
    Column("digest", LargeBinary, nullable=False),
    _text("state"),
    Column("content", JSON),
    Column("outcome", JSON),
    _moment("received_at"),
    comment="Messages of strict streams: held until their turn, and what became of them.  Contents may be given up.",
)
Index("inbox_messages_id", inbox_messages.c.stream, inbox_messages.c.source, inbox_messages.c.message_id)
Index(
    "inbox_messages_held",
    inbox_messages.c.stream,
    inbox_messages.c.source,
    inbox_messages.c.sequence,
    postgresql_where=inbox_messages.c.state == literal_column("'held'"),
)

inbox_ids: Final = Table(
    "inbox_ids",
    metadata,
    _text("stream", key=True),
    _text("source", key=True),
    _text("message_id", key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("content", JSON),
    Column("outcome", JSON),
    _moment("received_at"),
    comment="Messages whose order does not matter: each id once.",
)

inbox_releases: Final = Table(
    "inbox_releases",
    metadata,
    _text("stream", key=True),
    _text("source", key=True),
    Column("first_sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("last_sequence", BigInteger, nullable=False),
    _text("reason"),
    _text("actor", nullable=True),
    _text("note", nullable=True),
    _moment("recorded_at"),
    comment="Append-only: what streams went on without, and who decided so.",
)

dead_letters: Final = Table(
    "dead_letters",
    metadata,
    _text("stream", key=True),
    _text("source", key=True),
    Column("dead_letter_id", Uuid, primary_key=True),
    Column("sequence", BigInteger),
    _text("message_id"),
    _text("why"),
    _text("error", nullable=True),
    Column("attempts", Integer, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("content", JSON, nullable=False),
    _moment("first_seen"),
    _moment("last_seen"),
    _text("state"),
    UniqueConstraint("stream", "source", "message_id", "digest", "why", name="dead_letters_same"),
    comment="Messages that a person decides about.",
)
Index("dead_letters_source", dead_letters.c.source, dead_letters.c.dead_letter_id)
Index(
    "dead_letters_open",
    dead_letters.c.source,
    dead_letters.c.why,
    postgresql_where=dead_letters.c.state == literal_column("'open'"),
)

dead_letter_decisions: Final = Table(
    "dead_letter_decisions",
    metadata,
    _text("stream", key=True),
    _text("source", key=True),
    Column("dead_letter_id", Uuid, primary_key=True),
    _moment("recorded_at", key=True),
    _text("decision"),
    _text("actor", nullable=True),
    _text("note", nullable=True),
    comment="Append-only: what was decided about dead letters, by whom and why.",
)

inbox_counters: Final = Table(
    "inbox_counters",
    metadata,
    _text("source", key=True),
    Column("shard", SmallInteger, primary_key=True, autoincrement=False),
    _text("counter", key=True),
    Column("count", BigInteger, nullable=False),
    comment="What the inbox counted; several rows a counter, so that no row is hot.",
)

consumer_offsets: Final = Table(
    "consumer_offsets",
    metadata,
    _text("group_name", key=True),
    _text("topic", key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("next_offset", BigInteger),
    Column("epoch", BigInteger, nullable=False),
    _text("owner"),
    Column("partitions", Integer, nullable=False),
    _moment("changed_at"),
    CheckConstraint("next_offset >= 0 AND epoch > 0 AND partition >= 0", name="counts"),
    comment="Where each consumer group stands in each partition; compare-and-set on epoch and offset.",
)

subject_keys: Final = Table(
    "subject_keys",
    metadata,
    _text("subject", key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("key_id", Uuid, nullable=False),
    Column("key", LargeBinary),
    _moment("created_at"),
    Column("forgotten_at", TIMESTAMP(timezone=True, precision=6)),
    _text("forgotten_by", nullable=True),
    _text("reason", nullable=True),
    CheckConstraint("generation >= 1", name="generation"),
    CheckConstraint("octet_length(key) = 32", name="key_size"),
    CheckConstraint(
        "num_nulls(forgotten_at, forgotten_by, reason) IN (0, 3) AND (key IS NULL) = (forgotten_at IS NOT NULL)",
        name="forgotten",
    ),
    # The row as it was before its key was destroyed does not wait for others to be vacuumed.
    postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "0"},
    comment="What personal data is encrypted with."
    "  A key is made once and destroyed once; its row stays, with who and why.",
)
Index("subject_keys_id", subject_keys.c.key_id)

api_keys: Final = Table(
    "api_keys",
    metadata,
    _text("key_id", key=True),
    _text("actor"),
    Column("slot", SmallInteger, nullable=False),
    Column("scopes", ARRAY(Text(collation="C")), nullable=False),
    _hash("secret_hash"),
    _moment("created_at"),
    _text("created_by"),
    Column("expires_at", TIMESTAMP(timezone=True, precision=6)),
    Column("revoked_at", TIMESTAMP(timezone=True, precision=6)),
    _text("revoked_by", nullable=True),
    _text("idempotency_key", nullable=True),
    CheckConstraint("slot IN (1, 2)", name="slot"),
    CheckConstraint("octet_length(secret_hash) = 32", name="hash_size"),
    CheckConstraint("cardinality(scopes) > 0", name="some_scope"),
    CheckConstraint("num_nulls(revoked_at, revoked_by) IN (0, 2)", name="revoked"),
    comment="Who may do what: the hash of each key, two at most for an actor at once."
    "  A key is made once and revoked once.",
)
Index(
    "api_keys_two_at_once",
    api_keys.c.actor,
    api_keys.c.slot,
    unique=True,
    postgresql_where=api_keys.c.revoked_at.is_(None),
)
Index(
    "api_keys_made_once",
    api_keys.c.created_by,
    api_keys.c.idempotency_key,
    unique=True,
    postgresql_where=api_keys.c.idempotency_key.is_not(None),
)

account_reads: Final = Table(
    "account_reads",
    metadata,
    _text("account", key=True),
    _moment("recorded_at", key=True),
    Column("read_id", Uuid, primary_key=True),
    _text("actor"),
    _text("question"),
    comment="Append-only: which accounts auditors have read through the service, when, and by which question.",
)

privileged_actions: Final = Table(
    "privileged_actions",
    metadata,
    Column("action_id", Uuid, primary_key=True),
    _moment("recorded_at"),
    _text("action"),
    _text("actor", nullable=True),
    _text("database_user"),
    _text("subject"),
    Column("details", JSON, nullable=False),
    comment="Append-only: what was done to the ledger and not in it: migrations, roles, rebuilds, consumers set back.",
)

replays: Final = Table(
    "replays",
    metadata,
    Column("replay_id", Uuid, primary_key=True),
    Column("transaction_id", Uuid, nullable=False),
    _moment("replayed_at"),
    _text("actor", nullable=True),
    comment="Append-only: answers that were given again, since their idempotency key had been used before.",
)

# Numbered by one at a time, so that it is in one place, as the feed is.
trail: Final = Table(
    "trail",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    _text("kind"),
    _text("place"),
    UniqueConstraint("kind", "place", name="trail_place"),
    CheckConstraint("number >= 1", name="number_positive"),
    comment="Append-only: the order of what happened beside the log."
    "  Numbers 1, 2, 3 … without a gap, for what has ended.",
)

bank_statements: Final = Table(
    "bank_statements",
    metadata,
    *[_text(name, key=True) for name in ("account", "statement_id")],
    *[_text(name) for name in ("place", "format")],
    *[_hash(name) for name in ("file_sha256", "digest")],
    _text("sides"),
    *[Column(name, Date, nullable=False) for name in ("begins_on", "opens_on", "closes_on")],
    *[_minor(name) for name in ("opening", "closing")],
    Column("entry_count", Integer, nullable=False),
    _text("actor"),
    _moment("staged_at"),
    UniqueConstraint("account", "digest", name="bank_statements_digest"),
    CheckConstraint("octet_length(file_sha256) = 32 AND octet_length(digest) = 32", name="hash_size"),
    CheckConstraint("sides IN ('mirrored', 'same')", name="sides"),
    CheckConstraint("begins_on <= opens_on AND opens_on <= closes_on", name="days"),
    CheckConstraint("entry_count >= 0", name="entry_count"),
    comment="Append-only: what a bank said of an account; opening and closing in minor units, credit positive.",
)

bank_entries: Final = Table(
    "bank_entries",
    metadata,
    *[_text(name, key=True) for name in ("account", "statement_id")],
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("booked_on", Date, nullable=False),
    _minor("amount"),
    Column("names", ARRAY(Text(collation="C")), nullable=False),
    *[_text(name) for name in ("description", "place")],
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint("amount <> 0", name="amount"),
    comment="Append-only: the booked entries of those statements, in minor units, credit positive;"
    " names are its references.",
)

reconciliation_decisions: Final = Table(
    "reconciliation_decisions",
    metadata,
    _text("account", key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    *[_text(name) for name in ("decision", "rule")],
    _minor("amount"),
    Column("items", JSON, nullable=False),
    *[_text(name) for name in ("settled", "actor")],
    _text("reason", nullable=True),
    _moment("recorded_at"),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint(
        "decision IN ('match', 'unmatch', 'note') AND (rule <> 'manual' OR reason IS NOT NULL)", name="kind"
    ),
    comment="Append-only: which entries of an account and of its statements are the same, who says so, and why.",
)

reconciliation_claims: Final = Table(
    "reconciliation_claims",
    metadata,
    *[_text(name, key=True) for name in ("account", "side", "origin")],
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("decision", BigInteger, nullable=False),
    CheckConstraint("side IN ('ours', 'theirs')", name="side"),
    CheckConstraint("number >= 1 AND generation >= 1 AND decision >= 1", name="counts"),
    comment="Append-only: the decisions about each entry, counted 1, 2, 3 …: odd ones match it,"
    " even ones take that back.",
)
Index("reconciliation_claims_decision", reconciliation_claims.c.account, reconciliation_claims.c.decision)

reconciliations: Final = Table(
    "reconciliations",
    metadata,
    _text("account", key=True),
    Column("reconciliation_id", Uuid, primary_key=True),
    *[_text(name) for name in ("statement_id", "pin")],
    Column("rules", JSON, nullable=False),
    Column("reconciled", Boolean, nullable=False),
    _hash("report_sha256"),
    _text("actor"),
    _moment("recorded_at"),
    CheckConstraint("octet_length(report_sha256) = 32", name="hash_size"),
    comment="Append-only: who reconciled an account with a statement, from where in log and decisions,"
    " and what came of it.",
)

APPEND_ONLY: Final = (
    "identity",
    "transactions",
    "events",
    "projection_repairs",
    "inbox_releases",
    "dead_letter_decisions",
    "feed",
    "tree_tiles",
    "checkpoints",
    "account_reads",
    "bank_statements",
    "bank_entries",
    "reconciliation_decisions",
    "reconciliation_claims",
    "reconciliations",
    "privileged_actions",
    "replays",
    "trail",
)
"""Tables that the database itself refuses to change."""


def include_object(item: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """
    Keep an application's own Alembic autogenerate away from the ledger's tables.

    Pass it to `context.configure(include_object=…)` in the application's `env.py`; where the ledger lives
    in a schema of another name, pass `include_object_for("that name")` instead.
    """
    return bool(include_object_for(DEFAULT_SCHEMA)(item, name, kind, reflected, compare_to))


def include_object_for(schema: str) -> Any:
    """An `include_object` for a ledger in `schema`."""

    def include(item: Any, _name: str | None, kind: str, *_: object) -> bool:
        table = item if kind == "table" else getattr(item, "table", None)
        return getattr(table, "schema", None) != schema

    return include
