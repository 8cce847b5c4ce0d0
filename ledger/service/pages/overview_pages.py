"""The first page, and the one that has everything verified."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from ledger.application import Ledger
from ledger.core.money import Money
from ledger.service.pages.charts import Spark, spark
from ledger.service.pages.rendering import HEADERS
from ledger.service.pages.site import CHECKING, LOOKING, Site, credential_of, go_to
from ledger.service.pages.watching import Run, Sample
from ledger.service.upkeep_routes import found_in
from ledger.storage.overview import Overview
from ledger.storage.queries import TrialBalance, TrialLine
from ledger.storage.tree import Sealed

_SPARING = 20.0
"""What took so long is asked again after so many times as long: at most a twentieth of the time goes into it."""


class Health(NamedTuple):
    """A source of messages: what each number was over the last hour."""

    source: str
    received: Spark
    held: Spark
    parked: Spark
    open_letters: Spark


class Total(NamedTuple):
    """What all accounts of an asset come to."""

    asset: str
    accounts: int
    debits: Money
    credits: Money
    difference: Money


@dataclass
class _Kept:
    """The trial balance, which takes longer the more accounts there are: with its price, until when it is good."""

    trial: TrialBalance
    until: float


class OverviewPages:
    """All of it at a glance."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._trial: _Kept | None = None
        self._adding = asyncio.Lock()
        site.get("/", self.overview, *LOOKING)
        site.get("/verify", self.verify, *LOOKING)
        site.post("/verify", self.begin, *CHECKING)
        site.get("/verify/progress", self.progress, *LOOKING)

    async def overview(self, request: Request) -> Response:
        """How everything stands."""
        desk = self._site.desk
        standing, sealed, ledger_id = await desk.ask(_standing, desk.ledger)
        trial = await self._trial_balance()
        samples = await self._site.pulse.look()
        return self._site.page(
            request,
            "overview.html",
            standing=standing,
            sealed=sealed,
            ledger_id=ledger_id,
            trial=trial,
            totals=_totals(trial),
            accounts=sum(line.accounts for line in trial.lines),
            health=[_health(source, seen) for source, seen in samples.items()],
            since=self._site.pulse.since,
            run=self._site.verification.current,
            last=self._site.verification.last,
        )

    async def verify(self, request: Request) -> Response:
        """What a verification came to, or how far it is."""
        watched = self._site.verification
        run, last = watched.current, watched.last
        if last is not None and last.report is not None:
            report = last.report
            await self._site.desk.read(credential_of(request), "verify", lambda: report, found_in)
        return self._site.page(request, "verify.html", run=run, last=last)

    async def begin(self, request: Request) -> Response:
        """Begin one, unless one runs: then that one is looked at."""
        await self._site.sessions.form(request)
        await self._site.desk.ask(self._site.verification.begin, credential_of(request).actor)
        return go_to("/verify")

    async def progress(self) -> Response:
        """How far it is, for a script."""
        run = self._site.verification.current
        return JSONResponse(_progress(run), headers=dict(HEADERS))

    async def _trial_balance(self) -> TrialBalance:
        # Whoever comes meanwhile waits for the same one.
        async with self._adding:
            now = time.monotonic()
            if self._trial is None or self._trial.until < now:
                trial = await self._site.desk.audit(self._site.desk.ledger.trial_balance)
                took = time.monotonic() - now
                self._trial = _Kept(trial, now + took * _SPARING)
            return self._trial.trial


def _standing(ledger: Ledger) -> tuple[Overview, Sealed | None, str]:
    return ledger.overview(), ledger.last_checkpoint(), str(ledger.ledger_id)


def _totals(trial: TrialBalance) -> list[Total]:
    found = []
    for asset, difference in trial.difference.items():
        lines = [line for line in trial.lines if line.asset == asset]
        debits, credits = (sum((side for side in sides), difference - difference) for sides in _sides(lines))
        found.append(Total(asset, sum(line.accounts for line in lines), debits, credits, difference))
    return found


def _sides(lines: list[TrialLine]) -> tuple[list[Money], list[Money]]:
    return [line.debits for line in lines], [line.credits for line in lines]


def _health(source: str, samples: list[Sample]) -> Health:
    received, held, parked, letters = ([sample[at] for sample in samples] for at in range(4))
    return Health(source, spark(received), spark(held), spark(parked), spark(letters))


def _progress(run: Run | None) -> dict[str, Any]:
    if run is None:
        return {"running": False}
    return {"running": True, "checked": run.checked, "total": run.total, "share": run.share}
