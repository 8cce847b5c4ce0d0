"""
A real Apache Kafka: one node, KRaft, on free ports, its jars fetched with Maven and pinned by their checksums.

The list of checksums is made anew, after a look at what changed, with

    python tests/brokers/apache_kafka.py
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import confluent_kafka
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic
from processes import WAIT_SECONDS, Server, free_ports

_HERE: Final = Path(__file__).parent
_POM: Final = _HERE / "kafka.pom.xml"
_SUMS: Final = _HERE / "kafka.sha256"
_FETCH: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_FETCH_SECONDS: Final = 600
_PROPERTIES: Final = """
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL
listener.name.secure.ssl.keystore.type=PKCS12
listener.name.secure.ssl.keystore.location={folder}/broker.p12
listener.name.secure.ssl.keystore.password={password}
listener.name.secure.sasl.enabled.mechanisms=PLAIN
listener.name.secure.plain.sasl.jaas.config={plain} required user_{user}="{password}";
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=500
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=100
"""


USER: Final = "ann"
PASSWORD: Final = "not-a-secret"  # noqa: S105
_PLAIN: Final = "org.apache.kafka.common.security.plain.PlainLoginModule"


class NotToBeHad(Exception):
    """Why there is no Kafka here."""


def why_not() -> str | None:
    """What is missing to run it, if anything is."""
    missing = [name for name in ("java", "keytool", "mvn") if shutil.which(name) is None]
    return f"a real Kafka needs {', '.join(missing)}" if missing else None


def jars() -> Path:
    """
    The folder with Kafka's jars, fetched if it is not there yet.

    Raises:
        NotToBeHad: They cannot be fetched, or are not the ones that were pinned.
    """
    pinned = _SUMS.read_text()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ledger-tests"
    folder = cache / f"kafka-{hashlib.sha256(pinned.encode()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                fetched = _fetch(Path(scratch) / "jars")
                if _sums(fetched) != pinned:
                    raise NotToBeHad("the jars that Maven fetched are not the ones in kafka.sha256")
                fetched.rename(folder)
    return folder


def _fetch(folder: Path) -> Path:
    command = ["mvn", "-q", "-B", "-f", str(_POM), _FETCH, "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NotToBeHad(f"Maven did not fetch Kafka within {_FETCH_SECONDS} s") from None
    if done.returncode:
        raise NotToBeHad(f"Maven cannot fetch Kafka: {(done.stdout + done.stderr)[-500:]}")
    return folder


def _sums(folder: Path) -> str:
    return "".join(
        f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n" for jar in sorted(folder.glob("*.jar"))
    )


class ApacheKafka:
    """A broker that can be stopped, killed and started again with what it has."""

    def __init__(self, folder: Path) -> None:
        port, secure, controller = free_ports(3)
        self.bootstrap = f"127.0.0.1:{port}"
        self.secure = f"127.0.0.1:{secure}"
        """Where clients need TLS, with `certificate`, and SASL, as USER with PASSWORD."""

        self.certificate = folder / "broker.pem"
        self._make_certificate(folder / "broker.p12")
        properties = folder / "server.properties"
        ports = {"port": port, "secure": secure, "controller": controller}
        user = {"plain": _PLAIN, "user": USER, "password": PASSWORD}
        properties.write_text(_PROPERTIES.format(**ports, **user, folder=folder))
        java = ["java", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp", f"{jars()}/*"]
        identity = uuid4().hex[:22]
        formatting = [*java, "kafka.tools.StorageTool", "format", "--standalone", "-t", identity, "-c", str(properties)]
        done = subprocess.run(formatting, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
        if done.returncode:
            raise NotToBeHad(f"Kafka cannot be set up: {(done.stdout + done.stderr)[-500:]}")
        self._server = Server([*java, "kafka.Kafka", str(properties)], folder / "log")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._server.start(self._answers)

    def stop(self) -> None:
        """Stop it in good order."""
        self._server.stop()

    def kill(self) -> None:
        """End it without a warning."""
        self._server.kill()

    def create_topic(self, topic: str, partitions: int, **config: str) -> None:
        """Create a topic, and wait until it is there."""
        wanted = NewTopic(topic, partitions, 1, config=config)
        # Kept until it has answered: it gives up with the last reference to it.
        admin = self._admin()
        admin.create_topics([wanted])[topic].result(WAIT_SECONDS)

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Remove the first records of a partition, as retention does."""
        place = confluent_kafka.TopicPartition(topic, partition, before)
        admin = self._admin()
        admin.delete_records([place])[place].result(WAIT_SECONDS)

    def add_partitions(self, topic: str, partitions: int) -> None:
        """Make a topic larger."""
        admin = self._admin()
        admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(WAIT_SECONDS)

    def _make_certificate(self, store: Path) -> None:
        """A key of its own, and a certificate that it has signed itself."""
        keys = ["-alias", "broker", "-keystore", str(store), "-storepass", PASSWORD]
        named = ["-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1"]
        for command in (
            ["-genkeypair", "-keyalg", "EC", "-storetype", "PKCS12", *named, *keys],
            ["-exportcert", "-rfc", "-file", str(self.certificate), *keys],
        ):
            subprocess.run(
                [shutil.which("keytool") or "keytool", *command], capture_output=True, timeout=WAIT_SECONDS, check=True
            )

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def _answers(self) -> bool:
        try:
            return bool(self._admin().list_topics(timeout=1).brokers)
        except confluent_kafka.KafkaException:
            return False


@contextmanager
def running() -> Iterator[ApacheKafka]:
    """A broker of its own, gone with its data at the end."""
    with tempfile.TemporaryDirectory(prefix="ledger-kafka-") as folder:
        kafka = ApacheKafka(Path(folder))
        try:
            yield kafka
        finally:
            kafka.kill()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        _SUMS.write_text(_sums(_fetch(Path(scratch) / "jars")))
    sys.stdout.write(f"{_SUMS}\n")
