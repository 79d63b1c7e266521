"""Minority collapse: the angle between minority classifiers against the imbalance ratio."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from fastnc._core.results import check_results
from fastnc.paper.minority_collapse import MinorityAngles
from fastnc.plots._style import CLASSIFIER, FEATURES, NEUTRAL, grid

_COLOURS = (CLASSIFIER, FEATURES, "#2ca02c", "#9467bd")


def minority_collapse(runs: Sequence[MinorityAngles]) -> Figure:
    """One curve a weight decay: the certified optimum (line), and the result of `solve` (dots).

    A dotted vertical line is the ratio from which on the angle is zero by theory.
    """
    runs = check_results("runs", runs, MinorityAngles, "`minority_angles`")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    sizes = {(run.n_classes, run.n_minority) for run in runs}
    for i, run in enumerate(runs):
        colour = _COLOURS[i % len(_COLOURS)]
        label = f"weight decay {run.weight_decay:g}"
        if len(sizes) > 1:
            label += f", K = {run.n_classes}, {run.n_minority} a minority"
        axes.plot(run.ratios, run.certified, color=colour, lw=1.8, label=label)
        axes.plot(run.ratios, run.found, "o", color=colour, ms=4)
        axes.axvline(run.threshold, color=colour, ls=":", lw=1.4)
    axes.plot([], [], color=NEUTRAL, lw=1.8, label="certified optimum")
    axes.plot([], [], "o", color=NEUTRAL, ms=4, label="found by solve")
    axes.plot([], [], color=NEUTRAL, ls=":", lw=1.4, label=r"$\sqrt{n_{min}} = N\lambda$")
    if len(sizes) == 1:
        ((K, n),) = sizes
        axes.set_title(f"K = {K} classes, {n} samples in a minority class", fontsize=11)
    axes.set_xscale("log")
    axes.set_xlabel("imbalance ratio: samples of a majority class over those of a minority class")
    axes.set_ylabel("angle between minority classifiers (degrees)")
    grid(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure
