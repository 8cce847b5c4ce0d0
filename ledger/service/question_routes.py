"""
A route for each question: `GET /v1/balance?account=alice`.

What is asked about is a parameter, and no part of the path: in the name of an account there may be a `/`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic_core import to_json

from ledger.access import Credential, Scope
from ledger.service.desk import Desk
from ledger.service.scoped import require
from ledger.wire import Json, balance_json

Reading = Annotated[Credential, Depends(require(Scope.READ, Scope.AUDIT))]

Account = Annotated[str, Query(min_length=1, max_length=193)]


def router(desk: Desk) -> APIRouter:
    """A route for each question about accounts and transactions."""
    routes = APIRouter(prefix="/v1", tags=["Questions"])
    ledger = desk.ledger

    @routes.get("/balance", operation_id="balance")
    async def balance(
        credential: Reading, account: Account, version: Annotated[int | None, Query(ge=0)] = None
    ) -> Response:
        """The balance of an account, now or right after one of its versions."""
        asked = partial(ledger.balance, account, version=version)
        found = await desk.read(credential, "balance", asked, lambda balance: [balance.account])
        return json_response(balance_json(found), version=found.version)

    return routes


def json_response(plain: Json, *, version: int | None = None) -> Response:
    """An answer, and as its entity tag the version, where it is of one account."""
    headers = {} if version is None else {"ETag": f'"{version}"'}
    return Response(to_json(plain), headers=headers, media_type="application/json")
