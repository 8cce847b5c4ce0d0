"""
A proxy between a client and a real PostgreSQL that fails on purpose, at a chosen point and in a chosen way.

It reads the frontend/backend protocol (PostgreSQL documentation, chapter "Frontend/Backend Protocol") as far as
it takes to count what a client sends.  A *statement* is an Execute or a simple Query; a *flight* is all that
a client sends before it waits: everything up to a Sync, or a simple Query.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self, TypeAlias

import psycopg
from sqlalchemy import URL

JOIN_SECONDS: Final = 10
REST_SECONDS: Final = 30

_EXECUTE, _QUERY, _SYNC = b"E", b"Q", b"S"
_READY, _KEY = b"Z", b"K"


class Point(StrEnum):
    """Where a fault strikes."""

    UNSENT = "unsent"
    """Before statement n reaches the server; what came before it in its flight has arrived."""

    UNANSWERED = "unanswered"
    """After flight n has left for the server, which may or may not get to work on it."""

    UNACKNOWLEDGED = "unacknowledged"
    """After the server has answered flight n, and before anything of the answer is passed on."""


class Session:
    """One client's connection to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.backend_pid = 0
        self.is_cut = False
        self.is_mute = False
        self.withheld_for: Fault | None = None

    def cut(self) -> None:
        """Hang up on both sides."""
        self.is_cut = True
        _hang_up(self.client)
        _hang_up(self.server)


Strike: TypeAlias = Callable[[Session], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens, once, at the `number`th statement or flight from when it is armed."""

    point: Point
    number: int
    strike: Strike = Session.cut


class FaultyProxy:
    """Listens on a free port of this machine, forwards to the server at `upstream`, and strikes when it is armed."""

    def __init__(self, upstream: URL) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sessions: list[Session] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._counts = dict.fromkeys(Point, 0)
        self.url: str = URL.create(
            "postgresql",
            username=upstream.username,
            password=upstream.password or None,
            host="127.0.0.1",
            port=self._listener.getsockname()[1],
            database=upstream.database,
            query={"sslmode": "disable", "gssencmode": "disable"},
        ).render_as_string(hide_password=False)

    def arm(self, fault: Fault) -> None:
        """Count from here on, and strike at the fault's place."""
        with self._lock:
            self._counts = dict.fromkeys(Point, 0)
            self._fault = fault

    def disarm(self) -> bool:
        """Whether the fault has struck; it will not any more."""
        with self._lock:
            struck, self._fault = self._fault is None, None
            return struck

    def await_rest(self, psql: psycopg.Connection[Any]) -> None:
        """
        Wait until the server has ended every session that was cut.

        Until then it may even begin what was sent to it last, and take a lease for a client that is gone.
        """
        cut = [session.backend_pid for session in self._sessions if session.is_cut]
        deadline = time.monotonic() + REST_SECONDS
        while psql.execute("SELECT FROM pg_stat_activity WHERE pid = ANY(%s)", (cut,)).rowcount:
            assert time.monotonic() < deadline, "the server is still at work for a client that is gone"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        _hang_up(self._listener)
        for session in self._sessions:
            session.cut()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
            assert not thread.is_alive()
        self._listener.close()
        for session in self._sessions:
            session.client.close()
            session.server.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                session = Session(client, self._connect())
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sessions.append(session)
            self._start(self._forward_requests, session)
            self._start(self._forward_answers, session)

    def _connect(self) -> socket.socket:
        host = self._upstream.host or str(self._upstream.query.get("host", "localhost"))
        port = self._upstream.port or int(str(self._upstream.query.get("port", 5432)))
        if host.startswith("/"):
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(f"{host}/.s.PGSQL.{port}")
            return upstream
        upstream = socket.create_connection((host, port))
        # Or each message of a pipeline would wait for the acknowledgement of the one before it.
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return upstream

    def _forward_requests(self, session: Session) -> None:
        for kind, message in _messages(session.client, typed_from_the_start=False):
            if kind in (_EXECUTE, _QUERY) and (fault := self._reached(Point.UNSENT)):
                fault.strike(session)
            ends_flight = kind in (_SYNC, _QUERY)
            # Before the last message leaves: its answer may be here sooner than the next line.
            if ends_flight and (fault := self._reached(Point.UNACKNOWLEDGED)):
                session.withheld_for = fault
            unanswered = self._reached(Point.UNANSWERED) if ends_flight else None
            # No answer overtakes the strike: the client would have one, and be struck in its next call.
            session.is_mute = unanswered is not None
            if not _send(session.server, message):
                break
            if unanswered is not None:
                unanswered.strike(session)
        session.cut()

    def _forward_answers(self, session: Session) -> None:
        for kind, message in _messages(session.server, typed_from_the_start=True):
            if kind == _KEY:
                session.backend_pid = int.from_bytes(message[5:9])
            if fault := session.withheld_for:
                if kind == _READY:
                    fault.strike(session)
                    break
            elif not session.is_mute and not _send(session.client, message):
                break
        session.cut()

    def _reached(self, point: Point) -> Fault | None:
        """Count one more of these; the fault, if it is its turn."""
        with self._lock:
            self._counts[point] += 1
            fault = self._fault
            if fault is None or fault.point is not point or fault.number != self._counts[point]:
                return None
            self._fault = None
            return fault


def _messages(peer: socket.socket, *, typed_from_the_start: bool) -> Iterator[tuple[bytes, bytes]]:
    """What a peer says, cut into messages (a type, a length, a body); a client's first one has no type."""
    received, typed = b"", typed_from_the_start
    while more := _receive(peer):
        received += more
        while True:
            length_at = 1 if typed else 0
            size = length_at + int.from_bytes(received[length_at : length_at + 4])
            if len(received) < length_at + 4 or len(received) < size:
                break
            yield (received[:1] if typed else b""), received[:size]
            received, typed = received[size:], True


def _receive(peer: socket.socket) -> bytes:
    try:
        return peer.recv(65_536)
    except OSError:
        return b""


def _send(peer: socket.socket, message: bytes) -> bool:
    try:
        peer.sendall(message)
    except OSError:
        return False
    return True


def _hang_up(peer: socket.socket) -> None:
    # Whoever is at the other end may have been faster.
    with suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)
