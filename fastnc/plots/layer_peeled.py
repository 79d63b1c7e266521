"""A network beside its layer-peeled model, which goes on from the same last layer and features."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fastnc.dynamics.trajectory import Trajectory
from fastnc.plots._style import (
    NEUTRAL,
    check_run,
    grid,
    legend,
    log_values,
    point,
    settings,
    without_rounding,
)
from fastnc.plots.collapse import PANELS, panel_label

_NAMES = [name for _, lines in PANELS for name, *_ in lines]
# A change by less than this share is neither a fall nor a rise.
_CHANGE = 0.1


def peeled(run: Trajectory, alone: Trajectory, title: str | None = None) -> Figure:
    """Figure 2's quantities over the loss: a network's, and from its end those of W and H alone.

    x is -log L, so that the two are compared at equal loss. Solid lines are the network's, dashed
    ones those of the layer-peeled model, which began where the network stopped.

    Parameters
    ----------
    run : Trajectory
        Of `fastnc.training.train`.
    alone : Trajectory
        What `fastnc.peel(run)` returned.
    title : str, optional
        By default the network's settings.

    Examples
    --------
    >>> import fastnc
    >>> run = fastnc.descend(fastnc.ULPM(5, 10, 20), epochs=100)
    >>> len(fastnc.plots.peeled(run, fastnc.peel(run, epochs=100)).axes)
    4
    """
    check_run(run, least=1)
    check_run(alone, "alone", least=1)
    figure = Figure(figsize=(13.0, 3.6), layout="constrained")
    for axes, (heading, lines) in zip(figure.subplots(1, 4), PANELS, strict=True):
        for name, colour, label in lines:
            for one, style, what in ((run, "-", "network"), (alone, "--", "layer-peeled")):
                axes.plot(
                    -one["log_loss"], without_rounding(one[name], name), style,
                    marker=point(one["log_loss"]), color=colour, lw=1.6,
                    label=f"{label}: {what}",
                )  # fmt: skip
        stopped = -float(run["log_loss"][-1])
        axes.axvline(stopped, color=NEUTRAL, ls=":", lw=1.0, label="the network stopped")
        log_values(axes)
        axes.set_title(heading, fontsize=11)
        axes.set_xlabel("-log loss")
        axes.set_ylabel(panel_label(lines))
        grid(axes)
        legend(axes)
    figure.suptitle(settings(run) if title is None else title, fontsize=11)
    return figure


def peeled_summary(run: Trajectory, alone: Trajectory) -> str:
    """The same as a table, with the differences in words.

    Columns: the network at the first measurement with every sample classified right ("-" without
    one), and at its end; the layer-peeled model at its end.
    """
    check_run(run, least=1)
    check_run(alone, "alone", least=1)
    right = np.asarray(run["margin"] > 0.0)
    names = [*_NAMES, "margin", "margin_ratio", "log_loss"]
    width = max(map(len, names))
    lines = [f"{'':<{width}}{'network, separated':>20}{'network, end':>14}{'layer-peeled':>14}"]
    for name in names:
        first = f"{run[name][np.argmax(right)]:.4g}" if right.any() else "-"
        lines.append(f"{name:<{width}}{first:>20}{run[name][-1]:>14.4g}{alone[name][-1]:>14.4g}")
    start, end = (np.array([alone[name][i] for name in _NAMES]) for i in (0, -1))
    for what, chosen in (
        ("falls", end < (1.0 - _CHANGE) * start),
        ("rises: the network kept it small", end > (1.0 + _CHANGE) * start),
        (f"changes by at most {_CHANGE:.0%}", abs(end - start) <= _CHANGE * abs(start)),
    ):
        found = [name for name, is_so in zip(_NAMES, chosen, strict=True) if is_so]
        lines += [f"Without the network, {name} {what}." for name in found]
    if run["margin"][-1] <= 0.0 < alone["margin"][-1]:
        lines.append("W and H alone separate every sample; the network did not.")
    return "\n".join(lines)
