"""The ledger as a guest in its caller's transaction: together or not at all, and the caller alone decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import psycopg
import pytest
import sqlalchemy
import sqlalchemy.orm
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.rows import class_row, dict_row, namedtuple_row, scalar_row

from ledger import (
    ConcurrencyError,
    Guest,
    InsufficientFunds,
    InvalidCommand,
    Ledger,
    LedgerError,
    Transfer,
    UnsupportedConnection,
)
from ledger.core.commands import build

Psql = psycopg.Connection[Any]

JOIN_SECONDS: Final = 30
LEVELS: Final = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
KINDS: Final = ("psycopg", "psycopg autocommit", "connection", "session")


class Caller:
    """An application with a transaction of its own, through one of the ways in which applications have one."""

    def __init__(self, kind: str, ledger: Ledger, url: str, level: str) -> None:
        self._kind = kind
        self._ledger = ledger
        self._url = url
        self.level = level
        self.lent: Any = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin, and commit at the end, or roll back where an error comes out."""
        if self._kind.startswith("psycopg"):
            with psycopg.connect(self._url, autocommit=self._kind.endswith("autocommit")) as self.lent:
                self.lent.isolation_level = IsolationLevel[self.level.replace(" ", "_")]
                with self.lent.transaction():
                    yield
            return
        engine = self._ledger.engine.execution_options(isolation_level=self.level)
        lend = sqlalchemy.orm.Session(engine) if self._kind == "session" else engine.connect()
        with lend as self.lent, self.lent.begin():
            yield

    def savepoint(self) -> Any:
        """A transaction inside the transaction."""
        return self.lent.transaction() if self._kind.startswith("psycopg") else self.lent.begin_nested()

    def order(self, note: str) -> None:
        """Do the application's own business."""
        sql = f"INSERT INTO public.orders VALUES ('{note}')"
        self.lent.execute(sql.encode() if self._kind.startswith("psycopg") else sqlalchemy.text(sql))


class Undo(Exception):
    """The caller changes its mind."""


@pytest.fixture
def orders(psql: Psql) -> Callable[[], list[str]]:
    """The application's table; returns what is in it."""
    psql.execute("CREATE TABLE public.orders (note text)")
    return lambda: [note for (note,) in psql.execute("SELECT note FROM public.orders ORDER BY note")]


@pytest.fixture(params=[(kind, level) for kind in KINDS for level in LEVELS], ids=" ".join)
def caller(request: pytest.FixtureRequest, funded: Ledger, ledger_url: str) -> Caller:
    """An application that lends its connection, under every isolation level."""
    kind, level = request.param
    return Caller(kind, funded, ledger_url, level)


def pay(guest: Guest, key: str | None = None) -> None:
    """Move one dollar from alice to bob."""
    guest.transfer("1 USD", debit="alice", credit="bob", idempotency_key=key)


def test_business_and_ledger_share_their_fate(
    caller: Caller, funded: Ledger, orders: Callable[[], list[str]], psql: Psql
) -> None:
    """At savepoint depth 0, 1 and 2: rolled back, neither row nor entry nor key is there; committed, all are."""
    for depth in range(3):
        before = funded.balance("alice").version
        for note in ("undone", "done"):
            with pytest.raises(Undo) if note == "undone" else ExitStack(), caller.transaction(), ExitStack() as inner:
                for _ in range(depth):
                    inner.enter_context(caller.savepoint())
                with funded.join(caller.lent) as guest:
                    caller.order(f"{note} at {depth}")
                    pay(guest, f"order-{depth}")
                    assert guest.balance("alice").version == before + 1
                    assert funded.balance("alice").version == before
                if note == "undone":
                    raise Undo
    assert orders() == ["done at 0", "done at 1", "done at 2"]
    assert str(funded.balance("alice").posted) == "67.00 USD"
    assert psql.execute("SELECT count(*) FROM outbox").fetchone() == (8,)
    assert funded.verify().ok


def test_savepoint_takes_along_what_was_done_in_it(
    caller: Caller, funded: Ledger, orders: Callable[[], list[str]]
) -> None:
    """What happened in a savepoint that is rolled back is gone; what happened around it lasts."""
    with caller.transaction(), funded.join(caller.lent) as guest:
        pay(guest, "outer")
        caller.order("outer")
        with pytest.raises(Undo), caller.savepoint():  # noqa: PT012  (what comes before the change of mind)
            # Before the caller's own business: a session begins its savepoint only when it is first used.
            pay(guest, "inner")
            caller.order("inner")
            assert guest.balance("alice").version == 5
            raise Undo
        assert guest.balance("alice").version == 4
        pay(guest, "inner")
    assert orders() == ["outer"]
    assert funded.balance("alice").version == 5
    assert funded.verify().ok


def test_guest_never_commits(caller: Caller, funded: Ledger, orders: Callable[[], list[str]]) -> None:
    """Whatever a guest is asked, nobody else sees any of it before the caller commits."""
    with caller.transaction():
        with funded.join(caller.lent, accounts=["alice", "bob"]) as guest:
            caller.order("soon")
            pay(guest, "k")
            guest.handle([build(Transfer, amount="1 USD", debit="alice", credit="bob")] * 3)
            guest.open_account("carl", asset="EUR", type="asset")
            with pytest.raises(InsufficientFunds):
                guest.transfer("1000 USD", debit="alice", credit="bob")
            guest.handle([build(Transfer, amount="1 USD", debit="alice", credit="bob")], dry_run=True)
            pay(guest, "k")
            guest.history("alice")
        assert orders() == []
        assert funded.balance("alice").version == 3
    assert orders() == ["soon"]
    assert funded.balance("alice").version == 7
    assert funded.verify().ok


def test_rejection_leaves_the_callers_transaction_usable(
    caller: Caller, funded: Ledger, orders: Callable[[], list[str]]
) -> None:
    """A rule that says no is an answer, not a broken transaction: the caller may go on and commit."""
    with caller.transaction(), funded.join(caller.lent) as guest:
        with pytest.raises(InsufficientFunds):
            guest.transfer("1000 USD", debit="alice", credit="bob")
        caller.order("without payment")
    assert orders() == ["without payment"]
    assert funded.balance("alice").version == 3


def test_conflict_by_isolation_level(caller: Caller, funded: Ledger, orders: Callable[[], list[str]]) -> None:
    """
    Somebody wrote after the caller's snapshot.  At READ COMMITTED the guest sees it and goes on; above, only
    the caller can run the whole transaction again, and the error says so.
    """

    def work() -> None:
        with caller.transaction():
            caller.order("order")
            with funded.join(caller.lent) as guest:
                assert guest.balance("world").version == 2
                if not interfered:
                    interfered.append(funded.transfer("1 USD", debit="alice", credit="bob"))
                pay(guest)

    interfered: list[object] = []
    if caller.level == "READ COMMITTED":
        work()
    else:
        with pytest.raises(ConcurrencyError, match="whole transaction again") as conflict:
            work()
        assert conflict.value.retryable
        assert orders() == []
        work()
    assert orders() == ["order"]
    assert funded.balance("alice").version == 5
    assert funded.verify().ok


def test_repair_shares_the_callers_fate(caller: Caller, funded: Ledger, psql: Psql) -> None:
    """A guest mends what has drifted inside the caller's transaction: rolled back, it is as it was found."""
    psql.execute("UPDATE balances SET posted_credits = 5 WHERE stream = 'alice'")
    for ending in (Undo, None):
        with pytest.raises(Undo) if ending else ExitStack(), caller.transaction(), funded.join(caller.lent) as guest:
            assert str(guest.balance("alice").posted) == "70.00 USD"
            pay(guest)
            if ending:
                raise ending
        found = psql.execute("SELECT count(*) FROM projection_repairs").fetchone()
        assert found == ((0,) if ending else (1,))
    assert funded.verify().ok


def test_drift_met_by_a_write_of_a_guest(caller: Caller, funded: Ledger, psql: Psql) -> None:
    """A guest's write decides on what the log says, as any other."""
    psql.execute("DELETE FROM balances WHERE stream = 'alice'")
    psql.execute("UPDATE balances SET posted_debits = 5 WHERE stream = 'bob'")
    with caller.transaction(), funded.join(caller.lent) as guest:
        pay(guest)
    assert psql.execute("SELECT stream, noticed_by FROM projection_repairs ORDER BY 1").fetchall() == [
        ("alice", "write"),
        ("bob", "write"),
    ]
    assert funded.verify().ok


def test_psycopg_without_a_block(funded: Ledger, ledger_url: str) -> None:
    """A plain psycopg connection begins at the first statement; its own commit makes the guest's work last."""
    with psycopg.connect(ledger_url) as lent:
        with funded.join(lent) as guest:
            pay(guest)
        assert lent.info.transaction_status is TransactionStatus.INTRANS
        lent.rollback()
        with funded.join(lent) as guest:
            pay(guest)
        lent.commit()
    assert funded.balance("alice").version == 4


def test_sqlalchemy_without_a_block(funded: Ledger) -> None:
    """An SQLAlchemy connection that has not begun knows, after the guest, that it has something to commit."""
    with funded.engine.connect() as lent:
        with funded.join(lent) as guest:
            pay(guest)
        assert lent.in_transaction()
        lent.rollback()
        with funded.join(lent) as guest:
            pay(guest)
        lent.commit()
    with sqlalchemy.orm.Session(funded.engine) as session:
        with funded.join(session) as guest:
            pay(guest)
        session.commit()
    with sqlalchemy.orm.Session(funded.engine) as session, funded.join(session) as guest:
        pay(guest)
    assert funded.balance("alice").version == 5


@pytest.mark.parametrize(
    "factory", [dict_row, namedtuple_row, scalar_row, class_row(dict)], ids=lambda each: each.__name__
)
def test_callers_row_factory_is_its_own_matter(funded: Ledger, ledger_url: str, factory: Any) -> None:
    """However the caller likes its rows, the guest works, and leaves the connection as it was."""
    with psycopg.connect(ledger_url, row_factory=factory) as lent:
        with funded.join(lent, accounts=["alice", "bob"]) as guest:
            pay(guest, "k")
            pay(guest, "k")
            assert guest.balance("alice").version == 4
            assert len(guest.accounts()) == 3
        assert lent.row_factory is factory
    assert funded.balance("alice").version == 4


@pytest.mark.parametrize("factory", [psycopg.ClientCursor, psycopg.RawCursor])
def test_callers_cursor_factory_is_its_own_matter(funded: Ledger, ledger_url: str, factory: Any) -> None:
    """A connection whose cursors bind on the client, or take `$1`, can be lent too."""
    with psycopg.connect(ledger_url, cursor_factory=factory) as lent, funded.join(lent) as guest:
        pay(guest, "k")
        assert guest.balance("alice").version == 4
    assert funded.balance("alice").version == 4


def test_pipeline_of_the_caller_is_refused(funded: Ledger, ledger_url: str) -> None:
    """In a pipeline nobody can wait for an answer: the guest says so, and works once it has ended."""
    with psycopg.connect(ledger_url) as lent:
        with lent.pipeline(), pytest.raises(UnsupportedConnection, match="pipeline"), funded.join(lent):
            pass
        with funded.join(lent) as guest:
            pay(guest)
    assert funded.balance("alice").version == 4


def test_commands_of_a_guest_are_replayed_outside(funded: Ledger) -> None:
    """A key used by a guest is used: the ledger itself gives the guest's answer."""
    with funded.engine.begin() as lent, funded.join(lent) as guest:
        original = guest.transfer("1 USD", debit="alice", credit="bob", idempotency_key="k")
        (again,) = guest.handle([build(Transfer, amount="1 USD", debit="alice", credit="bob", idempotency_key="k")])
    outside = funded.transfer("1 USD", debit="alice", credit="bob", idempotency_key="k")
    assert outside.replayed
    assert outside.transaction == original.transaction
    assert not isinstance(again, LedgerError)
    assert again.replayed


# Deadlocks


def _in_opposite_orders(funded: Ledger, url: str, accounts: list[str]) -> list[BaseException]:
    """Two callers post twice each, in opposite orders; what came out of them."""
    came_out: list[BaseException] = []
    first_done = [threading.Event(), threading.Event()]

    def call(me: int, pairs: list[tuple[str, str]]) -> None:
        try:
            with (
                psycopg.connect(url, options="-c deadlock_timeout=50ms") as lent,
                funded.join(lent, accounts=accounts) as guest,
            ):
                for debited, credited in pairs:
                    guest.transfer("1 USD", debit=debited, credit=credited)
                    first_done[me].set()
                    if not accounts:
                        assert first_done[1 - me].wait(JOIN_SECONDS)
        except ConcurrencyError as error:
            came_out.append(error)

    pairs = [("alice", "carl"), ("bob", "dora")]
    threads = [threading.Thread(target=call, args=(me, order)) for me, order in enumerate((pairs, pairs[::-1]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_SECONDS)
        assert not thread.is_alive()
    return came_out


def test_deadlock_victim_is_told_what_to_do(funded: Ledger, ledger_url: str) -> None:
    """Callers that post in opposite orders deadlock: one goes on, the other learns how to avoid it."""
    for name in ("carl", "dora"):
        funded.open_account(name, asset="USD", type="asset")
    (victim,) = _in_opposite_orders(funded, ledger_url, [])
    assert isinstance(victim, ConcurrencyError)
    assert victim.retryable
    assert "accounts=[" in str(victim)
    assert "whole transaction again" in str(victim)
    assert str(funded.balance("alice").posted) == "69.00 USD"
    assert funded.verify().ok


def test_accounts_named_up_front_avoid_it(funded: Ledger, ledger_url: str) -> None:
    """Callers that name their accounts wait for each other, and both go through."""
    for name in ("carl", "dora"):
        funded.open_account(name, asset="USD", type="asset")
    assert _in_opposite_orders(funded, ledger_url, ["dora", "carl", "bob", "alice"]) == []
    assert str(funded.balance("alice").posted) == "68.00 USD"
    assert funded.verify().ok


# What cannot be lent


def lookalike(module: str, name: str) -> object:
    """An object of another library, as far as its name goes."""
    return type(name, (), {"__module__": module})()


@pytest.mark.parametrize(
    ("lent", "named"),
    [
        (lookalike("asyncpg.connection", "Connection"), "asyncpg's Connection"),
        (lookalike("django.db.backends.postgresql.base", "DatabaseWrapper"), "django's DatabaseWrapper"),
        (lookalike("django.utils.connection", "ConnectionProxy"), "django's ConnectionProxy"),
        (lookalike("psycopg2.extensions", "connection"), "psycopg2's connection"),
        (psycopg.AsyncConnection.__new__(psycopg.AsyncConnection), "psycopg's AsyncConnection"),
        (lookalike("sqlalchemy.ext.asyncio.session", "AsyncSession"), "sqlalchemy's AsyncSession"),
        ("postgresql://localhost/", "builtins's str"),
        (None, "builtins's NoneType"),
    ],
    ids=lambda each: each if isinstance(each, str) and " " in each else "",
)
def test_other_connections_are_refused_with_a_sentence(funded: Ledger, lent: Any, named: str) -> None:
    """What is not psycopg 3 or SQLAlchemy is named, and the error says what to lend instead."""
    with pytest.raises(UnsupportedConnection) as refused, funded.join(lent):
        pass
    assert str(refused.value).startswith(f"A guest cannot work on {named}. Lend it a psycopg 3 connection")
    assert "Django" in refused.value.advice
    assert "asyncio" in refused.value.advice


def test_autocommit_outside_of_a_transaction_is_refused(funded: Ledger, ledger_url: str) -> None:
    """Where every statement commits by itself nothing could be taken along."""
    with psycopg.connect(ledger_url, autocommit=True) as lent:
        with pytest.raises(UnsupportedConnection, match="Begin one first"), funded.join(lent):
            pass
        lent.execute("BEGIN")
        with funded.join(lent) as guest:
            pay(guest)
        lent.execute("COMMIT")
    engine = funded.engine.execution_options(isolation_level="AUTOCOMMIT")
    with (
        engine.connect() as connection,
        pytest.raises(UnsupportedConnection, match="autocommit") as refused,
        funded.join(connection),
    ):
        pass
    assert "engine.begin()" in refused.value.advice
    assert "connection.transaction()" not in refused.value.advice
    assert funded.balance("alice").version == 4


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_encoding_that_cannot_carry_every_text_is_refused(funded: Ledger, ledger_url: str, encoding: str) -> None:
    """A connection on which some texts could not be written, or come back as bytes, is refused by its encoding."""
    with psycopg.connect(ledger_url, client_encoding=encoding) as lent:
        with pytest.raises(UnsupportedConnection, match=rf"{encoding}.*UTF8"), funded.join(lent):
            pass
        lent.execute("SET client_encoding = 'UTF8'")
        with funded.join(lent) as guest:
            guest.transfer("1 USD", debit="alice", credit="bob", reference="☃")
    assert len(funded.transactions(reference="☃")) == 1


def test_closed_connections_are_refused(funded: Ledger, ledger_url: str) -> None:
    """What was closed before it was lent is refused as such, and is not taken for a server that is away."""
    with psycopg.connect(ledger_url) as driver:
        pass
    with funded.engine.connect() as connection:
        pass
    with sqlalchemy.orm.Session(funded.engine, autobegin=False) as session:
        pass
    for lent in (driver, connection, session):
        with pytest.raises(UnsupportedConnection, match="Lend one that is open"), funded.join(lent):
            pass


def test_one_name_is_no_list_of_accounts(funded: Ledger) -> None:
    """A text is a sequence of letters, and yet none of them is an account that anyone meant."""
    with (
        funded.engine.begin() as lent,
        pytest.raises(InvalidCommand, match=r"accounts: name them in a list: \['alice'\]"),
        funded.join(lent, accounts="alice"),
    ):
        pass


def test_other_drivers_are_refused(funded: Ledger) -> None:
    """SQLAlchemy over another driver is refused by the driver's name."""
    engine = sqlalchemy.create_engine("sqlite://")
    with (
        engine.connect() as lent,
        pytest.raises(UnsupportedConnection, match=r"pysqlite.*postgresql\+psycopg"),
        funded.join(lent),
    ):
        pass
    engine.dispose()


def test_broken_transaction_is_reported(funded: Ledger, ledger_url: str) -> None:
    """In a transaction that an earlier error has aborted nothing can be done, and the error is the ledger's own."""
    with psycopg.connect(ledger_url) as lent:
        with pytest.raises(psycopg.Error):
            lent.execute("SELECT 1/0")
        with pytest.raises(LedgerError, match="aborted"), funded.join(lent) as guest:
            pay(guest)
        lent.rollback()
        with funded.join(lent) as guest:
            pay(guest)
    assert funded.balance("alice").version == 4
