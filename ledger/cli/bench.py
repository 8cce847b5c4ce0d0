"""`ledger bench`: the benchmarks of a checkout, beside which this package lies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from ledger.cli.options import Target, command
from ledger.core.errors import InvalidCommand

_CHECKOUT: Final = Path(__file__).parents[2]


@command
def bench(
    target: Target,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="calls, batches, growth, logs, feed, asof, peer, reports, messages, service or kafka; without: all but"
            " kafka.",
            metavar="NAME",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One short round: that it runs, not how fast.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Alternating rounds (default: 5).", min=1)] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds per figure and round (default: 4).", min=0.1, max=3600)
    ] = None,
    largest: Annotated[bool, typer.Option("--largest", help="growth: up to 10,000,000 events.")] = False,
    events: Annotated[
        int | None,
        typer.Option(help="logs, feed, asof, reports: how long the log is (default: 5,000,000).", min=1),
    ] = None,
    messages: Annotated[int | None, typer.Option(help="messages, kafka: in each run (default: 20,000).", min=1)] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="messages: a consumer's memory instead of its speed.")
    ] = False,
    bootstrap: Annotated[
        str | None, typer.Option(help="kafka: brokers (default: a mock of its own).", metavar="HOST:PORT")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Where JSON and pictures go (default: a new one in benchmarks/results/).", metavar="FOLDER"),
    ] = None,
) -> int:
    """
    Measure how fast it is, each figure beside its limit or its peer in the same run.

    It works in databases of its own, which are dropped afterwards: on an embedded server of its own, or on the one that
    --database-url names here.  It comes with the source, and not with the package.
    """
    if not (_CHECKOUT / "benchmarks" / "command.py").is_file():
        raise InvalidCommand(
            "benchmarks", "they come with the source and not with the package: clone it, pip install -e '.[test]' there"
        )
    options = [
        *(["--quick"] if quick else []),
        *(["--rounds", str(rounds)] if rounds else []),
        *(["--seconds", str(seconds)] if seconds else []),
        *(["--largest"] if largest else []),
        *(["--events", str(events)] if events else []),
        *(["--messages", str(messages)] if messages else []),
        *(["--memory"] if memory else []),
        *(["--bootstrap", bootstrap] if bootstrap else []),
        *(["--output", str(output.absolute())] if output else []),
        # Not the one in LEDGER_DATABASE_URL: nobody wants to find out how fast that is by accident.
        *(["--database-url", target.database_url] if target.database_url else []),
        *(["--json"] if target.as_json else []),
    ]
    # A program of its own, since what is measured in processes of their own begins with what this one has imported.
    arguments = [sys.executable, "-m", "benchmarks", *options, "--", *(names or [])]
    with subprocess.Popen(arguments, cwd=_CHECKOUT) as process:  # noqa: S603
        try:
            return process.wait()
        except BaseException:
            # It stops its server before it ends.
            process.terminate()
            raise
