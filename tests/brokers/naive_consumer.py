"""
An ordinary consumer, right on ordered input: it carries each message out, and lets the client commit.

Takes the options of `ledger consume kafka` that the tests use, and ends on SIGTERM as that does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from typing import Any, Final

import confluent_kafka

from ledger import Ledger, LedgerError, parse_command
from ledger.order.decoders import cloudevents
from ledger.order.message import Message

ATTEMPTS: Final = 20


def carry_out(ledger: Ledger, request: dict[str, Any]) -> None:
    """Do it; again, where the database was not there."""
    for _ in range(ATTEMPTS):
        try:
            ledger.handle([parse_command(json.dumps(request))])
        except LedgerError as error:
            if not error.retryable:
                raise
        else:
            return
    raise SystemExit(f"the database did not come back for {request}")


def main() -> None:
    """Consume until told to stop."""
    parser = argparse.ArgumentParser()
    for name in ("bootstrap", "topic", "group", "protocol", "begin", "config", "records", "idle-seconds"):
        parser.add_argument(f"--{name}")
    given = parser.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.set())
    with open(given.config, encoding="utf-8") as file:  # noqa: PTH123
        config = dict(line.strip().split("=", 1) for line in file)
    sharing = {"group.protocol": "consumer"} if given.protocol == "consumer" else {}
    client = confluent_kafka.Consumer(
        {
            **config,
            **sharing,
            "bootstrap.servers": given.bootstrap,
            "group.id": given.group,
            "auto.offset.reset": "earliest",
            "auto.commit.interval.ms": 500,
            "log_level": 0,
        }
    )
    client.subscribe([given.topic])
    with Ledger.connect(os.environ["LEDGER_DATABASE_URL"]) as ledger:
        while not stopping.is_set():
            record = client.poll(0.1)
            if record is None or record.error() is not None:
                continue
            (message,) = cloudevents(record.value() or b"", dict(record.headers() or ()).items())
            assert isinstance(message, Message)
            assert isinstance(message.data, dict)
            request = {**message.data, "type": message.type.removeprefix("ledger.")}
            carry_out(ledger, request)
    client.close()
    print("{}")  # noqa: T201


if __name__ == "__main__":
    main()
