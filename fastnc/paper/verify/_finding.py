"""A claim of the paper, what was measured, and whether it holds; tables of them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastnc._core.files import atomic_write, check_name
from fastnc._core.results import check_results

_SOURCE = "`fastnc.verify.check`"


@dataclass(frozen=True)
class Finding:
    """One claim, checked. It holds where the error is at most the tolerance."""

    claim: str  # "Lemma 3.1", "(9)", ...
    says: str  # what is checked, in one line
    measured: str  # the number or numbers that decide
    error: float
    tolerance: float
    why: str  # where the tolerance comes from
    printed: str = ""  # of a misprint: what the paper prints, and how it fails

    @property
    def holds(self) -> bool:
        """Whether the claim, as it must read, was found to hold."""
        return bool(self.error <= self.tolerance)

    @property
    def verdict(self) -> str:
        """ "holds", "misprint" (it holds as corrected) or "FAILS"."""
        return "FAILS" if not self.holds else "misprint" if self.printed else "holds"

    def as_dict(self) -> dict[str, Any]:
        """Every field, and the verdict."""
        return {
            "claim": self.claim, "says": self.says, "measured": self.measured,
            "error": float(self.error), "tolerance": self.tolerance, "why": self.why,
            "holds": self.holds, "verdict": self.verdict, "printed": self.printed,
        }  # fmt: skip


def all_hold(findings: Sequence[Finding]) -> bool:
    """Whether there are findings, and all of them hold."""
    found = check_results("findings", findings, Finding, _SOURCE, least=0)
    return bool(found) and all(finding.holds for finding in found)


def table(findings: Sequence[Finding]) -> str:
    """The findings as text, one a line, and the misprints below."""
    findings = check_results("findings", findings, Finding, _SOURCE)
    widths = [max(len(f.claim) for f in findings), max(len(f.says) for f in findings)]
    measured = max(len(f.measured) for f in findings)
    head = (
        f"{'claim':<{widths[0]}}  {'what was checked':<{widths[1]}}  "
        f"{'measured':<{measured}}  {'off by':>8}  {'allowed':>8}  verdict"
    )
    lines = [head, "-" * len(head)]
    lines += [
        f"{f.claim:<{widths[0]}}  {f.says:<{widths[1]}}  {f.measured:<{measured}}  "
        f"{f.error:8.1e}  {f.tolerance:8.1e}  {f.verdict}"
        for f in findings
    ]
    misprints = [f for f in findings if f.printed]
    if misprints:
        lines += ["", "Misprints of the paper; the table shows what is right:"]
        lines += [f"  {f.claim:<{widths[0]}}  {f.printed}" for f in misprints]
    return "\n".join(lines)


def write_csv(findings: Sequence[Finding], path: str | os.PathLike[str]) -> Path:
    """One row a finding, atomically."""
    findings = check_results("findings", findings, Finding, _SOURCE)
    check_name(path, ".csv")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(findings[0].as_dict()))
    writer.writeheader()
    writer.writerows(finding.as_dict() for finding in findings)
    return atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def write_json(findings: Sequence[Finding], path: str | os.PathLike[str]) -> Path:
    """A list of objects, atomically."""
    findings = check_results("findings", findings, Finding, _SOURCE)
    check_name(path, ".json")
    text = json.dumps([finding.as_dict() for finding in findings], indent=1)
    return atomic_write(path, lambda file: file.write(text.encode() + b"\n"))
