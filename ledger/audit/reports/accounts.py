"""Reports on balances: the statement of one account, and the trial balance of all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final

from pydantic import Field

from ledger.audit.reports.form import Definition, Pin, Rows, Tally, columns, decimal
from ledger.core.canonical import utc_text
from ledger.core.errors import CorruptLog
from ledger.core.fields import AccountId, Frozen, Moment
from ledger.core.money import Money
from ledger.storage import asof
from ledger.storage.database import Connection
from ledger.storage.statement import statement

_NO_ENTRY: Final = (None,) * 7
"""What the first and the last line of a statement have no value for."""


class StatementQuestion(Frozen):
    """Which account, and which period of effective time."""

    account: AccountId = Field(description="the account")
    since: Moment = Field(description="effective at or after")
    until: Moment = Field(description="effective before")


def account_statement(connection: Connection, pin: Pin, asked: StatementQuestion, tally: Tally) -> Rows:
    """What an account had, each entry with the balance after it, and what it had then: looked up, and compared."""
    made = statement(
        connection, lambda: nullcontext(connection), asked.account, asked.since, asked.until, known_as_of=pin.position
    )
    opening, closing = made.opening.posted, made.closing.posted
    asset = opening.asset
    tally.scaled(asset, opening.scale)
    yield ("opening", utc_text(asked.since), *_NO_ENTRY, _plain(opening), asset, None)
    try:
        for line in made:
            event = line.event
            assert event.amount is not None
            debits = event.amount if event.direction == "debit" else 0
            tally.add(asset, debits, event.amount - debits, 1)
            times = utc_text(event.effective_at), utc_text(event.recorded_at)
            place = (event.transaction_id, event.type, event.stream, event.version, event.direction)
            yield ("entry", *times, *place, _plain(line.amount), _plain(line.balance), asset, line.reference)
    except CorruptLog as corrupt:
        # A report says so itself: what it showed until then is what there is to look into.
        tally.findings += 1
        tally.totals["problem"] = corrupt.problem
    yield ("closing", utc_text(asked.until), *_NO_ENTRY, _plain(closing), asset, None)
    tally.totals.update(opening=_plain(opening), closing=_plain(closing))


def _plain(money: Money) -> str:
    return decimal(money.minor, money.asset, money.scale)


STATEMENT: Final = Definition(
    "account-statement",
    1,
    "One account in a period: opening, each entry with the balance after it, and closing, compared with their sum.",
    StatementQuestion,
    columns(
        "line effective_at:time recorded_at:time transaction_id event stream version:integer direction amount:amount"
        " balance:amount asset reference"
    ),
    account_statement,
)


class TrialQuestion(Frozen):
    """When."""

    effective_as_of: Moment | None = Field(None, description="of what is effective up to then; of all, unless said")


def trial_balance(connection: Connection, pin: Pin, asked: TrialQuestion, tally: Tally) -> Rows:
    """Posted debits and credits of all accounts together, by asset and type of account."""
    made = asof.trial_balance(connection, asked.effective_as_of, pin.position)
    for line in made.lines:
        tally.scaled(line.asset, line.debits.scale)
        tally.add(line.asset, line.debits.minor, line.credits.minor)
        tally.count("accounts", line.accounts)
        yield (line.asset, line.account_type, line.accounts, _plain(line.debits), _plain(line.credits))
    tally.findings += sum(net.minor != 0 for net in made.difference.values())


TRIAL: Final = Definition(
    "trial-balance",
    1,
    "Posted debits and credits of all accounts, by asset and type: in each asset they are equal.",
    TrialQuestion,
    columns("asset account_type accounts:integer debits:amount credits:amount"),
    trial_balance,
)

REPORTS: Final[Sequence[Definition]] = (STATEMENT, TRIAL)
