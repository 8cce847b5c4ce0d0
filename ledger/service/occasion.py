"""
The request that is being answered: its ids, and what is learnt of it on the way.

It goes with the task, so that whatever is logged or asked meanwhile can be told to belong to it.
"""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

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
    def of(cls, request_id: bytes | None, correlation_id: bytes | None, trace_id: str | None) -> Occasion:
        """
        Of a request with these headers, `X-Request-Id` and `X-Correlation-Id`, in this trace.

        The request's id is taken as it comes, if it is sane, and else made.  What is asked belongs to the conversation
        that is named; if none is, to the trace that is continued or begun.
        """
        return cls(_sane(request_id) or os.urandom(16).hex(), _sane(correlation_id) or trace_id, trace_id)

    def facts(self) -> dict[str, str]:
        """Its ids, as far as it has any."""
        ids = {"request_id": self.request_id}
        if self.correlation_id is not None:
            ids["correlation_id"] = self.correlation_id
        if self.trace_id is not None:
            ids["trace_id"] = self.trace_id
        return ids


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


def _sane(given: bytes | None) -> str | None:
    if given is None:
        return None
    text = given.decode("latin-1")
    return text if _SANE.fullmatch(text) else None
