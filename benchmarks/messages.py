"""
What order costs: `python -m benchmarks messages [--quick] [--memory]`.

The same commands from the same messages in batches of a thousand, by plain `handle` and through the inbox: as
they were sent, shuffled, and with copies.  Counted is every message that is delivered, a copy as well.

With `--memory` it is one consumer in a process of its own, and what it keeps in memory while messages pass through.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from sqlalchemy import URL

from benchmarks.noise import listen
from benchmarks.report import Ratio, Run, keep, results, show
from benchmarks.server import conditions, server, settle, text
from ledger import Command, Deposit, Done, Ledger, OpenAccount, Strict, Withdraw
from ledger.order.disturb import DEPOSIT, WORLD, account_name, banking, duplication, random_for, shuffled
from ledger.order.message import Message

BATCH: Final = 1_000
PAIRS: Final = 10
"""Deposits of each account, and withdrawals."""

WINDOW: Final = 1_000
COPIES: Final = 0.1
SAMPLES: Final = 20

PLAIN: Final = "handle, as sent"
ORDERED: Final = "inbox, as sent"
SHUFFLED: Final = f"inbox, shuffled (window {WINDOW:,})"
DUPLICATED: Final = f"inbox, {COPIES:.0%} delivered twice"
RATIOS: Final = (
    Ratio("inbox, as sent / handle", ORDERED, (PLAIN,), 0.6),
    Ratio("inbox, shuffled / handle", SHUFFLED, (PLAIN,), 0.35),
    Ratio("inbox, with copies / handle", DUPLICATED, (PLAIN,), None),
)

_numbers = count(1)


class Sample(NamedTuple):
    """How many messages had passed, and the megabytes that the consumer then kept in memory."""

    messages: int
    megabytes: float


def main(arguments: Sequence[str]) -> None:
    """Measure, print, and keep it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks messages", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default: 5)")
    parser.add_argument("--memory", action="store_true", help="memory of a consumer instead of speed")
    parser.add_argument("--messages", type=int, help="default: 20,000 in each run; with --memory 1,000,000")
    parser.add_argument("--output", type=Path, help="where the JSON goes (default: benchmarks/results/)")
    asked = parser.parse_args(arguments)
    console = Console()
    size = asked.messages or (2_000 if asked.quick else 1_000_000 if asked.memory else 20_000)
    with server() as url:
        if asked.memory:
            found = _memory(url, size) | {"conditions": conditions(url)}
        else:
            runs = _measure(url, 1 if asked.quick else asked.rounds, size, console)
            found = results(runs, RATIOS, "messages") | {"messages": size, "conditions": conditions(url)}
    if asked.memory:
        _show_memory(found, console)
    else:
        show(found, "messages", console)
    keep(found, asked.output, console)


def _measure(url: URL, rounds: int, size: int, console: Console) -> list[Run]:
    accounts = size // (2 * PAIRS)
    with Ledger.connect(text(url)) as ledger:
        prepare(ledger, accounts)
        turns: Mapping[str, Callable[[], float]] = {
            PLAIN: lambda: _rate(_messages(accounts), lambda source, each: _handle(ledger, source, each)),
            ORDERED: lambda: _rate(_messages(accounts), lambda source, each: _receive(ledger, source, each)),
            SHUFFLED: lambda: _rate(
                _messages(accounts, _shuffled), lambda source, each: _receive(ledger, source, each)
            ),
            DUPLICATED: lambda: _rate(
                _messages(accounts, _duplicated), lambda source, each: _receive(ledger, source, each)
            ),
        }
        # Nobody's first run counts: connections are opened in it, and statements prepared.
        for turn in turns.values():
            turn()
        runs = []
        for number in range(1, rounds + 1):
            for name, turn in turns.items():
                if console.is_terminal:
                    console.print(f"round {number} of {rounds}: {name}", style="dim")
                settle(url)
                noise = listen()
                runs.append(Run(number, name, turn(), noise))
        assert ledger.trial_balance().balanced
    return runs


def prepare(ledger: Ledger, accounts: int) -> None:
    """Open the accounts of a workload."""
    ledger.migrate()
    ledger.open_account(WORLD, asset="USD", type="equity")
    names = map(account_name, range(1, accounts + 1))
    while some := list(islice(names, BATCH)):
        ledger.handle(
            [OpenAccount(account=name, asset="USD", account_type="liability", min_balance="0") for name in some]
        )


def _messages(
    accounts: int, disturb: Callable[[Iterable[Message]], Iterator[Message]] = iter
) -> tuple[str, list[Message]]:
    """Messages of a new source, as they arrive: their accounts are the same each time, their streams begin anew."""
    source = f"source-{next(_numbers)}"
    sent = banking(accounts, random_for(1, "banking"), pairs=PAIRS, source=source)
    return source, list(disturb(sent))


def _shuffled(sent: Iterable[Message]) -> Iterator[Message]:
    return shuffled(sent, random_for(1, "shuffled"), window=WINDOW)


def _duplicated(sent: Iterable[Message]) -> Iterator[Message]:
    return duplication(sent, random_for(1, "duplication"), rate=COPIES)


def _rate(arriving: tuple[str, list[Message]], take_in: Callable[[str, Sequence[Message]], None]) -> float:
    """Take messages in, batch by batch; how many a second."""
    source, messages = arriving
    # What was measured before is no garbage that this run's collections should have to look through.
    gc.collect()
    gc.freeze()
    start = time.perf_counter()
    for place in range(0, len(messages), BATCH):
        take_in(source, messages[place : place + BATCH])
    rate = len(messages) / (time.perf_counter() - start)
    gc.unfreeze()
    return rate


def _handle(ledger: Ledger, source: str, messages: Sequence[Message]) -> None:
    """What a consumer does that trusts the order; making the commands counts, here as there."""
    outcomes = ledger.handle([_command_of(message) for message in messages], scope=source)
    assert all(isinstance(outcome, Done) for outcome in outcomes)


def _command_of(message: Message) -> Command:
    assert isinstance(message.data, dict)
    kind = Deposit if message.type == DEPOSIT else Withdraw
    return kind.model_validate({"idempotency_key": f"{message.stream}#{message.sequence}", **message.data})


def _receive(ledger: Ledger, source: str, messages: Sequence[Message]) -> None:
    received = ledger.inbox(source, Strict(timedelta(hours=1))).receive(messages)
    assert all(isinstance(outcome, Done) for _, outcome in received.outcomes)
    assert not received.failed


def _memory(url: URL, size: int) -> dict[str, Any]:
    """Let a process of its own take in so many shuffled messages, some twice, and tell its memory now and then."""
    with ProcessPoolExecutor(1, get_context("spawn")) as workers:
        samples, seconds = workers.submit(_consume, text(url), size).result()
    return {
        "messages": samples[-1].messages,
        "seconds": seconds,
        "samples": [sample._asdict() for sample in samples],
        "megabytes_peak": max(sample.megabytes for sample in samples),
    }


def _consume(url: str, size: int) -> tuple[list[Sample], float]:
    accounts = size // (2 * PAIRS)
    samples: list[Sample] = []
    with Ledger.connect(url) as ledger:
        prepare(ledger, accounts)
        sent = banking(accounts, random_for(1, "banking"), pairs=PAIRS)
        arriving = _shuffled(_duplicated(sent))
        passed, every, start = 0, max(BATCH, size // SAMPLES), time.perf_counter()
        while some := list(islice(arriving, BATCH)):
            _receive(ledger, "bank", some)
            passed += len(some)
            if passed // every > (passed - len(some)) // every:
                samples.append(Sample(passed, _megabytes()))
        stats = ledger.inbox("bank", Strict(timedelta(hours=1))).stats()
        assert (stats.counters["processed"], stats.held) == (2 * PAIRS * accounts, 0)
        return [*samples, Sample(passed, _megabytes())], time.perf_counter() - start


def _megabytes() -> float:
    """What this process keeps in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _show_memory(found: Mapping[str, Any], console: Console) -> None:
    for sample in found["samples"]:
        console.print(f"{sample['messages']:>10,} messages  {sample['megabytes']:7.1f} MB")
    console.print(
        f"peak {found['megabytes_peak']:.1f} MB, {found['messages'] / found['seconds']:,.0f} messages a second"
    )
