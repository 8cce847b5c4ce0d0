"""The commands about brokers: consume kafka, and where its groups stand."""

from __future__ import annotations

import getpass
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from types import FrameType
from typing import Annotated, Any

import typer

from ledger.cli.options import Target, command, opened
from ledger.cli.ordering import Format, Sources
from ledger.cli.output import answer, complain, moment, progress, quiet, row, table
from ledger.connect.kafka_settings import Protocol, Start, read_config
from ledger.core.canonical import utc_text
from ledger.order.decoders import decoder
from ledger.storage.database import Timeouts

consume_app = typer.Typer(name="consume", help="Take messages in from a broker, exactly once and in order.")

_WHERE = "Kafka"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group of consumers."""

    group: Annotated[str, typer.Option(help="The consumer group.", show_default=False, rich_help_panel=_WHERE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kafka:
    """Which topics, where."""

    bootstrap: Annotated[
        str,
        typer.Option(help="Brokers to ask first.", show_default=False, metavar="HOST:PORT[,…]", rich_help_panel=_WHERE),
    ]
    topic: Annotated[list[str], typer.Option(help="A topic; repeatable.", show_default=False, rich_help_panel=_WHERE)]
    config: Annotated[
        str | None,
        typer.Option(
            help="Settings of librdkafka, such as TLS and SASL: lines of name=value.",
            metavar="FILE",
            rich_help_panel=_WHERE,
        ),
    ] = None

    @property
    def settings(self) -> dict[str, Any]:
        """What the client is told."""
        return {**(read_config(self.config) if self.config else {}), "bootstrap.servers": self.bootstrap}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How records are read."""

    format: Annotated[Format, typer.Option(help="How the messages are written.")] = Format.CLOUDEVENTS
    keep_payloads: Annotated[
        bool,
        typer.Option("--keep-payloads/--no-payloads", help="Keep what took effect, for `ledger inbox replay`."),
    ] = True

    idle_seconds: Annotated[
        float, typer.Option(help="How long this process, if it stands still, may hold others up.")
    ] = 10.0

    @property
    def timeouts(self) -> Timeouts:
        """How long the database waits."""
        return Timeouts(idle_seconds=self.idle_seconds)

    @property
    def keep(self) -> timedelta | None:
        """How long payloads are kept."""
        return None if self.keep_payloads else timedelta(0)


@command
def kafka(
    source: Sources,
    broker: Kafka,
    group: Group,
    reading: Reading,
    target: Target,
    protocol: Annotated[
        Protocol, typer.Option(help="How the members of the group share partitions out.", rich_help_panel=_WHERE)
    ] = Protocol.COOPERATIVE,
    begin: Annotated[
        Start | None,
        typer.Option(
            help="Where to begin in a partition that the group has never read; unless given, it is not read.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    records: Annotated[int, typer.Option(help="Records of a partition in one transaction, at most.")] = 500,
    workers: Annotated[int, typer.Option(help="Partitions taken in at the same time.")] = 2,
    to_end: Annotated[bool, typer.Option("--to-end", help="Stop when all there is was read.")] = False,
) -> int:
    """
    Take the messages of Kafka topics in, through rebalances, until told to stop (SIGTERM, Ctrl-C).

    Offsets are kept in the database, in the transaction of the effects.  What cannot be read is a dead letter; what
    a person has to look at is said on standard error.  Exit code 1: a partition waits for a person.
    """
    module = import_module("ledger.kafka")
    quiet("ledger.kafka")
    with opened(target.settings, timeouts=reading.timeouts) as ledger, progress("records", None) as watch:
        consumer = module.Consumer(
            source.of(ledger, reading.keep),
            broker.topic,
            group.group,
            broker.settings,
            protocol=protocol,
            start=begin,
            decode=decoder(reading.format.value),
            records_max=records,
            workers=workers,
            to_end=to_end,
            on_problem=complain,
            progress=watch,
        )
        with until_signalled(consumer.stop):
            consumer.run()
    summed_up(target, consumer.counts)
    return int(bool(consumer.stopped))


@command
def rabbitmq(
    source: Sources,
    reading: Reading,
    target: Target,
    url: Annotated[
        str,
        typer.Option(
            help="amqp://user:password@host:5672/vhost, or amqps://…; or LEDGER_RABBITMQ_URL.",
            envvar="LEDGER_RABBITMQ_URL",
            show_default=False,
            metavar="URL",
        ),
    ],
    queue: Annotated[str, typer.Option(help="The queue.", show_default=False)],
    declare: Annotated[
        bool,
        typer.Option("--declare/--no-declare", help="Make it if it is not there: quorum, single active consumer."),
    ] = True,
    prefetch: Annotated[int, typer.Option(help="Messages on their way, and in one transaction, at most.")] = 500,
) -> int:
    """
    Take the messages of a RabbitMQ queue in until told to stop (SIGTERM, Ctrl-C).

    They are acknowledged once their effects are committed; what is delivered again is dropped, or put in order.
    """
    module = import_module("ledger.rabbitmq")
    quiet("ledger.rabbitmq", "pika")
    with opened(target.settings, timeouts=reading.timeouts) as ledger, progress("messages", None) as watch:
        consumer = module.Consumer(
            source.of(ledger, reading.keep),
            queue,
            url,
            decode=decoder(reading.format.value),
            prefetch=prefetch,
            declare=declare,
            on_problem=complain,
            progress=watch,
        )
        with until_signalled(consumer.stop):
            consumer.run()
    summed_up(target, consumer.counts)
    return 0


@command
def show_offsets(group: Group, target: Target) -> int:
    """Show where a group stands in each partition, and who reads it."""
    with opened(target.settings) as ledger:
        found = ledger.consumer_offsets(group.group)
    numbers = ("partition", "next offset", "epoch")
    made = table("topic", *numbers, "owner", "moved", right=numbers)
    for each in found:
        next_offset = "-" if each.next_offset is None else each.next_offset
        row(made, each.topic, each.partition, next_offset, each.epoch, each.owner, moment(each.changed_at))
    plain = [{**each._asdict(), "changed_at": utc_text(each.changed_at)} for each in found]
    answer(target.as_json, {"group": group.group, "offsets": plain}, made if found else "it has read nothing yet")
    return 0


@command
def seek(
    topic: Annotated[str, typer.Argument(show_default=False)],
    partition: Annotated[int, typer.Argument(show_default=False, min=0)],
    offset: Annotated[int, typer.Argument(show_default=False, min=0)],
    group: Group,
    target: Target,
    actor: Annotated[str | None, typer.Option(help="Who decides; you, unless it is said.", show_default=False)] = None,
) -> int:
    """
    Let a group go on in a partition from an offset that you choose.

    Going back is safe: what was taken in is dropped as a duplicate.  Going on leaves out what lies between.  A consumer
    that is running goes there with the next record of that partition, or when it is started again.
    """
    with opened(target.settings) as ledger:
        ledger.seek_consumer(group.group, topic, partition, offset, actor=actor or getpass.getuser())
    plain = {"group": group.group, "topic": topic, "partition": partition, "next_offset": offset}
    answer(target.as_json, plain, f"{topic}/{partition} goes on at {offset}")
    return 0


@command
def doctor_kafka(source: Sources, broker: Kafka, group: Group, target: Target) -> int:
    """
    Compare what a group has read with what the topics are now; exit code 1 if a person should look at it.

    A partition count that changed sends streams elsewhere; an offset that is gone loses what lay there.
    """
    examine = import_module("ledger.kafka").examine
    quiet("ledger.kafka")
    with opened(target.settings) as ledger:
        findings = examine(ledger, group.group, broker.topic, source.of(ledger), broker.settings)
    answer(target.as_json, {"group": group.group, "findings": findings}, *(findings or ["nothing found"]))
    return 1 if findings else 0


consume_app.command("kafka")(kafka)
consume_app.command("rabbitmq")(rabbitmq)
consume_app.command("offsets")(show_offsets)
consume_app.command("seek")(seek)


def summed_up(target: Target, counts: Mapping[str, int]) -> None:
    """Say what a consumer did."""
    made = table("", "messages", right=("messages",))
    for name, count in counts.items():
        if count:
            row(made, name.replace("_", " "), count)
    answer(target.as_json, dict(counts), made if any(counts.values()) else "nothing came")


@contextmanager
def until_signalled(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first SIGTERM or Ctrl-C end it in good order, and the second one at once."""

    def end(_number: int, _frame: FrameType | None) -> None:
        stop()
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
