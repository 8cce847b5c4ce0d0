"""What the pages share: who visits, what surrounds every page, and the page that tells what went wrong."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from ledger.access import Credential, Scope
from ledger.core.errors import Forbidden, InvalidCommand, LedgerError, TooManyRequests, Unauthenticated
from ledger.service.desk import Desk
from ledger.service.occasion import note
from ledger.service.pages.rendering import HEADERS, html
from ledger.service.pages.visiting import Sessions
from ledger.service.pages.watching import Pulse, Verification
from ledger.service.problem_details import problem_json
from ledger.service.scoped import Guard, marked, public

READING: Final = (Scope.READ, Scope.AUDIT)
"""Who may look at accounts and transactions."""

LOOKING: Final = (Scope.READ, Scope.AUDIT, Scope.ADMIN)
"""Who may look at the whole, and at what waits for a decision."""

CHECKING: Final = (Scope.AUDIT, Scope.ADMIN)
"""Who may have everything verified."""

DECIDING: Final = (Scope.ADMIN,)
"""Who may decide about dead letters."""

_FOR_PROGRAMS: Final = ("/v1/", "/metrics/", "/problems/")

_UNKNOWN: Final[dict[str, Any]] = {
    "title": "No such page",
    "detail": "There is nothing at this address.",
    "status": 404,
    "code": "no_such_route",
    "retryable": False,
}

_UNTOLD: Final = {"status": 500, "code": "internal_error", "retryable": False}

Endpoint = Callable[..., Awaitable[Response]]

log: Final = logging.getLogger("ledger.service")


@dataclass
class Site:
    """The pages of one service."""

    desk: Desk
    sessions: Sessions = field(init=False)
    pulse: Pulse = field(init=False)
    verification: Verification = field(init=False)
    routes: APIRouter = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.desk.settings)
        self.pulse = Pulse(self.desk)
        self.verification = Verification(self.desk.ledger, self.desk.ending.is_set)
        self.routes = APIRouter(include_in_schema=False, route_class=_route_class(self), default=self.unknown)

    def get(self, path: str, endpoint: Endpoint, *scopes: Scope) -> None:
        """Answer at a path whoever has one of these scopes; without any, everybody."""
        self._add("GET", path, endpoint, scopes)

    def post(self, path: str, endpoint: Endpoint, *scopes: Scope) -> None:
        """Take a form at a path, from whoever has one of these scopes; without any, from everybody."""
        self._add("POST", path, endpoint, scopes)

    def _add(self, method: str, path: str, endpoint: Endpoint, scopes: tuple[Scope, ...]) -> None:
        way_in = self._entrance(scopes) if scopes else public
        self.routes.add_api_route(path, endpoint, methods=[method], dependencies=[Depends(way_in)])

    def _entrance(self, scopes: tuple[Scope, ...]) -> Guard:
        """By a session, or as programs come in; who it is, is known even where they are not let in."""

        async def let_in(request: Request) -> None:
            credential = await self.desk.gate.admit(self.sessions.authorization(request))
            request.state.credential = credential
            if credential.scopes.isdisjoint(scopes):
                raise Forbidden(" or ".join(scopes), sorted(credential.scopes))

        return marked(let_in, *scopes)

    def page(self, request: Request, template: str, status: int = HTTPStatus.OK, **context: Any) -> Response:
        """A page, in what surrounds each of them."""
        credential: Credential | None = getattr(request.state, "credential", None)
        scopes = frozenset() if credential is None else credential.scopes
        return html(
            template,
            status,
            here=request.url.path,
            version=version("ledger"),
            actor=None if credential is None else credential.actor,
            can_sign_out=self.sessions.of(request) is not None,
            may_read=not scopes.isdisjoint(READING),
            may_look=not scopes.isdisjoint(LOOKING),
            may_check=not scopes.isdisjoint(CHECKING),
            may_decide=not scopes.isdisjoint(DECIDING),
            token=self.sessions.token(request),
            **context,
        )

    def problem(self, request: Request, error: Exception) -> Response:
        """The page that tells what went wrong; where it is not known who asks, the one that asks who they are."""
        if isinstance(error, Unauthenticated):
            asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            wanted = asked if request.method == "GET" else "/"
            note(code=error.code)
            return self.page(request, "sign_in.html", HTTPStatus.UNAUTHORIZED, next=wanted, problem=None)
        plain = _plain(error)
        note(code=plain["code"])
        answer = self.page(request, "problem.html", plain["status"], problem=plain)
        if isinstance(error, TooManyRequests):
            answer.headers["Retry-After"] = str(error.retry_after_seconds)
        return answer

    async def unknown(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """
        Answer at a path that there is not: with a page, if a browser asks for one.

        Raises:
            HTTPException: Whoever asks is a program, or asks where only programs do.
        """
        takes_pages = scope["type"] == "http" and _takes_pages(Headers(scope=scope).get("accept", ""))
        if not takes_pages or scope["path"].startswith(_FOR_PROGRAMS):
            await self.routes.not_found(scope, receive, send)
            return
        request = Request(scope, receive)
        with suppress(LedgerError):
            # So that whoever has signed in finds the way back to where they were.
            request.state.credential = await self.desk.gate.admit(self.sessions.authorization(request))
        note(code=_UNKNOWN["code"])
        await self.page(request, "problem.html", HTTPStatus.NOT_FOUND, problem=_UNKNOWN)(scope, receive, send)


def credential_of(request: Request) -> Credential:
    """Who asks, as it was found on the way in."""
    credential: Credential = request.state.credential
    return credential


def go_to(path: str) -> Response:
    """Let the browser ask for another page."""
    return RedirectResponse(path, HTTPStatus.SEE_OTHER, headers=dict(HEADERS))


def _takes_pages(accept: str) -> bool:
    """Whether who asks names pages among what it takes, as browsers do; what takes anything is a program."""
    return any(each.partition(";")[0].strip().lower() == "text/html" for each in accept.split(","))


def _plain(error: Exception) -> dict[str, Any]:
    """A problem as the API tells it."""
    if isinstance(error, LedgerError):
        return problem_json(error)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return problem_json(InvalidCommand(where, first["msg"]))
    if isinstance(error, HTTPException):
        title = HTTPStatus(error.status_code).phrase
        return {"title": title, "detail": error.detail, **_UNTOLD, "status": error.status_code, "code": "http_error"}
    log.error("a page could not be made", exc_info=error)
    detail = "Something went wrong here; the server's log tells what."
    return {"title": "Internal error", "detail": detail, **_UNTOLD}


def _route_class(site: Site) -> type[APIRoute]:
    """Routes whose problems are told as pages, since people read them."""

    class PageRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    return await handler(request)
                except ClientDisconnect:
                    raise
                except Exception as error:  # noqa: BLE001  (whatever it is, somebody waits for a page)
                    return site.problem(request, error)

            return answer

    return PageRoute
