"""
JSON Web Tokens (RFC 7519) of one issuer: who asks, by a signature that is checked with its public keys.

What is checked is what RFC 8725 asks for: the algorithm is one that was chosen here, and of a public key; the key is of
that algorithm, and found by its id among the issuer's own; issuer, audience and both times are there and right.  The
actor is the `sub`, the scopes are those in `scope` (RFC 8693, section 4.2).
"""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import jwt

from ledger.access import ACTOR_CHARACTERS_MAX, Credential, Scope
from ledger.core.errors import InvalidCommand, ServiceUnavailable, Unauthenticated
from ledger.settings import Tokens

ALGORITHMS: Final = frozenset(
    {"ES256", "ES384", "ES512", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
)
"""What may be chosen, all with a public key: not `none`, and no shared secret, which such a key could be taken for."""

FRESH_SECONDS: Final = 300.0
AGAIN_SECONDS: Final = 30.0
"""How soon keys are fetched again because of a token whose key is not among them."""

STALE_SECONDS: Final = 3_600.0
"""How long keys are good that could not be fetched again: one of them may have been withdrawn meanwhile."""

log: Final = logging.getLogger("ledger.service")

BYTES_MAX: Final = 256 * 1024
FETCH_SECONDS: Final = 5.0
"""For an answer, and for the whole of it."""

_KEYS_MAX: Final = 100
_UNREADABLE: Final = (OSError, HTTPException, ValueError)


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
        self._asked_at = self._read_at = -STALE_SECONDS
        try:
            self._refresh()
        except _UNREADABLE as error:
            raise InvalidCommand("token keys", f"{self._tokens.keys} cannot be read: {error}") from None

    def credential(self, token: str) -> tuple[Credential, float]:
        """
        Who a token says is asking, and until when (Unix time).

        Raises:
            Unauthenticated: It does not hold.
            ServiceUnavailable: The issuer's keys could not be read for too long.
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
            until = float(claims["exp"]) + self._tokens.leeway_seconds
        except (jwt.PyJWTError, OverflowError, TypeError, ValueError) as error:
            # Also times that are no numbers, or of hundreds of digits.
            raise Unauthenticated(f"the token does not hold ({error})"[:160]) from None
        return _credential_of(claims), until

    def _key(self, name: str | None, algorithm: object) -> jwt.PyJWK:
        """The issuer's key of this name, if it is of that algorithm, and that is one of those that were chosen."""
        if algorithm not in self._tokens.algorithms:
            raise Unauthenticated(f"the token's algorithm is {algorithm!r:.20}, and not one of those that are accepted")
        if time.monotonic() - self._asked_at > FRESH_SECONDS or name not in self._keys:
            self._refresh_if_possible()
        if time.monotonic() - self._read_at > STALE_SECONDS:
            raise ServiceUnavailable("the keys of the tokens' issuer cannot be read; the server's log tells why")
        key = self._keys.get(name)
        if key is None or key.algorithm_name != algorithm:
            raise Unauthenticated("the token's key is none of the issuer's for its algorithm")
        return key

    def _refresh_if_possible(self) -> None:
        """Read the keys again, unless that was just tried; those that were known stay good for a while."""
        with self._lock:
            if time.monotonic() - self._asked_at < AGAIN_SECONDS:
                return
            try:
                self._refresh()
            except _UNREADABLE as error:
                log.warning("the issuer's keys cannot be read, those of before are good for a while: %s", error)

    def _refresh(self) -> None:
        self._asked_at = time.monotonic()
        self._keys = _keys_in(_bytes_at(self._tokens.keys), self._tokens.algorithms)
        self._read_at = self._asked_at


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
    """
    The keys of a JSON Web Key Set by their ids: those that can sign with one of the algorithms.

    What is not understood of a set is ignored, and the rest of it is good (RFC 7517, section 5).
    """
    found = json.loads(text)
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not 1 <= len(listed) <= _KEYS_MAX:
        raise ValueError(f"it is no JSON Web Key Set of 1 to {_KEYS_MAX} keys")
    keys: dict[str | None, jwt.PyJWK] = {}
    for each in listed:
        if not isinstance(each, dict) or each.get("kty") == "oct" or each.get("use", "sig") != "sig":
            # A shared secret has no place among public keys.
            continue
        try:
            key = jwt.PyJWK.from_dict(each)
        except (jwt.PyJWTError, AttributeError, TypeError, ValueError):
            continue
        if key.algorithm_name in algorithms and isinstance(key.key_id, str | None):
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
