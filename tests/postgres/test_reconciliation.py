"""An account and its bank's statements: what is matched, what is left, who decides, and the equation that proves it."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import (
    BrokenStatement,
    CsvProfile,
    DecidedAlready,
    InvalidCommand,
    Ledger,
    Reconciliation,
    credit,
    debit,
)
from ledger.audit.reconciled import body

Psql = psycopg.Connection[Any]

STATEMENTS: Final = Path(__file__).parent.parent / "statements"
MARCH: Final = STATEMENTS / "march.camt.053.001.02.xml"
APRIL: Final = STATEMENTS / "april.camt.053.001.08.xml"
IBAN: Final = "DE75512108001245126199"
PROFILE: Final = CsvProfile(columns=[("date", "day"), ("amount", "amount"), ("reference", "ref")])
TIMEOUT_SECONDS: Final = 60


def on(month: int, day: int) -> datetime:
    """Noon of a day of 2024."""
    return datetime(2024, month, day, 12, tzinfo=UTC)


class Written(NamedTuple):
    """A line of a statement that a test writes."""

    day: date
    amount: int
    reference: str = ""


Write = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a statement as CSV, and say what has to be declared of it."""
    numbers = count(1)

    def make(
        lines: Sequence[Written], *, opening: int = 0, until: date, since: date | None = None
    ) -> tuple[Path, dict[str, Any]]:
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(["day", "amount", "ref"])
        rows.writerows([line.day.isoformat(), whole(line.amount), line.reference] for line in lines)
        path = tmp_path / f"statement-{next(numbers)}.csv"
        path.write_text(text.getvalue(), "utf-8")
        declared = {
            "profile": PROFILE,
            "opening": whole(opening),
            "closing": whole(opening + sum(line.amount for line in lines)),
            "closes_on": until,
            "opens_on": since or min([until, *(line.day for line in lines)]),
            "actor": "robot",
        }
        return path, declared

    return make


def whole(minor: int) -> str:
    """Minor units as a number with two decimals."""
    return f"{'-' if minor < 0 else ''}{abs(minor) // 100}.{abs(minor) % 100:02}"


def move(ledger: Ledger, account: str, minor: int, at: datetime, reference: str | None = None) -> str:
    """Raise an account, or lower it; the name of its entry."""
    change = ledger.deposit if minor > 0 else ledger.withdraw
    asset = ledger.account(account).terms.asset
    done = change(account, f"{whole(abs(minor))} {asset}", against="world", effective_at=at, reference=reference)
    return f"{account}#{done.versions[account]}"


@pytest.fixture
def bank(ledger: Ledger) -> Ledger:
    """A ledger with a bank account that began the year with 1000.00 EUR and had a busy March."""
    ledger.open_account("world", asset="EUR", type="equity")
    ledger.open_account("bank", asset="EUR", type="asset", metadata={"iban": IBAN})
    move(ledger, "bank", 100_000, on(1, 1), "capital")
    move(ledger, "bank", 25_000, on(3, 2), "INV-1001")
    move(ledger, "bank", -10_000, on(3, 5), "PAY-1")
    move(ledger, "bank", -5_000, on(3, 5), "PAY-2")
    move(ledger, "bank", 10_000, on(3, 6), "returned")
    for minor, reference in ((6_000, "card-1"), (4_000, "card-2"), (-300, "card-fee")):
        move(ledger, "bank", minor, on(3, 19), reference)
    move(ledger, "bank", -5_000, on(3, 31), "RENT-04")
    move(ledger, "bank", 7_700, on(4, 9), "INV-1002")
    return ledger


def rules_of(report: Reconciliation) -> list[tuple[str, int, tuple[str, ...], tuple[str, ...]]]:
    """What was matched, in the order of theirs."""
    found = [(each.rule, each.amount, each.ours, each.theirs) for each in report.matched]
    return sorted(found, key=lambda each: each[3])


def open_items(report: Reconciliation) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Names and amounts of what is left on each side."""
    ours, theirs = ([(item.name, item.amount) for item in items] for items in (report.only_ours, report.only_theirs))
    return ours, theirs


def test_a_month_at_the_bank(bank: Ledger) -> None:
    """Matched by reference, by amount and date, and several to one; what is left is listed, and the equation holds."""
    report = bank.reconcile("bank", MARCH, actor="ann")

    assert rules_of(report) == [
        ("reference", 25_000, ("bank#3",), ("2024-03#1",)),
        ("reference", -10_000, ("bank#4",), ("2024-03#2",)),
        ("reference", -5_000, ("bank#5",), ("2024-03#3",)),
        ("amount_and_date", 10_000, ("bank#6",), ("2024-03#4",)),
        ("several", 9_700, ("bank#7", "bank#8", "bank#9"), ("2024-03#5",)),
    ]
    assert open_items(report) == ([("bank#10", -5_000)], [("2024-03#6", -850)])
    assert report.equation == [
        ("ledger balance", 124_700),
        ("less only ours", 5_000),
        ("plus only theirs", -850),
        ("plus amounts that differ", 0),
        ("plus not covered by statements", 0),
    ]
    assert (report.closing, report.proved, report.reconciled) == (128_850, True, False)
    assert (report.sides, report.gaps, report.found, report.recognised) == ("mirrored", [], 5, False)
    assert report.ages(report.only_ours)["0-7 days"] == (1, -5_000)


def test_what_was_outstanding_is_carried_over(bank: Ledger) -> None:
    """The next statement settles what the one before left open, and the older report stays what it was."""
    march = bank.reconcile("bank", MARCH, actor="ann")
    fee = move(bank, "bank", -850, on(3, 31), "fees")

    april = bank.reconcile("bank", APRIL, actor="ann")

    assert ("reference", -5_000, ("bank#10",), ("2024-04#1",)) in rules_of(april)
    # The bank has 70.00 where the ledger has 77.00, both called INV-1002.
    assert [(each.reference, each.difference) for each in april.differing] == [("INV-1002", -700)]
    # 2024-03#6 and our late entry of its fees were matched too: that one belongs to the report of March.
    assert open_items(april) == ([], [("2024-04#3", -1_000)])
    assert (april.proved, april.found) == (True, 2)

    again = bank.reconcile("bank", MARCH, actor="ann")
    assert (again.recognised, again.found) == (True, 0)
    assert ("amount_and_date", -850, (fee,), ("2024-03#6",)) in rules_of(again)
    assert [(item.name, item.later) for item in again.only_ours] == [("bank#10", True)]
    assert again.proved
    was = bank.reconcile("bank", MARCH, actor="bob", pin=march.pin)
    assert was.sha256 == march.sha256


def test_the_same_report_whatever_is_appended(bank: Ledger, psql: Psql) -> None:
    """The pin of a report leads to the same bytes after more entries and decisions; what was recorded agrees."""
    report = bank.reconcile("bank", MARCH, actor="ann")
    move(bank, "bank", 123, on(3, 7), "late")
    desk = bank.reconciliation("bank")
    desk.unmatch(1, actor="ann", reason="looked again")

    was = bank.reconcile("bank", MARCH, actor="bob", pin=report.pin)
    now = bank.reconcile("bank", MARCH, actor="bob", dry_run=True)

    assert (json.dumps(body(was)), was.sha256) == (json.dumps(body(report)), report.sha256)
    assert now.sha256 != report.sha256
    assert now.proved
    assert psql.execute("SELECT pin, encode(report_sha256, 'hex') FROM reconciliations").fetchall() == [
        (report.pin, report.sha256)
    ]


def test_a_pin_leads_to_the_rules_of_its_report(bank: Ledger) -> None:
    """Whatever may be matched today, a report is made again by its own rules, and by no others."""
    strict = bank.reconcile("bank", MARCH, actor="ann", days=0, several=0, names=["reference", "idempotency_key"])
    rules = {"days": 0, "several": 0, "names": ["reference", "idempotency_key"]}
    assert body(strict)["rules"] == rules
    loose = bank.reconcile("bank", MARCH, actor="ann")
    assert loose.found > 0

    for again in ({}, {"several": 0}, rules):
        assert bank.reconcile("bank", MARCH, actor="bob", pin=strict.pin, **again).sha256 == strict.sha256
    for other in ({"days": 3}, {"names": ["reference"]}):
        with pytest.raises(InvalidCommand, match="is of a report by other rules: 0 days, 0 several, by reference, id"):
            bank.reconcile("bank", MARCH, actor="bob", pin=strict.pin, **other)

    # Nothing more is found by these, so that the pin is the same.
    wider = bank.reconcile("bank", MARCH, actor="ann", several=6)
    assert (wider.pin, wider.found) == (loose.pin, 0)
    assert wider.sha256 != loose.sha256
    with pytest.raises(InvalidCommand, match="reports by several rules; say by which: 3 days, 5 several, by reference"):
        bank.reconcile("bank", MARCH, actor="bob", pin=loose.pin)
    assert bank.reconcile("bank", MARCH, actor="bob", pin=loose.pin, several=5).sha256 == loose.sha256


def test_a_pin_is_of_what_exists(bank: Ledger) -> None:
    """What is yet to come would make another report of the same pin: it is refused."""
    report = bank.reconcile("bank", MARCH, actor="ann")
    versions, _, decision = report.pin.partition("@")
    for pin, problem in (
        ("999@0", f"it is of version 999 of bank, which is at {versions}"),
        (f"{int(versions) + 1}@{decision}", f"it is of version {int(versions) + 1} of bank"),
        (f"{versions}@{int(decision) + 1}", f"it is of decision {int(decision) + 1} about bank, and the last one is"),
        ("999@999", "it is of version 999"),
    ):
        with pytest.raises(InvalidCommand, match=problem):
            bank.reconcile("bank", MARCH, actor="bob", pin=pin)


def test_a_dry_run_writes_nothing(bank: Ledger, psql: Psql) -> None:
    """It answers what would be matched, as the run after it does, and no table has a row more."""
    tables = ("bank_statements", "bank_entries", "reconciliation_decisions", "reconciliation_claims", "reconciliations")
    dry = bank.reconcile("bank", MARCH, actor="ann", dry_run=True)

    assert [psql.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() for table in tables] == [(0,)] * 5
    wet = bank.reconcile("bank", MARCH, actor="ann")
    assert dry.sha256 == wet.sha256
    counts = [psql.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() for table in tables]
    assert counts == [(1,), (6,), (5,), (12,), (1,)]


def test_a_statement_is_kept_once(bank: Ledger, psql: Psql, tmp_path: Path) -> None:
    """Under its id or another, the same contents are the same statement; other contents under its id are refused."""
    bank.reconcile("bank", MARCH, actor="ann")
    renamed = tmp_path / "renamed.xml"
    renamed.write_text(MARCH.read_text("utf-8").replace("<Id>2024-03</Id>", "<Id>other</Id>"), "utf-8")
    again = bank.reconcile("bank", renamed, actor="ann")
    assert (again.statement_id, again.recognised, again.found) == ("2024-03", True, 0)
    assert psql.execute("SELECT statement_id FROM bank_statements").fetchall() == [("2024-03",)]

    altered = tmp_path / "altered.xml"
    altered.write_text(MARCH.read_text("utf-8").replace("FEES MARCH", "FEES"), "utf-8")
    with pytest.raises(InvalidCommand, match="2024-03 was read before with other contents"):
        bank.reconcile("bank", altered, actor="ann")


def test_a_broken_statement_leaves_nothing(bank: Ledger, psql: Psql, tmp_path: Path) -> None:
    """What is refused is not kept."""
    broken = tmp_path / "broken.xml"
    broken.write_text(MARCH.read_text("utf-8").replace("97.00", "97.10"), "utf-8")
    with pytest.raises(BrokenStatement, match=r"it is off by 0\.10 EUR"):
        bank.reconcile("bank", broken, actor="ann")
    assert psql.execute("SELECT count(*) FROM bank_statements").fetchone() == (0,)


def test_the_statement_must_be_of_the_account(bank: Ledger) -> None:
    """An account that knows its IBAN takes no other's statement, and one in dollars none in euros."""
    bank.open_account("other", asset="EUR", type="asset", metadata={"iban": "DE02120300000000202051"})
    with pytest.raises(InvalidCommand, match="no statement DE02120300000000202051; it has 2024-03 of DE7551"):
        bank.reconcile("other", MARCH, actor="ann")
    bank.open_account("dollars", asset="USD", type="asset")
    with pytest.raises(BrokenStatement, match=r"is in EUR, and the account is in USD"):
        bank.reconcile("dollars", MARCH, actor="ann")


@pytest.mark.parametrize(
    ("type", "sides", "ours", "usual"),
    [
        ("asset", "mirrored", 500, True),
        ("asset", "same", -500, False),
        ("liability", "same", 500, True),
        ("liability", "mirrored", -500, False),
    ],
)
def test_sides(ledger: Ledger, write: Write, type: str, sides: str, ours: int, usual: bool) -> None:
    """A bank's credit is our debit where its books mirror ours, and our credit where the statement is from our side."""
    ledger.open_account("world", asset="EUR", type="equity")
    ledger.open_account("a", asset="EUR", type=type)
    move(ledger, "a", ours, on(3, 1), "r")
    path, declared = write([Written(date(2024, 3, 1), 500, "r")], until=date(2024, 3, 31))

    report = ledger.reconcile("a", path, sides=None if usual else sides, **declared)

    assert report.reconciled
    assert (report.sides, report.ledger_balance, report.closing) == (sides, ours, ours)


def test_ambiguous_entries_stay_open(ledger: Ledger, write: Write) -> None:
    """Of two entries that are as near, neither is matched; both are listed, and a person decides."""
    ledger.open_account("world", asset="EUR", type="equity")
    ledger.open_account("bank", asset="EUR", type="asset")
    first, second = (move(ledger, "bank", 500, on(3, day)) for day in (1, 3))
    path, declared = write([Written(date(2024, 3, 2), 500)], since=date(2024, 3, 1), until=date(2024, 3, 31))

    report = ledger.reconcile("bank", path, statement_id="S", **declared)

    assert [(each.item.name, [item.name for item in each.candidates]) for each in report.ambiguous] == [
        ("S#1", [first, second])
    ]
    assert report.proved
    desk = ledger.reconciliation("bank")
    decision = desk.match([second], ["S#1"], actor="ann", reason="called the bank")
    assert (decision.number, decision.rule, decision.actor, decision.reason) == (1, "manual", "ann", "called the bank")
    report = ledger.reconcile("bank", path, statement_id="S", **declared)
    assert rules_of(report) == [("manual", 500, (second,), ("S#1",))]
    assert open_items(report) == ([(first, 500)], [])


def test_days_at_the_ends_of_the_calendar(ledger: Ledger, write: Write) -> None:
    """What a bank books on the first or the last day of any calendar is compared as on any other."""
    ledger.open_account("world", asset="EUR", type="equity")
    ledger.open_account("bank", asset="EUR", type="asset")
    move(ledger, "bank", 500, on(3, 1))
    lines = [Written(date.min, 500), Written(date(2024, 3, 1), 500), Written(date(9999, 12, 30), 700)]
    path, declared = write(lines, until=date(9999, 12, 30), since=date.min)

    report = ledger.reconcile("bank", path, statement_id="S", **declared)

    assert [(each.rule, each.theirs) for each in report.matched] == [("amount_and_date", ("S#2",))]
    assert [item.day for item in report.only_theirs] == [date.min, date(9999, 12, 30)]
    assert report.proved
    assert ledger.reconcile("bank", path, statement_id="S", **declared).sha256 == report.sha256


def test_what_a_person_took_apart_stays_apart(bank: Ledger) -> None:
    """After an unmatch no rule matches the entries again, a person may, and everything is on record."""
    bank.reconcile("bank", MARCH, actor="robot")
    desk = bank.reconciliation("bank")
    number = next(each.number for each in desk.decisions() if each.items["ours"] == [("bank", 3)])

    desk.unmatch(number, actor="ann", reason="another customer")
    report = bank.reconcile("bank", MARCH, actor="robot")
    assert report.found == 0
    assert [item.name for item in report.only_ours] == ["bank#3", "bank#10"]
    assert report.proved
    with pytest.raises(DecidedAlready, match=rf"bank#3 is not matched by decision {number} any more: see decision 6"):
        desk.unmatch(number, actor="bob", reason="too")

    desk.match(["bank#3"], ["2024-03#1"], actor="bob", reason="it was after all")
    desk.note(ours=["bank#3"], actor="bob", reason="receipt in folder 7")
    assert [(each.decision, each.rule, each.actor, each.reason) for each in desk.decisions(after=5)] == [
        ("unmatch", "manual", "ann", "another customer"),
        ("match", "manual", "bob", "it was after all"),
        ("note", "manual", "bob", "receipt in folder 7"),
    ]
    assert {(each.decision, each.actor, each.reason) for each in desk.decisions(limit=5)} == {("match", "robot", None)}


def test_a_person_cannot_match_what_does_not_add_up(bank: Ledger) -> None:
    """Manual matches come to the same amount, of entries that exist, each once and open."""
    with pytest.raises(InvalidCommand, match="account bank was never reconciled"):
        bank.reconciliation("bank").match(["bank#3", "bank#4"], [], actor="ann", reason="r")
    bank.reconcile("bank", MARCH, actor="robot")
    desk = bank.reconciliation("bank")
    with pytest.raises(InvalidCommand, match=r"ours come to -50.00 EUR, theirs to -8.50 EUR: it differs by 41.50 EUR"):
        desk.match(["bank#10"], ["2024-03#6"], actor="ann", reason="r")
    with pytest.raises(DecidedAlready, match=r"bank#3 is matched by decision \d"):
        desk.match(["bank#3"], ["2024-03#6"], actor="ann", reason="r")
    for ours, theirs, problem in (
        (["bank#1"], [], "bank#1 is no entry of account bank"),
        (["world#2"], [], "world#2 is no entry of account bank"),
        (["bank#2"], [], "bank#2 is of 2024-01-01, and reconciliation begins on 2024-03-01"),
        (["bank"], [], "'bank' is not STREAM#VERSION"),
        ([], ["2024-03#7"], "2024-03#7 is no entry of a statement of bank"),
        (["bank#10", "bank#10"], [], "one is named twice"),
        ([], [], "a decision is about 1 to 200 entries"),
    ):
        with pytest.raises(InvalidCommand, match=problem):
            desk.match(ours, theirs, actor="ann", reason="r")
    nameless: Any = [None]
    with pytest.raises(InvalidCommand, match="ours: None is not STREAM#VERSION"):
        desk.match(nameless, [], actor="ann", reason="r")
    with pytest.raises(InvalidCommand, match="theirs: None is not STATEMENT#NUMBER"):
        desk.note([], nameless, actor="ann", reason="r")
    for actor, reason in (("", "r"), ("ann", "")):
        with pytest.raises(InvalidCommand, match="say who decides, and why"):
            desk.match(["bank#10"], [], actor=actor, reason=reason)
    for number in (0, 99):
        with pytest.raises(InvalidCommand, match="decision"):
            desk.unmatch(number, actor="ann", reason="r")
    # An entry and its reversal cancel each other, with no need of the bank.
    there = move(bank, "bank", 700, on(3, 8), "there")
    back = move(bank, "bank", -700, on(3, 9), "back")
    desk.match([there, back], [], actor="ann", reason="posted by mistake")
    report = bank.reconcile("bank", MARCH, actor="robot")
    assert report.proved
    assert [item.name for item in report.only_ours] == ["bank#10"]


@pytest.mark.parametrize("deciders", [2, 6])
def test_of_two_who_decide_at_once_one_is_refused(ledger: Ledger, write: Write, psql: Psql, deciders: int) -> None:
    """However many people match the same entry with different ones, one does; the others hear by which decision."""
    ledger.open_account("world", asset="EUR", type="equity")
    ledger.open_account("bank", asset="EUR", type="asset")
    ours = [move(ledger, "bank", 500, on(3, 2)) for _ in range(deciders)]
    path, declared = write([Written(date(2024, 3, 2), 500)], until=date(2024, 3, 31))
    ledger.reconcile("bank", path, statement_id="S", **declared)
    barrier = Barrier(deciders)

    def decide(entry: str) -> str:
        barrier.wait(TIMEOUT_SECONDS)
        try:
            ledger.reconciliation("bank").match([entry], ["S#1"], actor=entry, reason="mine")
        except DecidedAlready as error:
            return f"refused: {error.entry} {error.state}"
        return "decided"

    with ThreadPoolExecutor(deciders) as pool:
        ended = Counter(pool.map(decide, ours, timeout=TIMEOUT_SECONDS))

    assert ended == {"decided": 1, "refused: S#1 is matched by decision 1": deciders - 1}
    assert psql.execute("SELECT count(*) FROM reconciliation_decisions").fetchone() == (1,)


def test_the_database_itself_refuses_a_second_decision(bank: Ledger, psql: Psql) -> None:
    """A claim of an entry has a generation, and no generation is given twice."""
    bank.reconcile("bank", MARCH, actor="robot")
    with pytest.raises(psycopg.errors.UniqueViolation):
        psql.execute(
            "INSERT INTO reconciliation_claims SELECT account, side, origin, number, generation, 99"
            " FROM reconciliation_claims LIMIT 1"
        )


def test_two_runs_at_once_match_once(bank: Ledger, psql: Psql) -> None:
    """Who reconciles the same statement at the same time gets the same matches, recorded once."""
    barrier = Barrier(4)

    def run(_: int) -> Reconciliation:
        barrier.wait(TIMEOUT_SECONDS)
        return bank.reconcile("bank", MARCH, actor="robot")

    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(run, range(4), timeout=TIMEOUT_SECONDS))

    assert {report.sha256 for report in reports} == {reports[0].sha256}
    assert sorted(report.found for report in reports) == [0, 0, 0, 5]
    assert psql.execute("SELECT count(*) FROM reconciliation_decisions").fetchone() == (5,)
    assert psql.execute("SELECT count(*) FROM reconciliations").fetchone() == (4,)


def test_a_missing_statement_shows(bank: Ledger) -> None:
    """April without March opens where the ledger does not stand; that is named, and part of the equation."""
    report = bank.reconcile("bank", APRIL, actor="ann")

    assert [(gap.statement_id, gap.before, gap.opening) for gap in report.gaps] == [("2024-04", 124_700, 128_850)]
    assert (report.proved, report.reconciled) == (True, False)

    late = bank.reconcile("bank", MARCH, actor="ann")
    april = bank.reconcile("bank", APRIL, actor="ann")
    assert (late.gaps, april.gaps) == ([], [])
    assert late.proved
    assert april.proved


def test_reconciliation_can_begin_earlier(ledger: Ledger, write: Write) -> None:
    """With `since`, entries of ours from before the first statement may be what it books."""
    ledger.open_account("world", asset="EUR", type="equity")
    ledger.open_account("bank", asset="EUR", type="asset")
    cheque = move(ledger, "bank", -500, on(2, 27), "cheque")
    path, declared = write([Written(date(2024, 3, 1), -500, "cheque")], until=date(2024, 3, 31))
    without = ledger.reconcile("bank", path, statement_id="S", **(declared | {"dry_run": True}))
    assert [gap.difference for gap in without.gaps] == [500]
    assert open_items(without) == ([], [("S#1", -500)])

    report = ledger.reconcile("bank", path, statement_id="S", since=date(2024, 2, 1), **declared)

    assert report.reconciled
    assert rules_of(report) == [("reference", -500, (cheque,), ("S#1",))]


def test_stripes_are_one_account(ledger: Ledger, write: Write) -> None:
    """Entries of all stripes are compared, and named by their stripe; the pin has a version of each."""
    ledger.open_account("world", asset="EUR", type="equity")
    ledger.open_account("hot", asset="EUR", type="asset", stripes=4)
    lines = []
    for number in range(20):
        entries = [debit("hot", f"{number + 1} EUR"), credit("world", f"{number + 1} EUR")]
        ledger.post(entries, effective_at=on(3, 1), reference=f"r-{number}")
        lines.append(Written(date(2024, 3, 1), (number + 1) * 100, f"r-{number}"))
    path, declared = write(lines, until=date(2024, 3, 31))

    report = ledger.reconcile("hot", path, **declared)

    assert report.reconciled
    assert report.pin.count(".") == 3
    names = {name.rpartition("#")[0] for each in report.matched for name in each.ours}
    assert len(names) > 1
    assert ledger.reconcile("hot", path, pin=report.pin, **declared).sha256 == report.sha256
    ledger.change_account("hot", stripes=8)
    assert ledger.reconcile("hot", path, pin=report.pin, **declared).sha256 == report.sha256


@pytest.mark.parametrize("by", ["idempotency_key", "metadata:bank_ref", "transaction_id"])
def test_what_a_statement_may_refer_to(ledger: Ledger, write: Write, by: str) -> None:
    """The idempotency key, a key of the metadata or the transaction's id can be what both sides call an entry."""
    ledger.open_account("world", asset="EUR", type="equity")
    ledger.open_account("bank", asset="EUR", type="asset")
    done = ledger.deposit(
        "bank", "5 EUR", against="world", idempotency_key="key", metadata={"bank_ref": 17}, effective_at=on(1, 1)
    )
    called = {"idempotency_key": "key", "metadata:bank_ref": "17", "transaction_id": str(done.transaction_id)}[by]
    # Too late for the amount and the date to tell.
    path, declared = write([Written(date(2024, 3, 1), 500, called)], until=date(2024, 3, 31), since=date(2024, 1, 1))

    assert not ledger.reconcile("bank", path, **(declared | {"dry_run": True})).reconciled
    assert ledger.reconcile("bank", path, names=[by], **declared).reconciled


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "mt940"}, "'mt940' is none of camt.053, csv"),
        ({"sides": "left"}, "neither mirrored nor same"),
        ({"names": ["memo"]}, "'memo' is none of reference"),
        ({"days": 32}, "32 is not a number from 0 to 31"),
        ({"several": 11}, "11 is not a number from 0 to 10"),
        ({"pin": "x"}, "not the pin of a report"),
        ({"pin": "1@0"}, "was never reconciled"),
        ({"format": "csv"}, "the columns and both balances are declared"),
    ],
)
def test_questions_are_checked(bank: Ledger, change: dict[str, Any], problem: str) -> None:
    """An option that is none is refused before anything is compared."""
    with pytest.raises(InvalidCommand, match=problem):
        bank.reconcile("bank", MARCH, actor="ann", **change)


NAMED: Final = ("same", "moved", "dropped", "altered")
"""What can be done to an entry so that no other can be taken for it."""


def plans_of(*kinds: str) -> st.SearchStrategy[list[tuple[str, int, bool, int]]]:
    """What is done to each entry, its amount and sign, and its day."""
    each = st.tuples(st.sampled_from(kinds), st.integers(1, 10_000), st.booleans(), st.integers(1, 27))
    return st.lists(each, min_size=1, max_size=12)


PLANS: Final = plans_of(*NAMED) | plans_of(*NAMED, "same", "unnamed", "split", "merged", "theirs")
_accounts: Final = count(1)


@given(plans=st.lists(PLANS, min_size=1, max_size=2))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_planted_difference_is_reported(
    ledger: Ledger, write: Write, plans: list[list[tuple[str, int, bool, int]]]
) -> None:
    """Whatever is dropped, split, merged, altered or added is matched once or reported, and the equation holds."""
    account = f"bank{next(_accounts)}"
    if account == "bank1" or not ledger.accounts(limit=1):
        ledger.open_account("world", asset="EUR", type="equity")
    ledger.open_account(account, asset="EUR", type="asset")
    opening, dropped, altered = 0, set(), set()
    for month, plan in enumerate(plans, 1):
        lines: list[Written] = []
        for place, (what, amount, negative, day) in enumerate(plan):
            minor, reference = -amount if negative else amount, f"{account}-{month}-{place}"
            when = date(2024, month, day)
            if what != "theirs":
                entry = move(ledger, account, minor, on(month, day), reference)
            moved = Written(when + timedelta(days=1), minor)
            lines += {
                "same": [Written(when, minor, reference)],
                "moved": [moved._replace(reference=reference)],
                "unnamed": [moved],
                "dropped": [],
                "altered": [Written(when, minor + 1 if minor != -1 else 7, reference)],
                "split": [Written(when, 10_077, reference), Written(when, minor - 10_077, reference)],
                "theirs": [Written(when, minor, f"unknown-{place}")],
                "merged": [Written(when, minor)],
            }[what]
            if what == "merged" and len(lines) > 1 and not lines[-2].reference and lines[-2].amount != -minor:
                last = lines.pop()
                lines[-1] = lines[-1]._replace(amount=lines[-1].amount + last.amount)
            if what == "dropped":
                dropped.add((entry, minor))
            if what == "altered":
                altered.add(reference)
        until = date(2024, month, 29)
        path, declared = write(lines, opening=opening, until=until, since=date(2024, month, 1))
        opening += sum(line.amount for line in lines)
        report = ledger.reconcile(account, path, statement_id=f"{account}-{month}", **declared)

        assert report.proved
        assert report.gaps == []
        left = {item.name: item.amount for item in (*report.only_ours, *report.only_theirs)}
        differing = [item.name for each in report.differing for item in (*each.ours, *each.theirs)]
        matches = ledger.reconciliation(account).decisions(limit=1000)
        names = [f"{origin}#{number}" for each in matches for side in each.items.values() for origin, number in side]
        everything = Counter([*names, *left, *differing])
        assert set(everything.values()) == {1}, "something is in two places"
        # Altered entries are called the same, and so found to differ.
        assert {each.reference for each in report.differing} >= {
            each for each in altered if each.startswith(f"{account}-{month}-")
        }
        # What is only on one side is left, or was taken for another of the same amount that is then left instead.
        ours_left = sum(item.amount for item in report.only_ours)
        theirs_left = sum(item.amount for item in report.only_theirs)
        differs = sum(each.difference for each in report.differing)
        assert theirs_left - ours_left + differs == report.closing - report.ledger_balance
        again = ledger.reconcile(account, path, statement_id=f"{account}-{month}", **declared)
        assert (again.found, again.sha256) == (0, report.sha256)
        assert ledger.reconcile(account, path, pin=report.pin, **declared).sha256 == report.sha256
    if all(what in NAMED for plan in plans for what, *_ in plan):
        # Then nothing can be taken for another: each planted difference is named itself.
        assert {(item.name, item.amount) for item in report.only_ours} == dropped
        assert report.only_theirs == []
