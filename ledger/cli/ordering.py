"""The commands of the inbox: ingest, and inbox …"""

from __future__ import annotations

import json
import sys
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from ledger.application import Ledger
from ledger.cli.options import Target, command, opened
from ledger.cli.output import answer, complain, moment, print_json, progress, row, table
from ledger.core.errors import InvalidCommand
from ledger.core.fields import MOMENT, checked
from ledger.inbox import TOGETHER_MAX, Inbox, Replayed
from ledger.intake import Intake, together, totals
from ledger.order.cursor import OnGap, Range, Status, Strict, Tally
from ledger.order.decoders import BODY_BYTES_MAX, decoder
from ledger.receiving import Received, Retry, Unordered, message_schemas
from ledger.wire import gap_json, inbox_stats_json

_DAYS_MAX: Final = 365_000
_SHOWN: Final = 20
_ORDER: Final = "Order"

inbox_app = typer.Typer(name="inbox", help="Where the streams of a source stand, and what they miss.")


class Format(StrEnum):
    """How messages are written."""

    CLOUDEVENTS = "cloudevents"
    SEED = "seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """By which policy messages are read."""

    unordered: Annotated[
        bool, typer.Option("--unordered", help="Their order does not matter: each id once.", rich_help_panel=_ORDER)
    ] = False
    unordered_type: Annotated[
        list[str] | None,
        typer.Option(help="A type that is not counted in its stream; repeatable.", rich_help_panel=_ORDER),
    ] = None
    max_wait: Annotated[
        float, typer.Option(help="Seconds that a stream waits for a missing message.", rich_help_panel=_ORDER)
    ] = 300.0
    max_buffered: Annotated[
        int, typer.Option(help="Messages of one stream kept while it waits.", rich_help_panel=_ORDER)
    ] = 10_000
    on_gap: Annotated[OnGap, typer.Option(help="What happens when waiting is over.", rich_help_panel=_ORDER)] = (
        OnGap.PARK
    )
    start: Annotated[
        str, typer.Option(help="The first sequence of a stream: a number, or `first` seen.", rich_help_panel=_ORDER)
    ] = "1"
    attempts: Annotated[
        int, typer.Option(help="How often a message is tried that cannot be handled.", min=1, rich_help_panel=_ORDER)
    ] = 5
    park_failed: Annotated[
        bool,
        typer.Option("--park-failed", help="Then its stream waits for a person, too.", rich_help_panel=_ORDER),
    ] = False

    def inbox(self, ledger: Ledger, source: str, keep: timedelta | None = None) -> Inbox:
        """The inbox of a source."""
        retry = Retry(self.attempts, park=self.park_failed)
        return ledger.inbox(source, self._policy(), unordered=self.unordered_type or (), retry=retry, keep=keep)

    def _policy(self) -> Strict | Unordered:
        if self.unordered:
            return Unordered()
        if self.start != "first" and not (self.start.isascii() and self.start.isdigit()):
            raise InvalidCommand("--start", f"{self.start!r} is neither a number nor `first`")
        start = None if self.start == "first" else int(self.start)
        try:
            return Strict(timedelta(seconds=self.max_wait), self.max_buffered, self.on_gap, start)
        except (ValueError, OverflowError) as error:
            raise InvalidCommand("policy", str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(Policy):
    """Whose messages, and by which policy they are read."""

    source: Annotated[
        str, typer.Option(help="Whose messages; every source counts for itself.", show_default=False, metavar="NAME")
    ]

    def of(self, ledger: Ledger, keep: timedelta | None = None) -> Inbox:
        """The inbox of this source."""
        return self.inbox(ledger, self.source, keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources(Policy):
    """Whose messages, if several have sent them, and by which policy they are read."""

    source: Annotated[
        list[str],
        typer.Option(
            help="Whose messages; repeatable.  The first is that of messages that do not say.",
            show_default=False,
            metavar="NAME",
        ),
    ]

    def of(self, ledger: Ledger, keep: timedelta | None = None) -> list[Inbox]:
        """The inboxes of these sources."""
        return [self.inbox(ledger, source, keep) for source in dict.fromkeys(self.source)]


@dataclass(frozen=True, slots=True)
class Deciding:
    """Who decides, and why."""

    actor: Annotated[str | None, typer.Option(help="Who decides.")] = None
    note: Annotated[str | None, typer.Option(help="Why.")] = None


def _show_schema(wanted: bool) -> None:
    if wanted:
        print_json(message_schemas())
        raise typer.Exit


@command
def ingest(
    file: Annotated[str, typer.Argument(help="JSON lines, or - for standard input.", metavar="FILE|-")],
    source: Source,
    target: Target,
    format: Annotated[Format, typer.Option(help="How the messages are written.")] = Format.CLOUDEVENTS,
    keep_payloads: Annotated[
        bool,
        typer.Option("--keep-payloads/--no-payloads", help="Keep what took effect, for `ledger inbox replay`."),
    ] = True,
    json_schema: Annotated[
        bool,
        typer.Option(
            "--json-schema",
            is_eager=True,
            callback=_show_schema,
            help="Print a JSON Schema of each type's data and exit.",
        ),
    ] = False,
) -> int:
    """
    Take messages in through the inbox, one JSON object or CloudEvents batch a line, or one batch.

    A line that cannot be read is reported by its number and kept as a dead letter; the rest go on.  Exit code 1: some
    were rejected, could not be handled, or are dead letters.
    """
    assert not json_schema
    tally: Counter[str] = Counter()
    with opened(target.settings) as ledger, progress("messages", None) as watch:
        inbox = source.of(ledger, None if keep_payloads else timedelta(0))
        intake = Intake([inbox], decoder(format.value))
        for lines in _batches(file):
            deliveries = [intake.read(line, (), sha256(line).hexdigest()[:32]) for _, line in lines]
            for (number, _), delivery in zip(lines, deliveries, strict=True):
                for _, error in delivery.refused:
                    tally["undecodable"] += 1
                    complain(f"line {number}: {error}")
            while deliveries:
                count = together(deliveries, TOGETHER_MAX)
                tally.update(totals(intake.take(deliveries[:count])))
                del deliveries[:count]
                if watch is not None:
                    watch(tally["received"])
        waiting = inbox.stats()
    shown = (*Tally._fields, "rejected", "failed", "undecodable")
    summary = {name: tally[name] for name in shown}
    summary |= {"streams_parked": waiting.parked, "held": waiting.held}
    said = table("", "messages", right=("messages",))
    for name, count in summary.items():
        if count:
            row(said, name.replace("_", " "), count)
    answer(target.as_json, summary, said)
    amiss = ("rejected", "failed", "undecodable", "conflicts", "late", "unnumbered", "set_aside")
    return int(any(tally[name] for name in amiss))


@command
def stats(source: Source, target: Target) -> int:
    """Show what was counted of a source, and how it stands now."""
    with opened(target.settings) as ledger:
        found = source.of(ledger).stats()
    plain = inbox_stats_json(source.source, found)
    said = table(source.source, "", right=("",))
    for name, count in {**found.counters, **plain}.items():
        if name not in ("source", "counters"):
            row(said, name.replace("_", " "), "-" if count is None else f"{count:.12g}")
    answer(target.as_json, plain, said)
    return 0


After = Annotated[str | None, typer.Option(help="Streams after this one.", metavar="STREAM")]
Limit = Annotated[int, typer.Option(help="Rows at most, up to 1,000.")]


@command
def gaps(source: Source, target: Target, after: After = None, limit: Limit = 100) -> int:
    """
    List the streams that wait, and exactly what each of them misses; exit code 1 if any does.

    Also those whose next message could not be handled and is tried again, with the error.
    """
    return _waiting(source, target, None, after, limit)


@command
def parked(source: Source, target: Target, after: After = None, limit: Limit = 100) -> int:
    """
    List the streams that no time will help; exit code 1 if there are any.

    What is missing must come, or a person go on without it: `ledger inbox release`, `ledger dead-letters`.
    """
    return _waiting(source, target, Status.PARKED, after, limit)


def _waiting(source: Source, target: Target, status: Status | None, after: str | None, limit: int) -> int:
    with opened(target.settings) as ledger:
        inbox = source.of(ledger)
        found = [(gap, inbox.missing(gap.stream)) for gap in inbox.gaps(status=status, after=after, limit=limit)]
    made = table("stream", "missing", "held", "status", "since", "last error", right=("held",))
    for gap, ranges in found:
        since = moment(gap.since) if gap.since else ""
        row(made, gap.stream, _ranges(ranges), gap.held, gap.status, since, gap.error or "")
    plain = [gap_json(gap, ranges) for gap, ranges in found]
    answer(target.as_json, {"source": source.source, "gaps": plain}, made if found else "nothing is missing")
    return 1 if found else 0


@command
def completeness(
    source: Source,
    target: Target,
    stream: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    since: Annotated[str | None, typer.Option(help="Received from then on.", metavar="TIME")] = None,
    until: Annotated[str | None, typer.Option(help="Received before then.", metavar="TIME")] = None,
) -> int:
    """
    Tell which sequences are missing, per stream, of those received in a time; exit code 1 if any are.

    What a stream has gone on without is missing, too.
    """
    begin, end = (None if text is None else checked(MOMENT, "time", text) for text in (since, until))
    made = table("stream", "from", "to", "arrived", "missing", "status", right=("from", "to", "arrived"))
    incomplete = []
    streams = arrived = 0
    with opened(target.settings) as ledger, progress("streams", None) as watch:
        for found in source.of(ledger).completeness(stream=stream, since=begin, until=end):
            streams += 1
            arrived += found.arrived
            if watch is not None:
                watch(streams)
            if found.missing:
                span = (found.first, found.last, found.arrived)
                row(made, found.stream, *span, _ranges(found.missing), found.status)
                incomplete.append({**found._asdict(), "missing": _pairs(found.missing)})
    plain = {"source": source.source, "streams": streams, "arrived": arrived, "incomplete": incomplete}
    said = f"{streams} streams, {arrived} messages, {len(incomplete)} streams incomplete"
    answer(target.as_json, plain, *([made] if incomplete else []), said)
    return 1 if incomplete else 0


@command
def tick(source: Source, target: Target) -> int:
    """Act on deadlines that have come: gaps that outlasted their wait, messages to be tried again."""
    with opened(target.settings) as ledger:
        received = source.of(ledger).tick()
    said = f"{received.tally.processed} processed, {len(received.failed)} failed"
    answer(target.as_json, came(received), said, *(f"{one.stream} {one.id}: {error}" for one, error in received.failed))
    return 1 if received.failed else 0


@command
def release(
    stream: Annotated[str, typer.Argument(show_default=False)],
    source: Source,
    deciding: Deciding,
    target: Target,
    to: Annotated[int | None, typer.Option(help="Up to this sequence, not only the first gap.", min=0)] = None,
) -> int:
    """Decide that a stream goes on without what it misses; on record."""
    with opened(target.settings) as ledger:
        received = source.of(ledger).release(stream, to, actor=deciding.actor, note=deciding.note)
    answer(target.as_json, came(received), f"{len(received.outcomes)} processed, {len(received.failed)} failed")
    return 1 if received.failed else 0


@command
def replay(
    source: Source,
    target: Target,
    stream: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    first: Annotated[int, typer.Option("--from", help="From this sequence on.", min=0)] = 0,
    rejected: Annotated[bool, typer.Option("--rejected", help="Decide rejected ones again, as of today.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without it nothing of this lasts.")] = False,
) -> int:
    """
    Send kept messages through the same path again, and report what came out otherwise.

    What has taken effect does not take it twice.  Exit code 1: something did come out otherwise, or would.
    """
    with opened(target.settings) as ledger:
        done = source.of(ledger).replay(stream=stream, first=first, rejected=rejected, dry_run=not apply)
    made = table("stream", "sequence", "id", "before", "after", right=("sequence",))
    for change in done.changes:
        sequence = "" if change.message.sequence is None else change.message.sequence
        row(made, change.message.stream, sequence, change.message.id, change.before, change.after or change.error)
    said = f"{done.replayed} replayed, {len(done.changes)} came out otherwise"
    said += f", {done.left} rejections left as they are" if done.left else ""
    said += f", {done.forgotten} no longer kept" if done.forgotten else ""
    said += f", {done.elsewhere} left to the process that has their handlers" if done.elsewhere else ""
    said += "" if apply else "; nothing of this lasts without --apply"
    answer(target.as_json, _replayed(done, apply), *([made] if done.changes else []), said)
    return 1 if done.changes else 0


@command
def forget(
    source: Source,
    target: Target,
    keep_days: Annotated[
        float, typer.Option(help="How long contents are kept.", min=0, max=_DAYS_MAX, show_default=False)
    ],
) -> int:
    """Give up the contents of messages that took effect longer ago; cursors and outcomes stay for ever."""
    with opened(target.settings) as ledger, progress("messages", None) as watch:
        forgotten = source.of(ledger, timedelta(days=keep_days)).forget(progress=watch)
    answer(target.as_json, {"forgotten": forgotten}, f"{forgotten} forgotten")
    return 0


for name, function in {
    "stats": stats,
    "gaps": gaps,
    "parked": parked,
    "completeness": completeness,
    "tick": tick,
    "release": release,
    "replay": replay,
    "forget": forget,
}.items():
    inbox_app.command(name)(function)


def came(received: Received) -> dict[str, Any]:
    """What came of messages, as JSON."""
    return {**received.tally._asdict(), "failed": [{"id": m.id, "error": error} for m, error in received.failed]}


def _replayed(done: Replayed, applied: bool) -> dict[str, Any]:
    changes = [
        {
            "stream": change.message.stream,
            "sequence": change.message.sequence,
            "id": change.message.id,
            "before": json.loads(change.before),
            "after": None if change.after is None else json.loads(change.after),
            "error": change.error,
        }
        for change in done.changes
    ]
    counted = {"replayed": done.replayed, "rejections_left": done.left, "forgotten": done.forgotten}
    counted["elsewhere"] = done.elsewhere
    return {**counted, "changes": changes, "applied": applied}


def _pairs(ranges: list[Range]) -> list[list[int]]:
    return [[one.first, one.last] for one in ranges]


def _ranges(ranges: list[Range]) -> str:
    shown = [str(one.first) if one.first == one.last else f"{one.first}-{one.last}" for one in ranges[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(ranges) > _SHOWN else "")


def _batches(file: str) -> Iterator[list[tuple[int, bytes]]]:
    """The lines of a file with their numbers, some at a time."""
    try:
        stream = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise InvalidCommand(file, f"{error.strerror or error}") from None
    lines: list[tuple[int, bytes]] = []
    size = 0
    with stream:
        for number, line in enumerate(_lines(stream), 1):
            if line.strip():
                lines.append((number, line))
                size += len(line)
            if len(lines) == TOGETHER_MAX or size > BODY_BYTES_MAX:
                yield lines
                lines, size = [], 0
    if lines:
        yield lines


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """
    The lines; all of them as one, if they are a batch that somebody has written over several lines.

    A line that is too long to be read comes as far as it was read: what follows in it is no line of its own.
    """
    first = _line(stream)
    early: list[bytes] = []
    if first.removeprefix(BOM_UTF8).lstrip().startswith(b"[") and not _is_whole(first):
        size = len(first)
        while size <= BODY_BYTES_MAX and (line := _line(stream)):
            early.append(line)
            size += len(line)
        if size <= BODY_BYTES_MAX and _is_whole(whole := b"".join([first, *early])):
            yield whole
            return
    yield from chain([first] if first else [], early, iter(lambda: _line(stream), b""))


def _line(stream: BinaryIO) -> bytes:
    line = part = stream.readline(BODY_BYTES_MAX + 1)
    while len(part) > BODY_BYTES_MAX and not part.endswith(b"\n"):
        part = stream.readline(BODY_BYTES_MAX + 1)
    return line


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line.removeprefix(BOM_UTF8))
    except (ValueError, RecursionError):
        return False
    return True
