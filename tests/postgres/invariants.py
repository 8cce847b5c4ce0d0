"""What must hold after anything: the log is sound, money is neither made nor lost, a rebuild changes nothing."""

from __future__ import annotations

from typing import Any, TypeAlias

import psycopg

from ledger import Ledger

Rows: TypeAlias = list[tuple[Any, ...]]

_GAPS = "SELECT stream FROM ledger.events GROUP BY stream HAVING count(*) <> max(version) OR min(version) <> 1"
_UNSENT = """
SELECT transaction_id FROM ledger.transactions
EXCEPT ALL (SELECT unnest(transaction_ids) FROM ledger.outbox UNION ALL SELECT DISTINCT transaction_id FROM ledger.feed)
"""
_PROJECTIONS = ("balances", "accounts", "holds", "periods")


def assert_sound(ledger: Ledger, url: str) -> None:
    """Check every law of the ledger at `url`, the last one by dropping all balances and making them anew."""
    report = ledger.verify()
    assert report.ok, report.findings
    assert ledger.trial_balance().balanced, ledger.trial_balance()
    assert _rows(url, _GAPS) == []
    assert _rows(url, _UNSENT) == []
    before = projections(url)
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("TRUNCATE ledger.balances, ledger.accounts, ledger.holds")
    ledger.rebuild()
    assert projections(url) == before


def projections(url: str) -> list[Rows]:
    """All projected rows, as they are stored."""
    return [_rows(url, f"SELECT t::text FROM ledger.{table} AS t ORDER BY 1") for table in _PROJECTIONS]


def repairs(url: str) -> int:
    """How often a projection was found to differ from the log."""
    ((count,),) = _rows(url, "SELECT count(*) FROM ledger.projection_repairs")
    return int(count)


def _rows(url: str, sql: str) -> Rows:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql.encode()).fetchall()
