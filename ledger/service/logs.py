"""
Logs as JSON lines on standard error: one object a line, with the ids of the request that it belongs to.

Of an exception its kind and its stack are told and not its message, which may quote rows: amounts and people stay out.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pydantic_core import to_json

from ledger.service.occasion import PRESENT

_FACTS: Final = "facts"
_FRAMES_MAX: Final = 50


class JsonLines(logging.Formatter):
    """A record as a line of JSON: time, level, logger, message, the ids of its request, and its facts."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        occasion = PRESENT.get()
        if occasion is not None:
            line |= occasion.facts()
        line |= getattr(record, _FACTS, {})
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _exception(record.exc_info[1])
        # Half a character of a name that somebody sent is no reason to lose a line.
        return to_json(line, fallback=str).decode(errors="backslashreplace")


def to_standard_error(level: str) -> None:
    """Let this process log JSON lines: of the ledger from this level on, of libraries what they warn of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("ledger").setLevel(level.upper())


def log_facts(
    logger: logging.Logger, level: int, message: str, facts: Mapping[str, Any], error: Exception | None = None
) -> None:
    """Log a message with facts, for a level that is enabled: without looking for its caller, which takes longest."""
    told = None if error is None else (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, level, "", 0, message, (), told, extra={_FACTS: facts})
    logger.handle(record)


def _utc(seconds: float) -> str:
    # Not the ledger's own, which remembers moments: of these each comes once.
    return f"{datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _exception(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_MAX:]
    return {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "stack": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
