"""The command that states an account: what it had, what was posted, what it had then; line by line, in flat memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Final

import typer
from pydantic_core import to_json

from ledger.cli.asking import pinned
from ledger.cli.options import Known, Target, command, opened
from ledger.cli.output import console, escape, moment
from ledger.core.fields import MOMENT, checked
from ledger.core.money import Money
from ledger.storage.statement import Statement
from ledger.wire import Json, statement_json, statement_line_json

_AMOUNT_WIDTH: Final = 20
_MOMENT_WIDTH: Final = 19


@command
def statement(
    account: Annotated[str, typer.Argument(help="The account's id.", metavar="ACCOUNT", show_default=False)],
    target: Target,
    as_of: Known,
    since: Annotated[str, typer.Option(help="What is effective from then on.", metavar="TIME", show_default=False)],
    until: Annotated[str, typer.Option(help="… and before then.", metavar="TIME", show_default=False)],
) -> int:
    """
    State an account: its opening balance, a line for each entry in order of its effective time, its closing balance.

    With --json an object a line: what it is of, its lines, and how many they are, once they were found to add up.
    """
    start, end = checked(MOMENT, "--since", since), checked(MOMENT, "--until", until)
    with opened(target.settings) as ledger:
        made = ledger.statement(account, start, end, known_as_of=as_of.known)
        if target.as_json:
            for plain in _plain(made):
                sys.stdout.buffer.write(to_json(plain) + b"\n")
        else:
            _show(made)
    return 0


def _plain(made: Statement) -> Iterator[Json]:
    yield statement_json(made)
    lines = 0
    for line in made:
        yield statement_line_json(line)
        lines += 1
    yield {"lines": lines, "balanced": True}


def _show(made: Statement) -> None:
    out = console()
    out.print(f"[bold]{escape(made.account)}[/]  from {moment(made.since)} until {moment(made.until)} (UTC)")
    out.print(_row("opening", "", made.opening.posted))
    for line in made:
        reference = "" if line.reference is None else f"  {escape(line.reference)}"
        out.print(_row(moment(line.event.effective_at), line.amount, line.balance) + reference)
    out.print(_row("closing", "", made.closing.posted))
    for told in pinned(made.position):
        out.print(told)


def _row(what: str, amount: Money | str, balance: Money) -> str:
    return f"{what:<{_MOMENT_WIDTH}} {amount!s:>{_AMOUNT_WIDTH}} {balance!s:>{_AMOUNT_WIDTH}}"
