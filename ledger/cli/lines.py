"""`ledger post -`: commands as JSON lines in, answers as JSON lines out, in order and in flat memory."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from itertools import repeat
from typing import Final, TypeAlias

from pydantic_core import to_json

from ledger.application import Ledger
from ledger.batch import Done, Outcome
from ledger.cli.output import complain, progress
from ledger.core.commands import Command, parse_command
from ledger.core.errors import InvalidCommand, LedgerError
from ledger.wire import Json, done_json, error_json

BATCH_LINES: Final = 1_000
"""Lines handled in one transaction at most."""

BATCH_BYTES: Final = 4 * 1024 * 1024
LINE_BYTES_MAX: Final = 256 * 1024
"""More than the largest command needs: 200 entries and 16 KiB of metadata, however they are escaped."""

_CHUNK_BYTES: Final = 64 * 1024

Line: TypeAlias = tuple[int, bytes]


def post_lines(ledger: Ledger, descriptor: int, *, dry_run: bool) -> int:
    """
    Carry out the commands that `descriptor` brings, answering on standard output; returns the exit code.

    Where the ledger cannot go on (the server is gone, the log contradicts itself) each line of the batch is
    answered with that error, and the rest is left unread: sent again with its idempotency keys, it happens once.
    """
    code = 0
    watched = not os.isatty(descriptor) and not sys.stdout.isatty()
    with progress("lines", None, wanted=watched) as report:
        for batch in _batches(descriptor):
            answers, failure = _answers(ledger, batch, dry_run)
            for plain in answers:
                code = code or int("error" in plain)
                sys.stdout.buffer.write(to_json(plain) + b"\n")
            sys.stdout.buffer.flush()
            if report is not None:
                report(batch[-1][0])
            if failure is not None:
                complain(f"stopped at line {batch[0][0]}: {failure}")
                return 2
    return code


def _answers(ledger: Ledger, batch: list[Line], dry_run: bool) -> tuple[list[Json], LedgerError | None]:
    """One answer per line, in order; and the error that kept the ledger from handling the batch, if any."""
    read = [_read(text) for _, text in batch]
    commands = [command for command in read if not isinstance(command, LedgerError)]
    failure: LedgerError | None = None
    outcomes: Iterator[Outcome | LedgerError]
    try:
        outcomes = iter(ledger.handle(commands, dry_run=dry_run))
    except LedgerError as error:
        failure = error
        outcomes = repeat(error)
    answers = []
    for (number, _), command in zip(batch, read, strict=True):
        outcome = command if isinstance(command, LedgerError) else next(outcomes)
        plain = done_json(outcome) if isinstance(outcome, Done) else {"error": error_json(outcome)}
        answers.append({"line": number, **plain})
    return answers, failure


def _read(text: bytes) -> Command | LedgerError:
    if len(text) > LINE_BYTES_MAX:
        return InvalidCommand("line", f"it is longer than {LINE_BYTES_MAX} bytes")
    try:
        return parse_command(text)
    except LedgerError as error:
        return error


def _batches(descriptor: int) -> Iterator[list[Line]]:
    """Lines in batches: full ones from a fast writer, whatever is there from one who waits for an answer."""
    batch: list[Line] = []
    size = 0
    for line in _lines(descriptor):
        if line is not None and line[1].strip():
            batch.append(line)
            size += len(line[1])
        if batch and (line is None or len(batch) == BATCH_LINES or size >= BATCH_BYTES):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _lines(descriptor: int) -> Iterator[Line | None]:
    """Numbered lines as they arrive; None where the next one is not there yet."""
    number, rest = 0, b""
    while True:
        if not select.select([descriptor], [], [], 0)[0]:
            yield None
        chunk = os.read(descriptor, _CHUNK_BYTES)
        *complete, rest = (rest + chunk).split(b"\n")
        for text in complete:
            number += 1
            yield number, text
        if not chunk:
            break
        # Of a line that is too long, enough is kept to see that it is.
        rest = rest[: LINE_BYTES_MAX + 1]
    if rest:
        yield number + 1, rest
