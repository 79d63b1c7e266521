"""Descent on the deep linear model: a rule's steps of the features and of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.gradients import Source
from fastnc.dynamics.rules import Rule
from fastnc.dynamics.snapshot import measure
from fastnc.dynamics.steppers.composed import ComposedDescent
from fastnc.kernels.cpu.threads import few_threads
from fastnc.models.deep_linear import DeepLinear

Array = NDArray[Any]


class DeepDescent(ComposedDescent):
    """The factors are W, the last layer, H, the free features, and the layers between.

    Snapshots measure the last layer and its input, and gain the columns `objective` and
    `balancedness`.
    """

    def __init__(
        self,
        model: DeepLinear,
        source: Source,
        rule: Rule,
        W: Array,
        H: Array,
        between: Sequence[Array],
        freeze: Sequence[str] = (),
    ) -> None:
        self.model = model
        super().__init__(
            source, rule, W, H, model.y, freeze=freeze,
            further={f"W{i}": x for i, x in enumerate(between, 1)},
            guard=partial(few_threads, model.is_small, blas=False),
        )  # fmt: skip

    @property
    def layers(self) -> tuple[Array, ...]:
        """H_1, W_1, ..., W_M, with their low parts."""
        if not self.low[0].size:
            wide = self.factors
        else:
            pairs = zip(self.factors, self.low, strict=True)
            wide = tuple(np.add(x, low, dtype=np.float64) for x, low in pairs)
        return (wide[1], *wide[2:], wide[0])

    @property
    def H(self) -> Array:
        """The input of the last layer."""
        return self.model.features((self.factors[1], *self.factors[2:], self.factors[0]))

    @H.setter
    def H(self, value: Array) -> None:
        """Ignored: H is computed from `factors`."""

    def measure(self) -> dict[str, float]:
        """The columns of a run of the last layer, the objective and the balancedness."""
        with few_threads(self.model.is_small, blas=False):
            layers = self.layers
            row = measure(layers[-1], self.model.features(layers), self.y)
            row["objective"] = self.model.objective(layers)
            row["balancedness"] = self.model.balancedness(layers)
        return row
