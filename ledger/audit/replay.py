"""
What a log comes to, made from its lines alone: each event checked in its place, and all that follows from them.

Whoever writes a bundle and whoever verifies one make its reports here, from the same lines, so that they agree or
one of them was changed.  Memory grows with the streams and open holds, and not with the events.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from itertools import groupby
from operator import attrgetter
from typing import Any, BinaryIO, Final, TypeVar

from ledger.audit.lawful import verify_event
from ledger.core.book import EPOCH, Balance, Book, Stream, together
from ledger.core.canonical import canonical_json
from ledger.core.chain import genesis, leaf_hash
from ledger.core.codec import RECORD_BYTES_MAX
from ledger.core.commands import Direction
from ledger.core.errors import CorruptLog, ProofFailed
from ledger.core.events import FeedEntry, Numbers, Recorded, Transaction, stripes_of
from ledger.core.merkle import Frontier
from ledger.core.money import Money

RECORDS: Final = "records.jsonl"
PAYLOADS: Final = "payloads.jsonl"
TRANSACTIONS: Final = "transactions.jsonl"

LINE_BYTES_MAX: Final = 1 << 26
"""Far beyond any request; a line is read whole."""

JOURNAL_COLUMNS: Final = (
    *("position", "recorded_at", "effective_at", "transaction_id", "kind", "event", "stream", "version"),
    *("direction", "amount", "asset"),
)
BALANCES_HEAD: Final = b"account,account_type,asset,state,debits,credits,pending_debits,pending_credits,balance\n"

POSTS: Final = {"entry_posted", "hold_captured"}
"""The types of events that post an amount."""

OF_HOLDS: Final = {"hold_placed": 1, "hold_captured": -1, "hold_released": -1, "hold_expired": -1}
"""The types of events about holds, and how often each adds its amount to what is pending."""


_MISREAD: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
"""How a line that says something else fails to be read."""

Value = TypeVar("Value")


class Lines:
    """The lines of a file, each without its newline, and which one was read last."""

    def __init__(self, name: str, file: BinaryIO, limit: int = LINE_BYTES_MAX) -> None:
        self.name = name
        self.number = 0
        self._file = file
        self._limit = limit

    def __iter__(self) -> Iterator[bytes]:
        while line := self._file.readline(self._limit + 2):
            self.number += 1
            if not line.endswith(b"\n"):
                cut = len(line) <= self._limit
                raise self.broken("it does not end" if cut else f"it has more than {self._limit:,} bytes")
            yield line[:-1]

    def next(self, following: str) -> bytes:
        """The next line, which must be there."""
        for line in self:
            return line
        raise ProofFailed(self.name, f"it ends after line {self.number:,}, and {following}")

    def broken(self, problem: str) -> ProofFailed:
        """That something is wrong with the line that was read last."""
        return ProofFailed(f"Line {self.number:,} of {self.name}", problem)


@dataclass(slots=True)
class Header:
    """A transaction, as far as its events are judged by it; what came of them, and those that have not come yet."""

    kind: str
    entry_count: int
    expected: dict[str, str]
    """What all of its records say of it."""

    awaited: set[tuple[str, int]]
    journal: list[bytes] = field(default_factory=list)
    net: dict[tuple[str, str], int] = field(default_factory=dict)
    """Debits less credits, of what is posted and of what is pending, by asset."""


class Replay:
    """
    The events of a log in the feed's order, from three files: records, payloads, and the headers of transactions.

    Read `journal` to its end; then everything was checked, and the rest is there.
    """

    def __init__(
        self,
        ledger_id: str,
        records: BinaryIO,
        payloads: BinaryIO,
        transactions: BinaryIO,
        *,
        roots_at: Collection[int] = (),
    ) -> None:
        """`roots_at` are sizes at which the tree's root is wanted."""
        self.ledger_id = ledger_id
        self.frontier = Frontier()
        self.roots: dict[int, bytes] = {}
        self.transactions = 0
        self._records = Lines(RECORDS, records, RECORD_BYTES_MAX)
        self._payloads = Lines(PAYLOADS, payloads)
        self._headers = Lines(TRANSACTIONS, transactions)
        self._roots_at = frozenset(roots_at)
        self._book = Book(ledger_id)
        self._latest: dict[str, tuple[datetime, str]] = {}

    def journal(self) -> Iterator[bytes]:
        """
        The lines of the journal as CSV: everything that moved an amount.

        Raises:
            ProofFailed: A line is not what was recorded there, or what no program of ours would record.
        """
        yield (",".join(JOURNAL_COLUMNS) + "\n").encode()
        header: Header | None = None
        for record in self._records:
            payload = self._payloads.next(f"{RECORDS} goes on")
            if header is None:
                header = self._next_header()
            fields, recorded = self._recorded(record, payload)
            self._check_transaction(fields, recorded, header)
            self._follow(recorded, header)
            if self.frontier.size in self._roots_at:
                self.roots[self.frontier.size] = self.frontier.root()
            if recorded.amount is not None:
                header.journal.append(self._entry(recorded, header))
            if not header.awaited:
                # Only then: whoever compares these lines with others shall hear first of what is wrong with the log.
                self._check_whole(header)
                yield from header.journal
                header = None
        if header is not None:
            stream, version = min(header.awaited)
            raise self._headers.broken(f"it announces {stream} version {version}, which is not in {RECORDS}")
        for rest in (self._payloads, self._headers):
            for _ in rest:
                raise rest.broken(f"{RECORDS} has ended")
        self._check_stripes()

    def balances(self) -> Iterator[bytes]:
        """All accounts with their balances, as CSV: amounts are in whole units."""
        yield BALANCES_HEAD
        for account, _ in self._accounts():
            assert account.terms is not None
            amounts = [account.terms.money(number) for number in account.numbers]
            amounts.append(Balance.from_numbers(account.account, account.terms, account.numbers, 0).posted)
            terms = (account.account, account.terms.account_type.value, account.terms.asset, account.terms.state)
            yield (",".join([*terms, *map(_decimal, amounts)]) + "\n").encode()

    def accounts(self) -> Iterator[bytes]:
        """All accounts as they stand, as JSON: amounts are texts of minor units."""
        return _listed(
            {
                "account": account.account,
                "account_type": account.terms.account_type.value,
                "asset": account.terms.asset,
                "events": account.version,
                "scale": account.terms.scale,
                "state": account.terms.state,
                "streams": streams,
                **{name: str(number) for name, number in account.numbers._asdict().items()},
            }
            for account, streams in self._accounts()
            if account.terms is not None
        )

    def trial_balance(self) -> Iterator[bytes]:
        """What is posted in all accounts together, by asset and type of account, as JSON, in minor units."""
        totals: dict[tuple[str, str], list[int]] = {}
        for account, _ in self._accounts():
            assert account.terms is not None
            key = (account.terms.asset, account.terms.account_type.value)
            line = totals.setdefault(key, [0, account.terms.scale, 0, 0])
            line[0] += 1
            line[2] += account.numbers.posted_debits
            line[3] += account.numbers.posted_credits
        return _listed(
            {
                "account_type": kind,
                "accounts": count,
                "asset": asset,
                "credits": str(credits),
                "debits": str(debits),
                "scale": scale,
            }
            for (asset, kind), (count, scale, debits, credits) in sorted(totals.items())
        )

    def counts(self) -> dict[str, int]:
        """How much was checked."""
        return {
            "accounts": sum(1 for _ in self._accounts()),
            "events": self.frontier.size,
            "streams": len(self._book.streams),
            "transactions": self.transactions,
        }

    def _accounts(self) -> Iterator[tuple[Stream, int]]:
        """Each account, all its stripes together, and how many there are; in order."""
        opened = (stream for stream in self._book.streams.values() if stream.terms is not None)
        for name, stripes in groupby(sorted(opened, key=attrgetter("account", "stream")), key=attrgetter("account")):
            streams = [*stripes]
            yield together(name, streams), len(streams)

    def _recorded(self, record: bytes, payload: bytes) -> tuple[dict[str, Any], Recorded]:
        try:
            fields: dict[str, Any] = json.loads(record)
            return fields, _recorded(fields, record, payload)
        except _MISREAD as error:
            raise self._records.broken(f"it is no record: {_told(error)}") from None

    def _next_header(self) -> Header:
        line = self._headers.next(f"{RECORDS} goes on at line {self._records.number:,}")
        self.transactions += 1
        try:
            fields = json.loads(line)
            places = [(stream, version) for stream, version in fields["events"]]
            expected = {name: _is(str, fields[name]) for name in ("transaction_id", "effective_at", "recorded_at")}
            expected["header_sha256"] = sha256(line).hexdigest()
            header = Header(_is(str, fields["kind"]), _is(int, fields["entry_count"]), expected, set(places))
        except _MISREAD as error:
            raise self._headers.broken(f"it is no header of a transaction: {_told(error)}") from None
        if not places or len(places) != len(header.awaited):
            raise self._headers.broken("it announces no event, or one of them twice")
        return header

    def _check_transaction(self, fields: dict[str, Any], recorded: Recorded, header: Header) -> None:
        """Compare an event with what its transaction says of it."""
        said = f"line {self._headers.number:,} of {TRANSACTIONS}"
        place = (recorded.stream, recorded.version)
        if place not in header.awaited:
            raise self._records.broken(f"{said} does not announce {place[0]} version {place[1]} here")
        header.awaited.remove(place)
        for name, expected in header.expected.items():
            if fields.get(name) != expected:
                raise self._records.broken(f"{name} is {fields.get(name)}, and of {said} it is {expected}")
        if fields.get("payload_sha256") != sha256(recorded.payload.encode()).hexdigest():
            raise self._payloads.broken(f"its hash is not the payload_sha256 in that line of {RECORDS}")

    def _follow(self, recorded: Recorded, header: Header) -> None:
        """Check an event against all before it, and let the book and the tree move on."""
        book, name = self._book, recorded.stream
        try:
            stream = book.stream(name)
            previous = stream.head_hash or genesis(book.ledger_id, name)
            header_hash = bytes.fromhex(header.expected["header_sha256"])
            latest = self._latest.get(name, (EPOCH, ""))
            verify_event(recorded, header.kind, header_hash, stream, previous, latest, book)
        except CorruptLog as corrupt:
            raise self._records.broken(f"{name} version {recorded.version}: {corrupt.problem}") from None
        except _MISREAD as error:
            raise self._records.broken(f"it is no record: {_told(error)}") from None
        stream.head_hash, stream.recorded_at = recorded.event_hash, recorded.recorded_at
        self._latest[name] = (recorded.recorded_at, recorded.transaction_id)
        self.frontier.extend((recorded.event_hash,))
        if recorded.amount is not None:
            signed = recorded.amount if recorded.direction == Direction.DEBIT else -recorded.amount
            for what, times in (("posted", recorded.type in POSTS), ("pending", OF_HOLDS.get(recorded.type, 0))):
                key = (what, str(recorded.asset))
                header.net[key] = header.net.get(key, 0) + times * signed

    def _check_whole(self, header: Header) -> None:
        """Of a transaction whose events are all there: has it the entries that it says, and do they balance?"""
        if len(header.journal) != header.entry_count:
            problem = f"it says that it has {header.entry_count} entries, and it has {len(header.journal)}"
            raise self._headers.broken(problem)
        for (what, asset), net in header.net.items():
            if net:
                raise self._headers.broken(f"its debits and credits differ in {asset} ({what}) by {net} minor units")

    def _check_stripes(self) -> None:
        for account, streams in self._accounts():
            assert account.terms is not None
            for name in stripes_of(account.account, account.terms.streams)[streams:]:
                raise ProofFailed(RECORDS, f"account {account.account} has the stream {name}, which is not in it")

    def _entry(self, recorded: Recorded, header: Header) -> bytes:
        terms = self._book.streams[recorded.stream].terms
        assert terms is not None
        assert recorded.amount is not None
        cells = journal_cells(
            self.frontier.size,
            header.expected["recorded_at"],
            header.expected["effective_at"],
            header.kind,
            recorded,
            _decimal(terms.money(recorded.amount)),
        )
        return (",".join(cells) + "\n").encode()


def journal_cells(
    position: int, recorded_at: str, effective_at: str, kind: str, recorded: Recorded, units: str
) -> tuple[str, ...]:
    """A line of a journal, as texts, none of which contains a comma or begins a formula: `JOURNAL_COLUMNS`."""
    return (
        str(position),
        recorded_at,
        effective_at,
        recorded.transaction_id,
        kind,
        recorded.type,
        recorded.stream,
        str(recorded.version),
        str(recorded.direction),
        units,
        str(recorded.asset),
    )


def entries_of(records: BinaryIO, payloads: BinaryIO, transactions: BinaryIO) -> Iterator[FeedEntry]:
    """
    The feed, read back from the lines of a log that a `Replay` has found to be sound.

    Raises:
        ProofFailed: A transaction is not written as any release has written one.
    """
    header: Transaction | None = None
    headers = Lines(TRANSACTIONS, transactions)
    left = 0
    for position, (record, payload) in enumerate(zip(records, payloads, strict=True), 1):
        if header is None or not left:
            line = headers.next(f"{RECORDS} goes on")
            try:
                header = _transaction(json.loads(line), sha256(line).digest())
            except _MISREAD as error:
                raise headers.broken(f"it is no header of a transaction: {_told(error)}") from None
            left = len(header.streams)
        recorded = _recorded(json.loads(record), record.removesuffix(b"\n"), payload.removesuffix(b"\n"))
        left -= 1
        yield FeedEntry(position, recorded, header)


def _recorded(fields: dict[str, Any], record: bytes, payload: bytes) -> Recorded:
    amount = fields.get("amount")
    numbers = [fields[name] for name in Numbers._fields] if "posted_debits" in fields else None
    return Recorded(
        _is(str, fields["stream"]),
        _is(int, fields["version"]),
        _is(str, fields["transaction_id"]),
        _is(str, fields["type"]),
        payload.decode(),
        _is(int, fields["schema"]),
        fields.get("asset"),
        fields.get("direction"),
        None if amount is None else int(amount),
        None if numbers is None else Numbers(*map(int, numbers)),
        datetime.fromisoformat(fields["effective_at"]),
        datetime.fromisoformat(fields["recorded_at"]),
        bytes.fromhex(fields["prev"]),
        leaf_hash(record),
    )


def _transaction(fields: dict[str, Any], header_hash: bytes) -> Transaction:
    moments = {name: datetime.fromisoformat(fields[name]) for name in ("effective_at", "recorded_at")}
    texts = {name: canonical_json(fields[name]) for name in ("request", "metadata")}
    streams = tuple(stream for stream, _ in fields["events"])
    versions = tuple(version for _, version in fields["events"])
    kept = {name: value for name, value in fields.items() if name not in ("events", "format")}
    return Transaction(**(kept | moments | texts), streams=streams, versions=versions, header_hash=header_hash)


def _listed(lines: Iterable[dict[str, object]]) -> Iterator[bytes]:
    """A list as JSON, one object a line."""
    before = b"[\n"
    for line in lines:
        yield before + canonical_json(line).encode()
        before = b",\n"
    yield b"\n]\n" if before == b",\n" else b"[]\n"


def _decimal(money: Money) -> str:
    return str(money).partition(" ")[0]


def _is(kind: type[Value], value: object) -> Value:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _told(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
