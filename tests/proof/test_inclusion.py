"""The proof of one event: the file that others read, and that nothing in it can be changed unseen."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log import KEY, OTHER, note, records, subtrees

from ledger.audit.checkpoint import Note
from ledger.audit.inclusion import InclusionProof
from ledger.core.chain import leaf_hash
from ledger.core.errors import ProofFailed
from ledger.core.merkle import node_hash

SIZE = 300
RECORDS = list(records(SIZE))
SUBTREES = subtrees(SIZE)
PROOF = InclusionProof.make(123, note(SIZE), SUBTREES, RECORDS[123])


def test_file_is_that_of_the_specification() -> None:
    """Line by line: heading, record, index, the way up, an empty line, and the checkpoint as it was signed."""
    head, _, checkpoint = PROOF.to_bytes().partition(b"\n\n")
    heading, extra, index, *path = head.decode().split("\n")

    assert heading == "c2sp.org/tlog-proof@v1"
    assert extra == f"extra {b64encode(RECORDS[123]).decode()}"
    assert index == "index 123"
    assert [b64decode(line) for line in path] == list(PROOF.path)
    assert path[0] == b64encode(leaf_hash(RECORDS[122])).decode()
    assert checkpoint == note(SIZE)


@pytest.mark.parametrize("index", [0, 1, 127, 128, 255, 256, 298, 299])
def test_every_record_can_be_proved(index: int) -> None:
    """A proof is read again, holds for its record, and for no other one."""
    made = InclusionProof.make(index, note(SIZE, KEY, OTHER), SUBTREES, RECORDS[index])
    without = InclusionProof(made.index, made.path, made.note)

    for proof in (made, without):
        assert InclusionProof.parse(proof.to_bytes()) == proof
        assert proof.verify([KEY.verifier], record=RECORDS[index]).size == SIZE
        with pytest.raises(ProofFailed, match=f"not at {index} of the 300"):
            proof.verify([KEY.verifier], record=RECORDS[index - 1])
    assert made.verify([KEY.verifier]).size == SIZE
    with pytest.raises(ProofFailed, match="does not carry its record"):
        without.verify([KEY.verifier])
    with pytest.raises(ProofFailed, match="none of the keys"):
        InclusionProof(made.index, made.path, note(SIZE), made.record).verify([OTHER.verifier])


def test_the_only_record_needs_no_way_up() -> None:
    """In a log of one record the record's hash is the root."""
    proof = InclusionProof.make(0, note(1), subtrees(1), RECORDS[0])

    assert proof.path == ()
    assert InclusionProof.parse(proof.to_bytes()).verify([KEY.verifier]).size == 1


def test_what_is_not_there_is_not_proved() -> None:
    """No proof is made for a record that is elsewhere, nor of a tree that is another than the signed one."""
    with pytest.raises(ProofFailed):
        InclusionProof.make(5, note(SIZE), SUBTREES, RECORDS[6])
    with pytest.raises(ProofFailed):
        InclusionProof.make(5, note(SIZE), subtrees(SIZE, changed=250), RECORDS[5])
    with pytest.raises(ValueError, match="no leaf 300"):
        InclusionProof.make(SIZE, note(SIZE), SUBTREES, RECORDS[5])


def test_a_node_is_no_record() -> None:
    """The hash of two hashes cannot be passed off as that of a record."""
    left, right = leaf_hash(RECORDS[0]), leaf_hash(RECORDS[1])
    forged = InclusionProof(
        0, InclusionProof.make(0, note(SIZE), SUBTREES, RECORDS[0]).path[1:], note(SIZE), left + right
    )

    assert leaf_hash(left + right) != node_hash(left, right)
    with pytest.raises(ProofFailed):
        forged.verify([KEY.verifier])


@settings(max_examples=300)
@given(st.data())
def test_any_changed_bit_is_found(data: st.DataObject) -> None:
    """A proof with any bit changed does not hold."""
    proof = PROOF.to_bytes()
    bit = data.draw(st.integers(0, 8 * len(proof) - 1))
    changed = (int.from_bytes(proof, "big") ^ 1 << bit).to_bytes(len(proof), "big")

    with pytest.raises(ProofFailed):
        InclusionProof.parse(changed).verify([KEY.verifier])


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("@v1", "@v2"),
        ("index 123", "index 0123"),
        ("index 123", "index -1"),
        ("index 123", "index 18446744073709551616123"),
        ("index 123\n", ""),
        ("index 123\n", "index 123\n\n"),
        ("extra ", "extra  "),
        ("extra ", "extra !"),
        ("\n\nexample", "\nexample"),
        ("c2sp", " c2sp"),
        ("\n", "\r\n"),
    ],
)
def test_malformed_proofs_are_refused(good: str, bad: str) -> None:
    """What is not exactly of the form is no proof."""
    text = PROOF.to_bytes().decode()
    assert good in text
    with pytest.raises(ProofFailed):
        InclusionProof.parse(text.replace(good, bad).encode()).verify([KEY.verifier])
    with pytest.raises(ProofFailed):
        InclusionProof.parse(b"\xff" + PROOF.to_bytes())


def test_a_proof_of_another_size_needs_its_own_checkpoint() -> None:
    """The way up of one size does not fit the signed checkpoint of another."""
    other = InclusionProof(PROOF.index, PROOF.path, note(SIZE - 1), PROOF.record)

    assert Note.parse(other.note).text.split("\n")[1] == "299"
    with pytest.raises(ProofFailed):
        other.verify([KEY.verifier])
