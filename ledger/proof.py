"""What a ledger proves of itself, to people who trust nobody: the part of `Ledger` about checkpoints and proofs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from ledger.audit import sealed
from ledger.audit.bundle import write_bundle
from ledger.audit.checkpoint import Checkpoint, Note, SigningKey, VerifierKey
from ledger.audit.export import Exported, format_named, write_export
from ledger.audit.inclusion import InclusionProof
from ledger.audit.report import Report
from ledger.audit.tiles import write_log
from ledger.core.errors import InvalidCommand
from ledger.core.events import FeedEntry
from ledger.core.fields import INTEGER_MAX, TEXT, checked
from ledger.core.merkle import consistency_proof
from ledger.sealer import PAUSE_SECONDS, Sealer
from ledger.storage import leases, tree
from ledger.storage.database import Database
from ledger.storage.leases import Lease
from ledger.storage.tree import SEALER, Sealed


class Proofs:
    """The methods of `Ledger` that seal what is in the feed, and prove it."""

    _database: Database

    def seal(
        self,
        key: SigningKey,
        *,
        state: Path | None = None,
        former: Iterable[VerifierKey] = (),
        progress: Callable[[int], None] | None = None,
    ) -> Sealed | None:
        """
        Sign a checkpoint of all that was stamped; returns the last one, or None where nothing is new.

        `state` is a file beside the key, out of the database's reach, in which what was signed last is kept.  `former`
        are the keys that signed under this name before.  A large backlog is sealed with several checkpoints.

        Raises:
            ProofFailed: What was signed before is not the beginning of what the database has now; nothing was signed.
            CorruptLog: An event is not what the feed has, or one before it is missing; nothing was signed.
            ConcurrencyError: Somebody else has the lease, and something is not sealed yet; says who, and until when.
            InvalidCommand: The extra `proof` is not installed.
            OSError: The file cannot be read or written.
        """
        sealer = self.sealer(key, state=state, former=former, progress=progress)
        try:
            return sealer.seal()
        finally:
            sealer.close()

    def sealer(
        self,
        key: SigningKey,
        *,
        state: Path | None = None,
        former: Iterable[VerifierKey] = (),
        every: float = PAUSE_SECONDS,
        on_problem: Callable[[str], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Sealer:
        """
        Seal what is new `every` so many seconds, while its `run` runs; parameters else as those of `seal`.

        Any number of processes may do so: one seals, and another takes over when it ends.
        """
        return Sealer(
            self._database, key, state=state, former=former, every=every, on_problem=on_problem, progress=progress
        )

    def sealing(self) -> Lease | None:
        """Who seals, or did so last."""
        return self._database.ask(partial(leases.lease, name=SEALER))

    def last_checkpoint(self) -> Sealed | None:
        """The last checkpoint that was signed, if there is one."""
        return self._database.ask(tree.last_checkpoint)

    def checkpoint(self, size: int | None = None) -> Sealed:
        """
        The last checkpoint that was signed, or the one of this size.

        Raises:
            InvalidCommand: There is none.
        """
        if size is None:
            last = self.last_checkpoint()
            if last is None:
                raise InvalidCommand("checkpoint", "nothing was sealed yet: `ledger seal`")
            return last
        found = self._database.ask(partial(tree.checkpoint_at, size=_counted("size", size)))
        if found is None:
            raise InvalidCommand("size", f"no checkpoint of {size:,} events was signed")
        return found

    def prove(self, stream: str, version: int, *, note: bytes | None = None) -> InclusionProof:
        """
        Prove that an event is in the log of a signed checkpoint: of `note`, or of the last one.

        Raises:
            InvalidCommand: The event does not exist or was not stamped yet; or nothing was sealed.
            ProofFailed: The checkpoint does not cover it, or covers another event there.
            CorruptLog: The event is not what the feed has.
        """
        name, number = checked(TEXT, "stream", stream), _counted("version", version)
        position = self._database.ask(partial(tree.position_of, stream=name, version=number))
        if position is None:
            raise InvalidCommand("version", f"the feed has no version {version} of {stream}: `ledger feed stamp`?")
        return self.prove_position(position, note=note)

    def prove_position(self, position: int, *, note: bytes | None = None) -> InclusionProof:
        """Prove that the event at a position of the feed is in the log of a signed checkpoint; raises as `prove`."""
        place = _counted("position", position)
        signed = self.checkpoint().note if note is None else note
        return self._database.ask(partial(sealed.prove, position=place, note=signed))

    def extension(self, old_size: int, size: int) -> list[bytes]:
        """
        The proof that the log of a checkpoint of `size` begins with that of one of `old_size` (RFC 6962 consistency).

        Raises:
            InvalidCommand: The sizes are not in order.
            ProofFailed: The database does not have all that it takes.
        """
        if type(old_size) is not int or not 0 <= old_size <= _counted("size", size):
            raise InvalidCommand("old_size", f"{old_size!r} is not from 0 to {size}")
        return self._database.ask(
            lambda connection: consistency_proof(old_size, size, sealed.subtrees(connection, size))
        )

    def verify_against(
        self,
        note: bytes,
        keys: Iterable[VerifierKey],
        *,
        origin: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Report:
        """
        Make all events of a signed checkpoint anew from the log, and compare them with it; changes nothing.

        The checkpoint comes from outside of the database.  Returns a report, as `verify` does: where something differs,
        the place is named as exactly as can be known.  Memory stays flat.

        Raises:
            ProofFailed: The checkpoint itself is not signed with one of these keys.
        """
        known = tuple(keys)
        with self._database.connection() as connection:
            return sealed.verify_against(connection, note, known, origin=origin, progress=progress)

    def export_log(
        self, folder: Path, *, note: bytes | None = None, progress: Callable[[int], None] | None = None
    ) -> Checkpoint:
        """
        Write the log as it was at a checkpoint, `note` or the last one, into a new folder (C2SP tlog-tiles).

        Raises:
            InvalidCommand: There is something in the folder; or nothing was sealed.
            ProofFailed: The log is not what the checkpoint is of.
            CorruptLog: An event is not what the feed has.
        """
        signed = self.checkpoint().note if note is None else note
        size = Checkpoint.parse(Note.parse(signed).text).size
        with self._database.connection() as connection:
            return write_log(folder, tree.records(connection, 0, size), signed, progress=progress)

    def export(
        self,
        format: str,
        target: str | Path | BinaryIO,
        *,
        position: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Exported:
        """
        Write all that the feed has up to a position, the last one or `position`, for other programs.

        `format` is "hledger", "beancount", "csv" or "parquet"; `target` a new file, or a binary one that is open.
        The same position gives the same bytes.  A file appears when it is complete.  Memory grows with the accounts
        and not with the events.  `progress` is called with the number of events that were read.

        Raises:
            InvalidCommand: There is no such format or position, or such a file; or a transaction goes on after it.
            CorruptLog: An event is not what the feed has, or is of an account that was not opened.
            OSError: The file cannot be written.
        """
        kind, head = format_named(format), self.feed_head()
        last = head if position is None else position
        if type(last) is not int or not 0 <= last <= head:
            raise InvalidCommand("position", f"{position!r} is not from 0 to {head}, the last one of the feed")
        around = [] if last == 0 else [*self.feed(after=last - 1, limit=2)]
        for entry, following in pairwise(around):
            if entry.transaction.transaction_id == following.transaction.transaction_id:
                raise InvalidCommand("position", f"{last} lies within transaction {entry.transaction.transaction_id}")
        entries = self.feed(limit=last) if last else iter(())
        out = Path(target) if isinstance(target, str) else target
        return write_export(kind, out, self._ledger_id(), last, entries, progress=progress)

    def bundle(
        self,
        path: Path,
        *,
        note: bytes | None = None,
        anchors: Sequence[Path] = (),
        timestamps: Sequence[Path] = (),
        progress: Callable[[int], None] | None = None,
    ) -> Checkpoint:
        """
        Write everything up to a checkpoint, `note` or the last one, into one new file that is verified without us.

        `anchors` are files of anchored checkpoints, `timestamps` are responses of authorities about this one.

        Raises:
            InvalidCommand: There is such a file; nothing was sealed; or the checkpoint ends within a transaction.
            ProofFailed: The log is not what the checkpoint is of.
            CorruptLog: An event is not what the feed has.
            OSError: A file cannot be read or written.
        """
        signed = self.checkpoint().note if note is None else note
        return write_bundle(
            path, self._ledger_id(), self.feed(), signed, anchors=anchors, timestamps=timestamps, progress=progress
        )

    def feed(self, *, after: int = 0, limit: int | None = None) -> Iterator[FeedEntry]:
        """Everything that was stamped after a position: see `Ledger`."""
        raise NotImplementedError

    def feed_head(self) -> int:
        """The last position of the feed: see `Ledger`."""
        raise NotImplementedError

    def _ledger_id(self) -> str:
        raise NotImplementedError


def _counted(what: str, number: int) -> int:
    if type(number) is not int or not 1 <= number <= INTEGER_MAX:
        raise InvalidCommand(what, f"{number!r} is not a number from 1 to {INTEGER_MAX}")
    return number
