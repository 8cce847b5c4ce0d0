"""
Users: CREATE_USER must happen before UPDATE_USER, and DELETE_USER after all updates.

The machine is one of those that come with the ledger; `ledger/lifecycles/user.toml` is its declaration.

    python examples/user.py
"""

from __future__ import annotations

from ledger import Rejected
from ledger.lifecycle import shipped

USER = shipped("user")


class Users:
    """The state of each user, in memory."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def begin(self, user: str) -> str:
        """Create a user, once."""
        if user in self._states:
            raise LookupError(f"user {user} exists already")
        self._states[user] = USER.initial
        return USER.initial

    def advance(self, user: str, event: str) -> str:
        """Let something happen to a user who exists."""
        if user not in self._states:
            raise LookupError(f"user {user} does not exist; create it first")
        self._states[user] = USER.advance(self._states[user], event, stream=user)
        return self._states[user]


def receive(users: Users, user: str, *messages: str) -> None:
    """Take messages in the order in which they arrive, and say what became of each."""
    for message in messages:
        try:
            state = users.begin(user) if message == "create" else users.advance(user, message)
        except (Rejected, LookupError) as refusal:
            print(f"  {message}: refused, {refusal}")
        else:
            print(f"  {message}: {state}")


if __name__ == "__main__":
    everybody = Users()
    print("Out of order:")
    receive(everybody, "alice", "update", "create", "reinstate", "delete", "update")
    print("In order:")
    receive(everybody, "bob", "create", "update", "verify", "suspend", "reinstate", "update", "delete")
