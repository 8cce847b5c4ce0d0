"""
The feed → a topic: every event as a message, in order, at least once.

How far it is stands in the database, as a subscription, and moves when the topic has acknowledged.  What ends in
between publishes some messages again, in order; who takes them in drops by version what it has seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ledger.application import Ledger
from ledger.connect.kafka_publisher import Publisher
from ledger.core.errors import ConcurrencyError, InvalidCommand, LedgerError
from ledger.order.published import message_of, source_of
from ledger.stamper import Pause
from ledger.storage.explained import in_our_words

ENTRIES_MAX: Final = 500
"""Published between two checkpoints, unless it is said otherwise."""

_READ_MAX: Final = 1_000
_PAUSE_SECONDS: Final = (0.05, 1.0)

logger: Final = logging.getLogger("ledger.kafka")


class FeedPublisher:
    """
    Publishes a ledger's feed through a `Publisher`, from where the subscription `name` stands.

    Two of one name do no harm: each publishes in order, and so the first time that each message comes is in order.
    """

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        *,
        name: str | None = None,
        source: str | None = None,
        entries_max: int = ENTRIES_MAX,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        """`name` is "kafka/TOPIC", and `source` the ledger's id, unless they are said."""
        if not 1 <= entries_max <= _READ_MAX:
            raise InvalidCommand("entries_max", f"{entries_max!r} is not from 1 to {_READ_MAX}")
        self.name = name or f"kafka/{publisher.topic}"
        self.published = 0
        self._ledger = ledger
        self._publisher = publisher
        self._source = source or source_of(str(ledger.ledger_id))
        self._entries_max = entries_max
        self._on_problem = on_problem or logger.warning
        self._subscription = ledger.subscription(self.name, owner=f"publisher of {publisher.topic}")
        self._pause = Pause(*_PAUSE_SECONDS)

    def step(self) -> int:
        """
        Publish what comes next, at most `entries_max` messages, and move the checkpoint; how many.

        Raises:
            BrokerUnavailable: Some may not be in the topic; the checkpoint is where it was.
        """
        # No transaction waits for the broker: it would hold the checkpoint for as long.
        with in_our_words(), self._ledger.engine.begin() as connection:
            entries = self._subscription.next(connection, self._entries_max)
        if entries:
            self._publisher.publish(message_of(entry, self._source) for entry in entries)
            # Whoever else has moved it, another publisher of this name or a person: it is gone on from there.
            with suppress(ConcurrencyError), in_our_words(), self._ledger.engine.begin() as connection:
                self._subscription.acknowledge(connection, entries)
        self.published += len(entries)
        return len(entries)

    def run(self, *, to_end: bool = False) -> None:
        """
        Publish until it is stopped, through whatever goes wrong: that is told, and tried again.

        With `to_end`, until there is no more; then what goes wrong is raised.
        """
        while not self._pause.ended:
            try:
                published = self.step()
            except LedgerError as error:
                if to_end or not error.retryable:
                    raise
                published = 0
                self._on_problem(str(error))
            if published:
                self._pause.over()
            elif to_end:
                return
            else:
                self._pause.wait()

    def stop(self) -> None:
        """Let `run` end once what is on its way is acknowledged; from any thread or signal handler."""
        self._pause.end()
