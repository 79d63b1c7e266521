"""Which form of the loss a checked problem takes in autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnc.nn import _formula
from fastnc.nn._dispatch import evaluate
from fastnc.nn._eager import Eager
from fastnc.nn._labels import look
from fastnc.nn._operator import Carried, operator
from fastnc.nn._problem import Problem
from fastnc.nn._surroundings import plain, pulled_back, recorded, transformed


def apply(problem: Problem) -> Tensor:
    """The loss, differentiable any number of times."""
    loss: Tensor
    if plain(problem) and not (transformed() or recorded() or by_target(problem)):
        loss = Eager.apply(*problem[:3], problem, None) if problem.wanted else evaluate(problem)[0]
    elif divided(problem):
        from fastnc.nn import _vocabulary_parallel

        loss = _vocabulary_parallel.loss(problem)
    elif transformed() or by_target(problem):
        look_within(problem)
        if problem.reduction != "none" and pulled_back() and not (recorded() or by_target(problem)):
            loss = Carried.apply(*problem)[0]
        else:
            loss = _formula.loss(problem)
    else:
        loss = operator(*recordable(problem))[0]
    return loss


def look_within(problem: Problem) -> None:
    """Labels must fit, within transforms of `torch.func` too; what is recorded has none yet."""
    target = problem.target
    if recorded() or type(target) is not Tensor:
        return
    while torch._C._functorch.is_functorch_wrapped_tensor(target):
        target = torch._C._functorch.get_unwrapped(target)
    look(target.flatten(), len(problem.linear_weight), problem.ignore_index)


def divided(problem: Problem) -> bool:
    """Whether one of its tensors lies on several ranks."""
    return any(type(x).__name__ == "DTensor" for x in problem[:5])


def wanted_of(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> int:
    """`Problem.wanted`: the gradients that autograd may request."""
    if not torch.is_grad_enabled():
        return 0
    wanted: int = input.requires_grad + 2 * linear_weight.requires_grad
    return wanted if linear_bias is None else wanted + 4 * linear_bias.requires_grad


def recordable(problem: Problem) -> Problem:
    """The problem for an operator; in a trace with all gradients, which later calls may want."""
    if torch._C._get_tracing_state() is None:
        return problem
    return problem._replace(wanted=3 if problem.linear_bias is None else 7)


def by_target(problem: Problem) -> bool:
    """Whether the target's probabilities or the classes' weights are differentiated too."""
    if problem.weight is None and problem.target.dtype == torch.int64:
        return False
    if torch._C._get_tracing_state() is not None:
        # The operator, which a trace is made of, may be differentiated by them later.
        return False
    asked = problem.target.requires_grad or (
        problem.weight is not None and problem.weight.requires_grad
    )
    return asked and torch.is_grad_enabled()
