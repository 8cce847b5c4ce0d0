"""The service of a ledger on a real socket, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import httpx

from ledger import Ledger
from ledger.inbox import Inbox
from ledger.service.app import create_app
from ledger.service.server import Server
from ledger.settings import ServiceSettings

WAIT_SECONDS = 30

Http: TypeAlias = Callable[..., httpx.Client]
Serve: TypeAlias = Callable[..., AbstractContextManager[Server]]


@contextmanager
def served(ledger: Ledger, inboxes: Sequence[Inbox] = (), **settings: Any) -> Iterator[Server]:
    """The service of a ledger, on any port."""
    chosen = ServiceSettings(port=0, **settings)
    server = Server(create_app(ledger, chosen, inboxes), chosen)
    thread = threading.Thread(target=server.listen)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
