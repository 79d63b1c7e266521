"""Gradient descent with a constant step on the mean loss (4), all epochs on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.cuda import check_gpu, check_memory, need_gpu, need_torch_and_triton, on_device_of
from fastnc.dynamics.checkpoint import check_state
from fastnc.dynamics.host_copies import HostCopies
from fastnc.dynamics.snapshot import measure
from fastnc.dynamics.steppers.epochs import CHEAP_TO_COPY, Epochs

EPOCHS_A_GRAPH = 64
# From this K N d on an epoch takes so long that its launches cost nothing.
LARGE = 10**10
# Up to this K N d a snapshot is measured faster on the CPU than by many small launches.
ON_THE_HOST = 10**7


class CudaDescent(Epochs):
    """`W -= lr dL/dW`, `H -= lr dL/dH` with nothing fetched to the host between snapshots.

    A small problem makes its epochs inside one kernel; one with short epochs replays a captured
    CUDA graph of 64 epochs, and makes the rest one by one. In float32 the rounding errors of the
    updates are kept: the state is `W + W_low`, `H + H_low`. Snapshots of a large problem are
    measured on the device in float64: H is fetched for checkpoints and at the end.
    """

    def __init__(self, W: NDArray[Any], H: NDArray[Any], y: NDArray[np.int64], lr: Any) -> None:
        need_torch_and_triton()
        import torch

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
        # Of the mean over all samples; ranks, which have some samples each, overwrite it.
        self.scale = 1.0 / len(y)
        self._graph: Any = None
        self._kept: tuple[int, dict[str, Any]] | None = None
        self._copies = HostCopies()

    @property
    def W(self) -> NDArray[Any]:
        """The current classifier (K, d), fetched from the device."""
        return _fetch(self.tensors["W"])

    @property
    def H(self) -> NDArray[Any]:
        """The current features (N, d), fetched from the device."""
        return _fetch(self.tensors["H"])

    @property
    def bias(self) -> NDArray[Any] | None:
        """The bias (K,) of a model that has one, fetched from the device."""
        return _fetch(self.tensors["bias"]) if "bias" in self.tensors else None

    @property
    def is_small(self) -> bool:
        """Whether all epochs of a call are made inside one kernel."""
        from fastnc.kernels.gpu.trajectory import is_small

        return bool(is_small(*(self.tensors[name] for name in ("W", "H", "W_low"))))

    @property
    def work(self) -> int:
        """K N d."""
        return int(self.tensors["W"].numel() * len(self.tensors["H"]))

    def make(self, epochs: int) -> None:
        """That many epochs; the device is not waited for."""
        with on_device_of(self.tensors["W"]):
            if self.work < LARGE and epochs >= EPOCHS_A_GRAPH and not self.is_small:
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
        """Whether W is finite: fetches one number, and so waits for the device."""
        return bool(self.tensors["W"].sum().isfinite())

    def keep(self, steps: int) -> bool:
        """Copy the state on the device; False without memory, or if an epoch costs less."""
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
        """The columns of a run at the current W and H; on the device where that is faster."""
        # Samples of one class have no geometry of means, and a margin all the same.
        if self.work > ON_THE_HOST and self.y.min() < self.y.max():
            from fastnc._core.ranks import Alone
            from fastnc.dynamics import rank_snapshot

            W, _, W_low, H_low = (self.tensors[name] for name in ("W", "H", "W_low", "H_low"))
            both = W.double() + W_low if W_low.numel() else W
            low = H_low if H_low.numel() else None
            with on_device_of(W):
                bias = self.tensors.get("bias")
                return rank_snapshot.measure(both, self.tensors["H"], self.y, Alone(), low, bias)
        return measure(*self.wide(), self.y, self.bias)

    def wide(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """`W + W_low` and `H + H_low` in float64 (W and H if there are none), on the host."""
        W, H = (
            _fetch(self.tensors[name])
            if not self.tensors[f"{name}_low"].numel()
            else np.add(
                _fetch(self.tensors[name]), _fetch(self.tensors[f"{name}_low"]), dtype=float
            )
            for name in "WH"
        )
        return W, H

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the tensors on the host, and the epoch."""
        copies = {name: _fetch(x) for name, x in self.tensors.items()}
        return {**copies, "epoch": np.array(self.epoch)}

    def state_later(self) -> Callable[[], dict[str, NDArray[Any]]] | None:
        """Start a copy of the state; returns a function that waits for it. None of small ones."""
        if self.tensors["H"].numel() <= CHEAP_TO_COPY:
            return None
        finish, epoch = self._copies.begin(self.tensors), np.array(self.epoch)
        return lambda: {**finish(), "epoch": epoch}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up a state of `state`; ValueError where it does not fit."""
        import torch

        own = {name: _like(x) for name, x in self.tensors.items()}
        check_state(state, {**own, "epoch": np.array(0)})
        self.epoch = int(state["epoch"])
        for name, x in self.tensors.items():
            # In place: a captured graph holds these addresses.
            x.copy_(torch.from_numpy(state[name]))

    def descend(self, epochs: int) -> None:
        """That many epochs by launches of their own."""
        from fastnc.kernels.gpu.trajectory import descend

        state = (self.tensors[name] for name in ("W", "H", "W_low", "H_low"))
        descend(*state, self.labels, self.scale, self.lr, epochs)

    def capture(self) -> Any:
        """A graph of `EPOCHS_A_GRAPH` epochs."""
        import torch

        graph = torch.cuda.CUDAGraph()
        # Other threads may wait for events during a capture: the writer of checkpoints, NCCL's.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.descend(EPOCHS_A_GRAPH)
        return graph


def _fetch(x: Any) -> NDArray[Any]:
    return np.asarray(x.cpu().numpy()).copy()


def _like(x: Any) -> NDArray[Any]:
    """An array of a tensor's shape and dtype that takes no memory; nothing is fetched."""
    dtype = str(x.dtype).removeprefix("torch.")
    return np.broadcast_to(np.zeros((), dtype), tuple(x.shape))
