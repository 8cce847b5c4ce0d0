"""PyPI's eventsourcing with its PostgreSQL recorder, used as its documentation uses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import IntegrityError
from sqlalchemy import make_url

from benchmarks.ours import BATCH, Place, pair
from benchmarks.processes import Ready, Tally, driven

_GROWN: Final = 1_000_000_000
"""From this number on: accounts that are grown to a size."""


class Account(Aggregate):
    """An ordinary aggregate."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.balance = Decimal(0)

    @staticmethod
    def create_id(number: int) -> UUID:
        """Its id, from its number."""
        return uuid5(NAMESPACE_URL, f"account/{number}")

    @event("Moved")
    def move(self, amount: Decimal) -> None:
        """Change the balance."""
        self.balance += amount


def opened(url: str, accounts: int) -> None:
    """Create its tables, and accounts in them."""
    with _application(url, 1) as application:
        for start in range(0, accounts, BATCH):
            application.save(*(Account(number) for number in range(start, min(start + BATCH, accounts))))


def grown(url: str, size: int) -> None:
    """An account with so many events."""
    with _application(url, 1) as application:
        account = Account(_GROWN + size)
        for number in range(1, size):
            account.move(Decimal("1.00"))
            if number % BATCH == 0:
                application.save(account)
        application.save(account)


def calls(ready: Ready, url: str, place: Place, accounts: int, callers: int, seconds: float) -> Tally:
    """Load, decide, save: one transfer at a time, tried again where another caller was faster."""
    with _application(url, callers) as application:

        def work() -> int:
            source, target = map(Account.create_id, pair(place, accounts))
            while True:
                debited, credited = application.repository.get(source), application.repository.get(target)
                debited.move(Decimal("-1.00"))
                credited.move(Decimal("1.00"))
                try:
                    application.save(debited, credited)
                except IntegrityError:
                    continue
                return 1

        return driven(ready, callers, seconds, work)


def batches(ready: Ready, url: str, accounts: int, seconds: float) -> Tally:
    """A thousand transfers that are saved together; each aggregate is loaded once.  Its events are counted."""
    with _application(url, 1) as application:

        def work() -> int:
            pairs = [pair(Place.SPREAD, accounts) for _ in range(BATCH)]
            loaded: dict[int, Any] = {
                number: application.repository.get(Account.create_id(number)) for number in {*sum(pairs, ())}
            }
            for source, target in pairs:
                loaded[source].move(Decimal("-1.00"))
                loaded[target].move(Decimal("1.00"))
            application.save(*loaded.values())
            return 2 * BATCH

        return driven(ready, 1, seconds, work)


def replays(ready: Ready, url: str, size: int, seconds: float) -> Tally:
    """Load an account that has been grown, again and again; its events are counted."""
    with _application(url, 1) as application:

        def work() -> int:
            assert application.repository.get(Account.create_id(_GROWN + size)).version == size
            return size

        return driven(ready, 1, seconds, work)


@contextmanager
def _application(url: str, callers: int) -> Iterator[Any]:
    address = make_url(url)
    application: Any = Application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(address.database),
            "POSTGRES_HOST": str(address.query.get("host") or address.host or "localhost"),
            "POSTGRES_PORT": str(address.port or 5432),
            "POSTGRES_USER": str(address.username or "postgres"),
            "POSTGRES_PASSWORD": str(address.password or "-"),
            "POSTGRES_POOL_SIZE": str(callers),
        }
    )
    try:
        yield application
    finally:
        application.close()
