"""
Personal data in a log that never changes: encrypted with a key per subject, so that it is forgotten with its key.

A caller encrypts a text, and gives the field that comes of it to a command in place of the text.  The field is what is
stored, hashed, proved and published; who has the key can read it, and when the key is destroyed nobody can.

A field is `personal.v1.KEY.BODY`, in base64url without padding: the id of the key, which is random and says nothing of
the subject; and the nonce, the ciphertext and the tag of AES-256-GCM (NIST SP 800-38D), with all that stands before
BODY, and the subject, as associated data.  From the subject's key two are derived, by HKDF-Expand (RFC 5869): one
encrypts, and one makes the nonce of the text (HMAC-SHA-256).  So the same text of the same subject always gives the
same field, without which no request could be sent again under its idempotency key, and no other text has its nonce.
"""

from __future__ import annotations

import hmac
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID, uuid4

from pydantic import TypeAdapter

from ledger.core.errors import InvalidCommand, ProofFailed, SubjectForgotten, UnknownSubject
from ledger.core.fields import TEXT, Label, checked
from ledger.storage import subject_keys
from ledger.storage.database import Database
from ledger.storage.subject_keys import Forgotten, SubjectKey

FIELDS_MAX: Final = 10_000
"""Fields encrypted or revealed by one call."""

TEXT_BYTES_MAX: Final = 12_000
"""What is encrypted of it still fits into the metadata of a command."""

_PREFIX: Final = "personal.v1."
_FIELD: Final = re.compile(r"personal\.v1\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{38,})")
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_SHOWN: Final = 8
_LABEL: Final = TypeAdapter(Label)


class SubjectKeys(Protocol):
    """
    Where the keys are: the table of the ledger, or whatever an application implements on its key management.

    Nothing here keeps a key in memory: each call asks, so that what was destroyed elsewhere is destroyed here too.
    """

    def create(self, subjects: Sequence[str]) -> Mapping[str, SubjectKey]:
        """Return the newest key of each subject, made and kept for who never had one; two at once get the same."""

    def get(self, key_ids: Collection[UUID]) -> Mapping[UUID, SubjectKey]:
        """Return the keys of these ids; one that was destroyed is None in its place, and never left out."""

    def destroyed(self, key_ids: Collection[UUID]) -> Collection[UUID]:
        """Return those of these ids whose key was destroyed, without reading a key."""

    def destroy(self, subject: str, actor: str, reason: str) -> Forgotten:
        """Destroy the key of a subject, on record.  Raises UnknownSubject."""

    def renew(self, subject: str) -> None:
        """Make a new key for a subject whose last one was destroyed; leave one that was not.  Raises UnknownSubject."""


class TableKeys:
    """Keys in the ledger's own table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, subjects: Sequence[str]) -> Mapping[str, SubjectKey]:
        """One query where all have keys."""
        with self._database.connection() as connection:
            found = subject_keys.newest(connection, subjects)
            missing = [_new_key(subject) for subject in sorted({*subjects} - found.keys())]
            if missing:
                with connection.transaction():
                    subject_keys.create(connection, missing)
                # Read again, and committed before: what somebody else has made at the same time is the key.
                found |= subject_keys.newest(connection, [key.subject for key in missing])
        return found

    def get(self, key_ids: Collection[UUID]) -> Mapping[UUID, SubjectKey]:
        """One query."""
        return self._database.ask(lambda connection: subject_keys.by_id(connection, key_ids))

    def destroyed(self, key_ids: Collection[UUID]) -> Collection[UUID]:
        """One query."""
        return self._database.ask(lambda connection: subject_keys.destroyed(connection, key_ids))

    def destroy(self, subject: str, actor: str, reason: str) -> Forgotten:
        """In a transaction of its own."""
        with self._database.connection() as connection, connection.transaction():
            forgotten = subject_keys.destroy(connection, subject, actor, reason)
        if forgotten is None:
            raise UnknownSubject(subject)
        return forgotten

    def renew(self, subject: str) -> None:
        """In a transaction of its own."""
        with self._database.connection() as connection:
            with connection.transaction():
                subject_keys.renew(connection, _new_key(subject))
            if not subject_keys.newest(connection, [subject]):
                raise UnknownSubject(subject)


@dataclass(frozen=True, slots=True)
class Shredded:
    """What was encrypted for a subject that was forgotten: it cannot be read any more."""

    subject: str

    def __str__(self) -> str:
        return "shredded"


class State(StrEnum):
    """What can be said of a personal field; unreadable is one that no key fits, which the ledger never made so."""

    ENCRYPTED = "encrypted"
    REVEALED = "revealed"
    SHREDDED = "shredded"
    UNREADABLE = "unreadable"


class Field(NamedTuple):
    """A personal field as it is shown: its state, and its text where it was revealed."""

    state: State
    text: str | None = None


class PersonalData:
    """Encrypts personal data, reveals it, and forgets it; made by `Ledger.personal_data`, and safe to share."""

    def __init__(self, keys: SubjectKeys) -> None:
        self._keys = keys

    def encrypt(self, subject: str, text: str) -> str:
        """
        Encrypt a text about a subject: a field of printable ASCII, for metadata or any other text of a command.

        The subject's key is made at its first use, and kept before this returns.  Fields of equal texts of one
        subject are equal, which anybody can see, as anybody can see how long a text is.  The subject is in no field.

        Raises:
            SubjectForgotten: Its key was destroyed.
            InvalidCommand: The subject is no label of 1 to 255 characters, or the text has more than 12,000 bytes.
        """
        return self.encrypt_all([(subject, text)])[0]

    def encrypt_all(self, texts: Iterable[tuple[str, str]]) -> list[str]:
        """Encrypt at most 10,000 texts, each with its subject, as `encrypt`; one query finds all keys."""
        wanted = [(checked(_LABEL, "subject", subject), _text(text)) for subject, text in texts]
        _check_number(wanted)
        keys = self._keys.create(sorted({subject for subject, _ in wanted})) if wanted else {}
        return [_encrypted(keys[subject], text) for subject, text in wanted]

    def reveal(self, field: str) -> str | Shredded:
        """
        Decrypt a field, or say that its subject was forgotten.

        Raises:
            InvalidCommand: It is no personal field.
            ProofFailed: It was changed, or no key here ever made it.
        """
        return self.reveal_all([field])[0]

    def reveal_all(self, fields: Iterable[str]) -> list[str | Shredded]:
        """Decrypt at most 10,000 fields, as `reveal`; one query finds all keys."""
        wanted = list(fields)
        _check_number(wanted)
        for field in wanted:
            if key_id_of(field) is None:
                raise InvalidCommand("field", f"{field!r:.80} is no personal field")
        keys = self._keys.get(_key_ids(wanted)) if wanted else {}
        return [_revealed(field, keys) for field in wanted]

    def forget(self, subject: str, *, actor: str, reason: str) -> Forgotten:
        """
        Destroy the key of a subject, on record: nothing that was encrypted for it can be read from now on.

        The log, its hashes and its proofs stay as they are.  Backups made before still hold the key.  Asked again, it
        says when it was done first.  A subject that was forgotten gets no new key, unless by `renew`.

        Raises:
            UnknownSubject: It never had a key.
        """
        return self._keys.destroy(
            checked(_LABEL, "subject", subject), checked(_LABEL, "actor", actor), checked(_LABEL, "reason", reason)
        )

    def renew(self, subject: str) -> None:
        """
        Give a subject that was forgotten a new key, for what comes from now on; one that has a key keeps it.

        Raises:
            UnknownSubject: It never had a key, and gets its first one from `encrypt`.
        """
        self._keys.renew(checked(_LABEL, "subject", subject))

    def states(self, values: Iterable[str]) -> dict[str, Field]:
        """Say of those of these values that are personal fields whether they are shredded; no key is read for it."""
        found = _fields(values)
        gone = self._keys.destroyed(_key_ids(found)) if found else ()
        return {field: Field(State.SHREDDED if key_id_of(field) in gone else State.ENCRYPTED) for field in found}

    def revealed(self, values: Iterable[str]) -> dict[str, Field]:
        """Decrypt those of these values that are personal fields; one that cannot be read is not in the others' way."""
        found = _fields(values)
        keys = self._keys.get(_key_ids(found)) if found else {}
        return {field: _looked_at(field, keys) for field in found}


def key_id_of(value: str) -> UUID | None:
    """The id of the key that a personal field was encrypted with; None for any other text."""
    parts = _FIELD.fullmatch(value)
    if parts is None or None in (key_id := _from_base64(parts[1]), _from_base64(parts[2])):
        return None
    return UUID(bytes=key_id)


def fields_in(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The personal fields in a value of JSON: where each is, and itself."""
    if isinstance(value, str):
        if key_id_of(value) is not None:
            yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from fields_in(each, (*path, key))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from fields_in(each, (*path, str(number)))


def shortened(field: str) -> str:
    """A personal field as people see it: enough to tell two apart."""
    return f"{field[: len(_PREFIX) + _SHOWN]}…"


def _fields(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if key_id_of(value) is not None]


def _key_ids(fields: Iterable[str]) -> list[UUID]:
    return sorted({key_id for key_id in map(key_id_of, fields) if key_id is not None})


def _new_key(subject: str) -> SubjectKey:
    return SubjectKey(subject, uuid4(), secrets.token_bytes(_KEY_BYTES))


def _encrypted(key: SubjectKey, text: str) -> str:
    if key.key is None:
        raise SubjectForgotten(key.subject)
    aes_gcm, _ = _cryptography()
    head = f"{_PREFIX}{_base64(key.key_id.bytes)}."
    plain = text.encode()
    nonce = hmac.digest(_derived(key.key, b"nonce"), plain, "sha256")[:_NONCE_BYTES]
    ciphertext = aes_gcm(_derived(key.key, b"encrypt")).encrypt(nonce, plain, _bound(head, key.subject))
    return head + _base64(nonce + ciphertext)


def _decrypted(field: str, key: SubjectKey) -> str | Shredded:
    if key.key is None:
        return Shredded(key.subject)
    aes_gcm, invalid = _cryptography()
    start = field.rindex(".") + 1
    head, body = field[:start], _from_base64(field[start:]) or b""
    nonce, ciphertext = body[:_NONCE_BYTES], body[_NONCE_BYTES:]
    try:
        plain: bytes = aes_gcm(_derived(key.key, b"encrypt")).decrypt(nonce, ciphertext, _bound(head, key.subject))
    except invalid:
        raise _failed(field, "it is not what was encrypted with the key of its subject") from None
    return plain.decode()


def _revealed(field: str, keys: Mapping[UUID, SubjectKey]) -> str | Shredded:
    key_id = key_id_of(field)
    assert key_id is not None
    if key_id not in keys:
        raise _failed(field, "there never was such a key here")
    return _decrypted(field, keys[key_id])


def _looked_at(field: str, keys: Mapping[UUID, SubjectKey]) -> Field:
    try:
        text = _revealed(field, keys)
    except ProofFailed:
        return Field(State.UNREADABLE)
    return Field(State.SHREDDED) if isinstance(text, Shredded) else Field(State.REVEALED, text)


def _failed(field: str, problem: str) -> ProofFailed:
    return ProofFailed(f"The personal field {shortened(field)}", problem)


def _derived(key: bytes, purpose: bytes) -> bytes:
    """One block of HKDF-Expand: a key for one purpose, of one that is random already."""
    return hmac.digest(key, b"ledger personal v1 " + purpose + b"\x01", "sha256")


def _bound(head: str, subject: str) -> bytes:
    """What is authenticated with the text: no field can be moved to another key or subject."""
    return f"{head}{subject}".encode()


def _text(text: str) -> str:
    text = checked(TEXT, "text", text)
    size = len(text.encode())
    if size > TEXT_BYTES_MAX:
        raise InvalidCommand("text", f"it has {size:,} bytes, and a personal field at most {TEXT_BYTES_MAX:,}")
    return text


def _check_number(wanted: Sequence[object]) -> None:
    if len(wanted) > FIELDS_MAX:
        raise InvalidCommand("fields", f"{len(wanted):,} are more than {FIELDS_MAX:,}, the most at once")


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _from_base64(text: str) -> bytes | None:
    """The bytes, if this is the one way to write them."""
    try:
        decoded = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return decoded if _base64(decoded) == text else None


def _cryptography() -> tuple[Any, type[Exception]]:
    """
    AES-GCM of the extra `proof`, and what it raises.

    Raises:
        InvalidCommand: It is not installed.
    """
    try:
        ciphers = import_module("cryptography.hazmat.primitives.ciphers.aead")
        failure: type[Exception] = import_module("cryptography.exceptions").InvalidTag
    except ModuleNotFoundError:
        raise InvalidCommand("personal data", "it is encrypted by cryptography: pip install 'ledger[proof]'") from None
    return ciphers.AESGCM, failure
