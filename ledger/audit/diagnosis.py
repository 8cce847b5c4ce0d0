"""What the doctor says: what was looked at, what is not as it must be, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

SYMPTOMS_MAX: Final = 1_000
"""Findings, and warnings, kept in a diagnosis; more are counted."""


class Symptom(NamedTuple):
    """Something that is not as it must be: of which kind, where, what, and what to do."""

    kind: str
    place: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}. {self.advice}"


@dataclass(slots=True)
class Diagnosis:
    """
    What the doctor looked at, and what was found.

    A finding is something that lets the ledger's promises be broken, or was made by somebody else than the ledger.  A
    warning is an operator's own choice that has its price.
    """

    checked: dict[str, int] = field(default_factory=dict)
    findings: list[Symptom] = field(default_factory=list)
    findings_total: int = 0
    warnings: list[Symptom] = field(default_factory=list)
    warnings_total: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing was found; warnings do not count."""
        return self.findings_total == 0

    def count(self, what: str, number: int = 1) -> None:
        """Note that so many of these were looked at."""
        self.checked[what] = self.checked.get(what, 0) + number

    def find(self, kind: str, place: str, problem: str, advice: str) -> None:
        """Note a finding."""
        self.findings_total += 1
        if len(self.findings) < SYMPTOMS_MAX:
            self.findings.append(Symptom(kind, place, problem, advice))

    def warn(self, kind: str, place: str, problem: str, advice: str) -> None:
        """Note a warning."""
        self.warnings_total += 1
        if len(self.warnings) < SYMPTOMS_MAX:
            self.warnings.append(Symptom(kind, place, problem, advice))
