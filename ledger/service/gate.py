"""Who asks: a credential for what a request carries, and how often each may."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Final, Protocol

from ledger.access import PREFIX, ApiKeys, Credential, Scope
from ledger.core.errors import TooManyRequests, Unauthenticated
from ledger.service.occasion import note
from ledger.settings import ServiceSettings

KNOWN_SECONDS: Final = 5.0
"""For how long a key that was found is good without being looked for again: a revoked one is refused by then."""

KNOWN_MAX: Final = 10_000

CREDENTIAL_CHARACTERS_MAX: Final = 8_192

EVERYBODY: Final = Credential("anonymous", frozenset(Scope) - {Scope.AUDIT}, "anonymous")
"""Who asks where nobody is asked who they are."""


class Reader(Protocol):
    """Whatever reads tokens: who they say is asking, and until when (Unix time) they may be believed."""

    def credential(self, token: str) -> tuple[Credential, float]: ...


class Gate:
    """
    Knows who asks, by an API key or a token, and lets nobody ask too often.

    What was found is good for a few seconds, so that the database is not asked for each request.
    """

    def __init__(
        self,
        keys: ApiKeys,
        settings: ServiceSettings,
        in_thread: Callable[[Callable[[str], tuple[Credential, float]], str], Awaitable[tuple[Credential, float]]],
        tokens: Reader | None = None,
    ) -> None:
        self._keys = keys
        self._is_open = not settings.authentication
        self._rate = settings.limits.rate
        self._in_thread = in_thread
        self._tokens = tokens
        self._known: OrderedDict[bytes, tuple[Credential, float]] = OrderedDict()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def admit(self, authorization: str | None) -> Credential:
        """
        Who asks, by the header `Authorization: Bearer KEY-OR-TOKEN`.

        Raises:
            Unauthenticated: It says nobody that is known.
            TooManyRequests: They ask too often.
        """
        credential = EVERYBODY if self._is_open else await self._credential(authorization)
        note(actor=credential.actor)
        self._count(credential.owner)
        return credential

    async def _credential(self, authorization: str | None) -> Credential:
        scheme, _, sent = (authorization or "").partition(" ")
        sent = sent.strip()
        if scheme.lower() != "bearer" or not sent or len(sent) > CREDENTIAL_CHARACTERS_MAX:
            raise Unauthenticated("there is no credential")
        # By its hash: no secret is kept, and none is compared here.
        name = sha256(sent.encode()).digest()
        now = time.monotonic()
        known = self._known.get(name)
        if known is not None and known[1] > now:
            return known[0]
        credential, seconds = await self._in_thread(self._looked_up, sent)
        self._known[name] = (credential, now + min(KNOWN_SECONDS, seconds))
        self._known.move_to_end(name)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return credential

    def _looked_up(self, sent: str) -> tuple[Credential, float]:
        """The credential, and for how many seconds it is good at most."""
        if sent.startswith(f"{PREFIX}_"):
            return self._keys.credential(sent), KNOWN_SECONDS
        if self._tokens is None:
            raise Unauthenticated("it is no API key, and tokens are not accepted here")
        credential, until = self._tokens.credential(sent)
        return credential, max(0.0, until - time.time())

    def _count(self, owner: str) -> None:
        """Take one of a credential's requests, of which a second's worth may be saved up."""
        now = time.monotonic()
        left, since = self._buckets.get(owner, (float(self._rate), now))
        left = min(float(self._rate), left + (now - since) * self._rate)
        if left < 1:
            raise TooManyRequests(f"{self._rate} requests a second of one credential", 1)
        self._buckets[owner] = (left - 1, now)
        self._buckets.move_to_end(owner)
        if len(self._buckets) > KNOWN_MAX:
            self._buckets.popitem(last=False)
