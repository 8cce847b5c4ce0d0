"""Balances on the far side of a broker: whatever becomes of the messages, they end as the ledger's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import (
    Applied,
    CorruptLog,
    FeedEntry,
    Ledger,
    Message,
    Recorded,
    RemoteBalances,
    UndecodableMessage,
    UnknownAccount,
)
from ledger.order.decoders import cloudevents
from ledger.order.message import encode
from ledger.order.published import event_in, message_of, source_of

ACCOUNTS = ("world", "alice", "bob", "carol")


class Log:
    """The log on the other side, which counts how often it is asked; it may lag behind."""

    def __init__(self, entries: Iterable[FeedEntry]) -> None:
        self.events = [entry.event for entry in entries]
        self.asked = 0
        self.known = len(self.events)

    def refetch(self, stream: str, after: int) -> list[Recorded]:
        """A small page."""
        self.asked += 1
        found = [event for event in self.events[: self.known] if event.stream == stream and event.version > after]
        return found[:3]


@pytest.fixture
def entries(funded: Ledger) -> list[FeedEntry]:
    """A feed in which everything happens that changes a balance or the terms of an account."""
    ledger = funded
    ledger.open_account("carol", asset="USD", type="asset")
    hold = ledger.hold("10 USD", debit="alice", credit="bob")
    ledger.capture(hold, "4 USD")
    ledger.release(hold)
    done = ledger.transfer("3 USD", debit="carol", credit="world")
    ledger.reverse(done)
    ledger.freeze("bob")
    ledger.unfreeze("bob")
    ledger.change_account("alice", max_balance="1000 USD")
    for _ in range(5):
        ledger.transfer("1 USD", debit="world", credit="alice")
    ledger.stamp()
    return list(ledger.feed())


def test_feed_in_order_needs_no_log(funded: Ledger, entries: list[FeedEntry]) -> None:
    """Everything is applied, nothing is asked for, and each balance is what the ledger says."""
    log = Log(entries)
    remote = RemoteBalances(log.refetch)
    assert {remote.apply(entry) for entry in entries} == {Applied.APPLIED}
    assert {remote.apply(entry) for entry in entries} == {Applied.IGNORED}
    assert log.asked == 0
    for account in ACCOUNTS:
        assert remote.balance(account) == funded.balance(account)
    assert len(remote) == 5


def test_any_disturbance_ends_with_the_right_balances(funded: Ledger, entries: list[FeedEntry]) -> None:
    """Shuffled, doubled, lost: after the last event of a stream, or `catch_up`, it is as in the ledger."""
    expected = {account: funded.balance(account) for account in ACCOUNTS}
    messages = [message_of(entry, source_of("x")) for entry in entries]

    @settings(max_examples=150, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from(range(len(messages))), max_size=2 * len(messages)))
    def disturbed(chosen: list[int]) -> None:
        remote = RemoteBalances(Log(entries).refetch)
        latest: dict[str, int] = {}
        for number in chosen:
            message = messages[number]
            assert message.sequence is not None
            remote.apply(message)
            latest[message.stream] = max(latest.get(message.stream, 0), message.sequence)
            assert remote.version(message.stream) >= latest[message.stream]
        assert remote.behind == set()
        remote.catch_up(*ACCOUNTS)
        assert {account: remote.balance(account) for account in ACCOUNTS} == expected

    disturbed()


def test_gap_is_refetched(entries: list[FeedEntry]) -> None:
    """What is missing is asked for from where the balance stands, and only once."""
    log = Log(entries)
    remote = RemoteBalances(log.refetch)
    of_alice = [entry for entry in entries if entry.event.stream == "alice"]
    assert remote.apply(of_alice[0]) is Applied.APPLIED
    assert remote.apply(of_alice[3]) is Applied.REFETCHED
    asked = log.asked
    assert remote.version("alice") == len(of_alice)
    assert {remote.apply(entry) for entry in of_alice} == {Applied.IGNORED}
    assert log.asked == asked


def test_log_that_lags_behind(entries: list[FeedEntry]) -> None:
    """An event that a replica does not have yet is not made up: its stream is behind until it is asked again."""
    log = Log(entries)
    log.known = 0
    remote = RemoteBalances(log.refetch)
    of_alice = [entry for entry in entries if entry.event.stream == "alice"]
    assert remote.apply(of_alice[-1]) is Applied.BEHIND
    assert remote.behind == {"alice"}
    log.known = len(log.events)
    remote.catch_up("alice")
    assert remote.behind == set()
    assert remote.version("alice") == len(of_alice)


@pytest.mark.parametrize("change", [{"amount": 77}, {"prev_hash": b"x" * 32}, {"event_hash": b"x" * 32}])
def test_event_that_does_not_fit_is_not_believed(
    funded: Ledger, entries: list[FeedEntry], change: dict[str, Any]
) -> None:
    """Another amount than its numbers, another predecessor, another event of the same version: the log decides."""
    remote = RemoteBalances(Log(entries).refetch)
    for entry in entries:
        event = entry.event
        is_last = event.stream == "alice" and event.version == funded.balance("alice").version
        remote.apply(event._replace(**change) if is_last else event)
    remote.apply(next(entry for entry in reversed(entries) if entry.event.stream == "alice"))
    assert remote.balance("alice") == funded.balance("alice")


@pytest.mark.parametrize(
    "change",
    [{"schema": 9}, {"direction": "sideways"}, {"asset": None}, {"payload": {"x": 1}}, {"payload": "text"}],
    ids=str,
)
def test_message_that_cannot_be_read_is_fetched_from_the_log(
    funded: Ledger, entries: list[FeedEntry], change: dict[str, Any]
) -> None:
    """A message that was damaged on its way says nothing of the log, which is sound: its stream is fetched again."""
    remote = RemoteBalances(Log(entries).refetch)
    messages = [message_of(entry, source_of("x")) for entry in entries]
    damaged = next(message for message in messages if message.stream == "alice" and message.sequence == 2)
    assert isinstance(damaged.data, dict)
    for message in messages:
        if message is damaged:
            assert remote.apply(replace(damaged, data={**damaged.data, **change})) is Applied.REFETCHED
        else:
            remote.apply(message)
    assert remote.balance("alice") == funded.balance("alice")
    assert remote.behind == set()


def test_log_that_cannot_be_read(entries: list[FeedEntry]) -> None:
    """What the log itself answers must be an event, whatever was heard."""
    log = Log(entries)
    place = next(n for n, event in enumerate(log.events) if event.stream == "alice" and event.version == 2)
    log.events[place] = log.events[place]._replace(direction="sideways")
    with pytest.raises(CorruptLog) as corrupt:
        RemoteBalances(log.refetch).apply(log.events[place])
    assert (corrupt.value.stream, corrupt.value.version) == ("alice", 2)


def test_log_that_contradicts_itself(entries: list[FeedEntry]) -> None:
    """Where the log itself does not follow, that is an error, and no balance."""
    log = Log(entries)
    place = next(n for n, event in enumerate(log.events) if event.stream == "alice" and event.version == 2)
    log.events[place] = log.events[place]._replace(prev_hash=b"x" * 32)
    with pytest.raises(CorruptLog) as corrupt:
        RemoteBalances(log.refetch).catch_up("alice")
    assert (corrupt.value.stream, corrupt.value.version) == ("alice", 2)


def test_ledger_itself_is_a_log(funded: Ledger, entries: list[FeedEntry]) -> None:
    """A page of a stream is what `refetch` wants."""
    remote = RemoteBalances(lambda stream, after: funded.stream(stream, after, limit=2))
    remote.apply(entries[-1])
    remote.catch_up("alice")
    assert remote.balance("alice") == funded.balance("alice")


def test_account_of_several_streams_is_their_sum(entries: list[FeedEntry]) -> None:
    """Streams of an account are streams like any other, and its balance is what they add up to."""
    remote = RemoteBalances(lambda _stream, _after: [])
    for entry in entries:
        event = entry.event
        remote.apply(event)
        if event.stream == "alice":
            remote.apply(event._replace(stream="alice#01"))
    single = RemoteBalances(lambda _stream, _after: [])
    for entry in entries:
        single.apply(entry)
    assert remote.balance("alice").posted.minor == 2 * single.balance("alice").posted.minor
    assert remote.balance("alice").version == 2 * single.balance("alice").version


def test_account_that_was_not_heard_of() -> None:
    """There is no balance of what nobody has told."""
    remote = RemoteBalances(lambda _stream, _after: [])
    with pytest.raises(UnknownAccount):
        remote.balance("nobody")
    assert remote.version("nobody") == 0


def test_message_carries_the_whole_event(funded: Ledger, entries: list[FeedEntry]) -> None:
    """Written as a CloudEvent and read back it is the event as it is in the log, under its position and version."""
    source = source_of(str(funded.ledger_id))
    for entry in entries:
        message = message_of(entry, source)
        assert (message.id, message.stream, message.sequence) == (
            str(entry.position),
            entry.event.stream,
            entry.event.version,
        )
        (read,) = cloudevents(encode(message), [])
        assert isinstance(read, Message)
        assert event_in(read) == entry.event
        assert read == message


def test_payload_that_is_too_long_is_left_out(entries: list[FeedEntry]) -> None:
    """A message has a limit: what exceeds it is null, and the rest of the event is there."""
    entry = entries[0]
    long = entry._replace(event=entry.event._replace(payload='{"reason":"' + "x" * 70_000 + '"}'))
    message = message_of(long, "s")
    assert isinstance(message.data, dict)
    assert message.data["payload"] is None
    assert event_in(message).event_hash == entry.event.event_hash
    remote = RemoteBalances(Log(entries).refetch)
    assert remote.apply(message) is Applied.REFETCHED
    assert remote.version(entry.event.stream) > 0


def test_message_that_is_no_event(entries: list[FeedEntry]) -> None:
    """A command, or an event with something missing, is refused by name."""
    message = message_of(entries[0], "s")
    assert isinstance(message.data, dict)
    remote = RemoteBalances(lambda _stream, _after: [])
    broken = {key: value for key, value in message.data.items() if key != "event_hash"}
    for wrong in (replace(message, type="ledger.deposit"), replace(message, data=broken), replace(message, data=[])):
        with pytest.raises(UndecodableMessage):
            remote.apply(wrong)
