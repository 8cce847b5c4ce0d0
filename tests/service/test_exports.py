"""Exports: everything in one file, over HTTP and through the client; and what becomes of one that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import WAIT_SECONDS, Http, Serve

from ledger import InvalidCommand, Ledger, ServiceUnavailable
from ledger.access import Scope
from ledger.audit.export import Exported, Format, digest_header
from ledger.client import Client
from ledger.service.export_routes import MEDIA_TYPES
from ledger.service.server import Server
from ledger.settings import Limits


class Held(Ledger):
    """A ledger of which an export stands still in its middle, until it may go on."""

    may_go_on: threading.Event
    begun: threading.Semaphore
    ended: threading.Semaphore

    def export(self, *how: Any, progress: Any = None, **named: Any) -> Exported:
        """As it is, but for standing still."""
        self.begun.release()
        try:
            while not self.may_go_on.wait(0.01):
                progress(0)
            return super().export(*how, progress=progress, **named)
        finally:
            self.ended.release()


@pytest.fixture
def held(funded: Ledger) -> Iterator[Held]:
    """The ledger in which alice has 70.00 USD, with exports that stand still."""
    funded.stamp()
    funded.__class__ = Held
    assert isinstance(funded, Held)
    funded.may_go_on, funded.begun, funded.ended = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)
    yield funded
    funded.may_go_on.set()


def asked(server: Server, ledger: Ledger, **parameters: Any) -> httpx.Response:
    """What somebody who may export is answered."""
    secret = ledger.api_keys().create("exporter", [Scope.EXPORT], created_by="test").secret
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.get(
        f"{server.address}/v1/export", params={"format": "csv", **parameters}, headers=headers, timeout=WAIT_SECONDS
    )


@pytest.mark.parametrize("kind", Format)
def test_an_export_is_the_one_of_the_ledger(http: Http, funded: Ledger, kind: Format) -> None:
    """The same bytes for the same position, with their hash, their length and what they hold in the head."""
    funded.stamp()
    last = funded.feed_head()
    file = BytesIO()
    written = funded.export(kind, file, position=last)
    funded.transfer("1 USD", debit="alice", credit="bob")
    funded.stamp()

    answer = http(Scope.EXPORT).get("/v1/export", params={"format": kind.value, "position": last})

    assert (answer.status_code, answer.content) == (200, file.getvalue())
    head = answer.headers
    assert head["content-type"].partition(";")[0] == MEDIA_TYPES[kind]
    assert head["content-digest"] == digest_header(sha256(answer.content).hexdigest())
    assert (head["content-length"], head["ledger-position"]) == (str(len(answer.content)), str(last))
    assert (head["ledger-accounts"], head["ledger-transactions"]) == ("3", str(written.transactions))
    assert f'filename="ledger-{last}.' in head["content-disposition"]
    assert head["cache-control"] == "no-store"


def test_export_that_cannot_be_is_a_problem(http: Http, funded: Ledger) -> None:
    """A position that is not there, or lies within a transaction, and a format that is none: nothing has begun."""
    funded.stamp()
    client, last = http(Scope.EXPORT), funded.feed_head()

    for wrong in ({"position": last + 1}, {"position": last - 1}, {"format": "pdf"}, {"position": -1}):
        answer = client.get("/v1/export", params={"format": "csv", **wrong})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_command")
    assert client.get("/v1/export").json()["fields"]["where"] == "format"


def test_client_exports_as_the_ledger_does(service: Server, funded: Ledger, tmp_path: Path) -> None:
    """Into a new file or an open one, with the same answer; a file that is there is left alone."""
    funded.stamp()
    secret = funded.api_keys().create("exporter", [Scope.EXPORT], created_by="test").secret
    ours, theirs, opened = tmp_path / "ours", tmp_path / "theirs", BytesIO()
    written = funded.export("hledger", ours)
    with Client(service.address, secret) as client:
        assert client.export("hledger", theirs) == client.export("hledger", opened, position=written.position)
        found = client.export("hledger", str(tmp_path / "third"))
        with pytest.raises(InvalidCommand, match="it exists"):
            client.export("hledger", theirs)
        with pytest.raises(InvalidCommand, match="none of"):
            client.export("pdf", tmp_path / "fourth")
        with pytest.raises(InvalidCommand, match="position"):
            client.export("csv", tmp_path / "fourth", position=10**6)

    assert ours.read_bytes() == theirs.read_bytes() == opened.getvalue()
    assert (found.sha256, found.position, found.entries) == (written.sha256, written.position, written.entries)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs", "third"]


def test_what_an_auditor_exports_is_on_record(funded: Ledger, serve: Serve) -> None:
    """Every account in the file, and none that was opened later; of whoever is no auditor nothing is recorded."""
    funded.stamp()
    last = funded.feed_head()
    funded.open_account("carol", asset="USD", type="liability")
    funded.stamp()
    keys = funded.api_keys()
    secret = keys.create("ann", [Scope.AUDIT, Scope.EXPORT], created_by="test").secret
    with serve(funded) as server:
        assert asked(server, funded, position=last).status_code == 200
        headers = {"Authorization": f"Bearer {secret}"}
        asking: dict[str, Any] = {"format": "csv", "position": last}
        assert httpx.get(f"{server.address}/v1/export", params=asking, headers=headers).status_code == 200

    for account in ("alice", "bob", "world"):
        assert [(read.actor, read.question) for read in keys.reads(account)] == [("ann", "export csv")]
    assert keys.reads("carol") == []


def test_few_exports_are_made_at_once(held: Held, serve: Serve) -> None:
    """One more than there are places for is told to come again; the others get what they asked for."""
    with serve(held, limits=Limits(exports=1)) as server:
        first: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: first.append(asked(server, held)))
        thread.start()
        assert held.begun.acquire(timeout=WAIT_SECONDS)
        second = asked(server, held)
        held.may_go_on.set()
        thread.join(WAIT_SECONDS)

    assert (second.status_code, second.json()["code"]) == (429, "too_many_requests")
    assert "retry-after" in second.headers
    assert [answer.status_code for answer in first] == [200]


def test_export_ends_when_nobody_waits_for_it(held: Held, serve: Serve) -> None:
    """Whoever asked goes away: it is made no further, and its place is free for the next."""
    secret = held.api_keys().create("app", [Scope.EXPORT], created_by="test").secret
    headers = {"Authorization": f"Bearer {secret}"}
    with serve(held, limits=Limits(exports=1)) as server:
        url, impatient = f"{server.address}/v1/export?format=csv", httpx.Timeout(WAIT_SECONDS, read=0.2)

        def ask() -> None:
            # The place is given back right after the thread has ended, and not before.
            while httpx.get(url, headers=headers, timeout=impatient).status_code == 429:
                pass

        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                ask()
            assert held.begun.acquire(timeout=WAIT_SECONDS)
            assert held.ended.acquire(timeout=WAIT_SECONDS)


class Large(Ledger):
    """A ledger of which an export is larger than what may be on its way."""

    def export(self, format: str, target: Any, **named: Any) -> Exported:
        """As it is, with much behind it."""
        written = super().export(format, target, **named)
        for _ in range(64):
            target.write(bytes(2**20))
        return written


def test_export_that_is_read_no_further_gives_its_place_back(funded: Ledger, serve: Serve) -> None:
    """Whoever goes away in the middle of the file leaves nothing behind."""
    funded.__class__ = Large
    secret = funded.api_keys().create("app", [Scope.EXPORT], created_by="test").secret
    with (
        serve(funded, limits=Limits(exports=1)) as server,
        httpx.Client(
            base_url=server.address, headers={"Authorization": f"Bearer {secret}"}, timeout=WAIT_SECONDS
        ) as client,
    ):
        with client.stream("GET", "/v1/export", params={"format": "csv"}) as answer:
            length = int(answer.headers["content-length"])
            assert answer.status_code == 200
            assert client.get("/v1/export", params={"format": "csv"}).status_code == 429
        while (again := client.get("/v1/export", params={"format": "csv"})).status_code == 429:
            # Until the service has noticed.
            pass

    assert (again.status_code, len(again.content)) == (200, length)


def test_export_ends_in_time(held: Held, serve: Serve) -> None:
    """What takes longer than it may is a problem, and is made no further."""
    with serve(held, limits=Limits(export_seconds=0.1)) as server:
        answer = asked(server, held)

        assert (answer.status_code, answer.json()["code"]) == (503, "deadline_exceeded")
        assert held.ended.acquire(timeout=WAIT_SECONDS)


def test_service_that_ends_does_not_wait_for_an_export(held: Held, serve: Serve) -> None:
    """It is told to ask again, and the service is gone long before the export would be made."""
    told: list[httpx.Response] = []
    with serve(held) as server:
        thread = threading.Thread(target=lambda: told.append(asked(server, held)))
        thread.start()
        assert held.begun.acquire(timeout=WAIT_SECONDS)
    thread.join(WAIT_SECONDS)

    assert [(answer.status_code, answer.json()["code"]) for answer in told] == [(503, "service_unavailable")]


def test_client_refuses_what_is_not_what_its_hash_is_of(
    service: Server, funded: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte that was changed on the way is noticed, and no file appears."""
    funded.stamp()
    secret = funded.api_keys().create("exporter", [Scope.EXPORT], created_by="test").secret
    changed = httpx.Response.iter_bytes
    monkeypatch.setattr(httpx.Response, "iter_bytes", lambda self: (part[:-1] + b"?" for part in changed(self)))

    with Client(service.address, secret) as client, pytest.raises(ServiceUnavailable, match="hash"):
        client.export("csv", tmp_path / "file")

    assert list(tmp_path.iterdir()) == []
