"""Holds, reversals, account states, closed periods and state machines from the command line."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_cli import Answer, Complaint, Program, answer, complaint, forking, funded, program

from ledger import Ledger
from ledger.lifecycle import SHIPPED

__all__ = ["answer", "complaint", "forking", "funded", "program"]

POLLS_MAX = 10_000

LAMP = """
name = "lamp"
initial = "on"
states = ["on", "off"]
final = ["off"]
transitions = [{ event = "break", from = "on", to = "off" }]
"""


@pytest.fixture
def shop(funded: Ledger) -> Ledger:
    """Alice has 1000.00 USD, and there is a shop to spend it in."""
    funded.open_account("shop", asset="USD", type="liability")
    return funded


@pytest.fixture
def lamp(tmp_path: Path) -> str:
    """A file with a machine of one's own."""
    path = tmp_path / "lamp.toml"
    path.write_text(LAMP)
    return str(path)


def held(answer: Answer, amount: str, *options: str) -> dict[str, Any]:
    """Place a hold on alice's money."""
    code, done = answer("hold", amount, "--debit", "alice", "--credit", "shop", *options)
    assert code == 0
    return dict(done)


def clock(ledger: Ledger) -> datetime:
    """What the database's clock says."""
    with ledger.engine.connect() as connection:
        now: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
    return now


def wait_until(ledger: Ledger, moment: datetime) -> None:
    """Wait until the database's clock has passed a moment."""
    for _ in range(POLLS_MAX):
        if clock(ledger) > moment:
            return
    raise AssertionError(f"{moment} did not come")


# Holds


@pytest.mark.usefixtures("shop")
def test_a_hold_is_placed_captured_and_released(program: Program, answer: Answer) -> None:
    """What is held is not available; parts are captured, and with --final the rest is free again."""
    hold = held(answer, "60 USD")
    assert (hold["kind"], hold["balances"]["alice"]["pending"]) == ("hold", "-60.00 USD")
    assert hold["balances"]["alice"]["available"] == "940.00 USD"

    _, part = answer("capture", hold["transaction_id"], "25", "USD")
    assert part["balances"]["alice"]["posted"] == "975.00 USD"
    assert answer("release", hold["transaction_id"], "5 USD")[0] == 0
    spoken = program("capture", hold["transaction_id"], "10 USD", "--final")

    assert spoken.returncode == 0
    assert re.search(r"^alice +7 +965\.00 USD +965\.00 USD$", spoken.stdout, re.MULTILINE)
    assert answer("holds", "alice")[1]["holds"] == [
        {
            "hold": hold["transaction_id"], "account": "alice", "direction": "debit", "state": "captured",
            "amount": "60.00 USD", "captured": "35.00 USD", "released": "25.00 USD", "expired": "0.00 USD",
            "left": "0.00 USD", "expires_at": None,
        }
    ]  # fmt: skip


@pytest.mark.usefixtures("shop")
def test_a_hold_is_shown_with_the_id_to_capture_it_by(program: Program, answer: Answer) -> None:
    """The answer to `hold` names the hold, and shows what is pending."""
    spoken = program("hold", "60 USD", "--debit", "alice", "--credit", "shop")

    (line,) = re.findall(r"^hold (\S+)$", spoken.stdout, re.MULTILINE)
    assert re.search(r"^alice +3 +1000\.00 USD +-60\.00 USD +940\.00 USD$", spoken.stdout, re.MULTILINE)
    assert answer("holds", "alice")[1]["holds"][0]["hold"] == line


@pytest.mark.usefixtures("shop")
def test_holds_are_listed_by_status_and_in_pages(program: Program, answer: Answer) -> None:
    """On 80 columns and in order of their ids; --after leads on."""
    first, second = sorted(held(answer, f"{amount} USD")["transaction_id"] for amount in (1, 2))
    assert answer("release", second)[0] == 0

    page = program("holds", "alice", "--limit", "1")
    opened = answer("holds", "alice", "--status", "open")[1]["holds"]
    later = answer("holds", "alice", "--after", first)[1]["holds"]

    assert max(len(line) for line in page.stdout.splitlines()) <= 80
    assert page.stdout.endswith(f"more: --after {first}\n")
    assert [each["hold"] for each in opened] == [first]
    assert [(each["hold"], each["state"]) for each in later] == [(second, "released")]
    assert program("holds", "world").stdout == "no holds\n"
    assert program("holds", "alice", "--status", "expired").stdout == "no holds that are expired\n"


def test_due_holds_are_expired(program: Program, answer: Answer, shop: Ledger) -> None:
    """The sweeper says how many it found; run again it finds none."""
    due = clock(shop) + timedelta(seconds=1)
    late = shop.hold("2 USD", debit="alice", credit="shop", expires_at=due)
    held(answer, "1 USD", "--expires-at", "2100-01-01T00:00:00Z")
    wait_until(shop, due)

    assert program("expire-holds").stdout == "expired 1 hold\n"
    assert answer("expire-holds") == (0, {"expired": 0})
    assert answer("holds", "alice", "--status", "expired")[1]["holds"][0]["hold"] == str(late.transaction_id)
    assert answer("holds", "alice", "--status", "open")[1]["holds"][0]["expires_at"] == "2100-01-01T00:00:00.000000Z"


def test_an_expiry_may_be_given_as_a_duration(answer: Answer, shop: Ledger) -> None:
    """It counts from now, by the database's clock."""
    before = clock(shop)
    held(answer, "1 USD", "--expires-in", "2h")
    (line,) = shop.holds("alice")

    assert line.expires_at is not None
    assert timedelta(0) <= line.expires_at - before - timedelta(hours=2) < timedelta(minutes=1)


# Reversals


@pytest.mark.usefixtures("funded")
def test_a_reversal_and_its_original_name_each_other(program: Program, answer: Answer) -> None:
    """In parts and whole; `transaction` shows both ways, and why."""
    _, paid = answer("withdraw", "alice", "80 USD", "--against", "world")
    original = paid["transaction_id"]

    code, part = answer("reverse", original, "30", "USD", "--reason", "returned")
    assert (code, part["kind"], part["balances"]["alice"]["posted"]) == (0, "reverse", "950.00 USD")
    _, rest = answer("reverse", original)
    assert rest["balances"]["alice"]["posted"] == "1000.00 USD"

    _, of_original = answer("transaction", original)
    _, of_part = answer("transaction", part["transaction_id"])
    assert (of_original["reverses"], of_original["reversed_by"]) == (
        None, [part["transaction_id"], rest["transaction_id"]]
    )  # fmt: skip
    assert (of_part["reverses"], of_part["reversed_by"]) == (original, [])
    shown = program("transaction", part["transaction_id"]).stdout
    assert re.search(rf"^  reverses +{original}$", shown, re.MULTILINE)
    assert re.search(r"^  reason +returned$", shown, re.MULTILINE)
    assert re.search(
        rf"^  reversed by +{part['transaction_id']}, ", program("transaction", original).stdout, re.MULTILINE
    )


@pytest.mark.usefixtures("funded")
def test_a_reversal_beyond_a_limit_is_forced(answer: Answer) -> None:
    """Without --force the rules of the account hold; with it the reversal goes through, and says so."""
    _, funding = answer("transaction", "alice#2")
    original = funding["transaction"]["transaction_id"]
    assert answer("withdraw", "alice", "1 USD", "--against", "world")[0] == 0

    code, refused = answer("reverse", original)
    _, forced = answer("reverse", original, "--force")

    assert (code, refused["error"]["code"]) == (1, "insufficient_funds")
    assert forced["balances"]["alice"]["posted"] == "-1.00 USD"
    assert answer("transaction", forced["transaction_id"])[1]["transaction"]["request"]["force"] is True


# Account states


@pytest.mark.usefixtures("funded")
def test_an_account_is_frozen_and_thawed(program: Program, answer: Answer, complaint: Complaint) -> None:
    """A frozen account takes no entries; its state stands in lists and in its history."""
    spoken = program("freeze", "alice", "--reason", "suspicion")
    assert "alice is frozen\n" in spoken.stdout
    assert complaint("deposit", "alice", "1 USD", "--against", "world") == (
        1, "ledger: Account alice is frozen, not open.\n"
    )  # fmt: skip
    assert re.search(r"^alice +liability +frozen ", program("accounts").stdout, re.MULTILINE)
    assert program("history", "alice").stdout.splitlines()[0].endswith(", frozen")

    code, thawed = answer("unfreeze", "alice")
    assert (code, thawed["states"]) == (0, {"alice": "open"})
    assert answer("deposit", "alice", "1 USD", "--against", "world")[0] == 0
    assert answer("history", "alice")[1]["state"] == "open"


@pytest.mark.usefixtures("funded")
def test_an_account_is_closed_at_zero_only(answer: Answer) -> None:
    """Then it takes nothing any more and still answers."""
    code, refused = answer("close-account", "alice")
    assert (code, refused["error"]["code"]) == (1, "account_not_empty")
    assert answer("withdraw", "alice", "1000 USD", "--against", "world")[0] == 0

    assert answer("close-account", "alice", "--reason", "moved away")[1]["states"] == {"alice": "closed"}
    assert answer("deposit", "alice", "1 USD", "--against", "world")[1]["error"]["code"] == "account_not_open"
    assert answer("balance", "alice")[0] == 0


def test_limits_and_metadata_are_changed_apart(answer: Answer, funded: Ledger) -> None:
    """A limit may be written without the asset; what is not named stays as it is."""
    assert answer("change-account", "alice", "--min-balance=-50", "--max-balance", "5000 USD")[0] == 0
    terms = funded.account("alice").terms
    assert (terms.min_balance, terms.max_balance) == (-5000, 500_000)
    assert json.loads(terms.metadata) == {"tier": "gold", "age": 5}

    assert answer("change-account", "alice", "--min-balance", "unlimited", "--metadata", "tier=none")[0] == 0
    terms = funded.account("alice").terms
    assert (terms.min_balance, terms.max_balance) == (None, 500_000)
    assert json.loads(terms.metadata) == {"tier": "none"}


@pytest.mark.usefixtures("shop")
def test_history_says_what_happened(program: Program, answer: Answer) -> None:
    """Every kind of event has its word, on as many columns as the terminal has."""
    hold = held(answer, "60 USD")["transaction_id"]
    for command in (
        ("capture", hold, "10 USD"), ("release", hold), ("freeze", "alice"), ("unfreeze", "alice"),
        ("change-account", "alice", "--max-balance", "9000"),
    ):  # fmt: skip
        assert answer(*command)[0] == 0

    shown = program("history", "alice").stdout
    words = re.findall(r"^ +\d+ +\S+ \S+ +([a-z]+)? ", shown, re.MULTILINE)

    assert words == ["opened", "", "held", "captured", "released", "frozen", "open", "changed"]
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "hold             " + hold in program("transaction", "alice#4").stdout


# Closed periods


def test_a_period_is_closed(program: Program, answer: Answer, funded: Ledger) -> None:
    """The trial balance as of then is shown, and nothing effective before is posted any more."""
    old = datetime(2025, 6, 1, tzinfo=UTC)
    funded.deposit("alice", "7 USD", against="world", effective_at=old)

    dry = program("close-period", "2026-01-01T00:00:00Z", "--dry-run")
    code, closed = answer("close-period", "2026-01-01T00:00:00Z", "--reason", "year end")

    assert dry.stdout.startswith("dry run: ")
    assert re.search(r"^USD +liability +0\.00 USD +7\.00 USD$", dry.stdout, re.MULTILINE)
    assert (code, closed["versions"]) == (0, {"$ledger": 2})
    assert {"asset": "USD", "type": "equity", "debits": "7.00 USD", "credits": "0.00 USD"} in closed["trial_balance"]
    code, refused = answer("deposit", "alice", "1 USD", "--against", "world", "--effective-at", "2025-12-31T00:00:00Z")
    assert (code, refused["error"]["code"]) == (1, "period_closed")
    assert answer("close-period", "2025-12-01T00:00:00Z")[0] == 1


# State machines


@pytest.mark.usefixtures("funded")
def test_something_of_ones_own_goes_its_way(program: Program, answer: Answer, complaint: Complaint) -> None:
    """It is begun, advanced and asked about; what may not follow is refused, and says what may."""
    assert answer("begin", "payment", "p-1", "--key", "b1")[1]["states"] == {"#payment/p-1": "created"}
    code, line = complaint("advance", "payment", "p-1", "refund")
    assert (code, line) == (
        1, "ledger: payment p-1 is created: refund is refused; allowed: authorise, fail, void.\n"
    )  # fmt: skip

    spoken = program("advance", "payment", "p-1", "authorise")
    assert spoken.stdout.splitlines()[-1] == "payment/p-1 is authorised"
    assert answer("state", "payment", "p-1") == (0, {
        "machine": "payment", "subject": "p-1", "state": "authorised", "version": 2,
        "allowed": ["capture", "fail", "void"],
    })  # fmt: skip
    assert program("state", "payment", "p-1").stdout == (
        "payment p-1 is authorised at version 2\nallowed: capture, fail, void\n"
    )
    assert answer("begin", "payment", "p-1", "--key", "b1")[1]["replayed"] is True


@pytest.mark.usefixtures("funded")
def test_a_machine_of_ones_own_is_given_as_a_file(program: Program, answer: Answer, lamp: str) -> None:
    """Wherever a machine is needed, JSON lines included; without the file it is not known."""
    advancing = json.dumps({"type": "advance", "machine": "lamp", "subject": "l-1", "event": "break"})

    assert answer("begin", "lamp", "l-1")[1]["error"]["code"] == "unknown_machine"
    assert answer("begin", "lamp", "l-1", "--machines", lamp)[0] == 0
    lines = program("post", "-", "--machines", lamp, stdin=advancing)

    assert json.loads(lines.stdout)["states"] == {"#lamp/l-1": "off"}
    assert answer("state", "lamp", "l-1", "--machines", lamp)[1]["allowed"] == []
    assert program("state", "lamp", "l-1", "--machines", lamp).stdout.endswith("allowed: nothing\n")


@pytest.mark.usefixtures("funded")
def test_history_of_a_stream_is_shown(program: Program, answer: Answer) -> None:
    """The steps of a machine's stream, and what is behind one of them, as for an account."""
    answer("begin", "payment", "p-1", "--actor", "till")
    answer("advance", "payment", "p-1", "authorise")
    _, history = answer("history", "#payment/p-1")
    spoken = program("history", "#payment/p-1").stdout
    ours = program("history", "$ledger").stdout

    assert history["stream"] == "#payment/p-1"
    assert [step["payload"]["event"] for step in history["events"]] == ["begin", "authorise"]
    assert re.search(r"^ +2 +[-0-9]+ [:0-9]+ +authorised\b", spoken, re.MULTILINE)
    assert "`ledger transaction '#payment/p-1#2'` shows what is behind version 2" in spoken
    assert re.search(r"^ +actor +till$", program("transaction", "#payment/p-1#1").stdout, re.MULTILINE)
    assert re.search(r"^ +1 +[-0-9]+ [:0-9]+ +asset defined\b", ours, re.MULTILINE)


def test_machines_are_listed_shown_and_drawn(program: Program, answer: Answer) -> None:
    """Those that come along, and the two that the ledger itself goes by; no database is needed."""
    _, everything = answer("machines")
    _, trip = answer("machines", "trip")
    drawn = program("machines", "account", "--diagram", url="postgresql://127.0.0.1:1/none").stdout

    assert [machine["name"] for machine in everything["shipped"]] == list(SHIPPED)
    assert [machine["name"] for machine in everything["own"]] == ["account", "hold"]
    assert (trip["initial"], trip["diagram"].splitlines()[0]) == ("requested", "stateDiagram-v2")
    assert "    open --> frozen: freeze\n" in drawn
    assert re.search(r"^accepted +start +started *$", program("machines", "trip").stdout, re.MULTILINE)
    assert max(len(line) for line in program("machines").stdout.splitlines()) <= 80


def test_a_file_is_checked(program: Program, complaint: Complaint, tmp_path: Path, lamp: str) -> None:
    """A machine that works is shown; of one that cannot, all problems are said."""
    broken = tmp_path / "broken.toml"
    broken.write_text(LAMP.replace('final = ["off"]', "final = []").replace('to = "off"', 'to = "of"'))

    code, line = complaint("machines", str(broken))

    assert program("machines", lamp).returncode == 0
    assert code == 1
    assert line.startswith(f"ledger: {broken}: State machine lamp is not valid: event 'break' leads to unknown state")
    assert "state 'off' is a dead end" in line


# Errors


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("hold", "1 USD", "--debit", "alice", "--credit", "alice"), 2, "both sides are alice"),
        (("hold", "5000 USD", "--debit", "alice", "--credit", "shop"), 1, "alice has 1000.00 USD available"),
        (("capture", "no-uuid"), 2, "hold: 'no-uuid' is not the id of a transaction"),
        (("change-account", "alice", "--max-balance", "7USD"), 2, "ledger: max_balance: Amount '7USD USD'"),
        (("history", "#payment/p-9"), 1, "payment p-9 was never begun"),
        (("rebuild", "#payment/p-9"), 1, "payment p-9 was never begun"),
        (("capture", "6aa403c7-99d3-55e8-8c67-9bc193fd35b7"), 1, "There is no hold 6aa403c7"),
        (("release", "6aa403c7-99d3-55e8-8c67-9bc193fd35b7", "x"), 2, "amount: Amount 'x' is not valid"),
        (("holds", "bob"), 1, "Account bob does not exist"),
        (("holds", "alice", "--status", "lost"), 2, "a hold is open, captured, released, expired"),
        (("reverse", "6aa403c7-99d3-55e8-8c67-9bc193fd35b7"), 1, "There is no transaction 6aa403c7"),
        (("unfreeze", "alice"), 1, "alice is open: unfreeze is refused"),
        (("change-account", "alice"), 2, "nothing changes"),
        (("change-account", "bob", "--min-balance", "0"), 1, "Account bob does not exist"),
        (("change-account", "alice", "--min-balance", "much"), 2, "min_balance"),
        (("close-period", "yesterday"), 2, "until: 'yesterday' is not a time with its zone"),
        (("close-period", "2999-01-01T00:00:00Z"), 1, "can be closed from 2999-01-01T00:10:00"),
        (("begin", "unicorn", "u-1"), 1, "State machine unicorn is not known here"),
        (("advance", "payment", "p-9", "capture"), 1, "payment p-9 was never begun"),
        (("state", "payment", "p-9"), 1, "payment p-9 was never begun"),
        (("begin", "payment", "p-9", "--machines", "/dev/null/none.toml"), 2, "/dev/null/none.toml: Not a directory"),
        (("machines", "unicorn"), 2, "'unicorn' is neither one of cart, inventory, order"),
        (("machines", "unicorn.toml"), 2, "unicorn.toml: No such file or directory"),
        (("machines", "--diagram"), 2, "--diagram draws one machine; name it"),
    ],
)
@pytest.mark.usefixtures("shop")
def test_what_is_refused_is_one_line(complaint: Complaint, arguments: tuple[str, ...], code: int, said: str) -> None:
    """1 where a rule says no, 2 where it could not even be asked."""
    exit_code, line = complaint(*arguments)

    assert (exit_code, said in line) == (code, True), line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--expires-in", "soon"), "'soon' is not a duration such as 90s, 15m, 2h or 7d"),
        (("--expires-in", "999999999d"), "no calendar reaches that far"),
        (("--expires-in", "1h", "--expires-at", "2100-01-01T00:00:00Z"), "give one of them"),
        (("--expires-in", "1h", "--key", "k"), "with a key, give --expires-at"),
        (("--expires-at", "tomorrow"), "is not a time with its zone"),
    ],
)
def test_an_expiry_that_is_none(complaint: Complaint, shop: Ledger, options: tuple[str, ...], said: str) -> None:
    """One line, and no hold; a duration is another time at each run, which a key would not forgive."""
    code, line = complaint("hold", "1 USD", "--debit", "alice", "--credit", "shop", *options)

    assert (code, said in line) == (2, True), line
    assert shop.holds("alice") == []
