"""
Everything in one file, over HTTP: `GET /v1/export?format=hledger`.

It is written into a file without a name, in a thread, and then sent: its hash and its length stand in the head, and
whoever reads slowly keeps no connection to the database.  Few are made at once.  If whoever asked goes away, nothing
of it stays.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from tempfile import TemporaryFile
from typing import Annotated, Any, BinaryIO, Final

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ledger.access import Credential
from ledger.access import Scope as Grant
from ledger.audit.export import Exported, Format, digest_header
from ledger.core.errors import DeadlineExceeded, ServiceUnavailable, TooManyRequests
from ledger.core.fields import INTEGER_MAX
from ledger.service.desk import Desk
from ledger.service.occasion import note
from ledger.service.scoped import require

Exporting = Annotated[Credential, Depends(require(Grant.EXPORT))]

MEDIA_TYPES: Final[Mapping[Format, str]] = {
    Format.HLEDGER: "text/plain",
    Format.BEANCOUNT: "text/plain",
    Format.CSV: "text/csv",
    Format.PARQUET: "application/vnd.apache.parquet",
}

_ENDINGS: Final[Mapping[Format, str]] = {
    Format.HLEDGER: "journal",
    Format.BEANCOUNT: "beancount",
    Format.CSV: "csv",
    Format.PARQUET: "parquet",
}
"""What the names of such files end with."""

_PART_BYTES: Final = 256 * 1024
_READS_TOGETHER: Final = 10_000
_RETRY_SECONDS: Final = 10


class _GivenUpError(Exception):
    """Nobody waits for it any more."""


def router(desk: Desk) -> APIRouter:
    """The route of exports."""
    routes = APIRouter(prefix="/v1", tags=["Audit"])
    places = _Places(desk.settings.limits.exports)

    @routes.get("/export", operation_id="export", response_class=StreamingResponse, responses=_ANSWERED)
    async def export(
        credential: Exporting,
        format: Annotated[Format, Query(description="What is to read it.", examples=["csv"])],
        position: Annotated[
            int | None,
            Query(
                description="Up to this position of the feed; the last one, unless it is said.", ge=0, le=INTEGER_MAX
            ),
        ] = None,
    ) -> Response:
        """
        Everything up to a position of the feed, for another program; the same position gives the same bytes.

        `Content-Digest` (RFC 9530) is of these bytes, and `Ledger-Position` says where they end.
        """
        return _Sent(desk, places, credential, format, position)

    return routes


class _Places:
    """How many may be made, or sent, at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """
        Hold one.

        Raises:
            TooManyRequests: All are taken.
        """
        if self._taken >= self._most:
            raise TooManyRequests(f"{self._most} exports at once", _RETRY_SECONDS)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class _Sent(Response):
    """An export that is made when it is sent, so that its file and its place are given back however that ends."""

    def __init__(self, desk: Desk, places: _Places, credential: Credential, kind: Format, position: int | None) -> None:
        super().__init__()
        self._desk = desk
        self._places = places
        self._credential = credential
        self._kind = kind
        self._position = position

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = self._desk.settings.limits.export_seconds
        has_begun = False
        with self._places.place(), TemporaryFile() as file:
            try:
                async with asyncio.timeout(seconds):
                    written = await self._written(file, receive)
                    if written is not None:
                        has_begun = True
                        await self._response(file, written)(scope, receive, send)
            except TimeoutError:
                if not has_begun:
                    raise DeadlineExceeded("for the export", seconds) from None
                # It is cut off, short of its length: who reads it knows.
                note(code=DeadlineExceeded.code)

    async def _written(self, file: BinaryIO, receive: Receive) -> Exported | None:
        """Write it in a thread; None if whoever asked is gone.  It has ended, one way or other, when this has."""
        nobody_waits = threading.Event()
        writing = asyncio.get_running_loop().run_in_executor(
            self._desk.exporters, self._write, file, nobody_waits.is_set
        )
        leaving = asyncio.create_task(_gone(receive))
        try:
            both: set[asyncio.Future[Any]] = {writing, leaving}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return None if leaving.done() else writing.result()
        except _GivenUpError:
            raise ServiceUnavailable("it ends") from None
        finally:
            nobody_waits.set()
            leaving.cancel()
            await asyncio.wait({writing})
            if not writing.cancelled():
                # What it ended with is of no interest where nobody waits.
                writing.exception()

    def _write(self, file: BinaryIO, nobody_waits: Callable[[], bool]) -> Exported:
        def going_on(_events: int) -> None:
            if nobody_waits() or self._desk.ending.is_set():
                raise _GivenUpError

        try:
            written = self._desk.ledger.export(self._kind, file, position=self._position, progress=going_on)
            file.flush()
        except OSError as error:
            raise ServiceUnavailable(f"there is no room for the file ({error.strerror or error})") from None
        if self._credential.is_auditor:
            for first in range(0, written.accounts, _READS_TOGETHER):
                some = written.account_ids[first : first + _READS_TOGETHER]
                self._desk.keys.record_reads(self._credential, f"export {self._kind}", some)
        return written

    def _response(self, file: BinaryIO, written: Exported) -> Response:
        name = f"ledger-{written.position}.{_ENDINGS[self._kind]}"
        headers = {
            "Content-Length": str(file.tell()),
            "Content-Disposition": f'attachment; filename="{name}"',
            "Content-Digest": digest_header(written.sha256),
            "Ledger-Id": written.ledger_id,
            "Ledger-Position": str(written.position),
            "Ledger-Accounts": str(written.accounts),
            "Ledger-Transactions": str(written.transactions),
            "Ledger-Entries": str(written.entries),
        }
        file.seek(0)
        return StreamingResponse(self._parts(file), HTTPStatus.OK, headers, MEDIA_TYPES[self._kind])

    async def _parts(self, file: BinaryIO) -> AsyncIterator[bytes]:
        read = partial(asyncio.get_running_loop().run_in_executor, self._desk.exporters, file.read, _PART_BYTES)
        while part := await read():
            yield part


async def _gone(receive: Receive) -> None:
    """Wait until whoever asked goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


_COUNT: Final = {"schema": {"type": "string", "pattern": "^[0-9]{1,19}$"}, "example": "7"}

_ANSWERED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The file.",
        "headers": {
            "Content-Digest": {
                "description": "The SHA-256 of the file (RFC 9530).",
                "schema": {"type": "string", "pattern": "^sha-256=:[0-9A-Za-z+/]{43}=:$"},
                "example": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
            },
            "Content-Disposition": {"schema": {"type": "string"}, "example": 'attachment; filename="ledger-7.csv"'},
            "Ledger-Id": {"schema": {"type": "string"}, "example": "01890a5d-ac96-774b-bcce-b302099a8057"},
            "Ledger-Position": {"description": "Of the feed; it ends there.", **_COUNT},
            "Ledger-Accounts": {"description": "Accounts in it.", **_COUNT},
            "Ledger-Transactions": {"description": "Transactions in it.", **_COUNT},
            "Ledger-Entries": {"description": "Events in it that move an amount.", **_COUNT},
        },
        "content": {
            "text/csv": {"schema": {"type": "string"}, "example": "position,recorded_at,account\r\n"},
            "text/plain": {"schema": {"type": "string"}, "example": "commodity USD 1000.00\n"},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
