"""
Entries of the feed ⇄ messages: what happened in a ledger, as CloudEvents for whoever wants to know.

The stream of a message is the event's own, and its sequence is the event's version, so that whoever takes it in can put
a stream in order, drop what came twice and see what is missing.  Its id is the position in the feed, which is unique
within the source and never changes.  Amounts are texts of minor units.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

from ledger.core.canonical import canonical_json, utc_text
from ledger.core.errors import UndecodableMessage
from ledger.core.events import FeedEntry, Numbers, Recorded
from ledger.order.message import Message

TYPE_PREFIX: Final = "ledger.event."

PAYLOAD_BYTES_MAX: Final = 64 * 1024
"""A longer one, which only the closing of a period with very many assets has, is left out and null."""


def source_of(ledger_id: str) -> str:
    """The source of a ledger's messages."""
    return f"urn:uuid:{ledger_id}"


def message_of(entry: FeedEntry, source: str) -> Message:
    """An entry of the feed as a message: the event with all that was recorded, and who asked for it."""
    position, event, transaction = entry
    fits = len(event.payload.encode()) <= PAYLOAD_BYTES_MAX
    data: dict[str, Any] = {
        "position": position,
        "transaction_id": event.transaction_id,
        "kind": transaction.kind,
        "reference": transaction.reference,
        "actor": transaction.actor,
        "correlation_id": transaction.correlation_id,
        "causation_id": transaction.causation_id,
        "idempotency_key": transaction.idempotency_key,
        "metadata": json.loads(transaction.metadata) if transaction.metadata else {},
        "schema": event.schema,
        "payload": json.loads(event.payload) if fits else None,
        "asset": event.asset,
        "direction": event.direction,
        "amount": None if event.amount is None else str(event.amount),
        "numbers": None if event.numbers is None else {k: str(v) for k, v in event.numbers._asdict().items()},
        "effective_at": utc_text(event.effective_at),
        "recorded_at": utc_text(event.recorded_at),
        "prev_hash": event.prev_hash.hex(),
        "event_hash": event.event_hash.hex(),
    }
    return Message(
        source=source,
        id=str(position),
        type=TYPE_PREFIX + event.type,
        stream=event.stream,
        sequence=event.version,
        time=event.recorded_at,
        data=data,
    )


def event_in(message: Message) -> Recorded:
    """
    Read the event that a message of `message_of` carries.

    Raises:
        UndecodableMessage: It carries none.
    """
    data = message.data
    if not isinstance(data, dict) or not message.type.startswith(TYPE_PREFIX) or message.sequence is None:
        raise UndecodableMessage("type", f"{message.type!r} is no event of a ledger", "Give it to its own consumer.")
    try:
        amount, numbers = data["amount"], data["numbers"]
        return Recorded(
            stream=message.stream,
            version=message.sequence,
            transaction_id=str(data["transaction_id"]),
            type=message.type.removeprefix(TYPE_PREFIX),
            payload=canonical_json(data["payload"]),
            schema=int(str(data["schema"])),
            asset=_text(data["asset"]),
            direction=_text(data["direction"]),
            amount=None if amount is None else int(str(amount)),
            numbers=None if numbers is None else _numbers(numbers),
            effective_at=datetime.fromisoformat(str(data["effective_at"])),
            recorded_at=datetime.fromisoformat(str(data["recorded_at"])),
            prev_hash=bytes.fromhex(str(data["prev_hash"])),
            event_hash=bytes.fromhex(str(data["event_hash"])),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UndecodableMessage("data", f"it is no event of a ledger: {error}", "Publish it again.") from None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _numbers(value: object) -> Numbers:
    if not isinstance(value, dict):
        raise TypeError("numbers are an object")
    return Numbers(*(int(str(value[name])) for name in Numbers._fields))
