"""Gradient descent on the mean loss (4) with a bias: a network's last layer and its features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.snapshot import measure
from fastnc.dynamics.steppers.epochs import HostEpochs

Floats = NDArray[np.float64]


class BiasedDescent(HostEpochs):
    """`x -= lr dL/dx` of W, H and the bias b of the logits `W h + b`, in float64.

    The bias is a further column of W beside a constant feature 1, so that small losses are as
    exact as without a bias. Loss, margin and decisions are measured with the bias; the gradient's
    norm, `beta` and `epsilon` are those of W and H, as in a training.
    """

    def __init__(self, W: Floats, H: Floats, bias: Floats, y: NDArray[np.int64], lr: float) -> None:
        self.W1 = np.column_stack([W, bias]).astype(np.float64)
        self.H1 = np.column_stack([H, np.ones(len(H))]).astype(np.float64)
        super().__init__(self.W1[:, :-1], self.H1[:, :-1], y)
        self.bias = self.W1[:, -1]
        self.lr = lr

    def arrays(self) -> dict[str, NDArray[Any]]:
        """W and H with the column that the bias makes."""
        return {"W1": self.W1, "H1": self.H1}

    def make(self, epochs: int) -> None:
        from fastnc.kernels.cpu.cross_entropy import loss_and_grads

        grad_W, grad_H, loss = np.empty_like(self.W1), np.empty_like(self.H1), np.empty(1)
        with np.errstate(all="ignore"):
            for _ in range(epochs):
                loss_and_grads(self.W1, self.H1, self.y, 1.0 / len(self.y), loss, grad_W, grad_H)
                grad_W *= self.lr
                grad_H *= self.lr
                self.W1 -= grad_W
                self.H -= grad_H[:, :-1]

    def measure(self) -> dict[str, float]:
        return measure(self.W, self.H, self.y, self.bias)
