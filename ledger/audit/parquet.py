"""
The entries of a log as a Parquet file, for data frames and SQL: the columns of the CSV, with their types.

Amounts are exact: `minor` and `posted` are DECIMAL(38, 0), `amount` is a text in whole units.  Texts are as they are:
nothing that reads Parquet takes them for formulas.

The same position gives the same bytes with the same release of pyarrow, which writes its name into the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from importlib import import_module
from typing import Any, BinaryIO, Final

from ledger.audit.journal import TEXTS, Booked, Journal
from ledger.audit.rows import COLUMNS
from ledger.core.errors import InvalidCommand

ROWS_MAX: Final = 16_384
"""Rows of a group; it has fewer where their texts are long."""

TEXT_CHARACTERS_MAX: Final = 1 << 24
"""Texts of a group, in characters, unless one row has more: a group is in memory until it is written."""

_MOMENTS: Final = ("recorded_at", "effective_at")
_HASHES: Final = ("event_sha256", "prev_sha256", "header_sha256")
_FEW: Final = (
    *("kind", "event", "stream", "direction", "asset", "account", "account_type", "scope", "actor", "ledger_id"),
)
"""Columns of few values: written as numbers of a dictionary."""


def write_parquet(journal: Journal, out: BinaryIO) -> None:
    """
    Write the rows, group by group.

    Raises:
        CorruptLog: As `Journal.steps`.
        InvalidCommand: The extra `export` is not installed.
        OSError: It cannot be written.
    """
    pyarrow, parquet = _library()
    schema = _schema(pyarrow, {"ledger_id": journal.ledger_id, "up_to_position": str(journal.position)})
    with parquet.ParquetWriter(out, schema, compression="zstd", use_dictionary=[*_FEW]) as writer:
        for rows in _groups(journal):
            writer.write_batch(_batch(pyarrow, schema, rows), row_group_size=ROWS_MAX)
            rows.clear()  # Or they would be there until the next group is complete.


def _library() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise InvalidCommand("parquet", "it is written by pyarrow: pip install 'ledger[export]'") from None


def _schema(pyarrow: Any, told: dict[str, str]) -> Any:
    exact = pyarrow.decimal128(38, 0)
    types = {"scale": pyarrow.int8(), "minor": exact, "posted": exact}
    types |= dict.fromkeys(("position", "version", "up_to_position"), pyarrow.int64())
    types |= dict.fromkeys(_MOMENTS, pyarrow.timestamp("us", tz="UTC"))
    types |= dict.fromkeys(_HASHES, pyarrow.binary(32))
    return pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in COLUMNS], metadata=told)


def _batch(pyarrow: Any, schema: Any, rows: list[tuple[object, ...]]) -> Any:
    columns = zip(zip(*rows, strict=True), schema, strict=True)
    return pyarrow.record_batch([pyarrow.array(column, field.type) for column, field in columns], schema=schema)


def _groups(journal: Journal) -> Iterator[list[tuple[object, ...]]]:
    """The rows, so many at a time as shall be in memory."""
    rows: list[tuple[object, ...]] = []
    characters = 0
    for step in journal.steps():
        if isinstance(step, Booked):
            texts = [step.texts[name] for name in TEXTS]
            length = sum(len(text) for text in texts if text is not None)
            for row in _rows(step, [*texts, journal.ledger_id, journal.position]):
                if len(rows) == ROWS_MAX or (rows and characters + length > TEXT_CHARACTERS_MAX):
                    yield rows
                    rows, characters = [], 0
                rows.append(row)
                characters += length
    if rows:
        yield rows


def _rows(booked: Booked, rest: list[object]) -> Iterator[tuple[object, ...]]:
    """The entries of a transaction, each as the values of `COLUMNS`."""
    transaction = booked.transaction
    for line in booked.lines:
        event, account = line.event, line.account
        yield (
            line.position,
            event.recorded_at,
            event.effective_at,
            transaction.transaction_id,
            transaction.kind,
            event.type,
            event.stream,
            event.version,
            event.direction,
            account.units(abs(line.amount)),
            account.asset,
            account.account,
            account.kind.value,
            Decimal(abs(line.amount)),
            account.scale,
            Decimal(line.amount if line.posts else 0),
            line.hold,
            booked.reverses,
            event.event_hash,
            event.prev_hash,
            transaction.header_hash,
            *rest,
        )
