"""The minimum-norm separation problem (5) by an augmented Lagrangian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastnc.models.lbfgs import Floats, Minimum, minimise


def separate(
    W: Floats, H: Floats, y: NDArray[np.int64], tol: float = 1e-10, max_rounds: int = 300
) -> tuple[Floats, Floats, Minimum]:
    """A KKT point of `min 1/2 (|W|^2 + |H|^2)` with all margins at least 1, from (W, H).

    Each round minimises `1/2 |theta|^2 + sum_ij (max(0, l_ij + r (1 - q_ij))^2 - l_ij^2) / (2r)`
    by L-BFGS and takes the new multipliers `max(0, l_ij + r (1 - q_ij))`. The point that is
    returned is scaled so that its smallest margin is 1: it is feasible, and its value is an
    upper bound of the optimum. Cost: `6KNd` operations an evaluation.
    """
    K, d = W.shape
    N = len(H)
    rows = np.arange(N)
    # The size of the multipliers at a balanced optimum, and a stiffness in proportion.
    typical = 1.0 / np.sqrt(K * N)
    stiffness = 4.0 * typical
    multipliers = np.full((N, K), typical)
    multipliers[rows, y] = 0.0

    def slack(x: Floats) -> Floats:
        W, H = x[: K * d].reshape(K, d), x[K * d :].reshape(N, d)
        Z = H @ W.T
        S: Floats = multipliers + stiffness * (1.0 - Z[rows, y][:, None] + Z)
        S[rows, y] = 0.0
        np.maximum(S, 0.0, out=S)
        return S

    def lagrangian(x: Floats) -> tuple[float, Floats]:
        W, H = x[: K * d].reshape(K, d), x[K * d :].reshape(N, d)
        S = slack(x)
        value = float(np.vdot(S, S) - np.vdot(multipliers, multipliers)) / (2.0 * stiffness)
        S[rows, y] = -S.sum(axis=1)
        grad = np.concatenate([(S.T @ H).ravel(), (S @ W).ravel()])
        return value + 0.5 * float(x @ x), grad + x

    x = np.concatenate([W.ravel(), H.ravel()])
    evaluations = 0
    violated = 1.0
    reason = f"{max_rounds} rounds"
    for _ in range(max_rounds):
        # The possible decrease is of second order in the gradient, the violation of first.
        inner = minimise(lagrangian, x, 1.0, max(0.01 * violated**2, 1e-26))
        x, evaluations = inner.x, evaluations + inner.evaluations
        S = slack(x)
        # Feasibility and complementarity in one: how much the multipliers still change.
        before, violated = violated, float(np.abs(S - multipliers).max()) / stiffness
        multipliers = S
        if violated <= tol:
            reason = f"constraints met to {violated:.0e}"
            break
        if violated > 0.25 * before:
            stiffness = min(2.0 * stiffness, 1e4 * typical)
    W, H = x[: K * d].reshape(K, d), x[K * d :].reshape(N, d)
    # Equal norms are the least for given margins, which depend only on products of W and H.
    even = np.sqrt(np.linalg.norm(H) / np.linalg.norm(W))
    W, H = W * even, H / even
    Z = H @ W.T
    own = Z[rows, y].copy()
    Z[rows, y] = -np.inf
    margin = float((own - Z.max(axis=1)).min())
    if margin > 0.0:
        W, H = W / np.sqrt(margin), H / np.sqrt(margin)
        value = 0.5 * float(np.vdot(W, W) + np.vdot(H, H))
    else:
        value, reason = np.inf, "a KKT point that does not separate"
    return W, H, Minimum(x, value, evaluations, reason)
