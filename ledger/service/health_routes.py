"""
What whoever is on call asks: `/healthz`, `/readyz`, `/metrics`, `/metrics/ordering`.

None of them waits for a database that does not answer.  In the first two there is nothing of the ledger, and everybody
may ask; metrics are for whoever has a key, of any scope, unless the settings open them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic_core import to_json

from ledger.access import Scope
from ledger.core.errors import DatabaseUnavailable, DeadlineExceeded
from ledger.health import Check, Failing
from ledger.service import shapes
from ledger.service.desk import Desk
from ledger.service.occasion import note
from ledger.service.probe import WAIT_SECONDS, Probe
from ledger.service.problem_details import PROBLEM_JSON, problem
from ledger.service.scoped import marked, public, require
from ledger.storage.gauges import Ordering

logger: Final = logging.getLogger("ledger.service")

KEYS_MAX: Final = 100
"""Of how many keys it is remembered that they may read metrics, for when the database cannot be asked."""

_COUNTED: Final = {
    "outOfOrder": ("out_of_order", "late"),
    "gaps": ("gaps_opened",),
    "received": ("received",),
    "processed": ("processed",),
    "duplicates": ("duplicates",),
    "late": ("late",),
    "conflicts": ("conflicts",),
    "unnumbered": ("unnumbered",),
    "setAside": ("set_aside",),
    "gapsFilled": ("gaps_filled",),
    "gapsTimedOut": ("gaps_timed_out",),
    "rejected": ("rejected",),
    "failed": ("failed",),
    "undecodable": ("undecodable",),
    "deadLettered": ("dead_lettered",),
    "replayed": ("replayed",),
}
"""What `/metrics/ordering` tells of a source, and the counters of the inbox that it is the sum of."""


_STUCK: Final = ("waiting", "parked", "retrying")


def router(desk: Desk) -> APIRouter:
    """The four routes."""
    routes = APIRouter(tags=["Health"])
    _add_checks(routes, desk)
    _add_metrics(routes, desk)
    return routes


def _add_checks(routes: APIRouter, desk: Desk) -> None:
    checks = [check for check in Check if check not in desk.settings.ready_without]
    readiness = Probe("readiness", partial(desk.health.failing, checks), desk.watchers)
    told: list[Failing] = []

    @routes.get("/healthz", dependencies=[Depends(public)], include_in_schema=False)
    async def healthz() -> Response:
        """Whether this process is alive; the database is not asked."""
        return _plain({"status": "ok"})

    @routes.get("/readyz", dependencies=[Depends(public)], include_in_schema=False)
    async def readyz() -> Response:
        """Whether this process can do its work: schema at head, database writable, stamper alive; 503 if not."""
        if desk.ending.is_set():
            return _not_ready({"service": "it is being stopped"})
        failing = await readiness.answer()
        if failing is None:
            return _not_ready({"database": f"it gave no answer within {WAIT_SECONDS:g} seconds"})
        if [each.check for each in failing] != [each.check for each in told]:
            told[:] = failing
            for each in failing:
                logger.warning("not ready, %s: %s", each.check.value, each.said)
        if failing:
            return _not_ready({each.check.value: each.problem for each in failing})
        return _plain({"status": "ready", "checks": [check.value for check in checks]})


def _add_metrics(routes: APIRouter, desk: Desk) -> None:
    gauges = Probe("metrics", desk.health.gauges, desk.watchers)
    order = Probe("ordering", desk.health.ordering, desk.watchers)
    watching = [Depends(_watching(desk))]

    exposed: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"example": "ledger_up 1.0\n"}}}}

    @routes.get(
        "/metrics",
        operation_id="metrics",
        dependencies=watching,
        response_class=PlainTextResponse,
        responses=exposed,
    )
    async def metrics(request: Request) -> Response:
        """All metrics, as Prometheus reads them; `ledger_up` is 0 where the database does not answer."""
        found = await gauges.answer(_left(request))
        text, media_type = desk.metrics.exposition(found, request.headers.get("accept", ""))
        return Response(text, media_type=media_type)

    @routes.get(
        "/metrics/ordering",
        operation_id="ordering",
        dependencies=watching,
        responses={200: {"model": shapes.OrderingShape}},
    )
    async def ordering(request: Request) -> Response:
        """In which order messages came: out of order, gaps, streams; and what else the inboxes counted."""
        found = await order.answer(_left(request))
        if found is None:
            return problem(DatabaseUnavailable("The database did not answer in time.", "Try again in a moment."))
        return _plain(ordering_json(found))


def ordering_json(ordering: Ordering) -> dict[str, Any]:
    """All sources together, and each by itself; `entities` are streams, as everywhere else."""
    sources = {name: _counted([counts]) for name, counts in sorted(ordering.counters.items())}
    stuck = {status: sum(each.streams for each in ordering.stuck if each.status == status) for status in _STUCK}
    return {
        **_counted(ordering.counters.values()),
        "entities": ordering.streams,
        **stuck,
        "held": sum(each.held for each in ordering.stuck),
        "sources": sources,
    }


def _counted(counters: Collection[Mapping[str, int]]) -> dict[str, int]:
    return {
        name: sum(counts.get(counter, 0) for counts in counters for counter in summed)
        for name, summed in _COUNTED.items()
    }


def _watching(desk: Desk) -> Callable[[Request], Awaitable[None]]:
    """
    Let in whoever has a key.

    The key that a scraper has used before is good as well while the database cannot be asked for it: that it cannot is
    what the metrics have to tell.
    """
    if desk.settings.open_metrics:
        return public
    admitted = require(*Scope)
    known: dict[bytes, None] = {}

    async def watching(request: Request) -> None:
        request.state.until = time.monotonic() + WAIT_SECONDS
        name = sha256(request.headers.get("authorization", "").encode()).digest()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await admitted(request)
        except (DatabaseUnavailable, DeadlineExceeded, TimeoutError):
            if name not in known:
                raise DatabaseUnavailable(
                    "The database cannot be asked for this key.", "Try again in a moment."
                ) from None
            return
        known[name] = None
        if len(known) > KEYS_MAX:
            del known[next(iter(known))]

    return marked(watching, *Scope)


def _left(request: Request) -> float:
    """Of the time that anybody waits, what the look for their key has left, if there was one."""
    until: float | None = getattr(request.state, "until", None)
    return WAIT_SECONDS if until is None else max(0.0, until - time.monotonic())


def _plain(plain: dict[str, Any]) -> Response:
    return Response(to_json(plain), media_type="application/json", headers={"Cache-Control": "no-store"})


def _not_ready(checks: dict[str, str]) -> Response:
    """A problem (RFC 9457) with what is wrong, check by check."""
    note(code="not_ready")
    told = {
        "type": "/problems/not_ready",
        "title": "Not ready",
        "status": int(HTTPStatus.SERVICE_UNAVAILABLE),
        "detail": "; ".join(f"{name}: {problem}" for name, problem in checks.items()),
        "code": "not_ready",
        "retryable": True,
        "fields": {"checks": checks},
    }
    return Response(
        to_json(told), HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "1"}, media_type=PROBLEM_JSON
    )
