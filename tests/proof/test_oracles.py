"""Exports of a log that nobody needs a database for: what others add up of it, and what they find when it is wrong."""

from __future__ import annotations

import csv
import errno
import io
import json
import random
import re
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from decimal import Decimal
from importlib import import_module
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Final

import duckdb
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import AMOUNT, ASSERTED, BEANCOUNT, ORACLES, Oracle, planted, query, tags_of_hledger
from story import BEGUN, LEDGER_ID, commands, feed, told

from ledger import Command, CorruptLog, Direction, Entry, InvalidCommand, Post
from ledger.audit.export import Exported, Format, write_export
from ledger.audit.hledger import quoted
from ledger.audit.names import account_name, account_of_name, asset_of_commodity, commodity_name
from ledger.audit.parquet import ROWS_MAX
from ledger.core.commands import AccountType, OpenAccount, Transfer
from ledger.core.events import AssetDefined, FeedEntry, account_of
from ledger.core.money import Money

ASSETS: Final = {"USD": 2, "JPY": 0, "BTC": 8, "WEI": 18, "TRUE": 3, "X": 1, "P.T-S_": 5, "LONG-" + "A" * 27: 18}
"""Assets of all scales; beancount would refuse the names of three of them, and releases before 3 that of the last."""

IDS: Final = ("alice", "Alice", "a", "A", "0", "9.9", "a:b", "a:b:c", "a-b", "a/b@c.d+e_f", "Users:42", "z" + "-" * 60)

TEXTS: Final = (
    'quotes " and \\ backslashes',
    "a line\n2026-01-01 * another transaction\n    Assets:Alice  1 USD\n    Equity:World\n",
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@SUM(A1)",
    "\tTAB",
    "\rCR\r\nLF",
    "'",
    "date:2020-01-01, account:nobody ; [2021-01-01=2022-01-01] #tag ^link",
    "ä€𝄞\u2028\u0085\x1f\x7f",
    '"; option "title" "x',
    "comma, comma",
    "x" * 255,
)
PARQUET: Final[Any] = import_module("pyarrow.parquet")
"""It comes without types."""

DAY: Final = timedelta(hours=7)


def accounts() -> dict[str, tuple[str, AccountType]]:
    """Two accounts or more in each asset, of all types, with ids that no other program would have."""
    kinds = [*AccountType]
    found = {}
    for number, asset in enumerate(ASSETS):
        for place, name in enumerate((*IDS[number::3], f"{asset.lower()}x")):
            found[name if name not in found else f"{name}.{number}"] = (asset, kinds[(number + place) % 5])
    return found


def nasty(seed: int, transactions: int) -> Iterator[Command | list[AssetDefined]]:
    """Assets, accounts, and then random transactions of one or several assets; some are backdated, some are huge."""
    chance = random.Random(seed)  # noqa: S311  (a story, not a secret)
    yield [AssetDefined(asset, scale) for asset, scale in ASSETS.items()]
    opened = accounts()
    for number, (account, (asset, kind)) in enumerate(opened.items()):
        yield OpenAccount(account=account, asset=asset, account_type=kind, stripes=1 + 2 * (number % 3 == 0))
    of_asset = {asset: [name for name, (each, _) in opened.items() if each == asset] for asset in ASSETS}
    for number in range(transactions):
        entries: list[Entry] = []
        for asset in chance.sample([*ASSETS], chance.randint(1, 3)):
            minor = chance.choice((1, chance.randint(1, 10**6), chance.randint(1, 10**30)))
            one, other = chance.sample(of_asset[asset], 2)
            parts = [minor] if minor == 1 else [minor // 2, minor - minor // 2]
            entries += [Entry(account=one, direction=Direction.DEBIT, amount=money(part, asset)) for part in parts]
            entries.append(Entry(account=other, direction=Direction.CREDIT, amount=money(minor, asset)))
        effective = BEGUN - timedelta(days=chance.randint(0, 700_000)) if number % 5 == 0 else None
        text = TEXTS[number % len(TEXTS)]
        yield Post(
            entries=entries,
            reference=text if number % 3 != 1 else None,
            actor=TEXTS[number % 7],
            metadata={"text": text, "date": number, "a, b:c": True} if number % 3 else {},
            effective_at=effective,
        )


def money(minor: int, asset: str) -> str:
    """An amount as a command has it."""
    return str(Money(minor, asset, ASSETS[asset]))


@pytest.fixture(scope="module", params=[1, 2])
def story(request: pytest.FixtureRequest) -> list[FeedEntry]:
    """A feed of several hundred such transactions, of more than a hundred days."""
    return [*told(nasty(request.param, 350), DAY)]


def exported(kind: str, entries: Iterable[FeedEntry], file: Path, position: int = 0) -> Path:
    """The export of a feed."""
    all_of_them = [*entries]
    write_export(Format(kind), file, LEDGER_ID, position or all_of_them[-1].position, all_of_them)
    return file


def written(kind: str, entries: Iterable[FeedEntry]) -> tuple[Exported, bytes]:
    """The same, in memory."""
    out, all_of_them = io.BytesIO(), [*entries]
    done = write_export(Format(kind), out, LEDGER_ID, all_of_them[-1].position, all_of_them)
    return done, out.getvalue()


class Sums:
    """What each account comes to, added up here from what goes by."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._scales: dict[str, int] = {}
        self._nets: dict[str, int] = {}

    def watch(self, entries: Iterable[FeedEntry]) -> Iterator[FeedEntry]:
        """Add up entries on their way to somebody else."""
        for entry in entries:
            event, account = entry.event, account_of(entry.event.stream)
            if event.type == "account_opened":
                opened = json.loads(event.payload)
                self._names[account] = account_name(account, AccountType(opened["account_type"]))
                self._scales[account] = opened["scale"]
            if event.type in ("entry_posted", "hold_captured"):
                assert event.amount is not None
                sign = 1 if event.direction == "debit" else -1
                self._nets[account] = self._nets.get(account, 0) + sign * event.amount
            yield entry

    @property
    def balances(self) -> dict[str, Decimal]:
        """By the name that other programs have for each account that moved: debits are positive."""
        return {self._names[account]: units(net, self._scales[account]) for account, net in self._nets.items()}


def summed(entries: Iterable[FeedEntry]) -> dict[str, Decimal]:
    """What each account comes to."""
    sums = Sums()
    for _ in sums.watch(entries):
        pass
    return sums.balances


def units(minor: int | Decimal, scale: int) -> Decimal:
    """An amount in whole units; a Decimal's own methods would round it."""
    return Money(int(minor), "X", scale).decimal


def moved_only(balances: dict[str, Decimal], moved: Iterable[str]) -> dict[str, Decimal]:
    """The balances that a program prints, of those accounts; all others are zero."""
    assert all(balance == 0 for name, balance in balances.items() if name not in moved)
    return {name: balances[name] for name in moved}


@pytest.mark.parametrize("oracle", ORACLES, ids=[each.format for each in ORACLES])
def test_other_programs_agree(oracle: Oracle, story: list[FeedEntry], tmp_path: Path) -> None:
    """Both accept all ids, assets and texts, and come to our balances, to the last unit of each asset."""
    file = exported(oracle.format, story, tmp_path / "journal")

    assert oracle.problem(file) == ""
    expected = summed(story)
    assert len(expected) == len(accounts())
    assert moved_only(oracle.balances(file), expected) == expected


@pytest.mark.parametrize("oracle", ORACLES, ids=[each.format for each in ORACLES])
def test_holds_states_and_stripes_are_read(oracle: Oracle, tmp_path: Path) -> None:
    """Of a hold what was captured counts, and an account with stripes is one account."""
    entries = feed(60)
    file = exported(oracle.format, entries, tmp_path / "journal")

    assert oracle.problem(file) == ""
    expected = summed(entries)
    assert moved_only(oracle.balances(file), expected) == expected


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("what", [AMOUNT, ASSERTED], ids=["amount", "assertion"])
@pytest.mark.parametrize("oracle", ORACLES, ids=[each.format for each in ORACLES])
def test_one_unit_is_found(oracle: Oracle, what: dict[str, str], place: float, tmp_path: Path) -> None:
    """One unit of any scale too many, in an amount or an assertion, is found by both."""
    file = exported(oracle.format, told(nasty(3, 40), DAY), tmp_path / "journal")
    assert oracle.problem(file) == ""

    file.write_text(planted(file.read_text("utf-8"), what[oracle.format], place), "utf-8")

    assert oracle.problem(file)


@pytest.mark.parametrize("oracle", ORACLES, ids=[each.format for each in ORACLES])
def test_less_than_a_unit_is_found(oracle: Oracle, tmp_path: Path) -> None:
    """A transaction that is out of balance by less than its asset can express is not forgiven by either."""
    entries = feed(60)
    file = exported(oracle.format, entries, tmp_path / "journal")
    text = file.read_text("utf-8")

    file.write_text(re.sub(r"  1\.25 ", "  1.254 ", text, count=1), "utf-8")

    problem = oracle.problem(file)
    assert problem
    # In hledger it is the assertion that finds it; beancount must not forgive the transaction itself.
    assert oracle is not BEANCOUNT or "Transaction does not balance" in problem


def test_every_day_and_every_account_is_asserted(story: list[FeedEntry]) -> None:
    """There is an assertion per account and day with movement for beancount, per entry for hledger; both at the end."""
    _, text = written("beancount", story)
    days = {
        (account_of(entry.event.stream), entry.event.recorded_at.date())
        for entry in story
        if entry.event.amount is not None
    }
    last = story[-1].event.recorded_at.date()
    before_last = sum(day != last for _, day in days)
    exact = rb"^[0-9-]+ balance \S+  -?[0-9.]+ ~ 0(\.0+)? "
    assert len(re.findall(exact, text, re.MULTILINE)) == before_last + len(accounts())
    assert len({day for _, day in days}) > 100

    done, text = written("hledger", story)
    assert text.count(b" = ") == done.entries + len(accounts())


@pytest.mark.parametrize("oracle", ORACLES, ids=[each.format for each in ORACLES])
def test_days_never_go_back(oracle: Oracle, tmp_path: Path) -> None:
    """A transaction that was stamped behind one of the next day is of that day; what is asserted in between holds."""
    lines = [*islice(commands(), 8)]
    for number in range(8):
        lines.append(Transfer(amount="1.00 USD", debit="world", credit="alice"))
        lines.append(Transfer(amount=f"{number + 1} PTS", debit="points", credit="a"))
    groups = [[*each] for _, each in groupby(told(lines, DAY), lambda entry: entry.transaction.transaction_id)]
    for at in range(8, len(groups) - 1, 2):
        groups[at], groups[at + 1] = groups[at + 1], groups[at]
    swapped = [entry for group in groups for entry in group]
    entries = [entry._replace(position=position) for position, entry in enumerate(swapped, 1)]
    times = [entry.event.recorded_at.date() for entry in entries]
    assert times != sorted(times)

    file = exported(oracle.format, entries, tmp_path / "journal")
    dates = re.findall(r"^(\d{4}-\d\d-\d\d)\S* \*", file.read_text("utf-8"), re.MULTILINE)
    assert dates == sorted(dates)
    assert date.fromisoformat(dates[-1]) == max(times)
    assert oracle.problem(file) == ""


def test_texts_are_read_as_they_were_written(story: list[FeedEntry], tmp_path: Path) -> None:
    """Whatever a user has written, hledger and beancount read it back, in its place, and nothing else from it."""
    posted = [
        transaction
        for transaction in {entry.transaction.transaction_id: entry.transaction for entry in story}.values()
        if transaction.kind == "post"
    ]
    tags = tags_of_hledger(exported("hledger", story, tmp_path / "journal.hledger"))
    read = {each["transaction"]: each for each in tags if "transaction" in each}
    file = exported("beancount", story, tmp_path / "journal.beancount")
    names = ("transaction", "reference", "actor", "metadata", "effective")
    asked = ", ".join(f"entry_meta('{name}') AS {name}" for name in names)
    rows = {row["transaction"]: row for row in csv.DictReader(io.StringIO(query(file, f"SELECT DISTINCT {asked}"), ""))}

    assert len(read) == len(rows) == len(posted)
    for transaction in posted:
        tagged, row = read[transaction.transaction_id], rows[transaction.transaction_id]
        for name in ("reference", "actor", "metadata"):
            text = getattr(transaction, name)
            assert (json.loads(tagged[name]) if name in tagged else None) == text
            # Its CSV has no way to say that there is none, and leaves out spaces at the ends.
            assert row[name].strip() == (text or "").strip()
        assert row["effective"] == transaction.effective_at.date().isoformat()


@given(st.text())
def test_no_text_leaves_its_line(text: str) -> None:
    """A text in a comment of hledger's is printable ASCII without a comma, and is read back."""
    assert re.fullmatch(r'"[ -+\--~]*"', quoted(text))
    assert json.loads(quoted(text)) == text


ACCOUNT_IDS: Final = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}", fullmatch=True)
ASSET_CODES: Final = st.from_regex(r"[A-Z][A-Z0-9._-]{0,31}", fullmatch=True)


@given(ACCOUNT_IDS, st.sampled_from(AccountType))
def test_names_lead_back_to_accounts(account: str, kind: AccountType) -> None:
    """Every account has a name that beancount accepts, of one level below its type, and the name leads back to it."""
    name = account_name(account, kind)

    assert re.fullmatch(r"(Assets|Liabilities|Equity|Income|Expenses):[A-Z0-9][A-Za-z0-9-]*", name)
    assert account_of_name(name) == account


@given(st.from_regex(r"(Assets|Income):[A-Z0-9][A-Za-z0-9-]{0,20}", fullmatch=True))
@example("Assets:0-30")
@example("Income:A-41-")
def test_no_two_accounts_have_one_name(name: str) -> None:
    """A name that leads to an account is the name of that account, and of no other."""
    try:
        account = account_of_name(name)
    except InvalidCommand:
        return
    kind = AccountType.ASSET if name.startswith("A") else AccountType.INCOME
    assert account_name(account, kind) == name


@given(ASSET_CODES | st.sampled_from(["TRUE", "FALSE", "NULL", "X", "A_", "A."]))
def test_names_lead_back_to_assets(asset: str) -> None:
    """Every asset has a name that beancount accepts, and the name leads back to it."""
    name = commodity_name(asset)

    assert re.fullmatch(r"[A-Z][A-Z0-9'._-]*[A-Z0-9]", name)
    assert name not in {"TRUE", "FALSE", "NULL"}
    assert asset_of_commodity(name) == asset
    assert name == asset or not re.fullmatch(r"[A-Z][A-Z0-9._-]*[A-Z0-9]", asset) or len(asset) in (4, 5)


def test_csv_has_everything_and_no_formula(story: list[FeedEntry]) -> None:
    """The rows of the CSV are the entries, exactly; a text that would be a formula has an apostrophe before it."""
    done, text = written("csv", story)
    rows = [*csv.DictReader(io.StringIO(text.decode(), ""))]
    entries = [entry for entry in story if entry.event.amount is not None]

    assert len(rows) == done.entries == len(entries)
    for row, (position, event, transaction) in zip(rows, entries, strict=True):
        assert (row["position"], row["stream"], row["version"]) == (str(position), event.stream, str(event.version))
        assert row["minor"] == str(event.amount)
        assert Decimal(row["amount"]) == units(int(row["minor"]), int(row["scale"]))
        assert row["event_sha256"] == event.event_hash.hex()
        assert row["up_to_position"] == str(story[-1].position)
        for name in ("reference", "actor", "metadata"):
            assert not row[name].startswith(("=", "+", "-", "@", "\t", "\r"))
            assert row[name].removeprefix("'") == (getattr(transaction, name) or "")
    assert any(row["reference"].startswith("'=") for row in rows)
    assert "''" in {row["actor"] for row in rows} | {row["reference"] for row in rows}
    # A text that is not there is nothing, and one that is there stands in quotes.
    assert re.search(rb"[0-9a-f]{64},,,\"", text)
    assert f'",,,,{LEDGER_ID},'.encode() in text


def test_sql_and_arrow_agree(story: list[FeedEntry], tmp_path: Path) -> None:
    """The sums that DuckDB and Arrow make of the Parquet file are ours, and each value has its type."""
    file = exported("parquet", story, tmp_path / "entries.parquet")
    table = PARQUET.read_table(file)
    with duckdb.connect() as database:
        scales = accounts_scales(story)
        rows = database.execute(
            "SELECT account, account_type, sum(posted) FROM read_parquet(?) GROUP BY ALL", [str(file)]
        ).fetchall()
    by_sql = {account_name(account, AccountType(kind)): units(total, scales[account]) for account, kind, total in rows}
    grouped = table.group_by(["account", "account_type"]).aggregate([("posted", "sum")]).to_pylist()
    by_arrow = {
        account_name(row["account"], AccountType(row["account_type"])): units(row["posted_sum"], scales[row["account"]])
        for row in grouped
    }

    assert by_sql == by_arrow == summed(story)
    metadata = table.schema.metadata
    assert (metadata[b"ledger_id"].decode(), metadata[b"up_to_position"]) == (LEDGER_ID, b"%d" % story[-1].position)
    entries = [entry for entry in story if entry.event.amount is not None]
    for row, (position, event, transaction) in zip(table.to_pylist(), entries, strict=True):
        assert (row["position"], row["stream"], row["version"]) == (position, event.stream, event.version)
        assert (row["recorded_at"], row["effective_at"]) == (event.recorded_at, event.effective_at)
        assert (row["event_sha256"], row["prev_sha256"]) == (event.event_hash, event.prev_hash)
        assert row["header_sha256"] == transaction.header_hash
        assert (row["reference"], row["actor"]) == (transaction.reference, transaction.actor)
        assert (row["minor"], Decimal(row["amount"])) == (event.amount, units(row["minor"], row["scale"]))


def accounts_scales(entries: Iterable[FeedEntry]) -> dict[str, int]:
    """The scale of each account's asset."""
    opened = (entry.event for entry in entries if entry.event.type == "account_opened")
    return {account_of(event.stream): json.loads(event.payload)["scale"] for event in opened}


@pytest.mark.parametrize("kind", Format)
def test_the_same_position_gives_the_same_bytes(kind: Format, tmp_path: Path) -> None:
    """Whenever it is made, an export of a position has the same bytes; it says which one it is, and of which ledger."""
    entries = feed(40)
    done, first = written(kind, entries)
    again = exported(kind, entries, tmp_path / "again")

    assert again.read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    assert str(done.position).encode() in first
    assert LEDGER_ID.encode() in first
    assert written(kind, feed(41))[1] != first


@pytest.mark.parametrize("kind", Format)
def test_what_is_interrupted_leaves_nothing(kind: Format, tmp_path: Path) -> None:
    """An export that is interrupted leaves no file, not even a part of one; one that exists is not touched."""

    def interrupted() -> Iterator[FeedEntry]:
        yield from feed(30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_export(kind, tmp_path / "export", LEDGER_ID, 99, interrupted())
    assert [*tmp_path.iterdir()] == []

    (tmp_path / "export").write_text("mine")
    with pytest.raises(InvalidCommand, match="it exists"):
        write_export(kind, tmp_path / "export", LEDGER_ID, 99, feed(30))
    assert (tmp_path / "export").read_text() == "mine"


FULL: Final = """
import resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
from story import LEDGER_ID, feed
from ledger.audit.export import Format, write_export
entries = feed(2_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_export(Format({kind!r}), Path({target!r}), LEDGER_ID, len(entries), entries)
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.mark.parametrize("kind", Format)
def test_a_full_disk_leaves_nothing(kind: Format, tmp_path: Path) -> None:
    """Where there is no room for all of an export, there is none of it, and the system's own error says why."""
    assert resource.RLIM_INFINITY in resource.getrlimit(resource.RLIMIT_FSIZE)
    script = FULL.format(kind=str(kind), target=str(tmp_path / "export"), path=sys.path)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stderr) == (errno.EFBIG, "")
    assert [*tmp_path.iterdir()] == []


def test_parquet_needs_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without pyarrow the answer is what to install, and no file."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(InvalidCommand, match=r"ledger\[export\]"):
        exported("parquet", feed(10), tmp_path / "entries.parquet")
    assert [*tmp_path.iterdir()] == []


def test_an_account_that_was_never_opened_is_no_account() -> None:
    """A log in which an amount moves before its account is opened is not exported."""
    entries = [entry for entry in feed(12) if entry.event.type != "account_opened"]

    with pytest.raises(CorruptLog, match="not opened"):
        written("hledger", entries)


def repeated(transactions: int, **changed: Any) -> Iterator[FeedEntry]:
    """A feed of which the last transaction happens again and again; no such feed is kept anywhere."""
    entries = feed(30)
    yield from entries
    last = entries[-2:]
    for number in range(transactions):
        for place, entry in enumerate(last, 1):
            transaction = entry.transaction._replace(transaction_id=str(number), **changed)
            yield entry._replace(position=len(entries) + 2 * number + place, transaction=transaction)


def peak(kind: Format, transactions: int, file: Path) -> int:
    """How many bytes are in memory at most while so many transactions are exported."""
    tracemalloc.start()
    write_export(kind, file, LEDGER_ID, 1, repeated(transactions))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("kind", [Format.HLEDGER, Format.BEANCOUNT, Format.CSV])
def test_memory_is_flat(kind: Format, tmp_path: Path) -> None:
    """An export takes much less memory than it has bytes."""
    peak(kind, 10, tmp_path / "first")  # What is imported on the way counts for nobody.

    assert peak(kind, 5_000, tmp_path / "export") < 1_000_000
    assert (tmp_path / "export").stat().st_size > 3_000_000


def test_memory_for_parquet_is_that_of_a_group(tmp_path: Path) -> None:
    """More groups of rows take no more memory than one."""
    peak(Format.PARQUET, 10, tmp_path / "first")
    one = peak(Format.PARQUET, ROWS_MAX // 2 + 1, tmp_path / "one")

    assert peak(Format.PARQUET, 5 * ROWS_MAX // 4, tmp_path / "three") < 1.3 * one


def test_groups_of_rows_are_bounded(tmp_path: Path) -> None:
    """A group of a Parquet file has a stated number of rows, and fewer where their texts are long."""
    many, long = tmp_path / "many", tmp_path / "long"
    write_export(Format.PARQUET, many, LEDGER_ID, 1, repeated(ROWS_MAX // 2 + 500))
    write_export(Format.PARQUET, long, LEDGER_ID, 1, repeated(1_500, metadata='{"a":"' + "b" * 16_000 + '"}'))

    def groups(file: Path) -> list[int]:
        described = PARQUET.ParquetFile(file).metadata
        return [described.row_group(number).num_rows for number in range(described.num_row_groups)]

    assert groups(many)[0] == ROWS_MAX
    assert len(groups(many)) == 2
    assert len(groups(long)) == 3
    assert max(groups(long)) < 1_100


@pytest.mark.campaign
@pytest.mark.parametrize("oracle", ORACLES, ids=[each.format for each in ORACLES])
def test_many_transactions_of_many_days(oracle: Oracle, tmp_path: Path) -> None:
    """Both agree over 20,000 transactions of three months, and find one unit too many."""
    sums, file = Sums(), tmp_path / "journal"
    entries = sums.watch(told(nasty(7, 20_000), timedelta(seconds=400)))
    done = write_export(Format(oracle.format), file, LEDGER_ID, 10**6, entries)

    assert done.transactions == 20_000
    assert oracle.problem(file) == ""
    assert moved_only(oracle.balances(file), sums.balances) == sums.balances
    file.write_text(planted(file.read_text("utf-8"), ASSERTED[oracle.format], 0.7), "utf-8")
    assert oracle.problem(file)
