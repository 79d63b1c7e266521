"""A figure of a network's features: angles of the class means, the metrics, each class's spread."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from fastnc._core.results import check_result, listed
from fastnc.collapse.class_means import VANISHING
from fastnc.collapse.metrics import CLASSIFIER as CLASSIFIER_ALONE
from fastnc.collapse.metrics import DECISIONS, JOINT, CollapseMetrics
from fastnc.collapse.report import head, values_at_collapse
from fastnc.collapse.statistics import ClassStatistics
from fastnc.plots._style import (
    CLASSIFIER,
    FEATURES,
    MOST_NAMES,
    NEUTRAL,
    grid,
    names_below,
    without_rounding,
)
from fastnc.plots.many import as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More classes than this cannot be distinguished in a figure of K x K cosines.
MOST_CLASSES = 400
# Numbers without a limit of 0 or 1, or so far from it that their bar would hide the others.
AS_TEXT = ("margin", "gnc2_riesz")


def collapse_figure(
    metrics: CollapseMetrics, statistics: ClassStatistics, names: Sequence[object] | None = None
) -> Figure:
    """Three panels: cosines of the centred class means, the metrics, and each class's spread.

    Parameters
    ----------
    metrics, statistics
        Of the same samples; of metrics of held-out ones, the statistics that they are about.
    names : sequence of K' strings or numbers, optional
        Names of the classes that have samples; their numbers by default.

    Raises
    ------
    TypeError
        Something else in their place.
    ValueError
        Metrics of other samples, or not one name for each class that has samples.

    Notes
    -----
    At collapse the first panel is -1/(K-1) off the diagonal, the second has every bar at the
    left, and the third every point at 0: `sqrt(s_k / n_k) / |m_k - g|`. Classes that the metrics
    leave out have no part in any. Of more than 400 classes 400 are shown, evenly spaced.
    """
    check_result("metrics", metrics, CollapseMetrics, "`fastnc.collapse_metrics`")
    check_result("statistics", statistics, ClassStatistics, "`fastnc.ClassStatistics(...)`")
    present = np.flatnonzero(statistics.counts)
    measured = len(present) - metrics.n_left_out
    if (metrics.dim, metrics.n_classes) != (statistics.dim, measured):
        raise ValueError(
            f"`metrics` and `statistics` must be of the same samples; got {metrics.n_classes} "
            f"classes of {metrics.dim} features, and {measured} of {statistics.dim}."
        )
    given = listed(present if names is None else names)
    if given is None:
        raise TypeError(
            f"`names` must be a sequence of strings or numbers; got {type(names).__name__}."
        )
    called = [str(name) for name in given]
    if len(called) != len(present):
        raise ValueError(
            f"`names` must be one for each of the {len(present)} classes that have samples; got "
            f"{len(called)}."
        )
    # Those that were left out have the fewest samples.
    kept = np.sort(np.argsort(-statistics.counts[present], kind="stable")[:measured])
    present, called = present[kept], [called[k] for k in kept]
    means = statistics.means[present]
    C = means - means.mean(axis=0)
    # On their own scale: squares of very small means vanish.
    scale = float(np.abs(C).max()) or 1.0
    C /= scale
    lengths = np.linalg.norm(C, axis=1)
    shown = np.unique(np.linspace(0, len(C) - 1, min(len(C), MOST_CLASSES)).astype(int))
    figure = Figure(figsize=(14.0, 4.4), layout="constrained")
    angles, bars, spreads = figure.subplots(1, 3, width_ratios=(1.05, 1.35, 1.2))
    with np.errstate(divide="ignore", invalid="ignore"):
        units = C[shown] / lengths[shown, None]
        spread = np.sqrt(statistics.squares / statistics.counts)[present] / scale / lengths
    if scale < VANISHING:
        spread = np.full_like(spread, np.nan)
    _angles(angles, units, [called[k] for k in shown], len(C))
    _bars(bars, metrics)
    _spreads(spreads, spread, called)
    whose = "; (a) and (c) of those of the class means" if metrics.held_out else ""
    figure.suptitle(head(metrics) + whose)
    return figure


def _angles(axes: Axes, units: NDArray[Any], names: list[str], n_classes: int) -> None:
    image = axes.imshow(units @ units.T, cmap="RdBu_r", vmin=-1.0, vmax=1.0)
    some = "" if len(units) == n_classes else f"\n{len(units)} of {n_classes} classes"
    axes.set_title(f"(a) cosines of centred class means{some}", fontsize=11)
    end = -1 / (n_classes - 1)
    axes.set_xlabel(f"at collapse: {end:.3g} off the diagonal\n(line in the bar)")
    step = max(len(units) // MOST_NAMES, 1)
    names_below(axes, names)
    axes.set_yticks(range(0, len(units), step), list(map(as_text, names[::step])), fontsize=8)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.85, label="cosine")
    bar.ax.axhline(-1.0 / (n_classes - 1), color=NEUTRAL, lw=1.5)


def _bars(axes: Axes, metrics: CollapseMetrics) -> None:
    bars = _left(metrics)
    # The bar of a metric that is 0 by symmetry would show its rounding; one below 0 has none.
    rounded = {name: float(without_rounding(value, name)) for name, value in bars.items()}
    zero = [name for name, value in rounded.items() if value == 0.0]
    below_zero = {name: value for name, value in rounded.items() if value < 0.0}
    bars = {name: value for name, value in bars.items() if rounded[name] > 0.0}
    colours = [_colour(name) for name in bars]
    places = np.arange(len(bars))
    axes.barh(places, list(bars.values()), color=colours, height=0.6)
    axes.set_xscale("log")
    axes.set_yticks(places, list(bars), fontsize=9)
    axes.invert_yaxis()
    if bars:
        low, high = min(bars.values()), max(bars.values())
        axes.set_xlim(low / 3.0, high * (high / low * 9.0) ** 0.25)
    for place, value in zip(places, bars.values(), strict=True):
        axes.annotate(
            f"{value:.3g}", (value, place), (3, 0), textcoords="offset points", va="center", size=8
        )
    ends = values_at_collapse(metrics)
    said = []
    for name in AS_TEXT:
        value = getattr(metrics, name)
        if value is not None:
            end = f" ({ends[name]:.4g} at collapse)" if name in ends else ""
            said.append(f"{name} {value:.4g}{end}")
    said += [f"{name} = {value:.3g}".replace(" ", "\u00a0") for name, value in below_zero.items()]
    axes.set_title("(b) neural collapse; 0 at collapse", fontsize=11)
    # A line does not end within the name of a bar.
    names = ", ".join(name.replace(" ", "\u00a0") for name in zero)
    below = [*said, f"0 here: {names}"] if zero else said
    axes.set_xlabel(fill(",  ".join(below), 60) or "metrics of the features", fontsize=9)
    handles = [
        Patch(color=FEATURES, label="features"),
        Patch(color=CLASSIFIER, label="classifier"),
        Patch(color=NEUTRAL, label="both"),
    ]
    axes.figure.legend(
        handles=handles, frameon=False, fontsize=8, loc="outside lower center", ncols=3
    )
    grid(axes, axis="x")


def _left(metrics: CollapseMetrics) -> dict[str, float]:
    """The distance of each metric to its value at collapse, under its formula if that is not 0."""
    ends = values_at_collapse(metrics)
    left: dict[str, float] = {}
    for name, value in metrics.as_dict().items():
        if value is None or not np.isfinite(value) or name in AS_TEXT:
            continue
        match ends.get(name):
            case None:
                left[name] = value
            case 1.0:
                left[f"1 - {name}"] = 1.0 - value
            case end:
                left[f"|{name} / {end:.4g} - 1|"] = abs(value / end - 1.0)
    return left


def _colour(label: str) -> str:
    name = label.removeprefix("1 - ").removeprefix("|").split(" ")[0]
    if name in CLASSIFIER_ALONE:
        return CLASSIFIER
    return NEUTRAL if name in JOINT + DECISIONS else FEATURES


def _spreads(axes: Axes, spread: NDArray[Any], names: list[str]) -> None:
    places = np.arange(len(spread))
    if len(spread) <= 50:
        axes.bar(places, spread, color=FEATURES, width=0.7)
    else:
        axes.plot(places, spread, ".", color=FEATURES, ms=3)
    names_below(axes, names)
    axes.set_ylim(bottom=0.0)
    axes.set_title("(c) spread of each class", fontsize=11)
    axes.set_xlabel("class")
    axes.set_ylabel(r"$\sqrt{s_k / n_k}\;/\;|m_k - g|$")
    grid(axes, axis="y")
