"""The commands about brokers, where something is missing: one line that says what, and the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import Program, forking, program

__all__ = ["forking", "program"]

WHERE = ["--bootstrap", "127.0.0.1:1", "--topic", "t", "--group", "g", "--source", "bank"]


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("confluent_kafka", "kafka", ["consume", "kafka", *WHERE]),
        ("confluent_kafka", "kafka", ["doctor", "kafka", *WHERE]),
        ("pika", "rabbitmq", ["consume", "rabbitmq", "--url", "amqp://x", "--queue", "q", "--source", "bank"]),
    ],
)
def test_without_its_extra_it_says_so(module: str, extra: str, arguments: list[str]) -> None:
    """The client of a broker that is not installed is named with the extra that brings it."""
    code = f"import sys; sys.modules[{module!r}] = None; from ledger.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"pip install 'ledger[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("ledger")
def test_offsets_of_a_group_that_read_nothing(program: Program) -> None:
    """Nothing is shown as nothing, and there is nothing to go on from."""
    shown = program("consume", "offsets", "--group", "g", "--json")
    assert (shown.returncode, json.loads(shown.stdout)) == (0, {"group": "g", "offsets": []})
    refused = program("consume", "seek", "payments", "0", "5", "--group", "g")
    assert refused.returncode == 2
    assert "has never read payments/0" in refused.stderr


@pytest.mark.usefixtures("ledger")
def test_broken_settings_file(program: Program, tmp_path: Path) -> None:
    """A line that is no setting, or a setting that is not the caller's, is named before anything is connected."""
    file = tmp_path / "client.properties"
    for content, problem in (("what\n", "line 1"), ("enable.auto.commit=true\n", "enable.auto.commit")):
        file.write_text(content)
        refused = program("consume", "kafka", *WHERE, "--config", str(file))
        assert refused.returncode == 2
        assert problem in refused.stderr


@pytest.mark.usefixtures("ledger")
def test_url_that_is_none(program: Program) -> None:
    """A URL of something else is refused, and how one looks is said."""
    refused = program("consume", "rabbitmq", "--url", "http://x", "--queue", "q", "--source", "bank")
    assert refused.returncode == 2
    assert "write amqp://" in refused.stderr


@pytest.mark.usefixtures("ledger")
def test_queue_without_a_name(program: Program) -> None:
    """RabbitMQ would make a queue up, another one each time: none of ours."""
    refused = program("consume", "rabbitmq", "--url", "amqp://127.0.0.1:1", "--queue", "", "--source", "bank")
    assert (refused.returncode, refused.stderr) == (2, "ledger: queue: it has no name\n")


@pytest.mark.usefixtures("ledger")
def test_doctor_without_a_broker(program: Program) -> None:
    """What a client logs while it tries is nobody's answer: one line says that Kafka cannot be reached."""
    refused = program("doctor", "kafka", *WHERE)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("ledger: Kafka: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.usefixtures("ledger")
def test_rabbitmq_that_is_not_there(ledger_url: str) -> None:
    """It is tried again, and why is said; SIGTERM ends the trying in good order."""
    options = ["--url", "amqp://127.0.0.1:1/?connection_attempts=1", "--queue", "q", "--source", "bank", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "ledger", "consume", "rabbitmq", *options],
        env={**os.environ, "LEDGER_DATABASE_URL": ledger_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        process.terminate()
        rest = process.communicate(timeout=60)
    assert "refused" in said
    assert (process.returncode, json.loads(rest[0])) == (0, {})


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["consume", "kafka"], "--source"),
        (["consume", "kafka", *WHERE[2:]], "--bootstrap"),
        (["consume", "kafka", *WHERE[:2], *WHERE[4:]], "--topic"),
        (["consume", "rabbitmq", "--source", "bank", "--queue", "q"], "--url"),
        (["doctor", "kafka", *WHERE[:-2]], "--source"),
        (["ingest", "messages.jsonl"], "--source"),
    ],
)
def test_what_must_be_given(program: Program, arguments: list[str], missing: str) -> None:
    """An option that has no default is asked for by its name."""
    refused = program(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"ledger: Missing option '{missing}'")
    assert refused.stderr.count("\n") == 1
