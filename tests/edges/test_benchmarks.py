"""The benchmarks run, report every figure and draw it; how fast is not for a test to say."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from benchmarks.command import main
from benchmarks.noise import Noise
from benchmarks.report import results
from benchmarks.rounds import Benchmark, Measured, Ratio, Run

ROOT = Path(__file__).parent.parent.parent
PNG = b"\x89PNG\r\n\x1a\n"
QUIET = Noise(1.0, 0.0, 0.0)
EXPECTED: dict[str, tuple[int, list[float], set[str]]] = {
    "calls": (24, [0.7, 2.0, 8.0], {"spread", "hot", "ratios"}),
    "batches": (8, [0.5], {"sizes", "ratios"}),
    "growth": (8, [0.9], {"sizes", "ratios"}),
    "asof": (11, [], {"ratios"}),
    "logs": (8, [0.4, 0.8], {"ratios"}),
    "feed": (10, [], {"ratios"}),
    "peer": (14, [2.0, 3.0, 10.0, 50.0, 50.0], {"ratios"}),
    "reports": (9, [0.5], {"ratios"}),
    "messages": (4, [0.35, 0.6], {"ratios"}),
    "service": (4, [1.0, 2.0], {"requests", "ratios"}),
}
"""How many figures, which targets, which pictures."""


@pytest.fixture
def terminable() -> Iterator[None]:
    """How this process ends is as before, afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(name: str, rate: float, number: int = 1) -> Run:
    """One figure of a quiet machine."""
    return Run(number, name, Measured(rate), QUIET)


@pytest.mark.campaign
def test_every_benchmark_reports_and_draws_every_figure(tmp_path: Path) -> None:
    """One short round of all measures everybody, with memory, relates them to each other, and draws charts as PNG."""
    command = [sys.executable, "-m", "ledger", "bench", "--quick", "--output", str(tmp_path), "--json"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)

    assert done.returncode == 0, done.stderr
    everything = json.loads(done.stdout)
    assert everything.keys() == EXPECTED.keys()
    for name, (figures, targets, pictures) in EXPECTED.items():
        found = everything[name]
        assert found == json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert len(found["figures"]) == figures
        assert all(figure["per_second"]["median"] > 0 for figure in found["figures"].values())
        # pgbench may have ended before it was looked at.
        ours = [figure for turn, figure in found["figures"].items() if not turn.startswith("pgbench")]
        assert all(figure["megabytes"]["max"] > 10 for figure in ours)
        assert sorted(ratio["target"] for ratio in found["ratios"] if ratio["target"]) == targets
        assert all({ratio["of"], *ratio["against"]} <= found["figures"].keys() for ratio in found["ratios"])
        assert found["conditions"]["fsync"] == "on"
        drawn = {path.stem.removeprefix(f"{name}-"): path.read_bytes() for path in tmp_path.glob(f"{name}-*.png")}
        assert drawn.keys() == pictures
        assert all(picture.startswith(PNG) for picture in drawn.values())


@pytest.mark.campaign
def test_quick_comparison_with_a_topic_reports_every_figure(tmp_path: Path) -> None:
    """A topic, on brokers that are not real, is read once, taken in once, and compared with a file."""
    command = [sys.executable, "-m", "benchmarks", "kafka", "--quick", "--output", str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "kafka.json").read_text(encoding="utf-8"))
    assert len(found["figures"]) == 3
    assert [ratio["target"] for ratio in found["ratios"] if ratio["target"]] == [0.7]


@pytest.mark.campaign
def test_quick_look_at_memory_samples_it(tmp_path: Path) -> None:
    """A consumer in a process of its own tells its memory while messages pass through it."""
    command = [sys.executable, "-m", "benchmarks", "messages", "--quick", "--memory", "--output", str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert found["messages"] >= 2_000
    assert len(found["samples"]) >= 2
    assert found["megabytes_peak"] >= found["samples"][0]["megabytes"] > 0


def test_no_ratio_without_its_peer() -> None:
    """Nobody can be compared with somebody who takes no turn, or who was not measured."""
    turns = {"ours": lambda _: Measured(2.0), "theirs": lambda _: Measured(1.0)}
    with pytest.raises(ValueError, match="twice: yesterday's takes no turn"):
        Benchmark("things", turns, [Ratio("twice", "ours", ["yesterday's"])], [])
    with pytest.raises(ValueError, match="twice: the peer takes no turn"):
        Benchmark("things", turns, [Ratio("twice", "ours", [])], [])
    benchmark = Benchmark("things", turns, [Ratio("twice", "ours", ["theirs"])], [])

    with pytest.raises(KeyError, match="theirs"):
        results([run("ours", 2.0)], benchmark)
    with pytest.raises(ValueError, match="shorter"):
        results([run("ours", 2.0), run("theirs", 1.0), run("ours", 2.0, 2)], benchmark)


def test_ratio_is_taken_within_a_round() -> None:
    """What counts is the median of each round's ratio, against the best of those it names in that round."""
    turns = {name: lambda _: Measured(1.0) for name in ("ours", "one", "other")}
    benchmark = Benchmark("things", turns, [Ratio("ours / best", "ours", ["one", "other"], 2.5)], [])
    runs = [
        *(run("ours", 6.0, 1), run("one", 1.0, 1), run("other", 2.0, 1)),
        *(run("ours", 6.0, 2), run("one", 6.0, 2), run("other", 2.0, 2)),
        *(run("ours", 4.0, 3), run("one", 1.0, 3), run("other", 2.0, 3)),
    ]

    (ratio,) = results(runs, benchmark)["ratios"]

    assert (ratio["median"], ratio["min"], ratio["max"], ratio["met"]) == (2.0, 1.0, 3.0, False)


def test_bench_works_in_databases_of_its_own(tmp_path: Path, ledger_url: str) -> None:
    """On a server that is named it makes databases and drops them; what is in the environment is left alone."""
    server = make_url(ledger_url).set(database="postgres").render_as_string(hide_password=False)
    environment = os.environ | {"LEDGER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    command = [sys.executable, "-m", "ledger", "bench", "messages", "--quick"]
    command += ["--database-url", server, "--output", str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    with psycopg.connect(server) as connection:
        left = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'ledger_bench%'").fetchall()
    assert left == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nonsense"], "benchmarks: there is no benchmark 'nonsense'"),
        (["calls", "--memory"], "--memory: it goes with messages alone"),
        (["calls", "--rounds", "0"], "--rounds: 0 is not above 0"),
        (["logs", "--events", "-1"], "--events: -1 is not above 0"),
        (["calls", "--database-url", "notaurl"], "database URL: "),
        (["calls", "--database-url", "mysql://x/y"], "database URL: mysql is not PostgreSQL"),
        (["calls", "--database-url", "postgresql://nobody@127.0.0.1:1/x"], "Cannot reach PostgreSQL"),
    ],
)
@pytest.mark.usefixtures("terminable")
def test_what_there_is_not_is_refused(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark, a combination or a server that does not exist is refused, before anything is measured."""
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith(f"ledger: {problem}")

    assert main([*arguments, "--json"]) == 2
    answered = capsys.readouterr()
    assert answered.err == ""
    assert json.loads(answered.out)["error"]["message"].startswith(problem)


def test_results_that_cannot_be_kept_are_not_measured(tmp_path: Path, ledger_url: str) -> None:
    """Where results are to go is looked at first; `ledger bench` hands over all that the benchmarks take."""
    (tmp_path / "file").write_text("kept")
    command = [sys.executable, "-m", "ledger", "bench", "messages", "--quick", "--memory", "--messages", "10", "--json"]
    command += ["--events", "10", "--bootstrap", "127.0.0.1:1", "--database-url", ledger_url]

    done = subprocess.run(
        [*command, "--output", str(tmp_path / "file")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout)["error"]["message"].startswith("--output: ")


def test_bench_outside_of_a_checkout_says_where_to_get_it(tmp_path: Path) -> None:
    """The package alone has no benchmarks, and says so in one line."""
    shutil.copytree(ROOT / "ledger", tmp_path / "ledger")
    command = [sys.executable, "-m", "ledger", "bench", "calls"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ledger: benchmarks: they come with the source")
    assert done.stderr.count("\n") == 1
