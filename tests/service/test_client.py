"""The client: the names, answers and errors of `Ledger`, through a service; and what it does when an answer is lost."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from serving import Serve

from ledger import (
    Deposit,
    InsufficientFunds,
    InvalidAmount,
    InvalidCommand,
    Ledger,
    Message,
    ServiceUnavailable,
    Strict,
    Transfer,
    Unauthenticated,
    UnknownAccount,
    VersionConflict,
    credit,
    debit,
)
from ledger.access import Scope
from ledger.client import Client
from ledger.service.server import Server
from ledger.wire import Json


@pytest.fixture
def client(service: Server, funded: Ledger) -> Iterator[Client]:
    """Somebody who may append, read and audit."""
    scopes = [Scope.APPEND, Scope.READ, Scope.AUDIT]
    with Client(service.address, funded.api_keys().create("app", scopes, created_by="test").secret) as client:
        yield client


def test_commands_are_those_of_the_ledger(client: Client, funded: Ledger) -> None:
    """Each does what it does there, and answers with where everything stood right after."""
    client.open_account("shop", asset="USD", type="income", metadata={"floor": 2})
    done = client.transfer("5 USD", debit="alice", credit="bob", idempotency_key="k", reference="order")
    again = client.transfer("5 USD", debit="alice", credit="bob", idempotency_key="k", reference="order")
    posted = client.post([debit("world", "2 USD"), credit("alice", "2 USD")], expected_versions={"alice": 4})
    hold = client.hold("10 USD", debit="alice", credit="shop")
    client.capture(hold.transaction_id, "4 USD", final=True)
    client.reverse(done.transaction_id, reason="sent twice")

    assert (done.replayed, again.replayed, again.transaction_id) == (False, True, done.transaction_id)
    assert done.balances["bob"] == funded.balance("bob", version=done.versions["bob"])
    assert posted.versions["alice"] == 5
    assert client.balance("alice") == funded.balance("alice")
    assert client.account("shop").metadata == {"floor": 2}
    assert client.verify().ok


def test_errors_are_those_of_the_ledger(client: Client, service: Server) -> None:
    """The same class with the same facts: what a program does about one does not depend on where the ledger is."""
    with pytest.raises(InsufficientFunds) as poor:
        client.transfer("500 USD", debit="alice", credit="bob")
    assert (poor.value.account, poor.value.required) == ("alice", "500.00 USD")
    with pytest.raises(VersionConflict) as moved:
        client.deposit("alice", "1 USD", against="world", expected_versions={"alice": 1})
    assert (moved.value.expected, moved.value.actual) == (1, 3)
    with pytest.raises(UnknownAccount):
        client.balance("nobody")
    with pytest.raises(InvalidAmount):
        client.transfer("1.234 USD", debit="alice", credit="bob")
    with pytest.raises(InvalidCommand, match="credential"):
        client.transfer("1 USD", debit="alice", credit="bob", actor="somebody")
    with pytest.raises(Unauthenticated), Client(service.address, "lk_nonsense") as nobody:
        nobody.trial_balance()


def test_many_commands(client: Client, funded: Ledger) -> None:
    """In one transaction, or each for itself: an outcome each, in order."""
    cheap = Transfer(amount="1 USD", debit="alice", credit="bob")
    dear = Transfer(amount="500 USD", debit="alice", credit="bob")
    together = client.handle([cheap, dear])
    apart = list(client.bulk(Deposit(account="alice", amount="1 USD", against="world") for _ in range(100)))

    assert [type(each).__name__ for each in together] == ["Done", "InsufficientFunds"]
    assert {type(each).__name__ for each in apart} == {"Done"}
    assert str(funded.balance("alice").posted) == "169.00 USD"


def test_questions_are_those_of_the_ledger(client: Client, funded: Ledger) -> None:
    """Pages and the feed, with the fields that the document names."""
    funded.stamp()
    history = client.history("alice", limit=2)

    assert [event.version for event in history.events] == [1, 2]
    assert [event.version for event in client.history("alice", after_version=history.next or 0).events] == [3]
    assert [event.version for event in client.history("alice", before_version=3).events] == [2, 1]
    paid = funded.history("alice")[1].effective_at
    assert [event.version for event in client.history("alice", effective_as_of=paid).events] == [1, 2]
    assert [line.account for line in client.accounts(asset="USD").accounts] == ["alice", "bob", "world"]
    assert [entry.position for entry in client.feed()] == list(range(1, funded.feed_head() + 1))
    (payday,) = client.transactions(reference="payday").transactions
    assert [each.kind for each in client.transactions(metadata={"month": "May"}).transactions] == ["transfer"]
    assert client.transaction(payday.transaction_id).transaction == payday
    assert client.balance("alice", known_as_of=5) == funded.balance("alice", known_as_of=5)
    assert client.statement("alice", datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)).lines
    assert (client.scale("USD"), client.trial_balance().balanced) == (2, True)


def test_names_and_parameters_of_commands_are_the_same() -> None:
    """Whatever `Ledger` is told to do, the client is told in the same way: it is one definition."""
    names = [name for name in dir(Client) if not name.startswith("_") and hasattr(Ledger, name)]
    commands = [name for name in names if getattr(Client, name) is getattr(Ledger, name)]

    assert len(commands) >= 17
    assert inspect.signature(Client.transfer) == inspect.signature(Ledger.transfer)


def test_service_that_is_not_there_is_one_error(funded: Ledger, serve: Serve) -> None:
    """After all attempts, it says that the outcome is not known, and what to do."""
    with serve(funded) as server:
        address = server.address
    with Client(address, "lk_nonsense", attempts=2) as client, pytest.raises(ServiceUnavailable, match="the same key"):
        client.trial_balance()


def test_inboxes_are_watched(funded: Ledger, serve: Serve) -> None:
    """What a source sent, what its streams miss and what a person decides about, as the inbox itself tells."""
    inbox = funded.inbox("bank", Strict(timedelta(hours=1)))
    data: Json = {"account": "alice", "amount": "1 USD", "against": "world"}
    messages = [Message("bank", f"m-{number}", "ledger.deposit", "alice", number, data=data) for number in (1, 2, 5)]
    other = replace(messages[0], id="other", data={**data, "amount": "2 USD"})
    secret = funded.api_keys().create("app", [Scope.APPEND, Scope.READ], created_by="test").secret
    with serve(funded, [inbox]) as server, Client(server.address, secret) as client:
        assert client.receive([*messages, other]).processed == 2
        watched = client.inbox("bank")
        (gap,) = watched.gaps().gaps

        assert (gap.stream, gap.missing, gap.held) == ("alice", [(3, 4)], 1)
        assert watched.gaps(status="parked").gaps == []
        assert watched.stats().counters == inbox.stats().counters
        (letter,) = watched.dead_letters().dead_letters
        assert letter.dead_letter_id == inbox.dead_letters()[0].dead_letter_id
