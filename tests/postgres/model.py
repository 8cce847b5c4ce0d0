"""
An executable model of the ledger: what each command must be answered with, in the simplest way that can be right.

It imports nothing from `ledger` and knows no database: there are dictionaries, lists and Python's own integers.
Commands come in the JSON form that the command line takes; a transaction is called @1, @2 … as they happen.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import takewhile
from typing import Any, Final, TypeAlias

Request: TypeAlias = Mapping[str, Any]
Leg: TypeAlias = tuple[str, str, str]
"""An account, a direction and an amount."""

Gross: TypeAlias = tuple[int, int, int, int]
"""Debits and credits, posted and then pending."""

CURRENCIES: Final = {"USD": 2, "EUR": 2, "JPY": 0, "KWD": 3}
"""As many of ISO 4217 as the tests use."""

LEDGER: Final = "$ledger"
MINOR_MAX: Final = 10**38 - 1
GROWS_BY_DEBIT: Final = {"asset", "expense"}
NOT_FINGERPRINTED: Final = {"idempotency_key", "actor", "correlation_id", "causation_id", "expected_versions"}

MAY_WHILE_FROZEN: Final = {"release", "expire", "reverse", "change", "unfreeze"}
ACCOUNT_STEPS: Final = {("open", "freeze"): "frozen", ("frozen", "unfreeze"): "open", ("open", "close"): "closed"}
TRIP: Final = {
    ("requested", "accept"): "accepted",
    ("requested", "start"): "started",
    ("accepted", "start"): "started",
    ("started", "end"): "ended",
    ("requested", "cancel"): "cancelled",
    ("accepted", "cancel"): "cancelled",
}
SETTLING: Final = timedelta(minutes=10)


class Rejection(Exception):
    """A rule said no: which one, and the facts behind it."""

    def __init__(self, reason: str, **facts: object) -> None:
        super().__init__(reason, facts)
        self.reason = reason
        self.facts = facts


@dataclass(slots=True)
class Account:
    """
    What an account is, and its gross numbers after each version (the first is nothing).

    What is said of it is said in each of its `streams`, so that it has as many versions more.
    """

    type: str
    asset: str
    scale: int
    lowest: int | None
    highest: int | None
    state: str = "open"
    streams: int = 1
    gross: list[Gross] = field(default_factory=lambda: [(0, 0, 0, 0), (0, 0, 0, 0)])

    @property
    def version(self) -> int:
        return len(self.gross) - 1

    def balance(self, version: int | None = None) -> tuple[str, str, str]:
        """Posted, pending and available in the normal direction, as they are printed."""
        posted_in, posted_out, pending_in, pending_out = self.normal(self.gross[-1 if version is None else version])
        posted, pending = posted_in - posted_out, pending_in - pending_out
        amounts = (posted, pending, posted - pending_out)
        posted_text, pending_text, available_text = (printed(each, self.asset, self.scale) for each in amounts)
        return posted_text, pending_text, available_text

    def normal(self, gross: Gross) -> Gross:
        """In and out, posted and then pending."""
        debits, credits, pending_debits, pending_credits = gross
        if self.type in GROWS_BY_DEBIT:
            return gross
        return credits, debits, pending_credits, pending_debits

    def move(self, direction: str, posted: int, pending: int) -> None:
        """One event: so much more on one side."""
        debits, credits, pending_debits, pending_credits = self.gross[-1]
        if direction == "debit":
            self.gross.append((debits + posted, credits, pending_debits + pending, pending_credits))
        else:
            self.gross.append((debits, credits + posted, pending_debits, pending_credits + pending))

    def stay(self, events: int) -> None:
        """So many events that move nothing."""
        self.gross += [self.gross[-1]] * events


@dataclass(slots=True)
class Held:
    """A hold: both sides of it, and what became of it."""

    sides: list[tuple[str, str]]
    asset: str
    amount: int
    captured: int = 0
    released: int = 0
    expired: int = 0
    is_due: bool = False

    @property
    def left(self) -> int:
        return self.amount - self.captured - self.released - self.expired

    @property
    def state(self) -> str:
        if self.left:
            return "open"
        return "captured" if self.captured else "expired" if self.expired else "released"


@dataclass(slots=True)
class Posted:
    """A transaction that can be reversed: its entries by number, and how much of each was taken back."""

    kind: str
    entries: list[tuple[str, str, int]]
    reversed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reversed = [0] * len(self.entries)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command did: its name, each stream's version and each account's balance right after it."""

    name: str
    versions: dict[str, int]
    balances: dict[str, tuple[str, str, str, int]]
    replayed: bool = False


@dataclass(slots=True)
class Model:
    """A ledger."""

    accounts: dict[str, Account] = field(default_factory=dict)
    assets: dict[str, int] = field(default_factory=dict)
    known: dict[tuple[str, str], tuple[Request, Answer]] = field(default_factory=dict)
    """Scope and key → what was asked under them, and the answer."""

    holds: dict[str, Held] = field(default_factory=dict)
    transactions: dict[str, Posted] = field(default_factory=dict)
    trips: dict[str, list[str]] = field(default_factory=dict)
    """Subject → the states that it was in."""

    closed: list[datetime] = field(default_factory=list)
    count: int = 0

    def handle(
        self, requests: Sequence[Request], *, scope: str = "", atomic: bool = False, dry_run: bool = False
    ) -> list[Answer | Rejection]:
        """Carry out commands in order; each sees what the ones before it did."""
        expired = copy.deepcopy(self)
        expired.expire_for(requests)
        tried = copy.deepcopy(expired)
        outcomes = [tried.outcome(request, scope) for request in requests]
        if not dry_run:
            self.become(expired)
        failed = next((index for index, outcome in enumerate(outcomes) if isinstance(outcome, Rejection)), None)
        if atomic and failed is not None:
            together = Rejection("atomic_batch", index=failed)
            done = {answer.name for _, answer in self.known.values()}
            return [
                outcome if isinstance(outcome, Rejection) or (outcome.replayed and outcome.name in done) else together
                for outcome in outcomes
            ]
        if not dry_run:
            self.become(tried)
        return outcomes

    def become(self, other: Model) -> None:
        """Be as another one is."""
        for name in Model.__slots__:
            setattr(self, name, getattr(other, name))

    def touched(self, request: Request) -> Iterable[str]:
        """The accounts that a command is about."""
        yield from request.get("expected_versions", {})
        yield from (request[name] for name in ("account", "against", "debit", "credit") if name in request)
        yield from (entry["account"] for entry in request.get("entries", ()))
        original = request.get("hold") or request.get("transaction_id")
        if original in self.holds:
            yield from (name for name, _ in self.holds[original].sides)
        if original in self.transactions:
            yield from (name for name, _, _ in self.transactions[original].entries)

    def expire_for(self, requests: Sequence[Request]) -> None:
        """
        Expire what is due on the accounts that these are about, for good, whatever becomes of them.

        Not what the first of them expire themselves; and where they do nothing else, nothing.
        """
        expiries = list(takewhile(lambda request: request["type"] == "expire_hold", requests))
        if len(expiries) < len(requests):
            named = {request["hold"] for request in expiries}
            self.expire((name for request in requests for name in self.touched(request)), named)

    def expire(self, names: Iterable[str], but: Collection[str] = ()) -> int:
        """Expire what is due on these accounts; how many."""
        touched, expired = set(names), 0
        for hold, held in self.holds.items():
            if hold not in but and held.is_due and held.left and touched & {name for name, _ in held.sides}:
                for name, direction in held.sides:
                    self.accounts[name].move(direction, 0, -held.left)
                held.expired, expired = held.left, expired + 1
                self.count += 1
        return expired

    def version(self, stream: str) -> int:
        """The version of a stream; 0 where there is none."""
        if stream == LEDGER:
            return len(self.assets) + len(self.closed)
        return self.accounts[stream].version if stream in self.accounts else 0

    def trial_balance(self) -> set[tuple[str, str, int, str, str]]:
        """Asset, type, number of accounts, debits and credits of each line."""
        lines: dict[tuple[str, str], list[Gross]] = {}
        for account in self.accounts.values():
            lines.setdefault((account.asset, account.type), []).append(account.gross[-1])
        trial = set()
        for (asset, kind), gross in lines.items():
            sides = list(zip(*gross, strict=True))
            debits, credits = (printed(sum(side), asset, self.assets[asset]) for side in sides[:2])
            trial.add((asset, kind, len(gross), debits, credits))
        return trial

    def outcome(self, request: Request, scope: str) -> Answer | Rejection:
        """Carry out one command, or say why not."""
        key = request.get("idempotency_key")
        try:
            if key is not None and (scope, key) in self.known:
                return self._recalled(request, *self.known[scope, key])
            streams = RULES[request["type"]](self, request)
        except Rejection as rejection:
            return rejection
        self.count += 1
        names = [name for name in streams if name in self.accounts]
        answer = Answer(
            self.next_name(0),
            {stream: self._version_of(stream) for stream in streams},
            {name: (*self.accounts[name].balance(), self.accounts[name].version) for name in names},
        )
        if key is not None:
            self.known[scope, key] = (request, answer)
        return answer

    def next_name(self, ahead: int = 1) -> str:
        """What the transaction that is being made is called."""
        return f"@{self.count + ahead}"

    def _version_of(self, stream: str) -> int:
        return len(self.trips[stream[6:]]) if stream.startswith("#trip/") else self.version(stream)

    def _recalled(self, request: Request, earlier: Request, answer: Answer) -> Answer:
        now, then = fingerprint(request), fingerprint(earlier)
        differing = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        if differing:
            raise Rejection("idempotency_conflict", key=request["idempotency_key"], differing=differing)
        return Answer(answer.name, answer.versions, answer.balances, replayed=True)

    def check_known(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.accounts:
                raise Rejection("unknown_account", account=name)

    def check_open_for(self, names: Sequence[str], event: str, request: Request) -> None:
        """The rules about accounts, before those about amounts."""
        self.check_known(names)
        self.check_period(request.get("effective_at"))
        for name in names:
            state = self.accounts[name].state
            if state != "open" and not (state == "frozen" and event in MAY_WHILE_FROZEN):
                raise Rejection("account_not_open", account=name, state=state)
        self.check_versions(request)

    def check_period(self, effective_at: str | None) -> None:
        if effective_at is not None and self.closed and moment(effective_at) < self.closed[-1]:
            facts = {"effective_at": told(moment(effective_at)), "closed_until": told(self.closed[-1])}
            raise Rejection("period_closed", **facts)

    def check_versions(self, request: Request) -> None:
        for name in request.get("expected_versions", {}):
            if name in self.accounts and self.accounts[name].streams > 1:
                raise Rejection("striped_account", account=name)
        for name, expected in request.get("expected_versions", {}).items():
            if self.version(name) != expected:
                raise Rejection("version_conflict", account=name, expected=expected, actual=self.version(name))

    def check_digits(self, turnovers: Mapping[str, list[int]], pair: int = 0) -> None:
        for name, (debits, credits) in turnovers.items():
            gross = self.accounts[name].gross[-1]
            if max(gross[pair] + debits, gross[pair + 1] + credits) > MINOR_MAX:
                raise Rejection("invalid_amount")

    def check_limits(self, turnovers: Mapping[str, list[int]]) -> None:
        """The first rule for all accounts before the second, by what the whole transaction does to each."""
        for name, (debits, credits) in turnovers.items():
            its = self.accounts[name]
            change = debits - credits if its.type in GROWS_BY_DEBIT else credits - debits
            posted_in, posted_out, _, pending_out = its.normal(its.gross[-1])
            if its.lowest is not None and change < 0:
                free = posted_in - posted_out - pending_out - its.lowest
                if free + change < 0:
                    facts = (printed(each, its.asset, its.scale) for each in (free, -change, its.lowest))
                    names = ("available", "required", "minimum")
                    raise Rejection("insufficient_funds", account=name, **dict(zip(names, facts, strict=True)))
        for name, (debits, credits) in turnovers.items():
            its = self.accounts[name]
            change = debits - credits if its.type in GROWS_BY_DEBIT else credits - debits
            posted_in, posted_out, pending_in, _ = its.normal(its.gross[-1])
            after = posted_in - posted_out + pending_in + change
            if its.highest is not None and change > 0 and after > its.highest:
                reached, maximum = (printed(each, its.asset, its.scale) for each in (after, its.highest))
                raise Rejection("limit_exceeded", account=name, balance=reached, maximum=maximum)

    def check_balanced(self, legs: Sequence[Leg], amounts: Sequence[int]) -> None:
        for asset in dict.fromkeys(asset_of(amount) for _, _, amount in legs):
            sums = {"debit": 0, "credit": 0}
            for (_, direction, text), amount in zip(legs, amounts, strict=True):
                sums[direction] += amount if asset_of(text) == asset else 0
            if sums["debit"] != sums["credit"]:
                sides = {f"{side}s": printed(amount, asset, self.assets[asset]) for side, amount in sums.items()}
                raise Rejection("unbalanced_transaction", asset=asset, **sides)


def define_asset(model: Model, request: Request) -> list[str]:
    asset = request["asset"]
    scale = model.assets.get(asset, CURRENCIES.get(asset))
    if scale is not None:
        raise Rejection("asset_exists", asset=asset, scale=scale)
    model.check_versions(request)
    model.assets[asset] = request["scale"]
    return [LEDGER]


def open_account(model: Model, request: Request) -> list[str]:
    name, asset = request["account"], request["asset"]
    scale = model.assets.get(asset, CURRENCIES.get(asset))
    if scale is None:
        raise Rejection("unknown_asset", asset=asset)
    if name in model.accounts:
        raise Rejection("account_exists", account=name)
    model.check_versions(request)
    limits = [request.get("min_balance"), request.get("max_balance")]
    lowest, highest = [None if limit is None else minor_units(limit, scale) for limit in limits]
    streams = [name]
    if asset not in model.assets:
        model.assets[asset] = scale
        streams = [LEDGER, name]
    its = model.accounts[name] = Account(request["account_type"], asset, scale, lowest, highest)
    its.streams = request.get("stripes", 1)
    if its.streams > 1:
        its.stay(2 * its.streams - 1)
    return streams


def change_account(model: Model, request: Request) -> list[str]:
    name = request["account"]
    model.check_known([name])
    its = model.accounts[name]
    if its.state == "closed":
        raise Rejection("account_not_open", account=name, state=its.state)
    streams = max(its.streams, request.get("stripes", 1))
    if streams > 1:
        for limit, until_now in ((request.get("min_balance"), its.lowest), (request.get("max_balance"), its.highest)):
            if limit != "unlimited" and (limit, until_now) != (None, None):
                raise Rejection("striped_account", account=name)
    model.check_versions(request)
    limits = []
    for field_name, until_now in (("min_balance", its.lowest), ("max_balance", its.highest)):
        limit = request.get(field_name)
        if limit not in (None, "unlimited") and asset_of(limit) != its.asset:
            raise Rejection("asset_mismatch", account=name, expected=its.asset, actual=asset_of(limit))
        limits.append(until_now if limit is None else None if limit == "unlimited" else minor_units(limit, its.scale))
    if None not in limits and limits[1] < limits[0]:  # type: ignore[operator]
        raise Rejection("invalid_amount")
    its.lowest, its.highest = limits
    if request.keys() & {"min_balance", "max_balance", "metadata"}:
        its.stay(its.streams)
    if "stripes" in request:
        its.stay((streams - its.streams) * (1 if its.state == "open" else 2) + streams)
        its.streams = streams
    return [name]


def change_state(model: Model, request: Request) -> list[str]:
    name, event = request["account"], request["type"].removesuffix("_account")
    model.check_known([name])
    its = model.accounts[name]
    state = ACCOUNT_STEPS.get((its.state, event))
    if state is None:
        raise Rejection("transition_refused", machine="account", state=its.state, event=event, stream=name)
    model.check_versions(request)
    posted_in, posted_out, pending_in, pending_out = its.normal(its.gross[-1])
    if event == "close" and (posted_in != posted_out or pending_in or pending_out):
        amounts = (posted_in - posted_out, pending_in + pending_out)
        balance, held = (printed(each, its.asset, its.scale) for each in amounts)
        raise Rejection("account_not_empty", account=name, balance=balance, held=held)
    its.state = state
    its.stay(its.streams)
    return [name]


def post(model: Model, request: Request) -> list[str]:
    return post_legs(
        model, request, [(entry["account"], entry["direction"], entry["amount"]) for entry in request["entries"]]
    )


def transfer(model: Model, request: Request) -> list[str]:
    return post_legs(model, request, two_legs(request["debit"], request["credit"], request["amount"]))


def raise_or_lower(model: Model, request: Request) -> list[str]:
    account, against = request["account"], request["against"]
    model.check_known([account, against])
    by_debit = model.accounts[account].type in GROWS_BY_DEBIT
    debited, credited = (account, against) if by_debit == (request["type"] == "deposit") else (against, account)
    return post_legs(model, request, two_legs(debited, credited, request["amount"]))


def post_legs(model: Model, request: Request, legs: Sequence[Leg]) -> list[str]:
    amounts = judged(model, request, legs, "post")
    for (name, direction, _), minor in zip(legs, amounts, strict=True):
        model.accounts[name].move(direction, minor, 0)
    entries = [(name, direction, minor) for (name, direction, _), minor in zip(legs, amounts, strict=True)]
    model.transactions[model.next_name()] = Posted(request["type"], entries)
    return [name for name, _, _ in legs]


def judged(model: Model, request: Request, legs: Sequence[Leg], event: str) -> list[int]:
    """The amounts in minor units, if all rules let them through."""
    model.check_open_for([name for name, _, _ in legs], event, request)
    if event == "hold" and request.get("expires_at", "9") < "2026":
        raise Rejection("hold_not_open", state="expired")
    amounts = []
    turnovers: dict[str, list[int]] = {}
    for name, direction, amount in legs:
        its, minor = model.accounts[name], 0
        if asset_of(amount) == its.asset:
            minor = minor_units(amount, its.scale)
            turnovers.setdefault(name, [0, 0])[direction == "credit"] += minor
        amounts.append(minor)
    model.check_digits(turnovers, pair=2 if event == "hold" else 0)
    for name, _, amount in legs:
        expected = model.accounts[name].asset
        if asset_of(amount) != expected:
            raise Rejection("asset_mismatch", account=name, expected=expected, actual=asset_of(amount))
    model.check_balanced(legs, amounts)
    model.check_limits(turnovers)
    return amounts


def hold(model: Model, request: Request) -> list[str]:
    legs = two_legs(request["debit"], request["credit"], request["amount"])
    minor, _ = judged(model, request, legs, "hold")
    sides = [(name, direction) for name, direction, _ in legs]
    for name, direction in sides:
        model.accounts[name].move(direction, 0, minor)
    model.holds[model.next_name()] = Held(sides, asset_of(request["amount"]), minor)
    model.transactions[model.next_name()] = Posted("hold", [])
    return [name for name, _ in sides]


def capture_or_release(model: Model, request: Request) -> list[str]:
    held = model.holds.get(request["hold"])
    if held is None:
        raise Rejection("unknown_transaction", transaction_id=request["hold"], kind="hold")
    names = [name for name, _ in held.sides]
    model.check_open_for(names, request["type"], request)
    if not held.left:
        raise Rejection("hold_not_open", state=held.state)
    its = model.accounts[names[0]]
    amount = held.left
    if "amount" in request:
        if asset_of(request["amount"]) != held.asset:
            facts = {"expected": held.asset, "actual": asset_of(request["amount"])}
            raise Rejection("asset_mismatch", account=names[0], **facts)
        amount = minor_units(request["amount"], its.scale)
    captures = request["type"] == "capture"
    if captures:
        model.check_digits({name: [amount, 0] if side == "debit" else [0, amount] for name, side in held.sides})
    check_rest(request["hold"], held.left, amount, its)
    for name, direction in held.sides:
        model.accounts[name].move(direction, amount if captures else 0, -amount)
    if captures:
        held.captured += amount
        entries = [(name, direction, amount) for name, direction in held.sides]
        model.transactions[model.next_name()] = Posted("capture", entries)
        if request.get("final") and held.left:
            for name, direction in held.sides:
                model.accounts[name].move(direction, 0, -held.left)
            held.released += held.left
    else:
        held.released += amount
        model.transactions[model.next_name()] = Posted("release", [])
    return names


def expire_hold(model: Model, request: Request) -> list[str]:
    held = model.holds.get(request["hold"])
    if held is None:
        raise Rejection("unknown_transaction", transaction_id=request["hold"], kind="hold")
    names = [name for name, _ in held.sides]
    model.check_open_for(names, "expire", request)
    if not held.left:
        raise Rejection("hold_not_open", state=held.state)
    if not held.is_due:
        raise Rejection("hold_not_due")
    left = held.left
    for name, direction in held.sides:
        model.accounts[name].move(direction, 0, -left)
    held.expired = left
    model.transactions[model.next_name()] = Posted("expire_hold", [])
    return names


def check_rest(reference: str, left: int, amount: int, its: Account) -> None:
    if amount > left:
        facts = {"left": printed(left, its.asset, its.scale), "required": printed(amount, its.asset, its.scale)}
        raise Rejection("exceeds_rest", transaction_id=reference, **facts)


def reverse(model: Model, request: Request) -> list[str]:
    name = request["transaction_id"]
    original = model.transactions.get(name)
    if original is None:
        raise Rejection("unknown_transaction", transaction_id=name, kind="transaction")
    names = [account for account, _, _ in original.entries]
    model.check_open_for(names, "reverse", request)
    if original.kind == "reverse" or not original.entries:
        raise Rejection("not_reversible", transaction_id=name)
    parts = parts_of(model, request, original)
    turnovers: dict[str, list[int]] = {}
    for (account, direction, _), part in zip(original.entries, parts, strict=True):
        turnovers.setdefault(account, [0, 0])[direction == "debit"] += part
    model.check_digits(turnovers)
    if not request.get("force"):
        model.check_limits(turnovers)
    entries = []
    for number, ((account, direction, _), part) in enumerate(zip(original.entries, parts, strict=True)):
        opposite = "credit" if direction == "debit" else "debit"
        model.accounts[account].move(opposite, part, 0)
        original.reversed[number] += part
        entries.append((account, opposite, part))
    model.transactions[model.next_name()] = Posted("reverse", entries)
    return names


def parts_of(model: Model, request: Request, original: Posted) -> list[int]:
    """How much of each entry is taken back."""
    first = model.accounts[original.entries[0][0]]
    left = [minor - back for (_, _, minor), back in zip(original.entries, original.reversed, strict=True)]
    if "amount" not in request:
        if not all(left):
            facts = {"left": printed(0, first.asset, first.scale), "required": "any amount"}
            raise Rejection("exceeds_rest", transaction_id=request["transaction_id"], **facts)
        return left
    assets = {model.accounts[account].asset for account, _, _ in original.entries}
    asked = asset_of(request["amount"])
    if len(assets) > 1:
        raise Rejection("invalid_amount")
    if assets != {asked}:
        account = original.entries[0][0]
        raise Rejection("asset_mismatch", account=account, expected=first.asset, actual=asked)
    amount = minor_units(request["amount"], first.scale)
    debited = sum(minor for _, direction, minor in original.entries if direction == "debit")
    shares = [Fraction(minor * amount, debited) for _, _, minor in original.entries]
    if any(share.denominator != 1 for share in shares):
        raise Rejection("invalid_amount")
    debits = zip(original.entries, left, strict=True)
    rest = sum(each for (_, direction, _), each in debits if direction == "debit")
    check_rest(request["transaction_id"], rest, amount, first)
    return [int(share) for share in shares]


def close_period(model: Model, request: Request) -> list[str]:
    until = moment(request["until"])
    model.check_period(request["until"])
    if model.closed and until == model.closed[-1]:
        raise Rejection("period_closed", effective_at=told(until), closed_until=told(until))
    if until.year > 2900:
        raise Rejection("period_not_over", until=told(until), possible_from=told(until + SETTLING))
    model.check_versions(request)
    model.closed.append(until)
    return [LEDGER]


def begin(model: Model, request: Request) -> list[str]:
    check_machine(request)
    subject = request["subject"]
    if subject in model.trips:
        raise Rejection("stream_exists", machine="trip", subject=subject, state=model.trips[subject][-1])
    model.check_versions(request)
    model.trips[subject] = ["requested"]
    return [f"#trip/{subject}"]


def advance(model: Model, request: Request) -> list[str]:
    check_machine(request)
    subject, event = request["subject"], request["event"]
    if subject not in model.trips:
        raise Rejection("unknown_stream", machine="trip", subject=subject)
    state = model.trips[subject][-1]
    target = TRIP.get((state, event))
    if target is None:
        raise Rejection("transition_refused", machine="trip", state=state, event=event, stream=subject)
    model.check_versions(request)
    model.trips[subject].append(target)
    return [f"#trip/{subject}"]


def check_machine(request: Request) -> None:
    if request["machine"] != "trip":
        raise Rejection("unknown_machine", machine=request["machine"])


RULES: Final = {
    "define_asset": define_asset,
    "open_account": open_account,
    "change_account": change_account,
    "freeze": change_state,
    "unfreeze": change_state,
    "close_account": change_state,
    "post": post,
    "transfer": transfer,
    "deposit": raise_or_lower,
    "withdraw": raise_or_lower,
    "hold": hold,
    "capture": capture_or_release,
    "release": capture_or_release,
    "expire_hold": expire_hold,
    "reverse": reverse,
    "close_period": close_period,
    "begin": begin,
    "advance": advance,
}


def two_legs(debited: str, credited: str, amount: str) -> list[Leg]:
    return [(debited, "debit", amount), (credited, "credit", amount)]


def asset_of(amount: str) -> str:
    return amount.split(" ")[1]


def minor_units(amount: str, scale: int) -> int:
    """An amount in minor units; one that is not whole in them, or has more than 38 digits, is not valid."""
    number, _ = amount.split(" ")
    whole, _, decimals = number.partition(".")
    minor, rest = divmod(int(whole + decimals) * int(10**scale), int(10 ** len(decimals)))
    if rest or abs(minor) > MINOR_MAX:
        raise Rejection("invalid_amount")
    return minor


def printed(minor: int, asset: str, scale: int) -> str:
    """An amount of minor units as people write it."""
    whole, decimals = divmod(abs(minor), 10**scale)
    point = f".{decimals:0{scale}}" if scale else ""
    return f"{'-' if minor < 0 else ''}{whole}{point} {asset}"


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def told(at: datetime) -> str:
    """A time as the ledger writes it."""
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def fingerprint(request: Request) -> dict[str, Any]:
    """What an idempotency key stands for; the same amount is the same however it is written."""
    asked = {name: value for name, value in request.items() if name not in NOT_FINGERPRINTED}
    for name in ("amount", "min_balance", "max_balance"):
        if name in asked:
            asked[name] = _exact(asked[name])
    if "entries" in asked:
        asked["entries"] = [{**entry, "amount": _exact(entry["amount"])} for entry in asked["entries"]]
    return asked


def _exact(amount: str) -> object:
    number, _, asset = amount.partition(" ")
    return (Fraction(number), asset) if asset else amount
