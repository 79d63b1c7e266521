"""Descent with the rows of H spread over CUDA devices, one a rank of `torch.distributed`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastnc._core.cuda import on_device_of
from fastnc._core.ranks import Workers
from fastnc.dynamics import rank_snapshot
from fastnc.dynamics.composition import Composition
from fastnc.dynamics.device_gradients import OverRanks
from fastnc.dynamics.steppers.cuda import CudaDescent
from fastnc.dynamics.steppers.cuda_composed import CudaComposed

Array = NDArray[Any]


def sharded_stepper(
    W: Array,
    H: Array,
    y: NDArray[np.int64],
    parts: Composition,
    n_samples: int,
    workers: Workers,
) -> CudaDescent:
    """The stepper of W and a rank's rows of H: plain descent in one pass, or a rule's formula."""
    if parts.plain_rate is not None:
        return ShardedPlain(W, H, y, parts.plain_rate, n_samples, workers)
    return ShardedRule(W, H, y, parts.rule, parts.freeze, n_samples, workers)


class _Sharded(CudaDescent):
    """Copies and snapshots that all ranks make together."""

    workers: Workers

    @property
    def is_small(self) -> bool:
        """Never: the ranks exchange sums at every epoch."""
        return False

    def keep(self, steps: int) -> bool:
        """Keep the state, where every rank can."""
        kept = self.labels.new_tensor(float(super().keep(steps)), dtype=torch.float64)
        return float(self.workers.largest(1.0 - kept)) == 0.0

    def measure(self) -> dict[str, float]:
        """The columns of a run at W and all ranks' rows of H; no row leaves its device."""
        W, H, W_low, H_low = (self.tensors[name] for name in ("W", "H", "W_low", "H_low"))
        with on_device_of(W):
            both = W.double() + W_low if W_low.numel() else W
            low = H_low if H_low.numel() else None
            return rank_snapshot.measure(both, H, self.y, self.workers, low)


class ShardedPlain(_Sharded):
    """`W -= lr dL/dW`, `H -= lr dL/dH`; an epoch exchanges K d float64 numbers.

    W has the same bits on every rank. Its gradient is exchanged while the last rows of H make their
    step (K > 128; for fewer classes one kernel makes both), and a captured graph holds both.
    """

    def __init__(
        self,
        W: Array,
        H: Array,
        y: NDArray[np.int64],
        lr: float,
        n_samples: int,
        workers: Workers,
    ) -> None:
        super().__init__(W, H, y, lr)
        self.scale, self.workers = 1.0 / n_samples, workers
        self._shared = torch.empty_like(self.tensors["W"], dtype=torch.float64)

    def descend(self, epochs: int) -> None:
        """That many epochs by single launches."""
        from fastnc.kernels.gpu.cross_entropy import step_over_ranks
        from fastnc.kernels.gpu.plan import EXACT

        W, H, *low = (self.tensors[name] for name in ("W", "H", "W_low", "H_low"))
        carried = low if low[0].numel() else (None, None)
        begin = self.workers.sum_later
        for _ in range(epochs):
            step_over_ranks(
                W, H, *carried, self.labels, self.scale, self.lr, self._shared, begin, EXACT
            )


class ShardedRule(_Sharded, CudaComposed):
    """A rule's formula on W and this rank's rows of H, and its memory of them."""

    def __init__(
        self,
        W: Array,
        H: Array,
        y: NDArray[np.int64],
        rule: Any,
        freeze: str | None,
        n_samples: int,
        workers: Workers,
    ) -> None:
        self.workers = workers
        super().__init__(W, H, y, rule, lambda y, W: OverRanks(y, W, n_samples, workers), freeze)
