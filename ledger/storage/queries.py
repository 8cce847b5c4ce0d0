"""Questions with typed answers: balances, history, transactions, accounts, trial balance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from ledger.core.book import Balance, Book, Stream, Terms
from ledger.core.commands import canonical_json
from ledger.core.errors import InvalidCommand, UnknownAccount
from ledger.core.events import Numbers, Recorded, Transaction
from ledger.core.money import Money
from ledger.storage import projector, store
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

LEDGER_ID: Final = "SELECT ledger_id::text FROM {schema}.identity"

_FIRST_ID: Final = "00000000-0000-0000-0000-000000000000"


class AccountLine(NamedTuple):
    """An account with its terms and balance."""

    account: str
    terms: Terms
    balance: Balance


class TransactionDetail(NamedTuple):
    """A transaction with its events in order."""

    transaction: Transaction
    events: list[Recorded]


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
    """A projected row was not written by us; make it anew and ask again."""

    def __init__(self, account: str) -> None:
        super().__init__(account)
        self.account = account


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
    book = Book("")
    drifted = projector.load(book, connection.query(*projector.touch([name])))
    stream = book.stream(name)
    if drifted:
        raise Drift(name)
    if stream.terms is None:
        if projector.out_of_step(connection, [name]):
            raise Drift(name)
        raise UnknownAccount(name)
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
    """Events after a version going forward, or before one going backward; at most `limit`."""
    _check_limit(limit)
    account(connection, name)
    if before_version is not None:
        rows = connection.query(HISTORY_BACKWARD, (name, before_version, limit))
    else:
        rows = connection.query(HISTORY_FORWARD, (name, after_version, limit))
    return [recorded_from(row) for row in rows]


def transaction(connection: Connection, transaction_id: str) -> TransactionDetail:
    """
    A transaction with all its events.

    Raises:
        InvalidCommand: There is none with this id.
    """
    found = store.recorded_transactions(connection, [_canonical_id(transaction_id)])
    if not found:
        raise InvalidCommand("transaction id", f"there is no transaction {transaction_id}")
    return TransactionDetail(found[0], *store.events_of(connection, found))


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
        raise Drift(drifted[0])
    if missing := [name for name in names if name not in book.streams]:
        raise Drift(missing[0])
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
