"""Neural collapse through the depth of a network: one profile a metric, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fastnc._core.results import check_names
from fastnc.collapse.metrics import CollapseMetrics
from fastnc.plots._style import metric_axis, names_below, without_rounding
from fastnc.plots.many import as_text

Layers = Mapping[str, CollapseMetrics]
AT_MOST_A_LINE = 4
NAMES = ("nc1", "within_class", "equiangular_features", "cdnv")


def layers(
    table: Layers | Mapping[str, Layers],
    names: tuple[str, ...] = NAMES,
    title: str | None = None,
) -> Figure:
    """One panel a metric, layers along x from the input on; y is logarithmic where it falls to 0.

    Parameters
    ----------
    table : dict, layer to `CollapseMetrics`
        What `CollapseTracker.metrics()` returns for several layers, in the order of the network;
        or a dict of such tables, for example one an epoch: each is then a line with its name.
    names : metrics to draw
    title : str, optional

    Raises
    ------
    ValueError
        An empty table, tables of other layers, or a metric that is None in every layer.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> H, y = np.random.default_rng(0).standard_normal((40, 6)), np.arange(40) % 4
    >>> m = fastnc.collapse_metrics(H, y)
    >>> len(fastnc.plots.layers({"conv": m, "fc": m}).axes)
    4
    """
    tables = _tables(table)
    names = tuple(check_names("names", names, "names of metrics"))
    unknown = [name for name in names if name not in CollapseMetrics.__dataclass_fields__]
    if unknown:
        raise ValueError(f"`names` must be metrics of `CollapseMetrics`; got {unknown[0]!r}.")
    depth = [str(name) for name in next(iter(tables.values()))]
    if any([str(name) for name in one] != depth for one in tables.values()):
        raise ValueError("`table` must have the same layers, in one order, in each of its tables.")
    width = max(3.4, 0.28 * len(depth) + 2.0)
    across = min(len(names), AT_MOST_A_LINE)
    lines = -(-len(names) // across)
    figure = Figure(figsize=(width * across, 4.0 * lines), layout="constrained")
    shades = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.8, len(tables)))
    places = np.atleast_1d(figure.subplots(lines, across)).ravel()
    for axes, name in zip(places, names, strict=False):
        for (label, one), colour in zip(tables.items(), shades, strict=True):
            found = [getattr(metrics, name) for metrics in one.values()]
            if all(value is None for value in found):
                raise ValueError(
                    f"`names` must be metrics that the table has; {name!r} is None in every "
                    "layer. It may need a classifier or a second pass."
                )
            values = without_rounding([np.nan if v is None else v for v in found], name)
            axes.plot(
                range(len(depth)), values, "o-", color=colour, lw=1.6, ms=4, label=as_text(label)
            )
        metric_axis(axes, name)
        names_below(axes, depth)
    for unused in places[len(names) :]:
        unused.remove()
    if len(tables) > 1:
        axes.legend(frameon=False, fontsize=9)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    return figure


def _tables(table: Layers | Mapping[str, Layers]) -> dict[str, Layers]:
    """One table or several, as several."""
    if not isinstance(table, Mapping) or not table:
        raise ValueError(
            "`table` must be a dict of a layer's name to its `CollapseMetrics`; "
            f"got {type(table).__name__ if not isinstance(table, Mapping) else 'an empty one'}."
        )
    if all(isinstance(value, CollapseMetrics) for value in table.values()):
        return {"": table}  # type: ignore[dict-item]
    if all(isinstance(value, Mapping) and value for value in table.values()):
        return {str(name): one for name, one in table.items()}  # type: ignore[misc]
    raise ValueError("`table` must hold `CollapseMetrics`, or tables of them; got neither.")
