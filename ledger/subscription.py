"""
A consumer of the feed by its name, whose checkpoint moves in the consumer's own transaction.

What it does with an event, and that it has done so, last together or not at all: exactly once, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ledger.core.errors import ConcurrencyError, InvalidCommand
from ledger.core.events import FeedEntry
from ledger.core.fields import TEXT, checked
from ledger.storage import feed, subscriptions
from ledger.storage.database import Connection
from ledger.storage.explained import in_our_words


def named(field: str, name: str) -> str:
    """
    The name of a consumer, or of who moves it.

    Raises:
        InvalidCommand: It is empty, or cannot be stored.
    """
    if not checked(TEXT, field, name):
        raise InvalidCommand(field, "it is empty")
    return name


class Subscription:
    """Takes the feed entry by entry; made by `Ledger.subscription`.  Any number of processes may share a name."""

    def __init__(self, name: str, start: int, owner: str, lend: Callable[[Any], Connection]) -> None:
        self.name = named("name", name)
        self._owner = named("owner", owner)
        self._lend = lend
        if type(start) is not int or start < 0:
            raise InvalidCommand("start", f"{start!r} is not a position: 0, or one that was stamped")
        self._start = start

    def next(self, connection: Any, limit: int = 100) -> list[FeedEntry]:
        """
        The entries after those that were acknowledged, at most `limit`, in the transaction of `connection`.

        Another consumer of this name waits until that transaction has ended.

        Raises:
            UnsupportedConnection: Not a psycopg 3 or SQLAlchemy connection in a transaction.
            InvalidCommand: It is to begin after a position at which nothing was stamped yet.
            ConcurrencyError: Another consumer of this name was faster; run the whole transaction again.
        """
        if type(limit) is not int or not 1 <= limit <= feed.PAGE_MAX:
            raise InvalidCommand("limit", f"{limit!r} is not a number of entries from 1 to {feed.PAGE_MAX}")
        with in_our_words():
            lent = self._lend(connection)
            return feed.page(lent, subscriptions.taken_up(lent, self.name, self._start, self._owner), limit)

    def acknowledge(self, connection: Any, entries: Sequence[FeedEntry]) -> None:
        """
        Go on after these entries, which came from `next`: all of them, or the first ones.

        It holds once the transaction of `connection` is committed.

        Raises:
            ConcurrencyError: The subscription is not where they begin; run the whole transaction again.
        """
        if not entries:
            return
        first, last = entries[0].position, entries[-1].position
        if last - first + 1 != len(entries):
            raise InvalidCommand("entries", f"some between position {first} and {last} are missing")
        with in_our_words():
            lent = self._lend(connection)
            if subscriptions.move(lent, self.name, first - 1, last, self._owner):
                return
            stands = subscriptions.standing(lent, self.name)
        raise ConcurrencyError(
            f"Subscription {self.name!r} stands at position {stands}, not at {first - 1}: somebody else has moved it."
            " Run the whole transaction again."
        )
