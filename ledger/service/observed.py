"""
Around everything that is answered: the ids of a request, its span, its line in the log, its place in the metrics.

It is the outermost part of the application, so that nothing is answered that it does not see: neither what no route
knows, nor what is refused before a route, nor a fault of ours.  It is on the way of every request, and costs little.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from fastapi import FastAPI
from opentelemetry.trace import Span
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.service import tracing
from ledger.service.bounds import WATCHED
from ledger.service.logs import log_facts
from ledger.service.metrics import METHODS, OTHER_METHOD, UNROUTED, Metrics
from ledger.service.occasion import PRESENT, Occasion

logger: Final = logging.getLogger("ledger.requests")

_SERVER_ERROR: Final = 500
_ID: Final = b"x-request-id"
_CORRELATION: Final = b"x-correlation-id"
_TRACE: Final = b"traceparent"
_WANTED: Final = frozenset({_ID, _CORRELATION, _TRACE})


class ObservedApp(FastAPI):
    """An application of which every request is observed."""

    def __init__(self, metrics: Metrics, **application: Any) -> None:
        # The framework's own traces tell of the query, which names accounts, and its logs quote what was raised.
        silent: Any = {"tracing": False, "metrics": False, "logs": False}
        super().__init__(telemetry=silent, **application)
        self._metrics = metrics

    def build_middleware_stack(self) -> ASGIApp:
        paths = frozenset(path for route in self.routes if "{" not in (path := getattr(route, "path", "{")))
        return Observed(super().build_middleware_stack(), self._metrics, paths)


class Observed:
    """The application `inner`, observed; `paths` are those of its routes that have no parameter in theirs."""

    def __init__(self, inner: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._inner = inner
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        found = {name: value for name, value in scope["headers"] if name in _WANTED}
        if tracing.is_configured():
            with tracing.asked(scope, _method(scope)) as span:
                await self._answer(scope, receive, send, _occasion(found, tracing.trace_of(span)), span)
            return
        trace_id = tracing.continued(found[_TRACE]) if _TRACE in found else None
        await self._answer(scope, receive, send, _occasion(found, trace_id), None)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, occasion: Occasion, span: Span | None) -> None:
        status: int | None = None
        is_over = False

        async def sending(message: Message) -> None:
            nonlocal status, is_over
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_ID, occasion.request_id.encode())]
            else:
                is_over = not message.get("more_body", False)
            await send(message)

        token = PRESENT.set(occasion)
        self._metrics.in_flight += 1
        fault: Exception | None = None
        began = time.monotonic()
        try:
            await self._inner(scope, receive, sending)
        except Exception as error:
            fault = error
            if not is_over:
                raise
            # It was answered, as a fault of ours, and is told in the log below: nobody else has to hear of it.
        finally:
            self._metrics.in_flight -= 1
            self._tell(scope, occasion, span, status, time.monotonic() - began, fault)
            PRESENT.reset(token)

    def _tell(
        self,
        scope: Scope,
        occasion: Occasion,
        span: Span | None,
        status: int | None,
        seconds: float,
        fault: Exception | None,
    ) -> None:
        route = self._route(scope)
        method = _method(scope)
        self._metrics.answered(method, route, status, seconds, occasion.code)
        failed = fault is not None or (status is not None and status >= _SERVER_ERROR)
        if span is not None:
            known = None if route == UNROUTED else route
            kind = (occasion.code or str(status or type(fault).__name__)) if failed else None
            tracing.answered(span, f"{method} {route}" if known else method, known, status, kind)
        level = logging.ERROR if failed else logging.DEBUG if route in WATCHED else logging.INFO
        if logger.isEnabledFor(level):
            facts: dict[str, Any] = {"method": method, "route": route, "status": status}
            facts["duration_seconds"] = round(seconds, 6)
            if occasion.actor is not None:
                facts["actor"] = occasion.actor
            if occasion.code is not None:
                facts["code"] = occasion.code
            log_facts(logger, level, f"{method} {route} {status}", facts, fault)

    def _route(self, scope: Scope) -> str:
        """The template of its route; what is answered before a route is looked for has the path of one."""
        path: str = scope["path"]
        if path in self._paths:
            return path
        return getattr(scope.get("route"), "path", None) or UNROUTED


def _occasion(found: dict[bytes, bytes], trace_id: str | None) -> Occasion:
    return Occasion.of(found.get(_ID), found.get(_CORRELATION), trace_id)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else OTHER_METHOD
