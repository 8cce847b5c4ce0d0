"""What a person asks of the whole ledger: the part of `Ledger` that its page is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ledger.core.errors import InvalidCommand
from ledger.core.fields import TEXT, checked
from ledger.operations import Answer
from ledger.storage import overview
from ledger.storage.database import Connection
from ledger.storage.overview import Anomalies, Found, Overview, Series, Sort


class Overviews:
    """The methods of `Ledger` about all of it at once; each costs no more than its bounds, however large it is."""

    _ask: Callable[[Callable[[Connection], object]], object]

    def overview(self) -> Overview:
        """How far the feed is, what waits for it, and what was mended."""
        return self._told(overview.overview)

    def sources(self) -> list[str]:
        """The sources from which messages came, in order of their names; at most 100."""
        return self._told(overview.sources)

    def open_letters(self) -> dict[str, int]:
        """Source → how many dead letters wait for a decision, counted to 10,000."""
        return self._told(lambda connection: overview.open_letters(connection, overview.sources(connection)))

    def anomalies(self, *, days: int = 30) -> Anomalies:
        """What did not go as it should on each of the last days: dead letters, what streams went without, repairs."""
        return self._told(partial(overview.anomalies, days=days))

    def find_accounts(
        self,
        beginning: str = "",
        *,
        asset: str | None = None,
        sort: Sort | str = Sort.NAME,
        after: str | None = None,
        limit: int = 50,
    ) -> Found:
        """
        Accounts whose names begin so, in the order of their names (`name`, `name_down`) or balances (`balance`).

        A page of at most `limit`; its `next` is the `after` of the next one.

        Raises:
            InvalidCommand: By balance, and no asset is named or it has more than 100,000 accounts; there is no such
                order, or no such page.
        """
        for name, text in (("beginning", beginning), ("asset", asset or ""), ("after", after or "")):
            checked(TEXT, name, text) if text else None
        if sort not in set(Sort):
            raise InvalidCommand("sort", f"{sort!r:.80} is none of {', '.join(Sort)}")
        asked = (beginning, asset, Sort(sort), after, limit)
        return self._told(lambda connection: overview.find_accounts(connection, *asked))

    def series(self, account: str) -> Series:
        """
        The balance of an account over time, at 200 points at most, however long its life.

        Raises:
            UnknownAccount: There is no such account.
        """
        name = checked(TEXT, "account", account)
        return self._told(partial(overview.series, name=name))

    def _told(self, question: Callable[[Connection], Answer]) -> Answer:
        answer: Answer = self._ask(question)  # type: ignore[assignment]  # What it answers is what was asked for.
        return answer
