"""The learned geometry of Table 1's rows: Gram matrices and, in 2 or 3 dimensions, the vectors."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fastnc._core.results import check_results
from fastnc.paper.table1 import Row
from fastnc.plots._style import CLASSIFIER, FEATURES

_A_LINE = 7


def geometry(table: Sequence[Row]) -> Figure:
    """One column a row of the table: `W W^T`, then `M M^T`, then the vectors where d is 2 or 3.

    Gram matrices are divided by their largest entry, and the colours run from -1 to 1. Among
    the vectors, lines are the classifiers and dots the features of single samples, each at the
    same largest length.
    """
    table = check_results("table", table, Row, "`fastnc.paper.table1.fit`")
    dim = table[0].solution.W.shape[1]
    kinds = 3 if dim in (2, 3) else 2
    columns = min(_A_LINE, len(table))
    lines = -(-len(table) // columns)
    figure = Figure(figsize=(1.95 * columns + 0.6, lines * (1.7 * kinds + 0.75)))
    outer = figure.add_gridspec(
        lines, columns, left=0.06, right=0.99, top=1 - 0.55 / figure.get_figheight(),
        bottom=0.02, hspace=0.14, wspace=0.12,
    )  # fmt: skip
    for place, row in enumerate(table):
        inner = outer[place // columns, place % columns].subgridspec(kinds, 1, hspace=0.06)
        found = row.solution
        grams = (found.W @ found.W.T, _gram_of_means(found.H, found.y, len(found.W)))
        for i, (gram, label) in enumerate(zip(grams, ("$WW^T$", "$MM^T$"), strict=True)):
            axes = figure.add_subplot(inner[i])
            axes.imshow(gram / max(np.abs(gram).max(), 1e-300), cmap="RdBu_r", vmin=-1, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if place % columns == 0:
                axes.set_ylabel(label, fontsize=11)
            if i == 0:
                axes.set_title(fill(row.name, 20), fontsize=9)
        if kinds == 3:
            _vectors(figure, inner[2], found.W, found.H)
    if kinds == 3:
        handles = [
            Line2D([], [], color=CLASSIFIER, lw=1.8, label="classifiers"),
            Line2D([], [], color=FEATURES, marker="o", ls="", ms=4, label="features"),
        ]
        figure.legend(handles=handles, loc="upper left", ncols=2, fontsize=9, frameon=False)
    return figure


def _gram_of_means(H: NDArray[Any], y: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    means = np.stack([H[y == k].mean(axis=0) for k in range(n_classes)])
    gram: NDArray[np.float64] = means @ means.T
    return gram


def _vectors(figure: Figure, where: Any, W: NDArray[Any], H: NDArray[Any]) -> None:
    W, H = (x / max(np.linalg.norm(x, axis=1).max(), 1e-300) for x in (W, H))
    flat = W.shape[1] == 2
    axes: Any = figure.add_subplot(where, projection=None if flat else "3d")
    for w in W:
        axes.plot(*zip(np.zeros_like(w), w, strict=True), color=CLASSIFIER, lw=1.8)
    axes.scatter(*H.T, color=FEATURES, s=9)
    for axis in "xy" if flat else "xyz":
        getattr(axes, f"set_{axis}lim")(-1.05, 1.05)
        getattr(axes, f"set_{axis}ticks")([])
    axes.set_aspect("equal")
    if not flat:
        axes.set_box_aspect((1, 1, 1), zoom=1.3)
