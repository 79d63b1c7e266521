"""Gradient descent on the objective of a model of Table 1, on its constraint if it has one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.snapshot import measure
from fastnc.dynamics.steppers.epochs import HostEpochs
from fastnc.kernels.cpu.threads import few_threads
from fastnc.models.layer_peeled import LayerPeeled
from fastnc.models.minimum_norm import MinimumNorm


class PenalisedDescent(HostEpochs):
    """`theta -= lr gradient`, and back onto the constraint.

    On a sphere, with bounded energies (both active at every minimiser, and kept so) and with
    unit rows the gradient is the Riemannian one and the way back is a normalisation; features
    that must not be negative are projected. A free bias starts at zero and descends too.
    Snapshots gain the column `objective`; the others are measured of W and H as the ULPM's are,
    without the bias, the temperature or the penalty.
    """

    def __init__(self, model: Any, W: NDArray[Any], H: NDArray[Any], lr: float) -> None:
        if not isinstance(model, LayerPeeled):
            raise TypeError(
                "`model` must be a `fastnc.ULPM` or one of `fastnc.models`; "
                f"got {type(model).__name__}."
            )
        if isinstance(model, MinimumNorm):
            raise ValueError(
                "the separation problem has no gradient to descend along: it is all constraints. "
                "Use `fastnc.solve`, or descend on `fastnc.ULPM`, whose direction tends to it."
            )
        self.model, self.lr = model, lr
        with np.errstate(divide="ignore", invalid="ignore"):
            W, H = model.retract(W, H)
        super().__init__(np.array(W), np.array(H), model.y)
        for name, x in (("W", self.W), ("H", self.H)):
            if not np.isfinite(x).all():
                raise ValueError(
                    f"`{name}` must not be 0 where {type(model).__name__} gives it a length: what "
                    "is 0 has no direction to keep."
                )
        self.bias = np.zeros(model.n_classes, W.dtype) if model.has_bias else None

    def make(self, epochs: int) -> None:
        with few_threads(self.model.is_small, blas=False), np.errstate(all="ignore"):
            for _ in range(epochs):
                g = self.model.value_and_grads(self.W, self.H, self.bias)
                grad_W, grad_H = self.model.pullback(self.W, self.H, g.W, g.H)
                moved = self.model.retract(self.W - self.lr * grad_W, self.H - self.lr * grad_H)
                for x, new in zip((self.W, self.H), moved, strict=True):
                    np.copyto(x, new)
                if self.bias is not None and g.bias is not None:
                    self.bias -= self.lr * g.bias

    def measure(self) -> dict[str, float]:
        with few_threads(self.model.is_small, blas=False):
            row = measure(self.W, self.H, self.model.y)
            return {**row, "objective": self.model.objective(self.W, self.H, self.bias)}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """W, H and the bias, if there is one."""
        arrays = {"W": self.W, "H": self.H}
        return arrays if self.bias is None else {**arrays, "bias": self.bias}
