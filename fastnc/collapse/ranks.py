"""Sums over the ranks of `torch.distributed`, of NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import as_numpy


def refuse_again(reduced: bool) -> None:
    """Sums over all ranks must not be summed over the ranks again."""
    if reduced:
        raise RuntimeError(
            "`all_reduce` must be called once: this holds the samples of all ranks already, and "
            "would count each of them again. Gather further samples in a new accumulator."
        )


def sum_over_ranks(arrays: list[NDArray[Any]], group: Any, smallest: bool = False) -> list[Any]:
    """The sums (or minima) of NumPy arrays over the ranks of `torch.distributed`."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        raise ValueError(
            "`all_reduce` needs an initialised process group; "
            "call `torch.distributed.init_process_group` first."
        )
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    op = dist.ReduceOp.MIN if smallest else dist.ReduceOp.SUM
    out = []
    for array in arrays:
        tensor = torch.from_numpy(np.array(array, order="C")).to(device)
        dist.all_reduce(tensor, op=op, group=group)
        out.append(as_numpy(tensor))
    return out
