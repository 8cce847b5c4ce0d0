"""The commands about the feed: read it, stamp it, publish it, and where its consumers stand."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Final

import typer

from ledger.application import Ledger
from ledger.cli.consuming import until_signalled
from ledger.cli.options import Target, command, opened, unless_followed
from ledger.cli.output import answer, complain, escape, moment, print_json, quiet, row, seen, table
from ledger.connect.kafka_settings import read_config
from ledger.core.events import FeedEntry
from ledger.core.money import Money
from ledger.stamper import EVENTS_MAX, Pause
from ledger.wire import feed_json, standing_json

_PAGE: Final = 1_000

feed_app = typer.Typer(name="feed", help="The order of everything: read it, stamp it, publish it.")
publish_app = typer.Typer(name="publish", help="Publish the feed, in order and at least once.")


@command
def read(
    target: Target,
    after: Annotated[int, typer.Option(help="Begin after this position.", min=0)] = 0,
    limit: Annotated[int | None, typer.Option(help="Entries, at most.", min=1)] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what is stamped later, until told to stop (SIGTERM, Ctrl-C).")
    ] = False,
) -> int:
    """
    Show what happened in order, an entry a line; with --json an object a line.

    What happened and is not in the feed yet waits for a stamper: `ledger feed stamp --follow`.
    """
    pause = Pause(0.05, 1.0)
    with opened(target.settings) as ledger, until_signalled(pause.end):
        show = _shown_by(ledger, as_json=target.as_json)
        while not pause.ended:
            last = after
            for entry in ledger.feed(after=after, limit=_PAGE if limit is None else min(limit, _PAGE)):
                show(entry)
                last = entry.position
            sys.stdout.flush()
            limit = None if limit is None else limit - (last - after)
            if limit == 0:
                break
            if last != after:
                after = last
                pause.over()
            elif not follow or not pause.wait():
                break
    return 0


@command
def stamp(
    target: Target,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what happens later, until told to stop (SIGTERM, Ctrl-C).")
    ] = False,
    limit: Annotated[int, typer.Option(help="Events in one transaction, at most.", min=1)] = EVENTS_MAX,
) -> int:
    """
    Move what happened into the feed, in order.

    Any number may run: one stamps, the others take over when it ends.
    """
    quiet("ledger.feed")
    with opened(target.settings) as ledger:
        before = ledger.feed_head()
        stamper = ledger.stamper(limit=limit, on_problem=complain)
        try:
            with until_signalled(stamper.stop):
                if follow:
                    stamper.run()
                else:
                    while stamper.step():
                        pass
        finally:
            stamper.close()
        head, lease = ledger.feed_head(), ledger.stamping()
    said = f"stamped {head - before}; the feed ends at position {head}"
    if lease is not None and lease.owner != stamper.owner:
        said += f"; {escape(lease.owner)} stamps it"
    answer(target.as_json, {"stamped": head - before, "head": head, "owner": lease and lease.owner}, said)
    return 0


@command
def publish_kafka(
    target: Target,
    bootstrap: Annotated[str, typer.Option(help="Brokers to ask first.", show_default=False, metavar="HOST:PORT[,…]")],
    topic: Annotated[str, typer.Option(help="The topic.", show_default=False)],
    config: Annotated[
        str | None,
        typer.Option(help="Settings of librdkafka, such as TLS and SASL: lines of name=value.", metavar="FILE"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The subscription that keeps how far it is; kafka/TOPIC, unless it is said.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="The source of the messages; the ledger's id, unless it is said.")
    ] = None,
    to_end: Annotated[bool, typer.Option("--to-end", help="Stop when all there is was published.")] = False,
) -> int:
    """
    Publish the feed to a Kafka topic as CloudEvents, until told to stop (SIGTERM, Ctrl-C).

    The key is the stream, the sequence its version.  How far it is, is kept in the database once the topic has it.
    """
    module = import_module("ledger.kafka")
    quiet("ledger.kafka")
    settings: dict[str, Any] = {**(read_config(config) if config else {}), "bootstrap.servers": bootstrap}
    with opened(target.settings) as ledger, module.Publisher(topic, settings) as publisher:
        publishing = module.FeedPublisher(ledger, publisher, name=name, source=source, on_problem=complain)
        with until_signalled(publishing.stop):
            publishing.run(to_end=to_end)
    plain = {"published": publishing.published, "subscription": publishing.name}
    answer(target.as_json, plain, f"published {publishing.published} as {escape(publishing.name)}")
    return 0


@command
def subscriptions(
    target: Target,
    after: Annotated[str, typer.Option(help="Begin after this name.")] = "",
    limit: Annotated[int, typer.Option(help="Subscriptions, at most.", min=1)] = 100,
) -> int:
    """Show how far the consumers of the feed are, and where the feed ends."""
    with opened(target.settings) as ledger:
        head, found = ledger.feed_head(), ledger.subscriptions(after=after, limit=limit)
    made = table("subscription", "position", "behind", "moved by", "moved", right=("position", "behind"))
    for each in found:
        row(made, each.name, each.position, head - each.position, each.owner, moment(each.changed_at))
    plain = {"head": head, "subscriptions": [standing_json(each) for each in found]}
    answer(target.as_json, plain, made if found else "there is none")
    return 0


@command
def seek(
    name: Annotated[str, typer.Argument(show_default=False)],
    position: Annotated[int, typer.Argument(show_default=False, min=0)],
    target: Target,
    actor: Annotated[str | None, typer.Option(help="Who decides; you, unless it is said.", show_default=False)] = None,
) -> int:
    """Let a consumer of the feed go on after a position that you choose: 0 is its beginning."""
    with opened(target.settings) as ledger:
        ledger.seek_subscription(name, position, actor=actor or getpass.getuser())
    plain = {"subscription": name, "position": position}
    answer(target.as_json, plain, f"{escape(name)} goes on after position {position}")
    return 0


def _shown_by(ledger: Ledger, *, as_json: bool) -> Callable[[FeedEntry], None]:
    """How an entry is shown: amounts in whole units, of which the ledger knows the decimal places."""
    scale = cache(ledger.scale)

    def show(entry: FeedEntry) -> None:
        event = entry.event
        places = None if event.asset is None else scale(event.asset)
        if as_json:
            print_json(feed_json(entry, places))
            return
        line = f"{entry.position:>8}  {moment(event.recorded_at)}  {event.stream} {event.version}  {event.type}"
        if event.amount is not None and event.asset is not None and places is not None:
            line += f"  {event.direction} {Money(event.amount, event.asset, places)}"
        sys.stdout.write(f"{seen(line)}  {entry.transaction.kind}\n")

    return show


feed_app.callback(invoke_without_command=True)(unless_followed(read))
feed_app.command("stamp")(stamp)
feed_app.command("subscriptions")(subscriptions)
feed_app.command("seek")(seek)
publish_app.command("kafka")(publish_kafka)
feed_app.add_typer(publish_app)
