"""What a request carries: a body within its bounds, an idempotency key, the version that is expected."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Any, Final, TypeVar

from fastapi import Header, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers

from ledger.access import Credential
from ledger.core.commands import Command, each_once, parse
from ledger.core.errors import (
    DeadlineExceeded,
    InvalidCommand,
    MissingIdempotencyKey,
    RequestTooLarge,
    UnsupportedMediaType,
)
from ledger.core.fields import INTEGER_MAX, explained
from ledger.service.occasion import correlation_id

KEY_PATTERN: Final = r"^[!-~]([ -~]{0,253}[!-~])?$"
"""What a header can carry, and a key may be: 1 to 255 visible ASCII characters, with spaces between them."""

_KEY: Final = re.compile(KEY_PATTERN)

JSON: Final = "application/json"
JSON_LINES: Final = "application/x-ndjson"

ETAG_PATTERN: Final = r'^"[0-9]{1,16}"$'

IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern=KEY_PATTERN)]

OURS: Final = {
    "actor": "the credential says who asks",
    "idempotency_key": "it is the header Idempotency-Key",
}
"""What a body does not say, and what does."""

Sent = TypeVar("Sent", bound=Command)
Asked = TypeVar("Asked", bound=BaseModel)


def key_of(headers: Headers) -> str:
    """
    The idempotency key of a request that writes.

    Raises:
        MissingIdempotencyKey: There is none.
        InvalidCommand: It is no key, or there are several.
    """
    keys = headers.getlist("idempotency-key")
    if not keys:
        raise MissingIdempotencyKey
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidCommand("Idempotency-Key", f"{', '.join(keys)!r:.80} is not one key of 1 to 255 characters")
    return keys[0]


def check_content(headers: Headers, *wanted: str) -> None:
    """
    Refuse a body that is not what it should be; a page of another site can send no JSON without being asked first.

    Raises:
        UnsupportedMediaType: It is not one of these.
    """
    given = headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() not in wanted:
        raise UnsupportedMediaType(given[:80] or "no Content-Type", " or ".join(wanted))
    if headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {headers['content-encoding']!r:.80}", "it as it is")


async def body_of(request: Request, bytes_max: int, seconds: float) -> bytes:
    """
    The whole body, which has to arrive in time.

    Raises:
        RequestTooLarge: It has more bytes; no more of them are read.
        DeadlineExceeded: It did not arrive in time.
    """
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > bytes_max:
        raise RequestTooLarge("The body", bytes_max)
    body = b""
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > bytes_max:
                    raise RequestTooLarge("The body", bytes_max)
    except TimeoutError:
        raise DeadlineExceeded("for its body", seconds) from None
    return body


def json_of(body: bytes) -> Any:
    """
    The JSON value in a text, which has only one reading.

    Raises:
        InvalidCommand: It has none, or several: a key is there twice, or NaN.
    """
    try:
        return json.loads(body, object_pairs_hook=each_once, parse_constant=_constant)
    except RecursionError:
        raise InvalidCommand("body", "it is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, InvalidCommand):
            raise
        # Also Python's own about integers of thousands of digits.
        raise InvalidCommand("body", f"it is not JSON: {error}"[:160]) from None


def model_of(model: type[Asked], body: bytes) -> Asked:
    """
    What a body asks for.

    Raises:
        InvalidCommand: It is not of that shape.
    """
    try:
        return model.model_validate_json(json.dumps(json_of(body)))
    except ValidationError as error:
        raise explained(error, "body") from None


def _constant(name: str) -> Any:
    raise InvalidCommand("body", f"{name} is not a JSON number")


def command_of(
    model: type[Sent], body: bytes, *, key: str, credential: Credential, if_match: str | None = None
) -> Sent:
    """
    The command in a body, with the key and the actor that it is asked with, and the version that is expected.

    Raises:
        InvalidAmount, InvalidCommand: It is none, or says itself who asks.
    """
    return with_ours(parse(model, body), key=key, credential=credential, if_match=if_match)


def with_ours(command: Sent, *, key: str, credential: Credential, if_match: str | None = None) -> Sent:
    """
    A command as it was sent, with what it does not say itself.

    Raises:
        InvalidCommand: It does say it.
    """
    for name, why in OURS.items():
        if name in command.model_fields_set:
            raise InvalidCommand(name, f"a body does not say it: {why}")
    ours: dict[str, object] = {"idempotency_key": key, "actor": credential.actor}
    if command.correlation_id is None:
        # The request's own conversation, where the command is not said to be part of another.
        ours["correlation_id"] = correlation_id()
    if if_match is not None:
        account, version = _expected(command, if_match)
        if command.expected_versions.get(account, version) != version:
            said = f"it says version {version}, and expected_versions {command.expected_versions[account]}: send one"
            raise InvalidCommand("If-Match", said)
        ours["expected_versions"] = {**command.expected_versions, account: version}
    copied: Sent = command.model_copy(update=ours)  # type: ignore[assignment]  # A copy is of the same kind.
    return copied


def if_match_of(headers: Headers) -> str | None:
    """What a request expects of the account that it is about; of several headers all."""
    found = headers.getlist("if-match")
    return ", ".join(found) if found else None


def refuse_if_match(headers: Headers) -> None:
    """
    Refuse a condition on one account, where a request is not about one.

    Raises:
        InvalidCommand: There is one.
    """
    if "if-match" in headers:
        raise InvalidCommand("If-Match", "several commands have no one account: send expected_versions with each")


def _expected(command: Command, tag: str) -> tuple[str, int]:
    """What `If-Match` expects: the account that the command is about, and its version, as an entity tag."""
    account = getattr(command, "account", None)
    if account is None:
        raise InvalidCommand("If-Match", f"{command.type} is not about one account: send expected_versions")
    if not re.fullmatch(ETAG_PATTERN, tag) or int(tag.strip('"')) > INTEGER_MAX:
        said = f'{tag!r:.80} is not one version, as an entity tag: "3"; no list, weak tag or * is taken'
        raise InvalidCommand("If-Match", said)
    return account, int(tag.strip('"'))
