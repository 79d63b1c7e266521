"""Spectral descent: every singular direction of a gradient moves by the same length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastnc._core import arrays
from fastnc.dynamics.rules.rule import Array, Arrays, BuiltIn


@dataclass(frozen=True)
class SpectralDescent(BuiltIn):
    """`X -= lr (U V^T + weight_decay X)` for each factor, `grad_X L = U S V^T`.

    Steepest descent in the operator norm: Muon without momentum, with the polar factor itself
    instead of a polynomial. Its direction tends to a maximum of the margin in that norm
    (`margin_ratio_spectral`). A singular value that is the rounding of 0 counts as 0: one below
    1e-12 of the largest, or `8 eps sqrt(r)` of it if that is more, with the gradient's eps and the
    r singular values it has. The step is no continuous function of the gradient: the rounding in
    small singular directions grows, and may leave a saddle that exact arithmetic stays at. The
    step of a bias is its gradient over the norm.
    """

    lr: Any = 1e-2
    weight_decay: float = 0.0
    scale_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        arrays.keep_checked(self, arrays.check_at_least_zero, "weight_decay")

    def update(
        self, factors: Arrays, gradients: Arrays, state: dict[str, Array], rates: Arrays, step: int
    ) -> Arrays:
        """`-lr U V^T`."""
        return tuple(
            (-lr * (polar_factor(g) + self.weight_decay * x)).astype(x.dtype, copy=False)
            for lr, g, x in zip(rates, gradients, factors, strict=True)
        )


def polar_factor(g: Array) -> Array:
    """`U V^T` of the thin SVD `g = U S V^T`, in float64, of singular values that are not rounding.

    Rows with relative errors of 8 eps have singular values of `8 eps |g|_F <= 8 eps sqrt(r) s_1`.
    """
    matrix = np.atleast_2d(np.asarray(g, dtype=np.float64))
    if not np.isfinite(matrix).all():
        return np.full(g.shape, np.nan)
    U, s, Vt = np.linalg.svd(matrix, full_matrices=False)
    eps = np.finfo(g.dtype).eps if g.dtype.kind == "f" else 0.0
    some = s > max(1e-12, 8.0 * float(eps) * math.sqrt(len(s))) * s[0]
    return np.asarray((U[:, some] @ Vt[some]).reshape(g.shape))
