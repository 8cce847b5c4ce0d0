"""
A batch of commands on its way: what its transactions will be called, and all that it is decided on.

Whatever the commands need is read in one round trip, and never trusted to hold: it is checked when it is written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha1
from itertools import takewhile
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from ledger.core.book import Balance, Book, Terms, remember
from ledger.core.canonical import utc_text
from ledger.core.codec import event_from
from ledger.core.commands import (
    BATCH_MAX,
    ClosePeriod,
    Command,
    DefineAsset,
    ExpireHold,
    OpenAccount,
)
from ledger.core.errors import (
    IdempotencyConflict,
    InvalidCommand,
    Rejected,
)
from ledger.core.events import (
    LEDGER_STREAM,
    Recorded,
    Transaction,
    stripes_of,
)
from ledger.core.lifecycle import StateMachine
from ledger.storage import projector, repair, store
from ledger.storage.database import Connection, Row, Statement
from ledger.stripes import Draw


class Done(NamedTuple):
    """
    What a command did.  A replayed one was done earlier: this is the original answer.

    `versions` and `balances` say where each stream and account stood right after the transaction.  Of an account
    with stripes it says which of its streams that was, and no balance: nobody had looked at the others.
    """

    transaction: Transaction
    events: Sequence[Recorded]
    terms: Sequence[Terms | None]
    replayed: bool = False
    dry_run: bool = False

    @property
    def transaction_id(self) -> UUID:
        """The id that `transaction()` and `reverse()` take."""
        return UUID(self.transaction.transaction_id)

    @property
    def versions(self) -> dict[str, int]:
        """Stream → its version right after."""
        return dict(zip(self.transaction.streams, self.transaction.versions, strict=True))

    @property
    def balances(self) -> dict[str, Balance]:
        """Account → its balance right after."""
        return {
            event.stream: Balance.from_numbers(event.stream, terms, event.numbers, event.version)
            for event, terms in zip(self.events, self.terms, strict=True)
            if terms is not None and event.numbers is not None and terms.streams == 1
        }


Outcome: TypeAlias = Done | Rejected


class Drifted(Exception):
    """Projected rows that were not written by us."""

    def __init__(self, streams: Sequence[str]) -> None:
        super().__init__(streams)
        self.streams = streams


class Due(Exception):
    """Holds on accounts of the batch whose time is over: they expire first."""

    def __init__(self, holds: Sequence[str]) -> None:
        super().__init__(holds)
        self.holds = holds


class Overtaken(Exception):
    """Somebody else made what commands of the batch take up, after it was looked for: look again."""


class Spread(Exception):
    """An account has other streams than was thought; now it is known which: read again."""


@dataclass(slots=True)
class Batch:
    """Commands on their way, with the ids that their transactions have in every attempt."""

    machines: Mapping[str, StateMachine]
    draw: Draw
    atomic: bool = False
    dry_run: bool = False
    commands: list[Command] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    known_ids: list[str] = field(default_factory=list)
    accounts: set[str] = field(default_factory=set)
    """All accounts, and streams of the caller's own, that the commands name."""

    spans: dict[str, int] = field(default_factory=dict)
    """Account → how many streams it has, as far as that is known; of those that are needed in all of them."""

    taken_up: set[str] = field(default_factory=set)
    """The streams of the transactions that commands take up again."""

    assets: set[str] = field(default_factory=set)
    references: list[str] = field(default_factory=list)
    """The transactions that commands take up again: holds, and what is reversed."""

    originals: dict[str, tuple[Transaction, list[Recorded]]] = field(default_factory=dict)
    """Those of them that were found."""

    closing: datetime | None = None
    backdated: bool = False
    expiries: int = 0
    """How many commands were put in front of the caller's own, for holds whose time is over, in a dry run."""

    drifted: set[str] = field(default_factory=set)
    """Streams whose projections are mended, under the locks, before anything is decided on them."""

    lock_seconds: float | None = None
    """For how long it waits for a lock, if not for as long as others do."""

    in_doubt: bool = False
    """An earlier attempt may have committed before its connection broke: ids without a key are looked up too."""

    @property
    def locks(self) -> list[str]:
        """The streams that are locked, in the order of locking."""
        streams = self.draw.streams(self.accounts) | self.taken_up
        for account, count in self.spans.items():
            streams.update(stripes_of(account, count))
        return sorted(streams)

    @property
    def streams(self) -> list[str]:
        """All streams that may be written."""
        # The ledger's own is not locked: an account may need a currency defined, and hardly ever does.
        return sorted({*self.locks, LEDGER_STREAM}) if self.assets or self.closing else self.locks

    @property
    def plain(self) -> bool:
        """Whether it can be decided on what is read in one statement, before anything is locked."""
        alone = len(self.commands) == 1 and self.lock_seconds is None
        return alone and not (self.references or self.backdated or self.closing)

    def touched(self, command: Command) -> set[str]:
        """The streams that a command is about."""
        touched = self.draw.streams([*command.accounts])
        if command.refers_to in self.originals:
            touched.update(self.originals[command.refers_to][0].streams)
        if command.rules_on is not None:
            touched.update(stripes_of(command.rules_on, self.spans[command.rules_on]))
        return touched

    def add(self, command: Command, transaction_id: str, scope: str) -> None:
        """Take a command in."""
        self.commands.append(command)
        self.ids.append(transaction_id)
        self.scopes.append(scope)
        self.accounts.update(command.accounts)
        if command.idempotency_key is not None:
            self.known_ids.append(transaction_id)
        if command.effective_at is not None:
            self.backdated = True
        if command.refers_to is not None:
            self.references.append(command.refers_to)
        if command.rules_on is not None:
            self.spans.setdefault(command.rules_on, 1)
        if isinstance(command, DefineAsset | OpenAccount):
            self.assets.add(command.asset)
        elif isinstance(command, ClosePeriod):
            self.closing = command.until

    @property
    def expiring(self) -> list[str]:
        """The holds that its first commands expire: whatever comes after these finds them expired."""
        return [str(command.refers_to) for command in takewhile(_is_expiry, self.commands)]

    @property
    def sweeps(self) -> bool:
        """Whether it does nothing but expire holds, which no other hold has to be expired for."""
        return all(map(_is_expiry, self.commands))

    def sweep(self, holds: Sequence[str], ledger_id: str) -> Batch:
        """A batch that expires these holds, and locks all that this one locks as well, to keep the order of locking."""
        sweep = Batch(self.machines, self.draw, dry_run=self.dry_run)
        sweep.accounts |= self.accounts
        sweep.spans |= self.spans
        sweep.taken_up |= self.taken_up
        sweep.backdated = self.backdated
        return prepare(expiries_of(holds), "", ledger_id, sweep)

    def expiry(self, holds: Sequence[str], ledger_id: str, draw: Draw) -> Batch:
        """A batch that does nothing but expire these holds, and waits for locks as long as this one does."""
        return prepare(expiries_of(holds), "", ledger_id, Batch(self.machines, draw, lock_seconds=self.lock_seconds))

    def expire_first(self, holds: Sequence[str]) -> None:
        """Put the expiry of these holds in front."""
        commands, ids, scopes = self.commands, self.ids, self.scopes
        self.commands, self.ids, self.scopes = [], [], []
        for hold in holds:
            self.add(ExpireHold(hold=hold), _fresh_id(), "")
        self.commands += commands
        self.ids += ids
        self.scopes += scopes
        self.expiries += len(holds)


@dataclass(slots=True)
class Work:
    """A batch that has been read, and what becomes of it: the book moves on as its commands are decided."""

    book: Book
    now: datetime
    earlier: dict[str, Done]
    """By transaction id: what was done before this call, or by an earlier command of it."""

    loaded: dict[str, int]
    """The version of every stream that was read."""

    first: int = 0
    """The caller's first command."""

    outcomes: list[Outcome] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """The transactions that are being written, in order."""

    begun: set[str] = field(default_factory=set)
    """The streams that are being written from their first version on."""

    closed: bool = False
    """Whether the end of the transaction went out with the writes."""

    @property
    def rejected(self) -> int | None:
        """The first command that was rejected."""
        own = enumerate(self.outcomes[self.first :])
        return next((index for index, outcome in own if isinstance(outcome, Rejected)), None)

    def suspects(self, batch: Batch) -> set[str]:
        """
        Accounts whose projection has to be compared with the log before an answer is given.

        A row that is missing, or an old one that was put back, may be why a command was rejected; and one that
        was not found and is not written is not checked by any write.
        """
        suspects = {stream for stream in batch.locks if stream not in self.loaded}
        if not batch.dry_run:
            suspects -= self.begun
        for command, outcome in zip(batch.commands, self.outcomes, strict=True):
            if isinstance(outcome, Rejected) and not isinstance(outcome, IdempotencyConflict):
                suspects.update(batch.touched(command))
        return suspects


# The first row: what time it is, which commands were done before, and which holds are due.
_LOAD: Final = f"""
SELECT clock_timestamp() AT TIME ZONE 'UTC', ARRAY({store.KNOWN}), ARRAY({projector.DUE}),
       {", ".join(["NULL"] * projector.HEAD_COLUMNS_COUNT)}
UNION ALL
SELECT NULL, NULL, NULL, {projector.HEAD_COLUMNS} {projector.HEADS}
"""


def keyed_id(ledger_id: str, scope: str, key: str) -> str:
    """
    The id of the transaction that an idempotency key stands for.

    UUIDv5 with the ledger's id as its namespace (RFC 9562, section 5.5), so that the primary key of
    transactions is the idempotency check.
    """
    namespace = bytes.fromhex(ledger_id.replace("-", ""))
    digest = bytearray(sha1(namespace + f"{scope}\0{key}".encode(), usedforsecurity=False).digest()[:16])
    return _uuid_text(digest, version=5)


def expiries_of(holds: Iterable[str]) -> list[Command]:
    """The commands that expire these holds."""
    return [ExpireHold(hold=hold) for hold in holds]


def _is_expiry(command: Command) -> bool:
    return isinstance(command, ExpireHold)


def _fresh_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): ids made later sort later, which keeps their index compact."""
    milliseconds = time.time_ns() // 1_000_000
    return _uuid_text(bytearray(milliseconds.to_bytes(6, "big") + os.urandom(10)), version=7)


def _uuid_text(octets: bytearray, version: int) -> str:
    octets[6] = octets[6] & 0x0F | version << 4
    octets[8] = octets[8] & 0x3F | 0x80
    digits = octets.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def id_of(command: Command, scope: str, ledger_id: str) -> str:
    """The id that a command's transaction has, however often it is tried."""
    key = command.idempotency_key
    return _fresh_id() if key is None else keyed_id(ledger_id, scope, key)


def prepare(commands: Sequence[Command], scope: str, ledger_id: str, batch: Batch) -> Batch:
    """
    Take commands into a batch.

    Raises:
        InvalidCommand: There are too many.
    """
    if len(commands) > BATCH_MAX:
        raise InvalidCommand("commands", f"{len(commands)} at once; at most {BATCH_MAX} are taken")
    for command in commands:
        batch.add(command, id_of(command, scope, ledger_id), scope)
    return batch


def take_up(connection: Connection, batch: Batch) -> None:
    """
    Find the transactions that commands refer to, and with them the accounts that they are about.

    Transactions never change, so that this needs no lock.  One that is not found may come to be in this batch.
    """
    missing = [reference for reference in batch.references if reference not in batch.originals]
    if not missing:
        return
    found = store.recorded_transactions(connection, missing)
    for transaction, events in zip(found, store.events_of(connection, found), strict=True):
        batch.originals[transaction.transaction_id] = (transaction, events)
        batch.taken_up.update([stream for stream in transaction.streams if stream != LEDGER_STREAM])


def load(connection: Connection, batch: Batch, opening: list[Statement], ledger_id: str) -> Work:
    """
    Read everything that the batch may be decided on, in one round trip, after `opening`.

    Raises:
        Drifted, Due, Overtaken, Spread: Something has to be done before, and then all to be read again.
    """
    known_ids = batch.ids if batch.in_doubt else batch.known_ids
    locks, expiring = store.text_array(batch.locks), store.plain_array(batch.expiring)
    heads = (_LOAD, (store.plain_array(known_ids), locks, expiring, store.text_array(batch.streams)))
    book = Book(ledger_id, machines=batch.machines, chosen=batch.draw.chosen)
    for name, (transaction, events) in batch.originals.items():
        remember(book, name, transaction.kind, map(event_from, events), None)
    further = list(_further(batch))
    rows, *others = connection.send([*opening, heads, *(statement for statement, _ in further)])[len(opening) :]
    now, known, due = rows[0][:3]
    drifted = projector.load(book, [row[3:] for row in rows[1:]])
    for (_, take), found in zip(further, others, strict=True):
        drifted += take(book, found)
    drifted += _holds_missing(batch, book)
    if drifted := drifted or _stripes_missing(connection, batch, book):
        raise Drifted(drifted)
    _check_spread(batch, book)
    if due and not batch.sweeps:
        raise Due(due)
    earlier = _recalled(connection, known) if known else {}
    if any(reference in earlier and reference not in batch.originals for reference in batch.references):
        raise Overtaken
    loaded = {name: stream.version for name, stream in book.streams.items()}
    return Work(book, store.in_utc(now), earlier, loaded, batch.expiries)


Take: TypeAlias = Callable[[Book, list[Row]], list[str]]
"""Puts rows into the book; returns the streams of those that were not written by us."""


def _further(batch: Batch) -> Iterator[tuple[Statement, Take]]:
    """What some commands need beside the heads of their streams; read after these, to be at least as new."""
    if batch.assets:
        yield (store.SELECT_SCALES, (store.text_array(sorted(batch.assets)),)), _take_assets
    if batch.references:
        yield projector.legs(batch.locks, batch.references), projector.load_legs
        yield (store.SELECT_REVERSED, (store.text_array(batch.references),)), _take_reversed
    if own := [stream for stream in batch.locks if stream.startswith("#")]:
        yield projector.states(own), _take_states
    if batch.closing:
        yield (projector.LOCK_PERIOD, ()), _take_period
        # Later than the lock, for whoever was still writing to the past.
        yield (store.SELECT_TRIAL_BALANCE, (utc_text(batch.closing),)), _take_trial_balance
    elif batch.backdated:
        yield (projector.SHARE_PERIOD, ()), _take_period


def _take_assets(book: Book, rows: list[Row]) -> list[str]:
    book.assets.update(rows)
    return []


def _take_reversed(book: Book, rows: list[Row]) -> list[str]:
    for transaction_id, entry, amount in rows:
        original = book.originals.get(transaction_id)
        if original is not None:  # Or somebody else made it, and reversed some, after it was looked for.
            original.reversed[entry] = int(amount)
    return []


def _take_states(book: Book, rows: list[Row]) -> list[str]:
    for stream, state in rows:
        book.stream(stream).state = state
    return []


def _take_period(book: Book, rows: list[Row]) -> list[str]:
    book.closed_until = None if rows[0][0] is None else store.in_utc(rows[0][0])
    return []


def _take_trial_balance(book: Book, rows: list[Row]) -> list[str]:
    book.trial_balance = tuple(rows)
    return []


def _stripes_missing(connection: Connection, batch: Batch, book: Book) -> list[str]:
    """Stripes that are in the log and not among the projected ones; of others that are nowhere no more is heard."""
    chosen = {stream: account for account, stream in batch.draw.chosen.items() if account in batch.accounts}
    missing = [stream for stream, account in chosen.items() if stream != account and stream not in book.streams]
    if not missing:
        return []
    drifted = repair.out_of_step(connection, missing)
    for stream in missing:
        if stream not in drifted:
            batch.draw.give_up(chosen[stream])
    if not drifted:
        raise Spread
    return drifted


def _check_spread(batch: Batch, book: Book) -> None:
    """Learn among how many streams accounts are spread, and whether all were read where all are needed."""
    batch.draw.learn([stream for stream in book.streams.values() if stream.terms and stream.terms.streams > 1])
    heads = {account: book.streams[account] for account in batch.spans if account in book.streams}
    wider = {
        account: head.terms.streams
        for account, head in heads.items()
        if head.terms is not None and head.terms.streams > batch.spans[account]
    }
    if wider:
        batch.spans.update(wider)
        raise Spread


def _holds_missing(batch: Batch, book: Book) -> list[str]:
    """Accounts with a hold that is in the log and not among the projected ones."""
    placed = [transaction for transaction, _ in batch.originals.values() if transaction.kind == "hold"]
    return [
        stream
        for transaction in placed
        for stream in transaction.streams
        if stream not in book.holds.get(transaction.transaction_id, {})
    ]


def _recalled(connection: Connection, ids: Sequence[str]) -> dict[str, Done]:
    """The answers that were given when these transactions were made, by id."""
    book = Book("")
    transactions = store.recorded_transactions(connection, ids)
    streams = sorted({stream for transaction in transactions for stream in transaction.streams})
    projector.load(book, connection.query(*projector.touch(streams)))
    answers = {}
    for transaction, events in zip(transactions, store.events_of(connection, transactions), strict=True):
        terms = [book.stream(event.stream).terms for event in events]
        answers[transaction.transaction_id] = Done(transaction, events, terms)
    return answers
