"""
An executable model of the ledger: what each command must be answered with, in the simplest way that can be right.

It imports nothing from `ledger` and knows no database: there are dictionaries, lists and Python's own integers.
Commands come in the JSON form that the command line takes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, TypeAlias

Request: TypeAlias = Mapping[str, Any]

CURRENCIES: Final = {"USD": 2, "EUR": 2, "JPY": 0, "KWD": 3}
"""As many of ISO 4217 as the tests use."""

LEDGER: Final = "$ledger"
MINOR_MAX: Final = 10**38 - 1
GROWS_BY_DEBIT: Final = {"asset", "expense"}
NOT_FINGERPRINTED: Final = {"idempotency_key", "actor", "correlation_id", "causation_id", "expected_versions"}


class Rejection(Exception):
    """A rule said no: which one, and the facts behind it."""

    def __init__(self, reason: str, **facts: object) -> None:
        super().__init__(reason, facts)
        self.reason = reason
        self.facts = facts


@dataclass(slots=True)
class Account:
    """What an account was opened as, and its gross debits and credits after each version (the first is nothing)."""

    type: str
    asset: str
    scale: int
    lowest: int | None
    highest: int | None
    gross: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0), (0, 0)])

    @property
    def version(self) -> int:
        return len(self.gross) - 1

    def balance(self, version: int | None = None) -> str:
        """The balance in the normal direction, as it is printed."""
        return printed(self.net(*self.gross[-1 if version is None else version]), self.asset, self.scale)

    def net(self, debits: int, credits: int) -> int:
        return debits - credits if self.type in GROWS_BY_DEBIT else credits - debits


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command did: each stream's version and each account's balance right after it."""

    versions: dict[str, int]
    balances: dict[str, tuple[str, int]]
    replayed: bool = False


@dataclass(slots=True)
class Model:
    """A ledger."""

    accounts: dict[str, Account] = field(default_factory=dict)
    assets: dict[str, int] = field(default_factory=dict)
    known: dict[tuple[str, str], tuple[Request, Answer]] = field(default_factory=dict)
    """Scope and key → what was asked under them, and the answer."""

    def handle(
        self, requests: Sequence[Request], *, scope: str = "", atomic: bool = False, dry_run: bool = False
    ) -> list[Answer | Rejection]:
        """Carry out commands in order; each sees what the ones before it did."""
        tried = copy.deepcopy(self)
        outcomes = [tried.outcome(request, scope) for request in requests]
        failed = next((index for index, outcome in enumerate(outcomes) if isinstance(outcome, Rejection)), None)
        if atomic and failed is not None:
            together = Rejection("atomic_batch", index=failed)
            return [outcome if isinstance(outcome, Rejection) else together for outcome in outcomes]
        if not dry_run:
            self.accounts, self.assets, self.known = tried.accounts, tried.assets, tried.known
        return outcomes

    def version(self, stream: str) -> int:
        """The version of a stream; 0 where there is none."""
        if stream == LEDGER:
            return len(self.assets)
        return self.accounts[stream].version if stream in self.accounts else 0

    def trial_balance(self) -> set[tuple[str, str, int, str, str]]:
        """Asset, type, number of accounts, debits and credits of each line."""
        lines: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for account in self.accounts.values():
            lines.setdefault((account.asset, account.type), []).append(account.gross[-1])
        trial = set()
        for (asset, kind), gross in lines.items():
            debits, credits = (printed(sum(side), asset, self.assets[asset]) for side in zip(*gross, strict=True))
            trial.add((asset, kind, len(gross), debits, credits))
        return trial

    def outcome(self, request: Request, scope: str) -> Answer | Rejection:
        """Carry out one command, or say why not."""
        key = request.get("idempotency_key")
        try:
            if key is not None and (scope, key) in self.known:
                return self._recalled(request, *self.known[scope, key])
            answer = self._done(request)
        except Rejection as rejection:
            return rejection
        if key is not None:
            self.known[scope, key] = (request, answer)
        return answer

    def _recalled(self, request: Request, earlier: Request, answer: Answer) -> Answer:
        now, then = fingerprint(request), fingerprint(earlier)
        differing = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        if differing:
            raise Rejection("idempotency_conflict", key=request["idempotency_key"], differing=differing)
        return Answer(answer.versions, answer.balances, replayed=True)

    def _done(self, request: Request) -> Answer:
        match request["type"]:
            case "define_asset":
                return self._define_asset(request)
            case "open_account":
                return self._open_account(request)
            case "post":
                legs = [(entry["account"], entry["direction"], entry["amount"]) for entry in request["entries"]]
                return self._post(request, legs)
            case "transfer":
                return self._post(request, two_legs(request["debit"], request["credit"], request["amount"]))
            case _:
                return self._raise_or_lower(request)

    def _define_asset(self, request: Request) -> Answer:
        asset = request["asset"]
        scale = self.assets.get(asset, CURRENCIES.get(asset))
        if scale is not None:
            raise Rejection("asset_exists", asset=asset, scale=scale)
        self._check_versions(request)
        self.assets[asset] = request["scale"]
        return Answer({LEDGER: len(self.assets)}, {})

    def _open_account(self, request: Request) -> Answer:
        name, asset = request["account"], request["asset"]
        scale = self.assets.get(asset, CURRENCIES.get(asset))
        if scale is None:
            raise Rejection("unknown_asset", asset=asset)
        if name in self.accounts:
            raise Rejection("account_exists", account=name)
        self._check_versions(request)
        limits = [request.get("min_balance"), request.get("max_balance")]
        lowest, highest = [None if limit is None else minor_units(limit, scale) for limit in limits]
        versions = {}
        if asset not in self.assets:
            self.assets[asset] = scale
            versions[LEDGER] = len(self.assets)
        self.accounts[name] = Account(request["account_type"], asset, scale, lowest, highest)
        return Answer({**versions, name: 1}, {name: (self.accounts[name].balance(), 1)})

    def _raise_or_lower(self, request: Request) -> Answer:
        account, against = request["account"], request["against"]
        self._check_known([account, against])
        by_debit = self.accounts[account].type in GROWS_BY_DEBIT
        debited, credited = (account, against) if by_debit == (request["type"] == "deposit") else (against, account)
        return self._post(request, two_legs(debited, credited, request["amount"]))

    def _post(self, request: Request, legs: Sequence[tuple[str, str, str]]) -> Answer:
        self._check_known(name for name, _, _ in legs)
        self._check_versions(request)
        amounts = [self._minor(name, amount) for name, _, amount in legs]
        after = self._after(legs, amounts)
        if any(gross > MINOR_MAX for both in after.values() for gross in both):
            raise Rejection("invalid_amount")
        for name, _, amount in legs:
            expected = self.accounts[name].asset
            if asset_of(amount) != expected:
                raise Rejection("asset_mismatch", account=name, expected=expected, actual=asset_of(amount))
        self._check_balanced(legs, amounts)
        self._check_limits(after)
        for leg, minor in zip(legs, amounts, strict=True):
            self.accounts[leg[0]].gross.append(self._after([leg], [minor])[leg[0]])
        touched = {name: self.accounts[name] for name, _, _ in legs}
        return Answer(
            {name: account.version for name, account in touched.items()},
            {name: (account.balance(), account.version) for name, account in touched.items()},
        )

    def _check_known(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.accounts:
                raise Rejection("unknown_account", account=name)

    def _check_versions(self, request: Request) -> None:
        for name, expected in request.get("expected_versions", {}).items():
            if self.version(name) != expected:
                raise Rejection("version_conflict", account=name, expected=expected, actual=self.version(name))

    def _minor(self, name: str, amount: str) -> int:
        account = self.accounts[name]
        return minor_units(amount, account.scale) if asset_of(amount) == account.asset else 0

    def _check_balanced(self, legs: Sequence[tuple[str, str, str]], amounts: Sequence[int]) -> None:
        for asset in dict.fromkeys(asset_of(amount) for _, _, amount in legs):
            sums = {"debit": 0, "credit": 0}
            for (_, direction, text), amount in zip(legs, amounts, strict=True):
                sums[direction] += amount if asset_of(text) == asset else 0
            if sums["debit"] != sums["credit"]:
                sides = {f"{side}s": printed(amount, asset, self.assets[asset]) for side, amount in sums.items()}
                raise Rejection("unbalanced_transaction", asset=asset, **sides)

    def _after(self, legs: Sequence[tuple[str, str, str]], amounts: Sequence[int]) -> dict[str, tuple[int, int]]:
        """What the gross debits and credits of each account would be."""
        after: dict[str, tuple[int, int]] = {}
        for (name, direction, _), amount in zip(legs, amounts, strict=True):
            debits, credits = after.get(name, self.accounts[name].gross[-1])
            after[name] = (debits + amount, credits) if direction == "debit" else (debits, credits + amount)
        return after

    def _check_limits(self, after: Mapping[str, tuple[int, int]]) -> None:
        """The first rule for all accounts before the second, by what the whole transaction does to each."""
        for name, (debits, credits) in after.items():
            its = self.accounts[name]
            before, balance = its.net(*its.gross[-1]), its.net(debits, credits)
            if its.lowest is not None and balance < min(before, its.lowest):
                free, required, minimum = (
                    printed(each, its.asset, its.scale) for each in (before - its.lowest, before - balance, its.lowest)
                )
                raise Rejection("insufficient_funds", account=name, available=free, required=required, minimum=minimum)
        for name, (debits, credits) in after.items():
            its = self.accounts[name]
            before, balance = its.net(*its.gross[-1]), its.net(debits, credits)
            if its.highest is not None and balance > max(before, its.highest):
                reached, maximum = (printed(each, its.asset, its.scale) for each in (balance, its.highest))
                raise Rejection("limit_exceeded", account=name, balance=reached, maximum=maximum)


def two_legs(debited: str, credited: str, amount: str) -> list[tuple[str, str, str]]:
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


def fingerprint(request: Request) -> dict[str, Any]:
    """What an idempotency key stands for; the same amount is the same however it is written."""
    asked = {name: value for name, value in request.items() if name not in NOT_FINGERPRINTED}
    for name in ("amount", "min_balance", "max_balance"):
        if name in asked:
            asked[name] = _exact(asked[name])
    if "entries" in asked:
        asked["entries"] = [{**entry, "amount": _exact(entry["amount"])} for entry in asked["entries"]]
    return asked


def _exact(amount: str) -> tuple[Fraction, str]:
    number, asset = amount.split(" ")
    return Fraction(number), asset
