"""
Around everything that is answered: the ids of a request, its span, its line in the log, its place in the metrics.

It is the outermost part of the application, so that nothing is answered that it does not see: neither what no route
knows, nor what is refused before a route, nor a fault of ours.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from fastapi import FastAPI
from opentelemetry import propagate
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledger.service.logs import FACTS
from ledger.service.metrics import METHODS, OTHER_METHOD, UNROUTED, Metrics
from ledger.service.occasion import PRESENT, Occasion
from ledger.service.tracing import TRACER

logger: Final = logging.getLogger("ledger.requests")

QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""What machines ask every few seconds: logged for who wants to know everything, and if it goes wrong."""

_SERVER_ERROR: Final = 500


class ObservedApp(FastAPI):
    """An application of which every request is observed."""

    def __init__(self, metrics: Metrics, **application: Any) -> None:
        super().__init__(**application)
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
        headers = Headers(scope=scope)
        method = _method(scope)
        with TRACER.start_as_current_span(
            method,
            context=propagate.extract(headers),
            kind=SpanKind.SERVER,
            attributes=_asked(scope, headers, method),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            token = PRESENT.set(Occasion.of(headers, span))
            try:
                await self._answer(scope, receive, send, span)
            finally:
                PRESENT.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, span: Span) -> None:
        occasion = PRESENT.get()
        assert occasion is not None
        status: int | None = None
        is_over = False

        async def sending(message: Message) -> None:
            nonlocal status, is_over
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = occasion.request_id
            is_over = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        began = time.monotonic()
        self._metrics.in_flight += 1
        fault: Exception | None = None
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

    def _tell(
        self, scope: Scope, occasion: Occasion, span: Span, status: int | None, seconds: float, fault: Exception | None
    ) -> None:
        route = self._route(scope)
        method = _method(scope)
        self._metrics.answered(method, route, status, seconds, occasion.code)
        failed = fault is not None or (status is not None and status >= _SERVER_ERROR)
        if route != UNROUTED:
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if failed:
            span.set_attribute("error.type", occasion.code or str(status or type(fault).__name__))
            span.set_status(Status(StatusCode.ERROR))
        level = logging.ERROR if failed else logging.DEBUG if route in QUIET else logging.INFO
        if logger.isEnabledFor(level):
            facts = {"method": method, "route": route, "status": status, "duration_seconds": round(seconds, 6)}
            known = {"actor": occasion.actor, "code": occasion.code}
            facts |= {name: value for name, value in known.items() if value is not None}
            logger.log(level, "%s %s %s", method, route, status, extra={FACTS: facts}, exc_info=fault)

    def _route(self, scope: Scope) -> str:
        """The template of its route; what is answered before a route is looked for has the path of one."""
        found = getattr(scope.get("route"), "path", None)
        if found is None and scope["path"] in self._paths:
            return str(scope["path"])
        return found or UNROUTED


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else OTHER_METHOD


def _asked(scope: Scope, headers: Headers, method: str) -> dict[str, str | int]:
    """What OpenTelemetry's conventions tell of a request to a server; not its query, in which accounts are named."""
    told: dict[str, str | int] = {
        "http.request.method": method,
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if method == OTHER_METHOD:
        told["http.request.method_original"] = scope["method"]
    if scope.get("server"):
        host, port = scope["server"]
        told |= {"server.address": host, **({} if port is None else {"server.port": port})}
    if "user-agent" in headers:
        told["user_agent.original"] = headers["user-agent"]
    return told
