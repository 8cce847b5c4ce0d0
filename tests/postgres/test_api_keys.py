"""What the database itself refuses of API keys, and of the record of what auditors read."""

from __future__ import annotations

from typing import Any, Final

import psycopg
import pytest

from ledger import Ledger
from ledger.access import Scope

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
