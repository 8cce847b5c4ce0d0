"""The ledger, as an application calls it: what is measured in processes of their own."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from benchmarks.processes import Ready, Tally, driven
from ledger import Done, Ledger, OpenAccount, Post, Transfer, credit, debit
from ledger.core.commands import ENTRIES_MAX

ACCOUNTS: Final = 10_000
ACCOUNTS_QUICK: Final = 1_000
BATCH: Final = 1_000

_APPENDS_MAX: Final = 1_000
"""Of one run to one account, so that one with a thousand events stays one of its size."""


class Place(StrEnum):
    """Between which accounts transfers go."""

    SPREAD = "spread"
    HOT = "two hot accounts"
    ONE = "one hot account"


def opened(url: str, accounts: int) -> None:
    """Migrate a database, and open accounts in it."""
    with Ledger.connect(url) as ledger:
        ledger.migrate()
        for start in range(0, accounts, BATCH):
            numbers = range(start, min(start + BATCH, accounts))
            ledger.handle(
                [OpenAccount(account=account(number), asset="USD", account_type="liability") for number in numbers]
            )


def checked(url: str) -> None:
    """Check that what was measured was also done right."""
    with Ledger.connect(url) as ledger:
        assert ledger.trial_balance().balanced


def account(number: int) -> str:
    """The name of an account."""
    return f"account-{number:05}"


def pair(place: Place, accounts: int, first: int = 0) -> tuple[int, int]:
    """Two different accounts out of so many, drawn as everybody who is measured draws them."""
    if place is Place.HOT:
        accounts = 2
    source = first + (0 if place is Place.ONE else random.randrange(accounts))
    target = first + (source - first + random.randrange(1, accounts)) % accounts
    return (target, source) if place is Place.ONE and random.random() < 0.5 else (source, target)


def transfer(source: int, target: int) -> Transfer:
    """A transfer with an idempotency key, as an application makes one."""
    key = os.urandom(12).hex()
    return Transfer(amount="1.00 USD", debit=account(source), credit=account(target), idempotency_key=key)


def calls(ready: Ready, url: str, place: Place, accounts: int, callers: int, seconds: float) -> Tally:
    """One transfer a call, each in a transaction of its own."""
    with Ledger.connect(url, pool_size=callers) as ledger:

        def work() -> int:
            (done,) = ledger.handle([transfer(*pair(place, accounts))])
            assert isinstance(done, Done)
            return 1

        return driven(ready, callers, seconds, work)


def batched_calls(ready: Ready, url: str, place: Place, accounts: int, callers: int, seconds: float) -> Tally:
    """One transfer a call, which waits for its answer; what is waiting shares a transaction."""
    with Ledger.connect(url) as ledger, ledger.batcher() as batcher:

        def work() -> int:
            batcher.submit(transfer(*pair(place, accounts))).result()
            return 1

        return driven(ready, callers, seconds, work)


def batches(ready: Ready, url: str, first: int, accounts: int, size: int, seconds: float) -> Tally:
    """So many transfers a call, between accounts of one's own; making the commands counts."""
    with Ledger.connect(url) as ledger:
        return driven(ready, 1, seconds, lambda: len(handled(ledger, first, accounts, size)))


def handled(ledger: Ledger, first: int, accounts: int, size: int) -> list[Done]:
    """Handle a batch of transfers, none of which is rejected."""
    outcomes = ledger.handle([transfer(*pair(Place.SPREAD, accounts, first)) for _ in range(size)])
    done = [outcome for outcome in outcomes if isinstance(outcome, Done)]
    assert len(done) == size
    return done


def grown(url: str, name: str, size: int) -> None:
    """An account with so many events, and one that has only its opening, to transfer from and to."""
    with Ledger.connect(url) as ledger:
        for each in (name, other(name)):
            ledger.open_account(each, asset="USD", type="liability")
        left = size - 1
        while left > 1:
            pairs = min(left, ENTRIES_MAX) // 2
            both = (debit(name, "1 USD"), credit(name, "1 USD"))
            (done,) = ledger.handle([Post(entries=both * pairs)])
            assert isinstance(done, Done)
            left -= 2 * pairs


def other(name: str) -> str:
    """Who a grown account's transfers go to."""
    return f"{name}-other"


def appends(ready: Ready, url: str, name: str, seconds: float) -> Tally:
    """Append to an account, one transfer a call."""
    with Ledger.connect(url) as ledger:
        left = iter(range(_APPENDS_MAX))

        def work() -> int:
            ledger.transfer("1 USD", debit=name, credit=other(name), idempotency_key=os.urandom(12).hex())
            return 1

        return driven(ready, 1, seconds, work, lambda: next(left, None) is not None)


def balances(ready: Ready, url: str, name: str, seconds: float) -> Tally:
    """Read the balance of an account as it is now."""
    with Ledger.connect(url) as ledger:
        return driven(ready, 1, seconds, _one(lambda: ledger.balance(name)))


def earlier_balances(ready: Ready, url: str, name: str, size: int, seconds: float) -> Tally:
    """Read the balance of an account as it was after any of its versions."""
    with Ledger.connect(url) as ledger:
        return driven(ready, 1, seconds, _one(lambda: ledger.balance(name, version=random.randint(1, size))))


def dated_balances(ready: Ready, url: str, name: str, size: int, seconds: float) -> Tally:
    """Read the balance of an account as of any moment of its life."""
    with Ledger.connect(url) as ledger:
        (first,), (last,) = ledger.history(name, limit=1), ledger.history(name, before_version=size + 1, limit=1)
        life = last.recorded_at - first.recorded_at

        def question() -> object:
            return ledger.balance(name, effective_as_of=first.recorded_at + random.random() * life)

        return driven(ready, 1, seconds, _one(question))


def rebuilds(ready: Ready, url: str, name: str, size: int, seconds: float) -> Tally:
    """Make an account anew from its log, again and again; its events are counted."""
    with Ledger.connect(url) as ledger:

        def work() -> int:
            assert ledger.rebuild(name) == []
            return size

        return driven(ready, 1, seconds, work)


def _one(question: Callable[[], object]) -> Callable[[], int]:
    def work() -> int:
        question()
        return 1

    return work
