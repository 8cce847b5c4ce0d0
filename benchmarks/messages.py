"""
What order costs: `python -m benchmarks messages [--memory]`.

The same commands from the same messages in batches of a thousand, by plain `handle` and through the inbox: as
they were sent, shuffled, and with copies.  Counted is every message that is delivered, a copy as well.

With `--memory` it is one consumer in a process of its own, and what it keeps in memory while messages pass through.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from sqlalchemy import URL

from benchmarks.processes import Ready, Tally, apart
from benchmarks.rounds import Benchmark, Effort, Measured, Ratio, Ratios, Turn
from benchmarks.server import text
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


@contextmanager
def prepared(url: URL, effort: Effort) -> Iterator[Benchmark]:
    """Open the accounts that messages are about."""
    size = effort.messages or (2_000 if effort.quick else 20_000)
    accounts = size // (2 * PAIRS)
    with Ledger.connect(text(url)) as ledger:
        opened(ledger, accounts)
    turns: dict[str, Turn] = {
        PLAIN: partial(_turn, _handled, text(url), accounts),
        ORDERED: partial(_turn, _received, text(url), accounts),
        SHUFFLED: partial(_turn, _received_shuffled, text(url), accounts),
        DUPLICATED: partial(_turn, _received_twice, text(url), accounts),
    }
    yield Benchmark("messages", turns, RATIOS, [Ratios("The inbox beside plain commands")])
    with Ledger.connect(text(url)) as ledger:
        assert ledger.trial_balance().balanced


def memory(url: URL, effort: Effort) -> dict[str, Any]:
    """Let a process of its own take in so many shuffled messages, some twice, and tell its memory now and then."""
    size = effort.messages or (2_000 if effort.quick else 1_000_000)
    with ProcessPoolExecutor(1, get_context("spawn")) as workers:
        samples, seconds = workers.submit(_consume, text(url), size).result()
    return {
        "messages": samples[-1].messages,
        "seconds": seconds,
        "samples": [sample._asdict() for sample in samples],
        "megabytes_peak": max(sample.megabytes for sample in samples),
    }


def show_memory(found: Mapping[str, Any], console: Console) -> None:
    """Print it."""
    for sample in found["samples"]:
        console.print(f"{sample['messages']:>10,} messages  {sample['megabytes']:7.1f} MB")
    console.print(
        f"peak {found['megabytes_peak']:.1f} MB, {found['messages'] / found['seconds']:,.0f} messages a second"
    )


def opened(ledger: Ledger, accounts: int) -> None:
    """Open the accounts of a workload."""
    ledger.migrate()
    ledger.open_account(WORLD, asset="USD", type="equity")
    names = map(account_name, range(1, accounts + 1))
    while some := list(islice(names, BATCH)):
        ledger.handle(
            [OpenAccount(account=name, asset="USD", account_type="liability", min_balance="0") for name in some]
        )


def _turn(work: Callable[..., Tally], url: str, accounts: int, _: int) -> Measured:
    """Take in messages of a new source: their accounts are the same each time, their streams begin anew."""
    return apart(work, (url, f"source-{next(_numbers)}", accounts))


def _handled(ready: Ready, url: str, source: str, accounts: int) -> Tally:
    return _taken_in(ready, url, source, list(_sent(source, accounts)), _handle)


def _received(ready: Ready, url: str, source: str, accounts: int) -> Tally:
    return _taken_in(ready, url, source, list(_sent(source, accounts)), _receive)


def _received_shuffled(ready: Ready, url: str, source: str, accounts: int) -> Tally:
    return _taken_in(ready, url, source, list(_shuffled(_sent(source, accounts))), _receive)


def _received_twice(ready: Ready, url: str, source: str, accounts: int) -> Tally:
    return _taken_in(ready, url, source, list(_duplicated(_sent(source, accounts))), _receive)


def _sent(source: str, accounts: int) -> Iterator[Message]:
    return banking(accounts, random_for(1, "banking"), pairs=PAIRS, source=source)


def _shuffled(sent: Iterable[Message]) -> Iterator[Message]:
    return shuffled(sent, random_for(1, "shuffled"), window=WINDOW)


def _duplicated(sent: Iterable[Message]) -> Iterator[Message]:
    return duplication(sent, random_for(1, "duplication"), rate=COPIES)


def _taken_in(
    ready: Ready,
    url: str,
    source: str,
    messages: Sequence[Message],
    take_in: Callable[[Ledger, str, Sequence[Message]], None],
) -> Tally:
    """Take messages in, batch by batch; what opens the connection and prepares its statements is not counted."""
    with Ledger.connect(url) as ledger:
        take_in(ledger, f"{source}-first", list(_sent(f"{source}-first", 5)))
        # What was made before is no garbage that collections should have to look through.
        gc.collect()
        gc.freeze()
        ready()
        start = time.perf_counter()
        for place in range(0, len(messages), BATCH):
            take_in(ledger, source, messages[place : place + BATCH])
        return Tally(len(messages), time.perf_counter() - start, [])


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


def _consume(url: str, size: int) -> tuple[list[Sample], float]:
    accounts = size // (2 * PAIRS)
    samples: list[Sample] = []
    with Ledger.connect(url) as ledger:
        opened(ledger, accounts)
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
