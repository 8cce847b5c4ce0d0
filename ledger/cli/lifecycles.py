"""The commands about state machines: begin, advance, state, machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from ledger.cli.options import CommandContext, MachineFiles, Target, command, opened, read_machine, read_machines
from ledger.cli.output import answer, console, escape, print_error, print_json, row, table
from ledger.cli.writing import carry_out_on
from ledger.core.commands import Advance, Begin, build
from ledger.core.errors import InvalidCommand, InvalidStateMachine
from ledger.core.lifecycle import ACCOUNT, HOLD, StateMachine
from ledger.lifecycle import shipped_machines
from ledger.wire import machine_json, state_json

Machine = Annotated[str, typer.Argument(help="Its name, such as payment.", metavar="MACHINE", show_default=False)]
Subject = Annotated[str, typer.Argument(help="Your id for it.", metavar="SUBJECT", show_default=False)]

OWN: Final = {machine.name: machine for machine in (ACCOUNT, HOLD)}
"""The machines that the ledger itself goes by: shown like any other, and never begun by hand."""


@command
def begin(
    machine: Machine, subject: Subject, context: CommandContext, target: Target, machines: MachineFiles = None
) -> int:
    """Begin something of your own, in the first state of its machine."""
    wanted = build(Begin, machine=machine, subject=subject, **context.values())
    with opened(target.settings, machines=read_machines(machines)) as ledger:
        return carry_out_on(ledger, wanted, context, target)


@command
def advance(
    machine: Machine,
    subject: Subject,
    event: Annotated[str, typer.Argument(help="What happened, such as capture.", metavar="EVENT", show_default=False)],
    context: CommandContext,
    target: Target,
    machines: MachineFiles = None,
) -> int:
    """Take something that was begun to its next state; refused where its machine does not allow the event."""
    wanted = build(Advance, machine=machine, subject=subject, event=event, **context.values())
    with opened(target.settings, machines=read_machines(machines)) as ledger:
        return carry_out_on(ledger, wanted, context, target)


@command
def state(machine: Machine, subject: Subject, target: Target, machines: MachineFiles = None) -> int:
    """Show where something of your own stands, and what may happen to it next."""
    with opened(target.settings, machines=read_machines(machines)) as ledger:
        found = ledger.state(machine, subject)
    said = f"{escape(f'{found.machine} {found.subject}')} is [bold]{found.state}[/] at version {found.version}"
    answer(target.as_json, state_json(found), said, f"allowed: {', '.join(found.allowed) or 'nothing'}")
    return 0


@command
def machines(
    target: Target,
    machine: Annotated[
        str | None,
        typer.Argument(help="A name from the list, or a file to check: .toml or .json.", metavar="[NAME|FILE]"),
    ] = None,
    diagram: Annotated[bool, typer.Option("--diagram", help="Draw it, as a Mermaid state diagram.")] = False,
) -> int:
    """
    List the state machines that come with the ledger, or show one of them, or check one in a file.

    Exit code 1: the file holds none that can work; 2: it cannot be read.
    """
    if machine is None:
        if diagram:
            raise InvalidCommand("machines", "--diagram draws one machine; name it")
        return _list(target)
    try:
        found = _named(machine)
    except InvalidStateMachine as problems:
        print_error(problems, as_json=target.as_json)
        return 1
    if diagram and not target.as_json:
        console().print(found.diagram(), end="", markup=False)
    elif target.as_json:
        print_json(machine_json(found))
    else:
        _show(found)
    return 0


def _named(machine: str) -> StateMachine:
    known = {**shipped_machines(), **OWN}
    if machine in known:
        return known[machine]
    if Path(machine).suffix:
        return read_machine(machine)
    raise InvalidCommand("machines", f"{machine!r} is neither one of {', '.join(known)} nor a .toml or .json file")


def _list(target: Target) -> int:
    shipped = shipped_machines()
    made = table("name", "for", "begins as", "ends as")
    for machine in (*shipped.values(), *OWN.values()):
        whose = "begin, advance" if machine.name in shipped else "the ledger itself"
        row(made, machine.name, whose, machine.initial, ", ".join(machine.final))
    plain = {
        "shipped": [machine_json(machine) for machine in shipped.values()],
        "own": [machine_json(machine) for machine in OWN.values()],
    }
    answer(target.as_json, plain, made, "[dim]`ledger machines NAME` shows one[/]")
    return 0


def _show(machine: StateMachine) -> None:
    out = console()
    out.print(f"[bold]{escape(machine.name)}[/]  begins as {machine.initial}")
    made = table("state", "event", "next state")
    for state in machine.states:
        for event in machine.allowed(state):
            target = machine.advance(state, event)
            row(made, state, event, "" if target == state else target)
        if state in machine.final:
            row(made, state, "", "the end")
    out.print(made)
    out.print(f"[dim]fingerprint {machine.fingerprint()}[/]")
