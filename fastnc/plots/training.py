"""Figure 3 of the paper: neural collapse of a network in training, past zero training error."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import linregress

from fastnc.dynamics.trajectory import Trajectory
from fastnc.plots._style import (
    CLASSIFIER,
    FEATURES,
    FORMULAS,
    NEUTRAL,
    check_run,
    grid,
    legend,
    log_values,
    settings,
    spaced,
    without_rounding,
)
from fastnc.plots.collapse import PANELS, panel_label

# log log t exists beyond t = 1.
_FIRST = 2.0
# What the paper says of its Figure 3: (a) ends below 0.1, (b) is a line after 100 epochs.
_SMALL, _LINE_FROM = 0.1, 100.0


def figure3(run: Trajectory, title: str | None = None) -> Figure:
    """The paper's Figure 3 of a training: x is log log of the epoch, y is logarithmic.

    Panels (a) to (d) are those of `figure2`; (e) shows the errors of classification, the training
    error until it reaches zero, and (f) `nc1` and `1 - margin_ratio`. The paper's claims are drawn
    in: 0.1 in (a), and in (b) the straight line fitted to the measurements from epoch 100 on, with
    its slope and r^2. A dotted line marks the first measured epoch without a training error; epochs
    below 2 are left out. A run of the layer-peeled model has no accuracies, and (e) stays empty.

    Parameters
    ----------
    run : Trajectory
        Of `fastnc.training.train`, or any that has epochs.
    title : str, optional
        By default the run's settings.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        The run has no epochs, or ends before epoch 2.

    Examples
    --------
    >>> import fastnc
    >>> run = fastnc.descend(fastnc.ULPM(5, 10, 20), epochs=100)
    >>> len(fastnc.plots.figure3(run).axes)
    6
    """
    check_run(run)
    if run.time != "epoch":
        raise ValueError(
            f"`run` must have epochs; its time is {run.time!r}. Draw it with `figure2`."
        )
    epoch = np.asarray(run["epoch"], dtype=np.float64)
    shown = epoch >= _FIRST
    if not shown.any():
        last = f"ends at epoch {epoch[-1]:g}" if len(epoch) else "has no measurement"
        raise ValueError(
            f"`run` must reach epoch {_FIRST:g} for an axis of log log t; it {last}. Train longer."
        )
    figure = Figure(figsize=(13.0, 6.8), layout="constrained")
    panels = [*PANELS, ("(e) error of classification", ()), ("(f) left to collapse", ())]
    places = figure.subplots(2, 3).ravel()
    for axes, (heading, lines) in zip(places, panels, strict=True):
        for name, colour, label in lines:
            _line(axes, epoch[shown], without_rounding(run[name][shown], name), colour, label)
        axes.set_title(heading, fontsize=11)
        axes.set_ylabel(panel_label(lines))
    places[4].set_ylabel("share of images")
    places[5].set_ylabel(FORMULAS["nc1"] + ",  1 - margin ratio")
    _line_of_the_paper(places[1], epoch, run["within_class"])
    if "train_accuracy" in run:
        for name, colour in (("train", FEATURES), ("test", NEUTRAL)):
            if f"{name}_accuracy" in run:
                _line(places[4], epoch[shown], 1.0 - run[f"{name}_accuracy"][shown], colour, name)
    nc1, left = run["nc1"][shown], 1.0 - run["margin_ratio"][shown]
    _line(places[5], epoch[shown], without_rounding(nc1, "nc1"), FEATURES, "nc1")
    left = without_rounding(left, "1 - margin_ratio")
    _line(places[5], epoch[shown], left, CLASSIFIER, "1 - margin ratio")
    separated = _first_separated(run)
    for axes in places:
        log_values(axes)
        if separated is not None and separated >= _FIRST:
            said = "no training error" if axes is places[4] else None
            axes.axvline(math.log10(separated), color=NEUTRAL, ls=":", lw=1.0, label=said)
        _log_log_epochs(axes, float(epoch[-1]))
        axes.set_xlabel("epoch (log log scale)")
        grid(axes)
        if axes is places[0] and axes.get_yscale() == "log":
            axes.axhline(_SMALL, color=NEUTRAL, ls="--", lw=1.0, label="below it in the paper: 0.1")
        if len(axes.get_legend_handles_labels()[0]) > 1 or axes is places[4]:
            legend(axes, fontsize=9)
    figure.suptitle(settings(run) if title is None else title, fontsize=11)
    return figure


def _line(axes: Axes, epoch: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    # A logarithm shows no zero: the training error ends where the dotted line stands.
    seen = values > 0.0
    if seen.any():
        values = np.where(seen, values, np.nan)
    axes.plot(np.log10(epoch), values, color=colour, label=label, lw=1.8, marker=".", ms=4)


def _line_of_the_paper(axes: Axes, epoch: np.ndarray, values: np.ndarray) -> None:
    """Fit a line to log values over log log t from epoch 100 on, and draw it."""
    late = (epoch >= _LINE_FROM) & (values > 0.0)
    if late.sum() < 3:
        return
    x, y = np.log(np.log(epoch[late])), np.log(values[late])
    fitted = linregress(x, y)
    axes.plot(
        np.log10(epoch[late]), np.exp(fitted.intercept + fitted.slope * x), color=NEUTRAL, ls="--",
        lw=1.0, label=f"slope {fitted.slope:.2f}, $r^2$ = {fitted.rvalue**2:.3f}",
    )  # fmt: skip


def _first_separated(run: Trajectory) -> float | None:
    """The first measured epoch at which every training sample is classified right."""
    right = run["train_accuracy"] >= 1.0 if "train_accuracy" in run else run["margin"] > 0.0
    return float(run["epoch"][np.argmax(right)]) if right.any() else None


def _log_log_epochs(axes: Axes, last: float) -> None:
    """Make the x axis, which holds log10 t, one of log log t with ticks at 2, 5, 10, 20, ..."""
    axes.set_xscale("log")
    axes.set_xlim(math.log10(_FIRST), math.log10(max(last, _FIRST * 1.01)))
    decades = range(math.ceil(math.log10(last)) + 1)
    steps = (1, 2, 5) if last < 1e4 else (1,)
    low, high = axes.get_xlim()
    all_of_them = (step * 10**k for k in decades for step in steps)
    ticks = spaced((math.log10(t) for t in all_of_them if _FIRST <= t <= last), low, high, 0.08)
    axes.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{10.0**x:.0f}"))
