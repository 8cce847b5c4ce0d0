"""The commands that rule what may still be posted: freeze, unfreeze, close-account, change-account, close-period."""

from __future__ import annotations

from typing import Annotated

import typer

from ledger.application import Ledger
from ledger.batch import Done
from ledger.cli.options import CommandContext, Target, command, opened
from ledger.cli.output import answer, console, print_error, row, table
from ledger.cli.writing import Account, Reason, carry_out, carry_out_on, show
from ledger.core.codec import event_from
from ledger.core.commands import UNLIMITED, ChangeAccount, CloseAccount, ClosePeriod, Freeze, Unfreeze, build
from ledger.core.errors import Rejected
from ledger.core.events import PeriodClosed
from ledger.core.money import Money
from ledger.wire import done_json

NewLimit = Annotated[
    str | None,
    typer.Option(help="Of the available balance; `unlimited` takes it away.", metavar="AMOUNT"),
]


@command
def freeze(account: Account, context: CommandContext, target: Target, reason: Reason = None) -> int:
    """Refuse entries on an account from now on; reversals, releases and expiries go on."""
    return carry_out(build(Freeze, account=account, reason=reason, **context.values()), context, target)


@command
def unfreeze(account: Account, context: CommandContext, target: Target, reason: Reason = None) -> int:
    """Let entries on an account again."""
    return carry_out(build(Unfreeze, account=account, reason=reason, **context.values()), context, target)


@command
def close_account(account: Account, context: CommandContext, target: Target, reason: Reason = None) -> int:
    """Close an account for good; only at zero, and with nothing held."""
    return carry_out(build(CloseAccount, account=account, reason=reason, **context.values()), context, target)


@command
def change_account(
    account: Account,
    context: CommandContext,
    target: Target,
    min_balance: NewLimit = None,
    max_balance: NewLimit = None,
    stripes: Annotated[
        int | None, typer.Option(help="Streams among which transactions choose from now on; those there are stay.")
    ] = None,
    reason: Reason = None,
) -> int:
    """Change an account's limits, its stripes, or with --metadata all of what describes it; the rest stays as it is."""
    values = context.values()
    if context.metadata is None:
        # None given is none changed; an empty one would take all of it away.
        del values["metadata"]
    with opened(target.settings) as ledger:
        limits = {
            name: _with_asset(ledger, account, limit)
            for name, limit in {"min_balance": min_balance, "max_balance": max_balance}.items()
        }
        wanted = build(ChangeAccount, account=account, stripes=stripes, reason=reason, **limits, **values)
        return carry_out_on(ledger, wanted, context, target)


@command
def close_period(
    until: Annotated[
        str, typer.Argument(help="Such as 2026-01-01T00:00:00Z; at least ten minutes ago.", metavar="UNTIL")
    ],
    context: CommandContext,
    target: Target,
    reason: Reason = None,
) -> int:
    """Let nothing be posted any more that is effective before UNTIL; records the trial balance as of then."""
    closing = build(ClosePeriod, until=until, reason=reason, **context.values())
    with opened(target.settings) as ledger:
        (outcome,) = ledger.handle([closing], dry_run=context.dry_run)
        scales = {line.asset: line.debits.scale for line in ledger.trial_balance().lines}
    if isinstance(outcome, Rejected):
        print_error(outcome, as_json=target.as_json)
        return 1
    lines = _trial_balance(outcome, scales)
    if target.as_json:
        plain = [dict(zip(("asset", "type", "debits", "credits"), map(str, line), strict=True)) for line in lines]
        answer(True, {**done_json(outcome), "trial_balance": plain})
        return 0
    show(outcome)
    made = table("asset", "type", "debits", "credits", right=("debits", "credits"))
    for line in lines:
        row(made, *line)
    console().print(made if lines else "nothing was posted before")
    return 0


def _trial_balance(done: Done, scales: dict[str, int]) -> list[tuple[str, str, Money, Money]]:
    """The trial balance that a closing put on record."""
    closed = next(event for event in map(event_from, done.events) if isinstance(event, PeriodClosed))
    return [
        (asset, kind, Money(int(debits), asset, scales[asset]), Money(int(credits), asset, scales[asset]))
        for asset, kind, debits, credits in closed.trial_balance
    ]


def _with_asset(ledger: Ledger, account: str, limit: str | None) -> str | None:
    """A limit may be written without repeating the account's asset, as it may where the account is opened."""
    if limit is None or limit == UNLIMITED or " " in limit:
        return limit
    return f"{limit} {ledger.account(account).terms.asset}"
