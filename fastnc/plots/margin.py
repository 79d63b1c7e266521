"""The five terms missing to collapse (Lemma 3.1), stacked along a run."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastnc.dynamics.trajectory import Trajectory
from fastnc.plots._style import check_run, log_log_time, settings
from fastnc.plots.collapse import time_label
from fastnc.theory.margin import TERMS

LABELS = {
    "classifier_mean": r"mean classifier, $K\,|\bar w|^2$",
    "feature_mean": r"mean feature, $N\,|g|^2$",
    "within_class_energy": r"within classes, $\sum_i |h_i - m_{y_i}|^2$",
    "misalignment": r"$|W_c - \sqrt{n} M_c|^2$",
    "uneven_margins": r"uneven margins, $2(K-1)\sqrt{n}\,(\bar q - q_{\min})$",
}
# Of unequal classes: A is the polar factor of E diag(sqrt n_k), E = I - 11^T/K.
UNEQUAL = LABELS | {
    "feature_mean": r"mean feature, $|\sum_k m_k|^2\,/\,\sum_k n_k^{-1}$",
    "misalignment": r"$|W_c - A\,\mathrm{diag}(\sqrt{n_k})\,M|^2$",
    "uneven_margins": r"uneven margins, $2\,|E\,\mathrm{diag}\sqrt{n_k}|_*\,(\bar q - q_{\min})$",
}
COLOURS = ("#4c4c4c", "#9b9b9b", "#1f77b4", "#d62728", "#f2b134")


def missing_margin(run: Trajectory, title: str | None = None) -> Figure:
    """The shares of `1 - margin_ratio` along a flow, stacked, over log log t, from t = 10 on.

    Left: the shares themselves, whose sum is `1 - margin_ratio`. Right: relative to that sum, which
    shows the terms that remain at the end.
    """
    check_run(run, least=1)
    figure = Figure(figsize=(11.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    stack_missing(left, run, relative=False)
    stack_missing(right, run, relative=True)
    left.set_title("what is missing to collapse", fontsize=11)
    right.set_title("its parts", fontsize=11)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    figure.suptitle(settings(run) if title is None else title, fontsize=11)
    return figure


def stack_missing(axes: Axes, run: Trajectory, relative: bool) -> None:
    """Stack the terms over `|W|^2 + |H|^2`, or over their sum, onto `axes`.

    Raises
    ------
    ValueError
        The run lacks the terms (a flow has them), or ends before t = 10.
    """
    if not set(TERMS) <= set(run.columns):
        raise ValueError(
            "the run must have the columns of `margin_decomposition`, as those of `fastnc.flow` "
            f"do; got {', '.join(run.columns[:4])}, ..."
        )
    shown = run.log10_time >= 1.0
    if shown.sum() < 2:
        raise ValueError(
            "a figure on the log log t axis needs snapshots at times of at least 10; the run ends "
            f"at 10^{run.log10_time[-1]:.3g}. Run for longer."
        )
    terms = np.stack([np.maximum(run[name][shown], 0.0) for name in TERMS])
    whole = terms.sum(axis=0) if relative else (run["norm_W"] ** 2 + run["norm_H"] ** 2)[shown]
    times = run.log10_time[shown]
    sizes = np.bincount(run.y, minlength=len(run.W))
    names = LABELS if len(set(sizes)) == 1 else UNEQUAL
    axes.stackplot(times, terms / whole, colors=COLOURS, labels=[names[name] for name in TERMS])
    log_log_time(axes, 1.0, float(times[-1]))
    axes.set_ylim(0.0, 1.0 if relative else None)
    axes.set_ylabel("share of what is missing" if relative else r"share of $|W|^2 + |H|^2$")
    axes.set_xlabel(time_label(run))
