"""What a reconciliation came to: what is matched, what is only on one side and for how long, and the proof equation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from typing import Any, Final, NamedTuple

from ledger.audit.bank_statement import Currency
from ledger.audit.matching import Ambiguous, Differing, Rules
from ledger.core.canonical import canonical_json
from ledger.core.money import Money
from ledger.storage.reconciliations import Item

BUCKETS: Final = ((7, "0-7 days"), (30, "8-30 days"), (90, "31-90 days"))
"""The most days of each age, and its name."""

_OLDER: Final = "over 90 days"


class Settled(NamedTuple):
    """Entries that are the same money: by which decision, rule and actor; each by its name."""

    decision: int
    rule: str
    amount: int
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    actor: str


class Gap(NamedTuple):
    """
    A statement that does not open where what is before it closed, both in the account's normal direction.

    Before the first statement there is the ledger; before any other, the statement before it.
    """

    statement_id: str
    before: int
    opening: int

    @property
    def difference(self) -> int:
        """What no statement covers."""
        return self.opening - self.before


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """
    An account compared with a statement, up to the end of its last day in UTC.

    Amounts are minor units in the account's normal direction.  `pin` says which part of the log and of the decisions
    was looked at: given again, it leads to the same report by the same `rules`, with the same `sha256`.  `found` counts
    the matches that are new, and `recognised` says that the statement was here before.
    """

    account: str
    statement_id: str
    opens_on: date
    closes_on: date
    currency: Currency
    sides: str
    rules: Rules
    pin: str
    ledger_balance: int
    closing: int
    matched: Sequence[Settled]
    only_ours: Sequence[Item]
    only_theirs: Sequence[Item]
    differing: Sequence[Differing]
    ambiguous: Sequence[Ambiguous]
    given_up: Sequence[Item]
    gaps: Sequence[Gap]
    left_out: int = 0
    found: int = 0
    recognised: bool = False

    @property
    def equation(self) -> list[tuple[str, int]]:
        """From the ledger's balance to the statement's: what it takes, step by step."""
        return [
            ("ledger balance", self.ledger_balance),
            ("less only ours", -sum(item.amount for item in self.only_ours)),
            ("plus only theirs", sum(item.amount for item in self.only_theirs)),
            ("plus amounts that differ", sum(each.difference for each in self.differing)),
            ("plus not covered by statements", sum(gap.difference for gap in self.gaps)),
        ]

    @property
    def proved(self) -> bool:
        """Whether that comes to the statement's closing balance, to the last unit."""
        return sum(amount for _, amount in self.equation) == self.closing

    @property
    def reconciled(self) -> bool:
        """Whether nothing is left to explain."""
        left = (*self.only_ours, *self.only_theirs, *self.differing)
        return self.proved and not left and not any(gap.difference for gap in self.gaps)

    def age(self, item: Item) -> int:
        """For how many days an entry has been open at the end of the statement; 0 of one that comes after it."""
        return max((self.closes_on - item.day).days, 0)

    def ages(self, items: Sequence[Item]) -> dict[str, tuple[int, int]]:
        """How many of these entries are how old, and what they come to."""
        found = dict.fromkeys([*(name for _, name in BUCKETS), _OLDER], (0, 0))
        for item in items:
            name = next((name for most, name in BUCKETS if self.age(item) <= most), _OLDER)
            count, amount = found[name]
            found[name] = count + 1, amount + item.amount
        return found

    @property
    def sha256(self) -> str:
        """SHA-256 of all that it says, as canonical JSON."""
        return sha256(canonical_json(body(self)).encode()).hexdigest()


def body(report: Reconciliation) -> dict[str, Any]:
    """A report as plain JSON: what is the same whenever it is asked for with the same pin."""
    money = _money(report)
    return {
        "account": report.account,
        "statement": report.statement_id,
        "opens_on": report.opens_on.isoformat(),
        "closes_on": report.closes_on.isoformat(),
        "sides": report.sides,
        "rules": rules_json(report.rules),
        "pin": report.pin,
        "reconciled": report.reconciled,
        "equation": [{"term": term, "amount": money(amount)} for term, amount in report.equation],
        "closing": money(report.closing),
        "proved": report.proved,
        "matched": [
            {
                "decision": each.decision,
                "rule": each.rule,
                "amount": money(each.amount),
                "ours": list(each.ours),
                "theirs": list(each.theirs),
                "actor": each.actor,
            }
            for each in report.matched
        ],
        "only_ours": [_item(report, item) for item in report.only_ours],
        "only_theirs": [_item(report, item) for item in report.only_theirs],
        "amount_differs": [
            {
                "reference": each.reference,
                "ours": [_item(report, item) for item in each.ours],
                "theirs": [_item(report, item) for item in each.theirs],
                "difference": money(each.difference),
            }
            for each in report.differing
        ],
        "ambiguous": [
            {"rule": each.rule, "entry": each.item.name, "candidates": [item.name for item in each.candidates]}
            for each in report.ambiguous
        ],
        "given_up": [item.name for item in report.given_up],
        "not_covered": [
            {
                "statement": gap.statement_id,
                "before": money(gap.before),
                "opening": money(gap.opening),
                "difference": money(gap.difference),
            }
            for gap in report.gaps
        ],
        "ageing": {
            side: {name: {"entries": count, "amount": money(amount)} for name, (count, amount) in ages.items()}
            for side, ages in (
                ("only_ours", report.ages(report.only_ours)),
                ("only_theirs", report.ages(report.only_theirs)),
            )
        },
    }


def rules_json(rules: Rules) -> dict[str, Any]:
    """Rules as plain JSON, as they are recorded."""
    return {**rules._asdict(), "names": list(rules.names)}


def _money(report: Reconciliation) -> Any:
    asset, scale = report.currency
    return lambda minor: str(Money(minor, asset, scale))


def _item(report: Reconciliation, item: Item) -> dict[str, Any]:
    return {
        "entry": item.name,
        "day": item.day.isoformat(),
        "amount": str(report.currency.money(item.amount)),
        "references": list(item.names),
        "description": item.description,
        "days": report.age(item),
        "matched_later": item.later,
    }
