"""
RabbitMQ: messages from a queue into the inbox, exactly once and in order.

    from ledger.rabbitmq import Consumer

Needs the extra `rabbitmq`.
"""

from __future__ import annotations

from ledger.core.errors import InvalidCommand

try:
    from ledger.connect.rabbitmq_consumer import QUEUE, Consumer
except ModuleNotFoundError as error:
    if error.name != "pika":
        raise
    raise InvalidCommand("rabbitmq", "its client is not installed: pip install 'ledger[rabbitmq]'") from None

__all__ = ["QUEUE", "Consumer"]
