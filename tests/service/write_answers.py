"""
Write down how each route answers, as examples for the document: `python tests/service/write_answers.py`.

To be run once a route was added, or answers otherwise.  What is written are answers of the service itself, on an
embedded PostgreSQL of its own, but for what differs each time: in place of ids, times and hashes stand fixed ones.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from serving import served

from ledger import Ledger, Strict
from ledger.access import Scope
from ledger.service.document_routes import ANSWERS, EXAMPLES, HOLD
from ledger.storage import embedded
from ledger.storage.database import Database

NOW: Final = "2026-01-31T12:00:00.000000Z"
_MOMENT: Final = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_HASH: Final = re.compile(r"\b[0-9a-f]{64}\b")
_UUID: Final = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")

EVENT: Final = {"specversion": "1.0", "source": "bank", "type": "ledger.deposit", "subject": "alice"}
DEPOSIT: Final = {"account": "alice", "amount": "5.00 USD", "against": "world"}


def answers(ledger: Ledger) -> dict[str, Any]:
    """What each operation of the document that answers in JSON says, after a little story."""
    ledger.open_account("world", asset="USD", type="equity")
    for name, kind in (("bob", "liability"), ("shop", "liability"), ("fees", "income"), ("spare", "liability")):
        ledger.open_account(name, asset="USD", type=kind)
    secret = ledger.api_keys().create("teller", list(Scope), created_by="setup").secret
    with (
        served(ledger, [ledger.inbox("bank", Strict(timedelta(hours=1)))]) as server,
        httpx.Client(base_url=server.address, headers={"Authorization": f"Bearer {secret}"}, timeout=30) as client,
    ):
        return _Story(ledger, client).told()


class _Story:
    def __init__(self, ledger: Ledger, client: httpx.Client) -> None:
        self._ledger, self._client = ledger, client
        self._answers: dict[str, Any] = {}
        self._ids: dict[str, str] = {}

    def told(self) -> dict[str, Any]:
        """Do one after the other."""
        self._commands()
        self._messages()
        while self._ledger.stamp():
            pass
        self._questions()
        self._upkeep()
        return {name: json.loads(self._fixed(json.dumps(answer))) for name, answer in sorted(self._answers.items())}

    def _commands(self) -> None:
        for name in ("define_asset", "open_account"):
            self._command(name)
        self._ledger.deposit("alice", "100.00 USD", against="world")
        for name in ("change_account", "freeze", "unfreeze", "post"):
            self._command(name)
        transferred = self._command("transfer", key="invoice-7")
        for name in ("deposit", "withdraw"):
            self._command(name)
        held = self._command("hold")
        self._ids[held["transaction_id"]] = HOLD
        self._command("capture", hold=held["transaction_id"])
        self._command("release", hold=held["transaction_id"])
        self._expire()
        self._command("reverse", transaction_id=transferred["transaction_id"])
        for name in ("close_period", "begin", "advance"):
            self._command(name)
        self._command("close_account", account="spare")
        several = {"commands": [{"type": kind, **EXAMPLES[kind]} for kind in ("transfer", "withdraw")]}
        several["commands"][1]["amount"] = "5000.00 USD"
        self._post("handle", "/v1/handle", several, key="batch-1")

    def _messages(self) -> None:
        first, second = ({**EVENT, "id": f"m-{n}", "sequence": str(n), "data": DEPOSIT} for n in (1, 3))
        other = {**first, "id": "m-1b", "data": {**DEPOSIT, "amount": "6.00 USD"}}
        self._post("messages", "/v1/messages", [first, second, other])
        bob = {**EVENT, "subject": "bob", "sequence": "1"}
        self._client.post("/v1/messages", json={**bob, "id": "b-1", "data": DEPOSIT}).raise_for_status()
        for dollars, decision in ((6, "requeue"), (7, "discard")):
            contrary = {**bob, "id": f"b-{dollars}", "data": {**DEPOSIT, "amount": f"{dollars}.00 USD"}}
            self._client.post("/v1/messages", json=contrary).raise_for_status()
            listed = self._client.get("/v1/dead-letters", params={"source": "bank"}).json()["dead_letters"]
            letter = next(each for each in listed if each["stream"] == "bob")
            verdict = {"source": "bank", "dead_letter_id": letter["dead_letter_id"], "note": "asked the bank"}
            self._post(f"{decision}_dead_letter", f"/v1/dead-letters/{decision}", verdict)

    def _questions(self) -> None:
        (transaction,) = self._ledger.transactions(reference="invoice 7", limit=1)
        year = {"since": "2026-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}
        asked: dict[str, dict[str, Any]] = {
            "balance": {"account": "alice"},
            "account": {"account": "alice"},
            "accounts": {"limit": 1},
            "history": {"stream": "bob", "limit": 2},
            "transaction": {"transaction_id": str(transaction.transaction_id)},
            "transactions": {"reference": "invoice 7"},
            "holds": {"account": "alice", "limit": 1},
            "state": {"machine": "payment", "subject": "p-1"},
            "asset": {"asset": "USD"},
            "trial_balance": {},
            "statement": {"account": "bob", **year},
            "feed": {"after": 1, "limit": 1},
            "dead_letters": {"source": "bank"},
            "inbox_stats": {"source": "bank"},
            "inbox_gaps": {"source": "bank"},
        }
        self._get("ordering", "/metrics/ordering", {})
        for name, parameters in asked.items():
            path = f"/v1/{name.replace('inbox_', 'inbox/').replace('_', '-')}"
            self._get(name, path, parameters)

    def _upkeep(self) -> None:
        with Database(self._ledger.engine, "ledger").connection() as connection, connection.transaction():
            connection.query("UPDATE ledger.balances SET posted_credits = 1 WHERE stream = 'alice'")
        self._post("verify", "/v1/verify", {"accounts": ["alice"]})
        self._post("rebuild", "/v1/rebuild", {"accounts": ["alice"]})
        self._post("report", "/v1/report", {"name": "trial-balance"})
        self._get("reports", "/v1/reports", {})
        self._answers["reports"]["reports"] = self._answers["reports"]["reports"][:1]
        made = self._post("create_key", "/v1/keys/create", {"actor": "auditor", "scopes": ["audit"]}, key="key-1")
        self._ids |= {made["secret"]: "lk_kz03v3y9q2m4w8x1_shown-this-once", made["key"]: "kz03v3y9q2m4w8x1"}
        auditor = {"Authorization": f"Bearer {made['secret']}"}
        self._client.get("/v1/balance", params={"account": "alice"}, headers=auditor).raise_for_status()
        self._get("keys", "/v1/keys", {})
        self._answers["keys"]["keys"] = [each for each in self._answers["keys"]["keys"] if each["key"] == made["key"]]
        self._get("reads", "/v1/reads", {"account": "alice"})
        self._answers["reads"]["reads"] = self._answers["reads"]["reads"][-1:]
        self._post("revoke_key", "/v1/keys/revoke", {"key": made["key"]})

    def _command(self, name: str, *, key: str | None = None, **other: str) -> Any:
        body = {**EXAMPLES[name], **other}
        return self._post(name, f"/v1/{name.replace('_', '-')}", body, key=key or f"example-{name}")

    def _post(self, name: str, path: str, body: Any, *, key: str | None = None) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self._keep(name, self._client.post(path, json=body, headers=headers))

    def _get(self, name: str, path: str, parameters: dict[str, Any]) -> None:
        self._keep(name, self._client.get(path, params=parameters))

    def _keep(self, name: str, answer: httpx.Response) -> Any:
        assert answer.is_success, f"{name}: {answer.text}"
        self._answers[name] = answer.json()
        return answer.json()

    def _expire(self) -> None:
        """Expire a hold, as soon as it is due: before that it is refused, which is remembered nowhere."""
        with Database(self._ledger.engine, "ledger").connection() as connection, connection.transaction():
            ((due,),) = connection.query("SELECT clock_timestamp() + interval '300 ms'")
        held = self._ledger.hold("20.00 USD", debit="alice", credit="shop", expires_at=due)
        body, headers = {"hold": str(held.transaction_id)}, {"Idempotency-Key": "example-expire_hold"}
        while (answer := self._client.post("/v1/expire-hold", json=body, headers=headers)).status_code == 409:
            pass
        self._keep("expire_hold", answer)

    def _fixed(self, text: str) -> str:
        for found, fixed in self._ids.items():
            text = text.replace(found, fixed)
        for kind, form in ((_UUID, "01890a5d-ac96-774b-bcce-{:012x}"), (_HASH, "{:064x}")):
            known = dict.fromkeys(match[0] for match in kind.finditer(text) if match[0] not in self._ids.values())
            for number, found in enumerate(known, 1):
                text = text.replace(found, form.format(number))
        return _MOMENT.sub(lambda found: found[0] if found[0].endswith("00:00:00.000000Z") else NOW, text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ledger-answers-") as folder:
        try:
            with Ledger.connect(embedded.start(Path(folder) / "data")) as made:
                made.migrate()
                written = answers(made)
        finally:
            embedded.stop(Path(folder) / "data")
    Path(str(ANSWERS)).write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{ANSWERS.name}: {len(written)} answers\n")
