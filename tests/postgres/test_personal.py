"""Personal data: a key per subject, made once; forgotten with it, while the log stays as it is."""

from __future__ import annotations

import hmac
import json
import sys
from base64 import urlsafe_b64decode
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from string import ascii_letters, digits
from threading import Barrier
from typing import Any, Final
from uuid import UUID

import psycopg
import psycopg.errors
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import example, given
from hypothesis import strategies as st

from ledger import (
    Forgotten,
    IdempotencyConflict,
    InvalidCommand,
    Ledger,
    PersonalData,
    ProofFailed,
    Shredded,
    SubjectForgotten,
    SubjectKey,
    UnknownSubject,
)
from ledger.audit.checkpoint import Checkpoint, SigningKey, sign
from ledger.audit.inclusion import InclusionProof
from ledger.core.chain import leaf_hash
from ledger.core.codec import event_record
from ledger.core.merkle import Frontier, root_at
from ledger.personal import FIELDS_MAX, TEXT_BYTES_MAX, Field, State, TableKeys, fields_in, key_id_of, shortened
from ledger.storage.database import Connection, Database

Psql = psycopg.Connection[Any]

ERIKA: Final = "Erika Mustermann"
WAIT_SECONDS: Final = 60
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200)


class KeysInMemory:
    """Keys as an application could hold them on its own key management."""

    def __init__(self) -> None:
        self.keys: dict[UUID, SubjectKey] = {}

    def create(self, subjects: Sequence[str]) -> Mapping[str, SubjectKey]:
        """One key each, always the same."""
        for number, subject in enumerate(subjects, 1):
            key = SubjectKey(subject, UUID(int=number), number.to_bytes(32, "big"))
            self.keys.setdefault(key.key_id, key)
        return {key.subject: key for key in self.keys.values()}

    def get(self, key_ids: Collection[UUID]) -> Mapping[UUID, SubjectKey]:
        """As they are."""
        return {key_id: self.keys[key_id] for key_id in key_ids if key_id in self.keys}

    def destroyed(self, key_ids: Collection[UUID]) -> Collection[UUID]:
        """Those without a key."""
        return [key_id for key_id in key_ids if key_id in self.keys and self.keys[key_id].key is None]

    def destroy(self, subject: str, actor: str, reason: str) -> Forgotten:
        """Nobody asks for it here."""
        raise NotImplementedError

    def renew(self, subject: str) -> None:
        """Nobody asks for it here."""
        raise NotImplementedError


@pytest.fixture
def data(ledger: Ledger) -> PersonalData:
    """Personal data with keys in the table."""
    return ledger.personal_data()


# The field itself


def in_memory(*subjects: str) -> PersonalData:
    """Personal data of these subjects, whose keys are there."""
    keys = KeysInMemory()
    keys.create(subjects)
    return PersonalData(keys)


@given(TEXTS, TEXTS)
@example("", "0")
def test_fields_round_trip(text: str, other: str) -> None:
    """What was encrypted is revealed, the same text gives the same field, and another text or subject another."""
    data = in_memory("s", "t")
    field, again, differing, elsewhere = data.encrypt_all([("s", text), ("s", text), ("s", other), ("t", text)])

    assert data.reveal(field) == text
    assert field == again
    assert (field == differing) == (text == other)
    assert field != elsewhere
    assert field.isascii()
    assert field.isprintable()


@given(TEXTS, st.data())
def test_changed_fields_are_refused(text: str, drawn: st.DataObject) -> None:
    """One character of a field changed, or one left out or added, is no field, or does not hold."""
    data = in_memory("s")
    field = data.encrypt("s", text)
    place = drawn.draw(st.integers(0, len(field) - 1))
    character = drawn.draw(st.sampled_from("abcXYZ0189-_.= "))
    changed = drawn.draw(
        st.sampled_from(
            [
                field[:place] + character + field[place + 1 :],
                field[:place] + character + field[place:],
                field[:place] + field[place + 1 :],
            ]
        )
    )

    if changed != field:
        with pytest.raises((ProofFailed, InvalidCommand)):
            data.reveal(changed)
        assert data.revealed([changed]) in ({}, {changed: Field(State.UNREADABLE)})


@pytest.mark.parametrize("text", ["", "x", "xy"])
def test_a_field_is_written_in_one_way(text: str) -> None:
    """No other last character of key or body stands for the same bytes: who changes one has another text."""
    data = in_memory("s")
    field = data.encrypt("s", text)
    for place in (field.rindex(".") - 1, len(field) - 1):
        for character in set(ascii_letters + digits + "-_") - {field[place]}:
            with pytest.raises((ProofFailed, InvalidCommand)):
                data.reveal(field[:place] + character + field[place + 1 :])


def test_fields_belong_to_their_subject() -> None:
    """A body cannot be put behind another subject's key, nor a key be given to another subject."""
    data = in_memory("s", "t")
    one, two = data.encrypt_all([("s", "x"), ("t", "x")])
    with pytest.raises(ProofFailed, match="not what was encrypted"):
        data.reveal(two[: two.rindex(".")] + one[one.rindex(".") :])

    keys = KeysInMemory()
    keys.create(["s"])
    keys.keys = {key_id: SubjectKey("t", key_id, key.key) for key_id, key in keys.keys.items()}
    with pytest.raises(ProofFailed, match="not what was encrypted"):
        PersonalData(keys).reveal(one)


def test_a_field_is_for_ever() -> None:
    """The bytes of a field never change: what was encrypted once is revealed by every later release."""
    field = "personal.v1.AAAAAAAAAAAAAAAAAAAAAQ.z5BDlulP2aCLS2ELFkZkiUNs9_Up-8L1X-bDpwiJKx-JOfAEjFD7jto7EWk"

    assert in_memory("customer-17").encrypt("customer-17", ERIKA) == field
    assert in_memory("customer-17").reveal(field) == ERIKA

    # By hand, as the module says that it is made.
    key = (1).to_bytes(32, "big")
    encrypt, nonce = (
        HKDFExpand(hashes.SHA256(), 32, b"ledger personal v1 " + purpose).derive(key)
        for purpose in (b"encrypt", b"nonce")
    )
    body = urlsafe_b64decode(field.rpartition(".")[2] + "=" * (-len(field.rpartition(".")[2]) % 4))
    bound = field[: field.rindex(".") + 1].encode() + b"customer-17"
    assert body[:12] == hmac.digest(nonce, ERIKA.encode(), "sha256")[:12]
    assert AESGCM(encrypt).decrypt(body[:12], body[12:], bound) == ERIKA.encode()


def test_only_whole_values_are_fields() -> None:
    """What is not written as `encrypt` writes it is no personal field, wherever it stands."""
    field = in_memory("s").encrypt("s", "x")
    plain = {"a": [field, f"see {field}", 7, None], "b": {"c": field}, field: "x"}

    assert list(fields_in(plain)) == [(("a", "0"), field), (("b", "c"), field)]
    for other in ("", "personal.v1..", field + "=", field + "\n", field[:-1] + "!", field.replace("v1", "v2"), "é"):
        assert key_id_of(other) is None
        with pytest.raises(InvalidCommand, match="no personal field"):
            in_memory("s").reveal(other)


@pytest.mark.parametrize(
    ("subject", "text", "problem"),
    [
        ("", "x", "subject"),
        ("s" * 256, "x", "subject"),
        ("\0", "x", "subject"),
        (7, "x", "subject"),
        ("s", "\0", "text"),
        ("s", "\ud800", "text"),
        ("s", 7, "text"),
        ("s", "é" * (TEXT_BYTES_MAX // 2) + "x", "12,001 bytes"),
    ],
)
def test_what_cannot_be_encrypted_is_refused(subject: Any, text: Any, problem: str) -> None:
    """A subject or a text that could not be stored is refused, in words that say what is wrong."""
    with pytest.raises(InvalidCommand, match=problem):
        in_memory("s").encrypt(subject, text)


def test_calls_are_bounded() -> None:
    """No call works on more than 10,000 fields."""
    data = in_memory("s")
    with pytest.raises(InvalidCommand, match="10,001"):
        data.encrypt_all([("s", "x")] * (FIELDS_MAX + 1))
    with pytest.raises(InvalidCommand, match="10,001"):
        data.reveal_all([data.encrypt("s", "x")] * (FIELDS_MAX + 1))
    assert data.encrypt_all([]) == data.reveal_all([]) == []


def test_the_extra_is_named(data: PersonalData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cryptography a caller is told what to install; forgetting needs none."""
    data.encrypt("s", "x")
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(InvalidCommand, match=r"pip install 'ledger\[proof\]'"):
        data.encrypt("s", "x")
    assert not data.forget("s", actor="dpo", reason="asked").before


def test_keys_are_not_shown() -> None:
    """A key that lands in a log line does so without its bytes."""
    key = SubjectKey("s", UUID(int=1), b"k" * 32)
    assert "kkk" not in repr(key)


# In the ledger


def test_the_largest_text_fits_into_metadata(funded: Ledger, data: PersonalData) -> None:
    """The longest text that is encrypted can be given to a command, and a name even as a reference."""
    longest = "x" * TEXT_BYTES_MAX
    field, name = data.encrypt_all([("s", longest), ("s", "N" * 130)])
    done = funded.transfer("1 USD", debit="alice", credit="bob", metadata={"note": field}, reference=name)

    kept = funded.transaction(done.transaction_id).transaction
    assert data.reveal_all([json.loads(kept.metadata or "")["note"], kept.reference or ""]) == [longest, "N" * 130]


def test_a_command_with_a_personal_field_is_replayed(funded: Ledger, data: PersonalData) -> None:
    """Encrypted again and sent again, a command is the same request; with another text it is another."""
    asked: dict[str, Any] = {"debit": "alice", "credit": "bob", "idempotency_key": "k"}
    first = funded.transfer("1 USD", **asked, metadata={"name": data.encrypt("s", ERIKA)})
    again = funded.transfer("1 USD", **asked, metadata={"name": funded.personal_data().encrypt("s", ERIKA)})

    assert (again.replayed, again.transaction_id) == (True, first.transaction_id)
    with pytest.raises(IdempotencyConflict):
        funded.transfer("1 USD", **asked, metadata={"name": data.encrypt("s", "Max Mustermann")})


def test_forgotten_is_shredded_everywhere_and_the_log_is_sound(funded: Ledger, data: PersonalData, psql: Psql) -> None:
    """When a key is destroyed no field of its subject can be read; others can, and nothing of the log has changed."""
    gone, kept = data.encrypt_all([("customer-17", ERIKA), ("customer-18", "Max")])
    done = funded.transfer("1 USD", debit="alice", credit="bob", metadata={"from": gone, "to": kept})
    before = psql.execute("SELECT stream, version, event_hash FROM events ORDER BY 1, 2").fetchall()
    elsewhere = Ledger(funded.engine).personal_data()
    assert elsewhere.reveal(gone) == ERIKA

    forgotten = data.forget("customer-17", actor="dpo", reason="asked on Monday")

    assert (forgotten.subject, forgotten.actor, forgotten.before) == ("customer-17", "dpo", False)
    assert elsewhere.reveal_all([gone, kept]) == [Shredded("customer-17"), "Max"]
    assert str(elsewhere.reveal(gone)) == "shredded"
    assert data.states([gone, kept, "x"]) == {gone: Field(State.SHREDDED), kept: Field(State.ENCRYPTED)}
    assert data.revealed([gone, kept]) == {gone: Field(State.SHREDDED), kept: Field(State.REVEALED, "Max")}
    assert psql.execute("SELECT stream, version, event_hash FROM events ORDER BY 1, 2").fetchall() == before
    assert json.loads(funded.transaction(done.transaction_id).transaction.metadata or "")["from"] == gone
    assert funded.verify().ok
    row = psql.execute("SELECT key, forgotten_by, reason FROM subject_keys WHERE subject = 'customer-17'").fetchall()
    assert row == [(None, "dpo", "asked on Monday")]
    for clear in (ERIKA, "customer-17"):
        assert psql.execute(
            "SELECT count(*) FROM transactions AS t WHERE t::text LIKE %s", (f"%{clear}%",)
        ).fetchone() == (0,)


def test_proofs_made_before_hold_after(funded: Ledger, data: PersonalData) -> None:
    """What was proved with the personal field in it is proved by the log as it is after its key was destroyed."""
    funded.open_account("erika", asset="USD", type="liability", metadata={"name": data.encrypt("customer-17", ERIKA)})
    funded.stamp()

    def logged() -> list[bytes]:
        entries = funded.feed()
        return [event_record(each.transaction.header_hash.hex(), *each.event[:-1]) for each in entries]

    records = logged()
    leaves = list(map(leaf_hash, records))

    def subtree(level: int, index: int) -> bytes:
        part = Frontier()
        part.extend(leaves[index << level : (index + 1) << level])
        return part.root()

    key = SigningKey.generate("example.org/ledger")
    note = sign(Checkpoint(key.name, len(leaves), root_at(len(leaves), subtree)), key)
    proof = InclusionProof.make(len(records) - 1, note, subtree, records[-1]).to_bytes()

    data.forget("customer-17", actor="dpo", reason="asked")

    assert logged() == records
    assert InclusionProof.parse(proof).verify([key.verifier], record=logged()[-1]).size == len(records)
    assert funded.verify().ok


def test_the_report_counts_who_was_forgotten(funded: Ledger, data: PersonalData) -> None:
    """A verification says how many subjects are shredded; of some accounts alone it says nothing of it."""
    data.encrypt_all([("s", "x"), ("t", "x"), ("u", "x")])
    for subject in ("s", "s", "t"):
        data.forget(subject, actor="dpo", reason="asked")
    data.renew("s")
    data.forget("s", actor="dpo", reason="asked")

    assert (funded.verify().ok, funded.verify().shredded, funded.verify("alice").shredded) == (True, 2, 0)


def test_forgotten_stays_forgotten(data: PersonalData) -> None:
    """A retry makes no key again, asking twice says when it was, and a new beginning is asked for by name."""
    field = data.encrypt("s", "x")
    first = data.forget("s", actor="dpo", reason="asked")

    with pytest.raises(SubjectForgotten, match="renew"):
        data.encrypt("s", "x")
    assert data.forget("s", actor="another", reason="again") == first._replace(before=True)
    data.renew("s")
    data.renew("s")
    later = data.encrypt("s", "x")
    assert key_id_of(later) != key_id_of(field)
    assert data.reveal_all([field, later]) == [Shredded("s"), "x"]
    assert not data.forget("s", actor="dpo", reason="asked anew").before
    assert data.reveal_all([field, later]) == [Shredded("s"), Shredded("s")]


def test_unknown_subjects_are_named(data: PersonalData, psql: Psql) -> None:
    """Who never had a key is neither forgotten nor renewed, and leaves no row; a misspelt name is not "done"."""
    data.encrypt("s", "x")
    with pytest.raises(UnknownSubject, match="'S'"):
        data.forget("S", actor="dpo", reason="asked")
    with pytest.raises(UnknownSubject, match="'S'"):
        data.renew("S")
    assert psql.execute("SELECT subject FROM subject_keys").fetchall() == [("s",)]
    for actor, reason in (("", "asked"), ("dpo", "")):
        with pytest.raises(InvalidCommand):
            data.forget("s", actor=actor, reason=reason)


def test_foreign_fields_are_unreadable(data: PersonalData) -> None:
    """What another ledger encrypted, or somebody made up, does not hold, and is not in the way of the others."""
    foreign = in_memory("s").encrypt("s", "x")
    mine = data.encrypt("s", "y")

    with pytest.raises(ProofFailed, match="never was such a key") as failed:
        data.reveal(foreign)
    assert shortened(foreign) in str(failed.value)
    assert data.revealed([foreign, mine]) == {foreign: Field(State.UNREADABLE), mine: Field(State.REVEALED, "y")}


def test_callers_at_once_get_one_key(ledger: Ledger, psql: Psql) -> None:
    """Sixteen first uses of the same subjects, in different orders, make one key each, and the same fields."""
    names = [f"s{number}" for number in range(20)]
    barrier = Barrier(16, timeout=WAIT_SECONDS)

    def use(number: int) -> list[str]:
        turned = names[number:] + names[:number]
        barrier.wait()
        return sorted(ledger.personal_data().encrypt_all([(name, "x") for name in turned]))

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(use, range(16), timeout=WAIT_SECONDS))

    assert made == [made[0]] * 16
    assert psql.execute("SELECT count(*), count(DISTINCT subject) FROM subject_keys").fetchone() == (20, 20)


def test_who_comes_second_waits_and_takes_the_key_of_the_first(data: PersonalData, ledger_url: str) -> None:
    """A key that another transaction is making is waited for: whoever comes second makes none."""
    with psycopg.connect(ledger_url) as first, ThreadPoolExecutor(1) as pool:
        first.execute("INSERT INTO ledger.subject_keys VALUES ('s', 1, %s, %s, now())", (UUID(int=9), b"k" * 32))
        second = pool.submit(data.encrypt, "s", "x")
        with psycopg.connect(ledger_url, autocommit=True) as watcher:
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            while watcher.execute(waiting.encode()).fetchone() == (0,):
                assert not second.done()
        first.commit()
        assert key_id_of(second.result(WAIT_SECONDS)) == UUID(int=9)


def test_a_thousand_subjects_take_one_query(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand fields of a thousand subjects ask for their keys once, to encrypt them and to reveal them."""
    data = PersonalData(TableKeys(Database(ledger.engine, ledger.schema)))
    texts = [(f"s{number}", f"text {number}") for number in range(1_000)]
    fields = data.encrypt_all(texts)
    asked: list[str] = []
    query = Connection.query

    def counted(connection: Connection, sql: str, parameters: Any = ()) -> Any:
        asked.append(sql)
        return query(connection, sql, parameters)

    monkeypatch.setattr(Connection, "query", counted)
    assert data.encrypt_all(texts) == fields
    assert len(asked) == 1
    assert data.reveal_all(fields) == [text for _, text in texts]
    assert len(asked) == 2


# What the database refuses

KEY: Final = "decode(repeat('ab', 32), 'hex')"
INSERTED: Final = f"INSERT INTO subject_keys VALUES ('gone', {{}}, gen_random_uuid(), {KEY}, now())"
ATTACKS: Final = {
    "by upsert": INSERTED.format(1) + " ON CONFLICT (subject, generation) DO UPDATE SET key = excluded.key,"
    " forgotten_at = NULL, forgotten_by = NULL, reason = NULL",
    "by update": f"UPDATE subject_keys SET key = {KEY}, forgotten_at = NULL,"
    " forgotten_by = NULL, reason = NULL WHERE subject = 'gone'",
    "rewritten record": "UPDATE subject_keys SET reason = 'another' WHERE subject = 'gone'",
    "another key": f"UPDATE subject_keys SET key = {KEY} WHERE subject = 'here'",
    "another subject": "UPDATE subject_keys SET subject = 'there', key = NULL, forgotten_at = now(),"
    " forgotten_by = 'x', reason = 'x' WHERE subject = 'here'",
    "a second key": INSERTED.format(2).replace("'gone'", "'here'"),
    "one left out": INSERTED.format(3),
    "never a key": "INSERT INTO subject_keys VALUES ('new', 1, gen_random_uuid(), NULL, now(), now(), 'x', 'x')",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_destroyed_key_cannot_come_back(data: PersonalData, psql: Psql, attack: str) -> None:
    """The database itself refuses to restore a key, to change one, and to rewrite the record of its end."""
    data.encrypt_all([("gone", "x"), ("here", "x")])
    data.forget("gone", actor="dpo", reason="asked")
    before = psql.execute("SELECT * FROM subject_keys ORDER BY subject").fetchall()

    with pytest.raises(psycopg.Error) as refused:
        psql.execute(attack.encode())

    assert refused.value.sqlstate == "LD020"
    assert psql.execute("SELECT * FROM subject_keys ORDER BY subject").fetchall() == before


@pytest.mark.parametrize("mode", ["origin", "replica"])
def test_an_upsert_of_a_restore_brings_no_key_back(data: PersonalData, psql: Psql, mode: str) -> None:
    """Rows of a backup come in any order into an empty table, and not over the record of a destroyed key."""
    data.encrypt("gone", "x")
    data.forget("gone", actor="dpo", reason="asked")
    psql.execute(f"SET session_replication_role = {mode}".encode())
    with pytest.raises(psycopg.Error) as refused:
        psql.execute(ATTACKS["by upsert"].encode())
    assert refused.value.sqlstate == "LD020"
    row = "INSERT INTO subject_keys VALUES ('other', 2, gen_random_uuid(), NULL, now(), now(), 'x', 'x')"
    if mode == "replica":
        assert psql.execute(row.encode()).rowcount == 1


@pytest.mark.parametrize("attack", ["DELETE FROM subject_keys", "TRUNCATE subject_keys"])
def test_the_record_of_keys_stays(data: PersonalData, psql: Psql, attack: str) -> None:
    """Rows of keys are not removed, the owner's own included."""
    data.encrypt("s", "x")
    psql.execute("SET session_replication_role = replica")
    with pytest.raises(psycopg.Error) as refused:
        psql.execute(attack.encode())
    assert refused.value.sqlstate == "LD001"


def test_a_key_has_its_size(psql: Psql) -> None:
    """What is no key of AES-256 is not kept as one."""
    with pytest.raises(psycopg.errors.CheckViolation):
        psql.execute("INSERT INTO subject_keys VALUES ('s', 1, gen_random_uuid(), 'short', now())")
