"""Exact amounts: integer minor units of one asset; parsed from and printed as "12.50 USD"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ledger.core.errors import AssetMismatch, InvalidAmount
from ledger.core.iso4217 import CURRENCIES

SCALE_MAX: Final = 18
DIGITS_MAX: Final = 38
MINOR_MAX: Final = 10**DIGITS_MAX - 1
ASSET_PATTERN: Final = r"[A-Z][A-Z0-9._-]{0,31}"

_AMOUNT: Final = re.compile(rf"([+-]?)([0-9]+)(?:\.([0-9]+))? ({ASSET_PATTERN})")
_TEXT_MAX: Final = 128


@dataclass(frozen=True, slots=True, eq=False)
class Money:
    """
    An exact amount: `minor` times 10^-`scale` of `asset`.

    >>> Money.parse("12.50 USD")
    Money('12.50 USD')
    >>> Money.parse("12.50 USD").minor
    1250

    An ISO 4217 currency always has its own scale.  Any other asset keeps the decimals it was written
    with until a ledger, which knows the asset's scale, converts it with `at_scale`.

    Raises:
        InvalidAmount: `minor` is no integer, or `scale` is not 0 to 18.
    """

    minor: int
    asset: str
    scale: int

    def __post_init__(self) -> None:
        if type(self.minor) is not int or type(self.scale) is not int or not 0 <= self.scale <= SCALE_MAX:
            shown = f"Money({_shown(self.minor)}, {_shown(self.asset)}, {_shown(self.scale)})"
            raise InvalidAmount(shown, f"it is not an integer of minor units in a scale of 0 to {SCALE_MAX}")

    @classmethod
    def parse(cls, text: str) -> Money:
        """
        Read "12.50 USD".

        Raises:
            InvalidAmount: Not of that form, more decimals than the asset has, or more than 38 digits.
        """
        if not isinstance(text, str):
            raise InvalidAmount(_shown(text), _NOT_EXACT)
        match = _AMOUNT.fullmatch(text) if len(text) <= _TEXT_MAX else None
        if match is None:
            raise InvalidAmount(text[:_TEXT_MAX], _what_is_wrong(text))
        sign, whole, decimals, asset = match.groups(default="")
        return _normal(int(f"{sign}{whole}{decimals}"), asset, len(decimals), text)

    @classmethod
    def of(cls, number: Decimal | int | str, asset: str) -> Money:
        """
        An amount in whole units: `Money.of("12.50", "USD")`, `Money.of(Decimal("12.5"), "USD")`.

        Raises:
            InvalidAmount: A float, NaN, infinity, or anything `parse` would refuse.
        """
        if isinstance(number, bool) or not isinstance(number, Decimal | int | str):
            raise InvalidAmount(_shown(number), _NOT_EXACT)
        if isinstance(number, int) and abs(number) > MINOR_MAX:
            raise InvalidAmount(_shown(number), f"it has more than {DIGITS_MAX} digits")
        if isinstance(number, Decimal):
            if not number.is_finite():
                raise InvalidAmount(str(number), "it is not a finite number")
            if abs(number.adjusted()) > DIGITS_MAX:
                raise InvalidAmount(str(number), f"it has more than {DIGITS_MAX} digits")
            number = format(number, "f")
        return cls.parse(f"{number} {asset}")

    @classmethod
    def coerce(cls, value: object) -> Money:
        """
        Accept what callers pass: a `Money` or a text such as "12.50 USD".

        Raises:
            InvalidAmount: Anything else, floats above all.
        """
        if isinstance(value, Money):
            # One made by hand is read like a text: an asset of any form, or another number of decimals, may be in it.
            if value.scale == CURRENCIES.get(value.asset):
                return _within_digits(value)
            return cls.parse(str(_within_digits(value)))
        if isinstance(value, str):
            return cls.parse(value)
        raise InvalidAmount(_shown(value), _NOT_EXACT)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.coerce,
            serialization=core_schema.plain_serializer_function_ser_schema(str),
            json_schema_input_schema=core_schema.str_schema(pattern=rf"^[+-]?[0-9]+(\.[0-9]+)? {ASSET_PATTERN}$"),
        )

    def at_scale(self, scale: int) -> Money:
        """
        The same amount with `scale` decimals.

        Raises:
            InvalidAmount: It has more decimals than that, or needs more than 38 digits.
        """
        if scale == self.scale:
            return self
        minor = _rescaled(self.minor, self.asset, self.scale, scale, str(self))
        return _within_digits(Money(minor, self.asset, scale))

    @property
    def decimal(self) -> Decimal:
        """The amount in whole units, exactly; `Decimal("12.50")`."""
        digits = tuple(int(digit) for digit in str(abs(self.minor)))
        return Decimal((int(self.minor < 0), digits, -self.scale))

    def _common(self, other: Money) -> tuple[int, int, int]:
        if not isinstance(other, Money):
            raise TypeError(f"cannot combine money with {type(other).__name__}")
        if other.asset != self.asset:
            raise AssetMismatch("an amount", self.asset, other.asset)
        scale = max(self.scale, other.scale)
        return self.minor * 10 ** (scale - self.scale), other.minor * 10 ** (scale - other.scale), scale

    def __add__(self, other: Money) -> Money:
        left, right, scale = self._common(other)
        return _within_digits(Money(left + right, self.asset, scale))

    def __sub__(self, other: Money) -> Money:
        left, right, scale = self._common(other)
        return _within_digits(Money(left - right, self.asset, scale))

    def __neg__(self) -> Money:
        return Money(-self.minor, self.asset, self.scale)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Money):
            return NotImplemented
        if other.asset != self.asset:
            return False
        left, right, _ = self._common(other)
        return left == right

    def __hash__(self) -> int:
        return hash((self.decimal, self.asset))

    def __lt__(self, other: Money) -> bool:
        left, right, _ = self._common(other)
        return left < right

    def __le__(self, other: Money) -> bool:
        left, right, _ = self._common(other)
        return left <= right

    def __gt__(self, other: Money) -> bool:
        left, right, _ = self._common(other)
        return left > right

    def __ge__(self, other: Money) -> bool:
        left, right, _ = self._common(other)
        return left >= right

    def __str__(self) -> str:
        digits = str(abs(self.minor)).rjust(self.scale + 1, "0")
        sign = "-" if self.minor < 0 else ""
        point = len(digits) - self.scale
        decimals = f".{digits[point:]}" if self.scale else ""
        return f"{sign}{digits[:point]}{decimals} {self.asset}"

    def __repr__(self) -> str:
        return f"Money('{self}')"


def _within_digits(money: Money) -> Money:
    if abs(money.minor) > MINOR_MAX:
        raise InvalidAmount(str(money), f"it has more than {DIGITS_MAX} digits in minor units of {money.asset}")
    return money


def _normal(minor: int, asset: str, scale: int, text: str) -> Money:
    """One form per amount, so that equal requests have equal fingerprints."""
    if len(str(abs(minor))) > DIGITS_MAX + SCALE_MAX:
        raise InvalidAmount(text, f"it has more than {DIGITS_MAX} digits")
    defined = CURRENCIES.get(asset)
    if defined is not None:
        minor, scale = _rescaled(minor, asset, scale, defined, text), defined
    else:
        while scale and minor % 10 == 0:
            minor, scale = minor // 10, scale - 1
        if scale > SCALE_MAX:
            raise InvalidAmount(text, f"an asset has at most {SCALE_MAX} decimal places")
    if abs(minor) > MINOR_MAX:
        raise InvalidAmount(text, f"it has more than {DIGITS_MAX} digits in minor units")
    return Money(minor, asset, scale)


def _rescaled(minor: int, asset: str, scale: int, wanted: int, text: str) -> int:
    if wanted >= scale:
        return int(minor * 10 ** (wanted - scale))
    whole, rest = divmod(minor, 10 ** (scale - wanted))
    if rest:
        raise InvalidAmount(text, f"{asset} has {wanted} decimal places")
    return int(whole)


_NOT_EXACT: Final = 'an amount is a text such as "12.50 USD" or a Money; binary floats are not exact'


def _shown(value: object) -> str:
    """A wrong value as an error shows it; an integer of many digits has no text."""
    if isinstance(value, int) and abs(value) > MINOR_MAX:
        return f"an integer of more than {DIGITS_MAX} digits"
    return repr(value)[:_TEXT_MAX]


def _what_is_wrong(text: str) -> str:
    if len(text) > _TEXT_MAX:
        return f"it is longer than {_TEXT_MAX} characters"
    if "," in text or "_" in text.partition(" ")[0]:
        return 'write it without thousands separators, with a point before the decimals: "1234.50 USD"'
    if re.fullmatch(r"[+-]?[0-9.]+", text):
        return 'the asset is missing: "12.50 USD"'
    return 'write a decimal number, one space and the asset in capitals: "12.50 USD"'
