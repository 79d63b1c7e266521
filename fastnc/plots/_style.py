"""What all figures share: colours, the log log t axis, and how they are written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fastnc._core.files import atomic_write

FEATURES = "#1f77b4"
CLASSIFIER = "#d62728"
NEUTRAL = "#444444"


def save(figure: Figure, stem: str | os.PathLike[str]) -> list[Path]:
    """Write `stem`.png and `stem`.pdf, each atomically."""
    path = Path(stem)
    # A layout takes as long as a drawing and would be made for each of the two.
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
    try:
        return [
            atomic_write(
                path.with_name(f"{path.name}.{kind}"),
                lambda file, kind=kind: figure.savefig(file, format=kind, dpi=160),  # type: ignore[misc]
            )
            for kind in ("png", "pdf")
        ]
    finally:
        if engine is not None:
            figure.set_layout_engine(engine)


def log_values(axes: Axes) -> None:
    """Make the y axis logarithmic, where anything lies above zero.

    What is zero throughout, as the within-class variation of single samples is, stays a line
    at zero.
    """
    if np.isfinite(axes.dataLim.minposy):
        axes.set_yscale("log")


def legend(axes: Axes, **options: Any) -> None:
    """A legend, where there is a label to put into it."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**{"frameon": False, "fontsize": 8, **options})


def log_log_time(axes: Axes, low: float, high: float) -> None:
    """Make the x axis, which holds log10 t, one of log log t, from 10^low to 10^high.

    A logarithmic axis of log10 t *is* a log log t axis, and its numbers stay finite at any t.
    """
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    if high <= 12:
        ticks = np.arange(np.ceil(low), np.floor(high) + 1)
    else:
        ticks = 10.0 ** np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    axes.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"$10^{{{x:g}}}$"))
