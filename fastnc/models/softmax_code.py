"""Softmax codes: unit classifiers, each as far as possible from the hull of the others."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import check_count
from fastnc.collapse.codes import from_hulls
from fastnc.models.layer_peeled import Floats, LayerPeeled, Optimum, frame
from fastnc.models.lbfgs import minimise

# Most unknowns of the sequential quadratic program: with so many it takes seconds.
_POLISHED = 400
# At the last one, margins that are 0.01 above the least hardly count in the loss.
_TEMPERATURES = (4.0, 16.0, 64.0, 256.0, 1024.0)
_SEEDS = 16


@dataclass(frozen=True, eq=False)
class Code(Optimum):
    """A code: `value` is its one-vs-rest distance, `means` are the features that attain it.

    Attributes
    ----------
    proven : bool
        Whether the code is known to be optimal; else it is the best of several starts.
    """

    proven: bool = True


class Fitted(NamedTuple):
    """The code of one start, its features, its distance, and the evaluations it took."""

    W: Floats
    H: Floats
    value: float
    evaluations: int
    reason: str


@dataclass(frozen=True)
class SoftmaxCode(LayerPeeled):
    """K unit vectors in d dimensions, each as far as possible from the others' hull, Jiang (2023).

    `max over |w_k| = 1 of  min_k dist(w_k, hull{w_j: j != k})`

    which is the largest margin `min_k min_{j != k} <w_k - w_j, h_k>` that unit classifiers and
    unit features reach: the limit of `normalized` as its temperature grows. Known for K <= d + 1, a
    simplex, K / (K - 1); for d = 2, the regular polygon, `1 - cos(2 pi / K)`; for d + 1 < K <= 2d,
    vertices of the cross-polytope (orthoplex), 1. For more classes `optimum()` is the best of 16
    seeded starts, and its `proven` is False.

    Parameters
    ----------
    n_classes : int, K >= 2
    dim : int
        At least 2, or 1 for two classes: otherwise two classes share a direction.

    Examples
    --------
    >>> import fastnc
    >>> code = fastnc.models.softmax_code(6, 3).optimum()
    >>> code.value, code.proven, code.source
    (1.0, True, 'closed form: orthoplex')
    """

    n_classes: int
    dim: int

    paper = "Jiang et al. (2023)"
    landscape = "local maxima, where classes block each other's way"
    starts = _SEEDS

    def __post_init__(self) -> None:
        K = check_count("n_classes", self.n_classes, 2)
        self._set_up(np.ones(K, dtype=np.int64))
        object.__setattr__(self, "starts", _SEEDS)
        if self.dim == 1 and K > 2:
            raise ValueError(
                f"`dim` must be at least 2 for {K} classes; got 1. On a line there are two unit "
                "vectors."
            )

    def violation(self, W: Floats, H: Floats) -> float:
        return max(float(np.abs(np.linalg.norm(x, axis=1) - 1.0).max()) for x in (W, H))

    def retract(self, W: Floats, H: Floats) -> tuple[Floats, Floats]:
        return _unit(W), _unit(H)

    def optimum(self) -> Code:
        """The code above. Cost, where no optimum is known: half a minute at K = 100, d = 10."""
        K, d = self.n_classes, self.dim
        W = np.zeros((K, d))
        if d >= K - 1:
            W = frame(K, d) * np.sqrt(K / (K - 1))
            return self._code(W, K / (K - 1), "closed form: simplex")
        if d == 2:
            angles = 2.0 * np.pi * np.arange(K) / K
            W = np.column_stack([np.cos(angles), np.sin(angles)])
            return self._code(W, 1.0 - float(np.cos(2.0 * np.pi / K)), "closed form: polygon")
        if 2 * d >= K:
            for k in range(K):
                W[k, k % d] = 1.0 if k < d else -1.0
            return self._code(W, 1.0, "closed form: orthoplex")
        best = _best(K, d)
        source = f"the best of {_SEEDS} seeded starts, not proven to be optimal"
        return self._code(best.W.copy(), best.value, source, proven=False)

    def fit(self, seed: int) -> Fitted:
        """The code found from the Gaussian start of a seed.

        Cross-entropy of unit vectors, a smooth form of the least margin, at growing temperatures,
        each from the result of the last one; for small codes then the least margin itself, by
        sequential quadratic programs.
        """
        from fastnc.kernels.cpu.threads import few_threads
        from fastnc.models.constrained import Normalized

        K, d = self.n_classes, self.dim
        W, H = self.init(seed)
        count, shapes = 0, (W.shape, H.shape)
        for temperature in _TEMPERATURES:
            model = Normalized(K, 1, max(d, 2), temperature)

            def objective(x: Floats, model: Normalized = model) -> tuple[float, Floats]:
                raw = x[: K * d].reshape(shapes[0]), x[K * d :].reshape(shapes[1])
                g = model.log_value_and_grads(*model.retract(*raw))
                grads = model.pullback(*raw, g.W, g.H)
                return g.value, np.concatenate([grad.ravel() for grad in grads])

            x = np.concatenate([W.ravel(), H.ravel()])
            with few_threads(self.is_small, blas=False):
                found = minimise(objective, x, 1e-3, 1e-8, relative=False, max_evaluations=2000)
            count += found.evaluations
            W, H = self.retract(found.x[: K * d].reshape(K, d), found.x[K * d :].reshape(K, d))
        value, reason = distance(W), found.reason
        if 2 * K * d <= _POLISHED:
            polished, steps = _polished(W, H)
            count += steps
            if distance(polished) > value:
                W, value, reason = polished, distance(polished), "sequential quadratic programs"
        return Fitted(W, _features(W), value, count, reason)

    def _code(self, W: Floats, value: float, source: str, proven: bool = True) -> Code:
        return Code(value, W, _features(W), self.y, None, source, proven=proven)


def distance(W: Floats) -> float:
    """The one-vs-rest distance of unit vectors."""
    return float(np.linalg.norm(from_hulls(W), axis=1).min())


@functools.cache
def _best(n_classes: int, dim: int) -> Fitted:
    model = SoftmaxCode(n_classes, dim)
    return max((model.fit(seed) for seed in range(_SEEDS)), key=lambda found: found.value)


def _features(W: Floats) -> Floats:
    """The unit feature of each class with the largest margin: away from the others' hull."""
    return _unit(from_hulls(W))


def _unit(x: NDArray[np.float64]) -> Floats:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def _polished(W: Floats, H: Floats) -> tuple[Floats, int]:
    """The largest least margin near W and H (SLSQP), and the evaluations it took."""
    from scipy.optimize import minimize

    from fastnc.kernels.cpu.threads import serial_blas

    K, d = W.shape
    own, other = np.nonzero(~np.eye(K, dtype=bool))
    pairs = np.arange(len(own))

    def split(x: Floats) -> tuple[Floats, Floats]:
        return x[: K * d].reshape(K, d), x[K * d : -1].reshape(K, d)

    def margins(x: Floats) -> Floats:
        W, H = split(x)
        return np.asarray(((W[own] - W[other]) * H[own]).sum(axis=1) - x[-1])

    def slopes(x: Floats) -> Floats:
        W, H = split(x)
        J = np.zeros((len(own), 2, K, d))
        J[pairs, 0, own] += H[own]
        J[pairs, 0, other] -= H[own]
        J[pairs, 1, own] = W[own] - W[other]
        return np.column_stack([J.reshape(len(own), -1), -np.ones(len(own))])

    def lengths(x: Floats) -> Floats:
        return np.asarray((x[:-1].reshape(2 * K, d) ** 2).sum(axis=1) - 1.0)

    def turns(x: Floats) -> Floats:
        J = np.zeros((2 * K, 2 * K, d))
        J[np.arange(2 * K), np.arange(2 * K)] = 2.0 * x[:-1].reshape(2 * K, d)
        return np.column_stack([J.reshape(2 * K, -1), np.zeros(2 * K)])

    last = np.zeros(2 * K * d + 1)
    last[-1] = -1.0
    start = np.concatenate([W.ravel(), H.ravel(), [distance(W)]])
    with serial_blas:
        found = minimize(
            lambda x: (-x[-1], last), start, jac=True, method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": margins, "jac": slopes},
                {"type": "eq", "fun": lengths, "jac": turns},
            ],
            options={"ftol": 1e-14, "maxiter": 200},
        )  # fmt: skip
    return _unit(split(found.x)[0]), int(found.nfev)
