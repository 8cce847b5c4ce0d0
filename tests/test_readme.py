"""The manual is true: its examples run, its links lead somewhere, its map is the tree, and it names every command."""

import doctest
import re
from pathlib import Path

import pytest
import typer

from ledger import Ledger
from ledger.cli.program import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CHAPTERS = ("accounts", "messages", "embedding", "feed", "audit", "proof", "service")
"""Of the manual, in the order in which their examples go on from those of the README."""


def test_examples_run(ledger_url: str) -> None:
    """Every example of the README and of the chapters behind it prints what it says."""
    names: dict[str, object] = {"database_url": ledger_url}
    attempted, failed = 0, 0
    for path in (README, *(ROOT / "docs" / f"{chapter}.md" for chapter in CHAPTERS)):
        parsed = doctest.DocTestParser().get_doctest(path.read_text("utf-8"), names, path.name, str(path), 0)
        runner = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
        results = runner.run(parsed, clear_globs=False)
        names = parsed.globs
        attempted += results.attempted
        failed += results.failed

    ledger = names["ledger"]
    assert isinstance(ledger, Ledger)
    ledger.close()
    assert failed == 0
    assert attempted > 150


def anchors(path: Path) -> set[str]:
    """What a link can name in a document: its headings, as they are written on the web."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """A link to another document, or to a heading, leads to one that is there."""
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", path.read_text("utf-8")):
        document = (path.parent / target).resolve() if target else path
        assert document.exists(), target
        assert not anchor or anchor in anchors(document), f"{target}#{anchor}"


def test_the_readme_leads_to_every_document() -> None:
    """No chapter is there that nobody finds."""
    text = README.read_text("utf-8")

    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"](docs/{path.name})" not in text] == []


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
