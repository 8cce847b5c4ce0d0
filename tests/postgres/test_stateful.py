"""
Random commands from several clients, on the real database and on the model: every answer and every balance agree.

A command is drawn in its JSON form and goes both ways.  In between, balances are changed behind the ledger's
back, rebuilt, looked at, and clients come and go; none of it may make a difference to any answer.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from itertools import count, permutations
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import Answer, Model, Rejection, Request
from sqlalchemy import URL

from ledger import (
    Balance,
    Command,
    Done,
    Ledger,
    Recorded,
    Rejected,
    StripedAccount,
    Timeouts,
    UnknownAccount,
    parse_command,
)

EXAMPLES: Final = 15
STEPS: Final = 40
IMPATIENT: Final = Timeouts(lock_seconds=5, pool_seconds=1)
CAMPAIGN_EXAMPLES: Final = int(os.environ.get("LEDGER_CAMPAIGN_EXAMPLES", "1000"))

TYPES: Final = ("asset", "liability", "equity", "income", "expense")
ASSETS: Final = ("USD", "JPY", "GOLD", "SILK")
HOT: Final = ("usd-hot", "usd-warm")
"""An account that has stripes from the beginning, and one that may come to have some."""

ACCOUNTS: Final = (*(f"{asset.lower()}-{number}" for asset in ASSETS[:3] for number in range(3)), *HOT)
NAMES: Final = (*ACCOUNTS, "nobody")
KEYS: Final = ("rent", "salary", "tip")

NUMBERS: Final = {
    "USD": ("1", "0.01", "2.50", "007.5", "100", "9" * 36),
    "JPY": ("1", "7", "100", "9" * 38),
    "GOLD": ("1", "0.5", "1.000", "0.0625", "9" * 37),
    "SILK": ("1", "2.5"),
}

Choice = TypeVar("Choice")
Drawn: TypeAlias = tuple[Request, Request, Mapping[str, int]]
"""A command, what it carries beside its request, and what it expects, relative to what is."""

_numbers = count(1)

TAMPERINGS: Final = {
    "an amount": ("UPDATE balances SET posted_credits = posted_credits + 1 WHERE stream = %(account)s",),
    "a version": ("UPDATE balances SET version = version + 1 WHERE stream = %(account)s",),
    "a checksum": ("UPDATE balances SET checksum = sha256('forged') WHERE stream = %(account)s",),
    "a limit": ("UPDATE accounts SET min_balance = coalesce(min_balance, 0) - 7 WHERE account = %(account)s",),
    "no balance": ("DELETE FROM balances WHERE stream = %(account)s",),
    "no terms": ("DELETE FROM accounts WHERE account = %(account)s",),
    "no projection": (
        "DELETE FROM balances WHERE stream = %(account)s",
        "DELETE FROM accounts WHERE account = %(account)s",
    ),
}


def asset_of(account: str) -> str:
    """The asset that an account is mostly opened in, by its name."""
    return account.partition("-")[0].upper() if "-" in account else "USD"


def _two_sided() -> list[Request]:
    """Every transfer, deposit and withdrawal between two accounts of one asset, and some that cannot be right."""
    alike = [pair for pair in permutations(NAMES, 2) if asset_of(pair[0]) == asset_of(pair[1])]
    unlike = [("usd-0", "gold-0"), ("gold-1", "jpy-0"), ("usd-1", "jpy-1")]
    amounts = [
        (one, other, f"{n} {asset_of(one)}")
        for one, other in alike + unlike
        for n in NUMBERS[asset_of(one)]
        # How many digits fit is a matter of a single stripe, and which that is nobody knows.
        if len(n) < 10 or not {one, other} & {*HOT}
    ]
    amounts += [(one, other, "1 SILK") for one, other in alike[:3]]
    return [
        {"type": kind, "amount": amount, sides[0]: one, sides[1]: other}
        for one, other, amount in amounts
        for kind, sides in (
            ("transfer", ("debit", "credit")),
            ("deposit", ("account", "against")),
            ("withdraw", ("account", "against")),
        )
    ]


def _openings() -> list[Request]:
    """Accounts of every type, with every kind of limit, mostly in the asset of their name."""
    return [
        {"type": "open_account", "account": name, "asset": asset, "account_type": account_type}
        | {limit: f"{number} {asset}" for limit, number in limits}
        for name in (*ACCOUNTS, "silk-0")
        for asset in {asset_of(name), "SILK" if name.endswith("2") else asset_of(name)}
        for account_type in TYPES
        for limits in (
            [],
            [("min_balance", "0")],
            [("min_balance", "-5"), ("max_balance", "100")],
            [("max_balance", "1" if asset == "JPY" else "1.5")],
            [("min_balance", "-0.0001" if asset == "GOLD" else "7")],
        )
    ]


TWO_SIDED: Final = _two_sided()
TRANSFERS: Final = [request for request in TWO_SIDED if request["type"] == "transfer"]
OPENINGS: Final = _openings()


def _holds() -> list[Request]:
    """A hold between accounts that are there from the beginning: for ever, for long, or for a time that is over."""
    return [
        {"type": "hold", "amount": amount, "debit": debited, "credit": credited, **more}
        for debited, credited, amounts in (
            ("usd-1", "usd-0", ("1 USD", "2.50 USD", "20 USD")),
            ("usd-0", "usd-1", ("1 USD", "100 USD")),
            ("usd-0", "usd-2", ("3 USD", "90 USD")),
            ("usd-2", "usd-1", ("2.50 USD", "0.01 USD")),
            ("gold-1", "gold-0", ("0.5 GOLD", "1 GOLD", "0.0625 GOLD")),
            ("usd-0", "nobody", ("1 USD",)),
            ("usd-0", "gold-0", ("1 USD",)),
        )
        for amount in amounts
        for more in ({}, {"expires_at": "2999-01-01T00:00:00Z"}, {"expires_at": "2020-01-01T00:00:00Z"})
    ]


HOLDS: Final = _holds()
HOT_HOLDS: Final[list[Request]] = [
    {"type": "hold", "amount": amount, "debit": debited, "credit": credited, **more}
    for debited, credited, amount in (
        ("usd-hot", "usd-0", "3 USD"),
        ("usd-1", "usd-hot", "2.50 USD"),
        ("usd-warm", "usd-hot", "1 USD"),
        ("usd-warm", "usd-2", "4 USD"),
    )
    for more in ({}, {"expires_at": "2999-01-01T00:00:00Z"})
]
"""Holds that do not fall due: which of them a command comes by is a matter of the stripe that it draws."""

PARTS: Final = ("", "1 USD", "0.01 USD", "2.50 USD", "7 JPY", "0.5 GOLD", "100 USD")
TAKEN_UP: Final[list[Request]] = [
    {"type": kind, name: ago, **({"amount": part} if part else {}), **more}
    for kind, name, mores in (
        ("capture", "hold", ({}, {"final": True})),
        ("release", "hold", ({},)),
        ("expire_hold", "hold", ({},) * 4),
        ("reverse", "transaction_id", ({}, {"force": True})),
    )
    for ago in range(6)
    for part in ("", *PARTS)
    for more in mores
    if kind != "expire_hold" or not part
]
"""What takes a transaction up again, by how many of its kind were made since."""

RULINGS: Final[list[Request]] = [
    *(
        {"type": kind, "account": name}
        for kind in ("freeze", "unfreeze", "unfreeze", "close_account")
        for name in NAMES
    ),
    *(
        {"type": "change_account", "account": name, **limits}
        for name in NAMES
        for limits in (
            {"min_balance": "unlimited"},
            {"max_balance": "unlimited"},
            {"min_balance": f"-1 {asset_of(name)}", "max_balance": f"1000 {asset_of(name)}"},
            {"min_balance": f"9 {asset_of(name)}"},
            {"max_balance": f"7 {asset_of(name)}"},
            {"min_balance": "5 JPY"},
        )
    ),
    *({"type": "change_account", "account": name, "stripes": stripes} for name in HOT * 4 for stripes in (1, 2, 4, 5)),
    *({"type": kind, "account": name} for kind in ("freeze", "unfreeze", "unfreeze", "close_account") for name in HOT),
    {"type": "change_account", "account": "usd-warm", "stripes": 3, "min_balance": "unlimited"},
    {"type": "change_account", "account": "usd-warm", "stripes": 3, "max_balance": "9 USD"},
    {"type": "change_account", "account": "nobody", "stripes": 3},
    {"type": "open_account", "account": "usd-hot", "asset": "USD", "account_type": "equity", "stripes": 2},
]
STEPS_OF_TRIPS: Final[list[Request]] = [
    *({"type": "begin", "machine": machine, "subject": f"t-{n}"} for n in range(3) for machine in ("trip", "tour")),
    *(
        {"type": "advance", "machine": "trip", "subject": f"t-{n}", "event": event}
        for n in range(3)
        for event in ("accept", "start", "end", "cancel", "fly")
    ),
]
CLOSINGS: Final[list[Request]] = [
    {"type": "close_period", "until": f"{day}T00:00:00Z"}
    for day in ("2025-12-31", "2026-01-02", "2026-01-03", "2026-02-01", "2999-01-01")
]
DEFINITIONS: Final[list[Request]] = [
    {"type": "define_asset", "asset": asset, "scale": scale} for asset in ("GOLD", "SILK", "USD") for scale in (0, 3, 6)
]
CONTEXTS: Final[list[Request]] = [
    *({},) * 8,
    *({"idempotency_key": key} for key in KEYS),
    *({"idempotency_key": key, "reference": "payday", "actor": "ann"} for key in KEYS),
    {"metadata": {"tier": 1, "new": True}, "effective_at": "2026-01-02T03:04:05Z"},
    {"idempotency_key": "rent", "metadata": {"month": "May"}, "effective_at": "2031-12-31T23:59:59.999999Z"},
]
EXPECTATIONS: Final[list[Mapping[str, int]]] = [
    *({},) * 8,
    *({name: offset} for name in NAMES for offset in (0, 0, 1, -1)),
    *({one: 0, other: offset} for one, other in permutations(NAMES[:3], 2) for offset in (0, 1)),
]
"""Account → how far the expected version is from the version."""


def among(choices: Sequence[Choice]) -> st.SearchStrategy[Choice]:
    """One of many, for the price of one small number, which leaves room for long examples."""
    return st.integers(0, len(choices) - 1).map(lambda place: choices[place])


@st.composite
def posts(draw: st.DrawFn) -> Request:
    """A transaction of several entries, in one or more assets, mostly balanced."""
    entries = [
        {"account": pair[side], "amount": pair["amount"], "direction": side}
        for pair in draw(st.lists(among(TRANSFERS), min_size=1, max_size=3))
        for side in ("debit", "credit")
    ]
    if draw(st.integers(0, 9)) == 9:
        entries[-1]["amount"] = f"3 {entries[-1]['amount'].partition(' ')[2]}"
    turn = draw(st.integers(0, len(entries) - 1))
    return {"type": "post", "entries": entries[turn:] + entries[:turn]}


drawn_commands = st.tuples(
    st.one_of(
        among(TWO_SIDED),
        among(TWO_SIDED),
        posts(),
        among(OPENINGS),
        among([*OPENINGS[:20], *DEFINITIONS]),
        among([*HOLDS, *HOT_HOLDS, *TAKEN_UP]),
        among([*RULINGS, *STEPS_OF_TRIPS, *CLOSINGS]),
    ),
    among(CONTEXTS),
    among(EXPECTATIONS),
)
batches = st.lists(drawn_commands, min_size=1, max_size=4)
lives = st.lists(
    st.tuples(
        st.one_of(
            among([*HOLDS, *HOT_HOLDS]),
            among(TAKEN_UP),
            among(TAKEN_UP),
            among(STEPS_OF_TRIPS),
            among([*RULINGS, *CLOSINGS]),
        ),
        among(CONTEXTS),
        among(EXPECTATIONS[:10]),
    ),
    min_size=1,
    max_size=4,
)
"""What begins something that goes on later, and what goes on with it."""

clients = st.integers(0, 1)


class LedgerMachine(RuleBasedStateMachine):
    """Two clients and a guest on one database, and the model beside them."""

    server: ClassVar[URL]
    template: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.name = f"ledger_stateful_{os.getpid()}_{next(_numbers)}"
        self._administer(f"CREATE DATABASE {self.name} TEMPLATE {self.template}")
        self.url = self.server.set(database=self.name).render_as_string(hide_password=False)
        self.model = Model()
        self.tampered: set[str] = set()
        self.ever_tampered: set[str] = set()
        self.asked: list[Request] = []
        self.done: list[Done] = []
        self.ids: dict[str, str] = {}
        """The model's names of transactions → what they are called in the ledger."""

        self.clients = [Ledger.connect(self.url, pool_size=1, timeouts=IMPATIENT) for _ in range(2)]
        self.owner = psycopg.connect(self.url, autocommit=True, options="-c search_path=ledger -c lock_timeout=5s")

    @initialize()
    def open_some_accounts(self) -> None:
        """Begin with something to move, and somewhere to take it from."""
        self._compare(
            self.clients[0].handle,
            [
                {"type": "define_asset", "asset": "GOLD", "scale": 3},
                {"type": "open_account", "account": "usd-0", "asset": "USD", "account_type": "equity"},
                _opening("usd-1", "USD", "liability", min_balance="0 USD"),
                _opening("usd-2", "USD", "asset", min_balance="0 USD", max_balance="100 USD"),
                {"type": "open_account", "account": "gold-0", "asset": "GOLD", "account_type": "equity"},
                _opening("gold-1", "GOLD", "expense", max_balance="1.5 GOLD"),
                {**_opening("usd-hot", "USD", "asset"), "stripes": 3},
                _opening("usd-warm", "USD", "liability"),
                {"type": "transfer", "amount": "50 USD", "debit": "usd-0", "credit": "usd-1"},
                {"type": "transfer", "amount": "9 USD", "debit": "usd-hot", "credit": "usd-warm"},
                {"type": "transfer", "amount": "1 GOLD", "debit": "gold-1", "credit": "gold-0"},
                {"type": "hold", "amount": "20 USD", "debit": "usd-1", "credit": "usd-0"},
                {"type": "hold", "amount": "7 USD", "debit": "usd-0", "credit": "usd-1"},
                {"type": "begin", "machine": "trip", "subject": "t-0"},
            ],
        )

    @rule(drawn=batches, client=clients, scope=st.sampled_from(["", "", "shop"]), atomic=st.booleans())
    def handle(self, drawn: list[Drawn], client: int, scope: str, atomic: bool) -> None:
        """Commands of all kinds, alone and in batches, atomic or not."""
        requests = [self._request(*each) for each in drawn]
        self.asked += [request for request in requests if "idempotency_key" in request]
        self._compare(self.clients[client].handle, requests, scope=scope, atomic=atomic)

    @rule(drawn=lives, client=clients, atomic=st.booleans())
    def go_on(self, drawn: list[Drawn], client: int, atomic: bool) -> None:
        """Holds, what becomes of them, reversals, states, periods and trips."""
        requests = [self._request(*each) for each in drawn]
        self.asked += [request for request in requests if "idempotency_key" in request]
        self._compare(self.clients[client].handle, requests, atomic=atomic)

    @rule(drawn=batches | lives, client=clients, atomic=st.booleans())
    def ask_what_would_happen(self, drawn: list[Drawn], client: int, atomic: bool) -> None:
        """A dry run is answered like the real thing, and changes nothing."""
        requests = [self._request(*each) for each in drawn]
        self._compare(self.clients[client].handle, requests, atomic=atomic, dry_run=True)

    @precondition(lambda self: self.asked)
    @rule(client=clients, ago=st.integers(0, 1000), scope=st.sampled_from(["", "shop"]), late=among(CONTEXTS))
    def ask_again(self, client: int, ago: int, scope: str, late: Request) -> None:
        """The same key again, with the same request or one that differs a little."""
        request = self.asked[-1 - ago % len(self.asked)]
        request = {**request, **late, "idempotency_key": request["idempotency_key"], "expected_versions": {"usd-0": 2}}
        self._compare(self.clients[client].handle, [request], scope=scope)

    @rule(turns=st.lists(batches | lives, min_size=1, max_size=3), lasts=st.booleans())
    def work_as_guest(self, turns: list[list[Drawn]], lasts: bool) -> None:
        """In an application's own transaction, which may come to nothing."""
        before = self.model
        self.model = copy.copy(before)
        done, asked, ids = len(self.done), len(self.asked), dict(self.ids)
        with psycopg.connect(self.url) as lent:
            with self.clients[0].join(lent, accounts=ACCOUNTS) as guest:
                for drawn in turns:
                    self._compare(guest.handle, [self._request(*each) for each in drawn])
            if lasts:
                lent.commit()
            else:
                lent.rollback()
                self.model = before
                # A key that is used again stands for the same id, under what may be another name.
                self.ids = ids
                del self.done[done:], self.asked[asked:]

    @rule(client=clients, pair=among(HOLDS[::3]), is_swept=st.booleans())
    def hold_until_it_falls_due(self, client: int, pair: Request, is_swept: bool) -> None:
        """A hold whose time is over counts no more once its accounts are touched, or a sweeper came by."""
        due: datetime | None = None

        def hold_in_time(commands: Sequence[Command], **how: Any) -> list[Done | Rejected]:
            """Handle it with a time that is not over before a busy machine gets to it."""
            nonlocal due
            for seconds in (0.1, 1, 10):
                ((due,),) = self.owner.execute(b"SELECT clock_timestamp() + make_interval(secs => %s)", (seconds,))
                late = [command.model_copy(update={"expires_at": due}) for command in commands]
                outcomes = self.clients[client].handle(late, **how)
                if not any(isinstance(each, Rejected) and each.fields.get("state") == "expired" for each in outcomes):
                    break
            return outcomes

        (answer,) = self._compare(hold_in_time, [dict(pair)])
        if isinstance(answer, Rejection):
            return
        while not self.owner.execute(b"SELECT clock_timestamp() > %s", (due,)).fetchall()[0][0]:
            pass
        self.model.holds[answer.name].is_due = True
        if is_swept:
            assert self.clients[1 - client].expire_holds() == self.model.expire(self.model.accounts)

    @rule(
        stream=st.sampled_from([*ACCOUNTS, "usd-hot#01", "usd-hot#02"]),
        how=st.sampled_from(sorted(TAMPERINGS)),
        look=st.booleans(),
        client=clients,
    )
    def tamper(self, stream: str, how: str, look: bool, client: int) -> None:
        """Somebody changes a projection with SQL; a verification sees it, and no answer does."""
        if account_of(stream) not in self.model.accounts:
            return
        changed = [self.owner.execute(sql, {"account": stream}).rowcount for sql in map(str.encode, TAMPERINGS[how])]
        self.tampered.add(stream)
        self.ever_tampered.add(stream)
        if look and all(changed):
            assert not self.clients[client].verify(account_of(stream)).ok

    @rule(client=clients, names=st.none() | st.lists(st.sampled_from(ACCOUNTS), unique=True, min_size=1))
    def rebuild(self, client: int, names: list[str] | None) -> None:
        """A rebuild mends what was tampered with, and nothing else."""
        known = [name for name in names or () if name in self.model.accounts]
        if names is None or known:
            assert set(self.clients[client].rebuild(*known)) <= self.tampered
        mended = self.model.accounts if names is None else known
        self.tampered = {stream for stream in self.tampered if account_of(stream) not in mended}

    @rule(client=clients, account=st.sampled_from(NAMES), ago=st.integers(0, 1000))
    def look_at_an_account(self, client: int, account: str, ago: int) -> None:
        """A balance now and at any version, and the history that led to it."""
        ledger = self.clients[client]
        if account not in self.model.accounts:
            with pytest.raises(UnknownAccount):
                ledger.balance(account)
            return
        its = self.model.accounts[account]
        self._check_balance(ledger, account)
        if its.streams > 1:
            self._check_stripes(ledger, account, page_size=1 + ago % 9)
            return
        version = its.version - ago % (its.version + 1)
        assert _amounts(ledger.balance(account, version=version)) == its.balance(version)
        history = ledger.history(account, after_version=version, limit=1000)
        assert [event.version for event in history] == list(range(version + 1, its.version + 1))
        stated = [event.numbers for event in history if event.numbers is not None]
        assert stated == its.gross[version + 1 :]

    @rule(client=clients)
    def look_at_everything(self, client: int) -> None:
        """The list of accounts, the trial balance and a verification."""
        ledger = self.clients[client]
        assert set(ledger.rebuild()) <= self.tampered
        self.tampered.clear()
        lines = {line.account: (_amounts(line.balance), line.terms.state) for line in ledger.accounts(limit=1000)}
        assert lines == {name: (its.balance(), its.state) for name, its in self.model.accounts.items()}
        trial = ledger.trial_balance()
        assert trial.balanced
        assert self.model.trial_balance() == {
            (line.asset, line.account_type, line.accounts, str(line.debits), str(line.credits)) for line in trial.lines
        }
        report = ledger.verify()
        assert report.ok, report.findings
        for subject, states in self.model.trips.items():
            assert ledger.state("trip", subject)[:3] == ("trip", subject, states[-1])

    @rule(client=clients, account=st.sampled_from(ACCOUNTS))
    def look_at_holds(self, client: int, account: str) -> None:
        """Every hold on an account, with what became of it."""
        if account not in self.model.accounts:
            return
        lines = {
            str(line.hold): (line.state, *(each.minor for each in (line.captured, line.released, line.expired)))
            for line in self.clients[client].holds(account, limit=1000)
        }
        assert lines == {
            self.ids[name]: (held.state, held.captured, held.released, held.expired)
            for name, held in self.model.holds.items()
            if account in [side for side, _ in held.sides]
        }

    @precondition(lambda self: self.done)
    @rule(client=clients, ago=st.integers(0, 1000))
    def look_at_a_transaction(self, client: int, ago: int) -> None:
        """What was answered is on record, for every client."""
        done = self.done[-1 - ago % len(self.done)]
        found = self.clients[client].transaction(done.transaction_id)
        assert found.transaction == done.transaction
        assert found.events == list(done.events)

    @rule(client=clients)
    def reconnect(self, client: int) -> None:
        """A client that comes back, and migrates to where it is, knows what it knew."""
        self.clients[client].close()
        self.clients[client] = Ledger.connect(self.url, pool_size=1, timeouts=IMPATIENT)
        assert self.clients[client].migrate().applied == ()

    @invariant()
    def nothing_was_mended_that_was_not_broken(self) -> None:
        """Every repair on record is of an account that somebody tampered with."""
        mended = {stream for (stream,) in self.owner.execute(b"SELECT DISTINCT stream FROM projection_repairs")}
        assert mended <= self.ever_tampered

    def teardown(self) -> None:
        """Everything is as the model says, on the projection, and on the log alone."""
        try:
            for account in self.model.accounts:
                self._check_balance(self.clients[0], account)
            self.look_at_everything(1)
        finally:
            for client in self.clients:
                client.close()
            self.owner.close()
            self._administer(f"DROP DATABASE {self.name} WITH (FORCE)")

    def _administer(self, statement: str) -> None:
        with psycopg.connect(self.server.render_as_string(hide_password=False), autocommit=True) as server:
            server.execute(statement.encode())

    def _request(self, request: Request, context: Request, offsets: Mapping[str, int]) -> Request:
        """A command as it is sent; what it expects is mostly what is."""
        expected = {name: max(0, self.model.version(name) + offset) for name, offset in offsets.items()}
        named = {
            field: _ago(list(made), request[field])
            for field, made in (("hold", self.model.holds), ("transaction_id", self.model.transactions))
            if field in request
        }
        return {**request, **named, **context, **({"expected_versions": expected} if expected else {})}

    def _compare(
        self, handle: Callable[..., list[Done | Rejected]], requests: Sequence[Request], **how: Any
    ) -> list[Answer | Rejection]:
        """Send commands both ways and compare the answers in full."""
        striped = {request["account"] for request in requests if request.get("stripes", 1) > 1}
        expected = self.model.handle(requests, **how)
        outcomes = handle([self._parsed(request) for request in requests], **how)
        # Which stripe of an account a command drew nobody can foretell, nor what it found there.
        striped |= {name for name, its in self.model.accounts.items() if its.streams > 1}
        for request, outcome, answer in zip(requests, outcomes, expected, strict=True):
            assert self._told(outcome, striped) == _foretold(answer, striped), request
        for outcome, answer in zip(outcomes, expected, strict=True):
            if isinstance(outcome, Done) and isinstance(answer, Answer) and not how.get("dry_run"):
                self.done.append(outcome)
                self.ids[answer.name] = outcome.transaction.transaction_id
        return expected

    def _parsed(self, request: Request) -> Command:
        named = {
            field: self.ids.get(request[field], NOBODYS) for field in ("hold", "transaction_id") if field in request
        }
        return parse_command(json.dumps({**request, **named}))

    def _told(self, outcome: Done | Rejected, striped: AbstractSet[str]) -> object:
        """What the ledger said, in plain values; of accounts with stripes only that they were touched."""
        if isinstance(outcome, Rejected):
            left_out = _FACTS_LEFT_OUT.get(outcome.reason.value, ())
            facts = {name: value for name, value in outcome.fields.items() if name not in left_out}
            if "transaction_id" in facts:
                names = {value: name for name, value in self.ids.items()}
                facts["transaction_id"] = names.get(str(facts["transaction_id"]), "@0")
            return outcome.reason.value, facts
        balances = {name: (*_amounts(balance), balance.version) for name, balance in outcome.balances.items()}
        versions = {account_of(stream): version for stream, version in outcome.versions.items()}
        return outcome.replayed, _without(versions, striped), _without(balances, striped, whole=True)

    def _check_stripes(self, ledger: Ledger, account: str, page_size: int) -> None:
        """An account with stripes is the sum of its streams, and its history theirs, in pages of any size."""
        its = self.model.accounts[account]
        events: list[Recorded] = []
        page = ledger.history(account, limit=page_size)
        while page:
            events += page
            page = ledger.history(account, after_version=page.next, limit=page_size)
        assert events == sorted(events, key=lambda event: (event.recorded_at, event.stream, event.version))
        heads = {event.stream: event for event in events}
        assert len(heads) == its.streams
        assert len(events) == sum(event.version for event in heads.values()) == its.version
        numbers = [event.numbers for event in heads.values() if event.numbers is not None]
        assert tuple(map(sum, zip(*numbers, strict=True))) == its.gross[-1]
        with pytest.raises(StripedAccount):
            ledger.balance(account, version=1)

    def _check_balance(self, ledger: Ledger, account: str) -> None:
        its, balance = self.model.accounts[account], ledger.balance(account)
        assert (_amounts(balance), balance.version) == (its.balance(), its.version), account


def _opening(account: str, asset: str, account_type: str, **limits: str) -> Request:
    return {"type": "open_account", "account": account, "asset": asset, "account_type": account_type, **limits}


def _ago(names: Sequence[str], ago: int) -> str:
    """The last but so many, or nobody's."""
    return names[-1 - ago % len(names)] if names and ago < 5 else "@0"


def _amounts(balance: Balance) -> tuple[str, str, str]:
    return str(balance.posted), str(balance.pending), str(balance.available)


NOBODYS: Final = "01900000-0000-7000-8000-000000000000"
"""The id of no transaction."""

_FACTS_LEFT_OUT: Final = {
    "striped_account": ("problem",),
    "invalid_amount": ("amount", "problem", "where"),
    "atomic_batch": ("cause",),
    "hold_not_open": ("hold",),
    "hold_not_due": ("hold", "expires_at"),
    "not_reversible": ("problem",),
    "transition_refused": ("allowed",),
    "unknown_machine": ("known",),
}
"""Facts that are texts for people, or beyond what the model knows."""


def _foretold(answer: Answer | Rejection, striped: AbstractSet[str]) -> object:
    """What the model said, in the same values."""
    if isinstance(answer, Rejection):
        return answer.reason, answer.facts
    versions, balances = _without(answer.versions, striped), _without(answer.balances, striped, whole=True)
    return answer.replayed, versions, balances


def _without(said: Mapping[str, object], striped: AbstractSet[str], *, whole: bool = False) -> dict[str, object]:
    """What was said of accounts, less what stands in one of their stripes; or nothing of these accounts at all."""
    return {name: None if name in striped else fact for name, fact in said.items() if not (whole and name in striped)}


def account_of(stream: str) -> str:
    """The account whose stripe it is, or the stream itself."""
    return stream if stream.startswith("#") else stream.partition("#")[0]


def agree(server: URL, template: str, how: settings) -> None:
    """Run the machine, each example on a database of its own."""
    run_state_machine_as_test(
        type("LedgerMachine", (LedgerMachine,), {"server": server, "template": template}), settings=how
    )


def test_every_answer_is_the_models(ledger_server: URL, ledger_template: str) -> None:
    """Whatever is asked, by whomever, after whatever was done to the projections: the model says the same."""
    # The same examples each time, and none made smaller, which may take minutes: the campaign does both.
    phases = (Phase.explicit, Phase.generate)
    agree(ledger_server, ledger_template, settings(_BOUNDED, max_examples=EXAMPLES, derandomize=True, phases=phases))


@pytest.mark.campaign
def test_every_answer_is_the_models_at_length(ledger_server: URL, ledger_template: str) -> None:
    """The same, with many more examples that are new each time."""
    agree(ledger_server, ledger_template, settings(_BOUNDED, max_examples=CAMPAIGN_EXAMPLES))


_BOUNDED: Final = settings(
    stateful_step_count=STEPS, database=None, print_blob=True, suppress_health_check=list(HealthCheck)
)
