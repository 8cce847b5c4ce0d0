"""Questions and their answers: balances at a version, pages in both directions, searches, the trial balance."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from ledger import (
    InvalidCommand,
    Ledger,
    Money,
    OpenAccount,
    Post,
    Transfer,
    UnknownAccount,
    UnknownTransaction,
    credit,
    debit,
)
from ledger.core.commands import build


@pytest.fixture
def busy(funded: Ledger) -> Ledger:
    """A ledger in which alice and bob stand at versions 33 and 32."""
    funded.handle(
        [
            build(Transfer, amount=f"{number}.00 USD", debit="alice", credit="bob", reference=f"r{number % 3}")
            if number % 2
            else build(Transfer, amount=f"{number}.00 USD", debit="bob", credit="alice", metadata={"n": number % 4})
            for number in range(1, 31)
        ]
    )
    return funded


def test_balance_in_the_normal_direction(funded: Ledger) -> None:
    """Every type of account counts up on its own side."""
    for kind in ("asset", "expense", "liability", "equity", "income"):
        funded.open_account(f"of-{kind}", asset="USD", type=kind)
        funded.deposit(f"of-{kind}", "5 USD", against="world")
        funded.withdraw(f"of-{kind}", "7 USD", against="world")
        balance = funded.balance(f"of-{kind}")
        assert (balance.account, balance.version) == (f"of-{kind}", 3)
        assert balance.posted == balance.available == Money.parse("-2 USD")
        assert balance.pending == Money.parse("0 USD")
    assert funded.verify().ok


def test_balance_at_every_version(busy: Ledger) -> None:
    """The balance at a version is what the events up to it add up to."""
    running = 0
    assert busy.balance("alice", version=0).posted.minor == 0
    for event in busy.history("alice"):
        if event.amount is not None:
            running += event.amount if event.direction == "credit" else -event.amount
        balance = busy.balance("alice", version=event.version)
        assert (balance.posted.minor, balance.available.minor, balance.version) == (running, running, event.version)
    assert busy.balance("alice") == busy.balance("alice", version=33)


@pytest.mark.parametrize("version", [-1, 34, 10**30])
def test_balance_at_a_version_that_is_not_there(busy: Ledger, version: int) -> None:
    """A version that the account has not got is refused, saying which ones it has."""
    with pytest.raises(InvalidCommand, match="versions 0 to 33"):
        busy.balance("alice", version=version)


@pytest.mark.parametrize("version", [None, 0, 1])
def test_balance_of_nobody(funded: Ledger, version: int | None) -> None:
    """An account that does not exist has no balance, at no version; the ledger's own stream is no account."""
    for name in ("nobody", "$ledger", "", "x" * 500, "'; DROP TABLE events"):
        with pytest.raises(UnknownAccount):
            funded.balance(name, version=version)


@pytest.mark.parametrize("version", [-1, 10**20])
def test_history_from_what_is_no_version(busy: Ledger, version: int) -> None:
    """A number that no version has is the caller's mistake, and not the server's."""
    for page in (busy.history, busy.stream):
        with pytest.raises(InvalidCommand, match="after_version"):
            page("alice", after_version=version)
    with pytest.raises(InvalidCommand, match="before_version"):
        busy.history("alice", before_version=version)


def test_history_forward_in_pages(busy: Ledger) -> None:
    """Pages going forward hold every event once, oldest first."""
    versions: list[int] = []
    while page := busy.history("alice", after_version=versions[-1] if versions else 0, limit=10):
        assert len(page) <= 10
        versions += [event.version for event in page]
    assert versions == list(range(1, 34))


def test_history_backward_in_pages(busy: Ledger) -> None:
    """Pages going backward hold every event once, newest first."""
    versions: list[int] = []
    while page := busy.history("alice", before_version=versions[-1] if versions else 34, limit=10):
        assert len(page) <= 10
        versions += [event.version for event in page]
    assert versions == list(range(33, 0, -1))


def test_history_ends(busy: Ledger) -> None:
    """Beyond the last event, and before the first, there is an empty page."""
    assert busy.history("alice", after_version=33) == []
    assert busy.history("alice", before_version=1) == []
    with pytest.raises(UnknownAccount):
        busy.history("nobody")


def test_history_goes_one_way(busy: Ledger) -> None:
    """A page is asked for forward or backward: both at once is refused, as of a time too."""
    for known in (None, 0):
        with pytest.raises(InvalidCommand, match=r"^before_version: .*after_version"):
            busy.history("alice", after_version=2, before_version=9, known_as_of=known)
    assert len(busy.history("alice", after_version=0, before_version=9)) == 8


def test_transaction_with_its_events(funded: Ledger) -> None:
    """A transaction comes with its header and its events, in the order in which they were asked for."""
    done = funded.post(
        [debit("bob", "1 USD"), credit("alice", "3 USD"), debit("world", "2 USD")],
        reference="ref",
        actor="me",
        correlation_id="c1",
        causation_id="c2",
        metadata={"k": 1},
    )
    for key in (done.transaction_id, str(done.transaction_id), str(done.transaction_id).upper()):
        transaction, events, reverses, reversed_by = funded.transaction(key)
        assert transaction == done.transaction
        assert events == list(done.events)
        assert (reverses, reversed_by) == (None, [])
    assert [(event.stream, event.direction, event.amount) for event in events] == [
        ("bob", "debit", 100),
        ("alice", "credit", 300),
        ("world", "debit", 200),
    ]
    assert (transaction.kind, transaction.reference, transaction.actor) == ("post", "ref", "me")
    assert (transaction.correlation_id, transaction.causation_id, transaction.metadata) == ("c1", "c2", '{"k":1}')


def test_unknown_transaction(funded: Ledger) -> None:
    """An id that is not there, or no id at all, is refused with a sentence."""
    with pytest.raises(UnknownTransaction, match="There is no transaction"):
        funded.transaction(uuid4())
    with pytest.raises(InvalidCommand, match="not a UUID"):
        funded.transaction("payday")


def test_transactions_by_reference(busy: Ledger) -> None:
    """A reference finds its transactions, and no other, in pages."""
    found: list[str] = []
    while page := busy.transactions(reference="r1", after=found[-1] if found else None, limit=2):
        assert len(page) <= 2
        assert {transaction.reference for transaction in page} == {"r1"}
        found += [transaction.transaction_id for transaction in page]
    assert len(found) == len(set(found)) == 5
    assert busy.transactions(reference="r") == []


def test_transactions_by_metadata(busy: Ledger) -> None:
    """All of the given pairs must be there, with their types; both criteria narrow the answer."""
    assert len(busy.transactions(metadata={"n": 2})) == 8
    assert busy.transactions(metadata={"n": "2"}) == []
    assert busy.transactions(metadata={"n": 2, "m": 1}) == []
    (rent,) = busy.transactions(metadata={"month": "May"})
    assert rent.idempotency_key == "rent"
    busy.transfer("1 USD", debit="alice", credit="bob", reference="both", metadata={"n": 2, "m": True})
    assert len(busy.transactions(reference="both", metadata={"n": 2})) == 1
    assert busy.transactions(reference="both", metadata={"n": 1}) == []
    assert len(busy.transactions(metadata={"m": True})) == 1
    assert busy.transactions(metadata={"m": 1}) == []


def test_transactions_without_a_criterion(funded: Ledger) -> None:
    """To list everything is a job for the feed, and is refused here."""
    with pytest.raises(InvalidCommand, match="by reference"):
        funded.transactions()


def test_page_after_something_that_is_no_id(funded: Ledger) -> None:
    """A page that is to begin after no UUID is refused with a sentence."""
    with pytest.raises(InvalidCommand, match="UUID"):
        funded.transactions(reference="payday", after="yesterday")


def test_accounts_in_pages_and_by_asset(funded: Ledger) -> None:
    """Accounts come in order of their id, by code point; asset and metadata narrow the answer."""
    for number in range(7):
        funded.open_account(f"z{number}", asset="EUR", type="asset", metadata={"even": number % 2 == 0})
    funded.open_account("Zed", asset="EUR", type="asset")
    names: list[str] = []
    while page := funded.accounts(after=names[-1] if names else "", limit=3):
        assert len(page) <= 3
        names += [line.account for line in page]
    assert names == sorted(names) == ["Zed", "alice", "bob", "world", *(f"z{number}" for number in range(7))]
    assert [line.account for line in funded.accounts(asset="USD")] == ["alice", "bob", "world"]
    assert [line.account for line in funded.accounts(metadata={"even": False})] == ["z1", "z3", "z5"]
    assert [line.account for line in funded.accounts(asset="EUR", metadata={"even": True}, after="z0")] == [
        "z2",
        "z4",
        "z6",
    ]
    assert funded.accounts(asset="JPY") == []
    alice = funded.accounts(after="Zed", limit=1)[0]
    assert (alice.account, alice.terms.min_balance, alice.balance) == ("alice", 0, funded.balance("alice"))


def test_trial_balance(funded: Ledger) -> None:
    """Debits equal credits in every asset; lines tell accounts by asset and type."""
    for name in ("till", "drawer"):
        funded.open_account(name, asset="JPY", type="asset")
    funded.transfer("500 JPY", debit="till", credit="drawer")
    trial = funded.trial_balance()
    assert trial.balanced
    assert {asset: str(net) for asset, net in trial.difference.items()} == {"JPY": "0 JPY", "USD": "0.00 USD"}
    assert [(*line[:3], str(line.debits), str(line.credits)) for line in trial.lines] == [
        ("JPY", "asset", 2, "500 JPY", "500 JPY"),
        ("USD", "equity", 1, "100.00 USD", "0.00 USD"),
        ("USD", "liability", 2, "30.00 USD", "130.00 USD"),
    ]


def test_trial_balance_of_nothing(ledger: Ledger) -> None:
    """A new ledger is balanced."""
    assert ledger.trial_balance().lines == ()
    assert ledger.trial_balance().balanced


@pytest.mark.parametrize("limit", [0, -1, 1_001, 10**30])
@pytest.mark.parametrize("page", ["history", "transactions", "accounts"])
def test_page_sizes_are_bounded(funded: Ledger, page: str, limit: int) -> None:
    """A page has 1 to 1,000 rows; anything else is refused, saying so."""
    arguments: dict[str, Any] = {
        "history": {"account": "alice"},
        "transactions": {"reference": "payday"},
        "accounts": {},
    }[page]
    with pytest.raises(InvalidCommand, match="1 to 1000"):
        getattr(funded, page)(**arguments, limit=limit)


def test_largest_page(funded: Ledger) -> None:
    """A thousand rows fit on one page."""
    funded.handle(
        [build(OpenAccount, account=f"a{number:04}", asset="USD", account_type="asset") for number in range(1_000)]
    )
    entries = tuple((debit if n % 2 else credit)(f"a{n:04}", "1 USD") for n in range(200))
    funded.handle([build(Post, entries=entries)])
    assert len(funded.accounts(limit=1_000)) == 1_000


@pytest.mark.usefixtures("ledger_url")
def test_answers_are_the_same_for_a_guest(
    busy: Ledger,
) -> None:
    """Inside a caller's transaction every question has the same answer."""
    with busy.engine.connect() as lent, busy.join(lent) as guest:
        assert guest.balance("alice") == busy.balance("alice")
        assert guest.history("alice", limit=7) == busy.history("alice", limit=7)
        assert guest.transactions(reference="payday") == busy.transactions(reference="payday")
        assert guest.accounts() == busy.accounts()
        assert guest.trial_balance() == busy.trial_balance()
