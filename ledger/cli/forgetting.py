"""The command that forgets a person: the key of their data is destroyed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ledger.cli.options import Target, command, opened
from ledger.cli.output import answer, escape, moment
from ledger.core.errors import InvalidCommand
from ledger.wire import forgotten_json


@command
def forget(
    subject: Annotated[
        str, typer.Argument(help="As it was given when data was encrypted.", metavar="SUBJECT", show_default=False)
    ],
    actor: Annotated[str, typer.Option(help="Who decides.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why.", show_default=False)],
    target: Target,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> int:
    """
    Destroy the key of a subject: what was encrypted for it is shredded, and can never be read again.

    The log, its hashes and its proofs stay as they are. Backups made before still hold the key.
    """
    if not yes and not _confirmed(subject):
        answer(target.as_json, {"forgotten": None}, "nothing was destroyed")
        return 1
    with opened(target.settings) as ledger:
        forgotten = ledger.personal_data().forget(subject, actor=actor, reason=reason)
    done = "was forgotten before" if forgotten.before else "forgotten"
    said = f"{escape(subject)} {done}: shredded {moment(forgotten.forgotten_at)} UTC by {escape(forgotten.actor)}"
    answer(target.as_json, {"forgotten": forgotten_json(forgotten)}, f"{said} ({escape(forgotten.reason)})")
    return 0


def _confirmed(subject: str) -> bool:
    if not sys.stdin.isatty():
        raise InvalidCommand("--yes", "there is no terminal to ask on: give --yes to destroy a key unasked")
    return typer.confirm(f"Destroy the key of {subject!r}, for ever?", err=True)
