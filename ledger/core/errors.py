"""
Every error the ledger raises, as one tree, and the reasons for a rejection.

    LedgerError
    ├── Rejected              a rule said no; sending the same again changes nothing
    │   └── IdempotencyConflict, UnknownAsset, AssetExists, AccountExists, UnknownAccount,
    │       UnknownTransaction, UnknownMachine, UnknownStream, StreamExists, PeriodIsClosed, PeriodNotOver,
    │       AccountNotOpen, TransitionRefused, StripedAccount, VersionConflict, HoldNotOpen, HoldNotDue,
    │       NotReversible, InvalidAmount, AssetMismatch, UnbalancedTransaction, ExceedsRest,
    │       AccountNotEmpty, InsufficientFunds, LimitExceeded, AtomicBatchRejected
    ├── InvalidCommand        the request itself is malformed
    ├── UndecodableMessage    what a producer sent cannot be read
    ├── InvalidStateMachine   a declaration of states and transitions that cannot work
    ├── ConcurrencyError      lost a race more often than the retry limit allows: try again
    ├── NotYetKnown           what was known by then cannot be said yet: stamp, and ask again
    ├── CorruptLog            the event log contradicts itself: stop and verify
    ├── BrokenStatement       what a bank sent cannot be read, or contradicts itself: the message says where
    ├── DecidedAlready        somebody else has decided about an entry of a statement: look at it again
    ├── KeyMadeAlready        an API key was made by the same request before, and its secret shown then
    ├── ProofFailed           a checkpoint, a proof or an anchor does not hold: find out what was changed
    ├── UnknownSubject        nothing was ever encrypted for this subject
    ├── SubjectForgotten      … or its key was destroyed: nothing is encrypted for it any more
    ├── SchemaMismatch        the database is not at the version this code needs
    ├── DatabaseUnavailable   the database could not be asked: the message says what to do
    │   ├── ConnectionLost    … or went away before it answered: the outcome is unknown
    │   └── GuardRefused      … or a guard in it refuses what the rules allow: verify
    ├── DeadlineExceeded      a batcher did not get to it in time: nothing was written
    ├── BatcherClosed         … or takes no more
    ├── BrokerUnavailable     a message broker could not be asked, or refuses
    ├── Unauthenticated       the service does not know who asks
    ├── Forbidden             … or knows, and what is asked for takes another scope
    ├── MissingIdempotencyKey … or not by which name a write would be known again
    ├── TooManyRequests       … or is asked more than it answers at once: nothing was done
    ├── RequestTooLarge       … or more at once than it takes
    ├── UnsupportedMediaType  … or in a form that it does not read
    ├── ServiceUnavailable    … or cannot be reached by its client: the outcome is unknown
    └── UnsupportedConnection a connection that a guest cannot work on

The message of an error is its docstring, filled with its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import ClassVar


class Reason(StrEnum):
    """Why a command was rejected, in the order in which the rules are checked."""

    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    UNKNOWN_ASSET = "unknown_asset"
    ASSET_EXISTS = "asset_exists"
    ACCOUNT_EXISTS = "account_exists"
    UNKNOWN_ACCOUNT = "unknown_account"
    UNKNOWN_TRANSACTION = "unknown_transaction"
    UNKNOWN_MACHINE = "unknown_machine"
    UNKNOWN_STREAM = "unknown_stream"
    STREAM_EXISTS = "stream_exists"
    PERIOD_CLOSED = "period_closed"
    PERIOD_NOT_OVER = "period_not_over"
    ACCOUNT_NOT_OPEN = "account_not_open"
    TRANSITION_REFUSED = "transition_refused"
    STRIPED_ACCOUNT = "striped_account"
    VERSION_CONFLICT = "version_conflict"
    HOLD_NOT_OPEN = "hold_not_open"
    HOLD_NOT_DUE = "hold_not_due"
    NOT_REVERSIBLE = "not_reversible"
    INVALID_AMOUNT = "invalid_amount"
    ASSET_MISMATCH = "asset_mismatch"
    UNBALANCED_TRANSACTION = "unbalanced_transaction"
    EXCEEDS_REST = "exceeds_rest"
    ACCOUNT_NOT_EMPTY = "account_not_empty"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    LIMIT_EXCEEDED = "limit_exceeded"
    ATOMIC_BATCH = "atomic_batch"


@dataclass(eq=False)
class LedgerError(Exception):
    """Something went wrong in the ledger."""

    code: ClassVar[str] = "ledger_error"
    retryable: ClassVar[bool] = False

    @property
    def fields(self) -> dict[str, object]:
        """
        The facts behind the error, by name; what a program should read instead of the text.

        One that need not be given, and was not, is not there.
        """
        return {
            field.name: fact
            for field in fields(self)
            if (fact := getattr(self, field.name)) is not None or field.default is MISSING
        }

    def __str__(self) -> str:
        facts = {name: ", ".join(fact) if isinstance(fact, list) else fact for name, fact in self.fields.items()}
        return " ".join((type(self).__doc__ or "").split()).format(**facts)

    def __reduce__(self) -> tuple[Callable[..., LedgerError], tuple[object, ...]]:
        # Exceptions travel between processes; the default would lose fields given by name.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


@dataclass(eq=False)
class Rejected(LedgerError):
    """A rule said no."""

    reason: ClassVar[Reason]

    def __init_subclass__(cls, reason: Reason) -> None:
        cls.reason = reason
        cls.code = reason.value


@dataclass(eq=False)
class IdempotencyConflict(Rejected, reason=Reason.IDEMPOTENCY_CONFLICT):
    """Idempotency key {key!r} was used before with another request; these fields differ: {differing}.
    Use a new key for a new request.
    """

    key: str
    differing: list[str]


@dataclass(eq=False)
class UnknownAsset(Rejected, reason=Reason.UNKNOWN_ASSET):
    """Asset {asset} is neither an ISO 4217 currency nor defined in this ledger; define it first."""

    asset: str


@dataclass(eq=False)
class AssetExists(Rejected, reason=Reason.ASSET_EXISTS):
    """Asset {asset} is already known with scale {scale}; a scale never changes."""

    asset: str
    scale: int


@dataclass(eq=False)
class AccountExists(Rejected, reason=Reason.ACCOUNT_EXISTS):
    """Account {account} already exists."""

    account: str


@dataclass(eq=False)
class UnknownAccount(Rejected, reason=Reason.UNKNOWN_ACCOUNT):
    """Account {account} does not exist; open it first."""

    account: str
    known_as_of: str | None = None

    def __str__(self) -> str:
        if self.known_as_of is None:
            return super().__str__()
        return f"Account {self.account} was not yet known by {self.known_as_of}: it was opened later."


@dataclass(eq=False)
class UnknownTransaction(Rejected, reason=Reason.UNKNOWN_TRANSACTION):
    """There is no {kind} {transaction_id} in this ledger."""

    transaction_id: str
    kind: str = "transaction"


@dataclass(eq=False)
class UnknownMachine(Rejected, reason=Reason.UNKNOWN_MACHINE):
    """State machine {machine} is not known here; known are: {known}."""

    machine: str
    known: list[str]


@dataclass(eq=False)
class UnknownStream(Rejected, reason=Reason.UNKNOWN_STREAM):
    """{machine} {subject} was never begun; begin it first."""

    machine: str
    subject: str
    known_as_of: str | None = None

    def __str__(self) -> str:
        if self.known_as_of is None:
            return super().__str__()
        return f"{self.machine} {self.subject} was not yet known by {self.known_as_of}: it was begun later."


@dataclass(eq=False)
class StreamExists(Rejected, reason=Reason.STREAM_EXISTS):
    """{machine} {subject} was begun before; it is {state}."""

    machine: str
    subject: str
    state: str


@dataclass(eq=False)
class PeriodIsClosed(Rejected, reason=Reason.PERIOD_CLOSED):
    """The books are closed until {closed_until}; {effective_at} is too early."""

    effective_at: str
    closed_until: str


@dataclass(eq=False)
class PeriodNotOver(Rejected, reason=Reason.PERIOD_NOT_OVER):
    """A period until {until} can be closed from {possible_from} on: what is being written may still belong to it."""

    until: str
    possible_from: str


@dataclass(eq=False)
class AccountNotOpen(Rejected, reason=Reason.ACCOUNT_NOT_OPEN):
    """Account {account} is {state}, not open."""

    account: str
    state: str


@dataclass(eq=False)
class TransitionRefused(Rejected, reason=Reason.TRANSITION_REFUSED):
    """{machine} {stream} is {state}: {event} is refused; allowed: {allowed}."""

    machine: str
    state: str
    event: str
    allowed: list[str]
    stream: str = ""

    def __str__(self) -> str:
        subject = f"{self.machine} {self.stream}".rstrip()
        allowed = ", ".join(self.allowed) or "nothing"
        return f"{subject} is {self.state}: {self.event} is refused; allowed: {allowed}."


@dataclass(eq=False)
class StripedAccount(Rejected, reason=Reason.STRIPED_ACCOUNT):
    """Account {account}: {problem}."""

    account: str
    problem: str


@dataclass(eq=False)
class VersionConflict(Rejected, reason=Reason.VERSION_CONFLICT):
    """Account {account} is at version {actual}, expected {expected}; read it again and decide again."""

    account: str
    expected: int
    actual: int


@dataclass(eq=False)
class HoldNotOpen(Rejected, reason=Reason.HOLD_NOT_OPEN):
    """Hold {hold} is {state}; nothing is left of it."""

    hold: str
    state: str


@dataclass(eq=False)
class HoldNotDue(Rejected, reason=Reason.HOLD_NOT_DUE):
    """Hold {hold} is not due (expires: {expires_at})."""

    hold: str
    expires_at: str


@dataclass(eq=False)
class NotReversible(Rejected, reason=Reason.NOT_REVERSIBLE):
    """Transaction {transaction_id} cannot be reversed: {problem}."""

    transaction_id: str
    problem: str


@dataclass(eq=False)
class InvalidAmount(Rejected, ValueError, reason=Reason.INVALID_AMOUNT):
    """Amount {amount!r} is not valid: {problem}."""

    amount: str
    problem: str
    where: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return place + super().__str__()


@dataclass(eq=False)
class AssetMismatch(Rejected, reason=Reason.ASSET_MISMATCH):
    """Account {account} holds {expected}, not {actual}."""

    account: str
    expected: str
    actual: str


@dataclass(eq=False)
class UnbalancedTransaction(Rejected, reason=Reason.UNBALANCED_TRANSACTION):
    """Debits and credits differ in {asset}: {debits} debited, {credits} credited."""

    asset: str
    debits: str
    credits: str


@dataclass(eq=False)
class ExceedsRest(Rejected, reason=Reason.EXCEEDS_REST):
    """{required} is more than the {left} that is left of {transaction_id}."""

    transaction_id: str
    left: str
    required: str


@dataclass(eq=False)
class AccountNotEmpty(Rejected, reason=Reason.ACCOUNT_NOT_EMPTY):
    """Account {account} is closed only at zero and with nothing held; it has {balance}, and {held} held."""

    account: str
    balance: str
    held: str


@dataclass(eq=False)
class InsufficientFunds(Rejected, reason=Reason.INSUFFICIENT_FUNDS):
    """Account {account} has {available} available above its minimum of {minimum}, {required} is required."""

    account: str
    available: str
    required: str
    minimum: str


@dataclass(eq=False)
class LimitExceeded(Rejected, reason=Reason.LIMIT_EXCEEDED):
    """Account {account} would reach {balance}, above its maximum of {maximum}."""

    account: str
    balance: str
    maximum: str


@dataclass(eq=False)
class AtomicBatchRejected(Rejected, reason=Reason.ATOMIC_BATCH):
    """Nothing of this atomic batch was done, because its command {index} was rejected: {cause}."""

    index: int
    cause: str


@dataclass(eq=False)
class InvalidCommand(LedgerError, ValueError):
    """{where}: {problem}"""

    code: ClassVar[str] = "invalid_command"

    where: str
    problem: str


@dataclass(eq=False)
class InvalidStateMachine(LedgerError, ValueError):
    """State machine {machine} is not valid: {problems}."""

    code: ClassVar[str] = "invalid_state_machine"

    machine: str
    problems: list[str]
    where: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        subject = f"State machine {self.machine}" if self.machine else "This state machine"
        return f"{place}{subject} is not valid: {'; '.join(self.problems)}."


@dataclass(eq=False)
class UndecodableMessage(LedgerError, ValueError):
    """{where}: {problem}. {advice}"""

    code: ClassVar[str] = "undecodable_message"

    where: str
    problem: str
    advice: str


@dataclass(eq=False)
class ConcurrencyError(LedgerError):
    """{problem}"""

    code: ClassVar[str] = "concurrency_error"
    retryable: ClassVar[bool] = True

    problem: str


@dataclass(eq=False)
class NotYetKnown(LedgerError):
    """What was known by {asked} cannot be said yet: all is known until {known_until}, position {position} of the feed.
    Ask again when it is stamped; a stamper has to run (`ledger feed stamp`).
    """

    code: ClassVar[str] = "not_yet_known"
    retryable: ClassVar[bool] = True

    asked: str
    known_until: str
    position: int


@dataclass(eq=False)
class CorruptLog(LedgerError):
    """The event log of {stream} contradicts itself at version {version}: {problem}.
    Nothing of it was changed; run `ledger verify` and restore from a backup.
    """

    code: ClassVar[str] = "corrupt_log"

    stream: str
    version: int
    problem: str


@dataclass(eq=False)
class BrokenStatement(LedgerError, ValueError):
    """{file}: {where}: {problem}"""

    code: ClassVar[str] = "broken_statement"

    file: str
    where: str
    problem: str


@dataclass(eq=False)
class DecidedAlready(LedgerError):
    """{entry} {state}. Nothing was recorded; look at it again: `ledger reconcile decisions`."""

    code: ClassVar[str] = "decided_already"

    entry: str
    state: str


@dataclass(eq=False)
class KeyMadeAlready(LedgerError):
    """API key {key} was made by this request before, and its secret shown then. If it is lost, revoke the key."""

    code: ClassVar[str] = "key_made_already"

    key: str


@dataclass(eq=False)
class ProofFailed(LedgerError):
    """{what} does not hold: {problem}."""

    code: ClassVar[str] = "proof_failed"

    what: str
    problem: str


@dataclass(eq=False)
class UnknownSubject(LedgerError):
    """Subject {subject!r} has no key, and never had one: nothing was encrypted for it. Check how it is written."""

    code: ClassVar[str] = "unknown_subject"

    subject: str


@dataclass(eq=False)
class SubjectForgotten(LedgerError):
    """Subject {subject!r} was forgotten: its key is destroyed, and nothing is encrypted for it any more.
    If it is to begin anew, say so with `renew`.
    """

    code: ClassVar[str] = "subject_forgotten"

    subject: str


@dataclass(eq=False)
class SchemaMismatch(LedgerError):
    """{problem}"""

    code: ClassVar[str] = "schema_mismatch"

    problem: str


@dataclass(eq=False)
class DatabaseUnavailable(LedgerError):
    """{problem} {advice}"""

    code: ClassVar[str] = "database_unavailable"
    retryable: ClassVar[bool] = True

    problem: str
    advice: str
    sqlstate: str | None = None


@dataclass(eq=False)
class ConnectionLost(DatabaseUnavailable):
    """{problem} {advice}"""

    code: ClassVar[str] = "connection_lost"


@dataclass(eq=False)
class GuardRefused(DatabaseUnavailable):
    """{problem} {advice}"""

    code: ClassVar[str] = "guard_refused"
    retryable: ClassVar[bool] = False


@dataclass(eq=False)
class DeadlineExceeded(LedgerError):
    """The command waited {where} for longer than {seconds:g} seconds. Nothing was written; send it again."""

    code: ClassVar[str] = "deadline_exceeded"
    retryable: ClassVar[bool] = True

    where: str
    seconds: float


@dataclass(eq=False)
class BatcherClosed(LedgerError):
    """The batcher takes no more commands: {why}. Nothing was written; make another one."""

    code: ClassVar[str] = "batcher_closed"

    why: str


@dataclass(eq=False)
class BrokerUnavailable(LedgerError):
    """{problem} {advice}"""

    code: ClassVar[str] = "broker_unavailable"
    retryable: ClassVar[bool] = True

    problem: str
    advice: str


@dataclass(eq=False)
class Unauthenticated(LedgerError):
    """Who asks is not known: {problem}. Send `Authorization: Bearer` with an API key or a token."""

    code: ClassVar[str] = "unauthenticated"

    problem: str


@dataclass(eq=False)
class Forbidden(LedgerError):
    """It takes a credential with the scope {scope}; yours has: {scopes}."""

    code: ClassVar[str] = "forbidden"

    scope: str
    scopes: list[str]


@dataclass(eq=False)
class MissingIdempotencyKey(LedgerError):
    """A request that writes has the header Idempotency-Key: a new one each, and the same when it is repeated."""

    code: ClassVar[str] = "missing_idempotency_key"


@dataclass(eq=False)
class TooManyRequests(LedgerError):
    """The service takes {limit}. Nothing was done; try again in {retry_after_seconds} s."""

    code: ClassVar[str] = "too_many_requests"
    retryable: ClassVar[bool] = True

    limit: str
    retry_after_seconds: int


@dataclass(eq=False)
class RequestTooLarge(LedgerError):
    """{what} is larger than {bytes_max} bytes. Send less at once."""

    code: ClassVar[str] = "request_too_large"

    what: str
    bytes_max: int


@dataclass(eq=False)
class UnsupportedMediaType(LedgerError):
    """A body of {given} is not read here; send {wanted}."""

    code: ClassVar[str] = "unsupported_media_type"

    given: str
    wanted: str


@dataclass(eq=False)
class ServiceUnavailable(LedgerError):
    """The service cannot be reached: {problem}. What was asked for may have been done: ask again with the same key."""

    code: ClassVar[str] = "service_unavailable"
    retryable: ClassVar[bool] = True

    problem: str


@dataclass(eq=False)
class UnsupportedConnection(LedgerError, TypeError):
    """A guest cannot work on {given}. {advice}"""

    code: ClassVar[str] = "unsupported_connection"

    given: str
    advice: str


class Interrupted(KeyboardInterrupt):
    """
    A rebuild or a verification was interrupted; it goes on where it stood if it is given this `after`.

    What it had `found` up to there it does not find again: findings of a verification, a rebuild's `CorruptLog`s.
    """

    def __init__(self, after: str, found: Sequence[object] = ()) -> None:
        super().__init__(f"interrupted; go on with after={after!r}" if after else "interrupted")
        self.after = after
        self.found = tuple(found)
