"""What a request carries: a body within its bounds, an idempotency key, the version that is expected."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeVar

from fastapi import Header, Request
from starlette.datastructures import Headers

from ledger.access import Credential
from ledger.core.commands import Command, parse
from ledger.core.errors import InvalidCommand, MissingIdempotencyKey, RequestTooLarge
from ledger.core.fields import INTEGER_MAX
from ledger.service.occasion import correlation_id

KEY_PATTERN: Final = r"^[!-~]([ -~]{0,253}[!-~])?$"
"""What a header can carry, and a key may be: 1 to 255 visible ASCII characters, with spaces between them."""

_KEY: Final = re.compile(KEY_PATTERN)

ETAG_PATTERN: Final = r'^"[0-9]{1,16}"$'

IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern=KEY_PATTERN)]

OURS: Final = {
    "actor": "the credential says who asks",
    "idempotency_key": "it is the header Idempotency-Key",
}
"""What a body does not say, and what does."""

Sent = TypeVar("Sent", bound=Command)


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


async def body_of(request: Request, bytes_max: int) -> bytes:
    """
    The whole body.

    Raises:
        RequestTooLarge: It has more bytes; no more of them are read.
        InvalidCommand: It is encoded in a way that is not read here.
    """
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > bytes_max:
        raise RequestTooLarge("the body", bytes_max)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise InvalidCommand("Content-Encoding", "bodies are read as they are, and not compressed")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > bytes_max:
            raise RequestTooLarge("the body", bytes_max)
    return body


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
        ours["expected_versions"] = {**command.expected_versions, **_expected(command, if_match)}
    copied: Sent = command.model_copy(update=ours)  # type: ignore[assignment]  # A copy is of the same kind.
    return copied


def _expected(command: Command, tag: str) -> dict[str, int]:
    """What `If-Match` expects: the version, as an entity tag, of the account that the command is about."""
    account = getattr(command, "account", None)
    if account is None:
        raise InvalidCommand("If-Match", f"{command.type} is not about one account: send expected_versions")
    if not re.fullmatch(ETAG_PATTERN, tag) or int(tag.strip('"')) > INTEGER_MAX:
        raise InvalidCommand("If-Match", f'{tag!r:.80} is not a version, as an entity tag: "3"')
    return {account: int(tag.strip('"'))}
