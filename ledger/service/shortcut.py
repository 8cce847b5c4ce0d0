"""
The short way: commands are answered before the framework looks for their route.

To find a route and its parameters costs FastAPI three times what a command costs the ledger in a busy batch.  So a
`CommandRoute` is declared like any other, for the document and for its scopes, and is looked up here by its path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from ledger.core.errors import LedgerError
from ledger.service.problem_details import problem_of

Answering: TypeAlias = Callable[[Request], Awaitable[Response]]


class CommandRoute(APIRoute):
    """A route whose answer is made by `direct` of the request alone; what its function declares is the document's."""

    direct: Answering

    def get_route_handler(self) -> Callable[[Request], Any]:
        return self._directly

    async def _directly(self, request: Request) -> Response:
        return await self.direct(request)


class Shortcut:
    """Middleware that answers what is asked of a `CommandRoute`, and hands on everything else."""

    def __init__(self, app: ASGIApp, service: FastAPI) -> None:
        self._app = app
        self._direct = {route.path: route.direct for route in service.routes if isinstance(route, CommandRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        direct = self._direct.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if direct is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await direct(request)
        except LedgerError as error:
            response = problem_of(request, error)
        await response(scope, receive, send)
