"""The chain: nothing that is stored can change by a byte without breaking a hash."""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samples import LEDGER_ID, account_ids, record, recorded_events, transaction, transactions

from ledger import AccountType, CorruptLog, Direction, Numbers, Recorded, Transaction
from ledger.core.book import Book, replay
from ledger.core.chain import check_link, check_seal, genesis, leaf_hash, place
from ledger.core.events import AccountOpened, AssetDefined, EntryPosted, Event

OPENING = AccountOpened("alice", AccountType.LIABILITY, "USD", 2, None, None, {})
DEPOSIT = EntryPosted("alice", Direction.CREDIT, "USD", 500, 0)


def flip(data: st.DataObject, value: Any) -> Any:
    """The value with one bit, digit or character changed; a missing one appears."""
    if isinstance(value, tuple):
        place = data.draw(st.integers(0, len(value) - 1))
        changed = (*value[:place], flip(data, value[place]), *value[place + 1 :])
        return Numbers(*changed) if isinstance(value, Numbers) else changed
    if isinstance(value, bytes) and value:
        place = data.draw(st.integers(0, len(value) - 1))
        return value[:place] + bytes([value[place] ^ (1 << data.draw(st.integers(0, 7)))]) + value[place + 1 :]
    if isinstance(value, str) and value:
        place = data.draw(st.integers(0, len(value) - 1))
        other = data.draw(st.characters(exclude_categories=["Cs"]).filter(lambda one: one != value[place]))
        return value[:place] + other + value[place + 1 :]
    if isinstance(value, datetime):
        return value + timedelta(microseconds=1 if value.year < 9999 else -1)
    if isinstance(value, int):
        return value ^ (1 << data.draw(st.integers(0, 60)))
    return {str: "x", bytes: b"x", type(None): "7"}[type(value)]


@pytest.mark.parametrize("field", Recorded._fields)
@settings(max_examples=10)
@given(recorded=recorded_events(), data=st.data())
def test_any_change_of_an_event_breaks_the_chain(
    field: str, recorded: tuple[Transaction, Recorded], data: st.DataObject
) -> None:
    """A flipped bit, digit or character in any stored field of an event is found."""
    of, event = recorded
    check_link(event, of.header_hash, event.prev_hash)
    value = getattr(event, field)
    other: Any = Numbers(0, 0, 0, 1) if field == "numbers" and value is None else flip(data, value)
    changed = event._replace(**{field: other})
    assume(changed != event)

    with pytest.raises(CorruptLog) as corruption:
        check_link(changed, of.header_hash, event.prev_hash)

    assert (corruption.value.stream, corruption.value.version) == (changed.stream, changed.version)


@pytest.mark.parametrize("field", Transaction._fields)
@settings(max_examples=10)
@given(of=transactions(), data=st.data())
def test_any_change_of_a_transaction_breaks_its_seal(field: str, of: Transaction, data: st.DataObject) -> None:
    """A flipped bit, digit or character in any stored field of a transaction is found."""
    assert check_seal(of)
    changed = of._replace(**{field: flip(data, getattr(of, field))})
    assume(changed != of)

    assert not check_seal(changed)


@pytest.mark.parametrize("field", ["idempotency_key", "reference", "actor", "correlation_id", "causation_id"])
def test_nothing_is_not_an_empty_text(field: str) -> None:
    """A text that was removed is not one that was never there."""
    nothing: Any = None
    changed = transaction()._replace(**{field: nothing})

    assert not check_seal(changed)
    assert transaction(**{field: None}).header_hash != transaction(**{field: ""}).header_hash


def test_events_announced_cannot_move() -> None:
    """The transaction names its events in order: none can be left out, added or exchanged."""
    seals = {
        transaction(streams=streams, versions=versions).header_hash
        for streams, versions in [
            (("alice", "bob"), (1, 2)),
            (("alice", "bob"), (2, 1)),
            (("bob", "alice"), (1, 2)),
            (("alice",), (1,)),
            (("alice", "bob", "bob"), (1, 2, 3)),
            ((), ()),
        ]
    }

    assert len(seals) == 6


@given(transactions(), recorded_events())
def test_an_event_belongs_to_its_transaction(other: Transaction, recorded: tuple[Transaction, Recorded]) -> None:
    """The header hash of another transaction, or another predecessor, does not fit."""
    of, event = recorded
    assume(other.header_hash != of.header_hash)

    with pytest.raises(CorruptLog, match="does not match"):
        check_link(event, other.header_hash, event.prev_hash)
    with pytest.raises(CorruptLog, match="prev_hash"):
        check_link(event, of.header_hash, sha256(event.prev_hash).digest())


def test_events_link_to_the_one_before() -> None:
    """Each stream is a chain of its own from its genesis on, and its head is the last hash."""
    book = Book(LEDGER_ID)
    other = OPENING._replace(account="bob")

    stored = record(AssetDefined("USD", 2), OPENING, other, DEPOSIT, DEPOSIT, book=book)

    by_stream: dict[str, list[Recorded]] = {}
    for event in stored:
        by_stream.setdefault(event.stream, []).append(event)
    assert {stream: [event.version for event in events] for stream, events in by_stream.items()} == {
        "$ledger": [1],
        "alice": [1, 2, 3],
        "bob": [1],
    }
    for stream, events in by_stream.items():
        previous = genesis(LEDGER_ID, stream)
        for event in events:
            check_link(event, transaction().header_hash, previous)
            previous = event.event_hash
        assert book.stream(stream).head_hash == previous
        assert book.stream(stream).recorded_at == events[-1].recorded_at


def test_events_carry_the_numbers_after_them() -> None:
    """An account's event states the four numbers that it leads to; a ledger-wide fact has none."""
    stored = record(AssetDefined("USD", 2), OPENING, DEPOSIT, DEPOSIT._replace(direction=Direction.DEBIT, amount=200))

    assert [event.numbers for event in stored] == [None, Numbers(), Numbers(0, 500), Numbers(200, 500)]


def test_places_are_those_of_a_replay() -> None:
    """Placing events moves the book as replaying them does."""
    placed, replayed = Book(LEDGER_ID), Book(LEDGER_ID)
    events: list[Event] = [AssetDefined("USD", 2), OPENING, DEPOSIT, DEPOSIT]

    places = place(events, placed)

    assert placed == replay(replayed, events)
    assert [(stream.stream, version) for stream, version, _ in places] == [
        ("$ledger", 1),
        ("alice", 1),
        ("alice", 2),
        ("alice", 3),
    ]


@given(st.uuids(), st.uuids(), account_ids, account_ids)
def test_genesis_differs_by_ledger_and_stream(ledger: object, other_ledger: object, one: str, other: str) -> None:
    """A stream cannot be moved to another ledger, nor be taken for another stream of its own."""
    starts = {genesis(str(where), stream) for where in (ledger, other_ledger) for stream in (one, other)}

    assert len(starts) == len({(where, stream) for where in (ledger, other_ledger) for stream in (one, other)})
    assert genesis(str(ledger), one) == sha256(f"ledger/genesis/1\n{ledger}\n{one}".encode()).digest()


@pytest.mark.parametrize(
    ("entry", "hash_hex"),
    [
        # The test vectors of Certificate Transparency's reference implementation (and RFC 9162's).
        ("", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
        ("00", "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"),
        ("10", "0298d122906dcfc10892cb53a73992fc5b9f493ea4c9badb27b791b4127a7fe7"),
        ("2021", "07506a85fd9dd2f120eb694f86011e5bb4662e5c415a62917033d4a9624487e7"),
        ("3031", "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"),
        ("40414243", "4271a26be0d8a84f0bd54c8c302e7cb3a3b5d1fa6780a40bcce2873477dab658"),
    ],
)
def test_hash_is_the_leaf_hash_of_rfc_6962(entry: str, hash_hex: str) -> None:
    """The event hash is the Merkle leaf hash of the record, so that trees can be built over it."""
    assert leaf_hash(bytes.fromhex(entry)).hex() == hash_hex
