"""The texts that are stored and hashed are those of RFC 8785, and can be read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import Any, get_args

import pytest
import rfc8785
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from samples import (
    LEDGER_ID,
    MOMENT,
    TRANSACTION_ID,
    account_ids,
    accounts_opened,
    events,
    holds_placed,
    keys,
    moments,
    numbers,
    positive,
    record,
    recorded_events,
    scalars,
    transactions,
    versions,
)

from ledger import AccountType, CorruptLog, Direction, Numbers, Recorded, Transaction
from ledger.core.book import Book, Leg, replay, terms_of
from ledger.core.canonical import canonical_json, utc_text
from ledger.core.codec import (
    RECORD_BYTES_MAX,
    event_from,
    event_record,
    head_checksum,
    leg_checksum,
    payload_of,
    transaction_header,
)
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
    PeriodClosed,
    StateAdvanced,
    StripesChanged,
)

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


NAMES: dict[str, Event] = {
    "asset_defined": AssetDefined("BTC", 8),
    "account_opened": AccountOpened("alice", AccountType.LIABILITY, "USD", 2, None, None, {}),
    "account_state_changed": AccountStateChanged("alice", "frozen", None),
    "account_terms_changed": AccountTermsChanged("alice", None, None, {}, None),
    "stripes_changed": StripesChanged("alice#07", 8, 64, None),
    "entry_posted": EntryPosted("alice", Direction.CREDIT, "USD", 5, 0),
    "hold_placed": HoldPlaced("alice", Direction.CREDIT, "USD", 5, 0, TRANSACTION_ID, None),
    "hold_captured": HoldCaptured("alice", Direction.CREDIT, "USD", 5, 0, TRANSACTION_ID),
    "hold_released": HoldReleased("alice", Direction.CREDIT, "USD", 5, 0, TRANSACTION_ID),
    "hold_expired": HoldExpired("alice", Direction.CREDIT, "USD", 5, 0, TRANSACTION_ID),
    "period_closed": PeriodClosed(MOMENT, (), None),
    "state_advanced": StateAdvanced("#payment/p1", "payment", "begin", "", "created", "ab" * 32),
}


@pytest.mark.parametrize("name", NAMES)
def test_types_have_names(name: str) -> None:
    """The names of types are part of the format: a stored event is found by them."""
    assert payload_of(NAMES[name])[0] == name
    assert event_from(record(NAMES[name])[0]) == NAMES[name]


def test_every_type_has_a_name_and_samples() -> None:
    """No type of event is without a name of its own, nor left out of what the properties draw."""
    assert {type(event) for event in NAMES.values()} == set(get_args(Event))
    for name in NAMES:
        found = settings(phases=[Phase.generate], max_examples=2_000)
        find(events, lambda event, name=name: payload_of(event)[0] == name, settings=found)  # type: ignore[misc]


HELD, TAKEN, STATE, TERMS, PERIOD, STEP = (
    record(NAMES[name])[0]
    for name in (
        "hold_placed",
        "hold_captured",
        "account_state_changed",
        "account_terms_changed",
        "period_closed",
        "state_advanced",
    )
)
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
        HELD._replace(amount=None),
        HELD._replace(stream="#payment/p1"),
        HELD._replace(payload=HELD.payload.replace("null", '"soon"')),
        HELD._replace(payload=HELD.payload.replace("null", "7")),
        HELD._replace(payload=HELD.payload.replace("expires_at", "expires")),
        HELD._replace(payload=HELD.payload.replace("hold", "held")),
        TAKEN._replace(payload='{"entry":0}'),
        TAKEN._replace(type="hold_placed"),
        STATE._replace(payload='{"state":"frozen"}'),
        STATE._replace(stream="$ledger"),
        TERMS._replace(payload="{}"),
        TERMS._replace(payload=TERMS.payload.replace("{}", "7")),
        TERMS._replace(stream="#payment/p1"),
        PERIOD._replace(stream="alice"),
        PERIOD._replace(stream="#payment/p1"),
        PERIOD._replace(payload=PERIOD.payload.replace("2026-01-02", "the day of")),
        PERIOD._replace(payload=PERIOD.payload.replace("[]", "null")),
        PERIOD._replace(payload=PERIOD.payload.replace("[]", '[["USD","asset","1"]]')),
        STEP._replace(stream="alice"),
        STEP._replace(stream="$ledger"),
        STEP._replace(payload=STEP.payload.replace("target", "goal")),
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


@pytest.mark.parametrize("kind", [EntryPosted, HoldPlaced, HoldCaptured, HoldReleased, HoldExpired])
def test_largest_record_fits(kind: Callable[..., Event]) -> None:
    """No event that commands can cause comes near the limit: ids, amounts and times at their longest."""
    most = 10**38 - 1
    further = {EntryPosted: (), HoldPlaced: (TRANSACTION_ID, MOMENT)}.get(kind, (TRANSACTION_ID,))  # type: ignore[call-overload]
    event = kind("a" * 128, Direction.CREDIT, "A" * 32, most, 199, *further)
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
        {"terms": CHECKED["terms"]._replace(stripes=2)},
        {"terms": CHECKED["terms"]._replace(streams=2)},
        {"terms": CHECKED["terms"]._replace(stripes=0)},
    ],
    ids=str,
)
def test_checksum_covers_every_field(change: dict[str, Any]) -> None:
    """Whatever changes in a projected row changes its checksum."""
    assert head_checksum(**{**CHECKED, **change}) != head_checksum(**CHECKED)


@given(account_ids, versions, numbers, accounts_opened, st.sampled_from([(1, 1), (1, 2), (2, 2), (8, 64)]))
def test_checksum_is_a_sha256_of_plain_text(
    stream: str, version: int, after: Numbers, opening: AccountOpened, spread: tuple[int, int]
) -> None:
    """The checksum is the documented one: anyone can compute it, in SQL too; stripes are in it where there are any."""
    terms = terms_of(opening)._replace(stripes=spread[0], streams=spread[1])
    limits = ["" if limit is None else str(limit) for limit in (terms.min_balance, terms.max_balance)]
    account = [terms.account_type.value, terms.asset, str(terms.scale), *limits, terms.state, terms.metadata]
    account += map(str, spread if spread != (1, 1) else ())
    fields = [stream, str(version), *map(str, after), "07" * 32, "2026-01-02T03:04:05.123456Z", *account]

    checksum = head_checksum(stream, version, after, b"\7" * 32, MOMENT, terms)

    assert checksum == sha256("|".join(fields).encode()).digest()


LEG = Leg(TRANSACTION_ID, "alice", Direction.DEBIT, "USD", 20_00, 5_00, 4_00, 3_00, MOMENT)


@pytest.mark.parametrize(
    "change",
    [
        {"hold": TRANSACTION_ID.replace("1", "2")},
        {"account": "alicf"},
        {"direction": Direction.CREDIT},
        {"asset": "EUR"},
        {"amount": 20_01},
        {"captured": 5_01},
        {"released": 4_01},
        {"expired": 3_01},
        {"captured": 4_00, "released": 5_00},
        {"captured": 0, "released": 50_04_00},
        {"expires_at": None},
        {"expires_at": MOMENT.replace(microsecond=1)},
    ],
    ids=str,
)
def test_checksum_of_a_leg_covers_every_field(change: dict[str, Any]) -> None:
    """Whatever changes in the projected row of a hold changes its checksum."""
    assert leg_checksum(LEG._replace(**change)) != leg_checksum(LEG)


@given(holds_placed, st.tuples(positive, positive, positive))
def test_checksum_of_a_leg_is_a_sha256_of_plain_text(placed: HoldPlaced, became: tuple[int, int, int]) -> None:
    """The checksum of a leg is the documented one: anyone can compute it, in SQL too."""
    moment = "" if placed.expires_at is None else f"{placed.expires_at:%Y-%m-%dT%H:%M:%S.%f}Z".rjust(27, "0")
    of_hold = [placed.hold, placed.account, placed.direction.value, placed.asset]
    fields = [*of_hold, str(placed.amount), *map(str, became), moment]

    leg = Leg(placed.hold, placed.account, placed.direction, placed.asset, placed.amount, *became, placed.expires_at)

    assert leg_checksum(leg) == sha256("|".join(fields).encode()).digest()
