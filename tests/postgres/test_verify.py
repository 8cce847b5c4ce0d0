"""Verification: a sound ledger is found sound, and every way to tamper with one is found, and named."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from typing import Any

import psycopg
import pytest

from ledger import Capture, Done, Finding, Hold, Ledger, OpenAccount, Transfer, UnknownAccount
from ledger.audit import verify as verification
from ledger.audit.checkpoint import SigningKey
from ledger.core.chain import leaf_hash
from ledger.core.codec import event_record
from ledger.core.commands import build

Psql = psycopg.Connection[Any]
Tamper = Callable[..., None]

RENT = "transaction_id = (SELECT transaction_id FROM transactions WHERE idempotency_key = 'rent')"
ALICE_3 = "WHERE stream = 'alice' AND version = 3"

# What is done to a ledger in which alice's event 3 and bob's event 2 are the transaction under the key "rent"
# → where verification must say that it is: stream, version, and the column or columns one would look at.
TAMPERING: dict[str, tuple[list[str], str, int, set[str]]] = {
    # Events, column by column.
    "stream": (["UPDATE events SET stream = 'mallory' " + ALICE_3], "alice", 3, {"version"}),
    "version": (["UPDATE events SET version = 4 " + ALICE_3], "alice", 4, {"version"}),
    "transaction_id": (
        ["UPDATE events SET transaction_id = gen_random_uuid() " + ALICE_3],
        "alice",
        3,
        {"transaction_id"},
    ),
    "transaction_id of another": (
        [
            "UPDATE events SET transaction_id = (SELECT transaction_id FROM transactions"
            " WHERE idempotency_key = 'salary') " + ALICE_3
        ],
        "alice",
        3,
        {"event_hash"},
    ),
    "type": (["UPDATE events SET type = 'gift' " + ALICE_3], "alice", 3, {"payload", "type"}),
    "payload": (["""UPDATE events SET payload = '{"entry":1}' """ + ALICE_3], "alice", 3, {"event_hash"}),
    "payload by a space": (["""UPDATE events SET payload = '{"entry": 0}' """ + ALICE_3], "alice", 3, {"event_hash"}),
    "payload unreadable": (["UPDATE events SET payload = '[]' " + ALICE_3], "alice", 3, {"payload"}),
    "schema": (["UPDATE events SET schema = 2 " + ALICE_3], "alice", 3, {"payload", "schema"}),
    "asset": (["UPDATE events SET asset = 'EUR' " + ALICE_3], "alice", 3, {"event_hash", "asset"}),
    "direction": (["UPDATE events SET direction = 'credit' " + ALICE_3], "alice", 3, {"posted_debits", "direction"}),
    "amount": (["UPDATE events SET amount = 2999 " + ALICE_3], "alice", 3, {"posted_debits", "amount"}),
    "amount not a number": (
        ["UPDATE events SET amount = 'NaN' " + ALICE_3],
        "alice",
        3,
        {"amount", "posted_debits", "row"},
    ),
    "amount and numbers": (
        ["UPDATE events SET amount = 2999, posted_debits = 2999 " + ALICE_3],
        "alice",
        3,
        {"event_hash"},
    ),
    "posted_debits": (["UPDATE events SET posted_debits = 1 " + ALICE_3], "alice", 3, {"posted_debits"}),
    "posted_credits": (["UPDATE events SET posted_credits = 1 " + ALICE_3], "alice", 3, {"posted_credits"}),
    "pending_debits": (["UPDATE events SET pending_debits = 1 " + ALICE_3], "alice", 3, {"pending_debits"}),
    "pending_credits": (["UPDATE events SET pending_credits = 1 " + ALICE_3], "alice", 3, {"pending_credits"}),
    "numbers not a number": (
        ["UPDATE events SET posted_debits = 'NaN' " + ALICE_3],
        "alice",
        3,
        {"posted_debits", "row"},
    ),
    "numbers removed": (
        [
            "UPDATE events SET posted_debits = NULL, posted_credits = NULL, pending_debits = NULL,"
            " pending_credits = NULL " + ALICE_3
        ],
        "alice",
        3,
        {"posted_debits"},
    ),
    "effective_at": (
        ["UPDATE events SET effective_at = effective_at - interval '1 us' " + ALICE_3],
        "alice",
        3,
        {"event_hash"},
    ),
    "recorded_at": (
        ["UPDATE events SET recorded_at = recorded_at + interval '1 us' " + ALICE_3],
        "alice",
        3,
        {"event_hash"},
    ),
    "recorded_at turned back": (
        ["UPDATE events SET recorded_at = '2000-01-01' " + ALICE_3],
        "alice",
        3,
        {"recorded_at"},
    ),
    "recorded_at endless": (
        ["UPDATE events SET recorded_at = 'infinity' " + ALICE_3],
        "alice",
        3,
        {"recorded_at", "row"},
    ),
    "prev_hash": (["UPDATE events SET prev_hash = sha256('') " + ALICE_3], "alice", 3, {"event_hash", "prev_hash"}),
    "event_hash": (["UPDATE events SET event_hash = sha256('') " + ALICE_3], "alice", 3, {"event_hash"}),
    "first event": (
        [
            (
                """UPDATE events SET payload = replace(payload::text, '"0"', 'null')::json"""
                " WHERE stream = 'alice' AND version = 1"
            )
        ],
        "alice",
        1,
        {"event_hash"},
    ),
    "asset's scale": (
        ["""UPDATE events SET payload = '{"asset":"USD","scale":3}' WHERE stream = '$ledger'"""],
        "$ledger",
        1,
        {"event_hash"},
    ),
    # Events, as rows.
    "two events exchanged": (
        [
            "UPDATE events SET version = 1000 WHERE stream = 'alice' AND version = 2",
            "UPDATE events SET version = 2 WHERE stream = 'alice' AND version = 3",
            "UPDATE events SET version = 3 WHERE stream = 'alice' AND version = 1000",
        ],
        "alice",
        2,
        {"posted_debits", "posted_credits"},
    ),
    "tail cut off": (["DELETE FROM events " + ALICE_3], "alice", 3, {"version"}),
    "event cut out": (["DELETE FROM events WHERE stream = 'alice' AND version = 2"], "alice", 3, {"version"}),
    "first event removed": (["DELETE FROM events WHERE stream = 'alice' AND version = 1"], "alice", 2, {"version"}),
    "account removed": (
        [
            "DELETE FROM events WHERE stream = 'alice'",
            "DELETE FROM balances WHERE stream = 'alice'",
            "DELETE FROM accounts WHERE account = 'alice'",
        ],
        "alice",
        3,
        {"version"},
    ),
    "event doubled": (
        [
            "INSERT INTO events SELECT stream, 4, transaction_id, type, payload, schema, asset, direction, amount,"
            " posted_debits + amount, posted_credits, 0, 0, effective_at, recorded_at, event_hash, event_hash"
            " FROM events " + ALICE_3
        ],
        "alice",
        4,
        {"event_hash"},
    ),
    "balanced pair added": (
        [
            "INSERT INTO events SELECT stream, version + 1, transaction_id, type, payload, schema, asset, 'debit', 1,"
            " posted_debits + 1, posted_credits, 0, 0, effective_at, recorded_at, event_hash, sha256('')"
            " FROM events " + ALICE_3,
            (
                "INSERT INTO events SELECT stream, version + 1, transaction_id, type, payload, schema, asset, 'credit',"
                " 1, posted_debits, posted_credits + 1, 0, 0, effective_at, recorded_at, event_hash, sha256('')"
                " FROM events WHERE stream = 'bob' AND version = 2"
            ),
        ],
        "alice",
        4,
        {"event_hash"},
    ),
    # Transactions.
    "transaction and its events removed": (
        [f"DELETE FROM events WHERE {RENT}", f"DELETE FROM transactions WHERE {RENT}"],
        "alice",
        2,
        {"version"},
    ),
    "transaction removed": ([f"DELETE FROM transactions WHERE {RENT}"], "alice", 3, {"transaction_id"}),
    "transaction without its events": ([f"DELETE FROM events WHERE {RENT}"], "alice", 3, {"version"}),
    "transaction invented": (
        [
            (
                "INSERT INTO transactions SELECT gen_random_uuid(), kind, scope, 'mine', request, entry_count,"
                " announced, reference, effective_at, recorded_at, actor, correlation_id, causation_id, metadata,"
                " header_hash"
                " FROM transactions WHERE idempotency_key = 'rent'"
            )
        ],
        "alice",
        3,
        {"version", "header_hash"},
    ),
}
# Transactions, column by column: their header hash covers them all.
TAMPERING |= {
    f"transaction's {column}": (
        [f"UPDATE transactions SET {column} = {value} WHERE idempotency_key = 'rent'"],
        "alice",
        3,
        {"header_hash", "event_hash", "version", "entry_count"},
    )
    for column, value in {
        "kind": "'post'",
        "scope": "'other'",
        "idempotency_key": "'other'",
        "idempotency_key ": "NULL",
        "request": "replace(request::text, '30.00', '31.00')::json",
        "request ": "(request::text || ' ')::json",
        "entry_count": "1",
        "announced": "ARRAY[announced[1], 'bob 3']",
        "reference": "'other'",
        "reference ": "''",
        "effective_at": "effective_at + interval '1 us'",
        "effective_at ": "'-infinity'",
        "recorded_at": "recorded_at - interval '1 us'",
        "actor": "'somebody'",
        "correlation_id": "'x'",
        "causation_id": "'x'",
        "metadata": """'{"month":"June"}'""",
        "metadata ": "NULL",
        "header_hash": "sha256('')",
    }.items()
}


@pytest.fixture
def watched(funded: Ledger) -> Ledger:
    """A ledger that went on after the transaction which is tampered with nowhere else than at its end."""
    funded.open_account("mallory", asset="USD", type="liability")
    return funded


def test_sound_ledger(funded: Ledger) -> None:
    """A report counts what was checked: an empty list of findings about nothing would say nothing."""
    report = funded.verify()
    assert report.ok
    assert report.findings == []
    assert report.checked == {"transactions": 5, "streams": 4, "events": 8, "projections": 4, "assets": 1, "feed": 0}


def test_empty_ledger(ledger: Ledger) -> None:
    """A new ledger is sound."""
    report = ledger.verify()
    assert report.ok
    assert set(report.checked.values()) == {0}


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_is_found(watched: Ledger, tamper: Tamper, kind: str) -> None:
    """Whatever a superuser changes with all guards off is found; the finding says where."""
    statements, stream, version, columns = TAMPERING[kind]
    tamper(*statements)
    report = watched.verify()
    assert not report.ok
    at_place = {finding.column for finding in report.findings if (finding.stream, finding.version) == (stream, version)}
    assert at_place & columns, [str(finding) for finding in report.findings]
    assert report.findings_total == len(report.findings)


@pytest.mark.parametrize("kind", ["amount", "tail cut off", "transaction's actor", "transaction removed"])
def test_verification_of_one_account_finds_what_is_its_own(watched: Ledger, tamper: Tamper, kind: str) -> None:
    """An account is verified with its transactions; what was done to another is not its matter."""
    statements, *_ = TAMPERING[kind]
    tamper(*statements)
    assert not watched.verify("alice").ok
    assert watched.verify("mallory").ok
    assert watched.verify("mallory").checked == {
        "transactions": 1,
        "streams": 1,
        "events": 1,
        "projections": 1,
        "assets": 0,
        "feed": 0,
    }


def test_counterparty_shows_a_transaction_cut_short(watched: Ledger, tamper: Tamper) -> None:
    """The tail of alice's log is gone without a trace in her own rows: bob's half of the transaction tells."""
    tamper(
        "DELETE FROM events WHERE stream = 'alice' AND version = 3",
        "UPDATE balances b SET version = 2, posted_debits = 0, head_hash = e.event_hash, recorded_at = e.recorded_at"
        " FROM events e WHERE e.stream = 'alice' AND e.version = 2 AND b.stream = 'alice'",
    )
    watched.rebuild("alice")
    assert any((f.stream, f.version) == ("alice", 3) for f in watched.verify("bob").findings)
    assert any((f.stream, f.version) == ("alice", 3) for f in watched.verify().findings)


def test_unknown_account_cannot_be_verified(funded: Ledger) -> None:
    """A name that nobody has heard of is not sound but unknown."""
    with pytest.raises(UnknownAccount, match="nobody"):
        funded.verify("nobody")


def test_forged_projection_with_its_checksum(funded: Ledger, psql: Psql) -> None:
    """A row whose checksum was made to match is still not what the log makes."""
    other = funded.transfer("5 USD", debit="alice", credit="bob")
    psql.execute("CREATE TEMPORARY TABLE old AS SELECT * FROM balances WHERE stream = 'alice'")
    funded.transfer("5 USD", debit="alice", credit="bob")
    psql.execute(
        "UPDATE balances b SET version = o.version, posted_debits = o.posted_debits, head_hash = o.head_hash,"
        " recorded_at = o.recorded_at, checksum = o.checksum FROM old o WHERE b.stream = o.stream"
    )
    (finding,) = funded.verify().findings
    assert (finding.kind, finding.stream, finding.column) == ("projection", "alice", "version")
    assert funded.balance("alice").version == other.versions["alice"]


def test_every_kind_of_finding_reads_as_a_line(watched: Ledger, tamper: Tamper) -> None:
    """A finding prints as one line that names stream, version and column."""
    tamper("UPDATE events SET amount = 2999 " + ALICE_3)
    (finding, *_) = watched.verify().findings
    assert isinstance(finding, Finding)
    assert str(finding).startswith("alice version 3, posted_debits: ")
    assert "\n" not in str(finding)


def test_findings_are_bounded(funded: Ledger, tamper: Tamper) -> None:
    """A thousand findings are kept; all are counted."""
    funded.handle([build(Transfer, amount="0.01 USD", debit="alice", credit="bob") for _ in range(1_200)])
    tamper("UPDATE transactions SET actor = 'mallory'")
    report = funded.verify()
    assert len(report.findings) == 1_000
    assert report.findings_total == 1_205
    assert not report.ok


def test_verification_changes_nothing(funded: Ledger, psql: Psql, tamper: Tamper) -> None:
    """It reads in a read-only snapshot: not one row version differs afterwards, whatever was found."""
    tamper("UPDATE events SET amount = 2999 " + ALICE_3, "UPDATE balances SET posted_debits = 5 WHERE stream = 'bob'")
    tables = ("transactions", "events", "accounts", "balances", "holds", "outbox", "projection_repairs")

    def state() -> list[Any]:
        return [
            psql.execute(f"SELECT xmin, ctid, t::text FROM {t} AS t ORDER BY ctid".encode()).fetchall() for t in tables
        ]

    before = state()
    assert not funded.verify().ok
    assert state() == before


def test_progress_is_told(ledger: Ledger) -> None:
    """The number of events checked is told as it grows."""
    ledger.handle(
        [build(OpenAccount, account=f"account-{number}", asset="USD", account_type="asset") for number in range(1_200)]
    )
    seen: list[int] = []
    assert ledger.verify(progress=seen.append).ok
    assert seen
    assert seen == sorted(seen)


def test_memory_is_flat(funded: Ledger) -> None:
    """Ten times the log takes no more memory to verify: rows are streamed."""
    command = build(Transfer, amount="0.01 USD", debit="world", credit="bob")

    def peak(transactions: int) -> int:
        for _ in range(transactions // 1_000):
            funded.handle([command] * 1_000)
        tracemalloc.start()
        try:
            assert funded.verify().ok
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(1_000), peak(9_000)
    # 18,000 more rows, kept, would be 20 MB at least; caches of a fixed size account for a few.
    assert many - few < 6_000_000


@pytest.mark.campaign
def test_memory_does_not_grow_with_the_holds_that_are_over(funded: Ledger) -> None:
    """An account is verified in the memory of its open holds, however many it has had."""
    placing = build(Hold, amount="0.01 USD", debit="world", credit="bob")

    def peak(holds: int) -> int:
        for _ in range(holds // 1_000):
            placed = [outcome for outcome in funded.handle([placing] * 1_000) if isinstance(outcome, Done)]
            funded.handle([build(Capture, hold=str(outcome.transaction_id)) for outcome in placed])
        tracemalloc.start()
        try:
            assert funded.verify("bob").ok
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # The first ones fill the caches, whose size is fixed; 4,000 more legs, kept, would be 3 MB.
    few, many = peak(6_000), peak(4_000)
    assert many - few < 2_000_000


@pytest.mark.parametrize("announced", ["{garbage}", '{"alice x"}', '{"alice ²"}', '{" 1"}', '{"alice -1"}'])
def test_unreadable_announcement_is_a_finding(watched: Ledger, psql: Psql, announced: str) -> None:
    """A transaction row that no program of ours wrote is reported like anything else; the rest is checked."""
    psql.execute(
        "INSERT INTO transactions (transaction_id, kind, scope, request, entry_count, announced, effective_at,"
        " recorded_at, header_hash) VALUES (gen_random_uuid(), 'post', '', '{}', 0, %s, now(), now(), sha256(''))",
        (announced,),
    )
    report = watched.verify()
    assert {finding.column for finding in report.findings} >= {"header_hash", "version"}
    assert report.checked["streams"] == watched.verify().checked["streams"]


@pytest.mark.parametrize("announced", ["{NULL}", '{{"alice 1","bob 2"}}'])
def test_announcement_of_another_shape_is_refused(watched: Ledger, psql: Psql, announced: str) -> None:
    """What could not even be read as a list of places does not get in."""
    with pytest.raises(psycopg.errors.CheckViolation):
        psql.execute(
            "INSERT INTO transactions (transaction_id, kind, scope, request, entry_count, announced, effective_at,"
            " recorded_at, header_hash) VALUES (gen_random_uuid(), 'post', '', '{}', 0, %s, now(), now(), sha256(''))",
            (announced,),
        )
    assert watched.verify().ok


FROZEN = """{"reason":null,"state":"frozen"}"""


def _forge(ledger: Ledger, tamper: Tamper, account: str, version: int, kind: str, payload: str) -> None:
    """Rewrite an event of an account, and every hash after it: only what it says can tell."""
    *_, before = ledger.history(account, after_version=version - 2, limit=1)
    prev_hash, statements = before.event_hash, []
    for found in ledger.history(account, after_version=version - 1):
        header_hash = ledger.transaction(found.transaction_id).transaction.header_hash
        event = found._replace(prev_hash=prev_hash)
        if event.version == version:
            event = event._replace(type=kind, payload=payload)
        prev_hash = leaf_hash(event_record(header_hash.hex(), *event[:-1]))
        statements.append(
            f"UPDATE events SET type = '{event.type}', payload = '{event.payload}', prev_hash = '\\x{event[-2].hex()}',"
            f" event_hash = '\\x{prev_hash.hex()}' WHERE stream = '{account}' AND version = {event.version}"
        )
    tamper(*statements)
    ledger.rebuild()


WHILE_FROZEN: dict[str, tuple[bool, Callable[[Ledger, Done, Done], Done]]] = {
    "withdraw": (False, lambda ledger, *_: ledger.withdraw("alice", "1 USD", against="world")),
    "hold": (False, lambda ledger, *_: ledger.hold("1 USD", debit="alice", credit="bob")),
    "capture": (False, lambda ledger, placed, _: ledger.capture(placed, "1 USD")),
    "release": (True, lambda ledger, placed, _: ledger.release(placed, "1 USD")),
    "reverse": (True, lambda ledger, _, paid: ledger.reverse(paid, "1 USD")),
    "change_account": (True, lambda ledger, *_: ledger.change_account("alice", max_balance="unlimited")),
    "unfreeze": (True, lambda ledger, *_: _frozen(ledger).unfreeze("alice")),
}
"""What is done to an account, and whether it may be done while it is frozen."""


def _frozen(ledger: Ledger) -> Ledger:
    ledger.freeze("alice")
    return ledger


@pytest.mark.parametrize("kind", WHILE_FROZEN)
def test_each_event_is_judged_by_the_state_of_its_account_then(funded: Ledger, tamper: Tamper, kind: str) -> None:
    """What an account's state did not allow at that version is found, though it is open now and every hash fits."""
    is_allowed, act = WHILE_FROZEN[kind]
    placed = funded.hold("5 USD", debit="alice", credit="bob")
    paid = funded.transfer("5 USD", debit="alice", credit="bob")
    if kind == "unfreeze":
        done = act(funded, placed, paid)
        changed = done.versions["alice"] - 1
    else:
        changed = funded.change_account("alice", min_balance="-5 USD").versions["alice"]
        done = act(funded, placed, paid)
    assert funded.verify().ok
    _forge(funded, tamper, "alice", changed, "account_state_changed", FROZEN)
    findings = [(each.stream, each.version, each.column) for each in funded.verify().findings]
    assert findings[:1] == ([] if is_allowed else [("alice", done.versions["alice"], "type")])


def test_state_does_not_follow_itself(funded: Ledger, tamper: Tamper) -> None:
    """An account that is frozen twice was not frozen by the ledger."""
    funded.freeze("alice")
    again = funded.unfreeze("alice").versions["alice"]
    _forge(funded, tamper, "alice", again, "account_state_changed", FROZEN)
    finding = funded.verify().findings[0]
    assert (finding.version, finding.problem) == (again, "the account was frozen, and that allows no unfreeze")


def test_payload_of_half_a_character_is_a_finding(funded: Ledger, tamper: Tamper) -> None:
    """JSON can say what is no text: an account that is opened with it is found, and the others are checked."""
    tamper(
        """UPDATE events SET payload = replace(payload::text, '{}', '{"a":"\\ud800"}')::json"""
        " WHERE stream = 'alice' AND version = 1",
        "UPDATE events SET amount = 1 WHERE stream = 'bob' AND version = 2",
    )
    found = {(finding.stream, finding.version) for finding in funded.verify().findings if finding.kind == "log"}
    assert found == {("alice", 1), ("bob", 2)}


@pytest.mark.parametrize(
    ("name", "said"), [("hold", "nobody"), ("hold", "\\ud800"), ("expires_at", "soon"), ("expires_at", "2026-01-01")]
)
def test_hold_that_says_what_it_cannot(funded: Ledger, psql: Psql, tamper: Tamper, name: str, said: str) -> None:
    """What a payload says of a hold may be no id and no time: the event is found, and the other holds are compared."""
    until = funded.history("bob")[-1].recorded_at + timedelta(days=1)
    holds = [
        funded.hold("1 USD", debit="alice", credit="bob", expires_at=until, idempotency_key=key) for key in ("a", "b")
    ]
    (version, _) = (funded.balance("alice").version, funded.capture(str(holds[0].transaction_id)))
    place = f"stream = 'alice' AND version = {version - 1 if name == 'expires_at' else version + 1}"
    tamper(
        f'UPDATE events SET payload = regexp_replace(payload::text, \'"{name}":"[^"]*"\','
        f' \'"{name}":"{said.replace(chr(92), chr(92) * 2)}"\')::json WHERE {place}'
    )
    psql.execute("UPDATE holds SET amount = amount + 1 WHERE hold_id = %s", (str(holds[1].transaction_id),))
    found = {(finding.stream, finding.version) for finding in funded.verify().findings}
    assert ("alice", version - 1 if name == "expires_at" else version + 1) in found
    assert any(str(holds[1].transaction_id) in finding.problem for finding in funded.verify().findings)


@pytest.mark.parametrize("expires_at", ["'infinity'", "expires_at - interval '4051 years'", "NULL"])
def test_hold_that_expires_at_another_time(funded: Ledger, psql: Psql, expires_at: str) -> None:
    """Also where that is never, or long before our era."""
    until = funded.history("bob")[-1].recorded_at + timedelta(days=1)
    hold = funded.hold("1 USD", debit="alice", credit="bob", expires_at=until)
    assert funded.verify().ok
    psql.execute(f"UPDATE holds SET expires_at = {expires_at}".encode())
    assert str(hold.transaction_id) in str(funded.verify("alice").findings)


def test_doubled_rows_of_an_account(funded: Ledger, psql: Psql) -> None:
    """A hold that is there twice, and so is alike: found with the account that is its own, and with no other."""
    funded.hold("1 USD", debit="alice", credit="bob")
    psql.execute("CREATE TABLE second () INHERITS (holds)")
    psql.execute("INSERT INTO second SELECT * FROM ONLY holds WHERE account = 'alice'")
    for report in (funded.verify(), funded.verify("alice"), funded.verify(jobs=2)):
        assert [(finding.kind, finding.stream, finding.column) for finding in report.findings] == [
            ("doubled", "alice", "holds")
        ]
    assert funded.verify("world").ok


KEPT_BESIDE = (
    "(SELECT indexrelid FROM pg_index WHERE indrelid ="
    " (SELECT reltoastrelid FROM pg_class WHERE oid = '{table}'::regclass))"
)


def damage(psql: Psql, table: str, by: str) -> None:
    """Let the index of what is kept beside a table be another's, in which nothing is."""
    psql.execute("SET allow_system_table_mods = on")
    psql.execute(
        "UPDATE pg_class SET relfilenode = (SELECT relfilenode FROM pg_class WHERE oid = "
        + KEPT_BESIDE.format(table=by)
        + ") WHERE oid = "
        + KEPT_BESIDE.format(table=table)
    )


def test_damaged_page_is_a_finding(funded: Ledger, psql: Psql) -> None:
    """What the server itself cannot read is found, by `verify` and against a checkpoint; the rest is checked."""
    key = SigningKey.generate("example.org/ledger")
    # It does not compress, and so is kept beside its row, in pages of its own.
    text = "".join(sha256(str(number).encode()).hexdigest() for number in range(60))
    funded.transfer("1 USD", debit="world", credit="alice", metadata={"text": text[:2_000], "more": text[2_000:3_800]})
    funded.stamp()
    sealed = funded.seal(key)
    assert sealed is not None
    damage(psql, "transactions", by="events")
    psql.execute("UPDATE balances SET posted_debits = posted_debits + 1 WHERE stream = 'bob'")
    report = funded.verify()
    assert {(finding.kind, finding.stream) for finding in report.findings} == {
        ("log", "$ledger"),
        ("projection", "bob"),
    }
    assert "missing chunk" in str(report.findings)
    assert "missing chunk" in str(funded.verify_against(sealed.note, [key.verifier]).findings)


def test_damaged_event_hides_nothing(
    funded: Ledger, psql: Psql, tamper: Tamper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found before it stays, its account is not taken for none, and nothing is made of sums cut short."""
    monkeypatch.setattr(verification, "_FETCH_ROWS", 1)
    text = "".join(sha256(str(number).encode()).hexdigest() for number in range(60))
    funded.open_account(
        "zed", asset="USD", type="liability", metadata={"text": text[:2_000], "more": text[2_000:3_800]}
    )
    tamper("UPDATE events SET prev_hash = sha256('') WHERE stream = 'bob' AND version = 2")
    damage(psql, "events", by="transactions")
    whole, one = funded.verify(), funded.verify("zed")
    assert {(finding.kind, finding.stream) for finding in whole.findings} == {("log", "$ledger"), ("log", "bob")}
    assert {(finding.kind, finding.stream) for finding in one.findings} == {("log", "$ledger")}
    assert all("missing chunk" in str(report.findings) for report in (whole, one))


def test_clock_that_was_ahead_and_set_right_is_no_finding(funded: Ledger, psql: Psql) -> None:
    """As a server leaves it, and what is stamped after it; by a day it was somebody."""
    psql.execute("ALTER TABLE feed_clock DISABLE TRIGGER check_clock")
    psql.execute("UPDATE feed_clock SET known_until = now() + interval '20 minutes'")
    funded.transfer("1 USD", debit="world", credit="alice")
    funded.stamp()
    assert funded.verify().findings == []
    psql.execute("UPDATE feed_clock SET known_until = now() + interval '1 day'")
    assert [finding.column for finding in funded.verify().findings] == ["known_until"]
