"""Access: every route and every scope, keys and tokens, and what is refused before anything is asked."""

from __future__ import annotations

import base64
import hmac
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import APIRouter
from issuer import AUDIENCE, ISSUER, Issuer
from serving import Http, Serve

from ledger import InvalidCommand, Ledger
from ledger.access import PREFIX, Scope
from ledger.core.errors import ServiceUnavailable, Unauthenticated
from ledger.service import tokens
from ledger.service.app import create_app
from ledger.service.document_routes import EXAMPLES
from ledger.service.scoped import check_scopes, routes_of
from ledger.service.server import check_exposure
from ledger.settings import ServiceSettings, Tokens

NOBODY = Ledger.connect("postgresql://nobody@localhost/nothing")
"""Of which only the routes are looked at."""

PUBLIC = {"/openapi.json", "/problems/{code}", "/healthz", "/readyz", "/sign-in", "/sign-out", "/static/{name}"}
ROUTES = sorted((method, path, scopes) for method, path, scopes in routes_of(create_app(NOBODY)) if scopes is not None)

EXPECTED: dict[str, set[str]] = {
    "append": {
        *("POST /v1/" + name.replace("_", "-") for name in EXAMPLES),
        *("POST /v1/handle", "POST /v1/bulk", "POST /v1/messages"),
    },
    "read": {
        *(f"GET /v1/{name}" for name in ("account", "accounts", "asset", "balance", "history", "holds", "state")),
        *("GET /v1/transaction", "GET /v1/transactions", "GET /v1/trial-balance", "GET /v1/statement"),
        *("GET /v1/feed", "GET /v1/feed/events", "GET /v1/dead-letters"),
        *("GET /v1/inbox/stats", "GET /v1/inbox/gaps"),
    },
    "export": {"GET /v1/export"},
    "admin": {
        *("GET /v1/keys", "POST /v1/keys/create", "POST /v1/keys/revoke", "POST /v1/rebuild", "GET /v1/reads"),
        *("GET /v1/dead-letters", "POST /v1/dead-letters/discard", "POST /v1/dead-letters/requeue"),
        *("GET /v1/inbox/stats", "GET /v1/inbox/gaps"),
    },
}
LOOKED_AT = {"GET /", "GET /order", "GET /dead-letters", "GET /dead-letter", "GET /verify", "GET /verify/progress"}
EXPECTED["read"] |= LOOKED_AT | {
    *("GET /accounts", "GET /account", "GET /account/statement", "GET /account/statement.csv"),
    *("GET /transaction", "GET /proof", "GET /find"),
}
EXPECTED["admin"] |= LOOKED_AT | {"POST /verify", "POST /dead-letter"}
EXPECTED["audit"] = EXPECTED["read"] | {
    *("POST /v1/verify", "GET /v1/reads", "GET /v1/reports", "POST /v1/report", "GET /v1/report", "POST /verify"),
}
for each in EXPECTED.values():
    # Whoever has a key at all.
    each |= {"GET /metrics", "GET /metrics/ordering"}
"""Which routes each scope is good for, said once more and by hand."""


def asked(client: httpx.Client, method: str, path: str) -> httpx.Response:
    """Ask a route something: who may not is refused before anybody looks at what it is."""
    with client.stream(method, path, headers={"Idempotency-Key": "k"}, params={"wait_seconds": "0"}) as answer:
        return answer


def test_matrix_is_as_it_is_said_here() -> None:
    """Each scope is good for exactly the routes that are listed for it, and what is public is listed too."""
    found = {scope: {f"{method} {path}" for method, path, scopes in ROUTES if scope in scopes} for scope in Scope}

    assert found == EXPECTED
    assert {path for _, path, scopes in ROUTES if not scopes} == PUBLIC


@pytest.mark.parametrize("scope", [None, *Scope])
def test_every_route_lets_in_whoever_has_its_scope_and_nobody_else(http: Http, scope: Scope | None) -> None:
    """Nobody is 401, whoever has other scopes is 403, and whoever has one of the route's is neither."""
    client = http(scope)
    found = {(method, path): asked(client, method, path).status_code for method, path, scopes in ROUTES if scopes}
    wrong = []
    for method, path, scopes in ROUTES:
        if scopes:
            status = found[method, path]
            expected = {401} if scope is None else {403} if scope not in scopes else {200, 303, 404, 415, 422}
            wrong += [(method, path, status)] if status not in expected else []

    assert wrong == []
    assert len(found) > 40


def test_route_without_a_scope_is_refused() -> None:
    """A service with a route of which nobody has said who may ask it is not made."""
    app = create_app(NOBODY)
    forgotten = APIRouter()

    @forgotten.get("/v1/forgotten")
    async def answer() -> None: ...

    app.router.routes.extend(forgotten.routes)

    with pytest.raises(RuntimeError, match="GET /v1/forgotten"):
        check_scopes(app)


@pytest.mark.parametrize(
    "credential",
    [
        "Bearer",
        "Bearer nonsense",
        "Basic YTpi",
        f"Bearer {PREFIX}_0123456789abcdef_{'x' * 43}",
        f"Bearer {'x' * 10_000}",
        "Bearer eyJhbGciOiJub25lIn0.e30.",
    ],
)
def test_whoever_is_not_known_is_refused(http: Http, credential: str) -> None:
    """Whatever stands there that is no key and no token, the answer is the same problem, and says how to ask."""
    answer = http().get("/v1/balance", params={"account": "alice"}, headers={"Authorization": credential})

    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_only_hashes_of_keys_are_kept(funded: Ledger, ledger_url: str) -> None:
    """The secret is in no column, and two keys of one actor differ."""
    made = [funded.api_keys().create("app", ["append"], created_by="test") for _ in range(2)]

    with psycopg.connect(ledger_url) as connection:
        kept = connection.execute("SELECT api_keys::text FROM ledger.api_keys").fetchall()
    secrets = [each.secret.split("_", 2)[2] for each in made]
    assert len({*secrets}) == len(kept) == 2
    assert not any(secret in str(kept) for secret in secrets)
    assert all(each.secret.startswith(f"{PREFIX}_{each.key.key_id}_") for each in made)


def test_actor_has_two_keys_at_most(funded: Ledger) -> None:
    """A third is refused until one is revoked; one whose time is over is in nobody's way."""
    keys = funded.api_keys()
    first = keys.create("app", ["append"], created_by="test")
    keys.create("app", ["append"], created_by="test", expires_in=timedelta(microseconds=1))
    second = keys.create("app", ["append"], created_by="test")
    with pytest.raises(InvalidCommand, match="two keys already"):
        keys.create("app", ["append"], created_by="test")

    keys.revoke(first.key.key_id, actor="test")
    third = keys.create("app", ["read"], created_by="test")

    active = {key.key_id for key in keys.page() if key.active}
    assert active == {second.key.key_id, third.key.key_id}


def test_revoked_and_expired_keys_are_refused(funded: Ledger, serve: Serve) -> None:
    """Neither is good for anything, from the first request on."""
    keys = funded.api_keys()
    revoked = keys.create("one", ["read"], created_by="test")
    keys.revoke(revoked.key.key_id, actor="test")
    expired = keys.create("two", ["read"], created_by="test", expires_in=timedelta(microseconds=1))
    with serve(funded) as server, httpx.Client(base_url=server.address) as client:
        for secret in (revoked.secret, expired.secret):
            answer = client.get("/v1/trial-balance", headers={"Authorization": f"Bearer {secret}"})
            assert answer.status_code == 401


def test_key_is_rotated_without_a_gap(http: Http, funded: Ledger) -> None:
    """What one key of an actor has sent, the next one may send again: nothing is done twice."""
    admin, body = http(Scope.ADMIN), {"amount": "1 USD", "debit": "alice", "credit": "bob"}
    sent = []
    for number in range(2):
        once = {"Idempotency-Key": f"key {number}"}
        made = admin.post("/v1/keys/create", json={"actor": "app", "scopes": ["append"]}, headers=once)
        headers = {"Authorization": f"Bearer {made.json()['secret']}", "Idempotency-Key": "same"}
        sent.append(http().post("/v1/transfer", json=body, headers=headers))

    assert [answer.status_code for answer in sent] == [201, 200]
    assert str(funded.balance("alice").posted) == "69.00 USD"


def test_key_is_made_once(http: Http, funded: Ledger) -> None:
    """A request for a key that is repeated is told which it has made, and makes no other."""
    admin, wanted = http(Scope.ADMIN), {"actor": "app", "scopes": ["append"]}
    once = {"Idempotency-Key": "first"}
    made, again, more = (admin.post("/v1/keys/create", json=wanted, headers=once) for _ in range(3))
    without = admin.post("/v1/keys/create", json=wanted)
    funded.api_keys().create("app", ["read"], created_by="other", idempotency_key="first")
    full = admin.post("/v1/keys/create", json=wanted, headers=once)

    assert (made.status_code, without.status_code) == (201, 422)
    for answer in (again, more, full):
        assert (answer.status_code, answer.json()["code"]) == (409, "key_made_already")
        assert answer.json()["fields"] == {"key": made.json()["key"]}
    assert len([key for key in funded.api_keys().page() if key.actor == "app"]) == 2


def test_keys_of_two_actors_do_not_meet(http: Http, funded: Ledger) -> None:
    """The same idempotency key of another actor is another key."""
    keys = funded.api_keys()
    body = {"amount": "1 USD", "debit": "alice", "credit": "bob"}
    for actor in ("one", "two"):
        secret = keys.create(actor, ["append"], created_by="test").secret
        headers = {"Authorization": f"Bearer {secret}", "Idempotency-Key": "same"}
        assert http().post("/v1/transfer", json=body, headers=headers).status_code == 201

    assert str(funded.balance("alice").posted) == "68.00 USD"


@pytest.mark.parametrize("name", ["actor", "idempotency_key"])
def test_actor_is_never_in_the_body(http: Http, funded: Ledger, name: str) -> None:
    """A body that says who asks is refused, of one command as of many."""
    client = http(Scope.APPEND)
    command = {"type": "transfer", "amount": "1 USD", "debit": "alice", "credit": "bob", name: "somebody"}
    one = client.post("/v1/transfer", json=command, headers={"Idempotency-Key": "k"})
    many = client.post("/v1/handle", json={"commands": [command]}, headers={"Idempotency-Key": "k"})

    assert (one.status_code, one.json()["fields"]["where"]) == (422, name)
    if name == "actor":
        assert (many.status_code, many.json()["fields"]["where"]) == (422, "commands.0.actor")
        assert str(funded.balance("alice").posted) == "70.00 USD"


def test_what_an_auditor_reads_is_on_record(http: Http, funded: Ledger) -> None:
    """Each account in each answer, with who asked what; of others nothing is recorded."""
    auditor, reader = http(Scope.AUDIT), http(Scope.READ)
    transfer = str(funded.transactions(reference="payday")[0].transaction_id)
    for client in (auditor, reader):
        for path, params in (
            ("balance", {"account": "alice"}),
            ("history", {"stream": "alice"}),
            ("transaction", {"transaction_id": transfer}),
            ("accounts", {"limit": "1"}),
        ):
            assert client.get(f"/v1/{path}", params=params).status_code == 200

    found = [(read.actor, read.question) for read in funded.api_keys().reads("alice")]
    assert found == [("audit", name) for name in ("balance", "history", "transaction", "accounts")]
    assert [read.question for read in funded.api_keys().reads("world")] == ["transaction"]
    shown = http(Scope.ADMIN).get("/v1/reads", params={"account": "world"}).json()["reads"]
    assert [(read["actor"], read["question"]) for read in shown] == [("audit", "transaction")]


def test_what_cannot_be_recorded_is_not_answered(http: Http, ledger_url: str) -> None:
    """An auditor gets no balance while the record of it cannot be kept; others do."""
    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE ledger.account_reads RENAME TO hidden")

    assert http(Scope.AUDIT).get("/v1/balance", params={"account": "alice"}).status_code == 503
    assert http(Scope.READ).get("/v1/balance", params={"account": "alice"}).status_code == 200


# Tokens


def told(address: str, token: str) -> tuple[int, str]:
    """What a service answers to a token."""
    answer = httpx.get(
        f"{address}/v1/balance", params={"account": "alice"}, headers={"Authorization": f"Bearer {token}"}
    )
    return answer.status_code, answer.json().get("detail", "")


def test_tokens_of_the_issuer_are_accepted(funded: Ledger, serve: Serve, tmp_path: Path) -> None:
    """A token says who asks and for what; its subject is the actor of what it appends."""
    issuer = Issuer(tmp_path)
    with serve(funded, tokens=issuer.settings) as server:
        assert told(server.address, issuer.token("read"))[0] == 200
        assert told(server.address, issuer.token("append other"))[0] == 403
        done = httpx.post(
            f"{server.address}/v1/transfer",
            json={"amount": "1 USD", "debit": "alice", "credit": "bob"},
            headers={"Authorization": f"Bearer {issuer.token('append')}", "Idempotency-Key": "k"},
        )

    assert funded.transaction(done.json()["transaction_id"]).transaction.actor == "somebody"


def test_tokens_that_do_not_hold_are_refused(funded: Ledger, serve: Serve, tmp_path: Path) -> None:
    """Whatever is wrong with one of its parts, it says nobody."""
    # What depends on when it is asked does so by an hour: however slow the machine is, it is wrong for its own reason.
    issuer, now, hour = Issuer(tmp_path), int(time.time()), 3_600
    other = Issuer(tmp_path)
    other.publish(one=issuer.key)
    public = issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "scope": "read", "exp": now + hour}
    sent: dict[str, Any] = {
        "another key": other.token(),
        "none": jwt.encode(claims, "", "none", headers={"kid": "one"}),
        "a secret": jwt.encode(claims, "s" * 32, "HS256", headers={"kid": "one"}),
        "the public key as a secret": _signed_with(public, claims),
        "another issuer": issuer.token(iss="https://else.example"),
        "another audience": issuer.token(aud="else"),
        "too late": issuer.token(exp=now - 61),
        "too early": issuer.token(nbf=now + hour, exp=now + 2 * hour),
        "for ever": issuer.token(exp=None),
        "nobody": issuer.token(sub=None),
        "an unknown key": issuer.token(header={"kid": "two"}),
        "a time of 400 digits": issuer.token(exp=10**400),
        "no end": _signed(issuer, b'{"iss": "%s", "aud": "%s", "sub": "somebody", "scope": "read", "exp": 1e999}'),
        "a list for a time": issuer.token(nbf=[1]),
        "a key of its own": issuer.token(header={"kid": "mine", "jku": "https://else.example/keys"}),
    }
    with serve(funded, tokens=issuer.settings) as server:
        found = {name: told(server.address, token)[0] for name, token in sent.items()}
        within_leeway = told(server.address, issuer.token(exp=int(time.time()) - 1))[0]

    assert found == dict.fromkeys(sent, 401)
    assert within_leeway == 200


def _signed(issuer: Issuer, claims: bytes) -> str:
    """What the issuer would never write, with its own signature."""
    said = claims % (ISSUER.encode(), AUDIENCE.encode())
    return jwt.PyJWS().encode(said, issuer.key, "ES256", headers={"kid": "one"})


def _signed_with(public: bytes, claims: dict[str, Any]) -> str:
    """As an attacker would: the library refuses to take such a key for a secret, and is gone round."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    signed = f"{part(json.dumps({'alg': 'HS256', 'kid': 'one'}).encode())}.{part(json.dumps(claims).encode())}"
    return f"{signed}.{part(hmac.digest(public, signed.encode(), 'sha256'))}"


def test_new_key_of_the_issuer_is_found(funded: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the issuer has begun to use is fetched when the first token of it comes, and not for every token."""
    monkeypatch.setattr(tokens, "AGAIN_SECONDS", 0.0)
    issuer = Issuer(tmp_path)
    reader = tokens.TokenReader(issuer.settings)
    fresh = generate_private_key(SECP256R1())
    issuer.publish(one=issuer.key, two=fresh)
    issuer.key = fresh

    credential, _ = reader.credential(issuer.token(header={"kid": "two"}))

    assert credential.actor == "somebody"
    assert funded.ledger_id


def test_keys_that_are_not_understood_spoil_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a set is good beside them, so that a key that was withdrawn is refused from then on."""
    monkeypatch.setattr(tokens, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "AGAIN_SECONDS", 0.0)
    issuer = Issuer(tmp_path)
    reader, withdrawn = tokens.TokenReader(issuer.settings), issuer.token()
    assert reader.credential(withdrawn)[0].actor == "somebody"
    issuer.publish(two=issuer.key)
    good = json.loads(issuer.file.read_text())["keys"]
    strange: list[Any] = ["x", None, {}, {"kty": "AKP", "kid": "pq", "alg": "ML-DSA-44", "use": "sig", "pub": "AAAA"}]
    strange += [{"kty": "EC", "crv": "P-256", "x": 1, "y": 2}, {"kty": "RSA", "n": "*", "e": "AQAB"}]
    strange += [{**good[0], "kid": ["two"]}, {**good[0], "x": "AAAA"}]
    issuer.file.write_text(json.dumps({"keys": [*strange, *good]}))

    assert reader.credential(issuer.token(header={"kid": "two"}))[0].actor == "somebody"
    with pytest.raises(Unauthenticated):
        reader.credential(withdrawn)


def test_keys_that_cannot_be_read_again_are_good_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the log each time; when that has gone on too long, nobody is let in by them."""
    monkeypatch.setattr(tokens, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "AGAIN_SECONDS", 0.0)
    issuer = Issuer(tmp_path)
    reader, token = tokens.TokenReader(issuer.settings), issuer.token()
    issuer.file.write_text('{"keys": []}')

    assert reader.credential(token)[0].actor == "somebody"
    assert "the issuer's keys cannot be read" in caplog.text
    monkeypatch.setattr(tokens, "STALE_SECONDS", 0.0)
    with pytest.raises(ServiceUnavailable, match="cannot be read"):
        reader.credential(token)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"algorithms": ("none",)}, "none"),
        ({"algorithms": ("HS256",)}, "HS256"),
        ({"algorithms": ()}, "take some of"),
        ({"keys": "http://issuer.example/keys"}, "neither a file nor an https URL"),
        ({"keys": "/nowhere"}, "cannot be read"),
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    """No algorithm without a public key, and no keys over a connection that anybody can change."""
    chosen = Issuer(tmp_path).settings
    values = {name: getattr(chosen, name) for name in ("issuer", "audience", "keys", "algorithms")}

    with pytest.raises(InvalidCommand, match=said):
        create_app(NOBODY, ServiceSettings(tokens=Tokens(**{**values, **changed})))


# Exposure


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, None),
        ({"host": "::1"}, None),
        ({"host": "localhost", "authentication": False}, None),
        ({"host": "0.0.0.0"}, "give a certificate"),  # noqa: S104  (it is what is refused)
        ({"host": "ledger.example"}, "give a certificate"),
        ({"host": "0.0.0.0", "authentication": False, "behind_proxy": True}, "must be authentication"),  # noqa: S104
        ({"host": "0.0.0.0", "behind_proxy": True}, None),  # noqa: S104
        ({"host": "::", "certificate": Path("c"), "private_key": Path("k")}, None),
        ({"certificate": Path("c")}, "give both"),
    ],
)
def test_being_open_to_others_takes_authentication_and_tls(settings: dict[str, Any], refused: str | None) -> None:
    """Beyond this machine there is no service without both, unless a proxy does TLS."""
    chosen = ServiceSettings(**settings)
    if refused is None:
        check_exposure(chosen)
    else:
        with pytest.raises(InvalidCommand, match=refused):
            check_exposure(chosen)


def test_open_service_answers_to_this_machine_only(funded: Ledger, serve: Serve) -> None:
    """Without authentication a page whose name was made to lead here is refused."""
    with serve(funded, authentication=False) as server:
        url = f"{server.address}/v1/balance?account=alice"
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 401
