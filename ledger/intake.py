"""
What a transport delivers → the inboxes of its sources: decoded, kept where it cannot be read, taken in together.

Files, Kafka and RabbitMQ all end here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final, NamedTuple

from ledger.core.errors import InvalidCommand, Rejected, UndecodableMessage
from ledger.inbox import Inbox, Part, take_together
from ledger.order.decoders import Decoder, Headers
from ledger.order.message import Message
from ledger.receiving import Received, Refused
from ledger.storage.database import Connection

UNDECODABLE: Final = "ledger.undecodable"
_KEPT_BYTES: Final = 20_000
_NO_VALUE: Final = UndecodableMessage("body", "there is none", "Send a message; a tombstone deletes nothing here.")


class Delivery(NamedTuple):
    """What one body held: messages, and what of it could not be read."""

    messages: list[Message]
    refused: list[Refused]

    @property
    def size(self) -> int:
        """How many messages."""
        return len(self.messages) + len(self.refused)


class Intake:
    """The way into the inboxes of one or more sources; all of one ledger."""

    def __init__(self, inboxes: Iterable[Inbox], decode: Decoder) -> None:
        """The first of the inboxes is that of messages that do not name their source, or cannot be read."""
        self._inboxes = {inbox.source: inbox for inbox in inboxes}
        if not self._inboxes:
            raise InvalidCommand("inboxes", "there are none: name the sources whose messages are taken")
        self._decode = decode
        self._first = next(iter(self._inboxes))

    @property
    def inboxes(self) -> list[Inbox]:
        """In the order in which they were given."""
        return list(self._inboxes.values())

    def read(self, body: bytes | None, headers: Headers, name: str) -> Delivery:
        """Decode a body.  What cannot be read of it is kept under `name`: the same whenever it is delivered again."""
        delivery = Delivery([], [])
        try:
            found = [_NO_VALUE] if body is None else self._decode(body, headers, self._first)
        except UndecodableMessage as error:
            found = [error]
        for index, each in enumerate(found):
            problem = each if isinstance(each, UndecodableMessage) else self._not_ours(each)
            if problem is None:
                assert isinstance(each, Message)
                delivery.messages.append(each)
            else:
                kept = name if len(found) == 1 else f"{name}[{index}]"
                delivery.refused.append(Refused(_unreadable(self._first, kept, body or b""), str(problem)))
        return delivery

    def take(
        self, deliveries: Iterable[Delivery], within: Callable[[Connection], None] | None = None
    ) -> list[Received]:
        """
        Take deliveries in, in one transaction, which begins with what is to be done `within` it; then go on, in others.

        What was waiting for them may be a million messages: of what took effect only the counts are told.

        Raises:
            LedgerError: As `Inbox.receive`; nothing of it was kept.
        """
        messages: dict[str, list[Message]] = {}
        refused: list[Refused] = []
        for delivery in deliveries:
            refused += delivery.refused
            for message in delivery.messages:
                messages.setdefault(message.source, []).append(message)
        if refused:
            messages.setdefault(self._first, [])
        parts = [
            Part(self._inboxes[source], messages[source], refused if source == self._first else ())
            # In one order, whoever has messages of several.
            for source in sorted(messages)
        ]
        parts = parts or [Part(self._inboxes[self._first], [])]
        came = take_together(parts, within)
        return [
            _counted(each)
            for part, first in zip(parts, came, strict=True)
            for each in chain([first], part.inbox.going_on(first.more))
        ]

    def tick(self) -> list[Received]:
        """Act on deadlines that have come, of every source; of what took effect only the counts are told."""
        return [_counted(each) for inbox in self._inboxes.values() for each in inbox.ticking()]

    def _not_ours(self, message: Message) -> UndecodableMessage | None:
        if message.source in self._inboxes:
            return None
        ours = " or ".join(repr(source) for source in self._inboxes)
        return UndecodableMessage("source", f"it is {message.source!r}, not {ours}", "Name its source, too.")


def totals(received: Iterable[Received]) -> Counter[str]:
    """What came of messages, counted: as a tally, and those that were rejected or could not be handled."""
    counted: Counter[str] = Counter()
    for each in received:
        counted.update(each.tally._asdict())
        counted["rejected"] += sum(isinstance(outcome, Rejected) for _, outcome in each.outcomes)
        counted["failed"] += len(each.failed)
    return counted


def _counted(received: Received) -> Received:
    """What came of messages, without those that took effect."""
    return received._replace(outcomes=[each for each in received.outcomes if isinstance(each[1], Rejected)])


def together(deliveries: Sequence[Delivery], messages_max: int) -> int:
    """How many of these, at least one, come to no more than so many messages."""
    size = 0
    for count, delivery in enumerate(deliveries):
        size += delivery.size
        if size > messages_max and count:
            return count
    return len(deliveries)


def _unreadable(source: str, name: str, body: bytes) -> Message:
    """Something that is no message, as one that can be kept."""
    text = body[:_KEPT_BYTES].decode(errors="replace").replace("\0", "")
    return Message(source, name, UNDECODABLE, data={"body": text})
