"""
Write the golden files of formats that have none yet: `python tests/golden/write.py`.

Each holds exact bytes that a release has written into somebody's ledger.  They are never written over: a
format that changes gets a new schema version, and files of its own beside the old ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ledger import AccountType, Direction, Recorded, Transaction
from ledger.core.book import Book
from ledger.core.canonical import canonical_json
from ledger.core.chain import link, place, sealed
from ledger.core.codec import event_record, transaction_header
from ledger.core.events import (
    AccountOpened,
    AccountStateChanged,
    AccountTermsChanged,
    AssetDefined,
    EntryPosted,
    Event,
    HoldCaptured,
    HoldExpired,
    HoldPlaced,
    HoldReleased,
    Movement,
    PeriodClosed,
    StateAdvanced,
    StripesChanged,
)

FOLDER: Final = Path(__file__).parent
LEDGER_ID: Final = "11111111-2222-4333-8444-555555555555"
AWKWARD: Final = 'quote " backslash \\ slash / tab \t newline \n escape \x1b delete \x7f æ € \u2028 🦉'

WALLET: Final = "users:42/wallet@eu-1"
HOLD: Final = "00000000-0000-5000-8000-000000000002"
"""What `examples` calls the transaction that places the hold."""

AMOUNT: Final = 12_345_678_901_234_567_890
EXPIRES_AT: Final = datetime(2026, 1, 9, 3, 4, 5, 1, tzinfo=UTC)

EXAMPLES: Final[dict[str, tuple[Event, ...]]] = {
    "open_account": (
        AssetDefined("BTC", 8),
        AccountOpened(
            account="users:42/wallet@eu-1",
            account_type=AccountType.LIABILITY,
            asset="BTC",
            scale=8,
            min_balance=-50_000_000,
            max_balance=None,
            metadata={"note": AWKWARD, "vip": True, "limit": -(2**53 - 1)},
        ),
    ),
    "post": (
        EntryPosted("users:42/wallet@eu-1", Direction.CREDIT, "BTC", 123_456_789_012_345_678_901_234_567, 0),
        EntryPosted("world", Direction.DEBIT, "BTC", 123_456_789_012_345_678_901_234_567, 1),
    ),
    "hold": (
        HoldPlaced(WALLET, Direction.DEBIT, "BTC", AMOUNT, 0, HOLD, EXPIRES_AT),
        HoldPlaced("world", Direction.CREDIT, "BTC", AMOUNT, 1, HOLD, EXPIRES_AT),
    ),
    "capture": (
        HoldCaptured(WALLET, Direction.DEBIT, "BTC", 5, 0, HOLD),
        HoldCaptured("world", Direction.CREDIT, "BTC", 5, 1, HOLD),
    ),
    "release": (
        HoldReleased(WALLET, Direction.DEBIT, "BTC", 4, 0, HOLD),
        HoldReleased("world", Direction.CREDIT, "BTC", 4, 1, HOLD),
    ),
    "expire_hold": (
        HoldExpired(WALLET, Direction.DEBIT, "BTC", AMOUNT - 9, 0, HOLD),
        HoldExpired("world", Direction.CREDIT, "BTC", AMOUNT - 9, 1, HOLD),
    ),
    "reverse": (
        EntryPosted(WALLET, Direction.CREDIT, "BTC", 5, 0),
        EntryPosted("world", Direction.DEBIT, "BTC", 5, 1),
    ),
    "freeze": (AccountStateChanged(WALLET, "frozen", AWKWARD),),
    "change_account": (
        AccountTermsChanged(
            WALLET, min_balance=None, max_balance=10**38 - 1, metadata={"note": AWKWARD, "vip": False}, reason=None
        ),
    ),
    "close_period": (
        PeriodClosed(
            datetime(2026, 1, 1, tzinfo=UTC),
            (("BTC", "equity", "123456789012345678901234567", "5"), ("BTC", "liability", "5", "0")),
            AWKWARD,
        ),
    ),
    "begin": (StateAdvanced("#payment/order-7", "payment", "begin", "", "created", "0123456789abcdef" * 4),),
    "advance": (
        StateAdvanced("#payment/order-7", "payment", "authorise", "created", "authorised", "0123456789abcdef" * 4),
    ),
    "change_account.stripes": (StripesChanged("world", 8, 64, AWKWARD),),
}
"""What happened, by the kind of command that caused it, and a name where there are several.  Only ever added to."""


def examples() -> Iterator[tuple[Transaction, list[Recorded]]]:
    """The examples as they are recorded, one after the other, in one ledger."""
    book = Book(LEDGER_ID)
    for number, (name, events) in enumerate(EXAMPLES.items()):
        kind = name.partition(".")[0]
        places = place(events, book)
        transaction = sealed(
            f"00000000-0000-5000-8000-{number:012}",
            kind,
            "scope",
            AWKWARD,
            canonical_json({"metadata": {"note": AWKWARD}, "type": kind}),
            sum(isinstance(event, Movement) for event in events),
            tuple(stream.stream for stream, _, _ in places),
            tuple(version for _, version, _ in places),
            AWKWARD if number else None,
            datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC),
            datetime(2026, 1, 2, 3, 4, 5, 123456 + number, tzinfo=UTC),
            "clerk",
            None,
            "cause",
            canonical_json({"note": AWKWARD, "order": 7}) if number else None,
        )
        yield transaction, link(transaction, events, places, LEDGER_ID)


def golden_files() -> dict[str, bytes]:
    """Name → bytes of every golden file that the code of today would write."""
    files: dict[str, bytes] = {}
    for example, (transaction, events) in zip(EXAMPLES, examples(), strict=True):
        name = f"transaction.1.{example}"
        files[f"{name}.header"] = transaction_header(*transaction[:-1])
        files[f"{name}.hash"] = transaction.header_hash.hex().encode()
        for event in events:
            name = f"event.{event.type}.{event.schema}"
            if f"{name}.record" not in files:
                files[f"{name}.record"] = event_record(transaction.header_hash.hex(), *event[:-1])
                files[f"{name}.payload"] = event.payload.encode()
                files[f"{name}.hash"] = event.event_hash.hex().encode()
    return files


def write(folder: Path = FOLDER) -> list[str]:
    """Write the files that are not there yet, and name them."""
    written = []
    for name, content in golden_files().items():
        try:
            with (folder / name).open("xb") as file:
                file.write(content)
        except FileExistsError:
            continue
        written.append(name)
    return written


if __name__ == "__main__":
    for name in write():
        sys.stdout.write(f"written: {name}\n")
    sys.stdout.write("Files that were there already were left as they are.\n")
