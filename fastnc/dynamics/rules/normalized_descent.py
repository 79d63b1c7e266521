"""Normalised gradient descent: steps of one length, whatever the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastnc._core import arrays
from fastnc._core.switches import check_flag
from fastnc.dynamics.rules.rule import Array, Arrays, BuiltIn


@dataclass(frozen=True)
class NormalizedDescent(BuiltIn):
    """`theta -= lr (grad L / |grad L| + weight_decay theta)`, one norm, or one `per_factor`.

    Its direction has the limit of gradient descent's, at the rate 1 / epochs, not 1 / log epochs.
    """

    lr: Any = 1e-1
    per_factor: bool = False
    weight_decay: float = 0.0
    scale_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        arrays.keep_checked(self, check_flag, "per_factor")
        arrays.keep_checked(self, arrays.check_at_least_zero, "weight_decay")

    def update(
        self, factors: Arrays, gradients: Arrays, state: dict[str, Array], rates: Arrays, step: int
    ) -> Arrays:
        """`-lr g / |g|`; 0 where g is 0."""
        norms = [float(np.linalg.norm(g)) for g in gradients]
        if not self.per_factor:
            norms = [math.hypot(*norms)] * len(norms)
        return tuple(
            g * g.dtype.type(-lr / norm if norm > 0.0 else -lr * norm)
            - x.dtype.type(lr * self.weight_decay) * x
            for lr, g, x, norm in zip(rates, gradients, factors, norms, strict=True)
        )
