"""
Reports over HTTP: which there are, and one of them with its rows and the header that says what they come to.

As one JSON object (`POST`), or as CSV or lines of JSON (`GET`), with what a header says of them in the response's own.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from io import BytesIO, StringIO
from typing import Annotated, Any, Final, Literal, NamedTuple

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json

from ledger.access import Credential
from ledger.audit.export import digest_header
from ledger.audit.reports import catalogue
from ledger.audit.reports.form import Header
from ledger.core.errors import RequestTooLarge
from ledger.core.events import account_of
from ledger.core.fields import INTEGER_MAX
from ledger.service import shapes
from ledger.service.bodies import JSON, JSON_LINES, body_of, check_content, json_of, model_of
from ledger.service.desk import Desk
from ledger.service.question_routes import json_response
from ledger.service.upkeep_routes import Auditing, answered
from ledger.wire import definition_json

_PARAMETERS_MAX: Final = 20
_NAME: Final = r"^[a-z][a-z-]{0,62}$"


class Wanted(BaseModel):
    """A report, what it asks, and the position of the feed that it is pinned to: the last one, unless it is said."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=_NAME, examples=["trial-balance"])]
    parameters: Annotated[dict[str, str | int | bool], Field(max_length=_PARAMETERS_MAX)] = {}
    position: Annotated[int | None, Field(strict=True, ge=0, le=INTEGER_MAX)] = None


class _Made(NamedTuple):
    """A report as bytes, and its header."""

    content: bytes
    header: Header


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
        made = await desk.audit(_made, desk, credential, asked, "json")
        return Response(made.content, media_type=JSON)

    @routes.get("/report", operation_id="report_file", response_class=Response, responses=_ANSWERED)
    async def report_file(
        credential: Auditing,
        name: Annotated[str, Query(pattern=_NAME, examples=["trial-balance"])],
        format: Annotated[Literal["csv", "jsonl"], Query(description="jsonl: the very bytes that are hashed.")],
        parameters: Annotated[
            str | None,
            Query(description="What it asks: a JSON object.", max_length=2_048, examples=['{"account": "alice"}']),
        ] = None,
        position: Annotated[int | None, Query(ge=0, le=INTEGER_MAX)] = None,
    ) -> Response:
        """A report, pinned, as a file: the same bytes for the same position, whatever comes later."""
        given = {"name": name, "parameters": json_of((parameters or "{}").encode(errors="surrogatepass"))}
        asked = model_of(Wanted, to_json(given | {"position": position}))
        made = await desk.audit(_made, desk, credential, asked, format)
        return Response(made.content, headers=_told(made, format), media_type=_MEDIA_TYPES[format])

    return routes


def _made(desk: Desk, credential: Credential, asked: Wanted, form: str) -> _Made:
    """The report; the accounts in it are on record before it is given."""
    # Before they are named to the ledger, which has names of its own.
    catalogue.asked(catalogue.definition(asked.name), asked.parameters)
    parameters: dict[str, Any] = dict(asked.parameters)
    made = desk.ledger.report(asked.name, position=asked.position, **parameters)
    written = _Bounded(desk.settings.limits.bulk_bytes)
    header = made.write(written, form)
    named = {str(each) for name, each in asked.parameters.items() if name == "account"}
    for row in _rows(written.getvalue(), form):
        named |= {account_of(str(row[name])) for name in ("account", "stream") if row.get(name)}
    desk.keys.record_reads(credential, f"report {asked.name}", named)
    return _Made(written.getvalue(), header)


def _rows(content: bytes, form: str) -> Iterable[Mapping[str, Any]]:
    """The rows as they were written: what is on record is what is given."""
    if form == "csv":
        return csv.DictReader(StringIO(content.decode(), newline=""))
    if form == "jsonl":
        return map(from_json, content.splitlines())
    rows: list[Mapping[str, Any]] = from_json(content)["rows"]
    return rows


def _told(made: _Made, form: str) -> dict[str, str]:
    """What the header says that is needed to compare the file, and to ask for the same one again."""
    header = made.header
    digest = header.csv_sha256 if form == "csv" else header.sha256
    assert digest is not None
    told = {
        "Content-Digest": digest_header(digest),
        "Content-Disposition": f'attachment; filename="{header.report}.{form}"',
        "Ledger-Id": header.ledger_id,
        "Ledger-Rows": str(header.rows),
        "Ledger-Findings": str(header.findings),
    }
    pins = {"Ledger-Position": header.position, "Ledger-Trail": header.trail}
    return told | {name: str(pin) for name, pin in pins.items() if pin is not None}


_MEDIA_TYPES: Final = {"csv": "text/csv", "jsonl": JSON_LINES}

_TEXT: Final = {"schema": {"type": "string"}}
_COUNT: Final = {"schema": {"type": "string", "pattern": "^[0-9]{1,19}$"}, "example": "7"}

_ANSWERED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The rows.",
        "headers": {
            "Content-Digest": {"description": "The SHA-256 of the file (RFC 9530).", **_TEXT},
            "Content-Disposition": _TEXT,
            "Ledger-Id": _TEXT,
            "Ledger-Rows": _COUNT,
            "Ledger-Findings": {"description": "Rows that are bad news.", **_COUNT},
            "Ledger-Position": {"description": "Of the feed, where it depends on it.", **_COUNT},
            "Ledger-Trail": {"description": "The number of the trail, where it depends on it.", **_COUNT},
        },
        "content": {
            "text/csv": {**_TEXT, "example": "asset,account_type,debits,credits\r\n"},
            JSON_LINES: {**_TEXT, "example": '{"asset":"USD","debits":"5.00"}\n'},
        },
    }
}
