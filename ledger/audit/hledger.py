r"""
A log as a journal for hledger, which adds up every entry itself and compares each sum with what the ledger recorded.

Every entry asserts what its account comes to (`= AMOUNT`, exact), and the last transaction asserts all accounts again.
A transaction's first date is the day on which it was recorded, and its second that on which it is effective.

All of the file is ASCII: hledger reads it whatever the locale is.  Texts of users stand in comments only, as JSON with
commas as \u002c, so that none of them ends its line, or begins a tag.

Source: hledger 1.25, hledger_journal(5).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from ledger.audit.journal import Booked, Defined, Journal, Line, Opened
from ledger.core.canonical import utc_text
from ledger.core.commands import AccountType

ASSERTED_TOGETHER: Final = 1_000
"""Accounts asserted in one transaction at the end: hledger takes longer for each in a longer one."""

_TYPES: Final = {
    AccountType.ASSET: "A",
    AccountType.LIABILITY: "L",
    AccountType.EQUITY: "E",
    AccountType.INCOME: "R",
    AccountType.EXPENSE: "X",
}


def hledger_lines(journal: Journal) -> Iterator[bytes]:
    """
    The journal, some lines at a time.

    Raises:
        CorruptLog: As `Journal.steps`.
    """
    yield _head(journal).encode()
    for step in journal.steps():
        match step:
            case Defined():
                point = "." + "0" * step.scale
                yield f'\ncommodity 1000{point} "{step.commodity}"\n'.encode()
            case Opened(account=account):
                tags = f"account:{account.account}, type:{_TYPES[account.kind]}, position:{step.position}"
                yield f"\naccount {account.name}  ; {tags}\n".encode()
            case Booked():
                yield _booked(step).encode()
    yield from _balances(journal)


def _head(journal: Journal) -> str:
    return (
        f"; ledger {journal.ledger_id} up to position {journal.position} of its feed\n"
        "; to check it: hledger -f FILE check -s\n"
        "decimal-mark .\n"
    )


def _booked(booked: Booked) -> str:
    lines = [line for line in booked.lines if line.posts]
    if not lines:
        return ""
    transaction = booked.transaction
    effective = transaction.effective_at.date()
    second = "" if effective == booked.day else f"={effective.isoformat()}"
    told = {
        "transaction": transaction.transaction_id,
        "recorded_at": utc_text(transaction.recorded_at),
        "effective_at": utc_text(transaction.effective_at),
        "header_sha256": transaction.header_hash.hex(),
        "reverses": booked.reverses,
    }
    texts = {name: quoted(text) for name, text in booked.texts.items() if text is not None}
    tags = "".join(f"    ; {name}:{text}\n" for name, text in (told | texts).items() if text is not None)
    return f"\n{booked.day.isoformat()}{second} * {transaction.kind}\n{tags}{''.join(map(_entry, lines))}"


def _entry(line: Line) -> str:
    account, event = line.account, line.event
    hold = "" if line.hold is None else f", hold:{line.hold}"
    return (
        f'    {account.name}  {account.units(line.amount)} "{account.commodity}"'
        f' = {account.units(line.net)} "{account.commodity}"'
        f"  ; position:{line.position}, stream:{event.stream}, version:{event.version},"
        f" sha256:{event.event_hash.hex()}{hold}\n"
    )


def _balances(journal: Journal) -> Iterator[bytes]:
    for number, account in enumerate(journal.accounts.values()):
        if number % ASSERTED_TOGETHER == 0:
            yield f"\n{journal.day.isoformat()} * balances\n    ; position:{journal.position}\n".encode()
        zero, net = (f'{account.units(minor)} "{account.commodity}"' for minor in (0, account.net))
        yield f"    {account.name}  {zero} = {net}\n".encode()


def quoted(text: str) -> str:
    """A user's text: JSON, in ASCII, without a comma."""
    return json.dumps(text).replace(",", "\\u002c")
