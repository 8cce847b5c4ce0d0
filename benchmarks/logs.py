"""
Large logs: `python -m benchmarks logs [--events 5000000] [--accounts 47000] [--quick]`.

How long it takes to rebuild and to verify a long log, beside what reading it takes at the least: a sequential scan, the
bare aggregate that the balances are, and its rows copied out and hashed by one process.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

import psycopg

from ledger import Ledger, OpenAccount
from ledger.core import chain
from ledger.core.book import EPOCH, Book
from ledger.core.canonical import utc_text
from ledger.core.commands import Direction
from ledger.core.events import EntryPosted, Event, Recorded, Transaction
from ledger.storage import projector

_TOGETHER: Final = 1_000
"""Transfers of one moment, as those of a batch are."""

_COPIED_TOGETHER: Final = 10
_OPENED_TOGETHER: Final = 5_000


class Log:
    """A long log, made quickly: decided and hashed by the core, and brought in by COPY past the write path."""

    def __init__(self, ledger: Ledger, accounts: int) -> None:
        self._ledger = ledger
        self._names = [f"account-{number:06}" for number in range(accounts)]
        self._chance = random.Random(1)  # noqa: S311  (the same log each time)
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
                self._now += timedelta(milliseconds=10)
            debit, credit = self._chance.sample(self._names, 2)
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
            recorded_at, recorded_at, None, None, None, None,
        )  # fmt: skip
        return transaction, chain.link(transaction, events, places, book.ledger_id)


def _copy(connection: psycopg.Connection, made: Sequence[tuple[Transaction, list[Recorded]]]) -> None:
    cursor = connection.cursor()
    with cursor.copy("COPY transactions FROM STDIN") as copy:
        copy.write("".join([_transaction_line(transaction) for transaction, _ in made]))
    events = sorted(event for _, events in made for event in events)
    with cursor.copy("COPY events FROM STDIN") as copy:
        copy.write("".join([_event_line(event) for event in events]))


def _transaction_line(transaction: Transaction) -> str:
    places = ",".join(
        f'"{place[0]} {place[1]}"' for place in zip(transaction.streams, transaction.versions, strict=True)
    )
    recorded = utc_text(transaction.recorded_at)
    return (
        f"{transaction.transaction_id}\t{transaction.kind}\t\t{transaction.idempotency_key}\t{transaction.request}\t"
        f"{transaction.entry_count}\t{{{places}}}\t\\N\t{recorded}\t{recorded}\t\\N\t\\N\t\\N\t\\N\t"
        f"\\\\x{transaction.header_hash.hex()}\n"
    )


def _event_line(event: Recorded) -> str:
    numbers = "\t".join(map(str, event.numbers or ()))
    recorded = utc_text(event.recorded_at)
    return (
        f"{event.stream}\t{event.version}\t{event.transaction_id}\t{event.type}\t{event.payload}\t{event.schema}\t"
        f"{event.asset}\t{event.direction}\t{event.amount}\t{numbers}\t{recorded}\t{recorded}\t"
        f"\\\\x{event.prev_hash.hex()}\t\\\\x{event.event_hash.hex()}\n"
    )
