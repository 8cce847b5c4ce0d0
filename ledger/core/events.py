"""What happened: frozen facts, the transaction that they belong to, and the recorded envelope."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

from ledger.core.commands import AccountType, Direction

LEDGER_STREAM: Final = "$ledger"
"""The stream of ledger-wide facts.  No account id contains `$`."""


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


class EntryPosted(NamedTuple):
    """One side of a transaction: `amount` minor units, positive; `entry` counts from 0 in its transaction."""

    account: str
    direction: Direction
    asset: str
    amount: int
    entry: int


Event: TypeAlias = AssetDefined | AccountOpened | EntryPosted


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
