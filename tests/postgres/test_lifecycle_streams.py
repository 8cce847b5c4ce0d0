"""A caller's own state machines in the event store: streams like any other, gapless, chained, and guarded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import psycopg
import pytest
from invariants import assert_sound

from ledger import (
    Command,
    Done,
    Ledger,
    StreamExists,
    TransitionRefused,
    UnknownAccount,
    UnknownMachine,
    UnknownStream,
)
from ledger.core.commands import Advance, Begin, build
from ledger.lifecycle import StateMachine, on

Tamper = Callable[..., None]

LAMP = StateMachine(
    "lamp",
    initial="dark",
    states=("dark", "lit", "broken"),
    final=("broken",),
    transitions=(
        on("switch", "dark", to="lit"),
        on("switch", "lit", to="dark"),
        on("drop", "dark", "lit", to="broken"),
    ),
)


@pytest.fixture
def workshop(ledger_url: str) -> Iterator[Ledger]:
    """A ledger that knows a machine of the application's own."""
    with Ledger.connect(ledger_url, machines=[LAMP]) as ledger:
        yield ledger


def test_payment_goes_its_way(ledger: Ledger, ledger_url: str) -> None:
    """Each step is an event of the stream, and says from where to where it led."""
    ledger.begin("payment", "p-1", actor="till")
    for event in ("authorise", "capture", "refund_part", "refund"):
        ledger.advance("payment", "p-1", event)
    stands = ledger.state("payment", "p-1")
    assert (stands.state, stands.version, stands.allowed) == ("refunded", 5, ())
    assert_sound(ledger, ledger_url)


def test_history_of_a_stream_is_asked_for_like_that_of_an_account(ledger: Ledger) -> None:
    """Which steps were taken, and by whom, page by page; and what the ledger's own stream says."""
    ledger.begin("payment", "p-1", actor="till")
    for event in ("authorise", "capture"):
        ledger.advance("payment", "p-1", event, actor="bank")
    steps = ledger.history("#payment/p-1")
    assert [json.loads(step.payload)["event"] for step in steps] == ["begin", "authorise", "capture"]
    assert [ledger.transaction(step.transaction_id).transaction.actor for step in steps] == ["till", "bank", "bank"]
    assert ledger.history("#payment/p-1", before_version=3, limit=1) == steps[1:2]
    for unknown in ("#payment/p-2", "#payment", "#"):
        with pytest.raises(UnknownStream):
            ledger.history(unknown)
    ledger.stamp()
    with pytest.raises(UnknownStream, match=r"^payment p-1 was not yet known by position 0: it was begun later"):
        ledger.history("#payment/p-1", known_as_of=0)
    with pytest.raises(UnknownStream, match=r"^payment p-2 was never begun"):
        ledger.history("#payment/p-2", known_as_of=0)
    with pytest.raises(UnknownAccount):
        ledger.history("payment/p-1")
    ledger.define_asset("POINTS", scale=0)
    assert [event.type for event in ledger.history("$ledger")] == ["asset_defined"]


def test_stream_that_is_sound_is_rebuilt_by_name(ledger: Ledger) -> None:
    """There is nothing to mend, and that is the answer; a stream that was never begun is unknown."""
    ledger.begin("payment", "p-1")
    assert ledger.rebuild("#payment/p-1") == []
    assert ledger.verify("#payment/p-1").ok
    with pytest.raises(UnknownStream):
        ledger.rebuild("#payment/p-2")


def test_refused_step_names_state_event_and_what_was_allowed(ledger: Ledger, ledger_url: str) -> None:
    """No refund before the charge; the refusal says what would have been possible, and nothing is recorded."""
    ledger.begin("payment", "p-1")
    ledger.advance("payment", "p-1", "authorise")
    with pytest.raises(TransitionRefused) as refused:
        ledger.advance("payment", "p-1", "refund")
    assert refused.value.fields == {
        "machine": "payment",
        "stream": "p-1",
        "state": "authorised",
        "event": "refund",
        "allowed": ["capture", "fail", "void"],
    }
    assert ledger.state("payment", "p-1").version == 2
    assert_sound(ledger, ledger_url)


def test_streams_are_begun_once_and_before_anything_else(ledger: Ledger) -> None:
    """What was never begun cannot advance or be asked for, what was begun cannot be begun again."""
    with pytest.raises(UnknownStream):
        ledger.advance("payment", "p-1", "authorise")
    with pytest.raises(UnknownStream):
        ledger.state("payment", "p-1")
    ledger.begin("payment", "p-1")
    with pytest.raises(StreamExists) as refused:
        ledger.begin("payment", "p-1")
    assert refused.value.state == "created"
    ledger.begin("trip", "p-1")
    with pytest.raises(UnknownMachine):
        ledger.begin("lamp", "l-1")


def test_machine_of_the_application_guards_its_streams(workshop: Ledger, ledger_url: str) -> None:
    """A machine that the application declares works as the shipped ones do, and its final state is final."""
    workshop.begin(LAMP, "hall")
    workshop.advance(LAMP, "hall", "switch")
    assert workshop.state(LAMP, "hall").state == "lit"
    done = workshop.advance("lamp", "hall", "drop")
    payload = json.loads(done.events[0].payload)
    assert (payload["source"], payload["target"], payload["fingerprint"]) == ("lit", "broken", LAMP.fingerprint())
    with pytest.raises(TransitionRefused) as refused:
        workshop.advance("lamp", "hall", "switch")
    assert refused.value.allowed == []
    assert_sound(workshop, ledger_url)


def test_steps_of_one_batch_follow_each_other(ledger: Ledger, ledger_url: str) -> None:
    """Within a batch each step is judged by where the ones before it led, over many streams."""
    subjects = [f"p-{number}" for number in range(20)]
    steps: list[Command] = [build(Begin, machine="payment", subject=subject) for subject in subjects]
    for event in ("authorise", "refund", "capture"):
        steps += [build(Advance, machine="payment", subject=subject, event=event) for subject in subjects]
    outcomes = ledger.handle(steps)
    assert [isinstance(outcome, Done) for outcome in outcomes] == [True] * 40 + [False] * 20 + [True] * 20
    assert {ledger.state("payment", subject).version for subject in subjects} == {3}
    assert_sound(ledger, ledger_url)


def test_repeated_step_is_replayed(workshop: Ledger) -> None:
    """The same key switches a lamp once, though twice would be allowed."""
    workshop.begin("lamp", "hall", idempotency_key="begin")
    first = workshop.advance("lamp", "hall", "switch", idempotency_key="on")
    second = workshop.advance("lamp", "hall", "switch", idempotency_key="on")
    assert second.replayed
    assert (second.transaction, second.events) == (first.transaction, first.events)
    assert workshop.begin("lamp", "hall", idempotency_key="begin").replayed
    assert workshop.state("lamp", "hall").state == "lit"


def test_step_and_money_share_their_fate(ledger: Ledger, ledger_url: str) -> None:
    """In the application's transaction a step that is refused can take the payment with it."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability")
    ledger.begin("payment", "p-1")
    with psycopg.connect(ledger_url) as connection:
        with ledger.join(connection, accounts=["alice", "world"]) as guest:
            guest.deposit("alice", "5 USD", against="world")
            with pytest.raises(TransitionRefused):
                guest.advance("payment", "p-1", "refund")
        connection.rollback()
    assert ledger.balance("alice").posted.minor == 0
    assert ledger.state("payment", "p-1").version == 1
    assert_sound(ledger, ledger_url)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            "UPDATE events SET payload = replace(payload::text, 'authorised', 'refunded')::json"
            " WHERE stream = '#payment/p-1' AND version = 2",
            id="changed",
        ),
        pytest.param("DELETE FROM events WHERE stream = '#payment/p-1' AND version = 2", id="taken out"),
        pytest.param("DELETE FROM events WHERE stream = '#payment/p-1' AND version = 3", id="cut off"),
    ],
)
def test_tampered_stream_is_found(ledger: Ledger, tamper: Tamper, damage: str) -> None:
    """The chain of a machine's stream breaks as that of an account does."""
    ledger.begin("payment", "p-1")
    ledger.advance("payment", "p-1", "authorise")
    ledger.advance("payment", "p-1", "capture")
    assert ledger.verify().ok
    tamper(damage)
    assert not ledger.verify().ok


def test_lost_head_is_rebuilt(ledger: Ledger, ledger_url: str, psql: psycopg.Connection[object]) -> None:
    """Where the projection of a stream is gone, its next step goes on from the log."""
    ledger.begin("payment", "p-1")
    ledger.advance("payment", "p-1", "authorise")
    psql.execute("DELETE FROM balances WHERE stream = '#payment/p-1'")
    ledger.advance("payment", "p-1", "capture")
    assert ledger.state("payment", "p-1").version == 3
    psql.execute("UPDATE balances SET version = 2 WHERE stream = '#payment/p-1'")
    assert [event.version for event in ledger.history("#payment/p-1")] == [1, 2, 3]
    assert_sound(ledger, ledger_url)
