"""How quiet the machine is: the speed of a fixed loop, and the processor time that others take beside it."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

_LOOPS: Final = 250_000


class Noise(NamedTuple):
    """Loops a second; how many cores others kept busy; which share of the machine was stolen by its host."""

    loops_per_second: float
    others_cores: float
    stolen: float


def listen() -> Noise:
    """Run a fixed loop on one core, for about a tenth of a second, and see what else goes on."""
    before, own_before, start = _ticks(), time.process_time(), time.perf_counter()
    digest = b""
    for _ in range(_LOOPS):
        digest = sha256(digest).digest()
    seconds = time.perf_counter() - start
    own = time.process_time() - own_before
    busy, stolen, everything = (after - earlier for after, earlier in zip(_ticks(), before, strict=True))
    others = max(0.0, (busy / os.sysconf("SC_CLK_TCK") - own) / seconds)
    return Noise(_LOOPS / seconds, others, stolen / max(1, everything))


def _ticks() -> tuple[int, int, int]:
    """Ticks since the machine started: busy, stolen, and all of them; zeroes where the system does not say."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return 0, 0, 0
    user, nice, system, idle, waiting, hard, soft, stolen = map(int, line.split()[1:9])
    busy = user + nice + system + hard + soft
    return busy, stolen, busy + idle + waiting + stolen
