"""`create_app`: the service as an ASGI application, made of what each module has routes for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Final

from ledger.application import Ledger
from ledger.inbox import Inbox
from ledger.service import (
    bulk_routes,
    command_routes,
    document_routes,
    export_routes,
    feed_routes,
    health_routes,
    message_routes,
    page_routes,
    question_routes,
    report_routes,
    upkeep_routes,
)
from ledger.service.bounds import Bounds
from ledger.service.deadlines import acting_on_deadlines
from ledger.service.desk import Desk
from ledger.service.observed import ObservedApp
from ledger.service.problem_details import add_problems
from ledger.service.scoped import check_scopes
from ledger.service.shortcut import Shortcut
from ledger.settings import ServiceSettings

_ROUTES: Final = (
    command_routes,
    bulk_routes,
    question_routes,
    feed_routes,
    message_routes,
    upkeep_routes,
    report_routes,
    export_routes,
    health_routes,
    page_routes,
    document_routes,
)
"""The modules that have a `router(desk)`; another one is named here."""


def create_app(ledger: Ledger, settings: ServiceSettings | None = None, inboxes: Sequence[Inbox] = ()) -> ObservedApp:
    """
    The service of a ledger, which stays the caller's, to close; to be served by one process with one event loop.

    Messages are taken in for the sources that have an inbox here.
    """
    chosen = settings or ServiceSettings()
    desk = Desk(ledger, chosen, inboxes)

    @asynccontextmanager
    async def lifespan(_app: ObservedApp) -> AsyncIterator[None]:
        try:
            async with acting_on_deadlines(desk):
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
        redirect_slashes=False,
    )
    app.state.desk = desk
    add_problems(app)
    routers = {module: module.router(desk) for module in _ROUTES}
    for each in routers.values():
        app.router.routes.extend(each.routes)
    # A path that nobody knows: people are told so by a page, programs by a problem.
    app.router.default = routers[page_routes].default
    check_scopes(app)
    app.openapi = partial(document_routes.document_of, app)  # type: ignore[method-assign]  # As FastAPI documents it.
    app.add_middleware(Shortcut, service=app)
    app.add_middleware(Bounds, settings=chosen)
    return app
