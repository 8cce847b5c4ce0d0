"""
Traces: a span for each request, and below it one for each command that it hands over to be written.

Only OpenTelemetry's API is known here.  Where the program that runs the service has set no provider up, nothing is
recorded, which costs nothing, and a trace that a caller has begun still gives its id to the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.datastructures import Headers

from ledger.batch import Done
from ledger.core.commands import Command
from ledger.core.errors import LedgerError, Rejected
from ledger.service.group_commit import GroupCommit

TRACER: Final = trace.get_tracer("ledger", version("ledger"))


class TracedCommit(GroupCommit):
    """Carries commands out, with a span from the submission of each to its answer, where anybody records it."""

    async def submit(self, command: Command, scope: str) -> Done:
        if not trace.get_current_span().is_recording():
            return await super().submit(command, scope)
        with _started(f"append {command.type}", {"ledger.command": command.type}) as span:
            try:
                done = await super().submit(command, scope)
            except Rejected as rejection:
                # An answer like any other, and no error of anybody's.
                span.set_attribute("ledger.rejected", rejection.code)
                raise
            except LedgerError as error:
                span.set_attribute("error.type", error.code)
                span.set_status(Status(StatusCode.ERROR))
                raise
            span.set_attribute("ledger.transaction_id", str(done.transaction_id))
            span.set_attribute("ledger.replayed", done.replayed)
            return done


def is_configured() -> bool:
    """Whether this process has a provider, so that spans may be recorded."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@contextmanager
def asked(scope: Mapping[str, Any], method: str) -> Iterator[Span]:
    """
    The span of a request, in the trace that its headers continue, if they do.

    Its attributes are those of OpenTelemetry's conventions for HTTP servers, but for the query: it names accounts.
    """
    headers = Headers(raw=scope["headers"])
    told: dict[str, str | int] = {
        "http.request.method": method,
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if method != scope["method"]:
        told["http.request.method_original"] = scope["method"]
    if scope.get("server"):
        host, port = scope["server"]
        told |= {"server.address": host, **({} if port is None else {"server.port": port})}
    if "user-agent" in headers:
        told["user_agent.original"] = headers["user-agent"]
    with _started(method, told, context=propagate.extract(headers), kind=SpanKind.SERVER) as span:
        yield span


def answered(span: Span, name: str, route: str | None, status: int | None, error: str | None) -> None:
    """What became of a request; `error` says what kind of fault of ours it was, where it was one."""
    span.update_name(name)
    if route is not None:
        span.set_attribute("http.route", route)
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR))


def trace_of(span: Span) -> str | None:
    """The id of the trace that a span is in."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def continued(traceparent: bytes) -> str | None:
    """The id of the trace that a header continues (W3C Trace Context), where nobody records it here."""
    context = propagate.extract({"traceparent": traceparent.decode("latin-1")})
    return trace_of(trace.get_current_span(context))


@contextmanager
def _started(name: str, attributes: Mapping[str, str | int], **how: Any) -> Iterator[Span]:
    # An error is told by its kind: its message may quote what is nobody else's.
    silent: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}
    with TRACER.start_as_current_span(name, attributes=attributes, **silent, **how) as span:
        yield span
