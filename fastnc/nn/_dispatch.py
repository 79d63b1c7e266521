"""Which code computes the loss: Numba on the CPU, Triton on CUDA, torch's operations elsewhere."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastnc._core.cuda import serves
from fastnc.nn import _torch_rows
from fastnc.nn._problem import Problem, Result


def evaluate(problem: Problem, upstream: Tensor | None = None) -> Result:
    """The loss in its dtype, and the gradients that are wanted.

    Gradients are those of a reduced loss, or of `sum_i upstream_i loss_i`, and in the working
    dtype, float32 or float64: half precision has no room for what is yet to be multiplied by an
    upstream gradient.
    """
    input, linear_weight, _, target, *_ = problem
    dtype = working_dtype(input, linear_weight)
    if target.is_floating_point():
        loss, *grads = _torch_rows.evaluate(dtype, problem, upstream)
    elif input.is_cpu:
        loss, *grads = _by_numba()(dtype, problem, upstream)
    elif serves(input):
        from fastnc.nn import _triton_rows

        loss, *grads = _triton_rows.evaluate(dtype, problem, upstream)
    else:
        loss, *grads = _torch_rows.evaluate(dtype, problem, upstream)
    kind = loss_dtype(input, linear_weight)
    return loss if loss.dtype == kind else loss.to(kind), grads[0], grads[1], grads[2]


@cache
def _by_numba() -> Any:
    from fastnc.nn import _numba_rows

    return _numba_rows.evaluate


def loss_dtype(input: Tensor, linear_weight: Tensor) -> torch.dtype:
    """That of torch's own: of the operands, but float32 where autocast is on."""
    dtype = input.dtype
    if dtype == linear_weight.dtype == torch.float32:
        return dtype
    if linear_weight.dtype != dtype:
        dtype = torch.promote_types(dtype, linear_weight.dtype)
    if dtype.itemsize < 4 and torch.is_autocast_enabled(input.device.type):
        return torch.float32
    return dtype


def working_dtype(input: Tensor, linear_weight: Tensor) -> torch.dtype:
    """In which everything is computed: float64 where either operand is, float32 otherwise."""
    if input.dtype == torch.float64 or linear_weight.dtype == torch.float64:
        return torch.float64
    return torch.float32
