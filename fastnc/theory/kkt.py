"""Approximate KKT points of the minimum-norm separation (5): section 3.1.2 of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastnc._core import arrays
from fastnc._core.serial import serial
from fastnc.theory.residuals import Residuals


@dataclass(frozen=True)
class KKT:
    """How nearly (W, H) / sqrt(q_min) is a KKT point of (5), Lemmas 3.2 and 3.3.

    Where a sample is misclassified (`margin <= 0`) there is no such point: all but `beta`,
    `misalignment`, `margin` and `multipliers` are then NaN.
    """

    beta: float  # cosine of (W, H) and minus the gradient: tends to 1
    misalignment: float  # 1 - beta without the cancellation
    epsilon: float  # sqrt(2 (1 - beta) / C), C = q_min / |theta|^2
    delta: float  # K / (2 C q_min)
    stationarity: float  # |theta' - sum lambda grad(constraint)| at theta' = theta / sqrt(q_min)
    complementarity: float  # the largest lambda (constraint - 1)
    margin: float  # q_min
    multipliers: Any  # (N, K), 0 at the labels


@serial
def kkt(W: Any, H: Any, y: Any) -> KKT:
    """The KKT residuals of the separation problem (5) at (W, H) scaled to margin 1.

    `min 1/2 |W|^2 + 1/2 |H|^2` subject to `<w_y - w_j, h_i> >= 1`. With theta = (W, H) and the
    multipliers `lambda_ij = p_ij |theta| / |grad L|`,

        beta = -<theta, grad L> / (|theta| |grad L|)
        epsilon = sqrt(2 (1 - beta) / C),   delta = K / (2 C q_min),   C = q_min / |theta|^2

    Lemma 3.2 prints beta with the opposite sign, which would tend to -1. Its C is any positive
    lower bound of `q_min / |theta|^2`; with the one used here, the best at this point, `epsilon`
    is the norm of the stationarity residual exactly. `stationarity` is that norm computed from
    the multipliers, and `complementarity` is at most `1 / (e C q_min)`.

    Parameters
    ----------
    W : (K, d), H : (N, d) float32 or float64
    y : (N,) integers in 0..K-1

    Returns
    -------
    KKT
        `multipliers` (N, K) in the library of `H`; everything else a float.

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes that do not fit, labels out of range, NaN or infinity.

    Notes
    -----
    Everything is computed from logarithms and the gradient over the loss: exact at any margin.
    Cost: `6KNd` operations and N x K numbers.

    References
    ----------
    Lyu and Li (2020), Gradient descent maximizes the margin of homogeneous neural networks;
    Dutta et al. (2013), Approximate KKT points and a proximity measure for termination.

    Examples
    --------
    >>> import fastnc
    >>> W, H, y = fastnc.theory.collapsed(radius=6.0, n_classes=4, n_per_class=2, dim=3)
    >>> found = fastnc.kkt(W, H, y)
    >>> found.beta, found.stationarity < 1e-12
    (1.0, True)
    """
    W64, H64, labels = arrays.checked_problem(W, H, y)
    at = Residuals(W64, H64, labels)
    grad_W, grad_H = at.residuals.T @ H64, at.residuals @ W64
    norm = math.hypot(float(np.linalg.norm(W64)), float(np.linalg.norm(H64)))
    slope = math.hypot(float(np.linalg.norm(grad_W)), float(np.linalg.norm(grad_H)))
    if norm == 0.0 or slope == 0.0:
        raise ValueError(
            "`W` and `H` must not be a stationary point: beta is the angle of the gradient, and "
            f"here |(W, H)| = {norm:g} and |gradient| / loss = {slope:g}."
        )
    # theta/|theta| + grad/|grad| has the squared norm 2 (1 - beta), without a cancellation.
    apart_W, apart_H = W64 / norm + grad_W / slope, H64 / norm + grad_H / slope
    misalignment = 0.5 * float(np.vdot(apart_W, apart_W) + np.vdot(apart_H, apart_H))

    rows = np.arange(len(labels))
    gaps = H64 @ W64.T
    gaps = gaps[rows, labels][:, None] - gaps
    gaps[rows, labels] = np.inf
    margin = float(gaps.min())
    multipliers = at.scaled * (norm / slope)
    epsilon = delta = stationarity = complementarity = math.nan
    if margin > 0.0:
        C = margin / norm**2
        epsilon, delta = math.sqrt(2.0 * misalignment / C), len(W64) / (2.0 * C * margin)
        signed = multipliers.copy()
        signed[rows, labels] = -multipliers.sum(axis=1)
        left_W, left_H = W64 + signed.T @ H64, H64 + signed @ W64
        stationarity = math.hypot(
            float(np.linalg.norm(left_W)), float(np.linalg.norm(left_H))
        ) / math.sqrt(margin)
        gaps[rows, labels] = margin
        complementarity = float((multipliers * (gaps - margin)).max()) / margin
    return KKT(
        beta=1.0 - misalignment,
        misalignment=misalignment,
        epsilon=epsilon,
        delta=delta,
        stationarity=stationarity,
        complementarity=complementarity,
        margin=margin,
        multipliers=arrays.like(multipliers, H),
    )
