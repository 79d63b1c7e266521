"""One row of a trajectory, of samples that are spread over the ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastnc._core.ranks import Workers
from fastnc.dynamics.snapshot import NORMS
from fastnc.theory.norm_margins import ratio_max, ratio_spectral

# A float64 copy of a chunk of this many bytes is made at a time.
_CHUNK_BYTES = 1 << 26
# Beyond it a Gram matrix of the features takes longer than all else of a row.
_GRAM_FEATURES = 1024


def objective(
    W: Tensor, bias: Tensor | None, H: Tensor, y: Tensor, margin: float | None, workers: Workers
) -> dict[str, float]:
    """The columns of `fastnc.snapshot` that tell of the objective, over all ranks' samples.

    The layer-peeled variables are W (K, d) and H (N, d), of which each rank holds some rows; the
    bias, where there is one, enters the logits and is held fixed: it joins W as a column beside
    a constant feature, and leaves the gradients. `margin` is q_min of all samples.

    Cost: two passes over H in float64, by chunks, since `1 - beta` is a norm that must be known
    first; K d + 6 numbers are exchanged.
    """
    W = W.double()
    # Everything is divided by e^peak, the largest loss of a chunk, and so survives any margin.
    peak = torch.full((), -math.inf, dtype=torch.float64, device=W.device)
    sums = W.new_zeros(4)
    grad_W = torch.zeros_like(W)
    for h, log_loss, dW, dH in _chunks(W, bias, H, y):
        before, peak = peak, torch.maximum(peak, log_loss)
        shrink, share = torch.exp(before - peak), torch.exp(log_loss - peak)
        grad_W = grad_W * shrink + dW * share
        new = torch.stack([share, share**2 * (dH * dH).sum()])
        sums[:2] = sums[:2] * torch.stack([shrink, shrink**2]) + new
        sums[2] += (h * h).sum()
        sums[3] += len(h)

    highest = workers.largest(peak.clone())
    shrink = torch.exp(peak - highest)
    sums[:2] *= torch.stack([shrink, shrink**2])
    total, square_dH, square_H, n_samples = workers.sum(sums).tolist()
    grad_W = workers.sum(grad_W * shrink)

    square_W = float((W * W).sum())
    norm = math.sqrt(square_W + square_H)
    slope = math.sqrt(float((grad_W * grad_W).sum()) + square_dH)
    mean_log_loss = float(highest) + math.log(total) - math.log(n_samples)
    log_grad_norm = mean_log_loss + math.log(slope / total) if slope > 0.0 else -math.inf
    gap = math.nan
    if norm > 0.0 and slope > 0.0:
        # theta and the gradient become opposite: their normalised sum is 1 - beta without the
        # cancellation that a scalar product close to 1 would carry.
        square = torch.zeros((), dtype=torch.float64, device=W.device)
        for h, log_loss, _, dH in _chunks(W, bias, H, y):
            square += (h / norm + dH * (torch.exp(log_loss - highest) / slope)).square().sum()
        gap = 0.5 * float(workers.sum(square) + (W / norm + grad_W / slope).square().sum())
    epsilon = math.nan
    if margin is not None and margin > 0.0:
        epsilon = norm * math.sqrt(2.0 * gap / margin)
    row = {
        "log_loss": mean_log_loss,
        "log_grad_norm": log_grad_norm,
        "grad_norm": math.exp(log_grad_norm) if log_grad_norm < 709.0 else math.inf,
        "norm_W": math.sqrt(square_W),
        "norm_H": math.sqrt(square_H),
        "beta": 1.0 - gap,
        "epsilon": epsilon,
    }
    return row | _norms(W, H, y, margin, workers)


def _norms(
    W: Tensor, H: Tensor, y: Tensor, margin: float | None, workers: Workers
) -> dict[str, float]:
    """The margin in the norms of other rules; the operator norm's only up to 1024 features."""
    if margin is None or not margin < math.inf:
        return dict.fromkeys(NORMS, math.nan)
    K, d = W.shape
    counts = workers.sum(torch.bincount(y, minlength=K).double()).cpu().numpy()
    peak = max(float(W.abs().max()), float(H.abs().max()) if len(H) else 0.0)
    largest = float(workers.largest(torch.tensor(peak, dtype=torch.float64, device=W.device)))
    square = math.nan
    if d <= _GRAM_FEATURES:
        gram = W.new_zeros(d, d)
        rows = max(1, _CHUNK_BYTES // (8 * (d + 1)))
        for low in range(0, len(H), rows):
            h = H[low : low + rows].double()
            gram += h.T @ h
        gram = workers.sum(gram)
        of_W = W @ W.T if d >= K else W.T @ W
        square = max(float(torch.linalg.eigvalsh(x)[-1]) for x in (gram, of_W))
    found = ratio_max(margin, counts, d, largest), ratio_spectral(margin, counts, square)
    return dict(zip(NORMS, found, strict=True))


def _chunks(
    W: Tensor, bias: Tensor | None, H: Tensor, y: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Some rows of H in float64, log of their summed loss, its gradients over it, a chunk each."""
    from fastnc import log_loss_and_grads

    d = W.shape[1]
    logits_W = W if bias is None else torch.cat([W, bias.double().unsqueeze(1)], 1)
    rows = max(1, _CHUNK_BYTES // (8 * (d + 1)))
    for low in range(0, len(H), rows):
        h = H[low : low + rows].double()
        h1 = h if bias is None else torch.cat([h, h.new_ones(len(h), 1)], 1)
        log_loss, dW, dH = log_loss_and_grads(logits_W, h1, y[low : low + rows], reduction="sum")
        yield h, log_loss, dW[:, :d], dH[:, :d]
