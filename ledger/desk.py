"""What people decide about single entries of an account and of its statements, on record and one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Final, TypeVar

from ledger.audit.matching import key
from ledger.core.book import Terms
from ledger.core.commands import Direction
from ledger.core.errors import ConcurrencyError, DecidedAlready, InvalidCommand
from ledger.core.events import account_of
from ledger.core.fields import INTEGER_MAX, TEXT, checked
from ledger.storage import reconciliations
from ledger.storage.database import Connection, Database
from ledger.storage.reconciliations import OURS, THEIRS, Decision, Item, NewDecision, Overtaken, Staged

ATTEMPTS_MAX: Final = 10
"""How often it is looked again where somebody else decides about the same account."""

TOGETHER_MAX: Final = 200
"""Entries that a person matches in one decision."""

MIRRORED: Final = "mirrored"
SAME: Final = "same"

_ENTRY: Final = re.compile(r"(.+)#([0-9]{1,16})", re.DOTALL)

Answer = TypeVar("Answer")


def sign_of(sides: str, normal: Direction) -> int:
    """
    What a credit of the bank is to an account in its normal direction: 1, or -1.

    In the bank's books our account is what it owes us, so that its credit is our debit: `mirrored`.  A statement that
    is written from our side, as those of many payment processors and wallets are, is the `same`.
    """
    ours = Direction.DEBIT if sides == MIRRORED else Direction.CREDIT
    return 1 if ours is normal else -1


def overtaking(account: str, attempt: Callable[[], Answer]) -> Answer:
    """Try again where somebody else has decided about the account meanwhile."""
    for _ in range(ATTEMPTS_MAX):
        try:
            return attempt()
        except Overtaken:
            continue
    raise ConcurrencyError(f"Others decide about account {account} all the time. Nothing was recorded; try again.")


class ReconciliationDesk:
    """
    Where people decide about the entries of one account.

    An entry of ours is named STREAM#VERSION, one of a statement STATEMENT#NUMBER, as reports name them.  Of two who
    decide about the same entry at once, one is refused.
    """

    def __init__(self, database: Database, account: str, terms: Terms) -> None:
        self._database = database
        self._account = account
        self._terms = terms

    def match(self, ours: Sequence[str], theirs: Sequence[str], *, actor: str, reason: str) -> Decision:
        """
        Say that these entries are the same money.  They come to the same amount; one side may be empty, and then to 0.

        Raises:
            DecidedAlready: One of them is matched.
            InvalidCommand: There is no such entry, or they come to different amounts: post what is missing first.
        """
        places = _places(ours, theirs)
        return self._decide("match", "manual", places, actor, reason)

    def unmatch(self, decision: int, *, actor: str, reason: str) -> Decision:
        """
        Take a match back.  Its entries are open again, and no rule matches them any more: only a person does.

        Raises:
            DecidedAlready: It was taken back before.
            InvalidCommand: There is no such match.
        """
        if type(decision) is not int or not 0 < decision <= INTEGER_MAX:
            raise InvalidCommand("decision", f"{decision!r} is not the number of a decision")
        found = self.decisions(after=decision - 1, limit=1)
        if not found or found[0].number != decision or found[0].decision != "match":
            raise InvalidCommand("decision", f"account {self._account} has no match {decision}")
        places = [(side, origin, number) for side in (OURS, THEIRS) for origin, number in found[0].items[side]]
        return self._decide("unmatch", "manual", places, actor, reason, of=decision)

    def note(self, ours: Sequence[str] = (), theirs: Sequence[str] = (), *, actor: str, reason: str) -> Decision:
        """Write down something about entries, which changes nothing about them."""
        return self._decide("note", "manual", _places(ours, theirs), actor, reason)

    def decisions(self, *, after: int = 0, limit: int = 100) -> list[Decision]:
        """Everything that was decided about the account after a number, in order: a page of at most `limit`."""
        most = reconciliations.DECISIONS_PAGE
        if type(limit) is not int or not 1 <= limit <= most:
            raise InvalidCommand("limit", f"{limit!r} is not a number from 1 to {most:,}")
        if type(after) is not int or not 0 <= after <= INTEGER_MAX:
            raise InvalidCommand("after", f"{after!r} is not the number of a decision")
        return self._database.ask(partial(reconciliations.decisions, account=self._account, after=after, limit=limit))

    def statements(self) -> list[Staged]:
        """The statements of the account that are kept, in their order."""
        return self._database.ask(partial(reconciliations.statements, account=self._account))

    def _decide(
        self,
        decision: str,
        rule: str,
        places: Sequence[tuple[str, str, int]],
        actor: str,
        reason: str,
        of: int | None = None,
    ) -> Decision:
        who, why = said("actor", actor), said("reason", reason)

        def attempt() -> Decision:
            with self._database.connection() as connection, connection.transaction():
                last = reconciliations.last_decision(connection, self._account)
                found, settled = self._items(connection, places)
                known = reconciliations.generations(connection, self._account, places)
                items = [item._replace(generation=known[key(item)][0]) for item in found]
                if decision != "note":
                    self._check_open(items, known, of)
                amount = self._amount(connection, items) if decision == "match" else _sum(items, THEIRS)
                new = NewDecision(decision, rule, amount, items, settled, who, why)
                # Whoever has decided since `last` was read has taken its next number.
                reconciliations.decide(connection, self._account, last, [new])
            return self.decisions(after=last, limit=1)[0]

        return overtaking(self._account, attempt)

    def _amount(self, connection: Connection, items: Sequence[Item]) -> int:
        """What entries come to that are to be matched: the same on both sides, and none from before it all began."""
        kept = reconciliations.statements(connection, self._account)
        if not kept:
            raise InvalidCommand("match", f"account {self._account} was never reconciled; begin with a statement")
        for item in items:
            if item.side == OURS and item.day < kept[0].begins_on:
                raise InvalidCommand(
                    "ours",
                    f"{item.name} is of {item.day}, and reconciliation begins on {kept[0].begins_on}: it is covered by"
                    " the opening balance of the first statement",
                )
        mine, other = _sum(items, OURS), _sum(items, THEIRS)
        if mine != other:
            money = self._terms.money
            raise InvalidCommand(
                "match",
                f"ours come to {money(mine)}, theirs to {money(other)}: it differs by {money(other - mine)};"
                " post what is missing, and match that too",
            )
        return other

    def _items(self, connection: Connection, places: Sequence[tuple[str, str, int]]) -> tuple[list[Item], str]:
        """The entries at these places, and the last place among them."""
        ours = [(origin, number) for side, origin, number in places if side == OURS]
        theirs = [(origin, number) for side, origin, number in places if side == THEIRS]
        found_ours = reconciliations.our_entries(connection, self._terms.normal.value, ours) if ours else {}
        found_theirs = reconciliations.their_entries(connection, self._account, theirs) if theirs else {}
        items, last = [], ""
        for origin, number in ours:
            if account_of(origin) != self._account or (origin, number) not in found_ours:
                raise InvalidCommand("ours", f"{origin}#{number} is no entry of account {self._account}")
            day, amount = found_ours[origin, number]
            items.append(Item(OURS, origin, number, day, amount))
            last = max(last, day.isoformat())
        for origin, number in theirs:
            if (origin, number) not in found_theirs:
                raise InvalidCommand("theirs", f"{origin}#{number} is no entry of a statement of {self._account}")
            place, sides, amount = found_theirs[origin, number]
            items.append(Item(THEIRS, origin, number, date.min, amount * sign_of(sides, self._terms.normal)))
            last = max(last, place)
        return items, last

    @staticmethod
    def _check_open(
        items: Iterable[Item], known: Mapping[tuple[str, str, int], tuple[int, int]], of: int | None
    ) -> None:
        """Hold that what is to be matched is not, or that what is taken back is still matched by that decision."""
        for item in items:
            generation, decision = known[key(item)]
            matched = generation % 2 == 1
            if of is None and matched:
                raise DecidedAlready(item.name, f"is matched by decision {decision}")
            if of is not None and (not matched or decision != of):
                raise DecidedAlready(item.name, f"is not matched by decision {of} any more: see decision {decision}")


def said(name: str, text: str) -> str:
    """
    Who decides, or why.

    Raises:
        InvalidCommand: It is not said.
    """
    if not checked(TEXT, name, text):
        raise InvalidCommand(name, "say who decides, and why")
    return text


def _sum(items: Iterable[Item], side: str) -> int:
    return sum(item.amount for item in items if item.side == side)


def _places(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str, int]]:
    places = []
    for side, names in ((OURS, ours), (THEIRS, theirs)):
        if isinstance(names, str):
            raise InvalidCommand(side, f"name the entries in a list: [{names!r}]")
        for name in names:
            found = _ENTRY.fullmatch(name) if isinstance(name, str) else None
            if found is None or not 0 < int(found[2]) <= INTEGER_MAX:
                form = "STREAM#VERSION" if side == OURS else "STATEMENT#NUMBER"
                raise InvalidCommand(side, f"{name!r} is not {form}")
            places.append((side, checked(TEXT, side, found[1]), int(found[2])))
    if not 0 < len(places) <= TOGETHER_MAX:
        raise InvalidCommand("entries", f"a decision is about 1 to {TOGETHER_MAX} entries, not {len(places)}")
    if len(set(places)) < len(places):
        raise InvalidCommand("entries", "one is named twice")
    return places
