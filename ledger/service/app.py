"""`create_app`: the service as an ASGI application, made of what each module has routes for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from ledger.application import Ledger
from ledger.service import command_routes, health_routes, question_routes
from ledger.service.desk import Desk
from ledger.service.observed import ObservedApp
from ledger.service.problem_details import add_problems
from ledger.service.scoped import check_scopes
from ledger.service.shortcut import Shortcut
from ledger.settings import ServiceSettings


def create_app(ledger: Ledger, settings: ServiceSettings | None = None) -> ObservedApp:
    """
    The service of a ledger, which stays the caller's, to close; to be served by one process with one event loop.

    What is served are the routes of each module that has a `router(desk)`; another one is named here.
    """
    desk = Desk(ledger, settings or ServiceSettings())

    @asynccontextmanager
    async def lifespan(_app: ObservedApp) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await desk.close()

    app = ObservedApp(
        desk.metrics,
        title="ledger",
        version=version("ledger"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.desk = desk
    add_problems(app)
    for module in (command_routes, question_routes, health_routes):
        app.router.routes.extend(module.router(desk).routes)
    check_scopes(app)
    app.add_middleware(Shortcut, service=app)
    return app
