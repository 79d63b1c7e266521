"""Many small descents on a CUDA device at once: one program each, epochs inside the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.snapshot import measure
from fastnc.dynamics.steppers import Stepper
from fastnc.dynamics.steppers.cuda import CudaDescent


def fits(stepper: Stepper) -> bool:
    """Whether a stepper is one of CUDA whose problem fits a program's registers."""
    return isinstance(stepper, CudaDescent) and stepper.is_small


class CudaTogether:
    """Many `CudaDescent` whose tensors are slices of common ones.

    All have one shape, label vector and dtype, and are at one epoch; each gets the same bits as
    alone.
    """

    def __init__(self, steppers: Sequence[CudaDescent]) -> None:
        import torch

        self.steppers, self.y, self.labels = steppers, steppers[0].y, steppers[0].labels
        self.tensors = {
            name: torch.stack([s.tensors[name] for s in steppers]) for name in steppers[0].tensors
        }
        for b, s in enumerate(steppers):
            s.tensors = {name: x[b] for name, x in self.tensors.items()}
        rates = [s.lr for s in steppers]
        self.rates = torch.tensor(rates, dtype=torch.float64, device=self.labels.device)
        self._kept: dict[str, Any] = {}

    def advance(self, due: float, steps: int) -> int:
        """Make at most `steps` epochs of all; the device is not waited for."""
        from fastnc.kernels.gpu.trajectory import descend_many

        made = min(steps, int(due) - self.steppers[0].epoch)
        self._kept = {name: x.clone() for name, x in self.tensors.items()}
        descend_many(*self.tensors.values(), self.labels, 1.0 / len(self.y), self.rates, made)
        for s in self.steppers:
            s.epoch += made
        return made

    def finite(self) -> NDArray[np.bool_]:
        """Which of the problems (B,) are finite."""
        finite = self.tensors["W"].sum(dim=(1, 2)).isfinite()
        return np.asarray(finite.cpu().numpy())

    def roll_back(self, b: int, steps: int) -> None:
        """Return problem b to its state before the last `advance`, which made `steps` epochs."""
        for name, x in self._kept.items():
            self.tensors[name][b].copy_(x[b])
        self.steppers[b].epoch -= steps

    def measure(self) -> list[dict[str, float]]:
        """The columns of a snapshot of each problem, from one fetch of them all."""
        wide = []
        for name in "WH":
            x, low = self.tensors[name], self.tensors[f"{name}_low"]
            both = x.double() + low.double() if low.numel() else x
            wide.append(np.asarray(both.cpu().numpy()))
        return [measure(W, H, self.y) for W, H in zip(*wide, strict=True)]
