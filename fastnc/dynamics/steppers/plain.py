"""Gradient descent with a constant step on the mean loss (4): section 4 of the paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import row_major
from fastnc.dynamics.snapshot import measure


class PlainDescent:
    """`W -= lr dL/dW`, `H -= lr dL/dH`, many epochs in one compiled call.

    In float32 both carry what rounding took from their updates, without which a run stalls at
    a margin of about 17.5: the state is the sum of `W` and `W_low`.
    """

    def __init__(self, W: NDArray[Any], H: NDArray[Any], y: NDArray[np.int64], lr: float) -> None:
        self.W, self.H, self.y, self.lr = W, H, row_major(y), lr
        compensated = W.dtype == np.float32
        self.W_low = np.zeros_like(W) if compensated else np.zeros((0, 0), W.dtype)
        self.H_low = np.zeros_like(H) if compensated else np.zeros((0, 0), H.dtype)
        self._epochs: Callable[[int], None] | None = None

    def advance(self, epochs: int) -> None:
        if self._epochs is None:
            from fastnc.kernels.cpu.trajectory import prepared

            self._epochs = prepared(
                self.W, self.H, self.W_low, self.H_low, self.y, 1.0 / len(self.y), self.lr
            )
        self._epochs(epochs)

    def measure(self) -> dict[str, float]:
        if self.W_low.size:
            return measure(
                np.add(self.W, self.W_low, dtype=np.float64),
                np.add(self.H, self.H_low, dtype=np.float64),
                self.y,
            )
        return measure(self.W, self.H, self.y)

    def state(self) -> dict[str, NDArray[Any]]:
        names = ("W", "H", "W_low", "H_low")
        return {name: getattr(self, name).copy() for name in names}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        for name, values in state.items():
            np.copyto(getattr(self, name), values)


def stays_on_one_thread(model: Any) -> bool:
    """Whether epochs and snapshots of `model` run on the calling thread alone."""
    from fastnc.kernels.cpu.trajectory import stays_on_one_thread
    from fastnc.models import ULPM

    return isinstance(model, ULPM) and stays_on_one_thread(
        model.n_classes, model.dim, model.n_samples
    )
