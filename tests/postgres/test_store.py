"""What is kept: every word as it was given, in any schema, with one outbox row per database transaction."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from ledger import InvalidCommand, Ledger, Rejected, SchemaMismatch, Transfer
from ledger.core.commands import build

Psql = psycopg.Connection[Any]

AWKWARD = [
    "plain",
    "NULL",
    "null",
    "",
    " ",
    ",",
    "{}",
    '{"a","b"}',
    'say "hi"',
    "back\\slash",
    "\\\\",
    "\\x00",
    "it's",
    "100 %s %(x)s {schema}",
    "line\nbreak\ttab\r",
    "Ærø 株式会社 🦉",
    "e\u0301 is not \u00e9",
    "\u2028\u007f\u0001",
]
"""Texts that an array literal, a format string, JSON or an escape could swallow."""


@pytest.mark.parametrize("text", [text for text in AWKWARD if text])
def test_texts_come_back_as_they_went_in(funded: Ledger, ledger_url: str, text: str) -> None:
    """Whatever a caller writes is stored and returned character by character, and its hash holds."""
    outcome = funded.transfer(
        "1 USD",
        debit="alice",
        credit="bob",
        idempotency_key=text,
        reference=text,
        actor=text,
        correlation_id=text,
        causation_id=text,
        metadata={"text": text},
    )
    with Ledger.connect(ledger_url) as other:
        found = other.transaction(outcome.transaction_id).transaction
        assert found == outcome.transaction
        assert [found.idempotency_key, found.reference, found.actor, found.correlation_id, found.causation_id] == [
            text
        ] * 5
        assert [each.transaction_id for each in other.transactions(reference=text)] == [found.transaction_id]
        assert [each.transaction_id for each in other.transactions(metadata={"text": text})] == [found.transaction_id]
        assert other.transfer(
            "1 USD", debit="alice", credit="bob", idempotency_key=text, reference=text, metadata={"text": text}
        ).replayed
        assert other.verify().ok


def test_texts_of_a_batch_stay_apart(funded: Ledger) -> None:
    """Columns travel as arrays: awkward texts beside each other, and beside none, do not mix."""
    texts: list[str | None] = [text or None for text in AWKWARD]
    outcomes = funded.handle(
        [build(Transfer, amount="1 USD", debit="world", credit="bob", reference=text, actor=text) for text in texts]
    )
    for text, outcome in zip(texts, outcomes, strict=True):
        assert not isinstance(outcome, Rejected)
        stored = funded.transaction(outcome.transaction_id).transaction
        assert (stored.reference, stored.actor) == (text, text)
    assert funded.verify().ok


def test_metadata_of_an_account(ledger: Ledger) -> None:
    """Strings, integers and booleans of an account's metadata come back as they are, and can be asked for."""
    metadata: dict[str, str | int | bool] = {
        "b": True,
        "a": 2**53 - 1,
        "Z key": "ü",
        "zero": 0,
        "no": False,
        "empty": "",
    }
    ledger.open_account("a", asset="USD", type="asset", metadata=metadata)
    (line,) = ledger.accounts(metadata={"b": True, "a": 2**53 - 1})
    assert line.terms.metadata == '{"Z key":"ü","a":9007199254740991,"b":true,"empty":"","no":false,"zero":0}'
    assert ledger.accounts(metadata={"b": 1}) == []
    ledger.rebuild()
    assert ledger.accounts(metadata=metadata) == [line]
    assert ledger.verify().ok


def test_nul_is_refused_before_the_database_sees_it(funded: Ledger) -> None:
    """PostgreSQL stores no NUL; the refusal says where it is."""
    with pytest.raises(InvalidCommand, match=r"reference: .*NUL"):
        funded.transfer("1 USD", debit="alice", credit="bob", reference="a\0b")
    with pytest.raises(InvalidCommand, match=r"metadata.*NUL"):
        funded.transfer("1 USD", debit="alice", credit="bob", metadata={"a": "\0"})


def test_lone_surrogate_is_refused_before_the_database_sees_it(funded: Ledger) -> None:
    """Half of a character can be written in Python and nowhere else."""
    with pytest.raises(InvalidCommand, match="reference"):
        funded.transfer("1 USD", debit="alice", credit="bob", reference="\ud800")
    with pytest.raises(InvalidCommand, match="metadata"):
        funded.transfer("1 USD", debit="alice", credit="bob", metadata={"a": "\ud800"})


def test_times_are_stored_as_moments(funded: Ledger) -> None:
    """A moment is the same in whatever zone it is written, to the microsecond, at both ends of the calendar."""
    tokyo = timezone(timedelta(hours=9))
    moments = [
        datetime(2026, 3, 29, 2, 30, 0, 123456, tokyo),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
    ]
    ids = [
        funded.transfer("1 USD", debit="alice", credit="bob", effective_at=moment).transaction_id for moment in moments
    ]
    assert [funded.transaction(each).transaction.effective_at for each in ids] == moments
    assert funded.verify().ok


@pytest.mark.parametrize("date_style", ["ISO,DMY", "SQL,DMY"])
def test_settings_of_a_session_change_nothing(ledger_url: str, funded: Ledger, date_style: str) -> None:
    """A server or client in another zone, with another date style, reads and checks the same log."""
    options = f"-cTimeZone=Asia/Kathmandu -cDateStyle={date_style} -cextra_float_digits=0 -cbytea_output=escape"
    url = make_url(ledger_url).update_query_dict({"options": options})
    with Ledger.connect(url.render_as_string(hide_password=False)) as abroad:
        outcome = abroad.transfer("1 USD", debit="alice", credit="bob", idempotency_key="abroad")
        assert abroad.transfer("1 USD", debit="alice", credit="bob", idempotency_key="abroad").replayed
        assert abroad.rebuild() == []
        assert abroad.verify().ok
    assert funded.transaction(outcome.transaction_id).transaction == outcome.transaction
    assert funded.verify().ok


def test_one_outbox_row_per_database_transaction(funded: Ledger, psql: Psql) -> None:
    """What commits together is left to the feed together: the ids of a batch in its order, rejected ones absent."""
    before = {row[0] for row in psql.execute("SELECT batch_id FROM outbox")}
    outcomes = funded.handle(
        [build(Transfer, amount=f"{n} USD", debit="alice", credit="bob") for n in (30, 50, 20, 60, 10)]
    )
    ids = [outcome.transaction_id for outcome in outcomes if not isinstance(outcome, Rejected)]
    assert len(ids) == 3
    rows = psql.execute("SELECT batch_id, transaction_ids, recorded_at FROM outbox").fetchall()
    (row,) = [row for row in rows if row[0] not in before]
    assert row[1] == ids
    assert row[2] == min(funded.transaction(each).transaction.recorded_at for each in ids)


def test_outbox_holds_every_transaction_once(funded: Ledger, psql: Psql) -> None:
    """The feed can be built from the outbox alone: each transaction is in it, and none twice."""
    funded.handle(
        [build(Transfer, amount="1 USD", debit="alice", credit="bob", idempotency_key=f"{n % 7}") for n in range(20)]
    )
    listed = psql.execute("SELECT unnest(transaction_ids) FROM outbox ORDER BY 1").fetchall()
    assert listed == psql.execute("SELECT transaction_id FROM transactions ORDER BY 1").fetchall()


@pytest.mark.usefixtures("funded")
def test_transaction_announces_its_events(psql: Psql) -> None:
    """The row of a transaction lists its events in order, by stream and version."""
    found = psql.execute(
        "SELECT kind, entry_count, announced FROM transactions ORDER BY recorded_at, transaction_id"
    ).fetchall()
    assert found == [
        ("open_account", 0, ["$ledger 1", "world 1"]),
        ("open_account", 0, ["alice 1"]),
        ("open_account", 0, ["bob 1"]),
        ("transfer", 2, ["world 2", "alice 2"]),
        ("transfer", 2, ["alice 3", "bob 2"]),
    ]


@pytest.mark.parametrize(
    "schema", ["ledger-2", 'quo"ted', "Ünï cödé", "select", "Mixed", "per%cent", "%s", "a.b", "it's", "{schema}", "a:b"]
)
def test_schema_of_any_name(ledger_url: str, schema: str) -> None:
    """The ledger lives in a schema of whatever name: it migrates, works, repairs, verifies and makes roles there."""
    with Ledger.connect(ledger_url, schema=schema) as ledger, psycopg.connect(ledger_url, autocommit=True) as psql:
        assert ledger.schema == schema
        assert ledger.migrate().applied
        assert ledger.migrate().applied == ()
        ledger.open_account("a", asset="USD", type="asset", metadata={"k": 1})
        ledger.open_account("b", asset="USD", type="equity")
        ledger.transfer("5 USD", debit="a", credit="b", idempotency_key="k", reference="r")
        assert ledger.transfer("5 USD", debit="a", credit="b", idempotency_key="k", reference="r").replayed
        assert [line.account for line in ledger.accounts(metadata={"k": 1})] == ["a"]
        quoted = '"' + schema.replace('"', '""') + '"'
        psql.execute(f"UPDATE {quoted}.balances SET posted_debits = 1 WHERE stream = 'a'".encode())
        assert str(ledger.balance("a").posted) == "5.00 USD"
        assert ledger.verify().ok
        assert psql.execute("SELECT count(*) FROM ledger.events").fetchone() == (0,)


def test_two_ledgers_in_one_database(funded: Ledger, ledger_url: str) -> None:
    """Ledgers in two schemas share a database and nothing else: ids, keys and hashes differ."""
    with Ledger.connect(ledger_url, schema="second") as second:
        second.migrate()
        assert second.ledger_id != funded.ledger_id
        second.open_account("alice", asset="EUR", type="asset")
        second.open_account("bob", asset="EUR", type="asset")
        other = second.transfer("30.00 EUR", debit="alice", credit="bob", idempotency_key="rent")
        assert not other.replayed
        assert str(second.balance("alice").posted) == "30.00 EUR"
        assert str(funded.balance("alice").posted) == "70.00 USD"
        assert second.history("alice")[0].prev_hash != funded.history("alice")[0].prev_hash
        assert second.verify().checked["events"] == 5
        assert second.verify().ok
    assert funded.verify().ok


def test_two_ledgers_in_one_transaction(funded: Ledger, ledger_url: str) -> None:
    """A caller's transaction may take both ledgers along, or neither."""
    with Ledger.connect(ledger_url, schema="second") as second:
        second.migrate()
        for name in ("alice", "bob"):
            second.open_account(name, asset="EUR", type="asset")
        with psycopg.connect(ledger_url) as lent, funded.join(lent) as one, second.join(lent) as other:
            one.transfer("1 USD", debit="alice", credit="bob")
            other.transfer("1 EUR", debit="alice", credit="bob")
            lent.rollback()
        assert (funded.balance("alice").version, second.balance("alice").version) == (3, 1)


def test_tables_of_another_schema_are_not_taken_for_ours(ledger_url: str) -> None:
    """A schema that was never migrated is a mismatch that says what to do, whatever lies beside it."""
    with Ledger.connect(ledger_url, schema="nowhere") as ledger, pytest.raises(SchemaMismatch, match="ledger migrate"):
        ledger.open_account("a", asset="USD", type="asset")
