"""The alert rules and the dashboard: they fire on real trouble, and name nothing that is not exported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import pytest
import typer
from promtool import ROOT, RULES, assert_fires, needed, promtool, samples
from serving import Http

from ledger import Ledger
from ledger.access import Scope
from ledger.audit.checkpoint import SigningKey
from ledger.cli.program import app
from ledger.order.cursor import Strict
from ledger.order.message import Message

Psql = psycopg.Connection[Any]
Trouble = Callable[[Ledger, Psql, httpx.Client], None]

DASHBOARD: Final = ROOT / "deploy" / "grafana" / "ledger.json"
ON_CALL: Final = ROOT / "docs" / "on-call.md"
TRANSFER: Final = {"amount": "1 USD", "debit": "world", "credit": "alice"}


@pytest.fixture
def psql(ledger_url: str) -> Iterator[Psql]:
    """A superuser with `psql`: every statement lasts at once."""
    with psycopg.connect(ledger_url, autocommit=True, options="-c search_path=ledger") as connection:
        yield connection


def transfer(client: httpx.Client, key: str) -> None:
    """One transfer through the service."""
    assert client.post("/v1/transfer", json=TRANSFER, headers={"Idempotency-Key": key}).status_code == 201


def deposit(sequence: int, amount: str = "10 USD") -> Message:
    """A message that brings alice money."""
    data: dict[str, Any] = {"account": "alice", "amount": amount, "against": "world"}
    return Message("bank", f"m-{sequence}", "ledger.deposit", "alice", sequence, data=data)


def drift(_ledger: Ledger, psql: Psql, client: httpx.Client) -> None:
    """Somebody gives alice money behind the ledger's back; the next transfer finds it."""
    psql.execute("UPDATE balances SET posted_credits = posted_credits + 1 WHERE stream = 'alice'")
    transfer(client, "after drift")


def parked(ledger: Ledger, _psql: Psql, _client: httpx.Client) -> None:
    """The first message never comes, and waiting is over."""
    inbox = ledger.inbox("bank", Strict(max_wait=timedelta(0)))
    inbox.receive([deposit(2), deposit(3)])
    inbox.tick()


def dead_letter(ledger: Ledger, _psql: Psql, _client: httpx.Client) -> None:
    """A producer says two things under one number."""
    inbox = ledger.inbox("bank", Strict(max_wait=timedelta(hours=1)))
    inbox.receive([deposit(1), deposit(1, "99 USD")])


def feed_lag(_ledger: Ledger, psql: Psql, client: httpx.Client) -> None:
    """Nobody stamps, since ten minutes."""
    transfer(client, "not stamped")
    assert psql.execute("UPDATE outbox SET recorded_at = recorded_at - interval '10 minutes'").rowcount


def stale_seal(ledger: Ledger, psql: Psql, client: httpx.Client) -> None:
    """What was stamped since is not sealed, and the last checkpoint is an hour old."""
    transfer(client, "not sealed")
    ledger.stamp()
    with psql.transaction():
        psql.execute("ALTER TABLE checkpoints DISABLE TRIGGER ALL")
        assert psql.execute("UPDATE checkpoints SET sealed_at = sealed_at - interval '1 hour'").rowcount
        psql.execute("ALTER TABLE checkpoints ENABLE ALWAYS TRIGGER append_only")


def corrupt_log(_ledger: Ledger, psql: Psql, client: httpx.Client) -> None:
    """An event is gone from the log, and who asks for the feed's is told."""
    with psql.transaction():
        psql.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        assert psql.execute("DELETE FROM events WHERE stream = 'alice' AND version = 2").rowcount
        psql.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER append_only")
        psql.execute("ALTER TABLE events ENABLE TRIGGER check_appended")
    psql.execute("UPDATE balances SET posted_credits = posted_credits + 1 WHERE stream = 'alice'")
    assert client.post("/v1/transfer", json=TRANSFER, headers={"Idempotency-Key": "corrupt"}).status_code == 500


def nothing(_ledger: Ledger, _psql: Psql, client: httpx.Client) -> None:
    """An ordinary transfer."""
    transfer(client, "as ever")


@needed
@pytest.mark.parametrize(
    ("trouble", "alerts"),
    [
        (nothing, set()),
        (drift, {"LedgerDrift"}),
        (parked, {"LedgerStreamsParked"}),
        (dead_letter, {"LedgerDeadLetters"}),
        (feed_lag, {"LedgerFeedLag"}),
        (stale_seal, {"LedgerSealStale"}),
        (corrupt_log, {"LedgerCorrupt"}),
    ],
)
def test_trouble_fires_its_alert(
    http: Http, funded: Ledger, psql: Psql, tmp_path: Path, trouble: Trouble, alerts: set[str]
) -> None:
    """What is scraped before and after real trouble makes the rules fire the alert that is meant, and no other."""
    scraper, writer = http(Scope.READ), http(Scope.APPEND)
    funded.stamp()
    funded.seal(SigningKey.generate("example.org/ledger"))
    before = scraper.get("/metrics").text
    trouble(funded, psql, writer)
    # Not the answer that is a second old at most.
    after = fresh(scraper, before)
    assert_fires(tmp_path, before, after, alerts)


def fresh(scraper: httpx.Client, before: str) -> str:
    """A scrape for which the database was asked anew: an answer is good for a second, the seal's age tells which."""
    for _ in range(100_000):
        scrape = scraper.get("/metrics").text
        if seal_age(scrape) != seal_age(before):
            return scrape
    pytest.fail("the database was not asked again")


def seal_age(scrape: str) -> float:
    """How old the last checkpoint was when the database was asked."""
    return samples(scrape)["ledger_seal_age_seconds{}"]


@needed
def test_rules_hold_what_they_say() -> None:
    """Prometheus reads the rules, and each fires in its own test when it has to, and not before."""
    checked = promtool("check", "rules", RULES.name)
    tested = promtool("test", "rules", "ledger.rules.test.yml")

    assert (checked.returncode, checked.stderr) == (0, "")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_rule_is_tested_both_ways() -> None:
    """The rules' own tests name each alert when it fires, and when it does not."""
    tests = RULES.with_name("ledger.rules.test.yml").read_text(encoding="utf-8")
    for alert in re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8")):
        assert re.search(rf"alertname: {alert}, eval_time: \w+, exp_alerts: \[\]", tests), f"{alert} is never silent"
        assert re.search(rf"alertname: {alert}\n\s+eval_time: \w+\n\s+exp_alerts:\n", tests), f"{alert} never fires"


def test_each_alert_has_its_heading_and_each_heading_its_alert() -> None:
    """Whoever is woken finds what to do under the heading that the alert names, and nothing there is of no alert."""
    rules, page = RULES.read_text(encoding="utf-8"), ON_CALL.read_text(encoding="utf-8")
    alerts = re.findall(r"- alert: (\w+)", rules)
    headings = re.findall(r"^## (\w+)$", page, re.MULTILINE)

    assert alerts == headings
    assert re.findall(r"runbook: docs/on-call\.md#(\w+)", rules) == [heading.lower() for heading in headings]
    linked = set(re.findall(r"\]\(#(\w+)\)", page))
    assert linked <= {heading.lower() for heading in headings}


def test_each_command_on_call_exists() -> None:
    """The commands that the page names are those of the command line, with these options."""
    root = typer.main.get_command(app)
    named = re.findall(r"`ledger ([^`]+)`", ON_CALL.read_text(encoding="utf-8"))
    assert len(named) > 10
    for words in map(str.split, named):
        command = root
        while isinstance(command, typer.core.TyperGroup) and words and not words[0].startswith("-"):
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, words


def test_nothing_is_named_that_is_not_exported(http: Http, funded: Ledger) -> None:
    """Each metric of the rules and of the dashboard is one of a real scrape, and each of ours is shown or watched."""
    inbox = funded.inbox("bank", Strict(max_wait=timedelta(0)))
    inbox.receive([deposit(2), deposit(3)])
    inbox.tick()
    inbox.receive([deposit(2, "99 USD")])
    funded.stamp()
    funded.seal(SigningKey.generate("example.org/ledger"))
    funded.seek_subscription("search", 1, actor="test")
    refused = {"amount": "1000 USD", "debit": "alice", "credit": "bob"}
    http(Scope.APPEND).post("/v1/transfer", json=refused, headers={"Idempotency-Key": "too much"})
    scrape = http(Scope.READ).get("/metrics").text
    exported = {name for name, _ in re.findall(r"^(\w+)(\{.*\})? ", scrape, re.MULTILINE)}
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    watched = " ".join(re.findall(r"expr:((?:.|\n)*?)(?:for:|labels:)", RULES.read_text(encoding="utf-8")))
    used = set(re.findall(r"\b(?:ledger|process)_\w+", shown + watched))

    assert len(used) > 40
    assert used - exported == set()
    ours = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported if name.startswith("ledger_")}
    assert ours - {re.sub(r"_(bucket|count|sum)$", "", name) for name in used} == set()


def test_dashboard_names_alerts_that_exist() -> None:
    """A panel that names an alert names one of the rules; every panel says what it shows."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8")))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]

    assert all(panel["description"] for panel in panels)
    assert {name for panel in panels for name in re.findall(r"\bLedger[A-Z]\w+", panel["description"])} <= alerts
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
