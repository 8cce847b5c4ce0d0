"""
Which stripe of a hot account is written to: drawn by lot, so that two writers hardly ever meet.

What is known of an account is what this process last read of it.  It may be out of date, and does no harm: streams
stay, and whatever is written to one of them counts.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Final

from ledger.core.book import Stream
from ledger.core.events import stripe_of

KNOWN_MAX: Final = 10_000
"""Accounts with stripes that are remembered; of any other the first stream is written to, until it is read again."""


class Stripes:
    """Account → among how many stripes its transactions choose; of accounts with more than one."""

    def __init__(self) -> None:
        # Never changed, only replaced: threads read it while another one learns.
        self._known: Mapping[str, int] = MappingProxyType({})

    def learn(self, streams: Iterable[Stream]) -> None:
        """Remember what was read of accounts with stripes."""
        known = self._known
        for stream in streams:
            terms = stream.terms
            if terms is not None and terms.streams > 1 and known.get(stream.account, 1) != terms.stripes:
                known = {**known, stream.account: terms.stripes}
        if known is not self._known:
            newest = list(known.items())[-KNOWN_MAX:]
            self._known = MappingProxyType({account: count for account, count in newest if count > 1})

    def forget(self, account: str) -> None:
        """What was known of an account turned out to be wrong."""
        self._known = MappingProxyType({name: count for name, count in self._known.items() if name != account})

    def draw(self, accounts: AbstractSet[str]) -> dict[str, str]:
        """A stripe of each of these accounts that is known to have some."""
        known = self._known
        return {
            account: stripe_of(account, random.randrange(known[account]))  # noqa: S311  (no secret)
            for account in known.keys() & accounts
        }


class Draw:
    """The stripes that one batch, or one guest, writes to: each is drawn once, and locked with everything else."""

    def __init__(self, stripes: Stripes) -> None:
        self._stripes = stripes
        self.chosen: dict[str, str] = {}
        """Account → its stream; of accounts that were known to have stripes."""

    def choose(self, accounts: AbstractSet[str]) -> None:
        """Draw a stripe of each account that has none yet."""
        drawn = self._stripes.draw(accounts)
        if drawn:
            self.chosen = {**drawn, **self.chosen}

    def streams(self, accounts: Collection[str]) -> set[str]:
        """The streams that stand for these accounts."""
        return {self.chosen.get(account, account) for account in accounts} if self.chosen else set(accounts)

    def learn(self, streams: Iterable[Stream]) -> None:
        """Remember for the next draw what was read now."""
        self._stripes.learn(streams)

    def give_up(self, account: str) -> None:
        """The stripe is not there, as when the transaction that made it came to nothing: the first one always is."""
        self._stripes.forget(account)
        self.chosen = {**self.chosen, account: account}
