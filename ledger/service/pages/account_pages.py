"""Accounts: found, and one of them with its balance over time, its entries, its holds, and its statement."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import time
from collections.abc import AsyncIterator, Generator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Final, NamedTuple

from fastapi import Query, Request, Response
from starlette.concurrency import iterate_in_threadpool

from ledger.audit.reports.form import harmless
from ledger.core.book import Balance
from ledger.core.canonical import utc_text
from ledger.core.errors import InvalidCommand, TooManyRequests
from ledger.core.events import Recorded
from ledger.core.fields import INTEGER_MAX
from ledger.core.money import Money
from ledger.service.bounds import Closing
from ledger.service.pages.charts import Chart, balance_chart
from ledger.service.pages.rendering import HEADERS
from ledger.service.pages.site import READING, Site, credential_of
from ledger.storage.asof import KnownAsOf
from ledger.storage.overview import Found, Sort
from ledger.storage.queries import AccountLine, HoldLine
from ledger.storage.statement import Statement, StatementLine

PAGE: Final = 50
ENTRIES: Final = 50
STATEMENT_LINES: Final = 200
HOLDS: Final = 100
_DOWNLOADS: Final = 2
_LINES_TOGETHER: Final = 500
_DAYS: Final = 31
_DAY: Final = 86_400
_POSITION_DIGITS: Final = 18
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")

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
        page = self._ledger.history(name, before_version=before or INTEGER_MAX, limit=ENTRIES)
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

    def _as_of(self, name: str, effective: datetime | None, known: KnownAsOf) -> Balance:
        return self._ledger.balance(name, effective_as_of=effective, known_as_of=known)

    async def statement(
        self, request: Request, name: Name, since: Moment = "", until: Moment = "", known: Moment = ""
    ) -> Response:
        """What was posted in a period; so many lines of it as one can look through."""
        first, end = _period(since, until)

        def asked() -> tuple[Statement, list[StatementLine]]:
            made = self._ledger.statement(name, first, end, known_as_of=known_of(known))
            with closing(iter(made)) as lines:  # type: ignore[type-var]  # It is a generator.
                return made, list(islice(lines, STATEMENT_LINES + 1))

        credential = credential_of(request)
        made, lines = await self._site.desk.read(credential, "statement", asked, lambda _: [name])
        return self._site.page(
            request,
            "statement.html",
            name=name,
            made=made,
            lines=lines[:STATEMENT_LINES],
            more=len(lines) > STATEMENT_LINES,
            since=_as_field(first),
            until=_as_field(end),
            known=known,
        )

    async def download(
        self, request: Request, name: Name, since: Moment = "", until: Moment = "", known: Moment = ""
    ) -> Response:
        """All lines of a statement as a file, as they are read: neither side holds them all."""
        first, end = _period(since, until)
        if self._downloads.locked():
            raise TooManyRequests(f"{_DOWNLOADS} downloads at once", 10)

        def asked() -> Statement:
            return self._ledger.statement(name, first, end, known_as_of=known_of(known))

        made = await self._site.desk.read(credential_of(request), "statement", asked, lambda _: [name])
        named = re.sub(r"[^A-Za-z0-9._-]", "_", f"{name}_{first:%Y-%m-%d}_{end:%Y-%m-%d}.csv")
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{named}"'}
        return Closing(self._sent(made), headers=headers, media_type="text/csv; charset=utf-8")

    async def _sent(self, made: Statement) -> AsyncIterator[str]:
        async with self._downloads:
            with closing(_csv(made)) as parts:
                async for part in iterate_in_threadpool(parts):
                    yield part


def _entry(event: Recorded, line: AccountLine) -> Entry:
    """The running balance of an account with stripes is known to nobody: an event knows that of its stripe."""
    terms = line.terms
    amount = None if event.amount is None else terms.money(event.amount)
    balance = None
    if event.numbers is not None and terms.streams == 1:
        balance = Balance.from_numbers(line.account, terms, event.numbers, event.version).posted
    return Entry(event, amount, balance)


def _period(since: str, until: str) -> tuple[datetime, datetime]:
    """What is asked for, or the last days up to and with today."""
    today = datetime.fromtimestamp(time.time() // _DAY * _DAY, UTC)
    end = moment_of("until", until) or today + timedelta(days=1)
    return moment_of("since", since) or end - timedelta(days=_DAYS), end


def _as_field(moment: datetime) -> str:
    """As a field for a moment has it."""
    return utc_text(moment)[:16]


def _csv(made: Statement) -> Generator[str]:
    """The lines of a statement, a few at a time; amounts are texts without an asset, which has its own column."""
    yield _row("effective_at", "recorded_at", "transaction_id", "reference", "asset", "amount", "balance")
    yield _row(
        utc_text(made.since), "", "", "opening balance", made.opening.posted.asset, "", _number(made.opening.posted)
    )
    parts = []
    for line in made:
        event = line.event
        moments = utc_text(event.effective_at), utc_text(event.recorded_at)
        asset = line.amount.asset
        parts.append(
            _row(
                *moments, event.transaction_id, line.reference or "", asset, _number(line.amount), _number(line.balance)
            )
        )
        if len(parts) == _LINES_TOGETHER:
            yield "".join(parts)
            parts.clear()
    parts.append(
        _row(
            utc_text(made.until), "", "", "closing balance", made.closing.posted.asset, "", _number(made.closing.posted)
        )
    )
    yield "".join(parts)


def _number(money: Money) -> str:
    return str(money).partition(" ")[0]


def _row(*cells: str) -> str:
    """A line of a file of values; none of them is what a spreadsheet would carry out."""
    line = io.StringIO()
    csv.writer(line).writerow([cell if _NUMBER.fullmatch(cell) else harmless(cell) for cell in cells])
    return line.getvalue()


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
    return int(text) if text.isdecimal() and len(text) <= _POSITION_DIGITS else moment_of("known", text)
