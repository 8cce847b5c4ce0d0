"""What the service tells whoever watches it: metrics, the order of messages, whether it is alive and ready."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest
from promtool import needed, promtool, samples
from serving import Http, Serve
from sqlalchemy import make_url

from ledger import InvalidCommand, Ledger, Transfer
from ledger.access import Scope
from ledger.core.commands import build
from ledger.health import Check
from ledger.order.cursor import Strict
from ledger.order.message import Message
from ledger.service import gate, health_routes
from ledger.settings import ServiceSettings
from ledger.storage import feed, gauges
from ledger.storage.database import Timeouts

Psql = psycopg.Connection[Any]

TRANSFER = {"amount": "1 USD", "debit": "world", "credit": "alice"}
PATIENCE_SECONDS = 8
"""Less than Prometheus has with a scraper that does not answer."""


@pytest.fixture
def psql(ledger_url: str) -> Iterator[Psql]:
    """A superuser with `psql`: every statement lasts at once."""
    with psycopg.connect(ledger_url, autocommit=True, options="-c search_path=ledger") as connection:
        yield connection


@pytest.fixture
def server(ledger_url: str) -> Iterator[Psql]:
    """A superuser in another database of the server."""
    elsewhere = make_url(ledger_url).set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        yield connection


@contextmanager
def away(ledger: Ledger, server: Psql) -> Iterator[None]:
    """Nobody gets into the ledger's database, and whoever was in it is put out."""
    name = ledger.engine.url.database
    server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
    try:
        yield
    finally:
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())


def transfer(client: httpx.Client, key: str, amount: str = "1 USD") -> httpx.Response:
    """One transfer through the service."""
    return client.post("/v1/transfer", json={**TRANSFER, "amount": amount}, headers={"Idempotency-Key": key})


def message(sequence: int, amount: str = "10 USD", stream: str = "alice") -> Message:
    """A message that brings somebody money."""
    data: dict[str, Any] = {"account": stream, "amount": amount, "against": "world"}
    return Message("bank", f"{stream}-{sequence}", "ledger.deposit", stream, sequence, data=data)


def test_what_happens_is_counted(http: Http) -> None:
    """Appends, replays and rejections of the writer; requests and their time by route; batches by size and time."""
    writer, scraper = http(Scope.APPEND), http(Scope.READ)
    for key in ("one", "two", "two"):
        transfer(writer, key)
    refused = {"amount": "1000 USD", "debit": "alice", "credit": "bob"}
    assert writer.post("/v1/transfer", json=refused, headers={"Idempotency-Key": "x"}).status_code == 409
    scraper.get("/v1/nothing")
    counted = samples(scraper.get("/metrics").text)

    # Five were appended before the service was there, by the same writer.
    assert counted["ledger_appends_total{}"] == 7
    assert counted["ledger_replays_total{}"] == 1
    assert counted['ledger_rejections_total{code="insufficient_funds"}'] == 1
    assert counted['ledger_http_problems_total{code="insufficient_funds"}'] == 1
    assert counted['ledger_http_requests_total{method="POST",route="/v1/transfer",status="201"}'] == 2
    assert counted['ledger_http_requests_total{method="POST",route="/v1/transfer",status="200"}'] == 1
    assert counted['ledger_http_requests_total{method="GET",route="(none)",status="404"}'] == 1
    assert counted['ledger_http_request_duration_seconds_count{method="POST",route="/v1/transfer"}'] == 4
    batches = counted["ledger_batch_size_commands_count{}"]
    assert counted['ledger_batch_size_commands_bucket{le="1.0"}'] == batches == 9
    assert counted["ledger_batch_duration_seconds_count{}"] == batches
    assert counted["ledger_http_requests_in_flight{}"] == 1
    assert counted["ledger_queued_commands{}"] == 0
    assert counted["ledger_up{}"] == 1


def test_a_lost_race_is_a_conflict_and_a_retry(funded: Ledger, ledger_url: str) -> None:
    """Somebody else wrote to the account between the reading and the writing: decided again, and counted."""
    counts = funded.health().counts
    with Ledger.connect(ledger_url) as other, other.engine.begin() as connection:
        with other.join(connection) as guest:
            guest.transfer("1 USD", debit="world", credit="alice")
        late = threading.Thread(target=lambda: funded.transfer("1 USD", debit="world", credit="alice"))
        late.start()
        await_waiting(ledger_url, 1)
        connection.commit()
        late.join(60)

    assert (counts().conflicts, counts().retries, counts().failed) == (1, 1, 0)
    assert str(funded.balance("alice").posted) == "72.00 USD"


def await_waiting(url: str, count: int) -> None:
    """Return once so many sessions wait for a lock."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url, autocommit=True) as watcher:
        for _ in range(100_000):
            if watcher.execute(asked).fetchall()[0][0] == count:
                return
    pytest.fail(f"{count} do not wait for a lock")


def test_what_is_tried_only_is_not_counted(funded: Ledger) -> None:
    """A dry run appends nothing, and counts for nothing."""
    before = funded.health().counts()
    funded.handle([build(Transfer, **TRANSFER)], dry_run=True)
    assert funded.health().counts() == before


@needed
def test_a_scrape_is_well_formed(http: Http, funded: Ledger) -> None:
    """Prometheus' own linter has nothing to say about a scrape with everything in it."""
    inbox = funded.inbox("bank", Strict(max_wait=timedelta(0)))
    inbox.receive([message(2)])
    inbox.tick()
    inbox.receive([message(1, stream="bob"), message(1, "99 USD", stream="bob")])
    transfer(http(Scope.APPEND), "one")
    checked = promtool("check", "metrics", given=http(Scope.READ).get("/metrics").text)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_no_label_names_an_account(http: Http, funded: Ledger) -> None:
    """However much happens to accounts, and whoever asks about which: no name of one is in the metrics."""
    funded.inbox("bank", Strict(max_wait=timedelta(hours=1))).receive([message(2), message(2, "99 USD")])
    transfer(http(Scope.APPEND), "one")
    http(Scope.READ).get("/v1/balance", params={"account": "alice"})
    http(Scope.READ).get("/alice/alice")
    scrape = http(Scope.READ).get("/metrics").text
    assert "alice" not in scrape
    assert "world" not in scrape


def test_openmetrics_is_given_to_who_asks_for_it(http: Http) -> None:
    """The newer format ends as it must."""
    answer = http(Scope.READ).get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_two_services_in_one_process_do_not_add_up(serve: Serve, funded: Ledger, ledger_url: str) -> None:
    """Each application has a registry of its own, and each ledger its counters."""
    with (
        Ledger.connect(ledger_url) as other,
        serve(funded, authentication=False) as one,
        serve(other, authentication=False) as two,
        httpx.Client(base_url=one.address) as client,
    ):
        for key in ("a", "b"):
            assert transfer(client, key).status_code == 201
        scrapes = [samples(httpx.get(f"{each.address}/metrics").text) for each in (one, two)]
    asked = 'ledger_http_requests_total{method="POST",route="/v1/transfer",status="201"}'
    assert [scrape.get(asked, 0) for scrape in scrapes] == [2, 0]
    assert [scrape["ledger_appends_total{}"] for scrape in scrapes] == [7, 0]
    assert scrapes[0]["ledger_feed_position{}"] == scrapes[1]["ledger_feed_position{}"]


def test_the_order_of_messages_is_told_as_ever(http: Http, funded: Ledger) -> None:
    """`outOfOrder`, `gaps` and `entities`, as an order monitor would say; and what else the inboxes know."""
    patient = funded.inbox("bank", Strict(max_wait=timedelta(hours=1)))
    for sequence in (1, 4, 3, 2, 2):
        patient.receive([message(sequence)])
    hasty = funded.inbox("bank", Strict(max_wait=timedelta(0)))
    hasty.receive([message(2, stream="bob"), message(5, stream="bob")])
    hasty.tick()
    told = http(Scope.READ).get("/metrics/ordering").json()

    assert (told["outOfOrder"], told["gaps"], told["entities"]) == (2, 2, 2)
    assert (told["received"], told["processed"], told["duplicates"], told["gapsFilled"]) == (7, 4, 1, 1)
    assert (told["gapsTimedOut"], told["parked"], told["waiting"], told["held"]) == (1, 1, 0, 2)
    assert list(told["sources"]) == ["bank"]
    assert told["sources"]["bank"]["outOfOrder"] == 2


def test_an_ordinary_order_is_all_zeros(http: Http) -> None:
    """What never happened is told to be 0, and not left out."""
    told = http(Scope.READ).get("/metrics/ordering").json()
    assert (told["outOfOrder"], told["gaps"], told["entities"], told["sources"]) == (0, 0, 0, {})


def test_sources_beyond_the_bound_are_summed_up(funded: Ledger, psql: Psql) -> None:
    """Labels stay few however many sources there are, and nothing is lost from the sums."""
    most = gauges.SOURCES_MAX
    psql.execute(
        "INSERT INTO inbox_counters SELECT 's' || lpad(n::text, 4, '0'), shard, 'received', 1"
        " FROM generate_series(1, %s) AS n, generate_series(0, 1) AS shard",
        (most + 10,),
    )
    found = funded.health().gauges().counters
    assert len(found) == most + 1
    assert found[gauges.OTHER_SOURCES]["received"] == 20
    assert sum(each["received"] for each in found.values()) == 2 * (most + 10)


def test_counting_ends_at_its_bound(funded: Ledger, psql: Psql, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is wrong, looking at it takes no longer."""
    psql.execute(
        "INSERT INTO inbox_streams (stream, source, last_sequence, highest_sequence, held, status, attempts, revision)"
        " SELECT 's' || n, 'bank', 0, 5, 1, 'parked', 0, 0 FROM generate_series(1, 20) AS n"
    )
    monkeypatch.setattr(gauges, "_BOUNDS", {**gauges._BOUNDS, "most": 7})  # noqa: SLF001
    (stuck,) = funded.health().gauges().stuck
    assert (stuck.streams, stuck.held) == (7, 7)


@pytest.mark.parametrize("scope", list(Scope))
def test_any_key_reads_metrics(http: Http, scope: Scope) -> None:
    """A scraper has a key, whatever else it is good for."""
    assert http(scope).get("/metrics").status_code == 200
    assert http(scope).get("/metrics/ordering").status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/metrics/ordering"])
def test_metrics_are_not_for_everybody(serve: Serve, funded: Ledger, http: Http, path: str) -> None:
    """Without a key nothing is told, unless the settings say so."""
    assert http().get(path).status_code == 401
    with serve(funded, open_metrics=True) as opened:
        assert httpx.get(f"{opened.address}{path}").status_code == 200
        assert httpx.get(f"{opened.address}/v1/balance?account=alice").status_code == 401


def test_a_scrape_tells_that_the_database_is_away(
    http: Http, funded: Ledger, server: Psql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ledger_up` is 0, to a scraper that was let in before too; one that was not is told to try again."""
    monkeypatch.setattr(gate, "KNOWN_SECONDS", 0.0)
    scraper, stranger = http(Scope.READ), http(Scope.AUDIT)
    assert samples(scraper.get("/metrics").text)["ledger_up{}"] == 1
    with away(funded, server):
        scrape = await_up(scraper, 0)
        assert "ledger_feed_position{}" not in scrape
        assert scrape["ledger_appends_total{}"] == 5
        assert stranger.get("/metrics").status_code == 503
        assert scraper.get("/metrics/ordering").status_code == 503
        assert http().get("/healthz").json() == {"status": "ok"}
    assert "ledger_feed_position{}" in await_up(scraper, 1)


def await_up(scraper: httpx.Client, up: int) -> dict[str, float]:
    """The first scrape that says so."""
    for _ in range(10_000):
        scrape = samples(scraper.get("/metrics").text)
        if scrape["ledger_up{}"] == up:
            return scrape
    pytest.fail(f"ledger_up is not {up}")


def test_a_scrape_does_not_wait_for_a_lock(serve: Serve, psql: Psql, ledger_url: str) -> None:
    """Somebody holds a table: the scrape says in time that it got no answer, and stands in nobody's way for longer."""
    patient = Timeouts(statement_seconds=600.0, lock_seconds=600.0)
    with (
        Ledger.connect(ledger_url, timeouts=patient) as ledger,
        serve(ledger, authentication=False) as server,
        httpx.Client(base_url=server.address, timeout=PATIENCE_SECONDS) as scraper,
    ):
        with psql.transaction():
            psql.execute("LOCK TABLE ledger.outbox IN ACCESS EXCLUSIVE MODE")
            assert samples(scraper.get("/metrics").text)["ledger_up{}"] == 0
            await_waiting(ledger_url, 0)
        await_up(scraper, 1)


def test_a_database_that_never_answers_keeps_nobody_waiting(serve: Serve) -> None:
    """Whoever is connected to and says nothing: metrics and readiness are answered, and say so."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://nobody@127.0.0.1:{port}/none"
        with (
            Ledger.connect(url, timeouts=Timeouts(connect_seconds=60.0)) as ledger,
            serve(ledger, authentication=False) as server,
            httpx.Client(base_url=server.address, timeout=PATIENCE_SECONDS) as client,
        ):
            assert samples(client.get("/metrics").text)["ledger_up{}"] == 0
            assert client.get("/readyz").status_code == 503
            assert client.get("/healthz").status_code == 200
            assert client.get("/metrics/ordering").status_code == 503


def test_a_scrape_has_one_time_for_all_that_it_waits_for(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the look for its key has taken is not waited again for the gauges."""
    scraper = http(Scope.READ)
    assert scraper.get("/metrics/ordering").status_code == 200
    monkeypatch.setattr(health_routes, "WAIT_SECONDS", 0.0)
    assert samples(scraper.get("/metrics").text)["ledger_up{}"] == 0


def checks(client: httpx.Client) -> dict[str, str]:
    """What is not ready, by check; nothing, if all is."""
    answer = client.get("/readyz")
    if answer.status_code == 200:
        return {}
    plain = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (plain["status"], plain["code"], plain["retryable"]) == (503, "not_ready", True)
    return dict(plain["fields"]["checks"])


def await_checks(client: httpx.Client, failing: set[str]) -> None:
    """Return once exactly these are not so."""
    found = {}
    for _ in range(100_000):
        found = checks(client)
        if set(found) == failing:
            return
    pytest.fail(f"{found}")


def test_ready_is_what_can_do_its_work(http: Http) -> None:
    """All three checks are so, and everybody may ask."""
    answer = http().get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ready", "checks": ["schema", "writable", "stamper"]},
    )


def test_not_ready_at_another_schema(http: Http, psql: Psql) -> None:
    """A database that was migrated to something else, or not at all, is told of; and when it is mended."""
    client = http()
    await_checks(client, set())
    ((head,),) = psql.execute("SELECT version_num FROM schema_version").fetchall()
    psql.execute("UPDATE schema_version SET version_num = '0001'")
    await_checks(client, {"schema"})
    psql.execute("UPDATE schema_version SET version_num = %s", (head,))
    await_checks(client, set())


def test_not_ready_where_nothing_can_be_written(http: Http, funded: Ledger, server: Psql) -> None:
    """A server that has become a read-only one is told of, in words for anybody."""
    client = http()
    name = funded.engine.url.database
    server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
    await_checks(client, {"writable"})
    assert "cannot be written to" in checks(client)["writable"]


def test_not_ready_while_the_database_is_away(http: Http, funded: Ledger, server: Psql) -> None:
    """Nothing is so, and the process is alive all the same."""
    client = http()
    with away(funded, server):
        await_checks(client, {"schema", "writable", "stamper"})
        assert client.get("/healthz").status_code == 200
    await_checks(client, set())


def test_not_ready_where_nobody_stamps(http: Http, funded: Ledger, psql: Psql) -> None:
    """What waits for long while nobody has the lease is told of; with a lease, or stamped, it is well."""
    client = http()
    await_checks(client, set())
    psql.execute("UPDATE outbox SET recorded_at = recorded_at - interval '10 minutes'")
    await_checks(client, {"stamper"})
    psql.execute("INSERT INTO leases VALUES (%s, 1, 'somebody', now() + interval '1 hour')", (feed.STAMPER,))
    await_checks(client, set())
    psql.execute("UPDATE leases SET until = now()")
    await_checks(client, {"stamper"})
    with Ledger.connect(str(funded.engine.url.render_as_string(hide_password=False))) as other:
        assert other.stamp()
    await_checks(client, set())


def test_a_check_can_be_done_without(serve: Serve, funded: Ledger, psql: Psql) -> None:
    """Where nobody is meant to stamp, that nobody does is no reason to be taken out of service."""
    psql.execute("UPDATE outbox SET recorded_at = recorded_at - interval '10 minutes'")
    with serve(funded, ready_without=frozenset({Check.STAMPER})) as server:
        answer = httpx.get(f"{server.address}/readyz")
    assert (answer.status_code, answer.json()["checks"]) == (200, ["schema", "writable"])


def test_readiness_changes_nothing(http: Http, psql: Psql) -> None:
    """To know whether it could write it writes nothing: a lease that somebody has is the very same row afterwards."""
    psql.execute("INSERT INTO leases VALUES (%s, 1, 'somebody', now())", (feed.STAMPER,))
    before = psql.execute("SELECT xmin::text, ctid::text, leases FROM leases").fetchall()
    assert http().get("/readyz").status_code == 200
    assert psql.execute("SELECT xmin::text, ctid::text, leases FROM leases").fetchall() == before


def test_settings_of_watching_are_read() -> None:
    """From the environment: who may read metrics, what readiness does without, and what is logged."""
    environment = {
        "LEDGER_SERVE_OPEN_METRICS": "1",
        "LEDGER_SERVE_READY_WITHOUT": "stamper, writable",
        "LEDGER_SERVE_LOG_LEVEL": "warning",
    }
    settings = ServiceSettings.read(environment)
    assert (settings.open_metrics, settings.log_level) == (True, "warning")
    assert settings.ready_without == {Check.STAMPER, Check.WRITABLE}
    usual = ServiceSettings.read({})
    assert (usual.open_metrics, usual.ready_without, usual.log_level) == (False, frozenset(), "info")


@pytest.mark.parametrize(("name", "text"), [("READY_WITHOUT", "sleep"), ("LOG_LEVEL", "loud")])
def test_settings_of_watching_are_checked(name: str, text: str) -> None:
    """What there is none of is refused, with those that there are."""
    with pytest.raises(InvalidCommand, match="none of") as refused:
        ServiceSettings.read({f"LEDGER_SERVE_{name}": text})
    assert refused.value.where == f"LEDGER_SERVE_{name}"
