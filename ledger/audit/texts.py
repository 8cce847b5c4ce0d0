"""
Rows as the texts that the server sends, checked without being read into values where they are as nearly all are.

What is not plainly an entry that follows, or a transaction that is what its hash covers, is left to the
thorough check, which reads the row and says what is wrong with it.  Nothing is found wrong here.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Final

from ledger.core import codec
from ledger.core.book import Stream
from ledger.core.commands import ENTRIES_MAX
from ledger.storage.database import Row, TextRow

EVENT_TEXTS: Final = """
e.stream, e.version, e.transaction_id, e.type, e.payload, e.schema, e.asset, e.direction, e.amount,
e.posted_debits, e.posted_credits, e.pending_debits, e.pending_credits, e.effective_at, e.recorded_at,
e.prev_hash, e.event_hash
"""
"""The columns of `store.EVENT_COLUMNS`, as they are."""

TRANSACTION_TEXTS: Final = """
t.transaction_id, t.kind, t.scope, t.idempotency_key, t.request, t.entry_count, t.announced, t.reference,
t.effective_at, t.recorded_at, t.actor, t.correlation_id, t.causation_id, t.metadata, t.header_hash
"""
"""The columns of `store.TRANSACTION_COLUMNS`, as they are."""

_HEX: Final = "\\x"
_DIGITS: Final = len(_HEX)
"""Where the digits of bytes begin."""

_ZONE: Final = "+00"
_SECONDS: Final = len("2026-01-02 03:04:05")
_MICROSECONDS: Final = len("2026-01-02 03:04:05.123456")

_HASHES_OF_ENTRIES: Final = {
    payload: codec.payload_hash(payload) for payload in map(codec.entry_payload, range(ENTRIES_MAX))
}


class Entries:
    """The head of an account's stream, which entries follow one after the other."""

    __slots__ = ("_asset", "_pending", "_pending_part", "_stream", "credits", "debits", "latest", "prev", "version")

    def __init__(self, stream: Stream, prev_hash: bytes, latest: tuple[datetime, str]) -> None:
        assert stream.terms is not None
        debits, credits, *pending = stream.numbers
        self._stream = stream.stream
        self._asset = stream.terms.asset
        self._pending = (str(pending[0]), str(pending[1]))
        self._pending_part = codec.pending_part(*pending)
        self.version, self.debits, self.credits = stream.version, debits, credits
        self.prev = _HEX + prev_hash.hex()
        recorded_at, transaction_id = latest
        self.latest = (f"{recorded_at.replace(tzinfo=None).isoformat(timespec='microseconds')}Z", transaction_id)

    def follow(self, fields: TextRow) -> bool:
        """Whether a row, of EVENT_TEXTS and its transaction's hash and kind, is the next entry: the head moves on."""
        (
            _, version, transaction_id, kind, payload, schema, asset, direction, amount, debits, credits,
            pending_debits, pending_credits, effective_at, recorded_at, prev, event_hash, header_hash, _,
        ) = fields  # fmt: skip
        payload_hash = _HASHES_OF_ENTRIES.get(payload)
        if (
            payload_hash is None
            or header_hash is None
            or prev != self.prev
            or kind != codec.ENTRY_POSTED
            or asset != self._asset
            or schema != "1"
            or (pending_debits, pending_credits) != self._pending
        ):
            return False
        moved = _amount(amount)
        left, right = self.debits, self.credits
        if direction == "debit":
            left += moved
        elif direction == "credit":
            right += moved
        recorded = utc(recorded_at)
        effective = recorded if effective_at == recorded_at else utc(effective_at)
        if (
            not (moved and recorded and effective)
            or debits != str(left)
            or credits != str(right)
            or version != str(self.version + 1)
            or (recorded <= self.latest[0] and (recorded, transaction_id) != self.latest)
        ):
            return False
        record = codec.record_text(
            header_hash[_DIGITS:],
            self._stream,
            version,
            transaction_id,
            kind,
            payload_hash,
            schema,
            f'{codec.entry_part(amount, asset, direction)}"effective_at":"{effective}"',
            self._pending_part + codec.posted_part(debits, credits),
            recorded,
            prev[_DIGITS:],
        )
        if event_hash != _HEX + sha256(b"\0" + record.encode()).hexdigest():
            return False
        self.version, self.debits, self.credits = self.version + 1, left, right
        self.prev, self.latest = event_hash, (recorded, transaction_id)
        return True

    def settle(self, stream: Stream) -> tuple[bytes, tuple[datetime, str]]:
        """Put what followed into the stream; returns the hash of the last, when it was recorded and by whom."""
        stream.version = self.version
        stream.numbers = stream.numbers._replace(posted_debits=self.debits, posted_credits=self.credits)
        recorded, transaction_id = self.latest
        return bytes.fromhex(self.prev[_DIGITS:]), (datetime.fromisoformat(recorded), transaction_id)


def sealed(texts: TextRow) -> bool:
    """Whether a row of TRANSACTION_TEXTS is plainly what its header hash covers."""
    (
        transaction_id, kind, scope, key, request, entry_count, places, reference, effective_at, recorded_at,
        actor, correlation_id, causation_id, metadata, header_hash,
    ) = texts  # fmt: skip
    announced, effective, recorded = _announced(places), utc(effective_at), utc(recorded_at)
    if announced is None or not (effective and recorded) or metadata == "{}":
        return False
    header = codec.header_text(
        transaction_id, kind, scope, key, request, entry_count, announced, reference, effective, recorded,
        actor, correlation_id, causation_id, metadata,
    )  # fmt: skip
    return bool(header_hash == _HEX + sha256(header.encode()).hexdigest())


def _announced(array: str | None) -> str | None:
    """The places in the text of an array as the JSON of a header; None where there is anything to unescape."""
    if array is None or "\\" in array:
        return None
    # Whatever else is not as we write it makes another text than any array of ours, and so another hash.
    places = array[2:-2].replace('","', '],["').replace(" ", '",')
    return f'["{places}]'


def _amount(text: str | None) -> int:
    """An amount; 0, which none is, where it is not a number."""
    return int(text) if text is not None and text.isdigit() else 0


@lru_cache(maxsize=8192)
def utc(text: str | None) -> str:
    """A moment as hashes cover it, from the text that a server sends in UTC; "" where that is not of our years."""
    if text is None or not text.endswith(_ZONE):
        return ""
    body = text[: -len(_ZONE)]
    if len(body) < _SECONDS or body[4] != "-" or body[10] != " ":
        return ""
    fraction = body[_SECONDS:] or "."
    return f"{body[:10]}T{body[11:_SECONDS]}{fraction.ljust(_MICROSECONDS - _SECONDS, '0')}Z"


def event_row(texts: TextRow) -> Row:
    """A row of EVENT_TEXTS and its transaction's hash and kind, as a row of `store.EVENT_COLUMNS` and these."""
    moments = [_moment(text) for text in texts[13:15]]
    return (
        texts[0],
        _integer(texts[1]),
        *texts[2:5],
        _integer(texts[5]),
        *texts[6:13],
        *moments,
        *map(_bytes, texts[15:18]),
        *texts[18:],
    )


def transaction_row(texts: TextRow) -> Row:
    """A row of TRANSACTION_TEXTS as a row of `store.TRANSACTION_COLUMNS`."""
    moments = [_moment(text) for text in texts[8:10]]
    return (*texts[:5], _integer(texts[5]), _elements(texts[6]), texts[7], *moments, *texts[10:14], _bytes(texts[14]))


_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_ELEMENT: Final = re.compile(r'[{,](?:"((?:[^"\\]|\\.)*)"|([^{},"]+))', re.DOTALL)


def _elements(array: str | None) -> list[str | None] | None:
    """The elements of the text of an array; None where it is no plain list, from 1 on, of at least one."""
    if array is None:
        return None
    elements: list[str | None] = []
    end = 0
    while found := _ELEMENT.match(array, end):
        quoted, plain = found.groups()
        elements.append((None if plain == "NULL" else plain) if quoted is None else _ESCAPED.sub(r"\1", quoted))
        end = found.end()
    return elements if array[end:] == "}" else None


def _integer(text: str | None) -> int | None:
    return None if text is None else int(text)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text[2:])


def _moment(text: str | None) -> datetime | None:
    """A moment without its zone; None where Python knows no such year."""
    with suppress(ValueError):
        return datetime.fromisoformat(utc(text)[:-1])
    return None
