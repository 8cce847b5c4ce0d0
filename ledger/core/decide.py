"""The rules.  Pure: the same command and the same book give the same answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from ledger.core.book import Book, Stream, Terms, in_normal_direction
from ledger.core.commands import (
    Command,
    DefineAsset,
    Deposit,
    Direction,
    OpenAccount,
    Post,
    Transfer,
    Withdraw,
)
from ledger.core.errors import (
    AccountExists,
    AccountNotOpen,
    AssetExists,
    AssetMismatch,
    IdempotencyConflict,
    InsufficientFunds,
    InvalidAmount,
    LimitExceeded,
    UnbalancedTransaction,
    UnknownAccount,
    UnknownAsset,
    VersionConflict,
)
from ledger.core.events import AccountOpened, AssetDefined, EntryPosted, Event
from ledger.core.iso4217 import CURRENCIES
from ledger.core.money import DIGITS_MAX, MINOR_MAX, Money

DEBIT: Final = Direction.DEBIT
CREDIT: Final = Direction.CREDIT


def decide(command: Command, book: Book) -> list[Event]:
    """
    Decide what `command` makes happen, given the streams it touches.

    Nothing is recorded here: the caller appends the returned events, all or none, in the transaction
    that checks that `book` still holds.

    Raises:
        Rejected: A rule said no.  `Reason` lists the rules in checking order.
    """
    return _RULES[type(command)](command, book)


def recall(command: Command, recorded_request: str) -> None:
    """
    Check that `command` asks again for what its idempotency key was used for.

    Raises:
        IdempotencyConflict: It asks for something else; names the fields that differ.
    """
    request = command.request()
    if request == recorded_request:
        return
    now, then = json.loads(request), json.loads(recorded_request)
    differing = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    raise IdempotencyConflict(str(command.idempotency_key), differing)


def _define_asset(command: DefineAsset, book: Book) -> list[Event]:
    scale = book.assets.get(command.asset, CURRENCIES.get(command.asset))
    if scale is not None:
        raise AssetExists(command.asset, scale)
    _check_expected_versions(command, book)
    return [AssetDefined(command.asset, command.scale)]


def _open_account(command: OpenAccount, book: Book) -> list[Event]:
    events: list[Event] = []
    scale = book.assets.get(command.asset)
    if scale is None:
        scale = CURRENCIES.get(command.asset)
        if scale is None:
            raise UnknownAsset(command.asset)
        # A currency is defined at its first use, so that its scale comes from our log ever after.
        events.append(AssetDefined(command.asset, scale))
    if book.stream(command.account).version:
        raise AccountExists(command.account)
    _check_expected_versions(command, book)
    events.append(
        AccountOpened(
            account=command.account,
            account_type=command.account_type,
            asset=command.asset,
            scale=scale,
            min_balance=None if command.min_balance is None else command.min_balance.at_scale(scale).minor,
            max_balance=None if command.max_balance is None else command.max_balance.at_scale(scale).minor,
            metadata=command.metadata,
        )
    )
    return events


def _post(command: Post, book: Book) -> list[Event]:
    return _entries(command, [(entry.account, entry.direction, entry.amount) for entry in command.entries], book)


def _transfer(command: Transfer, book: Book) -> list[Event]:
    return _two_entries(command, command.debit, command.credit, book)


def _deposit(command: Deposit, book: Book) -> list[Event]:
    grows_by_debit = _normal(command, book) is DEBIT
    sides = (command.account, command.against) if grows_by_debit else (command.against, command.account)
    return _two_entries(command, *sides, book)


def _withdraw(command: Withdraw, book: Book) -> list[Event]:
    grows_by_debit = _normal(command, book) is DEBIT
    sides = (command.against, command.account) if grows_by_debit else (command.account, command.against)
    return _two_entries(command, *sides, book)


def _normal(command: Deposit | Withdraw, book: Book) -> Direction:
    """The side on which the account grows, of two accounts that can be posted to."""
    terms, _ = _terms_of([book.stream(command.account), book.stream(command.against)])
    return terms.normal


def _two_entries(command: Transfer | Deposit | Withdraw, debited: str, credited: str, book: Book) -> list[Event]:
    amount = command.amount
    return _entries(command, ((debited, DEBIT, amount), (credited, CREDIT, amount)), book)


def _entries(command: Command, legs: Sequence[tuple[str, Direction, Money]], book: Book) -> list[Event]:
    """Check a set of entries as a whole, one rule after the other: balances are judged by what all of them do."""
    streams = [book.stream(account) for account, _, _ in legs]
    terms = _terms_of(streams)
    if command.expected_versions:
        _check_expected_versions(command, book)
    amounts, turnovers = _turnovers(legs, streams, terms)
    for turnover in turnovers:
        turnover.check_digits()
    for (account, _, money), its in zip(legs, terms, strict=True):
        if money.asset != its.asset:
            raise AssetMismatch(account, its.asset, money.asset)
    if isinstance(command, Post):
        _check_balanced(command, amounts, terms)
    for turnover in turnovers:
        turnover.check_minimum()
    for turnover in turnovers:
        turnover.check_maximum()
    return [
        EntryPosted(account, direction, its.asset, amount, entry)
        for entry, ((account, direction, _), its, amount) in enumerate(zip(legs, terms, amounts, strict=True))
    ]


def _turnovers(
    legs: Sequence[tuple[str, Direction, Money]], streams: Sequence[Stream], terms: Sequence[Terms]
) -> tuple[list[int], list[_Turnover]]:
    """The amounts in their accounts' precision, and what they add up to for each account."""
    amounts = []
    turnovers: dict[str, _Turnover] = {}
    for (account, direction, money), stream, its in zip(legs, streams, terms, strict=True):
        amount = money.minor
        # An amount of another asset is refused by a later rule; it is no turnover of this account.
        if money.asset == its.asset:
            if money.scale != its.scale:
                amount = money.at_scale(its.scale).minor
            turnover = turnovers.get(account)
            if turnover is None:
                turnover = turnovers[account] = _Turnover(stream, its)
            if direction is DEBIT:
                turnover.debits += amount
            else:
                turnover.credits += amount
        amounts.append(amount)
    return amounts, list(turnovers.values())


def _terms_of(streams: Sequence[Stream]) -> list[Terms]:
    """The terms of accounts that all exist and are all open."""
    terms = []
    for stream in streams:
        if stream.terms is None:
            raise UnknownAccount(stream.stream)
        terms.append(stream.terms)
    for stream, its in zip(streams, terms, strict=True):
        if its.state != "open":
            raise AccountNotOpen(stream.stream, its.state)
    return terms


def _check_expected_versions(command: Command, book: Book) -> None:
    for account, expected in command.expected_versions.items():
        actual = book.stream(account).version
        if actual != expected:
            raise VersionConflict(account, expected, actual)


def _check_balanced(command: Post, amounts: Sequence[int], terms: Sequence[Terms]) -> None:
    totals: dict[str, list[int]] = {}
    for entry, amount in zip(command.entries, amounts, strict=True):
        totals.setdefault(entry.amount.asset, [0, 0])[entry.direction is CREDIT] += amount
    scales = {its.asset: its.scale for its in terms}
    for asset, (debits, credits) in totals.items():
        if debits != credits:
            scale = scales[asset]
            raise UnbalancedTransaction(asset, str(Money(debits, asset, scale)), str(Money(credits, asset, scale)))


class _Turnover:
    """What a transaction would add to one account, in minor units, and the rules about it."""

    __slots__ = ("credits", "debits", "stream", "terms")

    def __init__(self, stream: Stream, terms: Terms) -> None:
        self.stream = stream
        self.terms = terms
        self.debits = 0
        self.credits = 0

    @property
    def change(self) -> int:
        """By how much the balance would grow, in the account's normal direction."""
        return self.credits - self.debits if self.terms.normal is CREDIT else self.debits - self.credits

    def check_digits(self) -> None:
        """No total of the account may have more digits than the database has room for."""
        numbers = self.stream.numbers
        if numbers[0] + self.debits > MINOR_MAX or numbers[1] + self.credits > MINOR_MAX:
            amount = self.terms.money(max(self.debits, self.credits))
            problem = f"the turnover of {self.stream.stream} would have more than {DIGITS_MAX} digits"
            raise InvalidAmount(str(amount), problem)

    # A limit stands in the way of moving towards it only: an account that is beyond it may always come back.

    def check_minimum(self) -> None:
        """Nothing may be taken out beyond what is available."""
        minimum = self.terms.min_balance
        if minimum is None or self.change >= 0:
            return
        posted_in, posted_out, _, pending_out = in_normal_direction(self.terms.normal, self.stream.numbers)
        free = posted_in - posted_out - pending_out - minimum
        if free + self.change < 0:
            raise InsufficientFunds(
                self.stream.stream,
                available=str(self.terms.money(free)),
                required=str(self.terms.money(-self.change)),
                minimum=str(self.terms.money(minimum)),
            )

    def check_maximum(self) -> None:
        """Money that is held for coming in counts as if it had come: a capture can then never break the limit."""
        maximum = self.terms.max_balance
        if maximum is None or self.change <= 0:
            return
        posted_in, posted_out, pending_in, _ = in_normal_direction(self.terms.normal, self.stream.numbers)
        balance = posted_in - posted_out + pending_in + self.change
        if balance > maximum:
            raise LimitExceeded(
                self.stream.stream, balance=str(self.terms.money(balance)), maximum=str(self.terms.money(maximum))
            )


_RULES: Final[dict[type, Callable[..., list[Event]]]] = {
    DefineAsset: _define_asset,
    OpenAccount: _open_account,
    Post: _post,
    Transfer: _transfer,
    Deposit: _deposit,
    Withdraw: _withdraw,
}
