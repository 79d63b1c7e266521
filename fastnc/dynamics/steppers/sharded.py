"""Descent on the mean loss (4) with the rows of H spread over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastnc._core.ranks import Workers
from fastnc.dynamics.gradients import OverRanks
from fastnc.dynamics.rank_snapshot import measure
from fastnc.dynamics.rules import Rule
from fastnc.dynamics.steppers.composed import ComposedDescent


class ShardedDescent(ComposedDescent):
    """A rule's steps; each rank holds all of W and some rows of H, and the rule's memory of them.

    An epoch exchanges dL/dW and the loss, K d + 1 numbers: the gradient by H stays with the rows.
    W has the same bits on every rank.
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
        """The columns of a run at W and all ranks' rows of H."""
        W, H = (torch.from_numpy(x.astype(np.float64)) for x in self.wide())
        return measure(W, H, self.y, self.workers)

    def keep(self, steps: int) -> bool:
        """Keep the state, where every rank can."""
        mine = torch.tensor(float(super().keep(steps)))
        return float(self.workers.largest(1.0 - mine)) == 0.0
