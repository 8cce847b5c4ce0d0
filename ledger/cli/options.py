"""
The options that commands share, and the decorator that gives them to a command.

A parameter whose type is one of the dataclasses here stands for all of its options, so that each is
written once and can be given after the sub-command, where people type it.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from datetime import datetime
from functools import wraps
from typing import Annotated, Any, Final, TypeAlias, get_type_hints

import typer

from ledger.application import Ledger
from ledger.cli.output import print_interrupted
from ledger.core.errors import Interrupted, InvalidCommand
from ledger.core.fields import MOMENT, checked
from ledger.core.lifecycle import StateMachine
from ledger.lifecycle import load
from ledger.settings import Settings
from ledger.storage.database import Timeouts

POOL_SIZE: Final = 10

_WHERE = "Where"
_CONTEXT = "With it"


@dataclass(frozen=True, slots=True)
class Target:
    """Which ledger to work on, and how to answer."""

    database_url: Annotated[
        str | None,
        typer.Option(
            help="postgresql://user@host/database; or LEDGER_DATABASE_URL. Without: the embedded PostgreSQL.",
            metavar="URL",
            rich_help_panel=_WHERE,
        ),
    ] = None
    schema: Annotated[
        str | None,
        typer.Option(help="The ledger's schema; or LEDGER_SCHEMA.", metavar="NAME", rich_help_panel=_WHERE),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON, errors included.")] = False

    def over(self, earlier: Target) -> Target:
        """These options, and where one was not given, the one that stood before the sub-command."""
        return Target(
            self.database_url or earlier.database_url, self.schema or earlier.schema, self.as_json or earlier.as_json
        )

    @property
    def settings(self) -> Settings:
        """What was given here, over what the environment says."""
        settings = Settings.read()
        return replace(
            settings,
            database_url=self.database_url or settings.database_url,
            schema=self.schema or settings.schema,
        )


@dataclass(frozen=True, slots=True)
class Known:
    """As of when the answer is known."""

    known_as_of: Annotated[
        str | None,
        typer.Option(
            help="What was known by then, for ever the same: a time, such as 2026-01-01T00:00:00Z, or a feed position.",
            metavar="TIME",
        ),
    ] = None

    @property
    def known(self) -> datetime | int | None:
        """A moment, a position of the feed, or all that was committed."""
        if self.known_as_of is None or not self.known_as_of.isdecimal():
            return _time("--known-as-of", self.known_as_of)
        return int(self.known_as_of)


@dataclass(frozen=True, slots=True)
class AsOf(Known):
    """As of when the answer counts, and is known."""

    effective_as_of: Annotated[
        str | None, typer.Option(help="What is effective by then, such as 2026-01-01T00:00:00Z.", metavar="TIME")
    ] = None

    @property
    def effective(self) -> datetime | None:
        """A moment, or any."""
        return _time("--effective-as-of", self.effective_as_of)


def _time(option: str, text: str | None) -> datetime | None:
    return None if text is None else checked(MOMENT, option, text)


@dataclass(frozen=True, slots=True)
class Answering:
    """How to answer, where no ledger is worked on."""

    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON, errors included.")] = False

    def over(self, earlier: Target) -> Answering:
        """As it is asked for here, or before the sub-command."""
        return Answering(self.as_json or earlier.as_json)


@contextmanager
def opened(
    settings: Settings,
    *,
    migrate_embedded: bool = True,
    machines: Iterable[StateMachine] = (),
    timeouts: Timeouts | None = None,
    pool_size: int = POOL_SIZE,
) -> Iterator[Ledger]:
    """
    The ledger to work on.

    An embedded one is ours alone, so it is migrated on the way; a database that somebody named is theirs.
    """
    if settings.database_url is not None:
        url = settings.database_url
        with Ledger.connect(
            url, schema=settings.schema, machines=machines, timeouts=timeouts, pool_size=pool_size
        ) as ledger:
            yield ledger
        return
    folder = settings.data_folder()
    with Ledger.embedded(
        folder, schema=settings.schema, machines=machines, timeouts=timeouts, pool_size=pool_size
    ) as ledger:
        if migrate_embedded:
            ledger.migrate()
        yield ledger


MachineFiles: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="State machines of your own: a .toml or .json file each; repeatable.", metavar="FILE"),
]


def read_machines(files: Iterable[str] | None) -> list[StateMachine]:
    """Read the state machines in these files, as `read_machine`."""
    return [read_machine(file) for file in files or ()]


def read_machine(file: str) -> StateMachine:
    """
    Read a state machine from a file.

    Raises:
        InvalidCommand: There is no such file, or it cannot be read.
        InvalidStateMachine: It holds none that can work.
    """
    try:
        return load(file)
    except OSError as error:
        raise InvalidCommand(file, f"{error.strerror or error}") from None


@dataclass(frozen=True, slots=True)
class CommandContext:
    """What every write may carry beside its request."""

    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", "--key", help="The same key again does nothing again.", rich_help_panel=_CONTEXT
        ),
    ] = None
    reference: Annotated[
        str | None, typer.Option(help="What it belongs to, such as an order.", rich_help_panel=_CONTEXT)
    ] = None
    effective_at: Annotated[
        str | None,
        typer.Option(
            help="When it counts, if not now: 2026-01-02T03:04:05Z.", metavar="TIME", rich_help_panel=_CONTEXT
        ),
    ] = None
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=TEXT, or KEY:=JSON for an integer, true or false; repeatable.",
            metavar="KEY=VALUE",
            rich_help_panel=_CONTEXT,
        ),
    ] = None
    actor: Annotated[str | None, typer.Option(help="Who asks for it.", rich_help_panel=_CONTEXT)] = None
    correlation_id: Annotated[
        str | None, typer.Option(help="The conversation that it is part of.", metavar="ID", rich_help_panel=_CONTEXT)
    ] = None
    causation_id: Annotated[
        str | None, typer.Option(help="The message that caused it.", metavar="ID", rich_help_panel=_CONTEXT)
    ] = None
    expect: Annotated[
        list[str] | None,
        typer.Option(
            help="Refuse unless the account is at this version; repeatable.",
            metavar="ACCOUNT=VERSION",
            rich_help_panel=_CONTEXT,
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen; write nothing.", rich_help_panel=_CONTEXT)
    ] = False

    def values(self) -> dict[str, Any]:
        """As the fields of a command."""
        return {
            "idempotency_key": self.idempotency_key,
            "reference": self.reference,
            "effective_at": self.effective_at,
            "metadata": pairs(self.metadata),
            "actor": self.actor,
            "correlation_id": self.correlation_id,
            "causation_id": self.causation_id,
            "expected_versions": _expected(self.expect or ()),
        }


def pairs(texts: Iterable[str] | None) -> dict[str, Any]:
    """
    Read KEY=TEXT and KEY:=JSON.

    Raises:
        InvalidCommand: A text is neither, or names a key that another has named.
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        written, equals, value = text.partition("=")
        key = written.removesuffix(":")
        if not equals or not key:
            raise InvalidCommand("metadata", f"{text!r} is not KEY=VALUE")
        if key in found:
            raise InvalidCommand("metadata", f"{key!r} is given twice")
        found[key] = value if key == written else _json(text, value)
    return found


def _json(text: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise InvalidCommand("metadata", f"{value!r} in {text!r} is not JSON; for a text write KEY=TEXT") from None


def _expected(texts: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        account, _, version = text.rpartition("=")
        if not account or not re.fullmatch("[0-9]{1,16}", version):
            raise InvalidCommand("expect", f"{text!r} is not ACCOUNT=VERSION")
        if account in found:
            raise InvalidCommand("expect", f"{account!r} is given twice")
        found[account] = int(version)
    return found


def command(function: Callable[..., int]) -> Callable[..., int]:
    """Make a function a command: parameters that are dataclasses of options become those options."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if name != "return" and is_dataclass(hint)}
    shown = [inspect.Parameter("context_", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in groups:
            shown += _parameters_of(groups[parameter.name])
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            shown.append(parameter.replace(annotation=hints[parameter.name], kind=kind))

    @wraps(function)
    def run(*, context_: typer.Context, **values: Any) -> int:
        for name, group in groups.items():
            options = group(**{option.name: values.pop(option.name) for option in fields(group)})
            values[name] = options.over(context_.obj) if isinstance(options, Target | Answering) else options
        try:
            return function(**values)
        except BrokenPipeError:
            # Caught before typer sees it, which would exit as if the command had been refused.
            raise typer.Exit(READER_GONE) from None
        except Interrupted as interrupted:
            # Before typer as well, which would end without a word.
            as_json = any(getattr(values[name], "as_json", False) for name in groups)
            print_interrupted(interrupted.after, interrupted.found, as_json=as_json)
            raise typer.Exit(INTERRUPTED) from None

    run.__signature__ = inspect.Signature(shown, return_annotation=int)  # type: ignore[attr-defined]
    return run


def unless_followed(run: Callable[..., int]) -> Callable[..., int]:
    """A command that is also a group: it does nothing itself where one of the group's commands was asked for."""

    @wraps(run)
    def either(*, context_: typer.Context, **values: Any) -> int:
        if context_.invoked_subcommand is None:
            return run(context_=context_, **values)
        context_.obj = Target(values["database_url"], values["schema"], values["as_json"]).over(context_.obj)
        return 0

    return either


INTERRUPTED: Final = 130

READER_GONE = 141
"""The exit code of a program whose reader went away, as a shell reports it: 128 + SIGPIPE."""


def _parameters_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            # What a dataclass must be given, a person must give.
            default=inspect.Parameter.empty if option.default is MISSING else option.default,
            annotation=hints[option.name],
        )
        for option in fields(group)
    ]
