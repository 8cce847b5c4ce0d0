"""
Many writers at once, in three tiers and at three isolation levels.

By hand: two connections and one thread, where a lock timeout turns a wait into an error.  Barrier: threads
that start together.  Hammer: everything at once, and then every invariant.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
import pytest
from invariants import assert_sound, repairs
from sqlalchemy import make_url

from ledger import (
    AccountExists,
    ConcurrencyError,
    Done,
    IdempotencyConflict,
    InsufficientFunds,
    Ledger,
    Rejected,
    Report,
    Timeouts,
    VersionConflict,
    credit,
    debit,
    writer,
)
from ledger.core.commands import Post, Transfer, build

JOIN_SECONDS = 60
LEVELS = ("read committed", "repeatable read", "serializable")
IMPATIENT = Timeouts(lock_seconds=0.02)

Answer = TypeVar("Answer")


@pytest.fixture(params=LEVELS)
def url(request: pytest.FixtureRequest, ledger_url: str) -> str:
    """The URL of a database whose sessions run at one isolation level unless they say otherwise."""
    level = request.param.replace(" ", "\\ ")
    address = make_url(ledger_url).update_query_dict({"options": f"-c default_transaction_isolation={level}"})
    # libpq does not take a plus sign for a space.
    return address.render_as_string(hide_password=False).replace("+", "%20")


@pytest.fixture
def bank(url: str) -> Iterator[Ledger]:
    """A ledger in which alice and bob own 100.00 USD each, and neither may go below zero."""
    with Ledger.connect(url) as ledger:
        ledger.open_account("world", asset="USD", type="equity")
        for account in ("alice", "bob"):
            ledger.open_account(account, asset="USD", type="liability", min_balance=0)
            ledger.deposit(account, "100 USD", against="world")
        yield ledger


@pytest.fixture
def impatient(url: str) -> Iterator[Ledger]:
    """The same ledger, for a caller who does not wait for a lock."""
    with Ledger.connect(url, timeouts=IMPATIENT) as ledger:
        yield ledger


@pytest.fixture
def lent(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the application's, with its own transactions."""
    with psycopg.connect(url) as connection:
        yield connection


def together(count: int, work: Callable[[int], Answer]) -> list[Answer | Rejected]:
    """Do `work` in threads that start at the same moment; a rejection is an answer, anything else a failure."""
    barrier = threading.Barrier(count)
    answers: dict[int, Answer | Rejected] = {}
    failures: list[Exception] = []

    def run(number: int) -> None:
        barrier.wait(JOIN_SECONDS)
        try:
            answers[number] = work(number)
        except Rejected as rejection:
            answers[number] = rejection
        except Exception as failure:  # noqa: BLE001  (raised again in the thread of the test)
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {count} threads failed", failures)
    return [answers[number] for number in range(count)]


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """Do `work` again and again in another thread until the block ends; says how many times."""
    over = threading.Event()
    rounds = 0
    failures: list[Exception] = []

    def run() -> None:
        nonlocal rounds
        while not over.is_set():
            try:
                work()
            except Exception as failure:  # noqa: BLE001  (raised again in the thread of the test)
                failures.append(failure)
                return
            rounds += 1

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield lambda: rounds
    finally:
        over.set()
        thread.join(JOIN_SECONDS)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def done(answers: list[Done | Rejected]) -> list[Done]:
    """The answers to those who were not rejected."""
    return [answer for answer in answers if isinstance(answer, Done)]


def posted(ledger: Ledger, account: str) -> str:
    return str(ledger.balance(account).posted)


def move(amount: str, source: str, target: str, **context: Any) -> Transfer:
    return build(Transfer, amount=amount, debit=source, credit=target, **context)


# By hand


def test_held_account_stops_other_writers_until_its_holder_ends(
    bank: Ledger, impatient: Ledger, lent: psycopg.Connection[Any]
) -> None:
    """Whoever named an account in an open transaction has it for themselves; others get a retryable error."""
    with bank.join(lent, accounts=["alice"]) as guest:
        guest.transfer("10 USD", debit="alice", credit="bob")
        with pytest.raises(ConcurrencyError) as waited:
            impatient.transfer("1 USD", debit="world", credit="alice")
        assert waited.value.retryable
        assert posted(impatient, "alice") == "100.00 USD"
    lent.commit()
    assert impatient.transfer("1 USD", debit="world", credit="alice").versions["alice"] == 4
    assert posted(bank, "alice") == "91.00 USD"


def test_held_account_does_not_stop_others(bank: Ledger, impatient: Ledger, lent: psycopg.Connection[Any]) -> None:
    """A lock is on an account, not on the ledger."""
    with bank.join(lent, accounts=["alice"]):
        impatient.transfer("1 USD", debit="world", credit="bob")
    lent.rollback()
    assert posted(bank, "bob") == "101.00 USD"


def test_lock_timeout_bounds_the_call(url: str, bank: Ledger, lent: psycopg.Connection[Any]) -> None:
    """A caller waits for a lock as long as they said, and not again and again."""
    with bank.join(lent, accounts=["alice"]), Ledger.connect(url, timeouts=Timeouts(lock_seconds=1)) as waiting:
        began = time.monotonic()
        with pytest.raises(ConcurrencyError):
            waiting.transfer("1 USD", debit="world", credit="alice")
        assert time.monotonic() - began < 6
    lent.rollback()


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_key_in_flight_blocks_the_second_caller_until_it_ends(
    bank: Ledger, impatient: Ledger, lent: psycopg.Connection[Any], ending: str
) -> None:
    """A key in an open transaction has no answer yet; then it is replayed, or free."""
    with bank.join(lent) as guest:
        first = guest.transfer("10 USD", debit="alice", credit="bob", idempotency_key="rent")
        with pytest.raises(ConcurrencyError):
            impatient.transfer("10 USD", debit="alice", credit="bob", idempotency_key="rent")
    getattr(lent, ending)()
    second = impatient.transfer("10 USD", debit="alice", credit="bob", idempotency_key="rent")
    assert second.replayed == (ending == "commit")
    assert (second.transaction == first.transaction) == (ending == "commit")
    assert posted(bank, "alice") == "90.00 USD"


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_key_in_flight_for_another_request_blocks_too(
    bank: Ledger, impatient: Ledger, lent: psycopg.Connection[Any], ending: str
) -> None:
    """Two requests under one key meet on the key alone, whatever accounts they touch."""
    for account in ("carl", "dora"):
        bank.open_account(account, asset="USD", type="equity")
    with bank.join(lent) as guest:
        guest.transfer("10 USD", debit="alice", credit="bob", idempotency_key="rent")
        with pytest.raises(ConcurrencyError):
            impatient.transfer("10 USD", debit="carl", credit="dora", idempotency_key="rent")
    getattr(lent, ending)()
    if ending == "commit":
        with pytest.raises(IdempotencyConflict) as conflict:
            impatient.transfer("10 USD", debit="carl", credit="dora", idempotency_key="rent")
        assert conflict.value.differing == ["credit", "debit"]
    else:
        assert not impatient.transfer("10 USD", debit="carl", credit="dora", idempotency_key="rent").replayed


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_new_account_opened_twice_at_once(
    bank: Ledger, impatient: Ledger, lent: psycopg.Connection[Any], ending: str
) -> None:
    """An account that somebody else is opening neither exists nor can be opened, until they end."""
    with bank.join(lent) as guest:
        guest.open_account("carl", asset="USD", type="asset")
        with pytest.raises(ConcurrencyError):
            impatient.open_account("carl", asset="USD", type="expense")
    getattr(lent, ending)()
    if ending == "commit":
        with pytest.raises(AccountExists):
            impatient.open_account("carl", asset="USD", type="expense")
    else:
        assert impatient.open_account("carl", asset="USD", type="expense").versions == {"carl": 1}
    assert bank.balance("carl").version == 1


def test_guest_with_an_old_snapshot_cannot_overwrite(bank: Ledger, lent: psycopg.Connection[Any], url: str) -> None:
    """A guest decides on the newest state, or is told to run the whole transaction again; it works then."""
    with bank.join(lent) as guest:
        bank.transfer("60 USD", debit="alice", credit="bob")
        if "read\\ committed" in make_url(url).query["options"]:
            with pytest.raises(InsufficientFunds):
                guest.transfer("50 USD", debit="alice", credit="bob")
            guest.transfer("40 USD", debit="alice", credit="bob")
        else:
            with pytest.raises(ConcurrencyError) as stale:
                guest.transfer("40 USD", debit="alice", credit="bob")
            assert stale.value.retryable
            lent.rollback()
            with bank.join(lent) as guest_again:
                guest_again.transfer("40 USD", debit="alice", credit="bob")
    lent.commit()
    assert [posted(bank, account) for account in ("alice", "bob")] == ["0.00 USD", "200.00 USD"]
    assert_sound(bank, url)


# Barrier


def test_one_key_from_many_callers_happens_once(bank: Ledger, url: str) -> None:
    """Sixteen callers with one key: one transaction, one answer, and one of them is told that it is new."""
    answers = together(
        16, lambda _: bank.transfer("10 USD", debit="alice", credit="bob", idempotency_key="rent", reference="rent")
    )
    assert len(done(answers)) == 16
    assert [answer.replayed for answer in done(answers)].count(False) == 1
    assert len({answer.transaction for answer in done(answers)}) == 1
    assert all(answer.balances == done(answers)[0].balances for answer in done(answers))
    assert len(bank.transactions(reference="rent")) == 1
    assert posted(bank, "alice") == "90.00 USD"
    assert_sound(bank, url)


def test_one_key_for_two_requests_happens_once(bank: Ledger, url: str) -> None:
    """Callers who use one key for different requests on different accounts: one request wins, others conflict."""
    for number in range(8):
        bank.open_account(f"payer-{number}", asset="USD", type="equity")
        bank.open_account(f"payee-{number}", asset="USD", type="equity")
    answers = together(
        8, lambda n: bank.transfer("1 USD", debit=f"payer-{n}", credit=f"payee-{n}", idempotency_key="once")
    )
    assert len(done(answers)) == 1
    assert [type(answer) for answer in answers].count(IdempotencyConflict) == 7
    assert_sound(bank, url)


def test_one_account_opened_by_many_callers_opens_once(bank: Ledger, url: str) -> None:
    """Eight callers open one account: one succeeds, the others learn that it exists."""
    answers = together(8, lambda _: bank.open_account("carl", asset="USD", type="asset"))
    assert [type(answer) for answer in answers].count(AccountExists) == 7
    assert len(done(answers)) == 1
    assert_sound(bank, url)


def test_last_unit_of_money_is_withdrawn_once(bank: Ledger, url: str) -> None:
    """Eight callers withdraw all that there is: one gets it, and nobody goes below zero."""
    answers = together(8, lambda _: bank.withdraw("alice", "100 USD", against="world"))
    assert [type(answer) for answer in answers].count(InsufficientFunds) == 7
    assert posted(bank, "alice") == "0.00 USD"
    assert_sound(bank, url)


def test_expected_version_lets_one_caller_through(bank: Ledger, url: str) -> None:
    """Eight callers who all read version 2 write: one is first, the others are told so."""
    answers = together(8, lambda _: bank.transfer("1 USD", debit="alice", credit="bob", expected_versions={"alice": 2}))
    assert len(done(answers)) == 1
    assert {answer.actual for answer in answers if isinstance(answer, VersionConflict)} == {3}
    assert posted(bank, "alice") == "99.00 USD"
    assert_sound(bank, url)


def test_expected_version_of_an_account_that_is_only_read(bank: Ledger, url: str) -> None:
    """Each of two writers depends on the account that the other one writes: they cannot both go through."""
    for account in ("carl", "dora"):
        bank.open_account(account, asset="USD", type="asset")
    pairs = [("alice", "carl", "bob"), ("bob", "dora", "alice")]

    def skewed(number: int) -> Done:
        source, target, depends_on = pairs[number % 2]
        return bank.transfer("1 USD", debit=source, credit=target, expected_versions={depends_on: 2, source: 2})

    answers = together(8, skewed)
    assert len(done(answers)) == 1
    assert [type(answer) for answer in answers].count(VersionConflict) == 7
    assert_sound(bank, url)


def test_first_use_of_a_currency_by_many_defines_it_once(bank: Ledger, url: str) -> None:
    """Eight openings in a currency that nobody used before all succeed, and define it once."""
    answers = together(8, lambda number: bank.open_account(f"euro-{number}", asset="EUR", type="asset"))
    assert len(done(answers)) == 8
    assert sum("$ledger" in answer.versions for answer in done(answers)) == 1
    assert_sound(bank, url)


def test_many_assets_defined_at_once(bank: Ledger, url: str) -> None:
    """Twenty-four callers define an asset each: all meet on one stream, and none is turned away."""
    answers = together(24, lambda number: bank.define_asset(f"TOKEN{number}", number % 19))
    assert sorted(answer.versions["$ledger"] for answer in done(answers)) == list(range(2, 26))
    assert_sound(bank, url)


def test_batches_with_the_same_keys_happen_once(bank: Ledger, url: str) -> None:
    """Batches that carry the same keys in different orders: each key once, whoever brings it."""
    commands = [
        move("1 USD", "world", f"{name}", idempotency_key=f"{name}-{n}") for name in ("alice", "bob") for n in range(20)
    ]
    answers = together(6, lambda n: bank.handle(commands[n:] + commands[:n]))
    for outcomes in answers:
        assert isinstance(outcomes, list)
        assert all(isinstance(outcome, Done) for outcome in outcomes)
    assert [posted(bank, account) for account in ("alice", "bob")] == ["120.00 USD", "120.00 USD"]
    assert_sound(bank, url)


def test_deadlock_of_guests_says_what_to_do(bank: Ledger, url: str) -> None:
    """Two guests who post in opposite orders without naming their accounts: one is told to name them."""
    met = threading.Barrier(2)

    def post_twice(number: int) -> str:
        order = [("alice", "carl"), ("bob", "dora")][:: 1 if number else -1]
        with psycopg.connect(url) as connection, bank.join(connection) as guest:
            guest.transfer("1 USD", debit=order[0][0], credit=order[0][1])
            met.wait(JOIN_SECONDS)
            try:
                guest.transfer("1 USD", debit=order[1][0], credit=order[1][1])
            except ConcurrencyError as deadlock:
                connection.rollback()
                return str(deadlock)
        return "committed"

    for account in ("carl", "dora"):
        bank.open_account(account, asset="USD", type="asset")
    survivor, victim = sorted(map(str, together(2, post_twice)), key=lambda said: said != "committed")
    assert survivor == "committed"
    assert "join(connection, accounts=[…])" in victim
    assert_sound(bank, url)


# Hammer


def test_opposite_transfers_end_where_they_began(bank: Ledger, url: str) -> None:
    """Five hundred transfers each way between two accounts from eight threads: no money moves, no error surfaces."""

    def transfers(number: int) -> int:
        source, target = ("alice", "bob") if number % 2 else ("bob", "alice")
        for _ in range(125):
            bank.transfer("0.01 USD", debit=source, credit=target)
        return 125

    assert sum(made for made in together(8, transfers) if isinstance(made, int)) == 1_000
    assert [posted(bank, account) for account in ("alice", "bob")] == ["100.00 USD", "100.00 USD"]
    assert bank.balance("alice").version == 2 + 1_000
    assert repairs(url) == 0
    assert_sound(bank, url)


def test_many_accounts_in_opposite_orders_do_not_deadlock(bank: Ledger, url: str) -> None:
    """Transactions and batches that name the same accounts in opposite orders all succeed."""
    accounts = [f"account-{number}" for number in range(6)]
    for account in accounts:
        bank.open_account(account, asset="USD", type="equity")

    def circle(number: int) -> Post:
        turned = accounts[number % 6 :] + accounts[: number % 6]
        turned = turned[:: -1 if number % 2 else 1]
        return build(
            Post,
            entries=tuple(
                entry
                for payer, payee in zip(turned, turned[1:] + turned[:1], strict=True)
                for entry in (debit(payer, "1 USD"), credit(payee, "1 USD"))
            ),
        )

    def write(number: int) -> int:
        for turn in range(6):
            if (number + turn) % 2:
                bank.post(circle(number + turn).entries)
            else:
                outcomes = bank.handle([circle(number + turn + each) for each in range(3)])
                assert all(isinstance(outcome, Done) for outcome in outcomes), outcomes
        return 6

    together(8, write)
    assert {posted(bank, account) for account in accounts} == {"0.00 USD"}
    assert repairs(url) == 0
    assert_sound(bank, url)


def test_rebuild_never_undoes_a_concurrent_append(bank: Ledger, url: str) -> None:
    """Everything is rebuilt again and again while writers go on: nothing is lost, and nothing looks like drift."""
    mended: list[str] = []

    def write(number: int) -> None:
        for turn in range(40):
            bank.transfer("0.01 USD", debit="alice", credit="bob")
            bank.open_account(f"new-{number}-{turn}", asset="USD", type="asset")

    with meanwhile(lambda: mended.extend(bank.rebuild())) as rounds:
        together(4, write)
    assert rounds() > 1
    assert mended == []
    assert repairs(url) == 0
    assert posted(bank, "bob") == "101.60 USD"
    assert_sound(bank, url)


def test_drift_is_mended_while_writers_go_on(bank: Ledger, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Balances are changed behind the ledger's back while it writes and rebuilds: no write is lost, none is wrong."""
    # One to find out, one that mends, and one to spare: nobody gets in between mending and deciding.
    monkeypatch.setattr(writer, "ATTEMPTS_MAX", 3)

    def spoil() -> None:
        with psycopg.connect(url) as stranger:
            stranger.execute("SET default_transaction_isolation = 'read committed'")
            stranger.commit()
            stranger.execute("UPDATE ledger.balances SET posted_credits = posted_credits + 7 WHERE stream = 'bob'")

    def write(_: int) -> None:
        for _turn in range(20):
            bank.transfer("0.01 USD", debit="alice", credit="bob")

    with meanwhile(spoil) as rounds, meanwhile(bank.rebuild):
        together(4, write)
    assert rounds() > 1
    assert repairs(url) > 0
    bank.rebuild()
    assert [posted(bank, account) for account in ("alice", "bob")] == ["99.20 USD", "100.80 USD"]
    assert_sound(bank, url)


def test_verify_sees_one_moment_while_writers_go_on(bank: Ledger, url: str) -> None:
    """A verification among writers finds nothing: it looks at one snapshot, in which all is complete."""
    reports: list[Report] = []

    def write(_: int) -> None:
        for _turn in range(60):
            bank.transfer("0.01 USD", debit="alice", credit="bob")

    with meanwhile(lambda: reports.append(bank.verify())) as rounds:
        together(4, write)
    assert rounds() > 1
    assert [report.findings for report in reports if not report.ok] == []
    assert len({report.checked["events"] for report in reports}) > 1
    assert_sound(bank, url)
