"""
The request that is being answered: its ids, and what is learnt of it on the way.

It goes with the task, so that whatever is logged or asked meanwhile can be told to belong to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from opentelemetry import trace

_SANE: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:/=+-]{0,127}")
"""What an id of somebody else's may be: nothing that could be taken for something else in a log or a header."""


@dataclass(slots=True)
class Occasion:
    """One request: how it can be found again, who asks, and the code of the problem, if there was one."""

    request_id: str
    correlation_id: str | None = None
    trace_id: str | None = None
    actor: str | None = None
    code: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str], span: trace.Span) -> Occasion:
        """
        Of a request with these headers, in this span.

        `X-Request-Id` is taken as it comes, if it is sane, and else made.  What is asked belongs to the conversation
        that `X-Correlation-Id` names; if that is not said, to the trace that is continued or begun.
        """
        given = headers.get("x-request-id", "")
        request_id = given if _SANE.fullmatch(given) else uuid4().hex
        context = span.get_span_context()
        trace_id = trace.format_trace_id(context.trace_id) if context.is_valid else None
        named = headers.get("x-correlation-id", "")
        return cls(request_id, named if _SANE.fullmatch(named) else trace_id, trace_id)

    def facts(self) -> dict[str, str]:
        """Its ids, as far as it has any."""
        ids = {"request_id": self.request_id, "correlation_id": self.correlation_id, "trace_id": self.trace_id}
        return {name: value for name, value in ids.items() if value is not None}


PRESENT: Final[ContextVar[Occasion | None]] = ContextVar("ledger_occasion", default=None)
"""The request that is being answered; None outside of any."""


def correlation_id() -> str | None:
    """The conversation that the present request belongs to."""
    occasion = PRESENT.get()
    return None if occasion is None else occasion.correlation_id


def note(*, actor: str | None = None, code: str | None = None) -> None:
    """Say who asks, or what went wrong, for the log and the metrics."""
    occasion = PRESENT.get()
    if occasion is not None:
        occasion.actor = actor or occasion.actor
        occasion.code = code or occasion.code
