"""The commands and queries that a ledger and its guests have in common, one method each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Generic, TypeAlias, TypedDict, TypeVar, Unpack
from uuid import UUID

import psycopg
import sqlalchemy
import sqlalchemy.orm
from pydantic import Field, TypeAdapter

from ledger.batch import Done, Outcome
from ledger.core.book import Balance
from ledger.core.commands import (
    AccountType,
    Advance,
    Begin,
    Capture,
    ChangeAccount,
    CloseAccount,
    ClosePeriod,
    Command,
    DefineAsset,
    Deposit,
    Entry,
    Freeze,
    Hold,
    OpenAccount,
    Post,
    Release,
    Reverse,
    Transfer,
    Unfreeze,
    Withdraw,
    build,
)
from ledger.core.errors import ConcurrencyError, DatabaseUnavailable, InvalidCommand, Rejected, UnknownMachine
from ledger.core.events import Recorded, Transaction
from ledger.core.fields import INTEGER_MAX, MOMENT, TEXT, Metadata, checked
from ledger.core.lifecycle import StateMachine
from ledger.core.money import Money
from ledger.storage import asof, queries
from ledger.storage.asof import KnownAsOf
from ledger.storage.database import Connection
from ledger.storage.statement import Statement, statement

Lender: TypeAlias = psycopg.Connection[Any] | sqlalchemy.Connection | sqlalchemy.orm.Session
"""What a guest can work on."""

Answer = TypeVar("Answer")
Did = TypeVar("Did")
"""What a command's answer is."""

Taken: TypeAlias = Done | UUID | str
"""A transaction that is taken up again: the answer to its command, or its id."""


NUMBER: Final = TypeAdapter(Annotated[int, Field(strict=True)])
POSITION: Final = TypeAdapter(Annotated[int, Field(strict=True, ge=0, le=INTEGER_MAX)])
METADATA: Final = TypeAdapter(Metadata)

_MAY_NOT_WRITE: Final = frozenset({"42501", "25006"})
"""No privilege; a server, or a session, that is read-only."""

_NAMED_MAX: Final = 10

MENDED_MAX: Final = 5
"""How often one question mends what has drifted, and is asked again."""


class Context(TypedDict, total=False):
    """
    What every command may carry beside its request.

    The same `idempotency_key` with the same request returns the original result; with another request it
    is an IdempotencyConflict.  `expected_versions` maps accounts to the version they must be at.
    """

    idempotency_key: str | None
    reference: str | None
    effective_at: datetime | None
    metadata: Mapping[str, str | int | bool]
    actor: str | None
    correlation_id: str | None
    causation_id: str | None
    expected_versions: Mapping[str, int]


class Commands(Generic[Did]):
    """Every command, one method each, by whoever carries them out; here, or behind a service."""

    def define_asset(self, asset: str, scale: int, **context: Unpack[Context]) -> Did:
        """Define something that can be counted, with its decimal places (0 to 18), once and for ever."""
        return self._one(build(DefineAsset, asset=asset, scale=scale, **context))

    def open_account(
        self,
        account: str,
        *,
        asset: str,
        type: AccountType | str,
        min_balance: Money | Decimal | int | str | None = None,
        max_balance: Money | Decimal | int | str | None = None,
        stripes: int = 1,
        **context: Unpack[Context],
    ) -> Did:
        """
        Open an account of one asset.

        Limits are of the available balance in the normal direction, in whole units of the asset; None
        means unlimited.  An account without limits may have up to 256 `stripes`, so that transactions which touch
        it do not wait for each other.
        """
        asked = {"account": account, "asset": asset, "account_type": type, "stripes": stripes}
        limits = {"min_balance": min_balance, "max_balance": max_balance}
        return self._one(build(OpenAccount, **asked, **limits, **context))

    def post(self, entries: Sequence[Entry], **context: Unpack[Context]) -> Did:
        """Post a transaction of 2 to 200 entries that balances per asset."""
        return self._one(build(Post, entries=tuple(entries), **context))

    def transfer(self, amount: str | Money, *, debit: str, credit: str, **context: Unpack[Context]) -> Did:
        """Debit one account and credit another."""
        return self._one(build(Transfer, amount=amount, debit=debit, credit=credit, **context))

    def deposit(self, account: str, amount: str | Money, *, against: str, **context: Unpack[Context]) -> Did:
        """Raise an account in its normal direction."""
        return self._one(build(Deposit, account=account, amount=amount, against=against, **context))

    def withdraw(self, account: str, amount: str | Money, *, against: str, **context: Unpack[Context]) -> Did:
        """Lower an account in its normal direction."""
        return self._one(build(Withdraw, account=account, amount=amount, against=against, **context))

    def hold(
        self,
        amount: str | Money,
        *,
        debit: str,
        credit: str,
        expires_at: datetime | None = None,
        **context: Unpack[Context],
    ) -> Did:
        """
        Set an amount aside: pending on both accounts, and not available any more.

        The answer, or its `transaction_id`, is what `capture` and `release` take.
        """
        sides = {"debit": debit, "credit": credit}
        return self._one(build(Hold, amount=amount, expires_at=expires_at, **sides, **context))

    def capture(
        self, hold: Taken, amount: str | Money | None = None, *, final: bool = False, **context: Unpack[Context]
    ) -> Did:
        """Post a part of a hold, or all that is left; `final` releases the rest."""
        return self._one(build(Capture, hold=_id_of(hold), amount=amount, final=final, **context))

    def release(self, hold: Taken, amount: str | Money | None = None, **context: Unpack[Context]) -> Did:
        """Give a part of a hold free again, or all that is left."""
        return self._one(build(Release, hold=_id_of(hold), amount=amount, **context))

    def reverse(
        self,
        transaction: Taken,
        amount: str | Money | None = None,
        *,
        reason: str | None = None,
        force: bool = False,
        **context: Unpack[Context],
    ) -> Did:
        """
        Post the opposite of a transaction: all that is not yet reversed of it, or a part.

        `amount` counts what the original debits; every entry is reversed in proportion, exactly or not at
        all.  `force` goes beyond the limits of the accounts, and is on record.
        """
        asked = {"transaction_id": _id_of(transaction), "amount": amount, "reason": reason, "force": force}
        return self._one(build(Reverse, **asked, **context))

    def freeze(self, account: str, *, reason: str | None = None, **context: Unpack[Context]) -> Did:
        """Refuse entries on an account; reversals, releases and expiries go on."""
        return self._one(build(Freeze, account=account, reason=reason, **context))

    def unfreeze(self, account: str, *, reason: str | None = None, **context: Unpack[Context]) -> Did:
        """Let entries on an account again."""
        return self._one(build(Unfreeze, account=account, reason=reason, **context))

    def close_account(self, account: str, *, reason: str | None = None, **context: Unpack[Context]) -> Did:
        """Close an account for good; only at zero, with nothing held."""
        return self._one(build(CloseAccount, account=account, reason=reason, **context))

    def change_account(
        self,
        account: str,
        *,
        min_balance: Money | str | None = None,
        max_balance: Money | str | None = None,
        stripes: int | None = None,
        reason: str | None = None,
        **context: Unpack[Context],
    ) -> Did:
        """
        Change an account's limits, `"unlimited"` included, all of its `metadata`, or its stripes.

        What is left out stays as it is; so do streams that are there already, when `stripes` are fewer.
        """
        asked = {"account": account, "stripes": stripes, "reason": reason}
        limits = {"min_balance": min_balance, "max_balance": max_balance}
        return self._one(build(ChangeAccount, **asked, **limits, **context))

    def close_period(self, until: datetime, *, reason: str | None = None, **context: Unpack[Context]) -> Did:
        """
        Let nothing be posted any more that is effective before `until`; records the trial balance as of then.

        `until` lies at least ten minutes back: what is being written may still belong to its time.
        """
        return self._one(build(ClosePeriod, until=until, reason=reason, **context))

    def begin(self, machine: StateMachine | str, subject: str, **context: Unpack[Context]) -> Did:
        """Begin something of your own, in the first state of its machine: `begin("payment", "p-1")`."""
        return self._one(build(Begin, machine=_name_of(machine), subject=subject, **context))

    def advance(self, machine: StateMachine | str, subject: str, event: str, **context: Unpack[Context]) -> Did:
        """Take it to its next state; refused where its machine does not allow the event."""
        return self._one(build(Advance, machine=_name_of(machine), subject=subject, event=event, **context))

    def _one(self, command: Command) -> Did:
        raise NotImplementedError


class Operations(Commands[Done]):
    """The commands and queries that a ledger and its guests have in common."""

    _machines: Mapping[str, StateMachine]

    def handle(
        self, commands: Sequence[Command], *, scope: str = "", atomic: bool = False, dry_run: bool = False
    ) -> list[Outcome]:
        """
        Carry out commands, at most 10,000, in one transaction; one outcome per command, in order.

        A rejection rejects its command alone, or all of them with `atomic`.  `dry_run` answers what would
        happen and writes nothing.  `scope` keeps the idempotency keys of different senders apart.
        """
        raise NotImplementedError

    def _mend(self, streams: Sequence[str]) -> None:
        raise NotImplementedError

    def _one(self, command: Command) -> Done:
        (outcome,) = self.handle([command])
        if isinstance(outcome, Rejected):
            raise outcome
        return outcome

    # Queries

    def balance(
        self,
        account: str,
        *,
        version: int | None = None,
        effective_as_of: datetime | None = None,
        known_as_of: KnownAsOf = None,
    ) -> Balance:
        """
        The balance of an account, now or right after one of its versions; or as of two times.

        `effective_as_of` counts what is effective by a moment, up to and with it; what is pending counts from when a
        hold was recorded until its end was, whenever either is effective.  `known_as_of`, a moment or a
        position of the feed, counts what was known by then, the position included: the answer has the `position` that
        it is pinned to, and is the same for ever.  Without it everything counts that was committed.  The `version` of
        such an answer is the last one that was known.

        A projection that was changed behind the ledger's back is rebuilt first.  The version of an account with
        stripes is how many events all of them have, and names no moment that could be asked for.

        Raises:
            UnknownAccount: There is no such account, or nothing was known of it by then.
            StripedAccount: It was asked for at a version, and has stripes.
            NotYetKnown: Something may still be stamped that was known by then.
            InvalidCommand: A version is no moment: one cannot be asked for with the other.
        """
        checked(TEXT, "account", account)
        effective, known = _times(effective_as_of, known_as_of)
        if version is not None:
            checked(NUMBER, "version", version)
            if (effective, known) != (None, None):
                raise InvalidCommand("version", "it says what was known: ask without effective_as_of and known_as_of")
        if (effective, known) == (None, None):
            return self._ask(lambda connection: queries.balance(connection, account, version))
        return self._ask(lambda connection: asof.balance(connection, account, effective, known))

    def statement(self, account: str, since: datetime, until: datetime, *, known_as_of: KnownAsOf = None) -> Statement:
        """
        What was posted to an account from `since` up to and without `until`, by when it is effective.

        It has the `opening` and the `closing` balance, and its lines when it is iterated: read from the log as they are
        wanted, so that memory stays flat.  With `known_as_of`, a moment or a position of the feed, it is of what was
        known by then, and the same for ever; without, of what is committed now.

        Raises:
            UnknownAccount: There is no such account, or nothing was known of it by then.
            NotYetKnown: Something may still be stamped that was known by then.
            CorruptLog: While it is iterated: its lines do not lead from its opening to its closing balance.
        """
        checked(TEXT, "account", account)
        start, end = checked(MOMENT, "since", since), checked(MOMENT, "until", until)
        known = known_then(known_as_of)
        return self._ask(lambda connection: statement(connection, self._lend, account, start, end, known))

    def history(
        self,
        account: str,
        *,
        after_version: int | str = 0,
        before_version: int | str | None = None,
        limit: int = 100,
        effective_as_of: datetime | None = None,
        known_as_of: KnownAsOf = None,
    ) -> queries.Page:
        """
        The events of an account, or of another stream (`#payment/p-1`, `$ledger`): a page of at most `limit`.

        Forward from `after_version`, oldest first; or, with `before_version`, backward from there, newest
        first.  The last event's version leads to the next page, and so does the page's `next`.

        Of an account with stripes it leads nowhere, and only `next` does: the version that was reached in each
        stripe, so that what is written between two pages is on one of them, and once.  Events come in the order of
        `recorded_at`, stripe and version.

        With `known_as_of`, a moment or a position of the feed, there is only what was known by then; and with
        `effective_as_of` what is effective by a moment, in the same order.  A page of that costs what is on it, and
        what was recorded on the other side of the moment than it is effective.

        Raises:
            UnknownAccount, UnknownStream: There is none, or nothing was known of it by then.
            StripedAccount: The account has stripes, and is asked for from a version of one.
            NotYetKnown: Something may still be stamped that was known by then.
            InvalidCommand: It is asked for in both directions.
        """
        checked(TEXT, "account", account)
        for name, place in (("after_version", after_version), ("before_version", before_version or 0)):
            _ = checked(TEXT, name, place) if isinstance(place, str) else checked(POSITION, name, place)
        checked(NUMBER, "limit", limit)
        if before_version is not None and after_version != 0:
            raise InvalidCommand("before_version", "it goes the other way than after_version: give one of the two")
        effective, known = _times(effective_as_of, known_as_of)
        asked = (account, after_version, before_version, limit)
        if (effective, known) == (None, None):
            return self._ask(lambda connection: queries.history(connection, *asked))
        return self._ask(lambda connection: asof.history(connection, *asked, effective, known))

    def stream(self, stream: str, after_version: int = 0, limit: int = 100) -> list[Recorded]:
        """
        The events of one stream after a version, as they are in the log: a page of at most `limit`.

        A stream is an account, one of its stripes (`world#01`), or any other; of one that does not exist there are
        none.  What `RemoteBalances` fetches again.
        """
        checked(TEXT, "stream", stream)
        checked(POSITION, "after_version", after_version)
        checked(NUMBER, "limit", limit)
        return self._ask(lambda connection: queries.stream(connection, stream, after_version, limit))

    def transaction(self, transaction_id: UUID | str) -> queries.TransactionDetail:
        """A transaction with all its events."""
        return self._ask(lambda connection: queries.transaction(connection, str(transaction_id)))

    def transactions(
        self,
        *,
        reference: str | None = None,
        metadata: Mapping[str, str | int | bool] | None = None,
        after: UUID | str | None = None,
        limit: int = 100,
    ) -> list[Transaction]:
        """Transactions with this reference, or whose metadata contains these pairs, or both; in order of id."""
        _check_criteria(limit, metadata, reference=reference)
        last = None if after is None else str(after)
        return self._ask(lambda connection: queries.transactions(connection, reference, metadata, last, limit))

    def account(self, account: str) -> queries.AccountLine:
        """An account with its terms and its balance, both as they are now."""
        checked(TEXT, "account", account)
        stream = self._ask(lambda connection: queries.account(connection, account))
        assert stream.terms is not None  # Or there would be no such account.
        return queries.AccountLine(account, stream.terms, stream.balance)

    def accounts(
        self,
        *,
        asset: str | None = None,
        metadata: Mapping[str, str | int | bool] | None = None,
        after: str = "",
        limit: int = 100,
    ) -> list[queries.AccountLine]:
        """Accounts in order of their id, with terms and balance: a page of at most `limit`."""
        checked(TEXT, "after", after)
        _check_criteria(limit, metadata, asset=asset)
        return self._ask(lambda connection: queries.accounts(connection, asset, metadata, after, limit))

    def holds(
        self, account: str, *, status: str | None = None, after: UUID | str | None = None, limit: int = 100
    ) -> list[queries.HoldLine]:
        """The holds on an account in order of their id: open, captured, released, expired, or all of them."""
        checked(TEXT, "account", account)
        _check_criteria(limit, None, status=status)
        last = None if after is None else str(after)
        return self._ask(lambda connection: queries.holds(connection, account, status, last, limit))

    def state(self, machine: StateMachine | str, subject: str) -> queries.StreamState:
        """
        Where something of your own stands: `.state`, `.version`, and the events that are `.allowed` next.

        Raises:
            UnknownStream: It was never begun.
            UnknownMachine: The ledger was not given this machine.
        """
        checked(TEXT, "machine", _name_of(machine))
        checked(TEXT, "subject", subject)
        known = self._machines.get(_name_of(machine))
        if known is None:
            raise UnknownMachine(_name_of(machine), sorted(self._machines))
        return self._ask(lambda connection: queries.state(connection, known, subject))

    def scale(self, asset: str) -> int:
        """
        The decimal places of an asset: an amount of 1250 minor units at scale 2 is 12.50.

        Raises:
            UnknownAsset: It was never defined.
        """
        checked(TEXT, "asset", asset)
        return self._ask(lambda connection: queries.scale(connection, asset))

    def trial_balance(
        self, *, effective_as_of: datetime | None = None, known_as_of: KnownAsOf = None
    ) -> queries.TrialBalance:
        """
        Debits and credits of all accounts, by asset and type; now, or as of two times, as `balance` is.

        As of another time an account of which nothing was effective, or known, is not there.  It may take as long as
        there are accounts: the database's own limit on a statement does not hold.

        Raises:
            NotYetKnown: Something may still be stamped that was known by then.
        """
        effective, known = _times(effective_as_of, known_as_of)
        if (effective, known) == (None, None):
            return self._ask(queries.trial_balance)
        with self._lend() as connection:
            return asof.trial_balance(connection, effective, known)

    def _ask(self, question: Callable[[Connection], Answer]) -> Answer:
        for _ in range(MENDED_MAX):
            try:
                return self._answer(question)
            except queries.Drift as drift:
                self._mend_if_allowed(drift.streams)
        raise ConcurrencyError("Projections drift as fast as they are rebuilt. Run `ledger verify`.")

    def _mend_if_allowed(self, streams: Sequence[str]) -> None:
        try:
            self._mend(streams)
        except DatabaseUnavailable as error:
            if error.sqlstate not in _MAY_NOT_WRITE:
                raise
            named = " ".join(streams[:_NAMED_MAX])
            raise DatabaseUnavailable(
                f"The projection has drifted from the log ({named}), and who may only read cannot mend it.",
                f"Somebody who may write has to run `ledger rebuild {named}`.",
                error.sqlstate,
            ) from error

    def _answer(self, question: Callable[[Connection], Answer]) -> Answer:
        raise NotImplementedError

    def _lend(self) -> AbstractContextManager[Connection]:
        """A connection in a transaction that may be read in for as long as it takes."""
        raise NotImplementedError


def _check_criteria(limit: int, metadata: Mapping[str, Any] | None, **texts: str | None) -> None:
    """Refuse what no page can be asked by."""
    checked(NUMBER, "limit", limit)
    if metadata is not None:
        checked(METADATA, "metadata", metadata)
    for name, text in texts.items():
        if text is not None:
            checked(TEXT, name, text)


def _times(effective: object, known: object) -> tuple[datetime | None, KnownAsOf]:
    """The two times of a question, each of which may be left out."""
    return None if effective is None else checked(MOMENT, "effective_as_of", effective), known_then(known)


def known_then(known: object) -> KnownAsOf:
    """
    A moment or a position of the feed, by which something was known; or nothing.

    Raises:
        InvalidCommand: It is neither.
    """
    if type(known) is int:
        return checked(POSITION, "known_as_of", known)
    return None if known is None else checked(MOMENT, "known_as_of", known)


def _id_of(taken: Taken) -> UUID | str:
    return taken.transaction_id if isinstance(taken, Done) else taken


def _name_of(machine: StateMachine | str) -> str:
    return machine.name if isinstance(machine, StateMachine) else machine
