"""Descent on the mean loss (4) with the rows of H spread over ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastnc._core.ranks import Workers
from fastnc.dynamics.gradients import OverRanks
from fastnc.dynamics.rank_snapshot import objective
from fastnc.dynamics.rules import Rule
from fastnc.dynamics.snapshot import COLUMNS
from fastnc.dynamics.steppers.composed import ComposedDescent

# Beyond it squares overflow, and no geometry is left to measure.
LARGEST_NORM = 1e150


class ShardedDescent(ComposedDescent):
    """A rule's steps; each rank holds all of W and some rows of H, and the rule's memory of them.

    Of an epoch only dL/dW and the loss, K d + 1 numbers, are exchanged: every other part of the
    gradient lives where its rows are. W has the same bits on every rank.
    """

    def __init__(
        self,
        W: NDArray[Any],
        H: NDArray[Any],
        y: NDArray[np.int64],
        rule: Rule,
        freeze: str | None,
        n_samples: int,
        workers: Workers,
    ) -> None:
        super().__init__(OverRanks(y, n_samples, workers), rule, W, H, y, freeze=freeze or ())
        self.workers = workers

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
        row |= {name: math.nan if v is None else v for name, v in metrics.items()}
        return {name: row[name] for name in COLUMNS}

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
