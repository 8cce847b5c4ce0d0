"""The whole at a glance: what waits, who has how much, how a balance went, and what did not go as it should."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from ledger import InvalidCommand, Ledger, Message, Strict, Transfer
from ledger.storage import overview
from ledger.storage.overview import Sort


def test_events_are_counted_whether_stamped_or_not(funded: Ledger) -> None:
    """What is in the feed and what waits for it are all events; the oldest that waits is how far it is behind."""
    before = funded.overview()
    while funded.stamp():
        pass
    stamped = funded.overview()
    funded.transfer("1 USD", debit="alice", credit="bob")
    after = funded.overview()

    assert (before.stamped, before.waiting, before.waiting_events) == (0, 5, 8)
    assert before.waiting_since is not None
    assert before.lag_seconds > 0
    assert (stamped.stamped, stamped.waiting, stamped.lag_seconds) == (8, 0, 0.0)
    assert (after.stamped, after.waiting, after.waiting_events) == (8, 1, 2)


def test_repairs_are_counted(funded: Ledger, psql: psycopg.Connection[Any]) -> None:
    """A projection that was mended is told of, with when."""
    assert (funded.overview().repairs, funded.overview().repaired_at) == (0, None)
    psql.execute("UPDATE balances SET posted_debits = posted_debits + 1 WHERE stream = 'alice'")
    funded.balance("alice")

    assert funded.overview().repairs == 1
    assert funded.overview().repaired_at is not None
    assert sum(funded.anomalies().counts["projection repairs"].values()) == 1


def test_counting_ends_at_its_bound(funded: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound nothing is counted: there are at least so many."""
    monkeypatch.setattr(overview, "COUNTED_MAX", 3)
    assert funded.overview().waiting == 3


def test_accounts_are_found_in_every_order(ledger: Ledger) -> None:
    """Pages of accounts are all of them once, in each order; stripes are no accounts."""
    ledger.open_account("world", asset="USD", type="equity", stripes=3)
    names = [f"a/{number:02}" for number in range(7)] + ["b", "b.1", "B"]
    for number, name in enumerate(names):
        ledger.open_account(name, asset="USD", type="liability")
        if number:
            ledger.transfer(f"{number % 4 + 1} USD", debit="world", credit=name)
    for sort, expected in {
        Sort.NAME: sorted([*names, "world"], key=str.encode),
        Sort.NAME_DOWN: sorted([*names, "world"], key=str.encode, reverse=True),
        Sort.BALANCE: sorted([*names, "world"], key=lambda name: (-_cents(ledger, name), name.encode())),
    }.items():
        assert _all(ledger, "", sort) == expected, sort
        assert _all(ledger, "a/", sort) == [name for name in expected if name.startswith("a/")]
    assert _all(ledger, "b", Sort.NAME) == ["b", "b.1"]
    assert _all(ledger, "nobody", Sort.NAME) == []


def _cents(ledger: Ledger, name: str) -> int:
    return ledger.balance(name).posted.minor


def _all(ledger: Ledger, beginning: str, sort: Sort) -> list[str]:
    """All accounts, in pages of three."""
    names: list[str] = []
    after: str | None = None
    while True:
        found = ledger.find_accounts(beginning, asset="USD", sort=sort, after=after, limit=3)
        names += [line.account for line in found.lines]
        after = found.next
        if after is None:
            return names


@pytest.mark.parametrize(
    "asked",
    [
        {"sort": "luck"},
        {"sort": "balance"},
        {"sort": "balance", "asset": "USD", "after": "alice"},
        {"sort": "balance", "asset": "USD", "after": "1; DROP TABLE accounts x"},
        {"limit": 0},
        {"beginning": "a\0"},
    ],
)
def test_what_leads_to_no_page_is_refused(funded: Ledger, asked: dict[str, Any]) -> None:
    """An order that there is not, a place that is on no page, and a page of nothing are refused in one sentence."""
    with pytest.raises(InvalidCommand):
        funded.find_accounts(**asked)


def test_too_many_accounts_are_not_sorted(funded: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """By balance only so many accounts are put in order as that takes a moment."""
    monkeypatch.setattr(overview, "SORTED_MAX", 2)
    with pytest.raises(InvalidCommand, match="more than 2 accounts: sort them by name"):
        funded.find_accounts(asset="USD", sort="balance")


def test_a_short_life_is_told_whole(funded: Ledger) -> None:
    """Of an account with few events the series has each of them, in order."""
    series = funded.series("alice")

    assert [str(money) for _, money in series.points] == ["0.00 USD", "100.00 USD", "70.00 USD"]
    assert [moment for moment, _ in series.points] == [event.recorded_at for event in funded.history("alice")]
    assert (series.versions, series.complete) == (3, True)


def test_a_long_life_has_points_to_a_bound(funded: Ledger) -> None:
    """However many events there are, there are 200 points, the first and the last among them, each of them true."""
    commands = [_cent(number) for number in range(1_000)]
    funded.handle(commands)
    series = funded.series("alice")
    after = {event.recorded_at: event.numbers for event in funded.history("alice", limit=1_000)}

    assert len(series.points) == overview.POINTS_MAX
    assert (series.versions, series.complete) == (1_003, False)
    assert str(series.points[0][1]) == "0.00 USD"
    assert series.points[-1][1] == funded.balance("alice").posted
    assert [moment for moment, _ in series.points] == sorted(moment for moment, _ in series.points)
    assert {moment for moment, _ in series.points[:1]} <= set(after)


def _cent(number: int) -> Any:
    debit, credit = ("alice", "bob") if number % 3 else ("bob", "alice")
    return Transfer(amount="0.01 USD", debit=debit, credit=credit)


@pytest.mark.parametrize("stripes", [2, 64, 256])
def test_stripes_are_one_line(ledger: Ledger, stripes: int) -> None:
    """The series of an account with stripes ends at its balance, and has no more points than any other."""
    ledger.open_account("world", asset="USD", type="equity", stripes=stripes)
    ledger.open_account("alice", asset="USD", type="liability")
    for _ in range(20):
        ledger.transfer("1 USD", debit="world", credit="alice")
    series = ledger.series("world")

    assert series.points[-1][1] == ledger.balance("world").posted
    assert len(series.points) <= overview.POINTS_MAX
    assert series.versions == 20 + 2 * stripes  # Each was opened, and learned how many there are.


def test_sources_are_those_that_sent(ledger: Ledger) -> None:
    """Each source that sent anything is named once, with the dead letters that wait for a decision."""
    ledger.open_account("world", asset="USD", type="equity")
    for source in ("zebra", "bank"):
        inbox = ledger.inbox(source, Strict(timedelta(minutes=5)))
        said = {"account": "world", "amount": "1 USD", "against": "world"}
        inbox.receive([Message(source, f"m-{n}", "ledger.deposit", "s", 1, data=said | {"note": n}) for n in range(3)])

    assert ledger.sources() == ["bank", "zebra"]
    assert ledger.open_letters() == {"bank": 2, "zebra": 2}
    seen = ledger.anomalies(days=7)
    assert len(seen.days) == 7
    assert seen.counts["dead letters"] == {seen.days[-1]: 4}
    assert seen.complete


def test_days_are_bounded(ledger: Ledger) -> None:
    """Nobody asks for more than a year of days."""
    with pytest.raises(InvalidCommand, match="not from 1 to 366"):
        ledger.anomalies(days=1_000)
