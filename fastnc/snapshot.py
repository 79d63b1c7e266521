"""One row of a trajectory: everything that is measured of (W, H) at one moment."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._arrays import row_major
from fastnc.metrics import NAMES

OBJECTIVE = ("log_loss", "log_grad_norm", "grad_norm", "norm_W", "norm_H", "beta", "epsilon")
COLUMNS = (*OBJECTIVE, *NAMES)

# Beyond it squares overflow, and no geometry is left to measure.
_LARGEST_NORM = 1e150


def measure(W: NDArray[Any], H: NDArray[Any], y: NDArray[np.int64]) -> dict[str, float]:
    """The columns of a run at W (K, d), H (N, d), with the mean loss; NaN where undefined.

    `log_loss` and `log_grad_norm` are natural logarithms, finite at any margin. `beta` is
    Lemma 3.2's, with the sign that makes it tend to 1, and `epsilon` its
    `sqrt(2 (1 - beta) / C)` with the tightest constant there is, `C = q_min / |theta|^2`.

    Cost: one pass for the loss and its gradients, one for the geometry.
    """
    from fastnc.kernels.cross_entropy_cpu import log_loss_and_grads
    from fastnc.kernels.geometry_cpu import geometry

    W, H, y = row_major(W, np.float64), row_major(H, np.float64), row_major(y, np.int64)
    log_loss, values = np.empty(1), np.empty(len(NAMES))
    grad_W, grad_H = np.empty_like(W), np.empty_like(H)
    log_loss_and_grads(W, H, y, log_loss, grad_W, grad_H)
    norm_W, norm_H = float(np.linalg.norm(W)), float(np.linalg.norm(H))
    norm = math.hypot(norm_W, norm_H)
    if not (math.isfinite(log_loss[0]) and norm < _LARGEST_NORM):
        return dict.fromkeys(COLUMNS, math.nan)
    geometry(W, H, y, values)
    row = dict(zip(NAMES, values.tolist(), strict=True))

    slope = math.hypot(float(np.linalg.norm(grad_W)), float(np.linalg.norm(grad_H)))
    mean_log_loss = float(log_loss[0]) - math.log(len(y))
    log_grad_norm = mean_log_loss + math.log(slope) if slope > 0.0 else -math.inf
    # theta and the gradient become opposite: their normalised sum is 1 - beta without the
    # cancellation that a scalar product close to 1 would carry.
    gap = math.nan
    if norm > 0.0 and slope > 0.0:
        grad_W /= slope
        grad_H /= slope
        grad_W += W / norm
        grad_H += H / norm
        gap = 0.5 * (float(np.vdot(grad_W, grad_W)) + float(np.vdot(grad_H, grad_H)))
    margin = row["margin"]
    objective = (
        mean_log_loss,
        log_grad_norm,
        math.exp(log_grad_norm) if log_grad_norm < 709.0 else math.inf,
        norm_W,
        norm_H,
        1.0 - gap,
        norm * math.sqrt(2.0 * gap / margin) if margin > 0.0 else math.nan,
    )
    return dict(zip(OBJECTIVE, objective, strict=True)) | row
