"""What the service logs, and which traces it takes part in: each request once, with its ids, and nothing secret."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

import httpx
import pytest
from fastapi import Depends
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from serving import WAIT_SECONDS, Http, Serve

from ledger import Ledger, Strict
from ledger.access import Scope
from ledger.service.logs import JsonLines
from ledger.service.scoped import public
from ledger.service.server import Server

Line = dict[str, Any]
Lines = Callable[[], list[Line]]
Spans = Callable[[int], Sequence[ReadableSpan]]

TRANSFER: Final = {"amount": "5.25 USD", "debit": "alice", "credit": "bob"}
TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT: Final = f"00-{TRACE}-00f067aa0ba902b7-01"
"""The example of W3C Trace Context."""

EXPORTER: Final = InMemorySpanExporter()
PROVIDER: Final = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))


@pytest.fixture
def spans() -> Spans:
    """The first so many spans that ended since the test began, where a program has set a provider up."""
    if trace.get_tracer_provider() is not PROVIDER:
        # It is once for a process.
        trace.set_tracer_provider(PROVIDER)
    EXPORTER.clear()
    return lambda count: awaited(EXPORTER.get_finished_spans, count)


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the ledger logged since the test began, as lines of JSON."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("ledger")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


def requests(lines: Lines, count: int = 1) -> Sequence[Line]:
    """The lines about the first so many requests."""
    return awaited(lambda: [line for line in lines() if line["logger"] == "ledger.requests"], count)


def awaited(read: Callable[[], Sequence[Any]], count: int) -> Sequence[Any]:
    """So many, once they are there: a request is answered just before it is told of."""
    for _ in range(100_000):
        found = read()
        if len(found) >= count:
            assert len(found) == count
            return found
    pytest.fail(f"there are not {count}")


def test_each_request_is_a_line(http: Http, lines: Lines) -> None:
    """Who asked which route, what came of it and how long it took; as a template, and with the code of a problem."""
    http(Scope.APPEND).post("/v1/transfer", json=TRANSFER, headers={"Idempotency-Key": "one"})
    http(Scope.READ).get("/v1/balance", params={"account": "nobody"})
    http().get("/v1/nothing/at/all")
    done, unknown, nowhere = requests(lines, 3)

    assert (done["method"], done["route"], done["status"], done["actor"]) == ("POST", "/v1/transfer", 201, "append")
    assert (done["level"], done["message"]) == ("info", "POST /v1/transfer 201")
    assert 0 < done["duration_seconds"] < WAIT_SECONDS
    assert (unknown["route"], unknown["status"], unknown["code"]) == ("/v1/balance", 404, "unknown_account")
    assert (nowhere["route"], nowhere["status"], nowhere["code"]) == ("(none)", 404, "no_such_route")
    assert len({line["request_id"] for line in (done, unknown, nowhere)}) == 3
    assert "actor" not in nowhere


@pytest.mark.parametrize("given", ["7f3a", "req-2026.11/29:abc=+", "a" * 128])
def test_a_request_keeps_the_id_that_it_came_with(http: Http, lines: Lines, given: str) -> None:
    """A sane id is echoed and logged, so that a request is found in the logs of all that it went through."""
    answer = http().get("/v1/nothing", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == given == requests(lines)[0]["request_id"]


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, '{"x":1}', "-", "a\tb", "a;b"])
def test_a_request_gets_an_id_for_one_that_is_not_sane(http: Http, lines: Lines, given: str) -> None:
    """What could be taken for something else in a log is replaced."""
    answer = http().get("/v1/nothing", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == requests(lines)[0]["request_id"] != given
    assert len(answer.headers["x-request-id"]) == 32


def test_a_transaction_belongs_to_the_conversation_of_its_request(http: Http, funded: Ledger) -> None:
    """Named by a header, by the trace, or by the command itself, which goes before."""
    client, found = http(Scope.APPEND), {}
    for key, headers, body in (
        ("header", {"X-Correlation-Id": "order-17", "traceparent": PARENT}, TRANSFER),
        ("trace", {"traceparent": PARENT}, TRANSFER),
        ("body", {"X-Correlation-Id": "order-17"}, {**TRANSFER, "correlation_id": "mine"}),
    ):
        answer = client.post("/v1/transfer", json=body, headers={"Idempotency-Key": key, **headers})
        found[key] = funded.transaction(answer.json()["transaction_id"]).transaction.correlation_id
    assert found == {"header": "order-17", "trace": TRACE, "body": "mine"}


def test_each_of_several_commands_belongs_to_the_conversation_of_its_request(http: Http, funded: Ledger) -> None:
    """In one transaction or line by line; a command that names another conversation stays in that one."""
    client, told = http(Scope.APPEND), {"X-Correlation-Id": "order-17", "Idempotency-Key": "several"}
    commands = [{"type": "transfer", **TRANSFER}, {"type": "transfer", **TRANSFER, "correlation_id": "mine"}]
    lines = "".join(json.dumps(each) + "\n" for each in commands)
    together = client.post("/v1/handle", json={"commands": commands}, headers=told).json()["outcomes"]
    kind = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "lines"}
    singly = client.post("/v1/bulk", content=lines, headers={**told, **kind})
    done = [each["done"] for each in (*together, *map(json.loads, singly.text.splitlines()))]

    found = [funded.transaction(each["transaction_id"]).transaction.correlation_id for each in done]
    assert found == ["order-17", "mine", "order-17", "mine"]


def test_what_a_message_asks_for_belongs_to_the_conversation_of_its_request(funded: Ledger, serve: Serve) -> None:
    """The message is known again in another conversation; one that it names itself goes before, and early ones too."""
    secret = funded.api_keys().create("bank", [Scope.APPEND], created_by="test").secret
    sent = [("first", 2, {}), ("second", 1, {}), ("third", 1, {}), ("third", 3, {"correlationid": "mine"})]
    with serve(funded, [funded.inbox("bank", Strict(timedelta(hours=1)))]) as server:
        for name, sequence, more in sent:
            data = {"account": "alice", "amount": "1 USD", "against": "world"}
            said = {"specversion": "1.0", "source": "bank", "id": str(sequence), "type": "ledger.deposit", "data": data}
            headers = {"Authorization": f"Bearer {secret}", "X-Correlation-Id": name}
            whole = {**said, "subject": "alice", "sequence": str(sequence), **more}
            assert httpx.post(f"{server.address}/v1/messages", json=whole, headers=headers).json()["conflicts"] == 0

    last = funded.history("alice", before_version=100, limit=3)
    found = [funded.transaction(event.transaction_id).transaction.correlation_id for event in last]
    assert found == ["mine", "first", "second"]


def test_the_same_key_in_another_conversation_is_the_same(http: Http) -> None:
    """Where it belongs to is no part of what is asked: sent again in another trace, it is found."""
    client = http(Scope.APPEND)
    answers = [
        client.post("/v1/transfer", json=TRANSFER, headers={"Idempotency-Key": "one", "X-Correlation-Id": name})
        for name in ("first", "second")
    ]
    assert [answer.status_code for answer in answers] == [201, 200]


def test_what_machines_ask_is_logged_for_who_wants_to_know(http: Http, lines: Lines) -> None:
    """Probes and scrapes that go well are at level debug."""
    http().get("/healthz")
    http(Scope.READ).get("/metrics")
    http().get("/metrics")
    assert [(line["route"], line["level"]) for line in requests(lines, 3)] == [
        ("/healthz", "debug"),
        ("/metrics", "debug"),
        ("/metrics", "debug"),
    ]


def test_a_fault_of_ours_is_logged_without_its_message(serve: Serve, funded: Ledger, lines: Lines) -> None:
    """Its kind and its stack are, with the id that the caller was given; what it quotes is told to nobody."""
    with serve(funded) as server:
        fail(server)
        answer = httpx.get(f"{server.address}/fail", headers={"X-Request-Id": "it-was-me"})
        assert httpx.get(f"{server.address}/healthz").status_code == 200
    told = [line for line in requests(lines, 2) if line["route"] == "/fail"]

    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] == "it-was-me" == told[0]["request_id"]
    assert len(told) == 1
    assert (told[0]["level"], told[0]["code"], told[0]["exception"]["type"]) == (
        "error",
        "internal_error",
        "builtins.RuntimeError",
    )
    assert any("test_logs.py" in frame and "failing" in frame for frame in told[0]["exception"]["stack"])
    assert "70.00 USD" not in json.dumps(lines()) + answer.text


def fail(server: Server) -> None:
    """Give a service a route that fails, in words that quote a balance."""

    async def failing() -> None:
        raise RuntimeError("alice has 70.00 USD")

    app: Any = server.config.app
    app.add_api_route("/fail", failing, dependencies=[Depends(public)])


def test_each_request_is_a_span_with_its_write_below(http: Http, spans: Spans) -> None:
    """The server's span continues the caller's trace, and what was handed over to be written is its child."""
    headers = {"Idempotency-Key": "one", "traceparent": PARENT}
    answer = http(Scope.APPEND).post("/v1/transfer", json=TRANSFER, headers=headers)
    written, request = spans(2)

    assert (request.name, request.kind, request.status.status_code) == (
        "POST /v1/transfer",
        SpanKind.SERVER,
        StatusCode.UNSET,
    )
    assert trace.format_trace_id(request.context.trace_id) == TRACE
    assert request.parent is not None
    assert trace.format_span_id(request.parent.span_id) == "00f067aa0ba902b7"
    told = dict(request.attributes or {})
    assert {name: told[name] for name in ("http.request.method", "http.route", "http.response.status_code")} == {
        "http.request.method": "POST",
        "http.route": "/v1/transfer",
        "http.response.status_code": 201,
    }
    assert (told["url.path"], told["url.scheme"], told["network.protocol.version"]) == ("/v1/transfer", "http", "1.1")
    assert (told["server.address"], str(told["user_agent.original"])[:12]) == ("127.0.0.1", "python-httpx")
    assert (written.name, written.parent) == ("append transfer", request.context)
    assert dict(written.attributes or {}) == {
        "ledger.command": "transfer",
        "ledger.transaction_id": answer.json()["transaction_id"],
        "ledger.replayed": False,
    }


def test_a_question_names_no_account_in_its_span(http: Http, spans: Spans) -> None:
    """The query is left out: whose balance was asked for is nobody's who reads traces."""
    http(Scope.READ).get("/v1/balance", params={"account": "alice"})
    (request,) = spans(1)
    assert request.name == "GET /v1/balance"
    assert request.parent is None
    assert "alice" not in request.to_json()


def test_a_rejection_is_an_answer_and_a_fault_is_an_error(
    serve: Serve, funded: Ledger, http: Http, spans: Spans
) -> None:
    """A rule that says no leaves the status alone; what is our fault is an error, of a kind and without words."""
    refused = {**TRANSFER, "amount": "1000 USD"}
    http(Scope.APPEND).post("/v1/transfer", json=refused, headers={"Idempotency-Key": "one"})
    with serve(funded) as server:
        fail(server)
        httpx.get(f"{server.address}/fail")
    written, request, failed = spans(3)

    assert dict(written.attributes or {})["ledger.rejected"] == "insufficient_funds"
    assert [each.status.status_code for each in (written, request, failed)] == [
        StatusCode.UNSET,
        StatusCode.UNSET,
        StatusCode.ERROR,
    ]
    assert dict(failed.attributes or {})["error.type"] == "internal_error"
    assert failed.events == ()


def test_an_unknown_method_takes_no_label_of_its_own(http: Http, spans: Spans, lines: Lines) -> None:
    """Whatever a caller makes up is counted and named as other."""
    http().request("PURGE", "/v1/transfer")
    (request,) = spans(1)
    told = dict(request.attributes or {})
    assert (told["http.request.method"], told["http.request.method_original"]) == ("_OTHER", "PURGE")
    assert requests(lines)[0]["method"] == "_OTHER"
    assert 'method="PURGE"' not in http(Scope.READ).get("/metrics").text


def test_the_program_logs_json_lines_and_no_secret(ledger_url: str, funded: Ledger) -> None:
    """`ledger serve`: each line of standard error is an object; no key, no amount; and a signal ends it in order."""
    key = funded.api_keys().create("till", [Scope.APPEND], created_by="test").secret
    transfer = {**TRANSFER, "amount": "65.25 USD"}  # No line's time or duration reads like that.
    environment = {**os.environ, "LEDGER_DATABASE_URL": ledger_url}
    command = [sys.executable, "-m", "ledger", "serve", "--port", "0", "--ready-without", "stamper"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("listening on ").strip()
        with httpx.Client(base_url=address, timeout=WAIT_SECONDS) as client:
            headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "secret-key", "X-Request-Id": "r-1"}
            assert client.post("/v1/transfer", json=transfer, headers=headers).status_code == 201
            assert client.get("/readyz").json()["checks"] == ["schema", "writable"]
            wrong = client.get("/v1/balance", headers={"Authorization": f"Bearer {key[:-1]}"})
            assert wrong.status_code == 401
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=WAIT_SECONDS)

    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    told = [(line["route"], line["status"], line.get("actor")) for line in lines if "route" in line]
    assert told == [("/v1/transfer", 201, "till"), ("/v1/balance", 401, None)]
    assert lines[0]["request_id"] == "r-1"
    assert not any(secret in errors for secret in (key, key[:-1], key.split("_", 2)[2][:20], "secret-key", "65.25"))
