"""Section 3.1.1 checked: the margin bounds the norm, and its equality is neural collapse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from fastnc._core.arrays import check_count
from fastnc.paper.verify._finding import Finding
from fastnc.theory.kkt import kkt
from fastnc.theory.margin import margin_decomposition, margin_ratio, neural_collapse_margin
from fastnc.theory.sphere import collapsed

Floats = NDArray[np.float64]

# K, n, d: square, wide, no room to spare, binary, one sample a class.
SIZES = ((5, 10, 20), (3, 2, 7), (10, 4, 9), (2, 3, 1), (4, 1, 4))


def section_3_1_1(seed: int) -> Iterator[Finding]:
    """Lemma 3.1, Remark 3.1, Theorem 3.2."""
    seed = check_count("seed", seed, 0)
    yield _lemma_31(seed)
    yield _remark_31(seed)
    yield _theorem_32(seed)


def _lemma_31(seed: int) -> Finding:
    rng = np.random.default_rng(seed)
    worst, largest, equality = 0.0, -math.inf, 0.0
    for K, n, d in SIZES:
        y = np.repeat(np.arange(K), n)
        centre = collapsed(3.0, K, n, d)[:2]
        for i in range(40):
            # From collapse with a little noise to nothing but noise.
            W, H = (x + 10.0 ** (i / 10 - 3) * rng.standard_normal(x.shape) for x in centre)
            parts = margin_decomposition(W, H, y)
            bound = 2.0 * (K - 1) * math.sqrt(n) * neural_collapse_margin(W, H, y)
            worst = max(worst, abs(parts.energy - bound - parts.missing) / parts.energy)
            largest = max(largest, margin_ratio(W, H, y))
        equality = max(equality, abs(1.0 - margin_ratio(*collapsed(3.0, K, n, d))))
    # A ratio above 1 would be a counterexample, however small the rounding.
    error = max(worst, equality, largest - 1.0)
    return Finding(
        "Lemma 3.1", "q_min <= (|W|^2+|H|^2)/(2(K-1)sqrt n), an identity plus 5 terms >= 0",
        f"200 points: ratios up to {largest:.6f}; 1 at collapse",
        error, 1e-12, "sums of a few thousand squares in float64",
    )  # fmt: skip


def _remark_31(seed: int) -> Finding:
    rng = np.random.default_rng(seed)
    W, H, y = collapsed(4.0, 4, 2, 5)
    W, H = W + 0.1 * rng.standard_normal(W.shape), H + 0.1 * rng.standard_normal(H.shape)
    q = neural_collapse_margin(W, H, y)
    half = 0.5 * float((W**2).sum() + (H**2).sum())
    scaled_W, scaled_H = W / math.sqrt(q), H / math.sqrt(q)
    objective = 0.5 * float((scaled_W**2).sum() + (scaled_H**2).sum())
    feasible = abs(neural_collapse_margin(scaled_W, scaled_H, y) - 1.0)
    printed = half / math.sqrt(q)
    error = max(abs(objective * q / half - 1.0), feasible)
    if abs(printed / objective - 1.0) < 0.01:
        error = math.inf
    return Finding(
        "Remark 3.1", "least objective of (5) along a direction: |theta|^2 / (2 q_min)",
        f"{half / q:.6f}, and {objective:.6f} of the scaled point",
        error, 1e-13, "rounding of a quotient",
        f"q_min^(1/2) in the denominator gives {printed:.4f}; it is q_min",
    )  # fmt: skip


def _theorem_32(seed: int) -> Finding:
    K, n, d = 3, 2, 2
    y = np.repeat(np.arange(K), n)
    optimum = math.sqrt(n) * (K - 1)
    rng = np.random.default_rng(seed)
    ends = []
    for _ in range(6):
        end = minimize(
            lambda x: 0.5 * x @ x, 2.0 * rng.standard_normal((K + K * n) * d), jac=lambda x: x,
            method="SLSQP", constraints=[{"type": "ineq", "fun": _constraints, "args": (y, K, d)}],
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        if _constraints(end.x, y, K, d).min() > -1e-8:
            ends.append(end.fun)
    W, H, y = collapsed(math.sqrt(2.0 * optimum), K, n, d)
    residual = kkt(W, H, y)
    beaten = max(0.0, 1.0 - min(ends) / optimum)
    error = max(beaten, abs(min(ends) / optimum - 1.0), residual.stationarity)
    return Finding(
        "Theorem 3.2", "optimum of (5): sqrt n (K-1), a KKT point, at collapse",
        f"{optimum:.6f}; best of {len(ends)} feasible minimisations {min(ends):.6f}",
        error, 1e-6, "what SLSQP's constraints leave",
    )  # fmt: skip


def _constraints(x: Floats, y: NDArray[Any], K: int, d: int) -> Floats:
    """`<w_y - w_j, h_i> - 1` of every sample and wrong class."""
    Z = x[K * d :].reshape(-1, d) @ x[: K * d].reshape(K, d).T
    gaps = Z[np.arange(len(y)), y][:, None] - Z - 1.0
    return np.asarray(gaps[np.arange(K) != y[:, None]])
