"""The commands that look for what will make trouble: doctor, for the database and for what was read from Kafka."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import typer

from ledger.audit.diagnosis import Diagnosis, Symptom
from ledger.cli.consuming import doctor_kafka
from ledger.cli.options import Target, command, opened, unless_followed
from ledger.cli.output import answer, escape
from ledger.wire import diagnosis_json

doctor_app = typer.Typer(
    name="doctor", help="Look for what will make trouble: in the database's schema, or, as `doctor kafka`, in a group."
)

_SHOWN: Final = 50


@command
def doctor(
    target: Target,
    role_prefix: Annotated[
        str | None,
        typer.Option(help="The roles with this prefix must be there; else they are looked for.", metavar="PREFIX"),
    ] = None,
    known_role: Annotated[
        list[str] | None,
        typer.Option(help="A role that you have granted something yourself; repeatable.", metavar="ROLE"),
    ] = None,
) -> int:
    """
    Compare the schema with what this release migrates to, and look at guards, roles, grants, server and settings.

    Only the catalogue is asked, so that it is quick and an auditor may: when a service starts, and after a restore.
    `ledger verify` says what is in the tables.  Exit code 0: as it must be, whatever the warnings; 1: something was
    found; 2: could not look.
    """
    # Our own embedded database is not migrated on the way: that it must be is something to find.
    with opened(target.settings, migrate_embedded=False) as ledger:
        diagnosis = ledger.doctor(role_prefix=role_prefix, known_roles=known_role or ())
    answer(target.as_json, diagnosis_json(diagnosis), *_said(diagnosis))
    return 0 if diagnosis.ok else 1


def _said(diagnosis: Diagnosis) -> list[str]:
    said = ["checked " + ", ".join(f"{count:,} {what}" for what, count in diagnosis.checked.items())]
    said += _listed(diagnosis.findings, diagnosis.findings_total, "red")
    said += _listed(diagnosis.warnings, diagnosis.warnings_total, "yellow")
    if diagnosis.ok:
        said.append("[green]as it must be[/]: nothing found")
    return said


def _listed(symptoms: Sequence[Symptom], total: int, colour: str) -> list[str]:
    word = "finding" if colour == "red" else "warning"
    shown = [f"[{colour}]{word}[/] {escape(str(symptom))}" for symptom in symptoms[:_SHOWN]]
    return shown + ([f"… and {total - _SHOWN:,} more {word}s"] if total > _SHOWN else [])


doctor_app.callback(invoke_without_command=True)(unless_followed(doctor))
doctor_app.command("kafka")(doctor_kafka)
