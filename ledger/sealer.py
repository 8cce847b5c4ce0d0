"""
The sealer: the new part of the feed → tiles and a signed checkpoint, by one at a time.

It signs nothing that it has not seen: each record is made anew from the log, so that no hash is signed that nobody can
open, and each stream must go on where it stood.  And it signs nothing that contradicts what it signed before: when it
begins it reads all hashes of the feed once, and the tree over them must have had the root of the last checkpoint that
the database has, and of the one in a file outside of the database, which whoever rewrites the database cannot reach.

Writers are not in its way, nor it in theirs: it reads what is stamped, and that never changes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ledger.audit.checkpoint import Checkpoint, SigningKey, VerifierKey, open_checkpoint, sign
from ledger.core.canonical import utc_text
from ledger.core.chain import leaf_hash
from ledger.core.errors import ConcurrencyError, DatabaseUnavailable, InvalidCommand, ProofFailed
from ledger.core.merkle import Tiling
from ledger.stamper import Pause
from ledger.storage import feed, leases, tree
from ledger.storage.database import Connection, Database
from ledger.storage.leases import LeaseLost
from ledger.storage.tree import SEALER, Sealed

EVENTS_MAX: Final = 50_000
"""Sealed with one checkpoint at most: its tiles are written in one transaction."""

LEASE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 10.0
_PAUSE_SECONDS_MAX: Final = 86_400.0
_TOLD_EACH: Final = 1_000


class Sealer:
    """Seals under a lease; made by `Ledger.sealer`."""

    def __init__(
        self,
        database: Database,
        key: SigningKey,
        *,
        state: Path | None = None,
        former: Iterable[VerifierKey] = (),
        every: float = PAUSE_SECONDS,
        limit: int = EVENTS_MAX,
        on_problem: Callable[[str], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if not 0 < every <= _PAUSE_SECONDS_MAX:
            raise InvalidCommand("every", f"{every!r} is not a number of seconds above 0, up to {_PAUSE_SECONDS_MAX:g}")
        if type(limit) is not int or not 1 <= limit <= EVENTS_MAX:
            raise InvalidCommand("limit", f"{limit!r} is not a number of events from 1 to {EVENTS_MAX}")
        self.owner = f"{socket.gethostname()}/{os.getpid()}"
        self._database = database
        self._key = key
        self._known = (key.verifier, *former)
        self._state = state
        self._limit = limit
        self._on_problem = on_problem or _silent
        self._progress = progress or _silent
        self._pause = Pause(every, every)
        self._epoch: int | None = None
        self._has_more = False
        self._kept = b""
        self._tree: Tiling | None = None
        """The tree as it was sealed last; None until all of it was read once."""

    def step(self) -> Sealed | None:
        """
        Seal what is new, up to a bounded number of events; None where nothing is, or somebody else has the lease.

        Raises:
            ProofFailed: What was signed before is not the beginning of what the database has now; nothing was signed.
            CorruptLog: An event is not what the feed has, or one before it is missing; nothing was signed.
            OSError: The file beside the key cannot be read or written.
        """
        with self._database.connection() as connection:
            if self._epoch is None:
                self._epoch = leases.claim(connection, SEALER, self.owner, LEASE_SECONDS)
            if self._epoch is None:
                return None
            last = tree.last_checkpoint(connection)
            known = self._tree = self._caught_up(connection, last)
            if last is not None:
                # Of a commit whose answer was lost, or of another sealer.
                self._keep(last.note)
            head = feed.head(connection)
            size = min(head, known.size + self._limit)
            self._has_more = size < head
            if size <= known.size:
                return None
            try:
                sealed, self._tree = self._sealed(connection, self._epoch, known, size)
            except LeaseLost:
                self._epoch = None
                return None
        self._keep(sealed.note)
        return sealed

    def seal(self) -> Sealed | None:
        """
        Seal all that was stamped, step by step; returns the last checkpoint, or None where nothing is new.

        Raises as `step`, and:
            ConcurrencyError: Somebody else has the lease, and something is not sealed yet.
        """
        last = None
        while (sealed := self.step()) is not None:
            last = sealed
        if self._epoch is None:
            with self._database.connection() as connection:
                _check_sealed(connection)
        return last

    def run(self) -> None:
        """
        Seal what is new, and look again after a pause, until it is stopped; through losses of the database.

        Raises as `step` where the database was changed: that is for a person to look at.
        """
        told = ""
        while not self._pause.ended:
            sealed, problem = None, ""
            try:
                sealed = self.step()
            except (DatabaseUnavailable, ConcurrencyError) as error:
                problem = str(error)
            # Once, however often it is tried again.
            if problem and problem != told:
                self._on_problem(problem)
            told = problem
            if sealed is None or not self._has_more:
                self._pause.wait()

    def stop(self) -> None:
        """Let `run` end after its present step; from any thread or signal handler."""
        self._pause.end()

    def close(self) -> None:
        """Let the lease go."""
        self.stop()
        epoch, self._epoch = self._epoch, None
        if epoch is not None:
            with suppress(DatabaseUnavailable), self._database.connection() as connection:
                leases.let_go(connection, SEALER, epoch)

    def _caught_up(self, connection: Connection, last: Sealed | None) -> Tiling:
        """
        The tree over the feed as far as it was sealed, which must be what was signed each time.

        What this one has sealed itself, or read before, is not read again.
        """
        signed = self._signed(last)
        if self._tree is None:
            signed += self._state_signed()
        grown = Tiling() if self._tree is None else self._tree.copy()
        sealed = 0 if last is None else last.size
        for checkpoint, where in sorted(signed, key=lambda each: each[0].size):
            if checkpoint.size > sealed:
                raise ProofFailed(where, _BEHIND.format(sealed=sealed, signed=checkpoint.size))
            self._extend(connection, grown, checkpoint.size)
            if grown.root() != checkpoint.root:
                raise ProofFailed(where, _REWRITTEN.format(size=checkpoint.size))
        if grown.size > sealed:
            raise ProofFailed("What this sealer has signed", _BEHIND.format(sealed=sealed, signed=grown.size))
        return grown

    def _extend(self, connection: Connection, grown: Tiling, size: int) -> None:
        for page in tree.hashes(connection, grown.size, size):
            grown.extend(page)
            self._progress(grown.size)

    def _signed(self, last: Sealed | None) -> list[tuple[Checkpoint, str]]:
        """What the database says was signed last."""
        if last is None:
            return []
        where = f"The last checkpoint in the database, of {last.size:,} events,"
        checkpoint = self._opened(last.note, where)
        if (checkpoint.size, checkpoint.root) != (last.size, last.root):
            raise ProofFailed(where, "its row is not what was signed")
        return [(checkpoint, where)]

    def _state_signed(self) -> list[tuple[Checkpoint, str]]:
        """What the file beside the key says was signed last: it may be one behind the database, and never ahead."""
        if self._state is None or not self._state.exists():
            return []
        where = f"The checkpoint in {self._state}"
        return [(self._opened(self._state.read_bytes(), where), where)]

    def _opened(self, note: bytes, where: str) -> Checkpoint:
        try:
            return open_checkpoint(note, self._known, origin=self._key.name)
        except ProofFailed as error:
            raise ProofFailed(where, error.problem) from None

    def _sealed(self, connection: Connection, epoch: int, known: Tiling, size: int) -> tuple[Sealed, Tiling]:
        grown = known.copy()
        filled = grown.extend(self._leaves(connection, known.size, size))
        note = sign(Checkpoint(self._key.name, size, grown.root()), self._key)
        with connection.transaction():
            if not connection.query(*leases.hold(SEALER, epoch, LEASE_SECONDS)):
                raise LeaseLost
            sealed = tree.add(connection, filled, size, grown.root(), note)
        return sealed, grown

    def _leaves(self, connection: Connection, after: int, size: int) -> Iterator[bytes]:
        for position, record in enumerate(tree.records(connection, after, size), after + 1):
            yield leaf_hash(record)
            if position % _TOLD_EACH == 0:
                self._progress(position)

    def _keep(self, note: bytes) -> None:
        """After the database: where a crash comes between the two, the file is behind, and that is no contradiction."""
        if self._state is None or note == self._kept:
            return
        new = self._state.with_name(self._state.name + ".new")
        with new.open("wb") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._state)
        descriptor = os.open(self._state.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._kept = note


_BEHIND: Final = (
    "the database has been sealed up to {sealed:,} events only, and {signed:,} were signed: it was set back."
    " Restore what is missing; to seal another history under the same name would be seen by whoever has the first"
)
_REWRITTEN: Final = (
    "the feed's first {size:,} hashes have another root than was signed: they were changed."
    " Find the place with `ledger verify --against`, and restore from a backup"
)


def _check_sealed(connection: Connection) -> None:
    """Of who did not get the lease: whether whoever has it has left nothing to do."""
    last, head = tree.last_checkpoint(connection), feed.head(connection)
    left = head - (0 if last is None else last.size)
    lease = leases.lease(connection, SEALER)
    if left and lease is not None:
        raise ConcurrencyError(
            f"{left:,} events are not sealed yet, and {lease.owner} has the sealer's lease"
            f" until {utc_text(lease.until)}. If it has not sealed them by then, seal again."
        )


def _silent(_: object) -> None:
    """Tell nobody."""
