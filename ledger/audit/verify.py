"""
Re-derive everything from the log and compare: hashes, links, versions, numbers, projections, transactions, the feed.

One read-only snapshot, streamed: memory does not grow with the log.  What was not checked is not reported
as sound: the report counts what was.

The work is a list of steps, each for itself, so that several can be done at once.  The report is put together in
the order of the list, whoever did them and when.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

from ledger.audit import kept, stamped
from ledger.audit.jobs import Tell, in_order
from ledger.audit.lawful import verify_event
from ledger.audit.report import Finding, Report
from ledger.audit.texts import EVENT_TEXTS, TRANSACTION_TEXTS, Entries, event_row, sealed, transaction_row
from ledger.core import chain
from ledger.core.book import EPOCH, Book, Stream, evolve
from ledger.core.codec import event_from
from ledger.core.errors import CorruptLog, Interrupted, LedgerError, UnknownAccount
from ledger.core.events import (
    LEDGER_STREAM,
    account_of,
    stripes_of,
)
from ledger.core.money import Money
from ledger.storage import projector, repair
from ledger.storage.database import Connection, Row, TextRow, address_of, connected
from ledger.storage.explained import UNREADABLE
from ledger.storage.parts import Part, parts
from ledger.storage.store import first_place, readable, recorded_from, said, text_array, transaction_from

_FETCH_ROWS: Final = 2_000
_PAGE_STREAMS: Final = 500

_TRANSACTIONS: Final = f"""
SELECT {TRANSACTION_TEXTS} FROM {{schema}}.transactions AS t WHERE {{in_part}} {{of_transactions}}
"""

_EVENTS: Final = f"""
SELECT {EVENT_TEXTS}, t.header_hash, t.kind
FROM {{schema}}.events AS e LEFT JOIN {{schema}}.transactions AS t ON t.transaction_id = e.transaction_id
WHERE {{in_part}} {{of_events}}
ORDER BY e.stream, e.version
"""

_BLOCKS: Final = """
SELECT coalesce((
    SELECT pg_relation_size(t.tableoid) / current_setting('block_size')::bigint
    FROM {schema}.transactions AS t LIMIT 1), 0)
"""

_INCOMPLETE: Final = """
SELECT t.transaction_id::text, a.place
FROM {schema}.transactions AS t CROSS JOIN LATERAL unnest(t.announced) AS a (place)
LEFT JOIN {schema}.events AS e
  ON e.stream || ' ' || e.version = a.place AND e.transaction_id = t.transaction_id
WHERE e.stream IS NULL {of_transactions} ORDER BY 1, 2
"""

# Grouped by what it is joined by alone, and not by a key that makes the other columns one: that may be gone.
_MISCOUNTED: Final = f"""
SELECT t.transaction_id::text, min(t.announced[1])
FROM {{schema}}.transactions AS t JOIN {{schema}}.events AS e ON e.transaction_id = t.transaction_id
WHERE true {{of_transactions}}
GROUP BY t.transaction_id
HAVING count(*) IS DISTINCT FROM max(cardinality(t.announced)) OR count(e.amount) <> max(t.entry_count)
    OR count(DISTINCT CASE WHEN e.amount IS NOT NULL THEN {said("e.payload", "entry")} END) <> max(t.entry_count)
ORDER BY 1
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
ORDER BY 1, 3
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
    **stamped.SCOPE,
    **kept.SCOPE,
    "{of_events}": "AND e.stream = ANY(%(streams)s::text[])",
    "{of_projections}": "AND stream = ANY(%(streams)s::text[])",
    "{of_transactions}": """AND t.transaction_id IN (
        SELECT s.transaction_id FROM {schema}.events AS s WHERE s.stream = ANY(%(streams)s::text[]))""",
}
"""What a verification of some accounts adds to each statement; one of the whole ledger adds nothing."""

_DIFFERING_LEGS: Final = f"WITH {repair.EXPECTED_LEGS} SELECT stream, hold::text FROM differing_legs ORDER BY 1, 2"

_PERIOD: Final = f"SELECT p.closed_until IS NOT NULL, {readable('p.closed_until')} FROM {{schema}}.periods AS p"

_CHECKS: Final = stamped.CHECKS | kept.CHECKS


class Step(NamedTuple):
    """One of the things to do: which, of the functions below, and with which part of the log."""

    name: str
    part: Part | None = None
    blocks: tuple[int, int] | None = None


@dataclass(slots=True)
class Outcome:
    """What a step checked and found, and what only all steps together can be judged by."""

    report: Report = field(default_factory=Report)
    known: set[str] = field(default_factory=set)
    """Of the accounts that were asked for by name: those that there is a trace of."""

    totals: dict[str, Money] = field(default_factory=dict)
    """Debits less credits over all accounts, by asset."""

    closed_until: datetime | None = None
    unread: bool = False
    """There is something that the server could not read: what is not known of the whole says nothing."""

    def take(self, other: Outcome) -> None:
        """Let what another step found follow."""
        self.report.take(other.report)
        self.unread |= other.unread
        self.known |= other.known
        self.closed_until = self.closed_until or other.closed_until
        for asset, net in other.totals.items():
            self.totals[asset] = self.totals[asset] + net if asset in self.totals else net


class Scope:
    """What is verified on which connection: the whole ledger, or some accounts with their transactions."""

    def __init__(self, connection: Connection, ledger_id: str, accounts: Sequence[str]) -> None:
        self.connection = connection
        self.ledger_id = ledger_id
        self.accounts = frozenset(map(account_of, accounts))
        self._streams = text_array(repair.with_stripes(connection, self.accounts) if accounts else ())
        self.whole = not accounts

    def stream(self, sql: str) -> Iterator[Row]:
        """Rows through a cursor of the server, so that neither side holds them all."""
        with self.connection.stream(self._sql(sql), {"streams": self._streams}, _FETCH_ROWS) as rows:
            yield from rows

    def texts(
        self, sql: str, condition: str, parameters: Mapping[str, Any]
    ) -> AbstractContextManager[Iterator[TextRow]]:
        """The same rows as texts, of what fulfils a condition."""
        sql = self._sql(sql).replace("{in_part}", condition)
        return self.connection.texts(sql, {"streams": self._streams, **parameters}, _FETCH_ROWS)

    def _sql(self, sql: str) -> str:
        for place, condition in _SCOPE.items():
            sql = sql.replace(place, "" if self.whole else condition)
        return sql


def steps(connection: Connection, accounts: Sequence[str], jobs: int, after: str) -> list[Step]:
    """All that is to be done, in the order of the report."""
    if accounts:
        runs: list[Part] = [Part("", None)]
        blocks: list[tuple[int, int] | None] = [None]
    else:
        runs, blocks = parts(connection, jobs, after), _blocks(connection, jobs)
    return [
        *(Step("streams", part=part) for part in runs),
        Step("holds"),
        Step("without log"),
        *(Step("transactions", blocks=some) for some in blocks),
        Step("incomplete"),
        Step("miscounted"),
        Step("unbalanced"),
        *(Step(name) for name in _CHECKS if not (accounts and name in kept.OF_ALL)),
    ]


def _blocks(connection: Connection, jobs: int) -> list[tuple[int, int] | None]:
    """The table of transactions in runs of its blocks, one for each job."""
    ((blocks,),) = connection.query(_BLOCKS)
    if jobs == 1:
        return [None]
    size = -(-blocks // jobs)
    # The last one has no end: what is added meanwhile is not seen anyway.
    return [(job * size, (job + 1) * size if job + 1 < jobs else _BLOCKS_MAX) for job in range(jobs)]


_BLOCKS_MAX: Final = 2**32 - 1


def perform(step: Step, scope: Scope, tell: Tell) -> Outcome:
    """Do one step; where the server itself cannot read a row, that is found, and the other steps go on."""
    outcome = Outcome()
    scope.connection.query("SAVEPOINT step")
    try:
        _perform(step, scope, outcome, tell)
    except UNREADABLE as error:
        scope.connection.undo("ROLLBACK TO SAVEPOINT step")
        said = error.diag.message_primary
        problem = f"what the server cannot read was not checked, nor what is near it or follows: {said}"
        outcome.report.add("log", LEDGER_STREAM, 0, step.name, problem)
        outcome.unread = True
    scope.connection.query("RELEASE SAVEPOINT step")
    if scope.whole:
        outcome.known.clear()
    return outcome


def _perform(step: Step, scope: Scope, outcome: Outcome, tell: Tell) -> None:
    match step.name:
        case "streams":
            assert step.part is not None
            _verify_streams(scope, step.part, outcome, tell)
        case "holds":
            for account, hold in scope.stream(_DIFFERING_LEGS):
                problem = f"hold {hold} is not what the log makes of it"
                outcome.report.add("projection", str(account), 0, "holds", problem)
        case "without log":
            for name in (str(stream) for (stream,) in scope.stream(_WITHOUT_LOG)):
                outcome.known.add(account_of(name))
                outcome.report.add("projection", name, 0, "stream", "a projected row has no event behind it")
        case "transactions":
            _verify_transactions(scope, step.blocks, outcome.report)
        case "incomplete" | "miscounted" | "unbalanced":
            _verify_completeness(step.name, scope, outcome.report)
        case _:
            _CHECKS[step.name](scope.stream, outcome.report)


def verify(
    connection: Connection,
    ledger_id: str,
    accounts: Sequence[str],
    progress: Callable[[int], None] | None,
    jobs: int = 1,
    after: str = "",
) -> Report:
    """
    Verify the whole ledger, or the given accounts with their transactions; or streams behind `after` and all
    transactions.

    `progress` is called now and then with the number of events checked so far.

    Raises:
        UnknownAccount: Of one of `accounts` there is no trace.
        Interrupted: By the user; it has what was found by then, and so have notes on any other error.
    """
    whole = Outcome()
    with connection.transaction(read_only=True, unbounded=True):
        # Here whole tables are what is asked for.
        connection.query("SET LOCAL enable_seqscan = on")
        todo = steps(connection, accounts, jobs, after)
        stand = Stand(todo, progress)
        try:
            with closing(performed(connection, ledger_id, accounts, todo, jobs, stand)) as outcomes:
                for step, outcome in zip(todo, outcomes, strict=True):
                    whole.take(outcome)
                    if step.name == "holds" and not (accounts or after or whole.unread):
                        _verify_sums(connection, whole)
        except KeyboardInterrupt:
            raise Interrupted(stand.last, stand.found) from None
        except LedgerError as error:
            if stand.last:
                error.add_note(f"All before {stand.last!r} is done: go on with after={stand.last!r}.")
            for finding in stand.found:
                error.add_note(f"Found by then: {finding}")
            raise
    if not whole.unread and (unknown := set(map(account_of, accounts)) - whole.known):
        raise UnknownAccount(min(unknown))
    return whole.report


def performed(
    connection: Connection, ledger_id: str, accounts: Sequence[str], todo: Sequence[Step], jobs: int, stand: Stand
) -> Generator[Outcome, None, None]:
    """The outcome of each step, in order: all of one snapshot, which is open here."""
    if jobs == 1 or accounts:
        scope = Scope(connection, ledger_id, accounts)
        for number, step in enumerate(todo):
            outcome = perform(step, scope, partial(stand.tell, number))
            yield outcome
            stand.done(number, outcome.report)
        return
    ((snapshot,),) = connection.query("SELECT pg_export_snapshot()")
    arguments = (address_of(connection), connection.schema, snapshot, ledger_id)
    for number, outcome in enumerate(in_order(todo, jobs, _workplace, arguments, stand.tell)):
        stand.done(number, outcome.report)
        yield outcome


@contextmanager
def _workplace(address: str, schema: str, snapshot: str, ledger_id: str) -> Iterator[Callable[[Step, Tell], Outcome]]:
    """A process of its own that sees what the one that began it sees."""
    with (
        connected(address, schema) as connection,
        connection.transaction(read_only=True, unbounded=True, snapshot=snapshot),
    ):
        for setting in ("enable_seqscan = on", "jit = off", "lock_timeout = 0"):
            connection.query(f"SET LOCAL {setting}")
        scope = Scope(connection, ledger_id, ())
        yield lambda step, tell: perform(step, scope, tell)


class Stand:
    """How far the steps are: what an interrupted verification goes on from."""

    def __init__(self, todo: Sequence[Step], progress: Callable[[int], None] | None) -> None:
        self._progress = progress
        self._runs = [(number, step.part.after) for number, step in enumerate(todo) if step.part is not None]
        self._last = dict(self._runs)
        self._found = {number: Report() for number, _ in self._runs}
        self._done: set[int] = set()

    @property
    def last(self) -> str:
        """The last stream before which all are done."""
        for number, _ in self._runs:
            if number not in self._done:
                return self._last[number]
        return self._last[self._runs[-1][0]]

    @property
    def found(self) -> list[Finding]:
        """What was found up to there."""
        report = Report()
        for number, _ in self._runs:
            report.take(self._found[number])
            if number not in self._done:
                break
        return report.findings

    def tell(self, number: int, stream: str, found: Report) -> None:
        """Note that a step has come so far."""
        self._found[number].take(found)
        self._last[number] = stream
        if self._progress is not None:
            self._progress(sum(report.checked["events"] for report in self._found.values()))

    def done(self, number: int, found: Report) -> None:
        """Note that a step is done, and all that was found in it."""
        self._done.add(number)
        if number in self._found:
            self._found[number] = found


def _verify_streams(scope: Scope, part: Part, outcome: Outcome, tell: Tell) -> None:
    book = Book(scope.ledger_id)
    page, found = _Page(), outcome.report
    try:
        with scope.texts(_EVENTS, part.condition("e.stream"), part.parameters()) as rows:
            for name, events in groupby(rows, key=itemgetter(0)):
                # The streams of an account stand together, and are on one page.
                if len(page.streams) >= _PAGE_STREAMS and account_of(str(name)) != page.streams[-1].account:
                    page.finish(scope.connection, found, tell)
                    page = _Page()
                stream = _verify_stream(str(name), events, book, page.report)
                book.streams.pop(stream.stream)
                book.holds.clear()
                page.streams.append(stream)
                if stream.account in scope.accounts:
                    outcome.known.add(stream.account)
                _add_to_trial_balance(outcome.totals, stream)
    except UNREADABLE:
        # Nothing can be asked any more, and so no projections are compared with these; what was found in them stays.
        found.take(page.report)
        raise
    page.finish(scope.connection, found, tell)
    found.checked["assets"] = len(book.assets) if scope.whole else 0
    outcome.closed_until = book.closed_until


class _Page:
    """Streams that were replayed, whose projections are compared together."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.report = Report()

    def finish(self, connection: Connection, found: Report, tell: Tell) -> None:
        """Let what is found about all of them follow what was found before."""
        if not self.streams:
            return
        for _, stripes in groupby(self.streams, key=attrgetter("account")):
            _verify_stripes([*stripes], self.report)
        _verify_projections(connection, self.streams, self.report)
        # However the streams fall into pages: what is found about one of them stands together.
        self.report.findings.sort(key=attrgetter("stream"))
        self.report.checked["streams"] += len(self.streams)
        found.take(self.report)
        tell(self.streams[-1].stream, self.report)


def _verify_stream(name: str, rows: Iterator[TextRow], book: Book, report: Report) -> Stream:
    """Replay one stream; after its first broken event the rest is counted, and replayed as far as it goes."""
    stream = book.stream(name)
    prev_hash = chain.genesis(book.ledger_id, name)
    latest = (EPOCH, "")
    sound = True
    entries: Entries | None = None
    events = 0
    for texts in rows:
        events += 1
        if entries is not None:
            if entries.follow(texts):
                continue
            prev_hash, latest = entries.settle(stream)
            entries = None
        row = event_row(texts)
        try:
            recorded, header_hash, kind = recorded_from(row[:-2]), *row[-2:]
            if sound:
                verify_event(recorded, kind, header_hash, stream, prev_hash, latest, book)
            else:
                evolve(book, event_from(recorded))
        except CorruptLog as corrupt:
            if sound:
                column, _, problem = corrupt.problem.partition(": ")
                report.add("log", name, row[1] or 0, column, problem or corrupt.problem)
            sound = False
        else:
            prev_hash, latest = recorded.event_hash, (recorded.recorded_at, recorded.transaction_id)
            if sound and stream.terms is not None and stream.terms.state == "open":
                entries = Entries(stream, prev_hash, latest)
    if entries is not None:
        prev_hash, latest = entries.settle(stream)
    report.checked["events"] += events
    stream.head_hash, stream.recorded_at = prev_hash, latest[0]
    return stream


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


def _verify_transactions(scope: Scope, blocks: tuple[int, int] | None, report: Report) -> None:
    parameters, condition = {}, "true"
    if blocks is not None:
        parameters = {"first": f"({blocks[0]},0)", "end": f"({blocks[1]},0)"}
        condition = "t.ctid >= %(first)s::tid AND t.ctid < %(end)s::tid"
    with scope.texts(_TRANSACTIONS, condition, parameters) as rows:
        for texts in rows:
            report.checked["transactions"] += 1
            if not sealed(texts):
                _verify_transaction(transaction_row(texts), report)


def _verify_transaction(row: Row, report: Report) -> None:
    try:
        transaction = transaction_from(row)
    except CorruptLog as corrupt:
        report.add("log", corrupt.stream, corrupt.version, "header_hash", corrupt.problem)
        return
    if not chain.check_seal(transaction):
        problem = f"transaction {transaction.transaction_id} is not what its hash covers"
        report.add("log", transaction.streams[0], transaction.versions[0], "header_hash", problem)


def _verify_completeness(what: str, scope: Scope, report: Report) -> None:
    """Every transaction with all of its events and no other, and balanced."""
    match what:
        case "incomplete":
            for transaction_id, place in scope.stream(_INCOMPLETE):
                problem = f"transaction {transaction_id} announces this event, and it is missing"
                report.add("transaction", *first_place([place]), "version", problem)
        case "miscounted":
            for transaction_id, place in scope.stream(_MISCOUNTED):
                problem = f"transaction {transaction_id} has other events or entries than it announces"
                report.add("transaction", *first_place([place]), "entry_count", problem)
        case "unbalanced":
            for transaction_id, stream, asset in scope.stream(_UNBALANCED):
                problem = f"debits and credits of transaction {transaction_id} differ in {asset}"
                report.add("transaction", stream, 0, "amount", problem)


def _verify_sums(connection: Connection, whole: Outcome) -> None:
    """What only all streams together can be judged by: until when the books are closed, and the trial balance."""
    found = connection.query(_PERIOD)
    ours = None if whole.closed_until is None else whole.closed_until.replace(tzinfo=None)
    if found != [(ours is not None, ours)]:
        told = [str(moment or "a time of no calendar") if says else "None" for says, moment in found]
        problem = f"the books are closed until {ours}, the projection says {', '.join(told) or 'nothing'}"
        whole.report.add("projection", LEDGER_STREAM, 0, "closed_until", problem)
    for asset, net in sorted(whole.totals.items()):
        if net.minor:
            problem = f"debits less credits over all accounts are {net}"
            whole.report.add("trial balance", asset, 0, "amount", problem)


def _add_to_trial_balance(totals: dict[str, Money], stream: Stream) -> None:
    if stream.terms is not None:
        net = stream.terms.money(stream.numbers.posted_debits - stream.numbers.posted_credits)
        known = totals.get(net.asset)
        totals[net.asset] = net if known is None else known + net
