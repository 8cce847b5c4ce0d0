"""A route for each command: `POST /v1/transfer`, with the command's fields as its body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Final, get_args

from fastapi import APIRouter, Depends, Request, Response
from pydantic_core import to_json

from ledger.access import Credential, Scope
from ledger.batch import Done
from ledger.core.commands import Command
from ledger.service.bodies import IdempotencyKey, body_of, command_of
from ledger.service.desk import Desk
from ledger.service.scoped import require
from ledger.wire import done_json

Appending = Annotated[Credential, Depends(require(Scope.APPEND))]

COMMANDS: Final[tuple[type[Command], ...]] = get_args(Command)


def router(desk: Desk) -> APIRouter:
    """A route for each command."""
    routes = APIRouter(prefix="/v1", tags=["Commands"])
    for model in COMMANDS:
        name = kind_of(model)
        routes.add_api_route(
            f"/{name.replace('_', '-')}",
            _answering(desk, model),
            methods=["POST"],
            status_code=HTTPStatus.CREATED,
            operation_id=name,
            summary=(model.__doc__ or "").strip().partition("\n")[0],
        )
    return routes


def kind_of(model: type[Command]) -> str:
    """The name of a kind of command, which is also that of the method of `Ledger`."""
    return str(model.model_fields["type"].default)


def _answering(desk: Desk, model: type[Command]) -> Callable[..., Awaitable[Response]]:
    limits = desk.settings.limits

    async def answer(request: Request, credential: Appending, key: IdempotencyKey) -> Response:
        body = await body_of(request, limits.body_bytes)
        command = command_of(model, body, key=key, credential=credential, if_match=request.headers.get("if-match"))
        done = await desk.commands.submit(command, scope=credential.owner, deadline_seconds=limits.append_seconds)
        return done_response(done)

    return answer


def done_response(done: Done) -> Response:
    """What a command did: created now, or found as it was done earlier."""
    status = HTTPStatus.OK if done.replayed else HTTPStatus.CREATED
    return Response(to_json(done_json(done)), status, media_type="application/json")
