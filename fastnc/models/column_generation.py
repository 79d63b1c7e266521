"""Escape from a local minimum over features that must not be negative, by one more direction.

A column r of W and H, `w_r h_r^T` with h_r >= 0, costs `sqrt(lW lH) |w_r| |h_r|`. With the
gradient `G = dL/dZ (N, K)` of the loss, an empty column can lower the objective to first order
exactly if some h >= 0 has `|G^T h| > sqrt(lW lH) |h|`; a local minimum at which none has is the
global one (Haeffele & Vidal, "Global optimality in tensor factorization", 2015). To maximise over
h is itself hard in general; here the indicators of single classes, and projected power iterations
from them, are tried.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.models.unequal import ReLUFeatures
from fastnc.reference import softmax_at

Floats = NDArray[np.float64]


def escape(model: ReLUFeatures, W: Floats, H: Floats) -> tuple[Floats, Floats] | None:
    """A point below the local minimum (W, H), or None if no direction that helps was found."""
    W, H = _without_doubles(W, H, model.balance)
    masses = np.linalg.norm(W, axis=0) * np.linalg.norm(H, axis=0)
    place = int(np.argmin(masses))
    if masses[place] > 1e-6 * masses.max():
        return None
    W[:, place] = H[:, place] = 0.0
    G = _gradient(W, H, model.y)
    h, rate = _steepest(G, model.y, model.n_classes)
    if rate <= (1.0 + 1e-6) * model.modulus:
        return None
    w = -(G.T @ h) / rate
    best = (model.objective(W, H), 0.0)
    for mass in 2.0 ** np.arange(-24.0, 8.0) * np.sqrt(model.n_samples):
        _put(W, H, place, w, h, mass, model.balance)
        best = min(best, (model.objective(W, H), mass))
    if best[1] == 0.0:
        return None
    _put(W, H, place, w, h, best[1], model.balance)
    return W, H


def _put(
    W: Floats, H: Floats, place: int, w: Floats, h: Floats, mass: float, balance: float
) -> None:
    """Column `place` becomes `mass w h^T`, w and h of norm 1, at the least penalty."""
    W[:, place] = np.sqrt(mass) * balance * w
    H[:, place] = np.sqrt(mass) / balance * h


def _without_doubles(W: Floats, H: Floats, balance: float) -> tuple[Floats, Floats]:
    """Copies in which columns of the same direction are joined, at an unchanged objective."""
    W, H = W.copy(), H.copy()
    d = W.shape[1]
    for r in range(d):
        for s in range(r + 1, d):
            lengths = [np.linalg.norm(x[:, c]) for c in (r, s) for x in (W, H)]
            if min(lengths) == 0.0:
                continue
            w, h = W[:, r] / lengths[0], H[:, r] / lengths[1]
            alike = min(w @ W[:, s] / lengths[2], h @ H[:, s] / lengths[3])
            if alike > 1.0 - 1e-6:
                mass = lengths[0] * lengths[1] + lengths[2] * lengths[3]
                _put(W, H, r, w, h, float(mass), balance)
                W[:, s] = H[:, s] = 0.0
    return W, H


def _gradient(W: Floats, H: Floats, y: NDArray[Any]) -> Floats:
    """dL/dZ (N, K) of the mean cross-entropy."""
    return softmax_at(W, H, y).residuals / len(y)


def _steepest(G: Floats, y: NDArray[Any], n_classes: int) -> tuple[Floats, float]:
    """h >= 0 of norm 1 with a large |G^T h|, and this |G^T h|."""
    best, rate = np.zeros(len(G)), 0.0
    for k in range(n_classes):
        h = (y == k) / np.sqrt(np.count_nonzero(y == k))
        for _ in range(20):
            along = float(np.linalg.norm(G.T @ h))
            if along > rate:
                best, rate = h, along
            h = np.maximum(G @ (G.T @ h), 0.0)
            length = np.linalg.norm(h)
            if length == 0.0:
                break
            h = h / length
    return best, rate
