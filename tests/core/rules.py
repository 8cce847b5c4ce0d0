"""What the tables of rules are written in: a book with some past, commands in short, and rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from samples import LEDGER_ID

from ledger import AccountType, Command, Direction, Entry, Post, Rejected, Transfer
from ledger.core.book import Book, remember, replay
from ledger.core.commands import Deposit, Hold, OpenAccount, Reverse, Withdraw, build
from ledger.core.decide import Occasion, decide, recall
from ledger.core.events import AccountOpened, AccountStateChanged, AssetDefined, EntryPosted, Event, HoldPlaced
from ledger.core.money import MINOR_MAX
from ledger.lifecycle import shipped

DEBIT, CREDIT = Direction.DEBIT, Direction.CREDIT
ASSET, LIABILITY, EQUITY = AccountType.ASSET, AccountType.LIABILITY, AccountType.EQUITY

NOW: Final = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
LATER: Final = NOW + timedelta(days=7)
CLOSED_UNTIL: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""Before this moment the books of a row with `PeriodClosed` are closed."""

TRANSACTION: Final = "00000000-0000-7000-8000-0000000000aa"
"""What the transaction that is being decided will be called."""


def opened(
    account: str,
    account_type: AccountType = LIABILITY,
    asset: str = "USD",
    scale: int = 2,
    lowest: int | None = None,
    highest: int | None = None,
) -> AccountOpened:
    """An opening, unlimited unless stated; limits in minor units."""
    return AccountOpened(account, account_type, asset, scale, lowest, highest, {})


def posted(account: str, direction: Direction, amount: int, asset: str = "USD") -> EntryPosted:
    """Something that happened to an account before."""
    return EntryPosted(account, direction, asset, amount, 0)


def moved(*legs: tuple[str, Direction, int] | tuple[str, Direction, int, str]) -> list[Event]:
    """The events of one transaction, in order."""
    return [
        EntryPosted(account, direction, asset[0] if asset else "USD", amount, entry)
        for entry, (account, direction, amount, *asset) in enumerate(legs)
    ]


def frozen(account: str) -> AccountStateChanged:
    """An account that was frozen before."""
    return AccountStateChanged(account, "frozen", None)


def closed(account: str) -> AccountStateChanged:
    """An account that was closed before."""
    return AccountStateChanged(account, "closed", None)


def hold_id(number: int) -> str:
    """The id of a hold that a row places."""
    return f"00000000-0000-7000-8000-{number:012}"


def held(
    amount: int, debited: str, credited: str, number: int = 1, expires_at: datetime | None = None, asset: str = "USD"
) -> tuple[Event, Event]:
    """Both sides of a hold that was placed before."""
    return (
        HoldPlaced(debited, DEBIT, asset, amount, 0, hold_id(number), expires_at),
        HoldPlaced(credited, CREDIT, asset, amount, 1, hold_id(number), expires_at),
    )


GIVEN: tuple[Event, ...] = (
    AssetDefined("USD", 2),
    AssetDefined("EUR", 2),
    AssetDefined("PTS", 0),
    opened("world", EQUITY),
    opened("world:eur", EQUITY, "EUR"),
    opened("cash", ASSET, lowest=0),
    opened("alice", lowest=0),
    opened("bob", lowest=0),
    opened("capped", highest=100_00),
    opened("frozen"),
    frozen("frozen"),
    opened("points", asset="PTS", scale=0),
    opened("prize", asset="PTS", scale=0),
    opened("full"),
    posted("world", DEBIT, 100_00),
    posted("alice", CREDIT, 100_00),
    posted("full", CREDIT, MINOR_MAX),
)
"""
Alice has 100.00 USD of 0 or more, world (unlimited) gave them; bob and the till of cash have nothing.

`capped` takes at most 100.00, `frozen` is not open, and the turnover of `full` has all of its 38 digits.
"""


class Past(NamedTuple):
    """A transaction of before, to be taken up again; `reverses` names the one that it reversed."""

    transaction_id: str
    kind: str
    events: Sequence[Event]
    reverses: str | None = None


def book_of(*given: Event, past: Sequence[Past] = ()) -> Book:
    """The book after GIVEN, what the row adds, and the transactions that can be taken up again."""
    book = replay(Book(LEDGER_ID, machines={"payment": shipped("payment")}), (*GIVEN, *given))
    for transaction in past:
        replay(book, transaction.events)
        remember(book, *transaction)
    return book


def decided(command: Command, book: Book, now: datetime = NOW) -> list[Event]:
    """What the command makes happen."""
    return list(decide(command, book, Occasion(now, TRANSACTION)))


def transfer(amount: str, debited: str, credited: str, **more: object) -> Transfer:
    """`amount` from the debited to the credited account."""
    return build(Transfer, amount=amount, debit=debited, credit=credited, **more)


def deposit(amount: str, account: str, against: str, **more: object) -> Deposit:
    """`amount` more on the account."""
    return build(Deposit, account=account, amount=amount, against=against, **more)


def withdraw(amount: str, account: str, against: str, **more: object) -> Withdraw:
    """`amount` less on the account."""
    return build(Withdraw, account=account, amount=amount, against=against, **more)


def post(*entries: Entry, **more: object) -> Post:
    """A transaction of these entries."""
    return build(Post, entries=entries, **more)


def opening(account: str, asset: str = "USD", account_type: str = "liability", **more: object) -> OpenAccount:
    """An account to be opened."""
    return build(OpenAccount, account=account, asset=asset, account_type=account_type, **more)


def hold(amount: str, debited: str, credited: str, **more: object) -> Hold:
    """`amount` to be set aside on both accounts."""
    return build(Hold, amount=amount, debit=debited, credit=credited, **more)


def reverse(transaction_id: str, amount: str | None = None, **more: object) -> Reverse:
    """All that is left of a transaction, or a part, the other way round."""
    return build(Reverse, transaction_id=transaction_id, amount=amount, **more)


class Rejection(NamedTuple):
    """A row of a table: what a rule refuses, and in which words."""

    then: Rejected
    when: Command
    given: tuple[Event, ...] = ()
    past: tuple[Past, ...] = ()
    asked_before: Command | None = None
    """What the command's idempotency key was used for."""


class Acceptance(NamedTuple):
    """A row of the other table: what happens when no rule objects."""

    when: Command
    then: list[Event]
    given: tuple[Event, ...] = ()
    past: tuple[Past, ...] = ()


def rejected(row: Rejection) -> Rejected:
    """Ask as the writer does: what a key was used for comes before every other rule."""
    try:
        if row.asked_before is not None:
            recall(row.when, row.asked_before.request())
        happened = decided(row.when, book_of(*row.given, past=row.past))
    except Rejected as rejection:
        return rejection
    raise AssertionError(f"{row.when} was accepted: {happened}")


def check_rejection(row: Rejection) -> None:
    """The rule refuses, with the facts that a caller needs to act."""
    rejection = rejected(row)
    assert type(rejection) is type(row.then)
    assert rejection.fields == row.then.fields
    assert str(rejection) == str(row.then)
    assert not rejection.retryable


def check_acceptance(row: Acceptance) -> None:
    """No rule objects, exactly these events happen, and only when they are appended."""
    book = book_of(*row.given, past=row.past)
    before = book.copy()

    assert decided(row.when, book) == row.then

    for stream in set(book.streams) - set(before.streams):
        assert book.streams.pop(stream).version == 0
    assert book == before
    assert decided(row.when, book) == row.then
