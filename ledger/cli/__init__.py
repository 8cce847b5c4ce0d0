"""The command line: one sub-command per task, a module per group."""

import sys

try:
    from ledger.cli.program import app, main
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] not in ("typer", "rich"):
        raise
    _MISSING = missing.name

    def main() -> int:
        """Say what is missing: without its extra the package is a library."""
        sys.stderr.write(f"ledger: {_MISSING} is not installed. Install ledger[cli] for the command line.\n")
        return 2


__all__ = ["app", "main"]
