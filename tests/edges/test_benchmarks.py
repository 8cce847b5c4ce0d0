"""The benchmarks run and report every figure; how fast is not for a test to say."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_quick_comparison_reports_every_figure(tmp_path: Path) -> None:
    """One short round measures everybody and relates them to each other."""
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    rates = results["transfers_per_second"]
    assert len(rates) == 11
    assert all(rate["median"] > 0 for rate in rates.values())
    assert sorted(ratio["target"] for ratio in results["ratios"] if ratio["target"]) == [0.6, 2.0, 2.0, 3.0]
    assert results["conditions"]["fsync"] == "on"


def test_quick_comparison_of_messages_reports_every_figure(tmp_path: Path) -> None:
    """One short round takes in messages in every way, and relates the inbox to plain commands."""
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "messages", "--quick", "--output", str(output)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    rates = results["messages_per_second"]
    assert len(rates) == 4
    assert all(rate["median"] > 0 for rate in rates.values())
    assert [ratio["target"] for ratio in results["ratios"]] == [0.6, 0.35, None]


def test_quick_comparison_with_a_topic_reports_every_figure(tmp_path: Path) -> None:
    """One short round takes the same messages from a topic and from a file, and reads the topic alone."""
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "kafka", "--quick", "--output", str(output)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    rates = results["messages_per_second"]
    assert sorted(rates) == ["file to balances", "topic alone", "topic to balances"]
    assert all(rate["median"] > 0 for rate in rates.values())
    assert [ratio["target"] for ratio in results["ratios"]] == [0.7, None]


def test_quick_look_at_memory_samples_it(tmp_path: Path) -> None:
    """A consumer in a process of its own tells its memory while messages pass through it."""
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "messages", "--quick", "--memory", "--output", str(output)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    assert results["messages"] >= 2_000
    assert len(results["samples"]) >= 2
    assert results["megabytes_peak"] >= results["samples"][0]["megabytes"] > 0


def test_quick_look_at_a_long_log_reports_every_figure(tmp_path: Path) -> None:
    """One round of a short log rebuilds it and verifies it in every way, beside what reading it takes."""
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "logs", "--quick", "--output", str(output)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    assert len(results["events_per_second"]) == len(results["megabytes_peak"]) == 8
    assert all(rate["median"] > 0 for rate in results["events_per_second"].values())
    assert [ratio["target"] for ratio in results["ratios"] if ratio["target"]] == [0.8, 0.4]
