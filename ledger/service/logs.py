"""
Logs as JSON lines on standard error: one object a line, with the ids of the request that it belongs to.

Of an exception its kind and its stack are told and not its message, which may quote rows: amounts and people stay out.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Final

from ledger.core.canonical import utc_text
from ledger.service.occasion import PRESENT

FACTS: Final = "facts"
"""`extra={FACTS: {…}}` of a log call: what else its line tells."""

_FRAMES_MAX: Final = 50


class JsonLines(logging.Formatter):
    """A record as a line of JSON: time, level, logger, message, the ids of its request, and its facts."""

    def format(self, record: logging.LogRecord) -> str:
        occasion = PRESENT.get()
        line: dict[str, Any] = {
            "time": utc_text(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **({} if occasion is None else occasion.facts()),
            **getattr(record, FACTS, {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _exception(record.exc_info[1])
        return json.dumps(line, default=str)


def to_standard_error() -> None:
    """Let this process log JSON lines: of the ledger what it tells, of libraries what they warn of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("ledger").setLevel(logging.INFO)


def _exception(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_MAX:]
    return {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "stack": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
