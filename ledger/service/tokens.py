"""
JSON Web Tokens (RFC 7519) of one issuer: who asks, by a signature that is checked with its public keys.

What is checked is what RFC 8725 asks for: the algorithm is one that was chosen here, and of a public key; the key is of
that algorithm, and found by its id among the issuer's own; issuer, audience and both times are there and right.  The
actor is the `sub`, the scopes are those in `scope` (RFC 8693, section 4.2).
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import jwt

from ledger.access import ACTOR_CHARACTERS_MAX, Credential, Scope
from ledger.core.errors import InvalidCommand, Unauthenticated
from ledger.settings import Tokens

ALGORITHMS: Final = frozenset(
    {"ES256", "ES384", "ES512", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
)
"""What may be chosen, all with a public key: not `none`, and no shared secret, which such a key could be taken for."""

FRESH_SECONDS: Final = 300.0
AGAIN_SECONDS: Final = 30.0
"""How soon keys are fetched again because of a token whose key is not among them."""

BYTES_MAX: Final = 256 * 1024
FETCH_SECONDS: Final = 5.0
"""For an answer, and for the whole of it."""

_KEYS_MAX: Final = 100


class TokenReader:
    """Reads the tokens of an issuer; safe to share between threads."""

    def __init__(self, tokens: Tokens) -> None:
        """
        Read the issuer's keys.

        Raises:
            InvalidCommand: They cannot be read, or an algorithm is none that is accepted.
        """
        wrong = sorted({*tokens.algorithms} - ALGORITHMS)
        if wrong or not tokens.algorithms:
            raise InvalidCommand(
                "token algorithms", f"{', '.join(wrong) or 'none'}: take some of {', '.join(sorted(ALGORITHMS))}"
            )
        if "://" in tokens.keys and not tokens.keys.startswith("https://"):
            raise InvalidCommand("token keys", f"{tokens.keys!r:.160} is neither a file nor an https URL")
        self._tokens = tokens
        self._lock = threading.Lock()
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._read_at = -AGAIN_SECONDS
        self._refresh()

    def credential(self, token: str) -> tuple[Credential, float]:
        """
        Who a token says is asking, and until when (Unix time).

        Raises:
            Unauthenticated: It does not hold.
        """
        try:
            header = jwt.get_unverified_header(token)
            key = self._key(header.get("kid"), header.get("alg"))
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                issuer=self._tokens.issuer,
                audience=self._tokens.audience,
                leeway=self._tokens.leeway_seconds,
                options={"require": ["exp", "iss", "aud", "sub"], "verify_signature": True},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token does not hold ({error})"[:160]) from None
        return _credential_of(claims), float(claims["exp"]) + self._tokens.leeway_seconds

    def _key(self, name: str | None, algorithm: object) -> jwt.PyJWK:
        """The issuer's key of this name, if it is of that algorithm, and that is one of those that were chosen."""
        if algorithm not in self._tokens.algorithms:
            raise Unauthenticated(f"the token's algorithm is {algorithm!r:.20}, and not one of those that are accepted")
        if time.monotonic() - self._read_at > FRESH_SECONDS or name not in self._keys:
            self._refresh()
        key = self._keys.get(name)
        if key is None or key.algorithm_name != algorithm:
            raise Unauthenticated("the token's key is none of the issuer's for its algorithm")
        return key

    def _refresh(self) -> None:
        """Read the keys again, unless that was just done; those that were known stay good while nobody answers."""
        with self._lock:
            if time.monotonic() - self._read_at < AGAIN_SECONDS:
                return
            self._read_at = time.monotonic()
            try:
                self._keys = _keys_in(_bytes_at(self._tokens.keys), self._tokens.algorithms)
            except (OSError, HTTPException, ValueError, jwt.PyJWTError) as error:
                if not self._keys:
                    raise InvalidCommand("token keys", f"{self._tokens.keys} cannot be read: {error}") from None


def _bytes_at(place: str) -> bytes:
    """What is in a file, or at an https URL: as it was configured, never one that a token names."""
    if not place.startswith("https://"):
        return Path(place).read_bytes()
    until = time.monotonic() + FETCH_SECONDS
    read = b""
    with urllib.request.build_opener(_NoRedirect).open(place, timeout=FETCH_SECONDS) as answer:
        while part := answer.read1(BYTES_MAX + 1 - len(read)):
            read += part
            if len(read) > BYTES_MAX:
                raise ValueError(f"it has more than {BYTES_MAX} bytes")
            if time.monotonic() > until:
                raise TimeoutError(f"it takes longer than {FETCH_SECONDS:g} s")
    return read


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: whoever can make the issuer's server point away would choose the keys, and without TLS."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _keys_in(text: bytes, algorithms: tuple[str, ...]) -> dict[str | None, jwt.PyJWK]:
    """The keys of a JSON Web Key Set by their ids: those that can sign with one of the algorithms."""
    found = json.loads(text)
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not 1 <= len(listed) <= _KEYS_MAX:
        raise ValueError(f"it is no JSON Web Key Set of 1 to {_KEYS_MAX} keys")
    keys = {}
    for each in listed:
        if each.get("kty") == "oct" or each.get("use", "sig") != "sig":
            # A shared secret has no place among public keys.
            continue
        key = jwt.PyJWK.from_dict(each)
        if key.algorithm_name in algorithms:
            keys[key.key_id] = key
    if not keys:
        raise ValueError(f"none of its keys is for {', '.join(algorithms)}")
    return keys


def _credential_of(claims: Mapping[str, Any]) -> Credential:
    subject, scope = claims["sub"], claims.get("scope", "")
    if not isinstance(subject, str) or not 1 <= len(subject) <= ACTOR_CHARACTERS_MAX or "\0" in subject:
        raise Unauthenticated(f"the token's subject is not a name of 1 to {ACTOR_CHARACTERS_MAX} characters")
    named = scope.split() if isinstance(scope, str) else []
    # What else a token is good for is no matter of ours.
    scopes = frozenset(known for known in Scope if known.value in named)
    return Credential(subject, scopes, f"token:{subject}")
