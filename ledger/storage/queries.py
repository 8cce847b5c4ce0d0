"""Questions with typed answers: balances, history, transactions, accounts, trial balance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from ledger.core.book import Balance, Book, Stream, Terms
from ledger.core.canonical import canonical_json, utc_text
from ledger.core.commands import (
    Direction,
)
from ledger.core.errors import InvalidCommand, UnknownAccount, UnknownAsset, UnknownStream, UnknownTransaction
from ledger.core.events import Numbers, Recorded, Transaction
from ledger.core.lifecycle import HOLD, StateMachine
from ledger.core.money import Money
from ledger.storage import projector, repair, store
from ledger.storage.database import Connection
from ledger.storage.store import EVENT_COLUMNS, TRANSACTION_COLUMNS, recorded_from, transaction_from

PAGE_MAX: Final = 1_000

EVENT_AT: Final = f"SELECT {EVENT_COLUMNS} FROM {{schema}}.events AS e WHERE e.stream = %s AND e.version = %s"

HISTORY_FORWARD: Final = f"""
SELECT {EVENT_COLUMNS} FROM {{schema}}.events AS e
WHERE e.stream = %s AND e.version > %s ORDER BY e.version LIMIT %s
"""

HISTORY_BACKWARD: Final = f"""
SELECT {EVENT_COLUMNS} FROM {{schema}}.events AS e
WHERE e.stream = %s AND e.version < %s ORDER BY e.version DESC LIMIT %s
"""

TRANSACTIONS: Final = f"""
SELECT {TRANSACTION_COLUMNS} FROM {{schema}}.transactions AS t
WHERE t.transaction_id > %s::uuid {{wanted}} ORDER BY t.transaction_id LIMIT %s
"""

BY_REFERENCE: Final = "AND t.reference = %s"
BY_METADATA: Final = "AND t.metadata IS NOT NULL AND t.metadata::jsonb @> %s::jsonb"

ACCOUNTS: Final = """
SELECT a.account FROM {schema}.accounts AS a WHERE a.account > %s {wanted} ORDER BY a.account LIMIT %s
"""

OF_ASSET: Final = "AND a.asset = %s"
WITH_METADATA: Final = "AND a.metadata::jsonb @> %s::jsonb"

TRIAL_BALANCE: Final = """
SELECT a.asset, a.scale, a.account_type, count(*), sum(b.posted_debits)::text, sum(b.posted_credits)::text
FROM {schema}.accounts AS a JOIN {schema}.balances AS b ON b.stream = a.account
GROUP BY a.asset, a.scale, a.account_type ORDER BY a.asset, a.account_type
"""

REVERSALS: Final = """
SELECT t.transaction_id::text FROM {schema}.transactions AS t
WHERE t.kind = 'reverse' AND t.request ->> 'transaction_id' = %s ORDER BY t.recorded_at, t.transaction_id LIMIT 1000
"""

HOLDS: Final = f"""
SELECT {projector.LEG_COLUMNS} FROM {{schema}}.holds AS h
WHERE h.account = %s AND h.hold_id > %s::uuid {{wanted}} ORDER BY h.hold_id LIMIT %s
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

_FIRST_ID: Final = "00000000-0000-0000-0000-000000000000"
_FIRST_MOMENT: Final = "-infinity"

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
    """All accounts, by asset and type.  In a sound ledger `difference` is zero for every asset."""

    lines: tuple[TrialLine, ...]

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


class Drift(Exception):
    """Projected rows that were not written by us; make them anew and ask again."""

    def __init__(self, accounts: Sequence[str]) -> None:
        super().__init__(accounts)
        self.accounts = accounts


def ledger_id(connection: Connection) -> str:
    """The id made at the first migration."""
    return str(connection.query(LEDGER_ID)[0][0])


def account(connection: Connection, name: str) -> Stream:
    """
    The head of an account, checked against its checksum.

    Raises:
        UnknownAccount: There is none.
        Drift: The projection is not what we wrote.
    """
    stream = _head(connection, name)
    if stream.terms is None:
        raise UnknownAccount(name)
    return stream


def _head(connection: Connection, name: str) -> Stream:
    book = Book("")
    drifted = projector.load(book, connection.query(*projector.touch([name])))
    stream = book.stream(name)
    if drifted or (stream.terms is None and repair.out_of_step(connection, [name])):
        raise Drift([name])
    return stream


def balance(connection: Connection, name: str, version: int | None = None) -> Balance:
    """
    The balance now, or right after `version`.

    Raises:
        UnknownAccount, Drift: As `account`.
        InvalidCommand: The account has no such version.
    """
    stream = account(connection, name)
    if version is None:
        return stream.balance
    terms = stream.terms
    assert terms is not None
    if version == 0:
        return Balance.from_numbers(name, terms, Numbers(), 0)
    rows = connection.query(EVENT_AT, (name, version)) if 0 < version <= stream.version else []
    if not rows:
        raise InvalidCommand("version", f"account {name} has versions 0 to {stream.version}, not {version}")
    event = recorded_from(rows[0])
    assert event.numbers is not None
    return Balance.from_numbers(name, terms, event.numbers, version)


def history(
    connection: Connection, name: str, after_version: int, before_version: int | None, limit: int
) -> list[Recorded]:
    """
    Events after a version going forward, or before one going backward; at most `limit`.

    Raises:
        UnknownAccount, UnknownStream, Drift: There is no such stream; the projection is not what we wrote.
    """
    _check_limit(limit)
    if not _head(connection, name).version:
        machine, _, subject = name.removeprefix("#").partition("/")
        raise UnknownStream(machine, subject) if name.startswith("#") else UnknownAccount(name)
    if before_version is not None:
        rows = connection.query(HISTORY_BACKWARD, (name, before_version, limit))
    else:
        rows = connection.query(HISTORY_FORWARD, (name, after_version, limit))
    return [recorded_from(row) for row in rows]


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
    _check_limit(limit)
    if status is not None and status not in HOLD.states:
        raise InvalidCommand("status", f"{status!r} is none; a hold is {', '.join(HOLD.states)}")
    terms = account(connection, name).terms
    assert terms is not None
    condition = "" if status is None else _OF_STATUS[status]
    first = _FIRST_ID if after is None else _canonical_id(after)
    rows = connection.query(HOLDS.replace("{wanted}", condition), (name, first, limit))
    try:
        legs = [projector.leg_from(row) for row in rows]
    except ValueError as error:
        raise Drift([name]) from error
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
    _check_limit(limit)
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
    _check_limit(limit)
    wanted = _wanted((OF_ASSET, asset), (WITH_METADATA, _pairs(metadata)))
    conditions = " ".join(condition for condition, _ in wanted)
    parameters = (after, *(value for _, value in wanted), limit)
    names = [name for (name,) in connection.query(ACCOUNTS.replace("{wanted}", conditions), parameters)]
    book = Book("")
    if drifted := projector.load(book, connection.query(*projector.touch(names))):
        raise Drift(drifted)
    if missing := [name for name in names if name not in book.streams]:
        raise Drift(missing)
    streams = [book.stream(name) for name in names]
    return [AccountLine(stream.stream, stream.terms, stream.balance) for stream in streams if stream.terms is not None]


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


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidCommand("limit", f"a page has 1 to {PAGE_MAX} rows, not {limit}")
