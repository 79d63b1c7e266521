"""The loss with its further outputs: log-sum-exp, predictions, entropies, and the z-loss.

All of them come from the loss's own pass over the logits (`_together`), as an operator where
operators are recorded; under transforms, and where the target is differentiated, from the formula
in torch's operations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastnc.nn import _formula, _together_operator
from fastnc.nn._autograd import apply, by_target, divided, look_within, recordable, wanted_of
from fastnc.nn._problem import Problem, loss_dtype, working_dtype
from fastnc.nn._surroundings import plain, recorded, transformed
from fastnc.nn._together import Together
from fastnc.nn._torch_rows import Asked


class Output(NamedTuple):
    """The loss, and the requested numbers of each sample."""

    loss: Tensor
    lse: Tensor | None
    predictions: Tensor | None


class OutputWithEntropies(NamedTuple):
    """The loss, and the requested numbers of each sample, with entropies."""

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
    """Of each sample, in the working dtype: its loss without z-loss, and the requested numbers."""

    losses: Tensor
    lse: Tensor | None
    predictions: Tensor | None
    entropies: Tensor | None


def with_extras(problem: Problem, extras: Extras) -> Any:
    """The loss of a problem (N, d), or a tuple that begins with it."""
    kind = loss_dtype(problem.input, problem.linear_weight, problem.target)
    if not (extras.returned or extras.z_loss_weight):
        return apply(_asking(scaled_and_capped(problem, extras))).to(kind)
    with torch.autocast(problem.input.device.type, enabled=False):
        scaled = _asking(_widened(scaled_and_capped(problem, extras)))
        asked = Asked(extras.lse, extras.predictions, extras.entropies, extras.z_loss_weight)
        made = _values(scaled, asked)
    return _returned(made.losses.to(kind), made, extras)


def _values(problem: Problem, asked: Asked) -> Rows:
    """Loss, log-sum-exp, predictions and entropies of a widened problem with scaled logits."""
    made: Any
    if divided(problem):
        raise NotImplementedError(
            "`return_lse`, `return_predictions`, `return_entropies` and `z_loss_weight` must be "
            "left alone where `linear_weight` is a DTensor. Call `.full_tensor()` on it for those."
        )
    if transformed() or by_target(problem):
        look_within(problem)
        loss, lse, entropies = _formula.together(problem, asked.z_loss_weight, asked.entropies)
        predictions = _formula.predictions(problem) if asked.predictions else None
        return Rows(loss, lse if asked.lse else None, predictions, entropies)
    if plain(problem) and not recorded():
        return Rows(*Together.apply(*problem[:3], problem, asked))
    made = _together_operator.operator(*recordable(problem), *asked)
    return Rows(made[0], *(x if on else None for x, on in zip(made[1:4], asked, strict=False)))


def _widened(problem: Problem) -> Problem:
    """The problem in the working dtype: half precision is rounded once, at the end."""
    dtype = working_dtype(problem.input, problem.linear_weight, problem.target)
    bias = problem.linear_bias
    return problem._replace(
        input=problem.input.to(dtype),
        linear_weight=problem.linear_weight.to(dtype),
        linear_bias=None if bias is None else bias.to(dtype),
    )


def scaled_and_capped(problem: Problem, extras: Extras) -> Problem:
    """The problem with `softcap`, and with `logit_scale` in the classifier: it has fewer rows."""
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
    """The `Rows` of a problem."""
    with torch.autocast(problem.input.device.type, enabled=False):
        problem = _widened(scaled_and_capped(problem, extras))
        problem = _asking(problem._replace(reduction="none"))
        if not (extras.returned or extras.z_loss_weight):
            return Rows(apply(problem), None, None, None)
        lse_too = extras.lse or bool(extras.z_loss_weight)
        return _values(problem, Asked(lse_too, extras.predictions, extras.entropies))


def assembled(made: Rows, problem: Problem, extras: Extras) -> Any:
    """Rows of any shape, reduced; `problem` has the target and the options."""
    kind = loss_dtype(problem.input, problem.linear_weight, problem.target)
    loss = _formula.reduced(problem, made.losses, made.lse, extras.z_loss_weight)
    return _returned(loss.to(kind), made, extras)


def _returned(loss: Tensor, made: Rows, extras: Extras) -> Any:
    if not extras.returned:
        return loss
    lse = made.lse if extras.lse else None
    if extras.entropies:
        return OutputWithEntropies(loss, lse, made.predictions, made.entropies)
    return Output(loss, lse, made.predictions)
