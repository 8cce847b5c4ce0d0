"""
The incident at any scale, on a real database: the same messages, in the same disturbed order, for two consumers.

The naive one keeps a balance in a plain table, does what arrives when it arrives, and refuses what exceeds the
balance.  The other one is the ledger's inbox.  Nothing here prints; every number was counted, or read back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Self

import psycopg

from ledger.application import Ledger
from ledger.core.commands import AccountType, OpenAccount
from ledger.core.errors import Rejected
from ledger.core.money import Money
from ledger.order.cursor import Strict, Tally
from ledger.order.disturb import ASSET, WORLD, Cause, account_name, banking, disturbed, movement_of, random_for, wrong
from ledger.order.message import Message
from ledger.storage.database import quoted_name
from ledger.storage.explained import in_our_words

SOURCE: Final = "bank"
TOGETHER: Final = 1_000
"""Messages that either consumer takes at once, at most."""

SAMPLES: Final = 40
"""How often both are compared with what should be, at most."""

_SCALE: Final = 2

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated."""

    accounts: int
    pairs: int
    causes: Collection[Cause]
    seed: int
    policy: Strict

    @property
    def messages(self) -> int:
        """How many are sent."""
        return self.accounts * self.pairs * 2


@dataclass(frozen=True, slots=True)
class Sample:
    """After so many deliveries: how many accounts were wrong, by how much altogether."""

    delivered: int
    naive_accounts: int
    naive_cents: int
    ledger_accounts: int
    ledger_cents: int


@dataclass(slots=True)
class Side:
    """How one of the two consumers fared."""

    accounts_wrong: int = 0
    cents_wrong: int = 0
    refused: int = 0
    waiting: int = 0
    """Accounts whose messages are not all in; they are behind, and say so."""

    first_wrong: int | None = None
    """The number of deliveries after which a comparison first showed an account to be wrong."""

    noticed: int | None = None
    """The number of deliveries after which this consumer itself first told that something was out of order."""

    seconds: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What was seen."""

    sent: int = 0
    delivered: int = 0
    lost: int = 0
    missing: int = 0
    """How many sequences the inbox says are missing."""

    naive: Side = field(default_factory=Side)
    ledger: Side = field(default_factory=Side)
    samples: list[Sample] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    repaired: int = 0
    """Naive balances that were made anew from the ledger's log."""

    naive_after_repair: int = 0
    """How many of them were wrong after that."""

    repair_seconds: float = 0.0
    sound: bool = False


def simulate(ledger: Ledger, url: str, plan: Plan, progress: Progress) -> Outcome:
    """
    Let it happen, in the schema of a ledger that is empty and for this alone.

    `url` is where the naive consumer connects; its table stands in the same schema.
    """
    truth = Truth()
    outcome = Outcome(sent=plan.messages)
    with Naive(url, ledger.schema, create=True) as naive:
        open_accounts(ledger, naive, plan, progress)
        inbox = ledger.inbox(SOURCE, plan.policy)
        size = min(TOGETHER, max(1, plan.messages // SAMPLES))
        every = max(1, plan.messages // size // SAMPLES)
        for number, together in enumerate(_deliveries(plan, truth, outcome, size), 1):
            began = time.perf_counter()
            naive.consume(together)
            between = time.perf_counter()
            received = inbox.receive(together)
            outcome.ledger.seconds += time.perf_counter() - between
            outcome.naive.seconds += between - began
            outcome.ledger.refused += sum(isinstance(each, Rejected) for _, each in received.outcomes)
            outcome.delivered += len(together)
            if outcome.ledger.noticed is None and _is_amiss(received.tally):
                outcome.ledger.noticed = outcome.delivered
            truth.delivered(together)
            if number % every == 0:
                _compare(naive, truth, outcome)
            progress("messages", outcome.delivered, plan.messages)
        _compare(naive, truth, outcome)
        outcome.naive.refused = naive.refusals()
        outcome.counters = inbox.stats().counters
        outcome.missing = sum(
            range_.last - range_.first + 1 for each in inbox.completeness() for range_ in each.missing
        )
        judge(naive, truth, outcome)
        outcome.repaired, outcome.repair_seconds = naive.repair()
        outcome.naive_after_repair = truth.wrong(naive)
    outcome.sound = ledger.verify().ok
    return outcome


class Truth:
    """What was sent for each account, and how much of it was delivered."""

    def __init__(self) -> None:
        self.after: dict[str, list[int]] = {}
        """The balance in cents after each message of an account, in the order in which they were sent."""

        self._arrived: dict[str, int] = {}

    def sent(self, message: Message) -> Message:
        """Note a message on its way out."""
        account, cents = movement_of(message)
        balances = self.after.setdefault(account, [0])
        balances.append(balances[-1] + cents)
        return message

    def delivered(self, messages: Sequence[Message]) -> None:
        """Note what arrived: a bit for each sequence."""
        for message in messages:
            assert message.sequence is not None
            self._arrived[message.stream] = self._arrived.get(message.stream, 0) | 1 << (message.sequence - 1)

    def due(self) -> dict[str, int]:
        """What the balance of each account should be, of which no message is missing among those that arrived."""
        whole = {name: arrived.bit_length() for name, arrived in self._arrived.items() if not arrived & (arrived + 1)}
        return {name: self.after[name][count] for name, count in whole.items()}

    def before_gaps(self) -> dict[str, int]:
        """What the balance of each account is before the first message that is missing."""
        return {name: balances[self._first(name)] for name, balances in self.after.items()}

    def incomplete(self) -> int:
        """How many accounts miss a message."""
        return sum(self._first(name) < len(balances) - 1 for name, balances in self.after.items())

    def wrong(self, naive: Naive) -> int:
        """How many naive balances are not those before the first message that is missing."""
        return len(wrong(naive.balances(), self.before_gaps()))

    def _first(self, name: str) -> int:
        """How many messages arrived before the first that did not."""
        arrived = self._arrived.get(name, 0)
        return (~arrived & (arrived + 1)).bit_length() - 1

    def in_the_end(self) -> dict[str, int]:
        """What the balances should be after everything that was sent."""
        return {name: balances[-1] for name, balances in self.after.items()}


class Naive:
    """A consumer as many are, on a table of its own."""

    def __init__(self, url: str, schema: str, *, create: bool = False) -> None:
        self._url = url
        self._schema = quoted_name(schema)
        self._create = create

    def __enter__(self) -> Self:
        with in_our_words():
            self._connection = psycopg.connect(self._url, autocommit=True)
            if self._create:
                self._run("CREATE TABLE {schema}.naive (account text PRIMARY KEY, cents bigint NOT NULL)")
                self._run("CREATE TABLE {schema}.naive_refusals (count bigint NOT NULL)")
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def open(self, names: Sequence[str]) -> None:
        """Give accounts a row each."""
        self._run("INSERT INTO {schema}.naive SELECT unnest(%s::text[]), 0", (list(names),))

    def consume(self, messages: Sequence[Message]) -> None:
        """Change balances, one message after the other, unless one would fall below zero."""
        changes = [(cents, account, cents) for account, cents in map(movement_of, messages)]
        sql = "UPDATE {schema}.naive SET cents = cents + %s WHERE account = %s AND cents + %s >= 0"
        with in_our_words(), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(self._sql(sql), changes)
            refused = len(changes) - cursor.rowcount
            cursor.execute(self._sql("INSERT INTO {schema}.naive_refusals VALUES (%s)"), (refused,))

    def refusals(self) -> int:
        """How many messages were refused."""
        ((count,),) = self._run("SELECT coalesce(sum(count), 0) FROM {schema}.naive_refusals").fetchall()
        return int(count)

    def balances(self) -> dict[str, int]:
        """All balances."""
        return dict(self._run("SELECT account, cents FROM {schema}.naive").fetchall())

    def balances_of_ledger(self) -> dict[str, int]:
        """The balances of the same accounts as the ledger projects them."""
        sql = """
        SELECT b.stream, (b.posted_credits - b.posted_debits)::bigint FROM {schema}.balances AS b
        JOIN {schema}.naive AS n ON n.account = b.stream
        """
        return dict(self._run(sql).fetchall())

    def repair(self) -> tuple[int, float]:
        """Make the balances anew from the ledger's log; how many differed, and how many seconds it took."""
        began = time.perf_counter()
        changed = self._run(
            """
            WITH logged AS (
                SELECT stream, sum(CASE direction WHEN 'credit' THEN amount ELSE -amount END) AS cents
                FROM {schema}.events WHERE type = 'entry_posted' GROUP BY stream
            )
            UPDATE {schema}.naive AS n SET cents = coalesce(l.cents, 0)
            FROM {schema}.naive AS o LEFT JOIN logged AS l ON l.stream = o.account
            WHERE o.account = n.account AND n.cents <> coalesce(l.cents, 0)
            """
        ).rowcount
        return changed, time.perf_counter() - began

    def _run(self, sql: str, parameters: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        with in_our_words():
            return self._connection.execute(self._sql(sql), parameters)

    def _sql(self, sql: str) -> bytes:
        return sql.replace("{schema}", self._schema).encode()


def open_accounts(ledger: Ledger, naive: Naive, plan: Plan, progress: Progress) -> None:
    ledger.open_account(WORLD, asset=ASSET, type="equity")
    nothing = Money(0, ASSET, _SCALE)
    names = [account_name(number) for number in range(1, plan.accounts + 1)]
    for start in range(0, len(names), TOGETHER):
        page = names[start : start + TOGETHER]
        ledger.handle(
            [
                OpenAccount(account=name, asset=ASSET, account_type=AccountType.LIABILITY, min_balance=nothing)
                for name in page
            ]
        )
        naive.open(page)
        progress("accounts", start + len(page), plan.accounts)


def _deliveries(plan: Plan, truth: Truth, outcome: Outcome, size: int) -> Iterator[list[Message]]:
    """What arrives, in the order in which it does, some at a time."""
    sent = banking(plan.accounts, random_for(plan.seed, "banking"), pairs=plan.pairs, source=SOURCE)

    def lost(_: Message) -> None:
        outcome.lost += 1

    arriving = disturbed(map(truth.sent, sent), plan.causes, plan.seed, lost=lost)
    while together := list(islice(arriving, size)):
        yield together


def _is_amiss(tally: Tally) -> bool:
    return bool(tally.out_of_order or tally.duplicates or tally.gaps_opened)


def _compare(naive: Naive, truth: Truth, outcome: Outcome) -> None:
    """Hold both against what should be, where nothing is missing among what arrived."""
    due = truth.due()
    off = [
        wrong({name: cents for name, cents in balances.items() if name in due}, due)
        for balances in (naive.balances(), naive.balances_of_ledger())
    ]
    for side, its in zip((outcome.naive, outcome.ledger), off, strict=True):
        if its and side.first_wrong is None:
            side.first_wrong = outcome.delivered
    outcome.samples.append(Sample(outcome.delivered, len(off[0]), _total(off[0]), len(off[1]), _total(off[1])))


def judge(naive: Naive, truth: Truth, outcome: Outcome) -> None:
    """In the end: the naive balances against all that was sent, the ledger's against all before the first gap."""
    right, kept = truth.in_the_end(), truth.before_gaps()
    off = wrong(naive.balances(), right)
    outcome.naive.accounts_wrong, outcome.naive.cents_wrong = len(off), _total(off)
    off = wrong(naive.balances_of_ledger(), kept)
    outcome.ledger.accounts_wrong, outcome.ledger.cents_wrong = len(off), _total(off)
    outcome.ledger.waiting = truth.incomplete()


def _total(off: Mapping[str, int]) -> int:
    return sum(map(abs, off.values()))
