"""`ledger simulate`: the incident at any scale, for a naive consumer and for the ledger side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Any, Final

import typer
from sqlalchemy import text

from ledger.application import Ledger
from ledger.cli import picture as pictures
from ledger.cli.options import Target, command, opened
from ledger.cli.output import answer, progress, quiet, row, table
from ledger.connect.kafka_settings import read_config
from ledger.core.errors import InvalidCommand
from ledger.core.money import Money
from ledger.order.cursor import Strict
from ledger.order.disturb import ASSET, FOUR_CAUSES, Cause
from ledger.simulation import Outcome, Plan, simulate
from ledger.storage.database import quoted_name


class Via(StrEnum):
    """How messages get to the consumers, if not directly."""

    KAFKA = "kafka"


ACCOUNTS_MAX: Final = 1_000_000
_WAIT: Final = timedelta(days=365)


@command
def simulate_incident(
    target: Target,
    accounts: Annotated[int, typer.Option(help="47000 is the incident.", min=1, max=ACCOUNTS_MAX)] = 500,
    pairs: Annotated[int, typer.Option(help="Deposits and withdrawals of each account.", min=1, max=1000)] = 2,
    seed: Annotated[int, typer.Option(help="The same seed makes the same messages in the same order.")] = 1,
    cause: Annotated[
        list[Cause] | None, typer.Option(help="What gets them out of order; repeatable. Without: the four.")
    ] = None,
    loss: Annotated[bool, typer.Option("--loss", help="Lose one message in a thousand, too.")] = False,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Deliver one in a hundred twice, too.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw wrong balances over time into this .svg or .png.", show_default=False)
    ] = None,
    via: Annotated[
        Via | None,
        typer.Option(help="Through a topic, while consumers join, leave, freeze and die.", show_default=False),
    ] = None,
    bootstrap: Annotated[
        str | None,
        typer.Option(help="With --via kafka: brokers; without, a mock within this process.", metavar="HOST:PORT[,…]"),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="With --via kafka: settings of librdkafka.", metavar="FILE")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the schema that it ran in.")] = False,
) -> int:
    """
    Let the incident happen at any scale: to a naive consumer, and to the ledger.

    It runs in a schema of its own, which is dropped afterwards.  Exit code 1: the ledger had a wrong account.
    """
    if via is None and (bootstrap or config):
        raise InvalidCommand("--bootstrap", "it goes with --via kafka")
    if via is not None and picture is not None:
        raise InvalidCommand("--picture", "it is not drawn with --via kafka")
    # Through a topic, what happens to its consumers is trouble enough.
    causes = {
        *(cause or (() if via else FOUR_CAUSES)),
        *([Cause.LOSS] if loss else []),
        *([Cause.DUPLICATION] if duplicates else []),
    }
    plan = Plan(accounts, pairs, causes, seed, Strict(_WAIT, max_buffered=max(2 * pairs, 1)))
    if picture is not None:
        pictures.check(picture)
    with _own_schema(target, keep) as ledger, _progress(plan) as watch:
        url = ledger.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        if via is None:
            outcome = simulate(ledger, url, plan, watch)
        else:
            quiet("ledger.kafka")
            told = {**(read_config(config) if config else {}), "bootstrap.servers": bootstrap} if bootstrap else None
            outcome = import_module("ledger.kafka").simulate(ledger, url, plan, watch, told)
        schema = ledger.schema
    if picture is not None:
        _draw(picture, outcome, plan)
    said = [f"kept in schema {schema}"] if keep else []
    answer(target.as_json, _facts(outcome, plan), _table(outcome), *_sentences(outcome), *said)
    return 0 if outcome.sound and not outcome.ledger.accounts_wrong else 1


@contextmanager
def _own_schema(target: Target, keep: bool) -> Iterator[Ledger]:
    """A ledger that is empty and for this alone, beside the one that is meant."""
    settings = target.settings
    with opened(replace(settings, schema=f"{settings.schema}_simulation_{token_hex(3)}")) as ledger:
        try:
            ledger.migrate()
            yield ledger
        finally:
            if not keep:
                with ledger.engine.begin() as connection:
                    connection.execute(text(f"DROP SCHEMA IF EXISTS {quoted_name(ledger.schema)} CASCADE"))


@contextmanager
def _progress(plan: Plan) -> Iterator[Callable[[str, int, int], None]]:
    with progress("accounts and messages", plan.accounts + plan.messages) as watch:

        def tell(what: str, done: int, _: int) -> None:
            if watch is not None:
                watch(done if what == "accounts" else plan.accounts + done)

        yield tell


def _table(outcome: Outcome) -> Any:
    made = table("", "naive consumer", "ledger", right=("naive consumer", "ledger"))
    sides = (outcome.naive, outcome.ledger)
    row(made, "messages delivered", outcome.delivered, outcome.delivered)
    row(made, "refused", *(side.refused for side in sides))
    row(made, "accounts wrong", *(side.accounts_wrong for side in sides))
    row(made, "money wrong", *(_money(side.cents_wrong) for side in sides))
    row(made, "accounts waiting", "-", outcome.ledger.waiting)
    if outcome.samples:
        row(made, "first wrong after", *(_after(side.first_wrong) for side in sides))
        row(made, "noticed by itself after", *(_after(side.noticed) for side in sides))
    row(made, "seconds", *(f"{side.seconds:.1f}" for side in sides))
    row(made, "repair from the log, seconds", f"{outcome.repair_seconds:.2f}", "-")
    return made


def _after(delivered: int | None) -> str:
    return "never" if delivered is None else f"{delivered} messages"


def _money(cents: int) -> str:
    return str(Money(cents, ASSET, 2))


def _sentences(outcome: Outcome) -> list[str]:
    counted = outcome.counters
    noticed = [
        f"{counted.get(name, 0)} {said}"
        for name, said in (("out_of_order", "out of order"), ("duplicates", "twice"), ("gaps_opened", "gaps opened"))
    ]
    said = [f"the inbox counted {', '.join(noticed)}; the naive consumer noticed nothing"]
    if outcome.lost:
        said.append(f"{outcome.lost} messages were lost; {outcome.missing} of them are named by the inbox as missing")
        said.append("one that is lost at the end of its stream is missed when the next one comes")
    mended = f"{outcome.repaired} naive balances were made anew from the ledger's log"
    said.append(f"{mended}, {outcome.naive_after_repair} are wrong now")
    said.append("verify: sound" if outcome.sound else "verify: NOT sound")
    return said


def _facts(outcome: Outcome, plan: Plan) -> dict[str, Any]:
    causes = sorted(cause.value for cause in plan.causes)
    facts = asdict(outcome)
    return {"accounts": plan.accounts, "pairs": plan.pairs, "seed": plan.seed, "causes": causes, **facts}


def _draw(path: Path, outcome: Outcome, plan: Plan) -> None:
    lines = {
        "naive consumer": [(each.delivered, each.naive_accounts) for each in outcome.samples],
        "ledger": [(each.delivered, each.ledger_accounts) for each in outcome.samples],
    }
    try:
        pictures.draw(
            path, f"Wrong balances of {plan.accounts} accounts", "messages delivered", "accounts wrong", lines
        )
    except OSError as error:
        raise InvalidCommand("--picture", f"{path}: {error.strerror or error}") from None
