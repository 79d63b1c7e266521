"""The loss in plain torch operations, a block of rows at a time: any device, any option.

The formula of `fastnc.reference.softmax`, row by row scaled by A_i, and, where the target is
spread over the classes (label smoothing, probabilities), moved by B:

    loss_i = A_i log(1 + S_i) - sum_j B_ij D_ij,    dloss_i / dz_ij = A_i r_ij - B_ij

with B zero at the label except for the sum that makes each row of the gradient sum to zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A block's logits and what is made of them stay within a last-level cache.
_ENTRIES_A_BLOCK = 1 << 20


class Spread(NamedTuple):
    """How much of each row's target lies on each class, beside what lies on its label.

    `own (N,)` is A of the module's formula, `uniform` the same B for every row (K,), `rows`
    a B for each row (N, K); at most one of these two is given.
    """

    own: Tensor | None
    uniform: Tensor | None
    rows: Tensor | None


class Wanted(NamedTuple):
    """Which gradients are to be computed."""

    H: bool
    W: bool
    bias: bool


class Result(NamedTuple):
    """Losses (N,) in float64 or the dtype of H; gradients of `sum scale_i loss_i`, or None."""

    losses: Tensor
    grad_H: Tensor | None
    grad_W: Tensor | None
    grad_bias: Tensor | None


def losses_and_grads(
    H: Tensor,
    W: Tensor,
    bias: Tensor | None,
    y: Tensor,
    spread: Spread,
    scale: Tensor,
    wanted: Wanted,
) -> Result:
    """Losses of all rows, and the wanted gradients of `sum_i scale_i loss_i`.

    `H (N, d)`, `W (K, d)`, `bias (K,)` in float32 or float64, `y (N,)` in 0..K-1, `scale` a
    scalar or (N,).

    Cost: `2 K N d` FLOP, and as many again for each of the two large gradients; memory for
    one block of logits.
    """
    N, K = len(H), len(W)
    losses = H.new_empty(N)
    grad_H = torch.empty_like(H) if wanted.H else None
    grad_W = torch.zeros_like(W) if wanted.W else None
    grad_bias = W.new_zeros(K) if wanted.bias else None
    rows = max(1, min(N, _ENTRIES_A_BLOCK // max(K, 1)))
    for start in range(0, N, rows):
        part = slice(start, start + rows)
        h, label = H[part], y[part].unsqueeze(1)
        z = h @ W.T if bias is None else torch.addmm(bias, h, W.T)
        gaps = z - z.gather(1, label)
        losses[part], r = _softmax(gaps, label, _part(spread, part))
        if not any(wanted):
            continue
        r *= scale if scale.dim() == 0 else scale[part].unsqueeze(1)
        if grad_H is not None:
            torch.mm(r, W, out=grad_H[part])
        if grad_W is not None:
            grad_W.addmm_(r.T, h)
        if grad_bias is not None:
            grad_bias += r.sum(0)
    return Result(losses, grad_H, grad_W, grad_bias)


def _part(spread: Spread, part: slice) -> Spread:
    return Spread(
        None if spread.own is None else spread.own[part],
        spread.uniform,
        None if spread.rows is None else spread.rows[part],
    )


def _softmax(gaps: Tensor, label: Tensor, spread: Spread) -> tuple[Tensor, Tensor]:
    """Losses and their derivatives by the logits; `gaps` is overwritten."""
    B = spread.rows if spread.uniform is None else spread.uniform.expand_as(gaps)
    if B is not None:
        B = B.scatter(1, label, 0.0)
        moved = (B * gaps).sum(1)
    gaps.scatter_(1, label, -torch.inf)
    m = gaps.amax(1, keepdim=True).clamp_(min=0.0)
    e = torch.exp(gaps - m)
    S = e.sum(1, keepdim=True)
    den = torch.exp(-m) + S
    losses = torch.where(m == 0.0, torch.log1p(S), m + torch.log(den)).squeeze(1)
    r = e / den
    r.scatter_(1, label, -S / den)
    if spread.own is not None:
        losses = spread.own * losses
        r *= spread.own.unsqueeze(1)
    if B is not None:
        losses = losses - moved
        r -= B
        r.scatter_add_(1, label, B.sum(1, keepdim=True))
    return losses, r
