"""The commands that write: define-asset, open, deposit, withdraw, transfer, post."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ledger.batch import Done
from ledger.cli.lines import post_lines
from ledger.cli.options import CommandContext, Target, command, opened
from ledger.cli.output import answer, console, print_error, row, table
from ledger.core.commands import (
    AccountType,
    Command,
    DefineAsset,
    Deposit,
    Direction,
    Entry,
    OpenAccount,
    Post,
    Transfer,
    Withdraw,
    build,
)
from ledger.core.errors import InvalidCommand, Rejected
from ledger.wire import done_json

Amount = Annotated[list[str], typer.Argument(help="Such as 12.50 USD.", metavar="AMOUNT", show_default=False)]
Account = Annotated[str, typer.Argument(help="The account's id.", metavar="ACCOUNT", show_default=False)]
Limit = Annotated[str | None, typer.Option(help="Of the available balance; none means unlimited.", metavar="AMOUNT")]


@command
def define_asset(
    asset: Annotated[str, typer.Argument(help="A code in capitals, such as BTC.", metavar="ASSET")],
    scale: Annotated[int, typer.Option(help="Decimal places, 0 to 18; they never change.")],
    context: CommandContext,
    target: Target,
) -> int:
    """Define something that can be counted.  Currencies of ISO 4217 are known already."""
    return carry_out(build(DefineAsset, asset=asset, scale=scale, **context.values()), context, target)


@command
def open_account(
    account: Account,
    asset: Annotated[str, typer.Option(help="What it holds, such as USD.")],
    type: Annotated[AccountType, typer.Option(help="Assets and expenses grow by debits, the others by credits.")],
    context: CommandContext,
    target: Target,
    min_balance: Limit = None,
    max_balance: Limit = None,
) -> int:
    """Open an account; --metadata describes it."""
    limits = {"min_balance": min_balance, "max_balance": max_balance}
    opening = build(OpenAccount, account=account, asset=asset, account_type=type, **limits, **context.values())
    return carry_out(opening, context, target)


@command
def deposit(
    account: Account,
    amount: Amount,
    against: Annotated[str, typer.Option(help="The account on the other side.", metavar="ACCOUNT")],
    context: CommandContext,
    target: Target,
) -> int:
    """Raise an account in its normal direction."""
    values = {"account": account, "amount": " ".join(amount), "against": against}
    return carry_out(build(Deposit, **values, **context.values()), context, target)


@command
def withdraw(
    account: Account,
    amount: Amount,
    against: Annotated[str, typer.Option(help="The account on the other side.", metavar="ACCOUNT")],
    context: CommandContext,
    target: Target,
) -> int:
    """Lower an account in its normal direction."""
    values = {"account": account, "amount": " ".join(amount), "against": against}
    return carry_out(build(Withdraw, **values, **context.values()), context, target)


@command
def transfer(
    amount: Amount,
    debit: Annotated[str, typer.Option(help="The account to debit.", metavar="ACCOUNT")],
    credit: Annotated[str, typer.Option(help="The account to credit.", metavar="ACCOUNT")],
    context: CommandContext,
    target: Target,
) -> int:
    """Debit one account and credit another."""
    values = {"amount": " ".join(amount), "debit": debit, "credit": credit}
    return carry_out(build(Transfer, **values, **context.values()), context, target)


@command
def post(
    context: CommandContext,
    target: Target,
    source: Annotated[
        str | None,
        typer.Argument(help="`-` reads JSON lines of any command and answers each with one.", metavar="[-]"),
    ] = None,
    debit: Annotated[
        list[str] | None, typer.Option(help='Such as world="5 USD"; repeatable.', metavar="ACCOUNT=AMOUNT")
    ] = None,
    credit: Annotated[
        list[str] | None, typer.Option(help='Such as alice="5 USD"; repeatable.', metavar="ACCOUNT=AMOUNT")
    ] = None,
) -> int:
    """
    Post a transaction of 2 to 200 entries that balances per asset; or, with `-`, read commands as JSON lines.

    A line is a command such as {"type": "transfer", "amount": "5 USD", "debit": "world", "credit": "alice",
    "idempotency_key": "k1"}.  Each is answered by one line, in order, with its number in "line".  A line that is
    rejected or cannot be read is answered with an "error", and the rest go on; the exit code is then 1.  Lines
    are handled up to 1,000 at once, and no later than the reader would have to wait; a dry run is one of each
    such batch by itself.
    """
    entries = [*_entries(Direction.DEBIT, debit), *_entries(Direction.CREDIT, credit)]
    if source is None:
        return carry_out(build(Post, entries=tuple(entries), **context.values()), context, target)
    if source != "-":
        raise InvalidCommand("post", f"{source!r} is not understood; write entries as --debit and --credit, or `-`")
    if entries or any(context.values().values()):
        raise InvalidCommand("post -", "each line brings its own entries, key and context; only --dry-run goes with it")
    if sys.stdin is None:
        raise InvalidCommand("post -", "standard input is closed")
    with opened(target.settings) as ledger:
        return post_lines(ledger, sys.stdin.fileno(), dry_run=context.dry_run)


def carry_out(wanted: Command, context: CommandContext, target: Target) -> int:
    """Have one command done, and say what became of it."""
    with opened(target.settings) as ledger:
        (outcome,) = ledger.handle([wanted], dry_run=context.dry_run)
    if isinstance(outcome, Rejected):
        print_error(outcome, as_json=target.as_json)
        return 1
    if target.as_json:
        answer(True, done_json(outcome))
    else:
        _show(outcome)
    return 0


def _show(done: Done) -> None:
    out = console()
    if done.dry_run:
        out.print("[yellow]dry run[/]: this would happen, nothing was written")
    elif done.replayed:
        out.print("[yellow]replayed[/]: done before under this key, nothing was written")
    else:
        out.print("[green]done[/]")
    if not done.dry_run:
        out.print(f"transaction {done.transaction_id}")
    if done.balances:
        made = table("account", "version", "posted", "available", right=("version", "posted", "available"))
        for account, balance in done.balances.items():
            row(made, account, balance.version, balance.posted, balance.available)
        out.print(made)


def _entries(direction: Direction, texts: list[str] | None) -> list[Entry]:
    entries = []
    for text in texts or ():
        account, equals, amount = text.partition("=")
        if not equals:
            raise InvalidCommand(direction.value, f'{text!r} is not ACCOUNT=AMOUNT, such as alice="5 USD"')
        entries.append(build(Entry, account=account, amount=amount, direction=direction))
    return entries
