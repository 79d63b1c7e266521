"""A problem as the public function passes it to the code that computes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Result = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class Problem(NamedTuple):
    """Checked tensors and options of `linear_cross_entropy`, `input (N, d)`.

    `wanted` is the sum of 1 (input), 2 (linear_weight) and 4 (linear_bias), for each gradient that
    is to be computed. `softcap` is 0 where logits are not capped.
    """

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    weight: Tensor | None
    reduction: str
    ignore_index: int
    label_smoothing: float
    wanted: int
    softcap: float = 0.0


def loss_dtype(input: Tensor, linear_weight: Tensor, target: Tensor) -> torch.dtype:
    """The loss's dtype, as torch has it: that of the operands, float32 for half under autocast."""
    dtype = input.dtype
    if dtype == linear_weight.dtype == torch.float32 and target.dtype == torch.int64:
        return dtype
    if linear_weight.dtype != dtype:
        dtype = torch.promote_types(dtype, linear_weight.dtype)
    if target.is_floating_point():
        dtype = torch.promote_types(dtype, target.dtype)
    if dtype.itemsize < 4 and torch.is_autocast_enabled(input.device.type):
        return torch.float32
    return dtype


def working_dtype(input: Tensor, linear_weight: Tensor, target: Tensor) -> torch.dtype:
    """The dtype of all computations: float64 if one of the tensors has it, float32 otherwise."""
    if torch.float64 in (input.dtype, linear_weight.dtype, target.dtype):
        return torch.float64
    return torch.float32
