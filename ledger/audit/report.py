"""What a verification says: what was checked, and what was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

FINDINGS_MAX: Final = 1_000
"""Findings kept in a report; more are counted."""


class Finding(NamedTuple):
    """Something that is not as it must be: where, and what."""

    kind: str
    stream: str
    version: int
    column: str
    problem: str

    def __str__(self) -> str:
        return f"{self.stream} version {self.version}, {self.column}: {self.problem}"


@dataclass(slots=True)
class Report:
    """What a verification checked and what it found; `findings` are in the order of the log."""

    checked: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("transactions", "streams", "events", "projections", "assets", "feed"), 0)
    )
    findings: list[Finding] = field(default_factory=list)
    findings_total: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return self.findings_total == 0

    def add(self, kind: str, stream: str, version: int, column: str, problem: str) -> None:
        """Note a finding."""
        self.findings_total += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(kind, stream, version, column, problem))

    def take(self, other: Report) -> None:
        """Let what another report counted and found follow."""
        for what, count in other.checked.items():
            self.checked[what] += count
        self.findings_total += other.findings_total
        self.findings += other.findings[: FINDINGS_MAX - len(self.findings)]
