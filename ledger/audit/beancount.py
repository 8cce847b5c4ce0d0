"""
A log as a file for beancount, which adds up every entry itself and compares each sum with what the ledger recorded.

A day's balances are asserted at the beginning of the next one, of the accounts that moved; all of them once more at the
end.  beancount forgives half of the last digit in a transaction and a whole one in a balance, unless it is told not to:
the file says so for transactions, and each assertion for itself (`~ 0.00`).

beancount computes with 28 digits, and rounds where a number has more: what is right is refused then.  The second
command in the file's head lets it have 99, which is more than any sum of ours.

Source: the grammar of beancount 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from typing import Final

from ledger.audit.journal import Account, Booked, Defined, Journal, Line, Opened
from ledger.core.canonical import utc_text

_ESCAPED: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def beancount_lines(journal: Journal) -> Iterator[bytes]:
    """
    The file, some lines at a time.

    Raises:
        CorruptLog: As `Journal.steps`.
    """
    yield _head(journal).encode()
    # What an account comes to is kept here: once a step of the next day is seen, the account itself has moved on.
    moved: dict[str, tuple[Account, int]] = {}
    today = journal.day
    for step in journal.steps():
        if step.day != today:
            yield from _balances(today, moved.values())
            moved, today = {}, step.day
        match step:
            case Defined():
                yield _defined(step).encode()
            case Opened():
                yield _opened(step).encode()
            case Booked():
                lines = [line for line in step.lines if line.posts]
                moved.update((line.account.account, (line.account, line.net)) for line in lines)
                if lines:
                    yield _booked(step, lines).encode()
    yield f"\n; all accounts at position {journal.position}\n".encode()
    yield from _balances(journal.day, ((account, account.net) for account in journal.accounts.values()))


def _head(journal: Journal) -> str:
    return (
        f"; ledger {journal.ledger_id} up to position {journal.position} of its feed\n"
        "; to check it: bean-check --no-cache FILE\n"
        "; … and where there are more than 28 digits: python -c"
        ' "import decimal; decimal.getcontext().prec = 99; from beancount.scripts.check import main; main()"'
        " --no-cache FILE\n"
        'option "tolerance_multiplier" "0"\n'
    )


def _defined(step: Defined) -> str:
    unit = "1" if step.scale == 0 else f"0.{'1'.rjust(step.scale, '0')}"
    return (
        f'\n{step.day.isoformat()} commodity {step.commodity}\n  asset: "{step.asset}"\n  scale: {step.scale}\n'
        f'option "display_precision" "{step.commodity}:{unit}"\n'
    )


def _opened(step: Opened) -> str:
    account = step.account
    return (
        f'\n{step.day.isoformat()} open {account.name} {account.commodity}\n  account: "{account.account}"\n'
        f"  position: {step.position}\n"
    )


def _booked(booked: Booked, lines: list[Line]) -> str:
    transaction = booked.transaction
    told = {
        "transaction": _string(transaction.transaction_id),
        "recorded_at": _string(utc_text(transaction.recorded_at)),
        "effective_at": _string(utc_text(transaction.effective_at)),
        "effective": transaction.effective_at.date().isoformat(),
        "header_sha256": _string(transaction.header_hash.hex()),
        "reverses": None if booked.reverses is None else _string(booked.reverses),
    }
    texts = {name: None if text is None else _string(text) for name, text in booked.texts.items()}
    keys = "".join(f"  {name}: {value}\n" for name, value in (told | texts).items() if value is not None)
    return f"\n{booked.day.isoformat()} * {_string(transaction.kind)}\n{keys}{''.join(map(_entry, lines))}"


def _entry(line: Line) -> str:
    account, event = line.account, line.event
    hold = "" if line.hold is None else f"    hold: {_string(line.hold)}\n"
    return (
        f"  {account.name}  {account.units(line.amount)} {account.commodity}\n"
        f"    position: {line.position}\n    event: {_string(f'{event.stream} {event.version}')}\n"
        f"    sha256: {_string(event.event_hash.hex())}\n{hold}"
    )


def _balances(day: date, accounts: Iterable[tuple[Account, int]]) -> Iterator[bytes]:
    """What accounts came to on a day: beancount compares it before anything of the next one."""
    next_day = (day + timedelta(days=1)).isoformat()
    for account, net in accounts:
        expected, zero = account.units(net), account.units(0)
        yield f"{next_day} balance {account.name}  {expected} ~ {zero} {account.commodity}\n".encode()


def _string(text: str) -> str:
    return f'"{text.translate(_ESCAPED)}"'
