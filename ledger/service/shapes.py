"""
The shapes of answers, for the document: what `ledger.wire` writes, as JSON Schema.

The service makes nothing of them: that its answers are as they say is what schemathesis checks.
A client reads by them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

AmountText: TypeAlias = Annotated[
    str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)? [A-Z][A-Z0-9._-]{0,31}$", examples=["12.50 USD"])
]
Moment: TypeAlias = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")]
Hash: TypeAlias = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Id: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Next: TypeAlias = Annotated[str | None, Field(description="Where the next page begins: send it as `after`.")]


class _Shape(BaseModel):
    # The document says that there is nothing else; a client of an older release reads past what it does not know.
    model_config = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": False})


class Problem(_Shape):
    """What went wrong (RFC 9457); `code` is stable, `fields` are its facts."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    fields: dict[str, Any]


class BalanceShape(_Shape):
    """An account's balance at a version, in its normal direction."""

    account: str
    version: int
    posted: AmountText
    pending: AmountText
    available: AmountText


class BalanceAsOfShape(BalanceShape):
    """A balance, and the position of the feed that the answer is pinned to, where it is: it is the same for ever."""

    position: int | None


class DoneShape(_Shape):
    """What a command did, and where each stream and account stood right after."""

    transaction_id: Id
    kind: str
    idempotency_key: str | None
    reference: str | None
    effective_at: Moment
    recorded_at: Moment
    replayed: bool
    dry_run: bool
    versions: dict[str, int]
    states: dict[str, str]
    balances: dict[str, BalanceShape]


class OutcomeShape(_Shape):
    """What came of one command of several."""

    done: DoneShape | None = None
    problem: Problem | None = None


class LineShape(OutcomeShape):
    """What came of one line of a bulk request."""

    line: int


class OutcomesShape(_Shape):
    """What came of each command, in order."""

    outcomes: list[OutcomeShape]


class TermsShape(_Shape):
    """What an account is."""

    type: str
    normal: Literal["debit", "credit"]
    asset: str
    scale: int
    min_balance: AmountText | None
    max_balance: AmountText | None
    state: str
    metadata: dict[str, Any]
    stripes: int
    streams: int


class AccountShape(TermsShape):
    """An account with its terms and its balance."""

    account: str
    balance: BalanceShape


class AccountsShape(_Shape):
    """A page of accounts."""

    accounts: list[AccountShape]
    next: Next


class EventShape(_Shape):
    """A recorded event."""

    stream: str
    version: int
    type: str
    transaction_id: Id
    direction: Literal["debit", "credit"] | None
    amount: AmountText | None
    balance: BalanceShape | None
    effective_at: Moment
    recorded_at: Moment
    schema_: Annotated[int, Field(alias="schema")]
    payload: dict[str, Any]
    prev_hash: Hash
    event_hash: Hash


class HistoryShape(_Shape):
    """A page of the events of a stream."""

    stream: str
    events: list[EventShape]
    position: int | None
    next: Next


class TransactionShape(_Shape):
    """Who asked for what, and when."""

    transaction_id: Id
    kind: str
    scope: str
    idempotency_key: str | None
    reference: str | None
    effective_at: Moment
    recorded_at: Moment
    actor: str | None
    correlation_id: str | None
    causation_id: str | None
    metadata: dict[str, Any]
    request: dict[str, Any]
    entry_count: int
    versions: dict[str, int]
    header_hash: Hash


class DetailShape(_Shape):
    """A transaction with its events in order, and its reversals both ways."""

    transaction: TransactionShape
    reverses: str | None
    reversed_by: list[str]
    events: list[EventShape]


class TransactionsShape(_Shape):
    """A page of transactions."""

    transactions: list[TransactionShape]
    next: Next


class HoldShape(_Shape):
    """One side of a hold, as it stands."""

    hold: Id
    account: str
    direction: Literal["debit", "credit"]
    state: str
    amount: AmountText
    captured: AmountText
    released: AmountText
    expired: AmountText
    left: AmountText
    expires_at: Moment | None


class HoldsShape(_Shape):
    """A page of holds."""

    holds: list[HoldShape]
    next: Next


class StateShape(_Shape):
    """Where something of the caller's own stands."""

    machine: str
    subject: str
    state: str
    version: int
    allowed: list[str]


class AssetShape(_Shape):
    """An asset, and its decimal places."""

    asset: str
    scale: int


class TrialLineShape(_Shape):
    """Debits and credits of all accounts of one asset and type."""

    asset: str
    type: str
    accounts: int
    debits: AmountText
    credits: AmountText


class TrialBalanceShape(_Shape):
    """Debits and credits by asset and type."""

    balanced: bool
    lines: list[TrialLineShape]
    difference: dict[str, AmountText]
    position: int | None


class StatementLineShape(_Shape):
    """An entry, in the account's normal direction, and the balance after it."""

    effective_at: Moment
    recorded_at: Moment
    stream: str
    version: int
    transaction_id: Id
    type: str
    reference: str | None
    amount: AmountText
    balance: AmountText


class StatementShape(_Shape):
    """What an account had, what was posted to it, and what it had then."""

    account: str
    since: Moment
    until: Moment
    position: int | None
    opening: AmountText
    closing: AmountText
    lines: list[StatementLineShape]


class EntryShape(_Shape):
    """An entry of the feed: an event at its position, and who asked for it."""

    position: int
    stream: str
    version: int
    type: str
    transaction_id: Id
    direction: Literal["debit", "credit"] | None
    amount: AmountText | None
    effective_at: Moment
    recorded_at: Moment
    schema_: Annotated[int, Field(alias="schema")]
    payload: dict[str, Any]
    prev_hash: Hash
    event_hash: Hash
    kind: str
    idempotency_key: str | None
    reference: str | None
    actor: str | None
    correlation_id: str | None
    causation_id: str | None
    metadata: dict[str, Any]


class FeedShape(_Shape):
    """What was stamped after a position; `next` is the last position of it, or that which was asked for."""

    entries: list[EntryShape]
    next: int


class FindingShape(_Shape):
    """Something that is not as it must be: where, and what."""

    kind: str
    stream: str
    version: int
    column: str
    problem: str


class ReportShape(_Shape):
    """What a verification checked and found."""

    ok: bool
    checked: dict[str, int]
    shredded: int
    findings: list[FindingShape]
    findings_total: int


class RebuiltShape(_Shape):
    """The streams whose projection differed from the log, and was made anew."""

    rebuilt: list[str]


class ReadShape(_Shape):
    """Which account was read, when, by which auditor and by which question."""

    account: str
    recorded_at: Moment
    actor: str
    question: str


class ReadsShape(_Shape):
    """A page of reads, in order; `next` is the time of the last one."""

    reads: list[ReadShape]
    next: Next


class TallyShape(_Shape):
    """What came of messages, counted."""

    received: int
    processed: int
    duplicates: int
    out_of_order: int
    late: int
    conflicts: int
    unnumbered: int
    set_aside: int
    gaps_opened: int
    gaps_filled: int
    gaps_timed_out: int
    rejected: int
    failed: int


class InboxStatsShape(_Shape):
    """What was counted of a source, and how it stands."""

    source: str
    counters: dict[str, int]
    streams: int
    held: int
    parked: int
    retrying: int
    oldest_wait_seconds: float | None


class GapShape(_Shape):
    """A stream that waits, and the ranges of sequences that it misses: first and last of each."""

    stream: str
    missing: list[tuple[int, int]]
    held: int
    status: str
    since: Moment | None
    error: str | None


class GapsShape(_Shape):
    """A page of the streams that wait."""

    gaps: list[GapShape]
    next: Next


class LetterShape(_Shape):
    """A message that a person decides about."""

    dead_letter_id: Id
    stream: str
    sequence: int | None
    id: str
    type: str
    why: str
    error: str | None
    attempts: int
    first_seen: Moment
    last_seen: Moment
    state: str
    data: Any


class LettersShape(_Shape):
    """A page of dead letters."""

    dead_letters: list[LetterShape]
    next: Next


class KeyShape(_Shape):
    """Whose key it is, and what it is good for."""

    key: str
    actor: str
    scopes: list[str]
    active: bool
    created_at: Moment
    created_by: str
    expires_at: Moment | None
    revoked_at: Moment | None
    revoked_by: str | None


class NewKeyShape(KeyShape):
    """A key as it was made; its secret is shown this once."""

    secret: str


class KeysShape(_Shape):
    """A page of keys."""

    keys: list[KeyShape]
    next: Next


class ColumnShape(_Shape):
    """A column of a report."""

    name: str
    kind: str


class DefinitionShape(_Shape):
    """A report: what it is about, what it asks, as JSON Schema, and its columns."""

    name: str
    version: int
    title: str
    pinned_by: list[str]
    columns: list[ColumnShape]
    parameters: dict[str, Any]


class DefinitionsShape(_Shape):
    """All reports."""

    reports: list[DefinitionShape]


class PinnedReportShape(_Shape):
    """A report: its rows, and the header with its pin, its totals and the SHA-256 of its body."""

    rows: list[dict[str, Any]]
    header: dict[str, Any]


class SourceOrderShape(_Shape):
    """In which order the messages of a source came, and what became of them: counters, which only grow."""

    outOfOrder: Annotated[int, Field(description="After a later one of their stream.")]  # noqa: N815
    gaps: Annotated[int, Field(description="Gaps opened.")]
    received: int
    processed: int
    duplicates: int
    late: int
    conflicts: int
    unnumbered: int
    setAside: int  # noqa: N815
    gapsFilled: int  # noqa: N815
    gapsTimedOut: int  # noqa: N815
    rejected: int
    failed: int
    undecodable: int
    deadLettered: int  # noqa: N815
    replayed: int


class OrderingShape(SourceOrderShape):
    """All sources together, and each by itself; and the streams that do not flow now, with what is held for them."""

    entities: Annotated[int, Field(description="Streams.")]
    waiting: int
    parked: int
    retrying: int
    held: int
    sources: dict[str, SourceOrderShape]
