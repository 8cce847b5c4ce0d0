"""
Large logs: `python -m benchmarks logs [--events 5000000]`.

How fast a long log is rebuilt and verified, beside what reading it takes at the least: a sequential scan, the bare
aggregate that the balances are, into a table, and the rows of its events and transactions copied out by one process
that hashes each.  Counted are events.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Final
from uuid import UUID

import psycopg
from rich.console import Console
from rich.progress import Progress
from sqlalchemy import URL

from benchmarks.processes import Ready, Tally, apart
from benchmarks.rounds import Benchmark, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import text
from ledger import Ledger, OpenAccount
from ledger.audit import verify
from ledger.core import chain
from ledger.core.book import EPOCH, Book
from ledger.core.canonical import utc_text
from ledger.core.commands import Direction
from ledger.core.events import EntryPosted, Event, Recorded, Transaction
from ledger.storage import projector

EVENTS: Final = 5_000_000
ACCOUNTS: Final = 47_000

SCAN: Final = "sequential scan"
AGGREGATE: Final = "bare aggregate, into a table"
COPY: Final = "COPY TO, SHA-256 of each row, 1 process"
REBUILD: Final = "rebuild, 1 job"
REBUILD_2: Final = "rebuild, 2 jobs"
HASHES: Final = "verify hashes, 1 job"
HASHES_2: Final = "verify hashes, 2 jobs"
VERIFY_2: Final = "verify everything, 2 jobs"

RATIOS: Final = (
    Ratio("rebuild, 1 job / bare aggregate", REBUILD, (AGGREGATE,), 0.8),
    Ratio("rebuild, 2 jobs / bare aggregate", REBUILD_2, (AGGREGATE,), None),
    Ratio("bare aggregate / sequential scan", AGGREGATE, (SCAN,), None),
    Ratio("verify hashes, 1 job / COPY and SHA-256", HASHES, (COPY,), None),
    Ratio("verify hashes, 2 jobs / COPY and SHA-256", HASHES_2, (COPY,), 0.4),
    Ratio("verify everything, 2 jobs / COPY and SHA-256", VERIFY_2, (COPY,), None),
)

# What the balances are: nothing is compared, and nothing is kept but the sums.
_AGGREGATE: Final = """
CREATE TABLE summed AS
SELECT stream, max(version) AS version,
       sum(amount) FILTER (WHERE direction = 'debit' AND type IN ('entry_posted', 'hold_captured')) AS posted_debits,
       sum(amount) FILTER (WHERE direction = 'credit' AND type IN ('entry_posted', 'hold_captured')) AS posted_credits,
       sum(CASE type WHEN 'hold_placed' THEN amount ELSE -amount END)
           FILTER (WHERE direction = 'debit' AND type <> 'entry_posted') AS pending_debits,
       sum(CASE type WHEN 'hold_placed' THEN amount ELSE -amount END)
           FILTER (WHERE direction = 'credit' AND type <> 'entry_posted') AS pending_credits
FROM events GROUP BY stream
"""

_TOGETHER: Final = 1_000
"""Transfers of one moment, as those of a batch are."""

_COPIED_TOGETHER: Final = 10
_OPENED_TOGETHER: Final = 5_000


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Write the log."""
    events, accounts = (20_000, 500) if effort.quick else (effort.events or EVENTS, ACCOUNTS)
    with Ledger.connect(text(url)) as ledger, Progress(console=Console(stderr=True), transient=True) as bar:
        ledger.migrate()
        task = bar.add_task("events written", total=events)
        Log(ledger, accounts).write(text(url), events, lambda made: bar.update(task, completed=made))
    turns: dict[str, Turn] = {name: partial(_measured, name, text(url), events) for name in _TURNS}
    yield Benchmark("events", turns, RATIOS, [Ratios(f"A log of {events:,} events over {accounts:,} accounts")])


def _measured(name: str, url: str, events: int, _: int) -> Measured:
    return apart(_timed, (name, url, events))


def _timed(ready: Ready, name: str, url: str, events: int) -> Tally:
    ready()
    return Tally(events, _TURNS[name](url), ())


def scan(url: str) -> float:
    with psycopg.connect(url, options="-c search_path=ledger -c enable_indexonlyscan=off") as connection:
        start = time.perf_counter()
        connection.execute("SELECT count(*) FROM events")
        return time.perf_counter() - start


def aggregate(url: str) -> float:
    with psycopg.connect(url, options="-c search_path=ledger -c jit=off") as connection:
        start = time.perf_counter()
        connection.execute(_AGGREGATE)
        seconds = time.perf_counter() - start
        connection.rollback()
        return seconds


def copy_out(url: str) -> float:
    with psycopg.connect(url, options="-c search_path=ledger") as connection:
        start = time.perf_counter()
        for table in ("events", "transactions"):
            with connection.cursor().copy(f"COPY {table} TO STDOUT".encode()) as rows:
                for row in rows:
                    sha256(row).digest()
        return time.perf_counter() - start


def _rebuild(url: str, jobs: int) -> float:
    with Ledger.connect(url) as ledger:
        start = time.perf_counter()
        assert ledger.rebuild(jobs=jobs) == []
        return time.perf_counter() - start


def _verify(url: str, jobs: int) -> float:
    with Ledger.connect(url) as ledger:
        start = time.perf_counter()
        assert ledger.verify(jobs=jobs).ok
        return time.perf_counter() - start


def _verify_hashes(url: str, jobs: int) -> float:
    """The steps of a verification that look at hashes: of every event, with its numbers, and of every transaction."""
    with Ledger.connect(url) as ledger, ledger._database.connection() as connection:  # noqa: SLF001  (a step of its own)
        ledger_id = str(ledger.ledger_id)
        start = time.perf_counter()
        with connection.transaction(read_only=True, unbounded=True):
            connection.query("SET LOCAL enable_seqscan = on")
            steps = [
                step for step in verify.steps(connection, (), jobs, "") if step.name in ("streams", "transactions")
            ]
            stand = verify.Stand(steps, None)
            with closing(verify.performed(connection, ledger_id, (), steps, jobs, stand)) as outcomes:
                assert all(outcome.report.ok for outcome in outcomes)
        return time.perf_counter() - start


_TURNS: Final[dict[str, Callable[[str], float]]] = {
    SCAN: scan,
    AGGREGATE: aggregate,
    REBUILD: lambda url: _rebuild(url, 1),
    REBUILD_2: lambda url: _rebuild(url, 2),
    COPY: copy_out,
    HASHES: lambda url: _verify_hashes(url, 1),
    HASHES_2: lambda url: _verify_hashes(url, 2),
    VERIFY_2: lambda url: _verify(url, 2),
}


class Log:
    """
    A long log, made quickly: decided and hashed by the core, and brought in by COPY past the write path.

    From one moment to the next it goes on by a `step`.  `busy` is the share of transfers that one account takes part
    in, and `lateness` says how long before it is recorded each transfer is effective.
    """

    def __init__(
        self,
        ledger: Ledger,
        accounts: int,
        *,
        step: timedelta = timedelta(milliseconds=10),
        busy: float = 0.0,
        lateness: Callable[[random.Random], timedelta] = lambda _: timedelta(0),
    ) -> None:
        self._ledger = ledger
        self._step, self._busy, self._lateness = step, busy, lateness
        self._names = [f"account-{number:06}" for number in range(accounts)]
        self._chance = random.Random(1)
        self._now = EPOCH
        for at in range(0, accounts, _OPENED_TOGETHER):
            ledger.handle(
                [
                    OpenAccount(account=name, asset="USD", account_type="liability")
                    for name in self._names[at : at + _OPENED_TOGETHER]
                ]
            )

    def write(self, url: str, events: int, progress: Callable[[int], None]) -> None:
        """
        Let transfers between random accounts follow, up to `events` events in all; the database's guards look on.

        `progress` is told how many there are.  The projections are rebuilt at the end.
        """
        made = len(self._names) + 1
        with psycopg.connect(url, options=f"-c search_path={self._ledger.schema} -c enable_seqscan=off") as connection:
            book = self._book(connection)
            while made < events:
                transfers = min(_COPIED_TOGETHER * _TOGETHER, -(-(events - made) // 2))
                _copy(connection, list(self._transfers(book, transfers)))
                connection.commit()
                made += 2 * transfers
                progress(made)
        self._ledger.rebuild()

    def _book(self, connection: psycopg.Connection) -> Book:
        book = Book(str(self._ledger.ledger_id))
        sql, parameters = projector.touch(self._names)
        cursor = connection.cursor(binary=True)
        assert not projector.load(book, cursor.execute(sql.replace("{schema}.", "").encode(), parameters).fetchall())
        self._now = max(stream.recorded_at for stream in book.streams.values())
        return book

    def _transfers(self, book: Book, transfers: int) -> Iterator[tuple[Transaction, list[Recorded]]]:
        for number in range(transfers):
            if number % _TOGETHER == 0:
                self._now += self._step
            debit, credit = self._chance.sample(self._names, 2)
            if self._busy and self._chance.random() < self._busy and credit != self._names[0]:
                debit = self._names[0]
            amount = self._chance.randint(1, 10**6)
            yield self._transfer(book, debit, credit, amount)

    def _transfer(self, book: Book, debit: str, credit: str, amount: int) -> tuple[Transaction, list[Recorded]]:
        transaction_id = str(UUID(int=self._chance.getrandbits(128), version=4))
        request = f'{{"amount":"{amount / 100:.2f} USD","credit":"{credit}","debit":"{debit}"}}'
        events: list[Event] = [
            EntryPosted(debit, Direction.DEBIT, "USD", amount, 0),
            EntryPosted(credit, Direction.CREDIT, "USD", amount, 1),
        ]
        # Later than everything in their streams, as the write path has it.
        last = max(book.stream(debit).recorded_at, book.stream(credit).recorded_at)
        recorded_at = max(self._now, last + timedelta(microseconds=1))
        places = chain.place(events, book)
        versions = tuple(version for _, version, _ in places)
        transaction = chain.sealed(
            transaction_id, "transfer", "", transaction_id, request, 2, (debit, credit), versions, None,
            recorded_at - self._lateness(self._chance), recorded_at, None, None, None, None,
        )  # fmt: skip
        return transaction, chain.link(transaction, events, places, book.ledger_id)


def _copy(connection: psycopg.Connection, made: Sequence[tuple[Transaction, list[Recorded]]]) -> None:
    cursor = connection.cursor()
    with cursor.copy("COPY transactions FROM STDIN") as copy:
        copy.write("".join([_transaction_line(transaction) for transaction, _ in made]))
    events = sorted(event for _, events in made for event in events)
    with cursor.copy("COPY events FROM STDIN") as copy:
        copy.write("".join([_event_line(event) for event in events]))
    transactions = [transaction for transaction, _ in made]
    together = [transactions[at : at + _TOGETHER] for at in range(0, len(transactions), _TOGETHER)]
    with cursor.copy("COPY outbox FROM STDIN") as copy:
        copy.write("".join(map(_outbox_line, together)))


def _transaction_line(transaction: Transaction) -> str:
    places = ",".join(
        f'"{place[0]} {place[1]}"' for place in zip(transaction.streams, transaction.versions, strict=True)
    )
    effective, recorded = utc_text(transaction.effective_at), utc_text(transaction.recorded_at)
    return (
        f"{transaction.transaction_id}\t{transaction.kind}\t\t{transaction.idempotency_key}\t{transaction.request}\t"
        f"{transaction.entry_count}\t{{{places}}}\t\\N\t{effective}\t{recorded}\t\\N\t\\N\t\\N\t\\N\t"
        f"\\\\x{transaction.header_hash.hex()}\n"
    )


def _outbox_line(together: Sequence[Transaction]) -> str:
    ids = ",".join(transaction.transaction_id for transaction in together)
    earliest = utc_text(min(transaction.recorded_at for transaction in together))
    return f"{together[0].transaction_id}\t{{{ids}}}\t{earliest}\n"


def _event_line(event: Recorded) -> str:
    numbers = "\t".join(map(str, event.numbers or ()))
    effective, recorded = utc_text(event.effective_at), utc_text(event.recorded_at)
    return (
        f"{event.stream}\t{event.version}\t{event.transaction_id}\t{event.type}\t{event.payload}\t{event.schema}\t"
        f"{event.asset}\t{event.direction}\t{event.amount}\t{numbers}\t{effective}\t{recorded}\t"
        f"\\\\x{event.prev_hash.hex()}\t\\\\x{event.event_hash.hex()}\n"
    )
