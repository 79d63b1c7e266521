"""The findings of `fastnc verify` as bars: the error of each, and its tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fastnc._core.results import check_results
from fastnc.paper.verify import Finding
from fastnc.plots._style import CLASSIFIER, FEATURES, NEUTRAL, grid

_FLOOR = 1e-17
_CEILING = 1e2


def findings_chart(findings: Sequence[Finding]) -> Figure:
    """One bar a finding from 1e-17 to its error, and a tick at its tolerance; x is logarithmic."""
    findings = check_results("findings", findings, Finding, "`fastnc.verify.check`")
    figure = Figure(figsize=(9.0, 0.32 * len(findings) + 1.2), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(findings))
    errors = [min(max(f.error, _FLOOR * 2), _CEILING) if math.isfinite(f.error) else _CEILING
              for f in findings]  # fmt: skip
    colours = [FEATURES if f.holds else CLASSIFIER for f in findings]
    axes.barh(rows, np.array(errors) - _FLOOR, left=_FLOOR, color=colours, height=0.62)
    for row, finding in zip(rows, findings, strict=True):
        x = max(finding.tolerance, _FLOOR * 2)
        axes.plot([x, x], [row - 0.4, row + 0.4], color=NEUTRAL, lw=2.0)
    axes.set_xscale("log")
    axes.set_xlim(_FLOOR, _CEILING)
    axes.set_yticks(rows, [f"{f.claim} ({f.verdict})" for f in findings], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("error (bar) and what is allowed (tick)")
    grid(axes, axis="x")
    handles = [
        Patch(color=FEATURES, label="holds"),
        Patch(color=CLASSIFIER, label="fails"),
        Line2D([], [], color=NEUTRAL, lw=2.0, label="tolerance"),
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    return figure
