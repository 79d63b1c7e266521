"""Gradient descent with a constant step on the mean loss (4), all epochs on a CUDA device."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.cuda import check_gpu, check_memory, need_gpu
from fastnc.dynamics.checkpoint import fitting
from fastnc.dynamics.snapshot import measure
from fastnc.dynamics.steppers.epochs import CHEAP_TO_COPY, Epochs

EPOCHS_A_GRAPH = 64
# From this many K N d on an epoch takes so long that its launches are hidden behind it.
LARGE = 10**10


class CudaDescent(Epochs):
    """`W -= lr dL/dW`, `H -= lr dL/dH` with nothing fetched to the host between snapshots.

    A small problem makes its epochs inside one kernel; one whose epochs are short replays a
    captured CUDA graph of 64 of them, and takes the rest one by one. In float32 both W and H
    carry what rounding took from their updates: the state is the sum of `W` and `W_low`.
    """

    def __init__(self, W: NDArray[Any], H: NDArray[Any], y: NDArray[np.int64], lr: float) -> None:
        try:
            import torch
            import triton  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "torch and triton are needed for `device='cuda'`: pip install 'fastnc[gpu]'."
            ) from error
        need_gpu("device='cuda'")
        self.y, self.lr, self.dim = y, lr, W.shape[1]
        compensated = W.dtype == np.float32
        on_device = torch.from_numpy(np.array(W, order="C")).cuda()
        check_gpu(on_device)
        check_memory(on_device, len(H), y.nbytes + H.nbytes * (2 if compensated else 1))
        H_, self.labels = (torch.from_numpy(np.array(x, order="C")).cuda() for x in (H, y))
        shapes = (W.shape, H.shape) if compensated else ((0, 0), (0, 0))
        low = [on_device.new_zeros(shape) for shape in shapes]
        self.tensors: dict[str, Any] = dict(
            zip(("W", "H", "W_low", "H_low"), (on_device, H_, *low), strict=True)
        )
        self._graph: Any = None
        self._kept: tuple[int, dict[str, Any]] | None = None

    @property
    def W(self) -> NDArray[Any]:
        """The current classifier (K, d), fetched from the device."""
        return _fetch(self.tensors["W"])

    @property
    def H(self) -> NDArray[Any]:
        """The current features (N, d), fetched from the device."""
        return _fetch(self.tensors["H"])

    @property
    def is_small(self) -> bool:
        """Whether all epochs of a call are made inside one kernel."""
        from fastnc.kernels.gpu.trajectory import is_small

        return bool(is_small(*(self.tensors[name] for name in ("W", "H", "W_low"))))

    def make(self, epochs: int) -> None:
        """That many epochs; the device is not waited for."""
        work = self.tensors["W"].numel() * len(self.tensors["H"])
        if work < LARGE and epochs >= EPOCHS_A_GRAPH and not self.is_small:
            if self._graph is None:
                # A first epoch compiles the kernels, which a capture must not do.
                self.descend(1)
                epochs -= 1
                self._graph = self.capture()
            for _ in range(epochs // EPOCHS_A_GRAPH):
                self._graph.replay()
            epochs %= EPOCHS_A_GRAPH
        self.descend(epochs)

    def finite(self) -> bool:
        """Whether W is finite: one number is fetched, and so the device has been waited for."""
        return bool(self.tensors["W"].sum().isfinite())

    def keep(self, steps: int) -> bool:
        """A copy of the state on the device; none where memory lacks, or an epoch costs less."""
        import torch

        if steps == 1 and self.tensors["H"].numel() > CHEAP_TO_COPY:
            return False
        try:
            if self._kept is None:
                self._kept = self.epoch, {name: x.clone() for name, x in self.tensors.items()}
                return True
        except torch.OutOfMemoryError:
            return False
        self._kept = self.epoch, self._kept[1]
        for name, x in self.tensors.items():
            self._kept[1][name].copy_(x)
        return True

    def roll_back(self) -> None:
        """Return to what `keep` kept."""
        if self._kept is not None:
            self.epoch, kept = self._kept
            for name, x in self.tensors.items():
                x.copy_(kept[name])

    def measure(self) -> dict[str, float]:
        """The columns of a run at the current W and H, measured on the CPU."""
        if not self.tensors["W_low"].numel():
            return measure(self.W, self.H, self.y)
        W, H = (
            np.add(_fetch(self.tensors[name]), _fetch(self.tensors[f"{name}_low"]), dtype=float)
            for name in "WH"
        )
        return measure(W, H, self.y)

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the tensors on the host, and the epoch."""
        copies = {name: _fetch(x) for name, x in self.tensors.items()}
        return {**copies, "epoch": np.array(self.epoch)}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up a state of `state`; ValueError where it does not fit."""
        import torch

        fitting(state, self.state())
        self.epoch = int(state["epoch"])
        for name, x in self.tensors.items():
            # In place: a captured graph holds these addresses.
            x.copy_(torch.from_numpy(state[name]))

    def descend(self, epochs: int) -> None:
        """That many epochs by launches of their own."""
        from fastnc.kernels.gpu.trajectory import descend

        descend(*self.tensors.values(), self.labels, 1.0 / len(self.y), self.lr, epochs)

    def capture(self) -> Any:
        """A graph of `EPOCHS_A_GRAPH` epochs."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.descend(EPOCHS_A_GRAPH)
        return graph


def _fetch(x: Any) -> NDArray[Any]:
    return np.asarray(x.cpu().numpy()).copy()
