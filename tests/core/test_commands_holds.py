"""What may be asked about holds, reversals, states and periods: limits, one spelling, and what a key stands for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from samples import TRANSACTION_ID

from ledger import (
    Advance,
    Begin,
    Capture,
    ChangeAccount,
    CloseAccount,
    ClosePeriod,
    Command,
    ExpireHold,
    Freeze,
    Hold,
    InvalidAmount,
    InvalidCommand,
    Release,
    Reverse,
    Unfreeze,
)
from ledger.core.commands import build, parse_command

UNTIL = datetime(2026, 1, 1, tzinfo=UTC)
ID = json.dumps(TRANSACTION_ID)

REQUESTS: dict[str, tuple[Command, str]] = {
    "hold": (
        build(Hold, amount="5 USD", debit="a", credit="b"),
        '{"amount":"5.00 USD","credit":"b","debit":"a","type":"hold"}',
    ),
    "hold with an end": (
        build(Hold, amount="5 USD", debit="a", credit="b", expires_at="2026-01-01T01:00:00+01:00"),
        '{"amount":"5.00 USD","credit":"b","debit":"a","expires_at":"2026-01-01T00:00:00.000000Z","type":"hold"}',
    ),
    "capture": (build(Capture, hold=TRANSACTION_ID), f'{{"hold":{ID},"type":"capture"}}'),
    "final capture": (
        build(Capture, hold=UUID(TRANSACTION_ID), amount="5 JPY", final=True),
        f'{{"amount":"5 JPY","final":true,"hold":{ID},"type":"capture"}}',
    ),
    "release": (
        build(Release, hold=TRANSACTION_ID.upper(), amount="5 USD"),
        f'{{"amount":"5.00 USD","hold":{ID},"type":"release"}}',
    ),
    "expire": (build(ExpireHold, hold=TRANSACTION_ID.replace("-", "")), f'{{"hold":{ID},"type":"expire_hold"}}'),
    "reverse": (build(Reverse, transaction_id=TRANSACTION_ID), f'{{"transaction_id":{ID},"type":"reverse"}}'),
    "forced reverse": (
        build(Reverse, transaction_id=TRANSACTION_ID, amount="5 USD", reason="fraud", force=True),
        f'{{"amount":"5.00 USD","force":true,"reason":"fraud","transaction_id":{ID},"type":"reverse"}}',
    ),
    "freeze": (
        build(Freeze, account="a", reason="court"),
        '{"account":"a","reason":"court","type":"freeze"}',
    ),
    "unfreeze": (build(Unfreeze, account="a"), '{"account":"a","type":"unfreeze"}'),
    "close": (build(CloseAccount, account="a"), '{"account":"a","type":"close_account"}'),
    "change": (
        build(ChangeAccount, account="a", min_balance="-5 USD", max_balance="unlimited"),
        '{"account":"a","max_balance":"unlimited","min_balance":"-5.00 USD","type":"change_account"}',
    ),
    "change of metadata to nothing": (
        build(ChangeAccount, account="a", metadata={}),
        '{"account":"a","metadata":{},"type":"change_account"}',
    ),
    "close period": (
        build(ClosePeriod, until=UNTIL),
        '{"type":"close_period","until":"2026-01-01T00:00:00.000000Z"}',
    ),
    "begin": (
        build(Begin, machine="payment", subject="p1"),
        '{"machine":"payment","subject":"p1","type":"begin"}',
    ),
    "advance": (
        build(Advance, machine="payment", subject="p1", event="capture"),
        '{"event":"capture","machine":"payment","subject":"p1","type":"advance"}',
    ),
}


@pytest.mark.parametrize(("command", "request_text"), REQUESTS.values(), ids=REQUESTS.keys())
def test_requests_are_canonical(command: Command, request_text: str) -> None:
    """What a key stands for is one text, whatever the spelling; unset fields are not in it, and it reads back."""
    assert command.request() == request_text
    assert parse_command(request_text) == command


@pytest.mark.parametrize(
    ("command", "accounts", "refers_to"),
    [
        (build(Hold, amount="5 USD", debit="a", credit="b", expected_versions={"c": 1}), ["a", "b", "c"], None),
        (build(Capture, hold=TRANSACTION_ID, expected_versions={"c": 1}), ["c"], TRANSACTION_ID),
        (build(Release, hold=TRANSACTION_ID), [], TRANSACTION_ID),
        (build(ExpireHold, hold=TRANSACTION_ID), [], TRANSACTION_ID),
        (build(Reverse, transaction_id=TRANSACTION_ID), [], TRANSACTION_ID),
        (build(Freeze, account="a", expected_versions={"c": 1}), ["a", "c"], None),
        (build(ChangeAccount, account="a", metadata={}), ["a"], None),
        (build(ClosePeriod, until=UNTIL), [], None),
        (build(Begin, machine="payment", subject="p1"), ["#payment/p1"], None),
        (build(Advance, machine="payment", subject="p1", event="x"), ["#payment/p1"], None),
    ],
)
def test_what_commands_touch(command: Command, accounts: list[str], refers_to: str | None) -> None:
    """A command names the streams that are locked for it, and the transaction whose accounts are looked up first."""
    assert list(command.accounts) == accounts
    assert command.refers_to == refers_to


HOLD: dict[str, Any] = {"amount": "5 USD", "debit": "a", "credit": "b"}


@pytest.mark.parametrize(
    ("model", "values", "error", "where"),
    [
        (Hold, {**HOLD, "credit": "a"}, InvalidCommand, "command"),
        (Hold, {**HOLD, "amount": "0 USD"}, InvalidAmount, "amount"),
        (Hold, {**HOLD, "amount": "-1 USD"}, InvalidAmount, "amount"),
        (Hold, {**HOLD, "expires_at": "tomorrow"}, InvalidCommand, "expires_at"),
        (Hold, {**HOLD, "expires_at": "2026-01-01T00:00:00"}, InvalidCommand, "expires_at"),
        (Hold, {**HOLD, "expires_at": 1767225600}, InvalidCommand, "expires_at"),
        (Hold, {**HOLD, "final": True}, InvalidCommand, "final"),
        (Capture, {}, InvalidCommand, "hold"),
        (Capture, {"hold": "h-1"}, InvalidCommand, "hold"),
        (Capture, {"hold": 7}, InvalidCommand, "hold"),
        (Capture, {"hold": TRANSACTION_ID, "amount": "0 USD"}, InvalidAmount, "amount"),
        (Capture, {"hold": TRANSACTION_ID, "final": "yes"}, InvalidCommand, "final"),
        (Release, {"hold": TRANSACTION_ID, "final": True}, InvalidCommand, "final"),
        (ExpireHold, {"hold": TRANSACTION_ID, "amount": "5 USD"}, InvalidCommand, "amount"),
        (Reverse, {"transaction_id": "x"}, InvalidCommand, "transaction_id"),
        (Reverse, {"transaction_id": TRANSACTION_ID, "force": 1}, InvalidCommand, "force"),
        (Reverse, {"transaction_id": TRANSACTION_ID, "reason": ""}, InvalidCommand, "reason"),
        (Reverse, {"transaction_id": TRANSACTION_ID, "reason": "x" * 256}, InvalidCommand, "reason"),
        (Freeze, {"account": "$ledger"}, InvalidCommand, "account"),
        (CloseAccount, {"account": "#payment/p1"}, InvalidCommand, "account"),
        (ChangeAccount, {"account": "a"}, InvalidCommand, "command"),
        (ChangeAccount, {"account": "a", "reason": "x"}, InvalidCommand, "command"),
        (ChangeAccount, {"account": "a", "min_balance": "5USD"}, InvalidAmount, "min_balance"),
        (ChangeAccount, {"account": "a", "max_balance": "without"}, InvalidAmount, "max_balance"),
        (ChangeAccount, {"account": "a", "min_balance": "2 USD", "max_balance": "1 USD"}, InvalidCommand, "command"),
        (ClosePeriod, {}, InvalidCommand, "until"),
        (ClosePeriod, {"until": "2026-01-01"}, InvalidCommand, "until"),
        (Begin, {"machine": "Payment", "subject": "p1"}, InvalidCommand, "machine"),
        (Begin, {"machine": "payment", "subject": "p#1"}, InvalidCommand, "subject"),
        (Advance, {"machine": "payment", "subject": "p1", "event": "x" * 64}, InvalidCommand, "event"),
    ],
)
def test_limits(model: type[Any], values: dict[str, Any], error: type[Exception], where: str) -> None:
    """What cannot be meant is refused before anything is read, and the error says where it is."""
    with pytest.raises(error) as refused:
        build(model, **values)

    assert getattr(refused.value, "where", None) == where


@pytest.mark.parametrize(("model", "field"), [(Capture, "hold"), (Reverse, "transaction_id")])
def test_what_is_no_id_is_named(model: type[Any], field: str) -> None:
    """Who gives something else for an id reads what it was, and what an id is."""
    with pytest.raises(InvalidCommand) as refused:
        build(model, **{field: "rent-5"})

    assert str(refused.value) == f"{field}: 'rent-5' is not the id of a transaction, which is a UUID"


def test_limits_of_two_assets_are_judged_by_the_account() -> None:
    """Two limits in different assets cannot be compared: which one is wrong is seen when the account is."""
    command = build(ChangeAccount, account="a", min_balance="1 USD", max_balance="2 EUR")

    assert json.loads(command.request())["max_balance"] == "2.00 EUR"
