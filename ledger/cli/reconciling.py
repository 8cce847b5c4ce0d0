"""The commands that compare an account with a bank's statement, and decide about what no rule could match."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import RenderableType

from ledger.audit.csv_statement import CsvProfile, parse_columns, read_profile
from ledger.audit.reconciled import Reconciliation, body
from ledger.cli.options import Target, command, opened, unless_followed
from ledger.cli.output import answer, escape, fitting, moment, progress, row, table
from ledger.core.canonical import utc_text
from ledger.core.errors import InvalidCommand
from ledger.core.money import Money
from ledger.storage.reconciliations import OURS, THEIRS, Decision, Item
from ledger.wire import Json

reconcile_app = typer.Typer(
    name="reconcile", help="Compare an account with its bank's statement; decide about what no rule could match."
)

_SHOWN_MAX: Final = 50
"""Lines of each kind that a person is shown; `--json` has all of them."""

_CSV: Final = "If it is CSV"
_WHICH: Final = "Which statement"
_HOW: Final = "How to match"


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvOptions:
    """How a CSV is written, and what it does not say."""

    columns: Annotated[
        str | None,
        typer.Option(
            help="What is in which column: date=Booked,amount=Amount,reference=Ref; also credit_debit, currency,"
            " description.",
            metavar="MEANING=HEADING,…",
            rich_help_panel=_CSV,
        ),
    ] = None
    profile: Annotated[
        Path | None, typer.Option(help="All of this in a TOML file.", metavar="FILE", rich_help_panel=_CSV)
    ] = None
    opening: Annotated[
        str | None, typer.Option(help="The balance before the first entry.", metavar="AMOUNT", rich_help_panel=_CSV)
    ] = None
    closing: Annotated[
        str | None, typer.Option(help="The balance after the last entry.", metavar="AMOUNT", rich_help_panel=_CSV)
    ] = None
    opens_on: Annotated[
        str | None, typer.Option(help="Its first day, if not its first entry's.", metavar="DAY", rich_help_panel=_CSV)
    ] = None
    closes_on: Annotated[
        str | None, typer.Option(help="Its last day, if not its last entry's.", metavar="DAY", rich_help_panel=_CSV)
    ] = None
    date_format: Annotated[str, typer.Option(help="As of strptime.", rich_help_panel=_CSV)] = "%Y-%m-%d"
    decimal: Annotated[
        str, typer.Option(help="What stands before the decimals: point or comma.", rich_help_panel=_CSV)
    ] = "point"
    grouping: Annotated[str, typer.Option(help="What stands between thousands.", rich_help_panel=_CSV)] = ""
    delimiter: Annotated[str, typer.Option(help="What stands between columns.", rich_help_panel=_CSV)] = ","
    encoding: Annotated[str, typer.Option(help="How its characters are encoded.", rich_help_panel=_CSV)] = "utf-8"
    skip_lines: Annotated[int, typer.Option(help="Lines before the headings.", rich_help_panel=_CSV)] = 0

    def read(self) -> CsvProfile | None:
        """The profile that is declared, if one is."""
        if self.profile is not None:
            return read_profile(self.profile)
        if self.columns is None:
            return None
        return CsvProfile(
            columns=parse_columns(self.columns),
            date_format=self.date_format,
            decimal=self.decimal,
            grouping=self.grouping,
            delimiter=self.delimiter,
            encoding=self.encoding,
            skip_lines=self.skip_lines,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """Who decides what about which entries."""

    account: Annotated[str, typer.Option(help="The account.", show_default=False)]
    reason: Annotated[str, typer.Option(help="Why.", show_default=False)]
    actor: Annotated[str | None, typer.Option(help="Who decides; you, unless it is said.", show_default=False)] = None

    @property
    def who(self) -> str:
        """Who decides."""
        return self.actor or getpass.getuser()


Ours = Annotated[
    list[str] | None,
    typer.Option(help="An entry of ours, as reports name it; repeatable.", metavar="STREAM#VERSION"),
]
Theirs = Annotated[
    list[str] | None,
    typer.Option(help="An entry of a statement; repeatable.", metavar="STATEMENT#NUMBER"),
]


@command
def reconcile(
    target: Target,
    csv: CsvOptions,
    account: Annotated[str | None, typer.Option(help="The account.", show_default=False)] = None,
    statement: Annotated[
        Path | None, typer.Option(help="The bank's file: camt.053, or CSV.", metavar="FILE", show_default=False)
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="csv or camt.053, if it cannot be seen.", rich_help_panel=_WHICH)
    ] = None,
    statement_id: Annotated[
        str | None, typer.Option(help="Which of several in the file; what a CSV is to be called.", metavar="ID",
                                 rich_help_panel=_WHICH)
    ] = None,
    iban: Annotated[
        str | None, typer.Option(help="The account's number at its bank, if its metadata `iban` does not say it.",
                                 rich_help_panel=_WHICH)
    ] = None,
    sides: Annotated[
        str | None, typer.Option(help="mirrored: the bank's credit is our debit; same: our credit. Default: mirrored"
                                 " for assets and expenses, same for the others.", rich_help_panel=_HOW)
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="The day on which the first reconciliation begins.", metavar="DAY",
                                 rich_help_panel=_HOW)
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="What of our transactions a statement may refer to: reference (default),"
                                       " idempotency_key, transaction_id, metadata:KEY; repeatable.", metavar="NAME",
                                       rich_help_panel=_HOW)
    ] = None,
    days: Annotated[
        int | None, typer.Option(help="Days between an entry of ours and theirs. Default: 3.", rich_help_panel=_HOW)
    ] = None,
    several: Annotated[
        int | None, typer.Option(help="Entries that may come to one of the other side. Default: 5.",
                                 rich_help_panel=_HOW)
    ] = None,
    pin: Annotated[
        str | None, typer.Option(help="The report as it was, by its pin and its rules.", rich_help_panel=_HOW)
    ] = None,
    actor: Annotated[str | None, typer.Option(help="Who asks; you, unless it is said.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be matched; write nothing.")] = False,
) -> int:  # fmt: skip
    """
    Compare an account with a bank's statement: keep it, match what is the same, and report what is left.

    Exit codes: 0 reconciled; 1 differences remain; 2 the file or the question is broken.
    """
    if account is None or statement is None:
        raise InvalidCommand("usage", "say which account and which file: --account A --statement FILE")
    with opened(target.settings) as ledger, progress("entries", None) as watch:
        report = ledger.reconcile(
            account,
            statement,
            actor=actor or getpass.getuser(),
            format=format,
            profile=csv.read(),
            opening=csv.opening,
            closing=csv.closing,
            opens_on=_day("opens_on", csv.opens_on),
            closes_on=_day("closes_on", csv.closes_on),
            statement_id=statement_id,
            account_number=iban,
            sides=sides,
            since=_day("since", since),
            names=by or None,
            days=days,
            several=several,
            pin=pin,
            dry_run=dry_run,
            progress=watch,
        )
    plain = {
        **body(report),
        "sha256": report.sha256,
        "found": report.found,
        "left_out": report.left_out,
        "recognised": report.recognised,
        "dry_run": dry_run,
    }
    answer(target.as_json, plain, *_shown(report, dry_run=dry_run))
    return 0 if report.reconciled else 1


@command
def match(target: Target, deciding: Deciding, ours: Ours = None, theirs: Theirs = None) -> int:
    """Say that entries are the same money; they come to the same amount."""
    with opened(target.settings) as ledger:
        desk = ledger.reconciliation(deciding.account)
        made = desk.match(ours or [], theirs or [], actor=deciding.who, reason=deciding.reason)
        _said(target, made, ledger.account(deciding.account).terms.money(made.amount))
    return 0


@command
def unmatch(
    target: Target,
    deciding: Deciding,
    decision: Annotated[int, typer.Option(help="The number of the match.", show_default=False)],
) -> int:
    """Take a match back: its entries are open again, and only a person matches them."""
    with opened(target.settings) as ledger:
        made = ledger.reconciliation(deciding.account).unmatch(decision, actor=deciding.who, reason=deciding.reason)
        _said(target, made, ledger.account(deciding.account).terms.money(made.amount))
    return 0


@command
def note(target: Target, deciding: Deciding, ours: Ours = None, theirs: Theirs = None) -> int:
    """Write something down about entries."""
    with opened(target.settings) as ledger:
        desk = ledger.reconciliation(deciding.account)
        made = desk.note(ours or [], theirs or [], actor=deciding.who, reason=deciding.reason)
        _said(target, made, ledger.account(deciding.account).terms.money(made.amount))
    return 0


@command
def decisions(
    target: Target,
    account: Annotated[str, typer.Option(help="The account.", show_default=False)],
    after: Annotated[int, typer.Option(help="Begin after this number.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="Decisions, at most.", min=1)] = 100,
) -> int:
    """Show what was decided about an account, by whom and why."""
    with opened(target.settings) as ledger:
        found = ledger.reconciliation(account).decisions(after=after, limit=limit)
        money = ledger.account(account).terms.money
    rows = [
        {
            "#": each.number,
            "decision": each.decision,
            "rule": each.rule,
            "amount": money(each.amount),
            OURS: ", ".join(f"{origin}#{number}" for origin, number in each.items[OURS]),
            THEIRS: ", ".join(f"{origin}#{number}" for origin, number in each.items[THEIRS]),
            "actor": each.actor,
            "reason": each.reason or "",
            "when": moment(each.recorded_at),
        }
        for each in found
    ]
    most = ("#", "decision", "amount", OURS, THEIRS, "actor", "reason")
    made = fitting(rows, ("#", "decision", "rule", *most[2:], "when"), most, most[:-1], right=("#", "amount"))
    plain = [_decision_json(each, money(each.amount)) for each in found]
    answer(target.as_json, {"decisions": plain}, made)
    return 0


def _said(target: Target, made: Decision, amount: Money) -> None:
    plain = {"decision": _decision_json(made, amount)}
    answer(target.as_json, plain, f"decision {made.number}: {made.decision} of {amount} by {escape(made.actor)}")


def _decision_json(decision: Decision, amount: Money) -> Json:
    return {
        "number": decision.number,
        "decision": decision.decision,
        "rule": decision.rule,
        "amount": str(amount),
        "ours": [f"{origin}#{number}" for origin, number in decision.items[OURS]],
        "theirs": [f"{origin}#{number}" for origin, number in decision.items[THEIRS]],
        "actor": decision.actor,
        "reason": decision.reason,
        "recorded_at": utc_text(decision.recorded_at),
    }


def _day(name: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidCommand(name, f"{text!r} is not a day: 2026-01-31") from None


def _shown(report: Reconciliation, *, dry_run: bool) -> Iterator[RenderableType]:
    money = report.currency.money
    again = " (here before)" if report.recognised else ""
    would = "would be found" if dry_run else "found"
    yield (
        f"{escape(report.account)} and statement {escape(report.statement_id)}, {report.opens_on} to"
        f" {report.closes_on}, sides {report.sides}{again}"
    )
    yield f"matched {len(report.matched):,}, of which {report.found:,} {would} now; pin {report.pin}"
    yield from _matched(report)
    yield from _left("only ours", report, report.only_ours)
    yield from _left("only theirs", report, report.only_theirs)
    for each in report.differing[:_SHOWN_MAX]:
        ours, theirs = (", ".join(item.name for item in side) for side in (each.ours, each.theirs))
        both = f"{escape(ours)} and {escape(theirs)}"
        yield f"amount differs by {money(each.difference)}: {escape(each.reference)}, {both}"
    for way in report.ambiguous[:_SHOWN_MAX]:
        names = ", ".join(item.name for item in way.candidates)
        yield f"more than one way ({way.rule}): {escape(way.item.name)} and {escape(names)}"
    for item in report.given_up[:_SHOWN_MAX]:
        yield f"too many near it to seek several that come to it: {escape(item.name)}"
    for gap in report.gaps:
        yield (
            f"statement {escape(gap.statement_id)} opens with {money(gap.opening)}, and before it are"
            f" {money(gap.before)}: a statement is missing, or the ledger began otherwise"
        )
    yield from _equation(report)


def _matched(report: Reconciliation) -> Iterator[RenderableType]:
    if not report.matched:
        return
    made = table("matched", "by", "amount", "ours", "theirs", right=("matched", "amount"))
    for each in report.matched[:_SHOWN_MAX]:
        amount = report.currency.money(each.amount)
        row(made, each.decision, each.rule, amount, ", ".join(each.ours), ", ".join(each.theirs))
    yield made
    yield from _more(len(report.matched))


def _left(title: str, report: Reconciliation, items: Sequence[Item]) -> Iterator[RenderableType]:
    if not items:
        return
    made = table(title, "day", "days", "amount", "reference", right=("days", "amount"))
    for item in items[:_SHOWN_MAX]:
        later = " (matched later)" if item.later else ""
        reference = (item.names[0] if item.names else item.description) + later
        row(made, item.name, item.day, report.age(item), report.currency.money(item.amount), reference)
    yield made
    yield from _more(len(items))
    ages = report.ages(items).items()
    told = "; ".join(f"{name}: {count} of {report.currency.money(amount)}" for name, (count, amount) in ages if count)
    yield f"{title} by age: {told}"


def _more(count: int) -> Iterator[str]:
    if count > _SHOWN_MAX:
        yield f"… and {count - _SHOWN_MAX:,} more: --json"


def _equation(report: Reconciliation) -> Iterator[RenderableType]:
    made = table("proof", "amount", right=("amount",))
    for term, amount in report.equation:
        row(made, term, report.currency.money(amount))
    row(made, "closing balance of the statement", report.currency.money(report.closing))
    yield made
    if not report.proved:
        yield "[red]the equation does not hold[/]: run `ledger verify`"
    yield "[green]reconciled[/]" if report.reconciled else "[yellow]differences remain[/]"


reconcile_app.callback(invoke_without_command=True)(unless_followed(reconcile))
reconcile_app.command("match")(match)
reconcile_app.command("unmatch")(unmatch)
reconcile_app.command("note")(note)
reconcile_app.command("decisions")(decisions)
