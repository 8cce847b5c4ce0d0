"""A proxy between a client and a real PostgreSQL that counts what the client waits for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Self

from sqlalchemy import URL

JOIN_SECONDS: Final = 10
_SYNC, _QUERY = b"S", b"Q"


class Proxy:
    """
    Listens on a free port of this machine and forwards to the server at `upstream`.

    `round_trips` counts Sync and simple Query messages: after each of them a client waits for the server.
    """

    def __init__(self, upstream: URL) -> None:
        self._upstream = upstream
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.round_trips = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def url(self, database: str | None = None) -> str:
        """The URL of a database behind the proxy."""
        url = URL.create(
            "postgresql",
            username=self._upstream.username,
            password=self._upstream.password or None,
            host="127.0.0.1",
            port=self.port,
            database=database or self._upstream.database,
            query={"sslmode": "disable", "gssencmode": "disable"},
        )
        return url.render_as_string(hide_password=False)

    @contextmanager
    def counted(self) -> Iterator[Callable[[], int]]:
        """How many round trips the block has made so far."""
        before = self.round_trips
        yield lambda: self.round_trips - before

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            open_sockets = [self._listener, *self._sockets]
        for each in open_sockets:
            _hang_up(each)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
            assert not thread.is_alive()
        for each in open_sockets:
            each.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = self._connect()
            with self._lock:
                self._sockets += [client, server]
            self._start(self._to_server, client, server)
            self._start(self._to_client, server, client)

    def _connect(self) -> socket.socket:
        host = self._upstream.host or str(self._upstream.query.get("host", "localhost"))
        port = self._upstream.port or int(str(self._upstream.query.get("port", 5432)))
        if host.startswith("/"):
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(f"{host}/.s.PGSQL.{port}")
            return upstream
        return socket.create_connection((host, port))

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        messages = _Messages()
        while received := _receive(client):
            with self._lock:
                self.round_trips += messages.waited_for(received)
            if not _send(server, received):
                break
        _hang_up(server)

    def _to_client(self, server: socket.socket, client: socket.socket) -> None:
        while (received := _receive(server)) and _send(client, received):
            pass
        _hang_up(client)


class _Messages:
    """Cuts what one client says into messages (a type, a length, a body), however the bytes arrive."""

    def __init__(self) -> None:
        self._rest = b""
        self._started = False

    def waited_for(self, received: bytes) -> int:
        """How many of the messages that end in `received` their sender waits on."""
        self._rest += received
        waits = 0
        while True:
            # The first message has no type.
            head = 1 if self._started else 0
            if len(self._rest) < head + 4:
                return waits
            size = head + int.from_bytes(self._rest[head : head + 4])
            if len(self._rest) < size:
                return waits
            waits += self._started and self._rest[:1] in (_SYNC, _QUERY)
            self._rest, self._started = self._rest[size:], True


def _receive(peer: socket.socket) -> bytes:
    try:
        return peer.recv(65_536)
    except OSError:
        return b""


def _send(peer: socket.socket, data: bytes) -> bool:
    try:
        peer.sendall(data)
    except OSError:
        return False
    return True


def _hang_up(peer: socket.socket) -> None:
    # The other side may have been faster.
    with suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)
