"""The README is true: its examples run, its map is the tree, and it names every command."""

import doctest
import re
from pathlib import Path

import pytest
import typer

from ledger.cli.program import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_examples_run(ledger_url: str) -> None:
    """Every example of the README prints what it says."""
    results = doctest.testfile(
        str(README),
        module_relative=False,
        globs={"database_url": ledger_url},
        optionflags=doctest.IGNORE_EXCEPTION_DETAIL,
    )

    assert results.attempted > 40
    assert results.failed == 0


def test_map_names_every_module() -> None:
    """Each module of the package stands in the map."""
    text = README.read_text(encoding="utf-8")
    drawing = text[text.index("### The map") : text.index("### The record hash")]
    modules = {path.stem for path in (ROOT / "ledger").rglob("*.py") if not path.stem.startswith("__")}
    packages = {path.parent.name for path in (ROOT / "ledger").rglob("__init__.py")}

    missing = {name for name in modules if not re.search(rf"\b{name}\b", drawing)}

    assert missing - {path.stem for path in (ROOT / "ledger" / "cli").glob("*.py")} == set()
    assert {name for name in packages if f"{name}/" not in drawing} == set()


@pytest.mark.parametrize("marker", ["main", "tests"])
def test_newcomers_commands_are_marked(marker: str) -> None:
    """The two commands of a newcomer are fenced blocks right after their marker."""
    text = README.read_text(encoding="utf-8")

    assert re.search(rf"^<!-- fresh: {marker} -->\n```\n(.+\n)+```$", text, re.MULTILINE)


def test_every_command_is_in_the_readme() -> None:
    """Each command of the command line has its line."""
    text = README.read_text(encoding="utf-8")
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    names = list(command.commands)

    assert len(names) > 10
    assert [name for name in names if f"\nledger {name}" not in text] == []
