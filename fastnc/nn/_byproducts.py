"""What the loss yields beside itself: log-sum-exp, predictions, entropies, and what they add.

All of it comes of the loss's own pass over the logits (`_together`). Where a kernel's addresses are
of no use, under transforms, tracers and compilers, a sample's log-sum-exp is made of its plain loss
and its label's logit, `lse_i = loss_i + z_y`, and the rest of the logits once more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastnc.nn import _formula
from fastnc.nn._autograd import apply, by_target, wanted_of
from fastnc.nn._problem import Problem, loss_dtype, working_dtype
from fastnc.nn._surroundings import plain, recorded, transformed
from fastnc.nn._together import Together
from fastnc.nn._torch_rows import Asked

# As many logits at once as stay within a last-level cache.
_ENTRIES_A_BLOCK = 1 << 20


class Output(NamedTuple):
    """The loss, and for each sample what was asked for."""

    loss: Tensor
    lse: Tensor | None
    predictions: Tensor | None


class OutputWithEntropies(NamedTuple):
    """The loss, and for each sample what was asked for, with entropies."""

    loss: Tensor
    lse: Tensor | None
    predictions: Tensor | None
    entropies: Tensor | None


class Extras(NamedTuple):
    """The options beyond torch's; `softcap` is 0 where there is none."""

    lse: bool
    predictions: bool
    entropies: bool
    z_loss_weight: float
    logit_scale: float | Tensor | None
    softcap: float

    @property
    def returned(self) -> bool:
        return self.lse or self.predictions or self.entropies


class Rows(NamedTuple):
    """Of each sample, in the working dtype: its loss without z-loss, and what was asked for."""

    losses: Tensor
    lse: Tensor | None
    predictions: Tensor | None
    entropies: Tensor | None


def with_extras(problem: Problem, extras: Extras) -> Any:
    """The loss of a problem (N, d), or a tuple that begins with it."""
    if not (extras.returned or extras.z_loss_weight):
        kind = loss_dtype(problem.input, problem.linear_weight, problem.target)
        scaled = scaled_and_capped(problem, extras)
        return apply(_asking(scaled)).to(kind)
    if not _at_once(problem):
        return assembled(rows(problem, extras), problem, extras)
    kind = loss_dtype(problem.input, problem.linear_weight, problem.target)
    with torch.autocast(problem.input.device.type, enabled=False):
        scaled = _asking(_widened(scaled_and_capped(problem, extras)))
        asked = Asked(extras.lse, extras.predictions, extras.entropies, extras.z_loss_weight)
        made = Together.apply(*scaled[:3], scaled, asked, _by_operations)
    return _returned(made[0].to(kind), Rows(*made), extras)


def _at_once(problem: Problem) -> bool:
    """Whether one pass makes everything: plain tensors, and nobody who looks at operations."""
    return (
        plain(problem)
        and not (transformed() or recorded() or by_target(problem))
        and 0 not in problem.linear_weight.shape
    )


def _by_operations(problem: Problem, asked: Asked) -> tuple[Any, ...]:
    """Loss, log-sum-exp and entropies of a problem whose logits are scaled already."""
    extras = Extras(True, False, asked.entropies, asked.z_loss_weight, None, problem.softcap)
    loss, lse, _, *entropies = assembled(rows(problem, extras), problem, extras)
    return loss, lse, entropies[0] if entropies else None


def _widened(problem: Problem) -> Problem:
    """Half precision is rounded once, at the end."""
    dtype = working_dtype(problem.input, problem.linear_weight, problem.target)
    bias = problem.linear_bias
    return problem._replace(
        input=problem.input.to(dtype),
        linear_weight=problem.linear_weight.to(dtype),
        linear_bias=None if bias is None else bias.to(dtype),
    )


def scaled_and_capped(problem: Problem, extras: Extras) -> Problem:
    """`logit_scale` in the classifier, whose rows are usually fewer than the input's."""
    problem = problem._replace(softcap=extras.softcap)
    if extras.logit_scale is None:
        return problem
    dtype = working_dtype(problem.input, problem.linear_weight, problem.target)
    bias = problem.linear_bias
    return problem._replace(
        linear_weight=problem.linear_weight.to(dtype) * extras.logit_scale,
        linear_bias=None if bias is None else bias.to(dtype) * extras.logit_scale,
    )


def _asking(problem: Problem) -> Problem:
    return problem._replace(wanted=wanted_of(*problem[:3]))


def rows(problem: Problem, extras: Extras) -> Rows:
    """What each sample has."""
    with torch.autocast(problem.input.device.type, enabled=False):
        problem = _widened(scaled_and_capped(problem, extras))
        problem = _asking(problem._replace(reduction="none"))
        if _at_once(problem):
            lse_too = extras.lse or bool(extras.z_loss_weight)
            asked = Asked(lse_too, extras.predictions, extras.entropies)
            return Rows(*Together.apply(*problem[:3], problem, asked, _by_operations))
        losses = apply(problem)
        lse = predictions = entropies = None
        if extras.lse or extras.z_loss_weight:
            lse = _log_sum_exp(problem, losses)
        if extras.predictions:
            predictions = _blocks(problem, _largest, differentiable=False)
        if extras.entropies:
            entropies = _blocks(problem, _entropies, differentiable=bool(problem.wanted))
            if not problem.target.is_floating_point():
                entropies = torch.where(problem.target != problem.ignore_index, entropies, 0.0)
    return Rows(losses, lse, predictions, entropies)


def assembled(made: Rows, problem: Problem, extras: Extras) -> Any:
    """Rows of any shape, reduced; `problem` has the target and the options."""
    target, weight, reduction = problem.target, problem.weight, problem.reduction
    kind = loss_dtype(problem.input, problem.linear_weight, target)
    counted = None if target.is_floating_point() else target != problem.ignore_index
    z_losses = None
    if made.lse is not None and extras.z_loss_weight:
        z_losses = extras.z_loss_weight * made.lse.square()
    if reduction == "none":
        loss = made.losses if z_losses is None else made.losses + z_losses
    else:
        loss = made.losses.sum(dtype=torch.float64)
        if reduction == "mean":
            loss = _formula.mean(loss, _divisor(made.losses, target, weight, counted))
        if z_losses is not None:
            total = z_losses.sum(dtype=torch.float64)
            if reduction == "mean":
                total = _formula.mean(total, _divisor(made.losses, target, None, counted))
            loss = loss + total
    return _returned(loss.to(kind), made, extras)


def _returned(loss: Tensor, made: Rows, extras: Extras) -> Any:
    if not extras.returned:
        return loss
    lse = made.lse if extras.lse else None
    if extras.entropies:
        return OutputWithEntropies(loss, lse, made.predictions, made.entropies)
    return Output(loss, lse, made.predictions)


def _divisor(
    losses: Tensor, target: Tensor, weight: Tensor | None, counted: Tensor | None
) -> Tensor:
    if counted is None:
        return torch.full((), losses.numel(), dtype=torch.float64, device=losses.device)
    return _formula.divisor(target, weight, counted)


def _log_sum_exp(problem: Problem, losses: Tensor) -> Tensor:
    """`loss_i + z_y`, or the plain formula where logits are formed anyway; of ignored samples 0."""
    input, linear_weight, linear_bias, target, *_ = problem
    if transformed():
        lse = torch.logsumexp(_formula.logits(problem), 1)
        return (
            lse
            if target.is_floating_point()
            else torch.where(target != problem.ignore_index, lse, 0.0)
        )
    K = linear_weight.shape[0]
    plain = problem._replace(weight=None, label_smoothing=0.0)
    if target.is_floating_point():
        labels = target.detach().argmax(1)
        losses = apply(plain._replace(target=labels, ignore_index=-100))
        counted = None
    else:
        if problem.weight is not None or problem.label_smoothing:
            losses = apply(plain)
        target = target.to(torch.int64)
        counted = target != problem.ignore_index
        labels = target.masked_fill(~(counted & (target >= 0) & (target < K)), 0)
        # An ignored sample may hold NaN, which must reach no gradient.
        input = torch.where(counted.unsqueeze(1), input, 0.0)
    z = (input * linear_weight[labels]).sum(1)
    if linear_bias is not None:
        z = z + linear_bias[labels]
    if problem.softcap:
        z = problem.softcap * _formula.tanh(z / problem.softcap)
    lse = losses + z
    return lse if counted is None else torch.where(counted, lse, 0.0)


def _blocks(problem: Problem, of_rows: Any, *, differentiable: bool) -> Tensor:
    """A function of some samples' logits, for all samples."""
    input, linear_weight, linear_bias, *_ = problem
    if not differentiable:
        input, linear_weight = input.detach(), linear_weight.detach()
        linear_bias = None if linear_bias is None else linear_bias.detach()
    softcap = problem.softcap

    def part(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
        z = input @ linear_weight.mT
        if linear_bias is not None:
            z = z + linear_bias
        made: Tensor = of_rows(softcap * _formula.tanh(z / softcap) if softcap else z)
        return made

    if recorded() or transformed():
        return part(input, linear_weight, linear_bias)
    n = max(1, _ENTRIES_A_BLOCK // max(1, len(linear_weight)))
    if len(input) <= n:
        return part(input, linear_weight, linear_bias)
    pieces = []
    for first in range(0, len(input), n):
        piece = (input[first : first + n], linear_weight, linear_bias)
        pieces.append(checkpoint(part, *piece, use_reentrant=False) if differentiable else
                      part(*piece))  # fmt: skip
    return torch.cat(pieces)


def _largest(z: Tensor) -> Tensor:
    return z.argmax(1)


def _entropies(z: Tensor) -> Tensor:
    """`-sum_j p_j log p_j` by gaps to the largest logit: a sum of numbers of one sign."""
    top = z.detach().argmax(1, keepdim=True)
    gaps = z - z.gather(1, top)
    # The loss of the largest logit's class, -log p.
    loss = _formula.log_partition(gaps, top)
    p = torch.exp(gaps - loss.unsqueeze(1))
    return loss - (p * gaps.masked_fill(torch.isinf(gaps), 0.0)).sum(1)
