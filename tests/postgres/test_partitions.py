"""A log in partitions: the same table and the same promises, on the whole and on each part of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from test_migrations import CATALOG
from test_promises import ATTACKS, SOUND, append, attack, sqlstate

from ledger import InvalidCommand, Ledger, Transfer
from ledger.core.commands import build

Psql = psycopg.Connection[Any]
MakeDatabase = Callable[[], str]

PARTITIONS = 4
TABLES = ["events", *(f"events_{number:04}" for number in range(PARTITIONS))]


@pytest.fixture
def ledger_url(make_database: MakeDatabase) -> str:
    """The URL of a database whose ledger has its log in partitions."""
    url = make_database()
    with Ledger.connect(url) as ledger:
        ledger.migrate(partitions=PARTITIONS)
    return url


def test_divided_log_is_the_same_table(ledger_url: str, make_database: MakeDatabase) -> None:
    """Columns, constraints, indexes and comment of a log in partitions are those of a log in one table."""
    plain = make_database()
    with Ledger.connect(plain) as ledger:
        ledger.migrate()
    whole, divided = defined(plain), defined(ledger_url)
    assert whole == divided
    assert [len(rows) for rows in whole.values()] == [17, 5, 4, 1]


def defined(url: str) -> dict[str, list[Any]]:
    """What the catalogue says of the log; how it is kept left out."""
    with psycopg.connect(url) as psql:
        return {
            name: sorted(
                tuple(str(value).replace(" ON ONLY ", " ON ") for value in row)
                for row in psql.execute(CATALOG[name].replace("relkind = 'r'", "relkind IN ('r', 'p')").encode())
                if row[0] in ("events", "ledger.events")
            )
            for name in ("columns", "constraints", "indexes", "tables")
        }


def test_guards_stand_on_every_partition(psql: Psql) -> None:
    """The guards of the log, and when they fire, are the same on each partition."""
    found = psql.execute(
        "SELECT c.relname, tgname, tgenabled::text FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid"
        " WHERE NOT tgisinternal AND c.relname LIKE 'events%' ORDER BY 1, 2"
    ).fetchall()
    assert found == [row for table in TABLES for row in ((table, "append_only", "A"), (table, "check_appended", "O"))]


@pytest.mark.parametrize("replication_role", ["origin", "replica"])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.usefixtures("funded")
def test_history_cannot_be_changed_in_a_partition(psql: Psql, table: str, replication_role: str) -> None:
    """Every way to change or remove rows is refused on the log and on each partition, in a replica's role too."""
    psql.execute(f"SET session_replication_role = {replication_role}".encode())
    before = psql.execute("SELECT * FROM events ORDER BY stream, version").fetchall()
    refused = {
        name: sqlstate(psql, sql.format(table=table, key="stream, version", column="amount"))
        for name, sql in ATTACKS.items()
    }
    assert refused == dict.fromkeys(ATTACKS, "LD001")
    assert psql.execute("SELECT * FROM events ORDER BY stream, version").fetchall() == before


@pytest.mark.parametrize(
    ("state", "lines", "places"),
    [
        pytest.param("LD002", [("alice", 5, *SOUND[0][2:]), SOUND[1]], None, id="gap"),
        pytest.param("LD004", [SOUND[0], ("bob", 3, "credit", 9, "USD")], None, id="unbalanced"),
        pytest.param("LD003", SOUND, ["alice 4", "bob 3", "carl 2", "dora 2"], id="missing entries"),
        pytest.param("23505", [("alice", 3, *SOUND[0][2:]), SOUND[1]], None, id="version taken"),
    ],
)
def test_unlawful_append_is_refused_across_partitions(
    funded: Ledger, psql: Psql, state: str, lines: Any, places: Any
) -> None:
    """What breaks a law of the log is refused although its events go to several partitions."""
    with pytest.raises(psycopg.Error) as refused:
        attack(psql, lines, places)
    assert refused.value.sqlstate == state
    assert funded.verify().ok


@pytest.mark.usefixtures("funded")
def test_pair_cannot_be_added_later_across_partitions(psql: Psql) -> None:
    """Two more entries for an old transaction are refused, through the log and right into a partition."""
    row = psql.execute("SELECT transaction_id FROM transactions WHERE idempotency_key = 'rent'").fetchone()
    assert row is not None
    with pytest.raises(psycopg.Error) as refused:
        append(psql, row[0], SOUND)
    assert refused.value.sqlstate == "LD003"


@pytest.mark.parametrize(
    ("state", "versions", "places"),
    [
        ("LD002", [5, 6], None),
        ("LD003", [4, 5], ["alice 4", "alice 5", "bob 3", "bob 4"]),
        ("LD004", [4], None),
    ],
    ids=["gap", "missing entries", "unbalanced"],
)
@pytest.mark.usefixtures("funded")
def test_nothing_unlawful_goes_right_into_a_partition(
    psql: Psql, state: str, versions: list[int], places: list[str] | None
) -> None:
    """Who writes into the partition of a stream, past the log, meets the same guard."""
    lines = [("alice", version, side, 1, "USD") for version, side in zip(versions, ("debit", "credit"), strict=False)]
    with pytest.raises(psycopg.Error) as refused:
        attack(psql, lines, places, table=partition_of(psql, "alice"))
    assert refused.value.sqlstate == state


def partition_of(psql: Psql, stream: str) -> str:
    """The partition that a stream is in."""
    row = psql.execute("SELECT tableoid::regclass::text FROM events WHERE stream = %s", (stream,)).fetchone()
    assert row is not None
    return str(row[0])


def test_a_ledger_in_partitions_is_a_ledger(funded: Ledger, psql: Psql) -> None:
    """It takes batches and holds, answers with history, notices drift, is rebuilt and verified, by several jobs too."""
    for number in range(20):
        funded.open_account(f"many-{number}", asset="USD", type="liability")
    funded.handle(
        [build(Transfer, amount="1 USD", debit="world", credit=f"many-{number % 20}") for number in range(200)]
    )
    held = funded.hold("2 USD", debit="alice", credit="bob")
    funded.capture(held, "1 USD", final=True)
    used = psql.execute("SELECT DISTINCT tableoid::regclass::text FROM events").fetchall()
    assert len(used) == PARTITIONS
    assert funded.transfer("1 USD", debit="alice", credit="bob", idempotency_key="tip").replayed is False
    assert funded.transfer("1 USD", debit="alice", credit="bob", idempotency_key="tip").replayed
    assert [event.version for event in funded.history("alice")] == list(range(1, 8))
    psql.execute("UPDATE balances SET posted_credits = 1 WHERE stream IN ('alice', 'many-3')")
    psql.execute("DELETE FROM balances WHERE stream = 'bob'")
    assert not funded.verify(jobs=2).ok
    assert funded.rebuild(jobs=2) == ["alice", "bob", "many-3"]
    assert funded.verify(jobs=2) == funded.verify()
    assert funded.verify().ok


def test_tampering_in_a_partition_is_found(funded: Ledger, psql: Psql) -> None:
    """A superuser who takes the guards of a partition away and changes an event there is found out."""
    partition = partition_of(psql, "alice")
    psql.execute(f"ALTER TABLE {partition} DISABLE TRIGGER ALL".encode())
    psql.execute(f"UPDATE {partition} SET amount = 2999 WHERE stream = 'alice' AND version = 3".encode())
    psql.execute(f"ALTER TABLE {partition} ENABLE ALWAYS TRIGGER append_only".encode())
    assert ("alice", 3) in {(finding.stream, finding.version) for finding in funded.verify().findings}


@pytest.mark.parametrize("partitions", [0, -1, 1_025, True, 2.5])
def test_number_of_partitions_is_checked(make_database: MakeDatabase, partitions: Any) -> None:
    """From 1 to 1,024; anything else is refused before there is a schema."""
    with Ledger.connect(make_database()) as ledger:
        with pytest.raises(InvalidCommand, match="partitions"):
            ledger.migrate(partitions=partitions)
        with ledger.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT to_regnamespace('ledger')").scalar() is None


def test_existing_log_is_not_divided(make_database: MakeDatabase) -> None:
    """A log in one table is refused with what to do; one that is as asked for is left as it is."""
    with Ledger.connect(make_database()) as plain:
        plain.migrate()
        with pytest.raises(InvalidCommand, match=r"one table already.* Leave the option out"):
            plain.migrate(partitions=4)
        assert plain.verify().ok
    with Ledger.connect(make_database()) as divided:
        divided.migrate(partitions=3)
        assert divided.migrate(partitions=3).applied == ()
        assert divided.migrate().applied == ()
        with pytest.raises(InvalidCommand, match="3 partitions already"):
            divided.migrate(partitions=4)


@pytest.fixture
def roles(funded: Ledger, psql: Psql) -> Iterator[tuple[str, str, str]]:
    """The three roles of this test's own; dropped afterwards."""
    made = funded.create_roles(f"ledger_parts_{os.getpid()}")
    yield made
    for role in made:
        psql.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER".encode())
        psql.execute(f"DROP OWNED BY {role}".encode())
        psql.execute(f"DROP ROLE {role}".encode())


def test_roles_have_nothing_on_partitions(funded: Ledger, ledger_url: str, roles: tuple[str, str, str]) -> None:
    """Application and auditor reach the log through its own name only; both can do their work."""
    _, app, audit = roles
    with psycopg.connect(ledger_url, autocommit=True, options="-c search_path=ledger") as session:
        for role in (app, audit):
            session.execute(f"SET ROLE {role}".encode())
            for table in TABLES[1:]:
                assert sqlstate(session, f"SELECT * FROM {table}") == "42501"
                assert sqlstate(session, f"INSERT INTO {table} SELECT * FROM events") == "42501"
            assert sqlstate(session, "SELECT * FROM events") is None
            session.execute("RESET ROLE")
    separator = "&" if "?" in ledger_url else "?"
    with Ledger.connect(f"{ledger_url}{separator}options=-crole%3D{app}") as ledger:
        ledger.transfer("1 USD", debit="alice", credit="bob")
        assert ledger.verify().ok
        assert ledger.rebuild() == []
    assert funded.verify().ok


def test_another_name_and_an_odd_one(make_database: MakeDatabase) -> None:
    """A schema whose name must be quoted is divided as any other."""
    with Ledger.connect(make_database(), schema='Bücher "1"') as ledger:
        ledger.migrate(partitions=2)
        ledger.open_account("world", asset="USD", type="equity")
        assert ledger.verify().ok
