"""Cross-entropy with weight decay and classes of any sizes: free features, or ReLU features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.models import losses
from fastnc.models.layer_peeled import Gradients, Optimum, Unequal, UnknownOptimum, factors

Array = NDArray[Any]


class _Decayed(Unequal):
    weight_decay_W: float
    weight_decay_H: float

    def _check(self) -> None:
        self._set_up_unequal()
        self._set_weight_decay(self.weight_decay_W, self.weight_decay_H)

    def value_and_grads(self, W: Array, H: Array, bias: Array | None) -> Gradients:
        g = losses.cross_entropy(W, H, self.y)
        return losses.penalised(g, W, H, self.weight_decay_W, self.weight_decay_H)


@dataclass(frozen=True)
class Imbalanced(_Decayed):
    """Cross-entropy with weight decay, any class sizes, Fang et al. (2021); Hong & Ling (2023).

    `min (1/N) sum_i CE(W h_i, y_i) + lW/2 |W|^2 + lH/2 |H|^2`

    The optimum is that of a convex program over the class logits (`fastnc.models.convex`), solved
    here and certified by its duality gap. Minority collapse: classes of size n_k have one common
    classifier, and features that do not separate them, exactly if
    `sqrt(n_k) <= N sqrt(lW lH)` (see `collapsed`).

    Parameters
    ----------
    class_sizes : sequence of int >= 1
    dim : int
        The optimum is known for every d that is at least its rank, which is at most K - 1.
    weight_decay_W, weight_decay_H : float > 0
    """

    class_sizes: tuple[int, ...]
    dim: int
    weight_decay_W: float
    weight_decay_H: float

    paper = "Fang et al. [9], Hong & Ling (2023)"
    landscape = "no spurious local minimum for d >= K"

    def __post_init__(self) -> None:
        self._check()

    @property
    def collapsed(self) -> NDArray[np.bool_]:
        """Which classes (K,) have `sqrt(n_k) <= N sqrt(lW lH)`.

        At an optimum where such classes of one size share their logits, the gradient along
        the directions that separate them has the singular value sqrt(n_k)/N, and the nuclear
        norm keeps those directions at zero while that is at most sqrt(lW lH).
        """
        mu = self.modulus
        return np.asarray(np.sqrt(self.counts) <= self.n_samples * mu)

    def optimum(self) -> Optimum:
        """The certified optimum of the convex program.

        `certificate` is its duality gap relative to the value. Raises `UnknownOptimum` if its
        rank is above `dim`, or if the gap shows no three digits of the value, as for decays below
        1e-150. Cost: seconds at K = 100.
        """
        from fastnc.models.convex import check_certified, imbalanced_cross_entropy

        mu = self.modulus
        X, value, gap = imbalanced_cross_entropy(self.counts, mu)
        names = ("weight_decay_W", "weight_decay_H")
        check_certified(value, gap, {name: getattr(self, name) for name in names})
        W, means = factors(X, self.counts, self.dim, self.weight_decay_H / self.weight_decay_W)
        return Optimum(
            value, W, means, self.y, None, "convex program, duality gap", gap / abs(value)
        )


@dataclass(frozen=True)
class ReLUFeatures(_Decayed):
    """Cross-entropy with weight decay and features that are not negative, Dang et al. (2024).

    `min (1/N) sum_i CE(W h_i, y_i) + lW/2 |W|^2 + lH/2 |H|^2  subject to  H >= 0`

    Each class takes a direction of its own, with the logit gap
    `M_k = max(0, log((K-1) (sqrt(n_k) / (N sqrt(lW lH (K-1)/K)) - 1)))`, and the value is
    `sum_k (n_k/N) log(1 + (K-1) e^(-M_k)) + sqrt(lW lH n_k (K-1)/K) M_k`: class means are
    orthogonal, a class with M_k = 0 has mean 0. Known for d >= the number of the others. That
    it is the global optimum follows from the dual: the columns of the gradient then have
    no positive scalar products, so that no non-negative mixture of classes lowers the objective.

    Parameters
    ----------
    class_sizes : sequence of int >= 1
    dim : int
    weight_decay_W, weight_decay_H : float > 0
    """

    class_sizes: tuple[int, ...]
    dim: int
    weight_decay_W: float
    weight_decay_H: float

    paper = "Dang et al. (2024)"
    landscape = "many local minima: classes that share a direction, classes given up too early"
    non_negative = True
    starts = 64

    def __post_init__(self) -> None:
        self._check()

    def retract(self, W: Array, H: Array) -> tuple[Array, Array]:
        return W, np.maximum(H, 0)

    def violation(self, W: Array, H: Array) -> float:
        return max(0.0, -float(H.min()))

    def optimum(self) -> Optimum:
        """The closed form above, if `dim` is at least the number of classes with M_k > 0."""
        K, N, n = self.n_classes, self.n_samples, self.counts
        mu = self.modulus
        room = np.maximum(np.sqrt(n) / (N * mu * np.sqrt((K - 1) / K)) - 1.0, 0.0)
        M = np.log(np.maximum((K - 1) * room, 1.0))
        kept = np.flatnonzero(M)
        if len(kept) > self.dim:
            raise UnknownOptimum(
                f"no optimum is known for `dim`={self.dim}: {len(kept)} classes each take a "
                f"direction of their own. Use `dim` >= {len(kept)}."
            )
        value = (n / N) @ np.log1p((K - 1) * np.exp(-M)) + mu * np.sqrt(n * (K - 1) / K) @ M
        # w_j in the direction of class k is t (1 - 1/K) for j = k and -t/K else; h_k is u there.
        penalty = np.sqrt((K - 1) / (K * n))
        ratio = np.sqrt(self.weight_decay_H / self.weight_decay_W)
        W, means = np.zeros((K, self.dim)), np.zeros((K, self.dim))
        for place, k in enumerate(kept):
            u = np.sqrt(M[k] * penalty[k] / ratio)
            means[k, place] = u
            W[:, place] = -M[k] / u / K
            W[k, place] += M[k] / u
        source = "closed form: orthogonal directions"
        return Optimum(float(value), W, means, self.y, None, source)
