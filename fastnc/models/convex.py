"""The convex program behind cross-entropy with weight decay, solved with its duality gap.

By the variational form of the nuclear norm, minimising over W and H is minimising

    P(Z) = sum_k (n_k/N) CE(z_k, k) + mu |Z diag(sqrt n)|_*,      mu = sqrt(lW lH)

over the K x K class logits Z, a column a class, as long as d is at least the rank of the answer.
It is solved in factors `Z diag(sqrt n) = U V^T`, where the nuclear norm is `(|U|^2 + |V|^2)/2`.
That problem is smooth, and without spurious local minima since the factors have K columns; a dual
point shows afterwards that the answer is the global one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from fastnc.models.layer_peeled import Floats, UnknownOptimum
from fastnc.models.lbfgs import minimise, newton
from fastnc.reference import softmax

# The largest duality gap, over the value, of what is called an optimum.
_DIGITS = 1e-3
# The logarithm of the least multiplier: further on squares vanish.
_LEAST = math.log(1e-150)


class ConvexOptimum(NamedTuple):
    """X = Z diag(sqrt n) (K, K), the value P, and an upper bound of P minus the optimum."""

    X: Floats
    value: float
    gap: float


def check_certified(value: float, gap: float, of: Mapping[str, float]) -> None:
    """Raise `UnknownOptimum`, which names `of`, if the gap shows no three digits of the value."""
    if not gap <= _DIGITS * abs(value):
        said = " and ".join(f"`{name}`={number:g}" for name, number in of.items())
        raise UnknownOptimum(
            f"no optimum is certified for {said}: they are too small, or too large, for three "
            "digits of it by floats. Take others."
        )


def imbalanced_cross_entropy(
    counts: NDArray[np.int64], mu: float, seed: int = 0, root: Floats | None = None
) -> ConvexOptimum:
    """The global optimum of P for class sizes `counts` (K,), certified by the duality gap.

    `root` (K,) replaces sqrt n in the penalty, and in X.

    Cost: a few hundred products of K x K matrices; K = 100 takes seconds.
    """
    problem = _Factored(counts, mu, root)
    K = len(counts)
    x = np.random.default_rng(seed).standard_normal(2 * K * K) / np.sqrt(K)
    x = minimise(problem.value_and_grad, x, problem.modulus).x
    x = newton(problem.value_and_grad, problem.hessian_vector_product, x)
    U, V = problem.split(x)
    return problem.certified(U @ V.T)


class _Factored:
    """P in its factors: value, gradient, Hessian products, and the certificate."""

    def __init__(self, counts: NDArray[np.int64], mu: float, root: Floats | None = None) -> None:
        self.K = len(counts)
        self.root = np.sqrt(counts) if root is None else root
        self.share = counts / counts.sum()
        self.mu = mu
        self.modulus = mu

    def split(self, x: Floats) -> tuple[Floats, Floats]:
        U, V = x.reshape(2, self.K, self.K)
        return U, V

    def _softmax(self, X: Floats) -> tuple[Floats, Floats, Floats]:
        """Losses (K,), the residuals p - e_k and the probabilities, columns (K, K)."""
        # Each class's column of logits becomes a row: one sample of that class.
        D = (X / self.root).T
        classes = np.arange(self.K)
        D = D - np.diag(D)[:, None]
        np.fill_diagonal(D, -np.inf)
        losses, r, label = softmax(D, classes)
        p = r.copy()
        np.fill_diagonal(p, label)
        return losses, r.T, p.T

    def value_and_grad(self, x: Floats) -> tuple[float, Floats]:
        U, V = self.split(x)
        losses, r, _ = self._softmax(U @ V.T)
        G = r * (self.share / self.root)
        value = float(self.share @ losses) + 0.5 * self.mu * float(x @ x)
        return value, np.concatenate([(G @ V).ravel(), (G.T @ U).ravel()]) + self.mu * x

    def hessian_vector_product(self, x: Floats, dx: Floats) -> Floats:
        U, V = self.split(x)
        dU, dV = self.split(dx)
        _, r, p = self._softmax(U @ V.T)
        dZ = (dU @ V.T + U @ dV.T) / self.root
        dZ = dZ - np.diag(dZ)
        dr = p * (dZ - (p * dZ).sum(axis=0))
        weight = self.share / self.root
        G, dG = r * weight, dr * weight
        HU = dG @ V + G @ dV
        HV = dG.T @ U + G.T @ dU
        return np.concatenate([HU.ravel(), HV.ravel()]) + self.mu * dx

    def certified(self, X: Floats) -> ConvexOptimum:
        """P(X) and its duality gap: with `s = min(1, mu/|G|_2)` and `q_k = e_k + s (p_k - e_k)`,
        `-sum_k (n_k/N) sum_j q_kj log q_kj` is a lower bound of P by Fenchel's inequality.
        """
        A, sigma, Bt = np.linalg.svd(X)
        # Singular values that the penalty makes 0 are 0 only up to the solver's accuracy.
        sigma[sigma < 1e-7 * max(1.0, sigma[0])] = 0.0
        X = (A * sigma) @ Bt
        losses, r, p = self._softmax(X)
        value = float(self.share @ losses) + self.mu * float(sigma.sum())
        s = min(1.0, self.mu / float(np.linalg.norm(r * (self.share / self.root), 2)))
        q = s * p
        entropy = -np.where(q > 0.0, q * np.log(np.where(q > 0.0, q, 1.0)), 0.0)
        # 1 less what the others have, which may be far below its rounding.
        others = -s * np.diag(r)
        sure = np.where(others < 1.0, others, 0.0)
        np.fill_diagonal(entropy, (sure - 1.0) * np.log1p(-sure))
        lower = float(self.share @ entropy.sum(axis=0))
        return ConvexOptimum(X, value, max(0.0, value - lower))

    def at(self, X: Floats) -> float:
        """The loss alone."""
        return float(self.share @ self._softmax(X)[0])


def bounded_cross_entropy(
    counts: NDArray[np.int64], root: Floats, bound: float, seed: int = 0
) -> ConvexOptimum:
    """The least `sum_k (n_k/N) CE(z_k, k)` with `|Z diag(root)|_* <= bound`, certified.

    P is its Lagrangian: the multiplier mu at which the optimum of P has the norm `bound` is found
    by bracketing, and a lower bound of P there, less `mu bound`, is one of the loss; the gap is inf
    where there is none in the range of floats. Cost: some 20 `imbalanced_cross_entropy`.
    """
    zero = np.zeros((len(counts), len(counts)))
    start = _Factored(counts, 1.0, root)
    _, r, _ = start._softmax(zero)
    # If mu is at least the norm of the gradient at 0, the optimum of P is 0.
    high = float(np.linalg.norm(r * (start.share / root), 2))

    def excess(log_mu: float) -> float:
        X = imbalanced_cross_entropy(counts, float(np.exp(log_mu)), seed, root).X
        return float(np.linalg.norm(X, "nuc")) / bound - 1.0

    top = float(np.log(high))
    low, step = top - 1.0, 2.0
    while excess(low) < 0.0:
        if low <= _LEAST:
            return ConvexOptimum(zero, 0.0, math.inf)
        low, step = max(low - step, _LEAST), 2.0 * step
    mu = float(np.exp(brentq(excess, low, top, xtol=1e-10, rtol=1e-12)))
    X, value, gap = imbalanced_cross_entropy(counts, mu, seed, root)
    norm = float(np.linalg.norm(X, "nuc"))
    if norm == 0.0:
        return ConvexOptimum(zero, 0.0, math.inf)
    X = X * (bound / norm)
    loss = _Factored(counts, mu, root).at(X)
    return ConvexOptimum(X, loss, max(0.0, loss - (value - gap - mu * bound)))
