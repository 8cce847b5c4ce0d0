"""What callers may ask for: frozen models with their limits, and the canonical form of a request."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import to_json

from ledger.core.canonical import canonical_json, sorted_keys, utc_text
from ledger.core.errors import InvalidAmount, InvalidCommand
from ledger.core.money import ASSET_PATTERN, SCALE_MAX, Money

ENTRIES_MAX: Final = 200
BATCH_MAX: Final = 10_000
METADATA_BYTES_MAX: Final = 16 * 1024
INTEGER_MAX: Final = 2**53 - 1


Model = TypeVar("Model", bound=BaseModel)


class Direction(StrEnum):
    """The side of an entry."""

    DEBIT = "debit"
    CREDIT = "credit"


class AccountType(StrEnum):
    """What an account stands for; decides the side on which it grows."""

    ASSET = "asset"
    LIABILITY = "liability"
    EQUITY = "equity"
    INCOME = "income"
    EXPENSE = "expense"

    @property
    def normal(self) -> Direction:
        """The normal balance: assets and expenses grow on the debit side, the others on the credit side."""
        return Direction.DEBIT if self in (AccountType.ASSET, AccountType.EXPENSE) else Direction.CREDIT


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character cannot be stored")
    return text


def _moment(value: object) -> object:
    """Seconds or milliseconds since when, and of which clock, is a guess: only times are times."""
    if isinstance(value, datetime) or (isinstance(value, str) and not value.strip().lstrip("+-").isdigit()):
        return value
    raise ValueError(f"{value!r} is not a time; write it with its zone: 2026-01-02T03:04:05Z")


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time lies in the years 1 to 9999 of UTC") from None


def _metadata_value(value: object) -> str | int | bool:
    if isinstance(value, str):
        value.encode()  # Refuses a lone surrogate, which is half a character.
        return _storable(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise ValueError(f"{value} is beyond 2^53-1; write it as a text")
        return value
    raise ValueError(f"{value!r} is neither a text, an integer nor a boolean")


def _metadata(metadata: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    if len(canonical_json(metadata).encode()) > METADATA_BYTES_MAX:
        raise ValueError(f"metadata is larger than {METADATA_BYTES_MAX} bytes")
    return metadata


AccountId = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$")]
"""1 to 128 letters, digits and `. _ : / @ + -`, beginning with a letter or digit (`$` and `#` mark streams of ours)."""

AssetCode = Annotated[str, StringConstraints(max_length=32, pattern=rf"^{ASSET_PATTERN}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_storable)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment), AfterValidator(_utc)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[ -~]+$")]
MetadataValue = Annotated[str | int | bool, PlainValidator(_metadata_value, json_schema_input_type=str | int | bool)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], AfterValidator(_metadata)]


MachineName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


def _uuid(value: object) -> object:
    return str(UUID(value)) if isinstance(value, str) else str(value) if isinstance(value, UUID) else value


TransactionId = Annotated[str, BeforeValidator(_uuid)]
"""A UUID; in small letters, with dashes, whatever way it was written."""

ExpectedVersions = Annotated[
    dict[AccountId, Annotated[int, Field(strict=True, ge=0, le=INTEGER_MAX)]], Field(max_length=ENTRIES_MAX)
]


def _positive(amount: Money) -> Money:
    if amount.minor <= 0:
        raise InvalidAmount(str(amount), "an amount is positive; the direction says the side")
    return amount


Amount = Annotated[Money, AfterValidator(_positive)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Frozen):
    """One debit or credit to one account; the amount is positive."""

    account: AccountId
    amount: Amount
    direction: Direction


def debit(account: str, amount: str | Money) -> Entry:
    """A debit entry: `debit("cash", "5 USD")`."""
    return build(Entry, account=account, amount=amount, direction=Direction.DEBIT)


def credit(account: str, amount: str | Money) -> Entry:
    """A credit entry: `credit("alice", "5 USD")`."""
    return build(Entry, account=account, amount=amount, direction=Direction.CREDIT)


_NEVER: Final = object()
_CONTEXT: Final = {"idempotency_key", "actor", "correlation_id", "causation_id", "expected_versions"}


class _Command(_Frozen):
    """
    What every command may carry beside its request.

    The request (everything but the key, the context and the expected versions) is what an idempotency
    key stands for: the same key with another request is a conflict.  `actor`, `correlation_id` and
    `causation_id` say who and why, and may differ between two deliveries of one request.
    """

    request_fields: ClassVar[tuple[tuple[str, object], ...]]
    """The names of what makes the request, in order, each with the value that counts as unset."""

    describes_transaction: ClassVar[bool] = True
    """Whether `metadata` is the transaction's, and not of what the command makes."""

    effective_at: Moment | None = None
    reference: Label | None = None
    metadata: Metadata = Field(default_factory=dict)
    idempotency_key: Label | None = None
    actor: Label | None = None
    correlation_id: Label | None = None
    causation_id: Label | None = None
    expected_versions: ExpectedVersions = Field(default_factory=dict)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.request_fields = tuple(
            (name, _NEVER if name == "type" else cls.model_fields[name].get_default(call_default_factory=True))
            for name in sorted(set(cls.model_fields) - _CONTEXT)
        )

    def request(self) -> str:
        """The request as canonical JSON; unset fields are left out, so that new ones change no fingerprint."""
        return _request(self)

    @property
    def accounts(self) -> Iterable[str]:
        """The accounts that the command names, expected versions included."""
        return self.expected_versions

    @property
    def refers_to(self) -> str | None:
        """The transaction that it takes up again: a hold, or what is to be reversed."""
        return None


class DefineAsset(_Command):
    """Define something that can be counted: a code and its decimal places, once and for ever."""

    type: Literal["define_asset"] = "define_asset"
    asset: AssetCode
    scale: Annotated[int, Field(strict=True, ge=0, le=SCALE_MAX)]


def _limit(value: object, info: ValidationInfo) -> object:
    """A limit may be written without repeating the asset: 0, "-500", Decimal("-500.00")."""
    asset = info.data.get("asset")
    if asset is None or value is None or isinstance(value, Money) or (isinstance(value, str) and " " in value):
        return value
    return Money.of(value, asset)  # type: ignore[arg-type]  # It refuses what is not a number.


Limit = Annotated[Money | None, BeforeValidator(_limit)]


def _limits_agree(lowest: object, highest: object) -> None:
    if isinstance(lowest, Money) and isinstance(highest, Money) and highest < lowest:
        raise ValueError("max_balance is below min_balance")


class OpenAccount(_Command):
    """
    Open an account of one asset.

    `min_balance` and `max_balance` bound the available balance in the account's normal direction; None
    means unlimited.  `metadata` describes the account.
    """

    describes_transaction: ClassVar[bool] = False
    type: Literal["open_account"] = "open_account"
    account: AccountId
    asset: AssetCode
    account_type: AccountType
    min_balance: Limit = None
    max_balance: Limit = None

    @model_validator(mode="after")
    def _limits_agree(self) -> OpenAccount:
        for limit in (self.min_balance, self.max_balance):
            if limit is not None and limit.asset != self.asset:
                raise ValueError(f"a limit is written in the account's asset, {self.asset}, not {limit.asset}")
        _limits_agree(self.min_balance, self.max_balance)
        return self

    @property
    def accounts(self) -> Iterable[str]:
        return (self.account, *self.expected_versions)


class Post(_Command):
    """A transaction of 2 to 200 entries that balances per asset."""

    type: Literal["post"] = "post"
    entries: Annotated[tuple[Entry, ...], Field(min_length=2, max_length=ENTRIES_MAX)]

    @property
    def accounts(self) -> Iterable[str]:
        return (*(entry.account for entry in self.entries), *self.expected_versions)


def _check_differ(one: str, other: str) -> None:
    if one == other:
        raise ValueError(f"both sides are {one}: an amount moves between two accounts")


class Transfer(_Command):
    """A two-entry transaction: `amount` debited to one account and credited to another."""

    type: Literal["transfer"] = "transfer"
    amount: Amount
    debit: AccountId
    credit: AccountId

    @model_validator(mode="after")
    def _two_accounts(self) -> Transfer:
        _check_differ(self.debit, self.credit)
        return self

    @property
    def accounts(self) -> Iterable[str]:
        return (self.debit, self.credit, *self.expected_versions)


class Deposit(_Command):
    """Raise `account` by `amount` in its normal direction, against another account."""

    type: Literal["deposit"] = "deposit"
    account: AccountId
    amount: Amount
    against: AccountId

    @model_validator(mode="after")
    def _two_accounts(self) -> Deposit:
        _check_differ(self.account, self.against)
        return self

    @property
    def accounts(self) -> Iterable[str]:
        return (self.account, self.against, *self.expected_versions)


class Withdraw(_Command):
    """Lower `account` by `amount` in its normal direction, against another account."""

    type: Literal["withdraw"] = "withdraw"
    account: AccountId
    amount: Amount
    against: AccountId

    @model_validator(mode="after")
    def _two_accounts(self) -> Withdraw:
        _check_differ(self.account, self.against)
        return self

    @property
    def accounts(self) -> Iterable[str]:
        return (self.account, self.against, *self.expected_versions)


class Hold(_Command):
    """
    Set `amount` aside: it is pending on both accounts, and counts against what is available at once.

    Captures post it, in parts or at once; what is released, or left when `expires_at` comes, is free again.
    """

    type: Literal["hold"] = "hold"
    amount: Amount
    debit: AccountId
    credit: AccountId
    expires_at: Moment | None = None

    @model_validator(mode="after")
    def _two_accounts(self) -> Hold:
        _check_differ(self.debit, self.credit)
        return self

    @property
    def accounts(self) -> Iterable[str]:
        return (self.debit, self.credit, *self.expected_versions)


class _OfHold(_Command):
    hold: TransactionId

    @property
    def refers_to(self) -> str | None:
        return self.hold


class Capture(_OfHold):
    """Post `amount` of a hold, or all that is left; `final` releases the rest."""

    type: Literal["capture"] = "capture"
    amount: Amount | None = None
    final: Annotated[bool, Field(strict=True)] = False


class Release(_OfHold):
    """Give `amount` of a hold free again, or all that is left."""

    type: Literal["release"] = "release"
    amount: Amount | None = None


class ExpireHold(_OfHold):
    """Give free again what is left of a hold whose time is over."""

    type: Literal["expire_hold"] = "expire_hold"


class Reverse(_Command):
    """
    Post the opposite of an earlier transaction: all that is not yet reversed of it, or a part.

    `amount` counts what the original debits, and every entry is reversed in proportion.  `force` does it
    beyond the limits of the accounts, and is on record.
    """

    type: Literal["reverse"] = "reverse"
    transaction_id: TransactionId
    amount: Amount | None = None
    reason: Label | None = None
    force: Annotated[bool, Field(strict=True)] = False

    @property
    def refers_to(self) -> str | None:
        return self.transaction_id


class _OfAccount(_Command):
    account: AccountId
    reason: Label | None = None

    @property
    def accounts(self) -> Iterable[str]:
        return (self.account, *self.expected_versions)


class Freeze(_OfAccount):
    """Refuse entries on an account from here on; reversals, releases and expiries go on."""

    type: Literal["freeze"] = "freeze"


class Unfreeze(_OfAccount):
    """Let entries on an account again."""

    type: Literal["unfreeze"] = "unfreeze"


class CloseAccount(_OfAccount):
    """Close an account for good; its balance is zero and nothing is held."""

    type: Literal["close_account"] = "close_account"


UNLIMITED: Final = "unlimited"

NewLimit = Annotated[Money | Literal["unlimited"] | None, Field(union_mode="left_to_right")]


class ChangeAccount(_OfAccount):
    """
    Change an account's limits or its metadata; what is left out stays as it is.

    `"unlimited"` takes a limit away; `metadata` replaces all of what was there.
    """

    describes_transaction: ClassVar[bool] = False
    type: Literal["change_account"] = "change_account"
    min_balance: NewLimit = None
    max_balance: NewLimit = None
    metadata: Metadata | None = None  # type: ignore[assignment]  # None: it stays.

    @model_validator(mode="after")
    def _something_changes(self) -> ChangeAccount:
        if self.min_balance is None and self.max_balance is None and self.metadata is None:
            raise ValueError("nothing changes: give min_balance, max_balance or metadata")
        _limits_agree(self.min_balance, self.max_balance)
        return self


class ClosePeriod(_Command):
    """
    Let nothing be posted any more that is effective before `until`, and record the trial balance as of then.

    `until` lies ten minutes back or more: what is being written right now may still belong to its time.
    """

    type: Literal["close_period"] = "close_period"
    until: Moment
    reason: Label | None = None


class _OfMachine(_Command):
    machine: MachineName
    subject: AccountId

    @property
    def stream(self) -> str:
        """The stream that keeps the state: `#machine/subject`."""
        return f"#{self.machine}/{self.subject}"

    @property
    def accounts(self) -> Iterable[str]:
        return (self.stream, *self.expected_versions)


class Begin(_OfMachine):
    """Begin something of the caller's own, in the first state of its machine."""

    type: Literal["begin"] = "begin"


class Advance(_OfMachine):
    """Take something that was begun to its next state, by an event of its machine."""

    type: Literal["advance"] = "advance"
    event: MachineName


Command: TypeAlias = (
    DefineAsset
    | OpenAccount
    | ChangeAccount
    | Freeze
    | Unfreeze
    | CloseAccount
    | Post
    | Transfer
    | Deposit
    | Withdraw
    | Hold
    | Capture
    | Release
    | ExpireHold
    | Reverse
    | ClosePeriod
    | Begin
    | Advance
)

_COMMAND: Final[TypeAdapter[Command]] = TypeAdapter(Annotated[Command, Field(discriminator="type")])


def build(model: type[Model], **values: object) -> Model:
    """
    Make a model from a caller's values.

    Raises:
        InvalidAmount: An amount is not exact, not positive or not of its asset's precision.
        InvalidCommand: Anything else is wrong; says what and where.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise _explained(error) from None


def parse_command(line: bytes | str) -> Command:
    """
    Read a command from JSON, as `{"type": "transfer", "amount": "5 USD", "debit": "a", "credit": "b"}`.

    Raises:
        InvalidAmount, InvalidCommand: As `build`.
    """
    try:
        return _COMMAND.validate_json(line)
    except ValidationError as error:
        raise _explained(error) from None


def command_schema() -> dict[str, Any]:
    """The JSON Schema of all commands."""
    return _COMMAND.json_schema(mode="validation")


def _request(command: _Command) -> str:
    request: dict[str, object] = {}
    for name, unset in command.request_fields:
        value = getattr(command, name)
        if value == unset:
            continue
        if isinstance(value, Money):
            request[name] = str(value)
        elif isinstance(value, datetime):
            request[name] = utc_text(value)
        elif name == "entries":
            request[name] = [
                {"account": entry.account, "amount": str(entry.amount), "direction": entry.direction} for entry in value
            ]
        elif name == "metadata":
            request[name] = sorted_keys(value)
        else:
            request[name] = value
    return to_json(request).decode()


def _explained(error: ValidationError) -> InvalidAmount | InvalidCommand:
    """The first thing that pydantic found, in the ledger's own words."""
    first = error.errors(include_url=False)[0]
    path = [str(part).encode("unicode_escape").decode() for part in first["loc"] if part != "[key]"]
    where = ".".join(path) or "command"
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidAmount):
        return InvalidAmount(cause.amount, cause.problem, where)
    problem = str(cause) if isinstance(cause, Exception) else first["msg"]
    if first["type"] in ("string_pattern_mismatch", "string_too_long"):
        problem = f"{str(first['input'])[:160]!r} is not allowed: {problem}"
    return InvalidCommand(where, problem)
