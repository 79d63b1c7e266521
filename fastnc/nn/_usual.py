"""The checks of the most frequent call, in one place: for small problems they are most of the cost.

Such a call has plain contiguous tensors on the CPU, of one dtype and of shapes that fit, and no
transform or recording is active. Nothing is refused here: `_checks` checks every other call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastnc.nn._surroundings import alone

# K, d, N, and the addresses of input, linear_weight and target.
Laid = tuple[int, int, int, int, int, int]

_PLAIN = (Tensor, nn.Parameter)
_FLOATS = (torch.float32, torch.float64)
_INT64 = torch.int64


def usual(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None
) -> Laid | None:
    """Sizes and addresses if `_checks.check` would pass and a kernel can read them; else None.

    Targets must be classes; there must be at least one class, feature and sample.
    """
    if not (
        type(input) in _PLAIN
        and type(linear_weight) in _PLAIN
        and type(target) is Tensor
        and alone()
    ):
        return None
    kind = input.dtype
    if not (
        kind in _FLOATS
        and linear_weight.dtype is kind
        and target.dtype is _INT64
        and input.is_cpu
        and linear_weight.is_cpu
        and target.is_cpu
    ):
        return None
    try:
        (N, d), (K, columns), (labels,) = input.shape, linear_weight.shape, target.shape
        H_at, W_at, y_at = input.data_ptr(), linear_weight.data_ptr(), target.data_ptr()
        fits = (
            # Empty tensors, and zeros without memory, have no address.
            (H_at and W_at and y_at)
            and columns == d
            and labels == N
            and input.is_contiguous()
            and linear_weight.is_contiguous()
            and target.is_contiguous()
            and not (input.is_neg() or linear_weight.is_neg() or target.is_neg())
            and (linear_bias is None or _fits(linear_bias, kind, K))
        )
    except (RuntimeError, ValueError):
        # A sparse or nested tensor, a wrapper, or other dimensions.
        return None
    return (K, d, N, H_at, W_at, y_at) if fits else None


def _fits(bias: Tensor, kind: torch.dtype, K: int) -> bool:
    return bool(
        type(bias) in _PLAIN
        and bias.dtype is kind
        and bias.is_cpu
        and bias.shape == (K,)
        and bias.is_contiguous()
        and not bias.is_neg()
        and bias.data_ptr()
    )
