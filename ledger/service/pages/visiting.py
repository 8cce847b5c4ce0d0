"""
Who visits: signing in with an API key, and the token without which no form is taken.

What a browser keeps is the key itself, sealed with a secret that this process has drawn and nobody else knows: nothing
of it is kept here, a key that is revoked is refused as quickly as everywhere, and whoever restarts the service signs
everybody out.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from cryptography.fernet import Fernet, InvalidToken
from fastapi import HTTPException, Request, Response

from ledger.core.errors import InvalidCommand
from ledger.service.bodies import body_of
from ledger.settings import ServiceSettings

SESSION_SECONDS: Final = 3_600
"""For how long who has signed in need not do so again."""

ENDED_MAX: Final = 10_000
"""Sessions that were ended before their time, and are remembered until it comes."""

FORM_BYTES: Final = 16 * 1024
FORM_SECONDS: Final = 10.0
_FIELDS_MAX: Final = 20


class Session(NamedTuple):
    """Who has signed in: the credential as the API takes it, and a name for the session."""

    name: str
    authorization: str


class Sessions:
    """The visitors of one process."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.secure = settings.certificate is not None or settings.behind_proxy
        self.cookie = "__Host-ledger" if self.secure else "ledger"
        self._seal = Fernet(Fernet.generate_key())
        self._secret = secrets.token_bytes(32)
        self._ended: OrderedDict[str, float] = OrderedDict()

    def begin(self, response: Response, key: str) -> None:
        """Let the browser keep who has signed in, out of reach of scripts and of other sites."""
        kept = json.dumps([secrets.token_urlsafe(16), key]).encode()
        self._set(response, self._seal.encrypt(kept).decode(), SESSION_SECONDS)

    def end(self, request: Request, response: Response) -> None:
        """Sign out: the cookie is good for nothing from here on, whoever has it."""
        session = self.of(request)
        if session is not None:
            self._ended[session.name] = time.monotonic() + SESSION_SECONDS
            while len(self._ended) > ENDED_MAX or next(iter(self._ended.values())) < time.monotonic():
                self._ended.popitem(last=False)
        self._set(response, "", 0)

    def of(self, request: Request) -> Session | None:
        """The session of a request, if it has one that is good."""
        sealed = request.cookies.get(self.cookie)
        if not sealed:
            return None
        try:
            name, key = json.loads(self._seal.decrypt(sealed.encode(), ttl=SESSION_SECONDS))
        except (InvalidToken, ValueError):
            return None
        return None if name in self._ended else Session(name, f"Bearer {key}")

    def authorization(self, request: Request) -> str | None:
        """What a request says about who asks: by its header as a program, or else by its session."""
        header = request.headers.get("authorization")
        if header is not None:
            return header
        session = self.of(request)
        return None if session is None else session.authorization

    def token(self, request: Request) -> str:
        """What a form of this session has to carry, and no other site can know."""
        session = self.of(request)
        name = "" if session is None else session.name
        return hmac.new(self._secret, name.encode(), sha256).hexdigest()

    async def form(self, request: Request) -> dict[str, str]:
        """
        The fields of a form that one of our own pages has sent.

        Raises:
            HTTPException: Another site has sent it, or it was made for another session.
            RequestTooLarge, InvalidCommand: It is none, or too large.
        """
        fields = await _fields(request)
        if "authorization" in request.headers:
            # No browser sends it on its own.
            return fields
        if not _is_own(request.headers) or not hmac.compare_digest(
            fields.get("token", "").encode(), self.token(request).encode()
        ):
            raise HTTPException(HTTPStatus.FORBIDDEN, "It was not sent by a page of your session. Open the page again.")
        return fields

    def _set(self, response: Response, value: str, seconds: int) -> None:
        response.set_cookie(
            self.cookie, value, max_age=seconds, path="/", secure=self.secure, httponly=True, samesite="strict"
        )


def own_path(text: str) -> str:
    """A path of this service, to go on to; what leads elsewhere is the first page."""
    is_path = text.startswith("/") and not text.startswith("//") and "\\" not in text and text.isprintable()
    return text if is_path else "/"


async def _fields(request: Request) -> dict[str, str]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    body = await body_of(request, FORM_BYTES, FORM_SECONDS)
    if body and kind != "application/x-www-form-urlencoded":
        raise InvalidCommand("Content-Type", "a form is sent as application/x-www-form-urlencoded")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="strict"))
    except ValueError:
        raise InvalidCommand("form", "its fields cannot be read") from None


def _is_own(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of ours has sent this, as far as it says anything."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    # With no-referrer a browser sends the origin of a form as `null`: it has said same-origin before.
    return origin is None or (origin == "null" and site is not None) or urlsplit(origin).netloc == headers.get("host")
