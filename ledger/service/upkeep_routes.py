"""What auditors and administrators ask for: verification, proofs, rebuilding, keys, and who has read what."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from ledger.access import ACTOR_CHARACTERS_MAX, EXPIRES_DAYS, EXPIRES_DAYS_MAX, Credential, Scope
from ledger.audit.report import Report
from ledger.core.canonical import utc_text
from ledger.core.events import account_of
from ledger.core.fields import MOMENT, checked
from ledger.service import shapes
from ledger.service.bodies import JSON, IdempotencyKey, body_of, check_content, key_of, model_of
from ledger.service.desk import Desk
from ledger.service.message_routes import Administering
from ledger.service.question_routes import ID, Account, Limit, json_response, next_of
from ledger.service.scoped import require
from ledger.wire import api_key_json, read_json, report_json

Auditing = Annotated[Credential, Depends(require(Scope.AUDIT))]
_STREAMS_MAX: Final = 1_000
_SCOPE: Final = f"^({'|'.join(Scope)})$"
_KEY_ID: Final = r"^[0-9a-z]{16}$"


class Chosen(BaseModel):
    """Accounts, or other streams; none is all of them."""

    model_config = ConfigDict(extra="forbid")

    accounts: Annotated[list[Annotated[str, Field(pattern=ID)]], Field(max_length=_STREAMS_MAX)] = []


class Wanted(BaseModel):
    """A key that is to be made."""

    model_config = ConfigDict(extra="forbid")

    actor: Annotated[str, Field(min_length=1, max_length=ACTOR_CHARACTERS_MAX, pattern=r"^[^\x00]*$")]
    scopes: Annotated[list[Annotated[str, Field(pattern=_SCOPE)]], Field(min_length=1, max_length=len(Scope))]
    days: Annotated[int, Field(strict=True, ge=1, le=EXPIRES_DAYS_MAX)] = EXPIRES_DAYS


class Revoked(BaseModel):
    """A key that is to be revoked."""

    model_config = ConfigDict(extra="forbid")

    key: Annotated[str, Field(pattern=_KEY_ID)]


def router(desk: Desk) -> APIRouter:
    """The routes of auditors and administrators."""
    routes = APIRouter(prefix="/v1")
    _add_audits(routes, desk)
    _add_keys(routes, desk)
    return routes


def _add_audits(routes: APIRouter, desk: Desk) -> None:
    ledger, limits = desk.ledger, desk.settings.limits

    @routes.post("/verify", operation_id="verify", tags=["Audit"], **answered(shapes.ReportShape, Chosen))
    async def verify(request: Request, credential: Auditing) -> Response:
        """Re-derive accounts, or everything, from the log, and compare; changes nothing."""
        check_content(request.headers, JSON)
        asked = model_of(Chosen, await body_of(request, limits.body_bytes, limits.read_seconds))

        def verified() -> Any:
            report = ledger.verify(*asked.accounts)
            desk.keys.record_reads(credential, "verify", {*asked.accounts, *found_in(report)})
            return report

        return json_response(report_json(await desk.audit(verified)))

    @routes.post("/rebuild", operation_id="rebuild", tags=["Audit"], **answered(shapes.RebuiltShape, Chosen))
    async def rebuild(request: Request, _credential: Administering) -> Response:
        """
        Make the projections of accounts, or of all, anew from the log; the streams that differed.

        To repeat it changes nothing.
        """
        check_content(request.headers, JSON)
        asked = model_of(Chosen, await body_of(request, limits.body_bytes, limits.read_seconds))
        return json_response({"rebuilt": await desk.audit(ledger.rebuild, *asked.accounts)})

    @routes.get("/reads", operation_id="reads", tags=["Audit"], **answered(shapes.ReadsShape))
    async def reads(
        _credential: Annotated[Credential, Depends(require(Scope.AUDIT, Scope.ADMIN))],
        account: Account,
        after: Annotated[str | None, Query(description="`next` of the page before: a time.", max_length=40)] = None,
        limit: Limit = 100,
    ) -> Response:
        """Which auditors have read an account, and when."""
        since = None if after is None else checked(MOMENT, "after", after)
        found = await desk.ask(partial(desk.keys.reads, account, since=since, limit=limit))
        plain = [read_json(each) for each in found]
        return json_response({"reads": plain, "next": utc_text(found[-1].recorded_at) if len(found) == limit else None})


def _add_keys(routes: APIRouter, desk: Desk) -> None:
    keys, limits = desk.keys, desk.settings.limits

    @routes.get("/keys", operation_id="keys", tags=["Access"], **answered(shapes.KeysShape))
    async def listed(
        _credential: Administering,
        after: Annotated[str | None, Query(pattern=_KEY_ID)] = None,
        limit: Limit = 100,
    ) -> Response:
        """The keys, those that were revoked too; never a secret."""
        found = await desk.ask(partial(keys.page, after=after or "", limit=limit))
        plain = [api_key_json(each) for each in found]
        return json_response({"keys": plain, "next": next_of(plain, limit, "key")})

    @routes.post(
        "/keys/create", operation_id="create_key", tags=["Access"], **answered(shapes.NewKeyShape, Wanted, 201)
    )
    async def create(request: Request, credential: Administering, _key: IdempotencyKey) -> Response:
        """
        Make a key; its secret is in this answer, and nowhere else.

        A repetition with the same `Idempotency-Key` makes no other: it is 409, with the id of the key.
        """
        once = key_of(request.headers)
        check_content(request.headers, JSON)
        asked = model_of(Wanted, await body_of(request, limits.body_bytes, limits.read_seconds))
        expires_in = timedelta(days=asked.days)
        made = await desk.append(
            lambda: keys.create(
                asked.actor, asked.scopes, created_by=credential.actor, expires_in=expires_in, idempotency_key=once
            )
        )
        plain = {**api_key_json(made.key), "secret": made.secret}
        return Response(to_json(plain), 201, media_type=JSON)

    @routes.post("/keys/revoke", operation_id="revoke_key", tags=["Access"], **answered(shapes.KeyShape, Revoked))
    async def revoke(request: Request, credential: Administering) -> Response:
        """Revoke a key, on record; who has it is refused within seconds.  To repeat it changes nothing."""
        check_content(request.headers, JSON)
        asked = model_of(Revoked, await body_of(request, limits.body_bytes, limits.read_seconds))
        return json_response(api_key_json(await desk.append(lambda: keys.revoke(asked.key, actor=credential.actor))))


def found_in(report: Report) -> set[str]:
    """The accounts, and other streams, that the findings of a verification are about."""
    return {account_of(finding.stream) for finding in report.findings if finding.stream}


def answered(shape: type[BaseModel], asked: type[BaseModel] | None = None, status: int = 200) -> dict[str, Any]:
    """What the document says of a route: its answer, and its body."""
    said: dict[str, Any] = {"response_model": None, "status_code": status, "responses": {status: {"model": shape}}}
    if asked is not None:
        content = {JSON: {"schema": asked.model_json_schema()}}
        said["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return said
