"""The minimum-norm separation problem (5), for equal or unequal class sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.models.layer_peeled import (
    Balanced,
    Gradients,
    LayerPeeled,
    Optimum,
    Unequal,
    UnknownOptimum,
    factors,
    require_etf,
)

Array = NDArray[Any]


class MinimumNorm(LayerPeeled):
    """`min 1/2 (|W|^2 + |H|^2)  subject to  <w_{y_i} - w_j, h_i> >= 1`, for any class sizes."""

    landscape = "KKT points that are not optimal exist (Example 3.1)"
    starts = 16

    def _check(self) -> None:
        if self.dim == 1 and self.n_classes > 2:
            raise ValueError(
                f"`dim` must be at least 2 for {self.n_classes} classes; got 1. On a line only the "
                "classes at the two ends can be separated: the constraints are infeasible."
            )

    def value_and_grads(self, W: Array, H: Array, bias: Array | None) -> Gradients:
        value = 0.5 * float(np.vdot(W, W)) + 0.5 * float(np.vdot(H, H))
        return Gradients(value, W.copy(), H.copy(), None)

    def margin(self, W: Array, H: Array) -> float:
        """q_min, the smallest margin."""
        Z = H @ W.T
        rows = np.arange(len(H))
        own = Z[rows, self.y].copy()
        Z[rows, self.y] = -np.inf
        return float((own - Z.max(axis=1)).min())

    def violation(self, W: Array, H: Array) -> float:
        return max(0.0, 1.0 - self.margin(W, H))

    def optimum(self) -> Optimum:
        """SELI, once the signs of its multipliers have been checked; d >= K - 1."""
        require_etf(self.n_classes, self.dim)
        root = np.sqrt(self.counts)
        X = np.diag(root) - root / self.n_classes
        V, L, Ut = np.linalg.svd(X)
        # V U^T in the nuclear norm's subgradient: its entries off the diagonal are minus the
        # multipliers of the constraints, divided by sqrt(n_k).
        dual = V[:, :-1] @ Ut[:-1]
        worst = float((dual - np.diag(np.diag(dual))).max())
        if worst > 1e-10:
            raise UnknownOptimum(
                f"for these `class_sizes` a multiplier of the SELI geometry is negative "
                f"({-worst:.3g}): it is not the optimum, and no other closed form is known."
            )
        W, means = factors(X, self.counts, self.dim, 1.0)
        return Optimum(float(L.sum()), W, means, self.y, None, "closed form: SELI")


@dataclass(frozen=True)
class Separation(Balanced, MinimumNorm):
    """The minimum-norm separation problem, equation (5) of this paper.

    `min 1/2 (|W|^2 + |H|^2)  subject to  <w_{y_i} - w_j, h_i> >= 1 for all i and j != y_i`

    Gradient flow on the ULPM converges in direction to one of its KKT points. For d >= K - 1
    the optimum is a simplex ETF of value `sqrt(n) (K - 1)`.

    Parameters
    ----------
    n_classes, n_per_class : int
    dim : int
        At least 2, or 1 for two classes: otherwise no W and H satisfy the constraints.
    """

    n_classes: int
    n_per_class: int
    dim: int

    paper = "this paper, (5)"

    def __post_init__(self) -> None:
        self._set_up_balanced()
        self._check()


@dataclass(frozen=True)
class SELI(Unequal, MinimumNorm):
    """The minimum-norm separation problem with classes of any sizes, Thrampoulidis et al. (2022).

    With the SVD `(I - 11^T/K) diag(sqrt n) = V L U^T` the optimum is the nuclear norm `tr L`, at
    `W W^T = V L V^T` and means with `M M^T = diag(n)^(-1/2) U L U^T diag(n)^(-1/2)`: the
    simplex-encoded-labels interpolation. For equal class sizes it is the simplex ETF.

    Parameters
    ----------
    class_sizes : sequence of int >= 1
    dim : int
        At least 2, or 1 for two classes: otherwise no W and H satisfy the constraints.
    """

    class_sizes: tuple[int, ...]
    dim: int

    paper = "Thrampoulidis et al. (2022)"

    def __post_init__(self) -> None:
        self._set_up_unequal()
        self._check()
