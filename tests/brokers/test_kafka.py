"""Kafka's consumer and publisher: who may move an offset, where they begin, what they refuse, and what they tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

import confluent_kafka
import psycopg
import pytest
from apache_kafka import PASSWORD, USER, ApacheKafka
from chaos import SOURCE, WAIT_SECONDS, asked, effects, open_accounts, turns
from mock_cluster import MockCluster

from ledger import BrokerUnavailable, InvalidCommand, Ledger, Timeouts
from ledger.connect import kafka_consumer, kafka_partition
from ledger.connect.kafka_consumer import RECORDS_MAX
from ledger.connect.kafka_partition import Partition
from ledger.kafka import Consumer, Protocol, Publisher, Start, examine, partition_of, read_config
from ledger.order.cursor import Strict
from ledger.order.decoders import decoder
from ledger.order.message import Message
from ledger.storage import offsets
from ledger.storage.database import Connection, Database, engine_for
from ledger.storage.offsets import AlreadyTaken, Claim, Fenced, Place

PATIENT: Final = Strict(timedelta(minutes=5))
PLACE: Final = Place("payments", 3)
LEADER_NOT_AVAILABLE: Final = 5
PATIENCE: Final = 300
"""So often does a consumer look around, ten times a second at least, before something is given up."""


@pytest.fixture
def database(ledger_url: str) -> Iterator[Database]:
    """A client of the database."""
    database = Database(engine_for(ledger_url, timeouts := Timeouts(), 3), "ledger", timeouts)
    yield database
    database.close()


@contextmanager
def transaction(database: Database) -> Iterator[Connection]:
    """A transaction of a client's."""
    with database.connection() as connection, connection.transaction():
        yield connection


def claim(database: Database, owner: str) -> offsets.Claim:
    """Take the partition."""
    with transaction(database) as connection:
        return offsets.claim(connection, "g", owner, {PLACE: 12})[PLACE]


def move(database: Database, epoch: int, first: int, next_offset: int) -> None:
    """Move the offset in a transaction that does nothing else."""
    with transaction(database) as connection:
        offsets.move(connection, "g", PLACE, epoch, first, next_offset)


def begun(database: Database, owner: str = "a", offset: int = 0) -> int:
    """The epoch of an owner who has taken a partition that nobody has read, and begins there."""
    first = claim(database, owner)
    with transaction(database) as connection:
        offsets.begin(connection, "g", PLACE, first.epoch, offset)
    return first.epoch


def test_offset_moves_for_its_owner_only(ledger: Ledger, database: Database) -> None:
    """The next owner takes the next epoch; the one before writes nothing any more, and where it stood is known."""
    assert ledger.consumer_offsets("g") == []
    first = begun(database, "a")
    move(database, first, 0, 10)
    second = claim(database, "b")
    assert (second.epoch, second.next_offset) == (first + 1, 10)
    with pytest.raises(Fenced, match="b"):
        move(database, first, 10, 20)
    move(database, second.epoch, 10, 20)
    (offset,) = ledger.consumer_offsets("g")
    assert offset[:6] == ("payments", 3, 20, second.epoch, "b", 12)


def test_records_that_nobody_sees_leave_holes(ledger: Ledger, database: Database) -> None:
    """The first offset of a batch may lie beyond where the group stands, and not before it."""
    assert ledger.ledger_id
    epoch = begun(database)
    move(database, epoch, 5, 8)
    with pytest.raises(AlreadyTaken) as already:
        move(database, epoch, 5, 9)
    assert already.value.next_offset == 8


def test_owner_who_stands_still_is_ended(ledger: Ledger, database: Database) -> None:
    """Who is in the midst of a transaction when somebody else takes the partition loses that transaction."""
    assert ledger.ledger_id
    epoch = begun(database)
    broken: list[Exception] = []
    moved, claimed = threading.Event(), threading.Event()

    def stand_still() -> None:
        try:
            with transaction(database) as connection:
                offsets.move(connection, "g", PLACE, epoch, 0, 10)
                moved.set()
                claimed.wait(WAIT_SECONDS)
                connection.query("SELECT 1")
        except Exception as error:  # noqa: BLE001  (looked at below)
            broken.append(error)

    frozen = threading.Thread(target=stand_still)
    frozen.start()
    assert moved.wait(WAIT_SECONDS)
    assert claim(database, "b").epoch == epoch + 1
    claimed.set()
    frozen.join(WAIT_SECONDS)
    assert len(broken) == 1


def test_person_chooses_an_offset(ledger: Ledger, database: Database) -> None:
    """The group goes on from there; who was at it is fenced; and there is nothing to choose in what was never read."""
    epoch = begun(database)
    move(database, epoch, 0, 10)
    ledger.seek_consumer("g", *PLACE, 4, actor="ann")
    with pytest.raises(Fenced, match="ann"):
        move(database, epoch, 10, 20)
    assert claim(database, "b").next_offset == 4
    with pytest.raises(InvalidCommand, match="never read"):
        ledger.seek_consumer("g", "payments", 4, 0, actor="ann")
    with pytest.raises(InvalidCommand, match="offset"):
        ledger.seek_consumer("g", *PLACE, -1, actor="ann")


def topic_of(cluster: MockCluster | ApacheKafka, partitions: int = 3) -> str:
    """The name of an empty topic."""
    topic = f"t{uuid4().hex[:8]}"
    cluster.create_topic(topic, partitions)
    return topic


def consumer(ledger: Ledger, cluster: MockCluster | ApacheKafka, topic: str, **more: Any) -> Consumer:
    """A consumer that stops at the end."""
    settings: dict[str, Any] = {"start": Start.EARLIEST, "to_end": True, "protocol": Protocol.CONSUMER, **more}
    inboxes = settings.pop("inboxes", None) or [ledger.inbox(SOURCE, PATIENT)]
    return Consumer(inboxes, [topic], "g", {"bootstrap.servers": cluster.bootstrap}, **settings)


def publish(cluster: MockCluster | ApacheKafka, topic: str, messages: list[Message]) -> None:
    """Send messages."""
    with Publisher(topic, {"bootstrap.servers": cluster.bootstrap}) as publisher:
        assert publisher.publish(messages) == len(messages)


def send(cluster: MockCluster | ApacheKafka, topic: str, *bodies: bytes | None, **more: Any) -> None:
    """Send whatever this is."""
    producer = confluent_kafka.Producer({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
    for body in bodies:
        producer.produce(topic, body, key=b"k", **more)
    assert producer.flush(WAIT_SECONDS) == 0


def test_goes_on_where_it_was(ledger: Ledger, ledger_url: str, mock_kafka: MockCluster) -> None:
    """What was taken in once is not read again by the next consumer of the group."""
    streams = turns(open_accounts(ledger, 3), 5)
    topic = topic_of(mock_kafka)
    for part in (slice(0, 2), slice(2, None)):
        messages = [message for sent in streams.values() for message in sent[part]]
        publish(mock_kafka, topic, messages)
        reader = consumer(ledger, mock_kafka, topic)
        reader.run()
        assert (reader.counts["records"], reader.counts["duplicates"]) == (len(messages), 0)
    assert effects(ledger_url).keys() == streams.keys()


class Astray(Consumer):
    """Its client does what librdkafka's issue 2256 is about: told where to go on, it goes elsewhere, once."""

    def __init__(self, *arguments: Any, elsewhere: int, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.elsewhere = elsewhere
        self.led: set[Place] = set()

    def _sought(self, partition: Partition) -> bool:
        sought = super()._sought(partition)
        if sought and partition.place not in self.led:
            self.led.add(partition.place)
            self._client.seek(confluent_kafka.TopicPartition(*partition.place, self.elsewhere))
        return sought


def test_client_that_cannot_be_sent_back_at_once_is_waited_for() -> None:
    """What an astray client brings meanwhile is left alone; a hole that is found again is believed."""
    partition = Partition(PLACE, next_offset=3)
    partition.go_on(Claim(1, 3))
    assert [partition.skips(offset) for offset in (3, 7, 8, 7, 3)] == [False, True, True, True, False]
    assert partition.astray
    partition.astray = False
    assert [partition.skips(offset) for offset in (3, 7, 8)] == [False, False, True]


@pytest.mark.parametrize("elsewhere", [7, confluent_kafka.OFFSET_END], ids=["ahead", "end"])
def test_client_that_goes_astray_skips_nothing(
    ledger: Ledger, ledger_url: str, mock_kafka: MockCluster, elsewhere: int
) -> None:
    """A hole right after a claim is looked at twice: what the client had skipped is read, each record once."""
    streams = turns(open_accounts(ledger, 2), 5)
    topic = topic_of(mock_kafka, 1)
    publish(mock_kafka, topic, [message for sent in streams.values() for message in sent])
    settings: dict[str, Any] = {"start": Start.EARLIEST, "to_end": True, "elsewhere": elsewhere}
    inbox = ledger.inbox(SOURCE, PATIENT)
    reader = Astray([inbox], [topic], "g", {"bootstrap.servers": mock_kafka.bootstrap}, **settings)
    reader.run()
    assert reader.led == {Place(topic, 0)}
    assert (reader.counts["records"], reader.counts["duplicates"]) == (10, 0)
    assert effects(ledger_url) == asked(streams)


def test_partition_never_read(ledger: Ledger, mock_kafka: MockCluster) -> None:
    """Where to begin is the caller's to say: unless it is said, nothing is read, and each partition is told of."""
    topic = topic_of(mock_kafka)
    told: list[str] = []
    with pytest.raises(BrokerUnavailable, match="never read"):
        consumer(ledger, mock_kafka, topic, start=None, on_problem=told.append).run()
    assert {problem.partition(":")[0] for problem in told} == {f"{topic}/{number}" for number in range(3)}


def test_latest_is_decided_once(ledger: Ledger, mock_kafka: MockCluster) -> None:
    """Who begins at the end has said so for the group: what comes before the next one reads is not left out."""
    (account,) = open_accounts(ledger, 1)
    sent = turns([account], 3)[account]
    topic = topic_of(mock_kafka, 1)
    publish(mock_kafka, topic, sent[:1])
    consumer(ledger, mock_kafka, topic, start=Start.LATEST).run()
    publish(mock_kafka, topic, sent[1:])
    reader = consumer(ledger, mock_kafka, topic, start=Start.LATEST)
    reader.run()
    assert reader.counts["records"] == 2


def test_offset_that_is_gone_stops_its_partition_only(ledger: Ledger, mock_kafka: MockCluster) -> None:
    """One partition waits for a person, who is told; the others are read to their end."""
    streams = turns(open_accounts(ledger, 20), 2)
    topic = topic_of(mock_kafka, 3)
    messages = [message for sent in streams.values() for message in sent]
    publish(mock_kafka, topic, messages)
    consumer(ledger, mock_kafka, topic).run()
    ledger.seek_consumer("g", topic, 1, 1000, actor="ann")
    publish(mock_kafka, topic, [replace(message, id=f"{message.id}-again") for message in messages])
    told: list[str] = []
    reader = consumer(ledger, mock_kafka, topic, on_problem=told.append)
    reader.run()
    assert reader.stopped == [Place(topic, 1)]
    assert reader.counts["records"] == sum(partition_of(message.stream, 3) != 1 for message in messages)
    assert told[0].startswith(f"{topic}/1: offset 1000")


def test_topic_that_the_brokers_do_not_describe(ledger: Ledger, mock_kafka: MockCluster) -> None:
    """How many partitions a topic has is not guessed: nothing is claimed until its description comes."""
    (account,) = open_accounts(ledger, 1)
    topic = topic_of(mock_kafka, 1)
    publish(mock_kafka, topic, turns([account], 3)[account])
    told: list[str] = []

    def mend(problem: str) -> None:
        told.append(problem)
        assert ledger.consumer_offsets("g") == []
        mock_kafka.deny_topic(topic, 0)

    reader = consumer(ledger, mock_kafka, topic, on_problem=mend)
    assigned = reader._assigned  # noqa: SLF001  (between what the group is given and what it claims)

    def deny(client: Any, given: list[confluent_kafka.TopicPartition]) -> None:
        mock_kafka.deny_topic(topic, LEADER_NOT_AVAILABLE)
        assigned(client, given)

    reader._assigned = deny  # type: ignore[method-assign]  # noqa: SLF001
    reader.run()
    assert told
    assert [each.partitions for each in ledger.consumer_offsets("g")] == [1]
    assert reader.counts["processed"] == 3


def held_up(ledger_url: str, reader: Consumer) -> tuple[int, int]:
    """Read while the ledger can take nothing in, until the partition is paused; how much waited then at most."""
    counted: list[int] = []
    sizes: list[int] = []
    with psycopg.connect(ledger_url) as owner:
        owner.execute("LOCK ledger.inbox_streams")

        def look(_: int) -> None:
            (partition,) = reader._partitions.values() or [None]  # noqa: SLF001  (what it keeps in memory)
            if partition is not None:
                counted.append(len(partition.waiting))
                sizes.append(partition.waiting_bytes)
                if (partition.paused and partition.epoch) or len(counted) > PATIENCE:
                    owner.rollback()

        reader._progress = look  # noqa: SLF001  (as if the caller had given it)
        reader.run()
    return max(counted), max(sizes)


def test_partition_that_comes_too_fast_is_held_back(ledger: Ledger, ledger_url: str, mock_kafka: MockCluster) -> None:
    """What waits in memory is bounded, in records and in bytes, and all of it is taken in when the ledger can."""
    (account,) = open_accounts(ledger, 1)
    sent = turns([account], 3_000)[account]
    topic = topic_of(mock_kafka, 1)
    publish(mock_kafka, topic, sent)
    reader = consumer(ledger, mock_kafka, topic, records_max=10)
    count, _ = held_up(ledger_url, reader)
    assert 40 <= count < 40 + RECORDS_MAX
    assert (reader.counts["processed"], reader.counts["duplicates"]) == (3_000, 0)
    assert effects(ledger_url) == asked({account: sent})


def test_few_large_records_are_held_back(
    ledger: Ledger, ledger_url: str, mock_kafka: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records are counted by their bytes, too, in memory and in one transaction."""
    limit = 200_000
    monkeypatch.setattr(kafka_consumer, "_QUEUED_BYTES", limit)
    monkeypatch.setattr(kafka_partition, "BODY_BYTES_MAX", limit // 4)
    (account,) = open_accounts(ledger, 1)
    sent = [
        replace(message, data={**cast("dict[str, Any]", message.data), "metadata": {"note": "x" * 3_000}})
        for message in turns([account], 200)[account]
    ]
    topic = topic_of(mock_kafka, 1)
    publish(mock_kafka, topic, sent)
    reader = consumer(ledger, mock_kafka, topic)
    _, size = held_up(ledger_url, reader)
    assert limit <= size < limit + 10_000
    assert reader.counts["processed"] == 200
    assert reader.counts["transactions"] >= 200 * 3_000 // (limit // 4 + 10_000)


def test_what_cannot_be_read_is_kept(ledger: Ledger, mock_kafka: MockCluster) -> None:
    """Broken bodies, tombstones and other sources are dead letters by the name of their place; the rest goes on."""
    (account,) = open_accounts(ledger, 1)
    topic = topic_of(mock_kafka, 1)
    (good,) = turns([account], 1)[account]
    send(mock_kafka, topic, b"{broken", None)
    publish(mock_kafka, topic, [good, Message("elsewhere", "x", "ledger.deposit", account, 1, data={})])
    reader = consumer(ledger, mock_kafka, topic)
    reader.run()
    assert (reader.counts["processed"], reader.counts["undecodable"]) == (1, 3)
    letters = ledger.inbox(SOURCE, PATIENT).dead_letters()
    assert {letter.message_id for letter in letters} == {f"{topic}/0@0", f"{topic}/0@1", f"{topic}/0@3"}


def test_several_sources_of_one_topic(ledger: Ledger, mock_kafka: MockCluster) -> None:
    """Each source counts for itself; a message that names none is the first one's."""
    (account,) = open_accounts(ledger, 1)
    topic = topic_of(mock_kafka, 1)
    data: dict[str, Any] = {"account": account, "against": "world", "amount": "1 USD"}
    publish(mock_kafka, topic, [Message("cards", "c1", "ledger.deposit", account, 1, data=data)])
    inboxes = [ledger.inbox(SOURCE, PATIENT), ledger.inbox("cards", PATIENT)]
    consumer(ledger, mock_kafka, topic, inboxes=inboxes).run()
    seed = {"id": "s1", "sequenceNumber": 1, "entityId": account, "type": "ledger.deposit", "data": data}
    send(mock_kafka, topic, json.dumps(seed).encode())
    consumer(ledger, mock_kafka, topic, inboxes=inboxes, decode=decoder("seed")).run()
    assert [inbox.stats().counters["processed"] for inbox in inboxes] == [1, 1]


def test_ledger_that_cannot_go_on(ledger: Ledger, ledger_url: str, mock_kafka: MockCluster) -> None:
    """An error that no retry can help ends the consumer with that error, and its offset stays where it was."""
    streams = turns(open_accounts(ledger, 1), 3)
    topic = topic_of(mock_kafka, 1)
    publish(mock_kafka, topic, streams["a0"])
    reader = consumer(ledger, mock_kafka, topic)
    with ledger.engine.begin() as owner:
        owner.exec_driver_sql("ALTER TABLE ledger.inbox_messages RENAME TO hidden")
    with pytest.raises(Exception, match="ledger migrate"):
        reader.run()
    assert [each.next_offset for each in ledger.consumer_offsets("g")] == [0]
    with ledger.engine.begin() as owner:
        owner.exec_driver_sql("ALTER TABLE ledger.hidden RENAME TO inbox_messages")
    consumer(ledger, mock_kafka, topic).run()
    assert len(effects(ledger_url)["a0"]) == 3


@pytest.mark.parametrize("key", [*"abc", "alice", "a0", "über", "", "0123456789" * 5, "x" * 21, "yz" * 11])
@pytest.mark.parametrize("partitions", [1, 7, 12])
def test_partition_is_the_clients(mock_kafka: MockCluster, key: str, partitions: int) -> None:
    """The helper names the partition that the client chooses."""
    topic = topic_of(mock_kafka, partitions)
    landed: list[int | None] = []
    producer = confluent_kafka.Producer({"bootstrap.servers": mock_kafka.bootstrap, "partitioner": "murmur2"})
    producer.produce(topic, b"", key.encode(), on_delivery=lambda _error, record: landed.append(record.partition()))
    assert producer.flush(WAIT_SECONDS) == 0
    assert landed == [partition_of(key, partitions)]


def test_published_streams_stay_together(mock_kafka: MockCluster) -> None:
    """All messages of a stream are in the partition of its name, in order, under its key."""
    topic = topic_of(mock_kafka, 5)
    streams = turns(["a", "b", "c", "d"], 6)
    publish(mock_kafka, topic, [message for messages in zip(*streams.values(), strict=True) for message in messages])
    client = confluent_kafka.Consumer({"bootstrap.servers": mock_kafka.bootstrap, "group.id": "x"})
    client.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in range(5)])
    found: dict[str, list[tuple[int, int]]] = {}
    for _ in range(24):
        record = client.poll(WAIT_SECONDS)
        assert record is not None
        assert record.error() is None
        (message,) = decoder("cloudevents")(record.value() or b"", dict(record.headers() or ()).items())
        assert isinstance(message, Message)
        assert record.key() == message.stream.encode()
        found.setdefault(message.stream, []).append((record.partition() or 0, message.sequence or 0))
    client.close()
    assert found == {name: [(partition_of(name, 5), number) for number in range(1, 7)] for name in streams}


def test_publisher_says_what_was_not_taken(mock_kafka: MockCluster) -> None:
    """A topic that is not there, a broker that is not there, a message that is too large: said, and nothing hidden."""
    message = turns(["a"], 1)["a"][0]
    with (
        Publisher("t", {"bootstrap.servers": "127.0.0.1:1"}, timeout=0.5) as publisher,
        pytest.raises(BrokerUnavailable),
    ):
        publisher.publish([message])
    topic = topic_of(mock_kafka, 1)
    with Publisher(topic, {"bootstrap.servers": mock_kafka.bootstrap, "message.max.bytes": 1000}) as publisher:
        with pytest.raises(BrokerUnavailable, match="large"):
            publisher.publish([Message("s", "1", "t", data="x" * 2000)])
        assert publisher.publish([message]) == 1


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "bootstrap"),
        ({"bootstrap.servers": "x:1", "group.id": "h"}, "group"),
        ({"bootstrap.servers": "x:1", "enable.auto.commit": "true"}, "database"),
        ({"bootstrap.servers": "x:1", "auto.offset.reset": "earliest"}, "start"),
    ],
)
def test_settings_that_promises_rest_on(ledger: Ledger, config: dict[str, Any], problem: str) -> None:
    """What would break the promises cannot be set, and the error says where it is set instead."""
    with pytest.raises(InvalidCommand, match=problem):
        Consumer([ledger.inbox(SOURCE, PATIENT)], ["t"], "g", config)


def test_publisher_settings_from_a_file(tmp_path: Path) -> None:
    """What keeps streams in order may be said again, in the words of a file, and may not be changed."""
    file = tmp_path / "client.properties"
    file.write_text("bootstrap.servers=127.0.0.1:1\nenable.idempotence=true\nacks=-1\n")
    Publisher("t", read_config(file)).close()
    for line in ("enable.idempotence=false", "acks=1", "partitioner=random"):
        file.write_text(f"bootstrap.servers=127.0.0.1:1\n{line}\n")
        with pytest.raises(InvalidCommand, match=line.partition("=")[0]):
            Publisher("t", read_config(file))


@pytest.mark.parametrize("config", [{"no.such.setting": "1"}, {"socket.timeout.ms": "soon"}])
def test_settings_that_are_none(ledger: Ledger, config: dict[str, Any]) -> None:
    """What librdkafka does not know is the caller's mistake, and said in its words without a traceback."""
    told = {"bootstrap.servers": "127.0.0.1:1", **config}
    inboxes = [ledger.inbox(SOURCE, PATIENT)]
    for use in (
        lambda: Consumer(inboxes, ["t"], "g", told).run(),
        lambda: Publisher("t", told),
        lambda: examine(ledger, "g", ["t"], inboxes, told),
    ):
        with pytest.raises(InvalidCommand, match=next(iter(config))):
            use()


@pytest.mark.parametrize(
    "bad", [{"records_max": 0}, {"records_max": 1001}, {"workers": 0}, {"workers": 9}, {"group": ""}, {"topics": "t"}]
)
def test_bounds_are_stated(ledger: Ledger, bad: dict[str, Any]) -> None:
    """Numbers out of bounds and names that are none are refused before anything is connected."""
    given: dict[str, Any] = {"topics": ["t"], "group": "g", **bad}
    with pytest.raises(InvalidCommand, match=next(iter(bad))):
        Consumer([ledger.inbox(SOURCE, PATIENT)], config={"bootstrap.servers": "x:1"}, **given)


def test_settings_from_a_file(tmp_path: Path) -> None:
    """A file as Kafka's own tools read it; a line that is no setting is named."""
    file = tmp_path / "client.properties"
    file.write_text("# secret\n\nsecurity.protocol=SASL_SSL\nsasl.password = a=b \n")
    assert read_config(file) == {"security.protocol": "SASL_SSL", "sasl.password": "a=b"}
    file.write_text("ok=1\nnonsense\n")
    with pytest.raises(InvalidCommand, match="line 2"):
        read_config(file)
    with pytest.raises(InvalidCommand, match="No such file"):
        read_config(tmp_path / "none")


def test_doctor(ledger: Ledger, mock_kafka: MockCluster) -> None:
    """Nothing where all is well; what changed, where somebody made the topic larger, or anew."""
    streams = turns(open_accounts(ledger, 20), 1)
    topic = topic_of(mock_kafka, 3)
    publish(mock_kafka, topic, [message for messages in streams.values() for message in messages])
    consumer(ledger, mock_kafka, topic).run()
    inboxes, config = [ledger.inbox(SOURCE, PATIENT)], {"bootstrap.servers": mock_kafka.bootstrap}
    assert examine(ledger, "g", [topic], inboxes, config) == []
    with ledger.engine.begin() as owner:
        owner.exec_driver_sql("UPDATE ledger.consumer_offsets SET partitions = 2")
    moved = sum(partition_of(stream, 2) != partition_of(stream, 3) for stream in streams)
    (finding,) = examine(ledger, "g", [topic], inboxes, config)
    assert f"of 20 streams that the inbox knows, {moved} go to another partition" in finding
    with ledger.engine.begin() as owner:
        owner.exec_driver_sql("UPDATE ledger.consumer_offsets SET partitions = 3")
    ledger.seek_consumer("g", topic, 1, 1000, actor="ann")
    (finding,) = examine(ledger, "g", [topic], inboxes, config)
    assert finding.startswith(f"{topic}/1: the group stands at 1000")
    with pytest.raises(BrokerUnavailable, match="nowhere"):
        examine(ledger, "g", ["nowhere"], inboxes, config)


def run_cli(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command about Kafka, as it is installed."""
    return subprocess.run(
        [sys.executable, "-m", "ledger", *arguments, "--json"],
        env={**os.environ, "LEDGER_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


def test_tls_and_sasl_from_a_file(ledger: Ledger, ledger_url: str, tmp_path: Path, apache_kafka: ApacheKafka) -> None:
    """A broker that wants TLS and a password has both from the file; another password is told of, and nothing read."""
    (account,) = open_accounts(ledger, 1)
    topic = topic_of(apache_kafka, 1)
    publish(apache_kafka, topic, turns([account], 3)[account])
    file = tmp_path / "client.properties"
    secure = f"security.protocol=SASL_SSL\nssl.ca.location={apache_kafka.certificate}\nsasl.mechanisms=PLAIN\n"
    file.write_text(f"{secure}sasl.username={USER}\nsasl.password=wrong\n")
    told: list[str] = []

    def stop(problem: str) -> None:
        told.append(problem)
        reader.stop()

    settings = {**read_config(file), "bootstrap.servers": apache_kafka.secure}
    reader = Consumer([ledger.inbox(SOURCE, PATIENT)], [topic], "g", settings, start=Start.EARLIEST, on_problem=stop)
    reader.run()
    assert "Authentication failed" in told[0]
    assert reader.counts.get("records", 0) == 0

    file.write_text(f"{secure}sasl.username={USER}\nsasl.password={PASSWORD}\n")
    where = ["--bootstrap", apache_kafka.secure, "--topic", topic, "--group", "g", "--source", SOURCE]
    done = run_cli(ledger_url, "consume", "kafka", *where, "--config", str(file), "--begin", "earliest", "--to-end")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["processed"] == 3


def test_topic_that_grows_under_running_streams(ledger: Ledger, ledger_url: str, apache_kafka: ApacheKafka) -> None:
    """Streams that go to another partition meanwhile stay in order by their sequence; the doctor counts them."""
    streams = turns(open_accounts(ledger, 20), 6)
    topic = topic_of(apache_kafka, 2)
    publish(apache_kafka, topic, [message for sent in streams.values() for message in sent[:3]])
    consumer(ledger, apache_kafka, topic).run()
    where = ["--bootstrap", apache_kafka.bootstrap, "--topic", topic, "--group", "g", "--source", SOURCE]
    sound = run_cli(ledger_url, "doctor", "kafka", *where)
    assert (sound.returncode, json.loads(sound.stdout)) == (0, {"group": "g", "findings": []})
    apache_kafka.add_partitions(topic, 5)
    # Backwards, so that what is in another partition now is not in order by chance.
    publish(apache_kafka, topic, [message for sent in streams.values() for message in reversed(sent[3:])])
    warned = run_cli(ledger_url, "doctor", "kafka", *where)
    moved = sum(partition_of(stream, 2) != partition_of(stream, 5) for stream in streams)
    count, unread = json.loads(warned.stdout)["findings"]
    assert warned.returncode == 1
    assert count.startswith(f"{topic} has 5 partitions, and had 2")
    assert f"of 20 streams that the inbox knows, {moved} go to another partition" in count
    assert "partitions 2, 3, 4" in unread
    consumer(ledger, apache_kafka, topic).run()
    assert effects(ledger_url) == asked(streams)


def test_real_broker(ledger: Ledger, ledger_url: str, apache_kafka: ApacheKafka) -> None:
    """A real Kafka: transactions leave holes, aborted messages are not seen, and what retention took is told of."""
    streams = turns(open_accounts(ledger, 2), 5)
    topic = topic_of(apache_kafka, 1)
    publish(apache_kafka, topic, streams["a0"])
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": apache_kafka.bootstrap, "transactional.id": uuid4().hex, "log_level": 0}
    )
    producer.init_transactions(WAIT_SECONDS)
    for ends in (producer.abort_transaction, producer.commit_transaction):
        producer.begin_transaction()
        with Publisher(topic, {"bootstrap.servers": apache_kafka.bootstrap}) as lending:
            lending._producer, own = producer, lending._producer  # noqa: SLF001  (its messages, in a transaction)
            lending.publish(streams["a1"])
            lending._producer = own  # noqa: SLF001
        ends(WAIT_SECONDS)
    reader = consumer(ledger, apache_kafka, topic)
    reader.run()
    assert (reader.counts["records"], reader.counts["duplicates"]) == (10, 0)
    assert effects(ledger_url).keys() == streams.keys()
    # Five, five that were aborted, a mark, five, and a mark that no consumer sees.
    assert [each.next_offset for each in ledger.consumer_offsets("g")] == [16]
    ledger.seek_consumer("g", topic, 0, 2, actor="ann")
    apache_kafka.delete_records(topic, 0, 5)
    told: list[str] = []
    with pytest.raises(BrokerUnavailable, match="not in the topic any more"):
        consumer(ledger, apache_kafka, topic, on_problem=told.append).run()
    assert told[0].startswith(f"{topic}/0: offset 2")
    (finding,) = examine(
        ledger, "g", [topic], [ledger.inbox(SOURCE, PATIENT)], {"bootstrap.servers": apache_kafka.bootstrap}
    )
    assert "the topic begins at 5: 3 offsets were removed unread" in finding
