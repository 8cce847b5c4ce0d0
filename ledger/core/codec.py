"""
Events and transactions ⇄ canonical bytes.

Formats `ledger/event/1` and `ledger/transaction/1`: JSON in the form of RFC 8785 (keys sorted, no white
space), restricted to strings, integers up to 2^53-1, booleans and null, so that any JSON library can
reproduce it.  Amounts are strings of minor units; times are UTC with six decimals.

The texts are put together by hand: of all that goes into a record only the caller's own strings can need
escaping, and those are passed through a JSON encoder.  A property test holds the result against an
independent implementation of the standard.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, assert_never

from pydantic_core import to_json

from ledger.core.book import stream_of
from ledger.core.canonical import canonical_json, utc_text
from ledger.core.commands import (
    AccountType,
    Direction,
)
from ledger.core.errors import CorruptLog
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
    Numbers,
    PeriodClosed,
    Recorded,
    StateAdvanced,
    StripesChanged,
)

EVENT_FORMAT: Final = "ledger/event/1"
TRANSACTION_FORMAT: Final = "ledger/transaction/1"
RECORD_BYTES_MAX: Final = 65_535

ASSET_DEFINED: Final = "asset_defined"
ACCOUNT_OPENED: Final = "account_opened"
ACCOUNT_STATE_CHANGED: Final = "account_state_changed"
ACCOUNT_TERMS_CHANGED: Final = "account_terms_changed"
STRIPES_CHANGED: Final = "stripes_changed"
ENTRY_POSTED: Final = "entry_posted"
HOLD_PLACED: Final = "hold_placed"
HOLD_CAPTURED: Final = "hold_captured"
HOLD_RELEASED: Final = "hold_released"
HOLD_EXPIRED: Final = "hold_expired"
PERIOD_CLOSED: Final = "period_closed"
STATE_ADVANCED: Final = "state_advanced"

SCHEMA: Final = 1
"""The newest schema version of every event type; older ones are upcast in `event_from`."""


def payload_of(event: Event) -> tuple[str, str]:
    """The stored type and payload of an event."""
    if type(event) is EntryPosted:
        return ENTRY_POSTED, entry_payload(event.entry)
    kind, payload = _payload(event)
    return kind, canonical_json(payload)


def _payload(event: Event) -> tuple[str, dict[str, object]]:  # noqa: C901, PLR0911, PLR0912  (a table)
    match event:
        case EntryPosted():
            return ENTRY_POSTED, {"entry": event.entry}
        case HoldPlaced():
            expires_at = None if event.expires_at is None else utc_text(event.expires_at)
            return HOLD_PLACED, {"entry": event.entry, "expires_at": expires_at, "hold": event.hold}
        case HoldCaptured():
            return HOLD_CAPTURED, {"entry": event.entry, "hold": event.hold}
        case HoldReleased():
            return HOLD_RELEASED, {"entry": event.entry, "hold": event.hold}
        case HoldExpired():
            return HOLD_EXPIRED, {"entry": event.entry, "hold": event.hold}
        case AccountOpened():
            return ACCOUNT_OPENED, {
                "account_type": event.account_type,
                "asset": event.asset,
                "scale": event.scale,
                **_limits(event),
            }
        case AccountStateChanged():
            return ACCOUNT_STATE_CHANGED, {"reason": event.reason, "state": event.state}
        case AccountTermsChanged():
            return ACCOUNT_TERMS_CHANGED, {"reason": event.reason, **_limits(event)}
        case StripesChanged():
            return STRIPES_CHANGED, {"reason": event.reason, "streams": event.streams, "stripes": event.stripes}
        case AssetDefined():
            return ASSET_DEFINED, {"asset": event.asset, "scale": event.scale}
        case PeriodClosed():
            return PERIOD_CLOSED, {
                "reason": event.reason,
                "trial_balance": event.trial_balance,
                "until": utc_text(event.until),
            }
        case StateAdvanced():
            return STATE_ADVANCED, {
                "event": event.event,
                "fingerprint": event.fingerprint,
                "machine": event.machine,
                "source": event.source,
                "target": event.target,
            }
        case _:
            assert_never(event)


def _limits(event: AccountOpened | AccountTermsChanged) -> dict[str, object]:
    return {
        "max_balance": _optional(event.max_balance),
        "metadata": event.metadata,
        "min_balance": _optional(event.min_balance),
    }


@lru_cache(maxsize=256)
def entry_payload(entry: int) -> str:
    """The payload of the entry at this place of its transaction."""
    return f'{{"entry":{entry}}}'


def event_from(recorded: Recorded) -> Event:
    """
    Read an event back from what was recorded.

    Raises:
        CorruptLog: The stored event is not one that any release has written.
    """
    try:
        payload = json.loads(recorded.payload)
        if "\\u" in recorded.payload:
            # JSON can say half a character, which is in no text of ours.
            canonical_json(payload)
        if recorded.schema != SCHEMA:
            raise ValueError(f"schema version {recorded.schema} is not known to this release")
        event = _decode(recorded, payload)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptLog(recorded.stream, recorded.version, f"it cannot be read: {error}") from error
    mark = "$" if isinstance(event, AssetDefined | PeriodClosed) else "#" if isinstance(event, StateAdvanced) else ""
    found = recorded.stream[:1] if recorded.stream.startswith(("$", "#")) else ""
    if stream_of(event) != recorded.stream or found != mark:
        raise CorruptLog(recorded.stream, recorded.version, f"a {recorded.type} does not belong in this stream")
    return event


def _decode(recorded: Recorded, payload: dict[str, Any]) -> Event:  # noqa: C901, PLR0911, PLR0912  (a table)
    match recorded.type:
        case "entry_posted":
            return EntryPosted(*_moved(recorded, payload))
        case "hold_placed":
            return HoldPlaced(*_moved(recorded, payload), str(payload["hold"]), _moment(payload["expires_at"]))
        case "hold_captured":
            return HoldCaptured(*_moved(recorded, payload), str(payload["hold"]))
        case "hold_released":
            return HoldReleased(*_moved(recorded, payload), str(payload["hold"]))
        case "hold_expired":
            return HoldExpired(*_moved(recorded, payload), str(payload["hold"]))
        case "account_opened":
            return AccountOpened(
                account=recorded.stream,
                account_type=AccountType(str(payload["account_type"])),
                asset=str(payload["asset"]),
                scale=int(str(payload["scale"])),
                min_balance=_integer(payload["min_balance"]),
                max_balance=_integer(payload["max_balance"]),
                metadata=_metadata(payload["metadata"]),
            )
        case "account_state_changed":
            return AccountStateChanged(recorded.stream, str(payload["state"]), _reason(payload))
        case "account_terms_changed":
            return AccountTermsChanged(
                account=recorded.stream,
                min_balance=_integer(payload["min_balance"]),
                max_balance=_integer(payload["max_balance"]),
                metadata=_metadata(payload["metadata"]),
                reason=_reason(payload),
            )
        case "stripes_changed":
            stripes, streams = (int(str(payload[name])) for name in ("stripes", "streams"))
            return StripesChanged(recorded.stream, stripes, streams, _reason(payload))
        case "asset_defined":
            return AssetDefined(asset=str(payload["asset"]), scale=int(str(payload["scale"])))
        case "period_closed":
            lines = tuple(
                (str(asset), str(kind), str(debits), str(credits))
                for asset, kind, debits, credits in payload["trial_balance"]
            )
            return PeriodClosed(_zoned(payload["until"]), lines, _reason(payload))
        case "state_advanced":
            names = (str(payload[name]) for name in ("machine", "event", "source", "target", "fingerprint"))
            return StateAdvanced(recorded.stream, *names)
        case _:
            raise ValueError(f"type {recorded.type!r} is not known to this release")


def _moved(recorded: Recorded, payload: dict[str, Any]) -> tuple[str, Direction, str, int, int]:
    """The first fields of everything that moves an amount."""
    if recorded.asset is None or recorded.amount is None:
        raise ValueError("it moves no amount")
    return recorded.stream, Direction(str(recorded.direction)), recorded.asset, recorded.amount, int(payload["entry"])


def _moment(text: object) -> datetime | None:
    return None if text is None else _zoned(text)


def _zoned(text: object) -> datetime:
    moment = datetime.fromisoformat(str(text))
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no zone")
    return moment


def _reason(payload: dict[str, Any]) -> str | None:
    return None if payload["reason"] is None else str(payload["reason"])


def _metadata(metadata: object) -> dict[str, str | int | bool]:
    if not isinstance(metadata, dict):
        raise TypeError("metadata is not an object")
    return metadata


def event_record(
    header_hash: str,
    stream: str,
    version: int,
    transaction_id: str,
    kind: str,
    payload: str,
    schema: int,
    asset: str | None,
    direction: str | None,
    amount: int | None,
    numbers: Numbers | None,
    effective_at: datetime,
    recorded_at: datetime,
    prev_hash: bytes,
) -> bytes:
    """
    The bytes that an event's hash covers: the transaction's hash in hex, and the fields of `Recorded`.

    Raises:
        CorruptLog: The record is larger than 65,535 bytes.
    """
    entry = ""
    if not (amount is None and asset is None and direction is None):
        entry = entry_part(amount, asset, direction)
    pending = posted = ""
    if numbers is not None:
        debits, credits, pending_debits, pending_credits = numbers
        pending = pending_part(pending_debits, pending_credits)
        posted = posted_part(debits, credits)
    record = record_text(
        header_hash,
        stream,
        version,
        transaction_id,
        kind,
        payload_hash(payload),
        schema,
        entry + f'"effective_at":"{utc_text(effective_at)}"',
        pending + posted,
        utc_text(recorded_at),
        prev_hash.hex(),
    ).encode()
    if len(record) > RECORD_BYTES_MAX:
        raise CorruptLog(stream, version, f"its record is larger than {RECORD_BYTES_MAX} bytes")
    return record


def record_text(
    header_hash: str,
    stream: str,
    version: object,
    transaction_id: str,
    kind: str,
    payload_sha256: str,
    schema: object,
    entry_and_effect: str,
    numbers: str,
    recorded_at: str,
    prev: str,
) -> str:
    """
    The one form of a record, from parts that are texts already: hashes in hex, times as `utc_text` has them.

    Whoever reads a row as text can hash it without reading it into values first.
    """
    return (
        f'{{{entry_and_effect},"format":"{EVENT_FORMAT}",'
        f'"header_sha256":"{header_hash}","payload_sha256":"{payload_sha256}",{numbers}'
        f'"prev":"{prev}","recorded_at":"{recorded_at}","schema":{schema},'
        f'"stream":"{stream}","transaction_id":"{transaction_id}","type":"{kind}","version":{version}}}'
    )


def entry_part(amount: object, asset: str | None, direction: str | None) -> str:
    """The part of a record that says what it moves."""
    return f'"amount":"{amount}","asset":"{asset}","direction":"{direction}",'


def pending_part(debits: object, credits: object) -> str:
    """The part of a record that says what is pending after it."""
    return f'"pending_credits":"{credits}","pending_debits":"{debits}",'


def posted_part(debits: object, credits: object) -> str:
    """The part of a record that says what is posted after it."""
    return f'"posted_credits":"{credits}","posted_debits":"{debits}",'


@lru_cache(maxsize=1024)
def payload_hash(payload: str) -> str:
    """SHA-256 of the exact stored text, in hex.  Cached: most payloads are one of a few."""
    return sha256(payload.encode()).hexdigest()


def transaction_header(
    transaction_id: str,
    kind: str,
    scope: str,
    idempotency_key: str | None,
    request: str,
    entry_count: int,
    streams: tuple[str, ...],
    versions: tuple[int, ...],
    reference: str | None,
    effective_at: datetime,
    recorded_at: datetime,
    actor: str | None,
    correlation_id: str | None,
    causation_id: str | None,
    metadata: str | None,
) -> bytes:
    """The bytes that a transaction's header hash covers: all of its fields."""
    return header_text(
        transaction_id,
        kind,
        scope,
        idempotency_key,
        request,
        entry_count,
        ",".join([f'["{stream}",{version}]' for stream, version in zip(streams, versions, strict=True)]),
        reference,
        utc_text(effective_at),
        utc_text(recorded_at),
        actor,
        correlation_id,
        causation_id,
        metadata,
    ).encode()


def header_text(
    transaction_id: str,
    kind: str,
    scope: str,
    idempotency_key: str | None,
    request: str,
    entry_count: object,
    announced: str,
    reference: str | None,
    effective_at: str,
    recorded_at: str,
    actor: str | None,
    correlation_id: str | None,
    causation_id: str | None,
    metadata: str | None,
) -> str:
    """The one form of a header, from texts; `announced` are its events as JSON, times are as `utc_text` has them."""
    return (
        f'{{"actor":{_text(actor)},"causation_id":{_text(causation_id)},"correlation_id":{_text(correlation_id)},'
        f'"effective_at":"{effective_at}","entry_count":{entry_count},"events":[{announced}],'
        f'"format":"{TRANSACTION_FORMAT}","idempotency_key":{_text(idempotency_key)},"kind":"{kind}",'
        f'"metadata":{metadata or "{}"},"recorded_at":"{recorded_at}","reference":{_text(reference)},'
        f'"request":{request},"scope":{_text(scope)},"transaction_id":"{transaction_id}"}}'
    )


def head_checksum(
    stream: str,
    version: int,
    numbers: Numbers,
    head_hash: bytes,
    recorded_at: datetime,
    terms: tuple[object, ...] | None,
) -> bytes:
    """
    The checksum that a projected row carries, so that a change made by anyone else is seen.

    SHA-256 over the fields joined by `|`; `projector.CHECKSUM` computes the same in SQL.
    """
    amounts = f"{numbers[0]}|{numbers[1]}|{numbers[2]}|{numbers[3]}"
    text = f"{stream}|{version}|{amounts}|{head_hash.hex()}|{utc_text(recorded_at)}"
    return sha256((text if terms is None else text + terms_text(terms)).encode()).digest()


@lru_cache(maxsize=65_536)
def terms_text(terms: tuple[object, ...]) -> str:
    """The part of a checksum's text that says what an account was opened as."""
    account_type, _, asset, scale, lowest, highest, state, metadata, stripes, streams = terms
    # The checksums of accounts that never had stripes are those of the releases before there were any.
    striped = "" if (stripes, streams) == (1, 1) else f"|{stripes}|{streams}"
    return f"|{account_type}|{asset}|{scale}|{_plain(lowest)}|{_plain(highest)}|{state}|{metadata}{striped}"


def leg_checksum(leg: tuple[object, ...]) -> bytes:
    """The checksum of one side of a hold; `projector.CHECKSUM_OF_LEG` computes the same in SQL."""
    *fields, expires_at = leg
    moment = utc_text(expires_at) if isinstance(expires_at, datetime) else ""
    return sha256("|".join([*map(str, fields), moment]).encode()).digest()


def _plain(value: object) -> str:
    return "" if value is None else str(value)


def _text(value: str | None) -> str:
    return "null" if value is None else to_json(value).decode()


def _optional(value: int | None) -> str | None:
    return None if value is None else str(value)


def _integer(value: object) -> int | None:
    return None if value is None else int(str(value))
