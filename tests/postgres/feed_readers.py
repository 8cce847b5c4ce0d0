"""
Readers of what happened, the feed and two that others use, and clocks that step: what the tests of order are made of.

A reader reads again and again while writers go on, and keeps what it has seen; `faults` says what is wrong with that.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import psycopg
from sqlalchemy import make_url

from ledger import Ledger

Place: TypeAlias = tuple[str, int]

WAIT_SECONDS: Final = 120

CLOCK: Final = """
CREATE SCHEMA stepping;
CREATE FUNCTION stepping.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
    SELECT pg_catalog.clock_timestamp() + make_interval(secs => current_setting('stepping.seconds')::float
           + (random() - 0.5) * current_setting('stepping.jitter')::float)
$$;
"""


class Faults(NamedTuple):
    """What a reader did not see, saw more than once, and saw after a later version of the same stream."""

    lost: int
    doubled: int
    disordered: int


NONE: Final = Faults(0, 0, 0)


class Reader(Protocol):
    """Somebody who keeps what was seen."""

    seen: list[Place]

    def read(self) -> None:
        """See what is new."""


class FeedReader:
    """Stamps what there is, a little at a time, and reads the feed after the last position."""

    def __init__(self, ledger: Ledger, limit: int = 10_000) -> None:
        self.seen: list[Place] = []
        self._ledger, self._limit = ledger, limit

    def read(self) -> None:
        """See what is new."""
        while self._ledger.stamp(self._limit):
            pass
        entries = self._ledger.feed(after=len(self.seen))
        self.seen += [(entry.event.stream, entry.event.version) for entry in entries]


class SerialReader:
    """Reads after the last number of a `bigserial`."""

    def __init__(self, psql: psycopg.Connection[Any]) -> None:
        self.seen: list[Place] = []
        self._psql, self._last = psql, 0

    def read(self) -> None:
        """See what is new."""
        sql = "SELECT stream, version, serial FROM ledger.events WHERE serial > %s ORDER BY serial"
        for stream, version, serial in self._psql.execute(sql, (self._last,)):
            self.seen.append((stream, version))
            self._last = serial


class TransactionReader:
    """
    Reads after the last (xid, serial), and only what is older than every transaction that is still at work.

    At work anywhere in the cluster: other tests that run beside this one hold it up, and `let_end` waits for them.
    """

    def __init__(self, psql: psycopg.Connection[Any]) -> None:
        self.seen: list[Place] = []
        self._psql, self._last = psql, ("0", 0)

    def read(self) -> None:
        """See what is new."""
        sql = """
        SELECT stream, version, xid::text, serial FROM ledger.events AS e
        WHERE (xid, serial) > (%s::xid8, %s) AND xid < pg_snapshot_xmin(pg_current_snapshot())
        ORDER BY e.xid, e.serial  -- Without the table's name it is the text, in which 10 comes before 9.
        """
        for stream, version, xid, serial in self._psql.execute(sql, self._last):
            self.seen.append((stream, version))
            self._last = (xid, serial)


def let_end(psql: psycopg.Connection[Any]) -> None:
    """Wait until every transaction that is at work in the cluster has ended, but for those that begin meanwhile."""
    ((begun,),) = psql.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text").fetchall()
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        sql = "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= %s::xid8"
        if psql.execute(sql, (begun,)).fetchall() == [(True,)]:
            return
    message = f"a transaction of another test is still open after {WAIT_SECONDS} s"
    raise TimeoutError(message)


def faults(reader: Reader, psql: psycopg.Connection[Any]) -> Faults:
    """What is wrong with what a reader has seen, now that nobody writes any more."""
    written = set(psql.execute("SELECT stream, version FROM ledger.events").fetchall())
    counts = Counter(reader.seen)
    return Faults(
        lost=len(written - counts.keys()), doubled=counts.total() - len(counts), disordered=disordered(reader.seen)
    )


def disordered(seen: Iterable[Place]) -> int:
    """How many were seen after a later version of the same stream."""
    latest: dict[str, int] = {}
    count = 0
    for stream, version in seen:
        count += version < latest.get(stream, 0)
        latest[stream] = max(version, latest.get(stream, 0))
    return count


def number_events(psql: psycopg.Connection[Any]) -> None:
    """Let the database number events as they are written, as the feed does not."""
    psql.execute("ALTER TABLE ledger.events ADD COLUMN serial bigserial")
    psql.execute("ALTER TABLE ledger.events ADD COLUMN xid xid8 DEFAULT pg_current_xact_id()")


def let_clocks_step(psql: psycopg.Connection[Any]) -> None:
    """Make the clock of `at_another_time`."""
    psql.execute(CLOCK.encode())


def at_another_time(url: str, seconds: float, jitter: float = 0.0) -> str:
    """The URL of sessions whose clock is wrong by so much, and steps at random within `jitter` each time."""
    options = f"-csearch_path=stepping,pg_catalog -cstepping.seconds={seconds} -cstepping.jitter={jitter}"
    return make_url(url).update_query_dict({"options": options}).render_as_string(hide_password=False)
