"""Whether `torchrun` started a command as one of several ranks; torch is loaded only if so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def joined_ranks(device: str | None) -> Iterator[tuple[int, int]]:
    """This rank and the number of ranks, joined inside the context; (0, 1) without torchrun."""
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    from fastnc._core.ranks import workers_of_torchrun

    with workers_of_torchrun(device) as workers:
        yield workers.rank, workers.count
