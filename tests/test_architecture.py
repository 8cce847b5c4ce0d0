"""The shape of the code: imports flow one way, the core is pure, and names are public on purpose."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

import ledger
from ledger.core import errors

FLOW: Final = """
    core.errors core.iso4217 core.money         | what may go wrong, and what is counted
    core.canonical core.lifecycle               | one text for each value; what may follow what
    core.fields core.commands                   | what may be asked             → validated
    core.events core.book core.turnover         | what it makes happen          → decided
    core.decide
    core.codec core.chain core.merkle           | what is hashed, and proved
    order.message order.decoders order.monitor  | what arrives, and in which order
    order.cursor order.sequencer order.disturb
    order.published order.remote                | what happened, told to others
    storage.tables storage.explained storage.database   | where it is kept
    storage.trail storage.embedded storage.partitions storage.migrations storage.catalogue storage.parts
    storage.store                               | what is kept                  → appended
    storage.projector storage.repair storage.rebuild    | what it adds up to    → projected
    storage.leases storage.feed storage.subscriptions    | the order of everything
    storage.tree                                | … and what is proved of it
    storage.dead_letters storage.mailbox storage.offsets
    storage.subject_keys                        | what personal data is encrypted with
    storage.api_keys                            | who may do what
    storage.reconciliations                     | what banks said, and what was decided of it
    storage.queries storage.asof storage.statement storage.inbox_queries   | what is answered → queried
    storage.overview
    storage.gauges                              | how it stands
    stripes batch counters writer               | the only write path
    batcher                                     | many callers, one transaction
    personal                                    | what can be forgotten in a log that never changes
    access                                      | who may do what
    health                                      | how it fares
    audit.checkpoint                            | what was signed
    audit.jobs audit.texts audit.report audit.lawful audit.stamped audit.kept audit.verify | re-derive, never trust
    audit.diagnosis audit.remedies audit.rights audit.surroundings audit.doctor | is it set up as it must be
    audit.tiles audit.inclusion audit.anchors   | … and prove it to others
    audit.sealed audit.archive audit.replay
    audit.names audit.journal audit.hledger audit.beancount audit.rows audit.parquet audit.export | to other programs
    audit.bundle
    audit.reports.form audit.reports.accounts audit.reports.journal audit.reports.sums | what an auditor asks for
    audit.reports.oversight audit.reports.catalogue
    audit.bank_statement audit.camt053 audit.csv_statement       | what others say of an account
    audit.matching audit.reconciled             | … and which of it is the same
    receiving inbox intake                      | messages, once and in order
    stamper subscription                        | the feed: one writer, many readers
    sealer                                      | … and what is signed of it
    lifecycle operations proof auditing desk reconciliation overview application      | the one public object
    asynchronous                                | … awaited
    ledger                                      | the public names
    simulation                                  | the incident, at any scale
    testing settings wire                       | what surrounds it
    connect.problems connect.partitions         | what brings messages
    connect.kafka_settings connect.kafka_clients connect.kafka_partition connect.kafka_consumer
    connect.kafka_publisher connect.kafka_feed connect.kafka_doctor connect.kafka_naive connect.kafka_simulation
    connect.rabbitmq_consumer
    connect kafka rabbitmq
    service.occasion service.logs service.problem_details service.metrics   | the API
    service.tokens service.gate service.group_commit service.tracing service.desk service.deadlines
    service.scoped service.bodies service.probe service.shortcut service.bounds service.shapes
    service.command_routes service.question_routes service.bulk_routes service.feed_routes service.message_routes
    service.upkeep_routes service.report_routes service.export_routes service.health_routes service.document_routes
    service.pages.charts service.pages.rendering service.pages.visiting service.pages.watching   | the audit page
    service.pages.site service.pages.entrance service.pages.overview_pages service.pages.account_pages
    service.pages.transaction_pages service.pages.order_pages service.page_routes
    service.observed service.app service.connections service.server
    client                                      | … and whoever speaks with it
    cli.output cli.options cli.lines            | the command line
    cli.asking cli.stating cli.writing cli.holding
    cli.ruling cli.lifecycles cli.ordering cli.letters cli.consuming cli.feeding
    cli.examining cli.proving cli.sealing cli.bundling cli.exporting cli.reporting cli.forgetting cli.reconciling
    cli.serving cli.upkeep
    cli.incident cli.demo cli.picture cli.simulate cli.bench cli.program
    cli __main__
"""
"""
Every module with code, in order: each imports only what stands before it.  `ledger` is the package's own `__init__`.

It reads as the flow: what may be asked, what is decided, what is kept, what is answered.
"""

PURE: Final = {
    "__future__",
    "collections.abc",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "functools",
    "hashlib",
    "itertools",
    "json",
    "re",
    "typing",
    "uuid",
    "pydantic",
    "pydantic_core",
}
"""All that the core may import from elsewhere: nothing that knows the time, draws lots, or reaches outside."""

IMPURE: Final = {
    "open",
    "print",
    "input",
    "exec",
    "eval",
    "__import__",
    "breakpoint",
    "now",
    "utcnow",
    "today",
    "fromtimestamp",
}
"""What the core may not call, as a function or as a method."""

READS_ENVIRONMENT: Final[dict[str, str]] = {
    "connect.kafka_simulation": "it hands its own on to the programs that it starts",
    "settings": "that is what it is for",
    "testing": "the server for tests is named by LEDGER_TEST_DATABASE_URL",
}

LINES_MAX: Final = 600
LONG: Final[dict[str, str]] = {
    "core.errors": "one tree, each error beside its siblings",
    "storage.tables": "the one definition of all tables",
}
"""Modules that may be longer, and why."""

VAGUE: Final = {
    "base",
    "common",
    "data",
    "helper",
    "helpers",
    "info",
    "manager",
    "messagebus",
    "misc",
    "repository",
    "unit_of_work",
    "util",
    "utils",
}
"""Names of modules that say nothing, or belong to a design that is not ours."""

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = ROOT / "ledger"
PLACES: Final = [name for line in FLOW.splitlines() for name in line.partition("|")[0].split()]
OURS: Final = sorted(PACKAGE.rglob("*.py"))
ALL: Final = sorted(
    path for folder in ("ledger", "tests", "alembic", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)


def named(path: Path) -> str:
    """A file's name in the repository."""
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    """The dotted name of one of our modules without the leading `ledger.`; the package itself is `ledger`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "ledger"


MODULES: Final = {module(path): path for path in OURS}


@cache
def tree(path: Path) -> ast.Module:
    """The syntax of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), named(path))


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it; ours without the leading `ledger.`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("ledger.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno} imports relatively; say from where"
            origin = f"{node.module}".removeprefix("ledger.")
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix("ledger.")
                yield inner if inner in MODULES else origin


def calls(path: Path) -> Iterator[str]:
    """The names of the functions and methods that a file calls."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr


def is_hull(name: str) -> bool:
    """Whether a module only makes a folder a package."""
    return MODULES[name].name == "__init__.py" and name not in PLACES


def test_flow_is_complete() -> None:
    """Every module has one place, and every place its module."""
    assert [name for name in MODULES if name not in PLACES and not is_hull(name)] == []
    assert [name for name in PLACES if name not in MODULES] == []
    assert len(PLACES) == len(set(PLACES))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_flow_one_way(name: str) -> None:
    """A module imports only what stands before it; a folder's `__init__` without a place imports nothing."""
    ours = [other for other in imported(MODULES[name]) if other in MODULES and other != name]

    before = [] if is_hull(name) else PLACES[: PLACES.index(name)]
    assert [other for other in ours if other not in before] == []


@pytest.mark.parametrize("name", sorted(name for name in MODULES if is_hull(name)))
def test_packages_are_only_named(name: str) -> None:
    """A folder's `__init__` says what the folder is for, and does nothing."""
    assert [type(statement) for statement in tree(MODULES[name]).body] == [ast.Expr]


def test_layers_hold_together() -> None:
    """The modules of a folder stand together in the flow."""
    layers = [name.partition(".")[0] for name in PLACES]
    seen = [layer for layer, following in pairwise([*layers, ""]) if layer != following]

    assert len(seen) == len(set(seen))


def test_readme_shows_the_flow() -> None:
    """The map in the README has the modules in this order."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    drawing = readme[readme.index("### The map") : readme.index("### The record hash")]
    shown = [
        name.replace("/", ".").rpartition(".")[2] or name
        for name in re.findall(r"^ {2,6}([\w/]+)", drawing, re.MULTILINE)
    ]
    lines = [name.rpartition(".")[2] for name in PLACES]

    drawn = [name for name in shown if name in lines]
    assert len(drawn) > 20
    assert drawn == [name for name in lines if name in drawn]


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("core")))
def test_core_is_pure(name: str) -> None:
    """The core imports nothing that knows the time, draws lots or reaches outside, and asks for nothing."""
    path = MODULES[name]

    assert {other for other in imported(path) if not other.startswith("core.")} <= PURE
    assert IMPURE.isdisjoint(calls(path))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "astimezone":
            assert node.args, f"{named(path)}:{node.lineno} asks the environment for its time zone"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_environment_is_read_in_one_place(name: str) -> None:
    """What the environment says arrives as settings."""
    names = {node.attr for node in ast.walk(tree(MODULES[name])) if isinstance(node, ast.Attribute)}
    names |= {
        alias.name for node in ast.walk(tree(MODULES[name])) if isinstance(node, ast.ImportFrom) for alias in node.names
    }

    assert names.isdisjoint({"environ", "getenv"}) or name in READS_ENVIRONMENT


def test_model_of_the_random_tests_knows_nothing_of_ours() -> None:
    """What the real ledger is compared with would agree with its mistakes if it were made of it."""
    (model,) = [path for path in ALL if named(path) == "tests/postgres/model.py"]
    assert {name.partition(".")[0] for name in imported(model)} <= sys.stdlib_module_names


def test_public_names_are_listed() -> None:
    """`ledger.__all__` is exactly what the package imports, sorted, and every name is there."""
    imports = [node for node in tree(MODULES["ledger"]).body if isinstance(node, ast.ImportFrom)]
    names = [alias.asname or alias.name for node in imports for alias in node.names if node.module != "__future__"]

    assert sorted(names) == ledger.__all__
    assert [name for name in ledger.__all__ if not hasattr(ledger, name)] == []


def test_every_error_is_public() -> None:
    """Callers can name every error that the ledger raises, and all are in one module."""
    classes = [node.name for node in tree(MODULES["core.errors"]).body if isinstance(node, ast.ClassDef)]
    for name in PLACES:
        if not name.startswith(("cli", "testing", "__main__")):
            importlib.import_module("ledger" if name == "ledger" else f"ledger.{name}")

    assert [name for name in classes if not hasattr(ledger, name)] == []
    assert {error.__module__ for error in family(errors.LedgerError)} == {"ledger.core.errors"}


def family(error: type[Exception]) -> Iterator[type[Exception]]:
    """An error and all that derive from it."""
    yield error
    for derived in error.__subclasses__():
        yield from family(derived)


def test_every_reason_has_its_error() -> None:
    """A reason belongs to one error, and says its code."""
    reasons = {error.reason: error.code for error in errors.Rejected.__subclasses__()}

    assert list(reasons) == list(errors.Reason)
    assert {reason.value: code for reason, code in reasons.items()} == {code: code for code in reasons.values()}


def test_error_tree_is_drawn() -> None:
    """The drawing at the top of `errors` names every error."""
    drawn = set(re.findall(r"[A-Z]\w+", errors.__doc__ or ""))

    assert [error.__name__ for error in family(errors.LedgerError) if error.__name__ not in drawn] == []


@pytest.mark.parametrize("path", ALL, ids=named)
def test_modules_say_what_they_are_for(path: Path) -> None:
    """Every module begins with a docstring, and has a name that says something."""
    assert ast.get_docstring(tree(path))
    assert path.stem not in VAGUE
    assert path.parent.name not in VAGUE


def test_other_peoples_programs_stay_programs() -> None:
    """What is under the GPL is run in tests, and imported nowhere."""
    foreign = {"beancount", "beanquery", "hledger", "pymerkle"}
    found = [(named(path), name) for path in ALL for name in imported(path) if name.split(".")[0] in foreign]

    assert found == []


def test_modules_are_short() -> None:
    """What ships is read module by module; a longer one has a reason, and none is excused without need."""
    too_long = [name for name, path in MODULES.items() if len(path.read_text("utf-8").splitlines()) > LINES_MAX]

    assert too_long == list(LONG)


@pytest.mark.parametrize("path", [path for path in ALL if named(path).startswith("tests/")], ids=named)
def test_tests_do_not_sleep(path: Path) -> None:
    """A test waits for something that happens, not for time to pass."""
    assert "sleep" not in set(calls(path))


@pytest.mark.parametrize("path", [path for path in ALL if path.name.startswith("test_")], ids=named)
def test_tests_say_what_they_show(path: Path) -> None:
    """Every test states the behaviour that it holds."""
    tests = [
        node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]

    assert [node.name for node in tests if not ast.get_docstring(node)] == []
