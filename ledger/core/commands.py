"""What callers may ask for: frozen models with their limits, and the canonical form of a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias, TypeVar

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


_CONTEXT: Final = {"idempotency_key", "actor", "correlation_id", "causation_id", "expected_versions"}


class _Command(_Frozen):
    """
    What every command may carry beside its request.

    The request (everything but the key, the context and the expected versions) is what an idempotency
    key stands for: the same key with another request is a conflict.  `actor`, `correlation_id` and
    `causation_id` say who and why, and may differ between two deliveries of one request.
    """

    request_fields: ClassVar[tuple[str, ...]]
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
        cls.request_fields = tuple(sorted(set(cls.model_fields) - _CONTEXT))

    def request(self) -> str:
        """The request as canonical JSON; unset fields are left out, so that new ones change no fingerprint."""
        return _request(self)

    @property
    def accounts(self) -> Iterable[str]:
        """The accounts that the command names, expected versions included."""
        raise NotImplementedError


class DefineAsset(_Command):
    """Define something that can be counted: a code and its decimal places, once and for ever."""

    type: Literal["define_asset"] = "define_asset"
    asset: AssetCode
    scale: Annotated[int, Field(strict=True, ge=0, le=SCALE_MAX)]

    @property
    def accounts(self) -> Iterable[str]:
        return self.expected_versions


def _limit(value: object, info: ValidationInfo) -> object:
    """A limit may be written without repeating the asset: 0, "-500", Decimal("-500.00")."""
    asset = info.data.get("asset")
    if asset is None or value is None or isinstance(value, Money) or (isinstance(value, str) and " " in value):
        return value
    return Money.of(value, asset)  # type: ignore[arg-type]  # It refuses what is not a number.


Limit = Annotated[Money | None, BeforeValidator(_limit)]


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
        if self.min_balance is not None and self.max_balance is not None and self.max_balance < self.min_balance:
            raise ValueError("max_balance is below min_balance")
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


Command: TypeAlias = DefineAsset | OpenAccount | Post | Transfer | Deposit | Withdraw

_COMMAND: Final[TypeAdapter[Command]] = TypeAdapter(
    Annotated[DefineAsset | OpenAccount | Post | Transfer | Deposit | Withdraw, Field(discriminator="type")]
)


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


def canonical_json(value: object) -> str:
    """
    RFC 8785 text of a value made of strings, integers up to 2^53-1, booleans, None, lists and dicts.

    Keys must be printable ASCII, for which sorting by code point is the standard's order.
    """
    return to_json(_sorted(value)).decode()


def _sorted(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


def utc_text(moment: datetime) -> str:
    """A moment in UTC, as `2026-01-02T03:04:05.123456Z`."""
    # Within one zone, two moments that differ by the fold of a clock set back compare equal: not so in UTC.
    return _utc_text(moment if moment.tzinfo is UTC else moment.astimezone(UTC))


@lru_cache(maxsize=8192)
def _utc_text(moment: datetime) -> str:
    """Cached: a batch writes each of its few moments many times."""
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _request(command: _Command) -> str:
    request: dict[str, object] = {}
    for name in command.request_fields:
        value = getattr(command, name)
        if value is None or value == {}:
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
            request[name] = _sorted(value)
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
