"""The currency table against an independent edition of ISO 4217."""

from __future__ import annotations

import iso4217

from ledger.core.iso4217 import CURRENCIES


def test_table_equals_an_independent_one() -> None:
    """Every current code with a minor unit is in the table, with its scale, and no other."""
    theirs = {currency.code: currency.exponent for currency in iso4217.Currency if currency.exponent is not None}

    assert theirs == CURRENCIES
    assert len(CURRENCIES) > 150
