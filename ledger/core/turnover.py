"""What a transaction would add to each of its accounts, and the rules about that: digits and limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from ledger.core.book import Stream, Terms, in_normal_direction
from ledger.core.commands import Direction
from ledger.core.errors import InsufficientFunds, InvalidAmount, LimitExceeded
from ledger.core.money import DIGITS_MAX, MINOR_MAX, Money

DEBIT: Final = Direction.DEBIT
CREDIT: Final = Direction.CREDIT

Side: TypeAlias = tuple[str, Direction, Money]
"""An amount on one side of an account."""


class Turnover:
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

    def check_digits(self, event: str) -> None:
        """No total of the account may have more digits than the database has room for."""
        numbers = self.stream.numbers
        debits, credits = numbers[2:] if event == "hold" else numbers[:2]
        if max(debits + self.debits, credits + self.credits) > MINOR_MAX:
            amount = self.terms.money(max(self.debits, self.credits))
            problem = f"the turnover of {self.stream.account} would have more than {DIGITS_MAX} digits"
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
                self.stream.account,
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
                self.stream.account, balance=str(self.terms.money(balance)), maximum=str(self.terms.money(maximum))
            )


def turnovers_of(
    legs: Sequence[Side], streams: Sequence[Stream], terms: Sequence[Terms]
) -> tuple[list[int], list[Turnover]]:
    """The amounts in their accounts' precision, and what they add up to for each account."""
    amounts = []
    turnovers: dict[str, Turnover] = {}
    for (account, direction, money), stream, its in zip(legs, streams, terms, strict=True):
        amount = money.minor
        # An amount of another asset is refused by a later rule; it is no turnover of this account.
        if money.asset == its.asset:
            if money.scale != its.scale:
                amount = money.at_scale(its.scale).minor
            turnover = turnovers.get(account)
            if turnover is None:
                turnover = turnovers[account] = Turnover(stream, its)
            if direction is DEBIT:
                turnover.debits += amount
            else:
                turnover.credits += amount
        amounts.append(amount)
    return amounts, list(turnovers.values())
