"""One event of a log: whether it is what was recorded in its place, and what may be recorded there at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ledger.core import chain
from ledger.core.book import Book, Stream, evolve
from ledger.core.codec import event_from
from ledger.core.errors import CorruptLog
from ledger.core.events import (
    AccountOpened,
    AccountStateChanged,
    AccountTermsChanged,
    AssetDefined,
    EntryPosted,
    Event,
    HoldCaptured,
    HoldExpired,
    HoldPlaced,
    HoldReleased,
    Numbers,
    OfHold,
    PeriodClosed,
    Recorded,
    StateAdvanced,
    StripesChanged,
)
from ledger.core.lifecycle import ACCOUNT


def verify_event(
    recorded: Recorded,
    kind: str,
    header_hash: bytes | None,
    stream: Stream,
    prev_hash: bytes,
    latest: tuple[Any, str],
    book: Book,
) -> None:
    """
    Check an event against all that came before it, in its stream and in its account; then the book moves on.

    `kind` and `header_hash` are of its transaction; `latest` says when the event before was recorded, and by which.

    Raises:
        CorruptLog: It is not what was recorded there, or what no program of ours would record.
    """

    def broken(column: str, problem: str) -> CorruptLog:
        return CorruptLog(recorded.stream, recorded.version, f"{column}: {problem}")

    _verify_place(recorded, header_hash, stream, latest, broken)
    try:
        event = event_from(recorded)
    except CorruptLog as corrupt:
        raise broken("payload", corrupt.problem) from corrupt
    _verify_lawful(event, stream, book, broken)
    _verify_allowed(event, kind, stream, broken)
    evolve(book, event)
    if isinstance(event, OfHold):
        _verify_hold(event, book, broken)
    if recorded.numbers is not None or stream.terms is not None:
        for column, stated, expected in zip(
            Numbers._fields, recorded.numbers or (None,) * 4, stream.numbers, strict=True
        ):
            if stated != expected:
                raise broken(column, f"it says {stated}, the events up to here make {expected}")
    try:
        chain.check_link(recorded, header_hash or b"", prev_hash)
    except CorruptLog as corrupt:
        raise broken("event_hash", corrupt.problem) from corrupt


def _verify_place(
    recorded: Recorded,
    header_hash: bytes | None,
    stream: Stream,
    latest: tuple[Any, str],
    broken: Callable[[str, str], CorruptLog],
) -> None:
    if recorded.version != stream.version + 1:
        raise broken("version", f"version {stream.version + 1} is missing")
    if header_hash is None:
        raise broken("transaction_id", f"transaction {recorded.transaction_id} does not exist")
    if (recorded.recorded_at, recorded.transaction_id) != latest and recorded.recorded_at <= latest[0]:
        raise broken("recorded_at", "it does not come after the event before")


def _verify_lawful(event: Event, stream: Stream, book: Book, broken: Callable[[str, str], CorruptLog]) -> None:
    """What no program of ours would append, whatever its hash."""
    terms = stream.terms
    match event:
        case AccountOpened() if stream.version:
            raise broken("type", "an account is opened by its first event, and once")
        case AssetDefined() if event.asset in book.assets:
            raise broken("payload", f"asset {event.asset} was defined before")
        case StateAdvanced() if event.source != (stream.state or ""):
            raise broken("payload", f"it leads away from {event.source}, the events up to here lead to {stream.state}")
        case AccountOpened() | AssetDefined() | StateAdvanced() | PeriodClosed():
            return
        case _ if terms is None:
            raise broken("type", "it comes before its account is opened")
        case StripesChanged() if not terms.streams <= event.streams >= event.stripes >= 1:
            raise broken("payload", f"{event.stripes} of {event.streams} streams, and there were {terms.streams}")
        case AccountStateChanged() | AccountTermsChanged() | StripesChanged():
            return
        case _ if event.asset != terms.asset:
            raise broken("asset", f"it moves {event.asset} on an account of {terms.asset}")


def _verify_allowed(event: Event, kind: str, stream: Stream, broken: Callable[[str, str], CorruptLog]) -> None:
    """What the account's state allowed at that version, whatever it is now."""
    if stream.terms is None:
        return
    state = stream.terms.state
    match event:
        case AccountStateChanged():
            allowed = event.state in {ACCOUNT.advance(state, step) for step in ACCOUNT.allowed(state)} - {state}
        case EntryPosted():
            allowed = ("reverse" if kind == "reverse" else "post") in ACCOUNT.allowed(state)
        case _:
            allowed = _ACTS.get(type(event)) in ACCOUNT.allowed(state)
    if not allowed:
        raise broken("type", f"the account was {state}, and that allows no {kind}")


_ACTS: Final[dict[type, str]] = {
    HoldPlaced: "hold",
    HoldCaptured: "capture",
    HoldReleased: "release",
    HoldExpired: "expire",
    AccountTermsChanged: "change",
    StripesChanged: "change",
}


def _verify_hold(event: OfHold, book: Book, broken: Callable[[str, str], CorruptLog]) -> None:
    legs = book.holds[event.hold]
    leg = legs.get(event.account)
    if leg is None:
        raise broken("payload", f"hold {event.hold} is not open here")
    if leg.left < 0:
        raise broken("amount", f"more is taken from hold {event.hold} than it has")
    if leg.left == 0:
        # Nothing may come after: an account that has had a million holds is verified in the memory of the open ones.
        del legs[event.account]
        if not legs:
            del book.holds[event.hold]
