"""Sharpness-aware minimisation: the gradient is taken a short way uphill."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastnc._core import arrays
from fastnc.dynamics.rules.rule import Array, Arrays, BuiltIn, downhill


@dataclass(frozen=True)
class SharpnessAware(BuiltIn):
    """`theta -= lr grad L(theta + radius g / |g|)`, g = grad L(theta) (SAM).

    Two gradients a step, of the same samples, labels and noise. The climb keeps the length
    `radius` as the loss vanishes: in the limit this is plain descent on a slightly larger loss.
    """

    radius: float = 0.05
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        arrays.keep_checked(self, arrays.check_positive, "radius")
        arrays.keep_checked(self, arrays.check_at_least_zero, "weight_decay")

    def climb(self, gradients: Arrays) -> Arrays:
        """`radius g / |g|`: from theta to the point at which the gradient is taken."""
        norm = math.hypot(*(float(np.linalg.norm(g)) for g in gradients))
        scale = self.radius / norm if norm > 0.0 else 0.0
        return tuple(g * g.dtype.type(scale) for g in gradients)

    def update(
        self, factors: Arrays, gradients: Arrays, state: dict[str, Array], rates: Arrays, step: int
    ) -> Arrays:
        """`-lr g`, g the gradient uphill."""
        return downhill(gradients, factors, rates, self.weight_decay)
