"""Questions with typed answers: balances, history, transactions, accounts, trial balance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from ledger.core.book import Balance, Book, Stream, Terms, together
from ledger.core.canonical import canonical_json, utc_text
from ledger.core.commands import STRIPES_MAX, Direction
from ledger.core.errors import (
    InvalidCommand,
    StripedAccount,
    UnknownAccount,
    UnknownAsset,
    UnknownStream,
    UnknownTransaction,
)
from ledger.core.events import Numbers, Recorded, Transaction, account_of, stripes_of
from ledger.core.lifecycle import HOLD, StateMachine
from ledger.core.money import Money
from ledger.storage import projector, repair, store
from ledger.storage.database import Connection, Row
from ledger.storage.store import EVENT_COLUMNS, TRANSACTION_COLUMNS, recorded_from, transaction_from

PAGE_MAX: Final = 1_000

EVENT_AT: Final = f"SELECT {EVENT_COLUMNS} FROM {{schema}}.events AS e WHERE e.stream = %s AND e.version = %s"

# A page is made of one page of each stream, which the primary key finds, however long their lives are.
HISTORY_FORWARD: Final = f"""
SELECT {EVENT_COLUMNS}
FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS s (stream, version, last) CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.events AS e
    WHERE e.stream = s.stream AND e.version > s.version ORDER BY e.version LIMIT %s
) AS e
WHERE e.version <= s.last
ORDER BY e.recorded_at, e.stream, e.version LIMIT %s
"""

HISTORY_BACKWARD: Final = f"""
SELECT {EVENT_COLUMNS}
FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS s (stream, version, last) CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.events AS e
    WHERE e.stream = s.stream AND e.version < least(s.version, s.last + 1) ORDER BY e.version DESC LIMIT %s
) AS e
ORDER BY e.recorded_at DESC, e.stream DESC, e.version DESC LIMIT %s
"""

TRANSACTIONS: Final = f"""
SELECT {TRANSACTION_COLUMNS} FROM {{schema}}.transactions AS t
WHERE t.transaction_id > %s::uuid {{wanted}} ORDER BY t.transaction_id LIMIT %s
"""

BY_REFERENCE: Final = "AND t.reference = %s"
BY_METADATA: Final = "AND t.metadata IS NOT NULL AND t.metadata::jsonb @> %s::jsonb"

# Only the first stream of an account bears its name.
ACCOUNTS: Final = """
SELECT a.account FROM {schema}.accounts AS a
WHERE a.account > %s AND strpos(a.account, '#') = 0 {wanted} ORDER BY a.account LIMIT %s
"""

OF_ASSET: Final = "AND a.asset = %s"
WITH_METADATA: Final = "AND a.metadata::jsonb @> %s::jsonb"

TRIAL_BALANCE: Final = """
SELECT a.asset, a.scale, a.account_type, count(*) FILTER (WHERE strpos(a.account, '#') = 0),
       sum(b.posted_debits)::text, sum(b.posted_credits)::text
FROM {schema}.accounts AS a JOIN {schema}.balances AS b ON b.stream = a.account
GROUP BY a.asset, a.scale, a.account_type ORDER BY a.asset, a.account_type
"""

REVERSALS: Final = """
SELECT t.transaction_id::text FROM {schema}.transactions AS t
WHERE t.kind = 'reverse' AND t.request ->> 'transaction_id' = %s ORDER BY t.recorded_at, t.transaction_id LIMIT 1000
"""

HOLDS: Final = f"""
SELECT {projector.LEG_COLUMNS} FROM unnest(%s::text[]) AS s (stream) CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.holds AS h
    WHERE h.account = s.stream AND h.hold_id > %s::uuid {{wanted}} ORDER BY h.hold_id LIMIT %s
) AS h
ORDER BY h.hold_id LIMIT %s
"""

_LEFT: Final = "h.captured + h.released + h.expired < h.amount"
_OF_STATUS: Final = {
    "open": f"AND {_LEFT}",
    "captured": f"AND NOT {_LEFT} AND h.captured > 0",
    "expired": f"AND NOT {_LEFT} AND h.captured = 0 AND h.expired > 0",
    "released": f"AND NOT {_LEFT} AND h.captured = 0 AND h.expired = 0",
}

HOLDS_DUE: Final = f"""
SELECT DISTINCT h.expires_at AT TIME ZONE 'UTC', h.hold_id::text FROM {{schema}}.holds AS h
WHERE (h.expires_at, h.hold_id) > (%s::timestamptz, %s::uuid) AND h.expires_at <= clock_timestamp()
  AND h.expires_at IS NOT NULL AND {_LEFT}
ORDER BY 1, 2 LIMIT %s
"""

STATE: Final = """
SELECT e.version, e.payload ->> 'target' FROM {schema}.events AS e
WHERE e.stream = %s AND e.type = 'state_advanced' ORDER BY e.version DESC LIMIT 1
"""

LEDGER_ID: Final = "SELECT ledger_id::text FROM {schema}.identity"

_LAST_VERSION: Final = 2**62
_FIRST_ID: Final = "00000000-0000-0000-0000-000000000000"
_FIRST_MOMENT: Final = "-infinity"
_CURSOR: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})*")
_CURSOR_MAX: Final = 19 * STRIPES_MAX

Due: TypeAlias = tuple[str, str]
"""When a hold expires, and which."""


class AccountLine(NamedTuple):
    """An account with its terms and balance."""

    account: str
    terms: Terms
    balance: Balance


class TransactionDetail(NamedTuple):
    """A transaction with its events in order, what it reverses, and what reverses it."""

    transaction: Transaction
    events: list[Recorded]
    reverses: str | None
    reversed_by: list[str]


class HoldLine(NamedTuple):
    """One side of a hold, as it stands; `left` is still pending."""

    hold: UUID
    account: str
    direction: Direction
    amount: Money
    captured: Money
    released: Money
    expired: Money
    left: Money
    expires_at: datetime | None
    state: str


class StreamState(NamedTuple):
    """Where something of the caller's own stands, and which events its machine allows next."""

    machine: str
    subject: str
    state: str
    version: int
    allowed: tuple[str, ...]


class TrialLine(NamedTuple):
    """Posted debits and credits of all accounts of one asset and type."""

    asset: str
    account_type: str
    accounts: int
    debits: Money
    credits: Money


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """
    All accounts, by asset and type.  In a sound ledger `difference` is zero for every asset.

    `position` is that of the feed which the answer is pinned to, if it is.
    """

    lines: tuple[TrialLine, ...]
    position: int | None = None

    @property
    def difference(self) -> dict[str, Money]:
        """Asset → debits less credits."""
        totals: dict[str, Money] = {}
        for line in self.lines:
            net = line.debits - line.credits
            totals[line.asset] = totals[line.asset] + net if line.asset in totals else net
        return totals

    @property
    def balanced(self) -> bool:
        """Whether debits equal credits in every asset."""
        return all(net.minor == 0 for net in self.difference.values())


class Page(list[Recorded]):
    """
    Events of an account in order, and `next`, from which the next page goes on in the same direction.

    They are of so many `streams`: more than one, if the account had stripes by then.  `position` is that of the feed
    which the answer is pinned to, if it is.
    """

    def __init__(self, events: Iterable[Recorded], next: str, streams: int, position: int | None = None) -> None:
        super().__init__(events)
        self.next = next
        self.streams = streams
        self.position = position


class Drift(Exception):
    """Projected rows that were not written by us; make them anew and ask again."""

    def __init__(self, streams: Sequence[str]) -> None:
        super().__init__(streams)
        self.streams = streams


def ledger_id(connection: Connection) -> str:
    """The id made at the first migration."""
    return str(connection.query(LEDGER_ID)[0][0])


def account(connection: Connection, name: str) -> Stream:
    """
    The head of an account, over all of its streams, each checked against its checksum.

    Raises:
        UnknownAccount: There is none.
        Drift: The projection is not what we wrote.
    """
    if account_of(name) != name:
        raise UnknownAccount(name)
    stream = _head(connection, name)
    if stream.terms is None:
        raise UnknownAccount(name)
    return stream


def _head(connection: Connection, name: str) -> Stream:
    """The head of an account, or of another stream; one that is nowhere stands at version 0."""
    stream = _heads(connection, [name])[name]
    if stream.terms is None and repair.out_of_step(connection, [name]):
        raise Drift([name])
    return stream


def _existing(connection: Connection, name: str) -> Stream:
    """The head of an account, or of another stream, of which there is an event."""
    stream = _head(connection, account_of(name))
    if not stream.version or account_of(name) != name:
        raise unknown(name)
    return stream


def _heads(connection: Connection, names: Sequence[str]) -> dict[str, Stream]:
    """
    The heads of accounts over all of their streams, from one snapshot; one that is nowhere stands at version 0.

    Raises:
        Drift: The projection is not what we wrote.
    """
    book, wanted = Book(""), list[str]()
    spans = wider = dict.fromkeys(names, 1)
    while wider:  # They are told by the rows themselves, and never become fewer: the second time is mostly the last.
        spans = spans | wider
        wanted = [stream for name in names for stream in stripes_of(name, spans[name])]
        book = Book("")
        if drifted := projector.load(book, connection.query(*projector.touch(wanted))):
            raise Drift(drifted)
        terms = {name: book.streams[name].terms for name in names if name in book.streams}
        wider = {name: its.streams for name, its in terms.items() if its is not None and its.streams > spans[name]}
    if missing := [stream for stream in wanted if stream not in book.streams and stream not in spans]:
        raise Drift(missing)
    return {name: together(name, book.all_of_account(name, spans[name])) for name in names}


def balance(connection: Connection, name: str, version: int | None = None) -> Balance:
    """
    The balance now, or right after `version`.

    Raises:
        UnknownAccount, Drift: As `account`.
        StripedAccount: No version of one stream is a version of the account.
        InvalidCommand: The account has no such version.
    """
    stream = account(connection, name)
    if version is None:
        return stream.balance
    terms = stream.terms
    assert terms is not None
    if terms.streams > 1:
        raise StripedAccount(name, "its stripes have a version each; ask for its balance as it is now")
    if version == 0:
        return Balance.from_numbers(name, terms, Numbers(), 0)
    rows = connection.query(EVENT_AT, (name, version)) if 0 < version <= stream.version else []
    if not rows:
        raise InvalidCommand("version", f"account {name} has versions 0 to {stream.version}, not {version}")
    event = recorded_from(rows[0])
    assert event.numbers is not None
    return Balance.from_numbers(name, terms, event.numbers, version)


def history(
    connection: Connection,
    name: str,
    after_version: int | str,
    before_version: int | str | None,
    limit: int,
    known: Mapping[str, int] | None = None,
) -> Page:
    """
    Events after a version going forward, or before one going backward; at most `limit`.

    Of each stream up to the version that is `known`, if that is said; of one that is not in it, none.

    Raises:
        UnknownAccount, UnknownStream, Drift: There is no such stream; the projection is not what we wrote.
        StripedAccount: No version of one stream is a version of the account; its pages are found by their `next`.
        InvalidCommand: That leads to no page.
    """
    places = begun(connection, name, after_version, before_version, limit, known)
    sql = HISTORY_FORWARD if before_version is None else HISTORY_BACKWARD
    streams, versions = store.text_array(places), store.plain_array(map(str, places.values()))
    last = [_LAST_VERSION if known is None else known.get(stream, 0) for stream in places]
    return page(connection.query(sql, (streams, versions, store.plain_array(map(str, last)), limit, limit)), places)


def begun(
    connection: Connection,
    name: str,
    after_version: int | str,
    before_version: int | str | None,
    limit: int,
    known: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """
    Stream → the version after which a page of `history` begins, or before which, in order.

    Where it is said what is `known`, none behind the last of it: what an answer says does not change with stripes that
    are made later.

    Raises:
        UnknownAccount, UnknownStream, StripedAccount, InvalidCommand, Drift: As `history`.
    """
    check_limit(limit)
    stream = _existing(connection, name)
    streams = stripes_of(name, 1 if stream.terms is None else stream.terms.streams)
    if known is not None:
        streams = streams[: 1 + max(map(streams.index, known), default=0)]
    if before_version is not None:
        # A stripe that is not in it was made since, and everything in it comes later.
        return _places(stream, streams, "before_version", before_version, unsaid=1)
    return _places(stream, streams, "after_version", after_version, unsaid=0)


def page(rows: Iterable[Row], places: Mapping[str, int]) -> Page:
    """The page of these events, which began at these places."""
    events = [recorded_from(row) for row in rows]
    reached = {**places, **{event.stream: event.version for event in events}}
    return Page(events, ".".join(map(str, reached.values())), len(places))


def stream(connection: Connection, name: str, after_version: int, limit: int) -> list[Recorded]:
    """The events of one stream, whichever it is, after a version; at most `limit`."""
    check_limit(limit)
    return [recorded_from(row) for row in connection.query(store.SELECT_STREAM, (name, after_version, limit))]


def unknown(name: str, known_as_of: str | None = None) -> UnknownAccount | UnknownStream:
    """There is no such account, or no such stream; or nothing was known of it by then."""
    machine, _, subject = name.removeprefix("#").partition("/")
    if name.startswith("#"):
        return UnknownStream(machine, subject, known_as_of)
    return UnknownAccount(name, known_as_of)


def streams_of(connection: Connection, name: str) -> list[str]:
    """
    The streams of an account, or another stream by itself.

    Raises:
        UnknownAccount, UnknownStream, Drift: There is none; the projection is not what we wrote.
    """
    terms = _existing(connection, name).terms
    return stripes_of(name, 1 if terms is None else terms.streams)


def _places(stream: Stream, streams: Sequence[str], field: str, version: int | str, unsaid: int) -> dict[str, int]:
    """Where a page begins in each stream of an account, in order: at a version, or where another page says."""
    if isinstance(version, str):
        if len(version) > _CURSOR_MAX or not _CURSOR.fullmatch(version):
            raise InvalidCommand(field, f"{version[:160]!r} is neither a version nor the `next` of a page")
        said = [int(each) for each in version.split(".")][: len(streams)]
        return dict(zip(streams, [*said, *[unsaid] * (len(streams) - len(said))], strict=True))
    if len(streams) > 1 and 0 < version <= stream.version:
        raise StripedAccount(stream.stream, "its stripes have a version each; go on from the `next` of a page")
    return dict.fromkeys(streams, version)


def transaction(connection: Connection, transaction_id: str) -> TransactionDetail:
    """
    A transaction with all its events.

    Raises:
        UnknownTransaction: There is none with this id.
    """
    found = store.recorded_transactions(connection, [_canonical_id(transaction_id)])
    if not found:
        raise UnknownTransaction(transaction_id)
    (events,) = store.events_of(connection, found)
    reverses = json.loads(found[0].request).get("transaction_id") if found[0].kind == "reverse" else None
    reversed_by = [name for (name,) in connection.query(REVERSALS, (found[0].transaction_id,))]
    return TransactionDetail(found[0], events, reverses, reversed_by)


def holds(connection: Connection, name: str, status: str | None, after: str | None, limit: int) -> list[HoldLine]:
    """
    The holds on an account in order of their id, in one status or in all.

    Raises:
        UnknownAccount, Drift: As `account`; a hold that is not what we wrote is drift as well.
    """
    check_limit(limit)
    if status is not None and status not in HOLD.states:
        raise InvalidCommand("status", f"{status!r} is none; a hold is {', '.join(HOLD.states)}")
    terms = account(connection, name).terms
    assert terms is not None
    streams = store.text_array(stripes_of(name, terms.streams))
    condition = "" if status is None else _OF_STATUS[status]
    first = _FIRST_ID if after is None else _canonical_id(after)
    rows = connection.query(HOLDS.replace("{wanted}", condition), (streams, first, limit, limit))
    book = Book("")
    if drifted := projector.load_legs(book, rows):
        raise Drift(drifted)
    legs = [leg for legs in book.holds.values() for leg in legs.values()]
    money = terms.money
    return [
        HoldLine(
            UUID(leg.hold),
            name,
            leg.direction,
            money(leg.amount),
            money(leg.captured),
            money(leg.released),
            money(leg.expired),
            money(leg.left),
            leg.expires_at,
            leg.state,
        )
        for leg in legs
    ]


def holds_due(connection: Connection, after: Due | None, limit: int) -> list[Due]:
    """Holds whose time is over and that are not yet expired, the oldest first, after one of them."""
    rows = connection.query(HOLDS_DUE, (*(after or (_FIRST_MOMENT, _FIRST_ID)), limit))
    return [(utc_text(store.in_utc(expires_at)), hold) for expires_at, hold in rows]


def scale(connection: Connection, asset: str) -> int:
    """
    The decimal places of an asset.

    Raises:
        UnknownAsset: It was never defined.
    """
    rows = connection.query(store.SELECT_SCALES, (store.text_array([asset]),))
    if not rows:
        raise UnknownAsset(asset)
    return int(rows[0][1])


def state(connection: Connection, machine: StateMachine, subject: str) -> StreamState:
    """
    Where something of the caller's own stands.

    Raises:
        UnknownStream: It was never begun.
    """
    stream = f"#{machine.name}/{subject}"
    rows = connection.query(STATE, (stream,))
    if not rows:
        raise UnknownStream(machine.name, subject)
    version, found = rows[0]
    return StreamState(machine.name, subject, found, version, machine.allowed(found))


def transactions(
    connection: Connection, reference: str | None, metadata: Mapping[str, Any] | None, after: str | None, limit: int
) -> list[Transaction]:
    """Transactions by reference, by metadata (all of the given pairs), or both; pages in order of id."""
    check_limit(limit)
    wanted = _wanted((BY_REFERENCE, reference), (BY_METADATA, _pairs(metadata)))
    if not wanted:
        raise InvalidCommand("transactions", "ask by reference, by metadata, or by both")
    conditions = " ".join(condition for condition, _ in wanted)
    parameters = (_FIRST_ID if after is None else _canonical_id(after), *(value for _, value in wanted), limit)
    rows = connection.query(TRANSACTIONS.replace("{wanted}", conditions), parameters)
    return [transaction_from(row) for row in rows]


def accounts(
    connection: Connection, asset: str | None, metadata: Mapping[str, Any] | None, after: str, limit: int
) -> list[AccountLine]:
    """Accounts in order of their id, with terms and balance."""
    check_limit(limit)
    wanted = _wanted((OF_ASSET, asset), (WITH_METADATA, _pairs(metadata)))
    conditions = " ".join(condition for condition, _ in wanted)
    parameters = (after, *(value for _, value in wanted), limit)
    rows = connection.query(ACCOUNTS.replace("{wanted}", conditions), parameters)
    return lines(connection, [name for (name,) in rows])


def lines(connection: Connection, names: Sequence[str]) -> list[AccountLine]:
    """These accounts, with terms and balance."""
    streams = _heads(connection, names)
    if missing := [name for name, stream in streams.items() if stream.version == 0]:
        raise Drift(missing)
    found = [(name, stream.terms, stream.balance) for name, stream in streams.items() if stream.terms is not None]
    return [AccountLine(*line) for line in found]


def trial_balance(connection: Connection) -> TrialBalance:
    """Posted debits and credits of all accounts, from one snapshot."""
    return TrialBalance(
        tuple(
            TrialLine(asset, kind, count, Money(int(debits), asset, scale), Money(int(credits), asset, scale))
            for asset, scale, kind, count, debits, credits in connection.query(TRIAL_BALANCE)
        )
    )


def _wanted(*conditions: tuple[str, str | None]) -> list[tuple[str, str]]:
    """The conditions that were asked for: only they become part of the statement, and of its plan."""
    return [(condition, value) for condition, value in conditions if value is not None]


def _pairs(metadata: Mapping[str, Any] | None) -> str | None:
    return canonical_json(dict(metadata)) if metadata else None


def _canonical_id(transaction_id: str) -> str:
    try:
        return str(UUID(transaction_id))
    except ValueError:
        raise InvalidCommand("transaction id", f"{transaction_id!r} is not a UUID") from None


def check_limit(limit: int) -> None:
    """Refuse a page without rows, or of more than PAGE_MAX."""
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidCommand("limit", f"a page has 1 to {PAGE_MAX} rows, not {limit}")
