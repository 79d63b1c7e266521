"""The loss in plain torch operations, a block of rows at a time: any device, any target.

The formula of `fastnc.reference.softmax`, row by row scaled by A_i, and, where the target is
spread over the classes (label smoothing, probabilities), moved by B:

    loss_i = A_i log(1 + S_i) - sum_j B_ij D_ij,    dloss_i / dz_ij = A_i r_ij - B_ij

with B zero at the label except for the sum that makes each row of the gradient sum to zero. Logits
may be capped, `z = c tanh(z' / c)`, whose derivative is `4 e / (1 + e)^2`, `e = exp(-2 |z'| / c)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnc.nn._labels import look, misfits
from fastnc.nn._problem import Problem, Result

# A block's logits and what is made of them stay within a last-level cache.
_ENTRIES_A_BLOCK = 1 << 20


def evaluate(dtype: torch.dtype, problem: Problem, upstream: Tensor | None = None) -> Result:
    """The loss, in float64 where it is reduced, and the gradients that are wanted.

    Cost: `2 K N d` FLOP, and as many again for each of the two large gradients; memory for
    one block of logits. A device is not waited for.
    """
    (
        input, linear_weight, linear_bias, target, weight, reduction, ignore_index,
        label_smoothing, wanted, softcap,
    ) = problem  # fmt: skip
    H, W = input.detach().to(dtype), linear_weight.detach().to(dtype)
    bias = None if linear_bias is None else linear_bias.detach().to(dtype)
    N, K = len(H), len(W)
    target = target.detach()
    weight = H.new_ones(K) if weight is None else weight.detach().to(dtype)
    counted = bad = None
    if target.is_floating_point():
        divisor = H.new_full((), N, dtype=torch.float64)
    else:
        look(target, K, ignore_index)
        target = target.to(torch.int64)
        counted = target != ignore_index
        bad = misfits(target, K, ignore_index)
        target = target.masked_fill(~counted | bad, 0)
        divisor = (weight[target] * counted).sum(dtype=torch.float64)
    spread = _Spread(target, weight, label_smoothing, counted, bad)
    scale = H.new_ones(()) if upstream is None else upstream.detach().to(dtype)
    if reduction == "mean":
        scale = divisor.reciprocal().to(dtype)
    losses = H.new_empty(N)
    grad_H = torch.empty(H.shape, dtype=dtype, device=H.device) if wanted & 1 else None
    grad_W = torch.zeros(W.shape, dtype=dtype, device=H.device) if wanted & 2 else None
    grad_bias = W.new_zeros(K) if wanted & 4 else None
    rows = max(1, min(N, _ENTRIES_A_BLOCK // K))
    for start in range(0, N, rows):
        part = slice(start, start + rows)
        z = H[part] @ W.T if bias is None else torch.addmm(bias, H[part], W.T)
        slope = None
        if softcap:
            z, slope = _capped(z, softcap)
        losses[part], r = _softmax(z, *spread.of(part))
        if slope is not None:
            r *= slope
        r *= scale if scale.dim() == 0 else scale[part].unsqueeze(1)
        if grad_H is not None:
            grad_H[part] = r @ W
        if grad_W is not None:
            grad_W.addmm_(r.T, H[part])
        if grad_bias is not None:
            grad_bias += r.sum(0)
    if reduction == "none":
        return losses, grad_H, grad_W, grad_bias
    total = losses.sum(dtype=torch.float64)
    return (total / divisor if reduction == "mean" else total), grad_H, grad_W, grad_bias


@dataclass(frozen=True)
class _Spread:
    """How each row's target lies on the classes."""

    target: Tensor  # (N,) classes, or (N, K) probabilities
    weight: Tensor  # (K,)
    smoothing: float
    counted: Tensor | None  # (N,) bool
    bad: Tensor | None  # (N,) bool

    def of(self, part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of some rows: the class that gaps are taken from (n, 1), A (n, 1), and B (n, K)."""
        target, K = self.target[part], len(self.weight)
        if target.is_floating_point():
            B = target.to(self.weight.dtype)
            if self.smoothing > 0.0:
                B = B * (1.0 - self.smoothing) + self.smoothing / K
            B = B * self.weight
            # Near its optimum the class with most of the target wins: few digits cancel.
            return B.argmax(1, keepdim=True), B.sum(1, keepdim=True, dtype=torch.float64), B
        label = target.unsqueeze(1)
        A = self.weight[label]
        if self.smoothing > 0.0:
            uniform = self.weight * (self.smoothing / K)
            A = A * (1.0 - self.smoothing) + uniform.sum(dtype=torch.float64)
        if self.counted is not None and self.bad is not None:
            A = A * self.counted[part].unsqueeze(1)
            A = A.masked_fill(self.bad[part].unsqueeze(1), torch.nan)
        if self.smoothing == 0.0:
            return label, A, None
        B = uniform.expand(len(label), K)
        if self.counted is not None:
            B = B * self.counted[part].unsqueeze(1)
        return label, A, B


def _capped(z: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """`c tanh(z / c)` and its derivative, which keeps its digits where the first levels off."""
    z = z / softcap
    e = torch.exp(-2.0 * z.abs())
    return softcap * torch.tanh(z), 4.0 * e / (1.0 + e).square()


def _softmax(gaps: Tensor, label: Tensor, A: Tensor, B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses, and their derivatives by the logits, which are overwritten.

    Sums are taken in float64, and the loss is one of terms of one sign:
    `A (log sum_j e^{D_j} - m) + sum_j B_j (m - D_j)` with m the largest D_j.
    """
    dtype, wide = gaps.dtype, torch.float64
    gaps -= gaps.gather(1, label)
    poison = 0.0 * gaps.gather(1, label)
    gaps.scatter_(1, label, -torch.inf)
    m = gaps.amax(1, keepdim=True).clamp_(min=0.0)
    e = torch.exp(gaps - m)
    S = e.sum(1, keepdim=True, dtype=wide)
    least = torch.exp(-m.to(wide))
    den = least + S
    losses = torch.where(m == 0.0, torch.log1p(S), torch.log(den))
    label_r = -A * (S / den)
    r = e * (A / den).to(dtype)
    if B is None:
        losses = A * (m + losses)
    else:
        gaps.scatter_(1, label, 0.0)
        losses = A * losses + (B * (m - gaps)).sum(1, keepdim=True, dtype=wide)
        r -= B
        p_y, own = least / den, B.gather(1, label)
        others = B.scatter(1, label, 0.0).sum(1, keepdim=True, dtype=wide)
        # Of two forms the one that cancels less.
        label_r = torch.where(p_y < 0.5, A * p_y - own, others + label_r)
    r.scatter_(1, label, label_r.to(dtype))
    return (losses + poison).squeeze(1).to(dtype), r
