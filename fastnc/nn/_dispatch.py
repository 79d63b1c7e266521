"""Which code computes the loss: Numba on the CPU, Triton on CUDA, torch's operations elsewhere."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastnc._core.cuda import serves
from fastnc.nn import _formula, _torch_rows
from fastnc.nn._labels import look
from fastnc.nn._problem import Problem, Result, loss_dtype, working_dtype


def evaluate(problem: Problem, upstream: Tensor | None = None) -> Result:
    """The loss in its dtype, and the gradients that are wanted.

    Gradients are those of a reduced loss, or of `sum_i upstream_i loss_i`, in the working dtype,
    float32 or float64: in half precision they might underflow before an upstream gradient
    multiplies them.
    """
    input, linear_weight, _, target, *_ = problem
    dtype = working_dtype(input, linear_weight, target)
    if 0 in linear_weight.shape:
        loss, *grads = _degenerate(problem, upstream)
    elif target.is_floating_point() or problem.softcap:
        loss, *grads = _torch_rows.evaluate(dtype, problem, upstream)
    elif input.is_cpu:
        loss, *grads = numba_rows().evaluate(dtype, problem, upstream)
    elif serves(input):
        from fastnc.nn import _triton_rows

        loss, *grads = _triton_rows.evaluate(dtype, problem, upstream)
    else:
        loss, *grads = _torch_rows.evaluate(dtype, problem, upstream)
    kind = loss_dtype(input, linear_weight, target)
    return loss if loss.dtype == kind else loss.to(kind), grads[0], grads[1], grads[2]


@cache
def numba_rows() -> Any:
    from fastnc.nn import _numba_rows

    return _numba_rows


def _degenerate(problem: Problem, upstream: Tensor | None) -> Result:
    """The loss without a class or a feature, which kernels do not take."""
    plain = problem._replace(
        input=problem.input.detach(), linear_weight=problem.linear_weight.detach()
    )
    if problem.linear_bias is not None:
        plain = plain._replace(linear_bias=problem.linear_bias.detach())
    look(plain.target, len(plain.linear_weight), plain.ignore_index)
    with torch.no_grad():
        loss = _formula.loss(plain)
        made = _formula.gradients(plain, torch.ones_like(loss) if upstream is None else upstream)
    grads = [g if problem.wanted & bit else None for g, bit in zip(made, (1, 2, 4), strict=False)]
    return loss, grads[0], grads[1], grads[2] if len(grads) == 3 else None
