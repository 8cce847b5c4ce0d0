"""Prometheus' own tool: is a scrape well-formed, are the rules, and which alerts fire on what was scraped."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent.parent
RULES: Final = ROOT / "deploy" / "prometheus" / "ledger.rules.yml"
PROGRAM: Final = shutil.which("promtool")

needed = pytest.mark.skipif(PROGRAM is None, reason="promtool is not installed: Debian's package prometheus has it")

_TIMEOUT_SECONDS: Final = 60
_SAMPLE: Final = re.compile(r"^(ledger_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def promtool(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run it, in the folder of the rules."""
    assert PROGRAM is not None
    return subprocess.run(
        [PROGRAM, *arguments],
        input=given,
        capture_output=True,
        text=True,
        cwd=RULES.parent,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )


def samples(scrape: str) -> dict[str, float]:
    """Each series of ours in a scrape, as it is written there, and its value."""
    return {f"{name}{{{labels}}}": float(value) for name, labels, value in _SAMPLE.findall(scrape)}


def assert_fires(folder: Path, before: str, after: str, alerts: set[str]) -> None:
    """These alerts, and no others, fire half an hour after one scrape was followed by the other."""
    case = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": list(_series(samples(before), samples(after))),
                "promql_expr_test": [
                    {
                        "expr": 'max by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "20m",
                        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)],
                    }
                ],
            }
        ],
    }
    file = folder / "case.yml"
    # What is JSON is YAML.
    file.write_text(json.dumps(case), encoding="utf-8")
    came = promtool("test", "rules", str(file))
    assert came.returncode == 0, came.stdout + came.stderr


def _series(before: dict[str, float], after: dict[str, float]) -> Iterator[dict[str, str]]:
    """Ten minutes as it was, and then as it is; what is new was not there."""
    for name, value in after.items():
        labelled = name.replace("{", '{job="ledger",instance="here",').replace(",}", "}")
        first = f"{before[name]:g}x9" if name in before else "_x9"
        yield {"series": labelled, "values": f"{first} {value:g}x30"}
