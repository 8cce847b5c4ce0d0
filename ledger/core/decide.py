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
    terms = _terms_of([book.stream(account) for account, _, _ in legs])
    if command.expected_versions:
        _check_expected_versions(command, book)
    amounts = [_minor_units(amount, its) for (_, _, amount), its in zip(legs, terms, strict=True)]
    moved: dict[str, list[int]] = {}
    for (account, direction, money), its, amount in zip(legs, terms, amounts, strict=True):
        # An amount of another asset is refused below; it is no turnover of this account.
        if money.asset == its.asset:
            moved.setdefault(account, [0, 0])[direction is CREDIT] += amount
    for account, (debits, credits) in moved.items():
        _check_turnover(book.streams[account], debits, credits)
    for (account, _, money), its in zip(legs, terms, strict=True):
        if money.asset != its.asset:
            raise AssetMismatch(account, its.asset, money.asset)
    if isinstance(command, Post):
        _check_balanced(command, amounts, terms)
    for account, (debits, credits) in moved.items():
        _check_minimum(book.streams[account], debits, credits)
    for account, (debits, credits) in moved.items():
        _check_maximum(book.streams[account], debits, credits)
    return [
        EntryPosted(account, direction, its.asset, amount, entry)
        for entry, ((account, direction, _), its, amount) in enumerate(zip(legs, terms, amounts, strict=True))
    ]


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


def _minor_units(amount: Money, terms: Terms) -> int:
    """The amount in the account's precision; an amount of another asset is refused by the next rule."""
    if amount.asset != terms.asset or amount.scale == terms.scale:
        return amount.minor
    return amount.at_scale(terms.scale).minor


def _check_balanced(command: Post, amounts: Sequence[int], terms: Sequence[Terms]) -> None:
    totals: dict[str, list[int]] = {}
    for entry, amount in zip(command.entries, amounts, strict=True):
        totals.setdefault(entry.amount.asset, [0, 0])[entry.direction is CREDIT] += amount
    scales = {its.asset: its.scale for its in terms}
    for asset, (debits, credits) in totals.items():
        if debits != credits:
            scale = scales[asset]
            raise UnbalancedTransaction(asset, str(Money(debits, asset, scale)), str(Money(credits, asset, scale)))


def _check_turnover(stream: Stream, debits: int, credits: int) -> None:
    numbers = stream.numbers
    if numbers.posted_debits + debits > MINOR_MAX or numbers.posted_credits + credits > MINOR_MAX:
        terms = stream.terms
        assert terms is not None  # Checked to be open.
        amount = terms.money(max(debits, credits))
        raise InvalidAmount(str(amount), f"the turnover of {stream.stream} would have more than {DIGITS_MAX} digits")


# A limit stands in the way of moving towards it only: an account that is beyond it may always come back.


def _check_minimum(stream: Stream, debits: int, credits: int) -> None:
    terms = stream.terms
    if terms is None or terms.min_balance is None:
        return
    change = credits - debits if terms.normal is CREDIT else debits - credits
    posted_in, posted_out, _, pending_out = in_normal_direction(terms.normal, stream.numbers)
    free = posted_in - posted_out - pending_out - terms.min_balance
    if change < 0 and free + change < 0:
        raise InsufficientFunds(
            stream.stream,
            available=str(terms.money(free)),
            required=str(terms.money(-change)),
            minimum=str(terms.money(terms.min_balance)),
        )


def _check_maximum(stream: Stream, debits: int, credits: int) -> None:
    terms = stream.terms
    if terms is None or terms.max_balance is None:
        return
    change = credits - debits if terms.normal is CREDIT else debits - credits
    posted_in, posted_out, pending_in, _ = in_normal_direction(terms.normal, stream.numbers)
    # Money that is held for coming in counts as if it had come: a capture can then never break the limit.
    balance = posted_in - posted_out + pending_in + change
    if change > 0 and balance > terms.max_balance:
        raise LimitExceeded(
            stream.stream, balance=str(terms.money(balance)), maximum=str(terms.money(terms.max_balance))
        )


_RULES: Final[dict[type, Callable[..., list[Event]]]] = {
    DefineAsset: _define_asset,
    OpenAccount: _open_account,
    Post: _post,
    Transfer: _transfer,
    Deposit: _deposit,
    Withdraw: _withdraw,
}
