"""
Many commands in one request: `handle`, which is one transaction, and `bulk`, lines in and lines out.

A line of a bulk request is answered while later ones are still on their way, in the order in which they came; each has
its own transaction, or shares one with whoever comes at the same time.  What is read never waits for what is written:
clients that send everything before they read would wait for ever.  So a request has a bound, and its answers may wait
in memory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ledger.access import Credential
from ledger.batch import Done, Outcome
from ledger.core.commands import BATCH_MAX, Command, parse_command
from ledger.core.errors import InvalidCommand, LedgerError, RequestTooLarge
from ledger.service import shapes
from ledger.service.bodies import (
    JSON,
    JSON_LINES,
    IdempotencyKey,
    body_of,
    check_content,
    key_of,
    model_of,
    refuse_if_match,
)
from ledger.service.bounds import Closing
from ledger.service.command_routes import Appending
from ledger.service.desk import Desk
from ledger.service.occasion import correlation_id
from ledger.service.problem_details import problem_json
from ledger.service.question_routes import json_response
from ledger.wire import Json, done_json

KEY_CHARACTERS_MAX: Final = 248
"""Of a request's key: with the number of a command it is still one."""


class Several(BaseModel):
    """Commands for one transaction."""

    model_config = ConfigDict(extra="forbid")

    commands: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=BATCH_MAX)]
    atomic: Annotated[bool, Field(strict=True, description="All or none.")] = False
    dry_run: Annotated[bool, Field(strict=True, description="Say what would happen; write nothing.")] = False


def router(desk: Desk) -> APIRouter:
    """The routes that take many commands."""
    routes = APIRouter(prefix="/v1", tags=["Commands"])
    limits = desk.settings.limits

    @routes.post(
        "/handle",
        operation_id="handle",
        response_model=None,
        responses={200: {"model": shapes.OutcomesShape}},
        openapi_extra={"requestBody": _HANDLE},
    )
    async def handle(request: Request, credential: Appending, _key: IdempotencyKey) -> Response:
        """
        Carry out commands in one transaction; one outcome per command, in order.

        Each has its `type` and its own `idempotency_key`, or else that of the request and its number: `KEY#1`.
        """
        key = _short_key(request)
        check_content(request.headers, JSON)
        with desk.bulk():
            body = await body_of(request, limits.bulk_bytes, limits.several_seconds)
            asked = model_of(Several, body)
            commands = [
                _command(json.dumps(each).encode(), f"{key}#{number}", credential, f"commands.{number - 1}")
                for number, each in enumerate(asked.commands, start=1)
            ]
            outcomes = await desk.append(
                lambda: desk.ledger.handle(commands, scope=credential.owner, atomic=asked.atomic, dry_run=asked.dry_run)
            )
        return json_response({"outcomes": [_outcome(each) for each in outcomes]})

    @routes.post(
        "/bulk",
        operation_id="bulk",
        response_class=StreamingResponse,
        responses={200: {"description": "A line for each line.", "content": {JSON_LINES: _ANSWERED}}},
        openapi_extra={"requestBody": {"required": True, "content": {JSON_LINES: _ASKED}}},
    )
    async def bulk(request: Request, credential: Appending, _key: IdempotencyKey) -> Response:
        """
        Carry out commands, a JSON object a line; answers with a line for each, in order, as they are done.

        Each has its `type` and its own `idempotency_key`, or else that of the request and its number: `KEY#1`.
        """
        key = _short_key(request)
        check_content(request.headers, JSON_LINES)
        desk.check_bulk()
        return _BothWays(_answers(desk, request, credential, key), media_type=JSON_LINES)

    return routes


class _BothWays(Closing):
    """Is read while it is written: the framework's own would listen for whoever goes away, and so take the lines."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (ASGI's shape)
        await self.stream_response(send)


_EXAMPLE: Final = b"".join(
    to_json({"type": "transfer", "amount": "5.00 USD", "debit": "alice", "credit": credited}) + b"\n"
    for credited in ("bob", "carol")
).decode()
_CAME_OF_IT: Final = """\
{"line":1,"done":{"transaction_id":"01890a5d-ac96-774b-bcce-000000000001","kind":"transfer",…}}
{"line":2,"problem":{"type":"/problems/unknown_account","status":404,"code":"unknown_account",…}}
"""
_ANSWERED: Final[Json] = {"schema": {"type": "string"}, "example": _CAME_OF_IT}
_ASKED: Final[Json] = {"schema": {"description": "A command a line, with its type."}, "example": _EXAMPLE}
_HANDLE: Final[Json] = {"required": True, "content": {JSON: {"schema": Several.model_json_schema()}}}


async def _answers(desk: Desk, request: Request, credential: Credential, key: str) -> AsyncIterator[bytes]:
    """Read lines, and answer them in order; what is read does not wait for what is answered."""
    waiting: asyncio.Queue[tuple[int, asyncio.Future[Done] | LedgerError] | None] = asyncio.Queue()
    with desk.bulk():
        reading = asyncio.create_task(_read(desk, request, credential, key, waiting))
        try:
            while (each := await waiting.get()) is not None:
                number, answer = each
                yield to_json({"line": number, **await _came_of(answer)}) + b"\n"
        finally:
            reading.cancel()


async def _read(
    desk: Desk,
    request: Request,
    credential: Credential,
    key: str,
    waiting: asyncio.Queue[tuple[int, asyncio.Future[Done] | LedgerError] | None],
) -> None:
    """Hand each line over as it comes; the first that is beyond a bound is answered so, and is the last."""
    limits = desk.settings.limits
    number = 0
    try:
        async with asyncio.timeout(limits.several_seconds):
            async for line in _lines(request, limits.bulk_bytes, limits.body_bytes):
                number += 1
                if number > limits.bulk_lines:
                    raise InvalidCommand("body", f"it has more than {limits.bulk_lines} lines; send several")
                try:
                    command = _command(line, f"{key}#{number}", credential, "line")
                except LedgerError as error:
                    waiting.put_nowait((number, error))
                    continue
                task = asyncio.ensure_future(desk.commands.submit(command, credential.owner))
                waiting.put_nowait((number, task))
                # It is handed over before the next line is read: those on one account keep their order.
                await asyncio.sleep(0)
    except TimeoutError:
        waiting.put_nowait((number + 1, RequestTooLarge("What arrives in time", limits.bulk_bytes)))
    except LedgerError as error:
        waiting.put_nowait((number, error))
    except ClientDisconnect:
        # What was read is done; who sent it asks again with its keys.
        return
    finally:
        waiting.put_nowait(None)


async def _lines(request: Request, bytes_max: int, line_max: int) -> AsyncIterator[bytes]:
    """The lines of a body that are not empty."""
    rest, size = b"", 0
    async for part in request.stream():
        size += len(part)
        if size > bytes_max:
            raise RequestTooLarge("The body", bytes_max)
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
        if len(rest) > line_max:
            raise RequestTooLarge("A line", line_max)
    if rest.strip():
        yield rest


async def _came_of(answer: asyncio.Future[Done] | LedgerError) -> Json:
    if isinstance(answer, LedgerError):
        return {"done": None, "problem": problem_json(answer)}
    try:
        return {"done": done_json(await answer), "problem": None}
    except LedgerError as error:
        return {"done": None, "problem": problem_json(error)}


def _outcome(outcome: Outcome) -> Json:
    if isinstance(outcome, Done):
        return {"done": done_json(outcome), "problem": None}
    return {"done": None, "problem": problem_json(outcome)}


def _command(line: bytes, key: str, credential: Credential, where: str) -> Command:
    """One command of several, with a key of its own or the one that its place gives it."""
    command = parse_command(line)
    if "actor" in command.model_fields_set:
        raise InvalidCommand(f"{where}.actor", "a body does not say it: the credential says who asks")
    ours = {
        "actor": credential.actor,
        "idempotency_key": command.idempotency_key or key,
        "correlation_id": command.correlation_id or correlation_id(),
    }
    return command.model_copy(update=ours)


def _short_key(request: Request) -> str:
    key = key_of(request.headers)
    refuse_if_match(request.headers)
    if len(key) > KEY_CHARACTERS_MAX:
        raise InvalidCommand("Idempotency-Key", f"for several commands it has at most {KEY_CHARACTERS_MAX} characters")
    return key
