"""The texts that are stored and hashed are those of RFC 8785, and can be read back."""

from __future__ import annotations

import json
from datetime import datetime
from hashlib import sha256
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from samples import (
    LEDGER_ID,
    MOMENT,
    account_ids,
    accounts_opened,
    events,
    keys,
    moments,
    numbers,
    record,
    recorded_events,
    scalars,
    transactions,
    versions,
)

from ledger import AccountType, CorruptLog, Direction, Numbers, Recorded, Transaction
from ledger.core.book import Book, replay, terms_of
from ledger.core.codec import (
    ACCOUNT_OPENED,
    ASSET_DEFINED,
    ENTRY_POSTED,
    RECORD_BYTES_MAX,
    event_from,
    event_record,
    head_checksum,
    payload_of,
    transaction_header,
)
from ledger.core.canonical import canonical_json, utc_text
from ledger.core.events import AccountOpened, AssetDefined, EntryPosted, Event

HEADER_HASH = "ab" * 32

values = st.recursive(
    st.none() | scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)
)


def record_object(header_hash: str, event: Recorded) -> dict[str, Any]:
    """The object that format `ledger/event/1` describes, put together from the documentation."""
    content: dict[str, Any] = {
        "format": "ledger/event/1",
        "stream": event.stream,
        "version": event.version,
        "transaction_id": event.transaction_id,
        "type": event.type,
        "schema": event.schema,
        "payload_sha256": sha256(event.payload.encode()).hexdigest(),
        "header_sha256": header_hash,
        "prev": event.prev_hash.hex(),
        "effective_at": f"{event.effective_at:%Y-%m-%dT%H:%M:%S.%f}Z".rjust(27, "0"),
        "recorded_at": f"{event.recorded_at:%Y-%m-%dT%H:%M:%S.%f}Z".rjust(27, "0"),
    }
    if event.amount is not None:
        content |= {"asset": event.asset, "direction": event.direction, "amount": str(event.amount)}
    if event.numbers is not None:
        content |= {name: str(number) for name, number in event.numbers._asdict().items()}
    return content


def header_object(of: Transaction) -> dict[str, Any]:
    """The object that format `ledger/transaction/1` describes."""
    return {
        "format": "ledger/transaction/1",
        "transaction_id": of.transaction_id,
        "kind": of.kind,
        "scope": of.scope,
        "idempotency_key": of.idempotency_key,
        "request": json.loads(of.request),
        "entry_count": of.entry_count,
        "events": [list(event) for event in zip(of.streams, of.versions, strict=True)],
        "reference": of.reference,
        "effective_at": f"{of.effective_at:%Y-%m-%dT%H:%M:%S.%f}Z".rjust(27, "0"),
        "recorded_at": f"{of.recorded_at:%Y-%m-%dT%H:%M:%S.%f}Z".rjust(27, "0"),
        "actor": of.actor,
        "correlation_id": of.correlation_id,
        "causation_id": of.causation_id,
        "metadata": json.loads(of.metadata or "{}"),
    }


@given(values)
def test_canonical_json_is_rfc_8785(value: object) -> None:
    """Whatever strings and keys a value has, its text is that of an independent implementation."""
    assert canonical_json(value).encode() == rfc8785.dumps(value)  # type: ignore[arg-type]


@given(recorded_events())
def test_records_are_rfc_8785(recorded: tuple[Transaction, Recorded]) -> None:
    """The hand-built record is the canonical JSON of the documented object."""
    of, event = recorded
    header_hash = of.header_hash.hex()

    assert event_record(header_hash, *event[:-1]) == rfc8785.dumps(record_object(header_hash, event))


@given(transactions())
def test_headers_are_rfc_8785(of: Transaction) -> None:
    """The hand-built header is the canonical JSON of the documented object."""
    assert transaction_header(*of[:-1]) == rfc8785.dumps(header_object(of))


@given(events)
def test_payloads_are_rfc_8785(event: Event) -> None:
    """A payload is canonical JSON whose integers any JSON library keeps exact."""
    _, payload = payload_of(event)

    assert payload.encode() == rfc8785.dumps(json.loads(payload))


@given(events)
def test_events_round_trip(event: Event) -> None:
    """What is read back from the record is the event that was written, to the type of every value."""
    again = event_from(record(event)[0])

    assert again == event
    assert [type(value) for value in again] == [type(value) for value in event]
    if isinstance(event, AccountOpened) and isinstance(again, AccountOpened):
        assert repr(sorted(again.metadata.items())) == repr(sorted(event.metadata.items()))


@given(accounts_opened)
def test_openings_set_the_terms_they_state(opening: AccountOpened) -> None:
    """Terms are what was opened, with canonical metadata; replaying the record gives the same terms."""
    book = replay(Book(LEDGER_ID), [event_from(record(opening)[0])])
    terms = book.stream(opening.account).terms

    assert terms == terms_of(opening)
    assert terms is not None
    assert json.loads(terms.metadata) == opening.metadata


def test_types_have_names() -> None:
    """The names of types are part of the format: a stored event is found by them."""
    assert (ASSET_DEFINED, ACCOUNT_OPENED, ENTRY_POSTED) == ("asset_defined", "account_opened", "entry_posted")


ENTRY = record(EntryPosted("alice", Direction.CREDIT, "USD", 5, 0))[0]
OPENING = record(AccountOpened("alice", AccountType.LIABILITY, "USD", 2, 0, None, {"a": 1}))[0]
DEFINITION = record(AssetDefined("BTC", 8))[0]


@pytest.mark.parametrize(
    "stored",
    [
        ENTRY._replace(schema=0),
        ENTRY._replace(schema=2),
        ENTRY._replace(type="entry_postponed"),
        ENTRY._replace(type=""),
        ENTRY._replace(payload=""),
        ENTRY._replace(payload="{}"),
        ENTRY._replace(payload="[]"),
        ENTRY._replace(payload="7"),
        ENTRY._replace(payload='{"entry":"x"}'),
        ENTRY._replace(payload='{"entry":null}'),
        ENTRY._replace(payload="[" * 100_000),
        ENTRY._replace(amount=None),
        ENTRY._replace(asset=None),
        ENTRY._replace(direction=None),
        ENTRY._replace(direction="sideways"),
        ENTRY._replace(stream="$ledger"),
        OPENING._replace(stream="$ledger"),
        OPENING._replace(payload="{}"),
        OPENING._replace(payload=OPENING.payload.replace("liability", "purse")),
        OPENING._replace(payload=OPENING.payload.replace('{"a":1}', "[]")),
        OPENING._replace(payload=OPENING.payload.replace('"0"', '"nothing"')),
        DEFINITION._replace(stream="alice"),
        DEFINITION._replace(payload='{"asset":"BTC"}'),
    ],
    ids=lambda stored: f"{stored.type} {stored.payload[:30]}",
)
def test_what_no_release_wrote_is_corrupt(stored: Recorded) -> None:
    """A stored event that cannot be read is reported with its place, and nothing else is raised."""
    with pytest.raises(CorruptLog) as corruption:
        event_from(stored)

    assert (corruption.value.stream, corruption.value.version) == (stored.stream, stored.version)


def test_records_are_bounded() -> None:
    """A record has at most 65,535 bytes: what a hash covers can be kept beside it anywhere."""
    (event,) = record(EntryPosted("alice", Direction.CREDIT, "USD", 5, 0))
    room = RECORD_BYTES_MAX - len(event_record(HEADER_HASH, *event[:-1]))
    longest = event._replace(transaction_id=event.transaction_id + "x" * room)

    assert len(event_record(HEADER_HASH, *longest[:-1])) == 65_535
    with pytest.raises(CorruptLog, match="65535 bytes"):
        event_record(HEADER_HASH, *longest._replace(transaction_id=longest.transaction_id + "x")[:-1])


def test_largest_record_fits() -> None:
    """No event that commands can cause comes near the limit: ids, amounts and times at their longest."""
    most = 10**38 - 1
    event = EntryPosted("a" * 128, Direction.CREDIT, "A" * 32, most, 199)
    (stored,) = record(event)
    record_bytes = event_record(
        HEADER_HASH, *stored._replace(version=2**53 - 1, numbers=Numbers(most, most, most, most))[:-1]
    )

    assert len(record_bytes) < 1_500


@given(moments)
def test_times_read_back(moment: datetime) -> None:
    """A time is written in UTC with six decimals, at one length, so that texts sort as times do."""
    text = utc_text(moment)

    assert datetime.fromisoformat(text) == moment
    assert len(text) == len("2026-01-02T03:04:05.123456Z")


CHECKED: dict[str, Any] = {
    "stream": "alice",
    "version": 3,
    "numbers": Numbers(1, 2, 3, 4),
    "head_hash": b"\1" * 32,
    "recorded_at": MOMENT,
    "terms": terms_of(AccountOpened("alice", AccountType.LIABILITY, "USD", 2, 0, None, {"a": 1})),
}


@pytest.mark.parametrize(
    "change",
    [
        {"stream": "alicf"},
        {"version": 4},
        {"numbers": Numbers(2, 2, 3, 4)},
        {"numbers": Numbers(1, 3, 3, 4)},
        {"numbers": Numbers(1, 2, 4, 4)},
        {"numbers": Numbers(1, 2, 3, 5)},
        {"numbers": Numbers(2, 1, 3, 4)},
        {"numbers": Numbers(12, 3, 4, 0)},
        {"head_hash": b"\2" * 32},
        {"recorded_at": MOMENT.replace(microsecond=1)},
        {"terms": None},
        {"terms": CHECKED["terms"]._replace(account_type=AccountType.EQUITY)},
        {"terms": CHECKED["terms"]._replace(asset="EUR")},
        {"terms": CHECKED["terms"]._replace(scale=3)},
        {"terms": CHECKED["terms"]._replace(min_balance=None)},
        {"terms": CHECKED["terms"]._replace(min_balance=1)},
        {"terms": CHECKED["terms"]._replace(min_balance=None, max_balance=0)},
        {"terms": CHECKED["terms"]._replace(state="frozen")},
        {"terms": CHECKED["terms"]._replace(metadata='{"a":2}')},
    ],
    ids=str,
)
def test_checksum_covers_every_field(change: dict[str, Any]) -> None:
    """Whatever changes in a projected row changes its checksum."""
    assert head_checksum(**{**CHECKED, **change}) != head_checksum(**CHECKED)


@given(account_ids, versions, numbers, accounts_opened)
def test_checksum_is_a_sha256_of_plain_text(stream: str, version: int, after: Numbers, opening: AccountOpened) -> None:
    """The checksum is the documented one: anyone can compute it, in SQL too."""
    terms = terms_of(opening)
    limits = ["" if limit is None else str(limit) for limit in (terms.min_balance, terms.max_balance)]
    account = [terms.account_type.value, terms.asset, str(terms.scale), *limits, terms.state, terms.metadata]
    fields = [stream, str(version), *map(str, after), "07" * 32, "2026-01-02T03:04:05.123456Z", *account]

    checksum = head_checksum(stream, version, after, b"\7" * 32, MOMENT, terms)

    assert checksum == sha256("|".join(fields).encode()).digest()
