"""Projections: whatever is wrong with one is noticed, made anew from the log, and put on record."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import psycopg
import pytest

from ledger import (
    AssetExists,
    CorruptLog,
    Done,
    Ledger,
    OpenAccount,
    Rejected,
    Transfer,
    UnknownAccount,
    Withdraw,
)
from ledger.core.codec import leg_checksum
from ledger.core.commands import build
from ledger.storage.repair import _CHECKSUM_OF_LEG

Psql = psycopg.Connection[Any]

DRIFT = {
    "behind": "UPDATE balances b SET version = 2, posted_debits = e.posted_debits, posted_credits = e.posted_credits,"
    " head_hash = e.event_hash, recorded_at = e.recorded_at, checksum = {checksum} FROM events e"
    " WHERE e.stream = b.stream AND e.version = 2 AND b.stream = 'alice'",
    "ahead": "UPDATE balances SET version = 4 WHERE stream = 'alice'",
    "ahead with a new checksum": "UPDATE balances b SET version = 9, checksum = {checksum} FROM"
    " (SELECT 9 AS version, posted_debits, posted_credits, recorded_at, head_hash FROM balances"
    " WHERE stream = 'alice') AS e WHERE b.stream = 'alice'",
    "posted debits": "UPDATE balances SET posted_debits = posted_debits + 1 WHERE stream = 'alice'",
    "posted credits": "UPDATE balances SET posted_credits = posted_credits * 2 WHERE stream = 'alice'",
    "pending debits": "UPDATE balances SET pending_debits = 500 WHERE stream = 'alice'",
    "pending credits": "UPDATE balances SET pending_credits = 500 WHERE stream = 'alice'",
    "not a number": "UPDATE balances SET posted_credits = 'NaN' WHERE stream = 'alice'",
    "negative number": "UPDATE balances SET posted_credits = -1 WHERE stream = 'alice'",
    "both sides by the same": "UPDATE balances SET posted_debits = posted_debits + 7,"
    " posted_credits = posted_credits + 7 WHERE stream = 'alice'",
    "head hash": "UPDATE balances SET head_hash = sha256('') WHERE stream = 'alice'",
    "recorded time": "UPDATE balances SET recorded_at = recorded_at + interval '1 us' WHERE stream = 'alice'",
    "endless time": "UPDATE balances SET recorded_at = 'infinity' WHERE stream = 'alice'",
    "checksum": "UPDATE balances SET checksum = sha256('') WHERE stream = 'alice'",
    "empty checksum": "UPDATE balances SET checksum = '' WHERE stream = 'alice'",
    "balances row missing": "DELETE FROM balances WHERE stream = 'alice'",
    "accounts row missing": "DELETE FROM accounts WHERE account = 'alice'",
    "both rows missing": "WITH gone AS (DELETE FROM accounts WHERE account = 'alice')"
    " DELETE FROM balances WHERE stream = 'alice'",
    "minimum": "UPDATE accounts SET min_balance = NULL WHERE account = 'alice'",
    "maximum": "UPDATE accounts SET max_balance = 1 WHERE account = 'alice'",
    "asset": "UPDATE accounts SET asset = 'EUR' WHERE account = 'alice'",
    "scale": "UPDATE accounts SET scale = 0 WHERE account = 'alice'",
    "state": "UPDATE accounts SET state = 'frozen' WHERE account = 'alice'",
    "type": "UPDATE accounts SET account_type = 'asset' WHERE account = 'alice'",
    "nonsense type": "UPDATE accounts SET account_type = 'piggy bank' WHERE account = 'alice'",
    "metadata": """UPDATE accounts SET metadata = '{{"vip": true}}' WHERE account = 'alice'""",
    "metadata reordered": """UPDATE accounts SET metadata = '{{ }}' WHERE account = 'alice'""",
    "rows of two accounts exchanged": "UPDATE balances a SET posted_debits = b.posted_debits,"
    " posted_credits = b.posted_credits, version = b.version, head_hash = b.head_hash, recorded_at = b.recorded_at,"
    " checksum = b.checksum FROM balances b WHERE a.stream = 'alice' AND b.stream = 'bob'",
}

# What the ledger would write beside such a row: somebody who knows how it is made.
CHECKSUM = """
sha256(convert_to('alice|' || e.version || '|' || e.posted_debits || '|' || e.posted_credits || '|0|0|'
    || encode({head}, 'hex') || '|' || to_char(e.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    || '|liability|USD|2|0||open|{{}}', 'UTF8'))
"""

SEEN_BY_VALUE = [name for name in DRIFT if name not in ("behind", "ahead with a new checksum")]
"""Drift that one look at the rows shows.  An old state, whole and with its checksum, shows at the log only."""


def drift(psql: Psql, kind: str) -> None:
    """Change alice's projection behind the ledger's back."""
    head = "e.event_hash" if kind == "behind" else "e.head_hash"
    sql = DRIFT[kind].format(checksum=CHECKSUM.format(head=head))
    assert psql.execute(sql.encode()).rowcount == 1


def projected(psql: Psql) -> list[tuple[Any, ...]]:
    """Every projected row, byte for byte."""
    return [
        row
        for table, key in (("balances", "stream"), ("accounts", "account"), ("holds", "hold_id, account"))
        for row in psql.execute(f"SELECT x.ctid IS NULL, x::text FROM {table} AS x ORDER BY {key}".encode())
    ]


def repairs(psql: Psql) -> list[tuple[Any, ...]]:
    """What is on record: stream, who noticed, versions and numbers before and after."""
    return psql.execute(
        "SELECT stream, noticed_by, found_version, expected_version, found, expected FROM projection_repairs"
        " ORDER BY repaired_at"
    ).fetchall()


@pytest.mark.parametrize("kind", DRIFT)
def test_drift_is_found_and_made_as_it_was(funded: Ledger, psql: Psql, kind: str) -> None:
    """Verification names the account and changes nothing; a rebuild of it, or of all, restores it byte for byte."""
    sound = projected(psql)
    drift(psql, kind)
    drifted = projected(psql)
    report = funded.verify()
    assert [(finding.kind, finding.stream) for finding in report.findings] == [("projection", "alice")]
    assert report.findings[0].column
    assert projected(psql) == drifted
    assert repairs(psql) == []

    assert funded.rebuild("alice") == ["alice"]
    assert projected(psql) == sound
    drift(psql, kind)
    assert funded.rebuild() == ["alice"]
    assert projected(psql) == sound
    assert funded.rebuild() == []
    assert [row[:2] for row in repairs(psql)] == [("alice", "rebuild")] * 2
    assert funded.verify().ok


@pytest.mark.parametrize("kind", SEEN_BY_VALUE)
def test_drift_is_mended_by_the_next_read(funded: Ledger, psql: Psql, kind: str) -> None:
    """A balance is never answered, and an account never listed, from a row that the ledger did not write."""
    drift(psql, kind)
    balance = funded.balance("alice")
    assert (str(balance.posted), str(balance.available), balance.version) == ("70.00 USD", "70.00 USD", 3)
    assert [row[:2] for row in repairs(psql)] == [("alice", "read")]
    if kind not in ("accounts row missing", "both rows missing"):
        drift(psql, kind)
        assert [(line.account, str(line.balance.posted)) for line in funded.accounts(limit=2)] == [
            ("alice", "70.00 USD"),
            ("bob", "30.00 USD"),
        ]
        assert [row[:2] for row in repairs(psql)] == [("alice", "read")] * 2
    assert funded.verify().ok


@pytest.mark.parametrize("kind", DRIFT)
def test_drift_is_mended_by_the_next_write(funded: Ledger, psql: Psql, kind: str) -> None:
    """
    A write to a drifted account is decided on what the log says, and the repair is on record: money that only
    a projection shows cannot be spent, and money that it hides can.
    """
    drift(psql, kind)
    (refused,) = funded.handle([build(Transfer, amount="70.01 USD", debit="alice", credit="bob")])
    (spent,) = funded.handle([build(Transfer, amount="70.00 USD", debit="alice", credit="bob")])
    assert isinstance(refused, Rejected)
    assert not isinstance(spent, Rejected)
    assert str(spent.balances["alice"].posted) == "0.00 USD"
    assert spent.versions == {"alice": 4, "bob": 3}
    assert [row[:2] for row in repairs(psql)] == [("alice", "write")]
    assert funded.verify().ok


def test_repair_tells_the_numbers_before_and_after(funded: Ledger, psql: Psql) -> None:
    """The record of a repair holds versions and numbers as found and as they must be."""
    psql.execute("UPDATE balances SET posted_credits = 999999, version = 8 WHERE stream = 'alice'")
    funded.balance("alice")
    ((stream, noticed_by, found_version, expected_version, found, expected),) = repairs(psql)
    assert (stream, noticed_by, found_version, expected_version) == ("alice", "read", 8, 3)
    assert (found["posted_credits"], expected["posted_credits"]) == ("999999", "10000")
    assert found["posted_debits"] == expected["posted_debits"] == "3000"


def test_repair_of_terms_tells_what_they_were(funded: Ledger, psql: Psql) -> None:
    """Where the terms of an account were changed, the record shows them as found."""
    psql.execute("UPDATE accounts SET min_balance = -100000 WHERE account = 'alice'")
    funded.transfer("1 USD", debit="alice", credit="bob")
    ((*_, found, expected),) = repairs(psql)
    assert found["account"]["min_balance"] == -100000
    assert expected is not None


def test_repair_of_a_missing_row_says_that_nothing_was_found(funded: Ledger, psql: Psql) -> None:
    """A row that was gone has no version and no numbers as found."""
    psql.execute("DELETE FROM balances WHERE stream = 'alice'")
    funded.balance("alice")
    ((stream, _, found_version, expected_version, found, _),) = repairs(psql)
    assert (stream, found_version, expected_version, found) == ("alice", None, 3, None)


def test_orphan_rows_are_removed(funded: Ledger, psql: Psql) -> None:
    """Projected rows of an account that the log does not know are drift too: found, removed, on record."""
    before = projected(psql)
    psql.execute("INSERT INTO balances SELECT 'ghost', 1, 0, 5, 0, 0, now(), sha256(''), sha256('')")
    psql.execute("INSERT INTO accounts SELECT 'ghost', 'liability', 'USD', 2, NULL, NULL, 'open', '{}'")
    psql.execute("INSERT INTO accounts SELECT 'spirit', 'liability', 'USD', 2, NULL, NULL, 'open', '{}'")
    assert [finding.stream for finding in funded.verify().findings] == ["ghost", "spirit"]
    assert funded.rebuild() == ["ghost", "spirit"]
    assert projected(psql) == before
    assert {row[0] for row in repairs(psql)} == {"ghost", "spirit"}


@pytest.mark.parametrize("touched", ["read", "write", "open"])
def test_orphan_is_seen_at_its_next_touch(funded: Ledger, psql: Psql, touched: str) -> None:
    """An account that only a projection knows does not exist, and can be opened."""
    psql.execute("INSERT INTO balances SELECT 'ghost', 1, 0, 5, 0, 0, now(), sha256(''), sha256('')")
    psql.execute("INSERT INTO accounts SELECT 'ghost', 'liability', 'USD', 2, NULL, NULL, 'open', '{}'")
    if touched == "open":
        assert funded.open_account("ghost", asset="USD", type="liability").versions == {"ghost": 1}
    elif touched == "read":
        with pytest.raises(UnknownAccount):
            funded.balance("ghost")
    else:
        with pytest.raises(UnknownAccount):
            funded.transfer("0.05 USD", debit="ghost", credit="bob")
    assert [row[0] for row in repairs(psql)] == ["ghost"]
    assert funded.verify().ok


def test_lone_account_row_does_not_stand_in_the_way(funded: Ledger, psql: Psql) -> None:
    """An accounts row without a balance and without a log is no account: it can be opened all the same."""
    psql.execute("INSERT INTO accounts SELECT 'ghost', 'liability', 'USD', 2, NULL, NULL, 'open', '{}'")
    assert funded.open_account("ghost", asset="USD", type="asset").versions == {"ghost": 1}
    assert funded.verify().ok


def test_all_projections_can_be_made_anew(ledger: Ledger, psql: Psql) -> None:
    """Rebuilt projections equal inline ones byte for byte, checksums included, for accounts of every kind."""
    ledger.define_asset("BTC", scale=8)
    for number, kind in enumerate(("asset", "liability", "equity", "income", "expense")):
        for asset in ("USD", "JPY", "BTC"):
            ledger.open_account(
                f"{kind}-{asset}",
                asset=asset,
                type=kind,
                min_balance=None if number % 2 else -1_000_000,
                max_balance="100000000000000000" if number % 3 else None,
                metadata={"k|": 'c\\ö"d|é', "n": number} if number % 2 else {},
            )
    for number in range(40):
        ledger.transfer(f"{number + 1} USD", debit="asset-USD", credit="income-USD")
        ledger.transfer(f"0.{number + 1:08} BTC", debit="expense-BTC", credit="liability-BTC")
    before = projected(psql)
    psql.execute("TRUNCATE balances, accounts")
    mended = ledger.rebuild()
    assert len(mended) == 16
    assert projected(psql) == before
    assert ledger.rebuild() == []
    assert ledger.verify().ok


def test_rebuild_of_some_leaves_the_others(funded: Ledger, psql: Psql) -> None:
    """Only the accounts named are looked at."""
    psql.execute("UPDATE balances SET posted_credits = posted_credits + 1 WHERE stream <> '$ledger'")
    assert sorted(funded.rebuild("bob", "alice")) == ["alice", "bob"]
    assert [finding.stream for finding in funded.verify().findings if finding.kind == "projection"] == ["world"]


def test_rebuild_reports_progress(funded: Ledger) -> None:
    """The number of streams done is told as it grows, and ends at their number."""
    seen: list[int] = []
    funded.rebuild(progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 4


def test_rebuild_of_an_unknown_account(funded: Ledger, psql: Psql) -> None:
    """A name that the log does not know is refused, and nothing is made for it."""
    before = projected(psql)
    with pytest.raises(UnknownAccount):
        funded.rebuild("nobody")
    assert projected(psql) == before


def test_scale_comes_from_the_log(funded: Ledger, psql: Psql) -> None:
    """An asset is defined once, whoever tries: the database refuses a second definition, with whatever scale."""
    funded.define_asset("POINT", scale=0)
    with pytest.raises(AssetExists):
        funded.define_asset("POINT", scale=4)
    with pytest.raises(psycopg.errors.UniqueViolation):
        psql.execute(
            "INSERT INTO events SELECT stream, version + 100, transaction_id, type, payload, schema, asset, direction,"
            " amount, posted_debits, posted_credits, pending_debits, pending_credits, effective_at, recorded_at,"
            " prev_hash, event_hash FROM events WHERE type = 'asset_defined' AND payload ->> 'asset' = 'POINT'"
        )


def test_rebuild_names_what_it_is_given_twice_once(funded: Ledger, psql: Psql) -> None:
    """An account that is named twice is mended once."""
    psql.execute("UPDATE balances SET posted_debits = 1 WHERE stream = 'alice'")
    assert funded.rebuild("alice", "alice") == ["alice"]


def test_many_drifted_accounts_are_mended_by_one_question(funded: Ledger, psql: Psql) -> None:
    """A page of accounts that all drifted is answered, rightly, and each is reported."""
    names = [f"n{number:03}" for number in range(150)]
    funded.handle([build(OpenAccount, account=name, asset="USD", account_type="asset") for name in names])
    psql.execute("UPDATE balances SET posted_credits = posted_credits + 1 WHERE stream LIKE 'n%'")
    lines = funded.accounts(after="n", limit=1000)
    assert {line.balance.posted.minor for line in lines if line.account in names} == {0}
    assert {stream for stream, *_ in repairs(psql)} >= set(names)


def test_corrupt_log_keeps_nobody_else_from_being_rebuilt(
    funded: Ledger, psql: Psql, tamper: Callable[..., None]
) -> None:
    """One account's log contradicts itself: all others are rebuilt, and the error says whose it is."""
    tamper("UPDATE events SET amount = amount + 1 WHERE stream = 'alice' AND version = 2")
    psql.execute("UPDATE balances SET posted_debits = 1 WHERE stream = 'bob'")
    with pytest.raises(CorruptLog, match="alice"):
        funded.rebuild()
    assert "bob" in {stream for stream, *_ in repairs(psql)}


def test_what_a_refused_write_mended_lasts(funded: Ledger, psql: Psql) -> None:
    """A command that is refused takes back nothing of the mending that it caused."""
    sound = projected(psql)
    drift(psql, "posted credits")
    with pytest.raises(Rejected):
        funded.withdraw("alice", "5000.00 USD", against="world")
    assert projected(psql) == sound
    assert [(stream, by) for stream, by, *_ in repairs(psql)] == [("alice", "write")]


def test_dry_run_of_a_drifted_account_writes_nothing(funded: Ledger, psql: Psql) -> None:
    """A dry run answers from the log, and leaves even the wrong row as it was."""
    psql.execute("UPDATE balances SET posted_credits = 7, posted_debits = 0 WHERE stream = 'alice'")
    before = projected(psql)
    (outcome,) = funded.handle([build(Withdraw, account="alice", amount="1 USD", against="bob")], dry_run=True)
    assert isinstance(outcome, Done)
    assert projected(psql) == before
    assert repairs(psql) == []


def test_ledgers_own_stream_is_mended_by_a_write(funded: Ledger, psql: Psql) -> None:
    """The head of the ledger's own stream is a projection like any other."""
    psql.execute("UPDATE balances SET head_hash = sha256('') WHERE stream = '$ledger'")
    funded.define_asset("POINT", scale=0)
    assert [row[:2] for row in repairs(psql)] == [("$ledger", "write")]
    psql.execute("DELETE FROM balances WHERE stream = '$ledger'")
    funded.define_asset("STAR", scale=0)
    assert funded.verify().ok


def test_drift_of_many_accounts_in_one_batch(funded: Ledger, psql: Psql) -> None:
    """A batch over several drifted accounts mends them all and is done."""
    psql.execute("UPDATE balances SET posted_debits = posted_debits + 1")
    psql.execute("DELETE FROM accounts WHERE account = 'bob'")
    outcomes = funded.handle(
        [build(Transfer, amount="1 USD", debit="alice", credit=name) for name in ("bob", "world")] * 5
    )
    assert not any(isinstance(outcome, Rejected) for outcome in outcomes)
    assert {row[0] for row in repairs(psql)} >= {"alice", "bob", "world"}
    funded.rebuild()
    assert funded.verify().ok


@pytest.mark.usefixtures("funded")
def test_checksum_can_be_computed_by_anyone(psql: Psql) -> None:
    """The checksum is SHA-256 over the fields of both rows, joined: the same in Python, in SQL and by hand."""
    row = psql.execute(
        "SELECT b.stream, b.version, b.posted_debits, b.posted_credits, b.pending_debits, b.pending_credits,"
        " encode(b.head_hash, 'hex'), to_char(b.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),"
        " a.account_type, a.asset, a.scale, a.min_balance, '', a.state, a.metadata::text, b.checksum"
        " FROM balances b JOIN accounts a ON a.account = b.stream WHERE b.stream = 'alice'"
    ).fetchone()
    assert row is not None
    assert sha256("|".join(map(str, row[:-1])).encode()).digest() == row[-1]


@pytest.fixture
def holding(funded: Ledger) -> Ledger:
    """A ledger with holds of every kind: without end, with one, captured in part, released, and ended."""
    funded.define_asset("BTC", scale=8)
    for name in ("coins@1", "purse"):
        funded.open_account(name, asset="BTC", type="equity")
    funded.hold("5 USD", debit="alice", credit="bob")
    funded.hold("6 USD", debit="alice", credit="bob", expires_at=datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC))
    funded.hold("0.1 BTC", debit="coins@1", credit="purse", expires_at=datetime(2126, 7, 1, tzinfo=UTC))
    partly = funded.hold("7 USD", debit="alice", credit="bob")
    funded.capture(partly, "2 USD")
    funded.release(partly, "1 USD")
    funded.release(funded.hold("8 USD", debit="bob", credit="alice"))
    funded.capture(funded.hold("9 USD", debit="bob", credit="alice"), "3 USD", final=True)
    return funded


def test_checksum_of_a_leg_is_one_in_python_in_sql_and_by_hand(holding: Ledger, psql: Psql) -> None:
    """SHA-256 over the fields of a hold's row, joined, its end in UTC or empty: whoever computes it."""
    fields_of_legs = "account, direction, asset, amount, captured, released, expired"
    ends = "to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    rows = psql.execute(
        f"SELECT hold_id::text, {fields_of_legs}, coalesce({ends}, ''), expires_at, checksum FROM holds".encode()
    ).fetchall()
    legs = f"(SELECT hold_id, {fields_of_legs}, {ends} AS expires_at FROM holds) AS x"
    in_sql = psql.execute(f"SELECT {_CHECKSUM_OF_LEG} FROM {legs}".encode()).fetchall()

    assert len(rows) == 12
    assert {row[-1] for row in rows} == {checksum for (checksum,) in in_sql}
    for *fields, moment, expires_at, checksum in rows:
        assert sha256("|".join([*map(str, fields), moment]).encode()).digest() == checksum
        assert leg_checksum((*fields, expires_at)) == checksum
    assert holding.verify().ok


def test_holds_can_be_made_anew(holding: Ledger, psql: Psql) -> None:
    """Rebuilt rows of holds equal inline ones byte for byte, checksums included."""
    before = projected(psql)
    assert holding.rebuild() == []
    psql.execute("TRUNCATE holds")
    assert set(holding.rebuild()) == {"alice", "bob", "coins@1", "purse"}
    assert projected(psql) == before
    assert holding.verify().ok


@pytest.mark.parametrize(
    "broken",
    [
        "UPDATE events SET amount = amount + 1 WHERE stream = 'alice' AND version = 3",
        "UPDATE events SET posted_debits = posted_debits + 1 WHERE stream = 'alice' AND version = 3",
        "UPDATE events SET direction = 'debit' WHERE stream = 'alice' AND version = 2",
        "DELETE FROM events WHERE stream = 'alice' AND version = 2",
        "DELETE FROM events WHERE stream = 'alice' AND version = 1",
    ],
)
def test_nothing_is_rebuilt_from_a_log_that_contradicts_itself(
    funded: Ledger, psql: Psql, tamper: Callable[..., None], broken: str
) -> None:
    """Where the events do not add up to what the last one states, a rebuild stops and changes nothing."""
    tamper(broken)
    psql.execute("UPDATE balances SET posted_credits = 5 WHERE stream = 'alice'")
    before = projected(psql)
    for attempt in (
        lambda: funded.rebuild("alice"),
        funded.rebuild,
        lambda: funded.balance("alice"),
        lambda: funded.transfer("1 USD", debit="alice", credit="bob"),
    ):
        with pytest.raises(CorruptLog, match="alice") as corrupt:
            attempt()
        assert corrupt.value.stream == "alice"
    assert projected(psql) == before
    assert repairs(psql) == []


def test_log_cut_short_is_not_mended_silently(funded: Ledger, tamper: Callable[..., None]) -> None:
    """A tail removed from the log looks like a projection that is ahead; the other half of it tells."""
    tamper("DELETE FROM events WHERE stream = 'alice' AND version = 3")
    report = funded.verify()
    assert ("transaction", "alice", 3) in {
        (finding.kind, finding.stream, finding.version) for finding in report.findings
    }
