"""A bank's statement, whatever its format: bounded, of one currency, and its entries lead from opening to closing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import date
from io import BufferedReader
from pathlib import Path
from typing import Final, NamedTuple

from ledger.core.errors import BrokenStatement, InvalidAmount
from ledger.core.money import Money
from ledger.storage.reconciliations import BankEntry

FILE_BYTES_MAX: Final = 512 * 1024 * 1024
ENTRIES_MAX: Final = 200_000
"""Entries of one statement, each detail of a batch counted."""

ID_MAX: Final = 255
NAMES_MAX: Final = 20
NAME_MAX: Final = 255
DESCRIPTION_MAX: Final = 500

Refuse = Callable[[str, str], BrokenStatement]
"""Where, and what is wrong there → the error that names the file as well."""


class Currency(NamedTuple):
    """What an account is counted in, and with how many decimal places."""

    asset: str
    scale: int

    def minor(self, digits: str) -> int:
        """
        An exact decimal number, in minor units.

        Raises:
            InvalidAmount: It has more decimals than the currency, or more digits than any amount.
        """
        return Money.of(digits, self.asset).at_scale(self.scale).minor

    def money(self, minor: int) -> Money:
        """Minor units, as an amount."""
        return Money(minor, self.asset, self.scale)


def refusing(path: Path) -> Refuse:
    """Refuse this file, with the place in it."""
    return lambda where, problem: BrokenStatement(path.name, where, problem)


def fingerprint(file: BufferedReader, refuse: Refuse) -> bytes:
    """
    SHA-256 of a file, which is left at its beginning.

    Raises:
        BrokenStatement: It is larger than a statement can be, or empty.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if not 0 < size <= FILE_BYTES_MAX:
        raise refuse("the file", f"it has {size:,} bytes, not 1 to {FILE_BYTES_MAX:,}")
    found = hashlib.file_digest(file, "sha256").digest()
    file.seek(0)
    return found


def amount_of(digits: str, currency: Currency, where: str, refuse: Refuse) -> int:
    """
    An amount of a statement in minor units.

    Raises:
        BrokenStatement: It is none of this currency.
    """
    try:
        return currency.minor(digits)
    except InvalidAmount as error:
        raise refuse(where, f"amount {error.amount!r}: {error.problem}") from None


def names_of(texts: Sequence[str]) -> tuple[str, ...]:
    """The references among these texts, each once; what says that there is none is none."""
    kept = (" ".join(text.split()) for text in texts)
    names = dict.fromkeys(name for name in kept if 0 < len(name) <= NAME_MAX and name != "NOTPROVIDED")
    return tuple(names)[:NAMES_MAX]


def check_total(
    opening: int, entries: Sequence[BankEntry], closing: int, currency: Currency, where: str, refuse: Refuse
) -> None:
    """
    Hold that the opening balance and the booked entries come to the closing balance.

    Raises:
        BrokenStatement: They do not; it says by how much.
    """
    booked = sum(entry.amount for entry in entries)
    if opening + booked == closing:
        return
    money = currency.money
    raise refuse(
        where,
        f"opening {money(opening)} and {len(entries):,} booked entries of {money(booked)} come to"
        f" {money(opening + booked)}, and the closing balance is {money(closing)}: it is off by"
        f" {money(opening + booked - closing)}; nothing was read from it",
    )


def check_days(opens_on: date, closes_on: date, where: str, refuse: Refuse) -> None:
    """
    Hold that a statement begins before it ends, in years that any calendar has.

    Raises:
        BrokenStatement: It does not.
    """
    if not opens_on <= closes_on < date.max:
        raise refuse(where, f"it begins on {opens_on} and ends on {closes_on}")
