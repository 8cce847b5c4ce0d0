"""A ledger in which there is something to see on every page, for the tests of the pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ledger import Ledger
from ledger.audit.checkpoint import SigningKey
from ledger.order.cursor import Strict
from ledger.order.message import Message

SIGNER: Final = SigningKey("example.com/ledger", bytes(range(32)))

POLICY: Final = Strict(timedelta(minutes=5))
REVERSED_KEY: Final = "mistake"
LONG: Final = "1234567890123456789.12345678 BTC"
"""More digits than a float has."""


def make_eventful(ledger: Ledger) -> None:
    """Accounts, holds, a reversal, a backdated entry; messages that are late, lost or wrong; most of it is sealed."""
    ledger.define_asset("BTC", scale=8)
    for name, asset, kind in (
        ("world", "USD", "equity"),
        ("mine", "BTC", "equity"),
        ("vault", "BTC", "liability"),
        ("customers/alice", "USD", "liability"),
        ("customers/bob", "USD", "liability"),
    ):
        ledger.open_account(name, asset=asset, type=kind)
    ledger.transfer("1000.00 USD", debit="world", credit="customers/alice", reference="payday", actor="payroll")
    ledger.transfer(LONG, debit="mine", credit="vault")
    long_ago = datetime.now(UTC) - timedelta(days=3)  # noqa: TID251
    ledger.transfer("30 USD", debit="customers/alice", credit="customers/bob", effective_at=long_ago, reference="rent")
    mistake = ledger.transfer(
        "7 USD", debit="customers/alice", credit="customers/bob", idempotency_key=REVERSED_KEY, causation_id="order-17"
    )
    ledger.reverse(mistake, reason="charged twice")
    hold = ledger.hold("20 USD", debit="customers/alice", credit="customers/bob")
    ledger.capture(hold, "5 USD")
    ledger.inbox("bank", POLICY).receive(
        [
            message(1, "customers/bob", 1, "10 USD"),
            message(2, "customers/bob", 3, "11 USD"),
            message(3, "customers/bob", 1, "99 USD"),
            message(4, "customers/alice", 1, "1 USD"),
            message(5, "customers/alice", 1, "2 USD"),
        ]
    )
    while ledger.stamp():
        pass
    ledger.seal(SIGNER)


def message(number: int, account: str, sequence: int, amount: str) -> Message:
    """A deposit that a bank tells of."""
    said: Any = {"account": account, "amount": amount, "against": "world"}
    return Message("bank", f"m-{number}", "ledger.deposit", account, sequence, data=said)
