"""
Signed checkpoints: what a log says of itself, its size and the root of its tree, in a form that others can check.

A checkpoint is three lines of text in a signed note.  Keys live in files outside the database, so that whoever can
rewrite the one cannot sign with the other.

Source: C2SP signed-note and tlog-checkpoint; keys are written as those of Go's `golang.org/x/mod/sumdb/note`.
"""

from __future__ import annotations

import os
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from ledger.core.errors import InvalidCommand, ProofFailed
from ledger.core.merkle import HASH_BYTES

ED25519: Final = b"\1"
KEY_ID_BYTES: Final = 4
SIGNATURES_MAX: Final = 100
NOTE_BYTES_MAX: Final = 1 << 20
_SIZE_BITS: Final = 63
"""As many as a position in the database, and a slice of an iterator, can have."""

_SEED_BYTES: Final = 32
_HEADING_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class Signature:
    """One line under a note: who says that they signed it, with which key, and the signature itself."""

    name: str
    key_id: bytes
    value: bytes

    def __str__(self) -> str:
        return f"\N{EM DASH} {self.name} {_base64(self.key_id + self.value)}"


@dataclass(frozen=True, slots=True)
class Note:
    """A text, which ends with a newline, and the signatures under it, of which nothing is known yet."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, note: bytes) -> Note:
        """
        Read a note; it is not verified.

        Raises:
            ProofFailed: It is no signed note.
        """
        try:
            decoded = note.decode() if len(note) <= NOTE_BYTES_MAX else ""
        except UnicodeDecodeError:
            decoded = ""
        text, blank, signed = decoded.rpartition("\n\n")
        lines = signed.split("\n")
        if (
            not blank
            or lines.pop()
            or not 0 < len(lines) <= SIGNATURES_MAX
            or re.search(r"[\0-\x09\x0b-\x1f]", decoded)
        ):
            raise _no_note("it is not text, an empty line and signatures")
        return cls(text + "\n", tuple(map(_signature, lines)))

    def to_bytes(self) -> bytes:
        """The note as it is kept and sent."""
        return "\n".join((self.text, *map(str, self.signatures), "")).encode()


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """What it takes to verify somebody's signatures: a name, and the public key that it stands for."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """
        Read `NAME+HASH+BASE64`.

        Raises:
            InvalidCommand: It is no key, or its hash is that of another.
        """
        name, _, rest = text.strip().partition("+")
        key = cls(name, _key_material(rest, "verifier key"))
        if str(key) != text.strip():
            raise InvalidCommand("verifier key", f"{text.strip()!r} is not NAME+HASH+BASE64 of one key")
        return key

    @property
    def key_id(self) -> bytes:
        """The four bytes by which a signature names its key, together with the name."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.public).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{_named(self.name)}+{self.key_id.hex()}+{_base64(ED25519 + self.public)}"

    def made(self, signature: Signature) -> bool:
        """Whether a signature says that it was made with this key."""
        return (signature.name, signature.key_id) == (self.name, self.key_id)

    def verify(self, text: str, signature: Signature) -> bool:
        """Whether it was, for this text."""
        ed25519, exceptions = _cryptography()
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.public).verify(signature.value, text.encode())
        except (exceptions.InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with the name that it signs by."""

    name: str
    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls, name: str) -> SigningKey:
        """
        Draw a new key.

        Raises:
            InvalidCommand: The name is empty, or has spaces or a plus in it.
        """
        return cls(_named(name), secrets.token_bytes(_SEED_BYTES))

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """
        Read `PRIVATE+KEY+NAME+HASH+BASE64`.

        Raises:
            InvalidCommand: It is no key, or its hash is that of another.
        """
        name, _, rest = text.strip().removeprefix("PRIVATE+KEY+").partition("+")
        key = cls(name, _key_material(rest, "signing key"))
        if key.secret != text.strip():
            # Nothing of it is repeated: messages end up in logs.
            raise InvalidCommand("signing key", "it is not PRIVATE+KEY+NAME+HASH+BASE64 of one key")
        return key

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """Read the key in a file; raises as `parse`, or `OSError`."""
        return cls.parse(path.read_text("utf-8"))

    def write(self, path: Path) -> None:
        """
        Write the key to a new file that only its owner can read.

        Raises:
            FileExistsError: There is one: a key is never overwritten.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self.secret + "\n")
            file.flush()
            os.fsync(descriptor)

    @property
    def secret(self) -> str:
        """The key as it is kept: whoever has it can sign."""
        return f"PRIVATE+KEY+{_named(self.name)}+{self.verifier.key_id.hex()}+{_base64(ED25519 + self.seed)}"

    @property
    def verifier(self) -> VerifierKey:
        """What to give to everybody who shall be able to verify."""
        return VerifierKey(self.name, self._private().public_key().public_bytes_raw())

    def sign(self, text: str) -> Signature:
        """Sign a text."""
        return Signature(self.name, self.verifier.key_id, self._private().sign(text.encode()))

    def _private(self) -> Any:
        return _cryptography()[0].Ed25519PrivateKey.from_private_bytes(self.seed)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log at one moment: whose it is, how many entries it has, and the root of the tree over them."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is signed."""
        return "".join(f"{line}\n" for line in (self.origin, self.size, _base64(self.root), *self.extensions))

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """
        Read what was signed.

        Raises:
            ProofFailed: It is no checkpoint.
        """
        lines = text.split("\n")
        if lines.pop() or len(lines) < _HEADING_LINES or not all(lines):
            raise _no_checkpoint("it is not origin, size and root, a line each")
        origin, size, root, *extensions = lines
        if not re.fullmatch("0|[1-9][0-9]{0,18}", size) or int(size).bit_length() > _SIZE_BITS:
            raise _no_checkpoint(f"{size!r} is not the size of a tree")
        decoded = _from_base64(root)
        if decoded is None or len(decoded) != HASH_BYTES:
            raise _no_checkpoint(f"{root!r} is not a root of {HASH_BYTES} bytes in base64")
        return cls(origin, int(size), decoded, tuple(extensions))


def sign(checkpoint: Checkpoint, *keys: SigningKey) -> bytes:
    """
    A checkpoint as a note signed with all these keys, of which one should be named as the log is.

    It is for the caller to see to it that the log never signs two checkpoints of which neither extends the other.
    """
    assert keys, "a note has at least one signature"
    # What could not be read again is not signed.
    assert Checkpoint.parse(checkpoint.text) == checkpoint
    return Note(checkpoint.text, tuple(key.sign(checkpoint.text) for key in keys)).to_bytes()


def open_checkpoint(note: bytes, keys: Iterable[VerifierKey], *, origin: str | None = None) -> Checkpoint:
    """
    Verify a note, and read the checkpoint in it.

    Without `origin` a key that signed it must be named as the log is, as those of ours are.

    Raises:
        ProofFailed: It is no signed checkpoint, no key of these has signed it, or one of them has not although the
            note says so; or it is another log's.
    """
    parsed = Note.parse(note)
    signed_by = signers(parsed, keys)
    checkpoint = Checkpoint.parse(parsed.text)
    if origin is None and checkpoint.origin not in {key.name for key in signed_by}:
        names = ", ".join(sorted({key.name for key in signed_by}))
        raise _no_checkpoint(f"it is of the log {checkpoint.origin!r}, and signed by {names} only")
    if origin is not None and checkpoint.origin != origin:
        raise _no_checkpoint(f"it is of the log {checkpoint.origin!r}, not of {origin!r}")
    return checkpoint


def signers(note: Note, keys: Iterable[VerifierKey]) -> list[VerifierKey]:
    """
    Which of these keys have signed a note; signatures with other keys are passed over.

    Raises:
        ProofFailed: None has, or a signature that is said to be made with one of them is not.
    """
    found = []
    for key in dict.fromkeys(keys):
        made = [signature for signature in note.signatures if key.made(signature)]
        if not all(key.verify(note.text, signature) for signature in made):
            raise _no_note(f"the signature of {key.name} is not its signature of this text")
        found += [key] if made else []
    if not found:
        raise _no_note("it is signed with none of the keys that are known here")
    return found


def _signature(line: str) -> Signature:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    decoded = _from_base64(encoded)
    if dash != "\N{EM DASH}" or not _is_name(name) or decoded is None or len(decoded) <= KEY_ID_BYTES:
        raise _no_note(f"{line!r} is no signature")
    return Signature(name, decoded[:KEY_ID_BYTES], decoded[KEY_ID_BYTES:])


def _key_material(rest: str, what: str) -> bytes:
    """The 32 bytes of an Ed25519 key in `HASH+BASE64`; that the hash fits is seen when the key is written again."""
    decoded = _from_base64(rest.partition("+")[2])
    if decoded is None or len(decoded) != 1 + _SEED_BYTES or decoded[:1] != ED25519:
        raise InvalidCommand(what, "it holds no Ed25519 key")
    return decoded[1:]


def _is_name(name: str) -> bool:
    return name != "" and "+" not in name and not any(character.isspace() for character in name)


def _named(name: str) -> str:
    if not _is_name(name) or not name.isprintable():
        raise InvalidCommand("name", f"{name!r} is empty, or has spaces, a plus or control characters in it")
    return name


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _from_base64(text: str) -> bytes | None:
    """The bytes, if this is the one way to write them."""
    try:
        decoded = b64decode(text, validate=True)
    except ValueError:
        return None
    return decoded if _base64(decoded) == text else None


def _no_note(problem: str) -> ProofFailed:
    return ProofFailed("The note", problem)


def _no_checkpoint(problem: str) -> ProofFailed:
    return ProofFailed("The checkpoint", problem)


def _cryptography() -> Sequence[Any]:
    """
    The Ed25519 of the extra `proof`.

    Raises:
        InvalidCommand: It is not installed.
    """
    try:
        return import_module("cryptography.hazmat.primitives.asymmetric.ed25519"), import_module(
            "cryptography.exceptions"
        )
    except ModuleNotFoundError:
        raise InvalidCommand("proof", "signatures need cryptography: pip install 'ledger[proof]'") from None
