"""The document: OpenAPI 3.1 of every route, with the scopes that it takes, its problems and examples; for everybody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json
from starlette.exceptions import HTTPException

from ledger.access import Scope
from ledger.core.commands import Command
from ledger.service import problem_details, shapes
from ledger.service.bodies import JSON, OURS
from ledger.service.command_routes import COMMANDS, kind_of
from ledger.service.problem_details import PROBLEM_JSON, STATUS
from ledger.service.scoped import public, routes_of
from ledger.wire import ERRORS, Json

_COMPONENTS: Final = "#/components/schemas/{model}"

HOLD: Final = "01890a5d-ac96-774b-bcce-b302099a8057"

EXAMPLES: Final[Mapping[str, Json]] = {
    "define_asset": {"asset": "POINTS", "scale": 0},
    "open_account": {"account": "alice", "asset": "USD", "account_type": "liability", "min_balance": "0.00 USD"},
    "change_account": {"account": "alice", "max_balance": "1000.00 USD", "reason": "agreed by phone"},
    "freeze": {"account": "alice", "reason": "reported stolen"},
    "unfreeze": {"account": "alice", "reason": "found again"},
    "close_account": {"account": "alice", "reason": "asked for"},
    "post": {
        "entries": [
            {"account": "world", "amount": "5.00 USD", "direction": "debit"},
            {"account": "alice", "amount": "4.90 USD", "direction": "credit"},
            {"account": "fees", "amount": "0.10 USD", "direction": "credit"},
        ]
    },
    "transfer": {"amount": "5.00 USD", "debit": "alice", "credit": "bob", "reference": "invoice 7"},
    "deposit": {"account": "alice", "amount": "5.00 USD", "against": "world"},
    "withdraw": {"account": "alice", "amount": "5.00 USD", "against": "world"},
    "hold": {"amount": "20.00 USD", "debit": "alice", "credit": "shop", "expires_at": "2030-01-01T00:00:00Z"},
    "capture": {"hold": HOLD, "amount": "5.00 USD"},
    "release": {"hold": HOLD},
    "expire_hold": {"hold": HOLD},
    "reverse": {"transaction_id": "01890a5d-ac96-774b-bcce-000000000001", "reason": "sent twice"},
    "close_period": {"until": "2026-01-01T00:00:00Z", "reason": "year 2025"},
    "begin": {"machine": "payment", "subject": "p-1"},
    "advance": {"machine": "payment", "subject": "p-1", "event": "authorise"},
}
"""A body for each kind of command."""

ANSWERS: Final = files("ledger.service") / "answers.json"
"""An answer to each operation, by its id: the service's own, written down by `tests/service/write_answers.py`."""

_COMMON: Final = (400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503)
"""Statuses of problems that any route may answer with, but for those that only some have."""


def router(_desk: object) -> APIRouter:
    """The document, and what each code of a problem means."""
    routes = APIRouter(tags=["Document"], dependencies=[Depends(public)])

    @routes.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        """Every route, as OpenAPI 3.1."""
        return Response(to_json(request.app.openapi()), media_type=JSON)

    @routes.get("/problems/{code}", include_in_schema=False)
    async def problem(code: Annotated[str, Path(max_length=80)]) -> Response:
        """What the `type` of a problem leads to: what its code means."""
        if code in problem_details.OURS:
            status, said, retryable = problem_details.OURS[code]
        elif (found := ERRORS.get(code)) is not None:
            status, said, retryable = STATUS[code], " ".join((found.__doc__ or "").split()), found.retryable
        else:
            raise HTTPException(404)
        plain = {"code": code, "status": status, "detail": said, "retryable": retryable}
        return Response(to_json(plain), media_type=JSON)

    return routes


def document_of(app: FastAPI) -> Json:
    """The document of all routes."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            summary="An event-sourced, double-entry ledger.",
            description=_DESCRIPTION,
            routes=app.routes,
        )
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas["Problem"] = shapes.Problem.model_json_schema()
        made["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a JSON Web Token."}
        }
        examples: Json = from_json(ANSWERS.read_bytes())
        _add_commands(made["paths"], schemas)
        for path, method, scopes in _operations(app):
            operation = made["paths"].get(path, {}).get(method)
            if operation is not None:
                _complete(operation, scopes, examples)
        app.openapi_schema = made
    return app.openapi_schema


_DESCRIPTION: Final = (
    "Amounts are texts such as `12.50 USD`. A command has an `Idempotency-Key`: the same key with the same body"
    " does nothing again, and answers as it did. Messages are known by their ids; what else writes has one"
    " where to repeat it would do it twice. What goes wrong is a problem (RFC 9457) with a stable code."
)


def _operations(app: FastAPI) -> Iterator[tuple[str, str, frozenset[Scope]]]:
    for method, path, scopes in routes_of(app):
        yield path, method.lower(), scopes or frozenset()


def _complete(operation: Json, scopes: frozenset[Scope], examples: Json) -> None:
    """What every operation has: who may ask, an example of its answer, and its problems."""
    if scopes:
        operation["security"] = [{"bearer": []}]
        operation["x-scopes"] = sorted(scopes)
        said = f"Takes the scope {' or '.join(f'`{scope}`' for scope in sorted(scopes))}."
        operation["description"] = f"{operation.get('description', '')}\n\n{said}".strip()
    answers = operation["responses"]
    answers.pop("422", None)
    if (example := examples.get(operation["operationId"])) is not None:
        for status in answers.keys() & {"200", "201"}:
            again = {"replayed": True} if status == "200" and "201" in answers else {}
            answers[status]["content"][JSON]["example"] = {**example, **again}
    for status in _COMMON:
        answers[str(status)] = _PROBLEM


_PROBLEM: Final[Json] = {
    "description": "A problem.",
    "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def _add_commands(paths: Json, schemas: Json) -> None:
    """The body of each command, without what a body does not say, and the conditions that it may name."""
    done = {"$ref": "#/components/schemas/DoneShape"}
    _add_schema(schemas, "DoneShape", shapes.DoneShape)
    for model in COMMANDS:
        name = kind_of(model)
        operation = paths[f"/v1/{name.replace('_', '-')}"]["post"]
        _add_schema(schemas, model.__name__, model)
        schema = schemas[model.__name__]
        for ours in OURS:
            schema["properties"].pop(ours, None)
        media = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "example": EXAMPLES[name]}
        operation["requestBody"] = {"required": True, "content": {JSON: media}}
        for status, said in (("201", "Done."), ("200", "Done before, with the same key and body.")):
            operation["responses"][status] = {"description": said, "content": {JSON: {"schema": done}}}
        operation["responses"]["201"]["links"] = _links(name)
        if "account" in model.model_fields:
            operation["responses"]["412"] = _PROBLEM
            operation["parameters"].append(_IF_MATCH)


def _links(name: str) -> Json:
    """What may be asked next, with what is in the request or its answer."""
    made = "$response.body#/transaction_id"
    links: Json = {"what_happened": {"operationId": "transaction", "parameters": {"transaction_id": made}}}
    if name in ("post", "transfer", "deposit", "withdraw"):
        links["take_back"] = {"operationId": "reverse", "requestBody": {"transaction_id": made}}
    if name == "hold":
        links |= {
            then: {"operationId": then, "requestBody": {"hold": made}} for then in ("capture", "release", "expire_hold")
        }
    if name == "open_account":
        account = "$request.body#/account"
        links |= {
            then: {"operationId": then, "parameters": {"account": account}} for then in ("balance", "account", "holds")
        }
        links["freeze"] = {"operationId": "freeze", "requestBody": {"account": account}}
    return links


_IF_MATCH: Final[Json] = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "The version that the account must be at, as an entity tag.",
    "schema": {"type": "string", "pattern": '^"[0-9]{1,15}"$'},
    "example": '"3"',
}


def _add_schema(schemas: Json, name: str, model: type[Command | shapes.DoneShape]) -> None:
    schema: dict[str, Any] = TypeAdapter(model).json_schema(ref_template=_COMPONENTS, mode="validation")
    schemas.update(schema.pop("$defs", {}))
    schemas[name] = schema
