"""
A proof that one event is in the log, in one small file that can be checked without us and without a database.

The file is a `tlog-proof`: the place in the log, the hashes from the event to the root, and the signed checkpoint that
names the root.  As its extra data it carries the event's record, so that nothing else is needed.

Source: C2SP tlog-proof.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ledger.audit.checkpoint import Checkpoint, Note, VerifierKey, open_checkpoint
from ledger.core.chain import leaf_hash
from ledger.core.errors import ProofFailed
from ledger.core.merkle import SubtreeAt, inclusion_proof, verify_inclusion

HEADING: Final = "c2sp.org/tlog-proof@v1"
_HASH: Final = "[A-Za-z0-9+/]{43}="
_FORM: Final = re.compile(
    rf"{re.escape(HEADING)}\n(?:extra (?P<extra>[A-Za-z0-9+/]*=*)\n)?index (?P<index>0|[1-9][0-9]{{0,19}})\n"
    rf"(?P<path>(?:{_HASH}\n){{0,64}})\n(?P<note>.+)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That a record has a place in the log of a checkpoint."""

    index: int
    """Counted from 0: the event at position 1 of the feed is record 0 of the log."""
    path: tuple[bytes, ...]
    """The hashes beside the way up, from the record's sibling to the root's child."""
    note: bytes
    """The signed checkpoint, as it was signed."""
    record: bytes | None = None
    """The bytes whose hash is the leaf; None where whoever verifies has them."""

    @classmethod
    def make(cls, index: int, note: bytes, subtree: SubtreeAt, record: bytes) -> InclusionProof:
        """
        Prove that `record` is at `index` of the log of a signed checkpoint.

        Raises:
            ProofFailed: It is not there, or `subtree` is of another log.
            ValueError: The log ends before.
        """
        checkpoint = Checkpoint.parse(Note.parse(note).text)
        proof = cls(index, tuple(inclusion_proof(index, checkpoint.size, subtree)), note, record)
        proof._check(checkpoint, record)
        return proof

    @classmethod
    def parse(cls, proof: bytes) -> InclusionProof:
        """
        Read a proof; it is not verified.

        Raises:
            ProofFailed: It is none.
        """
        try:
            found = _FORM.fullmatch(proof.decode())
            if found is None:
                raise ProofFailed("The proof", f"it is not of the form {HEADING}")
            path = tuple(b64decode(line, validate=True) for line in found["path"].split())
            record = None if found["extra"] is None else b64decode(found["extra"], validate=True)
        except ValueError:
            raise ProofFailed("The proof", "it is not text in base64") from None
        parsed = cls(int(found["index"]), path, found["note"].encode(), record)
        if parsed.to_bytes() != proof:
            raise ProofFailed("The proof", "its base64 could be written otherwise")
        return parsed

    def to_bytes(self) -> bytes:
        """The proof as a file, to be named `….tlog-proof`."""
        lines = [HEADING]
        lines += [] if self.record is None else [f"extra {b64encode(self.record).decode()}"]
        lines += [f"index {self.index}", *(b64encode(each).decode() for each in self.path), "", ""]
        return "\n".join(lines).encode() + self.note

    def verify(
        self, keys: Iterable[VerifierKey], *, record: bytes | None = None, origin: str | None = None
    ) -> Checkpoint:
        """
        Verify that the record is in the log, and that one of these keys has signed the log's checkpoint.

        With `record` it is that record that must be in the log, whatever the proof carries.

        Raises:
            ProofFailed: It does not hold, or there is no record to verify.
        """
        checkpoint = open_checkpoint(self.note, keys, origin=origin)
        proved = self.record if record is None else record
        if proved is None:
            raise ProofFailed("The proof", "it does not carry its record, and none was given")
        self._check(checkpoint, proved)
        return checkpoint

    def _check(self, checkpoint: Checkpoint, record: bytes) -> None:
        if not verify_inclusion(leaf_hash(record), self.index, checkpoint.size, self.path, checkpoint.root):
            problem = f"the record is not at {self.index} of the {checkpoint.size:,} records of the checkpoint"
            raise ProofFailed("The proof", problem)
