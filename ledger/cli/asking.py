"""The commands that ask: balance, history, transaction, accounts, trial-balance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import typer
from rich.table import Table

from ledger.application import Ledger
from ledger.cli.options import AsOf, Target, command, opened, pairs
from ledger.cli.output import answer, console, escape, fitting, moment, print_json, row, table
from ledger.core.book import Balance, Terms
from ledger.core.commands import Direction
from ledger.core.errors import InvalidCommand
from ledger.core.events import Numbers, Recorded, Transaction, account_of
from ledger.personal import Field, State, fields_in, shortened
from ledger.storage.queries import Page, TransactionDetail
from ledger.wire import (
    account_json,
    balance_json,
    detail_json,
    opened_json,
    page_json,
    personal_json,
    terms_json,
    transaction_json,
    trial_balance_json,
)

Limit = Annotated[int, typer.Option(help="Rows at most, up to 1,000.")]
Metadata = Annotated[
    list[str] | None,
    typer.Option(help="Only with KEY=TEXT, or KEY:=JSON for an integer, true or false.", metavar="KEY=VALUE"),
]
Reveal = Annotated[bool, typer.Option("--reveal", help="Decrypt personal data, where its key is there.")]


@command
def balance(
    account: Annotated[str, typer.Argument(help="The account's id.", metavar="ACCOUNT", show_default=False)],
    target: Target,
    as_of: AsOf,
    version: Annotated[int | None, typer.Option(help="As it was right after this version.")] = None,
) -> int:
    """Show an account's balance, now, at a version, or as of two times."""
    with opened(target.settings) as ledger:
        found = ledger.balance(account, version=version, effective_as_of=as_of.effective, known_as_of=as_of.known)
    made = table("account", "version", "posted", "pending", "available", right=("version", *_AMOUNTS))
    row(made, found.account, found.version, found.posted, found.pending, found.available)
    answer(target.as_json, {**balance_json(found), "position": found.position}, made, *pinned(found.position))
    return 0


@command
def history(
    account: Annotated[
        str,
        typer.Argument(help="Its id; or a stream, such as '#payment/p-1'.", metavar="ACCOUNT", show_default=False),
    ],
    target: Target,
    as_of: AsOf,
    after: Annotated[str, typer.Option(help="Forward from this version, oldest first.", metavar="VERSION")] = "0",
    before: Annotated[
        str | None, typer.Option(help="Backward from this version, newest first.", metavar="VERSION")
    ] = None,
    limit: Limit = 100,
    reveal: Reveal = False,
) -> int:
    """Show the events of an account, or of another stream: of a state machine, or of the ledger itself ($ledger)."""
    if after != "0" and before is not None:
        raise InvalidCommand("history", "--after and --before go in opposite directions; give one of them")
    with opened(target.settings) as ledger:
        before_version = None if before is None else _version(before)
        events = ledger.history(
            account,
            after_version=_version(after),
            before_version=before_version,
            limit=limit,
            effective_as_of=as_of.effective,
            known_as_of=as_of.known,
        )
        terms = None if account.startswith(_OURS) else ledger.account(account).terms
        about = {"stream": account} if terms is None else {"account": account, **_about(terms, events.position)}
        plain = {**about, "events": page_json(events, terms), "next": events.next}
        plain |= {"position": events.position}
        personal = _personal(ledger, plain, reveal=reveal)
    if target.as_json:
        print_json({**plain, "personal": personal_json(personal)})
        return 0
    if terms is None:
        _show_stream(account, events)
    else:
        _show_history(account, terms, events)
    _show_personal(events, personal)
    for line in pinned(events.position):
        console().print(line)
    _lead_on(account, events, full=len(events) == limit)
    return 0


@command
def transaction(
    target: Target,
    transaction_id: Annotated[
        str | None,
        typer.Argument(help="Its id; or ACCOUNT#VERSION, the one behind that event.", metavar="[ID]"),
    ] = None,
    reference: Annotated[str | None, typer.Option(help="All with this reference.")] = None,
    metadata: Metadata = None,
    after: Annotated[str | None, typer.Option(help="With --reference: those after this id.", metavar="ID")] = None,
    limit: Limit = 100,
    reveal: Reveal = False,
) -> int:
    """Show a transaction with its events, or list those with a reference or metadata."""
    wanted = pairs(metadata)
    if (transaction_id is None) == (reference is None and not wanted):
        raise InvalidCommand("transaction", "give an id, or --reference, or --metadata")
    with opened(target.settings) as ledger:
        if transaction_id is None:
            found = ledger.transactions(reference=reference, metadata=wanted, after=after, limit=limit)
            plain = {"transactions": [transaction_json(each) for each in found]}
            personal = _personal(ledger, plain, reveal=reveal)
            answer(target.as_json, {**plain, "personal": personal_json(personal)}, _listed(found, personal))
            return 0
        detail = ledger.transaction(_id_behind(ledger, transaction_id))
        of_accounts = [event.stream for event in detail.events if event.numbers]
        known = {account: ledger.account(account).terms for account in {*map(account_of, of_accounts)}}
        terms = {stream: known[account_of(stream)] for stream in of_accounts}
        plain = detail_json(detail, terms)
        personal = _personal(ledger, plain, reveal=reveal)
    if target.as_json:
        print_json({**plain, "personal": personal_json(personal)})
    else:
        _show_detail(detail, terms, personal)
    return 0


@command
def accounts(
    target: Target,
    asset: Annotated[str | None, typer.Option(help="Only those that hold this.")] = None,
    metadata: Metadata = None,
    after: Annotated[str, typer.Option(help="Those after this id.", metavar="ACCOUNT")] = "",
    limit: Limit = 100,
) -> int:
    """List accounts with their balances, in order of their ids."""
    with opened(target.settings) as ledger:
        found = ledger.accounts(asset=asset, metadata=pairs(metadata), after=after, limit=limit)
    made = table("account", "type", "state", "version", "posted", "available", right=("version", *_AMOUNTS))
    for line in found:
        terms, balance = line.terms, line.balance
        row(made, line.account, terms.account_type, terms.state, balance.version, balance.posted, balance.available)
    more = [f"[dim]more: --after {escape(found[-1].account)}[/]"] if len(found) == limit else []
    answer(target.as_json, {"accounts": [account_json(line) for line in found]}, made, *more)
    return 0


@command
def trial_balance(target: Target, as_of: AsOf) -> int:
    """Show debits and credits of all accounts, by asset and type, or as of two times; exit code 1 if they differ."""
    with opened(target.settings) as ledger:
        trial = ledger.trial_balance(effective_as_of=as_of.effective, known_as_of=as_of.known)
    made = table("asset", "type", "accounts", "debits", "credits", right=("accounts", "debits", "credits"))
    for line in trial.lines:
        row(made, line.asset, line.account_type, line.accounts, line.debits, line.credits)
    verdicts = [
        f"{asset}: [green]balanced[/]" if net.minor == 0 else f"{asset}: [red]debits less credits are {net}[/]"
        for asset, net in trial.difference.items()
    ]
    verdicts = verdicts or ["no accounts yet"]
    answer(target.as_json, trial_balance_json(trial), made, *verdicts, *pinned(trial.position))
    return 0 if trial.balanced else 1


def pinned(position: int | None) -> list[str]:
    """What a person is told of an answer that is the same for ever."""
    return [] if position is None else [f"[dim]known at position {position} of the feed[/]"]


_AMOUNTS: Final = ("posted", "pending", "available", "balance")


def _id_behind(ledger: Ledger, text: str) -> str:
    """A transaction's id, given as such or as ACCOUNT#VERSION."""
    account, mark, version = text.rpartition("#")
    if not mark:
        return text
    if not version.isdecimal() or int(version) < 1:
        raise InvalidCommand("transaction id", f"{text!r} is not ACCOUNT#VERSION")
    events = ledger.history(account, after_version=int(version) - 1, limit=1)
    if not events:
        what = "stream" if account.startswith(_OURS) else "account"
        raise InvalidCommand("transaction id", f"{what} {account} has no version {version}")
    return events[0].transaction_id


_OURS: Final = ("#", "$")
"""How streams begin that are no accounts."""


def _version(text: str) -> int | str:
    """A version, or where a page says that the next one begins."""
    try:
        return int(text)
    except ValueError:
        return text


def _personal(ledger: Ledger, plain: Mapping[str, object], *, reveal: bool) -> dict[str, Field]:
    """What can be said of the personal fields in an answer; asked for only where there are any."""
    found = [field for _, field in fields_in(plain)]
    data = ledger.personal_data()
    return data.revealed(found) if reveal else data.states(found)


def _said(value: str, personal: Mapping[str, Field]) -> str:
    """A value as people are shown it: a personal field by its text or its state."""
    field = personal.get(value)
    if field is None:
        return value
    if field.text is not None:
        return field.text
    return shortened(value) if field.state is State.ENCRYPTED else field.state.value


def _show_personal(events: Iterable[Recorded], personal: Mapping[str, Field]) -> None:
    """The personal fields of a page, which its table has no room for."""
    for event in events if personal else ():
        for path, field in fields_in(json.loads(event.payload)):
            console().print(f"  version {event.version} {escape(' '.join(path))}: {escape(_said(field, personal))}")


def _show_stream(stream: str, events: list[Recorded]) -> None:
    shown = [
        {
            "version": event.version, "recorded (UTC)": moment(event.recorded_at), "event": _name(event),
            "transaction": event.transaction_id,
        }
        for event in events
    ]  # fmt: skip
    few = ("version", "recorded (UTC)", "event")
    console().print(f"[bold]{escape(stream)}[/]")
    console().print(fitting(shown, (*few, "transaction"), few, right=("version",)))


def _about(terms: Terms, position: int | None) -> Mapping[str, object]:
    """What is said of an account: in an answer that is the same for ever, nothing that may change."""
    return terms_json(terms) if position is None else opened_json(terms)


def _show_history(account: str, terms: Terms, events: Page) -> None:
    about = f"{terms.asset}, {terms.account_type.value}: grows by {terms.normal.value}s"
    if events.position is None:
        about += f"{_limits(terms)}{'' if terms.state == 'open' else f', [yellow]{terms.state}[/]'}"
    console().print(f"[bold]{escape(account)}[/]  {about}")
    shown = []
    for event in events:
        debited, credited = _sides(event, terms)
        after = Balance.from_numbers(account, terms, event.numbers or Numbers(), event.version)
        shown.append({
            "stream": event.stream, "version": event.version, "recorded (UTC)": moment(event.recorded_at),
            "event": _name(event), "debit": debited, "credit": credited,
            "balance": after.posted, "available": after.available, "transaction": event.transaction_id,
        })  # fmt: skip
    few: tuple[str, ...] = ("version", "event", "debit", "credit", "balance")
    some: tuple[str, ...] = ("version", "recorded (UTC)", "event", "debit", "credit", "balance")
    # What is available is worth a column only where holds make it differ.
    more = (*some, "available") if any(each["balance"] != each["available"] for each in shown) else some
    if events.streams > 1:
        # An event knows the balance of its own stripe, and nobody asked for that.
        few, some = ("stream", *few[:-1]), ("stream", *some[:-1])
        more = some
    made = fitting(shown, (*more, "transaction"), more, some, few, right=("version", "debit", "credit", *_AMOUNTS))
    console().print(made)


def _lead_on(stream: str, events: Page, *, full: bool) -> None:
    out = console()
    if events.streams > 1:
        if full:
            out.print(f"[dim]there may be more: --after or --before {events.next}[/]", soft_wrap=True)
        return
    if events:
        last = events[-1].version
        quoted = escape(f"'{stream}#{last}'" if stream.startswith(_OURS) else f"{stream}#{last}")
        out.print(f"[dim]`ledger transaction {quoted}` shows what is behind version {last}[/]")
    if full:
        out.print("[dim]there may be more: --after or --before the last version[/]")


_NAMES: Final = {
    "account_opened": "opened",
    "account_terms_changed": "changed",
    "stripes_changed": "striped",
    "entry_posted": "",
    "hold_placed": "held",
    "hold_captured": "captured",
    "hold_released": "released",
    "hold_expired": "expired",
}
"""What an event is called in a column of a table; an entry says enough by its side."""


def _name(event: Recorded) -> str:
    if event.type in _STATES:
        return str(json.loads(event.payload)[_STATES[event.type]])
    return _NAMES.get(event.type, event.type.replace("_", " "))


_STATES: Final = {"account_state_changed": "state", "state_advanced": "target"}
"""An event that leads to a state is called by its name."""


def _sides(event: Recorded, terms: Terms) -> tuple[object, object]:
    if event.amount is None:
        return ("", "")
    amount = terms.money(event.amount)
    return (amount, "") if event.direction == Direction.DEBIT else ("", amount)


def _limits(terms: Terms) -> str:
    floor = "" if terms.min_balance is None else f", at least {terms.money(terms.min_balance)}"
    ceiling = "" if terms.max_balance is None else f", at most {terms.money(terms.max_balance)}"
    return floor + ceiling


def _listed(found: Iterable[Transaction], personal: Mapping[str, Field]) -> Table:
    made = table("transaction", "kind", "effective (UTC)", "reference")
    for each in found:
        row(made, each.transaction_id, each.kind, moment(each.effective_at), _said(each.reference or "", personal))
    return made


def _show_detail(detail: TransactionDetail, terms: dict[str, Terms], personal: Mapping[str, Field]) -> None:
    out = console()
    about = detail.transaction
    out.print(f"[bold]{about.transaction_id}[/]  {about.kind}")
    facts: dict[str, object] = {
        "effective (UTC)": moment(about.effective_at),
        "recorded (UTC)": moment(about.recorded_at),
        "reference": about.reference,
        "idempotency key": about.idempotency_key,
        "actor": about.actor,
        "correlation id": about.correlation_id,
        "causation id": about.causation_id,
    }
    facts |= _of_request(json.loads(about.request))
    facts |= {"reverses": detail.reverses, "reversed by": ", ".join(detail.reversed_by) or None}
    facts |= {f"metadata {key}": value for key, value in json.loads(about.metadata or "{}").items()}
    for name, value in facts.items():
        if value is not None:
            out.print(f"  {escape(name):<16} {escape(_said(str(value), personal))}")
    columns = ["event", "debit", "credit", "balance"]
    if not any(event.numbers for event in detail.events):
        columns = ["event"]
    made = table("account", "version", *columns, right=("version", *columns[1:]))
    for event in detail.events:
        held = terms.get(event.stream)
        cells: list[object] = [event.stream, event.version, _name(event)]
        if held is not None and event.numbers is not None:
            after = Balance.from_numbers(event.stream, held, event.numbers, 0).posted
            cells += [*_sides(event, held), after if held.streams == 1 else ""]
        row(made, *cells)
    out.print(made)


_ASKED: Final = ("hold", "expires_at", "until", "min_balance", "max_balance", "stripes", "final", "force", "reason")
"""What a request may say that its events do not show."""


def _of_request(request: Mapping[str, object]) -> dict[str, object]:
    return {name.replace("_", " "): request[name] for name in _ASKED if name in request}
