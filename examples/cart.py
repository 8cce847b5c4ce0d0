"""
Shopping carts: ADD_ITEM must happen before APPLY_COUPON, and CHECKOUT after both.

This shop promised its customer the coupon, so that a checkout that overtakes it would charge too much: its machine
is declared here, and lets nobody check out without.  (The cart that comes with the ledger leaves coupons optional.)

    python examples/cart.py
"""

from __future__ import annotations

from ledger.lifecycle import StateMachine, TransitionRefused, on

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


class Carts:
    """The state of each cart, in memory.  A cart that nobody has touched is empty."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def advance(self, cart: str, event: str) -> str:
        """Let something happen to a cart."""
        state = self._states.get(cart, CART.initial)
        self._states[cart] = CART.advance(state, event, stream=cart)
        return self._states[cart]


def receive(carts: Carts, cart: str, *messages: str) -> list[str]:
    """Take messages in the order in which they arrive, say what became of each, and return those refused."""
    refused = []
    for message in messages:
        try:
            print(f"  {message}: {carts.advance(cart, message)}")
        except TransitionRefused as refusal:
            print(f"  {message}: refused while {refusal.state}; allowed: {', '.join(refusal.allowed) or 'nothing'}")
            refused.append(message)
    return refused


if __name__ == "__main__":
    carts = Carts()
    print("Out of order:")
    early = receive(carts, "cart-1", "check_out", "apply_coupon", "add_item")
    print("Those refused, in order:")
    receive(carts, "cart-1", *reversed(early))
    print("And after the end:")
    receive(carts, "cart-1", "add_item")
