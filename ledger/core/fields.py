"""The fields of what callers ask for: types with their limits, and in our words what is wrong with a value."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from ledger.core.canonical import canonical_json
from ledger.core.errors import InvalidAmount, InvalidCommand
from ledger.core.money import ASSET_PATTERN

METADATA_BYTES_MAX: Final = 16 * 1024
INTEGER_MAX: Final = 2**53 - 1
_SECOND_DECIMALS: Final = 6

Value = TypeVar("Value")


class Frozen(BaseModel):
    """Values that were validated, and stay as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **values: Any) -> None:
        """
        Validate.

        Raises:
            InvalidAmount: An amount is not exact, not positive or not of its asset's precision.
            InvalidCommand: Anything else is wrong; says what and where.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explained(error) from None

    # Otherwise pydantic would come through here for every entry that it reads from JSON, which takes twice as long
    # and hides where in the text it was.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def checked(kind: TypeAdapter[Value], where: str, value: object) -> Value:
    """
    A caller's value that is part of no command, validated like one that is.

    Raises:
        InvalidAmount, InvalidCommand: As `Frozen`.
    """
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise explained(error, where) from None


_OF_PYDANTIC: Final = re.compile(r"\[key\]|function-plain\[.*\]")
"""What pydantic puts into a path besides fields, keys and places: that it is about a key, or how it reads a value."""


def explained(error: ValidationError, place: str = "") -> InvalidAmount | InvalidCommand:
    """The first thing that pydantic found, in the ledger's own words."""
    first = error.errors(include_url=False)[0]
    named = [str(part) for part in first["loc"] if not _OF_PYDANTIC.fullmatch(str(part))]
    path = [part.encode("unicode_escape").decode() for part in named]
    where = ".".join([place, *path] if place else path) or "command"
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidAmount):
        return InvalidAmount(cause.amount, cause.problem, where)
    problem = str(cause) if isinstance(cause, Exception) else first["msg"]
    if first["type"] in ("string_pattern_mismatch", "string_too_long"):
        problem = f"{str(first['input'])[:160]!r} is not allowed: {problem}"
    return InvalidCommand(where, problem)


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character cannot be stored")
    return text


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"half a character (a lone surrogate) cannot be stored: {text[:160]!r}") from None
    return _storable(text)


_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][^.,]*(?:[.,]([0-9]*))?")


def _moment(value: object) -> object:
    """Seconds or milliseconds since when, and of which clock, is a guess: only times are times."""
    if isinstance(value, datetime):
        return value
    written = _TIME.match(value) if isinstance(value, str) else None
    if written is None:
        raise ValueError(f"{value!r} is not a time with its zone, such as 2026-01-02T03:04:05Z")
    if len(written[1] or "") > _SECOND_DECIMALS:
        raise ValueError(f"{value!r} is finer than a microsecond; a time has at most {_SECOND_DECIMALS} decimals")
    return value


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time lies in the years 1 to 9999 of UTC") from None


def _metadata_value(value: object) -> str | int | bool:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise ValueError(f"{value} is beyond 2^53-1; write it as a text")
        return value
    raise ValueError(f"{value!r} is neither a text, an integer nor a boolean")


def _metadata(metadata: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    if len(canonical_json(metadata).encode()) > METADATA_BYTES_MAX:
        raise ValueError(f"metadata is larger than {METADATA_BYTES_MAX} bytes")
    return metadata


AccountId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$")]
"""1 to 128 letters, digits and `. _ : / @ + -`, beginning with a letter or digit (`$` and `#` mark streams of ours)."""

StreamId = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=193, pattern=r"^(#[a-z][a-z0-9_]{0,62}/)?[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$"
    ),
]
"""An account, or something of the caller's own: `#machine/subject`."""

AssetCode = Annotated[str, StringConstraints(max_length=32, pattern=rf"^{ASSET_PATTERN}$")]
Text = Annotated[str, StringConstraints(strict=True), AfterValidator(_text)]
TEXT: Final = TypeAdapter(Text)
Label = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_storable)]
Scope = Annotated[str, StringConstraints(max_length=255), AfterValidator(_storable)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment), AfterValidator(_utc)]
MOMENT: Final = TypeAdapter(Moment)
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[ -~]+$")]
MetadataValue = Annotated[str | int | bool, PlainValidator(_metadata_value, json_schema_input_type=str | int | bool)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], AfterValidator(_metadata)]
MachineName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


def _uuid(value: object) -> object:
    if not isinstance(value, str):
        return str(value) if isinstance(value, UUID) else value
    try:
        return str(UUID(value))
    except ValueError:
        raise ValueError(f"{value[:160]!r} is not the id of a transaction, which is a UUID") from None


TransactionId = Annotated[str, BeforeValidator(_uuid)]
"""A UUID; in small letters, with dashes, whatever way it was written."""
