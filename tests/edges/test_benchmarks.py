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
