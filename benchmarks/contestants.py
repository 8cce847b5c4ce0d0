"""Who is measured: each does transfers between random pairs of accounts for some seconds and says how many a second."""

from __future__ import annotations

import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import IntegrityError
from sqlalchemy import URL

from benchmarks.server import execute, pgbench_program, text
from ledger import Done, Ledger, OpenAccount, Transfer

ACCOUNTS: Final = 10_000
BATCH: Final = 1_000

_HAND_WRITTEN: Final = """
CREATE SCHEMA hand;
CREATE TABLE hand.balances (
    account integer PRIMARY KEY, version bigint NOT NULL, balance numeric(38, 0) NOT NULL) WITH (fillfactor = 50);
CREATE TABLE hand.transactions (
    transaction_id uuid PRIMARY KEY, request json NOT NULL, recorded_at timestamptz NOT NULL);
CREATE TABLE hand.entries (
    account integer NOT NULL, version bigint NOT NULL, transaction_id uuid NOT NULL, amount numeric(38, 0) NOT NULL,
    balance numeric(38, 0) NOT NULL, recorded_at timestamptz NOT NULL, PRIMARY KEY (account, version));
INSERT INTO hand.balances SELECT account, 0, 0 FROM generate_series(0, {last}) AS account;
CREATE FUNCTION hand.transfer(source integer, target integer, amount numeric) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    source_row hand.balances;
    target_row hand.balances;
    id uuid := gen_random_uuid();
BEGIN
    IF source < target THEN
        UPDATE hand.balances SET balance = balance - transfer.amount, version = version + 1
            WHERE account = source RETURNING * INTO source_row;
    END IF;
    UPDATE hand.balances SET balance = balance + transfer.amount, version = version + 1
        WHERE account = target RETURNING * INTO target_row;
    IF source > target THEN
        UPDATE hand.balances SET balance = balance - transfer.amount, version = version + 1
            WHERE account = source RETURNING * INTO source_row;
    END IF;
    INSERT INTO hand.transactions VALUES (id, '{{"amount": "1.00 USD", "kind": "transfer"}}', now());
    INSERT INTO hand.entries VALUES
        (source, source_row.version, id, -transfer.amount, source_row.balance, now()),
        (target, target_row.version, id, transfer.amount, target_row.balance, now());
END $$;
"""

_PAIR: Final = r"""
\set source random(0, {last})
\set target (:source + random(1, {last})) % {accounts}
"""

_PLAIN: Final = (
    _PAIR
    + r"""
\set low least(:source, :target)
\set high greatest(:source, :target)
BEGIN;
UPDATE hand.balances SET balance = balance - 100, version = version + 1 WHERE account = :low
    RETURNING version AS low_version, balance AS low_balance \gset
UPDATE hand.balances SET balance = balance + 100, version = version + 1 WHERE account = :high
    RETURNING version AS high_version, balance AS high_balance \gset
WITH made AS (
    INSERT INTO hand.transactions VALUES (gen_random_uuid(), '{{"amount": "1.00 USD", "kind": "transfer"}}', now())
    RETURNING transaction_id
)
INSERT INTO hand.entries
SELECT :low::integer, :low_version::bigint, transaction_id, -100, :low_balance::numeric, now() FROM made
UNION ALL
SELECT :high::integer, :high_version::bigint, transaction_id, 100, :high_balance::numeric, now() FROM made;
COMMIT;
"""
)

_FUNCTION: Final = _PAIR + "SELECT hand.transfer(:source, :target, 100);\n"


class Ours:
    """The ledger, as an application calls it."""

    def __init__(self, url: URL) -> None:
        self._url = text(url)
        self._ledger = Ledger.connect(self._url)
        self._ledger.migrate()
        self._workers = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
        names = [_account(number) for number in range(ACCOUNTS)]
        for start in range(0, ACCOUNTS, BATCH):
            self._ledger.handle(
                [
                    OpenAccount(account=name, asset="USD", account_type="liability")
                    for name in names[start : start + BATCH]
                ]
            )

    def single(self, threads: int, seconds: float) -> float:
        """One transfer a call, with an idempotency key."""
        return _rate(threads, seconds, lambda: self._transfer(_key()))

    def unkeyed(self, threads: int, seconds: float) -> float:
        """One transfer a call, without a key."""
        return _rate(threads, seconds, lambda: self._transfer(None))

    def batches(self, seconds: float) -> float:
        """A thousand transfers a call, each with a key, from one thread; making the commands counts."""
        return _rate(1, seconds, lambda: _batch(self._ledger, 0, ACCOUNTS))

    def batches_apart(self, seconds: float) -> float:
        """The same from two processes, each with accounts of its own, as consumers of two partitions have them."""
        half = ACCOUNTS // 2
        workers = [self._workers.submit(_batches_of, self._url, first, half, seconds) for first in (0, half)]
        return sum(worker.result(timeout=60 + seconds) for worker in workers)

    def _transfer(self, key: str | None) -> int:
        source, target = _pair()
        self._ledger.transfer("1.00 USD", debit=source, credit=target, idempotency_key=key)
        return 1

    def close(self) -> None:
        """Check that what was measured was also done right, and give the connections back."""
        self._workers.shutdown()
        assert self._ledger.trial_balance().balanced
        self._ledger.close()


class HandWritten:
    """What a competent engineer would write into an application: rows of the same kind, and no more promises."""

    def __init__(self, url: URL, folder: Path) -> None:
        """`folder` is where pgbench finds its scripts."""
        self._url = url
        self._folder = folder
        execute(url, _HAND_WRITTEN.format(last=ACCOUNTS - 1))
        for name, script in (("plain", _PLAIN), ("function", _FUNCTION)):
            filled = script.format(last=ACCOUNTS - 1, accounts=ACCOUNTS)
            (folder / name).write_text(filled, encoding="ascii")

    def run(self, script: str, clients: int, seconds: float) -> float:
        """Transfers a second by pgbench, one a transaction: `plain` statements, or one call of a `function`."""
        options = [
            "-n",
            "-M",
            "prepared",
            "-c",
            str(clients),
            "-j",
            str(min(clients, 2)),
            "-T",
            str(max(1, round(seconds))),
        ]
        done = subprocess.run(
            [pgbench_program(), *options, "-f", str(self._folder / script), text(self._url)],
            capture_output=True,
            text=True,
            timeout=60 + seconds,
            check=True,
        )
        found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
        assert found is not None, done.stdout
        return float(found[1])


class Account(Aggregate):
    """An ordinary aggregate of eventsourcing."""

    def __init__(self) -> None:
        self.balance = Decimal(0)

    @event("Moved")
    def move(self, amount: Decimal) -> None:
        """Change the balance."""
        self.balance += amount


class Peer:
    """PyPI's eventsourcing with its PostgreSQL recorder: two aggregates loaded, changed and saved together."""

    def __init__(self, url: URL) -> None:
        host = url.query.get("host") or url.host or "localhost"
        self._app: Any = Application(
            env={
                "PERSISTENCE_MODULE": "eventsourcing.postgres",
                "POSTGRES_DBNAME": str(url.database),
                "POSTGRES_HOST": str(host),
                "POSTGRES_PORT": str(url.port or 5432),
                "POSTGRES_USER": str(url.username or "postgres"),
                "POSTGRES_PASSWORD": str(url.password or "-"),
                "POSTGRES_POOL_SIZE": "10",  # As many as the ledger's pool holds.
            }
        )
        self._accounts = [Account() for _ in range(ACCOUNTS)]
        for start in range(0, ACCOUNTS, BATCH):
            self._app.save(*self._accounts[start : start + BATCH])

    def single(self, threads: int, seconds: float) -> float:
        """Load, decide, save: one transfer at a time, tried again where another thread was faster."""
        return _rate(threads, seconds, self._transfer)

    def _transfer(self) -> int:
        source, target = random.sample(self._accounts, 2)
        while True:
            debited, credited = self._app.repository.get(source.id), self._app.repository.get(target.id)
            debited.move(Decimal("-1.00"))
            credited.move(Decimal("1.00"))
            try:
                self._app.save(debited, credited)
            except IntegrityError:
                continue
            return 1

    def close(self) -> None:
        """Give the connections back."""
        self._app.close()


def _account(number: int) -> str:
    return f"account-{number:05}"


def _pair(first: int = 0, accounts: int = ACCOUNTS) -> tuple[str, str]:
    source, target = random.sample(range(first, first + accounts), 2)
    return _account(source), _account(target)


def _batch(ledger: Ledger, first: int, accounts: int) -> int:
    commands = []
    for _ in range(BATCH):
        source, target = _pair(first, accounts)
        commands.append(Transfer(amount="1.00 USD", debit=source, credit=target, idempotency_key=_key()))
    outcomes = ledger.handle(commands)
    assert all(isinstance(outcome, Done) for outcome in outcomes)
    return BATCH


def _batches_of(url: str, first: int, accounts: int, seconds: float) -> float:
    """What one of several processes does."""
    ledger = _connected(url)
    _batch(ledger, first, accounts)
    return _rate(1, seconds, lambda: _batch(ledger, first, accounts))


@cache
def _connected(url: str) -> Ledger:
    return Ledger.connect(url)


def _key() -> str:
    return os.urandom(12).hex()


def _rate(threads: int, seconds: float, work: Callable[[], int]) -> float:
    """Do `work` in some threads for some seconds; what it returns is counted."""
    counts = [0] * threads
    faults: list[BaseException] = []
    end = time.perf_counter() + seconds

    def run(thread: int) -> None:
        try:
            while time.perf_counter() < end:
                counts[thread] += work()
        except BaseException as fault:  # noqa: BLE001  (a thread's fault is raised in the caller)
            faults.append(fault)

    start = time.perf_counter()
    running = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if faults:
        raise faults[0]
    return sum(counts) / (time.perf_counter() - start)
