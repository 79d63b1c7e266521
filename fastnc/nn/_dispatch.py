"""Which code computes the loss: Numba on the CPU, Triton on CUDA, torch's operations elsewhere."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastnc._cuda import serves
from fastnc.nn import _torch_rows

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def evaluate(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    wanted: int,
    upstream: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss in its dtype, and the gradients that `wanted` asks for.

    `wanted` is the sum of 1 (input), 2 (linear_weight) and 4 (linear_bias). Gradients are those
    of a reduced loss, or of `sum_i upstream_i loss_i`, and in the working dtype, float32 or
    float64: half precision has no room for what is yet to be multiplied by an upstream gradient.
    """
    arguments = (
        working_dtype(input, linear_weight), input, linear_weight, linear_bias, target, weight,
        reduction, ignore_index, label_smoothing, wanted, upstream,
    )  # fmt: skip
    if input.is_cpu and not target.is_floating_point():
        loss, *grads = _by_numba()(*arguments)
    elif serves(input) and not target.is_floating_point():
        from fastnc.nn import _triton_rows

        loss, *grads = _triton_rows.evaluate(*arguments)
    else:
        loss, *grads = _torch_rows.evaluate(*arguments)
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
