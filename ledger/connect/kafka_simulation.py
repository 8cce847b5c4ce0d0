"""
The incident through a real topic: members of two groups join, leave, freeze and die while messages flow.

One group is of the naive consumer, the other is the ledger's; both read the same topic, and the same happens to both.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Final

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.cimpl import NewTopic

from ledger.application import Ledger
from ledger.connect.kafka_clients import made_admin, made_consumer, made_producer
from ledger.connect.kafka_publisher import Publisher
from ledger.connect.kafka_settings import Config
from ledger.core.errors import BrokerUnavailable
from ledger.order.cursor import Strict
from ledger.order.disturb import banking, disturbed, random_for
from ledger.order.message import Message
from ledger.simulation import SOURCE, Naive, Outcome, Plan, Progress, Truth, judge, open_accounts

PARTITIONS: Final = 12
SLICES: Final = 40
"""So many parts are the messages published in, one a second: what happens, happens while they flow."""

_SLICE_SECONDS: Final = 1.0
_REACH_SECONDS: Final = 10.0
_ASK_SECONDS: Final = 30.0
_PATIENCE_SECONDS: Final = 300.0
_PATIENCE: Final = timedelta(seconds=_PATIENCE_SECONDS)
_DEEDS: Final = {3: "join", 6: "freeze", 15: "thaw", 18: "kill", 25: "join", 28: "leave", 32: "join", 36: "kill"}
"""
After which part what happens to each group.

Who is frozen is so for longer than its session; who dies is missed only when its session is over.
"""

_TOLD: Final = """
partition.assignment.strategy=cooperative-sticky
session.timeout.ms=6000
heartbeat.interval.ms=500
max.poll.interval.ms=6000
"""


@dataclass(slots=True)
class Group:
    """A group of consumers, each a process."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    members: list[subprocess.Popen[bytes]] = field(default_factory=list)
    frozen: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def join(self) -> None:
        """One more."""
        nowhere = subprocess.DEVNULL
        self.members.append(
            subprocess.Popen(self.command, env=self.environment, stdin=nowhere, stdout=nowhere, stderr=nowhere)  # noqa: S603
        )

    def do(self, deed: str) -> None:
        """Let something happen to it; there is always one who works."""
        if deed == "join":
            self.join()
        elif deed == "thaw":
            self.thaw()
        elif deed and len(self.members) > 1:
            member = self.members.pop(0)
            if deed == "freeze":
                member.send_signal(signal.SIGSTOP)
                self.frozen.append(member)
            else:
                member.send_signal(signal.SIGKILL if deed == "kill" else signal.SIGTERM)
                member.wait(_ASK_SECONDS)

    def thaw(self) -> None:
        """Those who are frozen go on as if nothing had been."""
        for member in self.frozen:
            member.send_signal(signal.SIGCONT)
        self.members += self.frozen
        self.frozen.clear()

    def end(self) -> None:
        """All of them stop."""
        self.thaw()
        for member in self.members:
            member.terminate()
        for member in self.members:
            with suppress(subprocess.TimeoutExpired):
                member.wait(_ASK_SECONDS)
            member.kill()
            member.wait()
        self.members.clear()


def simulate(ledger: Ledger, url: str, plan: Plan, progress: Progress, config: Config | None) -> Outcome:
    """
    Let it happen, in the schema of a ledger that is empty and for this alone.

    Without a `config`, which names a broker, through librdkafka's own mock of a cluster, within this process.

    Raises:
        BrokerUnavailable: The brokers do not answer, or the groups do not come to an end.
    """
    truth = Truth()
    outcome = Outcome(sent=plan.messages)
    with Naive(url, ledger.schema, create=True) as naive, _topic(config) as (told, topic):
        open_accounts(ledger, naive, plan, progress)
        began = time.perf_counter()
        with _groups(ledger, url, told, topic) as groups:
            have_begun = partial(_have_begun, ledger, naive)
            _flow(groups, told, topic, plan, truth, outcome, progress, have_begun)
            _wait_for(groups, partial(_at_end, ledger, told, topic, groups))
        outcome.naive.seconds = outcome.ledger.seconds = time.perf_counter() - began
        inbox = ledger.inbox(SOURCE, plan.policy)
        outcome.counters = inbox.stats().counters
        outcome.missing = sum(each.last - each.first + 1 for found in inbox.completeness() for each in found.missing)
        outcome.naive.refused = naive.refusals()
        outcome.ledger.refused = outcome.counters.get("rejected", 0)
        judge(naive, truth, outcome)
        outcome.repaired, outcome.repair_seconds = naive.repair()
        outcome.naive_after_repair = truth.wrong(naive)
    outcome.sound = ledger.verify().ok
    return outcome


def _flow(
    groups: Sequence[Group],
    told: Config,
    topic: str,
    plan: Plan,
    truth: Truth,
    outcome: Outcome,
    progress: Progress,
    have_begun: Callable[[], bool],
) -> None:
    """Publish part by part, from when both groups have read something on; meanwhile the same happens to both."""
    sent = banking(plan.accounts, random_for(plan.seed, "banking"), pairs=plan.pairs, source=SOURCE)

    def lost(_: Message) -> None:
        outcome.lost += 1

    arriving = list(disturbed(map(truth.sent, sent), plan.causes, plan.seed, lost=lost))
    size = max(1, -(-len(arriving) // SLICES))
    pace = threading.Event()
    with Publisher(topic, told) as publisher:
        for number, start in enumerate(range(0, len(arriving), size)):
            together = arriving[start : start + size]
            publisher.publish(together)
            truth.delivered(together)
            outcome.delivered += len(together)
            progress("messages", outcome.delivered, plan.messages)
            if number == 0:
                _wait_for(groups, have_begun)
            for group in groups:
                group.do(_DEEDS.get(number, ""))
            pace.wait(_SLICE_SECONDS)
    for group in groups:
        group.thaw()


@contextmanager
def _groups(ledger: Ledger, url: str, told: Config, topic: str) -> Iterator[list[Group]]:
    """The two groups, two members each to begin with."""
    environment = {**os.environ, "LEDGER_DATABASE_URL": url, "LEDGER_SCHEMA": ledger.schema}
    with tempfile.TemporaryDirectory(prefix="ledger-simulation-") as folder:
        file = Path(folder) / "client.properties"
        known = "".join(f"{name}={value}\n" for name, value in told.items() if name != "bootstrap.servers")
        (Path(folder) / "naive.properties").write_text(known + _TOLD)
        own = [line for line in _TOLD.splitlines() if not line.startswith("partition.")]
        file.write_text("\n".join([known, *own, ""]))
        where = ["--bootstrap", str(told["bootstrap.servers"]), "--topic", topic]
        python = [sys.executable, "-m"]
        naive = [*python, "ledger.connect.kafka_naive", *where, "--config", str(file.with_name("naive.properties"))]
        ours = [*python, "ledger", "consume", "kafka", *where, "--config", str(file), "--begin", "earliest"]
        ours += ["--source", SOURCE, "--idle-seconds", "2"]
        groups = [
            Group(name, [*command, "--group", name], environment)
            for name, command in ((f"{topic}-naive", naive), (f"{topic}-ledger", ours))
        ]
        try:
            for group in groups:
                group.join()
                group.join()
            yield groups
        finally:
            for group in groups:
                group.end()


@contextmanager
def _topic(config: Config | None) -> Iterator[tuple[Config, str]]:
    """Where the brokers are, and a topic that is there for this alone."""
    topic = f"ledger-simulation-{token_hex(3)}"
    try:
        if config is None:
            # Kept as long as it is needed: the brokers live in it.
            cluster = made_producer({"test.mock.num.brokers": 3})
            brokers = cluster.list_topics(topic, timeout=_ASK_SECONDS).brokers.values()
            yield {"bootstrap.servers": ",".join(f"{each.host}:{each.port}" for each in brokers)}, topic
            return
        admin = made_admin(config)
        # Brokers that are not there say so; the making of a topic would only come to no end.
        admin.list_topics(timeout=_REACH_SECONDS)
        _answered(admin.create_topics([NewTopic(topic, PARTITIONS, -1)])[topic])
        try:
            yield config, topic
        finally:
            _answered(admin.delete_topics([topic])[topic])
    except KafkaException as error:
        raise BrokerUnavailable(f"Kafka: {error.args[0].str()}.", "Look after the broker, and try again.") from error


def _answered(request: Future[None]) -> None:
    try:
        request.result(_ASK_SECONDS)
    except TimeoutError:
        raise BrokerUnavailable(f"Kafka: no answer for {_ASK_SECONDS:g} s.", "Look after the broker.") from None


def _wait_for(groups: Sequence[Group], is_so: Callable[[], bool]) -> None:
    over, pace = time.monotonic() + _PATIENCE_SECONDS, threading.Event()
    while not is_so():
        if time.monotonic() > over:
            raise BrokerUnavailable("The groups did not read the topic to its end.", "Look after the broker.")
        for group in groups:
            if all(member.poll() is not None for member in group.members):
                group.join()
        pace.wait(_SLICE_SECONDS / 4)


def _have_begun(ledger: Ledger, naive: Naive) -> bool:
    """Whether both groups have read something."""
    counters = ledger.inbox(SOURCE, Strict(_PATIENCE)).stats().counters
    return any(naive.balances().values()) and counters.get("processed", 0) > 0


def _at_end(ledger: Ledger, told: Config, topic: str, groups: Sequence[Group]) -> bool:
    """Whether both groups have read everything: the naive one says so to the broker, the ledger's to the database."""
    client = made_consumer({**told, "group.id": groups[0].name})
    try:
        count = len(client.list_topics(topic, timeout=_ASK_SECONDS).topics[topic].partitions)
        places = [TopicPartition(topic, number) for number in range(count)]
        ends = [client.get_watermark_offsets(place, timeout=_ASK_SECONDS)[1] for place in places]
        naive = [max(each.offset, 0) for each in client.committed(places, timeout=_ASK_SECONDS)]
    finally:
        client.close()
    ours = {each.partition: each.next_offset for each in ledger.consumer_offsets(groups[1].name)}
    return naive == ends and [ours.get(number) for number in range(count)] == ends
