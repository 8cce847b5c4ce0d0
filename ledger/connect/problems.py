"""What a person should hear of while a consumer goes on: each problem once, and again only after a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_REPEAT_SECONDS: Final = 60.0
_KEPT_MAX: Final = 1_000


class Problems:
    """Tells problems to whoever wants to hear of them."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told: dict[str, float] = {}

    def tell(self, problem: str) -> None:
        """Tell a problem, unless it was told a moment ago."""
        now = time.monotonic()
        if now - self._told.get(problem, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            return
        if len(self._told) >= _KEPT_MAX:
            self._told.clear()
        self._told[problem] = now
        self._tell(problem)
