"""Who may do what: scopes, credentials, and the API keys that stand for them, of which only hashes are kept."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from hashlib import sha256
from typing import Final, NamedTuple

from ledger.core.errors import InvalidCommand, KeyMadeAlready, Unauthenticated
from ledger.core.fields import MOMENT, TEXT, checked
from ledger.storage import api_keys, migrations, queries
from ledger.storage.api_keys import AccountRead, ApiKey
from ledger.storage.database import Database

PREFIX: Final = "lk"
"""What every key begins with, so that a scanner for secrets knows one where it should not be."""

ACTOR_CHARACTERS_MAX: Final = 200
EXPIRES_DAYS: Final = 365
EXPIRES_DAYS_MAX: Final = 3_650

_KEY: Final = re.compile(rf"{PREFIX}_([0-9a-z]{{16}})_([0-9A-Za-z_-]{{43}})")
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


class Scope(StrEnum):
    """What a credential is good for; none includes another."""

    APPEND = "append"
    """Commands, and messages for the inbox."""

    READ = "read"
    """Balances, history, transactions, holds, the feed."""

    AUDIT = "audit"
    """All that `read` is good for, verification and proofs; every account that is read is put on record."""

    EXPORT = "export"
    """Everything in one file: bundles and exports."""

    ADMIN = "admin"
    """Keys, decisions about dead letters, rebuilding, where consumers go on."""


@dataclass(frozen=True, slots=True)
class Credential:
    """Who asks: the `actor` of what is appended; `owner` keeps the idempotency keys of one apart from others'."""

    actor: str
    scopes: frozenset[Scope]
    owner: str

    @property
    def is_auditor(self) -> bool:
        """Whether what is read is put on record."""
        return Scope.AUDIT in self.scopes


class NewKey(NamedTuple):
    """A key as it was made; `secret` is shown this once."""

    key: ApiKey
    secret: str


class ApiKeys:
    """The API keys of a ledger; made by `Ledger.api_keys`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        actor: str,
        scopes: Iterable[Scope | str],
        *,
        created_by: str,
        expires_in: timedelta | None = timedelta(days=EXPIRES_DAYS),
        idempotency_key: str | None = None,
    ) -> NewKey:
        """
        Make a key for an actor, good for a year unless it is said; None is for ever.

        An actor has two at most that were not revoked: the one that is in use, and the next.  With the same
        `idempotency_key` of the same `created_by` one is made once.

        Raises:
            KeyMadeAlready: It was; its secret is known to nobody any more.
            InvalidCommand: There are two already; there is no such scope; or the time is not from 0 to ten years.
        """
        named = _actor(actor)
        asked = scopes_of(scopes)
        owner = checked(TEXT, "created_by", created_by)
        if expires_in is not None and not timedelta(0) < expires_in <= timedelta(days=EXPIRES_DAYS_MAX):
            raise InvalidCommand("expires", f"a key is good for up to {EXPIRES_DAYS_MAX} days")
        key_id = "".join(secrets.choice(_ALPHABET) for _ in range(16))
        secret = secrets.token_urlsafe(32)
        seconds = None if expires_in is None else expires_in.total_seconds()
        texts, digest = sorted(asked), sha256(secret.encode()).digest()
        with self._database.connection() as connection, connection.transaction():
            key = api_keys.create(connection, key_id, named, texts, digest, owner, seconds, idempotency_key)
            if key is None:
                if idempotency_key and (before := api_keys.made_before(connection, owner, idempotency_key)):
                    raise KeyMadeAlready(before)
                raise InvalidCommand("actor", f"{named!r} has two keys already: revoke one of them first")
        return NewKey(key, f"{PREFIX}_{key_id}_{secret}")

    def page(self, *, after: str = "", limit: int = 100) -> list[ApiKey]:
        """All keys, those that were revoked too, in order of their ids: a page of at most `limit`."""
        checked(TEXT, "after", after)
        if type(limit) is not int or not 1 <= limit <= queries.PAGE_MAX:
            raise InvalidCommand("limit", f"a page has 1 to {queries.PAGE_MAX} rows, not {limit!r}")
        return self._database.ask(partial(api_keys.keys, after=after, limit=limit))

    def revoke(self, key_id: str, *, actor: str) -> ApiKey:
        """
        Revoke a key, on record; who has it is refused within seconds.

        Raises:
            InvalidCommand: There is none of this id.
        """
        named, owner = checked(TEXT, "key_id", key_id), checked(TEXT, "actor", actor)
        with self._database.connection() as connection, connection.transaction():
            key = api_keys.revoke(connection, named, owner)
        if key is None:
            raise InvalidCommand("key_id", f"there is no key {named!r:.80}: `ledger keys list` shows them")
        return key

    def credential(self, key: str) -> Credential:
        """
        Who has this key.

        Raises:
            Unauthenticated: It is none, was revoked, or its time is over: all the same to who asks.
        """
        parts = _KEY.fullmatch(key)
        found = None
        if parts is not None:
            found = self._database.ask(partial(api_keys.hashed, key_id=parts[1]))
        # Compared even where there is none, so that the time does not tell.
        given = sha256((parts[2] if parts else "").encode()).digest()
        is_same = hmac.compare_digest(found.secret_hash if found else bytes(32), given)
        if found is None or not is_same or not found.active:
            raise Unauthenticated("the API key is unknown, was revoked, or its time is over")
        return Credential(found.actor, frozenset(map(Scope, found.scopes)), f"key:{found.actor}")

    def record_reads(self, credential: Credential, question: str, accounts: Collection[str]) -> None:
        """Put on record that these accounts were read, before the answer is given."""
        if accounts:
            with self._database.connection() as connection:
                api_keys.record_reads(connection, credential.actor, question, accounts)

    def reads(self, account: str, *, since: datetime | None = None, limit: int = 100) -> list[AccountRead]:
        """Which auditors have read an account, and when, after a time: a page of at most `limit`."""
        named = checked(TEXT, "account", account)
        moment = None if since is None else checked(MOMENT, "since", since)
        if type(limit) is not int or not 1 <= limit <= queries.PAGE_MAX:
            raise InvalidCommand("limit", f"a page has 1 to {queries.PAGE_MAX} rows, not {limit!r}")
        return self._database.ask(partial(api_keys.reads, account=named, since=moment, limit=limit))


class Access:
    """What a ledger has to say of access, beside its commands and questions."""

    _database: Database

    def api_keys(self) -> ApiKeys:
        """Who may do what through the service: make, list and revoke keys."""
        return ApiKeys(self._database)

    def check_schema(self) -> None:
        """Raise SchemaMismatch, unless the database is at the schema that this release needs."""
        migrations.check(self._database)


def scopes_of(names: Iterable[Scope | str]) -> frozenset[Scope]:
    """
    Read scopes.

    Raises:
        InvalidCommand: There is none, or none of such a name.
    """
    try:
        found = frozenset(map(Scope, names))
    except ValueError:
        raise InvalidCommand("scopes", f"there are {', '.join(Scope)}, and no other") from None
    if not found:
        raise InvalidCommand("scopes", f"a key without any is good for nothing: name some of {', '.join(Scope)}")
    return found


def _actor(actor: str) -> str:
    named = checked(TEXT, "actor", actor)
    if not 1 <= len(named) <= ACTOR_CHARACTERS_MAX:
        raise InvalidCommand("actor", f"a name has 1 to {ACTOR_CHARACTERS_MAX} characters")
    return named
