"""A transaction, the proof that an event of it is in the log, and what a text that somebody has may be the name of."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple
from uuid import UUID

from fastapi import Query, Request, Response

from ledger.core.book import Terms
from ledger.core.errors import InvalidCommand, ProofFailed, UnknownAccount, UnknownTransaction
from ledger.core.events import LEDGER_STREAM, Recorded, Transaction, account_of
from ledger.core.money import Money
from ledger.service.pages.rendering import HEADERS, link
from ledger.service.pages.site import READING, Site, credential_of, go_to
from ledger.storage.queries import TransactionDetail

FOUND_MAX: Final = 100

Id = Annotated[str, Query(min_length=1, max_length=64)]
Stream = Annotated[str, Query(min_length=1, max_length=300)]
Version = Annotated[int, Query(ge=1, le=2**53)]
Wanted = Annotated[str, Query(max_length=300)]


class Entry(NamedTuple):
    """An event of a transaction as it is shown; `account` is None where it is of another stream."""

    event: Recorded
    account: str | None
    amount: Money | None


class Proved(NamedTuple):
    """An event and the proof that it is in the log; `problem` says why there is none."""

    event: Recorded
    proof: str | None
    problem: str | None


class TransactionPages:
    """The pages about transactions; what an auditor reads on them is put on record."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ledger = site.desk.ledger
        site.get("/transaction", self.transaction, *READING)
        site.get("/proof", self.proof, *READING)
        site.get("/find", self.find, *READING)

    async def transaction(self, request: Request, id: Id) -> Response:
        """What one transaction was, what it made happen, and what came of it later."""

        def asked() -> tuple[TransactionDetail, list[Entry]]:
            detail = self._ledger.transaction(id)
            terms = {name: self._ledger.account(name).terms for name in sorted(_accounts(detail.events))}
            return detail, [_entry(event, terms) for event in detail.events]

        credential = credential_of(request)
        detail, entries = await self._site.desk.read(
            credential, "transaction", asked, lambda found: sorted(_accounts(found[0].events))
        )
        return self._site.page(
            request, "transaction.html", detail=detail, transaction=detail.transaction, entries=entries
        )

    async def proof(self, request: Request, stream: Stream, version: Version, file: bool = False) -> Response:
        """The proof of one event, for the browser to verify; or as a file."""

        def asked() -> Proved:
            events = self._ledger.stream(stream, version - 1, 1)
            if not events:
                raise InvalidCommand("version", f"there is no version {version} of {stream}")
            try:
                made = self._ledger.prove(stream, version)
            except (InvalidCommand, ProofFailed) as error:
                return Proved(events[0], None, str(error))
            return Proved(events[0], made.to_bytes().decode(), None)

        credential = credential_of(request)
        proved = await self._site.desk.read(credential, "proof", asked, lambda found: sorted(_accounts([found.event])))
        if file and proved.proof is not None:
            headers = {**HEADERS, "Content-Disposition": 'attachment; filename="event.tlog-proof"'}
            return Response(proved.proof, headers=headers, media_type="text/plain; charset=utf-8")
        return self._site.page(request, "proof.html", proved=proved, event=proved.event)

    async def find(self, request: Request, what: Wanted = "") -> Response:
        """A transaction by its id, an account by its name, or transactions by their reference."""
        text = what.strip()

        def asked() -> str | list[Transaction]:
            if text and (place := self._place(text)):
                return place
            return self._ledger.transactions(reference=text, limit=FOUND_MAX) if text else []

        def accounts(found: str | list[Transaction]) -> list[str]:
            # The page that one is sent to puts its own on record.
            return [] if isinstance(found, str) else [account_of(each) for one in found for each in one.streams]

        found = await self._site.desk.read(credential_of(request), "find", asked, accounts)
        if isinstance(found, str):
            return go_to(found)
        return self._site.page(request, "found.html", what=text, found=found, more=len(found) == FOUND_MAX)

    def _place(self, text: str) -> str | None:
        try:
            return link("/transaction", id=self._ledger.transaction(UUID(text)).transaction.transaction_id)
        except (ValueError, UnknownTransaction):
            pass
        try:
            return link("/account", name=self._ledger.account(text).account)
        except (UnknownAccount, InvalidCommand):
            return None


def _accounts(events: list[Recorded]) -> set[str]:
    """The accounts that these events are of."""
    return {account_of(event.stream) for event in events if event.stream[0] not in (LEDGER_STREAM[0], "#")}


def _entry(event: Recorded, terms: dict[str, Terms]) -> Entry:
    account = account_of(event.stream)
    known = terms.get(account)
    amount = None if known is None or event.amount is None else known.money(event.amount)
    return Entry(event, None if known is None else account, amount)
