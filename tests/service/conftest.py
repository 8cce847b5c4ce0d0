"""The service on a real socket and the real database, with a key for each scope."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from serving import WAIT_SECONDS, Http, Serve, served

from ledger import Ledger
from ledger.access import Scope
from ledger.service.server import Server


@pytest.fixture
def serve() -> Serve:
    """For a ledger, or settings, of the test's own."""
    return served


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    """A ledger in which alice (version 3) has 70.00 USD and bob (version 2) has 30.00 USD."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability", min_balance=0)
    ledger.open_account("bob", asset="USD", type="liability", min_balance=0)
    ledger.transfer("100.00 USD", debit="world", credit="alice", idempotency_key="salary", reference="payday")
    ledger.transfer("30.00 USD", debit="alice", credit="bob", idempotency_key="rent", metadata={"month": "May"})
    return ledger


@pytest.fixture
def service(funded: Ledger) -> Iterator[Server]:
    """The service of that ledger."""
    with served(funded) as server:
        yield server


@pytest.fixture
def secrets(funded: Ledger) -> dict[Scope, str]:
    """A key for each scope alone, of an actor of its name."""
    keys = funded.api_keys()
    return {scope: keys.create(scope.value, [scope], created_by="test").secret for scope in Scope}


@pytest.fixture
def http(service: Server, secrets: dict[Scope, str]) -> Iterator[Http]:
    """A client with the key of a scope: `http(Scope.READ).get(…)`; or with none."""
    made: list[httpx.Client] = []

    def client(scope: Scope | None = None) -> httpx.Client:
        headers = {} if scope is None else {"Authorization": f"Bearer {secrets[scope]}"}
        made.append(httpx.Client(base_url=service.address, headers=headers, timeout=WAIT_SECONDS))
        return made[-1]

    yield client
    for each in made:
        each.close()
