"""The loss in plain torch operations, a block of rows at a time: any device, any target.

The formula of `fastnc.reference.softmax`, row by row scaled by A_i and, where the target is
spread over the classes (label smoothing, probabilities), shifted by B:

    loss_i = A_i log(1 + S_i) - sum_j B_ij D_ij,    dloss_i / dz_ij = A_i p_ij - B_ij

where B is at the label alone if nothing is spread. The further outputs come from the same block:
the log-sum-exp, whose derivative is p_ij, the class of the largest logit, and the softmax's entropy
E_i, whose derivative is `-p_ij (log p_ij + E_i)`. Logits may be capped, `z = c tanh(z' / c)`, with
the derivative `4 e / (1 + e)^2`, `e = exp(-2 |z'| / c)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastnc.nn._labels import look, misfits
from fastnc.nn._problem import Problem, Result
from fastnc.nn._surroundings import without_autocast

# A block's logits and their softmax stay within a last-level cache.
_ENTRIES_A_BLOCK = 1 << 20


class Asked(NamedTuple):
    """The requested outputs of each sample beside its loss, and the weight of its z-loss."""

    lse: bool = False
    predictions: bool = False
    entropies: bool = False
    z_loss_weight: float = 0.0


class Upstream(NamedTuple):
    """Upstream gradients (N,) of each output of a sample; None where nothing depends on it."""

    losses: Tensor | None = None
    lse: Tensor | None = None
    entropies: Tensor | None = None


class Pass(NamedTuple):
    """Results of one pass: the loss, float64 if reduced, the requested outputs, the gradients."""

    loss: Tensor
    lse: Tensor | None
    predictions: Tensor | None
    entropies: Tensor | None
    grads: list[Tensor | None]


_NOTHING = Asked()


def evaluate(dtype: torch.dtype, problem: Problem, upstream: Tensor | None = None) -> Result:
    """The loss, in float64 if reduced, and the wanted gradients."""
    made = one_pass(dtype, problem, _NOTHING, None if upstream is None else Upstream(upstream))
    return made.loss, made.grads[0], made.grads[1], made.grads[2]


@without_autocast
def one_pass(
    dtype: torch.dtype, problem: Problem, asked: Asked, upstream: Upstream | None = None
) -> Pass:
    """All requested outputs and gradients from one computation of the logits.

    Gradients are those of the reduced loss, z-loss included, or of the sum over samples of
    `upstream` times the outputs.

    Cost: `2 K N d` FLOP, and as many again for each of the gradients by input and weight; memory
    for one block of logits. A device is not waited for.
    """
    (
        input, linear_weight, linear_bias, target, weight, reduction, ignore_index,
        label_smoothing, wanted, softcap,
    ) = problem  # fmt: skip
    H, W = _held(input).to(dtype), _held(linear_weight).to(dtype)
    bias = None if linear_bias is None else _held(linear_bias).to(dtype)
    N, K = len(H), len(W)
    target = _held(target)
    weight = H.new_ones(K) if weight is None else _held(weight).to(dtype)
    counted = bad = None
    divisor = count = H.new_full((), N, dtype=torch.float64)
    if not target.is_floating_point():
        look(target, K, ignore_index)
        target = target.to(torch.int64)
        counted = target != ignore_index
        bad = misfits(target, K, ignore_index)
        if target.is_cpu and bool(counted.all()):
            # No sample is ignored: on the CPU to check that needs no wait.
            counted = bad = None
            divisor = weight[target].sum(dtype=torch.float64)
        else:
            target = target.masked_fill(~counted | bad, 0)
            divisor = (weight[target] * counted).sum(dtype=torch.float64)
            count = counted.sum(dtype=torch.float64)
    spread = _Spread(target, weight, label_smoothing, counted, bad)
    mean = reduction == "mean"
    # Over labels of weight 0 the mean is 0 / 0, as torch has it.
    divisor = divisor.masked_fill(divisor == 0.0, torch.nan)
    each = divisor.reciprocal() if mean else H.new_ones((), dtype=torch.float64)
    by_z = asked.z_loss_weight * (count.reciprocal() if mean else torch.ones_like(each))
    losses = H.new_empty(N)
    lse = H.new_zeros(N) if asked.lse or asked.z_loss_weight else None
    predictions = target.new_empty(N, dtype=torch.int64) if asked.predictions else None
    entropies = H.new_zeros(N) if asked.entropies else None
    grad_H = torch.empty(H.shape, dtype=dtype, device=H.device) if wanted & 1 else None
    grad_W = torch.zeros(W.shape, dtype=dtype, device=H.device) if wanted & 2 else None
    grad_bias = W.new_zeros(K) if wanted & 4 else None
    rows = max(1, min(N, _ENTRIES_A_BLOCK // K))
    for start in range(0, N, rows):
        part = slice(start, start + rows)
        h = H[part]
        z = h @ W.T if bias is None else torch.addmm(bias, h, W.T)
        slope = None
        if predictions is not None:
            # Before the cap, which keeps the order and rounds large logits to one number.
            predictions[part] = z.argmax(1)
        if softcap:
            z, slope = _capped(z, softcap)
        block = _Block(z, *spread.of(part))
        losses[part] = block.losses
        if lse is not None:
            lse[part] = block.lse
        if entropies is not None:
            entropies[part] = block.entropies
        if not wanted:
            continue
        if upstream is None:
            by_lse = 2.0 * by_z * block.wide_lse if asked.z_loss_weight else None
            r = block.residuals(each, by_lse)
        else:
            r = block.along(*(None if u is None else _held(u)[part] for u in upstream))
        if slope is not None:
            r *= slope
        if counted is not None:
            # Ignored rows may hold NaN, and `0 * NaN` is NaN.
            r, h = (torch.where(counted[part].unsqueeze(1), x, 0.0) for x in (r, h))
        if grad_H is not None:
            grad_H[part] = r @ W if N != 1 and W.shape[1] > 1 else summed(r, W)
        if grad_W is not None:
            grad_W.addmm_(r.T, h)
        if grad_bias is not None:
            grad_bias += r.sum(0)
    if counted is not None:
        losses = torch.where(counted, losses, 0.0)
        lse = None if lse is None else torch.where(counted, lse, 0.0)
        entropies = None if entropies is None else torch.where(counted, entropies, 0.0)
    loss = losses if reduction == "none" else losses.sum(dtype=torch.float64) * each
    if lse is not None and asked.z_loss_weight:
        squares = lse.to(torch.float64).square()
        z_losses = asked.z_loss_weight * squares.to(dtype)
        loss = loss + (z_losses if reduction == "none" else squares.sum() * by_z)
    grads = [grad_H, grad_W, grad_bias]
    return Pass(loss, lse, predictions, entropies, grads)


def _held(x: Tensor) -> Tensor:
    """Without its derivatives, and in memory: zeros that have none cannot be written to."""
    x = x.detach()
    return x.clone() if x._is_zerotensor() else x


@dataclass(frozen=True)
class _Spread:
    """The weights of the classes in each row's target."""

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
            # Near its optimum the class with most of the target has the largest logit: few digits
            # cancel.
            return B.argmax(1, keepdim=True), B.sum(1, keepdim=True, dtype=torch.float64), B
        label = target.unsqueeze(1)
        A = own = self.weight[label]
        uniform = self.weight * (self.smoothing / K)
        if self.smoothing > 0.0:
            own = own * (1.0 - self.smoothing)
            A = own + uniform.sum(dtype=torch.float64)
        if self.counted is not None and self.bad is not None:
            A = A * self.counted[part].unsqueeze(1)
            A = A.masked_fill(self.bad[part].unsqueeze(1), torch.nan)
        if self.smoothing == 0.0:
            return label, A, None
        B = uniform.repeat(len(label), 1).scatter_add_(1, label, own)
        if self.counted is not None:
            B = B * self.counted[part].unsqueeze(1)
        return label, A, B


def summed(r: Tensor, W: Tensor) -> Tensor:
    """`r @ W` of one row or one column, which a BLAS would sum in sequence."""
    one_column = W.shape[1] == 1
    return (r * W.mT).sum(1, keepdim=True) if one_column else (r.mT * W).sum(0, keepdim=True)


def _capped(z: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """`c tanh(z / c)` and its derivative, which keeps its digits for large |z|."""
    z = z / softcap
    e = torch.exp(-2.0 * z.abs())
    return softcap * torch.tanh(z), 4.0 * e / (1.0 + e).square()


class _Block:
    """The softmax of some rows of logits, and its outputs; sums are taken in float64."""

    def __init__(self, z: Tensor, label: Tensor, A: Tensor, B: Tensor | None) -> None:
        wide = torch.float64
        self.dtype, self.label, self.A, self.B = z.dtype, label, A, B
        z_y = z.gather(1, label)
        others = z.scatter(1, label, -torch.inf)
        top, at = others.max(1, keepdim=True)
        m = (top - z_y).clamp_(min=0.0)
        largest = torch.where(m > 0.0, top, z_y)
        gaps = others.sub_(largest)
        self.e = torch.exp(gaps)
        if self.dtype == wide:
            # Without the largest of the others: beside its 1 the rest would lose digits.
            e_top = self.e.gather(1, at)
            S = self.e.scatter_(1, at, 0.0).sum(1, keepdim=True)
            self.e.scatter_(1, at, e_top)
            self.S = S + e_top
        else:
            self.S = self.e.sum(1, keepdim=True, dtype=wide)
            S = self.S - 1.0
        self.least = torch.exp(-m.to(wide))
        self.den = self.least + self.S
        # log(sum_j e^{z_j}) from the largest logit on.
        self.rest = torch.log1p(torch.where(m == 0.0, self.S, S + self.least))
        self.gaps = gaps.scatter_(1, label, -m)
        self.wide_lse = largest + self.rest
        if B is None:
            losses = A * (m + self.rest)
        else:
            # Of terms of one sign.
            losses = A * self.rest - (B * self.gaps).sum(1, keepdim=True, dtype=wide)
        # A label's logit that is not finite makes the loss NaN.
        self.losses = (losses + 0.0 * z_y).squeeze(1).to(z.dtype)

    @property
    def lse(self) -> Tensor:
        return self.wide_lse.squeeze(1).to(self.dtype)

    @property
    def p(self) -> Tensor:
        p = self.e / self.den.to(self.dtype)
        return p.scatter_(1, self.label, (self.least / self.den).to(self.dtype))

    @property
    def entropies(self) -> Tensor:
        return self._entropies().squeeze(1).to(self.dtype)

    def _log_p(self) -> Tensor:
        return self.gaps - self.rest.to(self.dtype)

    def _entropies(self) -> Tensor:
        log_p = self._log_p()
        terms = self.p * torch.where(torch.isinf(log_p), 0.0, log_p)
        return -terms.sum(1, keepdim=True, dtype=torch.float64)

    def residuals(self, each: Tensor, by_lse: Tensor | None = None) -> Tensor:
        """Derivatives by the logits of the losses times `each`, plus the lse times `by_lse`.

        `each` is a number, or one for each row.
        """
        label_r = -self.A * (self.S / self.den)
        factor = each * self.A
        r = self.e * ((factor if by_lse is None else factor + by_lse) / self.den).to(self.dtype)
        if self.B is not None:
            r -= self.B * each.to(self.dtype)
            p_y, own = self.least / self.den, self.B.gather(1, self.label)
            others = self.B.scatter(1, self.label, 0.0).sum(1, keepdim=True, dtype=torch.float64)
            # Of two forms the one that cancels less.
            label_r = torch.where(p_y < 0.5, self.A * p_y - own, others + label_r)
        label_r = each * label_r
        if by_lse is not None:
            label_r = label_r + by_lse * (self.least / self.den)
        return r.scatter_(1, self.label, label_r.to(self.dtype))

    def along(self, losses: Tensor | None, lse: Tensor | None, entropies: Tensor | None) -> Tensor:
        """Derivatives by the logits of each row's outputs times their upstream gradients."""
        by_lse = None if lse is None else lse.to(torch.float64).unsqueeze(1)
        if losses is not None:
            r = self.residuals(losses.unsqueeze(1), by_lse)
        elif by_lse is not None:
            r = self.p * by_lse.to(self.dtype)
        else:
            r = torch.zeros_like(self.e)
        if entropies is not None:
            p, log_p = self.p, self._log_p()
            slope = p * (log_p + self._entropies().to(self.dtype))
            r -= torch.where(torch.isinf(log_p), 0.0, slope) * entropies.to(self.dtype).unsqueeze(1)
        return r
