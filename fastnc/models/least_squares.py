"""Squared error with weight decay, for equal or unequal class sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.models import losses
from fastnc.models.layer_peeled import (
    Balanced,
    Floats,
    Gradients,
    LayerPeeled,
    Optimum,
    Unequal,
    factors,
)


class _LeastSquares(LayerPeeled):
    weight_decay_W: float
    weight_decay_H: float
    bias: bool
    landscape = "no spurious local minimum: a penalised matrix factorisation"

    def _check(self) -> None:
        self._set_weight_decay(self.weight_decay_W, self.weight_decay_H)
        self._set_bias(self.bias)

    def value_and_grads(
        self, W: NDArray[Any], H: NDArray[Any], bias: NDArray[Any] | None
    ) -> Gradients:
        g = losses.squared_error(W, H, self.y, bias)
        return losses.penalised(g, W, H, self.weight_decay_W, self.weight_decay_H)

    def _truncated(self) -> tuple[Floats, float]:
        """The optimal class logits times sqrt(n_k), and the value: a soft-thresholded SVD.

        The target is `diag(sqrt n_k)`, with a free bias times the projector that centres over
        samples. Loss and penalty depend on singular values alone, so by von Neumann's trace
        inequality the optimum keeps the target's singular vectors, at most d of them.
        """
        N, d = self.n_samples, self.dim
        mu = self.modulus
        root = np.sqrt(self.counts)
        T = np.diag(root)
        if self.bias:
            T = T - np.outer(self.counts, root) / N
        A, sigma, Bt = np.linalg.svd(T)
        kept = np.where(np.arange(len(sigma)) < d, np.maximum(sigma - N * mu, 0.0), 0.0)
        value = float((((kept - sigma) ** 2) / (2 * N) + mu * kept).sum())
        return (A * kept) @ Bt, value

    def _optimum(self, value: float, X: Floats) -> Optimum:
        ratio = self.weight_decay_H / self.weight_decay_W
        W, means = factors(X, self.counts, self.dim, ratio)
        bias = self.counts / self.n_samples if self.bias else None
        kind = "orthogonal frame" if not self.bias else "centred frame"
        return Optimum(value, W, means, self.y, bias, f"closed form: thresholded {kind}")


@dataclass(frozen=True)
class SquaredError(Balanced, _LeastSquares):
    """Squared error with weight decay, Mixon et al. (2020), [26] of Table 1; Tirer & Bruna (2022).

    `min (1/(2N)) sum_i |W h_i + b - e_{y_i}|^2 + lW/2 |W|^2 + lH/2 |H|^2`

    With `c = sqrt(n lW lH)` and `s = max(0, 1 - Kc)` the class means' logits are `s I` without a
    bias (an orthogonal frame, d >= K) and `s (I - 11^T/K)` with one (a simplex ETF, d >= K - 1,
    b = 1/K). The value is `r (c - K c^2/2)`, or `r / (2K)` where s = 0, with r = K without a bias
    and r = K - 1 with one. In a smaller dimension d the optimum keeps d of the r directions, and
    the others cost 1/(2K) each.
    Of decays below 1e-25 the value is exact, but no W and H of float64 have it: the square of a
    product's rounding, 1e-32, is of its size.

    Parameters
    ----------
    n_classes, n_per_class, dim : int
    weight_decay_W, weight_decay_H : float > 0
    bias : bool
        Whether there is a free bias, without a penalty.
    """

    n_classes: int
    n_per_class: int
    dim: int
    weight_decay_W: float
    weight_decay_H: float
    bias: bool = False

    paper = "Mixon et al. [26], Tirer & Bruna"

    def __post_init__(self) -> None:
        self._set_up_balanced()
        self._check()

    def optimum(self) -> Optimum:
        """The closed form above, in every dimension."""
        K = self.n_classes
        c = min(np.sqrt(self.n_per_class) * self.modulus, 1.0 / K)
        r = K - 1 if self.bias else K
        kept = min(r, self.dim)
        value = kept * (c - K * c * c / 2) + (r - kept) / (2 * K)
        return self._optimum(float(value), self._truncated()[0])


@dataclass(frozen=True)
class ImbalancedSquaredError(Unequal, _LeastSquares):
    """Squared error with weight decay and classes of any sizes, Dang et al. (2023).

    `min (1/(2N)) sum_i |W h_i + b - e_{y_i}|^2 + lW/2 |W|^2 + lH/2 |H|^2`

    Without a bias and with `s_k = max(0, sqrt(n_k) - N sqrt(lW lH))` the optimum is an orthogonal
    frame of unequal lengths, of value `sum_k (s_k - sqrt n_k)^2/(2N) + sqrt(lW lH) s_k`; a class
    with `s_k = 0` has classifier and mean 0. With a free bias, the singular values of the centred
    target replace sqrt(n_k); in a dimension d < K, the d largest are kept.
    Of decays below 1e-25 the value is exact, but no W and H of float64 have it, as `SquaredError`.

    Parameters
    ----------
    class_sizes : sequence of int >= 1
    dim : int
    weight_decay_W, weight_decay_H : float > 0
    bias : bool
        Whether there is a free bias, without a penalty.
    """

    class_sizes: tuple[int, ...]
    dim: int
    weight_decay_W: float
    weight_decay_H: float
    bias: bool = False

    paper = "Dang et al. (2023)"

    def __post_init__(self) -> None:
        self._set_up_unequal()
        self._check()

    def optimum(self) -> Optimum:
        """The thresholded singular values above, in every dimension."""
        X, value = self._truncated()
        return self._optimum(value, X)
