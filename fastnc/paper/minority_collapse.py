"""Minority collapse: the angle between the small classes' classifiers, and where it must vanish."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import check_count, check_positive
from fastnc._core.results import listed
from fastnc.models import imbalanced
from fastnc.models.solve import solve

Floats = NDArray[np.float64]


class MinorityAngles(NamedTuple):
    """Angles in degrees at each imbalance ratio, as found and as certified, and the threshold."""

    ratios: NDArray[np.int64]
    found: Floats
    certified: Floats
    threshold: float
    weight_decay: float
    n_classes: int
    n_minority: int


def minority_angles(
    ratios: Iterable[int],
    n_classes: int = 10,
    n_minority: int = 10,
    weight_decay: float = 5e-3,
    seed: int = 0,
) -> MinorityAngles:
    """The angle between two minority classifiers for each ratio of the class sizes.

    Half of the classes (rounded up, at least two) have `n_minority` samples, the others
    `ratio * n_minority`; the model is cross-entropy with the one weight decay on W and H
    (Fang et al., 2021; Hong & Ling, 2023). Their classifiers coincide exactly from
    `sqrt(n_minority) = N weight_decay` on, see `models.imbalanced`.

    Parameters
    ----------
    ratios : integers >= 1
    n_classes : int, K >= 3
    n_minority : int >= 1
    weight_decay : float > 0
    seed : int >= 0, of `solve`

    Returns
    -------
    MinorityAngles
        `found` by `solve`, `certified` at the optimum of the convex program.

    Notes
    -----
    Cost: one `solve` and one convex program a ratio.

    Examples
    --------
    >>> from fastnc.paper.minority_collapse import minority_angles
    >>> angles = minority_angles([1, 40], n_classes=4, weight_decay=5e-3)
    >>> [round(float(a)) for a in angles.certified]
    [109, 0]
    """
    K = check_count("n_classes", n_classes, 3)
    n = check_count("n_minority", n_minority, 1)
    weight_decay = check_positive("weight_decay", weight_decay)
    several = listed(ratios)
    if several is None:
        raise TypeError(f"`ratios` must be a sequence of integers; got {type(ratios).__name__}.")
    seed = check_count("seed", seed, 0)
    given = np.array([check_count("ratios", ratio, 1) for ratio in several], dtype=np.int64)
    minorities = max(2, (K + 1) // 2)
    found, certified = np.empty(len(given)), np.empty(len(given))
    for i, ratio in enumerate(given.tolist()):
        sizes = (ratio * n,) * (K - minorities) + (n,) * minorities
        solution = solve(imbalanced(sizes, K, weight_decay, weight_decay), seed)
        found[i] = _angle(solution.W)
        certified[i] = np.nan if solution.optimum is None else _angle(solution.optimum.W)
    samples = 1.0 / weight_decay * np.sqrt(n)
    threshold = (samples / n - minorities) / (K - minorities)
    return MinorityAngles(given, found, certified, float(threshold), float(weight_decay), K, n)


def _angle(W: Floats) -> float:
    """Degrees between the last two rows; 0 where both vanish, since they are then equal."""
    lengths = np.linalg.norm(W, axis=1)
    # Where the penalty makes them 0, the solver leaves rows of the size of its accuracy.
    if lengths[-2:].min() <= 1e-4 * lengths.max():
        return 0.0
    u, v = W[-2:] / lengths[-2:, None]
    # The arc cosine would turn rounding of 1e-16 into 1e-8.
    return float(np.degrees(2.0 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))))
