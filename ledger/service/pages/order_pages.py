"""Messages in order: which streams wait and for what, what went wrong on which day, and what a person decides about."""

from __future__ import annotations

import json
from typing import Annotated, Final, NamedTuple

from fastapi import Query, Request, Response

from ledger.core.errors import InvalidCommand
from ledger.inbox import Inbox
from ledger.order.message import encode
from ledger.receiving import Unordered
from ledger.service.message_routes import accounts_in, accounts_waiting
from ledger.service.pages.charts import Bar, bars
from ledger.service.pages.rendering import link
from ledger.service.pages.site import DECIDING, LOOKING, Site, credential_of, go_to
from ledger.storage.dead_letters import DeadLetter, LetterDecision
from ledger.storage.inbox_queries import Gap, Stats
from ledger.storage.overview import Anomalies

PAGE: Final = 50
DAYS: Final = 30
NOTE_MAX: Final = 1_000
STATES: Final = ("open", "requeued", "discarded", "settled")

Source = Annotated[str, Query(max_length=300)]
Cursor = Annotated[str | None, Query(max_length=400)]
State = Annotated[str, Query(max_length=20)]
Id = Annotated[str, Query(min_length=1, max_length=64)]


class Inbound(NamedTuple):
    """How the inbox of a source stands, and which of its streams wait."""

    source: str
    stats: Stats
    open_letters: int


class Trouble(NamedTuple):
    """How often one kind of thing happened each day: bars, and the numbers that they are of."""

    kind: str
    total: int
    most: int
    bars: list[Bar]
    numbers: list[int]


class OrderPages:
    """The pages about inboxes."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ledger = site.desk.ledger
        site.get("/order", self.order, *LOOKING)
        site.get("/dead-letters", self.letters, *LOOKING)
        site.get("/dead-letter", self.letter, *LOOKING)
        site.post("/dead-letter", self.decide, *DECIDING)

    async def order(self, request: Request, source: Source = "", after: Cursor = None) -> Response:
        """How each inbox stands; of one, the streams that wait."""

        def asked() -> tuple[list[Inbound], str, list[Gap], Anomalies]:
            letters = self._ledger.open_letters()
            inbound = [Inbound(name, self._reader(name).stats(), count) for name, count in letters.items()]
            # Whoever has not chosen sees the source that is in trouble.
            chosen = source or next((each.source for each in inbound if each.stats.parked or each.stats.held), "")
            chosen = chosen or next(iter(letters), "")
            gaps = self._reader(chosen).gaps(after=after, limit=PAGE + 1) if chosen else []
            return inbound, chosen, gaps, self._ledger.anomalies(days=DAYS)

        inbound, chosen, gaps, seen = await self._site.desk.read(
            credential_of(request), "order", asked, lambda found: accounts_waiting(gap.stream for gap in found[2])
        )
        return self._site.page(
            request,
            "order.html",
            inbound=inbound,
            source=chosen,
            after=after,
            gaps=gaps[:PAGE],
            next=gaps[PAGE - 1].stream if len(gaps) > PAGE else None,
            days=seen.days,
            complete=seen.complete,
            trouble=_trouble(seen),
        )

    async def letters(
        self, request: Request, source: Source = "", state: State = "open", after: Cursor = None
    ) -> Response:
        """The dead letters of a source."""
        if state not in STATES:
            raise InvalidCommand("state", f"{state!r:.40} is none of {', '.join(STATES)}")

        def asked() -> tuple[dict[str, int], str, list[DeadLetter]]:
            letters = self._ledger.open_letters()
            chosen = source or next((name for name, count in letters.items() if count), "") or next(iter(letters), "")
            found = self._reader(chosen).dead_letters(state=state, after=after, limit=PAGE + 1) if chosen else []
            return letters, chosen, found

        letters, chosen, found = await self._site.desk.read(
            credential_of(request), "dead_letters", asked, lambda seen: accounts_in(seen[2][:PAGE])
        )
        return self._site.page(
            request,
            "dead_letters.html",
            sources=letters,
            source=chosen,
            state=state,
            states=STATES,
            after=after,
            found=found[:PAGE],
            next=found[PAGE - 1].dead_letter_id if len(found) > PAGE else None,
        )

    async def letter(self, request: Request, source: Source, id: Id, done: State = "") -> Response:
        """One dead letter: the message as it came, why it is here, and what was decided about it."""

        def asked() -> tuple[DeadLetter, list[LetterDecision]]:
            inbox = self._reader(source)
            return inbox.dead_letter(id), inbox.decisions(id)

        letter, decisions = await self._site.desk.read(
            credential_of(request), "dead_letter", asked, lambda seen: accounts_in([seen[0]])
        )
        return self._site.page(
            request,
            "dead_letter.html",
            letter=letter,
            message=json.loads(encode(letter.message)),
            decisions=decisions,
            done=done if done in STATES else "",
            note_max=NOTE_MAX,
            decided_here=source in self._site.desk.inboxes,
        )

    async def decide(self, request: Request) -> Response:
        """Let a dead letter take effect after all, or decide that it has none; on record who did, and why."""
        fields = await self._site.sessions.form(request)
        source, name, decision = (fields.get(each, "") for each in ("source", "id", "decision"))
        note = fields.get("note", "").strip()
        if decision not in ("requeue", "discard"):
            raise InvalidCommand("decision", "it is requeue or discard")
        if not 1 <= len(note) <= NOTE_MAX:
            raise InvalidCommand("note", f"say why, in 1 to {NOTE_MAX:,} characters")
        inbox = self._decider(source)
        decide = inbox.requeue if decision == "requeue" else inbox.discard
        actor = credential_of(request).actor
        await self._site.desk.append(lambda: decide(name, actor=actor, note=note))
        return go_to(link("/dead-letter", source=source, id=name, done=f"{decision.removesuffix('e')}ed"))

    def _reader(self, source: str) -> Inbox:
        """Whoever only looks needs no policy."""
        return self._ledger.inbox(source, Unordered())

    def _decider(self, source: str) -> Inbox:
        """The inbox that this service has for a source: it knows by which policy its messages are read."""
        if source not in self._site.desk.inboxes:
            problem = (
                f"decisions about {source!r:.80} are taken where its messages are: `ledger serve --source {source}`"
            )
            raise InvalidCommand("source", problem)
        return self._site.desk.inboxes[source]


def _trouble(seen: Anomalies) -> list[Trouble]:
    found = []
    for kind, counts in seen.counts.items():
        numbers = [counts.get(day, 0) for day in seen.days]
        found.append(Trouble(kind, sum(numbers), max(numbers), bars(numbers), numbers))
    return found
