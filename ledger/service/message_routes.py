"""
Messages over HTTP: CloudEvents in each of their modes, into the inbox of their source; and its dead letters.

`POST /v1/messages` takes one event as headers and data (binary), one as JSON (structured), or a list (batched), as the
HTTP protocol binding of CloudEvents 1.0.2 has them.  A message is known again by its source and id: it needs no key.
What it asks for is done in the name of the credential that it was sent with, which is part of what it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from inspect import cleandoc
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ledger.access import Credential, Scope
from ledger.core.errors import InvalidCommand, UndecodableMessage
from ledger.inbox import Inbox
from ledger.intake import Delivery, Intake, totals
from ledger.order.cursor import Status, Tally
from ledger.order.decoders import Decoded, cloudevents
from ledger.order.message import EXTENSIONS_MAX, SEQUENCE_MAX, Message
from ledger.receiving import COMMAND_PREFIX, CORRELATION, Received
from ledger.service import shapes
from ledger.service.bodies import JSON, body_of, check_content, model_of, refuse_if_match
from ledger.service.command_routes import Appending
from ledger.service.desk import Desk
from ledger.service.occasion import correlation_id
from ledger.service.question_routes import ID, Limit, Text, json_response, next_of
from ledger.service.scoped import require
from ledger.storage.dead_letters import DeadLetter
from ledger.wire import Json, gap_json, inbox_stats_json, letter_json

Administering = Annotated[Credential, Depends(require(Scope.ADMIN))]
Watching = Annotated[Credential, Depends(require(Scope.READ, Scope.AUDIT, Scope.ADMIN))]
Source = Annotated[str, Query(min_length=1, max_length=256, description="Whose messages.", examples=["bank"])]

STRUCTURED: Final = "application/cloudevents+json"
_ACCOUNTS: Final = ("account", "debit", "credit", "against")
"""What commands call an account."""

_ID: Final = re.compile(ID)

GAPS_MAX: Final = 100
"""Of one answer: of each, the ranges that it misses are looked up."""

BATCHED: Final = "application/cloudevents-batch+json"


class Verdict(BaseModel):
    """What is decided about a dead letter, and why; the credential says by whom."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[str, Field(min_length=1, max_length=256)]
    dead_letter_id: UUID
    note: Annotated[str, Field(min_length=1, max_length=1_000, pattern=r"^[^\x00]*$")]


def router(desk: Desk) -> APIRouter:
    """The routes of the inbox."""
    routes = APIRouter(prefix="/v1", tags=["Order"])
    limits = desk.settings.limits

    @routes.post(
        "/messages",
        operation_id="messages",
        response_model=None,
        responses={200: {"model": shapes.TallyShape}},
        openapi_extra={"requestBody": _MESSAGES},
    )
    async def messages(request: Request, credential: Appending) -> Response:
        """Take CloudEvents in: what is due takes effect, in order; what is early waits; what was seen is dropped."""
        check_content(request.headers, JSON, STRUCTURED, BATCHED)
        refuse_if_match(request.headers)
        if not desk.inboxes:
            raise InvalidCommand("source", "messages of no source are taken here: `ledger serve --source NAME`")
        body = await body_of(request, limits.body_bytes, limits.append_seconds)
        headers, conversation = request.headers.items(), correlation_id()
        taken = await desk.append(lambda: _taken_in(desk, body, headers, credential.actor, conversation))
        return json_response(taken)

    @routes.get(
        "/dead-letters",
        operation_id="dead_letters",
        response_model=None,
        responses={200: {"model": shapes.LettersShape}},
    )
    async def dead_letters(
        credential: Watching,
        source: Source,
        state: Literal["open", "requeued", "discarded"] = "open",
        after: UUID | None = None,
        limit: Limit = 100,
    ) -> Response:
        """The messages of a source that a person decides about."""
        inbox = _inbox(desk, source)
        asked = partial(inbox.dead_letters, state=state, after=after, limit=limit)
        found = await desk.read(credential, "dead_letters", asked, accounts_in)
        plain = [letter_json(each) for each in found]
        return json_response({"dead_letters": plain, "next": next_of(plain, limit, "dead_letter_id")})

    @routes.get(
        "/inbox/stats",
        operation_id="inbox_stats",
        response_model=None,
        responses={200: {"model": shapes.InboxStatsShape}},
    )
    async def stats(_credential: Watching, source: Source) -> Response:
        """What was counted of a source, and how it stands now."""
        return json_response(inbox_stats_json(source, await desk.ask(_inbox(desk, source).stats)))

    @routes.get(
        "/inbox/gaps",
        operation_id="inbox_gaps",
        response_model=None,
        responses={200: {"model": shapes.GapsShape}},
    )
    async def gaps(
        credential: Watching,
        source: Source,
        status: Annotated[
            Literal["waiting", "parked"] | None, Query(description="Only those that wait in time, or that none helps.")
        ] = None,
        after: Text | None = None,
        limit: Annotated[int, Query(description="Rows at most.", ge=1, le=GAPS_MAX)] = GAPS_MAX,
    ) -> Response:
        """The streams of a source that wait, in order of their names, and what each of them misses."""
        inbox = _inbox(desk, source)

        def asked() -> list[Json]:
            found = inbox.gaps(status=None if status is None else Status(status), after=after, limit=limit)
            return [gap_json(gap, inbox.missing(gap.stream)) for gap in found]

        plain = await desk.read(
            credential, "inbox_gaps", asked, lambda found: accounts_waiting(gap["stream"] for gap in found)
        )
        return json_response({"gaps": plain, "next": next_of(plain, limit, "stream")})

    for decision in ("requeue", "discard"):
        routes.add_api_route(
            f"/dead-letters/{decision}",
            _deciding(desk, decision),
            methods=["POST"],
            operation_id=f"{decision}_dead_letter",
            response_model=None,
            responses={200: {"model": shapes.TallyShape}},
            openapi_extra={"requestBody": {"required": True, "content": {JSON: {"schema": _VERDICT}}}},
        )
    return routes


_EVENT: Final[Json] = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1, "maxLength": 256},
        "source": {"type": "string", "minLength": 1, "maxLength": 256},
        "type": {"type": "string", "minLength": 1, "maxLength": 256},
        # A null is as good as absent, which the format demands.
        "subject": {"type": ["string", "null"], "maxLength": 256},
        "partitionkey": {"type": ["string", "null"], "maxLength": 256},
        "sequence": {
            "anyOf": [
                {"type": "string", "pattern": "^[0-9]{1,20}$"},
                {"type": "integer", "minimum": 0, "maximum": SEQUENCE_MAX},
                {"type": "null"},
            ]
        },
        "time": {"type": ["string", "null"], "format": "date-time"},
        "datacontenttype": {"type": ["string", "null"]},
        "data": {},
    },
    "examples": [
        {
            "specversion": "1.0",
            "source": "bank",
            "id": "m-1",
            "type": "ledger.transfer",
            "subject": "alice",
            "sequence": "1",
            "data": {"amount": "5.00 USD", "debit": "world", "credit": "alice"},
        }
    ],
}
_MESSAGES: Final[Json] = {
    "required": True,
    "content": {
        STRUCTURED: {"schema": _EVENT},
        BATCHED: {"schema": {"type": "array", "maxItems": 1_000, "items": _EVENT}},
        JSON: {"schema": {"description": "In binary mode the data, with the attributes as headers: `ce-id`, …"}},
    },
}
_VERDICT: Final = Verdict.model_json_schema()


def _deciding(desk: Desk, decision: str) -> Callable[..., Any]:
    verdict: Callable[..., Received] = getattr(Inbox, decision)

    async def decide(request: Request, credential: Administering) -> Response:
        check_content(request.headers, JSON)
        body = await body_of(request, desk.settings.limits.body_bytes, desk.settings.limits.append_seconds)
        asked = model_of(Verdict, body)
        inbox = _inbox(desk, asked.source)
        received = await desk.append(
            lambda: verdict(inbox, asked.dead_letter_id, actor=credential.actor, note=asked.note)
        )
        return json_response(_counted([received]))

    decide.__doc__ = f"{cleandoc(verdict.__doc__ or '')}\n\nIt is decided about once: to repeat it is 422."
    return decide


def _inbox(desk: Desk, source: str) -> Inbox:
    if source not in desk.inboxes:
        raise InvalidCommand("source", f"messages of {source!r:.80} are not taken here")
    return desk.inboxes[source]


def _taken_in(
    desk: Desk, body: bytes, headers: Iterable[tuple[str, str]], actor: str, conversation: str | None
) -> Json:
    """
    Take in what one body holds: all of it, or nothing.

    Elsewhere what cannot be read is kept for a person to see; here whoever sent it is told.
    """
    messages = [_in_the_name_of(actor, conversation, each) for each in cloudevents(body, headers)]
    for message in messages:
        _inbox(desk, message.source)
    return _counted(Intake(desk.inboxes.values(), cloudevents).take([Delivery(messages, [])]))


def _in_the_name_of(actor: str, conversation: str | None, decoded: Decoded) -> Message:
    """
    A command for the ledger, with who asks for it and in which conversation; other messages say what they say.

    The conversation is an attribute, and no part of what a message says: sent again in another one it is the same.
    """
    if isinstance(decoded, UndecodableMessage):
        raise decoded
    if not decoded.type.startswith(COMMAND_PREFIX) or not isinstance(decoded.data, dict):
        return decoded
    if "actor" in decoded.data:
        raise UndecodableMessage("data.actor", "a message does not say it", "The credential says who asks.")
    attributes = dict(decoded.extensions)
    if conversation is not None and len(attributes) < EXTENSIONS_MAX:
        attributes.setdefault(CORRELATION, conversation)
    return replace(decoded, data={**decoded.data, "actor": actor}, extensions=attributes)


def accounts_in(letters: Iterable[DeadLetter]) -> list[str]:
    """The accounts that messages name, wherever in their data, and those whose streams they are of."""
    found: set[str] = set()
    left: list[Any] = []
    for letter in letters:
        found.add(letter.stream)
        left.append(letter.message.data)
    while left:
        each = left.pop()
        if isinstance(each, Mapping):
            found |= {name for name in map(each.get, _ACCOUNTS) if isinstance(name, str)}
            found |= each["expected_versions"].keys() if isinstance(each.get("expected_versions"), Mapping) else set()
            left.extend(each.values())
        elif isinstance(each, list | tuple):
            left.extend(each)
    return sorted(name for name in found if _ID.fullmatch(name))


def accounts_waiting(streams: Iterable[str]) -> list[str]:
    """The accounts, by their names, among streams that wait."""
    return [stream for stream in streams if _ID.fullmatch(stream)]


def _counted(received: Iterable[Received]) -> Json:
    tally = totals(received)
    return {name: tally[name] for name in (*Tally._fields, "rejected", "failed")}
