"""The commands that keep a ledger in order: migrate, verify, rebuild."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

from ledger.application import Ledger
from ledger.audit.checkpoint import Checkpoint, Note, VerifierKey
from ledger.audit.report import Report
from ledger.cli.options import POOL_SIZE, Target, command, opened
from ledger.cli.output import answer, escape, print_error, progress
from ledger.cli.proving import files, read_keys
from ledger.core.errors import InvalidCommand, ProofFailed, UnknownAccount
from ledger.wire import migrated_json, report_json

_FINDINGS_SHOWN: Final = 20

Jobs: TypeAlias = Annotated[int, typer.Option(help="How many do it at once.", metavar="N")]
After: TypeAlias = Annotated[
    str, typer.Option(help="Go on behind this stream, as an interrupted run says.", metavar="STREAM")
]


@command
def migrate(
    target: Target,
    roles: Annotated[
        bool, typer.Option("--roles", help="Also create PREFIX_owner, PREFIX_app and PREFIX_audit; needs CREATEROLE.")
    ] = False,
    role_prefix: Annotated[str | None, typer.Option(help="Begin their names with this.", metavar="PREFIX")] = None,
    partitions: Annotated[
        int | None,
        typer.Option(help="Divide the log of a new ledger by its streams: from 1 to 1024.", metavar="N"),
    ] = None,
) -> int:
    """Bring the database to this release's schema."""
    if role_prefix is not None and not roles:
        raise InvalidCommand("--role-prefix", "it goes with --roles")
    with opened(target.settings, migrate_embedded=False) as ledger:
        migrated = ledger.migrate(partitions=partitions)
        made = ledger.create_roles(role_prefix or "ledger") if roles else ()
    if migrated.applied:
        begun = "new" if migrated.found is None else f"was at {migrated.found}"
        said = f"schema {escape(migrated.schema)} ({begun}): applied {', '.join(migrated.applied)}"
    else:
        said = f"schema {escape(migrated.schema)} is at {migrated.head} already: nothing to do"
    granted = [f"roles {', '.join(made)}"] if made else []
    answer(target.as_json, {**migrated_json(migrated), "roles": list(made)}, said, *granted)
    return 0


@command
def verify(
    target: Target,
    account: Annotated[
        list[str] | None,
        typer.Option(help="Only this account with its transactions; repeatable.", metavar="ACCOUNT"),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild the projections that differ, and verify again.")
    ] = False,
    jobs: Jobs = 1,
    after: After = "",
    against: Annotated[
        Path | None,
        typer.Option(
            help="Compare the log with this signed checkpoint, which was kept elsewhere, and nothing else.",
            metavar="CHECKPOINT",
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="With --against: the verifier key, or a file with it; repeatable.", metavar="KEY"),
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="With --against: the log's name, if it is not that of its key.", metavar="NAME")
    ] = None,
) -> int:
    """
    Re-derive everything from the log and compare.

    Exit code 0: sound; 1: something was found, repaired or not; 2: could not check.
    """
    chosen = account or []
    if against is not None:
        if chosen or repair or jobs != 1 or after or not key:
            raise InvalidCommand("--against", "it goes with --key, and with no other option of this command")
        return _verify_against(target, against, key, origin)
    if key or origin:
        raise InvalidCommand("--key", "it goes with --against")
    with opened(target.settings) as ledger:
        try:
            report = _verified(ledger, chosen, jobs, after)
        except UnknownAccount as error:
            # Nothing was checked, which is neither sound nor bad news.
            print_error(error, as_json=target.as_json)
            return 2
        plain = report_json(report)
        said = [*_counts(report), *_findings(report)]
        if repair and not report.ok:
            rebuilt, again = _repair(ledger, report, chosen, jobs)
            plain |= {"rebuilt": rebuilt, "after": report_json(again)}
            said.append(f"rebuilt: {escape(', '.join(rebuilt)) or 'nothing, no projection alone is at fault'}")
            said += [f"verified again: {line}" for line in _findings(again)]
    answer(target.as_json, plain, *said)
    return 0 if report.ok else 1


@command
def rebuild(
    target: Target,
    accounts: Annotated[list[str] | None, typer.Argument(help="These only.", metavar="[ACCOUNT]...")] = None,
    jobs: Jobs = 1,
    after: After = "",
) -> int:
    """Make projections anew from the log while writers go on; exit code 1 if any had differed."""
    chosen = accounts or []
    # Each job has a connection of the pool, and one more asks how many streams there are.
    with opened(target.settings, pool_size=max(POOL_SIZE, jobs + 1)) as ledger:
        total = len(chosen) or sum(line.accounts for line in ledger.trial_balance().lines)
        with progress("streams", total or None) as watch:
            differed = ledger.rebuild(*chosen, jobs=jobs, after=after, progress=watch)
    if differed:
        said = [
            f"[red]differed from the log and rebuilt:[/] {len(differed)}",
            *(f"  {escape(name)}" for name in differed),
        ]
    else:
        said = ["[green]all as the log says[/]: nothing differed"]
    answer(target.as_json, {"differed": differed}, *said)
    return 1 if differed else 0


def _verify_against(target: Target, checkpoint: Path, keys: list[str], origin: str | None) -> int:
    with files(), opened(target.settings) as ledger, progress("records", None) as watch:
        note, known = checkpoint.read_bytes(), read_keys(keys)
        _check_given(note, known)
        report = ledger.verify_against(note, known, origin=origin, progress=watch)
    answer(target.as_json, report_json(report), *_counts(report), *_findings(report))
    return 0 if report.ok else 1


def _check_given(note: bytes, keys: list[VerifierKey]) -> None:
    """
    Refuse what nothing can be compared with, which says nothing about the log.

    Raises:
        InvalidCommand: It is no checkpoint, or one that does not even say that one of these keys has signed it.
    """
    try:
        parsed = Note.parse(note)
        Checkpoint.parse(parsed.text)
    except ProofFailed as error:
        raise InvalidCommand("--against", f"{error.what} does not hold: {error.problem}") from None
    if not any(key.made(signature) for key in keys for signature in parsed.signatures):
        raise InvalidCommand("--against", "the checkpoint is signed with none of the keys that are given")


def _verified(ledger: Ledger, accounts: list[str], jobs: int, after: str = "") -> Report:
    with progress("events", None) as watch:
        return ledger.verify(*accounts, jobs=jobs, after=after, progress=watch)


def _repair(ledger: Ledger, report: Report, chosen: list[str], jobs: int) -> tuple[list[str], Report]:
    """Rebuild what differs while its log is sound, and look again."""
    broken_logs = {finding.stream for finding in report.findings if finding.kind == "log"}
    found = [finding for finding in report.findings if finding.kind == "projection"]
    found = [finding for finding in found if finding.stream not in broken_logs]
    rebuilt: list[str] = []
    if report.findings_total > len(report.findings) or any(finding.version == 0 for finding in found):
        # More than the report names, or rows that belong to no account.
        rebuilt = ledger.rebuild(noticed_by="verify")
    elif found:
        rebuilt = ledger.rebuild(*sorted({finding.stream for finding in found}), noticed_by="verify")
    return rebuilt, _verified(ledger, chosen, jobs)


def _counts(report: Report) -> list[str]:
    counted = ["checked " + ", ".join(f"{count:,} {what}" for what, count in report.checked.items())]
    return [*counted, f"subjects forgotten, and shredded: {report.shredded:,}"] if report.shredded else counted


def _findings(report: Report) -> list[str]:
    if report.ok:
        return ["[green]sound[/]"]
    first, *others = report.findings
    lines = [f"[red]{report.findings_total:,} found[/], first: {escape(str(first))}"]
    lines += [f"  {escape(str(finding))}" for finding in others[: _FINDINGS_SHOWN - 1]]
    if report.findings_total > _FINDINGS_SHOWN:
        lines.append(f"  and {report.findings_total - _FINDINGS_SHOWN:,} more")
    return lines
