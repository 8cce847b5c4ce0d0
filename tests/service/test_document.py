"""The document is true: what it says of each route holds for whatever schemathesis can think of."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from inspect import cleandoc
from pathlib import Path

import jsonschema_rs
import pytest
from issuer import Issuer
from serving import Http, Serve

from ledger import Ledger, Strict
from ledger.access import Scope
from ledger.service.command_routes import COMMANDS, kind_of
from ledger.service.document_routes import EXAMPLES
from ledger.service.shapes import DoneShape
from ledger.settings import Limits

HERE = Path(__file__).parent
PROGRAM = Path(sys.executable).with_name("schemathesis")
EXAMPLES_EACH = os.environ.get("LEDGER_SCHEMATHESIS_EXAMPLES", "3")
EXAMPLES_AT_LENGTH = "30"
SEED = os.environ.get("LEDGER_SCHEMATHESIS_SEED", "1")
"""The same requests each time, so that only a change makes a difference; others, and more, when they are asked for."""

WAIT_SECONDS = 600
UNSHOWN = ("text/event-stream", "application/vnd.apache.parquet")


def test_document_is_for_everybody_and_names_what_each_route_takes(http: Http) -> None:
    """OpenAPI 3.1: who may ask, an example of each body, and no field in a body that a header says."""
    found = http().get("/openapi.json").json()

    operations = {
        (path, method): operation for path, methods in found["paths"].items() for method, operation in methods.items()
    }
    assert found["openapi"].startswith("3.1")
    assert all(each["security"] == [{"bearer": []}] and each["x-scopes"] for each in operations.values())
    assert len({each["operationId"] for each in operations.values()}) == len(operations) > 40
    for name in EXAMPLES:
        (media,) = operations[f"/v1/{name.replace('_', '-')}", "post"]["requestBody"]["content"].values()
        schema = found["components"]["schemas"][media["schema"]["$ref"].rpartition("/")[2]]
        assert media["example"] == EXAMPLES[name]
        said = operations[f"/v1/{name.replace('_', '-')}", "post"]["description"]
        (model,) = (each for each in COMMANDS if kind_of(each) == name)
        assert said.startswith(cleandoc(model.__doc__ or "nothing"))
        assert "the route answers directly" not in said
        assert {"actor", "idempotency_key"}.isdisjoint(schema["properties"])


def test_every_answer_has_an_example(http: Http) -> None:
    """An answer of the service itself, which is as the schema beside it says; a repetition says that it is one."""
    found = http().get("/openapi.json").json()
    shown = 0
    for methods in found["paths"].values():
        for operation in methods.values():
            for status in ("200", "201"):
                for kind, media in operation["responses"].get(status, {}).get("content", {}).items():
                    assert "example" in media or kind in UNSHOWN, (operation["operationId"], status, kind)
                    if kind == "application/json":
                        schema = {**media["schema"], "components": found["components"]}
                        jsonschema_rs.validate(schema, media["example"])
                        shown += 1
    again = found["paths"]["/v1/transfer"]["post"]["responses"]["200"]["content"]["application/json"]["example"]

    assert shown > 50
    assert DoneShape.model_validate(again).replayed


@pytest.mark.parametrize("examples", [EXAMPLES_EACH, pytest.param(EXAMPLES_AT_LENGTH, marks=pytest.mark.campaign)])
def test_schemathesis_finds_nothing(funded: Ledger, serve: Serve, tmp_path: Path, examples: str) -> None:
    """Examples, edge cases, random requests and chains of them, to every route: every answer is as documented."""
    issuer = Issuer(tmp_path)
    # A token, since an API key may be revoked by one of the requests.
    token = issuer.token(" ".join(Scope), exp=2_000_000_000)
    funded.open_account("fees", asset="USD", type="income")
    funded.stamp()
    inbox = funded.inbox("bank", Strict(timedelta(hours=1)))
    limits = Limits(follow_seconds=0.1)
    with serve(funded, [inbox], tokens=issuer.settings, limits=limits) as server:
        done = subprocess.run(
            [
                *(str(PROGRAM), "--config-file", str(HERE / "schemathesis.toml")),
                *("run", f"{server.address}/openapi.json", "-H", f"Authorization: Bearer {token}"),
                *("--max-examples", examples, "--seed", SEED, "--no-color"),
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )

    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    assert funded.verify().ok
