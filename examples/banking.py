"""
Banking: DEPOSIT must happen before the WITHDRAW that needs its money.

`python examples/banking.py` works on the database that LEDGER_DATABASE_URL names, or else on one of its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
from secrets import token_hex
from tempfile import mkdtemp

from ledger import Done, InsufficientFunds, Ledger


def main(ledger: Ledger) -> None:
    """Let a withdrawal overtake the deposit it needs; then let both come again, and again."""
    alice = f"alice-{token_hex(4)}"
    world = f"world-of-{alice}"
    ledger.open_account(world, asset="USD", type="equity")
    ledger.open_account(alice, asset="USD", type="liability", min_balance=0)

    def deposit() -> Done:
        return ledger.deposit(alice, "1000 USD", against=world, idempotency_key=f"{alice}/deposit-1")

    def withdraw() -> Done:
        return ledger.withdraw(alice, "800 USD", against=world, idempotency_key=f"{alice}/withdrawal-1")

    print("Out of order:")
    try:
        withdraw()
    except InsufficientFunds as refusal:
        print(f"  withdraw 800: refused, {refusal.available} available and {refusal.required} required")

    print("In order:")
    print(f"  deposit 1000: balance {deposit().balances[alice].posted}")
    # The same message, sent again with the same key: a rejection is not remembered, it is decided anew.
    print(f"  withdraw 800: balance {withdraw().balances[alice].posted}")

    print("Both delivered once more:")
    for name, again in (("withdraw 800", withdraw()), ("deposit 1000", deposit())):
        print(f"  {name}: {'replayed' if again.replayed else 'DONE TWICE'}")
    balance = ledger.balance(alice)
    print(f"At the end: {balance.posted} at version {balance.version}, verified: {ledger.verify(alice, world).ok}")


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
