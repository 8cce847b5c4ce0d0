"""Checkpoints: the published notes and keys, the exact grammar, and the signatures as OpenSSL sees them."""

from __future__ import annotations

import stat
from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openssl import openssl

from ledger.audit.checkpoint import (
    SIGNATURES_MAX,
    Checkpoint,
    Note,
    SigningKey,
    VerifierKey,
    open_checkpoint,
    sign,
    signers,
)
from ledger.core.errors import InvalidCommand, ProofFailed

# Published with Go's package note.
PETER_SECRET = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"  # noqa: S105
PETER = VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
ENOCH = VerifierKey.parse("EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop")
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
BY_PETER = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
BY_ENOCH = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"

# Go's checksum database, whose tree is signed in public: its key, and three of its tree heads.
SUMDB = VerifierKey.parse("sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8")
SUMDB_ORIGIN = "go.sum database tree"
SUMDB_HEADS = {
    20852163: (
        "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=",
        "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=",
    ),
    31700353: (
        "qINS1GRFhWHwdkUeqLEoP4yEMkTBBzxBkGwGQlVlVcs=",
        "Az3grnmrIUEDFqHzAElIQCPNoRFRAAdFo47fooyWKMHb89k11GJh5zHIfNCOBmwn/C3YI8oW9/C8DJ87F61QqspBYwM=",
    ),
    65209736: (
        "5+uGFjx6xBZG8ip1+wi77v+grwbhhukIrxEUS8PXvRo=",
        "Az3grnbssgK7ubgFX36gVETtNv0U23qxyAhAMai2QUfeGa3nB/akvkMdlUErfcZz7l/R3cVtYspg3dxXABkGZZKdsQ8=",
    ),
}

KEY = SigningKey("example.org/ledger", bytes(range(32)))
OTHER = SigningKey("example.org/witness", bytes(range(1, 33)))
HERE = Checkpoint("example.org/ledger", 1234, sha256(b"a root").digest())


def test_published_signature_is_made() -> None:
    """The published key signs the published text with the published signature."""
    key = SigningKey.parse(PETER_SECRET)

    assert key.verifier == PETER
    assert key.secret == PETER_SECRET
    assert Note(TEXT, (key.sign(TEXT),)).to_bytes().decode() == f"{TEXT}\n{BY_PETER}"


def test_published_notes_are_verified() -> None:
    """Of two published signatures those of known keys count, and others are passed over."""
    both = Note.parse(f"{TEXT}\n{BY_PETER}{BY_ENOCH}".encode())

    assert signers(both, [PETER]) == [PETER]
    assert signers(both, [ENOCH]) == [ENOCH]
    assert signers(both, [PETER, ENOCH]) == signers(both, [PETER, ENOCH, PETER]) == [PETER, ENOCH]
    assert signers(Note.parse(f"{TEXT}\n{BY_PETER}{BY_PETER}{BY_ENOCH}".encode()), [PETER]) == [PETER]
    with pytest.raises(ProofFailed, match="none of the keys"):
        signers(both, [])
    with pytest.raises(ProofFailed, match="none of the keys"):
        signers(Note.parse(f"{TEXT}\n{BY_ENOCH}".encode()), [PETER])


@pytest.mark.parametrize("size", SUMDB_HEADS)
def test_public_checkpoints_are_verified(size: int) -> None:
    """Tree heads that Go's checksum database has signed are checkpoints, and are of that log only."""
    root, signature = SUMDB_HEADS[size]
    note = f"{SUMDB_ORIGIN}\n{size}\n{root}\n\n— sum.golang.org {signature}\n".encode()

    checkpoint = open_checkpoint(note, [SUMDB], origin=SUMDB_ORIGIN)

    assert checkpoint == Checkpoint(SUMDB_ORIGIN, size, b64decode(root))
    with pytest.raises(ProofFailed, match="not of 'example"):
        open_checkpoint(note, [SUMDB], origin="example.com")
    with pytest.raises(ProofFailed, match=r"signed by sum\.golang\.org only"):
        open_checkpoint(note, [SUMDB])
    with pytest.raises(ProofFailed, match="is not its signature"):
        open_checkpoint(note.replace(b"tree", b"trie"), [SUMDB], origin=SUMDB_ORIGIN)


@pytest.mark.parametrize(
    "note",
    [
        "",
        TEXT,
        TEXT + "\n",
        f"{TEXT}\n{BY_PETER}"[:-1],
        f"\x01{TEXT}\n{BY_PETER}",
        f"{TEXT}\n{BY_PETER}".replace(" cryptography", "\tcryptography"),
        f"{TEXT}\n{BY_PETER}".replace("\n", "\r\n"),
        f"{TEXT}\n— Bad Name {BY_PETER.rsplit(maxsplit=1)[-1]}\n",
        f"{TEXT}\n{BY_PETER}".replace("PeterN", "Peter+N"),
        f"{TEXT}\n{BY_PETER}".replace("PeterN", "Peter\u2003N"),
        f"{TEXT}\n{BY_PETER}".replace("— ", "- "),
        f"{TEXT}\n{BY_PETER}".replace("— ", "—  "),
        f"{TEXT}\n{BY_PETER}Unexpected line.\n",
        f"{TEXT}\n{BY_PETER}".replace("=", ""),
        f"{TEXT}\n{BY_PETER}".replace("AM=", "AN="),
        f"{TEXT}\n— PeterNeumann x08gow==\n",
        f"{TEXT}\n— PeterNeumann \n",
        f"{TEXT}\n" + BY_PETER * (SIGNATURES_MAX + 1),
        f"{TEXT * 20_000}\n{BY_PETER}",
    ],
)
def test_malformed_notes_are_refused(note: str) -> None:
    """What is not exactly a note is none."""
    with pytest.raises(ProofFailed):
        Note.parse(note.encode())


def test_bytes_that_are_no_text_are_refused() -> None:
    """A note is UTF-8."""
    with pytest.raises(ProofFailed):
        Note.parse(b"\xff" + f"{TEXT}\n{BY_PETER}".encode())


def test_a_wrong_signature_of_a_known_key_spoils_the_note() -> None:
    """If one known key has not signed what it is said to have, the others do not help."""
    wrong = BY_ENOCH.replace("rwz+eBzmZa0SO3Nb", "rwz+eBzmZa0SO3Nc")
    shorter = f"— EnochRoot {b64encode(b64decode(BY_ENOCH.rsplit(maxsplit=1)[-1])[:-1]).decode()}\n"

    for line in (wrong, shorter):
        note = Note.parse(f"{TEXT}\n{BY_PETER}{line}".encode())
        assert signers(note, [PETER]) == [PETER]
        with pytest.raises(ProofFailed, match="EnochRoot is not its signature"):
            signers(note, [PETER, ENOCH])


def test_key_with_name_or_id_of_another_is_unknown() -> None:
    """A signature counts as a key's only with both its name and its id."""
    with pytest.raises(ProofFailed, match="none of the keys"):
        signers(Note.parse(f"{TEXT}\n{BY_PETER}".replace("PeterNeumann", "PeterNeuman").encode()), [PETER])
    with pytest.raises(ProofFailed, match="none of the keys"):
        signers(Note.parse(f"{TEXT}\n{BY_PETER}".replace("x08g", "x08h").encode()), [PETER])


@pytest.mark.parametrize("text", [str(PETER), PETER_SECRET])
def test_mangled_keys_are_refused(text: str) -> None:
    """No part of a key is a key, nor is a key with any character changed."""
    parse = SigningKey.parse if text.startswith("PRIVATE") else VerifierKey.parse
    mangled = [text[i:j] for i in range(len(text) + 1) for j in range(i + 1, len(text) + 1) if j - i < len(text)]
    mangled += [text[:at] + chr(ord(text[at]) + 1) + text[at + 1 :] for at in range(len(text))]

    for each in mangled:
        with pytest.raises(InvalidCommand):
            parse(each)
    assert str(parse(f" {text}\n").name) == "PeterNeumann"


@pytest.mark.parametrize(
    "text",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann",
        "++",
    ],
)
def test_keys_of_other_kinds_are_refused(text: str) -> None:
    """A key of another length or algorithm, or written otherwise, is none of ours."""
    with pytest.raises(InvalidCommand):
        VerifierKey.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Log\n",
        "Log\n123\n",
        "\n123\nROOT\n",
        "Log\n123\nROOT",
        "Log\n123\nROOT\n\n",
        "Log\n123\nROOT\n\nmore\n",
        "Log\nbananas\nROOT\n",
        "Log\n-34\nROOT\n",
        "Log\n+34\nROOT\n",
        "Log\n007\nROOT\n",
        "Log\n1 2\nROOT\n",
        "Log\n\u0661\nROOT\n",
        "Log\n9223372036854775808\nROOT\n",
        "Log\n18446744073709551616\nROOT\n",
        "Log\n3438945738945739845734895735\nROOT\n",
        "Log\n123\nThisIsn'tBase64\n",
        "Log\n123\nYmFuYW5hcw==\n",
        "Log\n123\nROOT=\n",
        "Log\n123\n ROOT\n",
    ],
)
def test_malformed_checkpoints_are_refused(text: str) -> None:
    """What is not exactly origin, size and root is no checkpoint, even where it is signed."""
    text = text.replace("ROOT", b64encode(HERE.root).decode())
    with pytest.raises(ProofFailed):
        Checkpoint.parse(text)
    note = Note(text, (KEY.sign(text),)).to_bytes()
    with pytest.raises(ProofFailed):
        open_checkpoint(note, [KEY.verifier], origin="Log")


@pytest.mark.parametrize("size", [0, 1, 2**63 - 1])
def test_checkpoints_travel(size: int) -> None:
    """What was signed is read again, by several keys, with further lines and without."""
    for checkpoint in (Checkpoint(KEY.name, size, HERE.root), Checkpoint(KEY.name, size, HERE.root, ("one", "— two"))):
        note = sign(checkpoint, KEY, OTHER)
        assert open_checkpoint(note, [KEY.verifier]) == checkpoint
        assert open_checkpoint(note, [KEY.verifier, OTHER.verifier]) == checkpoint
        assert open_checkpoint(note, [OTHER.verifier], origin=KEY.name) == checkpoint
        with pytest.raises(ProofFailed, match=r"signed by example\.org/witness only"):
            open_checkpoint(note, [OTHER.verifier])
        assert Note.parse(note).to_bytes() == note


@settings(max_examples=300)
@given(st.data())
def test_any_changed_bit_is_found(data: st.DataObject) -> None:
    """A signed checkpoint with any bit changed is refused: every byte of it counts."""
    note = sign(HERE, KEY)
    bit = data.draw(st.integers(0, 8 * len(note) - 1))
    changed = (int.from_bytes(note, "big") ^ 1 << bit).to_bytes(len(note), "big")

    with pytest.raises(ProofFailed):
        open_checkpoint(changed, [KEY.verifier])


def test_new_keys_differ_and_are_kept_private(tmp_path: Path) -> None:
    """A key is drawn at random, read from its file again, never shown, and never overwritten."""
    key, other = SigningKey.generate("example.org/a"), SigningKey.generate("example.org/a")
    path = tmp_path / "key"
    key.write(path)

    assert key.seed != other.seed
    assert SigningKey.read(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.secret.split("+", 4)[4] not in f"{key!r} {key}"
    with pytest.raises(FileExistsError):
        other.write(path)
    assert SigningKey.read(path) == key


@pytest.mark.parametrize("name", ["", "two words", "one+one", "line\nbreak", "em\u2003space", "bell\x07"])
def test_names_of_keys_are_plain(name: str) -> None:
    """A name that could not stand in a signature line is refused at once."""
    with pytest.raises(InvalidCommand, match="name"):
        SigningKey.generate(name)


def test_openssl_agrees(tmp_path: Path) -> None:
    """OpenSSL verifies our signature over the text, refuses another text, and we verify the one that OpenSSL makes."""
    note = Note.parse(sign(HERE, KEY))
    public, private = tmp_path / "public.der", tmp_path / "private.der"
    public.write_bytes(bytes.fromhex("302a300506032b6570032100") + KEY.verifier.public)
    private.write_bytes(bytes.fromhex("302e020100300506032b657004220420") + KEY.seed)

    assert openssl_verifies(tmp_path, public, note.text.encode(), note.signatures[0].value)
    assert not openssl_verifies(tmp_path, public, b"x" + note.text.encode(), note.signatures[0].value)
    (tmp_path / "text").write_bytes(note.text.encode())
    made = openssl("pkeyutl", "-sign", "-inkey", private, "-keyform", "DER", "-rawin", "-in", tmp_path / "text")
    assert made.stdout == note.signatures[0].value


def openssl_verifies(folder: Path, public: Path, text: bytes, signature: bytes) -> bool:
    """Whether `openssl pkeyutl` takes a signature for one of this key."""
    (folder / "text").write_bytes(text)
    (folder / "signature").write_bytes(signature)
    key = ("-pubin", "-inkey", public, "-keyform", "DER")
    signed = ("-rawin", "-in", folder / "text", "-sigfile", folder / "signature")
    return openssl("pkeyutl", "-verify", *key, *signed, check=False).returncode == 0
