"""Servers that tests start, and end, as processes of their own."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

WAIT_SECONDS: Final = 60.0
_BETWEEN_SECONDS: Final = 0.1


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; nobody else is told the same before these are used."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Server:
    """A process with its log, which can be stopped, killed and started again."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command = list(command)
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self.log = log

    def start(self, is_ready: Callable[[], bool]) -> None:
        """Start it, and wait until it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        for _ in range(int(WAIT_SECONDS / _BETWEEN_SECONDS)):
            if is_ready():
                return
            try:
                code = self._process.wait(_BETWEEN_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError(f"it ended with {code}:\n{self.tail()}")
        raise RuntimeError(f"it is not ready after {WAIT_SECONDS:g} s:\n{self.tail()}")

    def stop(self) -> None:
        """Ask it to end; after a while, end it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with all of its children, without a warning."""
        self._end(signal.SIGKILL)

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        children = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        if number is signal.SIGKILL:
            for child in children:
                child.kill()
        self._process.send_signal(number)
        try:
            self._process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(WAIT_SECONDS)
        for child in psutil.wait_procs(children, timeout=WAIT_SECONDS)[1]:
            child.kill()
        self._process = None
