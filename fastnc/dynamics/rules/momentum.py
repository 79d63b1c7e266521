"""Momentum: the heavy ball, and Nesterov's form of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastnc._core import arrays
from fastnc._core.switches import check_flag
from fastnc.dynamics.rules.rule import Array, Arrays, BuiltIn, check_fraction, decayed


@dataclass(frozen=True)
class Momentum(BuiltIn):
    """`m <- momentum m + g`, `theta -= lr m`; Nesterov: `theta -= lr (g + momentum m)`.

    As `torch.optim.SGD`, from m = 0 and without dampening. With a constant `lr` its limit is that
    of gradient descent with `lr / (1 - momentum)`.
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        arrays.keep_checked(self, check_flag, "nesterov")
        arrays.keep_checked(self, check_fraction, "momentum")
        arrays.keep_checked(self, arrays.check_at_least_zero, "weight_decay")

    def init(self, *factors: Array) -> dict[str, Array]:
        """m = 0 for each factor."""
        return {f"m{i}": np.zeros_like(x) for i, x in enumerate(factors)}

    def update(
        self, factors: Arrays, gradients: Arrays, state: dict[str, Array], rates: Arrays, step: int
    ) -> Arrays:
        """`-lr m`, m renewed."""
        changes = []
        for i, g in enumerate(decayed(gradients, factors, self.weight_decay)):
            m = state[f"m{i}"]
            mu = m.dtype.type(self.momentum)
            m *= mu
            m += g
            changes.append(-rates[i] * (g + mu * m if self.nesterov else m))
        return tuple(changes)
