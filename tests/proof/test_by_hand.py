"""What the manual says that anybody can do by hand, done."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from log import KEY, OTHER, note, records, subtrees

from ledger.audit.checkpoint import SigningKey
from ledger.audit.inclusion import InclusionProof

MANUAL = Path(__file__).parents[2] / "docs" / "proof.md"
BASH = shutil.which("bash")
SIZES = (1, 2, 3, 255, 256, 300)


def by_hand(folder: Path, proof: InclusionProof, key: SigningKey) -> subprocess.CompletedProcess[bytes]:
    """Run the script in the manual on a proof."""
    if BASH is None or shutil.which("openssl") is None:
        pytest.skip("bash and openssl are needed to do it by hand")
    script = re.search(r"^<!-- by hand -->\n```bash\n(.+?)^```$", MANUAL.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert script is not None
    (folder / "by-hand.sh").write_text(script[1], "utf-8")
    (folder / "event.tlog-proof").write_bytes(proof.to_bytes())
    (folder / "ledger.vkey").write_text(f"{key.verifier}\n", "utf-8")
    command = [BASH, "by-hand.sh", "event.tlog-proof", "ledger.vkey"]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, timeout=60)


@pytest.mark.parametrize("size", SIZES)
def test_a_proof_is_checked_without_us(size: int, tmp_path: Path) -> None:
    """The script in the manual finds good proofs good, with sha256sum and openssl alone, and shows the record."""
    listed, found = list(records(size)), subtrees(size)
    for index in sorted({0, size // 2, size - 1}):
        proof = InclusionProof.make(index, note(size, OTHER, KEY), found, listed[index])
        done = by_hand(tmp_path, proof, KEY)
        assert done.returncode == 0, done.stderr
        assert done.stdout == b"Signature Verified Successfully\n" + listed[index]


def test_a_bad_proof_is_found_without_us(tmp_path: Path) -> None:
    """… and bad ones bad: another record, place, way, root, size or key."""
    listed = list(records(300))
    good = InclusionProof.make(123, note(300), subtrees(300), listed[123])
    forged = note(300, changed=5)
    assert by_hand(tmp_path, good, KEY).returncode == 0

    for bad in (
        InclusionProof(123, good.path, good.note, listed[124]),
        InclusionProof(122, good.path, good.note, listed[123]),
        InclusionProof(400, good.path, good.note, listed[123]),
        InclusionProof(123, good.path[::-1], good.note, listed[123]),
        InclusionProof(123, good.path[:-1], good.note, listed[123]),
        InclusionProof(123, good.path, forged, listed[123]),
        InclusionProof(123, good.path, good.note.replace(b"\n300\n", b"\n299\n"), listed[123]),
    ):
        assert by_hand(tmp_path, bad, KEY).returncode != 0
    assert by_hand(tmp_path, good, OTHER).returncode != 0
    another = SigningKey(KEY.name, OTHER.seed)
    assert by_hand(tmp_path, good, another).returncode != 0
