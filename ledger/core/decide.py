"""The rules.  Pure: the same command and the same book give the same answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from ledger.core.book import Book, Leg, Original, Stream, Terms, in_normal_direction, together
from ledger.core.canonical import utc_text
from ledger.core.commands import (
    Advance,
    Begin,
    Capture,
    ChangeAccount,
    CloseAccount,
    ClosePeriod,
    Command,
    DefineAsset,
    Deposit,
    ExpireHold,
    Freeze,
    Hold,
    OpenAccount,
    Post,
    Release,
    Reverse,
    Transfer,
    Unfreeze,
    Withdraw,
)
from ledger.core.errors import (
    AccountExists,
    AccountNotEmpty,
    AccountNotOpen,
    AssetExists,
    AssetMismatch,
    ExceedsRest,
    HoldNotDue,
    HoldNotOpen,
    IdempotencyConflict,
    InvalidAmount,
    NotReversible,
    PeriodIsClosed,
    PeriodNotOver,
    StreamExists,
    StripedAccount,
    TransitionRefused,
    UnbalancedTransaction,
    UnknownAccount,
    UnknownAsset,
    UnknownMachine,
    UnknownStream,
    UnknownTransaction,
    VersionConflict,
)
from ledger.core.events import (
    AccountOpened,
    AccountStateChanged,
    AccountTermsChanged,
    AssetDefined,
    EntryPosted,
    Event,
    HoldCaptured,
    HoldExpired,
    HoldPlaced,
    HoldReleased,
    PeriodClosed,
    StateAdvanced,
    StripesChanged,
    account_of,
    stripes_of,
)
from ledger.core.iso4217 import CURRENCIES
from ledger.core.lifecycle import ACCOUNT, HOLD, StateMachine
from ledger.core.money import Money
from ledger.core.turnover import CREDIT, DEBIT, Side, Turnover, turnovers_of

SETTLING: Final = timedelta(minutes=10)
"""How long after its end a period can be closed: longer than any write of ours may last."""


class Occasion(NamedTuple):
    """When a command is decided, and what the transaction that it makes will be called."""

    now: datetime
    transaction_id: str


def decide(command: Command, book: Book, occasion: Occasion) -> Sequence[Event]:
    """
    Decide what `command` makes happen, given the streams it touches.

    Nothing is recorded here: the caller appends the returned events, all or none, in the transaction
    that checks that `book` still holds.

    Raises:
        Rejected: A rule said no.  `Reason` lists the rules in checking order.
    """
    return _RULES[type(command)](command, book, occasion)


def recall(command: Command, recorded_request: str) -> None:
    """
    Check that `command` asks again for what its idempotency key was used for.

    Raises:
        IdempotencyConflict: It asks for something else; names the fields that differ.
    """
    if (request := command.request()) == recorded_request:
        return
    now, then = json.loads(request), json.loads(recorded_request)
    # As they are written: Python holds true and 1 to be equal.
    differing = sorted(name for name in now.keys() | then.keys() if repr(now.get(name)) != repr(then.get(name)))
    raise IdempotencyConflict(str(command.idempotency_key), differing)


def _define_asset(command: DefineAsset, book: Book, _: Occasion) -> Sequence[Event]:
    scale = book.assets.get(command.asset, CURRENCIES.get(command.asset))
    if scale is not None:
        raise AssetExists(command.asset, scale)
    _check_expected_versions(command, book)
    return [AssetDefined(command.asset, command.scale)]


def _open_account(command: OpenAccount, book: Book, _: Occasion) -> Sequence[Event]:
    events: list[Event] = []
    scale = book.assets.get(command.asset)
    if scale is None:
        scale = CURRENCIES.get(command.asset)
        if scale is None:
            raise UnknownAsset(command.asset)
        # A currency is defined at its first use, so that its scale comes from our log ever after.
        events.append(AssetDefined(command.asset, scale))
    if book.stream(command.account).version:
        raise AccountExists(command.account)
    _check_expected_versions(command, book)
    opened = AccountOpened(
        account=command.account,
        account_type=command.account_type,
        asset=command.asset,
        scale=scale,
        min_balance=None if command.min_balance is None else command.min_balance.at_scale(scale).minor,
        max_balance=None if command.max_balance is None else command.max_balance.at_scale(scale).minor,
        metadata=command.metadata,
    )
    if command.stripes == 1:
        return [*events, opened]
    for stream in stripes_of(command.account, command.stripes):
        events += opened._replace(account=stream), StripesChanged(stream, command.stripes, command.stripes, None)
    return events


def _post(command: Post, book: Book, occasion: Occasion) -> Sequence[Event]:
    legs = [(entry.account, entry.direction, entry.amount) for entry in command.entries]
    return _entries(command, legs, book, occasion)


def _transfer(command: Transfer, book: Book, occasion: Occasion) -> Sequence[Event]:
    return _two_entries(command, command.debit, command.credit, book, occasion)


def _deposit(command: Deposit, book: Book, occasion: Occasion) -> Sequence[Event]:
    debited, credited = _raising_sides(command, book)
    return _two_entries(command, debited, credited, book, occasion)


def _withdraw(command: Withdraw, book: Book, occasion: Occasion) -> Sequence[Event]:
    credited, debited = _raising_sides(command, book)
    return _two_entries(command, debited, credited, book, occasion)


def _raising_sides(command: Deposit | Withdraw, book: Book) -> tuple[str, str]:
    """Which of the two accounts to debit and which to credit, so that `account` grows."""
    terms, _ = _terms_of([book.of_account(command.account), book.of_account(command.against)])
    return (command.account, command.against) if terms.normal is DEBIT else (command.against, command.account)


def _two_entries(
    command: Transfer | Deposit | Withdraw | Hold, debited: str, credited: str, book: Book, occasion: Occasion
) -> Sequence[EntryPosted]:
    amount = command.amount
    return _entries(command, ((debited, DEBIT, amount), (credited, CREDIT, amount)), book, occasion)


def _entries(command: Command, legs: Sequence[Side], book: Book, occasion: Occasion) -> Sequence[EntryPosted]:
    """Check a set of entries as a whole, one rule after the other: balances are judged by what all of them do."""
    streams = [book.of_account(account) for account, _, _ in legs]
    terms = _terms_of(streams)
    _check_period(command.effective_at, book)
    kind = "hold" if type(command) is Hold else "post"
    _check_states(streams, terms, kind)
    if command.expected_versions:
        _check_expected_versions(command, book)
    if isinstance(command, Hold):
        _check_time_left(occasion.transaction_id, command.expires_at, occasion)
    amounts, turnovers = turnovers_of(legs, streams, terms)
    for turnover in turnovers:
        turnover.check_digits(kind)
    for (account, _, money), its in zip(legs, terms, strict=True):
        if money.asset != its.asset:
            raise AssetMismatch(account, its.asset, money.asset)
    if isinstance(command, Post):
        _check_balanced(command, amounts, terms)
    _check_limits(turnovers)
    return [
        EntryPosted(stream.stream, direction, its.asset, amount, entry)
        for entry, ((_, direction, _), stream, its, amount) in enumerate(
            zip(legs, streams, terms, amounts, strict=True)
        )
    ]


def _check_limits(turnovers: Sequence[Turnover]) -> None:
    for turnover in turnovers:
        turnover.check_minimum()
    for turnover in turnovers:
        turnover.check_maximum()


def _hold(command: Hold, book: Book, occasion: Occasion) -> Sequence[Event]:
    """What is held counts like an entry that is to come: on the way out against the minimum, in the maximum."""
    entries = _two_entries(command, command.debit, command.credit, book, occasion)
    return [HoldPlaced(*entry, occasion.transaction_id, command.expires_at) for entry in entries]


def _capture(command: Capture, book: Book, occasion: Occasion) -> Sequence[Event]:
    legs = _open_legs(command, book, "capture", occasion)
    amount = _part_of_hold(command, legs[0], book)
    for leg in legs:
        turnover = Turnover(book.streams[leg.account], _known_terms(book, leg.account))
        turnover.debits, turnover.credits = (amount, 0) if leg.direction is DEBIT else (0, amount)
        turnover.check_digits("capture")
    _check_rest(command.hold, legs[0].left, amount, _known_terms(book, legs[0].account))
    events = _on_both_sides(HoldCaptured, legs, amount)
    rest = legs[0].left - amount
    if command.final and rest:
        events += _on_both_sides(HoldReleased, legs, rest, first_entry=len(legs))
    return events


def _release(command: Release, book: Book, occasion: Occasion) -> Sequence[Event]:
    legs = _open_legs(command, book, "release", occasion)
    amount = _part_of_hold(command, legs[0], book)
    _check_rest(command.hold, legs[0].left, amount, _known_terms(book, legs[0].account))
    return _on_both_sides(HoldReleased, legs, amount)


def _on_both_sides(
    kind: type[HoldCaptured | HoldReleased | HoldExpired], legs: Sequence[Leg], amount: int, first_entry: int = 0
) -> list[Event]:
    return [
        kind(leg.account, leg.direction, leg.asset, amount, entry, leg.hold)
        for entry, leg in enumerate(legs, first_entry)
    ]


def _expire_hold(command: ExpireHold, book: Book, occasion: Occasion) -> Sequence[Event]:
    legs = _legs(command, book, "expire")
    expires_at = legs[0].expires_at
    if expires_at is None or expires_at > occasion.now:
        raise HoldNotDue(command.hold, "never" if expires_at is None else utc_text(expires_at))
    return _on_both_sides(HoldExpired, legs, legs[0].left)


def _legs(command: Capture | Release | ExpireHold, book: Book, event: str) -> list[Leg]:
    """The two sides of a hold that is open, debit first, on accounts in a state that allows the event."""
    legs = sorted(book.holds.get(command.hold, {}).values(), key=lambda leg: leg.direction is CREDIT)
    if not legs:
        raise UnknownTransaction(command.hold, "hold")
    streams = [book.stream(leg.account) for leg in legs]
    terms = _terms_of(streams)
    _check_period(command.effective_at, book)
    _check_states(streams, terms, event)
    if command.expected_versions:
        _check_expected_versions(command, book)
    if not HOLD.allowed(legs[0].state):
        raise HoldNotOpen(command.hold, legs[0].state)
    return legs


def _open_legs(command: Capture | Release, book: Book, event: str, occasion: Occasion) -> list[Leg]:
    """As `_legs`, of a hold whose time is not over, whether or not that is on record yet."""
    legs = _legs(command, book, event)
    _check_time_left(command.hold, legs[0].expires_at, occasion)
    return legs


def _check_time_left(hold: str, expires_at: datetime | None, occasion: Occasion) -> None:
    if expires_at is not None and expires_at <= occasion.now:
        raise HoldNotOpen(hold, "expired")


def _part_of_hold(command: Capture | Release, leg: Leg, book: Book) -> int:
    """The minor units that are asked for: all that is left, unless it says how many."""
    if command.amount is None:
        return leg.left
    if command.amount.asset != leg.asset:
        raise AssetMismatch(account_of(leg.account), leg.asset, command.amount.asset)
    return command.amount.at_scale(_known_terms(book, leg.account).scale).minor


def _check_rest(reference: str, left: int, amount: int, terms: Terms) -> None:
    if amount > left:
        raise ExceedsRest(reference, str(terms.money(left)), str(terms.money(amount)))


def _reverse(command: Reverse, book: Book, _occasion: Occasion) -> Sequence[Event]:
    original = book.originals.get(command.transaction_id)
    if original is None:
        raise UnknownTransaction(command.transaction_id)
    streams = [book.stream(entry.account) for entry in original.entries.values()]
    terms = _terms_of(streams)
    _check_period(command.effective_at, book)
    _check_states(streams, terms, "reverse")
    if command.expected_versions:
        _check_expected_versions(command, book)
    if original.kind == "reverse":
        raise NotReversible(command.transaction_id, "it is a reversal; post what should be instead")
    if not original.entries:
        raise NotReversible(command.transaction_id, f"it posted nothing ({original.kind})")
    parts = _parts_of(command, original, terms[0])
    legs = [
        (entry.account, CREDIT if entry.direction is DEBIT else DEBIT, its.money(parts[number]))
        for (number, entry), its in zip(original.entries.items(), terms, strict=True)
    ]
    _, turnovers = turnovers_of(legs, streams, terms)
    for turnover in turnovers:
        turnover.check_digits("reverse")
    if not command.force:
        _check_limits(turnovers)
    return [
        EntryPosted(account, direction, amount.asset, amount.minor, number)
        for number, (account, direction, amount) in zip(original.entries, legs, strict=True)
    ]


def _parts_of(command: Reverse, original: Original, terms: Terms) -> dict[int, int]:
    """
    By entry, the minor units to reverse: all that is left, or each entry's exact share of `amount`.

    Raises:
        AssetMismatch, ExceedsRest: More, or something else, than what is left.
        InvalidAmount: A share would not be a whole number of minor units.
    """
    left = {number: entry.amount - original.reversed.get(number, 0) for number, entry in original.entries.items()}
    debited = sum(entry.amount for entry in original.entries.values() if entry.direction is DEBIT)
    debits_left = sum(left[number] for number, entry in original.entries.items() if entry.direction is DEBIT)
    if command.amount is None:
        if not all(left.values()):  # Exact shares leave something of every entry, or of none.
            raise ExceedsRest(command.transaction_id, str(terms.money(0)), "any amount")
        return left
    assets = {entry.asset for entry in original.entries.values()}
    if assets != {command.amount.asset}:
        if len(assets) > 1:
            raise InvalidAmount(str(command.amount), "a transaction of several assets is reversed as a whole")
        raise AssetMismatch(account_of(original.entries[0].account), terms.asset, command.amount.asset)
    amount = command.amount.at_scale(terms.scale).minor
    parts = {}
    for number, entry in original.entries.items():
        parts[number], remainder = divmod(entry.amount * amount, debited)
        if remainder:
            problem = f"the share of entry {number} would not be a whole number of minor units; reverse in other parts"
            raise InvalidAmount(str(command.amount), problem)
    _check_rest(command.transaction_id, debits_left, amount, terms)
    return parts


def _change_state(command: Freeze | Unfreeze, book: Book, _: Occasion) -> Sequence[Event]:
    return _in_state(command, _state_after(command, book, command.type), book)


def _in_state(command: Freeze | Unfreeze | CloseAccount, state: str, book: Book) -> Sequence[Event]:
    """The change to another state, in every stream of the account: whoever writes to one of them sees it there."""
    streams = stripes_of(command.account, _known_terms(book, command.account).streams)
    return [AccountStateChanged(stream, state, command.reason) for stream in streams]


def _close_account(command: CloseAccount, book: Book, _: Occasion) -> Sequence[Event]:
    state = _state_after(command, book, "close")
    terms = _known_terms(book, command.account)
    streams = book.all_of_account(command.account, terms.streams)
    numbers = together(command.account, streams).numbers
    posted_in, posted_out, pending_in, pending_out = in_normal_direction(terms.normal, numbers)
    # Each side of a hold is in the stream in which it was placed: none of them is negative, so that all are zero.
    if posted_in != posted_out or pending_in or pending_out:
        balance, held = terms.money(posted_in - posted_out), terms.money(pending_in + pending_out)
        raise AccountNotEmpty(command.account, str(balance), str(held))
    return _in_state(command, state, book)


def _state_after(command: Freeze | Unfreeze | CloseAccount, book: Book, event: str) -> str:
    stream = book.stream(command.account)
    if stream.terms is None:
        raise UnknownAccount(command.account)
    state = ACCOUNT.advance(stream.terms.state, event, stream=command.account)
    _check_expected_versions(command, book)
    return state


def _change_account(command: ChangeAccount, book: Book, _: Occasion) -> Sequence[Event]:
    stream = book.stream(command.account)
    (terms,) = _terms_of([stream])
    _check_states([stream], [terms], "change")
    streams = max(terms.streams, command.stripes or 1)
    if streams > 1:
        _check_unlimited(command, terms)
    _check_expected_versions(command, book)
    lowest = _new_limit(command.account, command.min_balance, terms.min_balance, terms)
    highest = _new_limit(command.account, command.max_balance, terms.max_balance, terms)
    if lowest is not None and highest is not None and highest < lowest:
        raise InvalidAmount(str(terms.money(highest)), f"max_balance would be below min_balance, {terms.money(lowest)}")
    metadata = json.loads(terms.metadata) if command.metadata is None else command.metadata
    events: list[Event] = []
    if command.changes_terms:
        changed = AccountTermsChanged(command.account, lowest, highest, metadata, command.reason)
        events += [changed._replace(account=name) for name in stripes_of(command.account, terms.streams)]
    if command.stripes is not None:
        opened = AccountOpened(command.account, terms.account_type, terms.asset, terms.scale, lowest, highest, metadata)
        for name in stripes_of(command.account, streams)[terms.streams :]:
            events.append(opened._replace(account=name))
            if terms.state != "open":
                events.append(AccountStateChanged(name, terms.state, command.reason))
        changes = StripesChanged(command.account, command.stripes, streams, command.reason)
        events += [changes._replace(account=name) for name in stripes_of(command.account, streams)]
    return events


def _check_unlimited(command: ChangeAccount, terms: Terms) -> None:
    """What is in one stream says nothing of the others, so that none of them can judge a limit."""
    for limit, until_now in ((command.min_balance, terms.min_balance), (command.max_balance, terms.max_balance)):
        if isinstance(limit, Money) or (limit is None and until_now is not None):
            problem = "limits and stripes do not go together; take its limits away first"
            if terms.streams > 1:
                problem = (
                    f"its {terms.streams} streams stay, and none knows what is in the others; it can have no limits"
                )
            raise StripedAccount(command.account, problem)


def _new_limit(account: str, limit: Money | str | None, until_now: int | None, terms: Terms) -> int | None:
    if not isinstance(limit, Money):
        return until_now if limit is None else None
    if limit.asset != terms.asset:
        raise AssetMismatch(account, terms.asset, limit.asset)
    return limit.at_scale(terms.scale).minor


def _close_period(command: ClosePeriod, book: Book, occasion: Occasion) -> Sequence[Event]:
    _check_period(command.until, book)
    if command.until == book.closed_until:
        raise PeriodIsClosed(utc_text(command.until), utc_text(command.until))
    if command.until > occasion.now - SETTLING:
        possible_from = min(command.until, datetime.max.replace(tzinfo=UTC) - SETTLING) + SETTLING
        raise PeriodNotOver(utc_text(command.until), utc_text(possible_from))
    _check_expected_versions(command, book)
    return [PeriodClosed(command.until, book.trial_balance, command.reason)]


def _check_period(effective_at: datetime | None, book: Book) -> None:
    if effective_at is not None and book.closed_until is not None and effective_at < book.closed_until:
        raise PeriodIsClosed(utc_text(effective_at), utc_text(book.closed_until))


def _begin(command: Begin, book: Book, _: Occasion) -> Sequence[Event]:
    machine = _machine(command, book)
    stream = book.stream(command.stream)
    if stream.state is not None:
        raise StreamExists(command.machine, command.subject, stream.state)
    _check_expected_versions(command, book)
    return [StateAdvanced(command.stream, command.machine, "begin", "", machine.initial, machine.fingerprint())]


def _advance(command: Advance, book: Book, _: Occasion) -> Sequence[Event]:
    machine = _machine(command, book)
    state = book.stream(command.stream).state
    if state is None:
        raise UnknownStream(command.machine, command.subject)
    if state not in machine.states:
        # It was begun by another declaration of that name.
        raise TransitionRefused(machine.name, state, command.event, [], command.subject)
    target = machine.advance(state, command.event, stream=command.subject)
    _check_expected_versions(command, book)
    return [StateAdvanced(command.stream, command.machine, command.event, state, target, machine.fingerprint())]


def _machine(command: Begin | Advance, book: Book) -> StateMachine:
    machine = book.machines.get(command.machine)
    if machine is None:
        raise UnknownMachine(command.machine, sorted(book.machines))
    return machine


def _terms_of(streams: Sequence[Stream]) -> list[Terms]:
    """The terms of accounts that all exist."""
    terms = []
    for stream in streams:
        if stream.terms is None:
            raise UnknownAccount(stream.account)
        terms.append(stream.terms)
    return terms


def _check_states(streams: Sequence[Stream], terms: Sequence[Terms], event: str) -> None:
    """All of the accounts are in a state that allows `event`."""
    for stream, its in zip(streams, terms, strict=True):
        if its.state != "open" and event not in ACCOUNT.allowed(its.state):
            raise AccountNotOpen(stream.account, its.state)


def _known_terms(book: Book, account: str) -> Terms:
    terms = book.streams[account].terms
    assert terms is not None  # Looked at before.
    return terms


def _check_expected_versions(command: Command, book: Book) -> None:
    for account in command.expected_versions:
        terms = book.of_account(account).terms
        if terms is not None and terms.streams > 1:
            raise StripedAccount(account, "its stripes have a version each, and it has none to expect")
    for account, expected in command.expected_versions.items():
        actual = book.stream(account).version
        if actual != expected:
            raise VersionConflict(account, expected, actual)


def _check_balanced(command: Post, amounts: Sequence[int], terms: Sequence[Terms]) -> None:
    totals: dict[str, list[int]] = {}
    for entry, amount in zip(command.entries, amounts, strict=True):
        totals.setdefault(entry.amount.asset, [0, 0])[entry.direction is CREDIT] += amount
    scales = {its.asset: its.scale for its in terms}
    for asset, (debits, credits) in totals.items():
        if debits != credits:
            scale = scales[asset]
            raise UnbalancedTransaction(asset, str(Money(debits, asset, scale)), str(Money(credits, asset, scale)))


_RULES: Final[dict[type, Callable[..., Sequence[Event]]]] = {
    DefineAsset: _define_asset,
    OpenAccount: _open_account,
    ChangeAccount: _change_account,
    Freeze: _change_state,
    Unfreeze: _change_state,
    CloseAccount: _close_account,
    Post: _post,
    Transfer: _transfer,
    Deposit: _deposit,
    Withdraw: _withdraw,
    Hold: _hold,
    Capture: _capture,
    Release: _release,
    ExpireHold: _expire_hold,
    Reverse: _reverse,
    ClosePeriod: _close_period,
    Begin: _begin,
    Advance: _advance,
}
