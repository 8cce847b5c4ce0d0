"""Rebuilding and verifying a log in parts: by several at once, interrupted, gone on with, and beside writers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import CorruptLog, Interrupted, InvalidCommand, Ledger, OpenAccount, Transfer
from ledger.audit import verify as verification
from ledger.audit.report import Report
from ledger.audit.texts import Entries, sealed
from ledger.core import chain
from ledger.core.book import Book
from ledger.core.commands import build
from ledger.storage import parts

Psql = psycopg.Connection[Any]
Tamper = Callable[..., None]

ACCOUNTS = 60
WAIT_SECONDS = 60


@pytest.fixture
def busy(funded: Ledger) -> Ledger:
    """A ledger with many accounts, holds in each state, a closed period and a stream of its own."""
    names = [f"acct-{number:02}" for number in range(ACCOUNTS)]
    funded.handle([build(OpenAccount, account=name, asset="USD", account_type="liability") for name in names])
    funded.handle(
        [
            build(Transfer, amount=f"{number % 7 + 1} USD", debit=names[number % 60], credit=names[number * 7 % 60 - 1])
            for number in range(600)
            if names[number % 60] != names[number * 7 % 60 - 1]
        ]
    )
    held = [funded.hold("2 USD", debit=names[number], credit=names[number + 1]) for number in range(6)]
    funded.capture(held[0], "1 USD")
    funded.capture(held[1], "1 USD", final=True)
    funded.release(held[2])
    funded.freeze(names[9])
    funded.change_account(names[10], max_balance="5000 USD")
    funded.begin("payment", "ride-7")
    return funded


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A Ctrl-C that is heard: a shell lets what it runs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few streams each, so that a small ledger has many."""
    monkeypatch.setattr(parts, "_PART_STREAMS", 5)


DAMAGE = (
    "UPDATE events SET amount = 2999 WHERE stream = 'alice' AND version = 3",
    "UPDATE events SET prev_hash = sha256('') WHERE stream LIKE 'acct-1%' AND version = 4",
    "UPDATE transactions SET actor = 'mallory' WHERE idempotency_key IS NULL",
    "DELETE FROM events WHERE stream = 'acct-30' AND version > 12",
    "UPDATE balances SET posted_debits = 5 WHERE stream IN ('bob', 'acct-05', 'acct-44')",
    "INSERT INTO accounts SELECT 'ghost', 'asset', 'USD', 2, NULL, NULL, 'open', '{}'",
    "UPDATE holds SET captured = captured + 1 WHERE account = 'acct-04'",
    "UPDATE periods SET closed_until = '2020-01-01'",
)


@pytest.mark.parametrize("damage", [(), DAMAGE], ids=["sound", "damaged"])
@pytest.mark.parametrize("jobs", [2, 3])
def test_report_is_the_same_for_any_number_of_jobs(
    busy: Ledger, tamper: Tamper, damage: tuple[str, ...], jobs: int
) -> None:
    """Counts, findings and their order do not depend on how the work was divided."""
    if damage:
        tamper(*damage)
    alone, together = busy.verify(), busy.verify(jobs=jobs)
    assert together == alone
    assert together.ok is not bool(damage)
    assert not damage or len({finding.kind for finding in alone.findings}) >= 3


def test_report_does_not_depend_on_the_parts(busy: Ledger, tamper: Tamper, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the parts and pages are, the report says the same in the same order."""
    tamper(*DAMAGE)
    whole = busy.verify()
    monkeypatch.setattr(parts, "_PART_STREAMS", 5)
    monkeypatch.setattr(verification, "_PAGE_STREAMS", 3)
    assert busy.verify() == whole


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_rebuild_mends_the_same_with_any_number_of_jobs(busy: Ledger, psql: Psql, jobs: int) -> None:
    """Rows that were changed, lost or invented are made anew, each on record once; what is right stays untouched."""
    psql.execute("UPDATE balances SET posted_debits = 5 WHERE stream IN ('$ledger', 'bob', 'acct-05', 'acct-44')")
    psql.execute("DELETE FROM balances WHERE stream = 'acct-20'")
    psql.execute("DELETE FROM accounts WHERE account = 'acct-21'")
    psql.execute("UPDATE accounts SET state = 'open' WHERE account = 'acct-09'")
    psql.execute("DELETE FROM holds WHERE account = 'acct-00'")
    psql.execute("INSERT INTO balances SELECT 'zombie', 1, 0, 0, 0, 0, now(), '', ''")
    untouched = "SELECT xmin, ctid FROM balances WHERE stream = 'acct-50'"
    before = psql.execute(untouched).fetchall()
    mended = ["$ledger", "acct-00", "acct-05", "acct-09", "acct-20", "acct-21", "acct-44", "bob", "zombie"]
    assert busy.rebuild(jobs=jobs) == mended
    assert busy.verify().ok
    assert psql.execute("SELECT stream FROM projection_repairs ORDER BY 1").fetchall() == [(name,) for name in mended]
    assert psql.execute(untouched).fetchall() == before
    assert busy.rebuild(jobs=jobs) == []


@pytest.mark.usefixtures("small_parts")
def test_all_but_the_corrupt_are_rebuilt(busy: Ledger, psql: Psql, tamper: Tamper) -> None:
    """Streams whose log contradicts itself are named together, in order; all others are made anew."""
    tamper("UPDATE events SET amount = 2999 WHERE stream IN ('bob', 'acct-33') AND version = 2")
    psql.execute("UPDATE balances SET posted_debits = 5 WHERE stream IN ('acct-05', 'world')")
    with pytest.raises(CorruptLog, match=r"acct-33.*so do 1 others: bob"):
        busy.rebuild(jobs=2)
    assert psql.execute("SELECT stream FROM projection_repairs ORDER BY 1").fetchall() == [("acct-05",), ("world",)]


def test_rebuild_adds_what_came_after_its_pass(busy: Ledger, ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that are appended between the pass over the log and the page that compares are counted too."""
    from ledger.storage import rebuild, repair  # noqa: PLC0415  (what is watched)

    pages = rebuild._pages  # noqa: SLF001

    def with_a_writer(*arguments: Any) -> Iterator[Any]:
        for page in pages(*arguments):
            with Ledger.connect(ledger_url) as writer:
                writer.transfer("1 USD", debit="alice", credit="bob")
                writer.open_account("late", asset="USD", type="liability")
                held = writer.hold("2 USD", debit="alice", credit="bob")
                writer.capture(held, "1 USD")
            yield page

    monkeypatch.setattr(rebuild, "_pages", with_a_writer)
    assert repair.REBUILD_STREAMS_MAX > ACCOUNTS
    assert busy.rebuild() == []
    assert busy.verify().ok


def test_what_agrees_is_not_locked(busy: Ledger, ledger_url: str) -> None:
    """Somebody else may hold the rows of accounts while they are looked at: only what differs is waited for."""
    with psycopg.connect(ledger_url) as other:
        other.execute("SELECT FROM ledger.balances WHERE stream > 'acct-10' AND stream < 'acct-60' FOR UPDATE")
        assert busy.rebuild(jobs=2) == []


def test_writers_go_on_during_both(busy: Ledger, ledger_url: str) -> None:
    """While several write as fast as they can, jobs find nothing wrong and rebuild nothing."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            with Ledger.connect(ledger_url) as ledger:
                while not stop.is_set():
                    ledger.transfer("1 USD", debit="world", credit=f"acct-{number:02}")
                    held = ledger.hold("1 USD", debit="world", credit=f"acct-{number + 1:02}")
                    ledger.release(held)
        except BaseException as error:  # noqa: BLE001  (it is looked at below)
            failures.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for writer in writers:
        writer.start()
    try:
        before = busy.balance("world").version
        for _ in range(3):
            report = busy.verify(jobs=2)
            assert report.ok, report.findings
            assert busy.rebuild(jobs=2) == []
        assert busy.balance("world").version > before
    finally:
        stop.set()
        for writer in writers:
            writer.join(WAIT_SECONDS)
    assert failures == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupted_verification_goes_on(busy: Ledger, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    """Ctrl-C in the midst ends all jobs and says where it stood; from there the rest is checked, and only that."""
    monkeypatch.setattr(verification, "_PAGE_STREAMS", 3)

    def interrupt(events: int) -> None:
        if events > 100:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as interrupted:
        busy.verify(jobs=jobs, progress=interrupt)
    assert active_children() == []
    after = interrupted.value.after
    whole, rest = busy.verify(), busy.verify(after=after, jobs=jobs)
    # Of several jobs the one with the first part may be the slowest: then it all begins anew.
    assert after or jobs > 1
    assert rest.ok
    assert 0 < rest.checked["streams"] < whole.checked["streams"] + (not after)
    assert rest.checked["transactions"] == whole.checked["transactions"]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("jobs", [1, 2])
def test_what_was_found_is_told_when_it_is_interrupted(
    busy: Ledger, tamper: Tamper, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """What it found before, and what is found from there on, is all that there is to be found: of either work."""
    monkeypatch.setattr(verification, "_PAGE_STREAMS", 3)
    tamper(
        "UPDATE balances SET posted_debits = posted_debits + 1 WHERE stream LIKE 'acct-_0'",
        "UPDATE events SET amount = amount + 1 WHERE amount IS NOT NULL AND stream LIKE 'acct-_5'",
    )
    whole = busy.verify().findings
    streams = {finding.stream for finding in whole}

    def interrupt(done: int) -> None:
        if done > 20:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as verified:
        busy.verify(jobs=jobs, progress=interrupt)
    rest = busy.verify(after=verified.value.after).findings
    assert {*verified.value.found, *rest} == {*whole}
    assert not {*verified.value.found} & {*rest}

    with pytest.raises(Interrupted) as rebuilt:
        busy.rebuild(jobs=jobs, progress=interrupt)
    with pytest.raises(CorruptLog) as later:
        busy.rebuild(after=rebuilt.value.after)
    told = " ".join((*map(str, rebuilt.value.found), str(later.value))) + " "
    assert rebuilt.value.found
    assert [stream for stream in sorted(streams) if re.search(rf"\b{stream}\b", told)] == [
        stream for stream in sorted(streams) if stream.endswith("5")
    ]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupted_rebuild_goes_on(busy: Ledger, psql: Psql, jobs: int) -> None:
    """Ctrl-C in the midst ends all jobs and says where it stood; from there it mends what is left."""
    psql.execute("UPDATE balances SET posted_debits = 7 WHERE stream LIKE 'acct-%' OR stream = 'world'")

    def interrupt(streams: int) -> None:
        if streams > 20:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as interrupted:
        busy.rebuild(jobs=jobs, progress=interrupt)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("ledger-rebuild")] == []
    after = interrupted.value.after
    assert after or jobs > 1
    wrong = "SELECT stream FROM balances WHERE posted_debits = 7 ORDER BY stream"
    left = [name for (name,) in psql.execute(wrong)]
    assert all(name > after for name in left)
    assert set(busy.rebuild(after=after, jobs=jobs)) >= set(left)
    assert busy.verify().ok


def test_rebuild_is_interrupted_while_it_waits(busy: Ledger, ledger_url: str, psql: Psql) -> None:
    """Ctrl-C ends what waits for a lock at once, and not when the lock comes."""
    psql.execute("UPDATE balances SET posted_debits = 7 WHERE stream IN ('acct-10', 'acct-50')")
    with psycopg.connect(ledger_url) as other, psycopg.connect(ledger_url, autocommit=True) as watch:
        other.execute("SELECT FROM ledger.balances FOR UPDATE")
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )

        def interrupt() -> None:
            deadline = time.monotonic() + WAIT_SECONDS
            while watch.execute(waiting).fetchone() == (0,) and time.monotonic() < deadline:
                pass
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(Interrupted):
            busy.rebuild(jobs=2)
        thread.join(WAIT_SECONDS)
        assert watch.execute(waiting).fetchone() == (0,)


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_command_line_says_where_to_go_on(busy: Ledger, ledger_url: str, psql: Psql, form: list[str]) -> None:
    """An interrupted command exits with 130 and one line, or one object; with --after it goes on."""
    command = [sys.executable, "-m", "ledger", "rebuild", "--jobs", "2", "--database-url", ledger_url]
    psql.execute("UPDATE balances SET posted_debits = 7 WHERE stream = 'acct-50'")
    with psycopg.connect(ledger_url) as other, psycopg.connect(ledger_url, autocommit=True) as watch:
        other.execute("SELECT FROM ledger.balances WHERE stream > 'acct-40' FOR UPDATE")
        process = subprocess.Popen(
            [*command, "--after", "acct-10", *form], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + WAIT_SECONDS
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while watch.execute(waiting).fetchone() == (0,):
            assert time.monotonic() < deadline, "it never came to wait"
        process.send_signal(signal.SIGINT)
        answered, said = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    if form:
        error = json.loads(answered)["error"]
        assert (said, error["code"], error["fields"]["found"]) == ("", "interrupted", [])
        said = f"ledger: {error['message']}"
    assert said.startswith("ledger: interrupted; go on with --after acct-")
    after = said.split()[-1]
    done = subprocess.run(
        [*command, "--after", after], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "acct-50" in done.stdout
    assert busy.verify(jobs=2).ok


@pytest.mark.usefixtures("busy")
def test_jobs_whose_caller_is_killed_end_without_a_word(ledger_url: str) -> None:
    """They come to the end of what they do, find nobody to tell it to, and are gone."""
    with psycopg.connect(ledger_url) as other, psycopg.connect(ledger_url, autocommit=True) as watch:
        other.execute("LOCK ledger.balances IN ACCESS EXCLUSIVE MODE")
        command = [sys.executable, "-m", "ledger", "verify", "--jobs", "2", "--database-url", ledger_url]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + WAIT_SECONDS
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while watch.execute(waiting).fetchone() != (2,):
            assert time.monotonic() < deadline, "they never came to wait"
        process.kill()
        process.wait(WAIT_SECONDS)
        other.rollback()
        # It ends when the last of them has ended, and let go of what they share.
        assert process.communicate(timeout=WAIT_SECONDS) == ("", "")


def _verify_as_a_daemon(url: str, told: Any) -> None:
    with Ledger.connect(url) as ledger:
        try:
            ledger.verify(jobs=2)
        except InvalidCommand as error:
            told.put((str(error), ledger.verify().ok))


def test_a_daemonic_process_is_told_that_it_may_have_no_jobs(busy: Ledger, ledger_url: str) -> None:
    """Python lets it begin no process: asked for one job it does all by itself."""
    assert busy.verify().ok
    context = get_context("spawn")
    told: Any = context.Queue()
    process = context.Process(target=_verify_as_a_daemon, args=(ledger_url, told), daemon=True)
    process.start()
    problem, is_sound = told.get(timeout=WAIT_SECONDS)
    process.join(WAIT_SECONDS)
    assert problem.startswith("jobs: a daemonic process")
    assert is_sound


def test_jobs_connect_as_an_applications_engine_does(busy: Ledger, ledger_url: str) -> None:
    """Whatever made the engine's connections: other processes connect to where they go."""
    made = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(ledger_url))
    try:
        assert Ledger(made).verify(jobs=2) == busy.verify()
        assert Ledger(made).rebuild(jobs=2) == []
    finally:
        made.dispose()


@pytest.mark.parametrize("jobs", [0, -1, 65, True, 1.5, "2"])
def test_number_of_jobs_is_checked(busy: Ledger, jobs: Any) -> None:
    """From 1 to 64; anything else is refused by both."""
    for act in (busy.verify, busy.rebuild):
        with pytest.raises(InvalidCommand, match="jobs"):
            act(jobs=jobs)


def test_after_does_not_go_with_names(busy: Ledger) -> None:
    """Where to go on says nothing of accounts that are named."""
    for act in (busy.verify, busy.rebuild):
        with pytest.raises(InvalidCommand, match="after"):
            act("alice", after="acct-05")


@pytest.mark.usefixtures("small_parts")
def test_a_process_that_is_killed_is_no_sound_ledger(busy: Ledger) -> None:
    """Where one of the processes is gone, nothing is reported as sound, and nobody waits for ever."""
    from ledger import DatabaseUnavailable  # noqa: PLC0415

    def kill(_: int) -> None:
        for child in active_children():
            child.kill()

    with pytest.raises(DatabaseUnavailable, match="ended before it was done"):
        busy.verify(jobs=2, progress=kill)
    assert active_children() == []


# What is checked as text is exactly what the thorough check would find sound.


@pytest.fixture
def rows(busy: Ledger) -> dict[str, list[Any]]:
    """All events of a ledger, stream by stream, as texts."""
    found: dict[str, list[Any]] = {}
    with busy._database.connection() as connection, connection.transaction(read_only=True):  # noqa: SLF001
        scope = verification.Scope(connection, str(busy.ledger_id), ())
        with scope.texts(verification._EVENTS, "true", {}) as events:  # noqa: SLF001
            for row in events:
                found.setdefault(row[0], []).append(row)
    return found


def test_entries_are_followed_as_texts(rows: dict[str, list[Any]], busy: Ledger) -> None:
    """An account's plain entries are all taken by the quick check, and it ends where the thorough one does."""
    report = Report()
    thorough = verification._verify_stream(  # noqa: SLF001
        "alice", iter(rows["alice"]), Book(str(busy.ledger_id)), report
    )
    assert report.ok
    opened = _opened(busy, rows["alice"])
    assert [opened.follow(row) for row in rows["alice"][1:]] == [True] * (len(rows["alice"]) - 1)
    assert opened.version == thorough.version
    assert opened.debits == thorough.numbers.posted_debits


def _opened(ledger: Ledger, rows: list[Any]) -> Entries:
    """The head of a stream after its first event."""
    book = Book(str(ledger.ledger_id))
    stream = verification._verify_stream(rows[0][0], iter(rows[:1]), book, Report())  # noqa: SLF001
    with ledger._database.connection() as connection:  # noqa: SLF001
        identifier = connection.query("SELECT transaction_id::text FROM {schema}.events WHERE stream = %s", ("alice",))
    return Entries(stream, stream.head_hash, (stream.recorded_at, str(identifier[0][0])))


@pytest.mark.parametrize("place", range(1, 18))
def test_no_changed_field_is_followed(rows: dict[str, list[Any]], busy: Ledger, place: int) -> None:
    """Whatever is changed in a row, by a character, the quick check leaves it to the thorough one."""
    for changed in ("", None, f"{rows['alice'][1][place]}0", f"0{rows['alice'][1][place]}", "NaN", "٣"):
        row = list(rows["alice"][1])
        row[place] = changed
        assert not _opened(busy, rows["alice"]).follow(tuple(row)), (place, changed)


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60)
@given(
    texts=st.tuples(TEXTS, TEXTS, TEXTS, TEXTS),
    micro=st.sampled_from([0, 1, 100, 120_000, 123_456, 999_999]),
    versions=st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)),
)
def test_headers_made_of_texts_are_those_of_the_codec(
    texts: tuple[str, str, str, str], micro: int, versions: tuple[int, int]
) -> None:
    """A transaction as a server sends it is found sealed exactly as the codec sealed it."""
    from datetime import UTC, datetime  # noqa: PLC0415

    at = datetime(2026, 1, 2, 3, 4, 5, micro, tzinfo=UTC)
    key, reference, actor, scope = texts
    made = chain.sealed(
        "id", "transfer", scope, key, "{}", 2, ("a.b", "c/d"), versions, reference, at, at, actor, None, None, None
    )
    moment = at.strftime("%Y-%m-%d %H:%M:%S") + (f".{micro:06}".rstrip("0") if micro else "") + "+00"
    places = f'{{"a.b {versions[0]}","c/d {versions[1]}"}}'
    row = ("id", "transfer", scope, key, "{}", "2", places, reference, moment, moment, actor, None, None, None)
    assert sealed((*row, f"\\x{made.header_hash.hex()}"))
    assert not sealed((*row[:10], f"{actor}x", *row[11:], f"\\x{made.header_hash.hex()}"))


@pytest.mark.campaign
def test_memory_is_flat_over_a_million_events(ledger: Ledger, ledger_url: str, tmp_path: Path) -> None:
    """Verifying, rebuilding and reporting a million events takes no more memory than a tenth of them."""
    ledger.handle(
        [build(OpenAccount, account=f"a{number}", asset="USD", account_type="liability") for number in range(1_000)]
    )
    script = tmp_path / "peak.py"
    script.write_text(MEASURED, encoding="utf-8")

    def peak(transfers: int) -> int:
        for at in range(0, transfers, 5_000):
            ledger.handle(
                [
                    build(Transfer, amount="1 USD", debit=f"a{n % 1_000}", credit=f"a{(n + 1 + n // 1_000) % 1_000}")
                    for n in range(at, at + 5_000)
                    if (1 + n // 1_000) % 1_000
                ]
            )
        command = [sys.executable, str(script), ledger_url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1_800, check=True)
        return int(done.stdout)

    few, many = peak(50_000), peak(450_000)
    assert many - few < 20_000, (few, many)


MEASURED = """
import os, resource, sys
from ledger import Ledger
if __name__ == "__main__":
    with Ledger.connect(sys.argv[1]) as ledger:
        assert ledger.verify(jobs=2).ok
        assert ledger.rebuild(jobs=2) == []
        while ledger.stamp(100_000):
            pass
        with open(os.devnull, "wb") as nowhere:
            for name in ("general-journal", "sum-of-transactions", "completeness", "who-when-why", "repairs"):
                assert ledger.report(name).write(nowhere).ok
    print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""
