"""
What happened: frozen facts, the transaction that they belong to, and the recorded envelope.

The `account` of a fact is the stream that it happened to: the account itself, or one of its stripes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

from ledger.core.commands import AccountType, Direction

LEDGER_STREAM: Final = "$ledger"
"""The stream of ledger-wide facts.  No account id contains `$`."""


def stripe_of(account: str, number: int) -> str:
    """A stream of an account: the first one has the account's own name, and then come `account#01`, `account#02` …"""
    return f"{account}#{number:02}" if number else account


def stripes_of(account: str, count: int) -> list[str]:
    """The first `count` streams of an account."""
    return [stripe_of(account, number) for number in range(count)]


def account_of(stream: str) -> str:
    """The account that a stream is of; a stream of something else is called what it is called."""
    # No account id contains `#`; a stream that begins with it is one of the caller's own.
    mark = stream.find("#", 1)
    return stream if mark < 0 or stream[0] == "#" else stream[:mark]


class AssetDefined(NamedTuple):
    """An asset has this many decimal places, for ever."""

    asset: str
    scale: int


class AccountOpened(NamedTuple):
    """An account exists from here on; limits are minor units in its normal direction."""

    account: str
    account_type: AccountType
    asset: str
    scale: int
    min_balance: int | None
    max_balance: int | None
    metadata: Mapping[str, str | int | bool]


class AccountStateChanged(NamedTuple):
    """An account is open, frozen or closed from here on."""

    account: str
    state: str
    reason: str | None


class AccountTermsChanged(NamedTuple):
    """An account's limits and metadata, all of them, as they are from here on."""

    account: str
    min_balance: int | None
    max_balance: int | None
    metadata: Mapping[str, str | int | bool]
    reason: str | None


class StripesChanged(NamedTuple):
    """
    New transactions choose among the first `stripes` streams of an account from here on.

    `streams` is how many it has altogether.  That number never falls: what is in them stays there.
    """

    account: str
    stripes: int
    streams: int
    reason: str | None


class EntryPosted(NamedTuple):
    """One side of a transaction: `amount` minor units, positive; `entry` counts from 0 in its transaction."""

    account: str
    direction: Direction
    asset: str
    amount: int
    entry: int


class HoldPlaced(NamedTuple):
    """One side of a hold: `amount` becomes pending.  A hold is known by the id of the transaction that placed it."""

    account: str
    direction: Direction
    asset: str
    amount: int
    entry: int
    hold: str
    expires_at: datetime | None


class HoldCaptured(NamedTuple):
    """`amount` of a hold is posted, and pending no longer."""

    account: str
    direction: Direction
    asset: str
    amount: int
    entry: int
    hold: str


class HoldReleased(NamedTuple):
    """`amount` of a hold is pending no longer, and nothing is posted."""

    account: str
    direction: Direction
    asset: str
    amount: int
    entry: int
    hold: str


class HoldExpired(NamedTuple):
    """What was left of a hold is pending no longer: its time was over."""

    account: str
    direction: Direction
    asset: str
    amount: int
    entry: int
    hold: str


class PeriodClosed(NamedTuple):
    """
    Nothing may be posted any more that is effective before `until`.

    `trial_balance` is what all accounts came to then: asset, type of account, and posted debits and credits in
    minor units of the asset, as text.
    """

    until: datetime
    trial_balance: tuple[tuple[str, str, str, str], ...]
    reason: str | None


class StateAdvanced(NamedTuple):
    """A stream of a caller's own went from one state to another, as the machine of this fingerprint allows."""

    stream: str
    machine: str
    event: str
    source: str
    target: str
    fingerprint: str


Movement: TypeAlias = EntryPosted | HoldPlaced | HoldCaptured | HoldReleased | HoldExpired
"""What moves an amount on one side of an account."""

OfHold: TypeAlias = HoldPlaced | HoldCaptured | HoldReleased | HoldExpired

Event: TypeAlias = (
    AssetDefined
    | AccountOpened
    | AccountStateChanged
    | AccountTermsChanged
    | StripesChanged
    | Movement
    | PeriodClosed
    | StateAdvanced
)


class Numbers(NamedTuple):
    """The four gross numbers of an account, in minor units."""

    posted_debits: int = 0
    posted_credits: int = 0
    pending_debits: int = 0
    pending_credits: int = 0


ZERO: Final = Numbers()


class Transaction(NamedTuple):
    """
    An accepted command: who asked for what, when, and the events it became.

    `streams` and `versions` announce those events in order, so that neither can one be missing nor be
    added later.  `request` and `metadata` are canonical JSON.  `header_hash` covers all other fields.
    """

    transaction_id: str
    kind: str
    scope: str
    idempotency_key: str | None
    request: str
    entry_count: int
    streams: tuple[str, ...]
    versions: tuple[int, ...]
    reference: str | None
    effective_at: datetime
    recorded_at: datetime
    actor: str | None
    correlation_id: str | None
    causation_id: str | None
    metadata: str | None
    header_hash: bytes = b""


class Recorded(NamedTuple):
    """An event in its stream, as stored: a gapless version, the numbers after it, and its hash link."""

    stream: str
    version: int
    transaction_id: str
    type: str
    payload: str
    schema: int
    asset: str | None
    direction: str | None
    amount: int | None
    numbers: Numbers | None
    effective_at: datetime
    recorded_at: datetime
    prev_hash: bytes
    event_hash: bytes


class FeedEntry(NamedTuple):
    """An event in the order of everything: its position, which begins at 1 and has no gap, and its transaction."""

    position: int
    event: Recorded
    transaction: Transaction
