"""
Traces: a span for each request, and below it one for each command that it hands over to be written.

Only OpenTelemetry's API is known here.  Where the program that runs the service has set no provider up, nothing is
recorded, and a trace that a caller has begun still gives requests their correlation id.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from ledger.asynchronous import AsyncLedger
from ledger.batch import Done
from ledger.core.commands import Command
from ledger.core.errors import LedgerError, Rejected

TRACER: Final = trace.get_tracer("ledger", version("ledger"))


class TracedLedger(AsyncLedger):
    """A ledger whose callers are coroutines, with a span from each command's submission to its answer."""

    async def submit(self, command: Command, *, scope: str = "", deadline_seconds: float | None = None) -> Done:
        with TRACER.start_as_current_span(
            f"append {command.type}",
            attributes={"ledger.command": command.type},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                done = await super().submit(command, scope=scope, deadline_seconds=deadline_seconds)
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
