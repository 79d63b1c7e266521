"""The loss on a sphere: its least value, a minimiser, and great circles (Theorem 3.3)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc.objective import Reduction
from fastnc.reference import simplex_etf

Floats = NDArray[np.float64]


# A direction in float32 is one to some 1e-6.
_NOT_TANGENT = 1e-3


def along_sphere(W: Any, H: Any, dW: Any, dH: Any, angle: float) -> tuple[Any, Any]:
    """The point at `angle` (radians) from (W, H) on the great circle in the direction (dW, dH).

    `theta cos(angle) + |theta| sin(angle) d` with d of norm 1 and tangent, as from
    `tangent_curvature`: the norm is kept, which a straight tangent step (13) does not do.

    Raises
    ------
    ValueError
        The direction is not of norm 1, or not tangent, to 1e-3.
    """
    arrays.check_matrix("W", W, (None, None))
    arrays.check_matrix("H", H, (None, W.shape[1]))
    for name, x, of in (("dW", dW, W), ("dH", dH, H)):
        arrays.check_matrix(name, x, tuple(of.shape))
    if len({arrays.is_torch(x) for x in (W, H, dW, dH)}) > 1:
        raise TypeError("`W`, `H`, `dW`, `dH` must be all arrays or all tensors; got both.")
    angle = arrays.check_finite_number("angle", angle)
    radius = math.sqrt(float((W**2).sum() + (H**2).sum()))
    length = math.sqrt(float((dW**2).sum() + (dH**2).sum()))
    cosine = float((W * dW).sum() + (H * dH).sum()) / (radius * length or 1.0)
    if abs(length - 1.0) > _NOT_TANGENT or abs(cosine) > _NOT_TANGENT:
        raise ValueError(
            "`dW` and `dH` must be a direction of norm 1 at a right angle to (W, H), as from "
            f"`tangent_curvature`; got norm {length:.6g} and cosine {cosine:.3g}."
        )
    c, s = math.cos(angle), radius * math.sin(angle)
    return c * W + s * dW, c * H + s * dH


def optimal_loss(
    radius: float, n_classes: int, n_per_class: int, reduction: Reduction = "mean"
) -> float:
    """Theorem 3.3 in closed form: the least loss (4) with `|W|^2 + |H|^2 = radius^2`.

    `N log(1 + (K-1) exp(-radius^2 / (2 (K-1) sqrt n)))` for the sum; needs `d >= K-1`.
    """
    radius = arrays.check_at_least_zero("radius", radius)
    arrays.check_choice("reduction", reduction, ("mean", "sum"))
    K = arrays.check_count("n_classes", n_classes, 2)
    n = arrays.check_count("n_per_class", n_per_class, 1)
    # Products of floats overflow to infinity, powers to an error.
    one = math.log1p((K - 1) * math.exp(-radius * radius / (2.0 * (K - 1) * math.sqrt(n))))
    return one if reduction == "mean" else n * K * one


def collapsed(
    radius: float, n_classes: int, n_per_class: int, dim: int
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """A minimiser of Theorem 3.3: W, H, y at neural collapse, |W| = |H|, `d >= K-1`."""
    radius = arrays.check_at_least_zero("radius", radius)
    K = arrays.check_count("n_classes", n_classes, 2)
    n = arrays.check_count("n_per_class", n_per_class, 1)
    if arrays.check_count("dim", dim, 1) < K - 1:
        raise ValueError(f"`dim` must be at least n_classes - 1 = {K - 1}; got {dim}.")
    left, values, _ = np.linalg.svd(simplex_etf(K))
    etf = np.zeros((K, dim))
    etf[:, : K - 1] = left[:, : K - 1] * values[: K - 1]
    W = radius / math.sqrt(2.0 * K) * etf
    return W, np.repeat(W / math.sqrt(n), n, axis=0), np.repeat(np.arange(K), n)
