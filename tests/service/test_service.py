"""The service: commands and questions over HTTP, on a real socket and the real database."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import BytesIO
from typing import Any

import httpx
import psycopg
import pytest
from serving import WAIT_SECONDS, Http, Serve

from ledger import Ledger, Strict, TooManyRequests
from ledger.access import Scope
from ledger.core.errors import Reason
from ledger.service.document_routes import EXAMPLES
from ledger.service.problem_details import CODES, STATUS
from ledger.service.server import Server
from ledger.settings import Limits
from ledger.wire import ERRORS

TRANSFER = {"amount": "5 USD", "debit": "alice", "credit": "bob"}


def test_a_command_is_carried_out_once(http: Http, funded: Ledger) -> None:
    """A transfer is created; the same key with the same body finds it, and with another is refused."""
    client = http(Scope.APPEND)
    first = client.post("/v1/transfer", json=TRANSFER, headers={"Idempotency-Key": "k-1"})
    again = client.post("/v1/transfer", json=TRANSFER, headers={"Idempotency-Key": "k-1"})
    other = client.post("/v1/transfer", json={**TRANSFER, "amount": "6 USD"}, headers={"Idempotency-Key": "k-1"})

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
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_error_has_a_status() -> None:
    """A code leads to one status, whatever the error: those of the ledger, and those that the service adds."""
    assert set(STATUS) == set(ERRORS) | set(Reason)


def test_type_of_a_problem_says_what_it_means(http: Http) -> None:
    """The `type` is a path of this service, where everybody finds what the code stands for."""
    told = http(Scope.READ).get("/v1/balance", params={"account": "nobody"})
    found = http().get(told.json()["type"])

    assert (told.status_code, told.json()["fields"]) == (404, {"account": "nobody"})
    assert found.json() == {
        "code": "unknown_account",
        "status": 404,
        "detail": "Account {account} does not exist; open it first.",
        "retryable": False,
    }


def test_type_of_every_problem_leads_somewhere(http: Http) -> None:
    """Also of those that are the service's own."""
    client = http()
    found = {code: client.get(f"/problems/{code}") for code in CODES}

    assert {code for code, answer in found.items() if answer.status_code != 200} == set()
    assert all(answer.json()["code"] == code and answer.json()["detail"] for code, answer in found.items())
    nowhere = client.get("/problems/nonsense")
    assert (nowhere.status_code, client.get(nowhere.json()["type"]).json()["status"]) == (404, 404)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 400, "missing_idempotency_key"),
        ({"Idempotency-Key": ""}, 422, "invalid_command"),
        ({"Idempotency-Key": "x" * 256}, 422, "invalid_command"),
        ({"Idempotency-Key": "k", "Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"Idempotency-Key": "k", "Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"Idempotency-Key": "k", "If-Match": '"3"'}, 422, "invalid_command"),
    ],
)
def test_headers_of_a_write_are_checked(http: Http, headers: dict[str, str], status: int, code: str) -> None:
    """What a write has to say beside its body, and what it may not say."""
    sent = {"Content-Type": "application/json", **headers}
    answer = http(Scope.APPEND).post("/v1/transfer", content=json.dumps(TRANSFER), headers=sent)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_two_keys_are_none(http: Http) -> None:
    """Two headers of one name are two readings of one request."""
    headers = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]

    assert http(Scope.APPEND).post("/v1/transfer", json=TRANSFER, headers=headers).status_code == 422


def test_version_that_is_expected(http: Http, funded: Ledger) -> None:
    """A precondition in a header is 412 where it fails, and one in the body 409; nothing was done."""
    client = http(Scope.APPEND)
    body = {"account": "alice", "amount": "1 USD", "against": "world"}

    def ask(key: str, tag: str | None, **more: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key} | ({} if tag is None else {"If-Match": tag})
        return client.post("/v1/deposit", json=body | more, headers=headers)

    assert (ask("a", '"2"').status_code, ask("b", None, expected_versions={"alice": 2}).status_code) == (412, 409)
    assert ask("c", "three").status_code == 422
    assert funded.balance("alice").version == 3
    assert (ask("d", '"3"').status_code, ask("d", '"3"').status_code) == (201, 200)


def test_condition_that_is_not_taken_is_refused(http: Http, funded: Ledger) -> None:
    """On no one account, twice, of any version, or against what the body expects: it is told, and nothing is done."""
    client = http(Scope.APPEND)
    body = {"account": "alice", "amount": "1 USD", "against": "world"}

    def refused(path: str, *tags: str, **more: Any) -> str:
        headers = [("Idempotency-Key", "k"), *(("If-Match", tag) for tag in tags)]
        answer = client.post(path, headers=headers, **more)
        assert (answer.status_code, answer.json()["fields"]["where"]) == (422, "If-Match")
        return str(answer.json()["detail"])

    several = {"commands": [{"type": "deposit", **body}]}
    line = json.dumps(several["commands"][0])
    assert "expected_versions with each" in refused("/v1/handle", '"999"', json=several)
    assert "version 3, and expected_versions 2" in refused(
        "/v1/deposit", '"3"', json={**body, "expected_versions": {"alice": 2}}
    )
    for tags in (("*",), ('"3"', '"4"'), ('W/"3"',), ("",)):
        assert "not one version" in refused("/v1/deposit", *tags, json=body)
    headers = {"Idempotency-Key": "k", "If-Match": '"999"', "Content-Type": "application/x-ndjson"}
    assert client.post("/v1/bulk", content=line, headers=headers).status_code == 422
    assert funded.balance("alice").version == 3
    both = {**body, "expected_versions": {"alice": 3}}
    assert client.post("/v1/deposit", json=both, headers={"Idempotency-Key": "k", "If-Match": '"3"'}).is_success


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"amount": 5, "debit": "alice", "credit": "bob"}',
        b'{"amount": "5 USD", "amount": "6 USD", "debit": "alice", "credit": "bob"}',
        b'{"amount": "5 USD", "debit": "alice", "credit": "bob", "reference": "a\\u0000b"}',
        b'{"amount": "5 USD", "debit": "alice", "credit": "bob", "reference": "\\ud800"}',
        b'{"amount": "5 USD", "debit": "alice", "credit": "bob", "reference": "\xff"}',
        b'{"amount": "5 USD", "debit": "alice", "credit": "bob", "metadata": {"n": NaN}}',
        b'{"amount": "5 USD", "debit": "alice", "credit": "bob", "metadata": {"n": 1e3}}',
        b'{"amount": "5 USD", "debit": "alice", "credit": "bob", "metadata": {"n": ' + b"9" * 5_000 + b"}}",
        b'{"amount": "5 USD", "debit": "alice", "credit": "bob", "metadata": ' + b"[" * 50_000,
        b'{"amount": "5 USD", "debit": "alice", "credit": "bob", "unknown": 1}',
        b'{"type": "deposit", "amount": "5 USD", "debit": "alice", "credit": "bob"}',
    ],
    ids=range(15),
)
def test_body_with_another_reading_is_refused(http: Http, body: bytes) -> None:
    """Half a character, a NUL, a key twice, NaN, endless numbers and nesting: a problem that says so, and no fault."""
    client, headers = http(Scope.APPEND), {"Idempotency-Key": "k", "Content-Type": "application/json"}
    one = client.post("/v1/transfer", content=body, headers=headers)
    several = client.post("/v1/handle", content=b'{"commands": [' + body + b"]}", headers=headers)

    assert (one.status_code, one.json()["status"], several.status_code) == (422, 422, 422)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_command_has_a_route_and_an_example_that_can_be_read(http: Http, name: str) -> None:
    """The example in the document is a body that the route takes: at most the ledger's state is against it."""
    path = f"/v1/{name.replace('_', '-')}"
    answer = http(Scope.APPEND).post(path, json=EXAMPLES[name], headers={"Idempotency-Key": name})

    assert answer.status_code in {201, 404, 409}, answer.text


def test_pages_are_found_by_keys(http: Http, funded: Ledger) -> None:
    """`next` of one page leads to the one behind it, and the last one has none."""
    client = http(Scope.READ)
    for _ in range(5):
        funded.transfer("1 USD", debit="alice", credit="bob", reference="month")
    for path, rows, key, params in (
        ("accounts", "accounts", "account", {}),
        ("transactions", "transactions", "transaction_id", {"reference": "month"}),
        ("history", "events", "version", {"stream": "alice"}),
    ):
        whole = client.get(f"/v1/{path}", params=params).json()[rows]
        found: list[Any] = []
        after: dict[str, str] = {}
        while True:
            page = client.get(f"/v1/{path}", params={**params, **after, "limit": "2"}).json()
            found += page[rows]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert [row[key] for row in found] == [row[key] for row in whole]
        assert len(whole) > 2
    assert funded.verify().ok


def test_questions_answer_as_the_ledger_does(http: Http, funded: Ledger) -> None:
    """Holds, states, assets, a transaction and the trial balance, in the same words as the command line."""
    hold = funded.hold("20 USD", debit="alice", credit="bob")
    funded.begin("payment", "p-1")
    client = http(Scope.READ)

    def ask(path: str, **params: str) -> Any:
        answer = client.get(f"/v1/{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert [line["left"] for line in ask("holds", account="alice", status="open")["holds"]] == ["20.00 USD"]
    assert ask("state", machine="payment", subject="p-1")["state"] == funded.state("payment", "p-1").state
    assert ask("asset", asset="USD") == {"asset": "USD", "scale": 2}
    assert ask("trial-balance")["balanced"] is True
    assert len(ask("transaction", transaction_id=str(hold.transaction_id))["events"]) == 2
    assert ask("balance", account="alice", version="2")["posted"] == "100.00 USD"
    assert ask("account", account="alice")["balance"]["available"] == "50.00 USD"
    assert ask("history", stream="#payment/p-1")["events"][0]["type"] == "state_advanced"


def test_questions_are_asked_as_of_two_times(http: Http, funded: Ledger) -> None:
    """What counted by a moment, and what was known at a position: pinned to it, and the same for ever."""
    funded.stamp()
    position = funded.feed_head()
    funded.transfer("1 USD", debit="alice", credit="bob", effective_at=datetime(2020, 1, 1, tzinfo=UTC))
    funded.stamp()
    client = http(Scope.READ)

    def ask(path: str, **params: Any) -> Any:
        answer = client.get(f"/v1/{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    known = ask("balance", account="alice", known_as_of=position)
    assert (known["posted"], known["position"]) == ("70.00 USD", position)
    assert ask("balance", account="bob", effective_as_of="2020-06-01T00:00:00Z")["posted"] == "1.00 USD"
    assert ask("trial-balance", known_as_of=position)["position"] == position
    assert len(ask("history", stream="alice", known_as_of=position)["events"]) == 3
    stated = ask("statement", account="bob", since="2020-01-01T00:00:00Z", until="2021-01-01T00:00:00Z")
    assert (stated["opening"], stated["closing"]) == ("0.00 USD", "1.00 USD")
    assert [line["amount"] for line in stated["lines"]] == ["1.00 USD"]
    early = client.get("/v1/balance", params={"account": "alice", "known_as_of": str(position + 1_000)})
    assert (early.status_code, early.json()["code"]) == (409, "not_yet_known")


@pytest.mark.parametrize(
    ("asked", "where", "said"),
    [
        ("balance?account=alice&effective_asof=2020-01-01T00:00:00Z", "effective_asof", "effective_as_of, known_as_of"),
        ("balance?account=alice&account=bob", "account", "more than once"),
        ("accounts?limit=1&limit=1", "limit", "more than once"),
        ("feed?since=1", "since", "there are after, limit, wait_seconds"),
        ("dead-letters?source=bank&State=open", "State", "there are source, state"),
        ("reports?name=x", "name", "there are none"),
        (f"reports?{'x' * 200}=1", "x" * 80, "there are none"),
        ("reads?account=alice&actor=x", "actor", "there are account, after, limit"),
    ],
)
def test_question_that_has_another_reading_is_refused(http: Http, asked: str, where: str, said: str) -> None:
    """A parameter that is not known, or is there twice, is named, with those that there are."""
    answer = http(Scope.AUDIT).get(f"/v1/{asked}")

    assert (answer.status_code, answer.json()["fields"]["where"]) == (422, where)
    assert said in answer.json()["detail"]


# Several


def test_several_commands_are_one_transaction(http: Http, funded: Ledger) -> None:
    """One outcome each, in order; all or none where that is asked for; a repetition is known again."""
    client = http(Scope.APPEND)
    commands = [{"type": "transfer", **TRANSFER}, {"type": "transfer", **TRANSFER, "amount": "500 USD"}]

    def ask(key: str, **more: Any) -> list[dict[str, Any]]:
        answer = client.post("/v1/handle", json={"commands": commands, **more}, headers={"Idempotency-Key": key})
        found: list[dict[str, Any]] = answer.json()["outcomes"]
        return found

    assert [each["problem"]["code"] for each in ask("atomic", atomic=True)] == ["atomic_batch", "insufficient_funds"]
    assert ask("dry", dry_run=True)[0]["done"]["dry_run"] is True
    assert str(funded.balance("alice").posted) == "70.00 USD"
    first, again = ask("k"), ask("k")
    assert (first[0]["done"]["replayed"], again[0]["done"]["replayed"]) == (False, True)
    assert first[0]["done"]["idempotency_key"] == "k#1"
    assert first[1]["problem"]["code"] == "insufficient_funds"
    assert str(funded.balance("alice").posted) == "65.00 USD"


def test_bulk_answers_line_by_line(http: Http, funded: Ledger) -> None:
    """A line for each line, in order, whatever is wrong with one of them; and all of them once."""
    lines = [json.dumps({"type": "transfer", **TRANSFER, "amount": "1 USD"}).encode() for _ in range(40)]
    lines[7] = b"{"
    lines[9] = json.dumps({"type": "transfer", **TRANSFER, "amount": "900 USD"}).encode()
    headers = {"Idempotency-Key": "night", "Content-Type": "application/x-ndjson"}
    for replayed in (False, True):
        answer = http(Scope.APPEND).post("/v1/bulk", content=b"\n".join(lines), headers=headers)
        found = [json.loads(line) for line in answer.text.splitlines()]
        assert [each["line"] for each in found] == list(range(1, 41))
        problems = {each["line"]: each["problem"]["code"] for each in found if each["problem"]}
        assert problems == {8: "invalid_command", 10: "insufficient_funds"}
        assert {each["done"]["replayed"] for each in found if each["done"]} == {replayed}

    assert str(funded.balance("alice").posted) == "32.00 USD"


def test_bulk_is_answered_while_it_is_sent(http: Http) -> None:
    """The first line is answered before the last one is there: neither side holds all of it."""
    arrived = threading.Event()

    def lines() -> Iterator[bytes]:
        yield json.dumps({"type": "transfer", **TRANSFER}).encode() + b"\n"
        assert arrived.wait(WAIT_SECONDS)
        yield json.dumps({"type": "transfer", **TRANSFER}).encode() + b"\n"

    with _raw(http(Scope.APPEND), "/v1/bulk", lines()) as answer:
        seen = b""
        while b'"line":1' not in seen:
            seen += answer.recv(65_536)
        arrived.set()
        while b'"line":2' not in seen:
            seen += answer.recv(65_536)


@contextmanager
def _raw(client: httpx.Client, path: str, parts: Iterator[bytes]) -> Iterator[socket.socket]:
    """A request that is sent in chunks by a thread, and its connection to read from: httpx would read too late."""
    host, port = client.base_url.host, client.base_url.port
    assert port is not None
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: {client.headers['authorization']}\r\n"
    head += "Idempotency-Key: k\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"

    def send() -> None:
        connection.sendall(head.encode())
        for part in parts:
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        connection.sendall(b"0\r\n\r\n")

    with socket.create_connection((host, port), WAIT_SECONDS) as connection:
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        yield connection
        # It may be answered before all of it was sent.
        sender.join(WAIT_SECONDS)


# Bounds


def test_beyond_a_bound_nothing_is_done(funded: Ledger, serve: Serve, secrets: dict[Scope, str]) -> None:
    """A body, a line, lines and pages beyond their bounds are refused, with what the bound is."""
    limits = Limits(body_bytes=300, bulk_bytes=1_000, bulk_lines=3)
    key = {"Authorization": f"Bearer {secrets[Scope.APPEND]}", "Idempotency-Key": "k"}
    with serve(funded, limits=limits) as server, httpx.Client(base_url=server.address, headers=key) as client:
        large = {**TRANSFER, "reference": "x" * 250}
        sent = client.post("/v1/transfer", json=large)
        in_chunks = client.post(
            "/v1/transfer", content=iter([json.dumps(large).encode()]), headers={"Content-Type": "application/json"}
        )
        line = json.dumps({"type": "transfer", **TRANSFER, "amount": "1 USD"}).encode() + b"\n"
        lines = client.post("/v1/bulk", content=line * 5, headers={"Content-Type": "application/x-ndjson"})
        page = httpx.get(
            f"{server.address}/v1/accounts?limit=1001", headers={"Authorization": f"Bearer {secrets[Scope.READ]}"}
        )

    assert [answer.status_code for answer in (sent, in_chunks, page)] == [413, 413, 422]
    assert sent.json()["fields"] == {"what": "The body", "bytes_max": 300}
    answered = [json.loads(each) for each in lines.text.splitlines()]
    assert [each["problem"] is None for each in answered] == [True, True, True, False]
    assert str(funded.balance("alice").posted) == "67.00 USD"


def test_whoever_asks_too_often_is_told_when_to_come_back(
    funded: Ledger, serve: Serve, secrets: dict[Scope, str]
) -> None:
    """A second's worth at once, and then 429 with Retry-After; another credential is not concerned."""
    with serve(funded, limits=Limits(rate=3)) as server, httpx.Client(base_url=server.address) as client:
        url = "/v1/balance?account=alice"
        found = [client.get(url, headers={"Authorization": f"Bearer {secrets[Scope.READ]}"}) for _ in range(20)]
        other = client.get(url, headers={"Authorization": f"Bearer {secrets[Scope.AUDIT]}"})

    refused = [answer for answer in found if answer.status_code == 429]
    assert refused
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].json()["code"] == TooManyRequests.code
    assert other.status_code == 200


def test_more_requests_than_it_answers_at_once_are_refused(
    funded: Ledger, serve: Serve, secrets: dict[Scope, str], ledger_url: str
) -> None:
    """While as many are on their way as may be, another is 429; those are answered when what they wait for comes."""
    headers = {"Authorization": f"Bearer {secrets[Scope.APPEND]}", "Idempotency-Key": "k"}
    limits = Limits(requests=1)
    with serve(funded, limits=limits) as server, psycopg.connect(ledger_url) as blocking:
        blocking.execute("SELECT 1 FROM ledger.balances WHERE stream = 'alice' FOR UPDATE")
        with ThreadPoolExecutor(1) as threads, httpx.Client(base_url=server.address, timeout=WAIT_SECONDS) as client:
            first = threads.submit(client.post, "/v1/transfer", json=TRANSFER, headers=headers)
            while client.get("/openapi.json").status_code == 200:
                # Until the other one is there.
                pass
            refused = client.get("/openapi.json")
            assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 401]
            blocking.rollback()
            assert first.result(WAIT_SECONDS).status_code == 201

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")


def test_command_whose_turn_does_not_come_is_not_done(
    funded: Ledger, serve: Serve, secrets: dict[Scope, str], ledger_url: str
) -> None:
    """It is answered in time, with what is certain: nothing was written, and it may be sent again."""
    headers = {"Authorization": f"Bearer {secrets[Scope.APPEND]}"}
    with serve(funded, limits=Limits(append_seconds=0.3)) as server, psycopg.connect(ledger_url) as blocking:
        blocking.execute("SELECT 1 FROM ledger.balances WHERE stream = 'alice' FOR UPDATE")
        with ThreadPoolExecutor(8) as threads, httpx.Client(base_url=server.address, timeout=WAIT_SECONDS) as client:
            sent = [
                threads.submit(
                    client.post, "/v1/transfer", json=TRANSFER, headers={**headers, "Idempotency-Key": f"k{number}"}
                )
                for number in range(8)
            ]
            # Whoever came after those whose turn it is.
            late = next(each for each in _as_they_come(sent) if each.status_code == 503)
            blocking.rollback()
            done = [each.result(WAIT_SECONDS).status_code for each in sent]

    assert late.json()["code"] == "deadline_exceeded"
    assert late.headers["retry-after"] == "1"
    assert set(done) == {201, 503}
    assert funded.balance("alice").version == 3 + done.count(201)


def _as_they_come(sent: list[Any]) -> Iterator[httpx.Response]:
    for each in as_completed(sent, WAIT_SECONDS):
        yield each.result()


def until(reached: Callable[[], bool]) -> None:
    """Return once it is so."""
    end = time.monotonic() + WAIT_SECONDS
    while not reached():
        assert time.monotonic() < end, "it never was so"


# The feed


def test_feed_is_read_and_waited_for(http: Http, funded: Ledger) -> None:
    """A page of what was stamped; at its end, what is stamped while somebody waits."""
    funded.stamp()
    client = http(Scope.READ)
    page = client.get("/v1/feed", params={"limit": "1000"}).json()
    assert [entry["position"] for entry in page["entries"]] == list(range(1, funded.feed_head() + 1))
    assert client.get("/v1/feed", params={"after": str(page["next"])}).json() == {"entries": [], "next": page["next"]}

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.get, "/v1/feed", params={"after": str(page["next"]), "wait_seconds": "30"})
        funded.transfer("1 USD", debit="alice", credit="bob")
        funded.stamp()
        found = waiting.result(WAIT_SECONDS).json()["entries"]

    assert [entry["amount"] for entry in found] == ["1.00 USD", "1.00 USD"]


def test_feed_is_followed_as_server_sent_events(http: Http, funded: Ledger) -> None:
    """Each event has its position as id, goes on with what comes, and goes on from the id that was seen last."""
    funded.stamp()
    last = funded.feed_head()
    headers = {"Last-Event-ID": str(last - 1)}
    with http(Scope.READ).stream("GET", "/v1/feed/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line and not line.startswith(":"))
        assert next(lines) == f"id: {last}"
        funded.transfer("1 USD", debit="alice", credit="bob")
        funded.stamp()
        assert next(lines) == "event: entry_posted"
        assert json.loads(next(lines).removeprefix("data: "))["position"] == last
        assert next(lines) == f"id: {last + 1}"


def test_followers_do_not_keep_the_service_from_ending(http: Http, service: Server) -> None:
    """Whoever follows the feed is let go when the service ends, with all that it was sent."""
    with http(Scope.READ).stream("GET", "/v1/feed/events") as answer:
        parts = answer.iter_raw()
        assert next(parts).startswith(b":")
        service.stop()
        assert list(parts) is not None


def test_whoever_waits_for_the_feed_follows_it(funded: Ledger, serve: Serve, secrets: dict[Scope, str]) -> None:
    """A page that is waited for has one of the places of followers, until it is answered."""
    headers = {"Authorization": f"Bearer {secrets[Scope.READ]}"}
    funded.stamp()
    asked = {"after": str(funded.feed_head()), "wait_seconds": "30"}
    with (
        serve(funded, limits=Limits(followers=1)) as server,
        httpx.Client(base_url=server.address, headers=headers, timeout=WAIT_SECONDS) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        both = [threads.submit(client.get, "/v1/feed", params=asked) for _ in range(2)]
        assert next(_as_they_come(both)).status_code == 429
        assert client.get("/v1/feed/events").status_code == 429
        assert client.get("/v1/feed", params={"after": "0", "wait_seconds": "30"}).status_code == 200
        funded.transfer("1 USD", debit="alice", credit="bob")
        funded.stamp()
        assert sorted(each.result(WAIT_SECONDS).status_code for each in both) == [200, 429]


# Messages


@pytest.fixture
def bank(funded: Ledger, serve: Serve) -> Iterator[httpx.Client]:
    """A service that takes the messages of a bank in, and a client who may send and decide."""
    inbox = funded.inbox("bank", Strict(timedelta(hours=1)))
    both = funded.api_keys().create("teller", [Scope.APPEND, Scope.ADMIN], created_by="test").secret
    with (
        serve(funded, [inbox]) as server,
        httpx.Client(base_url=server.address, headers={"Authorization": f"Bearer {both}"}) as client,
    ):
        yield client


def event(sequence: int, **more: Any) -> dict[str, Any]:
    """A CloudEvent that asks for a deposit."""
    data = {"account": "alice", "amount": "1 USD", "against": "world"}
    attributes = {"specversion": "1.0", "source": "bank", "id": f"m-{sequence}", "type": "ledger.deposit"}
    return {**attributes, "subject": "alice", "sequence": str(sequence), "data": data, **more}


def test_messages_come_in_every_mode(bank: httpx.Client, funded: Ledger) -> None:
    """Structured, in a batch and binary, once each, in the name of the credential; twice is once."""
    structured = {"Content-Type": "application/cloudevents+json"}
    batched = {"Content-Type": "application/cloudevents-batch+json"}
    third = event(3)
    binary = {f"ce-{name}": value for name, value in third.items() if name != "data"}
    for _ in range(2):
        assert bank.post("/v1/messages", content=json.dumps(event(2)), headers=structured).json()["received"] == 1
        assert bank.post("/v1/messages", content=json.dumps([event(1)]), headers=batched).status_code == 200
        assert bank.post("/v1/messages", json=third["data"], headers=binary).status_code == 200

    assert str(funded.balance("alice").posted) == "73.00 USD"
    last = funded.history("alice", before_version=10, limit=1)[0]
    assert funded.transaction(last.transaction_id).transaction.actor == "teller"


@pytest.mark.parametrize(
    "sent",
    [
        event(1, source="else"),
        event(1, specversion="0.3"),
        event(1, data={"account": "alice", "amount": "1 USD", "against": "world", "actor": "somebody"}),
        [event(1), event(2, id="")],
    ],
)
def test_what_cannot_be_read_of_messages_is_told_whoever_sent_it(bank: httpx.Client, funded: Ledger, sent: Any) -> None:
    """Nothing of such a request is taken in, and nothing of it is kept."""
    answer = bank.post("/v1/messages", json=sent)

    assert answer.status_code == 422
    assert funded.inbox("bank", Strict(timedelta(hours=1))).stats().counters.get("received", 0) == 0


def test_dead_letters_are_decided_about(bank: httpx.Client, funded: Ledger) -> None:
    """A message that contradicts another waits for a person, whose name is the credential's."""
    bank.post("/v1/messages", json=event(1))
    bank.post("/v1/messages", json=event(1, id="other", data={**event(1)["data"], "amount": "2 USD"}))
    (letter,) = bank.get("/v1/dead-letters", params={"source": "bank"}).json()["dead_letters"]
    verdict = {"source": "bank", "dead_letter_id": letter["dead_letter_id"], "note": "sent twice"}

    assert bank.post("/v1/dead-letters/discard", json=verdict).status_code == 200
    assert bank.post("/v1/dead-letters/requeue", json=verdict).status_code == 422
    (decision,) = funded.inbox("bank", Strict(timedelta(hours=1))).decisions(letter["dead_letter_id"])
    assert (decision.decision, decision.actor, decision.note) == ("discarded", "teller", "sent twice")


def test_what_an_inbox_misses_is_told(bank: httpx.Client, funded: Ledger) -> None:
    """How a source stands, which of its streams wait and exactly for what; who reads it as an auditor is on record."""
    for sequence in (1, 3, 6):
        bank.post("/v1/messages", json=event(sequence))
    bank.post("/v1/messages", json=event(2, id="b-2", subject="bob"))
    secret = funded.api_keys().create("watcher", [Scope.AUDIT], created_by="test").secret
    bank.headers["Authorization"] = f"Bearer {secret}"
    stats = bank.get("/v1/inbox/stats", params={"source": "bank"}).json()
    first = bank.get("/v1/inbox/gaps", params={"source": "bank", "limit": 1}).json()
    rest = bank.get("/v1/inbox/gaps", params={"source": "bank", "after": first["next"]}).json()

    assert (stats["counters"]["processed"], stats["held"], stats["parked"]) == (1, 3, 0)
    (alice,), (bob,) = first["gaps"], rest["gaps"]
    assert (alice["stream"], alice["missing"], alice["held"], alice["status"]) == (
        "alice",
        [[2, 2], [4, 5]],
        2,
        "waiting",
    )
    assert (bob["stream"], bob["missing"], rest["next"]) == ("bob", [[1, 1]], None)
    assert bank.get("/v1/inbox/gaps", params={"source": "bank", "status": "parked"}).json()["gaps"] == []
    assert bank.get("/v1/inbox/gaps", params={"source": "nobody"}).status_code == 422
    assert [read.question for read in funded.api_keys().reads("bob")] == ["inbox_gaps"]


def test_deadlines_are_acted_on_while_it_serves(funded: Ledger, serve: Serve) -> None:
    """A gap that outlasts its wait parks its stream, although no further message comes."""
    inbox = funded.inbox("bank", Strict(timedelta(milliseconds=1)))
    with serve(funded, [inbox], authentication=False) as server:
        for sequence in (1, 3):
            assert httpx.post(f"{server.address}/v1/messages", json=event(sequence)).status_code == 200
        until(lambda: inbox.stats().counters.get("gaps_timed_out") == 1)
        ordering = httpx.get(f"{server.address}/metrics/ordering").json()

    assert (ordering["gapsTimedOut"], ordering["parked"], ordering["waiting"]) == (1, 1, 0)


# Upkeep


def test_auditors_verify_and_administrators_mend(http: Http, funded: Ledger, ledger_url: str) -> None:
    """What somebody changed behind the ledger's back is found by one and mended by the other."""
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("UPDATE ledger.balances SET posted_credits = 1 WHERE stream = 'alice'")
    found = http(Scope.AUDIT).post("/v1/verify", json={"accounts": ["alice"]}).json()
    mended = http(Scope.ADMIN).post("/v1/rebuild", json={"accounts": ["alice"]}).json()

    assert (found["ok"], found["findings"][0]["stream"], mended) == (False, "alice", {"rebuilt": ["alice"]})
    assert http(Scope.AUDIT).post("/v1/verify", json={}).json()["ok"] is True
    assert funded.verify().ok


def test_accounts_in_findings_and_in_dead_letters_are_on_record(
    http: Http, bank: httpx.Client, funded: Ledger, ledger_url: str
) -> None:
    """An auditor who asks about everything has read what the answer names; and a message names accounts in its data."""
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("UPDATE ledger.balances SET posted_credits = 1 WHERE stream = 'bob'")
    assert http(Scope.AUDIT).post("/v1/verify", json={}).json()["findings"][0]["stream"] == "bob"
    entries = [{"account": "world", "amount": "1 USD"}, {"account": "x" * 200}, "alice"]
    bank.post("/v1/messages", json=event(1))
    bank.post("/v1/messages", json=event(1, id="other", data={**event(1)["data"], "entries": entries}))
    secret = funded.api_keys().create("letters", [Scope.AUDIT], created_by="test").secret
    headers = {"Authorization": f"Bearer {secret}"}
    assert len(bank.get("/v1/dead-letters", params={"source": "bank"}, headers=headers).json()["dead_letters"]) == 1

    keys = funded.api_keys()
    assert [read.question for read in keys.reads("bob")] == ["verify"]
    assert [(read.actor, read.question) for read in keys.reads("alice")] == [("letters", "dead_letters")]
    assert [read.question for read in keys.reads("world")] == ["dead_letters"]


def test_auditors_ask_for_reports(http: Http, funded: Ledger) -> None:
    """Which there are; one of them as the ledger writes it, with the accounts in it on record; and none too long."""
    funded.stamp()
    auditor = http(Scope.AUDIT)
    names = {each["name"] for each in auditor.get("/v1/reports").json()["reports"]}
    asked = {"name": "sum-of-transactions", "parameters": {}, "position": funded.feed_head()}
    answer = auditor.post("/v1/report", json=asked)

    written = BytesIO()
    header = funded.report("sum-of-transactions", position=funded.feed_head()).write(written, "json")
    assert names == {each.name for each in funded.reports}
    assert answer.json()["rows"] == json.loads(written.getvalue())["rows"]
    assert answer.json()["header"]["sha256"] == header.sha256
    assert [read.question for read in funded.api_keys().reads("bob")] == ["report sum-of-transactions"]
    assert auditor.post("/v1/report", json={"name": "nonsense"}).status_code == 422


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_reports_are_files_too(http: Http, funded: Ledger, form: str) -> None:
    """The bytes that the ledger writes, with their hash and their pin in the head, and the accounts on record."""
    funded.stamp()
    auditor, last = http(Scope.AUDIT), funded.feed_head()
    asked: dict[str, Any] = {"name": "general-journal", "format": form, "position": last}
    answer = auditor.get("/v1/report", params={**asked, "parameters": '{"pending": true}'})

    written = BytesIO()
    header = funded.report("general-journal", position=last, pending=True).write(written, form)
    assert (answer.status_code, answer.content) == (200, written.getvalue())
    digest = base64.b64encode(sha256(answer.content).digest()).decode()
    assert answer.headers["content-digest"] == f"sha-256=:{digest}:"
    assert (answer.headers["ledger-position"], answer.headers["ledger-rows"]) == (str(last), str(header.rows))
    for account in ("alice", "bob", "world"):
        assert [read.question for read in funded.api_keys().reads(account)] == ["report general-journal"]
    for wrong in ({"parameters": "[]"}, {"parameters": '{"nonsense": 1}'}, {"format": "pdf"}, {"name": "nonsense"}):
        assert auditor.get("/v1/report", params={**asked, **wrong}).status_code == 422


def test_all_methods_of_a_path_are_told(http: Http) -> None:
    """What may be asked of a path is said whole, whichever route of it was looked at first."""
    answer = http(Scope.AUDIT).put("/v1/report")

    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


def test_keys_are_made_listed_and_revoked(http: Http) -> None:
    """Over the service as on the command line; the secret is in one answer only."""
    admin = http(Scope.ADMIN)
    wanted = {"actor": "app", "scopes": ["append", "read"], "days": 7}
    made = admin.post("/v1/keys/create", json=wanted, headers={"Idempotency-Key": "k"}).json()
    listed = [key for key in admin.get("/v1/keys").json()["keys"] if key["actor"] == "app"]
    revoked = admin.post("/v1/keys/revoke", json={"key": made["key"]}).json()

    assert [key["key"] for key in listed] == [made["key"]]
    assert "secret" not in listed[0]
    assert (listed[0]["created_by"], revoked["active"], revoked["revoked_by"]) == ("admin", False, "admin")
