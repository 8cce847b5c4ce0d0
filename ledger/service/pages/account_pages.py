"""Accounts: found, and one of them with its balance over time, its entries, its holds, and its statement."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NamedTuple

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse

from ledger.core.book import Balance
from ledger.core.canonical import utc_text
from ledger.core.errors import InvalidCommand, TooManyRequests
from ledger.core.events import Recorded
from ledger.core.money import Money
from ledger.service.pages.charts import Chart, balance_chart
from ledger.service.pages.rendering import HEADERS
from ledger.service.pages.site import READING, Site, credential_of
from ledger.storage.overview import Found, Sort
from ledger.storage.queries import AccountLine, HoldLine, Page

PAGE: Final = 50
ENTRIES: Final = 50
STATEMENT_LINES: Final = 200
HOLDS: Final = 100
_DOWNLOADS: Final = 2

Name = Annotated[str, Query(min_length=1, max_length=193)]
Text = Annotated[str, Query(max_length=193)]
Cursor = Annotated[str | None, Query(max_length=6_000)]
Moment = Annotated[str, Query(max_length=40)]


class Entry(NamedTuple):
    """An event of an account as it is shown: what it moved, and what the account came to."""

    event: Recorded
    amount: Money | None
    balance: Money | None


class Account(NamedTuple):
    """All that the page of an account shows."""

    line: AccountLine
    chart: Chart | None
    points: list[tuple[datetime, Money]]
    versions: int
    complete: bool
    entries: list[Entry]
    next: str | None
    holds: list[HoldLine]


class AccountPages:
    """The pages about accounts; what an auditor reads on them is put on record."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ledger = site.desk.ledger
        self._downloads = asyncio.Semaphore(_DOWNLOADS)
        site.get("/accounts", self.listed, *READING)
        site.get("/account", self.account, *READING)
        site.get("/account/statement", self.statement, *READING)
        site.get("/account/statement.csv", self.download, *READING)

    async def listed(
        self, request: Request, find: Text = "", asset: Text = "", sort: Text = Sort.NAME, after: Cursor = None
    ) -> Response:
        """Accounts whose names begin so, in an order."""

        def asked() -> Found:
            return self._ledger.find_accounts(find, asset=asset or None, sort=sort, after=after, limit=PAGE)

        found = await self._site.desk.read(
            credential_of(request), "accounts", asked, lambda found: [line.account for line in found.lines]
        )
        return self._site.page(
            request, "accounts.html", found=found, find=find, asset=asset, sort=sort, after=after, sorts=Sort
        )

    async def account(
        self, request: Request, name: Name, before: Cursor = None, effective: Moment = "", known: Moment = ""
    ) -> Response:
        """One account."""
        times = moment_of("effective", effective), known_of(known)

        def asked() -> tuple[Account, Balance | None]:
            seen = self._account(name, before)
            return seen, None if times == (None, None) else self._as_of(name, *times)

        credential = credential_of(request)
        seen, then = await self._site.desk.read(credential, "account", asked, lambda _: [name])
        return self._site.page(
            request, "account.html", name=name, seen=seen, before=before, effective=effective, known=known, then=then
        )

    def _account(self, name: str, before: str | None) -> Account:
        line = self._ledger.account(name)
        series = self._ledger.series(name)
        page = self._ledger.history(name, before_version=before or 2**62, limit=ENTRIES)
        return Account(
            line,
            balance_chart(series.terms, series.points) if series.points else None,
            series.points,
            series.versions,
            series.complete,
            [_entry(event, line) for event in page],
            page.next if len(page) == ENTRIES else None,
            self._ledger.holds(name, status="open", limit=HOLDS),
        )


def _entry(event: Recorded, line: AccountLine) -> Entry:
    """The running balance of an account with stripes is known to nobody: an event knows that of its stripe."""
    terms = line.terms
    amount = None if event.amount is None else terms.money(event.amount)
    balance = None
    if event.numbers is not None and terms.streams == 1:
        balance = Balance.from_numbers(line.account, terms, event.numbers, event.version).posted
    return Entry(event, amount, balance)


def moment_of(field: str, text: str) -> datetime | None:
    """
    Read a moment in UTC as a browser's form writes it, or as we do.

    Raises:
        InvalidCommand: It is none.
    """
    if not text:
        return None
    try:
        read = datetime.fromisoformat(text)
        return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidCommand(field, f"{text!r:.60} is not a moment, such as 2026-01-31T12:00") from None


def known_of(text: str) -> datetime | int | None:
    """A moment, or a position of the feed."""
    return int(text) if text.isdecimal() and len(text) < 19 else moment_of("known", text)
