"""
Inventory: ADD_STOCK must happen before the SELL_ITEM that needs the stock.

An article is an asset, and each place where it can be an account: what leaves one arrives in another.
`min_balance=0` is the rule that nothing leaves a place that has not arrived there.

`python examples/inventory.py` works on the database that LEDGER_DATABASE_URL names, or else on one of its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
from secrets import token_hex
from tempfile import mkdtemp

from ledger import InsufficientFunds, Ledger


def main(ledger: Ledger) -> None:
    """Ship before anything was received, reserve more than there is, and then do it right."""
    ledger.define_asset("WIDGET", scale=0, idempotency_key="define-WIDGET")
    site = f"site-{token_hex(4)}"
    supplier, stock, reserved, shipped = (f"{site}/{place}" for place in ("supplier", "stock", "reserved", "shipped"))
    ledger.open_account(supplier, asset="WIDGET", type="equity")
    for shelf in (stock, reserved):
        ledger.open_account(shelf, asset="WIDGET", type="asset", min_balance=0)
    ledger.open_account(shipped, asset="WIDGET", type="expense")

    def move(what: str, count: int, origin: str, destination: str) -> None:
        try:
            ledger.transfer(f"{count} WIDGET", debit=destination, credit=origin)
        except InsufficientFunds as refusal:
            print(f"  {what} {count}: refused, {refusal.available} in {origin.rpartition('/')[2]}")
        else:
            print(f"  {what} {count}: done")

    print("Out of order:")
    move("ship", 5, reserved, shipped)
    move("reserve", 5, stock, reserved)

    print("In order:")
    move("receive", 10, supplier, stock)
    move("reserve", 5, stock, reserved)
    move("ship", 5, reserved, shipped)

    print("More than there is:")
    move("reserve", 6, stock, reserved)

    left = [ledger.balance(place).posted for place in (stock, reserved, shipped)]
    print("At the end: {} in stock, {} reserved, {} shipped".format(*left))


def opened() -> Ledger:
    """The ledger of the environment, or one that lasts as long as this program."""
    url = os.environ.get("LEDGER_DATABASE_URL")
    if url:
        return Ledger.connect(url)
    folder = mkdtemp(prefix="ledger-")
    # Before the server registers its own end: at exit, the last to come is the first to go.
    atexit.register(shutil.rmtree, folder)
    return Ledger.embedded(folder)


if __name__ == "__main__":
    with opened() as ledger:
        ledger.migrate()
        main(ledger)
