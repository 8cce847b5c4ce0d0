"""The commands about holds: hold, capture, release, holds, expire-holds."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Final

import typer
from rich.table import Table
from sqlalchemy import text

from ledger.application import Ledger
from ledger.cli.options import CommandContext, Target, command, opened
from ledger.cli.output import answer, escape, fitting, moment, progress
from ledger.cli.writing import Amount, Part, carry_out, carry_out_on
from ledger.core.commands import Capture, Hold, Release, build
from ledger.core.errors import InvalidCommand
from ledger.storage.queries import HoldLine
from ledger.wire import hold_json

HoldId = Annotated[
    str, typer.Argument(help="The id that `ledger hold` answered with.", metavar="HOLD", show_default=False)
]

_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60}


@command
def hold(
    amount: Amount,
    debit: Annotated[str, typer.Option(help="The account to debit.", metavar="ACCOUNT")],
    credit: Annotated[str, typer.Option(help="The account to credit.", metavar="ACCOUNT")],
    context: CommandContext,
    target: Target,
    expires_at: Annotated[
        str | None, typer.Option(help="When what is left is free again: 2026-01-02T03:04:05Z.", metavar="TIME")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="The same, from now: 90s, 15m, 2h or 7d.", metavar="DURATION")
    ] = None,
) -> int:
    """Set an amount aside: pending on both accounts, and not available any more."""
    values = {"amount": " ".join(amount), "debit": debit, "credit": credit, **context.values()}
    if expires_in is None:
        return carry_out(build(Hold, expires_at=expires_at, **values), context, target)
    if expires_at is not None:
        raise InvalidCommand("hold", "--expires-at and --expires-in say the same; give one of them")
    if context.idempotency_key is not None:
        # Sent again it would be another request: refused here at the first time, and not in the hour of need.
        raise InvalidCommand("hold", "--expires-in is another time at each run; with a key, give --expires-at")
    duration = _duration(expires_in)
    with opened(target.settings) as ledger:
        return carry_out_on(ledger, build(Hold, expires_at=_later(ledger, duration), **values), context, target)


@command
def capture(
    hold: HoldId,
    context: CommandContext,
    target: Target,
    amount: Part = None,
    final: Annotated[bool, typer.Option("--final", help="Release the rest.")] = False,
) -> int:
    """Post all that is left of a hold, or a part of it."""
    part = " ".join(amount) if amount else None
    return carry_out(build(Capture, hold=hold, amount=part, final=final, **context.values()), context, target)


@command
def release(hold: HoldId, context: CommandContext, target: Target, amount: Part = None) -> int:
    """Give all that is left of a hold free again, or a part of it."""
    part = " ".join(amount) if amount else None
    return carry_out(build(Release, hold=hold, amount=part, **context.values()), context, target)


@command
def holds(
    account: Annotated[str, typer.Argument(help="The account's id.", metavar="ACCOUNT", show_default=False)],
    target: Target,
    status: Annotated[
        str | None, typer.Option(help="Only those: open, captured, released or expired.", metavar="STATUS")
    ] = None,
    after: Annotated[str | None, typer.Option(help="Those after this id.", metavar="HOLD")] = None,
    limit: Annotated[int, typer.Option(help="Rows at most, up to 1,000.")] = 100,
) -> int:
    """List the holds on an account, in order of their ids."""
    with opened(target.settings) as ledger:
        found = ledger.holds(account, status=status, after=after, limit=limit)
    made = _shown(found) if found else "no holds" if status is None else f"no holds that are {status}"
    more = [f"[dim]more: --after {found[-1].hold}[/]"] if len(found) == limit else []
    answer(target.as_json, {"account": account, "holds": [hold_json(each) for each in found]}, made, *more)
    return 0


@command
def expire_holds(target: Target) -> int:
    """
    Put on record that holds whose time is over have expired.

    Safe to interrupt, to run again, and to run twice at once.  No rule depends on it: what is due is
    expired as well before anything else is decided about its accounts.
    """
    with opened(target.settings) as ledger, progress("holds", None) as watch:
        expired = ledger.expire_holds(progress=watch)
    answer(target.as_json, {"expired": expired}, f"expired {expired:,} {'hold' if expired == 1 else 'holds'}")
    return 0


def _shown(found: list[HoldLine]) -> Table:
    shown = []
    for each in found:
        expires = "" if each.expires_at is None else moment(each.expires_at)
        shown.append({**each._asdict(), "side": each.direction, "expires (UTC)": expires})
    few = ("hold", "state", "left")
    some = ("hold", "side", "state", "amount", "left")
    more = ("hold", "side", "state", "amount", "captured", "left", "expires (UTC)")
    return fitting(shown, more, some, few, right=("amount", "captured", "left"))


def _duration(written: str) -> timedelta:
    read = _DURATION.fullmatch(written)
    if read is None:
        raise InvalidCommand("--expires-in", f"{escape(written)!r} is not a duration such as 90s, 15m, 2h or 7d")
    return timedelta(seconds=int(read[1]) * _SECONDS[read[2]])


def _later(ledger: Ledger, duration: timedelta) -> datetime:
    """So much later than now, by the clock that will judge it."""
    with ledger.engine.connect() as connection:
        now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    try:
        return now + duration
    except OverflowError:
        raise InvalidCommand("--expires-in", "no calendar reaches that far") from None
