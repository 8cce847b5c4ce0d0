"""What the database itself refuses of API keys, and of the record of what auditors read."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, Final

import psycopg
import pytest

from ledger import InvalidCommand, Ledger, LedgerError
from ledger.access import Scope
from ledger.core.canonical import utc_text
from ledger.storage.api_keys import ApiKey

Psql = psycopg.Connection[Any]


CHANGES: Final = {
    "scopes": "UPDATE api_keys SET scopes = '{admin}'",
    "scopes while it is revoked": "UPDATE api_keys SET scopes = '{admin}', revoked_at = now(), revoked_by = 'x'",
    "hash": "UPDATE api_keys SET secret_hash = sha256('x'), revoked_at = now(), revoked_by = 'x'",
    "actor": "UPDATE api_keys SET actor = 'root', revoked_at = now(), revoked_by = 'x'",
    "request": "UPDATE api_keys SET idempotency_key = 'x', revoked_at = now(), revoked_by = 'x'",
    "longer": "UPDATE api_keys SET expires_at = NULL",
}
REMOVALS: Final = {"delete": "DELETE FROM api_keys", "truncate": "TRUNCATE api_keys"}


@pytest.fixture
def key(ledger: Ledger) -> str:
    """The id of a key of `app`."""
    return ledger.api_keys().create("app", [Scope.APPEND], created_by="test").key.key_id


@pytest.mark.parametrize("attack", CHANGES.values(), ids=CHANGES)
@pytest.mark.usefixtures("key")
def test_key_is_never_changed(psql: Psql, attack: str) -> None:
    """It can be revoked, and nothing else of it can be said anew, even by the owner."""
    with pytest.raises(psycopg.Error) as refused:
        psql.execute(attack.encode())

    assert refused.value.sqlstate == "LD030"


def test_revoked_key_stays_revoked(ledger: Ledger, psql: Psql, key: str) -> None:
    """Nobody makes it good again; to revoke it twice changes nothing, not even who did."""
    ledger.api_keys().revoke(key, actor="ann")
    with pytest.raises(psycopg.Error) as refused:
        psql.execute("UPDATE api_keys SET revoked_at = NULL, revoked_by = NULL")

    assert refused.value.sqlstate == "LD030"
    assert ledger.api_keys().revoke(key, actor="bob").revoked_by == "ann"


def actions(ledger: Ledger) -> list[tuple[str, str, str, dict[str, Any]]]:
    """What the report of privileged actions says of keys: what, who, which key, and the rest."""
    ledger.number_trail()
    return [
        (str(row["action"]), str(row["actor"]), str(row["subject"]), json.loads(str(row["details"])))
        for row in ledger.report("privileged-actions")
        if str(row["action"]).endswith("_key")
    ]


def test_making_and_revoking_a_key_is_on_record(ledger: Ledger) -> None:
    """Who did it, to which key, and what it is good for; once, and never the secret."""
    keys = ledger.api_keys()
    made = keys.create("app", [Scope.READ, Scope.APPEND], created_by="ann", expires_in=None)
    short = keys.create("app", [Scope.READ], created_by="ann", expires_in=timedelta(microseconds=1)).key
    third = keys.create("app", [Scope.READ], created_by="bob").key
    for actor in ("eve", "ann"):
        keys.revoke(made.key.key_id, actor=actor)

    found = actions(ledger)

    assert sorted(found, key=lambda each: each[:3]) == sorted(
        [
            ("create_key", "ann", made.key.key_id, {"actor": "app", "scopes": ["append", "read"], "expires_at": None}),
            ("create_key", "ann", short.key_id, expiring(short)),
            ("retire_key", "bob", short.key_id, {"actor": "app"}),
            ("create_key", "bob", third.key_id, expiring(third)),
            ("revoke_key", "eve", made.key.key_id, {"actor": "app"}),
        ],
        key=lambda each: each[:3],
    )
    assert made.secret.split("_", 2)[2] not in str(found)


def expiring(key: ApiKey) -> dict[str, Any]:
    """What is on record of a key for reading that is not for ever."""
    assert key.expires_at is not None
    return {"actor": key.actor, "scopes": ["read"], "expires_at": utc_text(key.expires_at)}


def test_no_key_is_made_or_revoked_off_the_record(ledger: Ledger, psql: Psql, key: str) -> None:
    """Where it cannot be recorded it is not done; what is refused is not recorded either."""
    keys = ledger.api_keys()
    keys.create("app", [Scope.READ], created_by="ann")
    with pytest.raises(InvalidCommand, match="two keys"):
        keys.create("app", [Scope.READ], created_by="ann")
    assert [action for action, *_ in actions(ledger)] == ["create_key"] * 2

    psql.execute("ALTER TABLE privileged_actions RENAME TO hidden")
    with pytest.raises(LedgerError):
        keys.create("other", [Scope.READ], created_by="ann")
    with pytest.raises(LedgerError):
        keys.revoke(key, actor="ann")

    assert [(each.actor, each.active) for each in keys.page()] == [("app", True)] * 2


@pytest.mark.parametrize("attack", REMOVALS.values(), ids=REMOVALS)
@pytest.mark.usefixtures("key")
def test_key_is_never_removed(psql: Psql, attack: str) -> None:
    """Who could do what stays known."""
    with pytest.raises(psycopg.Error) as refused:
        psql.execute(attack.encode())

    assert refused.value.sqlstate == "LD001"


@pytest.mark.parametrize(
    ("values", "constraint"),
    [
        ("'two', 'app', 1, '{append}', sha256('x'), now(), 'psql'", "api_keys_two_at_once"),
        ("'two', 'app', 3, '{append}', sha256('x'), now(), 'psql'", "api_keys_slot"),
        ("'two', 'app', 2, '{}', sha256('x'), now(), 'psql'", "api_keys_some_scope"),
        ("'two', 'app', 2, '{append}', 'secret', now(), 'psql'", "api_keys_hash_size"),
        ("'two', 'app', 2, '{append}', sha256('x'), now(), 'psql', NULL, now()", "api_keys_revoked"),
    ],
)
@pytest.mark.usefixtures("key")
def test_key_by_hand_keeps_the_rules(psql: Psql, values: str, constraint: str) -> None:
    """Two at once of an actor at most, of some scope, by a hash, and revoked by somebody."""
    with pytest.raises(psycopg.errors.IntegrityError) as refused:
        psql.execute(f"INSERT INTO api_keys VALUES ({values})".encode())

    assert refused.value.diag.constraint_name == constraint
