"""
A log as a bookkeeping program reads it: assets, accounts, and transactions whole, in the feed's order, each on its day.

The day is that of `recorded_at`, in UTC; where the feed has come to a later day already, since a transaction that
took long was stamped behind one of the next day, it is that one.  Days therefore never go back, and what an account
came to after an entry is what a program that sorts by day finds there.  `effective_at` goes with it as a second date.

What an account comes to is what the ledger recorded after that event, and not a sum made here: whoever adds up the
entries has an answer of its own to compare.

Memory grows with the accounts and their stripes, and not with the events.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from ledger.audit.names import account_name, commodity_name
from ledger.audit.replay import OF_HOLDS, POSTS
from ledger.core.codec import ACCOUNT_OPENED, ASSET_DEFINED, event_from
from ledger.core.commands import AccountType, Direction
from ledger.core.errors import CorruptLog
from ledger.core.events import AccountOpened, AssetDefined, FeedEntry, Recorded, Transaction, account_of
from ledger.core.money import Money


@dataclass(slots=True)
class Account:
    """An account, and what is posted to it so far: debits less credits, in minor units."""

    account: str
    kind: AccountType
    asset: str
    scale: int
    net: int = 0

    @property
    def name(self) -> str:
        """What bookkeeping programs call it."""
        return account_name(self.account, self.kind)

    @property
    def commodity(self) -> str:
        """What they call its asset."""
        return commodity_name(self.asset)

    def units(self, minor: int) -> str:
        """An amount in whole units, with all decimals of the asset: "-12.50"."""
        return str(Money(minor, self.asset, self.scale)).partition(" ")[0]


class Defined(NamedTuple):
    """An asset is known from this day on."""

    day: date
    asset: str
    scale: int

    @property
    def commodity(self) -> str:
        """What bookkeeping programs call it."""
        return commodity_name(self.asset)


class Opened(NamedTuple):
    """An account is known from this day on."""

    day: date
    account: Account
    position: int


class Line(NamedTuple):
    """An event that moves an amount, with its position, and what its account comes to after it."""

    position: int
    event: Recorded
    account: Account
    net: int

    @property
    def posts(self) -> bool:
        """Whether it is posted; else it is about a hold, and only pending."""
        return self.event.type in POSTS

    @property
    def amount(self) -> int:
        """In minor units; of a debit it is positive, of a credit negative."""
        assert self.event.amount is not None
        return self.event.amount if self.event.direction == Direction.DEBIT else -self.event.amount

    @property
    def hold(self) -> str | None:
        """The hold that it is of, if it is of one."""
        if self.event.type not in OF_HOLDS:
            return None
        return _transaction_id(self.event, json.loads(self.event.payload), "hold")


class Booked(NamedTuple):
    """A transaction that moves amounts, with its entries in the feed's order."""

    day: date
    transaction: Transaction
    lines: list[Line]

    @property
    def texts(self) -> dict[str, str | None]:
        """What users say of it, by `TEXTS`; no metadata is none, whichever way it was written."""
        said = {name: getattr(self.transaction, name) for name in TEXTS}
        return {
            name: None if text in ("", "{}") and name in ("scope", "metadata") else text for name, text in said.items()
        }

    @property
    def reverses(self) -> str | None:
        """The transaction that it reverses, if it does."""
        if self.transaction.kind != "reverse":
            return None
        return _transaction_id(self.lines[0].event, json.loads(self.transaction.request), "transaction_id")


TEXTS: Final = ("scope", "idempotency_key", "reference", "actor", "correlation_id", "causation_id", "metadata")
"""What users say of a transaction: texts of any kind."""


def _transaction_id(event: Recorded, said: object, name: str) -> str:
    """The id of a transaction, as a field of what was recorded says it; nothing else gets into other people's files."""
    try:
        return str(UUID(said[name]))  # type: ignore[index]  # whatever it is, it is caught
    except (TypeError, KeyError, ValueError, AttributeError):
        problem = f"{name} is not the id of a transaction"
        raise CorruptLog(event.stream, event.version, problem) from None


Step: TypeAlias = Defined | Opened | Booked

Progress = Callable[[int], None]

_PROGRESS_EVENTS: Final = 1_000
_FIRST_DAY: Final = date(1, 1, 1)


class Journal:
    """The steps of a log, from the beginning of the feed to a position at which a transaction ends."""

    def __init__(
        self, ledger_id: str, position: int, entries: Iterable[FeedEntry], *, progress: Progress | None = None
    ) -> None:
        """`progress` is called with the number of events that were read."""
        self.ledger_id = ledger_id
        self.position = position
        self.day = _FIRST_DAY
        self.accounts: dict[str, Account] = {}
        self.transactions = 0
        self.entries = 0
        self._feed = entries
        self._progress = progress
        self._assets: dict[str, int] = {}
        self._nets: dict[str, int] = {}

    def steps(self) -> Iterator[Step]:
        """
        What happened, in order; afterwards `accounts` are as they stand, and `day` is the last one.

        Raises:
            CorruptLog: An entry is posted to an account that is not open, or is not what any release has written.
        """
        reported = 0
        for _, events in groupby(self._feed, lambda entry: entry.transaction.transaction_id):
            lines: list[Line] = []
            for entry in events:
                self.day = max(self.day, entry.event.recorded_at.date())
                yield from self._known(entry)
                if entry.event.amount is not None:
                    lines.append(self._line(entry))
            if lines:
                self.entries += len(lines)
                self.transactions += 1
                yield Booked(self.day, entry.transaction, lines)
            if self._progress is not None and entry.position >= reported + _PROGRESS_EVENTS:
                reported = entry.position
                self._progress(reported)

    def _known(self, entry: FeedEntry) -> Iterator[Step]:
        """What is new with an event: an asset, or an account; a further stripe of one is not."""
        recorded = entry.event
        if recorded.type not in (ACCOUNT_OPENED, ASSET_DEFINED):
            return
        event = event_from(recorded)
        if isinstance(event, AssetDefined | AccountOpened) and event.asset not in self._assets:
            self._assets[event.asset] = event.scale
            yield Defined(self.day, event.asset, event.scale)
        if isinstance(event, AccountOpened) and event.account not in self.accounts:
            if event.account != account_of(event.account):
                return
            opened = Account(event.account, event.account_type, event.asset, event.scale)
            self.accounts[event.account] = opened
            yield Opened(self.day, opened, entry.position)

    def _line(self, entry: FeedEntry) -> Line:
        event = entry.event
        account = self.accounts.get(account_of(event.stream))
        if account is None or event.numbers is None:
            raise CorruptLog(event.stream, event.version, "it moves an amount of an account that was not opened before")
        net = event.numbers.posted_debits - event.numbers.posted_credits
        account.net += net - self._nets.get(event.stream, 0)
        self._nets[event.stream] = net
        return Line(entry.position, event, account, account.net)
