"""One row of a trajectory: all that is measured at one W and H."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.serial import serial
from fastnc.collapse.metrics import NAMES
from fastnc.theory.margin import margin_ratio, neural_collapse_margin
from fastnc.theory.norm_margins import ratio_max, ratio_spectral, spectral_square

Floats = NDArray[np.float64]

OBJECTIVE = ("log_loss", "log_grad_norm", "grad_norm", "norm_W", "norm_H", "beta", "epsilon")
NORMS = ("margin_ratio_max", "margin_ratio_spectral")
COLUMNS = (*OBJECTIVE, *NAMES, *NORMS)

# Beyond it squares overflow, and no geometry is left to measure.
LARGEST_NORM = 1e150


@serial
def measure(
    W: NDArray[Any], H: NDArray[Any], y: NDArray[np.int64], bias: NDArray[Any] | None = None
) -> dict[str, float]:
    """The columns of a run at W (K, d), H (N, d), with the mean loss; NaN where undefined.

    With a `bias` (K,) the logits are `W h + bias`: loss, margin and decisions are theirs; norms,
    gradient, `beta` and `epsilon` are those of W and H, as in a training.

    `log_loss` and `log_grad_norm` are natural logarithms, finite at any margin. `beta` is
    Lemma 3.2's, with the sign that makes it tend to 1, and `epsilon` its
    `sqrt(2 (1 - beta) / C)` with the tightest constant there is, `C = q_min / |theta|^2`.

    Cost: one pass for the loss and its gradients, one for the geometry, `min(N, d) N d` for the
    operator norm of H.
    """
    from fastnc.kernels.cpu.geometry import SERIAL_WORK, geometry

    W = np.ascontiguousarray(W, dtype=np.float64)
    H = np.ascontiguousarray(H, dtype=np.float64)
    if bias is not None or len(W) * H.size >= SERIAL_WORK:
        found = _objective(W, H, y, bias)
    else:
        found = _small_objective(W, H, y)
    log_loss, slope, norm_W, norm_H, gap = found
    norm = math.hypot(norm_W, norm_H)
    if not (math.isfinite(log_loss) and norm < LARGEST_NORM):
        return dict.fromkeys(COLUMNS, math.nan)
    if bias is None:
        values = np.empty(len(NAMES))
        geometry(W, H, y, values)
        row = dict(zip(NAMES, values.tolist(), strict=True))
    else:
        row = _biased_geometry(W, H, y, bias)
    if math.isnan(row["margin"]) and bias is None:
        # Samples of one class have no geometry of means, and a margin all the same.
        row["margin"] = neural_collapse_margin(W, H, y)
        row["margin_ratio"] = margin_ratio(W, H, y) if norm > 0.0 else math.nan

    mean_log_loss = log_loss - math.log(len(y))
    log_grad_norm = mean_log_loss + math.log(slope) if slope > 0.0 else -math.inf
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
    return dict(zip(OBJECTIVE, objective, strict=True)) | row | _norms(W, H, y, margin)


def _norms(W: Floats, H: Floats, y: NDArray[np.int64], margin: float) -> dict[str, float]:
    """The margin ratios in the norms of sign and of spectral descent."""
    from fastnc.kernels.cpu.threads import serial_blas

    counts = np.bincount(y)
    largest = max(float(np.abs(W).max()), float(np.abs(H).max()))
    # On one thread: the order of a BLAS's sums depends on their number.
    with serial_blas:
        square = max(spectral_square(W), spectral_square(H))
    found = ratio_max(margin, counts, W.shape[1], largest), ratio_spectral(margin, counts, square)
    return dict(zip(NORMS, found, strict=True))


def _small_objective(W: Floats, H: Floats, y: NDArray[np.int64]) -> list[float]:
    """log of the summed loss, |grad| over the loss, |W|, |H|, 1 - beta: on this thread alone."""
    from fastnc.kernels.cpu.snapshot import N_VALUES, objective

    values = np.empty(N_VALUES)
    objective(W, H, y, values)
    return [float(v) for v in values]


def _biased_geometry(
    W: Floats, H: Floats, y: NDArray[np.int64], bias: NDArray[Any]
) -> dict[str, float]:
    from fastnc.collapse.measurement import collapse_metrics

    metrics = collapse_metrics(H, y, W=W, bias=bias).as_dict()
    found = {name: metrics[name] for name in NAMES}
    return {name: math.nan if value is None else value for name, value in found.items()}


def _objective(
    W: Floats, H: Floats, y: NDArray[np.int64], bias: NDArray[Any] | None = None
) -> list[float]:
    """The same on all threads; a bias is a column of W beside a constant feature."""
    from fastnc.kernels.cpu.cross_entropy import log_loss_and_grads

    log_loss, dim = np.empty(1), W.shape[1]
    W1, H1 = W, H
    if bias is not None:
        W1, H1 = np.column_stack([W, bias]), np.column_stack([H, np.ones(len(H))])
    grad_W, grad_H = np.empty_like(W1), np.empty_like(H1)
    log_loss_and_grads(W1, H1, y, log_loss, grad_W, grad_H)
    grad_W, grad_H = (np.ascontiguousarray(g[:, :dim]) for g in (grad_W, grad_H))
    norm_W, norm_H = float(np.linalg.norm(W)), float(np.linalg.norm(H))
    norm = math.hypot(norm_W, norm_H)
    slope = math.hypot(float(np.linalg.norm(grad_W)), float(np.linalg.norm(grad_H)))
    # Half the square of the sum of theta and the gradient, both normalised, is 1 - beta without
    # the cancellation of a subtraction from 1.
    gap = math.nan
    if norm > 0.0 and slope > 0.0:
        grad_W /= slope
        grad_H /= slope
        grad_W += W / norm
        grad_H += H / norm
        gap = 0.5 * (float(np.vdot(grad_W, grad_W)) + float(np.vdot(grad_H, grad_H)))
    return [float(log_loss[0]), slope, norm_W, norm_H, gap]
