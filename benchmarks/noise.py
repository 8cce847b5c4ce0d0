"""How quiet the machine is: a fixed piece of work, and the processor time that others took meanwhile."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

_LOOPS: Final = 250_000


class Noise(NamedTuple):
    """Right before a run: the speed of a fixed loop, the cores that others kept busy, and the share stolen."""

    loops_per_second: float
    others_cores: float
    stolen: float


def listen() -> Noise:
    """Run a fixed loop on one core, for about a tenth of a second, and see what else went on."""
    before, own_before, start = _ticks(), time.process_time(), time.perf_counter()
    digest = b""
    for _ in range(_LOOPS):
        digest = sha256(digest).digest()
    seconds = time.perf_counter() - start
    own = time.process_time() - own_before
    busy, idle, stolen = (after - earlier for after, earlier in zip(_ticks(), before, strict=True))
    everything = busy + idle + stolen
    if not everything:
        return Noise(_LOOPS / seconds, 0.0, 0.0)
    cores = busy / _ticks_per_second() / seconds
    return Noise(_LOOPS / seconds, max(0.0, cores - own / seconds), stolen / everything)
