"""Reports on those who look after the ledger: repairs, privileged actions, decisions about dead letters, replays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import Field

from ledger.audit.reports.form import Definition, Pin, Rows, Tally, columns, utc
from ledger.audit.reports.journal import CURSOR_ROWS, whole_tables
from ledger.core.canonical import utc_text
from ledger.core.fields import Frozen, Moment, Text, TransactionId
from ledger.storage import trail
from ledger.storage.database import Connection

GONE: Final = "(what was on record here is gone)"


class RepairsQuestion(Frozen):
    """Which repairs."""

    account: Text | None = Field(None, description="of this account, or of another stream")


_REPAIRS: Final = trail.rows_of(
    trail.REPAIR,
    f"r.stream, {utc('r.repaired_at')} AS repaired_at, r.noticed_by, r.found_version, r.expected_version,"
    " r.found::text AS found, r.expected::text AS expected",
)


def repairs(connection: Connection, pin: Pin, asked: RepairsQuestion, tally: Tally) -> Rows:
    """Every projection that was not what the log says, with what it said and what it should have said."""
    whole_tables(connection)
    with connection.stream(_REPAIRS, {"trail": pin.trail}, CURSOR_ROWS) as rows:
        for number, place, there, *told in rows:
            if there is None:
                tally.findings += 1
                yield (number, place, None, GONE, *[None] * 4)
            elif asked.account is None or told[0].split("#")[0] == asked.account or told[0] == asked.account:
                tally.count("repairs")
                yield (number, *told)


REPAIRS: Final = Definition(
    "repairs",
    1,
    "Projections that did not agree with the log, and were made anew from it.",
    RepairsQuestion,
    columns(
        "number:integer stream repaired_at:time noticed_by found_version:integer expected_version:integer found"
        " expected"
    ),
    repairs,
    ("trail",),
)


class LettersQuestion(Frozen):
    """Which decisions."""

    source: Text | None = Field(None, description="about messages of this source")


_DECISIONS: Final = trail.rows_of(
    trail.DECISION,
    f"{utc('r.recorded_at')} AS decided_at, r.source, r.stream, r.dead_letter_id::text AS dead_letter_id, r.decision,"
    " r.actor, r.note, d.message_id, d.sequence, d.why",
    "LEFT JOIN {schema}.dead_letters AS d ON d.stream = r.stream AND d.source = r.source"
    " AND d.dead_letter_id = r.dead_letter_id",
)


def letters(connection: Connection, pin: Pin, asked: LettersQuestion, tally: Tally) -> Rows:
    """What was decided about messages that were set aside for a person, by whom and why."""
    whole_tables(connection)
    with connection.stream(_DECISIONS, {"trail": pin.trail}, CURSOR_ROWS) as rows:
        for number, place, there, *told in rows:
            if there is None:
                tally.findings += 1
                yield (number, None, None, place, None, "", None, GONE, None, None, None)
            elif asked.source is None or told[1] == asked.source:
                tally.count(told[4])
                yield (number, *told)


LETTERS: Final = Definition(
    "dead-letter-decisions",
    1,
    "Messages that were set aside, what was decided about them, by whom and why.",
    LettersQuestion,
    columns(
        "number:integer decided_at:time source stream dead_letter_id decision actor note message_id sequence:integer"
        " why"
    ),
    letters,
    ("trail",),
)


class ReplaysQuestion(Frozen):
    """Which replays."""

    transaction_id: TransactionId | None = Field(None, description="of this transaction")


_REPLAYS: Final = trail.rows_of(
    trail.REPLAY,
    f"{utc('r.replayed_at')} AS replayed_at, r.transaction_id::text AS transaction_id, r.actor, t.kind, t.scope,"
    f" t.idempotency_key, {utc('t.recorded_at')} AS recorded_at, t.actor AS first_actor",
    "LEFT JOIN {schema}.transactions AS t ON t.transaction_id = r.transaction_id",
)

_COUNTED: Final = """
SELECT c.source, c.counter, sum(c.count)::bigint FROM {schema}.inbox_counters AS c
WHERE c.counter IN ('duplicates', 'conflicts', 'late', 'replayed') GROUP BY c.source, c.counter ORDER BY 1, 2 LIMIT 1000
"""


def replays(connection: Connection, pin: Pin, asked: ReplaysQuestion, tally: Tally) -> Rows:
    """Every answer that was given again, since the same request came under the same key."""
    whole_tables(connection)
    tally.totals["replays"] = 0
    with connection.stream(_REPLAYS, {"trail": pin.trail}, CURSOR_ROWS) as rows:
        for number, place, there, *told in rows:
            if there is None:
                tally.findings += 1
                yield (number, None, place, None, GONE, *[None] * 4)
            elif asked.transaction_id is None or told[1] == asked.transaction_id:
                tally.count("replays")
                yield (number, *told)
    counted: dict[str, dict[str, int]] = {}
    for source, counter, count in connection.query(_COUNTED):
        counted.setdefault(source, {})[counter] = count
    # A list, since the name of a source is no key of canonical JSON.
    tally.live["inbox"] = [{"source": source, **counts} for source, counts in counted.items()]


REPLAYS: Final = Definition(
    "idempotent-replays",
    1,
    "Answers that were given again: the same request under the same idempotency key, which did nothing again.",
    ReplaysQuestion,
    columns(
        "number:integer replayed_at:time transaction_id actor kind scope idempotency_key recorded_at:time first_actor"
    ),
    replays,
    ("trail",),
)


class PrivilegedQuestion(Frozen):
    """Which actions."""

    since: Moment | None = Field(None, description="recorded at or after")
    until: Moment | None = Field(None, description="recorded before")


# What rules on accounts and periods is in the log itself; so is a reversal beyond limits.
_RULED: Final = f"""
SELECT 'position', f.position, {utc("t.recorded_at")},
       CASE e.type WHEN 'entry_posted' THEN 'forced_reversal' ELSE e.type END, t.actor, NULL, e.stream,
       (CASE e.type WHEN 'entry_posted' THEN t.request ELSE e.payload END)::text
FROM {{schema}}.events AS e
JOIN {{schema}}.transactions AS t ON t.transaction_id = e.transaction_id
JOIN {{schema}}.feed AS f ON f.stream = e.stream AND f.version = e.version
WHERE f.position <= %(position)s
  AND (e.type IN ('asset_defined', 'account_state_changed', 'account_terms_changed', 'stripes_changed', 'period_closed')
       OR t.kind = 'reverse' AND t.request ->> 'force' = 'true')
  AND (%(since)s::timestamptz IS NULL OR t.recorded_at >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR t.recorded_at < %(until)s::timestamptz)
ORDER BY f.position
"""

_OF_KIND: Final = {
    trail.ACTION: (
        f"{utc('r.recorded_at')} AS at, r.action, r.actor, r.database_user, r.subject, r.details::text AS details"
    ),
    trail.DECISION: (
        f"{utc('r.recorded_at')} AS at, 'dead_letter_' || r.decision AS action, r.actor, NULL AS database_user,"
        " r.source || ' ' || r.stream AS subject, json_build_object('note', r.note)::text AS details"
    ),
    trail.RELEASE: (
        f"{utc('r.recorded_at')} AS at, 'inbox_release' AS action, r.actor, NULL AS database_user,"
        " r.source || ' ' || r.stream AS subject, json_build_object('first', r.first_sequence, 'last', r.last_sequence,"
        " 'reason', r.reason, 'note', r.note)::text AS details"
    ),
    trail.FORGOTTEN: (
        f"{utc('r.forgotten_at')} AS at, 'subject_forgotten' AS action, r.forgotten_by AS actor,"
        " NULL AS database_user, r.subject, json_build_object('reason', r.reason)::text AS details"
    ),
    trail.REPAIR: (
        f"{utc('r.repaired_at')} AS at, 'projection_repaired' AS action, NULL AS actor, NULL AS database_user,"
        " r.stream AS subject, json_build_object('noticed_by', r.noticed_by)::text AS details"
    ),
}

_DONE: Final = f"""
SELECT 'trail', d.number, CASE WHEN d.there IS NULL THEN NULL ELSE d.at END, coalesce(d.action, '{GONE}'), d.actor,
       d.database_user, coalesce(d.subject, d.place), d.details
FROM ({
    " UNION ALL ".join(
        f"SELECT * FROM ({trail.rows_of(kind, named)}) AS k (number, place, there, at, action, actor, database_user,"
        " subject, details)"
        for kind, named in _OF_KIND.items()
    )
}) AS d ORDER BY d.number
"""


def privileged(connection: Connection, pin: Pin, asked: PrivilegedQuestion, tally: Tally) -> Rows:
    """What was ruled in the log, in the order of the feed; then what was done beside it, in the order of the trail."""
    whole_tables(connection)
    question = {**asked.model_dump(), "position": pin.position, "trail": pin.trail}
    for sql in (_RULED, _DONE):
        with connection.stream(sql, question, CURSOR_ROWS) as rows:
            for row in rows:
                if sql is _DONE and not _within(row[2], asked):
                    continue
                tally.findings += row[3] == GONE
                tally.count("actions")
                tally.count("without_actor", row[4] is None)
                yield row


def _within(at: str | None, asked: PrivilegedQuestion) -> bool:
    """Whether it was in the time that was asked about; what nobody knows the time of was."""
    if at is None:
        return True
    since, until = (None if each is None else utc_text(each) for each in (asked.since, asked.until))
    return (since is None or at >= since) and (until is None or at < until)


PRIVILEGED: Final = Definition(
    "privileged-actions",
    1,
    "What was ruled on accounts and periods, and done to the ledger: migrations, roles, keys, rebuilds, seeks.",
    PrivilegedQuestion,
    columns("order number:integer recorded_at:time action actor database_user subject details"),
    privileged,
    ("position", "trail"),
)

REPORTS: Final[Sequence[Definition]] = (REPAIRS, LETTERS, REPLAYS, PRIVILEGED)
