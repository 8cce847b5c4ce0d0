"""
Whatever a superuser changes, at whichever place: it is found by `verify`, or by the check against a checkpoint that
was kept elsewhere, and the place is named.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from os import getpid
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from sqlalchemy import URL

from ledger import Finding, Ledger, Transfer
from ledger.audit.checkpoint import Checkpoint, SigningKey, sign
from ledger.core.chain import genesis, leaf_hash
from ledger.core.codec import event_record, transaction_header
from ledger.core.commands import build
from ledger.storage.store import EVENT_COLUMNS, TRANSACTION_COLUMNS, recorded_from, transaction_from
from ledger.storage.tables import APPEND_ONLY

Psql = psycopg.Connection[Any]

NAME: Final = "example.org/ledger"
ACCOUNTS: Final = ("alice", "bob", "carl", "dora", "ernie")
SEEDS: Final = 2
CAMPAIGN: Final = 25

_numbers = count(1)


class Place(NamedTuple):
    """An event: where in its stream, and where in the feed."""

    stream: str
    version: int
    position: int


@dataclass
class Scene:
    """A ledger that was sealed, and somebody who may do everything to it."""

    ledger: Ledger
    psql: Psql
    random: random.Random
    size: int

    def run(self, statement: str, *parameters: object) -> None:
        """Change something; a statement that changes nothing would show nothing."""
        assert self.psql.execute(statement.encode(), parameters).rowcount != 0, f"nothing was changed by {statement}"

    def entry(self, *, below: int | None = None) -> Place:
        """A random entry."""
        rows = self.psql.execute(
            "SELECT f.stream, f.version, f.position FROM feed f JOIN events e USING (stream, version)"
            " WHERE e.amount IS NOT NULL AND f.position < %s ORDER BY 3",
            (below or self.size,),
        ).fetchall()
        return Place(*self.random.choice(rows))

    def together(self, place: Place) -> list[Place]:
        """All events of the transaction of one of them."""
        rows = self.psql.execute(
            "SELECT f.stream, f.version, f.position FROM feed f WHERE transaction_id ="
            " (SELECT transaction_id FROM feed WHERE position = %s)",
            (place.position,),
        )
        return [Place(*row) for row in rows]

    def rehash(self) -> None:
        """Make all hashes anew, in the log and in the feed, and the projections: sound in itself."""
        transactions = [
            transaction_from(row)
            for row in self.psql.execute(f"SELECT {TRANSACTION_COLUMNS} FROM transactions AS t".encode())
        ]
        headers = {each.transaction_id: sha256(transaction_header(*each[:-1])).digest() for each in transactions}
        events = [
            recorded_from(row)
            for row in self.psql.execute(f"SELECT {EVENT_COLUMNS} FROM events AS e ORDER BY stream, version".encode())
        ]
        ledger_id = str(self.ledger.ledger_id)
        before: dict[str, bytes] = {}
        with self.psql.cursor() as cursor:
            cursor.executemany(
                "UPDATE transactions SET header_hash = %s WHERE transaction_id = %s",
                [(header, transaction_id) for transaction_id, header in headers.items()],
            )
            for event in events:
                prev = before.get(event.stream) or genesis(ledger_id, event.stream)
                fields: tuple[Any, ...] = (*event[:-2], prev)
                new = leaf_hash(event_record(headers[event.transaction_id].hex(), *fields))
                before[event.stream] = new
                cursor.execute(
                    "UPDATE events SET prev_hash = %s, event_hash = %s WHERE stream = %s AND version = %s",
                    (prev, new, event.stream, event.version),
                )
            cursor.execute(
                "UPDATE feed SET event_hash = e.event_hash FROM events e"
                " WHERE (e.stream, e.version) = (feed.stream, feed.version)"
            )


Change = Callable[[Scene], list[Place]]


def column(assignment: str) -> Change:
    """Change a column of an event."""

    def change(scene: Scene) -> list[Place]:
        place = scene.entry()
        scene.run(f"UPDATE events SET {assignment} WHERE stream = %s AND version = %s", *place[:2])
        return [place]

    return change


def header(assignment: str) -> Change:
    """Change a column of a transaction."""

    def change(scene: Scene) -> list[Place]:
        place = scene.entry()
        scene.run(
            f"UPDATE transactions SET {assignment} WHERE transaction_id ="
            " (SELECT transaction_id FROM feed WHERE position = %s)",
            place.position,
        )
        return scene.together(place)

    return change


def announcement(assignment: str) -> Change:
    """Change what a transaction announces so that it says no place: it is named itself."""
    plain = header(assignment)

    def change(scene: Scene) -> list[Place]:
        (transaction_id,) = scene.psql.execute(
            "SELECT transaction_id::text FROM feed WHERE position = %s", (plain(scene)[0].position,)
        ).fetchone() or ("",)
        return [Place(transaction_id, 0, 0)]

    return change


def fed(statement: str) -> Change:
    """Change a row of the feed."""

    def change(scene: Scene) -> list[Place]:
        place = scene.entry()
        scene.run(statement, place.position)
        return [place]

    return change


def event_renamed(scene: Scene) -> list[Place]:
    """An event of one account becomes another's."""
    place = scene.entry()
    scene.run("UPDATE events SET stream = 'mallory' WHERE stream = %s AND version = %s", *place[:2])
    return [place, Place("mallory", place.version, 0)]


def events_swapped(scene: Scene) -> list[Place]:
    """Two events of one account change places, whole."""
    place = scene.entry()
    while place.version < 3:
        place = scene.entry()
    stream, version, position = place
    for old, new in ((version, -1), (version - 1, version), (-1, version - 1)):
        scene.run("UPDATE events SET version = %s WHERE stream = %s AND version = %s", new, stream, old)
    return [place, Place(stream, version - 1, position)]


def amounts_swapped(scene: Scene) -> list[Place]:
    """Two transactions change their amounts."""
    one, other = scene.entry(), scene.entry()
    while scene.psql.execute(
        "SELECT count(DISTINCT amount) FROM feed JOIN events USING (stream, version) WHERE position IN (%s, %s)",
        (one.position, other.position),
    ).fetchone() != (2,):
        other = scene.entry()
    scene.run(
        "UPDATE events SET amount = (SELECT sum(amount) FROM events e JOIN feed f USING (stream, version)"
        " WHERE f.position IN (%(one)s, %(other)s)) - amount FROM feed f"
        " WHERE (f.stream, f.version) = (events.stream, events.version) AND f.position IN (%(one)s, %(other)s)".replace(
            "%(one)s", str(one.position)
        ).replace("%(other)s", str(other.position))
    )
    return [one, other]


def entry_added(scene: Scene) -> list[Place]:
    """One more entry at the end of an account."""
    place = scene.entry()
    scene.run(
        "INSERT INTO events SELECT (jsonb_populate_record(e, jsonb_build_object('version', (SELECT max(version) + 1"
        " FROM events l WHERE l.stream = e.stream)))).* FROM events e WHERE stream = %s AND version = %s",
        *place[:2],
    )
    rows = scene.psql.execute("SELECT max(version) FROM events WHERE stream = %s", (place.stream,)).fetchall()
    return [Place(place.stream, rows[0][0], 0)]


def tail_of_account_deleted(scene: Scene) -> list[Place]:
    """The last events of an account are gone, and its projection says so too."""
    place = scene.entry()
    scene.run("DELETE FROM events WHERE stream = %s AND version >= %s", *place[:2])
    scene.ledger.rebuild(place.stream)
    return [place]


def account_deleted(scene: Scene) -> list[Place]:
    """Nothing of an account is left but in the feed."""
    stream = scene.entry().stream
    for table, name in (("events", "stream"), ("balances", "stream"), ("accounts", "account")):
        scene.run(f"DELETE FROM {table} WHERE {name} = %s", stream)
    return [Place(stream, 1, 0)]


def transaction_deleted(scene: Scene) -> list[Place]:
    """A transaction is gone, its events are not."""
    place = scene.entry()
    scene.run(
        "DELETE FROM transactions WHERE transaction_id = (SELECT transaction_id FROM feed WHERE position = %s)",
        place.position,
    )
    return scene.together(place)


def transaction_deleted_with_its_events(scene: Scene) -> list[Place]:
    """A transaction is gone with all that belongs to it, and what follows is renumbered, hashed and projected anew."""
    place = scene.entry()
    gone = scene.together(place)
    (transaction_id,) = scene.psql.execute(
        "SELECT transaction_id FROM feed WHERE position = %s", (place.position,)
    ).fetchone() or (None,)
    moved = {
        (stream, version): (direction, amount)
        for stream, version, direction, amount in scene.psql.execute(
            "SELECT stream, version, direction, amount FROM events WHERE transaction_id = %s", (transaction_id,)
        )
    }
    for table in ("feed", "events", "transactions"):
        scene.run(f"DELETE FROM {table} WHERE transaction_id = %s", transaction_id)
    for stream, version, position in sorted(gone, key=lambda each: -each.position):
        direction, amount = moved[stream, version]
        number = f"posted_{direction}s"
        scene.psql.execute(
            f"UPDATE events SET {number} = {number} - %s WHERE stream = %s AND version > %s".encode(),
            (amount, stream, version),
        )
        for table in ("events", "feed"):
            # By way of negative ones: the order in which rows are changed is chance, and two would be alike meanwhile.
            scene.psql.execute(
                f"UPDATE {table} SET version = 1 - version WHERE stream = %s AND version > %s".encode(),
                (stream, version),
            )
            scene.psql.execute(
                f"UPDATE {table} SET version = -version WHERE stream = %s AND version < 0".encode(), (stream,)
            )
        scene.psql.execute("UPDATE feed SET position = position - 1 WHERE position > %s", (position,))
        scene.psql.execute(
            "UPDATE transactions SET announced = ARRAY(SELECT CASE"
            " WHEN a LIKE %s AND substring(a FROM '[0-9]+$')::bigint > %s"
            " THEN %s || (substring(a FROM '[0-9]+$')::bigint - 1) ELSE a END FROM unnest(announced) AS a)",
            (f"{stream} %", version, f"{stream} "),
        )
    scene.rehash()
    scene.ledger.rebuild()
    return gone


def feed_tail_deleted(scene: Scene) -> list[Place]:
    """The end of the feed is gone."""
    place = scene.entry()
    scene.run("DELETE FROM feed WHERE position >= %s", place.position)
    return [Place("", 0, place.position), Place("", 0, place.position - 1)]


def feed_swapped(scene: Scene) -> list[Place]:
    """Two positions of the feed, of different accounts, change places: each account is in order as before."""
    one = scene.entry(below=scene.size - 1)
    while len(scene.together(one)) < 2 or max(each.position for each in scene.together(one)) == one.position:
        one = scene.entry(below=scene.size - 1)
    scene.run(
        f"UPDATE feed SET position = {2 * one.position + 1} - position WHERE position IN (%s, %s)",
        one.position,
        one.position + 1,
    )
    return [one, Place("", 0, one.position + 1)]


def leaf_doubled(scene: Scene) -> list[Place]:
    """An event is in the feed twice, and what follows stands one further."""
    place = scene.entry()
    scene.run("UPDATE feed SET position = position + 1 WHERE position > %s", place.position)
    scene.run(
        "INSERT INTO feed SELECT position + 1, stream, version, transaction_id, event_hash, known_at FROM feed"
        " WHERE position = %s",
        place.position,
    )
    return [place]


def leaf_left_out(scene: Scene) -> list[Place]:
    """The last event of an account is not in the feed, and what follows stands one lower."""
    stream = scene.random.choice(ACCOUNTS)
    rows = scene.psql.execute(
        "SELECT stream, version, position FROM feed WHERE stream = %s ORDER BY version DESC LIMIT 1", (stream,)
    ).fetchall()
    place = Place(*rows[0])
    scene.run("DELETE FROM feed WHERE position = %s", place.position)
    scene.psql.execute("UPDATE feed SET position = position - 1 WHERE position > %s", (place.position,))
    return [place, Place("", 0, scene.size - 1)]


def tile(statement: str) -> Change:
    """Change a tile of the tree at one of its hashes."""

    def change(scene: Scene) -> list[Place]:
        number, offset = scene.random.randrange(2), scene.random.randrange(256)
        scene.run(statement.format(byte=32 * offset), number)
        whole = "{byte}" not in statement
        return [Place(f"tile/0/00{number}", 0, 0 if whole else 256 * number + offset + 1)]

    return change


def checkpoint(statement: str) -> Change:
    """Change a checkpoint in the database."""

    def change(scene: Scene) -> list[Place]:
        rows = scene.psql.execute("SELECT size FROM checkpoints").fetchall()
        (size,) = scene.random.choice(rows)
        scene.run(statement, size)
        return [Place(f"{size} events", 0, 0)]

    return change


def checkpoint_replaced(scene: Scene) -> list[Place]:
    """A checkpoint is signed with another key."""
    note = sign(Checkpoint(NAME, scene.size, sha256(b"").digest()), SigningKey.generate(NAME))
    scene.run("UPDATE checkpoints SET note = %s, root = %s WHERE size = %s", note, sha256(b"").digest(), scene.size)
    return [Place(f"{scene.size} events", 0, 0)]


def amount_and_hashes(scene: Scene) -> list[Place]:
    """A transaction is of another amount, with all numbers after it, all hashes and all projections to match."""
    places = scene.together(scene.entry())
    for stream, version, _ in places:
        (direction,) = scene.psql.execute(
            "SELECT direction FROM events WHERE stream = %s AND version = %s", (stream, version)
        ).fetchone() or (None,)
        scene.run("UPDATE events SET amount = amount + 5 WHERE stream = %s AND version = %s", stream, version)
        number = f"posted_{direction}s"
        scene.run(f"UPDATE events SET {number} = {number} + 5 WHERE stream = %s AND version >= %s", stream, version)
    scene.rehash()
    scene.ledger.rebuild()
    return places


def header_and_hashes(assignment: str) -> Change:
    """A transaction's column is changed, with all hashes and projections to match."""
    plain = header(assignment)

    def change(scene: Scene) -> list[Place]:
        places = plain(scene)
        scene.rehash()
        scene.ledger.rebuild()
        return places

    return change


def hashes_tiles_and_roots(scene: Scene) -> list[Place]:
    """… and with tiles and roots: only what was signed is as it was."""
    places = header_and_hashes("actor = 'mallory'")(scene)
    scene.run("DELETE FROM tree_tiles")
    hashes = [row[0] for row in scene.psql.execute("SELECT event_hash FROM feed ORDER BY position")]
    for number in range(len(hashes) // 256):
        part = b"".join(hashes[256 * number : 256 * (number + 1)])
        scene.run("INSERT INTO tree_tiles VALUES (0, %s, %s)", number, part)
    return places


def set_back(scene: Scene) -> list[Place]:
    """Everything is as it was at an earlier checkpoint, as from a backup."""
    (size,) = scene.psql.execute("SELECT min(size) FROM checkpoints").fetchone() or (0,)
    scene.run(
        "DELETE FROM transactions WHERE transaction_id IN (SELECT transaction_id FROM feed WHERE position > %s)", size
    )
    scene.run("DELETE FROM events WHERE transaction_id IN (SELECT transaction_id FROM feed WHERE position > %s)", size)
    scene.run("DELETE FROM feed WHERE position > %s", size)
    scene.run("DELETE FROM tree_tiles WHERE (number + 1) * 256 > %s", size)
    scene.run("DELETE FROM checkpoints WHERE size > %s", size)
    scene.ledger.rebuild()
    return [Place("", 0, size)]


def projected(statement: str) -> Change:
    """Change a projection."""

    def change(scene: Scene) -> list[Place]:
        stream = scene.random.choice(ACCOUNTS)
        scene.run(statement, stream)
        return [Place(stream, 0, 0)]

    return change


def freed(table: str, change: Change) -> Change:
    """Before the change nothing holds the rows of a table to anything: no key, no check, no NOT NULL."""

    def free(scene: Scene) -> list[Place]:
        named = (table,)
        for (name,) in scene.psql.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('c', 'p', 'u')", named
        ).fetchall():
            scene.psql.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}".encode())
        for (name,) in scene.psql.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND attnotnull", named
        ).fetchall():
            scene.psql.execute(f'ALTER TABLE {table} ALTER "{name}" DROP NOT NULL'.encode())
        return change(scene)

    return free


def doubled(table: str, key: str, assignment: str) -> Change:
    """A row is there twice, by way of a table that inherits; the second one is changed, or it is not."""

    def change(scene: Scene) -> list[Place]:
        rows = scene.psql.execute(f"SELECT {key}::text FROM {table} ORDER BY 1".encode()).fetchall()
        (chosen,) = scene.random.choice(rows)
        scene.psql.execute(f"CREATE TABLE second () INHERITS ({table})".encode())
        scene.run(f"INSERT INTO second SELECT * FROM ONLY {table} WHERE {key}::text = %s", chosen)
        scene.run(f"UPDATE second SET {assignment}")
        return [Place("is there 2 times", 0, 0)]

    return change


def anywhere(statement: str, told: str) -> Change:
    """Change what belongs to no one event; what is found says so."""

    def change(scene: Scene) -> list[Place]:
        scene.run(statement)
        return [Place(told, 0, 0)]

    return change


def last_known(moment: str) -> Change:
    """The last position is known at another time."""

    def change(scene: Scene) -> list[Place]:
        scene.run(f"UPDATE feed SET known_at = {moment} WHERE position = %s", scene.size)
        return [Place("", 0, scene.size)]

    return change


def key_dropped(scene: Scene) -> list[Place]:
    """Transactions have no key any more, and an amount is another."""
    scene.psql.execute("ALTER TABLE transactions DROP CONSTRAINT transactions_pkey")
    return column("amount = amount + 1")(scene)


def guard_dropped(scene: Scene) -> list[Place]:
    """Not only switched off for a moment: there is no guard any more."""
    scene.psql.execute("DROP TRIGGER append_only ON events")
    return column("amount = amount + 1")(scene)


KINDS: dict[str, Change] = {
    "amount": column("amount = amount + 1"),
    "direction": column("direction = CASE direction WHEN 'debit' THEN 'credit' ELSE 'debit' END"),
    "asset": column("asset = 'EUR'"),
    "payload": column("""payload = '{"entry":7}'"""),
    "type": column("type = 'gift'"),
    "schema": column("schema = 2"),
    "effective_at": column("effective_at = effective_at - interval '1 day'"),
    "recorded_at": column("recorded_at = recorded_at + interval '1 microsecond'"),
    "posted number": column("posted_debits = posted_debits + 1"),
    "pending number": column("pending_credits = pending_credits + 1"),
    "prev_hash": column("prev_hash = sha256(prev_hash)"),
    "event_hash": column("event_hash = sha256(event_hash)"),
    "transaction of an event": column("transaction_id = gen_random_uuid()"),
    "account of an event": event_renamed,
    "events swapped": events_swapped,
    "amounts swapped": amounts_swapped,
    "event deleted": fed(
        "DELETE FROM events WHERE (stream, version) = (SELECT stream, version FROM feed WHERE position = %s)"
    ),
    "entry added": entry_added,
    "tail of an account deleted": tail_of_account_deleted,
    "account deleted": account_deleted,
    "guard dropped": guard_dropped,
    "actor": header("actor = 'mallory'"),
    "request": header("""request = '{"amount":"1"}'"""),
    "reference": header("reference = 'another'"),
    "metadata": header("""metadata = '{"a":1}'"""),
    "idempotency key": header("idempotency_key = 'another'"),
    "scope": header("scope = 'another'"),
    "entry_count": header("entry_count = 1"),
    "announced": header("announced = ARRAY[announced[2], announced[1]]"),
    "header_hash": header("header_hash = sha256(header_hash)"),
    "transaction deleted": transaction_deleted,
    "transaction deleted, all hashes made anew": transaction_deleted_with_its_events,
    "position deleted": fed("DELETE FROM feed WHERE position = %s"),
    "tail of the feed deleted": feed_tail_deleted,
    "positions swapped": feed_swapped,
    "hash in the feed": fed("UPDATE feed SET event_hash = sha256(event_hash) WHERE position = %s"),
    "stream in the feed": fed("UPDATE feed SET stream = 'mallory' WHERE position = %s"),
    "transaction in the feed": fed("UPDATE feed SET transaction_id = gen_random_uuid() WHERE position = %s"),
    "leaf doubled": leaf_doubled,
    "leaf left out": leaf_left_out,
    "tile changed": tile(
        "UPDATE tree_tiles SET hashes = set_byte(hashes, {byte}, 255 - get_byte(hashes, {byte}))"
        " WHERE level = 0 AND number = %s"
    ),
    "tile deleted": tile("DELETE FROM tree_tiles WHERE level = 0 AND number = %s"),
    "root of a checkpoint": checkpoint("UPDATE checkpoints SET root = sha256(root) WHERE size = %s"),
    "note of a checkpoint": checkpoint("UPDATE checkpoints SET note = note || 'x' WHERE size = %s"),
    "checkpoint replaced": checkpoint_replaced,
    "amount, all hashes made anew": amount_and_hashes,
    "actor, all hashes made anew": header_and_hashes("actor = 'mallory'"),
    "metadata, all hashes made anew": header_and_hashes("""metadata = '{"a":1}'"""),
    "actor, all hashes, tiles and roots made anew": hashes_tiles_and_roots,
    "set back": set_back,
    "balance": projected("UPDATE balances SET posted_debits = posted_debits + 1 WHERE stream = %s"),
    "balance deleted": projected("DELETE FROM balances WHERE stream = %s"),
    "account's limit": projected("UPDATE accounts SET min_balance = 5 WHERE account = %s"),
}

# What no column of ours can hold, and what a column that says something always does not say.
KINDS |= {
    "payload of half a character": column("""payload = '{"entry":"\\ud800"}'"""),
    "payload nested": column("payload = (repeat('[', 2000) || repeat(']', 2000))::json"),
    "key of transactions dropped": key_dropped,
    **{
        f"{name} of an event NULL": freed("events", column(f"{name} = NULL"))
        for name in ("transaction_id", "type", "payload", "schema", "recorded_at", "prev_hash", "event_hash")
    },
    **{
        f"{name} of a transaction NULL": freed("transactions", header(f"{name} = NULL"))
        for name in ("kind", "scope", "request", "entry_count", "recorded_at", "header_hash")
    },
    **{
        f"announced as {array}": freed("transactions", announcement(f"announced = {array}"))
        for array in (
            "NULL",
            *("'{}'", "'{NULL}'", "ARRAY[announced]"),
            """('[0:1]={"' || announced[1] || '","' || announced[2] || '"}')::text[]""",
        )
    },
    **{
        f"{name} of a position NULL": freed("feed", fed(f"UPDATE feed SET {name} = NULL WHERE position = %s"))
        for name in ("position", "transaction_id", "event_hash", "known_at")
    },
    "last position known never": last_known("'infinity'"),
    "last position known in another era": last_known("'20000-01-01'"),
    "last position known tomorrow": last_known("known_at + interval '1 day'"),
    "position far away": freed("feed", fed("UPDATE feed SET position = 9223372036854775807 WHERE position >= %s")),
    "clock of the feed ahead": anywhere("UPDATE feed_clock SET known_until = '2100-01-01'", "2100"),
    "clock of the feed endless": anywhere("UPDATE feed_clock SET known_until = 'infinity'", "infinity"),
    "period of no end": anywhere("UPDATE periods SET closed_until = 'infinity'", "closed_until"),
    "period of another era": anywhere("UPDATE periods SET closed_until = '0044-03-15 BC'", "closed_until"),
    "balance of nobody": freed("balances", projected("UPDATE balances SET stream = NULL WHERE stream = %s")),
    "account of nobody": freed("accounts", projected("UPDATE accounts SET account = NULL WHERE account = %s")),
    "tile of a byte too many": freed(
        "tree_tiles", tile("UPDATE tree_tiles SET hashes = hashes || '\\x00' WHERE level = 0 AND number = %s")
    ),
    "checkpoint beyond the feed": anywhere(
        "INSERT INTO checkpoints SELECT 100000, root, note, sealed_at FROM checkpoints LIMIT 1", "100000 events"
    ),
    "checkpoint without a size": freed(
        "checkpoints", anywhere("UPDATE checkpoints SET size = NULL", "checkpoint of None events")
    ),
    **{
        f"checkpoint's {assignment}": freed(
            "checkpoints", checkpoint(f"UPDATE checkpoints SET {assignment} WHERE size = %s")
        )
        for assignment in (
            *("root = NULL", "note = NULL", "sealed_at = NULL"),
            *("sealed_at = 'infinity'", "sealed_at = '20000-01-01'", "sealed_at = '0044-03-15 BC'"),
        )
    },
    "balance doubled": doubled("balances", "stream", "posted_debits = posted_debits + 777"),
    "balance doubled as it is": doubled("balances", "stream", "version = version"),
    "account doubled": doubled("accounts", "account", "min_balance = -5"),
    "identity doubled": doubled("identity", "singleton", "ledger_id = gen_random_uuid()"),
    "period doubled": doubled("periods", "singleton", "closed_until = NULL"),
    "clock doubled": doubled("feed_clock", "singleton", "known_until = 'epoch'"),
    "checkpoint doubled": doubled("checkpoints", "size", "size = size"),
    "tile doubled": doubled("tree_tiles", "number", "hashes = hashes"),
}

UNSEEN_WITHIN: Final = {
    "positions swapped",
    "tile changed",
    "tile deleted",
    "tile of a byte too many",
    "checkpoint replaced",
    "amount, all hashes made anew",
    "actor, all hashes made anew",
    "metadata, all hashes made anew",
    "actor, all hashes, tiles and roots made anew",
    "set back",
}
"""What `verify` alone cannot see: the log is sound in itself."""


@pytest.fixture(scope="module")
def key() -> SigningKey:
    """A key outside of the database."""
    return SigningKey.generate(NAME)


class Original(NamedTuple):
    """A sealed ledger in a database that is cloned for each change, and its checkpoint, kept elsewhere."""

    database: str
    note: bytes
    size: int


@pytest.fixture(scope="module")
def original(ledger_server: URL, ledger_template: str, key: SigningKey) -> Iterator[Original]:
    """Five accounts, 600 events, two checkpoints and two full tiles."""
    name = f"ledger_sealed_{getpid()}"
    server = ledger_server.render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {ledger_template} STRATEGY wal_log".encode())
    draws = random.Random(7)  # noqa: S311  (not for secrets)
    with Ledger.connect(ledger_server.set(database=name).render_as_string(hide_password=False)) as ledger:
        for account in ACCOUNTS:
            ledger.open_account(account, asset="USD", type="liability")
        for _ in range(2):
            for _ in range(20):
                pairs = [draws.sample(ACCOUNTS, 2) for _ in range(7)]
                ledger.handle(
                    [
                        build(Transfer, amount=f"{draws.randint(1, 99)} USD", debit=debit, credit=credit, actor="ann")
                        for debit, credit in pairs
                    ]
                )
            ledger.stamp()
            ledger.seal(key)
        sealed = ledger.checkpoint()
    assert sealed.size > 512
    yield Original(name, sealed.note, sealed.size)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def tampered(ledger_server: URL, original: Original) -> Iterator[Callable[[Change, int], tuple[Ledger, list[Place]]]]:
    """Makes a copy of the sealed ledger with a change in it: the copy, and where it was changed."""
    made: list[tuple[str, Ledger]] = []
    server = ledger_server.render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:

        def make(change: Change, seed: int) -> tuple[Ledger, list[Place]]:
            name = f"ledger_tampered_{getpid()}_{next(_numbers)}"
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {original.database} STRATEGY wal_log".encode())
            url = ledger_server.set(database=name).render_as_string(hide_password=False)
            ledger = Ledger.connect(url, pool_size=2)
            made.append((name, ledger))
            with psycopg.connect(url, autocommit=True, options="-c search_path=ledger") as psql:
                for table in (*APPEND_ONLY, "feed_clock"):
                    psql.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
                for constraint in ("feed_pkey", "feed_event"):
                    psql.execute(f"ALTER TABLE feed DROP CONSTRAINT {constraint}".encode())
                psql.execute("ALTER TABLE events DROP CONSTRAINT events_version_positive")
                draws = random.Random(seed)  # noqa: S311  (not for secrets)
                return ledger, change(Scene(ledger, psql, draws, original.size))

        yield make
        for name, ledger in made:
            ledger.close()
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def names(finding: Finding, place: Place) -> bool:
    """Whether a finding says where: the event, its position, or the two checkpoints that it is between."""
    if place.stream and (finding.stream, finding.version) == place[:2]:
        return True
    text = f"{finding.stream} {finding.column} {finding.problem}"
    if place.position == 0:
        return place.stream in text
    if re.search(rf"position {place.position:,}\b", text):
        return True
    between = re.search(r"behind position ([0-9,]+)(?:, up to ([0-9,]+))?", text)
    if between is None:
        return False
    first, last = (int((each or "999999").replace(",", "")) for each in between.groups())
    return first < place.position <= last


def check(name: str, seed: int, tampered: Any, original: Original, key: SigningKey) -> None:
    """One change at one place is found, and its place named."""
    ledger, places = tampered(KINDS[name], seed)
    within = ledger.verify()
    against = ledger.verify_against(original.note, [key.verifier])
    assert within.ok == (name in UNSEEN_WITHIN), within.findings[:3]
    findings = [*within.findings, *against.findings]
    assert any(names(finding, place) for finding in findings for place in places), (places, findings[:6])


def test_the_original_is_sound(
    tampered: Callable[[Change, int], tuple[Ledger, list[Place]]], original: Original, key: SigningKey
) -> None:
    """What was not changed is found sound by both, all of it."""
    ledger, _ = tampered(lambda _: [], 0)
    assert ledger.verify().ok
    report = ledger.verify_against(original.note, [key.verifier])
    assert report.ok, report.findings
    assert report.checked == {"records": original.size, "tiles": 2, "checkpoints": 2}


@pytest.mark.parametrize("name", KINDS)
def test_every_change_is_found(name: str, tampered: Any, original: Original, key: SigningKey) -> None:
    """By `verify`, or by the check against the checkpoint; the place is named."""
    for seed in range(SEEDS):
        check(name, seed, tampered, original, key)


@pytest.mark.campaign
@pytest.mark.parametrize("name", KINDS)
def test_every_change_is_found_at_many_places(name: str, tampered: Any, original: Original, key: SigningKey) -> None:
    """The same, at many more places."""
    for seed in range(SEEDS, SEEDS + CAMPAIGN):
        check(name, seed, tampered, original, key)
