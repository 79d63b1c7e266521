"""The deep linear unconstrained features model: M linear layers on free features."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import check_at_least_zero, check_count, check_positive, float_dtype
from fastnc._core.results import listed
from fastnc.models.layer_peeled import Balanced, Floats, Optimum
from fastnc.models.lbfgs import minimise

Array = NDArray[Any]
Layers = tuple[Array, ...]


class Fitted(NamedTuple):
    """The result of one start."""

    W: Floats
    H: Floats
    layers: tuple[Floats, ...]
    value: float
    evaluations: int
    reason: str


@dataclass(frozen=True, eq=False)
class DeepOptimum(Optimum):
    """The optimum of a deep model: W is its last layer, `means` are the inputs of that.

    Attributes
    ----------
    layers : H_1 (N, d_1), W_1 (d_2, d_1), ..., W_M (K, d_M)
    """

    layers: tuple[Floats, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class DeepLinear(Balanced):
    """M linear layers on free features, squared error and weight decay, Dang et al. (2023).

    `min (1/(2N)) sum_i |W_M ... W_1 h_i - e_{y_i}|^2 + sum_l l_l/2 |W_l|^2 + l_0/2 |H_1|^2`

    Loss and penalty depend on singular values alone: of a product of M + 1 factors with singular
    value s the least penalty is `(M+1)/2 (l_0 ... l_M s^2)^(1/(M+1))`, with all `l_l sigma_l^2`
    equal. Each of the `min(K, d_1, ..., d_M)` directions that fit then minimises
    `(s - sqrt n)^2 / (2N)` plus that: at the largest root of the derivative, or at 0 where the
    penalty wins. Every layer collapses to one orthogonal frame (Sukenik et al., 2023, with ReLU).

    Along the gradient flow of equal weight decays l, `W_{l+1}^T W_{l+1} - W_l W_l^T` and
    `W_1^T W_1 - H_1^T H_1` decay as `e^(-2 l t)`: without a decay they are conserved.

    Parameters
    ----------
    n_classes, n_per_class : int
    widths : sequence of M int >= 1
        d_1, ..., d_M, the input widths of the layers; d_1 is that of the features.
        M = 1 is `squared_error` without a bias.
    weight_decays : float, or sequence of M + 1 floats
        l_0 of the features, then those of W_1, ..., W_M. All positive, or all 0.

    Examples
    --------
    >>> import fastnc
    >>> model = fastnc.models.deep_linear(4, 5, (8, 8), 1e-3)
    >>> found = fastnc.solve(model)
    >>> abs(found.gap) < 1e-8
    True
    """

    n_classes: int
    n_per_class: int
    widths: tuple[int, ...]
    weight_decays: tuple[float, ...]

    paper = "Dang et al. (2023), Sukenik et al. (2023)"
    landscape = "local minima where directions are given up: from three factors on 0 is one"
    starts = 16

    def __post_init__(self) -> None:
        layers = listed(self.widths)
        if layers is None:
            raise TypeError(f"`widths` must list the width of each layer; got {self.widths!r}.")
        if not layers:
            raise ValueError("`widths` must list at least one width; got none.")
        widths = tuple(check_count(f"widths[{i}]", d, 1) for i, d in enumerate(layers))
        given = self.weight_decays
        several = listed(given)
        many = several is not None
        decays: list[Any] = [given] * (len(widths) + 1) if several is None else several
        if len(decays) != len(widths) + 1:
            raise ValueError(
                f"`weight_decays` must list {len(widths) + 1} numbers, of the features and of each "
                f"of {len(widths)} layers; got {len(decays)}."
            )
        for i, decay in enumerate(decays):
            check_at_least_zero(f"weight_decays[{i}]" if many else "weight_decays", decay)
        if any(decays):
            for i, decay in enumerate(decays):
                check_positive(f"weight_decays[{i}]", decay)
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "weight_decays", tuple(float(x) for x in decays))
        object.__setattr__(self, "dim", widths[-1])
        self._set_up_balanced()
        # A dimension too small for a simplex needs no more starts here.
        object.__setattr__(self, "starts", 16)
        # The least curvature: that of the penalty, or a guess where there is none.
        object.__setattr__(self, "modulus", min(self.weight_decays) or 1e-3 / self.n_samples)

    @property
    def feature_dim(self) -> int:
        """d_1, the width of the free features."""
        return self.widths[0]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Those of H_1, W_1, ..., W_M."""
        ends = (*self.widths[1:], self.n_classes)
        return ((self.n_samples, self.widths[0]), *zip(ends, self.widths, strict=True))

    def start(self, seed: int = 0, dtype: str = "float64") -> Layers:
        """Gaussian H_1, W_1, ..., W_M with entries of variance 1 / (number of columns).

        W_M is drawn first, then H_1: with one layer the start of the other models.
        """
        precision = float_dtype(dtype)
        rng = np.random.default_rng(check_count("seed", seed, 0))
        drawn: dict[int, Array] = {}
        for i in (len(self.widths), *range(len(self.widths))):
            rows, columns = self.shapes[i]
            scale = 1.0 / np.sqrt(columns)
            drawn[i] = (rng.standard_normal((rows, columns)) * scale).astype(precision)
        return tuple(drawn[i] for i in range(len(drawn)))

    def init(self, seed: int = 0, dtype: str = "float64") -> tuple[Array, Array]:
        """W_M (K, d_M) and H_1 (N, d_1) of `start`."""
        layers = self.start(seed, dtype)
        return layers[-1], layers[0]

    def features(self, layers: Layers) -> Array:
        """The inputs of the last layer (N, d_M)."""
        out = layers[0]
        for W in layers[1:-1]:
            out = out @ W.T
        return out

    def value_and_gradients(self, layers: Layers) -> tuple[float, Layers]:
        """The objective and its gradient with respect to each of H_1, W_1, ..., W_M."""
        outs = [layers[0]]
        for W in layers[1:]:
            outs.append(outs[-1] @ W.T)
        R = outs.pop()
        R[np.arange(self.n_samples), self.y] -= 1.0
        value = float((R * R).sum(dtype=np.float64)) / (2 * self.n_samples)
        R /= self.n_samples
        gradients: list[Array] = []
        for W, out in zip(layers[:0:-1], outs[::-1], strict=True):
            gradients.append(R.T @ out)
            R = R @ W
        found = [R, *gradients[::-1]]
        for decay, x, gradient in zip(self.weight_decays, layers, found, strict=True):
            value += 0.5 * decay * float(np.vdot(x, x))
            gradient += np.asarray(decay, x.dtype) * x
        return value, tuple(found)

    def objective(self, layers: Layers) -> float:  # type: ignore[override]
        """The objective at H_1, W_1, ..., W_M."""
        return self.value_and_gradients(layers)[0]

    def balancedness(self, layers: Layers) -> float:
        """The largest entry of the differences `W_{l+1}^T W_{l+1} - W_l W_l^T`, H_1^T being W_0."""
        wide = [layers[0].T, *layers[1:]]
        return max(
            float(np.abs(after.T @ after - before @ before.T).max())
            for before, after in pairwise(wide)
        )

    def fit(self, seed: int) -> Fitted:
        """L-BFGS from a Gaussian start, in scales with equal penalties for all layers."""
        sizes = [rows * columns for rows, columns in self.shapes]
        cuts = np.cumsum(sizes)[:-1]
        scales = [(decay / self.modulus) ** -0.5 if decay else 1.0 for decay in self.weight_decays]

        def split(x: Floats) -> tuple[Floats, ...]:
            parts = zip(np.split(x, cuts), self.shapes, scales, strict=True)
            return tuple(part.reshape(shape) * scale for part, shape, scale in parts)

        def objective(x: Floats) -> tuple[float, Floats]:
            value, gradients = self.value_and_gradients(split(x))
            pairs = zip(gradients, scales, strict=True)
            return value, np.concatenate([(g * scale).ravel() for g, scale in pairs])

        # A product of the size of the labels: a smaller one would converge to the minimum at 0.
        size = self.n_per_class ** (0.5 / len(sizes))
        x = np.concatenate([
            (x * (size / np.linalg.norm(x, 2) / scale)).ravel()
            for x, scale in zip(self.start(seed), scales, strict=True)
        ])  # fmt: skip
        found = minimise(objective, x, self.modulus)
        layers = split(found.x)
        return Fitted(
            layers[-1], self.features(layers), layers, found.value, found.evaluations, found.reason
        )

    def optimum(self) -> DeepOptimum:
        """The closed form above: the root of one equation, the same for all directions."""
        K, N = self.n_classes, self.n_samples
        root, kept = float(np.sqrt(self.n_per_class)), min(K, *self.widths)
        s, one = _direction(root, N, self.weight_decays)
        value = kept * one + (K - kept) * root**2 / (2 * N)
        kept = kept if s > 0.0 else 0
        common = _common(s, self.weight_decays)
        scales = [common / np.sqrt(decay or 1.0) for decay in self.weight_decays]
        layers = [np.eye(shape[0], shape[1]) for shape in self.shapes]
        layers[0] = np.eye(K, self.widths[0])[self.y] / root
        for x, scale in zip(layers, scales, strict=True):
            x[:, kept:] = 0.0
            x *= scale
        means = self.features((layers[0][:: self.n_per_class], *layers[1:]))
        kind = "orthogonal frame" if kept else "zero"
        return DeepOptimum(
            float(value), layers[-1], means, self.y, None, f"closed form: {kind}",
            layers=tuple(layers),
        )  # fmt: skip


def _common(s: float, decays: tuple[float, ...]) -> float:
    """`sqrt(l_l) sigma_l`, the same for all factors of a product with singular value s."""
    logs = [np.log(decay) / 2 for decay in decays if decay > 0.0]
    return float(np.exp((np.log(s) + sum(logs)) / len(decays))) if s > 0.0 else 0.0


def _direction(root: float, N: int, decays: tuple[float, ...]) -> tuple[float, float]:
    """The best singular value s in 0..root of a direction, and its share of the value.

    With `s = x^F`, F factors, the derivative of `(x^F - root)^2 / (2N) + F/2 p x^2` over F x is
    `x^(F-2) (x^F - root) / N + p`: above its minimum it rises, and has one root at most.
    """
    from scipy.optimize import brentq

    F, nothing = len(decays), root**2 / (2 * N)
    if not any(decays):
        return root, 0.0
    p = float(np.exp(np.log(decays).mean()))
    top = root ** (1.0 / F)

    def slope(x: float) -> float:
        return float(x ** (F - 2) * (x**F - root) / N + p)

    lowest = (root * (F - 2) / (2 * F - 2)) ** (1.0 / F)
    if slope(lowest) >= 0.0:
        return 0.0, nothing
    x = float(brentq(slope, lowest, top, xtol=1e-300, rtol=8.9e-16))
    value = (x**F - root) ** 2 / (2 * N) + F / 2 * p * x * x
    return (x**F, value) if value < nothing else (0.0, nothing)
