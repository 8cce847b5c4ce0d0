"""The commands of the inbox: ingest, inbox …, dead-letters …"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ledger.application import Ledger
from ledger.cli.options import Target, command, opened
from ledger.cli.output import answer, complain, moment, progress, row, table
from ledger.core.canonical import utc_text
from ledger.core.errors import InvalidCommand, Rejected, UndecodableMessage
from ledger.inbox import Inbox, Received, Unordered
from ledger.order.cursor import OnGap, Strict, Tally
from ledger.order.decoders import Decoder, decoder
from ledger.order.message import Message
from ledger.storage.mailbox import DeadLetter

LINE_BYTES_MAX: Final = 256 * 1024
_TOGETHER: Final = 1_000
_SHOWN: Final = 20
_ORDER: Final = "Order"

inbox_app = typer.Typer(name="inbox", help="Where the streams of a source stand, and what they miss.")
letters_app = typer.Typer(name="dead-letters", help="Messages that a person decides about.")


class Format(StrEnum):
    """How messages are written."""

    CLOUDEVENTS = "cloudevents"
    SEED = "seed"


@dataclass(frozen=True, slots=True)
class Source:
    """Whose messages, and by which policy they are read."""

    source: Annotated[str, typer.Option(help="Whose messages; every source counts for itself.", show_default=False)]
    unordered: Annotated[
        bool, typer.Option("--unordered", help="Their order does not matter: each id once.", rich_help_panel=_ORDER)
    ] = False
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

    def of(self, ledger: Ledger) -> Inbox:
        """The inbox of this source."""
        return ledger.inbox(self.source, self._policy())

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


@command
def ingest(
    file: Annotated[str, typer.Argument(help="JSON lines, or - for standard input.", metavar="FILE|-")],
    source: Source,
    target: Target,
    format: Annotated[Format, typer.Option(help="How the messages are written.")] = Format.CLOUDEVENTS,
) -> int:
    """
    Take messages in through the inbox, one JSON object or CloudEvents batch a line.

    A line that cannot be read is reported by its number and kept as a dead letter; the rest go on.  Exit code 1: some
    were rejected, could not be handled, or are dead letters.
    """
    tally: dict[str, int] = dict.fromkeys(asdict(Tally()), 0)
    rejected = failed = broken = 0
    read = decoder(format.value)
    with opened(target.settings) as ledger, progress("messages", None) as watch:
        inbox = source.of(ledger)
        for together in _batches(file):
            messages = []
            for number, line in together:
                for found in _read(read, line, source.source):
                    if isinstance(found, UndecodableMessage):
                        broken += 1
                        complain(f"line {number}: {found}")
                        inbox.refuse(_unreadable(line, source.source), str(found))
                    else:
                        messages.append(found)
            received = inbox.receive(messages)
            rejected += sum(isinstance(outcome, Rejected) for _, outcome in received.outcomes)
            failed += len(received.failed)
            for name, count in asdict(received.tally).items():
                tally[name] += count
            if watch is not None:
                watch(tally["received"])
        waiting = inbox.stats()
    summary: dict[str, Any] = {**tally, "rejected": rejected, "failed": failed, "undecodable": broken}
    summary |= {"streams_parked": waiting.parked, "held": waiting.held}
    said = table("", "messages", right=("messages",))
    for name, count in summary.items():
        if count:
            row(said, name.replace("_", " "), count)
    answer(target.as_json, summary, said)
    return int(bool(rejected or failed or broken or tally["conflicts"] or tally["late"] or tally["unnumbered"]))


@command
def stats(source: Source, target: Target) -> int:
    """Show what was counted of a source, and how it stands now."""
    with opened(target.settings) as ledger:
        found = source.of(ledger).stats()
    wait = None if found.oldest_wait is None else found.oldest_wait.total_seconds()
    gauges = {"streams": found.streams, "held": found.held, "parked": found.parked, "oldest_wait_seconds": wait}
    said = table(source.source, "", right=("",))
    for name, count in {**found.counters, **gauges}.items():
        row(said, name.replace("_", " "), "-" if count is None else f"{count:g}")
    answer(target.as_json, {"source": source.source, "counters": found.counters, **gauges}, said)
    return 0


@command
def gaps(
    source: Source,
    target: Target,
    after: Annotated[str, typer.Option(help="Streams after this one.", metavar="STREAM")] = "",
    limit: Annotated[int, typer.Option(help="Rows at most, up to 1,000.")] = 100,
) -> int:
    """List the streams that wait, and exactly what each of them misses; exit code 1 if any does."""
    with opened(target.settings) as ledger:
        inbox = source.of(ledger)
        found = [(gap, inbox.missing(gap.stream)) for gap in inbox.gaps(after=after, limit=limit)]
    made = table("stream", "missing", "held", "status", "since", "last error", right=("held",))
    plain = []
    for gap, ranges in found:
        missing = [[one.first, one.last] for one in ranges]
        said = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in missing[:_SHOWN])
        row(made, gap.stream, said, gap.held, gap.status, moment(gap.since) if gap.since else "", gap.error or "")
        since = utc_text(gap.since) if gap.since else None
        plain.append({"stream": gap.stream, "missing": missing, "held": gap.held, "status": gap.status, "since": since})
    answer(target.as_json, {"source": source.source, "gaps": plain}, made if found else "nothing is missing")
    return 1 if found else 0


@command
def tick(source: Source, target: Target) -> int:
    """Act on deadlines that have come: gaps that outlasted their wait, messages to be tried again."""
    with opened(target.settings) as ledger:
        received = source.of(ledger).tick()
    answer(target.as_json, _came(received), f"{received.tally.processed} processed")
    return 0


@command
def list_letters(
    source: Source,
    target: Target,
    state: Annotated[str, typer.Option(help="open, requeued, discarded or settled.")] = "open",
    why: Annotated[str | None, typer.Option(help="Only for this reason.")] = None,
    limit: Annotated[int, typer.Option(help="Rows at most, up to 1,000.")] = 100,
) -> int:
    """List the dead letters of a source."""
    with opened(target.settings) as ledger:
        found = source.of(ledger).dead_letters(state=state, why=why, limit=limit)
    made = table("id", "stream", "sequence", "why", "attempts", "last seen", "error", right=("sequence", "attempts"))
    for letter in found:
        sequence = "" if letter.sequence is None else letter.sequence
        seen = moment(letter.last_seen)
        row(made, letter.dead_letter_id, letter.stream, sequence, letter.why, letter.attempts, seen, letter.error or "")
    answer(target.as_json, {"dead_letters": [_letter(each) for each in found]}, made if found else "none")
    return 0


@command
def requeue(
    dead_letter: Annotated[str, typer.Argument(metavar="DEAD-LETTER", show_default=False)],
    source: Source,
    target: Target,
    actor: Annotated[str | None, typer.Option(help="Who decides.")] = None,
    note: Annotated[str | None, typer.Option(help="Why.")] = None,
) -> int:
    """Let a dead letter take effect after all, in its place if its stream has not gone on."""
    with opened(target.settings) as ledger:
        received = source.of(ledger).requeue(dead_letter, actor=actor, note=note)
    answer(target.as_json, _came(received), f"{len(received.outcomes)} processed, {len(received.failed)} failed")
    return 1 if received.failed else 0


@command
def discard(
    dead_letter: Annotated[str, typer.Argument(metavar="DEAD-LETTER", show_default=False)],
    source: Source,
    target: Target,
    actor: Annotated[str | None, typer.Option(help="Who decides.")] = None,
    note: Annotated[str | None, typer.Option(help="Why.")] = None,
) -> int:
    """Decide that a dead letter has no effect, for good; a stream that waited for it goes on."""
    with opened(target.settings) as ledger:
        received = source.of(ledger).discard(dead_letter, actor=actor, note=note)
    answer(target.as_json, _came(received), f"discarded; {len(received.outcomes)} processed")
    return 0


inbox_app.command("stats")(stats)
inbox_app.command("gaps")(gaps)
inbox_app.command("tick")(tick)
letters_app.command("list")(list_letters)
letters_app.command("requeue")(requeue)
letters_app.command("discard")(discard)


def _came(received: Received) -> dict[str, Any]:
    return {**asdict(received.tally), "failed": [{"id": m.id, "error": error} for m, error in received.failed]}


def _letter(letter: DeadLetter) -> dict[str, Any]:
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


def _read(read: Decoder, line: bytes, source: str) -> list[Message | UndecodableMessage]:
    try:
        found = read(line, (), source)
    except UndecodableMessage as error:
        return [error]
    return [
        each
        if isinstance(each, UndecodableMessage) or each.source == source
        else UndecodableMessage("source", f"it is {each.source!r}, not {source!r}", "Ingest each source by itself.")
        for each in found
    ]


def _unreadable(line: bytes, source: str) -> Message:
    """A line that is no message, as one that can be kept."""
    text = line[:4096].decode(errors="replace").replace("\0", "")
    return Message(source, sha256(line).hexdigest()[:32], "ledger.undecodable", data={"line": text})


def _batches(file: str) -> Iterator[list[tuple[int, bytes]]]:
    stream = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115  (closed below)
    together: list[tuple[int, bytes]] = []
    with stream:
        number = 0
        while line := stream.readline(LINE_BYTES_MAX + 1):
            number += 1
            if line.strip():
                together.append((number, line))
            if len(together) == _TOGETHER:
                yield together
                together = []
    if together:
        yield together
