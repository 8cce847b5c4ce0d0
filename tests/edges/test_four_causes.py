"""Each of the four causes, from messages in a file to balances in the ledger, by the command line alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import Answer, Program, answer, forking, program

from ledger.order.disturb import (
    FOUR_CAUSES,
    WORLD,
    Cause,
    NaiveConsumer,
    account_name,
    banking,
    disturbed,
    random_for,
    wrong,
)
from ledger.order.message import Message, encode

__all__ = ["answer", "forking", "program"]

ACCOUNTS = 40
PAIRS = 12
SENT = list(banking(ACCOUNTS, random_for(7, "banking"), pairs=PAIRS))


def balances_of(messages: list[Message]) -> dict[str, int]:
    """What a naive consumer makes of messages: the truth, if they are in order."""
    consumer = NaiveConsumer()
    for message in messages:
        consumer.handle(message)
    return consumer.balances


@pytest.mark.parametrize("causes", [(cause,) for cause in FOUR_CAUSES] + [FOUR_CAUSES], ids="+".join)
def test_cause_does_no_harm(program: Program, answer: Answer, tmp_path: Path, causes: tuple[Cause, ...]) -> None:
    """The messages as they arrive make a naive consumer wrong; ingested, they make the balances that were meant."""
    right = balances_of(SENT)
    # The first seed with which the cause does its harm: one that does none would show nothing.
    arrived = next(
        arrived
        for arrived in (list(disturbed(SENT, causes, seed)) for seed in range(50))
        if wrong(balances_of(arrived), right)
    )
    file = tmp_path / "messages.jsonl"
    file.write_bytes(b"".join(encode(message) + b"\n" for message in arrived))
    opening = {"type": "open_account", "asset": "USD"}
    customers = ({"account": account_name(number), "min_balance": "0 USD"} for number in range(1, ACCOUNTS + 1))
    openings = [{**opening, "account": WORLD, "account_type": "equity"}]
    openings += [{**opening, **customer, "account_type": "liability"} for customer in customers]
    assert program("post", "-", stdin="\n".join(map(json.dumps, openings))).returncode == 0
    code, summary = answer("ingest", str(file), "--source", "bank")
    assert (code, summary["received"], summary["processed"]) == (0, len(arrived), len(SENT))
    assert summary["duplicates"] == len(arrived) - len(SENT)
    lines = answer("accounts", "--asset", "USD", "--limit", "1000")[1]["accounts"]
    cents = {line["account"]: _cents(line["balance"]["posted"]) for line in lines if line["account"] != WORLD}
    assert wrong(cents, right) == {}
    counters = answer("inbox", "stats", "--source", "bank")[1]["counters"]
    assert counters.get("out_of_order", 0) + counters.get("duplicates", 0) > 0
    assert counters.get("gaps_opened", 0) == counters.get("gaps_filled", 0)
    assert answer("inbox", "gaps", "--source", "bank")[0] == 0
    assert answer("inbox", "completeness", "--source", "bank")[0] == 0
    assert answer("verify")[0] == 0


def _cents(amount: str) -> int:
    return int(amount.removesuffix(" USD").replace(".", ""))
