"""
The incident, made to measure: messages of a bank in the order in which they were sent, the ways in which they get out
of that order, and a consumer who trusts the order in which they arrive.

Every disturbance is a generator of its own that takes messages and gives them on otherwise: none is lost or made up
except by `loss` and `duplication` (and `partition_rebalance`, which repeats).  Each keeps a bounded number of messages,
however many pass, and the same random generator gives the same order again.

A *delay* is counted in messages: what is delayed by 100 arrives after the next 100 that were sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from heapq import heappop, heappush
from random import Random
from typing import Final
from zlib import crc32

from ledger.order.message import Message

DEPOSIT: Final = "ledger.deposit"
WITHDRAW: Final = "ledger.withdraw"
WORLD: Final = "world"
"""The account against which money comes in and goes out."""

ASSET: Final = "USD"
BEGIN: Final = datetime(2022, 1, 1, tzinfo=UTC)
FIRST_DEPOSIT_CENTS: Final = 1_000_00
FIRST_WITHDRAWAL_CENTS: Final = 800_00


def banking(
    accounts: int, rng: Random, *, pairs: int = 2, active: int = 1_000, source: str = "bank"
) -> Iterator[Message]:
    """
    What the customers of `accounts` accounts do, as it was sent: `pairs` times a deposit and then a withdrawal each.

    The first two are the incident's, 1000 USD in and 800 USD out; what follows is drawn.  No withdrawal asks for more
    than is there, so that in this order none is refused.  At most `active` accounts are busy at once, and memory is
    theirs.
    """
    busy: list[tuple[int, int, int]] = []  # Number of the account, messages sent, balance in cents.
    opened = sent = 0
    while opened < accounts or busy:
        while opened < accounts and len(busy) < active:
            opened += 1
            busy.append((opened, 0, 0))
        place = rng.randrange(len(busy))
        number, count, balance = busy[place]
        cents = _drawn(rng, count, balance)
        yield _movement(account_name(number), count + 1, cents, sent, source)
        sent += 1
        if count + 1 < 2 * pairs:
            busy[place] = (number, count + 1, balance + cents)
        else:
            busy[place] = busy[-1]
            busy.pop()


def account_name(number: int) -> str:
    """Give the name of the account with this number, from 1 on."""
    return f"account-{number:06d}"


class NaiveConsumer:
    """
    A consumer as many are: it does what arrives when it arrives, and refuses a withdrawal that exceeds the balance.

    Given every message once and in order it is right.
    """

    def __init__(self) -> None:
        self.balances: dict[str, int] = {}
        """In cents, by account."""

        self.processed = 0
        self.rejected = 0

    def handle(self, message: Message) -> bool:
        """Change the balance; False if the message was refused."""
        account, cents = movement_of(message)
        balance = self.balances.get(account, 0) + cents
        if balance < 0:
            self.rejected += 1
            return False
        self.balances[account] = balance
        self.processed += 1
        return True


def wrong(balances: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    """By how many cents each account is off that is not right."""
    accounts = dict.fromkeys([*right, *balances])
    off = {account: balances.get(account, 0) - right.get(account, 0) for account in accounts}
    return {account: cents for account, cents in off.items() if cents}


def movement_of(message: Message) -> tuple[str, int]:
    """The account that a message of `banking` concerns, and the cents that it adds to it."""
    data = message.data
    assert isinstance(data, dict)
    amount, _, _ = str(data["amount"]).partition(" ")
    cents = int(amount.replace(".", ""))
    return str(data["account"]), cents if message.type == DEPOSIT else -cents


# The four causes


def partition_rebalance(
    messages: Iterable[Message],
    rng: Random,
    *,
    partitions: int = 12,
    every: int = 500,
    in_flight: int = 50,
    uncommitted: int = 20,
    stall: int = 1_000,
) -> Iterator[Message]:
    """
    Partitions change hands: on average one of `partitions` every `every` messages.

    Its old consumer had fetched more than it processed, and its last commit was not where it was.  Either the commit
    ran ahead: then the new consumer goes on behind the next `in_flight` messages, which the old one still processes,
    `stall` messages later.  Or it lagged: then the new one begins with the last `uncommitted` messages again.  Each
    is as likely.  For each partition keeps `in_flight` and `uncommitted` messages.
    """
    processed = [deque[Message](maxlen=uncommitted) for _ in range(partitions)]
    fetched: dict[int, list[Message]] = {}
    stalled: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        partition = crc32(message.stream.encode()) % partitions
        waiting = fetched.get(partition)
        if waiting is not None and len(waiting) < in_flight:
            waiting.append(message)
        else:
            yield message
            processed[partition].append(message)
        if rng.random() * every < 1:
            lost = rng.randrange(partitions)
            if rng.random() < 1 / 2:
                yield from processed[lost]
            elif lost not in fetched:
                fetched[lost] = []
                heappush(stalled, (index + stall, lost))
        while stalled and stalled[0][0] <= index:
            yield from fetched.pop(heappop(stalled)[1])
    for _, partition in sorted(stalled):
        yield from fetched[partition]


def retry_queue(
    messages: Iterable[Message], rng: Random, *, failure: float = 0.01, delay_max: int = 1_000
) -> Iterator[Message]:
    """
    A share of `failure` of the messages fails at first, and is tried again from a queue, 1 to `delay_max` later.

    Keeps `delay_max` messages.
    """
    return _delayed((message, rng.randint(1, delay_max) if rng.random() < failure else 0) for message in messages)


def parallel_workers(messages: Iterable[Message], rng: Random, *, workers: int = 8) -> Iterator[Message]:
    """
    So many workers take the next message each, and are done when they are done, which is when it counts.

    How long one takes is drawn from an exponential distribution.  Keeps `workers` messages.
    """
    busy: list[tuple[float, int, Message]] = []
    now = 0.0
    for index, message in enumerate(messages):
        if len(busy) == workers:
            now, _, done = heappop(busy)
            yield done
        heappush(busy, (now + rng.expovariate(1.0), index, message))
    while busy:
        yield heappop(busy)[2]


def several_producers(
    messages: Iterable[Message], rng: Random, *, producers: int = 3, lag_max: int = 300, every: int = 2_000
) -> Iterator[Message]:
    """
    Any of several producers sends the next message, and each lags behind on its own, by 0 to `lag_max` messages.

    The messages of one producer stay in order.  Lags change every `every` messages.  Keeps `lag_max` messages.
    """
    return _delayed(_lagging(messages, rng, producers, lag_max, every))


# What comes on top


def loss(
    messages: Iterable[Message], rng: Random, *, rate: float = 0.001, lost: Callable[[Message], object] | None = None
) -> Iterator[Message]:
    """A share of `rate` of the messages never arrives; `lost` is told which.  Keeps none."""
    for message in messages:
        if rng.random() >= rate:
            yield message
        elif lost is not None:
            lost(message)


def duplication(
    messages: Iterable[Message], rng: Random, *, rate: float = 0.01, delay_max: int = 1_000
) -> Iterator[Message]:
    """A share of `rate` of the messages arrives again, 1 to `delay_max` later.  Keeps `delay_max` messages."""
    return _delayed(_repeated(messages, rng, rate, delay_max))


def shuffled(messages: Iterable[Message], rng: Random, *, window: int = 1_000) -> Iterator[Message]:
    """Any of the next `window` messages comes next.  Keeps `window` messages."""
    waiting: list[Message] = []
    for message in messages:
        waiting.append(message)
        if len(waiting) > window:
            place = rng.randrange(len(waiting))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            yield waiting.pop()
    rng.shuffle(waiting)
    yield from waiting


class Cause(StrEnum):
    """Why messages do not arrive as they were sent; in the order in which they act, from producer to consumer."""

    SEVERAL_PRODUCERS = "several_producers"
    LOSS = "loss"
    DUPLICATION = "duplication"
    PARTITION_REBALANCE = "partition_rebalance"
    RETRY_QUEUE = "retry_queue"
    PARALLEL_WORKERS = "parallel_workers"


FOUR_CAUSES: Final = (
    Cause.SEVERAL_PRODUCERS,
    Cause.PARTITION_REBALANCE,
    Cause.RETRY_QUEUE,
    Cause.PARALLEL_WORKERS,
)
"""Those of the incident: with them alone every message arrives."""


def disturbed(
    messages: Iterable[Message],
    causes: Iterable[Cause],
    seed: int,
    *,
    lost: Callable[[Message], object] | None = None,
) -> Iterator[Message]:
    """
    Deliver messages as they arrive when these causes act, each as its defaults say.

    Each cause draws from a generator of its own, so that leaving one out does not change what the others draw.
    """
    wanted = set(causes)
    arriving: Iterator[Message] = iter(messages)
    for cause in Cause:
        if cause in wanted:
            rng = random_for(seed, cause)
            arriving = loss(arriving, rng, lost=lost) if cause is Cause.LOSS else _DISTURB[cause](arriving, rng)
    return arriving


def random_for(seed: int, purpose: str) -> Random:
    """Give the random generator for one purpose: the same for the same seed, in every process."""
    return Random(f"{seed}/{purpose}")  # noqa: S311  (a simulation is to be repeated, not to be kept secret)


_DISTURB: Final[Mapping[Cause, Callable[[Iterable[Message], Random], Iterator[Message]]]] = {
    Cause.SEVERAL_PRODUCERS: several_producers,
    Cause.LOSS: loss,
    Cause.DUPLICATION: duplication,
    Cause.PARTITION_REBALANCE: partition_rebalance,
    Cause.RETRY_QUEUE: retry_queue,
    Cause.PARALLEL_WORKERS: parallel_workers,
}


def _drawn(rng: Random, count: int, balance: int) -> int:
    """The cents that an account's next message adds: deposits and withdrawals take turns."""
    if count == 0:
        return FIRST_DEPOSIT_CENTS
    if count == 1:
        return -FIRST_WITHDRAWAL_CENTS
    return -rng.randint(1, balance) if count % 2 else rng.randint(1, FIRST_DEPOSIT_CENTS)


def _movement(account: str, sequence: int, cents: int, sent: int, source: str) -> Message:
    return Message(
        source=source,
        id=f"{account}-{sequence}",
        type=DEPOSIT if cents > 0 else WITHDRAW,
        stream=account,
        sequence=sequence,
        time=BEGIN + timedelta(milliseconds=sent),
        data={"account": account, "amount": f"{abs(cents) // 100}.{abs(cents) % 100:02d} {ASSET}", "against": WORLD},
    )


def _delayed(sent: Iterable[tuple[Message, int]]) -> Iterator[Message]:
    """Deliver each message when as many more were sent as its delay says; of those due at once the older first."""
    waiting: list[tuple[int, int, Message]] = []
    for index, (message, delay) in enumerate(sent):
        heappush(waiting, (index + delay, index, message))
        while waiting and waiting[0][0] <= index:
            yield heappop(waiting)[2]
    while waiting:
        yield heappop(waiting)[2]


def _lagging(
    messages: Iterable[Message], rng: Random, producers: int, lag_max: int, every: int
) -> Iterator[tuple[Message, int]]:
    lags: list[int] = []
    earliest = [0] * producers
    for index, message in enumerate(messages):
        if index % every == 0:
            lags = [rng.randint(0, lag_max) for _ in range(producers)]
        producer = rng.randrange(producers)
        earliest[producer] = max(earliest[producer], index + lags[producer])
        yield message, earliest[producer] - index


def _repeated(messages: Iterable[Message], rng: Random, rate: float, delay_max: int) -> Iterator[tuple[Message, int]]:
    for message in messages:
        yield message, 0
        if rng.random() < rate:
            yield message, rng.randint(1, delay_max)
