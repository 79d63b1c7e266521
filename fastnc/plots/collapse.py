"""Figure 2 of the paper: the quantities of neural collapse along a run, in four panels."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fastnc.dynamics.trajectory import Trajectory
from fastnc.plots._style import (
    CLASSIFIER,
    FEATURES,
    FORMULAS,
    check_run,
    grid,
    log_log_time,
    log_values,
    point,
    settings,
    without_rounding,
)  # fmt: skip

Lines = tuple[tuple[str, str, str], ...]
# Title of each panel, and its columns with their colours and legends.
PANELS: tuple[tuple[str, Lines], ...] = (
    (
        "(a) variation of the norms",
        (
            ("equinorm_features", FEATURES, "features"),
            ("equinorm_classifier", CLASSIFIER, "classifier"),
        ),
    ),
    ("(b) within-class variation", (("within_class", FEATURES, "features"),)),
    (
        "(c) cosines to the simplex ETF",
        (
            ("equiangular_features", FEATURES, "features"),
            ("equiangular_classifier", CLASSIFIER, "classifier"),
        ),
    ),
    ("(d) self-duality", (("self_duality", FEATURES, "features to classifier"),)),
)


def figure2(run: Trajectory, title: str | None = None) -> Figure:
    """The paper's Figure 2 of a run or a flow: x is log log t, y is logarithmic.

    Panels: (a) Std/Avg of the norms of centred class means and classifiers; (b) average
    distance to the class mean over average distance to the global mean; (c) average
    |cos + 1/(K-1)| over pairs; (d) average distance of the normalised class means to the
    normalised classifiers. All are 0 at collapse. Times below 10 are left out. `title` is by
    default the run's settings.
    """
    check_run(run)
    figure = Figure(figsize=(13.0, 3.4), layout="constrained")
    log10_time = run.log10_time
    shown = log10_time >= 1.0
    if not shown.any():
        end = f"ends at 10^{log10_time[-1]:.3g}" if len(run) else "has no snapshot"
        raise ValueError(
            f"a figure on the log log t axis needs times of at least 10; the run {end}. "
            "Run for longer."
        )
    x = log10_time[shown]
    for axes, (heading, lines) in zip(figure.subplots(1, 4), PANELS, strict=True):
        for name, colour, label in lines:
            values = without_rounding(run[name][shown], name)
            axes.plot(x, values, marker=point(x), color=colour, label=label, lw=1.8)
        log_values(axes)
        log_log_time(axes, 1.0, max(float(log10_time[-1]), 1.0 + 1e-3))
        axes.set_title(heading, fontsize=11)
        axes.set_xlabel(time_label(run))
        axes.set_ylabel(panel_label(lines))
        grid(axes)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=9)
    figure.suptitle(settings(run) if title is None else title, fontsize=11)
    return figure


def panel_label(lines: Lines) -> str:
    """The formula of a panel's quantities, which are 0 at collapse."""
    formulas = dict.fromkeys(FORMULAS[name] for name, *_ in lines)
    return "\n".join(formulas)


def summary(run: Trajectory) -> str:
    """A text table of Figure 2's quantities and the margin at t = 10, 100, ... and the end."""
    check_run(run)
    names = [name for _, lines in PANELS for name, *_ in lines] + ["nc1", "margin", "margin_ratio"]
    names = [name for name in names if name in run]
    if not len(run):
        return "no snapshot"
    times = summary_times(run)
    width = max(map(len, names))
    lines = [f"{_clock(run):<{width}}" + "".join(f"{time_text(u):>12}" for u in times)]
    lines += [
        f"{name:<{width}}" + "".join(f"{v:>12.4g}" for v in run.at(name, times)) for name in names
    ]
    return "\n".join(lines)


def summary_times(run: Trajectory) -> list[float]:
    """log10 of a table's times: t = 10, 100, ..., in a long flow log10 t = 1, 10, ...; the end.

    Where there is no snapshot the one before is taken, and told by its own time.
    """
    last = float(run.log10_time[-1])
    if last < 1.0:
        return [last]
    times = (
        [float(u) for u in range(1, int(np.floor(last)) + 1)]
        if last <= 12
        else [10.0**e for e in range(int(np.floor(np.log10(last))) + 1)]
    )
    at = np.searchsorted(run.log10_time, np.array([*times, last]) + 1e-12, side="right") - 1
    return [float(run.log10_time[i]) for i in dict.fromkeys(np.maximum(at, 0))]


def time_text(log10_time: float) -> str:
    """A time as a table's heading."""
    return f"{10.0**log10_time:.3g}" if log10_time <= 12 else f"10^{log10_time:g}"


def time_label(run: Trajectory) -> str:
    """The label of the time's axis."""
    return f"{'epoch' if run.time == 'epoch' else 'time t'} (log log scale)"


def _clock(run: Trajectory) -> str:
    """The heading of a table's times: epochs of a descent, t of a flow."""
    return "epoch" if run.time == "epoch" else "t"
