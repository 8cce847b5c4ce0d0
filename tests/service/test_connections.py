"""Connections: what comes before a request is known is bounded, and nobody waits for who does not read."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from serving import WAIT_SECONDS, Serve
from starlette.types import Message

from ledger import Ledger
from ledger.access import Scope
from ledger.service.bounds import Closing
from ledger.service.server import Server
from ledger.settings import Limits

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
READ = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/balance?account=alice", "/v1/accounts", "/accounts")
ENDLESS = 64 * 1024 * 1024
LINES = b"".join(b'{"type":"x%d"}\n' % number for number in range(9_900))
"""Each is answered with many times its own length: in all more than the sockets of both sides hold."""


@contextmanager
def connected(server: Server, sent: bytes = b"", *, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A connection over which something was sent."""
    with socket.socket() as connection:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(WAIT_SECONDS)
        connection.connect(("127.0.0.1", urlsplit(server.address).port))
        connection.sendall(sent)
        yield connection


def all_of(connection: socket.socket) -> bytes:
    """What is answered until the other side closes."""
    found = b""
    try:
        while part := connection.recv(65_536):
            found += part
    except ConnectionError:
        pass
    return found


def until(reached: Callable[[], bool]) -> None:
    """Return once it is so."""
    end = time.monotonic() + WAIT_SECONDS
    while not reached():
        assert time.monotonic() < end, "it never was so"


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"GET /healthz HTT", HEALTH, HEALTH + b"X-A: b"], ids=["nothing", "line", "half", "a", "b"]
)
def test_whoever_says_no_whole_request_is_let_go(serve: Serve, funded: Ledger, sent: bytes) -> None:
    """Nothing, or half of a head, for as long as it may take: the connection is closed, and takes no file."""
    with serve(funded, limits=Limits(head_seconds=0.2)) as server, connected(server, sent) as connection:
        assert all_of(connection) == b""


@pytest.mark.parametrize("then", [b"", b"\r\n", HEALTH])
def test_whoever_was_answered_and_asks_no_more_is_let_go(serve: Serve, funded: Ledger, then: bytes) -> None:
    """The connection is kept for a while, and not for ever, whatever is sent that is no request."""
    with serve(funded, limits=Limits(head_seconds=0.3)) as server, connected(server, HEALTH + b"\r\n") as connection:
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        connection.sendall(then)
        assert b"HTTP/1.1" not in all_of(connection)


@pytest.mark.parametrize(
    "begin",
    [
        HEALTH + b"X-A: ",
        HEALTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ",
        HEALTH + b"Transfer-Encoding: chunked\r\n\r\n1;x=",
    ],
    ids=["head", "trailer", "extension"],
)
def test_a_head_without_an_end_is_not_read(serve: Serve, funded: Ledger, begin: bytes) -> None:
    """Whoever sends on and on is cut off at the bound, not after a time."""
    with serve(funded, limits=Limits(head_seconds=600.0)) as server, connected(server, begin) as connection:
        with pytest.raises(ConnectionError):
            connection.sendall(b"b" * ENDLESS)
        assert httpx.get(f"{server.address}/healthz").status_code == 200


def test_requests_behind_one_another_are_answered(serve: Serve, funded: Ledger, secrets: dict[Scope, str]) -> None:
    """Bodies longer than a head may be, one right after the other, and the next head with the end of a body."""
    body = json.dumps({"commands": [{"type": "x" * 60_000}] * 2}).encode()
    head = f"POST /v1/handle HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secrets[Scope.APPEND]}\r\n"
    head += f"Idempotency-Key: k\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    asked = (head.encode() + body) * 3 + HEALTH + b"Connection: close\r\n\r\n"
    with serve(funded) as server, connected(server, asked) as connection:
        assert all_of(connection).count(b"HTTP/1.1 ") == 4


def test_whoever_does_not_read_lines_loses_the_place(serve: Serve, funded: Ledger, secrets: dict[Scope, str]) -> None:
    """A request of many commands whose answers nobody takes is given up, and another has its place."""
    credential = {"Authorization": f"Bearer {secrets[Scope.APPEND]}"}
    head = f"POST /v1/bulk HTTP/1.1\r\nHost: localhost\r\nAuthorization: {credential['Authorization']}\r\n"
    head += f"Idempotency-Key: s\r\nContent-Type: application/x-ndjson\r\nContent-Length: {len(LINES)}\r\n\r\n"
    limits = Limits(bulks=1, unread_seconds=0.3)
    with (
        serve(funded, limits=limits) as server,
        httpx.Client(base_url=server.address, headers=credential) as client,
        connected(server, head.encode() + LINES, receive_buffer=4_096) as slow,
    ):

        def asked() -> int:
            headers = {"Idempotency-Key": "k", "Content-Type": "application/x-ndjson"}
            return client.post("/v1/bulk", content=b"{}\n", headers=headers).status_code

        until(lambda: asked() == 429)
        until(lambda: asked() == 200)
        assert not all_of(slow).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path", ["/v1/transfer", "/v1/handle", "/v1/bulk", "/sign-in"])
def test_whoever_hangs_up_is_no_fault(
    serve: Serve, funded: Ledger, secrets: dict[Scope, str], caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """A caller who goes in the middle of a body is counted as gone, and nothing is logged as an error."""
    kind = {"/v1/bulk": "application/x-ndjson", "/sign-in": "application/x-www-form-urlencoded"}.get(path, "")
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secrets[Scope.APPEND]}\r\n"
    head += f"Idempotency-Key: k\r\nContent-Type: {kind or 'application/json'}\r\nContent-Length: 100\r\n\r\n"
    status = "200" if path == "/v1/bulk" else "none"
    with (
        serve(funded, open_metrics=True) as server,
        httpx.Client(base_url=server.address) as client,
        connected(server, head.encode() + b"{") as connection,
    ):
        until(lambda: "ledger_http_requests_in_flight 2.0" in client.get("/metrics").text)
        connection.close()
        counted = f'ledger_http_requests_total{{method="POST",route="{path}",status="{status}"}} 1.0'
        until(lambda: counted in client.get("/metrics").text)

    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_what_nobody_takes_ends_at_once() -> None:
    """A place that an answer holds is free as soon as it cannot be sent."""
    ended = []

    async def parts() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"part"
        finally:
            ended.append(True)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise BrokenPipeError

    async def answer() -> None:
        made = Closing(parts())
        with pytest.raises(BrokenPipeError):
            await made.stream_response(send)
        assert ended == [True]

    asyncio.run(answer())


def test_what_the_service_has_no_time_for_is_told(
    serve: Serve, funded: Ledger, secrets: dict[Scope, str], ledger_url: str
) -> None:
    """A request that is cut off by the end of the service is told to ask again with its key."""
    headers = {"Authorization": f"Bearer {secrets[Scope.APPEND]}", "Idempotency-Key": "k"}
    body = {"amount": "5 USD", "debit": "alice", "credit": "bob"}
    with (
        psycopg.connect(ledger_url) as blocking,
        psycopg.connect(ledger_url, autocommit=True) as watching,
        ThreadPoolExecutor(1) as threads,
        serve(funded, limits=Limits(shutdown_seconds=1.0)) as server,
    ):
        blocking.execute("SELECT 1 FROM ledger.balances WHERE stream = 'alice' FOR UPDATE")
        sent = threads.submit(
            httpx.post, f"{server.address}/v1/transfer", json=body, headers=headers, timeout=WAIT_SECONDS
        )
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        until(lambda: bool(watching.execute(waits).fetchall()))
        server.stop()
        answer = sent.result(WAIT_SECONDS)
        blocking.rollback()

    assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
    assert answer.headers["content-type"] == "application/problem+json"


def test_head_is_answered_as_get_is(serve: Serve, funded: Ledger) -> None:
    """But for the body: on every route that is asked by GET, those that would go on for ever too."""
    with serve(funded, authentication=False) as server, httpx.Client(base_url=server.address) as client:
        for path in READ:
            told, whole = (client.request(method, path) for method in ("HEAD", "GET"))
            assert (told.status_code, told.content) == (whole.status_code, b"") == (200, b"")
            assert path == "/metrics" or told.headers["content-length"] == whole.headers["content-length"]
        assert client.head("/v1/feed/events").status_code == 200
        assert client.head("/problems/nonsense").status_code == 404
        assert client.head("/v1/transfer").status_code == 405
        metrics = client.get("/metrics").text
        assert 'ledger_http_requests_total{method="HEAD",route="/problems/{code}",status="404"} 1.0' in metrics


def test_what_is_no_request_is_a_problem(serve: Serve, funded: Ledger) -> None:
    """A method that there is none of, or no HTTP at all: told as everything else is."""
    for sent in (b"NONSENSE / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\r\n\r\n"):
        with serve(funded) as server, connected(server, sent) as connection:
            head, _, body = all_of(connection).partition(b"\r\n\r\n")
        assert b"Content-Type: application/problem+json" in head
        assert json.loads(body)["status"] == 400
