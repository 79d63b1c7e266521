"""Gradient flow on a CUDA device under the run loop; its snapshots are measured there too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastnc._core.cuda import check_gpu, need_gpu, on_device_of
from fastnc._core.ranks import Alone
from fastnc.collapse.statistics import ClassStatistics
from fastnc.dynamics import rank_snapshot
from fastnc.dynamics.device_models import Penalised
from fastnc.dynamics.host_copies import HostCopies
from fastnc.dynamics.integrator.equation import Decays
from fastnc.dynamics.integrator.on_device import DeviceEquation
from fastnc.dynamics.integrator.stepper import FlowStepper
from fastnc.dynamics.steppers import cuda, epochs
from fastnc.theory.margin import TERMS, decomposition, polar_factor, shares
from fastnc.theory.seli import distances_of_sums

# Logits of a chunk of samples take this many bytes.
_CHUNK_BYTES = 1 << 26


class DeviceFlow(FlowStepper):
    """The flow with W, H and the integrator's vectors on a device.

    Snapshots of a large problem fetch numbers of the size of W: the class means, from which the
    host makes what needs singular vectors of K x K matrices. H is fetched for checkpoints and at
    the end.
    """

    equation: DeviceEquation

    def _equation(self, shape: tuple[int, int], solver: str, decays: Decays) -> DeviceEquation:
        need_gpu("device='cuda'")
        there = torch.zeros(1, dtype=torch.float64).cuda()
        check_gpu(there)
        self._copies = HostCopies()
        return DeviceEquation(shape, self.y, there.device, decays)

    @property
    def _stays(self) -> bool:
        """Whether the device measures; samples of one class have no geometry of means."""
        K, d = self.equation.shape
        return K * len(self.y) * d > cuda.ON_THE_HOST and bool(self.y.min() < self.y.max())

    def _there(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, H and the labels on the device."""
        return *self.equation.split(self.method.state.theta), self.equation.labels

    def state_later(self) -> Callable[[], dict[str, NDArray[Any]]] | None:
        """Start a copy of the state; returns a function that waits for it. None of small ones."""
        now = vars(self.method.state)
        tensors = {name: x for name, x in now.items() if isinstance(x, Tensor)}
        if len(now["theta"]) <= epochs.CHEAP_TO_COPY:
            return None
        finish = self._copies.begin(tensors)
        numbers = {name: np.array(x) for name, x in now.items() if name not in tensors}
        numbers |= self._counters()
        return lambda: {**finish(), **numbers}

    def _columns(self) -> dict[str, float]:
        if not self._stays:
            return super()._columns()
        W, H, _ = self._there()
        with on_device_of(H):
            return rank_snapshot.measure(W, H, self.y, Alone())

    def _objective(self) -> float:
        if not self._stays:
            return super()._objective()
        W, H, labels = self._there()
        with on_device_of(H):
            return Penalised(labels, self.model).objective(W, H, None)

    def _terms(self) -> dict[str, float]:
        if not self._stays:
            return super()._terms()
        W, H, labels = self._there()
        with on_device_of(H):
            statistics = ClassStatistics(*W.shape)
            statistics.update(H, self.y)
            means = np.nan_to_num(statistics.means)
            A = polar_factor(self.counts)
            share = torch.from_numpy(shares(A, self.counts)).to(H.device)
            q_min = min(float(gaps.amin()) for _, gaps in margins_over_classes(W, H, labels))
            uneven = sum(
                # Subtracted before the sum, as on the host; 0 at the label, where a gap is
                # infinite.
                float((share[label] * (gaps.nan_to_num(posinf=q_min) - q_min)).sum())
                for label, gaps in margins_over_classes(W, H, labels)
            )
            square, within = float(H.reshape(-1) @ H.reshape(-1)), float(statistics.squares.sum())
            host_W = self.equation.vectors.fetched(W)
        found = decomposition(host_W, means, self.counts, A, square, within, q_min, uneven)
        row = {name: float(getattr(found, name)) for name in TERMS}
        if self._is_unequal:
            row |= distances_of_sums(host_W, means * self.counts[:, None], self.counts)
        return row


def margins_over_classes(W: Tensor, H: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of labels, and of `z_y - z_j`, infinite at the label."""
    rows = max(1, _CHUNK_BYTES // (W.element_size() * len(W)))
    for low in range(0, len(H), rows):
        label = y[low : low + rows]
        Z = H[low : low + rows] @ W.T
        own = Z.gather(1, label[:, None])
        yield label, (own - Z).scatter_(1, label[:, None], math.inf)
