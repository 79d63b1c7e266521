"""One problem as it travels from the public function to the code that computes it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Result = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class Problem(NamedTuple):
    """Checked tensors and options of `linear_cross_entropy`, `input (N, d)`.

    `wanted` is the sum of 1 (input), 2 (linear_weight) and 4 (linear_bias), whose gradients are
    asked for.
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
