"""Bounds of the service as a whole: how many requests at once, how they end, and what every answer says of itself."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.core.errors import LedgerError, ServiceUnavailable, TooManyRequests, Unauthenticated
from ledger.service.problem_details import problem
from ledger.settings import ServiceSettings

_SAFE: Final = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
"""An answer is not what it is not taken for, and nobody keeps it."""

_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


WATCHED: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""
What machines ask every few seconds: answered however many requests are on their way, of which it is none; and logged
for who wants to know everything, and if it goes wrong.
"""


class Closing(StreamingResponse):
    """Ends what it is made of as soon as nobody takes it any more, and not whenever it is collected as garbage."""

    async def stream_response(self, send: Send) -> None:
        parts: Any = self.body_iterator
        async with aclosing(parts):
            await super().stream_response(send)


class Bounds:
    """Middleware around everything else."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self._app = app
        self._limit = settings.limits.requests
        self._is_open = not settings.authentication
        self._on_their_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        answer = _Answer(scope, send)
        counts = int(scope["path"] not in WATCHED)
        self._on_their_way += counts
        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(answer.scope, receive, answer.send)
            else:
                await problem(refusal)(answer.scope, receive, answer.send)
        except ClientDisconnect:
            # Nobody is there to be answered, and nothing went wrong here.
            return
        except asyncio.CancelledError:
            # The service ends, and its time for that is over.
            if answer.began:
                raise
            await problem(ServiceUnavailable("it is being stopped"))(answer.scope, receive, answer.send)
        finally:
            self._on_their_way -= counts
            if "route" in answer.scope:
                scope["route"] = answer.scope["route"]

    def _refusal(self, scope: Scope) -> LedgerError | None:
        if self._on_their_way > self._limit and scope["path"] not in WATCHED:
            return TooManyRequests(f"{self._limit} requests at once", 1)
        if self._is_open:
            # A page of another site, whose name was made to lead here, would ask as somebody on this machine.
            host = Headers(scope=scope).get("host", "")
            if host.rpartition(":")[0] not in _LOCAL and host not in _LOCAL:
                return Unauthenticated(
                    f"without authentication this is for {', '.join(sorted(_LOCAL))}, not {host!r:.80}"
                )
        return None


class _Answer:
    """What is sent to one request; HEAD is answered as GET is, but for the body (RFC 9110, section 9.3.2)."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._is_head = scope["method"] == "HEAD"
        self.scope: Scope = {**scope, "method": "GET"} if self._is_head else scope
        self.began = False
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.began = True
            names = {name for name, _ in message["headers"]}
            message["headers"].extend(header for header in _SAFE if header[0] not in names)
            await self._send(message)
            if self._is_head:
                # By this whoever makes the body is told that nobody wants it.
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not self._is_head:
            await self._send(message)
