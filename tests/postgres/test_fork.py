"""A ledger that was used before a fork goes on in the child and in the parent, each on connections of its own."""

from __future__ import annotations

import subprocess
import sys

from ledger import Ledger

SCRIPT = """
import os, sys
from ledger import Ledger

ledger = Ledger.connect(sys.argv[1])
ledger.transfer("1 USD", debit="alice", credit="bob")


def backends():
    with ledger.engine.connect() as connection:
        return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()


mine = backends()
children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for _ in range(5):
                ledger.transfer("1 USD", debit="alice", credit="bob")
            assert backends() != mine
            status = 0
        finally:
            os._exit(status)
    children.append(pid)
for _ in range(5):
    ledger.transfer("1 USD", debit="alice", credit="bob")
assert backends() == mine
for pid in children:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
ledger.transfer("1 USD", debit="alice", credit="bob")
assert backends() == mine
ledger.close()
"""


def test_ledger_goes_on_after_a_fork(funded: Ledger, ledger_url: str) -> None:
    """Parent and children write at once after the fork; nothing is lost, mixed up or closed for the other."""
    # A process of its own: one with the threads of a test run must not be forked.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, ledger_url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(funded.balance("alice").posted) == "48.00 USD"
    assert funded.verify().ok
