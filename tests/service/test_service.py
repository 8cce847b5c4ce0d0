"""The service: commands and questions over HTTP, on a real socket and the real database."""

from __future__ import annotations

from serving import Http

from ledger import Ledger
from ledger.access import Scope


def test_a_command_is_carried_out_once(http: Http, funded: Ledger) -> None:
    """A transfer is created; the same key with the same body finds it, and with another is refused."""
    client = http(Scope.APPEND)
    body = {"amount": "5 USD", "debit": "alice", "credit": "bob"}
    first = client.post("/v1/transfer", json=body, headers={"Idempotency-Key": "k-1"})
    again = client.post("/v1/transfer", json=body, headers={"Idempotency-Key": "k-1"})
    other = client.post("/v1/transfer", json={**body, "amount": "6 USD"}, headers={"Idempotency-Key": "k-1"})

    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 422)
    assert first.json() | {"replayed": True} == again.json()
    assert other.json()["code"] == "idempotency_conflict"
    assert other.headers["content-type"] == "application/problem+json"
    assert str(funded.balance("alice").posted) == "65.00 USD"
    assert funded.transaction(first.json()["transaction_id"]).transaction.actor == "append"


def test_a_balance_is_read(http: Http) -> None:
    """A balance is answered with amounts as texts, and its version as the entity tag."""
    answer = http(Scope.READ).get("/v1/balance", params={"account": "alice"})

    assert answer.status_code == 200
    assert answer.json()["posted"] == "70.00 USD"
    assert answer.headers["etag"] == '"3"'
