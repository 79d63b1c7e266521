"""What the ranks of an evaluation must agree on: that none failed, the classes, the repetitions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def several_ranks() -> bool:
    """Whether `torch.distributed` runs with more than one rank."""
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def inputs_of_rank(n: int) -> int:
    """How many of n inputs a `DistributedSampler` gives this rank before it repeats any."""
    if not several_ranks():
        return n
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return max(-(-(n - rank) // ranks), 0)


def check_inputs(n: int | None, seen: int) -> int:
    """How many inputs of this rank count: those of a data set of n; all without n."""
    if n is None:
        return seen
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"`n` must be the number of samples of the data set; got {n!r}.")
    mine = inputs_of_rank(n)
    if seen - mine not in (0, 1) or (seen != mine and not several_ranks()):
        raise ValueError(
            f"`n` must be the size of the data set that was run; of {n} samples this rank has "
            f"{mine}, and {seen} entered the layer."
        )
    return mine


@contextmanager
def all_or_none() -> Iterator[None]:
    """An error on one rank is raised on all of them: the others would wait for it."""
    problem = None
    try:
        yield
    except ValueError as error:
        problem = error
    if several_ranks():
        bad = torch.tensor(int(problem is not None), device=travels_on())
        torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        if int(bad) and problem is None:
            raise ValueError(
                "another rank has no features, or not finite ones, or labels that do not fit; "
                "see there."
            )
    if problem is not None:
        raise problem


def travels_on() -> torch.device:
    """The device of tensors that the ranks exchange."""
    nccl = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def largest(value: int) -> int:
    """The largest value of any rank."""
    if not several_ranks():
        return value
    most = torch.tensor(value, device=travels_on())
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def distinct(y: Tensor) -> Tensor:
    """The distinct labels, of all ranks where there are several, sorted."""
    ours: Tensor = torch.unique(y)
    if not several_ranks():
        return ours
    ours = ours.to(travels_on())
    # Filled up with a label that is there anyway; a rank may have none.
    most = largest(len(ours))
    filler = torch.full((most - len(ours),), largest(int(ours[0]) if len(ours) else -1))
    filled = torch.cat([ours, filler.to(ours)])
    everyone = [torch.empty_like(filled) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everyone, filled)
    all_labels: Tensor = torch.unique(torch.cat(everyone))
    return all_labels.to(y.device)
