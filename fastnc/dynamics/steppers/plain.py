"""Gradient descent with a constant step on the mean loss (4): section 4 of the paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import row_major
from fastnc.dynamics.steppers.epochs import HostEpochs


class PlainDescent(HostEpochs):
    """`W -= lr dL/dW`, `H -= lr dL/dH`, many epochs in one compiled call."""

    def __init__(self, W: NDArray[Any], H: NDArray[Any], y: NDArray[np.int64], lr: float) -> None:
        super().__init__(W, H, row_major(y))
        self.lr = lr
        self._epochs: Callable[[int], None] | None = None

    def make(self, epochs: int) -> None:
        """That many epochs."""
        if self._epochs is None:
            from fastnc.kernels.cpu.trajectory import prepared

            self._epochs = prepared(
                self.W, self.H, self.W_low, self.H_low, self.y, 1.0 / len(self.y), self.lr
            )
        self._epochs(epochs)


def stays_on_one_thread(model: Any) -> bool:
    """Whether epochs and snapshots of `model` run on the calling thread alone."""
    from fastnc.kernels.cpu.trajectory import stays_on_one_thread
    from fastnc.models import ULPM

    return isinstance(model, ULPM) and stays_on_one_thread(
        model.n_classes, model.dim, model.n_samples
    )
