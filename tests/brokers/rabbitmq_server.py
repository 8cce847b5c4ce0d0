"""A real RabbitMQ, from Debian's package: a node of its own, on free ports, with its data in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pika
from pika.exceptions import AMQPError
from processes import WAIT_SECONDS, Server, free_ports

# Not the wrappers on the PATH, which change the user.
_PROGRAMS: Final = Path("/usr/lib/rabbitmq/bin")


def why_not() -> str | None:
    """What is missing to run it, if anything is."""
    return None if (_PROGRAMS / "rabbitmq-server").exists() else "a real RabbitMQ needs Debian's rabbitmq-server"


class RabbitMQ:
    """A node that can be stopped, killed and started again with what it has."""

    def __init__(self, folder: Path) -> None:
        port, distribution, mapper = free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
        (folder / "rabbitmq.conf").write_text("log.console = true\nlog.file = false\n")
        (folder / "rabbitmq-env.conf").touch()
        (folder / "enabled_plugins").write_text("[].\n")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")},
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper),
            "RABBITMQ_NODENAME": f"ledger-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }
        self._server = Server([str(_PROGRAMS / "rabbitmq-server")], folder / "log", self._environment)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._server.start(self._answers)

    def stop(self) -> None:
        """Stop it in good order."""
        self._server.stop()

    def kill(self) -> None:
        """End it without a warning."""
        self._server.kill()

    def close(self) -> None:
        """End it for good, with the daemon that its runtime leaves behind."""
        self.kill()
        command = [shutil.which("epmd") or "epmd", "-kill"]
        subprocess.run(command, env=self._environment, capture_output=True, timeout=WAIT_SECONDS, check=False)

    def _answers(self) -> bool:
        try:
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (AMQPError, OSError):
            return False
        return True


@contextmanager
def running() -> Iterator[RabbitMQ]:
    """A node of its own, gone with its data at the end."""
    with tempfile.TemporaryDirectory(prefix="ledger-rabbitmq-") as folder:
        node = RabbitMQ(Path(folder))
        try:
            yield node
        finally:
            node.close()
