"""
A consumer of one queue: messages are acknowledged after their effects are committed, and what comes twice is dropped.

    deliver up to `prefetch` → one transaction → acknowledge all of it at once

The broker remembers what was not acknowledged, and delivers it again, perhaps to somebody else and out of order; the
inbox puts that right.  So nothing rests on who consumes: that only one does at a time saves work.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any, Final, NamedTuple

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker, ProbableAccessDeniedError, ProbableAuthenticationError

from ledger.connect.problems import Problems
from ledger.core.errors import BrokerUnavailable, InvalidCommand, LedgerError, UndecodableMessage
from ledger.inbox import TOGETHER_MAX, Inbox
from ledger.intake import Delivery, Intake, together, totals
from ledger.order.decoders import Decoded, Decoder, Headers, cloudevents
from ledger.order.message import shown

logger: Final = logging.getLogger("ledger.rabbitmq")

PREFETCH_MAX: Final = 10_000
QUEUE: Final[Mapping[str, Any]] = {"x-queue-type": "quorum", "x-single-active-consumer": True}
"""Replicated, on disk before it is confirmed, and given to one consumer at a time."""

_ATTRIBUTE: Final = re.compile("^cloudEvents[:_]")
"""How the AMQP binding of CloudEvents writes attributes as headers."""

_POLL_SECONDS: Final = 0.1
_TICK_SECONDS: Final = 1.0
_BACKOFF_SECONDS: Final = 0.2
_BACKOFF_SECONDS_MAX: Final = 10.0
_REFUSED: Final = {403, 404, 406}
"""Replies that say that a person has to change something: access refused, not found, precondition failed."""


class _Delivered(NamedTuple):
    tag: int
    delivery: Delivery


class Consumer:
    """
    Takes the messages of a queue into inboxes: every effect exactly once, the messages of a stream in order.

    Through requeues and redeliveries, brokers that restart and databases that do.
    """

    def __init__(
        self,
        inboxes: Iterable[Inbox],
        queue: str,
        url: str,
        *,
        decode: Decoder = cloudevents,
        prefetch: int = 500,
        declare: bool = True,
        on_problem: Callable[[str], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """
        `inboxes` are those of the sources whose messages the queue holds; the first is that of messages that name none.

        `url` is "amqp://user:password@host:5672/vhost", or "amqps://…".  A header `sequence` numbers a message that
        carries no sequence itself.  Unless told not to `declare` it, the queue is made if it is not there: a quorum
        queue with a single active consumer.  Up to `prefetch` messages are on their way and in one transaction.

        Raises:
            InvalidCommand: The URL is none, the queue has no name, or `prefetch` is out of bounds.
        """
        if not queue:
            # RabbitMQ would make one up, another one at each connection.
            raise InvalidCommand("queue", "it has no name")
        if not 1 <= prefetch <= PREFETCH_MAX:
            raise InvalidCommand("prefetch", f"{prefetch} is not from 1 to {PREFETCH_MAX}")
        try:
            if not url.startswith(("amqp://", "amqps://")):
                raise ValueError("it is not one of RabbitMQ")
            self._where = pika.URLParameters(url)
        except (ValueError, TypeError) as error:
            raise InvalidCommand("url", f"{error}; write amqp://user:password@host:5672/vhost") from None
        self.queue = queue
        self._intake = Intake(inboxes, _numbered(decode))
        self._prefetch = prefetch
        self._declare = declare
        self._problems = Problems(on_problem or (lambda problem: logger.warning("%s", problem)))
        self._progress = progress
        self._stopping = threading.Event()
        self._waiting: deque[_Delivered] = deque()
        self._cancelled = False
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """What it did so far: records, and of their messages what came of them."""
        return dict(self._counts)

    def stop(self) -> None:
        """Let `run` finish what is on its way and return; from any thread, or a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """
        Consume until told to stop; connect again whenever the connection is lost.

        Raises:
            BrokerUnavailable: The broker refuses: user, password, or a queue that is another than wanted.
            LedgerError: The ledger cannot go on.  What was not taken in stays in the queue.
        """
        losses = 0
        while not self._stopping.is_set():
            before = self._counts["records"]
            try:
                self._consume()
            except (ProbableAuthenticationError, ProbableAccessDeniedError) as error:
                raise _refused(self.queue, error) from error
            except ChannelClosedByBroker as error:
                if error.reply_code in _REFUSED:
                    raise _refused(self.queue, error) from error
                self._problems.tell(f"RabbitMQ closed the channel: {error.reply_text}")
            except (AMQPError, OSError) as error:
                self._problems.tell(f"the connection to RabbitMQ was lost: {_said(error)}")
            losses = 0 if self._counts["records"] > before else losses + 1
            if not self._stopping.is_set():
                self._stopping.wait(_backoff(losses))

    def _consume(self) -> None:
        """Consume over one connection, until it is lost, the broker takes the queue away, or it is time to stop."""
        connection = pika.BlockingConnection(self._where)
        try:
            channel = connection.channel()
            channel.queue_declare(self.queue, durable=True, passive=not self._declare, arguments=QUEUE)
            channel.basic_qos(prefetch_count=self._prefetch)
            # What an earlier connection delivered comes again.
            self._waiting.clear()
            self._cancelled = False
            channel.add_on_cancel_callback(self._was_cancelled)
            channel.basic_consume(self.queue, self._delivered)
            self._work(connection, channel)
        finally:
            with suppress(AMQPError, OSError):
                connection.close()

    def _work(self, connection: pika.BlockingConnection, channel: BlockingChannel) -> None:
        tick_at = time.monotonic()
        while not self._stopping.is_set():
            connection.process_data_events(0 if self._waiting else _POLL_SECONDS)  # type: ignore[arg-type]
            if self._waiting:
                self._take_in(connection, channel)
            elif self._cancelled:
                self._problems.tell(f"RabbitMQ took queue {self.queue!r} away from its consumers")
                return
            if time.monotonic() >= tick_at:
                tick_at = time.monotonic() + _TICK_SECONDS
                self._again(connection, self._tick)

    def _take_in(self, connection: pika.BlockingConnection, channel: BlockingChannel) -> None:
        """Take what was delivered in, in one transaction, and only then acknowledge it."""
        deliveries = [each.delivery for each in self._waiting]
        del deliveries[together(deliveries, TOGETHER_MAX) :]
        if not self._again(connection, partial(self._take, deliveries)):
            return
        taken = [self._waiting.popleft() for _ in deliveries]
        channel.basic_ack(taken[-1].tag, multiple=True)
        if self._progress is not None:
            self._progress(self._counts["records"])

    def _take(self, deliveries: list[Delivery]) -> None:
        received = self._intake.take(deliveries)
        refused = sum(len(delivery.refused) for delivery in deliveries)
        self._counts.update(totals(received), records=len(deliveries), undecodable=refused, transactions=1)

    def _tick(self) -> None:
        self._counts.update(totals(self._intake.tick()))

    def _again(self, connection: pika.BlockingConnection, work: Callable[[], None]) -> bool:
        """Do something in the ledger, again as long as it fails for what will pass; whether it was done."""
        attempts = 0
        while not self._stopping.is_set():
            try:
                work()
            except LedgerError as error:
                if not error.retryable:
                    raise
                self._problems.tell(str(error))
            else:
                return True
            attempts += 1
            # Meanwhile the broker hears that we are alive.
            connection.sleep(_backoff(attempts))
        return False

    def _delivered(self, _channel: object, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        headers = _headers(properties)
        name = sha256(body).hexdigest()[:32]
        self._waiting.append(_Delivered(method.delivery_tag, self._intake.read(body, headers, name)))

    def _was_cancelled(self, _frame: object) -> None:
        self._cancelled = True


def _headers(properties: pika.BasicProperties) -> list[tuple[str, str]]:
    """The headers as the decoders know them."""
    headers = [("content-type", properties.content_type)] if properties.content_type else []
    for name, value in (properties.headers or {}).items():
        known = name if name == "sequence" else _ATTRIBUTE.sub("ce_", name)
        if known != name or name == "sequence":
            headers.append((known, str(value)))
    return headers


def _numbered(decode: Decoder) -> Decoder:
    """A decoder that takes the sequence from a header, where the message itself has none."""

    def read(body: bytes, headers: Headers = (), source: str = "") -> list[Decoded]:
        given = list(headers)
        found = decode(body, given, source)
        sequence = dict(given).get("sequence")
        if sequence is None or len(found) != 1 or isinstance(found[0], UndecodableMessage):
            return found
        if found[0].sequence is not None:
            return found
        if not str(sequence).isdecimal():
            raise UndecodableMessage("sequence", f"the header {shown(sequence)} is no integer", "Count 1, 2, 3 …")
        return [replace(found[0], sequence=int(sequence))]

    return read


def _backoff(attempts: int) -> float:
    longest = min(_BACKOFF_SECONDS * 2**attempts, _BACKOFF_SECONDS_MAX)
    return random.uniform(longest / 2, longest)  # noqa: S311  (jitter is no secret)


def _refused(queue: str, error: Exception) -> BrokerUnavailable:
    return BrokerUnavailable(f"RabbitMQ, queue {queue!r}: {_said(error)}.", "Correct the URL, the rights or the queue.")


def _said(error: Exception) -> str:
    # While it connects, pika wraps what happened, and says nothing itself.
    inner = getattr(error, "exception", None) or next(iter(error.args), None)
    if isinstance(inner, Exception):
        return _said(inner)
    return str(getattr(error, "reply_text", "") or error or type(error).__name__).rstrip(".")
