"""Any columns of one or many runs along their epochs, with bands over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastnc._core.results import check_names, listed
from fastnc.plots._style import FEATURES, epochs, metric_axis, say_within, without_rounding

# Half of the runs lie in the band.
_BAND = (0.25, 0.5, 0.75)
_AT_MOST_A_LINE = 4
# What is drawn where no columns are named, best first.
_USUAL = (
    "nc1", "equinorm_features", "equiangular_features", "self_duality", "within_class", "cdnv",
    "nc2_gram_features",
)  # fmt: skip


class Columns(Protocol):
    """What a figure needs of a `History` or a `Trajectory`."""

    def keys(self) -> Any:
        """The names of the columns; the first is the epoch."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column (snapshots,)."""


def trend(
    history: Columns | Sequence[Columns],
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """One panel a column; of several histories the median and a band that holds half of them.

    Parameters
    ----------
    history : History or Trajectory, or a sequence of them
        Several are repetitions of one experiment, for example over seeds: of each column only
        epochs at which all of them have it are drawn.
    names : columns to draw, optional
        By default four of those that all have: `nc1`, `equinorm_features`, `equiangular_features`
        and `self_duality`, without a classifier `within_class`; if there are none, the first four.
    title : str, optional

    Raises
    ------
    ValueError
        No history, a column that one of them lacks, or no epoch that all have.

    Examples
    --------
    >>> import fastnc
    >>> runs = [fastnc.descend(fastnc.ULPM(3, 4, 5), epochs=50, seed=s) for s in range(3)]
    >>> len(fastnc.plots.trend(runs, ["nc1", "margin"]).axes)
    2
    """
    histories: Any = [history] if hasattr(history, "keys") else listed(history)
    if histories is None:
        raise TypeError(
            "`history` must be a History, a Trajectory, or a sequence of them; got "
            f"{type(history).__name__}."
        )
    if not histories:
        raise ValueError("`history` must hold at least one run; got none.")
    clocks = [_clock(one) for one in histories]
    if len(set(clocks)) > 1:
        raise ValueError(
            "`history` must hold runs of one time; got "
            f"{' and '.join(map(repr, dict.fromkeys(clocks)))}."
        )
    names = _usual(histories) if names is None else check_names("names", names, "columns")
    for one in histories:
        missing = [name for name in names if name not in list(one.keys())]
        if missing:
            raise ValueError(
                f"`names` must be columns of every run; {missing[0]!r} is not one of "
                f"{', '.join(one.keys())}."
            )
    common = _numbers(histories[0], clocks[0])
    for one, clock in zip(histories, clocks, strict=True):
        common = np.intersect1d(common, _numbers(one, clock))
    # A flow begins at a time whose logarithm is on no axis.
    common = common[np.isfinite(common)]
    if not len(common):
        raise ValueError("the runs must have at least one epoch in common; they have none.")
    lines = -(-len(names) // _AT_MOST_A_LINE)
    across = min(len(names), _AT_MOST_A_LINE)
    figure = Figure(figsize=(3.5 * across, 3.1 * lines + 0.3), layout="constrained")
    places = np.atleast_1d(figure.subplots(lines, across)).ravel()
    for axes, name in zip(places, names, strict=False):
        values = np.stack(
            [_at(one, clock, name, common) for one, clock in zip(histories, clocks, strict=True)]
        )
        # Some columns are not measured at every epoch.
        everywhere = ~np.isnan(values).any(axis=0)
        _draw(axes, common[everywhere], values[:, everywhere])
        metric_axis(axes, name)
        if clocks[0] == "log10_time":
            axes.set_xlabel("log10 of the time t")
        else:
            epochs(axes, float(common[-1]))
    for axes in places[len(names) :]:
        axes.remove()
    if len(histories) > 1:
        said = f"median of {len(histories)} runs; half of them lie in the band"
        title = said if title is None else f"{title}\n{said}"
    if title is not None:
        figure.suptitle(title, fontsize=11)
    return figure


def _usual(histories: Sequence[Any]) -> list[str]:
    """The columns that are drawn where none are named."""
    first, *others = (list(map(str, one.keys()))[1:] for one in histories)
    shared = [name for name in first if all(name in other for other in others)]
    if not shared:
        raise ValueError("`history` must have a column beside its time in every run; it has none.")
    return ([name for name in _USUAL if name in shared] or shared)[:4]


def _clock(one: Any) -> str:
    """The first column of a run, or of what has columns as one."""
    if not (hasattr(one, "keys") and hasattr(one, "__getitem__") and len(list(one.keys()))):
        raise TypeError(
            "`history` must be a History, a Trajectory, or a sequence of them; got "
            f"{type(one).__name__} in it."
        )
    return str(next(iter(one.keys())))


def _numbers(one: Columns, name: str, length: int | None = None) -> NDArray[np.float64]:
    """A column; None is a gap."""
    try:
        values = np.asarray(one[name], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.zeros(())
    if values.ndim != 1 or length not in (None, len(values)):
        raise ValueError(
            f"columns must be numbers, one an epoch; {name!r} of a {type(one).__name__} is not."
        )
    return values


def _at(one: Columns, clock: str, name: str, common: NDArray[np.float64]) -> NDArray[np.float64]:
    """A column at the epochs that all runs have."""
    epoch = _numbers(one, clock)
    # Rows may have come in any order.
    order = np.argsort(epoch, kind="stable")
    rows = order[np.searchsorted(epoch, common, sorter=order)]
    return without_rounding(_numbers(one, name, len(epoch))[rows], name)


def _draw(axes: Axes, common: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    if len(values) == 1:
        axes.plot(common, values[0], ".-", color=FEATURES, lw=1.6, ms=4)
        return
    if not len(common):
        say_within(axes, "no epoch at which all runs have it")
        return
    low, median, high = np.quantile(values, _BAND, axis=0)
    axes.fill_between(common, low, high, color=FEATURES, alpha=0.25, lw=0)
    axes.plot(common, median, ".-", color=FEATURES, lw=1.8, ms=4)
