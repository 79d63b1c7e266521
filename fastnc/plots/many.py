"""Many settings in one figure: a colour each, and a bar of these colours that names them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastnc.dynamics.trajectories import arguments

# The end of the map is too light on white.
_LIGHTEST = 0.92
# At most so many names stand beside the bar, of at most so many letters.
_MOST_NAMES, _LONGEST = 24, 48


def apart(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """What tells each setting from the others, and what all have in common.

    Of a model or a rule that all have, the named arguments that differ are told alone.
    """
    parts = [_parts(as_text(name)) for name in names]
    shared = [p for p in parts[0] if all(p in other for other in parts)] if len(parts) > 1 else []
    calls = set.intersection(*({call for call, _ in of} for of in parts))
    labels = []
    for of in parts:
        own = [p for p in of if p not in shared]
        label = _joined(own, calls) if own else _joined(of, set())
        labels.append(as_text(label) if label[0] == "_" else label)
    return labels, [_joined(shared, set())] if shared else []


def _parts(setting: str) -> list[tuple[str, str]]:
    """The parts of a setting, as ("", "K=4"), and arguments of its calls, as ("Adam", "0.1")."""
    found: list[tuple[str, str]] = []
    for part in arguments(setting):
        call = re.fullmatch(r"([\w.<>]+)\((.*)\)", part, re.DOTALL)
        found += [(call[1], x) for x in arguments(call[2])] if call else [("", part)]
    return found


def _joined(parts: Sequence[tuple[str, str]], known: set[str]) -> str:
    """The text of some parts; named arguments of calls that are known stand alone."""
    said = []
    for call, group in groupby(parts, itemgetter(0)):
        inside = [argument for _, argument in group]
        alone = not call or (call in known and all("=" in argument for argument in inside))
        text = ", ".join(inside)
        said.append(text if alone else f"{call}({text})")
    return ", ".join(said)


def as_text(name: str) -> str:
    """A name as it is read: matplotlib takes `$` for formulas, and leaves out `_names`."""
    plain = str(name).replace("$", r"\$")
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
