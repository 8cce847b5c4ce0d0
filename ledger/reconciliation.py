"""Reconciliation: an account compared with what its bank says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final

from ledger.audit.bank_statement import Currency
from ledger.audit.camt053 import read_camt053
from ledger.audit.csv_statement import CsvProfile, read_csv
from ledger.audit.matching import Match, Matched, Rules, key, match
from ledger.audit.reconciled import Gap, Reconciliation, Settled, rules_json
from ledger.core.book import Terms
from ledger.core.commands import Direction
from ledger.core.errors import InvalidCommand
from ledger.core.events import stripes_of
from ledger.desk import MIRRORED, SAME, ReconciliationDesk, overtaking, said, sign_of
from ledger.storage import reconciliations
from ledger.storage.database import Connection, Database
from ledger.storage.queries import AccountLine
from ledger.storage.reconciliations import (
    OPEN_MAX,
    OURS,
    THEIRS,
    BankStatement,
    Decision,
    Item,
    NewDecision,
    OurRow,
    Staged,
    Window,
)

FORMATS: Final = ("camt.053", "csv")
NAMES: Final = ("reference", "idempotency_key", "transaction_id")

_METADATA: Final = "metadata:"
_IBAN: Final = "iban"
_BY_HAND: Final = 2
"""The generation from which on only a person matches an entry: one has taken apart what a rule had matched."""

_PIN: Final = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,16}){0,255})@([0-9]{1,16})")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be compared, and how."""

    account: str
    terms: Terms
    statement: BankStatement
    sides: str | None
    since: date | None
    rules: Mapping[str, Any]
    """Those that are given."""

    actor: str
    pin: tuple[Sequence[int], int] | None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What log, statements and decisions say, from one snapshot."""

    statement_id: str
    place: str
    sides: str
    recognised: bool
    begins_on: date
    rules: Rules
    window: Window
    chain: Sequence[Staged]
    before: int
    balance: int
    ours: Sequence[Item]
    theirs: Sequence[Item]
    settled: Sequence[Decision]


class Reconciliations:
    """The methods of `Ledger` that compare an account with what others say of it."""

    _database: Database

    def account(self, account: str) -> AccountLine:
        """An account with its terms and its balance."""
        raise NotImplementedError

    def reconcile(
        self,
        account: str,
        statement: Path | str,
        *,
        actor: str,
        format: str | None = None,
        profile: CsvProfile | None = None,
        opening: str | None = None,
        closing: str | None = None,
        opens_on: date | None = None,
        closes_on: date | None = None,
        statement_id: str | None = None,
        account_number: str | None = None,
        sides: str | None = None,
        since: date | None = None,
        names: Sequence[str] | None = None,
        days: int | None = None,
        several: int | None = None,
        pin: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Reconciliation:
        """
        Compare an account with a statement: keep it, match what is the same without a doubt, and report what is left.

        The file is camt.053, or CSV as `profile` declares it, with its `opening` and `closing` balances in whole units.
        Of several statements in it one is chosen by `statement_id` or `account_number`, which is else the account's
        metadata `iban`.  Ours are found by the `names` of their transactions: reference, idempotency_key,
        transaction_id, or metadata:KEY; by reference, unless it is said.  Entries are matched within so many `days`
        (3), and up to `several` (5) with one.

        `sides` says whether the bank's credit is our debit (mirrored) or our credit (same); unless it is said, accounts
        that grow on the debit side are mirrored, and the others the same.  `since` is the day on which the first
        reconciliation begins, if not with its statement: what is older is covered by its opening balance.

        The same statement again is known by its id or contents.  `pin` asks for a report as it was, by the
        rules that are recorded with it, and decides nothing; neither does `dry_run`, which is the answer of today.
        `progress` is called with the number of entries read from camt.053 so far.

        Raises:
            BrokenStatement: The file cannot be read, contradicts itself, or is of another currency.
            InvalidCommand: It is not the one that is asked for, or an option is none.
            UnknownAccount: There is no such account.
            ConcurrencyError: Others decide about this account faster than it can be compared.
            OSError: The file cannot be read.
        """
        line = self.account(account)
        read = _read(
            line,
            Path(statement),
            format=format,
            profile=profile,
            bounds=(opening, closing),
            days=(opens_on, closes_on),
            statement_id=statement_id,
            account_number=account_number,
            progress=progress,
        )
        asked = _Asked(
            account,
            line.terms,
            read,
            _checked_sides(sides),
            since,
            _given(days, several, names),
            said("actor", actor),
            None if pin is None else _parsed_pin(pin),
        )
        return overtaking(account, lambda: self._reconcile(asked, dry_run=dry_run))

    def reconciliation(self, account: str) -> ReconciliationDesk:
        """Where people decide about the entries of an account that no rule could match."""
        return ReconciliationDesk(self._database, account, self.account(account).terms)

    def _reconcile(self, asked: _Asked, *, dry_run: bool) -> Reconciliation:
        with self._database.connection() as connection, connection.transaction(read_only=True, unbounded=True):
            seen = _look(connection, asked)
        # Outside of any transaction: whoever else writes waits for nothing, however long it takes.
        found = match(_to_match(seen.ours), _to_match(seen.theirs), seen.rules)
        if asked.pin is not None:
            # Whatever was left then is left: what is found now would be a decision of today.
            found.matches = []
        new = [_decided(each, seen, asked.actor) for each in found.matches]
        report = _report(asked, seen, found, new)
        if dry_run or asked.pin is not None:
            return report
        with self._database.connection() as connection, connection.transaction(unbounded=True):
            if not seen.recognised:
                reconciliations.stage(
                    connection,
                    asked.account,
                    asked.statement,
                    sides=seen.sides,
                    begins_on=seen.begins_on,
                    actor=asked.actor,
                )
            reconciliations.decide(connection, asked.account, seen.window.decision, new)
            reconciliations.record(
                connection,
                asked.account,
                seen.statement_id,
                pin=report.pin,
                rules=rules_json(seen.rules),
                reconciled=report.reconciled,
                report_sha256=bytes.fromhex(report.sha256),
                actor=asked.actor,
            )
        return report


def _read(
    line: AccountLine,
    path: Path,
    *,
    format: str | None,
    profile: CsvProfile | None,
    bounds: tuple[str | None, str | None],
    days: tuple[date | None, date | None],
    statement_id: str | None,
    account_number: str | None,
    progress: Callable[[int], None] | None,
) -> BankStatement:
    """The statement in a file, for an account."""
    currency = Currency(line.terms.asset, line.terms.scale)
    kind = format or _format_of(path)
    if kind not in FORMATS:
        raise InvalidCommand("format", f"{kind!r} is none of {', '.join(FORMATS)}")
    if kind == "camt.053":
        number = account_number or json.loads(line.terms.metadata).get(_IBAN)
        asked = None if number is None else str(number)
        return read_camt053(path, currency, statement_id=statement_id, account_number=asked, progress=progress)
    opening, closing = bounds
    if profile is None or opening is None or closing is None:
        raise InvalidCommand("statement", "of CSV the columns and both balances are declared")
    return read_csv(
        path,
        currency,
        profile,
        statement_id=statement_id,
        opening=opening,
        closing=closing,
        opens_on=days[0],
        closes_on=days[1],
    )


def _look(connection: Connection, asked: _Asked) -> _Seen:
    """Everything that the comparison needs, as of the pin, or of now."""
    account, terms, statement = asked.account, asked.terms, asked.statement
    kept = reconciliations.statements(connection, account)
    known = _recognised(kept, statement)
    if known is None and asked.pin is not None:
        raise InvalidCommand("pin", f"statement {statement.statement_id} was never reconciled with account {account}")
    sides = asked.sides or _usual_sides(kept, terms) if known is None else known.sides
    if known is not None and asked.sides not in (None, known.sides):
        raise InvalidCommand("sides", f"statement {known.statement_id} was reconciled as {known.sides}")
    begins_on = min(asked.since or statement.opens_on, statement.opens_on)
    new = Staged(
        *(statement.statement_id, statement.place, statement.digest, sides, begins_on),
        *(statement.opens_on, statement.closes_on, statement.opening, statement.closing),
    )
    this = known or new
    chain = [each for each in kept if (each.place, each.statement_id) < (this.place, this.statement_id)] + [this]
    rules = _rules(connection, asked, this.statement_id)
    window = _window(connection, asked, chain)
    signs = {each.statement_id: sign_of(each.sides, terms.normal) for each in chain}
    before, balance = reconciliations.balances(connection, window)
    ours = [_named(row, rules.names) for row in reconciliations.open_ours(connection, window, this.place)]
    theirs = reconciliations.open_theirs(connection, window, signs, this.place)
    if known is None:
        theirs += [
            Item(THEIRS, this.statement_id, each.number, each.booked_on, each.amount * signs[this.statement_id],
                 each.names, each.description)
            for each in statement.entries
        ]  # fmt: skip
    # In one order, whether they were kept before or are from the file.
    theirs.sort(key=lambda item: (item.day, item.origin, item.number))
    for side, items in ((OURS, ours), (THEIRS, theirs)):
        if len(items) > OPEN_MAX:
            raise InvalidCommand("since", f"more than {OPEN_MAX:,} entries of {side} are open; begin later")
    settled = reconciliations.matches(connection, window, this.statement_id, this.place) if known else []
    return _Seen(
        this.statement_id, this.place, sides, known is not None, this.begins_on, rules, window, chain, before, balance,
        ours, theirs, settled,
    )  # fmt: skip


def _recognised(kept: Sequence[Staged], statement: BankStatement) -> Staged | None:
    """The statement as it was kept before, under this id or another."""
    digest = statement.digest
    for each in kept:
        if each.statement_id == statement.statement_id and each.digest != digest:
            raise InvalidCommand(
                "statement",
                f"{each.statement_id} was read before with other contents ({each.opens_on} to {each.closes_on});"
                " a statement never changes: give a corrected one an id of its own",
            )
    return next((each for each in kept if each.digest == digest), None)


def _usual_sides(kept: Sequence[Staged], terms: Terms) -> str:
    """As the last statement was; else so that a credit of the bank raises the account."""
    if kept:
        return kept[-1].sides
    return MIRRORED if terms.normal is Direction.DEBIT else SAME


def _window(connection: Connection, asked: _Asked, chain: Sequence[Staged]) -> Window:
    streams = stripes_of(asked.account, asked.terms.streams)
    if asked.pin is None:
        versions: Sequence[int] = reconciliations.heads(connection, streams)
        decision = reconciliations.last_decision(connection, asked.account)
    else:
        versions, decision = asked.pin
        if len(versions) > len(streams):
            raise InvalidCommand("pin", f"account {asked.account} has {len(streams)} streams, not {len(versions)}")
        _check_pin(connection, asked.account, streams, asked.pin)
        versions = [*versions, *[0] * (len(streams) - len(versions))]
    since, until = chain[0].begins_on, chain[-1].closes_on + timedelta(days=1)
    return Window(
        asked.account, streams, versions, decision, _midnight(since), _midnight(until), asked.terms.normal.value
    )


def _check_pin(connection: Connection, account: str, streams: Sequence[str], pin: tuple[Sequence[int], int]) -> None:
    """What is yet to come is no report that was: it would be another one then."""
    versions, decision = pin
    for stream, version, head in zip(streams, versions, reconciliations.heads(connection, streams), strict=False):
        if version > head:
            raise InvalidCommand("pin", f"it is of version {version} of {stream}, which is at {head}")
    last = reconciliations.last_decision(connection, account)
    if decision > last:
        raise InvalidCommand("pin", f"it is of decision {decision} about {account}, and the last one is {last}")


def _rules(connection: Connection, asked: _Asked, statement_id: str) -> Rules:
    """Those that are given; of a report that was, those by which it was made."""
    given = Rules(**asked.rules)
    if asked.pin is None:
        return given
    pin = _pin_of(*asked.pin)
    found = reconciliations.rules(connection, asked.account, statement_id, pin)
    made = [Rules(each["days"], each["several"], tuple(each["names"])) for each in found]
    fitting = [each for each in made if asked.rules.items() <= each._asdict().items()]
    if made and len(fitting) != 1:
        said = " and ".join(f"{each.days} days, {each.several} several, by {', '.join(each.names)}" for each in made)
        problem = "reports by several rules; say by which" if fitting else "a report by other rules"
        raise InvalidCommand("pin", f"{pin} is of {problem}: {said}")
    return fitting[0] if made else given


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _named(row: OurRow, names: Sequence[str]) -> Item:
    """An entry of ours with what its transaction is called."""
    metadata = json.loads(row.metadata) if row.metadata is not None else {}
    called = {
        "reference": row.reference,
        "idempotency_key": row.idempotency_key,
        "transaction_id": row.transaction_id,
    }
    told = [metadata.get(name.removeprefix(_METADATA)) if name not in called else called[name] for name in names]
    texts = [" ".join(str(each).split()) for each in told if each is not None]
    return row.item._replace(names=tuple(dict.fromkeys(text for text in texts if text)), description=row.transaction_id)


def _to_match(items: Iterable[Item]) -> list[Item]:
    return [item for item in items if not item.later and item.generation < _BY_HAND]


def _decided(found: Match, seen: _Seen, actor: str) -> NewDecision:
    places = {each.statement_id: each.place for each in seen.chain}
    settled = max([*(item.day.isoformat() for item in found.ours), *(places[item.origin] for item in found.theirs)])
    amount = sum(item.amount for item in found.theirs)
    return NewDecision("match", found.rule, amount, (*found.ours, *found.theirs), settled, actor)


def _report(asked: _Asked, seen: _Seen, found: Matched, new: Sequence[NewDecision]) -> Reconciliation:
    terms, window = asked.terms, seen.window
    gone = {key(item) for each in new for item in each.items}
    gone |= {key(item) for each in found.differing for item in (*each.ours, *each.theirs)}
    this = seen.chain[-1]
    settled = [
        Settled(each.number, each.rule, each.amount, _names(each.items[OURS]), _names(each.items[THEIRS]), each.actor)
        for each in seen.settled
    ]
    # As the same statement shows them later: what is matched of others before it is not in its report.
    settled += [
        Settled(number, each.rule, each.amount, _of(each, OURS), _of(each, THEIRS), each.actor)
        for number, each in enumerate(new, window.decision + 1)
        if any(item.origin == this.statement_id and item.side == THEIRS for item in each.items)
    ]
    return Reconciliation(
        account=asked.account,
        statement_id=this.statement_id,
        opens_on=this.opens_on,
        closes_on=this.closes_on,
        currency=Currency(terms.asset, terms.scale),
        sides=seen.sides,
        rules=seen.rules,
        pin=_pin_of(*(asked.pin or (window.versions, window.decision + len(new)))),
        ledger_balance=seen.balance,
        closing=this.closing * sign_of(this.sides, terms.normal),
        matched=settled,
        only_ours=[item for item in seen.ours if key(item) not in gone],
        only_theirs=[item for item in seen.theirs if key(item) not in gone],
        differing=found.differing,
        ambiguous=found.ambiguous,
        given_up=found.given_up,
        gaps=_gaps(seen, terms),
        left_out=asked.statement.left_out,
        found=len(new),
        recognised=seen.recognised,
    )


def _gaps(seen: _Seen, terms: Terms) -> list[Gap]:
    """Where a statement does not open with what is before it."""
    gaps, before = [], seen.before
    for each in seen.chain:
        sign = sign_of(each.sides, terms.normal)
        if each.opening * sign != before:
            gaps.append(Gap(each.statement_id, before, each.opening * sign))
        before = each.closing * sign
    return gaps


def _names(places: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(f"{origin}#{number}" for origin, number in places)


def _of(decision: NewDecision, side: str) -> tuple[str, ...]:
    return tuple(item.name for item in decision.items if item.side == side)


def _format_of(path: Path) -> str:
    """XML begins as XML does; else it is what it is called."""
    with path.open("rb") as file:
        first = file.read(1024)
    if first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"<", b"\xff\xfe<", b"\xfe\xff\0<")):
        return "camt.053"
    if path.suffix.lower() == ".csv":
        return "csv"
    if path.suffix.lower() == ".xml":
        return "camt.053"
    raise InvalidCommand("format", f"{path.name} is neither XML nor called .csv: say which it is, {', '.join(FORMATS)}")


def _checked_sides(sides: str | None) -> str | None:
    if sides not in (None, MIRRORED, SAME):
        raise InvalidCommand("sides", f"{sides!r} is neither {MIRRORED} nor {SAME}")
    return sides


def _given(days: int | None, several: int | None, names: Sequence[str] | None) -> dict[str, Any]:
    """The rules that are given, and within the limits."""
    checked = None if names is None else _checked_names(names)
    given: dict[str, Any] = {
        name: value for name, value in (("days", days), ("several", several), ("names", checked)) if value is not None
    }
    Rules(**given).checked()
    return given


def _checked_names(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name not in NAMES and not (name.startswith(_METADATA) and len(name) > len(_METADATA)):
            raise InvalidCommand("names", f"{name!r} is none of {', '.join(NAMES)} or {_METADATA}KEY")
    return tuple(names)


def _pin_of(versions: Sequence[int], decision: int) -> str:
    return f"{'.'.join(map(str, versions))}@{decision}"


def _parsed_pin(pin: str) -> tuple[Sequence[int], int]:
    found = _PIN.fullmatch(pin)
    if found is None:
        raise InvalidCommand("pin", f"{pin[:80]!r} is not the pin of a report, as 12.7@5")
    return [int(each) for each in found[1].split(".")], int(found[2])
