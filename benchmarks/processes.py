"""
Processes of their own: whoever is measured is alone in one, and the most memory that it took is nobody else's.

They are forked from a server that has imported the ledger, so that they begin at once and alike.
"""

from __future__ import annotations

import gc
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Barrier
from statistics import quantiles
from typing import Any, Final, NamedTuple, TypeAlias

from benchmarks.rounds import Measured

Ready: TypeAlias = Callable[[], object]
"""Called when everything is prepared: it returns when the others that are measured at once are ready too."""

_WAIT_SECONDS: Final = 900.0
_WARM_SECONDS: Final = 0.5


class Tally(NamedTuple):
    """What one process has done, in how many seconds, and the seconds that each call took."""

    done: int
    seconds: float
    latencies: Sequence[float]


def apart(work: Callable[..., Tally], *each: Sequence[Any]) -> Measured:
    """
    Run `work(ready, …)` in as many processes at once as there are lists of arguments.

    Raises:
        RuntimeError: It failed in one of them.
    """
    context = _context()
    barrier = context.Barrier(len(each))
    started = [_started(context, work, arguments, barrier) for arguments in each]
    try:
        answers = [_answer(receiver, process) for process, receiver in started]
    finally:
        for process, _ in started:
            process.kill()
            process.join()
    tallies = [tally for tally, _ in answers]
    p50, p99 = percentiles([latency for tally in tallies for latency in tally.latencies])
    rate = sum(tally.done / tally.seconds for tally in tallies)
    return Measured(rate, p50, p99, sum(megabytes for _, megabytes in answers))


def driven(
    ready: Ready, callers: int, seconds: float, work: Callable[[], int], more: Callable[[], bool] = lambda: True
) -> Tally:
    """
    Do `work` from some threads for some seconds, or while there is `more` of it; what it returns is counted.

    What is begun in the first moments is not: connections are opened in it, and statements prepared.
    """
    counts, faults = [0] * callers, list[BaseException]()
    spans: list[tuple[float, float]] = []
    # What was made before is no garbage that collections should have to look through.
    gc.collect()
    gc.freeze()
    ready()
    begin = time.perf_counter() + min(_WARM_SECONDS, seconds / 2)
    end = begin + seconds

    def run(caller: int) -> None:
        counted = False
        try:
            work()
            while ((start := time.perf_counter()) < end and more()) or not counted:
                done = work()
                if start >= begin:
                    spans.append((start, time.perf_counter()))
                    counts[caller] += done
                    counted = True
        except BaseException as fault:  # noqa: BLE001  (a thread's fault is raised in the caller)
            faults.append(fault)

    running = [threading.Thread(target=run, args=(caller,)) for caller in range(callers)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if faults:
        raise faults[0]
    took = max(finish for _, finish in spans) - min(start for start, _ in spans)
    return Tally(sum(counts), took, [finish - start for start, finish in spans])


def percentiles(seconds: Sequence[float]) -> tuple[float | None, float | None]:
    """The 50th and the 99th percentile, in milliseconds; of a single one neither."""
    if len(seconds) < 2:
        return None, None
    hundredths = quantiles(seconds, n=100, method="inclusive")
    return hundredths[49] * 1000, hundredths[98] * 1000


def _context() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.ours"])
    return context


def _started(
    context: ForkServerContext, work: Callable[..., Tally], arguments: Sequence[Any], barrier: Barrier
) -> tuple[ForkServerProcess, Connection]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, arguments, barrier, sender))
    process.start()
    sender.close()
    return process, receiver


def _work(work: Callable[..., Tally], arguments: Sequence[Any], barrier: Barrier, sender: Connection) -> None:
    try:
        tally = work(lambda: barrier.wait(_WAIT_SECONDS), *arguments)
    except BaseException as error:
        barrier.abort()
        sender.send((None, 0.0, f"{type(error).__name__}: {error}"))
        raise
    sender.send((tally, _peak_megabytes(), None))


def _answer(receiver: Connection, process: ForkServerProcess) -> tuple[Tally, float]:
    if not receiver.poll(_WAIT_SECONDS):
        raise RuntimeError(f"process {process.pid} gave no answer in {_WAIT_SECONDS:.0f} seconds")
    try:
        tally, megabytes, fault = receiver.recv()
    except EOFError:
        raise RuntimeError(f"process {process.pid} ended without an answer") from None
    if fault is not None:
        raise RuntimeError(fault)
    return tally, megabytes


def _peak_megabytes() -> float:
    """The most memory that this process, or one that it began, has had resident."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    # macOS counts bytes, everybody else kilobytes.
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
