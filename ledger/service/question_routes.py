"""
A route for each question: `GET /v1/balance?account=alice`.

What is asked about is a parameter, and no part of the path: in the name of an account there may be a `/`.
Pages are found by keys: `next` of one page is `after` of the next, and null where there is no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic_core import to_json

from ledger.access import Credential, Scope
from ledger.core.book import Terms
from ledger.core.errors import InvalidCommand
from ledger.core.events import Recorded, account_of
from ledger.core.fields import MOMENT, checked
from ledger.service import shapes
from ledger.service.bodies import json_of
from ledger.service.desk import Desk
from ledger.service.scoped import require
from ledger.storage.asof import KnownAsOf
from ledger.storage.queries import PAGE_MAX, Page, TransactionDetail
from ledger.wire import (
    Json,
    account_json,
    balance_json,
    detail_json,
    hold_json,
    page_json,
    state_json,
    statement_json,
    statement_line_json,
    transaction_json,
    trial_balance_json,
)

STATEMENT_LINES_MAX: Final = 10_000
"""Of one answer; the command line states an account however long it is."""

Reading = Annotated[Credential, Depends(require(Scope.READ, Scope.AUDIT))]

_TIME: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]{5,16}([Zz]|[+-][0-9:]{4,5})"
_KNOWN: Final = f"^([0-9]{{1,15}}|{_TIME})$"
_PLACE: Final = r"^[0-9]{1,15}(\.[0-9]{1,15}){0,255}$"

ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$"
Account = Annotated[str, Query(description="An account's id.", pattern=ID, examples=["alice"])]
Stream = Annotated[
    str,
    Query(
        description="An account, or another stream: `#payment/p-1`, `$ledger`.",
        pattern=r"^(\$ledger|(#[a-z][a-z0-9_]{0,62}/)?[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127})$",
        examples=["alice"],
    ),
]
Limit = Annotated[int, Query(description="Rows at most.", ge=1, le=PAGE_MAX)]
Version = Annotated[int | None, Query(ge=1, le=2**53 - 1)]
Asset = Annotated[str, Query(pattern=r"^[A-Z][A-Z0-9._-]{0,31}$", examples=["USD"])]
Text = Annotated[str, Query(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]
Pairs = Annotated[
    str | None,
    Query(description="Only with these pairs: a JSON object.", max_length=2_048, examples=['{"month": "May"}']),
]
Moment = Annotated[str, Query(pattern=f"^{_TIME}$", max_length=40, examples=["2026-01-01T00:00:00Z"])]
Effective = Annotated[
    str | None, Query(description="Count what is effective by then.", pattern=f"^{_TIME}$", max_length=40)
]
Known = Annotated[
    str | None,
    Query(
        description="Count what was known by then: a time, or a position of the feed.", pattern=_KNOWN, max_length=40
    ),
]
After = Annotated[str | None, Query(description="`next` of the page before.", pattern=ID)]


def router(desk: Desk) -> APIRouter:
    """A route for each question about accounts and transactions."""
    routes = APIRouter(prefix="/v1", tags=["Questions"])
    questions = _Questions(desk)
    for name, shape in (
        ("balance", shapes.BalanceAsOfShape),
        ("account", shapes.AccountShape),
        ("accounts", shapes.AccountsShape),
        ("history", shapes.HistoryShape),
        ("transaction", shapes.DetailShape),
        ("transactions", shapes.TransactionsShape),
        ("holds", shapes.HoldsShape),
        ("state", shapes.StateShape),
        ("asset", shapes.AssetShape),
        ("trial_balance", shapes.TrialBalanceShape),
        ("statement", shapes.StatementShape),
    ):
        path = f"/{name.replace('_', '-')}"
        answered: dict[int | str, dict[str, Any]] = {200: {"model": shape}}
        routes.add_api_route(
            path, getattr(questions, name), methods=["GET"], operation_id=name, responses=answered, response_model=None
        )
    return routes


def json_response(plain: Json, *, version: int | None = None) -> Response:
    """An answer, and as its entity tag the version, where it is of one account."""
    headers = {} if version is None else {"ETag": f'"{version}"'}
    return Response(to_json(plain), headers=headers, media_type="application/json")


def next_of(rows: Sequence[Any], limit: int, key: str) -> str | None:
    """Where the next page begins: at the last row of a full one."""
    return str(rows[-1][key]) if len(rows) == limit else None


class _Questions:
    """The questions, one method each, by the names that they have in `Ledger`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._ledger = desk.ledger

    async def balance(
        self,
        credential: Reading,
        account: Account,
        version: Version = None,
        effective_as_of: Effective = None,
        known_as_of: Known = None,
    ) -> Response:
        """The balance of an account, now, right after one of its versions, or as of two times."""
        known = _known(known_as_of)
        asked = partial(
            self._ledger.balance,
            account,
            version=version,
            effective_as_of=_moment("effective_as_of", effective_as_of),
            known_as_of=known,
        )
        found = await self._desk.read(credential, "balance", asked, lambda balance: [balance.account])
        return json_response({**balance_json(found), "position": found.position}, version=found.version)

    async def statement(
        self, credential: Reading, account: Account, since: Moment, until: Moment, known_as_of: Known = None
    ) -> Response:
        """What was posted to an account in a period, from its opening to its closing balance."""

        def asked() -> Json:
            start, end = checked(MOMENT, "since", since), checked(MOMENT, "until", until)
            made = self._ledger.statement(account, start, end, known_as_of=_known(known_as_of))
            lines = [statement_line_json(line) for line in islice(made, STATEMENT_LINES_MAX + 1)]
            if len(lines) > STATEMENT_LINES_MAX:
                said = f"there are more than {STATEMENT_LINES_MAX} lines: ask for a shorter period"
                raise InvalidCommand("since", said)
            return {**statement_json(made), "lines": lines}

        return json_response(await self._desk.read(credential, "statement", asked, lambda _: [account]))

    async def account(self, credential: Reading, account: Account) -> Response:
        """An account with its terms and its balance."""
        asked = partial(self._ledger.account, account)
        found = await self._desk.read(credential, "account", asked, lambda line: [line.account])
        return json_response(account_json(found), version=found.balance.version)

    async def accounts(
        self,
        credential: Reading,
        asset: Asset | None = None,
        metadata: Pairs = None,
        after: After = None,
        limit: Limit = 100,
    ) -> Response:
        """Accounts in order of their ids, with terms and balances."""
        asked = partial(self._ledger.accounts, asset=asset, metadata=_pairs(metadata), after=after or "", limit=limit)
        found = await self._desk.read(credential, "accounts", asked, lambda lines: [line.account for line in lines])
        plain = [account_json(line) for line in found]
        return json_response({"accounts": plain, "next": next_of(plain, limit, "account")})

    async def history(
        self,
        credential: Reading,
        stream: Stream,
        after: Annotated[str, Query(pattern=_PLACE, description="`next` of the page before; or a version.")] = "0",
        before: Annotated[
            str | None, Query(pattern=_PLACE, description="Backward from this version, newest first.")
        ] = None,
        effective_as_of: Effective = None,
        known_as_of: Known = None,
        limit: Limit = 100,
    ) -> Response:
        """The events of an account, or of another stream, oldest first; or with `before` newest first."""

        def asked() -> tuple[Page, Terms | None]:
            page = self._ledger.history(
                stream,
                after_version=_place(after),
                before_version=_place(before) if before else None,
                limit=limit,
                effective_as_of=_moment("effective_as_of", effective_as_of),
                known_as_of=_known(known_as_of),
            )
            return page, None if stream.startswith(("#", "$")) else self._ledger.account(stream).terms

        page, terms = await self._desk.read(credential, "history", asked, lambda _: [stream])
        following = page.next if len(page) == limit else None
        plain = {"stream": stream, "events": page_json(page, terms), "position": page.position, "next": following}
        return json_response(plain)

    async def transaction(self, credential: Reading, transaction_id: UUID) -> Response:
        """A transaction with all its events."""

        def asked() -> tuple[TransactionDetail, dict[str, Terms]]:
            detail = self._ledger.transaction(transaction_id)
            streams = [event.stream for event in detail.events if event.numbers]
            known = {account: self._ledger.account(account).terms for account in {*map(account_of, streams)}}
            return detail, {stream: known[account_of(stream)] for stream in streams}

        def accounts(found: tuple[TransactionDetail, dict[str, Terms]]) -> list[str]:
            return accounts_of(found[0].events)

        detail, terms = await self._desk.read(credential, "transaction", asked, accounts)
        return json_response(detail_json(detail, terms))

    async def transactions(
        self,
        credential: Reading,
        reference: Text | None = None,
        metadata: Pairs = None,
        after: UUID | None = None,
        limit: Limit = 100,
    ) -> Response:
        """Transactions with a reference, with metadata, or with both, in order of their ids."""
        pairs = _pairs(metadata)
        asked = partial(self._ledger.transactions, reference=reference, metadata=pairs, after=after, limit=limit)
        found = await self._desk.read(
            credential, "transactions", asked, lambda page: [account_of(each) for one in page for each in one.streams]
        )
        plain = [transaction_json(each) for each in found]
        return json_response({"transactions": plain, "next": next_of(plain, limit, "transaction_id")})

    async def holds(
        self,
        credential: Reading,
        account: Account,
        status: Literal["open", "captured", "released", "expired"] | None = None,
        after: UUID | None = None,
        limit: Limit = 100,
    ) -> Response:
        """The holds on an account, in order of their ids."""
        asked = partial(self._ledger.holds, account, status=status, after=after, limit=limit)
        found = await self._desk.read(credential, "holds", asked, lambda _: [account])
        plain = [hold_json(line) for line in found]
        return json_response({"holds": plain, "next": next_of(plain, limit, "hold")})

    async def state(
        self,
        _credential: Reading,
        machine: Annotated[str, Query(pattern=r"^[a-z][a-z0-9_]{0,62}$", examples=["payment"])],
        subject: Annotated[str, Query(pattern=ID, examples=["p-1"])],
    ) -> Response:
        """Where something of the caller's own stands, and what may happen to it next."""
        return json_response(state_json(await self._desk.ask(self._ledger.state, machine, subject)))

    async def asset(self, _credential: Reading, asset: Asset) -> Response:
        """An asset, and its decimal places."""
        return json_response({"asset": asset, "scale": await self._desk.ask(self._ledger.scale, asset)})

    async def trial_balance(
        self, _credential: Reading, effective_as_of: Effective = None, known_as_of: Known = None
    ) -> Response:
        """Debits and credits of all accounts, by asset and type; now, or as of two times."""
        effective = _moment("effective_as_of", effective_as_of)
        asked = partial(self._ledger.trial_balance, effective_as_of=effective, known_as_of=_known(known_as_of))
        return json_response(trial_balance_json(await self._desk.audit(asked)))


def _pairs(text: str | None) -> Any:
    return None if text is None else json_of(text.encode(errors="surrogatepass"))


def _moment(name: str, text: str | None) -> datetime | None:
    return None if text is None else checked(MOMENT, name, text)


def _known(text: str | None) -> KnownAsOf:
    """A position of the feed, or a time."""
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    return checked(MOMENT, "known_as_of", text)


def _place(text: str) -> int | str:
    """A version, or where a page of an account with stripes says that the next one begins."""
    return int(text) if text.isdecimal() else text


def accounts_of(events: Sequence[Recorded]) -> list[str]:
    """The accounts, and other streams, that these events are of."""
    return [account_of(event.stream) for event in events]
