"""
Balances on the far side of a broker, which no message that is late, doubled, lost or early can make wrong.

They follow a ledger's feed, by version: an event that is known already is ignored, the next one is applied, and where
one is missing, or what comes does not follow what is known, the stream is fetched again from the log.  In memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, TypeAlias

from ledger.core.book import Balance, Book, Stream, evolve, with_movement
from ledger.core.codec import event_from
from ledger.core.errors import CorruptLog, UnknownAccount
from ledger.core.events import FeedEntry, Movement, Numbers, OfHold, Recorded, account_of, stripes_of
from ledger.order.message import Message
from ledger.order.published import event_in

Refetch: TypeAlias = Callable[[str, int], Iterable[Recorded]]
"""A page of the events of a stream after a version, in order; nothing, where there are no more."""

_LEFT_OUT: Final = "null"
"""What a message has in place of a payload that is too long: the log has it."""


class Applied(StrEnum):
    """What became of an event."""

    APPLIED = "applied"
    IGNORED = "ignored"
    """It was known."""

    REFETCHED = "refetched"
    """Something before it was missing, or it did not fit: its stream is now as the log has it."""

    BEHIND = "behind"
    """As that, and the log that was asked does not have it yet: see `RemoteBalances.catch_up`."""


class RemoteBalances:
    """
    The balances of all accounts that were heard of.  Not for several threads at once.

    `refetch(stream, after_version)` asks the log for the events of a stream: `ledger.stream`, or whatever asks it
    over a network.  Of an account with stripes each is a stream.
    """

    def __init__(self, refetch: Refetch) -> None:
        self._refetch = refetch
        self._book = Book("")
        self._accounts: dict[str, list[str]] = {}
        self.behind: set[str] = set()
        """Streams of which an event was heard that the log did not have when it was asked."""

    def apply(self, heard: Message | FeedEntry | Recorded) -> Applied:
        """
        Take an event, however it came.

        Raises:
            UndecodableMessage: The message carries no event of a ledger.
            CorruptLog: The log that was asked contradicts itself.
        """
        if isinstance(heard, Message):
            event = event_in(heard)
        else:
            event = heard.event if isinstance(heard, FeedEntry) else heard
        stream = self._book.streams.get(event.stream)
        known = stream.version if stream is not None else 0
        if stream is not None and event.version <= known:
            if event.version < known or event.event_hash == stream.head_hash:
                return Applied.IGNORED
            # Another event where one is known: one of the two is not the log's.
            self._forget(event.stream)
        elif event.version == known + 1 and self._is_next(event):
            return Applied.APPLIED
        self._fetch(event.stream, event.version)
        return Applied.BEHIND if event.stream in self.behind else Applied.REFETCHED

    def catch_up(self, *streams: str) -> None:
        """
        Ask the log for what was not heard of these accounts and other streams, or of all that are known.

        Of an account with stripes all are asked for, also those of which nothing was heard.  Whatever is lost is missed
        with the next event of its stream; what was lost last is missed by this alone.
        """
        for account in dict.fromkeys(map(account_of, streams or self._book.streams)):
            # The first stream says how many there are.
            self._fetch(account, None)
            first = self._book.streams.get(account)
            terms = None if first is None else first.terms
            for stream in stripes_of(account, 1 if terms is None else terms.streams)[1:]:
                self._fetch(stream, None)

    def version(self, stream: str) -> int:
        """The last version that is known of a stream; 0 if it was not heard of."""
        found = self._book.streams.get(stream)
        return 0 if found is None else found.version

    def balance(self, account: str) -> Balance:
        """
        The balance as far as it is known; of an account that is spread over several streams, their sum.

        Raises:
            UnknownAccount: It was not heard of.
        """
        streams = [self._book.streams[name] for name in self._accounts.get(account, ())]
        terms = next((stream.terms for stream in streams if stream.terms is not None), None)
        if terms is None:
            raise UnknownAccount(account)
        numbers = Numbers(*map(sum, zip(*(stream.numbers for stream in streams), strict=True)))
        return Balance.from_numbers(account, terms, numbers, sum(stream.version for stream in streams))

    def __len__(self) -> int:
        """How many streams were heard of."""
        return len(self._book.streams)

    def _fetch(self, name: str, wanted: int | None) -> None:
        """Follow the log from what is known on, or from its beginning if it does not go on from there."""
        if not self._followed(name):
            self._forget(name)
            if not self._followed(name):
                raise CorruptLog(name, self.version(name) + 1, "it does not follow the event before it")
        if wanted is not None and self.version(name) < wanted:
            self.behind.add(name)
        else:
            self.behind.discard(name)

    def _followed(self, name: str) -> bool:
        while page := list(self._refetch(name, self.version(name))):
            if not all(self._follows(event) for event in page):
                return False
        return True

    def _is_next(self, heard: Recorded) -> bool:
        """Apply what was heard, if it follows; what cannot even be read says nothing of the log, which is asked."""
        try:
            return self._follows(heard)
        except CorruptLog:
            return False

    def _follows(self, event: Recorded) -> bool:
        """
        Apply an event if it is the next one of its stream, with the hash and the numbers that it must have.

        Raises:
            CorruptLog: It is no event that any release has written; nothing was applied.
        """
        stream = self._book.streams.get(event.stream) or Stream(event.stream)
        if event.version != stream.version + 1 or (stream.head_hash and event.prev_hash != stream.head_hash):
            return False
        if event.payload == _LEFT_OUT:
            return False
        said = event_from(event)
        numbers = with_movement(stream.numbers, said) if isinstance(said, Movement) else stream.numbers
        if event.numbers is not None and event.numbers != numbers:
            return False
        self._keep(stream)
        if isinstance(said, OfHold):
            # What became of each hold is not kept, or memory would grow with every one there ever was.
            stream.version, stream.numbers = event.version, numbers
        else:
            evolve(self._book, said)
        stream.head_hash, stream.recorded_at = event.event_hash, event.recorded_at
        return True

    def _keep(self, stream: Stream) -> None:
        if stream.stream not in self._book.streams:
            self._book.streams[stream.stream] = stream
            self._accounts.setdefault(account_of(stream.stream), []).append(stream.stream)

    def _forget(self, name: str) -> None:
        if self._book.streams.pop(name, None) is not None:
            self._accounts[account_of(name)].remove(name)
