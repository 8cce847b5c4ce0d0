"""A server of keys with TLS, on this machine, that answers what the test says and counts how often it was asked."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from certificates import self_signed
from serving import WAIT_SECONDS


@dataclass
class KeyServer:
    """What is answered at `url`, and how often that was; `certificate` is who it says it is."""

    url: str
    certificate: Path
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: int = 0


@contextmanager
def serving_keys(folder: Path) -> Iterator[KeyServer]:
    """A server of keys; afterwards nobody is there."""
    certificate, private_key = self_signed(folder)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said.asked += 1
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said.body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    said = KeyServer(f"https://127.0.0.1:{server.server_port}/keys", certificate)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield said
    finally:
        server.shutdown()
        thread.join(WAIT_SECONDS)
        server.server_close()
