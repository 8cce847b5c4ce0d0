"""The inbox: whatever order messages arrive in, each takes effect once, and in the order of its stream."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from itertools import count
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from invariants import assert_sound

from ledger import Done, InsufficientFunds, InvalidCommand, Ledger, Retry, Unordered
from ledger.inbox import Inbox
from ledger.intake import Delivery, Intake, totals
from ledger.order.cursor import Cursor, OnGap, Range, Status, Strict
from ledger.order.decoders import cloudevents
from ledger.order.message import Json, Message
from ledger.receiving import Handler
from ledger.storage import mailbox

Psql = psycopg.Connection[Any]

STREAMS = ("alice", "bob", "carol")
PATIENT = Strict(max_wait=timedelta(hours=1))
RUNS = count()


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """Customers who may not overdraw, and the world."""
    ledger.open_account("world", asset="USD", type="equity")
    for name in STREAMS:
        ledger.open_account(name, asset="USD", type="liability", min_balance=0)
    return ledger


def deposit(stream: str, sequence: int, amount: str = "10 USD", **more: Any) -> Message:
    """Money that comes in."""
    data: Json = {"account": stream, "amount": amount, "against": "world"}
    return Message("bank", f"{stream}-{sequence}", "ledger.deposit", stream, sequence, data=data, **more)


def withdrawal(stream: str, sequence: int, amount: str = "10 USD") -> Message:
    """Money that goes out."""
    data: Json = {"account": stream, "amount": amount, "against": "world"}
    return Message("bank", f"{stream}-{sequence}", "ledger.withdraw", stream, sequence, data=data)


def history(ledger: Ledger, stream: str) -> list[tuple[str | None, int | None]]:
    """What happened to an account, in order."""
    return [(event.direction, event.amount) for event in ledger.history(stream, after_version=1)]


def test_the_incident_does_not_happen(bank: Ledger) -> None:
    """The withdrawal overtakes its deposit, and waits for it: 200 in the end, and nothing refused."""
    inbox = bank.inbox("bank", PATIENT)
    first = inbox.receive([withdrawal("alice", 2, "800 USD")])
    assert first.outcomes == []
    assert [(gap.stream, gap.missing, gap.held, gap.status) for gap in inbox.gaps()] == [("alice", 1, 1, "waiting")]
    second = inbox.receive([deposit("alice", 1, "1000 USD")])
    assert [type(outcome) for _, outcome in second.outcomes] == [Done, Done]
    assert str(bank.balance("alice").posted) == "200.00 USD"
    assert inbox.gaps() == []
    counters = inbox.stats().counters
    assert (counters["received"], counters["processed"]) == (2, 2)
    assert (counters["gaps_opened"], counters["gaps_filled"]) == (1, 1)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_order_is_the_right_order(bank: Ledger, data: st.DataObject) -> None:
    """Any permutation with duplicates, in any batches, makes the same events per stream as in order, without loss."""
    source = f"bank-{next(RUNS)}"
    sent = [
        Message(source, f"{stream}-{n}", "ledger.deposit", stream, n, data=_request(stream, n))
        for stream in STREAMS
        for n in range(1, data.draw(st.integers(1, 6)) + 1)
    ]
    before = {stream: bank.balance(stream).version for stream in STREAMS}
    arriving = data.draw(st.permutations([*sent, *data.draw(st.lists(st.sampled_from(sent), max_size=6))]))
    inbox = bank.inbox(source, PATIENT)
    while arriving:
        size = data.draw(st.integers(1, len(arriving)))
        inbox.receive(arriving[:size])
        arriving = arriving[size:]
    for stream in STREAMS:
        amounts = [event.amount for event in bank.history(stream, after_version=before[stream])]
        assert amounts == [message.sequence for message in sent if message.stream == stream]
    assert inbox.gaps() == []


def _request(stream: str, minor: int) -> dict[str, Any]:
    return {"account": stream, "amount": f"0.{minor:02} USD", "against": "world"}


def test_rejection_is_an_outcome(bank: Ledger) -> None:
    """What the rules refuse, in its turn, is refused for good: the stream goes on."""
    inbox = bank.inbox("bank", PATIENT)
    received = inbox.receive([withdrawal("alice", 1), deposit("alice", 2), withdrawal("alice", 3)])
    assert [type(outcome) for _, outcome in received.outcomes] == [InsufficientFunds, Done, Done]
    assert inbox.receive([withdrawal("alice", 1)]).tally.duplicates == 1


def test_lost_message_stops_its_stream_only(bank: Ledger) -> None:
    """The streams with gaps wait, exactly; and the report names exactly what is missing."""
    inbox = bank.inbox("bank", PATIENT)
    inbox.receive([deposit(stream, n) for stream in STREAMS for n in range(1, 9) if (stream, n) not in LOST])
    assert [(gap.stream, gap.missing) for gap in inbox.gaps()] == [("alice", 3), ("carol", 1)]
    assert inbox.missing("alice") == [Range(3, 3), Range(6, 7)]
    assert inbox.missing("bob") == []
    assert inbox.missing("carol") == [Range(1, 1)]
    assert bank.balance("bob").posted.minor == 8_000
    inbox.receive([deposit(stream, n) for stream, n in LOST])
    assert inbox.gaps() == []
    assert {bank.balance(stream).posted.minor for stream in STREAMS} == {8_000}


LOST = [("alice", 3), ("alice", 6), ("alice", 7), ("carol", 1)]


def test_another_content_under_a_known_sequence_is_for_a_person(bank: Ledger, psql: Psql) -> None:
    """A producer that says two things under one number is not believed a second time, nor is it dropped."""
    inbox = bank.inbox("bank", PATIENT)
    inbox.receive([deposit("alice", 1)])
    assert inbox.receive([deposit("alice", 1, "99 USD")]).tally.conflicts == 1
    assert psql.execute("SELECT why, sequence FROM dead_letters").fetchall() == [("sequence_conflict", 1)]
    assert bank.balance("alice").posted.minor == 1_000


@pytest.mark.parametrize("on_gap", list(OnGap))
def test_waiting_ends_as_the_policy_says(bank: Ledger, psql: Psql, on_gap: OnGap) -> None:
    """A gap that outlasts its wait: the stream is parked, its messages set aside, or it goes on without."""
    inbox = bank.inbox("bank", Strict(max_wait=timedelta(0), on_gap=on_gap))
    inbox.receive([deposit("alice", 2), deposit("alice", 3)])
    inbox.tick()
    posted = bank.balance("alice").posted.minor
    assert posted == (2_000 if on_gap is OnGap.RELEASE else 0)
    assert [gap.status for gap in inbox.gaps()] == ([] if on_gap is OnGap.RELEASE else ["parked"])
    inbox.receive([deposit("alice", 1), deposit("alice", 2), deposit("alice", 3)])
    late = psql.execute("SELECT why FROM dead_letters WHERE state = 'open'").fetchall()
    assert late == ([("released",)] if on_gap is OnGap.RELEASE else [])
    assert bank.balance("alice").posted.minor == (2_000 if on_gap is OnGap.RELEASE else 3_000)


def test_message_that_fails_blocks_its_stream_only(bank: Ledger, psql: Psql) -> None:
    """It is tried in place; then it is a dead letter, and what waited behind it goes on, in order."""
    calls: list[str] = []

    def flaky(message: Message, connection: Psql) -> None:
        calls.append(message.id)
        connection.execute("SELECT 1 / 0" if message.sequence == 2 else "SELECT 1")

    inbox = bank.inbox(
        "shop", PATIENT, retry=Retry(attempts_max=3, delay=timedelta(0)), handlers={"shop.ordered": flaky}
    )
    sent = [Message("shop", f"{s}-{n}", "shop.ordered", s, n) for s in ("a", "b") for n in (1, 2, 3)]
    sent[4] = Message("shop", "b-2", "shop.ordered", "b", 4)
    received = inbox.receive(sent[:3])
    assert [message.id for message, _ in received.outcomes] == ["a-1"]
    assert [message.id for message, _ in received.failed] == ["a-2"]
    for _ in range(4):
        inbox.tick()
    assert calls == ["a-1", "a-2", "a-2", "a-2", "a-3"]
    assert psql.execute("SELECT why, message_id, attempts FROM dead_letters").fetchall() == [("failed", "a-2", 3)]
    assert inbox.gaps() == []


def test_unknown_type_is_never_lost(bank: Ledger, psql: Psql) -> None:
    """What nobody handles waits for a person, and says so."""
    inbox = bank.inbox("shop", PATIENT, retry=Retry(attempts_max=1), handlers={})
    inbox.receive([Message("shop", "x-1", "shop.ordered", "x", 1)])
    ((why, error),) = psql.execute("SELECT why, error FROM dead_letters").fetchall()
    assert why == "failed"
    assert "no handler" in error


def test_unordered_messages_take_effect_at_once_and_once(bank: Ledger) -> None:
    """Where order does not matter nothing waits, and an id counts once."""
    inbox = bank.inbox("bank", Unordered())
    sent = [deposit("alice", n) for n in (5, 3, 9)]
    received = inbox.receive([*sent, sent[0]])
    assert (received.tally.processed, received.tally.duplicates) == (3, 1)
    assert inbox.receive(sent).tally.duplicates == 3
    assert bank.balance("alice").posted.minor == 3_000


def test_consumers_of_the_same_streams(bank: Ledger, ledger_url: str) -> None:
    """Several consumers get the same shuffled messages at once: each takes effect once, in order."""
    sent = [deposit(stream, n, f"0.{n:02} USD") for stream in STREAMS for n in range(1, 41)]
    faults: list[BaseException] = []

    def consume(seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311  (a shuffle is no secret)
        mine = rng.sample(sent, len(sent))
        try:
            inbox = bank.inbox("bank", PATIENT)
            for start in range(0, len(mine), 15):
                inbox.receive(mine[start : start + 15])
        except BaseException as fault:  # noqa: BLE001  (a thread's fault is raised in the test)
            faults.append(fault)

    threads = [threading.Thread(target=consume, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert faults == []
    for stream in STREAMS:
        assert [amount for _, amount in history(bank, stream)] == list(range(1, 41))
    assert_sound(bank, ledger_url)


def test_effects_and_cursor_are_one_transaction(bank: Ledger, psql: Psql) -> None:
    """What fails to be kept has not happened either: sent again, it happens once."""
    psql.execute("ALTER TABLE inbox_counters ADD CONSTRAINT broken CHECK (count < 0) NOT VALID")
    inbox = bank.inbox("bank", PATIENT)
    with pytest.raises(Exception, match="broken"):
        inbox.receive([deposit("alice", 1)])
    assert bank.balance("alice").version == 1
    psql.execute("ALTER TABLE inbox_counters DROP CONSTRAINT broken")
    inbox.receive([deposit("alice", 1)])
    assert bank.balance("alice").posted.minor == 1_000


def outcomes(inbox: Inbox, messages: Sequence[Message]) -> list[object]:
    """What came of messages that were processed at once."""
    return [outcome for _, outcome in inbox.receive(messages).outcomes]


def test_long_backlog_is_worked_off(bank: Ledger) -> None:
    """A stream with more behind a gap than one transaction takes goes on until it is done."""
    inbox = bank.inbox("bank", PATIENT)
    inbox.receive([deposit("alice", n, "0.01 USD") for n in range(2, 2_502)])
    assert inbox.stats().held == 2_500
    assert len(outcomes(inbox, [deposit("alice", 1, "0.01 USD")])) == 2_501
    assert bank.balance("alice").posted.minor == 2_501
    assert inbox.stats().held == 0


def test_transports_are_told_counts_however_much_was_waiting(bank: Ledger) -> None:
    """A message that sets a million going leaves no million outcomes in memory: counts, and what was rejected."""
    inbox = bank.inbox("bank", PATIENT)
    inbox.receive([withdrawal("alice", 2, "999 USD"), *(deposit("alice", n) for n in range(3, 1_503))])
    received = Intake([inbox], cloudevents).take([Delivery([deposit("alice", 1)], [])])
    assert len(received) > 1
    assert (totals(received)["processed"], totals(received)["rejected"]) == (1_502, 1)
    assert [message.sequence for each in received for message, _ in each.outcomes] == [2]


@pytest.mark.parametrize("wanted", ["BY_SEQUENCE", "BY_ID"])
def test_what_is_looked_up_does_not_cost_more_in_a_long_stream(bank: Ledger, psql: Psql, wanted: str) -> None:
    """Before PostgreSQL knows anything of its tables, too, a message is found without reading others of its stream."""
    bank.inbox("bank", Strict(timedelta(days=1))).receive([deposit("alice", n) for n in range(2, 402)])
    names = [deposit("alice", 300).id] if wanted == "BY_ID" else [300]
    psql.execute("SET enable_seqscan = off")
    sql = "EXPLAIN (ANALYZE, FORMAT JSON) " + getattr(mailbox, wanted).replace("{schema}.", "")
    ((((plan,),)),) = psql.execute(sql.encode(), (["alice"], names, "bank")).fetchall()
    assert plan["Plan"]["Actual Rows"] == 1
    assert rows_passed_over(plan["Plan"]) == 0


def test_cursors_move_at_the_same_cost_in_the_plan_of_the_first_minute(bank: Ledger, psql: Psql) -> None:
    """A plan that was made, as the ledger's are, while there was one stream reads none in vain when there are many."""
    psql.execute("VACUUM (ANALYZE) inbox_streams")
    psql.execute("SET plan_cache_mode = force_generic_plan")
    inbox = bank.inbox("bank", Strict(timedelta(days=1)))
    streams = [f"stream-{n}" for n in range(400)]
    inbox.receive([deposit(stream, 2) for stream in streams[:5]])
    numbers = count(1)
    move = re.sub("%s", lambda _: f"${next(numbers)}", mailbox.MOVE_CURSORS.replace("{schema}.", ""))
    psql.execute(f"PREPARE move AS {move}")
    execute = f"EXECUTE move ({', '.join(['%s'] * (next(numbers) - 1))})"
    client = psycopg.ClientCursor(psql)
    client.execute(execute, moved(streams[:5], revision=1))
    inbox.receive([deposit(stream, 2) for stream in streams[5:]])
    client.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {execute}", moved(streams[5:], revision=1))
    ((((plan,),)),) = client.fetchall()
    assert rows_passed_over(plan["Plan"]) == 0
    assert psql.execute("SELECT DISTINCT revision FROM inbox_streams").fetchall() == [(2,)]


def moved(streams: Sequence[str], revision: int) -> Sequence[Any] | Mapping[str, Any]:
    """The parameters that move the cursors of streams that wait."""
    standing = mailbox.Standing(Cursor(1, 0, 2, 1, Status.WAITING, revision=revision))
    _, parameters = mailbox.move("bank", dict.fromkeys(streams, standing), dict.fromkeys(streams, (standing, None)))
    return parameters


def rows_passed_over(plan: dict[str, Any]) -> int:
    """How many rows a plan has read in vain, each time that it read them."""
    passed = sum(int(plan.get(f"Rows Removed by {each}", 0)) for each in ("Filter", "Join Filter"))
    return passed * int(plan["Actual Loops"]) + sum(rows_passed_over(each) for each in plan.get("Plans", ()))


def failing(broken: set[str]) -> dict[str, Handler]:
    """A handler that fails on the messages in `broken`, as long as they are in it."""

    def handle(message: Message, connection: Psql) -> None:
        connection.execute("SELECT 1 / 0" if message.id in broken else "SELECT 1")

    return {"shop.ordered": handle}


@pytest.mark.parametrize("park", [False, True])
def test_dead_letter_is_requeued(bank: Ledger, park: bool) -> None:
    """After the fault is mended it takes effect: in its place where its stream waited, else now; on record."""
    broken = {"a-2"}
    retry = Retry(attempts_max=1, park=park)
    inbox = bank.inbox("shop", PATIENT, retry=retry, handlers=failing(broken))
    inbox.receive([Message("shop", f"a-{n}", "shop.ordered", "a", n) for n in (1, 2, 3)])
    inbox.tick()
    assert [gap.status for gap in inbox.gaps()] == (["parked"] if park else [])
    (letter,) = inbox.dead_letters()
    with pytest.raises(InvalidCommand) if not park else nullcontext():
        inbox.requeue(letter.dead_letter_id)
    broken.clear()
    (letter,) = inbox.dead_letters()
    received = inbox.requeue(letter.dead_letter_id, actor="ann", note="deployed")
    assert [message.id for message, _ in received.outcomes] == (["a-2", "a-3"] if park else ["a-2"])
    assert inbox.dead_letters() == []
    assert [(each.decision, each.actor) for each in inbox.decisions(letter.dead_letter_id)][-1] == ("requeued", "ann")
    with pytest.raises(InvalidCommand):
        inbox.requeue(letter.dead_letter_id)


def test_dead_letter_is_discarded(bank: Ledger) -> None:
    """Somebody decides that it has no effect: the stream that waited for it goes on without."""
    inbox = bank.inbox("shop", PATIENT, retry=Retry(attempts_max=1, park=True), handlers=failing({"a-1"}))
    inbox.receive([Message("shop", f"a-{n}", "shop.ordered", "a", n) for n in (1, 2)])
    (letter,) = inbox.dead_letters()
    received = inbox.discard(letter.dead_letter_id, actor="bea", note="a test order")
    assert [message.id for message, _ in received.outcomes] == ["a-2"]
    assert inbox.gaps() == []
    assert [each.note for each in inbox.decisions(letter.dead_letter_id)] == ["a test order"]
