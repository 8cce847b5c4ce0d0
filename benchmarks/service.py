"""
Transfers over HTTP, each in a request that waits for its answer: how many a second, and how long one of them waits.

Beside the same client on the simplest service there is: a route of FastAPI that inserts one row a request, on the same
server (`benchmarks.bare`).
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, cast

import uvloop
from sqlalchemy import URL

from benchmarks import ours
from benchmarks.ours import ACCOUNTS, ACCOUNTS_QUICK, account
from benchmarks.processes import Ready, Tally, apart
from benchmarks.rounds import Bars, Benchmark, Chart, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import text
from ledger import Ledger
from ledger.access import Scope

CONNECTIONS: Final = (32, 256)
SERVICE: Final = "ledger serve"
BARE: Final = "FastAPI, an INSERT each"
TARGETS: Final = {("per_second", 256): 2.0, ("p99_ms", 256): 1.0}
_ROOT: Final = Path(__file__).parent.parent
_WAIT_SECONDS: Final = 60
_WARM_SECONDS: Final = 1.0


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Open accounts, and make a key."""
    accounts = ACCOUNTS_QUICK if effort.quick else ACCOUNTS
    ours.opened(text(url), accounts)
    with Ledger.connect(text(url)) as ledger:
        key = ledger.api_keys().create("benchmark", [Scope.APPEND], created_by="benchmark").secret
    serve = [sys.executable, "-m", "ledger", "serve", "--port", "0", "--database-url", text(url)]
    bare = [sys.executable, "-m", "benchmarks.bare", text(url)]
    turns: dict[str, Turn] = {}
    for connections in CONNECTIONS:
        for contestant, program in ((BARE, bare), (SERVICE, serve)):
            arguments = (program, key, accounts, connections, effort.seconds)
            turns[named(contestant, connections)] = partial(_turn, arguments)
    yield Benchmark("transfers", turns, list(_ratios()), list(_charts()))
    ours.checked(text(url))


def named(contestant: str, connections: int) -> str:
    """A turn's name."""
    return f"{contestant}, {connections} connections"


def _turn(arguments: tuple[object, ...], _: int) -> Measured:
    return apart(_requests, arguments)


def _ratios() -> Iterator[Ratio]:
    for connections in CONNECTIONS:
        pair = named(SERVICE, connections), (named(BARE, connections),)
        yield Ratio(
            f"requests a second, {connections} connections", *pair, target=TARGETS.get(("per_second", connections))
        )
        yield Ratio(
            f"p99, the peer's over ours, {connections} connections",
            *pair,
            target=TARGETS.get(("p99_ms", connections)),
            by="p99_ms",
        )


def _charts() -> Iterator[Chart]:
    groups = {
        f"{connections} connections": {each: named(each, connections) for each in (BARE, SERVICE)}
        for connections in CONNECTIONS
    }
    yield Bars("requests", "Transfers over HTTP", groups)
    yield Ratios("The service beside a bare route")


def _requests(ready: Ready, program: list[str], key: str, accounts: int, connections: int, seconds: float) -> Tally:
    """Start the service, and let so many connections ask it, one request after the other each."""
    # Neither of the two writes a line for each request.
    variables = {**os.environ, "LEDGER_SERVE_LOG_LEVEL": "warning"}
    server = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=variables)
    try:
        assert server.stdout is not None
        said = re.search(r"http://127\.0\.0\.1:(\d+)", server.stdout.readline())
        assert said is not None, "it did not say where it listens"
        ready()
        return uvloop.run(_asked(int(said[1]), key, accounts, connections, seconds))
    finally:
        server.terminate()
        # Waited for, so that its memory is counted.
        server.wait(_WAIT_SECONDS)


async def _asked(port: int, key: str, accounts: int, connections: int, seconds: float) -> Tally:
    loop = asyncio.get_running_loop()
    begin = time.perf_counter() + min(_WARM_SECONDS, seconds / 2)
    end = begin + seconds
    made = [
        (await loop.create_connection(partial(_Asker, key, accounts, begin, end), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(each.ended for each in made))
    spans = [span for each in made for span in each.spans]
    took = max(finish for _, finish in spans) - min(start for start, _ in spans)
    return Tally(len(spans), took, [finish - start for start, finish in spans])


class _Asker(asyncio.Protocol):
    """One connection: sends a transfer when the one before was answered, and costs next to nothing."""

    def __init__(self, key: str, accounts: int, begin: float, end: float) -> None:
        self._head = f"POST /v1/transfer HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        self._head += "Content-Type: application/json\r\n"
        self._accounts, self._begin, self._end = accounts, begin, end
        self._received = b""
        self._start = 0.0
        self.spans: list[tuple[float, float]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own does not say that it is one.
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head) if found else None
        if length is None or len(body) < int(length[1]):
            return
        finish = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 201"):
            self._fail(RuntimeError(self._received.decode()))
            return
        if self._start >= self._begin:
            self.spans.append((self._start, finish))
        self._received = b""
        if finish < self._end or not self.spans:
            self._ask()
        else:
            self._transport.close()
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or RuntimeError("the service has closed the connection"))

    def _ask(self) -> None:
        source, target = random.sample(range(self._accounts), 2)
        body = f'{{"amount":"1.00 USD","debit":"{account(source)}","credit":"{account(target)}"}}'
        head = f"{self._head}Idempotency-Key: {os.urandom(12).hex()}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._start = time.perf_counter()
        self._transport.write((head + body).encode())

    def _fail(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)
