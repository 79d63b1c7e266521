"""Cross-entropy with weight decay on W and H, optionally with a bias and label smoothing."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.models import losses
from fastnc.models.layer_peeled import Balanced, Gradients, Optimum, frame, require_etf


@dataclass(frozen=True)
class WeightDecay(Balanced):
    """Cross-entropy with weight decay, Zhu et al. (2021), [43] of Table 1.

    `min (1/N) sum_i CE(W h_i + b, y_i) + lW/2 |W|^2 + lH/2 |H|^2`

    With `c = sqrt(n lW lH)` the optimum is a simplex ETF, `W W^T = sqrt(lH/lW) sqrt(n) a C`,
    `C = I - 11^T/K`, with the logit gap `a = log(1/c - K + 1)` if `c < 1/K` and 0 otherwise;
    its value is `log(1 + (K-1) e^-a) + c (K-1) a`, and b is constant. With labels smoothed by alpha
    (Zhou et al., 2022) `c + alpha/K` replaces c.

    Parameters
    ----------
    n_classes, n_per_class, dim : int
        K >= 2, n >= 1, d >= 1.
    weight_decay_W, weight_decay_H : float > 0
    bias : bool
        Whether there is a free bias, without a penalty.
    label_smoothing : float in [0, 1)
        The targets are `(1 - alpha) e_y + alpha / K`.

    Examples
    --------
    >>> import fastnc
    >>> model = fastnc.models.weight_decay(4, 10, 3, 5e-3, 5e-3)
    >>> round(model.optimum().value, 6)
    0.243002
    """

    n_classes: int
    n_per_class: int
    dim: int
    weight_decay_W: float
    weight_decay_H: float
    bias: bool = False
    label_smoothing: float = 0.0

    paper = "Zhu et al. [43]"
    landscape = "no spurious local minimum for d >= K; many for d < K - 1"

    def __post_init__(self) -> None:
        self._set_up_balanced()
        self._set_weight_decay(self.weight_decay_W, self.weight_decay_H)
        self._set_bias(self.bias)
        alpha = self.label_smoothing
        if not (isinstance(alpha, Real) and 0.0 <= float(alpha) < 1.0):
            raise ValueError(f"`label_smoothing` must lie in [0, 1); got {alpha!r}.")
        object.__setattr__(self, "label_smoothing", float(alpha))

    def value_and_grads(
        self, W: NDArray[Any], H: NDArray[Any], bias: NDArray[Any] | None
    ) -> Gradients:
        g = losses.cross_entropy(W, H, self.y, bias)
        if self.label_smoothing:
            g = losses.smoothed(g, W, H, self.y, self.n_per_class, self.label_smoothing)
        return losses.penalised(g, W, H, self.weight_decay_W, self.weight_decay_H)

    def optimum(self) -> Optimum:
        """The simplex ETF above, or zero where the penalty wins; d >= K - 1 unless it does."""
        K, n = self.n_classes, self.n_per_class
        c = np.sqrt(n) * self.modulus + self.label_smoothing / K
        a = np.log1p(1.0 / c - K) if c * K < 1.0 else 0.0
        if a > 0.0:
            require_etf(K, self.dim)
        ratio = self.weight_decay_H / self.weight_decay_W
        E = frame(K, self.dim)
        return Optimum(
            value=float(np.log1p((K - 1) * np.exp(-a)) + c * (K - 1) * a),
            W=(ratio * n) ** 0.25 * np.sqrt(a) * E,
            means=(ratio * n) ** -0.25 * np.sqrt(a) * E,
            y=self.y,
            bias=np.zeros(K) if self.bias else None,
            source="closed form: simplex ETF" if a > 0.0 else "closed form: zero",
        )
