"""What callers may ask for: frozen models with their limits, and the canonical form of a request."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import to_json

from ledger.core.canonical import sorted_keys, utc_text
from ledger.core.errors import InvalidAmount, InvalidCommand
from ledger.core.fields import (
    INTEGER_MAX,
    AccountId,
    AssetCode,
    Frozen,
    Label,
    MachineName,
    Metadata,
    Moment,
    StreamId,
    TransactionId,
    explained,
)
from ledger.core.money import SCALE_MAX, Money

ENTRIES_MAX: Final = 200
BATCH_MAX: Final = 10_000
STRIPES_MAX: Final = 256

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


ExpectedVersions = Annotated[
    dict[StreamId, Annotated[int, Field(strict=True, ge=0, le=INTEGER_MAX)]], Field(max_length=ENTRIES_MAX)
]


def _positive(amount: Money) -> Money:
    if amount.minor <= 0:
        raise InvalidAmount(str(amount), "an amount is positive; the direction says the side")
    return amount


Amount = Annotated[Money, AfterValidator(_positive)]


class Entry(Frozen):
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


class _Command(Frozen):
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

    @property
    def rules_on(self) -> str | None:
        """The account of which it says what holds in each of its streams."""
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
    if not isinstance(lowest, Money) or not isinstance(highest, Money) or lowest.asset != highest.asset:
        return  # Of two assets one is not the account's, which is seen when the account is.
    if highest < lowest:
        raise ValueError("max_balance is below min_balance")


Stripes = Annotated[int, Field(strict=True, ge=1, le=STRIPES_MAX)]


class OpenAccount(_Command):
    """
    Open an account of one asset.

    `min_balance` and `max_balance` bound the available balance in the account's normal direction; None
    means unlimited.  With more than one of `stripes`, among which transactions choose so that their writers do not
    meet, there are no limits.  `metadata` describes the account.
    """

    describes_transaction: ClassVar[bool] = False
    type: Literal["open_account"] = "open_account"
    account: AccountId
    asset: AssetCode
    account_type: AccountType
    min_balance: Limit = None
    max_balance: Limit = None
    stripes: Stripes = 1

    @model_validator(mode="after")
    def _limits_agree(self) -> OpenAccount:
        if self.stripes > 1 and not (self.min_balance is None and self.max_balance is None):
            raise ValueError("an account with stripes has no limits: none of its stripes knows what is in the others")
        for limit in (self.min_balance, self.max_balance):
            if limit is not None and limit.asset != self.asset:
                raise ValueError(f"a limit is written in the account's asset, {self.asset}, not {limit.asset}")
        _limits_agree(self.min_balance, self.max_balance)
        return self

    @property
    def accounts(self) -> Iterable[str]:
        return (self.account, *self.expected_versions)

    @property
    def rules_on(self) -> str | None:
        return self.account


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

    @property
    def rules_on(self) -> str | None:
        return self.account


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
    Change an account's limits, its metadata or its stripes; what is left out stays as it is.

    `"unlimited"` takes a limit away; `metadata` replaces all of what was there.  `stripes` is among how many streams
    transactions choose from here on; those that are there already stay, and count.
    """

    describes_transaction: ClassVar[bool] = False
    type: Literal["change_account"] = "change_account"
    min_balance: NewLimit = None
    max_balance: NewLimit = None
    metadata: Metadata | None = None  # type: ignore[assignment]  # None: it stays.
    stripes: Stripes | None = None

    @property
    def changes_terms(self) -> bool:
        """Whether limits or metadata change."""
        return not (self.min_balance is None and self.max_balance is None and self.metadata is None)

    @model_validator(mode="after")
    def _something_changes(self) -> ChangeAccount:
        if not self.changes_terms and self.stripes is None:
            raise ValueError("nothing changes: give min_balance, max_balance, metadata or stripes")
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

_KINDS: Final[dict[Any, TypeAdapter[Any]]] = {kind: TypeAdapter(kind) for kind in get_args(Command)}
_COMMAND: Final[TypeAdapter[Command]] = TypeAdapter(Annotated[Command, Field(discriminator="type")])


Sent = TypeVar("Sent", bound=Command)


def build(model: type[Model], **values: object) -> Model:
    """
    Make a model from a caller's values, of whatever types they are.

    Raises:
        InvalidAmount, InvalidCommand: As `Frozen`.
    """
    return model(**values)


def parse_command(line: bytes | str) -> Command:
    """
    Read a command from JSON, as `{"type": "transfer", "amount": "5 USD", "debit": "a", "credit": "b"}`.

    Raises:
        InvalidAmount, InvalidCommand: As `build`; or a key is there twice.
    """
    return _parsed(_COMMAND, line)


def parse(model: type[Sent], line: bytes | str) -> Sent:
    """
    Read one kind of command from JSON; it need not name its type.

    Raises:
        InvalidAmount, InvalidCommand: As `parse_command`.
    """
    kind: TypeAdapter[Sent] = _KINDS[model]
    return _parsed(kind, line)


def _parsed(kind: TypeAdapter[Sent], line: bytes | str) -> Sent:
    try:
        command = kind.validate_json(line)
    except ValidationError as error:
        raise explained(error) from None
    keys = _KEY_BYTES.findall(line) if isinstance(line, bytes) else _KEY.findall(line)
    if len(keys) != _keys_of(command):
        # There may be such a key: of two values the parser keeps the last, and who meant which nobody knows.
        json.loads(line, object_pairs_hook=each_once)
    return command


_KEY: Final = re.compile(r'"\s*:')
_KEY_BYTES: Final = re.compile(_KEY.pattern.encode())
"""What comes after each key; and in texts with quotes, so that it may be found too often and never too seldom."""


def _keys_of(command: Command) -> int:
    """How many keys its JSON had, if none was there twice."""
    count = len(command.model_fields_set) + len(command.metadata or ()) + len(command.expected_versions)
    if isinstance(command, Post):
        count += sum([len(entry.model_fields_set) for entry in command.entries])
    return count


def each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """
    An object of JSON, for `json.loads(…, object_pairs_hook=each_once)`.

    Raises:
        InvalidCommand: A key is there twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidCommand(twice.encode("unicode_escape").decode(), "it is there twice")
    return found


COMMAND_TYPES: Final = frozenset(get_args(Command))


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
