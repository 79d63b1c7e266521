"""Descent on the objective of a model with weight decay on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from fastnc.dynamics.device_models import Penalised
from fastnc.dynamics.steppers.cuda import ON_THE_HOST
from fastnc.dynamics.steppers.cuda_composed import CudaComposed


class CudaPenalised(CudaComposed):
    """A rule's steps on W, H and a free bias, which starts at 0.

    Snapshots gain the column `objective`; the others are measured of W, H and the bias as the
    ULPM's are, without the penalty.
    """

    def __init__(
        self,
        model: Any,
        W: NDArray[Any],
        H: NDArray[Any],
        rule: Any,
        source_of: Callable[[Any, Any], Any],
        freeze: str | None = None,
    ) -> None:
        super().__init__(W, H, model.y, rule, source_of, freeze, bias=model.has_bias)
        self.model = model

    def measure(self) -> dict[str, float]:
        """The columns of a run, of the factors with their low parts, and the objective.

        The objective of a large problem is that of the factors without their low parts.
        """
        row = super().measure()
        if self.work <= ON_THE_HOST:
            return {**row, "objective": self.model.objective(*self.wide(), self.bias)}
        # From the factors in the run's dtype; the sums are in float64.
        source = Penalised(self.labels, self.model)
        there = (self.tensors["W"], self.tensors["H"], self.tensors.get("bias"))
        return {**row, "objective": source.objective(*there)}
