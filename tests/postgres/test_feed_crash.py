"""A stamper whose connection breaks at any moment: nothing is stamped twice or left out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import psycopg
import pytest
from feed_readers import disordered
from proxy import Fault, FaultyProxy, Point
from sqlalchemy import make_url

from ledger import ConnectionLost, Ledger, Transfer
from ledger.core.commands import build

Psql = psycopg.Connection[Any]

POINTS_MAX: Final = 30
"""More statements than a step may ever send: the search for the last one is bounded."""


@pytest.mark.parametrize("point", Point)
def test_stamper_whose_connection_breaks(funded: Ledger, ledger_url: str, psql: Psql, point: Point) -> None:
    """Wherever it breaks, the next step goes on where the last one that was committed ended."""
    written = 8
    with FaultyProxy(make_url(ledger_url)) as proxy, Ledger.connect(proxy.url, pool_size=1) as client:
        for number in range(1, POINTS_MAX):
            stamper = client.stamper(lease_seconds=0.001)
            assert client.trial_balance().balanced  # It has a connection.
            proxy.arm(Fault(point, number))
            with suppress(ConnectionLost):
                stamper.step()
            struck = proxy.disarm()
            proxy.await_rest(psql)
            while stamper.step():
                pass
            entries = list(funded.feed())
            assert [entry.position for entry in entries] == list(range(1, written + 1))
            assert disordered((entry.event.stream, entry.event.version) for entry in entries) == 0
            if not struck:
                break
            funded.handle([build(Transfer, amount="1 USD", debit="world", credit="alice") for _ in range(3)])
            written += 6
        else:
            pytest.fail(f"a step has more than {POINTS_MAX} statements")
    assert number > 2
