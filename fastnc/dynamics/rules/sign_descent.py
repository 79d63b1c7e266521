"""Sign descent: every entry moves by the same length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastnc._core import arrays
from fastnc.dynamics.rules.rule import Array, Arrays, BuiltIn


@dataclass(frozen=True)
class SignDescent(BuiltIn):
    """`theta -= lr (sign(grad L) + weight_decay theta)`: steepest descent in the l_inf norm.

    Its direction tends to a maximum of the l_inf margin (`margin_ratio_max`). `weight_decay` is
    decoupled: a sign has no size to which another gradient could be added.
    """

    lr: Any = 1e-2
    weight_decay: float = 0.0
    scale_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        arrays.keep_checked(self, arrays.check_at_least_zero, "weight_decay")

    def update(
        self, factors: Arrays, gradients: Arrays, state: dict[str, Array], rates: Arrays, step: int
    ) -> Arrays:
        """`-lr sign(g)`."""
        return tuple(
            -lr * (np.sign(g) + x.dtype.type(self.weight_decay) * x)
            for lr, g, x in zip(rates, gradients, factors, strict=True)
        )
