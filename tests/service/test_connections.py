"""Connections: what comes before a request is known is bounded, and nobody waits for who does not read."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from serving import WAIT_SECONDS, Serve

from ledger import Ledger
from ledger.access import Scope
from ledger.service.server import Server
from ledger.settings import Limits

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
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


def test_what_is_no_request_is_a_problem(serve: Serve, funded: Ledger) -> None:
    """A method that there is none of, or no HTTP at all: told as everything else is."""
    for sent in (b"NONSENSE / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\r\n\r\n"):
        with serve(funded) as server, connected(server, sent) as connection:
            head, _, body = all_of(connection).partition(b"\r\n\r\n")
        assert b"Content-Type: application/problem+json" in head
        assert json.loads(body)["status"] == 400
