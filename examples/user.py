"""
Users: CREATE_USER must happen before UPDATE_USER, and DELETE_USER after all updates.

The machine is one of those that come with the ledger; `ledger/lifecycles/user.toml` is its declaration.  The state of
each user is a stream of events, as that of an account is.

`python examples/user.py` works on the database that LEDGER_DATABASE_URL names, or else on one of its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
from secrets import token_hex
from tempfile import mkdtemp

from ledger import Ledger, Rejected, StreamExists, TransitionRefused


def receive(ledger: Ledger, user: str, *messages: str) -> None:
    """Take messages in the order in which they arrive, and say what became of each."""
    for message in messages:
        try:
            if message == "create":
                ledger.begin("user", user)
            else:
                ledger.advance("user", user, message)
        except (TransitionRefused, StreamExists) as refusal:
            print(f"  {message}: refused while {refusal.state}")
        except Rejected as refusal:
            print(f"  {message}: refused, {refusal.code}")
        else:
            print(f"  {message}: {ledger.state('user', user).state}")


def main(ledger: Ledger) -> None:
    """Let messages about one user come in any order, and those about another as they were sent."""
    alice, bob = (f"{name}-{token_hex(4)}" for name in ("alice", "bob"))
    print("Out of order:")
    receive(ledger, alice, "update", "create", "create", "reinstate", "delete", "update")
    print("In order:")
    receive(ledger, bob, "create", "update", "verify", "suspend", "reinstate", "update", "delete")


def opened() -> Ledger:
    """The ledger of the environment, or one that lasts as long as this program."""
    url = os.environ.get("LEDGER_DATABASE_URL")
    if url:
        return Ledger.connect(url)
    folder = mkdtemp(prefix="ledger-")
    # Before the server registers its own end: at exit, the last to come is the first to go.
    atexit.register(shutil.rmtree, folder)
    return Ledger.embedded(folder)


if __name__ == "__main__":
    with opened() as ledger:
        ledger.migrate()
        main(ledger)
