"""
What bookkeeping programs call our accounts and assets: names that hledger and beancount accept, and the way back.

    alice      a liability   Liabilities:Alice
    Alice      a liability   Liabilities:Alice-    its first letter is a capital already: a dash at the end
    users:42   an asset      Assets:Users-3A42     what is no letter or digit: a dash and its code, in hex
    USD                      USD
    PTS_                     PTS_'0                beancount would not take it as it is

Two ids never get the same name.  No account is below another one, whose balance would contain its own.
"""

from __future__ import annotations

import re
from typing import Final

from ledger.core.commands import AccountType
from ledger.core.errors import InvalidCommand

ROOTS: Final = {
    AccountType.ASSET: "Assets",
    AccountType.LIABILITY: "Liabilities",
    AccountType.EQUITY: "Equity",
    AccountType.INCOME: "Income",
    AccountType.EXPENSE: "Expenses",
}

_MARK: Final = "'0"
"""No id of an asset contains it."""

_TAKEN: Final = re.compile(r"[A-Z][A-Z0-9._-]*[A-Z0-9]")
_WORDS: Final = {"TRUE", "FALSE", "NULL"}
_SPECIAL: Final = re.compile(r"[^A-Za-z0-9]")
_CODE: Final = re.compile(r"-([0-9A-F]{2})")
_NAME: Final = re.compile(rf"(?:{'|'.join(ROOTS.values())}):((?:[A-Z0-9])(?:[A-Za-z0-9]|-[0-9A-F]{{2}})*)(-?)")


def account_name(account: str, kind: AccountType) -> str:
    """The name of an account, below the root of its type."""
    return f"{ROOTS[kind]}:{_written(account)}"


def account_of_name(name: str) -> str:
    """
    The account that has this name.

    Raises:
        InvalidCommand: `account_name` gives no account such a name.
    """
    match = _NAME.fullmatch(name)
    if match is not None:
        written, capital = match.groups()
        account = _CODE.sub(lambda code: chr(int(code[1], 16)), written)
        account = account if capital else account[0].lower() + account[1:]
        # A code of what needs none would be a second name of the same account.
        if _written(account) == written + capital:
            return account
    raise InvalidCommand("name", f"{name!r} is not the name of an account of ours")


def _written(account: str) -> str:
    first, rest = account[0], _SPECIAL.sub(lambda match: f"-{ord(match[0]):02X}", account[1:])
    return f"{first.upper()}{rest}{'-' if first.isupper() else ''}"


def commodity_name(asset: str) -> str:
    """The name of an asset: its own, where beancount accepts it."""
    return asset if _TAKEN.fullmatch(asset) and asset not in _WORDS else asset + _MARK


def asset_of_commodity(name: str) -> str:
    """The asset that has this name."""
    return name.removesuffix(_MARK)
