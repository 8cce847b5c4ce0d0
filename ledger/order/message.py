"""
What a message is: CloudEvents' attributes, of which this ledger needs a few, and a digest of what it says.

A message belongs to a *stream*: the messages of one source that must be handled in order, usually one account.
It is the CloudEvents attribute `partitionkey` where there is one, since that is the attribute by which producers
group what belongs together; else the `subject`; else the source as a whole, named "".

`sequence` is the producer's own count within source and stream.  `time` is kept and shown, and decides nothing.

A `Message` that exists is valid: the limits below are checked when it is built, whoever builds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, TypeAlias

from ledger.core.errors import UndecodableMessage

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

SEQUENCE_MAX: Final = 2**63 - 1
"""Sequences are 0 to this, so that they fit a database's bigint.  What follows the last one does not."""

SEQUENCE_DIGITS: Final = 20
"""As `encode` writes a sequence: padded, so that its order as text is its order as a number."""

NAME_CHARACTERS_MAX: Final = 256
"""Of a source, id, type or stream."""

EXTENSIONS_MAX: Final = 32
EXTENSION_CHARACTERS_MAX: Final = 1_024
DATA_BYTES_MAX: Final = 128 * 1024
"""Of type, stream and data together, as compact JSON."""

DEPTH_MAX: Final = 32
"""Of lists and objects in `data`."""

_UNFIT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""What CloudEvents 1.0 ("Type System", String) keeps out of attributes: controls, surrogates, non-characters."""

_EXTENSION: Final = re.compile(r"[a-z0-9]{1,64}")
_OWN_FIELDS: Final = frozenset(
    {"specversion", "source", "id", "type", "partitionkey", "sequence", "sequencetype", "time", "datacontenttype"}
    | {"data", "data_base64"}
)
"""Attributes that are not extensions here.  `subject` is one where it differs from the stream."""

_SHOWN_MAX: Final = 60


@dataclass(frozen=True, slots=True)
class Message:
    """
    One message of a producer.

    `extensions` are the other CloudEvents attributes, by their names.  Neither they nor `data` may be changed
    afterwards: `digest` is made from type, stream and data, and two messages that say the same have the same,
    however they were written and however often they were sent.

    Raises:
        UndecodableMessage: A value does not fit; `where` names the attribute.
    """

    source: str
    id: str
    type: str
    stream: str = ""
    sequence: int | None = None
    time: datetime | None = None
    data: Json = field(default=None, hash=False)
    extensions: Mapping[str, str | bool | int] = field(default_factory=dict, hash=False)
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for where, name in (("source", self.source), ("id", self.id), ("type", self.type), ("stream", self.stream)):
            _check_text(where, name, NAME_CHARACTERS_MAX, empty=where == "stream")
        _check_sequence(self.sequence)
        _check_time(self.time)
        _check_extensions(self.extensions, self.stream)
        said = _said([self.type, self.stream, self.data])
        object.__setattr__(self, "digest", sha256(said).digest())


def check_source(source: str) -> None:
    """
    Check the name of a source.

    Raises:
        UndecodableMessage: It is none.
    """
    _check_text("source", source, NAME_CHARACTERS_MAX)


def encode(message: Message) -> bytes:
    """
    Write a message as a CloudEvent in structured JSON: compact, with sorted keys, the same bytes every time.

    The `cloudevents` decoder reads it back as an equal message.
    """
    plain: dict[str, Any] = {"specversion": "1.0", "source": message.source, "id": message.id, "type": message.type}
    plain |= message.extensions
    if "subject" in message.extensions:
        plain["partitionkey"] = message.stream
    elif message.stream:
        plain["subject"] = message.stream
    if message.sequence is not None:
        plain["sequence"] = sequence_text(message.sequence)
    if message.time is not None:
        plain["time"] = message.time.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
    if message.data is not None:
        plain["data"] = message.data
    return _compact(plain)


def sequence_text(sequence: int) -> str:
    """A sequence as CloudEvents wants it, a text that sorts: 42 → "00000000000000000042"."""
    return f"{sequence:0{SEQUENCE_DIGITS}d}"


def shown(value: object) -> str:
    """A value as it may stand in an error: its beginning, if it is long."""
    text = repr(value[:_SHOWN_MAX] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"


def _check_text(where: str, value: object, characters_max: int, *, empty: bool = False) -> None:
    if not isinstance(value, str):
        raise UndecodableMessage(where, f"{shown(value)} is not text", "Send a string.")
    if not value and not empty:
        raise UndecodableMessage(where, "it is missing or empty", "Every message needs one.")
    if len(value) > characters_max:
        problem = f"{shown(value)} has {len(value)} characters, more than {characters_max}"
        raise UndecodableMessage(where, problem, "Send a shorter one.")
    if unfit := _UNFIT.search(value):
        problem = f"it holds the character U+{ord(unfit[0]):04X}"
        raise UndecodableMessage(where, problem, "Leave out control characters, lone surrogates and non-characters.")


def _check_sequence(sequence: object) -> None:
    if sequence is None:
        return
    if type(sequence) is not int or not 0 <= sequence <= SEQUENCE_MAX:
        advice = f"Send an integer from 0 to {SEQUENCE_MAX}, as a number or as decimal digits."
        if type(sequence) is int and sequence < 0:
            advice += "  A 32-bit counter that wrapped must go on counting."
        raise UndecodableMessage("sequence", f"{shown(sequence)} is not one", advice)


def _check_time(time: object) -> None:
    if time is None:
        return
    if not isinstance(time, datetime) or time.utcoffset() is None:
        raise UndecodableMessage("time", f"{shown(time)} is not a moment", "Send a time with its offset from UTC.")
    try:
        time.astimezone(UTC)
    except OverflowError:
        raise UndecodableMessage("time", f"{time} is out of range in UTC", "Send a year from 1 to 9999.") from None


def _check_extensions(extensions: Mapping[str, object], stream: str) -> None:
    if "subject" in extensions and stream in ("", extensions["subject"]):
        problem = f"subject {shown(extensions['subject'])} says nothing beside stream {shown(stream)}"
        raise UndecodableMessage("extensions", problem, "Name the subject only where the stream is another.")
    if len(extensions) > EXTENSIONS_MAX:
        problem = f"there are {len(extensions)} extension attributes, more than {EXTENSIONS_MAX}"
        raise UndecodableMessage("extensions", problem, "Move what they say into data.")
    for name, value in extensions.items():
        if not _EXTENSION.fullmatch(name) or name in _OWN_FIELDS:
            problem = f"{shown(name)} is not a name for an extension attribute"
            advice = "Names are 1 to 64 lower-case letters and digits, and none that CloudEvents uses itself."
            raise UndecodableMessage("extensions", problem, advice)
        if isinstance(value, str):
            _check_text(name, value, EXTENSION_CHARACTERS_MAX, empty=True)
        elif not isinstance(value, int) or not -SEQUENCE_MAX <= value <= SEQUENCE_MAX:
            raise UndecodableMessage(name, f"{shown(value)} is not an attribute", "Send text, an integer or a boolean.")


def _said(value: list[Json]) -> bytes:
    """Compact JSON, unless it is what JSON, UTF-8 or PostgreSQL's texts cannot hold."""
    try:
        said = _compact(value)
    except (TypeError, ValueError, RecursionError) as error:
        advice = "Send JSON: no NaN or infinity, no lone surrogates, not nested deeply."
        raise UndecodableMessage("data", shown(str(error)), advice) from None
    if len(said) > DATA_BYTES_MAX:
        problem = f"it has {len(said)} bytes, more than {DATA_BYTES_MAX}"
        raise UndecodableMessage("data", problem, "Send a reference to what is so large.")
    # Few messages have so many brackets or the escape of a NUL; the others need no walk through their values.
    if said.count(b"[") + said.count(b"{") > DEPTH_MAX or b"\\u0000" in said:
        _check_values(value)
    return said


def _compact(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _check_values(value: list[Json]) -> None:
    waiting: list[tuple[Json, int]] = [(part, 1) for part in value]
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, str) and "\0" in part:
            raise UndecodableMessage("data", "a text holds the character U+0000", "Leave it out.")
        if isinstance(part, dict | list) and depth > DEPTH_MAX:
            raise UndecodableMessage("data", f"it is nested more than {DEPTH_MAX} deep", "Send a flatter value.")
        if isinstance(part, dict):
            waiting += ((each, depth + 1) for pair in part.items() for each in pair)
        elif isinstance(part, list):
            waiting += ((each, depth + 1) for each in part)
