"""Gradient descent on the mean loss (4) with the rows of H spread over ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastnc._core.ranks import Workers
from fastnc.dynamics.rank_snapshot import objective
from fastnc.dynamics.snapshot import COLUMNS
from fastnc.dynamics.steppers.epochs import HostEpochs

# Beyond it squares overflow, and no geometry is left to measure.
LARGEST_NORM = 1e150


class ShardedDescent(HostEpochs):
    """`W -= lr dL/dW`, `H -= lr dL/dH`; each rank holds all of W and some rows of H.

    Of an epoch only dL/dW and the loss, K d + 1 numbers, are exchanged: every other part of the
    gradient lives where its rows are. In float32 both updates are compensated, as in
    `HostEpochs`. W has the same bits on every rank.
    """

    def __init__(
        self,
        W: NDArray[Any],
        H: NDArray[Any],
        y: NDArray[np.int64],
        lr: float,
        n_samples: int,
        workers: Workers,
    ) -> None:
        super().__init__(W, H, y)
        self.lr, self.n_samples, self.workers = lr, n_samples, workers

    def make(self, epochs: int) -> None:
        from fastnc.kernels.cpu.cross_entropy import loss_and_grads

        grad_W, grad_H, loss = np.empty_like(self.W), np.empty_like(self.H), np.empty(1)
        shared = np.empty(self.W.size + 1)
        for _ in range(epochs):
            loss_and_grads(self.W, self.H, self.y, 1.0 / self.n_samples, loss, grad_W, grad_H)
            shared[:-1], shared[-1] = grad_W.ravel(), loss[0]
            self.workers.sum(torch.from_numpy(shared))
            if not math.isfinite(shared[-1]):
                # No rank's W may look finite where another rank's rows are not.
                self.W.fill(np.nan)
                return
            _descend(self.W, self.W_low, shared[:-1].reshape(self.W.shape), self.lr)
            _descend(self.H, self.H_low, grad_H, self.lr)

    def measure(self) -> dict[str, float]:
        from fastnc import ClassDeviations, ClassStatistics

        W, H = (x.astype(np.float64) for x in self.wide())
        if not self._norm(W, H) < LARGEST_NORM:
            return dict.fromkeys(COLUMNS, math.nan)
        statistics = ClassStatistics(*W.shape)
        statistics.update(H, self.y)
        if self.workers.several:
            statistics.all_reduce()
        deviations = ClassDeviations(statistics, W)
        deviations.update(H, self.y)
        if self.workers.several:
            deviations.all_reduce()
        metrics = deviations.metrics().as_dict()
        tensors = (torch.from_numpy(W), None, torch.from_numpy(H), torch.from_numpy(self.y))
        row = objective(*tensors, metrics["margin"], self.workers)
        return row | {name: math.nan if v is None else v for name, v in metrics.items()}

    def keep(self, steps: int) -> bool:
        """Keep the state, where every rank can."""
        mine = torch.tensor(float(super().keep(steps)))
        return float(self.workers.largest(1.0 - mine)) == 0.0

    def _norm(self, W: NDArray[Any], H: NDArray[Any]) -> float:
        """The largest norm of W and of any rank's rows, infinite where one is not finite."""
        with np.errstate(all="ignore"):
            norm = math.hypot(float(np.linalg.norm(W)), float(np.linalg.norm(H)))
        norm = norm if math.isfinite(norm) else math.inf
        return float(self.workers.largest(torch.tensor(norm, dtype=torch.float64)))


def _descend(x: NDArray[Any], low: NDArray[Any], gradient: NDArray[Any], lr: float) -> None:
    """x + low -= lr gradient, the large part in `x` and the rest in `low`, if there is one."""
    if not low.size:
        x -= lr * gradient
        return
    low -= (lr * gradient).astype(x.dtype)
    before = x.copy()
    x += low
    low -= x - before
