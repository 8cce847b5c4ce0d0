"""
Bytes and headers → messages.

`cloudevents` reads CloudEvents 1.0 as JSON, in each of its modes:

- structured: one event as an object (`application/cloudevents+json`);
- batched: a list of them (`application/cloudevents-batch+json`);
- binary: the body is `data`, and the attributes are headers, `ce-…` over HTTP (percent-encoded) or `ce_…` in Kafka.

Without headers the body decides: an object is one event, a list is a batch.

`seed` reads `{"id", "sequenceNumber", "entityId", "timestamp", "type", "data"}`, alone or in a list.

`sequence` may be an integer or a text of decimal digits, padded with zeros or not: 42, "42" and "00000042" are the
same.  Keys that are given twice, NaN and infinity are refused everywhere.

Sources of these formats: CloudEvents 1.0.2 core, JSON event format, HTTP and Kafka protocol bindings, and the
sequence and partitioning extensions.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import unquote

from ledger.core.errors import UndecodableMessage
from ledger.order.message import NAME_CHARACTERS_MAX, SEQUENCE_DIGITS, Json, Message, shown

Headers: TypeAlias = Iterable[tuple[str, str | bytes | None]]
"""As HTTP and Kafka have them: pairs, of which Kafka's may be empty."""

Decoded: TypeAlias = Message | UndecodableMessage

BODY_BYTES_MAX: Final = 4 * 1024 * 1024
BATCH_MESSAGES_MAX: Final = 1_000
HEADERS_MAX: Final = 100
HEADER_BYTES_MAX: Final = 16 * 1024
"""Of a header's value."""

_STRUCTURED: Final = "application/cloudevents"
_BATCHED: Final = "application/cloudevents-batch"
_JSON_TYPE: Final = re.compile(r"[a-z0-9.+-]+/(json|[a-z0-9.+-]+\+json)")
_CHARSETS: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_SEQUENCE: Final = re.compile(rf"[0-9]{{1,{SEQUENCE_DIGITS}}}")
_SEQUENCE_TYPES: Final = frozenset({"Integer", "LedgerInt64"})
_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d):(\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)  # RFC 3339, section 5.6
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Decoder(Protocol):
    """
    Whatever turns what a transport delivered into messages.

    `source` stands in where the format does not name one.  What is wrong with one message of a batch is returned in
    its place, so that the others can go on; what is wrong with the whole is raised.

    Raises:
        UndecodableMessage: Nothing of the body can be read.
    """

    def __call__(self, body: bytes, headers: Headers = (), source: str = "") -> list[Decoded]: ...


def decoder(name: str) -> Decoder:
    """
    Give one of our decoders by its name in DECODERS.

    Raises:
        LookupError: There is none of that name.
    """
    if name not in DECODERS:
        raise LookupError(f"there is no decoder {name!r}; there are {', '.join(DECODERS)}")
    return DECODERS[name]


def cloudevents(body: bytes, headers: Headers = (), source: str = "") -> list[Decoded]:
    """Decode a CloudEvent, or a batch of them; see the module for the modes."""
    known = _headers(headers)
    content_type = known.pop("content-type", "")
    media, charset = _media_type(content_type)
    if charset not in _CHARSETS:
        raise UndecodableMessage("content-type", f"its charset is {shown(charset)}", "Send UTF-8.")
    if media.startswith("application/cloudevents"):
        if media not in (f"{_STRUCTURED}+json", f"{_BATCHED}+json", _STRUCTURED, _BATCHED):
            advice = f"Send {_STRUCTURED}+json, {_BATCHED}+json, or binary mode with JSON data."
            raise UndecodableMessage("content-type", f"{shown(media)} is not read here", advice)
        return _each(_parsed(body), _structured, source, batch=media.startswith(_BATCHED))
    attributes = {name[3:]: _attribute(name, value) for name, value in known.items() if name[:3] in ("ce-", "ce_")}
    if attributes:
        _check_json(media)
        return [_event(_spelled_once(known, attributes), _parsed(body) if body else None, source)]
    return _each(_parsed(body), _structured, source)


def seed(body: bytes, headers: Headers = (), source: str = "") -> list[Decoded]:  # noqa: ARG001  (a decoder's shape)
    """Decode `id, sequenceNumber, entityId, timestamp, type, data`; the source is the caller's to name."""
    return _each(_parsed(body), _of_seed, source)


DECODERS: Final[Mapping[str, Decoder]] = {"cloudevents": cloudevents, "seed": seed}


def _each(
    parsed: Json, decode: Callable[[dict[str, Any], str], Message], source: str, *, batch: bool | None = None
) -> list[Decoded]:
    """Decode an object or a list of them; `batch` says which it must be."""
    if isinstance(parsed, dict) and not batch:
        return [decode(parsed, source)]
    if not isinstance(parsed, list) or batch is False:
        wanted = "a list of objects" if batch else "an object"
        raise UndecodableMessage("body", f"it is {shown(parsed)}", f"Send {wanted} with the message's attributes.")
    if len(parsed) > BATCH_MESSAGES_MAX:
        problem = f"the batch has {len(parsed)} messages, more than {BATCH_MESSAGES_MAX}"
        raise UndecodableMessage("body", problem, "Send several batches.")
    return [_one(f"[{index}]", part, decode, source) for index, part in enumerate(parsed)]


def _one(where: str, part: Json, decode: Callable[[dict[str, Any], str], Message], source: str) -> Decoded:
    try:
        if not isinstance(part, dict):
            raise UndecodableMessage("", f"{shown(part)} is not an object", "Send one object per message.")
        return decode(part, source)
    except UndecodableMessage as error:
        return replace(error, where=f"{where}.{error.where}".removesuffix("."))


# CloudEvents


def _structured(plain: dict[str, Any], source: str) -> Message:
    """One event of the JSON event format.  A null is as good as absent, which the format demands."""
    given = {name: value for name, value in plain.items() if value is not None}
    data = given.pop("data", None)
    coded = given.pop("data_base64", None)
    _check_json(_media_type(_text_or(given, "datacontenttype", ""))[0])
    if coded is not None:
        if "data" in plain and data is not None:
            raise UndecodableMessage("data_base64", "data is given as well", "Send one of them.")
        try:
            data = _parsed(base64.b64decode(coded, validate=True), "data_base64")
        except (TypeError, ValueError, binascii.Error) as error:
            if isinstance(error, UndecodableMessage):
                raise
            raise UndecodableMessage("data_base64", "it is not Base64", "Send RFC 4648 with padding.") from None
    return _event(given, data, source)


def _event(given: dict[str, Any], data: Json, source: str) -> Message:
    """A message of CloudEvents attributes, as JSON or headers have them."""
    if (version := given.pop("specversion", None)) != "1.0":
        raise UndecodableMessage("specversion", f"it is {shown(version)}", 'Send CloudEvents "1.0".')
    if (kind := _text_or(given, "sequencetype", "Integer")) not in _SEQUENCE_TYPES:
        advice = "Leave it out, and send sequences that count 1, 2, 3 …"
        raise UndecodableMessage("sequencetype", f"{shown(kind)} is not known here", advice)
    for interpreted in ("datacontenttype", "sequencetype"):
        given.pop(interpreted, None)
    subject = given.get("subject", "")
    partition = given.pop("partitionkey", None)
    # Only what is absent, or empty, is: what is no text is refused, false and 0 too.
    stream = subject if partition is None or partition == "" else partition
    if subject == stream:
        given.pop("subject", None)
    return Message(
        source=given.pop("source", source),
        id=given.pop("id", ""),
        type=given.pop("type", ""),
        stream=stream,
        sequence=_sequence(given.pop("sequence", None)),
        time=_time(given.pop("time", None)),
        data=data,
        extensions=given,
    )


def _headers(headers: Headers) -> dict[str, str]:
    """The headers by lower-case name; a repeated one counts if it is not ours, and is refused if it is."""
    known: dict[str, str] = {}
    for count, (name, value) in enumerate(headers, start=1):
        if count > HEADERS_MAX:
            raise UndecodableMessage("headers", f"there are more than {HEADERS_MAX}", "Send fewer.")
        key = name.lower()
        if key != "content-type" and key[:3] not in ("ce-", "ce_"):
            continue
        if key in known:
            raise UndecodableMessage(key, "the header is given twice", "Send it once.")
        if value is None:
            continue
        if len(value) > HEADER_BYTES_MAX:
            raise UndecodableMessage(key, f"it is longer than {HEADER_BYTES_MAX} bytes", "Send a shorter one.")
        try:
            known[key] = value if isinstance(value, str) else value.decode()
        except UnicodeDecodeError:
            raise UndecodableMessage(key, f"{shown(value)} is not UTF-8", "Send UTF-8.") from None
    return known


def _spelled_once(known: dict[str, str], attributes: dict[str, str]) -> dict[str, Any]:
    """The attributes, unless a header came in both spellings."""
    for name in attributes:
        if f"ce-{name}" in known and f"ce_{name}" in known:
            raise UndecodableMessage(name, f"there are headers ce-{name} and ce_{name}", "Send one of them.")
    return dict(attributes)


def _attribute(name: str, value: str) -> str:
    """The value of a header: over HTTP it may be quoted, and is percent-encoded (HTTP binding, 3.1.3.2)."""
    if name.startswith("ce_"):
        return value
    value = value.strip(" \t")
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise UndecodableMessage(name, f"{shown(value)} is not UTF-8 once decoded", "Percent-encode UTF-8.") from None


def _media_type(content_type: str) -> tuple[str, str]:
    """Media type and charset of a content type, in lower case."""
    media, *parameters = (part.strip() for part in content_type.lower().split(";"))
    pairs = dict(parameter.partition("=")[::2] for parameter in parameters)
    return media, pairs.get("charset", "utf-8").strip('" ')


def _check_json(media: str) -> None:
    if media and not _JSON_TYPE.fullmatch(media):
        raise UndecodableMessage("datacontenttype", f"it is {shown(media)}", "Send JSON, as application/json.")


# The shape of the seed


def _of_seed(plain: dict[str, Any], source: str) -> Message:
    """A message of the seed's fields; others become extension attributes, in lower case."""
    fields = {"id", "sequenceNumber", "entityId", "timestamp", "type", "data"}
    return Message(
        source=source,
        id=_text_or(plain, "id", ""),
        type=_text_or(plain, "type", ""),
        stream=_text_or(plain, "entityId", ""),
        sequence=_sequence(plain.get("sequenceNumber"), "sequenceNumber"),
        time=_timestamp(plain.get("timestamp")),
        data=plain.get("data"),
        extensions={name.lower(): each for name, each in plain.items() if name not in fields and each is not None},
    )


def _timestamp(value: object) -> datetime | None:
    """Milliseconds since 1970, as `Date.now()` gives them, or a text."""
    if type(value) is not int:
        return _time(value, "timestamp")
    try:
        return _EPOCH + timedelta(milliseconds=value)
    except OverflowError:
        raise UndecodableMessage("timestamp", f"{shown(value)} is out of range", "Send milliseconds.") from None


# Values


def _text_or(plain: Mapping[str, Any], name: str, otherwise: str) -> str:
    value = plain.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, str):
        raise UndecodableMessage(name, f"{shown(value)} is not text", "Send a string.")
    return value


def _sequence(value: object, where: str = "sequence") -> int | None:
    if value is None or type(value) is int:
        return value
    if isinstance(value, str) and _SEQUENCE.fullmatch(value):
        return int(value)
    advice = f"Send an integer, or 1 to {SEQUENCE_DIGITS} decimal digits, padded with zeros or not."
    raise UndecodableMessage(where, f"{shown(value)} is not a sequence", advice)


def _time(value: object, where: str = "time") -> datetime | None:
    """A moment of RFC 3339; digits beyond microseconds are cut, a leap second is the second before it."""
    if value is None:
        return None
    match = _TIME.fullmatch(value) if isinstance(value, str) and len(value) <= NAME_CHARACTERS_MAX else None
    try:
        if match is None:
            raise ValueError
        date, minute, second, fraction, offset = match.groups()
        second = "59" if second == "60" else second
        fraction = (fraction or "").ljust(6, "0")[:6]
        zone = "+00:00" if offset in "Zz" else offset
        return datetime.fromisoformat(f"{date}T{minute}:{second}.{fraction}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        advice = "Send RFC 3339, as 2026-01-02T03:04:05Z."
        raise UndecodableMessage(where, f"{shown(value)} is not a time", advice) from None


def _parsed(body: bytes, where: str = "body") -> Json:
    """The JSON value in `body`."""
    if len(body) > BODY_BYTES_MAX:
        raise UndecodableMessage(where, f"it has {len(body)} bytes, more than {BODY_BYTES_MAX}", "Send less at once.")
    try:
        value: Json = json.loads(
            body.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_constant, parse_float=_number
        )
    except UnicodeDecodeError as error:
        raise UndecodableMessage(where, f"it is not UTF-8 at byte {error.start}", "Send UTF-8.") from None
    except json.JSONDecodeError as error:
        problem = f"it is not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        raise UndecodableMessage(where, problem, "Send JSON.") from None
    except RecursionError:
        raise UndecodableMessage(where, "it is nested too deeply", "Send a flatter value.") from None
    except ValueError as error:
        # Ours from the hooks, and Python's own about integers of thousands of digits.
        raise UndecodableMessage(where, shown(str(error)), "Send unambiguous, finite JSON.") from None
    return value


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) < len(pairs):
        # JSON would let the last one win; two readers of one message must not see two amounts.
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shown(twice)} is given twice")
    return made


def _constant(name: str) -> Json:
    raise ValueError(f"{name} is not a JSON number")


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{shown(text)} is beyond a double")
    return value
