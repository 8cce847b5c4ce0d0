"""The write path: each command once, in order, all or nothing, in few round trips."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import psycopg
import pytest
from sqlalchemy import make_url
from wire import Proxy

from ledger import (
    AccountExists,
    AtomicBatchRejected,
    Command,
    Done,
    IdempotencyConflict,
    InsufficientFunds,
    InvalidAmount,
    InvalidCommand,
    Ledger,
    Rejected,
    UnknownAccount,
    VersionConflict,
    credit,
    debit,
    parse_command,
)
from ledger.core.commands import BATCH_MAX, DefineAsset, OpenAccount, Post, Transfer, build

Psql = psycopg.Connection[Any]


def transfer(amount: str, source: str, target: str, **context: Any) -> Command:
    """A transfer that debits `source` and credits `target`."""
    return build(Transfer, amount=amount, debit=source, credit=target, **context)


def done(outcome: Done | Rejected) -> Done:
    """The outcome of a command that must have been carried out."""
    assert isinstance(outcome, Done), outcome
    return outcome


def rows(psql: Psql) -> list[tuple[Any, ...]]:
    """The number of rows in every table that the write path writes."""
    tables = ("transactions", "events", "accounts", "balances", "holds", "outbox", "projection_repairs")
    return [(table, *(psql.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or ())) for table in tables]


# Idempotency


def test_replay_returns_the_original_answer(funded: Ledger, psql: Psql) -> None:
    """A key used again returns what was answered then, whatever has happened since, and writes nothing."""
    original = funded.transfer("5.00 USD", debit="alice", credit="bob", idempotency_key="tip")
    funded.transfer("1.00 USD", debit="alice", credit="bob")
    before = rows(psql)
    again = funded.transfer("5.00 USD", debit="alice", credit="bob", idempotency_key="tip")
    assert again.replayed
    assert not original.replayed
    assert again.transaction_id == original.transaction_id
    assert again.versions == original.versions == {"alice": 4, "bob": 3}
    assert again.balances == original.balances
    assert str(again.balances["alice"].posted) == "65.00 USD"
    assert list(again.events) == list(original.events)
    assert again.transaction == original.transaction
    assert rows(psql) == before


def test_replay_by_another_process_is_the_same_answer(funded: Ledger, ledger_url: str) -> None:
    """Nothing of an answer is kept in memory: a ledger that was never there before gives it too."""
    original = funded.open_account("carl", asset="USD", type="asset", metadata={"tier": 1}, idempotency_key="carl")
    with Ledger.connect(ledger_url) as other:
        again = other.open_account("carl", asset="USD", type="asset", metadata={"tier": 1}, idempotency_key="carl")
    assert again.replayed
    assert (again.versions, again.balances, again.transaction) == (
        original.versions,
        original.balances,
        original.transaction,
    )


def test_key_twice_in_one_batch_happens_once(funded: Ledger) -> None:
    """The second of two equal commands in one batch is a replay of the first."""
    first, between, second = funded.handle(
        [
            transfer("5 USD", "alice", "bob", idempotency_key="tip"),
            transfer("1 USD", "alice", "bob"),
            transfer("5.00 USD", "alice", "bob", idempotency_key="tip"),
        ]
    )
    assert [done(outcome).replayed for outcome in (first, between, second)] == [False, False, True]
    assert done(second).balances == done(first).balances
    assert str(funded.balance("alice").posted) == "64.00 USD"


def test_key_with_another_request_is_a_conflict(funded: Ledger, psql: Psql) -> None:
    """A used key with another request is refused; the conflict names exactly the fields that differ."""
    before = rows(psql)
    with pytest.raises(IdempotencyConflict) as conflict:
        funded.transfer("6 USD", debit="alice", credit="world", idempotency_key="rent", reference="x")
    assert conflict.value.key == "rent"
    assert conflict.value.differing == ["amount", "credit", "metadata", "reference"]
    with pytest.raises(IdempotencyConflict) as conflict:
        funded.open_account("carl", asset="USD", type="asset", idempotency_key="rent")
    assert "type" in conflict.value.differing
    assert rows(psql) == before


@pytest.mark.parametrize(("first", "second"), [(True, 1), (1, True), (False, 0), (0, False)])
def test_conflict_tells_truth_from_numbers(funded: Ledger, first: bool | int, second: bool | int) -> None:
    """Python holds true and 1 to be equal; a conflict about them is named all the same."""
    funded.transfer("1 USD", debit="alice", credit="bob", idempotency_key="k", metadata={"x": first})
    with pytest.raises(IdempotencyConflict) as conflict:
        funded.transfer("1 USD", debit="alice", credit="bob", idempotency_key="k", metadata={"x": second})
    assert conflict.value.differing == ["metadata"]


@pytest.mark.parametrize("wrong", ["a\0b", "\ud800", "x" * 256, 5, None], ids=ascii)
def test_scopes_are_short_texts(funded: Ledger, psql: Psql, wrong: Any) -> None:
    """A scope is a text like any other label, of 255 characters at most; it may be empty."""
    before = rows(psql)
    command = transfer("1 USD", "alice", "bob", idempotency_key="k")
    with pytest.raises(InvalidCommand, match="scope"):
        funded.handle([command], scope=wrong)
    assert rows(psql) == before
    assert isinstance(funded.handle([command], scope="x" * 255)[0], Done)


@pytest.mark.parametrize("wrong", [{}, None, "transfer", OpenAccount, debit("alice", "1 USD")], ids=repr)
def test_only_commands_are_carried_out(funded: Ledger, psql: Psql, wrong: Any) -> None:
    """What is no command is refused by its place, and nothing before it is done."""
    before = rows(psql)
    with pytest.raises(InvalidCommand, match=r"commands\.1: .* is not a command"):
        funded.handle([transfer("1 USD", "alice", "bob"), wrong])
    assert rows(psql) == before


@pytest.mark.parametrize(
    "wrong",
    [None, "transfer", 5, transfer("1 USD", "alice", "bob"), iter(())],
    ids=["none", "text", "number", "command", "iterator"],
)
def test_commands_come_in_a_list(funded: Ledger, psql: Psql, wrong: Any) -> None:
    """One command by itself, or what can be gone through only once, is refused with how it is written."""
    before = rows(psql)
    with pytest.raises(InvalidCommand, match=r"^commands: .* is no list of commands"):
        funded.handle(wrong)
    with (
        funded.engine.begin() as lent,
        funded.join(lent) as guest,
        pytest.raises(InvalidCommand, match="is no list of commands"),
    ):
        guest.handle(wrong)
    assert rows(psql) == before


def test_conflict_inside_one_batch(funded: Ledger) -> None:
    """Two requests under one key in one batch: the first is done, the second is the conflict."""
    first, second = funded.handle(
        [
            transfer("5 USD", "alice", "bob", idempotency_key="tip"),
            transfer("6 USD", "alice", "bob", idempotency_key="tip"),
        ]
    )
    assert isinstance(first, Done)
    assert isinstance(second, IdempotencyConflict)
    assert second.differing == ["amount"]


def test_keys_are_resolved_before_any_other_rule(funded: Ledger) -> None:
    """What was done once is answered again even where no rule would allow it any more, and so is a conflict."""
    original = funded.open_account("carl", asset="USD", type="asset", idempotency_key="carl")
    assert funded.open_account("carl", asset="USD", type="asset", idempotency_key="carl").versions == original.versions
    emptied = funded.transfer("70 USD", debit="alice", credit="bob", idempotency_key="all")
    assert funded.transfer("70 USD", debit="alice", credit="bob", idempotency_key="all").balances == emptied.balances
    with pytest.raises(IdempotencyConflict):
        funded.transfer("700000 USD", debit="nobody", credit="bob", idempotency_key="all")


def test_scopes_keep_keys_apart(funded: Ledger) -> None:
    """The same key from two senders stands for two requests; each is replayed to its own sender."""
    command = transfer("5 USD", "alice", "bob", idempotency_key="k")
    ids = []
    for scope in ("", "shop", "bank"):
        (fresh,), (again,) = funded.handle([command], scope=scope), funded.handle([command], scope=scope)
        assert (done(fresh).replayed, done(again).replayed) == (False, True)
        assert done(fresh).transaction.scope == scope
        assert done(again).transaction_id == done(fresh).transaction_id
        ids.append(done(fresh).transaction_id)
    assert len(set(ids)) == 3
    assert str(funded.balance("alice").posted) == "55.00 USD"


def test_keyed_transaction_id_can_be_derived_by_anyone(funded: Ledger) -> None:
    """The id of a keyed transaction is UUIDv5 of the ledger's id over scope, NUL and key."""
    (outcome,) = funded.handle([transfer("5 USD", "alice", "bob", idempotency_key="Ärger \\ \"'")], scope="shop")
    assert done(outcome).transaction_id == uuid5(funded.ledger_id, "shop\0Ärger \\ \"'")
    unkeyed = funded.transfer("5 USD", debit="alice", credit="bob")
    assert unkeyed.transaction_id.version == 7


def test_rejected_command_is_not_remembered(funded: Ledger, psql: Psql) -> None:
    """A rejection writes nothing, and its key is free: the same command succeeds once it may."""
    before = rows(psql)
    with pytest.raises(InsufficientFunds):
        funded.transfer("80 USD", debit="alice", credit="bob", idempotency_key="big")
    assert rows(psql) == before
    funded.transfer("50 USD", debit="world", credit="alice")
    assert not funded.transfer("80 USD", debit="alice", credit="bob", idempotency_key="big").replayed


def test_expected_versions_are_not_part_of_the_fingerprint(funded: Ledger) -> None:
    """A caller who read newer versions before asking again asks for the same; so does another actor."""
    first = funded.transfer(
        "5 USD", debit="alice", credit="bob", idempotency_key="k", expected_versions={"alice": 3}, actor="a"
    )
    again = funded.transfer(
        "5 USD", debit="alice", credit="bob", idempotency_key="k", expected_versions={"alice": 99}, actor="b"
    )
    assert again.replayed
    assert again.transaction == first.transaction
    assert again.transaction.actor == "a"


@pytest.mark.parametrize("written", ["5 USD", "5.0 USD", "5.00 USD", "005 USD", "+5 USD"])
def test_one_amount_has_one_fingerprint(funded: Ledger, written: str) -> None:
    """However an amount is written, it is the same request."""
    funded.transfer("5 USD", debit="alice", credit="bob", idempotency_key="k")
    assert funded.transfer(written, debit="alice", credit="bob", idempotency_key="k").replayed


# Expected versions


def test_expected_version_must_be_the_version(funded: Ledger) -> None:
    """A command that was decided on an older version is refused with both numbers."""
    with pytest.raises(VersionConflict) as conflict:
        funded.transfer("5 USD", debit="alice", credit="bob", expected_versions={"alice": 2, "bob": 2})
    assert conflict.value.fields == {"account": "alice", "expected": 2, "actual": 3}
    assert funded.transfer("5 USD", debit="alice", credit="bob", expected_versions={"alice": 3, "bob": 2}).versions == {
        "alice": 4,
        "bob": 3,
    }


def test_expected_version_of_an_account_not_written(funded: Ledger) -> None:
    """A command may depend on an account that it does not touch, and on one that does not exist."""
    with pytest.raises(VersionConflict) as conflict:
        funded.transfer("5 USD", debit="alice", credit="bob", expected_versions={"world": 1})
    assert conflict.value.actual == 2
    with pytest.raises(VersionConflict) as conflict:
        funded.transfer("5 USD", debit="alice", credit="bob", expected_versions={"nobody": 1})
    assert conflict.value.actual == 0
    funded.transfer("5 USD", debit="alice", credit="bob", expected_versions={"world": 2, "nobody": 0})
    assert funded.balance("world").version == 2


def test_expected_versions_follow_the_batch(funded: Ledger) -> None:
    """Inside a batch the expected version is the one that the commands before leave behind."""
    outcomes = funded.handle(
        [transfer("1 USD", "alice", "bob", expected_versions={"alice": version}) for version in (3, 4, 4, 5)]
    )
    assert [type(outcome) for outcome in outcomes] == [Done, Done, VersionConflict, Done]


# Batches


def test_rejection_is_of_its_command_alone(funded: Ledger) -> None:
    """Commands are decided in order, each on what the ones before leave; a rejection stops nobody else."""
    outcomes = funded.handle(
        [
            transfer("70 USD", "alice", "bob"),
            transfer("1 USD", "alice", "bob"),
            transfer("100 USD", "bob", "alice"),
            transfer("99 USD", "alice", "bob"),
            transfer("1 USD", "nobody", "bob"),
            build(OpenAccount, account="carl", asset="USD", account_type="liability", min_balance=0),
            transfer("1 USD", "alice", "carl"),
            build(OpenAccount, account="carl", asset="USD", account_type="liability"),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [
        Done,
        InsufficientFunds,
        Done,
        Done,
        UnknownAccount,
        Done,
        Done,
        AccountExists,
    ]
    assert done(outcomes[6]).versions == {"alice": 7, "carl": 2}
    assert [str(funded.balance(name).posted) for name in ("alice", "bob", "carl")] == [
        "0.00 USD",
        "99.00 USD",
        "1.00 USD",
    ]
    assert funded.verify().ok


def test_order_of_a_batch_matters(funded: Ledger) -> None:
    """Deposit then withdraw succeeds where withdraw then deposit does not."""
    into, out = transfer("50 USD", "world", "alice"), transfer("110 USD", "alice", "bob")
    assert [type(outcome) for outcome in funded.handle([out, into])] == [InsufficientFunds, Done]
    assert [type(outcome) for outcome in funded.handle([into, transfer("170 USD", "alice", "bob")])] == [Done, Done]


def test_atomic_batch_is_all_or_nothing(funded: Ledger, psql: Psql) -> None:
    """With `atomic` one rejection takes the rest along; the others name it, and nothing is written."""
    before = rows(psql)
    outcomes = funded.handle(
        [
            transfer("1 USD", "alice", "bob", idempotency_key="a"),
            transfer("1000 USD", "alice", "bob"),
            transfer("1 USD", "bob", "alice"),
        ],
        atomic=True,
    )
    assert [type(outcome) for outcome in outcomes] == [AtomicBatchRejected, InsufficientFunds, AtomicBatchRejected]
    assert isinstance(outcomes[0], AtomicBatchRejected)
    assert outcomes[0].index == 1
    assert "69.00 USD" in outcomes[0].cause
    assert rows(psql) == before
    assert funded.balance("alice").version == 3
    assert not funded.transfer("1 USD", debit="alice", credit="bob", idempotency_key="a").replayed


@pytest.mark.parametrize("dry_run", [False, True])
def test_atomic_batch_leaves_what_was_done_before(funded: Ledger, dry_run: bool) -> None:
    """A rejection takes along what the batch would have done, and not what happened long ago."""
    rent = transfer("30.00 USD", "alice", "bob", idempotency_key="rent", metadata={"month": "May"})
    new = transfer("1 USD", "alice", "bob", idempotency_key="new")
    outcomes = funded.handle([rent, new, new, transfer("500 USD", "alice", "bob")], atomic=True, dry_run=dry_run)
    assert done(outcomes[0]).replayed
    assert [type(outcome) for outcome in outcomes[1:]] == [AtomicBatchRejected, AtomicBatchRejected, InsufficientFunds]
    assert funded.balance("alice").version == 3


def test_atomic_batch_without_a_rejection_is_done(funded: Ledger) -> None:
    """Nothing rejected: an atomic batch is like any other."""
    outcomes = funded.handle([transfer("1 USD", "alice", "bob")] * 3, atomic=True)
    assert [done(outcome).versions["alice"] for outcome in outcomes] == [4, 5, 6]


@pytest.mark.parametrize("atomic", [False, True])
def test_dry_run_answers_and_writes_nothing(funded: Ledger, psql: Psql, atomic: bool) -> None:
    """A dry run gives the very answer that the real run then gives, and leaves no trace, not even a key."""
    commands = [
        transfer("5 USD", "alice", "bob", idempotency_key="k"),
        build(OpenAccount, account="carl", asset="JPY", account_type="asset"),
        transfer("5 USD", "alice", "bob", idempotency_key="k"),
        *([] if atomic else [transfer("500 USD", "alice", "bob")]),
    ]
    before = rows(psql)
    tried = funded.handle(commands, dry_run=True, atomic=atomic)
    assert rows(psql) == before
    real = funded.handle(commands, atomic=atomic)
    assert [type(outcome) for outcome in tried] == [type(outcome) for outcome in real]
    for one, other in zip(tried[:3], real[:3], strict=True):
        assert done(one).dry_run
        assert not done(other).dry_run
        assert (done(one).versions, done(one).balances) == (done(other).versions, done(other).balances)
        assert done(one).replayed == done(other).replayed


def test_no_commands_is_no_work(funded: Ledger, psql: Psql) -> None:
    """An empty batch is answered with an empty list."""
    before = rows(psql)
    assert funded.handle([]) == []
    assert rows(psql) == before


def test_ten_thousand_commands_at_once(funded: Ledger, psql: Psql) -> None:
    """The largest batch goes in as one database transaction, its versions without a gap, its times in order."""
    outcomes = funded.handle([transfer("0.01 USD", "alice", "bob")] * BATCH_MAX)
    assert isinstance(outcomes[6_999], Done)
    assert [isinstance(outcome, Done) for outcome in outcomes] == [True] * 7_000 + [False] * 3_000
    assert [done(outcome).versions["alice"] for outcome in outcomes[:7_000]] == list(range(4, 7_004))
    assert funded.balance("alice").posted.minor == 0
    outbox = psql.execute("SELECT transaction_ids FROM outbox ORDER BY recorded_at DESC LIMIT 1").fetchone()
    assert outbox is not None
    assert outbox[0] == [done(outcome).transaction_id for outcome in outcomes[:7_000]]
    assert funded.verify().ok


def test_more_than_ten_thousand_are_refused(funded: Ledger, psql: Psql) -> None:
    """A batch beyond the limit is refused as a whole before the database is asked."""
    before = rows(psql)
    with pytest.raises(InvalidCommand, match="10001"):
        funded.handle([transfer("0.01 USD", "alice", "bob")] * (BATCH_MAX + 1))
    assert rows(psql) == before


# What is recorded


def test_versions_are_gapless(funded: Ledger, psql: Psql) -> None:
    """Every stream counts 1, 2, 3 … through batches, rejections, replays and dry runs."""
    for number in range(5):
        funded.handle([transfer("1 USD", "alice", "bob"), transfer("900 USD", "alice", "bob")])
        funded.handle([transfer("1 USD", "bob", "alice", idempotency_key=f"{number // 2}")])
        funded.handle([transfer("1 USD", "bob", "alice")], dry_run=True)
    gaps = psql.execute(
        "SELECT stream, array_agg(version ORDER BY version) = array_agg(n) FROM (SELECT stream, version,"
        " row_number() OVER (PARTITION BY stream ORDER BY version) AS n FROM events) AS e GROUP BY stream"
    ).fetchall()
    assert dict(gaps) == dict.fromkeys(["$ledger", "world", "alice", "bob"], True)


def test_recorded_time_grows_within_a_stream_though_the_clock_stands(funded: Ledger) -> None:
    """
    One batch reads the clock once: each of its transactions on a stream is still later than the one before.
    The next call meets a stream whose last time lies ahead of what a clock could say, and goes on from there.
    """
    outcomes = funded.handle([transfer("0.01 USD", "alice", "bob")] * 3_000)
    times = [done(outcome).transaction.recorded_at for outcome in outcomes]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    after = funded.transfer("0.01 USD", debit="alice", credit="bob").transaction.recorded_at
    assert after > times[-1]


def test_recorded_time_grows_though_the_clock_is_behind(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """A database clock that has fallen behind the log does not turn time back within a stream."""
    ahead = funded.transfer("1 USD", debit="alice", credit="bob").transaction.recorded_at
    # The server's own clock cannot be set here.  One that is found first on the search path lags by a day.
    psql.execute("CREATE SCHEMA lagging")
    psql.execute(
        "CREATE FUNCTION lagging.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
        " AS $$ SELECT pg_catalog.clock_timestamp() - interval '1 day' $$"
    )
    lagging = make_url(ledger_url).update_query_dict({"options": "-csearch_path=lagging,pg_catalog"})
    with Ledger.connect(lagging.render_as_string(hide_password=False)) as behind:
        first = behind.transfer("1 USD", debit="alice", credit="bob").transaction.recorded_at
        second = behind.transfer("1 USD", debit="bob", credit="alice").transaction.recorded_at
        assert (first - ahead).total_seconds() == pytest.approx(1e-6)
        assert (second - first).total_seconds() == pytest.approx(1e-6)
        behind.open_account("carl", asset="USD", type="asset")
        carl = behind.history("carl")[0].recorded_at
        assert carl < ahead
    assert funded.verify().ok


def test_effective_time_is_the_callers(funded: Ledger) -> None:
    """A transaction may count from any moment, past or future; it is recorded now, in one order."""
    past, future = datetime(1999, 12, 31, 23, 59, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    back = funded.transfer("1 USD", debit="alice", credit="bob", effective_at=past)
    ahead = funded.transfer("1 USD", debit="alice", credit="bob", effective_at=future)
    plain = funded.transfer("1 USD", debit="alice", credit="bob")
    history = funded.history("alice", after_version=3)
    assert [event.effective_at for event in history] == [past, future, plain.transaction.recorded_at]
    times = [outcome.transaction.recorded_at for outcome in (back, ahead, plain)]
    assert times == sorted(set(times))
    assert past < times[0] < future


def test_opening_balances_of_another_system(ledger: Ledger) -> None:
    """What an older system knew comes in through the same path, counting from when it was true there."""
    taken_over = datetime(2020, 1, 1, tzinfo=UTC)
    for name, kind in (("cash", "asset"), ("loan", "liability"), ("opening", "equity")):
        ledger.open_account(name, asset="EUR", type=kind)
    outcome = ledger.post(
        [debit("cash", "900.00 EUR"), credit("loan", "250.00 EUR"), credit("opening", "650.00 EUR")],
        effective_at=taken_over,
        reference="takeover",
        idempotency_key="takeover",
    )
    assert {name: str(balance.posted) for name, balance in outcome.balances.items()} == {
        "cash": "900.00 EUR",
        "loan": "250.00 EUR",
        "opening": "650.00 EUR",
    }
    assert {event.effective_at for event in outcome.events} == {taken_over}
    assert ledger.trial_balance().balanced
    assert ledger.verify().ok


def test_currency_is_defined_at_its_first_use_only(ledger: Ledger, psql: Psql) -> None:
    """A known currency needs no definition; its scale is recorded once, in the ledger's own stream."""
    first = ledger.open_account("a", asset="JPY", type="asset")
    second = ledger.open_account("b", asset="JPY", type="asset")
    batch = ledger.handle([build(OpenAccount, account=name, asset="KWD", account_type="asset") for name in ("c", "d")])
    assert [set(outcome.versions) for outcome in (first, second, *map(done, batch))] == [
        {"$ledger", "a"},
        {"b"},
        {"$ledger", "c"},
        {"d"},
    ]
    defined = psql.execute("SELECT payload::text FROM events WHERE type = 'asset_defined' ORDER BY version").fetchall()
    assert defined == [('{"asset":"JPY","scale":0}',), ('{"asset":"KWD","scale":3}',)]
    assert ledger.verify().ok


def test_custom_asset_keeps_its_scale(ledger: Ledger) -> None:
    """Anything can be counted once it is defined, exactly and in no finer steps."""
    ledger.define_asset("BTC", scale=8)
    ledger.open_account("a", asset="BTC", type="asset")
    ledger.open_account("b", asset="BTC", type="equity")
    ledger.transfer("0.00000001 BTC", debit="a", credit="b")
    assert str(ledger.balance("a").posted) == "0.00000001 BTC"
    with pytest.raises(InvalidAmount, match="8 decimal places"):
        ledger.transfer("0.000000001 BTC", debit="a", credit="b")
    (again,) = ledger.handle([build(DefineAsset, asset="BTC", scale=9)])
    assert isinstance(again, Rejected)


def test_largest_amounts_are_exact(ledger: Ledger) -> None:
    """38 digits go in and come out; one more is refused before anything is written."""
    for name, kind in (("a", "asset"), ("b", "equity")):
        ledger.open_account(name, asset="USD", type=kind)
    most = f"{'9' * 36}.99 USD"
    ledger.transfer(most, debit="a", credit="b")
    assert str(ledger.balance("a").posted) == most
    with pytest.raises(InvalidAmount, match="38 digits"):
        ledger.transfer("0.01 USD", debit="a", credit="b")
    ledger.transfer(most, debit="b", credit="a")
    assert ledger.balance("a").posted.minor == 0
    assert ledger.trial_balance().balanced
    assert ledger.verify().ok


def test_same_account_many_times_in_one_transaction(funded: Ledger) -> None:
    """Each entry is an event of its own; limits look at the transaction as a whole."""
    entries = [debit("alice", "100 USD"), credit("alice", "40 USD"), credit("bob", "60 USD")]
    outcome = funded.post(entries)
    assert outcome.transaction.streams == ("alice", "alice", "bob")
    assert outcome.versions == {"alice": 5, "bob": 3}
    assert str(outcome.balances["alice"].posted) == "10.00 USD"
    assert funded.verify().ok


def test_two_hundred_entries(ledger: Ledger) -> None:
    """The widest transaction there may be is posted whole."""
    ledger.handle(
        [build(OpenAccount, account=f"a{number}", asset="USD", account_type="asset") for number in range(200)]
    )
    entries = [(debit if number % 2 else credit)(f"a{number}", "1 USD") for number in range(200)]
    (outcome,) = ledger.handle([build(Post, entries=tuple(entries))])
    assert done(outcome).transaction.entry_count == 200
    assert ledger.verify().ok


def test_several_assets_in_one_transaction(ledger: Ledger) -> None:
    """An exchange moves two assets at once through a trading account per asset."""
    for name, asset in (("eur", "EUR"), ("jpy", "JPY"), ("desk-eur", "EUR"), ("desk-jpy", "JPY")):
        ledger.open_account(name, asset=asset, type="asset")
    outcome = ledger.post(
        [debit("jpy", "160 JPY"), credit("desk-jpy", "160 JPY"), credit("eur", "1.00 EUR"), debit("desk-eur", "1 EUR")]
    )
    assert {name: str(balance.posted) for name, balance in outcome.balances.items()} == {
        "jpy": "160 JPY",
        "desk-jpy": "-160 JPY",
        "eur": "-1.00 EUR",
        "desk-eur": "1.00 EUR",
    }
    assert ledger.verify().ok


def test_commands_from_json_are_the_same_commands(funded: Ledger) -> None:
    """A command read from JSON has the fingerprint of the one made in Python."""
    line = (
        '{"type": "transfer", "credit": "bob", "debit": "alice", "amount": "30.00 USD", "metadata": {"month": "May"},'
    )
    (outcome,) = funded.handle([parse_command(line + ' "idempotency_key": "rent"}')])
    assert done(outcome).replayed
    assert done(outcome).transaction_id == UUID(done(outcome).transaction.transaction_id)


# Round trips

ROUND_TRIPS_MAX = 2
"""Read; lock, write and commit."""


def test_round_trips_of_a_single_command(funded: Ledger, ledger_url: str) -> None:
    """On a warm connection a keyed transfer takes two round trips, and needs no BEGIN and COMMIT of its own."""
    with Proxy(make_url(ledger_url)) as proxy, Ledger.connect(proxy.url()) as ledger:
        for number in range(3):
            ledger.transfer("1 USD", debit="alice", credit="bob", idempotency_key=f"warm-{number}")
        assert proxy.round_trips > 0
        with proxy.counted() as round_trips:
            ledger.transfer("1 USD", debit="alice", credit="bob", idempotency_key="counted")
            assert 0 < round_trips() <= ROUND_TRIPS_MAX
        with proxy.counted() as round_trips:
            ledger.transfer("1 USD", debit="alice", credit="bob")
            assert 0 < round_trips() <= ROUND_TRIPS_MAX
    assert funded.balance("alice").version == 8


@pytest.mark.usefixtures("funded")
def test_round_trips_do_not_grow_with_the_batch(ledger_url: str) -> None:
    """A thousand commands cost no more round trips than two."""
    with Proxy(make_url(ledger_url)) as proxy, Ledger.connect(proxy.url()) as ledger:
        counts = []
        for size in (2, 3, 1_000):
            with proxy.counted() as round_trips:
                ledger.handle(
                    [transfer("0.01 USD", "alice", "bob", idempotency_key=f"{size}-{n}") for n in range(size)]
                )
                counts.append(round_trips())
    assert 0 < counts[2] <= counts[1] <= ROUND_TRIPS_MAX


@pytest.mark.usefixtures("funded")
def test_round_trips_of_a_replayed_batch_do_not_grow_with_it(ledger_url: str) -> None:
    """Answering a thousand commands again costs no more round trips than answering two."""
    batches = [
        [transfer("0.01 USD", "alice", "bob", idempotency_key=f"{size}-{n}") for n in range(size)]
        for size in (2, 1_000)
    ]
    with Proxy(make_url(ledger_url)) as proxy, Ledger.connect(proxy.url()) as ledger:
        counts = []
        for batch in batches:
            ledger.handle(batch)
            with proxy.counted() as round_trips:
                assert all(done(outcome).replayed for outcome in ledger.handle(batch))
                counts.append(round_trips())
    assert counts[1] <= counts[0] + ROUND_TRIPS_MAX


def test_batch_larger_than_the_socket_takes_at_once(funded: Ledger) -> None:
    """Statements that do not go out in one piece go out all the same, and are answered."""
    sides = (debit("alice", "0.01 USD"), credit("bob", "0.01 USD"))
    outcomes = funded.handle([build(Post, entries=sides * 100)] * 50)
    assert all(isinstance(outcome, Done) for outcome in outcomes)
    assert str(funded.balance("alice").posted) == "20.00 USD"
