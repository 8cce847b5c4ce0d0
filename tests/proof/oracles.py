"""
Programs of other people that add up what we export: hledger and beancount, each in a process of its own.

They are never imported: their licence is the GPL.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import pytest

Balances: TypeAlias = dict[str, Decimal]

_SECONDS: Final = 1_800
_WITH_DIGITS: Final = "import sys, decimal; decimal.getcontext().prec = 99; from {} import main; sys.exit(main())"


class Oracle(NamedTuple):
    """A program: its format, what it says is wrong with a file (nothing, where it adds up), and its balances."""

    format: str
    problem: Callable[[Path], str]
    balances: Callable[[Path], Balances]


AMOUNT: Final = {"hledger": r"^    \S+  -?[\d.]*?(\d) \"", "beancount": r"^  \S+:\S+  -?[\d.]*?(\d) [A-Z]"}
"""Where the last digit of an entry is, in each format."""

ASSERTED: Final = {"hledger": r"= -?[\d.]*?(\d) \"", "beancount": r" balance \S+  -?[\d.]*?(\d) ~"}
"""… and of an assertion."""


def planted(text: str, pattern: str, place: float) -> str:
    """The text with one unit changed: in the last digit that `pattern` finds at this place, from 0 to 1."""
    found = [*re.finditer(pattern, text, re.MULTILINE)]
    match = found[int(place * (len(found) - 1))]
    start, end = match.span(1)
    return text[:start] + str((int(match[1]) + 1) % 10) + text[end:]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    # Whatever the locale is: what we write for hledger is ASCII.
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, timeout=_SECONDS)
    # Not as `text`, which would make one kind of newline of all.
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def hledger() -> str:
    """The program, or why the test is left out."""
    found = shutil.which("hledger")
    if found is None:
        pytest.skip("hledger is not installed (Debian's package hledger): no other program adds up this export")
    return found


def _refused_by_hledger(file: Path) -> str:
    done = run(hledger(), "-f", file, "check", "-s")
    assert done.returncode == 0 or done.stderr, "it fails and does not say why"
    return done.stderr


def _balances_of_hledger(file: Path) -> Balances:
    form = ("--flat", "--empty", "--no-total", "--layout", "bare", "-O", "csv")
    done = run(hledger(), "-f", file, "balance", *form)
    assert done.returncode == 0, done.stderr
    return _read(done.stdout, "account", "balance")


def tags_of_hledger(file: Path) -> list[dict[str, Any]]:
    """What hledger has read as the tags of each transaction."""
    done = run(hledger(), "-f", file, "print", "-O", "json")
    assert done.returncode == 0, done.stderr
    return [dict(each["ttags"]) for each in json.loads(done.stdout)]


def beancount(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of beancount's programs, as the head of our file says: with digits enough."""
    return run(sys.executable, "-c", _WITH_DIGITS.format(program), *arguments)


def _refused_by_beancount(file: Path) -> str:
    done = beancount("beancount.scripts.check", "--no-cache", file)
    assert (done.returncode == 0) == (done.stderr == ""), done.stdout
    return done.stderr


def query(file: Path, question: str) -> str:
    """What beancount's query language answers, as CSV."""
    done = beancount("beanquery.shell", "-f", "csv", file, question)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _balances_of_beancount(file: Path) -> Balances:
    return _read(query(file, "SELECT account, sum(number) AS balance GROUP BY account"), "account", "balance")


def _read(text: str, *columns: str) -> Balances:
    found: Balances = {}
    for row in csv.DictReader(io.StringIO(text)):
        name, balance = (row[column].strip() for column in columns)
        assert name not in found, f"{name} has two assets"
        found[name] = Decimal(balance)
    return found


HLEDGER: Final = Oracle("hledger", _refused_by_hledger, _balances_of_hledger)
BEANCOUNT: Final = Oracle("beancount", _refused_by_beancount, _balances_of_beancount)
ORACLES: Final = (HLEDGER, BEANCOUNT)
