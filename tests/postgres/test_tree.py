"""The records of the feed: each is made anew from the log, and one that is not what the feed has is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ledger import CorruptLog, Ledger, LedgerError, ProofFailed, Transfer
from ledger.core.chain import leaf_hash
from ledger.core.commands import build
from ledger.storage import tree

Tamper = Callable[..., None]


def records(ledger: Ledger, after: int, size: int) -> list[bytes]:
    """The records of some positions."""
    return ledger._answer(lambda connection: list(tree.records(connection, after, size)))  # noqa: SLF001


def test_records_have_the_hashes_of_the_feed(funded: Ledger) -> None:
    """Each record is the bytes whose leaf hash the feed has, from any position to any other, across pages."""
    funded.handle([build(Transfer, amount="1 USD", debit="world", credit="alice") for _ in range(700)])
    funded.stamp()
    hashes = [entry.event.event_hash for entry in funded.feed()]
    assert len(hashes) == 1_408
    assert [leaf_hash(record) for record in records(funded, 0, 1_408)] == hashes
    assert [leaf_hash(record) for record in records(funded, 3, 1_100)] == hashes[3:1_100]
    assert records(funded, 5, 5) == []


# What is done to a feed whose position 7 is alice's event 3, and what is said.
BROKEN: dict[str, tuple[str, type[LedgerError], str]] = {
    "amount": (
        "UPDATE events SET amount = 1 WHERE stream = 'alice' AND version = 3",
        CorruptLog,
        "of alice contradicts itself at version 3: event_hash does not match what is stored (position 7 of the feed)",
    ),
    "transaction": (
        "UPDATE transactions SET actor = 'mallory' WHERE idempotency_key = 'rent'",
        CorruptLog,
        "is not what its hash covers (position 7 of the feed)",
    ),
    "event deleted": (
        "DELETE FROM events WHERE stream = 'alice' AND version = 3",
        CorruptLog,
        "version 3: position 7 of the feed is not what the log has",
    ),
    "position deleted": ("DELETE FROM feed WHERE position = 6", CorruptLog, "the feed has no position 6"),
    "tail deleted": ("DELETE FROM feed WHERE position > 6", ProofFailed, "it ends at position 6, of 8"),
    "swapped": (
        "UPDATE feed SET position = 11 - position WHERE position IN (4, 7)",
        CorruptLog,
        "version 3: it does not follow version 1, the last one before it (position 4 of the feed)",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_records_that_are_not_what_the_feed_has(funded: Ledger, tamper: Tamper, name: str) -> None:
    """The first that is not is named, with its position."""
    statement, error, said = BROKEN[name]
    funded.stamp()
    tamper("ALTER TABLE feed DROP CONSTRAINT feed_pkey", statement)
    with pytest.raises(error) as raised:
        records(funded, 0, 8)
    assert said in str(raised.value)
