"""What may be asked: every limit refused beyond it with what and where, and one canonical text per request."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any, get_args

import jsonschema_rs
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from samples import account_ids, metadata, moments, texts

from ledger import (
    AccountType,
    Command,
    DefineAsset,
    Deposit,
    Direction,
    Entry,
    InvalidAmount,
    InvalidCommand,
    Money,
    OpenAccount,
    Post,
    Transfer,
    Withdraw,
    command_schema,
    credit,
    debit,
    parse_command,
)
from ledger.core.canonical import utc_text
from ledger.core.commands import (
    Advance,
    Begin,
    Capture,
    ChangeAccount,
    CloseAccount,
    ClosePeriod,
    ExpireHold,
    Freeze,
    Hold,
    Release,
    Reverse,
    Unfreeze,
    build,
)

SOME_ID = "01890a5d-ac96-774b-bcce-b302099a8057"

COMMANDS: tuple[Command, ...] = (
    DefineAsset(asset="BTC", scale=8),
    build(OpenAccount, account="alice", asset="USD", account_type="liability", min_balance=0, max_balance="5.00 USD"),
    build(ChangeAccount, account="alice", min_balance="unlimited", max_balance="5 USD", metadata={"k": 1}),
    Freeze(account="alice", reason="lost card"),
    Unfreeze(account="alice"),
    CloseAccount(account="alice"),
    Post(entries=(debit("world", "5 USD"), credit("alice", "5 USD"))),
    build(Transfer, amount="5 USD", debit="world", credit="alice"),
    build(Deposit, amount="5 USD", account="alice", against="world"),
    build(Withdraw, amount="5 USD", account="alice", against="world"),
    build(Hold, amount="5 USD", debit="world", credit="alice", expires_at="2030-01-01T00:00:00Z"),
    build(Capture, hold=SOME_ID, amount="5 USD", final=True),
    build(Release, hold=SOME_ID, amount="5 USD"),
    ExpireHold(hold=SOME_ID),
    build(Reverse, transaction_id=SOME_ID, amount="5 USD", reason="wrong", force=True),
    ClosePeriod(until=datetime(2026, 1, 1, tzinfo=UTC)),
    Begin(machine="payment", subject="p-1"),
    Advance(machine="payment", subject="p-1", event="authorize"),
)
"""One of each."""


def transfer(**fields: object) -> Transfer:
    """A valid transfer, but for what the test changes."""
    return build(Transfer, **{"amount": "5 USD", "debit": "world", "credit": "alice", **fields})


def opening(**fields: object) -> OpenAccount:
    """A valid opening, but for what the test changes."""
    return build(OpenAccount, **{"account": "alice", "asset": "USD", "account_type": "liability", **fields})


def refused(make: Callable[[], object]) -> InvalidCommand | InvalidAmount:
    """The refusal of a request; it says where, and is one line."""
    with pytest.raises((InvalidCommand, InvalidAmount)) as refusal:
        make()
    assert isinstance(refusal.value, InvalidCommand | InvalidAmount)
    assert refusal.value.where
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1000
    str(refusal.value).encode()  # Can be printed and logged, whatever was sent.
    return refusal.value


@pytest.mark.parametrize(
    ("make", "error", "where"),
    [
        (lambda: Transfer(amount="12.505 USD", debit="a", credit="b"), InvalidAmount, "amount"),
        (lambda: Transfer(amount="5 USD", debit="a", credit="$b"), InvalidCommand, "credit"),
        (lambda: Transfer(amount="5 USD", debit="a", credit="a"), InvalidCommand, "command"),
        (lambda: build(Transfer), InvalidCommand, "amount"),
        (lambda: Post(entries=()), InvalidCommand, "entries"),
        (lambda: Entry(account="a", amount="-5 USD", direction="debit"), InvalidAmount, "amount"),
        (lambda: Entry(account="a", amount="5 USD", direction="up"), InvalidCommand, "direction"),
        (lambda: DefineAsset(asset="BTC", scale=19), InvalidCommand, "scale"),
        (lambda: DefineAsset(asset="BTC", scale=8, metadata={"k": 1.5}), InvalidCommand, "metadata.k"),
    ],
)
def test_a_command_is_refused_where_it_is_made(
    make: Callable[[], object], error: type[InvalidCommand | InvalidAmount], where: str
) -> None:
    """The constructors raise the ledger's own errors, which say where, and nothing of pydantic's."""
    refusal = refused(make)

    assert (type(refusal), refusal.where) == (error, where)


def test_there_is_one_of_each() -> None:
    """The examples of this file cover every command."""
    assert [type(command) for command in COMMANDS] == list(get_args(Command))


@pytest.mark.parametrize(
    "account",
    ["a", "Z", "0", "a" * 128, "users:42/wallet@eu-1+x_y.z", "a" + string.ascii_letters + string.digits + "._:/@+-"],
)
def test_account_ids_of_the_stated_set(account: str) -> None:
    """1 to 128 letters, digits and `. _ : / @ + -`."""
    assert transfer(debit=account).debit == account


@pytest.mark.parametrize(
    "account",
    [
        "",
        "a" * 129,
        "a" * 1_000_000,
        "$ledger",
        "a$b",
        "a#1",
        "-a",
        ".a",
        "a b",
        "a\n",
        "a\0",
        "a\\",
        'a"',
        "a|b",
        "a,b",
        "{a}",
        "ä",
        "а",  # noqa: RUF001 - Cyrillic, so that no two accounts look alike.
        "\u0661",
        "\ud800",
        None,
        7,
    ],
    ids=lambda account: ascii(account)[:12],
)
@pytest.mark.parametrize("field", ["debit", "credit"])
def test_other_account_ids_are_refused(field: str, account: object) -> None:
    """`$` and `#` mark streams of ours, and no id needs quoting anywhere."""
    assert refused(lambda: transfer(**{field: account})).where == field


@given(account_ids)
def test_every_id_of_the_set_is_taken(account: str) -> None:
    """The set is what the documentation says it is."""
    assert debit(account, "1 USD").account == account


@pytest.mark.parametrize("count", [0, 1, 201, 1000])
def test_a_transaction_has_2_to_200_entries(count: int) -> None:
    """Fewer or more are refused."""
    entries = [debit("world", "1 USD")] * count

    assert refused(lambda: build(Post, entries=entries)).where == "entries"
    assert len(build(Post, entries=[debit("world", "1 USD")] * 200).entries) == 200


@pytest.mark.parametrize("sized", ["a", "é", "€", "🦉", '"', "\n"])
def test_metadata_has_16_kib(sized: str) -> None:
    """The limit counts the bytes of the canonical text, in whatever script it is written."""
    frame = len('{"note":""}')
    each = len(json.dumps(sized, ensure_ascii=False).encode()) - 2
    fits = sized * ((16 * 1024 - frame) // each)

    assert transfer(metadata={"note": fits}).metadata == {"note": fits}
    assert "16384 bytes" in str(refused(lambda: transfer(metadata={"note": fits + sized})))


@pytest.mark.parametrize("value", ["", "text", True, False, 0, 1, -1, 2**53 - 1, -(2**53 - 1)])
def test_metadata_values_keep_their_type(value: object) -> None:
    """True stays true and 1 stays 1, in Python and in JSON."""
    line = json.dumps(
        {"type": "transfer", "amount": "5 USD", "debit": "world", "credit": "alice", "metadata": {"key": value}}
    )

    for command in (transfer(metadata={"key": value}), parse_command(line)):
        assert repr(command.metadata) == repr({"key": value})
        assert repr(json.loads(command.request())["metadata"]) == repr({"key": value})


@pytest.mark.parametrize(
    "value", [1.0, 0.5, float("nan"), 2**53, -(2**53), 10**40, None, [], {}, b"x", Decimal(1), date(2026, 1, 1)]
)
def test_other_metadata_values_are_refused(value: object) -> None:
    """Metadata is strings, booleans and integers that every JSON library keeps exact."""
    assert refused(lambda: transfer(metadata={"key": value})).where.startswith("metadata.key")


@pytest.mark.parametrize("key", ["", "k" * 129, "ä", "a\n", "\0", "\x7f", "\ud800", 1], ids=ascii)
def test_metadata_keys_are_printable_ascii(key: object) -> None:
    """1 to 128 printable ASCII characters, so that sorting them is the same everywhere."""
    assert refused(lambda: transfer(metadata={key: "x"})).where.startswith("metadata")


@pytest.mark.parametrize("field", ["reference", "idempotency_key", "actor", "correlation_id", "causation_id"])
def test_labels_are_short_texts(field: str) -> None:
    """1 to 255 characters; what PostgreSQL or UTF-8 cannot hold is refused here."""
    for wrong in ("", "x" * 256, "nul\0", "\ud800", "\udfff half", 7, 1.5):
        assert refused(partial(transfer, **{field: wrong})).where == field
    for text in ("x", "€" * 255, "🦉 \u2028 \x7f \x01"):
        assert getattr(transfer(**{field: text}), field) == text


@pytest.mark.parametrize("value", ["nul\0", "\ud800", "\udfff half"], ids=ascii)
def test_metadata_texts_can_be_stored(value: str) -> None:
    """NUL and lone surrogates are refused in metadata too."""
    assert refused(lambda: transfer(metadata={"key": value})).where.startswith("metadata")


@pytest.mark.parametrize(
    "line",
    [
        '{"type":"transfer","amount":"5 USD","debit":"a","credit":"b","reference":"\\ud800"}',
        '{"type":"transfer","amount":"5 USD","debit":"a","credit":"b","reference":"\ud800"}',
        b'{"type":"transfer","amount":"5 USD","debit":"a","credit":"b","reference":"\xff"}',
        '{"type":"transfer","amount":"5 USD","debit":"a","credit":"b","reference":"\\u0000"}',
    ],
    ids=["escaped surrogate", "surrogate", "not UTF-8", "NUL"],
)
def test_json_that_is_no_text_is_refused(line: bytes | str) -> None:
    """What is not a sequence of storable characters is refused on the wire as in Python."""
    refused(lambda: parse_command(line))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.type)
def test_unknown_fields_are_refused(command: Command) -> None:
    """A misspelt field is an error, not a field that is ignored."""
    fields = {**json.loads(command.request()), "idempotencykey": "x"}

    assert refused(lambda: parse_command(json.dumps(fields))).where == f"{command.type}.idempotencykey"
    del fields["type"]
    assert refused(lambda: build(type(command), **fields)).where == "idempotencykey"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.type)
def test_commands_are_frozen(command: Command) -> None:
    """What was validated stays as it was."""
    with pytest.raises(ValidationError, match="frozen"):
        setattr(command, "reference", "other")  # noqa: B010 - mypy knows it is frozen, too.


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 1, 1),  # noqa: DTZ001 - The point of it.
        "2026-01-01T00:00:00",
        "2026-01-01",
        date(2026, 1, 1),
        "yesterday",
        "2026-01-01T00:00:00Z\n",
        "２０２６-01-01T00:00:00Z",  # noqa: RUF001 - Digits, but not the ones of a time.
        float("nan"),
        True,
    ],
    ids=repr,
)
def test_moments_have_a_time_zone(moment: object) -> None:
    """A moment without a time zone is refused: it could be any of two dozen."""
    assert refused(lambda: transfer(effective_at=moment)).where == "effective_at"


@pytest.mark.parametrize(
    "moment",
    [0, 1.5, 1767225600, "1767225600", "1767225600.5", "-1.5", "1_767_225_600", "1e9", Decimal("1.5")],
    ids=repr,
)
def test_moments_are_not_numbers(moment: object) -> None:
    """Seconds or milliseconds since when is a guess, and a float is not exact."""
    assert refused(lambda: transfer(effective_at=moment)).where == "effective_at"


@pytest.mark.parametrize("zone", ["Z", "+01:00", "-0530"])
def test_moments_have_six_decimals(zone: str) -> None:
    """What is finer than a microsecond is refused, not cut: two moments would become one."""
    kept = transfer(effective_at=f"2026-01-01T00:00:00.123456{zone}").effective_at
    assert kept is not None
    assert kept.microsecond == 123456

    for finer in (f"2026-01-01T00:00:00.1234567{zone}", f"2026-01-01 00:00:00,1234560{zone}"):
        assert "at most 6 decimals" in refused(lambda finer=finer: transfer(effective_at=finer)).problem  # type: ignore[misc]


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
    ],
    ids=str,
)
def test_moments_have_a_place_in_utc(moment: object) -> None:
    """A moment outside the years 1 to 9999 of UTC is refused like any other mistake."""
    assert refused(lambda: transfer(effective_at=moment)).where == "effective_at"


@given(moments, st.integers(-14 * 60, 14 * 60))
def test_moments_are_compared_in_utc(moment: datetime, minutes: int) -> None:
    """One moment is one request, in whatever time zone it is written, to the microsecond."""
    middle = moment.replace(year=2000)
    elsewhere = middle.astimezone(timezone(timedelta(minutes=minutes)))

    assert transfer(effective_at=elsewhere).request() == transfer(effective_at=middle.isoformat()).request()
    assert datetime.fromisoformat(utc_text(elsewhere)) == middle
    assert utc_text(middle) == f"{middle:%Y-%m-%dT%H:%M:%S}.{middle.microsecond:06}Z"


@pytest.mark.parametrize("amount", ["0 USD", "-1 USD", "0.001 USD", "1,000 USD", 5, 5.0, None, True, "5"], ids=repr)
def test_amounts_are_positive_and_exact(amount: object) -> None:
    """The direction says the side; the amount is exact and greater than zero."""
    refusals = [
        refused(lambda: transfer(amount=amount)),
        refused(lambda: debit("world", amount)),  # type: ignore[arg-type]
        refused(lambda: build(Deposit, account="alice", amount=amount, against="world")),
        refused(lambda: build(Withdraw, account="alice", amount=amount, against="world")),
    ]

    assert {type(refusal) for refusal in refusals} == {InvalidAmount}
    assert {refusal.where for refusal in refusals} == {"amount"}


@pytest.mark.parametrize("command", [Transfer, Deposit, Withdraw])
def test_an_amount_moves_between_two_accounts(command: type[Transfer | Deposit | Withdraw]) -> None:
    """Both sides being one account is a mistake, not a transfer."""
    sides = ("debit", "credit") if command is Transfer else ("account", "against")

    refusal = refused(lambda: build(command, amount="1 USD", **dict.fromkeys(sides, "alice")))

    assert "both sides are alice" in str(refusal)


@pytest.mark.parametrize("limit", [0, "0", Decimal("0.00"), "0 USD", "-0.00 USD", Money.parse("0 USD")], ids=repr)
def test_limits_may_leave_out_the_asset(limit: object) -> None:
    """A limit in the account's asset need not repeat it; all spellings are one request."""
    assert opening(min_balance=limit).request() == opening(min_balance="0.00 USD").request()


@pytest.mark.parametrize(
    "limit",
    ["0.001", "5 EUR", "5 usd", 0.5, True, "abc", "", float("nan"), [], "1,000", pytest.param(10**5000, id="huge")],
)
@pytest.mark.parametrize("field", ["min_balance", "max_balance"])
def test_limits_are_exact_amounts_of_the_asset(field: str, limit: object) -> None:
    """A limit that is not exact, or in another asset, is refused; the refusal names the limit."""
    refusal = refused(lambda: opening(**{field: limit}))

    assert refusal.where == field or (limit == "5 EUR" and "a limit is written in the account's asset" in str(refusal))


def test_limits_leave_room() -> None:
    """max_balance is not below min_balance; equal ones pin an account."""
    assert "max_balance is below min_balance" in str(refused(lambda: opening(min_balance=5, max_balance="4.99")))
    assert opening(min_balance=5, max_balance=5).max_balance == Money.parse("5 USD")


@pytest.mark.parametrize("scale", [-1, 19, True, "2", 2.0, None])
def test_scales_are_0_to_18(scale: object) -> None:
    """An asset has 0 to 18 decimal places."""
    assert refused(lambda: build(DefineAsset, asset="BTC", scale=scale)).where == "scale"
    assert [build(DefineAsset, asset="BTC", scale=scale).scale for scale in (0, 18)] == [0, 18]


@pytest.mark.parametrize("asset", ["", "btc", "1BTC", "B TC", "BTC\n", "A" * 33, "Ä", "\ud800"], ids=ascii)
def test_asset_codes_are_capitals(asset: str) -> None:
    """An asset code is what an amount can be written in."""
    assert refused(lambda: build(DefineAsset, asset=asset, scale=2)).where == "asset"


@pytest.mark.parametrize("expected", [{"alice": -1}, {"alice": 2**53}, {"alice": None}, {"alice": 1.5}, {"$ledger": 1}])
def test_expected_versions_are_versions_of_accounts(expected: dict[str, object]) -> None:
    """An expected version is 0 or more, of an account."""
    assert refused(lambda: transfer(expected_versions=expected)).where.startswith("expected_versions")


def test_expected_versions_are_bounded() -> None:
    """Each expected version is read and locked, so there is a limit to them as to everything."""
    assert refused(lambda: transfer(expected_versions={f"a{i}": 0 for i in range(10_001)})).where == "expected_versions"


@given(metadata, texts, st.randoms(use_true_random=False))
def test_request_is_canonical_json(values: dict[str, Any], reference: str, random: Any) -> None:
    """A request is the RFC 8785 text of its fields, whatever order the caller wrote them in."""
    shuffled = list(values.items())
    random.shuffle(shuffled)

    request = transfer(metadata=dict(shuffled), reference=reference).request()

    expected: dict[str, Any] = {
        "amount": "5.00 USD",
        "credit": "alice",
        "debit": "world",
        "reference": reference,
        "type": "transfer",
    }
    assert request.encode() == rfc8785.dumps(expected | ({"metadata": values} if values else {}))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.type)
def test_request_of_each_command(command: Command) -> None:
    """A request is canonical, names every field that is set, and parses back into the same command."""
    request = command.request()

    assert request.encode() == rfc8785.dumps(json.loads(request))
    assert set(json.loads(request)) == command.model_fields_set | {"type"}
    assert parse_command(request) == command
    assert parse_command(request).request() == request


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"amount": "5 USD"}, {"amount": "5.00 USD"}),
        ({"amount": "5 BTC"}, {"amount": "5.000 BTC"}),
        ({"amount": "0.5 BTC"}, {"amount": Money(50_000_000, "BTC", 8)}),
        ({"amount": "1 BTC"}, {"amount": Money.parse("0.5 BTC") + Money.parse("0.5 BTC")}),
        ({}, {"metadata": {}, "reference": None, "effective_at": None}),
        ({"metadata": {"a": 1, "b": 2}}, {"metadata": {"b": 2, "a": 1}}),
        ({}, {"idempotency_key": "k"}),
        ({"actor": "a"}, {"actor": "b"}),
        ({"correlation_id": "a"}, {"correlation_id": "b"}),
        ({"causation_id": "a"}, {"causation_id": "b"}),
        ({"expected_versions": {"alice": 1}}, {"expected_versions": {"alice": 2}}),
    ],
    ids=str,
)
def test_equal_requests_have_equal_texts(one: dict[str, object], other: dict[str, object]) -> None:
    """Spelling, order, key, context and expected versions are no part of what is asked for."""
    assert transfer(**one).request() == transfer(**other).request()


@pytest.mark.parametrize(
    "changed",
    [
        {"amount": "5.01 USD"},
        {"amount": "5 EUR"},
        {"debit": "alice", "credit": "world"},
        {"reference": "x"},
        {"effective_at": datetime(2026, 1, 1, tzinfo=UTC)},
        {"metadata": {"a": 1}},
        {"metadata": {"a": "1"}},
        {"metadata": {"a": True}},
    ],
    ids=str,
)
def test_other_requests_have_other_texts(changed: dict[str, object]) -> None:
    """Whatever changes what is asked for changes the text; 1, "1" and true are three things."""
    texts = {transfer().request(), transfer(**changed).request(), transfer(metadata={"a": 2}).request()}

    assert len(texts) == 3


def test_order_of_entries_is_part_of_the_request() -> None:
    """Entries are recorded in the order given, so another order is another request."""
    one, other = debit("world", "5 USD"), credit("alice", "5 USD")

    assert Post(entries=(one, other)).request() != Post(entries=(other, one)).request()


@pytest.mark.parametrize(
    ("line", "where", "problem"),
    [
        ("", "command", "Invalid JSON"),
        ("{", "command", "Invalid JSON"),
        ("[]", "command", "object"),
        ("null", "command", "object"),
        ("{}", "command", "'type'"),
        ('{"type":"steal"}', "command", "'steal'"),
        ("[" * 100_000, "command", "recursion"),
        ('{"type":"transfer"}', "transfer.amount", "required"),
        ('{"type":"transfer","amount":"5 USD","debit":"a"}', "transfer.credit", "required"),
        ('{"type":"transfer","amount":5.0,"debit":"a","credit":"b"}', "transfer.amount", "not exact"),
        ('{"type":"transfer","amount":NaN,"debit":"a","credit":"b"}', "transfer.amount", "not exact"),
        ('{"type":"transfer","amount":"5 USD","debit":"a","credit":"$x"}', "transfer.credit", "'$x' is not allowed"),
        (
            '{"type":"post","entries":[{"account":"b","amount":"5.001 USD","direction":"credit"}]}',
            "post.entries.0.amount",
            "USD has 2 decimal places",
        ),
        (
            '{"type":"open_account","account":"a","asset":"USD","account_type":"purse"}',
            "open_account.account_type",
            "'asset', 'liability'",
        ),
        (
            '{"type":"open_account","account":"a","asset":"USD","account_type":"asset","min_balance":"0.001"}',
            "open_account.min_balance",
            "USD has 2 decimal places",
        ),
    ],
)
def test_parse_says_what_and_where(line: str, where: str, problem: str) -> None:
    """A line that is no command is refused with the place and the fault."""
    refusal = refused(lambda: parse_command(line))

    assert refusal.where == where
    assert problem in str(refusal)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({}, None),
        ({'"debit":"a"': '"debit":"b","debit":"a"'}, "debit"),
        ({'"debit":"a"': '"debit":"a" , "debit" \t: "a"'}, "debit"),
        ({'"debit":"a"': '"debit":7,"debit":"a"'}, "debit"),
        ({'"debit":"a"': '"debit":"a","\\u0064ebit":"a"'}, "debit"),
        ({'"type":"transfer"': '"type":"post","type":"transfer"'}, "type"),
        ({'{"k":1}': '{"k":1,"k":1}'}, "k"),
        ({'{"a":3}': '{"a":3,"a":4}'}, "a"),
        ({'"metadata":{"k":1}': '"metadata":{},"metadata":{"k":1}'}, "metadata"),
        ({'{"k":1}': '{"k":"{\\"k\\":1,\\"k\\":2}"}'}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("encode", [str, str.encode])
def test_a_key_is_there_once(changed: dict[str, str], key: str | None, encode: Callable[[str], bytes | str]) -> None:
    """Of two values for one key nobody knows which was meant: refused by the key's name, wherever it is."""
    line = (
        '{"type":"transfer","amount":"5 USD","debit":"a","credit":"b","metadata":{"k":1},"expected_versions":{"a":3}}'
    )
    for old, new in changed.items():
        assert old in line
        line = line.replace(old, new)
    if key is None:
        assert isinstance(parse_command(encode(line)), Transfer)
        return
    refusal = refused(lambda: parse_command(encode(line)))
    assert (refusal.where, refusal.problem) == (key, "it is there twice")


def test_a_key_of_an_entry_is_there_once() -> None:
    """Entries are looked through as well."""
    entry = '{"account":"a","amount":"5 USD","direction":"debit"}'
    other = '{"account":"b","amount":"5 USD","direction":"credit","amount":"5 USD"}'
    assert refused(lambda: parse_command(f'{{"type":"post","entries":[{entry},{other}]}}')).where == "amount"


@pytest.mark.parametrize("value", [2**53, 1.5, None])
def test_metadata_faults_are_told_as_they_are(value: object) -> None:
    """A number that is too large or not whole is not told to be a text."""
    refusal = refused(lambda: transfer(metadata={"key": value}))

    assert refusal.where == "metadata.key"
    assert "should be a valid string" not in str(refusal)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.type)
def test_schema_takes_every_command(command: Command) -> None:
    """The published schema is valid JSON Schema and accepts what the parser accepts."""
    schema = command_schema()
    jsonschema_rs.meta.validate(schema)
    validator = jsonschema_rs.validator_for(schema)

    validator.validate(json.loads(command.request()))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"type": "steal"},
        {"type": "transfer", "amount": 5.0, "debit": "a", "credit": "b"},
        {"type": "transfer", "amount": "5 usd", "debit": "a", "credit": "b"},
        {"type": "transfer", "amount": "5 USD", "debit": "$a", "credit": "b"},
        {"type": "transfer", "amount": "5 USD", "debit": "a", "credit": "b", "memo": "x"},
        {"type": "post", "entries": []},
        {"type": "define_asset", "asset": "BTC", "scale": 19},
    ],
    ids=str,
)
def test_schema_refuses_what_is_wrong(wrong: dict[str, object]) -> None:
    """What the parser refuses for its shape, the published schema refuses too."""
    refused(lambda: parse_command(json.dumps(wrong)))

    assert not jsonschema_rs.validator_for(command_schema()).is_valid(wrong)


def test_normal_balances() -> None:
    """Assets and expenses grow on the debit side, the others on the credit side."""
    debits = {account_type for account_type in AccountType if account_type.normal is Direction.DEBIT}

    assert debits == {AccountType.ASSET, AccountType.EXPENSE}
    assert len(AccountType) == 5
