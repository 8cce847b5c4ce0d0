"""What the tests of the core draw from: hostile texts, amounts, ids, moments, and facts of every kind."""

from __future__ import annotations

import string
from datetime import UTC, datetime
from typing import Final

from hypothesis import strategies as st

from ledger.core import chain
from ledger.core.book import Book, Stream, stream_of, terms_of
from ledger.core.canonical import canonical_json
from ledger.core.commands import AccountType, Direction
from ledger.core.events import (
    ZERO,
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
    Movement,
    Numbers,
    PeriodClosed,
    Recorded,
    StateAdvanced,
    StripesChanged,
    Transaction,
)
from ledger.core.fields import INTEGER_MAX
from ledger.core.money import MINOR_MAX

LEDGER_ID: Final = "5f0c7d0e-0000-4000-8000-000000000001"
TRANSACTION_ID: Final = "018cc251-f400-7000-8000-000000000001"
MOMENT: Final = datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)

_ESCAPED: Final = '"\\/\b\f\n\r\t\x01\x1f\x7f\u0080\u2028\u2029\ud7ff\ue000\uffff\U00010000🦉\U0010ffff'

texts = st.text(
    st.one_of(st.sampled_from(_ESCAPED), st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    min_size=1,
    max_size=12,
)
"""Any storable text, with a liking for what an encoder must escape, and for what it must not."""

account_ids = st.builds(
    str.__add__,
    st.sampled_from(string.ascii_letters + string.digits),
    st.text(string.ascii_letters + string.digits + "._:/@+-", max_size=127),
)
assets = st.sampled_from(["USD", "JPY", "BTC", "A", "A.B_C-9"])
scales = st.integers(0, 18)
minors = st.integers(-MINOR_MAX, MINOR_MAX)
positive = st.integers(1, MINOR_MAX)
versions = st.integers(1, INTEGER_MAX)
moments = st.datetimes(timezones=st.just(UTC))
keys = st.text(string.printable[:95], min_size=1, max_size=12)
scalars = st.one_of(texts, st.booleans(), st.integers(-INTEGER_MAX, INTEGER_MAX))
metadata = st.dictionaries(keys, scalars, max_size=5)
numbers = st.builds(Numbers, *[st.integers(0, MINOR_MAX)] * 4)

assets_defined = st.builds(AssetDefined, assets, scales)
accounts_opened = st.builds(
    AccountOpened,
    account_ids,
    st.sampled_from(AccountType),
    assets,
    scales,
    st.none() | minors,
    st.none() | minors,
    metadata,
)
entries_posted = st.builds(EntryPosted, account_ids, st.sampled_from(Direction), assets, positive, st.integers(0, 199))
reasons = st.none() | texts
holds = st.sampled_from([f"018cc251-f400-7000-8000-00000000000{number}" for number in range(3)])
"""Few enough that several events of an example are about one hold."""

_of_hold = (
    st.sampled_from(["alice", "bob"]) | account_ids,
    st.sampled_from(Direction),
    assets,
    positive,
    st.integers(0, 199),
    holds,
)
names = st.text(string.ascii_lowercase, min_size=1, max_size=63)
holds_placed = st.builds(HoldPlaced, *_of_hold, st.none() | moments)
holds_changed: st.SearchStrategy[Event] = st.one_of(
    *[st.builds(kind, *_of_hold) for kind in (HoldCaptured, HoldReleased, HoldExpired)]
)
states_changed = st.builds(AccountStateChanged, account_ids, st.sampled_from(["open", "frozen", "closed"]), reasons)
terms_changed = st.builds(AccountTermsChanged, account_ids, st.none() | minors, st.none() | minors, metadata, reasons)
stripes_changed = st.builds(StripesChanged, account_ids, st.integers(1, 256), st.integers(1, 256), reasons)
_lines = st.tuples(assets, st.sampled_from([each.value for each in AccountType]), positive.map(str), positive.map(str))
periods_closed = st.builds(PeriodClosed, moments, st.lists(_lines, max_size=5).map(tuple), reasons)
states_advanced = st.builds(
    StateAdvanced,
    st.builds("#{}/{}".format, names, account_ids),
    names,
    names,
    st.just("") | names,
    names,
    st.binary(min_size=32, max_size=32).map(bytes.hex),
)
events: st.SearchStrategy[Event] = st.one_of(
    assets_defined,
    accounts_opened,
    entries_posted,
    holds_placed,
    holds_changed,
    states_changed,
    terms_changed,
    stripes_changed,
    periods_closed,
    states_advanced,
)
"""Facts of every type; a test of the codec counts that none is missing."""


@st.composite
def transactions(draw: st.DrawFn) -> Transaction:
    """A sealed transaction, as hostile as its callers can make it."""
    streams = draw(st.lists(account_ids, min_size=1, max_size=4))
    return chain.sealed(
        str(draw(st.uuids())),
        draw(st.sampled_from(["post", "transfer", "open_account"])),
        draw(st.just("") | texts),
        draw(st.none() | texts),
        canonical_json({"metadata": draw(metadata), "type": "post"}),
        draw(st.integers(0, 200)),
        tuple(streams),
        tuple(draw(versions) for _ in streams),
        draw(st.none() | texts),
        draw(moments),
        draw(moments),
        draw(st.none() | texts),
        draw(st.none() | texts),
        draw(st.none() | texts),
        draw(st.none() | metadata.filter(bool).map(canonical_json)),
    )


def transaction(**changed: object) -> Transaction:
    """A plain sealed transaction, with some fields changed before it was sealed."""
    plain = Transaction(
        transaction_id=TRANSACTION_ID,
        kind="transfer",
        scope="",
        idempotency_key="key",
        request='{"amount":"5.00 USD","credit":"bob","debit":"alice","type":"transfer"}',
        entry_count=2,
        streams=("alice", "bob"),
        versions=(1, 1),
        reference="invoice",
        effective_at=MOMENT,
        recorded_at=MOMENT,
        actor="clerk",
        correlation_id="correlation",
        causation_id="cause",
        metadata='{"order":7}',
    )
    return chain.sealed(*plain._replace(**changed)[:-1])  # type: ignore[arg-type]


def record(*facts: Event, of: Transaction | None = None, book: Book | None = None) -> list[Recorded]:
    """Facts as they would be stored, in the streams of `book`."""
    book = Book(LEDGER_ID) if book is None else book
    return chain.link(of or transaction(), facts, chain.place(facts, book), LEDGER_ID)


@st.composite
def recorded_events(draw: st.DrawFn) -> tuple[Transaction, Recorded]:
    """A recorded event somewhere in the life of its stream, and its transaction."""
    event, of = draw(events), draw(transactions())
    of_account = isinstance(event, Movement | AccountStateChanged | AccountTermsChanged | StripesChanged)
    stream = Stream(
        stream_of(event),
        draw(versions) - 1,
        draw(numbers) if of_account else ZERO,
        draw(st.just(b"") | st.binary(min_size=32, max_size=32)),
        terms=terms_of(draw(accounts_opened)) if of_account else None,
    )
    (recorded,) = record(event, of=of, book=Book(LEDGER_ID, {stream.stream: stream}))
    return of, recorded
