"""
Shopping carts: ADD_ITEM must happen before APPLY_COUPON, and CHECKOUT after both.

This shop promised its customer the coupon, so that a checkout that overtakes it would charge too much: its machine
is declared here, and lets nobody check out without.  (The cart that comes with the ledger leaves coupons optional.)

`python examples/cart.py` works on the database that LEDGER_DATABASE_URL names, or else on one of its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
from secrets import token_hex
from tempfile import mkdtemp

from ledger import Ledger, StateMachine, TransitionRefused, on

CART = StateMachine(
    "cart_with_coupon",
    initial="empty",
    states=("empty", "filled", "discounted", "checked_out"),
    transitions=(
        on("add_item", "empty", "filled", to="filled"),
        on("add_item", "discounted"),
        on("apply_coupon", "filled", to="discounted"),
        on("check_out", "discounted", to="checked_out"),
    ),
    final=("checked_out",),
)


def receive(ledger: Ledger, cart: str, *messages: str) -> list[str]:
    """Take messages in the order in which they arrive, say what became of each, and return those refused."""
    refused = []
    for message in messages:
        try:
            ledger.advance(CART, cart, message)
            print(f"  {message}: {ledger.state(CART, cart).state}")
        except TransitionRefused as refusal:
            print(f"  {message}: refused while {refusal.state}; allowed: {', '.join(refusal.allowed) or 'nothing'}")
            refused.append(message)
    return refused


def opened() -> Ledger:
    """The ledger of the environment, or one that lasts as long as this program; it knows our machine."""
    url = os.environ.get("LEDGER_DATABASE_URL")
    if url:
        return Ledger.connect(url, machines=[CART])
    folder = mkdtemp(prefix="ledger-")
    # Before the server registers its own end: at exit, the last to come is the first to go.
    atexit.register(shutil.rmtree, folder)
    return Ledger.embedded(folder, machines=[CART])


if __name__ == "__main__":
    with opened() as ledger:
        ledger.migrate()
        cart = f"cart-{token_hex(4)}"
        ledger.begin(CART, cart)
        print("Out of order:")
        early = receive(ledger, cart, "check_out", "apply_coupon", "add_item")
        print("Those refused, in order:")
        receive(ledger, cart, *reversed(early))
        print("And after the end:")
        receive(ledger, cart, "add_item")
