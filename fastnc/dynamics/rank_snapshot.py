"""One row of a trajectory, of tensors on any device, whose samples may be spread over ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastnc._core.ranks import Workers
from fastnc.dynamics.snapshot import COLUMNS, LARGEST_NORM, NORMS
from fastnc.theory.norm_margins import ratio_max, ratio_spectral, spectral_square

# A float64 copy of a chunk of this many bytes is made at a time.
_CHUNK_BYTES = 1 << 26
# Beyond it a Gram matrix of the features takes longer than all else of a row.
_GRAM_FEATURES = 1024


def measure(
    W: Tensor,
    H: Tensor,
    y: NDArray[np.int64],
    workers: Workers,
    H_low: Tensor | None = None,
    bias: Tensor | None = None,
) -> dict[str, float]:
    """The columns of a run at W (K, d) and this rank's rows of H (n, d), or of `H + H_low`.

    As `fastnc.dynamics.snapshot.measure`, to rounding; everything is summed in float64 on the
    device of the tensors. H is read chunk by chunk and never leaves it.
    """
    from fastnc import ClassDeviations, ClassStatistics

    W = W.double()
    if not _norm(W, H, H_low, workers) < LARGEST_NORM:
        return dict.fromkeys(COLUMNS, math.nan)
    statistics = ClassStatistics(*W.shape)
    for rows, h in _wide(H, H_low):
        statistics.update_from(rows.start, h, y[rows])
    if workers.several:
        statistics.all_reduce()
    offsets = None if bias is None else bias.double().cpu().numpy()
    deviations = ClassDeviations(statistics, W.cpu().numpy(), offsets)
    for rows, h in _wide(H, H_low):
        deviations.update_from(rows.start, h, y[rows])
    if workers.several:
        deviations.all_reduce()
    metrics = deviations.metrics().as_dict()
    labels = torch.from_numpy(np.array(y)).to(H.device)
    row = objective(W, bias, H, labels, metrics["margin"], workers, H_low)
    row |= {name: math.nan if v is None else v for name, v in metrics.items()}
    return {name: row[name] for name in COLUMNS}


def _norm(W: Tensor, H: Tensor, H_low: Tensor | None, workers: Workers) -> float:
    """The largest norm, over the ranks, of W and a rank's rows together; infinite if not finite."""
    square = (W * W).sum()
    for _, h in _wide(H, H_low):
        square = square + (h * h).sum()
    norm = square.sqrt().nan_to_num(math.inf, math.inf)
    return float(workers.largest(norm))


def objective(
    W: Tensor,
    bias: Tensor | None,
    H: Tensor,
    y: Tensor,
    margin: float | None,
    workers: Workers,
    H_low: Tensor | None = None,
) -> dict[str, float]:
    """The columns `OBJECTIVE` and `NORMS` of `dynamics.snapshot`, over all ranks' samples.

    The layer-peeled variables are W (K, d) and H (N, d), of which each rank holds some rows; the
    bias, where there is one, enters the logits and is held fixed: it joins W as a column beside
    a constant feature, and leaves the gradients. `margin` is q_min of all samples. With `H_low`
    the features are `H + H_low`.

    Cost: four passes over H in float64, by chunks: two for the objective, as `1 - beta` needs the
    norms of theta and of the gradient first, and two for `NORMS`. K d + d^2 + K + 7 numbers are
    exchanged (beyond d = 1024 d numbers for each Lanczos product in the place of d^2).
    """
    W = W.double()
    # Everything is divided by e^peak, the largest loss of a chunk, and so survives any margin.
    peak = torch.full((), -math.inf, dtype=torch.float64, device=W.device)
    sums = W.new_zeros(4)
    grad_W = torch.zeros_like(W)
    for h, log_loss, dW, dH in _chunks(W, bias, H, y, H_low):
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
        # Half the square of the sum of theta and the gradient, both normalised, is 1 - beta
        # without the cancellation of a subtraction from 1.
        square = torch.zeros((), dtype=torch.float64, device=W.device)
        for h, log_loss, _, dH in _chunks(W, bias, H, y, H_low):
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
    return row | _norms(W, H, y, margin, workers, H_low)


def _norms(
    W: Tensor, H: Tensor, y: Tensor, margin: float | None, workers: Workers, H_low: Tensor | None
) -> dict[str, float]:
    """The margin ratios in the norms of sign and of spectral descent."""
    if margin is None or not margin < math.inf:
        return dict.fromkeys(NORMS, math.nan)
    K, d = W.shape
    counts = workers.sum(torch.bincount(y, minlength=K).double()).cpu().numpy()
    peak = W.abs().max()
    for _, h in _wide(H, H_low):
        peak = torch.maximum(peak, h.abs().max())
    largest = float(workers.largest(peak))
    square = max(spectral_square(W.cpu().numpy()), _largest_square(H, H_low, d, workers))
    found = ratio_max(margin, counts, d, largest), ratio_spectral(margin, counts, square)
    return dict(zip(NORMS, found, strict=True))


def _largest_square(H: Tensor, H_low: Tensor | None, d: int, workers: Workers) -> float:
    """The square of the largest singular value of all ranks' rows of H together."""
    if d <= _GRAM_FEATURES:
        gram = torch.zeros((d, d), dtype=torch.float64, device=H.device)
        for _, h in _wide(H, H_low):
            gram += h.T @ h
        return float(torch.linalg.eigvalsh(workers.sum(gram))[-1])
    from scipy.sparse.linalg import LinearOperator, eigsh

    def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
        """`H^T H v`; d numbers are exchanged."""
        there = torch.from_numpy(np.ravel(v)).to(H.device)
        out = torch.zeros_like(there)
        for _, h in _wide(H, H_low):
            out += h.T @ (h @ there)
        return np.asarray(workers.sum(out).cpu().numpy())

    gram = LinearOperator((d, d), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(d)
    return float(eigsh(gram, 1, which="LA", v0=start, tol=1e-10, return_eigenvectors=False)[0])


def _wide(H: Tensor, H_low: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows, and those rows of `H + H_low` in float64."""
    rows = max(1, _CHUNK_BYTES // (8 * (H.shape[1] + 1)))
    for low in range(0, len(H), rows):
        part = slice(low, min(low + rows, len(H)))
        h = H[part].double()
        yield part, h if H_low is None else h + H_low[part]


def _chunks(
    W: Tensor, bias: Tensor | None, H: Tensor, y: Tensor, H_low: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each chunk: rows of H in float64, log of their summed loss, the gradients of that log."""
    from fastnc import log_loss_and_grads

    d = W.shape[1]
    logits_W = W if bias is None else torch.cat([W, bias.double().unsqueeze(1)], 1)
    for rows, h in _wide(H, H_low):
        h1 = h if bias is None else torch.cat([h, h.new_ones(len(h), 1)], 1)
        log_loss, dW, dH = log_loss_and_grads(logits_W, h1, y[rows], reduction="sum")
        yield h, log_loss, dW[:, :d], dH[:, :d]
