"""
The feed over HTTP: a page that waits for something new, or an event stream that goes on.

`GET /v1/feed` is asked with the last position that was seen, and may wait (long polling).  `GET /v1/feed/events` is the
same as server-sent events (WHATWG HTML, section 9.2): the id of each is its position, with which a browser, or
whoever lost the connection, goes on by itself (`Last-Event-ID`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache, partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from ledger.access import Credential
from ledger.core.errors import TooManyRequests
from ledger.core.events import FeedEntry, account_of
from ledger.core.fields import INTEGER_MAX
from ledger.service import shapes
from ledger.service.bounds import Closing
from ledger.service.desk import Desk
from ledger.service.question_routes import Limit, Reading, json_response
from ledger.storage.queries import PAGE_MAX
from ledger.wire import Json, feed_json

WAIT_SECONDS_MAX: Final = 30.0
_LOOK_SECONDS: Final = 0.1
_BEAT_SECONDS: Final = 15.0
"""How long nothing is sent at most: a proxy may take silence for an end."""

After = Annotated[int, Query(description="The last position that was seen.", ge=0, le=INTEGER_MAX)]


class Watch:
    """Looks where the feed ends, once for all who wait for it, and only while somebody does."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._head = 0
        self._moved = asyncio.Condition()
        self._waiting = 0
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, after: int, seconds: float) -> None:
        """Wait until there is something after a position, the time is over, or the service ends."""
        self._waiting += 1
        try:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait_for(lambda: self._head > after or self._desk.ending.is_set())
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1

    async def _look(self) -> None:
        while self._waiting and not self._desk.ending.is_set():
            head = await self._desk.ask(self._desk.ledger.feed_head)
            if head != self._head:
                self._head = head
                async with self._moved:
                    self._moved.notify_all()
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._desk.ending.wait()
            except TimeoutError:
                continue
        async with self._moved:
            self._moved.notify_all()


def router(desk: Desk) -> APIRouter:
    """The routes of the feed."""
    routes = APIRouter(prefix="/v1/feed", tags=["Feed"])
    feed = _Feed(desk)
    page: dict[int | str, dict[str, Any]] = {200: {"model": shapes.FeedShape}}
    routes.add_api_route("", feed.page, operation_id="feed", responses=page, response_model=None)
    routes.add_api_route(
        "/events", feed.events, operation_id="feed_events", responses=_EVENTS, response_class=StreamingResponse
    )
    return routes


class _Feed:
    """The two ways of reading it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._watch = Watch(desk)
        self._scale = cache(desk.ledger.scale)
        self._following = 0

    async def page(
        self,
        credential: Reading,
        after: After = 0,
        limit: Limit = 100,
        wait_seconds: Annotated[float, Query(ge=0, le=WAIT_SECONDS_MAX, description="For something new.")] = 0,
    ) -> Response:
        """What was stamped after a position, in order; if there is nothing yet, it may be waited for."""
        entries = await self._read(credential, after, limit)
        if not entries and wait_seconds:
            self._check_following()
            self._following += 1
            try:
                await self._watch.wait(after, min(wait_seconds, self._desk.settings.limits.follow_seconds))
            finally:
                self._following -= 1
            entries = await self._read(credential, after, limit)
        return json_response({"entries": entries, "next": entries[-1]["position"] if entries else after})

    async def events(
        self,
        credential: Reading,
        after: After = 0,
        last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{1,15}$")] = None,
    ) -> Response:
        """What was stamped after a position, and what is stamped from now on, as server-sent events."""
        self._check_following()
        begin = after if last_event_id is None else int(last_event_id)
        return Closing(
            self._follow(credential, begin), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    def _check_following(self) -> None:
        followers = self._desk.settings.limits.followers
        if self._following >= followers:
            raise TooManyRequests(f"{followers} followers of the feed at once", 10)

    async def _follow(self, credential: Credential, after: int) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        until = clock() + self._desk.settings.limits.follow_seconds
        self._following += 1
        try:
            yield b": after position %d\n\n" % after
            while not self._desk.ending.is_set() and (left := until - clock()) > 0:
                entries = await self._read(credential, after, PAGE_MAX)
                for entry in entries:
                    after = entry["position"]
                    yield b"id: %d\nevent: %s\ndata: %s\n\n" % (after, entry["type"].encode(), to_json(entry))
                if not entries:
                    await self._watch.wait(after, min(_BEAT_SECONDS, left))
                    yield b": still here\n\n"
        finally:
            self._following -= 1

    async def _read(self, credential: Credential, after: int, limit: int) -> list[Json]:
        def asked() -> list[FeedEntry]:
            return list(self._desk.ledger.feed(after=after, limit=limit))

        entries = await self._desk.read(
            credential, "feed", asked, lambda found: [account_of(entry.event.stream) for entry in found]
        )
        return await self._desk.ask(partial(_plain, entries, self._scale))


_EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Server-sent events: the id is the position, the data an entry of the feed.",
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "object",
                    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
                }
            }
        },
    }
}


def _plain(entries: list[FeedEntry], scale: Any) -> list[Json]:
    return [feed_json(each, None if each.event.asset is None else scale(each.event.asset)) for each in entries]
