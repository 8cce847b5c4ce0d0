"""Signing in and out, and the files that pages refer to."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import HTTPException, Request, Response

from ledger.core.errors import LedgerError, Unauthenticated
from ledger.service.pages.rendering import FOR_EVER, HEADERS, assets
from ledger.service.pages.site import Site, go_to
from ledger.service.pages.visiting import own_path


class Entrance:
    """The pages that everybody may see."""

    def __init__(self, site: Site) -> None:
        self._site = site
        site.get("/sign-in", self.asked)
        site.post("/sign-in", self.sign_in)
        site.post("/sign-out", self.sign_out)
        site.get("/static/{name}", self.asset)

    async def asked(self, request: Request) -> Response:
        """Ask who it is."""
        return self._site.page(request, "sign_in.html", next="/", problem=None)

    async def sign_in(self, request: Request) -> Response:
        """Let in who has an API key."""
        fields = await self._site.sessions.form(request)
        key, wanted = fields.get("key", "").strip(), own_path(fields.get("next", "/"))
        try:
            await self._site.desk.gate.admit(f"Bearer {key}")
        except Unauthenticated:
            told = "This key is unknown, was revoked, or its time is over."
            return self._site.page(request, "sign_in.html", HTTPStatus.UNAUTHORIZED, next=wanted, problem=told)
        except LedgerError as error:
            return self._site.problem(request, error)
        answer = go_to(wanted)
        self._site.sessions.begin(answer, key)
        return answer

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        await self._site.sessions.form(request)
        answer = go_to("/sign-in")
        self._site.sessions.end(request, answer)
        return answer

    async def asset(self, name: str) -> Response:
        """A style sheet or a script."""
        found = assets().get(name)
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such file.")
        headers = {**HEADERS, "Cache-Control": FOR_EVER}
        return Response(found.content, headers=headers, media_type=found.media_type)
