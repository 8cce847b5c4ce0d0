"""Exports of the real ledger: hledger, beancount, SQL and data frames come to the balances that it answers with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeAlias

import duckdb
import psycopg
import pytest
from oracles import AMOUNT, ORACLES, Oracle, planted

from ledger import Command, Done, Hold, InvalidCommand, Ledger, OpenAccount, Transfer, credit, debit
from ledger.audit.names import account_name
from ledger.core.money import Money

Psql: TypeAlias = psycopg.Connection[Any]

ACCOUNTS: Final = {
    "world": ("USD", "equity"),
    "users:1": ("USD", "liability"),
    "Users:1": ("USD", "liability"),
    "fees@shop/eu": ("USD", "income"),
    "bank.main-1": ("USD", "asset"),
    "till": ("JPY", "asset"),
    "Till": ("JPY", "expense"),
    "cold": ("BTC", "asset"),
    "cold+": ("BTC", "equity"),
    "wei": ("WEI", "asset"),
    "0": ("WEI", "liability"),
    "t": ("TRUE", "asset"),
    "T": ("TRUE", "equity"),
    "unused": ("TRUE", "income"),
}
SCALES: Final = {"USD": 2, "JPY": 0, "BTC": 8, "WEI": 18, "TRUE": 3}
HERE: Final = ("USD", "JPY", "BTC", "WEI", "TRUE")
TEXTS: Final = ('a "text"', "two\nlines; =1+1", "=1+1", "ä, €: \\", "date:2020-01-01", "\t@x")


def opened(ledger: Ledger) -> dict[str, list[str]]:
    """Open accounts of assets of all scales, one with a name that beancount refuses, some with stripes; by asset."""
    for asset in ("BTC", "WEI", "TRUE"):
        ledger.define_asset(asset, SCALES[asset])
    for account, (asset, kind) in ACCOUNTS.items():
        ledger.open_account(account, asset=asset, type=kind, stripes=3 if account in ("world", "wei") else 1)
    return {asset: [name for name, (each, _) in ACCOUNTS.items() if each == asset] for asset in HERE}


def live(ledger: Ledger, seed: int, rounds: int) -> None:
    """Let random things happen: transactions of several assets, holds and what becomes of them, reversals."""
    chance = random.Random(seed)  # noqa: S311  (a story, not a secret)
    names = opened(ledger)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    posted: list[Done] = []

    def amount(asset: str) -> str:
        return str(Money(chance.choice((1, 10**9, chance.randint(1, 10**25))), asset, SCALES[asset]))

    for number in range(rounds):
        text = TEXTS[number % len(TEXTS)]
        said: dict[str, Any] = {"reference": text, "actor": text, "metadata": {"said": text, "round": number}}
        if number % 4 == 0:
            said["effective_at"] = now - timedelta(days=chance.randint(0, 9_000))
        asset = chance.choice(HERE)
        one, other = chance.sample(names[asset], 2)
        what = chance.randint(0, 5)
        if what == 0:
            held = ledger.hold(str(Money(10, asset, SCALES[asset])), debit=one, credit=other, **said)
            for _ in range(chance.randint(0, 2)):
                ledger.capture(held, str(Money(1, asset, SCALES[asset])))
            if chance.random() < 0.5:
                ledger.release(held)
        elif what == 1 and posted:
            ledger.reverse(posted.pop(chance.randrange(len(posted))), reason=text, force=True)
        elif what == 2:
            second = chance.choice(HERE)
            entries = [debit(one, amount(asset))]
            entries.append(credit(other, entries[0].amount))
            third, fourth = chance.sample(names[second], 2)
            entries += [debit(third, amount(second))]
            entries.append(credit(fourth, entries[2].amount))
            posted.append(ledger.post(entries, idempotency_key=f"{text} {number}", **said))
        else:
            posted.append(ledger.transfer(amount(asset), debit=one, credit=other, **said))
        if number == rounds // 2:
            ledger.change_account("world", stripes=5)


def stamped(ledger: Ledger) -> int:
    """Let the feed have everything; its last position."""
    while ledger.stamp():
        pass
    return ledger.feed_head()


def expected(ledger: Ledger) -> dict[str, Decimal]:
    """The balance of every account as the ledger answers, by the name others have for it, with debits positive."""
    found = {}
    for account, (_, kind) in ACCOUNTS.items():
        line = ledger.account(account)
        sign = 1 if line.terms.normal == "debit" else -1
        found[account_name(account, line.terms.account_type)] = Money(
            sign * ledger.balance(account).posted.minor, "X", line.terms.scale
        ).decimal
        assert line.terms.account_type == kind
    return found


def agree(oracle: Oracle, ledger: Ledger, file: Path) -> None:
    """The program finds nothing wrong with an export, and comes to the ledger's balances to the last unit."""
    ledger.export(oracle.format, file)
    assert oracle.problem(file) == ""
    printed, ours = oracle.balances(file), expected(ledger)
    assert {name for name, balance in ours.items() if balance} <= {*printed} <= {*ours}
    assert {name: printed.get(name, Decimal(0)) for name in ours} == ours


@pytest.fixture(params=[11, 12])
def lived(request: pytest.FixtureRequest, ledger: Ledger) -> Ledger:
    """A ledger in which much has happened."""
    live(ledger, request.param, 150)
    stamped(ledger)
    return ledger


@pytest.mark.parametrize("oracle", ORACLES, ids=[each.format for each in ORACLES])
def test_other_programs_come_to_our_balances(oracle: Oracle, lived: Ledger, tmp_path: Path) -> None:
    """With holds, reversals, stripes, several assets and backdating, every balance is the same, to the last unit."""
    agree(oracle, lived, tmp_path / "journal")


def test_sql_over_parquet_agrees_with_sql_over_the_log(lived: Ledger, psql: Psql, tmp_path: Path) -> None:
    """DuckDB over the Parquet file, PostgreSQL over the events and the ledger's own balances are the same numbers."""
    done = lived.export("parquet", tmp_path / "entries.parquet")
    with duckdb.connect() as database:
        file = [str(tmp_path / "entries.parquet")]
        by_file = database.execute(
            "SELECT account, sum(posted)::text FROM read_parquet(?) GROUP BY ALL", file
        ).fetchall()
        counted = database.execute("SELECT count(*), max(scale) FROM read_parquet(?)", file).fetchone()
    by_log = psql.execute("""
        SELECT split_part(stream, '#', 1), sum(CASE direction WHEN 'debit' THEN amount ELSE -amount END
            * (type IN ('entry_posted', 'hold_captured'))::int)::text
        FROM events WHERE amount IS NOT NULL GROUP BY 1""").fetchall()

    assert sorted(by_file) == sorted(by_log)
    assert counted == (done.entries, 18)
    signs = {account: 1 if lived.account(account).terms.normal == "debit" else -1 for account in ACCOUNTS}
    ours = {account: str(signs[account] * lived.balance(account).posted.minor) for account, _ in by_log}
    assert dict(by_file) == ours


@pytest.mark.parametrize("kind", ["hledger", "beancount", "csv", "parquet"])
def test_a_position_gives_the_same_bytes_for_ever(kind: str, ledger: Ledger, tmp_path: Path) -> None:
    """Whatever happens later, an export of a position has the bytes that it had when it was the last one."""
    live(ledger, 13, 40)
    position = stamped(ledger)
    first = ledger.export(kind, tmp_path / "first")
    for _ in range(3):
        ledger.transfer("1 USD", debit="world", credit="users:1")
    assert stamped(ledger) > position
    again = ledger.export(kind, str(tmp_path / "again"), position=position)

    assert first == again
    assert (again.position, again.ledger_id) == (position, str(ledger.ledger_id))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert ledger.export(kind, tmp_path / "later").sha256 != first.sha256


def test_positions_that_cannot_be_exported(funded: Ledger, tmp_path: Path) -> None:
    """A position that is not there, or lies within a transaction, is refused before anything is written."""
    head = stamped(funded)
    for position in (-1, head + 1, True, "1"):
        with pytest.raises(InvalidCommand, match=f"is not from 0 to {head}"):
            funded.export("csv", tmp_path / "export", position=position)  # type: ignore[arg-type]
    with pytest.raises(InvalidCommand, match="lies within transaction"):
        funded.export("csv", tmp_path / "export", position=head - 1)
    with pytest.raises(InvalidCommand, match="'xls' is none of hledger, beancount, csv, parquet"):
        funded.export("xls", tmp_path / "export")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("kind", ["hledger", "beancount", "csv", "parquet"])
def test_an_empty_ledger_is_exported(kind: str, ledger: Ledger, tmp_path: Path) -> None:
    """Of a ledger in which nothing has happened the export says so, and every program takes it."""
    done = ledger.export(kind, tmp_path / "journal")

    assert (done.position, done.accounts, done.transactions, done.entries) == (0, 0, 0, 0)
    for oracle in ORACLES:
        if oracle.format == kind:
            assert oracle.problem(tmp_path / "journal") == ""


def test_progress_is_told(lived: Ledger, tmp_path: Path) -> None:
    """Whoever exports is told of the events that were read, in growing numbers."""
    for number in range(600):
        lived.transfer("1 USD", debit="world", credit="users:1", idempotency_key=f"{number}")
    head, seen = stamped(lived), list[int]()
    lived.export("csv", tmp_path / "export.csv", progress=seen.append)

    assert seen
    assert seen == sorted({*seen})
    assert seen[-1] <= head


def many(transactions: int) -> Iterator[list[Command]]:
    """Transfers of all assets between many accounts, with holds among them; so many at a time."""
    chance = random.Random(99)  # noqa: S311  (a story, not a secret)
    batch: list[Command] = []
    names = {asset: [name for name, (each, _) in ACCOUNTS.items() if each == asset] for asset in HERE}
    for number in range(transactions):
        asset = chance.choice(HERE)
        one, other = chance.sample(names[asset], 2)
        amount = Money(chance.randint(1, 10**12), asset, SCALES[asset])
        make: Callable[..., Command] = Hold if number % 50 == 0 else Transfer
        batch.append(make(amount=amount, debit=one, credit=other, reference=TEXTS[number % len(TEXTS)]))
        if len(batch) == 500:
            yield batch
            batch = []


@pytest.mark.campaign
def test_a_hundred_thousand_transactions(ledger: Ledger, tmp_path: Path) -> None:
    """hledger, beancount and DuckDB come to the ledger's balances over 100,000 transactions of the real log."""
    opened(ledger)
    for number in range(2_000):
        asset = HERE[number % len(HERE)]
        ledger.handle([OpenAccount(account=f"more:{number}", asset=asset, account_type="liability")])
    for batch in many(102_500):
        assert all(isinstance(outcome, Done) for outcome in ledger.handle(batch))
    stamped(ledger)

    done = ledger.export("parquet", tmp_path / "entries.parquet")
    assert done.transactions >= 102_500
    with duckdb.connect() as database:
        rows = database.execute(
            "SELECT account, sum(posted)::text FROM read_parquet(?) GROUP BY ALL", [str(tmp_path / "entries.parquet")]
        ).fetchall()
    for account, total in rows:
        sign = 1 if ledger.account(account).terms.normal == "debit" else -1
        assert int(total) == sign * ledger.balance(account).posted.minor
    for oracle in ORACLES:
        file = tmp_path / oracle.format
        exported = ledger.export(oracle.format, file)
        assert exported.transactions == done.transactions
        assert oracle.problem(file) == ""
        ours = {name: balance for name, balance in expected(ledger).items() if balance}
        printed = oracle.balances(file)
        assert {name: printed[name] for name in ours} == ours
        file.write_text(planted(file.read_text("utf-8"), AMOUNT[oracle.format], 0.6), "utf-8")
        assert oracle.problem(file)
