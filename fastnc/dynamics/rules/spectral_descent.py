"""Spectral descent: every singular direction of a gradient moves by the same length."""

from __future__ import annotations

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
    (`margin_ratio_spectral`). Singular values below 1e-12 of the largest count as 0. The step of a
    bias is its gradient over the norm.
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
    """`U V^T` of the thin SVD `g = U S V^T`, in float64, of singular values above 1e-12 s_1."""
    matrix = np.atleast_2d(np.asarray(g, dtype=np.float64))
    if not np.isfinite(matrix).all():
        return np.full(g.shape, np.nan)
    U, s, Vt = np.linalg.svd(matrix, full_matrices=False)
    some = s > 1e-12 * s[0]
    return np.asarray((U[:, some] @ Vt[some]).reshape(g.shape))
