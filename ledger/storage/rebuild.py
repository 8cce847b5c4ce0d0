"""
Every projection made anew from the log, while writers go on: one pass over each part of it adds its streams up,
a page of streams at a time is completed and compared, and what differs is mended under its locks.

The work is PostgreSQL's, so that a job is a thread with two connections: one for the pass, one for the pages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import islice
from queue import SimpleQueue
from typing import Any, Final

import psycopg

from ledger.core.errors import CorruptLog, Interrupted, LedgerError
from ledger.storage import repair
from ledger.storage.database import Connection, Database, address_of, connected
from ledger.storage.parts import Part, parts
from ledger.storage.repair import REBUILD_STREAMS_MAX, Sums

_GOES_ON: Final = "All before {0!r} is done: go on with after={0!r}."
_CANCEL_SECONDS: Final = 0.2
"""How soon what is still running is cancelled again: it may just have begun."""


def rebuild_all(
    database: Database, noticed_by: str, jobs: int, after: str, progress: Callable[[int], None] | None
) -> list[str]:
    """
    Make the projections of all streams behind `after` anew; returns those that differed, in order.

    Raises:
        CorruptLog: The log of a stream contradicts itself; all others were rebuilt.
        Interrupted: By the user; it says where to go on, and so does a note on any other error.
    """
    with database.connection() as connection:
        work = _Work(database, noticed_by, parts(connection, jobs, after))
    work.run(jobs, progress)
    if broken := work.broken():
        raise _together(broken)
    return sorted(work.mended)


def rebuild_some(
    database: Database, streams: Sequence[str], noticed_by: str, progress: Callable[[int], None] | None
) -> list[str]:
    """
    Make the projections of these streams anew; returns those that differed.

    Raises:
        CorruptLog: The log of a stream contradicts itself; all others were rebuilt.
    """
    mended: list[str] = []
    corrupt: list[CorruptLog] = []
    with database.connection() as connection:
        for at in range(0, len(streams), REBUILD_STREAMS_MAX):
            page = streams[at : at + REBUILD_STREAMS_MAX]
            mended += _rebuilt(connection, page, {}, noticed_by, corrupt)
            if progress is not None:
                progress(at + len(page))
    if corrupt:
        raise _together(corrupt)
    return mended


class _Stopped(Exception):
    """Another job failed, or the user wants no more."""


class _Work:
    """What the jobs of one rebuild share."""

    def __init__(self, database: Database, noticed_by: str, of: Sequence[Part]) -> None:
        self._database = database
        self._noticed_by = noticed_by
        self._parts = of
        self._stands = [part.after for part in of]
        self._done = [False] * len(of)
        self._events: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._idle = threading.Event()
        self._drivers: list[psycopg.Connection[Any]] = []
        self.mended: set[str] = set()
        self.corrupt: dict[str, CorruptLog] = {}

    def run(self, jobs: int, progress: Callable[[int], None] | None) -> None:
        """Let so many threads do the parts; what they tell is heard, and passed on, by this one."""
        streams = 0
        with ThreadPoolExecutor(jobs, thread_name_prefix="ledger-rebuild") as threads:
            try:
                for number in range(len(self._parts)):
                    threads.submit(self._part, number)
                left = len(self._parts)
                while left:
                    told = self._events.get()
                    if isinstance(told, BaseException):
                        raise told
                    if told is None:
                        left -= 1
                        continue
                    streams += told
                    if progress is not None:
                        progress(streams)
            except BaseException as error:
                self._stop()
                threads.shutdown(cancel_futures=True)
                if isinstance(error, KeyboardInterrupt):
                    raise Interrupted(self._stand(), self.broken()) from None
                self._note(error)
                raise

    def _note(self, error: BaseException) -> None:
        """Where to go on, and what was found by then, on an error of the ledger's own."""
        if isinstance(error, LedgerError):
            notes = [_GOES_ON.format(self._stand())] if self._stand() else []
            for note in (*notes, *(f"Found by then: {corrupt}" for corrupt in self.broken())):
                error.add_note(note)

    def broken(self) -> list[CorruptLog]:
        """What is wrong with logs that contradict themselves, in order."""
        return [self.corrupt[stream] for stream in sorted(self.corrupt)]

    def _stop(self) -> None:
        """End all jobs at once: what their connections wait for is cancelled."""
        self._stopped.set()
        while True:
            with self._lock:
                drivers = list(self._drivers)
            if not drivers:
                return
            for driver in drivers:
                with suppress(psycopg.Error):
                    driver.cancel_safe(timeout=5.0)
            self._idle.wait(_CANCEL_SECONDS)

    def _stand(self) -> str:
        """The last stream before which all are done."""
        for stand, done in zip(self._stands, self._done, strict=True):
            if not done:
                return stand
        return self._stands[-1]

    def _part(self, number: int) -> None:
        try:
            self._rebuild_part(number)
        except _Stopped:
            return
        except BaseException as error:  # noqa: BLE001  (it is raised by whoever hears of it)
            self._events.put(error)
        else:
            self._done[number] = True
            self._events.put(None)

    def _rebuild_part(self, number: int) -> None:
        part = self._parts[number]
        if self._stopped.is_set():
            raise _Stopped
        with (
            self._database.connection() as writer,
            # Not of the pool, which may have no second one: it is read from while the writer works.
            connected(address_of(writer), writer.schema) as reader,
            self._heard(reader, writer),
            reader.transaction(read_only=True, unbounded=True),
        ):
            # Here whole tables are what is asked for.
            reader.query("SET LOCAL enable_seqscan = on")
            # A stream is in one partition, where there are any: each can be summed up for itself.
            reader.query("SET LOCAL enable_partitionwise_aggregate = on")
            with closing(_pages(reader, writer, part)) as pages:
                for names, summed in pages:
                    if self._stopped.is_set():
                        raise _Stopped
                    self._rebuild_page(writer, names, summed)
                    self._stands[number] = names[-1]

    def _rebuild_page(self, writer: Connection, names: Sequence[str], summed: Mapping[str, Sums]) -> None:
        corrupt: list[CorruptLog] = []
        with writer.transaction(unbounded=True):
            suspects = repair.suspects(writer, names, summed)
        mended = _rebuilt(writer, suspects, summed, self._noticed_by, corrupt) if suspects else []
        with self._lock:
            self.mended.update(mended)
            self.corrupt.update({error.stream: error for error in corrupt})
        self._events.put(len(names))

    @contextmanager
    def _heard(self, *connections: Connection) -> Iterator[None]:
        """While these connections are at work, whoever stops the jobs cancels what they do."""
        drivers = [connection.driver for connection in connections]
        with self._lock:
            self._drivers += drivers
        try:
            yield
        finally:
            with self._lock:
                for driver in drivers:
                    self._drivers.remove(driver)
                if not self._drivers:
                    self._idle.set()


def _pages(
    reader: Connection, writer: Connection, part: Part
) -> Generator[tuple[list[str], dict[str, Sums]], None, None]:
    """The streams of a part, a page at a time, with what their logs added up to when the reader began."""
    summed = repair.sums(reader, part)
    ahead = next(summed, None)
    for names in repair.streams_of(writer, part):
        page: dict[str, Sums] = {}
        while ahead is not None and ahead.stream <= names[-1]:
            page[ahead.stream] = ahead
            ahead = next(summed, None)
        # A log without its beginning is known by its sums alone.
        yield sorted({*names, *page}), page
    while ahead is not None:
        rest = {each.stream: each for each in (ahead, *islice(summed, REBUILD_STREAMS_MAX - 1))}
        yield list(rest), rest
        ahead = next(summed, None)


def _rebuilt(
    connection: Connection,
    page: Sequence[str],
    summed: Mapping[str, Sums],
    noticed_by: str,
    corrupt: list[CorruptLog],
) -> list[str]:
    """Rebuild streams together; where one of them contradicts itself, each by itself, and note those that do."""
    try:
        with connection.transaction(unbounded=True):
            return repair.rebuild(connection, page, noticed_by, summed)
    except CorruptLog as error:
        if len(page) == 1:
            corrupt.append(error)
            return []
    return [name for stream in page for name in _rebuilt(connection, [stream], summed, noticed_by, corrupt)]


def _together(corrupt: Sequence[CorruptLog]) -> CorruptLog:
    first = corrupt[0]
    others = ", ".join(error.stream for error in corrupt[1:10])
    also = f"; so do {len(corrupt) - 1} others: {others}" if others else ""
    return CorruptLog(first.stream, first.version, first.problem + also)
