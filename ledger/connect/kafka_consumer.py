"""
A consumer that cannot be wrong: the database, not the broker, says who may move an offset.

    poll → a queue for each partition → a worker takes some → one transaction: offset moved, messages taken in

The thread that calls `run` talks to Kafka, and does nothing else that could take long but claim partitions.  Workers
take the records of one partition at a time, in order.  A transaction begins by moving the partition's offset for the
epoch that was claimed: whoever has lost the partition meanwhile writes nothing, whatever the broker still believes.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from functools import partial
from typing import Any, Final
from uuid import uuid4

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from ledger.connect.kafka_clients import logger, made_consumer
from ledger.connect.kafka_partition import BACKOFF_SECONDS, BACKOFF_SECONDS_MAX, Partition
from ledger.connect.kafka_settings import Config, Protocol, Start, consuming
from ledger.connect.problems import Problems
from ledger.core.errors import BrokerUnavailable, InvalidCommand, LedgerError
from ledger.inbox import TOGETHER_MAX, Inbox
from ledger.intake import Delivery, Intake, together, totals
from ledger.order.decoders import Decoder, cloudevents
from ledger.storage import offsets
from ledger.storage.offsets import AlreadyTaken, Claim, Fenced, Place

RECORDS_MAX: Final = TOGETHER_MAX
"""Records in one transaction."""

WORKERS_MAX: Final = 8

# librdkafka's own errors have negative numbers, and names that Python takes for private ones.
_END: Final = KafkaError._PARTITION_EOF  # noqa: SLF001
_OUT_OF_RANGE: Final = KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001

_POLL_SECONDS: Final = 0.1
_TICK_SECONDS: Final = 1.0
_HINT_SECONDS: Final = 5.0
_ASK_SECONDS: Final = 10.0
_REVOKE_SECONDS: Final = 30.0
"""How long a batch on its way may take, before its partition is given up all the same: the fence holds anyway."""

_QUEUED_BATCHES: Final = 4
"""A partition with so many batches waiting is paused, until all but one are done."""

_QUEUED_BYTES: Final = 64 * 1024 * 1024
"""With so much waiting, every partition that has some is paused, until half of it is done: few records may be large."""


class Consumer:
    """
    Takes the messages of topics into inboxes: every effect exactly once, the messages of a stream in order.

    Through rebalances, frozen and killed members, brokers that go away and databases that do.
    """

    def __init__(
        self,
        inboxes: Iterable[Inbox],
        topics: Sequence[str],
        group: str,
        config: Config,
        *,
        protocol: Protocol = Protocol.COOPERATIVE,
        start: Start | None = None,
        decode: Decoder = cloudevents,
        records_max: int = 500,
        workers: int = 2,
        to_end: bool = False,
        on_problem: Callable[[str], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """
        `inboxes` are those of the sources whose messages the topics hold; the first is that of messages that name none.

        `config` are librdkafka's settings, "bootstrap.servers" at least.  `start` says where to begin in a partition
        that the group has never read: unless it is said, such a partition is not read, and reported.  Up to
        `records_max` records of a partition are one transaction.  So many `workers` carry out partitions at the same
        time, each with a connection of the ledger's pool, which needs two more.  With `to_end` it stops once it has
        read all there is.  `progress` hears of how many records were taken in.

        Raises:
            InvalidCommand: A setting is not the caller's to set, or out of bounds.
        """
        if isinstance(topics, str) or not topics:
            raise InvalidCommand("topics", f"name them in a list: [{topics!r}]")
        if not group:
            raise InvalidCommand("group", "it has no name")
        if not 1 <= records_max <= RECORDS_MAX:
            raise InvalidCommand("records_max", f"{records_max} is not from 1 to {RECORDS_MAX}")
        if not 1 <= workers <= WORKERS_MAX:
            raise InvalidCommand("workers", f"{workers} is not from 1 to {WORKERS_MAX}")
        self.group = group
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._intake = Intake(inboxes, decode)
        self._database = self._intake.inboxes[0].database
        self._topics = list(topics)
        self._told = consuming(config, group, protocol)
        self._by_increments = protocol is not Protocol.EAGER
        self._start = start
        self._records_max = records_max
        self._workers = workers
        self._to_end = to_end
        self._problems = Problems(on_problem or (lambda problem: logger.warning("%s", problem)))
        self._progress = progress
        self._stopping = threading.Event()
        self._partitions: dict[Place, Partition] = {}
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._failure: Exception | None = None
        self._left: list[Place] = []
        self._client: Any = None
        self._pool: Any = None
        self._ticking: Future[None] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """What it did so far: records, and of their messages what came of them; how often it was fenced."""
        with self._counting:
            return dict(self._counts)

    @property
    def stopped(self) -> list[Place]:
        """
        Partitions that are not read until a person has looked at them; what was told says why.

        Once it has ended, those that were not read then.
        """
        if self._client is None:
            return self._left
        return [place for place, each in list(self._partitions.items()) if each.stopped]

    def stop(self) -> None:
        """Let `run` finish what is on its way and return; from any thread, or a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """
        Consume until told to stop, or to the end.

        Raises:
            InvalidCommand: Kafka's client does not know a setting.
            BrokerUnavailable: The client cannot go on, or none of the partitions can be read: what was told says why.
            LedgerError: The ledger cannot go on.  What was not taken in stays where it is.
        """
        self._client = made_consumer({**self._told, "error_cb": self._client_failed})
        try:
            with ThreadPoolExecutor(self._workers + 1, "ledger-kafka") as self._pool:
                handlers = {"on_assign": self._assigned, "on_revoke": self._revoked, "on_lost": self._lost}
                self._client.subscribe(self._topics, **handlers)
                try:
                    self._consume()
                finally:
                    self._stopping.set()
                    wait_for([each.at_work for each in self._partitions.values() if each.at_work], _REVOKE_SECONDS)
                    self._hint(self._partitions.values())
                    # The client gives all of them back as it closes.
                    self._left = self.stopped
                    self._client.close()
        finally:
            self._client = None
        if self._failure is not None:
            raise self._failure

    def _consume(self) -> None:
        tick_at = hint_at = time.monotonic()
        while not self._stopping.is_set():
            self._poll()
            now = time.monotonic()
            self._look_after_partitions(now)
            if self._progress is not None:
                self._progress(self._counts["records"])
            if now >= tick_at and (self._ticking is None or self._ticking.done()):
                tick_at = now + _TICK_SECONDS
                self._ticking = self._pool.submit(self._tick)
            if now >= hint_at:
                hint_at = now + _HINT_SECONDS
                self._hint(self._partitions.values())
            if self._to_end and self._is_at_end():
                return

    def _poll(self) -> None:
        """Take what librdkafka has; a record at a time, each of which it checks to be of a partition still ours."""
        record = self._client.poll(_POLL_SECONDS)
        taken, size = 0, self._waiting_bytes()
        while record is not None:
            self._route(record)
            taken += 1
            size += len(record)
            record = self._client.poll(0) if taken < RECORDS_MAX and size < _QUEUED_BYTES else None

    def _route(self, record: confluent_kafka.Message) -> None:
        place = Place(str(record.topic()), record.partition())  # type: ignore[arg-type]
        partition = self._partitions.get(place)
        error, offset = record.error(), record.offset()
        is_end = error is not None and error.code() == _END
        if error is not None and not is_end:
            self._broken(partition, error)
            return
        if partition is None:
            return
        assert offset is not None
        with partition.lock:
            if not partition.epoch or partition.skips(offset):
                return
            if is_end:
                partition.awaited, partition.at_end = offset, True
            else:
                partition.put(record, offset)
                if partition.at_work is None:
                    partition.at_work = self._pool.submit(self._work, partition)

    def _broken(self, partition: Partition | None, error: KafkaError) -> None:
        """What comes in place of a record."""
        if error.code() == _OUT_OF_RANGE and partition is not None:
            self._stop_partition(
                partition,
                f"offset {partition.next_offset}, where group {self.group!r} stands, is not in the topic any more: what"
                " lay between is lost to this group. Look for it elsewhere, then choose an offset (ledger consume"
                " seek) and start the consumer again",
            )
        elif error.fatal():
            raise BrokerUnavailable(f"Kafka: {error.str()}.", "Start the consumer again.")
        else:
            self._tell(None if partition is None else partition.place, error.str())

    def _look_after_partitions(self, now: float) -> None:
        """Claim what is to be claimed, and hold back partitions whose records come faster than they are taken in."""
        unclaimed = [each for each in self._partitions.values() if not each.epoch]
        for partition in unclaimed:
            if not partition.paused:
                self._pause(partition)
        if due := [each for each in unclaimed if each.is_due(now)]:
            self._claim(due)
        size = self._waiting_bytes()
        for partition in self._partitions.values():
            if not partition.epoch:
                if partition.claim is not None and not partition.stopped and self._sought(partition):
                    partition.go_on(partition.claim)
                    self._resume(partition)
            elif partition.astray:
                partition.astray = not self._sought(partition)
            else:
                self._hold_back(partition, size)

    def _hold_back(self, partition: Partition, size: int) -> None:
        """Let a partition pause, or go on, by what waits of it, and of all."""
        count = len(partition.waiting)
        if partition.paused:
            if count <= self._records_max and size <= _QUEUED_BYTES // 2:
                self._resume(partition)
        elif count >= _QUEUED_BATCHES * self._records_max or (count and size >= _QUEUED_BYTES):
            self._pause(partition)

    def _waiting_bytes(self) -> int:
        return sum(each.waiting_bytes for each in self._partitions.values())

    # Partitions come and go; called by the client, within `poll`, where nothing else may be asked of it

    def _assigned(self, client: Any, given: list[TopicPartition]) -> None:
        partitions = [Partition(Place(each.topic, each.partition)) for each in given]
        self._partitions |= {partition.place: partition for partition in partitions}
        # Where to begin is known once they are claimed.
        assignment = [TopicPartition(*each.place, confluent_kafka.OFFSET_END) for each in partitions]
        (client.incremental_assign if self._by_increments else client.assign)(assignment)

    def _revoked(self, client: Any, taken: list[TopicPartition]) -> None:
        """Finish what is on its way, or leave it to the fence; then give the partitions up."""
        partitions = self._give_up(taken)
        wait_for([each.at_work for each in partitions if each.at_work], _REVOKE_SECONDS)
        self._unassign(client, taken)

    def _lost(self, client: Any, taken: list[TopicPartition]) -> None:
        """They are somebody else's already."""
        self._give_up(taken)
        self._unassign(client, taken)

    def _give_up(self, taken: list[TopicPartition]) -> list[Partition]:
        places = [Place(each.topic, each.partition) for each in taken]
        partitions = [self._partitions.pop(place) for place in places if place in self._partitions]
        for partition in partitions:
            with partition.lock:
                partition.gone = True
                partition.drop()
        return partitions

    def _unassign(self, client: Any, taken: list[TopicPartition]) -> None:
        if self._by_increments:
            client.incremental_unassign(taken)
        else:
            client.unassign()

    # Who may move an offset

    def _claim(self, partitions: Sequence[Partition]) -> None:
        """Take the epochs of partitions, as far as the broker still says that they are ours, and where they begin."""
        try:
            counts = {topic: self._partitions_of(topic) for topic in {each.place.topic for each in partitions}}
            wanted = {each.place: counts[each.place.topic] for each in partitions}
            claims = self._in_transaction(partial(offsets.claim, group=self.group, owner=self.owner, partitions=wanted))
            for partition in partitions:
                partition.claim = claims[partition.place]
                partition.next_offset = self._begin(partition, partition.claim)
        except (LedgerError, KafkaException) as error:
            self._failed(error, None)
            for partition in partitions:
                partition.back_off()

    def _begin(self, partition: Partition, claim: Claim) -> int | None:
        """Where to begin in a partition that was claimed."""
        if claim.next_offset is not None:
            return claim.next_offset
        if self._start is None:
            self._stop_partition(
                partition,
                f"group {self.group!r} has never read it, and where to begin was not chosen: earliest or latest",
            )
            return None
        ends = self._client.get_watermark_offsets(TopicPartition(*partition.place), timeout=_ASK_SECONDS)
        if ends is None:
            raise BrokerUnavailable(f"Kafka does not say where {partition.place} begins.", "It is asked again.")
        offset = ends[self._start is Start.LATEST]
        # On record: who takes over before the first record goes on from here, and not from a later end.
        begin = partial(offsets.begin, group=self.group, place=partition.place, epoch=claim.epoch, offset=offset)
        self._in_transaction(begin)
        return int(offset)

    def _sought(self, partition: Partition) -> bool:
        """Fetch from where the next record is awaited; whether the client is that far yet, or it is asked again."""
        offset = partition.awaited if partition.epoch else partition.next_offset
        assert offset is not None
        try:
            self._client.seek(TopicPartition(*partition.place, offset))
        except KafkaException as error:
            logger.debug("%s cannot be read yet: %s", partition.place, error)
            return False
        return True

    def _in_transaction(self, work: Callable[..., Any]) -> Any:
        with self._database.connection() as connection, connection.transaction():
            return work(connection)

    def _partitions_of(self, topic: str) -> int:
        found = self._client.list_topics(topic, timeout=_ASK_SECONDS).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return len(found.partitions)

    # Workers

    def _work(self, partition: Partition) -> None:
        """Take the records of a partition in, for as long as there are any."""
        try:
            while not self._stopping.is_set() and (records := partition.take(self._records_max)):
                self._take_in(partition, records)
        except Fenced as fenced:
            logger.info("%s", fenced)
            self._count(fenced=1)
            partition.let_go()
        except Exception as error:  # noqa: BLE001  (`run` raises it)
            self._failed(error, partition.place)
            partition.let_go()

    def _take_in(self, partition: Partition, records: list[confluent_kafka.Message]) -> None:
        deliveries = [self._read(record) for record in records]
        attempts = 0
        while records:
            count = together(deliveries, TOGETHER_MAX)
            try:
                self._take_together(partition, records[:count], deliveries[:count])
            except AlreadyTaken as already:
                # By a commit whose acknowledgement was lost, or by whoever had the partition when these were fetched.
                count = sum(record.offset() < already.next_offset for record in records)  # type: ignore[operator]
            except LedgerError as error:
                attempts += 1
                if not error.retryable or partition.gone or self._stopping.is_set():
                    raise
                self._tell(partition.place, str(error))
                longest = min(BACKOFF_SECONDS * 2**attempts, BACKOFF_SECONDS_MAX)
                self._stopping.wait(random.uniform(longest / 2, longest))  # noqa: S311  (jitter is no secret)
                continue
            attempts = 0
            partition.losses = 0
            del records[:count], deliveries[:count]

    def _take_together(
        self, partition: Partition, records: Sequence[confluent_kafka.Message], deliveries: Sequence[Delivery]
    ) -> None:
        first, last = records[0].offset(), records[-1].offset()
        assert first is not None
        assert last is not None
        fence = partial(
            offsets.move,
            group=self.group,
            place=partition.place,
            epoch=partition.epoch,
            first=first,
            next_offset=last + 1,
        )
        received = self._intake.take(deliveries, fence)
        partition.next_offset = last + 1
        refused = sum(len(delivery.refused) for delivery in deliveries)
        self._count(**totals(received), records=len(records), undecodable=refused, transactions=1)

    def _read(self, record: confluent_kafka.Message) -> Delivery:
        name = f"{record.topic()}/{record.partition()}@{record.offset()}"
        value = record.value()
        return self._intake.read(None if value is None else bytes(value), record.headers() or (), name)  # type: ignore[arg-type]

    def _tick(self) -> None:
        try:
            self._count(**totals(self._intake.tick()))
        except Exception as error:  # noqa: BLE001  (`run` raises it)
            self._failed(error, None)

    # What else

    def _failed(self, error: Exception, place: Place | None) -> None:
        """Go on after what will pass; end `run` with what will not."""
        if isinstance(error, LedgerError) and error.retryable:
            self._tell(place, str(error))
        elif isinstance(error, KafkaException):
            self._tell(place, error.args[0].str())
        else:
            self._failure = self._failure or error
            self._stopping.set()

    def _client_failed(self, error: KafkaError) -> None:
        if error.fatal():
            self._failure = self._failure or BrokerUnavailable(f"Kafka: {error.str()}.", "Start the consumer again.")
            self._stopping.set()
        else:
            self._tell(None, error.str())

    def _stop_partition(self, partition: Partition, problem: str) -> None:
        with partition.lock:
            partition.stopped = True
            partition.epoch = 0
            partition.drop()
        self._tell(partition.place, problem)
        if all(each.stopped for each in self._partitions.values()):
            advice = "Nothing is left to read: start the consumer again when this is mended."
            self._failure = BrokerUnavailable(f"{partition.place}: {problem}.", advice)
            self._stopping.set()

    def _tell(self, place: Place | None, problem: str) -> None:
        self._problems.tell(problem if place is None else f"{place}: {problem}")

    def _count(self, **counts: int) -> None:
        with self._counting:
            self._counts.update(counts)

    def _hint(self, partitions: Iterable[Partition]) -> None:
        """Tell the broker where the group stands.  Nothing rests on it but tools that show its lag."""
        known = [
            TopicPartition(*each.place, each.next_offset)
            for each in partitions
            if each.next_offset is not None and each.epoch
        ]
        if known:
            try:
                self._client.commit(offsets=known, asynchronous=True)
            except KafkaException as error:
                logger.debug("no hint: %s", error)

    def _is_at_end(self) -> bool:
        return bool(self._partitions) and all(
            each.stopped or (each.at_end and each.at_work is None and not each.waiting)
            for each in self._partitions.values()
        )

    def _pause(self, partition: Partition) -> None:
        self._client.pause([TopicPartition(*partition.place)])
        partition.paused = True

    def _resume(self, partition: Partition) -> None:
        self._client.resume([TopicPartition(*partition.place)])
        partition.paused = False
