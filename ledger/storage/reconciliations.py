"""
What banks said of an account, and which of its entries people and rules have found to be the same.

Nothing here ever changes.  A decision has the next number of its account, and every decision about an entry has the
next generation of that entry; both are keys, so that of two who decide at once one is refused by the database.  An odd
generation matches the entry, an even one takes that back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeVar
from uuid import uuid4

from psycopg.errors import UniqueViolation

from ledger.core.canonical import canonical_json
from ledger.storage.database import Connection, Row
from ledger.storage.store import in_utc, readable

OURS: Final = "ours"
THEIRS: Final = "theirs"

OPEN_MAX: Final = 200_000
"""Entries of one side that are compared at once."""

DECISIONS_PAGE: Final = 1_000
_ROWS_TOGETHER: Final = 5_000

Each = TypeVar("Each")

HEADS: Final = """
SELECT coalesce((
    SELECT e.version FROM {schema}.events AS e WHERE e.stream = s.stream ORDER BY e.version DESC LIMIT 1
), 0)
FROM unnest(%(streams)s::text[]) WITH ORDINALITY AS s (stream, place) ORDER BY s.place
"""

LAST_DECISION: Final = """
SELECT coalesce(max(d.number), 0) FROM {schema}.reconciliation_decisions AS d WHERE d.account = %(account)s
"""

STATEMENTS: Final = """
SELECT s.statement_id, s.place, s.digest, s.sides, s.begins_on, s.opens_on, s.closes_on, s.opening::text,
       s.closing::text
FROM {schema}.bank_statements AS s WHERE s.account = %(account)s ORDER BY s.place, s.statement_id
"""

_OURS_IN: Final = """
FROM unnest(%(streams)s::text[], %(versions)s::bigint[]) AS s (stream, version) CROSS JOIN LATERAL (
    SELECT * FROM {schema}.events AS e
    WHERE e.stream = s.stream AND e.version <= s.version AND e.type IN ('entry_posted', 'hold_captured')
      AND e.effective_at < %(until)s::timestamptz {since}
) AS e
"""

BALANCES: Final = f"""
SELECT coalesce(sum(CASE WHEN e.direction = %(normal)s THEN e.amount ELSE -e.amount END)
                FILTER (WHERE e.effective_at < %(since)s::timestamptz), 0)::text,
       coalesce(sum(CASE WHEN e.direction = %(normal)s THEN e.amount ELSE -e.amount END), 0)::text
{_OURS_IN.replace("{since}", "")}
"""
"""What the account came to before a day, and at the end of another; from the log, as far as it is pinned."""

# An entry is settled if a decision matches it that needs nothing from beyond this statement.
_SETTLED: Final = """
LEFT JOIN LATERAL (
    SELECT c.generation, c.decision FROM {schema}.reconciliation_claims AS c
    WHERE c.account = %(account)s AND c.side = '{side}' AND c.origin = {origin} AND c.number = {number}
      AND c.decision <= %(decision)s
    ORDER BY c.generation DESC LIMIT 1
) AS c ON true
LEFT JOIN LATERAL (
    SELECT d.settled FROM {schema}.reconciliation_decisions AS d
    WHERE d.account = %(account)s AND d.number = c.decision AND c.generation %% 2 = 1
) AS d ON true
"""


def _settled(side: str, origin: str, number: str) -> str:
    return _SETTLED.replace("{side}", side).replace("{origin}", origin).replace("{number}", number)


OPEN_OURS: Final = f"""
SELECT e.stream, e.version, (e.effective_at AT TIME ZONE 'UTC')::date,
       (CASE WHEN e.direction = %(normal)s THEN e.amount ELSE -e.amount END)::text,
       coalesce(c.generation, 0), d.settled IS NOT NULL, t.transaction_id::text, t.reference, t.idempotency_key,
       t.metadata::text
{_OURS_IN.replace("{since}", "AND e.effective_at >= %(since)s::timestamptz")}
LEFT JOIN LATERAL (
    SELECT * FROM {{schema}}.transactions AS t WHERE t.transaction_id = e.transaction_id OFFSET 0
) AS t ON true
{_settled(OURS, "e.stream", "e.version")}
WHERE d.settled IS NULL OR d.settled > %(place)s
ORDER BY 3, 1, 2 LIMIT %(limit)s
"""

OPEN_THEIRS: Final = f"""
SELECT e.statement_id, e.number, e.booked_on, e.amount::text, coalesce(c.generation, 0), d.settled IS NOT NULL,
       e.names, e.description
FROM unnest(%(statements)s::text[]) AS s (statement_id) CROSS JOIN LATERAL (
    SELECT * FROM {{schema}}.bank_entries AS e
    WHERE e.account = %(account)s AND e.statement_id = s.statement_id OFFSET 0
) AS e
{_settled(THEIRS, "e.statement_id", "e.number")}
WHERE d.settled IS NULL OR d.settled > %(place)s
ORDER BY 3, 1, 2 LIMIT %(limit)s
"""

GENERATIONS: Final = """
SELECT i.side, i.origin, i.number, coalesce(c.generation, 0), coalesce(c.decision, 0)
FROM unnest(%(sides)s::text[], %(origins)s::text[], %(numbers)s::bigint[]) AS i (side, origin, number)
LEFT JOIN LATERAL (
    SELECT c.generation, c.decision FROM {schema}.reconciliation_claims AS c
    WHERE c.account = %(account)s AND c.side = i.side AND c.origin = i.origin AND c.number = i.number
    ORDER BY c.generation DESC LIMIT 1
) AS c ON true
"""

_DECISION: Final = f"""
SELECT d.number, d.decision, d.rule, d.amount::text, d.items::text, d.actor, d.reason, {readable("d.recorded_at")}
FROM {{schema}}.reconciliation_decisions AS d
"""

DECISIONS: Final = f"""
{_DECISION} WHERE d.account = %(account)s AND d.number > %(after)s ORDER BY d.number LIMIT %(limit)s
"""

# What matches an entry of this statement as things stand, with nothing from beyond it.
MATCHES: Final = f"""
{_DECISION}
WHERE d.account = %(account)s AND d.decision = 'match' AND d.settled <= %(place)s AND d.number = ANY(ARRAY(
    SELECT DISTINCT last.decision FROM (
        SELECT DISTINCT ON (c.number) c.generation, c.decision FROM {{schema}}.reconciliation_claims AS c
        WHERE c.account = %(account)s AND c.side = 'theirs' AND c.origin = %(statement_id)s
          AND c.decision <= %(decision)s
        ORDER BY c.number, c.generation DESC
    ) AS last WHERE last.generation %% 2 = 1
))
ORDER BY d.number
"""

STAGE: Final = """
INSERT INTO {schema}.bank_statements (
    account, statement_id, place, format, file_sha256, digest, sides, begins_on, opens_on, closes_on, opening, closing,
    entry_count, actor, staged_at)
VALUES (
    %(account)s, %(statement_id)s, %(place)s, %(format)s, %(file_sha256)s, %(digest)s, %(sides)s, %(begins_on)s,
    %(opens_on)s, %(closes_on)s, %(opening)s::numeric, %(closing)s::numeric, %(entry_count)s, %(actor)s, now())
"""

STAGE_ENTRIES: Final = """
INSERT INTO {schema}.bank_entries (account, statement_id, number, booked_on, amount, names, description, place)
SELECT %(account)s, %(statement_id)s, e.number, e.booked_on, e.amount,
       ARRAY(SELECT json_array_elements_text(e.names::json)), e.description, e.place
FROM unnest(%(numbers)s::integer[], %(days)s::date[], %(amounts)s::numeric[], %(names)s::text[],
            %(descriptions)s::text[], %(places)s::text[])
AS e (number, booked_on, amount, names, description, place) ORDER BY e.number
"""

DECIDE: Final = """
INSERT INTO {schema}.reconciliation_decisions (
    account, number, decision, rule, amount, items, settled, actor, reason, recorded_at)
SELECT %(account)s, d.number, d.decision, d.rule, d.amount, d.items::json, d.settled, d.actor, d.reason, now()
FROM unnest(%(numbers)s::bigint[], %(decisions)s::text[], %(rules)s::text[], %(amounts)s::numeric[], %(items)s::text[],
            %(settled)s::text[], %(actors)s::text[], %(reasons)s::text[])
AS d (number, decision, rule, amount, items, settled, actor, reason) ORDER BY d.number
"""

CLAIM: Final = """
INSERT INTO {schema}.reconciliation_claims (account, side, origin, number, generation, decision)
SELECT %(account)s, c.side, c.origin, c.number, c.generation, c.decision
FROM unnest(%(sides)s::text[], %(origins)s::text[], %(numbers)s::bigint[], %(generations)s::integer[],
            %(decisions)s::bigint[])
AS c (side, origin, number, generation, decision) ORDER BY c.side, c.origin, c.number
"""

RECORD: Final = """
INSERT INTO {schema}.reconciliations (
    account, reconciliation_id, statement_id, pin, rules, reconciled, report_sha256, actor, recorded_at)
VALUES (
    %(account)s, %(reconciliation_id)s, %(statement_id)s, %(pin)s, %(rules)s::json, %(reconciled)s, %(report_sha256)s,
    %(actor)s, now())
"""

RULES: Final = """
SELECT r.rules::text FROM {schema}.reconciliations AS r
WHERE r.account = %(account)s AND r.statement_id = %(statement_id)s AND r.pin = %(pin)s
GROUP BY 1 ORDER BY min(r.recorded_at), 1
"""

OUR_ENTRIES: Final = """
SELECT e.stream, e.version, (e.effective_at AT TIME ZONE 'UTC')::date,
       (CASE WHEN e.direction = %(normal)s THEN e.amount ELSE -e.amount END)::text
FROM unnest(%(streams)s::text[], %(versions)s::bigint[]) AS s (stream, version)
JOIN {schema}.events AS e ON e.stream = s.stream AND e.version = s.version
WHERE e.type IN ('entry_posted', 'hold_captured')
"""

THEIR_ENTRIES: Final = """
SELECT e.statement_id, e.number, s.place, s.sides, e.amount::text
FROM unnest(%(statements)s::text[], %(numbers)s::integer[]) AS n (statement_id, number)
JOIN {schema}.bank_entries AS e
  ON e.account = %(account)s AND e.statement_id = n.statement_id AND e.number = n.number
JOIN {schema}.bank_statements AS s ON s.account = e.account AND s.statement_id = e.statement_id
"""


class Overtaken(Exception):
    """Somebody else has decided or staged something of the account meanwhile; look again."""


class BankEntry(NamedTuple):
    """
    A booked entry of a bank's statement: `amount` in minor units, positive where the bank credits.

    `names` are all references that it carries; `place` is where in the file it stands.
    """

    number: int
    booked_on: date
    amount: int
    names: tuple[str, ...]
    description: str
    place: str


@dataclass(frozen=True, slots=True)
class BankStatement:
    """A statement as it was read: its booked entries lead exactly from `opening` to `closing`, credit positive."""

    statement_id: str
    format: str
    file_sha256: bytes
    opens_on: date
    closes_on: date
    opening: int
    closing: int
    entries: Sequence[BankEntry]
    sequence: int = 0
    left_out: int = 0

    @property
    def place(self) -> str:
        """Its place among the statements of the account, as text that sorts."""
        return f"{self.closes_on.isoformat()}/{self.sequence:018}/{self.statement_id}"

    @property
    def digest(self) -> bytes:
        """SHA-256 of what it says, whatever it is called and however the file is laid out."""
        said = sha256(f"{self.opens_on} {self.closes_on} {self.opening} {self.closing}\n".encode())
        for entry in self.entries:
            line = [entry.number, str(entry.booked_on), str(entry.amount), list(entry.names), entry.description]
            said.update(canonical_json(line).encode() + b"\n")
        return said.digest()


class Staged(NamedTuple):
    """A statement of the account as it is kept; amounts in minor units, credit positive."""

    statement_id: str
    place: str
    digest: bytes
    sides: str
    begins_on: date
    opens_on: date
    closes_on: date
    opening: int
    closing: int


class Item(NamedTuple):
    """
    An entry of either side that is to be matched: `amount` in minor units, in the account's normal direction.

    Ours is known by its stream and version, theirs by its statement and number.  `generation` counts the decisions
    about it, and `later` says that one beyond this statement has matched it.
    """

    side: str
    origin: str
    number: int
    day: date
    amount: int
    names: tuple[str, ...] = ()
    description: str = ""
    generation: int = 0
    later: bool = False

    @property
    def name(self) -> str:
        """How a person names it: STREAM#VERSION or STATEMENT#NUMBER."""
        return f"{self.origin}#{self.number}"


class OurRow(NamedTuple):
    """An open entry of ours, and what of its transaction a statement may refer to."""

    item: Item
    transaction_id: str
    reference: str | None
    idempotency_key: str | None
    metadata: str | None


class Window(NamedTuple):
    """Which part of log and decisions is looked at, so that it is the same for ever."""

    account: str
    streams: Sequence[str]
    versions: Sequence[int]
    decision: int
    since: datetime
    until: datetime
    normal: str

    @property
    def parameters(self) -> dict[str, object]:
        """As the statements here take them."""
        return {**self._asdict(), "streams": list(self.streams), "versions": list(self.versions)}


class Decision(NamedTuple):
    """
    Who decided what about which entries, and why; `amount` in minor units is what each side of it comes to.

    `items` are pairs of origin and number by side.
    """

    number: int
    decision: str
    rule: str
    amount: int
    items: Mapping[str, Sequence[tuple[str, int]]]
    actor: str
    reason: str | None
    recorded_at: datetime


class NewDecision(NamedTuple):
    """A decision yet to be recorded; its items know their generations, and `settled` is the last place among them."""

    decision: str
    rule: str
    amount: int
    items: Sequence[Item]
    settled: str
    actor: str
    reason: str | None = None


def heads(connection: Connection, streams: Sequence[str]) -> list[int]:
    """The last version of each of these streams."""
    return [version for (version,) in connection.query(HEADS, {"streams": list(streams)})]


def last_decision(connection: Connection, account: str) -> int:
    """The number of the last decision about an account; 0 where there is none."""
    return int(connection.query(LAST_DECISION, {"account": account})[0][0])


def statements(connection: Connection, account: str) -> list[Staged]:
    """The statements of an account that are kept, in their order."""
    rows = connection.query(STATEMENTS, {"account": account})
    return [Staged._make((*row[:7], int(row[7]), int(row[8]))) for row in rows]


def balances(connection: Connection, window: Window) -> tuple[int, int]:
    """What the account came to when the window begins, and when it ends; from the log."""
    ((before, after),) = connection.query(BALANCES, window.parameters)
    return int(before), int(after)


def open_ours(connection: Connection, window: Window, place: str) -> list[OurRow]:
    """Our entries in the window that no decision up to `place` has settled; one more than allowed where too many."""
    rows = connection.query(OPEN_OURS, window.parameters | {"place": place, "limit": OPEN_MAX + 1})
    return [
        OurRow(Item(OURS, row[0], row[1], row[2], int(row[3]), generation=row[4], later=row[5]), *row[6:10])
        for row in rows
    ]


def open_theirs(connection: Connection, window: Window, signs: Mapping[str, int], place: str) -> list[Item]:
    """The entries of these statements that no decision up to `place` has settled; `signs` are of their amounts."""
    asked = window.parameters | {"statements": list(signs), "place": place, "limit": OPEN_MAX + 1}
    return [
        Item(THEIRS, row[0], row[1], row[2], int(row[3]) * signs[row[0]], tuple(row[6]), row[7], row[4], row[5])
        for row in connection.query(OPEN_THEIRS, asked)
    ]


def matches(connection: Connection, window: Window, statement_id: str, place: str) -> list[Decision]:
    """The decisions that match entries of a statement, as things stand."""
    asked = window.parameters | {"statement_id": statement_id, "place": place}
    return [_decision(row) for row in connection.query(MATCHES, asked)]


def decisions(connection: Connection, account: str, after: int, limit: int) -> list[Decision]:
    """Everything that was decided about an account after a number, in order."""
    asked = {"account": account, "after": after, "limit": limit}
    return [_decision(row) for row in connection.query(DECISIONS, asked)]


def generations(
    connection: Connection, account: str, items: Sequence[tuple[str, str, int]]
) -> dict[tuple[str, str, int], tuple[int, int]]:
    """Side, origin and number of entries → how many decisions there are about each, and the last one's number."""
    sides, origins, numbers = zip(*items, strict=True) if items else ((), (), ())
    asked = {"account": account, "sides": list(sides), "origins": list(origins), "numbers": list(numbers)}
    return {(row[0], row[1], row[2]): (row[3], row[4]) for row in connection.query(GENERATIONS, asked)}


def our_entries(
    connection: Connection, normal: str, places: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], tuple[date, int]]:
    """Stream and version → day and amount in the normal direction, of what is an entry there."""
    asked = {"normal": normal, "streams": [name for name, _ in places], "versions": [number for _, number in places]}
    return {(row[0], row[1]): (row[2], int(row[3])) for row in connection.query(OUR_ENTRIES, asked)}


def their_entries(
    connection: Connection, account: str, places: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], tuple[str, str, int]]:
    """Statement and number → place and sides of the statement, and the amount, credit positive."""
    asked = {
        "account": account,
        "statements": [name for name, _ in places],
        "numbers": [number for _, number in places],
    }
    return {(row[0], row[1]): (row[2], row[3], int(row[4])) for row in connection.query(THEIR_ENTRIES, asked)}


def stage(
    connection: Connection, account: str, statement: BankStatement, *, sides: str, begins_on: date, actor: str
) -> None:
    """
    Keep a statement, within a transaction.

    Raises:
        Overtaken: It is kept already.
    """
    named = {"account": account, "statement_id": statement.statement_id}
    head = named | {
        "place": statement.place,
        "format": statement.format,
        "file_sha256": statement.file_sha256,
        "digest": statement.digest,
        "sides": sides,
        "begins_on": begins_on,
        "opens_on": statement.opens_on,
        "closes_on": statement.closes_on,
        "opening": str(statement.opening),
        "closing": str(statement.closing),
        "entry_count": len(statement.entries),
        "actor": actor,
    }
    _insert(connection, STAGE, head)
    for entries in _together(statement.entries):
        columns = {
            "numbers": [entry.number for entry in entries],
            "days": [entry.booked_on for entry in entries],
            "amounts": [str(entry.amount) for entry in entries],
            "names": [json.dumps(entry.names) for entry in entries],
            "descriptions": [entry.description for entry in entries],
            "places": [entry.place for entry in entries],
        }
        _insert(connection, STAGE_ENTRIES, named | columns)


def decide(connection: Connection, account: str, after: int, new: Sequence[NewDecision]) -> None:
    """
    Record decisions, within a transaction, of somebody who has seen all up to the number `after`.

    Raises:
        Overtaken: Somebody has decided about the account since, or about one of these entries.
    """
    numbered = list(enumerate(new, after + 1))
    for decided in _together(numbered):
        columns = {
            "numbers": [number for number, _ in decided],
            "decisions": [each.decision for _, each in decided],
            "rules": [each.rule for _, each in decided],
            "amounts": [str(each.amount) for _, each in decided],
            "items": [canonical_json(_named(each.items)) for _, each in decided],
            "settled": [each.settled for _, each in decided],
            "actors": [each.actor for _, each in decided],
            "reasons": [each.reason for _, each in decided],
        }
        _insert(connection, DECIDE, {"account": account} | columns)
    claims = [(number, item) for number, each in numbered if each.decision != "note" for item in each.items]
    for claimed in _together(claims):
        columns = {
            "sides": [item.side for _, item in claimed],
            "origins": [item.origin for _, item in claimed],
            "numbers": [item.number for _, item in claimed],
            "generations": [item.generation + 1 for _, item in claimed],
            "decisions": [number for number, _ in claimed],
        }
        _insert(connection, CLAIM, {"account": account} | columns)


def record(
    connection: Connection,
    account: str,
    statement_id: str,
    *,
    pin: str,
    rules: Mapping[str, object],
    reconciled: bool,
    report_sha256: bytes,
    actor: str,
) -> None:
    """Record that somebody has reconciled an account with a statement, and what came of it."""
    row = {
        "account": account,
        "reconciliation_id": uuid4(),
        "statement_id": statement_id,
        "pin": pin,
        "rules": canonical_json(rules),
        "reconciled": reconciled,
        "report_sha256": report_sha256,
        "actor": actor,
    }
    connection.query(RECORD, row)


def _together(rows: Sequence[Each]) -> Iterator[Sequence[Each]]:
    for first in range(0, len(rows), _ROWS_TOGETHER):
        yield rows[first : first + _ROWS_TOGETHER]


def rules(connection: Connection, account: str, statement_id: str, pin: str) -> list[dict[str, Any]]:
    """The rules by which reports with this pin were made, each once, the first ones first."""
    asked = {"account": account, "statement_id": statement_id, "pin": pin}
    return [json.loads(row[0]) for row in connection.query(RULES, asked)]


def _insert(connection: Connection, sql: str, parameters: Mapping[str, object]) -> None:
    try:
        connection.query(sql, parameters)
    except UniqueViolation as error:
        raise Overtaken from error


def _named(items: Iterable[Item]) -> dict[str, list[list[object]]]:
    sides: dict[str, list[list[object]]] = {OURS: [], THEIRS: []}
    for item in items:
        sides[item.side].append([item.origin, item.number])
    return sides


def _decision(row: Row) -> Decision:
    items = {side: [(origin, number) for origin, number in of] for side, of in json.loads(row[4]).items()}
    return Decision(row[0], row[1], row[2], int(row[3]), items, row[5], row[6], in_utc(row[7]))
