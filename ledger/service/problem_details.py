"""
What went wrong, as RFC 9457 tells it: `application/problem+json`, whose `type` and `code` are the ledger's own.

One code has one status, so that who knows the one knows the other; the table is complete, which a test holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from ledger.core.errors import InvalidCommand, LedgerError, TooManyRequests, VersionConflict
from ledger.service.occasion import note
from ledger.wire import Json, error_json

PROBLEM_JSON: Final = "application/problem+json"
RETRY_SECONDS: Final = 1

STATUS: Final[Mapping[str, HTTPStatus]] = {
    # What it is about is not there.
    "unknown_asset": HTTPStatus.NOT_FOUND,
    "unknown_account": HTTPStatus.NOT_FOUND,
    "unknown_transaction": HTTPStatus.NOT_FOUND,
    "unknown_machine": HTTPStatus.NOT_FOUND,
    "unknown_stream": HTTPStatus.NOT_FOUND,
    "unknown_subject": HTTPStatus.NOT_FOUND,
    "subject_forgotten": HTTPStatus.GONE,
    # The state of the ledger is against it: at another time the same may be right.
    "asset_exists": HTTPStatus.CONFLICT,
    "account_exists": HTTPStatus.CONFLICT,
    "stream_exists": HTTPStatus.CONFLICT,
    "period_closed": HTTPStatus.CONFLICT,
    "period_not_over": HTTPStatus.CONFLICT,
    "account_not_open": HTTPStatus.CONFLICT,
    "transition_refused": HTTPStatus.CONFLICT,
    "striped_account": HTTPStatus.CONFLICT,
    "version_conflict": HTTPStatus.CONFLICT,
    "hold_not_open": HTTPStatus.CONFLICT,
    "hold_not_due": HTTPStatus.CONFLICT,
    "not_reversible": HTTPStatus.CONFLICT,
    "exceeds_rest": HTTPStatus.CONFLICT,
    "account_not_empty": HTTPStatus.CONFLICT,
    "insufficient_funds": HTTPStatus.CONFLICT,
    "limit_exceeded": HTTPStatus.CONFLICT,
    "atomic_batch": HTTPStatus.CONFLICT,
    "proof_failed": HTTPStatus.CONFLICT,
    "not_yet_known": HTTPStatus.CONFLICT,
    "decided_already": HTTPStatus.CONFLICT,
    "key_made_already": HTTPStatus.CONFLICT,
    # The request itself is wrong, and stays so.
    "idempotency_conflict": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_amount": HTTPStatus.UNPROCESSABLE_ENTITY,
    "asset_mismatch": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unbalanced_transaction": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_command": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_state_machine": HTTPStatus.UNPROCESSABLE_ENTITY,
    "broken_statement": HTTPStatus.UNPROCESSABLE_ENTITY,
    "undecodable_message": HTTPStatus.UNPROCESSABLE_ENTITY,
    "missing_idempotency_key": HTTPStatus.BAD_REQUEST,
    # Who asks, and how much.
    "unauthenticated": HTTPStatus.UNAUTHORIZED,
    "forbidden": HTTPStatus.FORBIDDEN,
    "too_many_requests": HTTPStatus.TOO_MANY_REQUESTS,
    "request_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    # Not now: nothing was written, or the same key tells.
    "concurrency_error": HTTPStatus.SERVICE_UNAVAILABLE,
    "schema_mismatch": HTTPStatus.SERVICE_UNAVAILABLE,
    "database_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "connection_lost": HTTPStatus.SERVICE_UNAVAILABLE,
    "deadline_exceeded": HTTPStatus.SERVICE_UNAVAILABLE,
    "batcher_closed": HTTPStatus.SERVICE_UNAVAILABLE,
    "broker_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "service_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    # A person has to look.
    "corrupt_log": HTTPStatus.INTERNAL_SERVER_ERROR,
    "guard_refused": HTTPStatus.INTERNAL_SERVER_ERROR,
    "unsupported_connection": HTTPStatus.INTERNAL_SERVER_ERROR,
    "ledger_error": HTTPStatus.INTERNAL_SERVER_ERROR,
}

_HTTP_CODES: Final[Mapping[int, tuple[str, str]]] = {
    HTTPStatus.NOT_FOUND: ("no_such_route", "There is no such route; /openapi.json has those that there are."),
    HTTPStatus.METHOD_NOT_ALLOWED: ("method_not_allowed", "This route is asked in another way; see Allow."),
}


_INTERNAL: Final = "Something went wrong here; its log tells what."

OURS: Final[Mapping[str, tuple[int | None, str, bool]]] = {
    **{code: (status, said, False) for status, (code, said) in _HTTP_CODES.items()},
    "http_error": (None, "The request is not as HTTP has it; its status says what is wrong with it.", False),
    "internal_error": (HTTPStatus.INTERNAL_SERVER_ERROR, _INTERNAL, False),
    "not_ready": (HTTPStatus.SERVICE_UNAVAILABLE, "The service cannot do its work now; `checks` say why.", True),
}
"""Codes of the service itself, each with its status, if it has only one, what it means, and whether to try again."""

CODES: Final = (*STATUS, *OURS)
"""Every code that a problem can have."""


def problem_json(error: LedgerError, status: int | None = None) -> Json:
    """A problem: what kind, what happened, and the facts of it."""
    told = error_json(error)
    code = status or STATUS[error.code]
    return _plain(error.code, code, told["message"], retryable=told["retryable"], fields=told["fields"])


def problem(error: LedgerError, status: int | None = None) -> Response:
    """The response that tells of an error."""
    plain = problem_json(error, status)
    headers = {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_seconds)
    elif plain["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_SECONDS)
    elif plain["status"] == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(plain, headers)


def add_problems(app: FastAPI) -> None:
    """Let whatever is raised be told as a problem."""
    app.add_exception_handler(LedgerError, _of_ledger)
    app.add_exception_handler(RequestValidationError, _of_parameters)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _of_ours)


def problem_of(request: Request, error: LedgerError) -> Response:
    """As `problem`, to a request that may have named its own condition."""
    if isinstance(error, VersionConflict) and "if-match" in request.headers:
        return problem(error, HTTPStatus.PRECONDITION_FAILED)
    return problem(error)


async def _of_ledger(request: Request, error: Exception) -> Response:
    assert isinstance(error, LedgerError)
    return problem_of(request, error)


async def _of_parameters(_request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a parameter, in our words."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "request"
    return problem(InvalidCommand(where, first["msg"]))


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, said = _HTTP_CODES.get(error.status_code, ("http_error", str(error.detail)))
    plain = _plain(code, error.status_code, said, retryable=False, fields={})
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = _allowed(request) or headers.get("Allow", "")
    return _response(plain, headers)


def _allowed(request: Request) -> str:
    """All methods of a path: the framework names those of the first route alone."""
    at_path = [route for route in request.app.routes if getattr(route, "path", None) == request.scope["path"]]
    return ", ".join(sorted({method for route in at_path for method in route.methods}))


def bad_request_json(detail: str) -> Json:
    """The problem of what is no HTTP at all."""
    return _plain("http_error", HTTPStatus.BAD_REQUEST, detail, retryable=False, fields={})


async def _of_ours(_request: Request, _error: Exception) -> Response:
    """A fault of ours, of which nothing is told outside; the server's log has it."""
    plain = _plain("internal_error", 500, _INTERNAL, retryable=False, fields={})
    return _response(plain, {})


def _plain(code: str, status: int, detail: str, *, retryable: bool, fields: Mapping[str, object]) -> Json:
    title = code.replace("_", " ").capitalize()
    kind = f"/problems/{code}"
    told = {"type": kind, "title": title, "status": int(status), "detail": detail}
    return {**told, "code": code, "retryable": retryable, "fields": dict(fields)}


def _response(plain: Json, headers: Mapping[str, str]) -> Response:
    note(code=plain["code"])
    return Response(to_json(plain), plain["status"], headers=dict(headers), media_type=PROBLEM_JSON)
