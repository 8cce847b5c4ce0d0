"""The commands about dead letters: list, show, requeue, discard, export."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

import typer

from ledger.cli.options import Target, command, opened
from ledger.cli.ordering import Deciding, Limit, Source
from ledger.cli.output import answer, fitting, moment, print_json, progress, row, table
from ledger.core.canonical import utc_text
from ledger.core.errors import InvalidCommand
from ledger.inbox import Inbox
from ledger.order.message import encode
from ledger.receiving import Received
from ledger.storage.dead_letters import DeadLetter
from ledger.wire import letter_json

letters_app = typer.Typer(name="dead-letters", help="Messages that a person decides about.")

_PAGE: Final = 500
_ERROR_SHOWN: Final = 80
"""Characters of an error in a list; `show` has all of it."""


class LetterState(StrEnum):
    """What became of a dead letter."""

    OPEN = "open"
    REQUEUED = "requeued"
    DISCARDED = "discarded"
    SETTLED = "settled"


class Reason(StrEnum):
    """Why a message is a dead letter."""

    FAILED = "failed"
    UNDECODABLE = "undecodable"
    BEFORE_START = "before_start"
    RELEASED = "released"
    UNNUMBERED = "unnumbered"
    SEQUENCE_CONFLICT = "sequence_conflict"
    ID_CONFLICT = "id_conflict"
    NO_ROOM = "no_room"
    WAITED = "waited"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters."""

    why: Annotated[Reason | None, typer.Option(help="Only for this reason.", show_default=False)] = None
    stream: Annotated[str | None, typer.Option(help="Only of this stream.", show_default=False)] = None


@command
def list_letters(
    source: Source,
    wanted: Filter,
    target: Target,
    state: Annotated[LetterState, typer.Option(help="What became of them.")] = LetterState.OPEN,
    after: Annotated[str | None, typer.Option(help="Those after this one.", metavar="DEAD-LETTER")] = None,
    limit: Limit = 100,
) -> int:
    """List the dead letters of a source."""
    with opened(target.settings) as ledger:
        found = source.of(ledger).dead_letters(
            state=state, why=wanted.why, stream=wanted.stream, after=after, limit=limit
        )
    rows = [
        {
            "id": letter.dead_letter_id,
            "stream": letter.stream,
            "sequence": "" if letter.sequence is None else letter.sequence,
            "why": letter.why,
            "attempts": letter.attempts,
            "last seen": moment(letter.last_seen),
            "error": (letter.error or "")[:_ERROR_SHOWN],
        }
        for letter in found
    ]
    short = ("id", "stream", "sequence", "why")
    longer = (*short, "attempts", "last seen")
    made = fitting(rows, (*longer, "error"), longer, short, right=("sequence", "attempts"), whole=("id",))
    answer(target.as_json, {"dead_letters": [letter_json(each) for each in found]}, made if found else "none")
    return 0


@command
def show(
    dead_letter: Annotated[str, typer.Argument(metavar="DEAD-LETTER", show_default=False)],
    source: Source,
    target: Target,
) -> int:
    """Show a dead letter: the message as it came, why it is here, and what was decided about it."""
    with opened(target.settings) as ledger:
        inbox = source.of(ledger)
        letter = inbox.dead_letter(dead_letter)
        decided = [
            {**each._asdict(), "recorded_at": utc_text(each.recorded_at)} for each in inbox.decisions(dead_letter)
        ]
    plain = {**letter_json(letter), "message": json.loads(encode(letter.message)), "decisions": decided}
    made = table("", "")
    for name, value in plain.items():
        if name not in ("data", "decisions"):
            shown = json.dumps(value) if isinstance(value, dict) else "" if value is None else value
            row(made, name.replace("_", " "), shown)
    for each in decided:
        row(made, each["decision"], f"{each['recorded_at']} {each['actor'] or ''} {each['note'] or ''}".strip())
    answer(target.as_json, plain, made)
    return 0


@command
def export(
    source: Source,
    wanted: Filter,
    target: Target,
    state: Annotated[LetterState, typer.Option(help="What became of them.")] = LetterState.OPEN,
    messages: Annotated[
        bool, typer.Option("--messages", help="Only the messages, as `ledger ingest` reads them.")
    ] = False,
) -> int:
    """Write all dead letters of a source as JSON lines, each with its message as a CloudEvent."""
    with opened(target.settings) as ledger:
        for letter in _all(source.of(ledger), wanted, state):
            message = json.loads(encode(letter.message))
            print_json(message if messages else {**letter_json(letter), "message": message})
    return 0


Named = Annotated[
    list[str] | None, typer.Argument(metavar="[DEAD-LETTER]...", show_default=False, help="Or --all, with filters.")
]
All = Annotated[bool, typer.Option("--all", help="All open ones that the filters leave.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say which; decide nothing.")]


@command
def requeue(
    source: Source,
    wanted: Filter,
    deciding: Deciding,
    target: Target,
    dead_letters: Named = None,
    everything: All = False,
    dry_run: DryRun = False,
) -> int:
    """
    Let dead letters take effect after all, each in its place if its stream has not gone on.

    Those of a stream go in order of their sequences.
    """
    return _decide(source, wanted, deciding, target, dead_letters, everything, dry_run, Inbox.requeue)


@command
def discard(
    source: Source,
    wanted: Filter,
    deciding: Deciding,
    target: Target,
    dead_letters: Named = None,
    everything: All = False,
    dry_run: DryRun = False,
) -> int:
    """Decide that dead letters have no effect, for good; streams that waited for them go on."""
    return _decide(source, wanted, deciding, target, dead_letters, everything, dry_run, Inbox.discard)


letters_app.command("list")(list_letters)
letters_app.command("show")(show)
letters_app.command("requeue")(requeue)
letters_app.command("discard")(discard)
letters_app.command("export")(export)


def _decide(
    source: Source,
    wanted: Filter,
    deciding: Deciding,
    target: Target,
    named: list[str] | None,
    everything: bool,
    dry_run: bool,
    verdict: Callable[..., Received],
) -> int:
    """Decide about each in a transaction of its own, so that what was done is done; those that fail stay open."""
    if bool(named) == everything:
        raise InvalidCommand("dead letters", "name some, or all of them with --all")
    decided: list[str] = []
    failed: list[dict[str, str]] = []
    processed = 0
    with opened(target.settings) as ledger, progress("dead letters", None) as watch:
        inbox = source.of(ledger)
        chosen = _all(inbox, wanted, LetterState.OPEN) if everything else map(inbox.dead_letter, named or ())
        for name in _in_turn(chosen):
            try:
                if not dry_run:
                    received = verdict(inbox, name, actor=deciding.actor, note=deciding.note)
                    processed += len(received.outcomes)
                    failed += ({"dead_letter_id": name, "error": error} for _, error in received.failed)
                decided.append(name)
            except InvalidCommand as error:
                failed.append({"dead_letter_id": name, "error": str(error)})
            if watch is not None:
                watch(len(decided))
    plain = {"decided": decided, "processed": processed, "failed": failed, "dry_run": dry_run}
    said = f"{len(decided)} {'would be ' if dry_run else ''}decided about, {processed} messages processed"
    answer(target.as_json, plain, said, *(f"{each['dead_letter_id']}: {each['error']}" for each in failed))
    return 1 if failed else 0


def _in_turn(letters: Iterable[DeadLetter]) -> list[str]:
    """Their ids in the order in which they would have taken effect; the ids themselves are in no order."""
    turns = [
        (letter.stream, letter.sequence is None, letter.sequence or 0, letter.first_seen, letter.dead_letter_id)
        for letter in letters
    ]
    return [name for *_, name in sorted(turns)]


def _all(inbox: Inbox, wanted: Filter, state: str) -> Iterator[DeadLetter]:
    after: str | None = None
    while page := inbox.dead_letters(state=state, why=wanted.why, stream=wanted.stream, after=after, limit=_PAGE):
        yield from page
        after = page[-1].dead_letter_id
