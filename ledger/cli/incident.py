"""
The incident, staged on a real database: what `ledger demo` tells, measured.

Nothing here prints.  Every value in the results was read back from the database or from an answer of the
ledger, and each run has accounts of its own, so that it can be run any number of times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any, Final

import psycopg
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ledger.application import Ledger
from ledger.audit.report import Report
from ledger.batch import Done
from ledger.core.book import Balance
from ledger.core.commands import Deposit, Withdraw, build
from ledger.core.errors import Rejected, VersionConflict
from ledger.core.money import Money
from ledger.storage.explained import in_our_words

DAY: Final = datetime(2022, 1, 1, tzinfo=UTC)
"""When the incident takes place; messages count milliseconds from here."""

TAMPERED: Final = Money.parse("5000.00 USD")
"""What somebody adds to the projection with plain SQL."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a producer sent: at which moment, and which version of the account it had in mind."""

    name: str
    kind: type[Deposit | Withdraw]
    amount: Money
    at_ms: int
    expects: int

    @property
    def does(self) -> str:
        """In words: "deposit 1000.00 USD"."""
        return f"{'deposit' if self.kind is Deposit else 'withdraw'} {self.amount}"


A: Final = Message("A", Deposit, Money.parse("1000.00 USD"), at_ms=0, expects=1)
B: Final = Message("B", Withdraw, Money.parse("800.00 USD"), at_ms=50, expects=2)
SENT: Final = (A, B)
ARRIVED: Final = (B, A)
DELIVERED: Final = ARRIVED * 2
"""What the ledger gets: swapped, and all of it twice, as a broker does that delivers at least once."""

REPLAYED: Final = "answered as before"
RIGHT: Final = A.amount - B.amount


@dataclass(frozen=True, slots=True)
class Step:
    """One message handed to a consumer: its answer, and the balance after it."""

    message: Message
    answer: str
    balance: Money
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Repair:
    """What plain SQL made of the projection, and the report of the write that noticed."""

    version: int
    before: Money
    claimed: Money
    after: Balance
    reported: Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A statement that somebody tried on the log, and what the database said; None if it let it pass."""

    statement: str
    said: str | None
    sqlstate: str | None


@dataclass(slots=True)
class Incident:
    """One staging on one ledger, in accounts of its own."""

    ledger: Ledger
    run: str = field(default_factory=lambda: token_hex(3))

    @property
    def alice(self) -> str:
        """The customer's account."""
        return f"alice-{self.run}"

    @property
    def world(self) -> str:
        """Where money comes from and goes to."""
        return f"world-{self.run}"

    def naive(self, arrivals: Sequence[Message]) -> list[Step]:
        """
        Feed an ordinary consumer: one row with a balance, changed by one guarded UPDATE per message.

        The row lives in a plain table of the same database, which is dropped afterwards.
        """
        table = self._table(f"naive_{self.run}")
        steps = []
        with self._begin() as connection:
            connection.execute(text(f"CREATE TABLE {table} (account text PRIMARY KEY, balance numeric NOT NULL)"))
            connection.execute(text(f"INSERT INTO {table} VALUES ('alice', 0)"))
        for message in arrivals:
            with self._begin() as connection:
                done = connection.execute(
                    text(
                        f"UPDATE {table} SET balance = balance + :change"
                        " WHERE account = 'alice' AND balance >= -:change"
                    ),
                    {"change": message.amount.decimal if message.kind is Deposit else -message.amount.decimal},
                )
                balance = connection.execute(text(f"SELECT balance FROM {table}")).scalar_one()
                answer = "done" if done.rowcount else "refused: insufficient funds"
                steps.append(Step(message, answer, Money.of(balance, "USD")))
        with self._begin() as connection:
            connection.execute(text(f"DROP TABLE {table}"))
        return steps

    def open(self) -> None:
        """Open the two accounts."""
        self.ledger.open_account(self.world, asset="USD", type="equity")
        self.ledger.open_account(self.alice, asset="USD", type="liability", min_balance=0)

    def consume(self, deliveries: Sequence[Message]) -> list[Step]:
        """
        Feed the ledger: a message that is ahead of its account is held back until the one before it is in.

        What tells is the version that the message expects; what makes a second delivery harmless is its key.
        """
        steps: list[Step] = []
        held: list[Message] = []
        for delivered in deliveries:
            due = [delivered]
            while due:
                message = due.pop(0)
                outcome = self._handle(message)
                steps.append(self._step(message, outcome))
                if isinstance(outcome, VersionConflict) and outcome.actual < outcome.expected:
                    held.append(message)
                elif isinstance(outcome, Done) and not outcome.replayed:
                    due, held = [*due, *held], []
        return steps

    def tamper(self) -> Repair:
        """Change an amount in the projection with plain SQL, its version untouched; then write again."""
        before = self.ledger.balance(self.alice)
        balances = self._table("balances")
        change = {"minor": TAMPERED.minor, "alice": self.alice}
        with self._begin() as connection:
            claimed = connection.execute(
                text(
                    f"UPDATE {balances} SET posted_credits = posted_credits + :minor WHERE stream = :alice"
                    " RETURNING version, (posted_credits - posted_debits)::text"
                ),
                change,
            ).one()
        done = self.ledger.deposit(self.alice, "1.00 USD", against=self.world)
        with self._begin() as connection:
            reported = connection.execute(
                text(
                    "SELECT noticed_by, found_version, expected_version, found ->> 'posted_credits' AS found,"
                    f" expected ->> 'posted_credits' AS expected FROM {self._table('projection_repairs')}"
                    " WHERE stream = :alice ORDER BY repaired_at"
                ),
                {"alice": self.alice},
            ).mappings()
            rows = [_in_money(dict(row)) for row in reported]
        return Repair(claimed[0], before.posted, _usd(claimed[1]), done.balances[self.alice], rows)

    def edit_events(self) -> list[Refusal]:
        """Try to change and to delete an event with plain SQL; were it possible, it would be rolled back."""
        events = self._table("events")
        return [
            self._attempt(f"UPDATE {events} SET amount = 1 WHERE stream = '{self.alice}'"),
            self._attempt(f"DELETE FROM {events} WHERE stream = '{self.alice}'"),
        ]

    def server(self) -> str:
        """The PostgreSQL that all of this took place on."""
        with self._connect() as connection:
            return f"PostgreSQL {connection.execute(text('SHOW server_version')).scalar_one().split()[0]}"

    def verify(self) -> Report:
        """Re-derive this run's accounts, with all of their transactions, and compare."""
        return self.ledger.verify(self.alice, self.world)

    def _handle(self, message: Message) -> Done | Rejected:
        command = build(
            message.kind,
            account=self.alice,
            amount=message.amount,
            against=self.world,
            effective_at=DAY + timedelta(milliseconds=message.at_ms),
            idempotency_key=f"{self.run}-{message.name}",
            expected_versions={self.alice: message.expects},
        )
        (outcome,) = self.ledger.handle([command])
        return outcome

    def _step(self, message: Message, outcome: Done | Rejected) -> Step:
        now = self.ledger.balance(self.alice)
        if isinstance(outcome, Done):
            answer = REPLAYED if outcome.replayed else "done"
        elif isinstance(outcome, VersionConflict):
            answer = f"held back: expects version {outcome.expected}"
        else:
            answer = f"rejected: {outcome}"
        return Step(message, answer, now.available, now.version)

    def _attempt(self, statement: str) -> Refusal:
        with self._connect() as connection:
            try:
                connection.execute(text(statement))
            except DBAPIError as error:
                if not isinstance(error.orig, psycopg.Error):
                    raise
                return Refusal(statement, error.orig.diag.message_primary, error.orig.sqlstate)
            connection.rollback()
        return Refusal(statement, None, None)

    def _table(self, name: str) -> str:
        quote = self.ledger.engine.dialect.identifier_preparer.quote
        return f"{quote(self.ledger.schema)}.{quote(name)}"

    @contextmanager
    def _connect(self) -> Iterator[sqlalchemy.Connection]:
        with in_our_words(), self.ledger.engine.connect() as connection:
            yield connection

    @contextmanager
    def _begin(self) -> Iterator[sqlalchemy.Connection]:
        with self._connect() as connection, connection.begin():
            yield connection


def _in_money(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: str(_usd(row[name])) for name in ("found", "expected")}


def _usd(minor: str) -> Money:
    return Money(int(minor), "USD", RIGHT.scale)
