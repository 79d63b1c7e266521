"""A flow to its horizon: Figure 2 continued, its exponents, its constants, conserved quantities."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastnc.collapse.codes import largest_margin_ratio
from fastnc.dynamics.trajectories import is_plain_descent
from fastnc.dynamics.trajectory import Trajectory
from fastnc.plots._style import (
    CLASSIFIER,
    FEATURES,
    NEUTRAL,
    check_run,
    legend,
    log_log_time,
    log_values,
    say_within,
    settings,
    without_rounding,
)
from fastnc.plots.collapse import PANELS
from fastnc.plots.margin import stack_missing
from fastnc.theory.rates import Constants, constants, exponents, fitted_exponent, limits
from fastnc.theory.seli import NAMES

# The end of the paper's Figure 2 on the axis t = lr * epoch: 1e5 epochs of lr = 5.
PAPER_ENDS = math.log10(5e5)
# The label of the axis: a flow's own time, which of a descent is lr * epoch.
TIME = r"$t = \mathrm{lr} \cdot \mathrm{epoch}$ (log log scale)"


def long_horizon(
    run: Trajectory, descent: Trajectory | None = None, title: str | None = None
) -> Figure:
    """Figure 2 continued after its 1e5 epochs: a flow over log log t, in eight panels.

    Top: the panels of `figure2`, with the predicted slopes dashed (for unequal classes limits that
    are not 0 dotted), the paper's times shaded, and, if given, a descent as dots at the times
    `t = lr * epoch`. Bottom: local exponents, measured constants over predicted ones, the terms
    missing to collapse, and the drift of the conserved quantity.

    Parameters
    ----------
    run : Trajectory
        Of `fastnc.flow`, to t = 10^10 at least.
    descent : Trajectory, optional
        Of `fastnc.descend`.
    title : str, optional
        By default the run's settings.
    """
    _check(run)
    if descent is not None:
        check_run(descent, "descent")
    if descent is not None and not _has_times(descent):
        raise ValueError(
            "`descent` must be plain gradient descent of a constant `lr`, without batches, noise "
            "and frozen factors: its times are `lr * epoch`; got "
            f"{settings(descent) or 'another run'}."
        )
    figure = Figure(figsize=(15.0, 6.8), layout="constrained")
    top, bottom = figure.subplots(2, 4)
    for axes, (heading, lines) in zip(top, PANELS, strict=True):
        _collapse(axes, run, descent, lines)
        axes.set_title(heading, fontsize=11)
    _exponents(bottom[0], run)
    _constants(bottom[1], run)
    stack_missing(bottom[2], run, relative=True)
    bottom[2].set_title("(g) parts of $1 - $ margin ratio", fontsize=11)
    bottom[2].legend(frameon=True, fontsize=6.5, loc="lower left")
    _conserved(bottom[3], run)
    for axes in bottom:
        axes.set_xlabel(TIME)
    figure.suptitle(settings(run) if title is None else title, fontsize=12)
    return figure


def flow_summary(run: Trajectory) -> str:
    """A text table: fitted and predicted exponents and constants, and the conserved quantities."""
    _check_flow(run)
    K, d = run.W.shape
    high = float(run.log10_time[-1])
    lines = []
    if _has_exponents(run) and high >= 10.0 and (run.log10_time >= high / 10.0).sum() >= 3:
        limits = _limits(run)
        lines.append(
            f"{'column':<24}{'exponent':>10}{'predicted':>11}{'constant':>12}{'predicted':>12}"
            f"    exponents of log t for log10 t = {high / 10:g}..{high:g}"
        )
        stays = _stays(run)
        for name, exponent in (exponents(K, d) | _distances(run)).items():
            values = _column(run, name)
            if name in stays:
                lines.append(
                    f"{name:<24}{'stays':>10}{'stays':>11}{values[-1]:>12.5f}{stays[name]:>12.5f}"
                )
                continue
            if (values[run.log10_time >= high / 10.0] > 0.0).sum() < 3:
                # Single samples have no variation, nor have the norms of two classes.
                lines.append(f"{name:<24}{'zero':>10}{exponent:>11.1f}")
                continue
            found = fitted_exponent(run.log10_time, values, high / 10.0, high)
            limit = limits.get(name)
            constant = values[-1] * run["margin"][-1] ** -exponent
            lines.append(
                f"{name:<24}{found:>10.4f}{exponent:>11.1f}{constant:>12.5f}"
                + (f"{limit:>12.5f}" if limit is not None else f"{'':>12}")
            )
    else:
        lines.append(
            "No exponents: they need d >= K, samples of every class, a horizon of log10 t >= 10 "
            "and 3 snapshots in the last decade of log t."
        )
    if d < K - 1 and len(set(_sizes(run))) == 1:
        lines.append(
            f"no simplex: d = {d} < K - 1 = {K - 1}. The best code known allows a margin ratio of "
            f"{largest_margin_ratio(K, d):.5f} in place of 1; this run has "
            f"{run['margin_ratio'][-1]:.5f}"
        )
    about = run.about
    if "gram_drift" in about:
        lines.append(
            f"conserved: W^T W - H^T H drifts by {about['gram_drift']:.1e} of |W|^2, "
            f"the mean classifier by {about['mean_drift']:.1e}"
        )
    values = about["start_singular_values"]
    means = "sqrt(n) M_c" if len(set(_sizes(run))) == 1 else "E diag(sqrt n_k) M"
    lines.append(
        f"start: singular values of W_c + {means} from {values[0]:.3g} down to "
        f"{values[-1]:.3g}; a small last one means a long way to these exponents"
    )
    work = about["work"]
    lines.append(
        f"work: {work['steps']} steps, {work['evaluations']} gradients, "
        f"{work['factorisations']} factorisations ({about['solver']})"
    )
    return "\n".join(lines)


def _check_flow(run: Trajectory) -> None:
    check_run(run, least=1)
    if run.time != "log10_time":
        raise ValueError("`run` must be of `fastnc.flow`; for a descent there is `figure2`.")
    if "start_singular_values" not in run.about or "objective" in run:
        raise ValueError(
            "`run` must be a flow of a loss that vanishes like cross-entropy, which has rates: "
            f"without weight decay. Got one of {run.about.get('model', 'another')}; there is "
            "`summary`."
        )


def _check(run: Trajectory) -> None:
    _check_flow(run)
    if run.log10_time[-1] < 10.0 or (run.log10_time >= 2.0).sum() < 3:
        raise ValueError(
            "`run` must reach t = 10^10 at least, with 3 snapshots from 10^2 on, for its rates to "
            f"show; it has {len(run)} to 10^{run.log10_time[-1]:.3g}. Run for longer."
        )


def _has_times(descent: Trajectory) -> bool:
    """Whether its epochs are times of a flow: of whole steps along the exact gradient."""
    changed = ("batch_size", "noise", "label_noise", "freeze")
    about = descent.about
    return is_plain_descent(about) and not any(about.get(name) for name in changed)


def _column(run: Trajectory, name: str) -> NDArray[np.float64]:
    if name == "1 - beta":
        # epsilon^2 q_min / (2 |theta|^2), without the cancellation of the subtraction.
        energy = run["norm_W"] ** 2 + run["norm_H"] ** 2
        return np.asarray(0.5 * run["epsilon"] ** 2 * run["margin"] / energy)
    values = 1.0 - run[name[4:]] if name.startswith("1 - ") else run[name]
    return without_rounding(values, name)


def _sizes(run: Trajectory) -> list[int]:
    return [int(n) for n in np.bincount(run.y, minlength=len(run.W))]


def _has_exponents(run: Trajectory) -> bool:
    """Whether exponents are known: to a class without samples none of the limits applies."""
    K, d = run.W.shape
    return bool(d >= K and min(_sizes(run)) > 0)


def _stays(run: Trajectory) -> dict[str, float]:
    """Limits that are not 0: those of unequal classes, of the SELI geometry."""
    sizes = _sizes(run)
    if len(set(sizes)) == 1 or min(sizes) == 0:
        return {}
    found = limits(sizes, run.W.shape[1])
    return {name: limit for name, limit in found.items() if limit > 1e-12}


def _distances(run: Trajectory) -> dict[str, float]:
    """The exponents of the distances to SELI, where the run has them."""
    return {name: -1.0 for name in NAMES if name in run}


def _limits(run: Trajectory) -> dict[str, float]:
    """Predicted limits of the columns times a^(1/2) or a, where they are known."""
    if len(set(_sizes(run))) > 1:
        return {}
    found: Constants = constants(run.W, run.H, run.y)
    return {
        "within_class": found.within_class,
        "equinorm_features": found.equinorm,
        "equinorm_classifier": found.equinorm,
        "1 - margin_ratio": found.margin_deficit,
        "1 - beta": 0.5 * found.margin_deficit,
    }


def _collapse(
    axes: Axes,
    run: Trajectory,
    descent: Trajectory | None,
    lines: tuple[tuple[str, str, str], ...],
) -> None:
    times = run.log10_time
    shown = times >= 1.0
    axes.axvspan(1.0, PAPER_ENDS, color="0.93", lw=0, label="the paper's figure")
    for name, colour, label in lines:
        values = _column(run, name)[shown]
        axes.plot(times[shown], values, color=colour, lw=1.8, label=label)
        if descent is not None:
            descent_times = descent.log10_time + math.log10(descent.about["lr"])
            some = (descent_times >= 1.0) & (np.arange(len(descent)) % 6 == 0)
            axes.plot(
                descent_times[some], descent[name][some], "o", ms=3.2, mfc="none", color=NEUTRAL,
                label="gradient descent" if name == lines[-1][0] else None, lw=0,
            )  # fmt: skip
    name = lines[0][0]
    K, d = run.W.shape
    stays = _stays(run) if d >= K else {}
    for line, colour, _ in lines:
        if line in stays:
            axes.axhline(stays[line], color=colour, lw=1.1, ls=":", label="limit (SELI)")
    end = _column(run, name)[-1]
    if _has_exponents(run) and end > 0.0 and name not in stays:
        slope = exponents(K, d)[name]
        axes.plot(
            times[shown], end * (times[shown] / times[-1]) ** slope, "--", color=NEUTRAL, lw=1.1,
            label=r"$\propto (\log t)^{-1/2}$" if slope == -0.5 else r"$\propto 1/\log t$",
        )  # fmt: skip
        seen = np.concatenate([_column(run, n)[shown] for n, *_ in lines])
        axes.set_ylim(seen[seen > 0.0].min() / 2.0, 3.0 * seen.max())
    log_values(axes)
    log_log_time(axes, 1.0, float(times[-1]))
    axes.set_xlabel(TIME)
    axes.grid(True, color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    legend(axes)


def _exponents(axes: Axes, run: Trajectory) -> None:
    """Slopes of the log of a column over log log t, between snapshots."""
    K, d = run.W.shape
    names = dict.fromkeys(
        exponents(K, d) if _has_exponents(run) else ("within_class", "self_duality")
    )
    stays = _stays(run) if d >= K else {}
    names = dict.fromkeys(name for name in (*names, *_distances(run)) if name not in stays)
    shown = run.log10_time >= 2.0
    times = run.log10_time[shown]
    named: set[bool] = set()
    for name in names:
        # Where a column is 0, or 1 to rounding, there is no slope.
        values = _column(run, name)[shown]
        if not (values > 0.0).any():
            continue
        values = np.log(values, where=values > 0.0, out=np.full_like(values, np.nan))
        slopes = np.gradient(values, np.log(times))
        fast = name != "within_class"
        axes.plot(
            times, slopes, color=CLASSIFIER if fast else FEATURES, lw=0.9 if fast else 1.8,
            alpha=0.6 if fast else 1.0,
            label=None if fast in named else "all others" if fast else "within class",
        )  # fmt: skip
        named.add(fast)
    if not named:
        say_within(axes, "none: all columns are 0 to rounding")
    for level in (-0.5, -1.0):
        axes.axhline(level, color=NEUTRAL, lw=1.0, ls="--")
    axes.axvspan(1.0, PAPER_ENDS, color="0.93", lw=0)
    # All of them, and at least these.
    low = min((float(np.nanmin(line.get_ydata())) for line in axes.lines), default=0.0)
    axes.set_ylim(min(-1.6, 1.05 * low), 0.1)
    axes.set_title(r"(e) local exponents of $\log t$", fontsize=11)
    log_log_time(axes, 2.0, float(times[-1]))
    legend(axes)


def _constants(axes: Axes, run: Trajectory) -> None:
    shown = run.log10_time >= 2.0
    times, gap = run.log10_time[shown], run["margin"][shown]
    K, d = run.W.shape
    predicted = exponents(K, d) if _has_exponents(run) else {}
    for name, limit in _limits(run).items() if predicted else ():
        if limit > 0.0:
            ratio = _column(run, name)[shown] * gap ** -predicted[name] / limit
            axes.plot(times, ratio, lw=1.3, label=name.replace("_", " "))
    if not axes.lines:
        # Of a class without samples, and of d < K, not even exponents are known.
        say_within(axes, "none is known: they need\nequal classes and d >= K")
    axes.axhline(1.0, color=NEUTRAL, lw=1.0, ls="--")
    high = max((float(np.nanmax(line.get_ydata())) for line in axes.lines), default=0.0)
    axes.set_ylim(0.0, max(2.0, 1.05 * high))
    axes.set_title("(f) constants, measured / predicted", fontsize=11)
    log_log_time(axes, 2.0, float(times[-1]))
    legend(axes)


def _conserved(axes: Axes, run: Trajectory) -> None:
    shown = run.log10_time >= 1.0
    times = run.log10_time[shown]
    drift = np.maximum(run["conserved_drift"][shown], 1e-17)
    axes.plot(times, drift, color=NEUTRAL, lw=1.3)
    axes.set_yscale("log")
    axes.set_ylim(1e-17, max(1e-6, 2.0 * float(drift.max())))
    axes.axhline(1e-8, color=CLASSIFIER, lw=1.0, ls="--")
    axes.set_title(r"(h) drift of $W^{T}W - H^{T}H$, over $|W|^2$", fontsize=11)
    log_log_time(axes, 1.0, float(times[-1]))
