"""`serve`: the service on a socket, until it is told to stop; what was accepted is answered first."""

from __future__ import annotations

import gc
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from ledger.core.errors import InvalidCommand
from ledger.service.connections import BoundedHttp
from ledger.service.desk import Desk
from ledger.settings import ServiceSettings

_BACKLOG: Final = 2_048


class Server(uvicorn.Server):
    """A server whose signals are its caller's: `stop`, from any thread or signal handler, lets it end in good order."""

    def __init__(self, app: FastAPI, settings: ServiceSettings) -> None:
        """
        Listen, so that a port of 0 is known by then.

        Raises:
            InvalidCommand: It would be open to others, or cannot listen there.
        """
        check_exposure(settings)
        self._desk: Desk = app.state.desk
        secure = settings.certificate is not None

        def connection(**made: Any) -> BoundedHttp:
            return BoundedHttp(settings.limits, **made)

        config = uvicorn.Config(
            app,
            http=connection,  # type: ignore[arg-type]  # It is called, as a class would be.
            timeout_keep_alive=max(1, round(settings.limits.head_seconds)),
            log_level="warning",
            # Its lines go where those of the process do, and each request has one of ours.
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(settings.limits.shutdown_seconds)),
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.private_key,
        )
        try:
            config.load()
        except OSError as error:
            named = f"{settings.certificate} and {settings.private_key}"
            raise InvalidCommand("TLS", f"{named} are no certificate and key: {error.strerror or error}") from None
        super().__init__(config)
        self.socket = _listening(settings)
        host, port = self.socket.getsockname()[:2]
        self.address = f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    def listen(self) -> None:
        """Serve until it is stopped."""
        # What was made until here is no garbage that collections should look through while somebody waits.
        gc.collect()
        gc.freeze()
        self.run(sockets=[self.socket])

    def stop(self) -> None:
        """Take no more, and answer everyone."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Whoever follows something would be waited for.
        self._desk.end()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone: whoever serves says what a signal means."""
        yield


def check_exposure(settings: ServiceSettings) -> None:
    """
    Refuse to be open to others without asking who they are, and without TLS.

    Raises:
        InvalidCommand: It would be; says what to do.
    """
    if (settings.certificate is None) != (settings.private_key is None):
        raise InvalidCommand("TLS", "a certificate goes with its private key: give both")
    if _is_loopback(settings.host):
        return
    if not settings.authentication:
        raise InvalidCommand("host", f"{settings.host} is open to others: there must be authentication")
    if settings.certificate is None and not settings.behind_proxy:
        problem = f"{settings.host} is open to others: give a certificate and its key, or say that a proxy does TLS"
        raise InvalidCommand("host", f"{problem} (--behind-proxy)")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name is what a resolver makes of it, but for this one (RFC 6761, section 6.3).
        return host == "localhost"


def _listening(settings: ServiceSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((settings.host, settings.port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise InvalidCommand(f"{settings.host}:{settings.port}", f"cannot listen there: {error.strerror}") from None
    return made
