"""One row of a trajectory, of samples that are spread over the ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastnc._core.ranks import Workers

# A float64 copy of a chunk of this many bytes is made at a time.
_CHUNK_BYTES = 1 << 26


def objective(
    W: Tensor, bias: Tensor | None, H: Tensor, y: Tensor, margin: float | None, workers: Workers
) -> dict[str, float]:
    """The columns of `fastnc.snapshot` that tell of the objective, over all ranks' samples.

    The layer-peeled variables are W (K, d) and H (N, d), of which each rank holds some rows; the
    bias, where there is one, enters the logits and is held fixed: it joins W as a column beside
    a constant feature, and leaves the gradients. `margin` is q_min of all samples.

    Cost: one pass over H in float64, by chunks; K d + 6 numbers are exchanged.
    """
    from fastnc import log_loss_and_grads

    K, d = W.shape
    W = W.double()
    logits_W = W if bias is None else torch.cat([W, bias.double().unsqueeze(1)], 1)
    # Everything is divided by e^peak, the largest loss of a chunk, and so survives any margin.
    peak = torch.full((), -math.inf, dtype=torch.float64, device=W.device)
    sums = W.new_zeros(5)
    grad_W = W.new_zeros(K, d)
    rows = max(1, _CHUNK_BYTES // (8 * (d + 1)))
    for low in range(0, len(H), rows):
        h = H[low : low + rows].double()
        h1 = h if bias is None else torch.cat([h, h.new_ones(len(h), 1)], 1)
        log_loss, dW, dH = log_loss_and_grads(logits_W, h1, y[low : low + rows], reduction="sum")
        before, peak = peak, torch.maximum(peak, log_loss)
        shrink, share = torch.exp(before - peak), torch.exp(log_loss - peak)
        dH = dH[:, :d] * share
        grad_W = grad_W * shrink + dW[:, :d] * share
        new = torch.stack([share, (dH * dH).sum(), (dH * h).sum()])
        sums[:3] = sums[:3] * torch.stack([shrink, shrink**2, shrink]) + new
        sums[3] += (h * h).sum()
        sums[4] += len(h)

    highest = workers.largest(peak.clone())
    shrink = torch.exp(peak - highest)
    sums[:3] *= torch.stack([shrink, shrink**2, shrink])
    total, square_dH, dot, square_H, n_samples = workers.sum(sums).tolist()
    grad_W = workers.sum(grad_W * shrink)

    square_W = float((W * W).sum())
    norm = math.sqrt(square_W + square_H)
    slope = math.sqrt(float((grad_W * grad_W).sum()) + square_dH)
    mean_log_loss = float(highest) + math.log(total) - math.log(n_samples)
    log_grad_norm = mean_log_loss + math.log(slope / total) if slope > 0.0 else -math.inf
    beta = math.nan
    if norm > 0.0 and slope > 0.0:
        beta = -(float((grad_W * W).sum()) + dot) / (norm * slope)
    epsilon = math.nan
    if margin is not None and margin > 0.0:
        epsilon = norm * math.sqrt(2.0 * max(1.0 - beta, 0.0) / margin)
    return {
        "log_loss": mean_log_loss,
        "log_grad_norm": log_grad_norm,
        "grad_norm": math.exp(log_grad_norm) if log_grad_norm < 709.0 else math.inf,
        "norm_W": math.sqrt(square_W),
        "norm_H": math.sqrt(square_H),
        "beta": beta,
        "epsilon": epsilon,
    }
