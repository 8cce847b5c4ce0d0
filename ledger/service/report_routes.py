"""Reports over HTTP: which there are, and one of them with its rows and the header that says what they come to."""

from __future__ import annotations

from io import BytesIO
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from ledger.access import Credential
from ledger.audit.reports import catalogue
from ledger.core.errors import RequestTooLarge
from ledger.core.events import account_of
from ledger.core.fields import INTEGER_MAX
from ledger.service import shapes
from ledger.service.bodies import JSON, body_of, check_content, model_of
from ledger.service.desk import Desk
from ledger.service.question_routes import json_response
from ledger.service.upkeep_routes import Auditing, answered
from ledger.wire import definition_json

_PARAMETERS_MAX: Final = 20


class Wanted(BaseModel):
    """A report, what it asks, and the position of the feed that it is pinned to: the last one, unless it is said."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,62}$", examples=["trial-balance"])]
    parameters: Annotated[dict[str, str | int | bool], Field(max_length=_PARAMETERS_MAX)] = {}
    position: Annotated[int | None, Field(strict=True, ge=0, le=INTEGER_MAX)] = None


class _Bounded(BytesIO):
    """Takes so many bytes, and refuses the next one."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__()
        self._bytes_max = bytes_max

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._bytes_max:
            # On the command line there is no bound.
            raise RequestTooLarge("The report", self._bytes_max)
        return super().write(data)


def router(desk: Desk) -> APIRouter:
    """The routes of reports."""
    routes = APIRouter(prefix="/v1", tags=["Audit"])
    limits = desk.settings.limits

    @routes.get("/reports", operation_id="reports", **answered(shapes.DefinitionsShape))
    async def reports(_credential: Auditing) -> Response:
        """All reports: what each is about, what it asks, and its columns."""
        return json_response({"reports": [definition_json(each) for each in desk.ledger.reports]})

    @routes.post("/report", operation_id="report", **answered(shapes.PinnedReportShape, Wanted))
    async def report(request: Request, credential: Auditing) -> Response:
        """A report, pinned: the same bytes for the same position, whatever comes later."""
        check_content(request.headers, JSON)
        asked = model_of(Wanted, await body_of(request, limits.body_bytes, limits.read_seconds))
        return Response(await desk.audit(_made, desk, credential, asked), media_type=JSON)

    return routes


def _made(desk: Desk, credential: Credential, asked: Wanted) -> bytes:
    """The report as JSON; the accounts in it are on record before it is given."""
    # Before they are named to the ledger, which has names of its own.
    catalogue.asked(catalogue.definition(asked.name), asked.parameters)
    parameters: dict[str, Any] = dict(asked.parameters)
    made = desk.ledger.report(asked.name, position=asked.position, **parameters)
    written = _Bounded(desk.settings.limits.bulk_bytes)
    made.write(written, "json")
    named = {str(each) for name, each in asked.parameters.items() if name == "account"}
    for row in from_json(written.getvalue())["rows"]:
        named |= {account_of(str(row[name])) for name in ("account", "stream") if row.get(name) is not None}
    desk.keys.record_reads(credential, f"report {asked.name}", named)
    return written.getvalue()
