"""
Which credential a route takes: `require(scope)` is the dependency that every route has.

A service with a route that has none is not made: what nobody thought of is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeAlias

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute

from ledger.access import Credential, Scope
from ledger.core.errors import Forbidden, InvalidCommand
from ledger.service.desk import Desk, desk_of

Dependency: TypeAlias = Callable[[Request], Awaitable[Credential]]
Guard: TypeAlias = Callable[[Request], Awaitable[None]]

_SCOPES: Final[dict[object, frozenset[Scope]]] = {}


def require(*scopes: Scope) -> Dependency:
    """
    Let in whoever has one of these scopes and asks what the route knows, and give their credential.

    To a route: `credential: Annotated[Credential, Depends(require(Scope.READ))]`.
    """
    wanted = frozenset(scopes)

    async def let_in(request: Request) -> Credential:
        credential = await admitted(desk_of(request), request.headers.get("authorization"), wanted)
        _check_parameters(request)
        return credential

    _SCOPES[let_in] = wanted
    return let_in


async def admitted(desk: Desk, authorization: str | None, wanted: frozenset[Scope]) -> Credential:
    """
    Who asks, if they have one of these scopes.

    Raises:
        Unauthenticated, Forbidden, TooManyRequests: They are not let in.
    """
    credential = await desk.gate.admit(authorization)
    if wanted.isdisjoint(credential.scopes):
        raise Forbidden(" or ".join(sorted(wanted)), sorted(credential.scopes))
    return credential


def _check_parameters(request: Request) -> None:
    """
    Refuse what a question does not know, or is told twice: with a typo in a parameter it would be another question.

    Raises:
        InvalidCommand: There is such a parameter.
    """
    route = request.scope.get("route")
    if request.method != "GET" or not isinstance(route, APIRoute) or not route.path.startswith("/v1/"):
        return
    known = [field.alias for field in route.dependant.query_params]
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            raise InvalidCommand(name[:80], f"there is no such parameter; there are {', '.join(known) or 'none'}")
        if name in seen:
            raise InvalidCommand(name, "it is there more than once; say it once")
        seen.add(name)


def marked(dependency: Guard, *scopes: Scope) -> Guard:
    """Say of a dependency that lets people in by itself which scopes it takes."""
    _SCOPES[dependency] = frozenset(scopes)
    return dependency


async def public(_request: Request) -> None:
    """Let everybody in: the dependency of a route in whose answer there is nothing of the ledger."""


_SCOPES[public] = frozenset()


def routes_of(app: FastAPI) -> Iterator[tuple[str, str, frozenset[Scope] | None]]:
    """Each method and path, with the scopes of which it takes one: none if it is public, None if nobody said."""
    for route in app.routes:
        if not isinstance(route, APIRoute):
            for method in getattr(route, "methods", None) or ("ANY",):
                yield method, getattr(route, "path", "?"), None
            continue
        found = [_SCOPES[each.call] for each in route.dependant.dependencies if each.call in _SCOPES]
        for method in sorted(route.methods or ()):
            yield method, route.path, found[0] if found else None


def check_scopes(app: FastAPI) -> None:
    """
    Refuse a service with a route of which nobody has said who may ask it.

    Raises:
        RuntimeError: There is one.
    """
    unsaid = [f"{method} {path}" for method, path, scopes in routes_of(app) if scopes is None]
    if unsaid:
        raise RuntimeError(f"no scope is required by {', '.join(unsaid)}: say require(…) or public")
