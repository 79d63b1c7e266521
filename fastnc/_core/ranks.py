"""The ranks of a distributed run, and their collective operations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Workers:
    """The ranks of `torch.distributed`, or a single one where there are no others."""

    def __init__(self) -> None:
        dist = torch.distributed
        self.several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.several else 0
        self.count = dist.get_world_size() if self.several else 1

    @property
    def on_devices(self) -> bool:
        """Whether they can exchange tensors of CUDA devices, within a captured graph too."""
        return self.several and "cuda:nccl" in torch.distributed.get_backend_config()

    def mine(self, n: int) -> slice:
        """This rank's share of `n` samples."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over the ranks, on each of them; `x` is overwritten."""
        if self.several:
            torch.distributed.all_reduce(x)
        return x

    def sum_later(self, x: Tensor) -> Callable[[], object]:
        """`sum`, begun only: returns what waits for it. On CUDA the device waits, not the host."""
        if not self.several:
            return lambda: None
        work = torch.distributed.all_reduce(x, async_op=True)
        return lambda: work.wait()

    def largest(self, x: Tensor) -> Tensor:
        """The largest `x` of all ranks, entry by entry, on each of them; `x` is overwritten."""
        if self.several:
            torch.distributed.all_reduce(x, torch.distributed.ReduceOp.MAX)
        return x

    def first(self, x: Tensor) -> Tensor:
        """The `x` of rank 0, on each of them; `x` is overwritten."""
        if self.several:
            torch.distributed.broadcast(x, 0)
        return x

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all ranks together, in the order of the ranks, on each of them."""
        if not self.several:
            return rows
        counts = torch.zeros(self.count, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        sizes = self.sum(counts).tolist()
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])


class Alone(Workers):
    """One rank that ignores all others."""

    def __init__(self) -> None:
        self.several, self.rank, self.count = False, 0, 1


@contextmanager
def workers_of_torchrun(device: str | None) -> Iterator[Workers]:
    """Join the other ranks where `torchrun` started this one: NCCL on CUDA, else gloo."""
    dist = torch.distributed
    if "LOCAL_RANK" not in os.environ or not dist.is_available() or dist.is_initialized():
        yield Workers()
        return
    cuda = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Workers()
    finally:
        dist.destroy_process_group()
