"""
A connection: HTTP with bounds on what comes before a request is known, and on who does not read what they asked for.

The server bounds neither the bytes of a request's head nor the time that it takes, and waits for ever for whoever does
not read; none of that takes a credential.  Requests themselves have their bounds elsewhere.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ledger.service.problem_details import PROBLEM_JSON, bad_request_json
from ledger.settings import Limits

PROGRESS_BYTES: Final = 16 * 1024
"""So much of an answer has to be read, or all of it, in each `unread_seconds`."""


class BoundedHttp(HttpToolsProtocol):
    """One connection: closed if it is idle, half said, endless, or not read."""

    def __init__(self, limits: Limits, **server: Any) -> None:
        super().__init__(**server)
        self._limits = limits
        self._unparsed = 0
        """Bytes since something was last known: a whole head, or a part of a body."""

        self._idle: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As the server's own.
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in (self._idle, self._unread):
            if clock is not None:
                clock.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > self._limits.head_bytes:
            # Whoever sends on reads no answer.
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        self._unparsed = 0
        if self._idle is not None:
            self._idle.cancel()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            # Nothing is on its way; of a body that nobody wanted the rest may still come.
            self._wait()

    def _wait(self) -> None:
        """For a whole head, from now on."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self.loop.call_later(self._limits.head_seconds, self._is_idle)

    def _is_idle(self) -> None:
        """Close; for who is being answered the time begins anew after that, and to read the end of it takes time."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
            self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None and not self.transport.is_closing():
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        if self._unread is None:
            self._look_again()

    def _look_again(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(self._limits.unread_seconds, self._is_unread, left)

    def _is_unread(self, left: int) -> None:
        """Give up whoever read nothing: the answer ends at once, and its place is free."""
        if self.transport.get_write_buffer_size() > max(0, left - PROGRESS_BYTES):
            self.transport.abort()
        else:
            self._look_again()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told as everything else is; no route, and no log of requests, ever sees it."""
        body = to_json(bad_request_json(msg))
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: {PROBLEM_JSON}\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        self.transport.close()
