"""
The entries of a log as rows, for spreadsheets, SQL and data frames: one of each event that moves an amount.

A CSV can be opened in a spreadsheet: a user's text that would be a formula there (it begins with = + - @ TAB CR, or
with the apostrophe itself) has an apostrophe before it.  Such texts always stand in quotes; no text is nothing at all.

Source: OWASP, CSV injection; RFC 4180, with lines that end in LF.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ledger.audit.journal import TEXTS, Booked, Journal, Line
from ledger.audit.replay import JOURNAL_COLUMNS, journal_cells
from ledger.core.canonical import utc_text

COLUMNS: Final = (
    *JOURNAL_COLUMNS,
    *("account", "account_type", "minor", "scale", "posted", "hold", "reverses"),
    *("event_sha256", "prev_sha256", "header_sha256"),
    *TEXTS,
    *("ledger_id", "up_to_position"),
)
"""`JOURNAL_COLUMNS` and more; `posted` is what is posted in minor units, of a credit negative: it can be added up."""

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "'")


def csv_lines(journal: Journal) -> Iterator[bytes]:
    """
    The rows as CSV, some lines at a time.

    Raises:
        CorruptLog: As `Journal.steps`.
    """
    yield (",".join(COLUMNS) + "\n").encode()
    for step in journal.steps():
        if isinstance(step, Booked):
            texts = ",".join(_cell(text) for text in step.texts.values())
            for line in step.lines:
                cells = (*_numbers(step, line), texts, journal.ledger_id, str(journal.position))
                yield (",".join(cells) + "\n").encode()


def _numbers(booked: Booked, line: Line) -> tuple[str, ...]:
    """The cells before the texts: no text among them contains a comma or begins a formula."""
    transaction, event, account = booked.transaction, line.event, line.account
    times = utc_text(transaction.recorded_at), utc_text(transaction.effective_at)
    return (
        *journal_cells(line.position, *times, transaction.kind, event, account.units(abs(line.amount))),
        account.account,
        account.kind.value,
        str(event.amount),
        str(account.scale),
        str(line.amount if line.posts else 0),
        line.hold or "",
        booked.reverses or "",
        event.event_hash.hex(),
        event.prev_hash.hex(),
        transaction.header_hash.hex(),
    )


def _cell(text: str | None) -> str:
    if text is None:
        return ""
    safe = f"'{text}" if text.startswith(_FORMULA) else text
    return f'"{safe.replace(chr(34), chr(34) * 2)}"'
