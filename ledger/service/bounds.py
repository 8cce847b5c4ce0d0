"""Bounds of the service as a whole: how many requests at once, and what every answer says of itself."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.core.errors import LedgerError, TooManyRequests, Unauthenticated
from ledger.service.problem_details import problem
from ledger.settings import ServiceSettings

_SAFE: Final = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
"""An answer is not what it is not taken for, and nobody keeps it."""

_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


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

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                message["headers"].extend(header for header in _SAFE if header[0] not in names)
            await send(message)

        self._on_their_way += 1
        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, sending)
            else:
                await problem(refusal)(scope, receive, sending)
        finally:
            self._on_their_way -= 1

    def _refusal(self, scope: Scope) -> LedgerError | None:
        if self._on_their_way > self._limit:
            return TooManyRequests(f"{self._limit} requests at once", 1)
        if self._is_open:
            # A page of another site, whose name was made to lead here, would ask as somebody on this machine.
            host = Headers(scope=scope).get("host", "")
            if host.rpartition(":")[0] not in _LOCAL and host not in _LOCAL:
                return Unauthenticated(
                    f"without authentication this is for {', '.join(sorted(_LOCAL))}, not {host!r:.80}"
                )
        return None
