"""What a competent engineer would write, run by pgbench: rows of the same kind, and no more promises."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from benchmarks.processes import percentiles
from benchmarks.rounds import Measured
from benchmarks.server import execute, pgbench_program, text

_HAND_WRITTEN: Final = """
CREATE SCHEMA hand;
CREATE TABLE hand.balances (
    account integer PRIMARY KEY, version bigint NOT NULL, balance numeric(38, 0) NOT NULL) WITH (fillfactor = 50);
CREATE TABLE hand.transactions (
    transaction_id uuid PRIMARY KEY, request json NOT NULL, recorded_at timestamptz NOT NULL);
CREATE TABLE hand.entries (
    account integer NOT NULL, version bigint NOT NULL, transaction_id uuid NOT NULL, amount numeric(38, 0) NOT NULL,
    balance numeric(38, 0) NOT NULL, recorded_at timestamptz NOT NULL, PRIMARY KEY (account, version));
INSERT INTO hand.balances SELECT account, 0, 0 FROM generate_series(0, %(last)s) AS account;
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
    INSERT INTO hand.transactions VALUES (id, '{"amount": "1.00 USD", "kind": "transfer"}', now());
    INSERT INTO hand.entries VALUES
        (source, source_row.version, id, -transfer.amount, source_row.balance, now()),
        (target, target_row.version, id, transfer.amount, target_row.balance, now());
END $$;
"""

_PAIR: Final = r"""
\set source random(0, :accounts - 1)
\set target (:source + random(1, :accounts - 1)) % :accounts
"""

PLAIN: Final = (
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
    INSERT INTO hand.transactions VALUES (gen_random_uuid(), '{"amount": "1.00 USD", "kind": "transfer"}', now())
    RETURNING transaction_id
)
INSERT INTO hand.entries
SELECT :low::integer, :low_version::bigint, transaction_id, -100, :low_balance::numeric, now() FROM made
UNION ALL
SELECT :high::integer, :high_version::bigint, transaction_id, 100, :high_balance::numeric, now() FROM made;
COMMIT;
"""
)

FUNCTION: Final = _PAIR + "SELECT hand.transfer(:source, :target, 100);\n"

_SECONDS_LEAST: Final = 1.0
"""pgbench counts whole seconds; for less it is told how many transactions to do."""

_TRANSACTIONS_A_SECOND: Final = 1_000
_SAMPLE_SECONDS: Final = 0.05


class HandWritten:
    """Tables with accounts, and the scripts."""

    def __init__(self, url: URL, accounts: int) -> None:
        self._url = url
        execute(url, _HAND_WRITTEN % {"last": accounts - 1})

    def run(self, script: str, accounts: int, clients: int, seconds: float) -> Measured:
        """One transfer a transaction between so many of the accounts, as plain statements or by calling a function."""
        length = ["-T", str(round(seconds))]
        if seconds < _SECONDS_LEAST:
            length = ["-t", str(max(10, round(seconds * _TRANSACTIONS_A_SECOND / clients)))]
        with tempfile.TemporaryDirectory(prefix="ledger-bench-") as folder:
            scripted, log = Path(folder) / "script", Path(folder) / "log"
            scripted.write_text(script, encoding="ascii")
            options = ["-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2)), *length]
            options += ["-D", f"accounts={accounts}", "-f", str(scripted), "-l", f"--log-prefix={log}"]
            megabytes = _run([pgbench_program(), *options, text(self._url)], Path(folder) / "said", 60 + seconds)
            return _read(sorted(Path(folder).glob("log.*")), megabytes)


def _run(command: list[str], said: Path, seconds: float) -> float | None:
    """Run it to its end; returns the most memory it took, as far as that was seen on the way."""
    peak = None
    with said.open("w+b") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        for _ in range(round(seconds / _SAMPLE_SECONDS)):
            peak = _peak_megabytes(process.pid) or peak
            try:
                process.wait(_SAMPLE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        else:
            process.kill()
    if process.returncode != 0:
        raise RuntimeError(said.read_text(encoding="utf-8", errors="replace"))
    return peak


def _peak_megabytes(pid: int) -> float | None:
    # Not by its resource usage: what a process had before it became pgbench would count.
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) * 1024 / 1e6 if found else None


def _read(logs: list[Path], megabytes: float | None) -> Measured:
    """
    What a log of transactions comes to, from the first one's end to the last one's.

    Each line has the client, a number, the microseconds it took, the script, and when it ended: seconds, microseconds.
    """
    lines = [line.split() for log in logs for line in log.read_text(encoding="ascii").splitlines()]
    ends = [int(line[4]) + int(line[5]) / 1e6 for line in lines]
    p50, p99 = percentiles([int(line[2]) / 1e6 for line in lines])
    return Measured((len(lines) - 1) / (max(ends) - min(ends)), p50, p99, megabytes)
