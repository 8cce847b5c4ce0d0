"""`ledger demo`: the incident, told on a real database.  What it prints was measured by `incident`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from ledger.audit.report import Report
from ledger.cli.incident import ARRIVED, DELIVERED, REPLAYED, RIGHT, SENT, Incident, Refusal, Repair, Step
from ledger.cli.options import Target, command, opened
from ledger.cli.output import console, escape, print_json, row, table
from ledger.core.money import Money
from ledger.wire import Json, balance_json, report_json

_WIDTH = 80


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that was seen in one staging of the incident."""

    server: str
    schema: str
    run: str
    ordered: Sequence[Step]
    swapped: Sequence[Step]
    kept: Sequence[Step]
    repair: Repair
    refusals: Sequence[Refusal]
    report: Report
    seconds: float

    @property
    def claims(self) -> dict[str, bool]:
        """What the story says, and whether it came true."""
        replayed = [step for step in self.kept if step.answer == REPLAYED]
        reported = self.repair.reported
        return {
            "the naive consumer is right when messages come in order": self.ordered[-1].balance == RIGHT,
            "the naive consumer is wrong when they come swapped": self.swapped[-1].balance != RIGHT,
            "the ledger is right when they come swapped": self.kept[-1].balance == RIGHT,
            "a second delivery changes nothing": len(replayed) == len(SENT)
            and {step.version for step in replayed} == {1 + len(SENT)},
            "a changed balance is noticed, mended and reported by the next write": len(reported) == 1
            and reported[0]["found"] != reported[0]["expected"]
            and self.repair.claimed != self.repair.before
            and self.repair.after.posted == self.repair.before + Money.parse("1.00 USD"),
            "the database refuses to change an event": all(refusal.said for refusal in self.refusals),
            "the ledger verifies": self.report.ok and self.report.checked["events"] > 0,
        }


@command
def demo(target: Target) -> int:
    """
    See the incident happen to an ordinary consumer, and not happen here.

    It works in a schema of its own beside the ledger's, and can be run again and again.
    """
    settings = target.settings
    settings = replace(settings, schema=f"{settings.schema}_demo")
    with opened(settings) as ledger:
        ledger.migrate()
        story = stage(Incident(ledger))
    held = all(story.claims.values())
    if target.as_json:
        print_json(_facts(story))
    else:
        _tell(story, named=settings.database_url is not None)
    return 0 if held else 1


def stage(incident: Incident) -> Story:
    """Let the incident happen, once, and note what was seen."""
    began = time.perf_counter()
    ordered = incident.naive(SENT)
    swapped = incident.naive(ARRIVED)
    incident.open()
    kept = incident.consume(DELIVERED)
    repair = incident.tamper()
    refusals = incident.edit_events()
    report = incident.verify()
    return Story(
        server=incident.server(),
        schema=incident.ledger.schema,
        run=incident.run,
        ordered=ordered,
        swapped=swapped,
        kept=kept,
        repair=repair,
        refusals=refusals,
        report=report,
        seconds=time.perf_counter() - began,
    )


def _tell(story: Story, *, named: bool) -> None:
    out = console(wrap=True)
    out.width = min(out.width, _WIDTH)
    out.print(f"\n[dim]{escape(story.server)}, schema {escape(story.schema)}; everything below was read from it.[/]")
    _tell_incident(out, story)
    _tell_ledger(out, story)
    _tell_tampering(out, story)
    _tell_end(out, story, named=named)


def _tell_incident(out: Console, story: Story) -> None:
    _heading(out, 1, "Two messages change places")
    sent = table("sent at", "message", "arrives", right=("sent at",))
    for message in SENT:
        place = ("first", "second")[ARRIVED.index(message)]
        row(sent, f"{message.at_ms} ms", f"{message.name}  {message.does}", place)
    out.print(sent)
    _heading(out, 2, "An ordinary consumer")
    out.print("[dim]UPDATE … SET balance = balance - 800 WHERE … AND balance >= 800[/]\n")
    out.print(f"In order it is right: {_path(story.ordered)}.\n")
    out.print(_steps(story.swapped, "as they arrive"))
    final = story.swapped[-1].balance
    out.print(f"\nNothing crashed, nothing was logged: alice has [bold red]{final}[/], not {RIGHT}.")


def _tell_ledger(out: Console, story: Story) -> None:
    _heading(out, 3, "The ledger, given the same messages, each of them twice")
    out.print(_steps(story.kept, "as they arrive"))
    last = story.kept[-1]
    out.print(
        f"\nalice has [bold green]{last.balance}[/]. A message says which version of the account it"
        " expects, so one that is early waits; and it has a key, so its second delivery is answered like its first."
    )


def _tell_tampering(out: Console, story: Story) -> None:
    repair = story.repair
    _heading(out, 4, "Somebody changes a balance with plain SQL, and leaves its version alone")
    out.print(f"The projection now says [red]{repair.claimed}[/] at version {repair.version}, as before.")
    out.print(f"The next write, a deposit of 1.00 USD, notices: [green]{repair.after.posted}[/]. On record:\n")
    made = table("noticed by", "version", "credits found", "credits in the log", right=_NUMBERS)
    for reported in repair.reported:
        row(made, *(reported[name] for name in ("noticed_by", "expected_version", "found", "expected")))
    out.print(made)
    _heading(out, 5, "Somebody tries to rewrite history")
    for refusal in story.refusals:
        out.print(f"[dim]{escape(refusal.statement)}[/]")
        out.print(f"  [green]{escape(refusal.said)}[/]" if refusal.said else "  [red]the database let it pass[/]")


_NUMBERS = ("version", "credits found", "credits in the log")


def _tell_end(out: Console, story: Story, *, named: bool) -> None:
    _heading(out, 6, "Everything is derived again from the log, and compared")
    counts = ", ".join(f"{count} {what}" for what, count in story.report.checked.items() if count)
    out.print(f"{counts}: " + ("[green]sound[/]" if story.report.ok else f"[red]{story.report.findings[0]}[/]"))
    for claim, came_true in story.claims.items():
        if not came_true:
            out.print(f"[bold red]did not come true:[/] {claim}")
    held = sum(story.claims.values())
    out.print(f"\n[bold]{held} of {len(story.claims)} claims came true[/] in {story.seconds:.1f} seconds.")
    _heading(out, None, "Where to go next")
    where = ["--schema", story.schema, *(["--database-url", "…"] if named else [])]
    options = escape(" ".join(where))
    made = Table.grid(padding=(0, 2))
    made.add_row("look at what happened", f"ledger history alice-{story.run} {options}")
    made.add_row("a ledger of your own", "ledger open world --asset USD --type equity")
    made.add_row("every command", "ledger --help")
    made.add_row("in an application", "README.md: In an application")
    made.add_row("how it works", "README.md: Design decisions")
    out.print(made)


def _heading(out: Console, number: int | None, title: str) -> None:
    out.print()
    place = "" if number is None else f"{number}  "
    out.print(Rule(f"[bold]{place}{title}[/]", align="left", style="dim"))


def _path(steps: Sequence[Step]) -> str:
    return ", ".join(f"{step.message.name} → {step.balance}" for step in steps)


def _steps(steps: Sequence[Step], heading: str) -> Table:
    versioned = any(step.version is not None for step in steps)
    made = table(heading, "answer", *(["version"] if versioned else []), "balance", right=("balance", "version"))
    for step in steps:
        cells = [f"{step.message.name}  {step.message.does}", step.answer]
        row(made, *cells, *([step.version] if versioned else []), step.balance)
    return made


def _facts(story: Story) -> Json:
    return {
        "server": story.server,
        "schema": story.schema,
        "accounts": {"alice": f"alice-{story.run}", "world": f"world-{story.run}"},
        "sent": [{"message": each.name, "does": each.does, "at_ms": each.at_ms} for each in SENT],
        "arrived": [each.name for each in ARRIVED],
        "naive": {
            "in_order": [_step_json(step) for step in story.ordered],
            "swapped": [_step_json(step) for step in story.swapped],
        },
        "ledger": [_step_json(step) for step in story.kept],
        "repair": {
            "version": story.repair.version,
            "before": str(story.repair.before),
            "claimed": str(story.repair.claimed),
            "after": balance_json(story.repair.after),
            "reported": list(story.repair.reported),
        },
        "refused": [
            {"statement": each.statement, "said": each.said, "sqlstate": each.sqlstate} for each in story.refusals
        ],
        "verify": report_json(story.report),
        "claims": story.claims,
        "seconds": round(story.seconds, 3),
    }


def _step_json(step: Step) -> Json:
    return {
        "message": step.message.name,
        "answer": step.answer,
        "balance": str(step.balance),
        "version": step.version,
    }
