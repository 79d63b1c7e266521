"""Gradient descent: the rule of the paper."""

from __future__ import annotations

from dataclasses import dataclass

from fastnc._core import arrays
from fastnc.dynamics.rules.rule import Array, Arrays, BuiltIn, downhill


@dataclass(frozen=True)
class GradientDescent(BuiltIn):
    """`theta -= lr (grad L + weight_decay theta)`.

    Its direction tends to a maximum of the l2 margin (`margin_ratio`).
    """

    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        arrays.keep_checked(self, arrays.check_at_least_zero, "weight_decay")

    def update(
        self, factors: Arrays, gradients: Arrays, state: dict[str, Array], rates: Arrays, step: int
    ) -> Arrays:
        """`-lr g`."""
        return downhill(gradients, factors, rates, self.weight_decay)
