"""
Members of a consumer group that join, leave, freeze and die while messages of many accounts are consumed.

Each account is paid and spends by turns, and never has more than the last payment: a spending that overtakes its
payment, or a payment that counts twice, shows in its balance or as a rejection.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final, Protocol

import confluent_kafka
import psycopg

from ledger import Command, Ledger, OpenAccount
from ledger.order.cursor import Strict
from ledger.order.message import Message

SOURCE: Final = "bank"
WAIT_SECONDS: Final = 120.0
_PACE_SECONDS: Final = 0.1
_DEED_PACES: Final = 40
"""So long at most until the next thing happens, however little was done."""

_EFFECTS: Final = """
SELECT e.stream, array_agg(t.kind ORDER BY e.version), array_agg(t.request ->> 'amount' ORDER BY e.version)
FROM ledger.events AS e JOIN ledger.transactions AS t USING (transaction_id)
WHERE e.type = 'entry_posted' AND e.stream <> 'world' GROUP BY 1
"""
_OWNERS: Final = "SELECT owner FROM ledger.consumer_offsets WHERE group_name = %s"
_PLACES: Final = "SELECT partition, next_offset FROM ledger.consumer_offsets WHERE group_name = %s"
_TERMINATE: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


class Cluster(Protocol):
    """Either of the clusters."""

    @property
    def bootstrap(self) -> str: ...
    def create_topic(self, topic: str, partitions: int) -> None: ...


def open_accounts(ledger: Ledger, accounts: int) -> list[str]:
    """The accounts of a workload, and the world, which pays them and is paid."""
    names = [f"a{number}" for number in range(accounts)]
    commands: list[Command] = [OpenAccount(account="world", asset="USD", account_type="equity")]
    commands += [
        OpenAccount(account=name, asset="USD", account_type="liability", min_balance="0 USD") for name in names
    ]
    ledger.handle(commands, atomic=True)
    return names


def turns(accounts: Sequence[str], each: int) -> dict[str, list[Message]]:
    """The messages of each account: paid, spends all of it, is paid a little more …"""
    return {
        account: [
            Message(
                SOURCE,
                f"{account}-{sequence}",
                "ledger.deposit" if sequence % 2 else "ledger.withdraw",
                account,
                sequence,
                data={"account": account, "against": "world", "amount": f"{(sequence + 1) // 2}.00 USD"},
            )
            for sequence in range(1, each + 1)
        ]
        for account in accounts
    }


def delivered(streams: dict[str, list[Message]], chance: random.Random) -> list[Message]:
    """All of them as a careless producer sends them: some early, some twice."""
    rounds = zip_longest(*streams.values())
    sent = [message for message in chain.from_iterable(rounds) if message is not None]
    for _ in range(len(sent) // 50):
        one = chance.randrange(len(sent) - 600)
        other = one + chance.randrange(600)
        sent[one], sent[other] = sent[other], sent[one]
    return sent + chance.sample(sent, len(sent) // 20)


@dataclass(eq=False)
class Member:
    """A process that consumes."""

    process: subprocess.Popen[str]
    is_frozen: bool = False

    def freeze(self) -> None:
        """Let it stand still, between any two of its instructions."""
        self.process.send_signal(signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self) -> None:
        """Let it go on as if nothing had been."""
        self.process.send_signal(signal.SIGCONT)
        self.is_frozen = False

    def kill(self) -> None:
        """End it without a warning."""
        self.process.kill()
        self.process.communicate(timeout=WAIT_SECONDS)

    def leave(self) -> dict[str, Any]:
        """Ask it to stop; what it says that it did, if it had begun at all."""
        if self.is_frozen:
            self.thaw()
        self.process.terminate()
        said, problems = self.process.communicate(timeout=WAIT_SECONDS)
        assert self.process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM), problems
        counts: dict[str, Any] = json.loads(said or "{}")
        return counts

    def pause(self) -> None:
        """Give it a moment."""
        try:
            self.process.wait(_PACE_SECONDS)
        except subprocess.TimeoutExpired:
            return


@dataclass
class Crowd:
    """The members of a group; each is a program of its own, as it is installed."""

    url: str
    folder: Path
    cluster: Cluster
    topic: str
    protocol: str
    group: str = "crowd"
    members: list[Member] = field(default_factory=list)
    command: Sequence[str] = ("-m", "ledger", "consume", "kafka", "--json", "--source", SOURCE)

    def join(self) -> Member:
        """One more."""
        config = self.folder / "client.properties"
        timeouts = "" if self.protocol == "consumer" else "session.timeout.ms=3000\nheartbeat.interval.ms=300\n"
        config.write_text(f"{timeouts}max.poll.interval.ms=3500\nreconnect.backoff.max.ms=500\n")
        where = ["--bootstrap", self.cluster.bootstrap, "--topic", self.topic, "--group", self.group]
        how = [
            "--protocol",
            self.protocol,
            "--begin",
            "earliest",
            "--config",
            str(config),
            "--records",
            "100",
            "--idle-seconds",
            "1",
        ]
        process = subprocess.Popen(
            [sys.executable, *self.command, *where, *how],
            env={**os.environ, "LEDGER_DATABASE_URL": self.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.members.append(Member(process))
        return self.members[-1]

    def wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait for something that the members bring about."""
        for _ in range(int(WAIT_SECONDS / _PACE_SECONDS)):
            if is_so():
                return
            for member in self.members:
                assert member.process.poll() is None, member.process.communicate()
            self.members[0].pause()
        raise AssertionError(f"not {what} after {WAIT_SECONDS:g} s")

    def run_into(self, deeds: Iterator[str], count: int, is_done: Callable[[], float]) -> list[str]:
        """Let so many things happen, spread over the work, of which `is_done` tells which part is."""
        happened: list[str] = []
        while len(happened) < count:
            for _ in range(_DEED_PACES):
                if is_done() > len(happened) / count:
                    break
                self.members[0].pause()
            happened.append(next(deeds))
        for member in self.members:
            if member.is_frozen:
                member.thaw()
        self.join()
        return happened

    def leave(self) -> list[dict[str, Any]]:
        """All of them stop; what they say that they did."""
        members, self.members = self.members, []
        return [member.leave() for member in members]

    def kill(self) -> None:
        """Nobody stays behind after a test that failed."""
        for member in self.members:
            member.kill()

    def owners(self) -> set[str]:
        """The processes that have claimed partitions last."""
        with psycopg.connect(self.url) as connection:
            return {owner.split(":")[1] for (owner,) in connection.execute(_OWNERS, (self.group,))}

    def stands(self, _client: confluent_kafka.Consumer) -> dict[int, int]:
        """Where the group stands in each partition."""
        with psycopg.connect(self.url) as connection:
            return dict(connection.execute(_PLACES, (self.group,)))

    def at_end(self) -> bool:
        """Whether the group stands at the end of every partition."""
        told = {"bootstrap.servers": self.cluster.bootstrap, "group.id": self.group, "log_level": 0}
        client = confluent_kafka.Consumer(told)
        try:
            count = len(client.list_topics(self.topic, timeout=WAIT_SECONDS).topics[self.topic].partitions)
            places = [confluent_kafka.TopicPartition(self.topic, number) for number in range(count)]
            ends = {place.partition: client.get_watermark_offsets(place, WAIT_SECONDS)[1] for place in places}
            return self.stands(client) == ends
        except confluent_kafka.KafkaException:
            # A broker that has just been started again does not know yet what it leads; it is asked again.
            return False
        finally:
            client.close()


def terminate_connections(url: str) -> None:
    """An administrator ends every session on the database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_TERMINATE)


DEEDS: Final = {"join", "leave", "freeze", "thaw", "kill", "terminate", "break"}


def torment(crowd: Crowd, chance: random.Random, more: Sequence[Callable[[], None]]) -> Iterator[str]:
    """
    Do one bad thing after the other, each when it is asked for; there is always somebody who works.

    What has happened least often is next, so that nothing is left to luck but the order.
    """
    happened: Counter[str] = Counter()
    while True:
        active = [member for member in crowd.members if not member.is_frozen]
        frozen = [member for member in crowd.members if member.is_frozen]
        deeds: list[tuple[str, Callable[[], object]]] = [("join", crowd.join)] if len(crowd.members) < 4 else []
        deeds += [("terminate", lambda: terminate_connections(crowd.url)), *(("break", deed) for deed in more)]
        if frozen:
            deeds += [("thaw", frozen[0].thaw)]
        if len(active) > 1:
            victim = chance.choice(active)
            deeds += [("freeze", victim.freeze), ("kill", partial(_kill, crowd, victim))]
            deeds += [("leave", partial(_leave, crowd, victim))]
        least = min(happened[name] for name, _ in deeds)
        name, deed = chance.choice([each for each in deeds if happened[each[0]] == least])
        deed()
        happened[name] += 1
        yield name


def _kill(crowd: Crowd, member: Member) -> None:
    crowd.members.remove(member)
    member.kill()


def _leave(crowd: Crowd, member: Member) -> None:
    crowd.members.remove(member)
    member.leave()


def effects(url: str) -> dict[str, list[tuple[str, str]]]:
    """What happened to each account, in order: the kind of command, and the amount."""
    with psycopg.connect(url) as connection:
        return {
            account: list(zip(kinds, amounts, strict=True)) for account, kinds, amounts in connection.execute(_EFFECTS)
        }


def asked(streams: dict[str, list[Message]]) -> dict[str, list[tuple[str, str]]]:
    """What the messages ask for, in the same words."""
    return {
        account: [(each.type.removeprefix("ledger."), str(dict(each.data)["amount"])) for each in sent]  # type: ignore[arg-type]
        for account, sent in streams.items()
    }


def assert_exactly_once(ledger: Ledger, url: str, streams: dict[str, list[Message]], deliveries: int) -> None:
    """
    Every message took effect once, in the order of its stream, and nothing else did.

    So many `deliveries` came in: where offsets are fenced each record does so once, whoever reads it how often.
    """
    assert effects(url) == asked(streams)
    stats = ledger.inbox(SOURCE, Strict(timedelta(minutes=5))).stats()
    counted = stats.counters
    assert counted["processed"] == sum(map(len, streams.values()))
    assert counted["received"] == counted["processed"] + counted["duplicates"] == deliveries
    assert (stats.held, counted.get("rejected", 0), counted.get("dead_lettered", 0)) == (0, 0, 0)
    assert counted["gaps_opened"] == counted["gaps_filled"] > 0


class NaiveCrowd(Crowd):
    """The same with an ordinary consumer, for which the broker keeps the offsets."""

    def stands(self, client: confluent_kafka.Consumer) -> dict[int, int]:
        """Where the group stands in each partition."""
        count = len(client.list_topics(self.topic, timeout=WAIT_SECONDS).topics[self.topic].partitions)
        places = [confluent_kafka.TopicPartition(self.topic, number) for number in range(count)]
        committed = client.committed(places, timeout=WAIT_SECONDS)
        return {place.partition: max(place.offset, 0) for place in committed}
