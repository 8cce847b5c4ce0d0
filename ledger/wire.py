"""
Results → plain JSON, as the command line prints it and any other edge may send it.

Amounts are texts such as "12.50 USD", never numbers; times are UTC as `2026-01-02T03:04:05.123456Z`; ids and
hashes are texts.  A field that holds nothing is null, not left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from ledger.audit.diagnosis import Diagnosis
from ledger.audit.report import Finding, Report
from ledger.audit.reports.form import Definition
from ledger.batch import Done
from ledger.core import errors
from ledger.core.book import Balance, Terms
from ledger.core.canonical import utc_text
from ledger.core.errors import LedgerError
from ledger.core.events import FeedEntry, Recorded, Transaction, account_of
from ledger.core.lifecycle import StateMachine
from ledger.core.money import Money
from ledger.order.cursor import Range
from ledger.personal import Field
from ledger.storage.api_keys import AccountRead, ApiKey
from ledger.storage.dead_letters import DeadLetter
from ledger.storage.inbox_queries import Gap, Stats
from ledger.storage.migrations import Migrated
from ledger.storage.queries import AccountLine, HoldLine, Page, StreamState, TransactionDetail, TrialBalance
from ledger.storage.statement import Statement, StatementLine
from ledger.storage.subject_keys import Forgotten
from ledger.storage.subscriptions import Standing

Json: TypeAlias = dict[str, Any]

ERRORS: Final[Mapping[str, type[LedgerError]]] = {
    each.code: each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, LedgerError) and "code" in each.__dict__
}
"""Every error by its code."""

_STATE_AFTER: Final = {"account_state_changed": "state", "state_advanced": "target"}
"""The events that lead to another state, and where in their payload it stands."""


def error_json(error: LedgerError) -> Json:
    """What went wrong: a stable code, a sentence, whether the same call may succeed later, and the facts."""
    return {
        "code": error.code,
        "message": _printable(" ".join(str(error).split())),
        "retryable": error.retryable,
        "fields": {name: _printable(fact) for name, fact in error.fields.items()},
    }


def error_of(plain: Json) -> LedgerError | None:
    """The error that `error_json` told of; None where there is none of its code, or of its facts."""
    known = ERRORS.get(plain.get("code", ""))
    names = {field.name for field in dataclasses.fields(known)} if known is not None else set()
    facts = plain.get("fields")
    if known is None or not isinstance(facts, dict):
        return None
    try:
        return known(**{name: fact for name, fact in facts.items() if name in names})
    except TypeError:
        return None


def _printable(fact: object) -> object:
    """As it is, but that half a character, which JSON has no way to write, is shown by its number."""
    if isinstance(fact, list):
        return [_printable(each) for each in fact]
    return fact.encode(errors="backslashreplace").decode() if isinstance(fact, str) else fact


def done_json(done: Done) -> Json:
    """What a command did, and where each stream and account stood right after."""
    transaction = done.transaction
    return {
        "transaction_id": transaction.transaction_id,
        "kind": transaction.kind,
        "idempotency_key": transaction.idempotency_key,
        "reference": transaction.reference,
        "effective_at": utc_text(transaction.effective_at),
        "recorded_at": utc_text(transaction.recorded_at),
        "replayed": done.replayed,
        "dry_run": done.dry_run,
        "versions": done.versions,
        "states": states_of(done),
        "balances": {account: balance_json(balance) for account, balance in done.balances.items()},
    }


def states_of(done: Done) -> dict[str, str]:
    """Account or stream → the state that the command led it to; of those whose state it was about."""
    return {
        account_of(event.stream): json.loads(event.payload)[_STATE_AFTER[event.type]]
        for event in done.events
        if event.type in _STATE_AFTER
    }


def balance_json(balance: Balance) -> Json:
    """An account's balance at a version, in its normal direction."""
    return {
        "account": balance.account,
        "version": balance.version,
        "posted": str(balance.posted),
        "pending": str(balance.pending),
        "available": str(balance.available),
    }


def opened_json(terms: Terms) -> Json:
    """What an account was opened as, which never changes."""
    return {
        "type": terms.account_type.value,
        "normal": terms.normal.value,
        "asset": terms.asset,
        "scale": terms.scale,
    }


def terms_json(terms: Terms) -> Json:
    """What an account is: what it was opened as, and what was changed since."""
    limits = [None if limit is None else str(terms.money(limit)) for limit in (terms.min_balance, terms.max_balance)]
    return {
        **opened_json(terms),
        "min_balance": limits[0],
        "max_balance": limits[1],
        "state": terms.state,
        "metadata": json.loads(terms.metadata),
        "stripes": terms.stripes,
        "streams": terms.streams,
    }


def account_json(line: AccountLine) -> Json:
    """An account with its terms and balance."""
    return {"account": line.account, **terms_json(line.terms), "balance": balance_json(line.balance)}


def event_json(event: Recorded, terms: Terms | None) -> Json:
    """
    A recorded event; `terms` are those of its account, and None for a stream of ours.

    One of an account with stripes comes without a balance: it knows that of its stripe.
    """
    plain: Json = {
        "stream": event.stream,
        "version": event.version,
        "type": event.type,
        "transaction_id": event.transaction_id,
        "direction": event.direction,
        "amount": None,
        "balance": None,
        "effective_at": utc_text(event.effective_at),
        "recorded_at": utc_text(event.recorded_at),
        "schema": event.schema,
        "payload": json.loads(event.payload),
        "prev_hash": event.prev_hash.hex(),
        "event_hash": event.event_hash.hex(),
    }
    if terms is not None and event.amount is not None:
        plain["amount"] = str(terms.money(event.amount))
    if terms is not None and event.numbers is not None and terms.streams == 1:
        plain["balance"] = balance_json(Balance.from_numbers(event.stream, terms, event.numbers, event.version))
    return plain


def page_json(page: Page, terms: Terms | None) -> list[Json]:
    """The events of a page, as of an account with so many streams as it had by then."""
    by_then = terms and terms._replace(streams=page.streams)
    return [event_json(event, by_then) for event in page]


def transaction_json(transaction: Transaction) -> Json:
    """Who asked for what, and when."""
    return {
        "transaction_id": transaction.transaction_id,
        "kind": transaction.kind,
        "scope": transaction.scope,
        "idempotency_key": transaction.idempotency_key,
        "reference": transaction.reference,
        "effective_at": utc_text(transaction.effective_at),
        "recorded_at": utc_text(transaction.recorded_at),
        "actor": transaction.actor,
        "correlation_id": transaction.correlation_id,
        "causation_id": transaction.causation_id,
        "metadata": json.loads(transaction.metadata) if transaction.metadata else {},
        "request": json.loads(transaction.request),
        "entry_count": transaction.entry_count,
        "versions": dict(zip(transaction.streams, transaction.versions, strict=True)),
        "header_hash": transaction.header_hash.hex(),
    }


def detail_json(detail: TransactionDetail, terms: Mapping[str, Terms]) -> Json:
    """A transaction with its events in order, and its reversals both ways; `terms` are those of its accounts."""
    return {
        "transaction": transaction_json(detail.transaction),
        "reverses": detail.reverses,
        "reversed_by": detail.reversed_by,
        "events": [event_json(event, terms.get(event.stream)) for event in detail.events],
    }


def feed_json(entry: FeedEntry, scale: int | None) -> Json:
    """An entry of the feed: the event at its position, and who asked for it; `scale` is that of its asset."""
    event, transaction = entry.event, transaction_json(entry.transaction)
    plain = event_json(event, None)
    del plain["balance"]
    if event.amount is not None and event.asset is not None and scale is not None:
        plain["amount"] = str(Money(event.amount, event.asset, scale))
    named = "kind", "idempotency_key", "reference", "actor", "correlation_id", "causation_id", "metadata"
    return {"position": entry.position, **plain, **{name: transaction[name] for name in named}}


def standing_json(standing: Standing) -> Json:
    """How far a consumer of the feed is."""
    return {**standing._asdict(), "changed_at": utc_text(standing.changed_at)}


def personal_json(found: Mapping[str, Field]) -> Json:
    """Each personal field with its state, and its text where it was revealed; the answer itself stays as hashed."""
    return {field: {"state": seen.state.value, "text": seen.text} for field, seen in found.items()}


def api_key_json(key: ApiKey) -> Json:
    """Whose key it is, and what it is good for; not the secret, which nobody has, nor its hash."""
    return {
        "key": key.key_id,
        "actor": key.actor,
        "scopes": list(key.scopes),
        "active": key.active,
        "created_at": utc_text(key.created_at),
        "created_by": key.created_by,
        "expires_at": None if key.expires_at is None else utc_text(key.expires_at),
        "revoked_at": None if key.revoked_at is None else utc_text(key.revoked_at),
        "revoked_by": key.revoked_by,
    }


def read_json(read: AccountRead) -> Json:
    """Which account was read, when, by which auditor and by which question."""
    return {
        "account": read.account,
        "recorded_at": utc_text(read.recorded_at),
        "actor": read.actor,
        "question": read.question,
    }


def inbox_stats_json(source: str, stats: Stats) -> Json:
    """What was counted of a source, and how it stands."""
    wait = None if stats.oldest_wait is None else stats.oldest_wait.total_seconds()
    gauges = {"streams": stats.streams, "held": stats.held, "parked": stats.parked, "retrying": stats.retrying}
    return {"source": source, "counters": stats.counters, **gauges, "oldest_wait_seconds": wait}


def gap_json(gap: Gap, missing: Sequence[Range]) -> Json:
    """A stream that waits, and the ranges of sequences that it misses: first and last of each."""
    return {
        "stream": gap.stream,
        "missing": [[one.first, one.last] for one in missing],
        "held": gap.held,
        "status": gap.status,
        "since": None if gap.since is None else utc_text(gap.since),
        "error": gap.error,
    }


def letter_json(letter: DeadLetter) -> Json:
    """A message that a person decides about."""
    return {
        "dead_letter_id": letter.dead_letter_id,
        "stream": letter.stream,
        "sequence": letter.sequence,
        "id": letter.message_id,
        "type": letter.message.type,
        "why": letter.why,
        "error": letter.error,
        "attempts": letter.attempts,
        "first_seen": utc_text(letter.first_seen),
        "last_seen": utc_text(letter.last_seen),
        "state": letter.state,
        "data": letter.message.data,
    }


def forgotten_json(forgotten: Forgotten) -> Json:
    """Whose key was destroyed, when, by whom and why."""
    return {**forgotten._asdict(), "forgotten_at": utc_text(forgotten.forgotten_at)}


def hold_json(line: HoldLine) -> Json:
    """One side of a hold, as it stands."""
    return {
        "hold": str(line.hold),
        "account": line.account,
        "direction": line.direction.value,
        "state": line.state,
        "amount": str(line.amount),
        "captured": str(line.captured),
        "released": str(line.released),
        "expired": str(line.expired),
        "left": str(line.left),
        "expires_at": None if line.expires_at is None else utc_text(line.expires_at),
    }


def state_json(state: StreamState) -> Json:
    """Where something of the caller's own stands, and what may happen to it next."""
    return {**state._asdict(), "allowed": list(state.allowed)}


def machine_json(machine: StateMachine) -> Json:
    """A state machine as a file would declare it, its fingerprint, and its drawing in Mermaid."""
    return {**machine.as_mapping(), "fingerprint": machine.fingerprint(), "diagram": machine.diagram()}


def trial_balance_json(trial: TrialBalance) -> Json:
    """Debits and credits by asset and type."""
    return {
        "balanced": trial.balanced,
        "lines": [
            {
                "asset": line.asset,
                "type": line.account_type,
                "accounts": line.accounts,
                "debits": str(line.debits),
                "credits": str(line.credits),
            }
            for line in trial.lines
        ],
        "difference": {asset: str(net) for asset, net in trial.difference.items()},
        "position": trial.position,
    }


def statement_json(statement: Statement) -> Json:
    """An account statement without its lines."""
    return {
        "account": statement.account,
        "since": utc_text(statement.since),
        "until": utc_text(statement.until),
        "position": statement.position,
        "opening": str(statement.opening.posted),
        "closing": str(statement.closing.posted),
    }


def statement_line_json(line: StatementLine) -> Json:
    """A line of an account statement."""
    return {
        "effective_at": utc_text(line.event.effective_at),
        "recorded_at": utc_text(line.event.recorded_at),
        "stream": line.event.stream,
        "version": line.event.version,
        "transaction_id": line.event.transaction_id,
        "type": line.event.type,
        "reference": line.reference,
        "amount": str(line.amount),
        "balance": str(line.balance),
    }


def report_json(report: Report) -> Json:
    """What a verification checked and found."""
    return {
        "ok": report.ok,
        "checked": report.checked,
        "shredded": report.shredded,
        "findings": [finding_json(finding) for finding in report.findings],
        "findings_total": report.findings_total,
    }


def finding_json(finding: Finding) -> Json:
    """Something that is not as it must be: where, and what."""
    return dict(finding._asdict())


def diagnosis_json(diagnosis: Diagnosis) -> Json:
    """What the doctor looked at and found."""
    return {
        "ok": diagnosis.ok,
        "checked": diagnosis.checked,
        "findings": [dict(symptom._asdict()) for symptom in diagnosis.findings],
        "findings_total": diagnosis.findings_total,
        "warnings": [dict(symptom._asdict()) for symptom in diagnosis.warnings],
        "warnings_total": diagnosis.warnings_total,
    }


def migrated_json(migrated: Migrated) -> Json:
    """What a migration found and applied."""
    return {
        "schema": migrated.schema,
        "found": migrated.found,
        "applied": list(migrated.applied),
        "head": migrated.head,
    }


def definition_json(of: Definition) -> Json:
    """A report as a program reads it: its parameters as a JSON schema."""
    return {
        "name": of.name,
        "version": of.version,
        "title": of.title,
        "pinned_by": list(of.pinned_by),
        "columns": [{"name": column.name, "kind": column.kind} for column in of.columns],
        "parameters": of.parameters.model_json_schema(),
    }
