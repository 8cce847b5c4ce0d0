"""
A client that writes down what it is about to ask for and what was acknowledged, outside of the database.

As a program (`python journal.py URL FILE CLIENT COUNT`) it is what crash tests kill: it says `ready` once it is
connected, waits for a line, and then sends its commands, some with an idempotency key and some without.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ledger import Command, Done, Ledger, LedgerError, parse_command


class Journal:
    """A file of lines that are on the disk before the next thing happens."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **facts: object) -> None:
        """Add a line, and wait until it is safe."""
        with self._path.open("a") as file:
            file.write(f"{json.dumps(facts)}\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def asked(self) -> set[str]:
        """The references of all commands that were about to be sent."""
        return {reference for line in self._lines() for reference in line.get("asked", ())}

    @property
    def acknowledged(self) -> dict[str, str]:
        """Reference → id of the transaction, of all commands that were answered."""
        return {
            reference: transaction_id
            for line in self._lines()
            for reference, transaction_id in line.get("acknowledged", {}).items()
        }

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self._path.exists():
            # The last line may have been cut off in the middle: then nothing was promised on it.
            yield from map(json.loads, self._path.read_text().splitlines(keepends=True))

    def assert_kept(self, ledger: Ledger) -> None:
        """Check that what was acknowledged is there exactly once, and everything else at most once."""
        acknowledged = self.acknowledged
        for reference in self.asked:
            found = [transaction.transaction_id for transaction in ledger.transactions(reference=reference)]
            if reference in acknowledged:
                assert found == [acknowledged[reference]], reference
            else:
                assert len(found) <= 1, reference


def commands(client: str, count: int) -> list[list[Command]]:
    """What a client asks for: single transfers with and without a key, then a batch, and so on."""
    return [
        [_transfer(f"{client}-{number}-{part}", keyed=number % 2 == 0) for part in range(1 if number % 3 else 3)]
        for number in range(count)
    ]


def _transfer(reference: str, *, keyed: bool) -> Command:
    request = {"type": "transfer", "amount": "1 USD", "debit": "world", "credit": "alice", "reference": reference}
    return parse_command(json.dumps(request | ({"idempotency_key": reference} if keyed else {})))


def send(ledger: Ledger, journal: Journal, batch: list[Command]) -> None:
    """Ask for a batch, and write down before what is asked and after what was answered."""
    references = [str(command.reference) for command in batch]
    journal.write(asked=references)
    outcomes = ledger.handle(batch)
    done = {
        reference: outcome.transaction.transaction_id
        for reference, outcome in zip(references, outcomes, strict=True)
        if isinstance(outcome, Done)
    }
    journal.write(acknowledged=done)


def main(url: str, path: str, client: str, count: str) -> int:
    """Send everything; an error of the ledger ends one batch, and nothing else."""
    journal, failed = Journal(Path(path)), Counter[str]()
    with Ledger.connect(url) as ledger:
        ledger.balance("alice")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        for batch in commands(client, int(count)):
            try:
                send(ledger, journal, batch)
            except LedgerError as error:
                failed[error.code] += 1
    sys.stdout.write(f"{json.dumps(failed)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
