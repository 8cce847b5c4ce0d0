"""The keys of an issuer, fetched by https: when, how often, from whom, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from issuer import Issuer
from key_server import KeyServer, serving_keys

from ledger import InvalidCommand, Unauthenticated
from ledger.service import tokens
from ledger.service.tokens import TokenReader
from ledger.settings import Tokens


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    """Who signs tokens."""
    return Issuer(tmp_path)


@pytest.fixture
def server(tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    """Where the issuer's keys are, with a certificate that is trusted."""
    with serving_keys(tmp_path) as server:
        server.body = issuer.file.read_bytes()
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
        yield server


@pytest.fixture
def settings(issuer: Issuer, server: KeyServer) -> Tokens:
    """That its tokens are accepted, with the keys that are there."""
    return replace(issuer.settings, keys=server.url)


def rotated(issuer: Issuer, server: KeyServer) -> None:
    """The issuer signs with a new key from here on, and says so."""
    before, issuer.key = issuer.key, generate_private_key(SECP256R1())
    issuer.publish(one=before, two=issuer.key)
    server.body = issuer.file.read_bytes()


def test_keys_are_fetched_once_for_many_tokens(issuer: Issuer, server: KeyServer, settings: Tokens) -> None:
    """Known keys are good for minutes, and unknown ones do not make the issuer be asked for each token."""
    reader = TokenReader(settings)
    for _ in range(3):
        assert reader.credential(issuer.token())[0].actor == "somebody"
        with pytest.raises(Unauthenticated):
            reader.credential(issuer.token(header={"kid": "unknown"}))

    assert server.asked == 1


def test_keys_are_fetched_again_when_they_are_old(
    issuer: Issuer, server: KeyServer, settings: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that the issuer took back is good no longer than until then."""
    monkeypatch.setattr(tokens, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "AGAIN_SECONDS", 0.0)
    reader = TokenReader(settings)
    token = issuer.token()
    assert reader.credential(token)[0].actor == "somebody"
    issuer.publish(two=generate_private_key(SECP256R1()))
    server.body = issuer.file.read_bytes()

    with pytest.raises(Unauthenticated, match="none of the issuer's"):
        reader.credential(token)


def test_new_key_is_fetched_when_its_first_token_comes(
    issuer: Issuer, server: KeyServer, settings: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for the key, and not for each of its tokens; those of the key before are good as well."""
    reader = TokenReader(settings)
    before = issuer.token()
    rotated(issuer, server)
    monkeypatch.setattr(tokens, "AGAIN_SECONDS", 0.0)

    for token in (issuer.token(header={"kid": "two"}), before, issuer.token(header={"kid": "two"})):
        assert reader.credential(token)[0].actor == "somebody"
    assert server.asked == 2


def test_known_keys_stay_good_while_nobody_answers(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is away, or in trouble, locks nobody out; without any keys there is nothing to begin with."""
    monkeypatch.setattr(tokens, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "AGAIN_SECONDS", 0.0)
    with serving_keys(tmp_path) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
        settings = replace(issuer.settings, keys=server.url)
        server.body = issuer.file.read_bytes()
        reader = TokenReader(settings)
        server.status = 500
        assert reader.credential(issuer.token())[0].actor == "somebody"
        assert server.asked == 2

    assert reader.credential(issuer.token())[0].actor == "somebody"
    with pytest.raises(InvalidCommand, match="cannot be read"):
        TokenReader(settings)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": 302, "headers": {"Location": "/elsewhere"}}, "302"),
        ({"status": 308, "headers": {"Location": "http://127.0.0.1:1/keys"}}, "308"),
        ({"status": 404}, "404"),
        ({"body": b" " * (tokens.BYTES_MAX + 1)}, "more than"),
        ({"body": b"<html>"}, "cannot be read"),
        ({"body": b'{"keys": []}'}, "1 to 100 keys"),
    ],
    ids=["a redirect", "a redirect without TLS", "not there", "too large", "a page", "no key"],
)
def test_what_is_no_key_set_is_refused(server: KeyServer, settings: Tokens, answer: dict[str, Any], said: str) -> None:
    """The service does not begin without keys, and asks nobody but who was configured."""
    for name, value in answer.items():
        setattr(server, name, value)

    with pytest.raises(InvalidCommand, match=said):
        TokenReader(settings)
    assert server.asked == 1


def test_key_set_that_is_just_small_enough_is_read(issuer: Issuer, server: KeyServer, settings: Tokens) -> None:
    """The bound is where it says."""
    server.body = server.body.ljust(tokens.BYTES_MAX)

    assert TokenReader(settings).credential(issuer.token())[0].actor == "somebody"


def test_keys_of_a_server_that_is_not_known_are_refused(
    server: KeyServer, settings: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that nobody has signed is no reason to believe anything."""
    monkeypatch.delenv("SSL_CERT_FILE")

    with pytest.raises(InvalidCommand, match="CERTIFICATE_VERIFY_FAILED"):
        TokenReader(settings)
    assert server.asked == 0


def test_keys_are_never_fetched_without_tls(server: KeyServer, settings: Tokens) -> None:
    """Whoever is on the way could give others."""
    with pytest.raises(InvalidCommand, match="neither a file nor an https URL"):
        TokenReader(replace(settings, keys=server.url.replace("https", "http")))
    assert server.asked == 0
