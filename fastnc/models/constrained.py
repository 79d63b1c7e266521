"""Cross-entropy on a constraint: on a sphere, with bounded energies, with unit vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import check_choice, check_count, check_positive, keep_checked
from fastnc.models import losses
from fastnc.models.layer_peeled import (
    Balanced,
    Gradients,
    Optimum,
    checked_sizes,
    factors,
    frame,
    require_etf,
)

Array = NDArray[Any]


def _scaled(x: Array, norm: float, axis: int | None = None) -> Array:
    """`x`, or each of its rows (axis 1), at the given norm."""
    return x * (norm / np.linalg.norm(x, axis=axis, keepdims=True))  # type: ignore[no-any-return]


def _pulled(x: Array, norm: float, grad: Array, axis: int | None = None) -> Array:
    """The gradient at x of `F(_scaled(x))`, from that of F: its tangent part, rescaled."""
    length = np.linalg.norm(x, axis=axis, keepdims=True)
    unit = x / length
    radial = (grad * unit).sum(axis=axis, keepdims=True)
    return (norm / length) * (grad - radial * unit)  # type: ignore[no-any-return]


class Constrained(Balanced):
    """The mean cross-entropy of `scale` times the logits; each model has its own constraint."""

    scale = 1.0
    source = "closed form: simplex ETF"

    def norms(self) -> tuple[float, float]:
        """Frobenius norms of W and H at the optimum."""
        raise NotImplementedError

    @property
    def etf_gap(self) -> float:
        """The label's logit minus the others at a simplex ETF of these norms."""
        norm_W, norm_H = self.norms()
        n = self.n_samples / self.n_classes
        return self.scale * norm_W * norm_H / math.sqrt(n) / (self.n_classes - 1)

    def value_and_grads(self, W: Array, H: Array, bias: Array | None) -> Gradients:
        g = losses.cross_entropy(self.scale * W, H, self.y)
        return Gradients(g.value, self.scale * g.W, g.H, None)

    def log_value_and_grads(self, W: Array, H: Array) -> Gradients:
        """The logarithm of the objective and its gradients: relative accuracy at any margin."""
        g = losses.log_cross_entropy(self.scale * W, H, self.y)
        return Gradients(g.value, self.scale * g.W, g.H, None)

    def optimum(self) -> Optimum:
        """The simplex ETF of the class's docstring; d >= K - 1."""
        require_etf(self.n_classes, self.dim)
        K, n = self.n_classes, int(self.counts[0])
        E = frame(K, self.dim) / np.sqrt(K - 1)
        (norm_W, norm_H), gap = self.norms(), self.etf_gap
        wrong = (K - 1) * np.exp(-gap)
        return Optimum(
            value=float(np.log1p(wrong)),
            W=norm_W * E,
            means=norm_H / np.sqrt(n) * E,
            y=self.y,
            source=self.source,
            # log(log1p(x)) is log x once x is below the rounding of 1.
            log_value=float(np.log(np.log1p(wrong)) if gap < 100.0 else np.log(K - 1) - gap),
        )


@dataclass(frozen=True)
class Sphere(Constrained):
    """The unconstrained layer-peeled model on a sphere, Theorem 3.3 of this paper.

    `min (1/N) sum_i CE(W h_i, y_i)  subject to  |W|^2 + |H|^2 = radius^2`

    For d >= K - 1 the optimum is `log(1 + (K-1) exp(-radius^2 / (2 (K-1) sqrt n)))`, at a
    simplex ETF, for every radius.

    Parameters
    ----------
    n_classes, n_per_class, dim : int
    radius : float > 0
    """

    n_classes: int
    n_per_class: int
    dim: int
    radius: float

    paper = "this paper, Theorem 3.3"
    landscape = "no spurious local minimum on the sphere, Theorem 3.4"
    source = "closed form: Theorem 3.3"

    def __post_init__(self) -> None:
        self._set_up_balanced()
        keep_checked(self, check_positive, "radius")

    def norms(self) -> tuple[float, float]:
        return self.radius / 2.0**0.5, self.radius / 2.0**0.5

    def retract(self, W: Array, H: Array) -> tuple[Array, Array]:
        scale = self.radius / np.hypot(np.linalg.norm(W), np.linalg.norm(H))
        return W * scale, H * scale

    def pullback(self, W: Array, H: Array, grad_W: Array, grad_H: Array) -> tuple[Array, Array]:
        norm = np.hypot(np.linalg.norm(W), np.linalg.norm(H))
        radial = (np.vdot(W, grad_W) + np.vdot(H, grad_H)) / norm**2
        scale = self.radius / norm
        return scale * (grad_W - radial * W), scale * (grad_H - radial * H)

    def violation(self, W: Array, H: Array) -> float:
        return float(abs(np.hypot(np.linalg.norm(W), np.linalg.norm(H)) / self.radius - 1.0))


@dataclass(frozen=True)
class NormConstrained(Constrained):
    """The norm-constrained layer-peeled model, Fang et al. (2021), [9] of Table 1.

    `min (1/N) sum_i CE(W h_i, y_i)  subject to  (1/K) sum_k |w_k|^2 <= energy_W,
    (1/K) sum_k (1/n_k) sum_{y_i = k} |h_i|^2 <= energy_H`

    For d >= K - 1 and equal class sizes the optimum is
    `log(1 + (K-1) exp(-K/(K-1) sqrt(energy_W energy_H)))`, at a simplex ETF; for unequal ones it
    is that of a convex program over the class logits, certified by its duality gap. Both
    constraints are active there, so runs and solvers stay on the boundary.

    Parameters
    ----------
    n_classes : int
    n_per_class : int, or None where `class_sizes` are given
    dim : int
    energy_W, energy_H : float > 0
    class_sizes : sequence of K int >= 1, optional
    average : "class" or "sample"
        Whether the energy of H is averaged over classes, as above, or over samples,
        `(1/N) sum_i |h_i|^2`; the same for equal sizes.
    """

    n_classes: int
    n_per_class: int | None  # type: ignore[assignment]
    dim: int
    energy_W: float
    energy_H: float
    class_sizes: tuple[int, ...] | None = None  # type: ignore[assignment]
    average: str = "class"

    paper = "Fang et al. [9]"
    landscape = "not convex, but few starts are needed"

    def __post_init__(self) -> None:
        if (self.n_per_class is None) == (self.class_sizes is None):
            raise ValueError(
                "exactly one of `n_per_class` and `class_sizes` must be given; got "
                f"n_per_class={self.n_per_class!r} and class_sizes={self.class_sizes!r}."
            )
        if self.class_sizes is None:
            self._set_up_balanced()
        else:
            keep_checked(self, check_count, "n_classes", least=2)
            K = self.n_classes
            sizes = checked_sizes(self.class_sizes)
            if len(sizes) != K:
                raise ValueError(f"`class_sizes` must list {K} classes; got {len(sizes)}.")
            object.__setattr__(self, "class_sizes", sizes)
            self._set_up(np.array(sizes, dtype=np.int64))
        check_choice("average", self.average, ("class", "sample"))
        keep_checked(self, check_positive, "energy_W", "energy_H")
        # The weight of each class's sum of |h_i|^2 in the energy; 1 / N for equal sizes.
        share = self.counts * self.n_classes if self.average == "class" else self.n_samples
        object.__setattr__(self, "_share", np.broadcast_to(1.0 / share, self.counts.shape))

    def norms(self) -> tuple[float, float]:
        return (
            float(np.sqrt(self.n_classes * self.energy_W)),
            float(np.sqrt(self.n_samples * self.energy_H)),
        )

    def _weights(self, H: Array) -> Array:
        """The weight of |h_i|^2 in the energy (N, 1), in the precision of H."""
        share: Array = self._share  # type: ignore[attr-defined]
        return share[self.y].astype(H.dtype)[:, None]

    def _energy(self, H: Array) -> float:
        return float((self._weights(H) * H * H).sum())

    def retract(self, W: Array, H: Array) -> tuple[Array, Array]:
        energy = self._energy(H)
        # A zero H has no direction: NaN, which the callers report.
        factor = float(np.sqrt(self.energy_H / energy)) if energy > 0.0 else np.nan
        return _scaled(W, self.norms()[0]), H * factor

    def pullback(self, W: Array, H: Array, grad_W: Array, grad_H: Array) -> tuple[Array, Array]:
        energy = self._energy(H)
        radial = float(np.vdot(H, grad_H)) / energy
        tangent = float(np.sqrt(self.energy_H / energy)) * (grad_H - radial * self._weights(H) * H)
        return _pulled(W, self.norms()[0], grad_W), tangent

    def violation(self, W: Array, H: Array) -> float:
        excess_W = float(np.linalg.norm(W)) / self.norms()[0] - 1.0
        return max(0.0, excess_W, float(np.sqrt(self._energy(H) / self.energy_H)) - 1.0)

    def optimum(self) -> Optimum:
        """The simplex ETF for equal sizes, else the certified optimum of the convex program.

        Raises `UnknownOptimum` if its duality gap shows no three digits of the value, as for
        energies below 1e-8, or so large that the loss is below 1e-150.
        """
        if (self.counts == self.counts[0]).all():
            return super().optimum()
        from fastnc.models.convex import bounded_cross_entropy, check_certified

        per_class = self.counts * self._share  # type: ignore[attr-defined]
        root = np.sqrt(per_class * self.n_samples)
        # Their product may leave the range of floats where its root does not.
        of_W, of_H = self.norms()
        bound = of_W * of_H
        X, value, gap = bounded_cross_entropy(self.counts, root, bound)
        names = ("energy_W", "energy_H")
        check_certified(value, gap, {name: getattr(self, name) for name in names})
        ratio = (of_W / of_H) ** 2
        W, means = factors(X, root**2, self.dim, ratio)
        return Optimum(value, W, means, self.y, None, "convex program, duality gap", gap / value)


@dataclass(frozen=True)
class Normalized(Constrained):
    """Unit classifiers and unit features, Lu & Steinerberger (2022), Wojtowytsch & E (2021).

    `min (1/N) sum_i CE(temperature * W h_i, y_i)  subject to  |w_k| = |h_i| = 1`

    The rows [24] and [39] of Table 1. For d >= K - 1 the optimum is
    `log(1 + (K-1) exp(-temperature K/(K-1)))`, at a simplex ETF.

    Parameters
    ----------
    n_classes, n_per_class, dim : int
        dim >= 2: unit vectors in one dimension are only +1 and -1.
    temperature : float > 0
        The factor of the cosines.
    """

    n_classes: int
    n_per_class: int
    dim: int
    temperature: float

    paper = "Lu & Steinerberger [24], Wojtowytsch & E [39]"
    landscape = "local minima at high temperature, where classes block each other's way"
    starts = 16

    def __post_init__(self) -> None:
        self._set_up_balanced()
        keep_checked(self, check_positive, "temperature")
        if self.dim < 2:
            raise ValueError(
                f"`dim` must be at least 2; got {self.dim}. Unit vectors in one dimension are "
                "only +1 and -1: there is nothing to optimise."
            )
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "scale", self.temperature)

    def norms(self) -> tuple[float, float]:
        return self.n_classes**0.5, self.n_samples**0.5

    def retract(self, W: Array, H: Array) -> tuple[Array, Array]:
        return _scaled(W, 1.0, 1), _scaled(H, 1.0, 1)

    def pullback(self, W: Array, H: Array, grad_W: Array, grad_H: Array) -> tuple[Array, Array]:
        return _pulled(W, 1.0, grad_W, 1), _pulled(H, 1.0, grad_H, 1)

    def violation(self, W: Array, H: Array) -> float:
        return max(float(np.abs(np.linalg.norm(x, axis=1) - 1.0).max()) for x in (W, H))
