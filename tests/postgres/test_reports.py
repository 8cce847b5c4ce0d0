"""Reports: pinned, so that the same question has the same bytes for ever; and each finds what it is there to find."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from dumps import run
from sqlalchemy import make_url
from test_promises import programs, restore

from ledger import (
    ConcurrencyError,
    CorruptLog,
    Done,
    InvalidCommand,
    Ledger,
    Message,
    NotYetKnown,
    Retry,
    Strict,
    Timeouts,
    Transfer,
    UnknownAccount,
    UnknownTransaction,
)
from ledger.audit.checkpoint import SigningKey
from ledger.audit.reports.form import Header, harmless
from ledger.audit.reports.journal import _TREE, DEPTH_MAX
from ledger.batch import Outcome

__all__ = ["programs"]

Psql = psycopg.Connection[Any]
Tamper = Callable[..., None]

PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
BUFFERS_MAX = 150
"""A dozen transactions looked up by keys, each of a few pages."""


@pytest.fixture
def told(funded: Ledger, psql: Psql) -> Ledger:
    """A ledger of which every report has something to say; all of it stamped, and numbered."""
    funded.open_account("till", asset="USD", type="asset", stripes=3)
    for _ in range(4):
        funded.transfer("2 USD", debit="till", credit="bob", correlation_id="conversation-1")
    funded.transfer("30.00 USD", debit="alice", credit="bob", idempotency_key="rent", metadata={"month": "May"})
    funded.transfer("5 USD", debit="world", credit="alice", effective_at=PAST, actor="=desk", reference="late")
    rent = rent_of(funded)
    funded.reverse(rent, "10 USD", reason="one week less", causation_id=rent, actor="ann")
    funded.freeze("bob", actor="desk")
    funded.hold("3 USD", debit="alice", credit="world")
    psql.execute("UPDATE balances SET posted_credits = 1 WHERE stream = 'alice'")
    assert funded.rebuild("alice", actor="ann") == ["alice"]
    inbox = funded.inbox("shop", Strict(timedelta(0)), retry=Retry(attempts_max=1), handlers={})
    inbox.receive([Message("shop", f"o-{n}", "shop.ordered", "order-1", n) for n in (2, 3)])
    inbox.release("order-1", actor="ann", note="lost at sea")
    for letter in inbox.dead_letters():
        inbox.discard(letter.dead_letter_id, actor="ann", note="a test")
    funded.personal_data().encrypt("customer-1", "Erika")
    funded.personal_data().forget("customer-1", actor="ann", reason="asked")
    assert funded.stamp() > 0
    funded.seek_subscription("mail", 1, actor="ann")
    return funded


def with_option(url: str, option: str) -> str:
    """The URL of the same database, for sessions that begin with this option."""
    return make_url(url).update_query_dict({"options": option}).render_as_string(hide_password=False)


def rent_of(ledger: Ledger) -> str:
    """The transaction of the rent, by its key, which does nothing again."""
    again = ledger.transfer("30.00 USD", debit="alice", credit="bob", idempotency_key="rent", metadata={"month": "May"})
    assert again.replayed
    return str(again.transaction_id)


def question(ledger: Ledger, name: str) -> dict[str, Any]:
    """What a report of this name is asked, where it has to be asked something."""
    if name == "account-statement":
        return {"account": "alice", "since": PAST, "until": FUTURE}
    rent = ledger._database.ask(  # noqa: SLF001  (to ask for it by its key would be a replay)
        lambda connection: connection.query(
            "SELECT transaction_id::text FROM {schema}.transactions WHERE idempotency_key = 'rent'"
        )
    )
    return {"transaction_id": rent[0][0]} if name == "transaction" else {}


def body(ledger: Ledger, name: str, **asked: Any) -> tuple[bytes, Header]:
    """The body of a report, and its header."""
    out = io.BytesIO()
    header = ledger.report(name, **asked).write(out)
    return out.getvalue(), header


def rows(ledger: Ledger, name: str, **asked: Any) -> list[dict[str, Any]]:
    """The rows of a report."""
    return list(ledger.report(name, **asked))


def pinned(header: Header) -> dict[str, Any]:
    """All of a header that is the same for ever."""
    return {name: value for name, value in header.plain().items() if name != "live"}


def everything(ledger: Ledger, **pin: int | None) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Every report there is, at a pin."""
    made = {}
    for report in ledger.reports:
        content, header = body(ledger, report.name, **pin, **question(ledger, report.name))
        made[report.name] = (content, pinned(header))
    return made


def test_same_pin_gives_the_same_bytes_whatever_comes_later(told: Ledger, psql: Psql) -> None:
    """What is posted, repaired, decided and done afterwards is in no report that is pinned to before."""
    told.number_trail()
    position = told.feed_head()
    trail = psql.execute("SELECT max(number) FROM trail").fetchone()
    assert trail is not None
    before = everything(told, position=position, trail=trail[0])
    assert all(content for content, _ in before.values())

    told.unfreeze("bob", actor="desk")
    told.reverse(rent_of(told), "5 USD", causation_id=rent_of(told))
    told.transfer("1 USD", debit="till", credit="bob", effective_at=PAST)
    told.change_account("till", stripes=9)
    told.open_account("carol", asset="EUR", type="liability")
    told.close_period(PAST)
    psql.execute("UPDATE balances SET posted_debits = 1 WHERE stream = 'bob'")
    told.rebuild()
    told.seek_subscription("mail", 2, actor="bob")
    told.stamp()
    latest = everything(told)
    assert [name for name, (content, _) in latest.items() if content == before[name][0]] == ["dead-letter-decisions"]

    assert everything(told, position=position, trail=trail[0]) == before


def test_restored_ledger_gives_the_same_bytes(
    told: Ledger, ledger_url: str, programs: Path, make_database: Callable[[], str]
) -> None:
    """After a restore from `pg_dump` every report is what it was, to the last byte, and so is its header."""
    told.number_trail()
    before = everything(told)
    target = make_database()
    restore(programs, target, [run([str(programs / "pg_dump"), "--schema=ledger", "-d", ledger_url])])
    with Ledger.connect(target) as restored:
        assert everything(restored) == before


def test_body_is_canonical_and_hashed(told: Ledger) -> None:
    """Each line is a JSON object with its keys in order and nothing between them; the header has the hash of all."""
    for report in told.reports:
        content, header = body(told, report.name, **question(told, report.name))
        assert header.sha256 == hashlib.sha256(content).hexdigest()
        lines = content.decode().splitlines()
        assert header.rows == len(lines)
        for line in lines:
            plain = json.loads(line)
            assert line == json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            assert list(plain) == sorted(column.name for column in report.columns)


def test_every_form_says_the_same(told: Ledger) -> None:
    """CSV, with its own hash, and one JSON object hold the rows of the body; iterating gives them too."""
    for report in told.reports:
        asked = question(told, report.name)
        content, header = body(told, report.name, **asked)
        plain = [json.loads(line) for line in content.splitlines()]
        made = told.report(report.name, **asked)
        assert list(made) == plain
        assert pinned(made.header) == pinned(header)
        whole, table = io.BytesIO(), io.BytesIO()
        made.write(whole, "json")
        assert json.loads(whole.getvalue())["rows"] == plain
        assert json.loads(whole.getvalue())["header"]["sha256"] == header.sha256
        csv_header = made.write(table, "csv")
        assert csv_header.csv_sha256 == hashlib.sha256(table.getvalue()).hexdigest()
        read = list(csv.DictReader(io.StringIO(table.getvalue().decode(), newline="")))
        assert [list(row) for row in read[:1]] == [list(row) for row in plain[:1] and [next(iter(made))]]
        assert len(read) == len(plain)


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "'"])  # noqa: RUF001
def test_csv_holds_no_formula(funded: Ledger, begins: str) -> None:
    """A text that a spreadsheet would take for a formula gets an apostrophe; an amount below zero stays a number."""
    funded.transfer("1 USD", debit="world", credit="alice", actor=f'{begins}HYPERLINK("http://x")')
    funded.stamp()
    out = io.BytesIO()
    funded.report("general-journal").write(out, "csv")
    read = list(csv.DictReader(io.StringIO(out.getvalue().decode(), newline="")))
    assert read[-1]["actor"] == f'\'{begins}HYPERLINK("http://x")'
    assert harmless("plain =1") == "plain =1"
    assert harmless("'=x") != harmless("=x")
    out = io.BytesIO()
    funded.report("sum-of-transactions").write(out, "csv")
    (world,) = [row for row in csv.DictReader(io.StringIO(out.getvalue().decode())) if row["account"] == "world"]
    assert world["final_balance"] == "-101.00"


@pytest.mark.parametrize("said", ["a\rb", "a\nb", "a,b", 'a"b', "a;b", "ä€😀"])
def test_csv_keeps_every_text(funded: Ledger, said: str) -> None:
    """Whatever is in a text, it is one cell of one row."""
    funded.transfer("1 USD", debit="world", credit="alice", actor=said)
    funded.stamp()
    out = io.BytesIO()
    funded.report("general-journal").write(out, "csv")
    read = list(csv.reader(io.StringIO(out.getvalue().decode(), newline="")))
    assert [line[-1] for line in read[-2:]] == [said, said]
    assert len(read) == 7


def test_header_is_known_at_the_end(funded: Ledger) -> None:
    """Rows come one by one, and what they come to is known after the last."""
    funded.stamp()
    made = funded.report("general-journal")
    first = next(iter(made))
    assert first["position"] == 5
    with pytest.raises(InvalidCommand, match="when all rows"):
        _ = made.header
    assert len(list(made)) == made.header.rows == 4


def test_journal_has_every_entry_and_its_totals(told: Ledger) -> None:
    """Posted entries in the order of the feed; debits equal credits; what is held is there if it is asked for."""
    content, header = body(told, "general-journal")
    lines = [json.loads(line) for line in content.splitlines()]
    assert [line["position"] for line in lines] == sorted({line["position"] for line in lines})
    assert header.totals["assets"] == {"USD": {"credits": "153.00", "debits": "153.00", "entries": 16}}
    assert (header.totals["transactions"], header.totals["pending"], header.rows) == (8, 0, 16)
    assert {line["account"] for line in lines} == {"alice", "bob", "till", "world"}
    _, pending = body(told, "general-journal", pending=True)
    assert (pending.rows, pending.totals["pending"]) == (18, 2)
    assert pending.totals["assets"] == header.totals["assets"]
    late = rows(told, "general-journal", until=PAST + timedelta(seconds=1))
    assert [line["reference"] for line in late] == ["late", "late"]
    assert rows(told, "general-journal", since=FUTURE) == []


def test_statement_checks_itself(told: Ledger) -> None:
    """Opening, each entry with the balance after it, closing: which is the balance that the ledger gives."""
    lines = rows(told, "account-statement", account="bob", since=PAST, until=FUTURE)
    assert (lines[0]["line"], lines[0]["balance"]) == ("opening", "0.00")
    balance = 0.0
    for line in lines[1:-1]:
        balance += float(line["amount"])
        assert float(line["balance"]) == balance
    assert (lines[-1]["line"], lines[-1]["balance"]) == ("closing", "28.00")
    assert str(told.balance("bob").posted) == "28.00 USD"
    striped = rows(told, "account-statement", account="till", since=PAST, until=FUTURE)
    assert (len(striped), striped[-1]["balance"]) == (6, "8.00")
    _, header = body(told, "account-statement", account="alice", since=PAST, until=FUTURE, position=3)
    assert (header.totals["opening"], header.totals["closing"], header.rows) == ("0.00", "0.00", 2)
    with pytest.raises(UnknownAccount, match="does not exist"):
        rows(told, "account-statement", account="nobody", since=PAST, until=FUTURE)
    with pytest.raises(UnknownAccount, match=r"^Account alice was not yet known by position 0: it was opened later"):
        rows(told, "account-statement", account="alice", since=PAST, until=FUTURE, position=0)


def test_statement_that_does_not_add_up_is_bad_news(told: Ledger, tamper: Tamper) -> None:
    """Lines that do not lead from opening to closing are shown as they are, and said to be wrong."""
    tamper("UPDATE events SET amount = amount + 1 WHERE stream = 'bob' AND version = 2")
    content, header = body(told, "account-statement", account="bob", since=PAST, until=FUTURE)
    assert (header.findings, json.loads(content.splitlines()[-1])["line"]) == (1, "closing")
    assert "28.01" in header.totals["problem"]


def test_trial_balance_is_that_of_the_ledger(told: Ledger, tamper: Tamper) -> None:
    """By asset and type; an asset in which debits and credits differ is bad news."""
    found = {line["account_type"]: (line["debits"], line["credits"]) for line in rows(told, "trial-balance")}
    expected = {
        line.account_type: (str(line.debits).split()[0], str(line.credits).split()[0])
        for line in told.trial_balance().lines
    }
    assert found == expected
    assert body(told, "trial-balance")[1].ok
    then = rows(told, "trial-balance", effective_as_of=PAST + timedelta(seconds=1))
    assert {(line["debits"], line["credits"]) for line in then} == {("5.00", "0.00"), ("0.00", "5.00")}
    tamper(
        "UPDATE events SET posted_credits = posted_credits + 1 WHERE stream = 'bob' AND posted_credits IS NOT NULL"
        " AND version = (SELECT max(version) FROM events WHERE stream = 'bob')"
    )
    assert body(told, "trial-balance")[1].findings == 1


@pytest.mark.parametrize(
    "change",
    [
        "'{}'",
        "'[]'",
        "(payload::jsonb - 'scale')::json",
        '(payload::jsonb || \'{"scale": "x"}\')::json',
        "(payload::jsonb || '{\"scale\": 99}')::json",
        "(payload::jsonb || '{\"scale\": 3}')::json",
        '(payload::jsonb || \'{"account_type": "nonsense"}\')::json',
    ],
)
def test_opening_that_was_changed_is_named(told: Ledger, tamper: Tamper, change: str) -> None:
    """An account whose opening event nobody of ours wrote is in no sum: the event is named, by each report its way."""
    tamper(f"UPDATE events SET payload = {change} WHERE stream = 'bob' AND version = 1")
    for question in (partial(rows, told, "trial-balance"), partial(told.trial_balance, known_as_of=8)):
        with pytest.raises(CorruptLog) as refused:
            question()
        assert {"bob"} <= {refused.value.stream, *refused.value.problem.split()}
        assert refused.value.version == 1
    if "3" not in change:
        (line,) = [line for line in rows(told, "sum-of-transactions") if line["account_type"] is None]
        assert (line["account"], line["agrees"]) == ("bob", False)


def test_who_when_why(told: Ledger) -> None:
    """Who asked for what is found by actor, by conversation and by time."""
    assert [line["kind"] for line in rows(told, "who-when-why", actor="desk")] == ["freeze"]
    conversation = rows(told, "who-when-why", correlation_id="conversation-1")
    assert [line["kind"] for line in conversation] == ["transfer"] * 4
    both = rows(told, "who-when-why", correlation_id="conversation-1", actor="desk")
    assert both == []
    assert rows(told, "who-when-why", since=FUTURE) == []
    everybody, header = body(told, "who-when-why", until=FUTURE)
    assert header.totals["transactions"] == len(everybody.splitlines())
    assert header.totals["without_actor"] == header.rows - 3


def test_tree_of_causes(funded: Ledger) -> None:
    """From any transaction of it the whole tree is shown, each after its cause; who caused themselves end nothing."""
    root = funded.transfer("1 USD", debit="world", credit="alice", causation_id="message-1")
    twigs = []
    for number in range(2):
        branch = funded.transfer("1 USD", debit="world", credit="alice", causation_id=str(root.transaction_id))
        twigs.append(
            funded.transfer(
                "1 USD",
                debit="world",
                credit="bob",
                causation_id=str(branch.transaction_id),
                reference=f"twig-{number}",
            )
        )
    funded.transfer("9 USD", debit="world", credit="alice")
    funded.stamp()
    tree = rows(funded, "who-when-why", transaction_id=twigs[1].transaction_id)
    assert [line["depth"] for line in tree] == [0, 1, 2, 1, 2]
    assert [line["reference"] for line in tree if line["depth"] == 2] == ["twig-0", "twig-1"]
    assert tree[0]["causation_id"] == "message-1"
    with pytest.raises(InvalidCommand, match="shown whole"):
        rows(funded, "who-when-why", transaction_id=root.transaction_id, actor="ann")
    with pytest.raises(UnknownTransaction):
        rows(funded, "who-when-why", transaction_id=uuid4())


def test_tree_that_is_too_deep_is_refused_from_anywhere(funded: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from its deepest leaf, whose cause beyond the limit is not taken for the root."""
    monkeypatch.setattr("ledger.audit.reports.journal.DEPTH_MAX", 3)
    chain = [funded.transfer("1 USD", debit="world", credit="alice").transaction_id]
    while len(chain) < 4:
        caused = funded.transfer("1 USD", debit="world", credit="alice", causation_id=str(chain[-1]))
        chain.append(caused.transaction_id)
    funded.stamp()
    for each in chain:
        assert [line["depth"] for line in rows(funded, "who-when-why", transaction_id=each)] == [0, 1, 2, 3]
    last = funded.transfer("1 USD", debit="world", credit="alice", causation_id=str(chain[-1]))
    funded.stamp()
    for each in (*chain, last.transaction_id):
        with pytest.raises(InvalidCommand, match="deeper than 3 causes"):
            rows(funded, "who-when-why", transaction_id=each)


def test_causes_are_looked_up(funded: Ledger) -> None:
    """However many transactions there are, each cause above is one look by its key."""
    last = funded.transfer("1 USD", debit="world", credit="alice", causation_id="message-1")
    for _ in range(5):
        last = funded.transfer("1 USD", debit="world", credit="alice", causation_id=str(last.transaction_id))
    for _ in range(3):
        funded.handle([Transfer(amount="1 USD", debit="world", credit="bob") for _ in range(500)])
    while funded.stamp(1_000):
        pass
    asked = {"transaction_id": str(last.transaction_id), "position": funded.feed_head(), "depth": DEPTH_MAX}
    with funded._database.connection() as connection:  # noqa: SLF001
        ((plan,),) = connection.query("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + _TREE, asked)
    assert plan[0]["Plan"]["Actual Rows"] == 6
    assert int(plan[0]["Plan"]["Shared Hit Blocks"]) + int(plan[0]["Plan"]["Shared Read Blocks"]) <= BUFFERS_MAX
    assert '"Seq Scan"' not in json.dumps(plan)


def test_circle_of_causes_ends(funded: Ledger, tamper: Tamper) -> None:
    """Two transactions that name each other as their cause are shown once."""
    first = funded.transfer("1 USD", debit="world", credit="alice")
    second = funded.transfer("1 USD", debit="world", credit="alice", causation_id=str(first.transaction_id))
    named = f"'{second.transaction_id}' WHERE transaction_id = '{first.transaction_id}'"
    tamper(f"UPDATE transactions SET causation_id = {named}")
    funded.stamp()
    assert len(rows(funded, "who-when-why", transaction_id=first.transaction_id)) == 2


def test_transaction_with_all_its_reversals(told: Ledger) -> None:
    """Its entries, and those of every reversal up to the pin; the reversal itself shows the same."""
    rent = question(told, "transaction")
    shown = rows(told, "transaction", **rent)
    assert [(line["part"], line["amount"]) for line in shown] == [
        ("original", "30.00"),
        ("original", "30.00"),
        ("reversal", "10.00"),
        ("reversal", "10.00"),
    ]
    assert shown[2]["reason"] == "one week less"
    assert rows(told, "transaction", transaction_id=shown[2]["transaction_id"]) == shown
    before = shown[2]["position"] - 1
    assert rows(told, "transaction", **rent, position=before) == shown[:2]
    with pytest.raises(UnknownTransaction):
        rows(told, "transaction", **rent, position=shown[0]["position"] - 1)


def test_backdated_and_after_close(told: Ledger, tamper: Tamper) -> None:
    """What took effect before it was recorded is listed; what reaches into a closed period is bad news."""
    content, header = body(told, "backdated")
    lines = [json.loads(line) for line in content.splitlines()]
    assert [(line["reference"], line["after_close"]) for line in lines] == [("late", False), ("late", False)]
    assert (header.findings, header.totals["assets"]["USD"]["debits"]) == (0, "5.00")
    assert rows(told, "backdated", seconds=10**12) == []
    with pytest.raises(InvalidCommand, match="seconds"):
        rows(told, "backdated", seconds=99999999999999999999)
    told.close_period(PAST + timedelta(days=1), actor="ann")
    done = told.transfer("1 USD", debit="world", credit="alice")
    told.stamp()
    assert body(told, "backdated")[1].findings == 0
    # The rules refuse it; whoever goes past them is found.
    tamper(f"UPDATE events SET effective_at = '2019-01-01Z' WHERE transaction_id = '{done.transaction_id}'")
    content, header = body(told, "backdated")
    assert (header.findings, header.totals["after_close"]) == (2, 2)
    assert json.loads(content.splitlines()[-1])["closed_until"] == "2020-01-02T00:00:00.000000Z"


def test_sum_of_transactions_beside_the_final_balance(told: Ledger, tamper: Tamper) -> None:
    """Every account agrees; an amount that somebody changed is found in its account, by exactly so much."""
    content, header = body(told, "sum-of-transactions")
    lines = {line["account"]: line for line in map(json.loads, content.splitlines())}
    assert list(lines) == ["alice", "bob", "till", "world"]
    assert all(line["agrees"] and line["difference"] == "0.00" for line in lines.values())
    assert (lines["till"]["streams"], lines["till"]["final_balance"]) == (3, "8.00")
    assert header.totals["assets"]["USD"] == {"credits": "153.00", "debits": "153.00", "entries": 16}
    assert header.ok
    tamper("UPDATE events SET amount = amount + 1 WHERE stream = 'bob' AND version = 2")
    (found,) = rows(told, "sum-of-transactions", differing=True)
    assert (found["account"], found["difference"], found["agrees"]) == ("bob", "0.01", False)
    assert body(told, "sum-of-transactions")[1].findings == 1


def test_errors_of_two_stripes_do_not_hide_each_other(told: Ledger, psql: Psql, tamper: Tamper) -> None:
    """An account is compared stream by stream, though it is shown as one."""
    used = (
        "SELECT stream, max(version) FROM events WHERE amount = 200 AND stream LIKE 'till%' GROUP BY stream"
        " ORDER BY stream LIMIT 2"
    )
    while len(psql.execute(used.encode()).fetchall()) < 2:  # Which one is written to is drawn by lot.
        told.transfer("2 USD", debit="till", credit="world")
    told.stamp()
    for (stream, version), change in zip(psql.execute(used.encode()).fetchall(), ("+ 1", "- 1"), strict=True):
        tamper(f"UPDATE events SET amount = amount {change} WHERE stream = '{stream}' AND version = {version}")
    (found,) = rows(told, "sum-of-transactions", differing=True)
    assert (found["account"], found["difference"]) == ("till", "0.00")


def test_projection_that_drifted_is_told_beside_the_body(told: Ledger, psql: Psql) -> None:
    """What is projected now is in no hash, and is bad news all the same."""
    content, header = body(told, "sum-of-transactions")
    assert header.live["projection"]["differing"] == 0
    psql.execute("UPDATE balances SET posted_credits = 1 WHERE stream = 'alice'")
    again, drifted = body(told, "sum-of-transactions")
    assert (again, pinned(drifted)) == (content, pinned(header))
    assert drifted.live["projection"]["first"] == ["alice"]
    assert not drifted.ok


def test_all_is_there(told: Ledger) -> None:
    """Where nothing is missing each check says how much it looked at, and what streams went on without is told."""
    content, header = body(told, "completeness")
    lines = [json.loads(line) for line in content.splitlines()]
    assert header.ok
    assert [(line["check"], line["missing"]) for line in lines] == [
        *((check, False) for check in ("positions", "versions", "entries", "trail", "inbox"))
    ]
    assert lines[-1]["note"] == "went on without: decided, by ann, lost at sea"
    assert (lines[-1]["first"], lines[-1]["last"], lines[-1]["count"]) == (1, 1, 1)
    assert (lines[0]["count"], lines[1]["count"]) == (told.feed_head(), 7)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ("DELETE FROM events WHERE stream = 'bob' AND version = 2", "versions"),
        ("DELETE FROM transactions WHERE idempotency_key = 'rent'", "entries"),
        ("UPDATE transactions SET entry_count = 1 WHERE idempotency_key = 'rent'", "entries"),
        ("DELETE FROM feed WHERE position = 7", "positions"),
        ("DELETE FROM trail WHERE number = 2", "trail"),
        ("DELETE FROM inbox_releases", "trail"),
        ("DELETE FROM projection_repairs", "trail"),
        ("DELETE FROM dead_letter_decisions", "trail"),
        ("DELETE FROM replays", "trail"),
        ("DELETE FROM privileged_actions WHERE action = 'rebuild'", "trail"),
        ("DELETE FROM outbox", "live"),
    ],
)
def test_what_is_missing_is_named(told: Ledger, tamper: Tamper, change: str, check: str) -> None:
    """Whatever somebody with all rights takes away is found, by the check that is there for it."""
    told.number_trail()
    told.transfer("1 USD", debit="world", credit="alice")
    assert body(told, "completeness")[1].ok
    tamper("ALTER TABLE outbox DISABLE TRIGGER ALL", change, "ALTER TABLE outbox ENABLE TRIGGER ALL")
    found = {line["check"] for line in rows(told, "completeness") if line["missing"]}
    header = body(told, "completeness")[1]
    if header.live["events_nowhere"]:
        found.add("live")
    assert check in found
    assert header.findings + header.live_findings > 0


def test_what_is_neither_stamped_nor_waiting_is_named(told: Ledger, tamper: Tamper) -> None:
    """It is bad news, behind what waits too; and it never comes into a body, at the same position or a later one."""
    names = ("sum-of-transactions", "completeness")
    position = told.feed_head()
    before = {name: body(told, name, position=position) for name in names}
    lost = told.transfer("1 USD", debit="world", credit="alice")
    tamper("ALTER TABLE outbox DISABLE TRIGGER ALL", "DELETE FROM outbox", "ALTER TABLE outbox ENABLE TRIGGER ALL")
    told.transfer("2 USD", debit="world", credit="alice")
    for name in names:
        content, header = body(told, name)
        assert (content, pinned(header)) == (before[name][0], pinned(before[name][1]))
    assert header.live["events_nowhere"] == header.live_findings == 2
    assert [(each["stream"], each["transaction_id"]) for each in header.live["events_first_nowhere"]] == [
        (stream, str(lost.transaction_id)) for stream in ("alice", "world")
    ]
    assert not header.ok


def test_gaps_of_the_inbox_are_told_as_they_are_now(told: Ledger) -> None:
    """What is missing at the moment is in no hash; what waits to be stamped and numbered is told there too."""
    content, _ = body(told, "completeness")
    told.inbox("bank", Strict(timedelta(seconds=30))).receive([Message("bank", "m2", "x.y", "dora", 2)])
    told.transfer("1 USD", debit="world", credit="alice")
    again, header = body(told, "completeness")
    assert again == content
    assert header.live["inbox_first_waiting"][0]["stream"] == "dora"
    assert header.live["transactions_unstamped"] == 1


def test_repairs_are_listed(told: Ledger) -> None:
    """What a projection said, what it should have said, and who noticed."""
    (repair,) = rows(told, "repairs", account="alice")
    assert (repair["stream"], repair["noticed_by"]) == ("alice", "rebuild")
    assert json.loads(repair["found"])["posted_credits"] == "1"
    assert json.loads(repair["expected"])["posted_credits"] != "1"
    assert rows(told, "repairs", account="bob") == []


def test_decisions_about_dead_letters_are_listed(told: Ledger) -> None:
    """Which message, what was decided, by whom and why."""
    decided = rows(told, "dead-letter-decisions", source="shop")
    assert decided
    assert {(line["decision"], line["actor"], line["note"]) for line in decided} == {("discarded", "ann", "a test")}
    assert {line["stream"] for line in decided} == {"order-1"}
    assert rows(told, "dead-letter-decisions", source="bank") == []


def test_privileged_actions_are_listed(told: Ledger, psql: Psql) -> None:
    """What was ruled in the log, and what was done beside it, with who did it as far as it is known."""
    roles = told.create_roles(f"ledger_reports_{os.getpid()}")
    done = rows(told, "privileged-actions")
    actions = [line["action"] for line in done]
    for action in (
        *("account_state_changed", "migrate", "rebuild", "projection_repaired", "inbox_release"),
        *("dead_letter_discarded", "subject_forgotten", "seek_subscription", "create_roles"),
    ):
        assert action in actions
    assert {line["actor"] for line in done if line["action"] == "seek_subscription"} == {"ann"}
    assert {line["database_user"] for line in done if line["action"] == "migrate"} == {"postgres"}
    assert [line["action"] for line in rows(told, "privileged-actions", since=FUTURE)] == []
    drop(psql, roles)


def test_reports_agree_with_a_bundle_up_to_the_same_position(told: Ledger, tmp_path: Path) -> None:
    """What a bundle makes of its own lines alone is what the reports of that position say."""
    sealed = told.seal(SigningKey.generate("example.org/ledger"))
    assert sealed is not None
    told.transfer("1 USD", debit="world", credit="alice")
    told.stamp()
    told.bundle(tmp_path / "bundle.tar", note=sealed.note)
    with tarfile.open(tmp_path / "bundle.tar") as bundle:
        files = {Path(name).as_posix().partition("/")[2]: name for name in bundle.getnames()}
        journal = bundle.extractfile(files["exports/journal.csv"])
        trial = bundle.extractfile(files["reports/trial-balance.json"])
        assert journal is not None
        assert trial is not None
        entries = list(csv.DictReader(io.StringIO(journal.read().decode())))
        lines = json.load(trial)
    named = (
        "position",
        "recorded_at",
        "effective_at",
        "transaction_id",
        "kind",
        "event",
        "stream",
        "version",
        "amount",
    )
    ours = rows(told, "general-journal", pending=True, position=sealed.size)
    assert [[entry[name] for name in named] for entry in entries] == [
        [str(row[name]) for name in named] for row in ours
    ]
    sums = {(line["asset"], line["account_type"]): (line["debits"], line["credits"]) for line in lines}
    assert sums == {
        (row["asset"], row["account_type"]): tuple(
            str(int(row[side].replace(".", ""))) for side in ("debits", "credits")
        )
        for row in rows(told, "trial-balance", position=sealed.size)
    }


# Replays


def replayed(outcomes: Sequence[Outcome]) -> bool:
    """Whether the one answer was given before."""
    (outcome,) = outcomes
    return isinstance(outcome, Done) and outcome.replayed


def test_replays_are_on_record(funded: Ledger, psql: Psql) -> None:
    """Each answer that was given again, with who asked; by a batch, by a batcher and by a guest."""
    command = Transfer(amount="1 USD", debit="world", credit="alice", idempotency_key="k", actor="first")
    funded.handle([command])
    funded.handle([Transfer(**{**command.model_dump(exclude_none=True), "actor": "second"})])
    with funded.batcher() as batcher:
        assert replayed([batcher.submit(command).result(30)])
    with funded.engine.begin() as connection, funded.join(connection, accounts=["alice"]) as guest:
        assert replayed(guest.handle([command]))
    replays = rows(funded, "idempotent-replays")
    assert [line["actor"] for line in replays] == ["second", "first", "first"]
    assert {line["idempotency_key"] for line in replays} == {"k"}
    assert rows(funded, "idempotent-replays", transaction_id=uuid4()) == []
    assert psql.execute("SELECT count(*) FROM replays").fetchone() == (3,)


def test_what_only_asks_writes_no_replay(funded: Ledger, ledger_url: str, psql: Psql) -> None:
    """A dry run leaves nothing, a guest's goes with its transaction, and who may only read is answered as ever."""
    command = Transfer(
        amount="30.00 USD", debit="alice", credit="bob", idempotency_key="rent", metadata={"month": "May"}
    )
    assert replayed(funded.handle([command], dry_run=True))
    with funded.engine.connect() as connection:
        with funded.join(connection) as guest:
            assert replayed(guest.handle([command]))
        connection.rollback()
    with Ledger.connect(with_option(ledger_url, "-cdefault_transaction_read_only=on")) as reading:
        assert replayed(reading.handle([command]))
    psql.execute("CREATE ROLE ledger_no_replays")
    try:
        psql.execute("GRANT USAGE ON SCHEMA ledger TO ledger_no_replays")
        psql.execute("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA ledger TO ledger_no_replays")
        psql.execute("REVOKE INSERT ON replays FROM ledger_no_replays")
        with Ledger.connect(with_option(ledger_url, "-crole=ledger_no_replays")) as humble:
            assert replayed(humble.handle([command]))
            with humble.engine.begin() as connection, humble.join(connection) as guest:
                assert replayed(guest.handle([command]))
                assert not guest.transfer("1 USD", debit="world", credit="alice").replayed
    finally:
        psql.execute("DROP OWNED BY ledger_no_replays")
        psql.execute("DROP ROLE ledger_no_replays")
    assert psql.execute("SELECT count(*) FROM replays").fetchone() == (0,)


# The trail


def test_what_ends_later_gets_a_later_number(told: Ledger, ledger_url: str) -> None:
    """A repair that began before a report was made and ends after it does not come into it."""
    insert = (
        "INSERT INTO ledger.projection_repairs (stream, repair_id, repaired_at, noticed_by)"
        " VALUES ('bob', gen_random_uuid(), '2020-01-01Z', 'write')"
    )
    with psycopg.connect(ledger_url) as slow:
        slow.execute(insert)
        content, header = body(told, "repairs")
        slow.commit()
    latest, later = body(told, "repairs")
    assert latest != content
    assert latest.startswith(content)
    assert header.trail is not None
    assert later.trail == header.trail + 1
    again, same = body(told, "repairs", trail=header.trail)
    assert (again, pinned(same)) == (content, pinned(header))


def test_two_who_number_at_once_leave_no_gap(told: Ledger, psql: Psql, ledger_url: str) -> None:
    """The second one waits, and numbers what the first has left."""
    with psycopg.connect(ledger_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (0x747261696C,))
        brief = Timeouts(lock_seconds=0.1)
        with Ledger.connect(ledger_url, timeouts=brief) as impatient, pytest.raises(ConcurrencyError):
            impatient.number_trail()
        other.commit()
    assert told.number_trail() > 0
    assert told.number_trail() == 0
    numbers = [number for (number,) in psql.execute("SELECT number FROM trail ORDER BY number").fetchall()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_auditor_who_only_reads_sees_what_is_numbered(told: Ledger, ledger_url: str, psql: Psql) -> None:
    """Reports are for those who may not write; what has no number yet is counted beside the body."""
    told.number_trail()
    psql.execute("UPDATE balances SET posted_credits = 1 WHERE stream = 'bob'")
    told.rebuild("bob")
    with Ledger.connect(with_option(ledger_url, "-cdefault_transaction_read_only=on")) as auditor:
        before = body(auditor, "repairs")[0]
        for report in auditor.reports:
            _, header = body(auditor, report.name, **question(auditor, report.name))
            assert header.live.get("trail_unnumbered") == (2 if "trail" in report.pinned_by else None)
    assert len(body(told, "repairs")[0]) > len(before)


def test_role_of_the_auditor_reads_every_report(told: Ledger, ledger_url: str, psql: Psql) -> None:
    """Who may read nothing but what auditors may, keys least of all, is told the same as anybody else."""
    told.number_trail()
    roles = told.create_roles(f"ledger_audited_{os.getpid()}")
    told.number_trail()
    try:
        with Ledger.connect(with_option(ledger_url, f"-crole={roles[2]}")) as auditor:
            assert everything(auditor) == everything(told)
    finally:
        drop(psql, roles)


def drop(psql: Psql, roles: Sequence[str]) -> None:
    """Take roles away again, which belong to the whole server."""
    for role in roles:
        psql.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER".encode())
        psql.execute(f"DROP OWNED BY {role}".encode())
        psql.execute(f"DROP ROLE {role}".encode())


# What is refused


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("nonsense", {}, "there is no 'nonsense', but account-statement"),
        ("general-journal", {"acount": "alice"}, "no such parameter: it has since, until, pending"),
        ("completeness", {"account": "alice"}, "it has none"),
        ("account-statement", {"account": "alice"}, "since.*needs it"),
        ("general-journal", {"since": "yesterday"}, "not a time with its zone"),
        ("transaction", {"transaction_id": "x"}, "not the id of a transaction"),
        ("backdated", {"seconds": -1}, "seconds"),
        ("repairs", {"trail": 10**6}, "its last number so far"),
        ("general-journal", {"position": -1}, "position"),
        ("general-journal", {"position": 8, "known_as_of": PAST}, "one of the two"),
        ("general-journal", {"position": "8"}, "^position: "),
        ("general-journal", {"known_as_of": -1}, "^known_as_of: "),
        ("general-journal", {"known_as_of": "yesterday"}, "^known_as_of: .*not a time with its zone"),
    ],
)
def test_what_cannot_be_asked_is_said(told: Ledger, name: str, asked: dict[str, Any], said: str) -> None:
    """A wrong question is refused before anything is read, in one line that says what there is."""
    with pytest.raises(InvalidCommand, match=said):
        told.report(name, **asked)


def test_form_that_there_is_not(told: Ledger) -> None:
    """A report is written as one of three things."""
    with pytest.raises(InvalidCommand, match="none of jsonl, json, csv"):
        told.report("repairs").write(io.BytesIO(), "xml")


def test_known_as_of_stands_for_a_position(told: Ledger) -> None:
    """A moment, as a text too, gives what was known by then; one of which not all is known yet is refused."""
    header = body(told, "general-journal", position=8)[1]
    assert header.known_at is not None
    pin = told.report("general-journal", known_as_of=header.known_at).pin
    assert (pin.position >= 8, pin.known_at) == (True, header.known_at)
    written: Any = header.known_at.isoformat()
    assert told.report("general-journal", known_as_of=written).pin == pin
    with pytest.raises(NotYetKnown):
        told.report("general-journal", known_as_of=FUTURE)
    with pytest.raises(NotYetKnown):
        told.report("general-journal", position=10**6)


def test_half_of_a_transaction_is_no_answer(told: Ledger) -> None:
    """A position within a transaction stands for the last one before it, and the header says which."""
    within, header = body(told, "general-journal", position=7)
    assert header.position == 6
    assert body(told, "general-journal", position=6)[0] == within
    assert body(told, "general-journal", position=8)[1].rows == header.rows + 2


def test_nothing_was_stamped_yet(ledger: Ledger) -> None:
    """Of an empty ledger reports have no rows, and a hash all the same."""
    for report in ledger.reports:
        if report.name not in ("account-statement", "transaction"):
            _, header = body(ledger, report.name)
            assert header.ok
            assert len(header.sha256) == 64
