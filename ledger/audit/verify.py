"""
Re-derive everything from the log and compare: hashes, links, versions, numbers, projections, transactions.

One read-only snapshot, streamed: memory does not grow with the log.  What was not checked is not reported
as sound: the report counts what was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from ledger.core import chain
from ledger.core.book import EPOCH, Book, Stream, evolve
from ledger.core.codec import event_from
from ledger.core.errors import CorruptLog, UnknownAccount
from ledger.core.events import (
    LEDGER_STREAM,
    AccountOpened,
    AccountStateChanged,
    AccountTermsChanged,
    AssetDefined,
    EntryPosted,
    Event,
    HoldCaptured,
    HoldExpired,
    HoldPlaced,
    HoldReleased,
    Numbers,
    OfHold,
    PeriodClosed,
    Recorded,
    StateAdvanced,
    StripesChanged,
    account_of,
    stripes_of,
)
from ledger.core.lifecycle import ACCOUNT
from ledger.core.money import Money
from ledger.storage import projector, repair
from ledger.storage.database import Connection, Row
from ledger.storage.store import (
    EVENT_COLUMNS,
    TRANSACTION_COLUMNS,
    first_place,
    readable,
    recorded_from,
    text_array,
    transaction_from,
)

FINDINGS_MAX: Final = 1_000
"""Findings kept in a report; more are counted."""

_FETCH_ROWS: Final = 2_000
_PAGE_STREAMS: Final = 500

_TRANSACTIONS: Final = f"""
SELECT {TRANSACTION_COLUMNS} FROM {{schema}}.transactions AS t WHERE true {{of_transactions}}
"""

_EVENTS: Final = f"""
SELECT {EVENT_COLUMNS}, t.kind, t.header_hash
FROM {{schema}}.events AS e LEFT JOIN {{schema}}.transactions AS t ON t.transaction_id = e.transaction_id
WHERE true {{of_events}}
ORDER BY e.stream, e.version
"""

_INCOMPLETE: Final = """
SELECT t.transaction_id::text, a.place
FROM {schema}.transactions AS t CROSS JOIN LATERAL unnest(t.announced) AS a (place)
LEFT JOIN {schema}.events AS e
  ON e.stream || ' ' || e.version = a.place AND e.transaction_id = t.transaction_id
WHERE e.stream IS NULL {of_transactions}
"""

_MISCOUNTED: Final = """
SELECT t.transaction_id::text, t.announced[1]
FROM {schema}.transactions AS t JOIN {schema}.events AS e ON e.transaction_id = t.transaction_id
WHERE true {of_transactions}
GROUP BY t.transaction_id
HAVING count(*) <> cardinality(t.announced) OR count(e.amount) <> t.entry_count
    OR count(DISTINCT CASE WHEN e.amount IS NOT NULL THEN e.payload ->> 'entry' END) <> t.entry_count
"""

# What is posted and what is pending, each for itself; a hold is placed once, and later only taken from.
_UNBALANCED: Final = """
SELECT e.transaction_id::text, min(e.stream), e.asset
FROM {schema}.transactions AS t JOIN {schema}.events AS e ON e.transaction_id = t.transaction_id
WHERE e.amount IS NOT NULL {of_transactions}
GROUP BY e.transaction_id, e.asset
HAVING sum(CASE WHEN e.type NOT IN ('entry_posted', 'hold_captured') THEN 0
                WHEN e.direction = 'debit' THEN e.amount ELSE -e.amount END) <> 0
    OR sum(CASE WHEN e.type = 'entry_posted' THEN 0
                WHEN (e.direction = 'debit') = (e.type = 'hold_placed') THEN e.amount ELSE -e.amount END) <> 0
"""

_WITHOUT_LOG: Final = """
SELECT stream FROM (
    SELECT stream FROM {schema}.balances UNION SELECT account FROM {schema}.accounts
) AS projected
WHERE NOT EXISTS (SELECT FROM {schema}.events AS e WHERE e.stream = projected.stream AND e.version = 1)
  {of_projections}
ORDER BY stream
"""

_SCOPE: Final = {
    **repair.OF_STREAMS,
    "{of_events}": "AND e.stream = ANY(%(streams)s::text[])",
    "{of_projections}": "AND stream = ANY(%(streams)s::text[])",
    "{of_transactions}": """AND t.transaction_id IN (
        SELECT s.transaction_id FROM {schema}.events AS s WHERE s.stream = ANY(%(streams)s::text[]))""",
}
"""What a verification of some accounts adds to each statement; one of the whole ledger adds nothing."""

_DIFFERING_LEGS: Final = f"WITH {repair.EXPECTED_LEGS} SELECT stream, hold::text FROM differing_legs ORDER BY 1, 2"

_PERIOD: Final = f"SELECT {readable('p.closed_until')} FROM {{schema}}.periods AS p"


class Finding(NamedTuple):
    """Something that is not as it must be: where, and what."""

    kind: str
    stream: str
    version: int
    column: str
    problem: str

    def __str__(self) -> str:
        return f"{self.stream} version {self.version}, {self.column}: {self.problem}"


@dataclass(slots=True)
class Report:
    """What a verification checked and what it found; `findings` are in the order of the log."""

    checked: dict[str, int] = field(
        default_factory=lambda: {"transactions": 0, "streams": 0, "events": 0, "projections": 0, "assets": 0}
    )
    findings: list[Finding] = field(default_factory=list)
    findings_total: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return self.findings_total == 0

    def add(self, kind: str, stream: str, version: int, column: str, problem: str) -> None:
        """Note a finding."""
        self.findings_total += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(kind, stream, version, column, problem))


class _Scope:
    """What is verified: the whole ledger, or some accounts with their transactions."""

    def __init__(self, connection: Connection, accounts: Sequence[str]) -> None:
        self._connection = connection
        self.accounts = frozenset(map(account_of, accounts))
        self._streams = text_array(repair.with_stripes(connection, self.accounts) if accounts else ())
        self.whole = not accounts

    def stream(self, sql: str) -> Iterator[Row]:
        """Rows through a cursor of the server, so that neither side holds them all."""
        for place, condition in _SCOPE.items():
            sql = sql.replace(place, "" if self.whole else condition)
        with self._connection.stream(sql, {"streams": self._streams}, _FETCH_ROWS) as rows:
            yield from rows


def verify(
    connection: Connection, ledger_id: str, accounts: Sequence[str], progress: Callable[[int], None] | None
) -> Report:
    """
    Verify the whole ledger, or the given accounts with their transactions.

    `progress` is called now and then with the number of events checked so far.
    """
    report = Report()
    with connection.transaction(read_only=True, unbounded=True):
        scope = _Scope(connection, accounts)
        # Here whole tables are what is asked for.
        connection.query("SET LOCAL enable_seqscan = on")
        _verify_streams(connection, ledger_id, scope, report, progress)
        _verify_transactions(scope, report)
        _verify_completeness(scope, report)
    return report


def _verify_streams(
    connection: Connection,
    ledger_id: str,
    scope: _Scope,
    report: Report,
    progress: Callable[[int], None] | None,
) -> None:
    book = Book(ledger_id)
    totals: dict[str, Money] = {}
    replayed: list[Stream] = []
    stripes: list[Stream] = []
    unseen = set(scope.accounts)
    for name, rows in groupby(scope.stream(_EVENTS), key=itemgetter(0)):
        stream = _verify_stream(name, rows, book, report)
        book.streams.pop(name)
        book.holds.clear()
        _add_to_trial_balance(totals, stream)
        unseen.discard(stream.account)
        report.checked["streams"] += 1
        replayed.append(stream)
        _gather(stripes, stream, report)
        if len(replayed) == _PAGE_STREAMS:
            _verify_projections(connection, replayed, report)
            replayed.clear()
            if progress is not None:
                progress(report.checked["events"])
    _gather(stripes, None, report)
    _verify_projections(connection, replayed, report)
    for account, hold in scope.stream(_DIFFERING_LEGS):
        report.add("projection", account, 0, "holds", f"hold {hold} is not what the log makes of it")
    if scope.whole:
        report.checked["assets"] = len(book.assets)
        _verify_period(connection, book, report)
        for asset, net in sorted(totals.items()):
            if net.minor:
                report.add("trial balance", asset, 0, "amount", f"debits less credits over all accounts are {net}")
    for (name,) in scope.stream(_WITHOUT_LOG):
        unseen.discard(account_of(name))
        report.add("projection", name, 0, "stream", "a projected row has no event behind it")
    if unseen:
        raise UnknownAccount(min(unseen))


def _verify_stream(name: str, rows: Iterator[Row], book: Book, report: Report) -> Stream:
    """Replay one stream; after its first broken event the rest is counted, and replayed as far as it goes."""
    stream = book.stream(name)
    prev_hash = chain.genesis(book.ledger_id, name)
    latest = (EPOCH, "")
    sound = True
    for row in rows:
        report.checked["events"] += 1
        try:
            recorded, kind, header_hash = recorded_from(row[:-2]), *row[-2:]
            if sound:
                _verify_event(recorded, kind, header_hash, stream, prev_hash, latest, book)
            else:
                evolve(book, event_from(recorded))
        except CorruptLog as corrupt:
            if sound:
                column, _, problem = corrupt.problem.partition(": ")
                report.add("log", name, row[1], column, problem or corrupt.problem)
            sound = False
        else:
            prev_hash, latest = recorded.event_hash, (recorded.recorded_at, recorded.transaction_id)
    stream.head_hash, stream.recorded_at = prev_hash, latest[0]
    return stream


def _verify_event(
    recorded: Recorded,
    kind: str,
    header_hash: bytes | None,
    stream: Stream,
    prev_hash: bytes,
    latest: tuple[Any, str],
    book: Book,
) -> None:
    def broken(column: str, problem: str) -> CorruptLog:
        return CorruptLog(recorded.stream, recorded.version, f"{column}: {problem}")

    _verify_place(recorded, header_hash, stream, latest, broken)
    try:
        event = event_from(recorded)
    except CorruptLog as corrupt:
        raise broken("payload", corrupt.problem) from corrupt
    _verify_lawful(event, stream, book, broken)
    _verify_allowed(event, kind, stream, broken)
    evolve(book, event)
    if isinstance(event, OfHold):
        _verify_hold(event, book, broken)
    if recorded.numbers is not None or stream.terms is not None:
        for column, stated, expected in zip(
            Numbers._fields, recorded.numbers or (None,) * 4, stream.numbers, strict=True
        ):
            if stated != expected:
                raise broken(column, f"it says {stated}, the events up to here make {expected}")
    try:
        chain.check_link(recorded, header_hash or b"", prev_hash)
    except CorruptLog as corrupt:
        raise broken("event_hash", corrupt.problem) from corrupt


def _verify_place(
    recorded: Recorded,
    header_hash: bytes | None,
    stream: Stream,
    latest: tuple[Any, str],
    broken: Callable[[str, str], CorruptLog],
) -> None:
    if recorded.version != stream.version + 1:
        raise broken("version", f"version {stream.version + 1} is missing")
    if header_hash is None:
        raise broken("transaction_id", f"transaction {recorded.transaction_id} does not exist")
    if (recorded.recorded_at, recorded.transaction_id) != latest and recorded.recorded_at <= latest[0]:
        raise broken("recorded_at", "it does not come after the event before")


def _verify_lawful(event: Event, stream: Stream, book: Book, broken: Callable[[str, str], CorruptLog]) -> None:
    """What no program of ours would append, whatever its hash."""
    terms = stream.terms
    match event:
        case AccountOpened() if stream.version:
            raise broken("type", "an account is opened by its first event, and once")
        case AssetDefined() if event.asset in book.assets:
            raise broken("payload", f"asset {event.asset} was defined before")
        case StateAdvanced() if event.source != (stream.state or ""):
            raise broken("payload", f"it leads away from {event.source}, the events up to here lead to {stream.state}")
        case AccountOpened() | AssetDefined() | StateAdvanced() | PeriodClosed():
            return
        case _ if terms is None:
            raise broken("type", "it comes before its account is opened")
        case StripesChanged() if not terms.streams <= event.streams >= event.stripes >= 1:
            raise broken("payload", f"{event.stripes} of {event.streams} streams, and there were {terms.streams}")
        case AccountStateChanged() | AccountTermsChanged() | StripesChanged():
            return
        case _ if event.asset != terms.asset:
            raise broken("asset", f"it moves {event.asset} on an account of {terms.asset}")


def _verify_allowed(event: Event, kind: str, stream: Stream, broken: Callable[[str, str], CorruptLog]) -> None:
    """What the account's state allowed at that version, whatever it is now."""
    if stream.terms is None:
        return
    state = stream.terms.state
    match event:
        case AccountStateChanged():
            allowed = event.state in {ACCOUNT.advance(state, step) for step in ACCOUNT.allowed(state)} - {state}
        case EntryPosted():
            allowed = ("reverse" if kind == "reverse" else "post") in ACCOUNT.allowed(state)
        case _:
            allowed = _ACTS.get(type(event)) in ACCOUNT.allowed(state)
    if not allowed:
        raise broken("type", f"the account was {state}, and that allows no {kind}")


_ACTS: Final[dict[type, str]] = {
    HoldPlaced: "hold",
    HoldCaptured: "capture",
    HoldReleased: "release",
    HoldExpired: "expire",
    AccountTermsChanged: "change",
    StripesChanged: "change",
}


def _verify_hold(event: OfHold, book: Book, broken: Callable[[str, str], CorruptLog]) -> None:
    leg = book.holds[event.hold].get(event.account)
    if leg is None:
        raise broken("payload", f"hold {event.hold} is not open here")
    if leg.left < 0:
        raise broken("amount", f"more is taken from hold {event.hold} than it has")
    if leg.left == 0:
        # Nothing may come after: an account that has had a million holds is verified in the memory of the open ones.
        del book.holds[event.hold]


def _gather(stripes: list[Stream], stream: Stream | None, report: Report) -> None:
    """Gather the streams of an account, which stand together in the log, until those of the next one begin."""
    if stripes and (stream is None or stripes[0].account != stream.account):
        _verify_stripes(stripes, report)
        stripes.clear()
    if stream is not None:
        stripes.append(stream)


def _verify_stripes(streams: Sequence[Stream], report: Report) -> None:
    """All streams of an account are there, and agree about it."""
    account, terms = streams[0].account, streams[0].terms
    there = {stream.stream for stream in streams}
    expected = {*stripes_of(account, 1 if terms is None else terms.streams)}
    for name in sorted(expected - there):
        report.add("log", name, 0, "stream", f"account {account} has {len(expected)} streams, and this one is missing")
    for stream in streams:
        if stream.stream not in expected:
            problem = f"account {account} has {len(expected)} streams, and this is none of them"
            report.add("log", stream.stream, stream.version, "stream", problem)
        elif stream.terms != terms:
            problem = f"it says {stream.terms}, and {streams[0].stream} says {terms}"
            report.add("log", stream.stream, stream.version, "terms", problem)


def _verify_projections(connection: Connection, replayed: Sequence[Stream], report: Report) -> None:
    """Compare projected rows with the streams as replayed, column by column."""
    rows = connection.query(*projector.touch(stream.stream for stream in replayed))
    projected: dict[str, Row] = {row[0]: row[1:] for row in rows}
    for stream in replayed:
        report.checked["projections"] += 1
        found = projected.get(stream.stream)
        if found is None:
            report.add("projection", stream.stream, stream.version, "stream", "its balances row is missing")
            continue
        terms = stream.terms
        expected: list[object] = [
            stream.version,
            *map(str, stream.numbers),
            stream.head_hash,
            stream.recorded_at.replace(tzinfo=None),
        ]
        expected.append(projector.checksum(stream))
        if terms is None:
            expected += [None] * 9
        else:
            limits = [None if limit is None else str(limit) for limit in (terms.min_balance, terms.max_balance)]
            expected += [terms.account_type.value, terms.asset, terms.scale, *limits, *terms[6:]]
        for column, ours, theirs in zip(_PROJECTED, expected, found, strict=True):
            if ours != theirs:
                said = f"it says {_shown(theirs)}, the log makes {_shown(ours)}"
                problem = "it does not match its row" if column == "checksum" else said
                report.add("projection", stream.stream, stream.version, column, problem)
                break


_PROJECTED: Final = (
    "version", "posted_debits", "posted_credits", "pending_debits", "pending_credits", "head_hash", "recorded_at",
    "checksum", "account_type", "asset", "scale", "min_balance", "max_balance", "state", "metadata",
    "stripes", "streams",
)  # fmt: skip


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _verify_transactions(scope: _Scope, report: Report) -> None:
    for row in scope.stream(_TRANSACTIONS):
        report.checked["transactions"] += 1
        try:
            transaction = transaction_from(row)
        except CorruptLog as corrupt:
            report.add("log", corrupt.stream, corrupt.version, "header_hash", corrupt.problem)
            continue
        if not chain.check_seal(transaction):
            report.add(
                "log",
                transaction.streams[0],
                transaction.versions[0],
                "header_hash",
                f"transaction {transaction.transaction_id} is not what its hash covers",
            )


def _verify_completeness(scope: _Scope, report: Report) -> None:
    """Every transaction with all of its events and no other, and balanced."""
    for transaction_id, place in scope.stream(_INCOMPLETE):
        problem = f"transaction {transaction_id} announces this event, and it is missing"
        report.add("transaction", *first_place([place]), "version", problem)
    for transaction_id, place in scope.stream(_MISCOUNTED):
        problem = f"transaction {transaction_id} has other events or entries than it announces"
        report.add("transaction", *first_place([place]), "entry_count", problem)
    for transaction_id, stream, asset in scope.stream(_UNBALANCED):
        problem = f"debits and credits of transaction {transaction_id} differ in {asset}"
        report.add("transaction", stream, 0, "amount", problem)


def _verify_period(connection: Connection, book: Book, report: Report) -> None:
    found = connection.query(_PERIOD)
    ours = None if book.closed_until is None else book.closed_until.replace(tzinfo=None)
    if found != [(ours,)]:
        said = found[0][0] if found else "there is no row that says"
        problem = f"the books are closed until {ours}, the projection says {said}"
        report.add("projection", LEDGER_STREAM, 0, "closed_until", problem)


def _add_to_trial_balance(totals: dict[str, Money], stream: Stream) -> None:
    if stream.terms is not None:
        net = stream.terms.money(stream.numbers.posted_debits - stream.numbers.posted_credits)
        known = totals.get(net.asset)
        totals[net.asset] = net if known is None else known + net
