"""Descent on the objective of a model of Table 1, within its constraint if it has one."""

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
from fastnc.models.layer_peeled import LayerPeeled


class PenalisedDescent(ComposedDescent):
    """A rule's steps, each followed by a retraction onto the constraint.

    On a sphere, with bounded energies (both active at every minimiser, and kept so) and with
    unit rows the gradient is the Riemannian one and the retraction a normalisation; features that
    must not be negative are projected. A free bias starts at zero and descends too.
    Snapshots gain the column `objective`; the others are measured of W, H and the bias as the
    ULPM's are, without the temperature or the penalty.
    """

    def __init__(
        self,
        model: Any,
        source: Source,
        rule: Rule,
        W: NDArray[Any],
        H: NDArray[Any],
        freeze: Sequence[str] = (),
    ) -> None:
        self.model = model
        with np.errstate(divide="ignore", invalid="ignore"):
            W, H = (np.array(x) for x in model.retract(W, H))
        for name, x in (("W", W), ("H", H)):
            if not np.isfinite(x).all():
                raise ValueError(
                    f"`{name}` must not be 0 where {type(model).__name__} gives it a length: what "
                    "is 0 has no direction to keep."
                )
        super().__init__(
            source, rule, W, H, model.y,
            bias=np.zeros(model.n_classes, W.dtype) if model.has_bias else None,
            freeze=freeze,
            retract=None if type(model).retract is LayerPeeled.retract else model.retract,
            guard=partial(few_threads, model.is_small, blas=False),
        )  # fmt: skip

    def measure(self) -> dict[str, float]:
        """The columns of a run, and the objective."""
        with few_threads(self.model.is_small, blas=False):
            W, H = (x.astype(self.W.dtype) for x in self.wide())
            row = measure(W, H, self.y, self.bias)
            return {**row, "objective": self.model.objective(W, H, self.bias)}
