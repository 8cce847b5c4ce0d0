"""The simulation disturbs as it says, the same way every time, in bounded memory; and its bank is right in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from random import Random

import pytest

from ledger.order.disturb import (
    FOUR_CAUSES,
    WORLD,
    Cause,
    NaiveConsumer,
    account_name,
    banking,
    disturbed,
    duplication,
    loss,
    movement_of,
    parallel_workers,
    partition_rebalance,
    random_for,
    retry_queue,
    several_producers,
    shuffled,
    wrong,
)
from ledger.order.message import Message
from ledger.order.monitor import OrderMonitor

Disturbance = Callable[[Iterable[Message], Random], Iterator[Message]]

DISTURBANCES: list[Disturbance] = [
    duplication,
    loss,
    parallel_workers,
    partition_rebalance,
    retry_queue,
    several_producers,
    shuffled,
]
HOLDS_AT_MOST = {
    duplication: 1_000,
    loss: 0,
    parallel_workers: 8,
    partition_rebalance: 12 * 50,
    retry_queue: 1_000,
    several_producers: 300,
    shuffled: 1_000,
}


def sent(accounts: int = 500) -> Iterator[Message]:
    """The bank's messages, always the same."""
    return banking(accounts, random_for(1, "accounts"))


def names(messages: Iterable[Message]) -> list[str]:
    """The ids of messages."""
    return [message.id for message in messages]


def test_bank_in_order() -> None:
    """Every account gets its messages in order, the incident's first, and none is refused in that order."""
    consumer, monitor = NaiveConsumer(), OrderMonitor(start=1)
    for message in sent():
        assert consumer.handle(message)
        assert str(monitor.check(message.stream, message.sequence or 0)) == "in_order"

    assert consumer.rejected == 0
    assert sorted(consumer.balances) == [account_name(number) for number in range(1, 501)]
    assert min(consumer.balances.values()) >= 0
    first = [message for message in sent() if message.stream == "account-000007"]
    assert [movement_of(message)[1] for message in first[:2]] == [100_000, -80_000]
    assert first[0].data == {"account": "account-000007", "amount": "1000.00 USD", "against": WORLD}


def test_accounts_interleave() -> None:
    """Many accounts are busy at once, and no more than said."""
    busy: Counter[str] = Counter()
    most = 0
    for message in banking(200, Random(1), pairs=3, active=20):  # noqa: S311
        busy[message.stream] += 1
        most = max(most, sum(0 < count < 6 for count in busy.values()))

    assert most in range(15, 21)
    assert set(busy.values()) == {6}


def test_the_incident() -> None:
    """Withdrawal before deposit: the naive consumer refuses the one, and the account has 800 too much."""
    consumer, right = NaiveConsumer(), NaiveConsumer()
    deposit, withdrawal = banking(1, Random(1), pairs=1)  # noqa: S311
    assert [consumer.handle(message) for message in (withdrawal, deposit)] == [False, True]
    assert [right.handle(message) for message in (deposit, withdrawal)] == [True, True]

    assert (consumer.balances, right.balances) == ({"account-000001": 100_000}, {"account-000001": 20_000})
    assert wrong(consumer.balances, right.balances) == {"account-000001": 80_000}
    assert wrong(right.balances, right.balances) == {}


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_hurts(cause: Cause) -> None:
    """Each cause alone, as its defaults say, makes balances of the naive consumer wrong."""
    consumer, right = NaiveConsumer(), NaiveConsumer()
    for message in sent(3_000):
        right.handle(message)
    for message in disturbed(sent(3_000), [cause], seed=1):
        consumer.handle(message)

    assert len(wrong(consumer.balances, right.balances)) > 5


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_nothing_is_lost_or_made_up(disturb: Disturbance) -> None:
    """A disturbance changes the order; only loss loses, and only duplication and rebalances repeat."""
    before, after = Counter(names(sent())), Counter(names(disturb(sent(), Random(2))))  # noqa: S311

    assert (disturb is loss) == bool(before - after)
    assert (disturb in (duplication, partition_rebalance)) == bool(after - before)
    assert set(after) <= set(before)


@pytest.mark.parametrize("disturb", [each for each in DISTURBANCES if each is not loss])
def test_order_is_lost(disturb: Disturbance) -> None:
    """Each disturbance that is not loss brings messages behind later ones of their stream."""
    monitor = OrderMonitor(start=1)
    for message in disturb(sent(), Random(2)):  # noqa: S311
        monitor.check(message.stream, message.sequence or 0)

    assert monitor.stats().total.late + monitor.stats().total.duplicates > 0


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_memory_is_bounded(disturb: Disturbance) -> None:
    """A disturbance takes little more than it has given on, so that it keeps as many messages as it says."""
    taken = given = kept = 0

    def counted() -> Iterator[Message]:
        nonlocal taken
        for message in sent(2_000):
            taken += 1
            yield message

    repeated: Counter[str] = Counter()
    for message in disturb(counted(), Random(2)):  # noqa: S311
        repeated[message.id] += 1
        given += repeated[message.id] == 1
        kept = max(kept, taken - given)

    lost = taken - given
    assert kept - lost <= HOLDS_AT_MOST[disturb] + 1


def test_one_producer_keeps_order() -> None:
    """Among the messages of one producer nothing is overtaken, however its lag changes."""
    assert names(several_producers(sent(), Random(2), producers=1, every=50)) == names(sent())  # noqa: S311


def test_deterministic() -> None:
    """The same seed gives the same order, and another one another."""
    first = names(disturbed(sent(50), Cause, seed=1))

    assert first == names(disturbed(sent(50), Cause, seed=1))
    assert first != names(disturbed(sent(50), Cause, seed=2))


def test_lost_are_told() -> None:
    """What is lost is told, and is exactly what does not arrive."""
    lost: list[Message] = []
    arrived = names(disturbed(sent(2_000), [Cause.LOSS, *FOUR_CAUSES], seed=3, lost=lost.append))

    assert lost
    assert set(names(lost)) == set(names(sent(2_000))) - set(arrived)


def test_causes_draw_apart() -> None:
    """Leaving a cause out changes nothing about what the others draw."""
    with_loss: list[Message] = []
    alone: list[Message] = []
    names(disturbed(sent(), [Cause.LOSS, Cause.RETRY_QUEUE], seed=3, lost=with_loss.append))
    names(disturbed(sent(), [Cause.LOSS], seed=3, lost=alone.append))

    assert with_loss == alone
    assert names(disturbed(sent(), [], seed=3)) == names(sent())
