"""The commands about the service: serve, and the keys that let somebody in."""

from __future__ import annotations

import getpass
import sys
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from ledger.access import EXPIRES_DAYS, EXPIRES_DAYS_MAX, Scope
from ledger.cli.consuming import until_signalled
from ledger.cli.options import Target, command, opened
from ledger.cli.ordering import Policy
from ledger.cli.output import answer, escape, moment, row, table
from ledger.core.errors import InvalidCommand
from ledger.health import Check
from ledger.settings import Limits, ServiceSettings
from ledger.storage.database import Timeouts
from ledger.wire import api_key_json

keys_app = typer.Typer(name="keys", help="API keys of the service: who may do what.")

Actor = Annotated[str | None, typer.Option(help="Who decides; you, unless it is said.", show_default=False)]


@command
def serve(
    policy: Policy,
    target: Target,
    host: Annotated[str | None, typer.Option(help="The address to listen on; 127.0.0.1, unless it is said.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 8321, unless it is said, and 0 for any.", min=0)] = None,
    certificate: Annotated[Path | None, typer.Option(help="For TLS: the certificate chain.", metavar="FILE")] = None,
    private_key: Annotated[Path | None, typer.Option(help="For TLS: its private key.", metavar="FILE")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy in front of it does TLS: listen to others without.")
    ] = False,
    open_to_all: Annotated[
        bool,
        typer.Option("--without-authentication", help="Whoever reaches it may do everything; for this machine only."),
    ] = False,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="Whoever reaches it may read /metrics, without a key.")
    ] = False,
    ready_without: Annotated[
        list[Check] | None, typer.Option(help="A check that /readyz does without; repeatable.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Take the messages of this source in; repeatable.", metavar="NAME"),
    ] = None,
    stamp: Annotated[bool, typer.Option("--stamp/--no-stamp", help="Stamp the feed as well.")] = True,
) -> int:
    """
    Serve the ledger over HTTP, until told to stop (SIGTERM, Ctrl-C): what was accepted is answered first.

    Who asks is known by an API key (`ledger keys create`) or a token.  More settings: LEDGER_SERVE_…, docs/service.md.
    """
    server, app = _module("ledger.service.server"), _module("ledger.service.app")
    settings = _chosen(host, port, certificate, private_key, behind_proxy=behind_proxy, open_to_all=open_to_all)
    settings = replace(
        settings,
        open_metrics=open_metrics or settings.open_metrics,
        ready_without=frozenset(ready_without or settings.ready_without),
    )
    _module("ledger.service.logs").to_standard_error(settings.log_level)
    limits = settings.limits
    # Of each thread that asks or writes one, of the batcher two, of stamper and deadlines one, of watchers three.
    size = limits.readers + limits.auditors + limits.bulks + 7
    with opened(target.settings, timeouts=timeouts_of(limits), pool_size=size) as ledger:
        ledger.check_schema()
        inboxes = [policy.inbox(ledger, name) for name in dict.fromkeys(source or ())]
        serving = server.Server(app.create_app(ledger, settings, inboxes), settings)
        answer(target.as_json, {"listening": serving.address}, f"listening on {serving.address}")
        sys.stdout.flush()
        stamper = ledger.stamper()
        with until_signalled(serving.stop):
            if stamp:
                with stamper:
                    serving.listen()
            else:
                serving.listen()
    return 0


def timeouts_of(limits: Limits) -> Timeouts:
    """What nobody waits for any more ends by then; an answer is given up sooner, each kind after its own time."""
    return Timeouts(statement_seconds=max(limits.several_seconds, limits.audit_seconds))


def _chosen(
    host: str | None,
    port: int | None,
    certificate: Path | None,
    private_key: Path | None,
    *,
    behind_proxy: bool,
    open_to_all: bool,
) -> ServiceSettings:
    """What was given here, over what the environment says."""
    settings = ServiceSettings.read()
    return replace(
        settings,
        host=host or settings.host,
        port=settings.port if port is None else port,
        certificate=certificate or settings.certificate,
        private_key=private_key or settings.private_key,
        behind_proxy=behind_proxy or settings.behind_proxy,
        authentication=not open_to_all,
    )


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InvalidCommand("serve", f"install ledger[service]: {error}") from None


@command
def create(
    actor: Annotated[str, typer.Argument(help="Whose key it is: the actor of what is appended.", show_default=False)],
    scope: Annotated[list[Scope], typer.Option(help="What it is good for; repeatable.", show_default=False)],
    target: Target,
    days: Annotated[int, typer.Option(help="For how long it is good.", min=1, max=EXPIRES_DAYS_MAX)] = EXPIRES_DAYS,
    by: Actor = None,
) -> int:
    """
    Make a key, and show it this once: only its hash is kept.

    An actor has two at most: make the next, use it everywhere, and revoke the one before.
    """
    with opened(target.settings) as ledger:
        made = ledger.api_keys().create(
            actor, scope, created_by=by or getpass.getuser(), expires_in=timedelta(days=days)
        )
    plain = {**api_key_json(made.key), "secret": made.secret}
    lines = (made.secret, f"this is shown once; it is key {made.key.key_id} of {escape(actor)}")
    answer(target.as_json, plain, *lines)
    return 0


@command
def show(
    target: Target,
    after: Annotated[str, typer.Option(help="Begin after this key.")] = "",
    limit: Annotated[int, typer.Option(help="Keys, at most.", min=1)] = 100,
) -> int:
    """Show the keys, those that were revoked too."""
    with opened(target.settings) as ledger:
        found = ledger.api_keys().page(after=after, limit=limit)
    made = table("key", "actor", "scopes", "state", "expires", "made by", whole=("key",))
    for key in found:
        state = "active" if key.active else "expired" if key.revoked_at is None else f"revoked by {key.revoked_by}"
        expires = "never" if key.expires_at is None else moment(key.expires_at)
        row(made, key.key_id, key.actor, " ".join(key.scopes), state, expires, key.created_by)
    answer(target.as_json, {"keys": [api_key_json(key) for key in found]}, made if found else "there is none")
    return 0


@command
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="As `ledger keys list` shows it.", show_default=False)],
    target: Target,
    by: Actor = None,
) -> int:
    """Revoke a key, on record: who has it is refused within seconds."""
    with opened(target.settings) as ledger:
        key = ledger.api_keys().revoke(key_id, actor=by or getpass.getuser())
    answer(target.as_json, api_key_json(key), f"revoked key {key.key_id} of {escape(key.actor)}")
    return 0


keys_app.command("create")(create)
keys_app.command("list")(show)
keys_app.command("revoke")(revoke)
