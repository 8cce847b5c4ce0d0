"""
A consumer as many are: it does what arrives, and lets the client commit.  `python -m ledger.connect.kafka_naive`.

Right as long as its group is left alone.  The simulation lets it run beside the ledger's own.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from typing import Final

from ledger.connect.kafka_clients import logger, made_consumer
from ledger.connect.kafka_settings import read_config
from ledger.order.decoders import cloudevents
from ledger.order.message import Message
from ledger.settings import Settings
from ledger.simulation import Naive

_TOGETHER: Final = 100
_POLL_SECONDS: Final = 0.2


def main() -> None:
    """Consume until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m ledger.connect.kafka_naive", description=__doc__)
    for name in ("bootstrap", "topic", "group", "config"):
        parser.add_argument(f"--{name}", required=True)
    asked = parser.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.set())
    told = {
        **read_config(asked.config),
        "bootstrap.servers": asked.bootstrap,
        "group.id": asked.group,
        "auto.offset.reset": "earliest",
    }
    logger.addHandler(logging.NullHandler())
    client = made_consumer(told)
    client.subscribe([asked.topic])
    settings = Settings.read()
    with Naive(settings.database_url or "", settings.schema) as naive:
        while not stopping.is_set():
            messages = []
            for record in client.consume(_TOGETHER, _POLL_SECONDS):
                if record.error() is None:
                    messages += [each for each in cloudevents(record.value() or b"") if isinstance(each, Message)]
            if messages:
                naive.consume(messages)
    client.close()


if __name__ == "__main__":
    main()
