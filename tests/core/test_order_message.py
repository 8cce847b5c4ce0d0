"""What comes is a message within its limits, or says what is wrong; two that say the same have the same digest."""

from __future__ import annotations

import base64
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledger import LedgerError
from ledger.core.errors import UndecodableMessage
from ledger.order.decoders import (
    BATCH_MESSAGES_MAX,
    BODY_BYTES_MAX,
    DECODERS,
    HEADERS_MAX,
    Decoded,
    cloudevents,
    decoder,
    seed,
)
from ledger.order.message import (
    DATA_BYTES_MAX,
    DEPTH_MAX,
    EXTENSIONS_MAX,
    NAME_CHARACTERS_MAX,
    SEQUENCE_MAX,
    Message,
    encode,
)

EVENT = {
    "specversion": "1.0",
    "source": "payments",
    "id": "e-1",
    "type": "ledger.deposit",
    "subject": "alice",
    "sequence": 42,
    "time": "2026-01-02T03:04:05.678Z",
    "data": {"amount": "12.50 USD"},
}
DEPOSIT = Message(
    source="payments",
    id="e-1",
    type="ledger.deposit",
    stream="alice",
    sequence=42,
    time=datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC),
    data={"amount": "12.50 USD"},
)

CHARACTERS = st.characters(exclude_categories=("Cc", "Cs", "Cn"))
NAMES = st.text(CHARACTERS, min_size=1, max_size=12)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
EXTENSIONS = st.dictionaries(
    st.from_regex(r"x[a-z0-9]{1,10}", fullmatch=True),
    NAMES | st.booleans() | st.integers(-(2**31), 2**31 - 1),
    max_size=3,
)
MESSAGES = st.builds(
    Message,
    source=NAMES,
    id=NAMES,
    type=NAMES,
    stream=st.just("") | NAMES,
    sequence=st.none() | st.integers(0, SEQUENCE_MAX),
    time=st.none() | st.datetimes(min_value=datetime(2, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    data=JSON,
    extensions=EXTENSIONS,
)


def event(**changed: object) -> bytes:
    """The event in structured JSON with other attributes; those that are `...` left out."""
    return json.dumps({name: value for name, value in (EVENT | changed).items() if value is not ...}).encode()


def one(decoded: list[Decoded]) -> Message:
    """The only message of a body."""
    (message,) = decoded
    assert isinstance(message, Message)
    return message


def refused(body: bytes, headers: Any = (), decode: Any = cloudevents) -> UndecodableMessage:
    """What is said against a body that holds one message."""
    with pytest.raises(UndecodableMessage) as error:
        decode(body, headers)
    assert error.value.advice
    return error.value


# What is read


def test_structured() -> None:
    """An event in structured JSON is a message."""
    assert one(cloudevents(event())) == DEPOSIT
    assert one(cloudevents(event(), [("Content-Type", "application/cloudevents+json; charset=UTF-8")])) == DEPOSIT


def test_binary_over_http() -> None:
    """Over HTTP attributes are percent-encoded headers, perhaps quoted, and the body is the data."""
    headers = [(f"ce-{name}", str(value)) for name, value in EVENT.items() if name not in ("data", "subject")]
    headers += [("CE-Subject", quote("alicé €")), ("ce-note", '"a \\"b\\" c"'), ("content-type", "application/json")]
    message = one(cloudevents(b'{"amount":"12.50 USD"}', headers))

    assert (message.stream, message.sequence, message.data) == ("alicé €", 42, DEPOSIT.data)
    assert message.extensions == {"note": 'a "b" c'}


def test_binary_in_kafka() -> None:
    """In Kafka attributes are headers of UTF-8 bytes as they are; others are not ours."""
    headers: list[tuple[str, bytes | None]] = [
        (f"ce_{name}", str(value).encode()) for name, value in EVENT.items() if name != "data"
    ]
    headers += [("content-type", b"application/json"), ("x", b"\xff"), ("ce_note", None), ("ce_p", b"100%25")]
    message = one(cloudevents(b'{"amount":"12.50 USD"}', headers))

    assert (message.stream, message.time, message.digest) == ("alice", DEPOSIT.time, DEPOSIT.digest)
    assert message.extensions == {"p": "100%25"}


def test_no_body() -> None:
    """In binary mode a message may say all in its attributes."""
    headers = [(f"ce_{name}", str(value)) for name, value in EVENT.items() if name != "data"]

    assert one(cloudevents(b"", headers)).data is None


def test_batch_goes_on() -> None:
    """What is wrong with one message of a batch stands in its place; the others are read."""
    body = json.dumps([EVENT, EVENT | {"id": ""}, 7, EVENT | {"id": "e-2"}]).encode()
    first, broken, number, last = cloudevents(body, [("content-type", "application/cloudevents-batch+json")])

    assert first == DEPOSIT
    assert isinstance(last, Message)
    assert last.id == "e-2"
    assert isinstance(broken, UndecodableMessage)
    assert broken.where == "[1].id"
    assert isinstance(number, UndecodableMessage)
    assert number.where == "[2]"
    assert cloudevents(body)[0] == DEPOSIT


@pytest.mark.parametrize("sequence", [42, "42", "00000042", "00000000000000000042"])
def test_sequence_conventions(sequence: object) -> None:
    """A sequence is an integer, or its digits, padded or not."""
    assert one(cloudevents(event(sequence=sequence))) == DEPOSIT


@pytest.mark.parametrize(
    ("attributes", "stream", "extensions"),
    [
        ({}, "alice", {}),
        ({"partitionkey": "alice"}, "alice", {}),
        ({"partitionkey": "bob"}, "bob", {"subject": "alice"}),
        ({"partitionkey": "bob", "subject": None}, "bob", {}),
        ({"subject": ...}, "", {}),
    ],
)
def test_stream(attributes: dict[str, object], stream: str, extensions: dict[str, object]) -> None:
    """The stream is the partition key, else the subject, else the source as a whole."""
    message = one(cloudevents(event(**attributes)))

    assert (message.stream, message.extensions) == (stream, extensions)


def test_base64() -> None:
    """Data may come in Base64."""
    coded = base64.b64encode(b'{"amount": "12.50 USD"}').decode()

    assert one(cloudevents(event(data=..., data_base64=coded))) == DEPOSIT


def test_seed() -> None:
    """The shape of the seed is a message of a source that the caller names."""
    plain = {
        "id": "e-1",
        "sequenceNumber": 7,
        "entityId": "user-123",
        "timestamp": 1_640_995_200_050,
        "type": "BALANCE_UPDATE",
        "data": {"amount": 100},
        "traceId": "t",
    }
    message = one(seed(json.dumps(plain).encode(), source="bank"))

    assert (message.source, message.stream, message.sequence, message.data) == ("bank", "user-123", 7, {"amount": 100})
    assert message.time == datetime(2022, 1, 1, 0, 0, 0, 50_000, UTC)
    assert message.extensions == {"traceid": "t"}
    assert refused(json.dumps(plain).encode(), decode=seed).where == "source"


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-02t03:04:05z", datetime(2026, 1, 2, 3, 4, 5, 0, UTC)),
        ("2026-01-02T03:04:05.123456789+02:00", datetime(2026, 1, 2, 1, 4, 5, 123_456, UTC)),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, 0, UTC)),
    ],
)
def test_times(text: str, time: datetime) -> None:
    """A time is RFC 3339; what we cannot keep of it is cut off, since it decides nothing."""
    assert one(cloudevents(event(time=text))).time == time


def test_decoders_by_name() -> None:
    """Decoders have names; another one is told which there are."""
    assert [decoder(name) for name in DECODERS] == [cloudevents, seed]
    with pytest.raises(LookupError, match="there are cloudevents, seed"):
        decoder("avro")


# The digest


@given(MESSAGES)
def test_digest_is_of_what_is_said(message: Message) -> None:
    """The digest does not depend on who sends when, how often, or under which number."""
    again = Message("other", "other", message.type, message.stream, 1, None, message.data, {"x": "y"})
    other = Message(message.source, message.id, message.type, message.stream, message.sequence, data=[message.data])

    assert again.digest == message.digest
    assert other.digest != message.digest


def test_digest_ignores_spelling() -> None:
    """White space, the order of keys and escapes are not content."""
    one_way = b'{"specversion":"1.0","source":"s","id":"1","type":"t","data":{"a":1,"b":"\\u00e9"}}'
    another = '{"type":"t", "data":{"b":"é", "a":1}, "id":"1", "source":"s", "specversion":"1.0"}'.encode()

    assert cloudevents(one_way) == cloudevents(another)


# Round trips


@given(MESSAGES)
@example(Message("s", "i", "t", "bob", data=None, extensions={"subject": "alice"}))
@example(Message("s", "i", "t", data="x" * (DATA_BYTES_MAX - 20), extensions={"x": "y" * 1_000}))
def test_encoded_is_decoded(message: Message) -> None:
    """What is encoded is decoded as the same message, and encoded as the same bytes."""
    assert one(cloudevents(encode(message))) == message
    assert encode(one(cloudevents(encode(message)))) == encode(message)
    assert cloudevents(b"[" + encode(message) + b"]") == [message]


@given(MESSAGES)
def test_modes_agree(message: Message) -> None:
    """In binary mode, over HTTP or in Kafka, a message is the one it is in structured JSON, its attributes as text."""
    plain = json.loads(encode(message))
    body = json.dumps(plain.pop("data")).encode() if "data" in plain else b""
    texts = {name: str(value) for name, value in plain.items()}
    http = [(f"ce-{name}", quote(value)) for name, value in texts.items()]
    kafka = [(f"ce_{name}", value.encode()) for name, value in texts.items()]
    structured = cloudevents(json.dumps(texts | ({"data": json.loads(body)} if body else {})).encode())

    assert cloudevents(body, http) == cloudevents(body, kafka) == structured
    assert one(structured).digest == message.digest


# What is refused


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": ...}, "specversion"),
        ({"id": ...}, "id"),
        ({"id": 7}, "id"),
        ({"type": ""}, "type"),
        ({"source": ...}, "source"),
        ({"source": "a\nb"}, "source"),
        ({"id": "a\ud800"}, "id"),
        ({"type": "a\ufdd0"}, "type"),
        ({"subject": "x" * (NAME_CHARACTERS_MAX + 1)}, "stream"),
        ({"partitionkey": ["a"]}, "stream"),
        ({"partitionkey": 0}, "stream"),
        ({"partitionkey": False}, "stream"),
        ({"partitionkey": []}, "stream"),
        ({"sequence": -1}, "sequence"),
        ({"sequence": SEQUENCE_MAX + 1}, "sequence"),
        ({"sequence": True}, "sequence"),
        ({"sequence": 42.0}, "sequence"),
        ({"sequence": "-1"}, "sequence"),
        ({"sequence": "٤٢"}, "sequence"),
        ({"sequence": "0" * 21}, "sequence"),
        ({"sequence": str(SEQUENCE_MAX + 1)}, "sequence"),
        ({"sequencetype": "Lexical"}, "sequencetype"),
        ({"sequencetype": ["Integer"]}, "sequencetype"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2026-01-02 03:04:05"}, "time"),
        ({"time": "2026-02-30T00:00:00Z"}, "time"),
        ({"time": "0001-01-01T00:00:00+14:00"}, "time"),
        ({"time": 5}, "time"),
        ({"datacontenttype": "text/plain"}, "datacontenttype"),
        ({"datacontenttype": 5}, "datacontenttype"),
        ({"data_base64": "e30="}, "data_base64"),
        ({"data": ..., "data_base64": "?"}, "data_base64"),
        ({"data": ..., "data_base64": "e30"}, "data_base64"),
        ({"data": ..., "data_base64": 5}, "data_base64"),
        ({"data": "a\0"}, "data"),
        ({"data": {"a\0": 1}}, "data"),
        ({"data": ["a\udfff"]}, "data"),
        ({"data": "x" * DATA_BYTES_MAX}, "data"),
        ({"data": json.loads("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1))}, "data"),
        ({"traceParent": "x"}, "extensions"),
        ({"x": [1]}, "x"),
        ({"x": 0.5}, "x"),
        ({"x": "y" * 1_025}, "x"),
        ({f"x{number}": 1 for number in range(EXTENSIONS_MAX + 1)}, "extensions"),
    ],
)
def test_bad_attributes(changed: dict[str, object], where: str) -> None:
    """An attribute that does not fit is refused by its name, with advice."""
    assert refused(event(**changed)).where == where


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "not JSON at line 1, column 1"),
        (b"7", "it is 7"),
        (b'{"id": 1', "not JSON"),
        (b'{"id": "1", "id": "2"}', "key 'id' is given twice"),
        (b'{"data": {"a": 1, "b": 2, "a": 1}}', "key 'a' is given twice"),
        (b'{"data": NaN}', "NaN is not a JSON number"),
        (b'{"data": -Infinity}', "Infinity is not a JSON number"),
        (b'{"data": 1e999}', "beyond a double"),
        (b'{"id": "\xff"}', "not UTF-8 at byte 8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5_000, "integer"),
        (b" " * (BODY_BYTES_MAX + 1), "bytes, more than"),
        (b"[" + b",".join([b"1"] * (BATCH_MESSAGES_MAX + 1)) + b"]", "1001 messages, more than 1000"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_bad_bodies(body: bytes, problem: str) -> None:
    """A body that is not unambiguous, finite, bounded JSON is refused as a whole."""
    error = refused(body)

    assert error.where == "body"
    assert problem in str(error)


@pytest.mark.parametrize(
    ("headers", "where"),
    [
        ([("content-type", "application/cloudevents+avro")], "content-type"),
        ([("content-type", "application/cloudevents+json; charset=latin-1")], "content-type"),
        ([("content-type", "application/cloudevents-batch+json")], "body"),
        ([("ce_id", "1"), ("content-type", "text/plain")], "datacontenttype"),
        ([("ce_id", "1"), ("ce-id", "1")], "id"),
        ([("ce_id", "1"), ("CE_ID", "1")], "ce_id"),
        ([("ce_id", b"\xff")], "ce_id"),
        ([("ce-id", "%ff")], "ce-id"),
        ([("ce-id", "x" * 20_000)], "ce-id"),
        ([("x", "")] * (HEADERS_MAX + 1), "headers"),
    ],
)
def test_bad_headers(headers: list[tuple[str, str | bytes]], where: str) -> None:
    """Headers that say two things, or cannot be read, are refused."""
    assert refused(event(), headers).where == where


def test_deepest_and_longest() -> None:
    """The limits themselves are within the limits."""
    deepest = json.loads("[" * DEPTH_MAX + "]" * DEPTH_MAX)

    assert one(cloudevents(event(data=deepest))).data == deepest
    assert one(cloudevents(event(id="x" * NAME_CHARACTERS_MAX, sequence=SEQUENCE_MAX))).sequence == SEQUENCE_MAX
    assert one(cloudevents(event(data=[{}] * DEPTH_MAX))).data == [{}] * DEPTH_MAX


@pytest.mark.parametrize(
    "broken",
    [
        {"time": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"time": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
        {"data": float("nan")},
        {"data": object()},
        {"extensions": {"subject": "alice"}},
        {"extensions": {"data": "x"}},
    ],
)
def test_built_by_hand(broken: dict[str, Any]) -> None:
    """A message is valid whoever builds it."""
    fields: dict[str, Any] = {"source": "s", "id": "i", "type": "t", "stream": "alice"} | broken
    with pytest.raises(UndecodableMessage):
        Message(**fields)


def test_error_is_ours() -> None:
    """An error has a code and facts, reads as a sentence, and travels between processes."""
    error = refused(event(sequence=-1))

    assert isinstance(error, LedgerError)
    assert (error.code, error.retryable) == ("undecodable_message", False)
    assert str(error).startswith("sequence: -1 is not one. Send an integer from 0 to 9223372036854775807")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


JUNK = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())
PARTS = st.dictionaries(st.sampled_from([*EVENT, "partitionkey", "data_base64", "sequencetype", "x"]), JSON, max_size=9)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "ce_id", "ce-id", "ce_type", "ce-specversion", "ce_specversion"]) | st.text(),
        st.sampled_from(["1.0", "application/json", "application/cloudevents+json"])
        | st.none()
        | st.text(max_size=9)
        | st.binary(max_size=9),
    ),
    max_size=5,
)


@given(JUNK | PARTS.map(lambda parts: json.dumps(EVENT | parts).encode()), HEADERS | st.just([]))
def test_junk_is_told_apart(body: bytes, headers: list[tuple[str, str | bytes | None]]) -> None:
    """Whatever comes is a message or one kind of error."""
    for decode in DECODERS.values():
        try:
            decoded = decode(body, headers, "source")
        except UndecodableMessage as error:
            decoded = [error]
        for each in decoded:
            assert str(each)
            assert isinstance(each, UndecodableMessage) or cloudevents(encode(each)) == [each]
