"""`ledger serve` and `ledger keys` as programs: how they begin and end, and what survives a process that is killed."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from certificates import self_signed
from journal import Journal
from serving import WAIT_SECONDS

from ledger import Ledger
from ledger.access import Scope
from ledger.cli.serving import timeouts_of
from ledger.client import Client
from ledger.settings import Limits

CLIENTS = 8
COMMANDS_EACH = 60
KILLED_AFTER = (40, 120, 200)
"""How many were acknowledged when the service is killed, each time."""


@contextmanager
def started(*arguments: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """`ledger …`, which ends with the test at the latest."""
    # Nobody reads its log before it ends: a line for each request would fill the pipe.
    variables = {**os.environ, "LEDGER_DATABASE_URL": url, "LEDGER_SERVE_LOG_LEVEL": "warning"}
    command = [sys.executable, "-m", "ledger", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=variables, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run(*arguments: str, url: str) -> subprocess.CompletedProcess[str]:
    """`ledger …`, which ends by itself."""
    with started(*arguments, url=url) as process:
        out, err = process.communicate(timeout=WAIT_SECONDS)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def address_of(process: subprocess.Popen[str]) -> str:
    """Where it says that it listens."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], WAIT_SECONDS)
    assert ready, "it does not say where it listens"
    said = process.stdout.readline()
    assert said.startswith("listening on http"), said
    return said.split()[-1]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def test_keys_on_the_command_line(ledger_url: str) -> None:
    """Made, shown once, listed without the secret, revoked; and as JSON."""
    made = run("keys", "create", "app", "--scope", "append", "--scope", "read", "--by", "ann", url=ledger_url)
    secret, said = made.stdout.splitlines()
    key = secret.split("_")[1]
    assert said == f"this is shown once; it is key {key} of app"
    listed = run("keys", "list", url=ledger_url)
    assert "append read" in listed.stdout
    assert "ann" in listed.stdout
    assert secret.split("_", 2)[2] not in listed.stdout
    assert run("keys", "revoke", key, "--by", "bob", url=ledger_url).stdout == f"revoked key {key} of app\n"
    (plain,) = json.loads(run("keys", "list", "--json", url=ledger_url).stdout)["keys"]
    assert (plain["active"], plain["revoked_by"], plain["scopes"]) == (False, "bob", ["append", "read"])
    unknown = run("keys", "revoke", "nonsense", url=ledger_url)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "give a certificate and its key"),  # noqa: S104  (it is what is refused)
        (["--host", "0.0.0.0", "--behind-proxy", "--without-authentication"], "there must be authentication"),  # noqa: S104
        (["--certificate", "nowhere"], "give both"),
        (["--certificate", "nowhere", "--private-key", "nowhere"], "nowhere"),
    ],
)
def test_what_would_be_open_to_others_is_refused(ledger_url: str, arguments: list[str], said: str) -> None:
    """One line that says what to do, and exit code 2."""
    done = run("serve", *arguments, url=ledger_url)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def test_no_statement_is_given_up_before_its_audit() -> None:
    """The database stops what nobody waits for any more, and nothing sooner."""
    assert timeouts_of(Limits()).statement_seconds == Limits().audit_seconds == 300
    assert timeouts_of(Limits(several_seconds=400.0)).statement_seconds == 400


def test_schema_that_is_not_at_head_is_refused(ledger: Ledger, ledger_url: str) -> None:
    """One line that says which it is and what to do; and so is a port that is taken."""
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("UPDATE ledger.schema_version SET version_num = '0007'")
        old = run("serve", "--port", "0", url=ledger_url)
        connection.execute("DROP TABLE ledger.schema_version")
        none = run("serve", "--port", "0", url=ledger_url)

    assert (old.returncode, none.returncode) == (2, 2)
    assert "is at revision 0007" in old.stderr
    assert "Run `ledger migrate`" in old.stderr
    assert "holds no ledger" in none.stderr
    assert old.stderr.count("\n") == none.stderr.count("\n") == 1
    assert ledger.schema == "ledger"


def test_port_that_is_taken_is_refused(ledger_url: str) -> None:
    """One line that says which port, and why."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        done = run("serve", "--port", str(port), url=ledger_url)

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"127.0.0.1:{port}" in done.stderr


def test_it_speaks_tls(funded: Ledger, secrets: dict[Scope, str], ledger_url: str, tmp_path: Path) -> None:
    """With a certificate it is https, and nobody is answered without."""
    chain, key = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=str(chain))
    arguments = ["serve", "--port", "0", "--certificate", str(chain), "--private-key", str(key)]
    with started(*arguments, url=ledger_url) as process:
        address = address_of(process)
        with Client(address, secrets[Scope.READ], verify=trusting) as client:
            assert client.balance("alice") == funded.balance("alice")
        with pytest.raises(httpx.TransportError):
            httpx.get(address.replace("https", "http"))

    assert address.startswith("https://127.0.0.1:")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_was_accepted_is_answered_before_it_ends(
    funded: Ledger, secrets: dict[Scope, str], ledger_url: str, number: signal.Signals
) -> None:
    """Told to stop in the middle of everything, it answers all requests that it has read, and ends with 0."""

    def send(address: str, key: int) -> int:
        body = {"amount": "1 USD", "debit": "alice", "credit": "bob"}
        headers = {"Authorization": f"Bearer {secrets[Scope.APPEND]}", "Idempotency-Key": f"k-{key}"}
        return httpx.post(f"{address}/v1/transfer", json=body, headers=headers, timeout=WAIT_SECONDS).status_code

    with (
        started("serve", "--port", "0", url=ledger_url) as process,
        psycopg.connect(ledger_url) as blocking,
        psycopg.connect(ledger_url, autocommit=True) as watching,
        ThreadPoolExecutor(CLIENTS) as threads,
    ):
        address = address_of(process)
        blocking.execute("SELECT 1 FROM ledger.balances WHERE stream = 'alice' FOR UPDATE")
        sent = [threads.submit(send, address, key) for key in range(CLIENTS)]
        while not watching.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchall():
            # Until the first of them waits for alice.
            pass
        for _ in range(CLIENTS):
            # Whoever asked before these has been read.
            assert httpx.get(f"{address}/openapi.json").status_code == 200
        process.send_signal(number)
        blocking.rollback()
        answered = [each.result(WAIT_SECONDS) for each in sent]
        assert process.wait(WAIT_SECONDS) == 0

    assert answered == [201] * CLIENTS
    assert str(funded.balance("alice").posted) == "62.00 USD"


def test_what_was_acknowledged_survives_kill_9(
    funded: Ledger, secrets: dict[Scope, str], ledger_url: str, tmp_path: Path
) -> None:
    """Killed under load again and again, it has each acknowledged transfer once, and no other twice."""
    port = free_port()
    load = Load(f"http://127.0.0.1:{port}", secrets[Scope.APPEND], tmp_path)
    with ThreadPoolExecutor(CLIENTS) as threads:
        working = [threads.submit(load.send, number) for number in range(CLIENTS)]
        try:
            for acknowledged in KILLED_AFTER:
                with started("serve", "--port", str(port), url=ledger_url) as process:
                    address_of(process)
                    load.is_up.set()
                    load.wait_for(acknowledged)
                    load.is_up.clear()
                    process.kill()
            with started("serve", "--port", str(port), url=ledger_url) as process:
                address_of(process)
                load.is_up.set()
                for each in working:
                    each.result(WAIT_SECONDS)
                process.terminate()
                assert process.wait(WAIT_SECONDS) == 0
        finally:
            load.give_up()

    kept = [Journal(tmp_path / f"{number}") for number in range(CLIENTS)]
    for journal in kept:
        journal.assert_kept(funded)
    acknowledged_in_all = sum(len(journal.acknowledged) for journal in kept)
    assert load.lost >= 1, "it was killed while nobody waited"
    # All that was sent until it was answered was done; of what was given up, some.
    assert acknowledged_in_all + load.given_up == CLIENTS * COMMANDS_EACH
    moved = funded.balance("bob").version - 2
    assert acknowledged_in_all <= moved <= acknowledged_in_all + load.given_up
    assert funded.verify().ok


class Load:
    """Clients that transfer cents, and write down what they ask for and what was answered."""

    def __init__(self, address: str, secret: str, folder: Path) -> None:
        self._address, self._folder = address, folder
        self._headers = {"Authorization": f"Bearer {secret}"}
        self._moved = threading.Condition()
        self._acknowledged = 0
        self.lost = 0
        """Requests whose answer did not come."""

        self.given_up = 0
        self.is_up = threading.Event()
        self._is_over = False

    def send(self, number: int) -> None:
        """One client: each command again with its key until it is answered, but every fourth, which is given up."""
        journal = Journal(self._folder / str(number))
        with httpx.Client(base_url=self._address, headers=self._headers, timeout=WAIT_SECONDS) as client:
            for place in range(COMMANDS_EACH):
                reference = f"{number}-{place}"
                journal.write(asked=[reference])
                answer = None
                while answer is None and not self._is_over:
                    answer = self._ask(client, reference)
                    if answer is None and place % 4 == 0:
                        break
                if answer is None:
                    with self._moved:
                        self.given_up += 1
                else:
                    journal.write(acknowledged={reference: answer["transaction_id"]})
                    with self._moved:
                        self._acknowledged += 1
                        self._moved.notify_all()

    def _ask(self, client: httpx.Client, reference: str) -> Any:
        assert self.is_up.wait(WAIT_SECONDS)
        body = {"amount": "0.01 USD", "debit": "alice", "credit": "bob", "reference": reference}
        try:
            answer = client.post("/v1/transfer", json=body, headers={"Idempotency-Key": reference})
        except httpx.TransportError:
            with self._moved:
                self.lost += 1
            return None
        assert answer.is_success, answer.text
        return answer.json()

    def wait_for(self, acknowledged: int) -> None:
        """Wait until so many were."""
        with self._moved:
            assert self._moved.wait_for(lambda: self._acknowledged >= acknowledged, WAIT_SECONDS)

    def give_up(self) -> None:
        """Let everybody end."""
        self._is_over = True
        self.is_up.set()
