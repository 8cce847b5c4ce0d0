"""The commands that post: define-asset, open, deposit, withdraw, transfer, post, reverse."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ledger.application import Ledger
from ledger.batch import Done
from ledger.cli.lines import post_lines
from ledger.cli.options import CommandContext, MachineFiles, Target, command, opened, read_machines
from ledger.cli.output import answer, console, escape, print_error, row, table
from ledger.core.commands import (
    AccountType,
    Command,
    DefineAsset,
    Deposit,
    Direction,
    Entry,
    OpenAccount,
    Post,
    Reverse,
    Transfer,
    Withdraw,
    build,
)
from ledger.core.errors import InvalidCommand, Rejected
from ledger.wire import done_json, states_of

Amount = Annotated[list[str], typer.Argument(help="Such as 12.50 USD.", metavar="AMOUNT", show_default=False)]
Part = Annotated[
    list[str] | None, typer.Argument(help="Such as 12.50 USD; without: all that is left.", metavar="[AMOUNT]")
]
Account = Annotated[str, typer.Argument(help="The account's id.", metavar="ACCOUNT", show_default=False)]
Limit = Annotated[str | None, typer.Option(help="Of the available balance; none means unlimited.", metavar="AMOUNT")]
Reason = Annotated[str | None, typer.Option(help="Why; it goes on record.", metavar="TEXT")]


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
    stripes: Annotated[
        int, typer.Option(help="Streams among which transactions choose, so that they do not wait for each other.")
    ] = 1,
) -> int:
    """Open an account; --metadata describes it."""
    asked = {"account": account, "asset": asset, "account_type": type, "stripes": stripes}
    limits = {"min_balance": min_balance, "max_balance": max_balance}
    opening = build(OpenAccount, **asked, **limits, **context.values())
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
    machines: MachineFiles = None,
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
    with opened(target.settings, machines=read_machines(machines)) as ledger:
        return post_lines(ledger, sys.stdin.fileno(), dry_run=context.dry_run)


@command
def reverse(
    transaction: Annotated[str, typer.Argument(help="Its id.", metavar="TRANSACTION", show_default=False)],
    context: CommandContext,
    target: Target,
    amount: Part = None,
    reason: Reason = None,
    force: Annotated[
        bool, typer.Option("--force", help="Beyond the limits of the accounts as well; it goes on record.")
    ] = False,
) -> int:
    """Post the opposite of a transaction: all that is not yet reversed of it, or a part in exact proportion."""
    part = " ".join(amount) if amount else None
    asked = {"transaction_id": transaction, "amount": part, "reason": reason, "force": force}
    return carry_out(build(Reverse, **asked, **context.values()), context, target)


def carry_out(wanted: Command, context: CommandContext, target: Target) -> int:
    """Have one command done, and say what became of it."""
    with opened(target.settings) as ledger:
        return carry_out_on(ledger, wanted, context, target)


def carry_out_on(ledger: Ledger, wanted: Command, context: CommandContext, target: Target) -> int:
    """Have one command done on a ledger that is open, and say what became of it."""
    (outcome,) = ledger.handle([wanted], dry_run=context.dry_run)
    if isinstance(outcome, Rejected):
        print_error(outcome, as_json=target.as_json)
        return 1
    if target.as_json:
        answer(True, done_json(outcome))
    else:
        show(outcome)
    return 0


def show(done: Done) -> None:
    """Say what a command did, and where everything that it touched stood right after."""
    out = console()
    if done.dry_run:
        out.print("[yellow]dry run[/]: this would happen, nothing was written")
    elif done.replayed:
        out.print("[yellow]replayed[/]: done before under this key, nothing was written")
    else:
        out.print("[green]done[/]")
    if not done.dry_run:
        out.print(f"{'hold' if done.transaction.kind == 'hold' else 'transaction'} {done.transaction_id}")
    for stream, state in states_of(done).items():
        out.print(f"{escape(stream.removeprefix('#'))} is {state}")
    if done.balances:
        amounts = ["posted", "available"]
        if any(balance.pending.minor or balance.posted != balance.available for balance in done.balances.values()):
            amounts.insert(1, "pending")
        made = table("account", "version", *amounts, right=("version", *amounts))
        for account, balance in done.balances.items():
            row(made, account, balance.version, *(getattr(balance, amount) for amount in amounts))
        out.print(made)


def _entries(direction: Direction, texts: list[str] | None) -> list[Entry]:
    entries = []
    for text in texts or ():
        account, equals, amount = text.partition("=")
        if not equals:
            raise InvalidCommand(direction.value, f'{text!r} is not ACCOUNT=AMOUNT, such as alice="5 USD"')
        entries.append(build(Entry, account=account, amount=amount, direction=direction))
    return entries
