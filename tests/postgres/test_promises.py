"""What the database itself refuses, whoever asks: attacked with plain SQL, as the owner and as each role."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from dumps import programs_of, run
from sqlalchemy import URL, make_url

from ledger import CsvProfile, DatabaseUnavailable, InvalidCommand, Ledger, Message, Rejected, Retry, Strict, Transfer
from ledger.access import Credential, Scope
from ledger.audit.checkpoint import SigningKey
from ledger.core.commands import build
from ledger.storage.tables import APPEND_ONLY

Psql = psycopg.Connection[Any]

KEYS = {
    "identity": "singleton",
    "transactions": "transaction_id",
    "events": "stream, version",
    "projection_repairs": "stream, repair_id",
    "inbox_releases": "stream, source, first_sequence",
    "dead_letter_decisions": "stream, source, dead_letter_id, recorded_at",
    "feed": "position",
    "tree_tiles": "level, number",
    "checkpoints": "size",
    "account_reads": "account, recorded_at, read_id",
    "bank_statements": "account, statement_id",
    "bank_entries": "account, statement_id, number",
    "reconciliation_decisions": "account, number",
    "reconciliation_claims": "account, side, origin, number, generation",
    "reconciliations": "account, reconciliation_id",
    "privileged_actions": "action_id",
    "replays": "replay_id",
    "trail": "number",
}
COLUMNS = {
    "identity": "created_at",
    "transactions": "reference",
    "events": "amount",
    "projection_repairs": "noticed_by",
    "inbox_releases": "reason",
    "dead_letter_decisions": "decision",
    "feed": "stream",
    "tree_tiles": "hashes",
    "checkpoints": "root",
    "account_reads": "actor",
    "bank_statements": "closing",
    "bank_entries": "amount",
    "reconciliation_decisions": "actor",
    "reconciliation_claims": "decision",
    "reconciliations": "pin",
    "privileged_actions": "actor",
    "replays": "actor",
    "trail": "place",
}
ATTACKS = {
    "update": "UPDATE {table} SET {column} = {column}",
    "update of nothing": "UPDATE {table} SET {column} = {column} WHERE false",
    "delete": "DELETE FROM {table}",
    "truncate": "TRUNCATE {table}",
    "truncate cascade": "TRUNCATE {table} CASCADE",
    "merge update": "MERGE INTO {table} USING (SELECT 1) AS s ON true WHEN MATCHED THEN UPDATE SET {column} = NULL",
    "merge delete": "MERGE INTO {table} USING (SELECT 1) AS s ON true WHEN MATCHED THEN DELETE",
    "upsert": "INSERT INTO {table} SELECT * FROM {table} ON CONFLICT ({key}) DO UPDATE SET {column} = NULL",
    "common table expression": "WITH gone AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM gone",
}


def sqlstate(psql: Psql, statement: str, parameters: Sequence[Any] = ()) -> str | None:
    """The SQLSTATE that a statement fails with; None if it does not."""
    try:
        psql.execute(statement.encode(), parameters)
    except psycopg.Error as error:
        return error.sqlstate
    return None


@pytest.fixture
def repaired(funded: Ledger, psql: Psql, tmp_path: Path) -> Ledger:
    """A ledger with a row in every append-only table."""
    psql.execute("UPDATE balances SET posted_credits = 1 WHERE stream = 'alice'")
    assert funded.rebuild("alice") == ["alice"]
    inbox = funded.inbox("shop", Strict(timedelta(0)), retry=Retry(attempts_max=1), handlers={})
    inbox.receive([Message("shop", f"o-{n}", "shop.ordered", "order-1", n) for n in (2, 3)])
    inbox.release("order-1")
    for letter in inbox.dead_letters():
        inbox.discard(letter.dead_letter_id)
    assert funded.stamp() > 0
    assert funded.seal(SigningKey.generate("example.org/ledger"))
    auditor = Credential("ann", frozenset({Scope.AUDIT}), "key:ann")
    funded.api_keys().record_reads(auditor, "balance", ["alice"])
    assert funded.transfer("30.00 USD", debit="alice", credit="bob", idempotency_key="rent", metadata={"month": "May"})
    assert funded.number_trail() > 0
    psql.execute("INSERT INTO tree_tiles VALUES (0, 0, decode(repeat('00', 8192), 'hex'))")
    statement = tmp_path / "statement.csv"
    statement.write_text(f"day,amount\n{funded.history('alice')[-1].effective_at.date()},100.00\n")
    profile = CsvProfile(columns=[("date", "day"), ("amount", "amount")])
    found = funded.reconcile("alice", statement, profile=profile, opening="0", closing="100", actor="ann").found
    assert found == 1
    return funded


@pytest.mark.parametrize("replication_role", ["origin", "replica"])
@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.usefixtures("repaired")
def test_history_cannot_be_changed(psql: Psql, table: str, replication_role: str) -> None:
    """Every way to change or remove rows of an append-only table is refused, for its owner and in a replica's role."""
    psql.execute(f"SET session_replication_role = {replication_role}".encode())
    select = f"SELECT * FROM {table} ORDER BY {KEYS[table]}".encode()
    before = psql.execute(select).fetchall()
    assert before
    refused = {
        attack: sqlstate(psql, sql.format(table=table, key=KEYS[table], column=COLUMNS[table]))
        for attack, sql in ATTACKS.items()
    }
    assert refused == dict.fromkeys(ATTACKS, "LD001")
    assert psql.execute(select).fetchall() == before


@pytest.mark.usefixtures("funded")
def test_refusal_says_what_to_do(psql: Psql) -> None:
    """The message names the table and the operation; the hint says how a mistake is corrected."""
    with pytest.raises(psycopg.Error) as refused:
        psql.execute("DELETE FROM events")
    assert refused.value.diag.message_primary == "ledger.events is append-only: DELETE is refused"
    assert refused.value.diag.message_hint == "Correct a transaction by posting another one."


@pytest.mark.usefixtures("ledger")
def test_guards_stand_always(psql: Psql) -> None:
    """The guards of append-only tables fire always; that of appends does not stand in the way of a restore."""
    found = psql.execute(
        "SELECT tgrelid::regclass::text, tgname, tgenabled FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid"
        " WHERE NOT tgisinternal AND relnamespace = 'ledger'::regnamespace ORDER BY 1, 2"
    ).fetchall()
    expected = [(table, "append_only", b"A") for table in APPEND_ONLY]
    expected += [("events", "check_appended", b"O"), ("feed", "check_stamped", b"O"), ("feed", "check_known", b"O")]
    expected += [("feed_clock", name, b"A") for name in ("check_clock", "not_removed")]
    expected += [("leases", "check_until", b"A"), ("checkpoints", "check_sealed", b"O")]
    expected += [("outbox", name, b"O") for name in ("check_changed", "check_removed", "not_truncated")]
    expected += [("subject_keys", name, b"A") for name in ("check_destroyed", "not_removed")]
    expected += [("subject_keys", "check_made", b"O")]
    expected += [("api_keys", name, b"A") for name in ("check_revoked", "not_removed")]
    assert [(table, name, flag.encode() if isinstance(flag, str) else flag) for table, name, flag in found] == sorted(
        expected
    )


# Appends by hand.  alice is at version 3 and bob at version 2.

Line = tuple[str, int, str, int, str]


def announce(psql: Psql, places: Sequence[str], entries: int | None = None) -> UUID:
    """Insert a transaction that announces `places`."""
    transaction_id = uuid4()
    psql.execute(
        "INSERT INTO transactions (transaction_id, kind, scope, request, entry_count, announced,"
        " effective_at, recorded_at, header_hash) VALUES (%s, 'post', '', '{}', %s, %s, now(), now(), sha256(''))",
        (transaction_id, len(places) if entries is None else entries, list(places)),
    )
    return transaction_id


def append(psql: Psql, transaction_id: UUID, lines: Sequence[Line], table: str = "events") -> None:
    """Insert events in one statement, into the log or into a part of it."""
    streams, versions, directions, amounts, assets = (list(column) for column in zip(*lines, strict=True))
    psql.execute(
        f"INSERT INTO {table} (stream, version, transaction_id, type, payload, schema, asset, direction, amount,"
        " posted_debits, posted_credits, pending_debits, pending_credits, effective_at, recorded_at, prev_hash,"
        " event_hash) SELECT stream, version, %s, 'entry_posted', '{}', 1, asset, direction, amount, 0, 0, 0, 0,"
        " now(), now(), sha256(''), sha256('')"
        " FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::numeric[], %s::text[])"
        " AS e (stream, version, direction, amount, asset)".encode(),
        (transaction_id, streams, versions, directions, amounts, assets),
    )


def attack(
    psql: Psql,
    lines: Sequence[Line],
    places: Sequence[str] | None = None,
    entries: int | None = None,
    table: str = "events",
) -> None:
    """Announce and append, in one database transaction."""
    announced = [f"{line[0]} {line[1]}" for line in lines] if places is None else places
    with psql.transaction():
        append(psql, announce(psql, announced, entries), lines, table)


SOUND: list[Line] = [("alice", 4, "debit", 10, "USD"), ("bob", 3, "credit", 10, "USD")]


@pytest.mark.usefixtures("funded")
def test_append_by_hand_is_possible(psql: Psql) -> None:
    """The attacks below fail for their own reason: the same append without a fault is accepted."""
    attack(psql, SOUND)
    assert psql.execute("SELECT count(*) FROM events WHERE stream IN ('alice', 'bob')").fetchone() == (7,)


@pytest.mark.parametrize(
    ("state", "lines", "places", "entries"),
    [
        pytest.param("LD002", [("alice", 5, *SOUND[0][2:]), SOUND[1]], None, None, id="gap after the head"),
        pytest.param("LD002", [("new", 2, *SOUND[0][2:]), SOUND[1]], None, None, id="new stream at version 2"),
        pytest.param("LD002", [SOUND[0], ("alice", 6, "credit", 10, "USD")], None, None, id="gap inside one statement"),
        pytest.param("LD004", [SOUND[0], ("bob", 3, "credit", 9, "USD")], None, None, id="unbalanced"),
        pytest.param("LD004", [SOUND[0], ("bob", 3, "debit", 10, "USD")], None, None, id="both on one side"),
        pytest.param("LD004", [SOUND[0]], None, None, id="one entry alone"),
        pytest.param("LD004", [SOUND[0], ("bob", 3, "credit", 10, "EUR")], None, None, id="across assets"),
        pytest.param(
            "LD004",
            [*SOUND, ("alice", 5, "debit", 7, "EUR"), ("bob", 4, "credit", 8, "EUR")],
            None,
            None,
            id="unbalanced in one asset of two",
        ),
        pytest.param("LD003", SOUND, ["alice 4", "bob 3", "carl 2", "dora 2"], None, id="missing entries"),
        pytest.param("LD003", SOUND, ["alice 4", "bob 3"], 1, id="wrong entry count"),
        pytest.param("LD003", SOUND, ["alice 4", "carl 3"], None, id="other events than announced"),
        pytest.param("LD003", SOUND, ["alice 4"], 1, id="more events than announced"),
        pytest.param("23505", [("alice", 3, *SOUND[0][2:]), SOUND[1]], None, None, id="version taken"),
        pytest.param("23514", [("alice", 0, *SOUND[0][2:]), SOUND[1]], None, None, id="version 0"),
        pytest.param(
            "23514",
            [("alice", 4, "debit", 0, "USD"), ("bob", 3, "credit", 0, "USD")],
            None,
            None,
            id="nothing moves",
        ),
        pytest.param(
            "23514",
            [("alice", 4, "debit", -10, "USD"), ("bob", 3, "credit", -10, "USD")],
            None,
            None,
            id="negative amounts",
        ),
        pytest.param(
            "23514", [("alice", 4, "up", 10, "USD"), ("bob", 3, "down", 10, "USD")], None, None, id="other directions"
        ),
    ],
)
def test_unlawful_append_is_refused(
    funded: Ledger,
    psql: Psql,
    state: str,
    lines: Sequence[Line],
    places: Sequence[str] | None,
    entries: int | None,
) -> None:
    """An append that breaks a law of the log is refused by the database, and nothing of it stays."""
    before = psql.execute("SELECT count(*) FROM events").fetchone()
    with pytest.raises(psycopg.Error) as refused:
        attack(psql, lines, places, entries)
    assert refused.value.sqlstate == state
    assert psql.execute("SELECT count(*) FROM events").fetchone() == before
    assert funded.verify().ok


@pytest.mark.usefixtures("funded")
def test_balanced_pair_cannot_be_added_to_an_old_transaction(psql: Psql) -> None:
    """What a transaction is was said when it was made: two more entries that cancel out are refused."""
    row = psql.execute("SELECT transaction_id FROM transactions WHERE idempotency_key = 'rent'").fetchone()
    assert row is not None
    with pytest.raises(psycopg.Error) as refused:
        append(psql, row[0], SOUND)
    assert refused.value.sqlstate == "LD003"


@pytest.mark.usefixtures("funded")
def test_event_without_a_transaction_is_refused(psql: Psql) -> None:
    """Nothing happens without a transaction that says why."""
    with pytest.raises(psycopg.Error) as refused:
        append(psql, uuid4(), SOUND)
    assert refused.value.sqlstate == "LD003"


@pytest.mark.usefixtures("funded")
def test_entries_cannot_come_one_by_one(psql: Psql) -> None:
    """The legs of a transaction come in one statement, or somebody could stop between them."""
    transaction_id = announce(psql, ["alice 4", "alice 5", "bob 3", "bob 4"])
    with pytest.raises(psycopg.Error) as refused:
        append(psql, transaction_id, SOUND)
    assert refused.value.sqlstate == "LD003"


@pytest.mark.usefixtures("funded")
def test_one_unlawful_transaction_among_many_is_found(psql: Psql) -> None:
    """A statement that appends many transactions is refused for one bad one."""
    psql.execute(
        "INSERT INTO transactions SELECT gen_random_uuid(), 'post', '', NULL, '{}', 2,"
        " ARRAY['alice ' || 4 + n, 'bob ' || 3 + n], NULL, now(), now(), NULL, NULL, NULL, NULL, sha256('')"
        " FROM generate_series(0, 199) AS n"
    )
    with pytest.raises(psycopg.Error) as refused:
        psql.execute(
            "INSERT INTO events SELECT split_part(p.place, ' ', 1), split_part(p.place, ' ', 2)::bigint,"
            " t.transaction_id, 'entry_posted', '{}', 1, 'USD', CASE p.side WHEN 1 THEN 'debit' ELSE 'credit' END,"
            " CASE p.place WHEN 'bob 150' THEN 2 ELSE 1 END, 0, 0, 0, 0, now(), now(), sha256(''), sha256('')"
            " FROM transactions t, unnest(t.announced) WITH ORDINALITY AS p (place, side)"
            " WHERE t.kind = 'post' AND t.idempotency_key IS NULL"
        )
    assert refused.value.sqlstate == "LD004"


@pytest.mark.parametrize(
    ("state", "lines"),
    [
        pytest.param("LD002", [("alice", 5, *SOUND[0][2:]), ("bob", 4, *SOUND[1][2:])], id="gap"),
        pytest.param("LD003", SOUND, id="missing entries"),
        pytest.param("LD004", [SOUND[0], ("bob", 3, "credit", 9, "USD")], id="unbalanced"),
        pytest.param(None, SOUND, id="sound"),
    ],
)
@pytest.mark.usefixtures("funded")
def test_copy_is_no_way_around(psql: Psql, state: str | None, lines: Sequence[Line]) -> None:
    """What COPY brings is looked at like what INSERT brings."""
    columns = (
        "stream, version, transaction_id, type, payload, schema, asset, direction, amount, posted_debits,"
        " posted_credits, pending_debits, pending_credits, effective_at, recorded_at, prev_hash, event_hash"
    )
    places = [f"{stream} {version}" for stream, version, *_ in lines]
    if state == "LD003":
        places += ["carl 2", "dora 2"]
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    refused = None
    try:
        with psql.transaction(), psql.cursor() as cursor:
            announced = announce(psql, places)
            with cursor.copy(f"COPY events ({columns}) FROM STDIN".encode()) as copying:
                for stream, version, direction, amount, asset in lines:
                    entry = (stream, version, announced, "entry_posted", "{}", 1, asset, direction, amount)
                    copying.write_row((*entry, 0, 0, 0, 0, moment, moment, bytes(32), bytes(32)))
    except psycopg.Error as error:
        refused = error.sqlstate
    assert refused == state


def test_transaction_of_which_nothing_came_is_found(funded: Ledger, psql: Psql) -> None:
    """No guard fires where nothing is appended: a transaction that announces and brings nothing moves no money."""
    announce(psql, ["alice 4", "bob 3"])
    missing = {(finding.stream, finding.version) for finding in funded.verify().findings if finding.column == "version"}
    assert missing == {("alice", 4), ("bob", 3)}
    assert str(funded.balance("alice").posted) == "70.00 USD"


# Backup and restore


@pytest.fixture(scope="session")
def programs(ledger_server: URL) -> Path:
    """The folder of a `pg_dump` and a `psql` of the server's own major version."""
    return programs_of(ledger_server)


def _head(psql: Psql) -> list[tuple[Any, ...]]:
    return psql.execute("SELECT * FROM ledger.events ORDER BY stream, version").fetchall()


def restore(programs: Path, target: str, scripts: Sequence[str], restoring: str = "") -> None:
    """Run the scripts of a dump on a database, with these settings of the session."""
    for script in scripts:
        run(
            [str(programs / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", target],
            script,
            PGOPTIONS=restoring,
        )


def test_full_dump_restores_with_guards(
    repaired: Ledger, psql: Psql, ledger_url: str, programs: Path, make_database: Callable[[], str]
) -> None:
    """A whole dump goes into an empty database: the same log, it verifies, goes on, and its guards stand."""
    target = make_database()
    restore(programs, target, [run([str(programs / "pg_dump"), "--schema=ledger", "-d", ledger_url])])
    with Ledger.connect(target) as restored, psycopg.connect(target, autocommit=True) as there:
        assert _head(there) == _head(psql)
        assert restored.verify().ok
        assert restored.ledger_id == repaired.ledger_id
        restored.transfer("1 USD", debit="alice", credit="bob")
        there.execute("SET session_replication_role = replica")
        assert sqlstate(there, "DELETE FROM ledger.events") == "LD001"


@pytest.mark.usefixtures("repaired")
def test_data_only_dump_restores_beside_standing_guards(
    psql: Psql, ledger_url: str, programs: Path, make_database: Callable[[], str]
) -> None:
    """Data alone goes into a schema whose guards stand, with the ordinary triggers resting as in any restore."""
    target = make_database()
    dump = [str(programs / "pg_dump"), "--schema=ledger", "-d", ledger_url]
    restore(programs, target, [run([*dump, "--schema-only"])])
    restore(programs, target, [run([*dump, "--data-only"])], "-c session_replication_role=replica")
    with Ledger.connect(target) as restored, psycopg.connect(target, autocommit=True) as there:
        assert _head(there) == _head(psql)
        assert restored.verify().ok
        restored.transfer("1 USD", debit="alice", credit="bob")
        there.execute("SET session_replication_role = replica")
        assert sqlstate(there, "DELETE FROM ledger.events") == "LD001"


@pytest.mark.usefixtures("repaired")
def test_data_goes_in_under_full_guard(
    psql: Psql, ledger_url: str, programs: Path, make_database: Callable[[], str]
) -> None:
    """With its transactions first, a log restores even while every guard checks it, whatever the search path."""
    target = make_database()
    dump = [str(programs / "pg_dump"), "-d", ledger_url]
    restore(programs, target, [run([*dump, "--schema=ledger", "--schema-only"])])
    data = [*dump, "--data-only"]
    restore(
        programs,
        target,
        [run([*data, "--table=ledger.transactions"]), run([*data, "--table=ledger.events"])],
    )
    with psycopg.connect(target, autocommit=True) as there:
        assert _head(there) == _head(psql)


# Roles.  They belong to the whole cluster: each test makes its own and drops them.

_prefixes = (f"ledger_test_{os.getpid()}_{number}" for number in count(1))


@pytest.fixture
def prefix(psql: Psql) -> Iterator[str]:
    """A prefix of this test's own; its roles are dropped afterwards."""
    prefix = next(_prefixes)
    yield prefix
    for role in ("login", "owner", "app", "audit"):
        if psql.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (f"{prefix}_{role}",)).fetchone():
            psql.execute(f"REASSIGN OWNED BY {prefix}_{role} TO CURRENT_USER".encode())
            psql.execute(f"DROP OWNED BY {prefix}_{role}".encode())
            psql.execute(f"DROP ROLE {prefix}_{role}".encode())


def as_role(url: str, role: str) -> str:
    """The URL of a session that begins in `role`, and so would a login granted it."""
    return make_url(url).update_query_dict({"options": f"-crole={role}"}).render_as_string(hide_password=False)


def test_roles_are_made_with_the_prefix_and_may_be_made_again(funded: Ledger, psql: Psql, prefix: str) -> None:
    """The three roles carry the prefix asked for, none can log in, and a second run changes nothing."""
    roles = funded.create_roles(prefix)
    assert roles == (f"{prefix}_owner", f"{prefix}_app", f"{prefix}_audit")
    assert funded.create_roles(prefix) == roles
    found = psql.execute("SELECT rolname, rolcanlogin, rolsuper FROM pg_roles WHERE rolname = ANY(%s)", (list(roles),))
    assert sorted(found.fetchall()) == sorted((role, False, False) for role in roles)


@pytest.mark.parametrize("bad", ["", "two words", 'x"; DROP TABLE events; --', "1st", "a" * 51])
def test_prefix_is_a_plain_identifier(funded: Ledger, bad: str) -> None:
    """Anything but a plain identifier is refused before a role is made."""
    with pytest.raises(InvalidCommand, match="prefix"):
        funded.create_roles(bad)


def test_app_role_cannot_do_away_with_the_period(funded: Ledger, ledger_url: str, psql: Psql, prefix: str) -> None:
    """Whoever may close the books may not remove the row that says so, nor add one."""
    funded.create_roles(prefix)
    psql.execute(f"CREATE ROLE {prefix}_login LOGIN IN ROLE {prefix}_app".encode())
    with psycopg.connect(as_role(ledger_url, f"{prefix}_login"), autocommit=True) as session:
        for attack in ("DELETE FROM ledger.periods", "INSERT INTO ledger.periods VALUES (1, NULL)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(attack.encode())


def test_app_role_may_do_to_each_table_what_it_is_for(funded: Ledger, psql: Psql, prefix: str) -> None:
    """History grows and is read, what follows from it may change as well, and no table is left without its grants."""
    funded.create_roles(prefix)
    grow, change, mend = ["SELECT", "INSERT"], ["SELECT", "INSERT", "UPDATE"], ["SELECT", "INSERT", "UPDATE", "DELETE"]
    expected = dict.fromkeys(APPEND_ONLY, grow) | {"outbox": mend}
    expected |= {"identity": ["SELECT"], "schema_version": ["SELECT"], "periods": ["SELECT", "UPDATE"]}
    expected |= {"feed_clock": ["SELECT", "UPDATE"]}
    expected |= dict.fromkeys(["accounts", "balances", "holds"], mend)
    expected |= dict.fromkeys(["inbox_streams", "inbox_messages", "inbox_ids", "dead_letters", "inbox_counters"], mend)
    expected |= dict.fromkeys(["consumer_offsets", "leases", "subscriptions", "subject_keys", "api_keys"], change)
    granted = psql.execute(
        "SELECT tablename, ARRAY(SELECT p FROM unnest(%s::text[]) AS p"
        " WHERE has_table_privilege(%s, 'ledger.' || tablename, p)) FROM pg_tables WHERE schemaname = 'ledger'",
        ([*mend, "TRUNCATE", "REFERENCES", "TRIGGER"], f"{prefix}_app"),
    )
    assert dict(granted.fetchall()) == expected


def test_app_role_can_do_everything_the_library_needs(funded: Ledger, ledger_url: str, psql: Psql, prefix: str) -> None:
    """A ledger that runs as PREFIX_app opens, posts, batches, asks, notices drift, rebuilds and verifies."""
    funded.create_roles(prefix)
    psql.execute(f"CREATE ROLE {prefix}_login LOGIN IN ROLE {prefix}_app".encode())
    with Ledger.connect(as_role(ledger_url, f"{prefix}_login")) as ledger:
        ledger.define_asset("POINT", scale=0)
        ledger.open_account("carl", asset="EUR", type="liability", min_balance=0)
        ledger.transfer("5 USD", debit="alice", credit="bob", idempotency_key="tip")
        assert ledger.transfer("5 USD", debit="alice", credit="bob", idempotency_key="tip").replayed
        batch = [build(Transfer, amount="1 USD", debit="alice", credit="bob")] * 20
        assert not any(isinstance(outcome, Rejected) for outcome in ledger.handle(batch))
        psql.execute("UPDATE balances SET posted_credits = 1 WHERE stream = 'alice'")
        assert str(ledger.balance("alice").posted) == "45.00 USD"
        psql.execute("DELETE FROM balances WHERE stream = 'bob'")
        psql.execute("INSERT INTO accounts SELECT 'ghost', 'asset', 'USD', 2, NULL, NULL, 'open', '{}'")
        assert ledger.rebuild() == ["bob", "ghost"]
        assert len(ledger.history("alice")) == 24
        held = ledger.hold("2 USD", debit="alice", credit="bob")
        ledger.capture(held, "1 USD", final=True)
        ledger.close_period(datetime(2020, 1, 1, tzinfo=UTC))
        assert ledger.stamp() == len(list(ledger.feed())) > 0
        subscription = ledger.subscription("mail")
        with ledger.engine.begin() as connection:
            subscription.acknowledge(connection, subscription.next(connection, 5))
        data = ledger.personal_data()
        field = data.encrypt("customer-17", "Erika")
        assert data.reveal(field) == "Erika"
        data.forget("customer-17", actor="dpo", reason="asked")
        data.renew("customer-17")
        assert ledger.transactions(reference="payday")
        assert ledger.trial_balance().balanced
        assert ledger.verify().ok
        with psycopg.connect(as_role(ledger_url, f"{prefix}_login")) as lent, ledger.join(lent) as guest:
            guest.transfer("1 USD", debit="alice", credit="bob")


def test_auditor_who_meets_drift_is_told_what_it_is(funded: Ledger, ledger_url: str, psql: Psql, prefix: str) -> None:
    """Who may only read cannot mend a projection, and learns what has drifted and who can; then it reads on."""
    funded.create_roles(prefix)
    psql.execute(f"CREATE ROLE {prefix}_login LOGIN IN ROLE {prefix}_audit".encode())
    psql.execute("UPDATE balances SET posted_credits = 1 WHERE stream = 'alice'")
    with Ledger.connect(as_role(ledger_url, f"{prefix}_login")) as auditor:
        with pytest.raises(DatabaseUnavailable) as refused:
            auditor.balance("alice")
        assert "drifted from the log (alice)" in refused.value.problem
        assert "ledger rebuild alice" in refused.value.advice
        assert "Grant" not in str(refused.value)
        assert funded.rebuild("alice") == ["alice"]
        assert auditor.balance("alice").version == 3


@pytest.mark.parametrize("role", ["app", "audit"])
def test_roles_cannot_touch_history_or_its_guards(repaired: Ledger, ledger_url: str, prefix: str, role: str) -> None:
    """Neither the application nor the auditor may change history, or the guards that keep it."""
    repaired.create_roles(prefix)
    attacks = [
        sql.format(table=table, key=KEYS[table], column=COLUMNS[table])
        for table in APPEND_ONLY
        for sql in ATTACKS.values()
    ]
    attacks += [
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "ALTER TABLE events DISABLE TRIGGER append_only",
        "DROP TRIGGER append_only ON events",
        "DROP TABLE events",
        "ALTER TABLE events ADD COLUMN note text",
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TABLE ledger.mine ()",
        "CREATE RULE quiet AS ON DELETE TO events DO INSTEAD NOTHING",
        "SET session_replication_role = replica",
        f"SET ROLE {prefix}_owner",
        "DELETE FROM schema_version",
        "TRUNCATE outbox",
        "ALTER TABLE outbox DISABLE TRIGGER ALL",
        "DELETE FROM leases",
        "DELETE FROM subscriptions",
        "DELETE FROM subject_keys",
        "ALTER TABLE subject_keys DISABLE TRIGGER ALL",
        "DELETE FROM api_keys",
        "ALTER TABLE api_keys DISABLE TRIGGER ALL",
        "INSERT INTO identity VALUES (2, gen_random_uuid(), now())",
    ]
    # A session that *is* the role: one that only took it on could go back.
    with psycopg.connect(ledger_url, autocommit=True, options="-c search_path=ledger") as session:
        session.execute(f"SET SESSION AUTHORIZATION {prefix}_{role}".encode())
        refused = {attack: sqlstate(session, attack) for attack in attacks}
    assert refused == dict.fromkeys(attacks, "42501")


def test_audit_role_reads_and_verifies(funded: Ledger, ledger_url: str, prefix: str) -> None:
    """A ledger that runs as PREFIX_audit answers every question and verifies."""
    funded.create_roles(prefix)
    with Ledger.connect(as_role(ledger_url, f"{prefix}_audit")) as ledger:
        assert str(ledger.balance("alice").available) == "70.00 USD"
        assert [event.version for event in ledger.history("alice")] == [1, 2, 3]
        assert [line.account for line in ledger.accounts()] == ["alice", "bob", "world"]
        assert ledger.trial_balance().balanced
        assert ledger.transactions(metadata={"month": "May"})
        assert funded.stamp() == len(list(ledger.feed()))
        assert ledger.verify().ok


def test_audit_role_writes_nothing(funded: Ledger, ledger_url: str, psql: Psql, prefix: str) -> None:
    """Every write as PREFIX_audit is refused for want of a privilege, in every table."""
    funded.create_roles(prefix)
    with Ledger.connect(as_role(ledger_url, f"{prefix}_audit")) as ledger:
        with pytest.raises(DatabaseUnavailable, match="lacks a privilege"):
            ledger.transfer("1 USD", debit="alice", credit="bob")
        with pytest.raises(DatabaseUnavailable, match="lacks a privilege"):
            ledger.rebuild("alice")
        with pytest.raises(DatabaseUnavailable, match="lacks a privilege"):
            ledger.stamp()
    tables = [name for (name,) in psql.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'")]
    assert len(tables) >= 9
    with psycopg.connect(as_role(ledger_url, f"{prefix}_audit"), autocommit=True) as session:
        for table in tables:
            assert sqlstate(session, f"INSERT INTO ledger.{table} SELECT * FROM ledger.{table}") == "42501"
    assert funded.balance("alice").version == 3


def test_audit_role_reads_no_key(funded: Ledger, ledger_url: str, psql: Psql, prefix: str) -> None:
    """Who audits sees who was forgotten, when and why, and that a field is shredded; and can reveal nothing."""
    data = funded.personal_data()
    gone, kept = data.encrypt_all([("customer-17", "Erika"), ("customer-18", "Max")])
    data.forget("customer-17", actor="dpo", reason="asked")
    for _ in range(2):
        funded.create_roles(prefix)
    psql.execute(f"CREATE ROLE {prefix}_login LOGIN IN ROLE {prefix}_audit".encode())
    with Ledger.connect(as_role(ledger_url, f"{prefix}_login")) as auditor:
        assert [field.state for field in auditor.personal_data().states([gone, kept]).values()] == [
            "shredded",
            "encrypted",
        ]
        assert auditor.verify().shredded == 1
        with pytest.raises(DatabaseUnavailable, match="lacks a privilege"):
            auditor.personal_data().reveal(kept)
        with pytest.raises(DatabaseUnavailable, match="lacks a privilege"):
            auditor.personal_data().encrypt("customer-18", "Max")
    with psycopg.connect(as_role(ledger_url, f"{prefix}_login"), autocommit=True) as session:
        for query in ("SELECT key", "SELECT *", "SELECT count(key)"):
            assert sqlstate(session, f"{query} FROM ledger.subject_keys") == "42501"
        for query in ("SELECT secret_hash", "SELECT *"):
            assert sqlstate(session, f"{query} FROM ledger.api_keys") == "42501"
        assert sqlstate(session, "SELECT actor, scopes, revoked_by FROM ledger.api_keys") is None
        seen = session.execute("SELECT subject, forgotten_by, reason FROM ledger.subject_keys ORDER BY subject")
        assert seen.fetchall() == [("customer-17", "dpo", "asked"), ("customer-18", None, None)]


def test_owner_role_is_refused_by_the_triggers_too(repaired: Ledger, ledger_url: str, prefix: str) -> None:
    """PREFIX_owner owns tables and guards, and yet cannot change history while the guards stand."""
    repaired.create_roles(prefix)
    with psycopg.connect(
        as_role(ledger_url, f"{prefix}_owner"), autocommit=True, options=f"-c role={prefix}_owner -c search_path=ledger"
    ) as session:
        assert session.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'ledger'").fetchall() == [
            (f"{prefix}_owner",)
        ]
        for table in APPEND_ONLY:
            for sql in ATTACKS.values():
                statement = sql.format(table=table, key=KEYS[table], column=COLUMNS[table])
                assert sqlstate(session, statement) == "LD001", statement
        assert sqlstate(session, "SET session_replication_role = replica") == "42501"


def test_roles_need_no_superuser(psql: Psql, prefix: str, make_database: Callable[[], str]) -> None:
    """The owner of the database who may create roles can migrate and make them."""
    target = make_database()
    psql.execute(f"CREATE ROLE {prefix}_login LOGIN CREATEROLE".encode())
    psql.execute(f"ALTER DATABASE {make_url(target).database} OWNER TO {prefix}_login".encode())
    with Ledger.connect(as_role(target, f"{prefix}_login")) as ledger:
        ledger.migrate()
        ledger.create_roles(prefix)
        ledger.create_roles(prefix)
        ledger.open_account("world", asset="USD", type="equity")
        assert ledger.verify().ok


def test_who_may_not_set_a_ledger_up_is_told_what_it_takes(
    psql: Psql, prefix: str, make_database: Callable[[], str]
) -> None:
    """Nobody is told to get a role that only the refused command would make."""
    target = make_database()
    psql.execute(f"CREATE ROLE {prefix}_login LOGIN".encode())
    with Ledger.connect(as_role(target, f"{prefix}_login")) as ledger:
        with pytest.raises(DatabaseUnavailable, match="may create schemas in this database") as refused:
            ledger.migrate()
        assert "--roles" not in str(refused.value)
        psql.execute(f"ALTER DATABASE {make_url(target).database} OWNER TO {prefix}_login".encode())
        ledger.migrate()
        with pytest.raises(DatabaseUnavailable, match="CREATEROLE") as refused:
            ledger.create_roles(prefix)
        assert "--roles" not in str(refused.value)
        assert ledger.verify().ok


def test_public_gets_nothing(funded: Ledger, ledger_url: str, psql: Psql, prefix: str) -> None:
    """A role of somebody else sees nothing once the roles are made."""
    funded.create_roles(prefix)
    psql.execute(f"CREATE ROLE {prefix}_login LOGIN".encode())
    with psycopg.connect(as_role(ledger_url, f"{prefix}_login"), autocommit=True) as session:
        assert sqlstate(session, "SELECT * FROM ledger.balances") == "42501"
