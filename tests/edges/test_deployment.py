"""The files in `deploy/` can be read by those they are for, and say nothing to `ledger` that it does not know."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pytest
import typer
import yaml

from ledger.cli.program import app

ROOT: Final = Path(__file__).parent.parent.parent
DEPLOY: Final = ROOT / "deploy"
UNITS: Final = sorted((DEPLOY / "systemd").iterdir())
COMPOSE: Final = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
CONTAINERFILE: Final = (DEPLOY / "Containerfile").read_text("utf-8")
PAGE: Final = (ROOT / "docs" / "running.md").read_text("utf-8")
EXTRAS: Final = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]

COMMANDS: Final = typer.main.get_command(app)
TO_COME: Final = {"serve"} - set(COMMANDS.commands)  # type: ignore[attr-defined]
"""What these files say ahead of a release that has it."""


def of_units() -> Iterator[str]:
    """The command lines of the units."""
    for unit in UNITS:
        for line in re.findall(r"^Exec\w+=(.*)$", unit.read_text("utf-8"), re.MULTILINE):
            assert line.startswith("/opt/ledger/bin/ledger "), f"{unit.name}: {line}"
            yield line.removeprefix("/opt/ledger/bin/ledger ")


def of_containers() -> Iterator[str]:
    """What containers give to `ledger`, by themselves and in the compose file."""
    for arguments in re.findall(r"^CMD (\[.*\])$", CONTAINERFILE, re.MULTILINE):
        yield shlex.join(json.loads(arguments))
    for service in COMPOSE["services"].values():
        if service["image"] == "ledger" and "command" in service:
            yield shlex.join(service["command"])


def of_texts() -> Iterator[str]:
    """What a person is told to type, on the page and in the comments of the files."""
    comments = re.sub(r"(?m)^# ?", "", CONTAINERFILE + (DEPLOY / "compose.yaml").read_text("utf-8"))
    for line in re.findall(r"^\s*(?:podman run [^\n]*? )?ledger ((?!:)[a-z][^\n]*)$", comments, re.MULTILINE):
        yield line.partition(" && ")[0]
    for block in re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        yield from re.findall(r"^ledger ([^\n]*)$", block.replace("\\\n", ""), re.MULTILINE)


LINES: Final = sorted({*of_units(), *of_containers(), *of_texts()})


@pytest.mark.parametrize("line", LINES)
def test_command_line_is_one_of_ours(line: str) -> None:
    """The parser of the command line takes it: the command is there, and each option, with a value of its kind."""
    name = shlex.split(line)[0]
    if name in TO_COME:
        pytest.skip(f"`ledger {name}` is not in this checkout")
    command: Any = COMMANDS
    with command.make_context("ledger", [], resilient_parsing=True) as context:
        arguments = shlex.split(line)
        while hasattr(command, "resolve_command") and arguments and not arguments[0].startswith("-"):
            _, command, arguments = command.resolve_command(context, arguments)
        # Parsed as it would be, and not carried out.
        assert command.make_context("ledger", arguments, parent=context).params


def test_lines_are_found() -> None:
    """Each kind of file has its command lines, among them those that the files are for."""
    assert len(list(of_units())) >= 6
    assert len(list(of_containers())) >= 6
    assert len(list(of_texts())) >= 5
    begun = {line.split()[0] for line in LINES}
    assert {"serve", "feed", "seal", "doctor", "verify", "migrate", "consume", "expire-holds", "keygen"} <= begun


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda unit: unit.name)
def test_unit_is_one_that_systemd_takes(unit: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say about a unit, with its timer, once its program is there."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    for each in UNITS:
        text = each.read_text("utf-8").replace("/opt/ledger/bin/ledger", sys.executable)
        (tmp_path / each.name).write_text(text)
    checked = [unit.name, *(each.name for each in UNITS if each.name == f"{unit.stem}.timer")]
    done = subprocess.run(
        [program, "verify", "--man=no", "--recursive-errors=no", *(str(tmp_path / name) for name in checked)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_oneshot_has_its_timer() -> None:
    """What runs once is started by a timer, and each timer has something to start."""
    once = {unit.stem for unit in UNITS if "Type=oneshot" in unit.read_text("utf-8")}
    assert once == {unit.stem for unit in UNITS if unit.suffix == ".timer"}


def test_service_begins_with_the_doctor() -> None:
    """Neither the unit nor the containers serve on a schema that the doctor did not pass."""
    unit = (DEPLOY / "systemd" / "ledger.service").read_text("utf-8")
    assert unit.index("ExecStartPre=/opt/ledger/bin/ledger doctor") < unit.index(
        "ExecStart=/opt/ledger/bin/ledger serve"
    )
    services = COMPOSE["services"]
    assert services["doctor"]["command"][0] == "doctor"
    for name in ("service", "stamper", "sealer", "consumer"):
        assert services[name]["depends_on"]["doctor"] == {"condition": "service_completed_successfully"}


def test_compose_file_hangs_together() -> None:
    """Services, secrets, volumes and files that the compose file names are there, and no password is in it."""
    services = COMPOSE["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./postgresql/"):
                assert (DEPLOY / source).is_file(), source
            elif not source.startswith("./"):
                assert source in COMPOSE["volumes"], source
    assert (DEPLOY / services["migrate"]["build"]["context"] / services["migrate"]["build"]["dockerfile"]).is_file()
    said = [(key, str(value)) for each in services.values() for key, value in each.get("environment", {}).items()]
    secret = [value for key, value in said if key.endswith("PASSWORD")]
    secret += [re.split("[:@]", value)[2] + "}" for key, value in said if key == "LEDGER_DATABASE_URL"]
    assert len(secret) > 5
    assert [value for value in secret if not value.startswith("${")] == []


def test_image_has_what_it_copies_and_installs() -> None:
    """The Containerfile copies files that are there and installs extras that the package has."""
    for line in re.findall(r"^COPY (?!--from)(.*)$", CONTAINERFILE, re.MULTILINE):
        *sources, _ = line.split()
        assert [source for source in sources if not (ROOT / source).exists()] == []
    named = set(chain.from_iterable(found.split(",") for found in re.findall(r"\[([a-z,]+)\]'", CONTAINERFILE)))
    assert named - set(EXTRAS) <= ({"service"} if TO_COME else set())


def test_page_names_what_is_there() -> None:
    """Files that the page names are there."""
    named = set(re.findall(r"`((?:tests|deploy)/[\w./]+)`|\]\(\.\./([\w./]+)", PAGE))
    paths = [ROOT / (one or other) for one, other in named]
    assert len(paths) >= 5
    assert [path for path in paths if not path.exists()] == []
