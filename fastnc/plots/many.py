"""Many settings in one figure: a colour each, and a bar of these colours that names them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

# The end of the map is too light on white.
_LIGHTEST = 0.92
# At most so many names stand beside the bar, of at most so many letters.
_MOST_NAMES, _LONGEST = 24, 48


def apart(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """What tells each setting from the others, and what all have in common."""
    parts = [as_text(name).split(", ") for name in names]
    shared = [p for p in parts[0] if all(p in other for other in parts)] if len(parts) > 1 else []
    own = (", ".join(p for p in of if p not in shared) or ", ".join(of) for of in parts)
    return [as_text(label) if label[0] == "_" else label for label in own], shared


def as_text(name: str) -> str:
    """A name as it is read: matplotlib takes `$` for formulas, and leaves out `_names`."""
    plain = name.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def colours(n: int) -> NDArray[np.float64]:
    """`n` colours (n, 4) along a map that is read in grey too, the first one dark."""
    return np.asarray(colormaps["viridis"](np.linspace(0.0, _LIGHTEST, n)))


def name_bar(figure: Figure, panels: Sequence[Axes], labels: Sequence[str]) -> None:
    """A bar beside the panels: the colours from the first setting below to the last above.

    Of more settings than there is room for every second, third, ... is named.
    """
    n = len(labels)
    mapped = ScalarMappable(BoundaryNorm(np.arange(n + 1) - 0.5, n), ListedColormap(colours(n)))
    bar = figure.colorbar(mapped, ax=list(panels), fraction=0.02, pad=0.01, aspect=30)
    ticks = range(0, n, -(-n // _MOST_NAMES))
    shown = [labels[i] for i in ticks]
    shown = [s if len(s) <= _LONGEST else f"{s[: _LONGEST - 3]}..." for s in shown]
    bar.set_ticks(list(ticks), labels=shown, fontsize=7)
    bar.ax.tick_params(which="both", length=0)
    bar.ax.minorticks_off()
