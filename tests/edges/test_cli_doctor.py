"""`ledger doctor` on the command line: what it says, its exit codes, and its neighbour for Kafka."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from test_cli import Program, environment, forking, program

__all__ = ["environment", "forking", "program"]

Psql = psycopg.Connection[Any]


@pytest.fixture
def psql(ledger_url: str) -> Iterator[Psql]:
    """A superuser with `psql`."""
    with psycopg.connect(ledger_url, autocommit=True, options="-c search_path=ledger") as connection:
        yield connection


@pytest.mark.usefixtures("ledger")
def test_sound_schema(program: Program) -> None:
    """Nothing found is exit code 0, whatever the warnings, and what was looked at is counted."""
    done = program("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("checked ")
    assert "triggers" in first
    assert last == "as it must be: nothing found"
    plain = json.loads(program("doctor", "--json").stdout)
    assert (plain["ok"], plain["findings"], plain["findings_total"]) == (True, [], 0)
    assert plain["warnings_total"] == len(plain["warnings"]) >= 1
    assert plain["checked"]["tables"] > 20


@pytest.mark.usefixtures("ledger")
def test_damage(program: Program, psql: Psql) -> None:
    """A finding is exit code 1: one line with the place, what it is and what to do, and the same as JSON."""
    psql.execute("ALTER TABLE feed DISABLE TRIGGER append_only")
    done = program("doctor")
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("finding ")]
    assert line.startswith("finding trigger append_only of feed: it is (never: ")
    assert line.endswith('then ALTER TABLE "ledger"."feed" ENABLE ALWAYS TRIGGER "append_only".')
    plain = json.loads(program("--json", "doctor").stdout)
    assert plain["ok"] is False
    assert [(each["kind"], each["place"]) for each in plain["findings"]] == [("trigger", "trigger append_only of feed")]
    assert set(plain["findings"][0]) == {"kind", "place", "problem", "advice"}


@pytest.mark.usefixtures("ledger")
def test_roles_and_grants(program: Program, psql: Psql) -> None:
    """Roles that must be there are missed, and one that is known may have what it was granted."""
    missing = program("doctor", "--role-prefix", "nobody")
    assert missing.returncode == 1
    assert "`ledger migrate --roles --role-prefix nobody`" in missing.stdout
    role = f"ledger_cli_{os.getpid()}"
    psql.execute(f"CREATE ROLE {role}".encode())
    try:
        psql.execute(f"GRANT SELECT ON events TO {role}".encode())
        assert program("doctor").returncode == 1
        assert program("doctor", "--known-role", role).returncode == 0
    finally:
        psql.execute(f"DROP OWNED BY {role}".encode())
        psql.execute(f"DROP ROLE {role}".encode())


def test_database_that_is_not_there(program: Program) -> None:
    """Where nobody could look nothing is sound: one line, exit code 2."""
    refused = program("doctor", "--database-url", "postgresql://127.0.0.1:1/nowhere")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1
    assert json.loads(program("doctor", "--json", "--database-url", "mysql://x").stdout)["error"]["code"]


@pytest.mark.usefixtures("ledger")
def test_schema_without_a_ledger(program: Program) -> None:
    """A schema that is not there is a finding that says what to do, and no error."""
    done = program("doctor", "--schema", "elsewhere")
    assert done.returncode == 1
    assert "there is no ledger in this schema. Run `ledger migrate`" in done.stdout


@pytest.mark.usefixtures("ledger")
def test_group_below(program: Program) -> None:
    """`doctor kafka` is a command of its own, and both say in their help which of them looks at what."""
    shown = program("doctor", "--help").stdout
    assert "kafka" in shown
    assert "--known-role" in shown
    assert program("doctor", "--role-prefix", "nobody", "kafka", "--help").returncode == 0
