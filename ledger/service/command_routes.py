"""A route for each command: `POST /v1/transfer`, with the command's fields as its body."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from inspect import cleandoc
from typing import Annotated, Final, get_args

from fastapi import APIRouter, Depends, Request, Response
from pydantic_core import to_json

from ledger.access import Credential, Scope
from ledger.batch import Done
from ledger.core.commands import Command
from ledger.service.bodies import JSON, IdempotencyKey, body_of, check_content, command_of, if_match_of, key_of
from ledger.service.desk import Desk
from ledger.service.scoped import admitted, require
from ledger.service.shortcut import CommandRoute
from ledger.wire import done_json

_APPEND: Final = frozenset({Scope.APPEND})
Appending = Annotated[Credential, Depends(require(*_APPEND))]

COMMANDS: Final[tuple[type[Command], ...]] = get_args(Command)


def router(desk: Desk) -> APIRouter:
    """A route for each command."""
    routes = APIRouter(prefix="/v1", tags=["Commands"], route_class=CommandRoute)
    for model in COMMANDS:
        name = kind_of(model)
        routes.add_api_route(
            f"/{name.replace('_', '-')}",
            _declared,
            methods=["POST"],
            status_code=HTTPStatus.CREATED,
            operation_id=name,
            summary=cleandoc(model.__doc__ or "").partition("\n")[0],
            description=cleandoc(model.__doc__ or ""),
        )
        made = routes.routes[-1]
        assert isinstance(made, CommandRoute)
        made.direct = partial(_carried_out, desk, model)
    return routes


def kind_of(model: type[Command]) -> str:
    """The name of a kind of command, which is also that of the method of `Ledger`."""
    return str(model.model_fields["type"].default)


async def _declared(_credential: Appending, _key: IdempotencyKey) -> None:
    """What a command takes beside its body; the route answers directly."""


async def _carried_out(desk: Desk, model: type[Command], request: Request) -> Response:
    limits, headers = desk.settings.limits, request.headers
    credential = await admitted(desk, headers.get("authorization"), _APPEND)
    key = key_of(headers)
    check_content(headers, JSON)
    body = await body_of(request, limits.body_bytes, limits.append_seconds)
    command = command_of(model, body, key=key, credential=credential, if_match=if_match_of(headers))
    done = await desk.commands.submit(command, credential.owner)
    return done_response(done)


def done_response(done: Done) -> Response:
    """What a command did: created now, or found as it was done earlier."""
    status = HTTPStatus.OK if done.replayed else HTTPStatus.CREATED
    return Response(to_json(done_json(done)), status, media_type="application/json")
