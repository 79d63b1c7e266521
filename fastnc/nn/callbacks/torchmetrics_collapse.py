"""A torchmetrics metric of collapse: class statistics as its state, summed over ranks exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from fastnc.collapse.statistics import ClassStatistics, Scatter


class TorchmetricsCollapse(Metric):
    """The metrics of one pass over features and labels: `update(features, target)`, `compute()`.

    Parameters
    ----------
    n_classes, dim, scatter, ignore_index
        As `fastnc.ClassStatistics` has them.
    classifier : torch.nn.Linear, optional
        Its weight and bias are read in `compute`.

    Notes
    -----
    State: 2 K + K d (+ d^2) numbers in float64. Margins and decisions, which need a second pass,
    are missing; NC1 needs `scatter="full"`.
    """

    full_state_update = False
    gathered: Tensor

    def __init__(
        self,
        n_classes: int,
        dim: int,
        scatter: Scatter = "full",
        ignore_index: int | None = None,
        classifier: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._arguments = (n_classes, dim, scatter, ignore_index)
        # In a tuple, so that it is not registered as a part of this module.
        self._classifier = (classifier,)
        self.add_state("gathered", self._packed(self._new()), dist_reduce_fx=self._merged)
        self.set_dtype(torch.float64)

    def update(self, features: Tensor, target: Tensor) -> None:
        """Adds a batch (n, d), (n,)."""
        statistics = self._unpacked(self.gathered)
        statistics.update(features.cpu(), target.cpu())
        self.gathered = self._packed(statistics).to(self.gathered.device)

    def compute(self) -> dict[str, Tensor]:
        """The metrics that are known, by name."""
        (layer,) = self._classifier
        W, bias = (None, None) if layer is None else (layer.weight, layer.bias)
        metrics = self._unpacked(self.gathered).metrics(W, bias)  # type: ignore[arg-type]
        return {name: torch.tensor(value) for name, value in metrics.flat().items()}

    def _new(self) -> ClassStatistics:
        return ClassStatistics(*self._arguments)

    def _packed(self, statistics: ClassStatistics) -> Tensor:
        state = statistics.state_dict()
        arrays = [state[name] for name in NAMES if name in state]
        return torch.cat([torch.as_tensor(a, dtype=torch.float64).reshape(-1) for a in arrays])

    def _unpacked(self, packed: Tensor) -> ClassStatistics:
        statistics, at = self._new(), 0
        state, numbers = statistics.state_dict(), packed.double().cpu().numpy()
        for name in NAMES:
            if name in state:
                size = state[name].size
                part = numbers[at : at + size].reshape(state[name].shape)
                # Counts are whole numbers, which float64 holds up to 2^53.
                state[name] = part.astype(state[name].dtype)
                at += size
        statistics.load_state_dict(state)
        return statistics

    def _merged(self, several: Tensor) -> Tensor:
        """The states of some ranks or batches as one."""
        first, *others = (self._unpacked(each) for each in several)
        for other in others:
            first.merge(other)
        return self._packed(first)


NAMES = ("counts", "means", "squares", "within")
