"""Money is exact: what goes in comes out, and what cannot be exact is refused."""

from __future__ import annotations

import operator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import minors, scales

from ledger import AssetMismatch, InvalidAmount, LedgerError, Money
from ledger.core.iso4217 import CURRENCIES
from ledger.core.money import DIGITS_MAX, MINOR_MAX, SCALE_MAX

MOST = "9" * 36 + ".99 USD"

currencies = st.sampled_from(sorted(CURRENCIES))
amounts = st.one_of(
    st.builds(lambda minor, asset: Money(minor, asset, CURRENCIES[asset]), minors, currencies),
    st.builds(lambda minor, scale: Money(minor, "BTC", scale), minors, scales),
)


def exactly(money: Money) -> Fraction:
    """The amount in whole units, by other means than Money's own."""
    return Fraction(money.minor, 10**money.scale)


@pytest.mark.parametrize(
    ("text", "minor", "scale", "printed"),
    [
        ("12.50 USD", 1250, 2, "12.50 USD"),
        ("12.5 USD", 1250, 2, "12.50 USD"),
        ("12 USD", 1200, 2, "12.00 USD"),
        ("12.500 USD", 1250, 2, "12.50 USD"),
        ("+0012.50 USD", 1250, 2, "12.50 USD"),
        ("-0.01 USD", -1, 2, "-0.01 USD"),
        ("-0 USD", 0, 2, "0.00 USD"),
        ("-0.00 USD", 0, 2, "0.00 USD"),
        ("500 JPY", 500, 0, "500 JPY"),
        ("500.0 JPY", 500, 0, "500 JPY"),
        ("1.234 KWD", 1234, 3, "1.234 KWD"),
        ("1.2345 CLF", 12345, 4, "1.2345 CLF"),
        ("1.50 BTC", 15, 1, "1.5 BTC"),
        ("100 BTC", 100, 0, "100 BTC"),
        ("0.000000000000000001 ETH", 1, 18, "0.000000000000000001 ETH"),
        ("1 A.B_C-9", 1, 0, "1 A.B_C-9"),
        (MOST, MINOR_MAX, 2, MOST),
    ],
)
def test_text_is_read_and_printed(text: str, minor: int, scale: int, printed: str) -> None:
    """Every way to write an amount is read as minor units of its asset, and printed in one way."""
    money = Money.parse(text)

    assert (money.minor, money.scale) == (minor, scale)
    assert str(money) == printed
    assert repr(money) == f"Money('{printed}')"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0.001 USD", "USD has 2 decimal places"),
        ("0.1 JPY", "JPY has 0 decimal places"),
        ("1.00001 CLF", "CLF has 4 decimal places"),
        ("0.0000000000000000001 ETH", "at most 18 decimal places"),
        ("1" + "0" * 36 + ".00 USD", "more than 38 digits"),
        ("1" + "0" * 38 + " BTC", "more than 38 digits"),
        ("9" * 100 + " USD", "more than 38 digits"),
        ("9" * 100_000 + " USD", "longer than 128 characters"),
        ("1,234.50 USD", "without thousands separators"),
        ("1.234,50 EUR", "without thousands separators"),
        ("1_000 USD", "without thousands separators"),
        ("12.50", "the asset is missing"),
        ("12.50USD", "one space"),
        ("12.50  USD", "one space"),
        (" 12.50 USD", "one space"),
        ("12.50 USD ", "one space"),
        ("12.50 USD\n", "one space"),
        ("12.50\u00a0USD", "one space"),
        ("12.50 usd", "in capitals"),
        ("12.50 ÜSD", "in capitals"),
        ("12.50 " + "A" * 33, "in capitals"),
        ("USD 12.50", "a decimal number"),
        (".5 USD", "a decimal number"),
        ("5. USD", "a decimal number"),
        ("1e3 USD", "a decimal number"),
        ("0x10 USD", "a decimal number"),
        ("--1 USD", "a decimal number"),
        ("\u2212" + "1 USD", "a decimal number"),
        ("NaN USD", "a decimal number"),
        ("Infinity USD", "a decimal number"),
        ("١٢ USD", "a decimal number"),
        ("１２ USD", "a decimal number"),  # noqa: RUF001 - Full-width digits are what int() would take.
        ("² USD", "a decimal number"),
        ("\ud800 USD", "a decimal number"),
        ("1\0 USD", "a decimal number"),
        ("", "a decimal number"),
    ],
)
def test_what_is_no_amount_is_refused(text: str, problem: str) -> None:
    """A text that is not an exact amount is refused with a sentence that says what is wrong."""
    with pytest.raises(InvalidAmount) as refusal:
        Money.parse(text)

    assert problem in refusal.value.problem
    assert refusal.value.amount == text[:128]
    assert len(str(refusal.value)) < 700


@pytest.mark.parametrize(
    ("number", "printed"),
    [
        (12, "12.00 USD"),
        (-3, "-3.00 USD"),
        ("12.5", "12.50 USD"),
        (Decimal("12.50"), "12.50 USD"),
        (Decimal("1E+3"), "1000.00 USD"),
        (Decimal("-0.00"), "0.00 USD"),
        (Decimal("12.500000"), "12.50 USD"),
    ],
)
def test_numbers_are_whole_units(number: Decimal | int | str, printed: str) -> None:
    """`of` takes exact numbers of whole units."""
    assert str(Money.of(number, "USD")) == printed


@pytest.mark.parametrize(
    "number",
    [
        0.5,
        float("nan"),
        float("inf"),
        True,
        None,
        b"1",
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        Decimal("-Infinity"),
        Decimal("0.001"),
        Decimal("1E+37"),
        Decimal("1E+999999"),
        Decimal("1E-999999"),
        10**36,
        10**5000,
        -(10**5000),
        "1 USD",
        "",
    ],
    ids=lambda number: ascii(number)[:12] if not isinstance(number, int) else f"int{number.bit_length()}",
)
def test_numbers_that_are_not_exact_amounts_are_refused(number: Decimal | int | str) -> None:
    """Floats, infinities, truth values, too many digits: nothing is rounded, all are one kind of error."""
    with pytest.raises(InvalidAmount):
        Money.of(number, "USD")


@pytest.mark.parametrize("asset", ["", "usd", "U SD", "USD\n", "1", "$", "A" * 33])
def test_assets_are_codes(asset: str) -> None:
    """An asset is 1 to 32 capitals, digits and `. _ -`, beginning with a capital."""
    with pytest.raises(InvalidAmount):
        Money.of(1, asset)


@pytest.mark.parametrize("value", [0.1, 1, Decimal(1), None, True, ("1", "USD"), b"1 USD", 10**5000], ids=type)
def test_only_texts_and_money_are_taken(value: object) -> None:
    """What callers pass is a Money or a text that names its asset."""
    with pytest.raises(InvalidAmount):
        Money.coerce(value)


@pytest.mark.parametrize(
    "money",
    [
        Money(5001, "USD", 3),
        Money(10**38, "USD", 2),
        Money(10**38, "BTC", 2),
        Money(5, 'x","y', 2),
    ],
    ids=str,
)
def test_money_made_by_hand_is_checked_where_it_is_taken(money: Money) -> None:
    """A Money that `parse` could not have made is refused, so that no float or third decimal slips in."""
    with pytest.raises(InvalidAmount):
        Money.coerce(money)


@pytest.mark.parametrize(
    ("minor", "scale"),
    [(1.5, 2), (True, 2), (Decimal(5), 2), ("5", 2), (None, 2), (5, -1), (5, 19), (5, 2.0), (5, True), (5, None)],
    ids=repr,
)
def test_money_is_an_integer_of_minor_units(minor: Any, scale: Any) -> None:
    """No Money has a fraction of a minor unit, or a scale that no asset has."""
    with pytest.raises(InvalidAmount, match="not an integer of minor units in a scale of 0 to 18"):
        Money(minor, "USD", scale)


@pytest.mark.parametrize("value", [None, 5, 1.5, b"5 USD", ["5 USD"]], ids=type)
def test_only_texts_are_parsed(value: Any) -> None:
    """What is no text is refused like a text that is no amount."""
    with pytest.raises(InvalidAmount):
        Money.parse(value)


def test_sums_have_38_digits() -> None:
    """What no account could hold is no amount either, whatever it is the sum of."""
    most, least = Money.parse(MOST), Money.parse("0.01 USD")
    pairs = [(most, least), (-most, -least), (Money(MINOR_MAX, "BTC", 0), Money(1, "BTC", 1))]
    for one, other in pairs:
        with pytest.raises(InvalidAmount, match="more than 38 digits"):
            one + other
        with pytest.raises(InvalidAmount, match="more than 38 digits"):
            one - -other
    assert most - least + least == most


@pytest.mark.parametrize(
    ("money", "printed"),
    [
        (Money(5000, "USD", 3), "5.00 USD"),
        (Money(5, "USD", 0), "5.00 USD"),
        (Money(100_000_000, "BTC", 8), "1 BTC"),
        (Money.parse("0.5 BTC") + Money.parse("0.5 BTC"), "1 BTC"),
    ],
)
def test_equal_money_is_taken_in_one_form(money: Money, printed: str) -> None:
    """However an amount came about, callers' requests carry it as `parse` would have read it."""
    taken = Money.coerce(money)

    assert taken == money
    assert str(taken) == printed


@given(amounts)
def test_printing_and_parsing_round_trip(money: Money) -> None:
    """Every amount is read back from its print, equal and exact, in the one form that parse gives."""
    again = Money.parse(str(money))

    assert again == money
    assert exactly(again) == exactly(money) == Fraction(money.decimal)
    assert str(Money.parse(str(again))) == str(again)
    assert Money.of(money.decimal, money.asset) == money


@given(st.text(max_size=200) | st.from_regex(r"[+-]?[0-9.,_ ]{0,60} [A-Z0-9]{1,5}", fullmatch=True))
def test_parse_answers_or_refuses(text: str) -> None:
    """Whatever the text, parse gives an exact amount within 38 digits or InvalidAmount, and nothing else."""
    try:
        money = Money.parse(text)
    except InvalidAmount:
        return
    number, _, asset = text.partition(" ")
    assert exactly(money) == Fraction(number)
    assert money.asset == asset
    assert abs(money.minor) <= MINOR_MAX
    assert 0 <= money.scale <= SCALE_MAX
    assert len(str(abs(money.minor))) <= DIGITS_MAX


@given(minors, scales, minors, scales)
def test_arithmetic_is_exact(left: int, left_scale: int, right: int, right_scale: int) -> None:
    """Adding and subtracting undo each other, in any precision, and order follows the numbers."""
    one, other = Money(left // 10**19, "BTC", left_scale), Money(right // 10**19, "BTC", right_scale)

    assert exactly(one + other) == exactly(one) + exactly(other)
    assert exactly(one - other) == exactly(one) - exactly(other)
    assert one + other - other == one
    assert one - one == -one + one == Money(0, "BTC", 0)
    assert (one < other, one <= other, one == other, one > other, one >= other) == (
        exactly(one) < exactly(other),
        exactly(one) <= exactly(other),
        exactly(one) == exactly(other),
        exactly(one) > exactly(other),
        exactly(one) >= exactly(other),
    )


@given(amounts, scales)
def test_scales_change_nothing_or_are_refused(money: Money, scale: int) -> None:
    """at_scale gives the same amount with that many decimals, or refuses."""
    try:
        scaled = money.at_scale(scale)
    except InvalidAmount:
        minor = exactly(money) * 10**scale
        assert minor.denominator != 1 or abs(minor) > MINOR_MAX
        return
    assert scaled.scale == scale
    assert exactly(scaled) == exactly(money)
    assert scaled == money
    assert hash(scaled) == hash(money)


@given(st.integers(-(10**19), 10**19), scales, scales)
def test_equal_amounts_hash_alike(number: int, one: int, other: int) -> None:
    """1 BTC is 1.00 BTC, as a key of a dict too."""
    left, right = Money(number * 10**one, "BTC", one), Money(number * 10**other, "BTC", other)

    assert left == right
    assert hash(left) == hash(right)


def test_assets_do_not_mix() -> None:
    """Amounts of two assets are never added or compared; they are only unequal."""
    dollar, euro = Money.parse("1 USD"), Money.parse("1 EUR")

    for combine in (Money.__add__, Money.__sub__, Money.__lt__, Money.__le__):
        with pytest.raises(AssetMismatch) as refusal:
            combine(dollar, euro)
        assert (refusal.value.expected, refusal.value.actual) == ("USD", "EUR")
    assert dollar != euro
    assert Money.parse("0 USD") != Money.parse("0 EUR")


@pytest.mark.parametrize("other", [1, 0.5, "1 USD", Decimal(1), None], ids=type)
def test_numbers_do_not_mix_with_money(other: Any) -> None:
    """A bare number is no amount: it is not equal to one, and not added to one."""
    dollar = Money.parse("1 USD")

    assert dollar != other
    for combine in (operator.add, operator.sub, operator.lt, operator.le, operator.gt, operator.ge):
        with pytest.raises(TypeError, match=r"cannot combine money with|not supported"):
            combine(dollar, other)


def test_refusals_are_ledger_errors() -> None:
    """A caller who catches LedgerError or ValueError catches a bad amount."""
    with pytest.raises(LedgerError) as refusal:
        Money.parse("1.234 USD")

    assert isinstance(refusal.value, ValueError)
    assert refusal.value.code == "invalid_amount"
    assert str(refusal.value) == "Amount '1.234 USD' is not valid: USD has 2 decimal places."
