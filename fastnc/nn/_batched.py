"""Batches of upstream gradients, as `is_grads_batched` passes them.

Autograd's own batching supports few operations. So batches are unwrapped, computed by `torch.vmap`,
and wrapped again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def is_batch(x: Tensor | None) -> bool:
    """Whether `x` stands for a batch under autograd's own batching, and so has no memory."""
    # A compiler cannot write the look down, and shows no batches.
    if x is None or torch.compiler.is_compiling():
        return False
    return not torch._C._has_storage(x)


def over_batches(
    function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """`function(*tensors)` with batches in and out; None stays None."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    # Unwrapping a tensor that is no batch would make a batch of it.
    dims = tuple(0 if is_batch(x) else None for x in tensors)
    whole = [torch._remove_batch_dim(x, level, 1, 0) if is_batch(x) else x for x in tensors]  # type: ignore[arg-type]
    torch._C._vmapmode_decrement_nesting()
    try:
        made: Any = torch.vmap(function, dims)(*whole)
    finally:
        torch._C._vmapmode_increment_nesting()
    return tuple(torch._add_batch_dim(x, 0, level) for x in made)
