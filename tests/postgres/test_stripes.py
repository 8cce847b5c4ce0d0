"""Accounts with stripes: many streams that nobody sees, and one account in every answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from invariants import assert_sound, repairs
from sqlalchemy import text

from ledger import (
    AccountNotEmpty,
    AccountNotOpen,
    ChangeAccount,
    ConcurrencyError,
    Done,
    Freeze,
    InvalidCommand,
    Ledger,
    Message,
    OpenAccount,
    Page,
    Rejected,
    Strict,
    StripedAccount,
    Transfer,
    Unfreeze,
    UnknownAccount,
)
from ledger.core.commands import build
from ledger.core.events import account_of

SECONDS = 60
STRIPES = 4

Psql = psycopg.Connection[Any]
Tamper = Callable[..., None]


@pytest.fixture
def bank(ledger: Ledger, ledger_url: str) -> Iterator[Ledger]:
    """A world of four stripes, and alice without any; every law of the ledger is checked afterwards."""
    ledger.open_account("world", asset="USD", type="equity", stripes=STRIPES, metadata={"tier": 1})
    ledger.open_account("alice", asset="USD", type="liability", min_balance=0)
    ledger.balance("world")
    yield ledger
    assert_sound(ledger, ledger_url)


def pay(bank: Ledger, times: int) -> list[Done]:
    """Deposits of 1.00 USD, as often as that."""
    return [bank.deposit("alice", "1 USD", against="world") for _ in range(times)]


def stripe_of(done: Done) -> str:
    """The stream of the world's that a transaction went to."""
    (stream,) = {stream for stream in done.versions if account_of(stream) == "world"}
    return stream


def walk(ledger: Ledger, account: str, limit: int, *, back: bool = False) -> list[Any]:
    """All pages of a history, one after the other."""
    events: list[Any] = []
    page = _page(ledger, account, limit, "0" if not back else 2**53 - 1, back=back)
    while page:
        events += page
        page = _page(ledger, account, limit, page.next, back=back)
    return events


def _page(ledger: Ledger, account: str, limit: int, place: int | str, *, back: bool) -> Page:
    if back:
        return ledger.history(account, before_version=place, limit=limit)
    return ledger.history(account, after_version=place, limit=limit)


def test_transactions_choose_among_the_stripes(bank: Ledger) -> None:
    """Transactions spread over all stripes, and the sum is in the account."""
    done = pay(bank, 100)

    assert {stripe_of(each) for each in done[2:]} == {"world", "world#01", "world#02", "world#03"}
    balance = bank.balance("world")
    assert (str(balance.posted), balance.version) == ("-100.00 USD", 2 * STRIPES + 100)
    assert bank.account("world").balance == balance
    assert str(bank.balance("alice").posted) == "100.00 USD"


def test_a_batch_writes_to_one_stripe(bank: Ledger) -> None:
    """One stripe of each account is locked by a batch, however many commands it has."""
    pay(bank, 2)
    batch = [build(Transfer, amount="1 USD", debit="world", credit="alice")] * 20

    for _ in range(5):
        outcomes = bank.handle(batch)
        assert len({stripe_of(each) for each in outcomes if isinstance(each, Done)}) == 1


def test_an_answer_has_the_streams_version_and_no_balance(bank: Ledger) -> None:
    """What an answer says of an account with stripes is where in which stream the transaction stands."""
    done = pay(bank, 5)[-1]

    assert done.versions == {stripe_of(done): done.versions[stripe_of(done)], "alice": 6}
    assert list(done.balances) == ["alice"]


def test_nobody_sees_a_stripe(bank: Ledger) -> None:
    """Lists and sums have the account, once; a stripe by itself is no account."""
    for name in ("w", "world+", "zed"):
        bank.open_account(name, asset="USD", type="asset", stripes=3)
    pay(bank, 20)

    assert [line.account for line in bank.accounts()] == ["alice", "w", "world", "world+", "zed"]
    assert [line.account for line in bank.accounts(limit=2)] == ["alice", "w"]
    assert [line.account for line in bank.accounts(limit=2, after="w")] == ["world", "world+"]
    assert [line.account for line in bank.accounts(metadata={"tier": 1})] == ["world"]
    (line,) = bank.accounts(metadata={"tier": 1})
    assert line.balance == bank.balance("world")
    assert (line.terms.stripes, line.terms.streams) == (STRIPES, STRIPES)
    assert [(line.account_type, line.accounts) for line in bank.trial_balance().lines] == [
        ("asset", 3), ("equity", 1), ("liability", 1),
    ]  # fmt: skip
    for ask in (bank.balance, bank.account, bank.history, bank.holds):
        with pytest.raises(UnknownAccount, match="world#01"):
            ask("world#01")
    with pytest.raises(InvalidCommand):
        bank.deposit("alice", "1 USD", against="world#01")


def test_whole_numbers_of_a_version_are_refused(bank: Ledger) -> None:
    """An account with stripes has no version that anything could be asked or expected by."""
    pay(bank, 3)

    for ask in (
        lambda: bank.balance("world", version=1),
        lambda: bank.balance("world", version=0),
        lambda: bank.history("world", after_version=2),
        lambda: bank.history("world", before_version=2),
        lambda: bank.deposit("alice", "1 USD", against="world", expected_versions={"world": 11}),
        lambda: bank.freeze("world", expected_versions={"world": 11}),
    ):
        with pytest.raises(StripedAccount, match=r"Account world: its stripes have a version each"):
            ask()


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
def test_history_is_one_in_pages_of_any_size(bank: Ledger, limit: int) -> None:
    """Pages forward and backward show every event once, in the order of time, stripe and version."""
    pay(bank, 15)
    bank.change_account("world", stripes=6)
    pay(bank, 15)

    forward, backward = walk(bank, "world", limit), walk(bank, "world", limit, back=True)

    assert [(event.stream, event.version) for event in forward] == [
        (event.stream, event.version)
        for event in sorted(forward, key=lambda each: (each.recorded_at, each.stream, each.version))
    ]
    assert len({(event.stream, event.version) for event in forward}) == bank.balance("world").version
    assert backward == forward[::-1]


def test_history_misses_nothing_that_is_written_between_pages(bank: Ledger) -> None:
    """What comes while somebody reads, into old stripes and new ones, is on a later page, and once."""
    pay(bank, 10)
    page = bank.history("world", limit=5)
    events = list(page)
    while page:
        if len(events) < 40:
            pay(bank, 2)
        if len(events) == 20:
            bank.change_account("world", stripes=STRIPES + 2)
        page = bank.history("world", after_version=page.next, limit=5)
        events += page

    assert len(events) == len({(event.stream, event.version) for event in events}) == bank.balance("world").version
    assert bank.history("world", after_version=page.next) == []
    pay(bank, 1)
    assert len(bank.history("world", after_version=page.next)) == 1


def test_a_page_leads_on_when_stripes_came_since(bank: Ledger) -> None:
    """Where a page of an account without stripes ended is where the next one begins when it has some."""
    pay(bank, 3)
    page = bank.history("alice", limit=2)
    assert page.next == "2"
    bank.change_account("alice", min_balance="unlimited", stripes=3)

    rest = bank.history("alice", after_version=page.next)
    older = bank.history("alice", before_version=page.next)

    assert [(event.stream, event.version) for event in rest] == [
        ("alice", 3), ("alice", 4), ("alice", 5), ("alice", 6),
        ("alice#01", 1), ("alice#01", 2), ("alice#02", 1), ("alice#02", 2),
    ]  # fmt: skip
    assert [(event.stream, event.version) for event in older] == [("alice", 1)]


@pytest.mark.parametrize("place", ["", "x", "1.", "-1", "1.2.x", "1" * 19, "1." * 3000 + "1", "१"])
def test_what_is_no_place_leads_to_no_page(bank: Ledger, place: str) -> None:
    """A text that no page has told is refused."""
    with pytest.raises(InvalidCommand):
        bank.history("world", after_version=place)
    with pytest.raises(InvalidCommand):
        bank.history("world", before_version=place)


def test_a_page_costs_the_same_however_long_the_account_is(bank: Ledger, psql: Psql) -> None:
    """A page is read by the primary key of events: so many rows of each stripe, and none of the rest."""
    transfer = build(Transfer, amount="1 USD", debit="world", credit="alice")
    for _ in range(12):
        bank.handle([transfer] * 200)
    psql.execute("ANALYZE events")
    from ledger.storage.queries import HISTORY_FORWARD  # noqa: PLC0415

    names = "{world,world#01,world#02,world#03}"
    plan = psql.execute(
        b"EXPLAIN (ANALYZE, FORMAT JSON) " + HISTORY_FORWARD.replace("{schema}", "ledger").encode(),
        (names, "{100,100,100,100}", "{9999,9999,9999,9999}", 5, 5),
    ).fetchall()[0][0][0]["Plan"]

    def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from (each for child in node.get("Plans", ()) for each in scans(child))
        if node.get("Relation Name") == "events":
            yield node

    (scan,) = scans(plan)
    assert scan["Index Name"] == "events_pkey"
    assert scan["Actual Rows"] * scan["Actual Loops"] <= 4 * 5


def test_holds_and_reversals_stay_in_their_stripe(bank: Ledger) -> None:
    """A hold is captured, released and expired where it was placed, and entries are reversed where they are."""
    pay(bank, 30)
    placed = [bank.hold("2 USD", debit="alice", credit="world") for _ in range(8)]

    for number, hold in enumerate(placed):
        done = (bank.capture, bank.release)[number % 2](hold, "1 USD")
        assert stripe_of(done) == stripe_of(hold)
    pages = [bank.holds("world", limit=3)]
    while len(pages[-1]) == 3:
        pages.append(bank.holds("world", limit=3, after=pages[-1][-1].hold))
    assert [line.hold for page in pages for line in page] == sorted(hold.transaction_id for hold in placed)
    assert {line.account for page in pages for line in page} == {"world"}
    assert str(bank.balance("world").pending) == "8.00 USD"
    paid = pay(bank, 8)
    assert [stripe_of(bank.reverse(each)) for each in paid] == [stripe_of(each) for each in paid]


def test_a_due_hold_expires_in_its_stripe(bank: Ledger, psql: Psql) -> None:
    """Whoever touches the stripe, the account as a whole, or the other side expires what is due there."""
    pay(bank, 10)
    ((soon,),) = psql.execute("SELECT clock_timestamp() + interval '2 seconds'").fetchall()
    placed = [bank.hold("1 USD", debit="alice", credit="world", expires_at=soon) for _ in range(5)]
    while not psql.execute("SELECT clock_timestamp() > %s", (soon,)).fetchall()[0][0]:
        pass

    bank.freeze("world")

    assert [line.state for line in bank.holds("world")] == ["expired"] * len(placed)
    assert bank.balance("world").pending.minor == 0


def test_state_and_terms_are_those_of_all_stripes(bank: Ledger) -> None:
    """An account is frozen, described and closed in all of its streams at once, by whoever has never seen it."""
    pay(bank, 10)
    with Ledger(bank.engine) as other:
        frozen = other.freeze("world", reason="audit")
    assert set(frozen.versions) == {"world", "world#01", "world#02", "world#03"}
    for _ in range(10):
        with pytest.raises(AccountNotOpen, match="Account world is frozen"):
            pay(bank, 1)
    bank.change_account("world", metadata={"tier": 2})
    bank.change_account("world", stripes=STRIPES + 1)
    assert bank.account("world").terms[6:] == ("frozen", '{"tier":2}', STRIPES + 1, STRIPES + 1)
    bank.unfreeze("world")
    assert pay(bank, 1)
    with pytest.raises(AccountNotEmpty, match=r"-11\.00 USD"):
        bank.close_account("world")
    bank.withdraw("alice", "11 USD", against="world")
    bank.close_account("world")
    with pytest.raises(AccountNotOpen, match="closed"):
        pay(bank, 1)


def test_fewer_stripes_keep_what_is_in_the_others(bank: Ledger) -> None:
    """Transactions go to fewer stripes once that is known, and the rest still counts."""
    pay(bank, 40)
    bank.change_account("world", stripes=1)
    pay(bank, 5)

    assert {stripe_of(each) for each in pay(bank, 20)} == {"world"}
    assert str(bank.balance("world").posted) == "-65.00 USD"
    assert bank.account("world").terms[-2:] == (1, STRIPES)
    bank.change_account("world", stripes=2)
    pay(bank, 1)
    assert {stripe_of(each) for each in pay(bank, 40)} == {"world", "world#01"}


def test_all_in_one_batch(bank: Ledger) -> None:
    """Commands of one batch see the stripes that earlier ones made."""
    outcomes = bank.handle(
        [
            build(OpenAccount, account="till", asset="USD", account_type="asset"),
            build(Transfer, amount="5 USD", debit="till", credit="alice"),
            ChangeAccount(account="till", stripes=3),
            Freeze(account="till"),
            build(Transfer, amount="5 USD", debit="till", credit="alice"),
            ChangeAccount(account="till", stripes=4),
            Unfreeze(account="till"),
            build(OpenAccount, account="till", asset="USD", account_type="asset", stripes=4),
        ],
    )

    assert [getattr(each, "code", "done") for each in outcomes] == [
        "done", "done", "done", "done", "account_not_open", "done", "done", "account_exists",
    ]  # fmt: skip
    assert set(outcomes[6].versions) == {"till", "till#01", "till#02", "till#03"}  # type: ignore[union-attr]
    assert bank.balance("till").version == 2 + 5 + 3 + 2 + 1 + 4 - 1 + 4


def test_a_dry_run_leaves_no_stripe(bank: Ledger) -> None:
    """What would be written is answered, and nothing of it is there."""
    (would,) = bank.handle([ChangeAccount(account="world", stripes=9)], dry_run=True)

    assert isinstance(would, Done)
    assert len(would.versions) == 9
    assert bank.account("world").terms.streams == STRIPES


def test_a_stripe_that_came_to_nothing_is_forgotten(bank: Ledger) -> None:
    """A process that saw stripes in a transaction that was rolled back goes on with those that there are."""
    with bank.engine.connect() as connection:
        with bank.join(connection, accounts=["alice"]) as guest:
            guest.change_account("alice", min_balance="unlimited", stripes=64)
            for _ in range(5):
                guest.deposit("alice", "1 USD", against="world")
        connection.rollback()

    for _ in range(20):
        assert set(bank.deposit("alice", "1 USD", against="world").versions) >= {"alice"}
    assert bank.account("alice").terms.streams == 1


def test_a_guest_writes_to_one_stripe(bank: Ledger) -> None:
    """All that a guest does in one transaction goes to the stripe that it locked, whatever else it names."""
    pay(bank, 5)
    seen = set()
    for _ in range(12):
        with bank.engine.begin() as connection, bank.join(connection, accounts=["world", "alice"]) as guest:
            done = [guest.deposit("alice", "1 USD", against="world") for _ in range(3)]
            assert len({stripe_of(each) for each in done}) == 1
            assert guest.balance("world").version == bank.balance("world").version + 3
            seen.add(stripe_of(done[0]))
    assert len(seen) > 1


def test_a_guest_who_sees_an_older_moment(bank: Ledger) -> None:
    """At REPEATABLE READ the stripes of later do not exist: a guest goes on with the first, or runs again."""
    pay(bank, 2)
    with bank.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(text("SELECT count(*) FROM ledger.events"))
        bank.change_account("world", stripes=64)
        bank.handle([build(Transfer, amount="1 USD", debit="world", credit="alice")])
        with pytest.raises(ConcurrencyError), bank.join(connection, accounts=["world"]) as guest:
            guest.deposit("alice", "1 USD", against="world")
        connection.rollback()


def test_messages_go_to_a_stripe(bank: Ledger) -> None:
    """The inbox chooses too, one stripe for all that a transaction takes in."""
    pay(bank, 3)
    inbox = bank.inbox("bank", Strict(timedelta(seconds=30)))
    for first in range(1, 60, 6):
        messages = [
            Message("bank", f"m{n}", "ledger.deposit", "alice", n, data=_deposit()) for n in range(first, first + 6)
        ]
        outcomes = [outcome for _, outcome in inbox.receive(messages).outcomes]
        assert len({stripe_of(each) for each in outcomes if isinstance(each, Done)}) == 1
    assert str(bank.balance("alice").posted) == "63.00 USD"
    streams = {event.stream for event in walk(bank, "world", 1000) if event.amount is not None}
    assert len(streams) > 1


def _deposit() -> Any:
    return {"account": "alice", "amount": "1 USD", "against": "world"}


def test_a_batcher_writes_to_a_stripe(bank: Ledger) -> None:
    """What many callers ask for at once goes to one stripe per batch, and counts like anything else."""
    pay(bank, 3)
    transfer = build(Transfer, amount="1 USD", debit="world", credit="alice")
    with bank.batcher(max_batch=5) as batcher:
        done = [future.result(SECONDS) for future in [batcher.submit(transfer) for _ in range(60)]]

    assert len({stripe_of(each) for each in done}) > 1
    assert str(bank.balance("world").posted) == "-63.00 USD"


def test_a_retry_has_the_answer_of_the_stripe_that_was_written(bank: Ledger) -> None:
    """The same key again is answered from where it went, and draws no other stripe."""
    pay(bank, 2)
    for number in range(10):
        first = bank.deposit("alice", "1 USD", against="world", idempotency_key=f"k{number}")
        again = bank.deposit("alice", "1 USD", against="world", idempotency_key=f"k{number}")
        assert again.replayed
        assert (again.versions, again.balances) == (first.versions, first.balances)


TAMPERINGS = {
    "an amount": "UPDATE balances SET posted_debits = posted_debits + 1 WHERE stream = 'world#02'",
    "no balance": "DELETE FROM balances WHERE stream = 'world#02'",
    "no terms": "DELETE FROM accounts WHERE account = 'world#02'",
    "fewer streams": "UPDATE accounts SET stripes = 1, streams = 1 WHERE account = 'world'",
    "more streams": "UPDATE accounts SET streams = 200 WHERE account = 'world'",
    "more stripes": "UPDATE accounts SET stripes = 9 WHERE account = 'world#02'",
    "another state": "UPDATE accounts SET state = 'frozen' WHERE account = 'world#02'",
}


@pytest.mark.parametrize("how", TAMPERINGS)
@pytest.mark.parametrize("look", ["balance", "account", "holds", "history", "accounts", "freeze", "deposit", "guest"])
def test_a_stripe_that_somebody_changed_is_mended(
    bank: Ledger, psql: Psql, ledger_url: str, how: str, look: str
) -> None:
    """Whoever looks at the account as a whole, or comes by the stripe, finds it as the log says."""
    pay(bank, 30)
    before = bank.balance("world")
    psql.execute(TAMPERINGS[how].encode())
    assert not bank.verify("world").ok

    if look == "deposit":
        pay(bank, 60)
    elif look == "guest":
        with bank.engine.begin() as connection, bank.join(connection) as guest:
            assert guest.balance("world") == before
    elif look == "freeze":
        bank.freeze("world")
    else:
        getattr(bank, look)(*(["world"] if look != "accounts" else []))

    assert repairs(ledger_url) == 1
    assert bank.verify().ok
    assert bank.balance("world").posted.minor == before.posted.minor - (60_00 if look == "deposit" else 0)


def test_rebuild_and_verify_cover_all_stripes(bank: Ledger, psql: Psql) -> None:
    """By the name of the account all of its streams are made anew and checked, whatever is left of its rows."""
    pay(bank, 20)
    psql.execute("DELETE FROM balances WHERE stream <> 'world'")
    psql.execute("DELETE FROM accounts")
    assert bank.verify("world").checked["streams"] == STRIPES
    assert {finding.stream for finding in bank.verify("world").findings} == {
        "world", "world#01", "world#02", "world#03",
    }  # fmt: skip

    assert bank.rebuild("world") == ["world", "world#01", "world#02", "world#03"]
    assert bank.verify("world").ok
    assert bank.rebuild("world") == []
    psql.execute("UPDATE balances SET version = 9999 WHERE stream = 'world#03'")
    assert bank.rebuild("world#03") == ["world#03"]
    with pytest.raises(UnknownAccount):
        bank.rebuild("worl")
    assert bank.rebuild() == ["$ledger", "alice"]


def test_verify_sees_stripes_that_disagree(ledger: Ledger, tamper: Tamper) -> None:
    """A stream that is missing, one too many, and one that says something else are found."""
    ledger.open_account("world", asset="USD", type="equity", stripes=3)
    tamper("DELETE FROM events WHERE stream = 'world#01'", "DELETE FROM balances WHERE stream = 'world#01'")
    found = {(finding.stream, finding.column, finding.problem) for finding in ledger.verify("world").findings}
    assert ("world#01", "stream", "account world has 3 streams, and this one is missing") in found

    ledger.open_account("till", asset="USD", type="asset", stripes=3)
    tamper("DELETE FROM events WHERE stream = 'till' AND version = 2")
    found = {(finding.stream, finding.column, finding.problem) for finding in ledger.verify("till").findings}
    assert ("till#02", "stream", "account till has 1 streams, and this is none of them") in found

    ledger.open_account("desk", asset="USD", type="asset", stripes=3)
    tamper(
        "UPDATE events SET payload = replace(payload::text, '\"stripes\":3', '\"stripes\":2')::json"
        " WHERE stream = 'desk#02' AND version = 2"
    )
    found = {(finding.stream, finding.column, finding.problem) for finding in ledger.verify("desk").findings}
    assert any(stream == "desk#02" and column == "terms" for stream, column, _ in found), found


@pytest.mark.parametrize("stripes", [1, 7])
def test_eight_threads_on_one_account(ledger: Ledger, ledger_url: str, stripes: int) -> None:
    """Opposite transfers between two hot accounts, while stripes change and one is frozen and opened again."""
    for name in ("left", "right"):
        ledger.open_account(name, asset="USD", type="asset", stripes=stripes)
    rounds, failures, done = 40, list[BaseException](), [0] * 8
    barrier = threading.Barrier(9)

    def move(number: int) -> None:
        with Ledger.connect(ledger_url) as mine:
            sides = ("left", "right") if number % 2 else ("right", "left")
            barrier.wait(SECONDS)
            for _ in range(rounds):
                try:
                    mine.transfer("1 USD", debit=sides[0], credit=sides[1])
                    done[number] += 1 if number % 2 else -1
                except AccountNotOpen:
                    continue

    def rule() -> None:
        with Ledger.connect(ledger_url) as mine:
            barrier.wait(SECONDS)
            for count in (3, 12, 1, 16, 5):
                mine.freeze("left")
                mine.change_account("right", stripes=count)
                mine.unfreeze("left")
                mine.change_account("left", stripes=count)
                assert mine.trial_balance().balanced

    _run([*(lambda number=number: move(number) for number in range(8)), rule], failures)

    assert failures == []
    assert ledger.balance("left").posted.minor == 100 * sum(done)
    assert ledger.balance("right").posted.minor == -100 * sum(done)
    assert ledger.account("left").terms[6:] == ("open", "{}", 5, 16)
    assert len(walk(ledger, "left", 100)) == ledger.balance("left").version
    assert repairs(ledger_url) == 0
    assert_sound(ledger, ledger_url)


def test_reading_while_others_write_is_one_moment(ledger: Ledger, ledger_url: str) -> None:
    """The balance and the trial balance are those of one moment: what moves between stripes is in the sum once."""
    for name in ("left", "right"):
        ledger.open_account(name, asset="USD", type="asset", stripes=5)
    failures: list[BaseException] = []
    over = threading.Event()

    def move() -> None:
        with Ledger.connect(ledger_url) as mine:
            for _ in range(60):
                mine.transfer("1 USD", debit="left", credit="right")
                mine.transfer("1 USD", debit="right", credit="left")
            over.set()

    def look() -> None:
        with Ledger.connect(ledger_url) as mine:
            while not over.is_set():
                assert mine.trial_balance().balanced
                assert mine.balance("left").posted.minor in (0, 100)

    _run([move, look, look], failures)

    assert failures == []


def test_closing_against_entries(ledger: Ledger, ledger_url: str) -> None:
    """An account is closed when nothing is in any of its stripes, and takes nothing more, whoever comes first."""
    ledger.open_account("till", asset="USD", type="asset")
    for number in range(5):
        name, outcomes, barrier = f"hot-{number}", list[str](), threading.Barrier(4)
        ledger.open_account(name, asset="USD", type="asset", stripes=6)
        works = [partial(_pay_and_be_paid, ledger_url, name, barrier, outcomes)] * 3
        failures: list[BaseException] = []
        _run([*works, partial(_close, ledger_url, name, barrier, outcomes)], failures)
        assert failures == []
        left = ledger.balance(name).posted.minor
        assert left == 100 * outcomes.count("paid")
        assert ("closed" in outcomes) == (left == 0) == (ledger.account(name).terms.state == "closed")
    assert ledger.verify().ok


def _pay_and_be_paid(url: str, name: str, barrier: threading.Barrier, outcomes: list[str]) -> None:
    """Leave nothing, but in two stripes; and then something, if the account is still open."""
    with Ledger.connect(url) as mine:
        mine.transfer("1 USD", debit=name, credit="till")
        mine.transfer("1 USD", debit="till", credit=name)
        barrier.wait(SECONDS)
        outcomes.append(_outcome(mine, name))


def _close(url: str, name: str, barrier: threading.Barrier, outcomes: list[str]) -> None:
    with Ledger.connect(url) as mine:
        barrier.wait(SECONDS)
        try:
            mine.close_account(name)
        except AccountNotEmpty:
            outcomes.append("not empty")
        else:
            outcomes.append("closed")


def _outcome(ledger: Ledger, name: str) -> str:
    try:
        ledger.transfer("1 USD", debit=name, credit="till")
    except Rejected:
        return "refused"
    return "paid"


def _run(works: list[Callable[[], None]], failures: list[BaseException]) -> None:
    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as failure:  # noqa: BLE001  (it is the test's)
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads)


def test_guards_hold_for_each_stripe(bank: Ledger, psql: Psql) -> None:
    """The database refuses a gap, a change and an entry too many in a stripe, as it does in any stream."""
    pay(bank, 10)
    columns = [
        name
        for (name,) in psql.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'events'::regclass AND attnum > 2 ORDER BY attnum"
        )
    ]
    copied = f"{', '.join(columns)} FROM events WHERE stream = 'world#01' AND version = 1"
    for attack in (
        "UPDATE events SET amount = 1 WHERE stream = 'world#01'",
        "DELETE FROM events WHERE stream = 'world#01'",
        f"INSERT INTO events SELECT stream, version + 1000, {copied}",
        f"INSERT INTO events SELECT 'world#77', version, {copied}",
    ):
        with pytest.raises(psycopg.Error) as refused:
            psql.execute(attack.encode())
        assert (refused.value.sqlstate or "").startswith("LD")
